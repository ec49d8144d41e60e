//! How far a group is behind the ends that its topics had at one moment: whether it has caught up, however fast posts come in
//! meanwhile.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use chrono::{DateTime, Utc};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use tokio_util::sync::CancellationToken;

use super::KafkaConfig;
use super::callbacks::Callbacks;
use super::client::{fault_of_creation, wait_until_reachable};
use super::lag::offset_of;
use super::scan::Scan;
use super::source::Partition;
use super::status::SourceStatus;
use crate::error::{Fault, Outage};

/// A question to the brokers is answered within this, or they are out of order.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// What a group has before it.
#[derive(Clone)]
pub struct Backlog(Arc<Inner>);

struct Inner {
    consumer: BaseConsumer<Callbacks>,
    config: KafkaConfig,
    topics: Vec<String>,
    /// Each partition from where the group begins without a commit to the end that it had.
    extents: Mutex<BTreeMap<Partition, (i64, i64)>>,
    last: Mutex<Option<u64>>,
}

impl Backlog {
    /// Of a group on all topics of posts, up to their present ends. `since`: where the group begins without a commit; `None`:
    /// at the earliest.
    ///
    /// # Errors
    /// [`Fault::Fatal`]: the brokers do not answer, or there is no such topic.
    pub async fn open(config: &KafkaConfig, group: &str, since: Option<DateTime<Utc>>) -> Result<Self, Fault> {
        let (config, group) = (config.clone(), group.to_owned());
        off_the_async_threads(move || {
            let status = SourceStatus::new(&config.brokers, None);
            let consumer: BaseConsumer<_> = config
                .consumer_config(&group)
                .create_with_context(Callbacks::new(status.clone(), &config))
                .map_err(|error| fault_of_creation(&error))?;
            wait_until_reachable(&consumer, &status, &config)?;
            let topics = config.posts_topics();
            let inner = Inner { consumer, config, topics, extents: Mutex::default(), last: Mutex::default() };
            inner.look(since).map_err(|error| {
                Fault::fatal(format!(
                    "the ends of {} are not known: {error}; look at kafka.posts_topic, kafka.further_posts_topics and the \
                     brokers' access rules",
                    inner.topics.join(", ")
                ))
            })?;
            Ok(Self(Arc::new(inner)))
        })
        .await
    }

    /// Moves the ends to where they are now.
    ///
    /// # Errors
    /// [`Fault::Retry`]: the brokers do not answer.
    pub async fn renew(&self) -> Result<(), Fault> {
        let inner = self.0.clone();
        off_the_async_threads(move || inner.renew().map_err(|error| retry(&error))).await
    }

    /// Offsets between the group's commits and those ends; 0 where no message lies between them.
    ///
    /// # Errors
    /// [`Fault::Retry`]: the brokers do not answer.
    pub async fn remaining(&self) -> Result<u64, Fault> {
        let inner = self.0.clone();
        off_the_async_threads(move || inner.remaining()).await
    }
}

impl Inner {
    fn look(&self, since: Option<DateTime<Utc>>) -> Result<(), KafkaError> {
        let mut partitions = Vec::new();
        for topic in &self.topics {
            let metadata = self.consumer.fetch_metadata(Some(topic), ANSWER_TIMEOUT)?;
            let found = metadata.topics().iter().find(|found| found.name() == topic);
            match found.map(|found| (found.error().map(RDKafkaErrorCode::from), found.partitions().len())) {
                Some((None, count)) if count > 0 => {
                    partitions.extend((0..count as i32).map(|number| (Arc::from(topic.as_str()), number)));
                }
                Some((Some(code), _)) => return Err(KafkaError::MetadataFetch(code)),
                _ => return Err(KafkaError::MetadataFetch(RDKafkaErrorCode::UnknownTopicOrPartition)),
            }
        }
        let mut extents = BTreeMap::new();
        for partition in &partitions {
            let (low, high) = self.consumer.fetch_watermarks(&partition.0, partition.1, ANSWER_TIMEOUT)?;
            extents.insert(partition.clone(), (low, high));
        }
        if let Some(since) = since {
            let mut list = TopicPartitionList::new();
            for (topic, partition) in extents.keys() {
                list.add_partition_offset(topic, *partition, Offset::Offset(since.timestamp_millis()))?;
            }
            let found = self.consumer.offsets_for_times(list, ANSWER_TIMEOUT)?;
            for (partition, (begin, end)) in &mut extents {
                *begin = offset_of(&found, partition).unwrap_or(*end).max(*begin);
            }
        }
        *self.extents.lock().unwrap_or_else(PoisonError::into_inner) = extents;
        Ok(())
    }

    fn renew(&self) -> Result<(), KafkaError> {
        let partitions = self.extents();
        for (partition, (begin, _)) in partitions {
            let (low, high) = self.consumer.fetch_watermarks(&partition.0, partition.1, ANSWER_TIMEOUT)?;
            let mut extents = self.extents.lock().unwrap_or_else(PoisonError::into_inner);
            extents.insert(partition, (begin.max(low), high));
        }
        Ok(())
    }

    fn extents(&self) -> BTreeMap<Partition, (i64, i64)> {
        self.extents.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn remaining(&self) -> Result<u64, Fault> {
        let extents = self.extents();
        let mut list = TopicPartitionList::new();
        for (topic, partition) in extents.keys() {
            list.add_partition(topic, *partition);
        }
        let committed = self.consumer.committed_offsets(list, ANSWER_TIMEOUT).map_err(|error| retry(&error))?;
        let mut rest = BTreeMap::new();
        for (partition, (begin, end)) in extents {
            let next = offset_of(&committed, &partition).unwrap_or(begin).max(begin);
            if next < end {
                rest.insert(partition, (next, end));
            }
        }
        let remaining = rest.values().map(|(next, end)| (end - next) as u64).sum();
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner).replace(remaining);
        // What a transaction leaves at the end of a partition is never committed past.
        if remaining > 0 && last == Some(remaining) && !self.holds_messages(&rest)? {
            return Ok(0);
        }
        Ok(remaining)
    }

    fn holds_messages(&self, rest: &BTreeMap<Partition, (i64, i64)>) -> Result<bool, Fault> {
        for topic in &self.topics {
            let of_topic = rest.iter().filter(|((name, _), _)| **name == **topic);
            let of_topic = of_topic.map(|((_, partition), extent)| (*partition, *extent)).collect::<BTreeMap<_, _>>();
            if of_topic.is_empty() {
                continue;
            }
            let Some(mut scan) = Scan::open(&self.config, topic)? else { continue };
            scan.limit_to(&of_topic);
            if !scan.run(&CancellationToken::new(), |_| std::ops::ControlFlow::Break(()))? {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

fn retry(error: &KafkaError) -> Fault {
    Fault::retry(Outage::Broker, format!("the commits of the group are not known: {error}"))
}

async fn off_the_async_threads<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Fault> + Send + 'static,
) -> Result<T, Fault> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| Err(Fault::fatal(format!("asking the brokers was given up: {error}"))))
}
