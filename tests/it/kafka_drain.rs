//! The end of a drain, the lag and the start of a consumer in odd moments, on librdkafka's mock cluster.

use std::time::Duration;

use feedlens::kafka::{EmbeddedBroker, Envelope, InflightLimits, KafkaConfig, Producer};
use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};

use crate::kafka_support::{PATIENCE, ROOMY, committed, config, receive, receive_many, start, wait_until};

const POSTS: &str = "posts";

fn broker() -> (EmbeddedBroker, KafkaConfig) {
    let broker = EmbeddedBroker::start(&[(POSTS, 1)]).expect("the broker starts");
    let config = config(&broker.bootstrap());
    (broker, config)
}

async fn produce(config: &KafkaConfig, count: usize, bytes: usize) {
    let producer = Producer::new(config).expect("a producer");
    let payload = vec![b'x'; bytes];
    for _ in 0..count {
        producer.send(POSTS, None, Some(&payload), &[]).await.expect("acknowledged");
    }
}

/// A group that has gone on without us takes no commit any more: to try on would only hold its members up.
#[tokio::test]
async fn a_drain_whose_commit_the_group_refuses_ends_with_the_first_refusal() {
    let (broker, mut config) = broker();
    // No commit before the one of the drain.
    config.commit_interval = Duration::from_secs(3_600);
    produce(&config, 3, 10).await;
    let (source, mut envelopes, metrics) = start(&config, ROOMY).await;
    receive_many(&mut envelopes, 3).await.into_iter().for_each(Envelope::settle);
    let refused = RDKafkaRespErr::RD_KAFKA_RESP_ERR_FENCED_MEMBER_EPOCH;
    broker.cluster().request_errors(RDKafkaApiKey::OffsetCommit, &[refused]);
    let report = source.stop(PATIENCE).await.expect("stops");
    assert!(!report.committed, "the second attempt was accepted, which is none of this member's business any more");
    assert_eq!(metrics.commits_failed.get(), 1);
    assert!(committed(&config, 1).await.is_empty());
}

#[tokio::test]
async fn the_lag_goes_on_growing_while_paused() {
    let (_broker, config) = broker();
    produce(&config, 5, 10).await;
    let limits = InflightLimits { posts: 1, bytes: 1 << 20 };
    let (source, mut envelopes, metrics) = start(&config, limits).await;
    let held = receive(&mut envelopes).await;
    wait_until("the pause", async || metrics.paused_partitions.get() == 1).await;
    let lag = || metrics.consumer_lag.with_label_values(&[POSTS, "0"]).get();
    wait_until("the lag", async || lag() == 5).await;
    produce(&config, 7, 10).await;
    wait_until("the lag of what came meanwhile", async || lag() == 12).await;
    assert_eq!(metrics.paused_partitions.get(), 1);
    held.settle();
    source.stop(Duration::ZERO).await.expect("stops");
}

#[tokio::test]
async fn a_group_that_started_at_the_end_reads_what_the_retention_left() {
    let (_broker, mut config) = broker();
    config.start = "latest".to_owned();
    produce(&config, 1, 10).await;
    let (source, envelopes, _) = start(&config, ROOMY).await;
    wait_until("the start to be committed", async || committed(&config, 1).await.get(&0) == Some(&1)).await;
    source.stop(Duration::ZERO).await.expect("stops");
    drop(envelopes);
    // More than the 5 MiB that the mock cluster keeps: the next offset to read is gone, most of these are there.
    produce(&config, 8, 1_000_000).await;
    let (source, mut envelopes, metrics) = start(&config, ROOMY).await;
    let next = receive(&mut envelopes).await;
    assert!((2..8).contains(&next.position.offset), "{}", next.position);
    wait_until("the loss to be told", async || metrics.offset_resets.get() == 1).await;
    drop(next);
    source.stop(Duration::ZERO).await.expect("stops");
}
