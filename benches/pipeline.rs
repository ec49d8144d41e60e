//! `make bench`: posts a second through the whole pipe, and the same posts through each bare stage, in one run.
//!
//! Efficiency = posts/s of the pipe x summed CPU seconds a post of the stages / cores: 1 means that the pipe does nothing
//! but the stages' work and leaves no core idle. CPU seconds are the process's own (getrusage), so that other work on the
//! machine does not count; the pipe's posts/s is wall time, so for a fair figure the machine must be otherwise idle.

mod support;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use feedlens::config::{Config, Overrides};
use feedlens::encode::bundle::Bundle;
use feedlens::encode::encoder::Encoder;
use feedlens::encode::onnx::{Loading, OnnxModel};
use feedlens::encode::{Encode, EncoderConfig, PreparedImage, PreparedText};
use feedlens::feed::{Feed, Message};
use feedlens::image::decode::{DecodeOptions, decode};
use feedlens::image::fetch::ImageFetcher;
use feedlens::image::thumbnail::thumbnail;
use feedlens::ingest::{self, IngestParts, Role};
use feedlens::kafka::{EmbeddedBroker, InflightLimits, Producer, Source, Subscription};
use feedlens::metrics::Metrics;
use feedlens::post::{Post, point_id};
use feedlens::store::{self, ModelStamp, Order, Origin, Point, Write};
use futures::StreamExt;
use tokio_util::sync::CancellationToken;

use support::cpu_seconds;

/// The feed is streamed so many times over; enough that start and end do not count.
const ROUNDS: usize = 3;
/// The embedded broker keeps 5 MiB a partition.
const PARTITIONS: i32 = 16;

/// A stage's cost for one post.
struct Stage {
    name: &'static str,
    cpu_seconds: f64,
    wall_seconds: f64,
}

fn maximum_resident_mebibytes() -> f64 {
    // SAFETY: as above.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        assert_eq!(libc::getrusage(libc::RUSAGE_SELF, &raw mut usage), 0, "getrusage answers");
        usage
    };
    usage.ru_maxrss as f64 / 1024.0
}

struct Timer(f64, Instant);

impl Timer {
    fn start() -> Self {
        Self(cpu_seconds(), Instant::now())
    }

    fn stage(self, name: &'static str, posts: usize) -> Stage {
        let posts = posts as f64;
        Stage {
            name,
            cpu_seconds: (cpu_seconds() - self.0) / posts,
            wall_seconds: self.1.elapsed().as_secs_f64() / posts,
        }
    }
}

fn main() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    std::env::set_current_dir(root).expect("the repository's root");
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    runtime.block_on(bench(root));
}

fn config(folder: &Path) -> Config {
    let set = vec!["store.kind=edge".to_owned(), format!("store.edge.dir={}", folder.display())];
    Config::load(&[], &Overrides { files: vec![], set }).expect("loads")
}

async fn bench(root: &Path) {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let folder = tempfile::tempdir().expect("a folder");
    let config = config(&folder.path().join("pipe"));
    let messages = good_messages(root, &config).await;
    println!(
        "{} posts with pictures of {} KB in the mean, {cores} cores, model {}",
        messages.len(),
        kilobytes(&messages),
        config.model.dir.display()
    );

    let (prepare, prepared) = bare_prepare(&config, &messages).await;
    let (encode, vectors) = bare_encode(&config, &prepared);
    let write = bare_write(&config, folder.path(), &prepared, vectors).await;
    let consume = bare_consume(&config, &messages).await;
    let stages = [consume, prepare, encode, write];

    let (posts_per_second, cpu_per_post) = whole_pipe(&config, &messages).await;

    let summed: f64 = stages.iter().map(|stage| stage.cpu_seconds).sum();
    println!("\n{:<34}{:>12}{:>14}{:>10}", "", "posts/s", "CPU ms/post", "share");
    for stage in &stages {
        println!(
            "bare {:<29}{:>12.0}{:>14.3}{:>9.1}%",
            stage.name,
            1.0 / stage.wall_seconds,
            1e3 * stage.cpu_seconds,
            100.0 * stage.cpu_seconds / summed
        );
    }
    println!("{:<34}{:>12}{:>14.3}", "sum of the bare stages", "", 1e3 * summed);
    println!("{:<34}{:>12.0}{:>14.3}", "whole pipe", posts_per_second, 1e3 * cpu_per_post);
    println!(
        "\npipe efficiency {:.3}  (posts/s x CPU s/post of the bare stages / cores)",
        posts_per_second * summed / cores as f64
    );
    println!("CPU beyond the bare stages {:.1}%", 100.0 * (cpu_per_post / summed - 1.0));
    println!("maximum resident memory of this process {:.0} MiB", maximum_resident_mebibytes());
}

/// The posts that can be indexed: the bad ones of the feed would only cost the pipe a dead letter.
async fn good_messages(root: &Path, config: &Config) -> Vec<Message> {
    let fetcher = ImageFetcher::new(&config.images).expect("a fetcher");
    let options = DecodeOptions { max_pixels: config.images.max_pixels, ..DecodeOptions::default() };
    let mut good = Vec::new();
    for message in Feed::open(&root.join("demo/feed.jsonl")).expect("the bundled feed") {
        let message = message.expect("reads");
        let key = message.key.as_ref().map(String::as_bytes);
        let Ok(Post { image: Some(source), caption: Some(_), .. }) = Post::parse(&message.value, key, &config.posts)
        else {
            continue;
        };
        if fetcher.bytes(&source).await.is_ok_and(|bytes| decode(&bytes, &options).is_ok()) {
            good.push(message);
        }
    }
    good
}

fn kilobytes(messages: &[Message]) -> usize {
    messages.iter().map(|message| message.value.len()).sum::<usize>() / messages.len() / 1000
}

struct Prepared {
    post: Post,
    image: PreparedImage,
    text: PreparedText,
    thumbnail: Option<String>,
}

/// Parsing, base64, decoding, resizing, thumbnail, tokenising: on one core.
async fn bare_prepare(config: &Config, messages: &[Message]) -> (Stage, Vec<Prepared>) {
    let encoder = Encoder::start(&config.model, &config.encoder, &Arc::new(Metrics::new())).expect("the model loads");
    let fetcher = ImageFetcher::new(&config.images).expect("a fetcher");
    let options = DecodeOptions { max_pixels: config.images.max_pixels, ..DecodeOptions::default() };
    let mut all = Vec::with_capacity(messages.len());
    let timer = Timer::start();
    for message in messages {
        let key = message.key.as_ref().map(String::as_bytes);
        let Ok(post) = Post::parse(&message.value, key, &config.posts) else { continue };
        let (Some(source), Some(caption)) = (&post.image, &post.caption) else { continue };
        let Ok(bytes) = fetcher.bytes(source).await else { continue };
        let Ok(picture) = decode(&bytes, &options) else { continue };
        let image = encoder.preprocessor.prepare(&picture);
        let thumbnail = thumbnail(&picture, config.images.thumbnail_pixels);
        let text = encoder.tokenizer.encode(&config.captions.apply(caption)).expect("tokenises");
        all.push(Prepared { post, image, text, thumbnail });
    }
    (timer.stage("prepare (one core)", messages.len()), all)
}

/// Of a picture and of its caption.
type Vectors = (Vec<f32>, Vec<f32>);

/// Both towers through ONNX Runtime, batches of the configured size, one thread.
fn bare_encode(config: &Config, prepared: &[Prepared]) -> (Stage, Vec<Vectors>) {
    let bundle = Bundle::load(&config.model.dir).expect("the bundle");
    let settings = EncoderConfig { workers: 1, threads: 1, ..config.encoder.clone() };
    let model = OnnxModel::load(bundle, &settings, Loading::AtStart).expect("the model");
    let mut encoder = model.worker(Loading::AtStart).expect("sessions");
    let images = prepared.iter().map(|item| item.image.clone()).collect::<Vec<_>>();
    let texts = prepared.iter().map(|item| item.text.clone()).collect::<Vec<_>>();
    // The first run plans memory and packs weights.
    encoder.images(&images[..config.encoder.max_batch_images]).expect("encodes");
    encoder.texts(&texts[..config.encoder.max_batch_texts]).expect("encodes");
    let timer = Timer::start();
    let mut image_vectors = Vec::new();
    for batch in images.chunks(config.encoder.max_batch_images) {
        image_vectors.extend(encoder.images(batch).expect("encodes"));
    }
    let mut text_vectors = Vec::new();
    for batch in texts.chunks(config.encoder.max_batch_texts) {
        text_vectors.extend(encoder.texts(batch).expect("encodes"));
    }
    let stage = timer.stage("encode (one thread)", prepared.len());
    let normalise = |vector| feedlens::encode::normalise(vector).expect("finite");
    (stage, image_vectors.into_iter().map(normalise).zip(text_vectors.into_iter().map(normalise)).collect())
}

/// Upserts into the embedded store, batches of the configured size, one at a time.
async fn bare_write(config: &Config, folder: &Path, prepared: &[Prepared], vectors: Vec<Vectors>) -> Stage {
    let mut store_config = config.store.clone();
    store_config.edge.dir = folder.join("bare");
    let store = store::open(&store_config, &stamp(config), &Metrics::new()).await.expect("opens");
    let points = prepared.iter().zip(vectors).map(|(item, (image, caption))| {
        let source = Origin { topic: "posts".to_owned(), partition: 0, offset: 0, timestamp: 0 };
        Write::Upsert(Point {
            id: point_id(&item.post.post_id),
            order: Order { version: Some(1), source },
            image: Some(image),
            caption: Some(caption),
            image_pending: false,
            payload: item.post.payload("bench", chrono::Utc::now(), item.thumbnail.clone()),
        })
    });
    let points = points.collect::<Vec<_>>();
    let timer = Timer::start();
    for batch in points.chunks(config.ingest.write_batch) {
        store.write(batch.to_vec()).await.expect("writes");
    }
    let stage = timer.stage("upsert (embedded Qdrant)", prepared.len());
    store.close().await.expect("closes");
    stage
}

fn stamp(config: &Config) -> ModelStamp {
    let bundle = Bundle::load(&config.model.dir).expect("the bundle");
    ModelStamp { model: bundle.id, dimension: bundle.dimension }
}

/// Fills a broker with the feed, `ROUNDS` times over.
async fn filled_broker(config: &Config, messages: &[Message]) -> (EmbeddedBroker, Config) {
    let topics = [&config.kafka.posts_topic, &config.kafka.dead_letter_topic].map(|topic| (topic.as_str(), PARTITIONS));
    let broker = EmbeddedBroker::start(&topics).expect("a broker");
    let mut config = config.clone();
    config.kafka.brokers = broker.bootstrap().to_string();
    let producer = Producer::new(&config.kafka).expect("a producer");
    let all = (0..ROUNDS).flat_map(|_| messages);
    futures::stream::iter(all)
        .map(|message| {
            producer.send(
                &config.kafka.posts_topic,
                message.key.as_ref().map(String::as_bytes),
                Some(&message.value),
                &[],
            )
        })
        .buffer_unordered(256)
        .for_each(async |sent| {
            sent.expect("acknowledged");
        })
        .await;
    drop(producer);
    (broker, config)
}

/// The source alone: every message is settled as it comes.
async fn bare_consume(config: &Config, messages: &[Message]) -> Stage {
    let (_broker, mut config) = filled_broker(config, messages).await;
    config.kafka.group = "bench-consume".to_owned();
    let subscription =
        Subscription { topics: vec![config.kafka.posts_topic.clone()], group: config.kafka.group.clone() };
    let limits = InflightLimits { posts: config.ingest.max_inflight_posts, bytes: config.ingest.max_inflight_bytes };
    let drain = Duration::from_secs(5);
    let (source, mut envelopes) =
        Source::start(&config.kafka, subscription, limits, drain, Arc::new(Metrics::new())).await.expect("a source");
    // The first message comes after the group has formed, which is not throughput.
    envelopes.recv().await.expect("a message").settle();
    let timer = Timer::start();
    let count = ROUNDS * messages.len() - 1;
    for _ in 0..count {
        envelopes.recv().await.expect("a message").settle();
    }
    let stage = timer.stage("consume (embedded Kafka)", count);
    source.stop(drain).await.expect("stops");
    stage
}

/// Posts a second of wall time, from the first post indexed to the last, and CPU seconds a post.
async fn whole_pipe(config: &Config, messages: &[Message]) -> (f64, f64) {
    let (_broker, config) = filled_broker(config, messages).await;
    let metrics = Arc::new(Metrics::new());
    let encoder = Encoder::start(&config.model, &config.encoder, &metrics).expect("the model loads");
    let store = store::open(&config.store, &stamp(&config), &metrics).await.expect("opens");
    let (consumer, progress) = Default::default();
    let parts =
        IngestParts { encoder, store: store.clone(), metrics: metrics.clone(), consumer, progress, role: Role::Live };
    let stop = CancellationToken::new();
    let running = tokio::spawn({
        let (config, stop) = (config.clone(), stop.clone());
        async move { ingest::run(&config, parts, stop).await }
    });
    let total = (ROUNDS * messages.len()) as u64;
    let wait_for = async |count: u64| {
        while metrics.posts_indexed.get() < count {
            assert!(!running.is_finished(), "ingest ended early");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    wait_for(1).await;
    let (timer, first) = (Timer::start(), metrics.posts_indexed.get());
    wait_for(total).await;
    let whole = timer.stage("whole pipe", (total - first) as usize);
    stop.cancel();
    running.await.expect("no panic").expect("ends well");
    store.close().await.expect("closes");
    (1.0 / whole.wall_seconds, whole.cpu_seconds)
}
