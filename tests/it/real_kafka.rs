//! What librdkafka's mock cluster cannot show, on real Apache Kafka: `make services` starts one and names it in
//! `KAFKA_BROKERS`.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use feedlens::error::{Fault, Reason};
use feedlens::kafka::{DeadLetters, Envelope, InflightLimits, KafkaConfig, Producer, SendFault};
use rdkafka::admin::{AdminClient, AdminOptions, AlterConfig, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};

use crate::kafka_source::has_polled_on;
use crate::kafka_support::{
    PATIENCE, ROOMY, committed, config, offsets, receive, receive_many, settle_as_they_come, start, wait_until,
};
use crate::skip;

const PARTITIONS: i32 = 4;

/// The configuration for a real broker and a topic name of this test's own; `None`, said loudly, where there is none.
pub fn real_broker(test: &str) -> Option<KafkaConfig> {
    let Ok(brokers) = std::env::var("KAFKA_BROKERS") else {
        skip::without("KAFKA_BROKERS is not set; `make services` starts a broker");
        return None;
    };
    let mut config = config(&brokers);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock past 1970").as_nanos();
    config.posts_topic = format!("{test}-{now}");
    config.dead_letter_topic = format!("{test}-{now}.dlq");
    Some(config)
}

pub fn admin(config: &KafkaConfig) -> AdminClient<DefaultClientContext> {
    config.client_config().create().expect("an admin client")
}

pub async fn create_topic(config: &KafkaConfig, topic: &str, partitions: i32, settings: &[(&str, &str)]) {
    let mut new = NewTopic::new(topic, partitions, TopicReplication::Fixed(1));
    for (key, value) in settings {
        new = new.set(key, value);
    }
    let created = admin(config).create_topics([&new], &AdminOptions::new()).await.expect("an answer");
    assert!(created.iter().all(Result::is_ok), "{created:?}");
    // Other connections may not know the topic yet.
    let producer = Producer::new(config).expect("a producer");
    wait_until("the topic to be writable", async || {
        let sent = producer.send(topic, Some(b"warm-up"), Some(b"warm-up"), &[]).await;
        sent.is_ok()
    })
    .await;
}

pub async fn produce(config: &KafkaConfig, keys: std::ops::Range<usize>, compression: &str) {
    let mut config = config.clone();
    config.properties.insert("compression.type".to_owned(), compression.to_owned());
    let producer = Producer::new(&config).expect("a producer");
    let payload = format!("{{\"caption\": \"{}\"}}", "雨后的彩虹 ".repeat(20));
    let sends = keys.map(|key| {
        let (producer, topic, payload) = (&producer, &config.posts_topic, &payload);
        async move { producer.send(topic, Some(key.to_string().as_bytes()), Some(payload.as_bytes()), &[]).await }
    });
    for sent in futures::future::join_all(sends).await {
        sent.expect("acknowledged");
    }
}

/// Two members share 1,000 messages of each compression; nothing is missing, nothing comes twice, also after a restart.
async fn two_members_and_a_restart(config: KafkaConfig, names: [&str; 2]) {
    create_topic(&config, &config.posts_topic, PARTITIONS, &[]).await;
    let member = |name: &str| {
        let mut config = config.clone();
        if config.properties.contains_key("group.instance.id") {
            config.properties.insert("group.instance.id".to_owned(), name.to_owned());
        }
        config
    };
    let (told, mut settled) = tokio::sync::mpsc::unbounded_channel();
    let limits = InflightLimits { posts: 50, bytes: 1 << 20 };
    produce(&config, 0..250, "zstd").await;
    let (first, envelopes, _) = start(&member(names[0]), limits).await;
    settle_as_they_come(envelopes, 1, told.clone());
    let mut seen = vec![settled.recv().await.expect("the first member settles")];
    let (second, envelopes, metrics) = start(&member(names[1]), limits).await;
    settle_as_they_come(envelopes, 2, told.clone());
    wait_until("two partitions for each", async || {
        [&first, &second].iter().all(|source| source.status().snapshot().assigned == 2)
    })
    .await;
    produce(&config, 250..500, "lz4").await;
    produce(&config, 500..750, "snappy").await;
    produce(&config, 750..1_000, "gzip").await;
    // 1,000 and the warm-up.
    while seen.len() < 1_001 {
        seen.push(tokio::time::timeout(PATIENCE, settled.recv()).await.expect("in time").expect("a message"));
    }
    wait_until("no lag", async || {
        let rendered = metrics.render();
        let lags = rendered.lines().filter(|line| line.contains("consumer_lag{")).collect::<Vec<_>>();
        lags.len() == 2 && lags.iter().all(|line| line.ends_with(" 0"))
    })
    .await;
    let reports = futures::future::join(first.stop(PATIENCE), second.stop(PATIENCE)).await;
    assert!(reports.0.expect("stops").committed && reports.1.expect("stops").committed);
    drop(told);
    while let Some(more) = settled.recv().await {
        seen.push(more);
    }
    let distinct = seen.iter().map(|(_, partition, offset)| (*partition, *offset)).collect::<BTreeSet<_>>();
    assert_eq!((seen.len(), distinct.len()), (1_001, 1_001), "each message exactly once");
    assert!([1, 2].iter().all(|member| seen.iter().any(|(by, ..)| by == member)), "both members worked");
    let mut ends = BTreeMap::<i32, i64>::new();
    for (_, partition, offset) in &seen {
        let end = ends.entry(*partition).or_default();
        *end = (*end).max(offset + 1);
    }
    assert_eq!(committed(&config, PARTITIONS).await, ends, "what is committed is what was settled");

    let (again, mut envelopes, _) = start(&member(names[0]), ROOMY).await;
    produce(&config, 1_000..1_100, "none").await;
    let fresh = receive_many(&mut envelopes, 100).await;
    let old = fresh.iter().filter(|it| it.position.offset < ends[&it.position.partition]).count();
    assert_eq!(old, 0, "messages came twice");
    fresh.into_iter().for_each(Envelope::settle);
    let report = again.stop(PATIENCE).await.expect("stops");
    assert_eq!((report.abandoned, report.committed), (0, true));
    assert_eq!(committed(&config, PARTITIONS).await.values().sum::<i64>(), 1_101);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cooperative_members_share_and_restart_without_repeats() {
    let Some(config) = real_broker("cooperative") else { return };
    two_members_and_a_restart(config, ["a", "b"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_newer_group_protocol_shares_and_restarts_without_repeats() {
    let Some(mut config) = real_broker("consumer-protocol") else { return };
    config.properties.clear();
    config.properties.insert("group.protocol".to_owned(), "consumer".to_owned());
    two_members_and_a_restart(config, ["a", "b"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn static_members_share_and_restart_without_repeats() {
    let Some(mut config) = real_broker("static") else { return };
    // Static members keep their partitions for the session: here a restart follows at once.
    config.properties.insert("group.instance.id".to_owned(), String::new());
    two_members_and_a_restart(config, ["a", "b"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_partition_changes_hands_after_what_is_in_flight_is_settled_and_committed() {
    let Some(config) = real_broker("handover") else { return };
    create_topic(&config, &config.posts_topic, 2, &[]).await;
    produce(&config, 0..20, "none").await;
    let (first, mut envelopes, _) = start(&config, ROOMY).await;
    // 20 and the warm-up.
    let held = receive_many(&mut envelopes, 21).await;
    let (second, mut others, _) = start(&config, ROOMY).await;
    wait_until("one partition asked back", async || first.status().snapshot().assigned == 1).await;
    has_polled_on(&first.status(), || false).await;
    assert_eq!(second.status().snapshot().assigned, 0, "the first member still works on it");
    let mut ends = BTreeMap::<i32, i64>::new();
    for envelope in held {
        ends.insert(envelope.position.partition, envelope.position.offset + 1);
        envelope.settle();
    }
    wait_until("the other has it", async || second.status().snapshot().assigned == 1).await;
    produce(&config, 20..60, "none").await;
    for next in [receive(&mut envelopes).await, receive(&mut others).await] {
        let (partition, offset) = (next.position.partition, next.position.offset);
        assert_eq!(offset, ends[&partition], "what was settled before the handover came again");
    }
    let reports = futures::future::join(first.stop(Duration::ZERO), second.stop(Duration::ZERO)).await;
    assert!(reports.0.is_ok() && reports.1.is_ok(), "{reports:?}");
}

/// Transactions of so many messages, committed or given up.
pub async fn write_transactions<const N: usize>(config: &KafkaConfig, topic: &str, transactions: [(usize, bool); N]) {
    let (writer, topic) = (config.clone(), topic.to_owned());
    tokio::task::spawn_blocking(move || {
        let producer =
            writer.client_config().set("transactional.id", &topic).create::<BaseProducer>().expect("a producer");
        producer.init_transactions(PATIENCE).expect("transactions");
        for (count, commits) in transactions {
            producer.begin_transaction().expect("begins");
            for _ in 0..count {
                producer.send(BaseRecord::<[u8], [u8]>::to(&topic).payload(b"x")).expect("queued");
            }
            producer.flush(PATIENCE).expect("flushed");
            let ended =
                if commits { producer.commit_transaction(PATIENCE) } else { producer.abort_transaction(PATIENCE) };
            ended.expect("ends");
        }
    })
    .await
    .expect("no panic");
}

/// Otherwise a partition of a backlog waits for as long as the model takes for a megabyte of each of the others.
#[tokio::test]
async fn a_backlog_is_read_a_little_of_each_partition_at_a_time() {
    let Some(mut config) = real_broker("turns") else { return };
    create_topic(&config, &config.posts_topic, 3, &[]).await;
    // A batch comes whole; this is the size of those that most producers send.
    config.properties.insert("batch.size".to_owned(), "16384".to_owned());
    produce(&config, 0..6_000, "none").await;
    let (source, mut envelopes, _) = start(&config, ROOMY).await;
    // Partitions start one by one, and the first may be far ahead then. After a pause all go on at once.
    let held = receive_many(&mut envelopes, ROOMY.posts).await;
    wait_until("all to be paused", async || source.status().snapshot().paused == 3).await;
    held.into_iter().for_each(Envelope::settle);
    let mut by_partition = BTreeMap::new();
    for _ in 0..2_000 {
        let envelope = receive(&mut envelopes).await;
        *by_partition.entry(envelope.position.partition).or_insert(0) += 1;
        envelope.settle();
    }
    assert!(by_partition.len() == 3 && by_partition.values().all(|&read| read > 300), "{by_partition:?}");
    drop(envelopes);
    source.stop(PATIENCE).await.expect("stops");
}

#[tokio::test]
async fn gaps_of_transactions_do_not_hold_the_watermark_back() {
    let Some(config) = real_broker("transactions") else { return };
    create_topic(&config, &config.posts_topic, 1, &[]).await;
    write_transactions(&config, &config.posts_topic, [(10, true), (5, false), (10, true)]).await;
    let (source, mut envelopes, _) = start(&config, ROOMY).await;
    let received = receive_many(&mut envelopes, 21).await;
    // Warm-up, ten, a marker, five that were aborted and their marker, ten, a marker.
    let expected = (0..11).chain(18..28).collect::<Vec<_>>();
    assert_eq!(offsets(&received), expected);
    received.into_iter().for_each(Envelope::settle);
    let report = source.stop(PATIENCE).await.expect("stops");
    assert_eq!((report.abandoned, report.committed), (0, true));
    assert_eq!(committed(&config, 1).await, BTreeMap::from([(0, 28)]));
}

#[tokio::test]
async fn a_dead_letter_beyond_the_limit_of_its_topic_waits_until_the_limit_is_raised() {
    let Some(mut config) = real_broker("large-letter") else { return };
    config.properties.insert("compression.type".to_owned(), "none".to_owned());
    create_topic(&config, &config.posts_topic, 1, &[]).await;
    create_topic(&config, &config.dead_letter_topic, 1, &[("max.message.bytes", "2000")]).await;
    let producer = Producer::new(&config).expect("a producer");
    let payload = vec![b'x'; 10_000];
    producer.send(&config.posts_topic, None, Some(&payload), &[]).await.expect("acknowledged");
    let (source, mut envelopes, metrics) = start(&config, ROOMY).await;
    receive(&mut envelopes).await.settle();
    let envelope = receive(&mut envelopes).await;
    let dead_letters = DeadLetters::new(&config, metrics.clone()).expect("dead letters");
    let fault = dead_letters.send(&envelope, Reason::BadJson, "not JSON").await.expect_err("too large");
    assert!(matches!(fault, SendFault::TooLarge { .. }), "{fault:?}");
    assert!(fault.to_string().contains("raise max.message.bytes"), "{fault}");

    let raised =
        AlterConfig::new(ResourceSpecifier::Topic(&config.dead_letter_topic)).set("max.message.bytes", "20000");
    let altered = admin(&config).alter_configs([&raised], &AdminOptions::new()).await.expect("an answer");
    assert!(altered.iter().all(Result::is_ok), "{altered:?}");
    wait_until("the dead letter to pass", async || {
        dead_letters.send(&envelope, Reason::BadJson, "not JSON").await.is_ok()
    })
    .await;
    assert_eq!(metrics.posts_dead_lettered.with_label_values(&["bad_json"]).get(), 1);
    envelope.settle();
    source.stop(PATIENCE).await.expect("stops");
}

#[tokio::test]
async fn a_topic_that_does_not_exist_is_named() {
    let Some(mut config) = real_broker("missing") else { return };
    config.properties.insert("topic.metadata.propagation.max.ms".to_owned(), "1000".to_owned());
    let producer = Producer::new(&config).expect("a producer");
    let fault = producer.send(&config.posts_topic, None, Some(b"x"), &[]).await.expect_err("no such topic");
    assert!(matches!(fault, Fault::Fatal(_)), "{fault:?}");
    let said = fault.to_string();
    assert!(said.contains(&config.posts_topic) && said.contains("create the topic"), "{said}");

    // A worker may come before its topic: it waits, and says what for.
    config.properties.insert("topic.metadata.refresh.interval.ms".to_owned(), "500".to_owned());
    let (source, mut envelopes, _) = start(&config, ROOMY).await;
    wait_until("the error to show", async || {
        source.status().snapshot().last_error.is_some_and(|error| error.contains(&config.posts_topic))
    })
    .await;
    create_topic(&config, &config.posts_topic, 1, &[]).await;
    receive(&mut envelopes).await.settle();
    let report = source.stop(Duration::from_secs(20)).await.expect("stops");
    assert!(report.committed);
}

/// Brokers measure batches against the limit of the topic, and librdkafka does not split them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_that_are_too_large_together_are_acknowledged_each() {
    let Some(config) = real_broker("together") else { return };
    let topic = &config.posts_topic;
    create_topic(&config, topic, 1, &[("max.message.bytes", "4000")]).await;
    let producer = Producer::new(&config).expect("a producer");
    let payload = vec![b'x'; 1_000];
    let sends = (0..50).map(|_| producer.send(topic, Some(b"key"), Some(&payload), &[]));
    for sent in futures::future::join_all(sends).await {
        sent.expect("acknowledged");
    }
    let refused = producer.send(topic, Some(b"key"), Some(&[b'x'; 5_000]), &[]).await;
    assert!(matches!(refused, Err(Fault::Reject { reason: Reason::TooLarge, .. })), "{refused:?}");
}
