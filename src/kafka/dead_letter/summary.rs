//! Dead letters counted, with a few of them to look at. Pure, and bounded whatever the letters hold.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::Serialize;

use super::Letter;
use crate::text::escaped;

/// Source topics counted by name; letters of further ones are counted together.
const MAX_TOPICS: usize = 100;
/// Where they are counted. No topic can be called so.
const FURTHER_TOPICS: &str = "(further topics)";
/// Letters whose headers do not say why, or not in words of this version. No reason is called so.
const UNKNOWN: &str = "(unknown)";
/// Longest pieces of a sample, in characters.
const KEY_CHARACTERS: usize = 80;
const DETAIL_CHARACTERS: usize = 300;
const VALUE_CHARACTERS: usize = 200;

/// What lies among the dead letters. Texts are escaped ([`escaped`]): they can be shown.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Summary {
    /// How many letters.
    pub letters: u64,
    /// Time of the first of them.
    pub first: Option<DateTime<Utc>>,
    /// Time of the last of them.
    pub last: Option<DateTime<Utc>>,
    /// How many of each reason.
    pub reasons: BTreeMap<String, u64>,
    /// How many of each topic that they came from.
    pub source_topics: BTreeMap<String, u64>,
    /// The latest of each reason.
    pub samples: Vec<Sample>,
    #[serde(skip)]
    samples_of_each: usize,
}

/// A letter to look at; its texts are escaped and shortened.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Sample {
    /// Why it was rejected.
    pub reason: String,
    /// The sentence for a person.
    pub detail: String,
    /// When it was rejected.
    pub time: Option<DateTime<Utc>>,
    /// Where the message came from, `topic[partition]@offset`.
    pub source: Option<String>,
    /// Where the letter lies.
    pub letter: String,
    /// The message's key.
    pub key: Option<String>,
    /// The beginning of the message's value; `None`: it has none, a tombstone.
    pub value: Option<String>,
    /// Bytes of the whole value.
    pub value_bytes: usize,
}

impl Summary {
    /// Of no letters; `samples` of each reason will be kept.
    pub fn new(samples: usize) -> Self {
        Self { samples_of_each: samples, ..Self::default() }
    }

    /// Counts a letter.
    pub fn add(&mut self, letter: &Letter) {
        self.letters += 1;
        self.first = [self.first, letter.time].into_iter().flatten().min();
        self.last = self.last.max(letter.time);
        let reason = letter.reason.map_or(UNKNOWN, |reason| reason.as_str());
        *self.reasons.entry(reason.to_owned()).or_default() += 1;
        let topic = letter.source.as_ref().map_or(UNKNOWN.to_owned(), |source| escaped(source.topic.as_bytes(), 249));
        let is_known = self.source_topics.len() < MAX_TOPICS || self.source_topics.contains_key(&topic);
        *self.source_topics.entry(if is_known { topic } else { FURTHER_TOPICS.to_owned() }).or_default() += 1;
        self.keep_sample(reason, letter);
    }

    /// Sorted by reason, and by time within it.
    fn keep_sample(&mut self, reason: &str, letter: &Letter) {
        let begin = self.samples.partition_point(|kept| kept.reason.as_str() < reason);
        let end = self.samples.partition_point(|kept| kept.reason.as_str() <= reason);
        let place = begin + self.samples[begin..end].partition_point(|kept| kept.time <= letter.time);
        let is_full = end - begin >= self.samples_of_each;
        if is_full && place == begin {
            return;
        }
        self.samples.insert(place, Sample::of(reason, letter));
        if is_full {
            self.samples.remove(begin);
        }
    }
}

impl Sample {
    fn of(reason: &str, letter: &Letter) -> Self {
        Self {
            reason: reason.to_owned(),
            detail: escaped(&letter.detail, DETAIL_CHARACTERS),
            time: letter.time,
            source: letter.source.as_ref().map(ToString::to_string),
            letter: letter.position.to_string(),
            key: letter.key.as_deref().map(|key| escaped(key, KEY_CHARACTERS)),
            value: letter.payload.as_deref().map(|value| escaped(value, VALUE_CHARACTERS)),
            value_bytes: letter.payload.as_ref().map_or(0, bytes::Bytes::len),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::letter::tests::{header, message, ours};
    use super::super::{HEADER_REASON, HEADER_SOURCE_TOPIC, HEADER_TIME};
    use super::*;

    fn letter(reason: &str, topic: &str, minute: usize) -> Letter {
        let mut headers = ours(minute as i64);
        headers[0] = header(HEADER_REASON, reason);
        headers[2] = header(HEADER_SOURCE_TOPIC, topic);
        headers[6] = header(HEADER_TIME, &format!("2026-11-20T09:{minute:02}:00Z"));
        Letter::read(message(headers))
    }

    #[test]
    fn letters_are_counted_and_the_latest_of_each_reason_kept() {
        let mut summary = Summary::new(2);
        for minute in [3, 1, 4, 2] {
            summary.add(&letter("bad_json", "posts", minute));
        }
        summary.add(&letter("empty", "older-posts", 9));
        summary.add(&letter("\u{1b}[2J", "posts", 5));
        let counts = |counts: &BTreeMap<String, u64>| {
            counts.iter().map(|(name, count)| format!("{name} {count}")).collect::<Vec<_>>().join(", ")
        };
        assert_eq!(counts(&summary.reasons), "(unknown) 1, bad_json 4, empty 1");
        assert_eq!(counts(&summary.source_topics), "older-posts 1, posts 5");
        let minutes = [summary.first, summary.last].map(|time| time.expect("a time").format("%M").to_string());
        assert_eq!(minutes, ["01", "09"]);
        let samples = summary.samples.iter().map(|it| format!("{} {}", it.reason, it.source.as_deref().unwrap_or("")));
        let expected = ["(unknown) posts[3]@5", "bad_json posts[3]@3", "bad_json posts[3]@4", "empty older-posts[3]@9"];
        assert_eq!(samples.collect::<Vec<_>>(), expected);
        let mut none = Summary::new(0);
        none.add(&letter("empty", "posts", 1));
        assert!(none.samples.is_empty() && none.letters == 1);
    }

    #[test]
    fn a_summary_of_hostile_letters_stays_small_and_can_be_shown() {
        let mut summary = Summary::new(3);
        for number in 0..10_000 {
            let mut letter = letter(&format!("reason-{number}\u{1b}"), &format!("topic-{number}\u{1b}"), 1);
            letter.detail = vec![0x1b; 10_000];
            letter.key = Some(vec![0xff; 10_000]);
            letter.payload = Some("\u{202e}".repeat(10_000).into());
            summary.add(&letter);
        }
        let json = serde_json::to_string(&summary).expect("JSON");
        assert!(json.len() < 30_000, "{} bytes", json.len());
        assert!(!json.contains(['\u{1b}', '\u{202e}']) && !json.contains(r"\u001b"), "{json}");
        assert_eq!(summary.source_topics.values().sum::<u64>(), 10_000);
    }
}
