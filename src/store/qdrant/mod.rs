//! The store on a Qdrant server, over gRPC.
//!
//! Reads and writes name the collection itself, not the alias: once the alias is moved to another model's collection,
//! a worker that still runs the old model neither writes its vectors there nor compares with foreign ones. It stays ready,
//! for there is no other to answer until the new ones have started. The alias says which model is live, and is checked at
//! the start.

pub mod collections;
mod convert;
mod fault;
mod setup;

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use qdrant_client::qdrant::{
    CountPointsBuilder, DeletePointsBuilder, GetPointsBuilder, PayloadIncludeSelector, QuantizationSearchParamsBuilder,
    Query, QueryPointsBuilder, SearchParamsBuilder, UpdateBatchPointsBuilder, UpdateResult, UpdateStatus,
    VectorsSelector,
};
use qdrant_client::{Qdrant, QdrantError};
use uuid::Uuid;

use self::convert::Conditional;
use self::fault::Faults;
use super::collection::CollectionState;
use super::order::{STATE_FIELDS, State};
use super::rows::{self, Plan};
use super::{
    Hit, ModelStamp, Outcome, QdrantConfig, StoreConfig, StoredPoint, VectorName, VectorQuery, VectorStore, Write,
};
use crate::error::{Fault, Outage};

/// Points in one request; Qdrant's makers advise 64 to 256. With the largest posts that the default limits let
/// through, a request stays below the server's limit of 32 MiB.
const REQUEST_POINTS: usize = 128;
/// Two workers that hold one partition for a moment can write the same posts at the same time: whoever comes second
/// decides anew. More often than this in a row means that something else is wrong.
const ATTEMPTS: usize = 20;

/// The store of [`super::StoreKind::Qdrant`].
pub struct QdrantStore {
    client: Qdrant,
    collection: String,
    alias: String,
    stamp: ModelStamp,
    search_ef: usize,
    faults: Faults,
    /// Whether it was told that the alias points elsewhere.
    told_moved: AtomicBool,
}

impl QdrantStore {
    /// Connects; makes the collection, its indexes and the alias where absent.
    ///
    /// # Errors
    /// [`Fault::Fatal`]: not reachable within `connect_timeout`, wrong credentials, too old a server, another model's
    /// collection behind the alias.
    pub async fn open(config: &StoreConfig, stamp: &ModelStamp) -> Result<Self, Fault> {
        let (search_ef, alias, config) = (config.search_ef, &config.alias, &config.qdrant);
        let faults = Faults::new(config)?;
        let client = setup::connect(config, &faults).await?;
        let collection = setup::collection_name(alias, stamp);
        // Before anything is made: a wrong model leaves no empty collection behind.
        setup::check_alias(&client, &faults, &collection, alias, stamp).await?;
        setup::ensure_collection(&client, &faults, config, &collection, stamp).await?;
        setup::ensure_alias(&client, &faults, &collection, alias, stamp).await?;
        let told_moved = AtomicBool::new(false);
        Ok(Self { client, collection, alias: alias.to_owned(), stamp: stamp.clone(), search_ef, faults, told_moved })
    }

    /// Reads what is stored, decides, and writes on the condition that it is stored still.
    async fn write_some(&self, writes: &[Write]) -> Result<Vec<Outcome>, Fault> {
        let ids = writes.iter().map(Write::id).collect::<HashSet<_>>();
        for _ in 0..ATTEMPTS {
            let plan = Plan::new(writes, &self.states(ids.iter().copied()).await?);
            let kept = self.get(&plan.kept()).await?;
            let changes = plan.changes().iter();
            let rows = changes.filter_map(|change| {
                Some(Conditional { row: change.row(&kept)?, before: change.before.as_ref(), after: &change.after })
            });
            let rows = rows.collect::<Vec<_>>();
            if !rows.is_empty() {
                self.send(&rows).await?;
            }
            let now = self.states(rows.iter().map(|it| it.row.id)).await?;
            if plan.changes().iter().all(|change| now.get(&change.id) == Some(&change.after)) {
                return Ok(plan.outcomes);
            }
        }
        Err(Fault::retry(
            Outage::Store,
            format!("other writers keep changing the same posts in the collection {}", self.collection),
        ))
    }

    async fn send(&self, rows: &[Conditional<'_>]) -> Result<(), Fault> {
        let request = UpdateBatchPointsBuilder::new(&self.collection, convert::operations(rows)).wait(true);
        match self.client.update_points_batch(request).await {
            Ok(response) => response.result.iter().try_for_each(durable),
            Err(error) => {
                let fault = self.faults.at_run_time("write to", &error);
                if matches!(fault, Fault::Reject { .. }) {
                    // No post is at fault where the collection has other vectors than it had.
                    setup::still_ours(&self.client, &self.collection, &self.stamp).await?;
                }
                Err(fault)
            }
        }
    }

    async fn states(&self, ids: impl Iterator<Item = Uuid>) -> Result<HashMap<Uuid, State>, Fault> {
        let ids = ids.map(|id| id.to_string().into()).collect::<Vec<_>>();
        if ids.is_empty() {
            return Ok(HashMap::new());
        }
        let fields = STATE_FIELDS.iter().map(ToString::to_string).collect::<Vec<_>>();
        let request = GetPointsBuilder::new(&self.collection, ids)
            .with_payload(PayloadIncludeSelector { fields })
            .with_vectors(false);
        let response = self.client.get_points(request).await;
        let found = response.map_err(|error| self.faults.at_run_time("read", &error))?.result;
        Ok(found.into_iter().filter_map(convert::state).collect())
    }
}

impl QdrantStore {
    async fn count_live(&self, exact: bool) -> Result<u64, Fault> {
        let request = CountPointsBuilder::new(&self.collection).filter(convert::live()).exact(exact);
        let response = self.client.count(request).await;
        let result = response.map_err(|error| self.faults.at_run_time("count", &error))?.result;
        Ok(result.map(|result| result.count).unwrap_or_default())
    }
}

/// The model's collection and the alias as they are; makes nothing.
///
/// # Errors
/// [`Fault::Fatal`]: not reachable within `connect_timeout`, wrong credentials, too old a server.
pub(super) async fn describe(config: &QdrantConfig, alias: &str, stamp: &ModelStamp) -> Result<CollectionState, Fault> {
    let faults = Faults::new(config)?;
    let client = setup::connect(config, &faults).await?;
    let collection = setup::collection_name(alias, stamp);
    let failed = |error: QdrantError| faults.at_start("read the collections of", &error);
    let alias_of = setup::alias_target(&client, alias).await.map_err(failed)?;
    let mut posts = None;
    if client.collection_exists(&collection).await.map_err(failed)? {
        let request = CountPointsBuilder::new(&collection).filter(convert::live()).exact(true);
        posts = client.count(request).await.map_err(failed)?.result.map(|result| result.count);
    }
    let ModelStamp { model, dimension } = stamp.clone();
    Ok(CollectionState { alias: alias.to_owned(), collection, model, dimension, alias_of, posts })
}

/// What can be said of the configuration before the server is asked.
///
/// # Errors
/// The address is none.
pub(super) fn check(config: &QdrantConfig) -> Result<(), Fault> {
    Faults::new(config).map(drop)
}

#[async_trait]
impl VectorStore for QdrantStore {
    async fn write(&self, writes: Vec<Write>) -> Result<Vec<Outcome>, Fault> {
        rows::check(&writes, self.stamp.dimension)?;
        let mut outcomes = Vec::with_capacity(writes.len());
        for writes in writes.chunks(REQUEST_POINTS) {
            outcomes.extend(self.write_some(writes).await?);
        }
        Ok(outcomes)
    }

    async fn purge(&self, before: DateTime<Utc>) -> Result<u64, Fault> {
        let failed = |error| self.faults.at_run_time("purge delete markers of", &error);
        let request = CountPointsBuilder::new(&self.collection).filter(convert::old_markers(before)).exact(true);
        let count = self.client.count(request).await.map_err(failed)?.result.map_or(0, |result| result.count);
        if count > 0 {
            // By the filter and not by ids: a post that came back in between is no marker any more.
            let request = DeletePointsBuilder::new(&self.collection).points(convert::old_markers(before)).wait(true);
            let deleted = self.client.delete_points(request).await.map_err(failed)?.result;
            deleted.iter().try_for_each(durable)?;
        }
        Ok(count)
    }

    async fn search(&self, query: VectorQuery) -> Result<Vec<Hit>, Fault> {
        if query.limit == 0 {
            return Ok(Vec::new());
        }
        // Where someone quantised the vectors: a score is the cosine of the vectors themselves nevertheless.
        let exact_scores = QuantizationSearchParamsBuilder::default().rescore(true);
        let request = QueryPointsBuilder::new(&self.collection)
            .query(Query::new_nearest(query.vector))
            .using(query.using.as_str())
            .filter(convert::filter(&query.filter))
            .limit(query.limit as u64)
            .params(SearchParamsBuilder::default().hnsw_ef(self.search_ef as u64).quantization(exact_scores))
            .with_payload(convert::payload_part(query.with.payload));
        let request = match query.with.image {
            true => request.with_vectors(VectorsSelector { names: vec![VectorName::Image.as_str().to_owned()] }),
            false => request,
        };
        let response = self.client.query(request).await;
        let points = response.map_err(|error| self.faults.at_run_time("search", &error))?.result;
        Ok(points.into_iter().filter_map(convert::hit).collect())
    }

    async fn get(&self, ids: &[Uuid]) -> Result<Vec<StoredPoint>, Fault> {
        let mut points = Vec::with_capacity(ids.len());
        for ids in ids.chunks(REQUEST_POINTS) {
            let ids = ids.iter().map(|id| id.to_string().into()).collect::<Vec<_>>();
            let request = GetPointsBuilder::new(&self.collection, ids).with_payload(true).with_vectors(true);
            let response = self.client.get_points(request).await;
            let found = response.map_err(|error| self.faults.at_run_time("read", &error))?.result;
            points.extend(found.into_iter().filter_map(convert::stored_point));
        }
        Ok(points)
    }

    async fn count(&self) -> Result<u64, Fault> {
        self.count_live(true).await
    }

    async fn estimate(&self) -> Result<u64, Fault> {
        self.count_live(false).await
    }

    async fn ready(&self) -> Result<(), Fault> {
        let failed = |error| self.faults.at_run_time("read the aliases of", &error);
        let target = setup::alias_target(&self.client, &self.alias).await.map_err(failed)?;
        if target.as_ref() == Some(&self.collection) {
            self.told_moved.store(false, Ordering::Relaxed);
            return Ok(());
        }
        let target = target.as_deref().unwrap_or("nothing");
        if !self.client.collection_exists(&self.collection).await.map_err(failed)? {
            return Err(Fault::retry(
                Outage::Store,
                format!(
                    "the collection {} is gone and the alias {} points to {target}: start this worker again with the model \
                     that belongs to it",
                    self.collection, self.alias
                ),
            ));
        }
        // A worker that is not ready gets no searches, and until the new model's have started there is no other.
        if !self.told_moved.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                "the alias {} points to {target} now; this worker goes on with {} until it is started again with the new \
                 model",
                self.alias,
                self.collection
            );
        }
        Ok(())
    }

    async fn close(&self) -> Result<(), Fault> {
        // Every write was awaited, and the connection ends with this value.
        Ok(())
    }
}

/// A server that gave up waiting for its own write answers Ok with a status that says so.
fn durable(result: &UpdateResult) -> Result<(), Fault> {
    match result.status() {
        UpdateStatus::Completed => Ok(()),
        other => Err(Fault::retry(
            Outage::Store,
            format!("qdrant took the write but did not finish it in time ({})", other.as_str_name()),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_completed_update_is_durable() {
        for status in [
            UpdateStatus::UnknownUpdateStatus,
            UpdateStatus::Acknowledged,
            UpdateStatus::ClockRejected,
            UpdateStatus::WaitTimeout,
        ] {
            let result = UpdateResult { operation_id: Some(1), status: status.into() };
            let fault = durable(&result).expect_err(status.as_str_name());
            assert!(matches!(fault, Fault::Retry { outage: Outage::Store, after: None, .. }), "{fault:?}");
            assert!(fault.to_string().contains(status.as_str_name()), "{fault}");
        }
        let result = UpdateResult { operation_id: Some(1), status: UpdateStatus::Completed.into() };
        durable(&result).expect("a completed update is durable");
    }
}
