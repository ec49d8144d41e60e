//! A query worker as it really runs: the small model, the embedded store with a few posts of the demo, the HTTP
//! interface on a port of its own.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use chrono::{DateTime, TimeDelta, Utc};
use feedlens::config::{Config, Overrides};
use feedlens::encode::encoder::Encoder;
use feedlens::encode::worker::Priority;
use feedlens::image::decode::{DecodeOptions, decode};
use feedlens::image::thumbnail::thumbnail;
use feedlens::metrics::Metrics;
use feedlens::post::{ImageSource, Post, point_id};
use feedlens::query::embed::QueryEncoder;
use feedlens::query::http::Interface;
use feedlens::query::live::Live;
use feedlens::query::service::{ModelInfo, SearchService, ServiceParts};
use feedlens::query::{http, keys};
use feedlens::store::{self, ModelStamp, Order, Origin, Point, SharedStore, Write};
use serde_json::Map;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::binary::root;

/// Drawings of the demo with their labels; the first eight are fruit.
pub const DRAWINGS: [(&str, &str); 18] = [
    ("1f34e", "红苹果"),
    ("1f34f", "青苹果"),
    ("1f34c", "香蕉"),
    ("1f347", "葡萄"),
    ("1f349", "西瓜"),
    ("1f353", "草莓"),
    ("1f351", "桃"),
    ("1f352", "樱桃"),
    ("1f697", "汽车"),
    ("1f68c", "公交车"),
    ("1f6b2", "自行车"),
    ("2708", "飞机"),
    ("1f426", "鸟"),
    ("1f98b", "蝴蝶"),
    ("1f436", "狗脸"),
    ("1f3e0", "房子"),
    ("26bd", "足球"),
    ("1f528", "锤子"),
];

/// The defaults, with what a test changes.
pub fn config(set: &[&str]) -> Config {
    let set = set.iter().map(ToString::to_string).collect();
    Config::load(&[], &Overrides { files: vec![], set }).expect("the configuration loads")
}

/// One encoder for the whole test binary: ONNX Runtime takes one environment in a process.
pub fn encoder() -> Encoder {
    static ENCODER: OnceLock<Encoder> = OnceLock::new();
    ENCODER
        .get_or_init(|| {
            let config = config(&[]);
            Encoder::start(&config.model, &config.encoder, &Arc::new(Metrics::new())).expect("the small model loads")
        })
        .clone()
}

/// A file of API keys, one a name, and the assignment that names it.
pub fn api_keys(entries: &[(&str, &str, &str)]) -> (tempfile::NamedTempFile, String) {
    let file = tempfile::NamedTempFile::new().expect("a file");
    write_api_keys(file.path(), entries);
    let set = format!("query.api_keys_file={}", file.path().display());
    (file, set)
}

/// Puts other keys (name, key, further lines) into the file.
pub fn write_api_keys(path: &std::path::Path, entries: &[(&str, &str, &str)]) {
    let entry = |(name, key, more): &(&str, &str, &str)| {
        format!("[{name}]\nhashes = [{:?}]\n{more}\n", keys::hash(key).expect("a good key"))
    };
    std::fs::write(path, entries.iter().map(entry).collect::<String>()).expect("written");
}

/// The file of a drawing.
pub fn drawing(code: &str) -> std::path::PathBuf {
    root().join(format!("demo/images/{code}.png"))
}

/// A drawing as base64.
pub fn drawing_base64(code: &str) -> String {
    STANDARD.encode(std::fs::read(drawing(code)).expect("the demo's drawings are there"))
}

/// A post of a drawing: posted one hour after another, by two authors in turn, tagged as fruit or not.
pub fn post_of(index: usize, code: &str, caption: &str) -> Post {
    let start: DateTime<Utc> = "2026-11-20T00:00:00Z".parse().expect("a time");
    Post {
        post_id: format!("demo:{code}"),
        author: Some(if index.is_multiple_of(2) { "甲" } else { "乙" }.to_owned()),
        caption: Some(caption.to_owned()),
        lang: Some("zh".to_owned()),
        created_at: Some(start + TimeDelta::hours(index as i64)),
        tags: vec![if index < 8 { "水果" } else { "其他" }.to_owned()],
        image: Some(ImageSource::Base64(drawing_base64(code))),
        version: None,
        extra: Map::new(),
    }
}

/// A running worker; it stops with the test.
pub struct Worker {
    pub url: String,
    pub service: Arc<SearchService>,
    pub store: SharedStore,
    pub shutdown: CancellationToken,
    pub serving: JoinHandle<anyhow::Result<()>>,
    _folder: Option<tempfile::TempDir>,
}

impl Worker {
    /// A worker over the posts of all drawings.
    pub async fn start(set: &[&str]) -> Self {
        let worker = Self::empty(set).await;
        for (index, (code, caption)) in DRAWINGS.iter().enumerate() {
            worker.index(&post_of(index, code, caption)).await;
        }
        worker
    }

    /// A worker over an empty store.
    pub async fn empty(set: &[&str]) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let path = format!("store.edge.dir={}", folder.path().join("store").display());
        Self { _folder: Some(folder), ..Self::at(&config(&[&["store.kind=edge", &path], set].concat())).await }
    }

    /// A worker over the store of a configuration.
    pub async fn at(config: &Config) -> Self {
        let encoder = encoder();
        let stamp = ModelStamp { model: encoder.bundle.id.clone(), dimension: encoder.bundle.dimension };
        let store = store::open(&config.store, &stamp, &Metrics::new()).await.expect("the store opens");
        Self::over(config, store).await
    }

    /// A worker over the store that an ingest worker fills.
    pub async fn over(config: &Config, store: SharedStore) -> Self {
        Self::serve(config, store, None, CancellationToken::new()).await
    }

    /// The same, with standing topics.
    pub async fn serve(
        config: &Config,
        store: SharedStore,
        live: Option<Arc<Live>>,
        shutdown: CancellationToken,
    ) -> Self {
        Self::serve_at("127.0.0.1:0", config, store, live, shutdown).await
    }

    /// The same at an address, as after a restart.
    pub async fn serve_at(
        address: &str,
        config: &Config,
        store: SharedStore,
        live: Option<Arc<Live>>,
        shutdown: CancellationToken,
    ) -> Self {
        let encoder = encoder();
        let service = SearchService::new(ServiceParts {
            encoder: QueryEncoder::new(encoder.clone(), &config.images, config.captions).expect("the fetcher starts"),
            store: store.clone(),
            model: ModelInfo::from(&*encoder.bundle),
            config: config.query.clone(),
            metrics: Arc::new(Metrics::new()),
        });
        let listener = TcpListener::bind(address).await.expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("bound"));
        let interface = Interface { service: service.clone(), live, labels: config.labels.clone() };
        let serving = tokio::spawn(http::run(listener, interface, shutdown.clone()));
        Self { url, service, store, shutdown, serving, _folder: None }
    }

    /// Stores a post as ingest does. A picture by path is read from the repository.
    pub async fn index(&self, post: &Post) {
        let encoder = encoder();
        let bytes = match &post.image {
            Some(ImageSource::Base64(text)) => Some(STANDARD.decode(text).expect("base64")),
            Some(ImageSource::Path(path)) => Some(std::fs::read(root().join(path)).expect("a file")),
            Some(ImageSource::Url(_)) | None => None,
        };
        let picture = bytes.map(|bytes| decode(&bytes, &DecodeOptions::default()).expect("a picture"));
        let image = match &picture {
            Some(picture) => {
                let prepared = encoder.preprocessor.prepare(picture);
                Some(encoder.handle.image(prepared, Priority::Feed).await.expect("a vector"))
            }
            None => None,
        };
        let caption = match &post.caption {
            Some(text) => Some(
                encoder
                    .handle
                    .text(encoder.tokenizer.encode(text).expect("tokenises"), Priority::Feed)
                    .await
                    .expect("a vector"),
            ),
            None => None,
        };
        let inline = matches!(post.image, Some(ImageSource::Base64(_)));
        let kept = picture.as_ref().filter(|_| inline).and_then(|picture| thumbnail(picture, 160));
        let source = Origin { topic: "posts".to_owned(), partition: 0, offset: 0, timestamp: 0 };
        let order = Order { version: Some(1), source };
        let payload = post.payload(&encoder.bundle.id, Utc::now(), kept);
        let point = Point { id: point_id(&post.post_id), order, image, caption, image_pending: false, payload };
        self.store.write(vec![Write::Upsert(point)]).await.expect("the store takes the post");
    }

    /// The answer to a request, with its status.
    pub async fn ask(&self, request: &serde_json::Value) -> (u16, serde_json::Value) {
        let response = client().post(format!("{}/v1/search", self.url)).body(request.to_string()).send().await;
        read(response.expect("an answer")).await
    }

    /// The answer to a GET.
    pub async fn get(&self, path: &str) -> (u16, serde_json::Value) {
        read(client().get(format!("{}{path}", self.url)).send().await.expect("an answer")).await
    }

    /// The `searches_total` of a source and outcome.
    pub fn searches(&self, source: &str, outcome: &str) -> u64 {
        self.service.metrics().searches.with_label_values(&[source, outcome]).get()
    }
}

/// A client that gives up on a worker that never answers.
pub fn client() -> reqwest::Client {
    reqwest::Client::builder().timeout(Duration::from_secs(30)).no_proxy().build().expect("a client")
}

/// Status and JSON of an answer.
pub async fn read(response: reqwest::Response) -> (u16, serde_json::Value) {
    let status = response.status().as_u16();
    let text = response.text().await.expect("a body");
    (status, serde_json::from_str(&text).unwrap_or_else(|error| panic!("{status}, not JSON ({error}): {text}")))
}

/// The post ids of an answer, best first.
pub fn post_ids(answer: &serde_json::Value) -> Vec<String> {
    let hits = answer["hits"].as_array().unwrap_or_else(|| panic!("no hits: {answer}"));
    hits.iter().map(|hit| hit["post_id"].as_str().expect("an id").to_owned()).collect()
}
