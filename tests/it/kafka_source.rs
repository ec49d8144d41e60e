//! The promises of the source and of the dead letters, on librdkafka's mock cluster.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use feedlens::error::{Fault, Reason};
use feedlens::kafka::{
    DeadLetters, EmbeddedBroker, Envelope, InflightLimits, KafkaConfig, Producer, SendFault, Source, SourceStatus,
    check_reachable, dead_letter,
};
use feedlens::metrics::Metrics;
use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};

use crate::kafka_support::{
    PATIENCE, ROOMY, committed, config, offsets, receive, receive_many, settle_as_they_come, start, subscription,
    wait_until,
};

const POSTS: &str = "posts";

fn broker(partitions: i32) -> (EmbeddedBroker, KafkaConfig) {
    let broker = EmbeddedBroker::start(&[(POSTS, partitions), ("posts.dlq", 1)]).expect("the broker starts");
    let config = config(&broker.bootstrap());
    (broker, config)
}

/// Sends `count` messages of `bytes` bytes, with keys that count on from `first`.
async fn produce(config: &KafkaConfig, first: usize, count: usize, bytes: usize) {
    let producer = Producer::new(config).expect("a producer");
    let payload = vec![b'x'; bytes];
    let sends = (first..first + count).map(|number| {
        let (producer, payload) = (&producer, &payload);
        async move { producer.send(POSTS, Some(number.to_string().as_bytes()), Some(payload), &[]).await }
    });
    for sent in futures::future::join_all(sends).await {
        sent.expect("acknowledged");
    }
}

fn settle_all(envelopes: impl IntoIterator<Item = Envelope>) {
    envelopes.into_iter().for_each(Envelope::settle);
}

#[tokio::test]
async fn the_first_message_comes_within_a_second_and_a_half() {
    let (_broker, config) = broker(1);
    produce(&config, 0, 1, 10).await;
    let begin = Instant::now();
    let (source, mut envelopes, _) = start(&config, ROOMY).await;
    receive(&mut envelopes).await.settle();
    let took = begin.elapsed();
    assert!(took < Duration::from_millis(1_500), "took {took:?}: is the initial rebalance delay lowered?");
    source.stop(PATIENCE).await.expect("stops");
}

#[tokio::test]
async fn nothing_is_committed_past_an_unsettled_message() {
    let (_broker, config) = broker(1);
    produce(&config, 0, 10, 10).await;
    let (source, mut envelopes, metrics) = start(&config, ROOMY).await;
    let mut received = receive_many(&mut envelopes, 10).await;
    assert_eq!(metrics.posts_consumed.get(), 10);
    let late = received.remove(3);
    settle_all(received.drain(3..));
    settle_all(received);
    wait_until("a commit up to the unsettled message", async || {
        let offset = committed(&config, 1).await.get(&0).copied();
        assert!(offset.is_none_or(|offset| offset <= 3), "committed {offset:?} past the unsettled message 3");
        offset == Some(3)
    })
    .await;
    late.settle();
    wait_until("a commit of all", async || committed(&config, 1).await.get(&0) == Some(&10)).await;
    let report = source.stop(PATIENCE).await.expect("stops");
    assert_eq!((report.settled, report.abandoned, report.committed), (0, 0, true));
}

#[tokio::test]
async fn a_restart_continues_exactly_at_the_watermark() {
    let (_broker, config) = broker(1);
    produce(&config, 0, 20, 10).await;
    let (source, mut envelopes, _) = start(&config, ROOMY).await;
    let received = receive_many(&mut envelopes, 20).await;
    let (settled, kept) = received
        .into_iter()
        .partition::<Vec<_>, _>(|envelope| envelope.position.offset < 12 || envelope.position.offset == 15);
    settle_all(settled);
    let report = source.stop(Duration::ZERO).await.expect("stops");
    assert_eq!((report.abandoned, report.committed), (7, true));
    assert!(envelopes.recv().await.is_none(), "the stream ends with the stop");
    settle_all(kept);

    let (source, mut envelopes, _) = start(&config, ROOMY).await;
    let received = receive_many(&mut envelopes, 8).await;
    assert_eq!(offsets(&received), (12..20).collect::<Vec<_>>());
    settle_all(received);
    let report = source.stop(PATIENCE).await.expect("stops");
    assert_eq!((report.abandoned, report.committed), (0, true));
    assert_eq!(committed(&config, 1).await, BTreeMap::from([(0, 20)]));
}

#[tokio::test]
async fn messages_that_the_retention_took_before_they_were_read_are_told() {
    let (_broker, config) = broker(1);
    produce(&config, 0, 2, 10).await;
    let (source, mut envelopes, metrics) = start(&config, ROOMY).await;
    settle_all(receive_many(&mut envelopes, 2).await);
    source.stop(PATIENCE).await.expect("stops");
    assert_eq!(metrics.offset_resets.get(), 0, "a start without a commit is none");
    // More than the 5 MiB that the mock cluster keeps: the next offset to read is gone.
    for number in 0..8 {
        produce(&config, 2 + number, 1, 1_000_000).await;
    }
    let (source, mut envelopes, metrics) = start(&config, ROOMY).await;
    let next = receive(&mut envelopes).await;
    assert!(next.position.offset > 2, "nothing was lost: {}", next.position);
    wait_until("the loss to be told", async || metrics.offset_resets.get() == 1).await;
    drop(next);
    source.stop(Duration::ZERO).await.expect("stops");
}

#[tokio::test]
async fn a_stop_waits_for_what_is_in_flight() {
    let (_broker, config) = broker(1);
    produce(&config, 0, 3, 10).await;
    let (source, mut envelopes, _) = start(&config, ROOMY).await;
    let received = receive_many(&mut envelopes, 3).await;
    let status = source.status();
    let stopped = tokio::spawn(source.stop(PATIENCE));
    assert!(
        tokio::time::timeout(PATIENCE, envelopes.recv()).await.expect("in time").is_none(),
        "the stream ends first"
    );
    // Not before the poll thread has been through its loop again: what it decides at once would come after our settles.
    has_polled_on(&status, || stopped.is_finished()).await;
    assert!(!stopped.is_finished(), "the stop must wait for three messages");
    settle_all(received);
    let report = stopped.await.expect("no panic").expect("stops");
    assert_eq!((report.settled, report.abandoned, report.committed), (3, 0, true));
    assert_eq!(committed(&config, 1).await, BTreeMap::from([(0, 3)]));
}

/// Waits until the poll thread has begun a round of its loop that lies wholly after now, or has ended.
pub async fn has_polled_on(status: &SourceStatus, has_ended: impl Fn() -> bool) {
    for _ in 0..2 {
        let now = Instant::now();
        wait_until("another poll", async || {
            has_ended() || status.snapshot().since_poll.is_some_and(|since| since < now.elapsed())
        })
        .await;
    }
}

#[tokio::test]
async fn a_dropped_envelope_comes_again() {
    let (_broker, config) = broker(1);
    produce(&config, 0, 3, 10).await;
    let (source, mut envelopes, _) = start(&config, ROOMY).await;
    let mut received = receive_many(&mut envelopes, 3).await;
    drop(received.remove(1));
    settle_all(received);
    let begin = Instant::now();
    let report = source.stop(PATIENCE).await.expect("stops");
    assert!(begin.elapsed() < PATIENCE / 2, "nobody can settle a dropped envelope: waiting for it is in vain");
    assert_eq!((report.abandoned, report.committed), (1, true));

    let (source, mut envelopes, _) = start(&config, ROOMY).await;
    let received = receive_many(&mut envelopes, 2).await;
    assert_eq!(offsets(&received), [1, 2]);
    settle_all(received);
    source.stop(PATIENCE).await.expect("stops");
}

#[tokio::test]
async fn pressure_pauses_within_the_byte_budget_and_polling_goes_on() {
    let (_broker, config) = broker(2);
    produce(&config, 0, 40, 300).await;
    produce(&config, 40, 1, 5_000).await;
    let limits = InflightLimits { posts: 100, bytes: 1_000 };
    let (source, mut envelopes, metrics) = start(&config, limits).await;
    let mut received = receive_many(&mut envelopes, 3).await;
    wait_until("both partitions paused", async || metrics.paused_partitions.get() == 2).await;
    assert!(metrics.inflight_bytes.get() <= 1_000, "{} bytes in flight", metrics.inflight_bytes.get());
    assert_eq!(metrics.inflight_posts.get(), 3);

    // Paused is not silent: polls go on, and the lag is known.
    let lag = |partition: &str| metrics.consumer_lag.with_label_values(&[POSTS, partition]).get();
    wait_until("the lag while paused", async || lag("0") + lag("1") == 41).await;
    has_polled_on(&source.status(), || false).await;
    let status = source.status().snapshot();
    assert_eq!((status.connected, status.assigned, status.paused), (true, 2, 2));
    assert!(envelopes.try_recv().is_err(), "nothing beyond the budget");

    let mut largest = 0;
    let mut count = received.len();
    settle_all(received.drain(..));
    while count < 41 {
        let envelope = receive(&mut envelopes).await;
        largest = largest.max(envelope.payload.as_ref().map_or(0, |payload| payload.len()));
        let in_flight = metrics.inflight_bytes.get();
        assert!(in_flight <= 1_000 || metrics.inflight_posts.get() == 1, "{in_flight} bytes in flight");
        envelope.settle();
        count += 1;
    }
    assert_eq!(largest, 5_000, "a message above the whole budget passes alone");
    wait_until("all resumed", async || metrics.paused_partitions.get() == 0).await;
    wait_until("no lag any more", async || lag("0") + lag("1") == 0).await;
    assert_eq!((metrics.inflight_posts.get(), metrics.inflight_bytes.get()), (0, 0));
    source.stop(PATIENCE).await.expect("stops");
    assert!(!metrics.render().contains("consumer_lag{"), "no lag is told for partitions that are not ours");
}

#[tokio::test]
async fn a_pause_lasts_until_half_of_the_room_is_free() {
    let (_broker, config) = broker(1);
    produce(&config, 0, 100, 10).await;
    let limits = InflightLimits { posts: 10, bytes: 1 << 20 };
    let (source, mut envelopes, metrics) = start(&config, limits).await;
    let mut received = receive_many(&mut envelopes, 10).await;
    wait_until("the pause", async || metrics.paused_partitions.get() == 1).await;
    // What was on its way at the pause takes the first free places.
    while metrics.inflight_posts.get() == 10 {
        received.swap_remove(0).settle();
        has_polled_on(&source.status(), || false).await;
        while let Ok(envelope) = envelopes.try_recv() {
            received.push(envelope);
        }
    }
    while metrics.inflight_posts.get() > 6 {
        received.swap_remove(0).settle();
    }
    has_polled_on(&source.status(), || false).await;
    assert_eq!((metrics.paused_partitions.get(), metrics.inflight_posts.get()), (1, 6));
    received.swap_remove(0).settle();
    wait_until("the end of the pause", async || metrics.paused_partitions.get() == 0).await;
    receive(&mut envelopes).await.settle();
    source.stop(Duration::ZERO).await.expect("stops");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_joining_member_takes_partitions_and_nothing_is_lost() {
    let (_broker, config) = broker(4);
    produce(&config, 0, 300, 100).await;
    let (told, mut settled) = tokio::sync::mpsc::unbounded_channel();
    let limits = InflightLimits { posts: 20, bytes: 1 << 20 };
    let (first, envelopes, _) = start(&config, limits).await;
    settle_as_they_come(envelopes, 1, told.clone());
    let mut seen = vec![settled.recv().await.expect("the first member settles")];
    let (second, envelopes, _) = start(&config, limits).await;
    settle_as_they_come(envelopes, 2, told.clone());
    wait_until("two partitions for each", async || {
        [&first, &second].iter().all(|source| source.status().snapshot().assigned == 2)
    })
    .await;
    produce(&config, 300, 300, 100).await;
    // Not "exactly once": the mock cluster refuses commits while a group rebalances, and sends a follower that syncs
    // after its leader into one more rebalance. Real brokers do neither; `real_kafka` counts exactly once there.
    wait_until("a commit of all", async || committed(&config, 4).await.values().sum::<i64>() == 600).await;
    let reports = futures::future::join(first.stop(PATIENCE), second.stop(PATIENCE)).await;
    assert!(reports.0.expect("stops").committed && reports.1.expect("stops").committed);
    drop(told);
    while let Some(more) = settled.recv().await {
        seen.push(more);
    }
    let distinct = seen.iter().map(|(_, partition, offset)| (*partition, *offset)).collect::<BTreeSet<_>>();
    assert_eq!(distinct.len(), 600, "committed, and settled by nobody");
    assert!(seen.iter().any(|(member, ..)| *member == 2), "the second member worked too");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_late_settle_is_not_committed_for_a_partition_that_has_gone() {
    let (_broker, config) = broker(2);
    let producer = Producer::new(&config).expect("a producer");
    let mut keys = 0_u32;
    let mut on_partition = BTreeMap::<i32, i64>::new();
    while on_partition.len() < 2 {
        let (partition, _) =
            producer.send(POSTS, Some(&keys.to_le_bytes()), Some(b"x"), &[]).await.expect("acknowledged");
        *on_partition.entry(partition).or_default() += 1;
        keys += 1;
    }
    let total = on_partition.values().sum::<i64>() as usize;
    let metrics = Arc::new(Metrics::new());
    let short = Duration::from_millis(300);
    let (first, mut envelopes, ..) =
        Source::start(&config, subscription(POSTS), ROOMY, short, metrics.clone()).await.expect("starts");
    let held = receive_many(&mut envelopes, total).await;
    let (second, mut others, _) = start(&config, ROOMY).await;
    let again = receive(&mut others).await;
    let gone = again.position.partition;
    settle_all(held);
    wait_until("the commit of the partition that stayed", async || {
        // After one more rebalance (see above) it comes again.
        while let Ok(envelope) = envelopes.try_recv() {
            envelope.settle();
        }
        committed(&config, 2).await.len() == 1
    })
    .await;
    let known = committed(&config, 2).await;
    assert!(!known.contains_key(&gone), "the first member committed {known:?}, but partition {gone} was taken from it");
    again.settle();
    wait_until("a commit of all", async || {
        while let Ok(envelope) = others.try_recv() {
            envelope.settle();
        }
        committed(&config, 2).await == on_partition
    })
    .await;
    let reports = futures::future::join(first.stop(PATIENCE), second.stop(PATIENCE)).await;
    assert!(reports.0.expect("stops").committed && reports.1.expect("stops").committed);
}

#[tokio::test]
async fn a_failed_commit_is_counted_and_tried_again() {
    let (broker, config) = broker(1);
    produce(&config, 0, 1, 10).await;
    let (source, mut envelopes, metrics) = start(&config, ROOMY).await;
    let envelope = receive(&mut envelopes).await;
    broker.cluster().request_errors(
        RDKafkaApiKey::OffsetCommit,
        &[RDKafkaRespErr::RD_KAFKA_RESP_ERR_UNKNOWN, RDKafkaRespErr::RD_KAFKA_RESP_ERR_UNKNOWN],
    );
    envelope.settle();
    wait_until("failures counted", async || metrics.commits_failed.get() == 2).await;
    wait_until("the commit", async || committed(&config, 1).await.get(&0) == Some(&1)).await;
    source.stop(PATIENCE).await.expect("stops");
}

#[tokio::test]
async fn an_outage_of_the_brokers_shows_and_ends() {
    let (broker, config) = broker(1);
    let (source, mut envelopes, _) = start(&config, ROOMY).await;
    wait_until("an assignment", async || source.status().snapshot().assigned == 1).await;
    broker.cluster().broker_down(-1).expect("down");
    wait_until("the outage", async || !source.status().snapshot().connected).await;
    assert!(source.status().snapshot().last_error.is_some());
    broker.cluster().broker_up(-1).expect("up");
    produce(&config, 0, 1, 10).await;
    receive(&mut envelopes).await.settle();
    wait_until("the recovery", async || source.status().snapshot().connected).await;
    source.stop(PATIENCE).await.expect("stops");
}

#[tokio::test]
async fn tombstones_and_empty_payloads_are_told_apart() {
    let (_broker, config) = broker(1);
    let producer = Producer::new(&config).expect("a producer");
    let headers = [("version".to_owned(), Some(b"7".to_vec()))];
    let first = producer.send(POSTS, Some(b"a"), None, &headers).await.expect("acknowledged");
    let second = producer.send(POSTS, None, Some(b""), &[]).await.expect("acknowledged");
    assert_eq!((first, second), ((0, 0), (0, 1)), "only an acknowledgement tells the offset");
    let (source, mut envelopes, _) = start(&config, ROOMY).await;
    let received = receive_many(&mut envelopes, 2).await;
    assert_eq!((received[0].key.as_deref(), received[0].payload.as_deref()), (Some(&b"a"[..]), None));
    assert_eq!(received[0].header("version"), Some(&b"7"[..]));
    assert_eq!((received[1].key.as_deref(), received[1].payload.as_deref()), (None, Some(&b""[..])));
    let age = chrono::Utc::now() - received[0].timestamp.expect("a timestamp");
    assert!(age.num_seconds().abs() < 3_600, "{age}");
    settle_all(received);
    source.stop(PATIENCE).await.expect("stops");
}

#[tokio::test]
async fn a_dead_letter_is_the_post_byte_for_byte_with_our_headers() {
    let (_broker, config) = broker(1);
    let producer = Producer::new(&config).expect("a producer");
    let payload = (0..=255).collect::<Vec<u8>>();
    let own = [
        ("trace".to_owned(), Some(vec![0, 159, 146, 150])),
        ("trace".to_owned(), None),
        ("空".to_owned(), Some(Vec::new())),
    ];
    producer.send(POSTS, Some(b"\xff\x00key"), Some(&payload), &own).await.expect("acknowledged");
    producer.send(POSTS, None, None, &[]).await.expect("acknowledged");
    let (source, mut envelopes, metrics) = start(&config, ROOMY).await;
    let dead_letters = DeadLetters::new(&config, metrics.clone()).expect("dead letters");
    for envelope in receive_many(&mut envelopes, 2).await {
        dead_letters.send(&envelope, Reason::BadJson, "not a JSON object").await.expect("acknowledged");
        envelope.settle();
    }
    source.stop(PATIENCE).await.expect("stops");
    assert_eq!(metrics.posts_dead_lettered.with_label_values(&["bad_json"]).get(), 2);

    let mut reader = config.clone();
    reader.posts_topic = "posts.dlq".to_owned();
    let (source, mut letters, _) = start(&reader, ROOMY).await;
    let letters = receive_many(&mut letters, 2).await;
    let letter = &letters[0];
    assert_eq!(letter.key.as_deref(), Some(&b"\xff\x00key"[..]));
    assert_eq!(letter.payload.as_deref(), Some(&payload[..]));
    assert_eq!(letter.headers[..3], own);
    let told = |name| std::str::from_utf8(letter.header(name).expect(name)).expect("text");
    assert_eq!(told(dead_letter::HEADER_REASON), "bad_json");
    assert_eq!(told(dead_letter::HEADER_DETAIL), "not a JSON object");
    assert_eq!(told(dead_letter::HEADER_SOURCE_TOPIC), POSTS);
    assert_eq!(told(dead_letter::HEADER_SOURCE_PARTITION), "0");
    assert_eq!(told(dead_letter::HEADER_SOURCE_OFFSET), "0");
    chrono::DateTime::parse_from_rfc3339(told(dead_letter::HEADER_TIME)).expect("RFC 3339");
    assert_eq!((letters[1].key.as_deref(), letters[1].payload.as_deref()), (None, None));
    assert_eq!(letters[1].header(dead_letter::HEADER_SOURCE_OFFSET), Some(&b"1"[..]));
    settle_all(letters);
    source.stop(PATIENCE).await.expect("stops");
}

#[tokio::test]
async fn a_dead_letter_that_is_too_large_waits_and_says_how_to_proceed() {
    let (broker, config) = broker(1);
    produce(&config, 0, 1, 10).await;
    let (source, mut envelopes, metrics) = start(&config, ROOMY).await;
    let envelope = receive(&mut envelopes).await;
    let dead_letters = DeadLetters::new(&config, metrics.clone()).expect("dead letters");
    // In a batch, and alone.
    let too_large = RDKafkaRespErr::RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE;
    broker.cluster().request_errors(RDKafkaApiKey::Produce, &[too_large; 2]);
    let fault = dead_letters.send(&envelope, Reason::TooLarge, "large").await.expect_err("refused");
    assert!(matches!(fault, SendFault::TooLarge { .. }), "{fault:?}");
    let said = fault.to_string();
    assert!(["posts[0]@0", "posts.dlq", "max.message.bytes"].iter().all(|part| said.contains(part)), "{said}");
    assert_eq!(metrics.posts_dead_lettered.with_label_values(&["too_large"]).get(), 0);
    dead_letters.send(&envelope, Reason::TooLarge, "large").await.expect("the limit was raised");
    assert_eq!(metrics.posts_dead_lettered.with_label_values(&["too_large"]).get(), 1);
    envelope.settle();
    source.stop(PATIENCE).await.expect("stops");
}

#[tokio::test]
async fn brokers_that_do_not_answer_are_named_in_time() {
    let mut config = config("127.0.0.1:1");
    config.start_timeout = Duration::from_secs(2);
    let begin = Instant::now();
    let started = Source::start(&config, subscription(POSTS), ROOMY, PATIENCE, Arc::default()).await;
    let checked = check_reachable(&config).await;
    assert!(begin.elapsed() < Duration::from_secs(8), "took {:?}", begin.elapsed());
    for fault in [started.map(drop).expect_err("no broker"), checked.expect_err("no broker")] {
        let said = fault.to_string();
        assert!(matches!(fault, Fault::Fatal(_)), "{said}");
        for part in ["127.0.0.1:1", "kafka.brokers", "refused"] {
            assert!(said.contains(part), "{part:?} is not in {said:?}");
        }
    }
}
