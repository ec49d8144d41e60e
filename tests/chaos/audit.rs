//! In the middle of a run: nothing that the group has committed is unsettled.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Result;
use feedlens::post::point_id;
use serde_json::{Map, Value};
use uuid::Uuid;

use crate::expect::{Expected, Write, standing};
use crate::findings::Findings;
use crate::kafka::{DEAD_LETTERS, Kafka};
use crate::ledger::Ledger;
use crate::oracle::source_place;
use crate::stored;

/// A post with more writes under way is left to the next audit: each may have been applied or not.
const MOST_OPEN: usize = 10;
const INTERVAL: Duration = Duration::from_secs(2);

/// Compares the commits with the store and the dead letters, which are read after the commits: what was settled when the
/// commits were read is settled still.
pub struct Auditor {
    pub kafka: Kafka,
    ledger: Arc<Ledger>,
    findings: Arc<Findings>,
    /// How often, and how many committed messages.
    pub audits: AtomicU64,
    pub messages: AtomicU64,
}

impl Auditor {
    pub fn new(kafka: Kafka, ledger: Arc<Ledger>, findings: Arc<Findings>) -> Self {
        Self { kafka, ledger, findings, audits: AtomicU64::new(0), messages: AtomicU64::new(0) }
    }

    /// A server's store, again and again until it is aborted. While Kafka or the store is down there is nothing to read.
    pub async fn run(self: Arc<Self>, url: String, collection: &'static str) {
        loop {
            tokio::time::sleep(INTERVAL).await;
            let Ok(committed) = self.kafka.committed().await else { continue };
            let Ok(points) = stored::read_server_states(&url, collection).await else { continue };
            // Last: a write that the store has and that is not known to be acknowledged yet would look like nobody's.
            let _ = self.compare(&self.ledger.expected(), &committed, &points).await;
        }
    }

    /// An embedded store whose worker was killed or is frozen: a copy of its folder is what a restart would find.
    ///
    /// # Errors
    /// The copy cannot be opened.
    pub async fn embedded(&self, folder: &Path) -> Result<()> {
        let Ok(committed) = self.kafka.committed().await else { return Ok(()) };
        let expected = self.ledger.expected();
        let ids = expected.posts.keys().map(|post_id| point_id(post_id)).collect::<Vec<_>>();
        let points = stored::read_crashed_edge(folder, &ids).await?;
        // The broker may be down.
        let _ = self.compare(&expected, &committed, &points).await;
        Ok(())
    }

    async fn compare(
        &self,
        expected: &Expected,
        committed: &BTreeMap<i32, i64>,
        points: &HashMap<Uuid, Map<String, Value>>,
    ) -> Result<()> {
        let letters = self.kafka.read(DEAD_LETTERS).await?;
        let letters = letters.iter().filter_map(source_place).collect::<HashSet<_>>();
        let unsettled = unsettled(expected, committed, points, &letters);
        self.findings.add_all("messages that were committed before they were settled", unsettled);
        self.audits.fetch_add(1, Ordering::Relaxed);
        self.messages.store(committed.values().sum::<i64>() as u64, Ordering::Relaxed);
        Ok(())
    }
}

/// `points`: the payloads of the store; `letters`: the places whose dead letters are there.
fn unsettled(
    expected: &Expected,
    committed: &BTreeMap<i32, i64>,
    points: &HashMap<Uuid, Map<String, Value>>,
    letters: &HashSet<(i32, i64)>,
) -> Vec<String> {
    let is_committed = |partition: i32, offset: i64| committed.get(&partition).is_some_and(|end| offset < *end);
    let covers = |write: &Write| is_committed(write.partition, write.offset);
    let mut found = Vec::new();
    for (post_id, history) in &expected.posts {
        let Some(write) = standing(history, covers) else { continue };
        let place = (write.partition, write.offset);
        let Some(point) = points.get(&point_id(post_id)) else {
            found.push(format!("{post_id} at {place:?}: the store has nothing of it"));
            continue;
        };
        let number = |name: &str| point.get("source").and_then(|source| source.get(name)?.as_i64());
        let stored = number("partition").zip(number("offset")).map(|(partition, offset)| (partition as i32, offset));
        let is_stored = |write: &Write| stored == Some((write.partition, write.offset));
        // One that is not acknowledged yet cannot be judged.
        if !history.writes.iter().any(is_stored) {
            continue;
        }
        // Whatever of the writes that are not committed yet was applied too: one of these histories it must be.
        let open = history.writes.iter().filter(|write| !covers(write)).collect::<Vec<_>>();
        let is_applied = |applied: u32, write: &Write| {
            let place = open.iter().position(|it| (it.partition, it.offset) == (write.partition, write.offset));
            place.is_none_or(|place| applied & 1 << place != 0)
        };
        let explains = |applied: u32| standing(history, |write| is_applied(applied, write)).is_some_and(is_stored);
        if open.len() <= MOST_OPEN && !(0..1 << open.len()).any(explains) {
            found.push(format!("{post_id} at {place:?}: the store still has {stored:?}; writes {:?}", history.writes));
        }
    }
    let poison = expected.poison.iter().filter(|((partition, offset), _)| is_committed(*partition, *offset));
    let missing = poison.filter(|(place, _)| !letters.contains(place));
    found.extend(missing.map(|(place, poison)| format!("poison at {place:?} ({}): no dead letter of it", poison.kind)));
    found
}
