//! Standing topics on the page: the demo through the real binary, its broker, model and store, and headless Chromium.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Stdio};

use fantoccini::Locator;
use serde_json::json;

use crate::binary::feedlens;
use crate::browser::Browser;
use crate::query_support::{DRAWINGS, Worker, drawing_base64};

/// A demo whose feed comes again and again, as edits of the same posts.
struct Demo {
    process: Child,
    url: String,
    _folder: tempfile::TempDir,
}

impl Demo {
    fn start() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let lines = DRAWINGS.iter().map(|(code, caption)| {
            let image = json!({"base64": drawing_base64(code)});
            json!({"post_id": format!("demo:{code}"), "caption": caption, "lang": "zh", "image": image}).to_string()
                + "\n"
        });
        let feed = folder.path().join("feed.jsonl");
        std::fs::write(&feed, lines.collect::<String>()).expect("writes");
        let mut process =
            feedlens(&["demo", "--rate", "20", "--set", "query.listen=127.0.0.1:0", "--set", "admin.listen="])
                .arg("--posts")
                .arg(&feed)
                .stdout(Stdio::piped())
                .stderr(Stdio::null())
                .spawn()
                .expect("starts");
        let mut told = BufReader::new(process.stdout.take().expect("piped")).lines().map_while(Result::ok);
        let url = told.find_map(|line| Some(line.strip_prefix("the page: ")?.split(' ').next()?.to_owned()));
        // Read on, or the demo would stop at a full pipe.
        std::thread::spawn(move || told.for_each(drop));
        Self { process, url: url.expect("the demo says where its page is"), _folder: folder }
    }

    fn stop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        self.stop();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watched_topic_gets_its_matches_live_until_it_is_removed() {
    let Some(browser) = Browser::open("en").await else { return };
    let mut demo = tokio::task::spawn_blocking(Demo::start).await.expect("starts");
    browser.client.goto(&format!("{}/?q=红苹果", demo.url)).await.expect("opens");
    browser.until("document.getElementById('stream').dataset.state === 'live'").await;
    browser.until("Number(document.getElementById('live-rate').textContent) > 0").await;
    browser.until("document.getElementById('live').dataset.state === 'flowing'").await;
    browser.until("document.getElementById('live-lag').checkVisibility()").await;
    browser.until("document.getElementById('watch-this').checkVisibility()").await;
    browser.click("#watch-this").await;
    browser.until("document.querySelectorAll('#topics .topic-row').length === 1").await;
    browser.until("document.getElementById('watch-this').ariaPressed === 'true'").await;

    let apples = "[...document.querySelectorAll('#matches .match')].find(m =>
        m.querySelector('.match-caption').textContent === '红苹果')";
    browser.until(apples).await;
    browser.until(&format!("({apples}).querySelector('img').naturalWidth > 0")).await;
    browser.until(&format!("({apples}).querySelector('.match-topic').textContent === '红苹果'")).await;
    browser.until("Number(document.querySelector('.topic-count').textContent) >= 1").await;
    // A screen reader is told, too.
    browser.until("/new match/.test(document.getElementById('announce').textContent)").await;

    // The topic is the server's: another visit sees it.
    browser.client.goto(&demo.url).await.expect("opens");
    browser.until("document.querySelector('.topic-name')?.textContent === '红苹果'").await;
    browser.click(".topic-name").await;
    browser.until("document.title === '红苹果 · feedlens'").await;
    browser.until(apples).await;
    browser.script(&format!("({apples}).querySelector('.match-open').click();")).await;
    browser.until("location.search.startsWith('?post=demo%3A1f34e')").await;

    browser.click(".topic-remove").await;
    browser.until("document.querySelectorAll('#topics .topic-row').length === 0").await;
    browser.client.refresh().await.expect("reloads");
    browser.until("document.getElementById('stream').dataset.state === 'live'").await;
    browser.until("document.querySelectorAll('#topics .topic-row').length === 0").await;

    // The stream's end is not hidden.
    tokio::task::spawn_blocking(move || demo.stop()).await.expect("stops");
    browser.until("document.getElementById('stream').dataset.state === 'down'").await;
    browser.until("/^interrupted, again in \\d+ s$/.test(document.getElementById('stream-text').textContent)").await;
    browser.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_standing_topics_says_so() {
    let Some(browser) = Browser::open("en").await else { return };
    let worker = Worker::start(&[]).await;
    browser.client.goto(&format!("{}/?q=水果", worker.url)).await.expect("opens");
    browser.until_cards(5).await;
    browser
        .until("document.getElementById('topics-note').textContent === 'This server keeps no standing topics.'")
        .await;
    let watch = browser.client.find(Locator::Id("watch-this")).await.expect("the button");
    assert!(!watch.is_displayed().await.expect("an answer"));
    browser.close().await;
}
