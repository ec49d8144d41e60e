//! What posts are made of: the captions and pictures of the demo's feed.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use image::imageops::FilterType;
use serde_json::Value;

/// Drawings: enough that two posts seldom share one.
pub const DRAWINGS: usize = 300;
/// Beside them, so many large JPEGs of so many pixels a side.
pub const LARGE: usize = 5;
const LARGE_SIDE: u32 = 1_600;

/// A file of a picture.
pub struct Picture {
    pub file: PathBuf,
    pub bytes: Vec<u8>,
    pub base64: String,
}

/// Captions, and pictures by number: drawings first, PNG, then the large ones.
pub struct Material {
    pub captions: Vec<String>,
    pub pictures: Vec<Picture>,
}

impl Material {
    /// Reads the demo's feed in `root/demo`; large pictures are made in `work`.
    pub fn read(root: &Path, work: &Path) -> Result<Self> {
        let folder = root.join("demo");
        let feed = std::fs::read_to_string(folder.join("feed.jsonl")).context("demo/feed.jsonl")?;
        let (mut captions, mut pictures) = (Vec::new(), Vec::new());
        for line in feed.lines() {
            // The feed has bad posts of its own.
            let Ok(line) = serde_json::from_str::<Value>(line) else { continue };
            captions.extend(line["caption"].as_str().filter(|caption| !caption.trim().is_empty()).map(str::to_owned));
            let path = line["image"]["path"].as_str().filter(|path| path.ends_with(".png"));
            let Some(path) = path.filter(|_| pictures.len() < DRAWINGS) else { continue };
            pictures.push(picture(folder.join(path))?);
        }
        captions.sort_unstable();
        captions.dedup();
        ensure!(captions.len() > DRAWINGS && pictures.len() == DRAWINGS, "demo/feed.jsonl is too short");
        for number in 0..LARGE {
            let drawing = image::load_from_memory(&pictures[number * 50].bytes)?.to_rgb8();
            let file = work.join(format!("large-{number}.jpg"));
            image::imageops::resize(&drawing, LARGE_SIDE, LARGE_SIDE, FilterType::Triangle).save(&file)?;
            pictures.push(picture(file)?);
        }
        Ok(Self { captions, pictures })
    }
}

fn picture(file: PathBuf) -> Result<Picture> {
    let bytes = std::fs::read(&file).with_context(|| file.display().to_string())?;
    Ok(Picture { base64: STANDARD.encode(&bytes), file, bytes })
}
