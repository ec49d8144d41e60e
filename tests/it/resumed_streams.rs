//! Streams of matches that were cut go on where they were, at another worker too: `Last-Event-ID`, and the page.

use std::sync::Arc;

use feedlens::query::live::Live;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::browser::Browser;
use crate::ingest_support::Bench;
use crate::kafka_support::PATIENCE;
use crate::query_support::{Worker, client, read};

/// An event as it came: its name, where it has one, its id, and the post it speaks of.
#[derive(Debug, Default, PartialEq)]
struct Event {
    name: String,
    id: Option<String>,
    post_id: Option<String>,
}

struct Events {
    response: reqwest::Response,
    text: String,
}

impl Events {
    /// The next event that is no mere comment; `None`: the stream has ended.
    async fn next(&mut self) -> Option<Event> {
        loop {
            if let Some((event, rest)) = self.text.split_once("\n\n") {
                let (event, rest) = (event.to_owned(), rest.to_owned());
                self.text = rest;
                let field =
                    |name: &str| event.lines().find_map(|line| Some(line.strip_prefix(name)?.trim().to_owned()));
                let data = field("data:").map(|data| serde_json::from_str::<serde_json::Value>(&data).expect("JSON"));
                let post_id = data.and_then(|data| Some(data["post_id"].as_str()?.to_owned()));
                let event = Event { name: field("event:").unwrap_or_default(), id: field("id:"), post_id };
                if event != Event::default() {
                    return Some(event);
                }
                continue;
            }
            let chunk = tokio::time::timeout(PATIENCE, self.response.chunk()).await.expect("in time");
            self.text += std::str::from_utf8(&chunk.expect("whole")?).expect("UTF-8");
        }
    }

    /// The posts of the next matches, and the id of the last event that has one.
    async fn posts(&mut self, count: usize) -> (Vec<String>, String) {
        let (mut posts, mut last) = (Vec::new(), String::new());
        while posts.len() < count {
            let event = self.next().await.expect("goes on");
            last = event.id.unwrap_or(last);
            posts.extend(event.post_id);
        }
        (posts, last)
    }
}

/// A worker that reads the matches of this broker from now on.
async fn serve(bench: &Bench, address: &str) -> Worker {
    let shutdown = CancellationToken::new();
    let live = Live::start(&bench.config, Arc::default(), shutdown.clone()).await.expect("starts");
    Worker::serve_at(address, &bench.config, bench.store.clone(), live, shutdown).await
}

async fn stop(worker: Worker) {
    worker.shutdown.cancel();
    worker.serving.await.expect("no panic").expect("ends well");
}

async fn ask(worker: &Worker, query: &str, last_event_id: Option<&str>) -> reqwest::Response {
    let asked = client().get(format!("{}/v1/matches{query}", worker.url));
    let asked = last_event_id.into_iter().fold(asked, |asked, id| asked.header("last-event-id", id));
    asked.send().await.expect("an answer")
}

async fn events(worker: &Worker, query: &str, last_event_id: Option<&str>) -> Events {
    let response = ask(worker, query, last_event_id).await;
    assert_eq!(response.status(), 200);
    Events { response, text: String::new() }
}

/// Tells matches of a topic, one after the other, as an ingest worker does.
async fn tell(bench: &Bench, topic_id: &str, posts: impl IntoIterator<Item = String>) {
    for post in posts {
        let found = json!({"topic_id": topic_id, "topic": topic_id, "post_id": post, "score": 0.5, "matched": "image",
            "caption": post, "matched_at": "2026-11-20T08:30:00Z", "version": 1})
        .to_string();
        let topic = &bench.config.kafka.matches_topic;
        let sent = bench.producer.send(topic, Some(topic_id.as_bytes()), Some(found.as_bytes()), &[]).await;
        sent.expect("acknowledged");
    }
}

fn named(name: &str, numbers: std::ops::Range<usize>) -> Vec<String> {
    numbers.map(|number| format!("{name}{number}")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_was_cut_goes_on_where_it_was_at_another_worker() {
    let bench = Bench::new(&[]).await;
    let first = serve(&bench, "127.0.0.1:0").await;
    let mut stream = events(&first, "", None).await;
    let begin = stream.next().await.expect("a position");
    assert_eq!((begin.name.as_str(), begin.id.as_deref()), ("", Some("none")), "before any match");
    let beginning = begin.id.expect("an id");

    // Two topics, so that there are two partitions with matches perhaps.
    tell(&bench, "a", named("a", 0..3)).await;
    let (seen, place) = stream.posts(3).await;
    assert_eq!(seen, named("a", 0..3));
    drop(stream);
    tell(&bench, "b", named("b", 0..2)).await;
    tell(&bench, "a", named("a", 3..5)).await;

    // A worker that starts only now knows what was told before.
    let second = serve(&bench, "127.0.0.1:0").await;
    for worker in [&first, &second] {
        let mut stream = events(worker, "", Some(&place)).await;
        assert_eq!(stream.next().await.expect("a position").id.as_ref(), Some(&place));
        let (mut posts, after) = stream.posts(4).await;
        posts.sort();
        assert_eq!(posts, [named("a", 3..5), named("b", 0..2)].concat(), "each once, and nothing of before");
        assert_eq!(events(worker, "?topic_id=b", Some(&place)).await.posts(2).await.0, named("b", 0..2));
        let all = events(worker, "", Some(&beginning)).await.posts(7).await;
        assert_eq!(all.1, after, "who was there before the first match gets all");
    }

    // Who names no place begins now; and what comes now comes behind what was kept.
    let (mut fresh, mut old) = (events(&second, "", None).await, events(&second, "", Some(&place)).await);
    tell(&bench, "a", named("a", 5..6)).await;
    assert_eq!(fresh.posts(1).await.0, ["a5"]);
    assert_eq!(old.posts(5).await.0.last().map(String::as_str), Some("a5"));
    for worker in [first, second] {
        stop(worker).await;
    }
    assert_eq!(old.next().await, None, "nothing came twice");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_kept_is_told_as_a_gap_and_a_foreign_id_refused() {
    let bench = Bench::new(&[]).await;
    tell(&bench, "a", named("a", 0..300)).await;
    let worker = serve(&bench, "127.0.0.1:0").await;
    let mut stream = events(&worker, "", Some("none")).await;
    assert_eq!(stream.next().await.expect("a position").id.as_deref(), Some("none"));
    assert_eq!(stream.next().await.expect("a gap").name, "gap");
    assert_eq!(stream.posts(256).await.0, named("a", 44..300), "what was read at the start");

    for bad in ["7", "0:1;1:2", "é"] {
        let (status, answer) = read(ask(&worker, "", Some(bad)).await).await;
        assert_eq!((status, &answer["error"]["code"]), (400, &json!("bad_request")), "{bad}");
        assert!(answer["error"]["message"].as_str().expect("a message").contains("Last-Event-ID"), "{answer}");
    }
    stop(worker).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_whose_topic_is_quiet_learns_where_it_is() {
    let bench = Bench::new(&[]).await;
    let worker = serve(&bench, "127.0.0.1:0").await;
    let (mut quiet, mut all) = (events(&worker, "?topic_id=b", None).await, events(&worker, "", None).await);
    tell(&bench, "a", named("a", 0..140)).await;
    let place = all.posts(140).await.1;
    let (begin, moved) = (quiet.next().await.expect("a position"), quiet.next().await.expect("another"));
    assert_eq!((begin.id.as_deref(), moved.name.as_str(), &moved.post_id), (Some("none"), "", &None));
    assert!(moved.id.is_some() && moved.id != begin.id, "{moved:?}");
    // At its end it says where exactly.
    worker.shutdown.cancel();
    assert_eq!(quiet.next().await.expect("a position").id, Some(place));
    assert_eq!(quiet.next().await, None);
    stop(worker).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_shows_the_matches_of_an_interruption() {
    let Some(browser) = Browser::open("en").await else { return };
    let bench = Bench::new(&[]).await;
    let worker = serve(&bench, "127.0.0.1:0").await;
    let url = worker.url.clone();
    let address = url.trim_start_matches("http://");
    let registered = client().put(format!("{url}/v1/topics/a")).body(json!({"topic": "a"}).to_string()).send().await;
    assert_eq!(registered.expect("an answer").status(), 200);
    browser.client.goto(&url).await.expect("opens");
    browser.until("document.getElementById('stream').dataset.state === 'live'").await;
    browser.until("document.querySelectorAll('#topics .topic-row').length === 1").await;
    tell(&bench, "a", named("before", 0..1)).await;
    let shown = "[...document.querySelectorAll('#matches .match-caption')].map(caption => caption.textContent).join()";
    browser.until(&format!("{shown} === 'before0'")).await;

    stop(worker).await;
    browser.until("document.getElementById('stream').dataset.state === 'down'").await;
    tell(&bench, "a", named("during", 0..2)).await;
    let worker = serve(&bench, address).await;
    browser.until(&format!("{shown} === 'during1,during0,before0'")).await;
    browser.until("document.querySelector('.topic-count').textContent === '3'").await;

    // After a long one the page says that some are missing, and shows the last.
    stop(worker).await;
    browser.until("document.getElementById('stream').dataset.state === 'down'").await;
    tell(&bench, "a", named("long", 0..300)).await;
    let worker = serve(&bench, address).await;
    browser.until("document.querySelector('#matches .match-caption').textContent === 'long299'").await;
    browser.until("document.querySelector('.topic-count').textContent === '259'").await;
    browser.until("document.getElementById('matches').childElementCount === 30").await;
    stop(worker).await;
    browser.close().await;
}
