//! The queries of a comparison: a topic a line, or JSON lines that name the posts that belong to a text.

use std::collections::HashMap;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use serde_json::Value;

use crate::query::service::SearchHit;

/// A query, and the posts that belong to it where they are known.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Labelled {
    /// What is asked.
    pub topic: String,
    posts: Vec<String>,
    images: Vec<String>,
}

impl Labelled {
    /// Whether it names any post.
    pub fn is_labelled(&self) -> bool {
        !self.posts.is_empty() || !self.images.is_empty()
    }

    /// Whether a hit belongs to it: by its post's id, or by where its picture is.
    pub(super) fn is_gold(&self, hit: &SearchHit) -> bool {
        let is_one_of = |values: &[String], value: &Value| {
            value.as_str().is_some_and(|value| values.iter().any(|known| known == value))
        };
        is_one_of(&self.posts, &hit.post_id)
            || ["path", "url"]
                .into_iter()
                .any(|field| hit.image.get(field).is_some_and(|location| is_one_of(&self.images, location)))
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    text: String,
    image: Option<String>,
    #[serde(default)]
    images: Vec<String>,
    post_id: Option<String>,
    #[serde(default)]
    post_ids: Vec<String>,
}

/// Reads the queries of a file: JSON lines (`{"text": "...", "image": "path or url"}` as `eval` reads them, or with
/// `"post_id"`; `images` and `post_ids` name several; a text may occur in several lines) where the first line is one, else a
/// topic a line.
///
/// # Errors
/// Names the line at fault; there is no query.
pub fn parse(content: &str) -> Result<Vec<Labelled>> {
    let mut lines = content.lines().map(str::trim).enumerate().filter(|(_, line)| !line.is_empty()).peekable();
    let is_json = lines.peek().is_some_and(|(_, line)| line.starts_with('{'));
    let mut places = HashMap::new();
    let mut queries: Vec<Labelled> = Vec::new();
    for (number, line) in lines {
        let line = match is_json {
            false => Line { text: line.to_owned(), image: None, images: vec![], post_id: None, post_ids: vec![] },
            true => serde_json::from_str::<Line>(line).with_context(|| format!("line {}", number + 1))?,
        };
        let place = *places.entry(line.text).or_insert_with_key(|topic: &String| {
            queries.push(Labelled { topic: topic.clone(), ..Labelled::default() });
            queries.len() - 1
        });
        queries[place].images.extend(line.image.into_iter().chain(line.images));
        queries[place].posts.extend(line.post_id.into_iter().chain(line.post_ids));
    }
    ensure!(!queries.is_empty(), "there are no queries");
    Ok(queries)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topics_and_labelled_lines_are_told_apart() {
        let topics = parse("红苹果\n\n red apple \n红苹果").expect("parses");
        assert_eq!(topics.iter().map(|query| query.topic.as_str()).collect::<Vec<_>>(), ["红苹果", "red apple"]);
        assert!(topics.iter().all(|query| !query.is_labelled()));
        let labelled =
            parse("{\"text\": \"a\", \"image\": \"1.png\"}\n{\"text\": \"a\", \"post_ids\": [\"p\", \"q\"]}");
        let labelled = labelled.expect("parses");
        assert_eq!((labelled.len(), labelled[0].posts.len(), labelled[0].images.len()), (1, 2, 1));
    }

    #[test]
    fn bad_line_is_named() {
        for (text, wanted) in
            [("{\"text\": \"a\"}\n{", "line 2"), ("\n \n", "no queries"), ("{\"query\": 1}", "line 1")]
        {
            let error = format!("{:#}", parse(text).expect_err("bad"));
            assert!(error.contains(wanted), "{error}");
        }
    }
}
