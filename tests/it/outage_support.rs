//! What tests of outages share: a disk that can be filled, posts that are counted, and a worker that must get over it.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::Command;

use feedlens::config::{Config, Overrides};
use feedlens::kafka::{EmbeddedBroker, Producer};
use feedlens::metrics::Metrics;
use feedlens::post::point_id;
use feedlens::store::{self, ModelStamp};
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use serde_json::json;

use crate::binary::root;
use crate::kafka_support::{PATIENCE, committed, config, wait_until};
use crate::running::Running;
use crate::skip;

pub const MIB: u64 = 1 << 20;
const PARTITIONS: i32 = 2;

/// A file system in memory.
pub struct Disk {
    folder: tempfile::TempDir,
}

impl Disk {
    /// `None`, said loudly, where this user may not mount.
    pub fn new(size: u64) -> Option<Self> {
        let folder = tempfile::tempdir().expect("a folder");
        let mut mount = Command::new("mount");
        let mounted = mount.args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"]).arg(folder.path()).output();
        if mounted.is_ok_and(|output| output.status.success()) {
            return Some(Self { folder });
        }
        skip::unable("a disk that runs full is a mount, which needs root");
        None
    }

    pub fn path(&self) -> PathBuf {
        self.folder.path().join("store")
    }

    /// Fills it until so many bytes are free.
    pub fn leave(&self, bytes: u64) {
        let mut ballast =
            File::options().create(true).append(true).open(self.folder.path().join("ballast")).expect("a file");
        let page = [0; 4_096];
        while fs4::available_space(self.folder.path()).expect("tells") > bytes && ballast.write_all(&page).is_ok() {}
    }

    pub fn make_room(&self) {
        std::fs::remove_file(self.folder.path().join("ballast")).expect("removed");
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(self.folder.path()).status();
    }
}

/// A broker, settings of the worker on it, and the posts sent so far.
pub struct Feed {
    broker: EmbeddedBroker,
    settings: Vec<String>,
    producer: Producer,
    sent: BTreeMap<String, String>,
}

impl Feed {
    /// With the settings of the store, `a.b=value`.
    pub fn new(settings: Vec<String>) -> Self {
        let broker = EmbeddedBroker::start(&[("posts", PARTITIONS), ("posts.dlq", 1)]).expect("a broker");
        let producer = Producer::new(&config(&broker.bootstrap())).expect("a producer");
        // A worker that is killed is missed soon.
        let quick = [
            "kafka.group=posts-group",
            "kafka.properties.session.timeout.ms=7000",
            "kafka.properties.heartbeat.interval.ms=500",
            "ingest.drain_timeout=1s",
            "query.timeout=1s",
            "ingest.retry_max=500ms",
        ];
        let settings = quick.into_iter().map(str::to_owned).chain(settings).collect();
        Self { broker, settings, producer, sent: BTreeMap::new() }
    }

    /// With further settings.
    pub fn worker(&self, further: &[&str]) -> Running {
        let settings = self.settings.iter().map(String::as_str).chain(further.iter().copied()).collect::<Vec<_>>();
        Running::ingest(&self.broker.bootstrap(), &settings)
    }

    /// So many posts more.
    pub async fn send(&mut self, count: usize) {
        let posts = (self.sent.len()..self.sent.len() + count).map(|number| {
            let (id, caption) = (format!("p{number}"), format!("{number} {}", "海边的日落".repeat(60)));
            (json!({"post_id": id, "caption": caption}).to_string(), id, caption)
        });
        let posts = posts.collect::<Vec<_>>();
        let sends = posts
            .iter()
            .map(|(post, id, _)| self.producer.send("posts", Some(id.as_bytes()), Some(post.as_bytes()), &[]));
        for sent in futures::future::join_all(sends).await {
            sent.expect("acknowledged");
        }
        self.sent.extend(posts.into_iter().map(|(_, id, caption)| (id, caption)));
    }

    /// Waits until the worker has settled and committed every post, and is ready; none is dead-lettered.
    pub async fn indexed(&self, running: &mut Running) {
        wait_until("every post committed", async || {
            assert!(!running.has_ended(), "the worker ended");
            let offsets = committed(&config(&self.broker.bootstrap()), PARTITIONS).await;
            offsets.values().sum::<i64>() == self.sent.len() as i64
        })
        .await;
        wait_until("the worker to be ready", async || running.get("/readyz").is_some_and(|(status, _)| status == 200))
            .await;
        let letters = dead_letters(&self.broker.bootstrap());
        assert_eq!(letters, 0, "nothing is dead-lettered for an outage");
    }

    /// How many there are.
    pub fn dead_letters(&self) -> i64 {
        dead_letters(&self.broker.bootstrap())
    }

    /// The store, opened without a worker, holds each post once as it was sent, and nothing else.
    pub async fn is_all_there(&self) {
        let mut set = vec![format!("model.dir={}", root().join("models/small").display())];
        set.extend(self.settings.iter().cloned());
        let config = Config::load(&[], &Overrides { files: vec![], set }).expect("loads");
        let model: toml::Table =
            toml::from_str(&std::fs::read_to_string(root().join("models/small/model.toml")).expect("reads"))
                .expect("TOML");
        let stamp = ModelStamp {
            model: model["id"].as_str().expect("an id").to_owned(),
            dimension: model["dimension"].as_integer().expect("a number") as usize,
        };
        let store = store::open(&config.store, &stamp, &Metrics::new()).await.expect("opens");
        assert_eq!(store.count().await.expect("counts"), self.sent.len() as u64);
        let ids = self.sent.keys().map(|id| point_id(id)).collect::<Vec<_>>();
        let stored = store.get(&ids).await.expect("reads");
        let captions = stored.iter().map(|point| {
            assert!(point.caption.is_some(), "{point:?}");
            let text = |name: &str| point.payload[name].as_str().expect("a text").to_owned();
            (text("post_id"), text("caption"))
        });
        assert_eq!(captions.collect::<BTreeMap<_, _>>(), self.sent);
        store.close().await.expect("closes");
    }
}

/// Messages in the dead-letter topic.
fn dead_letters(brokers: &str) -> i64 {
    let consumer = config(brokers).client_config().set("group.id", "letters").create::<BaseConsumer>();
    let (_, end) = consumer.expect("a consumer").fetch_watermarks("posts.dlq", 0, PATIENCE).expect("watermarks");
    end
}

/// Waits until metric and `/readyz` of a worker tell of this outage.
pub async fn says(running: &mut Running, reason: &str, sentence: &str) {
    let retried = format!("feedlens_posts_retried_total{{reason=\"{reason}\"}}");
    wait_until(&format!("the worker to say {sentence:?}"), async || {
        assert!(!running.has_ended(), "the worker ended");
        running.get("/readyz").is_some_and(|(status, body)| status == 503 && body.contains(sentence))
            && running.metric(&retried) > 0.0
    })
    .await;
}

/// Ends the worker in order; its log told of this outage once, in these words.
pub fn ends_having_told_once(running: Running, reason: &str, sentence: &str) {
    running.terminate();
    let (code, log) = running.end();
    assert_eq!(code, Some(0), "{log}");
    let told = log.lines().filter(|line| line.contains(sentence)).collect::<Vec<_>>();
    assert!(told.len() == 1 && told[0].contains(&format!("\"reason\":\"{reason}\"")), "{log}");
}
