//! Searches over Kafka, on the embedded broker: each request gets its answer, good or bad.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use feedlens::kafka::{EmbeddedBroker, Producer, Source, Subscription};
use feedlens::metrics::Metrics;
use feedlens::query::kafka;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::kafka_support::{self, ROOMY, receive};
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
        tokio::spawn(async move { kafka::run(&config, service, shutdown).await })
    };

    let producer = Producer::new(&config).expect("a producer");
    let many: Vec<(Option<String>, Option<String>)> = (0..20)
        .map(|number| {
            let request = json!({"request_id": format!("many{number}"), "topic": format!("水果 {number}")});
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
        answers.insert(key, answer);
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
    drop(source);
}

#[tokio::test(flavor = "multi_thread")]
async fn brokers_that_are_not_there_end_the_start() {
    let worker = Worker::empty(&[]).await;
    let mut config = kafka_support::config("127.0.0.1:9");
    config.start_timeout = Duration::from_millis(500);
    let error = kafka::run(&config, worker.service.clone(), CancellationToken::new()).await.expect_err("no broker");
    assert!(error.to_string().contains("127.0.0.1:9"), "{error:#}");
}
