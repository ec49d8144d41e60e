//! Clients that are slow, many or greedy: they get what is theirs and keep nobody out.

use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::kafka_support::{PATIENCE, wait_until};
use crate::query_support::{Worker, client, read};

async fn connect(worker: &Worker) -> TcpStream {
    TcpStream::connect(worker.url.strip_prefix("http://").expect("a URL")).await.expect("connects")
}

/// A connection that has had an answer and is kept open.
async fn kept_open(worker: &Worker) -> TcpStream {
    let mut connection = connect(worker).await;
    connection.write_all(b"GET /v1/stats HTTP/1.1\r\nHost: a\r\n\r\n").await.expect("writes");
    let mut answer = [0; 15];
    connection.read_exact(&mut answer).await.expect("reads");
    assert_eq!(&answer, b"HTTP/1.1 200 OK");
    connection
}

#[tokio::test]
async fn beyond_the_limit_a_connection_is_told_so_and_later_let_in() {
    let worker = Worker::empty(&["query.max_connections=2", "query.timeout=10m", "query.kafka=false"]).await;
    let held = (kept_open(&worker).await, kept_open(&worker).await);
    let response = client().get(format!("{}/v1/stats", worker.url)).send().await.expect("an answer");
    assert_eq!(response.headers()["retry-after"], "1");
    let (status, answer) = read(response).await;
    assert_eq!((status, answer["error"]["code"].as_str()), (429, Some("overloaded")), "{answer}");
    drop(held.0);
    wait_until("a place", async || worker.get("/v1/stats").await.0 == 200).await;
}

#[tokio::test]
async fn who_does_not_read_the_answers_is_cut_off() {
    let worker = Worker::empty(&["query.timeout=300ms"]).await;
    let mut connection = connect(&worker).await;
    let requests = "GET /app.js HTTP/1.1\r\nHost: a\r\n\r\n".repeat(100);
    // The answers fill the buffers between the two, then the worker's writes stand still, then ours.
    let cut = async { while connection.write_all(requests.as_bytes()).await.is_ok() {} };
    tokio::time::timeout(PATIENCE, cut).await.expect("the worker closes the connection");
}

#[tokio::test]
async fn an_idle_connection_is_closed() {
    let worker = Worker::empty(&["query.timeout=300ms"]).await;
    let mut connection = kept_open(&worker).await;
    let closed = tokio::time::timeout(PATIENCE, connection.read_to_end(&mut Vec::new())).await;
    closed.expect("the worker closes the connection").expect("reads");
}

#[tokio::test]
async fn a_batch_leaves_places_to_single_searches() {
    let networks = "images.allow_networks=[\"127.0.0.0/8\"]";
    let limits =
        ["query.max_concurrent=2", "query.max_wait=100ms", "query.timeout=60s", "images.timeout=60s", networks];
    let worker = Worker::start(&[&limits[..], &["query.kafka=false"]].concat()).await;
    // A host that takes connections and never answers: who waits for it holds a place.
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let host = format!("http://{}/picture.png", listener.local_addr().expect("bound"));
    let searches = vec![json!({"image": {"url": host}}); 8];
    let body = json!({"searches": searches}).to_string();
    let post = |body: String| client().post(format!("{}/v1/search/batch", worker.url)).body(body).send();
    let batch = post(body.clone());
    let others = async {
        let (first, _) = listener.accept().await.expect("a connection");
        for _ in 0..5 {
            let (status, answer) = worker.ask(&json!({"topic": "海"})).await;
            assert_eq!(status, 200, "{answer}");
        }
        let (status, answer) = read(post(body.clone()).await.expect("an answer")).await;
        assert_eq!((status, answer["error"]["code"].as_str()), (429, Some("overloaded")), "{answer}");
        // Their host breaks off, one after another.
        drop((first, listener));
    };
    let (batch, ()) = tokio::join!(batch, others);
    let (status, answer) = read(batch.expect("an answer")).await;
    let codes = answer["answers"].as_array().expect("a list").iter().map(|answer| answer["error"]["code"].as_str());
    assert_eq!((status, codes.collect::<Vec<_>>()), (200, vec![Some("unprocessable"); 8]), "{answer}");
}
