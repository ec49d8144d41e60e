//! Bundles of other projects, recognised by their files and read as they are.
//!
//! | layout | pictures | texts | rules |
//! |---|---|---|---|
//! | cn_clip, `deploy/pytorch_to_onnx.py` | `*.img.fp32.onnx` | `*.txt.fp32.onnx` | cn_clip's own |
//! | Hugging Face: Optimum, transformers.js | `vision_model.onnx`, `model.onnx` | `text_model.onnx`, `model.onnx` | `config.json` |
//! | Immich, `immich_model_exporter` | `visual/model.onnx` | `textual/model.onnx` | `visual/preprocess_cfg.json`, `config.json` |
//! | open_clip | `visual.onnx` and the like | `textual.onnx` and the like | `open_clip_config.json` |
//!
//! None of them has golden vectors, nor the trained `logit_scale`: [`LOGIT_SCALE`] is taken.

mod cn_clip;
mod hugging_face;
mod open_clip;

use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};
use serde::de::DeserializeOwned;

use super::header::{Header, Port};
use super::{Bundle, Family, Layout, Resize, TowerFile};
use crate::image::resize::ConvertRgb;

/// The value at which CLIP's training clips `exp(logit_scale)` (OpenAI, "Learning Transferable Visual Models...", 2.5) and
/// which published models reach. A Hugging Face `logit_scale_init_value` is where training began, not where it ended.
const LOGIT_SCALE: f32 = 100.0;
/// Of OpenAI's CLIP; Chinese-CLIP's too.
const MEAN: [f32; 3] = [0.481_454_66, 0.457_827_5, 0.408_210_73];
const STD: [f32; 3] = [0.268_629_54, 0.261_302_6, 0.275_777_1];
/// Integer inputs of text towers that are not token ids.
const NO_TOKENS: [&str; 3] = ["attention_mask", "token_type_ids", "position_ids"];

/// What a layout's own files say; the graphs say the rest.
struct Description {
    layout: Layout,
    family: Family,
    towers: Pair,
    /// Side of the pictures; `None`: the graph says it.
    resolution: Option<u32>,
    mean: [f32; 3],
    std: [f32; 3],
    resize: Resize,
    convert_rgb: ConvertRgb,
    /// Values of a vector; the graph may say it too.
    dimension: Option<usize>,
    /// Longest text; a graph with a fixed length may say less.
    context_length: usize,
    vocab_size: Option<usize>,
    /// `None`: cn_clip's own vocabulary.
    tokenizer: Option<&'static str>,
    names: Names,
}

/// Names that tensors may have, the first that is there being taken.
struct Names {
    image_input: &'static [&'static str],
    text_input: &'static [&'static str],
    image_output: &'static [&'static str],
    text_output: &'static [&'static str],
    /// Whether, without one of these names, the only tensor that fits is taken.
    guess: bool,
}

/// The towers' files, relative to the folder, and how their weights are stored.
struct Pair {
    image: String,
    text: String,
    precision: &'static str,
}

/// Reads a folder that has no `model.toml`.
///
/// # Errors
/// One sentence: the layout is unknown, or which file, key or tensor does not fit.
pub fn load(dir: &Path) -> Result<Bundle> {
    let has = |name: &str| dir.join(name).exists();
    let described = if has("visual") || has("textual") {
        open_clip::immich(dir)
    } else if has("open_clip_config.json") {
        open_clip::describe(dir)
    } else if has("config.json") {
        hugging_face::describe(dir)
    } else if let Some(towers) = cn_clip::towers(dir)? {
        Ok(cn_clip::describe(towers))
    } else {
        bail!(unknown(dir))
    };
    let description = described.with_context(|| format!("cannot use the model in {}", dir.display()))?;
    description.read(dir)
}

fn unknown(dir: &Path) -> String {
    let files = names_in(dir);
    let checkpoint = files.iter().find(|name| [".pt", ".bin", ".safetensors"].iter().any(|end| name.ends_with(end)));
    let place = dir.display();
    match checkpoint {
        Some(name) => format!(
            "{place} holds a checkpoint ({name}) and no model bundle: make one with tools/export_chinese_clip.py and set \
             model.dir to it"
        ),
        None => format!(
            "no model bundle in {place}: cannot read model.toml, and no export of cn_clip, Hugging Face, Immich or \
             open_clip is there (set model.dir to a bundle's folder)"
        ),
    }
}

fn names_in(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten();
    let mut names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect::<Vec<_>>();
    names.sort();
    names
}

fn read_json<T: DeserializeOwned>(dir: &Path, name: &str) -> Result<T> {
    let text = std::fs::read_to_string(dir.join(name)).with_context(|| format!("cannot read {name}"))?;
    serde_json::from_str(&text).with_context(|| format!("in {name}"))
}

/// Finds the two towers under one of some pairs of names, in the folder or its `onnx/`. Of several precisions (`_fp16`,
/// `_quantized`) the plain name is taken, or the only one.
fn find_pair(dir: &Path, stems: &[(&str, &str)]) -> Result<Pair> {
    let mut found = Vec::new();
    for folder in ["", "onnx/"] {
        let names = names_in(&dir.join(folder));
        for (image, text) in stems {
            for name in &names {
                let Some(suffix) = name.strip_prefix(image).and_then(|rest| rest.strip_suffix(".onnx")) else {
                    continue;
                };
                let other = format!("{text}{suffix}.onnx");
                if !(suffix.is_empty() || suffix.starts_with('_')) || !names.contains(&other) {
                    continue;
                }
                let pair = Pair {
                    image: format!("{folder}{name}"),
                    text: format!("{folder}{other}"),
                    precision: precision(suffix),
                };
                if suffix.is_empty() {
                    return Ok(pair);
                }
                found.push(pair);
            }
        }
    }
    match found.len() {
        1 => Ok(found.remove(0)),
        0 => {
            let wanted = stems.iter().map(|(image, text)| pair_name(image, text)).collect::<Vec<_>>().join(", or ");
            bail!("there is no {wanted}, neither there nor in onnx/")
        }
        _ => {
            let several = found.iter().map(|pair| pair.image.as_str()).collect::<Vec<_>>().join(", ");
            bail!("there are several precisions ({several}): leave one")
        }
    }
}

fn pair_name(image: &str, text: &str) -> String {
    if image == text { format!("{image}.onnx") } else { format!("{image}.onnx with {text}.onnx") }
}

fn precision(suffix: &str) -> &'static str {
    match suffix {
        _ if suffix.contains("16") => "fp16",
        "" => "fp32",
        _ => "int8",
    }
}

impl Description {
    /// Looks the names and sizes up in the graphs.
    fn read(self, dir: &Path) -> Result<Bundle> {
        let (image_file, text_file) = (dir.join(&self.towers.image), dir.join(&self.towers.text));
        let image = Header::read(&image_file)?;
        let text = if image_file == text_file { None } else { Some(Header::read(&text_file)?) };
        let text = text.as_ref().unwrap_or(&image);
        let names = &self.names;
        let find = |file: &Path, kind: Kind, ports, known| {
            find(ports, known, kind, names.guess).with_context(|| format!("cannot use {}", file.display()))
        };
        let pixels = find(&image_file, Kind::Pictures, &image.inputs, names.image_input)?;
        let tokens = find(&text_file, Kind::Tokens, &text.inputs, names.text_input)?;
        let image_features = find(&image_file, Kind::Features, &image.outputs, names.image_output)?;
        let text_features = find(&text_file, Kind::Features, &text.outputs, names.text_output)?;
        let fixed = |port: &Port, index: usize| port.shape.get(index).copied().flatten();
        let resolution = self.resolution.or_else(|| fixed(&pixels, 2).and_then(|side| u32::try_from(side).ok()));
        let dimension = self.dimension.or_else(|| fixed(&image_features, 1));
        let missing = |what: &str| format!("{} does not say its {what}: write a model.toml", image_file.display());
        let shortest = fixed(&tokens, 1).unwrap_or(usize::MAX);
        tracing::info!(
            "{}: {}. It does not hold the trained logit_scale, so {LOGIT_SCALE} is taken: this changes probabilities, \
             never ranks",
            dir.display(),
            self.layout.name()
        );
        Ok(Bundle {
            id: id(dir, self.towers.precision),
            family: self.family,
            dimension: dimension.with_context(|| missing("dimension"))?,
            resolution: resolution.with_context(|| missing("resolution"))?,
            mean: self.mean,
            std: self.std,
            context_length: self.context_length.min(shortest),
            logit_scale: LOGIT_SCALE,
            resize: self.resize,
            convert_rgb: self.convert_rgb,
            precision: self.towers.precision.to_owned(),
            tokenizer: self.tokenizer.map(str::to_owned),
            vocab_size: self.vocab_size,
            image: tower_file(self.towers.image, pixels, image_features),
            text: tower_file(self.towers.text, tokens, text_features),
            layout: self.layout,
            dir: dir.to_owned(),
            calibration: None,
        })
    }
}

fn tower_file(file: String, input: Port, output: Port) -> TowerFile {
    TowerFile { file, input: input.name, output: output.name, mask: None, pad: 0 }
}

/// The folder's name: nothing else in an export tells two models apart that people trained themselves.
fn id(dir: &Path, precision: &str) -> String {
    let path = dir.canonicalize().unwrap_or_else(|_| dir.to_owned());
    let name = path.file_name().map_or_else(|| "model".into(), |name| name.to_string_lossy().into_owned());
    let plain =
        |character: char| if character.is_ascii_alphanumeric() || "._-".contains(character) { character } else { '-' };
    format!("{}-{precision}", name.to_lowercase().chars().map(plain).collect::<String>())
}

#[derive(Clone, Copy)]
enum Kind {
    Pictures,
    Tokens,
    Features,
}

impl Kind {
    fn fits(self, port: &Port) -> bool {
        match self {
            Kind::Pictures => port.is_float() && port.shape.len() == 4,
            Kind::Tokens => port.is_integer() && port.shape.len() == 2 && !NO_TOKENS.contains(&port.name.as_str()),
            Kind::Features => port.is_float() && port.shape.len() == 2,
        }
    }

    fn describe(self) -> &'static str {
        match self {
            Kind::Pictures => "input for pictures",
            Kind::Tokens => "input for token ids",
            Kind::Features => "output with features",
        }
    }
}

fn find(ports: &[Port], known: &[&str], kind: Kind, guess: bool) -> Result<Port> {
    if let Some(port) = known.iter().find_map(|name| ports.iter().find(|port| port.name == *name)) {
        return Ok(port.clone());
    }
    let fitting = ports.iter().filter(|port| guess && kind.fits(port)).collect::<Vec<_>>();
    if let [port] = fitting[..] {
        return Ok(port.clone());
    }
    let names = |ports: &mut dyn Iterator<Item = &str>| ports.map(|name| format!("{name:?}")).collect::<Vec<_>>();
    let there = names(&mut ports.iter().map(|port| port.name.as_str())).join(", ");
    let wanted = names(&mut known.iter().copied()).join(" or ");
    let unprojected = matches!(kind, Kind::Features)
        && ports.iter().any(|port| ["pooler_output", "last_hidden_state"].contains(&port.name.as_str()));
    let reason = if unprojected { "; it was exported without its projection" } else { "" };
    ensure!(!ports.is_empty(), "it has no {} at all", kind.describe());
    bail!("it has no {} named {wanted}; it has {there}{reason}", kind.describe())
}
