//! The post (design 1.3): its JSON, its point id, its version, and the payload that the store keeps of it (design 1.4).

mod parse;

use std::path::PathBuf;

use chrono::{DateTime, SecondsFormat, Utc};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use uuid::Uuid;

pub use self::parse::{post_id_from_key, tombstone_version};

/// The Kafka header in which a tombstone may carry its version: decimal digits.
pub const VERSION_HEADER: &str = "version";

/// Versions stay below this: stores compare numbers as `f64`, exact up to here.
pub const VERSION_END: u64 = 1 << 53;

/// Where a post's picture is.
#[derive(Debug, Clone, PartialEq)]
pub enum ImageSource {
    /// `{"url": "https://..."}`
    Url(String),
    /// `{"base64": "..."}`, plain or a data URI; not yet decoded.
    Base64(String),
    /// `{"path": "..."}`, relative to `images.root` or absolute below it.
    Path(PathBuf),
}

/// A post, parsed and checked against the limits.
#[derive(Debug, Clone, PartialEq)]
pub struct Post {
    /// The feed's id of the post; never empty.
    pub post_id: String,
    /// Who wrote it.
    pub author: Option<String>,
    /// The text; `None` where absent or only white space.
    pub caption: Option<String>,
    /// BCP 47 language tag, as the feed gave it.
    pub lang: Option<String>,
    /// When it was written.
    pub created_at: Option<DateTime<Utc>>,
    /// The feed's tags.
    pub tags: Vec<String>,
    /// The picture.
    pub image: Option<ImageSource>,
    /// Grows with each edit; `None`: the position in the topic orders the writes.
    pub version: Option<u64>,
    /// Fields that are not part of the contract, kept in the payload.
    pub extra: Map<String, Value>,
}

impl Post {
    /// The payload of design 1.4, without `version` and `source`, which the store adds. `model`: the bundle's id;
    /// `indexed_at`: when the post was encoded; `thumbnail`: a data URI, kept where the picture itself came inside the
    /// message.
    pub fn payload(&self, model: &str, indexed_at: DateTime<Utc>, thumbnail: Option<String>) -> Map<String, Value> {
        let mut payload = Map::new();
        let mut put = |name: &str, value: Option<Value>| {
            if let Some(value) = value {
                payload.insert(name.to_owned(), value);
            }
        };
        put("post_id", Some(self.post_id.as_str().into()));
        put("author", self.author.as_deref().map(Value::from));
        put("caption", self.caption.as_deref().map(Value::from));
        put("lang", self.lang.as_deref().map(Value::from));
        put("created_at", self.created_at.map(|time| timestamp(time).into()));
        put("tags", (!self.tags.is_empty()).then(|| self.tags.as_slice().into()));
        put(
            "image",
            self.image.as_ref().map(|image| match image {
                ImageSource::Url(url) => json!({ "url": url }),
                ImageSource::Path(path) => json!({ "path": path.to_string_lossy() }),
                ImageSource::Base64(_) => json!({ "inline": true }),
            }),
        );
        put("thumbnail", thumbnail.map(Value::from));
        put("extra", (!self.extra.is_empty()).then(|| self.extra.clone().into()));
        put("model", Some(model.into()));
        put("indexed_at", Some(timestamp(indexed_at).into()));
        payload
    }
}

fn timestamp(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(SecondsFormat::AutoSi, true)
}

/// The namespace of point ids: UUIDv5 of the DNS namespace and `posts.feedlens`. Part of the contract with stored data.
const POINT_NAMESPACE: Uuid = Uuid::from_u128(0x21d9af71_c46e_53c1_a760_02e8a06896c2);

/// The point id of a post: UUIDv5 (RFC 9562, SHA-1) of the post id's UTF-8 bytes.
pub fn point_id(post_id: &str) -> Uuid {
    Uuid::new_v5(&POINT_NAMESPACE, post_id.as_bytes())
}

/// Section `[posts]` of the configuration; the comments of `config/default.toml` are the reference.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct PostsConfig {
    /// Largest message, in bytes.
    pub max_bytes: u64,
    /// Longest caption kept, in bytes of UTF-8; a longer one is rejected.
    pub max_caption_bytes: u64,
    /// Unknown fields kept under `extra`, in bytes of JSON; a larger remainder is rejected.
    pub max_extra_bytes: u64,
    /// Most tags, and the longest tag in bytes.
    pub max_tags: usize,
    /// Most tags, and the longest tag in bytes.
    pub max_tag_bytes: u64,
}

#[cfg(test)]
mod tests;
