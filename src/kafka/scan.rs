//! Reads a topic as it is now, once: no group, no commits.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::Message as _;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use tokio_util::sync::CancellationToken;

use super::KafkaConfig;
use super::callbacks::Callbacks;
use super::client::{fault_of_creation, needs_a_person, wait_until_reachable};
use super::lag::{offset_of, offsets_at};
use super::message::Message;
use super::source::Partition;
use super::status::SourceStatus;
use crate::error::Fault;

/// A question to the brokers is answered within this, or they are out of order.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// librdkafka tries on for ever; a person who waits wants to know.
const SILENCE_TIMEOUT: Duration = Duration::from_secs(30);
/// How soon a stop is noticed.
const POLL: Duration = Duration::from_millis(100);

/// A topic that is about to be read: its partitions, each with its first offset and the one after its last. Blocks.
pub(super) struct Scan {
    consumer: BaseConsumer<Callbacks>,
    status: Arc<SourceStatus>,
    topic: Arc<str>,
    partitions: BTreeMap<i32, Extent>,
}

#[derive(Debug, Clone, Copy)]
struct Extent {
    begin: i64,
    end: i64,
}

impl Scan {
    /// Asks for the topic's partitions and their ends; `None`: there is no such topic.
    ///
    /// # Errors
    /// [`Fault::Fatal`]: the brokers do not answer, or the topic may not be read.
    pub fn open(config: &KafkaConfig, topic: &str) -> Result<Option<Self>, Fault> {
        let mut settings = config.consumer_config(&config.group);
        // Behind the last message there may be only what a transaction left.
        settings.set("enable.partition.eof", "true");
        let status = SourceStatus::new(&config.brokers, None);
        let consumer: BaseConsumer<_> = settings
            .create_with_context(Callbacks::new(status.clone(), config))
            .map_err(|error| fault_of_creation(&error))?;
        wait_until_reachable(&consumer, &status, config)?;
        let mut scan = Self { consumer, status, topic: topic.into(), partitions: BTreeMap::new() };
        let Some(count) = scan.count_partitions()? else { return Ok(None) };
        let partitions = (0..count).map(|partition| (scan.topic.clone(), partition)).collect::<Vec<Partition>>();
        let asked = |at| offsets_at(&scan.consumer, partitions.iter(), at).map_err(|error| scan.unreadable(&error));
        let (begins, ends) = (asked(Offset::Beginning)?, asked(Offset::End)?);
        for partition in &partitions {
            let (Some(begin), Some(end)) = (offset_of(&begins, partition), offset_of(&ends, partition)) else {
                return Err(scan.silent(&format!("partition {} does not tell its end", partition.1)));
            };
            scan.partitions.insert(partition.1, Extent { begin, end });
        }
        Ok(Some(scan))
    }

    /// Offsets to read; some of them may hold no message.
    pub fn offsets(&self) -> u64 {
        self.partitions.values().map(|extent| (extent.end - extent.begin).max(0) as u64).sum()
    }

    /// Reads these partitions alone, each from an offset to the one before another.
    pub fn limit_to(&mut self, extents: &BTreeMap<i32, (i64, i64)>) {
        let limited = extents.iter().map(|(partition, (begin, end))| (*partition, Extent { begin: *begin, end: *end }));
        self.partitions = limited.collect();
    }

    /// The offset after the last of a partition.
    pub fn end_of(&self, partition: i32) -> Option<i64> {
        self.partitions.get(&partition).map(|extent| extent.end)
    }

    /// Gives each message that was there when the topic was asked. Returns whether all were given: `stop` and `visit` may
    /// end it before.
    ///
    /// # Errors
    /// [`Fault::Fatal`]: the brokers no longer answer, or the topic may not be read.
    pub fn run(
        mut self,
        stop: &CancellationToken,
        mut visit: impl FnMut(Message) -> ControlFlow<()>,
    ) -> Result<bool, Fault> {
        self.partitions.retain(|_, extent| extent.begin < extent.end);
        let mut list = TopicPartitionList::new();
        for (partition, extent) in &self.partitions {
            list.add_partition_offset(&self.topic, *partition, Offset::Offset(extent.begin))
                .map_err(|error| self.unreadable(&error))?;
        }
        self.consumer.assign(&list).map_err(|error| self.unreadable(&error))?;
        let mut topics = vec![self.topic.clone()];
        let mut last_news = Instant::now();
        while !self.partitions.is_empty() {
            if stop.is_cancelled() {
                return Ok(false);
            }
            let polled = self.consumer.poll(POLL);
            while self.consumer.context().next_event().is_some() {}
            let (partition, next) = match polled {
                Some(Ok(message)) => {
                    let (partition, offset) = (message.partition(), message.offset());
                    let is_asked = self.end_of(partition).is_some_and(|end| offset < end);
                    if is_asked && visit(Message::read(&message, &mut topics)).is_break() {
                        return Ok(false);
                    }
                    (partition, offset + 1)
                }
                Some(Err(KafkaError::PartitionEOF(partition))) => (partition, i64::MAX),
                Some(Err(error)) if error.rdkafka_error_code().is_some_and(needs_a_person) => {
                    return Err(self.unreadable(&error));
                }
                Some(Err(_)) | None => {
                    if last_news.elapsed() > SILENCE_TIMEOUT {
                        let reason = self.status.last_error().unwrap_or_else(|| "nobody says why".to_owned());
                        return Err(self.silent(&reason));
                    }
                    continue;
                }
            };
            last_news = Instant::now();
            if self.end_of(partition).is_some_and(|end| next >= end) {
                self.finish(partition);
            }
        }
        Ok(true)
    }

    /// `None`: there is no such topic.
    fn count_partitions(&self) -> Result<Option<i32>, Fault> {
        let metadata =
            self.consumer.fetch_metadata(Some(&self.topic), ANSWER_TIMEOUT).map_err(|error| self.unreadable(&error))?;
        let Some(topic) = metadata.topics().iter().find(|found| found.name() == &*self.topic) else { return Ok(None) };
        match topic.error().map(RDKafkaErrorCode::from) {
            None => Ok(Some(topic.partitions().len() as i32)),
            Some(RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic) => Ok(None),
            Some(code) => Err(self.unreadable(&KafkaError::MetadataFetch(code))),
        }
    }

    /// Reads no further in this partition, where producers may still write.
    fn finish(&mut self, partition: i32) {
        self.partitions.remove(&partition);
        let mut list = TopicPartitionList::new();
        list.add_partition(&self.topic, partition);
        if let Err(error) = self.consumer.pause(&list) {
            tracing::debug!(%error, partition, "a partition that was read could not be paused");
        }
    }

    fn unreadable(&self, error: &KafkaError) -> Fault {
        let way_out = match error.rdkafka_error_code() {
            Some(code) if needs_a_person(code) => "look at the brokers' access rules and at the section [kafka]",
            _ => "look at the brokers named in kafka.brokers",
        };
        Fault::fatal(format!("topic {} cannot be read: {error}; {way_out}", self.topic))
    }

    fn silent(&self, reason: &str) -> Fault {
        Fault::fatal(format!(
            "topic {} cannot be read to its end: {reason}; look at the brokers named in kafka.brokers",
            self.topic
        ))
    }
}
