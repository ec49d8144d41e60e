//! All standing topics: what the records of `kafka.standing_topic` come to. Pure.
//!
//! For each key the last record counts, as compaction keeps it: whoever reads the topic later, and finds only that record,
//! comes to the same. So a last record that is no good removes its topic.
//!
//! Where there are more topics than the limit, those that were registered first are in force, by `created_at` and then by id;
//! those without a `created_at` come last. That depends on nothing but the last records, so all processes agree, whenever and
//! in whatever order of partitions they read. The others are remembered: one of them is in force as soon as there is room.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use chrono::{DateTime, Utc};

use crate::standing::registration::Registration;

/// The standing topics by their ids.
#[derive(Debug, Default)]
pub struct Registry {
    in_force: BTreeMap<Rank, Arc<Registration>>,
    over_limit: BTreeMap<Rank, Arc<Registration>>,
    ranks: HashMap<String, Rank>,
    max_topics: usize,
}

/// A topic's place among those that want to be in force.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    /// The end of time where there is none.
    created_at: DateTime<Utc>,
    topic_id: Arc<str>,
}

impl Rank {
    fn of(topic: &Registration) -> Self {
        let created_at = topic.created_at.unwrap_or(DateTime::<Utc>::MAX_UTC);
        Self { created_at, topic_id: topic.topic_id.as_str().into() }
    }
}

/// What a record says.
#[derive(Debug, Clone, PartialEq)]
pub enum Change {
    /// The topic is in force: a new one, or another than before.
    Registered,
    /// There is no topic of this id any more (there may have been none).
    Removed,
    /// The record is no good; there is no topic of this id any more.
    Rejected {
        /// The record's key, as far as it is text.
        id: String,
        /// What is wrong, in a sentence.
        reason: String,
    },
    /// The topic is not in force: as many as the limit were registered before it.
    OverLimit {
        /// The record's key.
        id: String,
    },
}

impl Change {
    /// The name in metrics.
    pub fn outcome(&self) -> &'static str {
        match self {
            Change::Registered => "registered",
            Change::Removed => "removed",
            Change::Rejected { .. } => "rejected",
            Change::OverLimit { .. } => "over_limit",
        }
    }
}

/// What a record did to the topics in force.
#[derive(Debug, Clone, PartialEq)]
pub struct Applied {
    /// What it says.
    pub change: Change,
    /// The topic of this id is no longer in force: it was removed, or gave its place to one that was registered before it.
    pub leaves: Option<String>,
    /// In force from now on: new, in the place of what had its id, or remembered until there was room.
    pub enters: Option<Arc<Registration>>,
}

impl Registry {
    /// At most so many topics are in force.
    pub fn new(max_topics: usize) -> Self {
        Self { max_topics, ..Self::default() }
    }

    /// Takes in a record. `value` `None` or empty removes the topic.
    pub fn apply(&mut self, key: Option<&[u8]>, value: Option<&[u8]>) -> Applied {
        let Some(Ok(id)) = key.map(std::str::from_utf8) else {
            return self.reject(key, "its key, the topic's id, is missing or not UTF-8".to_owned());
        };
        let value = match value {
            Some(value) if !value.is_empty() => value,
            _ => return self.replace(id, None, Change::Removed),
        };
        match Registration::read(id, value) {
            Ok(registration) => self.replace(id, Some(registration), Change::Registered),
            Err(reason) => self.reject(key, reason),
        }
    }

    /// Takes in a record that is no good.
    pub fn reject(&mut self, key: Option<&[u8]>, reason: String) -> Applied {
        let key = key.unwrap_or_default();
        let change = Change::Rejected { id: String::from_utf8_lossy(key).into_owned(), reason };
        match std::str::from_utf8(key) {
            Ok(id) => self.replace(id, None, change),
            Err(_) => Applied { change, leaves: None, enters: None },
        }
    }

    fn replace(&mut self, id: &str, topic: Option<Registration>, change: Change) -> Applied {
        let mut applied = Applied { change, leaves: None, enters: None };
        if let Some(rank) = self.ranks.remove(id) {
            self.over_limit.remove(&rank);
            applied.leaves = self.in_force.remove(&rank).map(|_| id.to_owned());
        }
        if let Some(topic) = topic {
            let rank = Rank::of(&topic);
            self.ranks.insert(id.to_owned(), rank.clone());
            self.over_limit.insert(rank, Arc::new(topic));
        }
        self.let_in(&mut applied);
        if applied.change == Change::Registered && self.get(id).is_none() {
            applied.change = Change::OverLimit { id: id.to_owned() };
        }
        if applied.enters.as_ref().map(|topic| &topic.topic_id) == applied.leaves.as_ref() {
            applied.leaves = None;
        }
        applied
    }

    /// The first in rank are in force again, after a record took one out or brought one: so one enters at most, and where
    /// nothing left before, one may have to leave for it.
    fn let_in(&mut self, applied: &mut Applied) {
        let Some((first, _)) = self.over_limit.first_key_value() else { return };
        if self.in_force.len() >= self.max_topics {
            let Some(last) = self.in_force.last_entry().filter(|last| last.key() > first) else { return };
            let (rank, topic) = last.remove_entry();
            applied.leaves = Some(topic.topic_id.clone());
            self.over_limit.insert(rank, topic);
        }
        if let Some((rank, topic)) = self.over_limit.pop_first() {
            applied.enters = Some(topic.clone());
            self.in_force.insert(rank, topic);
        }
    }

    /// The topic of this id, if it is in force.
    pub fn get(&self, id: &str) -> Option<&Arc<Registration>> {
        self.in_force.get(self.ranks.get(id)?)
    }

    /// All topics in force, those first that were registered first.
    pub fn topics(&self) -> impl Iterator<Item = &Arc<Registration>> {
        self.in_force.values()
    }

    /// How many are in force.
    pub fn len(&self) -> usize {
        self.in_force.len()
    }

    /// Whether none is in force.
    pub fn is_empty(&self) -> bool {
        self.in_force.is_empty()
    }

    /// How many wait for room.
    pub fn over_limit(&self) -> usize {
        self.over_limit.len()
    }

    /// Whether there is no room for a further one.
    pub fn is_full(&self) -> bool {
        self.in_force.len() >= self.max_topics
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn ids(registry: &Registry) -> Vec<(&str, &str)> {
        registry.topics().map(|topic| (topic.topic_id.as_str(), topic.topic.as_str())).collect()
    }

    fn value(topic: &str) -> Vec<u8> {
        format!("{{\"topic\": \"{topic}\"}}").into_bytes()
    }

    /// Registered on a day of May.
    fn of_day(topic: &str, day: u8) -> Vec<u8> {
        format!("{{\"topic\": \"{topic}\", \"created_at\": \"2026-05-{day:02}T08:00:00Z\"}}").into_bytes()
    }

    #[test]
    fn the_limit_holds_for_new_topics_and_not_for_changes_of_old_ones() {
        let mut registry = Registry::new(2);
        for id in ["a", "b"] {
            assert_eq!(registry.apply(Some(id.as_bytes()), Some(&value("x"))).change.outcome(), "registered");
        }
        assert_eq!(registry.apply(Some(b"c"), Some(&value("x"))).change.outcome(), "over_limit");
        assert_eq!(registry.apply(Some(b"b"), Some(&value("y"))).change.outcome(), "registered");
        assert_eq!((ids(&registry), registry.over_limit()), (vec![("a", "x"), ("b", "y")], 1));
        let applied = registry.apply(Some(b"a"), None);
        assert_eq!(applied.leaves.as_deref(), Some("a"));
        assert_eq!(applied.enters.map(|topic| topic.topic_id.clone()).as_deref(), Some("c"), "it was remembered");
        assert_eq!((ids(&registry), registry.over_limit()), (vec![("b", "y"), ("c", "x")], 0));
    }

    #[test]
    fn one_that_was_registered_before_takes_the_place_of_the_last() {
        let mut registry = Registry::new(2);
        registry.apply(Some(b"undated"), Some(&value("x")));
        registry.apply(Some(b"late"), Some(&of_day("x", 9)));
        let applied = registry.apply(Some(b"early"), Some(&of_day("x", 1)));
        assert_eq!((applied.change.outcome(), applied.leaves.as_deref()), ("registered", Some("undated")));
        assert_eq!(ids(&registry), [("early", "x"), ("late", "x")]);
        // A topic that says of itself that it is younger loses its place.
        let applied = registry.apply(Some(b"early"), Some(&of_day("x", 30)));
        assert_eq!((applied.change.outcome(), applied.leaves), ("registered", None), "before the undated one");
        let applied = registry.apply(Some(b"early"), Some(&value("z")));
        assert_eq!((applied.change.outcome(), applied.leaves), ("registered", None), "by its id");
        let applied = registry.apply(Some(b"middle"), Some(&of_day("x", 5)));
        assert_eq!((applied.change.outcome(), applied.leaves.as_deref()), ("registered", Some("early")));
        assert_eq!(ids(&registry), [("middle", "x"), ("late", "x")]);
        assert_eq!(Registry::new(0).apply(Some(b"a"), Some(&value("x"))).change.outcome(), "over_limit");
    }

    #[test]
    fn a_record_without_a_key_that_is_text_takes_no_topic_along() {
        let mut registry = Registry::new(9);
        registry.apply(Some(b"a"), Some(&value("x")));
        for key in [None, Some(&b"\xff"[..]), Some(b"")] {
            assert_eq!(registry.apply(key, Some(&value("x"))).change.outcome(), "rejected", "{key:?}");
        }
        assert_eq!(registry.len(), 1);
    }

    /// A record of one of few keys: a removal, one that is no good, a topic of a day or without one.
    fn records() -> impl Strategy<Value = Vec<(u8, Option<Vec<u8>>)>> {
        let record = (0u8..8, 0u8..9).prop_map(|(key, kind)| {
            let value = match kind {
                0 => None,
                1 => Some(b"not JSON".to_vec()),
                2 => Some(Vec::new()),
                3 => Some(value("undated")),
                day => Some(of_day(&day.to_string(), day)),
            };
            (b'a' + key, value)
        });
        prop::collection::vec(record, 0..60)
    }

    proptest! {
        /// Whoever starts later finds only the last record of each key, and the partitions in another order.
        #[test]
        fn a_compacted_log_in_any_order_comes_to_the_same_also_over_the_limit(
            records in records(), order in any::<prop::sample::Index>(), max_topics in 0usize..6,
        ) {
            let mut whole = Registry::new(max_topics);
            for (key, value) in &records {
                whole.apply(Some(&[*key]), value.as_deref());
            }
            let last = |(index, (key, _)): &(usize, &(u8, _))| records[index + 1..].iter().all(|(later, _)| later != key);
            let mut last = records.iter().enumerate().filter(last).map(|(_, record)| record).collect::<Vec<_>>();
            if !last.is_empty() {
                let middle = order.index(last.len());
                last.rotate_left(middle);
            }
            for _ in 0..2 {
                let mut compacted = Registry::new(max_topics);
                for (key, value) in &last {
                    compacted.apply(Some(&[*key]), value.as_deref());
                }
                prop_assert_eq!(ids(&whole), ids(&compacted));
                prop_assert_eq!(whole.over_limit(), compacted.over_limit());
                last.reverse();
            }
            // By the rule itself.
            let mut expected = last.iter().filter_map(|(key, value)| {
                let topic = Registration::read(std::str::from_utf8(&[*key]).ok()?, value.as_deref()?).ok()?;
                Some((topic.created_at.is_none(), topic.created_at, topic.topic_id))
            }).collect::<Vec<_>>();
            expected.sort();
            expected.truncate(max_topics);
            let expected = expected.iter().map(|(_, _, id)| id.as_str()).collect::<Vec<_>>();
            prop_assert_eq!(whole.topics().map(|topic| topic.topic_id.as_str()).collect::<Vec<_>>(), expected);
        }

        /// Who does as it is told, topic by topic, has what is in force.
        #[test]
        fn what_enters_and_leaves_is_all_that_changes(records in records(), max_topics in 0usize..6) {
            let (mut registry, mut followed) = (Registry::new(max_topics), BTreeMap::new());
            for (key, value) in records {
                let Applied { leaves, enters, .. } = registry.apply(Some(&[key]), value.as_deref());
                if let Some(id) = leaves {
                    prop_assert!(followed.remove(&id).is_some(), "{} was not in force", id);
                }
                if let Some(topic) = enters {
                    followed.insert(topic.topic_id.clone(), topic.topic.clone());
                }
                let known = registry.topics().map(|topic| (topic.topic_id.clone(), topic.topic.clone()));
                prop_assert_eq!(&followed, &known.collect::<BTreeMap<_, _>>());
                let all = registry.in_force.keys().chain(registry.over_limit.keys()).collect::<BTreeSet<_>>();
                prop_assert_eq!(all, registry.ranks.values().collect::<BTreeSet<_>>());
            }
        }
    }
}
