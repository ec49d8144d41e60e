//! `feedlens ready`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use serde::Deserialize;

use crate::cli::{WrongUse, output};
use crate::config::Config;
use crate::service;

/// Longer than a worker takes to find out that a part of it does not answer.
const TIMEOUT: Duration = Duration::from_secs(25);

/// Ask the worker of this configuration whether it can do its work
///
/// Reads /readyz at admin.listen (at this machine's own address where that names all). Exit code 0: ready; 1: not ready,
/// with the reason, or nobody answers. For health checks in containers, where there is neither a shell nor curl.
#[derive(Args)]
pub struct Arguments {}

/// What `/readyz` answers.
#[derive(Deserialize)]
struct Answer {
    status: String,
    reason: Option<String>,
}

impl Arguments {
    /// Asks once.
    pub async fn run(self, config: Config) -> Result<()> {
        if config.admin.listen.is_empty() {
            return Err(WrongUse::new("admin.listen is empty, so the worker has no address to ask; set it").into());
        }
        let address = reachable(service::address("admin.listen", &config.admin.listen)?);
        let scheme = if config.admin.tls.is_set() { "https" } else { "http" };
        // The address is this machine's: no proxy lies before it, and its certificate bears the name that others call it by.
        let builder = reqwest::Client::builder().no_proxy().tls_built_in_root_certs(false).timeout(TIMEOUT);
        let client = builder.danger_accept_invalid_certs(true).build()?;
        let asked =
            client.get(format!("{scheme}://{address}/readyz")).send().await.map_err(reqwest::Error::without_url);
        let answer = asked.with_context(|| format!("no worker answers on {address} (admin.listen)"))?;
        let is_ready = answer.status().is_success();
        let body = answer.bytes().await.map_err(reqwest::Error::without_url)?;
        let answer = serde_json::from_slice::<Answer>(&body)
            .with_context(|| format!("what answers on {address} (admin.listen) is no worker of feedlens"))?;
        match answer.reason {
            _ if is_ready => output::print(answer.status + "\n"),
            Some(reason) => bail!("{}: {reason}", answer.status),
            None => bail!("{}", answer.status),
        }
    }
}

/// Where a listener on all addresses is reached from its own machine.
fn reachable(mut listen: SocketAddr) -> SocketAddr {
    match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => listen.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(ip) if ip.is_unspecified() => listen.set_ip(Ipv6Addr::LOCALHOST.into()),
        _ => {}
    }
    listen
}
