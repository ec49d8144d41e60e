//! Partitions that leave a worker while a post of them waits for what may take hours.

use axum::Router;
use axum::routing::get;
use rdkafka::producer::{FutureProducer, FutureRecord};
use serde_json::json;
use std::net::SocketAddr;
use tokio::net::TcpListener;

use crate::kafka_support::{PATIENCE, wait_until};
use crate::pipeline::picture;
use crate::ports::free_port;
use crate::real_kafka::{create_topic, real_broker};
use crate::running::Running;

const PARTITIONS: i32 = 2;

/// A revocation does not wait as long as a stop does, and what waits goes with its partition.
#[tokio::test(flavor = "multi_thread")]
async fn a_post_that_waits_when_its_partition_departs_is_left_to_the_next_owner() {
    let Some(kafka) = real_broker("departs") else { return };
    create_topic(&kafka, &kafka.posts_topic, PARTITIONS, &[]).await;
    create_topic(&kafka, &kafka.dead_letter_topic, 1, &[]).await;
    let producer = kafka.client_config().create::<FutureProducer>().expect("a producer");
    let send = async |name: &str, picture: Option<String>| {
        for partition in 0..PARTITIONS {
            let id = format!("{name}{partition}");
            let image = picture.as_ref().map(|url| json!({"url": url}));
            let post = json!({"post_id": id, "caption": "c", "image": image}).to_string();
            let record = FutureRecord::to(&kafka.posts_topic).partition(partition).key(&id).payload(&post);
            producer.send(record, PATIENCE).await.expect("acknowledged");
        }
    };
    let worker = || {
        let settings = [
            format!("kafka.posts_topic={}", kafka.posts_topic),
            format!("kafka.dead_letter_topic={}", kafka.dead_letter_topic),
            format!("kafka.group={}", kafka.posts_topic),
            // Longer than this test waits for anything.
            "ingest.drain_timeout=200s".to_owned(),
            "ingest.revoke_timeout=100ms".to_owned(),
            "kafka.properties.session.timeout.ms=206000".to_owned(),
            "kafka.properties.heartbeat.interval.ms=300".to_owned(),
            "images.retry_max=200ms".to_owned(),
        ];
        Running::ingest(&kafka.brokers, &settings.each_ref().map(String::as_str))
    };
    let in_flight = |worker: &Running| worker.metric("feedlens_inflight_posts");

    let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let first = worker();
    send("waits", Some(format!("http://{address}/a.png"))).await;
    // Also the warm-up message of the topic, which is no post.
    wait_until("a post of each partition to wait", async || in_flight(&first) == 2.0 && first.settled() == 1).await;
    let second = worker();
    wait_until("one at each worker", async || in_flight(&first) == 1.0 && in_flight(&second) == 1.0).await;
    send("next", None).await;
    wait_until("both partitions to go on", async || first.settled() == 2 && second.settled() == 1).await;

    let listener = TcpListener::bind(address).await.expect("the port is still free");
    let host = Router::new().route("/a.png", get(async || picture()));
    let serving = tokio::spawn(async move { axum::serve(listener, host).await });
    for (worker, settled) in [(first, 3), (second, 2)] {
        wait_until("the post that waited", async || worker.settled() == settled && in_flight(&worker) == 0.0).await;
        worker.terminate();
        let (code, log) = worker.end();
        assert_eq!(code, Some(0), "{log}");
    }
    serving.abort();
}
