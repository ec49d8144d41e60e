//! What others are told of posts, where their topics refuse it: by its size, or one topic and not the other.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};

use feedlens::error::{Fault, Outage, Reason};
use feedlens::kafka::{Begin, EmbeddedBroker, Producer, follow};
use feedlens::post::point_id;
use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};
use serde_json::{Value, json};

use crate::binary::root;
use crate::ingest_support::{Bench, Gate, PARTITIONS};
use crate::kafka_support::{committed, config, wait_until};
use crate::labels::{apples, next_routed};
use crate::running::Running;
use crate::standing::{Matches, refuse_matches};

/// The client measures against this as a broker does against the topic's limit.
const SMALL: &str = "kafka.properties.message.max.bytes=3000";

#[tokio::test(flavor = "multi_thread")]
async fn what_is_too_large_for_its_topic_is_told_without_caption_and_author() {
    let mut bench = Bench::new(&[SMALL, &apples("route")]).await;
    bench.producer = Producer::new(&config(&bench.broker.bootstrap())).expect("a producer");
    bench.register("all", Some(json!({"topic": "红苹果", "target": "caption", "min_score": -1}))).await;
    let worker = bench.work();
    for (id, caption) in [("large", "红苹果".repeat(400)), ("small", "红苹果".to_owned())] {
        let post = json!({"post_id": id, "caption": caption, "author": "u42", "version": 7}).to_string();
        bench.send(id, Some(post.as_bytes())).await;
    }
    worker.wait_for(2).await;
    let mut matches = Matches::read(&bench.config.kafka).await;
    let mut found = [matches.next().await, matches.next().await];
    found.sort_by(|left, right| left.post_id.cmp(&right.post_id));
    let [large, small] = found;
    assert_eq!((&*large.post_id, &*large.topic_id, &*large.topic, large.version), ("large", "all", "红苹果", 7));
    assert_eq!((large.shortened, &large.caption, &large.author), (true, &None, &None));
    assert_eq!((small.shortened, small.author.as_deref()), (false, Some("u42")));

    let kafka = &bench.config.kafka;
    let mut told = follow(kafka, &kafka.moderation_topic, Begin::Earliest, 1 << 20).await.expect("reads");
    for _ in 0..2 {
        let routed = next_routed(&mut told).await;
        assert_eq!((&routed["version"], &routed["labels"][0]["label"]), (&json!(7), &json!("safety/apple")));
        match routed["post_id"].as_str() {
            Some("large") => assert_eq!((&routed["shortened"], &routed["caption"]), (&json!(true), &Value::Null)),
            _ => assert_eq!((routed.get("shortened"), &routed["caption"]), (None, &json!("红苹果"))),
        }
    }
    let metrics = &worker.metrics;
    for kind in ["match", "moderation"] {
        assert_eq!(metrics.announcements_shortened.with_label_values(&[kind]).get(), 1, "{kind}");
        assert_eq!(metrics.announcements_given_up.with_label_values(&[kind, "too_large"]).get(), 0, "{kind}");
    }
    assert_eq!((metrics.standing_matches.get(), metrics.posts_retried.with_label_values(&["broker"]).get()), (2, 0));
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_too_large_even_in_short_is_given_up_loudly_and_its_post_goes_on() {
    let broker = EmbeddedBroker::start(&[("posts", 1), ("posts.dlq", 1)]).expect("a broker");
    let producer = Producer::new(&config(&broker.bootstrap())).expect("a producer");
    let send = async |topic: &str, key: &str, value: Value| {
        producer.send(topic, Some(key.as_bytes()), Some(value.to_string().as_bytes()), &[]).await.expect("sent");
    };
    // A match repeats its topic also in short.
    let topic = json!({"topic": "苹".repeat(1_000), "target": "caption", "min_score": -1});
    send("topics.standing", "long", topic).await;
    send("topics.standing", "brief", json!({"topic": "苹", "target": "caption", "min_score": -1})).await;
    let model = format!("model.dir={}", root().join("models/small").display());
    let worker = Running::ingest(&broker.bootstrap(), &[SMALL, &model]);
    send("posts", "p1", json!({"post_id": "p1", "caption": "海边的日落"})).await;
    send("posts", "p2", json!({"post_id": "p2", "caption": "海边的日落"})).await;
    wait_until("both posts to be settled", async || worker.settled() == 2).await;
    assert_eq!(worker.metric("feedlens_announcements_given_up_total{kind=\"match\",reason=\"too_large\"}"), 2.0);
    assert_eq!(worker.metric("feedlens_standing_matches_total"), 2.0, "those of the other topic");
    assert_eq!(worker.metric("feedlens_posts_retried_total{reason=\"broker\"}"), 0.0);
    wait_until("the worker to be ready", async || worker.get("/readyz").is_some_and(|(status, _)| status == 200)).await;
    worker.terminate();
    let (code, log) = worker.end();
    assert_eq!(code, Some(0), "{log}");
    for post in ["p1", "p2"] {
        let told = log.lines().filter(|line| line.contains("\"ERROR\"") && line.contains(&format!("post {post} ")));
        let told = told.collect::<Vec<_>>();
        let names = ["key long", "topic.matches", "max.message.bytes of the topic", "message.max.bytes"];
        assert!(told.len() == 1 && names.iter().all(|name| told[0].contains(name)), "{post}: {log}");
    }
}

/// A broker measures the batch that a message comes in, and refuses all of it.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_too_large_together_with_others_is_sent_alone() {
    let bench = Bench::new(&[]).await;
    bench.topic("apples", Some("红苹果")).await;
    let too_large = RDKafkaRespErr::RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE;
    bench.post("p1", "红苹果").await;
    bench.broker.cluster().request_errors(RDKafkaApiKey::Produce, &[too_large]);
    let worker = bench.work();
    worker.wait_for(1).await;
    let found = Matches::read(&bench.config.kafka).await.next().await;
    assert_eq!((&*found.post_id, found.caption.as_deref(), found.shortened), ("p1", Some("红苹果"), false));
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_of_one_topic_of_announcements_is_told_apart_from_the_other() {
    // The match is tried once; it does not tell of its outage again.
    let bench = Bench::new(&[&apples("route"), "ingest.retry_first=1h", "ingest.retry_max=1h"]).await;
    bench.topic("cars", Some("汽车")).await;
    refuse_matches(&bench, true);
    let worker = bench.work();
    bench.post("a", "汽车").await;
    wait_until("the match to be refused", async || worker.progress.matches.ready().is_err()).await;
    bench.post("b", "红苹果").await;
    worker.wait_for(1).await;
    worker.progress.moderation.ready().expect("moderation was told");
    let reason = worker.progress.ready(&worker.metrics).expect_err("matches are out of order still").to_string();
    assert!(reason.contains("kafka.matches_topic") && !reason.contains("moderation"), "{reason}");
    worker.running.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_of_both_topics_is_one_line_of_log_for_each_and_so_is_its_end() {
    let broker = EmbeddedBroker::start(&[("posts", 1), ("posts.dlq", 1)]).expect("a broker");
    let producer = Producer::new(&config(&broker.bootstrap())).expect("a producer");
    let send = async |topic: &str, key: &str, value: Value| {
        producer.send(topic, Some(key.as_bytes()), Some(value.to_string().as_bytes()), &[]).await.expect("sent");
    };
    send("topics.standing", "all", json!({"topic": "红苹果", "target": "caption", "min_score": -1})).await;
    let topics = ["topic.matches", "posts.moderation"];
    let answer = |error| topics.map(|topic| broker.cluster().topic_error(topic, error).expect("a topic"));
    let quick = ["ingest.retry_first=1ms", "ingest.retry_max=5ms"];
    let model = format!("model.dir={}", root().join("models/small").display());
    let worker = Running::ingest(&broker.bootstrap(), &[&model, &apples("route"), quick[0], quick[1]]);
    answer(RDKafkaRespErr::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED);
    // One, so that none is told while another still meets the outage.
    send("posts", "p1", json!({"post_id": "p1", "caption": "红苹果"})).await;
    wait_until("many attempts", async || worker.metric("feedlens_posts_retried_total{reason=\"broker\"}") >= 8.0).await;
    assert_eq!(worker.settled(), 0);
    answer(RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR);
    wait_until("the post to be settled", async || worker.settled() == 1).await;
    worker.terminate();
    let (code, log) = worker.end();
    assert_eq!(code, Some(0), "{log}");
    for key in ["kafka.matches_topic", "kafka.moderation_topic"] {
        for (level, what) in [("\"WARN\"", "is out of order, trying on"), ("\"INFO\"", "is in order again")] {
            let lines = log.lines().filter(|line| [key, level, what].iter().all(|part| line.contains(part)));
            assert_eq!(lines.count(), 1, "{key} {what}: {log}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fatal_fault_of_the_consumer_waits_neither_for_what_others_are_told_nor_for_the_store() {
    // Longer than the test has patience.
    let slow = [
        "kafka.properties.session.timeout.ms=200000",
        "kafka.properties.heartbeat.interval.ms=100",
        "ingest.drain_timeout=190s",
        "ingest.revoke_timeout=190s",
        "ingest.retry_first=1h",
        "ingest.retry_max=1h",
    ];
    let bench = Bench::new(&[&slow[..], &["ingest.write_batch=1", "ingest.write_parallel=1"]].concat()).await;
    bench.topic("apples", Some("红苹果")).await;
    refuse_matches(&bench, true);
    let told = point_id("told");
    let store = Gate::before(&bench, move |ids| {
        let fault = Fault::retry(Outage::Store, "it is down");
        let answer = if ids.contains(&told) { Ok(()) } else { Err(fault) };
        async move { answer }
    });
    let worker = bench.work_with(store);
    bench.post("told", "红苹果").await;
    wait_until("a match that waits", async || worker.progress.matches.ready().is_err()).await;
    // One in the store's hands, one in the queue before it, and others that find no place there.
    for id in ["a", "b", "c", "d"] {
        bench.post(id, "汽车").await;
    }
    wait_until("a write that waits", async || worker.progress.store.ready().is_err()).await;
    wait_until("all posts in flight", async || worker.metrics.inflight_posts.get() == 5).await;
    let fenced = RDKafkaRespErr::RD_KAFKA_RESP_ERR_FENCED_INSTANCE_ID;
    bench.broker.cluster().request_errors(RDKafkaApiKey::Heartbeat, &[fenced]);
    let error = format!("{:#}", worker.ends().await);
    assert!(error.contains("the Kafka consumer cannot go on") && error.contains("group.instance.id"), "{error}");
    assert_eq!(committed(&bench.config.kafka, PARTITIONS).await, BTreeMap::new(), "all of it comes again");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fatal_fault_of_the_store_does_not_wait_for_what_others_are_told() {
    let bench = Bench::new(&["ingest.write_batch=2", "ingest.write_wait=1h"]).await;
    bench.topic("apples", Some("红苹果")).await;
    refuse_matches(&bench, true);
    // The halves of the batch: the first is stored, and its match waits for ever; the other ends the worker.
    let halves = AtomicUsize::new(0);
    let store = Gate::before(&bench, move |ids| {
        let fault = match ids.len() {
            1 if halves.fetch_add(1, Ordering::SeqCst) == 0 => Ok(()),
            1 => Err(Fault::fatal("the key was withdrawn")),
            _ => Err(Fault::reject(Reason::StoreRejected, "one at a time")),
        };
        async move { fault }
    });
    bench.post("a", "红苹果").await;
    bench.post("b", "红苹果").await;
    let worker = bench.work_with(store);
    assert_eq!(format!("{:#}", worker.ends().await), "the key was withdrawn");
    let offsets = committed(&bench.config.kafka, PARTITIONS).await;
    assert_eq!(offsets, BTreeMap::new(), "what was stored and not told comes again");
    assert_eq!(bench.store.count().await.expect("counts"), 1);
}
