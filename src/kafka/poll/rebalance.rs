//! Partitions come and go.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::consumer::Consumer;
use rdkafka::topic_partition_list::TopicPartitionList;

use super::Poller;
use super::commit::{Drain, Progress};
use crate::kafka::callbacks::Callbacks;
use crate::kafka::envelope::Ownership;
use crate::kafka::message::intern;
use crate::kafka::start::Start;

/// Between attempts to learn where assigned partitions start.
const PLACE_RETRY: Duration = Duration::from_millis(500);

/// An assignment that librdkafka waits for.
pub(super) struct Assignment {
    list: TopicPartitionList,
    /// Where each partition without a commit starts is asked then.
    due: Instant,
}

/// A revocation that librdkafka waits for.
pub(super) struct Revocation {
    pub list: TopicPartitionList,
    pub drain: Drain,
}

impl Poller {
    pub(super) fn assigned(&mut self, list: TopicPartitionList) {
        self.assignments.push(Assignment { list, due: Instant::now() });
        self.advance_assignments();
    }

    /// Takes the partitions whose start is known. While it is not, nothing of them is read: at a guess, posts would be lost,
    /// or a whole topic read again.
    pub(super) fn advance_assignments(&mut self) {
        for mut assignment in std::mem::take(&mut self.assignments) {
            let begins = match &self.start {
                Start::Earliest => BTreeMap::new(),
                _ if Instant::now() < assignment.due => {
                    self.assignments.push(assignment);
                    continue;
                }
                start => match start.place(&self.consumer, &mut assignment.list) {
                    Ok(begins) => begins,
                    Err(error) => {
                        self.shared.status.failed(&error, &format!("where to start is not known yet: {error}"));
                        assignment.due = Instant::now() + PLACE_RETRY;
                        self.assignments.push(assignment);
                        continue;
                    }
                },
            };
            self.take(&assignment.list, &begins);
        }
    }

    fn take(&mut self, list: &TopicPartitionList, begins: &BTreeMap<(String, i32), i64>) {
        if !Callbacks::take(&self.consumer, list) {
            return;
        }
        let partitions = list.elements().iter().map(|it| (it.topic().to_owned(), it.partition())).collect::<Vec<_>>();
        tracing::info!(?partitions, "partitions assigned");
        for partition in partitions {
            let ownership = Ownership::default();
            if let Some(begin) = begins.get(&partition) {
                ownership.lock().begin_at(*begin);
            }
            let (topic, partition) = partition;
            let key = (intern(&mut self.topics, &topic), partition);
            self.shared.owned().insert(key, Arc::new(ownership));
        }
        // A pause outlives a reassignment inside librdkafka, so that each partition is told what holds now.
        if self.paused {
            self.pause()
        } else {
            self.resume()
        }
        self.shared.status.forget_errors();
        // A full channel means that the lag is about to be measured.
        let _ = self.lag.0.try_send(());
    }

    /// At the end: librdkafka waits for an answer to each.
    pub(super) fn answer_all(&mut self) {
        for assignment in self.assignments.drain(..) {
            Callbacks::take(&self.consumer, &assignment.list);
        }
        for revocation in self.revocations.drain(..) {
            revocation.drain.partitions.iter().for_each(|(_, ownership)| ownership.depart());
            Callbacks::give_back(&self.consumer, &revocation.list);
        }
    }

    /// Until the partitions are given back, librdkafka fetches nothing, not for those that stay either: what is in flight of
    /// them goes on, new messages wait for the drain.
    pub(super) fn revoked(&mut self, list: TopicPartitionList) {
        let keys = list.elements().iter().map(|it| (it.topic().to_owned(), it.partition())).collect::<Vec<_>>();
        tracing::info!(partitions = ?keys, "partitions revoked");
        let mut partitions = Vec::new();
        for (topic, partition) in keys {
            let key = (intern(&mut self.topics, &topic), partition);
            if let Some(ownership) = self.shared.disown(&key) {
                partitions.push((key, ownership));
            }
        }
        // Should the partition come back, it begins at the commit: a message from behind it must not be settled first.
        self.held.retain(|(_, period)| !partitions.iter().any(|(_, leaving)| Arc::ptr_eq(period, leaving)));
        self.tell_partitions();
        let deadline = Instant::now() + self.revoke_timeout;
        self.revocations.push(Revocation { list, drain: Drain::new(partitions, deadline) });
    }

    pub(super) fn advance_revocations(&mut self) {
        for mut revocation in std::mem::take(&mut self.revocations) {
            let lost = self.consumer.assignment_lost();
            if !lost && self.advance(&mut revocation.drain) == Progress::Waiting {
                self.revocations.push(revocation);
                continue;
            }
            let left = revocation.drain.unsettled();
            if left > 0 {
                tracing::warn!(posts = left, lost, "partitions went before these posts were settled; they come again");
            }
            revocation.drain.partitions.iter().for_each(|(_, ownership)| ownership.depart());
            Callbacks::give_back(&self.consumer, &revocation.list);
        }
    }
}
