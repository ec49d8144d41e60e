//! The vector store: one seam, two stores. [`edge`] is Qdrant's engine inside the process, [`qdrant`] the server.
//!
//! Both keep a point per post (id = [`crate::post::point_id`]) with the named vectors `image` and `caption` (cosine) and
//! the payload of design 1.4. Both promise the same: a write that returned is durable; an older write ([`order`] says
//! which is) changes nothing; a delete leaves a marker without vectors, so that a late older write cannot bring the post
//! back, and no search or count sees the marker. Markers go when [`VectorStore::purge`] is told an age.

pub mod collection;
#[cfg(feature = "embedded")]
mod edge;
pub mod lacking;
pub mod order;
mod qdrant;
mod rows;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use uuid::Uuid;

use self::order::Kind;
pub use self::order::{Order, Origin, Outcome};
pub use self::qdrant::collections::{Collections, Seen};
use crate::config::Secret;
use crate::error::Fault;
use crate::metrics::Metrics;

/// Which named vector a search compares with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum VectorName {
    /// The picture's vector.
    Image,
    /// The caption's vector.
    Caption,
}

impl VectorName {
    /// The name in the store.
    pub fn as_str(self) -> &'static str {
        match self {
            VectorName::Image => "image",
            VectorName::Caption => "caption",
        }
    }
}

/// One write, of one post.
#[derive(Debug, Clone)]
pub enum Write {
    /// The post in its present form.
    Upsert(Point),
    /// The post is gone.
    Delete(Tombstone),
}

impl Write {
    /// The point that is written.
    pub fn id(&self) -> Uuid {
        match self {
            Write::Upsert(point) => point.id,
            Write::Delete(tombstone) => tombstone.id,
        }
    }

    fn kind(&self) -> Kind {
        match self {
            Write::Upsert(Point { image_pending: true, .. }) => Kind::ImagePending,
            Write::Upsert(_) => Kind::Whole,
            Write::Delete(_) => Kind::Deletion,
        }
    }

    /// Its place among the writes of its post.
    pub fn order(&self) -> &Order {
        match self {
            Write::Upsert(point) => &point.order,
            Write::Delete(tombstone) => &tombstone.order,
        }
    }
}

/// A post as it is stored.
#[derive(Debug, Clone)]
pub struct Point {
    /// UUIDv5 of the post id.
    pub id: Uuid,
    /// Its place among the writes of this post.
    pub order: Order,
    /// L2-normalised, `dimension` values.
    pub image: Option<Vec<f32>>,
    /// L2-normalised, `dimension` values.
    pub caption: Option<Vec<f32>>,
    /// `image` lacks because the post's picture could not be had: the same write with the picture replaces this one,
    /// whichever comes first. The payload says so until then (`image_pending`).
    pub image_pending: bool,
    /// The payload of design 1.4, a JSON object. The store adds `version`, `source` and what else orders writes.
    pub payload: Map<String, Value>,
}

/// A deletion as it is stored.
#[derive(Debug, Clone)]
pub struct Tombstone {
    /// UUIDv5 of the post id.
    pub id: Uuid,
    /// Its place among the writes of this post.
    pub order: Order,
    /// The post id, kept for people who read the store.
    pub post_id: String,
    /// When the deletion was consumed; [`VectorStore::purge`] goes by it.
    pub deleted_at: DateTime<Utc>,
}

/// Conditions on the payload; all that are set must hold. Delete markers and hidden posts fulfil none.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Filter {
    /// Equal to `lang`.
    pub lang: Option<String>,
    /// Equal to `author`.
    pub author: Option<String>,
    /// None of these is `author`.
    pub not_author: Vec<String>,
    /// At least one of these is among `tags`; empty: no condition.
    pub tags_any: Vec<String>,
    /// All of these are among `tags`.
    pub tags_all: Vec<String>,
    /// At least one of these is among `labels`; empty: no condition.
    pub labels_any: Vec<String>,
    /// None of these is among `labels`.
    pub labels_none: Vec<String>,
    /// `created_at` at or after.
    pub since: Option<DateTime<Utc>>,
    /// `created_at` before.
    pub until: Option<DateTime<Utc>>,
}

/// A nearest-neighbour search.
#[derive(Debug, Clone)]
pub struct VectorQuery {
    /// L2-normalised, `dimension` values.
    pub vector: Vec<f32>,
    /// Which named vector to compare with.
    pub using: VectorName,
    /// Conditions on the payload.
    pub filter: Filter,
    /// At most so many hits.
    pub limit: usize,
    /// What each hit brings along.
    pub with: HitParts,
}

/// What a hit brings along beside its id and score: a search among many candidates reads what it needs of them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HitParts {
    /// Of the payload.
    pub payload: PayloadPart,
    /// The vector of the picture.
    pub image: bool,
}

/// How much of a payload is read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum PayloadPart {
    /// All of it.
    #[default]
    Whole,
    /// These fields; empty: nothing.
    Fields(&'static [&'static str]),
}

/// A point found by a search.
#[derive(Debug, Clone)]
pub struct Hit {
    /// The point.
    pub id: Uuid,
    /// Cosine similarity.
    pub score: f32,
    /// The stored payload, as far as it was asked for.
    pub payload: Map<String, Value>,
    /// The `image` vector, where it was asked for and there is one.
    pub image: Option<Vec<f32>>,
}

/// A point read by its id; `payload["deleted"]` is true for a marker.
#[derive(Debug, Clone)]
pub struct StoredPoint {
    /// The point.
    pub id: Uuid,
    /// The stored payload.
    pub payload: Map<String, Value>,
    /// The `image` vector, where there is one.
    pub image: Option<Vec<f32>>,
    /// The `caption` vector, where there is one.
    pub caption: Option<Vec<f32>>,
}

/// What the collection is made for; opening it with another model's bundle is an error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelStamp {
    /// The bundle's id.
    pub model: String,
    /// The vectors' dimension.
    pub dimension: usize,
}

/// What ingest and query need of a store.
#[async_trait]
pub trait VectorStore: Send + Sync {
    /// Writes a batch; on `Ok` every write is durable or was older than what is stored, as its [`Outcome`] (one a write,
    /// in order) says. The batch may hold several writes of one point. A whole-batch [`Fault::Reject`] means that some
    /// write in it is at fault: the caller splits the batch.
    async fn write(&self, writes: Vec<Write>) -> Result<Vec<Outcome>, Fault>;

    /// The nearest points, best first, without delete markers and hidden posts.
    async fn search(&self, query: VectorQuery) -> Result<Vec<Hit>, Fault>;

    /// The points with these ids, in no particular order; missing ones are left out.
    async fn get(&self, ids: &[Uuid]) -> Result<Vec<StoredPoint>, Fault>;

    /// Number of live posts (hidden ones too; delete markers are not counted).
    async fn count(&self) -> Result<u64, Fault>;

    /// About as many as [`Self::count`], and cheap however many there are.
    async fn estimate(&self) -> Result<u64, Fault> {
        self.count().await
    }

    /// Removes the delete markers of deletions that were consumed before a time; tells how many. A write older than such
    /// a deletion would bring its post back from then on.
    async fn purge(&self, before: DateTime<Utc>) -> Result<u64, Fault>;

    /// Whether the store can serve right now.
    async fn ready(&self) -> Result<(), Fault>;

    /// Makes everything durable against power loss and releases what is held. Called once, at the end.
    async fn close(&self) -> Result<(), Fault>;
}

/// Payload field of posts that no search shows: a moderation set says so.
pub const HIDDEN: &str = "hidden";
/// Payload field of a post's labels, each as "set/label".
pub const LABELS: &str = "labels";

/// The largest `store.search_ef`: a search that keeps more is as slow as one that looks at everything.
const MAX_SEARCH_EF: usize = 4_096;

/// Topic, in the `source` of its point, of what a worker tries the store with: no message, and no post. No broker has a topic of
/// this name that feedlens reads.
pub const PROBE: &str = "feedlens.probe";

/// A store behind the seam.
pub type SharedStore = Arc<dyn VectorStore>;

/// Opens the configured store for a model; makes the collection (or folder) and what belongs to it where absent.
///
/// # Errors
/// [`Fault::Fatal`] with one sentence that says what to do: not reachable, wrong credentials, another model's
/// collection, a folder that cannot be used or is in use.
pub async fn open(config: &StoreConfig, stamp: &ModelStamp, metrics: &Metrics) -> Result<SharedStore, Fault> {
    match config.kind {
        #[cfg(feature = "embedded")]
        StoreKind::Edge => Ok(Arc::new(edge::EdgeStore::open(config, stamp, metrics).await?)),
        #[cfg(not(feature = "embedded"))]
        StoreKind::Edge => {
            let _ = metrics;
            Err(Fault::fatal(
                "store.kind is \"edge\", but this binary was built without the embedded store; set store.kind = \
                 \"qdrant\", or build with the cargo feature `embedded`",
            ))
        }
        StoreKind::Qdrant => Ok(Arc::new(qdrant::QdrantStore::open(config, stamp).await?)),
    }
}

/// Section `[store]` of the configuration; the comments of `config/default.toml` are the reference.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct StoreConfig {
    /// "qdrant" (a server) or "edge" (Qdrant's engine inside this process).
    pub kind: StoreKind,
    /// Points to the live model's collection, "<alias>_<model>_<dimension>"; a worker uses its own model's by name.
    pub alias: String,
    /// How widely a search walks the graph of vectors (HNSW's ef).
    pub search_ef: usize,
    /// Delete markers are removed when they are this old.
    #[serde(with = "humantime_serde")]
    pub delete_marker_ttl: Duration,
    /// The server.
    pub qdrant: QdrantConfig,
    /// The embedded store.
    pub edge: EdgeConfig,
}

/// Section `[store.qdrant]` of the configuration; the comments of `config/default.toml` are the reference.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct QdrantConfig {
    /// The gRPC endpoint; https:// for TLS.
    pub url: String,
    /// Masked wherever it is shown.
    pub api_key: Secret,
    /// One request; connecting.
    #[serde(with = "humantime_serde")]
    pub timeout: Duration,
    /// One request; connecting.
    #[serde(with = "humantime_serde")]
    pub connect_timeout: Duration,
    /// When a collection is made: shards, copies, and whether vectors and payload lie on disk.
    pub shards: u32,
    /// When a collection is made: shards, copies, and whether vectors and payload lie on disk.
    pub replicas: u32,
    /// When a collection is made: shards, copies, and whether vectors and payload lie on disk.
    pub vectors_on_disk: bool,
    /// When a collection is made: shards, copies, and whether vectors and payload lie on disk.
    pub payload_on_disk: bool,
}

/// Section `[store.edge]` of the configuration; the comments of `config/default.toml` are the reference.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct EdgeConfig {
    /// The folder of the embedded store; one process at a time.
    pub dir: PathBuf,
    /// Writes reach the operating system at once (they survive a killed process) and the disk itself this often.
    #[serde(with = "humantime_serde")]
    pub flush_interval: Duration,
    /// Build the search graph in the background when at least this many points are new since the last time.
    pub optimize_after: usize,
    /// Nothing is written while less than this is free on the disk of `dir`.
    pub min_free_bytes: u64,
}

/// Which store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum StoreKind {
    /// A Qdrant server, over gRPC.
    Qdrant,
    /// Qdrant's engine inside this process.
    Edge,
}

impl StoreConfig {
    pub(crate) fn check(&self) -> anyhow::Result<()> {
        anyhow::ensure!(!self.alias.is_empty(), "store.alias is empty; it names what readers and writers use");
        anyhow::ensure!(
            (1..=MAX_SEARCH_EF).contains(&self.search_ef),
            "store.search_ef ({}) must be between 1 and {MAX_SEARCH_EF}",
            self.search_ef
        );
        anyhow::ensure!(
            !self.delete_marker_ttl.is_zero(),
            "store.delete_marker_ttl must be more than 0; set it longer than the posts topic keeps messages"
        );
        anyhow::ensure!(
            !self.edge.flush_interval.is_zero() && self.edge.optimize_after > 0,
            "store.edge.flush_interval and store.edge.optimize_after must be more than 0"
        );
        anyhow::ensure!(
            self.qdrant.shards > 0 && self.qdrant.replicas > 0,
            "store.qdrant.shards and store.qdrant.replicas must be at least 1"
        );
        qdrant::check(&self.qdrant)?;
        Ok(())
    }
}
