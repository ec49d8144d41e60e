//! `make bench`: a search through the real HTTP interface beside its bare parts (text encoder and store) in one run; the load
//! at which the worker is saturated; and what it does under four times that.
//!
//! Every search has a topic of its own, so that none comes from the cache. The machine must be otherwise idle; the clients run
//! in this process, on a thread of their own, and take their share of it.

#[path = "support/load.rs"]
mod load;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use feedlens::config::{Config, Overrides};
use feedlens::encode::encoder::Encoder;
use feedlens::metrics::Metrics;
use feedlens::post::point_id;
use feedlens::query::embed::QueryEncoder;
use feedlens::query::http;
use feedlens::query::service::{ModelInfo, SearchService, ServiceParts};
use feedlens::store::{
    self, Filter, HitParts, ModelStamp, Order, Origin, Point, SharedStore, VectorName, VectorQuery, Write,
};
use load::{Client, Outcome};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::json;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

const POSTS: usize = 10_000;
/// Pairs of a bare and a whole search, one after the other.
const PAIRS: usize = 400;
/// Connections of the overload; beyond so many requests under way, the next one waits for an answer.
const CONNECTIONS: usize = 512;
const OVERLOAD: f64 = 4.0;
const WARM_UP: Duration = Duration::from_secs(2);
const LASTS: Duration = Duration::from_secs(15);

fn main() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    std::env::set_current_dir(root).expect("the repository's root");
    let runtime = || tokio::runtime::Builder::new_multi_thread();
    let server = runtime().enable_all().build().expect("a runtime");
    let clients = runtime().worker_threads(1).enable_all().build().expect("a runtime");
    let folder = tempfile::tempdir().expect("a folder");
    let set = ["store.kind=edge".to_owned(), format!("store.edge.dir={}", folder.path().display())];
    let set = set.into_iter().chain(["log.level=error".to_owned()]).collect();
    let config = Config::load(&[], &Overrides { files: vec![], set }).expect("loads");
    let bench = server.block_on(Bench::start(&config));

    let (bare, whole) = server.block_on(bench.pairs(&config));
    println!("\n{:<44}{:>12}{:>12}", "one search at a time, ms", "median", "p99");
    println!("{:<44}{:>12.2}{:>12.2}", "bare: text encoder + store", percentile(&bare, 0.5), percentile(&bare, 0.99));
    println!("{:<44}{:>12.2}{:>12.2}", "whole: POST /v1/search", percentile(&whole, 0.5), percentile(&whole, 0.99));
    println!("added at the median {:.2} ms", percentile(&whole, 0.5) - percentile(&bare, 0.5));

    let places = config.query.max_concurrent;
    let full = clients.block_on(bench.load(places, None));
    let per_second = full.answered.len() as f64 / LASTS.as_secs_f64();
    println!("\n{:<44}{:>12}{:>12}{:>12}", "under load", "searches/s", "median ms", "p99 ms");
    full.print(&format!("saturated: {places} clients, each asks again at once"));
    let over = clients.block_on(bench.load(CONNECTIONS, Some(OVERLOAD * per_second)));
    over.print(&format!("{OVERLOAD} times as many requests"));
    println!(
        "offered {:.0}/s, refused with 429 and Retry-After {:.0}/s (median {:.1} ms, p99 {:.1} ms), anything else {}",
        (over.answered.len() + over.refused.len()) as f64 / LASTS.as_secs_f64(),
        over.refused.len() as f64 / LASTS.as_secs_f64(),
        percentile(&over.refused, 0.5),
        percentile(&over.refused, 0.99),
        over.other + full.other,
    );
    println!(
        "p99 of what is let in, beside p99 at saturation {:.2}",
        percentile(&over.answered, 0.99) / percentile(&full.answered, 0.99)
    );
    println!("searches/s beside those at saturation {:.2}", over.answered.len() as f64 / full.answered.len() as f64);
}

/// A query worker over a store of random vectors, whose search costs what that of real ones does.
struct Bench {
    encoder: QueryEncoder,
    store: SharedStore,
    address: SocketAddr,
    topics: AtomicU64,
}

impl Bench {
    async fn start(config: &Config) -> Self {
        let metrics = Arc::new(Metrics::new());
        let encoder = Encoder::start(&config.model, &config.encoder, &metrics).expect("the model loads");
        let stamp = ModelStamp { model: encoder.bundle.id.clone(), dimension: encoder.bundle.dimension };
        let store = store::open(&config.store, &stamp, &metrics).await.expect("opens");
        let points = (0..POSTS).map(|number| point(number, stamp.dimension)).map(Write::Upsert).collect::<Vec<_>>();
        for batch in points.chunks(config.ingest.write_batch) {
            store.write(batch.to_vec()).await.expect("writes");
        }
        let query_encoder = || QueryEncoder::new(encoder.clone(), &config.images, config.captions).expect("a fetcher");
        let service = SearchService::new(ServiceParts {
            encoder: query_encoder(),
            store: store.clone(),
            model: ModelInfo::from(&*encoder.bundle),
            config: config.query.clone(),
            metrics,
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        tokio::spawn(http::run(listener, service, CancellationToken::new()));
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        println!("{POSTS} posts in the embedded store, {cores} cores, model {}", config.model.dir.display());
        Self { encoder: query_encoder(), store, address, topics: AtomicU64::new(0) }
    }

    /// A text that was never asked for, as long as people's are.
    fn topic(&self) -> String {
        let number = self.topics.fetch_add(1, Ordering::Relaxed);
        format!("海边的日落 {number} 和一只猫")
    }

    fn request(&self) -> String {
        let body = json!({"topic": self.topic(), "top_k": 5}).to_string();
        format!("POST /v1/search HTTP/1.1\r\nHost: bench\r\nContent-Length: {}\r\n\r\n{body}", body.len())
    }

    /// Milliseconds of bare and of whole searches, taken in turn.
    async fn pairs(&self, config: &Config) -> (Vec<f64>, Vec<f64>) {
        let mut client = Client::connect(self.address).await;
        let (mut bare, mut whole) = (Vec::new(), Vec::new());
        for pair in 0..PAIRS + PAIRS / 10 {
            let started = Instant::now();
            let vector = self.encoder.embed_topic(&self.topic()).await.expect("encodes").vector.to_vec();
            let limit = config.query.candidates;
            let (using, filter, with) = (VectorName::Image, Filter::default(), HitParts::default());
            let query = VectorQuery { vector, using, filter, limit, with };
            let hits = self.store.search(query).await.expect("searches");
            let bare_time = milliseconds(started);
            assert_eq!(hits.len(), limit);
            let request = self.request();
            let started = Instant::now();
            let outcome = client.ask(&request).await;
            let whole_time = milliseconds(started);
            assert_eq!(outcome, Outcome::Answered);
            // The first ones find nothing in the processor's caches.
            if pair >= PAIRS / 10 {
                bare.push(bare_time);
                whole.push(whole_time);
            }
        }
        (bare, whole)
    }

    /// Asks over so many connections, `per_second` times in all, or each again as soon as it is answered.
    async fn load(&self, connections: usize, per_second: Option<f64>) -> Load {
        let started = Instant::now();
        let (ticket, warm) = (AtomicU64::new(0), started + WARM_UP);
        let clients = (0..connections).map(async |_| {
            let mut load = Load::default();
            let mut client = Client::connect(self.address).await;
            loop {
                if let Some(per_second) = per_second {
                    let after = ticket.fetch_add(1, Ordering::Relaxed) as f64 / per_second;
                    tokio::time::sleep_until((started + Duration::from_secs_f64(after)).into()).await;
                }
                let request = self.request();
                let asked = Instant::now();
                if asked >= warm + LASTS {
                    return load;
                }
                let outcome = client.ask(&request).await;
                if asked < warm {
                    continue;
                }
                match outcome {
                    Outcome::Answered => load.answered.push(milliseconds(asked)),
                    Outcome::Refused => load.refused.push(milliseconds(asked)),
                    Outcome::Other => load.other += 1,
                }
            }
        });
        let loads = futures::future::join_all(clients).await;
        loads.into_iter().fold(Load::default(), |mut all, load| {
            all.answered.extend(load.answered);
            all.refused.extend(load.refused);
            all.other += load.other;
            all
        })
    }
}

/// Milliseconds of each request, by what it came to.
#[derive(Default)]
struct Load {
    answered: Vec<f64>,
    refused: Vec<f64>,
    other: u64,
}

impl Load {
    fn print(&self, what: &str) {
        let per_second = self.answered.len() as f64 / LASTS.as_secs_f64();
        let (median, p99) = (percentile(&self.answered, 0.5), percentile(&self.answered, 0.99));
        println!("{what:<44}{per_second:>12.0}{median:>12.1}{p99:>12.1}");
    }
}

fn point(number: usize, dimension: usize) -> Point {
    let mut random = StdRng::seed_from_u64(number as u64);
    let mut vector = || {
        let values = (0..dimension).map(|_| random.random_range(-1.0..1.0_f32)).collect();
        feedlens::encode::normalise(values).expect("finite")
    };
    let post_id = format!("bench:{number}");
    let source = Origin { topic: "posts".to_owned(), partition: 0, offset: number as i64, timestamp: 0 };
    let payload = json!({"post_id": post_id, "author": "u42", "caption": "雨后的彩虹", "lang": "zh",
        "created_at": "2026-11-20T08:30:00Z", "tags": ["天气"], "image": {"url": "https://pictures.example.org/1.jpg"}});
    Point {
        id: point_id(&post_id),
        order: Order { version: Some(1), source },
        image: Some(vector()),
        caption: Some(vector()),
        image_pending: false,
        payload: payload.as_object().expect("an object").clone(),
    }
}

fn milliseconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}

/// By rank; 0 of none.
fn percentile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or_default()
}
