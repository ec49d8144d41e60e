//! `feedlens model check`.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use clap::Args;
use serde::Serialize;
use toml::Value;

use crate::cli::output;
use crate::cli::start;
use crate::config::Config;
use crate::encode::bundle::Bundle;
use crate::encode::check::{TEXT_TOKENS, TowerReport, measure};
use crate::encode::encoder::{Agreement, Encoder};
use crate::encode::onnx::{Loading, OnnxModel};
use crate::metrics::Metrics;

/// Check a model and measure it here: tensors, provider, golden vectors, speed by batch size
///
/// Ends with exit code 1 if a golden vector disagrees.
#[derive(Args)]
pub struct Arguments {
    /// Model bundle; otherwise model.dir of the configuration
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// One JSON object instead of text
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Report {
    model: String,
    dir: String,
    dimension: usize,
    resolution: u32,
    context_length: usize,
    precision: String,
    provider: &'static str,
    /// Providers that were preferred and cannot serve, with the reason.
    refused: Vec<Refused>,
    workers: usize,
    threads: usize,
    image: TowerReport,
    text: TowerReport,
    /// `null`: the bundle has no golden vectors.
    golden: Option<Golden>,
}

#[derive(Serialize)]
struct Refused {
    provider: &'static str,
    reason: String,
}

#[derive(Serialize)]
struct Golden {
    agrees: bool,
    largest_difference: f32,
    tolerance: f32,
    smallest_cosine: f32,
    items: Vec<Agreement>,
}

impl Arguments {
    /// What the options say of the configuration.
    pub fn presets(&self) -> Vec<(String, Value)> {
        start::model_preset(self.model.as_deref())
    }

    /// Loads, measures, compares, prints.
    pub async fn run(self, config: Config) -> Result<()> {
        let (dir, settings) = (config.model.dir.clone(), config.encoder.clone());
        let measured = tokio::task::spawn_blocking(move || {
            let model = OnnxModel::load(Bundle::load(&dir)?, &settings, Loading::OnFirstUse)?;
            let towers = measure(&model)?;
            anyhow::Ok((model, towers))
        });
        let (model, [image, text]) = measured.await.context("measuring the model panicked")??;
        let (workers, threads) = model.parallelism();
        let refused = model.refused().iter();
        let mut report = Report {
            model: model.bundle().id.clone(),
            dir: model.bundle().dir.display().to_string(),
            dimension: model.bundle().dimension,
            resolution: model.bundle().resolution,
            context_length: model.bundle().context_length,
            precision: model.bundle().precision.clone(),
            provider: model.provider().as_str(),
            refused: refused
                .map(|(provider, reason)| Refused { provider: provider.as_str(), reason: reason.clone() })
                .collect(),
            workers,
            threads,
            image,
            text,
            golden: None,
        };
        drop(model);
        report.golden = golden(config).await?;
        if self.json {
            output::print(format_args!("{}\n", serde_json::to_string(&report)?))?;
        } else {
            output::print(report.render())?;
        }
        ensure!(report.golden.is_none_or(|golden| golden.agrees), "golden vectors disagree");
        Ok(())
    }
}

async fn golden(config: Config) -> Result<Option<Golden>> {
    let encoder =
        tokio::task::spawn_blocking(move || Encoder::start(&config.model, &config.encoder, &Arc::new(Metrics::new())));
    let encoder = encoder.await.context("loading the model panicked")??;
    let Some((items, tolerance)) = encoder.compare_golden().await? else { return Ok(None) };
    let largest_difference = items.iter().map(|item| item.difference).fold(0.0, f32::max);
    let smallest_cosine = items.iter().map(|item| item.cosine).fold(1.0, f32::min);
    let agrees = largest_difference <= tolerance;
    Ok(Some(Golden { agrees, largest_difference, tolerance, smallest_cosine, items }))
}

impl Report {
    fn render(&self) -> String {
        let mut text = String::new();
        let _ = writeln!(
            text,
            "model     {} in {}: vectors of {}, pictures of {} x {}, texts of up to {} tokens, {}",
            self.model, self.dir, self.dimension, self.resolution, self.resolution, self.context_length, self.precision
        );
        let _ =
            writeln!(text, "provider  {}, {} workers with {} threads each", self.provider, self.workers, self.threads);
        for refused in &self.refused {
            let _ = writeln!(text, "          not {}: {}", refused.provider, refused.reason);
        }
        for (name, tower) in [("pictures", &self.image), ("texts", &self.text)] {
            render_tower(&mut text, name, tower);
        }
        let _ = writeln!(text, "golden    {}", self.render_golden());
        render_speed(&mut text, &self.image, &self.text);
        let _ = writeln!(
            text,
            "best      encoder.max_batch_images = {}, encoder.max_batch_texts = {}: the smallest within 5 % of the fastest",
            self.image.recommended_batch, self.text.recommended_batch
        );
        text
    }

    fn render_golden(&self) -> String {
        match &self.golden {
            None => "the bundle has no golden vectors, so nothing says whether these are right".to_owned(),
            Some(golden) => format!(
                "{} of {} items: largest difference {:.1e} (tolerance {:.1e}), smallest cosine {:.7}",
                if golden.agrees { "agrees in all" } else { "DISAGREES among" },
                golden.items.len(),
                golden.largest_difference,
                golden.tolerance,
                golden.smallest_cosine
            ),
        }
    }
}

fn render_tower(text: &mut String, name: &str, tower: &TowerReport) {
    const MEGABYTE: f64 = 1e6;
    let _ = writeln!(
        text,
        "{name:<10}{}, {:.1} MB; {:.0} MB of memory in the first worker",
        tower.file,
        tower.bytes as f64 / MEGABYTE,
        tower.memory_bytes as f64 / MEGABYTE
    );
    for (kind, ports) in [("input", &tower.inputs), ("output", &tower.outputs)] {
        for port in ports {
            let shape = port.shape.join(", ");
            let _ = writeln!(text, "          {kind:<7} {:<24} {} [{shape}]", port.name, port.element);
        }
    }
    if let Some(batch) = tower.fixed_batch {
        let _ =
            writeln!(text, "          fixed batch of {batch}: for batches, export with tools/export_chinese_clip.py");
    }
}

fn render_speed(text: &mut String, image: &TowerReport, texts: &TowerReport) {
    let _ = writeln!(text, "speed     {:>6}{:>14}{:>14} of {TEXT_TOKENS} tokens", "batch", "pictures/s", "texts/s");
    for index in 0..image.speed.len().max(texts.speed.len()) {
        let batch = image.speed.get(index).or(texts.speed.get(index)).map_or(0, |speed| speed.batch);
        let shown = |tower: &TowerReport| {
            tower.speed.get(index).map_or("-".to_owned(), |speed| format!("{:.1}", speed.items_per_second))
        };
        let _ = writeln!(text, "          {batch:>6}{:>14}{:>14}", shown(image), shown(texts));
    }
}
