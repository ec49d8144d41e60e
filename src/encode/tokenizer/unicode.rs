//! What cn_clip makes of each character, by the tables of Unicode 14, which are Python 3.11's.
//!
//! cn_clip asks `unicodedata`, so the ids that it gives for a mark, a punctuation or a format character that Unicode added
//! later depend on the Python that runs it. Here nothing depends on a version: what came after Unicode 14 is unassigned,
//! and stays so when the crates' tables grow.

use std::sync::LazyLock;

use regex_syntax::hir::{Class, ClassUnicode, HirKind};
use unicode_general_category::{GeneralCategory, get_general_category};
use unicode_normalization::UnicodeNormalization as _;
use unicode_normalization::char::canonical_combining_class;

/// Stands for the characters that Unicode 14 does not have: like them, this noncharacter (U+FFFF) has no case, is no
/// mark and no punctuation, and is in no vocabulary.
const UNASSIGNED: char = '\u{ffff}';

/// The one character that Unicode 14 has and later versions put elsewhere: a nonspacing mark then, a spacing one since.
/// Its neighbour U+1171D is what it was.
const CHANGED_SINCE: (char, char) = ('\u{1171e}', '\u{1171d}');

/// What becomes of a character, after lower case, decomposition and the removal of marks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Treatment {
    /// Nothing.
    Dropped,
    /// The end of a word.
    Space,
    /// A word of its own, as if spaces stood round it: a CJK ideograph.
    Ideograph(char),
    /// A word of its own, within the text between two spaces.
    Punctuation(char),
    /// Part of a word.
    Letter(char),
    /// Several characters, or what depends on the neighbours: see [`normalise`].
    Complex,
}

impl Treatment {
    pub(super) fn of(character: char) -> Self {
        // Most characters of most texts; the table is filled once in a process, within milliseconds.
        static BASIC_PLANE: LazyLock<Box<[Treatment]>> = LazyLock::new(|| {
            let character = |code| char::from_u32(code).map_or(Treatment::Dropped, Treatment::compute);
            (0..=0xFFFF).map(character).collect()
        });
        BASIC_PLANE.get(character as usize).copied().unwrap_or_else(|| Self::compute(character))
    }

    fn compute(character: char) -> Self {
        if is_cjk(character) {
            let mut decomposed = character.nfd();
            let first = decomposed.next().unwrap_or(character);
            debug_assert_eq!(decomposed.next(), None, "an ideograph is one character");
            return Self::Ideograph(first);
        }
        let character = assigned(character);
        match character {
            '\t' | '\n' | '\r' => return Self::Space,
            'Σ' => return Self::Complex,
            _ if is_dropped(character) => return Self::Dropped,
            _ => {}
        }
        use GeneralCategory as Category;
        if matches!(
            category(character),
            Category::SpaceSeparator | Category::LineSeparator | Category::ParagraphSeparator
        ) {
            return Self::Space;
        }
        let mut normalised = character.to_lowercase().nfd().filter(|part| !is_mark(*part));
        match (normalised.next(), normalised.next()) {
            (None, _) => Self::Dropped,
            (Some(only), None) if canonical_combining_class(only) == 0 => {
                if is_punctuation(only) {
                    Self::Punctuation(only)
                } else {
                    Self::Letter(only)
                }
            }
            _ => Self::Complex,
        }
    }
}

/// Lower case (where a sigma is final, as the whole text between two spaces says), then decomposed, without marks.
pub(super) fn normalise(word: &str) -> Vec<char> {
    let kept: String = word.chars().filter(|character| !is_dropped(*character)).map(assigned).collect();
    kept.to_lowercase().nfd().filter(|character| !is_mark(*character)).collect()
}

/// NUL, the replacement character, control and format characters; not tab, newline and return, which are spaces.
fn is_dropped(character: char) -> bool {
    match character {
        '\t' | '\n' | '\r' => false,
        '\u{fffd}' => true,
        _ => matches!(category(assigned(character)), GeneralCategory::Control | GeneralCategory::Format),
    }
}

fn is_mark(character: char) -> bool {
    category(character) == GeneralCategory::NonspacingMark
}

/// Punctuation, and every other sign of ASCII, such as "$".
pub(super) fn is_punctuation(character: char) -> bool {
    use GeneralCategory as Category;
    character.is_ascii_punctuation()
        || matches!(
            category(character),
            Category::ConnectorPunctuation
                | Category::DashPunctuation
                | Category::OpenPunctuation
                | Category::ClosePunctuation
                | Category::InitialPunctuation
                | Category::FinalPunctuation
                | Category::OtherPunctuation
        )
}

fn category(character: char) -> GeneralCategory {
    get_general_category(character)
}

/// The ranges of cn_clip, which are those of Google's BERT.
fn is_cjk(character: char) -> bool {
    matches!(u32::from(character),
        0x4E00..=0x9FFF
        | 0x3400..=0x4DBF
        | 0x20000..=0x2A6DF
        | 0x2A700..=0x2B73F
        | 0x2B740..=0x2B81F
        | 0x2B820..=0x2CEAF
        | 0xF900..=0xFAFF
        | 0x2F800..=0x2FA1F)
}

/// The character itself, or one that today's tables treat as Unicode 14's treat it.
fn assigned(character: char) -> char {
    static UNICODE_14: LazyLock<ClassUnicode> = LazyLock::new(|| {
        let parsed = regex_syntax::parse(r"\p{Age=14.0}").map(regex_syntax::hir::Hir::into_kind);
        match parsed {
            Ok(HirKind::Class(Class::Unicode(class))) => class,
            other => unreachable!("a class of characters, not {other:?}. This is a bug."),
        }
    });
    if character.is_ascii() {
        return character;
    }
    let ranges = UNICODE_14.ranges();
    let at = ranges.partition_point(|range| range.end() < character);
    match ranges.get(at) {
        _ if character == CHANGED_SINCE.0 => CHANGED_SINCE.1,
        Some(range) if range.start() <= character => character,
        _ => UNASSIGNED,
    }
}
