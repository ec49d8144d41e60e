//! Which write of a post stands. Pure; both stores ask here, and nothing else decides.
//!
//! 1. Two writes that carry a version: the higher one; at equal versions the later by rule 2.
//! 2. Any other two writes of one partition: the later offset. Of different partitions or topics (a topic that got more
//!    partitions, a new topic): the later Kafka timestamp.
//! 3. A deletion without a version hides every write before it in its partition, whatever their versions, and takes over
//!    their highest version: a stray older edit behind the deletion does not bring the post back.
//! 4. The same write can come without its picture, which could not be had, and with it: the one with it.
//!
//! What the store keeps of each post is enough for that: any order of arrival ends in the same state, as long as a feed
//! gives all of a post's writes a version, or none of them (deletions never need one). Where posts with and without a
//! version are mixed, rule 2 decides between them, and their versions must grow with the offsets.

mod history;

use std::cmp::Ordering;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use uuid::Uuid;

/// Payload field: the version of the post, or the offset where it has none.
pub(super) const VERSION: &str = "version";
/// Payload field: what [`VERSION`] holds, [`BY_VERSION`] or [`BY_POSITION`].
pub(super) const ORDERED_BY: &str = "ordered_by";
/// Payload field: where the write lies that stands, an [`Origin`].
pub(super) const SOURCE: &str = "source";
/// Payload field: true on a delete marker, absent on a post.
pub(super) const DELETED: &str = "deleted";
/// Payload field: true on a post that is there without its picture, absent on others.
pub(super) const IMAGE_PENDING: &str = "image_pending";
/// Payload field: where the last deletion without a version lies, an [`Origin`].
pub(super) const DELETED_BEFORE: &str = "deleted_before";
/// Payload field: a number that tells states apart, [`State::revision`].
pub(super) const REVISION: &str = "revision";
/// The fields that a [`State`] is read from.
pub(super) const STATE_FIELDS: [&str; 7] =
    [VERSION, ORDERED_BY, SOURCE, DELETED, IMAGE_PENDING, DELETED_BEFORE, REVISION];

const BY_VERSION: &str = "version";
const BY_POSITION: &str = "position";

/// Where a write lies.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// The topic.
    pub topic: String,
    /// The partition.
    pub partition: i32,
    /// The offset in the partition.
    pub offset: i64,
    /// The message's Kafka timestamp in milliseconds since 1970; 0 where it has none.
    #[serde(default)]
    pub timestamp: i64,
}

impl Origin {
    /// Rule 2. Between partitions, equal timestamps are told apart by name, so that the result does not depend on who
    /// came first.
    fn compare(&self, other: &Self) -> Ordering {
        if self.topic == other.topic && self.partition == other.partition {
            return self.offset.cmp(&other.offset);
        }
        let key = |source: &Self| (source.timestamp, source.partition, source.offset);
        key(self).cmp(&key(other)).then_with(|| self.topic.cmp(&other.topic))
    }

    fn is_after(&self, other: &Self) -> bool {
        self.compare(other) == Ordering::Greater
    }
}

/// A write's place among the writes of its post.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Order {
    /// The version that the post or the deletion carries, below 2^53.
    pub version: Option<u64>,
    /// Where the write lies.
    pub source: Origin,
}

impl Order {
    /// What the payload's `version` holds: the version, or the offset where there is none.
    pub fn number(&self) -> u64 {
        self.version.unwrap_or(self.source.offset.unsigned_abs())
    }
}

/// What a write brings; at the same place the greater stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    /// The post without its picture, which could not be had.
    ImagePending,
    /// The post.
    Whole,
    /// The end of the post.
    Deletion,
}

/// What a write did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It is durable, or was already.
    Applied,
    /// A newer write stands; this one changed nothing that a search could see.
    Older,
}

/// What is kept of the writes of a post beside the content of the one that stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct State {
    /// The highest version seen, also where a deletion without one hides it.
    pub version: Option<u64>,
    /// Where the write lies that stands.
    pub source: Origin,
    /// What it brought.
    pub kind: Kind,
    /// The last deletion without a version.
    pub deleted_before: Option<Origin>,
}

/// What a write does to a post.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Merged {
    /// The write stands now.
    Write(State),
    /// It is hidden by a deletion behind it; the post is deleted.
    Hidden(State),
    /// What stands stays, and a deletion before it is remembered.
    Keep(State),
    /// This very write stands already.
    Same,
    /// A newer write stands.
    Older,
}

impl State {
    /// The state after a write of a post in this state; `None`: the post was never seen.
    pub fn merge(stored: Option<&Self>, order: &Order, kind: Kind) -> Merged {
        let is_bare_deletion = kind == Kind::Deletion && order.version.is_none();
        let source = order.source.clone();
        let Some(stored) = stored else {
            let deleted_before = is_bare_deletion.then(|| source.clone());
            return Merged::Write(Self { version: order.version, source, kind, deleted_before });
        };
        if stored.source == source && stored.kind == kind {
            return Merged::Same;
        }
        if is_bare_deletion {
            return stored.delete(source);
        }
        let by_place = source.compare(&stored.source).then(kind.cmp(&stored.kind));
        let is_newer = match (order.version, stored.version) {
            (Some(version), Some(known)) => version.cmp(&known).then(by_place) == Ordering::Greater,
            // The deletion knows no version yet: whether it hides the write is looked at below.
            (Some(_), None) if stored.kind == Kind::Deletion => true,
            _ => by_place == Ordering::Greater,
        };
        if !is_newer {
            return Merged::Older;
        }
        let deleted_before = stored.deleted_before.clone();
        match &deleted_before {
            Some(deletion) if deletion.is_after(&source) && order.version.is_some() => {
                let (source, kind) = (deletion.clone(), Kind::Deletion);
                Merged::Hidden(Self { version: order.version, source, kind, deleted_before })
            }
            _ => Merged::Write(Self { version: order.version, source, kind, deleted_before }),
        }
    }

    fn delete(&self, deletion: Origin) -> Merged {
        if self.deleted_before.as_ref().is_some_and(|known| !deletion.is_after(known)) {
            return Merged::Older;
        }
        let hides = deletion.is_after(&self.source);
        let deleted_before = Some(deletion.clone());
        if hides {
            Merged::Write(Self { version: self.version, source: deletion, kind: Kind::Deletion, deleted_before })
        } else {
            Merged::Keep(Self { deleted_before, ..self.clone() })
        }
    }

    /// Equal for equal states; below 2^53, as the stores compare numbers.
    pub fn revision(&self) -> u64 {
        // Stored points carry the number of this text. What came to the states later stands at its end, where it is.
        let Self { version, source, kind, deleted_before } = self;
        let deleted = *kind == Kind::Deletion;
        let pending = if *kind == Kind::ImagePending { ", image_pending" } else { "" };
        let text = format!(
            "State {{ version: {version:?}, source: {source:?}, deleted: {deleted}, deleted_before: \
             {deleted_before:?}{pending} }}"
        );
        (Uuid::new_v5(&Uuid::NAMESPACE_OID, text.as_bytes()).as_u128() >> 75) as u64
    }

    /// Puts the state into a payload.
    pub fn write_to(&self, payload: &mut Map<String, Value>) {
        let revision = self.revision();
        let (version, ordered_by) = match self.version {
            Some(version) => (Value::from(version), BY_VERSION),
            None => (Value::from(self.source.offset), BY_POSITION),
        };
        let mut put = |name: &str, value: Option<Value>| match value {
            Some(value) => drop(payload.insert(name.to_owned(), value)),
            None => drop(payload.remove(name)),
        };
        put(VERSION, Some(version));
        put(ORDERED_BY, Some(ordered_by.into()));
        put(SOURCE, Some(self.source.to_json()));
        put(DELETED, (self.kind == Kind::Deletion).then_some(true.into()));
        put(IMAGE_PENDING, (self.kind == Kind::ImagePending).then_some(true.into()));
        put(DELETED_BEFORE, self.deleted_before.as_ref().map(Origin::to_json));
        put(REVISION, Some(revision.into()));
    }

    /// The state in a payload; `None` where this program did not write it.
    pub fn read_from(payload: &Map<String, Value>) -> Option<Self> {
        let source = |name: &str| payload.get(name).and_then(|value| Origin::deserialize(value).ok());
        let is_true = |name: &str| payload.get(name) == Some(&Value::Bool(true));
        let by_version = payload.get(ORDERED_BY).and_then(Value::as_str) == Some(BY_VERSION);
        Some(Self {
            version: if by_version { Some(payload.get(VERSION)?.as_u64()?) } else { None },
            source: source(SOURCE)?,
            kind: match (is_true(DELETED), is_true(IMAGE_PENDING)) {
                (true, _) => Kind::Deletion,
                (false, true) => Kind::ImagePending,
                (false, false) => Kind::Whole,
            },
            deleted_before: source(DELETED_BEFORE),
        })
    }
}

impl Origin {
    fn to_json(&self) -> Value {
        serde_json::json!({
            "topic": self.topic, "partition": self.partition, "offset": self.offset, "timestamp": self.timestamp,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::Kind::{Deletion, ImagePending, Whole};
    use super::*;

    #[derive(Debug, Clone)]
    struct Event {
        order: Order,
        kind: Kind,
    }

    fn at(partition: i32, offset: i64, timestamp: i64) -> Origin {
        Origin { topic: "posts".to_owned(), partition, offset, timestamp }
    }

    fn event(version: Option<u64>, source: Origin, kind: Kind) -> Event {
        Event { order: Order { version, source }, kind }
    }

    /// The state after these writes, and whose content a search finds.
    fn replay(events: &[Event]) -> (State, Option<Origin>) {
        let mut state: Option<State> = None;
        let mut content = None;
        let mut content_kind = Kind::Deletion;
        for Event { order, kind } in events {
            match State::merge(state.as_ref(), order, *kind) {
                Merged::Write(next) => {
                    content = (next.kind != Deletion).then(|| order.source.clone());
                    content_kind = *kind;
                    state = Some(next);
                }
                Merged::Hidden(next) => {
                    content = None;
                    content_kind = Deletion;
                    state = Some(next);
                }
                Merged::Keep(next) => state = Some(next),
                Merged::Same | Merged::Older => {}
            }
        }
        let state = state.expect("some write");
        assert_eq!(state.kind, content_kind, "what is told of the content is true of it");
        (state, content)
    }

    /// Writes of one partition in a shuffled order; the version is in no relation to the offset.
    fn histories(
        versions: impl Strategy<Value = Option<u64>> + Clone,
    ) -> impl Strategy<Value = (Vec<Event>, Vec<Event>)> {
        let write = (versions, any::<bool>(), any::<bool>());
        prop::collection::vec(write, 1..9).prop_flat_map(|writes| {
            let events = writes.into_iter().enumerate().map(|(offset, (version, deleted, bare))| {
                let kind = if deleted { Deletion } else { Whole };
                event(version.filter(|_| !(deleted && bare)), at(0, offset as i64, 0), kind)
            });
            let events = events.collect::<Vec<_>>();
            (Just(events.clone()), Just(events).prop_shuffle())
        })
    }

    /// A history, and in a shuffled order what comes of it: each post without its picture, with it, or as both.
    fn arrivals(
        versions: impl Strategy<Value = Option<u64>> + Clone,
    ) -> impl Strategy<Value = (Vec<Event>, Vec<Event>)> {
        histories(versions).prop_flat_map(|(events, _)| {
            let kinds: [&[Kind]; 3] = [&[Whole], &[ImagePending], &[ImagePending, Whole]];
            let kinds = prop::collection::vec(prop::sample::select(kinds.to_vec()), events.len());
            (Just(events), kinds).prop_flat_map(|(events, kinds)| {
                let arrivals = events.iter().zip(kinds).flat_map(|(event, kinds)| {
                    let kinds = if event.kind == Deletion { &[Deletion] } else { kinds };
                    kinds.iter().map(|kind| Event { kind: *kind, ..event.clone() })
                });
                let arrivals = arrivals.collect::<Vec<_>>();
                (Just(events), Just(arrivals).prop_shuffle())
            })
        })
    }

    /// Every order of arrival ends with the post that would stand if all had come whole, and with its picture if it came.
    fn ends_as_if_all_were_whole(events: &[Event], arrivals: &[Event]) -> Result<(), TestCaseError> {
        let ((whole, expected), (state, content)) = (replay(events), replay(arrivals));
        prop_assert_eq!(&content, &expected);
        let with_picture = arrivals.iter().any(|it| Some(&it.order.source) == content.as_ref() && it.kind == Whole);
        let kind = match &content {
            None => Deletion,
            Some(_) if with_picture => Whole,
            Some(_) => ImagePending,
        };
        prop_assert_eq!(state, State { kind, ..whole });
        Ok(())
    }

    proptest! {
        #[test]
        fn a_picture_that_comes_later_changes_nothing_but_its_own_post(
            (events, arrivals) in arrivals((0..4_u64).prop_map(Some))
        ) {
            ends_as_if_all_were_whole(&events, &arrivals)?;
        }

        #[test]
        fn a_picture_that_comes_later_changes_nothing_but_its_own_post_without_versions(
            (events, arrivals) in arrivals(Just(None))
        ) {
            ends_as_if_all_were_whole(&events, &arrivals)?;
        }

        #[test]
        fn every_order_of_versioned_writes_and_bare_deletions_ends_the_same(
            (events, shuffled) in histories((0..4_u64).prop_map(Some))
        ) {
            prop_assert_eq!(replay(&events), replay(&shuffled));
            // The rules in one sentence each, without a state: the highest version, unless a deletion lies behind it.
            let last_deletion = events.iter().rev().find(|it| it.kind == Deletion && it.order.version.is_none());
            let best = events.iter().filter(|it| it.order.version.is_some()).max_by_key(|it| {
                (it.order.version, it.order.source.offset)
            });
            let visible = best.filter(|best| {
                best.kind != Deletion && last_deletion.is_none_or(|it| it.order.source.offset < best.order.source.offset)
            });
            prop_assert_eq!(replay(&shuffled).1, visible.map(|it| it.order.source.clone()));
        }

        #[test]
        fn every_order_of_writes_without_versions_ends_with_the_last((events, shuffled) in histories(Just(None))) {
            prop_assert_eq!(replay(&events), replay(&shuffled));
            let last = events.last().expect("one at least");
            prop_assert_eq!(replay(&shuffled).1, (last.kind != Deletion).then(|| last.order.source.clone()));
        }

        #[test]
        fn mixed_writes_end_with_the_last_where_versions_grow_with_offsets(
            (events, shuffled) in histories(prop_oneof![Just(None), Just(Some(0))])
        ) {
            let grow = |events: Vec<Event>| events.into_iter().map(|mut it| {
                it.order.version = it.order.version.map(|_| 10 + it.order.source.offset as u64);
                it
            }).collect::<Vec<_>>();
            let (events, shuffled) = (grow(events), grow(shuffled));
            let last = events.last().expect("one at least");
            prop_assert_eq!(replay(&shuffled).1, (last.kind != Deletion).then(|| last.order.source.clone()));
        }

        #[test]
        fn a_replay_of_the_whole_topic_changes_nothing((events, shuffled) in histories((0..4_u64).prop_map(Some))) {
            let twice = shuffled.iter().chain(&events).cloned().collect::<Vec<_>>();
            prop_assert_eq!(replay(&twice), replay(&events));
        }

        #[test]
        fn state_survives_its_payload((_, events) in arrivals(prop_oneof![Just(None), (0..4_u64).prop_map(Some)])) {
            let (state, _) = replay(&events);
            // Of a write that this state replaced.
            let mut payload = Map::from_iter([(IMAGE_PENDING.to_owned(), true.into())]);
            state.write_to(&mut payload);
            prop_assert_eq!(State::read_from(&payload), Some(state.clone()));
            prop_assert!(state.revision() < 1 << 53);
        }
    }

    /// Points that are stored carry it, and a write on the server goes by it.
    #[test]
    fn the_revision_of_a_state_never_changes() {
        let post = event(Some(7), at(1, 2, 3), Whole);
        let (deleted, _) = replay(&[post.clone(), event(None, at(1, 4, 5), Deletion)]);
        let (whole, _) = replay(std::slice::from_ref(&post));
        assert_eq!([whole.revision(), deleted.revision()], [6_860_127_989_328_586, 1_877_739_113_719_403]);
        let (pending, _) = replay(&[Event { kind: ImagePending, ..post }]);
        assert_ne!(pending.revision(), whole.revision());
    }

    #[test]
    fn a_deletion_behind_the_post_wins_whatever_its_version() {
        let large = event(Some(1 << 40), at(0, 7, 0), Whole);
        let (state, content) = replay(&[large.clone(), event(None, at(0, 8, 0), Deletion)]);
        assert!(state.kind == Deletion && content.is_none());
        // Coming again, it stays deleted; a higher version behind the deletion brings it back, a lower one does not.
        let deletion = event(None, at(0, 8, 0), Deletion);
        assert_eq!(replay(&[large.clone(), deletion.clone(), large.clone()]).1, None);
        let stray = event(Some(5), at(0, 9, 0), Whole);
        assert_eq!(replay(&[large.clone(), deletion.clone(), stray]).1, None);
        let edit = event(Some((1 << 40) + 1), at(0, 9, 0), Whole);
        assert_eq!(replay(&[large, deletion, edit]).1, Some(at(0, 9, 0)));
    }

    /// Many feeds send the same version, or 1, with every post.
    #[test]
    fn the_same_version_behind_a_deletion_is_the_post_again() {
        let post = |offset| event(Some(1), at(0, offset, 0), Whole);
        let deletion = event(None, at(0, 1, 0), Deletion);
        for events in [[post(0), deletion.clone(), post(2)], [post(2), post(0), deletion.clone()]] {
            assert_eq!(replay(&events).1, Some(at(0, 2, 0)), "{events:?}");
        }
    }

    #[test]
    fn a_small_version_behind_a_deletion_at_a_high_offset_is_a_new_post() {
        let events = [event(None, at(0, 1_000_000, 0), Deletion), event(Some(1), at(0, 1_000_001, 0), Whole)];
        assert_eq!(replay(&events).1, Some(at(0, 1_000_001, 0)));
    }

    #[test]
    fn between_partitions_the_timestamp_decides() {
        let old = event(None, at(0, 900, 1_000), Whole);
        let moved = event(None, at(5, 0, 2_000), Whole);
        for events in [[old.clone(), moved.clone()], [moved.clone(), old.clone()]] {
            assert_eq!(replay(&events).1, Some(at(5, 0, 2_000)), "{events:?}");
        }
        let deletion = event(None, at(6, 0, 3_000), Deletion);
        assert_eq!(replay(&[old, deletion, moved]).1, None);
    }
}
