//! The embedded store: Qdrant's engine on a folder of this process, behind the seam.
//!
//! ```text
//! write   -> one writer: decide by what is stored -> journal (with the system) -> engine -> Ok
//! search, get, count -> engine, beside the writer
//! keeper thread, each flush_interval: sync the journal | checkpoint: flush the engine, clear the journal | optimise
//! ```

mod engine;
mod folder;
mod journal;
mod room;

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, mpsc};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use tokio::sync::Semaphore;
use uuid::Uuid;

use self::engine::{Engine, EngineConfig, EngineError};
use self::folder::Folder;
use self::journal::Journal;
use self::room::Room;
use super::rows::{self, Plan};
use super::{Hit, ModelStamp, Outcome, StoreConfig, StoredPoint, VectorQuery, VectorStore, Write};
use crate::error::{Fault, Outage};
use crate::metrics::Metrics;

const JOURNAL_FILE: &str = "feedlens.journal";

/// A journal longer than this is worth a flush of the engine: bounds the disk it takes and the time of a start after a
/// kill (about a second for each 64 MiB).
const CHECKPOINT_BYTES: u64 = 64 * 1024 * 1024;
/// The engine only ever adds to its own log; beyond this it is closed and opened, which lets go of the old files.
const OLD_LOG_BYTES: u64 = 1024 * 1024 * 1024;
/// Writes decided on together; what they change is one record of the journal.
const RECORD_WRITES: usize = 256;
/// How long closing waits for an optimisation: it cannot be stopped, and nothing is lost by leaving it.
const CLOSE_WAIT: Duration = Duration::from_secs(10);
const CLOSE_POLL: Duration = Duration::from_millis(50);

/// The store of [`super::StoreKind::Edge`].
pub struct EdgeStore {
    inner: Arc<Inner>,
    keeper: Mutex<Option<Keeper>>,
    /// A search keeps a core busy: of more at a time than there are cores, none would end sooner, and everything else,
    /// refusals included, would wait among them.
    searching: Arc<Semaphore>,
}

/// The thread of the background work: dropping `stop` ends it, and it drops its end of `ended` then.
struct Keeper {
    stop: mpsc::Sender<()>,
    ended: mpsc::Receiver<()>,
}

struct Inner {
    engine_config: EngineConfig,
    flush_interval: Duration,
    room: Room,
    metrics: Metrics,
    /// `None` once closed. The lock is held exclusively only to close and to open the engine anew.
    engine: RwLock<Option<Engine>>,
    /// Whoever holds this lock is the one writer. A queue, unlike the standard library's mutex: the keeper would starve
    /// beside busy writers.
    writer: tokio::sync::Mutex<Option<Writer>>,
    /// Points written since the last optimisation.
    unoptimized: AtomicUsize,
    /// Whether an optimisation is under way.
    optimizing: AtomicBool,
    /// Why nothing can be written any more.
    failed: OnceLock<String>,
}

struct Writer {
    journal: Journal,
    _folder: Folder,
}

impl EdgeStore {
    /// Opens the folder's store, or makes one, and brings back what a killed process had written.
    ///
    /// # Errors
    /// [`Fault::Fatal`]: the folder cannot be used, is in use, or belongs to another model.
    pub async fn open(config: &StoreConfig, stamp: &ModelStamp, metrics: &Metrics) -> Result<Self, Fault> {
        let (config, stamp, metrics) = (config.clone(), stamp.clone(), metrics.clone());
        blocking(move || {
            let inner = Arc::new(Inner::open(&config, &stamp, metrics)?);
            let keeper = Keeper::start(Arc::clone(&inner))?;
            let cores = std::thread::available_parallelism().map_or(1, usize::from);
            Ok(Self { inner, keeper: Mutex::new(Some(keeper)), searching: Arc::new(Semaphore::new(cores)) })
        })
        .await
    }
}

#[async_trait]
impl VectorStore for EdgeStore {
    async fn write(&self, writes: Vec<Write>) -> Result<Vec<Outcome>, Fault> {
        let inner = Arc::clone(&self.inner);
        blocking(move || inner.write(writes)).await
    }

    async fn search(&self, query: VectorQuery) -> Result<Vec<Hit>, Fault> {
        if query.limit == 0 {
            return Ok(Vec::new());
        }
        let permit = Arc::clone(&self.searching).acquire_owned().await;
        let permit = permit.expect("the semaphore is never closed. This is a bug.");
        let inner = Arc::clone(&self.inner);
        blocking(move || {
            // Held by the work: a search that was given up leaves its work running.
            let _held = permit;
            inner.read(|engine| engine.search(query))
        })
        .await
    }

    async fn get(&self, ids: &[Uuid]) -> Result<Vec<StoredPoint>, Fault> {
        let inner = Arc::clone(&self.inner);
        let ids = ids.to_vec();
        blocking(move || inner.read(|engine| engine.get(&ids))).await
    }

    async fn count(&self) -> Result<u64, Fault> {
        let inner = Arc::clone(&self.inner);
        blocking(move || inner.read(|engine| engine.count().map(|count| count as u64))).await
    }

    async fn purge(&self, before: DateTime<Utc>) -> Result<u64, Fault> {
        let inner = Arc::clone(&self.inner);
        blocking(move || inner.purge(before)).await
    }

    async fn ready(&self) -> Result<(), Fault> {
        self.inner.check()?;
        let inner = Arc::clone(&self.inner);
        blocking(move || {
            inner.room.check()?;
            inner.read(|_| Ok(()))
        })
        .await
    }

    async fn close(&self) -> Result<(), Fault> {
        let keeper = lock(&self.keeper).take();
        let inner = Arc::clone(&self.inner);
        blocking(move || inner.close(keeper)).await
    }
}

impl Inner {
    fn open(config: &StoreConfig, stamp: &ModelStamp, metrics: Metrics) -> Result<Self, Fault> {
        let (search_ef, alias, config) = (config.search_ef, &config.alias, &config.edge);
        let folder = Folder::open(&config.dir, alias, stamp)?;
        let room = Room::new(&config.dir, config.min_free_bytes);
        room.check_at_start()?;
        room::tell_of_the_end(&config.dir);
        let engine_config = EngineConfig {
            path: config.dir.clone(),
            dimension: stamp.dimension,
            optimize_after: config.optimize_after,
            search_ef,
        };
        let opened = recover(&engine_config, &folder).and_then(|(journal, engine)| {
            let unoptimized = engine.unoptimized()?;
            Ok((journal, engine, unoptimized))
        });
        let (journal, engine, unoptimized) = opened.map_err(|error| {
            Fault::fatal(format!(
                "the store in {} cannot be opened: {error}; restore it from a copy, or set store.edge.dir to a new \
                 folder and index the posts again",
                config.dir.display()
            ))
        })?;
        Ok(Self {
            engine_config,
            flush_interval: config.flush_interval,
            room,
            metrics,
            engine: RwLock::new(Some(engine)),
            writer: tokio::sync::Mutex::new(Some(Writer { journal, _folder: folder })),
            unoptimized: AtomicUsize::new(unoptimized),
            optimizing: AtomicBool::new(false),
            failed: OnceLock::new(),
        })
    }

    fn write(&self, writes: Vec<Write>) -> Result<Vec<Outcome>, Fault> {
        rows::check(&writes, self.engine_config.dimension)?;
        self.check()?;
        let mut writer = self.writer.blocking_lock();
        let writer = writer.as_mut().ok_or_else(closed)?;
        let engine = self.engine();
        let engine = engine.as_ref().ok_or_else(closed)?;
        let mut outcomes = Vec::with_capacity(writes.len());
        for writes in writes.chunks(RECORD_WRITES) {
            self.room.check()?;
            let ids = writes.iter().map(Write::id).collect::<Vec<_>>();
            let (existing, stored) = engine.states(&ids).map_err(|error| unavailable(&error))?;
            let plan = Plan::new(writes, &stored);
            let kept = engine.get(&plan.kept()).map_err(|error| unavailable(&error))?;
            let rows = plan.changes().iter().map(|change| change.row(&kept));
            let rows = rows.collect::<Option<Vec<_>>>().expect("this is the one writer. This is a bug.");
            outcomes.extend(plan.outcomes);
            if rows.is_empty() {
                continue;
            }
            writer
                .journal
                .append(&rows)
                .map_err(|error| self.room.fault(&self.engine_config.path.join(JOURNAL_FILE), &error))?;
            // From here on the journal says that the rows are there: only a new start, which reads it, can mend the
            // engine.
            engine.put(&rows, &existing).map_err(|error| self.fail(&error))?;
            self.unoptimized.fetch_add(rows.len(), Ordering::Relaxed);
        }
        Ok(outcomes)
    }

    /// Not in the journal: what a killed process had purged comes back at most as a marker, and goes again.
    fn purge(&self, before: DateTime<Utc>) -> Result<u64, Fault> {
        self.check()?;
        self.room.check()?;
        let mut writer = self.writer.blocking_lock();
        writer.as_mut().ok_or_else(closed)?;
        self.read(|engine| engine.purge(before))
    }

    fn read<T>(&self, read: impl FnOnce(&Engine) -> Result<T, EngineError>) -> Result<T, Fault> {
        let engine = self.engine();
        let engine = engine.as_ref().ok_or_else(closed)?;
        read(engine).map_err(|error| unavailable(&error))
    }

    fn engine(&self) -> RwLockReadGuard<'_, Option<Engine>> {
        self.engine.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn engine_mut(&self) -> RwLockWriteGuard<'_, Option<Engine>> {
        self.engine.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn check(&self) -> Result<(), Fault> {
        match self.failed.get() {
            None => Ok(()),
            Some(detail) => Err(Fault::fatal(detail.clone())),
        }
    }

    fn fail(&self, error: &dyn std::error::Error) -> Fault {
        let detail = format!(
            "the store in {} failed: {error}; free or repair its disk and start again, everything acknowledged is in \
             its journal",
            self.engine_config.path.display()
        );
        tracing::error!("{detail}");
        Fault::fatal(self.failed.get_or_init(|| detail).clone())
    }

    /// The background work of one interval.
    fn keep(&self) -> Result<(), EngineError> {
        let unsynced = match self.writer.blocking_lock().as_mut() {
            None => None,
            Some(writer) => writer.journal.take_unsynced()?,
        };
        if let Some(journal) = unsynced {
            journal.sync_data()?;
        }
        if self.room.check().is_err() {
            // What follows writes to the disk, and can wait: nothing is written in the meantime.
            return Ok(());
        }
        let new = self.unoptimized.load(Ordering::Relaxed);
        if new >= self.engine_config.optimize_after {
            self.optimize()?;
            self.unoptimized.fetch_sub(new, Ordering::Relaxed);
            self.checkpoint()?;
        }
        let journal_bytes = self.writer.blocking_lock().as_ref().map_or(0, |writer| writer.journal.bytes());
        if journal_bytes >= CHECKPOINT_BYTES {
            self.checkpoint()?;
        }
        let old_log_bytes = match self.engine().as_ref() {
            None => 0,
            Some(engine) => engine.old_log_bytes()?,
        };
        if old_log_bytes >= OLD_LOG_BYTES { self.reopen() } else { Ok(()) }
    }

    fn optimize(&self) -> Result<(), EngineError> {
        let begin = Instant::now();
        self.optimizing.store(true, Ordering::Relaxed);
        let result = self.engine().as_ref().map_or(Ok(()), Engine::optimize);
        self.optimizing.store(false, Ordering::Relaxed);
        match result {
            // Searches stay right without it (and grow slower); with too little room on the disk it asks for twice the
            // space that the points take.
            Err(EngineError::Engine(error)) => {
                tracing::warn!(%error, "cannot optimise the embedded store; trying again later");
                return Ok(());
            }
            other => other?,
        }
        let seconds = begin.elapsed().as_secs_f64();
        self.metrics.stage_seconds.with_label_values(&["optimize"]).observe(seconds);
        tracing::info!(seconds, "optimised the embedded store");
        Ok(())
    }

    /// Brings the engine to disk and begins an empty journal. Writers wait, searches do not.
    fn checkpoint(&self) -> Result<(), EngineError> {
        let begin = Instant::now();
        let mut writer = self.writer.blocking_lock();
        if let (Some(writer), Some(engine)) = (writer.as_mut(), self.engine().as_ref()) {
            engine.flush()?;
            writer.journal.clear()?;
        }
        self.metrics.stage_seconds.with_label_values(&["checkpoint"]).observe(begin.elapsed().as_secs_f64());
        Ok(())
    }

    /// Closes the engine and opens it anew; searches wait.
    fn reopen(&self) -> Result<(), EngineError> {
        let mut writer = self.writer.blocking_lock();
        let mut engine = self.engine_mut();
        let (Some(writer), Some(open)) = (writer.as_mut(), engine.take()) else { return Ok(()) };
        open.flush()?;
        open.close()?;
        writer.journal.clear()?;
        *engine = Some(Engine::open(&self.engine_config)?);
        Ok(())
    }

    fn close(&self, keeper: Option<Keeper>) -> Result<(), Fault> {
        let Some(keeper) = keeper else { return Ok(()) };
        drop(keeper.stop);
        // Not under the writer lock, which the keeper needs to end.
        let begin = Instant::now();
        let mut busy = true;
        while busy && !(self.optimizing.load(Ordering::Relaxed) && begin.elapsed() >= CLOSE_WAIT) {
            busy = keeper.ended.recv_timeout(CLOSE_POLL) == Err(mpsc::RecvTimeoutError::Timeout);
        }
        let mut writer = self.writer.blocking_lock();
        let full = self.room.check().err();
        if busy || full.is_some() {
            match full {
                None => tracing::info!(
                    "an optimisation of the embedded store is still running; the next start begins it again"
                ),
                Some(fault) => tracing::warn!("closed without a flush, which the next start makes up for: {fault}"),
            }
            let Some(open) = writer.as_mut() else { return Ok(()) };
            let synced =
                open.journal.take_unsynced().and_then(|journal| journal.map_or(Ok(()), |file| file.sync_all()));
            if !busy {
                // Its drop would flush.
                std::mem::forget(self.engine_mut().take());
            }
            return synced.map_err(|error| self.fail(&error));
        }
        let engine = self.engine_mut().take();
        let (Some(open), Some(engine)) = (writer.take(), engine) else { return Ok(()) };
        let closed = engine.flush().and_then(|()| engine.close());
        self.check()?;
        closed.map_err(|error| self.fail(&error))?;
        open.journal.remove().map_err(|error| self.fail(&error))
    }
}

impl Keeper {
    fn start(inner: Arc<Inner>) -> Result<Self, Fault> {
        let (stop, stopped) = mpsc::channel::<()>();
        let (end, ended) = mpsc::channel::<()>();
        let run = move || {
            // Held to the end of the thread: closing waits for its drop.
            let _end = end;
            while stopped.recv_timeout(inner.flush_interval) == Err(mpsc::RecvTimeoutError::Timeout) {
                if let Err(error) = inner.keep() {
                    inner.fail(&error);
                    return;
                }
            }
        };
        std::thread::Builder::new()
            .name("store-keeper".to_owned())
            .spawn(run)
            .map_err(|error| Fault::fatal(format!("cannot start the embedded store's thread: {error}")))?;
        Ok(Self { stop, ended })
    }
}

/// Opens journal and engine. A journal that is there means that no orderly end came before: its rows are written again
/// in their order, which mends whatever the engine had written of them, and second copies are removed.
fn recover(config: &EngineConfig, folder: &Folder) -> Result<(Journal, Engine), EngineError> {
    let (mut journal, found) = Journal::open(&folder.path().join(JOURNAL_FILE))?;
    let engine = Engine::open(config)?;
    if found {
        let begin = Instant::now();
        let rows = journal.replay(|rows| {
            let ids = rows.iter().map(|row| row.id).collect::<Vec<_>>();
            let (existing, _) = engine.states(&ids)?;
            engine.put(&rows, &existing)
        })?;
        let doubles = engine.remove_doubles(|rows| journal.append(rows))?;
        engine.flush()?;
        journal.clear()?;
        tracing::info!(
            rows,
            doubles,
            seconds = begin.elapsed().as_secs_f64(),
            "recovered the embedded store after an end without a close"
        );
    }
    Ok((journal, engine))
}

fn unavailable(error: &EngineError) -> Fault {
    Fault::retry(Outage::Store, format!("the embedded store: {error}"))
}

fn closed() -> Fault {
    Fault::retry(Outage::Store, "the embedded store is closed")
}

/// A panic under the lock has its own report; the state behind the lock is checked by its users.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Fault> + Send + 'static) -> Result<T, Fault> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(Fault::fatal(format!("the embedded store's work did not end: {error}"))),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Map;

    use super::*;
    use crate::store::{Filter, HitParts, Order, Origin, Point, VectorName};

    fn upsert(id: u128, version: u64) -> Write {
        Write::Upsert(Point {
            id: Uuid::from_u128(id),
            order: Order {
                version: Some(version),
                source: Origin { topic: "posts".to_owned(), partition: 0, offset: version as i64, timestamp: 0 },
            },
            image: Some(vec![0.6, 0.8]),
            caption: None,
            image_pending: false,
            payload: Map::new(),
        })
    }

    #[test]
    fn engine_opened_anew_has_every_point_and_goes_on() {
        let folder = tempfile::tempdir().expect("a folder");
        let defaults = crate::config::Config::load(&[], &crate::config::Overrides::default());
        let mut config = defaults.expect("the defaults load").store;
        config.edge.dir = folder.path().join("store");
        let stamp = ModelStamp { model: "small".to_owned(), dimension: 2 };
        let inner = Inner::open(&config, &stamp, Metrics::new()).expect("opens");
        for round in 1..4 {
            inner.write(vec![upsert(1, round), upsert(u128::from(100 + round), 1)]).expect("writes");
            inner.reopen().expect("opens anew");
            let (_, states) = inner.read(|engine| engine.states(&[Uuid::from_u128(1)])).expect("reads");
            assert_eq!(states[&Uuid::from_u128(1)].version, Some(round));
            assert_eq!(inner.read(Engine::count).expect("counts"), 1 + round as usize);
        }
        let query = VectorQuery {
            vector: vec![0.6, 0.8],
            using: VectorName::Image,
            filter: Filter::default(),
            limit: 10,
            with: HitParts::default(),
        };
        assert_eq!(inner.read(|engine| engine.search(query)).expect("searches").len(), 4);
    }
}
