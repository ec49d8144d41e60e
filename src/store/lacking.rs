//! What one collection has of a post and another lacks, as writes for the other. The vectors are made anew in between: they
//! belong to a model.

use chrono::{DateTime, Utc};
use serde_json::{Map, Value};
use uuid::Uuid;

use super::order::{Kind, Merged, Order, State};
use super::rows::DELETED_AT;
use super::{Point, Tombstone, Write};

/// A post, or its end, that another collection lacks or has in an older form.
#[derive(Debug, Clone)]
pub struct Lacking {
    /// The point.
    pub id: Uuid,
    /// The feed's id of the post.
    pub post_id: String,
    /// The stored payload.
    pub payload: Map<String, Value>,
    history: Vec<(Order, Kind)>,
}

/// The vectors of a post under another model.
#[derive(Debug, Clone)]
pub struct Content {
    /// L2-normalised.
    pub image: Option<Vec<f32>>,
    /// L2-normalised.
    pub caption: Option<Vec<f32>>,
    /// The post has a picture, and it could not be had.
    pub image_pending: bool,
    /// The payload, brought up to date.
    pub payload: Map<String, Value>,
}

impl Lacking {
    /// `None`: nothing is lacking, as far as it can be made anew.
    pub(super) fn new(id: Uuid, state: &State, payload: Map<String, Value>, known: Option<&State>) -> Option<Self> {
        let mut history = state.history();
        // Of a picture that came inside its message only a thumbnail is kept.
        if payload.get("image").and_then(|image| image.get("inline")) == Some(&Value::Bool(true))
            && let Some((_, kind @ Kind::Whole)) = history.last_mut()
        {
            *kind = Kind::ImagePending;
        }
        let mut now = known.cloned();
        let mut changes = false;
        for (order, kind) in &history {
            match State::merge(now.as_ref(), order, *kind) {
                Merged::Write(next) | Merged::Hidden(next) | Merged::Keep(next) => {
                    now = Some(next);
                    changes = true;
                }
                Merged::Same | Merged::Older => {}
            }
        }
        let post_id = payload.get("post_id").and_then(Value::as_str).unwrap_or_default().to_owned();
        changes.then_some(Self { id, post_id, payload, history })
    }

    /// Whether the post is deleted, so that nothing is to be encoded.
    pub fn is_deletion(&self) -> bool {
        self.history.last().is_some_and(|(_, kind)| *kind == Kind::Deletion)
    }

    /// The writes, in the places that they had among the writes of this post. Without `content` (of a deletion, and of a
    /// post that cannot be made anew) only the deletions among them.
    pub fn writes(self, content: Option<Content>) -> Vec<Write> {
        let Self { id, post_id, payload, history } = self;
        let deleted_at = payload.get(DELETED_AT).and_then(Value::as_str);
        let deleted_at = deleted_at.and_then(|time| DateTime::parse_from_rfc3339(time).ok());
        let deleted_at = deleted_at.map_or_else(Utc::now, |time| time.to_utc());
        let mut content = content;
        let writes = history.into_iter().filter_map(|(order, kind)| match kind {
            Kind::Deletion => Some(Write::Delete(Tombstone { id, order, post_id: post_id.clone(), deleted_at })),
            Kind::Whole | Kind::ImagePending => {
                let Content { image, caption, image_pending, payload } = content.take()?;
                Some(Write::Upsert(Point { id, order, image, caption, image_pending, payload }))
            }
        });
        writes.collect()
    }
}
