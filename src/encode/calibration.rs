//! When nothing fits: what the best hit of a search must reach, `calibration.json` in the bundle's folder. Made by `feedlens
//! eval --calibrate`; `docs/search.md` says how. Bundles without it (other projects' exports, say) have no thresholds.
//!
//! For topics a threshold is a dot product of the text's features as the model gives them, not normalised, with a normalised
//! vector: cosine x length of the features. Models give longer features to texts that they know, so that this tells what
//! fits better than the cosine alone. For pictures it is a cosine.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use crate::text::Language;

/// The file's name.
pub const FILE: &str = "calibration.json";

/// A bundle's thresholds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Deserialize, Serialize)]
pub struct Calibration {
    /// Of cosines with pictures.
    pub image: Thresholds,
    /// Of cosines with captions.
    pub caption: Thresholds,
}

/// Least values, by what is searched for; absent: not calibrated.
#[derive(Debug, Clone, Copy, Default, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Thresholds {
    /// A topic in Chinese.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zh: Option<f32>,
    /// A topic in English.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub en: Option<f32>,
    /// A topic in another language.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub other: Option<f32>,
    /// A picture.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub picture: Option<f32>,
}

/// What is searched for, as far as thresholds go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Query {
    /// A topic in this language.
    Topic(Language),
    /// A picture.
    Picture,
}

impl Thresholds {
    /// The least cosine of a query's best hit; `length`: of its features before they were normalised, 1 of a picture. A
    /// language that was not measured takes the stricter one of those that were.
    pub fn cosine(&self, query: Query, length: f32) -> Option<f32> {
        let least = match query {
            Query::Topic(Language::Chinese) => self.zh,
            Query::Topic(Language::English) => self.en,
            Query::Topic(Language::Other) => self.other,
            Query::Picture => return self.picture,
        };
        let stricter = || [self.zh, self.en, self.other].into_iter().flatten().reduce(f32::max);
        least.or_else(stricter).map(|least| least / length)
    }
}

impl Calibration {
    /// Reads the file of a bundle's folder; `None` where there is none.
    ///
    /// # Errors
    /// Names the file and what is wrong with it.
    pub fn read(dir: &Path) -> Result<Option<Self>> {
        let file = dir.join(FILE);
        if !file.is_file() {
            return Ok(None);
        }
        let text = std::fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        let calibration: Self = serde_json::from_str(&text).with_context(|| {
            format!("in {}; delete it, or write it anew with feedlens eval --calibrate", file.display())
        })?;
        let all = [calibration.image, calibration.caption];
        let mut values = all.iter().flat_map(|it| [it.zh, it.en, it.other, it.picture]).flatten();
        ensure!(values.all(f32::is_finite), "in {}: a threshold is not a finite number", file.display());
        Ok(Some(calibration))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_threshold_is_a_dot_product_and_an_unknown_language_takes_the_stricter_one() {
        let thresholds = Thresholds { zh: Some(12.0), en: Some(16.0), other: None, picture: None };
        assert_eq!(thresholds.cosine(Query::Topic(Language::Chinese), 40.0), Some(0.3));
        assert_eq!(thresholds.cosine(Query::Topic(Language::English), 40.0), Some(0.4));
        assert_eq!(thresholds.cosine(Query::Topic(Language::Other), 40.0), Some(0.4));
        assert_eq!(thresholds.cosine(Query::Picture, 1.0), None);
        assert_eq!(Thresholds::default().cosine(Query::Topic(Language::Other), 1.0), None);
    }

    #[test]
    fn a_folder_has_thresholds_or_none_and_a_broken_file_is_named() {
        let folder = tempfile::tempdir().expect("a folder");
        assert_eq!(Calibration::read(folder.path()).expect("reads"), None);
        let write = |text: &str| std::fs::write(folder.path().join(FILE), text).expect("writes");
        write(r#"{"image": {"zh": 12.5}, "caption": {}, "measured": {"image": {}}}"#);
        let found = Calibration::read(folder.path()).expect("reads").expect("is there");
        assert_eq!((found.image.zh, found.caption), (Some(12.5), Thresholds::default()));
        for text in
            ["", "{}", r#"{"image": {"zh": "high"}, "caption": {}}"#, r#"{"image": {"zh": 1e99}, "caption": {}}"#]
        {
            write(text);
            let error = format!("{:#}", Calibration::read(folder.path()).expect_err("broken"));
            assert!(error.contains(FILE), "{error}");
        }
    }
}
