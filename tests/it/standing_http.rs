//! `/v1/topics` and `/v1/matches`, over an embedded broker, beside a real ingest worker where matches are wanted.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use feedlens::metrics::Metrics;
use feedlens::query::error::SearchError;
use feedlens::query::live::{Live, MatchStream, Next};
use feedlens::query::streams::Client;
use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use crate::ingest_support::Bench;
use crate::kafka_support::{PATIENCE, wait_until};
use crate::query_support::{Worker, api_keys, client, read, write_api_keys};

const ONE: &str = "one-key-of-some-length";
const TWO: &str = "two-key-of-some-length";

struct Served {
    bench: Bench,
    live: Arc<Live>,
    metrics: Arc<Metrics>,
    worker: Worker,
}

impl Served {
    async fn start(set: &[&str]) -> Self {
        Self::over(Bench::new(set).await).await
    }

    async fn over(bench: Bench) -> Self {
        let (metrics, shutdown) = (Arc::new(Metrics::new()), CancellationToken::new());
        let live = Live::start(&bench.config, metrics.clone(), shutdown.clone()).await.expect("starts");
        let live = live.expect("there is a topic of registrations");
        let worker = Worker::serve(&bench.config, bench.store.clone(), Some(live.clone()), shutdown).await;
        Self { bench, live, metrics, worker }
    }

    async fn send(&self, method: reqwest::Method, path: &str, body: &Value) -> (u16, Value) {
        let request = client().request(method, format!("{}{path}", self.worker.url)).body(body.to_string());
        read(request.send().await.expect("an answer")).await
    }

    async fn post(&self, body: Value) -> (u16, Value) {
        self.send(reqwest::Method::POST, "/v1/topics", &body).await
    }

    async fn list(&self) -> Vec<Value> {
        let (status, list) =
            read(client().get(format!("{}/v1/topics", self.worker.url)).send().await.expect("answers")).await;
        assert_eq!(status, 200);
        list["topics"].as_array().expect("a list").clone()
    }

    async fn delete(&self, id: &str) -> u16 {
        let deleted = client().delete(format!("{}/v1/topics/{id}", self.worker.url)).send().await.expect("an answer");
        deleted.status().as_u16()
    }

    /// The answer to who asks for matches, from an address of this machine and with a key.
    async fn ask_for_events(&self, query: &str, from: [u8; 4], key: &str) -> reqwest::Response {
        let client = reqwest::Client::builder().no_proxy().local_address(IpAddr::from(from)).build().expect("a client");
        let asked = client.get(format!("{}/v1/matches{query}", self.worker.url)).header("x-api-key", key);
        asked.send().await.expect("an answer")
    }

    /// A stream in the program, as the page of this machine would have it.
    async fn stream(&self, topic_id: Option<String>) -> Result<MatchStream, SearchError> {
        self.live.stream(topic_id, None, Client::Address([127, 0, 0, 1].into())).await
    }

    async fn events(&self, query: &str) -> Events {
        let response = self.ask_for_events(query, [127, 0, 0, 1], "").await;
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        assert_eq!(response.headers()["cache-control"], "no-store");
        Events::of(response)
    }
}

/// A stream of server-sent events.
pub struct Events {
    response: reqwest::Response,
    text: String,
}

/// An event as it came.
#[derive(Debug, Default, PartialEq)]
pub struct Event {
    pub name: String,
    pub id: Option<String>,
    pub data: Value,
}

impl Events {
    pub fn of(response: reqwest::Response) -> Self {
        Self { response, text: String::new() }
    }

    /// The next event that is no mere comment; `None`: the stream has ended.
    pub async fn event(&mut self) -> Option<Event> {
        loop {
            if let Some((event, rest)) = self.text.split_once("\n\n") {
                let field =
                    |name: &str| event.lines().find_map(|line| Some(line.strip_prefix(name)?.trim().to_owned()));
                let data = field("data:").map(|data| serde_json::from_str(&data).expect("JSON"));
                let (name, data) = (field("event:").unwrap_or_default(), data.unwrap_or_default());
                let event = Event { name, id: field("id:"), data };
                self.text = rest.to_owned();
                if event != Event::default() {
                    return Some(event);
                }
                continue;
            }
            let chunk = tokio::time::timeout(PATIENCE, self.response.chunk()).await.expect("in time");
            self.text += std::str::from_utf8(&chunk.expect("whole")?).expect("UTF-8");
        }
    }

    /// Name and data of the next event that says more than where the stream is; `None`: the stream has ended.
    async fn next(&mut self) -> Option<(String, Value)> {
        loop {
            let Event { name, data, .. } = self.event().await?;
            if name != "position" {
                return Some((name, data));
            }
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
        later.topics().await.expect("read").iter().map(|topic| topic.topic_id.as_str()).eq(["鸟/1"])
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
    served.worker.shutdown.cancel();
    assert_eq!(all.next().await, None);
    served.worker.serving.await.expect("no panic").expect("ends well");
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_are_bounded_and_a_slow_one_is_told_and_ended() {
    let served = Served::start(&["query.max_streams=2"]).await;
    let mut slow = served.stream(None).await.expect("a place");
    let _second = served.stream(None).await.expect("a place");
    let (status, answer) =
        read(client().get(format!("{}/v1/matches", served.worker.url)).send().await.expect("answers")).await;
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
    let mut fast = served.stream(Some("b".to_owned())).await;
    assert!(fast.is_err(), "still full");
    let next = wait_for_missed(&mut slow).await;
    assert!(matches!(next, Next::Missed(missed) if missed > 0), "{next:?}");
    assert_eq!(served.metrics.match_streams_dropped.get(), 1);
    let place = slow.cursor().clone();
    drop(slow);
    fast = served.stream(None).await;
    assert!(fast.is_ok(), "its place is free");
    drop(fast);
    // It can go on where it was, and has missed nothing then.
    let mut again =
        served.live.stream(None, Some(place), Client::Address([127, 0, 0, 1].into())).await.expect("a place");
    assert_eq!(again.next().await, Some(Next::Moved));
    for number in 0..400 {
        let next = again.next().await.expect("the worker runs");
        assert!(matches!(next, Next::Match(_)), "{number}: {next:?}");
    }
}

/// A stream that was not read while more came than it may be behind.
async fn wait_for_missed(stream: &mut MatchStream) -> Next {
    wait_until("more than it holds", async || stream.is_behind()).await;
    assert_eq!(stream.next().await, Some(Next::Moved), "where it begins");
    stream.next().await.expect("the worker runs")
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_are_asked_for_and_a_worker_without_kafka_says_so() {
    let (_file, keys) = api_keys(&[("a", ONE, "")]);
    let served = Served::start(&[&keys]).await;
    for path in ["/v1/topics", "/v1/matches"] {
        let (status, _) =
            read(client().get(format!("{}{path}", served.worker.url)).send().await.expect("an answer")).await;
        assert_eq!(status, 401, "{path}");
    }
    assert_eq!(served.post(json!({"topic": "x"})).await.0, 401);
    assert_eq!(served.delete("x").await, 401);
    let with_key = client().get(format!("{}/v1/topics", served.worker.url)).bearer_auth(ONE);
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
    let address = served.worker.url.trim_start_matches("http://").to_owned();
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
    // A reader of the embedded broker gets what is new twice a second.
    for _ in 0..12 {
        let sends = (0..25).map(|_| served.bench.producer.send(topic, Some(b"a"), Some(found.as_bytes()), &[]));
        for sent in futures::future::join_all(sends).await {
            sent.expect("acknowledged");
        }
        for _ in 0..25 {
            assert_eq!(events.next().await.expect("an event").0, "match");
        }
    }
    tokio::time::timeout(Duration::from_secs(60), async {
        served.worker.shutdown.cancel();
        served.worker.serving.await.expect("no panic").expect("ends well");
    })
    .await
    .expect("the stop does not wait for it for ever");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_address_does_not_keep_all_others_out() {
    let served = Served::start(&["query.max_streams=4", "query.max_streams_per_client=2"]).await;
    let ask = async |from| served.ask_for_events("", from, "").await;
    let (first, second) = (ask([127, 0, 0, 1]).await, ask([127, 0, 0, 1]).await);
    assert_eq!((first.status().as_u16(), second.status().as_u16()), (200, 200));
    let refused = ask([127, 0, 0, 1]).await;
    assert!(refused.headers().contains_key("retry-after"));
    let (status, answer) = read(refused).await;
    assert_eq!((status, &answer["error"]["code"]), (429, &json!("overloaded")), "{answer}");
    assert!(answer["error"]["message"].as_str().expect("a message").contains("127.0.0.1"), "{answer}");
    let other = ask([127, 0, 0, 2]).await;
    assert_eq!(other.status(), 200, "another address has its own share");
    drop(first);
    wait_until("the place of a stream that went", async || ask([127, 0, 0, 1]).await.status() == 200).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_has_its_share_of_the_streams_and_loses_them_when_it_is_removed() {
    let (file, keys) = api_keys(&[("one", ONE, ""), ("two", TWO, "")]);
    let served = Served::start(&[&keys, "query.max_streams=4", "query.max_streams_per_client=2"]).await;
    let ask = async |key| served.ask_for_events("", [127, 0, 0, 1], key).await;
    let (first, second) = (ask(ONE).await, ask(ONE).await);
    assert_eq!((first.status().as_u16(), second.status().as_u16()), (200, 200));
    let (status, answer) = read(ask(ONE).await).await;
    assert_eq!(status, 429, "{answer}");
    assert!(answer["error"]["message"].as_str().expect("a message").contains("key one"), "{answer}");
    let mut two = Events::of(ask(TWO).await);
    write_api_keys(file.path(), &[("two", TWO, ""), ("three", "the-third-key-of-some-length", "")]);
    for response in [first, second] {
        assert_eq!(Events::of(response).next().await, None, "the key is gone, and so is its stream");
    }
    wait_until("their places", async || served.metrics.match_streams.get() == 1).await;
    let found = json!({"topic_id": "a", "topic": "a", "post_id": "p", "score": 0.5, "matched": "image",
        "matched_at": "2026-11-20T08:30:00Z", "version": 1})
    .to_string();
    let topic = &served.bench.config.kafka.matches_topic;
    served.bench.producer.send(topic, Some(b"a"), Some(found.as_bytes()), &[]).await.expect("acknowledged");
    assert_eq!(two.next().await.expect("goes on").1["post_id"], "p");
}

#[tokio::test(flavor = "multi_thread")]
async fn before_the_registrations_are_read_nothing_is_said_of_them() {
    let bench = Bench::new(&["query.max_wait=200ms"]).await;
    let topic = bench.config.kafka.standing_topic.clone();
    bench.broker.cluster().create_topic(&topic, 2, 1).expect("a topic");
    let first = "2026-01-01T00:00:00Z";
    for number in 0..10 {
        let value = json!({"topic": "红苹果", "created_at": first});
        bench.register(&format!("t{number}"), Some(value)).await;
    }
    bench.broker.cluster().partition_leader(&topic, 1, None).expect("a partition that nobody can read");
    let served = Served::over(bench).await;
    for (method, path) in
        [("GET", "/v1/topics"), ("PUT", "/v1/topics/t1"), ("DELETE", "/v1/topics/t1"), ("GET", "/v1/matches")]
    {
        let asked = client().request(method.parse().expect("a method"), format!("{}{path}", served.worker.url));
        let response = asked.body("{\"topic\": \"鸟\"}").send().await.expect("an answer");
        assert!(response.headers().contains_key("retry-after"), "{method} {path}");
        let (status, answer) = read(response).await;
        assert_eq!((status, &answer["error"]["code"]), (503, &json!("unavailable")), "{method} {path}: {answer}");
    }
    assert_eq!(served.metrics.match_streams.get(), 0, "no place is left taken");
    served.bench.broker.cluster().partition_leader(&topic, 1, Some(1)).expect("a leader again");
    wait_until("the list", async || served.live.topics().await.is_ok()).await;
    assert_eq!(served.list().await.len(), 10);
    for number in 0..10 {
        let path = format!("/v1/topics/t{number}");
        let (status, changed) = served.send(reqwest::Method::PUT, &path, &json!({"topic": "鸟"})).await;
        assert_eq!((status, &changed["created_at"]), (200, &json!(first)), "{changed}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registration_that_the_brokers_do_not_take_is_answered_in_time() {
    let served = Served::start(&["query.timeout=1s"]).await;
    assert_eq!(served.post(json!({"topic": "鸟"})).await.0, 201);
    let few = RDKafkaRespErr::RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS;
    served.bench.broker.cluster().request_errors(RDKafkaApiKey::Produce, &[few; 10_000]);
    let (status, answer) = served.post(json!({"topic": "海"})).await;
    assert_eq!((status, &answer["error"]["code"]), (503, &json!("unavailable")), "{answer}");
    assert!(answer["error"]["message"].as_str().expect("a message").contains("within 1s"), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_registration_is_not_read_and_a_long_list_comes_whole() {
    let served = Served::start(&[]).await;
    let (status, answer) = served.post(json!({"topic": "x", "mood": "x".repeat(100_000)})).await;
    assert_eq!((status, &answer["error"]["code"]), (413, &json!("too_large")), "{answer}");
    assert!(answer["error"]["message"].as_str().expect("a message").contains("65536 bytes"), "{answer}");
    let text = "海".repeat(1_000);
    let value = json!({"topic": text}).to_string();
    let topic = &served.bench.config.kafka.standing_topic;
    let ids = (0..300).map(|number| format!("t{number:03}")).collect::<Vec<_>>();
    let sends =
        ids.iter().map(|id| served.bench.producer.send(topic, Some(id.as_bytes()), Some(value.as_bytes()), &[]));
    for sent in futures::future::join_all(sends).await {
        sent.expect("acknowledged");
    }
    wait_until("all of them", async || served.live.topics().await.is_ok_and(|topics| topics.len() == ids.len())).await;
    let list = served.list().await;
    assert_eq!(list.iter().map(|topic| topic["topic_id"].as_str().expect("an id")).collect::<Vec<_>>(), ids);
    assert!(list.iter().all(|topic| topic["topic"] == text));
}
