//! The ingest pipe in this process: embedded broker, real small model, embedded store.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;

use crate::binary::root;
use crate::ingest_support::Bench;
use crate::kafka_support::wait_until;

/// A red apple.
pub fn picture() -> Vec<u8> {
    std::fs::read(root().join("demo/images/1f34e.png")).expect("a picture of the demo")
}

#[tokio::test(flavor = "multi_thread")]
async fn edits_and_deletions_leave_each_post_in_its_latest_version() {
    let bench = Bench::new(&[]).await;
    let worker = bench.work();
    for index in 0..60 {
        bench.post(&format!("p{index}"), "first").await;
    }
    for index in 0..30 {
        bench.post(&format!("p{index}"), "second").await;
    }
    for index in 0..10 {
        bench.send(&format!("p{index}"), None).await;
    }
    worker.wait_for(100).await;
    assert_eq!(bench.store.count().await.expect("counts"), 50);
    for (id, caption) in [("p10", "second"), ("p29", "second"), ("p30", "first"), ("p59", "first")] {
        let point = bench.stored(id).await.expect("is there");
        assert_eq!(point.payload["caption"], caption, "{id}");
        let vector = bench.encoder.tokenizer.encode(caption).expect("tokenises");
        let expected =
            bench.encoder.handle.text(vector, feedlens::encode::worker::Priority::Query).await.expect("encodes");
        let difference = expected.iter().zip(point.caption.expect("a vector")).map(|(a, b)| (a - b).abs());
        assert!(difference.fold(0.0, f32::max) < 1e-5, "{id} has another text's vector");
    }
    assert_eq!(bench.stored("p3").await.expect("a marker").payload["deleted"], true);
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_kind_of_bad_post_is_a_dead_letter_byte_for_byte_and_the_good_ones_go_on() {
    let bench = Bench::new(&["posts.max_bytes=2000"]).await;
    let post = |rest: serde_json::Value| {
        let mut post = json!({"post_id": "x", "caption": "c"});
        post.as_object_mut().expect("an object").extend(rest.as_object().expect("an object").clone());
        post.to_string().into_bytes()
    };
    let truncated = STANDARD.encode(&picture()[..100]);
    let bad: Vec<(&str, Vec<u8>)> = vec![
        ("bad_json", b"{\"post_id\": \"x\", \xff".to_vec()),
        ("bad_id", b"{\"post_id\": \"another\", \"caption\": \"c\"}".to_vec()),
        ("empty", b"{\"post_id\": \"x\"}".to_vec()),
        ("bad_field", post(json!({"tags": 7}))),
        ("too_large", post(json!({"caption": "c".repeat(2000)}))),
        ("bad_image", post(json!({"image": {"base64": truncated}}))),
        ("forbidden_source", post(json!({"image": {"url": "http://127.0.0.1:1/a.png"}}))),
    ];
    let worker = bench.work();
    for (index, (_, bytes)) in bad.iter().enumerate() {
        bench.send("x", Some(bytes)).await;
        bench.post(&format!("good{index}"), "红苹果").await;
    }
    let count = bad.len() as u64;
    worker.wait_for(2 * count).await;
    assert_eq!(worker.metrics.posts_indexed.get(), count);
    assert_eq!(bench.store.count().await.expect("counts"), count);
    let letters = bench.dead_letters(bad.len()).await;
    for (reason, bytes) in bad {
        assert_eq!(letters.get(reason), Some(&bytes), "{reason}");
        assert_eq!(worker.metrics.posts_dead_lettered.with_label_values(&[reason]).get(), 1, "{reason}");
    }
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_worker_has_committed_all_and_the_next_one_starts_there() {
    let bench = Bench::new(&[]).await;
    let worker = bench.work();
    for index in 0..200 {
        bench.post(&format!("p{index}"), "before").await;
    }
    wait_until("the first posts", async || worker.settled() > 0).await;
    let first = worker.metrics.clone();
    worker.stop().await;
    let taken = first.posts_consumed.get();
    assert_eq!(first.posts_indexed.get(), taken, "what was taken was finished");
    let worker = bench.work();
    worker.wait_for(200 - taken).await;
    bench.post("last", "after").await;
    worker.wait_for(200 - taken + 1).await;
    assert_eq!(taken + worker.metrics.posts_consumed.get(), 201, "nothing came twice");
    assert_eq!(bench.store.count().await.expect("counts"), 201);
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn picture_and_caption_of_one_picture_meet_and_its_thumbnail_is_kept() {
    let bench = Bench::new(&[]).await;
    let worker = bench.work();
    let post = json!({"post_id": "apple", "caption": "红苹果", "image": {"base64": STANDARD.encode(picture())},
        "mood": "hungry"});
    bench.send("apple", Some(post.to_string().as_bytes())).await;
    worker.wait_for(1).await;
    let point = bench.stored("apple").await.expect("is there");
    let (image, caption) = (point.image.expect("a vector"), point.caption.expect("a vector"));
    let norm = |vector: &[f32]| vector.iter().map(|value| value * value).sum::<f32>().sqrt();
    assert!((norm(&image) - 1.0).abs() < 1e-5 && (norm(&caption) - 1.0).abs() < 1e-5, "vectors are normalised");
    let cosine: f32 = image.iter().zip(&caption).map(|(left, right)| left * right).sum();
    assert!(cosine > 0.3, "a red apple and its name are near: {cosine}");
    assert!(point.payload["thumbnail"].as_str().expect("a data URI").starts_with("data:image/"));
    assert_eq!(point.payload["extra"]["mood"], "hungry");
    assert_eq!(point.payload["source"]["topic"], "posts");
    assert_eq!(point.payload["model"], bench.encoder.bundle.id);
    worker.stop().await;
}
