//! The last matches, kept so that a stream that was cut goes on where it was, at any worker: all read the same topic.

use std::collections::{BTreeMap, VecDeque};
use std::fmt::{self, Display, Formatter};
use std::str::FromStr;
use std::sync::Arc;

use crate::standing::Match;

/// Matches that are kept, and the bytes of their records.
pub const KEPT: usize = 1_024;
const KEPT_BYTES: usize = 4 * 1024 * 1024;
/// A longer text is no cursor of ours: some 1,000 partitions fit.
const MAX_CURSOR_BYTES: usize = 16 * 1024;
/// The cursor where there is no partition. A browser would forget an empty id.
const NOWHERE: &str = "none";

/// How far a reader of `kafka.matches_topic` has come: the next offset of each partition. As text, which is the id of a
/// server-sent event: `0:12,3:7`, or `none`.
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
    /// Before these, behind the gap if there is one.
    pub cursor: Cursor,
}

/// The last matches, in the order in which this worker read them.
#[derive(Debug, Default)]
pub struct Recent {
    told: VecDeque<Arc<Told>>,
    bytes: usize,
    /// Of each partition that is read the offset from which on every match is kept.
    complete_from: BTreeMap<i32, i64>,
    cursor: Cursor,
    is_up_to_date: bool,
}

impl Cursor {
    /// Behind this match.
    pub fn pass(&mut self, told: &Told) {
        self.0.insert(told.partition, told.offset + 1);
    }

    /// The next offset. A partition that was not there when the cursor was made is unseen from its beginning.
    fn next(&self, partition: i32) -> i64 {
        self.0.get(&partition).copied().unwrap_or_default()
    }
}

impl Display for Cursor {
    fn fmt(&self, out: &mut Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return out.write_str(NOWHERE);
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
        if text == NOWHERE {
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
    /// A partition is read from this offset on.
    pub fn begin(&mut self, partition: i32, offset: i64) {
        self.complete_from.insert(partition, offset);
        self.cursor.0.insert(partition, offset);
    }

    /// What lay in the topic at the start is read.
    pub fn up_to_date(&mut self) {
        self.is_up_to_date = true;
    }

    /// Keeps a match, and lets the oldest go.
    pub fn add(&mut self, told: Arc<Told>) {
        if told.offset < self.cursor.next(told.partition) {
            // The topic was made anew: what is kept is of the old one.
            let (old, others) = self.told.drain(..).partition(|kept| kept.partition == told.partition);
            self.bytes -= Vec::from_iter(old).iter().map(|kept: &Arc<Told>| kept.bytes).sum::<usize>();
            self.told = others;
            self.complete_from.insert(told.partition, told.offset);
        }
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

    /// Whether what lay in the topic at the start is read, and no partition is behind the cursor.
    pub fn has_reached(&self, cursor: &Cursor) -> bool {
        self.is_up_to_date && self.complete_from.keys().all(|&it| cursor.next(it) <= self.cursor.next(it))
    }

    /// What came behind the cursor. Where it is ahead of what was read, it is of another topic, and all is unseen.
    pub fn since(&self, cursor: &Cursor) -> Unseen {
        let (mut seen, mut gap) = (Cursor::default(), !self.has_reached(cursor));
        for (&partition, &from) in &self.complete_from {
            let next = cursor.next(partition);
            gap |= next < from;
            let next = if next > self.cursor.next(partition) { from } else { next.max(from) };
            seen.0.insert(partition, next);
        }
        let unseen = |told: &&Arc<Told>| told.offset >= seen.next(told.partition);
        Unseen { told: self.told.iter().filter(unseen).cloned().collect(), gap, cursor: seen }
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

    /// Partitions read from these offsets on, and these matches in them.
    fn recent<const N: usize>(begins: &[(i32, i64)], matches: [(i32, i64); N]) -> Recent {
        let mut recent = Recent::default();
        begins.iter().for_each(|&(partition, offset)| recent.begin(partition, offset));
        for (partition, offset) in matches {
            recent.add(told(partition, offset, 1));
        }
        recent.up_to_date();
        recent
    }

    fn at(text: &str) -> Cursor {
        text.parse().expect("a cursor")
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
        let one = recent(&[(0, 5), (1, 9)], [(0, 5), (1, 9), (0, 6)]);
        let cursor = one.cursor().clone();
        assert_eq!(one.since(&cursor), Unseen { told: VecDeque::new(), gap: false, cursor: at("0:7,1:10") });
        // Partitions come in another order there, and there is one more.
        let begins = [(0, 5), (1, 8), (2, 0)];
        let other = recent(&begins, [(1, 9), (1, 10), (0, 5), (2, 0), (0, 6), (0, 7)]);
        let unseen = other.since(&cursor);
        assert_eq!((places(&unseen), unseen.gap), (vec![(1, 10), (2, 0), (0, 7)], false));
        assert_eq!(unseen.cursor, at("0:7,1:10,2:0"), "before these");
    }

    #[test]
    fn a_cursor_ahead_of_the_worker_is_waited_for_and_else_of_another_topic() {
        let mut behind = recent(&[(0, 3)], [(0, 3), (0, 4)]);
        assert!(behind.has_reached(&at("0:5,7:100")), "what partition 7 may be nobody knows");
        assert!(!behind.has_reached(&at("0:6")));
        let unseen = behind.since(&at("0:6,7:100"));
        assert_eq!((places(&unseen), unseen.gap, unseen.cursor), (vec![(0, 3), (0, 4)], true, at("0:3")));
        behind.add(told(0, 5, 1));
        assert_eq!(behind.since(&at("0:6")), Unseen { told: VecDeque::new(), gap: false, cursor: at("0:6") });

        // A topic that is made anew while it is read.
        behind.add(told(0, 1, 1));
        assert_eq!((behind.told.len(), behind.bytes, behind.cursor()), (1, 1, &at("0:2")));
        let unseen = behind.since(&at("0:6"));
        assert_eq!((places(&unseen), unseen.gap), (vec![(0, 1)], true));
    }

    #[test]
    fn before_all_is_read_there_may_be_more() {
        let mut reading = Recent::default();
        reading.begin(0, 3);
        reading.add(told(0, 3, 1));
        assert!(!reading.has_reached(&at("0:3")) && reading.since(&at("0:3")).gap);
        reading.up_to_date();
        assert!(reading.has_reached(&at("0:3")) && !reading.since(&at("0:3")).gap);
    }

    #[test]
    fn what_is_kept_no_more_is_told_as_a_gap_once() {
        let mut recent = recent(&[(0, 0), (1, 4), (2, 500)], [(1, 4)]);
        let before = recent.cursor().clone();
        assert_eq!(before, at("0:0,1:5,2:500"), "also of a partition whose matches are all too old");
        for offset in 0..KEPT as i64 {
            recent.add(told(0, offset, 1));
        }
        assert_eq!(recent.told.len(), KEPT);
        assert!(!recent.since(&before).gap, "what went was seen");
        recent.add(told(0, KEPT as i64, 1));
        recent.add(told(2, 500, 1));
        let unseen = recent.since(&before);
        assert!(unseen.gap && unseen.told.len() == KEPT);
        assert!(!recent.since(&unseen.cursor).gap);
        // What lay there before this worker read is not kept either.
        assert!(recent.since(&at("0:1025,1:3,2:501")).gap && !recent.since(&at("0:1025,1:5,2:501")).gap);
    }

    #[test]
    fn large_matches_are_kept_in_few() {
        let mut recent = recent(&[(0, 0)], []);
        for offset in 0..100 {
            recent.add(told(0, offset, KEPT_BYTES / 10));
        }
        assert_eq!((recent.told.len(), recent.bytes), (10, KEPT_BYTES / 10 * 10));
        recent.add(told(0, 100, KEPT_BYTES + 1));
        assert!(recent.told.is_empty() && recent.bytes == 0);
        assert!(recent.since(&at("0:100")).gap && !recent.since(&at("0:101")).gap);
    }
}
