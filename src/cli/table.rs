//! Hits as a table for people.

use std::fmt::Write as _;

use serde_json::Value;

use crate::query::service::SearchResponse;

/// Longest caption shown, in characters.
const CAPTION_CHARACTERS: usize = 60;

/// A line a hit: rank, score, probability, post id, caption.
pub fn render(response: &SearchResponse) -> String {
    let mut text = String::new();
    if response.hits.is_empty() {
        text.push_str("  no posts found\n");
    }
    let ids = response.hits.iter().map(|hit| plain(&hit.post_id)).collect::<Vec<_>>();
    let width = ids.iter().map(|id| id.chars().count()).max().unwrap_or_default();
    for (hit, id) in response.hits.iter().zip(&ids) {
        let _ = writeln!(
            text,
            "  {:>2}  {:.3}  {:>5.1}%  {id:<width$}  {}",
            hit.rank,
            hit.score,
            100.0 * hit.probability,
            plain(&hit.caption),
        );
    }
    text
}

/// A text of the feed for a terminal: no control or direction characters, which could rewrite what stands around it.
fn plain(value: &Value) -> String {
    let text = value.as_str().unwrap_or("");
    let is_direction = |character: char| matches!(character, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    let mut characters = text.chars().filter(|character| !character.is_control() && !is_direction(*character));
    let mut shown: String = characters.by_ref().take(CAPTION_CHARACTERS).collect();
    if characters.next().is_some() {
        shown.push('…');
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_text_cannot_steer_the_terminal() {
        let hostile = Value::from("a\u{1b}[2Jb\u{202e}c\nd");
        assert_eq!(plain(&hostile), "a[2Jbcd");
        assert_eq!(plain(&Value::from("字".repeat(100))).chars().count(), CAPTION_CHARACTERS + 1);
    }
}
