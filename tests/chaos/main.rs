//! `make chaos SEED=n MINUTES=m [STORE=edge|qdrant]`: nothing lost, nothing doubled, whatever fails.
//!
//! ```text
//! feed (seed) -> real Kafka -> feedlens ingest x 1 | 3 -> edge | proxy -> qdrant
//!                   ^              ^        |- pictures' host
//!                   +--------------+--------+-----------------+-- faults (seed)
//! at the end: topic, store, searches, dead letters -> oracle
//! ```
//! The feed and the faults are sequences that the seed alone decides (but for the port in pictures' URLs); the time decides
//! how far a run gets in them.

mod audit;
mod expect;
mod faults;
mod findings;
mod host;
mod kafka;
mod ledger;
mod material;
mod oracle;
mod plan;
mod poison;
#[path = "../it/ports.rs"]
mod ports;
mod posts;
mod proxy;
mod run;
mod search;
mod services;
mod stored;
mod vectors;
mod watch;
mod workers;

use std::process::ExitCode;
use std::time::Duration;

/// The repository.
const ROOT: &str = env!("CARGO_MANIFEST_DIR");
/// By [`StoreKind`].
const WORKERS: [usize; 2] = [1, 3];

/// Where the posts go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum StoreKind {
    Edge,
    Qdrant,
}

impl StoreKind {
    fn name(self) -> &'static str {
        match self {
            StoreKind::Edge => "edge",
            StoreKind::Qdrant => "qdrant",
        }
    }
}

/// What is run.
struct Settings {
    seed: u64,
    time: Duration,
    stores: Vec<StoreKind>,
}

impl Settings {
    fn read() -> Result<Self, String> {
        let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let number = |name: &str, default: f64| match variable(name) {
            None => Ok(default),
            Some(text) => text.parse::<f64>().map_err(|_| format!("{name}={text} is not a number")),
        };
        // For the short run of `make test`: its first faults differ most.
        let seed = variable("SEED").unwrap_or_else(|| "6".to_owned());
        let seed = seed.parse().map_err(|_| format!("SEED={seed} is not a whole number"))?;
        let minutes = number("MINUTES", 0.6)?;
        if !(minutes > 0.0 && minutes < 10_000.0) {
            return Err(format!("MINUTES={minutes} is not a length of time"));
        }
        let stores = match variable("STORE").as_deref() {
            None => vec![StoreKind::Edge, StoreKind::Qdrant],
            Some("edge") => vec![StoreKind::Edge],
            Some("qdrant") => vec![StoreKind::Qdrant],
            Some(other) => return Err(format!("STORE={other}: use edge or qdrant, or leave it out for both")),
        };
        Ok(Self { seed, time: Duration::from_secs_f64(minutes * 60.0), stores })
    }
}

fn main() -> ExitCode {
    if std::env::var_os("FEEDLENS_ALL_TESTS").is_none() && std::env::var_os("SEED").is_none() {
        println!("SKIPPED chaos: `make chaos SEED=1 MINUTES=2` runs it, and so does `make test`");
        return ExitCode::SUCCESS;
    }
    let settings = match Settings::read() {
        Ok(settings) => settings,
        Err(error) => {
            eprintln!("chaos: {error}");
            return ExitCode::from(2);
        }
    };
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    for store in &settings.stores {
        if *store == StoreKind::Qdrant && !has_qdrant() {
            println!("SKIPPED chaos on the qdrant store: there is no `qdrant` on the PATH");
            continue;
        }
        if !runtime.block_on(run::run(settings.seed, settings.time, *store)) {
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

fn has_qdrant() -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join("qdrant").is_file())
}
