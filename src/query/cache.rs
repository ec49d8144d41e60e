//! What was made for a text before: vectors of topics (people type the same few, and dashboards repeat them), thumbnails
//! of posts.

use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lru::LruCache;

type Entries<V> = LruCache<Box<str>, Arc<V>>;

/// Values by text; the longest unused goes first.
pub struct TextCache<V: ?Sized>(Option<Mutex<Entries<V>>>);

impl<V: ?Sized> TextCache<V> {
    /// A cache of at most `entries` values; with 0 nothing is kept.
    pub fn new(entries: usize) -> Self {
        Self(NonZeroUsize::new(entries).map(|entries| Mutex::new(LruCache::new(entries))))
    }

    /// The value of a text that is kept.
    pub fn get(&self, text: &str) -> Option<Arc<V>> {
        self.lock()?.get(text).cloned()
    }

    /// Keeps the value of a text.
    pub fn put(&self, text: &str, value: Arc<V>) {
        if let Some(mut cache) = self.lock() {
            cache.put(text.into(), value);
        }
    }

    fn lock(&self) -> Option<MutexGuard<'_, Entries<V>>> {
        // A panic between two calls leaves the cache whole: its only operations are single calls.
        self.0.as_ref().map(|cache| cache.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_unused_goes_first() {
        let cache = TextCache::new(2);
        cache.put("a", Arc::new(1.0));
        cache.put("b", Arc::new(2.0));
        assert!(cache.get("a").is_some());
        cache.put("c", Arc::new(3.0));
        assert_eq!((cache.get("a").is_some(), cache.get("b").is_some(), cache.get("c").is_some()), (true, false, true));
    }

    #[test]
    fn a_cache_of_no_entries_keeps_nothing() {
        let cache = TextCache::new(0);
        cache.put("a", Arc::new(1.0));
        assert!(cache.get("a").is_none());
    }
}
