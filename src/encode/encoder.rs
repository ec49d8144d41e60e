//! The encoder as a whole: bundle, tokenizer, preprocessing and worker threads, checked against its golden vectors.

use std::sync::Arc;

use anyhow::{Context, Result, anyhow, bail};
use serde::Serialize;

use crate::encode::bundle::{Bundle, ModelConfig};
use crate::encode::onnx::{Loading, OnnxModel};
use crate::encode::preprocess::Preprocessor;
use crate::encode::tokenizer::Tokenizer;
use crate::encode::worker::{EncoderHandle, Priority};
use crate::encode::{Encode, EncoderConfig, KnownGood, PreparedImage, Tower, norm};
use crate::image::decode::{DecodeOptions, decode};
use crate::metrics::Metrics;

/// Golden pictures are small; this only keeps a wrong file from taking all memory.
const GOLDEN_MAX_PIXELS: u64 = 16_777_216;

/// Everything that turns texts and pictures into vectors; cheap to clone.
#[derive(Clone)]
pub struct Encoder {
    /// The worker threads.
    pub handle: EncoderHandle,
    /// The model's description.
    pub bundle: Arc<Bundle>,
    /// Texts to ids.
    pub tokenizer: Arc<Tokenizer>,
    /// Pictures to the model's input.
    pub preprocessor: Preprocessor,
}

/// How near the vectors come to those that the bundle promises.
#[derive(Debug, Clone, Serialize)]
pub struct Agreement {
    /// The text, or the picture's file name.
    pub item: String,
    /// Largest difference of a value of the L2-normalised vectors.
    pub difference: f32,
    /// Cosine of the vectors.
    pub cosine: f32,
}

impl Encoder {
    /// Loads the bundle and the library, starts the workers and lets each encode a picture and a text. Blocks for as
    /// long as the model takes to load.
    ///
    /// # Errors
    /// One sentence that names the file, tensor or provider at fault.
    pub fn start(model: &ModelConfig, config: &EncoderConfig, metrics: &Arc<Metrics>) -> Result<Self> {
        Self::load(model, config, metrics, Loading::AtStart)
    }

    /// As [`Self::start`], but a tower is loaded when it is first used, and a broken one is found then.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_lazily(model: &ModelConfig, config: &EncoderConfig, metrics: &Arc<Metrics>) -> Result<Self> {
        Self::load(model, config, metrics, Loading::OnFirstUse)
    }

    fn load(model: &ModelConfig, config: &EncoderConfig, metrics: &Arc<Metrics>, loading: Loading) -> Result<Self> {
        let mut bundle = Bundle::load(&model.dir)?;
        let tokenizer = Arc::new(bundle.load_tokenizer()?);
        bundle.text.pad = tokenizer.padding_id();
        let known_good = known_good(&bundle, &tokenizer)?;
        let onnx = OnnxModel::load(bundle, config, loading)?;
        let (workers, threads) = onnx.parallelism();
        let mut encoders: Vec<Box<dyn Encode>> = Vec::with_capacity(workers);
        for _ in 0..workers {
            let mut encoder = Box::new(onnx.worker(loading)?);
            if loading == Loading::AtStart {
                warm_up(encoder.as_mut(), &known_good, &onnx)?;
            }
            encoders.push(encoder);
        }
        let provider = onnx.provider().as_str();
        let handle = EncoderHandle::start(encoders, config, known_good, provider, metrics.clone())
            .context("cannot start the encoder's threads")?;
        let bundle = onnx.bundle();
        let fallback_from = onnx.refused().iter().map(|(provider, _)| provider.as_str()).collect::<Vec<_>>().join(",");
        metrics.tell_model(&bundle.id, bundle.dimension, provider, &fallback_from);
        if !bundle.has_golden() {
            tracing::warn!(
                model = bundle.id,
                "the bundle has no golden vectors: nothing says whether its vectors are right"
            );
        }
        tracing::info!(model = bundle.id, dimension = bundle.dimension, provider, workers, threads, "encoder ready");
        Ok(Self { handle, tokenizer, preprocessor: Preprocessor::new(bundle), bundle: bundle.clone() })
    }

    /// Runs the golden inputs through the whole encoder. A bundle without golden vectors (an export of another project)
    /// has nothing to disagree with.
    ///
    /// # Errors
    /// Names the item, the largest difference found and the tolerance.
    pub async fn check_golden(&self) -> Result<()> {
        let Some((agreements, tolerance)) = self.compare_golden().await? else { return Ok(()) };
        let worst = agreements.iter().max_by(|left, right| left.difference.total_cmp(&right.difference));
        match worst {
            Some(Agreement { item, difference, .. }) if *difference > tolerance => bail!(
                "the model in {} does not give the vector that golden.json promises for {item:?} (largest difference \
                 {difference}, tolerance {tolerance}); its files do not belong together, or the provider computes \
                 wrongly",
                self.bundle.dir.display()
            ),
            _ => Ok(()),
        }
    }

    /// The golden inputs' vectors beside the promised ones, and the tolerance; `None`: the bundle has none.
    ///
    /// # Errors
    /// An input cannot be read or encoded.
    pub async fn compare_golden(&self) -> Result<Option<(Vec<Agreement>, f32)>> {
        if !self.bundle.has_golden() {
            return Ok(None);
        }
        let golden = self.bundle.golden()?;
        let mut agreements = Vec::new();
        for item in golden.texts {
            let vector = self.handle.text(self.tokenizer.encode(&item.text)?, Priority::Query).await?;
            agreements.push(Agreement::of(item.text, &vector, &item.vector));
        }
        for item in golden.images {
            let file = self.bundle.path(&item.file);
            let bytes = tokio::fs::read(&file).await.with_context(|| format!("cannot read {}", file.display()))?;
            let picture = decode(&bytes, &DecodeOptions { max_pixels: GOLDEN_MAX_PIXELS, ..DecodeOptions::default() })
                .map_err(|fault| anyhow!("{}: {fault}", file.display()))?;
            let vector = self.handle.image(self.preprocessor.prepare(&picture), Priority::Query).await?;
            agreements.push(Agreement::of(item.file, &vector, &item.vector));
        }
        Ok(Some((agreements, golden.tolerance)))
    }
}

impl Agreement {
    fn of(item: String, vector: &[f32], golden: &[f32]) -> Self {
        let pairs = || vector.iter().zip(golden);
        let difference = pairs().map(|(value, expected)| (value - expected).abs()).fold(0.0, f32::max);
        let product = pairs().map(|(value, expected)| f64::from(*value) * f64::from(*expected)).sum::<f64>();
        let norms = norm(vector).unwrap_or(1.0) * norm(golden).unwrap_or(1.0);
        Self { item, difference, cosine: (product / norms) as f32 }
    }
}

/// A grey picture, and a text that fills the context: what fits in memory after them fits always.
fn known_good(bundle: &Bundle, tokenizer: &Tokenizer) -> Result<KnownGood> {
    let text = tokenizer.encode(&"海边的日落 ".repeat(bundle.context_length))?;
    let side = bundle.resolution as usize;
    Ok(KnownGood { image: PreparedImage { rgb: vec![127; 3 * side * side] }, text })
}

/// The first run finds what loading does not: an operator without a kernel, a device without memory.
fn warm_up(encoder: &mut dyn Encode, known_good: &KnownGood, onnx: &OnnxModel) -> Result<()> {
    let images = encoder.images(std::slice::from_ref(&known_good.image));
    let texts = encoder.texts(std::slice::from_ref(&known_good.text));
    for (tower, encoded) in [(Tower::Image, images), (Tower::Text, texts)] {
        let file = onnx.file(tower);
        let rows = encoded.map_err(|fault| anyhow!("{} cannot encode: {fault}", file.display()))?;
        if rows.iter().any(|row| norm(row).is_none()) {
            bail!("{} gives features that are zero, infinite or not a number", file.display());
        }
    }
    Ok(())
}
