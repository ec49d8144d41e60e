//! `feedlens dlq list`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::ops::ControlFlow;

use anyhow::{Context, Result};
use chrono::{DateTime, SecondsFormat, Utc};
use clap::Args;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::{FilterArguments, no_topic};
use crate::cli::output;
use crate::cli::progress::Progress;
use crate::config::Config;
use crate::error::Fault;
use crate::eval::retrieve::Progress as _;
use crate::kafka::KafkaConfig;
use crate::kafka::dead_letter::Letters;
use crate::kafka::dead_letter::selection::Filter;
use crate::kafka::dead_letter::summary::{Sample, Summary};
use crate::service;

/// Count the dead letters by reason and by source topic, and show some
///
/// Reads kafka.dead_letter_topic from its begin to its present end. It joins no consumer group and commits nothing. What
/// the feed wrote is shown escaped: nothing in it can steer the terminal.
#[derive(Args)]
pub struct Arguments {
    #[command(flatten)]
    filter: FilterArguments,
    /// Letters shown of each reason, the latest
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u16).range(..=1000))]
    samples: u16,
    /// Print the answer as one JSON value
    #[arg(long)]
    json: bool,
}

impl Arguments {
    /// Reads and prints.
    pub async fn run(self, config: Config) -> Result<()> {
        let shutdown = service::shutdown_on_signal()?;
        let filter = self.filter.filter()?;
        let (kafka, samples, stop) = (config.kafka.clone(), usize::from(self.samples), shutdown.clone());
        let read = tokio::task::spawn_blocking(move || summarise(&kafka, &filter, samples, &stop));
        let read = read.await.context("reading the dead letters failed")??;
        // Half a count would be taken for the whole.
        anyhow::ensure!(!shutdown.is_cancelled(), "stopped before all dead letters were read");
        let topic = &config.kafka.dead_letter_topic;
        match (read, self.json) {
            (None, false) => output::print(no_topic(&config)),
            (Some(summary), false) => output::print(render(topic, &summary)),
            (read, true) => {
                let exists = read.is_some();
                let mut value = serde_json::to_value(read.unwrap_or_default())?;
                value["topic"] = json!(topic);
                value["exists"] = json!(exists);
                output::print(format_args!("{value}\n"))
            }
        }
    }
}

/// `None`: there is no such topic.
fn summarise(
    config: &KafkaConfig,
    filter: &Filter,
    samples: usize,
    stop: &CancellationToken,
) -> Result<Option<Summary>, Fault> {
    let Some(letters) = Letters::open(config)? else { return Ok(None) };
    let progress = Progress::new("reading", letters.offsets() as usize);
    let mut summary = Summary::new(samples);
    letters.read(stop, |letter| {
        progress.done(1);
        if filter.skips(&letter).is_none() {
            summary.add(&letter);
        }
        ControlFlow::Continue(())
    })?;
    progress.finish();
    Ok(Some(summary))
}

fn render(topic: &str, summary: &Summary) -> String {
    let Summary { letters, first, last, reasons, source_topics, samples, .. } = summary;
    if *letters == 0 {
        return format!("{topic}: no dead letters\n");
    }
    let mut text = format!("{topic}: {letters} dead letters");
    if let (Some(first), Some(last)) = (first, last) {
        let _ = write!(text, ", from {} to {}", shown(*first), shown(*last));
    }
    text.push_str("\n\n");
    table(&mut text, "reason", reasons);
    text.push('\n');
    table(&mut text, "came from", source_topics);
    if !samples.is_empty() {
        text.push_str("\nthe latest of each reason:\n");
    }
    for sample in samples {
        text.push('\n');
        describe(&mut text, sample);
    }
    text
}

fn table(text: &mut String, title: &str, counts: &BTreeMap<String, u64>) {
    let _ = writeln!(text, "   letters  {title}");
    let mut counts = counts.iter().collect::<Vec<_>>();
    counts.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
    for (name, count) in counts {
        let _ = writeln!(text, "{count:>10}  {name}");
    }
}

fn describe(text: &mut String, sample: &Sample) {
    let Sample { reason, detail, time, source, letter, key, value, value_bytes } = sample;
    let source = source.as_deref().unwrap_or("an unknown place");
    let time = time.map_or_else(|| "an unknown time".to_owned(), shown);
    let _ = writeln!(text, "{reason}  {source}  {time}  (letter {letter})");
    let _ = writeln!(text, "  {detail}");
    let key = key.as_ref().map_or_else(|| "no key".to_owned(), |key| format!("key \"{key}\""));
    let _ = match value {
        Some(value) => writeln!(text, "  {key}, {value_bytes} bytes: {value}"),
        None => writeln!(text, "  {key}, no value"),
    };
}

fn shown(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(SecondsFormat::Secs, true)
}
