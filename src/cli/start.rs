//! What several commands start with: the encoder, the store, the search service.

use std::sync::Arc;

use anyhow::{Context, Result};
use futures::FutureExt;

use crate::config::Config;
use crate::encode::encoder::Encoder;
use crate::metrics::Metrics;
use crate::service::Readiness;
use crate::store::{self, ModelStamp, SharedStore};

/// Loads the model off the async threads and checks its golden vectors.
pub async fn encoder(config: &Config, metrics: &Arc<Metrics>) -> Result<Encoder> {
    let (model, settings, metrics) = (config.model.clone(), config.encoder.clone(), metrics.clone());
    let encoder = tokio::task::spawn_blocking(move || Encoder::start(&model, &settings, &metrics))
        .await
        .context("loading the model panicked")??;
    encoder.check_golden().await?;
    Ok(encoder)
}

/// Opens the store for the encoder's model.
pub async fn open_store(config: &Config, encoder: &Encoder, metrics: &Metrics) -> Result<SharedStore> {
    let stamp = ModelStamp { model: encoder.bundle.id.clone(), dimension: encoder.bundle.dimension };
    Ok(store::open(&config.store, &stamp, metrics).await?)
}

/// Ready: the golden inputs give their vectors, and the store answers.
pub fn readiness(encoder: Encoder, store: SharedStore) -> Readiness {
    Arc::new(move || {
        let (encoder, store) = (encoder.clone(), store.clone());
        async move {
            encoder.check_golden().await.context("encoder")?;
            store.ready().await.context("store")
        }
        .boxed()
    })
}
