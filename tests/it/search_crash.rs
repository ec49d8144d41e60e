//! Requests over Kafka, and a query worker that is killed: none is left without its answer.

use std::collections::BTreeMap;
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::Path;
use axum::routing::get;
use feedlens::kafka::{EmbeddedBroker, Producer, Source, Subscription};
use feedlens::metrics::Metrics;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::binary::feedlens;
use crate::kafka_support::{self, PATIENCE, ROOMY, receive};
use crate::pipeline::picture;
use crate::search_kafka::messages_in;

const REQUESTS: usize = 300;
/// The requests whose pictures wait at the gate.
const GATED: [usize; 2] = [100, 220];
/// From which request on a life of the worker gets no picture, and how many answers to wait for before its end: fewer than
/// there are before the gate, whatever the order of the partitions.
const LIVES: [(usize, usize); 2] = [(GATED[0], 20), (GATED[1], 80)];

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
        "query.max_concurrent=2",
        "images.allow_networks=[\"127.0.0.0/8\"]",
        "kafka.commit_interval=50ms",
        // The next life waits for the end of this one's session; a search must end sooner.
        "kafka.properties.session.timeout.ms=15000",
        "query.timeout=10s",
        "images.timeout=10s",
        "ingest.drain_timeout=1s",
        "log.level=error",
    ] {
        command.args(["--set", set]);
    }
    command.stdout(Stdio::null()).spawn().expect("starts")
}

/// A host of pictures that tells which were asked for, and keeps those whose number is not below the gate.
async fn gated_pictures(gate: watch::Receiver<usize>) -> (String, watch::Receiver<Vec<usize>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let host = format!("http://{}", listener.local_addr().expect("an address"));
    let (asked, seen) = watch::channel(Vec::new());
    let answer = async move |Path(number): Path<usize>| {
        asked.send_modify(|asked| asked.push(number));
        gate.clone().wait_for(|gate| number < *gate).await.expect("the gate is there");
        picture()
    };
    tokio::spawn(async move { axum::serve(listener, Router::new().route("/{number}", get(answer))).await });
    (host, seen)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_worker_leaves_no_request_without_its_answer() {
    let broker = EmbeddedBroker::start(&[("search.requests", 2), ("search.results", 1)]).expect("the broker starts");
    let config = kafka_support::config(&broker.bootstrap());
    let producer = Producer::new(&config).expect("a producer");
    let (gate, closed) = watch::channel(0);
    let (host, mut asked) = gated_pictures(closed).await;
    for number in 0..REQUESTS {
        let mut request = json!({"request_id": format!("r{number}"), "topic": format!("水果 {number}")});
        if GATED.contains(&number) {
            request = json!({"request_id": format!("r{number}"), "image": {"url": format!("{host}/{number}")}});
        }
        let key = format!("k{number}");
        let request = request.to_string();
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
    for (shut_from, until) in LIVES {
        gate.send_replace(shut_from);
        let before = asked.borrow().len();
        let mut worker = start(&broker, folder.path());
        while next().await < until {}
        let waits = asked.wait_for(|asked| asked[before..].iter().any(|number| *number >= shut_from));
        tokio::time::timeout(PATIENCE, waits)
            .await
            .expect("the worker waits for a picture")
            .expect("the host is there");
        worker.kill().expect("kill -9");
        worker.wait().expect("is gone");
        killed_at.push(messages_in(&config, "search.results", 1).await);
    }
    assert!(killed_at.iter().all(|answered| *answered < REQUESTS as i64), "killed too late: {killed_at:?}");
    gate.send_replace(REQUESTS);
    let mut last = start(&broker, folder.path());
    while next().await < REQUESTS {}
    last.kill().expect("is killed");
    last.wait().expect("is gone");
    let total: usize = answers.values().sum();
    println!("{total} answers to {REQUESTS} requests, killed at {killed_at:?}");
    drop(source);
}
