//! `feedlens dlq`, through the real binary: what it tells of the dead letters, and what a replay of them changes.

use std::process::{Output, Stdio};

use feedlens::error::Reason;
use feedlens::kafka::{DeadLetters, EmbeddedBroker, Envelope, KafkaConfig, Producer};
use feedlens::store::{Filter, HitParts, VectorName, VectorQuery};
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};
use serde_json::{Value, json};

use crate::binary::{feedlens, refuses, root};
use crate::ingest_support;
use crate::kafka_support::{PATIENCE, ROOMY, config, receive, receive_many, start, wait_until};
use crate::real_kafka::{create_topic, real_broker, write_transactions};
use crate::store_server;
use crate::store_support::on_each_store;

/// Runs `feedlens dlq`.
async fn dlq(kafka: &KafkaConfig, arguments: &[&str]) -> Output {
    let mut command = feedlens(&["dlq"]);
    command.args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped());
    for (key, value) in [
        ("kafka.brokers", &kafka.brokers),
        ("kafka.posts_topic", &kafka.posts_topic),
        ("kafka.dead_letter_topic", &kafka.dead_letter_topic),
    ] {
        command.args(["--set", &format!("{key}={value}")]);
    }
    tokio::task::spawn_blocking(move || command.output().expect("starts")).await.expect("no panic")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("UTF-8")
}

/// The answer of a command that ends well.
pub async fn told(kafka: &KafkaConfig, arguments: &[&str]) -> Value {
    let output = dlq(kafka, &[arguments, &["--json"]].concat()).await;
    assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("one JSON value and nothing else on stdout")
}

/// Messages in a topic, counted by offsets.
async fn length(kafka: &KafkaConfig, topic: &str) -> i64 {
    let (config, topic) = (kafka.client_config(), topic.to_owned());
    let ask = move || {
        let consumer = config.create::<BaseConsumer>().expect("a consumer");
        let metadata = consumer.fetch_metadata(Some(&topic), PATIENCE).expect("metadata");
        let partitions = metadata.topics()[0].partitions().iter().map(|partition| partition.id());
        let ends = partitions.map(|id| consumer.fetch_watermarks(&topic, id, PATIENCE).expect("ends").1);
        ends.sum()
    };
    tokio::task::spawn_blocking(ask).await.expect("no panic")
}

on_each_store!(
    a_replay_after_the_cause_is_mended_makes_the_post_searchable,
    a_replayed_older_version_does_not_replace_a_newer_edit,
    a_replay_does_not_bring_a_deleted_post_back,
);

/// The settings of a store.
pub struct Bench(pub Vec<String>);

impl Bench {
    pub fn edge() -> Self {
        Self(Vec::new())
    }

    /// `None` where there is no server.
    pub fn server() -> Option<Self> {
        let (url, _) = tokio::task::block_in_place(store_server::shared)?;
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("a clock").as_nanos();
        let settings =
            ["store.kind=qdrant".to_owned(), format!("store.qdrant.url={url}"), format!("store.alias=dlq-{now}")];
        Some(Self(settings.into()))
    }
}

/// A feed whose posts name a picture that is not there yet.
pub struct Feed {
    pub bench: ingest_support::Bench,
    pub folder: tempfile::TempDir,
}

impl Feed {
    pub async fn on(store: Bench) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        // An empty folder would be taken for one that is not mounted.
        std::fs::write(folder.path().join("other"), "").expect("writes");
        let images = format!("images.root={}", folder.path().display());
        let settings = store.0.iter().map(String::as_str).chain([images.as_str()]).collect::<Vec<_>>();
        Self { bench: ingest_support::Bench::new(&settings).await, folder }
    }

    pub fn kafka(&self) -> &KafkaConfig {
        &self.bench.config.kafka
    }

    pub async fn post_with_picture(&self, id: &str, caption: &str) {
        let post = json!({"post_id": id, "caption": caption, "image": {"path": "late.png"}});
        self.bench.send(id, Some(post.to_string().as_bytes())).await;
    }

    /// The picture is there from here on.
    pub fn mend(&self) {
        std::fs::copy(root().join("demo/images/1f34e.png"), self.folder.path().join("late.png")).expect("copies");
    }

    pub async fn payload(&self, id: &str) -> serde_json::Map<String, Value> {
        self.bench.stored(id).await.expect("it is stored").payload
    }
}

async fn a_replay_after_the_cause_is_mended_makes_the_post_searchable(store: Bench) {
    let feed = Feed::on(store).await;
    let (bench, kafka) = (&feed.bench, feed.kafka());
    let worker = bench.work();
    feed.post_with_picture("p1", "雨后的彩虹").await;
    bench.send("p2", Some(b"{broken")).await;
    worker.wait_for(2).await;
    let list = told(kafka, &["list"]).await;
    assert_eq!((&list["letters"], &list["reasons"]), (&json!(2), &json!({"bad_json": 1, "image_unavailable": 1})));

    feed.mend();
    let chosen = ["replay", "--reason", "image_unavailable"];
    let dry = told(kafka, &[&chosen[..], &["--dry-run"]].concat()).await;
    assert_eq!(length(kafka, "posts").await, 2, "a dry run sends nothing");
    let sent = told(kafka, &chosen).await;
    worker.wait_for(3).await;
    assert_eq!((&dry["sent"], &sent["sent"]), (&json!(0), &json!(1)));
    for name in ["read", "chosen", "too_large", "left_out", "complete"] {
        assert_eq!(dry[name], sent[name], "{name}: {dry} {sent}");
    }
    assert_eq!((&sent["read"], &sent["left_out"]), (&json!(2), &json!({"other_reason": 1})));

    let stored = bench.stored("p1").await.expect("indexed");
    let query = VectorQuery {
        vector: stored.image.clone().expect("a vector of the picture"),
        using: VectorName::Image,
        filter: Filter::default(),
        limit: 5,
        with: HitParts::default(),
    };
    let hits = bench.store.search(query).await.expect("searches");
    assert_eq!((hits.len(), &hits[0].payload["post_id"]), (1, &json!("p1")));
    assert_eq!(stored.payload["source"]["offset"], 0, "ordered where it lay first: {:?}", stored.payload);

    // Again: nothing is doubled, nothing changes.
    told(kafka, &chosen).await;
    worker.wait_for(4).await;
    let again = bench.stored("p1").await.expect("still there");
    assert_eq!((again.payload, bench.store.count().await.expect("counts")), (stored.payload, 1));
    worker.stop().await;
}

async fn a_replayed_older_version_does_not_replace_a_newer_edit(store: Bench) {
    let feed = Feed::on(store).await;
    let worker = feed.bench.work();
    feed.post_with_picture("p1", "older").await;
    worker.wait_for(1).await;
    feed.bench.post("p1", "newer").await;
    worker.wait_for(2).await;
    feed.mend();
    assert_eq!(told(feed.kafka(), &["replay"]).await["sent"], 1);
    worker.wait_for(3).await;
    assert_eq!(feed.payload("p1").await["caption"], "newer");
    assert_eq!(worker.metrics.posts_ignored.get(), 1);
    // An edit that comes behind the replay is the newest all the same.
    feed.bench.post("p1", "newest").await;
    worker.wait_for(4).await;
    assert_eq!(feed.payload("p1").await["caption"], "newest");
    worker.stop().await;
}

async fn a_replay_does_not_bring_a_deleted_post_back(store: Bench) {
    let feed = Feed::on(store).await;
    let worker = feed.bench.work();
    feed.post_with_picture("p1", "to be deleted").await;
    worker.wait_for(1).await;
    feed.bench.send("p1", None).await;
    worker.wait_for(2).await;
    feed.mend();
    assert_eq!(told(feed.kafka(), &["replay"]).await["sent"], 1);
    worker.wait_for(3).await;
    assert_eq!(feed.payload("p1").await["deleted"], true);
    assert_eq!(feed.bench.store.count().await.expect("counts"), 0);
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_rejected_again_and_again_keeps_its_place_and_does_not_multiply() {
    let feed = Feed::on(Bench::edge()).await;
    let worker = feed.bench.work();
    feed.post_with_picture("p1", "older").await;
    worker.wait_for(1).await;
    for round in 1..=3 {
        let replayed = told(feed.kafka(), &["replay"]).await;
        assert_eq!(replayed["sent"], 1, "one message, however many letters: {replayed}");
        worker.wait_for(1 + round).await;
    }
    let list = told(feed.kafka(), &["list", "--samples", "9"]).await;
    assert_eq!(list["letters"], 4);
    let samples = list["samples"].as_array().expect("samples");
    let sources = samples.iter().map(|sample| sample["source"].as_str().expect("a source")).collect::<Vec<_>>();
    let first = sources[0];
    assert!(first.ends_with("]@0") && sources == [first; 4], "{sources:?}");

    feed.bench.post("p1", "newer").await;
    worker.wait_for(5).await;
    feed.mend();
    told(feed.kafka(), &["replay"]).await;
    worker.wait_for(6).await;
    assert_eq!(feed.payload("p1").await["caption"], "newer");
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_origin_that_is_malformed_or_forged_is_rejected_and_can_be_replayed() {
    let feed = Feed::on(Bench::edge()).await;
    let (bench, worker) = (&feed.bench, feed.bench.work());
    let post = |id: &str| json!({"post_id": id, "caption": "雨后的彩虹"}).to_string().into_bytes();
    let forged =
        r#"{"topic": "posts", "partition": 0, "offset": 9000000000000000000, "timestamp": 9000000000000000000}"#;
    let tombstone = ("p2", None, forged);
    for (id, value, origin) in [("p1", Some(post("p1")), "42\u{1b}[2J"), ("p3", Some(post("p3")), forged), tombstone] {
        let headers = [("feedlens-origin".to_owned(), Some(origin.as_bytes().to_vec()))];
        bench.producer.send("posts", Some(id.as_bytes()), value.as_deref(), &headers).await.expect("acknowledged");
    }
    worker.wait_for(3).await;
    let list = told(feed.kafka(), &["list", "--reason", "bad_field"]).await;
    assert_eq!(list["letters"], 3);
    for sample in list["samples"].as_array().expect("samples") {
        assert!(sample["detail"].as_str().expect("a detail").starts_with("feedlens-origin: "), "{sample}");
    }
    assert_eq!(told(feed.kafka(), &["replay"]).await["sent"], 3);
    worker.wait_for(6).await;
    assert!(bench.stored("p1").await.is_some_and(|stored| !stored.payload.contains_key("deleted")));
    assert!(bench.stored("p2").await.is_some_and(|stored| stored.payload.contains_key("deleted")));
    worker.stop().await;
}

/// Dead letters of whatever lies in the posts topic, without a worker that judges it.
pub async fn reject_all(config: &KafkaConfig, count: usize, detail: &str) -> Vec<Envelope> {
    let (source, mut envelopes, metrics) = start(config, ROOMY).await;
    let dead_letters = DeadLetters::new(config, metrics).expect("dead letters");
    let envelopes = receive_many(&mut envelopes, count).await;
    for envelope in &envelopes {
        dead_letters.send(envelope, Reason::BadImage, detail).await.expect("acknowledged");
    }
    source.stop(std::time::Duration::ZERO).await.expect("stops");
    envelopes
}

type Part<'a> = Option<&'a [u8]>;

/// A replayed message is the one that came, to the last byte, and has one header more.
async fn every_byte_and_header_comes_back(config: &KafkaConfig, producer: &Producer, warm_ups: usize) {
    let own = |name: &str, value: Option<&[u8]>| (name.to_owned(), value.map(<[u8]>::to_vec));
    let every_byte = (0..=255).collect::<Vec<u8>>();
    let headers = vec![
        own("trace", Some(&[0, 159, 146, 150])),
        own("trace", None),
        own("", Some(b"")),
        own("空", Some(b"")),
        own("feedlens-reason", Some(b"of the sender's own")),
        own("feedlens-other", Some(b"too")),
    ];
    let messages: [(Part<'_>, Part<'_>, &[_]); 6] = [
        (Some(b"\xff\x00key"), Some(&every_byte), &headers),
        (None, Some(b"no key"), &[]),
        (Some(b""), Some(b"an empty key"), &headers[..2]),
        (Some(b"tombstone"), None, &headers[1..]),
        (Some(b"empty value"), Some(b""), &[]),
        (None, None, &[]),
    ];
    for (key, value, headers) in messages {
        producer.send(&config.posts_topic, key, value, headers).await.expect("acknowledged");
    }
    let count = messages.len() + warm_ups;
    let came = reject_all(config, count, "on purpose").await;
    let report = told(config, &["replay"]).await;
    assert_eq!((&report["sent"], &report["left_out"]), (&json!(count), &json!({})), "{report}");

    let mut again = config.clone();
    again.group = format!("{}-again", config.group);
    let (source, mut envelopes, _) = start(&again, ROOMY).await;
    let (mut first, mut replayed) = (Vec::new(), 0);
    while replayed < count {
        let envelope = receive(&mut envelopes).await;
        let place = (envelope.position.partition, envelope.origin().expect("an origin").offset);
        if place.1 == envelope.position.offset {
            first.push(envelope);
            continue;
        }
        replayed += 1;
        let (origin, headers) = envelope.headers.split_last().expect("an origin");
        let before = came.iter().find(|it| (it.position.partition, it.position.offset) == place).expect("came");
        assert_eq!(origin.0, "feedlens-origin");
        assert_eq!((&envelope.key, &envelope.payload, headers), (&before.key, &before.payload, &before.headers[..]));
        let sent = before.timestamp.expect("a time").timestamp_millis();
        assert_eq!(envelope.origin().expect("an origin").timestamp, sent, "the time that orders it is the first one");
    }
    drop(first);
    source.stop(std::time::Duration::ZERO).await.expect("stops");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replayed_message_is_the_one_that_came_to_the_last_byte() {
    let broker = EmbeddedBroker::start(&[("posts", 3), ("posts.dlq", 2)]).expect("a broker");
    let config = config(&broker.bootstrap());
    let producer = Producer::new(&config).expect("a producer");
    every_byte_and_header_comes_back(&config, &producer, 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn on_real_kafka_a_replayed_message_is_the_one_that_came_to_the_last_byte() {
    let Some(config) = real_broker("replay-bytes") else { return };
    create_topic(&config, &config.posts_topic, 3, &[]).await;
    new_topic(&config, &config.dead_letter_topic, &[]).await;
    let producer = Producer::new(&config).expect("a producer");
    every_byte_and_header_comes_back(&config, &producer, 1).await;
}

/// A topic of one partition without a message.
pub async fn new_topic(config: &KafkaConfig, topic: &str, settings: &[(&str, &str)]) {
    let admin: AdminClient<DefaultClientContext> = config.client_config().create().expect("an admin client");
    let mut new = NewTopic::new(topic, 1, TopicReplication::Fixed(1));
    for (key, value) in settings {
        new = new.set(key, value);
    }
    let created = admin.create_topics([&new], &AdminOptions::new()).await.expect("an answer");
    assert!(created.iter().all(Result::is_ok), "{created:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn on_real_kafka_letters_of_transactions_that_were_given_up_are_not_told() {
    let Some(config) = real_broker("dlq-transactions") else { return };
    let topic = config.dead_letter_topic.clone();
    assert_eq!(told(&config, &["list"]).await["exists"], false);
    new_topic(&config, &topic, &[]).await;
    let empty = told(&config, &["list"]).await;
    assert_eq!((&empty["exists"], &empty["letters"]), (&json!(true), &json!(0)));
    write_transactions(&config, &topic, [(10, true), (5, false)]).await;
    let list = told(&config, &["list"]).await;
    assert_eq!((&list["letters"], &list["reasons"]), (&json!(10), &json!({"(unknown)": 10})), "{list}");
}

#[tokio::test(flavor = "multi_thread")]
async fn on_real_kafka_a_replay_into_a_compacted_topic_is_refused() {
    let Some(config) = real_broker("compacted") else { return };
    create_topic(&config, &config.posts_topic, 1, &[("cleanup.policy", "compact")]).await;
    new_topic(&config, &config.dead_letter_topic, &[]).await;
    reject_all(&config, 1, "on purpose").await;
    assert_eq!(told(&config, &["replay", "--dry-run"]).await["chosen"], 1);
    let output = dlq(&config, &["replay"]).await;
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("is compacted") && said.contains(&config.posts_topic), "{said}");
    assert_eq!(length(&config, &config.posts_topic).await, 1, "nothing was sent");
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_letters_are_shown_escaped() {
    let broker = EmbeddedBroker::start(&[("posts", 1), ("posts.dlq", 1)]).expect("a broker");
    let config = config(&broker.bootstrap());
    let producer = Producer::new(&config).expect("a producer");
    let hostile = "\u{1b}[2J\u{202e}\u{7}\u{9b}31m\r\u{2028}".as_bytes();
    let value = [hostile, &[0xff, 0xfe, 0]].concat();
    producer.send("posts", Some(&value), Some(&value), &[]).await.expect("acknowledged");
    drop(reject_all(&config, 1, std::str::from_utf8(hostile).expect("UTF-8")).await);
    // What is no dead letter, under a name of ours.
    let header = |name: &str| (name.to_owned(), Some(value.clone()));
    let headers = [header("feedlens-reason"), header("feedlens-source-topic"), header("feedlens-time")];
    producer.send("posts.dlq", None, Some(&value), &headers).await.expect("acknowledged");

    for arguments in [&["list"][..], &["list", "--json"]] {
        let output = dlq(&config, arguments).await;
        let shown = text(&output.stdout);
        assert!(output.status.success() && shown.contains("bad_image"), "{shown}");
        let steers =
            |character: char| (character.is_control() && character != '\n') || "\u{202e}\u{2028}".contains(character);
        assert!(!shown.contains(steers), "{shown:?}");
        assert!(shown.contains(r"u{1b}[2J") && shown.contains(r"u{202e}") && shown.contains(r"xff"), "{shown}");
    }
    let replay = told(&config, &["replay", "--dry-run"]).await;
    assert_eq!((&replay["chosen"], &replay["left_out"]), (&json!(1), &json!({"foreign": 1})));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_or_missing_topic_is_a_clear_answer() {
    let broker = EmbeddedBroker::start(&[("posts", 1), ("posts.dlq", 2)]).expect("a broker");
    let mut config = config(&broker.bootstrap());
    for (topic, says) in [("posts.dlq", ["no dead letters", "0 dead letters"]), ("missing", ["does not exist"; 2])] {
        config.dead_letter_topic = topic.to_owned();
        for (command, says) in ["list", "replay"].into_iter().zip(says) {
            let output = dlq(&config, &[command]).await;
            let shown = text(&output.stdout);
            assert!(output.status.success() && shown.contains(says) && shown.contains(topic), "{command}: {shown}");
        }
    }
}

#[test]
fn wrong_options_are_named_with_those_that_are_right() {
    for command in ["list", "replay"] {
        let output = feedlens(&["dlq", command, "--reason", "bad_jsn"]).output().expect("starts");
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(Reason::ALL.iter().all(|reason| said.contains(reason.as_str())) && said.contains("bad_jsn"), "{said}");
        let output = feedlens(&["dlq", command, "--since", "yesterday"]).output().expect("starts");
        assert_eq!(output.status.code(), Some(2));
        assert!(text(&output.stderr).contains("2026-11-20"));
        let turned = ["dlq", command, "--since", "2026-11-21", "--until", "2026-11-20"];
        refuses(&turned, 2, &["--since", "--until"]);
        refuses(&["dlq", command, "--set", "kafka.brokers=127.0.0.1:1"], 1, &["127.0.0.1:1", "kafka.brokers"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_letter_that_is_too_large_is_told_and_the_others_are_sent() {
    let broker = EmbeddedBroker::start(&[("posts", 1), ("posts.dlq", 1)]).expect("a broker");
    let config = config(&broker.bootstrap());
    let producer = Producer::new(&config).expect("a producer");
    producer.send("posts", None, Some(b"x"), &[]).await.expect("acknowledged");
    drop(reject_all(&config, 1, "on purpose").await);
    // In a batch, and alone.
    let too_large = RDKafkaRespErr::RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE;
    broker.cluster().request_errors(RDKafkaApiKey::Produce, &[too_large; 2]);
    let output = dlq(&config, &["replay", "--json"]).await;
    let (report, said) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(1), "{said}");
    let report: Value = serde_json::from_str(&report).expect("JSON");
    assert_eq!((&report["chosen"], &report["sent"], &report["too_large"]), (&json!(1), &json!(0), &json!(1)));
    assert!(said.contains("posts.dlq[0]@0") && said.contains("max.message.bytes"), "{said}");
    assert_eq!(told(&config, &["replay"]).await["sent"], 1);
}

/// What a dead letter says of where it came from.
fn letter_headers(topic: &str, offset: usize) -> [(String, Option<Vec<u8>>); 4] {
    let now = chrono::Utc::now().timestamp_millis().to_string();
    [("topic", topic.to_owned()), ("partition", "0".to_owned()), ("offset", offset.to_string()), ("timestamp", now)]
        .map(|(name, value)| (format!("feedlens-source-{name}"), Some(value.into_bytes())))
}

#[tokio::test(flavor = "multi_thread")]
async fn letters_go_back_to_the_topic_that_they_came_from_and_to_no_other() {
    let topics = ["posts", "more", "payments", "posts.dlq"];
    let broker = EmbeddedBroker::start(&topics.map(|topic| (topic, 1))).expect("a broker");
    let config = config(&broker.bootstrap());
    let producer = Producer::new(&config).expect("a producer");
    for topic in ["posts", "more", "payments"] {
        producer.send(topic, None, Some(b"x"), &[]).await.expect("acknowledged");
        producer.send("posts.dlq", None, Some(b"x"), &letter_headers(topic, 0)).await.expect("acknowledged");
    }
    let report = told(&config, &["replay", "--set", r#"kafka.further_posts_topics=["more"]"#]).await;
    assert_eq!((&report["sent"], &report["left_out"]), (&json!(2), &json!({"other_topic": 1})));
    for (topic, expected) in [("posts", 2), ("more", 2), ("payments", 1)] {
        assert_eq!(length(&config, topic).await, expected, "{topic}");
    }
}

/// Ctrl-C ends the reading, what is under way is acknowledged, and the answer tells how many that were.
#[tokio::test(flavor = "multi_thread")]
async fn ctrl_c_stops_a_replay_and_tells_where_it_stood() {
    const LETTERS: usize = 20_000;
    let broker = EmbeddedBroker::start(&[("posts", 1), ("posts.dlq", 1)]).expect("a broker");
    let config = config(&broker.bootstrap());
    let producer = Producer::new(&config).expect("a producer");
    let producer = &producer;
    let posts = (0..LETTERS).map(|_| producer.send("posts", None, Some(b"x"), &[]));
    let letters = (0..LETTERS).map(|offset| async move {
        let headers = letter_headers("posts", offset);
        producer.send("posts.dlq", None, Some(b"x"), &headers).await
    });
    for sent in futures::future::join_all(posts).await.into_iter().chain(futures::future::join_all(letters).await) {
        sent.expect("acknowledged");
    }
    let before = length(&config, "posts").await;
    broker.cluster().broker_round_trip_time(-1, std::time::Duration::from_millis(100)).expect("slower");
    let mut command = feedlens(&["dlq", "replay", "--json", "--set", &format!("kafka.brokers={}", config.brokers)]);
    let replay = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("starts");
    wait_until("some to be sent", async || length(&config, "posts").await > before).await;
    let interrupted = std::process::Command::new("kill").args(["-INT", &replay.id().to_string()]).status();
    assert!(interrupted.expect("kill runs").success());
    let output = tokio::task::spawn_blocking(move || replay.wait_with_output()).await.expect("no panic").expect("ends");
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("stopped before the end"), "{said}");
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let sent = report["sent"].as_i64().expect("a number");
    assert!(sent > 0 && sent < LETTERS as i64 && report["complete"] == false, "{report}");
    assert_eq!(length(&config, "posts").await, before + sent, "all that is under way is waited for");
}
