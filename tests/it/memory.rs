//! The memory of the real ingest worker with the small model: small, and the same however many posts went through.

use feedlens::feed::{Feed, Message};
use feedlens::kafka::{EmbeddedBroker, Producer};

use crate::binary::root;
use crate::kafka_support::{config, wait_until};
use crate::running::Running;
use crate::store_server;

/// The demo's feed of 1,922 posts so often: 15,376 posts, each time as edits of the same posts.
const PASSES: usize = 8;
/// Posts on their way: the embedded broker keeps only the newest 5 MiB of a partition.
const WINDOW: usize = 500;
/// The promise for the whole process, mapped files included.
const MOST: u64 = 400 << 20;

/// What the system says of a process.
pub struct Memory {
    /// Bytes that no file backs: what the program itself asked for.
    pub own: u64,
    /// The most that ever was resident, in bytes.
    pub peak: u64,
}

impl Memory {
    pub fn of(process: u32) -> Self {
        let status = std::fs::read_to_string(format!("/proc/{process}/status")).expect("the worker runs");
        let bytes = |name: &str| {
            let value = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            let kibibytes = value.and_then(|value| value.trim().strip_suffix(" kB")?.parse::<u64>().ok());
            kibibytes.unwrap_or_else(|| panic!("no {name} in {status}")) << 10
        };
        Self { own: bytes("RssAnon"), peak: bytes("VmHWM") }
    }
}

/// Streams the feed through a worker with these settings. The second half of the posts may add at most `growth` bytes to
/// the worker's own memory.
async fn memory_stays(settings: &[&str], growth: u64) {
    let broker = EmbeddedBroker::start(&[("posts", 4), ("posts.dlq", 1)]).expect("a broker");
    let running = Running::ingest(&broker.bootstrap(), settings);
    let producer = Producer::new(&config(&broker.bootstrap())).expect("a producer");
    let feed = Feed::open(&root().join("demo/feed.jsonl")).expect("opens");
    let feed = feed.collect::<anyhow::Result<Vec<Message>>>().expect("reads");
    assert!(feed.len() * PASSES >= 15_000, "{} posts a pass", feed.len());
    let mut sent = 0;
    let mut own = Vec::new();
    for _ in 0..PASSES {
        for window in feed.chunks(WINDOW) {
            let sends = window
                .iter()
                .map(|post| producer.send("posts", post.key.as_deref().map(str::as_bytes), Some(&post.value), &[]));
            for done in futures::future::join_all(sends).await {
                done.expect("acknowledged");
            }
            sent += window.len();
            let left = (WINDOW / 2) as u64;
            wait_until("the posts settled", async || running.settled() + left >= sent as u64).await;
        }
        let memory = Memory::of(running.id());
        assert!(memory.peak < MOST, "{} MiB at {sent} posts", memory.peak >> 20);
        own.push(memory.own);
    }
    wait_until("all settled", async || running.settled() >= sent as u64).await;
    let (first, second) = own.split_at(PASSES / 2);
    let most = |half: &[u64]| half.iter().copied().max().expect("some passes");
    let grown = most(second).saturating_sub(most(first));
    let seen = own.iter().map(|bytes| bytes >> 20).collect::<Vec<_>>();
    assert!(grown <= growth, "{} MiB more in the second half; MiB after each pass: {seen:?}", grown >> 20);
    running.terminate();
    let (code, log) = running.end();
    assert_eq!(code, Some(0), "{log}");
}

/// The embedded store keeps some hundred bytes a write in memory until it optimises, and some for good: ids, versions
/// and the payload indexes. 20 MiB are 2,700 bytes a post of the second half; a post's message has 4,500.
#[tokio::test(flavor = "multi_thread")]
async fn with_the_embedded_store_memory_is_small_and_posts_leave_nothing_behind() {
    memory_stays(&[], 20 << 20).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_a_server_memory_is_small_and_flat() {
    let Some((url, api_key)) = store_server::shared() else { return };
    let settings = [
        "store.kind=qdrant".to_owned(),
        format!("store.alias=memory_{}", std::process::id()),
        format!("store.qdrant.url={url}"),
        format!("store.qdrant.api_key={}", api_key.expose()),
    ];
    memory_stays(&settings.each_ref().map(String::as_str), 8 << 20).await;
}
