//! `feedlens collection reindex` by several processes that are killed and started again, and from a time on: nothing lacks
//! after it, nothing is there that should not be, and nothing is read in vain.

use std::collections::BTreeMap;

use chrono::{SecondsFormat, Utc};
use feedlens::store::SharedStore;
use futures::future::join_all;
use serde_json::{Value, json};

use crate::binary::root;
use crate::kafka_support::wait_until;
use crate::reindex::index;
use crate::running::Running;
use crate::upgrade_support::{NEW, OLD, Site, reversed_model, stored};

/// What the feed has come to: the version of each post, and whether it is there.
type Expected = BTreeMap<String, (u64, bool)>;

/// Posts that only the live collection has, some pages of a scroll; and posts of the topics.
const KEPT: u64 = 300;
const IN_TOPICS: u64 = 200;
const PICTURES: [&str; 4] = ["1f004.png", "00a9.png", "1f17e.png", "0033-20e3.png"];

async fn post(site: &Site, id: String, version: u64, expected: &mut Expected) -> u64 {
    let picture = PICTURES[(version + expected.len() as u64) as usize % PICTURES.len()];
    site.post(&id, version, json!({"path": picture})).await;
    expected.insert(id, (version, true));
    1
}

async fn is_as_expected(store: &SharedStore, model: &str, expected: &Expected) {
    let posts = expected.values().filter(|(_, is_post)| *is_post).count() as u64;
    assert_eq!(store.count().await.expect("counts"), posts);
    for (id, (version, is_post)) in expected {
        let (point, is_there) = stored(store, id).await.unwrap_or_else(|| panic!("{id} lacks"));
        assert_eq!((is_there, &point.payload["version"]), (*is_post, &json!(version)), "{id}");
        assert!(!is_post || point.payload["model"] == model && point.image.is_some(), "{id}: {:?}", point.payload);
    }
}

fn settled(workers: &[Running]) -> u64 {
    tokio::task::block_in_place(|| workers.iter().map(Running::settled).sum())
}

fn kill(worker: Running) {
    worker.signal(libc::SIGKILL);
    let (code, log) = tokio::task::block_in_place(|| worker.end());
    assert_eq!(code, None, "it had not ended by itself: {log}");
}

async fn killed_and_started_again(mut site: Site) {
    let mut expected = Expected::new();
    let kept = (0..KEPT).map(|number| format!("kept{number}")).collect::<Vec<_>>();
    join_all(kept.iter().map(|id| site.post(id, 1, json!({"path": PICTURES[0]})))).await;
    expected.extend(kept.into_iter().map(|id| (id, (1, true))));
    index(&site, KEPT).await;
    site.forget_the_topics().await;
    let mut messages = 0;
    for number in 0..IN_TOPICS {
        messages += post(&site, format!("new{number}"), 1, &mut expected).await;
    }
    for number in (0..20).map(|number| number * 5) {
        messages += post(&site, format!("kept{number}"), 2, &mut expected).await;
        for id in [format!("kept{}", number + 1), format!("new{}", number + 1)] {
            site.delete(&id, 2).await;
            expected.insert(id, (2, false));
            messages += 1;
        }
    }
    index(&site, messages).await;
    is_as_expected(&site.store(OLD).await, OLD, &expected).await;

    let new = reversed_model();
    let reindex = || site.start(&["collection", "reindex"], new.path()).0;
    let mut workers = vec![reindex(), reindex(), reindex()];
    // Two are killed while they read the topics, one after the other, and others come.
    for done in [20, 60] {
        wait_until("some of the topics", async || settled(&workers) >= done).await;
        kill(workers.remove(0));
        workers.push(reindex());
    }
    let store = site.store(NEW).await;
    let of_topics =
        expected.iter().filter(|(id, (version, is_post))| *is_post && (id.starts_with("new") || *version == 2));
    let of_topics = of_topics.count() as u64;
    assert!(store.count().await.expect("counts") < of_topics, "they were killed in the middle");
    // And all of them while they carry over what the topics no longer hold.
    wait_until("some of the live collection", async || store.count().await.expect("counts") > of_topics).await;
    workers.into_iter().for_each(kill);
    let posts = expected.values().filter(|(_, is_post)| *is_post).count() as u64;
    assert!(store.count().await.expect("counts") < posts, "they were killed in the middle");

    let (code, problems, log) = site.run(&["collection", "reindex", "--once"], new.path()).await;
    assert_eq!((code, problems.as_str()), (Some(0), ""), "{log}");
    is_as_expected(&store, NEW, &expected).await;
    // Each write has the place that it has in the live collection.
    let old = site.store(OLD).await;
    for id in expected.keys() {
        let (before, after) = (stored(&old, id).await.expect("old"), stored(&store, id).await.expect("new"));
        assert_eq!(before.0.payload["source"], after.0.payload["source"], "{id}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn processes_that_are_killed_and_started_again_leave_nothing_out() {
    let Some(site) = Site::new("restarts") else { return };
    killed_and_started_again(site).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn processes_that_are_killed_and_started_again_leave_nothing_out_on_a_real_kafka() {
    let Some(site) = Site::on_real_kafka("restarts-real").await else { return };
    killed_and_started_again(site).await;
}

/// Messages that a reindex says it read.
fn read(log: &str) -> u64 {
    let stopped = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let mut told = stopped.filter_map(|line| line["fields"]["from_topics"].as_u64().or(line["from_topics"].as_u64()));
    told.next_back().unwrap_or_else(|| panic!("it does not say what it read: {log}"))
}

/// The way back of docs/upgrades.md.
#[tokio::test(flavor = "multi_thread")]
async fn since_a_time_the_old_collection_takes_in_only_what_came_after_it() {
    let Some(site) = Site::on_real_kafka("since").await else { return };
    let mut expected = Expected::new();
    for number in 0..20 {
        post(&site, format!("p{number}"), 1, &mut expected).await;
    }
    index(&site, 20).await;
    let (old, new) = (root().join("models/small"), reversed_model());
    let (code, _, log) = site.run(&["collection", "reindex", "--once"], new.path()).await;
    assert_eq!((code, read(&log)), (Some(0), 20), "{log}");
    let (code, _, log) = site.run(&["collection", "alias", "--force"], new.path()).await;
    assert_eq!(code, Some(0), "{log}");

    // Kafka counts in milliseconds.
    let changed = Utc::now().timestamp_millis();
    wait_until("the clock", async || Utc::now().timestamp_millis() > changed).await;
    let since = Utc::now().to_rfc3339_opts(SecondsFormat::Millis, true);
    for id in ["p1", "p2", "q1", "q2", "q3"] {
        post(&site, id.to_owned(), 2, &mut expected).await;
    }
    for id in ["p3", "q1"] {
        site.delete(id, 3).await;
        expected.insert(id.to_owned(), (3, false));
    }
    let (ingest, _) = site.start(&["ingest"], new.path());
    wait_until("the posts under the new model", async || settled(std::slice::from_ref(&ingest)) == 7).await;
    ingest.terminate();
    assert_eq!(tokio::task::block_in_place(|| ingest.end()).0, Some(0));
    is_as_expected(&site.store(NEW).await, NEW, &expected).await;

    let back = ["collection", "reindex", "--once", "--since", &since];
    for messages in [7, 0] {
        let (code, problems, log) = site.run(&back, &old).await;
        assert_eq!((code, problems.as_str(), read(&log)), (Some(0), "", messages), "{log}");
        is_as_expected(&site.store(OLD).await, OLD, &expected).await;
    }
}
