//! `feedlens model preprocess`.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, ensure};
use clap::Args;
use toml::Value;

use crate::cli::start;
use crate::config::Config;
use crate::encode::bundle::Bundle;
use crate::encode::preprocess::{Preprocessor, fill};
use crate::image::decode::decode;

/// Turn a picture into the numbers that the model reads
///
/// Writes a NumPy file: float32 of the shape [3, R, R], channels R, G, B, scaled and normalised as the model wants them.
/// Nothing of ONNX Runtime is needed.
#[derive(Args)]
pub struct Arguments {
    /// Model bundle; otherwise model.dir of the configuration
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// PNG, JPEG, WebP, GIF or BMP
    image: PathBuf,
    /// The file to write; one that is there is replaced
    #[arg(long, value_name = "FILE.npy")]
    out: PathBuf,
}

impl Arguments {
    /// What the options say of the configuration.
    pub fn presets(&self) -> Vec<(String, Value)> {
        start::model_preset(self.model.as_deref())
    }

    /// Decodes, resizes, normalises, writes.
    pub async fn run(self, config: Config) -> Result<()> {
        tokio::task::spawn_blocking(move || preprocess(&config, &self.image, &self.out))
            .await
            .context("preprocessing panicked")?
    }
}

fn preprocess(config: &Config, image: &Path, out: &Path) -> Result<()> {
    let bundle = Bundle::load(&config.model.dir)?;
    let cannot_read = || format!("cannot read {}", image.display());
    let length = std::fs::metadata(image).with_context(cannot_read)?.len();
    ensure!(
        length <= config.images.max_bytes,
        "{}: {length} bytes, above images.max_bytes = {}",
        image.display(),
        config.images.max_bytes
    );
    let bytes = std::fs::read(image).with_context(cannot_read)?;
    let picture = decode(&bytes, &config.images.decode_options(bundle.resolution))
        .map_err(|fault| anyhow!("{}: {fault}", image.display()))?;
    let prepared = Preprocessor::new(&bundle).prepare(&picture);
    let mut tensor = vec![0.0; prepared.rgb.len()];
    fill(&prepared.rgb, bundle.mean, bundle.std, &mut tensor);
    std::fs::write(out, npy(bundle.resolution, &tensor)).with_context(|| format!("cannot write {}", out.display()))
}

/// NumPy's file format, version 1.0, for float32 of the shape [3, R, R] (numpy.lib.format).
fn npy(resolution: u32, tensor: &[f32]) -> Vec<u8> {
    const BEFORE_HEADER: usize = 10;
    const ALIGNMENT: usize = 64;
    let mut header = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': (3, {resolution}, {resolution}), }}");
    let length = (BEFORE_HEADER + header.len() + 1).next_multiple_of(ALIGNMENT) - BEFORE_HEADER;
    header = format!("{header:<width$}\n", width = length - 1);
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend((length as u16).to_le_bytes());
    bytes.extend(header.into_bytes());
    bytes.extend(tensor.iter().flat_map(|value| value.to_le_bytes()));
    bytes
}
