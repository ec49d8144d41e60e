//! `feedlens demo`: a broker, both workers and the store in one process.

use std::mem::ManuallyDrop;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use chrono::{SecondsFormat, Utc};
use clap::Args;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use serde_json::Value as Json;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use toml::Value;

use crate::cli::{health, output, produce, query, start, table};
use crate::config::Config;
use crate::error::Reason;
use crate::feed::{Feed, Message};
use crate::ingest::progress::Progress;
use crate::ingest::{self, IngestParts, Role};
use crate::kafka::{EmbeddedBroker, Producer, StatusSlot};
use crate::metrics::Metrics;
use crate::post::ImageSource;
use crate::query::http::Interface;
use crate::query::live::Live;
use crate::query::request::SearchRequest;
use crate::query::service::{SearchService, Source};
use crate::service;
use crate::traces::{self, Span};

/// Topics that the demo asks when the feed is in; a person should nod at the answers.
const SAMPLE_TOPICS: [&str; 4] = ["水果", "交通工具", "红苹果", "a flying animal"];
/// A picture of the bundled feed that the demo asks with.
const SAMPLE_PICTURE: &str = "images/1f431.png";
/// Partitions of the embedded broker's topics.
const PARTITIONS: i32 = 4;
/// Posts sent and not yet settled, at most, by count and by bytes: the embedded broker keeps 5 MiB a partition, what it
/// adds to each message included, and drops the oldest.
const MAX_BEHIND: u64 = 400;
/// As above. Which of the sent ones are settled is not known, so all of them must be when these bytes are used up.
const MAX_BYTES_BEHIND: usize = 5 * 1024 * 1024 - 128 * 1024;

/// Try it: Kafka, both workers and Qdrant's engine in this process, on the bundled feed
///
/// Streams the feed through an embedded Kafka broker and the bundled model into an embedded Qdrant, prints sample topics
/// with their five best posts, then serves the page until Ctrl-C.
#[derive(Args)]
pub struct Arguments {
    /// End after the sample topics
    #[arg(long)]
    once: bool,
    /// Posts to stream, JSON lines
    #[arg(long, value_name = "FILE", default_value = "demo/feed.jsonl")]
    posts: PathBuf,
    /// Keep the store in this folder; otherwise in a temporary one
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Keep going as a live feed: N posts a second, starting over (as edits) at the end of the file
    #[arg(long, value_name = "N", conflicts_with = "once", value_parser = produce::parse_rate)]
    rate: Option<f64>,
}

impl Arguments {
    /// What the demo wants of the configuration; files, environment and --set still win.
    pub fn presets(&self) -> Vec<(String, Value)> {
        let presets = [
            ("store.kind", Value::from("edge")),
            ("log.level", Value::from("warn,feedlens::ingest=info")),
            ("log.format", Value::from("text")),
            // Empty: a temporary folder, made when nobody has named another.
            ("store.edge.dir", Value::from(self.data_dir.as_deref().unwrap_or(Path::new("")).display().to_string())),
        ];
        presets.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
    }

    /// Runs the demo.
    pub async fn run(self, mut config: Config) -> Result<()> {
        let started = Instant::now();
        let pause = produce::pause(self.rate);
        let shutdown = service::shutdown_on_signal()?;
        let temporary;
        if config.store.edge.dir.as_os_str().is_empty() {
            temporary = tempfile::Builder::new()
                .prefix("feedlens-demo-")
                .tempdir()
                .context("cannot make a temporary folder; name one with --data-dir")?;
            config.store.edge.dir = temporary.path().join("edge");
        }
        // Opened first: a wrong --posts should not cost a model's loading time.
        let feed = Feed::open(&self.posts).map_err(|error| {
            anyhow!("{error:#}; run the demo in the folder that holds demo/ and models/, or name a feed with --posts")
        })?;
        let kafka = &config.kafka;
        let topics = [
            &kafka.posts_topic,
            &kafka.dead_letter_topic,
            &kafka.standing_topic,
            &kafka.matches_topic,
            &kafka.moderation_topic,
        ];
        let topics = topics.iter().filter(|topic| !topic.is_empty()).collect::<Vec<_>>();
        let topics = topics.iter().map(|topic| (topic.as_str(), PARTITIONS)).collect::<Vec<_>>();
        // To the end of the process: readers of topics end on threads of their own, and would tell that no broker answers.
        let broker = ManuallyDrop::new(EmbeddedBroker::start(&topics)?);
        config.kafka.brokers = broker.bootstrap();
        // The requests topic is for other programs, and none of them can know this broker.
        config.query.kafka = false;

        let metrics = Arc::new(Metrics::new());
        metrics.tell_process("demo");
        traces::start(&config.traces, "feedlens-demo", &metrics)?;
        let encoder = start::encoder(&config, &metrics).await?;
        let store = start::open_store(&config, &encoder, &metrics).await?;
        let search = query::search_service(&config, &encoder, &store, &metrics)?;
        let listener = if self.once { None } else { Some(service::bind(&config.query.listen, "query.listen").await?) };
        let page = listener.as_ref().map(TcpListener::local_addr).transpose()?;
        let (consumer, progress) = (StatusSlot::default(), Progress::default());
        if !self.once {
            let health = health::of(health::Parts {
                encoder: encoder.clone(),
                store: store.clone(),
                consumer: Some(consumer.clone()),
                progress: Some(progress.clone()),
                metrics: metrics.clone(),
            });
            service::start_admin(&config.admin, metrics.clone(), health, shutdown.clone()).await?;
        }
        let parts = IngestParts {
            encoder,
            store: store.clone(),
            metrics: metrics.clone(),
            consumer,
            progress,
            role: Role::Live,
        };
        // Ends with the demo, and ends the demo when it fails.
        let stop_ingest = CancellationToken::new();
        let mut ingest = tokio::spawn({
            let (config, stop) = (config.clone(), stop_ingest.clone());
            async move { ingest::run(&config, parts, stop).await }
        });

        let story = async {
            let producer = Producer::new(&config.kafka)?;
            let sender = Sender { producer: &producer, topic: &config.kafka.posts_topic, metrics: &metrics, pause };
            let live = Live::start(&config, metrics.clone(), shutdown.clone()).await?;
            let interface = Interface { service: search.clone(), live, labels: config.labels.clone() };
            let served = serve(listener, interface, shutdown.clone());
            tokio::pin!(served);
            // The page is there from the start, and shows the feed coming in.
            tokio::select! {
                served = &mut served => return served,
                told = tell(&self, feed, &sender, &search, started) => told?,
            }
            if self.once {
                return Ok(());
            }
            if let Some(page) = page {
                let scheme = if config.query.tls.is_set() { "https" } else { "http" };
                output::print(format_args!("\nthe page: {scheme}://{page}   (Ctrl-C ends)\n"))?;
            }
            tokio::select! {
                served = &mut served => served,
                failed = keep_going(&self, &sender) => failed,
            }
        };
        let (told, failed) = tokio::select! {
            told = story => (told, None),
            () = shutdown.cancelled() => (Ok(()), None),
            // By itself it only ends when it failed.
            failed = &mut ingest => (Ok(()), Some(failed)),
        };
        stop_ingest.cancel();
        let ended = match failed {
            Some(failed) => failed,
            None => ingest.await,
        };
        let ended = ended.context("ingest panicked").flatten();
        start::close(&store, told.and(ended)).await
    }
}

async fn serve(listener: Option<TcpListener>, interface: Interface, shutdown: CancellationToken) -> Result<()> {
    match listener {
        Some(listener) => crate::query::http::run(listener, interface, shutdown).await,
        None => std::future::pending().await,
    }
}

/// Sends the feed once, waits until all of it is settled, asks the sample topics.
async fn tell(
    arguments: &Arguments,
    feed: Feed,
    sender: &Sender<'_>,
    search: &SearchService,
    started: Instant,
) -> Result<()> {
    let posts = arguments.posts.display();
    output::print(format_args!("streaming {posts} through Kafka, CLIP and Qdrant's engine\n"))?;
    let began = Instant::now();
    let sent = sender.send_all(feed).await?;
    sender.wait_until_settled(sent).await;
    let indexed = sender.metrics.posts_indexed.get();
    output::print(format_args!(
        "indexed {indexed} posts in {:.1} s; {} bad posts are in the dead-letter topic:\n",
        began.elapsed().as_secs_f64(),
        ingest::progress::dead_lettered(sender.metrics)
    ))?;
    for reason in Reason::ALL {
        let count = sender.metrics.posts_dead_lettered.with_label_values(&[reason.as_str()]).get();
        if count > 0 {
            output::print(format_args!("  {count:>4}  {reason}\n"))?;
        }
    }
    for topic in SAMPLE_TOPICS {
        answer(search, topic, SearchRequest::topic(topic, search.config())).await?;
    }
    let picture = arguments.posts.parent().unwrap_or(Path::new("")).join(SAMPLE_PICTURE);
    if let Ok(bytes) = tokio::fs::read(&picture).await {
        let source = ImageSource::Base64(STANDARD.encode(bytes));
        let request = SearchRequest::picture(source, search.config());
        answer(search, &format!("the picture {}", picture.display()), request).await?;
    }
    output::print(format_args!("\nall answered {:.1} s after the start\n", started.elapsed().as_secs_f64()))
}

async fn answer(search: &SearchService, title: &str, request: SearchRequest) -> Result<()> {
    match search.search(request, Source::Cli, &Span::default()).await {
        Ok(response) => {
            output::print(format_args!("\n{title}  ({:.1} ms)\n{}", response.took_ms, table::render(&response, None)))
        }
        Err(error) => bail!("the sample topic {title:?} was not answered: {error}"),
    }
}

/// With --rate: the feed again and again, each time as edits of the same posts.
async fn keep_going(arguments: &Arguments, sender: &Sender<'_>) -> Result<()> {
    if arguments.rate.is_none() {
        return std::future::pending().await;
    }
    loop {
        sender.send_all(Feed::open(&arguments.posts)?).await?;
    }
}

struct Sender<'a> {
    producer: &'a Producer,
    topic: &'a str,
    metrics: &'a Metrics,
    pause: Duration,
}

impl Sender<'_> {
    /// Sends a feed, never further ahead of ingest than the embedded broker can hold; returns how many were sent.
    async fn send_all(&self, feed: Feed) -> Result<u64> {
        let mut messages = produce::read_in_background(feed);
        let before = self.settled();
        let mut bytes_behind = 0;
        let mut sending = FuturesUnordered::new();
        let mut ticks = tokio::time::interval(self.pause.max(Duration::from_nanos(1)));
        let mut sent = 0;
        while let Some(message) = messages.recv().await {
            if !self.pause.is_zero() {
                ticks.tick().await;
            }
            let message = edited(message?);
            let bytes = message.value.len() + message.key.as_ref().map_or(0, String::len);
            anyhow::ensure!(
                bytes <= MAX_BYTES_BEHIND,
                "the post {} takes {bytes} bytes, and the broker inside the demo keeps at most {MAX_BYTES_BEHIND}; make \
                 its picture smaller or leave it out, or use a real Kafka with `feedlens ingest`",
                message.key.as_deref().unwrap_or("without an id")
            );
            if bytes_behind + bytes > MAX_BYTES_BEHIND {
                while let Some(done) = sending.next().await {
                    done?;
                }
                self.wait_until_settled(before + sent).await;
                bytes_behind = 0;
            }
            while before + sent > self.settled() + MAX_BEHIND {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            bytes_behind += bytes;
            sending.push(produce::send(self.producer, self.topic, message));
            sent += 1;
            while let Some(Some(done)) = futures::FutureExt::now_or_never(sending.next()) {
                done?;
            }
        }
        while let Some(done) = sending.next().await {
            done?;
        }
        Ok(sent)
    }

    async fn wait_until_settled(&self, count: u64) {
        while self.settled() < count {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    fn settled(&self) -> u64 {
        ingest::progress::settled(self.metrics)
    }
}

/// The post as written just now: the embedded broker forgets its offsets with the process, so that with --data-dir
/// only a version of the post's own keeps the order across starts.
fn edited(mut message: Message) -> Message {
    let Ok(Json::Object(mut post)) = serde_json::from_slice(&message.value) else { return message };
    let now = Utc::now();
    post.entry("version").or_insert(now.timestamp_millis().into());
    post.entry("created_at").or_insert(now.to_rfc3339_opts(SecondsFormat::Secs, true).into());
    if let Ok(value) = serde_json::to_vec(&post) {
        message.value = value;
    }
    message
}
