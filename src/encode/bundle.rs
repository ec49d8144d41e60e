//! A model bundle (design 1.6): a folder with the model, its vocabulary and its golden vectors.

use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Section `[model]` of the configuration; the comments of `config/default.toml` are the reference.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ModelConfig {
    /// A model bundle: a folder with model.toml, image.onnx, text.onnx, vocab.txt, golden.json.
    pub dir: PathBuf,
}
