//! Micro-batching, pure: what waits, and when a batch is due. No clock and no thread of its own.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::encode::worker::Priority;

/// Collects items of one tower into batches: by count, or by the age of the oldest. Queries do not wait for a batch to
/// fill, and do not share one with the feed, whose batch would take many times as long.
#[derive(Debug)]
pub struct Batcher<T> {
    queries: VecDeque<(Instant, T)>,
    feed: VecDeque<(Instant, T)>,
    max_items: usize,
    max_wait: Duration,
}

/// Items to be encoded together.
#[derive(Debug)]
pub struct Batch<T> {
    /// At least one, at most `max_items`, oldest first.
    pub items: Vec<T>,
    /// How long the oldest waited.
    pub waited: Duration,
}

impl<T> Batcher<T> {
    /// Batches of at most `max_items`; the feed's start when full or when the oldest item has waited `max_wait`.
    pub fn new(max_items: usize, max_wait: Duration) -> Self {
        Self { queries: VecDeque::new(), feed: VecDeque::new(), max_items, max_wait }
    }

    /// Adds an item that arrived at `now`.
    pub fn push(&mut self, item: T, priority: Priority, now: Instant) {
        match priority {
            Priority::Query => self.queries.push_back((now, item)),
            Priority::Feed => self.feed.push_back((now, item)),
        }
    }

    /// Whether a query waits.
    pub fn has_query(&self) -> bool {
        !self.queries.is_empty()
    }

    /// Items that wait.
    pub fn len(&self) -> usize {
        self.queries.len() + self.feed.len()
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// When the next batch is due; in the past or present: it is due now. `None`: nothing waits.
    pub fn due(&self) -> Option<Instant> {
        if let Some((arrived, _)) = self.queries.front() {
            return Some(*arrived);
        }
        let (oldest, _) = self.feed.front()?;
        Some(if self.feed.len() >= self.max_items { *oldest } else { *oldest + self.max_wait })
    }

    /// The next batch, if one is due at `now`.
    pub fn take(&mut self, now: Instant) -> Option<Batch<T>> {
        if self.due()? > now {
            return None;
        }
        self.take_at(now)
    }

    /// The next batch, due or not: for a worker that empties the queue before it ends.
    pub fn take_any(&mut self) -> Option<Batch<T>> {
        self.take_at(Instant::now())
    }

    fn take_at(&mut self, now: Instant) -> Option<Batch<T>> {
        let queue = if self.queries.is_empty() { &mut self.feed } else { &mut self.queries };
        let waited = now.saturating_duration_since(queue.front()?.0);
        let count = queue.len().min(self.max_items);
        Some(Batch { items: queue.drain(..count).map(|(_, item)| item).collect(), waited })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const WAIT: Duration = Duration::from_millis(20);

    #[test]
    fn feed_waits_until_full_or_old() {
        let start = Instant::now();
        let mut batcher = Batcher::new(3, WAIT);
        batcher.push(1, Priority::Feed, start);
        batcher.push(2, Priority::Feed, start + WAIT / 2);
        assert!(batcher.take(start + WAIT - Duration::from_nanos(1)).is_none());
        let batch = batcher.take(start + WAIT).expect("the oldest waited long enough");
        assert_eq!((batch.items, batch.waited), (vec![1, 2], WAIT));
        for item in 3..7 {
            batcher.push(item, Priority::Feed, start);
        }
        assert_eq!(batcher.take(start).expect("full").items, [3, 4, 5]);
        assert!(batcher.take(start).is_none(), "the fourth waits for company");
    }

    #[test]
    fn query_goes_first_at_once_and_alone() {
        let start = Instant::now();
        let mut batcher = Batcher::new(2, WAIT);
        batcher.push("feed 1", Priority::Feed, start);
        batcher.push("feed 2", Priority::Feed, start);
        batcher.push("query", Priority::Query, start);
        assert_eq!(batcher.take(start).expect("due").items, ["query"]);
        assert_eq!(batcher.take(start).expect("full").items, ["feed 1", "feed 2"]);
    }

    proptest! {
        #[test]
        fn every_item_leaves_once_in_order_within_its_wait(
            steps in prop::collection::vec((0u64..30, any::<bool>()), 1..200),
            max_items in 1usize..8,
        ) {
            let start = Instant::now();
            let mut batcher = Batcher::new(max_items, WAIT);
            let (mut now, mut left) = (start, [Vec::new(), Vec::new()]);
            let mut check = |batcher: &mut Batcher<(usize, Priority, Instant)>, now: Instant| {
                while let Some(batch) = batcher.take(now) {
                    prop_assert!(!batch.items.is_empty() && batch.items.len() <= max_items);
                    for (index, priority, arrived) in batch.items {
                        prop_assert!(now.duration_since(arrived) <= WAIT + Duration::from_millis(30));
                        left[usize::from(priority == Priority::Query)].push(index);
                    }
                }
                Ok(())
            };
            for (index, (pause, query)) in steps.iter().enumerate() {
                now += Duration::from_millis(*pause);
                check(&mut batcher, now)?;
                let priority = if *query { Priority::Query } else { Priority::Feed };
                batcher.push((index, priority, now), priority, now);
            }
            check(&mut batcher, now + WAIT)?;
            prop_assert!(batcher.is_empty());
            prop_assert!(left.iter().all(|indexes| indexes.is_sorted()));
            prop_assert_eq!(left[0].len() + left[1].len(), steps.len());
        }
    }
}
