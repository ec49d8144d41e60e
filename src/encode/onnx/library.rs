//! Finding and loading the ONNX Runtime library, once in a process, with a `Result`.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock};

use anyhow::{Context, Result, anyhow, bail, ensure};
use ort::environment::Environment;

/// File name of the library, as the `onnxruntime` wheel and its release archives call it (a version may follow).
const LIBRARY_NAME: &str = "libonnxruntime.so";

/// ONNX Runtime allows one environment in a process; it lives as long as the process.
static ENVIRONMENT: OnceLock<Environment> = OnceLock::new();
static STARTING: Mutex<()> = Mutex::new(());

/// Finds and loads the shared library; later calls return the first environment.
pub fn environment(configured: &Path) -> Result<&'static Environment> {
    let _guard = STARTING.lock().map_err(|_| anyhow!("an earlier start of ONNX Runtime panicked"))?;
    if let Some(environment) = ENVIRONMENT.get() {
        return Ok(environment);
    }
    let library = find_library(configured)?;
    let environment = ort::init_from(&library)
        .map_err(|error| {
            anyhow!(
                "cannot use the ONNX Runtime library {}: {error}; run `make setup`, or set encoder.library to a \
                 libonnxruntime.so of version 1.22 or later",
                library.display()
            )
        })?
        .with_name("feedlens")
        .with_telemetry(false)
        .build()
        .map_err(|error| anyhow!("ONNX Runtime does not start: {error}"))?;
    tracing::debug!(library = %library.display(), "ONNX Runtime loaded");
    Ok(ENVIRONMENT.get_or_init(|| environment))
}

fn find_library(configured: &Path) -> Result<PathBuf> {
    let from_environment = std::env::var_os("ORT_DYLIB_PATH").map(PathBuf::from).unwrap_or_default();
    for (named, by) in [(configured, "encoder.library"), (from_environment.as_path(), "ORT_DYLIB_PATH")] {
        if !named.as_os_str().is_empty() {
            ensure!(named.is_file(), "{by} names {}, which is not a file", named.display());
            return std::path::absolute(named).with_context(|| format!("{by} names {}", named.display()));
        }
    }
    let executable = std::env::current_exe().unwrap_or_default();
    let beside = |levels: usize| executable.ancestors().nth(levels).map(Path::to_owned).unwrap_or_default();
    // A checkout's own: from its root, and from anywhere for target/release/feedlens (and its deps/).
    let caches = [PathBuf::new(), beside(3), beside(4)].map(|root| root.join(".cache/onnxruntime"));
    let system = ["/usr/local/lib", "/usr/lib", "/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu"];
    let folders = caches.into_iter().chain([beside(1).join("lib"), beside(2).join("lib")]);
    for folder in folders.chain(system.iter().map(PathBuf::from)) {
        if let Some(library) = newest_library(&folder) {
            return std::path::absolute(&library).with_context(|| format!("found {}", library.display()));
        }
    }
    bail!(
        "the ONNX Runtime library ({LIBRARY_NAME}) is not on this machine: run `make setup`, which takes it from the \
         onnxruntime wheel, or set encoder.library or ORT_DYLIB_PATH to it"
    )
}

fn newest_library(folder: &Path) -> Option<PathBuf> {
    let entries = std::fs::read_dir(folder).ok()?;
    let named = |path: &PathBuf| {
        path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with(LIBRARY_NAME))
    };
    entries.filter_map(|entry| Some(entry.ok()?.path())).filter(named).max()
}
