//! `feedlens model tokenize`.

use std::borrow::Cow;
use std::io::{self, BufReader};
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;
use serde::{Deserialize, Serialize};
use toml::Value;

use crate::captions::CaptionsConfig;
use crate::cli::lines::{self, Answers};
use crate::cli::start;
use crate::config::Config;
use crate::encode::bundle::Bundle;
use crate::encode::tokenizer::Tokenizer;
use crate::error::Fault;

/// Large, so that there are whole lines to work on.
const BUFFER_BYTES: usize = 256 * 1024;

/// Turn texts into the ids that the model reads
///
/// Reads JSON lines {"text": "..."} from stdin and writes {"ids": [101, ..., 102]} for each, not padded. A line that fails
/// gives {"error": "...", "kind": "..."} in its place; the exit code is 0 all the same. Texts are taken as they are, as the
/// model's own code takes them; --set captions.clean=true cleans them first, as ingest does.
#[derive(Args)]
pub struct Arguments {
    /// Model bundle; otherwise model.dir of the configuration
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
}

#[derive(Deserialize)]
struct Line<'a> {
    #[serde(borrow)]
    text: Cow<'a, str>,
}

#[derive(Serialize)]
struct Answer {
    ids: Vec<i64>,
}

impl Arguments {
    /// What the options say of the configuration.
    pub fn presets(&self) -> Vec<(String, Value)> {
        start::exact_model_presets(self.model.as_deref())
    }

    /// Answers until the input ends.
    pub async fn run(self, config: Config) -> Result<()> {
        tokio::task::spawn_blocking(move || answer_all(&config)).await.context("tokenising panicked")?
    }
}

fn answer_all(config: &Config) -> Result<()> {
    let bundle = Bundle::load(&config.model.dir)?;
    let tokenizer = bundle.load_tokenizer()?;
    let mut input = BufReader::with_capacity(BUFFER_BYTES, io::stdin().lock());
    let mut answers = Answers::new();
    while let Some(line) = lines::next_line(&mut input).context("cannot read stdin")? {
        answers.write(line.and_then(|line| answer(&line, &tokenizer, config.captions)))?;
        if !input.buffer().contains(&b'\n') {
            answers.flush()?;
        }
    }
    answers.finish()
}

fn answer(line: &[u8], tokenizer: &Tokenizer, captions: CaptionsConfig) -> Result<Answer, Fault> {
    let Line { text } = lines::parse(line, "{\"text\": \"...\"}")?;
    Ok(Answer { ids: tokenizer.encode(&captions.apply(&text))?.ids })
}
