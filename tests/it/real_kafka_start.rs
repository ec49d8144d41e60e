//! Where a group starts, and what it sees of a topic that is compacted, compressed or written in transactions, on real
//! Apache Kafka.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use chrono::{DateTime, SecondsFormat, Utc};
use feedlens::kafka::{Envelope, KafkaConfig, Producer};
use rdkafka::producer::{FutureProducer, FutureRecord, Producer as _};
use serde_json::json;

use crate::ingest_support::Bench;
use crate::kafka_support::{PATIENCE, ROOMY, committed, receive, receive_many, start, wait_until};
use crate::real_kafka::{create_topic, real_broker};

/// A time in the past, in milliseconds since 1970.
const NOON: i64 = 1_700_000_000_000;

/// A topic of two partitions: one has its warm-up, then each has one message a second from the returned time on, which is
/// later than the warm-up.
async fn timed_topic(test: &str) -> Option<(KafkaConfig, FutureProducer, i64)> {
    let config = real_broker(test)?;
    create_topic(&config, &config.posts_topic, 2, &[("retention.ms", "-1")]).await;
    let producer = config.client_config().create::<FutureProducer>().expect("a producer");
    let begin = Utc::now().timestamp_millis() + 60_000;
    for second in 0..10 {
        for partition in 0..2 {
            send_at(&producer, &config, partition, begin + second * 1_000).await;
        }
    }
    Some((config, producer, begin))
}

async fn send_at(producer: &FutureProducer, config: &KafkaConfig, partition: i32, timestamp: i64) {
    let payload = timestamp.to_string();
    let record =
        FutureRecord::to(&config.posts_topic).partition(partition).timestamp(timestamp).key("k").payload(&payload);
    producer.send(record, PATIENCE).await.expect("acknowledged");
}

fn rfc3339(milliseconds: i64) -> String {
    DateTime::from_timestamp_millis(milliseconds).expect("a time").to_rfc3339_opts(SecondsFormat::Millis, true)
}

fn times(envelopes: &[Envelope]) -> BTreeSet<(i32, i64)> {
    let time = |envelope: &Envelope| envelope.timestamp.map_or(0, |time: DateTime<Utc>| time.timestamp_millis());
    envelopes.iter().map(|envelope| (envelope.position.partition, time(envelope))).collect()
}

async fn seconds_from(config: &KafkaConfig, begin: i64, first: i64, count: usize) {
    let (source, mut envelopes, metrics) = start(config, ROOMY).await;
    let received = receive_many(&mut envelopes, count).await;
    let expected = (first..10).flat_map(|second| [(0, begin + second * 1_000), (1, begin + second * 1_000)]);
    assert_eq!(times(&received), expected.collect());
    assert_eq!(metrics.offset_resets.get(), 0);
    received.into_iter().for_each(Envelope::settle);
    assert!(source.stop(PATIENCE).await.expect("stops").committed);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_starts_at_a_time_and_then_its_commits_win() {
    let Some((mut config, producer, begin)) = timed_topic("start-time").await else { return };
    // Between two messages: the later one and what follows, whether or not the partition has the warm-up.
    config.start = rfc3339(begin + 6_500);
    seconds_from(&config, begin, 7, 6).await;
    // A restart, whatever it is told: what is committed is not read again, and nothing is left out.
    for start_at in [rfc3339(begin), "earliest".to_owned(), "latest".to_owned()] {
        send_at(&producer, &config, 0, begin + 20_000).await;
        config.start = start_at;
        let (source, mut envelopes, _) = start(&config, ROOMY).await;
        let next = receive(&mut envelopes).await;
        assert_eq!(times(std::slice::from_ref(&next)), BTreeSet::from([(0, begin + 20_000)]), "{}", config.start);
        next.settle();
        assert!(source.stop(PATIENCE).await.expect("stops").committed);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_starts_at_offsets_and_other_partitions_at_the_earliest() {
    let Some((mut config, ..)) = timed_topic("start-offsets").await else { return };
    let mut all = {
        let mut config = config.clone();
        config.start = "earliest".to_owned();
        let (source, mut envelopes, _) = start(&config, ROOMY).await;
        let all = receive_many(&mut envelopes, 21).await;
        let positions = all.iter().map(|it| (it.position.partition, it.position.offset)).collect::<BTreeSet<_>>();
        source.stop(Duration::ZERO).await.expect("stops");
        positions
    };
    all.retain(|(partition, offset)| *partition == 0 || *offset >= 8);
    config.start = format!("{}[1]@8", config.posts_topic);
    let (source, mut envelopes, _) = start(&config, ROOMY).await;
    let received = receive_many(&mut envelopes, all.len()).await;
    let positions = received.iter().map(|it| (it.position.partition, it.position.offset)).collect::<BTreeSet<_>>();
    assert_eq!(positions, all);
    source.stop(Duration::ZERO).await.expect("stops");
}

/// "latest" is a place, and not wherever the end happens to be when somebody comes back.
#[tokio::test(flavor = "multi_thread")]
async fn a_start_at_the_end_holds_from_the_first_assignment_on() {
    let Some((mut config, producer, begin)) = timed_topic("start-latest").await else { return };
    config.start = "latest".to_owned();
    let (source, envelopes, _) = start(&config, ROOMY).await;
    wait_until("the start to be committed", async || committed(&config, 2).await.len() == 2).await;
    let ends = committed(&config, 2).await;
    assert_eq!(ends.values().sum::<i64>(), 21, "20 and the warm-up");
    source.stop(Duration::ZERO).await.expect("stops");
    drop(envelopes);
    // Nobody has read a message yet, and nobody is there when these come.
    send_at(&producer, &config, 0, begin + 20_000).await;
    send_at(&producer, &config, 1, begin + 21_000).await;
    let (source, mut envelopes, _) = start(&config, ROOMY).await;
    let received = receive_many(&mut envelopes, 2).await;
    assert_eq!(times(&received), BTreeSet::from([(0, begin + 20_000), (1, begin + 21_000)]));
    source.stop(Duration::ZERO).await.expect("stops");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_time_after_the_last_message_starts_at_the_end() {
    let Some((mut config, producer, begin)) = timed_topic("start-future").await else { return };
    config.start = rfc3339(begin + 1_000_000_000);
    let (source, mut envelopes, _) = start(&config, ROOMY).await;
    wait_until("the start to be committed", async || committed(&config, 2).await.values().sum::<i64>() == 21).await;
    send_at(&producer, &config, 1, begin).await;
    assert_eq!(times(&[receive(&mut envelopes).await]), BTreeSet::from([(1, begin)]));
    source.stop(Duration::ZERO).await.expect("stops");
}

#[tokio::test(flavor = "multi_thread")]
async fn topics_of_every_compression_are_read() {
    let Some(config) = real_broker("compressed") else { return };
    for compression in ["gzip", "snappy", "lz4", "zstd"] {
        let mut config = config.clone();
        config.posts_topic = format!("{}-{compression}", config.posts_topic);
        // With this setting the broker itself stores every batch so, whatever the producer sent.
        create_topic(&config, &config.posts_topic, 1, &[("compression.type", compression)]).await;
        let producer = Producer::new(&config).expect("a producer");
        let payload = "雨后的彩虹 ".repeat(500);
        for key in 0..20_u8 {
            let sent = producer.send(&config.posts_topic, Some(&[key]), Some(payload.as_bytes()), &[]).await;
            sent.expect("acknowledged");
        }
        let (source, mut envelopes, _) = start(&config, ROOMY).await;
        receive(&mut envelopes).await.settle();
        for key in 0..20_u8 {
            let envelope = receive(&mut envelopes).await;
            assert_eq!(envelope.key.as_deref(), Some(&[key][..]), "{compression}");
            assert!(envelope.payload.as_deref() == Some(payload.as_bytes()), "{compression}: other bytes");
            envelope.settle();
        }
        assert!(source.stop(PATIENCE).await.expect("stops").committed, "{compression}");
    }
}

/// The whole pipe, with the embedded store, on the real broker's topics.
async fn bench_on(config: &KafkaConfig, further: &[&str]) -> Bench {
    let settings = [
        format!("kafka.brokers={}", config.brokers),
        format!("kafka.posts_topic={}", config.posts_topic),
        format!("kafka.dead_letter_topic={}", config.dead_letter_topic),
        format!("kafka.group={}-group", config.posts_topic),
    ];
    Bench::new(&settings.iter().map(String::as_str).chain(further.iter().copied()).collect::<Vec<_>>()).await
}

async fn post(bench: &Bench, topic: &str, id: &str, caption: &str, version: Option<u64>) {
    let post = json!({"post_id": id, "caption": caption, "version": version}).to_string();
    bench.producer.send(topic, Some(id.as_bytes()), Some(post.as_bytes()), &[]).await.expect("acknowledged");
}

async fn captions(bench: &Bench, ids: &[&str]) -> BTreeMap<String, Option<String>> {
    let mut captions = BTreeMap::new();
    for id in ids {
        let point = bench.stored(id).await.filter(|point| !point.payload.contains_key("deleted"));
        let caption = point.and_then(|point| Some(point.payload.get("caption")?.as_str()?.to_owned()));
        captions.insert((*id).to_owned(), caption);
    }
    captions
}

fn expected(captions: &[(&str, Option<&str>)]) -> BTreeMap<String, Option<String>> {
    captions.iter().map(|(id, caption)| ((*id).to_owned(), caption.map(str::to_owned))).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_compacted_topic_with_tombstones_gives_each_post_in_its_last_form() {
    let Some(config) = real_broker("compacted") else { return };
    let settings = [
        ("cleanup.policy", "compact"),
        ("min.cleanable.dirty.ratio", "0.001"),
        ("segment.ms", "500"),
        ("delete.retention.ms", "600000"),
        ("max.compaction.lag.ms", "500"),
    ];
    create_topic(&config, &config.posts_topic, 1, &settings).await;
    create_topic(&config, &config.dead_letter_topic, 1, &[]).await;
    let bench = bench_on(&config, &[]).await;
    let topic = config.posts_topic.as_str();
    for edit in 0..30 {
        post(&bench, topic, "a", &format!("a {edit}"), None).await;
        post(&bench, topic, "b", &format!("b {edit}"), None).await;
    }
    bench.producer.send(topic, Some(b"b"), None, &[]).await.expect("acknowledged");
    // The cleaner never touches the newest segment: a message now and then begins another one.
    let mut left = usize::MAX;
    let mut fillers = 0;
    wait_until("the compaction", async || {
        post(&bench, topic, "filler", &format!("filler {fillers}"), None).await;
        fillers += 1;
        let mut reader = config.clone();
        reader.start = "earliest".to_owned();
        left = count_messages(&reader).await;
        left < 20 + fillers
    })
    .await;
    assert!(left < 61 + fillers, "not compacted: {left} messages");
    post(&bench, topic, "c", "behind the gap", None).await;
    let worker = bench.work();
    wait_until("the last post", async || bench.stored("c").await.is_some()).await;
    worker.stop().await;
    let found = captions(&bench, &["a", "b", "c"]).await;
    assert_eq!(found, expected(&[("a", Some("a 29")), ("b", None), ("c", Some("behind the gap"))]));
    let end = 61 + fillers as i64 + 2;
    assert_eq!(committed(&config, 1).await, BTreeMap::from([(0, end)]), "gaps hold no commit back");
}

/// What is left of a topic of one partition, read to its present end by a group of its own.
async fn count_messages(config: &KafkaConfig) -> usize {
    let config = config.clone();
    let read = move || {
        use rdkafka::consumer::{BaseConsumer, Consumer as _};
        let consumer = config
            .client_config()
            .set("group.id", format!("{}-counter", config.posts_topic))
            .set("enable.partition.eof", "true")
            .create::<BaseConsumer>()
            .expect("a consumer");
        let mut list = rdkafka::TopicPartitionList::new();
        let beginning = rdkafka::Offset::Beginning;
        list.add_partition_offset(&config.posts_topic, 0, beginning).expect("a partition");
        consumer.assign(&list).expect("assigned");
        let mut count = 0;
        loop {
            match consumer.poll(PATIENCE).expect("in time") {
                Ok(_) => count += 1,
                Err(rdkafka::error::KafkaError::PartitionEOF(_)) => return count,
                Err(error) => panic!("{error}"),
            }
        }
    };
    tokio::task::spawn_blocking(read).await.expect("no panic")
}

#[tokio::test(flavor = "multi_thread")]
async fn posts_of_an_aborted_transaction_are_not_indexed() {
    let Some(config) = real_broker("aborted") else { return };
    create_topic(&config, &config.posts_topic, 1, &[]).await;
    create_topic(&config, &config.dead_letter_topic, 1, &[]).await;
    let bench = bench_on(&config, &[]).await;
    let (writer, topic) = (config.clone(), config.posts_topic.clone());
    tokio::task::spawn_blocking(move || {
        let producer =
            writer.client_config().set("transactional.id", &topic).create::<FutureProducer>().expect("a producer");
        producer.init_transactions(PATIENCE).expect("transactions");
        for (id, commits) in [("kept", true), ("aborted", false)] {
            producer.begin_transaction().expect("begins");
            let post = json!({"post_id": id, "caption": "in a transaction"}).to_string();
            let _sent = producer.send_result(FutureRecord::to(&topic).key(id).payload(&post)).expect("queued");
            producer.flush(PATIENCE).expect("flushed");
            let ended =
                if commits { producer.commit_transaction(PATIENCE) } else { producer.abort_transaction(PATIENCE) };
            ended.expect("ends");
        }
    })
    .await
    .expect("no panic");
    post(&bench, &config.posts_topic, "after", "outside of transactions", None).await;
    let worker = bench.work();
    wait_until("the last post", async || bench.stored("after").await.is_some()).await;
    worker.stop().await;
    let found = captions(&bench, &["kept", "aborted", "after"]).await;
    let (kept, after) = (Some("in a transaction"), Some("outside of transactions"));
    assert_eq!(found, expected(&[("kept", kept), ("aborted", None), ("after", after)]));
}

#[tokio::test(flavor = "multi_thread")]
async fn several_topics_are_read_and_their_writes_of_a_post_are_ordered() {
    let Some(config) = real_broker("several") else { return };
    let (first, second) = (config.posts_topic.clone(), format!("{}-more", config.posts_topic));
    for topic in [&first, &second, &config.dead_letter_topic] {
        create_topic(&config, topic, 2, &[]).await;
    }
    let bench = bench_on(&config, &[&format!("kafka.further_posts_topics=[\"{second}\"]")]).await;
    // By their versions, whichever topic and whenever; without one, by the Kafka timestamp.
    post(&bench, &second, "versioned", "newer", Some(2)).await;
    post(&bench, &first, "versioned", "older, and later", Some(1)).await;
    let raw = bench.config.kafka.client_config().create::<FutureProducer>().expect("a producer");
    for (topic, timestamp, caption) in [(&second, NOON + 1_000, "newer"), (&first, NOON, "older, and later")] {
        let post = json!({"post_id": "timed", "caption": caption}).to_string();
        let record = FutureRecord::to(topic).key("timed").timestamp(timestamp).payload(&post);
        raw.send(record, PATIENCE).await.expect("acknowledged");
    }
    bench.producer.send(&second, Some(b"gone"), None, &[]).await.expect("acknowledged");
    post(&bench, &first, "here", "only in the first", None).await;
    let worker = bench.work();
    // And the warm-up of each topic, which is a dead letter.
    worker.wait_for(6 + 2).await;
    assert_eq!(worker.metrics.posts_consumed.get(), 8, "both topics count");
    let lags = worker.metrics.render();
    assert!([&first, &second].iter().all(|topic| lags.contains(&format!("topic=\"{topic}\""))), "{lags}");
    worker.stop().await;
    let found = captions(&bench, &["versioned", "timed", "here"]).await;
    let newer = Some("newer");
    assert_eq!(found, expected(&[("versioned", newer), ("timed", newer), ("here", Some("only in the first"))]));
}
