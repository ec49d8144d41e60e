//! What the ingest pipe does when a part of it fails, lags behind or is asked to stop: nothing is lost, nothing is
//! committed too early, and only what can never be indexed is a dead letter.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::extract::{Path, State};
use axum::http::StatusCode;
use feedlens::error::{Fault, Outage, Reason};
use feedlens::ingest::progress::dead_lettered;
use feedlens::post::{VERSION_HEADER, point_id};
use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};
use serde_json::json;
use tokio::sync::Semaphore;

use crate::ingest_support::{Bench, Gate, PARTITIONS, Worker};
use crate::kafka_support::{committed, wait_until};
use crate::pipeline::picture;

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_of_the_store_only_delays() {
    let bench = Bench::new(&["ingest.retry_first=5ms", "ingest.retry_max=20ms"]).await;
    let failures_left = AtomicUsize::new(12);
    let store = Gate::before(&bench, move |_| {
        let cut = failures_left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok();
        async move { if cut { Err(Fault::retry(Outage::Store, "the line is cut")) } else { Ok(()) } }
    });
    let worker = bench.work_with(store);
    for index in 0..50 {
        bench.post(&format!("p{index}"), "海边的日落").await;
    }
    worker.wait_for(50).await;
    assert_eq!(bench.store.count().await.expect("counts"), 50);
    assert_eq!(dead_lettered(&worker.metrics), 0, "nothing is dead-lettered for an outage");
    assert!(worker.metrics.posts_retried.with_label_values(&["store"]).get() >= 12);
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_delay_that_the_store_asks_for_is_kept() {
    let asked = Duration::from_millis(300);
    let bench = Bench::new(&["ingest.retry_first=1ms", "ingest.retry_max=1ms"]).await;
    let attempts = Arc::new(Mutex::new(Vec::new()));
    let seen = attempts.clone();
    let store = Gate::before(&bench, move |_| {
        let mut attempts = seen.lock().expect("no panic");
        attempts.push(Instant::now());
        let first = attempts.len() == 1;
        async move {
            let busy = Fault::Retry { outage: Outage::Store, detail: "busy".to_owned(), after: Some(asked) };
            if first { Err(busy) } else { Ok(()) }
        }
    });
    let worker = bench.work_with(store);
    bench.post("a", "c").await;
    worker.wait_for(1).await;
    let attempts = attempts.lock().expect("no panic").clone();
    assert_eq!(attempts.len(), 2);
    assert!(attempts[1] - attempts[0] >= asked, "tried again after {:?}", attempts[1] - attempts[0]);
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_that_the_store_rejects_is_the_only_dead_letter_of_its_batch() {
    let bench = Bench::new(&["ingest.write_wait=500ms"]).await;
    let bad = point_id("p17");
    let largest = Arc::new(AtomicUsize::new(0));
    let seen = largest.clone();
    let store = Gate::before(&bench, move |ids| {
        seen.fetch_max(ids.len(), Ordering::Relaxed);
        let is_bad = ids.contains(&bad);
        async move { if is_bad { Err(Fault::reject(Reason::StoreRejected, "no such shape")) } else { Ok(()) } }
    });
    for index in 0..40 {
        bench.post(&format!("p{index}"), "红苹果").await;
    }
    let worker = bench.work_with(store);
    worker.wait_for(40).await;
    assert!(largest.load(Ordering::Relaxed) > 1, "the test is to see a batch");
    assert_eq!(worker.metrics.posts_indexed.get(), 39);
    assert_eq!(bench.store.count().await.expect("counts"), 39);
    assert!(bench.stored("p17").await.is_none());
    let letters = bench.dead_letters(1).await;
    let post = json!({"post_id": "p17", "caption": "红苹果"}).to_string().into_bytes();
    assert_eq!(letters, BTreeMap::from([("store_rejected".to_owned(), post)]));
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn writes_go_in_parallel_up_to_the_bound() {
    let bench = Bench::new(&["ingest.write_batch=1", "ingest.write_parallel=3"]).await;
    let (closed, running, most) =
        (Arc::new(Semaphore::new(0)), Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let store = {
        let (closed, running, most) = (closed.clone(), running.clone(), most.clone());
        Gate::before(&bench, move |_| {
            most.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            let (closed, running) = (closed.clone(), running.clone());
            async move {
                let _ = closed.acquire().await;
                running.fetch_sub(1, Ordering::SeqCst);
                Ok(())
            }
        })
    };
    let worker = bench.work_with(store);
    for index in 0..20 {
        bench.post(&format!("p{index}"), "c").await;
    }
    wait_until("all posts prepared, and writes under way", async || {
        let prepared = worker.metrics.stage_seconds.with_label_values(&["tokenize"]).get_sample_count();
        prepared == 20 && running.load(Ordering::SeqCst) >= 3
    })
    .await;
    closed.close();
    worker.wait_for(20).await;
    assert_eq!(most.load(Ordering::SeqCst), 3);
    worker.stop().await;
}

/// A store that takes nothing until the test opens it.
fn closed_store(bench: &Bench) -> (Worker, Arc<Semaphore>) {
    let closed = Arc::new(Semaphore::new(0));
    let gate = closed.clone();
    let store = Gate::before(bench, move |_| {
        let gate = gate.clone();
        async move {
            let _ = gate.acquire().await;
            Ok(())
        }
    });
    (bench.work_with(store), closed)
}

async fn bounded_by(setting: &str, is_at_bound: impl Fn(&Worker) -> bool) {
    let bench = Bench::new(&[setting, "ingest.write_batch=4", "kafka.pause_after=200ms"]).await;
    let (worker, closed) = closed_store(&bench);
    for index in 0..60 {
        bench.post(&format!("p{index}"), &"雨".repeat(20)).await;
    }
    wait_until("the partitions paused", async || worker.metrics.paused_partitions.get() == i64::from(PARTITIONS)).await;
    let (posts, bytes) = (worker.metrics.inflight_posts.get(), worker.metrics.inflight_bytes.get());
    assert!(is_at_bound(&worker), "{setting}: {posts} posts, {bytes} bytes in flight");
    assert_eq!(worker.metrics.posts_consumed.get(), posts as u64, "{setting}: more was taken than is in flight");
    let offsets = committed(&bench.config.kafka, PARTITIONS).await;
    assert_eq!(offsets, BTreeMap::new(), "{setting}: committed before anything was durable");
    closed.close();
    worker.wait_for(60).await;
    worker.stop().await;
    assert_eq!(committed(&bench.config.kafka, PARTITIONS).await.values().sum::<i64>(), 60);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_in_flight_is_bounded_by_count_and_nothing_is_committed_before_it_is_durable() {
    bounded_by("ingest.max_inflight_posts=8", |worker| worker.metrics.inflight_posts.get() == 8).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_in_flight_is_bounded_by_bytes_and_nothing_is_committed_before_it_is_durable() {
    let one = json!({"post_id": "p0", "caption": "雨".repeat(20)}).to_string().len() as i64 + 2;
    let limits = 5 * one..=5 * one + 10;
    let setting = format!("ingest.max_inflight_bytes={}", limits.end());
    bounded_by(&setting, |worker| (4 * one..=*limits.end()).contains(&worker.metrics.inflight_bytes.get())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_gives_up_on_a_stuck_store_at_the_deadline_and_the_posts_come_again() {
    let bench = Bench::new(&["ingest.drain_timeout=300ms"]).await;
    let (worker, _closed) = closed_store(&bench);
    for index in 0..20 {
        bench.post(&format!("p{index}"), "c").await;
    }
    wait_until("all posts taken", async || worker.metrics.posts_consumed.get() == 20).await;
    tokio::time::timeout(Duration::from_secs(20), worker.stop()).await.expect("the drain has a deadline");
    assert_eq!(committed(&bench.config.kafka, PARTITIONS).await, BTreeMap::new());
    let worker = bench.work();
    worker.wait_for(20).await;
    assert_eq!(bench.store.count().await.expect("counts"), 20);
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_finishes_what_is_in_flight_and_commits_it() {
    let bench = Bench::new(&[]).await;
    let (worker, closed) = closed_store(&bench);
    for index in 0..20 {
        bench.post(&format!("p{index}"), "c").await;
    }
    wait_until("all posts taken", async || worker.metrics.posts_consumed.get() == 20).await;
    worker.stop.cancel();
    // The source takes no more from the moment the stop begins.
    let paused = &worker.metrics.paused_partitions;
    wait_until("the stop to begin", async || paused.get() == i64::from(PARTITIONS)).await;
    closed.close();
    worker.stop().await;
    assert_eq!(bench.store.count().await.expect("counts"), 20);
    assert_eq!(committed(&bench.config.kafka, PARTITIONS).await.values().sum::<i64>(), 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_can_never_work_ends_the_worker_and_commits_nothing() {
    let bench = Bench::new(&[]).await;
    let store = Gate::before(&bench, |_| async { Err(Fault::fatal("the key was withdrawn")) });
    let worker = bench.work_with(store);
    bench.post("a", "c").await;
    let ended = tokio::time::timeout(crate::kafka_support::PATIENCE, worker.running).await.expect("in time");
    let error = ended.expect("no panic").expect_err("going on is wrong");
    assert_eq!(format!("{error:#}"), "the key was withdrawn");
    assert_eq!(committed(&bench.config.kafka, PARTITIONS).await, BTreeMap::new());
    assert_eq!(dead_lettered(&worker.metrics), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_is_sent_until_the_broker_acknowledges_it() {
    let bench = Bench::new(&["ingest.retry_first=5ms", "ingest.retry_max=20ms"]).await;
    bench.send("x", Some(b"{broken")).await;
    // Even where a person must act, the worker goes on: the posts beside it can be indexed.
    let refused = RDKafkaRespErr::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED;
    bench.broker.cluster().request_errors(RDKafkaApiKey::Produce, &[refused, refused]);
    let worker = bench.work();
    worker.wait_for(1).await;
    // librdkafka goes on to refuse the topic by itself until it has asked for the topic's metadata again.
    assert!(worker.metrics.posts_retried.with_label_values(&["broker"]).get() >= 2);
    assert_eq!(bench.dead_letters(1).await, BTreeMap::from([("bad_json".to_owned(), b"{broken".to_vec())]));
    worker.stop().await;
    assert_eq!(committed(&bench.config.kafka, PARTITIONS).await.values().sum::<i64>(), 1);
}

/// On a partition that is new to it, a broker may take a later request first and then say of the earlier one, which it
/// refused, that it was sent before (KAFKA-15591); librdkafka takes that for an acknowledgement.
#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_that_the_broker_says_it_has_but_not_where_is_sent_again() {
    let bench = Bench::new(&[]).await;
    bench.send("x", Some(b"{broken")).await;
    let sent_before = RDKafkaRespErr::RD_KAFKA_RESP_ERR_DUPLICATE_SEQUENCE_NUMBER;
    bench.broker.cluster().request_errors(RDKafkaApiKey::Produce, &[sent_before]);
    let worker = bench.work();
    worker.wait_for(1).await;
    assert_eq!(bench.dead_letters(1).await, BTreeMap::from([("bad_json".to_owned(), b"{broken".to_vec())]));
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_versions_of_the_feed_order_its_writes_whatever_the_order_of_the_messages() {
    let bench = Bench::new(&[]).await;
    let worker = bench.work();
    let caption = async || bench.stored("a").await.expect("is there").payload.get("caption").cloned();
    let edit = async |version: u64, caption: &str| {
        let post = json!({"post_id": "a", "caption": caption, "version": version}).to_string();
        bench.send("a", Some(post.as_bytes())).await;
    };
    let delete = async |version: &str| {
        let header = [(VERSION_HEADER.to_owned(), Some(version.as_bytes().to_vec()))];
        bench.producer.send("posts", Some(b"a"), None, &header).await.expect("acknowledged");
    };
    edit(50, "new").await;
    worker.wait_for(1).await;
    edit(30, "old").await;
    delete("40").await;
    worker.wait_for(3).await;
    assert_eq!(caption().await, Some(json!("new")));
    delete("60").await;
    worker.wait_for(4).await;
    edit(55, "too late").await;
    worker.wait_for(5).await;
    assert_eq!(bench.store.count().await.expect("counts"), 0);
    edit(61, "again").await;
    worker.wait_for(6).await;
    assert_eq!(caption().await, Some(json!("again")));
    worker.stop().await;
}

/// How often each picture was asked for.
type Requests = Arc<Mutex<BTreeMap<String, usize>>>;

/// `flaky` is out of order twice, every other picture always.
async fn picture_host(State(requests): State<Requests>, Path(name): Path<String>) -> Result<Vec<u8>, StatusCode> {
    let mut requests = requests.lock().expect("no panic");
    let count = requests.entry(name.clone()).or_default();
    *count += 1;
    if name == "flaky" && *count == 3 { Ok(picture()) } else { Err(StatusCode::SERVICE_UNAVAILABLE) }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_picture_is_asked_for_again_while_its_host_is_out_of_order_and_no_longer_than_allowed() {
    let requests = Requests::default();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let host = listener.local_addr().expect("an address");
    let router = axum::Router::new().route("/{name}", axum::routing::get(picture_host)).with_state(requests.clone());
    tokio::spawn(async move { axum::serve(listener, router).await });
    let bench = Bench::new(&[
        "images.allow_networks=[\"127.0.0.0/8\"]",
        "images.give_up_after=100ms",
        "images.retry_first=5ms",
        "images.retry_max=20ms",
    ])
    .await;
    let worker = bench.work();
    // A host is given up only where an answer came since: the one of `flaky`.
    for name in ["down", "flaky"] {
        let post = json!({"post_id": name, "image": {"url": format!("http://{host}/{name}")}}).to_string();
        bench.send(name, Some(post.as_bytes())).await;
        let asked = || requests.lock().expect("no panic").get(name).copied().unwrap_or_default();
        wait_until("a second request", async || asked() >= 2).await;
    }
    worker.wait_for(2).await;
    assert!(bench.stored("flaky").await.expect("is there").image.is_some());
    let letters = bench.dead_letters(1).await;
    assert_eq!(letters.keys().collect::<Vec<_>>(), ["image_unavailable"]);
    let requests = requests.lock().expect("no panic").clone();
    assert_eq!(requests["flaky"], 3);
    assert!(requests["down"] > 3, "tried on until its time is over: {requests:?}");
    worker.stop().await;
}
