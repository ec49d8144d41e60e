//! Posts that the live collection has and the topics no longer do: their pictures are fetched once more from where the payload
//! says that they are, and encoded by the new model.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use chrono::{SecondsFormat, Utc};
use futures::StreamExt;
use serde::Serialize;
use serde_json::{Map, Value};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::backoff::Backoff;
use crate::config::Config;
use crate::encode::encoder::Encoder;
use crate::error::Fault;
use crate::ingest::IngestConfig;
use crate::ingest::prepare::Preparer;
use crate::labels::Labeller;
use crate::metrics::Metrics;
use crate::post::ImageSource;
use crate::store::lacking::{Content, Lacking};
use crate::store::{Collections, HIDDEN, LABELS, SharedStore, Write};

/// Points looked at in one request; their payloads are in memory together.
const PAGE: u32 = 128;
/// Posts encoded at a time: enough to fill a batch of the encoder.
const AT_A_TIME: usize = 32;
const TELL: Duration = Duration::from_secs(10);

/// What came over from the live collection.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Carried {
    /// Points of the live collection that were looked at.
    pub looked_at: u64,
    /// Posts that came over whole.
    pub whole: u64,
    /// Posts that came over without their picture, to be found by their captions.
    pub without_picture: u64,
    /// Posts that could not come over.
    pub lost: u64,
    /// Deletions that came over.
    pub deletions: u64,
}

/// A post that did not come over whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// The feed's id of the post.
    pub post_id: String,
    /// How much of it lacks.
    pub problem: ProblemKind,
    /// Why, for a person.
    pub reason: String,
}

/// How much of a post lacks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ProblemKind {
    /// It is found by its caption alone.
    WithoutPicture,
    /// It is not in the new collection.
    Lost,
}

/// Carries what lacks from one collection to another.
pub struct Carrier {
    preparer: Preparer,
    model: String,
    collections: Collections,
    store: SharedStore,
    source: String,
    target: String,
    ingest: IngestConfig,
}

impl Carrier {
    /// From `source` to `target`, which `store` is.
    pub async fn new(
        config: &Config,
        encoder: &Encoder,
        collections: &Collections,
        store: SharedStore,
        source: String,
        target: String,
        metrics: &Arc<Metrics>,
    ) -> Result<Self> {
        let labeller = Labeller::start(&config.labels, encoder).await?;
        let preparer = Preparer::new(encoder.clone(), labeller, config, metrics.clone())?;
        let (model, ingest) = (encoder.bundle.id.clone(), config.ingest.clone());
        Ok(Self { preparer, model, collections: collections.clone(), store, source, target, ingest })
    }

    /// Goes through the whole source once; `None`: it was stopped before.
    pub async fn run(
        self,
        stop: &CancellationToken,
        mut problem: impl FnMut(Problem) -> Result<()>,
    ) -> Result<Option<Carried>> {
        let mut carried = Carried::default();
        let mut told = Instant::now();
        // Each process begins elsewhere and goes round: so several of them do not encode the same posts.
        let begin = Uuid::from_u128(rand::random());
        let (mut from, mut wrapped) = (Some(begin), false);
        loop {
            let page =
                self.patiently(stop, || self.collections.lacking(&self.source, &self.target, from, PAGE)).await?;
            let Some((lacking, looked_at, next)) = page else { return Ok(None) };
            carried.looked_at += looked_at as u64;
            let Some(()) = self.carry(lacking, stop, &mut carried, &mut problem).await? else { return Ok(None) };
            if told.elapsed() >= TELL {
                told = Instant::now();
                tracing::info!(?carried, "carrying over what the topics no longer hold");
            }
            from = match next {
                Some(next) if wrapped && next >= begin => break,
                Some(next) => Some(next),
                None if wrapped => break,
                None => {
                    wrapped = true;
                    None
                }
            };
        }
        tracing::info!(?carried, "what the topics no longer hold is carried over");
        Ok(Some(carried))
    }

    async fn carry(
        &self,
        lacking: Vec<Lacking>,
        stop: &CancellationToken,
        carried: &mut Carried,
        problem: &mut impl FnMut(Problem) -> Result<()>,
    ) -> Result<Option<()>> {
        let made = futures::stream::iter(lacking).map(|lacking| self.make(lacking)).buffer_unordered(AT_A_TIME);
        let made = stop.run_until_cancelled(made.collect::<Vec<_>>()).await;
        let Some(made) = made else { return Ok(None) };
        let made = made.into_iter().collect::<Result<Vec<_>, Fault>>()?;
        let all = made.iter().flat_map(|made| made.writes.iter().cloned()).collect::<Vec<_>>();
        let mut refused = None;
        match self.patiently(stop, || self.store.write(all.clone())).await {
            // Some post is at fault: each by itself.
            Err(Fault::Reject { .. }) => refused = Some(HashMap::new()),
            Ok(None) => return Ok(None),
            written => drop(written?),
        }
        if let Some(refused) = &mut refused {
            for (place, Made { writes, .. }) in made.iter().enumerate() {
                match self.patiently(stop, || self.store.write(writes.clone())).await {
                    Err(Fault::Reject { detail, .. }) => drop(refused.insert(place, detail)),
                    Ok(None) => return Ok(None),
                    written => drop(written?),
                }
            }
        }
        for (place, Made { post_id, problem: told, count, .. }) in made.into_iter().enumerate() {
            if let Some(reason) = refused.as_mut().and_then(|refused| refused.remove(&place)) {
                carried.lost += 1;
                problem(Problem { post_id, problem: ProblemKind::Lost, reason })?;
                continue;
            }
            count(carried);
            told.map(&mut *problem).transpose()?;
        }
        Ok(Some(()))
    }

    /// The post under the new model; faults other than its own are waited out in here, or end the whole.
    async fn make(&self, mut lacking: Lacking) -> Result<Made, Fault> {
        let post_id = lacking.post_id.clone();
        let made = |writes: Vec<Write>, count: fn(&mut Carried)| Made {
            post_id: post_id.clone(),
            writes,
            problem: None,
            count,
        };
        if lacking.is_deletion() {
            return Ok(made(lacking.writes(None), |carried| carried.deletions += 1));
        }
        let payload = std::mem::take(&mut lacking.payload);
        let image = match payload.get("image").map(source_of) {
            None => None,
            Some(Some(source)) => Some(unless_fatal(self.preparer.picture(&source).await)?),
            Some(None) => Some(Err("it came inside its message, of which only a thumbnail is kept".to_owned())),
        };
        let caption = match payload.get("caption").and_then(Value::as_str) {
            Some(caption) => Some(unless_fatal(self.preparer.text(caption).await)?),
            None => None,
        };
        let (image, image_fault) = apart(image);
        let (caption, caption_fault) = apart(caption);
        let told = |problem, reason| Some(Problem { post_id: post_id.clone(), problem, reason });
        if image.is_none() && caption.is_none() {
            let reason = image_fault.or(caption_fault).unwrap_or_else(|| "neither a picture nor a caption".to_owned());
            let problem = told(ProblemKind::Lost, reason);
            return Ok(Made { problem, ..made(lacking.writes(None), |carried| carried.lost += 1) });
        }
        let image_pending = image_fault.is_some();
        let payload = self.renewed(payload, image.as_deref(), caption.as_deref());
        let writes = lacking.writes(Some(Content { image, caption, image_pending, payload }));
        Ok(match image_fault {
            None => made(writes, |carried| carried.whole += 1),
            Some(reason) => {
                let problem = told(ProblemKind::WithoutPicture, reason);
                Made { problem, ..made(writes, |carried| carried.without_picture += 1) }
            }
        })
    }

    /// The payload as this model would have made it.
    fn renewed(
        &self,
        mut payload: Map<String, Value>,
        image: Option<&[f32]>,
        caption: Option<&[f32]>,
    ) -> Map<String, Value> {
        let now = Utc::now().to_rfc3339_opts(SecondsFormat::AutoSi, true);
        payload.insert("model".to_owned(), self.model.as_str().into());
        payload.insert("indexed_at".to_owned(), now.into());
        payload.remove(LABELS);
        payload.remove(HIDDEN);
        self.preparer.judge(image, caption).write_to(&mut payload);
        payload
    }

    /// Tries again for as long as the server is out of order; `None`: it was stopped.
    async fn patiently<T, F: Future<Output = Result<T, Fault>>>(
        &self,
        stop: &CancellationToken,
        mut ask: impl FnMut() -> F,
    ) -> Result<Option<T>, Fault> {
        let mut backoff = Backoff::new(self.ingest.retry_first, self.ingest.retry_max);
        loop {
            let answer = stop.run_until_cancelled(ask()).await;
            match answer {
                None => return Ok(None),
                Some(Err(Fault::Retry { detail, after, .. })) => {
                    tracing::warn!("{detail}; trying on");
                    let pause = after.unwrap_or_default().max(backoff.next_delay());
                    let _ = stop.run_until_cancelled(tokio::time::sleep(pause)).await;
                }
                Some(answer) => return answer.map(Some),
            }
        }
    }
}

/// A post, ready to be written.
struct Made {
    post_id: String,
    writes: Vec<Write>,
    /// What is to be told of it.
    problem: Option<Problem>,
    /// As what it counts.
    count: fn(&mut Carried),
}

/// A post that cannot be encoded is told; what says that going on is wrong ends the whole.
fn unless_fatal(made: Result<Vec<f32>, Fault>) -> Result<Result<Vec<f32>, String>, Fault> {
    match made {
        Ok(vector) => Ok(Ok(vector)),
        Err(Fault::Reject { detail, .. }) => Ok(Err(detail)),
        Err(fault) => Err(fault),
    }
}

fn apart(made: Option<Result<Vec<f32>, String>>) -> (Option<Vec<f32>>, Option<String>) {
    match made {
        None => (None, None),
        Some(Ok(vector)) => (Some(vector), None),
        Some(Err(reason)) => (None, Some(reason)),
    }
}

/// Where a stored post's picture is; `None`: it was inside the message.
fn source_of(image: &Value) -> Option<ImageSource> {
    let field = |name: &str| image.get(name).and_then(Value::as_str);
    let url = field("url").map(|url| ImageSource::Url(url.to_owned()));
    url.or_else(|| field("path").map(|path| ImageSource::Path(path.into())))
}
