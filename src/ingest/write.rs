//! Writes go to the store in batches; a message is settled when its write is durable or its dead letter acknowledged.

use std::sync::Arc;
use std::time::Instant;

use chrono::Utc;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;

use crate::backoff::Backoff;
use crate::error::{Fault, Reason};
use crate::ingest::{IngestConfig, flatten};
use crate::kafka::{DeadLetters, Envelope};
use crate::metrics::Metrics;
use crate::store::{SharedStore, Write};

/// A message with the write that it asks for.
pub struct Pending {
    /// The message; settled after the write.
    pub envelope: Envelope,
    /// The write.
    pub write: Write,
}

/// Where writes and rejects end.
pub struct Writer {
    /// The vector store.
    pub store: SharedStore,
    /// The dead-letter topic.
    pub dead_letters: DeadLetters,
    /// Batch sizes and back-off.
    pub config: IngestConfig,
    /// Counters.
    pub metrics: Arc<Metrics>,
}

impl Writer {
    /// Collects batches by count and by age and writes them, a few in parallel, until `pending` is closed and empty.
    ///
    /// # Errors
    /// The store or the dead-letter topic says that going on is wrong.
    pub async fn run(self: Arc<Self>, mut pending: mpsc::Receiver<Pending>) -> Result<(), Fault> {
        let parallel = Arc::new(Semaphore::new(self.config.write_parallel));
        let mut writing: JoinSet<Result<(), Fault>> = JoinSet::new();
        loop {
            // A write that failed for good is heard of at once, and not when the next post comes.
            let first = tokio::select! {
                biased;
                Some(written) = writing.join_next() => {
                    flatten(written)?;
                    continue;
                }
                first = pending.recv() => first,
            };
            let Some(first) = first else { break };
            let batch = self.batch_after(first, &mut pending).await;
            let permit = parallel.clone().acquire_owned().await;
            let writer = self.clone();
            writing.spawn(async move {
                let _permit = permit;
                writer.write(batch).await
            });
        }
        while let Some(written) = writing.join_next().await {
            flatten(written)?;
        }
        Ok(())
    }

    async fn batch_after(&self, first: Pending, pending: &mut mpsc::Receiver<Pending>) -> Vec<Pending> {
        let mut batch = Vec::with_capacity(self.config.write_batch);
        batch.push(first);
        let full_or_old = async {
            while batch.len() < self.config.write_batch {
                let room = self.config.write_batch - batch.len();
                if pending.recv_many(&mut batch, room).await == 0 {
                    break;
                }
            }
        };
        // Received items are already in the batch when the time is over: recv_many is cancel-safe.
        let _ = tokio::time::timeout(self.config.write_wait, full_or_old).await;
        self.metrics.queue_depth.with_label_values(&["write"]).set(pending.len() as i64);
        batch
    }

    /// Writes a batch, trying again for as long as the store is out of order; one that is rejected is halved until the
    /// write at fault stands alone.
    async fn write(&self, batch: Vec<Pending>) -> Result<(), Fault> {
        let mut stack = vec![batch];
        while let Some(mut batch) = stack.pop() {
            match self.write_or_wait(&batch).await {
                Ok(()) => batch.into_iter().for_each(|done| self.settle(done)),
                Err(Fault::Reject { .. }) if batch.len() > 1 => {
                    let right = batch.split_off(batch.len() / 2);
                    stack.extend([right, batch]);
                }
                Err(Fault::Reject { reason, detail }) => {
                    for rejected in batch {
                        self.reject(rejected.envelope, reason, &detail).await?;
                    }
                }
                Err(fault) => return Err(fault),
            }
        }
        Ok(())
    }

    async fn write_or_wait(&self, batch: &[Pending]) -> Result<(), Fault> {
        let mut backoff = Backoff::new(self.config.retry_first, self.config.retry_max);
        loop {
            let started = Instant::now();
            let written = self.store.write(batch.iter().map(|pending| pending.write.clone()).collect()).await;
            self.metrics.stage_seconds.with_label_values(&["write"]).observe(started.elapsed().as_secs_f64());
            let Err(Fault::Retry { outage, detail, after }) = written else { return written };
            let delay = after.unwrap_or_default().max(backoff.next_delay());
            self.metrics.posts_retried.with_label_values(&[outage.as_str()]).inc_by(batch.len() as u64);
            tracing::warn!(posts = batch.len(), ?delay, "the store is out of order, trying again: {detail}");
            tokio::time::sleep(delay).await;
        }
    }

    fn settle(&self, done: Pending) {
        match &done.write {
            Write::Upsert(_) => self.metrics.posts_indexed.inc(),
            Write::Delete(_) => self.metrics.posts_deleted.inc(),
        }
        if let Some(timestamp) = done.envelope.timestamp {
            let elapsed = Utc::now().signed_duration_since(timestamp).to_std().unwrap_or_default();
            self.metrics.end_to_end_seconds.observe(elapsed.as_secs_f64());
        }
        done.envelope.settle();
    }

    /// Dead-letters a message and settles it once the broker acknowledged; an outage of the broker only delays.
    ///
    /// # Errors
    /// The broker says that going on is wrong.
    pub async fn reject(&self, envelope: Envelope, reason: Reason, detail: &str) -> Result<(), Fault> {
        let mut backoff = Backoff::new(self.config.retry_first, self.config.retry_max);
        let started = Instant::now();
        loop {
            match self.dead_letters.send(&envelope, reason, detail).await {
                Ok(()) => break,
                Err(Fault::Retry { outage, detail, after }) => {
                    self.metrics.posts_retried.with_label_values(&[outage.as_str()]).inc();
                    let delay = after.unwrap_or_default().max(backoff.next_delay());
                    tracing::warn!(?delay, "the dead-letter topic is out of order, trying again: {detail}");
                    tokio::time::sleep(delay).await;
                }
                Err(fault) => return Err(fault),
            }
        }
        self.metrics.stage_seconds.with_label_values(&["dead_letter"]).observe(started.elapsed().as_secs_f64());
        envelope.settle();
        Ok(())
    }
}
