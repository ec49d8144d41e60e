//! `feedlens ready`: the health check of the images.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;

use feedlens::kafka::EmbeddedBroker;

use crate::binary::refuses;
use crate::kafka_support::wait_until;
use crate::ports::free_port;
use crate::running::Running;

#[tokio::test(flavor = "multi_thread")]
async fn tells_whether_a_worker_is_ready_and_why_not() {
    let broker = EmbeddedBroker::start(&[("posts", 1), ("posts.dlq", 1)]).expect("a broker");
    let running = Running::ingest(&broker.bootstrap(), &[]);
    wait_until("the worker to be ready", async || {
        tokio::task::block_in_place(|| running.ready(&[])) == (Some(0), "ready\n".to_owned(), String::new())
    })
    .await;
    drop(broker);
    wait_until("the reason to be told", async || {
        let (code, stdout, stderr) = tokio::task::block_in_place(|| running.ready(&[]));
        let is_reason =
            stderr.starts_with("feedlens: not ready: kafka: no broker answers") && stderr.lines().count() == 1;
        (code, stdout.as_str(), is_reason) == (Some(1), "", true)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn asks_a_port_with_tls_whatever_name_its_certificate_bears() {
    let folder = tempfile::tempdir().expect("a folder");
    let made = rcgen::generate_simple_self_signed(["worker.example.org".to_owned()]).expect("a certificate");
    let (certificate, key) = (folder.path().join("tls.crt"), folder.path().join("tls.key"));
    std::fs::write(&certificate, made.cert.pem()).expect("written");
    std::fs::write(&key, made.signing_key.serialize_pem()).expect("written");
    let set = [format!("admin.tls.certificate={}", certificate.display()), format!("admin.tls.key={}", key.display())];
    let broker = EmbeddedBroker::start(&[("posts", 1), ("posts.dlq", 1)]).expect("a broker");
    let running = Running::ingest(&broker.bootstrap(), &[&set[0], &set[1]]);
    wait_until("the worker to be ready", async || {
        tokio::task::block_in_place(|| running.ready(&[&set[0], &set[1]])).0 == Some(0)
    })
    .await;
    let (code, _, stderr) = running.ready(&[]);
    assert_eq!(code, Some(1), "without TLS there is no answer: {stderr}");
}

#[test]
fn a_worker_that_is_not_there_is_not_ready() {
    let port = free_port();
    let setting = format!("admin.listen=127.0.0.1:{port}");
    refuses(&["ready", "--set", &setting], 1, &[&format!("127.0.0.1:{port}"), "admin.listen"]);
    refuses(&["ready", "--set", "admin.listen="], 2, &["admin.listen is empty"]);
}

#[test]
fn another_program_on_the_port_is_no_ready_worker() {
    let listener = TcpListener::bind("[::1]:0").expect("a port");
    let setting = format!("admin.listen=[::]:{}", listener.local_addr().expect("an address").port());
    let other = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a connection");
        let read = stream.read(&mut [0; 1024]).expect("a request");
        assert_ne!(read, 0);
        write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nOK").expect("answers");
    });
    refuses(&["ready", "--set", &setting], 1, &["no worker of feedlens", "admin.listen"]);
    other.join().expect("it was asked");
}
