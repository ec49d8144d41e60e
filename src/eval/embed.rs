//! Many texts and pictures through the encoder, many in flight, decoding on as many blocking threads as there are cores.

use std::sync::Arc;

use anyhow::{Context, Result, anyhow};
use futures::{StreamExt, TryStreamExt};
use ndarray::Array2;
use tokio::sync::Semaphore;

use crate::encode::EncoderConfig;
use crate::encode::encoder::Encoder;
use crate::encode::worker::Priority;
use crate::eval::dataset::{Dataset, Source, Text};
use crate::image::ImagesConfig;
use crate::image::decode::{DecodeOptions, decode};

/// Batches' worth of items in flight: one being encoded, one full, and two being prepared.
const BATCHES_IN_FLIGHT: usize = 4;

/// The encoder with what stands before it.
#[derive(Clone)]
pub struct Embedder {
    encoder: Encoder,
    options: DecodeOptions,
    max_bytes: u64,
    /// More decoding at a time than there are cores only costs memory.
    cores: Arc<Semaphore>,
    in_flight: usize,
}

impl Embedder {
    /// With the limits and the way of decoding of the configuration.
    pub fn new(encoder: Encoder, config: &EncoderConfig, images: &ImagesConfig) -> Self {
        Self {
            options: images.decode_options(encoder.bundle.resolution),
            encoder,
            max_bytes: images.max_bytes,
            cores: Arc::new(Semaphore::new(std::thread::available_parallelism().map_or(1, usize::from))),
            in_flight: BATCHES_IN_FLIGHT * config.max_batch_images.max(config.max_batch_texts),
        }
    }

    /// Values of a vector.
    pub fn dimension(&self) -> usize {
        self.encoder.bundle.dimension
    }

    /// The model's factor before a softmax.
    pub fn logit_scale(&self) -> f32 {
        self.encoder.bundle.logit_scale
    }

    /// Items that are worth having in flight.
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// The L2-normalised vector of a text.
    ///
    /// # Errors
    /// The encoder gives none.
    pub async fn text(&self, text: &str) -> Result<Vec<f32>> {
        Ok(self.encoder.handle.text(self.encoder.tokenizer.encode(text)?, Priority::Feed).await?)
    }

    /// A text's features as the model gives them, not normalised.
    ///
    /// # Errors
    /// The encoder gives none.
    pub async fn text_features(&self, text: &str) -> Result<Vec<f32>> {
        Ok(self.encoder.handle.text_features(self.encoder.tokenizer.encode(text)?, Priority::Feed).await?)
    }

    /// The L2-normalised vector of a picture from the bytes of its file.
    ///
    /// # Errors
    /// They are no picture within the limits, or the encoder gives no vector.
    pub async fn image(&self, bytes: Vec<u8>) -> Result<Vec<f32>> {
        let (preprocessor, options) = (self.encoder.preprocessor, self.options);
        let decoded = move || Ok(preprocessor.prepare(&decode(&bytes, &options)?));
        Ok(self.encoder.handle.image(self.on_a_core(decoded).await?, Priority::Feed).await?)
    }

    /// Reads a picture's bytes and makes something of them, off the async threads.
    ///
    /// # Errors
    /// As [`Source::read`].
    pub async fn read<T: Send + 'static>(
        &self,
        source: &Source,
        then: impl FnOnce(Vec<u8>) -> T + Send + 'static,
    ) -> Result<T> {
        let (source, max_bytes) = (source.clone(), self.max_bytes);
        self.on_a_core(move || source.read(max_bytes).map(then)).await
    }

    async fn on_a_core<T: Send + 'static>(&self, work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
        let _core = self.cores.acquire().await?;
        tokio::task::spawn_blocking(work).await.context("reading or decoding panicked")?
    }
}

/// Vectors [texts, dimension] of a set's texts, in order. `done` is called after each.
///
/// # Errors
/// Names the text.
pub async fn texts(embedder: &Embedder, set: &Dataset, done: impl Fn()) -> Result<Array2<f32>> {
    let vectors = futures::stream::iter(&set.texts)
        .map(|text| async { embedder.text(&text.text).await.with_context(|| format!("text_id {}", text.id)) });
    collect(vectors.buffered(embedder.in_flight()), set.texts.len(), embedder.dimension(), done).await
}

/// Features [texts, dimension] of texts as the model gives them, not normalised, in order.
///
/// # Errors
/// Names the text.
pub async fn text_features(embedder: &Embedder, texts: &[Text]) -> Result<Array2<f32>> {
    let features = futures::stream::iter(texts).map(|text| async {
        embedder.text_features(&text.text).await.with_context(|| format!("the text {:?}", text.text))
    });
    collect(features.buffered(embedder.in_flight()), texts.len(), embedder.dimension(), || {}).await
}

/// Vectors [pictures, dimension] of a set's pictures, in order. `done` is called after each.
///
/// # Errors
/// Names the picture.
pub async fn images(embedder: &Embedder, set: &Dataset, done: impl Fn()) -> Result<Array2<f32>> {
    let vectors = futures::stream::iter(&set.images).map(|image| async {
        let vector = async { embedder.image(embedder.read(&image.source, |bytes| bytes).await?).await };
        vector.await.map_err(|error| anyhow!("picture {}: {error:#}", image.source))
    });
    collect(vectors.buffered(embedder.in_flight()), set.images.len(), embedder.dimension(), done).await
}

async fn collect(
    vectors: impl futures::Stream<Item = Result<Vec<f32>>>,
    rows: usize,
    dimension: usize,
    done: impl Fn(),
) -> Result<Array2<f32>> {
    let values = Vec::with_capacity(rows * dimension);
    let values = vectors
        .try_fold(values, |mut values, vector| {
            values.extend(vector);
            done();
            futures::future::ready(Ok(values))
        })
        .await?;
    Array2::from_shape_vec((rows, dimension), values).context("every item has a vector of the model's dimension")
}
