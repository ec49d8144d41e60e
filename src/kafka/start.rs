//! Where a partition starts in which the group has no commit (`kafka.start`).

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, bail};
use chrono::{DateTime, Utc};
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::KafkaResult;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use super::KafkaConfig;

/// Each question to the brokers; the poll thread waits for it.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// `kafka.start`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Start {
    Earliest,
    Latest,
    /// The first message with this timestamp or a later one.
    Time(DateTime<Utc>),
    /// Other partitions start at the earliest.
    Offsets(BTreeMap<(String, i32), i64>),
}

impl KafkaConfig {
    /// # Errors
    /// Names the key and what may be written there.
    pub(super) fn parse_start(&self) -> anyhow::Result<Start> {
        let text = self.start.trim();
        let parsed = match text {
            "earliest" => Some(Start::Earliest),
            "latest" => Some(Start::Latest),
            text if text.contains('@') => text.split(',').map(parse_offset).collect::<Option<_>>().map(Start::Offsets),
            text => DateTime::parse_from_rfc3339(text).ok().map(|time| Start::Time(time.to_utc())),
        };
        let start = parsed.with_context(|| {
            format!(
                "kafka.start is {text:?}; use \"earliest\", \"latest\", a time such as \"2026-11-20T08:30:00Z\", or offsets \
                 such as \"posts[0]@1200, posts[1]@1340\""
            )
        })?;
        if let Start::Offsets(offsets) = &start
            && let Some((topic, _)) = offsets.keys().find(|(topic, _)| !self.posts_topics().contains(topic))
        {
            bail!(
                "kafka.start names topic {topic:?}, which is neither kafka.posts_topic nor in kafka.further_posts_topics"
            );
        }
        Ok(start)
    }
}

/// "posts[0]@1200", as positions are logged.
fn parse_offset(text: &str) -> Option<((String, i32), i64)> {
    let (partition, offset) = text.trim().split_once('@')?;
    let (topic, number) = partition.strip_suffix(']')?.rsplit_once('[')?;
    let (number, offset) = (number.parse::<u32>().ok()?, offset.parse::<u64>().ok()?);
    Some(((topic.to_owned(), i32::try_from(number).ok()?), i64::try_from(offset).ok()?))
}

impl Start {
    /// Sets where to begin on the partitions without a commit, and gives those offsets. The others are left to librdkafka,
    /// which goes on at their commits.
    ///
    /// # Errors
    /// The brokers did not answer, or not for each partition.
    pub(super) fn place<C: ConsumerContext>(
        &self,
        consumer: &BaseConsumer<C>,
        assigned: &mut TopicPartitionList,
    ) -> KafkaResult<BTreeMap<(String, i32), i64>> {
        let committed = consumer.committed_offsets(assigned.clone(), ANSWER_TIMEOUT)?;
        let mut fresh = Vec::new();
        for element in committed.elements() {
            element.error()?;
            if !matches!(element.offset(), Offset::Offset(_)) {
                fresh.push((element.topic().to_owned(), element.partition()));
            }
        }
        let with_commit = committed.count() - fresh.len();
        if with_commit > 0 {
            tracing::info!(
                partitions = with_commit,
                "the group has commits and goes on there; kafka.start is not asked"
            );
        }
        let begins = self.offsets_of(consumer, &fresh)?;
        for ((topic, partition), offset) in &begins {
            tracing::info!(topic, partition, offset, start = ?self, "a partition without a commit starts");
            assigned.set_partition_offset(topic, *partition, Offset::Offset(*offset))?;
        }
        Ok(begins)
    }

    fn offsets_of<C: ConsumerContext>(
        &self,
        consumer: &BaseConsumer<C>,
        partitions: &[(String, i32)],
    ) -> KafkaResult<BTreeMap<(String, i32), i64>> {
        if partitions.is_empty() {
            return Ok(BTreeMap::new());
        }
        match self {
            Self::Earliest => Ok(BTreeMap::new()),
            Self::Offsets(offsets) => {
                let named = partitions.iter().filter_map(|it| offsets.get_key_value(it));
                Ok(named.map(|(partition, offset)| (partition.clone(), *offset)).collect())
            }
            Self::Latest => ask(consumer, partitions, Offset::End),
            Self::Time(time) => {
                // Where no message is of that time or later, the end: asked first, so that one that comes in between is read.
                let ends = ask(consumer, partitions, Offset::End)?;
                let found = ask(consumer, partitions, Offset::Offset(time.timestamp_millis()))?;
                Ok(ends.into_iter().map(|(it, end)| (it.clone(), found.get(&it).copied().unwrap_or(end))).collect())
            }
        }
    }
}

/// The offsets at a time in milliseconds since 1970, or at the end; without the partitions that have no message from then on.
fn ask<C: ConsumerContext>(
    consumer: &BaseConsumer<C>,
    partitions: &[(String, i32)],
    at: Offset,
) -> KafkaResult<BTreeMap<(String, i32), i64>> {
    let mut list = TopicPartitionList::new();
    for (topic, partition) in partitions {
        list.add_partition_offset(topic, *partition, at)?;
    }
    let answer = consumer.offsets_for_times(list, ANSWER_TIMEOUT)?;
    let mut offsets = BTreeMap::new();
    for element in answer.elements() {
        element.error()?;
        if let Offset::Offset(offset) = element.offset() {
            offsets.insert((element.topic().to_owned(), element.partition()), offset);
        }
    }
    Ok(offsets)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, Overrides};

    fn parse(start: &str) -> anyhow::Result<Start> {
        let mut kafka = Config::load(&[], &Overrides::default()).expect("the defaults are right").kafka;
        kafka.further_posts_topics = vec!["more[x]".to_owned()];
        kafka.start = start.to_owned();
        kafka.parse_start()
    }

    #[test]
    fn every_form_is_read() {
        assert_eq!(parse("earliest").expect("known"), Start::Earliest);
        assert_eq!(parse(" latest ").expect("known"), Start::Latest);
        let time = DateTime::from_timestamp(1_000, 0).expect("a time");
        for text in ["1970-01-01T00:16:40Z", "1970-01-01T08:16:40+08:00"] {
            assert_eq!(parse(text).expect(text), Start::Time(time));
        }
        let offsets = [(("posts".to_owned(), 0), 1_200), (("more[x]".to_owned(), 12), 0)];
        assert_eq!(parse("posts[0]@1200,more[x][12]@0").expect("offsets"), Start::Offsets(offsets.into()));
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        for text in [
            "",
            "newest",
            "2026-11-20",
            "2026-11-20T08:30:00",
            "posts@3",
            "posts[0]@",
            "posts[-1]@3",
            "posts[0]@-3",
            "[0]@1,",
            "posts[0]@99999999999999999999",
            "posts[0] @1",
        ] {
            let error = parse(text).expect_err(text).to_string();
            assert!(error.contains("kafka.start") && error.contains("posts[0]@1200"), "{error}");
        }
        let error = parse("others[0]@1").expect_err("no topic of ours").to_string();
        assert!(error.contains("\"others\"") && error.contains("further_posts_topics"), "{error}");
    }
}
