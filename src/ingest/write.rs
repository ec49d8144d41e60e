//! Writes go to the store in batches; a message is settled when its write is durable or its dead letter acknowledged.

use std::sync::Arc;
use std::time::Instant;

use chrono::Utc;
use opentelemetry::KeyValue;
use prometheus::IntGauge;
use tokio::sync::{Mutex, Semaphore, mpsc};
use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;

use crate::backoff::Backoff;
use crate::error::{Fault, Outage, Reason};
use crate::ingest::announce::Announcer;
use crate::ingest::prepare::Prepared;
use crate::ingest::probe::{Probe, Probed};
use crate::ingest::progress::Progress;
use crate::ingest::{IngestConfig, flatten, give_up_on};
use crate::kafka::{DeadLetters, Envelope, SendFault};
use crate::metrics::Metrics;
use crate::store::{Outcome, SharedStore, Write};
use crate::traces::Span;
use crate::traces::span::BATCH_SIZE;

/// A message with what it asks for.
pub struct Pending {
    /// The message; settled after the write, or after the dead letter that its picture needs.
    pub envelope: Envelope,
    /// The write.
    pub prepared: Prepared,
    /// When it was ready to be written.
    pub since: Instant,
}

/// A message that can never be indexed, or not wholly.
pub struct Rejected {
    /// The message; settled when its dead letter is acknowledged.
    pub envelope: Envelope,
    /// Why.
    pub reason: Reason,
    /// Why, for a person.
    pub detail: String,
}

/// Who learns of posts beside the store.
pub struct Others {
    /// Of posts that are rejected.
    pub dead_letters: DeadLetters,
    /// Of posts that are stored.
    pub announcer: Announcer,
}

/// Where writes and rejects end.
pub struct Writer {
    store: SharedStore,
    /// `None`: nobody.
    others: Option<Others>,
    config: IngestConfig,
    metrics: Arc<Metrics>,
    progress: Progress,
    /// One at a time, so that each is newer than those before.
    probe: Mutex<Probe>,
}

/// What a task of the stage leaves to be done.
type Written = Result<Vec<Rejected>, Fault>;

impl Writer {
    /// A writer; `config` has batch sizes and back-off, `progress` is told of outages, vectors have `dimension` values.
    pub fn new(
        store: SharedStore,
        others: Option<Others>,
        config: IngestConfig,
        metrics: Arc<Metrics>,
        progress: Progress,
        dimension: usize,
    ) -> Self {
        let probe = Mutex::new(Probe::new(dimension));
        Self { store, others, config, metrics, progress, probe }
    }

    /// Collects batches by count and by age and writes them, a few in parallel, until `pending` is closed and empty, or
    /// nobody waits any more (`given_up`).
    ///
    /// # Errors
    /// The store or the dead-letter topic says that going on is wrong; at once, also while nothing comes in.
    pub async fn run(
        self: Arc<Self>,
        mut pending: mpsc::Receiver<Pending>,
        given_up: CancellationToken,
    ) -> Result<(), Fault> {
        let parallel = Arc::new(Semaphore::new(self.config.write_parallel));
        let mut tasks: JoinSet<Written> = JoinSet::new();
        loop {
            let next = async {
                let batch = self.next_batch(&mut pending).await?;
                Some((batch, parallel.clone().acquire_owned().await))
            };
            tokio::pin!(next);
            let (batch, permit) = loop {
                tokio::select! {
                    biased;
                    () = given_up.cancelled() => return give_up_on(tasks).await,
                    Some(done) = tasks.join_next() => self.reject_in_background(done, &mut tasks)?,
                    next = &mut next => match next {
                        Some(next) => break next,
                        None => return self.finish(tasks, given_up.clone()).await,
                    },
                }
            };
            let writer = self.clone();
            tasks.spawn(async move { writer.write(batch, permit).await });
        }
    }

    async fn finish(self: &Arc<Self>, mut tasks: JoinSet<Written>, given_up: CancellationToken) -> Result<(), Fault> {
        loop {
            tokio::select! {
                biased;
                () = given_up.cancelled() => return give_up_on(tasks).await,
                done = tasks.join_next() => match done {
                    None => return Ok(()),
                    Some(done) => self.reject_in_background(done, &mut tasks)?,
                },
            }
        }
    }

    /// In tasks of their own: a dead letter that waits must not hold up a place among the writes.
    fn reject_in_background(
        self: &Arc<Self>,
        done: Result<Written, JoinError>,
        tasks: &mut JoinSet<Written>,
    ) -> Result<(), Fault> {
        for rejected in flatten(done)? {
            let writer = self.clone();
            tasks.spawn(async move {
                writer.reject(rejected).await;
                Ok(Vec::new())
            });
        }
        Ok(())
    }

    async fn next_batch(&self, pending: &mut mpsc::Receiver<Pending>) -> Option<Vec<Pending>> {
        let mut batch = Vec::with_capacity(self.config.write_batch);
        batch.push(pending.recv().await?);
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
        Some(batch)
    }

    /// Writes a batch, then tells others of it, which holds up no other write: `place` is a place among the writes. Gives the
    /// posts that the store rejects, and those whose pictures lack.
    ///
    /// A fatal fault ends it at once, before anything is told or settled: the telling could wait for ever, and all of the
    /// batch comes again.
    async fn write<P>(&self, batch: Vec<Pending>, place: P) -> Written {
        let (size, span) = (batch.len() as i64, Span::over("write batch", batch.iter().map(|it| &it.envelope.span)));
        span.set(|| vec![KeyValue::new("db.operation.batch.size", size)]);
        let written = self.write_all(batch, &span).await;
        let (written, mut rejected) = written.inspect_err(|fault| span.fail("fatal", &fault.to_string()))?;
        for (done, _) in &written {
            done.envelope.span.past_with("write", done.since, |builder| {
                let links = span.link().into_iter().collect();
                builder.with_links(links).with_attributes([KeyValue::new(BATCH_SIZE, size)])
            });
        }
        span.end();
        drop(place);
        if let Some(Others { announcer, .. }) = &self.others {
            announcer.announce(&written).await?;
        }
        rejected.extend(written.into_iter().filter_map(|(done, outcome)| self.settle(done, outcome)));
        Ok(rejected)
    }

    /// Writes a batch, trying again for as long as the store is out of order; one that is rejected is halved until the
    /// write at fault stands alone. However many are at fault, all others are written.
    async fn write_all(
        &self,
        batch: Vec<Pending>,
        span: &Span,
    ) -> Result<(Vec<(Pending, Outcome)>, Vec<Rejected>), Fault> {
        let (mut written, mut rejected) = (Vec::with_capacity(batch.len()), Vec::new());
        // Once a batch: what the store takes now, it most likely took all the time.
        let mut probed = None;
        let mut stack = vec![batch];
        while let Some(mut batch) = stack.pop() {
            let writes = || batch.iter().map(|pending| pending.prepared.write.clone()).collect();
            match self.write_or_wait(writes, span).await {
                Ok(outcomes) => written.extend(batch.into_iter().zip(outcomes)),
                Err(Fault::Reject { .. }) if batch.len() > 1 => {
                    let right = batch.split_off(batch.len() / 2);
                    stack.extend([right, batch]);
                }
                Err(Fault::Reject { reason, detail }) => {
                    let probed = match &probed {
                        Some(probed) => probed,
                        None => probed.insert(self.probe_store(span).await?),
                    };
                    batch.iter().try_for_each(|pending| probed.blames(&pending.prepared.write))?;
                    rejected.extend(batch.into_iter().map(|Pending { envelope, .. }| {
                        let detail = detail.clone();
                        Rejected { envelope, reason, detail }
                    }));
                }
                Err(fault) => return Err(fault),
            }
        }
        Ok((written, rejected))
    }

    /// Whether the store takes a post, and a deletion, that nothing is wrong with.
    async fn probe_store(&self, span: &Span) -> Result<Probed, Fault> {
        let mut probe = self.probe.lock().await;
        let [post, deletion] = probe.writes();
        let rejected = async |write: Write| match self.write_or_wait(|| vec![write.clone()], span).await {
            Ok(_) => Ok(None),
            Err(Fault::Reject { detail, .. }) => Ok(Some(detail)),
            Err(fault) => Err(fault),
        };
        Ok(Probed { post: rejected(post).await?, deletion: rejected(deletion).await? })
    }

    async fn write_or_wait(&self, writes: impl Fn() -> Vec<Write>, span: &Span) -> Result<Vec<Outcome>, Fault> {
        let mut backoff = Backoff::new(self.config.retry_first, self.config.retry_max);
        loop {
            let (started, writes) = (Instant::now(), writes());
            let count = writes.len() as u64;
            let written = self.store.write(writes).await;
            self.metrics.stage_seconds.with_label_values(&["write"]).observe(started.elapsed().as_secs_f64());
            let Err(Fault::Retry { outage, detail, after }) = written else {
                self.progress.store.succeeded();
                return written;
            };
            self.metrics.posts_retried.with_label_values(&[outage.as_str()]).inc_by(count);
            span.retry(outage.as_str(), &detail);
            self.progress.store.failed(outage, &detail);
            tokio::time::sleep(after.unwrap_or_default().max(backoff.next_delay())).await;
        }
    }

    /// Settles what is durable, unless it is to be dead-lettered for its picture: not where a newer write stands, which
    /// no picture would bring back.
    fn settle(&self, done: Pending, outcome: Outcome) -> Option<Rejected> {
        let Pending { envelope, prepared, .. } = done;
        let image_pending = prepared.image_pending.filter(|_| outcome == Outcome::Applied);
        if image_pending.is_some() {
            // Before posts_indexed: `progress::settled` takes one from the other.
            self.metrics.posts_image_pending.inc();
        }
        let (counter, outcome) = match (outcome, &prepared.write) {
            (Outcome::Applied, Write::Upsert(_)) => (&self.metrics.posts_indexed, "indexed"),
            (Outcome::Applied, Write::Delete(_)) => (&self.metrics.posts_deleted, "deleted"),
            (Outcome::Older, _) => {
                tracing::debug!(position = %envelope.position, "ignored as older than what is stored");
                (&self.metrics.posts_ignored, "ignored")
            }
        };
        counter.inc();
        if let Some(timestamp) = envelope.timestamp {
            let elapsed = Utc::now().signed_duration_since(timestamp).to_std().unwrap_or_default();
            self.metrics.end_to_end_seconds.observe(elapsed.as_secs_f64());
        }
        match image_pending {
            Some(detail) => Some(Rejected { envelope, reason: Reason::ImageUnavailable, detail }),
            None => {
                envelope.span.outcome(outcome);
                envelope.settle();
                None
            }
        }
    }

    /// Dead-letters a message and settles it once the broker acknowledged; an outage of the broker only delays. A letter
    /// that is too large for the topic waits until a person makes room for it (`dead_letters_stuck` counts them): it is
    /// not lost, the posts beside it go on, and its partition commits nothing past it.
    ///
    /// Where nobody else learns of posts, it is only counted.
    pub async fn reject(&self, rejected: Rejected) {
        let Rejected { envelope, reason, detail } = rejected;
        envelope.span.fail(reason.as_str(), &detail);
        let Some(Others { dead_letters, .. }) = &self.others else {
            tracing::debug!(position = %envelope.position, reason = reason.as_str(), "passed over: {detail}");
            self.metrics.posts_passed_over.with_label_values(&[reason.as_str()]).inc();
            envelope.span.outcome("passed_over");
            return envelope.settle();
        };
        let mut backoff = Backoff::new(self.config.retry_first, self.config.retry_max);
        let mut stuck = None;
        let started = Instant::now();
        while let Err(fault) = dead_letters.send(&envelope, reason, &detail).await {
            let delay = backoff.next_delay();
            match fault {
                SendFault::Outage(detail) => {
                    self.metrics.posts_retried.with_label_values(&[Outage::Broker.as_str()]).inc();
                    self.progress.dead_letters.failed(Outage::Broker, &detail);
                    envelope.span.retry(Outage::Broker.as_str(), &detail);
                    tokio::time::sleep(delay).await;
                }
                SendFault::TooLarge { detail, retry_after } => {
                    if stuck.is_none() {
                        tracing::error!("{detail}");
                        stuck = Some(Stuck::new(self.metrics.dead_letters_stuck.clone()));
                    }
                    tokio::time::sleep(retry_after).await;
                }
            }
        }
        self.progress.dead_letters.succeeded();
        self.metrics.stage_seconds.with_label_values(&["dead_letter"]).observe(started.elapsed().as_secs_f64());
        envelope.span.past("dead_letter", started);
        envelope.span.outcome("dead_lettered");
        envelope.settle();
    }
}

/// Counts a dead letter that cannot be sent, for as long as that is so.
struct Stuck(IntGauge);

impl Stuck {
    fn new(gauge: IntGauge) -> Self {
        gauge.inc();
        Self(gauge)
    }
}

impl Drop for Stuck {
    fn drop(&mut self) {
        self.0.dec();
    }
}
