//! A model bundle (design 1.6): a folder with `model.toml`, the two towers, the vocabulary and golden vectors.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use crate::image::resize::ConvertRgb;

/// Section `[model]` of the configuration; the comments of `config/default.toml` are the reference.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ModelConfig {
    /// The bundle's folder.
    pub dir: PathBuf,
}

/// What `model.toml` says.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bundle {
    /// Names the model in the store and in answers.
    pub id: String,
    /// Decides the rules of tokenising and preprocessing.
    pub family: Family,
    /// Values of a vector.
    pub dimension: usize,
    /// Side of the input picture in pixels.
    pub resolution: u32,
    /// Subtracted from each channel (R, G, B) after scaling to [0, 1].
    pub mean: [f32; 3],
    /// Each channel is divided by it.
    pub std: [f32; 3],
    /// Longest text in tokens, `[CLS]` and `[SEP]` included.
    pub context_length: usize,
    /// exp of the checkpoint's `logit_scale`: the factor on cosines before a softmax.
    pub logit_scale: f32,
    /// How a picture becomes square.
    pub resize: Resize,
    /// When a picture becomes RGB, seen from the resize.
    #[serde(default)]
    pub convert_rgb: ConvertRgb,
    /// How the weights are stored, for people.
    pub precision: String,
    /// The picture tower.
    pub image: TowerFile,
    /// The text tower.
    pub text: TowerFile,
    /// The folder that it was read from.
    #[serde(skip)]
    pub dir: PathBuf,
}

/// A family of models, by the rules for their inputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Family {
    /// OFA-Sys Chinese-CLIP: BERT WordPiece, pictures resized before the conversion to RGB.
    ChineseClip,
}

/// How a picture becomes square.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Resize {
    /// Straight to R x R, Pillow's bicubic with antialiasing.
    Bicubic,
    /// The shorter side to R, then R x R of the middle; torchvision's rounding.
    BicubicCrop,
}

/// One tower's file and the names of its tensors.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TowerFile {
    /// File name inside the bundle.
    pub file: String,
    /// Name of the input tensor.
    pub input: String,
    /// Name of the output tensor.
    pub output: String,
    /// Name of an input that is 1 at tokens and 0 at padding; an input called `attention_mask` need not be named.
    #[serde(default)]
    pub mask: Option<String>,
    /// Id that fills a text up to the length of its batch.
    #[serde(default)]
    pub pad: i64,
}

/// Inputs with the vectors that they must give: `golden.json`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Golden {
    /// Texts.
    pub texts: Vec<GoldenText>,
    /// Pictures.
    pub images: Vec<GoldenImage>,
    /// Largest difference of a value of the L2-normalised vectors.
    pub tolerance: f32,
}

/// A text with its L2-normalised vector.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GoldenText {
    /// The text.
    pub text: String,
    /// Its vector.
    pub vector: Vec<f32>,
}

/// A picture with its L2-normalised vector.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GoldenImage {
    /// File name inside the bundle.
    pub file: String,
    /// Its vector.
    pub vector: Vec<f32>,
}

impl Bundle {
    /// Reads `model.toml` and checks that the files it names are there.
    ///
    /// # Errors
    /// Names the folder, and the file or key at fault.
    pub fn load(dir: &Path) -> Result<Self> {
        let file = dir.join("model.toml");
        let text = std::fs::read_to_string(&file).with_context(|| {
            format!("no model bundle in {}: cannot read model.toml (set model.dir to a bundle's folder)", dir.display())
        })?;
        let mut bundle: Self = toml::from_str(&text).with_context(|| format!("in {}", file.display()))?;
        bundle.dir = dir.to_owned();
        ensure!(
            bundle.dimension > 0 && (1..=4096).contains(&bundle.resolution) && bundle.context_length >= 3,
            "in {}: dimension must be above 0, resolution 1 to 4096 and context_length at least 3",
            file.display()
        );
        ensure!(
            bundle.std.iter().all(|value| *value > 0.0) && bundle.logit_scale.is_finite() && bundle.logit_scale > 0.0,
            "in {}: std and logit_scale must be above 0",
            file.display()
        );
        for name in [bundle.image.file.as_str(), bundle.text.file.as_str(), "vocab.txt", "golden.json"] {
            ensure!(dir.join(name).is_file(), "the model bundle in {} lacks {name}", dir.display());
        }
        Ok(bundle)
    }

    /// A file of the bundle.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Reads `golden.json`.
    ///
    /// # Errors
    /// Names the file and the field or vector at fault.
    pub fn golden(&self) -> Result<Golden> {
        let file = self.path("golden.json");
        let text = std::fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        let golden: Golden = serde_json::from_str(&text).with_context(|| format!("in {}", file.display()))?;
        ensure!(
            !golden.texts.is_empty() && !golden.images.is_empty(),
            "{} needs at least one text and one picture",
            file.display()
        );
        let vectors = golden.texts.iter().map(|item| &item.vector).chain(golden.images.iter().map(|item| &item.vector));
        for vector in vectors {
            ensure!(
                vector.len() == self.dimension,
                "{}: a vector has {} values, model.toml says {}",
                file.display(),
                vector.len(),
                self.dimension
            );
        }
        Ok(golden)
    }
}
