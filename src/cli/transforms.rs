//! `feedlens eval --transform`.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Args;
use serde_json::{Value, json};

use crate::cli::output;
use crate::eval::dataset::{Dataset, Source, Text};
use crate::eval::embed::{self, Embedder};
use crate::eval::transforms::{Posts, effects};
use crate::query::QueryConfig;
use crate::query::rank::transform::Transform;

/// Options of `feedlens eval` for transforms.
#[derive(Args)]
pub struct Options {
    /// What a transform of similarities does to probabilities and to fused rankings, beside "none"; "all": each of them
    #[arg(long, value_name = "NAME", help_heading = "Transforms", conflicts_with_all = ["calibrate", "text_features", "image_features"],
          value_parser = ["sine", "sigmoid", "centred_sigmoid", "all"])]
    transform: Option<String>,
    /// Posts of the set's pictures, for fused rankings (JSON lines {"caption", "image": {"path"}}; pictures are known by
    /// their file names)
    #[arg(long, value_name = "FILE", help_heading = "Transforms", requires = "transform")]
    posts: Option<PathBuf>,
}

impl Options {
    /// Whether they were given.
    pub fn is_wanted(&self) -> bool {
        self.transform.is_some()
    }

    /// Measures and prints.
    pub async fn run(&self, embedder: &Embedder, set: &Dataset, query: &QueryConfig) -> Result<()> {
        let wanted = self.transform.as_deref().unwrap_or("all");
        let named = Transform::NAMES.iter().filter(|(name, _)| wanted == "all" || [wanted, "none"].contains(name));
        let transforms = named.map(|(_, transform)| *transform).collect::<Vec<_>>();
        let (topics, images) = (embed::texts(embedder, set, || {}).await?, embed::images(embedder, set, || {}).await?);
        let (captions, owners) = match &self.posts {
            Some(file) => read_captions(file, set)?,
            None => (Vec::new(), Vec::new()),
        };
        let captioned = Dataset { texts: captions, ..Dataset::default() };
        let captions = embed::texts(embedder, &captioned, || {}).await?;
        let (golds, logit_scale) = (set.images_of_text.clone(), embedder.logit_scale());
        let (candidates, image_weight) = (query.candidates, query.image_weight);
        let measured = tokio::task::spawn_blocking(move || {
            let posts = Posts {
                topics: topics.view(),
                images: images.view(),
                captions: (!owners.is_empty()).then_some((captions.view(), owners.as_slice())),
                golds: &golds,
                logit_scale,
                candidates,
            };
            effects(&posts, &transforms, image_weight)
        });
        let measured = measured.await.context("ranking panicked")?;
        let report = json!({"candidates": candidates, "image_weight": image_weight, "transforms": measured});
        output::print(format_args!("{report}\n"))
    }
}

/// Captions with the places of their pictures in the set; of a picture with several posts, the last one's.
fn read_captions(file: &Path, set: &Dataset) -> Result<(Vec<Text>, Vec<usize>)> {
    let content = std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    let captions: HashMap<String, String> = content
        .split(|byte| *byte == b'\n')
        .filter_map(|line| {
            let post: Value = serde_json::from_slice(line).ok()?;
            let name = Path::new(post.get("image")?.get("path")?.as_str()?).file_name()?.to_str()?.to_owned();
            Some((name, post.get("caption")?.as_str()?.to_owned()))
        })
        .collect();
    let found = set.images.iter().enumerate().filter_map(|(place, image)| {
        let Source::File(path) = &image.source else { return None };
        let text = captions.get(path.file_name()?.to_str()?)?.clone();
        Some((Text { id: place as i64, text }, place))
    });
    let found: (Vec<Text>, Vec<usize>) = found.unzip();
    anyhow::ensure!(!found.0.is_empty(), "no post of {} has a picture of the set", file.display());
    Ok(found)
}
