//! The run's own Kafka and Qdrant, started, killed and resumed by the project's script.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result, bail};
use tokio::process::Command;

use crate::ROOT;

/// Away from the ports of `make services`, below those that the system gives out, and apart from those of another run: the
/// ports of a broker that was killed look free to whoever starts one then.
fn first_port() -> u32 {
    20_000 + std::process::id() % 600 * 20
}

/// The services in one folder.
pub struct Services {
    folder: PathBuf,
    names: &'static [&'static str],
}

impl Services {
    /// Starts the services empty; whatever an earlier run left there is ended first.
    pub async fn start(folder: &Path, names: &'static [&'static str]) -> Result<Self> {
        let services = Self::at(folder.to_owned(), names);
        services.script("stop", names).await?;
        services.script("start", names).await?;
        Ok(services)
    }

    /// Those in this folder, as they are.
    pub fn at(folder: PathBuf, names: &'static [&'static str]) -> Self {
        Self { folder, names }
    }

    /// An address that the script gives: `KAFKA_BROKERS`, `QDRANT_URL`.
    pub async fn address(&self, name: &str) -> Result<String> {
        let environment = self.script("env", &[]).await?;
        let address = environment.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
        address.map(str::to_owned).with_context(|| format!("scripts/services.sh names no {name}"))
    }

    /// kill -9.
    pub async fn crash(&self, name: &'static str) -> Result<()> {
        self.script("crash", &[name]).await.map(drop)
    }

    /// Again, on the same data and port; returns when it answers.
    pub async fn resume(&self, name: &'static str) -> Result<()> {
        self.script("resume", &[name]).await.map(drop)
    }

    pub async fn stop(&self) -> Result<()> {
        self.script("stop", self.names).await.map(drop)
    }

    /// The logs, for whoever looks for the reason of a failure.
    pub fn keep_logs(&self, folder: &Path) {
        for name in self.names {
            let _ = std::fs::copy(self.folder.join(name).join("log"), folder.join(format!("{name}.log")));
        }
    }

    async fn script(&self, verb: &str, names: &[&str]) -> Result<String> {
        let output = Command::new("scripts/services.sh")
            .arg(verb)
            .args(names)
            .current_dir(ROOT)
            .env("FEEDLENS_SERVICES_DIR", &self.folder)
            .env("FEEDLENS_SERVICES_PORT", first_port().to_string())
            .stdin(Stdio::null())
            .output()
            .await
            .context("scripts/services.sh")?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            bail!("scripts/services.sh {verb} {names:?}: {}", said.lines().last().unwrap_or_default());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}
