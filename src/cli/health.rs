//! What `/readyz` and `/livez` ask of a worker.

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use futures::FutureExt;
use tokio::sync::Mutex;

use crate::encode::encoder::Encoder;
use crate::ingest::progress::Progress;
use crate::kafka::StatusSlot;
use crate::metrics::Metrics;
use crate::service::Health;
use crate::store::SharedStore;

/// A part that does not answer by then is not ready; a probe must not wait for it.
const ANSWER: Duration = Duration::from_secs(10);
/// Golden vectors that were right are not computed again before: with a large model on CPU that takes seconds.
const GOLDEN_HOLDS: Duration = Duration::from_secs(30);

/// The parts of a worker.
#[derive(Clone)]
pub struct Parts {
    /// The model.
    pub encoder: Encoder,
    /// The vector store.
    pub store: SharedStore,
    /// The consumer, where something is consumed.
    pub consumer: Option<StatusSlot>,
    /// Whether posts are settled, where they are indexed.
    pub progress: Option<Progress>,
    /// All metrics.
    pub metrics: Arc<Metrics>,
}

/// Ready: the golden inputs give their vectors, the store answers, Kafka too, and posts are settled. Alive: no thread of
/// the encoder or the consumer died or hangs, which only a new process mends; an outage of another is no reason to die.
pub fn of(parts: Parts) -> Health {
    let golden = Arc::new(Mutex::new(None));
    let living = (parts.encoder.clone(), parts.consumer.clone());
    Health {
        ready: Arc::new(move || ready(parts.clone(), golden.clone()).boxed()),
        live: Arc::new(move || {
            let (encoder, consumer) = &living;
            encoder.handle.alive().context("encoder")?;
            consumer.as_ref().map_or(Ok(()), StatusSlot::alive).context("kafka")
        }),
    }
}

async fn ready(parts: Parts, golden: Arc<Mutex<Option<Instant>>>) -> Result<()> {
    answer("encoder", golden_holds(&parts.encoder, &golden)).await?;
    answer("store", async { Ok(parts.store.ready().await?) }).await?;
    parts.consumer.map_or(Ok(()), |consumer| consumer.ready()).context("kafka")?;
    parts.progress.map_or(Ok(()), |progress| progress.ready(&parts.metrics)).context("ingest")
}

/// One check at a time, however many ask.
async fn golden_holds(encoder: &Encoder, held: &Mutex<Option<Instant>>) -> Result<()> {
    let mut held = held.lock().await;
    if held.is_none_or(|at: Instant| at.elapsed() > GOLDEN_HOLDS) {
        *held = None;
        encoder.check_golden().await?;
        *held = Some(Instant::now());
    }
    Ok(())
}

async fn answer(part: &'static str, asked: impl Future<Output = Result<()>>) -> Result<()> {
    match tokio::time::timeout(ANSWER, asked).await {
        Ok(answered) => answered.context(part),
        Err(_) => bail!("{part}: no answer within {ANSWER:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_part_that_does_not_answer_is_not_ready() {
        let reason = answer("store", std::future::pending()).await.expect_err("no answer").to_string();
        assert_eq!(reason, "store: no answer within 10s");
        answer("store", async { Ok(()) }).await.expect("an answer");
    }
}
