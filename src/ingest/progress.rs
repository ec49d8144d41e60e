//! One line of log a second while there is work, and none per post; and whether the work goes on at all.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use prometheus::IntCounterVec;
use tokio::time::MissedTickBehavior;

use crate::error::Reason;
use crate::ingest::outage::OutageLog;
use crate::metrics::Metrics;

const INTERVAL: Duration = Duration::from_secs(1);
/// The largest model on the slowest machine settles a post in less.
const STALLED_AFTER: Duration = Duration::from_secs(120);

/// Tells whether posts in flight are ever settled, and what keeps them from it; cheap to clone.
#[derive(Debug, Clone)]
pub struct Progress {
    moved: Arc<Mutex<Option<Moved>>>,
    /// How the writes go.
    pub store: OutageLog,
    /// How the dead letters go.
    pub dead_letters: OutageLog,
    /// How the matches of standing topics go.
    pub matches: OutageLog,
    /// How what moderation is told of goes.
    pub moderation: OutageLog,
}

impl Default for Progress {
    fn default() -> Self {
        let (store, dead_letters) = (OutageLog::new("the store"), OutageLog::new("the dead-letter topic"));
        let matches = OutageLog::new("telling of matches (kafka.matches_topic)");
        let moderation = OutageLog::new("telling moderation of posts (kafka.moderation_topic)");
        Self { moved: Arc::default(), store, dead_letters, matches, moderation }
    }
}

#[derive(Debug, Clone, Copy)]
struct Moved {
    settled: u64,
    at: Instant,
}

impl Progress {
    fn observe(&self, settled: u64, in_flight: i64, now: Instant) {
        let mut last = self.moved.lock().unwrap_or_else(PoisonError::into_inner);
        if in_flight == 0 || last.is_none_or(|last| last.settled != settled) {
            *last = Some(Moved { settled, at: now });
        }
    }

    /// Whether the pipe moves, or has nothing to do.
    ///
    /// # Errors
    /// Writes, dead letters, matches or what moderation is told fail for now: what with. Or nothing has been settled for two
    /// minutes although posts are in flight: how many, and where they wait.
    pub fn ready(&self, metrics: &Metrics) -> Result<()> {
        self.store.ready()?;
        self.dead_letters.ready()?;
        self.matches.ready()?;
        self.moderation.ready()?;
        self.ready_at(metrics, Instant::now())
    }

    fn ready_at(&self, metrics: &Metrics, now: Instant) -> Result<()> {
        let last = *self.moved.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(stalled) = last.map(|last| now.saturating_duration_since(last.at)) else { return Ok(()) };
        if stalled > STALLED_AFTER {
            let queue = |name| metrics.queue_depth.with_label_values(&[name]).get();
            bail!(
                "no post was settled for {} s although {} are in flight (queues: encode_image {}, encode_text {}, write {}); \
                 posts_retried_total and the log say what is waited for",
                stalled.as_secs(),
                metrics.inflight_posts.get(),
                queue("encode_image"),
                queue("encode_text"),
                queue("write")
            );
        }
        Ok(())
    }
}

#[derive(Clone, Copy, PartialEq)]
struct Totals {
    indexed: u64,
    deleted: u64,
    ignored: u64,
    dead_lettered: u64,
    passed_over: u64,
}

/// Posts in the dead-letter topic so far, over all reasons.
pub fn dead_lettered(metrics: &Metrics) -> u64 {
    over_reasons(&metrics.posts_dead_lettered)
}

fn over_reasons(counters: &IntCounterVec) -> u64 {
    Reason::ALL.iter().map(|reason| counters.with_label_values(&[reason.as_str()]).get()).sum()
}

/// Messages dealt with for good so far.
pub fn settled(metrics: &Metrics) -> u64 {
    let Totals { indexed, deleted, ignored, dead_lettered, passed_over } = totals(metrics);
    // Of a post without its picture the dead letter counts. Read last, so that no post counts before it.
    (indexed + deleted + ignored + dead_lettered + passed_over).saturating_sub(metrics.posts_image_pending.get())
}

fn totals(metrics: &Metrics) -> Totals {
    Totals {
        indexed: metrics.posts_indexed.get(),
        deleted: metrics.posts_deleted.get(),
        ignored: metrics.posts_ignored.get(),
        dead_lettered: dead_lettered(metrics),
        passed_over: over_reasons(&metrics.posts_passed_over),
    }
}

/// Logs the throughput and keeps `progress`, until it is aborted.
pub async fn report(metrics: Arc<Metrics>, progress: Progress) {
    let mut ticks = tokio::time::interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut before = totals(&metrics);
    let mut since = Instant::now();
    loop {
        ticks.tick().await;
        let now = totals(&metrics);
        progress.observe(settled(&metrics), metrics.inflight_posts.get(), Instant::now());
        if now != before {
            let rate = (now.indexed - before.indexed) as f64 / since.elapsed().as_secs_f64();
            tracing::info!(
                posts_per_second = rate.round(),
                indexed = now.indexed,
                deleted = now.deleted,
                ignored = now.ignored,
                dead_lettered = now.dead_lettered,
                passed_over = now.passed_over,
                in_flight = metrics.inflight_posts.get(),
                "indexing"
            );
        }
        (before, since) = (now, Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn posts_in_flight_that_are_never_settled_are_a_stall() {
        let (progress, metrics, start) = (Progress::default(), Metrics::new(), Instant::now());
        let later = |seconds| start + Duration::from_secs(seconds);
        progress.ready_at(&metrics, start).expect("nothing has begun");
        metrics.inflight_posts.set(3);
        for (second, settled) in [(0, 0), (60, 0), (100, 1), (220, 1)] {
            progress.observe(settled, 3, later(second));
            progress.ready_at(&metrics, later(second)).expect("moves");
        }
        progress.observe(1, 3, later(221));
        let reason = progress.ready_at(&metrics, later(221)).expect_err("stalled").to_string();
        assert!(reason.contains("for 121 s although 3 are in flight"), "{reason}");

        progress.observe(1, 0, later(300));
        progress.ready_at(&metrics, later(400)).expect("nothing to do is no stall");
    }
}
