//! What the topic's messages must end in, by the contract's rules in their shortest form: over all writes of a post at
//! once, and not write by write as the stores do.

use std::cmp::Ordering;
use std::collections::{BTreeMap, HashMap};

use anyhow::{Context, Result, ensure};
use feedlens::error::Reason;

use crate::kafka::Record;
use crate::ledger::Ledger;
use crate::posts::{Content, Meaning, Message, Style};

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

/// A message, and where the topic has it.
pub struct Placed<'a> {
    pub partition: i32,
    pub offset: i64,
    pub timestamp: i64,
    pub message: &'a Message,
}

/// A message that must lie in the dead letters.
#[derive(Debug, Clone)]
pub struct Poison {
    pub kind: &'static str,
    pub reason: Reason,
    pub message: Message,
}

/// What messages must end in.
#[derive(Default)]
pub struct Expected {
    pub posts: BTreeMap<String, History>,
    /// By partition and offset.
    pub poison: HashMap<(i32, i64), Poison>,
    /// By partition: one past the last message.
    pub ends: BTreeMap<i32, i64>,
}

impl Expected {
    /// Messages of a partition come in their order.
    pub fn add(&mut self, placed: Placed) {
        let Placed { partition, offset, timestamp, message } = placed;
        self.ends.insert(partition, offset + 1);
        match &message.meaning {
            Meaning::Poison { kind, reason } => {
                let poison = Poison { kind, reason: *reason, message: message.clone() };
                self.poison.insert((partition, offset), poison);
            }
            Meaning::Write { post_id, style, version, content } => {
                let empty = || History { style: *style, writes: Vec::new() };
                let (version, content) = (*version, content.clone());
                let write = Write { partition, offset, timestamp, version, content };
                self.posts.entry(post_id.clone()).or_insert_with(empty).writes.push(write);
            }
        }
    }

    /// `topic`: all that the posts topic holds.
    ///
    /// # Errors
    /// It holds what was never sent.
    pub fn of_topic(topic: &[Record], ledger: &Ledger) -> Result<Self> {
        let mut expected = Self::default();
        for record in topic {
            let number = record.number().context("a message without a number is in the topic")?;
            let message = ledger.message(number).context("a message that was never sent is in the topic")?;
            ensure!(
                (&message.payload, &message.key, &message.headers) == (&record.payload, &record.key, &record.headers),
                "message {number} is in the topic, but not as it was sent"
            );
            let Record { partition, offset, timestamp, .. } = *record;
            expected.add(Placed { partition, offset, timestamp, message: &message });
        }
        Ok(expected)
    }
}
