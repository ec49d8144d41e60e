//! Labelled pairs: JSON lines of `{"text": "...", "image": "file"}`; `"images": [...]` names several at once. A text or
//! a picture may occur in several pairs.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

/// Distinct texts and pictures, and which belong together.
#[derive(Debug, Default)]
pub struct Pairs {
    /// Distinct texts, in the order of their first pair.
    pub texts: Vec<String>,
    /// Distinct picture files, in the order of their first pair.
    pub images: Vec<PathBuf>,
    /// For each text, the indexes of its pictures.
    pub images_of_text: Vec<Vec<usize>>,
    /// For each picture, the indexes of its texts.
    pub texts_of_image: Vec<Vec<usize>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    text: String,
    image: Option<String>,
    #[serde(default)]
    images: Vec<String>,
}

impl Pairs {
    /// Reads a file of pairs; picture files are relative to `images`.
    ///
    /// # Errors
    /// Names the file and the line at fault.
    pub fn read(file: &Path, images: &Path) -> Result<Self> {
        let text =
            std::fs::read_to_string(file).with_context(|| format!("cannot read pairs from {}", file.display()))?;
        Self::parse(&text, images).with_context(|| format!("in {}", file.display()))
    }

    fn parse(text: &str, folder: &Path) -> Result<Self> {
        let mut pairs = Self::default();
        let mut known_texts = HashMap::new();
        let mut known_images = HashMap::new();
        for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            let line: Line = serde_json::from_str(line).with_context(|| format!("line {}", number + 1))?;
            let named = line.image.into_iter().chain(line.images).collect::<Vec<_>>();
            if named.is_empty() {
                bail!("line {}: names no image", number + 1);
            }
            let text = *known_texts.entry(line.text).or_insert_with_key(|text: &String| {
                pairs.texts.push(text.clone());
                pairs.images_of_text.push(Vec::new());
                pairs.texts.len() - 1
            });
            for name in named {
                let image = *known_images.entry(name).or_insert_with_key(|name: &String| {
                    pairs.images.push(folder.join(name));
                    pairs.texts_of_image.push(Vec::new());
                    pairs.images.len() - 1
                });
                if !pairs.images_of_text[text].contains(&image) {
                    pairs.images_of_text[text].push(image);
                    pairs.texts_of_image[image].push(text);
                }
            }
        }
        ensure!(!pairs.texts.is_empty(), "there are no pairs");
        Ok(pairs)
    }

    /// Adds every picture (png, jpg, jpeg, webp, gif, bmp) of a folder as a candidate, so that retrieval is measured
    /// against all of them and not only against those that some text names.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub fn add_candidates(&mut self, folder: &Path) -> Result<()> {
        let entries = std::fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
        let mut files = entries.map(|entry| Ok(entry?.path())).collect::<std::io::Result<Vec<_>>>()?;
        files.sort();
        let known = self.images.iter().cloned().collect::<std::collections::HashSet<_>>();
        for file in files {
            let extension = file.extension().and_then(|name| name.to_str()).unwrap_or_default().to_lowercase();
            let is_picture = ["png", "jpg", "jpeg", "webp", "gif", "bmp"].contains(&extension.as_str());
            if is_picture && !known.contains(&file) {
                self.images.push(file);
                self.texts_of_image.push(Vec::new());
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_and_pictures_may_occur_in_several_pairs() {
        let text = "{\"text\": \"a\", \"image\": \"1.png\"}\n\n{\"text\": \"b\", \"images\": [\"1.png\", \"2.png\"]}\n\
                    {\"text\": \"a\", \"image\": \"1.png\"}";
        let pairs = Pairs::parse(text, Path::new("x")).expect("parses");
        assert_eq!(pairs.texts, ["a", "b"]);
        assert_eq!(pairs.images, [Path::new("x/1.png"), Path::new("x/2.png")]);
        assert_eq!(pairs.images_of_text, [vec![0], vec![0, 1]]);
        assert_eq!(pairs.texts_of_image, [vec![0, 1], vec![1]]);
    }

    #[test]
    fn bad_line_is_named() {
        for (text, wanted) in [("{\"text\": \"a\"}", "line 1"), ("\n{", "line 2"), ("", "no pairs")] {
            let error = format!("{:#}", Pairs::parse(text, Path::new("")).expect_err("bad"));
            assert!(error.contains(wanted), "{error}");
        }
    }
}
