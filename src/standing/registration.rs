//! A standing topic as it is registered: a record of `kafka.standing_topic`, key the topic's id, value this JSON:
//!
//! ```json
//! {"topic_id": "sunsets", "topic": "海边的日落", "target": "image", "min_score": 0.4, "created_at": "2026-11-20T08:30:00Z"}
//! ```
//! `topic` alone is required; `topic_id`, where it is there, is the key. A record without a value (tombstone) removes the
//! topic. Fields that are not known are ignored: a later version may write them.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Longest topic, in bytes of UTF-8.
pub const MAX_TOPIC_BYTES: usize = 4_096;
/// Longest id, in bytes of UTF-8.
pub const MAX_ID_BYTES: usize = 256;
/// Largest record, key and value: an id and a topic, each of their characters escaped, and room for fields to come.
pub const MAX_RECORD_BYTES: usize = 64 * 1024;

/// Which of a post's vectors a standing topic is compared with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
#[schema(as = StandingTarget)]
pub enum Target {
    /// The picture.
    #[default]
    Image,
    /// The caption.
    Caption,
    /// Each of them; the better one counts.
    Both,
}

/// A standing topic.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
#[schema(as = StandingTopic)]
pub struct Registration {
    /// Its name among all: the record's key.
    pub topic_id: String,
    /// What it is about, in any language that the model knows.
    pub topic: String,
    /// What it is compared with.
    pub target: Target,
    /// The least cosine of a match; `None`: as the configuration says.
    pub min_score: Option<f32>,
    /// When it was registered first.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub created_at: Option<DateTime<Utc>>,
}

#[derive(Deserialize)]
struct Record {
    topic_id: Option<String>,
    topic: String,
    #[serde(default)]
    target: Option<Target>,
    min_score: Option<f32>,
    created_at: Option<DateTime<Utc>>,
}

impl Registration {
    /// Reads a record.
    ///
    /// # Errors
    /// One sentence that names the field and what may stand there.
    pub fn read(topic_id: &str, value: &[u8]) -> Result<Self, String> {
        let record: Record =
            serde_json::from_slice(value).map_err(|error| format!("the record is no good: {error}"))?;
        if record.topic_id.as_deref().is_some_and(|id| id != topic_id) {
            return Err("its topic_id is not the key of its record".to_owned());
        }
        let Record { topic_id: _, topic, target, min_score, created_at } = record;
        let target = target.unwrap_or_default();
        let registration = Self { topic_id: topic_id.to_owned(), topic, target, min_score, created_at };
        registration.check()?;
        Ok(registration)
    }

    /// The record's value.
    ///
    /// # Panics
    /// Never: its fields have a JSON form.
    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("strings, a finite number and a time. This is a bug.")
    }

    /// Whether each field is what it may be.
    ///
    /// # Errors
    /// One sentence that names the field and what may stand there.
    pub fn check(&self) -> Result<(), String> {
        check_id(&self.topic_id)?;
        if self.topic.trim().is_empty() {
            return Err("topic is empty; write what the posts are to show".to_owned());
        }
        if self.topic.len() > MAX_TOPIC_BYTES {
            return Err(format!("topic has {} bytes; at most {MAX_TOPIC_BYTES} may stand there", self.topic.len()));
        }
        match self.min_score {
            Some(score) if !(-1.0..=1.0).contains(&score) => {
                Err("min_score is a cosine, from -1 to 1; leave it out for the configuration's".to_owned())
            }
            _ => Ok(()),
        }
    }
}

/// Whether a topic may have this id.
///
/// # Errors
/// One sentence.
pub fn check_id(topic_id: &str) -> Result<(), String> {
    if topic_id.is_empty() || topic_id.len() > MAX_ID_BYTES || topic_id.chars().any(char::is_control) {
        return Err(format!(
            "topic_id must be a text of 1 to {MAX_ID_BYTES} bytes without control characters, and it is the record's key"
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_of_a_topic_alone_gets_the_defaults() {
        let read = Registration::read("a", "{\"topic\": \"海边的日落\", \"mood\": 1}".as_bytes()).expect("good");
        let expected = Registration {
            topic_id: "a".to_owned(),
            topic: "海边的日落".to_owned(),
            target: Target::Image,
            min_score: None,
            created_at: None,
        };
        assert_eq!(read, expected);
        assert_eq!(Registration::read("a", &read.to_json()), Ok(expected), "what is written is read");
    }

    #[test]
    fn bad_records_are_named() {
        let long = format!("{{\"topic\": \"{}\"}}", "x".repeat(MAX_TOPIC_BYTES + 1));
        for (id, value, mentions) in [
            ("a", "{\"topic\": \"x\", \"topic_id\": \"b\"}", "topic_id"),
            ("", "{\"topic\": \"x\"}", "topic_id"),
            ("a\nb", "{\"topic\": \"x\"}", "control"),
            ("a", "{}", "topic"),
            ("a", "{\"topic\": \" \"}", "empty"),
            ("a", long.as_str(), "4097 bytes"),
            ("a", "{\"topic\": \"x\", \"target\": \"all\"}", "all"),
            ("a", "{\"topic\": \"x\", \"min_score\": 1.5}", "min_score"),
            ("a", "{\"topic\": \"x\", \"min_score\": 1e99}", "min_score"),
            ("a", "{\"topic\": \"x\", \"created_at\": \"yesterday\"}", "no good"),
            ("a", "[]", "no good"),
            ("a", "", "no good"),
        ] {
            let error = Registration::read(id, value.as_bytes()).expect_err(value);
            assert!(error.contains(mentions), "{value}: {error}");
        }
    }
}
