//! Places for searches: a fixed number run at a time, and under overload those wait least that are answered at all.
//!
//! Of those that wait for a place, the newest gets the next one. While there are places enough, that changes nothing; beyond
//! that, first come, first served would let everyone wait until nobody wants the answer any more, whereas so whoever is let
//! in has hardly waited, and the oldest are refused (the adaptive LIFO of Ben Maurer, "Fail at Scale", ACM Queue 13(8), 2015,
//! without its switch). Bulk work (requests over Kafka, batches) has a queue of its own, first come, first served, at most half
//! of the places, and every second place for which both wait.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;

/// Waiting searches for each place; of more, the oldest is refused at once.
const WAITING_PER_PLACE: usize = 2;

/// How work waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A search that somebody waits for.
    Single,
    /// One of many, of a batch or of the requests topic.
    Bulk,
}

/// No place came free in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refused;

/// The places of one service; cheap to clone.
#[derive(Clone)]
pub struct Places(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    total: usize,
}

struct State {
    free: usize,
    bulk_running: usize,
    /// Of both kinds waiting, bulk is next.
    bulk_is_next: bool,
    /// Oldest first.
    single: VecDeque<oneshot::Sender<Place>>,
    bulk: VecDeque<oneshot::Sender<Place>>,
}

/// A place; it is free again when this is dropped.
pub struct Place {
    /// `None`: given back already.
    shared: Option<Arc<Shared>>,
    kind: Kind,
}

impl Places {
    /// `total` places, at least one.
    pub fn new(total: usize) -> Self {
        let state =
            State { free: total, bulk_running: 0, bulk_is_next: false, single: VecDeque::new(), bulk: VecDeque::new() };
        Self(Arc::new(Shared { state: Mutex::new(state), total }))
    }

    /// A place, at once or within `max_wait` (`None`: however long it takes).
    ///
    /// # Errors
    /// None came free in time, or too many others came later.
    pub async fn take(&self, kind: Kind, max_wait: Option<Duration>) -> Result<Place, Refused> {
        let waiting = {
            let mut state = self.0.lock();
            if state.may_start(kind, self.0.total) {
                state.start(kind);
                return Ok(self.0.place(kind));
            }
            state.wait(kind, self.0.total)
        };
        let place = match max_wait {
            None => waiting.await.ok(),
            Some(max_wait) => tokio::time::timeout(max_wait, waiting).await.ok().and_then(Result::ok),
        };
        place.ok_or(Refused)
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing between two statements under the lock can panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn place(self: &Arc<Self>, kind: Kind) -> Place {
        Place { shared: Some(Arc::clone(self)), kind }
    }

    fn hand_on(self: &Arc<Self>) {
        loop {
            let Some((kind, waiting)) = self.lock().next(self.total) else { return };
            // Outside the lock: of a waiter that is gone, the place comes back right here.
            let Err(mut place) = waiting.send(self.place(kind)) else { return };
            place.shared = None;
            self.lock().end(kind);
        }
    }
}

impl State {
    fn may_start(&self, kind: Kind, total: usize) -> bool {
        self.free > 0 && (kind == Kind::Single || self.bulk_running < total.div_ceil(2))
    }

    fn start(&mut self, kind: Kind) {
        self.free -= 1;
        self.bulk_running += usize::from(kind == Kind::Bulk);
    }

    fn end(&mut self, kind: Kind) {
        self.free += 1;
        self.bulk_running -= usize::from(kind == Kind::Bulk);
    }

    fn wait(&mut self, kind: Kind, total: usize) -> oneshot::Receiver<Place> {
        let (sender, receiver) = oneshot::channel();
        match kind {
            Kind::Bulk => self.bulk.push_back(sender),
            Kind::Single => {
                self.single.push_back(sender);
                while self.single.len() > WAITING_PER_PLACE * total
                    || self.single.front().is_some_and(oneshot::Sender::is_closed)
                {
                    self.single.pop_front();
                }
            }
        }
        receiver
    }

    /// Who gets a free place; it counts as started.
    fn next(&mut self, total: usize) -> Option<(Kind, oneshot::Sender<Place>)> {
        let bulk_waits = !self.bulk.is_empty() && self.may_start(Kind::Bulk, total);
        let single_waits = !self.single.is_empty() && self.may_start(Kind::Single, total);
        let (kind, waiting) = match (single_waits, bulk_waits) {
            (false, false) => return None,
            (true, false) => (Kind::Single, self.single.pop_back()?),
            (false, true) => (Kind::Bulk, self.bulk.pop_front()?),
            (true, true) => {
                self.bulk_is_next = !self.bulk_is_next;
                if self.bulk_is_next {
                    (Kind::Bulk, self.bulk.pop_front()?)
                } else {
                    (Kind::Single, self.single.pop_back()?)
                }
            }
        };
        self.start(kind);
        Some((kind, waiting))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(shared) = self.shared.take() {
            shared.lock().end(self.kind);
            shared.hand_on();
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;
    use futures::future::BoxFuture;

    use super::*;

    type Taking = BoxFuture<'static, Result<Place, Refused>>;

    /// Someone who waits in line already.
    fn waiting(places: &Places, kind: Kind, max_wait: Option<Duration>) -> Taking {
        let places = places.clone();
        let mut taking = async move { places.take(kind, max_wait).await }.boxed();
        assert!((&mut taking).now_or_never().is_none(), "nothing is free");
        taking
    }

    fn now(taking: &mut Taking) -> Option<Result<Place, Refused>> {
        taking.now_or_never()
    }

    fn got(taking: &mut Taking) -> Place {
        now(taking).expect("is told").unwrap_or_else(|Refused| panic!("is let in"))
    }

    async fn take(places: &Places, kind: Kind) -> Place {
        places.take(kind, None).now_or_never().expect("at once").unwrap_or_else(|Refused| panic!("is let in"))
    }

    #[tokio::test(start_paused = true)]
    async fn the_newest_gets_the_next_place_and_the_oldest_is_refused_in_time() {
        let places = Places::new(1);
        let first = take(&places, Kind::Single).await;
        let wait = Some(Duration::from_secs(1));
        let (mut old, mut new) = (waiting(&places, Kind::Single, wait), waiting(&places, Kind::Single, wait));
        drop(first);
        let place = got(&mut new);
        assert!(now(&mut old).is_none());
        tokio::time::advance(Duration::from_millis(1001)).await;
        assert!(matches!(now(&mut old), Some(Err(Refused))));
        drop(place);
        take(&places, Kind::Single).await;
    }

    #[tokio::test]
    async fn of_too_many_the_oldest_is_refused_at_once() {
        let places = Places::new(1);
        let _first = take(&places, Kind::Single).await;
        let mut all = (0..=WAITING_PER_PLACE).map(|_| waiting(&places, Kind::Single, None)).collect::<Vec<_>>();
        assert!(matches!(now(&mut all[0]), Some(Err(Refused))));
        assert!(now(&mut all[1]).is_none());
    }

    #[tokio::test]
    async fn bulk_has_half_of_the_places_and_every_second_that_both_wait_for() {
        let places = Places::new(4);
        let mut running = vec![take(&places, Kind::Bulk).await, take(&places, Kind::Bulk).await];
        let mut bulk = (0..3).map(|_| waiting(&places, Kind::Bulk, None)).collect::<Vec<_>>();
        running.extend([take(&places, Kind::Single).await, take(&places, Kind::Single).await]);
        let mut single = (0..3).map(|_| waiting(&places, Kind::Single, None)).collect::<Vec<_>>();
        for kind in [Kind::Bulk, Kind::Single, Kind::Bulk, Kind::Single] {
            drop(running.remove(0));
            let place = match kind {
                Kind::Bulk => got(&mut bulk.remove(0)),
                Kind::Single => got(&mut single.pop().expect("waits")),
            };
            assert!(bulk.iter_mut().chain(&mut single).all(|taking| now(taking).is_none()), "one for one");
            running.push(place);
        }
    }

    #[tokio::test]
    async fn a_place_for_someone_who_is_gone_goes_to_the_next() {
        let places = Places::new(1);
        for (kind, gone_before) in
            [(Kind::Single, true), (Kind::Single, false), (Kind::Bulk, true), (Kind::Bulk, false)]
        {
            let first = take(&places, kind).await;
            let (one, two) = (waiting(&places, kind, None), waiting(&places, kind, None));
            let (leaves, mut stays) = if kind == Kind::Single { (two, one) } else { (one, two) };
            if gone_before {
                drop(leaves);
                drop(first);
            } else {
                drop(first);
                assert!(now(&mut stays).is_none());
                drop(leaves);
            }
            drop(got(&mut stays));
        }
        take(&places, Kind::Single).await;
        assert_eq!(Arc::strong_count(&places.0), 1, "no place is left over");
    }
}
