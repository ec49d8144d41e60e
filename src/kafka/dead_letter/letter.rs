//! A dead letter: the message as it came, and what our headers say of it.

use bytes::Bytes;
use chrono::{DateTime, Utc};

use super::super::envelope::Position;
use super::super::message::Message;
use super::super::origin::{HEADER_ORIGIN, Origin};
use super::{
    HEADER_DETAIL, HEADER_REASON, HEADER_SOURCE_OFFSET, HEADER_SOURCE_PARTITION, HEADER_SOURCE_TIMESTAMP,
    HEADER_SOURCE_TOPIC, HEADER_TIME,
};
use crate::error::Reason;

/// The last header of each of these names is ours; what was rejected may have brought some of its own.
const OURS: [&str; 8] = [
    HEADER_REASON,
    HEADER_DETAIL,
    HEADER_SOURCE_TOPIC,
    HEADER_SOURCE_PARTITION,
    HEADER_SOURCE_OFFSET,
    HEADER_SOURCE_TIMESTAMP,
    HEADER_TIME,
    // Of a letter that was sent again and rejected again: its source has taken it over.
    HEADER_ORIGIN,
];

/// A dead letter, or whatever else lies in the dead-letter topic: all of it is as its sender chose.
#[derive(Debug, Clone)]
pub struct Letter {
    /// Where the letter lies.
    pub position: Position,
    /// The key of the message, as it came.
    pub key: Option<Vec<u8>>,
    /// The value of the message, as it came; `None` is a tombstone.
    pub payload: Option<Bytes>,
    /// The headers of the message as they came, without ours.
    pub headers: Vec<(String, Option<Vec<u8>>)>,
    /// Why it was rejected; `None` where nobody says, or for a reason that this version does not know.
    pub reason: Option<Reason>,
    /// The sentence for a person.
    pub detail: Vec<u8>,
    /// Where the message came from first; `None` where the headers do not say: then it is no dead letter of ours.
    pub source: Option<Origin>,
    /// When it was rejected.
    pub time: Option<DateTime<Utc>>,
}

impl Letter {
    /// Takes our headers out of a message, as far as they can be read: whoever may write to the topic chose them.
    pub fn read(message: Message) -> Self {
        let Message { key, payload, headers, timestamp, position, bytes: _ } = message;
        let (ours, headers) = split(headers);
        let [reason, detail, topic, partition, offset, source_timestamp, time, _] = ours;
        let number = |value: &Option<Vec<u8>>| text(value)?.parse::<i64>().ok().filter(|number| *number >= 0);
        let source = || {
            Some(Origin {
                topic: text(&topic)?.to_owned(),
                partition: number(&partition)?.try_into().ok()?,
                offset: number(&offset)?,
                timestamp: number(&source_timestamp)?,
            })
        };
        let said = text(&time).and_then(|time| DateTime::parse_from_rfc3339(time).ok()).map(|time| time.to_utc());
        Self {
            reason: text(&reason).and_then(Reason::named),
            source: source(),
            time: said.or(timestamp),
            detail: detail.unwrap_or_default(),
            position,
            key,
            payload,
            headers,
        }
    }

    /// Bytes of the message as it came.
    pub fn bytes(&self) -> usize {
        let headers = self.headers.iter().map(|(name, value)| name.len() + value.as_ref().map_or(0, Vec::len));
        self.key.as_ref().map_or(0, Vec::len) + self.payload.as_ref().map_or(0, Bytes::len) + headers.sum::<usize>()
    }
}

type Headers = Vec<(String, Option<Vec<u8>>)>;

/// The values of [`OURS`], and the other headers in their order.
fn split(headers: Headers) -> ([Option<Vec<u8>>; OURS.len()], Headers) {
    let (mut ours, mut found) = ([const { None }; OURS.len()], [false; OURS.len()]);
    let mut others = Headers::with_capacity(headers.len());
    for (name, value) in headers.into_iter().rev() {
        match OURS.iter().position(|known| *known == name).filter(|index| !found[*index]) {
            Some(index) => (found[index], ours[index]) = (true, value),
            None => others.push((name, value)),
        }
    }
    others.reverse();
    (ours, others)
}

fn text(value: &Option<Vec<u8>>) -> Option<&str> {
    std::str::from_utf8(value.as_deref()?).ok()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub fn header(name: &str, value: &str) -> (String, Option<Vec<u8>>) {
        (name.to_owned(), Some(value.as_bytes().to_vec()))
    }

    /// A message with these headers at the end of posts.dlq.
    pub fn message(headers: Headers) -> Message {
        Message {
            key: Some(b"k".to_vec()),
            payload: Some(Bytes::from_static(b"value")),
            headers,
            timestamp: DateTime::from_timestamp_millis(1_000),
            position: Position { topic: "posts.dlq".into(), partition: 0, offset: 9 },
            bytes: 0,
        }
    }

    pub fn ours(source_offset: i64) -> Headers {
        vec![
            header(HEADER_REASON, "bad_image"),
            header(HEADER_DETAIL, "no picture"),
            header(HEADER_SOURCE_TOPIC, "posts"),
            header(HEADER_SOURCE_PARTITION, "3"),
            header(HEADER_SOURCE_OFFSET, &source_offset.to_string()),
            header(HEADER_SOURCE_TIMESTAMP, "1795163400000"),
            header(HEADER_TIME, "2026-11-20T09:00:00.000Z"),
        ]
    }

    #[test]
    fn what_came_stays_and_what_we_added_is_read() {
        let own = vec![
            ("a".to_owned(), None),
            header("a", ""),
            header(HEADER_REASON, "of the sender's own"),
            ("a".to_owned(), Some(vec![0, 255])),
            header(HEADER_ORIGIN, "{}"),
        ];
        let letter = Letter::read(message([own.clone(), ours(42)].concat()));
        assert_eq!(letter.headers, own[..4], "the origin of an earlier replay is taken over");
        assert_eq!(letter.reason, Some(Reason::BadImage));
        assert_eq!(letter.detail, b"no picture");
        let source = Origin { topic: "posts".to_owned(), partition: 3, offset: 42, timestamp: 1_795_163_400_000 };
        assert_eq!(letter.source, Some(source));
        assert_eq!(letter.time.expect("a time").to_rfc3339(), "2026-11-20T09:00:00+00:00");
    }

    #[test]
    fn what_is_no_dead_letter_of_ours_is_read_all_the_same() {
        let letter = Letter::read(message(vec![header("other", "x")]));
        assert!(letter.source.is_none() && letter.reason.is_none());
        assert_eq!(letter.time, DateTime::from_timestamp_millis(1_000), "the message's own time");
        for (index, hostile) in [(4, "-1"), (4, "18446744073709551616"), (3, "2147483648"), (5, "x"), (2, "\u{0}")] {
            let mut headers = ours(42);
            headers[index].1 = Some(hostile.as_bytes().to_vec());
            let letter = Letter::read(message(headers));
            assert!(letter.source.is_none() || index == 2, "{hostile}");
            assert_eq!(letter.reason, Some(Reason::BadImage));
        }
    }
}
