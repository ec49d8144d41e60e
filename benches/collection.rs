//! What a collection of so many vectors takes on a Qdrant server, and how well and how fast it is searched: as feedlens makes it,
//! and with its vectors quantised. Writes and searches go through the store of the workers.
//!
//! `QDRANT_URL` is the server's gRPC address; a collection is made there, and deleted at the end. `POSTS` is how many posts, 20,000
//! unless told, each with the vector of a picture. `QDRANT_PID` is the server's process where it runs on this machine: then
//! its memory is told too. With `ALIAS=name` the collection is left there; where it is there already, it is measured as it is
//! (after a start of the server with less memory, for one). docs/operations.md has the figures of a million.
//!
//! The vectors are drawn, not encoded. As those of CLIP they lie in a cone (the cosine of two is some 0.4), in clusters of very
//! different size, and few directions carry most of them (the k-th has a variance of 1/k). A search by picture asks for a
//! vector of the same kind; one by text for such a vector from aside (cosine 0.35), which is harder for the graph.

use std::collections::HashSet;
use std::path::Path;
use std::time::{Duration, Instant};

use feedlens::config::{Config, Overrides};
use feedlens::metrics::Metrics;
use feedlens::post::point_id;
use feedlens::store::{
    Collections, Filter, Hit, HitParts, ModelStamp, Order, Origin, PayloadPart, Point, SharedStore, VectorName,
    VectorQuery, Write,
};
use futures::StreamExt as _;
use qdrant_client::Qdrant;
use qdrant_client::qdrant::point_id::PointIdOptions;
use qdrant_client::qdrant::quantization_config_diff::Quantization;
use qdrant_client::qdrant::{
    BinaryQuantizationBuilder, CollectionStatus, OptimizersConfigDiffBuilder, QuantizationSearchParams, Query,
    QueryPointsBuilder, ScalarQuantizationBuilder, SearchParams, UpdateCollectionBuilder, VectorParamsDiffBuilder,
    VectorParamsDiffMap, VectorsConfigDiff, vectors_config_diff,
};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use serde_json::json;
use uuid::Uuid;

const DIMENSION: usize = 512;
const TOP: usize = 5;
const QUERIES: usize = 200;
/// Searches at a time, in the second figure of latency.
const AT_A_TIME: usize = 8;
const CLUSTERS: usize = 10_000;

#[tokio::main]
async fn main() {
    let Ok(url) = std::env::var("QDRANT_URL") else {
        println!("QDRANT_URL is not set: NOTHING MEASURED");
        return;
    };
    let posts = std::env::var("POSTS").map_or(20_000, |posts| posts.parse().expect("POSTS is a number"));
    std::env::set_current_dir(Path::new(env!("CARGO_MANIFEST_DIR"))).expect("the repository's root");
    let mut config = Config::load(&[], &Overrides::default()).expect("the defaults load");
    config.store.qdrant.url.clone_from(&url);
    config.store.qdrant.timeout = Duration::from_secs(120);
    let kept = std::env::var("ALIAS").ok();
    config.store.alias = kept.clone().unwrap_or_else(|| format!("bench-{}", std::process::id()));
    let stamp = ModelStamp { model: "drawn".to_owned(), dimension: DIMENSION };
    let store = feedlens::store::open(&config.store, &stamp, &Metrics::new()).await.expect("the store opens");
    let collections = Collections::connect(&config.store).await.expect("the server answers");
    let client = Qdrant::from_url(&url).timeout(Duration::from_secs(600)).build().expect("a client");
    let bench = Bench { name: collections.name_of(&stamp), client, store, candidates: config.query.candidates };

    println!("{posts} posts, each with a picture's vector of {DIMENSION} values");
    let feed = Feed::new();
    let there = bench.store.count().await.expect("a number") == posts as u64;
    if !there {
        memory("empty");
        bench.upload(&feed, posts, config.ingest.write_batch, config.ingest.write_parallel).await;
    }
    let mut searches = Vec::new();
    for (kind, seed) in [("picture", 1), ("text", 2)] {
        let mut random = StdRng::seed_from_u64(seed);
        let vectors =
            (0..QUERIES).map(|_| if kind == "text" { feed.aside(&mut random) } else { feed.draw(&mut random) });
        let vectors = vectors.collect::<Vec<_>>();
        let began = Instant::now();
        let exact = bench.exact(&vectors).await;
        let each = began.elapsed().as_secs_f64() / QUERIES as f64;
        let best = exact.iter().map(|hits| hits[0].1).sum::<f32>() / QUERIES as f32;
        println!("searches by {kind}: cosine of the best {best:.2}; the exact answer takes {:.0} ms", 1e3 * each);
        searches.push((kind, vectors, exact));
    }
    if there {
        return bench.measure("as it is", &searches).await;
    }
    bench.measure("float32 in memory, as made", &searches).await;
    bench.change(false, Quantization::from(ScalarQuantizationBuilder::default().always_ram(true))).await;
    bench.measure("int8 in memory beside float32", &searches).await;
    bench.change(true, Quantization::from(ScalarQuantizationBuilder::default().always_ram(true))).await;
    bench.measure("int8 in memory, float32 on disk", &searches).await;
    bench.change(true, Quantization::from(BinaryQuantizationBuilder::new(true))).await;
    bench.measure("1 bit in memory, float32 on disk", &searches).await;
    if kept.is_none() {
        bench.client.delete_collection(&bench.name).await.expect("is deleted");
    }
}

/// A kind of search, its vectors, and for each the exact best posts with their cosines.
type Searches = (&'static str, Vec<Vec<f32>>, Vec<Vec<(Uuid, f32)>>);

struct Bench {
    client: Qdrant,
    store: SharedStore,
    name: String,
    candidates: usize,
}

impl Bench {
    async fn upload(&self, feed: &Feed, posts: usize, batch: usize, parallel: usize) {
        // As for a first load: the graph is built once, at the end.
        self.index_from(0).await;
        let mut random = StdRng::seed_from_u64(0);
        let batches = (0..posts).step_by(batch).map(|first| {
            let writes = (first..posts.min(first + batch)).map(|number| write(number, feed.draw(&mut random)));
            let writes = writes.collect::<Vec<_>>();
            async { self.store.write(writes).await.expect("is written") }
        });
        let mut writing = futures::stream::iter(batches).buffer_unordered(parallel);
        let (mut done, began) = (0, Instant::now());
        while let Some(outcomes) = writing.next().await {
            let before = done;
            done += outcomes.len();
            if done * 10 / posts > before * 10 / posts {
                println!("  {done} posts, {:.0} s", began.elapsed().as_secs_f64());
            }
        }
        let written = began.elapsed().as_secs_f64();
        println!("written durably in {written:.0} s: {:.0} posts a second", posts as f64 / written);
        memory("written");
        self.index_from(10_000).await;
        self.settled().await;
        println!("graph complete {:.0} s later", began.elapsed().as_secs_f64() - written);
    }

    /// From which size in KB on the server gives a segment a graph; 0: none.
    async fn index_from(&self, threshold: u64) {
        let optimizers = OptimizersConfigDiffBuilder::default().indexing_threshold(threshold);
        let change = UpdateCollectionBuilder::new(&self.name).optimizers_config(optimizers);
        self.client.update_collection(change).await.expect("takes the change");
    }

    /// Waits until the server has built what it builds in the background.
    async fn settled(&self) {
        let mut green = 0;
        // Green may come for a moment between two tasks.
        while green < 5 {
            tokio::time::sleep(Duration::from_secs(1)).await;
            let info = self.client.collection_info(&self.name).await.expect("the collection is there");
            let status = info.result.map(|info| info.status());
            green = if status == Some(CollectionStatus::Green) { green + 1 } else { 0 };
        }
    }

    async fn change(&self, on_disk: bool, quantization: Quantization) {
        let image = VectorParamsDiffBuilder::default().on_disk(on_disk).build();
        let map = [(VectorName::Image.as_str().to_owned(), image)].into();
        let vectors =
            VectorsConfigDiff { config: Some(vectors_config_diff::Config::ParamsMap(VectorParamsDiffMap { map })) };
        let change = UpdateCollectionBuilder::new(&self.name).vectors_config(vectors).quantization_config(quantization);
        let began = Instant::now();
        self.client.update_collection(change).await.expect("takes the change");
        self.settled().await;
        println!("changed in {:.0} s", began.elapsed().as_secs_f64());
    }

    async fn exact(&self, vectors: &[Vec<f32>]) -> Vec<Vec<(Uuid, f32)>> {
        let params = SearchParams { exact: Some(true), ..Default::default() };
        let answers = vectors.iter().map(|vector| self.bare_search(vector, TOP, params.clone()));
        futures::stream::iter(answers).buffered(1).collect().await
    }

    /// A search that is not the store's: the store leaves no choice of these parameters.
    async fn bare_search(&self, vector: &[f32], limit: usize, params: SearchParams) -> Vec<(Uuid, f32)> {
        let request = QueryPointsBuilder::new(&self.name)
            .query(Query::new_nearest(vector.to_vec()))
            .using(VectorName::Image.as_str())
            .limit(limit as u64)
            .params(params);
        let hits = self.client.query(request).await.expect("an answer").result;
        let hits = hits.into_iter().map(|hit| match hit.id.and_then(|id| id.point_id_options) {
            Some(PointIdOptions::Uuid(id)) => (id.parse().expect("a UUID"), hit.score),
            other => panic!("not an id of ours: {other:?}"),
        });
        hits.collect()
    }

    async fn search(&self, vector: &[f32]) -> Vec<Hit> {
        // What a worker asks for a search of five: the candidates for `probability` and the order, and their payloads.
        let with = HitParts { payload: PayloadPart::Whole, image: false };
        let (using, filter) = (VectorName::Image, Filter::default());
        let query = VectorQuery { vector: vector.to_vec(), using, filter, limit: self.candidates, with };
        self.store.search(query).await.expect("an answer")
    }

    async fn measure(&self, what: &str, searches: &[Searches]) {
        memory(what);
        for (kind, vectors, exact) in searches {
            // The first pass warms caches, as a server in use is warm; its answers are counted.
            let mut found = Vec::new();
            for vector in vectors {
                found.push(self.search(vector).await.iter().map(|hit| hit.id).collect());
            }
            let share = recall(&found, exact);
            let mut line = format!("  by {kind:<8} recall@5 {share:.4}");
            for at_a_time in [1, AT_A_TIME] {
                let began = Instant::now();
                let timed = (0..5).flat_map(|_| vectors).map(async |vector| {
                    let began = Instant::now();
                    self.search(vector).await;
                    began.elapsed().as_secs_f64()
                });
                let mut times = futures::stream::iter(timed).buffer_unordered(at_a_time).collect::<Vec<_>>().await;
                let rate = times.len() as f64 / began.elapsed().as_secs_f64();
                times.sort_by(f64::total_cmp);
                let at = |share: f64| 1e3 * times[(share * times.len() as f64) as usize];
                line +=
                    &format!("; {at_a_time} at a time: median {:.1} ms, p99 {:.1} ms, {rate:.0}/s", at(0.5), at(0.99));
            }
            println!("{line}");
            // Parameters that the store does not send; the last two only count where vectors are quantised.
            for (name, hnsw_ef, oversampling) in [
                ("ef 256", Some(256), None),
                ("ef 512", Some(512), None),
                ("oversampling 2", None, Some(2.0)),
                ("oversampling 4", None, Some(4.0)),
            ] {
                let quantization = QuantizationSearchParams { ignore: None, rescore: Some(true), oversampling };
                let params = SearchParams { hnsw_ef, quantization: Some(quantization), ..Default::default() };
                let mut found = Vec::new();
                let began = Instant::now();
                for vector in vectors {
                    let hits = self.bare_search(vector, self.candidates, params.clone()).await;
                    found.push(hits.into_iter().map(|(id, _)| id).collect());
                }
                let each = 1e3 * began.elapsed().as_secs_f64() / QUERIES as f64;
                println!("      {name:<16} recall@5 {:.4}; mean {each:.1} ms", recall(&found, exact));
            }
        }
        memory("  after the searches");
    }
}

/// The share of the exact best that are among the best found.
fn recall(found: &[Vec<Uuid>], exact: &[Vec<(Uuid, f32)>]) -> f64 {
    let among = |(found, exact): (&Vec<Uuid>, &Vec<(Uuid, f32)>)| {
        let best = found.iter().take(TOP).collect::<HashSet<_>>();
        exact.iter().filter(|(id, _)| best.contains(id)).count()
    };
    found.iter().zip(exact).map(among).sum::<usize>() as f64 / (TOP * QUERIES) as f64
}

fn write(number: usize, vector: Vec<f32>) -> Write {
    let post_id = format!("post-{number}");
    let payload = json!({
        "post_id": post_id, "caption": format!("一张图片的说明 caption of picture number {number}"), "lang": "zh",
        "author": format!("user-{}", number % 5_000), "created_at": "2026-11-22T12:00:00Z", "tags": ["news", "photo"],
        "image_url": format!("https://pictures.example/{number}.jpg"), "model": "drawn",
    });
    let source =
        Origin { topic: "posts".to_owned(), partition: 0, offset: number as i64, timestamp: 1_700_000_000_000 };
    Write::Upsert(Point {
        id: point_id(&post_id),
        order: Order { version: None, source },
        image: Some(vector),
        caption: None,
        image_pending: false,
        payload: payload.as_object().expect("an object").clone(),
    })
}

/// Where the vectors are drawn from.
struct Feed {
    centres: Vec<Vec<f32>>,
    signs: Vec<f32>,
}

impl Feed {
    fn new() -> Self {
        let mut random = StdRng::seed_from_u64(7);
        let centres = (0..CLUSTERS).map(|_| spectrum(&mut random)).collect();
        let signs = (0..DIMENSION).map(|_| if random.random() { 1.0 } else { -1.0 }).collect();
        Self { centres, signs }
    }

    /// 40 % of its square is the cone's, the rest half the cluster's and half its own.
    fn draw(&self, random: &mut StdRng) -> Vec<f32> {
        // A cluster's size goes with 1 / its rank, as topics do.
        let rank = (CLUSTERS as f32).powf(random.random::<f32>()) as usize - 1;
        let (centre, own) = (&self.centres[rank], spectrum(random));
        let (cone, half) = (0.4_f32.sqrt(), 0.3_f32.sqrt());
        let axis = 1.0 / (DIMENSION as f32).sqrt();
        let vector = centre.iter().zip(&own).map(|(centre, own)| half * centre + half * own);
        let mut vector = vector.collect::<Vec<_>>();
        // No coordinate is one of the directions that carry most.
        rotate(&mut vector, &self.signs);
        normalised(vector.iter().zip(&self.signs).map(|(value, sign)| value + cone * axis * sign).collect())
    }

    /// As the vector of a text: most of it lies in directions of its own.
    fn aside(&self, random: &mut StdRng) -> Vec<f32> {
        let aside = normalised((0..DIMENSION).map(|_| normal(random)).collect());
        let towards = 0.4_f32;
        let rest = (1.0 - towards * towards).sqrt();
        normalised(self.draw(random).iter().zip(&aside).map(|(to, aside)| towards * to + rest * aside).collect())
    }
}

/// Of length 1 in the mean; the k-th value has a variance of 1/k.
fn spectrum(random: &mut StdRng) -> Vec<f32> {
    let total = (1..=DIMENSION).map(|k| 1.0 / k as f32).sum::<f32>();
    (1..=DIMENSION).map(|k| normal(random) / (k as f32 * total).sqrt()).collect()
}

/// Box and Muller's.
fn normal(random: &mut StdRng) -> f32 {
    let (radius, angle) = (1.0 - random.random::<f32>(), random.random::<f32>());
    (-2.0 * radius.ln()).sqrt() * (std::f32::consts::TAU * angle).cos()
}

/// Random signs and a Hadamard transform: orthogonal, and every value goes into every coordinate.
fn rotate(vector: &mut [f32], signs: &[f32]) {
    vector.iter_mut().zip(signs).for_each(|(value, sign)| *value *= sign);
    let mut width = 1;
    while width < vector.len() {
        for block in vector.chunks_mut(2 * width) {
            let (left, right) = block.split_at_mut(width);
            for (a, b) in left.iter_mut().zip(right) {
                (*a, *b) = (*a + *b, *a - *b);
            }
        }
        width *= 2;
    }
    let scale = 1.0 / (vector.len() as f32).sqrt();
    vector.iter_mut().for_each(|value| *value *= scale);
}

fn normalised(vector: Vec<f32>) -> Vec<f32> {
    feedlens::encode::normalise(vector).expect("finite")
}

/// The server's memory: its own, and pages of files, which the system takes back where others need them.
fn memory(what: &str) {
    let Ok(pid) = std::env::var("QDRANT_PID") else { return println!("{what}") };
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("QDRANT_PID is a process");
    let mib = |field: &str| {
        let line = status.lines().find(|line| line.starts_with(field)).expect("the field is there");
        let kib = line.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok()).expect("a number");
        kib / 1024
    };
    println!("{what}: {} MiB own, {} MiB of files", mib("RssAnon:"), mib("RssFile:"));
}
