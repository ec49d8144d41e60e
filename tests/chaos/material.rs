//! What posts are made of: the captions and pictures of the demo's feed.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

/// Enough that two posts seldom share a picture.
const PICTURES: usize = 300;

/// A picture of the demo's feed.
pub struct Picture {
    pub file: PathBuf,
    pub bytes: Vec<u8>,
    pub base64: String,
}

/// Captions and pictures by number.
pub struct Material {
    pub captions: Vec<String>,
    pub pictures: Vec<Picture>,
}

impl Material {
    /// Reads the demo's feed in `root/demo`.
    pub fn read(root: &Path) -> Result<Self> {
        let folder = root.join("demo");
        let feed = std::fs::read_to_string(folder.join("feed.jsonl")).context("demo/feed.jsonl")?;
        let (mut captions, mut pictures) = (Vec::new(), Vec::new());
        for line in feed.lines() {
            // The feed has bad posts of its own.
            let Ok(line) = serde_json::from_str::<Value>(line) else { continue };
            captions.extend(line["caption"].as_str().filter(|caption| !caption.trim().is_empty()).map(str::to_owned));
            let path = line["image"]["path"].as_str().filter(|path| path.ends_with(".png"));
            let Some(path) = path.filter(|_| pictures.len() < PICTURES) else { continue };
            let file = folder.join(path);
            let bytes = std::fs::read(&file).with_context(|| file.display().to_string())?;
            pictures.push(Picture { base64: STANDARD.encode(&bytes), file, bytes });
        }
        captions.sort_unstable();
        captions.dedup();
        ensure!(captions.len() > PICTURES && pictures.len() == PICTURES, "demo/feed.jsonl is too short");
        Ok(Self { captions, pictures })
    }
}
