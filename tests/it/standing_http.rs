//! `/v1/topics` and `/v1/matches`, over an embedded broker, beside a real ingest worker where matches are wanted.

use std::sync::Arc;
use std::time::Duration;

use feedlens::metrics::Metrics;
use feedlens::query::http::{self, Interface};
use feedlens::query::live::{Live, Next};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::ingest_support::Bench;
use crate::kafka_support::{PATIENCE, wait_until};
use crate::query_support::{Worker, api_keys, client, read};

struct Served {
    bench: Bench,
    live: Arc<Live>,
    metrics: Arc<Metrics>,
    url: String,
    shutdown: CancellationToken,
    serving: JoinHandle<anyhow::Result<()>>,
}

impl Served {
    async fn start(set: &[&str]) -> Self {
        let bench = Bench::new(set).await;
        let service = Worker::over(&bench.config, bench.store.clone()).await.service.clone();
        let (metrics, shutdown) = (Arc::new(Metrics::new()), CancellationToken::new());
        let live = Live::start(&bench.config, metrics.clone(), shutdown.clone()).await.expect("starts");
        let live = live.expect("there is a topic of registrations");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("bound"));
        let interface = Interface { service, live: Some(live.clone()), labels: bench.config.labels.clone() };
        let serving = tokio::spawn(http::run(listener, interface, shutdown.clone()));
        Self { bench, live, metrics, url, shutdown, serving }
    }

    async fn send(&self, method: reqwest::Method, path: &str, body: &Value) -> (u16, Value) {
        let request = client().request(method, format!("{}{path}", self.url)).body(body.to_string());
        read(request.send().await.expect("an answer")).await
    }

    async fn post(&self, body: Value) -> (u16, Value) {
        self.send(reqwest::Method::POST, "/v1/topics", &body).await
    }

    async fn list(&self) -> Vec<Value> {
        let (status, list) = read(client().get(format!("{}/v1/topics", self.url)).send().await.expect("answers")).await;
        assert_eq!(status, 200);
        list["topics"].as_array().expect("a list").clone()
    }

    async fn delete(&self, id: &str) -> u16 {
        let deleted = client().delete(format!("{}/v1/topics/{id}", self.url)).send().await.expect("an answer");
        deleted.status().as_u16()
    }

    async fn events(&self, query: &str) -> Events {
        let client = reqwest::Client::builder().no_proxy().build().expect("a client");
        let response = client.get(format!("{}/v1/matches{query}", self.url)).send().await.expect("an answer");
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        assert_eq!(response.headers()["cache-control"], "no-store");
        Events { response, text: String::new() }
    }
}

struct Events {
    response: reqwest::Response,
    text: String,
}

impl Events {
    /// Name and data of the next event; `None`: the stream has ended.
    async fn next(&mut self) -> Option<(String, Value)> {
        loop {
            if let Some((event, rest)) = self.text.split_once("\n\n") {
                let (event, rest) = (event.to_owned(), rest.to_owned());
                self.text = rest;
                let field = |name: &str| event.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
                // Without a name it is a comment.
                let Some(name) = field("event:") else { continue };
                let data = serde_json::from_str(field("data:").expect("data")).expect("JSON");
                return Some((name.to_owned(), data));
            }
            let chunk = tokio::time::timeout(PATIENCE, self.response.chunk()).await.expect("in time");
            self.text += std::str::from_utf8(&chunk.expect("whole")?).expect("UTF-8");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn topics_are_registered_changed_listed_and_removed() {
    let served = Served::start(&[]).await;
    let (status, made) = served.post(json!({"topic": "海边的日落", "min_score": 0.4})).await;
    assert_eq!(status, 201, "{made}");
    assert_eq!((&made["topic"], &made["target"]), (&json!("海边的日落"), &json!("image")));
    assert!((made["min_score"].as_f64().expect("a number") - 0.4).abs() < 1e-6);
    let id = made["topic_id"].as_str().expect("an id").to_owned();
    // Whoever registered sees it at once.
    assert_eq!(served.list().await, std::slice::from_ref(&made));

    let path = format!("/v1/topics/{id}");
    let (status, changed) =
        served.send(reqwest::Method::PUT, &path, &json!({"topic": "a red apple", "target": "both"})).await;
    assert_eq!((status, &changed["topic_id"], &changed["min_score"]), (200, &json!(id), &Value::Null));
    assert_eq!(changed["created_at"], made["created_at"], "registered first");
    assert_eq!(served.list().await, [changed]);

    let named = json!({"topic": "鸟", "topic_id": "鸟/1"});
    assert_eq!(served.post(named.clone()).await.0, 201);
    assert_eq!(served.list().await.len(), 2);
    assert_eq!((served.delete(&id).await, served.delete("no-such-topic").await), (204, 204));
    assert_eq!(served.delete("%E9%B8%9F%2F1").await, 204);
    assert_eq!(served.list().await, Vec::<Value>::new());

    // Another worker, and one that starts later, come to the same list.
    served.post(named).await;
    let later = Live::start(&served.bench.config, Arc::default(), CancellationToken::new()).await;
    let later = later.expect("starts").expect("serves");
    wait_until("the list of another worker", async || {
        later.topics().iter().map(|topic| topic.topic_id.as_str()).eq(["鸟/1"])
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_registrations_are_refused_with_a_sentence() {
    let served = Served::start(&["ingest.max_standing_topics=1"]).await;
    for (body, mentions) in [
        (json!({}), "topic"),
        (json!({"topic": "  "}), "empty"),
        (json!({"topic": "x".repeat(4097)}), "4097 bytes"),
        (json!({"topic": "x", "min_score": 2}), "min_score"),
        (json!({"topic": "x", "target": "text"}), "`both`"),
        (json!({"topic": "x", "topic_id": ""}), "topic_id"),
        (json!({"topic": "x", "topic_id": "a\nb"}), "topic_id"),
        (json!({"topic": "x", "colour": 1}), "colour"),
        (json!([]), "registration"),
    ] {
        let (status, answer) = served.post(body.clone()).await;
        assert_eq!((status, &answer["error"]["code"]), (400, &json!("bad_request")), "{body}: {answer}");
        assert!(answer["error"]["message"].as_str().expect("a message").contains(mentions), "{body}: {answer}");
    }
    let put =
        async |path: &str| served.send(reqwest::Method::PUT, path, &json!({"topic": "x", "topic_id": "a"})).await.0;
    assert_eq!((put("/v1/topics/b").await, put("/v1/topics/%FF").await), (400, 400));
    assert_eq!(put("/v1/topics/a").await, 200);
    let (status, answer) = served.post(json!({"topic": "y"})).await;
    assert_eq!((status, &answer["error"]["code"]), (422, &json!("unprocessable")));
    assert_eq!(put("/v1/topics/a").await, 200, "a change of one that is there");
}

#[tokio::test(flavor = "multi_thread")]
async fn matches_are_streamed_as_they_come() {
    let served = Served::start(&[]).await;
    let worker = served.bench.work();
    for (id, topic) in [("apples", "红苹果"), ("cars", "汽车")] {
        let body = json!({"topic_id": id, "topic": topic, "target": "caption", "min_score": 0.98});
        assert_eq!(served.post(body).await.0, 201);
    }
    wait_until("both topics", async || worker.metrics.standing_topics.get() == 2).await;
    let (mut all, mut cars) = (served.events("").await, served.events("?topic_id=cars").await);
    assert_eq!(served.metrics.match_streams.get(), 2);
    let post = json!({"post_id": "p1", "caption": "红苹果", "author": "u42", "created_at": "2026-11-20T08:30:00Z"});
    served.bench.send("p1", Some(post.to_string().as_bytes())).await;
    let (name, data) = all.next().await.expect("an event");
    assert_eq!(name, "match");
    for (field, expected) in [
        ("topic_id", "apples"),
        ("topic", "红苹果"),
        ("post_id", "p1"),
        ("matched", "caption"),
        ("caption", "红苹果"),
        ("author", "u42"),
        ("created_at", "2026-11-20T08:30:00Z"),
    ] {
        assert_eq!(data[field], expected, "{data}");
    }
    assert!(data["score"].as_f64().expect("a number") > 0.99 && data["matched_at"].is_string(), "{data}");
    served.bench.post("p2", "汽车").await;
    assert_eq!(cars.next().await.expect("an event").1["post_id"], "p2", "and not p1");
    assert_eq!(all.next().await.expect("an event").1["post_id"], "p2");
    drop(cars);
    wait_until("the place of a client that went", async || served.metrics.match_streams.get() == 1).await;

    // The worker's stop ends the streams, and does not wait for them.
    served.shutdown.cancel();
    assert_eq!(all.next().await, None);
    served.serving.await.expect("no panic").expect("ends well");
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_are_bounded_and_a_slow_one_is_told_and_ended() {
    let served = Served::start(&["query.max_streams=2"]).await;
    let mut slow = served.live.stream(None).expect("a place");
    let _second = served.live.stream(None).expect("a place");
    let (status, answer) =
        read(client().get(format!("{}/v1/matches", served.url)).send().await.expect("answers")).await;
    assert_eq!((status, &answer["error"]["code"]), (429, &json!("overloaded")), "{answer}");
    // More than a stream may be behind.
    let found = json!({"topic_id": "a", "topic": "a", "post_id": "p", "score": 0.5, "matched": "image",
        "matched_at": "2026-11-20T08:30:00Z", "version": 1})
    .to_string();
    let topic = &served.bench.config.kafka.matches_topic;
    let sends = (0..400).map(|_| served.bench.producer.send(topic, Some(b"a"), Some(found.as_bytes()), &[]));
    for sent in futures::future::join_all(sends).await {
        sent.expect("acknowledged");
    }
    let mut fast = served.live.stream(Some("b".to_owned()));
    assert!(fast.is_err(), "still full");
    let next = wait_for_missed(&mut slow).await;
    assert!(matches!(next, Next::Missed(missed) if missed > 0), "{next:?}");
    assert_eq!(served.metrics.match_streams_dropped.get(), 1);
    drop(slow);
    fast = served.live.stream(None);
    assert!(fast.is_ok(), "its place is free");
}

/// A stream that was not read while more came than it may be behind.
async fn wait_for_missed(stream: &mut feedlens::query::live::MatchStream) -> Next {
    wait_until("more than it holds", async || stream.is_behind()).await;
    stream.next().await.expect("the worker runs")
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_are_asked_for_and_a_worker_without_kafka_says_so() {
    const KEY: &str = "a-key-of-some-length";
    let (_file, keys) = api_keys(&[("a", KEY, "")]);
    let served = Served::start(&[&keys]).await;
    for path in ["/v1/topics", "/v1/matches"] {
        let (status, _) = read(client().get(format!("{}{path}", served.url)).send().await.expect("an answer")).await;
        assert_eq!(status, 401, "{path}");
    }
    assert_eq!(served.post(json!({"topic": "x"})).await.0, 401);
    assert_eq!(served.delete("x").await, 401);
    let with_key = client().get(format!("{}/v1/topics", served.url)).bearer_auth(KEY);
    assert_eq!(with_key.send().await.expect("an answer").status(), 200);

    let without = Worker::empty(&[]).await;
    let (status, answer) = without.get("/v1/topics").await;
    assert_eq!((status, &answer["error"]["code"]), (404, &json!("not_found")));
    assert!(answer["error"]["message"].as_str().expect("a message").contains("query.kafka"), "{answer}");
}

/// A client that reads nothing costs its own stream and nobody else's.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_never_reads_holds_nobody_up() {
    let served = Served::start(&["query.timeout=2s"]).await;
    let address = served.url.trim_start_matches("http://").to_owned();
    let mut deaf = TcpStream::connect(&address).await.expect("connects");
    deaf.write_all(b"GET /v1/matches HTTP/1.1\r\nHost: x\r\n\r\n").await.expect("sends");
    let mut begin = [0; 12];
    deaf.read_exact(&mut begin).await.expect("an answer");
    assert_eq!(&begin, b"HTTP/1.1 200");
    let mut events = served.events("").await;
    let found = json!({"topic_id": "a", "topic": "a", "post_id": "p", "score": 0.5, "matched": "image",
        "caption": "x".repeat(20_000), "matched_at": "2026-11-20T08:30:00Z", "version": 1})
    .to_string();
    let topic = &served.bench.config.kafka.matches_topic;
    for _ in 0..300 {
        served.bench.producer.send(topic, Some(b"a"), Some(found.as_bytes()), &[]).await.expect("acknowledged");
        assert_eq!(events.next().await.expect("an event").0, "match");
    }
    tokio::time::timeout(Duration::from_secs(60), async {
        served.shutdown.cancel();
        served.serving.await.expect("no panic").expect("ends well");
    })
    .await
    .expect("the stop does not wait for it for ever");
}
