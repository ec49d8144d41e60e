//! TLS for the ports that are served: a certificate and its key from PEM files, which are read again when they change, as
//! renewals change them.

use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::server::TlsStream;
use tokio_util::task::AbortOnDropHandle;

use crate::metrics::Metrics;
use crate::service::watched::{read_text, watch};

/// Only what is asked for: the interface and the admin endpoints speak HTTP/1.1.
const PROTOCOL: &[u8] = b"http/1.1";

/// Section `[admin.tls]` or `[query.tls]` of the configuration; the comments of `config/default.toml` are the reference.
#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct TlsConfig {
    /// PEM file of the certificate, and of those between it and its authority.
    pub certificate: PathBuf,
    /// PEM file of its private key, without a password.
    pub key: PathBuf,
}

impl TlsConfig {
    /// `section`: the keys' own, such as `query.tls`.
    pub(crate) fn check(&self, section: &str) -> Result<()> {
        ensure!(
            self.certificate.as_os_str().is_empty() == self.key.as_os_str().is_empty(),
            "{section}.certificate and {section}.key belong together: set both, or none for a port without TLS"
        );
        Ok(())
    }

    /// Whether the port has TLS.
    pub fn is_set(&self) -> bool {
        !self.certificate.as_os_str().is_empty()
    }

    /// What is served with these files.
    ///
    /// # Errors
    /// A file that cannot be read or is not of its form, or a key that is not the certificate's.
    pub fn server(&self, section: &str) -> Result<Option<Arc<ServerConfig>>> {
        let server = || read(self).and_then(|files| parse(&files)).with_context(|| section.to_owned());
        self.is_set().then(server).transpose()
    }
}

/// A certificate that may change while it is served.
pub struct Tls {
    current: Arc<RwLock<Arc<ServerConfig>>>,
    _watching: AbortOnDropHandle<()>,
}

impl Tls {
    /// `None`: the port has none. `section`: its part of the configuration, for errors and the log. Needs a running tokio
    /// runtime.
    ///
    /// # Errors
    /// Those of [`TlsConfig::server`].
    pub fn open(section: &'static str, config: &TlsConfig, metrics: &Arc<Metrics>) -> Result<Option<Self>> {
        let Some(server) = config.server(section)? else { return Ok(None) };
        let current = Arc::new(RwLock::new(server));
        let (config, metrics, served) = (config.clone(), Arc::clone(metrics), Arc::clone(&current));
        let watching = watch(
            move || read(&config),
            move |files| {
                let outcome = match files.and_then(|files| parse(&files)) {
                    Ok(server) => {
                        *served.write().unwrap_or_else(PoisonError::into_inner) = server;
                        tracing::info!(section, "the certificate is read anew; new connections get it");
                        "ok"
                    }
                    Err(error) => {
                        tracing::error!(section, "the certificate stays as it was, the files are no good: {error:#}");
                        "failed"
                    }
                };
                metrics.tls_reloads.with_label_values(&[section, outcome]).inc();
            },
        );
        Ok(Some(Self { current, _watching: watching }))
    }

    /// Shakes hands with a client.
    ///
    /// # Errors
    /// It speaks no TLS, or none that we do.
    pub async fn accept<S: AsyncRead + AsyncWrite + Unpin>(&self, stream: S) -> std::io::Result<TlsStream<S>> {
        let current = Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner));
        TlsAcceptor::from(current).accept(stream).await
    }
}

/// The texts of both files.
#[derive(Clone, PartialEq)]
struct Files {
    certificate: String,
    key: String,
}

fn read(config: &TlsConfig) -> Result<Files> {
    let one = |name: &str, path: &PathBuf| read_text(path).with_context(|| format!("{name} = {path:?}"));
    Ok(Files { certificate: one("certificate", &config.certificate)?, key: one("key", &config.key)? })
}

/// Nothing of the key is shown in an error.
fn parse(files: &Files) -> Result<Arc<ServerConfig>> {
    let certificates = CertificateDer::pem_slice_iter(files.certificate.as_bytes()).collect::<Result<Vec<_>, _>>();
    let certificates = certificates.context("certificate: it is no PEM file")?;
    ensure!(!certificates.is_empty(), "certificate: it holds no certificate (-----BEGIN CERTIFICATE-----)");
    let key = PrivateKeyDer::from_pem_slice(files.key.as_bytes()).map_err(|_| {
        anyhow::anyhow!("key: it holds no private key in PEM form without a password (-----BEGIN PRIVATE KEY-----)")
    })?;
    let provider = Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
    let mut server = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(certificates, key)
        .context("certificate and key do not fit together, or are of a kind that is not served")?;
    server.alpn_protocols = vec![PROTOCOL.to_vec()];
    Ok(Arc::new(server))
}
