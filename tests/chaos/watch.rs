//! What is watched while the run goes on: commits only grow, never pass the end of the topic, and go on after each fault.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::findings::Findings;
use crate::kafka::Kafka;

/// Ingest goes on within this after a fault's end, in each partition.
pub const RESUME_WITHIN: Duration = Duration::from_secs(30);
const INTERVAL: Duration = Duration::from_millis(500);

/// What is known of the group's progress.
#[derive(Default)]
pub struct Watch {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// By partition: how many messages were acknowledged to the generator, in a row from 0.
    ends: BTreeMap<i32, i64>,
    committed: BTreeMap<i32, i64>,
    /// Time without any fault and without progress: of the group, and of each partition that is behind.
    idle: Duration,
    stalled: BTreeMap<i32, Duration>,
    longest_idle: Duration,
    faults: usize,
    samples: usize,
    /// When the last fault ended, and which partitions were behind and have not moved since.
    waiting: Option<Waiting>,
    resumed: Vec<Resumed>,
    cut_short: usize,
}

struct Waiting {
    since: Instant,
    first: Option<Duration>,
    partitions: Vec<i32>,
}

/// From a fault's end until the first commit, and until every partition that was behind had one.
#[derive(Debug, Clone, Copy)]
pub struct Resumed {
    pub first: Duration,
    pub all: Duration,
}

/// What is told at the end.
pub struct Progress {
    pub samples: usize,
    pub longest_idle: Duration,
    /// Where no other fault came between.
    pub resumed: Vec<Resumed>,
    pub cut_short: usize,
}

impl Watch {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A message was acknowledged; where its offset is not known, the next one tells.
    pub fn acknowledged(&self, partition: i32, offset: i64) {
        let mut state = self.state();
        let end = state.ends.entry(partition).or_default();
        *end = (*end).max(offset + 1);
    }

    /// A fault begins.
    pub fn fault_begins(&self) {
        let mut state = self.state();
        state.faults += 1;
        state.stalled.clear();
        state.idle = Duration::ZERO;
        if state.waiting.take().is_some() {
            state.cut_short += 1;
        }
    }

    /// It is over.
    pub fn fault_ends(&self) {
        let mut state = self.state();
        state.faults -= 1;
        let partitions = state.behind();
        state.waiting = Some(Waiting { since: Instant::now(), first: None, partitions });
    }

    /// Whether every partition that was behind when the last fault ended has gone on since.
    pub fn has_resumed(&self) -> bool {
        self.state().waiting.is_none()
    }

    /// Whether the group has committed anything.
    pub fn has_begun(&self) -> bool {
        !self.state().committed.is_empty()
    }

    /// Whether the group has committed everything that was acknowledged.
    pub fn is_settled(&self) -> bool {
        self.state().behind().is_empty()
    }

    /// Messages that the group is behind.
    pub fn lag(&self) -> i64 {
        let state = self.state();
        state.ends.iter().map(|(partition, end)| end - state.committed.get(partition).unwrap_or(&0)).sum()
    }

    pub fn progress(&self) -> Progress {
        let state = self.state();
        Progress {
            samples: state.samples,
            longest_idle: state.longest_idle,
            resumed: state.resumed.clone(),
            cut_short: state.cut_short,
        }
    }

    /// Samples until it is aborted.
    pub async fn run(self: Arc<Self>, kafka: Kafka, findings: Arc<Findings>) {
        let mut last = Instant::now();
        loop {
            tokio::time::sleep(INTERVAL).await;
            let committed = kafka.committed().await;
            let passed = last.elapsed();
            last = Instant::now();
            match committed {
                Ok(committed) => self.state().sample(committed, passed, &findings),
                // A broker that is down is a fault; one that is up and does not answer is a stall.
                Err(_) => self.state().stall(passed, &BTreeMap::new(), &findings),
            }
        }
    }
}

impl State {
    fn behind(&self) -> Vec<i32> {
        let is_behind = |(partition, end): &(&i32, &i64)| self.committed.get(partition).unwrap_or(&0) < end;
        self.ends.iter().filter(is_behind).map(|(partition, _)| *partition).collect()
    }

    fn sample(&mut self, committed: BTreeMap<i32, i64>, passed: Duration, findings: &Findings) {
        self.samples += 1;
        let before = std::mem::replace(&mut self.committed, committed.clone());
        for (partition, offset) in &before {
            let now = committed.get(partition).copied().unwrap_or(-1);
            if now < *offset {
                findings.add(format!("partition {partition}: the commit went back from {offset} to {now}"));
            }
        }
        self.stall(passed, &before, findings);
    }

    /// `before`: the commits of the sample before; empty: nothing is known now.
    fn stall(&mut self, passed: Duration, before: &BTreeMap<i32, i64>, findings: &Findings) {
        let behind = self.behind();
        let has_moved = |partition: &i32| !before.is_empty() && self.committed.get(partition) != before.get(partition);
        let moved = self.committed.keys().copied().filter(has_moved).collect::<Vec<_>>();
        self.stalled.retain(|partition, _| behind.contains(partition) && !moved.contains(partition));
        if let Some(waiting) = &mut self.waiting {
            let passed = waiting.since.elapsed();
            waiting.partitions.retain(|partition| behind.contains(partition) && !moved.contains(partition));
            if !moved.is_empty() || waiting.partitions.is_empty() {
                waiting.first.get_or_insert(passed);
            }
            if waiting.partitions.is_empty() {
                self.resumed.push(Resumed { first: waiting.first.unwrap_or(passed), all: passed });
                self.waiting = None;
            }
        }
        if !moved.is_empty() || behind.is_empty() {
            self.idle = Duration::ZERO;
        }
        if self.faults > 0 || behind.is_empty() {
            return;
        }
        if moved.is_empty() {
            let was = self.idle;
            self.idle += passed;
            self.longest_idle = self.longest_idle.max(self.idle);
            if was < RESUME_WITHIN && self.idle >= RESUME_WITHIN {
                let (committed, ends) = (&self.committed, &self.ends);
                findings.add(format!(
                    "nothing was committed in {RESUME_WITHIN:?} without a fault; commits {committed:?}, ends {ends:?}"
                ));
            }
        }
        for partition in behind.into_iter().filter(|partition| !moved.contains(partition)) {
            let stalled = self.stalled.entry(partition).or_default();
            let was = *stalled;
            *stalled += passed;
            if was < RESUME_WITHIN && *stalled >= RESUME_WITHIN {
                let committed = self.committed.get(&partition);
                findings.add(format!(
                    "partition {partition}: nothing was committed in {RESUME_WITHIN:?} without a fault; commit \
                     {committed:?}, end {}",
                    self.ends[&partition]
                ));
            }
        }
    }
}
