//! Whether a post is to blame for a rejection: a store that rejects also what nothing is wrong with rejects everything.

use chrono::Utc;
use serde_json::{Map, Value};
use uuid::Uuid;

use crate::error::Fault;
use crate::store::{HIDDEN, Order, Origin, PROBE, Point, Tombstone, Write};

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
            let (topic, offset) = (PROBE.to_owned(), self.written);
            let source = Origin { topic, partition: 0, offset, timestamp: now.timestamp_millis() };
            Order { version: None, source }
        };
        let mut vector = vec![0.0; self.dimension];
        if let Some(first) = vector.first_mut() {
            *first = 1.0;
        }
        let payload = [("post_id".to_owned(), Value::from(PROBE)), (HIDDEN.to_owned(), true.into())];
        let post = Point {
            id: self.id,
            order: next(),
            image: Some(vector.clone()),
            caption: Some(vector),
            image_pending: false,
            payload: Map::from_iter(payload),
        };
        let deletion = Tombstone { id: self.id, order: next(), post_id: PROBE.to_owned(), deleted_at: now };
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, Overrides};
    use crate::metrics::Metrics;
    use crate::store::{self, ModelStamp, Outcome};

    #[test]
    fn a_post_and_a_deletion_are_blamed_by_their_own_probes() {
        let [post, deletion] = Probe::new(4).writes();
        let why = || Some("no space for the payload".to_owned());
        let only_post = Probed { post: why(), deletion: None };
        let only_deletion = Probed { post: None, deletion: why() };
        for (probed, at_fault, other) in [(only_post, &post, &deletion), (only_deletion, &deletion, &post)] {
            probed.blames(other).expect("the store takes the like, so it is that write's own fault");
            let fault = probed.blames(at_fault).expect_err("the store takes none of these");
            assert!(matches!(&fault, Fault::Fatal(detail) if detail.contains("no space for the payload")), "{fault}");
        }
    }

    /// Or a store that rejects everything by now would take it for an old write, and look well.
    #[tokio::test(flavor = "multi_thread")]
    async fn every_probe_is_news_to_the_store() {
        let folder = tempfile::tempdir().expect("a folder");
        let set = vec!["store.kind=edge".to_owned(), format!("store.edge.dir={}", folder.path().display())];
        let config = Config::load(&[], &Overrides { files: vec![], set }).expect("loads");
        let stamp = ModelStamp { model: "small".to_owned(), dimension: 4 };
        let store = store::open(&config.store, &stamp, &Metrics::new()).await.expect("opens");
        let mut probe = Probe::new(4);
        for _ in 0..3 {
            for write in probe.writes() {
                assert_eq!(store.write(vec![write]).await.expect("writes"), [Outcome::Applied]);
            }
            assert_eq!(store.count().await.expect("counts"), 0);
        }
    }
}
