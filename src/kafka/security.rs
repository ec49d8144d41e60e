//! Who the brokers are and who we are: TLS and SASL. The checks of their keys, what librdkafka gets of them, and what a
//! refusal means.

use std::path::Path;

use anyhow::{Context, ensure};
use rdkafka::config::ClientConfig;
use rdkafka::error::RDKafkaErrorCode;

use super::KafkaConfig;

const OAUTHBEARER: &str = "OAUTHBEARER";
const SASL_MECHANISMS: [&str; 4] = ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", OAUTHBEARER];

impl KafkaConfig {
    /// Relations between the keys of security, and that the files are there.
    pub(super) fn check_security(&self) -> anyhow::Result<()> {
        let (security, mechanism) = (self.security.as_str(), self.sasl_mechanism.as_str());
        ensure!(
            ["plaintext", "ssl", "sasl_plaintext", "sasl_ssl"].contains(&security),
            "kafka.security is {security:?}; use \"plaintext\", \"ssl\", \"sasl_plaintext\" or \"sasl_ssl\""
        );
        ensure!(
            mechanism.is_empty() || SASL_MECHANISMS.contains(&mechanism),
            "kafka.sasl_mechanism is {mechanism:?}; this build knows {}",
            SASL_MECHANISMS.map(|known| format!("{known:?}")).join(", ")
        );
        ensure!(
            security.starts_with("sasl_") != mechanism.is_empty(),
            "kafka.security {security:?} and kafka.sasl_mechanism {mechanism:?} do not fit together; set both for SASL, or \
             neither"
        );
        ensure!(
            mechanism.is_empty()
                || self.uses_oauth()
                || !(self.sasl_username.is_empty() || self.sasl_password.is_empty()),
            "kafka.sasl_mechanism {mechanism:?} needs kafka.sasl_username and kafka.sasl_password"
        );
        self.oauth.check(self.uses_oauth())?;
        for (key, file) in self.ssl_files() {
            ensure!(
                security.ends_with("ssl"),
                "{key} is set, but kafka.security is {security:?}; use \"ssl\" or \"sasl_ssl\" for TLS"
            );
            std::fs::read(file).with_context(|| format!("{key}: cannot read {}", file.display()))?;
        }
        ensure!(
            self.ssl_certificate.as_os_str().is_empty() == self.ssl_key.as_os_str().is_empty(),
            "kafka.ssl_certificate and kafka.ssl_key go together; set both, or neither"
        );
        Ok(())
    }

    pub(super) fn uses_oauth(&self) -> bool {
        self.sasl_mechanism == OAUTHBEARER
    }

    fn ssl_files(&self) -> impl Iterator<Item = (&'static str, &Path)> {
        let files = [
            ("kafka.ssl_ca", &self.ssl_ca),
            ("kafka.ssl_certificate", &self.ssl_certificate),
            ("kafka.ssl_key", &self.ssl_key),
        ];
        files.into_iter().filter(|(_, file)| !file.as_os_str().is_empty()).map(|(key, file)| (key, file.as_path()))
    }

    pub(super) fn set_security(&self, config: &mut ClientConfig) {
        config.set("security.protocol", &self.security);
        for (key, file) in self.ssl_files() {
            let name = match key {
                "kafka.ssl_ca" => "ssl.ca.location",
                "kafka.ssl_certificate" => "ssl.certificate.location",
                _ => "ssl.key.location",
            };
            config.set(name, file.to_string_lossy());
        }
        if !self.ssl_key_password.is_empty() {
            config.set("ssl.key.password", self.ssl_key_password.expose());
        }
        if !self.sasl_mechanism.is_empty() {
            config.set("sasl.mechanism", &self.sasl_mechanism);
        }
        if !self.sasl_username.is_empty() {
            config.set("sasl.username", &self.sasl_username).set("sasl.password", self.sasl_password.expose());
        }
    }
}

/// Why the brokers do not work with us, although they are there. Closed: also the label `kind` of `kafka_errors_total`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusal {
    /// One of the two sides does not accept the other's certificate.
    Tls,
    /// They do not accept who we say that we are.
    Authentication,
    /// They know us, and do not let us use the topic or the cluster.
    Topic,
    /// They know us, and do not let us use the group.
    Group,
}

impl Refusal {
    /// `reason`: librdkafka's text.
    pub(super) fn of(code: RDKafkaErrorCode, reason: &str) -> Option<Self> {
        match code {
            // In TLS 1.3 brokers look at our certificate after the handshake, and then they only send an alert.
            RDKafkaErrorCode::BrokerTransportFailure if reason.contains("SSL alert") => Some(Self::Tls),
            RDKafkaErrorCode::SSL => Some(Self::Tls),
            RDKafkaErrorCode::Authentication
            | RDKafkaErrorCode::SaslAuthenticationFailed
            | RDKafkaErrorCode::IllegalSASLState
            | RDKafkaErrorCode::UnsupportedSASLMechanism => Some(Self::Authentication),
            RDKafkaErrorCode::TopicAuthorizationFailed | RDKafkaErrorCode::ClusterAuthorizationFailed => {
                Some(Self::Topic)
            }
            RDKafkaErrorCode::GroupAuthorizationFailed => Some(Self::Group),
            _ => None,
        }
    }

    /// The name in metrics.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Tls => "tls",
            Self::Authentication => "authentication",
            Self::Topic | Self::Group => "authorization",
        }
    }

    pub(super) fn way_out(self) -> &'static str {
        match self {
            Self::Tls => {
                "look at kafka.ssl_ca, at kafka.ssl_certificate, and at the names in the brokers' certificates"
            }
            Self::Authentication => {
                "look at kafka.sasl_mechanism, at kafka.sasl_username and kafka.sasl_password, or at kafka.oauth"
            }
            Self::Topic => "let this user read the topic (DESCRIBE and READ)",
            Self::Group => "let this user read the consumer group (READ)",
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::config::{Config, Overrides};

    #[test]
    fn keys_that_do_not_fit_together_are_named_with_the_way_out() {
        let oauth = ["kafka.security=sasl_ssl", "kafka.sasl_mechanism=OAUTHBEARER"];
        let client = ["kafka.oauth.client_id=a", "kafka.oauth.client_secret=hunter2"];
        let url = ["kafka.oauth.token_url=https://id.example.org/token"];
        let all = [&oauth[..], &client, &url].concat();
        let cases: [(&[&str], [&str; 2]); 13] = [
            (&["kafka.security=tls"], ["kafka.security", "sasl_ssl"]),
            (&["kafka.security=sasl_ssl"], ["kafka.sasl_mechanism", "set both"]),
            (&["kafka.sasl_mechanism=PLAIN"], ["kafka.security", "or neither"]),
            (&["kafka.sasl_mechanism=GSSAPI"], ["kafka.sasl_mechanism", "OAUTHBEARER"]),
            (
                &["kafka.security=sasl_ssl", "kafka.sasl_mechanism=PLAIN"],
                ["kafka.sasl_username", "kafka.sasl_password"],
            ),
            (&oauth, ["OAUTHBEARER", "kafka.oauth.client_secret"]),
            (&[&oauth[..], &client].concat(), ["kafka.oauth.token_url", "https"]),
            (&[&all[..], &["kafka.oauth.token_url=https://a:hunter2@b/"]].concat(), ["kafka.oauth.token_url", "user"]),
            (&[&all[..], &["kafka.oauth.timeout=1m"]].concat(), ["kafka.oauth.timeout", "at most"]),
            (&url, ["kafka.oauth", "kafka.sasl_mechanism"]),
            (&["kafka.ssl_ca=Cargo.toml"], ["kafka.ssl_ca", "\"plaintext\""]),
            (&["kafka.security=ssl", "kafka.ssl_ca=nowhere.pem"], ["kafka.ssl_ca", "nowhere.pem"]),
            (&["kafka.security=ssl", "kafka.ssl_key=Cargo.toml"], ["kafka.ssl_certificate", "set both"]),
        ];
        for (set, parts) in cases {
            let set = set.iter().map(|assignment| (*assignment).to_owned()).collect();
            let error = format!("{:#}", Config::load(&[], &Overrides { files: vec![], set }).expect_err(parts[0]));
            assert!(parts.iter().all(|part| error.contains(part)) && !error.contains("hunter2"), "{error}");
        }
        let set = all.iter().map(|assignment| (*assignment).to_owned()).collect();
        Config::load(&[], &Overrides { files: vec![], set }).expect("all that OAUTHBEARER needs");
    }
}
