//! A match as it goes to `kafka.matches_topic`, key the topic's id, and from there to everyone who watches.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::standing::matrix::Found;
use crate::store::Point;

/// A post that matches a standing topic. It may come twice, with the same `topic_id`, `post_id` and `version`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Match {
    /// The standing topic.
    pub topic_id: String,
    /// Its text.
    pub topic: String,
    /// The feed's id of the post.
    pub post_id: String,
    /// The cosine.
    pub score: f32,
    /// `image` or `caption`: the post's vector that `score` speaks of.
    pub matched: String,
    /// The post's text.
    pub caption: Option<String>,
    /// Who wrote it.
    pub author: Option<String>,
    /// When, as the post says.
    pub created_at: Option<String>,
    /// When the match was found.
    pub matched_at: DateTime<Utc>,
    /// The post's version, or the offset of its message where it has none, as the store keeps it.
    pub version: u64,
    /// The topic of matches does not take it with caption and author, so these are left out.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub shortened: bool,
}

impl Match {
    /// Of a stored post.
    pub fn new(found: &Found, point: &Point, matched_at: DateTime<Utc>) -> Self {
        let text = |field: &str| point.payload.get(field).and_then(Value::as_str).map(str::to_owned);
        Self {
            topic_id: found.topic.topic_id.clone(),
            topic: found.topic.topic.clone(),
            post_id: text("post_id").unwrap_or_default(),
            score: found.score,
            matched: found.matched.as_str().to_owned(),
            caption: text("caption"),
            author: text("author"),
            created_at: text("created_at"),
            matched_at,
            version: point.order.number(),
            shortened: false,
        }
    }

    /// Leaves out what may be large and is not needed to find the post.
    pub fn shorten(&mut self) {
        (self.caption, self.author, self.shortened) = (None, None, true);
    }
}
