//! What both forms of a request check, with the same sentences: each names the field and the way out.

use std::fmt::Display;
use std::ops::RangeInclusive;
use std::str::FromStr;

use chrono::{DateTime, Utc};

use crate::query::QueryConfig;
use crate::query::error::{ErrorCode, SearchError};
use crate::store::Filter;
use crate::text::{self, nearest, shortened};

/// Longest id, author, language, tag or label, in bytes: as long as the longest that a post may carry, and echoed in
/// answers.
const MAX_NAME_BYTES: usize = 256;
/// Most tags (or labels, or authors) in one condition: each is one more look-up for the store.
const MAX_NAMES: usize = 64;
/// Characters of what a sender wrote that an error repeats.
pub(super) const SHOWN: usize = 60;

pub(super) fn check_topic(topic: String, config: &QueryConfig) -> Result<String, SearchError> {
    if topic.trim().is_empty() {
        return Err(SearchError::bad_request("the topic is empty"));
    }
    if topic.len() as u64 > config.max_topic_bytes {
        return Err(SearchError::new(
            ErrorCode::TooLarge,
            format!("the topic has {} bytes; at most {} are read", topic.len(), config.max_topic_bytes),
        ));
    }
    Ok(topic)
}

pub(super) fn check_name(field: &str, text: String) -> Result<String, SearchError> {
    if text.is_empty() {
        return Err(SearchError::bad_request(format!("{field} is empty; leave it out instead")));
    }
    if text.len() > MAX_NAME_BYTES {
        return Err(SearchError::bad_request(format!(
            "{field} has {} bytes; at most {MAX_NAME_BYTES} are taken",
            text.len()
        )));
    }
    Ok(text)
}

pub(super) fn check_names(field: &str, names: Vec<String>) -> Result<Vec<String>, SearchError> {
    if names.len() > MAX_NAMES {
        return Err(SearchError::bad_request(format!(
            "{field} has {} values; at most {MAX_NAMES} are taken",
            names.len()
        )));
    }
    names.into_iter().map(|name| check_name(field, name)).collect()
}

pub(super) fn check_range(filter: &Filter) -> Result<(), SearchError> {
    match (filter.since, filter.until) {
        (Some(since), Some(until)) if since >= until => Err(SearchError::bad_request(format!(
            "since ({}) must be before until ({}); no post lies between them",
            since.to_rfc3339(),
            until.to_rfc3339()
        ))),
        _ => Ok(()),
    }
}

/// A whole number within its bounds.
pub(super) fn whole(field: &str, text: &str, range: RangeInclusive<usize>) -> Result<usize, SearchError> {
    within(field, text, range, "a whole number")
}

/// A number within its bounds.
pub(super) fn number(field: &str, text: &str, range: RangeInclusive<f64>) -> Result<f64, SearchError> {
    within(field, text, range, "a number")
}

fn within<T: FromStr + PartialOrd + Display>(
    field: &str,
    text: &str,
    range: RangeInclusive<T>,
    kind: &str,
) -> Result<T, SearchError> {
    text.parse().ok().filter(|number| range.contains(number)).ok_or_else(|| {
        let (text, least, greatest) = (shortened(text, SHOWN), range.start(), range.end());
        SearchError::bad_request(format!("{field} is {text}; it must be {kind} from {least} to {greatest}"))
    })
}

/// `true` or `false`.
pub(super) fn truth(field: &str, text: &str) -> Result<bool, SearchError> {
    text.parse().map_err(|_| {
        SearchError::bad_request(format!("{field} is {}; it must be true or false", shortened(text, SHOWN)))
    })
}

/// One of a few names.
pub(super) fn choice<T: Copy>(field: &str, text: &str, choices: &[(&str, T)]) -> Result<T, SearchError> {
    choices.iter().find(|(name, _)| *name == text).map(|(_, choice)| *choice).ok_or_else(|| {
        let names = choices.iter().map(|(name, _)| format!("{name:?}")).collect::<Vec<_>>();
        let (last, others) = names.split_last().expect("there are choices. This is a bug.");
        let text = shortened(text, SHOWN);
        SearchError::bad_request(format!("{field} is {text:?}; it must be {} or {last}", others.join(", ")))
    })
}

pub(super) fn time(field: &str, text: &str) -> Result<DateTime<Utc>, SearchError> {
    text::parse_time(text).map_err(|way_out| {
        let text = shortened(text, SHOWN);
        SearchError::bad_request(format!("{field} is {text:?}; {way_out}"))
    })
}

pub(super) fn unknown(kind: &str, name: &str, known: &[&str]) -> String {
    let nearest = nearest(name, known.iter().copied());
    format!("unknown {kind} {:?}; the nearest known one is {nearest:?}", shortened(name, SHOWN))
}
