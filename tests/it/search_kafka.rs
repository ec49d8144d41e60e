//! Searches over Kafka, on the embedded broker: each request gets its answer, good or bad.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use feedlens::kafka::{EmbeddedBroker, KafkaConfig, Producer, Source, StatusSlot, Subscription};
use feedlens::metrics::Metrics;
use feedlens::query::kafka;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::kafka_support::{self, PATIENCE, ROOMY, receive, wait_until};
use crate::query_support::{Worker, post_ids};

const REQUESTS: &str = "search.requests";
const RESULTS: &str = "search.results";
/// A topic that requests name in `reply_to`.
const WALL: &str = "results.wall";

/// A worker that answers over a broker, and who asks it.
struct Answering {
    worker: Worker,
    config: KafkaConfig,
    producer: Producer,
    consumer: StatusSlot,
    shutdown: CancellationToken,
    running: JoinHandle<anyhow::Result<()>>,
}

/// An answer as it lies in Kafka.
#[derive(Debug)]
struct Answer {
    topic: String,
    key: Option<String>,
    value: Value,
}

impl Answer {
    fn code(&self) -> &str {
        self.value["error"]["code"].as_str().unwrap_or_default()
    }

    fn message(&self) -> &str {
        self.value["error"]["message"].as_str().unwrap_or_default()
    }
}

fn config(broker: &EmbeddedBroker) -> KafkaConfig {
    let mut config = kafka_support::config(&broker.bootstrap());
    // So that the metrics count what is handed out.
    config.posts_topic = REQUESTS.to_owned();
    config
}

impl Answering {
    async fn start(broker: &EmbeddedBroker, set: &[&str]) -> Self {
        let (worker, config) = (Worker::start(set).await, config(broker));
        let (shutdown, consumer) = (CancellationToken::new(), StatusSlot::default());
        let running = {
            let (config, service) = (config.clone(), worker.service.clone());
            let (shutdown, consumer) = (shutdown.clone(), consumer.clone());
            tokio::spawn(async move { kafka::run(&config, service, consumer, shutdown).await })
        };
        let producer = Producer::new(&config).expect("a producer");
        Self { worker, config, producer, consumer, shutdown, running }
    }

    async fn send(&self, key: Option<&str>, value: Option<&str>) {
        let sent = self.producer.send(REQUESTS, key.map(str::as_bytes), value.map(str::as_bytes), &[]);
        sent.await.expect("the request is sent");
    }

    async fn ask(&self, request: Value) {
        self.send(None, Some(&request.to_string())).await;
    }

    /// As many answers as there are requests; none comes twice.
    async fn answers(&self, topics: &[&str], count: usize) -> Vec<Answer> {
        let topics = topics.iter().map(ToString::to_string).collect();
        let subscription = Subscription { topics, group: "asker".to_owned() };
        let (drain, metrics) = (Duration::from_secs(5), Arc::new(Metrics::new()));
        let started = Source::start(&self.config, subscription, ROOMY, drain, metrics).await;
        let (source, mut results) = started.expect("starts");
        let mut answers = Vec::new();
        while answers.len() < count {
            assert!(!self.running.is_finished(), "the worker ended after {answers:?}");
            let envelope = receive(&mut results).await;
            answers.push(Answer {
                topic: envelope.position.topic.to_string(),
                key: envelope.key.clone().map(|key| String::from_utf8(key).expect("UTF-8")),
                value: serde_json::from_slice(envelope.payload.as_ref().expect("a value")).expect("JSON"),
            });
            envelope.settle();
        }
        source.stop(drain).await.expect("stops");
        answers
    }

    /// The same by their request ids, which are their keys.
    async fn answers_by_id(&self, topics: &[&str], count: usize) -> BTreeMap<String, Answer> {
        let mut by_id = BTreeMap::new();
        for answer in self.answers(topics, count).await {
            let id = answer.value["request_id"].as_str().expect("an id").to_owned();
            assert_eq!(answer.key.as_deref(), Some(&*id), "{answer:?}");
            assert!(by_id.insert(id.clone(), answer).is_none(), "{id} was answered twice");
        }
        by_id
    }

    fn redirected(&self, reason: &str) -> u64 {
        self.worker.service.metrics().replies_redirected.with_label_values(&[reason]).get()
    }

    async fn stop(self) {
        self.shutdown.cancel();
        let ended = tokio::time::timeout(PATIENCE, self.running).await;
        ended.expect("ends long before the deadline of the drain").expect("no panic").expect("no error");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_request_is_answered_under_its_id() {
    let broker = EmbeddedBroker::start(&[(REQUESTS, 2), (RESULTS, 2)]).expect("the broker starts");
    let answering = Answering::start(&broker, &["query.max_concurrent=2"]).await;
    for number in 0..20 {
        let topic = format!("水果 {number}");
        answering.ask(json!({"request_id": format!("many{number}"), "topic": topic, "min_score": "none"})).await;
    }
    for (key, value) in [
        ("k1", Some("{\"request_id\": \"good\", \"topic\": \"红苹果\"}")),
        ("by-key", Some("{\"topic\": \"红苹果\", \"top_k\": 2}")),
        ("k2", Some("{\"request_id\": \"unknown-field\", \"tpoic\": \"a\"}")),
        ("not-json", Some("{")),
        ("k3", Some("{\"request_id\": \"no-picture\", \"image\": {\"base64\": \"bm9uZQ==\"}}")),
        ("tombstone", None),
    ] {
        answering.send(Some(key), value).await;
    }
    let answers = answering.answers_by_id(&[RESULTS], 26).await;
    assert_eq!(post_ids(&answers["good"].value).len(), 5);
    assert_eq!(post_ids(&answers["by-key"].value).len(), 2);
    for number in 0..20 {
        let answer = &answers[&format!("many{number}")];
        assert_eq!(post_ids(&answer.value).len(), 5, "overload waits, and refuses nobody");
    }
    for (id, code) in [
        ("unknown-field", "bad_request"),
        ("not-json", "bad_request"),
        ("tombstone", "bad_request"),
        ("no-picture", "unprocessable"),
    ] {
        let answer = &answers[id];
        assert_eq!((answer.code(), answer.value.get("hits")), (code, None), "{answer:?}");
    }
    let searches = |outcome| answering.worker.searches("kafka", outcome);
    assert_eq!((searches("ok"), searches("rejected")), (22, 4));
    let config = answering.config.clone();
    answering.stop().await;
    assert_eq!(messages_in(&config, RESULTS, 2).await, 26, "one answer for each request");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_goes_to_the_topic_that_its_request_names_if_that_is_allowed() {
    let topics = [(REQUESTS, 1), (RESULTS, 1), (WALL, 1), ("results.secret", 1)];
    let broker = EmbeddedBroker::start(&topics).expect("the broker starts");
    // Allowed here, but the brokers do not let anyone write to it.
    let refused = RDKafkaRespErr::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED;
    broker.cluster().topic_error("results.closed", refused).expect("the broker refuses");
    let allowed = "query.reply_topics=[\"results.wall\", \"results.closed\"]";
    // Longer than anyone waits here: what can never succeed is told at once.
    let answering = Answering::start(&broker, &[allowed, "query.reply_timeout=10m"]).await;
    for (id, reply_to, field) in [
        ("plain", None, "topic"),
        ("wall", Some(WALL), "topic"),
        ("bad-for-wall", Some(WALL), "tpoic"),
        ("secret", Some("results.secret"), "topic"),
        ("closed", Some("results.closed"), "topic"),
    ] {
        answering.ask(json!({"request_id": id, "reply_to": reply_to, field: "红苹果"})).await;
    }
    let answers = answering.answers_by_id(&[RESULTS, WALL], 5).await;
    for (id, topic, says) in [
        ("plain", RESULTS, None),
        ("wall", WALL, None),
        ("bad-for-wall", WALL, Some("tpoic")),
        ("secret", RESULTS, Some("results.secret")),
        ("closed", RESULTS, Some("results.closed")),
    ] {
        let answer = &answers[id];
        assert_eq!((&*answer.topic, answer.value.get("hits").is_some()), (topic, says.is_none()), "{id}: {answer:?}");
        assert!(answer.message().contains(says.unwrap_or_default()), "{id}: {answer:?}");
    }
    assert_eq!((answering.redirected("refused"), answering.redirected("unavailable")), (1, 0));
    let config = answering.config.clone();
    answering.stop().await;
    assert_eq!(messages_in(&config, "results.secret", 1).await, 0);
}

/// A request lies there before the worker starts, and the first so many messages that it sends are refused as too large, each
/// in a batch and then alone.
async fn with_refusals(count: usize, request: Value) -> (EmbeddedBroker, Answering) {
    let broker = EmbeddedBroker::start(&[(REQUESTS, 1), (RESULTS, 1), (WALL, 1)]).expect("the broker starts");
    let producer = Producer::new(&config(&broker)).expect("a producer");
    let sent = producer.send(REQUESTS, Some(b"k"), Some(request.to_string().as_bytes()), &[]).await;
    sent.expect("the request is sent");
    let too_large = RDKafkaRespErr::RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE;
    broker.cluster().request_errors(RDKafkaApiKey::Produce, &vec![too_large; 2 * count]);
    let answering = Answering::start(&broker, &["query.reply_topics=[\"results.wall\"]"]).await;
    (broker, answering)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_its_requesters_topic_never_takes_is_an_error_in_the_results_topic() {
    // Not as it is, and not as an error.
    let request = json!({"request_id": "small", "topic": "红苹果", "reply_to": WALL});
    let (_broker, answering) = with_refusals(2, request).await;
    let answers = answering.answers_by_id(&[RESULTS, WALL], 1).await;
    let answer = &answers["small"];
    assert_eq!((&*answer.topic, answer.code()), (RESULTS, "too_large"), "{answer:?}");
    assert!(answer.message().contains("max.message.bytes") && answer.message().contains(WALL), "{answer:?}");
    assert_eq!(answering.redirected("too_large"), 1);
    // The worker goes on.
    answering.ask(json!({"request_id": "next", "topic": "红苹果", "reply_to": WALL})).await;
    let next = answering.answers_by_id(&[WALL], 1).await;
    assert_eq!(post_ids(&next["next"].value).len(), 5);
    answering.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_too_large_for_the_results_topic_is_an_error_if_need_be_without_its_key() {
    for (refusals, key, id) in [(1, Some("r"), json!("r")), (2, None, Value::Null)] {
        let (_broker, answering) = with_refusals(refusals, json!({"request_id": "r", "topic": "红苹果"})).await;
        let answers = answering.answers(&[RESULTS], 1).await;
        let answer = &answers[0];
        assert_eq!((answer.key.as_deref(), &answer.value["request_id"]), (key, &id), "{answer:?}");
        assert_eq!((answer.code(), answer.message().contains("smaller top_k")), ("too_large", true), "{answer:?}");
        answering.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_requesters_topic_that_is_out_of_order_holds_up_nobody() {
    const COUNT: usize = 12;
    let topics = [(REQUESTS, 1), (RESULTS, 1), (WALL, 1), ("results.broken", 1)];
    let broker = EmbeddedBroker::start(&topics).expect("the broker starts");
    broker.cluster().partition_leader("results.broken", 0, None).expect("the partition has no leader");
    let allowed = "query.reply_topics=[\"results.wall\", \"results.broken\"]";
    // Two requests are in flight at a time.
    let set = [allowed, "query.max_concurrent=1", "query.reply_timeout=500ms"];
    let answering = Answering::start(&broker, &set).await;
    for number in 0..COUNT {
        let id = format!("broken{number}");
        answering.ask(json!({"request_id": id, "topic": "红苹果", "reply_to": "results.broken"})).await;
    }
    answering.ask(json!({"request_id": "wall", "topic": "红苹果", "reply_to": WALL})).await;
    answering.ask(json!({"request_id": "plain", "topic": "红苹果"})).await;
    let answers = answering.answers_by_id(&[RESULTS, WALL], COUNT + 2).await;
    assert_eq!((&*answers["wall"].topic, post_ids(&answers["wall"].value).len()), (WALL, 5));
    assert_eq!(post_ids(&answers["plain"].value).len(), 5);
    let mut waited = 0;
    for number in 0..COUNT {
        let answer = &answers[&format!("broken{number}")];
        assert_eq!((&*answer.topic, answer.code()), (RESULTS, "unavailable"), "{answer:?}");
        assert!(answer.message().contains("results.broken"), "{answer:?}");
        waited += usize::from(answer.message().contains("within 500ms"));
    }
    assert!((1..=2).contains(&waited), "{waited} requests waited for it, and not each of them");
    assert_eq!(answering.redirected("unavailable"), COUNT as u64);
    answering.stop().await;
}

/// How many messages were ever written to a topic.
pub async fn messages_in(config: &KafkaConfig, topic: &'static str, partitions: i32) -> i64 {
    let config = config.clone();
    let count = move || {
        let consumer = config.client_config().set("group.id", "reader").create::<BaseConsumer>().expect("a consumer");
        let ends = (0..partitions).map(|partition| consumer.fetch_watermarks(topic, partition, PATIENCE));
        ends.map(|marks| marks.expect("watermarks").1).sum()
    };
    tokio::task::spawn_blocking(count).await.expect("no panic")
}

/// On one thread: while it is blocked here, requests pile up between the poll thread and the worker, as under load.
#[tokio::test]
async fn a_stop_under_load_answers_what_was_taken_and_ends() {
    const COUNT: u64 = 20;
    let broker = EmbeddedBroker::start(&[(REQUESTS, 1), (RESULTS, 1)]).expect("the broker starts");
    let set = ["query.max_concurrent=16", "query.kafka=false", "query.timeout=10m"];
    let answering = Answering::start(&broker, &set).await;
    wait_until("the consumer", async || answering.consumer.ready().is_ok()).await;
    for number in 0..COUNT {
        let request = json!({"request_id": format!("r{number}"), "topic": format!("水果 {number}")});
        futures::executor::block_on(answering.ask(request));
    }
    let consumed = &answering.worker.service.metrics().posts_consumed;
    let deadline = Instant::now() + PATIENCE;
    while consumed.get() < COUNT {
        assert!(Instant::now() < deadline, "{} requests were handed out", consumed.get());
        std::thread::yield_now();
    }
    let config = answering.config.clone();
    answering.stop().await;
    assert_eq!(messages_in(&config, RESULTS, 1).await, COUNT as i64);
}

#[tokio::test(flavor = "multi_thread")]
async fn brokers_that_are_not_there_end_the_start() {
    let worker = Worker::empty(&[]).await;
    let mut config = kafka_support::config("127.0.0.1:9");
    config.start_timeout = Duration::from_millis(500);
    let error = kafka::run(&config, worker.service.clone(), StatusSlot::default(), CancellationToken::new())
        .await
        .expect_err("no broker");
    assert!(error.to_string().contains("127.0.0.1:9"), "{error:#}");
}
