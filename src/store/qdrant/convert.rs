//! Rows, filters and points in the forms of the gRPC interface.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use qdrant_client::Payload;
use qdrant_client::qdrant::point_id::PointIdOptions;
use qdrant_client::qdrant::points_update_operation::{DeleteVectors, Operation, PointStructList};
use qdrant_client::qdrant::vectors_output::VectorsOptions;
use qdrant_client::qdrant::with_payload_selector::SelectorOptions as PayloadOptions;
use qdrant_client::qdrant::{
    Condition, DatetimeRange, Filter as QdrantFilter, NamedVectors, PayloadIncludeSelector, PointId, PointStruct,
    PointsUpdateOperation, RetrievedPoint, ScoredPoint, Timestamp, Value, VectorsOutput, VectorsSelector,
    vector_output,
};
use serde_json::Map;
use uuid::Uuid;

use crate::store::order::{DELETED, REVISION, State};
use crate::store::rows::{DELETED_AT, Row};
use crate::store::{Filter, HIDDEN, Hit, LABELS, PayloadPart, StoredPoint, VectorName};

/// A row with what its decision stands on: the state before (`None`: there was no point) and after.
pub(super) struct Conditional<'a> {
    pub row: Row,
    pub before: Option<&'a State>,
    pub after: &'a State,
}

/// What writes these rows: an upsert that leaves points alone that are no longer in the state before, and the removal of
/// vectors that the rows do not have (an upsert of a point in an optimised segment keeps them). All of it can be sent
/// again.
pub(super) fn operations(rows: &[Conditional<'_>]) -> Vec<PointsUpdateOperation> {
    let upsert = Operation::Upsert(PointStructList {
        points: rows.iter().map(|conditional| point(&conditional.row)).collect(),
        shard_key_selector: None,
        // One filter for the whole request, so each row's condition is bound to its point. It never stops the insert of
        // a point that is not there.
        update_filter: Some(QdrantFilter::should(rows.iter().map(|Conditional { row, before, .. }| {
            let unchanged = match before {
                Some(state) => Condition::matches(REVISION, state.revision() as i64),
                None => Condition::is_empty(REVISION),
            };
            of_point(row, unchanged)
        }))),
        update_mode: None,
    });
    let mut operations = vec![upsert];
    for name in [VectorName::Image, VectorName::Caption] {
        let lacking =
            rows.iter().filter(|it| it.row.missing_vectors().any(|missing| missing == name)).collect::<Vec<_>>();
        if !lacking.is_empty() {
            // Only where this very write is what is stored now. The ids apart, too: the server then begins with these points.
            // Not with a condition on the vector: where few points have it, the server begins with that, and asks all points.
            let current =
                lacking.iter().map(|it| of_point(&it.row, Condition::matches(REVISION, it.after.revision() as i64)));
            let ids = Condition::has_id(lacking.iter().map(|it| PointId::from(it.row.id.to_string())));
            let filter = QdrantFilter { must: vec![ids], ..QdrantFilter::should(current) };
            operations.push(Operation::DeleteVectors(DeleteVectors {
                points_selector: Some(filter.into()),
                vectors: Some(VectorsSelector { names: vec![name.as_str().to_owned()] }),
                shard_key_selector: None,
            }));
        }
    }
    operations.into_iter().map(|operation| PointsUpdateOperation { operation: Some(operation) }).collect()
}

/// Delete markers of deletions that were consumed before a time.
pub(super) fn old_markers(before: DateTime<Utc>) -> QdrantFilter {
    let range = DatetimeRange { lt: Some(timestamp(before)), ..DatetimeRange::default() };
    QdrantFilter::must([Condition::matches(DELETED, true), Condition::datetime_range(DELETED_AT, range)])
}

/// A point and its state; `None` where this program did not write it.
pub(super) fn state(point: RetrievedPoint) -> Option<(Uuid, State)> {
    Some((uuid(point.id)?, State::read_from(&json(point.payload))?))
}

fn of_point(row: &Row, condition: Condition) -> Condition {
    QdrantFilter::must([Condition::has_id([PointId::from(row.id.to_string())]), condition]).into()
}

fn point(row: &Row) -> PointStruct {
    let vectors = row
        .vectors()
        .fold(NamedVectors::default(), |vectors, (name, vector)| vectors.add_vector(name.as_str(), vector.clone()));
    PointStruct::new(row.id.to_string(), vectors, Payload::from(row.payload.clone()))
}

/// Every post, hidden ones too.
pub(super) fn live() -> QdrantFilter {
    QdrantFilter::must_not([Condition::matches(DELETED, true)])
}

/// Live posts that are not hidden and fulfil the conditions.
pub(super) fn filter(filter: &Filter) -> QdrantFilter {
    let mut must = Vec::new();
    must.extend(filter.lang.iter().map(|lang| Condition::matches("lang", lang.clone())));
    must.extend(filter.author.iter().map(|author| Condition::matches("author", author.clone())));
    must.extend(filter.tags_all.iter().map(|tag| Condition::matches("tags", tag.clone())));
    let any = [("tags", &filter.tags_any), (LABELS, &filter.labels_any)];
    must.extend(any.into_iter().filter_map(|(field, any)| any_of(field, any)));
    if filter.since.is_some() || filter.until.is_some() {
        let range = DatetimeRange {
            gte: filter.since.map(timestamp),
            lt: filter.until.map(timestamp),
            ..DatetimeRange::default()
        };
        must.push(Condition::datetime_range("created_at", range));
    }
    let mut must_not = vec![Condition::matches(DELETED, true), Condition::matches(HIDDEN, true)];
    let none = [("author", &filter.not_author), (LABELS, &filter.labels_none)];
    must_not.extend(none.into_iter().filter_map(|(field, none)| any_of(field, none)));
    QdrantFilter { must, must_not, ..QdrantFilter::default() }
}

/// `None` where there is nothing to be equal to.
fn any_of(field: &str, values: &[String]) -> Option<Condition> {
    (!values.is_empty()).then(|| Condition::matches(field, values.to_vec()))
}

fn timestamp(time: DateTime<Utc>) -> Timestamp {
    Timestamp {
        seconds: time.timestamp(),
        // A leap second counts beyond a second in chrono, which the format does not allow.
        nanos: time.timestamp_subsec_nanos().min(999_999_999) as i32,
    }
}

pub(super) fn hit(point: ScoredPoint) -> Option<Hit> {
    let [image, _] = dense_vectors(point.vectors);
    Some(Hit { id: uuid(point.id)?, score: point.score, payload: json(point.payload), image })
}

/// What of a payload is sent.
pub(super) fn payload_part(part: PayloadPart) -> PayloadOptions {
    match part {
        PayloadPart::Whole => true.into(),
        PayloadPart::Fields([]) => false.into(),
        PayloadPart::Fields(fields) => {
            let fields = fields.iter().map(ToString::to_string).collect();
            PayloadIncludeSelector { fields }.into()
        }
    }
}

pub(super) fn stored_point(point: RetrievedPoint) -> Option<StoredPoint> {
    let [image, caption] = dense_vectors(point.vectors);
    Some(StoredPoint { id: uuid(point.id)?, payload: json(point.payload), image, caption })
}

/// The `image` and the `caption` vector.
fn dense_vectors(vectors: Option<VectorsOutput>) -> [Option<Vec<f32>>; 2] {
    let mut vectors = match vectors {
        Some(VectorsOutput { vectors_options: Some(VectorsOptions::Vectors(named)) }) => named.vectors,
        _ => HashMap::new(),
    };
    [VectorName::Image, VectorName::Caption].map(|name| match vectors.remove(name.as_str())?.into_vector() {
        vector_output::Vector::Dense(dense) => Some(dense.data),
        _ => None,
    })
}

pub(super) fn uuid(id: Option<PointId>) -> Option<Uuid> {
    match id?.point_id_options? {
        PointIdOptions::Uuid(id) => Uuid::try_parse(&id).ok(),
        PointIdOptions::Num(_) => None,
    }
}

pub(super) fn json(payload: HashMap<String, Value>) -> Map<String, serde_json::Value> {
    payload.into_iter().map(|(key, value)| (key, value.into_json())).collect()
}

#[cfg(test)]
mod tests {
    use qdrant_client::qdrant::condition::ConditionOneOf;
    use qdrant_client::qdrant::points_selector::PointsSelectorOneOf;

    use super::*;
    use crate::store::rows::Plan;
    use crate::store::{Order, Origin, Point, Write};

    /// The server takes such a list first, whatever it knows of the other conditions.
    #[test]
    fn vectors_are_taken_from_named_points_and_no_other_is_looked_at() {
        let post = |number: u128, caption: Option<Vec<f32>>| {
            let source = Origin { topic: "posts".to_owned(), partition: 0, offset: number as i64, timestamp: 0 };
            let order = Order { version: None, source };
            let (id, image) = (Uuid::from_u128(number), Some(vec![1.0, 0.0]));
            Write::Upsert(Point { id, order, image, caption, image_pending: false, payload: Map::new() })
        };
        let writes = [post(1, None), post(2, Some(vec![0.0, 1.0])), post(3, None)];
        let plan = Plan::new(&writes, &HashMap::new());
        let rows = plan.changes().iter().map(|change| Conditional {
            row: change.row(&[]).expect("nothing of it is kept"),
            before: None,
            after: &change.after,
        });
        let [upsert, captions] = operations(&rows.collect::<Vec<_>>()).try_into().expect("none lacks its picture");
        assert!(matches!(upsert.operation, Some(Operation::Upsert(_))));
        let Some(Operation::DeleteVectors(captions)) = captions.operation else { panic!("{captions:?}") };
        assert_eq!(captions.vectors.expect("named").names, ["caption"]);
        let selector = captions.points_selector.and_then(|selector| selector.points_selector_one_of);
        let Some(PointsSelectorOneOf::Filter(filter)) = selector else { panic!("{selector:?}") };
        let [Condition { condition_one_of: Some(ConditionOneOf::HasId(ids)) }] = &filter.must[..] else {
            panic!("{:?}", filter.must)
        };
        let mut ids = ids.has_id.iter().map(|id| uuid(Some(id.clone())).expect("a UUID")).collect::<Vec<_>>();
        ids.sort();
        assert_eq!(ids, [Uuid::from_u128(1), Uuid::from_u128(3)]);
    }
}
