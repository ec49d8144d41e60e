//! The store read as it is, past feedlens: every point with its payload and vectors.

use std::collections::HashMap;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use feedlens::config::{Config, Overrides};
use feedlens::metrics::Metrics;
use feedlens::store::ModelStamp;
use qdrant_client::Qdrant;
use qdrant_client::qdrant::point_id::PointIdOptions;
use qdrant_client::qdrant::vector_output::Vector as VectorOutputKind;
use qdrant_client::qdrant::vectors_output::VectorsOptions;
use qdrant_client::qdrant::{CountPointsBuilder, PayloadIncludeSelector, ScrollPointsBuilder};
use qdrant_edge::{
    CountRequest, EdgeShard, PointId, ScrollRequest, VectorInternal, VectorStructInternal, WithPayloadInterface,
    WithVector,
};
use serde_json::{Map, Value};
use tokio::process::Command;
use uuid::Uuid;

/// A point.
#[derive(Debug, Clone)]
pub struct Stored {
    pub payload: Map<String, Value>,
    /// By name.
    pub vectors: HashMap<String, Vec<f32>>,
}

const PAGE: usize = 500;

/// The points of an embedded store that nobody has open.
pub fn read_edge(folder: &Path) -> Result<HashMap<Uuid, Stored>> {
    let shard = EdgeShard::load(folder, None).context("the engine cannot open the folder")?;
    let (mut points, mut from) = (HashMap::new(), None);
    loop {
        let (records, next) = shard.scroll(ScrollRequest {
            offset: from,
            limit: Some(PAGE),
            filter: None,
            with_payload: Some(WithPayloadInterface::Bool(true)),
            with_vector: WithVector::Bool(true),
            order_by: None,
        })?;
        for record in records {
            let PointId::Uuid(id) = record.id else { anyhow::bail!("a point whose id is a number: {:?}", record.id) };
            let vectors = match record.vector {
                Some(VectorStructInternal::Named(vectors)) => vectors,
                _ => HashMap::new(),
            };
            let dense = vectors.into_iter().filter_map(|(name, vector)| match vector {
                VectorInternal::Dense(values) => Some((name, values)),
                _ => None,
            });
            let payload = record.payload.map(|payload| payload.0).unwrap_or_default();
            ensure!(points.insert(id, Stored { payload, vectors: dense.collect() }).is_none(), "{id} is there twice");
        }
        match next {
            Some(_) => from = next,
            None => break,
        }
    }
    let count = shard.count(CountRequest { filter: None, exact: true })?;
    ensure!(count == points.len(), "the engine counts {count} points, and {} are different", points.len());
    Ok(points)
}

/// The payloads of these points in an embedded store whose process was killed or is frozen, as a restart would find them:
/// in a copy of the folder.
pub async fn read_crashed_edge(folder: &Path, ids: &[Uuid]) -> Result<HashMap<Uuid, Map<String, Value>>> {
    let copy = tempfile::tempdir_in(folder.parent().context("a folder in a folder")?)?;
    let copied = Command::new("cp").args(["-r", "--"]).arg(folder).arg(copy.path()).status().await?;
    ensure!(copied.success(), "cp: {copied}");
    let dir = copy.path().join(folder.file_name().context("a folder with a name")?);
    let stamp: Value = serde_json::from_slice(&std::fs::read(dir.join("feedlens.json"))?)?;
    let model = stamp["model"].as_str().context("the store's stamp names no model")?.to_owned();
    let dimension = stamp["dimension"].as_u64().context("the store's stamp names no dimension")? as usize;
    let set = vec!["store.kind=edge".to_owned(), format!("store.edge.dir={}", dir.display())];
    let config = Config::load(&[], &Overrides { files: Vec::new(), set })?.store;
    let store = feedlens::store::open(&config, &ModelStamp { model, dimension }, &Metrics::new()).await?;
    let points = store.get(ids).await?;
    store.close().await?;
    Ok(points.into_iter().map(|point| (point.id, point.payload)).collect())
}

/// Where each point of a collection on a server comes from: the payload's `source`.
pub async fn read_server_states(url: &str, collection: &str) -> Result<HashMap<Uuid, Map<String, Value>>> {
    let client = Qdrant::from_url(url).skip_compatibility_check().build()?;
    let request = ScrollPointsBuilder::new(collection)
        .limit(u32::MAX)
        .with_payload(PayloadIncludeSelector { fields: vec!["source".to_owned()] })
        .with_vectors(false);
    let mut points = HashMap::new();
    for point in client.scroll(request).await?.result {
        let payload = point.payload.into_iter().map(|(name, value)| (name, value.into_json())).collect();
        if let Some(PointIdOptions::Uuid(id)) = point.id.and_then(|id| id.point_id_options) {
            points.insert(id.parse()?, payload);
        }
    }
    Ok(points)
}

/// The points of a collection on a server.
pub async fn read_server(url: &str, collection: &str) -> Result<HashMap<Uuid, Stored>> {
    let client = Qdrant::from_url(url).skip_compatibility_check().build()?;
    let (mut points, mut from) = (HashMap::new(), None);
    loop {
        let mut request = ScrollPointsBuilder::new(collection).limit(PAGE as u32).with_payload(true).with_vectors(true);
        if let Some(from) = from.take() {
            request = request.offset::<qdrant_client::qdrant::PointId>(from);
        }
        let page = client.scroll(request).await?;
        for point in page.result {
            let Some(PointIdOptions::Uuid(id)) = point.id.and_then(|id| id.point_id_options) else {
                anyhow::bail!("a point whose id is a number");
            };
            let named = match point.vectors.and_then(|vectors| vectors.vectors_options) {
                Some(VectorsOptions::Vectors(named)) => named.vectors,
                _ => HashMap::new(),
            };
            let dense = named.into_iter().filter_map(|(name, vector)| match vector.into_vector() {
                VectorOutputKind::Dense(dense) => Some((name, dense.data)),
                _ => None,
            });
            let payload = point.payload.into_iter().map(|(name, value)| (name, value.into_json())).collect();
            let stored = Stored { payload, vectors: dense.collect() };
            ensure!(points.insert(id.parse()?, stored).is_none(), "{id} is there twice");
        }
        from = page.next_page_offset;
        if from.is_none() {
            break;
        }
    }
    let counted = client.count(CountPointsBuilder::new(collection).exact(true)).await?;
    let count = counted.result.map_or(0, |result| result.count as usize);
    ensure!(count == points.len(), "the server counts {count} points, and {} are different", points.len());
    Ok(points)
}
