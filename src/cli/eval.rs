//! `feedlens eval`.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use clap::Args;
use ndarray::{Array2, Axis};
use serde::Serialize;
use toml::Value;

use crate::cli::progress::Progress;
use crate::cli::{calibrate, output, start, transforms, zero_shot};
use crate::config::Config;
use crate::eval::dataset::{Dataset, Image, Source};
use crate::eval::embed::{self, Embedder};
use crate::eval::features::{self, Kind};
use crate::eval::information::{self, MutualInformation};
use crate::eval::predictions::{self, IMAGE_TO_TEXT, TEXT_TO_IMAGE};
use crate::eval::rank::rank;
use crate::eval::recall::{DEPTH, Recall, recall};
use crate::eval::retrieve::Progress as _;
use crate::eval::{chinese_clip, pairs};
use crate::metrics::Metrics;

/// Measure retrieval: Recall@1/5/10 in both directions from labelled pairs; with --zero-shot, classification
///
/// Reads JSON lines {"text": "...", "image": "file"} ("images": [...] for several), or Chinese-CLIP's own evaluation
/// files, of which Flickr30K-CN, COCO-CN and MUGE are made: *_texts.jsonl {"text_id", "text", "image_ids"} with its
/// *_imgs.tsv beside it. Figures and ties are those of its evaluation.
///
/// Prints one JSON object. Recall is in percent: a query is a hit at K if any of its counterparts is among the K best.
/// feature_entropy and mutual_information are in nats, by the estimators that they name.
#[derive(Args)]
pub struct Arguments {
    /// Model bundle; otherwise model.dir of the configuration
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// Labelled pairs (JSON lines), or Chinese-CLIP's *_texts.jsonl
    #[arg(long, value_name = "FILE", required_unless_present = "zero_shot", conflicts_with = "zero_shot")]
    pairs: Option<PathBuf>,
    /// Folder that picture names are relative to, otherwise that of the pairs; or Chinese-CLIP's *_imgs.tsv
    #[arg(long, value_name = "DIR|FILE")]
    images: Option<PathBuf>,
    /// Folder whose pictures are candidates too, even if no text names them
    #[arg(long, value_name = "DIR")]
    candidates: Option<PathBuf>,
    /// Write the ten best pictures of each text, in the format of Chinese-CLIP's predictions. Pairs are numbered from 0
    /// in the order in which texts and pictures first occur
    #[arg(long, value_name = "FILE", help_heading = "Chinese-CLIP's files")]
    predictions: Option<PathBuf>,
    /// Write the ten best texts of each picture
    #[arg(long, value_name = "FILE", help_heading = "Chinese-CLIP's files")]
    predictions_tr: Option<PathBuf>,
    /// Write text_features.jsonl and image_features.jsonl into this folder
    #[arg(long, value_name = "DIR", help_heading = "Chinese-CLIP's files")]
    save_features: Option<PathBuf>,
    /// Take the texts' features from this file (JSON lines {"text_id", "feature"}) instead of the model
    #[arg(long, value_name = "FILE", help_heading = "Chinese-CLIP's files")]
    text_features: Option<PathBuf>,
    /// Take the pictures' features from this file (JSON lines {"image_id", "feature"}) instead of the model
    #[arg(long, value_name = "FILE", help_heading = "Chinese-CLIP's files")]
    image_features: Option<PathBuf>,
    #[command(flatten)]
    zero_shot: zero_shot::Options,
    #[command(flatten)]
    calibrate: calibrate::Options,
    #[command(flatten)]
    transforms: transforms::Options,
}

#[derive(Serialize)]
struct Report {
    /// Absent where no text names a picture.
    text_to_image: Option<Recall>,
    image_to_text: Option<Recall>,
    feature_entropy: Entropy,
    mutual_information: Option<Information>,
}

/// In nats; `maximum` is that of features that fill all directions evenly.
#[derive(Serialize)]
struct Entropy {
    text: Option<f64>,
    image: Option<f64>,
    maximum: f64,
    unit: &'static str,
    estimator: &'static str,
}

#[derive(Serialize)]
struct Information {
    #[serde(flatten)]
    bound: MutualInformation,
    unit: &'static str,
    estimator: &'static str,
}

/// A set with the features of its texts and pictures.
struct Featured {
    set: Dataset,
    texts: Array2<f32>,
    images: Array2<f32>,
}

impl Arguments {
    /// What the options say of the configuration.
    pub fn presets(&self) -> Vec<(String, Value)> {
        start::model_preset(self.model.as_deref())
    }

    /// Empty for `--zero-shot` alone.
    fn pairs(&self) -> &Path {
        self.pairs.as_deref().unwrap_or(Path::new(""))
    }

    /// Encodes everything, ranks, prints.
    pub async fn run(self, config: Config) -> Result<()> {
        if self.zero_shot.is_wanted() {
            return self.zero_shot.run(&config, self.images, self.predictions).await;
        }
        self.check_outputs()?;
        let (arguments, set, [texts, images]) = tokio::task::spawn_blocking(move || {
            let features = [(&self.text_features, Kind::Text), (&self.image_features, Kind::Image)];
            let [texts, images] = features.map(|(file, kind)| file.as_ref().map(|file| features::read(file, kind)));
            let (texts, images) = (texts.transpose()?, images.transpose()?);
            let set = self.read_set(images.as_ref().map(|(ids, _)| ids.as_slice()))?;
            anyhow::Ok((self, set, [texts, images]))
        })
        .await
        .context("reading the set panicked")??;
        if arguments.calibrate.is_wanted() || arguments.transforms.is_wanted() {
            let encoder = start::encoder(&config, &Arc::new(Metrics::new())).await?;
            let embedder = Embedder::new(encoder, &config.encoder, &config.images);
            return match arguments.calibrate.is_wanted() {
                true => arguments.calibrate.run(&embedder, &set, &config.model.dir).await,
                false => arguments.transforms.run(&embedder, &set, &config.query).await,
            };
        }
        if let Some((ids, _)) = &texts {
            arguments.check_order(&set, ids)?;
        }
        let [texts, images] = [texts, images].map(|tower| tower.map(|(_, features)| features));
        let (texts, images) = match (texts, images) {
            (Some(texts), Some(images)) => (texts, images),
            (texts, images) => encode(&config, &set, texts, images).await?,
        };
        let featured = Featured { set, texts, images };
        let report = tokio::task::spawn_blocking(move || arguments.evaluate(&featured)).await;
        output::print(format_args!("{}\n", serde_json::to_string(&report.context("ranking panicked")??)?))
    }

    /// Told now, not after everything is encoded.
    fn check_outputs(&self) -> Result<()> {
        let files = [&self.predictions, &self.predictions_tr].into_iter().flatten();
        let folders = files.filter_map(|file| file.parent()).filter(|folder| !folder.as_os_str().is_empty());
        for folder in folders.chain(self.save_features.as_deref()) {
            ensure!(folder.is_dir(), "there is no folder {} to write into", folder.display());
        }
        Ok(())
    }

    /// Reads the labels. Pictures whose features are read from a file are known by `image_ids`, and have their order.
    fn read_set(&self, image_ids: Option<&[i64]>) -> Result<Dataset> {
        ensure!(
            !self.pairs().is_dir(),
            "--pairs {} is a folder; name a file in it, such as test_texts.jsonl",
            self.pairs().display()
        );
        let content = std::fs::read_to_string(self.pairs())
            .with_context(|| format!("cannot read pairs from {}", self.pairs().display()))?;
        let name = || format!("in {}", self.pairs().display());
        if chinese_clip::is_texts(&content) {
            ensure!(
                self.candidates.is_none(),
                "--candidates goes with pairs; a *_imgs.tsv names all candidates itself"
            );
            let texts = chinese_clip::parse_texts(&content).with_context(name)?;
            let images = match (image_ids, &self.images) {
                (Some(ids), _) => ids.iter().map(|id| Image { id: *id, source: Source::Absent }).collect(),
                (None, Some(file)) => chinese_clip::read_images(file)?,
                (None, None) => chinese_clip::read_images(&chinese_clip::images_beside(self.pairs())?)?,
            };
            return Dataset::link(texts, images).with_context(name);
        }
        ensure!(
            image_ids.is_none() && self.text_features.is_none(),
            "features go with Chinese-CLIP's *_texts.jsonl; pairs have no ids"
        );
        let beside = self.pairs().parent().unwrap_or(Path::new(""));
        let mut set = pairs::parse(&content, self.images.as_deref().unwrap_or(beside)).with_context(name)?;
        if let Some(folder) = &self.candidates {
            set.add_candidates(folder)?;
        }
        Ok(set)
    }

    /// The texts' order ranks equal scores, so a file in another order would give other figures than the reference.
    fn check_order(&self, set: &Dataset, ids: &[i64]) -> Result<()> {
        let wanted = set.texts.iter().map(|text| text.id);
        ensure!(
            wanted.eq(ids.iter().copied()),
            "the text features must be those of {}, in its order, and no others",
            self.pairs().display()
        );
        Ok(())
    }

    fn evaluate(&self, Featured { set, texts, images }: &Featured) -> Result<Report> {
        ensure!(
            texts.ncols() == images.ncols(),
            "texts have {} values a feature and pictures {}: they come from different models",
            texts.ncols(),
            images.ncols()
        );
        if let Some(folder) = &self.save_features {
            let texts_file = folder.join("text_features.jsonl");
            features::write(&texts_file, Kind::Text, set.texts.iter().map(|text| text.id), texts.view())?;
            let images_file = folder.join("image_features.jsonl");
            features::write(&images_file, Kind::Image, set.images.iter().map(|image| image.id), images.view())?;
        }
        let blind = set.is_blind();
        ensure!(
            !blind || self.predictions.is_some() || self.predictions_tr.is_some(),
            "no text of {} names a picture (a blind test split): there is no recall to compute; --predictions FILE \
             writes what to hand in",
            self.pairs().display()
        );
        // A picture that no text names is a candidate and no query; in a blind split all are.
        let is_query = |image: &usize| blind || !set.texts_of_image[*image].is_empty();
        let queries = (0..set.images.len()).filter(is_query).collect::<Vec<_>>();
        let by_text = rank(texts.view(), images.view(), DEPTH);
        let by_image = rank(images.select(Axis(0), &queries).view(), texts.view(), DEPTH);
        if let Some(file) = &self.predictions {
            let lines = set.texts.iter().map(|text| text.id).zip(&by_text);
            predictions::write(file, TEXT_TO_IMAGE, lines, |index| set.images[index].id)?;
        }
        if let Some(file) = &self.predictions_tr {
            let lines = queries.iter().map(|image| set.images[*image].id).zip(&by_image);
            predictions::write(file, IMAGE_TO_TEXT, lines, |index| set.texts[index].id)?;
        }
        let golds = queries.iter().map(|image| &set.texts_of_image[*image]);
        let of_text = |(text, images): (usize, &Vec<usize>)| images.iter().map(move |image| (text, *image)).collect();
        let pairs = set.images_of_text.iter().enumerate().flat_map::<Vec<_>, _>(of_text).collect::<Vec<_>>();
        Ok(Report {
            text_to_image: (!blind).then(|| recall(by_text.iter().zip(&set.images_of_text), set.images.len())),
            image_to_text: (!blind).then(|| recall(by_image.iter().zip(golds), set.texts.len())),
            feature_entropy: Entropy {
                text: information::entropy(texts.view()),
                image: information::entropy(images.view()),
                maximum: (texts.ncols() as f64).ln(),
                unit: "nats",
                estimator: "matrix-based Rényi entropy of order 2, linear kernel",
            },
            mutual_information: information::mutual_information(texts.view(), images.view(), &pairs)
                .map(|bound| Information { bound, unit: "nats", estimator: "InfoNCE lower bound" }),
        })
    }
}

/// Encodes what no file gave.
async fn encode(
    config: &Config,
    set: &Dataset,
    texts: Option<Array2<f32>>,
    images: Option<Array2<f32>>,
) -> Result<(Array2<f32>, Array2<f32>)> {
    let encoder = start::encoder(config, &Arc::new(Metrics::new())).await?;
    let embedder = Embedder::new(encoder, &config.encoder, &config.images);
    let missing = [texts.is_none().then_some(set.texts.len()), images.is_none().then_some(set.images.len())];
    let progress = Progress::new("encoding", missing.into_iter().flatten().sum());
    let done = || progress.done(1);
    let texts = async {
        match texts {
            Some(texts) => Ok(texts),
            None => embed::texts(&embedder, set, done).await,
        }
    };
    let images = async {
        match images {
            Some(images) => Ok(images),
            None => embed::images(&embedder, set, done).await,
        }
    };
    let encoded = tokio::try_join!(texts, images);
    progress.finish();
    encoded
}
