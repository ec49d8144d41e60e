//! Standing topics through the real ingest pipe: embedded broker, real small model, embedded store.

use std::collections::BTreeSet;

use feedlens::kafka::{Begin, EmbeddedBroker, Followed, KafkaConfig, follow};
use feedlens::standing::Match;
use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::ingest_support::{Bench, PARTITIONS, Worker};
use crate::kafka_support::{PATIENCE, committed, wait_until};
use crate::running::Running;
use crate::store_support;

/// The matches in the topic, whoever found them.
pub struct Matches(mpsc::Receiver<Followed>);

impl Matches {
    pub async fn read(config: &KafkaConfig) -> Self {
        Self(follow(config, &config.matches_topic, Begin::Earliest, 1 << 20).await.expect("reads"))
    }

    pub async fn next(&mut self) -> Match {
        loop {
            let next = tokio::time::timeout(PATIENCE, self.0.recv()).await.expect("a match in time").expect("goes on");
            if let Followed::Message(message) = next {
                let found: Match = serde_json::from_slice(&message.payload.expect("a value")).expect("a match");
                assert_eq!(message.key.as_deref(), Some(found.topic_id.as_bytes()), "the key is the topic's id");
                return found;
            }
        }
    }

    /// So many matches, as (topic, post), in no order; one may come twice.
    pub async fn pairs(&mut self, count: usize) -> BTreeSet<(String, String)> {
        let mut pairs = BTreeSet::new();
        while pairs.len() < count {
            let Match { topic_id, post_id, .. } = self.next().await;
            pairs.insert((topic_id, post_id));
        }
        pairs
    }
}

pub fn pairs<const N: usize>(pairs: [(&str, &str); N]) -> BTreeSet<(String, String)> {
    pairs.into_iter().map(|(topic, post)| (topic.to_owned(), post.to_owned())).collect()
}

impl Bench {
    /// Registers a standing topic about captions, or removes it.
    pub async fn topic(&self, id: &str, topic: Option<&str>) {
        let value = topic.map(|topic| json!({"topic": topic, "target": "caption", "min_score": 0.98}));
        self.register(id, value).await;
    }

    pub async fn register(&self, id: &str, value: Option<Value>) {
        let value = value.map(|value| value.to_string());
        let (topic, value) = (&self.config.kafka.standing_topic, value.as_deref().map(str::as_bytes));
        self.producer.send(topic, Some(id.as_bytes()), value, &[]).await.expect("acknowledged");
    }
}

/// The brokers refuse whatever is written to the topic of matches, or no longer do.
pub fn refuse_matches(bench: &Bench, refuse: bool) {
    let error = match refuse {
        true => RDKafkaRespErr::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED,
        false => RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR,
    };
    bench.broker.cluster().topic_error(&bench.config.kafka.matches_topic, error).expect("a topic");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_post_matches_what_is_registered_when_it_comes_and_nothing_that_was_removed() {
    let bench = Bench::new(&[]).await;
    bench.topic("apples", Some("红苹果")).await;
    bench.topic("cars", Some("汽车")).await;
    bench.topic("birds", Some("鸟")).await;
    bench.topic("birds", None).await;
    // Registered before the worker started: its first post finds them all.
    let worker = bench.work();
    bench.post("p1", "红苹果").await;
    bench.post("p2", "鸟").await;
    worker.wait_for(2).await;
    assert_eq!(worker.metrics.standing_topics.get(), 2);
    let mut matches = Matches::read(&bench.config.kafka).await;
    let first = matches.next().await;
    assert_eq!((&*first.topic_id, &*first.topic, &*first.post_id), ("apples", "红苹果", "p1"));
    assert_eq!((&*first.matched, first.caption.as_deref()), ("caption", Some("红苹果")));
    assert!(first.score > 0.999, "the same words: {}", first.score);

    // While posts flow: a new topic, a changed one, a removed one.
    bench.topic("dogs", Some("狗脸")).await;
    wait_until("the third topic", async || worker.metrics.standing_topics.get() == 3).await;
    bench.topic("cars", Some("房子")).await;
    bench.topic("apples", None).await;
    wait_until("the removal", async || worker.metrics.standing_topics.get() == 2).await;
    let registered = || worker.metrics.standing_registrations.with_label_values(&["registered"]).get();
    wait_until("the change", async || registered() == 5).await;
    wait_until("the change to be in force", async || worker.metrics.standing_topics.get() == 2).await;
    for (post, caption) in [("p3", "红苹果"), ("p4", "汽车"), ("p5", "狗脸"), ("p6", "房子")] {
        bench.post(post, caption).await;
    }
    worker.wait_for(6).await;
    assert_eq!(matches.pairs(2).await, pairs([("dogs", "p5"), ("cars", "p6")]));
    assert_eq!(worker.metrics.standing_matches.get(), 3, "and no more than these");
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn deletions_older_writes_and_dead_letters_match_nothing_and_edits_match_again() {
    let bench = Bench::new(&[]).await;
    bench.topic("apples", Some("红苹果")).await;
    let worker = bench.work();
    let edit = async |version: u64, caption: &str| {
        let post = json!({"post_id": "a", "caption": caption, "version": version}).to_string();
        bench.send("a", Some(post.as_bytes())).await;
    };
    // One after another: posts are prepared side by side, and the newest may be written first.
    for (settled, (version, caption)) in
        [(5, "红苹果"), (3, "红苹果"), (7, "汽车"), (9, "红苹果")].into_iter().enumerate()
    {
        edit(version, caption).await;
        worker.wait_for(settled as u64 + 1).await;
    }
    bench.send("bad", Some(b"{")).await;
    bench.send("a", None).await;
    worker.wait_for(6).await;
    let mut matches = Matches::read(&bench.config.kafka).await;
    let mut versions = [matches.next().await.version, matches.next().await.version];
    versions.sort_unstable();
    assert_eq!(versions, [5, 9]);
    assert_eq!(worker.metrics.standing_matches.get(), 2);
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_dies_between_the_store_and_the_match_tells_it_after_its_restart() {
    let bench = Bench::new(&["ingest.retry_first=5ms", "ingest.retry_max=20ms"]).await;
    bench.topic("apples", Some("红苹果")).await;
    bench.post("p1", "红苹果").await;
    refuse_matches(&bench, true);
    let worker = bench.work();
    let retried = || worker.metrics.posts_retried.with_label_values(&["broker"]).get();
    wait_until("the match to be refused", async || retried() > 0).await;
    assert!(bench.stored("p1").await.is_some(), "it is in the store");
    assert_eq!(worker.settled(), 0, "and not settled");
    worker.running.abort();
    let _ = worker.running.await;
    refuse_matches(&bench, false);
    let worker = bench.work();
    worker.wait_for(1).await;
    let found = Matches::read(&bench.config.kafka).await.next().await;
    assert_eq!((&*found.topic_id, &*found.post_id, found.version), ("apples", "p1", 0));
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_dies_after_the_match_tells_it_again_in_the_same_words() {
    let bench = Bench::new(&[]).await;
    bench.topic("apples", Some("红苹果")).await;
    bench.post("p1", "红苹果").await;
    // The group takes no commit, so that this worker leaves none behind.
    let unknown = RDKafkaRespErr::RD_KAFKA_RESP_ERR_UNKNOWN;
    bench.broker.cluster().request_errors(RDKafkaApiKey::OffsetCommit, &[unknown; 10_000]);
    let mut matches = Matches::read(&bench.config.kafka).await;
    let worker = bench.work();
    let first = matches.next().await;
    worker.stop.cancel();
    worker.running.await.expect("no panic").expect("ends");
    assert!(committed(&bench.config.kafka, PARTITIONS).await.is_empty(), "as if it had died");
    bench.broker.cluster().clear_request_errors(RDKafkaApiKey::OffsetCommit);
    let worker = bench.work();
    let second = matches.next().await;
    let key = |found: &Match| (found.topic_id.clone(), found.post_id.clone(), found.version);
    assert_eq!(key(&first), key(&second));
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_registrations_are_counted_and_take_nothing_else_along() {
    let bench = Bench::new(&["ingest.max_standing_topics=2"]).await;
    let topic = &bench.config.kafka.standing_topic;
    bench.producer.send(topic, None, Some(b"{\"topic\": \"x\"}"), &[]).await.expect("acknowledged");
    bench.producer.send(topic, Some(b"\xff"), Some(b"{\"topic\": \"x\"}"), &[]).await.expect("acknowledged");
    bench.producer.send(topic, Some(b"large"), Some(&vec![b' '; 70_000]), &[]).await.expect("acknowledged");
    bench.register("number", Some(json!(7))).await;
    bench.topic("apples", Some("红苹果")).await;
    let worker = bench.work();
    bench.post("p1", "红苹果").await;
    worker.wait_for(1).await;
    let count = |outcome: &str| worker.metrics.standing_registrations.with_label_values(&[outcome]).get();
    assert_eq!((count("rejected"), count("registered")), (4, 1));
    bench.topic("cars", Some("汽车")).await;
    wait_until("the second topic", async || worker.metrics.standing_topics.get() == 2).await;
    bench.topic("one too many", Some("鸟")).await;
    wait_until("the limit", async || count("over_limit") == 1).await;
    bench.post("p2", "鸟").await;
    bench.post("p3", "汽车").await;
    worker.wait_for(3).await;
    let found = Matches::read(&bench.config.kafka).await.pairs(2).await;
    assert_eq!(found, pairs([("apples", "p1"), ("cars", "p3")]));
    assert_eq!(worker.metrics.standing_matches.get(), 2);
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn over_the_limit_the_first_registered_are_in_force_whenever_a_worker_reads_them() {
    let bench = Bench::new(&["ingest.max_standing_topics=1"]).await;
    let register = async |id: &str, topic: &str, day: u8| {
        let created_at = format!("2026-05-{day:02}T08:00:00Z");
        let topic = json!({"topic": topic, "target": "caption", "min_score": 0.98, "created_at": created_at});
        bench.register(id, Some(topic)).await;
    };
    register("late", "汽车", 9).await;
    let follower = bench.work();
    let in_force =
        |worker: &Worker| (worker.metrics.standing_topics.get(), worker.metrics.standing_topics_over_limit.get());
    wait_until("the only topic", async || in_force(&follower) == (1, 0)).await;
    register("early", "红苹果", 1).await;
    wait_until("the earlier one", async || in_force(&follower) == (1, 1)).await;
    bench.post("p1", "汽车").await;
    bench.post("p2", "红苹果").await;
    follower.wait_for(2).await;
    // One that finds both at its start agrees.
    follower.stop().await;
    let worker = bench.work();
    bench.post("p3", "汽车").await;
    bench.post("p4", "红苹果").await;
    worker.wait_for(2).await;
    // The other one comes back as soon as there is room.
    bench.topic("early", None).await;
    wait_until("the later one", async || in_force(&worker) == (1, 0)).await;
    bench.post("p5", "汽车").await;
    bench.post("p6", "红苹果").await;
    worker.wait_for(4).await;
    let found = Matches::read(&bench.config.kafka).await.pairs(3).await;
    assert_eq!(found, pairs([("early", "p2"), ("early", "p4"), ("late", "p5")]));
    assert_eq!(worker.metrics.standing_matches.get(), 2);
    worker.stop().await;
}

/// The way out of docs/standing-topics.md.
#[tokio::test(flavor = "multi_thread")]
async fn posts_of_before_match_a_new_topic_when_another_group_reads_them_again() {
    let mut bench = Bench::new(&[]).await;
    let worker = bench.work();
    bench.post("old", "红苹果").await;
    worker.wait_for(1).await;
    bench.topic("apples", Some("红苹果")).await;
    wait_until("the topic", async || worker.metrics.standing_topics.get() == 1).await;
    bench.post("new", "红苹果").await;
    worker.wait_for(2).await;
    assert_eq!(worker.metrics.standing_matches.get(), 1, "the new post alone");
    worker.stop().await;
    let stored = bench.stored("old").await;
    bench.config.kafka.group = "posts-again".to_owned();
    let again = bench.work();
    again.wait_for(2).await;
    assert_eq!(again.metrics.standing_matches.get(), 2, "both");
    let found = Matches::read(&bench.config.kafka).await.pairs(2).await;
    assert_eq!(found, pairs([("apples", "old"), ("apples", "new")]));
    let payload = |point: Option<feedlens::store::StoredPoint>| point.expect("is there").payload;
    assert_eq!(payload(bench.stored("old").await), payload(stored), "nothing is written");
    again.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_post_that_matches_too_much_matches_the_best_and_the_rest_is_counted() {
    let bench = Bench::new(&["ingest.max_matches_per_post=3"]).await;
    for number in 0..7 {
        bench.topic(&format!("same{number}"), Some("红苹果")).await;
    }
    let worker = bench.work();
    bench.post("p1", "红苹果").await;
    worker.wait_for(1).await;
    assert_eq!((worker.metrics.standing_matches.get(), worker.metrics.standing_matches_cut.get()), (3, 4));
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_topic_of_registrations_nothing_is_matched() {
    let bench = Bench::new(&["kafka.standing_topic="]).await;
    let worker = bench.work();
    bench.post("p1", "红苹果").await;
    worker.wait_for(1).await;
    assert_eq!(worker.metrics.standing_matches.get(), 0);
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_match_that_waits_holds_up_no_other_write() {
    let bench = Bench::new(&["ingest.write_batch=1", "ingest.write_parallel=1", "ingest.retry_max=50ms"]).await;
    bench.topic("apples", Some("红苹果")).await;
    refuse_matches(&bench, true);
    let worker = bench.work();
    bench.post("p1", "红苹果").await;
    let retried = || worker.metrics.posts_retried.with_label_values(&["broker"]).get();
    wait_until("the match to be refused", async || retried() > 0).await;
    bench.post("p2", "汽车").await;
    worker.wait_for(1).await;
    assert!(bench.stored("p2").await.is_some(), "the only place among the writes is free");
    assert_eq!(worker.metrics.standing_matches.get(), 0);
    refuse_matches(&bench, false);
    worker.wait_for(2).await;
    assert_eq!(Matches::read(&bench.config.kafka).await.next().await.post_id, "p1");
    worker.stop().await;
}

/// A start that waits for Kafka says for what, however long nothing happens.
#[tokio::test(flavor = "multi_thread")]
async fn a_start_that_waits_for_registrations_says_so() {
    const TOPIC: &str = "topics.standing";
    let broker = EmbeddedBroker::start(&[("posts", 1), ("posts.dlq", 1), (TOPIC, 3)]).expect("a broker");
    broker.cluster().partition_leader(TOPIC, 2, None).expect("a partition that nobody can read");
    let worker = Running::ingest(&broker.bootstrap(), &["log.format=text"]);
    wait_until("the log to tell twice", async || {
        let log = worker.log();
        let told = log.lines().filter(|line| line.contains(TOPIC) && line.contains("{2}"));
        told.count() > 1 && log.lines().filter(|line| line.contains("is_read=false")).count() > 1
    })
    .await;
    worker.terminate();
    let (code, log) = worker.end();
    assert_eq!(code, Some(0), "{log}");
}

async fn a_match_is_told_of_what_the_store_applied(stores: store_support::Bench) {
    let bench = Bench::new(&[]).await;
    let stamp = feedlens::store::ModelStamp {
        model: bench.encoder.bundle.id.clone(),
        dimension: bench.encoder.bundle.dimension,
    };
    let store = feedlens::store::open(&stores.config, &stamp, &feedlens::metrics::Metrics::new()).await.expect("opens");
    bench.topic("apples", Some("红苹果")).await;
    let worker = bench.work_with(store);
    for (version, caption) in [(5, "红苹果"), (3, "红苹果"), (9, "红苹果")] {
        let post = json!({"post_id": "a", "caption": caption, "version": version}).to_string();
        bench.send("a", Some(post.as_bytes())).await;
        worker.wait_for(worker.settled() + 1).await;
    }
    let mut matches = Matches::read(&bench.config.kafka).await;
    assert_eq!([matches.next().await.version, matches.next().await.version], [5, 9]);
    assert_eq!(worker.metrics.standing_matches.get(), 2);
    worker.stop().await;
}

mod each_store {
    use super::store_support::Bench;

    #[tokio::test(flavor = "multi_thread")]
    async fn edge() {
        super::a_match_is_told_of_what_the_store_applied(Bench::edge()).await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn server() {
        if let Some(bench) = Bench::server() {
            super::a_match_is_told_of_what_the_store_applied(bench).await;
        }
    }
}
