//! `feedlens eval`.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, anyhow};
use clap::Args;
use futures::{StreamExt, TryStreamExt};
use serde::Serialize;
use toml::Value;

use crate::cli::start;
use crate::config::Config;
use crate::encode::encoder::Encoder;
use crate::encode::worker::Priority;
use crate::eval::pairs::Pairs;
use crate::eval::recall::{Recall, recall};
use crate::image::decode::{DecodeLimits, decode};
use crate::metrics::Metrics;

/// Pictures being read and decoded at a time.
const IN_FLIGHT: usize = 64;

/// Measure retrieval: Recall@1/5/10 in both directions from labelled pairs
///
/// Reads JSON lines {"text": "...", "image": "file"} ("images": [...] for several) and prints one JSON object with the
/// figures in percent. A query is a hit at K if any of its counterparts is among the K best.
#[derive(Args)]
pub struct Arguments {
    /// Model bundle; otherwise model.dir of the configuration
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// Labelled pairs, JSON lines
    #[arg(long, value_name = "FILE")]
    pairs: PathBuf,
    /// Folder that picture names are relative to; otherwise the folder of the pairs
    #[arg(long, value_name = "DIR")]
    images: Option<PathBuf>,
    /// Folder whose pictures are candidates too, even if no text names them
    #[arg(long, value_name = "DIR")]
    candidates: Option<PathBuf>,
}

#[derive(Serialize)]
struct Report {
    text_to_image: Recall,
    image_to_text: Recall,
}

impl Arguments {
    /// What the options say of the configuration.
    pub fn presets(&self) -> Vec<(String, Value)> {
        // Pictures of an evaluation set are all there: full batches, no waiting.
        let model = self.model.as_ref().map(|dir| ("model.dir".to_owned(), Value::from(dir.display().to_string())));
        model.into_iter().collect()
    }

    /// Encodes everything, ranks, prints.
    pub async fn run(self, config: Config) -> Result<()> {
        let beside = self.pairs.parent().unwrap_or(Path::new("")).to_owned();
        let mut pairs = Pairs::read(&self.pairs, self.images.as_deref().unwrap_or(&beside))?;
        if let Some(folder) = &self.candidates {
            pairs.add_candidates(folder)?;
        }
        let encoder = start::encoder(&config, &Arc::new(Metrics::new())).await?;
        let limits = DecodeLimits { max_pixels: config.images.max_pixels };
        let images = futures::stream::iter(&pairs.images)
            .map(|file| encode_image(&encoder, file, &limits))
            .buffered(IN_FLIGHT)
            .try_collect::<Vec<_>>();
        let texts = futures::stream::iter(&pairs.texts)
            .map(|text| encode_text(&encoder, text))
            .buffered(IN_FLIGHT)
            .try_collect::<Vec<_>>();
        let (images, texts) = tokio::try_join!(images, texts)?;
        // A candidate that no text names is no query.
        let (queries, golds): (Vec<_>, Vec<_>) = images
            .iter()
            .zip(&pairs.texts_of_image)
            .filter(|(_, gold)| !gold.is_empty())
            .map(|(vector, gold)| (vector.clone(), gold.clone()))
            .unzip();
        let report = Report {
            text_to_image: recall(&texts, &images, &pairs.images_of_text),
            image_to_text: recall(&queries, &texts, &golds),
        };
        println!("{}", serde_json::to_string(&report)?);
        Ok(())
    }
}

async fn encode_image(encoder: &Encoder, file: &Path, limits: &DecodeLimits) -> Result<Vec<f32>> {
    let bytes = tokio::fs::read(file).await.with_context(|| format!("cannot read {}", file.display()))?;
    let (preprocessor, limits) = (encoder.preprocessor, *limits);
    let prepared =
        tokio::task::spawn_blocking(move || decode(&bytes, &limits).map(|picture| preprocessor.prepare(&picture)))
            .await
            .context("decoding panicked")?
            .map_err(|fault| anyhow!("{}: {fault}", file.display()))?;
    Ok(encoder.handle.image(prepared, Priority::Feed).await?)
}

async fn encode_text(encoder: &Encoder, text: &str) -> Result<Vec<f32>> {
    Ok(encoder.handle.text(encoder.tokenizer.encode(text)?, Priority::Feed).await?)
}
