//! Topics and pictures of requests to vectors, exactly as the posts' own were made.

use std::sync::Arc;

use anyhow::Result;
use tokio::sync::Semaphore;

use crate::captions::CaptionsConfig;
use crate::encode::encoder::Encoder;
use crate::encode::worker::Priority;
use crate::encode::{norm, normalise};
use crate::error::{Fault, Reason};
use crate::image::ImagesConfig;
use crate::image::decode::{DecodeOptions, decode};
use crate::image::fetch::ImageFetcher;
use crate::image::picture::Picture;
use crate::image::thumbnail;
use crate::post::ImageSource;

/// A topic as the model sees it.
#[derive(Debug, Clone, PartialEq)]
pub struct TopicVector {
    /// L2-normalised.
    pub vector: Arc<[f32]>,
    /// Length of the features before they were normalised: models give longer ones to texts that they know well.
    pub length: f32,
}

impl TopicVector {
    fn of(features: Vec<f32>) -> Result<Self, Fault> {
        let length = norm(&features).map(|length| length as f32);
        let vector = normalise(features).map(Arc::from);
        let none = || Fault::reject(Reason::EncodeFailed, "the encoder gave no finite, non-zero vector for the topic");
        vector.zip(length).map(|(vector, length)| Self { vector, length }).ok_or_else(none)
    }
}

/// Everything between a request's subject and its vector.
pub struct QueryEncoder {
    encoder: Encoder,
    captions: CaptionsConfig,
    fetcher: ImageFetcher,
    options: DecodeOptions,
    decoding: Arc<Semaphore>,
    places: Arc<Semaphore>,
}

impl QueryEncoder {
    /// Pictures of requests obey the same limits as those of posts, and topics are cleaned as captions are.
    ///
    /// # Errors
    /// As [`ImageFetcher::new`].
    pub fn new(encoder: Encoder, images: &ImagesConfig, captions: CaptionsConfig) -> Result<Self> {
        // A decoded picture may take hundreds of megabytes: no more at a time than there are cores to work on them.
        let at_a_time = std::thread::available_parallelism().map_or(1, usize::from);
        Ok(Self {
            options: images.decode_options(encoder.bundle.resolution),
            encoder,
            captions,
            fetcher: ImageFetcher::new(images)?,
            decoding: Arc::new(Semaphore::new(at_a_time)),
            places: Arc::new(Semaphore::new(images.concurrency.min(Semaphore::MAX_PERMITS))),
        })
    }

    /// The vector of a text.
    ///
    /// # Errors
    /// [`Fault::Reject`] where this very text has no finite vector, [`Fault::Retry`] where the encoder is gone.
    pub async fn embed_topic(&self, topic: &str) -> Result<TopicVector, Fault> {
        let text = self.encoder.tokenizer.encode(&self.captions.apply(topic))?;
        let features = self.encoder.handle.text_features(text, Priority::Query).await?;
        TopicVector::of(features)
    }

    /// The L2-normalised vectors of texts, which go into the encoder together.
    ///
    /// # Errors
    /// For each as [`Self::embed_topic`].
    pub async fn embed_topics(&self, topics: &[&str]) -> Vec<Result<TopicVector, Fault>> {
        let encode = |topic: &&str| self.encoder.tokenizer.encode(&self.captions.apply(topic));
        let (texts, mut vectors): (Vec<_>, Vec<_>) = topics
            .iter()
            .map(encode)
            .map(|text| match text {
                Ok(text) => (Some(text), None),
                Err(fault) => (None, Some(Err(fault))),
            })
            .unzip();
        let features = self.encoder.handle.texts_features(texts.into_iter().flatten().collect()).await;
        let mut encoded = features.into_iter().map(|features| features.and_then(TopicVector::of));
        vectors.iter_mut().filter(|vector| vector.is_none()).for_each(|vector| *vector = encoded.next());
        vectors.into_iter().flatten().collect()
    }

    /// The L2-normalised vector of a picture.
    ///
    /// # Errors
    /// [`Fault::Reject`] for what is no picture, is too large or may not be fetched; [`Fault::Retry`] where its host or
    /// the encoder is out of order.
    pub async fn embed_picture(&self, picture: &ImageSource) -> Result<Vec<f32>, Fault> {
        let preprocessor = self.encoder.preprocessor;
        let prepared = self.with_picture(picture, move |picture| preprocessor.prepare(picture)).await?;
        self.encoder.handle.image(prepared, Priority::Query).await
    }

    /// A small copy of a picture as a data URI, its longer side at most `max_side` (above 0) pixels.
    ///
    /// # Errors
    /// As [`Self::embed_picture`], without the encoder.
    pub async fn thumbnail(&self, picture: &ImageSource, max_side: u32) -> Result<Option<String>, Fault> {
        self.with_picture(picture, move |picture| thumbnail::thumbnail(picture, max_side)).await
    }

    async fn with_picture<T: Send + 'static>(
        &self,
        picture: &ImageSource,
        work: impl FnOnce(&Picture) -> T + Send + 'static,
    ) -> Result<T, Fault> {
        const NEVER_CLOSED: &str = "the semaphore is never closed. This is a bug.";
        // From the first byte until it is decoded: the fetcher bounds the transfers alone, and pictures that have come would
        // pile up in front of the decoders. A picture inside the request is there already, and counted by who took it in.
        let place = match picture {
            ImageSource::Base64(_) => None,
            ImageSource::Url(_) | ImageSource::Path(_) => {
                Some(Arc::clone(&self.places).acquire_owned().await.expect(NEVER_CLOSED))
            }
        };
        let bytes = self.fetcher.bytes(picture).await?;
        let options = self.options;
        let permit = Arc::clone(&self.decoding).acquire_owned().await.expect(NEVER_CLOSED);
        let decoded = tokio::task::spawn_blocking(move || {
            // Held by the work and not by the request: a request that was given up leaves its work running.
            let _held = (permit, place);
            decode(&bytes, &options).map(|picture| work(&picture))
        });
        decoded.await.unwrap_or_else(|error| Err(Fault::fatal(format!("decoding a picture failed: {error}"))))
    }
}
