//! A request in, its answer out, whoever asked: permit, embedding, store, ranking.

mod answer;

pub use answer::MAX_CANDIDATES;

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::encode::bundle::Bundle;
use crate::encode::calibration::Calibration;
use crate::metrics::Metrics;
use crate::post::{ImageSource, point_id};
use crate::query::QueryConfig;
use crate::query::admission::{Kind, Place, Places};
use crate::query::cache::TextCache;
use crate::query::embed::{QueryEncoder, TopicVector};
use crate::query::error::{ErrorCode, SearchError};
use crate::query::request::SearchRequest;
pub use crate::query::response::{HitImage, SearchHit, SearchResponse};
use crate::store::{HIDDEN, SharedStore, StoredPoint};
use crate::traces::Span;

/// What a sender over capacity is told to wait.
pub(super) const OVERLOAD_DELAY: Duration = Duration::from_secs(1);
/// Topics of a batch that are encoded together: larger groups are hardly faster, and a single search waits for one to end.
const TOGETHER: usize = 8;
/// Longer side of thumbnails made for viewers: sharp on a card of a dense screen.
const THUMBNAIL_PIXELS: u32 = 320;
/// Thumbnails kept, some 12 kB each.
const THUMBNAILS: usize = 1024;

/// Who asks; a metric label.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// The HTTP interface and its page.
    Http,
    /// The requests topic.
    Kafka,
    /// The command line.
    Cli,
}

impl Source {
    /// The name in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Source::Http => "http",
            Source::Kafka => "kafka",
            Source::Cli => "cli",
        }
    }
}

/// What an answer says of the model, and what its numbers need.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelInfo {
    /// The bundle's id.
    pub id: String,
    /// The factor before the softmax; about 100 in trained CLIP models.
    pub logit_scale: f32,
    /// When nothing fits, where it was measured.
    pub calibration: Option<Calibration>,
}

impl From<&Bundle> for ModelInfo {
    fn from(bundle: &Bundle) -> Self {
        Self { id: bundle.id.clone(), logit_scale: bundle.logit_scale, calibration: bundle.calibration }
    }
}

/// What a [`SearchService`] is made of.
pub struct ServiceParts {
    /// Turns topics and pictures into vectors.
    pub encoder: QueryEncoder,
    /// Where the posts are.
    pub store: SharedStore,
    /// The model behind `encoder`.
    pub model: ModelInfo,
    /// Limits.
    pub config: QueryConfig,
    /// Counters.
    pub metrics: Arc<Metrics>,
}

/// Answers searches. Shared behind an [`Arc`] by the HTTP interface, the requests topic and the command line.
pub struct SearchService {
    parts: ServiceParts,
    places: Places,
    topics: TextCache<TopicVector>,
    thumbnails: TextCache<str>,
}

impl SearchService {
    /// A service; nothing runs until it is asked.
    pub fn new(parts: ServiceParts) -> Arc<Self> {
        let places = Places::new(parts.config.max_concurrent);
        let topics = TextCache::new(parts.config.cache_entries);
        Arc::new(Self { parts, places, topics, thumbnails: TextCache::new(THUMBNAILS) })
    }

    /// The limits in force.
    pub fn config(&self) -> &QueryConfig {
        &self.parts.config
    }

    /// The model in use.
    pub fn model(&self) -> &ModelInfo {
        &self.parts.model
    }

    /// The store that is searched.
    pub fn store(&self) -> &SharedStore {
        &self.parts.store
    }

    /// The counters.
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.parts.metrics
    }

    /// Answers a search within `query.max_wait` (for a free place; over Kafka as long as it takes) and `query.timeout`. Its
    /// phases are steps of `span`.
    ///
    /// # Errors
    /// 422 for what can never be answered, 429 without a free place, 503 where the store or the encoder fails or takes
    /// longer than the timeout.
    pub async fn search(
        &self,
        request: SearchRequest,
        source: Source,
        span: &Span,
    ) -> Result<SearchResponse, SearchError> {
        let arrived = Instant::now();
        let result = self.admitted(request, source, arrived, span).await;
        self.observe("total", arrived);
        self.count(source, result.as_ref().err());
        result
    }

    /// A small copy, as a data URI, of the picture of a stored post: the one kept with it, or one made from the picture's
    /// source. Viewers so never load from hosts that a post names, which would tell those hosts who watches.
    ///
    /// # Errors
    /// 422 where there is no such post or picture, or its source no longer has it; 429 and 503 as [`Self::search`].
    pub async fn thumbnail(&self, post_id: &str) -> Result<Arc<str>, SearchError> {
        let _place = self.place(Kind::Single, Some(self.parts.config.max_wait)).await?;
        let timeout = self.parts.config.timeout;
        let made = tokio::time::timeout(timeout, self.find_thumbnail(post_id)).await;
        made.unwrap_or_else(|_| Err(too_slow("the picture", timeout)))
    }

    async fn find_thumbnail(&self, post_id: &str) -> Result<Arc<str>, SearchError> {
        let none = || SearchError::new(ErrorCode::Unprocessable, format!("no picture is kept of the post {post_id:?}"));
        let mut post = self.stored(post_id).await?;
        if let Some(Value::String(kept)) = post.payload.remove("thumbnail") {
            return Ok(kept.into());
        }
        let image = |field| post.payload.get("image")?.get(field)?.as_str();
        // By source and not by post: a post may be edited or deleted.
        let (key, source) = match (image("url"), image("path")) {
            (Some(url), _) => (url, ImageSource::Url(url.to_owned())),
            (None, Some(path)) => (path, ImageSource::Path(path.into())),
            (None, None) => return Err(none()),
        };
        if let Some(thumbnail) = self.thumbnails.get(key) {
            return Ok(thumbnail);
        }
        let made = self.parts.encoder.thumbnail(&source, THUMBNAIL_PIXELS).await?;
        let thumbnail: Arc<str> = made.ok_or_else(none)?.into();
        self.thumbnails.put(key, Arc::clone(&thumbnail));
        Ok(thumbnail)
    }

    /// Counts a request that was answered without a search, because it was no good.
    pub fn count_rejected(&self, source: Source, error: &SearchError) {
        self.count(source, Some(error));
    }

    async fn admitted(
        &self,
        request: SearchRequest,
        source: Source,
        arrived: Instant,
        span: &Span,
    ) -> Result<SearchResponse, SearchError> {
        // The topic is the queue of Kafka's requests: an error would only make their senders ask once more.
        let place = match source {
            Source::Kafka => self.place(Kind::Bulk, None).await,
            Source::Http | Source::Cli => self.place(Kind::Single, Some(self.parts.config.max_wait)).await,
        };
        self.observe_in(span, "wait", arrived);
        let _place = place?;
        let timeout = self.parts.config.timeout;
        tokio::time::timeout(timeout, self.answer(request, arrived, span))
            .await
            .unwrap_or_else(|_| Err(too_slow("the search", timeout)))
    }

    pub(super) async fn place(&self, kind: Kind, max_wait: Option<Duration>) -> Result<Place, SearchError> {
        self.places.take(kind, max_wait).await.map_err(|_| {
            SearchError::for_now(
                ErrorCode::Overloaded,
                format!("{} searches are running already; try again in a moment", self.parts.config.max_concurrent),
                OVERLOAD_DELAY,
            )
        })
    }

    async fn stored(&self, post_id: &str) -> Result<StoredPoint, SearchError> {
        let stored = self.parts.store.get(&[point_id(post_id)]).await?.into_iter().next();
        stored.filter(is_shown).ok_or_else(|| {
            SearchError::new(ErrorCode::Unprocessable, format!("there is no post {post_id:?} in the index"))
        })
    }

    /// Vectors of topics that are about to be asked for, encoded together and kept.
    pub(super) async fn prepare_topics(&self, topics: &[&str]) {
        let unknown = topics.iter().filter(|topic| self.topics.get(topic).is_none()).copied().collect::<Vec<_>>();
        self.parts.metrics.embedding_cache.with_label_values(&["miss"]).inc_by(unknown.len() as u64);
        for topics in unknown.chunks(TOGETHER.min(self.parts.config.cache_entries).max(1)) {
            let vectors = self.parts.encoder.embed_topics(topics).await;
            for (topic, vector) in topics.iter().zip(vectors) {
                // Whoever asks for one that failed meets the error again.
                if let Ok(vector) = vector {
                    self.topics.put(topic, Arc::new(vector));
                }
            }
        }
    }

    pub(super) fn observe(&self, phase: &str, since: Instant) {
        self.parts.metrics.search_seconds.with_label_values(&[phase]).observe(since.elapsed().as_secs_f64());
    }

    /// The same, as a step of a trace.
    pub(super) fn observe_in(&self, span: &Span, phase: &'static str, since: Instant) {
        self.observe(phase, since);
        span.past(phase, since);
    }

    pub(super) fn count(&self, source: Source, error: Option<&SearchError>) {
        let outcome = error.map_or("ok", |error| error.code.outcome());
        self.parts.metrics.searches.with_label_values(&[source.as_str(), outcome]).inc();
    }
}

/// Whether a stored point is a post that searches show: no delete marker, and not hidden by a moderation set.
fn is_shown(point: &StoredPoint) -> bool {
    let is_set = |field| point.payload.get(field) == Some(&Value::Bool(true));
    !is_set("deleted") && !is_set(HIDDEN)
}

/// How a search ended, in its trace: what its sender did wrong is no failure of the worker.
pub(super) fn tell_outcome(span: &Span, result: &Result<SearchResponse, SearchError>) {
    match result {
        Ok(_) => span.outcome("ok"),
        Err(error) => {
            span.outcome(error.code.as_str());
            if error.code.status() >= 500 {
                span.fail(error.code.as_str(), &error.to_string());
            }
        }
    }
}

pub(super) fn too_slow(what: &str, timeout: Duration) -> SearchError {
    let message = format!("{what} was not answered within {}", humantime(timeout));
    SearchError::for_now(ErrorCode::Unavailable, message, OVERLOAD_DELAY)
}

/// A duration as the configuration writes it.
pub(super) fn humantime(duration: Duration) -> String {
    humantime_serde::re::humantime::format_duration(duration).to_string()
}
