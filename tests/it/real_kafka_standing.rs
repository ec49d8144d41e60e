//! Standing topics on a real Kafka: topics that are made and compacted, partitions that come later.

use std::sync::Arc;
use std::time::Duration;

use feedlens::kafka::Producer;
use feedlens::metrics::Metrics;
use feedlens::query::live::{Live, Next};
use feedlens::query::recent::Cursor;
use feedlens::query::streams::Client;
use feedlens::standing::{Registration, Target};
use rdkafka::admin::{AdminOptions, NewPartitions, ResourceSpecifier};
use tokio_util::sync::CancellationToken;

use crate::binary::root;
use crate::ingest_support::Bench;
use crate::kafka_support::wait_until;
use crate::real_kafka::{admin, create_topic, real_broker};
use crate::running::Running;
use crate::standing::{Matches, pairs};

fn about(id: &str, topic: &str) -> Registration {
    let (topic_id, topic) = (id.to_owned(), topic.to_owned());
    Registration { topic_id, topic, target: Target::Caption, min_score: Some(0.98), created_at: None }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn registrations_matches_and_a_restart_on_a_real_broker() {
    let Some(kafka) = real_broker("standing") else { return };
    let mut bench = Bench::new(&[]).await;
    let (group, properties) = (format!("{}-group", kafka.posts_topic), kafka.properties.clone());
    bench.config.kafka.properties = properties;
    bench.config.kafka.brokers = kafka.brokers.clone();
    bench.config.kafka.group = group;
    bench.config.kafka.standing_topic = format!("{}.standing", kafka.posts_topic);
    bench.config.kafka.matches_topic = format!("{}.matches", kafka.posts_topic);
    bench.producer = Producer::new(&kafka).expect("a producer");
    let send = async |id: &str, caption: &str| {
        let post = serde_json::json!({"post_id": id, "caption": caption}).to_string();
        bench.producer.send(&kafka.posts_topic, Some(id.as_bytes()), Some(post.as_bytes()), &[]).await.expect("sent");
    };
    create_topic(&kafka, &kafka.posts_topic, 2, &[]).await;
    // What shows that a topic can be written is no post.
    create_topic(&kafka, &kafka.dead_letter_topic, 1, &[]).await;
    let mut config = bench.config.clone();
    config.kafka.posts_topic = kafka.posts_topic.clone();
    config.kafka.dead_letter_topic = kafka.dead_letter_topic.clone();
    bench.config = config.clone();

    // The first worker makes the topics: this broker makes none by itself.
    let live = Live::start(&config, Arc::new(Metrics::new()), CancellationToken::new()).await.expect("starts");
    let live = live.expect("serves");
    let topic = ResourceSpecifier::Topic(&config.kafka.standing_topic);
    let described = admin(&kafka).describe_configs([&topic], &AdminOptions::new()).await.expect("an answer");
    let settings = described.into_iter().next().expect("one").expect("is there");
    assert_eq!(settings.get("cleanup.policy").and_then(|entry| entry.value.as_deref()), Some("compact"));

    live.register(about("apples", "红苹果")).await.expect("registered");
    live.register(about("cars", "汽车")).await.expect("registered");
    live.remove("cars").await.expect("removed");
    let worker = bench.work();
    let mut stream = live.stream(None, None, Client::Address([127, 0, 0, 1].into())).await.expect("a place");
    assert_eq!(stream.next().await, Some(Next::Moved), "where it begins");
    send("p1", "红苹果").await;
    send("p2", "汽车").await;
    let mut matches = Matches::read(&config.kafka).await;
    assert_eq!(matches.pairs(1).await, pairs([("apples", "p1")]));
    let seen = stream.next().await.expect("goes on");
    assert!(matches!(&seen, Next::Match(told) if told.found.post_id == "p1"), "{seen:?}");

    // Keys fall elsewhere when partitions come; both workers read those too.
    let grown = NewPartitions::new(&config.kafka.standing_topic, 12);
    let grown = admin(&kafka).create_partitions([&grown], &AdminOptions::new()).await.expect("an answer");
    assert!(grown.iter().all(Result::is_ok), "{grown:?}");
    let mut config_of_writer = config.kafka.clone();
    config_of_writer.properties.insert("topic.metadata.refresh.interval.ms".to_owned(), "500".to_owned());
    let writer = Producer::new(&config_of_writer).expect("a producer");
    for number in 0..24 {
        let registration = about(&format!("t{number}"), "房子");
        let (key, value) = (registration.topic_id.as_bytes(), registration.to_json());
        writer.send(&config.kafka.standing_topic, Some(key), Some(&value), &[]).await.expect("sent");
    }
    wait_until("all partitions to be read", async || live.topics().await.is_ok_and(|topics| topics.len() == 25)).await;
    wait_until("the worker to have them", async || worker.metrics.standing_topics.get() == 25).await;
    send("p3", "房子").await;
    assert!(matches.pairs(24).await.iter().all(|(topic, post)| topic != "apples" && post == "p3"));
    worker.stop().await;

    let worker = bench.work();
    send("p4", "红苹果").await;
    let mut found = matches.next().await;
    while found.post_id == "p3" {
        // Told twice: a partition that is new to the brokers may acknowledge a message without saying where it is.
        found = matches.next().await;
    }
    assert_eq!((&*found.topic_id, &*found.post_id), ("apples", "p4"));
    assert_eq!(worker.metrics.standing_topics.get(), 25, "all of them were read before the first post");
    worker.stop().await;

    // A query worker that starts only now gives all of them to who was there before the first.
    let later = Live::start(&config, Arc::default(), CancellationToken::new()).await.expect("starts").expect("serves");
    let client = Client::Address([127, 0, 0, 1].into());
    let mut stream = later.stream(Some("apples".to_owned()), Some(Cursor::default()), client).await.expect("a place");
    assert_eq!(stream.next().await, Some(Next::Moved), "and no gap");
    for post in ["p1", "p4"] {
        let seen = stream.next().await.expect("goes on");
        assert!(matches!(&seen, Next::Match(told) if told.found.post_id == post), "{seen:?}");
    }
    tokio::time::timeout(Duration::from_secs(60), bench.store.close()).await.expect("closes").expect("closes");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_of_registrations_that_retention_empties_is_told_at_the_start() {
    let Some(kafka) = real_broker("retention") else { return };
    let [deleted, compacted] = ["deleted", "compacted"].map(|name| format!("{}.{name}", kafka.posts_topic));
    create_topic(&kafka, &kafka.posts_topic, 1, &[]).await;
    create_topic(&kafka, &deleted, 1, &[("cleanup.policy", "delete")]).await;
    create_topic(&kafka, &compacted, 1, &[("cleanup.policy", "compact")]).await;
    let model = format!("model.dir={}", root().join("models/small").display());
    let start = |standing: &str| {
        let (posts, matches) = (&kafka.posts_topic, format!("kafka.matches_topic={}.matches", kafka.posts_topic));
        let topics = [format!("kafka.posts_topic={posts}"), format!("kafka.standing_topic={standing}"), matches];
        let group = format!("kafka.group={standing}");
        Running::ingest(&kafka.brokers, &[&model, &group, &topics[0], &topics[1], &topics[2], "log.level=debug"])
    };
    let worker = start(&deleted);
    let command = format!("--entity-name {deleted} --add-config cleanup.policy=compact");
    wait_until("the warning", async || worker.log().contains(&command)).await;
    let log = worker.log();
    let line = log.lines().find(|line| line.contains(&command)).expect("a line");
    assert!(line.contains("\"WARN\"") && line.contains("cleanup.policy=delete:"), "{line}");
    drop(worker);
    // The other way round, told apart from a broker that was not asked.
    let worker = start(&compacted);
    wait_until("the answer", async || worker.log().contains("the topic is compacted")).await;
    assert!(!worker.log().contains("--add-config"), "{}", worker.log());
}
