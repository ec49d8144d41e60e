//! Models of open_clip (mlfoundations/open_clip), whose `open_clip_config.json` holds `model_cfg` and `preprocess_cfg`,
//! and Immich's repositories of them (immich-app/ml-models, `exporters/onnx/models/openclip.py`): `visual/model.onnx` with
//! `image` [1, 3, R, R] -> `embedding`, `textual/model.onnx` with `text` int32 [1, L] -> `embedding`, both normalised,
//! the two configurations in files of their own, the tokenizer in `textual/`.
//!
//! open_clip itself exports no ONNX: whoever does chooses the names, so the only tensor that fits is taken.

use std::path::Path;

use anyhow::{Result, bail, ensure};
use serde::Deserialize;

use super::{Description, MEAN, Names, Pair, STD, find_pair, read_json};
use crate::encode::bundle::{Family, Layout, Resize};
use crate::image::resize::ConvertRgb;

#[derive(Deserialize)]
struct OpenClipConfig {
    model_cfg: ModelConfig,
    preprocess_cfg: PreprocessConfig,
}

#[derive(Deserialize)]
struct ModelConfig {
    embed_dim: usize,
    vision_cfg: VisionConfig,
    #[serde(default)]
    text_cfg: TextConfig,
    init_logit_bias: Option<f64>,
}

#[derive(Deserialize)]
struct VisionConfig {
    image_size: Side,
}

#[derive(Default, Deserialize)]
struct TextConfig {
    context_length: Option<usize>,
    vocab_size: Option<usize>,
    hf_model_name: Option<String>,
    tokenizer_kwargs: Option<TokenizerArguments>,
}

#[derive(Deserialize)]
struct TokenizerArguments {
    clean: Option<String>,
}

#[derive(Deserialize)]
struct PreprocessConfig {
    size: Option<Side>,
    mean: Option<[f32; 3]>,
    std: Option<[f32; 3]>,
    interpolation: Option<String>,
    resize_mode: Option<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
enum Side {
    Square(u32),
    Sides([u32; 2]),
}

impl Side {
    fn square(self, file: &str) -> Result<u32> {
        match self {
            Side::Square(side) => Ok(side),
            Side::Sides([height, width]) if height == width => Ok(height),
            Side::Sides([height, width]) => bail!("{file} says {height} x {width} pixels; only squares can be used"),
        }
    }
}

/// The files of a layout.
struct Files {
    layout: Layout,
    model: &'static str,
    preprocess: &'static str,
    tokenizer: &'static str,
    /// open_clip's transform resizes first; Immich decodes to RGB first (`immich_ml/models/transforms.py`).
    convert_rgb: ConvertRgb,
    /// What "shortest", their common default, means to each.
    shortest: Resize,
}

const OPEN_CLIP: Files = Files {
    layout: Layout::OpenClip,
    model: "open_clip_config.json",
    preprocess: "open_clip_config.json",
    tokenizer: "tokenizer.json",
    convert_rgb: ConvertRgb::After,
    shortest: Resize::BicubicCrop,
};

const IMMICH: Files = Files {
    layout: Layout::Immich,
    model: "config.json",
    preprocess: "visual/preprocess_cfg.json",
    tokenizer: "textual/tokenizer.json",
    convert_rgb: ConvertRgb::Before,
    shortest: Resize::BicubicCropDown,
};

/// A folder with `open_clip_config.json`.
pub fn describe(dir: &Path) -> Result<Description> {
    let config: OpenClipConfig = read_json(dir, OPEN_CLIP.model)?;
    let stems =
        [("visual", "textual"), ("vision_model", "text_model"), ("clip_visual", "clip_text"), ("image", "text")];
    OPEN_CLIP.describe(dir, config.model_cfg, config.preprocess_cfg, find_pair(dir, &stems)?)
}

/// A folder as Immich makes them.
pub fn immich(dir: &Path) -> Result<Description> {
    let towers = Pair { image: "visual/model.onnx".into(), text: "textual/model.onnx".into(), precision: "fp32" };
    for file in [&towers.image, &towers.text] {
        ensure!(dir.join(file).is_file(), "there is no {file}");
    }
    IMMICH.describe(dir, read_json(dir, IMMICH.model)?, read_json(dir, IMMICH.preprocess)?, towers)
}

impl Files {
    fn describe(
        &self,
        dir: &Path,
        model: ModelConfig,
        preprocess: PreprocessConfig,
        towers: Pair,
    ) -> Result<Description> {
        ensure!(
            model.init_logit_bias.is_none(),
            "{} describes a SigLIP model (init_logit_bias), whose texts and scores follow other rules",
            self.model
        );
        let text = model.text_cfg;
        if let Some(clean) = text.tokenizer_kwargs.and_then(|arguments| arguments.clean) {
            ensure!(
                clean == "whitespace",
                "{} says tokenizer_kwargs.clean = {clean:?}; only \"whitespace\" can be used",
                self.model
            );
        }
        ensure!(dir.join(self.tokenizer).is_file(), "there is no {}", self.tokenizer);
        let interpolation = preprocess.interpolation.unwrap_or_else(|| "bicubic".into());
        ensure!(
            interpolation == "bicubic",
            "{} says interpolation = {interpolation:?}; only \"bicubic\" can be used",
            self.preprocess
        );
        let resize = match preprocess.resize_mode.as_deref() {
            None | Some("shortest") => self.shortest,
            Some("squash") => Resize::Bicubic,
            Some(mode) => {
                bail!("{} says resize_mode = {mode:?}; only \"shortest\" and \"squash\" can be used", self.preprocess)
            }
        };
        let resolution = model.vision_cfg.image_size.square(self.model)?;
        if let Some(size) = preprocess.size {
            let size = size.square(self.preprocess)?;
            ensure!(
                size == resolution,
                "{} says pictures of {size} pixels, {} says {resolution}",
                self.preprocess,
                self.model
            );
        }
        Ok(Description {
            layout: self.layout,
            family: Family::Clip,
            towers,
            resolution: Some(resolution),
            mean: preprocess.mean.unwrap_or(MEAN),
            std: preprocess.std.unwrap_or(STD),
            resize,
            convert_rgb: self.convert_rgb,
            dimension: Some(model.embed_dim),
            context_length: text.context_length.unwrap_or(77),
            // That of a Hugging Face text tower is in a configuration that is not here.
            vocab_size: if text.hf_model_name.is_some() { None } else { Some(text.vocab_size.unwrap_or(49_408)) },
            tokenizer: Some(self.tokenizer),
            names: Names {
                image_input: &["image", "pixel_values"],
                text_input: &["text", "input_ids"],
                image_output: &["embedding", "image_embeds", "image_features"],
                text_output: &["embedding", "text_embeds", "text_features"],
                guess: true,
            },
        })
    }
}
