//! Requests over Kafka, and a query worker that is killed: none is left without its answer.

use std::collections::BTreeMap;
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::time::Duration;

use feedlens::kafka::{EmbeddedBroker, Producer, Source, Subscription};
use feedlens::metrics::Metrics;
use serde_json::{Value, json};

use crate::binary::feedlens;
use crate::kafka_support::{self, ROOMY, receive};
use crate::search_kafka::messages_in;

const REQUESTS: usize = 300;

fn start(broker: &EmbeddedBroker, store: &std::path::Path) -> Child {
    let brokers = format!("kafka.brokers={}", broker.bootstrap());
    let store = format!("store.edge.dir={}", store.display());
    let mut command = feedlens(&["query"]);
    for set in [
        &brokers,
        &store,
        "store.kind=edge",
        "query.listen=127.0.0.1:0",
        "admin.listen=",
        // Few at a time and each topic encoded anew, so that there is a middle in which to be killed.
        "query.max_concurrent=2",
        "query.cache_entries=0",
        "kafka.commit_interval=50ms",
        "kafka.properties.session.timeout.ms=6000",
        "query.timeout=1s",
        "ingest.drain_timeout=1s",
        "log.level=error",
    ] {
        command.args(["--set", set]);
    }
    command.stdout(Stdio::null()).spawn().expect("starts")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_worker_leaves_no_request_without_its_answer() {
    let broker = EmbeddedBroker::start(&[("search.requests", 2), ("search.results", 1)]).expect("the broker starts");
    let config = kafka_support::config(&broker.bootstrap());
    let producer = Producer::new(&config).expect("a producer");
    for number in 0..REQUESTS {
        let request = json!({"request_id": format!("r{number}"), "topic": format!("水果 {number}")}).to_string();
        let key = format!("k{number}");
        let sent = producer.send("search.requests", Some(key.as_bytes()), Some(request.as_bytes()), &[]).await;
        sent.expect("the request is sent");
    }
    let subscription = Subscription { topics: vec!["search.results".to_owned()], group: "asker".to_owned() };
    let (source, mut results) =
        Source::start(&config, subscription, ROOMY, Duration::from_secs(5), Arc::new(Metrics::new()))
            .await
            .expect("starts");
    let mut answers: BTreeMap<String, usize> = BTreeMap::new();
    let mut next = async || {
        let envelope = receive(&mut results).await;
        let answer: Value = serde_json::from_slice(envelope.payload.as_ref().expect("a value")).expect("JSON");
        assert!(answer["hits"].is_array(), "{answer}");
        *answers.entry(answer["request_id"].as_str().expect("an id").to_owned()).or_default() += 1;
        envelope.settle();
        answers.len()
    };

    let folder = tempfile::tempdir().expect("a folder");
    let mut killed_at = Vec::new();
    for until in [20, 100] {
        let mut worker = start(&broker, folder.path());
        while next().await < until {}
        worker.kill().expect("kill -9");
        worker.wait().expect("is gone");
        killed_at.push(messages_in(&config, "search.results", 1).await);
    }
    assert!(killed_at.iter().all(|answered| *answered < REQUESTS as i64), "killed too late: {killed_at:?}");
    let mut last = start(&broker, folder.path());
    while next().await < REQUESTS {}
    last.kill().expect("is killed");
    last.wait().expect("is gone");
    let total: usize = answers.values().sum();
    println!("{total} answers to {REQUESTS} requests, killed at {killed_at:?}");
    drop(source);
}
