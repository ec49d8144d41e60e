//! `feedlens dlq replay`.

use std::fmt::Write as _;
use std::sync::{Arc, OnceLock};

use anyhow::{Result, bail};
use chrono::Utc;
use clap::Args;
use serde_json::{Map, Value, json};

use super::{FilterArguments, no_topic};
use crate::cli::output;
use crate::cli::progress::Progress;
use crate::config::Config;
use crate::eval::retrieve::Progress as _;
use crate::kafka::dead_letter::replay::{self, Report};
use crate::kafka::dead_letter::selection::{Selection, Skip};
use crate::service;

/// Send dead letters back to the posts topics, after their cause is mended
///
/// Each letter goes back to the partition that it came from: key, value and headers byte for byte as they came, without the
/// reason, and with a header (feedlens-origin) that names its first place. Ingest orders it by that place, as if it had
/// been read there: it never replaces a newer edit and never brings a deleted post back, and sending it twice changes
/// nothing. What is rejected again is a new dead letter of the same first place, and of letters of one place a replay
/// sends one. Letters stay in the dead-letter topic; narrow a later replay by --since.
///
/// Left out, and counted: letters of other topics than the posts topics of the configuration; letters from before the topic was made anew, as
/// far as their offsets show it; and letters of posts that were sent longer ago than store.delete_marker_ttl, for a
/// deletion behind them may be forgotten (--include-old sends them). A compacted posts topic is refused.
///
/// Exit code 1 if a letter could not be sent, or the replay was stopped; then run it again.
#[derive(Args)]
pub struct Arguments {
    #[command(flatten)]
    filter: FilterArguments,
    /// Send also posts that are older than store.delete_marker_ttl: those that were deleted since may come back
    #[arg(long)]
    include_old: bool,
    /// Send nothing, and tell what would be sent
    #[arg(long)]
    dry_run: bool,
    /// Print the answer as one JSON value
    #[arg(long)]
    json: bool,
}

impl Arguments {
    /// Sends and tells.
    pub async fn run(self, config: Config) -> Result<()> {
        let shutdown = service::shutdown_on_signal()?;
        let old_before = if self.include_old { None } else { Utc::now().checked_sub_signed(ttl(&config)) };
        let selection = Selection::new(self.filter.filter()?, config.kafka.posts_topics(), old_before);
        let progress = Arc::new(OnceLock::new());
        let begin = {
            let progress = progress.clone();
            move |offsets: u64| drop(progress.set(Progress::new("replaying", offsets as usize)))
        };
        let tick = {
            let progress = progress.clone();
            move || progress.get().into_iter().for_each(|progress| progress.done(1))
        };
        let report = replay::run(&config.kafka, selection, self.dry_run, &shutdown, begin, tick).await?;
        progress.get().into_iter().for_each(Progress::finish);
        match self.json {
            true => output::print(format_args!("{}\n", json_of(&report, &config, self.dry_run)))?,
            false if !report.exists => output::print(no_topic(&config))?,
            false => output::print(render(&report, &config, self.dry_run))?,
        }
        if let Some(fault) = report.failed {
            bail!("the replay ended early: {fault}; run it again, what was sent twice changes nothing");
        }
        if !report.is_whole {
            bail!("the replay was stopped before the end; run it again, what was sent twice changes nothing");
        }
        if report.too_large > 0 {
            bail!("{} letters are larger than their topic takes", report.too_large);
        }
        Ok(())
    }
}

fn ttl(config: &Config) -> chrono::TimeDelta {
    chrono::TimeDelta::from_std(config.store.delete_marker_ttl).unwrap_or(chrono::TimeDelta::MAX)
}

fn json_of(report: &Report, config: &Config, is_dry_run: bool) -> Value {
    let left_out = report.left_out.iter().map(|(skip, count)| (skip.as_str().to_owned(), json!(count)));
    json!({
        "topic": config.kafka.dead_letter_topic,
        "exists": report.exists,
        "dry_run": is_dry_run,
        "complete": report.is_whole && report.failed.is_none(),
        "read": report.read,
        "chosen": report.chosen,
        "sent": report.sent,
        "too_large": report.too_large,
        "left_out": left_out.collect::<Map<_, _>>(),
    })
}

fn render(report: &Report, config: &Config, is_dry_run: bool) -> String {
    let Report { read, chosen, sent, .. } = report;
    let (letters, posts) = (&config.kafka.dead_letter_topic, config.kafka.posts_topics().join(", "));
    let mut text = match is_dry_run {
        true => format!("{letters}: {read} dead letters read, {chosen} would be sent to {posts} (nothing was sent)\n"),
        false => format!("{letters}: {read} dead letters read, {chosen} chosen, {sent} sent to {posts}\n"),
    };
    for skip in Skip::ALL {
        if let Some(count) = report.left_out.get(&skip) {
            let _ = writeln!(text, "{count:>10}  left out: {}", sentence(skip, config));
        }
    }
    text
}

fn sentence(skip: Skip, config: &Config) -> String {
    let posts = config.kafka.posts_topics().join(", ");
    match skip {
        Skip::OtherReason => "of another reason".to_owned(),
        Skip::OtherTime => "rejected at another time".to_owned(),
        Skip::Foreign => "their headers do not say where they came from".to_owned(),
        Skip::OtherTopic => format!("did not come from {posts}; kafka.further_posts_topics names others"),
        Skip::TopicMadeAnew => "from before their topic was made anew: it has no such offset yet".to_owned(),
        Skip::TooOld => {
            let limit = humantime_serde::re::humantime::format_duration(config.store.delete_marker_ttl);
            format!("sent longer ago than store.delete_marker_ttl = {limit}; --include-old sends them")
        }
        Skip::Duplicate => "of a message that was chosen already".to_owned(),
    }
}
