//! Benches and posts for the tests of the stores.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use feedlens::config::Secret;
use feedlens::error::Fault;
use feedlens::metrics::Metrics;
use feedlens::post::point_id;
use feedlens::store::{
    EdgeConfig, Filter, HitParts, ModelStamp, Order, Origin, Point, QdrantConfig, SharedStore, StoreConfig, StoreKind,
    Tombstone, VectorName, VectorQuery, Write,
};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Map, Value, json};

pub const DIMENSION: usize = 8;

/// A place for a store, empty at first.
pub struct Bench {
    pub config: StoreConfig,
    pub stamp: ModelStamp,
    _folder: tempfile::TempDir,
}

impl Bench {
    pub fn edge() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let config = StoreConfig {
            kind: StoreKind::Edge,
            alias: "posts".to_owned(),
            search_ef: 100,
            delete_marker_ttl: Duration::from_secs(3600),
            qdrant: qdrant_config("http://localhost:6334"),
            edge: EdgeConfig {
                dir: folder.path().join("store"),
                flush_interval: Duration::from_millis(20),
                optimize_after: 10_000,
                min_free_bytes: 0,
            },
        };
        Self { config, stamp: stamp("small"), _folder: folder }
    }

    /// An alias of its own on the server of the tests; `None` where there is no server.
    pub fn server() -> Option<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let (url, api_key) = tokio::task::block_in_place(crate::store_server::shared)?;
        let mut bench = Self::edge();
        bench.config.kind = StoreKind::Qdrant;
        bench.config.qdrant = QdrantConfig { api_key, ..qdrant_config(&url) };
        bench.config.alias = format!("test{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        Some(bench)
    }

    pub async fn open(&self) -> SharedStore {
        feedlens::store::open(&self.config, &self.stamp, &Metrics::new()).await.unwrap()
    }

    pub async fn open_error(&self) -> String {
        match feedlens::store::open(&self.config, &self.stamp, &Metrics::new()).await {
            Ok(_) => panic!("the store opened"),
            Err(Fault::Fatal(detail)) => {
                assert!(!detail.contains('\n') && detail.len() < 400, "not one clear sentence: {detail}");
                detail
            }
            Err(other) => panic!("not fatal: {other:?}"),
        }
    }
}

pub fn stamp(model: &str) -> ModelStamp {
    ModelStamp { model: model.to_owned(), dimension: DIMENSION }
}

fn qdrant_config(url: &str) -> QdrantConfig {
    QdrantConfig {
        url: url.to_owned(),
        api_key: Secret::default(),
        // The machine may be busy; what these bound is tested with bounds of its own.
        timeout: Duration::from_secs(30),
        connect_timeout: Duration::from_secs(15),
        shards: 1,
        replicas: 1,
        vectors_on_disk: false,
        payload_on_disk: true,
    }
}

/// A unit vector that depends on the seed.
pub fn vector(seed: u64) -> Vec<f32> {
    vector_of(seed, DIMENSION)
}

/// The same, of any dimension.
pub fn vector_of(seed: u64, dimension: usize) -> Vec<f32> {
    let mut random = StdRng::seed_from_u64(seed);
    let values = (0..dimension).map(|_| random.random_range(-1.0f32..1.0)).collect::<Vec<_>>();
    let norm = values.iter().map(|value| value * value).sum::<f32>().sqrt();
    values.into_iter().map(|value| value / norm).collect()
}

pub fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(object) => object,
        other => panic!("not an object: {other}"),
    }
}

/// A post with both vectors, which depend on its id and version.
pub fn post(id: &str, version: u64) -> Point {
    let seed = seed(id, version);
    Point {
        id: point_id(id),
        order: order(version),
        image: Some(vector(seed)),
        caption: Some(vector(seed + 1)),
        image_pending: false,
        payload: object(json!({"post_id": id, "caption": format!("{id} at {version}")})),
    }
}

/// A version, at the offset of the same number.
pub fn order(version: u64) -> Order {
    Order { version: Some(version), source: source(0, version as i64) }
}

pub fn source(partition: i32, offset: i64) -> Origin {
    Origin { topic: "posts".to_owned(), partition, offset, timestamp: offset }
}

fn seed(id: &str, version: u64) -> u64 {
    id.bytes().fold(version, |seed, byte| seed.wrapping_mul(131).wrapping_add(u64::from(byte))) % (1 << 40) * 2
}

pub fn upsert(id: &str, version: u64) -> Write {
    Write::Upsert(post(id, version))
}

pub fn delete(id: &str, version: u64) -> Write {
    Write::Delete(Tombstone { id: point_id(id), order: order(version), post_id: id.to_owned(), deleted_at: time(0) })
}

pub fn time(days: i64) -> DateTime<Utc> {
    DateTime::parse_from_rfc3339("2026-11-20T08:30:00Z").unwrap().to_utc() + TimeDelta::days(days)
}

pub async fn found(store: &SharedStore, vector: Vec<f32>, using: VectorName, filter: Filter) -> Vec<(String, f32)> {
    let hits =
        store.search(VectorQuery { vector, using, filter, limit: 100, with: HitParts::default() }).await.unwrap();
    hits.into_iter().map(|hit| (hit.payload["post_id"].as_str().unwrap().to_owned(), hit.score)).collect()
}

/// The stored version, and whether it is a marker.
pub async fn stored(store: &SharedStore, id: &str) -> Option<(u64, bool)> {
    let points = store.get(&[point_id(id)]).await.unwrap();
    assert!(points.len() <= 1, "{points:?}");
    let point = points.first()?;
    assert_eq!(point.payload["post_id"], id);
    Some((point.payload["version"].as_u64().unwrap(), point.payload.get("deleted") == Some(&json!(true))))
}

/// Runs the same cases against the embedded store and, where there is one, a Qdrant server.
macro_rules! on_each_store {
    ($($case:ident),* $(,)?) => {
        mod edge {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $case() {
                super::$case(super::Bench::edge()).await;
            })*
        }

        mod server {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $case() {
                if let Some(bench) = super::Bench::server() {
                    super::$case(bench).await;
                }
            })*
        }
    };
}
pub(crate) use on_each_store;
