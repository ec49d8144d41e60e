//! How far a consumer is behind, asked of the brokers: librdkafka's own figure stands still while a partition is paused,
//! which is when the lag grows and more workers are wanted.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaResult;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use super::callbacks::Callbacks;
use super::security::Refusal;
use super::source::{Partition, Shared};

const INTERVAL: Duration = Duration::from_secs(5);
/// A stop waits for a question that is under way.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// Measures at each signal and every [`INTERVAL`], until the other end of `signals` is gone.
fn run(consumer: &BaseConsumer<Callbacks>, shared: &Shared, signals: &Receiver<()>) {
    loop {
        match signals.recv_timeout(INTERVAL) {
            Ok(()) | Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        match measure(consumer, shared) {
            Ok(true) => shared.status.recovered(),
            Ok(false) => {}
            Err(error) => tracing::debug!(%error, "the lag is not known"),
        }
    }
}

/// Returns whether brokers answered.
fn measure(consumer: &BaseConsumer<Callbacks>, shared: &Shared) -> KafkaResult<bool> {
    let owned = shared.owned().iter().map(|(partition, it)| (partition.clone(), it.clone())).collect::<Vec<_>>();
    if owned.is_empty() {
        // A member without partitions asks nothing, and would not notice that brokers that were away are back.
        let is_away = !shared.status.snapshot().connected;
        return if is_away { consumer.fetch_metadata(None, ANSWER_TIMEOUT).map(|_| true) } else { Ok(false) };
    }
    let ends = offsets_at(consumer, owned.iter().map(|(partition, _)| partition), Offset::End)?;
    // A topic that may no longer be read answers for each partition alone.
    let refused = ends
        .elements()
        .iter()
        .filter_map(|element| element.error().err())
        .find(|error| error.rdkafka_error_code().and_then(|code| Refusal::of(code, "")).is_some());
    if let Some(error) = refused {
        return Err(error);
    }

    let is_unknown =
        |ownership: &super::envelope::Progress| ownership.watermark().is_none() && ownership.began_at.is_none();
    let unknown = owned.iter().filter(|(_, ownership)| is_unknown(&ownership.lock())).collect::<Vec<_>>();
    if !unknown.is_empty() {
        let partitions = list(unknown.iter().map(|(partition, _)| partition), Offset::Invalid)?;
        let committed = consumer.committed_offsets(partitions, ANSWER_TIMEOUT)?;
        let begins = offsets_at(consumer, unknown.iter().map(|(partition, _)| partition), Offset::Beginning)?;
        for (partition, ownership) in unknown {
            ownership.lock().began_at = offset_of(&committed, partition).or(offset_of(&begins, partition));
        }
    }

    for (partition, ownership) in &owned {
        let next = {
            let progress = ownership.lock();
            progress.watermark().or(progress.began_at)
        };
        if let (Some(end), Some(next)) = (offset_of(&ends, partition), next) {
            shared.tell_lag(partition, (end - next).max(0));
        }
    }
    Ok(true)
}

pub(super) fn offsets_at<'a>(
    consumer: &BaseConsumer<Callbacks>,
    partitions: impl Iterator<Item = &'a Partition>,
    at: Offset,
) -> KafkaResult<TopicPartitionList> {
    consumer.offsets_for_times(list(partitions, at)?, ANSWER_TIMEOUT)
}

fn list<'a>(partitions: impl Iterator<Item = &'a Partition>, offset: Offset) -> KafkaResult<TopicPartitionList> {
    let mut list = TopicPartitionList::new();
    for (topic, partition) in partitions {
        list.add_partition_offset(topic, *partition, offset)?;
    }
    Ok(list)
}

pub(super) fn offset_of(list: &TopicPartitionList, (topic, partition): &Partition) -> Option<i64> {
    let element = list.find_partition(topic, *partition)?;
    match (element.error(), element.offset()) {
        (Ok(()), Offset::Offset(offset)) => Some(offset),
        _ => None,
    }
}

/// Starts the thread; it ends when the returned sender is dropped.
pub(super) fn spawn(
    consumer: Arc<BaseConsumer<Callbacks>>,
    shared: Arc<Shared>,
) -> std::io::Result<(std::sync::mpsc::SyncSender<()>, std::thread::JoinHandle<()>)> {
    let (sender, signals) = std::sync::mpsc::sync_channel(1);
    let handle =
        std::thread::Builder::new().name("kafka-lag".to_owned()).spawn(move || run(&consumer, &shared, &signals))?;
    Ok((sender, handle))
}
