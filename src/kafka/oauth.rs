//! Tokens for OAUTHBEARER by the client-credentials grant (RFC 6749, section 4.4), as OpenID Connect providers serve it.
//! librdkafka's own way needs libcurl, which it is built without.

use std::error::Error;
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::ensure;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rdkafka::client::OAuthToken;
use reqwest::header::{ACCEPT, CONTENT_TYPE};
use serde::{Deserialize, Serialize};
use url::Url;
use url::form_urlencoded::{Serializer, byte_serialize};

use crate::config::Secret;
use crate::config::secret::has_userinfo;

/// Tokens have some kilobytes; a larger answer is none.
const MAX_ANSWER_BYTES: usize = 256 * 1024;
/// The consumer's poll thread counts as hung after 30 s.
const MAX_TIMEOUT: Duration = Duration::from_secs(15);
/// Of what the endpoint says about a refusal.
const MAX_REASON_CHARS: usize = 200;

/// Section `[kafka.oauth]` of the configuration; the comments of `config/default.toml` are the reference.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct OauthConfig {
    /// The endpoint that gives tokens.
    pub token_url: String,
    /// Who asks.
    pub client_id: String,
    /// The password of `client_id`.
    pub client_secret: Secret,
    /// Scopes to ask for, separated by spaces.
    pub scope: String,
    /// One answer of the endpoint.
    #[serde(with = "humantime_serde")]
    pub timeout: Duration,
}

/// What the endpoint answers: RFC 6749, sections 5.1 and 5.2.
#[derive(Deserialize)]
struct Answer {
    access_token: Option<String>,
    /// Seconds.
    expires_in: Option<f64>,
    error: Option<String>,
    error_description: Option<String>,
}

/// What is read of a token that is a JWT (RFC 7519); others are opaque to clients.
#[derive(Default, Deserialize)]
struct Claims {
    sub: Option<String>,
    /// Seconds since 1970.
    exp: Option<f64>,
}

impl OauthConfig {
    /// `is_used`: whether `kafka.sasl_mechanism` is OAUTHBEARER.
    pub(super) fn check(&self, is_used: bool) -> anyhow::Result<()> {
        let is_set = !(self.token_url.is_empty() && self.client_id.is_empty() && self.client_secret.is_empty());
        if !is_used {
            ensure!(
                !is_set,
                "kafka.oauth is set, but kafka.sasl_mechanism is not \"OAUTHBEARER\"; set it, or clear the section"
            );
            return Ok(());
        }
        ensure!(
            !self.client_id.is_empty() && !self.client_secret.is_empty(),
            "OAUTHBEARER needs kafka.oauth.client_id and kafka.oauth.client_secret"
        );
        let url = Url::parse(&self.token_url).ok().filter(|url| matches!(url.scheme(), "https" | "http"));
        ensure!(
            url.is_some_and(|url| !has_userinfo(&url)),
            "kafka.oauth.token_url is not the https:// URL of a token endpoint, without a user; your identity provider tells it"
        );
        ensure!(
            !self.timeout.is_zero() && self.timeout <= MAX_TIMEOUT,
            "kafka.oauth.timeout is {:?}; the poll thread waits for the token, so that it must be at most {MAX_TIMEOUT:?}, and \
             longer than 0",
            self.timeout
        );
        Ok(())
    }

    /// Asks for a token and waits for it, at most `timeout`. For librdkafka's callback, whatever thread it comes on.
    pub(super) fn token(&self) -> Result<OAuthToken, Box<dyn Error>> {
        // A thread of its own: one that belongs to a tokio runtime must not block on another.
        let fetched = thread::scope(|scope| {
            let fetching = scope.spawn(|| {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
                runtime.map_err(|error| error.to_string())?.block_on(self.fetch())
            });
            fetching.join().unwrap_or_else(|_| Err("the request panicked. This is a bug.".to_owned()))
        });
        // librdkafka takes it as a C string.
        fetched.map_err(|reason| format!("no token from {}: {}", self.token_url, reason.replace('\0', " ")).into())
    }

    async fn fetch(&self) -> Result<OAuthToken, String> {
        let because = |error: reqwest::Error| match error.is_timeout() {
            true => format!("no answer within {:?} (kafka.oauth.timeout)", self.timeout),
            false => root_cause(&error.without_url()),
        };
        let client = reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .timeout(self.timeout)
            .build()
            .map_err(because)?;
        let mut form = Serializer::new(String::new());
        form.append_pair("grant_type", "client_credentials");
        if !self.scope.is_empty() {
            form.append_pair("scope", &self.scope);
        }
        // Section 2.3.1: both are form-encoded before they become HTTP Basic.
        let encoded = |text: &str| byte_serialize(text.as_bytes()).collect::<String>();
        let request = client
            .post(&self.token_url)
            .basic_auth(encoded(&self.client_id), Some(encoded(self.client_secret.expose())))
            .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
            .header(ACCEPT, "application/json")
            .body(form.finish());
        let mut response = request.send().await.map_err(because)?;
        let status = response.status();
        if status.is_redirection() {
            return Err(
                "it redirects, which is not followed; set kafka.oauth.token_url to the endpoint itself".to_owned()
            );
        }
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(because)? {
            body.extend_from_slice(&chunk);
            if body.len() > MAX_ANSWER_BYTES {
                return Err(format!("its answer is larger than {MAX_ANSWER_BYTES} bytes"));
            }
        }
        let answer = serde_json::from_slice::<Answer>(&body).ok();
        match answer {
            Some(Answer { access_token: Some(token), expires_in, .. }) if status.is_success() => {
                self.read(token, expires_in, now())
            }
            answer => Err(self.refusal(status, answer)),
        }
    }

    fn refusal(&self, status: reqwest::StatusCode, answer: Option<Answer>) -> String {
        let said = answer.and_then(|it| {
            it.error.map(|error| match it.error_description {
                Some(description) => format!("{error}: {description}"),
                None => error,
            })
        });
        // An endpoint may quote what it was sent.
        let said = said.map(|said| said.replace(self.client_secret.expose(), "********"));
        let said =
            said.map(|said| said.chars().filter(|it| !it.is_control()).take(MAX_REASON_CHARS).collect::<String>());
        let way_out = match status.as_u16() {
            200 => "is kafka.oauth.token_url the token endpoint?",
            400 | 401 | 403 => "look at kafka.oauth.client_id, kafka.oauth.client_secret and kafka.oauth.scope",
            404 | 405 => "look at kafka.oauth.token_url",
            _ => "look at the identity provider",
        };
        format!("it answered {status} without a token ({}); {way_out}", said.as_deref().unwrap_or("and says no reason"))
    }

    /// `now`: since 1970.
    fn read(&self, token: String, expires_in: Option<f64>, now: Duration) -> Result<OAuthToken, String> {
        let claims = claims(&token).unwrap_or_default();
        let by_answer = expires_in.map(|seconds| now.as_secs_f64() + seconds);
        let expires = match (claims.exp, by_answer) {
            (Some(claim), Some(answer)) => claim.min(answer),
            (one, other) => {
                one.or(other).ok_or("it does not say when its token expires (expires_in, or the claim exp)")?
            }
        };
        if expires <= now.as_secs_f64() {
            return Err(
                "its token has expired already; compare the clocks of this machine and of the endpoint".to_owned()
            );
        }
        let principal_name = claims.sub.unwrap_or_else(|| self.client_id.clone());
        Ok(OAuthToken { token, principal_name, lifetime_ms: (expires * 1_000.0) as i64 })
    }
}

fn claims(token: &str) -> Option<Claims> {
    let claims = token.split('.').nth(1)?;
    let claims = URL_SAFE_NO_PAD.decode(claims.trim_end_matches('=')).ok()?;
    serde_json::from_slice(&claims).ok()
}

fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// "error sending request" says nothing; what is below it does.
fn root_cause(error: &dyn Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::from_secs(1_000);

    fn config() -> OauthConfig {
        OauthConfig {
            token_url: "https://id.example.org/token".to_owned(),
            client_id: "feedlens".to_owned(),
            client_secret: Secret::new("hunter2"),
            scope: String::new(),
            timeout: Duration::from_secs(5),
        }
    }

    fn jwt(claims: &str) -> String {
        format!("e30.{}.c2ln", URL_SAFE_NO_PAD.encode(claims))
    }

    #[test]
    fn a_jwt_names_its_subject_and_the_earlier_expiry_counts() {
        for (claims, expires_in, expected) in [
            (r#"{"sub": "ada", "exp": 1300}"#, None, ("ada", 1_300_000)),
            (r#"{"sub": "ada", "exp": 1300.5}"#, Some(60.0), ("ada", 1_060_000)),
            (r#"{"exp": 1010}"#, Some(60.0), ("feedlens", 1_010_000)),
        ] {
            let token = config().read(jwt(claims), expires_in, NOW).expect(claims);
            assert_eq!((token.principal_name.as_str(), token.lifetime_ms), expected);
        }
        let opaque = config().read("no jwt".to_owned(), Some(60.0), NOW).expect("opaque tokens serve too");
        assert_eq!(
            (opaque.token.as_str(), opaque.principal_name.as_str(), opaque.lifetime_ms),
            ("no jwt", "feedlens", 1_060_000)
        );
    }

    #[test]
    fn a_token_without_a_future_is_refused() {
        let refused = |claims: &str| config().read(jwt(claims), None, NOW).map(|_| ()).expect_err(claims);
        assert!(refused("{}").contains("expires_in"));
        assert!(refused(r#"{"exp": 1000}"#).contains("clocks"));
    }

    #[test]
    fn a_refusal_is_one_line_without_the_secret() {
        let answer = Answer {
            access_token: None,
            expires_in: None,
            error: Some("invalid_client".to_owned()),
            error_description: Some("no\nclient has \0 hunter2".to_owned()),
        };
        let said = config().refusal(reqwest::StatusCode::UNAUTHORIZED, Some(answer));
        assert!(
            said.contains("invalid_client: noclient has  ********") && said.contains("kafka.oauth.client_secret"),
            "{said}"
        );
    }
}
