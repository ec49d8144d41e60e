//! Outages of the broker and of the store under load, on a real Kafka and a real Qdrant of the test's own: what they do to
//! memory and dead letters, and how soon the worker goes on.

use std::collections::{BTreeMap, BTreeSet};
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use feedlens::kafka::{KafkaConfig, Producer};
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use serde_json::json;

use crate::binary::root;
use crate::kafka_support::{PATIENCE, committed, config};
use crate::memory::Memory;
use crate::real_kafka::create_topic;
use crate::running::Running;
use crate::skip;
use crate::store_server::Server;

const PARTITIONS: i32 = 4;
const MIB: u64 = 1 << 20;
/// Posts that come a second.
const RATE: u32 = 200;
/// The promise of the issue: ingest goes on so soon after an outage.
const RESUMED: Duration = Duration::from_secs(30);
/// What an outage may add to the most memory that the worker ever took: posts wait in Kafka.
const MORE: u64 = 100 * MIB;

/// Kafka of this test alone: it is killed.
struct Kafka {
    folder: tempfile::TempDir,
    brokers: String,
}

impl Kafka {
    fn start() -> Option<Self> {
        if std::env::var_os("KAFKA_BROKERS").is_none() {
            skip::without("KAFKA_BROKERS is not set, so a Kafka may not be to be had here; see `make services`");
            return None;
        }
        let mut kafka = Self { folder: tempfile::tempdir().unwrap(), brokers: String::new() };
        let output = kafka.script("start");
        let said = String::from_utf8(output.stdout).unwrap();
        let brokers = said.lines().find_map(|line| line.strip_prefix("KAFKA_BROKERS="));
        kafka.brokers = brokers.expect("names the brokers").to_owned();
        Some(kafka)
    }

    fn script(&self, verb: &str) -> Output {
        let output = Command::new("scripts/services.sh")
            .args([verb, "kafka"])
            .current_dir(root())
            .env("FEEDLENS_SERVICES_DIR", self.folder.path())
            // Away from what else may start a Kafka: its port must still be free when it comes back.
            .env("FEEDLENS_SERVICES_PORT", (15_000 + std::process::id() % 200 * 20).to_string())
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        output
    }
}

impl Drop for Kafka {
    fn drop(&mut self) {
        let _ = Command::new("scripts/services.sh")
            .args(["stop", "kafka"])
            .current_dir(root())
            .env("FEEDLENS_SERVICES_DIR", self.folder.path())
            .output();
    }
}

/// Posts that keep coming, at [`RATE`], whatever is out of order; each is sent until the brokers have acknowledged it.
struct Load {
    stop: Arc<AtomicBool>,
    running: tokio::task::JoinHandle<usize>,
}

impl Load {
    fn start(kafka: &KafkaConfig) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (producer, topic) = (Arc::new(Producer::new(kafka).unwrap()), kafka.posts_topic.clone());
        let running = {
            let stop = stop.clone();
            tokio::spawn(async move {
                let mut sends = tokio::task::JoinSet::new();
                let mut ticks = tokio::time::interval(Duration::from_secs(1) / RATE);
                let mut number = 0;
                while !stop.load(Ordering::Relaxed) {
                    ticks.tick().await;
                    let (producer, topic) = (producer.clone(), topic.clone());
                    let id = format!("p{number}");
                    number += 1;
                    sends.spawn(async move {
                        let post = json!({"post_id": id, "caption": format!("海边的日落 {id}")}).to_string();
                        // A send that was not acknowledged in time may have arrived: the same post again changes nothing.
                        while producer.send(&topic, Some(id.as_bytes()), Some(post.as_bytes()), &[]).await.is_err() {}
                    });
                }
                while sends.join_next().await.is_some() {}
                number
            })
        };
        Self { stop, running }
    }

    async fn end(self) -> usize {
        self.stop.store(true, Ordering::Relaxed);
        self.running.await.unwrap()
    }
}

async fn waited(what: &str, limit: Duration, mut condition: impl AsyncFnMut() -> bool) -> Duration {
    let begin = Instant::now();
    while !condition().await {
        assert!(begin.elapsed() < limit, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    begin.elapsed()
}

/// The members of the group, by the names that the coordinator gave them.
fn members(kafka: &KafkaConfig) -> BTreeSet<String> {
    let consumer = kafka.client_config().set("group.id", "onlooker").create::<BaseConsumer>().unwrap();
    let groups = consumer.fetch_group_list(Some("posts-group"), PATIENCE).unwrap();
    let members = groups.groups().iter().flat_map(|group| group.members().iter().map(|member| member.id().to_owned()));
    members.collect()
}

/// Where the partitions end.
fn ends(kafka: &KafkaConfig) -> BTreeMap<i32, i64> {
    let consumer = kafka.client_config().set("group.id", "onlooker").create::<BaseConsumer>().unwrap();
    let end = |partition| consumer.fetch_watermarks(&kafka.posts_topic, partition, PATIENCE).unwrap().1;
    (0..PARTITIONS).map(|partition| (partition, end(partition))).collect()
}

async fn outages_of(parts: &[&str], length: Duration) {
    let Some(services) = tokio::task::block_in_place(Kafka::start) else { return };
    let Some(mut server) = Server::start("", None) else { return };
    let mut kafka = config(&services.brokers);
    (kafka.posts_topic, kafka.dead_letter_topic) = ("posts".to_owned(), "posts.dlq".to_owned());
    create_topic(&kafka, "posts", PARTITIONS, &[]).await;
    create_topic(&kafka, "posts.dlq", 1, &[]).await;
    let mut running = Running::ingest(
        &services.brokers,
        &[
            "store.kind=qdrant",
            &format!("store.qdrant.url={}", server.url()),
            "kafka.group=posts-group",
            // A worker that did not poll for so long would be evicted: each outage lasts longer.
            "kafka.properties.max.poll.interval.ms=6000",
            "kafka.properties.session.timeout.ms=6000",
            "ingest.drain_timeout=500ms",
            "query.timeout=500ms",
        ],
    );
    let load = Load::start(&kafka);
    // The warm-up message of the topic is no post.
    waited("posts", PATIENCE, async || {
        running.metric("feedlens_posts_indexed_total") > 1_000.0 && running.dead_lettered() > 0
    })
    .await;
    let (before, letters_before) = (Memory::of(running.id()), running.dead_lettered());
    let member = members(&kafka);
    assert_eq!(member.len(), 1);
    println!("before: peak {} MiB, own {} MiB, {letters_before} dead letters", before.peak / MIB, before.own / MIB);

    for &what in parts {
        match what {
            "store" => server.kill(),
            _ => drop(services.script("crash")),
        }
        tokio::time::sleep(length).await;
        assert!(!running.has_ended(), "the worker ended in the outage of the {what}");
        let (status, reason) = running.get("/readyz").unwrap();
        assert_eq!(status, 503, "{reason}");
        if what == "store" {
            // However slowly posts come on a busy machine, at last there is no room for more.
            let paused = async || running.metric("feedlens_paused_partitions") == f64::from(PARTITIONS);
            waited("the source to pause", PATIENCE, paused).await;
        }
        let during = Memory::of(running.id());
        let indexed = running.metric("feedlens_posts_indexed_total");
        let (paused, waiting) =
            (running.metric("feedlens_paused_partitions"), running.metric("feedlens_inflight_posts"));
        match what {
            "store" => server.begin(),
            _ => drop(services.script("resume")),
        }
        let resumed =
            waited("ingest to go on", RESUMED, async || running.metric("feedlens_posts_indexed_total") > indexed).await;
        let ready =
            waited("readiness", PATIENCE, async || running.get("/readyz").is_some_and(|(status, _)| status == 200))
                .await;
        println!(
            "{what} down for {length:?}: peak {} MiB, own {} MiB, {waiting} in flight, {paused} partitions paused; \
             went on after {resumed:?}, ready after {ready:?} more; {reason}",
            during.peak / MIB,
            during.own / MIB
        );
        if what == "store" {
            assert_eq!(members(&kafka), member, "a worker that waits is not evicted");
        }
    }
    let sent = load.end().await;
    // Not by the count of posts: one that was sent twice, for want of an acknowledgement, is indexed twice.
    let caught_up =
        waited("every post", 4 * length + PATIENCE, async || committed(&kafka, PARTITIONS).await == ends(&kafka)).await;
    let after = Memory::of(running.id());
    println!(
        "after: {sent} posts, all there {caught_up:?} after the last; peak {} MiB, own {} MiB, {} dead letters",
        after.peak / MIB,
        after.own / MIB,
        running.dead_lettered()
    );
    assert_eq!(running.dead_lettered(), letters_before, "nothing is dead-lettered for an outage");
    assert!(after.peak <= before.peak + MORE, "{} MiB, before {}", after.peak / MIB, before.peak / MIB);
    running.terminate();
    let (code, log) = running.end();
    assert_eq!(code, Some(0), "{log}");
    let client = qdrant_client::Qdrant::from_url(&server.url()).skip_compatibility_check().build().unwrap();
    let collection = client.list_collections().await.unwrap().collections.remove(0).name;
    let count = client.count(qdrant_client::qdrant::CountPointsBuilder::new(collection).exact(true)).await.unwrap();
    assert_eq!(count.result.unwrap().count, sent as u64, "each post is there once");
}

#[tokio::test(flavor = "multi_thread")]
async fn outages_of_store_and_broker_under_load_only_delay() {
    outages_of(&["store", "broker"], Duration::from_secs(8)).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "minutes"]
async fn five_minutes_without_the_store_under_load_only_delay() {
    outages_of(&["store"], Duration::from_secs(300)).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "minutes"]
async fn five_minutes_without_the_broker_under_load_only_delay() {
    outages_of(&["broker"], Duration::from_secs(300)).await;
}
