//! Searches over Kafka, on the embedded broker: each request gets its answer, good or bad.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use feedlens::kafka::{EmbeddedBroker, KafkaConfig, Producer, Source, StatusSlot, Subscription};
use feedlens::metrics::Metrics;
use feedlens::query::kafka;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::types::RDKafkaRespErr;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::kafka_support::{self, PATIENCE, ROOMY, receive, wait_until};
use crate::query_support::{Worker, post_ids};

const REQUESTS: &str = "search.requests";
const RESULTS: &str = "search.results";

#[tokio::test(flavor = "multi_thread")]
async fn every_request_is_answered_under_its_id() {
    let worker = Worker::start(&["query.max_concurrent=2"]).await;
    let broker = EmbeddedBroker::start(&[(REQUESTS, 2), (RESULTS, 2)]).expect("the broker starts");
    let config = kafka_support::config(&broker.bootstrap());
    let shutdown = CancellationToken::new();
    let answering = {
        let (config, service, shutdown) = (config.clone(), worker.service.clone(), shutdown.clone());
        tokio::spawn(async move { kafka::run(&config, service, StatusSlot::default(), shutdown).await })
    };

    let producer = Producer::new(&config).expect("a producer");
    let many: Vec<(Option<String>, Option<String>)> = (0..20)
        .map(|number| {
            let request =
                json!({"request_id": format!("many{number}"), "topic": format!("水果 {number}"), "min_score": "none"});
            (None, Some(request.to_string()))
        })
        .collect();
    let request = |key: &str, value: &str| (Some(key.to_owned()), Some(value.to_owned()));
    let bad = [
        request("k1", "{\"request_id\": \"good\", \"topic\": \"红苹果\"}"),
        request("by-key", "{\"topic\": \"红苹果\", \"top_k\": 2}"),
        request("k2", "{\"request_id\": \"unknown-field\", \"tpoic\": \"a\"}"),
        request("not-json", "{"),
        request("k3", "{\"request_id\": \"no-picture\", \"image\": {\"base64\": \"bm9uZQ==\"}}"),
        (Some("tombstone".to_owned()), None),
    ];
    let requests = [&many[..], &bad].concat();
    for (key, value) in &requests {
        let sent =
            producer.send(REQUESTS, key.as_ref().map(String::as_bytes), value.as_ref().map(String::as_bytes), &[]);
        sent.await.expect("the request is sent");
    }

    let subscription = Subscription { topics: vec![RESULTS.to_owned()], group: "asker".to_owned() };
    let drain = Duration::from_secs(5);
    let (source, mut results) =
        Source::start(&config, subscription, ROOMY, drain, Arc::new(Metrics::new())).await.expect("starts");
    let mut answers: BTreeMap<String, Value> = BTreeMap::new();
    while answers.len() < requests.len() {
        let envelope = receive(&mut results).await;
        let key = String::from_utf8(envelope.key.clone().expect("a key")).expect("UTF-8");
        let answer: Value = serde_json::from_slice(envelope.payload.as_ref().expect("a value")).expect("JSON");
        assert_eq!(answer["request_id"], json!(key), "{answer}");
        assert_eq!(answers.insert(key, answer), None, "answered twice");
        envelope.settle();
    }
    assert_eq!(post_ids(&answers["good"]).len(), 5);
    assert_eq!(post_ids(&answers["by-key"]).len(), 2);
    for number in 0..20 {
        assert_eq!(post_ids(&answers[&format!("many{number}")]).len(), 5, "overload waits, and refuses nobody");
    }
    for (id, code) in [
        ("unknown-field", "bad_request"),
        ("not-json", "bad_request"),
        ("tombstone", "bad_request"),
        ("no-picture", "unprocessable"),
    ] {
        let answer = &answers[id];
        assert_eq!((answer["error"]["code"].as_str(), answer.get("hits")), (Some(code), None), "{answer}");
    }
    assert_eq!((worker.searches("kafka", "ok"), worker.searches("kafka", "rejected")), (22, 4));

    shutdown.cancel();
    let ended = tokio::time::timeout(Duration::from_secs(30), answering).await;
    ended.expect("ends in time").expect("no panic").expect("no error");
    assert_eq!(messages_in(&config, RESULTS, 2).await, requests.len() as i64, "one answer for each request");
    drop(source);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_goes_to_the_topic_that_its_request_names_if_that_is_allowed() {
    // The last one is allowed here, but the brokers do not let anyone write to it.
    let allowed = "query.reply_topics=[\"results.wall\", \"results.gone\"]";
    let worker = Worker::start(&[allowed]).await;
    let topics = [(REQUESTS, 1), (RESULTS, 1), ("results.wall", 1), ("results.secret", 1)];
    let broker = EmbeddedBroker::start(&topics).expect("the broker starts");
    let refused = RDKafkaRespErr::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED;
    broker.cluster().topic_error("results.gone", refused).expect("the broker refuses");
    let config = kafka_support::config(&broker.bootstrap());
    let shutdown = CancellationToken::new();
    let answering = {
        let (config, service, shutdown) = (config.clone(), worker.service.clone(), shutdown.clone());
        tokio::spawn(async move { kafka::run(&config, service, StatusSlot::default(), shutdown).await })
    };
    let producer = Producer::new(&config).expect("a producer");
    for (id, reply_to, field) in [
        ("plain", None, "topic"),
        ("wall", Some("results.wall"), "topic"),
        ("bad-for-wall", Some("results.wall"), "tpoic"),
        ("secret", Some("results.secret"), "topic"),
        ("gone", Some("results.gone"), "topic"),
    ] {
        let request = json!({"request_id": id, "reply_to": reply_to, field: "红苹果"}).to_string();
        producer.send(REQUESTS, None, Some(request.as_bytes()), &[]).await.expect("the request is sent");
    }
    let topics = [RESULTS, "results.wall"].map(str::to_owned).to_vec();
    let subscription = Subscription { topics, group: "asker".to_owned() };
    let drain = Duration::from_secs(5);
    let (source, mut results) =
        Source::start(&config, subscription, ROOMY, drain, Arc::new(Metrics::new())).await.expect("starts");
    let mut answers: BTreeMap<String, (String, Value)> = BTreeMap::new();
    while answers.len() < 5 {
        let envelope = receive(&mut results).await;
        let answer: Value = serde_json::from_slice(envelope.payload.as_ref().expect("a value")).expect("JSON");
        let id = answer["request_id"].as_str().expect("an id").to_owned();
        answers.insert(id, (envelope.position.topic.to_string(), answer));
        envelope.settle();
    }
    for (id, topic, says) in [
        ("plain", RESULTS, None),
        ("wall", "results.wall", None),
        ("bad-for-wall", "results.wall", Some("tpoic")),
        ("secret", RESULTS, Some("results.secret")),
        ("gone", RESULTS, Some("results.gone")),
    ] {
        let (found, answer) = &answers[id];
        assert_eq!((found.as_str(), answer.get("hits").is_some()), (topic, says.is_none()), "{id}: {answer}");
        let message = answer["error"]["message"].as_str().unwrap_or_default();
        assert!(message.contains(says.unwrap_or_default()), "{id}: {answer}");
    }
    shutdown.cancel();
    let ended = tokio::time::timeout(Duration::from_secs(30), answering).await;
    ended.expect("ends in time").expect("no panic").expect("no error");
    assert_eq!(messages_in(&config, "results.secret", 1).await, 0);
    drop(source);
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
    let worker = Worker::start(&["query.max_concurrent=16", "query.kafka=false", "query.timeout=10m"]).await;
    let broker = EmbeddedBroker::start(&[(REQUESTS, 1), (RESULTS, 1)]).expect("the broker starts");
    let mut config = kafka_support::config(&broker.bootstrap());
    // So that the metrics count what is handed out.
    config.posts_topic = REQUESTS.to_owned();
    let (shutdown, consumer) = (CancellationToken::new(), StatusSlot::default());
    let answering = {
        let (config, service) = (config.clone(), worker.service.clone());
        let (shutdown, consumer) = (shutdown.clone(), consumer.clone());
        tokio::spawn(async move { kafka::run(&config, service, consumer, shutdown).await })
    };
    wait_until("the consumer", async || consumer.ready().is_ok()).await;
    let producer = Producer::new(&config).expect("a producer");
    for number in 0..COUNT {
        let request = json!({"request_id": format!("r{number}"), "topic": format!("水果 {number}")}).to_string();
        let sent = producer.send(REQUESTS, None, Some(request.as_bytes()), &[]);
        futures::executor::block_on(sent).expect("the request is sent");
    }
    let consumed = &worker.service.metrics().posts_consumed;
    let deadline = Instant::now() + PATIENCE;
    while consumed.get() < COUNT {
        assert!(Instant::now() < deadline, "{} requests were handed out", consumed.get());
        std::thread::yield_now();
    }
    shutdown.cancel();
    let ended = tokio::time::timeout(PATIENCE, answering).await;
    ended.expect("ends long before the deadline of the drain").expect("no panic").expect("no error");
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
