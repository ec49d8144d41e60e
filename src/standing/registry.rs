//! All standing topics: what the records of `kafka.standing_topic` come to. Pure.
//!
//! For each key the last record counts, as compaction keeps it: whoever reads the topic later, and finds only that record,
//! comes to the same. So a last record that is no good removes its topic.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::standing::registration::Registration;

/// The standing topics by their ids.
#[derive(Debug, Default)]
pub struct Registry {
    topics: BTreeMap<String, Arc<Registration>>,
    max_topics: usize,
}

/// What a record did.
#[derive(Debug, Clone, PartialEq)]
pub enum Change {
    /// The topic is new, or another than before.
    Registered(Arc<Registration>),
    /// There is no topic of this id any more (there may have been none).
    Removed(String),
    /// The record is no good; there is no topic of this id any more.
    Rejected {
        /// The record's key, as far as it is text.
        id: String,
        /// What is wrong, in a sentence.
        reason: String,
    },
    /// The topic is ignored: there are too many.
    OverLimit {
        /// The record's key.
        id: String,
    },
}

impl Change {
    /// The name in metrics.
    pub fn outcome(&self) -> &'static str {
        match self {
            Change::Registered(_) => "registered",
            Change::Removed(_) => "removed",
            Change::Rejected { .. } => "rejected",
            Change::OverLimit { .. } => "over_limit",
        }
    }
}

impl Registry {
    /// Keeps at most so many topics.
    pub fn new(max_topics: usize) -> Self {
        Self { topics: BTreeMap::new(), max_topics }
    }

    /// Takes in a record. `value` `None` or empty removes the topic.
    pub fn apply(&mut self, key: Option<&[u8]>, value: Option<&[u8]>) -> Change {
        let Some(Ok(id)) = key.map(std::str::from_utf8) else {
            return self.reject(key, "its key, the topic's id, is missing or not UTF-8".to_owned());
        };
        let value = match value {
            Some(value) if !value.is_empty() => value,
            _ => {
                self.topics.remove(id);
                return Change::Removed(id.to_owned());
            }
        };
        let registration = match Registration::read(id, value) {
            Ok(registration) => Arc::new(registration),
            Err(reason) => return self.reject(key, reason),
        };
        if self.topics.len() >= self.max_topics && !self.topics.contains_key(id) {
            return Change::OverLimit { id: id.to_owned() };
        }
        self.topics.insert(id.to_owned(), registration.clone());
        Change::Registered(registration)
    }

    /// Takes in a record that is no good.
    pub fn reject(&mut self, key: Option<&[u8]>, reason: String) -> Change {
        let key = key.unwrap_or_default();
        if let Ok(id) = std::str::from_utf8(key) {
            self.topics.remove(id);
        }
        Change::Rejected { id: String::from_utf8_lossy(key).into_owned(), reason }
    }

    /// The topic of this id.
    pub fn get(&self, id: &str) -> Option<&Arc<Registration>> {
        self.topics.get(id)
    }

    /// All topics, by their ids.
    pub fn topics(&self) -> impl Iterator<Item = &Arc<Registration>> {
        self.topics.values()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.topics.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.topics.is_empty()
    }

    /// Whether no further one is taken.
    pub fn is_full(&self) -> bool {
        self.topics.len() >= self.max_topics
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ids(registry: &Registry) -> Vec<(&str, &str)> {
        registry.topics().map(|topic| (topic.topic_id.as_str(), topic.topic.as_str())).collect()
    }

    fn value(topic: &str) -> Vec<u8> {
        format!("{{\"topic\": \"{topic}\"}}").into_bytes()
    }

    #[test]
    fn the_limit_holds_for_new_topics_and_not_for_changes_of_old_ones() {
        let mut registry = Registry::new(2);
        for id in ["a", "b"] {
            assert_eq!(registry.apply(Some(id.as_bytes()), Some(&value("x"))).outcome(), "registered");
        }
        assert_eq!(registry.apply(Some(b"c"), Some(&value("x"))).outcome(), "over_limit");
        assert_eq!(registry.apply(Some(b"b"), Some(&value("y"))).outcome(), "registered");
        assert_eq!(ids(&registry), [("a", "x"), ("b", "y")]);
        registry.apply(Some(b"a"), None);
        assert_eq!(registry.apply(Some(b"c"), Some(&value("z"))).outcome(), "registered");
        assert_eq!(ids(&registry), [("b", "y"), ("c", "z")]);
    }

    #[test]
    fn a_record_without_a_key_that_is_text_takes_no_topic_along() {
        let mut registry = Registry::new(9);
        registry.apply(Some(b"a"), Some(&value("x")));
        for key in [None, Some(&b"\xff"[..]), Some(b"")] {
            assert_eq!(registry.apply(key, Some(&value("x"))).outcome(), "rejected", "{key:?}");
        }
        assert_eq!(registry.len(), 1);
    }

    proptest! {
        /// Whoever starts later finds only the last record of each key.
        #[test]
        fn a_compacted_log_comes_to_the_same(records in prop::collection::vec((0u8..5, 0u8..5), 0..40)) {
            let record = |kind: u8| match kind {
                0 => None,
                1 => Some(b"not JSON".to_vec()),
                2 => Some(Vec::new()),
                kind => Some(value(&kind.to_string())),
            };
            let mut whole = Registry::new(100);
            for (key, kind) in &records {
                whole.apply(Some(&[b'a' + key]), record(*kind).as_deref());
            }
            let mut compacted = Registry::new(100);
            for (index, (key, kind)) in records.iter().enumerate() {
                if records[index + 1..].iter().all(|(later, _)| later != key) {
                    compacted.apply(Some(&[b'a' + key]), record(*kind).as_deref());
                }
            }
            prop_assert_eq!(ids(&whole), ids(&compacted));
        }
    }
}
