//! Ports with TLS: the certificate is served, changes without a restart, and a bad one changes nothing.

use std::path::Path;

use rcgen::{CertifiedKey, generate_simple_self_signed};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;

use crate::binary::refuses;
use crate::kafka_support::wait_until;
use crate::query_support::{Worker, client};

/// A certificate for 127.0.0.1 and its key, in a folder; the client that trusts it alone.
fn certify(folder: &Path) -> reqwest::Client {
    let CertifiedKey { cert, signing_key } =
        generate_simple_self_signed(["127.0.0.1".to_owned()]).expect("a certificate");
    std::fs::write(folder.join("tls.crt"), cert.pem()).expect("written");
    std::fs::write(folder.join("tls.key"), signing_key.serialize_pem()).expect("written");
    let certificate = reqwest::Certificate::from_pem(cert.pem().as_bytes()).expect("a certificate");
    let builder =
        reqwest::Client::builder().no_proxy().tls_built_in_root_certs(false).add_root_certificate(certificate);
    // Each request shakes hands anew.
    builder.pool_max_idle_per_host(0).build().expect("a client")
}

fn settings(section: &str, folder: &Path) -> [String; 2] {
    let file = |name: &str| folder.join(name).display().to_string();
    [format!("{section}.certificate={}", file("tls.crt")), format!("{section}.key={}", file("tls.key"))]
}

async fn status(client: &reqwest::Client, worker: &Worker) -> Option<u16> {
    let url = format!("{}/v1/stats", worker.url.replace("http://", "https://"));
    client.get(url).send().await.ok().map(|response| response.status().as_u16())
}

#[tokio::test]
async fn a_certificate_is_served_and_renewed_without_a_restart_and_a_bad_one_changes_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let first = certify(folder.path());
    let set = settings("query.tls", folder.path());
    let worker = Worker::empty(&[&set[0], &set[1]]).await;
    assert_eq!(status(&first, &worker).await, Some(200));
    client().get(&worker.url).send().await.expect_err("without TLS there is no answer");

    let second = certify(folder.path());
    wait_until("the second certificate", async || status(&second, &worker).await == Some(200)).await;
    assert_eq!(status(&first, &worker).await, None, "the first one is served no more");
    let reloads = |outcome| worker.service.metrics().tls_reloads.with_label_values(&["query.tls", outcome]).get();
    assert_eq!((reloads("ok"), reloads("failed")), (1, 0));

    let other = tempfile::tempdir().expect("a folder");
    certify(other.path());
    std::fs::copy(other.path().join("tls.key"), folder.path().join("tls.key")).expect("copied");
    wait_until("a key of another certificate", async || reloads("failed") == 1).await;
    assert_eq!(status(&second, &worker).await, Some(200));
}

#[tokio::test]
async fn a_client_that_never_ends_its_handshake_is_cut() {
    let folder = tempfile::tempdir().expect("a folder");
    let trusting = certify(folder.path());
    let set = settings("query.tls", folder.path());
    let worker = Worker::empty(&[&set[0], &set[1], "query.timeout=300ms", "query.max_connections=1"]).await;
    let mut silent = TcpStream::connect(worker.url.trim_start_matches("http://")).await.expect("connects");
    assert_eq!(silent.read(&mut [0]).await.expect("the end"), 0, "cut");
    wait_until("its place", async || status(&trusting, &worker).await == Some(200)).await;
}

#[test]
fn files_that_are_no_good_are_one_sentence_at_the_start() {
    let folder = tempfile::tempdir().expect("a folder");
    certify(folder.path());
    let set = settings("query.tls", folder.path());
    refuses(&["config", "check", "--set", &set[0]], 2, &["query.tls.certificate", "query.tls.key", "both"]);
    std::fs::write(folder.path().join("tls.key"), "no key").expect("written");
    for section in ["query.tls", "admin.tls"] {
        let set = settings(section, folder.path());
        refuses(&["config", "check", "--set", &set[0], "--set", &set[1]], 2, &[section, "key", "PRIVATE KEY"]);
    }
}
