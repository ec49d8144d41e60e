//! Chinese-CLIP's evaluation files, of which its Flickr30K-CN, COCO-CN and MUGE are made: `<split>_texts.jsonl`
//! (`{"text_id": 5, "text": "...", "image_ids": [7]}`) with `<split>_imgs.tsv` (id, tab, picture in URL-safe base64).

use std::fs::File;
use std::io::{BufRead, BufReader, Read as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use serde_json::Value;

use crate::eval::dataset::{Image, Source, Text};

/// The longest id, in digits; an `i64` has no more.
const MAX_ID: u64 = 20;

#[derive(Deserialize)]
struct Line {
    text_id: i64,
    /// Not always a string: the reference takes `str()` of it.
    text: Value,
    /// The published test split of MUGE has none.
    #[serde(default)]
    image_ids: Vec<i64>,
}

/// Whether this is a texts file rather than one of pairs: its first line has a `text_id`.
pub fn is_texts(content: &str) -> bool {
    let first = content.lines().find(|line| !line.trim().is_empty()).unwrap_or_default();
    serde_json::from_str::<Value>(first).is_ok_and(|line| line.get("text_id").is_some())
}

/// Reads texts and the ids of their pictures.
///
/// # Errors
/// Names the line at fault.
pub fn parse_texts(content: &str) -> Result<Vec<(Text, Vec<i64>)>> {
    let mut texts = Vec::new();
    for (number, line) in content.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let line: Line = serde_json::from_str(line).with_context(|| format!("line {}", number + 1))?;
        let text = match line.text {
            Value::String(text) => text,
            other => other.to_string(),
        };
        texts.push((Text { id: line.text_id, text: adapted(&text) }, line.image_ids));
    }
    Ok(texts)
}

/// What the reference's evaluation makes of a text before it tokenises (`_preprocess_text` of `eval/data.py`).
pub fn adapted(text: &str) -> String {
    text.to_lowercase().replace(['“', '”'], "\"")
}

/// The pictures' file that belongs to a texts file: `test_imgs.tsv` beside `test_texts.jsonl`.
///
/// # Errors
/// The name has another form.
pub fn images_beside(texts: &Path) -> Result<PathBuf> {
    let split = texts.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_suffix("_texts.jsonl"));
    match split {
        Some(split) => Ok(texts.with_file_name(format!("{split}_imgs.tsv"))),
        None => bail!("{} is not called *_texts.jsonl; name its pictures with --images *_imgs.tsv", texts.display()),
    }
}

/// Reads where each picture of a `*_imgs.tsv` lies; the pictures themselves are read when they are encoded.
///
/// They come in the order of their ids *as text*: the reference puts them into LMDB, which sorts keys by their bytes, so
/// that of two equal scores 10 is ahead of 9.
///
/// # Errors
/// Names the file and the line at fault.
pub fn read_images(file: &Path) -> Result<Vec<Image>> {
    let opened = File::open(file).with_context(|| format!("cannot read pictures from {}", file.display()))?;
    ensure!(opened.metadata()?.is_file(), "{} is not a file; give a *_imgs.tsv", file.display());
    let shared: Arc<Path> = file.into();
    let mut reader = BufReader::with_capacity(1 << 16, opened);
    let (mut offset, mut found) = (0u64, Vec::new());
    for number in 1.. {
        let mut id = Vec::new();
        let bytes = (&mut reader).take(MAX_ID + 1).read_until(b'\t', &mut id)? as u64;
        if bytes == 0 || id.trim_ascii().is_empty() {
            break;
        }
        let line = || format!("{} line {number}", file.display());
        let key = id.strip_suffix(b"\t").and_then(|id| std::str::from_utf8(id).ok()).map(str::trim).unwrap_or_default();
        let id = key.parse().with_context(|| format!("{}: wanted a whole number, a tab and base64", line()))?;
        let (length, ended) = field_length(&mut reader).with_context(line)?;
        ensure!(length > 0, "{}: there is no picture after the id", line());
        found.push((
            key.to_owned(),
            Image { id, source: Source::Base64 { file: shared.clone(), offset: offset + bytes, length } },
        ));
        offset += bytes + length + ended;
    }
    found.sort_by(|(left, _), (right, _)| left.cmp(right));
    Ok(found.into_iter().map(|(_, image)| image).collect())
}

/// Bytes up to the end of the line, and bytes of the line end. A picture of megabytes is passed over, not kept.
fn field_length(reader: &mut impl BufRead) -> Result<(u64, u64)> {
    let (mut length, mut last) = (0u64, 0u8);
    loop {
        let buffer = reader.fill_buf()?;
        if buffer.is_empty() {
            return Ok((length, 0));
        }
        let end = buffer.iter().position(|byte| *byte == b'\n');
        let used = end.unwrap_or(buffer.len());
        if let Some(byte) = buffer[..used].last() {
            last = *byte;
        }
        ensure!(!buffer[..used].contains(&b'\t'), "there are more than two fields");
        length += used as u64;
        if end.is_some() {
            reader.consume(used + 1);
            let carriage_return = u64::from(last == b'\r' && length > 0);
            return Ok((length - carriage_return, 1 + carriage_return));
        }
        reader.consume(used);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_prepared_as_the_reference_does() {
        let content = "{\"text_id\": 7, \"text\": \"A “RED” Σ\", \"image_ids\": [3]}\n{\"text_id\": 8, \"text\": 12}\n";
        assert!(is_texts(content) && !is_texts("{\"text\": \"a\", \"image\": \"b\"}"));
        let texts = parse_texts(content).expect("parses");
        assert_eq!(texts[0], (Text { id: 7, text: "a \"red\" σ".to_owned() }, vec![3]));
        assert_eq!(texts[1], (Text { id: 8, text: "12".to_owned() }, vec![]));
        let error = format!("{:#}", parse_texts("\n{\"text_id\": \"x\", \"text\": \"\"}").expect_err("no number"));
        assert!(error.contains("line 2"), "{error}");
    }

    #[test]
    fn pictures_come_in_the_order_of_their_keys() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("test_imgs.tsv");
        assert_eq!(images_beside(&folder.path().join("test_texts.jsonl")).expect("has the form"), file);
        std::fs::write(&file, "9\tYWFh\r\n10\tYg==\n100\tY2M=").expect("writes");
        let images = read_images(&file).expect("reads");
        assert_eq!(images.iter().map(|image| image.id).collect::<Vec<_>>(), [10, 100, 9]);
        let pictures = images.iter().map(|image| image.source.read(9).expect("base64")).collect::<Vec<_>>();
        assert_eq!(pictures, [&b"b"[..], b"cc", b"aaa"]);
    }

    #[test]
    fn a_bad_line_of_pictures_is_named() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("x.tsv");
        for (content, wanted) in [
            ("1\tYQ==\nab\tYQ==\n", "line 2"),
            ("1 YQ==", "line 1"),
            ("1\t\n", "no picture"),
            ("1\tYQ==\tYQ==\n", "two fields"),
            ("123456789012345678901234\tYQ==", "line 1"),
        ] {
            std::fs::write(&file, content).expect("writes");
            let error = format!("{:#}", read_images(&file).expect_err("bad"));
            assert!(error.contains(wanted) && error.contains("x.tsv"), "{content:?}: {error}");
        }
    }
}
