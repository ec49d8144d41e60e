//! What others wrote, fit for our own messages.

use std::borrow::Cow;

/// The beginning of a text: a hostile one must not fill a log line or an answer.
pub fn shortened(text: &str, max_characters: usize) -> Cow<'_, str> {
    match text.char_indices().nth(max_characters) {
        None => Cow::Borrowed(text),
        Some((end, _)) => Cow::Owned(format!("{}...", &text[..end])),
    }
}

/// The known name that is most like one that is not known.
///
/// # Panics
/// If no name is known.
pub fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> &'a str {
    known
        .into_iter()
        .max_by(|left, right| strsim::jaro_winkler(name, left).total_cmp(&strsim::jaro_winkler(name, right)))
        .expect("some name is known. This is a bug.")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_texts_are_cut_between_characters() {
        assert_eq!(shortened("水果", 2), "水果");
        assert_eq!(shortened("水果沙拉", 2), "水果...");
    }

    #[test]
    fn a_mistyped_name_finds_its_own() {
        assert_eq!(nearest("broker", ["topic", "brokers", "group"]), "brokers");
    }
}
