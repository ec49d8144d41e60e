//! A message becomes a write: parse, fetch, decode, resize, tokenise, encode.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use chrono::Utc;
use tokio::sync::Semaphore;

use crate::backoff::Backoff;
use crate::encode::encoder::Encoder;
use crate::encode::worker::Priority;
use crate::encode::{PreparedImage, PreparedText};
use crate::error::{Fault, Reason};
use crate::image::ImagesConfig;
use crate::image::decode::decode;
use crate::image::fetch::ImageFetcher;
use crate::image::thumbnail::thumbnail;
use crate::kafka::{Envelope, Position};
use crate::metrics::Metrics;
use crate::post::{ImageSource, Post, PostsConfig, Provenance, point_id, post_id_from_key, tombstone_version};
use crate::store::{Point, Tombstone, Write};

/// Turns messages into writes; shared by all of them.
pub struct Preparer {
    encoder: Encoder,
    fetcher: ImageFetcher,
    posts: PostsConfig,
    images: ImagesConfig,
    metrics: Arc<Metrics>,
    /// Parsing and decoding are CPU work: more of it at a time than there are cores only costs threads and memory.
    cores: Semaphore,
}

impl Preparer {
    /// With the encoder and the limits of the configuration.
    ///
    /// # Errors
    /// The HTTP client cannot be made.
    pub fn new(
        encoder: Encoder,
        posts: PostsConfig,
        images: ImagesConfig,
        metrics: Arc<Metrics>,
    ) -> anyhow::Result<Self> {
        let fetcher = ImageFetcher::new(&images)?;
        let cores = Semaphore::new(std::thread::available_parallelism().map_or(1, usize::from));
        Ok(Self { encoder, fetcher, posts, images, metrics, cores })
    }

    /// The write that a message asks for.
    ///
    /// # Errors
    /// [`Fault::Reject`] sends the message to the dead letters; other faults stop the worker, for everything that a
    /// later attempt can mend was tried again in here.
    pub async fn prepare(&self, envelope: &Envelope) -> Result<Write, Fault> {
        match &envelope.payload {
            None => deletion(envelope).map(Write::Delete),
            Some(payload) => self.upsert(envelope, payload).await.map(Write::Upsert),
        }
    }

    async fn upsert(&self, envelope: &Envelope, payload: &Bytes) -> Result<Point, Fault> {
        let (post, text) = self.parse(envelope, payload).await?;
        let (image, caption) = tokio::join!(self.image(&post), self.caption(text));
        let (image, thumbnail) = image?.unzip();
        let version = post.version.unwrap_or_else(|| offset_version(&envelope.position));
        let provenance = Provenance {
            model: &self.encoder.bundle.id,
            topic: &envelope.position.topic,
            partition: envelope.position.partition,
            offset: envelope.position.offset,
            indexed_at: Utc::now(),
        };
        Ok(Point {
            id: point_id(&post.post_id),
            version,
            image,
            caption: caption?,
            payload: post.payload(&provenance, thumbnail.flatten()),
        })
    }

    async fn parse(&self, envelope: &Envelope, payload: &Bytes) -> Result<(Post, Option<PreparedText>), Fault> {
        let (key, payload, limits) = (envelope.key.clone(), payload.clone(), self.posts.clone());
        let (tokenizer, metrics) = (self.encoder.tokenizer.clone(), self.metrics.clone());
        self.off_the_async_threads(move || {
            let started = Instant::now();
            let post = Post::parse(&payload, key.as_deref(), &limits)?;
            observe(&metrics, "parse", started);
            let started = Instant::now();
            let text = post.caption.as_deref().map(|caption| tokenizer.encode(caption)).transpose()?;
            observe(&metrics, "tokenize", started);
            Ok((post, text))
        })
        .await
    }

    /// The picture's vector and, where the picture came inside the message, its thumbnail.
    async fn image(&self, post: &Post) -> Result<Option<(Vec<f32>, Option<String>)>, Fault> {
        let Some(source) = &post.image else { return Ok(None) };
        let bytes = self.fetch(source).await?;
        let keep_thumbnail = self.images.thumbnail_pixels > 0 && !matches!(source, ImageSource::Url(_));
        let (prepared, thumbnail) = self.decode(bytes, keep_thumbnail).await?;
        let started = Instant::now();
        let vector = self.encoder.handle.image(prepared, Priority::Feed).await?;
        observe(&self.metrics, "encode", started);
        Ok(Some((vector, thumbnail)))
    }

    async fn caption(&self, text: Option<PreparedText>) -> Result<Option<Vec<f32>>, Fault> {
        let Some(text) = text else { return Ok(None) };
        self.encoder.handle.text(text, Priority::Feed).await.map(Some)
    }

    async fn fetch(&self, source: &ImageSource) -> Result<Bytes, Fault> {
        let mut backoff = Backoff::new(self.images.retry_first, self.images.retry_max);
        let mut attempt = 0;
        loop {
            attempt += 1;
            let started = Instant::now();
            let fetched = self.fetcher.bytes(source).await;
            observe(&self.metrics, "fetch", started);
            match fetched {
                Err(Fault::Retry { outage, detail, after }) => {
                    self.metrics.posts_retried.with_label_values(&[outage.as_str()]).inc();
                    if attempt >= self.images.attempts {
                        let detail = format!("{detail} ({attempt} attempts)");
                        return Err(Fault::reject(Reason::ImageUnavailable, detail));
                    }
                    tokio::time::sleep(after.unwrap_or(Duration::ZERO).max(backoff.next_delay())).await;
                }
                settled => return settled,
            }
        }
    }

    async fn decode(&self, bytes: Bytes, keep_thumbnail: bool) -> Result<(PreparedImage, Option<String>), Fault> {
        let options = self.images.decode_options(self.encoder.bundle.resolution);
        let thumbnail_pixels = self.images.thumbnail_pixels;
        let preprocessor = self.encoder.preprocessor;
        let metrics = self.metrics.clone();
        self.off_the_async_threads(move || {
            let started = Instant::now();
            let picture = decode(&bytes, &options)?;
            observe(&metrics, "decode", started);
            let started = Instant::now();
            let prepared = preprocessor.prepare(&picture);
            observe(&metrics, "resize", started);
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
        tokio::task::spawn_blocking(work).await.unwrap_or_else(|_| {
            Err(Fault::reject(Reason::BadField, "reading the post panicked; please report this post"))
        })
    }
}

fn observe(metrics: &Metrics, stage: &str, started: Instant) {
    metrics.stage_seconds.with_label_values(&[stage]).observe(started.elapsed().as_secs_f64());
}

/// Without a version of the feed's, the position in the topic orders the writes: a post's key keeps it in one partition.
fn offset_version(position: &Position) -> u64 {
    u64::try_from(position.offset).unwrap_or(0)
}

fn deletion(envelope: &Envelope) -> Result<Tombstone, Fault> {
    let post_id = post_id_from_key(envelope.key.as_deref())?;
    let version = tombstone_version(&envelope.headers)?;
    Ok(Tombstone {
        id: point_id(&post_id),
        version: version.unwrap_or_else(|| offset_version(&envelope.position)),
        post_id,
        deleted_at: Utc::now(),
    })
}
