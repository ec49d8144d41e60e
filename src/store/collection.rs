//! What `feedlens collection` tells of the collection that a configuration and a model mean, without making anything.

use serde::Serialize;

use super::{ModelStamp, SharedStore, StoreConfig, StoreKind};
use super::{open, qdrant};
use crate::error::Fault;
use crate::metrics::Metrics;

/// A collection as it is in the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CollectionState {
    /// What readers and writers are given.
    pub alias: String,
    /// The collection of the configured model; of the embedded store, its folder.
    pub collection: String,
    /// The bundle's id.
    pub model: String,
    /// Values of a vector.
    pub dimension: usize,
    /// What the alias points to; `None`: there is no such alias yet.
    pub alias_of: Option<String>,
    /// Live posts; `None`: there is no such collection yet.
    pub posts: Option<u64>,
}

/// Looks, and changes nothing.
///
/// # Errors
/// As [`open`]; but that the alias points to another model's collection is told, and is no error.
pub async fn describe(config: &StoreConfig, stamp: &ModelStamp) -> Result<CollectionState, Fault> {
    if config.kind == StoreKind::Qdrant {
        return qdrant::describe(&config.qdrant, &config.alias, stamp).await;
    }
    let folder = &config.edge.dir;
    let is_there = folder.read_dir().is_ok_and(|mut entries| entries.next().is_some());
    let collection = folder.display().to_string();
    Ok(CollectionState {
        alias: config.alias.clone(),
        collection: collection.clone(),
        model: stamp.model.clone(),
        dimension: stamp.dimension,
        alias_of: is_there.then_some(collection),
        posts: if is_there { Some(count(&open(config, stamp, &Metrics::new()).await?).await?) } else { None },
    })
}

async fn count(store: &SharedStore) -> Result<u64, Fault> {
    let counted = store.count().await;
    store.close().await?;
    counted
}
