//! Streams of matches that were cut go on where they were, at another worker too: `Last-Event-ID`, and the page.

use std::sync::Arc;

use feedlens::query::live::Live;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::browser::Browser;
use crate::ingest_support::Bench;
use crate::query_support::{Worker, client, read};
use crate::standing_http::Events;

/// The posts of the next matches, and the id of the last event that has one.
async fn posts(stream: &mut Events, count: usize) -> (Vec<String>, String) {
    let (mut posts, mut last) = (Vec::new(), String::new());
    while posts.len() < count {
        let event = stream.event().await.expect("goes on");
        last = event.id.unwrap_or(last);
        posts.extend(event.data["post_id"].as_str().map(str::to_owned));
    }
    (posts, last)
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
    Events::of(response)
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
    let begin = stream.event().await.expect("a position");
    assert_eq!(begin.name, "position");
    let beginning = begin.id.expect("an id");

    // Two topics, so that there are two partitions with matches perhaps.
    tell(&bench, "a", named("a", 0..3)).await;
    let (seen, place) = posts(&mut stream, 3).await;
    assert_eq!(seen, named("a", 0..3));
    drop(stream);
    tell(&bench, "b", named("b", 0..2)).await;
    tell(&bench, "a", named("a", 3..5)).await;

    // A worker that starts only now knows what was told before.
    let second = serve(&bench, "127.0.0.1:0").await;
    for worker in [&first, &second] {
        let mut stream = events(worker, "", Some(&place)).await;
        assert_eq!(stream.event().await.expect("a position").name, "position", "and no gap");
        let (mut seen, after) = posts(&mut stream, 4).await;
        seen.sort();
        assert_eq!(seen, [named("a", 3..5), named("b", 0..2)].concat(), "each once, and nothing of before");
        assert_eq!(posts(&mut events(worker, "?topic_id=b", Some(&place)).await, 2).await.0, named("b", 0..2));
        let all = posts(&mut events(worker, "", Some(&beginning)).await, 7).await;
        assert_eq!(all.1, after, "who was there before the first match gets all");
    }

    // Who names no place begins now; and what comes now comes behind what was kept.
    let (mut fresh, mut old) = (events(&second, "", None).await, events(&second, "", Some(&place)).await);
    tell(&bench, "a", named("a", 5..6)).await;
    assert_eq!(posts(&mut fresh, 1).await.0, ["a5"]);
    assert_eq!(posts(&mut old, 5).await.0.last().map(String::as_str), Some("a5"));
    for worker in [first, second] {
        stop(worker).await;
    }
    assert_eq!(old.event().await, None, "nothing came twice");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_kept_is_told_as_a_gap_and_a_foreign_id_refused() {
    let bench = Bench::new(&[]).await;
    tell(&bench, "a", named("a", 0..300)).await;
    let worker = serve(&bench, "127.0.0.1:0").await;
    let mut stream = events(&worker, "", Some("none")).await;
    let gap = stream.event().await.expect("a gap");
    assert_eq!(gap.name, "gap");
    assert_eq!(posts(&mut stream, 256).await.0, named("a", 44..300), "what was read at the start");
    // Behind the gap nothing lacks.
    let mut again = events(&worker, "", gap.id.as_deref()).await;
    assert_eq!(again.event().await.map(|event| (event.name, event.id)), Some(("position".to_owned(), gap.id)));
    assert_eq!(posts(&mut again, 256).await.0, named("a", 44..300));

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
    let place = posts(&mut all, 140).await.1;
    let (begin, moved) = (quiet.event().await.expect("a position"), quiet.event().await.expect("another"));
    assert_eq!((begin.name.as_str(), moved.name.as_str()), ("position", "position"));
    assert!(moved.id.is_some() && moved.id != begin.id, "{moved:?}");
    // Who comes back learns that none of what came meanwhile is of its topic.
    let mut back = events(&worker, "?topic_id=b", begin.id.as_deref()).await;
    // Where it begins, and after 128 and all 140 of the other topic.
    for offset in [0, 128, 140] {
        let event = back.event().await.expect("a position");
        assert!(event.name == "position" && event.id.expect("an id").contains(&format!(":{offset}")));
    }
    // At its end it says where exactly.
    worker.shutdown.cancel();
    assert_eq!(quiet.event().await.expect("a position").id, Some(place));
    assert_eq!(quiet.event().await, None);
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
