//! Kafka: the poll thread ([`source`]), per-partition watermarks ([`offsets`]), dead letters, producers, the embedded
//! broker.
//!
//! ```text
//! librdkafka --poll--> poll thread --bounded by count and bytes--> Envelope ... settle() --> Ownership (offsets)
//!                         ^  pauses under pressure                                             |
//!                         +---- every commit_interval, at a revocation, at the stop: watermark +
//! ```

mod callbacks;
mod client;
pub mod dead_letter;
pub mod embedded;
mod envelope;
mod lag;
mod log;
mod message;
pub mod offsets;
pub mod origin;
mod poll;
pub mod producer;
mod properties;
mod scan;
pub mod source;

pub use client::check_reachable;
pub use dead_letter::{DeadLetters, SendFault};
pub use embedded::EmbeddedBroker;
pub use envelope::{Envelope, InflightLimits, Position};
pub use producer::Producer;
pub use properties::Properties;
pub use source::{DrainReport, Source, SourceStatus, StatusSlot, Subscription};

use crate::config::Secret;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Section `[kafka]` of the configuration; the comments of `config/default.toml` are the reference.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct KafkaConfig {
    /// host:port, comma-separated.
    pub brokers: String,
    /// Topic of posts.
    pub posts_topic: String,
    /// The group that shares the posts.
    pub group: String,
    /// Rejected posts.
    pub dead_letter_topic: String,
    /// Where a group without commits starts, and one whose next message is gone goes on: "earliest" or "latest".
    pub start: String,
    /// Committed offsets are written this often.
    #[serde(with = "humantime_serde")]
    pub commit_interval: Duration,
    /// Security: "plaintext", "ssl", "sasl_plaintext", "sasl_ssl".
    pub security: String,
    /// For SASL: "PLAIN", "SCRAM-SHA-256" or "SCRAM-SHA-512".
    pub sasl_mechanism: String,
    /// For PLAIN and SCRAM.
    pub sasl_username: String,
    /// For PLAIN and SCRAM.
    pub sasl_password: Secret,
    /// A broker that does not answer within this at the start ends the start with exit code 1.
    #[serde(with = "humantime_serde")]
    pub start_timeout: Duration,
    /// After this long without room downstream, partitions are paused (and polling goes on).
    #[serde(with = "humantime_serde")]
    pub pause_after: Duration,
    /// Any further librdkafka setting, as it is.
    pub properties: Properties,
}
