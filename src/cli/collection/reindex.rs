//! `feedlens collection reindex`.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Result;
use chrono::{DateTime, Utc};
use clap::Args;
use toml::Value;

use crate::cli::{health, output, start};
use crate::config::Config;
use crate::ingest::progress::Progress;
use crate::kafka::{self, StatusSlot};
use crate::metrics::Metrics;
use crate::reindex::{self, Extent, Parts, stamp_of};
use crate::service;
use crate::store::Collections;

/// Fill another model's collection beside the live one, and keep it up to date; runs until SIGTERM
///
/// The configuration is the new one: model.dir names the new model. Posts are read from the beginning of the topics in a group
/// of its own (the live workers go on as they are), then what the live collection has and the topics no longer do is encoded
/// anew from the pictures' sources and the captions. Can be stopped and started again, and run several times at once. Dead
/// letters, matches of standing topics and moderation are left to the live workers; the alias is not touched.
///
/// Standard output: a JSON line for each post of the live collection that does not come over, or only without its picture
/// ({"post_id", "problem": "without_picture" | "lost", "reason"}).
#[derive(Args)]
pub struct Reindex {
    /// The new model's bundle, in place of model.dir
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// End when it has caught up with all that was there, in place of going on
    #[arg(long)]
    once: bool,
    /// Read the topics from this time on (RFC 3339), for a collection that was kept up to date until then
    #[arg(long, value_name = "TIME")]
    since: Option<DateTime<Utc>>,
}

impl Reindex {
    /// What the options say of the configuration.
    pub fn presets(&self) -> Vec<(String, Value)> {
        start::model_preset(self.model.as_deref())
    }

    /// Runs the worker.
    pub async fn run(self, config: Config) -> Result<()> {
        let shutdown = service::shutdown_on_signal()?;
        let metrics = Arc::new(Metrics::new());
        metrics.tell_process("reindex");
        let collections = Collections::connect(&config.store).await?;
        kafka::check_reachable(&config.kafka).await?;
        let encoder = start::encoder(&config, &metrics).await?;
        let store = collections.open(&stamp_of(&encoder)).await?;
        let (consumer, progress) = (StatusSlot::default(), Progress::default());
        let health = health::of(health::Parts {
            encoder: encoder.clone(),
            store: store.clone(),
            consumer: Some(consumer.clone()),
            progress: Some(progress.clone()),
            metrics: metrics.clone(),
        });
        service::start_admin(&config.admin, metrics.clone(), health, shutdown.clone()).await?;
        let parts = Parts { encoder, collections, store: store.clone(), metrics, consumer, progress };
        let extent = Extent { once: self.once, since: self.since };
        let told = |problem| output::print(serde_json::to_string(&problem)? + "\n");
        let ended = reindex::run(&config, parts, extent, shutdown, told).await;
        let done = start::close(&store, ended).await?;
        match done.carried {
            Some(carried) => tracing::info!(from_topics = done.from_topics, ?carried, "reindex stopped"),
            None => tracing::info!(from_topics = done.from_topics, "reindex stopped"),
        }
        Ok(())
    }
}
