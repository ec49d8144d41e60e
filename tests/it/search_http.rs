//! Searches over HTTP, on the real model and the embedded store.

use std::collections::BTreeSet;
use std::time::Duration;

use feedlens::post::ImageSource;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::kafka_support::PATIENCE;
use crate::query_support::{DRAWINGS, Worker, client, drawing_base64, post_ids, post_of, read};

const FRUIT: [&str; 8] = ["1f34e", "1f34f", "1f34c", "1f347", "1f349", "1f353", "1f351", "1f352"];

/// A picture host that takes a connection and never answers: who waits for it holds a place.
async fn silent_host() -> (String, TcpListener) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    (format!("http://{}/picture.png", listener.local_addr().expect("bound")), listener)
}

/// A bare connection, for clients that misbehave.
async fn connect(worker: &Worker) -> TcpStream {
    TcpStream::connect(worker.url.strip_prefix("http://").expect("a URL")).await.expect("connects")
}

#[tokio::test]
async fn a_topic_finds_its_pictures_in_the_contracts_form() {
    let worker = Worker::start(&[]).await;
    let (status, answer) = worker.ask(&json!({"request_id": "r1", "topic": "红苹果"})).await;
    assert_eq!(status, 200, "{answer}");
    assert_eq!((&answer["request_id"], &answer["candidates"]), (&json!("r1"), &json!(DRAWINGS.len())));
    assert_eq!(answer["model"], json!(worker.service.model().id));
    assert!(answer["took_ms"].as_f64().expect("a number") > 0.0);
    let hits = answer["hits"].as_array().expect("hits");
    assert_eq!(hits.len(), 5);
    assert!(post_ids(&answer)[..2].contains(&"demo:1f34e".to_owned()), "{answer}");
    for (index, hit) in hits.iter().enumerate() {
        assert_eq!(hit["rank"], json!(index + 1));
        assert_eq!(hit["matched"], json!("image"));
        assert!(hit["image"]["thumbnail"].as_str().expect("a thumbnail").starts_with("data:image/jpeg;base64,"));
        assert!(hit["caption"].is_string() && hit["author"].is_string() && hit["created_at"].is_string(), "{hit}");
    }
    assert!(hits.is_sorted_by(|left, right| left["score"].as_f64() >= right["score"].as_f64()), "{answer}");
    assert_eq!(worker.searches("http", "ok"), 1);
}

#[tokio::test]
async fn probability_is_the_softmax_over_the_candidates() {
    let worker = Worker::start(&[]).await;
    let (_, all) = worker.ask(&json!({"topic": "水果", "top_k": DRAWINGS.len()})).await;
    let hits = all["hits"].as_array().expect("hits");
    let logit_scale = f64::from(worker.service.model().logit_scale);
    let weights: Vec<f64> =
        hits.iter().map(|hit| (logit_scale * hit["score"].as_f64().expect("a score")).exp()).collect();
    let total: f64 = weights.iter().sum();
    for (hit, weight) in hits.iter().zip(&weights) {
        let probability = hit["probability"].as_f64().expect("a probability");
        assert!((probability - weight / total).abs() < 1e-5, "{probability} is not {}", weight / total);
    }
    let (_, few) = worker.ask(&json!({"topic": "水果", "top_k": 2})).await;
    assert_eq!(few["hits"][0]["probability"], hits[0]["probability"], "top_k does not change what is considered");
}

#[tokio::test]
async fn category_words_in_both_languages_find_their_kind() {
    let worker = Worker::start(&[]).await;
    for topic in ["水果", "fruit"] {
        let (_, answer) = worker.ask(&json!({ "topic": topic })).await;
        let ids = post_ids(&answer);
        let fruit = ids.iter().filter(|id| FRUIT.contains(&&id["demo:".len()..])).count();
        assert!(fruit >= 4, "{topic}: {ids:?}");
    }
}

#[tokio::test]
async fn url_parameters_find_the_same_as_json() {
    let worker = Worker::start(&[]).await;
    let filter = json!({"author": "甲", "tags_any": ["水果", "其他"], "lang": "zh", "since": "2026-11-20"});
    let (_, by_json) = worker
        .ask(&json!({"topic": "飞机", "top_k": 3, "target": "both", "filter": filter, "min_score": "none"}))
        .await;
    let query = "q=飞机&top_k=3&target=both&min_score=none&author=甲&tag=水果&tag=其他&lang=zh&since=2026-11-20";
    let (status, by_url) = worker.get(&format!("/v1/search?{query}")).await;
    assert_eq!((status, &by_url["hits"]), (200, &by_json["hits"]), "{by_url}");
    assert_eq!(post_ids(&by_url).len(), 3);
}

#[tokio::test]
async fn a_picture_finds_itself_and_a_posts_picture_finds_the_others() {
    let worker = Worker::start(&[]).await;
    let (_, by_bytes) = worker.ask(&json!({"image": {"base64": drawing_base64("1f34e")}, "top_k": 6})).await;
    assert_eq!(post_ids(&by_bytes)[0], "demo:1f34e");
    assert!(by_bytes["hits"][0]["score"].as_f64().expect("a score") > 0.999, "{by_bytes}");
    let (status, by_post) = worker.ask(&json!({"image": {"post_id": "demo:1f34e"}})).await;
    assert_eq!(status, 200, "{by_post}");
    assert_eq!(post_ids(&by_post), post_ids(&by_bytes)[1..], "the post itself is left out");
    assert_eq!(by_post["candidates"], json!(DRAWINGS.len() - 1));
    let (_, by_url) = worker.get("/v1/search?post_id=demo:1f34e").await;
    assert_eq!(by_url["hits"], by_post["hits"]);
}

#[tokio::test]
async fn a_picture_finds_captions() {
    let worker = Worker::start(&[]).await;
    let (_, answer) = worker.ask(&json!({"image": {"base64": drawing_base64("1f34c")}, "target": "caption"})).await;
    assert!(post_ids(&answer)[..3].contains(&"demo:1f34c".to_owned()), "{answer}");
    assert_eq!(answer["hits"][0]["matched"], json!("caption"));
}

#[tokio::test]
async fn both_targets_reach_posts_that_only_one_of_them_knows() {
    let worker = Worker::start(&[]).await;
    let mut only_text = post_of(0, "1f34c", "今天的话题是彩虹瀑布");
    (only_text.post_id, only_text.image) = ("text".to_owned(), None);
    worker.index(&only_text).await;
    let request = |target| json!({"topic": "今天的话题是彩虹瀑布", "target": target, "top_k": 19});
    let (_, both) = worker.ask(&request("both")).await;
    assert_eq!(post_ids(&both).len(), DRAWINGS.len() + 1);
    let text = both["hits"].as_array().expect("hits").iter().find(|hit| hit["post_id"] == "text").expect("found");
    assert_eq!((&text["matched"], &text["image"]), (&json!("caption"), &Value::Null));
    let total: f64 = both["hits"].as_array().expect("hits").iter().filter_map(|hit| hit["probability"].as_f64()).sum();
    assert!((total - 1.0).abs() < 1e-9, "{total}");
    let (_, image) = worker.ask(&request("image")).await;
    assert!(!post_ids(&image).contains(&"text".to_owned()));
}

#[tokio::test]
async fn filters_hold_for_every_hit() {
    let worker = Worker::start(&[]).await;
    // Posts by their number: one an hour, authors in turn, the first eight are fruit.
    type Holds = fn(usize) -> bool;
    let cases: [(Value, Holds); 6] = [
        (json!({"author": "甲"}), |index| index.is_multiple_of(2)),
        (json!({"lang": "en"}), |_| false),
        (json!({"tags_any": ["水果"]}), |index| index < 8),
        (json!({"since": "2026-11-20T08:00:00Z"}), |index| index >= 8),
        (json!({"until": "2026-11-20T08:00:00Z"}), |index| index < 8),
        (json!({"author": "乙", "tags_any": ["其他"], "since": "2026-11-20T10:00:00Z"}), |index| {
            index >= 10 && !index.is_multiple_of(2)
        }),
    ];
    for (filter, holds) in cases {
        let (_, answer) =
            worker.ask(&json!({"topic": "水果", "top_k": 50, "filter": filter, "min_score": "none"})).await;
        let expected: BTreeSet<String> = (0..DRAWINGS.len())
            .filter(|index| holds(*index))
            .map(|index| format!("demo:{}", DRAWINGS[index].0))
            .collect();
        let found: BTreeSet<String> = post_ids(&answer).into_iter().collect();
        assert_eq!((&found, &answer["candidates"]), (&expected, &json!(expected.len())), "{filter}");
        assert_eq!(post_ids(&answer).len(), expected.len(), "each once: {filter}");
    }
}

#[tokio::test]
async fn every_error_is_json_with_its_status() {
    let worker = Worker::start(&["query.max_body_bytes=20000"]).await;
    let large = format!("{{\"image\": {{\"base64\": \"{}\"}}}}", "A".repeat(30_000));
    let cases: [(&str, &str, &str, u16, &str); 12] = [
        ("POST", "/v1/search", "{\"topic\": ", 400, "bad_request"),
        ("POST", "/v1/search", "", 400, "bad_request"),
        ("POST", "/v1/search", "{\"tpoic\": \"a\"}", 400, "bad_request"),
        ("GET", "/v1/search", "", 400, "bad_request"),
        ("GET", "/v1/search?q=a&top_k=0", "", 400, "bad_request"),
        ("POST", "/v1/search", &large, 413, "too_large"),
        ("POST", "/v1/search", "{\"image\": {\"base64\": \"bm90IGEgcGljdHVyZQ==\"}}", 422, "unprocessable"),
        ("POST", "/v1/search", "{\"image\": {\"url\": \"http://127.0.0.1:1/a.png\"}}", 422, "unprocessable"),
        ("POST", "/v1/search", "{\"image\": {\"post_id\": \"none\"}}", 422, "unprocessable"),
        ("GET", "/v1/thumbnail?post_id=none", "", 422, "unprocessable"),
        ("GET", "/no/such/page", "", 404, "not_found"),
        ("DELETE", "/v1/search", "", 405, "method_not_allowed"),
    ];
    for (method, path, body, status, code) in cases {
        let request = client().request(method.parse().expect("a method"), format!("{}{path}", worker.url));
        let response = request.body(body.to_owned()).send().await.expect("an answer");
        assert_eq!(response.headers().get("allow").is_some(), status == 405, "{method} {path}");
        let (found, answer) = read(response).await;
        assert_eq!((found, answer["error"]["code"].as_str()), (status, Some(code)), "{method} {path}: {answer}");
        assert!(!answer["error"]["message"].as_str().expect("a message").is_empty());
    }
    assert!(worker.searches("http", "rejected") >= 9);
}

#[tokio::test]
async fn an_oversized_body_without_a_length_is_too_large_as_well() {
    let worker = Worker::empty(&["query.max_body_bytes=20000"]).await;
    let chunks = (0..40).map(|_| Ok::<_, std::io::Error>(vec![b' '; 800]));
    let body = reqwest::Body::wrap_stream(futures::stream::iter(chunks));
    let response = client().post(format!("{}/v1/search", worker.url)).body(body).send().await.expect("an answer");
    let (status, answer) = read(response).await;
    assert_eq!((status, answer["error"]["code"].as_str()), (413, Some("too_large")));
}

#[tokio::test]
async fn beyond_the_limit_a_search_is_told_to_come_back_and_a_slow_one_ends() {
    let networks = "images.allow_networks=[\"127.0.0.0/8\"]";
    let limits = ["query.max_concurrent=1", "query.max_wait=50ms", "query.timeout=2s", networks];
    let worker = Worker::start(&limits).await;
    let (host, listener) = silent_host().await;
    let slow_request = json!({"image": {"url": host}});
    let slow = worker.ask(&slow_request);
    let refused = async {
        // The slow search holds the only place once it has called the host.
        let connection = listener.accept().await.expect("a connection");
        assert_eq!(worker.get("/v1/thumbnail?post_id=demo:1f34e").await.0, 429, "a picture takes a place too");
        let response = client().get(format!("{}/v1/search?q=海", worker.url)).send().await.expect("an answer");
        assert_eq!(response.headers().get("retry-after").map(|value| value.as_bytes()), Some(&b"1"[..]));
        (read(response).await, connection)
    };
    let ((slow_status, slow_answer), ((status, answer), _connection)) = tokio::join!(slow, refused);
    assert_eq!((status, answer["error"]["code"].as_str()), (429, Some("overloaded")), "{answer}");
    assert_eq!((slow_status, slow_answer["error"]["code"].as_str()), (503, Some("unavailable")), "{slow_answer}");
    assert_eq!((worker.searches("http", "overloaded"), worker.searches("http", "unavailable")), (1, 1));
    assert_eq!(worker.get("/v1/search?q=海").await.0, 200, "the place is free again");
}

#[tokio::test]
async fn a_body_that_never_ends_is_answered() {
    let worker = Worker::empty(&["query.timeout=300ms"]).await;
    let mut connection = connect(&worker).await;
    let head = "POST /v1/search HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 100\r\n\r\n{\"topic\"";
    connection.write_all(head.as_bytes()).await.expect("writes");
    let mut answer = String::new();
    connection.read_to_string(&mut answer).await.expect("reads");
    assert!(answer.starts_with("HTTP/1.1 400 ") && answer.contains("did not arrive within"), "{answer}");
}

#[tokio::test]
async fn headers_that_never_end_do_not_hold_a_connection() {
    let worker = Worker::empty(&["query.timeout=300ms"]).await;
    let mut connection = connect(&worker).await;
    connection.write_all(b"GET / HTTP/1.1\r\nHost: a\r\nX-Slow: ").await.expect("writes");
    let closed = tokio::time::timeout(PATIENCE, connection.read_to_end(&mut Vec::new())).await;
    closed.expect("the worker closes the connection").expect("reads");
}

#[tokio::test]
async fn senders_who_announce_much_and_send_little_keep_nobody_out() {
    let worker = Worker::start(&["query.max_wait=50ms"]).await;
    let head = "POST /v1/search HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nTransfer-Encoding: chunked\r\n\r\n";
    let mut slow = Vec::new();
    for _ in 0..8 {
        let mut connection = connect(&worker).await;
        connection.write_all(head.as_bytes()).await.expect("writes");
        // The worker waits for the body now.
        let mut answer = [0; 12];
        connection.read_exact(&mut answer).await.expect("reads");
        assert_eq!(&answer, b"HTTP/1.1 100");
        connection.write_all(b"1\r\n{\r\n").await.expect("writes");
        slow.push(connection);
    }
    let (status, answer) = worker.ask(&json!({"topic": "海"})).await;
    assert_eq!(status, 200, "{answer}");
}

#[tokio::test]
async fn a_large_request_counts_until_its_picture_is_decoded() {
    let networks = "images.allow_networks=[\"127.0.0.0/8\"]";
    let patient = ["query.kafka=false", "query.timeout=60s", "images.timeout=60s", networks];
    let limits = ["query.max_body_bytes=204800", "query.max_wait=50ms"];
    let worker = Worker::start(&[&patient[..], &limits].concat()).await;
    let (host, listener) = silent_host().await;
    let large = |request: Value| format!("{}{request}", " ".repeat(190_000));
    let post = |body: String| client().post(format!("{}/v1/search", worker.url)).body(body).send();
    let slow = futures::future::join_all((0..4).map(|_| post(large(json!({"image": {"url": host}})))));
    let refused = async {
        let mut connections = Vec::new();
        for _ in 0..4 {
            // Its body is read and parsed once its picture is asked for.
            connections.push(listener.accept().await.expect("a connection"));
        }
        let refused = read(post(large(json!({"topic": "海"}))).await.expect("an answer")).await;
        let small = worker.ask(&json!({"topic": "海"})).await.0;
        // Their host breaks off, and the four end.
        drop(connections);
        (refused, small)
    };
    let (_, ((status, answer), small)) = tokio::join!(slow, refused);
    assert_eq!((status, answer["error"]["code"].as_str()), (429, Some("overloaded")), "{answer}");
    assert_eq!(small, 200, "there is room for small ones");
    let (status, answer) = read(post(large(json!({"topic": "海"}))).await.expect("an answer")).await;
    assert_eq!(status, 200, "the room is free again: {answer}");
}

#[tokio::test]
async fn a_store_that_is_gone_is_an_answer_too() {
    let worker = Worker::start(&[]).await;
    worker.store.close().await.expect("closes");
    let (status, answer) = worker.ask(&json!({"topic": "海"})).await;
    assert_eq!((status, answer["error"]["code"].as_str()), (503, Some("unavailable")), "{answer}");
    let (status, stats) = worker.get("/v1/stats").await;
    assert_eq!((status, &stats["posts"]), (200, &Value::Null));
}

#[tokio::test]
async fn a_search_under_way_is_answered_before_the_end() {
    let worker = Worker::start(&["images.allow_networks=[\"127.0.0.0/8\"]"]).await;
    let (host, listener) = silent_host().await;
    let request = json!({"image": {"url": host}});
    let asked = worker.ask(&request);
    let shutdown = worker.shutdown.clone();
    let ending = async {
        let (mut connection, _) = listener.accept().await.expect("a connection");
        shutdown.cancel();
        let picture = std::fs::read(crate::query_support::drawing("1f34e")).expect("a drawing");
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", picture.len());
        connection.write_all(head.as_bytes()).await.expect("writes");
        connection.write_all(&picture).await.expect("writes");
    };
    let ((status, answer), ()) = tokio::join!(asked, ending);
    assert_eq!((status, post_ids(&answer)[0].as_str()), (200, "demo:1f34e"), "{answer}");
    let served = tokio::time::timeout(Duration::from_secs(20), worker.serving).await;
    served.expect("ends in time").expect("no panic").expect("ends well");
}

#[tokio::test]
async fn a_topic_is_encoded_once() {
    let worker = Worker::start(&[]).await;
    let (_, first) = worker.ask(&json!({"topic": "海边的日落"})).await;
    let (_, second) = worker.ask(&json!({"topic": "海边的日落"})).await;
    assert_eq!(first["hits"], second["hits"]);
    let cache = |result| worker.service.metrics().embedding_cache.with_label_values(&[result]).get();
    assert_eq!((cache("miss"), cache("hit")), (1, 1));
}

#[tokio::test]
async fn the_pages_files_come_with_their_types_and_a_strict_policy() {
    let worker = Worker::empty(&[]).await;
    for (path, content_type) in [
        ("/", "text/html; charset=utf-8"),
        ("/app.js", "text/javascript; charset=utf-8"),
        ("/style.css", "text/css; charset=utf-8"),
        ("/icon.svg", "image/svg+xml"),
    ] {
        let response = client().get(format!("{}{path}", worker.url)).send().await.expect("an answer");
        let headers = response.headers().clone();
        assert_eq!(response.status().as_u16(), 200, "{path}");
        let header = |name: &str| headers[name].to_str().expect("text").to_owned();
        assert_eq!(header("content-type"), content_type);
        assert_eq!(
            (header("x-content-type-options"), header("referrer-policy")),
            ("nosniff".into(), "no-referrer".into())
        );
        assert!(
            header("content-security-policy").starts_with("default-src 'none'; script-src 'self'; style-src 'self'")
        );
        let again = client().get(format!("{}{path}", worker.url)).header("if-none-match", header("etag"));
        assert_eq!(again.send().await.expect("an answer").status().as_u16(), 304, "{path}");
    }
}

#[tokio::test]
async fn live_numbers_count_posts_and_searches() {
    let worker = Worker::start(&[]).await;
    worker.ask(&json!({"topic": "海"})).await;
    let (status, stats) = worker.get("/v1/stats").await;
    assert_eq!(status, 200);
    assert_eq!((&stats["posts"], &stats["searches"]), (&json!(DRAWINGS.len()), &json!(1)), "{stats}");
    assert_eq!((&stats["indexed"], &stats["lag"]), (&Value::Null, &Value::Null), "no ingest runs here: {stats}");
}

#[tokio::test]
async fn a_picture_kept_elsewhere_is_shown_through_the_worker() {
    let root = format!("images.root={}", crate::binary::root().display());
    let worker = Worker::start(&[&root]).await;
    let mut by_path = post_of(0, "2600", "太阳");
    by_path.image = Some(ImageSource::Path("demo/images/2600.png".into()));
    worker.index(&by_path).await;
    for id in ["demo:2600", "demo:1f34e"] {
        let (status, answer) = worker.get(&format!("/v1/thumbnail?post_id={id}")).await;
        assert_eq!(status, 200, "{answer}");
        assert!(answer["thumbnail"].as_str().expect("a picture").starts_with("data:image/jpeg;base64,"), "{id}");
    }
}
