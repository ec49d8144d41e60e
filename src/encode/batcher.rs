//! Micro-batching, pure: what waits, and when a batch is due. No clock and no thread of its own.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::encode::worker::Priority;

/// Collects items of one tower into batches: by count, or by the age of the oldest. Queries do not wait for a batch to
/// fill, and do not share one with the feed, whose batch would take many times as long. Where more of the feed waits than
/// one batch holds, the oldest takes along those that are nearest to it in length: a batch is padded to its longest.
#[derive(Debug)]
pub struct Batcher<T> {
    queries: VecDeque<Waiting<T>>,
    feed: VecDeque<Waiting<T>>,
    pushed: u64,
    max_items: usize,
    max_wait: Duration,
}

#[derive(Debug)]
struct Waiting<T> {
    /// Counts the items: instants may be equal.
    order: u64,
    arrived: Instant,
    length: usize,
    item: T,
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
        Self { queries: VecDeque::new(), feed: VecDeque::new(), pushed: 0, max_items, max_wait }
    }

    /// Adds an item that arrived at `now`. `length` is a text's in tokens, and the same for all pictures.
    pub fn push(&mut self, item: T, length: usize, priority: Priority, now: Instant) {
        let waiting = Waiting { order: self.pushed, arrived: now, length, item };
        self.pushed += 1;
        match priority {
            Priority::Query => self.queries.push_back(waiting),
            Priority::Feed => self.feed.push_back(waiting),
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
        if let Some(query) = self.queries.front() {
            return Some(query.arrived);
        }
        let oldest = self.feed.front()?.arrived;
        Some(if self.feed.len() >= self.max_items { oldest } else { oldest + self.max_wait })
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
        let max_items = self.max_items;
        let queue = if self.queries.is_empty() { &mut self.feed } else { &mut self.queries };
        let oldest = queue.front()?;
        let (waited, length) = (now.saturating_duration_since(oldest.arrived), oldest.length);
        let count = queue.len().min(max_items);
        let choose = queue.len() > count && queue.iter().any(|waiting| waiting.length != length);
        if choose {
            // The oldest is nearest to itself; of those equally near, the older ones go.
            queue.make_contiguous().sort_by_key(|waiting| (waiting.length.abs_diff(length), waiting.order));
        }
        let mut taken = queue.drain(..count).collect::<Vec<_>>();
        if choose {
            taken.sort_by_key(|waiting| waiting.order);
            queue.make_contiguous().sort_by_key(|waiting| waiting.order);
        }
        Some(Batch { items: taken.into_iter().map(|waiting| waiting.item).collect(), waited })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    const WAIT: Duration = Duration::from_millis(20);

    #[test]
    fn feed_waits_until_full_or_old() {
        let start = Instant::now();
        let mut batcher = Batcher::new(3, WAIT);
        batcher.push(1, 0, Priority::Feed, start);
        batcher.push(2, 0, Priority::Feed, start + WAIT / 2);
        assert!(batcher.take(start + WAIT - Duration::from_nanos(1)).is_none());
        let batch = batcher.take(start + WAIT).expect("the oldest waited long enough");
        assert_eq!((batch.items, batch.waited), (vec![1, 2], WAIT));
        for item in 3..7 {
            batcher.push(item, 0, Priority::Feed, start);
        }
        assert_eq!(batcher.take(start).expect("full").items, [3, 4, 5]);
        assert!(batcher.take(start).is_none(), "the fourth waits for company");
    }

    #[test]
    fn query_goes_first_at_once_and_alone() {
        let start = Instant::now();
        let mut batcher = Batcher::new(2, WAIT);
        batcher.push("feed 1", 0, Priority::Feed, start);
        batcher.push("feed 2", 0, Priority::Feed, start);
        batcher.push("query", 0, Priority::Query, start);
        assert_eq!(batcher.take(start).expect("due").items, ["query"]);
        assert_eq!(batcher.take(start).expect("full").items, ["feed 1", "feed 2"]);
    }

    #[test]
    fn texts_of_similar_length_leave_together() {
        let start = Instant::now();
        let mut batcher = Batcher::new(3, WAIT);
        for (item, length) in [("a", 10), ("b", 52), ("c", 11), ("d", 50), ("e", 9), ("f", 10)] {
            batcher.push(item, length, Priority::Feed, start);
        }
        assert_eq!(batcher.take(start).expect("full").items, ["a", "c", "f"]);
        assert_eq!(batcher.take(start).expect("full").items, ["b", "d", "e"]);
    }

    proptest! {
        #[test]
        fn every_item_leaves_once_and_the_oldest_with_the_next_batch(
            steps in prop::collection::vec((0u64..30, 2_usize..53, any::<bool>()), 1..200),
            max_items in 1usize..8,
        ) {
            let start = Instant::now();
            let mut batcher = Batcher::new(max_items, WAIT);
            let (mut now, mut waiting) = (start, [BTreeSet::new(), BTreeSet::new()]);
            let check = |batcher: &mut Batcher<(usize, Priority, Instant)>, waiting: &mut [BTreeSet<usize>; 2], now| {
                while let Some(batch) = batcher.take(now) {
                    prop_assert!(!batch.items.is_empty() && batch.items.len() <= max_items);
                    prop_assert!(batch.items.is_sorted_by_key(|(index, ..)| *index));
                    let kind = usize::from(batch.items[0].1 == Priority::Query);
                    prop_assert_eq!(Some(batch.items[0].0), waiting[kind].first().copied());
                    for (index, _, arrived) in batch.items {
                        prop_assert!(now.duration_since(arrived) <= WAIT + Duration::from_millis(30));
                        prop_assert!(waiting[kind].remove(&index), "left twice");
                    }
                }
                Ok(())
            };
            for (index, (pause, length, query)) in steps.iter().enumerate() {
                now += Duration::from_millis(*pause);
                check(&mut batcher, &mut waiting, now)?;
                let priority = if *query { Priority::Query } else { Priority::Feed };
                batcher.push((index, priority, now), *length, priority, now);
                waiting[usize::from(*query)].insert(index);
            }
            check(&mut batcher, &mut waiting, now + WAIT)?;
            prop_assert!(batcher.is_empty());
            prop_assert!(waiting.iter().all(BTreeSet::is_empty));
        }
    }
}
