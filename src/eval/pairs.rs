//! Labelled pairs: JSON lines of `{"text": "...", "image": "file"}`; `"images": [...]` names several at once. A text or
//! a picture may occur in several pairs.

use std::collections::HashMap;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

use crate::eval::dataset::{Dataset, Image, Source, Text};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    text: String,
    image: Option<String>,
    #[serde(default)]
    images: Vec<String>,
}

/// Reads lines of pairs; picture files are relative to `folder`. Texts and pictures have the order of their first pair,
/// and its place as their id.
///
/// # Errors
/// Names the line at fault.
pub fn parse(content: &str, folder: &Path) -> Result<Dataset> {
    let mut known_texts = HashMap::new();
    let mut known_images = HashMap::new();
    let mut texts: Vec<(Text, Vec<i64>)> = Vec::new();
    let mut images = Vec::new();
    for (number, line) in content.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let line: Line = serde_json::from_str(line).with_context(|| format!("line {}", number + 1))?;
        let named = line.image.into_iter().chain(line.images).collect::<Vec<_>>();
        if named.is_empty() {
            bail!("line {}: names no image", number + 1);
        }
        let text = *known_texts.entry(line.text).or_insert_with_key(|text: &String| {
            texts.push((Text { id: texts.len() as i64, text: text.clone() }, Vec::new()));
            texts.len() - 1
        });
        for name in named {
            let id = *known_images.entry(name).or_insert_with_key(|name: &String| {
                let id = images.len() as i64;
                images.push(Image { id, source: Source::File(folder.join(name)) });
                id
            });
            texts[text].1.push(id);
        }
    }
    ensure!(!texts.is_empty(), "there are no pairs");
    Dataset::link(texts, images)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_and_pictures_may_occur_in_several_pairs() {
        let text = "{\"text\": \"a\", \"image\": \"1.png\"}\n\n{\"text\": \"b\", \"images\": [\"1.png\", \"2.png\"]}\n\
                    {\"text\": \"a\", \"image\": \"1.png\"}";
        let pairs = parse(text, Path::new("x")).expect("parses");
        assert_eq!(pairs.texts, [(0, "a"), (1, "b")].map(|(id, text)| Text { id, text: text.to_owned() }));
        let sources = pairs.images.iter().map(|image| image.source.clone()).collect::<Vec<_>>();
        assert_eq!(sources, ["x/1.png", "x/2.png"].map(|path| Source::File(path.into())));
        assert_eq!(pairs.images_of_text, [vec![0], vec![0, 1]]);
        assert_eq!(pairs.texts_of_image, [vec![0, 1], vec![1]]);
    }

    #[test]
    fn bad_line_is_named() {
        for (text, wanted) in [("{\"text\": \"a\"}", "line 1"), ("\n{", "line 2"), ("", "no pairs")] {
            let error = format!("{:#}", parse(text, Path::new("")).expect_err("bad"));
            assert!(error.contains(wanted), "{error}");
        }
    }
}
