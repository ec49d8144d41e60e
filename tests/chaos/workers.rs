//! The `feedlens ingest` processes, kept running as an orchestrator would.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::ROOT;
use crate::findings::Findings;
use crate::ports::free_port;

/// A worker that is told to stop must have done so by then: its drain takes 3 s at most, a hanging store's close more.
const STOP_WITHIN: Duration = Duration::from_secs(30);
/// Before a worker that could not start is started again.
const RESTART_AFTER: Duration = Duration::from_millis(500);

/// A place for a worker, which runs again and again in it.
pub struct Worker {
    pub name: String,
    admin: u16,
    config: PathBuf,
    logs: PathBuf,
    state: Mutex<State>,
    http: reqwest::Client,
}

#[derive(Default)]
struct State {
    child: Option<Child>,
    wanted: bool,
    frozen: bool,
    /// Whether `/readyz` said so once in this life.
    ready: bool,
    ended: Option<Instant>,
    lives: usize,
    failed_starts: usize,
    peak_memory_kib: u64,
    /// The last scrape of this life, and the sums of the earlier ones.
    counters: BTreeMap<String, u64>,
    earlier: BTreeMap<String, u64>,
}

/// How a worker ended that was told to.
pub struct Ended {
    pub code: Option<i32>,
    /// Of that life.
    pub log: String,
    /// Whether it had begun its work.
    pub was_ready: bool,
}

/// What is told of a worker at the end.
pub struct Summary {
    pub lives: usize,
    pub failed_starts: usize,
    pub peak_memory_kib: u64,
    /// Sums of counters over all lives, as far as they were scraped.
    pub counters: BTreeMap<String, u64>,
}

impl Worker {
    /// `settings`: TOML.
    pub fn new(name: &str, folder: &Path, settings: &str) -> Result<Self> {
        let config = folder.join(format!("{name}.toml"));
        let admin = free_port();
        std::fs::write(&config, format!("{settings}\n[admin]\nlisten = \"127.0.0.1:{admin}\"\n"))?;
        let http = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(2)).build()?;
        let (name, logs) = (name.to_owned(), folder.to_owned());
        Ok(Self { name, admin, config, logs, state: Mutex::default(), http })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps it running from now on.
    pub fn start(&self) -> Result<()> {
        self.state().wanted = true;
        self.spawn()
    }

    fn log(&self, life: usize) -> PathBuf {
        self.logs.join(format!("{}-{life}.log", self.name))
    }

    fn spawn(&self) -> Result<()> {
        let mut state = self.state();
        if state.child.is_some() {
            return Ok(());
        }
        state.lives += 1;
        let log = File::create(self.log(state.lives))?;
        let child = Command::new(env!("CARGO_BIN_EXE_feedlens"))
            .args(["ingest", "--config"])
            .arg(&self.config)
            .current_dir(ROOT)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .context("feedlens ingest")?;
        (state.child, state.ready, state.ended) = (Some(child), false, None);
        Ok(())
    }

    /// kill -9, and no restart. It has ended when this returns.
    pub fn kill(&self) {
        let mut state = self.state();
        state.wanted = false;
        if let Some(mut child) = state.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        state.end();
    }

    /// SIGTERM, and no restart; waits for the end. `None`: it was not running.
    ///
    /// # Errors
    /// It does not end.
    pub async fn terminate(&self) -> Result<Option<Ended>> {
        self.state().wanted = false;
        self.signal("TERM")?;
        let deadline = Instant::now() + STOP_WITHIN;
        loop {
            let ended = match self.state().child.as_mut() {
                Some(child) => child.try_wait()?,
                None => return Ok(None),
            };
            if let Some(status) = ended {
                let mut state = self.state();
                state.child = None;
                state.end();
                let log = std::fs::read_to_string(self.log(state.lives)).unwrap_or_default();
                return Ok(Some(Ended { code: status.code(), log, was_ready: state.ready }));
            }
            if Instant::now() > deadline {
                bail!("{}: SIGTERM did not end it within {STOP_WITHIN:?}", self.name);
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// SIGSTOP; it stands still when this returns.
    pub async fn freeze(&self) -> Result<()> {
        self.state().frozen = true;
        self.signal("STOP")?;
        let process = self.state().child.as_ref().map(Child::id);
        let stat =
            || std::fs::read_to_string(format!("/proc/{}/stat", process.unwrap_or_default())).unwrap_or_default();
        // The state follows the name, which stands in brackets. A process that has ended has none, or is a zombie.
        while stat().rsplit_once(") ").is_some_and(|(_, state)| !state.starts_with(['T', 'Z'])) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        Ok(())
    }

    /// SIGCONT.
    pub fn thaw(&self) -> Result<()> {
        self.state().frozen = false;
        self.signal("CONT")
    }

    fn signal(&self, name: &str) -> Result<()> {
        if let Some(child) = &self.state().child {
            Command::new("kill").args([&format!("-{name}"), &child.id().to_string()]).status().context("kill")?;
        }
        Ok(())
    }

    /// Looks after it: restarts it where it could not start, scrapes it, measures its memory. A worker that had started
    /// must not end by itself, whatever is out of order around it.
    pub async fn look(&self, findings: &Findings) -> Result<()> {
        let (ready, due) = {
            let mut state = self.state();
            // Who stops it looks after its end.
            if state.frozen || !state.wanted {
                return Ok(());
            }
            let ended = state.child.as_mut().map(Child::try_wait).transpose()?.flatten();
            if let Some(status) = ended {
                // A start that finds no broker or store is exit code 1.
                if state.ready || status.code() != Some(1) {
                    let last = last_line(&self.log(state.lives));
                    findings.add(format!("{} ended by itself ({status}): {last}", self.name));
                } else {
                    state.failed_starts += 1;
                }
                state.child = None;
                state.end();
            }
            if let Some(child) = &state.child {
                let memory = peak_memory_kib(child.id()).unwrap_or(0);
                state.peak_memory_kib = state.peak_memory_kib.max(memory);
            }
            let due = state.ended.is_some_and(|ended| ended.elapsed() > RESTART_AFTER);
            (state.ready, due)
        };
        if due {
            self.spawn()?;
        }
        if !ready && self.get("readyz").await.is_some() {
            self.state().ready = true;
        }
        if let Some(text) = self.get("metrics").await {
            self.state().counters = counters(&text);
        }
        Ok(())
    }

    async fn get(&self, path: &str) -> Option<String> {
        let answer = self.http.get(format!("http://127.0.0.1:{}/{path}", self.admin)).send().await.ok()?;
        if answer.status().is_success() { answer.text().await.ok() } else { None }
    }

    pub fn summary(&self) -> Summary {
        let mut state = self.state();
        state.end();
        Summary {
            lives: state.lives,
            failed_starts: state.failed_starts,
            peak_memory_kib: state.peak_memory_kib,
            counters: state.earlier.clone(),
        }
    }

    /// Whether it has begun its work.
    pub fn is_ready(&self) -> bool {
        self.state().ready
    }

    /// How often, in all its lives, it gave back partitions that it still had before their posts were settled.
    pub fn undrained(&self) -> usize {
        let lives = self.state().lives;
        let logs = (1..=lives).filter_map(|life| std::fs::read_to_string(self.log(life)).ok());
        let is_undrained =
            |line: &&str| line.contains("partitions went before these posts") && line.contains("\"lost\":false");
        logs.map(|log| log.lines().filter(is_undrained).count()).sum()
    }

    /// The last line of its log.
    pub fn last_words(&self) -> String {
        last_line(&self.log(self.state().lives))
    }

    /// Lines of all its logs that must never be there.
    pub fn bugs(&self) -> Vec<String> {
        let lives = self.state().lives;
        let texts = (1..=lives).filter_map(|life| Some((life, std::fs::read_to_string(self.log(life)).ok()?)));
        let mut bugs = Vec::new();
        for (life, text) in texts {
            let bad = text.lines().filter(|line| line.contains("panicked") || line.contains("This is a bug"));
            bugs.extend(bad.take(3).map(|line| format!("{}-{life}.log: {line}", self.name)));
        }
        bugs
    }
}

impl State {
    fn end(&mut self) {
        self.ended = Some(Instant::now());
        self.frozen = false;
        for (name, value) in std::mem::take(&mut self.counters) {
            *self.earlier.entry(name).or_default() += value;
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.kill();
    }
}

fn last_line(log: &Path) -> String {
    std::fs::read_to_string(log).unwrap_or_default().lines().last().unwrap_or_default().to_owned()
}

/// `VmHWM`, the most that the process ever had in memory.
fn peak_memory_kib(process: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix(" kB")?.parse().ok()
}

/// Counters of the pipe in a scrape, with their labels, without the prefix.
fn counters(text: &str) -> BTreeMap<String, u64> {
    let counted = text.lines().filter_map(|line| {
        let (name, value) = line.strip_prefix("feedlens_")?.rsplit_once(' ')?;
        let is_counter = name.split('{').next()?.ends_with("_total");
        is_counter.then_some((name.to_owned(), value.parse::<f64>().ok()? as u64))
    });
    counted.filter(|(_, value)| *value > 0).collect()
}
