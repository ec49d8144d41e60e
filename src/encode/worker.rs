//! The encoder's threads, and the handle through which everyone else uses them.
//!
//! Workers share one queue for each tower. Feed items hold a permit of a bounded queue; queries do not, they are
//! bounded by the query worker's own permits, and must never wait behind the feed.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use opentelemetry::KeyValue;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use crate::encode::batcher::{Batch, Batcher};
use crate::encode::split::{Encoded, encode_each};
use crate::encode::{Encode, EncoderConfig, KnownGood, PreparedImage, PreparedText, Tower, normalise};
use crate::error::{Fault, Outage, Reason};
use crate::metrics::Metrics;
use crate::traces::Span;
use crate::traces::span::BATCH_SIZE;

/// Who waits for an item: a person (never waits for a batch to fill) or the feed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Priority {
    /// A post of the feed.
    Feed,
    /// A search; goes ahead of the feed.
    Query,
}

/// How often the busy ratio is computed, and the longest that an idle worker sleeps.
const BUSY_INTERVAL: Duration = Duration::from_secs(1);
/// No batch of the largest model on the slowest machine takes so long: a run that does will not come back.
const HUNG_AFTER: Duration = Duration::from_secs(300);

struct Item<T> {
    input: T,
    /// What the item belongs to, and when it came.
    asker: (Span, Instant),
    reply: oneshot::Sender<Result<Vec<f32>, Fault>>,
    _room: Option<OwnedSemaphorePermit>,
}

struct Queues {
    images: Batcher<Item<PreparedImage>>,
    texts: Batcher<Item<PreparedText>>,
    /// No more items come: all handles are gone, or a worker died.
    closed: bool,
    workers_alive: usize,
    busy_since: Instant,
}

struct Shared {
    queues: Mutex<Queues>,
    arrived: Condvar,
    image_room: Arc<Semaphore>,
    text_room: Arc<Semaphore>,
    metrics: Arc<Metrics>,
    known_good: KnownGood,
    provider: String,
    /// When each worker's present run began.
    runs: Vec<Mutex<Option<Instant>>>,
    busy_nanoseconds: AtomicU64,
}

impl Shared {
    fn running(&self, worker: usize) -> MutexGuard<'_, Option<Instant>> {
        self.runs[worker].lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> MutexGuard<'_, Queues> {
        // A worker that panicked closed the queues; what they hold is still whole.
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn close(&self) {
        self.lock().closed = true;
        self.arrived.notify_all();
        self.image_room.close();
        self.text_room.close();
    }
}

struct CloseOnDrop(Arc<Shared>);

impl Drop for CloseOnDrop {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// Ends with its worker's thread, for whatever reason: nobody waits for a dead worker.
struct WorkerGuard(Arc<Shared>);

impl Drop for WorkerGuard {
    fn drop(&mut self) {
        self.0.close();
        let mut queues = self.0.lock();
        queues.workers_alive -= 1;
        if queues.workers_alive == 0 {
            // Dropping an item answers its caller.
            while queues.images.take_any().is_some() {}
            while queues.texts.take_any().is_some() {}
        }
    }
}

/// The encoder, for everyone who does not run it: cheap to clone. When the last clone is gone, the workers end.
#[derive(Clone)]
pub struct EncoderHandle {
    shared: Arc<CloseOnDrop>,
    span: Span,
}

impl EncoderHandle {
    /// Starts one thread for each encoder. `provider` is the label of `encode_seconds`; where `known_good` fails, the
    /// encoder is out of order, and no item is to blame.
    ///
    /// # Errors
    /// The operating system gives no thread.
    pub fn start(
        encoders: Vec<Box<dyn Encode>>,
        config: &EncoderConfig,
        known_good: KnownGood,
        provider: &str,
        metrics: Arc<Metrics>,
    ) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            queues: Mutex::new(Queues {
                images: Batcher::new(config.max_batch_images, config.max_batch_wait),
                texts: Batcher::new(config.max_batch_texts, config.max_batch_wait),
                closed: false,
                workers_alive: encoders.len(),
                busy_since: Instant::now(),
            }),
            arrived: Condvar::new(),
            image_room: Arc::new(Semaphore::new(config.queue_items)),
            text_room: Arc::new(Semaphore::new(config.queue_items)),
            metrics,
            known_good,
            provider: provider.to_owned(),
            runs: encoders.iter().map(|_| Mutex::new(None)).collect(),
            busy_nanoseconds: AtomicU64::new(0),
        });
        let handle = Self { shared: Arc::new(CloseOnDrop(shared.clone())), span: Span::default() };
        for (index, encoder) in encoders.into_iter().enumerate() {
            let worker = WorkerGuard(shared.clone());
            std::thread::Builder::new()
                .name(format!("encoder-{index}"))
                .spawn(move || work(&worker.0, index, encoder))?;
        }
        Ok(handle)
    }

    /// The same encoder for what this span is of: single items are told as steps of it, from the asking to the vector.
    pub fn traced(&self, span: &Span) -> Self {
        Self { shared: self.shared.clone(), span: span.clone() }
    }

    /// Whether only a new process helps; cheap, for `/livez`.
    ///
    /// # Errors
    /// [`Fault::Retry`]: a thread died, or a run of one does not end.
    pub fn alive(&self) -> Result<(), Fault> {
        self.alive_within(HUNG_AFTER)
    }

    fn alive_within(&self, longest: Duration) -> Result<(), Fault> {
        let shared = &self.shared.0;
        if shared.lock().closed {
            return Err(Fault::retry(Outage::Encoder, "a thread of the encoder died; start this worker again"));
        }
        let runs = (0..shared.runs.len()).filter_map(|worker| *shared.running(worker));
        match runs.map(|began| began.elapsed()).max() {
            Some(lasts) if lasts > longest => {
                let detail =
                    format!("a batch has been in the encoder for {} s; start this worker again", lasts.as_secs());
                Err(Fault::retry(Outage::Encoder, detail))
            }
            _ => Ok(()),
        }
    }

    /// The L2-normalised vector of a picture. The feed waits for room in the queue.
    ///
    /// # Errors
    /// [`Fault::Reject`] where this very item has no finite vector, [`Fault::Retry`] where the encoder is gone or out of
    /// order.
    pub async fn image(&self, image: PreparedImage, priority: Priority) -> Result<Vec<f32>, Fault> {
        unit(self.image_features(image, priority).await?)
    }

    /// The L2-normalised vector of a text. The feed waits for room in the queue.
    ///
    /// # Errors
    /// As [`Self::image`].
    pub async fn text(&self, text: PreparedText, priority: Priority) -> Result<Vec<f32>, Fault> {
        unit(self.text_features(text, priority).await?)
    }

    /// The features of texts that somebody waits for, in their order. They go into the encoder together.
    ///
    /// # Errors
    /// For each as [`Self::text_features`].
    pub async fn texts_features(&self, texts: Vec<PreparedText>) -> Vec<Result<Vec<f32>, Fault>> {
        let answers = {
            let mut queues = self.shared.0.lock();
            let now = Instant::now();
            let closed = queues.closed;
            let push = |input: PreparedText| {
                let (reply, answer) = oneshot::channel();
                let length = input.ids.len();
                if !closed {
                    let asker = (Span::default(), now);
                    queues.texts.push(Item { input, asker, reply, _room: None }, length, Priority::Query, now);
                }
                answer
            };
            texts.into_iter().map(push).collect::<Vec<_>>()
        };
        self.shared.0.arrived.notify_one();
        let answers = futures::future::join_all(answers).await.into_iter();
        answers.map(|answer| answer.unwrap_or_else(|_| Err(gone()))).collect()
    }

    /// A picture's features as the graph gives them, not normalised.
    ///
    /// # Errors
    /// As [`Self::image`], but zeros are features too, and a value may be infinite or not a number.
    pub async fn image_features(&self, image: PreparedImage, priority: Priority) -> Result<Vec<f32>, Fault> {
        self.submit(image, 0, priority, &self.shared.0.image_room, |queues| &mut queues.images).await
    }

    /// A text's features as the graph gives them, not normalised.
    ///
    /// # Errors
    /// As [`Self::image_features`].
    pub async fn text_features(&self, text: PreparedText, priority: Priority) -> Result<Vec<f32>, Fault> {
        let length = text.ids.len();
        self.submit(text, length, priority, &self.shared.0.text_room, |queues| &mut queues.texts).await
    }

    async fn submit<T>(
        &self,
        input: T,
        length: usize,
        priority: Priority,
        room: &Arc<Semaphore>,
        queue: impl FnOnce(&mut Queues) -> &mut Batcher<Item<T>>,
    ) -> Result<Vec<f32>, Fault> {
        let asker = (self.span.clone(), Instant::now());
        let room = match priority {
            Priority::Query => None,
            Priority::Feed => Some(room.clone().acquire_owned().await.map_err(|_| gone())?),
        };
        let (reply, answer) = oneshot::channel();
        {
            let mut queues = self.shared.0.lock();
            if queues.closed {
                return Err(gone());
            }
            queue(&mut queues).push(Item { input, asker, reply, _room: room }, length, priority, Instant::now());
        }
        self.shared.0.arrived.notify_one();
        answer.await.unwrap_or_else(|_| Err(gone()))
    }
}

fn unit(features: Vec<f32>) -> Result<Vec<f32>, Fault> {
    normalise(features)
        .ok_or_else(|| Fault::reject(Reason::EncodeFailed, "the encoder gave no finite, non-zero vector"))
}

fn gone() -> Fault {
    Fault::retry(Outage::Encoder, "the encoder has stopped")
}

enum Due {
    Images(Batch<Item<PreparedImage>>),
    Texts(Batch<Item<PreparedText>>),
}

fn work(shared: &Shared, worker: usize, mut encoder: Box<dyn Encode>) {
    while let Some(due) = next(shared) {
        let started = Instant::now();
        *shared.running(worker) = Some(started);
        match due {
            Due::Images(batch) => {
                let run = observe(shared, Tower::Image, &batch, started);
                reply(batch, &run, &shared.known_good.image, &mut |inputs| encoder.images(inputs));
                observe_run(shared, &run);
            }
            Due::Texts(batch) => {
                let run = observe(shared, Tower::Text, &batch, started);
                reply(batch, &run, &shared.known_good.text, &mut |inputs| encoder.texts(inputs));
                observe_run(shared, &run);
            }
        }
        *shared.running(worker) = None;
    }
}

/// The batch that is due first; queries of either tower before the feed. Blocks until there is one; `None`: closed and
/// empty.
fn next(shared: &Shared) -> Option<Due> {
    let mut queues = shared.lock();
    loop {
        let now = Instant::now();
        update_gauges(shared, &mut queues, now);
        let images_first = match (queues.images.has_query(), queues.texts.has_query()) {
            (true, false) => true,
            (false, true) => false,
            _ => match (queues.images.due(), queues.texts.due()) {
                (Some(images), Some(texts)) => images <= texts,
                (images, _) => images.is_some(),
            },
        };
        let due = match (images_first, queues.closed) {
            (true, false) => queues.images.take(now).map(Due::Images),
            (false, false) => queues.texts.take(now).map(Due::Texts),
            (true, true) => queues.images.take_any().map(Due::Images),
            (false, true) => queues.texts.take_any().map(Due::Texts),
        };
        if due.is_some() {
            return due;
        }
        if queues.closed {
            return None;
        }
        let earliest = [queues.images.due(), queues.texts.due()].into_iter().flatten().min();
        let wait = earliest.map_or(BUSY_INTERVAL, |due| due.saturating_duration_since(now).min(BUSY_INTERVAL));
        queues = shared.arrived.wait_timeout(queues, wait).unwrap_or_else(PoisonError::into_inner).0;
    }
}

fn update_gauges(shared: &Shared, queues: &mut Queues, now: Instant) {
    let depth = &shared.metrics.queue_depth;
    depth.with_label_values(&["encode_image"]).set(queues.images.len() as i64);
    depth.with_label_values(&["encode_text"]).set(queues.texts.len() as i64);
    let interval = now.saturating_duration_since(queues.busy_since);
    if interval >= BUSY_INTERVAL {
        let busy = Duration::from_nanos(shared.busy_nanoseconds.swap(0, Ordering::Relaxed));
        let ratio = busy.as_secs_f64() / (interval.as_secs_f64() * shared.runs.len() as f64);
        shared.metrics.encoder_busy_ratio.set(ratio.min(1.0));
        queues.busy_since = now;
    }
}

/// A batch in the encoder.
struct Run {
    tower: Tower,
    items: usize,
    started: Instant,
}

fn observe<T>(shared: &Shared, tower: Tower, batch: &Batch<T>, started: Instant) -> Run {
    let labels = [tower.as_str()];
    shared.metrics.batch_size.with_label_values(&labels).observe(batch.items.len() as f64);
    shared.metrics.batch_wait_seconds.with_label_values(&labels).observe(batch.waited.as_secs_f64());
    Run { tower, items: batch.items.len(), started }
}

fn observe_run(shared: &Shared, run: &Run) {
    let elapsed = run.started.elapsed();
    shared.busy_nanoseconds.fetch_add(u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
    let labels = [run.tower.as_str(), shared.provider.as_str()];
    shared.metrics.encode_seconds.with_label_values(&labels).observe(elapsed.as_secs_f64());
}

impl Run {
    /// Tells the wait and the run as a step of the item's trace.
    fn trace(&self, (span, asked): &(Span, Instant)) {
        span.past_with("encode", *asked, |builder| {
            let wait = self.started.saturating_duration_since(*asked);
            builder.with_attributes([
                KeyValue::new("feedlens.tower", self.tower.as_str()),
                KeyValue::new(BATCH_SIZE, self.items as i64),
                KeyValue::new("feedlens.batch.wait_seconds", wait.as_secs_f64()),
            ])
        });
    }
}

fn reply<T>(batch: Batch<Item<T>>, run: &Run, known_good: &T, encode: &mut dyn FnMut(&[T]) -> Encoded) {
    // A caller that gave up (a search past its time) is not worth encoding for.
    let waiting = batch.items.into_iter().filter(|item| !item.reply.is_closed());
    let (inputs, replies): (Vec<_>, Vec<_>) =
        waiting.map(|item| (item.input, (item.asker, item.reply, item._room))).unzip();
    let answers = encode_each(&inputs, known_good, encode);
    for ((asker, reply, _room), answer) in replies.into_iter().zip(answers) {
        run.trace(&asker);
        // A closed reply: the caller gave up meanwhile.
        let _ = reply.send(answer);
    }
}

#[cfg(test)]
mod tests;
