//! The standing topics as ingest compares posts with them: read, encoded, kept up to date.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use tokio::sync::{RwLock, mpsc, oneshot};
use tokio_util::task::AbortOnDropHandle;

use crate::backoff::Backoff;
use crate::captions::CaptionsConfig;
use crate::config::Config;
use crate::encode::calibration::{self, Calibration, Query};
use crate::encode::encoder::Encoder;
use crate::encode::worker::Priority;
use crate::encode::{norm, normalise};
use crate::error::Fault;
use crate::kafka::{Begin, Followed};
use crate::metrics::Metrics;
use crate::standing::follow;
use crate::standing::matrix::{Matches, Thresholds, Topics, Vectors};
use crate::standing::registration::{MAX_RECORD_BYTES, Registration};
use crate::standing::registry::Registry;
use crate::text::Language;

/// Topics in the encoder at a time: two batches, so that none waits for the other to be filled.
const ENCODING: usize = 64;
/// While the encoder is out of order.
const RETRY_FIRST: Duration = Duration::from_millis(200);
const RETRY_MAX: Duration = Duration::from_secs(10);
/// A start that takes longer than this says what it does.
const TOLD_EVERY: Duration = Duration::from_secs(5);

/// What a post matches; cheap to share.
pub struct Watch {
    topics: Arc<RwLock<Topics>>,
    /// Whether nothing can match: then no post is looked at.
    is_empty: Arc<AtomicBool>,
    most: usize,
    metrics: Arc<Metrics>,
    _reading: AbortOnDropHandle<()>,
}

/// A post's vectors, to be compared off the async threads; L2-normalised.
#[derive(Debug, Clone, Default)]
pub struct Candidate {
    /// The picture's.
    pub image: Option<Vec<f32>>,
    /// The caption's.
    pub caption: Option<Vec<f32>>,
}

impl Candidate {
    fn vectors(&self) -> Vectors<'_> {
        Vectors { image: self.image.as_deref(), caption: self.caption.as_deref() }
    }
}

impl Watch {
    /// Reads `kafka.standing_topic` and encodes what is registered there; returns when all of it that was there is ready to
    /// be compared with. From then on it follows.
    ///
    /// # Errors
    /// As [`follow`].
    pub async fn start(config: &Config, encoder: &Encoder, metrics: Arc<Metrics>) -> Result<Self, Fault> {
        let records = follow(&config.kafka, &config.kafka.standing_topic, Begin::Earliest, MAX_RECORD_BYTES).await?;
        let topics = Arc::new(RwLock::new(Topics::new(encoder.bundle.dimension)));
        let is_empty = Arc::new(AtomicBool::new(true));
        let (ready, is_ready) = oneshot::channel();
        let reader = Reader {
            encoder: encoder.clone(),
            captions: config.captions,
            thresholds: Thresholds {
                image: config.ingest.match_min_score,
                caption: config.ingest.match_min_score_caption,
            },
            registry: Registry::new(config.ingest.max_standing_topics),
            topics: topics.clone(),
            is_empty: is_empty.clone(),
            metrics: metrics.clone(),
            ready: Some(ready),
        };
        let reading = AbortOnDropHandle::new(tokio::spawn(reader.run(records)));
        is_ready.await.map_err(|_| Fault::fatal("the reading of standing topics ended. This is a bug."))?;
        Ok(Self { topics, is_empty, most: config.ingest.max_matches_per_post, metrics, _reading: reading })
    }

    /// Whether nothing can match now.
    pub fn is_empty(&self) -> bool {
        self.is_empty.load(Ordering::Acquire)
    }

    /// What each post matches, best first. The product runs off the async threads.
    ///
    /// # Errors
    /// [`Fault::Fatal`]: the runtime ends.
    pub async fn compare(&self, posts: Vec<Candidate>) -> Result<Vec<Matches>, Fault> {
        let (topics, most, metrics) = (self.topics.clone(), self.most, self.metrics.clone());
        let compared = tokio::task::spawn_blocking(move || {
            let started = Instant::now();
            let vectors = posts.iter().map(Candidate::vectors).collect::<Vec<_>>();
            let found = topics.blocking_read().compare(&vectors, most);
            metrics.stage_seconds.with_label_values(&["match"]).observe(started.elapsed().as_secs_f64());
            found
        });
        compared.await.map_err(|error| Fault::fatal(format!("posts could not be compared with topics: {error}")))
    }
}

/// A topic with its features, as the model gives them: their length is part of what a calibrated threshold asks for.
type Encoded = (Arc<Registration>, Result<Vec<f32>, Fault>);

struct Reader {
    encoder: Encoder,
    captions: CaptionsConfig,
    /// Where neither the topic nor the bundle has one.
    thresholds: Thresholds,
    registry: Registry,
    topics: Arc<RwLock<Topics>>,
    is_empty: Arc<AtomicBool>,
    metrics: Arc<Metrics>,
    ready: Option<oneshot::Sender<()>>,
}

impl Reader {
    async fn run(mut self, mut records: mpsc::Receiver<Followed>) {
        let mut encoding = FuturesUnordered::<BoxFuture<'static, Encoded>>::new();
        let mut is_up_to_date = false;
        let mut ticks = tokio::time::interval_at(tokio::time::Instant::now() + TOLD_EVERY, TOLD_EVERY);
        loop {
            if encoding.is_empty() {
                // What is registered is compared with.
                super::tell(&self.registry, &self.metrics);
            }
            if is_up_to_date
                && encoding.is_empty()
                && let Some(ready) = self.ready.take()
            {
                tracing::info!(topics = self.registry.len(), "standing topics are ready");
                // Nobody waits any more where the start was given up.
                let _ = ready.send(());
            }
            tokio::select! {
                Some(encoded) = encoding.next() => self.put_in(encoded).await,
                // What comes meanwhile waits where it is: in Kafka.
                record = records.recv(), if encoding.len() < ENCODING => match record {
                    None => {
                        tracing::error!("standing topics are no longer read. This is a bug.");
                        return;
                    }
                    Some(Followed::UpToDate) => is_up_to_date = true,
                    Some(record) => if let Some(applied) = super::apply(&mut self.registry, &record, &self.metrics) {
                        if let Some(id) = applied.leaves {
                            self.take_out(&id).await;
                        }
                        encoding.extend(applied.enters.map(|topic| self.encode(topic)));
                    }
                },
                _ = ticks.tick(), if self.ready.is_some() => tracing::info!(
                    topics = self.registry.len(),
                    encoding = encoding.len(),
                    is_read = is_up_to_date,
                    "no post is taken before the standing topics are read and encoded"
                ),
            }
        }
    }

    /// As a search's topic is encoded, but behind the searches.
    fn encode(&self, topic: Arc<Registration>) -> BoxFuture<'static, Encoded> {
        let (encoder, captions) = (self.encoder.clone(), self.captions);
        Box::pin(async move {
            let text = match encoder.tokenizer.encode(&captions.apply(&topic.topic)) {
                Ok(text) => text,
                Err(fault) => return (topic, Err(fault)),
            };
            let mut backoff = Backoff::new(RETRY_FIRST, RETRY_MAX);
            loop {
                match encoder.handle.text_features(text.clone(), Priority::Feed).await {
                    Err(Fault::Retry { detail, .. }) => {
                        tracing::warn!(detail, "a standing topic could not be encoded yet");
                        tokio::time::sleep(backoff.next_delay()).await;
                    }
                    encoded => return (topic, encoded),
                }
            }
        })
    }

    async fn put_in(&mut self, (topic, encoded): Encoded) {
        // Registered anew or removed while it was encoded: what came later counts.
        if !self.registry.get(&topic.topic_id).is_some_and(|now| Arc::ptr_eq(now, &topic)) {
            return;
        }
        let reason = match encoded {
            Ok(features) => match (norm(&features), normalise(features)) {
                (Some(length), Some(vector)) => {
                    let thresholds = self.thresholds_of(&topic.topic, length as f32);
                    self.topics.write().await.insert(&topic, &vector, thresholds);
                    self.is_empty.store(false, Ordering::Release);
                    return;
                }
                _ => "the encoder gave no finite, non-zero vector".to_owned(),
            },
            Err(fault) => fault.to_string(),
        };
        tracing::warn!(
            topic_id = crate::text::escaped(topic.topic_id.as_bytes(), 60),
            "a standing topic matches nothing, for it has no vector: {reason}"
        );
        self.take_out(&topic.topic_id).await;
    }

    /// The bundle's calibrated thresholds for a topic in this language, or the configuration's.
    fn thresholds_of(&self, topic: &str, length: f32) -> Thresholds {
        let query = Query::Topic(Language::of(topic));
        let calibration = self.encoder.bundle.calibration;
        let calibrated = |of: fn(&Calibration) -> &calibration::Thresholds| {
            calibration.as_ref().and_then(|calibration| of(calibration).cosine(query, length))
        };
        Thresholds {
            image: calibrated(|calibration| &calibration.image).unwrap_or(self.thresholds.image),
            caption: calibrated(|calibration| &calibration.caption).unwrap_or(self.thresholds.caption),
        }
    }

    async fn take_out(&self, topic_id: &str) {
        let mut topics = self.topics.write().await;
        topics.remove(topic_id);
        self.is_empty.store(topics.is_empty(), Ordering::Release);
    }
}
