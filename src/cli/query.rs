//! `feedlens query`.

use std::sync::Arc;

use anyhow::Result;
use clap::Args;

use crate::cli::reload::Reload;
use crate::cli::{health, start};
use crate::config::Config;
use crate::encode::encoder::Encoder;
use crate::kafka::StatusSlot;
use crate::metrics::Metrics;
use crate::query::embed::QueryEncoder;
use crate::query::http::Interface;
use crate::query::live::Live;
use crate::query::service::{ModelInfo, SearchService, ServiceParts};
use crate::query::{http, kafka};
use crate::service;
use crate::store::SharedStore;
use crate::traces;

/// Answer searches: HTTP, the web page, and requests that come over Kafka; runs until SIGTERM
#[derive(Args)]
pub struct Arguments {}

impl Arguments {
    /// Runs the worker.
    pub async fn run(self, config: Config, reload: Reload) -> Result<()> {
        let shutdown = service::shutdown_on_signal()?;
        let metrics = Arc::new(Metrics::new());
        metrics.tell_process("query");
        traces::start(&config.traces, "feedlens-query", &metrics)?;
        let _reloading = reload.at_hangup(config.clone(), metrics.clone())?;
        if config.query.kafka {
            crate::kafka::check_reachable(&config.kafka).await?;
        }
        let encoder = start::encoder(&config, &metrics).await?;
        let store = start::open_store(&config, &encoder, &metrics).await?;
        let search = search_service(&config, &encoder, &store, &metrics)?;
        let live = match config.query.kafka {
            true => Live::start(&config, metrics.clone(), shutdown.clone()).await?,
            false => None,
        };
        let listener = service::bind(&config.query.listen, "query.listen").await?;
        let consumer = config.query.kafka.then(StatusSlot::default);
        let health = health::of(health::Parts {
            encoder,
            store: store.clone(),
            consumer: consumer.clone(),
            progress: None,
            metrics: metrics.clone(),
        });
        service::start_admin(&config.admin, metrics.clone(), health, shutdown.clone()).await?;
        tracing::info!(listen = config.query.listen, "answering searches");
        let interface = Interface { service: search.clone(), live, labels: config.labels.clone() };
        let served = http::run(listener, interface, shutdown.clone());
        let answered = async {
            match consumer {
                Some(consumer) => kafka::run(&config.kafka, search.clone(), consumer, shutdown.clone()).await,
                None => Ok(()),
            }
        };
        let ended = tokio::try_join!(served, answered).map(drop);
        start::close(&store, ended).await
    }
}

/// The search service on this process's encoder and store.
pub fn search_service(
    config: &Config,
    encoder: &Encoder,
    store: &SharedStore,
    metrics: &Arc<Metrics>,
) -> Result<Arc<SearchService>> {
    Ok(SearchService::new(ServiceParts {
        encoder: QueryEncoder::new(encoder.clone(), &config.images, config.captions)?,
        store: store.clone(),
        model: ModelInfo::from(&*encoder.bundle),
        config: config.query.clone(),
        metrics: metrics.clone(),
    }))
}
