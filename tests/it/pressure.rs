//! Feeds that press: posts as large as they may be, and as many as come. The real worker's memory stays within what its
//! budgets allow.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use feedlens::kafka::{EmbeddedBroker, Producer};
use serde_json::json;

use crate::kafka_support::{config, wait_until};
use crate::memory::Memory;
use crate::picture_memory::noise;
use crate::real_kafka::{create_topic, real_broker};
use crate::running::Running;
use crate::store_server;

const MIB: u64 = 1 << 20;

const POSTS: u64 = 100_000;

/// 100,000 posts of a word or two, all in Kafka before the worker starts; how many of them it is given the time to index.
/// Returns the most that it had in memory at any thousand.
async fn tiny_posts(settings: &[&str], indexed: u64) -> Memory {
    // Four megabytes a partition: the embedded broker keeps five.
    let broker = EmbeddedBroker::start(&[("posts", 4), ("posts.dlq", 1)]).expect("a broker");
    let producer = Producer::new(&config(&broker.bootstrap())).expect("a producer");
    for chunk in (0..POSTS).collect::<Vec<_>>().chunks(10_000) {
        let sends = chunk.iter().map(|number| {
            let (id, producer) = (format!("p{number}"), &producer);
            let post = json!({"post_id": id, "caption": format!("猫 {number}")}).to_string();
            async move { producer.send("posts", Some(id.as_bytes()), Some(post.as_bytes()), &[]).await }
        });
        for sent in futures::future::join_all(sends).await {
            sent.expect("acknowledged");
        }
    }
    let running = Running::ingest(&broker.bootstrap(), settings);
    let mut memory = Memory::of(running.id());
    for thousand in 1..=indexed / 1_000 {
        wait_until("a thousand more", async || running.settled() >= thousand * 1_000).await;
        assert!(running.metric("feedlens_inflight_posts") <= 512.0);
        let now = Memory::of(running.id());
        memory = Memory { own: memory.own.max(now.own), peak: now.peak };
    }
    println!("peak: {} MiB, own: {} MiB", memory.peak / MIB, memory.own / MIB);
    running.terminate();
    let (code, log) = running.end();
    assert_eq!(code, Some(0), "{log}");
    memory
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_thousand_tiny_posts_that_wait_take_no_memory() {
    let memory = tiny_posts(&[], 10_000).await;
    assert!(memory.peak < 250 * MIB, "{} MiB", memory.peak / MIB);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "minutes"]
async fn a_hundred_thousand_tiny_posts_go_into_the_embedded_store() {
    let memory = tiny_posts(&[], POSTS).await;
    // The store's files are mapped into memory, and the system's to drop.
    assert!(memory.own < 400 * MIB, "{} MiB", memory.own / MIB);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "minutes"]
async fn a_hundred_thousand_tiny_posts_go_to_a_server() {
    let Some((url, api_key)) = store_server::shared() else { return };
    let settings = [
        "store.kind=qdrant".to_owned(),
        format!("store.alias=pressure_{}", std::process::id()),
        format!("store.qdrant.url={url}"),
        format!("store.qdrant.api_key={}", api_key.expose()),
    ];
    let memory = tiny_posts(&settings.each_ref().map(String::as_str), POSTS).await;
    assert!(memory.peak < 250 * MIB, "{} MiB", memory.peak / MIB);
}

/// 400 MB of messages of 13 MB, each with a picture of 9.6 MB in base64, against budgets of 120 MB. On the real Kafka: the
/// embedded broker keeps 5 MiB a partition.
#[tokio::test(flavor = "multi_thread")]
async fn large_pictures_in_the_messages_stay_within_their_budgets() {
    const POSTS: u64 = 30;
    let Some(kafka) = real_broker("large-pictures") else { return };
    let limit = [("max.message.bytes", "31457280")];
    for topic in [&kafka.posts_topic, &kafka.dead_letter_topic] {
        create_topic(&kafka, topic, 2, &limit).await;
    }
    let producer = Producer::new(&kafka).expect("a producer");
    let base64 = BASE64_STANDARD.encode(noise());
    for number in 0..POSTS {
        let id = format!("p{number}");
        let post = json!({"post_id": id, "image": {"base64": base64}}).to_string();
        producer.send(&kafka.posts_topic, Some(id.as_bytes()), Some(post.as_bytes()), &[]).await.expect("acknowledged");
    }
    let running = Running::ingest(
        &kafka.brokers,
        &[
            &format!("kafka.posts_topic={}", kafka.posts_topic),
            &format!("kafka.dead_letter_topic={}", kafka.dead_letter_topic),
            &format!("kafka.group={}", kafka.posts_topic),
            "ingest.max_inflight_bytes=40000000",
            "images.max_inflight_bytes=40000000",
            "images.max_decode_bytes=40000000",
        ],
    );
    // The warm-up message of the topic is no post.
    for settled in 1..=POSTS + 1 {
        wait_until("one more post", async || running.settled() >= settled).await;
    }
    assert_eq!(running.metric("feedlens_posts_indexed_total"), POSTS as f64);
    let memory = Memory::of(running.id());
    println!("peak: {} MiB, own: {} MiB", memory.peak / MIB, memory.own / MIB);
    assert!(memory.peak < 400 * MIB, "{} MiB", memory.peak / MIB);
    running.terminate();
    let (code, log) = running.end();
    assert_eq!(code, Some(0), "{log}");
}
