//! The memory that pictures take in the real ingest worker, however large they are and however many come at a time.

use std::io::Cursor;

use axum::Router;
use axum::routing::get;
use bytes::Bytes;
use feedlens::kafka::{EmbeddedBroker, Producer};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::json;
use tokio::net::TcpListener;

use crate::kafka_support::{config, wait_until};
use crate::running::Running;

/// Pictures of 9.6 MB as they come and in memory: 576 MB in all.
const POSTS: usize = 60;
const SIDE: u32 = 1_790;

/// A PNG that cannot be compressed.
pub fn noise() -> Vec<u8> {
    let mut random = StdRng::seed_from_u64(1);
    let pixels = (0..SIDE * SIDE * 3).map(|_| random.random()).collect::<Vec<u8>>();
    let noise = image::RgbImage::from_raw(SIDE, SIDE, pixels).expect("fills the picture");
    let mut png = Cursor::new(Vec::new());
    noise.write_to(&mut png, image::ImageFormat::Png).expect("encodes");
    let png = png.into_inner();
    assert!(png.len() > 9_000_000, "{}", png.len());
    png
}

/// With 40 MB for pictures as they came and 40 MB for decoding; the model, Kafka's client, the store and what the
/// allocator keeps come on top.
#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread")]
async fn large_pictures_by_url_stay_within_their_budgets() {
    let png = Bytes::from(noise());
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let host = Router::new().route("/{name}", get(async move || png.clone()));
    tokio::spawn(async move { axum::serve(listener, host).await });

    let broker = EmbeddedBroker::start(&[("posts", 2), ("posts.dlq", 1)]).expect("a broker");
    let budgets = ["images.max_inflight_bytes=40000000", "images.max_decode_bytes=40000000"];
    let running = Running::ingest(&broker.bootstrap(), &budgets);
    let producer = Producer::new(&config(&broker.bootstrap())).expect("a producer");
    for number in 0..POSTS {
        let id = format!("p{number}");
        let post = json!({"post_id": id, "image": {"url": format!("http://{address}/{number}.png")}}).to_string();
        producer.send("posts", Some(id.as_bytes()), Some(post.as_bytes()), &[]).await.expect("acknowledged");
    }
    for settled in 1..=POSTS as u64 {
        wait_until("one more post", async || running.settled() >= settled).await;
    }
    assert_eq!(running.metric("feedlens_posts_indexed_total"), POSTS as f64);
    let status = std::fs::read_to_string(format!("/proc/{}/status", running.id())).expect("the worker runs");
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB"));
    let peak = peak.and_then(|peak| peak.parse::<u64>().ok()).expect("a number") / 1024;
    println!("peak: {peak} MiB");
    assert!(peak < 450, "{peak} MiB");
    running.terminate();
    let (code, log) = running.end();
    assert_eq!(code, Some(0), "{log}");
}
