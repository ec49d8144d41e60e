//! `feedlens ingest`.

use std::sync::Arc;

use anyhow::Result;
use clap::Args;

use crate::cli::reload::Reload;
use crate::cli::{health, start};
use crate::config::Config;
use crate::ingest::progress::Progress;
use crate::ingest::{self, IngestParts, Role};
use crate::kafka::{self, StatusSlot};
use crate::metrics::Metrics;
use crate::{service, traces};

/// Index posts from Kafka: encode, store, commit; runs until SIGTERM
///
/// On SIGTERM or Ctrl-C it finishes what is in flight within ingest.drain_timeout and commits; a second signal stops at
/// once. Run as many as the topic has partitions.
#[derive(Args)]
pub struct Arguments {}

impl Arguments {
    /// Runs the worker.
    pub async fn run(self, config: Config, reload: Reload) -> Result<()> {
        let shutdown = service::shutdown_on_signal()?;
        let metrics = Arc::new(Metrics::new());
        metrics.tell_process("ingest");
        traces::start(&config.traces, "feedlens-ingest", &metrics)?;
        let _reloading = reload.at_hangup(config.clone(), metrics.clone())?;
        kafka::check_reachable(&config.kafka).await?;
        let encoder = start::encoder(&config, &metrics).await?;
        let store = start::open_store(&config, &encoder, &metrics).await?;
        let consumer = StatusSlot::default();
        let progress = Progress::default();
        let health = health::of(health::Parts {
            encoder: encoder.clone(),
            store: store.clone(),
            consumer: Some(consumer.clone()),
            progress: Some(progress.clone()),
            metrics: metrics.clone(),
        });
        service::start_admin(&config.admin, metrics.clone(), health, shutdown.clone()).await?;
        let parts = IngestParts { encoder, store: store.clone(), metrics, consumer, progress, role: Role::Live };
        let ended = ingest::run(&config, parts, shutdown).await;
        start::close(&store, ended).await
    }
}
