//! Vectors of topics that were searched before: people type the same few topics, and dashboards repeat them.

use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lru::LruCache;

/// Topics and their L2-normalised vectors; the longest unused goes first.
pub struct TopicCache(Option<Mutex<LruCache<Box<str>, Arc<[f32]>>>>);

impl TopicCache {
    /// A cache of at most `entries` topics; with 0 nothing is kept.
    pub fn new(entries: usize) -> Self {
        Self(NonZeroUsize::new(entries).map(|entries| Mutex::new(LruCache::new(entries))))
    }

    /// The vector of a topic that is kept.
    pub fn get(&self, topic: &str) -> Option<Arc<[f32]>> {
        self.lock()?.get(topic).cloned()
    }

    /// Keeps the vector of a topic.
    pub fn put(&self, topic: &str, vector: Arc<[f32]>) {
        if let Some(mut cache) = self.lock() {
            cache.put(topic.into(), vector);
        }
    }

    fn lock(&self) -> Option<MutexGuard<'_, LruCache<Box<str>, Arc<[f32]>>>> {
        // A panic between two calls leaves the cache whole: its only operations are single calls.
        self.0.as_ref().map(|cache| cache.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_unused_topic_goes_first() {
        let cache = TopicCache::new(2);
        cache.put("a", Arc::from([1.0]));
        cache.put("b", Arc::from([2.0]));
        assert!(cache.get("a").is_some());
        cache.put("c", Arc::from([3.0]));
        assert_eq!((cache.get("a").is_some(), cache.get("b").is_some(), cache.get("c").is_some()), (true, false, true));
    }

    #[test]
    fn a_cache_of_no_entries_keeps_nothing() {
        let cache = TopicCache::new(0);
        cache.put("a", Arc::from([1.0]));
        assert!(cache.get("a").is_none());
    }
}
