//! The list of standing topics, for who only shows them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{mpsc, watch};

use crate::error::Fault;
use crate::kafka::{Begin, Followed, KafkaConfig};
use crate::metrics::Metrics;
use crate::standing::follow;
use crate::standing::registration::{MAX_RECORD_BYTES, Registration};
use crate::standing::registry::Registry;

/// The standing topics as `kafka.standing_topic` has them, a moment ago.
pub struct Directory {
    registry: Mutex<Registry>,
    /// For each partition, the offset after the last record that was taken in.
    read: watch::Sender<BTreeMap<i32, i64>>,
}

impl Directory {
    /// Begins to read; the list fills while it does.
    ///
    /// # Errors
    /// As [`follow`].
    pub async fn start(config: &KafkaConfig, max_topics: usize, metrics: Arc<Metrics>) -> Result<Arc<Self>, Fault> {
        let records = follow(config, &config.standing_topic, Begin::Earliest, MAX_RECORD_BYTES).await?;
        let directory =
            Arc::new(Self { registry: Mutex::new(Registry::new(max_topics)), read: watch::Sender::default() });
        tokio::spawn(Self::read(Arc::downgrade(&directory), records, metrics));
        Ok(directory)
    }

    async fn read(this: std::sync::Weak<Self>, mut records: mpsc::Receiver<Followed>, metrics: Arc<Metrics>) {
        while let Some(record) = records.recv().await {
            let Some(this) = this.upgrade() else { return };
            super::apply(&mut this.lock(), &record, &metrics);
            metrics.standing_topics.set(this.lock().len() as i64);
            if let Followed::Message(message) = record {
                let (partition, next) = (message.position.partition, message.position.offset + 1);
                this.read.send_modify(|read| {
                    read.insert(partition, next);
                });
            }
        }
    }

    /// All topics, by their ids.
    pub fn topics(&self) -> Vec<Arc<Registration>> {
        self.lock().topics().cloned().collect()
    }

    /// The topic of this id.
    pub fn get(&self, topic_id: &str) -> Option<Arc<Registration>> {
        self.lock().get(topic_id).cloned()
    }

    /// Whether no further topic is taken.
    pub fn is_full(&self) -> bool {
        self.lock().is_full()
    }

    /// Waits until a record that was written there is taken in.
    pub async fn has_read(&self, partition: i32, offset: i64) {
        let mut read = self.read.subscribe();
        // It fails only without a sender, which `self` holds.
        let _ = read.wait_for(|read| read.get(&partition).is_some_and(|next| *next > offset)).await;
    }

    fn lock(&self) -> MutexGuard<'_, Registry> {
        // Each change is a single call: a poisoned lock has no half-done state to hide.
        self.registry.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
