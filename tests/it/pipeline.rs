//! The ingest pipe in this process: embedded broker, real small model, embedded store.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use feedlens::config::{Config, Overrides};
use feedlens::encode::encoder::Encoder;
use feedlens::error::{Fault, Outage};
use feedlens::ingest::{self, IngestParts};
use feedlens::kafka::{EmbeddedBroker, Envelope, Producer};
use feedlens::metrics::Metrics;
use feedlens::post::point_id;
use feedlens::store::{self, Hit, ModelStamp, SharedStore, StoredPoint, VectorQuery, VectorStore, Write};
use serde_json::json;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::binary::root;
use crate::kafka_support::{ROOMY, receive_many, start, wait_until};

const PARTITIONS: i32 = 2;

/// A broker and a store that outlive the workers that a test starts on them.
struct Bench {
    _broker: EmbeddedBroker,
    _folder: tempfile::TempDir,
    config: Config,
    producer: Producer,
    encoder: Encoder,
    store: SharedStore,
}

/// A running ingest worker.
struct Worker {
    metrics: Arc<Metrics>,
    stop: CancellationToken,
    running: JoinHandle<anyhow::Result<()>>,
}

impl Bench {
    async fn new(set: &[&str]) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let broker = EmbeddedBroker::start(&[("posts", PARTITIONS), ("posts.dlq", PARTITIONS)]).expect("a broker");
        let mut all = vec![
            "store.kind=edge".to_owned(),
            format!("store.edge.dir={}", folder.path().join("store").display()),
            format!("kafka.brokers={}", broker.bootstrap()),
            "kafka.commit_interval=100ms".to_owned(),
            format!("model.dir={}", root().join("models/small").display()),
        ];
        all.extend(set.iter().map(ToString::to_string));
        let config = Config::load(&[], &Overrides { files: vec![], set: all }).expect("loads");
        let encoder =
            Encoder::start(&config.model, &config.encoder, &Arc::new(Metrics::new())).expect("the small model");
        let stamp = ModelStamp { model: encoder.bundle.id.clone(), dimension: encoder.bundle.dimension };
        let store = store::open(&config.store, &stamp, &Metrics::new()).await.expect("opens");
        let producer = Producer::new(&config.kafka).expect("a producer");
        Self { _broker: broker, _folder: folder, config, producer, encoder, store }
    }

    fn work(&self) -> Worker {
        self.work_with(self.store.clone())
    }

    fn work_with(&self, store: SharedStore) -> Worker {
        let (metrics, stop) = (Arc::new(Metrics::new()), CancellationToken::new());
        let parts = IngestParts { encoder: self.encoder.clone(), store, metrics: metrics.clone() };
        let (config, token) = (self.config.clone(), stop.clone());
        let running = tokio::spawn(async move { ingest::run(&config, parts, token).await });
        Worker { metrics, stop, running }
    }

    async fn send(&self, key: &str, value: Option<&[u8]>) {
        self.producer.send("posts", Some(key.as_bytes()), value, &[]).await.expect("acknowledged");
    }

    async fn post(&self, id: &str, caption: &str) {
        self.send(id, Some(json!({"post_id": id, "caption": caption}).to_string().as_bytes())).await;
    }

    async fn stored(&self, id: &str) -> Option<StoredPoint> {
        self.store.get(&[point_id(id)]).await.expect("reads").pop()
    }

    /// Dead letters by reason, each with the bytes as they came.
    async fn dead_letters(&self, count: usize) -> BTreeMap<String, Vec<u8>> {
        let mut kafka = self.config.kafka.clone();
        kafka.posts_topic = kafka.dead_letter_topic.clone();
        let (source, mut envelopes, _) = start(&kafka, ROOMY).await;
        let letters = receive_many(&mut envelopes, count).await;
        let reason =
            |letter: &Envelope| String::from_utf8(letter.header("feedlens-reason").expect("a reason").to_vec());
        let found = letters
            .iter()
            .map(|letter| (reason(letter).expect("UTF-8"), letter.payload.clone().unwrap_or_default().to_vec()))
            .collect();
        drop(letters);
        source.stop(std::time::Duration::ZERO).await.expect("stops");
        found
    }
}

impl Worker {
    fn settled(&self) -> u64 {
        self.metrics.posts_indexed.get()
            + self.metrics.posts_deleted.get()
            + ingest::progress::dead_lettered(&self.metrics)
    }

    async fn wait_for(&self, settled: u64) {
        wait_until(&format!("{settled} posts settled"), async || {
            assert!(!self.running.is_finished(), "ingest ended early");
            self.settled() >= settled
        })
        .await;
        assert_eq!(self.settled(), settled, "more was settled than was sent");
    }

    async fn stop(self) {
        self.stop.cancel();
        self.running.await.expect("no panic").expect("ends well");
    }
}

fn picture() -> Vec<u8> {
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

/// The real store behind a line that is cut for the first so many writes.
struct CutOff {
    store: SharedStore,
    failures_left: AtomicUsize,
}

#[async_trait]
impl VectorStore for CutOff {
    async fn write(&self, writes: Vec<Write>) -> Result<(), Fault> {
        let cut = self.failures_left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
        if cut.is_ok() {
            return Err(Fault::retry(Outage::Store, "the line is cut"));
        }
        self.store.write(writes).await
    }

    async fn search(&self, query: VectorQuery) -> Result<Vec<Hit>, Fault> {
        self.store.search(query).await
    }

    async fn get(&self, ids: &[Uuid]) -> Result<Vec<StoredPoint>, Fault> {
        self.store.get(ids).await
    }

    async fn count(&self) -> Result<u64, Fault> {
        self.store.count().await
    }

    async fn ready(&self) -> Result<(), Fault> {
        self.store.ready().await
    }

    async fn close(&self) -> Result<(), Fault> {
        self.store.close().await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_of_the_store_only_delays() {
    let bench = Bench::new(&["ingest.retry_first=5ms", "ingest.retry_max=20ms"]).await;
    let cut_off = CutOff { store: bench.store.clone(), failures_left: AtomicUsize::new(12) };
    let worker = bench.work_with(Arc::new(cut_off));
    for index in 0..50 {
        bench.post(&format!("p{index}"), "海边的日落").await;
    }
    worker.wait_for(50).await;
    assert_eq!(bench.store.count().await.expect("counts"), 50);
    assert_eq!(ingest::progress::dead_lettered(&worker.metrics), 0, "nothing is dead-lettered for an outage");
    assert!(worker.metrics.posts_retried.with_label_values(&["store"]).get() >= 12);
    worker.stop().await;
}
