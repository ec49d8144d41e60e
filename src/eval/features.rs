//! Feature files as Chinese-CLIP's `extract_features.py` writes them: JSON lines of `{"text_id": 5, "feature": [...]}` or
//! `{"image_id": 7, "feature": [...]}`. Features are used as they are, as its `make_topk_predictions.py` does.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use ndarray::{Array2, ArrayView2};
use serde::Deserialize;

use crate::eval::predictions::write_whole;

/// Which tower's features.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Lines have a `text_id`.
    Text,
    /// Lines have an `image_id`.
    Image,
}

impl Kind {
    /// The key of the id.
    pub fn key(self) -> &'static str {
        match self {
            Kind::Text => "text_id",
            Kind::Image => "image_id",
        }
    }
}

#[derive(Deserialize)]
struct Line {
    text_id: Option<i64>,
    image_id: Option<i64>,
    feature: Vec<f32>,
}

/// Reads ids and features [rows, dimension].
///
/// # Errors
/// Names the file and the line: no id of this kind, another dimension than the first line's, a value that is not finite.
pub fn read(file: &Path, kind: Kind) -> Result<(Vec<i64>, Array2<f32>)> {
    let opened = File::open(file).with_context(|| format!("cannot read features from {}", file.display()))?;
    let (mut ids, mut values, mut dimension) = (Vec::new(), Vec::new(), 0);
    for (number, line) in BufReader::new(opened).lines().enumerate() {
        let place = || format!("{} line {}", file.display(), number + 1);
        let line = line.with_context(place)?;
        if line.trim().is_empty() {
            continue;
        }
        let line: Line = serde_json::from_str(&line).with_context(place)?;
        let id = if kind == Kind::Text { line.text_id } else { line.image_id };
        ids.push(id.with_context(|| format!("{} has no {}", place(), kind.key()))?);
        if ids.len() == 1 {
            dimension = line.feature.len();
        }
        ensure!(
            line.feature.len() == dimension && dimension > 0,
            "{}: the feature has {} values, the first one has {dimension}",
            place(),
            line.feature.len()
        );
        ensure!(line.feature.iter().all(|value| value.is_finite()), "{}: a value is not finite", place());
        values.extend(line.feature);
    }
    ensure!(!ids.is_empty(), "{} has no features", file.display());
    let features = Array2::from_shape_vec((ids.len(), dimension), values).context("features fill their rows")?;
    Ok((ids, features))
}

/// Writes features in the order of `ids`, each value with the digits that give it back exactly.
///
/// # Errors
/// The file cannot be written.
pub fn write(file: &Path, kind: Kind, ids: impl Iterator<Item = i64>, features: ArrayView2<f32>) -> Result<()> {
    write_whole(file, |out| {
        for (id, row) in ids.zip(features.rows()) {
            write!(out, "{{\"{}\": {id}, \"feature\": [", kind.key())?;
            for (place, value) in row.iter().enumerate() {
                write!(out, "{}{value:?}", if place == 0 { "" } else { ", " })?;
            }
            writeln!(out, "]}}")?;
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_come_back_to_the_bit() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("x.jsonl");
        let values = vec![0.1, -1.0, f32::MIN_POSITIVE, 1.0 / 3.0, 1e-42, 3.402_823_5e38];
        let features = Array2::from_shape_vec((2, 3), values).expect("2 x 3");
        write(&file, Kind::Image, [9, 4].into_iter(), features.view()).expect("writes");
        assert_eq!(read(&file, Kind::Image).expect("reads"), (vec![9, 4], features));
        let error = format!("{:#}", read(&file, Kind::Text).expect_err("pictures"));
        assert!(error.contains("x.jsonl line 1 has no text_id"), "{error}");
    }

    #[test]
    fn bad_features_are_named() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("x.jsonl");
        for (content, wanted) in [
            ("{\"text_id\": 1, \"feature\": [1.0]}\n{\"text_id\": 2, \"feature\": [1.0, 2.0]}", "line 2"),
            ("{\"text_id\": 1, \"feature\": []}", "0 values"),
            ("{\"text_id\": 1, \"feature\": [1e300]}", "not finite"),
            ("{\"text_id\": 1, \"feature\": [NaN]}", "line 1"),
            ("", "no features"),
        ] {
            std::fs::write(&file, content).expect("writes");
            let error = format!("{:#}", read(&file, Kind::Text).expect_err("bad"));
            assert!(error.contains(wanted), "{content}: {error}");
        }
    }
}
