//! The vectors that pictures and captions must give: what `feedlens embed` says of them.

use std::collections::{BTreeSet, HashMap};
use std::io::Write as _;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::ROOT;
use crate::material::Material;

/// Vectors by what they are of.
pub struct Vectors {
    pub pictures: HashMap<usize, Vec<f32>>,
    pub captions: HashMap<String, Vec<f32>>,
}

impl Vectors {
    /// Runs `feedlens embed` in `folder`, with captions cleaned as ingest does.
    pub fn of(material: &Material, captions: &BTreeSet<String>, folder: &Path) -> Result<Self> {
        let mut lines = String::new();
        for picture in &material.pictures {
            lines.push_str(&format!("{}\n", json!({ "image": picture.file })));
        }
        for caption in captions {
            lines.push_str(&format!("{}\n", json!({ "text": caption })));
        }
        let input = folder.join("embed.jsonl");
        std::fs::File::create(&input)?.write_all(lines.as_bytes())?;
        let output = Command::new(env!("CARGO_BIN_EXE_feedlens"))
            .args(["embed", "--set", "captions.clean=true", "--set", "encoder.workers=1"])
            .current_dir(ROOT)
            .stdin(std::fs::File::open(&input)?)
            .stderr(std::fs::File::create(folder.join("embed.log"))?)
            .output()
            .context("feedlens embed")?;
        ensure!(output.status.success(), "feedlens embed: {}", output.status);
        let vectors = String::from_utf8(output.stdout)?.lines().map(vector).collect::<Result<Vec<_>>>()?;
        ensure!(vectors.len() == material.pictures.len() + captions.len(), "feedlens embed left lines out");
        let mut vectors = vectors.into_iter();
        let pictures = vectors.by_ref().take(material.pictures.len()).enumerate().collect();
        Ok(Self { pictures, captions: captions.iter().cloned().zip(vectors).collect() })
    }
}

fn vector(line: &str) -> Result<Vec<f32>> {
    let answer: Value = serde_json::from_str(line)?;
    let values = answer["vector"].as_array().with_context(|| format!("feedlens embed: {line}"))?;
    Ok(values.iter().filter_map(Value::as_f64).map(|value| value as f32).collect())
}

/// Of vectors of any length.
pub fn cosine(one: &[f32], other: &[f32]) -> f64 {
    let dot = |left: &[f32], right: &[f32]| {
        left.iter().zip(right).map(|(left, right)| f64::from(*left) * f64::from(*right)).sum::<f64>()
    };
    if one.len() != other.len() { 0.0 } else { dot(one, other) / (dot(one, one) * dot(other, other)).sqrt() }
}
