//! Chinese-CLIP's tokenizer (`cn_clip/clip/bert_tokenizer.py`): the same ids for the same text.
//!
//! The `tokenizers` crate's BERT parts differ in a CJK range, the length of a word, private-use characters and final
//! sigma, and take "[MASK]" in a caption for a special token, so the rules stand here as they stand there. The time is
//! linear in the text, and nothing is split any more once the context is full.

use std::path::Path;
use std::str::Chars;

use anyhow::{Context, Result, bail, ensure};
use rustc_hash::FxHashMap;

use super::unicode::{self, Treatment};

/// Longer words are `[UNK]`, in characters.
const MAX_WORD_CHARS: usize = 200;

/// `[CLS]`, one token and `[SEP]`.
const MIN_CONTEXT: usize = 3;

/// A vocabulary with the rules that cut text into it.
#[derive(Debug, Clone)]
pub(super) struct WordPiece {
    beginnings: Pieces,
    /// Pieces that go on within a word, without their `##`.
    continuations: Pieces,
    size: usize,
    unknown: i64,
    classify: i64,
    separator: i64,
    context_length: usize,
}

impl WordPiece {
    /// Reads `vocab.txt`, one token a line, the line number being the id.
    pub(super) fn load(file: &Path, context_length: usize) -> Result<Self> {
        let text =
            std::fs::read_to_string(file).with_context(|| format!("cannot read the vocabulary {}", file.display()))?;
        Self::parse(&text, context_length).with_context(|| format!("vocabulary {}", file.display()))
    }

    pub(super) fn parse(vocabulary: &str, context_length: usize) -> Result<Self> {
        ensure!(context_length >= MIN_CONTEXT, "a context of {context_length} ids has no room for a text");
        let mut ids: FxHashMap<&str, i64> = FxHashMap::default();
        let (mut beginnings, mut continuations) = (Pieces::new(), Pieces::new());
        // Not `lines()`: cn_clip's own file has U+2028 for a token, and no other line end than \n.
        let lines = vocabulary.strip_suffix('\n').unwrap_or(vocabulary).split('\n');
        for (id, line) in lines.enumerate() {
            let id = id as i64;
            // cn_clip strips too, which makes its U+2028 an empty token: one that no text can have.
            let token = line.trim();
            if let Some(first) = ids.insert(token, id) {
                bail!("token {token:?} is there twice, as ids {first} and {id}");
            }
            // "#" is punctuation, so no word begins with "##".
            match token.strip_prefix("##") {
                Some(piece) if !piece.is_empty() => continuations.insert(piece, id),
                _ => beginnings.insert(token, id),
            }
        }
        let special = |token: &str| {
            ids.get(token).copied().with_context(|| format!("has no token {token}; is it a BERT vocabulary?"))
        };
        let (unknown, classify, separator) = (special("[UNK]")?, special("[CLS]")?, special("[SEP]")?);
        Ok(Self { beginnings, continuations, size: ids.len(), unknown, classify, separator, context_length })
    }

    pub(super) fn vocabulary_size(&self) -> usize {
        self.size
    }

    /// `[CLS]`, at most `context_length - 2` ids, `[SEP]`.
    pub(super) fn encode(&self, text: &str) -> Vec<i64> {
        let room = self.context_length - 1;
        let mut ids = Vec::with_capacity(self.context_length);
        ids.push(self.classify);
        let mut piece = Vec::new();
        // Where the text since the last space began, and how many ids there were then.
        let mut word = (0, ids.len());
        let mut rest = text.chars();
        let position = |rest: &Chars<'_>| text.len() - rest.as_str().len();
        while ids.len() < room
            && let Some(character) = rest.next()
        {
            match Treatment::of(character) {
                Treatment::Dropped => {}
                // One more than the longest: what is longer is the same.
                Treatment::Letter(letter) => {
                    if piece.len() <= MAX_WORD_CHARS {
                        piece.push(letter);
                    }
                }
                Treatment::Punctuation(alone) => {
                    self.end_piece(&mut piece, &mut ids);
                    self.push_word(&[alone], &mut ids);
                }
                Treatment::Space => {
                    self.end_piece(&mut piece, &mut ids);
                    word = (position(&rest), ids.len());
                }
                Treatment::Ideograph(alone) => {
                    self.end_piece(&mut piece, &mut ids);
                    self.push_word(&[alone], &mut ids);
                    word = (position(&rest), ids.len());
                }
                Treatment::Complex => {
                    // The word from its beginning again, for a sigma's form depends on all of it.
                    let ends =
                        |character| matches!(Treatment::of(character), Treatment::Space | Treatment::Ideograph(_));
                    let behind = rest.as_str();
                    rest = behind[behind.find(ends).unwrap_or(behind.len())..].chars();
                    piece.clear();
                    ids.truncate(word.1);
                    self.push_normalised(&unicode::normalise(&text[word.0..position(&rest)]), &mut ids);
                    word = (position(&rest), ids.len());
                }
            }
        }
        self.end_piece(&mut piece, &mut ids);
        ids.truncate(room);
        ids.push(self.separator);
        ids
    }

    fn push_normalised(&self, word: &[char], ids: &mut Vec<i64>) {
        for piece in word.split_inclusive(|character| unicode::is_punctuation(*character)) {
            match piece {
                [letters @ .., last] if unicode::is_punctuation(*last) => {
                    self.push_word(letters, ids);
                    self.push_word(&[*last], ids);
                }
                letters => self.push_word(letters, ids),
            }
            if ids.len() >= self.context_length {
                break;
            }
        }
    }

    fn end_piece(&self, piece: &mut Vec<char>, ids: &mut Vec<i64>) {
        self.push_word(piece, ids);
        piece.clear();
    }

    /// The longest known piece first; a word with an unknown rest is `[UNK]` as a whole.
    fn push_word(&self, word: &[char], ids: &mut Vec<i64>) {
        let before = ids.len();
        let (mut pieces, mut rest) = (&self.beginnings, word);
        while !rest.is_empty() {
            let longest = if word.len() > MAX_WORD_CHARS { None } else { pieces.longest(rest) };
            let Some((length, id)) = longest else {
                ids.truncate(before);
                ids.push(self.unknown);
                return;
            };
            ids.push(id);
            rest = &rest[length..];
            pieces = &self.continuations;
        }
    }
}

/// A trie over characters: one step a character, however many pieces begin alike.
#[derive(Debug, Clone)]
struct Pieces {
    /// From a node by a character; node 0 is the root.
    steps: FxHashMap<(u32, char), u32>,
    /// The id of the piece that ends at each node.
    ids: Vec<Option<i64>>,
}

impl Pieces {
    fn new() -> Self {
        Self { steps: FxHashMap::default(), ids: vec![None] }
    }

    fn insert(&mut self, piece: &str, id: i64) {
        let mut node = 0;
        for character in piece.chars() {
            node = *self.steps.entry((node, character)).or_insert_with(|| {
                self.ids.push(None);
                self.ids.len() as u32 - 1
            });
        }
        self.ids[node as usize] = Some(id);
    }

    /// The longest piece that `word` begins with: its length in characters, its id.
    fn longest(&self, word: &[char]) -> Option<(usize, i64)> {
        let (mut node, mut longest) = (0, None);
        for (index, character) in word.iter().enumerate() {
            let Some(next) = self.steps.get(&(node, *character)) else { break };
            node = *next;
            if let Some(id) = self.ids[node as usize] {
                longest = Some((index + 1, id));
            }
        }
        longest
    }
}
