//! A model bundle (design 1.6): a folder with `model.toml`, the two towers, the vocabulary and golden vectors; or an
//! export of another project, see [`layout`].

mod header;
mod layout;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use self::header::Header;
use crate::encode::calibration::Calibration;
use crate::encode::tokenizer::Tokenizer;
use crate::image::resize::ConvertRgb;

/// Section `[model]` of the configuration; the comments of `config/default.toml` are the reference.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ModelConfig {
    /// The bundle's folder.
    pub dir: PathBuf,
}

/// What `model.toml` says, or the files of another layout.
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
    /// File of the vocabulary inside the bundle, `vocab.txt` or `tokenizer.json`; `None`: cn_clip's own, which is built in.
    #[serde(default = "vocab_txt")]
    pub tokenizer: Option<String>,
    /// Rows of the text tower's table of tokens.
    #[serde(default)]
    pub vocab_size: Option<usize>,
    /// The picture tower.
    pub image: TowerFile,
    /// The text tower.
    pub text: TowerFile,
    /// Who made the files.
    #[serde(skip)]
    pub layout: Layout,
    /// The folder that it was read from.
    #[serde(skip)]
    pub dir: PathBuf,
    /// Thresholds below which nothing fits, where somebody has measured them.
    #[serde(skip)]
    pub calibration: Option<Calibration>,
}

fn vocab_txt() -> Option<String> {
    Some("vocab.txt".to_owned())
}

/// Whose files a bundle consists of.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Layout {
    /// feedlens' own, with a `model.toml`.
    #[default]
    Feedlens,
    /// cn_clip's `pytorch_to_onnx.py`.
    CnClip,
    /// Hugging Face: Optimum and transformers.js.
    HuggingFace,
    /// Immich's repositories.
    Immich,
    /// Others' exports of open_clip models.
    OpenClip,
}

impl Layout {
    /// For people.
    pub fn name(self) -> &'static str {
        match self {
            Layout::Feedlens => "a feedlens bundle",
            Layout::CnClip => "an export of cn_clip",
            Layout::HuggingFace => "an export in Hugging Face's layout",
            Layout::Immich => "an export in Immich's layout",
            Layout::OpenClip => "an export of an open_clip model",
        }
    }

    /// The file that says what the graphs must be.
    pub fn described_in(self) -> &'static str {
        match self {
            Layout::Feedlens => "model.toml",
            Layout::CnClip => "the other tower",
            Layout::HuggingFace | Layout::Immich => "config.json",
            Layout::OpenClip => "open_clip_config.json",
        }
    }
}

/// A family of models, by the rules for their inputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Family {
    /// OFA-Sys Chinese-CLIP: BERT WordPiece, pictures resized before the conversion to RGB.
    ChineseClip,
    /// OpenAI's CLIP and open_clip's: byte-pair encoding or what `tokenizer.json` says.
    Clip,
}

/// How a picture becomes square.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Resize {
    /// Straight to R x R, Pillow's bicubic with antialiasing.
    Bicubic,
    /// The shorter side to R, then R x R of the middle, half a pixel rounded to the even position: torchvision, open_clip.
    BicubicCrop,
    /// The same, half a pixel rounded down: Hugging Face, Immich.
    BicubicCropDown,
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
    /// Id that fills a text up to the length of its batch; the tokenizer says it.
    #[serde(skip)]
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
    /// Reads a folder and checks that the files it needs are there and whole.
    ///
    /// # Errors
    /// Names the folder, and the file, key or tensor at fault.
    pub fn load(dir: &Path) -> Result<Self> {
        let file = dir.join("model.toml");
        let mut bundle = if file.is_file() { Self::read(dir, &file)? } else { layout::load(dir)? };
        ensure!(
            bundle.dimension > 0 && (1..=4096).contains(&bundle.resolution) && bundle.context_length >= 3,
            "in {}: dimension must be above 0, resolution 1 to 4096 and context_length at least 3",
            bundle.description().display()
        );
        ensure!(
            bundle.std.iter().all(|value| *value > 0.0) && bundle.logit_scale.is_finite() && bundle.logit_scale > 0.0,
            "in {}: std and logit_scale must be above 0",
            bundle.description().display()
        );
        bundle.calibration = Calibration::read(dir)?;
        Ok(bundle)
    }

    fn read(dir: &Path, file: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
        let mut bundle: Self = toml::from_str(&text).with_context(|| format!("in {}", file.display()))?;
        bundle.dir = dir.to_owned();
        let towers = [bundle.image.file.as_str(), bundle.text.file.as_str()];
        for name in towers.into_iter().chain(bundle.tokenizer.as_deref()).chain(["golden.json"]) {
            ensure!(dir.join(name).is_file(), "the model bundle in {} lacks {name}", dir.display());
        }
        for name in towers {
            Header::read(&dir.join(name))?;
        }
        Ok(bundle)
    }

    fn description(&self) -> PathBuf {
        if self.layout == Layout::CnClip { self.dir.clone() } else { self.path(self.layout.described_in()) }
    }

    /// The tokenizer, with a vocabulary that belongs to the text tower. Blocking (tens of milliseconds).
    ///
    /// # Errors
    /// Names the file, and what it lacks; or both sizes, where they differ.
    pub fn load_tokenizer(&self) -> Result<Tokenizer> {
        let Some(name) = &self.tokenizer else {
            return Tokenizer::chinese_clip(self.context_length);
        };
        let file = self.path(name);
        let tokenizer = Tokenizer::load(&file, self.context_length)?;
        let size = tokenizer.vocabulary_size();
        // Tables of Hugging Face models may be padded to a round number; a vocab.txt that is shorter was cut.
        let fits = |rows: usize| size == rows || (size < rows && name.ends_with(".json"));
        ensure!(
            self.vocab_size.is_none_or(fits),
            "{} has {size} tokens, {} says vocab_size = {}: it belongs to another model, or was cut short",
            file.display(),
            self.layout.described_in(),
            self.vocab_size.unwrap_or_default()
        );
        Ok(tokenizer)
    }

    /// A file of the bundle.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Whether there are golden vectors: exports of other projects have none.
    pub fn has_golden(&self) -> bool {
        self.layout == Layout::Feedlens
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
