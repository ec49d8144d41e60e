//! Groups on real Apache Kafka, in both protocols: partitions that stay are worked on, static members move nothing, and
//! workers that come and go under load lose and double nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use feedlens::kafka::{Envelope, InflightLimits, KafkaConfig, Producer, Source};
use feedlens::metrics::Metrics;
use rdkafka::producer::{FutureProducer, FutureRecord};
use tokio::sync::mpsc::{Receiver, unbounded_channel};

use crate::kafka_source::has_polled_on;
use crate::kafka_support::{
    PATIENCE, ROOMY, committed, receive, receive_many, settle_as_they_come, start, subscription, wait_until,
};
use crate::real_kafka::{create_topic, real_broker};

const PARTITIONS: i32 = 4;

/// As two groups of users run it: the classic protocol with cooperative-sticky, and Kafka 4's.
fn with_protocol(mut config: KafkaConfig, protocol: &str) -> KafkaConfig {
    config.properties.clear();
    config.properties.insert("heartbeat.interval.ms".to_owned(), "300".to_owned());
    if protocol == "consumer" {
        // The brokers set the heartbeats.
        config.properties.clear();
        config.properties.insert("group.protocol".to_owned(), protocol.to_owned());
    }
    config
}

/// A message to each partition; their offsets.
async fn one_each(config: &KafkaConfig, producer: &FutureProducer) -> BTreeMap<i32, i64> {
    let mut offsets = BTreeMap::new();
    for partition in 0..PARTITIONS {
        let record = FutureRecord::<[u8], [u8]>::to(&config.posts_topic).partition(partition).payload(b"x");
        let sent = producer.send(record, PATIENCE).await.expect("acknowledged");
        offsets.insert(partition, sent.offset);
    }
    offsets
}

fn plain_producer(config: &KafkaConfig) -> FutureProducer {
    config.client_config().create().expect("a producer")
}

fn assigned(source: &Source) -> usize {
    source.status().snapshot().assigned
}

/// librdkafka fetches nothing at all while it waits for a revocation; what is in flight of the partitions that stay must go on
/// nevertheless, for it is most of the work of that time.
async fn stays_and_departs(config: KafkaConfig) {
    create_topic(&config, &config.posts_topic, PARTITIONS, &[]).await;
    let producer = plain_producer(&config);
    let mut ends = BTreeMap::new();
    for _ in 0..5 {
        ends = one_each(&config, &producer).await;
    }
    // The drain is to wait for this test, however slow the machine.
    let metrics = Arc::new(Metrics::new());
    let (first, mut envelopes) =
        Source::start(&config, subscription(&config.posts_topic), ROOMY, PATIENCE, metrics.clone())
            .await
            .expect("starts");
    let lags = || {
        let rendered = metrics.render();
        let owned = |line: &str| line.split_once("partition=\"")?.1.split_once('"')?.0.parse::<i32>().ok();
        rendered.lines().filter(|line| line.contains("consumer_lag{")).filter_map(owned).collect::<BTreeSet<_>>()
    };
    // And the warm-up.
    let held = receive_many(&mut envelopes, 21).await;
    wait_until("the lag of each partition", async || lags().len() == 4).await;
    let (second, mut others, _) = start(&config, ROOMY).await;
    wait_until("two partitions asked back", async || assigned(&first) == 2).await;
    let staying = lags();
    assert_eq!(staying.len(), 2, "a lag is told of the partitions that stay, and of no other");

    let (settle, held) =
        held.into_iter().partition::<Vec<_>, _>(|envelope| staying.contains(&envelope.position.partition));
    settle.into_iter().for_each(Envelope::settle);
    wait_until("a commit of the partitions that stay", async || {
        let committed = committed(&config, PARTITIONS).await;
        staying.iter().all(|partition| committed.get(partition) == Some(&(ends[partition] + 1)))
    })
    .await;
    assert_eq!(assigned(&second), 0, "the drain of the others was not waited for");

    let news = one_each(&config, &producer).await;
    held.into_iter().for_each(Envelope::settle);
    wait_until("the handover", async || assigned(&second) == 2).await;
    for (envelopes, stays) in [(&mut envelopes, true), (&mut others, false)] {
        for envelope in receive_many(envelopes, 2).await {
            let (partition, offset) = (envelope.position.partition, envelope.position.offset);
            assert_eq!((staying.contains(&partition), offset), (stays, news[&partition]), "partition {partition}");
            envelope.settle();
        }
    }
    let reports = futures::future::join(first.stop(PATIENCE), second.stop(PATIENCE)).await;
    assert!(reports.0.expect("stops").committed && reports.1.expect("stops").committed);
    assert!(envelopes.try_recv().is_err() && others.try_recv().is_err(), "a message came twice");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_that_waits_for_room_while_its_partition_departs_is_not_handed_out() {
    let Some(mut config) = real_broker("departed") else { return };
    create_topic(&config, &config.posts_topic, 2, &[]).await;
    let member = |config: &mut KafkaConfig, name: &str| {
        // By name: the first partition is the first member's, the second one's messages depart.
        config.properties.insert("partition.assignment.strategy".to_owned(), "range".to_owned());
        config.properties.insert("group.instance.id".to_owned(), name.to_owned());
    };
    member(&mut config, "a");
    // Past the warm-up, whichever partition has it: all that is read is of the second one.
    config.start = format!("{0}[0]@1, {0}[1]@1", config.posts_topic);
    let producer = plain_producer(&config);
    for (partition, payload) in [(1, "-"), (1, "-"), (1, "first"), (1, "second")] {
        let record = FutureRecord::<[u8], str>::to(&config.posts_topic).partition(partition).payload(payload);
        producer.send(record, PATIENCE).await.expect("acknowledged");
    }
    let one_at_a_time = InflightLimits { posts: 1, bytes: 1 << 20 };
    let (first, mut envelopes, metrics) = start(&config, one_at_a_time).await;
    let in_flight = loop {
        let envelope = receive(&mut envelopes).await;
        if envelope.payload.as_deref() == Some(&b"first"[..]) {
            break envelope;
        }
        envelope.settle();
    };
    wait_until("the second waits for room", async || metrics.paused_partitions.get() == 2).await;
    let mut other = config.clone();
    member(&mut other, "b");
    let (second, mut others, _) = start(&other, ROOMY).await;
    wait_until("the revocation", async || assigned(&first) == 0).await;
    in_flight.settle();
    let next = receive(&mut others).await;
    assert_eq!(next.payload.as_deref(), Some(&b"second"[..]));
    wait_until("the assignment", async || assigned(&first) == 1).await;
    has_polled_on(&first.status(), || false).await;
    assert!(envelopes.try_recv().is_err(), "handed out for a partition that another member owns");
    next.settle();
    let reports = futures::future::join(first.stop(PATIENCE), second.stop(PATIENCE)).await;
    assert!(reports.0.expect("stops").committed && reports.1.expect("stops").committed);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn partitions_that_stay_go_on_while_others_drain() {
    let Some(config) = real_broker("stays") else { return };
    stays_and_departs(with_protocol(config, "classic")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn partitions_that_stay_go_on_while_others_drain_in_the_newer_protocol() {
    let Some(config) = real_broker("stays-newer") else { return };
    stays_and_departs(with_protocol(config, "consumer")).await;
}

/// Reads and settles until the newest message of each of so many partitions was among them.
async fn read_up_to(envelopes: &mut Receiver<Envelope>, ends: &BTreeMap<i32, i64>, partitions: usize) -> BTreeSet<i32> {
    let mut reached = BTreeSet::new();
    while reached.len() < partitions {
        let envelope = receive(envelopes).await;
        if ends[&envelope.position.partition] == envelope.position.offset {
            reached.insert(envelope.position.partition);
        }
        envelope.settle();
    }
    reached
}

async fn static_restart(config: KafkaConfig) {
    create_topic(&config, &config.posts_topic, PARTITIONS, &[]).await;
    let member = |name: &str| {
        let mut config = config.clone();
        config.properties.insert("group.instance.id".to_owned(), name.to_owned());
        config
    };
    let producer = plain_producer(&config);
    let (first, mut envelopes, _) = start(&member("a"), ROOMY).await;
    let (second, mut others, _) = start(&member("b"), ROOMY).await;
    wait_until("two partitions for each", async || assigned(&first) == 2 && assigned(&second) == 2).await;
    let ends = one_each(&config, &producer).await;
    let own = read_up_to(&mut envelopes, &ends, 2).await;
    let its = read_up_to(&mut others, &ends, 2).await;
    assert!(second.stop(PATIENCE).await.expect("stops").committed);

    // From here on every change of the first member's partitions is a rebalance that should not be.
    let (status, is_over) = (first.status(), Arc::new(AtomicBool::new(false)));
    let over = is_over.clone();
    let watch = tokio::spawn(async move {
        while !over.load(Ordering::Relaxed) {
            let now = status.snapshot().assigned;
            assert_eq!(now, 2, "a rebalance while a static member restarts");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
    let mut ends = ends;
    // Each round takes a commit, all of them several heartbeats: enough for the group to notice a member that left.
    for _ in 0..10 {
        ends = one_each(&config, &producer).await;
        assert_eq!(read_up_to(&mut envelopes, &ends, 2).await, own, "only its own partitions");
        wait_until("the commit", async || {
            let committed = committed(&config, PARTITIONS).await;
            own.iter().all(|partition| committed.get(partition) == Some(&(ends[partition] + 1)))
        })
        .await;
    }
    let (second, mut others, _) = start(&member("b"), ROOMY).await;
    assert_eq!(read_up_to(&mut others, &ends, 2).await, its, "it has its partitions back, and all that came meanwhile");
    is_over.store(true, Ordering::Relaxed);
    watch.await.expect("no rebalance");
    assert_eq!(assigned(&first), 2);
    let reports = futures::future::join(first.stop(PATIENCE), second.stop(PATIENCE)).await;
    assert!(reports.0.expect("stops").committed && reports.1.expect("stops").committed);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_static_member_that_restarts_moves_no_partition() {
    let Some(config) = real_broker("static-restart") else { return };
    static_restart(with_protocol(config, "classic")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_static_member_that_restarts_moves_no_partition_in_the_newer_protocol() {
    let Some(config) = real_broker("static-restart-newer") else { return };
    static_restart(with_protocol(config, "consumer")).await;
}

/// Members come and go while messages come in; each is settled exactly once.
async fn come_and_go(config: KafkaConfig) {
    create_topic(&config, &config.posts_topic, PARTITIONS, &[]).await;
    let is_over = Arc::new(AtomicBool::new(false));
    let load = tokio::spawn({
        let (config, is_over) = (config.clone(), is_over.clone());
        async move {
            let producer = Producer::new(&config).expect("a producer");
            let mut sent = BTreeSet::new();
            while !is_over.load(Ordering::Relaxed) {
                let key = (sent.len() as u64).to_le_bytes();
                let sends = (0..20_u8).map(|_| producer.send(&config.posts_topic, None, Some(&key), &[]));
                for acknowledged in futures::future::join_all(sends).await {
                    assert!(sent.insert(acknowledged.expect("acknowledged")));
                }
            }
            sent
        }
    });
    let (told, mut settled) = unbounded_channel();
    let mut members: Vec<Option<Source>> = Vec::new();
    // Who leaves after each joining; the last one stays.
    for leaves in [&[][..], &[], &[0], &[1], &[2, 3]] {
        let name = members.len();
        let limits = InflightLimits { posts: 50, bytes: 1 << 20 };
        let (source, envelopes, _) = start(&config, limits).await;
        settle_as_they_come(envelopes, name, told.clone());
        members.push(Some(source));
        wait_until("each member at work", async || {
            let counts = members.iter().flatten().map(assigned).collect::<Vec<_>>();
            counts.iter().sum::<usize>() == PARTITIONS as usize && counts.iter().all(|count| *count > 0)
        })
        .await;
        for leaving in leaves {
            let source = members[*leaving].take().expect("still there");
            assert!(source.stop(PATIENCE).await.expect("stops").committed);
        }
    }
    wait_until("all partitions of the last", async || members.iter().flatten().all(|it| assigned(it) == 4)).await;
    is_over.store(true, Ordering::Relaxed);
    let sent = load.await.expect("no panic");
    wait_until("a commit of all", async || {
        // And the warm-up.
        committed(&config, PARTITIONS).await.values().sum::<i64>() == sent.len() as i64 + 1
    })
    .await;
    for source in members.into_iter().flatten() {
        source.stop(PATIENCE).await.expect("stops");
    }
    drop(told);
    let (mut seen, mut by) = (Vec::new(), BTreeSet::new());
    while let Some((member, partition, offset)) = settled.recv().await {
        seen.push((partition, offset));
        by.insert(member);
    }
    let distinct = seen.iter().copied().collect::<BTreeSet<_>>();
    assert_eq!(seen.len(), distinct.len(), "{} messages came twice", seen.len() - distinct.len());
    assert!(sent.is_subset(&distinct) && distinct.len() == sent.len() + 1, "lost: {:?}", sent.difference(&distinct));
    assert_eq!(by, (0..5).collect(), "each member worked");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_that_come_and_go_under_load_lose_and_double_nothing() {
    let Some(config) = real_broker("come-and-go") else { return };
    come_and_go(with_protocol(config, "classic")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_that_come_and_go_under_load_lose_and_double_nothing_in_the_newer_protocol() {
    let Some(config) = real_broker("come-and-go-newer") else { return };
    come_and_go(with_protocol(config, "consumer")).await;
}
