//! A message on its way through the pipeline, with the two things that must not be forgotten: its place among the
//! offsets of its partition, and its share of the memory that may be in flight.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use prometheus::IntGauge;
use tokio_util::sync::CancellationToken;

use super::offsets::OffsetTracker;
use crate::traces::Span;

/// Where a message lies.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Position {
    /// The topic.
    pub topic: Arc<str>,
    /// The partition, from 0.
    pub partition: i32,
    /// The offset in the partition.
    pub offset: i64,
}

impl std::fmt::Display for Position {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{}[{}]@{}", self.topic, self.partition, self.offset)
    }
}

/// A message, as it came.
///
/// [`Envelope::settle`] is the only way to say that it is dealt with. An envelope that is dropped without it holds back
/// the commits of its partition, so that its message comes again after a restart or a rebalance.
#[derive(Debug)]
#[must_use = "an envelope that is dropped without settle() holds back the commits of its partition"]
pub struct Envelope {
    /// The key, byte for byte.
    pub key: Option<Vec<u8>>,
    /// The payload, byte for byte; `None` is a tombstone. It stays until the envelope goes: even the last stage may have
    /// to send it to the dead letters. Clones share the memory.
    pub payload: Option<Bytes>,
    /// The headers in order; names may repeat. Kafka defines names as UTF-8: bytes that are not become U+FFFD.
    pub headers: Vec<(String, Option<Vec<u8>>)>,
    /// The broker's or producer's time of the message.
    pub timestamp: Option<DateTime<Utc>>,
    /// Where it lies.
    pub position: Position,
    /// Continues the trace of its producer: from here to the settling.
    pub span: Span,
    pub(super) claim: Claim,
}

impl Envelope {
    /// The message is dealt with for good: its point is durable, or its dead letter was acknowledged.
    pub fn settle(mut self) {
        self.span.end();
        self.claim.settled = true;
    }

    /// Cancelled when the partition has gone with this message unsettled: whoever owns it next reads the message again, so
    /// that waiting on for what it needs only takes room.
    pub fn departed(&self) -> CancellationToken {
        self.claim.ownership.departed.clone()
    }

    /// The value of the last header of this name.
    pub fn header(&self, name: &str) -> Option<&[u8]> {
        self.headers.iter().rev().find(|(known, _)| known == name).and_then(|(_, value)| value.as_deref())
    }
}

/// What a header takes beside its bytes: its place in the list, and two allocations.
const HEADER_OVERHEAD: usize = std::mem::size_of::<(String, Option<Vec<u8>>)>() + 2 * 16;

/// Bytes that count against the budget.
pub(super) fn size_of(key: Option<&[u8]>, payload: Option<&[u8]>, headers: &[(String, Option<Vec<u8>>)]) -> u64 {
    let headers = headers.iter().map(|(name, value)| HEADER_OVERHEAD + name.len() + value.as_ref().map_or(0, Vec::len));
    let headers = headers.sum::<usize>();
    (key.map_or(0, <[u8]>::len) + payload.map_or(0, <[u8]>::len) + headers) as u64
}

/// An envelope's hold on its partition and on the budget; dropping it gives both back.
#[derive(Debug)]
pub(super) struct Claim {
    ownership: Arc<Ownership>,
    offset: i64,
    settled: bool,
    // After `ownership` is told, so that who waits for room sees the settled offset too.
    _permit: Permit,
}

impl Claim {
    pub(super) fn new(ownership: Arc<Ownership>, offset: i64, permit: Permit) -> Self {
        ownership.lock().hand_out(offset);
        Self { ownership, offset, settled: false, _permit: permit }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.ownership.lock().take_back(self.offset, self.settled);
    }
}

/// One period in which this process owns a partition. Envelopes point at the period they were consumed in: when the
/// partition comes back after a rebalance it gets a new one, and late settles of the old one touch nothing.
#[derive(Debug, Default)]
pub(super) struct Ownership {
    progress: Mutex<Progress>,
    departed: CancellationToken,
}

#[derive(Debug, Default)]
pub(super) struct Progress {
    offsets: OffsetTracker,
    /// Envelopes that exist; unsettled ones that were dropped are no longer waited for.
    live: usize,
    /// Envelopes settled.
    pub settled: u64,
    /// What the broker acknowledged as committed.
    pub acknowledged: Option<i64>,
    /// Where this period began, for the lag of a partition in which nothing is settled yet.
    pub began_at: Option<i64>,
}

impl Ownership {
    pub(super) fn lock(&self) -> MutexGuard<'_, Progress> {
        // The sections below do plain arithmetic: a poisoned lock has no half-done state to hide.
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The partition has gone, and nothing of this period can be committed any more.
    pub(super) fn depart(&self) {
        self.departed.cancel();
    }
}

impl Progress {
    /// The period starts there by `kafka.start`, which is worth a commit: where a group starts is decided once.
    pub(super) fn begin_at(&mut self, offset: i64) {
        self.began_at = Some(offset);
        self.offsets.begin_at(offset);
    }

    fn hand_out(&mut self, offset: i64) {
        self.offsets.track(offset);
        self.live += 1;
    }

    fn take_back(&mut self, offset: i64, settled: bool) {
        self.live -= 1;
        if settled && self.offsets.settle(offset) {
            self.settled += 1;
        }
    }

    /// Whether no envelope of this period is left in the pipeline.
    pub(super) fn is_drained(&self) -> bool {
        self.live == 0
    }

    /// Messages handed out and not settled.
    pub(super) fn unsettled(&self) -> usize {
        self.offsets.unsettled()
    }

    /// The next offset to read, with everything before it settled.
    pub(super) fn watermark(&self) -> Option<i64> {
        self.offsets.watermark()
    }

    /// What is settled and not yet acknowledged as committed.
    pub(super) fn to_commit(&self) -> Option<i64> {
        self.watermark().filter(|watermark| self.acknowledged != Some(*watermark))
    }
}

/// How much may be in flight between the source and the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InflightLimits {
    /// Messages.
    pub posts: usize,
    /// Bytes of their keys, payloads and headers.
    pub bytes: u64,
}

/// What is in flight, against the limits.
#[derive(Debug)]
pub(super) struct Inflight {
    limits: InflightLimits,
    used: Mutex<Used>,
    changed: Condvar,
    posts_gauge: IntGauge,
    bytes_gauge: IntGauge,
}

#[derive(Debug, Default)]
struct Used {
    posts: usize,
    bytes: u64,
}

impl Inflight {
    pub(super) fn new(limits: InflightLimits, posts_gauge: IntGauge, bytes_gauge: IntGauge) -> Arc<Self> {
        Arc::new(Self { limits, used: Mutex::default(), changed: Condvar::new(), posts_gauge, bytes_gauge })
    }

    fn lock(&self) -> MutexGuard<'_, Used> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A permit for a message of `bytes`, if there is room. A message larger than the whole budget passes when it is
    /// alone, or it could never pass.
    pub(super) fn try_acquire(self: &Arc<Self>, bytes: u64) -> Option<Permit> {
        let mut used = self.lock();
        if !self.has_room(&used, bytes) {
            return None;
        }
        used.posts += 1;
        used.bytes += bytes;
        self.posts_gauge.inc();
        self.bytes_gauge.add(bytes as i64);
        Some(Permit { inflight: self.clone(), bytes })
    }

    /// Waits until a message of `bytes` may have room, [`Self::wake`] is called, or the time is over.
    pub(super) fn wait_for_room(&self, bytes: u64, timeout: Duration) {
        let used = self.lock();
        if !self.has_room(&used, bytes) {
            drop(self.changed.wait_timeout(used, timeout).unwrap_or_else(PoisonError::into_inner));
        }
    }

    /// Whether at most half of both limits is used.
    pub(super) fn is_half_free(&self) -> bool {
        let used = self.lock();
        used.posts <= self.limits.posts / 2 && used.bytes <= self.limits.bytes / 2
    }

    /// Ends the current wait for room.
    pub(super) fn wake(&self) {
        self.changed.notify_all();
    }

    fn has_room(&self, used: &Used, bytes: u64) -> bool {
        used.posts == 0 || (used.posts < self.limits.posts && used.bytes.saturating_add(bytes) <= self.limits.bytes)
    }
}

/// A share of the budget; given back when dropped.
#[derive(Debug)]
pub(super) struct Permit {
    inflight: Arc<Inflight>,
    bytes: u64,
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut used = self.inflight.lock();
        used.posts -= 1;
        used.bytes -= self.bytes;
        drop(used);
        self.inflight.posts_gauge.dec();
        self.inflight.bytes_gauge.sub(self.bytes as i64);
        self.inflight.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inflight(posts: usize, bytes: u64) -> Arc<Inflight> {
        let gauge = |name: &str| IntGauge::new(name, "test").unwrap();
        Inflight::new(InflightLimits { posts, bytes }, gauge("posts"), gauge("bytes"))
    }

    #[test]
    fn limits_hold_by_count_and_by_bytes() {
        let inflight = inflight(2, 100);
        let first = inflight.try_acquire(60).expect("room for the first");
        assert!(inflight.try_acquire(41).is_none(), "101 bytes exceed the budget");
        let second = inflight.try_acquire(40).expect("exactly the budget");
        assert!(inflight.try_acquire(0).is_none(), "a third exceeds the count");
        assert_eq!((inflight.posts_gauge.get(), inflight.bytes_gauge.get()), (2, 100));
        drop(first);
        assert!(inflight.try_acquire(60).is_some());
        drop(second);
        assert_eq!((inflight.posts_gauge.get(), inflight.bytes_gauge.get()), (0, 0));
        assert!(inflight.is_half_free());
    }

    #[test]
    fn many_small_headers_count_as_the_memory_that_they_take() {
        let headers = vec![(String::new(), None); 10_000];
        let list = size_of_val(headers.as_slice()) as u64;
        assert!(size_of(None, None, &headers) >= list, "{} of {list}", size_of(None, None, &headers));
    }

    #[test]
    fn a_message_above_the_whole_budget_passes_alone() {
        let inflight = inflight(10, 100);
        let small = inflight.try_acquire(1).expect("room");
        assert!(inflight.try_acquire(1_000).is_none(), "not beside another");
        drop(small);
        let large = inflight.try_acquire(1_000).expect("alone");
        assert!(inflight.try_acquire(1).is_none());
        drop(large);
    }

    #[test]
    fn late_settles_of_an_earlier_ownership_touch_nothing() {
        let inflight = inflight(10, 100);
        let claim = |ownership: &Arc<Ownership>, offset| {
            Claim::new(ownership.clone(), offset, inflight.try_acquire(1).expect("room"))
        };
        let earlier = Arc::new(Ownership::default());
        let mut late = claim(&earlier, 5);
        let now = Arc::new(Ownership::default());
        let again = claim(&now, 5);
        late.settled = true;
        drop(late);
        assert_eq!(earlier.lock().watermark(), Some(6));
        assert_eq!(now.lock().watermark(), None);
        drop(again);
        assert_eq!(now.lock().watermark(), None, "dropped is not settled");
        assert!(now.lock().is_drained());
        assert_eq!(now.lock().unsettled(), 1);
    }
}
