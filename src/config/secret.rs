//! What is never printed: secrets of our own, and those among settings whose names are another program's.

use serde::{Deserialize, Serialize};

/// Stands for a secret wherever the configuration is shown.
const MASK: &str = "********";

/// Parts of names that hold secrets, in our own keys and in librdkafka's.
const SECRET_NAMES: [&str; 8] =
    ["api_key", "jaas", "key.pem", "passphrase", "password", "secret", "token", "traces.headers"];

/// Whether the value of a key with this name must not be shown.
pub fn is_secret(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    SECRET_NAMES.iter().any(|part| name.contains(part))
}

/// What may be shown of a value: nothing of a secret, and of a URL all but a user's name and password.
pub fn shown(name: &str, value: &str) -> String {
    if value.is_empty() {
        return String::new();
    }
    if is_secret(name) {
        return MASK.to_owned();
    }
    match url::Url::parse(value) {
        Ok(mut url) if has_userinfo(&url) => {
            // Refused only by URLs that have no host, and those have no user either.
            let _ = url.set_username(MASK).and_then(|()| url.set_password(None));
            url.into()
        }
        _ => value.to_owned(),
    }
}

/// Whether a URL names a user or a password.
pub fn has_userinfo(url: &url::Url) -> bool {
    !url.username().is_empty() || url.password().is_some()
}

/// A text that is never printed: `Debug` and serialising show asterisks.
#[derive(Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// A secret.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text itself; name this call sparingly.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Whether it is unset.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn masked(&self) -> &'static str {
        if self.0.is_empty() { "" } else { MASK }
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{:?}", self.masked())
    }
}

impl Serialize for Secret {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.masked())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_secret_is_masked() {
        for name in [
            "ssl.key.password",
            "ssl.keystore.password",
            "ssl.key.pem",
            "sasl.jaas.config",
            "sasl.oauthbearer.client.secret",
            "kafka.sasl_password",
            "SSL.KEY.PASSWORD",
            "query.api_keys",
        ] {
            assert_eq!(shown(name, "hunter2"), MASK, "{name}");
        }
        assert_eq!(shown("fetch.max.bytes", "1000"), "1000");
        assert_eq!(shown("ssl.ca.location", "/etc/ca.pem"), "/etc/ca.pem");
        assert_eq!(shown("ssl.key.password", ""), "");
    }

    #[test]
    fn urls_lose_their_user_and_password() {
        for url in ["https://ada:hunter2@host:8081/path", "https://hunter2@host/"] {
            let masked = shown("schema.registry.url", url);
            assert!(!masked.contains("hunter2") && !masked.contains("ada") && masked.contains("host"), "{masked}");
        }
        assert_eq!(shown("url", "https://host:8081/path?a=b@c"), "https://host:8081/path?a=b@c");
    }
}
