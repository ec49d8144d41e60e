//! Pictures by URL, over real connections to servers on the loopback interface.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use feedlens::config::{Config, Overrides};
use feedlens::error::{Fault, Outage, Reason};
use feedlens::image::ImagesConfig;
use feedlens::image::fetch::ImageFetcher;
use feedlens::post::ImageSource;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

use crate::ports::free_port;

/// What a path answers with.
enum Answer {
    /// These bytes, then the connection is closed.
    Raw(Vec<u8>),
    /// A head, then zeros for as long as the client listens.
    Endless,
    /// A head, then a byte every so often.
    Drip(Duration),
}

fn raw(text: &str) -> Answer {
    Answer::Raw(text.replace('\n', "\r\n").into_bytes())
}

struct Server {
    port: u16,
    /// The heads of the requests that came.
    requests: Arc<Mutex<Vec<String>>>,
}

impl Server {
    async fn start(answers: impl IntoIterator<Item = (&'static str, Answer)>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let answers: Arc<BTreeMap<_, _>> = Arc::new(answers.into_iter().collect());
        let requests = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&requests);
        tokio::spawn(async move {
            while let Ok((connection, _)) = listener.accept().await {
                tokio::spawn(serve(connection, Arc::clone(&answers), Arc::clone(&log)));
            }
        });
        Self { port, requests }
    }

    fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    fn requests(&self) -> Vec<String> {
        self.requests.lock().expect("no test panicked with it").clone()
    }
}

async fn serve(connection: TcpStream, answers: Arc<BTreeMap<&'static str, Answer>>, log: Arc<Mutex<Vec<String>>>) {
    let mut connection = BufReader::new(connection);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if connection.read_line(&mut head).await.unwrap_or(0) == 0 {
            return;
        }
    }
    let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
    log.lock().expect("no test panicked with it").push(head);
    let head = b"HTTP/1.1 200 OK\r\ncontent-type: image/png\r\nconnection: close\r\n\r\n";
    // Writes fail where the client has heard enough: that is the point of some tests.
    match answers.get(path.as_str()) {
        None => drop(connection.write_all(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n").await),
        Some(Answer::Raw(bytes)) => drop(connection.write_all(bytes).await),
        Some(Answer::Endless) => {
            let mut written = connection.write_all(head).await;
            while written.is_ok() {
                written = connection.write_all(&[0; 8192]).await;
            }
        }
        Some(Answer::Drip(pause)) => {
            let mut written = connection.write_all(head).await;
            while written.is_ok() {
                tokio::time::sleep(*pause).await;
                written = connection.write_all(&[0]).await;
            }
        }
    }
}

fn config() -> ImagesConfig {
    let mut images = Config::load(&[], &Overrides::default()).expect("the defaults load").images;
    images.max_bytes = 100_000;
    images.allow_networks = vec!["127.0.0.0/8".parse().expect("a network")];
    images
}

async fn fetch_with(config: &ImagesConfig, url: &str) -> Result<Bytes, Fault> {
    let fetched = ImageFetcher::new(config).expect("a fetcher").bytes(&ImageSource::Url(url.to_owned())).await;
    fetched.map(|fetched| fetched.clone())
}

async fn fetch(url: &str) -> Result<Bytes, Fault> {
    fetch_with(&config(), url).await
}

#[track_caller]
fn assert_rejected(outcome: Result<Bytes, Fault>, expected: Reason, mentions: &str) {
    match outcome {
        Err(Fault::Reject { reason, detail }) => {
            assert_eq!(reason, expected, "{detail}");
            assert!(detail.contains(mentions), "{detail:?} does not mention {mentions:?}");
        }
        other => panic!("expected {expected}, got {other:?}"),
    }
}

#[track_caller]
fn assert_retry(outcome: Result<Bytes, Fault>, mentions: &str) -> Option<Duration> {
    match outcome {
        Err(Fault::Retry { outage: Outage::ImageHost, detail, after }) => {
            assert!(detail.contains(mentions), "{detail:?} does not mention {mentions:?}");
            after
        }
        other => panic!("expected a retry, got {other:?}"),
    }
}

#[tokio::test]
async fn picture_is_fetched_through_redirects() {
    let server = Server::start([
        ("/a", raw("HTTP/1.1 302 Found\nlocation: /b\ncontent-length: 0\n\n")),
        ("/b", raw("HTTP/1.1 308 Permanent Redirect\nlocation: c?d=e\ncontent-length: 0\n\n")),
        ("/c?d=e", raw("HTTP/1.1 200 OK\ncontent-length: 7\n\npicture")),
    ])
    .await;
    assert_eq!(fetch(&server.url("/a")).await.expect("fetched"), "picture");
    let requests = server.requests();
    assert_eq!(requests.len(), 3);
    for request in requests {
        let request = request.to_ascii_lowercase();
        assert!(request.contains(concat!("user-agent: feedlens/", env!("CARGO_PKG_VERSION"))), "{request}");
        assert!(request.contains("accept-encoding: identity"), "{request}");
        assert!(!request.contains("cookie:") && !request.contains("referer:"), "{request}");
    }
}

#[tokio::test]
async fn cookies_of_one_answer_do_not_reach_the_next_request() {
    let server =
        Server::start([("/a", raw("HTTP/1.1 302 Found\nset-cookie: a=b\nlocation: /b\ncontent-length: 0\n\n"))]).await;
    assert_rejected(fetch(&server.url("/a")).await, Reason::ImageUnavailable, "404");
    assert!(server.requests().iter().all(|request| !request.to_ascii_lowercase().contains("cookie:")));
}

#[tokio::test]
async fn redirects_are_counted() {
    let server = Server::start([("/a", raw("HTTP/1.1 301 Moved\nlocation: /a\ncontent-length: 0\n\n"))]).await;
    assert_rejected(fetch(&server.url("/a")).await, Reason::ImageUnavailable, "images.max_redirects = 3");
    assert_eq!(server.requests().len(), 4);
    let server = Server::start([("/a", raw("HTTP/1.1 301 Moved\ncontent-length: 0\n\n"))]).await;
    assert_rejected(fetch(&server.url("/a")).await, Reason::ImageUnavailable, "location");
}

#[tokio::test]
async fn loopback_is_refused_unless_allowed() {
    let server = Server::start([("/a", raw("HTTP/1.1 200 OK\ncontent-length: 1\n\nx"))]).await;
    let closed = ImagesConfig { allow_networks: vec![], ..config() };
    let port = server.port;
    for url in [
        server.url("/a"),
        format!("http://localhost:{port}/a"),
        format!("http://2130706433:{port}/a"),
        format!("http://0x7f.1:{port}/a"),
        format!("http://[::ffff:127.0.0.1]:{port}/a"),
        format!("http://[::1]:{port}/a"),
        format!("http://0.0.0.0:{port}/a"),
    ] {
        assert_rejected(fetch_with(&closed, &url).await, Reason::ForbiddenSource, "images.allow_networks");
    }
    assert_rejected(fetch(&format!("http://u:p@127.0.0.1:{port}/a")).await, Reason::ForbiddenSource, "password");
    assert_rejected(fetch("http://example.org@127.0.0.1/a").await, Reason::ForbiddenSource, "user name");
    assert!(server.requests().is_empty(), "a connection was made");
}

/// The name is judged by what it resolves to, and the connection goes there.
#[tokio::test]
async fn names_are_resolved_to_permitted_addresses() {
    let server = Server::start([("/a", raw("HTTP/1.1 200 OK\ncontent-length: 1\n\nx"))]).await;
    assert_eq!(fetch(&format!("http://localhost:{}/a", server.port)).await.expect("fetched"), "x");
}

#[tokio::test]
async fn redirects_are_judged_like_the_first_url() {
    // Not the metadata service's own address (that is judged in the guard's tests): were the check ever broken, this test
    // would really ask there.
    for target in [
        "http://169.254.10.20/",
        "http://[fd00::254]/",
        "//10.0.0.1/a",
        "http://0xa9fe0a14/",
        "http://[::ffff:169.254.10.20]/",
        "file:///etc/passwd",
        "ftp://127.0.0.1/a",
        "gopher://127.0.0.1/",
        "http://user@127.0.0.1/",
        "data:image/png;base64,AAAA",
    ] {
        let answer =
            Answer::Raw(format!("HTTP/1.1 302 Found\r\nlocation: {target}\r\ncontent-length: 0\r\n\r\n").into_bytes());
        let server = Server::start([("/a", answer)]).await;
        assert_rejected(fetch(&server.url("/a")).await, Reason::ForbiddenSource, "image: ");
        assert_eq!(server.requests().len(), 1);
    }
    // An allowed host may not lead to a loopback port that is not allowed.
    let target = Server::start([("/b", raw("HTTP/1.1 200 OK\ncontent-length: 1\n\nx"))]).await;
    let location = format!("HTTP/1.1 302 Found\r\nlocation: http://127.0.0.2:{}/b\r\n\r\n", target.port);
    let server = Server::start([("/a", Answer::Raw(location.into_bytes()))]).await;
    let narrow = ImagesConfig { allow_networks: vec!["127.0.0.1/32".parse().expect("a network")], ..config() };
    assert_rejected(fetch_with(&narrow, &server.url("/a")).await, Reason::ForbiddenSource, "127.0.0.2");
    assert!(target.requests().is_empty());
}

#[tokio::test]
async fn transfer_is_bounded_by_bytes() {
    let server = Server::start([
        ("/endless", Answer::Endless),
        ("/honest", raw("HTTP/1.1 200 OK\ncontent-length: 100001\n\n")),
        ("/huge", raw("HTTP/1.1 200 OK\ncontent-length: 18446744073709551615\n\n")),
        ("/chunked", raw("HTTP/1.1 200 OK\ntransfer-encoding: chunked\n\n5\nhello\n0\n\n")),
    ])
    .await;
    assert_rejected(fetch(&server.url("/endless")).await, Reason::TooLarge, "images.max_bytes = 100000");
    assert_rejected(fetch(&server.url("/honest")).await, Reason::TooLarge, "100001 bytes");
    assert!(fetch(&server.url("/huge")).await.is_err());
    assert_eq!(fetch(&server.url("/chunked")).await.expect("fetched"), "hello");
}

#[tokio::test]
async fn transfer_is_bounded_by_time() {
    let server = Server::start([("/drip", Answer::Drip(Duration::from_millis(20)))]).await;
    let config = ImagesConfig { timeout: Duration::from_millis(300), ..config() };
    let start = Instant::now();
    assert_retry(fetch_with(&config, &server.url("/drip")).await, "images.timeout = 300ms");
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
}

#[tokio::test]
async fn content_length_that_lies_is_a_broken_transfer() {
    let server = Server::start([("/a", raw("HTTP/1.1 200 OK\ncontent-length: 50\nconnection: close\n\nshort"))]).await;
    assert_retry(fetch(&server.url("/a")).await, "broke off");
}

#[tokio::test]
async fn compressed_answer_is_not_inflated() {
    let server =
        Server::start([("/bomb", raw("HTTP/1.1 200 OK\ncontent-encoding: gzip\ncontent-length: 4\n\nbomb"))]).await;
    assert_rejected(fetch(&server.url("/bomb")).await, Reason::BadImage, "gzip");
}

#[tokio::test]
async fn web_page_in_place_of_a_picture_is_named() {
    let page = "HTTP/1.1 200 OK\ncontent-type: text/html\ncontent-length: 27\n\n<!DOCTYPE html><p>Log in</p>";
    let server = Server::start([("/a", raw(page))]).await;
    let bytes = fetch(&server.url("/a")).await.expect("fetched");
    let options = feedlens::image::decode::DecodeOptions::default();
    let fault = feedlens::image::decode::decode(&bytes, &options).expect_err("no picture");
    assert!(fault.to_string().contains("web page"), "{fault}");
}

#[tokio::test]
async fn status_says_whether_to_try_again() {
    let server = Server::start([
        ("/gone", raw("HTTP/1.1 410 Gone\ncontent-length: 0\n\n")),
        ("/closed", raw("HTTP/1.1 403 Forbidden\ncontent-length: 0\n\n")),
        ("/empty", raw("HTTP/1.1 204 No Content\n\n")),
        ("/busy", raw("HTTP/1.1 429 Too Many Requests\nretry-after: 2\ncontent-length: 0\n\n")),
        ("/patience", raw("HTTP/1.1 503 Service Unavailable\nretry-after: 86400\ncontent-length: 0\n\n")),
        ("/broken", raw("HTTP/1.1 500 Internal Server Error\ncontent-length: 0\n\n")),
        ("/nonsense", raw("220 smtp.example.org ESMTP\n")),
    ])
    .await;
    assert_rejected(fetch(&server.url("/missing")).await, Reason::ImageUnavailable, "404");
    assert_rejected(fetch(&server.url("/gone")).await, Reason::ImageUnavailable, "410");
    assert_rejected(fetch(&server.url("/closed")).await, Reason::ImageUnavailable, "403");
    assert_rejected(fetch(&server.url("/empty")).await, Reason::ImageUnavailable, "204");
    assert_eq!(assert_retry(fetch(&server.url("/busy")).await, "429"), Some(Duration::from_secs(2)));
    assert_eq!(assert_retry(fetch(&server.url("/patience")).await, "503"), Some(config().retry_max));
    assert_eq!(assert_retry(fetch(&server.url("/broken")).await, "500"), None);
    assert_retry(fetch(&server.url("/nonsense")).await, "broke off");
}

#[tokio::test]
async fn host_that_is_out_of_order_is_retried() {
    assert_retry(fetch(&format!("http://127.0.0.1:{}/", free_port())).await, "cannot connect");
    assert_retry(fetch("http://no-such-host.invalid/").await, "cannot connect");
}

#[tokio::test]
async fn what_is_no_url_is_a_bad_field() {
    assert_rejected(fetch("pictures/1.png").await, Reason::BadField, "not a URL");
    assert_rejected(fetch("http://").await, Reason::BadField, "not a URL");
    assert_rejected(fetch("javascript:alert(1)").await, Reason::ForbiddenSource, "images.schemes");
}

/// A host that answers everything slowly has its places taken; another one's pictures still come.
#[tokio::test]
async fn a_slow_host_leaves_places_to_the_others() {
    let slow = Server::start([("/drip", Answer::Drip(Duration::from_millis(20)))]).await;
    let quick = Server::start([("/a", raw("HTTP/1.1 200 OK\ncontent-length: 7\n\npicture"))]).await;
    let config = ImagesConfig { concurrency: 4, concurrency_per_host: 2, timeout: Duration::from_secs(60), ..config() };
    let fetcher = Arc::new(ImageFetcher::new(&config).expect("a fetcher"));
    let mut waiting = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let (fetcher, url) = (fetcher.clone(), slow.url("/drip"));
        waiting.spawn(async move { fetcher.bytes(&ImageSource::Url(url)).await.map(drop) });
    }
    crate::kafka_support::wait_until("transfers of the slow host", async || slow.requests().len() == 2).await;
    let source = ImageSource::Url(quick.url("/a"));
    let fetched = tokio::time::timeout(Duration::from_secs(30), fetcher.bytes(&source)).await;
    assert_eq!(*fetched.expect("a place is free").expect("fetched"), "picture");
    assert_eq!(slow.requests().len(), 2, "of one host at a time");
    waiting.shutdown().await;
}

/// A transfer is read when there is room for it, however many may be under way.
#[tokio::test]
async fn transfers_wait_for_room_in_memory() {
    let body = "x".repeat(60_000);
    let answer = Answer::Raw(format!("HTTP/1.1 200 OK\r\ncontent-length: 60000\r\n\r\n{body}").into_bytes());
    let chunked = format!("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nea60\r\n{body}\r\n0\r\n\r\n");
    let server = Server::start([("/a", answer), ("/chunked", Answer::Raw(chunked.into_bytes()))]).await;
    let config = ImagesConfig { max_inflight_bytes: 100_000, ..config() };
    let fetcher = ImageFetcher::new(&config).expect("a fetcher");
    for path in ["/a", "/chunked"] {
        let source = ImageSource::Url(server.url(path));
        let first = fetcher.bytes(&source).await.expect("room for one");
        let mut second = Box::pin(fetcher.bytes(&source));
        let waited = tokio::time::timeout(Duration::from_millis(200), &mut second).await;
        assert!(waited.is_err(), "{path}: 120,000 bytes of 100,000");
        drop(first);
        assert_eq!(second.await.expect("room again").len(), 60_000, "{path}");
    }
}

#[tokio::test]
async fn transfers_at_a_time_are_bounded() {
    let server = Server::start([("/drip", Answer::Drip(Duration::from_millis(20)))]).await;
    let config = ImagesConfig { concurrency: 2, timeout: Duration::from_millis(300), ..config() };
    let fetcher = ImageFetcher::new(&config).expect("a fetcher");
    let source = ImageSource::Url(server.url("/drip"));
    let start = Instant::now();
    let outcomes = tokio::join!(fetcher.bytes(&source), fetcher.bytes(&source), fetcher.bytes(&source));
    // The third one's clock starts when its turn comes.
    assert!(start.elapsed() >= Duration::from_millis(600), "{:?}", start.elapsed());
    for outcome in [outcomes.0, outcomes.1, outcomes.2] {
        assert_retry(outcome.map(|fetched| fetched.clone()), "images.timeout");
    }
}
