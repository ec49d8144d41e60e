//! The last matches, kept so that a stream that was cut goes on where it was, at any worker: all read the same topic.

use std::collections::{BTreeMap, VecDeque};
use std::fmt::{self, Display, Formatter};
use std::str::FromStr;
use std::sync::Arc;

use crate::standing::Match;

/// Matches that are kept, and the bytes of their records.
const KEPT: usize = 1_024;
const KEPT_BYTES: usize = 4 * 1024 * 1024;
/// A longer text is no cursor of ours: some 1,000 partitions fit.
const MAX_CURSOR_BYTES: usize = 16 * 1024;
/// The cursor of who has seen nothing, since nothing was there. An empty id would make a browser forget it.
const NOTHING: &str = "none";

/// How far a reader of `kafka.matches_topic` has come: the next offset of each partition that has had a match. As text,
/// which is the id of a server-sent event: `0:12,3:7`, or `none`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cursor(BTreeMap<i32, i64>);

/// A match, and where it lies in its topic.
#[derive(Debug, Clone, PartialEq)]
pub struct Told {
    /// The match.
    pub found: Match,
    /// Its partition.
    pub partition: i32,
    /// Its offset there.
    pub offset: i64,
    /// The size of its record.
    pub bytes: usize,
}

/// What a reader with a cursor has not seen.
#[derive(Debug, PartialEq)]
pub struct Unseen {
    /// The matches that are kept.
    pub told: VecDeque<Arc<Told>>,
    /// There may have been others before these.
    pub gap: bool,
}

/// The last matches, in the order in which this worker read them.
#[derive(Debug, Default)]
pub struct Recent {
    told: VecDeque<Arc<Told>>,
    bytes: usize,
    /// Of each partition the offset from which on every match is kept.
    complete_from: BTreeMap<i32, i64>,
    cursor: Cursor,
}

impl Cursor {
    /// Behind this match.
    pub fn pass(&mut self, told: &Told) {
        self.0.insert(told.partition, told.offset + 1);
    }

    /// The next offset. A partition that had no match when the cursor was made is unseen from its beginning.
    fn next(&self, partition: i32) -> i64 {
        self.0.get(&partition).copied().unwrap_or_default()
    }
}

impl Display for Cursor {
    fn fmt(&self, out: &mut Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return out.write_str(NOTHING);
        }
        for (place, (partition, offset)) in self.0.iter().enumerate() {
            write!(out, "{}{partition}:{offset}", if place == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}

impl FromStr for Cursor {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == NOTHING {
            return Ok(Self::default());
        }
        let pair = |pair: &str| {
            let (partition, offset) = pair.split_once(':')?;
            let number = |digits: &str| digits.bytes().all(|byte| byte.is_ascii_digit()).then_some(());
            number(partition).and(number(offset))?;
            Some((partition.parse().ok()?, offset.parse().ok()?))
        };
        let pairs = (text.len() <= MAX_CURSOR_BYTES).then(|| text.split(',').map(pair).collect::<Option<_>>());
        pairs.flatten().map(Self).ok_or("it is not the id of an event of this stream")
    }
}

impl Recent {
    /// Keeps a match, and lets the oldest go.
    pub fn add(&mut self, told: Arc<Told>) {
        self.complete_from.entry(told.partition).or_insert(told.offset);
        self.cursor.pass(&told);
        self.bytes += told.bytes;
        self.told.push_back(told);
        while self.told.len() > KEPT || self.bytes > KEPT_BYTES {
            let Some(oldest) = self.told.pop_front() else { break };
            self.bytes -= oldest.bytes;
            self.complete_from.insert(oldest.partition, oldest.offset + 1);
        }
    }

    /// Behind the last match.
    pub fn cursor(&self) -> &Cursor {
        &self.cursor
    }

    /// What came behind the cursor.
    pub fn since(&self, cursor: &Cursor) -> Unseen {
        let unseen = |told: &&Arc<Told>| told.offset >= cursor.next(told.partition);
        Unseen {
            told: self.told.iter().filter(unseen).cloned().collect(),
            gap: self.complete_from.iter().any(|(&partition, &from)| cursor.next(partition) < from),
        }
    }
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;

    use super::*;

    fn told(partition: i32, offset: i64, bytes: usize) -> Arc<Told> {
        let found = Match {
            topic_id: "t".to_owned(),
            topic: "海".to_owned(),
            post_id: "p".to_owned(),
            score: 0.5,
            matched: "image".to_owned(),
            caption: None,
            author: None,
            created_at: None,
            matched_at: DateTime::UNIX_EPOCH,
            version: 1,
            shortened: false,
        };
        Arc::new(Told { found, partition, offset, bytes })
    }

    fn places(unseen: &Unseen) -> Vec<(i32, i64)> {
        unseen.told.iter().map(|told| (told.partition, told.offset)).collect()
    }

    #[test]
    fn a_cursor_is_read_as_it_is_written() {
        let mut cursor = Cursor::default();
        assert_eq!((cursor.to_string().as_str(), "none".parse()), ("none", Ok(Cursor::default())));
        cursor.pass(&told(10, 6, 1));
        cursor.pass(&told(2, i64::MAX - 1, 1));
        assert_eq!(cursor.to_string(), format!("2:{},10:7", i64::MAX));
        assert_eq!(cursor.to_string().parse(), Ok(cursor));
        let long = "1:1,".repeat(MAX_CURSOR_BYTES / 4) + "1:1";
        for bad in
            ["", ",", "1", "1:", ":1", "1:2,", "-1:2", "1:-2", "+1:2", "1:2:3", "None", " 1:2", "9999999999:1", &long]
        {
            assert!(bad.parse::<Cursor>().is_err(), "{bad}");
        }
    }

    #[test]
    fn who_comes_back_gets_what_came_meanwhile_from_any_worker() {
        let (mut one, mut other) = (Recent::default(), Recent::default());
        for (partition, offset) in [(0, 5), (1, 9), (0, 6)] {
            one.add(told(partition, offset, 1));
        }
        let cursor = one.cursor().clone();
        assert_eq!(one.since(&cursor), Unseen { told: VecDeque::new(), gap: false });
        // Partitions come in another order there, and one that had no match before has one now.
        for (partition, offset) in [(1, 9), (1, 10), (0, 5), (2, 0), (0, 6), (0, 7)] {
            other.add(told(partition, offset, 1));
        }
        let unseen = other.since(&cursor);
        assert_eq!((places(&unseen), unseen.gap), (vec![(1, 10), (2, 0), (0, 7)], false));
        // Who knows more than this worker gets nothing twice.
        let unseen = one.since(other.cursor());
        assert_eq!((places(&unseen), unseen.gap), (vec![], false));
    }

    #[test]
    fn what_is_kept_no_more_is_told_as_a_gap() {
        let mut recent = Recent::default();
        recent.add(told(1, 4, 1));
        let before = recent.cursor().clone();
        for offset in 0..KEPT as i64 {
            recent.add(told(0, offset, 1));
        }
        assert_eq!(recent.told.len(), KEPT);
        assert!(!recent.since(&before).gap, "what went was seen");
        recent.add(told(0, KEPT as i64, 1));
        let unseen = recent.since(&before);
        assert!(unseen.gap && unseen.told.len() == KEPT);
        assert!(!recent.since(&"0:1,1:5".parse().expect("a cursor")).gap);

        // What lay in the topic before this worker read it is not kept either.
        let mut late = Recent::default();
        late.add(told(0, 100, 1));
        assert!(late.since(&"0:99".parse().expect("a cursor")).gap);
        assert!(!late.since(&"0:100".parse().expect("a cursor")).gap);
    }

    #[test]
    fn large_matches_are_kept_in_few() {
        let mut recent = Recent::default();
        for offset in 0..100 {
            recent.add(told(0, offset, KEPT_BYTES / 10));
        }
        assert_eq!((recent.told.len(), recent.bytes), (10, KEPT_BYTES / 10 * 10));
        recent.add(told(0, 100, KEPT_BYTES + 1));
        assert!(recent.told.is_empty() && recent.bytes == 0);
        assert!(recent.since(&"0:100".parse().expect("a cursor")).gap);
    }
}
