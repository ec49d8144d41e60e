//! Tells of an outage once, and of its end: a line a retry would bury everything else.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Something that can be out of order.
#[derive(Debug)]
pub struct OutageLog {
    what: &'static str,
    since: Mutex<Option<Instant>>,
}

impl OutageLog {
    /// `what` begins the sentence: "the store".
    pub fn new(what: &'static str) -> Self {
        Self { what, since: Mutex::new(None) }
    }

    /// An attempt failed for now.
    pub fn failed(&self, detail: &str) {
        if self.begin() {
            tracing::warn!("{} is out of order, trying on until it is back: {detail}", self.what);
        }
    }

    /// An attempt succeeded.
    pub fn succeeded(&self) {
        if let Some(lasted) = self.end() {
            tracing::info!(seconds = lasted.as_secs(), "{} is in order again", self.what);
        }
    }

    fn begin(&self) -> bool {
        let mut since = self.since.lock().unwrap_or_else(PoisonError::into_inner);
        let is_news = since.is_none();
        since.get_or_insert_with(Instant::now);
        is_news
    }

    fn end(&self) -> Option<Duration> {
        let began = self.since.lock().unwrap_or_else(PoisonError::into_inner).take()?;
        Some(began.elapsed())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outage_is_news_once_and_so_is_its_end() {
        let store = OutageLog::new("the store");
        assert!(store.end().is_none(), "nothing had been told");
        for _ in 0..2 {
            assert!(store.begin());
            assert!(!store.begin() && !store.begin());
            assert!(store.end().is_some());
            assert!(store.end().is_none());
        }
    }
}
