//! What others wrote, fit for our own messages.

use std::borrow::Cow;
use std::fmt::Write as _;

use chrono::{DateTime, NaiveDate, NaiveTime, Utc};

/// The beginning of a text: a hostile one must not fill a log line or an answer.
pub fn shortened(text: &str, max_characters: usize) -> Cow<'_, str> {
    match text.char_indices().nth(max_characters) {
        None => Cow::Borrowed(text),
        Some((end, _)) => Cow::Owned(format!("{}...", &text[..end])),
    }
}

/// The beginning of what others wrote, of at most so many characters, for a terminal, a log line or a person: control and
/// direction characters, bytes that are not UTF-8 and backslashes are escaped as in Rust's literals.
pub fn escaped(bytes: &[u8], max_characters: usize) -> String {
    let (mut text, mut left) = (String::new(), max_characters);
    for chunk in bytes.utf8_chunks() {
        let valid = chunk.valid().chars().map(Ok);
        for part in valid.chain(chunk.invalid().iter().map(|byte| Err(*byte))) {
            if left == 0 {
                return text + "...";
            }
            left -= 1;
            match part {
                Ok(quote @ ('"' | '\'')) => text.push(quote),
                Ok(character) => text.extend(character.escape_debug()),
                // Into a String it cannot fail.
                Err(byte) => drop(write!(text, "\\x{byte:02x}")),
            }
        }
    }
    text
}

/// RFC 3339, or a date alone: its first moment in UTC.
///
/// # Errors
/// Says how to write it; the caller says what it is.
pub fn parse_time(text: &str) -> Result<DateTime<Utc>, String> {
    if let Ok(time) = DateTime::parse_from_rfc3339(text) {
        return Ok(time.with_timezone(&Utc));
    }
    text.parse::<NaiveDate>()
        .map(|date| date.and_time(NaiveTime::MIN).and_utc())
        .map_err(|_| "write a time as \"2026-11-20T08:30:00Z\" or a day as \"2026-11-20\"".to_owned())
}

/// A language, as far as a short text shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Language {
    /// At least half of its words are Chinese characters.
    Chinese,
    /// At least half of its words are of the letters A to Z.
    English,
    /// Anything else, and texts without a letter.
    Other,
}

impl Language {
    /// By script alone: each Chinese character (CJK ideograph) counts as a word, so does each Japanese kana, and so does each
    /// run of other letters.
    pub fn of(text: &str) -> Self {
        let ideographs = text.chars().filter(|letter| is_ideograph(*letter)).count();
        let kana = text.chars().filter(|letter| is_kana(*letter)).count();
        let stops = |letter: char| is_ideograph(letter) || is_kana(letter) || !letter.is_alphabetic();
        let runs = || text.split(stops).filter(|run| !run.is_empty());
        let plain = runs().filter(|run| run.is_ascii()).count();
        let words = ideographs + kana + runs().count();
        match words {
            0 => Self::Other,
            _ if 2 * ideographs >= words => Self::Chinese,
            _ if 2 * plain >= words => Self::English,
            _ => Self::Other,
        }
    }
}

/// Hiragana and katakana.
fn is_kana(letter: char) -> bool {
    matches!(letter, '\u{3040}'..='\u{30ff}')
}

/// The unified ideographs of CJK and their extensions A to J, and the compatibility ones.
fn is_ideograph(letter: char) -> bool {
    matches!(letter, '\u{3400}'..='\u{4dbf}' | '\u{4e00}'..='\u{9fff}' | '\u{f900}'..='\u{faff}' | '\u{20000}'..='\u{3ffff}')
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
    fn nothing_that_steers_a_terminal_is_left_of_what_others_wrote() {
        assert_eq!(escaped("水果 {\"a\": 'b'}".as_bytes(), 20), "水果 {\"a\": 'b'}");
        let hostile = b"a\x1b[2J\xff\xe2\x80\xaeb\n\xc2\x9b\\x00";
        assert_eq!(escaped(hostile, 100), r"a\u{1b}[2J\xff\u{202e}b\n\u{9b}\\x00");
        let every = (0..=0x10_ffff).filter_map(char::from_u32).collect::<String>();
        let shown = escaped(every.as_bytes(), usize::MAX);
        for hostile in
            ['\u{7}', '\u{7f}', '\u{85}', '\u{200f}', '\u{2028}', '\u{2066}', '\u{61c}', '\u{feff}', '\u{e0001}']
        {
            assert!(!shown.contains(hostile), "{hostile:?}");
        }
        assert_eq!(escaped(&[0xff; 1_000], 2), r"\xff\xff...");
        assert_eq!(escaped("水果沙拉".as_bytes(), 2), "水果...");
        assert_eq!(escaped("水果".as_bytes(), 2), "水果");
    }

    #[test]
    fn a_time_is_rfc_3339_or_a_day() {
        assert_eq!(parse_time("2026-11-20"), parse_time("2026-11-20T08:00:00+08:00"));
        assert!(parse_time("yesterday").is_err_and(|said| said.contains("2026-11-20T08:30:00Z")));
    }

    #[test]
    fn language_is_told_by_script() {
        for (text, language) in [
            ("海边的日落", Language::Chinese),
            ("a flying animal", Language::English),
            ("iPhone手机", Language::Chinese),
            ("NBA 总决赛 2026", Language::Chinese),
            ("the word 猫", Language::English),
            ("夕焼けのビーチ", Language::Other),
            ("красное яблоко", Language::Other),
            ("été à la plage", Language::English),
            ("süße Äpfel", Language::Other),
            ("고양이", Language::Other),
            ("🍎 2026!", Language::Other),
            ("", Language::Other),
        ] {
            assert_eq!(Language::of(text), language, "{text}");
        }
    }

    #[test]
    fn a_mistyped_name_finds_its_own() {
        assert_eq!(nearest("broker", ["topic", "brokers", "group"]), "brokers");
    }
}
