//! A request in, its answer out, whoever asked: permit, embedding, store, ranking.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::metrics::Metrics;
use crate::post::{ImageSource, point_id};
use crate::query::QueryConfig;
use crate::query::admission::{Kind, Place, Places};
use crate::query::cache::TextCache;
use crate::query::embed::QueryEncoder;
use crate::query::error::{ErrorCode, SearchError};
use crate::query::rank::{self, Ranked, Ranking};
use crate::query::request::{SearchRequest, Subject, Target};
use crate::store::{Filter, Hit, SharedStore, StoredPoint, VectorName, VectorQuery};

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
    topics: TextCache<[f32]>,
    thumbnails: TextCache<str>,
}

/// The answer of design 1.5.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct SearchResponse {
    /// As the request gave it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
    /// The model's id.
    pub model: String,
    /// Milliseconds from the request's arrival to the answer.
    pub took_ms: f64,
    /// Number of posts over which `probability` was computed; see [`crate::query::rank`].
    pub candidates: usize,
    /// Best first.
    pub hits: Vec<SearchHit>,
}

/// A post of the answer; what the post does not have is null.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct SearchHit {
    /// From 1.
    pub rank: usize,
    /// The feed's id of the post.
    #[schema(value_type = String)]
    pub post_id: Value,
    /// Cosine similarity with the post's vector `matched`.
    pub score: f32,
    /// Softmax of logit_scale x cosine over the candidates.
    pub probability: f64,
    /// `image` or `caption`: the post's vector that `score` speaks of.
    pub matched: &'static str,
    /// The post's text.
    #[schema(value_type = Option<String>, required)]
    pub caption: Value,
    /// Whether its picture could not be had so far: the post is found by its caption alone.
    pub image_pending: bool,
    /// The post's picture: `url`, `path` or `inline` as the post had it, and `thumbnail` (a data URI) where one is kept.
    #[schema(value_type = Option<HitImage>, required)]
    pub image: Value,
    /// Who wrote it.
    #[schema(value_type = Option<String>, required)]
    pub author: Value,
    /// When.
    #[schema(value_type = Option<String>, required)]
    pub created_at: Value,
    /// Its language.
    #[schema(value_type = Option<String>, required)]
    pub lang: Value,
    /// Its tags.
    #[schema(value_type = Option<Vec<String>>, required)]
    pub tags: Value,
}

/// A post's picture, as an answer describes it.
#[derive(ToSchema)]
pub struct HitImage {
    /// Where the post says that it is.
    pub url: Option<String>,
    /// Its place below `images.root` of the ingest worker.
    pub path: Option<String>,
    /// It came inside the post.
    pub inline: Option<bool>,
    /// A small copy as a data URI; `/v1/thumbnail` makes one of others.
    pub thumbnail: Option<String>,
}

/// A search's vector, and the stored post that it was taken from.
struct Embedded {
    vector: Arc<[f32]>,
    own: Option<Uuid>,
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

    /// Answers a search within `query.max_wait` (for a free place; over Kafka as long as it takes) and `query.timeout`.
    ///
    /// # Errors
    /// 422 for what can never be answered, 429 without a free place, 503 where the store or the encoder fails or takes
    /// longer than the timeout.
    pub async fn search(&self, request: SearchRequest, source: Source) -> Result<SearchResponse, SearchError> {
        let arrived = Instant::now();
        let result = self.admitted(request, source, arrived).await;
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
    ) -> Result<SearchResponse, SearchError> {
        // The topic is the queue of Kafka's requests: an error would only make their senders ask once more.
        let place = match source {
            Source::Kafka => self.place(Kind::Bulk, None).await,
            Source::Http | Source::Cli => self.place(Kind::Single, Some(self.parts.config.max_wait)).await,
        };
        self.observe("wait", arrived);
        let _place = place?;
        let timeout = self.parts.config.timeout;
        tokio::time::timeout(timeout, self.answer(request, arrived))
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

    pub(super) async fn answer(&self, request: SearchRequest, arrived: Instant) -> Result<SearchResponse, SearchError> {
        let encoding = Instant::now();
        let embedded = self.embed(request.subject).await?;
        self.observe("encode", encoding);

        let searching = Instant::now();
        let top_k = request.top_k;
        let limit = self.parts.config.candidates.max(top_k);
        let logit_scale = self.parts.model.logit_scale;
        let look_up = |using| self.candidates(&embedded, using, request.filter.clone(), limit);
        let ranking = match request.target {
            Target::Image | Target::Caption => {
                let using = if request.target == Target::Image { VectorName::Image } else { VectorName::Caption };
                let hits = look_up(using).await?;
                rank::single(hits, using, logit_scale, top_k)
            }
            Target::Both => {
                let (image, caption) = tokio::try_join!(look_up(VectorName::Image), look_up(VectorName::Caption))?;
                rank::fused(image, caption, logit_scale, top_k)
            }
        };
        self.observe("store", searching);

        let Ranking { candidates, posts } = ranking;
        let hits = posts.into_iter().enumerate().map(|(index, post)| SearchHit::new(index + 1, post)).collect();
        let took_ms = (arrived.elapsed().as_secs_f64() * 1e5).round() / 1e2;
        let model = self.parts.model.id.clone();
        Ok(SearchResponse { request_id: request.request_id, model, took_ms, candidates, hits })
    }

    async fn embed(&self, subject: Subject) -> Result<Embedded, SearchError> {
        match subject {
            Subject::Topic(topic) => Ok(Embedded { vector: self.topic_vector(topic).await?, own: None }),
            Subject::Picture(picture) => {
                Ok(Embedded { vector: self.parts.encoder.embed_picture(&picture).await?.into(), own: None })
            }
            Subject::Post(post_id) => {
                let post = self.stored(&post_id).await?;
                let Some(vector) = post.image else {
                    let message = format!("the post {post_id:?} has no picture to search by");
                    return Err(SearchError::new(ErrorCode::Unprocessable, message));
                };
                Ok(Embedded { vector: vector.into(), own: Some(post.id) })
            }
        }
    }

    async fn stored(&self, post_id: &str) -> Result<StoredPoint, SearchError> {
        let stored = self.parts.store.get(&[point_id(post_id)]).await?.into_iter().next();
        stored.filter(|post| post.payload.get("deleted") != Some(&Value::Bool(true))).ok_or_else(|| {
            SearchError::new(ErrorCode::Unprocessable, format!("there is no post {post_id:?} in the index"))
        })
    }

    async fn topic_vector(&self, topic: String) -> Result<Arc<[f32]>, SearchError> {
        let known = self.topics.get(&topic);
        let result = if known.is_some() { "hit" } else { "miss" };
        self.parts.metrics.embedding_cache.with_label_values(&[result]).inc();
        if let Some(vector) = known {
            return Ok(vector);
        }
        let vector: Arc<[f32]> = self.parts.encoder.embed_topic(&topic).await?.into();
        self.topics.put(&topic, Arc::clone(&vector));
        Ok(vector)
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
                    self.topics.put(topic, vector.into());
                }
            }
        }
    }

    async fn candidates(
        &self,
        embedded: &Embedded,
        using: VectorName,
        filter: Filter,
        limit: usize,
    ) -> Result<Vec<Hit>, SearchError> {
        // One more where the post itself, which is left out, would take a place.
        let limit_with_own = limit + usize::from(embedded.own.is_some());
        let query = VectorQuery { vector: embedded.vector.to_vec(), using, filter, limit: limit_with_own };
        let mut hits = self.parts.store.search(query).await?;
        hits.retain(|hit| Some(hit.id) != embedded.own);
        hits.truncate(limit);
        Ok(hits)
    }

    pub(super) fn observe(&self, phase: &str, since: Instant) {
        self.parts.metrics.search_seconds.with_label_values(&[phase]).observe(since.elapsed().as_secs_f64());
    }

    pub(super) fn count(&self, source: Source, error: Option<&SearchError>) {
        let outcome = error.map_or("ok", |error| error.code.outcome());
        self.parts.metrics.searches.with_label_values(&[source.as_str(), outcome]).inc();
    }
}

impl SearchHit {
    fn new(rank: usize, post: Ranked) -> Self {
        let Ranked { id: _, score, matched, probability, mut payload } = post;
        let thumbnail = payload.remove("thumbnail");
        let mut take = |field: &str| payload.remove(field).unwrap_or(Value::Null);
        let mut image = take("image");
        if let (Value::Object(image), Some(thumbnail)) = (&mut image, thumbnail) {
            image.insert("thumbnail".to_owned(), thumbnail);
        }
        Self {
            rank,
            post_id: take("post_id"),
            score,
            probability,
            matched: matched.as_str(),
            caption: take("caption"),
            image_pending: take("image_pending") == Value::Bool(true),
            image,
            author: take("author"),
            created_at: take("created_at"),
            lang: take("lang"),
            tags: take("tags"),
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
