//! Logs, signals, the admin endpoints.

use serde::{Deserialize, Serialize};

/// Section `[log]` of the configuration; the comments of `config/default.toml` are the reference.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct LogConfig {
    /// error, warn, info, debug, trace, or directives such as "info,feedlens::kafka=debug".
    pub level: String,
    /// "auto": readable on a terminal, JSON elsewhere. Or "text", "json".
    pub format: String,
}

/// Section `[admin]` of the configuration; the comments of `config/default.toml` are the reference.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct AdminConfig {
    /// /metrics, /livez, /readyz. Empty: none.
    pub listen: String,
}
