//! Dead letters are sent back to where they came from, as they came, with their place among the writes of their post.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::ControlFlow;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use rdkafka::admin::AdminClient;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::super::KafkaConfig;
use super::super::callbacks::ProducerCallbacks;
use super::super::client::fault_of_creation;
use super::super::create::cleanup_policy;
use super::super::origin::Origin;
use super::super::producer::{Producer, fault_of_send};
use super::super::scan::Scan;
use super::selection::{Selection, Skip};
use super::{Letter, Letters};
use crate::error::Fault;

/// Letters on their way to the broker at a time, by count and by bytes; a larger one goes alone.
const IN_FLIGHT: usize = 256;
/// As above.
const IN_FLIGHT_BYTES: usize = 32 * 1024 * 1024;

/// What became of the dead letters.
#[derive(Debug, Default)]
pub struct Report {
    /// Whether the dead-letter topic exists.
    pub exists: bool,
    /// Whether all letters were looked at.
    pub is_whole: bool,
    /// Letters looked at.
    pub read: u64,
    /// Letters to be sent.
    pub chosen: u64,
    /// Letters whose sending the brokers acknowledged.
    pub sent: u64,
    /// Letters that are larger than their topic takes.
    pub too_large: u64,
    /// Letters that are not to be sent.
    pub left_out: BTreeMap<Skip, u64>,
    /// Why the replay ended early.
    pub failed: Option<Fault>,
}

/// Sends the letters that `selection` chooses back to the posts topics, each to the partition it came from; with
/// `is_dry_run` it only chooses. `begin` gets the number of offsets to read, `tick` is called for each letter.
///
/// A message carries key, value and headers as they came, and its [`Origin`]: ingest orders it by that. Sent again and
/// again it changes nothing. `shutdown` ends the reading; what is under way is waited for.
///
/// # Errors
/// [`Fault::Fatal`]: no letter could be read, or the topic is compacted. What fails later is in the report.
pub async fn run(
    config: &KafkaConfig,
    selection: Selection,
    is_dry_run: bool,
    shutdown: &CancellationToken,
    begin: impl FnOnce(u64) + Send + 'static,
    tick: impl Fn() + Send + 'static,
) -> Result<Report, Fault> {
    let (to_send, mut letters) = mpsc::channel(1);
    let stop = shutdown.child_token();
    let reader =
        Reader { config: config.clone(), selection, to_send: (!is_dry_run).then_some(to_send), stop: stop.clone() };
    let reading = tokio::task::spawn_blocking(move || reader.run(begin, tick));

    let producer = super::producer(config)?;
    let mut sending = FuturesUnordered::new();
    let (mut open, mut bytes_in_flight, mut sent, mut too_large, mut failed) = (true, 0, 0, 0, None);
    let mut checked = BTreeSet::new();
    while open || !sending.is_empty() {
        let has_room = sending.is_empty() || (sending.len() < IN_FLIGHT && bytes_in_flight < IN_FLIGHT_BYTES);
        tokio::select! {
            Some((letter, bytes, result)) = sending.next(), if !sending.is_empty() => {
                bytes_in_flight -= bytes;
                match result {
                    Ok(()) => sent += 1,
                    Err(Fault::Reject { detail, .. }) => {
                        too_large += 1;
                        tracing::error!("the dead letter {letter} was not sent: {detail}");
                    }
                    Err(fault) => {
                        failed.get_or_insert(fault);
                        stop.cancel();
                    }
                }
            }
            () = stop.cancelled(), if open => {
                open = false;
                // The reader may wait for room.
                letters.close();
            }
            letter = letters.recv(), if open && has_room => match letter {
                Some((letter, source)) => {
                    if checked.insert(source.topic.clone()) {
                        check_cleanup_policy(config, &source.topic).await?;
                    }
                    let bytes = letter.bytes();
                    bytes_in_flight += bytes;
                    let sending_it = send(&producer, letter, source);
                    sending.push(async move {
                        let (letter, result) = sending_it.await;
                        (letter, bytes, result)
                    });
                }
                None => open = false,
            },
        }
    }
    drop(letters);
    let read = reading.await.map_err(|error| Fault::fatal(format!("reading the dead letters failed: {error}")))?;
    let mut report = Report { sent, too_large, ..read? };
    report.failed = failed.or(report.failed);
    Ok(report)
}

async fn send(producer: &Producer, letter: Letter, source: Origin) -> (super::super::Position, Result<(), Fault>) {
    let Letter { position, key, payload, mut headers, .. } = letter;
    headers.push(source.to_header());
    let (topic, partition) = (&source.topic, Some(source.partition));
    let delivery = producer.deliver(topic, partition, key.as_deref(), payload.as_deref(), &headers).await;
    let bytes = payload.as_ref().map_or(0, bytes::Bytes::len);
    (position, delivery.map(drop).map_err(|error| fault_of_send(topic, bytes, &error)))
}

/// Chooses letters on a thread of its own.
struct Reader {
    config: KafkaConfig,
    selection: Selection,
    /// `None`: a dry run.
    to_send: Option<mpsc::Sender<(Letter, Origin)>>,
    stop: CancellationToken,
}

impl Reader {
    fn run(mut self, begin: impl FnOnce(u64), tick: impl Fn()) -> Result<Report, Fault> {
        let mut report = Report::default();
        let Some(letters) = Letters::open(&self.config)? else {
            report.is_whole = true;
            return Ok(report);
        };
        report.exists = true;
        // Asked after the letters' ends: every letter to be read came from before these.
        let mut sources = HashMap::new();
        for topic in self.config.posts_topics() {
            let source = Scan::open(&self.config, &topic)?.ok_or_else(|| {
                Fault::fatal(format!(
                    "topic {topic} does not exist, so no dead letter can be sent back; create it or set kafka.posts_topic"
                ))
            })?;
            sources.insert(topic, source);
        }
        begin(letters.offsets());
        let end_of = |topic: &str, partition| sources.get(topic).and_then(|source| source.end_of(partition));
        let read = letters.read(&self.stop, |letter| {
            tick();
            report.read += 1;
            let origin = match self.selection.choose(&letter, end_of) {
                Ok(origin) => origin.clone(),
                Err(skip) => {
                    *report.left_out.entry(skip).or_default() += 1;
                    return ControlFlow::Continue(());
                }
            };
            report.chosen += 1;
            match &self.to_send {
                Some(to_send) if to_send.blocking_send((letter, origin)).is_err() => ControlFlow::Break(()),
                _ => ControlFlow::Continue(()),
            }
        });
        match read {
            Ok(is_whole) => report.is_whole = is_whole,
            Err(fault) => report.failed = Some(fault),
        }
        Ok(report)
    }
}

/// Brokers that do not tell whether the topic is compacted are taken at their word that it is not: not every client may
/// ask.
async fn check_cleanup_policy(config: &KafkaConfig, topic: &str) -> Result<(), Fault> {
    let callbacks = ProducerCallbacks::new(config);
    let client: AdminClient<_> =
        config.client_config().create_with_context(callbacks.clone()).map_err(|error| fault_of_creation(&error))?;
    if config.uses_oauth()
        && let Err(reason) = tokio::task::block_in_place(|| callbacks.authenticate(client.inner()))
    {
        return Err(Fault::fatal(format!(
            "the Kafka brokers are not asked whether topic {topic} is compacted: {reason}"
        )));
    }
    let policy = match cleanup_policy(&client, topic).await {
        Ok(policy) => policy,
        Err(error) => {
            tracing::warn!(%error, "the brokers do not tell whether topic {topic} is compacted; it must not be");
            return Ok(());
        }
    };
    if !policy.contains("compact") {
        return Ok(());
    }
    Err(Fault::fatal(format!(
        "topic {topic} is compacted (cleanup.policy = {policy}): an old message that is sent again would be the last of its \
         key there, and compaction would remove newer ones; let the producer send these posts again (--dry-run counts them)"
    )))
}
