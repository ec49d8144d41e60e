//! A message becomes a write: parse, fetch, decode, resize, tokenise, encode.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use chrono::Utc;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::task::JoinError;
use url::Url;

use crate::backoff::Backoff;
use crate::captions::CaptionsConfig;
use crate::config::Config;
use crate::encode::encoder::Encoder;
use crate::encode::worker::Priority;
use crate::encode::{PreparedImage, PreparedText};
use crate::error::{Fault, Reason};
use crate::image::budget::Budget;
use crate::image::decode::decode;
use crate::image::fetch::{Fetched, ImageFetcher};
use crate::image::memory;
use crate::image::thumbnail::thumbnail;
use crate::image::{ImagesConfig, Unavailable};
use crate::ingest::patience::{Patience, Place};
use crate::kafka::Envelope;
use crate::labels::{Labeller, Verdict};
use crate::metrics::Metrics;
use crate::post::{ImageSource, Post, PostsConfig, point_id, post_id_from_key, tombstone_version};
use crate::store::{Order, Origin, Point, Tombstone, Write};
use crate::traces::Span;
use crate::traces::span::{self, POST_ID};

/// Turns messages into writes; shared by all of them.
pub struct Preparer {
    encoder: Encoder,
    fetcher: Arc<ImageFetcher>,
    patience: Patience,
    captions: CaptionsConfig,
    labeller: Labeller,
    posts: PostsConfig,
    images: ImagesConfig,
    metrics: Arc<Metrics>,
    /// Parsing and decoding are CPU work: more of it at a time than there are cores only costs threads and memory.
    cores: Semaphore,
    /// What decoding takes, for all pictures together.
    decoding: Budget,
}

/// What a message asks for.
pub struct Prepared {
    /// The write.
    pub write: Write,
    /// Why the write is without the post's picture (`images.unavailable`), for the dead letter that is to bring it back.
    pub image_pending: Option<String>,
    /// The labels of the post.
    pub verdict: Verdict,
}

/// A post taken apart.
struct Parsed {
    post: Post,
    text: Option<PreparedText>,
    /// The picture that came inside the message.
    inline: Option<Fetched>,
}

impl Preparer {
    /// With the encoder and the limits of the configuration.
    ///
    /// # Errors
    /// The HTTP client cannot be made, or `images.root` cannot be read.
    pub fn new(encoder: Encoder, labeller: Labeller, config: &Config, metrics: Arc<Metrics>) -> anyhow::Result<Self> {
        let (captions, posts, images) = (config.captions, config.posts.clone(), config.images.clone());
        let fetcher = Arc::new(ImageFetcher::new(&images)?);
        let cores = Semaphore::new(std::thread::available_parallelism().map_or(1, usize::from));
        let (patience, decoding) = (Patience::new(images.give_up_after), Budget::new(images.max_decode_bytes));
        Ok(Self { encoder, fetcher, patience, captions, labeller, posts, images, metrics, cores, decoding })
    }

    /// What a message asks for.
    ///
    /// # Errors
    /// [`Fault::Reject`] sends the message to the dead letters; other faults stop the worker, for everything that a
    /// later attempt can mend was tried again in here.
    pub async fn prepare(&self, envelope: &Envelope) -> Result<Prepared, Fault> {
        let source = source(envelope)?;
        match &envelope.payload {
            Some(payload) if !payload.is_empty() => self.upsert(envelope, payload, source).await,
            // Empty and absent are the same to many producers.
            _ => {
                let deletion = deletion(envelope, source)?;
                envelope.span.set(|| vec![span::text(POST_ID, &deletion.post_id)]);
                let write = Write::Delete(deletion);
                Ok(Prepared { write, image_pending: None, verdict: Verdict::default() })
            }
        }
    }

    /// The vector of a picture that is fetched from its source.
    ///
    /// # Errors
    /// As [`Self::prepare`].
    pub async fn picture(&self, source: &ImageSource) -> Result<Vec<f32>, Fault> {
        let span = Span::default();
        let (prepared, _) = self.decode(self.fetch(source, &span).await?, false, &span).await?;
        self.encoder.handle.image(prepared, Priority::Feed).await
    }

    /// The vector of a caption.
    ///
    /// # Errors
    /// As [`Self::prepare`].
    pub async fn text(&self, caption: &str) -> Result<Vec<f32>, Fault> {
        let (tokenizer, captions, caption) = (self.encoder.tokenizer.clone(), self.captions, caption.to_owned());
        let tokens = self.off_the_async_threads(move || tokenizer.encode(&captions.apply(&caption))).await?;
        self.encoder.handle.text(tokens, Priority::Feed).await
    }

    /// What labels a post with these vectors gets.
    pub fn judge(&self, image: Option<&[f32]>, caption: Option<&[f32]>) -> Verdict {
        self.labeller.judge(image, caption)
    }

    async fn upsert(&self, envelope: &Envelope, payload: &Bytes, source: Origin) -> Result<Prepared, Fault> {
        let Parsed { post, text, inline } = self.parse(envelope, payload).await?;
        let span = &envelope.span;
        span.set(|| vec![span::text(POST_ID, &post.post_id)]);
        let (image, caption) = tokio::join!(self.image(&post, inline, span), self.caption(text, span));
        let by_caption = self.images.unavailable == Unavailable::Caption && post.caption.is_some();
        let (image, image_pending) = match image {
            Err(Fault::Reject { reason: Reason::ImageUnavailable, detail }) if by_caption => (None, Some(detail)),
            image => (image?, None),
        };
        let (image, thumbnail) = image.unzip();
        let caption = caption?;
        let verdict = self.labeller.judge(image.as_deref(), caption.as_deref());
        let mut payload = post.payload(&self.encoder.bundle.id, Utc::now(), thumbnail.flatten());
        verdict.write_to(&mut payload);
        let point = Point {
            id: point_id(&post.post_id),
            order: Order { version: post.version, source },
            image,
            caption,
            image_pending: image_pending.is_some(),
            payload,
        };
        Ok(Prepared { write: Write::Upsert(point), image_pending, verdict })
    }

    async fn parse(&self, envelope: &Envelope, payload: &Bytes) -> Result<Parsed, Fault> {
        // For a picture inside: its text and its bytes, which are both there for a moment.
        let share = self.fetcher.reserve(2 * payload.len() as u64).await;
        let (key, payload, limits) = (envelope.key.clone(), payload.clone(), self.posts.clone());
        let (tokenizer, fetcher, metrics) =
            (self.encoder.tokenizer.clone(), self.fetcher.clone(), self.metrics.clone());
        let (captions, span) = (self.captions, envelope.span.clone());
        self.off_the_async_threads(move || {
            let started = Instant::now();
            let mut post = Post::parse(&payload, key.as_deref(), &limits)?;
            let inline = match &mut post.image {
                Some(ImageSource::Base64(text)) => Some(fetcher.inline(&std::mem::take(text), share)?),
                _ => None,
            };
            observe(&metrics, &span, "parse", started);
            let started = Instant::now();
            let tokens = |caption| tokenizer.encode(&captions.apply(caption));
            let text = post.caption.as_deref().map(tokens).transpose()?;
            observe(&metrics, &span, "tokenize", started);
            Ok(Parsed { post, text, inline })
        })
        .await
    }

    /// The picture's vector and, where the picture came inside the message, its thumbnail.
    async fn image(
        &self,
        post: &Post,
        inline: Option<Fetched>,
        span: &Span,
    ) -> Result<Option<(Vec<f32>, Option<String>)>, Fault> {
        let Some(source) = &post.image else { return Ok(None) };
        let keep_thumbnail = self.images.thumbnail_pixels > 0 && !matches!(source, ImageSource::Url(_));
        let bytes = match inline {
            Some(bytes) => bytes,
            None => self.fetch(source, span).await?,
        };
        let (prepared, thumbnail) = self.decode(bytes, keep_thumbnail, span).await?;
        let started = Instant::now();
        let vector = self.encoder.handle.traced(span).image(prepared, Priority::Feed).await?;
        // Its trace is told by the encoder, which knows the batch.
        observe(&self.metrics, &Span::default(), "encode", started);
        Ok(Some((vector, thumbnail)))
    }

    async fn caption(&self, text: Option<PreparedText>, span: &Span) -> Result<Option<Vec<f32>>, Fault> {
        let Some(text) = text else { return Ok(None) };
        self.encoder.handle.traced(span).text(text, Priority::Feed).await.map(Some)
    }

    /// Tries again for as long as [`Patience`] says: a post that waits keeps its place among those in flight, and when
    /// all places are taken the source pauses.
    async fn fetch(&self, source: &ImageSource, span: &Span) -> Result<Fetched, Fault> {
        let place = place_of(source);
        let mut backoff = Backoff::new(self.images.retry_first, self.images.retry_max);
        let mut first_failure = None;
        loop {
            let started = Instant::now();
            let fetched = self.fetcher.bytes(source).await;
            observe(&self.metrics, span, "fetch", started);
            let Err(Fault::Retry { outage, detail, after }) = fetched else {
                if is_answer(&fetched)
                    && let Some(lasted) = self.patience.answered(&place, Instant::now())
                {
                    tracing::info!(seconds = lasted.as_secs(), "pictures of {place} can be had again");
                }
                return fetched;
            };
            self.metrics.posts_retried.with_label_values(&[outage.as_str()]).inc();
            span.retry(outage.as_str(), &detail);
            let now = Instant::now();
            let first = *first_failure.get_or_insert(now);
            let failure = self.patience.failed(&place, first, now);
            if failure.is_news {
                tracing::warn!("pictures of {place} cannot be had now, trying on: {detail}");
            }
            if failure.give_up {
                let limit = humantime_serde::re::humantime::format_duration(self.images.give_up_after);
                let detail = format!("{detail} (and so for images.give_up_after = {limit})");
                return Err(Fault::reject(Reason::ImageUnavailable, detail));
            }
            tokio::time::sleep(after.unwrap_or(Duration::ZERO).max(backoff.next_delay())).await;
        }
    }

    async fn decode(
        &self,
        bytes: Fetched,
        keep_thumbnail: bool,
        span: &Span,
    ) -> Result<(PreparedImage, Option<String>), Fault> {
        let options = self.images.decode_options(self.encoder.bundle.resolution);
        let thumbnail_pixels = self.images.thumbnail_pixels;
        let preprocessor = self.encoder.preprocessor;
        let (metrics, decoding, handle) = (self.metrics.clone(), self.decoding.clone(), Handle::current());
        let span = span.clone();
        self.off_the_async_threads(move || {
            // Others that decode give theirs back without waiting for anything.
            let _share = handle.block_on(decoding.take(memory::needed(&bytes, &options)));
            let started = Instant::now();
            let picture = decode(&bytes, &options)?;
            drop(bytes);
            observe(&metrics, &span, "decode", started);
            let started = Instant::now();
            let prepared = preprocessor.prepare(&picture);
            observe(&metrics, &span, "resize", started);
            let thumbnail = keep_thumbnail.then(|| thumbnail(&picture, thumbnail_pixels));
            Ok((prepared, thumbnail.flatten()))
        })
        .await
    }

    /// Work that grows with its input would hold up every other post on an async thread.
    async fn off_the_async_threads<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, Fault> + Send + 'static,
    ) -> Result<T, Fault> {
        let _core = self.cores.acquire().await.map_err(|_| Fault::fatal("the semaphore closed. This is a bug."))?;
        tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(fault_of_work(&error)))
    }
}

fn fault_of_work(error: &JoinError) -> Fault {
    if error.is_panic() {
        return Fault::reject(Reason::BadField, "reading the post panicked; please report this post");
    }
    // The runtime ends: no post is at fault.
    Fault::fatal(format!("the work on a post was given up: {error}"))
}

/// Where a picture is asked for; pictures inside a message never fail for now.
fn place_of(source: &ImageSource) -> Place {
    match source {
        ImageSource::Url(url) => {
            let url = Url::parse(url).ok();
            let host = url.as_ref().and_then(|url| Some((url.host_str()?, url.port())));
            Place::Host(match host {
                Some((host, Some(port))) => format!("{host}:{port}"),
                Some((host, None)) => host.to_owned(),
                None => String::new(),
            })
        }
        ImageSource::Path(_) | ImageSource::Base64(_) => Place::Root,
    }
}

/// Whether the place itself had a say.
fn is_answer(fetched: &Result<Fetched, Fault>) -> bool {
    matches!(
        fetched,
        Ok(_) | Err(Fault::Reject { reason: Reason::ImageUnavailable | Reason::TooLarge | Reason::BadImage, .. })
    )
}

fn observe(metrics: &Metrics, span: &Span, stage: &'static str, started: Instant) {
    span.past(stage, started);
    metrics.stage_seconds.with_label_values(&[stage]).observe(started.elapsed().as_secs_f64());
}

/// Where the write lies: a dead letter that was sent again, where it lay first.
fn source(envelope: &Envelope) -> Result<Origin, Fault> {
    let origin = envelope.origin()?;
    let (partition, offset, timestamp) = (origin.partition, origin.offset, origin.timestamp);
    Ok(Origin { topic: origin.topic, partition, offset, timestamp })
}

fn deletion(envelope: &Envelope, source: Origin) -> Result<Tombstone, Fault> {
    let post_id = post_id_from_key(envelope.key.as_deref())?;
    let order = Order { version: tombstone_version(&envelope.headers)?, source };
    Ok(Tombstone { id: point_id(&post_id), order, post_id, deleted_at: Utc::now() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_a_panic_is_the_posts_fault() {
        let panicked = tokio::spawn(async { panic!("on purpose") }).await.expect_err("panicked");
        assert!(matches!(fault_of_work(&panicked), Fault::Reject { .. }));
        let task = tokio::spawn(std::future::pending::<()>());
        task.abort();
        let cancelled = task.await.expect_err("cancelled");
        assert!(matches!(fault_of_work(&cancelled), Fault::Fatal(_)));
    }
}
