//! Which dead letters are meant, and which of them may be sent again. Pure.

use std::collections::HashSet;

use chrono::{DateTime, Utc};

use super::super::origin::Origin;
use super::Letter;
use crate::error::Reason;

/// Source positions that are remembered, some 40 MB of them. Behind it a letter may be sent twice, which changes nothing.
const MAX_REMEMBERED: usize = 1_000_000;

/// Which letters a person asks for.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Of these reasons; empty: of any, also of none.
    pub reasons: Vec<Reason>,
    /// Rejected at or after this time.
    pub since: Option<DateTime<Utc>>,
    /// Rejected before this time.
    pub until: Option<DateTime<Utc>>,
}

impl Filter {
    /// Why a letter is not asked for.
    pub fn skips(&self, letter: &Letter) -> Option<Skip> {
        if !self.reasons.is_empty() && !letter.reason.is_some_and(|reason| self.reasons.contains(&reason)) {
            return Some(Skip::OtherReason);
        }
        let is_early = self.since.is_some_and(|since| letter.time.is_none_or(|time| time < since));
        let is_late = self.until.is_some_and(|until| letter.time.is_none_or(|time| time >= until));
        (is_early || is_late).then_some(Skip::OtherTime)
    }
}

/// Why a letter is not sent again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Skip {
    /// Of another reason than was asked for.
    OtherReason,
    /// Of another time than was asked for.
    OtherTime,
    /// Its headers do not say where it came from.
    Foreign,
    /// It came from none of the posts topics.
    OtherTopic,
    /// Its offset lies behind the end of its source, which was made anew since.
    TopicMadeAnew,
    /// A deletion of the post may be forgotten by now.
    TooOld,
    /// The same message was chosen already.
    Duplicate,
}

impl Skip {
    /// Every one, in the order in which they are looked at.
    pub const ALL: [Skip; 7] = [
        Skip::OtherReason,
        Skip::OtherTime,
        Skip::Foreign,
        Skip::OtherTopic,
        Skip::TopicMadeAnew,
        Skip::TooOld,
        Skip::Duplicate,
    ];

    /// The name in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Skip::OtherReason => "other_reason",
            Skip::OtherTime => "other_time",
            Skip::Foreign => "foreign",
            Skip::OtherTopic => "other_topic",
            Skip::TopicMadeAnew => "topic_made_anew",
            Skip::TooOld => "too_old",
            Skip::Duplicate => "duplicate",
        }
    }
}

/// Chooses the letters that are sent again.
#[derive(Debug)]
pub struct Selection {
    filter: Filter,
    topics: Vec<String>,
    old_before: Option<DateTime<Utc>>,
    /// Place of the topic, partition, offset.
    seen: HashSet<(usize, i32, i64)>,
}

impl Selection {
    /// Of the letters that `filter` asks for, those that came from one of `topics`. `old_before`: those whose post was sent before
    /// this time are left out.
    pub fn new(filter: Filter, topics: Vec<String>, old_before: Option<DateTime<Utc>>) -> Self {
        Self { filter, topics, old_before, seen: HashSet::new() }
    }

    /// Where the letter is to be sent, or why it is not. `end_of`: the offset after the last of a partition of a topic.
    ///
    /// # Errors
    /// The first of [`Skip::ALL`] that holds.
    pub fn choose<'l>(
        &mut self,
        letter: &'l Letter,
        end_of: impl Fn(&str, i32) -> Option<i64>,
    ) -> Result<&'l Origin, Skip> {
        if let Some(skip) = self.filter.skips(letter) {
            return Err(skip);
        }
        let source = letter.source.as_ref().ok_or(Skip::Foreign)?;
        let topic = self.topics.iter().position(|topic| *topic == source.topic).ok_or(Skip::OtherTopic)?;
        if end_of(&source.topic, source.partition).is_none_or(|end| source.offset >= end) {
            return Err(Skip::TopicMadeAnew);
        }
        if self.old_before.is_some_and(|limit| sent_at(letter, source).is_none_or(|sent| sent < limit)) {
            return Err(Skip::TooOld);
        }
        if self.seen.len() == MAX_REMEMBERED {
            self.seen.clear();
        }
        if !self.seen.insert((topic, source.partition, source.offset)) {
            return Err(Skip::Duplicate);
        }
        Ok(source)
    }
}

/// The earliest time at which the post may have been sent: a deletion of it is younger.
fn sent_at(letter: &Letter, source: &Origin) -> Option<DateTime<Utc>> {
    let sent = DateTime::from_timestamp_millis(source.timestamp).filter(|_| source.timestamp > 0);
    sent.into_iter().chain(letter.time).min()
}

#[cfg(test)]
mod tests {
    use super::super::letter::tests::{header, message, ours};
    use super::super::{HEADER_REASON, HEADER_SOURCE_TOPIC};
    use super::*;

    fn letter(source_offset: i64) -> Letter {
        Letter::read(message(ours(source_offset)))
    }

    fn time(text: &str) -> Option<DateTime<Utc>> {
        Some(DateTime::parse_from_rfc3339(text).expect("a time").to_utc())
    }

    fn topics() -> Vec<String> {
        ["posts", "more-posts"].map(str::to_owned).into()
    }

    fn selection(filter: Filter) -> Selection {
        Selection::new(filter, topics(), time("2026-11-01T00:00:00Z"))
    }

    fn choose(selection: &mut Selection, letter: &Letter) -> Result<i64, Skip> {
        selection.choose(letter, |_, partition| (partition == 3).then_some(100)).map(|source| source.offset)
    }

    #[test]
    fn letters_are_chosen_by_reason_and_by_time() {
        let rejected = "2026-11-20T09:00:00Z";
        for (filter, expected) in [
            (Filter::default(), Ok(5)),
            (Filter { reasons: vec![Reason::BadJson, Reason::BadImage], ..Filter::default() }, Ok(5)),
            (Filter { reasons: vec![Reason::BadJson], ..Filter::default() }, Err(Skip::OtherReason)),
            (Filter { since: time(rejected), ..Filter::default() }, Ok(5)),
            (Filter { since: time("2026-11-20T09:00:01Z"), ..Filter::default() }, Err(Skip::OtherTime)),
            (Filter { until: time("2026-11-20T09:00:01Z"), ..Filter::default() }, Ok(5)),
            (Filter { until: time(rejected), ..Filter::default() }, Err(Skip::OtherTime)),
        ] {
            let told = format!("{filter:?}");
            assert_eq!(choose(&mut selection(filter), &letter(5)), expected, "{told}");
        }
        let mut unknown = ours(5);
        unknown[0] = header(HEADER_REASON, "of a later version");
        let unknown = Letter::read(message(unknown));
        assert_eq!(choose(&mut selection(Filter::default()), &unknown), Ok(5));
        let of_a_reason = Filter { reasons: vec![Reason::BadImage], ..Filter::default() };
        assert_eq!(choose(&mut selection(of_a_reason), &unknown), Err(Skip::OtherReason));
    }

    #[test]
    fn a_message_is_sent_once_however_often_it_was_rejected() {
        let mut selection = selection(Filter::default());
        assert_eq!(choose(&mut selection, &letter(5)), Ok(5));
        assert_eq!(choose(&mut selection, &letter(6)), Ok(6));
        assert_eq!(choose(&mut selection, &letter(5)), Err(Skip::Duplicate));
        let mut headers = ours(5);
        headers[2] = header(HEADER_SOURCE_TOPIC, "more-posts");
        assert_eq!(
            choose(&mut selection, &Letter::read(message(headers))),
            Ok(5),
            "another topic's is another message"
        );
    }

    #[test]
    fn letters_that_would_break_the_order_are_left_out() {
        let mut all = selection(Filter::default());
        assert_eq!(choose(&mut all, &letter(99)), Ok(99));
        assert_eq!(choose(&mut all, &letter(100)), Err(Skip::TopicMadeAnew));
        assert_eq!(choose(&mut all, &Letter::read(message(vec![]))), Err(Skip::Foreign));
        let mut elsewhere = ours(5);
        elsewhere[2] = header(HEADER_SOURCE_TOPIC, "payments");
        assert_eq!(choose(&mut all, &Letter::read(message(elsewhere))), Err(Skip::OtherTopic));
    }

    #[test]
    fn a_post_whose_deletion_may_be_forgotten_is_left_out() {
        // Sent at 08:30, rejected at 09:00.
        let at = |limit| Selection::new(Filter::default(), topics(), time(limit));
        assert_eq!(choose(&mut at("2026-11-20T08:30:00Z"), &letter(5)), Ok(5));
        assert_eq!(choose(&mut at("2026-11-20T08:30:01Z"), &letter(5)), Err(Skip::TooOld));
        assert_eq!(choose(&mut Selection::new(Filter::default(), topics(), None), &letter(5)), Ok(5));
    }
}
