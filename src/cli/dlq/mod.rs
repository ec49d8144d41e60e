//! `feedlens dlq`.

mod list;
mod replay;

use anyhow::Result;
use chrono::{DateTime, Utc};
use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, Subcommand};

use crate::cli::WrongUse;
use crate::config::Config;
use crate::error::Reason;
use crate::kafka::dead_letter::selection::Filter;
use crate::text;

/// Look at the dead letters, or send them again
#[derive(Subcommand)]
pub enum Command {
    List(list::Arguments),
    Replay(replay::Arguments),
}

impl Command {
    /// Runs.
    pub async fn run(self, config: Config) -> Result<()> {
        match self {
            Command::List(arguments) => arguments.run(config).await,
            Command::Replay(arguments) => arguments.run(config).await,
        }
    }
}

/// Which letters.
#[derive(Args)]
struct FilterArguments {
    /// Only letters of this reason; repeatable
    #[arg(long = "reason", value_name = "REASON", value_parser = reason_parser())]
    reasons: Vec<Reason>,
    /// Only letters rejected at or after this time (RFC 3339, or a day)
    #[arg(long, value_name = "TIME", value_parser = text::parse_time)]
    since: Option<DateTime<Utc>>,
    /// Only letters rejected before this time (RFC 3339, or a day)
    #[arg(long, value_name = "TIME", value_parser = text::parse_time)]
    until: Option<DateTime<Utc>>,
}

impl FilterArguments {
    fn filter(self) -> Result<Filter> {
        let Self { reasons, since, until } = self;
        if let (Some(since), Some(until)) = (since, until)
            && since >= until
        {
            return Err(
                WrongUse::new(format!("--since {since} is not before --until {until}: no letter is meant")).into()
            );
        }
        Ok(Filter { reasons, since, until })
    }
}

fn reason_parser() -> impl TypedValueParser<Value = Reason> {
    let names = PossibleValuesParser::new(Reason::ALL.map(Reason::as_str));
    names.map(|name| Reason::named(&name).expect("clap lets only known reasons pass. This is a bug."))
}

/// What to say where there are no letters.
fn no_topic(config: &Config) -> String {
    let topic = &config.kafka.dead_letter_topic;
    format!("topic {topic} does not exist: nothing was rejected yet, or kafka.dead_letter_topic names another\n")
}
