//! Reads a whole topic and goes on reading what is written to it: every partition, no group, no commits.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::Message as _;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use tokio::sync::mpsc;

use super::KafkaConfig;
use super::callbacks::Callbacks;
use super::client::{fault_of_creation, needs_a_person, wait_until_reachable};
use super::message::Message;
use super::status::SourceStatus;
use crate::error::Fault;

/// How soon it is noticed that nobody listens any more.
const POLL: Duration = Duration::from_millis(100);
/// A question to the brokers.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// A topic that is not there yet, and one that may have got more partitions, are looked for this often.
const LOOK_FOR_TOPIC: Duration = Duration::from_secs(1);
const LOOK_FOR_PARTITIONS: Duration = Duration::from_secs(10);
/// While the end of a partition is not reached, the log says so this often.
const TOLD_EVERY: Duration = Duration::from_secs(5);
/// Items between the thread and who listens: they are small, and a listener that works on one lets the others wait.
const CAPACITY: usize = 64;

/// Where the reading begins. Partitions that come later are read whole: what lies in them is new.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Begin {
    /// At the first message of each partition.
    Earliest,
    /// So many messages before the ends, the same number in each partition, at least one. A partition that does not say where
    /// its end is, as one without a leader, is waited for in the background.
    Last(usize),
}

/// What a reader is told, in the order of each partition.
#[derive(Debug)]
pub enum Followed {
    /// A partition is read from this offset on, or from its first message behind it.
    Begins {
        /// The partition.
        partition: i32,
        /// The offset.
        offset: i64,
    },
    /// A message.
    Message(Message),
    /// A message larger than the reader takes: its key, where that is not too large, and its size in bytes.
    TooLarge {
        /// The key, byte for byte.
        key: Option<Vec<u8>>,
        /// Bytes of key and value.
        bytes: usize,
    },
    /// Told once: everything that lay in the topic when the reading began was given, or there was no such topic.
    UpToDate,
}

/// Starts to read, on a thread of its own, which ends when the receiver is dropped. Messages of more than `max_bytes` are
/// not copied.
///
/// # Errors
/// [`Fault::Fatal`]: the configuration cannot work, no broker answers within `kafka.start_timeout`, or the topic may not be
/// read.
pub async fn follow(
    config: &KafkaConfig,
    topic: &str,
    begin: Begin,
    max_bytes: usize,
) -> Result<mpsc::Receiver<Followed>, Fault> {
    let (sender, receiver) = mpsc::channel(CAPACITY);
    let (started_sender, started) = tokio::sync::oneshot::channel();
    let (config, topic) = (config.clone(), Arc::<str>::from(topic));
    std::thread::Builder::new()
        .name(format!("kafka-{topic}"))
        .spawn(move || {
            let follower = Follower::start(&config, topic, begin, max_bytes, sender);
            let (follower, started) = match follower {
                Ok(follower) => (Some(follower), Ok(())),
                Err(fault) => (None, Err(fault)),
            };
            if started_sender.send(started).is_ok()
                && let Some(follower) = follower
            {
                follower.run();
            }
        })
        .map_err(|error| Fault::fatal(format!("a thread that reads from Kafka cannot be started: {error}")))?;
    started.await.unwrap_or_else(|_| Err(Fault::fatal("a thread that reads from Kafka died. This is a bug.")))?;
    Ok(receiver)
}

struct Follower {
    consumer: BaseConsumer<Callbacks>,
    topic: Arc<str>,
    max_bytes: usize,
    sender: mpsc::Sender<Followed>,
    begin: Begin,
    known: BTreeSet<i32>,
    /// Partitions whose beginning is not told yet.
    fresh: VecDeque<(i32, i64)>,
    /// Partitions whose end was not reached yet; `None`: that was told.
    behind: Option<BTreeSet<i32>>,
    look_at: Instant,
    tell_at: Instant,
}

/// Nobody listens any more.
struct Gone;

impl Follower {
    fn start(
        config: &KafkaConfig,
        topic: Arc<str>,
        begin: Begin,
        max_bytes: usize,
        sender: mpsc::Sender<Followed>,
    ) -> Result<Self, Fault> {
        // librdkafka wants a group's name of every consumer; this one never joins it.
        let mut settings = config.consumer_config(&config.group);
        settings.set("enable.partition.eof", "true");
        // Small records, and a listener that may be slow: the read-ahead is memory.
        settings.set("queued.max.messages.kbytes", "4096").set("fetch.max.bytes", "4194304");
        let status = SourceStatus::new(&config.brokers, None);
        let consumer: BaseConsumer<_> = settings
            .create_with_context(Callbacks::new(status.clone(), config))
            .map_err(|error| fault_of_creation(&error))?;
        wait_until_reachable(&consumer, &status, config)?;
        let (known, fresh, behind) = (BTreeSet::new(), VecDeque::new(), Some(BTreeSet::new()));
        let (look_at, tell_at) = (Instant::now(), Instant::now() + TOLD_EVERY);
        let mut follower = Self { consumer, topic, max_bytes, sender, begin, known, fresh, behind, look_at, tell_at };
        follower.look().map_err(|error| {
            let topic = &follower.topic;
            let way_out = "look at the brokers' access rules and at the section [kafka]";
            Fault::fatal(format!("topic {topic} cannot be read: {error}; {way_out}"))
        })?;
        follower.behind = Some(follower.known.clone());
        Ok(follower)
    }

    fn run(mut self) {
        while let Ok(()) = self.step() {}
    }

    fn step(&mut self) -> Result<(), Gone> {
        if self.sender.is_closed() {
            return Err(Gone);
        }
        while let Some((partition, offset)) = self.fresh.pop_front() {
            self.tell(Followed::Begins { partition, offset })?;
        }
        if self.behind.as_ref().is_some_and(BTreeSet::is_empty) {
            self.behind = None;
            self.tell(Followed::UpToDate)?;
        }
        if let Some(behind) = &self.behind
            && Instant::now() >= self.tell_at
        {
            self.tell_at = Instant::now() + TOLD_EVERY;
            tracing::warn!(
                topic = %self.topic,
                partitions = ?behind,
                "these partitions are not read to their ends yet, and what needs all of them waits; where that lasts, look at the \
                 brokers: have they a leader?"
            );
        }
        if Instant::now() >= self.look_at
            && let Err(error) = self.look()
        {
            tracing::debug!(%error, topic = %self.topic, "the partitions of a topic are not known now");
        }
        let polled = self.consumer.poll(POLL);
        // Positions of partitions that nobody shares: there is nothing to be done about them.
        while self.consumer.context().next_event().is_some() {}
        let told = match polled {
            None => return Ok(()),
            Some(Ok(message)) => {
                let bytes = message.key().map_or(0, <[u8]>::len) + message.payload().map_or(0, <[u8]>::len);
                match bytes > self.max_bytes {
                    true => {
                        let key = message.key().filter(|key| key.len() <= self.max_bytes).map(<[u8]>::to_vec);
                        Followed::TooLarge { key, bytes }
                    }
                    false => Followed::Message(Message::read(&message, &mut vec![self.topic.clone()])),
                }
            }
            Some(Err(KafkaError::PartitionEOF(partition))) => {
                if let Some(behind) = &mut self.behind {
                    behind.remove(&partition);
                }
                return Ok(());
            }
            Some(Err(error)) => {
                // The error callback was told too, and with the reason.
                tracing::debug!(%error, topic = %self.topic, "poll");
                return Ok(());
            }
        };
        self.tell(told)
    }

    fn tell(&self, told: Followed) -> Result<(), Gone> {
        self.sender.blocking_send(told).map_err(|_| Gone)
    }

    /// Begins to read partitions that were not known.
    fn look(&mut self) -> Result<(), KafkaError> {
        self.look_at = Instant::now() + if self.known.is_empty() { LOOK_FOR_TOPIC } else { LOOK_FOR_PARTITIONS };
        let metadata = self.consumer.fetch_metadata(Some(&self.topic), ANSWER_TIMEOUT)?;
        let Some(topic) = metadata.topics().iter().find(|found| found.name() == &*self.topic) else {
            return Ok(());
        };
        match topic.error().map(RDKafkaErrorCode::from) {
            None => {}
            Some(RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic) => {
                // All that will be in it is new.
                self.begin = Begin::Earliest;
                return Ok(());
            }
            // It has just been made, and has no leader yet.
            Some(code) if !needs_a_person(code) => return Ok(()),
            Some(code) => return Err(KafkaError::MetadataFetch(code)),
        }
        let partitions = topic.partitions().iter().map(|partition| partition.id()).collect::<BTreeSet<_>>();
        let mut list = TopicPartitionList::new();
        for &partition in partitions.difference(&self.known) {
            let (begin, offset) = match self.begin {
                Begin::Earliest => (Offset::Beginning, 0),
                // Not as a tail: librdkafka takes it from the end also where that is before the beginning.
                Begin::Last(count) => match self.consumer.fetch_watermarks(&self.topic, partition, ANSWER_TIMEOUT) {
                    Ok((low, high)) => {
                        let offset = low.max(high - (count / partitions.len()).max(1) as i64);
                        (Offset::Offset(offset), offset)
                    }
                    Err(error) => {
                        tracing::warn!(%error, topic = %self.topic, partition, "the end of a partition is not known now");
                        continue;
                    }
                },
            };
            list.add_partition_offset(&self.topic, partition, begin)?;
            self.fresh.push_back((partition, offset));
        }
        if list.count() > 0 {
            self.consumer.incremental_assign(&list)?;
            self.known.extend(self.fresh.iter().map(|(partition, _)| partition));
            self.look_at = Instant::now() + LOOK_FOR_PARTITIONS;
        }
        if partitions.is_subset(&self.known) {
            self.begin = Begin::Earliest;
        }
        Ok(())
    }
}
