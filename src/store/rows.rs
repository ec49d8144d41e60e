//! What both stores do with a batch before it is written: check each write, decide with [`State`] which of them stand,
//! and give posts and delete markers the same form.

use std::collections::HashMap;

use chrono::{DateTime, SecondsFormat, Utc};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use uuid::Uuid;

use super::order::{Merged, Outcome, State};
use super::{StoredPoint, VectorName, Write};
use crate::error::{Fault, Reason};
use crate::post::VERSION_END;

/// Payload field of a marker: when the deletion was consumed, RFC 3339.
pub(super) const DELETED_AT: &str = "deleted_at";

/// A point as the stores take it: a post, or a delete marker (no vectors, `deleted: true`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Row {
    pub id: Uuid,
    pub image: Option<Vec<f32>>,
    pub caption: Option<Vec<f32>>,
    pub payload: Map<String, Value>,
}

impl Row {
    /// The vectors that this row has, with their names.
    pub fn vectors(&self) -> impl Iterator<Item = (VectorName, &Vec<f32>)> {
        [(VectorName::Image, &self.image), (VectorName::Caption, &self.caption)]
            .into_iter()
            .filter_map(|(name, vector)| Some((name, vector.as_ref()?)))
    }

    /// The names of the vectors that this row lacks.
    pub fn missing_vectors(&self) -> impl Iterator<Item = VectorName> {
        [(VectorName::Image, self.image.is_none()), (VectorName::Caption, self.caption.is_none())]
            .into_iter()
            .filter_map(|(name, missing)| missing.then_some(name))
    }
}

/// Checks writes before any of them is written.
///
/// # Errors
/// [`Fault::Reject`] that names the first write at fault.
pub(super) fn check(writes: &[Write], dimension: usize) -> Result<(), Fault> {
    writes.iter().try_for_each(|write| check_one(write, dimension))
}

fn check_one(write: &Write, dimension: usize) -> Result<(), Fault> {
    let reject = |detail: String| Fault::reject(Reason::StoreRejected, format!("point {}: {detail}", write.id()));
    if let Some(version) = write.order().version.filter(|version| *version >= VERSION_END) {
        return Err(reject(format!("version {version} is not below 2^53, the limit of exact comparison in the store")));
    }
    let Write::Upsert(point) = write else { return Ok(()) };
    for (name, vector) in [(VectorName::Image, &point.image), (VectorName::Caption, &point.caption)] {
        let Some(vector) = vector else { continue };
        if vector.len() != dimension {
            return Err(reject(format!(
                "its {} vector has {} values, the collection's have {dimension}",
                name.as_str(),
                vector.len()
            )));
        }
        if vector.iter().any(|value| !value.is_finite()) {
            return Err(reject(format!("its {} vector has a value that is not finite", name.as_str())));
        }
    }
    if point.image.is_none() && point.caption.is_none() {
        return Err(reject("it has neither an image nor a caption vector".to_owned()));
    }
    Ok(())
}

/// What a batch changes.
#[derive(Debug)]
pub(super) struct Plan<'a> {
    /// One a write, in their order.
    pub outcomes: Vec<Outcome>,
    changes: Vec<Change<'a>>,
}

/// One a point that changes.
#[derive(Debug)]
pub(super) struct Change<'a> {
    pub id: Uuid,
    /// What the decision stands on; `None`: the point was not there.
    pub before: Option<State>,
    pub after: State,
    content: Content<'a>,
}

#[derive(Debug, Clone, Copy)]
enum Content<'a> {
    Of(&'a Write),
    Marker(&'a Write),
    Stored,
}

impl<'a> Plan<'a> {
    /// Applies the writes one after another to what is stored.
    pub fn new(writes: impl IntoIterator<Item = &'a Write>, stored: &HashMap<Uuid, State>) -> Self {
        let mut plan = Self { outcomes: Vec::new(), changes: Vec::new() };
        let mut places: HashMap<Uuid, usize> = HashMap::new();
        for write in writes {
            let id = write.id();
            let place = places.get(&id).copied();
            let now = place.map(|place| &plan.changes[place].after).or_else(|| stored.get(&id));
            let (outcome, change) = match State::merge(now, write.order(), write.kind()) {
                Merged::Write(after) => (Outcome::Applied, Some((after, Content::Of(write)))),
                Merged::Hidden(after) => (Outcome::Older, Some((after, Content::Marker(write)))),
                Merged::Keep(after) => (Outcome::Older, Some((after, Content::Stored))),
                Merged::Same => (Outcome::Applied, None),
                Merged::Older => (Outcome::Older, None),
            };
            plan.outcomes.push(outcome);
            match (change, place) {
                (None, _) => {}
                (Some((after, content)), None) => {
                    places.insert(id, plan.changes.len());
                    plan.changes.push(Change { id, before: stored.get(&id).cloned(), after, content });
                }
                (Some((after, content)), Some(place)) => {
                    let change = &mut plan.changes[place];
                    change.after = after;
                    if !matches!(content, Content::Stored) {
                        change.content = content;
                    }
                }
            }
        }
        plan
    }

    /// What changes; no point twice.
    pub fn changes(&self) -> &[Change<'a>] {
        &self.changes
    }

    /// The points whose stored content stays: [`Change::row`] asks for it.
    pub fn kept(&self) -> Vec<Uuid> {
        let kept = self.changes.iter().filter(|change| matches!(change.content, Content::Stored));
        kept.map(|change| change.id).collect()
    }
}

impl Change<'_> {
    /// The point as it is to be. `stored`: what [`Plan::kept`] asked for; `None` where it is not what the decision stood
    /// on.
    pub fn row(&self, stored: &[StoredPoint]) -> Option<Row> {
        let mut row = match self.content {
            Content::Of(Write::Upsert(point)) => Row {
                id: self.id,
                image: point.image.clone(),
                caption: point.caption.clone(),
                payload: point.payload.clone(),
            },
            Content::Of(Write::Delete(tombstone)) => {
                marker(self.id, tombstone.post_id.as_str().into(), tombstone.deleted_at)
            }
            Content::Marker(Write::Upsert(point)) => {
                marker(self.id, point.payload.get("post_id").cloned().unwrap_or_default(), Utc::now())
            }
            Content::Marker(Write::Delete(tombstone)) => {
                marker(self.id, tombstone.post_id.as_str().into(), tombstone.deleted_at)
            }
            Content::Stored => {
                let point = stored.iter().find(|point| point.id == self.id)?;
                if State::read_from(&point.payload) != self.before {
                    return None;
                }
                let StoredPoint { id, payload, image, caption } = point.clone();
                Row { id, image, caption, payload }
            }
        };
        self.after.write_to(&mut row.payload);
        Some(row)
    }
}

fn marker(id: Uuid, post_id: Value, deleted_at: DateTime<Utc>) -> Row {
    let deleted_at = deleted_at.to_rfc3339_opts(SecondsFormat::Millis, true);
    let payload = Map::from_iter([("post_id".to_owned(), post_id), (DELETED_AT.to_owned(), Value::from(deleted_at))]);
    Row { id, image: None, caption: None, payload }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Order, Origin, Point, Tombstone};

    fn order(version: u64) -> Order {
        let source = Origin { topic: "posts".to_owned(), partition: 0, offset: version as i64, timestamp: 0 };
        Order { version: Some(version), source }
    }

    fn upsert(id: u128, version: u64, caption: &[f32]) -> Write {
        Write::Upsert(Point {
            id: Uuid::from_u128(id),
            order: order(version),
            image: None,
            caption: Some(caption.to_vec()),
            image_pending: false,
            payload: Map::new(),
        })
    }

    fn delete(id: u128, version: u64) -> Write {
        Write::Delete(Tombstone {
            id: Uuid::from_u128(id),
            order: order(version),
            post_id: "p".to_owned(),
            deleted_at: DateTime::UNIX_EPOCH,
        })
    }

    fn rows(writes: &[Write]) -> (Vec<Row>, Vec<Outcome>) {
        let plan = Plan::new(writes, &HashMap::new());
        (plan.changes().iter().map(|change| change.row(&[]).expect("nothing is kept")).collect(), plan.outcomes)
    }

    #[test]
    fn highest_version_of_each_point_stays_and_the_others_are_told() {
        let batch = [upsert(1, 7, &[1.0]), upsert(2, 1, &[1.0]), upsert(1, 3, &[1.0]), upsert(2, 2, &[1.0])];
        let (kept, outcomes) = rows(&batch);
        let kept = kept.into_iter().map(|row| (row.id.as_u128(), row.payload["version"].as_u64()));
        assert_eq!(kept.collect::<Vec<_>>(), [(1, Some(7)), (2, Some(2))]);
        assert_eq!(outcomes, [Outcome::Applied, Outcome::Applied, Outcome::Older, Outcome::Applied]);
    }

    #[test]
    fn deletion_wins_at_equal_versions_in_either_order() {
        for batch in [[upsert(1, 7, &[1.0]), delete(1, 7)], [delete(1, 7), upsert(1, 7, &[1.0])]] {
            let (kept, _) = rows(&batch);
            assert!(kept.len() == 1 && kept[0].payload["deleted"] == true, "{kept:?}");
        }
    }

    #[test]
    fn faulty_writes_are_rejected_by_name() {
        let cases = [
            (upsert(1, 1 << 53, &[1.0]), "2^53"),
            (upsert(1, 1, &[1.0, 2.0]), "has 2 values"),
            (upsert(1, 1, &[f32::NAN]), "not finite"),
        ];
        for (write, expected) in cases {
            let error = check(&[upsert(9, 1, &[1.0]), write], 1).expect_err("faulty");
            assert!(matches!(error, Fault::Reject { reason: Reason::StoreRejected, .. }), "{error:?}");
            let text = error.to_string();
            assert!(text.contains(expected) && text.contains(&Uuid::from_u128(1).to_string()), "{text}");
        }
    }
}
