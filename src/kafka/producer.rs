//! An acknowledged producer: a message counts as sent when all in-sync replicas have it.

use std::sync::{OnceLock, PoisonError, RwLock};
use std::time::Duration;

use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::future_producer::Delivery;
use rdkafka::producer::{FutureProducer, FutureRecord, Producer as _};

use super::KafkaConfig;
use super::callbacks::ProducerCallbacks;
use super::client::{SEND_TIMEOUT, fault_of_creation, needs_a_person};
use crate::error::{Fault, Outage, Reason};

/// A topic that was just made is known to all brokers within this.
const PROPAGATION: Duration = Duration::from_secs(2);

/// Sends messages one by one; many sends may be under way at a time, and librdkafka batches them.
pub struct Producer {
    config: KafkaConfig,
    callbacks: ProducerCallbacks,
    batching: Client,
    /// Sends each message in a batch of its own; made when it is needed first.
    alone: OnceLock<Option<Client>>,
}

/// A message on its way.
#[derive(Clone, Copy)]
struct Outgoing<'a> {
    topic: &'a str,
    partition: Option<i32>,
    key: Option<&'a [u8]>,
    payload: Option<&'a [u8]>,
    headers: &'a [(String, Option<Vec<u8>>)],
}

impl Producer {
    /// A producer; brokers are reached when the first message is sent.
    ///
    /// # Errors
    /// [`Fault::Fatal`] for a configuration that librdkafka refuses.
    pub fn new(config: &KafkaConfig) -> Result<Self, Fault> {
        let callbacks = ProducerCallbacks::new(config);
        let batching = Client::new(config.clone(), callbacks.clone())?;
        Ok(Self { config: config.clone(), callbacks, batching, alone: OnceLock::new() })
    }

    /// As [`Self::new`], for topics that nobody here answers for: a message that is not acknowledged within `patience` is given
    /// up, and a topic that is not there is soon taken to be so.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn impatient(config: &KafkaConfig, patience: Duration) -> Result<Self, Fault> {
        let mut config = config.clone();
        for (key, limit) in
            [("message.timeout.ms", patience), ("topic.metadata.propagation.max.ms", patience.min(PROPAGATION))]
        {
            config.properties.insert(key.to_owned(), limit.as_millis().max(1).to_string());
        }
        Self::new(&config)
    }

    /// Sends a message (`payload` `None`: a tombstone) and waits for its acknowledgement; gives partition and offset.
    ///
    /// # Errors
    /// [`Fault::Reject`] if the brokers refuse its size, [`Fault::Fatal`] if the topic does not exist or may not be
    /// written, [`Fault::Retry`] if it was not acknowledged in time (it may yet arrive: a retry can send it twice).
    pub async fn send(
        &self,
        topic: &str,
        key: Option<&[u8]>,
        payload: Option<&[u8]>,
        headers: &[(String, Option<Vec<u8>>)],
    ) -> Result<(i32, i64), Fault> {
        let delivery = self.deliver(topic, None, key, payload, headers).await;
        delivery
            .map(|delivery| (delivery.partition, delivery.offset))
            .map_err(|error| fault_of_send(topic, payload.map_or(0, <[u8]>::len), &error))
    }

    /// `partition` `None`: by the key.
    pub(super) async fn deliver(
        &self,
        topic: &str,
        partition: Option<i32>,
        key: Option<&[u8]>,
        payload: Option<&[u8]>,
        headers: &[(String, Option<Vec<u8>>)],
    ) -> Result<Delivery, KafkaError> {
        let message = Outgoing { topic, partition, key, payload, headers };
        match self.batching.deliver(message).await {
            // Brokers measure batches against the limit of the topic, and refuse each message of one that is too large.
            // librdkafka does not split it, as KIP-126 has producers do.
            Err(error) if is_too_large(&error) => match self.alone() {
                Some(alone) => alone.deliver(message).await,
                None => Err(error),
            },
            delivered => delivered,
        }
    }

    fn alone(&self) -> Option<&Client> {
        let make = || {
            let mut config = self.config.clone();
            config.properties.insert("batch.num.messages".to_owned(), "1".to_owned());
            let made = Client::new(config, self.callbacks.clone());
            made.inspect_err(|fault| tracing::error!(%fault, "no kafka producer of single messages can be made")).ok()
        };
        self.alone.get_or_init(make).as_ref()
    }
}

/// A client of librdkafka, as long as it works.
struct Client {
    config: KafkaConfig,
    // librdkafka's idempotent producer can fail for good (a broker that lost its state): then it is made anew.
    producer: RwLock<FutureProducer<ProducerCallbacks>>,
    callbacks: ProducerCallbacks,
}

impl Client {
    fn new(config: KafkaConfig, callbacks: ProducerCallbacks) -> Result<Self, Fault> {
        let producer = RwLock::new(make(&config, &callbacks)?);
        Ok(Self { config, producer, callbacks })
    }

    /// Twice in the topic where it is not sure that it is there once: a broker says "sent before", and not where, after an
    /// acknowledgement that was lost, but on a partition that is new to it also of a message that it refused, for it took
    /// a later one first (KAFKA-15591). librdkafka takes both for an acknowledgement.
    async fn deliver(&self, message: Outgoing<'_>) -> Result<Delivery, KafkaError> {
        loop {
            let delivery = self.deliver_once(message).await?;
            if delivery.offset >= 0 {
                return Ok(delivery);
            }
            tracing::debug!(
                topic = message.topic,
                partition = delivery.partition,
                "acknowledged without an offset; sent again"
            );
        }
    }

    async fn deliver_once(&self, message: Outgoing<'_>) -> Result<Delivery, KafkaError> {
        let Outgoing { topic, partition, key, payload, headers } = message;
        let mut record = FutureRecord::<[u8], [u8]>::to(topic);
        record.partition = partition;
        record.key = key;
        record.payload = payload;
        if !headers.is_empty() {
            let list = headers.iter().fold(OwnedHeaders::new_with_capacity(headers.len()), |list, (key, value)| {
                list.insert(Header { key, value: value.as_deref() })
            });
            record = record.headers(list);
        }
        let producer = self.producer();
        match producer.send(record, SEND_TIMEOUT).await {
            Ok(delivery) => {
                self.callbacks.delivered();
                Ok(delivery)
            }
            Err((error, _)) => {
                if producer.client().fatal_error().is_some() {
                    self.make_anew();
                }
                Err(error)
            }
        }
    }

    fn producer(&self) -> FutureProducer<ProducerCallbacks> {
        self.producer.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn make_anew(&self) {
        let mut producer = self.producer.write().unwrap_or_else(PoisonError::into_inner);
        // Several senders may have met the same failure: the first of them replaces the producer.
        if let Some((_, reason)) = producer.client().fatal_error() {
            tracing::warn!(reason, "the kafka producer failed for good and is made anew");
            match make(&self.config, &self.callbacks) {
                Ok(fresh) => *producer = fresh,
                Err(fault) => tracing::error!(%fault, "the kafka producer could not be made anew"),
            }
        }
    }
}

fn make(config: &KafkaConfig, callbacks: &ProducerCallbacks) -> Result<FutureProducer<ProducerCallbacks>, Fault> {
    config.producer_config().create_with_context(callbacks.clone()).map_err(|error| fault_of_creation(&error))
}

/// What the error of [`Producer::deliver`] means to who sends: [`Producer::send`].
pub(super) fn fault_of_send(topic: &str, bytes: usize, error: &KafkaError) -> Fault {
    if is_too_large(error) {
        let detail = format!(
            "a message of {bytes} bytes is larger than topic {topic} takes; raise max.message.bytes of the topic, and \
             message.max.bytes where kafka.properties sets it"
        );
        return Fault::reject(Reason::TooLarge, detail);
    }
    match error.rdkafka_error_code() {
        Some(code) if needs_a_person(code) => Fault::fatal(cannot_write(topic, error)),
        _ => Fault::retry(Outage::Broker, cannot_write(topic, error)),
    }
}

/// Whether the brokers, or librdkafka by its own limit, refuse the size.
pub(super) fn is_too_large(error: &KafkaError) -> bool {
    use RDKafkaErrorCode::{MessageBatchTooLarge, MessageSizeTooLarge};
    matches!(error.rdkafka_error_code(), Some(MessageSizeTooLarge | MessageBatchTooLarge))
}

pub(super) fn cannot_write(topic: &str, error: &KafkaError) -> String {
    let way_out = match error.rdkafka_error_code() {
        Some(RDKafkaErrorCode::UnknownTopic | RDKafkaErrorCode::UnknownTopicOrPartition) => "create the topic",
        Some(code) if needs_a_person(code) => "look at the brokers' access rules and at the section [kafka]",
        _ => "look at the brokers named in kafka.brokers",
    };
    format!("topic {topic} cannot be written: {error}; {way_out}")
}
