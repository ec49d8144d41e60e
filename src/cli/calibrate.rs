//! `feedlens eval --calibrate`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use clap::Args;
use ndarray::{Array2, ArrayView2};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::cli::output;
use crate::encode::calibration::{Calibration, FILE};
use crate::eval::calibrate::{LEAST_TOPICS, Measured, calibrate, measure, strengths};
use crate::eval::dataset::{Dataset, Text};
use crate::eval::embed::{self, Embedder};
use crate::eval::predictions::write_whole;
use crate::text::Language;

/// Options of `feedlens eval` for thresholds.
#[derive(Args)]
pub struct Options {
    /// Find out when nothing fits: write the thresholds of min_score "auto" into the model's folder (calibration.json).
    /// Half of the topics sets them, the other half tells how often they are right
    #[arg(long, help_heading = "Thresholds", conflicts_with_all = ["text_features", "image_features"])]
    calibrate: bool,
    /// Topics that nothing in the set matches (JSON lines {"text"}); otherwise each text, its own pictures left out, which
    /// asks for stricter thresholds: near ones stay
    #[arg(long, value_name = "FILE", help_heading = "Thresholds", requires = "calibrate")]
    unmatched: Option<PathBuf>,
    /// Posts whose captions the topics are compared with as well (JSON lines {"caption"}), for target caption
    #[arg(long, value_name = "FILE", help_heading = "Thresholds", requires = "calibrate")]
    captions: Option<PathBuf>,
}

/// Topics with their features, not normalised.
struct Topics {
    languages: Vec<Language>,
    features: Array2<f32>,
}

/// One threshold with what it does to the topics that set it and to those that did not.
#[derive(Serialize)]
struct Found {
    set_on: Measured,
    held_out: Measured,
}

impl Options {
    /// Whether they were given.
    pub fn is_wanted(&self) -> bool {
        self.calibrate
    }

    /// Measures, writes the file, prints what was measured.
    pub async fn run(&self, embedder: &Embedder, set: &Dataset, model: &Path) -> Result<()> {
        let images = embed::images(embedder, set, || {}).await?;
        let matching = Topics::embed(embedder, &set.texts).await?;
        let unmatched = match &self.unmatched {
            Some(file) => Some(Topics::embed(embedder, &read_lines(file, "text")?).await?),
            None => None,
        };
        let own = |topic: usize, image: usize| set.images_of_text[topic].contains(&image);
        let nothing = |_: usize, _: usize| false;
        let strengths_of_others = |candidates: ArrayView2<f32>, of_images: bool| match &unmatched {
            Some(topics) => strengths(topics.features.view(), candidates, nothing),
            None if of_images => strengths(matching.features.view(), candidates, own),
            None => Vec::new(),
        };
        let others = unmatched.as_ref().unwrap_or(&matching);
        let by_image =
            (strengths(matching.features.view(), images.view(), nothing), strengths_of_others(images.view(), true));
        let mut report = BTreeMap::from([("image", by_language(&matching, &by_image.0, others, &by_image.1))]);
        if let Some(file) = &self.captions {
            ensure!(unmatched.is_some(), "--captions needs --unmatched: a set's own texts match each other's captions");
            let captions = read_lines(file, "caption")?;
            let set = Dataset { texts: captions, ..Dataset::default() };
            let captions = embed::texts(embedder, &set, || {}).await?;
            let matching_strengths = strengths(matching.features.view(), captions.view(), nothing);
            let other_strengths = strengths_of_others(captions.view(), false);
            report.insert("caption", by_language(&matching, &matching_strengths, others, &other_strengths));
        }
        ensure!(
            report.values().any(|languages| !languages.is_empty()),
            "fewer than {} topics of one language, or fewer that nothing matches: too few to set a threshold",
            2 * LEAST_TOPICS
        );
        let file = write(model, &report)?;
        output::print(format_args!("{}\n", json!({"file": file, "thresholds": report})))
    }
}

impl Topics {
    async fn embed(embedder: &Embedder, texts: &[Text]) -> Result<Self> {
        let languages = texts.iter().map(|text| Language::of(&text.text)).collect();
        Ok(Self { languages, features: embed::text_features(embedder, texts).await? })
    }
}

/// A threshold for each language with enough topics; even ones set it, odd ones are held out.
fn by_language(
    matching: &Topics,
    matching_strengths: &[f32],
    unmatched: &Topics,
    unmatched_strengths: &[f32],
) -> BTreeMap<&'static str, Found> {
    let half = |topics: &Topics, strengths: &[f32], language, odd: bool| {
        let of_language = topics.languages.iter().zip(strengths).filter(|(it, _)| **it == language);
        of_language.map(|(_, strength)| *strength).skip(usize::from(odd)).step_by(2).collect::<Vec<_>>()
    };
    let languages = [("zh", Language::Chinese), ("en", Language::English), ("other", Language::Other)];
    let found = languages.into_iter().filter_map(|(name, language)| {
        let halves = |odd| {
            let matching = half(matching, matching_strengths, language, odd);
            (matching, half(unmatched, unmatched_strengths, language, odd))
        };
        let (set_on, held_out) = (halves(false), halves(true));
        let set_on = calibrate(&set_on.0, &set_on.1)?;
        Some((name, Found { set_on, held_out: measure(set_on.threshold, &held_out.0, &held_out.1) }))
    });
    found.collect()
}

/// Puts the thresholds that were found beside those that the file has for other languages and targets.
fn write(model: &Path, report: &BTreeMap<&str, BTreeMap<&'static str, Found>>) -> Result<PathBuf> {
    #[derive(Deserialize, Default)]
    struct Known {
        #[serde(default)]
        measured: BTreeMap<String, BTreeMap<String, Value>>,
    }
    let file = model.join(FILE);
    let mut calibration = Calibration::read(model)?.unwrap_or_default();
    let mut known = match std::fs::read(&file) {
        Ok(text) => serde_json::from_slice::<Known>(&text).with_context(|| format!("in {}", file.display()))?,
        Err(_) => Known::default(),
    };
    for (target, languages) in report {
        let thresholds = if *target == "image" { &mut calibration.image } else { &mut calibration.caption };
        for (language, found) in languages {
            let threshold = Some(found.set_on.threshold);
            match *language {
                "zh" => thresholds.zh = threshold,
                "en" => thresholds.en = threshold,
                _ => thresholds.other = threshold,
            }
            let of_target = known.measured.entry((*target).to_owned()).or_default();
            of_target.insert((*language).to_owned(), serde_json::to_value(found)?);
        }
    }
    let mut value = serde_json::to_value(calibration)?;
    value["measured"] = serde_json::to_value(known.measured)?;
    write_whole(&file, |out| Ok(writeln!(out, "{value:#}")?))?;
    Ok(file)
}

/// One field of JSON lines; lines without it (bad posts of a feed) are passed over.
fn read_lines(file: &Path, field: &str) -> Result<Vec<Text>> {
    let content = std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    let texts = content.split(|byte| *byte == b'\n').filter_map(|line| {
        let line: Value = serde_json::from_slice(line).ok()?;
        line.get(field)?.as_str().map(str::to_owned)
    });
    let texts = texts.enumerate().map(|(index, text)| Text { id: index as i64, text }).collect::<Vec<_>>();
    ensure!(!texts.is_empty(), "{} has no line with a {field:?}", file.display());
    Ok(texts)
}
