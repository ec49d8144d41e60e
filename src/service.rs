//! What every long-running command needs: logs, signals, and the admin endpoints.

use std::io::{IsTerminal, Write as _};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use axum::{Json, Router};
use futures::future::BoxFuture;
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::{Layer as _, SubscriberExt as _};
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Registry, reload};

use crate::metrics::Metrics;

mod serve;
pub mod tls;
pub mod watched;

pub use serve::{Limits, serve};
use tls::{Tls, TlsConfig};

/// A client of the admin endpoints that neither sends nor reads for so long is cut off.
const ADMIN_TIMEOUT: Duration = Duration::from_secs(10);
/// Between two looks at whether the worker is ready, for the metric `ready` and the log.
const READY_INTERVAL: Duration = Duration::from_secs(5);
/// Probes and scrapes are few.
const ADMIN_CONNECTIONS: usize = 256;

/// Section `[log]` of the configuration; the comments of `config/default.toml` are the reference.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct LogConfig {
    /// A level, or tracing directives.
    pub level: String,
    /// How a line looks.
    pub format: LogFormat,
}

/// How a line of log looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// Text on a terminal, JSON elsewhere.
    Auto,
    /// For people.
    Text,
    /// For machines.
    Json,
}

/// Section `[admin]` of the configuration; the comments of `config/default.toml` are the reference.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct AdminConfig {
    /// Address; empty: no admin endpoints.
    pub listen: String,
    /// Its certificate, if it has one.
    pub tls: TlsConfig,
}

/// ONNX Runtime tells of every node that it folds, and the embedded engine warns of flags that only its server sets. What
/// `log.level` says of these targets still wins.
const QUIET: &str = "ort=warn,qdrant_edge::common=error";

impl LogConfig {
    pub(crate) fn check(&self) -> Result<()> {
        self.filter().map(drop)
    }

    fn filter(&self) -> Result<EnvFilter> {
        // A word alone would be taken for a target, and a mistyped level would silence all others.
        let words = self.level.split(',').filter(|directive| !directive.contains(['=', '[']));
        let levels = words.map(|word| word.trim().parse::<LevelFilter>()).collect::<Result<Vec<_>, _>>();
        let filter = levels
            .map_err(anyhow::Error::from)
            .and_then(|_| Ok(EnvFilter::try_new(format!("{QUIET},{}", self.level))?));
        filter.with_context(|| {
            format!(
                "log.level = {:?} is neither a level (error, warn, info, debug, trace) nor directives such as \
                 \"info,feedlens::kafka=debug\"",
                self.level
            )
        })
    }
}

impl AdminConfig {
    pub(crate) fn check(&self) -> Result<()> {
        self.tls.check("admin.tls")?;
        if self.listen.is_empty() { Ok(()) } else { address("admin.listen", &self.listen).map(drop) }
    }
}

/// The process's logs.
pub struct Logs {
    filter: reload::Handle<EnvFilter, Registry>,
}

impl Logs {
    /// Sends them to stderr. Call once.
    ///
    /// # Errors
    /// `log.level` is not a level or directive.
    pub fn start(config: &LogConfig) -> Result<Self> {
        let (filter, handle) = reload::Layer::new(config.filter()?);
        let on_terminal = std::io::stderr().is_terminal();
        // A line that cannot be written (a full disk, a reader that has gone) is lost: to tell of it on the same stderr would
        // panic, and end the worker.
        let lines = tracing_subscriber::fmt::layer().log_internal_errors(false).with_writer(std::io::stderr);
        let lines = match config.format {
            LogFormat::Json => lines.json().flatten_event(true).boxed(),
            LogFormat::Auto if !on_terminal => lines.json().flatten_event(true).boxed(),
            LogFormat::Auto | LogFormat::Text => lines.with_ansi(on_terminal).with_target(false).boxed(),
        };
        tracing_subscriber::registry().with(filter).with(lines).init();
        Ok(Self { filter: handle })
    }

    /// Takes the level of another configuration.
    ///
    /// # Errors
    /// It is not a level or directive.
    pub fn set_level(&self, config: &LogConfig) -> Result<()> {
        self.filter.reload(config.filter()?).context("the level of the log cannot be set")
    }
}

/// Ends the process without the destructors that C and C++ libraries leave for its end: threads that were left behind, with a
/// batch or a connection, may still be in them. What is to be durable was made so before.
pub fn end_process(code: u8) -> ! {
    // A reader that has gone is no news here.
    let _ = std::io::stdout().flush();
    // SAFETY: ends the process, and touches no memory of ours.
    unsafe { libc::_exit(i32::from(code)) }
}

/// A token that SIGTERM or SIGINT cancels. A second signal ends the process at once with exit code 1.
///
/// # Errors
/// The handlers cannot be installed.
pub fn shutdown_on_signal() -> Result<CancellationToken> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
    let token = CancellationToken::new();
    let cancelled = token.clone();
    tokio::spawn(async move {
        for stop_at_once in [false, true] {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            if stop_at_once {
                tracing::warn!("second signal: stopping at once; what was in flight comes again from Kafka");
                end_process(1);
            }
            tracing::info!("stopping: finishing what is in flight; a second signal stops at once");
            cancelled.cancel();
        }
    });
    Ok(token)
}

/// What the endpoints of health ask; `Err` says what is wrong.
#[derive(Clone)]
pub struct Health {
    /// Whether the worker can do its work.
    pub ready: Arc<dyn Fn() -> BoxFuture<'static, Result<()>> + Send + Sync>,
    /// Whether it still can without a new process; must not block.
    pub live: Arc<dyn Fn() -> Result<()> + Send + Sync>,
}

#[derive(Clone)]
struct Admin {
    metrics: Arc<Metrics>,
    health: Health,
    shutdown: CancellationToken,
}

/// An address and port to listen on.
///
/// # Errors
/// It is malformed; the error says which key to change.
pub fn address(key: &str, listen: &str) -> Result<SocketAddr> {
    listen
        .parse()
        .with_context(|| format!("{key} = {listen:?} is not of the form address:port, such as 127.0.0.1:8080"))
}

/// Binds a port, with an error that says which key to change.
///
/// # Errors
/// The address is malformed or taken.
pub async fn bind(listen: &str, key: &str) -> Result<TcpListener> {
    TcpListener::bind(address(key, listen)?)
        .await
        .with_context(|| format!("cannot listen on {listen} (set {key} to a free address:port)"))
}

/// Serves `/metrics`, `/livez` and `/readyz` from a task of its own, to the end of the process: a drain can be watched.
/// From `shutdown` on the worker is no longer ready.
///
/// # Errors
/// The address is malformed or taken, or the certificate is no good.
pub async fn start_admin(
    config: &AdminConfig,
    metrics: Arc<Metrics>,
    health: Health,
    shutdown: CancellationToken,
) -> Result<()> {
    if config.listen.is_empty() {
        return Ok(());
    }
    let tls = Tls::open("admin.tls", &config.tls, &metrics)?;
    let listener = bind(&config.listen, "admin.listen").await?;
    let admin = Admin { metrics, health, shutdown };
    tokio::spawn(watch_readiness(admin.clone()));
    let router = Router::new()
        .route("/metrics", get(render_metrics))
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .with_state(admin);
    let full = Router::new().fallback(async || StatusCode::SERVICE_UNAVAILABLE);
    let limits = Limits { timeout: ADMIN_TIMEOUT, connections: ADMIN_CONNECTIONS, full };
    tokio::spawn(serve(listener, tls, router, limits, CancellationToken::new()));
    Ok(())
}

/// Keeps the metric `ready`, and logs when a worker that was ready is no longer, and when it is again.
async fn watch_readiness(admin: Admin) {
    let mut ticks = tokio::time::interval(READY_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut was_ready, mut is_told) = (false, false);
    let watch = async {
        loop {
            ticks.tick().await;
            let ready = (admin.health.ready)().await;
            admin.metrics.ready.set(i64::from(ready.is_ok()));
            match &ready {
                Ok(()) if is_told => {
                    tracing::info!("the worker is ready again");
                    is_told = false;
                }
                Err(error) if was_ready => {
                    tracing::warn!("the worker is no longer ready: {error:#}");
                    is_told = true;
                }
                _ => {}
            }
            was_ready = ready.is_ok();
        }
    };
    admin.shutdown.run_until_cancelled(watch).await;
    admin.metrics.ready.set(0);
}

async fn render_metrics(State(admin): State<Admin>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], admin.metrics.render())
}

async fn livez(State(admin): State<Admin>) -> impl IntoResponse {
    state("ok", "not alive", (admin.health.live)())
}

async fn readyz(State(admin): State<Admin>) -> impl IntoResponse {
    if admin.shutdown.is_cancelled() {
        return (StatusCode::SERVICE_UNAVAILABLE, Json(serde_json::json!({"status": "draining"})));
    }
    state("ready", "not ready", (admin.health.ready)().await)
}

fn state(good: &str, bad: &str, checked: Result<()>) -> (StatusCode, Json<serde_json::Value>) {
    match checked {
        Ok(()) => (StatusCode::OK, Json(serde_json::json!({"status": good}))),
        Err(error) => {
            (StatusCode::SERVICE_UNAVAILABLE, Json(serde_json::json!({"status": bad, "reason": format!("{error:#}")})))
        }
    }
}
