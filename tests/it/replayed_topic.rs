//! A topic that is replayed, in another order and with other batches, changes nothing.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use feedlens::kafka::{Envelope, Source, Subscription};
use feedlens::metrics::Metrics;
use feedlens::post::point_id;
use feedlens::store::StoredPoint;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use serde_json::json;

use crate::ingest_support::Bench;
use crate::kafka_support::{ROOMY, receive_many, subscription};
use crate::pipeline::picture;

const POSTS: u64 = 30;

/// Edits by position and by version, late older versions, deletions with and without a version, the same bytes twice.
async fn feed(bench: &Bench) -> u64 {
    let mut random = StdRng::seed_from_u64(7);
    let mut sent = 0;
    for round in 0..6_u64 {
        for post in 0..POSTS {
            let id = format!("p{post}");
            let mut body = json!({"post_id": id, "caption": format!("红苹果 {round}")});
            if post % 3 == 0 {
                body["version"] = json!(if random.random_bool(0.3) { 1 } else { round + 1 });
            }
            if random.random_bool(0.2) {
                body["image"] = json!({"base64": STANDARD.encode(picture())});
            }
            let body = body.to_string().into_bytes();
            let is_deletion = random.random_bool(0.15);
            let version = (post % 3 == 0 && random.random_bool(0.5)).then(|| round + 1);
            let headers = version.map(|version| ("version".to_owned(), Some(version.to_string().into_bytes())));
            for _ in 0..if random.random_bool(0.1) { 2 } else { 1 } {
                let (value, headers) =
                    if is_deletion { (None, headers.as_slice()) } else { (Some(&body[..]), &[][..]) };
                bench.producer.send("posts", Some(id.as_bytes()), value, headers).await.expect("acknowledged");
                sent += 1;
            }
        }
    }
    sent
}

/// Everything that the store has of each post, to the bit.
async fn state(bench: &Bench) -> Vec<String> {
    let ids = (0..POSTS).map(|post| point_id(&format!("p{post}"))).collect::<Vec<_>>();
    let mut points = bench.store.get(&ids).await.expect("reads");
    points.sort_by_key(|point| point.id);
    let bits =
        |vector: Option<Vec<f32>>| vector.map(|vector| vector.iter().map(|value| value.to_bits()).collect::<Vec<_>>());
    let told = |StoredPoint { id, payload, image, caption }| {
        format!("{id} {} {:?} {:?}", json!(payload), bits(image), bits(caption))
    };
    points.into_iter().map(told).collect()
}

async fn topic(bench: &Bench, messages: u64) -> Vec<Envelope> {
    let subscription = Subscription { group: "reader".to_owned(), ..subscription("posts") };
    let started =
        Source::start(&bench.config.kafka, subscription, ROOMY, Duration::ZERO, Arc::new(Metrics::new())).await;
    let (source, mut envelopes) = started.expect("starts");
    let all = receive_many(&mut envelopes, messages as usize).await;
    source.stop(Duration::ZERO).await.expect("stops");
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shuffled_replay_of_a_topic_leaves_every_bit_of_the_store() {
    let bench = Bench::new(&[]).await;
    let worker = bench.work();
    let sent = feed(&bench).await;
    worker.wait_for(sent).await;
    let before = state(&bench).await;
    let deleted = before.iter().filter(|point| point.contains(r#""deleted":true"#)).count();
    assert!(before.len() == POSTS as usize && (1..20).contains(&deleted), "{deleted} of {} are deleted", before.len());

    let mut all = topic(&bench, sent).await;
    for seed in 1..=3 {
        all.shuffle(&mut StdRng::seed_from_u64(seed));
        for envelope in &all {
            // As `feedlens dlq replay` sends a message again: with the place where it lay first.
            let origin = serde_json::to_vec(&envelope.origin().expect("its own place")).expect("JSON");
            let mut headers = envelope.headers.clone();
            headers.push(("feedlens-origin".to_owned(), Some(origin)));
            let (key, value) = (envelope.key.as_deref(), envelope.payload.as_deref());
            bench.producer.send("posts", key, value, &headers).await.expect("acknowledged");
        }
        worker.wait_for((seed + 1) * sent).await;
        for (before, after) in before.iter().zip(state(&bench).await) {
            assert_eq!(*before, after, "seed {seed}");
        }
    }
    worker.stop().await;
}
