//! `feedlens config`.

use std::io::Read as _;

use anyhow::{Context as _, Result};
use clap::Subcommand;

use crate::cli::{WrongUse, output};
use crate::config::Config;
use crate::query::keys;

/// Longer ones would not pass as a header.
const MAX_KEY_BYTES: u64 = 4096;

/// Show or check the configuration
#[derive(Subcommand)]
pub enum Command {
    /// Print the resolved configuration as TOML, secrets masked
    Show,
    /// Check the configuration; exit code 2 names what is wrong
    Check,
    /// Read an API key from standard input and print its hash for query.api_keys_file
    HashKey,
}

impl Command {
    /// Prints.
    pub fn run(&self, config: &Config) -> Result<()> {
        match self {
            Command::Show => output::print(config.to_toml()?),
            Command::Check => {
                for (section, tls) in [("query.tls", &config.query.tls), ("admin.tls", &config.admin.tls)] {
                    tls.server(section).map_err(|error| WrongUse::new(format!("{error:#}")))?;
                }
                output::print("the configuration is valid\n")
            }
            Command::HashKey => {
                let mut key = String::new();
                std::io::stdin()
                    .take(MAX_KEY_BYTES)
                    .read_to_string(&mut key)
                    .context("cannot read the key from stdin")?;
                output::print(keys::hash(key.trim_end_matches(['\r', '\n']))? + "\n")
            }
        }
    }
}
