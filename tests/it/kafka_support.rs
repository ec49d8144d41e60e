//! What tests against Kafka share: a configuration, a group's committed offsets, waiting for a condition.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use feedlens::config::{Config, Overrides};
use feedlens::kafka::{Envelope, InflightLimits, KafkaConfig, Source, Subscription};
use feedlens::metrics::Metrics;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::{Offset, TopicPartitionList};
use tokio::sync::mpsc::{Receiver, UnboundedSender};

/// Generous: the machine may be busy. Conditions are met long before.
pub const PATIENCE: Duration = Duration::from_secs(60);

pub const ROOMY: InflightLimits = InflightLimits { posts: 1_000, bytes: 64 << 20 };

/// The defaults with these brokers and quick commits; the short session makes the mock cluster rebalance within 2 s.
pub fn config(brokers: &str) -> KafkaConfig {
    let mut kafka = Config::load(&[], &Overrides::default()).expect("the defaults are right").kafka;
    kafka.brokers = brokers.to_owned();
    kafka.commit_interval = Duration::from_millis(100);
    kafka.pause_after = Duration::from_millis(200);
    kafka.properties.insert("session.timeout.ms".to_owned(), "3000".to_owned());
    kafka.properties.insert("heartbeat.interval.ms".to_owned(), "300".to_owned());
    kafka
}

fn group_of(topic: &str) -> String {
    format!("{topic}-group")
}

pub fn subscription(topic: &str) -> Subscription {
    Subscription { topics: vec![topic.to_owned()], group: group_of(topic) }
}

pub async fn start(config: &KafkaConfig, limits: InflightLimits) -> (Source, Receiver<Envelope>, Arc<Metrics>) {
    // Shown with a test that fails; the poll threads are not captured, so at the level of rebalances only.
    let _ = tracing_subscriber::fmt().with_env_filter("warn,feedlens::kafka=debug").with_test_writer().try_init();
    let metrics = Arc::new(Metrics::new());
    let drain = Duration::from_secs(20);
    let subscription = subscription(&config.posts_topic);
    let (source, envelopes) =
        Source::start(config, subscription, limits, drain, metrics.clone()).await.expect("the source starts");
    (source, envelopes, metrics)
}

pub async fn receive(envelopes: &mut Receiver<Envelope>) -> Envelope {
    let received = tokio::time::timeout(PATIENCE, envelopes.recv()).await;
    received.expect("a message in time").expect("the stream goes on")
}

pub async fn receive_many(envelopes: &mut Receiver<Envelope>, count: usize) -> Vec<Envelope> {
    let mut received = Vec::new();
    while received.len() < count {
        received.push(receive(envelopes).await);
    }
    received
}

pub fn offsets(envelopes: &[Envelope]) -> Vec<i64> {
    envelopes.iter().map(|envelope| envelope.position.offset).collect()
}

/// What the group has committed for each partition that has a commit.
pub async fn committed(config: &KafkaConfig, partitions: i32) -> BTreeMap<i32, i64> {
    let (config, topic) = (config.clone(), config.posts_topic.clone());
    let read = move || {
        let consumer =
            config.client_config().set("group.id", group_of(&topic)).create::<BaseConsumer>().expect("a consumer");
        let mut list = TopicPartitionList::new();
        list.add_partition_range(&topic, 0, partitions - 1);
        let list = consumer.committed_offsets(list, PATIENCE).expect("committed offsets");
        let known = list.elements().into_iter().filter_map(|element| match element.offset() {
            Offset::Offset(offset) => Some((element.partition(), offset)),
            _ => None,
        });
        known.collect()
    };
    tokio::task::spawn_blocking(read).await.expect("no panic")
}

/// Waits until the condition holds; the message says what was waited for.
pub async fn wait_until<F: AsyncFnMut() -> bool>(what: &str, mut condition: F) {
    let deadline = Instant::now() + PATIENCE;
    while !condition().await {
        assert!(Instant::now() < deadline, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// A member of the group that settles what it gets, in batches and out of order, and says so.
pub fn settle_as_they_come(mut envelopes: Receiver<Envelope>, member: usize, told: UnboundedSender<(usize, i32, i64)>) {
    tokio::spawn(async move {
        let mut batch = Vec::new();
        while envelopes.recv_many(&mut batch, 7).await > 0 {
            for envelope in batch.drain(..).rev() {
                let _ = told.send((member, envelope.position.partition, envelope.position.offset));
                envelope.settle();
                tokio::task::yield_now().await;
            }
        }
    });
}
