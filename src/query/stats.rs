//! Live numbers for the page.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use prometheus::core::Collector as _;
use serde::Serialize;
use tokio::sync::Mutex;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;
use utoipa::ToSchema;

use crate::metrics::Metrics;
use crate::query::service::SearchService;

/// Numbers are read at most this often, however many pages ask.
const INTERVAL: Duration = Duration::from_millis(900);
/// Rates are averages over so long.
const WINDOW: Duration = Duration::from_secs(10);
/// The store is asked for its posts at most so often, by each worker; the demo, whose store is its own, every second.
const COUNT_INTERVAL: Duration = Duration::from_secs(10);
const COUNT_INTERVAL_OF_DEMO: Duration = Duration::from_secs(1);
/// A store that counts for longer than this is shown as not answering.
const COUNT_TIMEOUT: Duration = Duration::from_secs(2);

/// The numbers at one moment. Those of ingest are null where no ingest runs in this process: its own `/metrics` has them.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct Snapshot {
    /// The model's id.
    pub model: String,
    /// Live posts in the store, about and a few seconds ago; null while the store does not answer.
    #[schema(required)]
    pub posts: Option<u64>,
    /// Posts indexed each second, over the last 10 s: by the ingest of this process, or else as the store grew.
    pub posts_per_second: f64,
    /// Posts that the ingest of this process has indexed since its start.
    #[schema(required)]
    pub indexed: Option<u64>,
    /// Posts that it has sent to the dead-letter topic.
    #[schema(required)]
    pub dead_lettered: Option<u64>,
    /// Messages that it is behind the end of its partitions.
    #[schema(required)]
    pub lag: Option<i64>,
    /// Searches since the start, from everywhere, whatever their outcome.
    pub searches: u64,
    /// Mean milliseconds of a search since the start; null before the first.
    #[schema(required)]
    pub search_ms: Option<f64>,
}

/// Reads the numbers for all who ask.
pub struct Stats {
    service: Arc<SearchService>,
    history: Mutex<History>,
}

#[derive(Default)]
struct History {
    samples: VecDeque<Sample>,
    latest: Option<(Instant, Snapshot)>,
    count: Count,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Sample {
    at: Instant,
    /// What the rate is the growth of.
    indexed: u64,
}

/// The store's posts, as last counted.
#[derive(Default)]
struct Count {
    asked: Option<Instant>,
    under_way: Option<AbortOnDropHandle<Option<Sample>>>,
    latest: Option<Sample>,
}

impl Count {
    /// What was counted last. Whoever asks waits only where nothing is known; a new count comes with a later question.
    async fn read<F>(&mut self, interval: Duration, count: impl FnOnce() -> F) -> Option<Sample>
    where
        F: Future<Output = Option<u64>> + Send + 'static,
    {
        if self.under_way.is_none() && self.asked.is_none_or(|asked| asked.elapsed() >= interval) {
            self.asked = Some(Instant::now());
            let counted = tokio::time::timeout(COUNT_TIMEOUT, count());
            self.under_way = Some(AbortOnDropHandle::new(tokio::spawn(async move {
                let indexed = counted.await.ok()??;
                Some(Sample { at: Instant::now(), indexed })
            })));
        }
        if let Some(counting) = &mut self.under_way
            && (self.latest.is_none() || counting.is_finished())
        {
            self.latest = counting.await.ok().flatten();
            self.under_way = None;
        }
        self.latest
    }
}

impl Stats {
    /// Numbers of this service, its store and its metrics.
    pub fn new(service: Arc<SearchService>) -> Self {
        Self { service, history: Mutex::default() }
    }

    /// The numbers, at most a second old.
    pub async fn snapshot(&self) -> Snapshot {
        // Held over the first count on purpose: whoever asks meanwhile gets the same numbers, and the store one question.
        let mut history = self.history.lock().await;
        if let Some((read, latest)) = &history.latest
            && read.elapsed() < INTERVAL
        {
            return latest.clone();
        }
        let snapshot = self.read(&mut history).await;
        history.latest = Some((Instant::now(), snapshot.clone()));
        snapshot
    }

    async fn read(&self, history: &mut History) -> Snapshot {
        let metrics = self.service.metrics();
        let lag = ingest_lag(metrics, &self.service.config().requests_topic);
        let ingests_here = lag.is_some() || metrics.posts_consumed.get() > 0;
        let interval = if ingests_here { COUNT_INTERVAL_OF_DEMO } else { COUNT_INTERVAL };
        let store = Arc::clone(self.service.store());
        let posts = history.count.read(interval, async move || store.estimate().await.ok()).await;
        let indexed = ingests_here.then(|| metrics.posts_indexed.get());
        let dead_lettered = ingests_here.then(|| {
            metrics
                .posts_dead_lettered
                .collect()
                .iter()
                .flat_map(|family| family.get_metric())
                .fold(0.0, |sum, metric| sum + metric.get_counter().get_value()) as u64
        });
        let searches = metrics.searches.collect();
        let searches = searches.iter().flat_map(|family| family.get_metric());
        let total = metrics.search_seconds.with_label_values(&["total"]);
        Snapshot {
            model: self.service.model().id.clone(),
            posts: posts.map(|posts| posts.indexed),
            posts_per_second: history.rate(indexed.map(|indexed| Sample { at: Instant::now(), indexed }).or(posts)),
            indexed,
            dead_lettered,
            lag,
            searches: searches.map(|metric| metric.get_counter().get_value()).sum::<f64>() as u64,
            search_ms: (total.get_sample_count() > 0)
                .then(|| 1e3 * total.get_sample_sum() / total.get_sample_count() as f64),
        }
    }
}

impl History {
    fn rate(&mut self, sample: Option<Sample>) -> f64 {
        let Some(sample) = sample else {
            self.samples.clear();
            return 0.0;
        };
        // One older than the window stays, or a page that asks rarely would see no rate at all.
        while self.samples.get(1).is_some_and(|second| sample.at - second.at >= WINDOW) {
            self.samples.pop_front();
        }
        // The store's count is seen several times.
        if self.samples.back() != Some(&sample) {
            self.samples.push_back(sample);
        }
        let first = self.samples[0];
        let seconds = (sample.at - first.at).as_secs_f64();
        if seconds > 0.0 { sample.indexed.saturating_sub(first.indexed) as f64 / seconds } else { 0.0 }
    }
}

/// Messages behind, over the partitions of this process's ingest; `None` where it has none.
fn ingest_lag(metrics: &Metrics, requests_topic: &str) -> Option<i64> {
    let families = metrics.consumer_lag.collect();
    let of_posts = families.iter().flat_map(|family| family.get_metric()).filter(|metric| {
        !metric.get_label().iter().any(|label| label.name() == "topic" && label.value() == requests_topic)
    });
    of_posts.map(|metric| metric.get_gauge().get_value() as i64).reduce(|left, right| left + right)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    fn now(indexed: u64) -> Option<Sample> {
        Some(Sample { at: Instant::now(), indexed })
    }

    #[tokio::test(start_paused = true)]
    async fn the_rate_is_over_the_last_ten_seconds() {
        let mut history = History::default();
        assert_eq!(history.rate(now(1_000)), 0.0);
        for second in 1..=30u64 {
            tokio::time::advance(Duration::from_secs(1)).await;
            let rate = history.rate(now(1_000 + second * 50));
            assert!((rate - 50.0).abs() < 1e-6, "{rate}");
        }
        assert!(history.samples.len() <= 12);
        tokio::time::advance(Duration::from_secs(60)).await;
        history.rate(now(2_500));
        tokio::time::advance(Duration::from_secs(10)).await;
        assert_eq!(history.rate(now(2_500)), 0.0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_store_that_shrinks_or_stops_answering_gives_no_negative_rate() {
        let mut history = History::default();
        history.rate(now(100));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(history.rate(now(40)), 0.0);
        assert_eq!(history.rate(None), 0.0);
        assert_eq!(history.rate(now(100_000)), 0.0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_count_that_is_seen_often_gives_the_rate_of_the_counting() {
        let mut history = History::default();
        for count in 0..4 {
            let sample = now(count * 500);
            for _ in 0..10 {
                let rate = history.rate(sample);
                assert_eq!(rate, if count == 0 { 0.0 } else { 50.0 });
                tokio::time::advance(Duration::from_secs(1)).await;
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_store_counts_every_ten_seconds_and_nobody_waits_for_it_but_the_first() {
        let asked = Arc::new(AtomicU64::new(0));
        let count = |takes: Duration| {
            let asked = Arc::clone(&asked);
            move || async move {
                tokio::time::sleep(takes).await;
                Some(asked.fetch_add(1, Ordering::Relaxed) + 1)
            }
        };
        let mut counts = Count::default();
        let started = Instant::now();
        for second in 1..=25u64 {
            let posts = counts.read(COUNT_INTERVAL, count(Duration::from_millis(1_500))).await;
            // Asked at 0 s, waited for; then at 10 s and at 20 s, each seen with the first question after its answer.
            let expected =
                [12_000, 22_000].iter().filter(|seen| started.elapsed().as_millis() > **seen).count() as u64 + 1;
            assert_eq!(posts.map(|posts| posts.indexed), Some(expected), "{second}: {:?}", started.elapsed());
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        assert_eq!(asked.load(Ordering::Relaxed), 3);
        assert_eq!(started.elapsed(), Duration::from_millis(25_000 + 1_500));
    }

    #[tokio::test(start_paused = true)]
    async fn a_store_that_does_not_answer_is_shown_so() {
        let mut counts = Count::default();
        assert_eq!(counts.read(COUNT_INTERVAL, std::future::pending).await, None);
        tokio::time::advance(COUNT_INTERVAL).await;
        assert_eq!(counts.read(COUNT_INTERVAL, async || Some(7)).await.map(|posts| posts.indexed), Some(7));
    }

    #[test]
    fn lag_of_the_requests_topic_is_not_the_feeds() {
        let metrics = Metrics::new();
        assert_eq!(ingest_lag(&metrics, "search.requests"), None);
        metrics.consumer_lag.with_label_values(&["search.requests", "0"]).set(7);
        assert_eq!(ingest_lag(&metrics, "search.requests"), None);
        metrics.consumer_lag.with_label_values(&["posts", "0"]).set(3);
        metrics.consumer_lag.with_label_values(&["posts", "1"]).set(4);
        assert_eq!(ingest_lag(&metrics, "search.requests"), Some(7));
    }
}
