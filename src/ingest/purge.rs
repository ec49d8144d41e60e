//! Delete markers go when nothing older can come any more.

use std::sync::Arc;
use std::time::Duration;

use chrono::{TimeDelta, Utc};
use tokio::time::MissedTickBehavior;

use crate::metrics::Metrics;
use crate::store::SharedStore;

/// Markers are looked through this often, or at their lifetime where that is shorter.
const INTERVAL: Duration = Duration::from_secs(3600);

/// Purges delete markers older than `ttl`, at once and then at intervals, until it is aborted. Several workers may do so
/// on one store.
pub async fn run(store: SharedStore, ttl: Duration, metrics: Arc<Metrics>) {
    let mut ticks = tokio::time::interval(INTERVAL.min(ttl));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        // A lifetime beyond the calendar keeps every marker.
        let age = TimeDelta::from_std(ttl).ok();
        let Some(before) = age.and_then(|age| Utc::now().checked_sub_signed(age)) else { continue };
        match store.purge(before).await {
            Ok(0) => {}
            Ok(purged) => {
                metrics.delete_markers_purged.inc_by(purged);
                tracing::info!(purged, "old delete markers are gone");
            }
            // The writes tell of an outage.
            Err(fault) => tracing::debug!(%fault, "delete markers are not purged now"),
        }
    }
}
