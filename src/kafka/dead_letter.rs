//! Posts that can never be indexed go to the dead-letter topic byte for byte as they came, with headers that say why
//! and where from. From there they can be read ([`Letters`]), counted ([`summary`]) and sent again ([`replay`]).

mod letter;
pub mod replay;
pub mod selection;
pub mod summary;

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use chrono::{SecondsFormat, Utc};
use rdkafka::error::KafkaError;
use tokio_util::sync::CancellationToken;

pub use self::letter::Letter;
use super::KafkaConfig;
use super::envelope::Envelope;
use super::producer::{Producer, cannot_write, is_too_large};
use super::scan::Scan;
use crate::error::{Fault, Reason};
use crate::metrics::Metrics;
use crate::traces::w3c;

/// Why: [`Reason::as_str`].
pub const HEADER_REASON: &str = "feedlens-reason";
/// One sentence for a person, at most 2,000 bytes.
pub const HEADER_DETAIL: &str = "feedlens-detail";
/// The topic that the post came from; of a post that was sent again, here and below, where it came from first.
pub const HEADER_SOURCE_TOPIC: &str = "feedlens-source-topic";
/// The partition that the post came from.
pub const HEADER_SOURCE_PARTITION: &str = "feedlens-source-partition";
/// The offset that the post came from.
pub const HEADER_SOURCE_OFFSET: &str = "feedlens-source-offset";
/// The Kafka timestamp of the post in milliseconds since 1970; 0 where it has none.
pub const HEADER_SOURCE_TIMESTAMP: &str = "feedlens-source-timestamp";
/// When it was dead-lettered: RFC 3339, UTC.
pub const HEADER_TIME: &str = "feedlens-time";

/// The detail may quote the post, and must not make the dead letter much larger than it.
const MAX_DETAIL_BYTES: usize = 2_000;

/// A letter that is too large waits for a person.
const TOO_LARGE_RETRY: Duration = Duration::from_secs(30);

/// Why a dead letter could not be sent. Never for good: the post stays unsettled, so nothing is lost, and the posts beside
/// it go on.
#[derive(Debug, thiserror::Error)]
pub enum SendFault {
    /// The brokers do not answer, or a person must act (no such topic, no permission).
    #[error("{0}")]
    Outage(String),
    /// The letter is larger than the topic takes.
    #[error("{detail}")]
    TooLarge {
        /// One sentence for a person.
        detail: String,
        /// Asking the broker more often is noise.
        retry_after: Duration,
    },
}

/// The dead-letter topic.
pub struct DeadLetters {
    topic: String,
    producer: Producer,
    metrics: Arc<Metrics>,
}

impl DeadLetters {
    /// Dead letters go to `kafka.dead_letter_topic`.
    ///
    /// # Errors
    /// [`Fault::Fatal`] for a configuration that librdkafka refuses.
    pub fn new(config: &KafkaConfig, metrics: Arc<Metrics>) -> Result<Self, Fault> {
        Ok(Self { topic: config.dead_letter_topic.clone(), producer: producer(config)?, metrics })
    }

    /// Sends a post there: key, payload and headers as they came, then our headers. Its trace goes along: in the header that it
    /// came with, or where it had none, in one of ours. `Ok` when the broker acknowledged
    /// it; only then may the envelope be settled.
    ///
    /// # Errors
    /// A later attempt may succeed, always.
    pub async fn send(&self, envelope: &Envelope, reason: Reason, detail: &str) -> Result<(), SendFault> {
        let mut headers = envelope.headers.clone();
        if w3c::parent(|name| envelope.header(name)).is_none() {
            headers.extend(envelope.span.headers());
        }
        // One that is rejected for its origin came from where it lies.
        let source = envelope.origin().unwrap_or_else(|_| envelope.own_place());
        let mut add = |name: &str, value: String| headers.push((name.to_owned(), Some(value.into_bytes())));
        add(HEADER_REASON, reason.as_str().to_owned());
        add(HEADER_DETAIL, shortened(detail).to_owned());
        add(HEADER_SOURCE_TOPIC, source.topic);
        add(HEADER_SOURCE_PARTITION, source.partition.to_string());
        add(HEADER_SOURCE_OFFSET, source.offset.to_string());
        add(HEADER_SOURCE_TIMESTAMP, source.timestamp.to_string());
        add(HEADER_TIME, Utc::now().to_rfc3339_opts(SecondsFormat::Millis, true));
        let payload = envelope.payload.as_deref();
        self.producer
            .deliver(&self.topic, None, envelope.key.as_deref(), payload, &headers)
            .await
            .map_err(|error| self.fault(envelope, &error))?;
        self.metrics.posts_dead_lettered.with_label_values(&[reason.as_str()]).inc();
        Ok(())
    }

    fn fault(&self, envelope: &Envelope, error: &KafkaError) -> SendFault {
        if !is_too_large(error) {
            return SendFault::Outage(cannot_write(&self.topic, error));
        }
        let (topic, position) = (&self.topic, &envelope.position);
        let detail = format!(
            "the dead letter of {position} ({} bytes) is larger than topic {topic} takes; raise max.message.bytes of \
             {topic} above that of {}: until then the post waits, and its partition commits nothing past it",
            envelope.payload.as_ref().map_or(0, bytes::Bytes::len),
            position.topic,
        );
        SendFault::TooLarge { detail, retry_after: TOO_LARGE_RETRY }
    }
}

/// A producer of messages that get headers of ours. The brokers measured the message compressed; compressed, it has room for
/// them under the same limit. A user's own setting still wins.
fn producer(config: &KafkaConfig) -> Result<Producer, Fault> {
    let mut config = config.clone();
    config.properties.entry("compression.type".to_owned()).or_insert_with(|| "zstd".to_owned());
    Producer::new(&config)
}

/// The dead letters that lie in `kafka.dead_letter_topic` now; those that come meanwhile are left. Joins no group and
/// commits nothing.
pub struct Letters {
    scan: Scan,
}

impl Letters {
    /// Asks for the topic's partitions and their ends; `None`: there is no such topic. Blocks.
    ///
    /// # Errors
    /// [`Fault::Fatal`]: the brokers do not answer, or the topic may not be read.
    pub fn open(config: &KafkaConfig) -> Result<Option<Self>, Fault> {
        Ok(Scan::open(config, &config.dead_letter_topic)?.map(|scan| Self { scan }))
    }

    /// Offsets to read; some of them may hold no letter.
    pub fn offsets(&self) -> u64 {
        self.scan.offsets()
    }

    /// Reads from the first to the last of each partition; the memory that it takes does not grow with their number.
    /// Returns whether all were read: `stop` and `visit` may end it before. Blocks.
    ///
    /// # Errors
    /// [`Fault::Fatal`]: the brokers no longer answer, or the topic may not be read.
    pub fn read(
        self,
        stop: &CancellationToken,
        mut visit: impl FnMut(Letter) -> ControlFlow<()>,
    ) -> Result<bool, Fault> {
        self.scan.run(stop, |message| visit(Letter::read(message)))
    }
}

/// Cut to the limit, between characters.
fn shortened(detail: &str) -> &str {
    let end = detail.floor_char_boundary(MAX_DETAIL_BYTES);
    &detail[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_detail_is_cut_between_characters() {
        let detail = "字".repeat(1_000);
        assert_eq!(shortened(&detail).len(), 1_998);
        assert_eq!(shortened("short"), "short");
    }
}
