//! The run's side of Kafka: topics, an acknowledged producer, the group's commits, a topic read to its end.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rdkafka::admin::{AdminClient, AdminOptions, AlterConfig, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, Headers as _, Message as _, OwnedHeaders};
use rdkafka::producer::{DeliveryFuture, FutureProducer, FutureRecord, Producer as _};
use rdkafka::{Offset, TopicPartitionList};

use crate::posts::{Message, NUMBER_HEADER, PARTITIONS};

pub const POSTS: &str = "posts";
pub const DEAD_LETTERS: &str = "posts.dlq";
pub const GROUP: &str = "feedlens-ingest";
const DEAD_LETTER_PARTITIONS: i32 = 3;
const TIMEOUT: Duration = Duration::from_secs(10);

/// A message as a topic holds it.
#[derive(Debug, Clone, PartialEq)]
pub struct Record {
    pub partition: i32,
    pub offset: i64,
    pub timestamp: i64,
    pub key: Option<Vec<u8>>,
    pub payload: Option<Vec<u8>>,
    pub headers: Vec<(String, Option<Vec<u8>>)>,
}

impl Record {
    /// The number that the generator gave it.
    pub fn number(&self) -> Option<u64> {
        std::str::from_utf8(self.header(NUMBER_HEADER)?).ok()?.parse().ok()
    }

    /// The first header of a name.
    pub fn header(&self, name: &str) -> Option<&[u8]> {
        self.headers.iter().find(|(known, _)| known == name)?.1.as_deref()
    }
}

#[derive(Clone)]
pub struct Kafka {
    brokers: String,
    producer: FutureProducer,
    group: Arc<BaseConsumer>,
}

impl Kafka {
    /// Makes the topics.
    pub async fn start(brokers: &str) -> Result<Self> {
        let admin: AdminClient<DefaultClientContext> = client(brokers).create()?;
        let topics = [(POSTS, PARTITIONS), (DEAD_LETTERS, DEAD_LETTER_PARTITIONS)]
            .map(|(name, partitions)| NewTopic::new(name, partitions, TopicReplication::Fixed(1)));
        for created in admin.create_topics(&topics, &AdminOptions::new()).await? {
            created.map_err(|(topic, code)| anyhow::anyhow!("topic {topic}: {code}"))?;
        }
        let producer = client(brokers)
            .set("enable.idempotence", "true")
            .set("acks", "all")
            // Longer than any outage: a message that was never acknowledged would be neither here nor there.
            .set("message.timeout.ms", "600000")
            .create()?;
        let group = Arc::new(client(brokers).set("group.id", GROUP).create()?);
        Ok(Self { brokers: brokers.to_owned(), producer, group })
    }

    /// Whether the dead-letter topic refuses every letter for now, for want of a second replica.
    pub async fn refuse_dead_letters(&self, refuse: bool) -> Result<()> {
        let admin: AdminClient<DefaultClientContext> = client(&self.brokers).create()?;
        let replicas = if refuse { "2" } else { "1" };
        let config = AlterConfig::new(ResourceSpecifier::Topic(DEAD_LETTERS)).set("min.insync.replicas", replicas);
        for altered in admin.alter_configs([&config], &AdminOptions::new()).await? {
            altered.map_err(|(resource, code)| anyhow::anyhow!("{resource:?}: {code}"))?;
        }
        Ok(())
    }

    /// Hands a message to the producer, which keeps the order; the future ends with the acknowledgement.
    ///
    /// # Errors
    /// The producer's queue is full for longer than any outage lasts.
    pub async fn send(&self, message: &Message, timestamp: i64) -> Result<DeliveryFuture> {
        let mut headers = OwnedHeaders::new_with_capacity(message.headers.len());
        for (key, value) in &message.headers {
            headers = headers.insert(Header { key, value: value.as_deref() });
        }
        let mut record = FutureRecord::<[u8], [u8]>::to(POSTS).partition(message.partition).timestamp(timestamp);
        (record.key, record.payload) = (message.key.as_deref(), message.payload.as_deref());
        record = record.headers(headers);
        let deadline = Instant::now() + Duration::from_secs(120);
        loop {
            match self.producer.send_result(record) {
                Ok(delivery) => return Ok(delivery),
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), returned)) => {
                    ensure!(Instant::now() < deadline, "the producer's queue stays full");
                    record = returned;
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                Err((error, _)) => return Err(error.into()),
            }
        }
    }

    /// Everything handed over is acknowledged or has failed.
    pub async fn flush(&self) -> Result<()> {
        let producer = self.producer.clone();
        tokio::task::spawn_blocking(move || producer.flush(Duration::from_secs(120))).await?.context("flush")
    }

    /// What the group has committed, for partitions that have a commit.
    ///
    /// # Errors
    /// The broker does not answer.
    pub async fn committed(&self) -> Result<BTreeMap<i32, i64>> {
        let group = self.group.clone();
        let read = move || {
            let mut list = TopicPartitionList::new();
            list.add_partition_range(POSTS, 0, PARTITIONS - 1);
            let list = group.committed_offsets(list, Duration::from_secs(3))?;
            let known = list.elements().into_iter().filter_map(|element| match element.offset() {
                Offset::Offset(offset) => Some((element.partition(), offset)),
                _ => None,
            });
            Ok(known.collect())
        };
        tokio::task::spawn_blocking(read).await?
    }

    /// Every message of a topic, by partition and offset.
    pub async fn read(&self, topic: &'static str) -> Result<Vec<Record>> {
        let consumer: BaseConsumer = client(&self.brokers)
            .set("group.id", "chaos-reader")
            .set("enable.auto.commit", "false")
            .set("auto.offset.reset", "earliest")
            .create()?;
        tokio::task::spawn_blocking(move || read_to_end(&consumer, topic)).await?
    }
}

fn client(brokers: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", brokers).set("reconnect.backoff.max.ms", "1000");
    config
}

fn read_to_end(consumer: &BaseConsumer, topic: &str) -> Result<Vec<Record>> {
    let partitions = if topic == POSTS { PARTITIONS } else { DEAD_LETTER_PARTITIONS };
    let mut list = TopicPartitionList::new();
    // What comes meanwhile belongs to the next reading.
    let (mut missing, mut ends) = (0, Vec::new());
    for partition in 0..partitions {
        let (low, high) = consumer.fetch_watermarks(topic, partition, TIMEOUT)?;
        missing += high - low;
        ends.push(high);
        list.add_partition_offset(topic, partition, Offset::Beginning)?;
    }
    consumer.assign(&list)?;
    let mut records = Vec::new();
    let mut deadline = Instant::now() + TIMEOUT;
    while (records.len() as i64) < missing {
        ensure!(Instant::now() < deadline, "{topic}: {} of {missing} messages could be read", records.len());
        let Some(message) = consumer.poll(Duration::from_millis(100)) else { continue };
        let message = message?;
        deadline = Instant::now() + TIMEOUT;
        if message.offset() >= ends[message.partition() as usize] {
            continue;
        }
        let headers = message.headers().map(|headers| {
            headers.iter().map(|header| (header.key.to_owned(), header.value.map(<[u8]>::to_vec))).collect()
        });
        records.push(Record {
            partition: message.partition(),
            offset: message.offset(),
            timestamp: message.timestamp().to_millis().unwrap_or_default(),
            key: message.key().map(<[u8]>::to_vec),
            payload: message.payload().map(<[u8]>::to_vec),
            headers: headers.unwrap_or_default(),
        });
    }
    records.sort_by_key(|record| (record.partition, record.offset));
    Ok(records)
}
