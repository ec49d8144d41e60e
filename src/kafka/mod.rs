//! Kafka: the poll thread ([`source`]), per-partition watermarks ([`offsets`]), dead letters, the embedded broker.

use crate::config::Secret;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Section `[kafka]` of the configuration; the comments of `config/default.toml` are the reference.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct KafkaConfig {
    /// host:port, comma-separated.
    pub brokers: String,
    /// Topic of posts and the group that shares it.
    pub posts_topic: String,
    /// Topic of posts and the group that shares it.
    pub group: String,
    /// Rejected posts.
    pub dead_letter_topic: String,
    /// Where a group without commits starts: "earliest" or "latest".
    pub start: String,
    /// Committed offsets are written this often.
    #[serde(with = "humantime_serde")]
    pub commit_interval: Duration,
    /// Security: "plaintext", "ssl", "sasl_plaintext", "sasl_ssl".
    pub security: String,
    /// Security: "plaintext", "ssl", "sasl_plaintext", "sasl_ssl".
    pub sasl_mechanism: String,
    /// Security: "plaintext", "ssl", "sasl_plaintext", "sasl_ssl".
    pub sasl_username: String,
    /// Security: "plaintext", "ssl", "sasl_plaintext", "sasl_ssl".
    pub sasl_password: Secret,
    /// A broker that does not answer within this at the start ends the start with exit code 1.
    #[serde(with = "humantime_serde")]
    pub start_timeout: Duration,
    /// After this long without room downstream, partitions are paused (and polling goes on).
    #[serde(with = "humantime_serde")]
    pub pause_after: Duration,
    /// Any further librdkafka setting, as it is.
    pub properties: std::collections::BTreeMap<String, String>,
}
