//! `feedlens completions` and `feedlens man`: what shells and `man` know of the command line, made from the command line.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::{Args, Command};
use clap_complete::Shell;

use crate::cli::output;

/// Print the completion script of a shell
///
/// For bash: feedlens completions bash > ~/.local/share/bash-completion/completions/feedlens
#[derive(Args)]
pub struct Completions {
    /// The shell
    #[arg(value_name = "SHELL")]
    shell: Shell,
}

impl Completions {
    /// Prints the script.
    pub fn run(&self, mut command: Command) -> Result<()> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut command, "feedlens", &mut script);
        output::print(String::from_utf8_lossy(&script))
    }
}

/// Write the manual pages, one for each command
///
/// For `man feedlens` and `man feedlens-search`: feedlens man --out ~/.local/share/man/man1
#[derive(Args)]
pub struct Man {
    /// The folder; it is made if it is not there
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

impl Man {
    /// Writes the pages.
    pub fn run(&self, command: Command) -> Result<()> {
        let folder = self.out.display();
        std::fs::create_dir_all(&self.out).with_context(|| format!("cannot make the folder {folder}"))?;
        clap_mangen::generate_to(command.disable_help_subcommand(true), &self.out)
            .with_context(|| format!("cannot write manual pages to {folder}"))
    }
}
