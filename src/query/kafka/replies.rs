//! Answers in the topics that requesters name (`reply_to`). What is wrong with such a topic is the matter of whoever named it:
//! it gets bounded patience, and holds up nobody else's answer.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::{RETRY_FIRST, RETRY_MAX};
use crate::backoff::Backoff;
use crate::error::{Fault, Outage};
use crate::kafka::{KafkaConfig, Producer};

/// A topic that was given up is left alone for so long. Then one answer finds out whether it is mended.
const REST: Duration = Duration::from_secs(30);

/// Sends to requesters' topics, each within a patience.
pub(super) struct Replies {
    // Of its own: what fails in a topic of others fails no message to the results topic along with it.
    producer: Producer,
    patience: Duration,
    given_up: Mutex<GivenUp>,
}

impl Replies {
    /// # Errors
    /// As [`Producer::new`].
    pub fn new(config: &KafkaConfig, patience: Duration) -> Result<Self, Fault> {
        Ok(Self { producer: Producer::impatient(config, patience)?, patience, given_up: Mutex::default() })
    }

    /// Sends an answer within the patience; at once it fails where that can never succeed, or did not a moment ago.
    ///
    /// # Errors
    /// As [`Producer::send`]; [`Fault::Retry`] means that the topic is given up. The answer may yet arrive there.
    pub async fn send(
        &self,
        topic: &str,
        key: Option<&[u8]>,
        answer: &[u8],
        headers: &[(String, Option<Vec<u8>>)],
    ) -> Result<(), Fault> {
        if !self.given_up().may_try(topic, Instant::now(), self.patience) {
            return Err(Fault::retry(Outage::Broker, format!("topic {topic} took no answer a moment ago")));
        }
        let mut latest = None;
        let sending = async {
            let mut backoff = Backoff::new(RETRY_FIRST, RETRY_MAX);
            loop {
                match self.producer.send(topic, key, Some(answer), headers).await {
                    Ok(_) => return Ok(()),
                    Err(Fault::Retry { detail, .. }) => latest = Some(detail),
                    Err(fault) => return Err(fault),
                }
                tokio::time::sleep(backoff.next_delay()).await;
            }
        };
        let sent = tokio::time::timeout(self.patience, sending).await;
        match sent {
            // It answers, though perhaps with a refusal.
            Ok(sent) => {
                self.given_up().mended(topic);
                sent
            }
            Err(_) => {
                self.given_up().failed(topic, Instant::now());
                let patience = humantime_serde::re::humantime::format_duration(self.patience);
                let latest = latest.map(|detail| format!(": {detail}")).unwrap_or_default();
                Err(Fault::retry(Outage::Broker, format!("topic {topic} took no answer within {patience}{latest}")))
            }
        }
    }

    fn given_up(&self) -> MutexGuard<'_, GivenUp> {
        // Each change is a single call: a poisoned lock has no half-done state to hide.
        self.given_up.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The topics that took no answer in time, each with the moment from which on it may be tried again.
#[derive(Default)]
struct GivenUp(HashMap<String, Instant>);

impl GivenUp {
    /// Whether an answer may be sent to the topic now. After the rest one answer at a time may.
    fn may_try(&mut self, topic: &str, now: Instant, patience: Duration) -> bool {
        match self.0.get_mut(topic) {
            None => true,
            Some(until) if now < *until => false,
            Some(until) => {
                *until = now + patience + REST;
                true
            }
        }
    }

    fn failed(&mut self, topic: &str, now: Instant) {
        self.0.insert(topic.to_owned(), now + REST);
    }

    fn mended(&mut self, topic: &str) {
        self.0.remove(topic);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_topic_that_was_given_up_is_tried_by_one_answer_after_its_rest() {
        const PATIENCE: Duration = Duration::from_secs(10);
        let (mut given_up, start) = (GivenUp::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        assert!(given_up.may_try("a", at(0), PATIENCE) && given_up.may_try("a", at(0), PATIENCE), "nothing is known");
        given_up.failed("a", at(10));
        assert!(!given_up.may_try("a", at(39), PATIENCE));
        assert!(given_up.may_try("b", at(39), PATIENCE), "another topic is another matter");
        assert!(given_up.may_try("a", at(40), PATIENCE), "rested");
        assert!(!given_up.may_try("a", at(41), PATIENCE), "one is enough to find out");
        given_up.failed("a", at(50));
        assert!(!given_up.may_try("a", at(79), PATIENCE));
        assert!(given_up.may_try("a", at(80), PATIENCE));
        given_up.mended("a");
        assert!(given_up.may_try("a", at(81), PATIENCE) && given_up.may_try("a", at(81), PATIENCE));
    }
}
