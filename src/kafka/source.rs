//! The source of messages: a consumer on a thread of its own that never stops polling, seen from async code as a bounded
//! stream of [`Envelope`]s.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use prometheus::{IntCounter, IntGauge, IntGaugeVec};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use tokio::sync::{mpsc, oneshot};

use super::KafkaConfig;
use super::envelope::{Envelope, Inflight, InflightLimits, Ownership};
use super::poll::Poller;
use crate::error::{Fault, Outage};
use crate::metrics::Metrics;

/// Beyond the drain deadline: the last commit, and leaving the group.
const CLOSE_GRACE: Duration = Duration::from_secs(10);

/// A poll thread that has not polled for so long hangs: it polls several times a second, and waits for nothing longer than
/// a request to a broker.
const HUNG_AFTER: Duration = Duration::from_secs(30);

/// What is consumed, and with whom it is shared.
#[derive(Debug, Clone)]
pub struct Subscription {
    /// The topics.
    pub topics: Vec<String>,
    /// The consumer group that shares their partitions.
    pub group: String,
}

/// How a source ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DrainReport {
    /// Messages settled since the stop was asked for.
    pub settled: u64,
    /// Messages handed out and never settled; they come again.
    pub abandoned: u64,
    /// Whether the broker acknowledged the commit of all that could be committed.
    pub committed: bool,
}

/// A running consumer. Dropping it asks for an end without a drain; [`Source::stop`] is the orderly way.
#[derive(Debug)]
pub struct Source {
    shared: Arc<Shared>,
    ended: Option<oneshot::Receiver<Result<DrainReport, Fault>>>,
    closed: Option<oneshot::Receiver<()>>,
}

impl Source {
    /// Joins the group and starts to consume. The stream ends after [`Source::stop`], or by itself when going on is
    /// impossible (then `stop` returns why).
    ///
    /// Metrics of posts (`posts_consumed_total`, `inflight_posts`, `inflight_bytes`) count only what comes from
    /// `kafka.posts_topic`; lag and pauses count for every topic.
    ///
    /// # Errors
    /// [`Fault::Fatal`] for a configuration that cannot work, and for brokers that do not answer within
    /// `kafka.start_timeout`.
    pub async fn start(
        config: &KafkaConfig,
        subscription: Subscription,
        limits: InflightLimits,
        drain_timeout: Duration,
        metrics: Arc<Metrics>,
    ) -> Result<(Self, mpsc::Receiver<Envelope>), Fault> {
        let is_posts = subscription.topics.contains(&config.posts_topic);
        let metrics = SourceMetrics::new(&metrics, is_posts);
        let shared = Arc::new(Shared {
            inflight: Inflight::new(limits, metrics.inflight_posts.clone(), metrics.inflight_bytes.clone()),
            owned: Mutex::default(),
            status: SourceStatus::new(&config.brokers),
            stop: Mutex::default(),
            metrics,
        });
        // Each envelope in the channel holds a permit, so the channel never fills before the budget does.
        let (sender, receiver) = mpsc::channel(limits.posts.max(1));
        let (started_sender, started) = oneshot::channel();
        let (ended_sender, ended) = oneshot::channel();
        let (closed_sender, closed) = oneshot::channel();
        let thread_shared = shared.clone();
        let thread_config = config.clone();
        thread::Builder::new()
            .name(format!("kafka-{}", subscription.group))
            .spawn(move || {
                let poller = Poller::start(&thread_config, &subscription, drain_timeout, thread_shared, sender);
                let poller = match poller {
                    Ok(poller) => poller,
                    Err(fault) => return drop(started_sender.send(Err(fault))),
                };
                if started_sender.send(Ok(())).is_err() {
                    return poller.close();
                }
                poller.run(ended_sender);
                // Only now has the consumer left its group.
                drop(closed_sender);
            })
            .map_err(|error| Fault::fatal(format!("the Kafka poll thread cannot be started: {error}")))?;
        // From here on a caller that goes away stops the thread too.
        let source = Self { shared, ended: Some(ended), closed: Some(closed) };
        started.await.map_err(|_| poll_thread_is_gone())??;
        Ok((source, receiver))
    }

    /// How the consumer is; cheap, for `/readyz`.
    pub fn status(&self) -> Arc<SourceStatus> {
        self.shared.status.clone()
    }

    /// Takes no more messages (the stream ends), waits at most `drain` until all in flight is settled, commits, and
    /// leaves the group. Posts that are not settled by then come again.
    ///
    /// # Errors
    /// The fault for which the source had ended by itself.
    pub async fn stop(mut self, drain: Duration) -> Result<DrainReport, Fault> {
        self.shared.ask_to_stop(Instant::now() + drain);
        let ended = self.ended.take().expect("stop consumes the source. This is a bug.");
        let report = tokio::time::timeout(drain + CLOSE_GRACE, ended)
            .await
            .map_err(|_| {
                Fault::fatal("the Kafka consumer did not stop in time; posts since its last commit come again")
            })?
            .map_err(|_| poll_thread_is_gone())?;
        let closed = self.closed.take().expect("stop consumes the source. This is a bug.");
        if tokio::time::timeout(CLOSE_GRACE, closed).await.is_err() {
            tracing::warn!("the consumer is still leaving its group; its partitions move on after the session timeout");
        }
        report
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        self.shared.ask_to_stop(Instant::now());
    }
}

fn poll_thread_is_gone() -> Fault {
    Fault::fatal("the Kafka poll thread ended without a word. This is a bug.")
}

/// A partition of a topic.
pub(super) type Partition = (Arc<str>, i32);

/// What the poll thread, the lag thread and the handle share.
#[derive(Debug)]
pub(super) struct Shared {
    pub inflight: Arc<Inflight>,
    owned: Mutex<BTreeMap<Partition, Arc<Ownership>>>,
    pub status: Arc<SourceStatus>,
    stop: Mutex<Option<Instant>>,
    pub metrics: SourceMetrics,
}

impl Shared {
    /// The partitions that this process may consume now.
    pub(super) fn owned(&self) -> MutexGuard<'_, BTreeMap<Partition, Arc<Ownership>>> {
        self.owned.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A partition is no longer ours: nothing is handed out for it and no lag is told.
    pub(super) fn disown(&self, partition: &Partition) -> Option<Arc<Ownership>> {
        let mut owned = self.owned();
        let ownership = owned.remove(partition);
        // Under the lock, so that a lag that was just measured cannot come after the removal.
        let _ = self.metrics.consumer_lag.remove_label_values(&[partition.0.as_ref(), &partition.1.to_string()]);
        ownership
    }

    /// Tells the lag of a partition, if it is still ours.
    pub(super) fn tell_lag(&self, partition: &Partition, lag: i64) {
        let owned = self.owned();
        if owned.contains_key(partition) {
            self.metrics.consumer_lag.with_label_values(&[partition.0.as_ref(), &partition.1.to_string()]).set(lag);
        }
    }

    /// When a stop was asked for: until when to drain.
    pub(super) fn stop_deadline(&self) -> Option<Instant> {
        *self.stop.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ask_to_stop(&self, deadline: Instant) {
        let mut stop = self.stop.lock().unwrap_or_else(PoisonError::into_inner);
        // The drop at the end of `stop` comes later, and must not cut its drain short.
        stop.get_or_insert(deadline);
        drop(stop);
        self.inflight.wake();
    }
}

/// The metrics that a source moves.
#[derive(Debug)]
pub(super) struct SourceMetrics {
    pub consumed: IntCounter,
    inflight_posts: IntGauge,
    inflight_bytes: IntGauge,
    pub paused_partitions: IntGauge,
    pub consumer_lag: IntGaugeVec,
    pub commits_failed: IntCounter,
    pub offset_resets: IntCounter,
}

impl SourceMetrics {
    fn new(metrics: &Metrics, is_posts: bool) -> Self {
        let unseen = |name: &str| IntGauge::new(name, "unseen").expect("a valid metric name. This is a bug.");
        let unseen_counter = || IntCounter::new("unseen", "unseen").expect("a valid metric name. This is a bug.");
        Self {
            consumed: if is_posts { metrics.posts_consumed.clone() } else { unseen_counter() },
            inflight_posts: if is_posts { metrics.inflight_posts.clone() } else { unseen("unseen") },
            inflight_bytes: if is_posts { metrics.inflight_bytes.clone() } else { unseen("unseen") },
            paused_partitions: metrics.paused_partitions.clone(),
            consumer_lag: metrics.consumer_lag.clone(),
            commits_failed: metrics.commits_failed.clone(),
            offset_resets: metrics.offset_resets.clone(),
        }
    }
}

/// Where a worker tells how its consumer is, for `/readyz`; empty until the consumer has started.
#[derive(Debug, Clone, Default)]
pub struct StatusSlot(Arc<OnceLock<Arc<SourceStatus>>>);

impl StatusSlot {
    /// Tells; only the first telling counts.
    pub fn fill(&self, status: Arc<SourceStatus>) {
        let _ = self.0.set(status);
    }

    /// Whether the consumer can do its work.
    ///
    /// # Errors
    /// [`Fault::Retry`] that says why it cannot.
    pub fn ready(&self) -> Result<(), Fault> {
        match self.0.get() {
            None => Err(not_ready("the consumer has not started yet")),
            Some(status) => status.snapshot().ready(),
        }
    }

    /// Whether only a new process helps: the poll thread hangs.
    ///
    /// # Errors
    /// [`Fault::Retry`] that says for how long.
    pub fn alive(&self) -> Result<(), Fault> {
        self.0.get().map_or(Ok(()), |status| status.snapshot().alive())
    }
}

fn not_ready(detail: impl Into<String>) -> Fault {
    Fault::retry(Outage::Broker, detail)
}

/// How a consumer is, kept by its poll thread.
#[derive(Debug)]
pub struct SourceStatus {
    brokers: String,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    connected: bool,
    assigned: usize,
    paused: usize,
    last_error: Option<String>,
    last_poll: Option<Instant>,
    reported: BTreeSet<String>,
}

/// [`SourceStatus`] at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StatusSnapshot {
    /// Whether some broker answered and not all of them have been away since.
    pub connected: bool,
    /// Partitions assigned to this consumer; 0 while the group settles, and in a group with more members than partitions.
    pub assigned: usize,
    /// Partitions paused for lack of room downstream.
    pub paused: usize,
    /// The last error of the brokers, the network or the group; cleared when the brokers answer again and when partitions
    /// are assigned.
    pub last_error: Option<String>,
    /// Time since the last poll; more than seconds means that the poll thread hangs.
    pub since_poll: Option<Duration>,
}

impl StatusSnapshot {
    /// Whether the consumer can do its work. One without partitions can: the group settles, or has more members than there
    /// are partitions.
    ///
    /// # Errors
    /// [`Fault::Retry`]: no broker answers, or the poll thread hangs.
    pub fn ready(&self) -> Result<(), Fault> {
        if !self.connected {
            let reason = self.last_error.as_deref().unwrap_or("none has answered yet");
            return Err(not_ready(format!("no broker answers: {reason}")));
        }
        self.alive()
    }

    fn alive(&self) -> Result<(), Fault> {
        match self.since_poll {
            Some(since) if since > HUNG_AFTER => {
                Err(not_ready(format!("the poll thread hangs since {} s; start this worker again", since.as_secs())))
            }
            _ => Ok(()),
        }
    }
}

impl SourceStatus {
    pub(super) fn new(brokers: &str) -> Arc<Self> {
        Arc::new(Self { brokers: brokers.to_owned(), state: Mutex::default() })
    }

    /// The present state.
    pub fn snapshot(&self) -> StatusSnapshot {
        let state = self.lock();
        StatusSnapshot {
            connected: state.connected,
            assigned: state.assigned,
            paused: state.paused,
            last_error: state.last_error.clone(),
            since_poll: state.last_poll.map(|polled| polled.elapsed()),
        }
    }

    pub(super) fn last_error(&self) -> Option<String> {
        self.lock().last_error.clone()
    }

    pub(super) fn polled(&self) {
        self.lock().last_poll = Some(Instant::now());
    }

    pub(super) fn set_partitions(&self, assigned: usize, paused: usize) {
        let mut state = self.lock();
        state.assigned = assigned;
        state.paused = paused;
    }

    /// A broker answered.
    pub(super) fn recovered(&self) {
        let mut state = self.lock();
        if state.connected {
            return;
        }
        state.connected = true;
        state.last_error = None;
        state.reported.clear();
        drop(state);
        tracing::info!(brokers = self.brokers, "kafka brokers answer");
    }

    /// The group works: what came before is history, and would be news again.
    pub(super) fn forget_errors(&self) {
        let mut state = self.lock();
        state.last_error = None;
        state.reported.clear();
    }

    /// A broker, the network or the group gave an error. The same kind is logged once until the brokers recover:
    /// librdkafka repeats it for as long as it lasts.
    pub(super) fn failed(&self, error: &KafkaError, reason: &str) {
        let mut state = self.lock();
        match error.rdkafka_error_code() {
            // One of several brokers, or an idle connection that was closed: only all of them together are news.
            Some(RDKafkaErrorCode::BrokerTransportFailure | RDKafkaErrorCode::OperationTimedOut) => {
                tracing::debug!(reason, "kafka connection");
                state.last_error = Some(reason.to_owned());
            }
            Some(RDKafkaErrorCode::AllBrokersDown) => {
                state.connected = false;
                let reason = state.last_error.get_or_insert_with(|| reason.to_owned()).clone();
                if state.reported.insert("all brokers down".to_owned()) {
                    tracing::warn!(brokers = self.brokers, reason, "no kafka broker answers; trying on");
                }
            }
            _ => {
                state.last_error = Some(reason.to_owned());
                if state.reported.insert(error.to_string()) {
                    tracing::warn!(reason, "kafka consumer");
                }
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_consumer_without_brokers_or_with_a_hung_thread_is_not_ready() {
        let reason = |status: &StatusSlot| status.ready().expect_err("not ready").to_string();
        let slot = StatusSlot::default();
        assert!(reason(&slot).contains("not started"));
        let status = SourceStatus::new("localhost:9092");
        slot.fill(status.clone());
        assert!(reason(&slot).contains("no broker"));
        status.recovered();
        status.polled();
        slot.ready().expect("brokers answer and the thread polls");

        status.failed(&KafkaError::Global(RDKafkaErrorCode::AllBrokersDown), "1/1 brokers are down");
        assert!(reason(&slot).contains("1/1 brokers are down"));
        slot.alive().expect("an outage of the brokers is no reason to start again");
        status.recovered();
        status.lock().last_poll = Some(Instant::now() - HUNG_AFTER - Duration::from_secs(1));
        assert!(reason(&slot).contains("hangs since 31 s"), "{}", reason(&slot));
        assert!(slot.alive().is_err(), "a hung thread is one");
    }
}
