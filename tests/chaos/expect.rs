//! What the topic's messages must end in, by the contract's rules in their shortest form: over all writes of a post at
//! once, and not write by write as the stores do.

use std::cmp::Ordering;
use std::collections::{BTreeMap, HashMap};

use anyhow::{Context, Result, ensure};
use feedlens::error::Reason;

use crate::kafka::Record;
use crate::posts::{Content, Meaning, Message, NUMBER_HEADER, Style};

/// A write of a post, where the topic has it.
#[derive(Debug, Clone)]
pub struct Write {
    pub partition: i32,
    pub offset: i64,
    pub timestamp: i64,
    pub version: Option<u64>,
    /// `None`: a deletion.
    pub content: Option<Content>,
}

impl Write {
    /// Of two writes without versions the later: by offset in a partition, by Kafka's timestamp between partitions.
    fn later(&self, other: &Self) -> Ordering {
        if self.partition == other.partition {
            return self.offset.cmp(&other.offset);
        }
        (self.timestamp, self.partition).cmp(&(other.timestamp, other.partition))
    }

    fn is_bare_deletion(&self) -> bool {
        self.content.is_none() && self.version.is_none()
    }
}

/// The writes of a post.
#[derive(Debug, Clone)]
pub struct History {
    pub style: Style,
    pub writes: Vec<Write>,
}

/// The write that stands, among those that `counts` lets pass; `None`: none of them does.
pub fn standing(history: &History, counts: impl Fn(&Write) -> bool) -> Option<&Write> {
    let writes = history.writes.iter().filter(|write| counts(write));
    if history.style != Style::Versions {
        return writes.max_by(|one, other| one.later(other));
    }
    let (bare, versioned): (Vec<_>, Vec<_>) = writes.partition(|write| write.is_bare_deletion());
    let best = versioned.into_iter().max_by(|one, other| one.version.cmp(&other.version).then(one.later(other)));
    let deletion = bare.into_iter().max_by(|one, other| one.later(other));
    match (best, deletion) {
        (Some(best), Some(deletion)) if deletion.later(best) == Ordering::Less => Some(best),
        (best, deletion) => deletion.or(best),
    }
}

/// A message that must lie in the dead letters.
#[derive(Debug, Clone)]
pub struct Poison {
    pub kind: &'static str,
    pub reason: Reason,
    pub record: Record,
}

/// What the topic holds.
pub struct Expected {
    pub posts: BTreeMap<String, History>,
    /// By partition and offset.
    pub poison: HashMap<(i32, i64), Poison>,
    /// By partition: one past the last message.
    pub ends: BTreeMap<i32, i64>,
}

impl Expected {
    /// `sent`: all messages by number; `topic`: the posts topic as it was read.
    ///
    /// # Errors
    /// The topic holds what was never sent.
    pub fn new(sent: &[Message], topic: &[Record]) -> Result<Self> {
        let mut expected = Self { posts: BTreeMap::new(), poison: HashMap::new(), ends: BTreeMap::new() };
        for record in topic {
            let number = record.header(NUMBER_HEADER).and_then(|value| std::str::from_utf8(value).ok()?.parse().ok());
            let number: usize = number.context("a message without a number is in the topic")?;
            let message = sent.get(number).context("a message that was never sent is in the topic")?;
            ensure!(
                message.payload == record.payload && message.key == record.key,
                "message {number} is in the topic, but not as it was sent"
            );
            expected.ends.insert(record.partition, record.offset + 1);
            match &message.meaning {
                Meaning::Poison { kind, reason } => {
                    let poison = Poison { kind, reason: *reason, record: record.clone() };
                    expected.poison.insert((record.partition, record.offset), poison);
                }
                Meaning::Write { post_id, style, version, content } => {
                    let empty = || History { style: *style, writes: Vec::new() };
                    expected.posts.entry(post_id.clone()).or_insert_with(empty).writes.push(Write {
                        partition: record.partition,
                        offset: record.offset,
                        timestamp: record.timestamp,
                        version: *version,
                        content: content.clone(),
                    });
                }
            }
        }
        Ok(expected)
    }
}
