//! `images.unavailable = "caption"`: what is found of a post whose picture cannot be had, and how the picture comes later.

use std::net::SocketAddr;

use axum::Router;
use axum::routing::get;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use feedlens::kafka::Producer;
use feedlens::store::StoredPoint;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::dead_letters::{Bench, Feed, told};
use crate::ingest_support::{self, Worker};
use crate::kafka_support::{config, wait_until};
use crate::pipeline::picture;
use crate::ports::free_port;
use crate::query_support::{self, post_ids};
use crate::store_support::on_each_store;

on_each_store!(
    a_post_is_found_by_its_caption_until_a_replay_brings_its_picture,
    edits_and_deletions_in_between_stand_whatever_a_replay_brings,
);

const BY_CAPTION: &str = "images.unavailable=caption";

/// A feed whose posts name a picture that is not there yet.
async fn feed(store: Bench) -> Feed {
    let Bench(mut settings) = store;
    settings.push(BY_CAPTION.to_owned());
    Feed::on(Bench(settings)).await
}

/// Posts indexed, dead-lettered for their picture, and those that are both.
fn counts(worker: &Worker) -> (u64, u64, u64) {
    let unavailable = worker.metrics.posts_dead_lettered.with_label_values(&["image_unavailable"]);
    (worker.metrics.posts_indexed.get(), unavailable.get(), worker.metrics.posts_image_pending.get())
}

async fn stored(feed: &Feed, id: &str) -> StoredPoint {
    feed.bench.stored(id).await.expect("it is stored")
}

fn is_pending(point: &StoredPoint) -> bool {
    assert!(point.caption.is_some(), "{point:?}");
    let is_pending = point.payload.get("image_pending") == Some(&json!(true));
    assert!(!is_pending || point.image.is_none(), "{point:?}");
    is_pending
}

fn assert_same(left: &StoredPoint, right: &StoredPoint) {
    assert_eq!((&left.payload, &left.image, &left.caption), (&right.payload, &right.image, &right.caption));
}

/// Sends the letters of pictures again; how many.
async fn replay(feed: &Feed) -> Value {
    told(feed.kafka(), &["replay", "--reason", "image_unavailable"]).await["sent"].take()
}

async fn a_post_is_found_by_its_caption_until_a_replay_brings_its_picture(store: Bench) {
    let feed = feed(store).await;
    let (bench, worker) = (&feed.bench, feed.bench.work());
    feed.post_with_picture("p1", "红苹果").await;
    let without_caption = json!({"post_id": "p2", "image": {"path": "late.png"}}).to_string();
    bench.send("p2", Some(without_caption.as_bytes())).await;
    worker.wait_for(2).await;
    assert_eq!(counts(&worker), (1, 2, 1), "both are dead letters, and the one is found");
    assert!(bench.stored("p2").await.is_none(), "there is nothing to find it by");
    assert!(is_pending(&stored(&feed, "p1").await));

    let search = query_support::Worker::over(&bench.config, bench.store.clone()).await;
    let ask = async |target: &str| search.ask(&json!({"topic": "红苹果", "target": target, "fold": false})).await.1;
    assert_eq!(ask("image").await["hits"], json!([]));
    for target in ["caption", "both"] {
        let answer = ask(target).await;
        assert_eq!(post_ids(&answer), ["p1"], "{target}");
        let hit = &answer["hits"][0];
        assert_eq!((&hit["image_pending"], &hit["matched"]), (&json!(true), &json!("caption")), "{answer}");
    }

    feed.mend();
    assert_eq!(replay(&feed).await, 2);
    worker.wait_for(4).await;
    assert_eq!(counts(&worker), (3, 2, 1));
    let (whole, other) = (stored(&feed, "p1").await, stored(&feed, "p2").await);
    assert!(!whole.payload.contains_key("image_pending"), "{whole:?}");
    assert_eq!(whole.payload["source"]["offset"], 0, "ordered where it lay first: {:?}", whole.payload);
    let vectors = [&whole, &other].map(|point| point.image.clone().expect("a vector of the picture"));
    assert!(vectors[0].iter().zip(&vectors[1]).all(|(left, right)| (left - right).abs() < 1e-5), "one picture");
    let answer = ask("image").await;
    assert_eq!(post_ids(&answer).len(), 2, "{answer}");
    assert!(answer["hits"].as_array().expect("hits").iter().all(|hit| hit["image_pending"] == false), "{answer}");

    // The picture goes again, and the same letters are sent again: what is whole stays so, and needs no letter.
    std::fs::remove_file(feed.folder.path().join("late.png")).expect("removes");
    assert_eq!(replay(&feed).await, 2);
    worker.wait_for(6).await;
    assert_same(&stored(&feed, "p1").await, &whole);
    assert_same(&stored(&feed, "p2").await, &other);
    assert_eq!((counts(&worker), worker.metrics.posts_ignored.get()), ((3, 3, 1), 1));
    assert_eq!(bench.store.count().await.expect("counts"), 2);
    worker.stop().await;
}

async fn edits_and_deletions_in_between_stand_whatever_a_replay_brings(store: Bench) {
    let feed = feed(store).await;
    let (bench, worker) = (&feed.bench, feed.bench.work());
    let send_whole = async |id: &str, caption: &str| {
        let image = json!({"base64": STANDARD.encode(picture())});
        let post = json!({"post_id": id, "caption": caption, "image": image}).to_string();
        bench.send(id, Some(post.as_bytes())).await;
    };
    for id in ["picture", "text", "gone"] {
        feed.post_with_picture(id, "older").await;
    }
    send_whole("lacks", "older").await;
    worker.wait_for(4).await;
    send_whole("picture", "newer").await;
    bench.post("text", "newer").await;
    bench.send("gone", None).await;
    feed.post_with_picture("lacks", "newer").await;
    worker.wait_for(8).await;
    let check = async || {
        let points = ["picture", "text", "lacks"].map(|id| stored(&feed, id));
        let [picture, text, lacks] = futures::future::join_all(points).await.try_into().expect("three");
        for point in [&picture, &text, &lacks] {
            assert_eq!(point.payload["caption"], "newer", "{point:?}");
        }
        assert!(picture.image.is_some() && !is_pending(&picture), "{picture:?}");
        assert!(text.image.is_none() && !is_pending(&text), "{text:?}");
        assert_eq!(feed.payload("gone").await["deleted"], true);
        assert_eq!(bench.store.count().await.expect("counts"), 3);
        lacks
    };
    assert!(is_pending(&check().await), "the picture of the older post is not this one's");
    feed.mend();
    assert_eq!(replay(&feed).await, 4);
    worker.wait_for(12).await;
    let lacks = check().await;
    assert!(lacks.image.is_some() && !is_pending(&lacks), "{lacks:?}");
    assert_eq!(worker.metrics.posts_ignored.get(), 3);
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_is_given_up_leaves_the_caption_until_it_is_back() {
    let bench = ingest_support::Bench::new(&[
        BY_CAPTION,
        "images.retry_first=5ms",
        "images.retry_max=20ms",
        "images.give_up_after=100ms",
        "images.allow_networks=[\"127.0.0.0/8\"]",
    ])
    .await;
    let worker = bench.work();
    let dead_address = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let good = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let good_address = good.local_addr().expect("an address");
    let serve = |listener| {
        let host = Router::new().route("/a.png", get(async || picture()));
        tokio::spawn(async move { axum::serve(listener, host).await })
    };
    let serving = serve(good);
    let send = async |id: &str, address| {
        let image = json!({"url": format!("http://{address}/a.png")});
        let post = json!({"post_id": id, "caption": "红苹果", "image": image}).to_string();
        bench.send(id, Some(post.as_bytes())).await;
    };
    send("p1", dead_address).await;
    let retried = worker.metrics.posts_retried.with_label_values(&["image_host"]);
    wait_until("more time than it is given", async || retried.get() >= 20).await;
    assert!(bench.stored("p1").await.is_none(), "while nothing can be reached, it is only late");
    send("p2", good_address).await;
    worker.wait_for(2).await;
    assert_eq!(counts(&worker), (2, 1, 1));
    assert!(is_pending(&bench.stored("p1").await.expect("is there")));

    let listener = TcpListener::bind(dead_address).await.expect("the port is still free");
    let back = serve(listener);
    assert_eq!(told(&bench.config.kafka, &["replay"]).await["sent"], 1);
    worker.wait_for(3).await;
    let whole = bench.stored("p1").await.expect("is there");
    assert!(whole.image.is_some() && !is_pending(&whole), "{whole:?}");
    worker.stop().await;
    serving.abort();
    back.abort();
}

/// A letter that its topic does not take stands for a broker that is gone between the two writes.
#[tokio::test(flavor = "multi_thread")]
async fn a_stop_between_the_caption_and_its_dead_letter_loses_neither_and_doubles_nothing() {
    let settings = [
        "kafka.properties.message.max.bytes=3000",
        "ingest.drain_timeout=100ms",
        "query.timeout=1s",
        // The embedded broker lets the next member of a group wait for it.
        "kafka.properties.session.timeout.ms=6000",
    ];
    let mut feed = feed(Bench(settings.map(str::to_owned).into())).await;
    feed.bench.producer = Producer::new(&config(&feed.bench.broker.bootstrap())).expect("a producer");
    let worker = feed.bench.work();
    feed.post_with_picture("p1", &"字".repeat(2_000)).await;
    wait_until("the letter to be refused", async || worker.metrics.dead_letters_stuck.get() == 1).await;
    let before = stored(&feed, "p1").await;
    assert!(is_pending(&before));
    assert_eq!((counts(&worker), worker.settled()), ((1, 0, 1), 0), "it is not settled before its letter is");
    worker.stop().await;
    assert_eq!(told(feed.kafka(), &["list"]).await["letters"], 0);

    feed.bench.config.kafka.properties.remove("message.max.bytes");
    let worker = feed.bench.work();
    worker.wait_for(1).await;
    assert_eq!(counts(&worker), (1, 1, 1), "it came again");
    worker.stop().await;
    assert_same(&stored(&feed, "p1").await, &before);
    assert_eq!(told(feed.kafka(), &["list"]).await["letters"], 1);

    let worker = feed.bench.work();
    feed.bench.post("p2", "next").await;
    worker.wait_for(1).await;
    assert_eq!(worker.metrics.posts_consumed.get(), 1, "what has its letter does not come again");
    assert_eq!(feed.bench.store.count().await.expect("counts"), 2);
    worker.stop().await;
}
