//! The encoder: a model bundle, its tokenizer and preprocessing, micro-batching, and the threads that run ONNX Runtime.
//!
//! ```text
//! EncoderHandle --(bounded queue per tower, queries first)--> worker thread: Batcher -> split -> Encode -> oneshot reply
//!                                                              (Encode: buckets -> input tensors -> Session::run)
//! ```

pub mod batcher;
pub mod buckets;
pub mod bundle;
pub mod calibration;
pub mod check;
pub mod encoder;
pub mod onnx;
pub mod preprocess;
pub mod split;
pub mod tokenizer;
pub mod worker;

use crate::error::Fault;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::time::Duration;

/// A picture, resized: `resolution` x `resolution` pixels, 8-bit RGB, row-major, interleaved. Scaling to [0, 1], mean
/// and standard deviation are applied when the encoder's input buffer is filled, so that queues hold a quarter of the
/// memory.
#[derive(Debug, Clone, PartialEq)]
pub struct PreparedImage {
    /// `resolution * resolution * 3` bytes.
    pub rgb: Vec<u8>,
}

/// A text, tokenised: `[CLS]`, at most `context_length - 2` ids, `[SEP]`; not padded.
#[derive(Debug, Clone, PartialEq)]
pub struct PreparedText {
    /// Vocabulary ids.
    pub ids: Vec<i64>,
}

/// A tower of the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Tower {
    /// The picture encoder.
    Image,
    /// The text encoder.
    Text,
}

impl Tower {
    /// The name in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Tower::Image => "image",
            Tower::Text => "text",
        }
    }
}

/// A model's two towers. Rows do not depend on one another: an item's vector is the same in every batch.
pub trait Encode: Send {
    /// Raw (not normalised) features of pictures, in order; each has `dimension` values.
    fn images(&mut self, batch: &[PreparedImage]) -> Result<Vec<Vec<f32>>, Fault>;
    /// Raw (not normalised) features of texts, in order; each has `dimension` values.
    fn texts(&mut self, batch: &[PreparedText]) -> Result<Vec<Vec<f32>>, Fault>;
}

/// Inputs that every model of their sizes gives vectors for: where these fail, the encoder does.
#[derive(Debug, Clone)]
pub struct KnownGood {
    /// A picture.
    pub image: PreparedImage,
    /// A text.
    pub text: PreparedText,
}

/// Divides by the Euclidean norm. `None` where the norm is zero or a value is not finite.
pub fn normalise(mut vector: Vec<f32>) -> Option<Vec<f32>> {
    let norm = norm(&vector)?;
    for value in &mut vector {
        *value = (f64::from(*value) / norm) as f32;
    }
    Some(vector)
}

/// The Euclidean norm. `None` where it is zero or a value is not finite.
pub fn norm(vector: &[f32]) -> Option<f64> {
    let norm = vector.iter().map(|value| f64::from(*value) * f64::from(*value)).sum::<f64>().sqrt();
    (norm.is_finite() && norm > f64::from(f32::MIN_POSITIVE)).then_some(norm)
}

/// Section `[encoder]` of the configuration; the comments of `config/default.toml` are the reference.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct EncoderConfig {
    /// The ONNX Runtime shared library. Empty: ORT_DYLIB_PATH, then .cache/onnxruntime (filled by `make setup`), then lib/ beside the binary, then the system's library path.
    pub library: PathBuf,
    /// Execution providers in order of preference: "cuda", "tensorrt", "cpu".
    pub providers: Vec<String>,
    /// True: the start fails unless the first provider of the list serves. False: falls back along the list, and says so
    /// in the log and in the metric `model_info`.
    pub require: bool,
    /// Worker threads, each with a session of its own, which holds the weights once more. 0: two on CPU (one on a single core), one on a GPU.
    pub workers: usize,
    /// Threads inside ONNX Runtime for each worker. 0: cores divided by workers.
    pub threads: usize,
    /// Largest micro-batch of each tower.
    pub max_batch_images: usize,
    /// Largest micro-batch of each tower.
    pub max_batch_texts: usize,
    /// A batch that is not full starts when its oldest item has waited this long. Queries never wait.
    #[serde(with = "humantime_serde")]
    pub max_batch_wait: Duration,
    /// Items that may wait for each tower; beyond this, callers wait.
    pub queue_items: usize,
    /// Where TensorRT keeps the engines that it builds.
    pub tensorrt_cache: PathBuf,
}

impl EncoderConfig {
    pub(crate) fn check(&self) -> anyhow::Result<()> {
        anyhow::ensure!(!self.providers.is_empty(), "encoder.providers is empty; name at least \"cpu\"");
        self.providers.iter().try_for_each(|name| onnx::provider::Provider::parse(name).map(|_| ()))?;
        anyhow::ensure!(
            self.max_batch_images > 0 && self.max_batch_texts > 0 && self.queue_items > 0,
            "encoder.max_batch_images, max_batch_texts and queue_items must be at least 1"
        );
        Ok(())
    }
}
