//! Tells of an outage once, and of its end: a line a retry would bury everything else. `/readyz` shows what lasts.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::error::Outage;

/// Something that can be out of order; cheap to clone.
#[derive(Debug, Clone)]
pub struct OutageLog {
    what: &'static str,
    now: Arc<Mutex<Option<Lasting>>>,
}

#[derive(Debug)]
struct Lasting {
    since: Instant,
    kind: Outage,
    detail: String,
}

impl OutageLog {
    /// `what` begins the sentence: "the store".
    pub fn new(what: &'static str) -> Self {
        Self { what, now: Arc::default() }
    }

    /// An attempt failed for now.
    pub fn failed(&self, kind: Outage, detail: &str) {
        if self.begin(kind, detail) {
            tracing::warn!(
                reason = kind.as_str(),
                "{} is out of order, trying on until it is back: {detail}",
                self.what
            );
        }
    }

    /// An attempt succeeded.
    pub fn succeeded(&self) {
        if let Some(lasted) = self.end() {
            tracing::info!(seconds = lasted.as_secs(), "{} is in order again", self.what);
        }
    }

    /// Whether it is in order, as far as the last attempt tells.
    ///
    /// # Errors
    /// What is out of order, for how long, and what the last attempt met.
    pub fn ready(&self) -> Result<()> {
        let now = self.now.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(Lasting { since, detail, .. }) = &*now else { return Ok(()) };
        bail!("{} is out of order for {} s: {detail}", self.what, since.elapsed().as_secs())
    }

    /// Another kind of outage is news: a server that comes back with a full disk.
    fn begin(&self, kind: Outage, detail: &str) -> bool {
        let mut now = self.now.lock().unwrap_or_else(PoisonError::into_inner);
        let is_news = now.as_ref().is_none_or(|lasting| lasting.kind != kind);
        let since = now.as_ref().map_or_else(Instant::now, |lasting| lasting.since);
        *now = Some(Lasting { since, kind, detail: detail.to_owned() });
        is_news
    }

    fn end(&self) -> Option<Duration> {
        let lasting = self.now.lock().unwrap_or_else(PoisonError::into_inner).take()?;
        Some(lasting.since.elapsed())
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
            store.ready().expect("in order");
            assert!(store.begin(Outage::Store, "refused"));
            assert!(!store.begin(Outage::Store, "refused") && !store.begin(Outage::Store, "reset"));
            let reason = store.ready().expect_err("out of order").to_string();
            assert_eq!(reason, "the store is out of order for 0 s: reset");
            assert!(store.begin(Outage::StoreNoSpace, "no space left"), "another outage is told too");
            assert!(!store.begin(Outage::StoreNoSpace, "no space left"));
            assert!(store.end().is_some());
            assert!(store.end().is_none());
        }
    }
}
