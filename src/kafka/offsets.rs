//! Which offset of a partition may be committed. Pure: no clock, no Kafka.

use std::collections::BTreeSet;

/// The offsets of one partition that are on their way through the pipeline.
///
/// Offsets may have gaps (compaction, transaction markers), so "the next one" is never computed from a neighbour: the
/// watermark is the lowest offset that is still unsettled, or one past the highest tracked offset where none is.
/// Memory grows with what is unsettled only, however long one slow post holds the watermark back.
#[derive(Debug, Default)]
pub struct OffsetTracker {
    unsettled: BTreeSet<i64>,
    /// The last offset that was handed out; the consumer's position is behind it.
    highest: Option<i64>,
    /// Whether anything was settled, or the beginning set: before that there is nothing to commit.
    moved: bool,
}

impl OffsetTracker {
    /// The next message to be read lies here or behind, and nothing before it is wanted.
    pub fn begin_at(&mut self, offset: i64) {
        self.highest = Some(offset - 1);
        self.moved = true;
    }

    /// A message was handed to the pipeline. An offset at or below an earlier one means that the partition was rewound
    /// (its log was truncated, or it was read again): everything from there on counts as unread.
    pub fn track(&mut self, offset: i64) {
        self.unsettled.insert(offset);
        self.highest = Some(offset);
    }

    /// A message is settled. Returns whether it was waiting: settling twice, or an offset never tracked, is harmless.
    pub fn settle(&mut self, offset: i64) -> bool {
        let was_waiting = self.unsettled.remove(&offset);
        self.moved |= was_waiting;
        was_waiting
    }

    /// The offset to commit, Kafka's way: the next one to read, with everything tracked below it settled. `None` before
    /// anything was settled or the beginning set.
    pub fn watermark(&self) -> Option<i64> {
        let past_highest = self.highest? + 1;
        self.moved.then(|| self.unsettled.first().map_or(past_highest, |lowest| past_highest.min(*lowest)))
    }

    /// Messages that are handed out and not settled.
    pub fn unsettled(&self) -> usize {
        self.unsettled.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Offsets with gaps, and the order in which a pipeline settles them.
    fn offsets_and_order() -> impl Strategy<Value = (Vec<i64>, Vec<i64>)> {
        prop::collection::btree_set(0_i64..500, 1..60).prop_flat_map(|offsets| {
            let offsets = offsets.into_iter().collect::<Vec<_>>();
            (Just(offsets.clone()), Just(offsets).prop_shuffle())
        })
    }

    #[test]
    fn a_beginning_is_committed_before_any_message_and_never_passed_unsettled() {
        let mut tracker = OffsetTracker::default();
        tracker.begin_at(40);
        assert_eq!(tracker.watermark(), Some(40));
        tracker.track(42);
        assert_eq!(tracker.watermark(), Some(42), "41 is a gap");
        tracker.track(43);
        tracker.settle(43);
        assert_eq!(tracker.watermark(), Some(42));
        tracker.settle(42);
        assert_eq!(tracker.watermark(), Some(44));
    }

    proptest! {
        #[test]
        fn nothing_unsettled_is_ever_below_the_watermark((offsets, order) in offsets_and_order(), ahead in 1_usize..60) {
            let mut tracker = OffsetTracker::default();
            let mut handed_out = offsets.iter();
            for offset in handed_out.by_ref().take(ahead) {
                tracker.track(*offset);
            }
            let mut tracked = offsets[..ahead.min(offsets.len())].to_vec();
            let mut settled = BTreeSet::new();
            let mut last = None;
            for offset in &order {
                if !tracked.contains(offset) {
                    prop_assert!(!tracker.settle(*offset), "an offset that was never handed out cannot be waiting");
                    continue;
                }
                tracker.settle(*offset);
                settled.insert(*offset);
                if let Some(next) = handed_out.next() {
                    tracker.track(*next);
                    tracked.push(*next);
                }
                let watermark = tracker.watermark().expect("something is settled");
                let unsettled = tracked.iter().filter(|offset| !settled.contains(*offset)).min();
                let past_last = tracked.iter().max().map(|last| last + 1);
                prop_assert_eq!(Some(watermark), unsettled.copied().or(past_last));
                prop_assert!(last.is_none_or(|last| last <= watermark), "the watermark went back");
                prop_assert_eq!(tracker.unsettled(), tracked.len() - settled.len());
                last = Some(watermark);
            }
        }

        #[test]
        fn all_settled_gives_one_past_the_last((offsets, order) in offsets_and_order()) {
            let mut tracker = OffsetTracker::default();
            offsets.iter().for_each(|offset| tracker.track(*offset));
            for offset in order.iter().chain(&order) {
                tracker.settle(*offset);
            }
            prop_assert_eq!(tracker.watermark(), offsets.last().map(|last| last + 1));
            prop_assert_eq!(tracker.unsettled(), 0);
        }
    }

    #[test]
    fn nothing_settled_means_nothing_to_commit() {
        let mut tracker = OffsetTracker::default();
        assert_eq!(tracker.watermark(), None);
        tracker.track(7);
        assert_eq!(tracker.watermark(), None);
        assert!(!tracker.settle(6));
        assert_eq!(tracker.watermark(), None);
    }

    #[test]
    fn one_slow_post_holds_the_watermark_and_no_memory() {
        let mut tracker = OffsetTracker::default();
        (0..10_000).for_each(|offset| tracker.track(offset));
        (1..10_000).for_each(|offset| assert!(tracker.settle(offset)));
        assert_eq!(tracker.watermark(), Some(0));
        assert_eq!(tracker.unsettled(), 1);
        assert!(tracker.settle(0));
        assert_eq!(tracker.watermark(), Some(10_000));
    }

    #[test]
    fn a_truncated_log_takes_the_watermark_back() {
        let mut tracker = OffsetTracker::default();
        tracker.track(100);
        tracker.settle(100);
        assert_eq!(tracker.watermark(), Some(101));
        tracker.track(50);
        assert_eq!(tracker.watermark(), Some(50));
        tracker.settle(50);
        assert_eq!(tracker.watermark(), Some(51));
    }
}
