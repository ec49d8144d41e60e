//! Whether a post is to blame for a rejection: a store that rejects also what nothing is wrong with rejects everything.

use chrono::Utc;
use serde_json::{Map, Value};
use uuid::Uuid;

use crate::error::Fault;
use crate::store::{HIDDEN, Order, Origin, Point, Tombstone, Write};

/// What a person who reads the store finds at the probe's point.
const NAME: &str = "feedlens.probe";

/// A post that nothing is wrong with, and its deletion. No search sees it; what remains is a delete marker for each worker
/// that met a rejection, purged as others are.
pub struct Probe {
    id: Uuid,
    dimension: usize,
    written: i64,
}

impl Probe {
    /// With vectors of `dimension` values.
    pub fn new(dimension: usize) -> Self {
        let id = uuid::Builder::from_random_bytes(rand::random()).into_uuid();
        Self { id, dimension, written: 0 }
    }

    /// The post with both vectors, then its deletion; to be written one after the other. Newer than all before: a write that
    /// changes nothing would not reach the store.
    pub fn writes(&mut self) -> [Write; 2] {
        let now = Utc::now();
        let mut next = || {
            self.written += 1;
            let (topic, offset) = (NAME.to_owned(), self.written);
            let source = Origin { topic, partition: 0, offset, timestamp: now.timestamp_millis() };
            Order { version: None, source }
        };
        let mut vector = vec![0.0; self.dimension];
        if let Some(first) = vector.first_mut() {
            *first = 1.0;
        }
        let payload = [("post_id".to_owned(), Value::from(NAME)), (HIDDEN.to_owned(), true.into())];
        let post = Point {
            id: self.id,
            order: next(),
            image: Some(vector.clone()),
            caption: Some(vector),
            image_pending: false,
            payload: Map::from_iter(payload),
        };
        let deletion = Tombstone { id: self.id, order: next(), post_id: NAME.to_owned(), deleted_at: now };
        [Write::Upsert(post), Write::Delete(deletion)]
    }
}

/// What became of a probe: `None` where the store took it, or why it was rejected.
pub struct Probed {
    /// The post.
    pub post: Option<String>,
    /// Its deletion.
    pub deletion: Option<String>,
}

impl Probed {
    /// Whether a rejected write is to blame for it itself.
    ///
    /// # Errors
    /// [`Fault::Fatal`]: the store does not take the probe's either.
    pub fn blames(&self, write: &Write) -> Result<(), Fault> {
        let (what, rejected) = match write {
            Write::Upsert(_) => ("posts", &self.post),
            Write::Delete(_) => ("deletions", &self.deletion),
        };
        match rejected {
            None => Ok(()),
            Some(detail) => Err(Fault::fatal(format!(
                "the store rejects {what}, also one of the worker's own that nothing is wrong with, so it is not the posts: \
                 {detail}; mend the collection and start again: nothing of this batch was dead-lettered"
            ))),
        }
    }
}
