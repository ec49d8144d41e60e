//! SIGTERM, and what the admin endpoints say, through the real binary.

use std::net::TcpListener;

use feedlens::kafka::{EmbeddedBroker, Producer};
use serde_json::json;

use crate::kafka_support::{self, wait_until};
use crate::running::Running;

async fn send(brokers: &str, posts: &[serde_json::Value]) -> Producer {
    let producer = Producer::new(&kafka_support::config(brokers)).expect("a producer");
    for post in posts {
        let key = post["post_id"].as_str().expect("an id").as_bytes().to_vec();
        producer.send("posts", Some(&key), Some(post.to_string().as_bytes()), &[]).await.expect("acknowledged");
    }
    producer
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_drains_commits_and_ends_with_exit_code_0() {
    let broker = EmbeddedBroker::start(&[("posts", 1), ("posts.dlq", 1)]).expect("a broker");
    let running = Running::ingest(&broker.bootstrap(), &[]);
    let posts = (0..100).map(|index| json!({"post_id": format!("p{index}"), "caption": "雨后的彩虹"}));
    send(&broker.bootstrap(), &posts.collect::<Vec<_>>()).await;
    wait_until("all posts indexed", async || running.metric("feedlens_posts_indexed_total") >= 100.0).await;

    assert_eq!(running.get("/livez").expect("answers").0, 200);
    assert_eq!(running.get("/readyz").expect("answers").0, 200);
    assert_eq!(running.get("/nothing").expect("answers").0, 404);
    let (_, metrics) = running.get("/metrics").expect("answers");
    for name in [
        "posts_consumed_total",
        "posts_dead_lettered_total",
        "stage_seconds_bucket",
        "end_to_end_seconds_count",
        "batch_size_sum",
        "batch_wait_seconds_sum",
        "encode_seconds_sum",
        "encoder_busy_ratio",
        "inflight_posts",
        "inflight_bytes",
        "queue_depth",
        "paused_partitions",
        "build_info",
        "model_info",
    ] {
        assert!(metrics.contains(&format!("\nfeedlens_{name}")), "{name} is not in the scrape");
    }
    assert_eq!(running.metric("feedlens_inflight_posts"), 0.0);

    running.terminate();
    let (code, log) = running.end();
    assert_eq!(code, Some(0), "{log}");
    assert!(log.contains("ingest stopped"), "{log}");
    let mut kafka = kafka_support::config(&broker.bootstrap());
    kafka.posts_topic = "posts".to_owned();
    assert_eq!(committed_of("feedlens-ingest", &kafka), 100);
}

fn committed_of(group: &str, kafka: &feedlens::kafka::KafkaConfig) -> i64 {
    use rdkafka::consumer::{BaseConsumer, Consumer};
    let consumer: BaseConsumer = kafka.client_config().set("group.id", group).create().expect("a consumer");
    let mut list = rdkafka::TopicPartitionList::new();
    list.add_partition("posts", 0);
    let list = consumer.committed_offsets(list, kafka_support::PATIENCE).expect("committed offsets");
    list.elements()[0].offset().to_raw().expect("an offset")
}

#[tokio::test(flavor = "multi_thread")]
async fn second_sigterm_stops_at_once_and_commits_nothing_unsettled() {
    // A picture's host that accepts and never answers holds the first post back.
    let silent = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}/a.png", silent.local_addr().expect("an address"));
    let broker = EmbeddedBroker::start(&[("posts", 1), ("posts.dlq", 1)]).expect("a broker");
    let running = Running::ingest(&broker.bootstrap(), &[]);
    let stuck = json!({"post_id": "stuck", "image": {"url": url}});
    let rest = json!({"post_id": "rest", "caption": "c"});
    send(&broker.bootstrap(), &[stuck, rest]).await;
    wait_until("the second post indexed", async || running.metric("feedlens_posts_indexed_total") >= 1.0).await;
    running.terminate();
    // A drain can be watched, and the worker gets no more work meanwhile. (And the signals must not merge into one.)
    wait_until("the drain to show", async || {
        running.get("/readyz").is_some_and(|(status, body)| status == 503 && body.contains("draining"))
    })
    .await;
    assert_eq!(running.get("/livez").expect("answers").0, 200);
    wait_until("the one post that is stuck", async || running.metric("feedlens_inflight_posts") == 1.0).await;
    running.terminate();
    let (code, log) = running.end();
    assert_eq!(code, Some(1), "{log}");
    assert!(log.contains("stopping at once"), "{log}");
    let mut kafka = kafka_support::config(&broker.bootstrap());
    kafka.posts_topic = "posts".to_owned();
    assert!(committed_of("feedlens-ingest", &kafka) <= 0, "the stuck post was committed past");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_whose_brokers_are_gone_is_not_ready() {
    let broker = EmbeddedBroker::start(&[("posts", 1), ("posts.dlq", 1), ("search.requests", 1)]).expect("a broker");
    let workers = ["ingest", "query"].map(|command| Running::start(command, &broker.bootstrap(), &[]));
    for running in &workers {
        wait_until("the worker to be ready", async || running.get("/readyz").is_some_and(|(status, _)| status == 200))
            .await;
        wait_until("the metric to say so", async || running.metric("feedlens_ready") == 1.0).await;
    }
    drop(broker);
    for running in workers {
        wait_until("the worker to see it", async || {
            running
                .get("/readyz")
                .is_some_and(|(status, body)| status == 503 && body.contains("kafka: no broker answers"))
        })
        .await;
        assert_eq!(running.get("/livez").expect("answers").0, 200);
        wait_until("the metric to say so", async || running.metric("feedlens_ready") == 0.0).await;
        running.terminate();
        let (_, log) = running.end();
        assert_eq!(log.matches("the worker is no longer ready: kafka: no broker answers").count(), 1, "{log}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sighup_changes_the_level_of_the_log_and_a_bad_file_changes_nothing() {
    let broker = EmbeddedBroker::start(&[("posts", 1), ("posts.dlq", 1)]).expect("a broker");
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("own.toml");
    std::fs::write(&file, "[log]\nlevel = \"error\"\n").expect("written");
    let running = Running::ingest_with(&broker.bootstrap(), &file);
    wait_until("ready", async || running.get("/readyz").is_some_and(|(status, _)| status == 200)).await;
    assert_eq!(running.log(), "", "at this level nothing is told");

    let reloads = |outcome: &str| running.metric(&format!("feedlens_config_reloads_total{{outcome=\"{outcome}\"}}"));
    std::fs::write(&file, "[log]\nlevel = \"info\"\n[ingest]\nwrite_batch = 7\n").expect("written");
    running.signal(libc::SIGHUP);
    wait_until("the new level", async || reloads("ok") == 1.0).await;
    let log = running.log();
    assert!(log.contains("log.level") && log.contains("restart") && log.contains("ingest.write_batch"), "{log}");

    std::fs::write(&file, "[log]\nlevel = \"loud\"\n").expect("written");
    running.signal(libc::SIGHUP);
    wait_until("a look at the bad file", async || reloads("failed") == 1.0).await;
    assert!(running.log().contains("log.level = \\\"loud\\\""), "{}", running.log());

    running.terminate();
    let (code, log) = running.end();
    assert_eq!(code, Some(0), "{log}");
    assert!(log.contains("ingest stopped"), "the level that was set stays: {log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_cannot_be_written_stops_nothing() {
    let broker = EmbeddedBroker::start(&[("posts", 1), ("posts.dlq", 1)]).expect("a broker");
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").expect("the device");
    let running = Running::ingest_logging_to(&broker.bootstrap(), full);
    send(&broker.bootstrap(), &[json!({"post_id": "p", "caption": "雨后的彩虹"})]).await;
    wait_until("the post indexed", async || running.metric("feedlens_posts_indexed_total") >= 1.0).await;
    running.terminate();
    assert_eq!(running.exit_code(), Some(0));
}
