//! `feedlens model`.

mod tokenize;

use anyhow::Result;
use clap::Subcommand;
use toml::Value;

use crate::config::Config;

/// Look into a model bundle
#[derive(Subcommand)]
pub enum Command {
    Tokenize(tokenize::Arguments),
}

impl Command {
    /// What the options say of the configuration.
    pub fn presets(&self) -> Vec<(String, Value)> {
        match self {
            Command::Tokenize(arguments) => arguments.presets(),
        }
    }

    /// Runs the subcommand.
    pub async fn run(self, config: Config) -> Result<()> {
        match self {
            Command::Tokenize(arguments) => arguments.run(config).await,
        }
    }
}
