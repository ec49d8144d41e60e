//! Where a message lay first. A dead letter that is sent again lies behind newer writes of its post; its origin keeps its
//! place among them.

use serde::{Deserialize, Serialize};

use super::envelope::{Envelope, Position};
use crate::error::{Fault, Reason};
use crate::text;

/// The header in which a message that was sent again carries its [`Origin`] as JSON; the last one counts.
pub const HEADER_ORIGIN: &str = "feedlens-origin";

/// A place in Kafka, and the time of the message there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Origin {
    /// The topic.
    pub topic: String,
    /// The partition, from 0.
    pub partition: i32,
    /// The offset in the partition.
    pub offset: i64,
    /// The message's Kafka timestamp in milliseconds since 1970; 0 where it has none.
    pub timestamp: i64,
}

impl Origin {
    /// The header of this origin.
    pub(super) fn to_header(&self) -> (String, Option<Vec<u8>>) {
        let json = serde_json::to_vec(self).expect("an origin is plain JSON. This is a bug.");
        (HEADER_ORIGIN.to_owned(), Some(json))
    }

    /// Reads the header's value in a message at `position`.
    ///
    /// An origin lies before its message in the same partition. So the header makes a write older than it is and never
    /// newer: with another place, whoever may write to the topic could place a post behind every edit and deletion to
    /// come. And where a tool copied the topic, offsets of the copied one say nothing.
    fn read(value: Option<&[u8]>, position: &Position) -> Result<Self, Fault> {
        let shown = || text::escaped(value.unwrap_or_default(), 120);
        let reject = |detail: String| Fault::reject(Reason::BadField, format!("{HEADER_ORIGIN}: {detail}"));
        let origin = serde_json::from_slice::<Self>(value.unwrap_or_default()).map_err(|error| {
            let expected = r#"{"topic": "posts", "partition": 0, "offset": 42, "timestamp": 1795163400000}"#;
            reject(format!("the header must be JSON such as {expected}, not \"{}\" ({error})", shown()))
        })?;
        let is_before = origin.topic == *position.topic
            && origin.partition == position.partition
            && (0..position.offset).contains(&origin.offset);
        if !is_before || origin.timestamp < 0 {
            return Err(reject(format!(
                "\"{}\" does not lie before its message {position} in the same partition; only `feedlens dlq replay` \
                 writes this header, and a copy of a topic is to be made without it",
                shown()
            )));
        }
        Ok(origin)
    }
}

impl std::fmt::Display for Origin {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{}[{}]@{}", text::escaped(self.topic.as_bytes(), 249), self.partition, self.offset)
    }
}

impl Envelope {
    /// Where the message lay first: where it lies, unless it is a dead letter that was sent again.
    ///
    /// # Errors
    /// [`Fault::Reject`] where [`HEADER_ORIGIN`] is malformed, or names no place before this message in its partition.
    pub fn origin(&self) -> Result<Origin, Fault> {
        match self.headers.iter().rfind(|(name, _)| name == HEADER_ORIGIN) {
            Some((_, value)) => Origin::read(value.as_deref(), &self.position),
            None => Ok(self.own_place()),
        }
    }

    pub(super) fn own_place(&self) -> Origin {
        let Position { topic, partition, offset } = &self.position;
        let timestamp = self.timestamp.map_or(0, |time| time.timestamp_millis());
        Origin { topic: topic.to_string(), partition: *partition, offset: *offset, timestamp }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::tests::assert_rejected;

    fn at(offset: i64) -> Position {
        Position { topic: "posts".into(), partition: 3, offset }
    }

    #[test]
    fn an_origin_survives_its_header() {
        let origin = Origin { topic: "posts".to_owned(), partition: 3, offset: 41, timestamp: 7 };
        let (_, value) = origin.to_header();
        assert_eq!(Origin::read(value.as_deref(), &at(42)).expect("reads"), origin);
    }

    #[test]
    fn a_malformed_origin_is_rejected_with_the_form_that_is_right() {
        let hostile: [Option<&[u8]>; 7] = [
            None,
            Some(b""),
            Some(b"42"),
            Some(b"\xff\xfe\x1b[2J"),
            Some(br#"{"topic": "posts", "partition": 3, "offset": 1}"#),
            Some(br#"{"topic": "posts", "partition": 3, "offset": 1, "timestamp": 0, "more": 1}"#),
            Some(br#"{"topic": "posts", "partition": 3, "offset": 9223372036854775808, "timestamp": 0}"#),
        ];
        for value in hostile {
            let read = Origin::read(value, &at(42));
            assert_rejected(read, Reason::BadField, "feedlens-origin: the header must be JSON");
        }
        let Err(fault) = Origin::read(Some(b"\x1b[2J"), &at(42)) else { panic!("rejected") };
        assert!(!fault.to_string().contains('\u{1b}'), "{fault}");
    }

    #[test]
    fn an_origin_that_is_not_before_its_message_is_rejected() {
        for (topic, partition, offset, timestamp) in [
            ("posts", 3, 42, 0),
            ("posts", 3, i64::MAX, 0),
            ("posts", 2, 1, 0),
            ("other", 3, 1, 0),
            ("posts", 3, -1, 0),
            ("posts", 3, 1, -1),
        ] {
            let (_, value) = Origin { topic: topic.to_owned(), partition, offset, timestamp }.to_header();
            assert_rejected(
                Origin::read(value.as_deref(), &at(42)),
                Reason::BadField,
                "before its message posts[3]@42",
            );
        }
    }
}
