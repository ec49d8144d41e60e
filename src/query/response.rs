//! The answer to a search (design 1.5).

use serde::Serialize;
use serde_json::{Map, Value};
use utoipa::ToSchema;

use crate::query::rank::Ranked;
use crate::store::LABELS;

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
    /// As the request gave it: hits that were passed over.
    pub offset: usize,
    /// The least cosine of a hit that was in force; null: none. Of target `both` the lower one of the two.
    #[schema(required)]
    pub min_score: Option<f32>,
    /// Best first.
    pub hits: Vec<SearchHit>,
}

/// A post of the answer; what the post does not have is null.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct SearchHit {
    /// From 1, the hits that were passed over included.
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
    /// Its labels, each as "set/label".
    #[schema(value_type = Vec<String>)]
    pub labels: Vec<Value>,
    /// Number of further posts among the candidates with the same picture.
    pub folded: usize,
    /// The best of them, at most 10.
    #[schema(value_type = Vec<String>)]
    pub folded_post_ids: Vec<Value>,
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

impl SearchHit {
    /// `payload`: of the post.
    pub(super) fn new(
        rank: usize,
        post: &Ranked,
        mut payload: Map<String, Value>,
        folded_post_ids: Vec<Value>,
    ) -> Self {
        let thumbnail = payload.remove("thumbnail");
        let mut take = |field: &str| payload.remove(field).unwrap_or(Value::Null);
        let mut image = take("image");
        if let (Value::Object(image), Some(thumbnail)) = (&mut image, thumbnail) {
            image.insert("thumbnail".to_owned(), thumbnail);
        }
        Self {
            rank,
            post_id: take("post_id"),
            score: post.score,
            probability: post.probability,
            matched: post.matched.as_str(),
            caption: take("caption"),
            image_pending: take("image_pending") == Value::Bool(true),
            image,
            author: take("author"),
            created_at: take("created_at"),
            lang: take("lang"),
            tags: take("tags"),
            labels: match take(LABELS) {
                Value::Array(labels) => labels,
                _ => Vec::new(),
            },
            folded: post.folded,
            folded_post_ids,
        }
    }
}
