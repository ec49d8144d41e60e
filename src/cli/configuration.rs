//! `feedlens config`.

use anyhow::Result;
use clap::Subcommand;

use crate::cli::output;
use crate::config::Config;

/// Show or check the configuration
#[derive(Subcommand)]
pub enum Command {
    /// Print the resolved configuration as TOML, secrets masked
    Show,
    /// Check the configuration; exit code 2 names what is wrong
    Check,
}

impl Command {
    /// Prints.
    pub fn run(&self, config: &Config) -> Result<()> {
        match self {
            Command::Show => output::print(config.to_toml()?),
            Command::Check => output::print("the configuration is valid\n"),
        }
    }
}
