//! A model's collection beside the live one: filled from the topics and from the live collection ([`run`]), and compared
//! with it ([`compare`]). The alias is not touched here.
//!
//! ```text
//! posts topics --own group, from the beginning--> the ingest pipe --> the model's collection
//!              then, once: live collection --what the other lacks--> pictures fetched, encoded --> the same
//! ```
//! Both ways write each post in its own place among its writes, so neither overwrites what is newer nor brings back what was
//! deleted, and all of it can be done again.

mod carry;
pub mod compare;

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use chrono::{DateTime, SecondsFormat, Utc};
use tokio_util::sync::CancellationToken;

use self::carry::Carrier;
pub use self::carry::{Carried, Problem, ProblemKind};
use crate::backoff::Backoff;
use crate::config::Config;
use crate::encode::encoder::Encoder;
use crate::error::Fault;
use crate::ingest::progress::settled;
use crate::ingest::{self, IngestParts, Role};
use crate::kafka::{Backlog, StatusSlot};
use crate::metrics::Metrics;
use crate::store::{Collections, ModelStamp, SharedStore};

/// How often it looks how far it is.
const LOOK: Duration = Duration::from_secs(1);
/// How often it says so.
const TELL: Duration = Duration::from_secs(10);

/// What a reindex works with.
pub struct Parts {
    /// The new model.
    pub encoder: Encoder,
    /// All collections of the alias.
    pub collections: Collections,
    /// The new model's collection.
    pub store: SharedStore,
    /// All metrics.
    pub metrics: Arc<Metrics>,
    /// Where it tells how its consumer is.
    pub consumer: StatusSlot,
    /// Where it tells whether posts are settled.
    pub progress: ingest::progress::Progress,
}

/// How far a reindex goes.
#[derive(Debug, Clone, Copy, Default)]
pub struct Extent {
    /// Ends when it has caught up, in place of going on beside the live collection.
    pub once: bool,
    /// Of the topics only what came at this time or later; in place of the beginning.
    pub since: Option<DateTime<Utc>>,
}

/// What a reindex came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Done {
    /// Messages of the topics that are settled.
    pub from_topics: u64,
    /// What came from the live collection; `None`: it was stopped before, or there is none.
    pub carried: Option<Carried>,
}

/// The stamp of an encoder's model.
pub fn stamp_of(encoder: &Encoder) -> ModelStamp {
    ModelStamp { model: encoder.bundle.id.clone(), dimension: encoder.bundle.dimension }
}

/// The consumer group that fills a collection. It goes on after a restart, several processes share the work, and a collection
/// that was deleted and made again begins anew.
///
/// # Errors
/// [`Fault::Fatal`]: the server does not answer.
pub async fn group_of(config: &Config, collections: &Collections, collection: &str) -> Result<String, Fault> {
    let made_at = collections.made_at(collection).await?.map(|made_at| format!("-{made_at}")).unwrap_or_default();
    Ok(format!("{}-reindex-{collection}{made_at}", config.kafka.group))
}

/// Fills the new model's collection and keeps it up to date until `shutdown`, or until it has caught up. `problem` is told
/// of each post of the live collection that cannot be carried over, or not wholly.
///
/// # Errors
/// As [`ingest::run`], and where the server of the collections fails for good.
pub async fn run(
    config: &Config,
    parts: Parts,
    extent: Extent,
    shutdown: CancellationToken,
    problem: impl FnMut(Problem) -> Result<()>,
) -> Result<Done> {
    let Parts { encoder, collections, store, metrics, consumer, progress } = parts;
    let collection = collections.name_of(&stamp_of(&encoder));
    let live = collections.live().await?;
    let group = group_of(config, &collections, &collection).await?;
    tracing::info!(
        collection,
        live = live.as_deref().unwrap_or("nothing"),
        group,
        "filling a collection; the alias stays as it is"
    );
    let mut config = config.clone();
    config.kafka.start =
        extent.since.map_or_else(|| "earliest".to_owned(), |since| since.to_rfc3339_opts(SecondsFormat::Millis, true));
    let backlog = Backlog::open(&config.kafka, &group, extent.since).await?;
    let carrier = match live.filter(|live| *live != collection) {
        Some(live) => {
            Some(Carrier::new(&config, &encoder, &collections, store.clone(), live, collection, &metrics).await?)
        }
        None => None,
    };
    let role = Role::Reindex { group };
    let parts = IngestParts { encoder, store, metrics: metrics.clone(), consumer, progress, role };
    // Of its own: when the pipe ends by itself, the rest ends too, and the other way round.
    let stop = shutdown.child_token();
    let pipe = async {
        let ended = ingest::run(&config, parts, stop.clone()).await;
        stop.cancel();
        ended
    };
    let rest = async {
        let filled = fill(&config, &backlog, carrier, extent.once, &metrics, &stop, problem).await;
        if extent.once || filled.is_err() {
            stop.cancel();
        }
        filled
    };
    let (ended, carried) = tokio::join!(pipe, rest);
    // Why the pipe ended comes first: the rest ends with it.
    ended?;
    Ok(Done { from_topics: settled(&metrics), carried: carried? })
}

async fn fill(
    config: &Config,
    backlog: &Backlog,
    carrier: Option<Carrier>,
    once: bool,
    metrics: &Metrics,
    stop: &CancellationToken,
    problem: impl FnMut(Problem) -> Result<()>,
) -> Result<Option<Carried>> {
    if !caught_up(config, backlog, metrics, stop).await {
        return Ok(None);
    }
    tracing::info!("all that the topics held at the start is indexed");
    let carried = match carrier {
        Some(carrier) => carrier.run(stop, problem).await?,
        None => None,
    };
    if stop.is_cancelled() {
        return Ok(carried);
    }
    // What came in meanwhile.
    let mut backoff = Backoff::new(config.ingest.retry_first, config.ingest.retry_max);
    while let Err(fault) = backlog.renew().await {
        tracing::warn!("{fault}; trying on");
        tokio::time::sleep(backoff.next_delay()).await;
    }
    if caught_up(config, backlog, metrics, stop).await && !once {
        tracing::info!("caught up; keeping the collection up to date until told to stop");
        let _ = stop.run_until_cancelled(tell_while_kept(backlog)).await;
    }
    Ok(carried)
}

/// Says now and then how far behind the topics' ends the collection is: who changes the model waits for it to be there.
async fn tell_while_kept(backlog: &Backlog) {
    loop {
        tokio::time::sleep(TELL).await;
        let behind = match backlog.renew().await {
            Ok(()) => backlog.remaining().await,
            Err(fault) => Err(fault),
        };
        match behind {
            Ok(0) => tracing::info!("up to date: all messages that the topics hold are indexed"),
            // Under load there is always something on its way.
            Ok(remaining) => tracing::info!(remaining, "keeping up with the topics"),
            Err(fault) => tracing::warn!("{fault}; how far behind the collection is is not known"),
        }
    }
}

/// Waits until the group has committed all of the backlog; `false`: it was stopped before.
async fn caught_up(config: &Config, backlog: &Backlog, metrics: &Metrics, stop: &CancellationToken) -> bool {
    let mut told: Option<(Instant, u64, u64)> = None;
    let mut backoff = Backoff::new(config.ingest.retry_first, config.ingest.retry_max);
    loop {
        let pause = match backlog.remaining().await {
            Ok(0) => return true,
            Ok(remaining) => {
                backoff = Backoff::new(config.ingest.retry_first, config.ingest.retry_max);
                let done = settled(metrics);
                match told {
                    Some((since, _, _)) if since.elapsed() < TELL => {}
                    Some((since, before, of_this_process)) => {
                        tell(remaining, since.elapsed(), before.saturating_sub(remaining), done - of_this_process);
                        told = Some((Instant::now(), remaining, done));
                    }
                    None => {
                        tracing::info!(remaining, "messages of the topics are to be read");
                        told = Some((Instant::now(), remaining, done));
                    }
                }
                LOOK
            }
            Err(fault) => {
                tracing::warn!("{fault}; trying on");
                backoff.next_delay()
            }
        };
        tokio::select! {
            () = stop.cancelled() => return false,
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// `remaining` and `read` are of all processes that fill the collection, `settled` of this one.
fn tell(remaining: u64, elapsed: Duration, read: u64, settled: u64) {
    let rate = read as f64 / elapsed.as_secs_f64();
    let left = (rate > 0.0).then(|| Duration::from_secs((remaining as f64 / rate) as u64));
    tracing::info!(
        remaining,
        per_second = rate.round(),
        by_this_process = (settled as f64 / elapsed.as_secs_f64()).round(),
        left = left.map_or_else(
            || "unknown".to_owned(),
            |left| { humantime_serde::re::humantime::format_duration(left).to_string() }
        ),
        "catching up"
    );
}
