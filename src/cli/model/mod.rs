//! `feedlens model`.

mod check;
mod preprocess;
mod tokenize;

use anyhow::Result;
use clap::Subcommand;
use toml::Value;

use crate::config::Config;

/// Look into a model bundle: what it is, what it makes of inputs, and whether it computes what it promises
#[derive(Subcommand)]
pub enum Command {
    Check(check::Arguments),
    Tokenize(tokenize::Arguments),
    Preprocess(preprocess::Arguments),
}

impl Command {
    /// What the options say of the configuration.
    pub fn presets(&self) -> Vec<(String, Value)> {
        match self {
            Command::Tokenize(arguments) => arguments.presets(),
            Command::Preprocess(arguments) => arguments.presets(),
            Command::Check(arguments) => arguments.presets(),
        }
    }

    /// Runs the subcommand.
    pub async fn run(self, config: Config) -> Result<()> {
        match self {
            Command::Tokenize(arguments) => arguments.run(config).await,
            Command::Preprocess(arguments) => arguments.run(config).await,
            Command::Check(arguments) => arguments.run(config).await,
        }
    }
}
