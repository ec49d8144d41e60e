//! What tests of the ingest pipe share: broker, real small model and store of this process, and a worker on them.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use feedlens::config::{Config, Overrides};
use feedlens::encode::encoder::Encoder;
use feedlens::error::Fault;
use feedlens::ingest::progress::Progress;
use feedlens::ingest::{self, IngestParts, Role};
use feedlens::kafka::{EmbeddedBroker, Envelope, Producer};
use feedlens::metrics::Metrics;
use feedlens::post::point_id;
use feedlens::store::{self, Hit, ModelStamp, Outcome, SharedStore, StoredPoint, VectorQuery, VectorStore, Write};
use futures::FutureExt;
use futures::future::BoxFuture;
use serde_json::json;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::binary::root;
use crate::kafka_support::{ROOMY, receive_many, start, wait_until};

pub const PARTITIONS: i32 = 2;

/// A broker and a store that outlive the workers that a test starts on them.
pub struct Bench {
    pub broker: EmbeddedBroker,
    _folder: tempfile::TempDir,
    pub config: Config,
    pub producer: Producer,
    pub encoder: Encoder,
    pub store: SharedStore,
}

/// A running ingest worker.
pub struct Worker {
    pub metrics: Arc<Metrics>,
    pub progress: Progress,
    pub stop: CancellationToken,
    pub running: JoinHandle<anyhow::Result<()>>,
}

impl Bench {
    pub async fn new(set: &[&str]) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let broker = EmbeddedBroker::start(&[("posts", PARTITIONS), ("posts.dlq", PARTITIONS)]).expect("a broker");
        let mut all = vec![
            "store.kind=edge".to_owned(),
            format!("store.edge.dir={}", folder.path().join("store").display()),
            format!("kafka.brokers={}", broker.bootstrap()),
            "kafka.commit_interval=100ms".to_owned(),
            // As the other tests name a topic's group.
            "kafka.group=posts-group".to_owned(),
            format!("model.dir={}", root().join("models/small").display()),
        ];
        all.extend(set.iter().map(ToString::to_string));
        let config = Config::load(&[], &Overrides { files: vec![], set: all }).expect("loads");
        let encoder =
            Encoder::start(&config.model, &config.encoder, &Arc::new(Metrics::new())).expect("the small model");
        let stamp = ModelStamp { model: encoder.bundle.id.clone(), dimension: encoder.bundle.dimension };
        let store = store::open(&config.store, &stamp, &Metrics::new()).await.expect("opens");
        let producer = Producer::new(&config.kafka).expect("a producer");
        Self { broker, _folder: folder, config, producer, encoder, store }
    }

    pub fn work(&self) -> Worker {
        self.work_with(self.store.clone())
    }

    pub fn work_with(&self, store: SharedStore) -> Worker {
        let (metrics, stop) = (Arc::new(Metrics::new()), CancellationToken::new());
        let progress = Progress::default();
        let parts = IngestParts {
            encoder: self.encoder.clone(),
            store,
            metrics: metrics.clone(),
            consumer: Default::default(),
            progress: progress.clone(),
            role: Role::Live,
        };
        let (config, token) = (self.config.clone(), stop.clone());
        let running = tokio::spawn(async move { ingest::run(&config, parts, token).await });
        Worker { metrics, progress, stop, running }
    }

    pub async fn send(&self, key: &str, value: Option<&[u8]>) {
        self.producer.send("posts", Some(key.as_bytes()), value, &[]).await.expect("acknowledged");
    }

    pub async fn post(&self, id: &str, caption: &str) {
        self.send(id, Some(json!({"post_id": id, "caption": caption}).to_string().as_bytes())).await;
    }

    pub async fn stored(&self, id: &str) -> Option<StoredPoint> {
        self.store.get(&[point_id(id)]).await.expect("reads").pop()
    }

    /// Dead letters by reason, each with the bytes as they came.
    pub async fn dead_letters(&self, count: usize) -> BTreeMap<String, Vec<u8>> {
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
    pub fn settled(&self) -> u64 {
        ingest::progress::settled(&self.metrics)
    }

    pub async fn wait_for(&self, settled: u64) {
        wait_until(&format!("{settled} posts settled"), async || {
            assert!(!self.running.is_finished(), "ingest ended early");
            self.settled() >= settled
        })
        .await;
        assert_eq!(self.settled(), settled, "more was settled than was sent");
    }

    pub async fn stop(self) {
        self.stop.cancel();
        self.running.await.expect("no panic").expect("ends well");
    }
}

/// What [`Gate`] asks before each write.
pub type Rule = Box<dyn Fn(Vec<Uuid>) -> BoxFuture<'static, Result<(), Fault>> + Send + Sync>;

/// The real store behind a rule that may hold up, refuse or fail each write.
pub struct Gate {
    store: SharedStore,
    rule: Rule,
}

impl Gate {
    /// The rule gets the ids of the points of each write.
    pub fn before<F>(bench: &Bench, rule: impl Fn(Vec<Uuid>) -> F + Send + Sync + 'static) -> SharedStore
    where
        F: Future<Output = Result<(), Fault>> + Send + 'static,
    {
        Arc::new(Self { store: bench.store.clone(), rule: Box::new(move |ids| rule(ids).boxed()) })
    }
}

#[async_trait]
impl VectorStore for Gate {
    async fn write(&self, writes: Vec<Write>) -> Result<Vec<Outcome>, Fault> {
        let ids = writes.iter().map(|write| match write {
            Write::Upsert(point) => point.id,
            Write::Delete(tombstone) => tombstone.id,
        });
        (self.rule)(ids.collect()).await?;
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

    async fn purge(&self, before: DateTime<Utc>) -> Result<u64, Fault> {
        self.store.purge(before).await
    }

    async fn ready(&self) -> Result<(), Fault> {
        self.store.ready().await
    }

    async fn close(&self) -> Result<(), Fault> {
        self.store.close().await
    }
}
