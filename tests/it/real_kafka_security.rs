//! TLS, mutual TLS and SASL on real Apache Kafka: what is right works, what is wrong is one sentence in time, and what is
//! revoked while a worker runs shows, and ends.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse as _, Redirect, Response};
use axum::routing::post;
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use feedlens::config::Secret;
use feedlens::error::Fault;
use feedlens::kafka::{KafkaConfig, Producer, check_reachable};
use feedlens::metrics::Metrics;
use serde_json::json;

use crate::binary::feedlens;
use crate::dead_letters::{new_topic, reject_all};
use crate::kafka_support::{ROOMY, receive, start, wait_until};
use crate::real_kafka::{create_topic, real_broker};

/// The contract for brokers that refuse or do not answer.
const IN_TIME: Duration = Duration::from_secs(10);

fn variable(name: &str) -> String {
    std::env::var(name).expect("`make services` names all listeners of its broker")
}

fn tls_file(name: &str) -> PathBuf {
    PathBuf::from(variable("KAFKA_TLS_DIR")).join(name)
}

/// The same broker, by its listener for SASL over TLS.
fn by_sasl(config: &KafkaConfig, mechanism: &str, password: &str) -> KafkaConfig {
    let mut config = config.clone();
    config.brokers = variable("KAFKA_SASL_BROKERS");
    config.security = "sasl_ssl".to_owned();
    config.ssl_ca = tls_file("ca.pem");
    config.sasl_mechanism = mechanism.to_owned();
    config.sasl_username = "ada".to_owned();
    config.sasl_password = Secret::new(password);
    config
}

/// The same broker, by its listener for mutual TLS.
fn by_certificate(config: &KafkaConfig) -> KafkaConfig {
    let mut config = config.clone();
    config.brokers = variable("KAFKA_MTLS_BROKERS");
    config.security = "ssl".to_owned();
    config.ssl_ca = tls_file("ca.pem");
    config.ssl_certificate = tls_file("client.pem");
    config.ssl_key = tls_file("client.key");
    config.ssl_key_password = Secret::new("key-secret");
    config
}

async fn writes_reads_and_commits(config: &KafkaConfig) {
    check_reachable(config).await.expect("reachable");
    let producer = Producer::new(config).expect("a producer");
    producer.send(&config.posts_topic, Some(b"key"), Some(b"value"), &[]).await.expect("acknowledged");
    let (source, mut envelopes, _) = start(config, ROOMY).await;
    // The topic's warm-up comes first.
    while receive(&mut envelopes).await.key.as_deref() != Some(&b"key"[..]) {}
    source.status().snapshot().ready().expect("ready");
    source.stop(Duration::ZERO).await.expect("stops");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_password_mechanism_and_a_client_certificate_serve() {
    let Some(config) = real_broker("security") else { return };
    create_topic(&config, &config.posts_topic, 1, &[]).await;
    for (mechanism, password) in
        [("PLAIN", "plain-secret"), ("SCRAM-SHA-256", "scram-secret"), ("SCRAM-SHA-512", "scram-secret")]
    {
        writes_reads_and_commits(&by_sasl(&config, mechanism, password)).await;
    }
    writes_reads_and_commits(&by_certificate(&config)).await;
}

async fn refusal(config: &KafkaConfig) -> String {
    let begin = Instant::now();
    let fault = check_reachable(config).await.expect_err("refused");
    assert!(begin.elapsed() < IN_TIME, "{:?} for {fault}", begin.elapsed());
    assert!(matches!(fault, Fault::Fatal(_)), "{fault:?}");
    fault.to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_brokers_refuse_is_one_sentence_that_names_the_keys() {
    let Some(config) = real_broker("refused") else { return };
    let plain = by_sasl(&config, "PLAIN", "plain-secret");
    let with = |base: &KafkaConfig, change: fn(&mut KafkaConfig)| {
        let mut config = base.clone();
        change(&mut config);
        config
    };
    let certificate = by_certificate(&config);
    let cases = [
        ("another authority", with(&plain, |it| it.ssl_ca = tls_file("other-ca.pem")), ["certificate", "kafka.ssl_ca"]),
        ("the system's authorities", with(&plain, |it| it.ssl_ca = PathBuf::new()), ["certificate", "kafka.ssl_ca"]),
        (
            "a name that is not in the certificate",
            with(&plain, |it| it.brokers = it.brokers.replace("127.0.0.1", "localhost")),
            ["localhost", "the names in the brokers' certificates"],
        ),
        (
            "no client certificate",
            with(&certificate, |it| (it.ssl_certificate, it.ssl_key) = (PathBuf::new(), PathBuf::new())),
            ["alert", "kafka.ssl_certificate"],
        ),
        (
            "a wrong password",
            by_sasl(&config, "PLAIN", "wrong"),
            ["Invalid username or password", "kafka.sasl_password"],
        ),
        ("a wrong password", by_sasl(&config, "SCRAM-SHA-256", "wrong"), ["SCRAM-SHA-256", "kafka.sasl_password"]),
        ("a wrong password", by_sasl(&config, "SCRAM-SHA-512", "wrong"), ["SCRAM-SHA-512", "kafka.sasl_password"]),
    ];
    let all = futures::future::join_all(cases.iter().map(|(_, config, _)| refusal(config))).await;
    for (said, (what, config, parts)) in all.into_iter().zip(cases) {
        assert!(
            said.starts_with(&format!("the Kafka brokers {} refuse this client", config.brokers)),
            "{what}: {said}"
        );
        assert!(parts.iter().all(|part| said.contains(part)), "{what}: {said}");
        assert!(!said.contains('\n') && !said.contains("-secret"), "{what}: {said}");
    }
    // Neither side gets to the point of refusing.
    let said = refusal(&with(&certificate, |it| it.security = "plaintext".to_owned())).await;
    assert!(said.contains("kafka.security"), "{said}");
}

#[test]
fn a_worker_that_the_brokers_refuse_ends_with_exit_code_1_in_time() {
    if real_broker("exit").is_none() {
        return;
    }
    let begin = Instant::now();
    let settings = [
        format!("kafka.brokers={}", variable("KAFKA_SASL_BROKERS")),
        format!("kafka.ssl_ca={}", tls_file("other-ca.pem").display()),
        "kafka.security=sasl_ssl".to_owned(),
        "kafka.sasl_mechanism=PLAIN".to_owned(),
        "kafka.sasl_username=ada".to_owned(),
        "kafka.sasl_password=plain-secret".to_owned(),
    ];
    let mut command = feedlens(&["ingest"]);
    for setting in &settings {
        command.args(["--set", setting]);
    }
    let output = command.output().expect("runs");
    let stderr = String::from_utf8(output.stderr).expect("UTF-8");
    assert!(begin.elapsed() < IN_TIME, "{:?}", begin.elapsed());
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.lines().count() == 1 && stderr.contains("kafka.ssl_ca") && output.stdout.is_empty(), "{stderr}");
}

/// An identity provider: `POST /token` by RFC 6749, with tokens as Kafka's unsecured validator wants them.
#[derive(Default)]
struct Provider {
    given: AtomicUsize,
    refuses: AtomicUsize,
}

/// librdkafka renews at 80 %. Much shorter, and connections made just before have less than the second that Kafka wants
/// between two authentications.
const TOKEN_SECONDS: u64 = 10;

async fn give_token(State(provider): State<Arc<Provider>>, headers: HeaderMap, body: String) -> Response {
    let form = url::form_urlencoded::parse(body.as_bytes()).into_owned().collect::<BTreeMap<_, _>>();
    // The id and the secret form-encoded, as the RFC has it: they have a colon and a plus.
    let expected = format!("Basic {}", STANDARD.encode("feed%3Alens:a%2Bb+c"));
    let is_right = headers.get(header::AUTHORIZATION).is_some_and(|value| value.as_bytes() == expected.as_bytes())
        && headers.get(header::CONTENT_TYPE).is_some_and(|value| value == "application/x-www-form-urlencoded")
        && form.get("grant_type").is_some_and(|grant| grant == "client_credentials");
    if !is_right || provider.refuses.load(Ordering::Relaxed) > 0 {
        let error = json!({"error": "invalid_client", "error_description": "the client a+b c was revoked"});
        return (StatusCode::UNAUTHORIZED, error.to_string()).into_response();
    }
    provider.given.fetch_add(1, Ordering::Relaxed);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock past 1970").as_secs();
    let claims = json!({"sub": "ada", "iat": now, "exp": now + TOKEN_SECONDS, "scope": form.get("scope")});
    let encode = |value: serde_json::Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let token = format!("{}.{}.", encode(json!({"alg": "none"})), encode(claims));
    json!({"access_token": token, "token_type": "Bearer", "expires_in": TOKEN_SECONDS}).to_string().into_response()
}

async fn serve(router: Router) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move { axum::serve(listener, router).await });
    format!("http://{address}")
}

fn by_oauth(config: &KafkaConfig, token_url: String) -> KafkaConfig {
    let mut config = by_sasl(config, "OAUTHBEARER", "");
    config.sasl_username = String::new();
    config.oauth.token_url = token_url;
    config.oauth.client_id = "feed:lens".to_owned();
    config.oauth.client_secret = Secret::new("a+b c");
    config.oauth.scope = "feed".to_owned();
    config
}

fn authentication_errors(metrics: &Metrics) -> u64 {
    metrics.kafka_errors.with_label_values(&["authentication"]).get()
}

/// Nobody polls an admin client, which is how others are asked for their token.
#[tokio::test(flavor = "multi_thread")]
async fn a_replay_by_oauth_is_told_that_a_topic_is_compacted() {
    let Some(config) = real_broker("oauth-compacted") else { return };
    create_topic(&config, &config.posts_topic, 1, &[("cleanup.policy", "compact")]).await;
    new_topic(&config, &config.dead_letter_topic, &[]).await;
    drop(reject_all(&config, 1, "on purpose").await);
    let url = serve(Router::new().route("/token", post(give_token)).with_state(Arc::default())).await + "/token";
    let config = by_oauth(&config, url);
    let mut command = feedlens(&["dlq", "replay"]);
    for (key, value) in [
        ("brokers", config.brokers.as_str()),
        ("posts_topic", &config.posts_topic),
        ("dead_letter_topic", &config.dead_letter_topic),
        ("security", &config.security),
        ("ssl_ca", &config.ssl_ca.display().to_string()),
        ("sasl_mechanism", &config.sasl_mechanism),
        ("oauth.token_url", &config.oauth.token_url),
        ("oauth.client_id", &config.oauth.client_id),
        ("oauth.client_secret", config.oauth.client_secret.expose()),
        ("oauth.scope", &config.oauth.scope),
    ] {
        command.args(["--set", &format!("kafka.{key}={value}")]);
    }
    let output = tokio::task::spawn_blocking(move || command.output().expect("runs")).await.expect("no panic");
    let stderr = String::from_utf8(output.stderr).expect("UTF-8");
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("is compacted"), "{stderr}");
}

#[tokio::test(flavor = "multi_thread")]
async fn oauth_tokens_are_fetched_renewed_and_a_revoked_client_shows_until_it_is_let_in_again() {
    let Some(config) = real_broker("oauth") else { return };
    create_topic(&config, &config.posts_topic, 1, &[]).await;
    let provider = Arc::new(Provider::default());
    let url = serve(Router::new().route("/token", post(give_token)).with_state(provider.clone())).await + "/token";
    let config = by_oauth(&config, url);
    writes_reads_and_commits(&config).await;

    let (source, mut envelopes, metrics) = start(&config, ROOMY).await;
    receive(&mut envelopes).await.settle();
    let before = provider.given.load(Ordering::Relaxed);
    // The consumer alone asks now: its first token has expired when it asks for the third.
    wait_until("two renewals", async || provider.given.load(Ordering::Relaxed) >= before + 2).await;
    let status = source.status();
    status.snapshot().ready().expect("a renewal is no event");
    assert_eq!(authentication_errors(&metrics), 0);

    provider.refuses.store(1, Ordering::Relaxed);
    wait_until("the revocation to show", async || {
        status.snapshot().ready().is_err_and(|fault| fault.to_string().contains("invalid_client"))
    })
    .await;
    let said = status.snapshot().ready().expect_err("revoked").to_string();
    assert!(said.contains("refuse this worker") && said.contains("kafka.oauth.client_secret"), "{said}");
    assert!(!said.contains("a+b c"), "the secret is told: {said}");
    assert!(authentication_errors(&metrics) > 0);

    provider.refuses.store(0, Ordering::Relaxed);
    wait_until("the end of the revocation", async || status.snapshot().ready().is_ok()).await;
    let producer = Producer::new(&config).expect("a producer");
    producer.send(&config.posts_topic, Some(b"after"), None, &[]).await.expect("acknowledged");
    while receive(&mut envelopes).await.key.as_deref() != Some(&b"after"[..]) {}
    source.stop(Duration::ZERO).await.expect("stops");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_endpoint_that_gives_no_token_is_named_with_what_it_said() {
    let Some(mut config) = real_broker("oauth-refused") else { return };
    config.start_timeout = Duration::from_secs(8);
    let elsewhere = Arc::new(Provider::default());
    let target = serve(Router::new().route("/token", post(give_token)).with_state(elsewhere.clone())).await;
    let there = format!("{target}/token");
    let endless = || async { Response::new(axum::body::Body::from(vec![b' '; 1 << 20])) };
    let router = Router::new()
        .route("/refuses", post(|| async { (StatusCode::BAD_REQUEST, "{\"error\": \"invalid_scope\"}") }))
        .route("/html", post(|| async { "<html>sign in</html>" }))
        .route("/redirects", post(async move || Redirect::temporary(&there)))
        .route("/endless", post(endless))
        .route("/hangs", post(|| async { std::future::pending::<String>().await }));
    let base = serve(router).await;
    let cases = [
        ("/refuses", "invalid_scope"),
        ("/html", "is kafka.oauth.token_url the token endpoint?"),
        ("/redirects", "redirects, which is not followed"),
        ("/endless", "larger than"),
        ("/missing", "look at kafka.oauth.token_url"),
        ("/hangs", "kafka.oauth.timeout"),
    ];
    let all = futures::future::join_all(cases.map(|(path, _)| {
        let mut config = by_oauth(&config, format!("{base}{path}"));
        config.oauth.timeout = Duration::from_secs(1);
        async move { refusal(&config).await }
    }))
    .await;
    for (said, (path, said_so)) in all.iter().zip(cases) {
        assert!(said.contains(&format!("{base}{path}")) && said.contains(said_so), "{path}: {said}");
    }
    assert_eq!(elsewhere.given.load(Ordering::Relaxed), 0, "the secret went where the redirect led");
    let nobody = by_oauth(&config, "http://127.0.0.1:1/token".to_owned());
    let mut wrong_secret = by_oauth(&config, format!("{target}/token"));
    wrong_secret.oauth.client_secret = Secret::new("wrong");
    let mut wrong_scope = by_oauth(&config, format!("{target}/token"));
    wrong_scope.oauth.scope = "other".to_owned();
    let (nobody, wrong_secret, wrong_scope) =
        tokio::join!(refusal(&nobody), refusal(&wrong_secret), refusal(&wrong_scope));
    assert!(nobody.contains("127.0.0.1:1/token") && nobody.contains("refused"), "{nobody}");
    assert!(wrong_secret.contains("invalid_client"), "{wrong_secret}");
    assert!(wrong_scope.contains("kafka.oauth"), "the broker wants the scope feed: {wrong_scope}");
}
