//! SIGHUP: the configuration is read again, and what can change while a worker runs, changes.

use std::sync::Arc;

use anyhow::{Context, Result};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::task::AbortOnDropHandle;

use crate::config::{Config, Overrides};
use crate::metrics::Metrics;
use crate::service::Logs;

/// Where a worker's configuration comes from, and what of it can change.
pub struct Reload {
    /// The files and options that it was started with.
    pub overrides: Overrides,
    /// Its logs, whose level changes.
    pub logs: Logs,
}

impl Reload {
    /// Reads the configuration again at each SIGHUP, as long as the answer is kept. One that is no good changes nothing, and
    /// the log says so.
    ///
    /// # Errors
    /// The handler cannot be installed.
    pub fn at_hangup(self, mut current: Config, metrics: Arc<Metrics>) -> Result<AbortOnDropHandle<()>> {
        let mut hangups = signal(SignalKind::hangup()).context("cannot listen for SIGHUP")?;
        Ok(AbortOnDropHandle::new(tokio::spawn(async move {
            while hangups.recv().await.is_some() {
                let outcome = match self.apply(&current) {
                    Ok(new) => {
                        current = new;
                        "ok"
                    }
                    Err(error) => {
                        tracing::error!("SIGHUP: the configuration stays as it was: {error:#}");
                        "failed"
                    }
                };
                metrics.config_reloads.with_label_values(&[outcome]).inc();
            }
        })))
    }

    fn apply(&self, current: &Config) -> Result<Config> {
        let new = Config::load(&[], &self.overrides)?;
        let (applied, others): (Vec<_>, Vec<_>) =
            current.changed_keys(&new)?.into_iter().partition(|key| key == "log.level");
        self.logs.set_level(&new.log)?;
        tracing::info!(changed = ?applied, "SIGHUP: the configuration is read anew");
        if !others.is_empty() {
            // Told again at each signal until the restart: what runs is not what the file says.
            tracing::warn!(keys = ?others, "SIGHUP: these have changed too, and take a restart");
        }
        let mut running = current.clone();
        running.log.level = new.log.level;
        Ok(running)
    }
}
