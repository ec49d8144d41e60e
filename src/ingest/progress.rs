//! One line of log a second while there is work, and none per post.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::time::MissedTickBehavior;

use crate::metrics::Metrics;

const INTERVAL: Duration = Duration::from_secs(1);

#[derive(Clone, Copy, PartialEq)]
struct Totals {
    indexed: u64,
    deleted: u64,
    ignored: u64,
    dead_lettered: u64,
}

/// Posts in the dead-letter topic so far, over all reasons.
pub fn dead_lettered(metrics: &Metrics) -> u64 {
    crate::error::Reason::ALL
        .iter()
        .map(|reason| metrics.posts_dead_lettered.with_label_values(&[reason.as_str()]).get())
        .sum()
}

/// Messages dealt with for good so far.
pub fn settled(metrics: &Metrics) -> u64 {
    let Totals { indexed, deleted, ignored, dead_lettered } = totals(metrics);
    indexed + deleted + ignored + dead_lettered
}

fn totals(metrics: &Metrics) -> Totals {
    Totals {
        indexed: metrics.posts_indexed.get(),
        deleted: metrics.posts_deleted.get(),
        ignored: metrics.posts_ignored.get(),
        dead_lettered: dead_lettered(metrics),
    }
}

/// Logs the throughput, until it is aborted.
pub async fn report(metrics: Arc<Metrics>) {
    let mut ticks = tokio::time::interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut before = totals(&metrics);
    let mut since = Instant::now();
    loop {
        ticks.tick().await;
        let now = totals(&metrics);
        if now != before {
            let rate = (now.indexed - before.indexed) as f64 / since.elapsed().as_secs_f64();
            tracing::info!(
                posts_per_second = rate.round(),
                indexed = now.indexed,
                deleted = now.deleted,
                ignored = now.ignored,
                dead_lettered = now.dead_lettered,
                in_flight = metrics.inflight_posts.get(),
                "indexing"
            );
        }
        (before, since) = (now, Instant::now());
    }
}
