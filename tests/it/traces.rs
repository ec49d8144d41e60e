//! Traces, from the producer of a post to its point and from a request to its answer, as a collector gets them; through the real
//! binary.

use std::collections::BTreeSet;
use std::process::Stdio;

use feedlens::kafka::{EmbeddedBroker, Envelope, Producer};
use serde_json::{Value, json};

use crate::binary::{feedlens, refuses, root};
use crate::collector::{Collector, Mood, Told, hex};
use crate::dead_letters::told as dlq;
use crate::kafka_support::{ROOMY, config, receive, start, wait_until};
use crate::ports::free_port;
use crate::running::Running;

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const PARENT: &str = "b7ad6b7169203331";
/// Nothing that begins here is recorded.
const ONLY_OTHERS: &str = "traces.sample_ratio=0";

type Headers = Vec<(String, Option<Vec<u8>>)>;

fn sampled() -> String {
    format!("00-{TRACE}-{PARENT}-01")
}

fn header(name: &str, value: impl AsRef<[u8]>) -> (String, Option<Vec<u8>>) {
    (name.to_owned(), Some(value.as_ref().to_vec()))
}

fn post(id: &str) -> String {
    json!({"post_id": id, "caption": "红苹果"}).to_string()
}

/// A broker with one partition of each topic, and who writes there.
struct Bench {
    broker: EmbeddedBroker,
    producer: Producer,
}

impl Bench {
    fn new() -> Self {
        let topics = ["posts", "posts.dlq", "topic.matches", "search.requests", "search.results"];
        let broker = EmbeddedBroker::start(&topics.map(|topic| (topic, 1))).expect("a broker");
        let producer = Producer::new(&config(&broker.bootstrap())).expect("a producer");
        Self { broker, producer }
    }

    async fn send(&self, topic: &str, key: &str, value: &str, headers: Headers) {
        let sent = self.producer.send(topic, Some(key.as_bytes()), Some(value.as_bytes()), &headers);
        sent.await.expect("acknowledged");
    }

    fn ingest(&self, further: &[&str]) -> Running {
        Running::ingest(&self.broker.bootstrap(), further)
    }

    /// The first messages of a topic.
    async fn messages(&self, topic: &str, count: usize) -> Vec<Envelope> {
        let mut kafka = config(&self.broker.bootstrap());
        kafka.posts_topic = topic.to_owned();
        let (source, mut envelopes, _) = start(&kafka, ROOMY).await;
        let mut messages = Vec::new();
        while messages.len() < count {
            messages.push(receive(&mut envelopes).await);
        }
        source.stop(std::time::Duration::ZERO).await.expect("stops");
        messages
    }
}

async fn settled(worker: &Running, count: u64) {
    wait_until(&format!("{count} posts settled"), async || worker.settled() >= count).await;
}

/// Trace and span that a message names as its parent.
fn parent_of(message: &Envelope) -> (String, String) {
    let header = message.header("traceparent").expect("a traceparent");
    let text = std::str::from_utf8(header).expect("UTF-8");
    let parts = text.split('-').collect::<Vec<_>>();
    assert_eq!((parts.len(), parts[0], text.len()), (4, "00", 55), "{text}");
    (parts[1].to_owned(), parts[2].to_owned())
}

fn terminated(worker: Running) -> String {
    worker.terminate();
    let (code, log) = worker.end();
    assert_eq!(code, Some(0), "{log}");
    log
}

#[tokio::test(flavor = "multi_thread")]
async fn a_post_is_followed_from_its_producer_to_its_point_and_on_to_what_others_are_told() {
    let (bench, collector) = (Bench::new(), Collector::start().await);
    let everything = json!({"topic": "红苹果", "target": "caption", "min_score": -1}).to_string();
    bench.send("topics.standing", "all", &everything, Vec::new()).await;
    let worker = bench.ingest(&[
        &collector.setting(),
        ONLY_OTHERS,
        "traces.headers=authorization=Bearer%20hunter2, x-team=feed",
        "traces.resource_attributes=deployment.environment.name=test",
    ]);
    // Of the demo's feed: pictures in files, which are sent inside the messages.
    let folder = tempfile::tempdir().expect("a folder");
    let feed = folder.path().join("feed.jsonl");
    std::fs::copy(root().join("demo/images/1f34e.png"), folder.path().join("apple.png")).expect("copies");
    let line = json!({"post_id": "p1", "caption": "红苹果", "image": {"path": "apple.png"}}).to_string();
    std::fs::write(&feed, format!("{line}\n")).expect("writes");
    let brokers = format!("kafka.brokers={}", bench.broker.bootstrap());
    let produced = tokio::task::spawn_blocking({
        let setting = collector.setting();
        move || {
            let mut command = feedlens(&["produce", feed.to_str().expect("UTF-8")]);
            command.args(["--set", &brokers, "--set", &setting]).output().expect("starts")
        }
    });
    let produced = produced.await.expect("no panic");
    assert!(produced.status.success(), "{}", String::from_utf8_lossy(&produced.stderr));
    settled(&worker, 1).await;
    let (sent, processed) = (collector.wait_for("send posts", 1).await, collector.wait_for("process posts", 1).await);
    let ([send], [process]) = (&sent[..], &processed[..]) else { panic!("one post: {sent:?} {processed:?}") };
    assert_eq!((send.resource["service.name"].as_str(), send.parent().as_str()), ("feedlens-produce", ""));
    assert_eq!((process.trace(), process.parent()), (send.trace(), send.id()));
    assert_eq!(process.resource["service.name"], "feedlens-ingest");
    assert_eq!(process.resource["deployment.environment.name"], "test");
    for (name, value) in [
        ("messaging.system", "kafka"),
        ("messaging.operation.type", "process"),
        ("messaging.destination.name", "posts"),
        ("messaging.destination.partition.id", "0"),
        ("messaging.kafka.offset", "0"),
        ("messaging.kafka.message.key", "p1"),
        ("messaging.consumer.group.name", "feedlens-ingest"),
        ("feedlens.post_id", "p1"),
        ("feedlens.outcome", "indexed"),
    ] {
        assert_eq!(process.attribute(name), value, "{name}: {:?}", process.attributes());
    }
    assert!(!process.failed());

    let batches = collector.wait_for("write batch", 1).await;
    let [batch] = &batches[..] else { panic!("one batch: {batches:?}") };
    let spans = collector.spans();
    let steps = spans.iter().filter(|told| told.parent() == process.id()).collect::<Vec<_>>();
    let names = steps.iter().map(|told| told.span.name.as_str()).collect::<BTreeSet<_>>();
    let expected = ["parse", "tokenize", "decode", "resize", "encode", "write", "announce"];
    assert_eq!(names, BTreeSet::from(expected));
    for step in &steps {
        assert!(step.trace() == process.trace() && step.is_within(process), "{step:?} in {process:?}");
    }
    let towers = steps.iter().filter(|told| told.span.name == "encode").map(|told| told.attribute("feedlens.tower"));
    assert_eq!(towers.collect::<BTreeSet<_>>(), BTreeSet::from(["image".to_owned(), "text".to_owned()]));
    // The batch belongs to many posts: a trace of its own, linked both ways.
    let write = steps.iter().find(|told| told.span.name == "write").expect("was written");
    let links = |told: &Told| told.span.links.iter().map(|link| hex(&link.span_id)).collect::<Vec<_>>();
    assert_eq!((links(batch), links(write)), (vec![process.id()], vec![batch.id()]));
    assert_ne!(batch.trace(), process.trace());
    assert_eq!(
        (batch.attribute("db.operation.batch.size"), write.attribute("feedlens.batch.size")),
        ("1".into(), "1".into())
    );

    let found = bench.messages("topic.matches", 1).await;
    assert_eq!(parent_of(&found[0]), (process.trace(), process.id()), "what others are told goes on");
    let requests = collector.headers().into_iter().filter(|headers| headers.contains_key("x-team")).collect::<Vec<_>>();
    assert!(!requests.is_empty(), "the headers of the configuration are sent");
    for request in requests {
        assert_eq!(request["authorization"], "Bearer hunter2");
        assert_eq!(request["content-type"], "application/x-protobuf");
    }
    assert_eq!(spans.iter().filter(|told| told.trace() != process.trace()).count(), 1, "the batch alone");
    let log = terminated(worker);
    assert!(!log.contains("hunter2"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_is_a_failure_in_its_trace_and_takes_it_along_to_a_replay() {
    let (bench, collector) = (Bench::new(), Collector::start().await);
    let worker = bench.ingest(&[&collector.setting()]);
    let came = vec![header("traceparent", sampled()), header("tracestate", "congo=t61")];
    bench.send("posts", "with", "{", came.clone()).await;
    bench.send("posts", "without", "{", vec![header("traceparent", "garbage")]).await;
    settled(&worker, 2).await;
    let letters = bench.messages("posts.dlq", 2).await;
    let letter =
        |key: &str| letters.iter().find(|letter| letter.key.as_deref() == Some(key.as_bytes())).expect("is there");
    let traced = |key: &str| {
        letter(key).headers.iter().filter(|(name, _)| name.starts_with("trace")).cloned().collect::<Vec<_>>()
    };
    assert_eq!(traced("with"), came, "as it came, and nothing beside it");

    let processed = collector.wait_for("process posts", 2).await;
    let of = |key: &str| {
        processed.iter().find(|told| told.attribute("messaging.kafka.message.key") == key).expect("is there")
    };
    assert_eq!((of("with").trace(), of("with").parent()), (TRACE.to_owned(), PARENT.to_owned()));
    assert_eq!(of("with").span.trace_state, "congo=t61");
    assert_eq!(parent_of(letter("without")), (of("without").trace(), of("without").id()), "the trace that began here");
    for told in &processed {
        assert!(
            told.failed() && told.span.status.as_ref().is_some_and(|status| !status.message.is_empty()),
            "{told:?}"
        );
        assert_eq!(
            (told.attribute("error.type"), told.attribute("feedlens.outcome")),
            ("bad_json".into(), "dead_lettered".into())
        );
    }
    drop(letters);

    assert_eq!(dlq(&config(&bench.broker.bootstrap()), &["replay"]).await["sent"], 2);
    settled(&worker, 4).await;
    let replayed = collector.wait_for("process posts", 4).await.split_off(2);
    let traces = replayed.iter().map(|told| (told.trace(), told.parent())).collect::<BTreeSet<_>>();
    let begun = of("without");
    assert_eq!(traces, BTreeSet::from([(TRACE.to_owned(), PARENT.to_owned()), (begun.trace(), begun.id())]));
    terminated(worker);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_search_is_followed_over_kafka_and_over_http() {
    let (bench, collector) = (Bench::new(), Collector::start().await);
    let port = free_port();
    let listen = format!("query.listen=127.0.0.1:{port}");
    let worker = Running::start("query", &bench.broker.bootstrap(), &[&collector.setting(), ONLY_OTHERS, &listen]);
    let came = || vec![header("traceparent", sampled()), header("tracestate", "congo=t61")];
    for (key, request) in [("good", json!({"topic": "红苹果"})), ("bad", json!({"tpoic": "红苹果"}))] {
        bench.send("search.requests", key, &request.to_string(), came()).await;
    }
    let answers = bench.messages("search.results", 2).await;
    let processed = collector.wait_for("process search.requests", 2).await;
    for told in &processed {
        assert_eq!((told.trace(), told.parent()), (TRACE.to_owned(), PARENT.to_owned()));
        assert!(!told.failed(), "what a sender does wrong is no failure of the worker: {told:?}");
        let key = told.attribute("messaging.kafka.message.key");
        assert_eq!(told.attribute("feedlens.outcome"), if key == "good" { "ok" } else { "bad_request" });
        let answer = answers.iter().find(|answer| answer.key.as_deref() == Some(key.as_bytes())).expect("is there");
        assert_eq!(parent_of(answer), (TRACE.to_owned(), told.id()));
        assert_eq!(answer.header("tracestate"), Some(&b"congo=t61"[..]));
    }
    let steps = |parent: &Told| {
        let steps = collector.spans().into_iter().filter(|told| told.parent() == parent.id() && told.is_within(parent));
        steps.map(|told| told.span.name).collect::<BTreeSet<_>>()
    };
    let phases = BTreeSet::from(["wait", "encode", "store"].map(str::to_owned));
    let good = processed.iter().find(|told| told.attribute("feedlens.outcome") == "ok").expect("is there");
    assert_eq!(steps(good), phases);

    let client = reqwest::Client::builder().no_proxy().build().expect("a client");
    let ask = async |path: &str, body: Value, traceparent: Option<String>| {
        let mut request = client.post(format!("http://127.0.0.1:{port}{path}")).body(body.to_string());
        if let Some(traceparent) = traceparent {
            request = request.header("traceparent", traceparent);
        }
        request.send().await.expect("answers").status().as_u16()
    };
    assert_eq!(ask("/v1/search", json!({"topic": "红苹果"}), Some(sampled())).await, 200);
    assert_eq!(ask("/v1/search", json!({"topic": "青苹果"}), None).await, 200);
    let searches = json!({"searches": [{"topic": "红苹果"}, {"topic": "狗脸"}]});
    assert_eq!(ask("/v1/search/batch", searches, Some(sampled())).await, 200);
    assert_eq!(ask("/v1/search", json!({"tpoic": "红苹果"}), Some(sampled())).await, 400);
    let served = collector.wait_for("POST /v1/search", 2).await;
    let batches = collector.wait_for("POST /v1/search/batch", 1).await;
    let [batch] = &batches[..] else { panic!("one batch: {batches:?}") };
    assert_eq!(served.len(), 2, "those that were sampled");
    for told in served.iter().chain([batch]) {
        assert_eq!((told.trace(), told.parent()), (TRACE.to_owned(), PARENT.to_owned()));
        assert!(!told.failed() && told.resource["service.name"] == "feedlens-query", "{told:?}");
        assert_eq!(
            (&*told.attribute("http.request.method"), &told.attribute("http.route")),
            ("POST", &told.attribute("url.path"))
        );
    }
    let statuses =
        served.iter().map(|told| (told.attribute("http.response.status_code"), steps(told))).collect::<BTreeSet<_>>();
    assert_eq!(statuses, BTreeSet::from([("200".to_owned(), phases.clone()), ("400".to_owned(), BTreeSet::new())]));
    let searches = collector.named("search");
    assert!(searches.len() == 2 && searches.iter().all(|told| told.parent() == batch.id() && told.is_within(batch)));
    for search in &searches {
        assert_eq!(steps(search), BTreeSet::from(["encode", "store"].map(str::to_owned)));
    }
    terminated(worker);
}

/// Threads of a process by name, as far as the system tells it: 15 bytes.
fn threads(worker: &Running) -> Vec<String> {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", worker.id())).expect("its threads");
    tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn without_an_endpoint_there_is_no_header_no_thread_and_no_connection() {
    let bench = Bench::new();
    let everything = json!({"topic": "红苹果", "target": "caption", "min_score": -1}).to_string();
    bench.send("topics.standing", "all", &everything, Vec::new()).await;
    let collector = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let endpoint = format!("http://{}", collector.local_addr().expect("an address"));
    // What other programs are told by is not ours.
    let standard = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.as_str()),
        ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", &endpoint),
        ("OTEL_TRACES_SAMPLER", "always_on"),
    ];
    let worker = Running::start_among("ingest", &bench.broker.bootstrap(), &[], &standard);
    bench.send("posts", "p1", &post("p1"), vec![header("traceparent", sampled())]).await;
    bench.send("posts", "bad", "{", Vec::new()).await;
    settled(&worker, 2).await;
    for topic in ["topic.matches", "posts.dlq"] {
        let message = bench.messages(topic, 1).await.remove(0);
        assert!(message.header("traceparent").is_none() && message.header("tracestate").is_none(), "{topic}");
    }
    let exports = |worker: &Running| threads(worker).iter().any(|name| name.starts_with("OpenTelemetry"));
    assert!(!exports(&worker), "{:?}", threads(&worker));
    assert!(!terminated(worker).contains("trace"));
    collector.set_nonblocking(true).expect("a socket");
    assert!(collector.accept().is_err(), "nobody connected");

    // The same, seen where traces are on.
    let collector = Collector::start().await;
    let worker = bench.ingest(&[&collector.setting()]);
    wait_until("the thread that exports", async || exports(&worker)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trace_that_is_not_sampled_is_passed_on_and_not_recorded() {
    let (bench, collector) = (Bench::new(), Collector::start().await);
    let worker = bench.ingest(&[&collector.setting(), ONLY_OTHERS]);
    let unsampled = sampled().replace("-01", "-00");
    bench.send("posts", "p1", &post("p1"), vec![header("traceparent", &unsampled)]).await;
    bench.send("posts", "p2", "{", Vec::new()).await;
    settled(&worker, 2).await;
    let letter = bench.messages("posts.dlq", 1).await.remove(0);
    assert!(letter.header("traceparent").expect("is there").ends_with(b"-00"), "others shall not record it either");
    terminated(worker);
    assert_eq!(collector.headers().len(), 0, "{:?}", collector.spans());
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_headers_begin_a_trace_of_their_own() {
    let (bench, collector) = (Bench::new(), Collector::start().await);
    let worker = bench.ingest(&[&collector.setting()]);
    let zero_trace = format!("00-{}-{PARENT}-01", "0".repeat(32));
    let zero_span = format!("00-{TRACE}-{}-01", "0".repeat(16));
    let long = format!("cc-{TRACE}-{PARENT}-01-{}", "x".repeat(100_000));
    let parents = [b"\xff\xfe".as_slice(), b"", b"----", zero_trace.as_bytes(), zero_span.as_bytes(), long.as_bytes()];
    for (index, parent) in parents.iter().enumerate() {
        let headers = vec![header("traceparent", parent), header("tracestate", "a=1")];
        bench.send("posts", &format!("p{index}"), &post(&format!("p{index}")), headers).await;
    }
    bench.send("posts", "null", &post("null"), vec![("traceparent".to_owned(), None)]).await;
    // A good parent with a list beyond any size: the one stays, the other does not.
    let giant = (0..10_000).map(|index| format!("k{index}=v,")).collect::<String>();
    bench
        .send("posts", "giant", &post("giant"), vec![header("traceparent", sampled()), header("tracestate", giant)])
        .await;
    settled(&worker, 8).await;
    assert_eq!(worker.dead_lettered(), 0);
    let processed = collector.wait_for("process posts", 8).await;
    for told in &processed {
        assert_eq!(told.span.trace_state, "");
        let is_giant = told.attribute("feedlens.post_id") == "giant";
        assert_eq!((told.trace() == TRACE, !told.parent().is_empty()), (is_giant, is_giant), "{told:?}");
    }
    assert_eq!(processed.iter().map(Told::trace).collect::<BTreeSet<_>>().len(), 8, "no two in one");
    terminated(worker);
}

/// A worker that indexes all posts whatever the collector does; the log and the metric that has to rise.
async fn indexes_all(endpoint: &str, posts: u64, outcome: &str) -> String {
    let bench = Bench::new();
    let worker = bench.ingest(&[&format!("traces.endpoint={endpoint}")]);
    let (ids, there) = ((0..posts).map(|index| format!("p{index}")), &bench);
    let sending = ids.map(|id| async move { there.send("posts", &id, &post(&id), Vec::new()).await });
    futures::future::join_all(sending).await;
    settled(&worker, posts).await;
    assert_eq!(worker.metric("feedlens_posts_indexed_total"), posts as f64);
    assert_eq!(worker.get("/readyz").expect("answers").0, 200);
    let metric = format!("feedlens_trace_spans_total{{outcome=\"{outcome}\"}}");
    wait_until("the spans to be counted", async || worker.metric(&metric) > 0.0).await;
    assert_eq!(worker.metric("feedlens_trace_spans_total{outcome=\"exported\"}"), 0.0);
    terminated(worker)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_is_out_of_order_holds_up_nothing_and_is_told_of_once() {
    // As many as make several exports.
    const POSTS: u64 = 300;
    let nobody = format!("http://127.0.0.1:{}", free_port());
    let moods = [Mood::Fails, Mood::Garbles, Mood::Redirects, Mood::Refuses];
    let mut cases = vec![(nobody, "Connection refused")];
    for (mood, says) in
        moods.into_iter().zip(["answered 500", "speaks no OTLP", "answered 307", "are refused: the quota"])
    {
        cases.push((Collector::of(mood).await.endpoint, says));
    }
    for (endpoint, says) in cases {
        let log = indexes_all(&endpoint, POSTS, "failed").await;
        assert_eq!(log.matches("traces are lost, all else goes on").count(), 1, "{log}");
        assert!(log.contains(says) && log.contains(&endpoint), "{says}: {log}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_never_answers_costs_spans_and_neither_memory_nor_time() {
    // Five spans each: more than may wait.
    let collector = Collector::of(Mood::Silent).await;
    let began = std::time::Instant::now();
    let log = indexes_all(&collector.endpoint, 1_500, "dropped").await;
    assert!(log.contains("the last spans could not be sent before the end"), "{log}");
    assert!(log.matches("traces are lost").count() <= 1, "{log}");
    // One request at a time, each for 10 s.
    let requests = collector.headers().len() as u64;
    assert!(requests <= 2 + began.elapsed().as_secs() / 10, "{requests} requests");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_spans_are_sent_before_the_process_ends() {
    let (bench, collector) = (Bench::new(), Collector::start().await);
    let port = free_port();
    let listen = format!("query.listen=127.0.0.1:{port}");
    // Without Kafka it ends at once, long before the next export is due.
    let further = [&*collector.setting(), &*listen, "query.kafka=false"];
    let worker = Running::start("query", &bench.broker.bootstrap(), &further);
    wait_until("the worker", async || worker.get("/readyz").is_some_and(|(status, _)| status == 200)).await;
    let client = reqwest::Client::builder().no_proxy().build().expect("a client");
    for _ in 0..5 {
        let asked = client.get(format!("http://127.0.0.1:{port}/v1/search?q=apple")).send().await;
        assert_eq!(asked.expect("answers").status(), 200);
    }
    terminated(worker);
    assert_eq!(collector.named("GET /v1/search").len(), 5);
}

#[test]
fn what_is_wrong_with_the_section_is_one_sentence_and_no_secret_is_told() {
    for (assignment, says) in [
        ("traces.endpoint=http://ada:hunter2@collector:4318", "traces.endpoint"),
        ("traces.endpoint=collector:4318", "traces.endpoint"),
        ("traces.sample_ratio=1.1", "traces.sample_ratio (1.1) must be from 0 to 1"),
        ("traces.sample_ratio=nan", "traces.sample_ratio"),
        ("traces.headers=hunter2", "traces.headers: part 1"),
        ("traces.header=a=b", "\"traces.headers\""),
        ("traces.resource_attributes=a", "traces.resource_attributes: part 1"),
    ] {
        refuses(&["config", "check", "--set", assignment], 2, &[says]);
        let output =
            feedlens(&["config", "check", "--set", assignment]).stderr(Stdio::piped()).output().expect("starts");
        assert!(!String::from_utf8_lossy(&output.stderr).contains("hunter2"), "{assignment}");
    }
}
