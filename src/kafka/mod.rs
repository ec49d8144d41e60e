//! Kafka: the poll thread ([`source`]), per-partition watermarks ([`offsets`]), dead letters (written, read, and sent again
//! in the order of their [`origin`]), readers of whole topics ([`follow()`]), producers, the embedded broker.
//!
//! ```text
//! librdkafka --poll--> poll thread --bounded by count and bytes--> Envelope ... settle() --> Ownership (offsets)
//!                         ^  pauses under pressure                                             |
//!                         +---- every commit_interval, at a revocation, at the stop: watermark +
//! ```

mod backlog;
mod callbacks;
mod client;
mod create;
pub mod dead_letter;
pub mod embedded;
mod envelope;
mod follow;
mod lag;
mod log;
mod message;
mod oauth;
pub mod offsets;
pub mod origin;
mod poll;
pub mod producer;
mod properties;
mod scan;
mod security;
pub mod source;
mod start;
mod status;

pub use backlog::Backlog;
pub use client::check_reachable;
pub use create::{Cleanup, create_absent};
pub use dead_letter::{DeadLetters, SendFault};
pub use embedded::EmbeddedBroker;
pub use envelope::{Envelope, InflightLimits, Position};
pub use follow::{Begin, Followed, follow};
pub use message::Message;
pub use oauth::OauthConfig;
pub use producer::Producer;
pub use properties::Properties;
pub use source::{DrainReport, Source, Subscription};
pub use status::{SourceStatus, StatusSlot};

use crate::config::Secret;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::time::Duration;

/// Section `[kafka]` of the configuration; the comments of `config/default.toml` are the reference.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct KafkaConfig {
    /// host:port, comma-separated.
    pub brokers: String,
    /// Topic of posts; `produce` writes to it.
    pub posts_topic: String,
    /// Further topics of posts, which are read beside it.
    pub further_posts_topics: Vec<String>,
    /// The group that shares the posts.
    pub group: String,
    /// Rejected posts.
    pub dead_letter_topic: String,
    /// Registrations of standing topics, a compacted topic; empty: there are none.
    pub standing_topic: String,
    /// Posts that match a standing topic.
    pub matches_topic: String,
    /// Posts that carry a label of a set with `moderation = "route"`.
    pub moderation_topic: String,
    /// Where a partition starts in which the group has no commit: "earliest", "latest", a time in RFC 3339, or offsets as
    /// "posts[0]@1200, posts[1]@1340".
    pub start: String,
    /// Committed offsets are written this often.
    #[serde(with = "humantime_serde")]
    pub commit_interval: Duration,
    /// Security: "plaintext", "ssl", "sasl_plaintext", "sasl_ssl".
    pub security: String,
    /// For "ssl" and "sasl_ssl", PEM: the authorities that sign the brokers' certificates; empty: the system's.
    pub ssl_ca: PathBuf,
    /// PEM: the certificate that this client shows, for brokers that ask for one.
    pub ssl_certificate: PathBuf,
    /// PEM: the private key of `ssl_certificate`.
    pub ssl_key: PathBuf,
    /// Of an encrypted `ssl_key`.
    pub ssl_key_password: Secret,
    /// For SASL: "PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512" or "OAUTHBEARER".
    pub sasl_mechanism: String,
    /// For PLAIN and SCRAM.
    pub sasl_username: String,
    /// For PLAIN and SCRAM.
    pub sasl_password: Secret,
    /// For OAUTHBEARER.
    pub oauth: OauthConfig,
    /// A broker that does not answer within this at the start ends the start with exit code 1.
    #[serde(with = "humantime_serde")]
    pub start_timeout: Duration,
    /// After this long without room downstream, partitions are paused (and polling goes on).
    #[serde(with = "humantime_serde")]
    pub pause_after: Duration,
    /// Any further librdkafka setting, as it is.
    pub properties: Properties,
}

impl KafkaConfig {
    /// All topics of posts.
    pub fn posts_topics(&self) -> Vec<String> {
        std::iter::once(&self.posts_topic).chain(&self.further_posts_topics).cloned().collect()
    }
}
