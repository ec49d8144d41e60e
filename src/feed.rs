//! Posts from a file of JSON lines, as messages for the posts topic.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

/// A message for the posts topic.
#[derive(Debug, Clone, PartialEq)]
pub struct Message {
    /// The post id, where the line has one.
    pub key: Option<String>,
    /// The line, its picture put inside.
    pub value: Vec<u8>,
}

/// A file of posts, one JSON object a line (the contract's format, design 1.3). A picture named by a path relative to
/// the file is put into the message as base64: a worker elsewhere cannot read this machine's files. A line that is not
/// such an object passes as it is; judging posts is the ingest worker's part.
pub struct Feed {
    lines: std::io::Split<BufReader<File>>,
    file: PathBuf,
    folder: PathBuf,
}

impl Feed {
    /// Opens the file.
    ///
    /// # Errors
    /// Names the file.
    pub fn open(file: &Path) -> Result<Self> {
        let opened = File::open(file).with_context(|| format!("cannot read posts from {}", file.display()))?;
        Ok(Self {
            lines: BufReader::new(opened).split(b'\n'),
            file: file.to_owned(),
            folder: file.parent().unwrap_or(Path::new("")).to_owned(),
        })
    }
}

impl Iterator for Feed {
    type Item = Result<Message>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let line = self.lines.next()?.with_context(|| format!("cannot read {}", self.file.display()));
            match line {
                Ok(line) if line.trim_ascii().is_empty() => {}
                Ok(line) => return Some(message(line, &self.folder)),
                Err(error) => return Some(Err(error)),
            }
        }
    }
}

fn message(line: Vec<u8>, folder: &Path) -> Result<Message> {
    let Ok(mut post) = serde_json::from_slice::<Value>(&line) else { return Ok(Message { key: None, value: line }) };
    let key = post.get("post_id").and_then(Value::as_str).filter(|id| !id.is_empty()).map(str::to_owned);
    let path = post.pointer("/image/path").and_then(Value::as_str).map(PathBuf::from);
    let Some(path) = path.filter(|path| stays_below(path)).map(|path| folder.join(path)) else {
        return Ok(Message { key, value: line });
    };
    let bytes = std::fs::read(&path).with_context(|| {
        format!("cannot read the picture {} of post {}", path.display(), key.as_deref().unwrap_or("?"))
    })?;
    post["image"] = json!({ "base64": STANDARD.encode(bytes) });
    Ok(Message { key, value: serde_json::to_vec(&post)? })
}

fn stays_below(path: &Path) -> bool {
    path.components().all(|component| matches!(component, Component::Normal(_) | Component::CurDir))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pictures_beside_the_file_are_put_inside_and_all_else_passes_as_it_is() {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join("a.png"), b"picture").expect("writes");
        let outside = r#"{"post_id": "2", "image": {"path": "../a.png"}}"#;
        let lines = format!("{}\n{outside}\n\n{{broken", r#"{"post_id": "1", "image": {"path": "a.png"}, "x": 1}"#);
        let file = folder.path().join("posts.jsonl");
        std::fs::write(&file, lines).expect("writes");
        let messages = Feed::open(&file).expect("opens").collect::<Result<Vec<_>>>().expect("reads");
        let inside: Value = serde_json::from_slice(&messages[0].value).expect("JSON");
        assert_eq!(inside, json!({"post_id": "1", "image": {"base64": STANDARD.encode(b"picture")}, "x": 1}));
        assert_eq!(messages[0].key.as_deref(), Some("1"));
        assert_eq!(messages[1], Message { key: Some("2".to_owned()), value: outside.into() });
        assert_eq!(messages[2], Message { key: None, value: b"{broken".to_vec() });
    }
}
