//! What both stores promise: the same cases run against the embedded store and, where there is one, a Qdrant server
//! (`QDRANT_URL`, or a `qdrant` binary on the PATH, which is started here).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use feedlens::config::Secret;
use feedlens::error::{Fault, Reason};
use feedlens::metrics::Metrics;
use feedlens::post::point_id;
use feedlens::store::{
    EdgeConfig, Filter, ModelStamp, Point, QdrantConfig, SharedStore, StoreConfig, StoreKind, Tombstone, VectorName,
    VectorQuery, Write,
};
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
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
            qdrant: qdrant_config("http://localhost:6334"),
            edge: EdgeConfig {
                dir: folder.path().join("store"),
                flush_interval: Duration::from_millis(20),
                optimize_after: 10_000,
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
        timeout: Duration::from_secs(10),
        connect_timeout: Duration::from_secs(3),
        shards: 1,
        replicas: 1,
        vectors_on_disk: false,
        payload_on_disk: true,
    }
}

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

on_each_store!(
    search_finds_the_nearest_by_the_named_vector,
    filters_hold_one_by_one_and_together,
    post_with_one_vector_is_found_by_that_vector_only,
    vector_that_a_newer_version_lacks_is_gone,
    older_write_never_wins,
    same_write_again_changes_nothing,
    highest_version_of_a_batch_wins,
    deleted_post_is_hidden_and_stays_deleted,
    newer_version_brings_a_deleted_post_back,
    payload_comes_back_as_it_was,
    batch_beyond_every_request_size_is_written_whole,
    every_order_of_a_history_ends_in_the_same_state,
    writers_at_a_time_lose_nothing,
    reopening_keeps_everything,
    faulty_write_is_rejected_and_named,
    other_models_collection_is_refused,
    missing_points_are_left_out,
);

/// A unit vector that depends on the seed.
pub fn vector(seed: u64) -> Vec<f32> {
    let mut random = StdRng::seed_from_u64(seed);
    let values = (0..DIMENSION).map(|_| random.random_range(-1.0f32..1.0)).collect::<Vec<_>>();
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
        version,
        image: Some(vector(seed)),
        caption: Some(vector(seed + 1)),
        payload: object(json!({"post_id": id, "caption": format!("{id} at {version}")})),
    }
}

pub fn seed(id: &str, version: u64) -> u64 {
    id.bytes().fold(version, |seed, byte| seed.wrapping_mul(131).wrapping_add(u64::from(byte))) % (1 << 40) * 2
}

pub fn upsert(id: &str, version: u64) -> Write {
    Write::Upsert(post(id, version))
}

pub fn delete(id: &str, version: u64) -> Write {
    Write::Delete(Tombstone { id: point_id(id), version, post_id: id.to_owned(), deleted_at: time(0) })
}

fn time(days: i64) -> DateTime<Utc> {
    DateTime::parse_from_rfc3339("2026-11-20T08:30:00Z").unwrap().to_utc() + TimeDelta::days(days)
}

pub async fn found(store: &SharedStore, vector: Vec<f32>, using: VectorName, filter: Filter) -> Vec<(String, f32)> {
    let hits = store.search(VectorQuery { vector, using, filter, limit: 100 }).await.unwrap();
    hits.into_iter().map(|hit| (hit.payload["post_id"].as_str().unwrap().to_owned(), hit.score)).collect()
}

async fn found_ids(store: &SharedStore, filter: Filter) -> BTreeSet<String> {
    found(store, vector(1), VectorName::Image, filter).await.into_iter().map(|(id, _)| id).collect()
}

/// The stored version, and whether it is a marker.
pub async fn stored(store: &SharedStore, id: &str) -> Option<(u64, bool)> {
    let points = store.get(&[point_id(id)]).await.unwrap();
    assert!(points.len() <= 1, "{points:?}");
    let point = points.first()?;
    assert_eq!(point.payload["post_id"], id);
    Some((point.payload["version"].as_u64().unwrap(), point.payload.get("deleted") == Some(&json!(true))))
}

async fn search_finds_the_nearest_by_the_named_vector(bench: Bench) {
    let store = bench.open().await;
    let posts = (0..50).map(|number| post(&format!("p{number}"), 1)).collect::<Vec<_>>();
    store.write(posts.iter().cloned().map(Write::Upsert).collect()).await.unwrap();
    for using in [VectorName::Image, VectorName::Caption] {
        let of = |post: &Point| match using {
            VectorName::Image => post.image.clone().unwrap(),
            VectorName::Caption => post.caption.clone().unwrap(),
        };
        let query = vector(7);
        let cosine = |post: &Point| of(post).iter().zip(&query).map(|(a, b)| a * b).sum::<f32>();
        let mut expected = posts.iter().map(|post| (cosine(post), post)).collect::<Vec<_>>();
        expected.sort_by(|left, right| right.0.total_cmp(&left.0));
        let request = VectorQuery { vector: query.clone(), using, filter: Filter::default(), limit: 5 };
        let hits = store.search(request).await.unwrap();
        assert_eq!(hits.len(), 5);
        for (hit, (score, post)) in hits.iter().zip(&expected) {
            assert_eq!(hit.id, post.id);
            assert!((hit.score - score).abs() < 1e-5, "{} is no cosine, {score} is", hit.score);
        }
    }
    assert_eq!(found(&store, vector(7), VectorName::Image, Filter::default()).await.len(), 50);
    store.close().await.unwrap();
}

async fn filters_hold_one_by_one_and_together(bench: Bench) {
    let store = bench.open().await;
    let posts = [
        ("a", json!({"lang": "zh", "author": "u1", "tags": ["天气", "旅行"], "created_at": time(0).to_rfc3339()})),
        ("b", json!({"lang": "en", "author": "u1", "tags": ["旅行"], "created_at": "2026-11-21T08:30:00Z"})),
        ("c", json!({"lang": "zh", "author": "u2", "tags": [], "created_at": "2026-11-22T16:30:00+08:00"})),
        ("d", json!({})),
    ];
    let writes = posts.into_iter().map(|(id, payload)| {
        let mut point = post(id, 1);
        point.payload.extend(object(payload));
        Write::Upsert(point)
    });
    store.write(writes.collect()).await.unwrap();
    let text = |text: &str| Some(text.to_owned());
    let cases = [
        (Filter::default(), "abcd"),
        (Filter { lang: text("zh"), ..Filter::default() }, "ac"),
        (Filter { author: text("u1"), ..Filter::default() }, "ab"),
        (Filter { author: text("u"), ..Filter::default() }, ""),
        (Filter { tags_any: vec!["旅行".to_owned()], ..Filter::default() }, "ab"),
        (Filter { tags_any: vec!["天气".to_owned(), "other".to_owned()], ..Filter::default() }, "a"),
        (Filter { since: Some(time(1)), ..Filter::default() }, "bc"),
        (Filter { until: Some(time(1)), ..Filter::default() }, "a"),
        (Filter { since: Some(time(1)), until: Some(time(2)), ..Filter::default() }, "b"),
        (Filter { since: Some(time(2)), ..Filter::default() }, "c"),
        (
            Filter {
                lang: text("zh"),
                author: text("u1"),
                tags_any: vec!["天气".to_owned()],
                since: Some(time(0)),
                until: Some(time(1)),
            },
            "a",
        ),
        (Filter { lang: text("en"), author: text("u2"), ..Filter::default() }, ""),
    ];
    for (filter, expected) in cases {
        let expected = expected.chars().map(String::from).collect::<BTreeSet<_>>();
        assert_eq!(found_ids(&store, filter.clone()).await, expected, "{filter:?}");
    }
    store.close().await.unwrap();
}

async fn post_with_one_vector_is_found_by_that_vector_only(bench: Bench) {
    let store = bench.open().await;
    let picture = Point { caption: None, ..post("picture", 1) };
    let text = Point { image: None, ..post("text", 1) };
    store.write(vec![Write::Upsert(picture.clone()), Write::Upsert(text)]).await.unwrap();
    let by = |using| found(&store, vector(1), using, Filter::default());
    assert_eq!(by(VectorName::Image).await[0].0, "picture");
    assert_eq!(by(VectorName::Image).await.len(), 1);
    assert_eq!(by(VectorName::Caption).await[0].0, "text");
    assert_eq!(by(VectorName::Caption).await.len(), 1);
    let points = store.get(&[picture.id]).await.unwrap();
    assert!(points[0].caption.is_none());
    let (stored, written) = (points[0].image.clone().unwrap(), picture.image.unwrap());
    assert!(stored.iter().zip(&written).all(|(a, b)| (a - b).abs() < 1e-6), "{stored:?} is not {written:?}");
    assert_eq!(store.count().await.unwrap(), 2);
    store.close().await.unwrap();
}

async fn vector_that_a_newer_version_lacks_is_gone(bench: Bench) {
    let store = bench.open().await;
    store.write(vec![upsert("p", 1), upsert("q", 1)]).await.unwrap();
    store.write(vec![Write::Upsert(Point { image: None, ..post("p", 2) })]).await.unwrap();
    assert_eq!(found_ids(&store, Filter::default()).await, BTreeSet::from(["q".to_owned()]));
    assert!(store.get(&[point_id("p")]).await.unwrap()[0].image.is_none());
    assert_eq!(found(&store, vector(1), VectorName::Caption, Filter::default()).await.len(), 2);
    store.close().await.unwrap();
}

async fn older_write_never_wins(bench: Bench) {
    let store = bench.open().await;
    store.write(vec![upsert("p", 5)]).await.unwrap();
    store.write(vec![upsert("p", 4)]).await.unwrap();
    store.write(vec![delete("p", 3)]).await.unwrap();
    assert_eq!(stored(&store, "p").await, Some((5, false)));
    store.write(vec![upsert("p", 6), upsert("new", 1)]).await.unwrap();
    assert_eq!(stored(&store, "p").await, Some((6, false)));
    assert_eq!(stored(&store, "new").await, Some((1, false)));
    let nearest = found(&store, post("p", 6).image.unwrap(), VectorName::Image, Filter::default()).await;
    assert!(nearest[0].0 == "p" && nearest[0].1 > 0.9999, "{nearest:?}");
    let limit = (1 << 53) - 1;
    store.write(vec![upsert("p", limit)]).await.unwrap();
    store.write(vec![upsert("p", limit - 1)]).await.unwrap();
    assert_eq!(stored(&store, "p").await, Some((limit, false)));
    store.close().await.unwrap();
}

async fn same_write_again_changes_nothing(bench: Bench) {
    let store = bench.open().await;
    for _ in 0..3 {
        store.write(vec![upsert("p", 5), delete("q", 2)]).await.unwrap();
    }
    assert_eq!((stored(&store, "p").await, stored(&store, "q").await), (Some((5, false)), Some((2, true))));
    assert_eq!(store.count().await.unwrap(), 1);
    store.close().await.unwrap();
}

async fn highest_version_of_a_batch_wins(bench: Bench) {
    let store = bench.open().await;
    let batch = vec![upsert("p", 2), upsert("p", 9), delete("p", 4), upsert("q", 1), delete("q", 3), upsert("q", 2)];
    store.write(batch).await.unwrap();
    assert_eq!((stored(&store, "p").await, stored(&store, "q").await), (Some((9, false)), Some((3, true))));
    store.close().await.unwrap();
}

async fn deleted_post_is_hidden_and_stays_deleted(bench: Bench) {
    let store = bench.open().await;
    store.write(vec![upsert("p", 1), upsert("q", 1)]).await.unwrap();
    store.write(vec![delete("p", 3), delete("never seen", 3)]).await.unwrap();
    store.write(vec![upsert("p", 2), upsert("never seen", 2)]).await.unwrap();
    store.write(vec![upsert("p", 3)]).await.unwrap();
    assert_eq!(stored(&store, "p").await, Some((3, true)));
    assert_eq!(stored(&store, "never seen").await, Some((3, true)));
    assert_eq!(found_ids(&store, Filter::default()).await, BTreeSet::from(["q".to_owned()]));
    assert_eq!(store.count().await.unwrap(), 1);
    let marker = &store.get(&[point_id("p")]).await.unwrap()[0];
    assert!(marker.image.is_none() && marker.caption.is_none(), "{marker:?}");
    assert!(!marker.payload.contains_key("caption"), "the post's own fields go with it: {marker:?}");
    assert!(marker.payload.contains_key("deleted_at"), "{marker:?}");
    store.close().await.unwrap();
}

async fn newer_version_brings_a_deleted_post_back(bench: Bench) {
    let store = bench.open().await;
    store.write(vec![upsert("p", 1)]).await.unwrap();
    store.write(vec![delete("p", 2)]).await.unwrap();
    store.write(vec![upsert("p", 3)]).await.unwrap();
    assert_eq!(stored(&store, "p").await, Some((3, false)));
    assert_eq!(found_ids(&store, Filter::default()).await, BTreeSet::from(["p".to_owned()]));
    assert_eq!(store.count().await.unwrap(), 1);
    store.close().await.unwrap();
}

async fn payload_comes_back_as_it_was(bench: Bench) {
    let store = bench.open().await;
    let payload = json!({
        "post_id": "p", "author": "u42", "caption": "雨后的彩虹 🌈\n\"quoted\"", "lang": "zh", "tags": ["天气", ""],
        "created_at": "2026-11-20T08:30:00Z", "image": {"url": "https://example.org/a?b=c&d=%20"}, "model": "small",
        "extra": {"deep": [{"a": null}, [1, -2, 2.5, true]], "": {}, "large": 9_007_199_254_740_993i64},
        "source": {"topic": "posts", "partition": 3, "offset": 12345678901i64}, "indexed_at": "2026-11-20T08:31:00Z",
    });
    let point = Point { payload: object(payload.clone()), ..post("p", 7) };
    store.write(vec![Write::Upsert(point)]).await.unwrap();
    let mut expected = object(payload);
    expected.insert("version".to_owned(), json!(7));
    let got = store.get(&[point_id("p")]).await.unwrap().remove(0).payload;
    assert_eq!(got, expected);
    let query = VectorQuery { vector: vector(1), using: VectorName::Image, filter: Filter::default(), limit: 1 };
    assert_eq!(store.search(query).await.unwrap()[0].payload, expected);
    store.close().await.unwrap();
}

async fn batch_beyond_every_request_size_is_written_whole(bench: Bench) {
    let store = bench.open().await;
    let writes = (0..1_500).map(|number| upsert(&format!("p{number}"), 1)).collect::<Vec<_>>();
    store.write(writes).await.unwrap();
    assert_eq!(store.count().await.unwrap(), 1_500);
    let ids = (0..1_500).map(|number| point_id(&format!("p{number}"))).collect::<Vec<_>>();
    assert_eq!(store.get(&ids).await.unwrap().len(), 1_500);
    store.write(Vec::new()).await.unwrap();
    store.close().await.unwrap();
}

async fn every_order_of_a_history_ends_in_the_same_state(bench: Bench) {
    let store = bench.open().await;
    let history = |name: &str| {
        let (a, b, c, d) = (format!("{name}a"), format!("{name}b"), format!("{name}c"), format!("{name}d"));
        vec![
            upsert(&a, 1),
            upsert(&a, 2),
            Write::Upsert(Point { image: None, ..post(&a, 3) }),
            upsert(&b, 1),
            delete(&b, 2),
            upsert(&b, 3),
            delete(&b, 4),
            delete(&c, 1),
            upsert(&c, 2),
            upsert(&d, 5),
            delete(&d, 5),
        ]
    };
    for round in 0..20 {
        let name = format!("round{round}/");
        let mut random = StdRng::seed_from_u64(round);
        let mut writes = history(&name);
        writes.shuffle(&mut random);
        let order = writes.iter().map(|write| (write.id(), write.version())).collect::<Vec<_>>();
        while !writes.is_empty() {
            let batch = writes.drain(..random.random_range(1..=writes.len().min(4))).collect();
            store.write(batch).await.unwrap();
        }
        let mut state = Vec::new();
        for post in ["a", "b", "c", "d"] {
            state.push(stored(&store, &format!("{name}{post}")).await);
        }
        let expected = [Some((3, false)), Some((4, true)), Some((2, false)), Some((5, true))];
        assert_eq!(state, expected, "order {order:?}");
        let a = store.get(&[point_id(&format!("{name}a"))]).await.unwrap().remove(0);
        assert!(a.image.is_none() && a.caption.is_some(), "order {order:?}: {a:?}");
    }
    assert_eq!(store.count().await.unwrap(), 40);
    store.close().await.unwrap();
}

async fn writers_at_a_time_lose_nothing(bench: Bench) {
    let store = bench.open().await;
    let tasks = (0..8u64).map(|task| {
        let store = store.clone();
        tokio::spawn(async move {
            for step in 0..20 {
                // Every task writes the same posts, with versions of its own.
                let writes = (0..10).map(|number| upsert(&format!("p{number}"), 1 + step * 8 + task));
                store.write(writes.collect()).await.unwrap();
                let query = VectorQuery {
                    vector: vector(task),
                    using: VectorName::Caption,
                    filter: Filter::default(),
                    limit: 50,
                };
                let hits = store.search(query).await.unwrap();
                let distinct = hits.iter().map(|hit| hit.id).collect::<BTreeSet<_>>();
                assert_eq!(distinct.len(), hits.len(), "a post is found once");
            }
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await.unwrap();
    }
    for number in 0..10 {
        assert_eq!(stored(&store, &format!("p{number}")).await, Some((160, false)));
    }
    assert_eq!(store.count().await.unwrap(), 10);
    store.close().await.unwrap();
}

async fn reopening_keeps_everything(bench: Bench) {
    let mut expected = BTreeMap::<String, (u64, bool)>::new();
    for round in 0..3u64 {
        let store = bench.open().await;
        for (id, state) in &expected {
            assert_eq!(stored(&store, id).await, Some(*state), "{id} in round {round}");
        }
        let (kept, gone) = (format!("kept{round}"), format!("gone{round}"));
        store.write(vec![upsert(&kept, 1), upsert(&gone, 1), upsert("changed", round + 1)]).await.unwrap();
        store.write(vec![delete(&gone, 2)]).await.unwrap();
        expected.insert(kept, (1, false));
        expected.insert(gone, (2, true));
        expected.insert("changed".to_owned(), (round + 1, false));
        store.close().await.unwrap();
    }
    let store = bench.open().await;
    assert_eq!(store.count().await.unwrap(), 4);
    store.close().await.unwrap();
}

async fn faulty_write_is_rejected_and_named(bench: Bench) {
    let store = bench.open().await;
    let faulty = Point { image: Some(vec![1.0; DIMENSION + 1]), ..post("bad", 1) };
    let error = store.write(vec![upsert("good", 1), Write::Upsert(faulty)]).await.unwrap_err();
    assert!(matches!(error, Fault::Reject { reason: Reason::StoreRejected, .. }), "{error:?}");
    assert!(error.to_string().contains(&point_id("bad").to_string()), "{error}");
    store.write(vec![upsert("good", 1)]).await.unwrap();
    assert_eq!(store.count().await.unwrap(), 1);
    store.close().await.unwrap();
}

async fn other_models_collection_is_refused(mut bench: Bench) {
    bench.open().await.close().await.unwrap();
    let own = std::mem::replace(&mut bench.stamp, stamp("large"));
    let detail = bench.open_error().await;
    for part in ["small", "large", "feedlens collection reindex"] {
        assert!(detail.contains(part), "{detail}");
    }
    bench.stamp = ModelStamp { dimension: DIMENSION * 2, ..own.clone() };
    let detail = bench.open_error().await;
    assert!(detail.contains("feedlens collection reindex"), "{detail}");
    bench.stamp = own;
    bench.open().await.close().await.unwrap();
}

async fn missing_points_are_left_out(bench: Bench) {
    let store = bench.open().await;
    assert_eq!(store.count().await.unwrap(), 0);
    assert!(found_ids(&store, Filter::default()).await.is_empty());
    store.write(vec![upsert("p", 1)]).await.unwrap();
    let points = store.get(&[point_id("p"), point_id("absent")]).await.unwrap();
    assert_eq!(points.len(), 1);
    assert!(store.get(&[]).await.unwrap().is_empty());
    store.ready().await.unwrap();
    store.close().await.unwrap();
}
