//! Hugging Face's `tokenizer.json` through the `tokenizers` crate: byte-level BPE (OpenAI's and open_clip's CLIP), Unigram
//! (XLM-R), WordPiece (BERT).
//!
//! Equal to Hugging Face's fast tokenizers. OpenAI's and open_clip's own Python code also mends broken encodings (ftfy) and
//! HTML entities before it tokenises; no `tokenizer.json` does.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use anyhow::{Context, Result, anyhow, ensure};
use serde_json::Value;
use tokenizers::{PostProcessor as _, Tokenizer, TruncationParams};

use crate::error::{Fault, Reason};

/// The largest in use, of models with a quarter of a million tokens, has 17 MB.
const MAX_FILE_BYTES: u64 = 256 * 1024 * 1024;

/// What a tokenizer of a feed must be able to take: nothing, and characters that no vocabulary has.
const PROBES: [&str; 3] = ["", "a 雨 \u{1f326}", "\u{0}\u{e000}\u{10fffd}"];

/// Names that padding goes by where no file says its id.
const PADDING_TOKENS: [&str; 2] = ["<pad>", "[PAD]"];

#[derive(Debug)]
pub(super) struct HuggingFace {
    tokenizer: Tokenizer,
    padding_id: i64,
    vocabulary_size: usize,
}

impl HuggingFace {
    pub(super) fn load(file: &Path, context_length: usize) -> Result<Self> {
        let shown = file.display();
        let length = std::fs::metadata(file).with_context(|| format!("cannot read the tokenizer {shown}"))?.len();
        ensure!(
            length <= MAX_FILE_BYTES,
            "{shown} has {length} bytes, of at most {MAX_FILE_BYTES}: it is no tokenizer"
        );
        let bytes = std::fs::read(file).with_context(|| format!("cannot read the tokenizer {shown}"))?;
        let mut tokenizer = guarded(|| Tokenizer::from_bytes(&bytes))
            .map_err(|error| anyhow!("{shown} is not a tokenizer.json of Hugging Face's tokenizers: {error}"))?;
        let padding_id = padding_id(&tokenizer, file)?;
        let added = tokenizer.get_post_processor().map_or(0, |processor| processor.added_tokens(false));
        ensure!(
            added < context_length,
            "{shown} puts {added} ids round a text: in a context of {context_length} there is no room for a text"
        );
        let truncation = TruncationParams { max_length: context_length, ..TruncationParams::default() };
        let limited = tokenizer.with_truncation(Some(truncation)).map(|tokenizer| tokenizer.with_padding(None));
        limited.map_err(|error| anyhow!("{shown}: {error}"))?;
        let vocabulary_size = tokenizer.get_vocab(true).into_values().max().map_or(0, |id| id as usize + 1);
        let loaded = Self { tokenizer, padding_id, vocabulary_size };
        for probe in PROBES {
            loaded.ids(probe).map_err(|error| anyhow!("{shown} cannot tokenise {probe:?}: {error}"))?;
        }
        Ok(loaded)
    }

    pub(super) fn encode(&self, text: &str) -> Result<Vec<i64>, Fault> {
        let failed = |detail: String| Fault::reject(Reason::EncodeFailed, format!("the tokenizer failed: {detail}"));
        let ids = self.ids(text).map_err(failed)?;
        if ids.is_empty() {
            return Err(failed("it has no ids for this text".to_owned()));
        }
        Ok(ids)
    }

    fn ids(&self, text: &str) -> Result<Vec<i64>, String> {
        let encoding = guarded(|| self.tokenizer.encode_fast(text, true))?;
        Ok(encoding.get_ids().iter().map(|id| i64::from(*id)).collect())
    }

    pub(super) fn vocabulary_size(&self) -> usize {
        self.vocabulary_size
    }

    pub(super) fn padding_id(&self) -> i64 {
        self.padding_id
    }
}

/// The crate panics over some files that it should refuse, and over some texts with such files.
fn guarded<T>(work: impl FnOnce() -> tokenizers::Result<T>) -> Result<T, String> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(done) => done.map_err(|error| error.to_string()),
        Err(_) => Err("the tokenizers crate panicked over it".to_owned()),
    }
}

/// As the file itself says, or the `tokenizer_config.json` beside it, or a token of a usual name; otherwise 0, with which
/// open_clip pads OpenAI's models.
fn padding_id(tokenizer: &Tokenizer, file: &Path) -> Result<i64> {
    if let Some(padding) = tokenizer.get_padding() {
        return Ok(padding.pad_id.into());
    }
    let beside = file.with_file_name("tokenizer_config.json");
    let named = match std::fs::read(&beside) {
        Ok(bytes) => {
            let config: Value =
                serde_json::from_slice(&bytes).with_context(|| format!("{} is not JSON", beside.display()))?;
            let token = &config["pad_token"];
            token.as_str().or_else(|| token["content"].as_str()).map(str::to_owned)
        }
        Err(_) => None,
    };
    if let Some(token) = named {
        let id = tokenizer.token_to_id(&token);
        return id.map(i64::from).with_context(|| {
            format!("{} pads with {token:?}, which {} does not have", beside.display(), file.display())
        });
    }
    let usual = PADDING_TOKENS.iter().find_map(|token| tokenizer.token_to_id(token));
    Ok(usual.unwrap_or(0).into())
}

#[cfg(test)]
mod tests;
