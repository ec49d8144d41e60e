//! What several commands start with: the encoder, the store, the search service.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use toml::Value;

use crate::config::Config;
use crate::encode::encoder::Encoder;
use crate::metrics::Metrics;
use crate::store::{self, ModelStamp, SharedStore};

/// `--model DIR` as a key of the configuration.
pub fn model_preset(dir: Option<&Path>) -> Vec<(String, Value)> {
    dir.map(|dir| ("model.dir".to_owned(), Value::from(dir.display().to_string()))).into_iter().collect()
}

/// The same for a command that gives the reference's own ids and vectors: captions are taken as they are.
pub fn exact_model_presets(dir: Option<&Path>) -> Vec<(String, Value)> {
    let mut presets = model_preset(dir);
    presets.push(("captions.clean".to_owned(), Value::from(false)));
    presets
}

/// Loads the model off the async threads and checks its golden vectors.
pub async fn encoder(config: &Config, metrics: &Arc<Metrics>) -> Result<Encoder> {
    let (model, settings, metrics) = (config.model.clone(), config.encoder.clone(), metrics.clone());
    let encoder = tokio::task::spawn_blocking(move || Encoder::start(&model, &settings, &metrics))
        .await
        .context("loading the model panicked")??;
    encoder.check_golden().await?;
    Ok(encoder)
}

/// The model of a command that may use one tower alone: each is loaded when it is first used.
pub async fn lazy_encoder(config: &Config) -> Result<Encoder> {
    let (model, settings) = (config.model.clone(), config.encoder.clone());
    tokio::task::spawn_blocking(move || Encoder::start_lazily(&model, &settings, &Arc::new(Metrics::new())))
        .await
        .context("loading the model panicked")?
}

/// Opens the store for the encoder's model.
pub async fn open_store(config: &Config, encoder: &Encoder, metrics: &Metrics) -> Result<SharedStore> {
    let stamp = ModelStamp { model: encoder.bundle.id.clone(), dimension: encoder.bundle.dimension };
    Ok(store::open(&config.store, &stamp, metrics).await?)
}

/// Closes the store at the end of a command. What ended the command is told before a store that could not be closed: it is
/// often the reason for both.
pub async fn close<T>(store: &SharedStore, ended: Result<T>) -> Result<T> {
    match (ended, store.close().await) {
        (Ok(done), Ok(())) => Ok(done),
        (Ok(_), Err(fault)) => Err(fault.into()),
        (Err(error), Ok(())) => Err(error),
        (Err(error), Err(fault)) => {
            tracing::error!(%fault, "the store could not be closed");
            Err(error)
        }
    }
}

#[cfg(all(test, feature = "embedded"))]
mod tests {
    use super::*;
    use crate::config::Overrides;

    /// An embedded store whose folder is gone: it cannot be closed.
    async fn broken_store() -> SharedStore {
        let folder = tempfile::tempdir().expect("a folder");
        let set = vec!["store.kind=edge".to_owned(), format!("store.edge.dir={}", folder.path().join("s").display())];
        let config = Config::load(&[], &Overrides { files: vec![], set }).expect("loads");
        let stamp = ModelStamp { model: "m".to_owned(), dimension: 4 };
        store::open(&config.store, &stamp, &Metrics::new()).await.expect("opens")
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_ended_a_command_is_told_before_a_store_that_cannot_be_closed() {
        let failed = close::<()>(&broken_store().await, Err(anyhow::anyhow!("the brokers are gone"))).await;
        assert_eq!(failed.expect_err("it failed").to_string(), "the brokers are gone");
        let only_closing = close(&broken_store().await, Ok(())).await;
        assert!(only_closing.expect_err("it cannot be closed").to_string().contains("store"));
    }
}
