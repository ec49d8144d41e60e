//! The store on a Qdrant server, over gRPC.
//!
//! Reads and writes name the collection itself, not the alias: once the alias is moved to another model's collection,
//! a worker that still runs the old model neither writes its vectors there nor compares with foreign ones (and
//! [`VectorStore::ready`] says that it is out of date). The alias is for the world outside, and checked at the start.

mod convert;
mod fault;
mod setup;

use async_trait::async_trait;
use qdrant_client::Qdrant;
use qdrant_client::qdrant::{
    CountPointsBuilder, GetPointsBuilder, Query, QueryPointsBuilder, UpdateBatchPointsBuilder, UpdateResult,
    UpdateStatus,
};
use uuid::Uuid;

use self::fault::Faults;
use super::{Hit, ModelStamp, QdrantConfig, StoredPoint, VectorQuery, VectorStore, Write, rows};
use crate::error::{Fault, Outage};

/// Points in one request; Qdrant's makers advise 64 to 256. With the largest posts that the default limits let
/// through, a request stays below the server's limit of 32 MiB.
const REQUEST_POINTS: usize = 128;

/// The store of [`super::StoreKind::Qdrant`].
pub struct QdrantStore {
    client: Qdrant,
    collection: String,
    alias: String,
    dimension: usize,
    faults: Faults,
}

impl QdrantStore {
    /// Connects; makes the collection, its indexes and the alias where absent.
    ///
    /// # Errors
    /// [`Fault::Fatal`]: not reachable within `connect_timeout`, wrong credentials, too old a server, another model's
    /// collection behind the alias.
    pub async fn open(config: &QdrantConfig, alias: &str, stamp: &ModelStamp) -> Result<Self, Fault> {
        let faults = Faults::new(config)?;
        let client = setup::connect(config, &faults).await?;
        let collection = setup::collection_name(alias, stamp);
        setup::ensure_collection(&client, &faults, config, &collection, alias, stamp).await?;
        Ok(Self { client, collection, alias: alias.to_owned(), dimension: stamp.dimension, faults })
    }
}

impl QdrantStore {
    async fn count_live(&self, exact: bool) -> Result<u64, Fault> {
        let live = convert::filter(&super::Filter::default());
        let request = CountPointsBuilder::new(&self.collection).filter(live).exact(exact);
        let response = self.client.count(request).await;
        let result = response.map_err(|error| self.faults.at_run_time("count", &error))?.result;
        Ok(result.map(|result| result.count).unwrap_or_default())
    }
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
    async fn write(&self, writes: Vec<Write>) -> Result<(), Fault> {
        let rows = rows::rows(writes, self.dimension)?;
        for rows in rows.chunks(REQUEST_POINTS) {
            let operations = convert::operations(rows);
            let request = UpdateBatchPointsBuilder::new(&self.collection, operations).wait(true);
            let response = self.client.update_points_batch(request).await;
            for result in response.map_err(|error| self.faults.at_run_time("write to", &error))?.result {
                durable(&result)?;
            }
        }
        Ok(())
    }

    async fn search(&self, query: VectorQuery) -> Result<Vec<Hit>, Fault> {
        if query.limit == 0 {
            return Ok(Vec::new());
        }
        let request = QueryPointsBuilder::new(&self.collection)
            .query(Query::new_nearest(query.vector))
            .using(query.using.as_str())
            .filter(convert::filter(&query.filter))
            .limit(query.limit as u64)
            .with_payload(true);
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
        match setup::alias_target(&self.client, &self.alias).await {
            Err(error) => Err(self.faults.at_run_time("read the aliases of", &error)),
            Ok(Some(target)) if target == self.collection => Ok(()),
            Ok(target) => Err(Fault::retry(
                Outage::Store,
                format!(
                    "the alias {} points to {} and no longer to {}: start this worker again with the model that \
                     belongs to it",
                    self.alias,
                    target.as_deref().unwrap_or("nothing"),
                    self.collection
                ),
            )),
        }
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
