//! What both stores do with a batch before it is written: check each write, keep the last write of each point, and give
//! posts and delete markers the same form.

use std::collections::HashMap;

use chrono::SecondsFormat;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use uuid::Uuid;

use super::{VectorName, Write};
use crate::error::{Fault, Reason};
use crate::post::VERSION_END;

/// Payload field: the order of the write among the writes of its post.
pub(super) const VERSION: &str = "version";
/// Payload field: true on a delete marker, absent on a post.
pub(super) const DELETED: &str = "deleted";

/// A point as the stores take it: a post, or a delete marker (no vectors, `deleted: true`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Row {
    pub id: Uuid,
    pub version: u64,
    pub deleted: bool,
    pub image: Option<Vec<f32>>,
    pub caption: Option<Vec<f32>>,
    pub payload: Map<String, Value>,
}

impl Row {
    #[cfg(feature = "embedded")]
    /// Whether this row takes the place of a stored one. An equal version is the same write again and changes nothing;
    /// only a deletion goes ahead of a post of the same version, so that the end does not depend on the order.
    pub fn replaces(&self, stored_version: u64) -> bool {
        if self.deleted { stored_version <= self.version } else { stored_version < self.version }
    }

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

/// One row a point: of several writes of a point the highest version stays, at equal versions a deletion, then the
/// later one.
///
/// # Errors
/// [`Fault::Reject`] that names the first write at fault.
pub(super) fn rows(writes: Vec<Write>, dimension: usize) -> Result<Vec<Row>, Fault> {
    let mut rows: Vec<Row> = Vec::with_capacity(writes.len());
    let mut places: HashMap<Uuid, usize> = HashMap::with_capacity(writes.len());
    for write in writes {
        let row = row(write, dimension)?;
        match places.get(&row.id) {
            None => {
                places.insert(row.id, rows.len());
                rows.push(row);
            }
            Some(place) => {
                let kept = &mut rows[*place];
                if (row.version, row.deleted) >= (kept.version, kept.deleted) {
                    *kept = row;
                }
            }
        }
    }
    Ok(rows)
}

fn row(write: Write, dimension: usize) -> Result<Row, Fault> {
    let (id, version) = (write.id(), write.version());
    let reject = |detail: String| Fault::reject(Reason::StoreRejected, format!("point {id}: {detail}"));
    if version >= VERSION_END {
        return Err(reject(format!("version {version} is not below 2^53, the limit of exact comparison in the store")));
    }
    let mut row = match write {
        Write::Upsert(point) => {
            let mut payload = point.payload;
            payload.remove(DELETED);
            Row { id, version, deleted: false, image: point.image, caption: point.caption, payload }
        }
        Write::Delete(tombstone) => {
            let deleted_at = tombstone.deleted_at.to_rfc3339_opts(SecondsFormat::Millis, true);
            let payload = Map::from_iter([
                ("post_id".to_owned(), Value::from(tombstone.post_id)),
                (DELETED.to_owned(), Value::from(true)),
                ("deleted_at".to_owned(), Value::from(deleted_at)),
            ]);
            Row { id, version, deleted: true, image: None, caption: None, payload }
        }
    };
    row.payload.insert(VERSION.to_owned(), Value::from(version));
    for (name, vector) in row.vectors() {
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
    if !row.deleted && row.image.is_none() && row.caption.is_none() {
        return Err(reject("it has neither an image nor a caption vector".to_owned()));
    }
    Ok(row)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Point, Tombstone};

    fn upsert(id: u128, version: u64, caption: &[f32]) -> Write {
        Write::Upsert(Point {
            id: Uuid::from_u128(id),
            version,
            image: None,
            caption: Some(caption.to_vec()),
            payload: Map::new(),
        })
    }

    fn delete(id: u128, version: u64) -> Write {
        Write::Delete(Tombstone {
            id: Uuid::from_u128(id),
            version,
            post_id: "p".to_owned(),
            deleted_at: chrono::DateTime::UNIX_EPOCH,
        })
    }

    #[test]
    fn highest_version_of_each_point_stays() {
        let batch = vec![upsert(1, 7, &[1.0]), upsert(2, 1, &[1.0]), upsert(1, 3, &[1.0]), upsert(2, 2, &[1.0])];
        let kept = rows(batch, 1).expect("valid").into_iter().map(|row| (row.id.as_u128(), row.version));
        assert_eq!(kept.collect::<Vec<_>>(), [(1, 7), (2, 2)]);
    }

    #[test]
    fn deletion_wins_at_equal_versions_in_either_order() {
        for batch in [vec![upsert(1, 7, &[1.0]), delete(1, 7)], vec![delete(1, 7), upsert(1, 7, &[1.0])]] {
            let kept = rows(batch, 1).expect("valid");
            assert!(kept.len() == 1 && kept[0].deleted, "{kept:?}");
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
            let error = rows(vec![upsert(9, 1, &[1.0]), write], 1).expect_err("faulty");
            assert!(matches!(error, Fault::Reject { reason: Reason::StoreRejected, .. }), "{error:?}");
            let text = error.to_string();
            assert!(text.contains(expected) && text.contains(&Uuid::from_u128(1).to_string()), "{text}");
        }
    }
}
