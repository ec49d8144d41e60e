//! The ingest worker: all wiring on one screen.
//!
//! ```text
//! Kafka -> source ------> prepare (a task a post) ------> write (batches) -> durable -> announce -> settle -> commit
//!          max_inflight_posts    | Reject                  write_batch each,             (matches of standing topics,
//!          max_inflight_bytes    +-> dead letter -> settle  write_parallel at a time      moderation: acknowledged)
//! ```
//! A post that is written without its picture (`images.unavailable`) goes on to the dead letters, and is settled there.
//!
//! A message holds its permits (count and bytes) until it is settled, and the source pauses when they are used up.
//! Pictures are counted beside it: as they came until they are resized (`images.max_inflight_bytes`), and what decoding
//! takes (`images.max_decode_bytes`). These budgets together bound the memory of the pipe.

pub mod announce;
pub mod outage;
pub mod patience;
pub mod prepare;
mod probe;
pub mod progress;
pub mod purge;
pub mod write;

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::encode::encoder::Encoder;
use crate::error::Fault;
use crate::ingest::announce::Announcer;
use crate::ingest::prepare::Preparer;
use crate::ingest::progress::Progress;
use crate::ingest::write::{Others, Pending, Rejected, Writer};
use crate::kafka::{DeadLetters, Envelope, InflightLimits, Source, StatusSlot, Subscription};
use crate::labels::Labeller;
use crate::metrics::Metrics;
use crate::store::SharedStore;

/// Section `[ingest]` of the configuration; the comments of `config/default.toml` are the reference.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct IngestConfig {
    /// Posts in flight between the source and the store, by count and by bytes of their messages.
    pub max_inflight_posts: usize,
    /// Posts in flight between the source and the store, by count and by bytes of their messages.
    pub max_inflight_bytes: u64,
    /// Posts written to the store at a time, and how long an unfinished batch waits.
    pub write_batch: usize,
    /// Posts written to the store at a time, and how long an unfinished batch waits.
    #[serde(with = "humantime_serde")]
    pub write_wait: Duration,
    /// Batches written in parallel.
    pub write_parallel: usize,
    /// Back-off while the store is out of order.
    #[serde(with = "humantime_serde")]
    pub retry_first: Duration,
    /// Back-off while the store is out of order.
    #[serde(with = "humantime_serde")]
    pub retry_max: Duration,
    /// On SIGTERM: finish what is in flight within this, then commit.
    #[serde(with = "humantime_serde")]
    pub drain_timeout: Duration,
    /// The same for partitions that are revoked, where it is shorter; what is not finished by then is left to their next
    /// owner.
    #[serde(with = "humantime_serde")]
    pub revoke_timeout: Duration,
    /// Standing topics kept.
    pub max_standing_topics: usize,
    /// A post matches a standing topic from this cosine of its picture on, where the topic has no `min_score` of its own and
    /// the bundle no calibrated threshold.
    pub match_min_score: f32,
    /// The same for captions.
    pub match_min_score_caption: f32,
    /// A post that matches more standing topics matches the best of them.
    pub max_matches_per_post: usize,
}

impl IngestConfig {
    pub(crate) fn check(&self) -> anyhow::Result<()> {
        anyhow::ensure!(
            self.write_batch > 0 && self.write_parallel > 0,
            "ingest.write_batch and ingest.write_parallel must be at least 1"
        );
        anyhow::ensure!(
            self.max_inflight_posts >= self.write_batch,
            "ingest.max_inflight_posts ({}) must be at least ingest.write_batch ({}), or no batch ever fills",
            self.max_inflight_posts,
            self.write_batch
        );
        for (key, score) in [
            ("ingest.match_min_score", self.match_min_score),
            ("ingest.match_min_score_caption", self.match_min_score_caption),
        ] {
            anyhow::ensure!((-1.0..=1.0).contains(&score), "{key} ({score}) is a cosine, from -1 to 1");
        }
        anyhow::ensure!(self.max_matches_per_post > 0, "ingest.max_matches_per_post must be at least 1");
        Ok(())
    }
}

/// What the ingest worker works with; the demo shares it with the query worker.
#[derive(Clone)]
pub struct IngestParts {
    /// The model.
    pub encoder: Encoder,
    /// The vector store.
    pub store: SharedStore,
    /// All metrics.
    pub metrics: Arc<Metrics>,
    /// Where the worker tells how its consumer is.
    pub consumer: StatusSlot,
    /// Where it tells whether posts are settled.
    pub progress: Progress,
    /// Who learns of posts beside the store.
    pub role: Role,
}

/// Who learns of posts beside the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Role {
    /// A worker of `kafka.group`: rejected posts become dead letters, matches of standing topics and moderation are told.
    Live,
    /// A worker that fills another collection beside those, in a group of its own: it writes to the store alone, for all else
    /// of the same posts is told by the others.
    Reindex {
        /// The group.
        group: String,
    },
}

/// Indexes the posts topic until `shutdown`, then finishes what is in flight within `ingest.drain_timeout` and commits.
///
/// # Errors
/// The brokers do not answer at the start, or a stage says that going on is wrong.
pub async fn run(config: &Config, parts: IngestParts, shutdown: CancellationToken) -> Result<()> {
    let IngestParts { encoder, store, metrics, consumer, progress, role } = parts;
    let prepared = async {
        let labeller = Labeller::start(&config.labels, &encoder).await?;
        let others = match &role {
            Role::Live => Some(Others {
                dead_letters: DeadLetters::new(&config.kafka, metrics.clone())?,
                announcer: Announcer::start(config, &encoder, metrics.clone(), &progress).await?,
            }),
            Role::Reindex { .. } => None,
        };
        anyhow::Ok((labeller, others))
    };
    let dimension = encoder.bundle.dimension;
    let (labeller, others) = tokio::select! {
        prepared = prepared => prepared?,
        // Thousands of standing topics take a while to be encoded.
        () = shutdown.cancelled() => return Ok(()),
    };
    config.labels.start_at_zero(&metrics);
    let preparer = Arc::new(Preparer::new(encoder, labeller, config, metrics.clone())?);
    let (ingest, told) = (config.ingest.clone(), progress.clone());
    let writer = Arc::new(Writer::new(store.clone(), others, ingest, metrics.clone(), told, dimension));
    let group = match &role {
        Role::Live => config.kafka.group.clone(),
        Role::Reindex { group } => group.clone(),
    };
    let subscription = Subscription { topics: config.kafka.posts_topics(), group };
    let limits = InflightLimits { posts: config.ingest.max_inflight_posts, bytes: config.ingest.max_inflight_bytes };
    let drain = config.ingest.drain_timeout;
    let revoke = config.ingest.revoke_timeout.min(drain);
    let (source, envelopes) = Source::start(&config.kafka, subscription, limits, revoke, metrics.clone()).await?;
    consumer.fill(source.status());

    let (to_write, pending) = mpsc::channel(config.ingest.write_batch);
    let given_up = CancellationToken::new();
    let mut stages = JoinSet::new();
    stages.spawn(prepare_all(preparer, writer.clone(), envelopes, to_write, given_up.clone()));
    stages.spawn(writer.run(pending, given_up.clone()));
    let mut helpers = JoinSet::new();
    helpers.spawn(progress::report(metrics.clone(), progress));
    helpers.spawn(purge::run(store, config.store.delete_marker_ttl, metrics));

    let stopped = tokio::select! {
        () = shutdown.cancelled() => Ok(()),
        // A stage ends by itself when it failed, or when the source did, which then says why.
        Some(ended) = stages.join_next() => flatten(ended),
    };
    let report = source.stop(if stopped.is_ok() { drain } else { Duration::ZERO }).await;
    helpers.abort_all();
    given_up.cancel();
    let mut ended = Ok(());
    while let Some(stage) = stages.join_next().await {
        ended = ended.and(flatten(stage));
    }
    stopped?;
    let report = report?;
    // What a stage came upon while it drained.
    ended?;
    tracing::info!(
        settled = report.settled,
        abandoned = report.abandoned,
        committed = report.committed,
        "ingest stopped"
    );
    Ok(())
}

/// Prepares every message in a task of its own; the permits that messages hold bound their number.
async fn prepare_all(
    preparer: Arc<Preparer>,
    writer: Arc<Writer>,
    mut envelopes: mpsc::Receiver<Envelope>,
    to_write: mpsc::Sender<Pending>,
    given_up: CancellationToken,
) -> Result<(), Fault> {
    let mut tasks = JoinSet::new();
    loop {
        tokio::select! {
            biased;
            () = given_up.cancelled() => return give_up_on(tasks).await,
            Some(done) = tasks.join_next() => flatten(done)?,
            envelope = envelopes.recv() => {
                let Some(envelope) = envelope else { break };
                tasks.spawn(prepare_one(preparer.clone(), writer.clone(), envelope, to_write.clone()));
            }
        }
    }
    loop {
        tokio::select! {
            biased;
            () = given_up.cancelled() => return give_up_on(tasks).await,
            done = tasks.join_next() => match done {
                None => return Ok(()),
                Some(done) => flatten(done)?,
            },
        }
    }
}

async fn prepare_one(
    preparer: Arc<Preparer>,
    writer: Arc<Writer>,
    envelope: Envelope,
    to_write: mpsc::Sender<Pending>,
) -> Result<(), Fault> {
    let departed = envelope.departed();
    let work = async {
        match preparer.prepare(&envelope).await {
            Ok(prepared) => to_write
                .send(Pending { envelope, prepared, since: Instant::now() })
                .await
                .map_err(|_| Fault::fatal("the write stage has ended while posts were being prepared")),
            Err(Fault::Reject { reason, detail }) => {
                writer.reject(Rejected { envelope, reason, detail }).await;
                Ok(())
            }
            Err(fault) => Err(fault),
        }
    };
    departed.run_until_cancelled(work).await.unwrap_or(Ok(()))
}

fn flatten<T>(done: Result<Result<T, Fault>, JoinError>) -> Result<T, Fault> {
    done.unwrap_or_else(|error| Err(Fault::fatal(format!("a task of the pipe died: {error}"))))
}

/// Ends tasks for which nobody waits any more; their posts come again. A fault that one of them came upon still counts.
async fn give_up_on<T: 'static>(mut tasks: JoinSet<Result<T, Fault>>) -> Result<(), Fault> {
    tasks.abort_all();
    let mut ended = Ok(());
    while let Some(done) = tasks.join_next().await {
        if !matches!(&done, Err(error) if error.is_cancelled()) {
            ended = ended.and(flatten(done).map(drop));
        }
    }
    ended
}
