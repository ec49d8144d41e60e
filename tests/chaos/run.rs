//! One run on one store: all of its wiring on one screen.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use rdkafka::producer::DeliveryFuture;
use tokio::sync::{mpsc, watch as channel};
use tokio::task::JoinHandle;

use crate::audit::Auditor;
use crate::expect::Expected;
use crate::faults::{Happened, Scene};
use crate::findings::Findings;
use crate::host::Host;
use crate::kafka::{DEAD_LETTERS, GROUP, Kafka, POSTS, Record};
use crate::ledger::Ledger;
use crate::material::Material;
use crate::oracle::{self, Counts};
use crate::plan::Plan;
use crate::posts::Feed;
use crate::proxy::Proxy;
use crate::search::Searcher;
use crate::services::Services;
use crate::vectors::Vectors;
use crate::watch::{Resumed, Watch};
use crate::workers::Worker;
use crate::{ROOT, StoreKind, WORKERS, poison, stored};

/// Posts a second: two cores, which also run the broker and the store, must be able to catch up.
const RATE: f64 = 20.0;
/// Of so many posts, these come all at once.
const BURST_EACH: u64 = 500;
const BURSTS: std::ops::Range<u64> = 350..450;
const BEGIN_WITHIN: Duration = Duration::from_secs(90);
/// From the last fault's end until all is settled.
const SETTLE_WITHIN: Duration = Duration::from_secs(120);
/// What a worker may have in memory: with its model and libraries about 150 MiB, and the budgets of its settings: posts on
/// their way, pictures as they came and while they are decoded, librdkafka's read-ahead.
const MEMORY_KIB: u64 = 320 * 1024;

/// Runs; tells what came of it; whether everything held.
pub async fn run(seed: u64, time: Duration, store: StoreKind) -> bool {
    let folder = Path::new(ROOT).join(".cache/chaos").join(format!("{}-{seed}", store.name()));
    println!("chaos: seed {seed}, {:.1} min, store {}", time.as_secs_f64() / 60.0, store.name());
    let findings = Arc::new(Findings::new());
    let mut happened = Vec::new();
    let ended = tokio::select! {
        ended = perform(seed, time, store, &folder, findings.clone(), &mut happened) => ended,
        _ = tokio::signal::ctrl_c() => Err(anyhow::anyhow!("interrupted")),
    };
    if let Err(error) = ended {
        findings.add(format!("the run could not go on: {error:#}"));
    }
    let services = Services::at(services_folder(store), names(store));
    services.keep_logs(&folder);
    if let Err(error) = services.stop().await {
        findings.add(format!("{error:#}"));
    }
    let wrong = findings.all();
    if wrong.is_empty() {
        println!("chaos: PASSED, seed {seed}, store {}", store.name());
        let _ = std::fs::remove_dir_all(folder.join("store"));
        return true;
    }
    println!(
        "\nchaos: FAILED, seed {seed}, store {}, {} findings; logs in {}",
        store.name(),
        wrong.len(),
        folder.display()
    );
    println!("the schedule so far:");
    happened.iter().for_each(|fault: &Happened| println!("  {fault}"));
    wrong.iter().for_each(|line| println!("- {line}"));
    println!("again: make chaos SEED={seed} MINUTES={} STORE={}", time.as_secs_f64() / 60.0, store.name());
    false
}

fn names(store: StoreKind) -> &'static [&'static str] {
    match store {
        StoreKind::Edge => &["kafka"],
        StoreKind::Qdrant => &["kafka", "qdrant"],
    }
}

fn services_folder(store: StoreKind) -> PathBuf {
    Path::new(ROOT).join(".cache/chaos").join(format!("services-{}", store.name()))
}

async fn perform(
    seed: u64,
    time: Duration,
    store: StoreKind,
    folder: &Path,
    findings: Arc<Findings>,
    happened: &mut Vec<Happened>,
) -> Result<()> {
    let _ = std::fs::remove_dir_all(folder);
    std::fs::create_dir_all(folder)?;
    let material = Arc::new(Material::read(Path::new(ROOT), folder)?);
    let services = Services::start(&services_folder(store), names(store)).await?;
    let brokers = services.address("KAFKA_BROKERS").await?;
    let kafka = Kafka::start(&brokers).await?;
    let host = Host::start(material.clone()).await?;
    let host_url = format!("http://{}", host.address);

    let regular = WORKERS[store as usize];
    let (mut lines, mut workers) = (Vec::new(), Vec::new());
    let mut store_url = String::new();
    if store == StoreKind::Qdrant {
        store_url = services.address("QDRANT_URL").await?;
        let target: SocketAddr = store_url.trim_start_matches("http://").parse()?;
        for _ in 0..=regular {
            lines.push(Proxy::start(target).await?);
        }
    }
    for place in 0..=regular {
        let url = lines.get(place).map(|line| format!("http://{}", line.address));
        let settings = settings(&brokers, &store_settings(folder, url.as_deref()));
        workers.push(Arc::new(Worker::new(&format!("worker{place}"), folder, &settings)?));
    }
    let watch = Arc::new(Watch::default());
    let ledger = Arc::new(Ledger::default());
    let auditor = Arc::new(Auditor::new(kafka.clone(), ledger.clone(), findings.clone()));
    let embedded = (store == StoreKind::Edge).then(|| folder.join("store"));
    let scene = Scene {
        workers,
        regular,
        lines,
        host,
        services,
        watch: watch.clone(),
        findings: findings.clone(),
        auditor: auditor.clone(),
        embedded,
    };
    for worker in &scene.workers[..regular] {
        worker.start()?;
    }
    let _watching = Guard(tokio::spawn(watch.clone().run(kafka.clone(), findings.clone())));
    let looking = Guard(tokio::spawn(look_after(scene.workers.clone(), findings.clone())));

    let auditing = auditor.clone();
    let _auditing = (store == StoreKind::Qdrant).then(|| Guard(tokio::spawn(auditing.run(store_url.clone(), "posts"))));

    let (stop, stopped) = channel::channel(false);
    let feed = Feed::new(seed, material.clone(), host_url);
    let feeding = tokio::spawn(send(feed, kafka.clone(), ledger.clone(), watch.clone(), stopped));
    let first_commit = wait_for("the first commit", BEGIN_WITHIN, || watch.has_begun()).await;
    first_commit
        .with_context(|| format!("the last that {} said: {}", scene.workers[0].name, scene.workers[0].last_words()))?;
    let began = Instant::now();
    scene.run(Plan::new(seed, store), began, began + time, happened).await?;
    let healed = Instant::now();
    stop.send_replace(true);
    feeding.await??;
    if let Err(error) = wait_for("all that was acknowledged to be settled", SETTLE_WITHIN, || watch.is_settled()).await
    {
        findings.add(format!("{error:#}; {} messages behind", watch.lag()));
    }
    let settled_after = healed.elapsed();
    for worker in &scene.workers {
        scene.terminate(worker, true).await?;
    }
    drop(looking);

    let topic = kafka.read(POSTS).await?;
    check_acknowledged(&ledger, &topic, &findings);
    let expected = Expected::of_topic(&topic, &ledger)?;
    let committed = kafka.committed().await?;
    if committed != expected.ends {
        findings.add(format!("the commits at the end are {committed:?}, and the topic ends at {:?}", expected.ends));
    }
    let captions = expected.posts.values().flat_map(|history| &history.writes);
    let captions = captions.filter_map(|write| write.content.as_ref()?.caption.clone()).collect::<BTreeSet<_>>();
    let vectors = Vectors::of(&material, &captions, folder)?;
    let mut counts = Counts::default();
    oracle::check_vectors_differ(&vectors, &findings);
    oracle::check_dead_letters(&expected, &kafka.read(DEAD_LETTERS).await?, &findings, &mut counts);
    let url = (store == StoreKind::Qdrant).then_some(store_url.as_str());
    let searcher = Searcher::start(folder, &store_settings(folder, url)).await?;
    oracle::check_searches(&expected, &searcher, &findings, &mut counts).await?;
    drop(searcher);
    let points = match store {
        StoreKind::Edge => stored::read_edge(&folder.join("store"))?,
        StoreKind::Qdrant => stored::read_server(&store_url, "posts").await?,
    };
    oracle::check_store(&expected, points, &vectors, &findings, &mut counts);
    check_workers(&scene, &findings);
    tell(&scene, &ledger, &expected, &counts, happened, settled_after);
    Ok(())
}

/// The settings of a worker: short sessions and back-offs, so that two minutes hold many faults; tight budgets, so that
/// pressure is real; commits that are quick and writes that wait, so that whatever kills a worker meets posts on their way.
fn settings(brokers: &str, store: &str) -> String {
    format!(
        r#"{store}
[log]
level = "info,feedlens::kafka=debug"
format = "json"
[model]
dir = "models/small"
[encoder]
workers = 1
threads = 1
[kafka]
brokers = "{brokers}"
posts_topic = "{POSTS}"
dead_letter_topic = "{DEAD_LETTERS}"
group = "{GROUP}"
commit_interval = "50ms"
properties = {{ "session.timeout.ms" = "8000", "heartbeat.interval.ms" = "1000", "reconnect.backoff.max.ms" = "1000" }}
[ingest]
max_inflight_posts = 96
write_batch = 24
write_wait = "400ms"
retry_max = "1s"
drain_timeout = "3s"
[posts]
max_bytes = {max_bytes}
[query]
kafka = false
[images]
allow_networks = ["127.0.0.0/8"]
timeout = "2s"
retry_first = "100ms"
retry_max = "1s"
max_inflight_bytes = 8_388_608
max_decode_bytes = 33_554_432
"#,
        max_bytes = poison::MAX_BYTES,
    )
}

/// `url`: of the server; `None`: the embedded store in `folder`, which is optimised often.
fn store_settings(folder: &Path, url: Option<&str>) -> String {
    match url {
        Some(url) => format!(
            "[store]\nkind = \"qdrant\"\nalias = \"posts\"\n[store.qdrant]\nurl = \"{url}\"\ntimeout = \"3s\"\n\
             connect_timeout = \"2s\"\n"
        ),
        None => format!(
            "[store]\nkind = \"edge\"\nalias = \"posts\"\n[store.edge]\ndir = \"{}\"\nflush_interval = \"500ms\"\n\
             optimize_after = 300\n",
            folder.join("store").display()
        ),
    }
}

/// Sends the feed at its rate until it is told to stop, and everything is acknowledged.
async fn send(
    mut feed: Feed,
    kafka: Kafka,
    ledger: Arc<Ledger>,
    watch: Arc<Watch>,
    mut stop: channel::Receiver<bool>,
) -> Result<()> {
    let (to_collect, mut deliveries) = mpsc::unbounded_channel::<(u64, DeliveryFuture)>();
    let collected = ledger.clone();
    let collecting = tokio::spawn(async move {
        while let Some((number, delivery)) = deliveries.recv().await {
            match delivery.await {
                Ok(Ok(delivery)) => {
                    collected.acknowledged(number, delivery.partition, delivery.offset);
                    watch.acknowledged(delivery.partition, delivery.offset);
                }
                Ok(Err((error, _))) => collected.failed(number, &error.to_string()),
                Err(_) => collected.failed(number, "the producer ended"),
            }
        }
    });
    let mut ticks = tokio::time::interval(Duration::from_secs_f64(1.0 / RATE));
    let (mut last, mut known) = (0, BTreeSet::new());
    while !*stop.borrow_and_update() {
        let message = feed.next();
        if !BURSTS.contains(&(message.number % BURST_EACH)) {
            ticks.tick().await;
        }
        // Between partitions the timestamp orders the writes of a post: no two have the same.
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis() as i64;
        last = now.max(last + 1);
        ledger.sent(message.clone(), last);
        let delivery = kafka.send(&message, last).await?;
        to_collect.send((message.number, delivery)).context("the collector ended")?;
        // Of several requests under way to a new partition a broker may lose the first (KAFKA-15591).
        if known.insert(message.partition) {
            wait_for("the first message of a partition", BEGIN_WITHIN, || ledger.is_answered(message.number)).await?;
        }
    }
    drop(to_collect);
    kafka.flush().await?;
    collecting.await?;
    Ok(())
}

async fn look_after(workers: Vec<Arc<Worker>>, findings: Arc<Findings>) {
    loop {
        for worker in &workers {
            if let Err(error) = worker.look(&findings).await {
                findings.add(format!("{}: {error:#}", worker.name));
            }
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
}

async fn wait_for(what: &str, within: Duration, condition: impl Fn() -> bool) -> Result<()> {
    let deadline = Instant::now() + within;
    while !condition() {
        ensure!(Instant::now() < deadline, "not within {within:?}: {what}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Ok(())
}

/// What the broker acknowledged it must hold, or the run says nothing about feedlens.
fn check_acknowledged(ledger: &Ledger, topic: &[Record], findings: &Findings) {
    let place = |record: &Record| Some(((record.partition, record.offset), record.number()?));
    let held = topic.iter().filter_map(place).collect::<BTreeMap<_, _>>();
    findings.add_all("messages that Kafka acknowledged and does not hold", ledger.lost(&held));
    findings.add_all("messages that Kafka never acknowledged", ledger.failures());
}

fn check_workers(scene: &Scene, findings: &Findings) {
    for worker in &scene.workers {
        findings.add_all("lines of logs that tell of a bug", worker.bugs());
        let peak = worker.summary().peak_memory_kib;
        if peak > MEMORY_KIB {
            findings.add(format!("{} had {} MiB in memory, above {}", worker.name, peak / 1024, MEMORY_KIB / 1024));
        }
    }
}

fn tell(
    scene: &Scene,
    ledger: &Ledger,
    expected: &Expected,
    counts: &Counts,
    happened: &[Happened],
    settled_after: Duration,
) {
    let mut kinds: BTreeMap<&str, usize> = BTreeMap::new();
    for poison in expected.poison.values() {
        *kinds.entry(poison.kind).or_default() += 1;
    }
    let writes = expected.posts.values().map(|history| history.writes.len()).sum::<usize>();
    let (sent, acknowledged) = ledger.counts();
    println!(
        "chaos: {sent} messages sent, {acknowledged} acknowledged: {writes} writes of {} posts, {} poison of {} kinds",
        expected.posts.len(),
        counts.poison,
        kinds.len()
    );
    println!(
        "chaos: in the store {} posts and {} delete markers; {} vectors compared, 1 - cosine at most {:.1e}; {} searches",
        counts.live, counts.deleted, counts.vectors, counts.farthest, counts.searches
    );
    // A kill between the broker's acknowledgement and the commit sends a dead letter again.
    println!(
        "chaos: {} dead letters, {} of them repeated (at least once is promised)",
        counts.dead_letters,
        counts.dead_letters.saturating_sub(counts.poison)
    );
    let summaries = scene.workers.iter().map(|worker| worker.summary()).collect::<Vec<_>>();
    let mut counters: BTreeMap<&str, u64> = BTreeMap::new();
    for (name, value) in summaries.iter().flat_map(|summary| &summary.counters) {
        *counters.entry(name).or_default() += value;
    }
    let shown = ["posts_consumed_total", "posts_ignored_total", "posts_retried_total", "commits_failed_total"];
    let shown = counters.iter().filter(|(name, _)| shown.iter().any(|prefix| name.starts_with(prefix)));
    println!("chaos: workers' counters, as far as scraped: {:?}", shown.collect::<BTreeMap<_, _>>());
    println!(
        "chaos: {} lives of workers, {} starts failed; at most {} MiB in memory",
        summaries.iter().map(|summary| summary.lives).sum::<usize>(),
        summaries.iter().map(|summary| summary.failed_starts).sum::<usize>(),
        summaries.iter().map(|summary| summary.peak_memory_kib).max().unwrap_or(0) / 1024
    );
    let progress = scene.watch.progress();
    let seconds = |Resumed { first, all }: &Resumed| format!("{:.1}/{:.1}", first.as_secs_f64(), all.as_secs_f64());
    println!(
        "chaos: {} faults; seconds from a fault's end until the first commit / until every partition went on: [{}], {} cut \
         short by the next fault; longest time without a fault and a commit {:.1} s; {} samples of the commits; all settled \
         {:.1} s after the last fault",
        happened.len(),
        progress.resumed.iter().map(seconds).collect::<Vec<_>>().join(", "),
        progress.cut_short,
        progress.longest_idle.as_secs_f64(),
        progress.samples,
        settled_after.as_secs_f64()
    );
    let (audits, messages) = (scene.auditor.audits.load(Relaxed), scene.auditor.messages.load(Relaxed));
    println!("chaos: {audits} audits of the commits during the run, the last of {messages} messages");
    println!(
        "chaos: {} requests for pictures met a fault, {} connections to the store were cut",
        scene.host.failed.load(Relaxed),
        scene.lines.iter().map(|line| line.cut.load(Relaxed)).sum::<u64>()
    );
}

/// Ends a task with the run.
struct Guard(JoinHandle<()>);

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.abort();
    }
}
