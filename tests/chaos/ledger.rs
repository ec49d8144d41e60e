//! What the generator sent, and what was acknowledged of it.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::expect::{Expected, Placed};
use crate::posts::Message;

/// Shared between the generator and those who compare.
#[derive(Default)]
pub struct Ledger {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// By number.
    messages: Vec<Sent>,
    /// Number by partition and offset.
    acknowledged: BTreeMap<(i32, i64), u64>,
    failed: Vec<String>,
}

struct Sent {
    message: Message,
    timestamp: i64,
}

impl Ledger {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A message is about to be sent; messages are numbered in this order.
    pub fn sent(&self, message: Message, timestamp: i64) {
        self.state().messages.push(Sent { message, timestamp });
    }

    pub fn acknowledged(&self, number: u64, partition: i32, offset: i64) {
        self.state().acknowledged.insert((partition, offset), number);
    }

    pub fn failed(&self, number: u64, why: &str) {
        self.state().failed.push(format!("message {number}: {why}"));
    }

    /// Messages that were never acknowledged, with the reason.
    pub fn failures(&self) -> Vec<String> {
        self.state().failed.clone()
    }

    /// Messages sent and acknowledged.
    pub fn counts(&self) -> (usize, usize) {
        let state = self.state();
        (state.messages.len(), state.acknowledged.len())
    }

    /// What the messages that are acknowledged so far must end in.
    pub fn expected(&self) -> Expected {
        let state = self.state();
        let mut expected = Expected::default();
        for ((partition, offset), number) in &state.acknowledged {
            let Sent { message, timestamp } = &state.messages[*number as usize];
            expected.add(Placed { partition: *partition, offset: *offset, timestamp: *timestamp, message });
        }
        expected
    }

    /// The number of each acknowledged message, by its place.
    pub fn places(&self) -> BTreeMap<(i32, i64), u64> {
        self.state().acknowledged.clone()
    }

    pub fn message(&self, number: u64) -> Option<Message> {
        self.state().messages.get(usize::try_from(number).ok()?).map(|sent| sent.message.clone())
    }
}
