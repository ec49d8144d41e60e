//! The encoder as a whole: bundle, tokenizer, preprocessing and worker threads, checked against its golden vectors.

use std::sync::Arc;

use anyhow::{Context, Result, anyhow, ensure};

use crate::encode::bundle::{Bundle, ModelConfig};
use crate::encode::onnx::OnnxModel;
use crate::encode::preprocess::Preprocessor;
use crate::encode::tokenizer::Tokenizer;
use crate::encode::worker::{EncoderHandle, Priority};
use crate::encode::{Encode, EncoderConfig};
use crate::image::decode::{DecodeOptions, decode};
use crate::metrics::Metrics;

/// Workers on CPU unless told otherwise: two keep the cores busy while one fills its input, and more would hold the
/// weights once more each.
const CPU_WORKERS: usize = 2;

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

impl Encoder {
    /// Loads the bundle and the library, starts the workers and checks the golden vectors. Blocks for as long as the
    /// model takes to load.
    ///
    /// # Errors
    /// One sentence that names the file, tensor, provider or golden item at fault.
    pub fn start(model: &ModelConfig, config: &EncoderConfig, metrics: &Arc<Metrics>) -> Result<Self> {
        let bundle = Bundle::load(&model.dir)?;
        let tokenizer = Arc::new(Tokenizer::load(&bundle.path("vocab.txt"), bundle.context_length)?);
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let on_cpu = config.providers.first().is_none_or(|provider| provider == "cpu");
        let workers = match config.workers {
            0 if on_cpu => cores.min(CPU_WORKERS),
            0 => 1,
            workers => workers,
        };
        let threads = if config.threads == 0 { (cores / workers).max(1) } else { config.threads };
        let onnx = OnnxModel::load(bundle, config, threads)?;
        let encoders =
            (0..workers).map(|_| Ok(Box::new(onnx.worker()?) as Box<dyn Encode>)).collect::<Result<Vec<_>>>()?;
        let handle = EncoderHandle::start(encoders, config, onnx.provider(), metrics.clone())
            .context("cannot start the encoder's threads")?;
        let bundle = onnx.bundle();
        let dimension = bundle.dimension.to_string();
        metrics.model_info.with_label_values(&[&bundle.id, &dimension, onnx.provider()]).set(1.0);
        tracing::info!(
            model = bundle.id,
            dimension = bundle.dimension,
            provider = onnx.provider(),
            workers,
            threads,
            "encoder ready"
        );
        Ok(Self { handle, tokenizer, preprocessor: Preprocessor::new(bundle), bundle: Arc::new(bundle.clone()) })
    }

    /// Runs the golden inputs through the whole encoder.
    ///
    /// # Errors
    /// Names the item, the largest difference found and the tolerance.
    pub async fn check_golden(&self) -> Result<()> {
        let golden = self.bundle.golden()?;
        for item in &golden.texts {
            let vector = self.handle.text(self.tokenizer.encode(&item.text)?, Priority::Query).await?;
            compare(&vector, &item.vector, golden.tolerance).with_context(|| self.disagrees(&item.text))?;
        }
        for item in &golden.images {
            let file = self.bundle.path(&item.file);
            let bytes = tokio::fs::read(&file).await.with_context(|| format!("cannot read {}", file.display()))?;
            let picture = decode(&bytes, &DecodeOptions { max_pixels: GOLDEN_MAX_PIXELS, ..DecodeOptions::default() })
                .map_err(|fault| anyhow!("{}: {fault}", file.display()))?;
            let vector = self.handle.image(self.preprocessor.prepare(&picture), Priority::Query).await?;
            compare(&vector, &item.vector, golden.tolerance).with_context(|| self.disagrees(&item.file))?;
        }
        Ok(())
    }

    fn disagrees(&self, item: &str) -> String {
        format!(
            "the model in {} does not give the vector that golden.json promises for {item:?}; its files do not belong \
             together, or the provider computes wrongly",
            self.bundle.dir.display()
        )
    }
}

fn compare(vector: &[f32], golden: &[f32], tolerance: f32) -> Result<()> {
    let difference = vector.iter().zip(golden).map(|(value, expected)| (value - expected).abs()).fold(0.0, f32::max);
    ensure!(difference <= tolerance, "largest difference {difference}, tolerance {tolerance}");
    Ok(())
}
