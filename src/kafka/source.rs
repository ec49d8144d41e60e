//! The source of messages: a consumer on a thread of its own that never stops polling, seen from async code as a bounded
//! stream of [`Envelope`]s.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use prometheus::{IntCounter, IntGauge, IntGaugeVec};
use tokio::sync::{mpsc, oneshot};

use super::KafkaConfig;
use super::envelope::{Envelope, Inflight, InflightLimits, Ownership};
use super::poll::Poller;
use super::status::SourceStatus;
use crate::error::Fault;
use crate::metrics::Metrics;

/// Beyond the drain deadline: the last commit, and leaving the group.
const CLOSE_GRACE: Duration = Duration::from_secs(10);

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
    /// impossible (then `stop` returns why). Partitions that are revoked go once what is in flight of them is settled and
    /// committed, after `revoke_timeout` at the latest.
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
        revoke_timeout: Duration,
        metrics: Arc<Metrics>,
    ) -> Result<(Self, mpsc::Receiver<Envelope>), Fault> {
        let is_posts = subscription.topics.contains(&config.posts_topic);
        let status = SourceStatus::new(&config.brokers, Some(metrics.kafka_errors.clone()));
        let metrics = SourceMetrics::new(&metrics, is_posts);
        let shared = Arc::new(Shared {
            inflight: Inflight::new(limits, metrics.inflight_posts.clone(), metrics.inflight_bytes.clone()),
            owned: Mutex::default(),
            status,
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
                let poller = Poller::start(&thread_config, &subscription, revoke_timeout, thread_shared, sender);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_lag_is_told_of_a_partition_that_has_gone() {
        let all = Metrics::new();
        let metrics = SourceMetrics::new(&all, true);
        let limits = InflightLimits { posts: 1, bytes: 1 };
        let shared = Shared {
            inflight: Inflight::new(limits, metrics.inflight_posts.clone(), metrics.inflight_bytes.clone()),
            owned: Mutex::default(),
            status: SourceStatus::new("localhost:9092", None),
            stop: Mutex::default(),
            metrics,
        };
        let lines = || all.render().lines().filter(|line| line.contains("consumer_lag{")).count();
        let partition: Partition = (Arc::from("posts"), 3);
        shared.tell_lag(&partition, 7);
        assert_eq!(lines(), 0, "it was never ours");
        shared.owned().insert(partition.clone(), Arc::default());
        shared.tell_lag(&partition, 7);
        assert_eq!(lines(), 1);
        assert!(shared.disown(&partition).is_some());
        assert_eq!(lines(), 0, "the metric goes with the partition");
        // Measured before it went.
        shared.tell_lag(&partition, 7);
        assert_eq!(lines(), 0);
    }
}
