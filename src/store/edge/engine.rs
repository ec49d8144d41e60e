//! Qdrant's engine in the process (`qdrant-edge`): one shard in a folder, synchronous. The caller lets one thread write
//! at a time, and flushes neither beside a write nor beside an optimisation (the engine panics where its locks are held).

use std::collections::{HashMap, HashSet};
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};

use chrono::{DateTime, Utc};
use qdrant_edge::{
    Condition, CountRequest, CreateIndex, DateTimeWrapper, Distance, EdgeConfig, EdgeOptimizersConfig, EdgeShard,
    EdgeVectorParams, FieldCondition, FieldIndexOperations, Filter as EdgeFilter, HasVectorCondition, HnswIndexConfig,
    JsonPath, Match, MatchValue, NamedQuery, OperationError, PayloadFieldSchema, PayloadSchemaType, PointId,
    PointInsertOperations, PointOperations, PointStruct, QueryEnum, QueryRequest, Range, Record, ScoringQuery,
    ScrollRequest, SearchParams, UpdateOperation, ValueVariants, VectorInternal, VectorOperations,
    VectorStructInternal, Vectors, WithPayloadInterface, WithVector,
};
use serde_json::Value;
use uuid::Uuid;

use crate::store::order::{DELETED, STATE_FIELDS, State};
use crate::store::rows::{DELETED_AT, Row};
use crate::store::{Filter, HIDDEN, Hit, LABELS, PayloadPart, StoredPoint, VectorName, VectorQuery};

const TEMPORARY_SEGMENTS: &str = "temp_segments";
const LOG: &str = "wal";
/// Name of a full file of the engine's own log, before the number of its first entry.
const FULL_LOG_FILE: &str = "closed-";

/// Points in one operation of the engine: small enough that its log files (32 MiB) are not outgrown by one entry.
const CHUNK: usize = 256;
/// Points looked at together when doubles are searched for.
const PAGE: usize = 1_000;

const INDEXES: [(&str, PayloadSchemaType); 8] = [
    ("author", PayloadSchemaType::Keyword),
    ("lang", PayloadSchemaType::Keyword),
    ("tags", PayloadSchemaType::Keyword),
    ("created_at", PayloadSchemaType::Datetime),
    (LABELS, PayloadSchemaType::Keyword),
    (HIDDEN, PayloadSchemaType::Bool),
    (DELETED, PayloadSchemaType::Bool),
    (DELETED_AT, PayloadSchemaType::Datetime),
];

/// What the engine says when it fails, or what it panicked with.
#[derive(Debug, thiserror::Error)]
pub(super) enum EngineError {
    #[error("{0}")]
    Engine(#[from] OperationError),
    #[error("{0}")]
    Folder(#[from] std::io::Error),
    #[error("{0}")]
    Panic(String),
}

/// How an engine is set up.
#[derive(Debug, Clone)]
pub(super) struct EngineConfig {
    /// The folder, which exists.
    pub path: PathBuf,
    /// Values of a vector.
    pub dimension: usize,
    /// Points between two optimisations; a segment of half as many is worth a search graph.
    pub optimize_after: usize,
    /// HNSW's ef of a search.
    pub search_ef: usize,
}

/// A shard that is open.
#[derive(Debug)]
pub(super) struct Engine {
    shard: EdgeShard,
    path: PathBuf,
    search_ef: usize,
}

impl Engine {
    /// Opens the shard of a folder, or makes one in it.
    pub fn open(config: &EngineConfig) -> Result<Self, EngineError> {
        let temporary = config.path.join(TEMPORARY_SEGMENTS);
        if temporary.try_exists()? {
            // What an optimisation that was killed had built so far.
            std::fs::remove_dir_all(temporary)?;
        }
        drop_old_log_files(&config.path)?;
        let shard = guarded(|| EdgeShard::load(&config.path, Some(edge_config(config))))??;
        let engine = Self { shard, path: config.path.clone(), search_ef: config.search_ef };
        engine.ensure_indexes()?;
        Ok(engine)
    }

    /// Flushes and closes.
    pub fn close(self) -> Result<(), EngineError> {
        guarded(|| drop(self))
    }

    /// Which of these points are stored, and the states of those that this program wrote.
    pub fn states(&self, ids: &[Uuid]) -> Result<(HashSet<Uuid>, HashMap<Uuid, State>), EngineError> {
        let fields = WithPayloadInterface::Fields(STATE_FIELDS.iter().copied().map(field).collect());
        let records = self.shard.retrieve(&point_ids(ids), Some(fields), Some(WithVector::Bool(false)))?;
        let (mut existing, mut states) = (HashSet::new(), HashMap::new());
        for record in records {
            let Some(id) = uuid_of(record.id) else { continue };
            existing.insert(id);
            states.extend(record.payload.and_then(|payload| Some((id, State::read_from(&payload.0)?))));
        }
        Ok((existing, states))
    }

    /// Writes rows as they are; `existing` are those of their points that are stored already.
    pub fn put(&self, rows: &[Row], existing: &HashSet<Uuid>) -> Result<(), EngineError> {
        for rows in rows.chunks(CHUNK) {
            let points = rows.iter().map(|row| {
                let vectors = row.vectors().map(|(name, vector)| (name.as_str(), vector.clone()));
                PointStruct::new(PointId::Uuid(row.id), Vectors::new_named(vectors), Value::Object(row.payload.clone()))
                    .into()
            });
            let points = PointInsertOperations::PointsList(points.collect());
            self.shard.update(UpdateOperation::PointOperation(PointOperations::UpsertPoints(points)))?;
            // An upsert of a point in an optimised segment keeps the old vectors that the new point does not have.
            for name in [VectorName::Image, VectorName::Caption] {
                let lacking = rows
                    .iter()
                    .filter(|row| existing.contains(&row.id) && row.missing_vectors().any(|missing| missing == name))
                    .map(|row| PointId::Uuid(row.id))
                    .collect::<Vec<_>>();
                if !lacking.is_empty() {
                    self.shard.update(UpdateOperation::VectorOperation(VectorOperations::DeleteVectors(
                        lacking.into(),
                        vec![name.as_str().to_owned()],
                    )))?;
                }
            }
        }
        Ok(())
    }

    /// As [`crate::store::VectorStore::search`].
    pub fn search(&self, query: VectorQuery) -> Result<Vec<Hit>, EngineError> {
        let nearest =
            NamedQuery { query: VectorInternal::Dense(query.vector), using: Some(query.using.as_str().to_owned()) };
        let points = self.shard.query(QueryRequest {
            prefetches: Vec::new(),
            query: Some(ScoringQuery::Vector(QueryEnum::Nearest(nearest))),
            filter: Some(edge_filter(&query.filter)),
            score_threshold: None,
            limit: query.limit,
            offset: 0,
            params: Some(SearchParams { hnsw_ef: Some(self.search_ef), ..SearchParams::default() }),
            with_vector: match query.with.image {
                true => WithVector::Selector(vec![VectorName::Image.as_str().to_owned()]),
                false => WithVector::Bool(false),
            },
            with_payload: match query.with.payload {
                PayloadPart::Whole => WithPayloadInterface::Bool(true),
                PayloadPart::Fields([]) => WithPayloadInterface::Bool(false),
                PayloadPart::Fields(fields) => {
                    WithPayloadInterface::Fields(fields.iter().copied().map(field).collect())
                }
            },
        })?;
        Ok(points
            .into_iter()
            .filter_map(|point| {
                let payload = point.payload.map(|payload| payload.0).unwrap_or_default();
                let [image, _] = dense_vectors(point.vector);
                Some(Hit { id: uuid_of(point.id)?, score: point.score, payload, image })
            })
            .collect())
    }

    /// As [`crate::store::VectorStore::get`].
    pub fn get(&self, ids: &[Uuid]) -> Result<Vec<StoredPoint>, EngineError> {
        let records = self.shard.retrieve(
            &point_ids(ids),
            Some(WithPayloadInterface::Bool(true)),
            Some(WithVector::Bool(true)),
        )?;
        Ok(records.into_iter().filter_map(stored_point).collect())
    }

    /// Live posts.
    pub fn count(&self) -> Result<usize, EngineError> {
        self.count_where(Some(EdgeFilter::new_must_not(is_true(DELETED))))
    }

    /// As [`crate::store::VectorStore::purge`].
    pub fn purge(&self, before: DateTime<Utc>) -> Result<u64, EngineError> {
        let mut purged = 0;
        loop {
            let (records, next) = self.shard.scroll(ScrollRequest {
                offset: None,
                limit: Some(PAGE),
                filter: Some(old_markers(before)),
                with_payload: Some(WithPayloadInterface::Bool(false)),
                with_vector: WithVector::Bool(false),
                order_by: None,
            })?;
            let ids = records.iter().map(|record| record.id).collect::<Vec<_>>();
            purged += ids.len() as u64;
            if !ids.is_empty() {
                self.shard.update(UpdateOperation::PointOperation(PointOperations::DeletePoints { ids }))?;
            }
            if next.is_none() {
                return Ok(purged);
            }
        }
    }

    /// About so many points lie outside of search graphs.
    pub fn unoptimized(&self) -> Result<usize, EngineError> {
        let mut vectors = 0;
        for name in [VectorName::Image, VectorName::Caption] {
            let condition = HasVectorCondition { has_vector: name.as_str().to_owned() };
            vectors += self.count_where(Some(EdgeFilter::new_must(Condition::HasVector(condition))))?;
        }
        let info = self.shard.info();
        let outside = vectors.saturating_sub(info.indexed_vectors_count);
        Ok((info.points_count * outside).checked_div(vectors).unwrap_or(0))
    }

    /// Builds search graphs and merges segments. Searches and writes go on; each is held up only while segments are
    /// swapped.
    pub fn optimize(&self) -> Result<(), EngineError> {
        guarded(|| self.shard.optimize())??;
        self.ensure_indexes()
    }

    /// Brings everything to disk.
    pub fn flush(&self) -> Result<(), EngineError> {
        guarded(|| self.shard.flush())
    }

    /// Bytes of the full files of the engine's own log. It never reads or shortens that log itself.
    pub fn old_log_bytes(&self) -> Result<u64, EngineError> {
        let files = full_log_files(&self.path)?;
        let mut bytes = 0;
        for (_, file) in files {
            bytes += std::fs::metadata(file)?.len();
        }
        Ok(bytes)
    }

    /// Removes second copies of points: a process killed while an optimisation swaps segments leaves the old segments
    /// beside the new one, and counts and searches would see both. `record` must keep the rows safe before they are
    /// taken out of the shard and put in again.
    pub fn remove_doubles(
        &self,
        mut record: impl FnMut(&[Row]) -> Result<(), std::io::Error>,
    ) -> Result<usize, EngineError> {
        let mut doubles = 0;
        let mut from = None;
        loop {
            let (records, next) = self.shard.scroll(ScrollRequest {
                offset: from,
                limit: Some(PAGE),
                filter: None,
                with_payload: Some(WithPayloadInterface::Bool(false)),
                with_vector: WithVector::Bool(false),
                order_by: None,
            })?;
            let ids = records.iter().map(|record| record.id).collect::<Vec<_>>();
            let copies = self.count_where(Some(EdgeFilter::new().with_point_ids(ids.iter().copied())))?;
            if copies > ids.len() {
                doubles += copies - ids.len();
                let rows = self.rows(&ids)?;
                record(&rows)?;
                self.shard.update(UpdateOperation::PointOperation(PointOperations::DeletePoints { ids }))?;
                self.put(&rows, &HashSet::new())?;
            }
            match next {
                None => return Ok(doubles),
                Some(_) => from = next,
            }
        }
    }

    fn rows(&self, ids: &[PointId]) -> Result<Vec<Row>, EngineError> {
        let whole = Some(WithPayloadInterface::Bool(true));
        let records = self.shard.retrieve(ids, whole, Some(WithVector::Bool(true)))?;
        let rows = records.into_iter().filter_map(stored_point).map(|point| Row {
            id: point.id,
            image: point.image,
            caption: point.caption,
            payload: point.payload,
        });
        Ok(rows.collect())
    }

    fn count_where(&self, filter: Option<EdgeFilter>) -> Result<usize, EngineError> {
        Ok(self.shard.count(CountRequest { filter, exact: true })?)
    }

    /// A segment that the engine makes anew (after an optimisation, or at a start) can come without payload indexes.
    fn ensure_indexes(&self) -> Result<(), EngineError> {
        for (name, kind) in INDEXES {
            self.shard.update(UpdateOperation::FieldIndexOperation(FieldIndexOperations::CreateIndex(
                CreateIndex { field_name: field(name), field_schema: Some(PayloadFieldSchema::FieldType(kind)) },
            )))?;
        }
        Ok(())
    }
}

fn edge_config(config: &EngineConfig) -> EdgeConfig {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    // On disk: pages of a memory-mapped file are the system's to drop, so memory does not grow with the posts.
    let vector = EdgeVectorParams {
        size: config.dimension,
        distance: Distance::Cosine,
        on_disk: Some(true),
        multivector_config: None,
        datatype: None,
        quantization_config: None,
        hnsw_config: None,
    };
    let vector_bytes = config.dimension * size_of::<f32>();
    EdgeConfig::builder()
        .on_disk_payload(true)
        .vector(VectorName::Image.as_str(), vector.clone())
        .vector(VectorName::Caption.as_str(), vector)
        .hnsw_config(HnswIndexConfig { max_indexing_threads: (cores / 2).max(1), ..HnswIndexConfig::default() })
        .optimizers(EdgeOptimizersConfig {
            indexing_threshold: Some((config.optimize_after.saturating_mul(vector_bytes) / 1024 / 2).max(1)),
            ..EdgeOptimizersConfig::default()
        })
        .build()
}

fn edge_filter(filter: &Filter) -> EdgeFilter {
    let is = |name: &str, value: &String| {
        let value = Match::Value(MatchValue { value: ValueVariants::String(value.clone()) });
        Condition::Field(FieldCondition::new_match(field(name), value))
    };
    let any_of = |(name, values): (&str, &Vec<String>)| {
        let any = || Condition::Field(FieldCondition::new_match(field(name), Match::from(values.clone())));
        (!values.is_empty()).then(any)
    };
    let mut must = Vec::new();
    must.extend(filter.lang.as_ref().map(|lang| is("lang", lang)));
    must.extend(filter.author.as_ref().map(|author| is("author", author)));
    must.extend(filter.tags_all.iter().map(|tag| is("tags", tag)));
    must.extend([("tags", &filter.tags_any), (LABELS, &filter.labels_any)].into_iter().filter_map(any_of));
    if filter.since.is_some() || filter.until.is_some() {
        let range = Range {
            gte: filter.since.map(DateTimeWrapper),
            lt: filter.until.map(DateTimeWrapper),
            gt: None,
            lte: None,
        };
        must.push(Condition::Field(FieldCondition::new_datetime_range(field("created_at"), range)));
    }
    let mut must_not = vec![is_true(DELETED), is_true(HIDDEN)];
    must_not.extend([("author", &filter.not_author), (LABELS, &filter.labels_none)].into_iter().filter_map(any_of));
    EdgeFilter { must: Some(must), must_not: Some(must_not), ..EdgeFilter::new() }
}

fn is_true(name: &str) -> Condition {
    let value = Match::Value(MatchValue { value: ValueVariants::Bool(true) });
    Condition::Field(FieldCondition::new_match(field(name), value))
}

fn old_markers(before: DateTime<Utc>) -> EdgeFilter {
    let range = Range { lt: Some(DateTimeWrapper(before)), gte: None, gt: None, lte: None };
    let old = Condition::Field(FieldCondition::new_datetime_range(field(DELETED_AT), range));
    EdgeFilter { must: Some(vec![is_true(DELETED), old]), ..EdgeFilter::new() }
}

fn field(name: &str) -> JsonPath {
    name.parse().expect("a plain field name is a path. This is a bug.")
}

fn point_ids(ids: &[Uuid]) -> Vec<PointId> {
    ids.iter().copied().map(PointId::Uuid).collect()
}

fn uuid_of(id: PointId) -> Option<Uuid> {
    match id {
        PointId::Uuid(id) => Some(id),
        PointId::NumId(_) => None,
    }
}

fn stored_point(record: Record) -> Option<StoredPoint> {
    let [image, caption] = dense_vectors(record.vector);
    let payload = record.payload.map(|payload| payload.0).unwrap_or_default();
    Some(StoredPoint { id: uuid_of(record.id)?, payload, image, caption })
}

/// The `image` and the `caption` vector.
fn dense_vectors(vectors: Option<VectorStructInternal>) -> [Option<Vec<f32>>; 2] {
    let mut vectors = match vectors {
        Some(VectorStructInternal::Named(vectors)) => vectors,
        _ => HashMap::new(),
    };
    [VectorName::Image, VectorName::Caption].map(|name| match vectors.remove(name.as_str()) {
        Some(VectorInternal::Dense(vector)) => Some(vector),
        _ => None,
    })
}

/// The engine panics where it cannot flush, and where a file is not what it expects.
fn guarded<T>(work: impl FnOnce() -> T) -> Result<T, EngineError> {
    std::panic::catch_unwind(AssertUnwindSafe(work)).map_err(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string));
        EngineError::Panic(text.unwrap_or_else(|| "the engine panicked".to_owned()))
    })
}

/// Only ever called on a shard that is closed: everything in it is flushed or in our journal, so its log is needed for
/// nothing but the count of its entries, which the engine takes from the last full file.
fn drop_old_log_files(path: &Path) -> Result<(), std::io::Error> {
    let mut files = full_log_files(path)?;
    files.sort_by_key(|(first, _)| *first);
    files.pop();
    for (_, file) in files {
        std::fs::remove_file(file)?;
    }
    Ok(())
}

fn full_log_files(path: &Path) -> Result<Vec<(u64, PathBuf)>, std::io::Error> {
    let log = path.join(LOG);
    if !log.try_exists()? {
        return Ok(Vec::new());
    }
    let mut files = Vec::new();
    for entry in std::fs::read_dir(log)? {
        let entry = entry?;
        let name = entry.file_name();
        let first =
            name.to_str().and_then(|name| name.strip_prefix(FULL_LOG_FILE)).and_then(|first| first.parse().ok());
        files.extend(first.map(|first| (first, entry.path())));
    }
    Ok(files)
}
