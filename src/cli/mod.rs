//! The command line: one thin file a command. Results go to stdout, logs and progress to stderr.

mod calibrate;
mod collection;
mod configuration;
mod demo;
mod dlq;
mod embed;
mod eval;
mod health;
mod ingest;
mod lines;
mod manual;
mod matching;
mod model;
mod output;
mod pictures;
mod produce;
mod progress;
mod query;
mod ready;
mod reload;
mod search;
mod start;
mod table;
mod terminal;
mod transforms;
mod zero_shot;

use std::io::Write as _;
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::{Args, CommandFactory as _, Parser, Subcommand};
use toml::Value;

use crate::cli::reload::Reload;
use crate::config::{Config, Overrides};
use crate::service::Logs;
use crate::traces;

/// Exit code for wrong use and wrong configuration; clap uses the same.
const EXIT_USAGE: u8 = 2;

/// Makes a social-media feed searchable while it arrives.
///
/// Posts come from Kafka; their pictures and captions are encoded by a CLIP model in ONNX Runtime and written to
/// Qdrant; topics in Chinese or English, or pictures, are answered with the best posts.
#[derive(Parser)]
#[command(name = "feedlens", version, max_term_width = 100, arg_required_else_help = true)]
#[command(after_help = "Start with `feedlens demo`: it needs no Kafka, no Qdrant and no configuration.")]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// Options of every command.
#[derive(Args)]
struct Global {
    /// Configuration file (TOML); repeatable, later files win
    #[arg(long = "config", value_name = "FILE", global = true, help_heading = "Configuration")]
    files: Vec<PathBuf>,
    /// Set one key, such as --set kafka.brokers=host:9092; repeatable. Environment: FEEDLENS__KAFKA__BROKERS
    #[arg(long, value_name = "KEY=VALUE", global = true, help_heading = "Configuration")]
    set: Vec<String>,
}

#[derive(Subcommand)]
enum Command {
    Ingest(ingest::Arguments),
    Query(query::Arguments),
    Ready(ready::Arguments),
    Demo(demo::Arguments),
    Produce(produce::Arguments),
    Search(Box<search::Arguments>),
    Match(matching::Arguments),
    Eval(Box<eval::Arguments>),
    Embed(embed::Arguments),
    #[command(subcommand)]
    Model(model::Command),
    #[command(subcommand)]
    Dlq(dlq::Command),
    #[command(subcommand)]
    Collection(collection::Command),
    #[command(subcommand)]
    Config(configuration::Command),
    Completions(manual::Completions),
    Man(manual::Man),
}

/// Parses the command line, runs the command, and says what went wrong in one line on stderr. Gives the exit code.
pub fn main() -> u8 {
    // From 1.31 on, ONNX Runtime on Linux keeps a database in the user's cache folder and reports to its makers.
    // SAFETY: no other thread runs yet.
    unsafe { std::env::set_var("ORT_DISABLE_TELEMETRY", "1") };
    let cli = Cli::parse();
    // These know nothing of a configuration, and so no mistake in one keeps them from their work.
    let told = match &cli.command {
        Command::Completions(arguments) => Some(arguments.run(Cli::command())),
        Command::Man(arguments) => Some(arguments.run(Cli::command())),
        _ => None,
    };
    if let Some(told) = told {
        return ended(told);
    }
    let overrides = Overrides { files: cli.global.files, set: cli.global.set };
    let presets = match &cli.command {
        Command::Demo(arguments) => arguments.presets(),
        Command::Match(arguments) => arguments.presets(),
        Command::Eval(arguments) => arguments.presets(),
        Command::Embed(arguments) => arguments.presets(),
        Command::Model(command) => command.presets(),
        Command::Collection(command) => command.presets(),
        _ => vec![],
    };
    let config = match load(&presets, &overrides) {
        Ok(config) => config,
        Err(error) => return fail(&error, EXIT_USAGE),
    };
    let asks_for_keys =
        matches!(cli.command, Command::Query(_) | Command::Demo(_) | Command::Config(configuration::Command::Check));
    if asks_for_keys && let Err(error) = config.query.check_keys() {
        return fail(&error, EXIT_USAGE);
    }
    ended(run(cli.command, config, overrides))
}

fn ended(result: Result<()>) -> u8 {
    match result {
        Ok(()) => 0,
        Err(error) if error.is::<output::ReaderGone>() => 0,
        Err(error) if error.is::<WrongUse>() => fail(&error, EXIT_USAGE),
        Err(error) => fail(&error, 1),
    }
}

/// What the command line asks for cannot be done as it is written.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct WrongUse(String);

impl WrongUse {
    fn new(reason: impl std::fmt::Display) -> Self {
        Self(reason.to_string())
    }
}

fn load(presets: &[(String, Value)], overrides: &Overrides) -> Result<Config> {
    let presets = presets.iter().map(|(key, value)| (key.as_str(), value.clone())).collect::<Vec<_>>();
    Config::load(&presets, overrides)
}

fn fail(error: &anyhow::Error, code: u8) -> u8 {
    // Where it cannot be written, the exit code alone tells.
    let _ = writeln!(std::io::stderr(), "feedlens: {error:#}");
    code
}

fn run(command: Command, config: Config, overrides: Overrides) -> Result<()> {
    if let Command::Config(command) = command {
        return command.run(&config);
    }
    let reload = Reload { logs: Logs::start(&config.log)?, overrides };
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().context("cannot start the runtime")?;
    let result = runtime.block_on(async {
        let ended = match command {
            Command::Ingest(arguments) => arguments.run(config, reload).await,
            Command::Query(arguments) => arguments.run(config, reload).await,
            Command::Ready(arguments) => arguments.run(config).await,
            Command::Demo(arguments) => arguments.run(config).await,
            Command::Produce(arguments) => arguments.run(config).await,
            Command::Search(arguments) => arguments.run(config).await,
            Command::Match(arguments) => arguments.run(config).await,
            Command::Eval(arguments) => arguments.run(config).await,
            Command::Embed(arguments) => arguments.run(config).await,
            Command::Model(command) => command.run(config).await,
            Command::Dlq(command) => command.run(config).await,
            Command::Collection(command) => command.run(config).await,
            Command::Config(_) | Command::Completions(_) | Command::Man(_) => Ok(()),
        };
        traces::end().await;
        ended
    });
    // A picture that is still being decoded must not hold up an end that was asked for.
    runtime.shutdown_background();
    result
}
