//! The poll thread. Everything that librdkafka says arrives here in one order: messages, assignments, revocations,
//! outcomes of commits. Nothing here waits for long: a thread that stops polling is evicted from its group.

mod commit;
mod rebalance;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::topic_partition_list::TopicPartitionList;
use tokio::sync::{mpsc, oneshot};

use self::commit::{Drain, Progress};
use self::rebalance::{Assignment, Revocation};
use super::KafkaConfig;
use super::callbacks::{Callbacks, Event};
use super::client::{fault_of_creation, wait_until_reachable};
use super::envelope::{Claim, Envelope, Ownership};
use super::lag;
use super::message::Message;
use super::source::{DrainReport, Partition, Shared, Subscription};
use super::start::Start;
use crate::error::Fault;

pub(super) use self::commit::COMMIT_GRACE;

/// A poll without messages returns after this, so that a stop or a due commit is noticed.
const POLL: Duration = Duration::from_millis(100);
/// The same while room, a drain or the answer to a commit is waited for.
const POLL_WHILE_WAITING: Duration = Duration::from_millis(20);
/// The state of the poll thread.
pub(super) struct Poller {
    consumer: Arc<BaseConsumer<Callbacks>>,
    shared: Arc<Shared>,
    topics: Vec<Arc<str>>,
    group: String,
    /// `None` once nothing more is handed out.
    sender: Option<mpsc::Sender<Envelope>>,
    /// Messages without room, in order, with the period in which they were read; more than one only for what was on its
    /// way when the partitions were paused.
    held: VecDeque<(Message, Arc<Ownership>)>,
    held_since: Option<Instant>,
    paused: bool,
    /// Our share of the gauge, which other sources move too.
    paused_told: usize,
    assignments: Vec<Assignment>,
    revocations: Vec<Revocation>,
    stopping: Option<(Drain, u64)>,
    commit_sent: Option<Instant>,
    commit_due: Instant,
    commit_retry: Instant,
    commits_fail: bool,
    commit_interval: Duration,
    start: Start,
    pause_after: Duration,
    revoke_timeout: Duration,
    lag: (SyncSender<()>, JoinHandle<()>),
}

impl Poller {
    /// Reaches the brokers and joins the group.
    pub(super) fn start(
        config: &KafkaConfig,
        subscription: &Subscription,
        revoke_timeout: Duration,
        shared: Arc<Shared>,
        sender: mpsc::Sender<Envelope>,
    ) -> Result<Self, Fault> {
        let start = config.parse_start().map_err(|error| Fault::fatal(format!("{error:#}")))?;
        let consumer = config
            .consumer_config(&subscription.group)
            .create_with_context::<_, BaseConsumer<_>>(Callbacks::new(shared.status.clone(), config))
            .map_err(|error| fault_of_creation(&error))?;
        let consumer = Arc::new(consumer);
        wait_until_reachable(&consumer, &shared.status, config)?;
        let topics = subscription.topics.iter().map(String::as_str).collect::<Vec<_>>();
        consumer
            .subscribe(&topics)
            .map_err(|error| Fault::fatal(format!("cannot subscribe to {}: {error}", topics.join(", "))))?;
        let lag = lag::spawn(consumer.clone(), shared.clone())
            .map_err(|error| Fault::fatal(format!("the Kafka lag thread cannot be started: {error}")))?;
        Ok(Self {
            consumer,
            shared,
            topics: topics.into_iter().map(Arc::from).collect(),
            group: subscription.group.clone(),
            sender: Some(sender),
            held: VecDeque::new(),
            held_since: None,
            paused: false,
            paused_told: 0,
            assignments: Vec::new(),
            revocations: Vec::new(),
            stopping: None,
            commit_sent: None,
            commit_due: Instant::now() + config.commit_interval,
            commit_retry: Instant::now(),
            commits_fail: false,
            commit_interval: config.commit_interval,
            start,
            pause_after: config.pause_after,
            revoke_timeout,
            lag,
        })
    }

    /// Polls until a stop is asked for and done; `ended` gets the report before the consumer is closed.
    pub(super) fn run(mut self, ended: oneshot::Sender<Result<DrainReport, Fault>>) {
        let report = loop {
            self.shared.status.polled();
            if let Some(report) = self.advance_stop() {
                break Ok(report);
            }
            self.advance_revocations();
            self.advance_assignments();
            self.hand_out_held();
            self.commit_if_due();
            if let Some(waiting) = self.wait_for_room() {
                self.shared.inflight.wait_for_room(waiting, POLL);
                continue;
            }
            match self.consumer.clone().poll(self.poll_timeout()) {
                Some(Ok(message)) => self.hold(&message),
                Some(Err(KafkaError::MessageConsumptionFatal(code))) => break Err(fatal(code, &self.shared)),
                // The error callback was told too, and with the reason.
                Some(Err(error)) => tracing::debug!(%error, "poll"),
                None => {}
            }
            self.handle_events();
        };
        if let Err(fault) = &report {
            tracing::error!(%fault, "the kafka consumer ends");
        }
        let _ = ended.send(report);
        self.close();
    }

    /// Leaves the group. What is not committed by now comes again.
    pub(super) fn close(mut self) {
        self.sender = None;
        let owned = self.shared.owned().keys().cloned().collect::<Vec<_>>();
        // Nobody goes on with what is in flight: whoever waits for the end of it would wait as long as the store is down.
        for partition in &owned {
            self.shared.disown(partition).iter().for_each(|ownership| ownership.depart());
        }
        self.tell_partitions();
        self.consumer.context().close();
        self.answer_all();
        // The lag thread goes first: whoever drops the consumer last closes it, and that is to be this thread.
        let (signals, thread) = self.lag;
        drop(signals);
        if thread.join().is_err() {
            tracing::error!("the kafka lag thread panicked. This is a bug.");
        }
    }

    fn poll_timeout(&self) -> Duration {
        if self.paused || !self.revocations.is_empty() || self.stopping.is_some() || !self.assignments.is_empty() {
            return POLL_WHILE_WAITING;
        }
        POLL.min(self.commit_due.saturating_duration_since(Instant::now()))
    }

    fn hold(&mut self, message: &rdkafka::message::BorrowedMessage<'_>) {
        if self.sender.is_none() {
            return;
        }
        let message = Message::read(message, &mut self.topics);
        // Read ahead for a partition that has gone to another member since, it is dropped.
        let ownership = self.shared.owned().get(&message.partition()).cloned();
        self.held.extend(ownership.map(|ownership| (message, ownership)));
        self.hand_out_held();
    }

    /// Hands out held messages in order, as far as there is room, and pauses or resumes by what is left.
    fn hand_out_held(&mut self) {
        while let Some((message, _)) = self.held.front() {
            let Some(permit) = self.shared.inflight.try_acquire(message.bytes) else { break };
            let Some((message, ownership)) = self.held.pop_front() else { break };
            let claim = Claim::new(ownership, message.position.offset, permit);
            let envelope = message.into_envelope(claim, &self.group);
            self.send(envelope);
        }
        if self.held.is_empty() {
            self.held_since = None;
            if self.paused && self.sender.is_some() && self.shared.inflight.is_half_free() {
                // At half, not at the first free place: each pause throws the read-ahead away.
                self.resume();
            }
        } else {
            let since = *self.held_since.get_or_insert_with(Instant::now);
            if !self.paused && since.elapsed() >= self.pause_after {
                self.pause();
            }
        }
    }

    fn send(&mut self, envelope: Envelope) {
        let Some(sender) = &self.sender else { return };
        self.shared.metrics.consumed.inc();
        match sender.try_send(envelope) {
            Ok(()) => {}
            Err(mpsc::error::TrySendError::Full(_)) => {
                unreachable!("the channel has a place for each permit. This is a bug.")
            }
            Err(mpsc::error::TrySendError::Closed(_)) => {
                tracing::warn!("nobody takes messages any more; the consumer waits for its stop");
                self.end_stream();
            }
        }
    }

    /// Nothing more is handed out; polling goes on for the sake of the group.
    fn end_stream(&mut self) {
        self.sender = None;
        self.held.clear();
        self.held_since = None;
        self.pause();
    }

    /// The size of the message that waits for room, while its partitions are not paused yet. Until then a poll would
    /// bring more messages, so the thread waits here, at most `kafka.pause_after` in all.
    fn wait_for_room(&self) -> Option<u64> {
        if self.paused { None } else { self.held.front().map(|(message, _)| message.bytes) }
    }

    fn pause(&mut self) {
        self.paused = true;
        if let Err(error) = self.consumer.pause(&self.owned_list()) {
            tracing::warn!(%error, "could not pause partitions");
        }
        self.tell_partitions();
    }

    fn resume(&mut self) {
        self.paused = false;
        if let Err(error) = self.consumer.resume(&self.owned_list()) {
            tracing::warn!(%error, "could not resume partitions");
        }
        self.tell_partitions();
    }

    fn owned_list(&self) -> TopicPartitionList {
        let mut list = TopicPartitionList::new();
        for (topic, partition) in self.shared.owned().keys() {
            list.add_partition(topic, *partition);
        }
        list
    }

    fn tell_partitions(&mut self) {
        let assigned = self.shared.owned().len();
        let paused = if self.paused { assigned } else { 0 };
        self.shared.metrics.paused_partitions.add(paused as i64 - self.paused_told as i64);
        self.paused_told = paused;
        self.shared.status.set_partitions(assigned, paused);
    }

    fn handle_events(&mut self) {
        while let Some(event) = self.consumer.context().next_event() {
            match event {
                Event::Assigned(list) => self.assigned(list),
                Event::Revoked(list) => self.revoked(list),
                Event::OffsetReset => self.shared.metrics.offset_resets.inc(),
                Event::Committed { error, outcomes } => self.committed(error, outcomes),
            }
        }
    }

    /// Begins or goes on with the stop; `Some` when it is done.
    fn advance_stop(&mut self) -> Option<DrainReport> {
        let deadline = self.shared.stop_deadline()?;
        let (mut drain, settled_before) = self.stopping.take().unwrap_or_else(|| {
            // Counted first: the end of the stream may set off the settling.
            let settled = self.owned_partitions().iter().map(|(_, it)| it.lock().settled).sum();
            self.end_stream();
            (Drain::new(Vec::new(), deadline), settled)
        });
        // A rebalance in the middle of the stop may take partitions away; they drain as revoked ones.
        drain.partitions = self.owned_partitions();
        match self.advance(&mut drain) {
            Progress::Done { committed } if self.revocations.is_empty() => {
                let settled = drain.partitions.iter().map(|(_, it)| it.lock().settled).sum::<u64>();
                let settled = settled.saturating_sub(settled_before);
                Some(DrainReport { settled, abandoned: drain.unsettled(), committed })
            }
            _ => {
                self.stopping = Some((drain, settled_before));
                None
            }
        }
    }

    fn owned_partitions(&self) -> Vec<(Partition, Arc<Ownership>)> {
        self.shared.owned().iter().map(|(partition, it)| (partition.clone(), it.clone())).collect()
    }
}

/// librdkafka's own word for "this consumer will never work again".
fn fatal(code: RDKafkaErrorCode, shared: &Shared) -> Fault {
    let reason = shared.status.last_error().unwrap_or_else(|| code.to_string());
    let way_out = match code {
        RDKafkaErrorCode::FencedInstanceId => "another worker has the same group.instance.id; give each its own",
        RDKafkaErrorCode::UnsupportedAssignor => {
            "the brokers do not know group.remote.assignor; choose one that they have"
        }
        _ => "look at kafka.properties and at the brokers' logs",
    };
    Fault::fatal(format!("the Kafka consumer cannot go on: {reason}; {way_out}"))
}
