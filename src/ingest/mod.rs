//! The ingest worker: all wiring on one screen.

use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Section `[ingest]` of the configuration; the comments of `config/default.toml` are the reference.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct IngestConfig {
    /// Posts in flight between the source and the store, by count and by bytes of their messages.
    pub max_inflight_posts: usize,
    /// Posts in flight between the source and the store, by count and by bytes of their messages.
    pub max_inflight_bytes: u64,
    /// Posts written to the store at a time, and how long an unfinished batch waits.
    pub write_batch: usize,
    /// Posts written to the store at a time, and how long an unfinished batch waits.
    #[serde(with = "humantime_serde")]
    pub write_wait: Duration,
    /// Batches written in parallel.
    pub write_parallel: usize,
    /// Back-off while the store is out of order.
    #[serde(with = "humantime_serde")]
    pub retry_first: Duration,
    /// Back-off while the store is out of order.
    #[serde(with = "humantime_serde")]
    pub retry_max: Duration,
    /// On SIGTERM or when partitions are revoked: finish what is in flight within this, then commit.
    #[serde(with = "humantime_serde")]
    pub drain_timeout: Duration,
}

impl IngestConfig {
    pub(crate) fn check(&self) -> anyhow::Result<()> {
        anyhow::ensure!(
            self.write_batch > 0 && self.write_parallel > 0,
            "ingest.write_batch and ingest.write_parallel must be at least 1"
        );
        anyhow::ensure!(
            self.max_inflight_posts >= self.write_batch,
            "ingest.max_inflight_posts ({}) must be at least ingest.write_batch ({}), or no batch ever fills",
            self.max_inflight_posts,
            self.write_batch
        );
        Ok(())
    }
}
