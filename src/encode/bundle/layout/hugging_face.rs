//! Exports of Hugging Face's `ChineseCLIPModel` and `CLIPModel`: by Optimum (`ChineseCLIPOnnxConfig`, `CLIPOnnxConfig` in
//! `optimum/exporters/onnx/model_configs.py`) as one graph, or split; and transformers.js' repositories, which keep them
//! in `onnx/` in several precisions. Inputs `pixel_values`, `input_ids`, `attention_mask`; outputs `image_embeds`,
//! `text_embeds`, normalised or not.

use std::path::Path;

use anyhow::{Result, bail, ensure};
use serde::Deserialize;

use super::{Description, MEAN, Names, STD, find_pair, read_json};
use crate::encode::bundle::{Family, Layout, Resize};
use crate::image::resize::ConvertRgb;

/// `config.json`; what it leaves out is transformers' default.
#[derive(Deserialize)]
struct Config {
    model_type: String,
    projection_dim: Option<usize>,
    #[serde(default)]
    text_config: TextConfig,
    #[serde(default)]
    vision_config: VisionConfig,
}

#[derive(Default, Deserialize)]
struct TextConfig {
    max_position_embeddings: Option<usize>,
    vocab_size: Option<usize>,
}

#[derive(Default, Deserialize)]
struct VisionConfig {
    image_size: Option<u32>,
}

/// `preprocessor_config.json` of `ChineseCLIPImageProcessor` and `CLIPImageProcessor`.
#[derive(Deserialize)]
struct Processor {
    do_resize: Option<bool>,
    size: Option<Size>,
    resample: Option<u32>,
    do_center_crop: Option<bool>,
    crop_size: Option<Size>,
    do_rescale: Option<bool>,
    rescale_factor: Option<f64>,
    do_normalize: Option<bool>,
    do_convert_rgb: Option<bool>,
    image_mean: Option<[f32; 3]>,
    image_std: Option<[f32; 3]>,
}

#[derive(Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
enum Size {
    Side(u32),
    Shortest { shortest_edge: u32 },
    Sides { height: u32, width: u32 },
}

/// `processor_config.json`, in which transformers 5 keeps the former.
#[derive(Deserialize)]
struct Combined {
    image_processor: Processor,
}

/// Pillow's number for bicubic.
const BICUBIC: u32 = 3;
/// Chinese-CLIP's texts are cut to this length, though its positions go to 512.
const CHINESE_CLIP_CONTEXT: usize = 52;

/// What the folder's JSON files say.
pub fn describe(dir: &Path) -> Result<Description> {
    let config: Config = read_json(dir, "config.json")?;
    let positions = config.text_config.max_position_embeddings;
    let (family, context_length, vocab_size) = match config.model_type.as_str() {
        "chinese_clip" => (Family::ChineseClip, CHINESE_CLIP_CONTEXT.min(positions.unwrap_or(usize::MAX)), 21_128),
        "clip" => (Family::Clip, positions.unwrap_or(77), 49_408),
        other => bail!("config.json says model_type {other:?}; only \"chinese_clip\" and \"clip\" can be used"),
    };
    let tokenizer = match family {
        // Its rules are cn_clip's; those of tokenizer.json differ in rare characters.
        Family::ChineseClip if dir.join("vocab.txt").is_file() => "vocab.txt",
        _ => "tokenizer.json",
    };
    ensure!(dir.join(tokenizer).is_file(), "there is no {tokenizer}");
    let (name, processor) = if dir.join("preprocessor_config.json").is_file() {
        ("preprocessor_config.json", read_json::<Processor>(dir, "preprocessor_config.json")?)
    } else {
        ("processor_config.json", read_json::<Combined>(dir, "processor_config.json")?.image_processor)
    };
    let resolution = config.vision_config.image_size.unwrap_or(224);
    let resize = processor.resize(name, resolution)?;
    Ok(Description {
        layout: Layout::HuggingFace,
        family,
        towers: find_pair(dir, &[("vision_model", "text_model"), ("model", "model")])?,
        resolution: Some(resolution),
        mean: processor.image_mean.unwrap_or(MEAN),
        std: processor.image_std.unwrap_or(STD),
        resize,
        convert_rgb: ConvertRgb::Before,
        dimension: Some(config.projection_dim.unwrap_or(512)),
        context_length,
        vocab_size: Some(config.text_config.vocab_size.unwrap_or(vocab_size)),
        tokenizer: Some(tokenizer),
        names: Names {
            image_input: &["pixel_values"],
            text_input: &["input_ids"],
            image_output: &["image_embeds"],
            text_output: &["text_embeds"],
            guess: false,
        },
    })
}

impl Processor {
    /// How a picture becomes `resolution` x `resolution` pixels.
    fn resize(&self, name: &str, resolution: u32) -> Result<Resize> {
        for (key, value) in [
            ("do_resize", self.do_resize),
            ("do_rescale", self.do_rescale),
            ("do_normalize", self.do_normalize),
            ("do_convert_rgb", self.do_convert_rgb),
        ] {
            ensure!(value != Some(false), "{name} says {key} = false; pictures cannot be prepared without it");
        }
        let resample = self.resample.unwrap_or(BICUBIC);
        ensure!(resample == BICUBIC, "{name} says resample = {resample}; only {BICUBIC}, bicubic, can be used");
        let factor = self.rescale_factor.unwrap_or(1.0 / 255.0);
        ensure!((factor * 255.0 - 1.0).abs() < 1e-6, "{name} says rescale_factor = {factor}; only 1/255 can be used");
        let cropped = match self.crop_size {
            _ if self.do_center_crop == Some(false) => None,
            None => Some(224),
            Some(Size::Side(side) | Size::Shortest { shortest_edge: side }) => Some(side),
            Some(Size::Sides { height, width }) => Some(if height == width { height } else { 0 }),
        };
        let fits = cropped.is_none_or(|side| side == resolution);
        match self.size.unwrap_or(Size::Shortest { shortest_edge: 224 }) {
            Size::Sides { height, width } if height == resolution && width == resolution && fits => Ok(Resize::Bicubic),
            Size::Side(side) | Size::Shortest { shortest_edge: side }
                if side == resolution && fits && cropped.is_some() =>
            {
                Ok(Resize::BicubicCropDown)
            }
            _ => bail!(
                "{name} does not make pictures of {resolution} x {resolution} pixels, which config.json wants, by one \
                 resize and at most a centre crop"
            ),
        }
    }
}
