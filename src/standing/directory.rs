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
    list: Mutex<List>,
    /// Whether all that lay in the topic at the start was taken in.
    complete: watch::Sender<bool>,
    /// For each partition, the offset after the last record that was taken in.
    read: watch::Sender<BTreeMap<i32, i64>>,
}

struct List {
    registry: Registry,
    /// All topics by their ids, once somebody has asked for them; until the next change.
    topics: Option<Arc<[Arc<Registration>]>>,
}

impl Directory {
    /// Begins to read; the list fills while it does.
    ///
    /// # Errors
    /// As [`follow`].
    pub async fn start(config: &KafkaConfig, max_topics: usize, metrics: Arc<Metrics>) -> Result<Arc<Self>, Fault> {
        let records = follow(config, &config.standing_topic, Begin::Earliest, MAX_RECORD_BYTES).await?;
        let list = Mutex::new(List { registry: Registry::new(max_topics), topics: None });
        let (complete, read) = (watch::Sender::default(), watch::Sender::default());
        let directory = Arc::new(Self { list, complete, read });
        tokio::spawn(Self::read(Arc::downgrade(&directory), records, metrics));
        Ok(directory)
    }

    async fn read(this: std::sync::Weak<Self>, mut records: mpsc::Receiver<Followed>, metrics: Arc<Metrics>) {
        while let Some(record) = records.recv().await {
            let Some(this) = this.upgrade() else { return };
            {
                let mut list = this.lock();
                super::apply(&mut list.registry, &record, &metrics);
                list.topics = None;
                super::tell(&list.registry, &metrics);
            }
            match record {
                Followed::Message(message) => {
                    let (partition, next) = (message.position.partition, message.position.offset + 1);
                    this.read.send_modify(|read| {
                        read.insert(partition, next);
                    });
                }
                Followed::UpToDate => {
                    this.complete.send_replace(true);
                }
                Followed::Begins { .. } | Followed::TooLarge { .. } => {}
            }
        }
    }

    /// Waits until all that lay in the topic at the start is taken in: before that, a topic may seem not to be there.
    pub async fn is_complete(&self) {
        let mut complete = self.complete.subscribe();
        // It fails only without a sender, which `self` holds.
        let _ = complete.wait_for(|complete| *complete).await;
    }

    /// All topics in force, by their ids; shared with all who ask until the next change.
    pub fn topics(&self) -> Arc<[Arc<Registration>]> {
        let List { registry, topics } = &mut *self.lock();
        let by_id = || {
            let mut topics = registry.topics().cloned().collect::<Vec<_>>();
            topics.sort_unstable_by(|left, right| left.topic_id.cmp(&right.topic_id));
            topics.into()
        };
        Arc::clone(topics.get_or_insert_with(by_id))
    }

    /// The topic of this id, if it is in force.
    pub fn get(&self, topic_id: &str) -> Option<Arc<Registration>> {
        self.lock().registry.get(topic_id).cloned()
    }

    /// Whether no further topic is taken.
    pub fn is_full(&self) -> bool {
        self.lock().registry.is_full()
    }

    /// Waits until a record that was written there is taken in.
    pub async fn has_read(&self, partition: i32, offset: i64) {
        let mut read = self.read.subscribe();
        // It fails only without a sender, which `self` holds.
        let _ = read.wait_for(|read| read.get(&partition).is_some_and(|next| *next > offset)).await;
    }

    fn lock(&self) -> MutexGuard<'_, List> {
        // Each change is a single call: a poisoned lock has no half-done state to hide.
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
