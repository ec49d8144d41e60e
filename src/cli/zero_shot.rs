//! `feedlens eval --zero-shot`.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use clap::Args;
use futures::{StreamExt, TryStreamExt};
use ndarray::Array2;
use serde_json::json;

use crate::cli::progress::Progress;
use crate::cli::{WrongUse, output, start};
use crate::config::Config;
use crate::encode::bundle::Family;
use crate::eval::chinese_clip;
use crate::eval::embed::Embedder;
use crate::eval::predictions::write_whole;
use crate::eval::rank::Ranked;
use crate::eval::retrieve::Progress as _;
use crate::eval::zero_shot::{self, Class, LabelledSet};
use crate::labels::ensemble;
use crate::metrics::Metrics;

/// Options that go with `--zero-shot`.
#[derive(Args)]
pub struct Options {
    /// Measure zero-shot classification on --images: a folder with a folder of pictures for each class (or --labels).
    /// Prints top-1 and top-5 accuracy and the mean of the classes' accuracies, in percent
    #[arg(long, help_heading = "Zero-shot classification", requires = "images")]
    zero_shot: bool,
    /// Labels of the pictures, JSON lines {"image": "file", "label": "class"}, instead of a folder for each class
    #[arg(long, value_name = "FILE", help_heading = "Zero-shot classification", requires = "zero_shot")]
    labels: Option<PathBuf>,
    /// Names of the classes, one a line in the order of the folders' names; or JSON lines {"class": "folder", "names":
    /// ["..."], "prompts": ["..."]}. Otherwise the folders' names
    #[arg(long, value_name = "FILE", help_heading = "Zero-shot classification", requires = "zero_shot")]
    classes: Option<PathBuf>,
    /// Templates that the names are put into: zh, en, both, or a file with one a line, "{}" standing for the name. A class is
    /// the mean of its prompts
    #[arg(
        long,
        value_name = "zh|en|both|FILE",
        help_heading = "Zero-shot classification",
        default_value = "zh",
        requires = "zero_shot"
    )]
    templates: String,
}

impl Options {
    /// Whether `--zero-shot` is given.
    pub fn is_wanted(&self) -> bool {
        self.zero_shot
    }

    /// Encodes classes and pictures, ranks, prints. `predictions`: where to write the five nearest classes of each picture.
    pub async fn run(self, config: &Config, images: Option<PathBuf>, predictions: Option<PathBuf>) -> Result<()> {
        let folder = images.ok_or_else(|| WrongUse::new("--zero-shot needs --images FOLDER"))?;
        let templates = zero_shot::templates(&self.templates)?;
        let set = tokio::task::spawn_blocking(move || self.read_set(&folder)).await.context("reading panicked")??;
        let encoder = start::encoder(config, &Arc::new(Metrics::new())).await?;
        let is_chinese_clip = encoder.bundle.family == Family::ChineseClip;
        let embedder = Embedder::new(encoder, &config.encoder, &config.images);
        let progress = Progress::new("encoding", set.classes.len() + set.images.len());
        let mut classes = Vec::with_capacity(set.classes.len());
        for class in &set.classes {
            classes.push(class_vector(&embedder, class, &templates, is_chinese_clip).await?);
            progress.done(1);
        }
        let images = images_of(&embedder, &set, &progress).await?;
        progress.finish();
        let classes = zero_shot::matrix(classes)?;
        let told = tokio::task::spawn_blocking(move || {
            let ranked = zero_shot::classify(images.view(), classes.view());
            if let Some(file) = predictions {
                write_predictions(&file, &set, &ranked)?;
            }
            anyhow::Ok(json!({"zero_shot": zero_shot::accuracy(&set, &ranked)}))
        });
        output::print(format_args!("{}\n", told.await.context("ranking panicked")??))
    }

    fn read_set(&self, folder: &Path) -> Result<LabelledSet> {
        let read =
            |file: &Path| std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()));
        let mut set = match &self.labels {
            Some(file) => {
                LabelledSet::of_lines(&read(file)?, folder).with_context(|| format!("in {}", file.display()))?
            }
            None => LabelledSet::of_folders(folder)?,
        };
        if let Some(file) = &self.classes {
            set.name_classes(&read(file)?).with_context(|| format!("in {}", file.display()))?;
        }
        Ok(set)
    }
}

async fn class_vector(
    embedder: &Embedder,
    class: &Class,
    templates: &[String],
    is_chinese_clip: bool,
) -> Result<Vec<f32>> {
    let mut vectors = Vec::new();
    for prompts in class.prompts(templates).chunks(embedder.in_flight()) {
        // As its own zeroshot_evaluation.py does before it tokenises.
        let adapted = prompts.iter().map(|prompt| match is_chinese_clip {
            true => chinese_clip::adapted(prompt),
            false => prompt.clone(),
        });
        let encoding = adapted.map(async |prompt| embedder.text(&prompt).await);
        vectors.extend(futures::future::try_join_all(encoding).await?);
    }
    ensemble(vectors.iter().map(Vec::as_slice))
        .with_context(|| format!("the prompts of class {:?} have no direction in common", class.key))
}

async fn images_of(embedder: &Embedder, set: &LabelledSet, progress: &Progress) -> Result<Array2<f32>> {
    let mut vectors = Vec::with_capacity(set.images.len());
    let mut encoding = futures::stream::iter(set.images.iter().map(|(source, _)| source.clone()))
        .map(async |source| {
            let vector = async { embedder.image(embedder.read(&source, |bytes| bytes).await?).await };
            vector.await.with_context(|| format!("picture {source}"))
        })
        .buffered(embedder.in_flight());
    while let Some(vector) = encoding.try_next().await? {
        vectors.push(vector);
        progress.done(1);
    }
    zero_shot::matrix(vectors)
}

fn write_predictions(file: &Path, set: &LabelledSet, ranked: &[Ranked]) -> Result<()> {
    write_whole(file, |out| {
        for ((source, class), ranked) in set.images.iter().zip(ranked) {
            let nearest =
                ranked.hits.iter().map(|hit| json!({"class": set.classes[hit.index].key, "score": hit.score}));
            let line = json!({
                "image": source.to_string(),
                "class": set.classes[*class].key,
                "nearest": nearest.collect::<Vec<_>>(),
            });
            writeln!(out, "{line}")?;
        }
        Ok(())
    })
}
