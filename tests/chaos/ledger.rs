//! What the generator sent, and what was acknowledged of it.

use std::collections::{BTreeMap, BTreeSet};
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
    /// Acknowledged as sent twice, after an acknowledgement that was lost: the broker does not say where.
    somewhere: BTreeSet<u64>,
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

    /// A negative offset: it is not known.
    pub fn acknowledged(&self, number: u64, partition: i32, offset: i64) {
        let mut state = self.state();
        if offset < 0 {
            state.somewhere.insert(number);
        } else {
            state.acknowledged.insert((partition, offset), number);
        }
    }

    pub fn failed(&self, number: u64, why: &str) {
        self.state().failed.push(format!("message {number}: {why}"));
    }

    /// Whether the broker has answered for it, one way or the other.
    pub fn is_answered(&self, number: u64) -> bool {
        let state = self.state();
        state.somewhere.contains(&number)
            || state.acknowledged.values().any(|it| *it == number)
            || !state.failed.is_empty()
    }

    /// Messages that were never acknowledged, with the reason.
    pub fn failures(&self) -> Vec<String> {
        self.state().failed.clone()
    }

    /// Messages sent and acknowledged.
    pub fn counts(&self) -> (usize, usize) {
        let state = self.state();
        (state.messages.len(), state.acknowledged.len() + state.somewhere.len())
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

    /// Acknowledged messages that are not where they should be; `held`: number by partition and offset.
    pub fn lost(&self, held: &BTreeMap<(i32, i64), u64>) -> Vec<String> {
        let state = self.state();
        let numbers = held.values().collect::<BTreeSet<_>>();
        let placed = state.acknowledged.iter().filter(|(place, number)| held.get(place) != Some(number));
        let placed = placed.map(|(place, number)| format!("message {number} at {place:?}"));
        let somewhere = state.somewhere.iter().filter(|number| !numbers.contains(number));
        placed.chain(somewhere.map(|number| format!("message {number}"))).collect()
    }

    pub fn message(&self, number: u64) -> Option<Message> {
        self.state().messages.get(usize::try_from(number).ok()?).map(|sent| sent.message.clone())
    }
}
