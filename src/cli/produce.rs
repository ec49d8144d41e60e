//! `feedlens produce`.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use clap::Args;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use opentelemetry::trace::SpanKind;
use tokio::sync::mpsc;

use crate::cli::output;
use crate::config::Config;
use crate::feed::{Feed, Message};
use crate::kafka;
use crate::kafka::Producer;
use crate::metrics::Metrics;
use crate::service;
use crate::traces::{self, Span, span};

/// Messages on their way to the broker at a time.
const IN_FLIGHT: usize = 256;

/// Send posts from a file of JSON lines to the posts topic
///
/// One post a line, in the format of the README. A picture given by a path relative to the file is put into the message
/// as base64. The key is the post's id.
#[derive(Args)]
pub struct Arguments {
    /// Posts, JSON lines
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Posts a second; otherwise as fast as the broker takes them
    #[arg(long, value_name = "N", value_parser = parse_rate)]
    rate: Option<f64>,
}

impl Arguments {
    /// Sends until the end of the file, or until SIGTERM.
    pub async fn run(self, config: Config) -> Result<()> {
        let shutdown = service::shutdown_on_signal()?;
        let pause = pause(self.rate);
        // Opened first: for a file that is not there nobody should wait for brokers.
        let feed = Feed::open(&self.file)?;
        kafka::check_reachable(&config.kafka).await?;
        traces::start(&config.traces, "feedlens-produce", &Metrics::new())?;
        let producer = Producer::new(&config.kafka)?;
        let mut messages = read_in_background(feed);
        let mut sending = FuturesUnordered::new();
        let mut ticks = tokio::time::interval(pause.max(Duration::from_nanos(1)));
        let (mut sent, mut open) = (0u64, true);
        while open || !sending.is_empty() {
            tokio::select! {
                Some(done) = sending.next(), if !sending.is_empty() => {
                    let done: Result<_, crate::error::Fault> = done;
                    done?;
                    sent += 1;
                }
                message = next_paced(&mut messages, &mut ticks, pause), if open && sending.len() < IN_FLIGHT => {
                    match message.transpose()? {
                        Some(message) => sending.push(send(&producer, &config.kafka.posts_topic, message)),
                        None => open = false,
                    }
                }
                () = shutdown.cancelled(), if open => open = false,
            }
        }
        output::print(format_args!(
            "{sent} posts sent to topic {} on {}\n",
            config.kafka.posts_topic, config.kafka.brokers
        ))
    }
}

/// The value of `--rate`.
pub fn parse_rate(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        // Slower than a post in a day is a mistake, and far slower is no duration any more.
        Ok(rate) if rate.is_finite() && rate >= 1e-5 => Ok(rate),
        _ => Err("give posts a second, a number from 0.00001".to_owned()),
    }
}

/// The time between two messages; zero: none.
pub fn pause(rate: Option<f64>) -> Duration {
    rate.map_or(Duration::ZERO, |rate| Duration::from_secs_f64(1.0 / rate))
}

/// Files are read on a thread of their own; a full channel makes it wait.
pub fn read_in_background(feed: Feed) -> mpsc::Receiver<Result<Message>> {
    let (sender, receiver) = mpsc::channel(IN_FLIGHT);
    tokio::task::spawn_blocking(move || {
        for message in feed {
            if sender.blocking_send(message).is_err() {
                break;
            }
        }
    });
    receiver
}

async fn next_paced(
    messages: &mut mpsc::Receiver<Result<Message>>,
    ticks: &mut tokio::time::Interval,
    pause: Duration,
) -> Option<Result<Message>> {
    if !pause.is_zero() {
        ticks.tick().await;
    }
    messages.recv().await
}

/// Sends one message and waits for the broker's acknowledgement.
pub async fn send(producer: &Producer, topic: &str, message: Message) -> Result<(), crate::error::Fault> {
    let key = message.key.as_ref().map(String::as_bytes);
    let span = Span::begin(SpanKind::Producer, || format!("send {topic}").into(), || None);
    span.set(|| {
        let key = message.key.as_deref().map(|key| span::text("messaging.kafka.message.key", key));
        span::messaging("send", topic).into_iter().chain(key).collect()
    });
    let sent = producer.send(topic, key, Some(&message.value), &span.headers()).await;
    sent.map(drop).inspect_err(|fault| span.fail("broker", &fault.to_string()))
}
