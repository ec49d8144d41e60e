//! Commits: regularly, and at the end of a drain.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use super::Poller;
use crate::kafka::callbacks::{Callbacks, CommitOutcome};
use crate::kafka::envelope::Ownership;
use crate::kafka::message::intern;
use crate::kafka::security::Refusal;
use crate::kafka::source::Partition;

/// After a drain the last commit may take this long; then its posts come again.
pub(in crate::kafka) const COMMIT_GRACE: Duration = Duration::from_secs(5);
/// Between attempts of the last commit of a drain.
const COMMIT_RETRY: Duration = Duration::from_millis(200);
/// A commit whose answer does not come by then no longer holds up the next one.
const COMMIT_ANSWER: Duration = Duration::from_secs(30);

/// Partitions on their way out of our hands: wait for what is in the pipeline, then commit.
pub(super) struct Drain {
    pub partitions: Vec<(Partition, Arc<Ownership>)>,
    deadline: Instant,
    /// When the waiting was over; from here on the commit has [`COMMIT_GRACE`].
    committing_since: Option<Instant>,
    /// The group goes on without us: no later commit can be accepted either.
    is_refused: bool,
}

/// Where a drain stands.
#[derive(PartialEq, Eq)]
pub(super) enum Progress {
    Waiting,
    Done { committed: bool },
}

impl Poller {
    pub(super) fn advance(&mut self, drain: &mut Drain) -> Progress {
        let now = Instant::now();
        if now < drain.deadline && !drain.partitions.iter().all(|(_, ownership)| ownership.lock().is_drained()) {
            return Progress::Waiting;
        }
        if drain.partitions.iter().all(|(_, ownership)| ownership.lock().to_commit().is_none()) {
            return Progress::Done { committed: true };
        }
        let since = *drain.committing_since.get_or_insert(now);
        if drain.is_refused || now.duration_since(since) >= COMMIT_GRACE {
            tracing::warn!("the last commit was not accepted; posts since the one before come again");
            return Progress::Done { committed: false };
        }
        if now >= self.commit_retry {
            self.commit(&drain.partitions);
        }
        Progress::Waiting
    }

    pub(super) fn commit_if_due(&mut self) {
        if Instant::now() >= self.commit_due && self.stopping.is_none() {
            self.commit_due = Instant::now() + self.commit_interval;
            let owned = self.owned_partitions();
            self.commit(&owned);
        }
    }

    /// Asks for a commit of what is settled without a gap. One at a time: while the brokers are away they would pile up.
    fn commit(&mut self, partitions: &[(Partition, Arc<Ownership>)]) {
        if self.commit_sent.is_some_and(|sent| sent.elapsed() < COMMIT_ANSWER) {
            return;
        }
        let mut list = TopicPartitionList::new();
        for ((topic, partition), ownership) in partitions {
            let Some(watermark) = ownership.lock().to_commit() else { continue };
            if let Err(error) = list.add_partition_offset(topic, *partition, Offset::Offset(watermark)) {
                tracing::error!(%error, "an offset that cannot be committed. This is a bug.");
            }
        }
        if list.count() == 0 {
            return;
        }
        match Callbacks::commit(&self.consumer, &list) {
            Ok(()) => self.commit_sent = Some(Instant::now()),
            Err(error) => self.commit_failed(&error),
        }
    }

    pub(super) fn committed(&mut self, error: Option<KafkaError>, outcomes: Vec<CommitOutcome>) {
        let sent = self.commit_sent.take();
        let mut first_error = error;
        for CommitOutcome { topic, partition, result } in outcomes {
            match result {
                Ok(offset) => {
                    let key = (intern(&mut self.topics, &topic), partition);
                    let owned = self.shared.owned().get(&key).cloned();
                    let leaving = self.revocations.iter().flat_map(|revocation| &revocation.drain.partitions);
                    let leaving = leaving.filter(|(partition, _)| *partition == key).map(|(_, it)| it.clone());
                    for ownership in owned.into_iter().chain(leaving) {
                        ownership.lock().acknowledged = Some(offset);
                    }
                }
                Err(error) => first_error = first_error.or(Some(error)),
            }
        }
        match first_error {
            Some(error) => {
                if excludes_us(&error) {
                    let drains = self.revocations.iter_mut().map(|revocation| &mut revocation.drain);
                    for drain in drains.chain(self.stopping.iter_mut().map(|(drain, _)| drain)) {
                        // A commit from before the drain may have met the generation before.
                        drain.is_refused |= sent >= drain.committing_since && drain.committing_since.is_some();
                    }
                }
                self.commit_failed(&error);
            }
            None if self.commits_fail => {
                self.commits_fail = false;
                self.shared.status.forget_errors();
                tracing::info!("offsets are committed again");
            }
            None => {}
        }
    }

    fn commit_failed(&mut self, error: &KafkaError) {
        self.shared.metrics.commits_failed.inc();
        let reason = format!("offsets cannot be committed: {error}");
        if error.rdkafka_error_code().and_then(|code| Refusal::of(code, &reason)).is_some() {
            self.shared.status.failed(error, &reason);
        }
        self.commit_retry = Instant::now() + COMMIT_RETRY;
        if self.commits_fail {
            tracing::debug!(%error, "offsets could not be committed");
        } else {
            tracing::warn!(%error, "offsets could not be committed; trying on, nothing is lost");
        }
        self.commits_fail = true;
    }
}

impl Drain {
    pub(super) fn new(partitions: Vec<(Partition, Arc<Ownership>)>, deadline: Instant) -> Self {
        Self { partitions, deadline, committing_since: None, is_refused: false }
    }

    pub(super) fn unsettled(&self) -> u64 {
        self.partitions.iter().map(|(_, ownership)| ownership.lock().unsettled() as u64).sum()
    }
}

/// Whether the group has gone on without this member; waiting only holds the others up.
fn excludes_us(error: &KafkaError) -> bool {
    matches!(
        error.rdkafka_error_code(),
        Some(
            RDKafkaErrorCode::IllegalGeneration
                | RDKafkaErrorCode::UnknownMemberId
                | RDKafkaErrorCode::FencedInstanceId
                | RDKafkaErrorCode::FencedMemberEpoch
        )
    )
}
