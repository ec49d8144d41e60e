//! What fails around the ingest pipe, and what must come of it: delays, a clear end, and never a lost post.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::Router;
use axum::routing::get;
use chrono::DateTime;
use feedlens::error::{Fault, Reason};
use feedlens::ingest;
use feedlens::kafka::Producer;
use feedlens::metrics::Metrics;
use feedlens::post::point_id;
use feedlens::store::{self, ModelStamp, Order, Origin, Tombstone, Write};
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use crate::ingest_support::{Bench, Gate, Worker};
use crate::kafka_support::{PATIENCE, config, wait_until};
use crate::pipeline::picture;
use crate::ports::free_port;
use crate::store_support;

impl Worker {
    /// How the worker ends by itself.
    pub async fn ends(self) -> anyhow::Error {
        let ended = tokio::time::timeout(PATIENCE, self.running).await.expect("it ends by itself");
        ended.expect("no panic").expect_err("it failed")
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_of_the_pictures_host_only_delays() {
    let retries = ["images.retry_first=5ms", "images.retry_max=20ms", "images.allow_networks=[\"127.0.0.0/8\"]"];
    let bench = Bench::new(&retries).await;
    let worker = bench.work();
    let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
    for index in 0..20 {
        let id = format!("p{index}");
        let post = json!({"post_id": id, "image": {"url": format!("http://{address}/{index}.png")}});
        bench.send(&id, Some(post.to_string().as_bytes())).await;
    }
    let retried = worker.metrics.posts_retried.with_label_values(&["image_host"]);
    wait_until("many attempts of each post", async || retried.get() >= 400).await;
    assert_eq!(worker.settled(), 0, "nothing is dead-lettered for an outage");
    let listener = TcpListener::bind(address).await.expect("the port is still free");
    let host = Router::new().route("/{name}", get(async || picture()));
    let serving = tokio::spawn(async move { axum::serve(listener, host).await });
    worker.wait_for(20).await;
    assert_eq!(worker.metrics.posts_indexed.get(), 20);
    assert!(bench.stored("p7").await.expect("is there").image.is_some());
    worker.stop().await;
    serving.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_host_is_given_up_while_others_answer_and_a_missing_picture_at_once() {
    let set = [
        "images.retry_first=5ms",
        "images.retry_max=20ms",
        "images.give_up_after=100ms",
        "images.allow_networks=[\"127.0.0.0/8\"]",
    ];
    let bench = Bench::new(&set).await;
    let worker = bench.work();
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let host = Router::new().route("/a.png", get(async || picture()));
    let serving = tokio::spawn(async move { axum::serve(listener, host).await });
    let send = async |id: String, url: String| {
        let post = json!({"post_id": id, "image": {"url": url}}).to_string();
        bench.send(&id, Some(post.as_bytes())).await;
    };
    send("dead".to_owned(), "http://127.0.0.1:1/a.png".to_owned()).await;
    let retried = worker.metrics.posts_retried.with_label_values(&["image_host"]);
    wait_until("more time than it is given", async || retried.get() >= 20).await;
    assert_eq!(worker.settled(), 0, "while nothing can be reached, nothing is given up");
    send("missing".to_owned(), format!("http://{address}/b.png")).await;
    send("good".to_owned(), format!("http://{address}/a.png")).await;
    worker.wait_for(3).await;
    assert_eq!(worker.metrics.posts_indexed.get(), 1);
    let unavailable = worker.metrics.posts_dead_lettered.with_label_values(&["image_unavailable"]);
    assert_eq!(unavailable.get(), 2);
    worker.stop().await;
    serving.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fatal_write_during_the_drain_is_the_workers_end_too() {
    let bench = Bench::new(&[]).await;
    let (arrived, go_on) = (Arc::new(AtomicBool::new(false)), Arc::new(Semaphore::new(0)));
    let store = {
        let (arrived, go_on) = (arrived.clone(), go_on.clone());
        Gate::before(&bench, move |_| {
            let (arrived, go_on) = (arrived.clone(), go_on.clone());
            async move {
                arrived.store(true, Ordering::SeqCst);
                drop(go_on.acquire().await);
                Err(Fault::fatal("the collection is gone"))
            }
        })
    };
    let worker = bench.work_with(store);
    bench.post("a", "b").await;
    wait_until("a write under way", async || arrived.load(Ordering::SeqCst)).await;
    worker.stop.cancel();
    go_on.add_permits(1);
    let error = worker.ends().await;
    assert!(format!("{error:#}").contains("the collection is gone"), "{error:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_that_the_broker_never_takes_holds_up_no_other_post() {
    // The client measures against this as a broker does against the topic's limit.
    let mut bench = Bench::new(&["kafka.properties.message.max.bytes=3000", "ingest.write_parallel=1"]).await;
    bench.producer = Producer::new(&config(&bench.broker.bootstrap())).expect("a producer");
    let refused = point_id("large");
    let store = Gate::before(&bench, move |ids| {
        let rejected = ids.contains(&refused);
        async move { if rejected { Err(Fault::reject(Reason::StoreRejected, "not this one")) } else { Ok(()) } }
    });
    let worker = bench.work_with(store);
    bench.post("large", &"字".repeat(2_000)).await;
    wait_until("the letter is refused", async || worker.metrics.dead_letters_stuck.get() == 1).await;
    for index in 0..20 {
        bench.post(&format!("p{index}"), "海边的日落").await;
    }
    worker.wait_for(20).await;
    assert_eq!(worker.metrics.posts_indexed.get(), 20);
    assert_eq!(ingest::progress::dead_lettered(&worker.metrics), 0, "it is not counted before it is acknowledged");
    assert!(worker.metrics.inflight_posts.get() >= 1, "the post is not lost");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_takes_no_post_at_all_ends_the_worker() {
    let bench = Bench::new(&[]).await;
    let store = Gate::before(&bench, |_| async { Err(Fault::reject(Reason::StoreRejected, "wrong dimension")) });
    let worker = bench.work_with(store);
    let metrics = worker.metrics.clone();
    for index in 0..100 {
        bench.post(&format!("p{index}"), "海边的日落").await;
    }
    let error = format!("{:#}", worker.ends().await);
    assert!(error.contains("it is not the posts") && error.contains("wrong dimension"), "{error}");
    assert_eq!(ingest::progress::dead_lettered(&metrics), 0, "all of them come again when the store is mended");
}

#[tokio::test(flavor = "multi_thread")]
async fn any_number_of_posts_that_the_store_rejects_are_dead_letters_and_take_no_other_along() {
    let bench = Bench::new(&["ingest.max_inflight_posts=240"]).await;
    many_rejected_posts(bench).await;
    let Some(stores) = store_support::Bench::server() else { return };
    let mut bench = Bench::new(&["ingest.max_inflight_posts=240"]).await;
    let (model, dimension) = (bench.encoder.bundle.id.clone(), bench.encoder.bundle.dimension);
    bench.store = store::open(&stores.config, &ModelStamp { model, dimension }, &Metrics::new()).await.expect("opens");
    many_rejected_posts(bench).await;
}

async fn many_rejected_posts(bench: Bench) {
    // More than any batch has, one behind the other; then others among good ones.
    let bad = |index: usize| index < 150 || index.is_multiple_of(3);
    let posts = 240;
    let refused = (0..posts).filter(|index| bad(*index)).map(|index| point_id(&format!("p{index}")));
    let refused = refused.collect::<Vec<_>>();
    let count = refused.len();
    let store = Gate::before(&bench, move |ids| {
        let rejected = ids.iter().any(|id| refused.contains(id));
        async move { if rejected { Err(Fault::reject(Reason::StoreRejected, "not this one")) } else { Ok(()) } }
    });
    for index in 0..posts {
        bench.post(&format!("p{index}"), "海边的日落").await;
    }
    let worker = bench.work_with(store);
    worker.wait_for(posts as u64).await;
    assert_eq!(worker.metrics.posts_dead_lettered.with_label_values(&["store_rejected"]).get(), count as u64);
    assert_eq!(ingest::progress::dead_lettered(&worker.metrics), count as u64);
    assert_eq!(worker.metrics.posts_indexed.get(), (posts - count) as u64);
    let stored = bench.store.count().await.expect("counts");
    assert_eq!(stored, (posts - count) as u64, "what the worker tried the store with is no post");
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deletion_is_an_absent_or_an_empty_value_and_wins_over_a_large_version() {
    let bench = Bench::new(&[]).await;
    let worker = bench.work();
    for id in ["a", "b", "kept"] {
        let post = json!({"post_id": id, "caption": "c", "version": 1_700_000_000_000_u64}).to_string();
        bench.send(id, Some(post.as_bytes())).await;
    }
    worker.wait_for(3).await;
    bench.send("a", None).await;
    bench.send("b", Some(b"")).await;
    worker.wait_for(5).await;
    assert_eq!(worker.metrics.posts_deleted.get(), 2);
    assert_eq!(bench.store.count().await.expect("counts"), 1);
    // An older edit that comes late changes nothing, and is not counted as indexed.
    for id in ["a", "kept"] {
        bench.send(id, Some(json!({"post_id": id, "caption": "late", "version": 5}).to_string().as_bytes())).await;
    }
    worker.wait_for(7).await;
    assert_eq!((worker.metrics.posts_ignored.get(), worker.metrics.posts_indexed.get()), (2, 3));
    assert_eq!(bench.store.count().await.expect("counts"), 1);
    assert_eq!(bench.stored("kept").await.expect("is there").payload["caption"], "c");
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn delete_markers_go_when_they_are_old() {
    let bench = Bench::new(&["store.delete_marker_ttl=500ms"]).await;
    let worker = bench.work();
    bench.post("gone", "c").await;
    bench.send("gone", None).await;
    bench.post("stays", "c").await;
    wait_until("the marker is purged", async || {
        worker.metrics.posts_deleted.get() == 1 && bench.stored("gone").await.is_none()
    })
    .await;
    assert_eq!(worker.metrics.delete_markers_purged.get(), 1);
    assert_eq!(bench.store.count().await.expect("counts"), 1);
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_young_delete_marker_stays_when_old_ones_go() {
    let bench = Bench::new(&[]).await;
    let worker = bench.work();
    bench.send("young", None).await;
    worker.wait_for(1).await;
    worker.stop().await;
    let old = Write::Delete(Tombstone {
        id: point_id("old"),
        order: Order {
            version: None,
            source: Origin { topic: "posts".to_owned(), partition: 0, offset: 0, timestamp: 0 },
        },
        post_id: "old".to_owned(),
        deleted_at: DateTime::UNIX_EPOCH,
    });
    bench.store.write(vec![old]).await.expect("writes");
    let worker = bench.work();
    wait_until("the old marker is purged", async || bench.stored("old").await.is_none()).await;
    assert_eq!(bench.stored("young").await.expect("a marker").payload["deleted"], true);
    assert_eq!(worker.metrics.delete_markers_purged.get(), 1);
    worker.stop().await;
}
