//! What the embedded store alone promises: it survives a kill, keeps other processes out, and says what is wrong with a
//! folder.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use feedlens::metrics::Metrics;
use feedlens::post::point_id;
use feedlens::store::{Filter, HitParts, Order, Point, SharedStore, VectorName, VectorQuery, Write};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::store_support::{Bench, delete, post, stored, upsert, vector};

const CHILD_FOLDER: &str = "FEEDLENS_TEST_STORE_FOLDER";
const CHILD_STEP: &str = "FEEDLENS_TEST_STORE_STEP";

/// What step `step` of the killed writer writes: new posts, newer, older and equal versions, deletions.
fn writes_of(step: u64) -> Vec<Write> {
    let mut random = StdRng::seed_from_u64(step);
    let mut writes = (0..30).map(|number| upsert(&format!("new{step}/{number}"), 1)).collect::<Vec<_>>();
    for _ in 0..30 {
        let id = format!("old{}", random.random_range(0..200));
        let version = (step * 3 + random.random_range(0..9)).saturating_sub(4);
        // The same version is always the same post: whether it has a picture follows from it.
        writes.push(match random.random_range(0..4) {
            0 => delete(&id, version),
            _ if version.is_multiple_of(3) => Write::Upsert(Point { image: None, ..post(&id, version) }),
            _ => upsert(&id, version),
        });
    }
    writes
}

fn version(order: &Order) -> u64 {
    order.version.expect("these writes have versions")
}

/// What the store must hold after a step: version, whether deleted, whether there is an image vector.
#[derive(Default, Clone, Debug, PartialEq)]
struct Model(BTreeMap<String, (u64, bool, bool)>);

impl Model {
    fn apply(&mut self, writes: Vec<Write>) {
        for write in writes {
            let (id, entry) = match &write {
                Write::Delete(tombstone) => (tombstone.post_id.clone(), (version(&tombstone.order), true, false)),
                Write::Upsert(point) => {
                    let id = point.payload["post_id"].as_str().unwrap().to_owned();
                    (id, (version(&point.order), false, point.image.is_some()))
                }
            };
            let newer = |stored: &(u64, bool, bool)| (entry.0, entry.1) > (stored.0, stored.1);
            if self.0.get(&id).is_none_or(newer) {
                self.0.insert(id, entry);
            }
        }
    }

    fn live(&self) -> u64 {
        self.0.values().filter(|(_, deleted, _)| !deleted).count() as u64
    }
}

async fn state(store: &SharedStore, ids: &[String]) -> Model {
    let points = store.get(&ids.iter().map(|id| point_id(id)).collect::<Vec<_>>()).await.unwrap();
    Model(BTreeMap::from_iter(points.into_iter().map(|point| {
        let id = point.payload["post_id"].as_str().unwrap().to_owned();
        let version = point.payload["version"].as_u64().unwrap();
        let deleted = point.payload.contains_key("deleted");
        assert_eq!(point.caption.is_some(), !deleted, "{id}");
        (id, (version, deleted, point.image.is_some()))
    })))
}

/// Runs in a process of its own, which `a_killed_writer_loses_nothing_that_was_acknowledged` starts and kills.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "the child of another test"]
async fn killed_writer() {
    let (Ok(folder), Ok(step)) = (std::env::var(CHILD_FOLDER), std::env::var(CHILD_STEP)) else { return };
    let mut bench = bench_at(Path::new(&folder));
    // Syncs, optimises and checkpoints all the time, so that a kill falls into them.
    bench.config.edge.flush_interval = Duration::from_millis(1);
    bench.config.edge.optimize_after = 100;
    let metrics = Metrics::new();
    let store = feedlens::store::open(&bench.config, &bench.stamp, &metrics).await.unwrap();
    let checkpoints = || metrics.stage_seconds.with_label_values(&["checkpoint"]).get_sample_count();
    let mut line = std::io::stdout();
    for step in step.parse::<u64>().unwrap().. {
        let before = checkpoints();
        store.write(writes_of(step)).await.unwrap();
        writeln!(line, "acknowledged {step}").unwrap();
        // Now and then the optimisation ends before the next write, so that kills also find its traces.
        while step % 8 == 7 && checkpoints() == before {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

fn bench_at(folder: &Path) -> Bench {
    let mut bench = Bench::edge();
    bench.config.edge.dir = folder.to_owned();
    bench.config.edge.optimize_after = 1_000_000;
    bench
}

/// Starts the writer at a step, kills it after so many acknowledged steps and so much time, and returns the last step
/// that it acknowledged.
fn write_and_kill(folder: &Path, from: u64, steps: u64, delay: Duration) -> Option<u64> {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "store_edge::killed_writer", "--ignored", "--nocapture", "--test-threads=1"])
        .env(CHILD_FOLDER, folder)
        .env(CHILD_STEP, from.to_string())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut acknowledged = None;
    let mut read = |lines: &mut dyn Iterator<Item = std::io::Result<String>>, until: Option<u64>| {
        for line in lines {
            let line = line.unwrap();
            // The harness prints the test's name before the first line.
            if let Some((_, step)) = line.rsplit_once("acknowledged ") {
                acknowledged = Some(step.parse().unwrap());
            }
            if until.is_some() && acknowledged >= until {
                return true;
            }
        }
        false
    };
    let reached = steps == 0 || read(&mut lines, Some(from + steps - 1));
    // Spread over what the writer does after the last step; nothing is waited for.
    let begin = Instant::now();
    while begin.elapsed() < delay {
        std::hint::spin_loop();
    }
    child.kill().unwrap();
    read(&mut lines, None);
    let output = child.wait_with_output().unwrap();
    assert!(reached, "the writer ended by itself: {}", String::from_utf8_lossy(&output.stderr));
    acknowledged
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_writer_loses_nothing_that_was_acknowledged() {
    let place = tempfile::tempdir().unwrap();
    let folder = place.path().join("store");
    let mut random = StdRng::seed_from_u64(1);
    let mut model = Model::default();
    let mut next = 0;
    let kills = std::env::var("FEEDLENS_TEST_KILLS").map_or(9, |kills| kills.parse().unwrap());
    for kill in 0..kills {
        let (steps, delay) = (random.random_range(0..16), Duration::from_micros(random.random_range(0..20_000)));
        let acknowledged = {
            let folder = folder.clone();
            tokio::task::spawn_blocking(move || write_and_kill(&folder, next, steps, delay)).await.unwrap()
        };
        let end = acknowledged.map_or(next, |step| step + 1);
        (next..end).for_each(|step| model.apply(writes_of(step)));
        next = end;
        // Every third kill is looked at: the others are followed by a writer that recovers and is killed again.
        if kill % 3 != 2 && kill + 1 != kills {
            continue;
        }
        let store = bench_at(&folder).open().await;
        let mut with_next = model.clone();
        with_next.apply(writes_of(next));
        let ids = with_next.0.keys().cloned().collect::<Vec<_>>();
        let found = state(&store, &ids).await;
        // The step under way at the kill is there as a whole or not at all.
        if found == with_next {
            model = with_next;
        }
        for (id, expected) in &model.0 {
            assert_eq!(found.0.get(id), Some(expected), "{id} after kill {kill}, step {next}");
        }
        assert_eq!(found, model);
        assert_eq!(store.count().await.unwrap(), model.live(), "after kill {kill}");
        for seed in 0..20 {
            let query = VectorQuery {
                vector: vector(seed),
                using: VectorName::Caption,
                filter: Filter::default(),
                limit: 50,
                with: HitParts::default(),
            };
            let mut ids = store.search(query).await.unwrap().into_iter().map(|hit| hit.id).collect::<Vec<_>>();
            let hits = ids.len();
            ids.sort();
            ids.dedup();
            assert_eq!(ids.len(), hits, "a post is found once");
        }
        store.close().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_optimised_store_answers_as_before_and_takes_newer_writes() {
    let mut bench = Bench::edge();
    bench.config.edge.optimize_after = 300;
    let metrics = Metrics::new();
    let store = feedlens::store::open(&bench.config, &bench.stamp, &metrics).await.unwrap();
    let id = |number: u64| format!("p{number}");
    store.write((0..400).map(|number| upsert(&id(number), 1)).collect()).await.unwrap();
    let optimised = || metrics.stage_seconds.with_label_values(&["checkpoint"]).get_sample_count() > 0;
    let deadline = Instant::now() + Duration::from_secs(60);
    while !optimised() {
        assert!(Instant::now() < deadline, "no optimisation in the background");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(metrics.stage_seconds.with_label_values(&["optimize"]).get_sample_count() > 0);
    // Points in an optimised segment are moved when they are written anew.
    let mut writes = (0..100).map(|number| delete(&id(number), 2)).collect::<Vec<_>>();
    writes.extend((100..200).map(|number| Write::Upsert(Point { image: None, ..post(&id(number), 2) })));
    writes.extend((200..300).map(|number| upsert(&id(number), 2)));
    writes.extend((300..400).map(|number| upsert(&id(number), 0)));
    store.write(writes).await.unwrap();
    assert_eq!(store.count().await.unwrap(), 300);
    for number in 0..400 {
        let point = store.get(&[point_id(&id(number))]).await.unwrap().remove(0);
        let (version, image, caption) = match number {
            0..100 => (2, false, false),
            100..200 => (2, false, true),
            200..300 => (2, true, true),
            _ => (1, true, true),
        };
        assert_eq!(point.payload["version"], version, "{number}");
        assert_eq!((point.image.is_some(), point.caption.is_some()), (image, caption), "{number}");
    }
    for number in 200..400 {
        let image = post(&id(number), if number < 300 { 2 } else { 1 }).image.unwrap();
        let query = VectorQuery {
            vector: image,
            using: VectorName::Image,
            filter: Filter::default(),
            limit: 1,
            with: HitParts::default(),
        };
        let hit = store.search(query).await.unwrap().remove(0);
        assert!(hit.score > 0.9999 && hit.id == point_id(&id(number)), "{number}: {hit:?}");
    }
    store.close().await.unwrap();
}

/// A kill while an optimisation swaps segments leaves the old one beside the new one: too short a moment for the killed
/// writer above to hit it.
#[tokio::test(flavor = "multi_thread")]
async fn points_that_a_kill_left_twice_are_there_once() {
    let bench = Bench::edge();
    let store = bench.open().await;
    store.write((0..1_500).map(|number| upsert(&format!("p{number}"), 1)).collect()).await.unwrap();
    store.write((0..100).map(|number| delete(&format!("p{number}"), 2)).collect()).await.unwrap();
    store.close().await.unwrap();
    let segments = bench.config.edge.dir.join("segments");
    for (number, segment) in std::fs::read_dir(&segments).unwrap().collect::<Vec<_>>().into_iter().enumerate() {
        let copy = segments.join(format!("00000000-0000-4000-8000-{number:012}"));
        let copied = Command::new("cp").arg("-r").arg(segment.unwrap().path()).arg(copy).status().unwrap();
        assert!(copied.success());
    }
    // There is a journal where no orderly end came before.
    std::fs::write(bench.config.edge.dir.join("feedlens.journal"), "").unwrap();
    for round in 2..4 {
        let store = bench.open().await;
        assert_eq!(store.count().await.unwrap(), 1_400, "round {round}");
        let image = post("p500", round - 1).image.unwrap();
        let query = VectorQuery {
            vector: image,
            using: VectorName::Image,
            filter: Filter::default(),
            limit: 2_000,
            with: HitParts::default(),
        };
        let hits = store.search(query).await.unwrap();
        assert_eq!((hits.len(), hits[0].id), (1_400, point_id("p500")));
        assert_eq!(stored(&store, "p7").await, Some((2, true)));
        store.write(vec![upsert("p500", round)]).await.unwrap();
        store.close().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn engines_own_log_does_not_grow_for_ever_and_newer_writes_still_win() {
    let bench = Bench::edge();
    let id = |number: u64| format!("p{number}");
    let log = bench.config.edge.dir.join("wal");
    let full_files = || {
        let names = std::fs::read_dir(&log).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.starts_with("closed-")).count()
    };
    let store = bench.open().await;
    // A file of the log holds 32 MiB.
    for batch in 0..24u64 {
        let writes = (0..64).map(|number| {
            let mut post = post(&id(batch * 64 + number), 1);
            post.payload.insert("caption".to_owned(), "x".repeat(65_536).into());
            Write::Upsert(post)
        });
        store.write(writes.collect()).await.unwrap();
    }
    assert!(full_files() >= 2, "the test writes too little");
    store.close().await.unwrap();
    let store = bench.open().await;
    assert_eq!(full_files(), 1);
    store.close().await.unwrap();
    let store = bench.open().await;
    store.write((0..1_536).map(|number| upsert(&id(number), 2)).collect()).await.unwrap();
    for number in 0..1_536 {
        assert_eq!(stored(&store, &id(number)).await, Some((2, false)), "{number}");
    }
    store.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn second_opener_is_told_that_the_folder_is_in_use() {
    let bench = Bench::edge();
    let store = bench.open().await;
    let detail = bench.open_error().await;
    assert!(detail.contains("in use") && detail.contains("store.edge.dir"), "{detail}");
    store.close().await.unwrap();
    bench.open().await.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn closed_store_says_so() {
    let bench = Bench::edge();
    let store = bench.open().await;
    store.close().await.unwrap();
    store.close().await.unwrap();
    for error in [store.write(vec![upsert("p", 1)]).await.unwrap_err(), store.ready().await.unwrap_err()] {
        assert!(error.to_string().contains("closed"), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn folders_that_cannot_serve_are_named() {
    let bench = Bench::edge();
    let folder = bench.config.edge.dir.parent().unwrap().to_owned();

    let mut file = Bench::edge();
    file.config.edge.dir = folder.join("file");
    std::fs::write(&file.config.edge.dir, "not a folder").unwrap();
    let detail = file.open_error().await;
    assert!(detail.contains(&file.config.edge.dir.display().to_string()), "{detail}");

    let mut foreign = Bench::edge();
    foreign.config.edge.dir = folder.join("photos");
    std::fs::create_dir(&foreign.config.edge.dir).unwrap();
    std::fs::write(foreign.config.edge.dir.join("cat.jpg"), "").unwrap();
    let detail = foreign.open_error().await;
    assert!(detail.contains("cat.jpg") && detail.contains("store.edge.dir"), "{detail}");
    assert_eq!(std::fs::read_dir(&foreign.config.edge.dir).unwrap().count(), 1, "nothing is written there");

    bench.open().await.close().await.unwrap();
    let stamp = bench.config.edge.dir.join("feedlens.json");
    std::fs::write(&stamp, "{").unwrap();
    let detail = bench.open_error().await;
    assert!(detail.contains("feedlens.json"), "{detail}");
}

#[cfg(target_os = "linux")]
#[test]
fn folder_without_permission_is_named() {
    use std::os::unix::fs::PermissionsExt as _;
    let test = || {
        // Root may write everywhere: from here on this thread, and those that it starts, are somebody else to the file
        // system. SAFETY: changes nothing in memory.
        unsafe { libc::setfsuid(65_534) };
        let bench = Bench::edge();
        let folder = &bench.config.edge.dir;
        std::fs::create_dir(folder).unwrap();
        std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o500)).unwrap();
        assert!(std::fs::write(folder.join("probe"), "").is_err(), "this user may write everywhere");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let detail = runtime.block_on(bench.open_error());
        assert!(detail.contains(&folder.display().to_string()) && detail.contains("store.edge.dir"), "{detail}");
    };
    std::thread::spawn(test).join().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn other_alias_is_refused() {
    let mut bench = Bench::edge();
    bench.open().await.close().await.unwrap();
    bench.config.alias = "others".to_owned();
    let detail = bench.open_error().await;
    assert!(detail.contains("\"posts\"") && detail.contains("\"others\""), "{detail}");
}
