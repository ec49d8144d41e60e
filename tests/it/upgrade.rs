//! A change of the model under load, with the real binary, a real Qdrant server and a broker: no search fails, none is
//! answered with the wrong model's vectors, and after the change no post lacks and none that was deleted is back.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::Mutex;

use crate::binary::root;
use crate::kafka_support::wait_until;
use crate::running::Running;
use crate::upgrade_support::{NEW, OLD, Site, reversed_model, stored};

const IDS: u64 = 40;
const TOPIC: &str = "红苹果";
/// Its picture is the red apple, which no other post has.
const ANCHOR: &str = "anchor";

/// What the feed has come to: the version of each post, or that it is deleted; and the messages that are no posts.
#[derive(Default)]
struct Feed {
    posts: BTreeMap<String, (u64, bool)>,
    bad: usize,
}

async fn feed(site: &Site, feed: &Mutex<Feed>, stop: &AtomicBool) {
    let pictures = ["1f004.png", "00a9.png", "1f17e.png", "0033-20e3.png"];
    for number in 1.. {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        // The post first: what is written down here was acknowledged.
        let (id, version) = (format!("p{}", number % IDS), number);
        let mut feed = feed.lock().await;
        match number % 11 {
            5 => {
                site.delete(&id, version).await;
                feed.posts.insert(id, (version, false));
            }
            7 => {
                site.send(&format!("bad{number}"), Some("{"), &[]).await;
                feed.bad += 1;
            }
            rest => {
                let picture = match rest % 2 {
                    0 => json!({"path": pictures[number as usize % pictures.len()]}),
                    _ => Value::Null,
                };
                site.post(&id, version, picture).await;
                feed.posts.insert(id, (version, true));
            }
        }
        drop(feed);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Asks whoever answers at the moment, all the time; what was wrong.
async fn ask(target: &Mutex<(String, &'static str)>, stop: &AtomicBool) -> Result<usize, String> {
    let client = reqwest::Client::new();
    let (mut asked, mut first) = (0, None);
    while !stop.load(Ordering::Relaxed) {
        // Held until the answer is there, as a balancer lets a worker answer what it was given.
        let target = target.lock().await;
        let (listen, model) = (&target.0, target.1);
        let answer = client.get(format!("http://{listen}/v1/search?q={TOPIC}&top_k=3")).send().await;
        let answer = answer.map_err(|error| format!("search {asked}: {error}"))?;
        let status = answer.status();
        let text = answer.text().await.map_err(|error| error.to_string())?;
        drop(target);
        let json: Value = serde_json::from_str(&text).map_err(|error| format!("{error}: {text}"))?;
        let hit = &json["hits"][0];
        let score = hit["score"].as_f64().unwrap_or(f64::NAN);
        let expected = *first.get_or_insert(score);
        if status != 200 || json["model"] != model || hit["post_id"] != ANCHOR || (score - expected).abs() > 0.01 {
            return Err(format!("search {asked} of {model} (score {expected} at first): {status} {text}"));
        }
        asked += 1;
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(asked)
}

async fn ready(worker: &Running, what: &str) {
    wait_until(&format!("{what} ready"), async || {
        tokio::task::block_in_place(|| worker.get("/readyz")).is_some_and(|(status, _)| status == 200)
    })
    .await;
}

async fn ended(worker: Running) {
    worker.terminate();
    let (code, log) = tokio::task::spawn_blocking(|| worker.end()).await.expect("no panic");
    assert_eq!(code, Some(0), "{log}");
}

fn queries(folder: &Path) -> String {
    let file = folder.join("queries.jsonl");
    std::fs::write(
        &file,
        format!("{{\"text\": \"{TOPIC}\", \"post_id\": \"{ANCHOR}\"}}\n{{\"text\": \"red apple\"}}\n"),
    )
    .expect("writes");
    file.display().to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upgrade_under_load_fails_no_search_and_loses_no_post() {
    let Some(site) = Site::new("upgrade") else { return };
    upgrade(site.into()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upgrade_under_load_on_a_real_kafka() {
    let Some(site) = Site::on_real_kafka("upgrade-real").await else { return };
    upgrade(site.into()).await;
}

async fn upgrade(site: Arc<Site>) {
    let (old, new_model) = (root().join("models/small"), reversed_model());
    let new = new_model.path();
    let folder = tempfile::tempdir().expect("a folder");
    let queries = queries(folder.path());
    site.post(ANCHOR, 1, json!({"path": "1f34e.png"})).await;

    let (ingest, _) = site.start(&["ingest"], &old);
    let (query, listen) = site.start(&["query"], &old);
    ready(&ingest, "ingest").await;
    ready(&query, "query").await;
    wait_until("the first post", async || tokio::task::block_in_place(|| ingest.settled()) > 0).await;
    let (stop_feed, stop_asking) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let target = Arc::new(Mutex::new((listen, OLD)));
    let told = Arc::new(Mutex::new(Feed::default()));
    let feeding = {
        let (site, told, stop) = (site.clone(), told.clone(), stop_feed.clone());
        tokio::spawn(async move { feed(&site, &told, &stop).await })
    };
    let asking = {
        let (target, stop) = (target.clone(), stop_asking.clone());
        tokio::spawn(async move { ask(&target, &stop).await })
    };

    // Beside the live workers, the new model cannot start, and its collection is filled.
    let (code, _, log) = site.run(&["ingest"], new).await;
    assert!(
        code == Some(1) && log.contains("feedlens collection reindex") && log.contains(&site.collection(OLD)),
        "{log}"
    );
    let (reindex, _) = site.start(&["collection", "reindex"], new);
    wait_until("the reindex to catch up", async || {
        let mut reindex = reindex.log();
        reindex.retain(|character| character != '\n');
        reindex.contains("keeping the collection up to date")
    })
    .await;
    ready(&reindex, "reindex").await;

    // The change, and the rolling restart, while posts come in and searches are asked.
    let arguments = [
        "collection",
        "alias",
        "--live-model",
        old.to_str().expect("a path"),
        "--queries",
        &queries,
        // Fifty changes a second to some forty posts, in one collection before the other: both never hold quite the same. Of
        // forty, strangers would have a quarter in common.
        "--min-overlap",
        "0.5",
    ];
    let (code, said, log) = site.run(&[&arguments[..], &["--min-recall", "100"]].concat(), new).await;
    assert_eq!(code, Some(0), "{said}{log}");
    let back = format!("feedlens collection alias --to {} --force", site.collection(OLD));
    assert!(said.contains(&back) && said.contains("only in the live collection: 0"), "{said}");
    ready(&query, "the old query worker still").await;
    let (new_query, new_listen) = site.start(&["query"], new);
    ready(&new_query, "the new query worker").await;
    *target.lock().await = (new_listen, NEW);
    ended(query).await;
    ended(ingest).await;
    let (new_ingest, _) = site.start(&["ingest"], new);
    ready(&new_ingest, "the new ingest worker").await;
    stop_feed.store(true, Ordering::Relaxed);
    feeding.await.expect("no panic");
    // Until here it kept what the old workers took from the group, and now it says so.
    let before = reindex.log().len();
    wait_until("the reindex to be up to date", async || reindex.log()[before..].contains("up to date: all messages"))
        .await;
    ended(reindex).await;
    let (code, problems, log) = site.run(&["collection", "reindex", "--once"], new).await;
    assert_eq!((code, problems.as_str()), (Some(0), ""), "{log}");

    let store = site.store(NEW).await;
    let told = told.lock().await;
    assert!(told.posts.len() as u64 == IDS && told.bad > 0 && told.posts.values().any(|(_, is_post)| !is_post));
    let posts = 1 + told.posts.values().filter(|(_, is_post)| *is_post).count() as u64;
    wait_until("the last posts", async || store.count().await.expect("counts") == posts).await;
    for (id, (version, is_post)) in &told.posts {
        let (point, is_there) = stored(&store, id).await.unwrap_or_else(|| panic!("{id} lacks"));
        assert_eq!((is_there, &point.payload["version"]), (*is_post, &json!(version)), "{id}");
        assert!(!is_post || point.payload["model"] == NEW, "{id}: {:?}", point.payload);
    }
    assert_eq!(dead_letters(&site).await, told.bad, "each bad post once, by the live workers");

    // And back, while searches are asked: at first without what only the new model's workers have seen.
    let to_old = site.collection(OLD);
    let (code, said, log) = site.run(&["collection", "alias", "--to", &to_old, "--force"], new).await;
    assert_eq!(code, Some(0), "{said}{log}");
    let (query, listen) = site.start(&["query"], &old);
    ready(&query, "the old model's query worker").await;
    *target.lock().await = (listen, OLD);
    ended(new_query).await;
    stop_asking.store(true, Ordering::Relaxed);
    let asked = asking.await.expect("no panic").expect("every search is answered");
    assert!(asked > 100, "{asked} searches");
    ended(new_ingest).await;
    ended(query).await;
    // Nothing is embedded twice in vain: the way back fills what lacks.
    let (code, problems, log) = site.run(&["collection", "reindex", "--once"], &old).await;
    assert_eq!((code, problems.as_str()), (Some(0), ""), "{log}");
    let store = site.store(OLD).await;
    for (id, (version, is_post)) in &told.posts {
        let (point, is_there) = stored(&store, id).await.unwrap_or_else(|| panic!("{id} lacks"));
        assert_eq!((is_there, &point.payload["version"]), (*is_post, &json!(version)), "{id}");
        assert!(!is_post || point.payload["model"] == OLD, "{id}: {:?}", point.payload);
    }
}

/// Messages in the dead-letter topic.
async fn dead_letters(site: &Site) -> usize {
    let kafka = site.kafka.clone();
    let letters = tokio::task::spawn_blocking(move || {
        feedlens::kafka::dead_letter::Letters::open(&kafka).expect("opens").map_or(0, |letters| letters.offsets())
    });
    letters.await.expect("no panic") as usize
}
