//! A disk that runs full under the embedded store: a small file system of its own, filled while the real worker writes.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use feedlens::store::Write;

use crate::kafka_support::wait_until;
use crate::outage_support::{Disk, Feed, MIB, ends_having_told_once, says};
use crate::store_support::{Bench, post};

const NO_SPACE: &str = "no space left on the device of store.edge.dir";
const REASON: &str = "store_no_space";
const RETRIED: &str = "feedlens_posts_retried_total{reason=\"store_no_space\"}";

fn feed_to(disk: &Disk) -> Feed {
    Feed::new(vec!["store.kind=edge".to_owned(), format!("store.edge.dir={}", disk.path().display())])
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_pauses_ingest_until_there_is_room() {
    let Some(disk) = Disk::new(300 * MIB) else { return };
    let mut feed = feed_to(&disk);
    let mut running = feed.worker(&[]);
    feed.send(200).await;
    feed.indexed(&mut running).await;
    disk.leave(100 * MIB);
    feed.send(300).await;
    says(&mut running, REASON, NO_SPACE).await;
    // To the last byte, and the background work goes by too.
    disk.leave(0);
    let before = running.metric(RETRIED);
    wait_until("some more attempts", async || running.metric(RETRIED) >= before + 1_000.0).await;
    assert_eq!(running.metric("feedlens_posts_indexed_total"), 200.0);
    assert_eq!(running.get("/livez").map(|(status, _)| status), Some(200), "a restart makes no room");
    disk.make_room();
    feed.indexed(&mut running).await;
    ends_having_told_once(running, REASON, NO_SPACE);
    feed.is_all_there().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_is_stopped_while_the_disk_is_full_loses_nothing() {
    let Some(disk) = Disk::new(300 * MIB) else { return };
    let mut feed = feed_to(&disk);
    // Nothing is flushed before the disk is full.
    let mut running = feed.worker(&["store.edge.flush_interval=1h"]);
    feed.send(200).await;
    feed.indexed(&mut running).await;
    disk.leave(0);
    feed.send(300).await;
    says(&mut running, REASON, NO_SPACE).await;
    running.terminate();
    let (code, log) = running.end();
    assert_eq!(code, Some(0), "{log}");
    let (code, log) = feed.worker(&[]).end();
    let last = log.lines().last().unwrap_or_default();
    assert!(code == Some(1) && last.starts_with("feedlens: ") && last.contains(NO_SPACE), "{log}");
    disk.make_room();
    let mut running = feed.worker(&[]);
    feed.indexed(&mut running).await;
    running.terminate();
    let (code, log) = running.end();
    assert_eq!(code, Some(0), "{log}");
    feed.is_all_there().await;
}

const CHILD_FOLDER: &str = "FEEDLENS_TEST_FULL_DISK";
const CHILD_STEP: &str = "FEEDLENS_TEST_FULL_DISK_STEP";
const STEP_POSTS: u64 = 32;

/// Large posts, so that the engine's files grow.
fn writes_of(step: u64) -> Vec<Write> {
    let posts = (step * STEP_POSTS..(step + 1) * STEP_POSTS).map(|number| {
        let mut post = post(&format!("p{number}"), 1);
        post.payload.insert("caption".to_owned(), number.to_string().repeat(20_000).into());
        Write::Upsert(post)
    });
    posts.collect()
}

fn bench_at(folder: &Path) -> Bench {
    let mut bench = Bench::edge();
    bench.config.edge.dir = folder.to_owned();
    bench
}

/// Runs in a process of its own: writes until the disk is full.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "the child of another test"]
async fn writer_until_the_disk_is_full() {
    let (Ok(folder), Ok(step)) = (std::env::var(CHILD_FOLDER), std::env::var(CHILD_STEP)) else { return };
    let store = bench_at(Path::new(&folder)).open().await;
    for step in step.parse::<u64>().unwrap().. {
        if let Err(fault) = store.write(writes_of(step)).await {
            eprintln!("{fault:?}");
            std::process::exit(2);
        }
        println!("acknowledged {step}");
    }
}

/// What another program does that takes the last byte between the look and the write: here nothing is looked at.
#[tokio::test(flavor = "multi_thread")]
async fn a_disk_without_a_page_left_ends_the_process_with_a_sentence_and_loses_nothing() {
    let Some(disk) = Disk::new(400 * MIB) else { return };
    let (mut next, mut ends) = (0, BTreeMap::<Option<i32>, usize>::new());
    for left in [32, 40, 48, 56, 64].map(|left| left * MIB) {
        disk.leave(left);
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "full_disk::writer_until_the_disk_is_full", "--ignored", "--nocapture"])
            .env(CHILD_FOLDER, disk.path())
            .env(CHILD_STEP, next.to_string())
            .output()
            .unwrap();
        disk.make_room();
        let (told, said) = (String::from_utf8_lossy(&child.stdout), String::from_utf8_lossy(&child.stderr));
        let acknowledged = told.lines().filter_map(|line| line.rsplit_once("acknowledged ")?.1.parse::<u64>().ok());
        next = acknowledged.max().map_or(next, |step| step + 1);
        let sentence = match child.status.code() {
            Some(1) => "feedlens: the system has no page",
            Some(2) => "no space left on the device of store.edge.dir",
            _ => "the store in",
        };
        assert!(said.contains(sentence), "{left} left, {:?}: {said}", child.status);
        *ends.entry(child.status.code()).or_default() += 1;
        // The step under way is there as a whole or not at all.
        let store = bench_at(&disk.path()).open().await;
        let count = store.count().await.unwrap();
        assert!([next, next + 1].contains(&(count / STEP_POSTS)) && count % STEP_POSTS == 0, "{count}, step {next}");
        for step in 0..next {
            let ids = writes_of(step).iter().map(Write::id).collect::<Vec<_>>();
            let found = store.get(&ids).await.unwrap();
            assert!(found.len() as u64 == STEP_POSTS && found.iter().all(|point| point.image.is_some()), "{step}");
        }
        store.close().await.unwrap();
    }
    assert!(ends.contains_key(&Some(1)), "the engine never met the full disk: {ends:?}");
}
