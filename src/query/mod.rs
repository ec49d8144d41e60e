//! The query worker: a request in, the best posts out.
//!
//! ```text
//! http   POST /v1/search, GET /v1/search, the page --+
//!                                                    +--> service: permit -> embed -> store -> rank -> answer
//! kafka  requests topic -> ... -> results topic -----+
//! ```

mod assets;
pub mod cache;
pub mod embed;
pub mod error;
pub mod http;
pub mod kafka;
pub mod rank;
pub mod request;
pub mod service;
pub mod stats;

use crate::config::Secret;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Section `[query]` of the configuration; the comments of `config/default.toml` are the reference.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct QueryConfig {
    /// Address of the page and the API.
    pub listen: String,
    /// Largest request body, in bytes.
    pub max_body_bytes: u64,
    /// Longest topic, in bytes of UTF-8.
    pub max_topic_bytes: u64,
    /// Largest top_k, and its default.
    pub max_top_k: usize,
    /// Largest top_k, and its default.
    pub top_k: usize,
    /// The best candidates over which `probability` is a softmax; at least top_k are considered.
    pub candidates: usize,
    /// Searches at a time; a further one waits up to `max_wait`, then gets 429.
    pub max_concurrent: usize,
    /// Searches at a time; a further one waits up to `max_wait`, then gets 429.
    #[serde(with = "humantime_serde")]
    pub max_wait: Duration,
    /// A search that is not answered by then gets 503.
    #[serde(with = "humantime_serde")]
    pub timeout: Duration,
    /// API keys that may search; empty: no key is asked for.
    pub api_keys: Vec<Secret>,
    /// Topic embeddings kept.
    pub cache_entries: usize,
    /// Answer requests that come over Kafka.
    pub kafka: bool,
    /// Answer requests that come over Kafka.
    pub requests_topic: String,
    /// Answer requests that come over Kafka.
    pub results_topic: String,
    /// Answer requests that come over Kafka.
    pub group: String,
}

impl QueryConfig {
    pub(crate) fn check(&self) -> anyhow::Result<()> {
        crate::service::address("query.listen", &self.listen)?;
        anyhow::ensure!(
            self.top_k >= 1 && self.top_k <= self.max_top_k,
            "query.top_k ({}) must be between 1 and query.max_top_k ({})",
            self.top_k,
            self.max_top_k
        );
        anyhow::ensure!(self.max_concurrent >= 1, "query.max_concurrent must be at least 1");
        anyhow::ensure!(
            self.api_keys.iter().all(|key| !key.is_empty()),
            "query.api_keys holds an empty key; leave the list empty to ask for none"
        );
        anyhow::ensure!(
            self.requests_topic != self.results_topic,
            "query.requests_topic and query.results_topic are both {:?}; answers would be read as requests",
            self.requests_topic
        );
        Ok(())
    }
}
