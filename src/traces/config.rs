//! Section `[traces]` of the configuration.

use anyhow::{Context as _, Result, anyhow, ensure};
use opentelemetry::KeyValue;
use percent_encoding::percent_decode_str;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use serde::{Deserialize, Serialize};
use url::Url;

use crate::config::Secret;
use crate::config::secret::has_userinfo;

/// Where traces go below the endpoint, by the OTLP specification.
const PATH: &str = "/v1/traces";

/// Section `[traces]` of the configuration; the comments of `config/default.toml` are the reference.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct TracesConfig {
    /// Base URL of an OTLP collector (HTTP, protobuf); empty: no traces.
    pub endpoint: String,
    /// Share of the traces that begin here which are recorded.
    pub sample_ratio: f64,
    /// Sent along with each export: `name=value,name=value`, values percent-encoded where they need it.
    pub headers: Secret,
    /// What the collector is told of this process, in the same form.
    pub resource_attributes: String,
}

impl TracesConfig {
    pub(crate) fn check(&self) -> Result<()> {
        ensure!(
            (0.0..=1.0).contains(&self.sample_ratio),
            "traces.sample_ratio ({}) must be from 0 to 1",
            self.sample_ratio
        );
        self.url()?;
        self.header_map()?;
        self.attributes().map(drop)
    }

    /// Where spans are sent.
    pub(super) fn url(&self) -> Result<Option<Url>> {
        if self.endpoint.is_empty() {
            return Ok(None);
        }
        let is_base = |url: &Url| {
            matches!(url.scheme(), "http" | "https")
                && url.has_host()
                && !has_userinfo(url)
                && url.query().is_none()
                && url.fragment().is_none()
                && !url.path().trim_end_matches('/').ends_with(PATH)
        };
        // Not quoted: a user's password may be in it.
        let mut url = Url::parse(&self.endpoint).ok().filter(is_base).ok_or_else(|| {
            anyhow!(
                "traces.endpoint is not the http:// or https:// base URL of an OTLP collector, such as \
                 http://localhost:4318: without a user (traces.headers has what tells who sends), a query, or {PATH}, which is \
                 added"
            )
        })?;
        url.set_path(&format!("{}{PATH}", url.path().trim_end_matches('/')));
        Ok(Some(url))
    }

    /// What is sent along with each export.
    pub(super) fn header_map(&self) -> Result<HeaderMap> {
        let mut headers = HeaderMap::new();
        for (index, (name, value)) in pairs("traces.headers", self.headers.expose())?.into_iter().enumerate() {
            // Neither is quoted: whoever mistakes the form may have written the secret in front of the "=".
            let part = || format!("traces.headers: part {} is no HTTP header", index + 1);
            let mut value = HeaderValue::from_str(&value).with_context(part)?;
            value.set_sensitive(true);
            headers.insert(HeaderName::from_bytes(name.as_bytes()).with_context(part)?, value);
        }
        Ok(headers)
    }

    /// Attributes of the resource.
    pub(super) fn attributes(&self) -> Result<Vec<KeyValue>> {
        let pairs = pairs("traces.resource_attributes", &self.resource_attributes)?;
        Ok(pairs.into_iter().map(|(name, value)| KeyValue::new(name, value)).collect())
    }
}

/// What tells this process from others of its service.
pub(super) fn host_attributes(host: Option<String>) -> Vec<KeyValue> {
    let known = [
        KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
        KeyValue::new("process.pid", i64::from(std::process::id())),
    ];
    known.into_iter().chain(host.map(|host| KeyValue::new("host.name", host))).collect()
}

/// `name=value,name=value`, as OTEL_EXPORTER_OTLP_HEADERS and OTEL_RESOURCE_ATTRIBUTES have it: spaces around names and values
/// do not count, values may be percent-encoded.
fn pairs(key: &str, text: &str) -> Result<Vec<(String, String)>> {
    let parts = text.split(',').enumerate().filter(|(_, part)| !part.trim().is_empty());
    let pair = |(index, part): (usize, &str)| {
        let pair = part.split_once('=').map(|(name, value)| (name.trim(), value.trim()));
        let pair = pair.filter(|(name, _)| !name.is_empty()).and_then(|(name, value)| {
            Some((name.to_owned(), percent_decode_str(value).decode_utf8().ok()?.into_owned()))
        });
        pair.ok_or_else(|| anyhow!("{key}: part {} is not of the form name=value", index + 1))
    };
    parts.map(pair).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(endpoint: &str, headers: &str) -> TracesConfig {
        let headers = Secret::new(headers);
        TracesConfig { endpoint: endpoint.to_owned(), sample_ratio: 1.0, headers, resource_attributes: String::new() }
    }

    #[test]
    fn the_path_is_added_to_the_base() {
        let url = |endpoint| config(endpoint, "").url().expect("is good").map(String::from);
        assert_eq!(url("http://localhost:4318").as_deref(), Some("http://localhost:4318/v1/traces"));
        assert_eq!(url("https://otlp.example.org/team/").as_deref(), Some("https://otlp.example.org/team/v1/traces"));
        assert_eq!(url(""), None);
    }

    #[test]
    fn what_is_no_base_url_is_refused_and_not_repeated() {
        for endpoint in [
            "localhost:4318",
            "grpc://host:4317",
            "http://ada:hunter2@host:4318",
            "http://hunter2@host:4318",
            "http://host:4318?key=hunter2",
            "http://host:4318#hunter2",
            "http://host:4318/v1/traces",
            "hunter2",
        ] {
            let error = format!("{:#}", config(endpoint, "").check().expect_err(endpoint));
            assert!(error.contains("traces.endpoint") && !error.contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn headers_are_pairs_and_a_mistake_is_not_repeated() {
        let headers = config("", "Authorization=Bearer%20a=b, x-team = feed ,").header_map().expect("is good");
        assert_eq!(
            (&headers["authorization"], &headers["x-team"]),
            (&"Bearer a=b".parse().expect("a value"), &"feed".parse().expect("a value"))
        );
        assert!(!format!("{headers:?}").contains("Bearer"));
        for headers in ["hunter2", "=hunter2", "a b=hunter2", "a=hunter2%0A", "a=%FFhunter2", "ok=1,hunter2"] {
            let error = format!("{:#}", config("", headers).check().expect_err(headers));
            assert!(error.contains("traces.headers: part") && !error.contains("hunter2"), "{error}");
        }
    }
}
