//! Texts to ids, by the rules that a bundle names: Chinese-CLIP's WordPiece (`vocab.txt`), or what a Hugging Face
//! `tokenizer.json` describes.

mod hugging_face;
mod unicode;
mod wordpiece;

use std::path::Path;

use anyhow::Result;

use self::hugging_face::HuggingFace;
use self::wordpiece::WordPiece;
use crate::encode::PreparedText;
use crate::error::Fault;

/// A vocabulary with the rules that cut text into it.
#[derive(Debug)]
pub struct Tokenizer(Rules);

#[derive(Debug)]
enum Rules {
    WordPiece(WordPiece),
    HuggingFace(Box<HuggingFace>),
}

impl Tokenizer {
    /// Reads a `tokenizer.json` (any name that ends in `.json`), or a `vocab.txt`: one token a line, the line number being
    /// the id. `context_length`: most ids of a text, those that mark its beginning and end included.
    ///
    /// # Errors
    /// Names the file, and what it lacks or has twice.
    pub fn load(file: &Path, context_length: usize) -> Result<Self> {
        if file.extension().is_some_and(|extension| extension == "json") {
            return Ok(Self(Rules::HuggingFace(Box::new(HuggingFace::load(file, context_length)?))));
        }
        Ok(Self(Rules::WordPiece(WordPiece::load(file, context_length)?)))
    }

    /// cn_clip's own vocabulary, for exports that come without it.
    ///
    /// # Errors
    /// Only where `context_length` leaves no room for a text.
    pub fn chinese_clip(context_length: usize) -> Result<Self> {
        let vocabulary = include_str!("../../models/small/vocab.txt");
        Ok(Self(Rules::WordPiece(WordPiece::parse(vocabulary, context_length)?)))
    }

    /// The ids of a text, at most `context_length`, not padded. A text that is too long keeps the id that marks its end.
    ///
    /// By cn_clip's rules no text is a special token; by those of a `tokenizer.json`, "<|endoftext|>" in a text is one, as
    /// in Hugging Face's own.
    ///
    /// # Errors
    /// [`Fault::Reject`] where a `tokenizer.json` has no ids for this very text; none with a `vocab.txt`, which has `[UNK]`.
    pub fn encode(&self, text: &str) -> Result<PreparedText, Fault> {
        let ids = match &self.0 {
            Rules::WordPiece(rules) => rules.encode(text),
            Rules::HuggingFace(rules) => rules.encode(text)?,
        };
        Ok(PreparedText { ids })
    }

    /// The highest id and one: the rows that the model's embedding table must have.
    pub fn vocabulary_size(&self) -> usize {
        match &self.0 {
            Rules::WordPiece(rules) => rules.vocabulary_size(),
            Rules::HuggingFace(rules) => rules.vocabulary_size(),
        }
    }

    /// The id that fills up the shorter texts of a batch.
    pub fn padding_id(&self) -> i64 {
        match &self.0 {
            // cn_clip pads with zeros whatever the vocabulary says, and the graph masks them.
            Rules::WordPiece(_) => 0,
            Rules::HuggingFace(rules) => rules.padding_id(),
        }
    }
}

#[cfg(test)]
mod tests;
