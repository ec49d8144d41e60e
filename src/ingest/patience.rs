//! How long a picture is waited for. Pure: the caller tells the time.
//!
//! A host that is out of order only delays (design 1.3). It is given up after `images.give_up_after`, and only where
//! others were reached in that time: while no picture at all can be fetched, it is this worker's network that is down.
//! Of a host that is given up each further post is tried once, until one gets an answer.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Hosts remembered as failing; further ones are judged post by post.
const MAX_PLACES: usize = 4096;
/// Failures in a row before an outage is told: one picture that fails on a busy host is none.
const TOLD_AFTER: u32 = 3;

/// Where pictures come from.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Place {
    /// A host, with its port where it is named.
    Host(String),
    /// `images.root`.
    Root,
}

impl std::fmt::Display for Place {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Place::Host(host) => write!(formatter, "host {host}"),
            Place::Root => formatter.write_str("images.root"),
        }
    }
}

/// What a failure means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Failure {
    /// Waiting longer makes no sense.
    pub give_up: bool,
    /// An outage begins here, and nobody was told of it yet.
    pub is_news: bool,
}

/// What is known of all places.
#[derive(Debug)]
pub struct Patience {
    limit: Duration,
    seen: Mutex<Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    failing: HashMap<Place, Failing>,
    host_answered: Option<Instant>,
    root_answered: Option<Instant>,
}

#[derive(Debug)]
struct Failing {
    since: Instant,
    failures: u32,
}

impl Patience {
    /// Gives up after `limit`.
    pub fn new(limit: Duration) -> Self {
        Self { limit, seen: Mutex::default() }
    }

    /// A place answered for good: with a picture, or with word that there is none. Tells how long an outage was that
    /// ends here, where it was told of.
    pub fn answered(&self, place: &Place, now: Instant) -> Option<Duration> {
        let mut seen = self.seen();
        match place {
            Place::Host(_) => seen.host_answered = Some(now),
            Place::Root => seen.root_answered = Some(now),
        }
        let failing = seen.failing.remove(place)?;
        (failing.failures >= TOLD_AFTER).then(|| now - failing.since)
    }

    /// A place failed for now. `first`: when it first failed for this post.
    pub fn failed(&self, place: &Place, first: Instant, now: Instant) -> Failure {
        let mut seen = self.seen();
        let answered = match place {
            Place::Host(_) => seen.host_answered,
            Place::Root => seen.root_answered,
        };
        let (mut since, mut is_news) = (first, false);
        if seen.failing.contains_key(place) || seen.failing.len() < MAX_PLACES {
            let failing = seen.failing.entry(place.clone()).or_insert(Failing { since: now, failures: 0 });
            failing.failures = failing.failures.saturating_add(1);
            is_news = failing.failures == TOLD_AFTER;
            since = since.min(failing.since);
        }
        let others_answered = answered.is_some_and(|answered| answered > since);
        Failure { give_up: others_answered && now.saturating_duration_since(since) >= self.limit, is_news }
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        // Plain bookkeeping: a poisoned lock has no half-done state to hide.
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(3600);
    const MINUTE: Duration = Duration::from_secs(60);

    fn host(name: &str) -> Place {
        Place::Host(name.to_owned())
    }

    #[test]
    fn a_host_is_given_up_after_the_limit_while_others_answer() {
        let (patience, start) = (Patience::new(LIMIT), Instant::now());
        assert!(!patience.failed(&host("dead"), start, start).give_up);
        patience.answered(&host("good"), start + MINUTE);
        assert!(!patience.failed(&host("dead"), start, start + LIMIT - MINUTE).give_up);
        assert!(patience.failed(&host("dead"), start, start + LIMIT).give_up);
        // The next post need not wait as long again.
        let later = start + LIMIT + MINUTE;
        assert!(patience.failed(&host("dead"), later, later).give_up);
        patience.answered(&host("dead"), later + MINUTE);
        assert!(!patience.failed(&host("dead"), later + MINUTE, later + 2 * MINUTE).give_up, "it had answered");
    }

    #[test]
    fn nothing_is_given_up_while_nothing_can_be_reached() {
        let (patience, start) = (Patience::new(LIMIT), Instant::now());
        patience.answered(&host("a"), start - MINUTE);
        for name in ["a", "b"] {
            patience.failed(&host(name), start, start);
            assert!(!patience.failed(&host(name), start, start + 100 * LIMIT).give_up, "{name}");
        }
        // A folder that is not mounted is no host's affair.
        patience.answered(&host("a"), start + MINUTE);
        assert!(!patience.failed(&Place::Root, start, start + 100 * LIMIT).give_up);
    }

    #[test]
    fn one_picture_that_never_comes_is_given_up_on_a_host_that_serves_others() {
        let (patience, start) = (Patience::new(LIMIT), Instant::now());
        patience.failed(&host("cdn"), start, start);
        patience.answered(&host("cdn"), start + MINUTE);
        assert!(patience.failed(&host("cdn"), start, start + LIMIT).give_up);
    }

    #[test]
    fn an_outage_is_told_once_and_so_is_its_end() {
        let (patience, start) = (Patience::new(LIMIT), Instant::now());
        let told = (0..10).filter(|_| patience.failed(&host("a"), start, start).is_news).count();
        assert_eq!(told, 1);
        assert_eq!(patience.answered(&host("a"), start + MINUTE), Some(MINUTE));
        assert_eq!(patience.answered(&host("a"), start + MINUTE), None);
        patience.failed(&host("a"), start, start);
        assert_eq!(patience.answered(&host("a"), start + MINUTE), None, "nobody had heard of it");
    }

    #[test]
    fn hosts_without_number_take_no_memory_without_bound() {
        let (patience, start) = (Patience::new(LIMIT), Instant::now());
        for number in 0..2 * MAX_PLACES {
            patience.failed(&host(&number.to_string()), start, start);
        }
        assert_eq!(patience.seen().failing.len(), MAX_PLACES);
        patience.answered(&host("good"), start + MINUTE);
        assert!(patience.failed(&host("beyond"), start, start + LIMIT).give_up, "judged by its own time");
    }
}
