//! Chinese-CLIP's tokenizer (`cn_clip/clip/bert_tokenizer.py`): the same ids for the same text.
//!
//! The `tokenizers` crate's BERT parts differ in a CJK range, the length of a word, private-use characters, and take
//! "[MASK]" in a caption for a special token, so the rules stand here as they stand there. Its limit of 200 characters a
//! word bounds the work, and nothing is split any more once the context is full.
//!
//! Unicode: that code asks Python's `unicodedata` (version 14 in Python 3.11, later in later ones), this one the tables of
//! the crates (16 and later), as cn_clip on a newer Python would. Of the characters that version 14 knows, one is treated
//! differently: U+1171E, an Ahom vowel sign that was made a combining mark since. Younger characters are not in the
//! vocabulary; their words are `[UNK]` either way, unless the character is a mark, which then is dropped.

use std::collections::HashMap;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use unicode_general_category::{GeneralCategory, get_general_category};
use unicode_normalization::UnicodeNormalization as _;

use crate::encode::PreparedText;
use crate::error::Fault;

/// Longer words are `[UNK]`, in characters.
const MAX_WORD_CHARS: usize = 200;

/// `[CLS]`, one token and `[SEP]`.
const MIN_CONTEXT: usize = 3;

/// A vocabulary with the rules that cut text into it.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    /// Pieces that begin a word.
    beginnings: HashMap<Box<str>, i64>,
    /// Pieces that go on within a word, without their `##`.
    continuations: HashMap<Box<str>, i64>,
    /// The longest piece, in characters: longer ones need not be looked up.
    longest_piece: usize,
    unknown: i64,
    classify: i64,
    separator: i64,
    context_length: usize,
}

impl Tokenizer {
    /// Reads `vocab.txt`, one token a line, the line number being the id. `context_length`: most ids of a text,
    /// `[CLS]` and `[SEP]` included.
    ///
    /// # Errors
    /// Where the file cannot be read, holds a token twice, or lacks `[UNK]`, `[CLS]` or `[SEP]`.
    pub fn load(vocab_txt: &Path, context_length: usize) -> Result<Self> {
        let text = std::fs::read_to_string(vocab_txt)
            .with_context(|| format!("cannot read the vocabulary {}", vocab_txt.display()))?;
        Self::parse(&text, context_length).with_context(|| format!("vocabulary {}", vocab_txt.display()))
    }

    fn parse(vocabulary: &str, context_length: usize) -> Result<Self> {
        ensure!(context_length >= MIN_CONTEXT, "a context of {context_length} ids has no room for a text");
        let mut ids: HashMap<&str, i64> = HashMap::new();
        // Not `lines()`: cn_clip's own file has U+2028 for a token, and no other line end than \n.
        let lines = vocabulary.strip_suffix('\n').unwrap_or(vocabulary).split('\n');
        for (id, line) in lines.enumerate() {
            // cn_clip strips too, which makes its U+2028 an empty token: one that no text can have.
            let token = line.trim();
            if let Some(first) = ids.insert(token, id as i64) {
                bail!("token {token:?} is there twice, as ids {first} and {id}");
            }
        }
        let special = |token: &str| {
            ids.get(token).copied().with_context(|| format!("has no token {token}; is it a BERT vocabulary?"))
        };
        let (unknown, classify, separator) = (special("[UNK]")?, special("[CLS]")?, special("[SEP]")?);
        let longest_piece = ids.keys().map(|token| token.chars().count()).max().unwrap_or(0);
        let mut beginnings = HashMap::new();
        let mut continuations = HashMap::new();
        for (token, id) in ids {
            if let Some(piece) = token.strip_prefix("##") {
                continuations.insert(piece.into(), id);
            }
            beginnings.insert(token.into(), id);
        }
        Ok(Self { beginnings, continuations, longest_piece, unknown, classify, separator, context_length })
    }

    /// Number of tokens in the vocabulary.
    pub fn vocabulary_size(&self) -> usize {
        self.beginnings.len()
    }

    /// The ids of a text: `[CLS]`, at most `context_length - 2` ids, `[SEP]`; not padded.
    ///
    /// # Errors
    /// None with a WordPiece vocabulary, which has an id for what it does not know.
    pub fn encode(&self, text: &str) -> Result<PreparedText, Fault> {
        let room = self.context_length - 1;
        let mut ids = vec![self.classify];
        let cleaned = clean(text);
        for word in cleaned.split_whitespace() {
            let mut piece = String::new();
            for character in strip_accents(word) {
                if is_punctuation(character) {
                    self.push_word(&piece, &mut ids);
                    piece.clear();
                    self.push_word(character.encode_utf8(&mut [0; 4]), &mut ids);
                } else {
                    piece.push(character);
                }
                // A "word" may be as long as the caption.
                if ids.len() >= room {
                    break;
                }
            }
            self.push_word(&piece, &mut ids);
            if ids.len() >= room {
                break;
            }
        }
        ids.truncate(room);
        ids.push(self.separator);
        Ok(PreparedText { ids })
    }

    /// WordPiece: the longest known piece first; a word with an unknown rest is `[UNK]` as a whole.
    fn push_word(&self, word: &str, ids: &mut Vec<i64>) {
        if word.is_empty() {
            return;
        }
        let ends: Vec<usize> = word.char_indices().map(|(at, character)| at + character.len_utf8()).collect();
        if ends.len() > MAX_WORD_CHARS {
            ids.push(self.unknown);
            return;
        }
        let before = ids.len();
        let mut start = 0;
        while start < ends.len() {
            let pieces = if start == 0 { &self.beginnings } else { &self.continuations };
            let from = if start == 0 { 0 } else { ends[start - 1] };
            let longest = ends.len().min(start + self.longest_piece);
            let found = (start..longest).rev().find_map(|end| Some((end + 1, *pieces.get(&word[from..ends[end]])?)));
            let Some((next, id)) = found else {
                ids.truncate(before);
                ids.push(self.unknown);
                return;
            };
            ids.push(id);
            start = next;
        }
    }
}

/// Drops what is not text, turns white space into spaces, and puts spaces round each CJK character.
fn clean(text: &str) -> String {
    let mut cleaned = String::with_capacity(text.len() + text.len() / 2);
    for character in text.chars() {
        match character {
            ' '..='~' => cleaned.push(character),
            '\t' | '\n' | '\r' => cleaned.push(' '),
            '\u{fffd}' => {}
            _ if is_cjk(character) => cleaned.extend([' ', character, ' ']),
            _ => match get_general_category(character) {
                GeneralCategory::Control | GeneralCategory::Format => {}
                GeneralCategory::SpaceSeparator => cleaned.push(' '),
                _ => cleaned.push(character),
            },
        }
    }
    cleaned
}

/// Lower case, then decomposed, without combining marks.
fn strip_accents(word: &str) -> Vec<char> {
    if word.is_ascii() {
        return word.chars().map(|character| character.to_ascii_lowercase()).collect();
    }
    word.to_lowercase()
        .nfd()
        .filter(|character| get_general_category(*character) != GeneralCategory::NonspacingMark)
        .collect()
}

fn is_punctuation(character: char) -> bool {
    use GeneralCategory as Category;
    character.is_ascii_punctuation()
        || (!character.is_ascii()
            && matches!(
                get_general_category(character),
                Category::ConnectorPunctuation
                    | Category::DashPunctuation
                    | Category::OpenPunctuation
                    | Category::ClosePunctuation
                    | Category::InitialPunctuation
                    | Category::FinalPunctuation
                    | Category::OtherPunctuation
            ))
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

#[cfg(test)]
mod tests;
