//! A Qdrant server for the tests, and what the store on it alone promises.
//!
//! `QDRANT_URL` (gRPC; with `QDRANT_API_KEY` where it asks for one) names a running server; else a `qdrant` binary on
//! the PATH is started on free ports of the loopback interface. With neither, the tests say that they were skipped.

use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use feedlens::config::Secret;
use feedlens::error::Fault;
use feedlens::post::point_id;
use feedlens::store::{Filter, HitParts, PayloadPart, Point, VectorName, VectorQuery, Write};
use qdrant_client::Qdrant;
use qdrant_client::qdrant::quantization_config_diff::Quantization;
use qdrant_client::qdrant::{
    CreateAliasBuilder, CreateCollectionBuilder, Distance, HnswConfigDiffBuilder, OptimizersConfigDiffBuilder,
    QuantizationSearchParamsBuilder, QueryPointsBuilder, ScalarQuantizationBuilder, SearchParamsBuilder,
    UpdateCollectionBuilder, VectorParamsBuilder,
};

use crate::ports::free_port;
use crate::skip;
use crate::store_support::{Bench, delete, found, post, stamp, stored, upsert, vector, vector_of};

/// The server that all tests share; `None` where there is none.
pub fn shared() -> Option<(String, Secret)> {
    static SERVER: OnceLock<Option<(String, Secret)>> = OnceLock::new();
    let found = SERVER.get_or_init(|| {
        if let Ok(url) = std::env::var("QDRANT_URL") {
            return Some((url, Secret::new(std::env::var("QDRANT_API_KEY").unwrap_or_default())));
        }
        let server = Server::launch(binary()?, "", None);
        let url = server.url();
        // For all tests: it ends with the process.
        std::mem::forget(server);
        Some((url, Secret::default()))
    });
    if found.is_none() {
        skip::unable("no Qdrant server (set QDRANT_URL, or put a qdrant binary on the PATH)");
    }
    found.clone()
}

/// A dimension in which neighbours are hard to find.
const WIDE: usize = 32;

/// The second key of a server that asks for one: it only reads.
const READ_ONLY: &str = "r3ad-only";

fn binary() -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|path| path.join("qdrant")).find(|path| path.is_file())
}

/// A server of this process's own.
pub struct Server {
    binary: PathBuf,
    folder: tempfile::TempDir,
    http: u16,
    grpc: u16,
    pub api_key: &'static str,
    storage: PathBuf,
    process: Option<Child>,
}

impl Server {
    /// `None`, said loudly, where there is no binary: a server that runs elsewhere does not serve. Without `storage`, a
    /// folder of its own.
    pub fn start(api_key: &'static str, storage: Option<PathBuf>) -> Option<Self> {
        let Some(binary) = binary() else {
            skip::unable("no qdrant binary on the PATH; it needs a server that it can start and end");
            return None;
        };
        Some(tokio::task::block_in_place(|| Self::launch(binary, api_key, storage)))
    }

    fn launch(binary: PathBuf, api_key: &'static str, storage: Option<PathBuf>) -> Self {
        let (http, grpc) = (free_port(), free_port());
        let folder = tempfile::tempdir().unwrap();
        let storage = storage.unwrap_or_else(|| folder.path().join("storage"));
        let mut server = Self { binary, folder, http, grpc, api_key, storage, process: None };
        server.begin();
        server
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.grpc)
    }

    pub fn http_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.http)
    }

    /// Begins, and waits until it listens. The shell ends the server once its standard input is closed, so that it
    /// never outlives this process.
    pub fn begin(&mut self) {
        let mut command = Command::new("sh");
        command
            .args(["-c", r#""$0" >server.log 2>&1 & server=$!; cat >/dev/null; kill -9 $server"#])
            .arg(&self.binary)
            .current_dir(self.folder.path())
            .env("QDRANT__SERVICE__HOST", "127.0.0.1")
            .env("QDRANT__SERVICE__HTTP_PORT", self.http.to_string())
            .env("QDRANT__SERVICE__GRPC_PORT", self.grpc.to_string())
            .env("QDRANT__STORAGE__STORAGE_PATH", &self.storage)
            .env("QDRANT__STORAGE__SNAPSHOTS_PATH", self.folder.path().join("snapshots"))
            .env("QDRANT__TELEMETRY_DISABLED", "true")
            .env("QDRANT__LOG_LEVEL", "WARN")
            .stdin(Stdio::piped())
            .stdout(Stdio::null());
        if !self.api_key.is_empty() {
            command.env("QDRANT__SERVICE__API_KEY", self.api_key);
            command.env("QDRANT__SERVICE__READ_ONLY_API_KEY", READ_ONLY);
        }
        self.process = Some(command.spawn().unwrap());
        let deadline = Instant::now() + Duration::from_secs(60);
        while std::net::TcpStream::connect(("127.0.0.1", self.grpc)).is_err() {
            let log = std::fs::read_to_string(self.folder.path().join("server.log")).unwrap_or_default();
            assert!(Instant::now() < deadline, "the server does not listen: {log}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            drop(process.stdin.take());
            let _ = process.wait();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A bench that nothing listens for.
fn bench_at(url: &str) -> Bench {
    let mut bench = Bench::edge();
    bench.config.kind = feedlens::store::StoreKind::Qdrant;
    bench.config.qdrant.url = url.to_owned();
    bench.config.qdrant.connect_timeout = Duration::from_secs(2);
    bench
}

#[tokio::test(flavor = "multi_thread")]
async fn unreachable_server_is_named_in_time() {
    let closed = SocketAddr::from(([127, 0, 0, 1], free_port()));
    // Takes connections and never answers.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    for (scheme, address) in [("http", closed), ("https", closed), ("http", silent.local_addr().unwrap())] {
        let begin = Instant::now();
        let detail = bench_at(&format!("{scheme}://{address}")).open_error().await;
        assert!(begin.elapsed() < Duration::from_secs(8), "{:?}", begin.elapsed());
        assert!(detail.contains(&address.to_string()) && detail.contains("store.qdrant.url"), "{detail}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_api_key_is_not_shown() {
    let mut bench = bench_at("http://127.0.0.1:9");
    bench.config.qdrant.api_key = Secret::new("s3cr3t\nkey");
    let detail = bench.open_error().await;
    assert!(!detail.contains("s3cr3t") && detail.contains("store.qdrant.api_key"), "{detail}");
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_api_key_is_said_and_not_shown() {
    let Some(server) = Server::start("right-k3y", None) else { return };
    let mut bench = bench_at(&server.url());
    for wrong in ["wrong-k3y", "", "s3cr3t\nkey"] {
        bench.config.qdrant.api_key = Secret::new(wrong);
        let detail = bench.open_error().await;
        assert!(!detail.contains("k3y") && !detail.contains("s3cr3t"), "{detail}");
        assert!(detail.contains("store.qdrant.api_key"), "{detail}");
    }
    bench.config.qdrant.api_key = Secret::new("right-k3y");
    let store = bench.open().await;
    store.write(vec![upsert("p", 1)]).await.unwrap();
    assert_eq!(store.count().await.unwrap(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_only_reads_serves_once_a_writer_has_made_the_indexes() {
    let Some(server) = Server::start("right-k3y", None) else { return };
    let mut bench = bench_at(&server.url());
    bench.config.qdrant.api_key = Secret::new("right-k3y");
    bench.open().await.write(vec![upsert("p", 1)]).await.unwrap();
    // As an older version left it.
    let client = Qdrant::from_url(&server.url()).api_key("right-k3y").skip_compatibility_check().build().unwrap();
    let collection = format!("{}_{}_8", bench.config.alias, stamp("small").model);
    let gone = qdrant_client::qdrant::DeleteFieldIndexCollectionBuilder::new(&collection, "labels").wait(true);
    client.delete_field_index(gone).await.unwrap();
    bench.config.qdrant.api_key = Secret::new(READ_ONLY);
    let detail = bench.open_error().await;
    assert!(detail.contains("labels") && detail.contains("start ingest of this version first"), "{detail}");
    bench.config.qdrant.api_key = Secret::new("right-k3y");
    bench.open().await;
    bench.config.qdrant.api_key = Secret::new(READ_ONLY);
    assert_eq!(bench.open().await.count().await.unwrap(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn outage_is_retried_and_recovers() {
    let Some(mut server) = Server::start("", None) else { return };
    let mut bench = bench_at(&server.url());
    bench.config.qdrant.timeout = Duration::from_secs(2);
    let store = bench.open().await;
    store.write(vec![upsert("p", 1)]).await.unwrap();
    let mut server = tokio::task::spawn_blocking(move || {
        server.kill();
        server
    })
    .await
    .unwrap();
    for error in [store.write(vec![upsert("q", 1)]).await.unwrap_err(), store.ready().await.unwrap_err()] {
        assert!(matches!(error, Fault::Retry { .. }), "{error:?}");
    }
    let server = tokio::task::spawn_blocking(move || {
        server.begin();
        server
    });
    let _server = server.await.unwrap();
    let deadline = Instant::now() + Duration::from_secs(30);
    while let Err(error) = store.write(vec![upsert("q", 1)]).await {
        assert!(matches!(error, Fault::Retry { .. }) && Instant::now() < deadline, "{error:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!((stored(&store, "p").await, stored(&store, "q").await), (Some((1, false)), Some((1, false))));
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_that_start_at_once_make_one_collection() {
    let Some(bench) = Bench::server() else { return };
    let opened = futures::future::join_all((0..6).map(|_| bench.open())).await;
    for (number, store) in opened.iter().enumerate() {
        store.write(vec![upsert(&format!("p{number}"), 1)]).await.unwrap();
    }
    assert_eq!(opened[0].count().await.unwrap(), 6);
    for store in &opened {
        store.ready().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_whose_alias_moved_stays_ready_and_keeps_to_its_own_collection() {
    let Some(bench) = Bench::server() else { return };
    let store = bench.open().await;
    let (url, key) = shared().unwrap();
    let client = Qdrant::from_url(&url).api_key(key.expose()).skip_compatibility_check().build().unwrap();
    let other = format!("{}_other", bench.config.alias);
    let vectors = VectorParamsBuilder::new(8, Distance::Cosine);
    client.create_collection(CreateCollectionBuilder::new(&other).vectors_config(vectors)).await.unwrap();
    client.create_alias(CreateAliasBuilder::new(&other, &bench.config.alias)).await.unwrap();
    store.ready().await.unwrap();
    store.write(vec![upsert("p", 1)]).await.unwrap();
    assert_eq!(stored(&store, "p").await, Some((1, false)));
    let hits = found(&store, vector(1), VectorName::Image, Filter::default()).await;
    assert_eq!(hits.iter().map(|(id, _)| id.as_str()).collect::<Vec<_>>(), ["p"]);
    let in_other = client.collection_info(&other).await.unwrap().result.unwrap();
    assert_eq!(in_other.points_count(), 0, "the other model's collection has nothing of this worker");
    // One that starts now is another matter.
    let detail = bench.open_error().await;
    assert!(detail.contains("feedlens collection reindex") && detail.contains(&other), "{detail}");
    // Without its own collection it cannot serve.
    client.delete_collection(format!("{}_{}_8", bench.config.alias, stamp("small").model)).await.unwrap();
    let error = store.ready().await.unwrap_err();
    assert!(error.to_string().contains("is gone") && error.to_string().contains(&other), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn points_in_optimised_segments_lose_their_old_vectors() {
    let Some(bench) = Bench::server() else { return };
    let store = bench.open().await;
    let (url, key) = shared().unwrap();
    let client = Qdrant::from_url(&url).api_key(key.expose()).skip_compatibility_check().build().unwrap();
    let collection = format!("{}_{}_8", bench.config.alias, stamp("small").model);
    let smallest = OptimizersConfigDiffBuilder::default().indexing_threshold(1);
    let update = UpdateCollectionBuilder::new(&collection).optimizers_config(smallest);
    client.update_collection(update).await.unwrap();
    store.write((0..2_000).map(|number| upsert(&format!("p{number}"), 1)).collect()).await.unwrap();
    wait_until_indexed(&client, &collection, 2_000).await;
    store.write((0..100).map(|number| delete(&format!("p{number}"), 2)).collect()).await.unwrap();
    for number in 0..100 {
        let id = feedlens::post::point_id(&format!("p{number}"));
        let marker = store.get(&[id]).await.unwrap().remove(0);
        assert!(marker.image.is_none() && marker.caption.is_none(), "{marker:?}");
    }
    assert_eq!(store.count().await.unwrap(), 1_900);
    let hits = found(&store, vector(1), VectorName::Image, Filter::default()).await;
    assert!(hits.iter().all(|(id, _)| id[1..].parse::<u32>().unwrap() >= 100), "{hits:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn scores_of_a_quantised_collection_are_the_cosines_of_the_vectors_themselves() {
    let Some(bench) = Bench::server() else { return };
    let store = bench.open().await;
    let (url, key) = shared().unwrap();
    let client = Qdrant::from_url(&url).api_key(key.expose()).skip_compatibility_check().build().unwrap();
    let collection = format!("{}_{}_8", bench.config.alias, stamp("small").model);
    // Coarse: half of all values are cut off.
    let scalar = ScalarQuantizationBuilder::default().quantile(0.5).always_ram(true);
    let update = UpdateCollectionBuilder::new(&collection)
        .optimizers_config(OptimizersConfigDiffBuilder::default().indexing_threshold(1))
        .quantization_config(Quantization::from(scalar));
    client.update_collection(update).await.unwrap();
    store.write((0..2_000).map(|number| upsert(&format!("p{number}"), 1)).collect()).await.unwrap();
    wait_until_indexed(&client, &collection, 2_000).await;
    let bare = SearchParamsBuilder::default().quantization(QuantizationSearchParamsBuilder::default().rescore(false));
    let request = QueryPointsBuilder::new(&collection).query(vector(1)).using("image").with_vectors(true).params(bare);
    let quantised = client.query(request).await.unwrap().result;
    let with = HitParts { payload: PayloadPart::Fields(&[]), image: true };
    let query = VectorQuery { vector: vector(1), using: VectorName::Image, filter: Filter::default(), limit: 10, with };
    let hits = store.search(query).await.unwrap();
    assert_eq!(hits.len(), 10);
    let cosine = |image: &[f32]| image.iter().zip(vector(1)).map(|(a, b)| a * b).sum::<f32>();
    let error = |hit: &feedlens::store::Hit| (hit.score - cosine(hit.image.as_ref().unwrap())).abs();
    assert!(hits.iter().all(|hit| error(hit) < 1e-5), "{hits:?}");
    let true_scores = hits.iter().map(|hit| hit.score).collect::<Vec<_>>();
    let bare_scores = quantised.iter().map(|hit| hit.score).collect::<Vec<_>>();
    assert!(true_scores.iter().zip(&bare_scores).any(|(a, b)| (a - b).abs() > 1e-3), "not quantised: {bare_scores:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wider_search_of_the_graph_finds_what_a_narrow_one_misses() {
    let Some(mut bench) = Bench::server() else { return };
    (bench.config.search_ef, bench.stamp.dimension) = (1, WIDE);
    let narrow = bench.open().await;
    let (url, key) = shared().unwrap();
    let client = Qdrant::from_url(&url).api_key(key.expose()).skip_compatibility_check().build().unwrap();
    let collection = format!("{}_{}_{WIDE}", bench.config.alias, bench.stamp.model);
    // By the graph, though everything could be looked at.
    let update = UpdateCollectionBuilder::new(&collection)
        .optimizers_config(OptimizersConfigDiffBuilder::default().indexing_threshold(1))
        .hnsw_config(HnswConfigDiffBuilder::default().full_scan_threshold(10));
    client.update_collection(update).await.unwrap();
    let vectors = (0..2_000).map(|number| vector_of(number, WIDE)).collect::<Vec<_>>();
    let posts = vectors.iter().enumerate().map(|(number, vector)| {
        Write::Upsert(Point { image: Some(vector.clone()), caption: None, ..post(&format!("p{number}"), 1) })
    });
    narrow.write(posts.collect()).await.unwrap();
    wait_until_indexed(&client, &collection, 2_000).await;
    bench.config.search_ef = 2_000;
    let wide = bench.open().await;
    let (mut found_narrow, mut found_wide) = (0, 0);
    for number in 10_000..10_100 {
        let query = vector_of(number, WIDE);
        let cosine = |image: &[f32]| image.iter().zip(&query).map(|(a, b)| a * b).sum::<f32>();
        let best = (0..vectors.len()).max_by(|a, b| cosine(&vectors[*a]).total_cmp(&cosine(&vectors[*b]))).unwrap();
        for (store, found) in [(&narrow, &mut found_narrow), (&wide, &mut found_wide)] {
            let with = HitParts { payload: PayloadPart::Fields(&[]), image: false };
            let (vector, filter) = (query.clone(), Filter::default());
            let query = VectorQuery { vector, using: VectorName::Image, filter, limit: 1, with };
            let hits = store.search(query).await.unwrap();
            *found += usize::from(hits[0].id == point_id(&format!("p{best}")));
        }
    }
    assert!(found_wide == 100 && found_narrow < 100, "{found_wide} and {found_narrow} of 100");
}

/// Until the server has built its graph over so many vectors.
async fn wait_until_indexed(client: &Qdrant, collection: &str, vectors: u64) {
    let deadline = Instant::now() + Duration::from_secs(120);
    while client.collection_info(collection).await.unwrap().result.unwrap().indexed_vectors_count() < vectors {
        assert!(Instant::now() < deadline, "the server does not index");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
