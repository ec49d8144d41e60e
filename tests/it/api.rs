//! What programs rely on: the description, batches, and who may ask.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::process::Stdio;

use feedlens::query::keys;
use serde_json::{Value, json};

use crate::binary::feedlens;
use crate::browser::Browser;
use crate::kafka_support::wait_until;
use crate::query_support::{DRAWINGS, Worker, api_keys, client, drawing_base64, post_ids, read, write_api_keys};

const ONE: &str = "one-key-of-some-length";
const TWO: &str = "two-key-of-some-length";

fn keys_of(object: &Value) -> BTreeSet<&str> {
    object.as_object().unwrap_or_else(|| panic!("no object: {object}")).keys().map(String::as_str).collect()
}

/// The status of a search with a key.
async fn with_key(worker: &Worker, key: &str) -> u16 {
    let asked = client().get(format!("{}/v1/search?q=海", worker.url)).header("x-api-key", key);
    asked.send().await.expect("an answer").status().as_u16()
}

#[tokio::test]
async fn the_description_names_every_field_of_an_answer() {
    let worker = Worker::start(&[]).await;
    let (status, description) = worker.get("/v1/openapi.json").await;
    assert_eq!((status, &description["openapi"]), (200, &json!("3.1.0")));
    let (_, answer) = worker.ask(&json!({"request_id": "r1", "topic": "海", "min_score": "none"})).await;
    let (_, stats) = worker.get("/v1/stats").await;
    let (_, thumbnail) = worker.get("/v1/thumbnail?post_id=demo:1f34e").await;
    let (_, error) = worker.get("/v1/search").await;
    for (schema, found) in [
        ("SearchResponse", &answer),
        ("SearchHit", &answer["hits"][0]),
        ("Snapshot", &stats),
        ("Thumbnail", &thumbnail),
        ("ErrorResponse", &error),
        ("ErrorBody", &error["error"]),
    ] {
        let described = &description["components"]["schemas"][schema];
        assert_eq!(keys_of(&described["properties"]), keys_of(found), "{schema}");
        assert_eq!(described["additionalProperties"], json!(false), "{schema}");
    }
    let image = &description["components"]["schemas"]["HitImage"];
    assert!(keys_of(&image["properties"]).is_superset(&keys_of(&answer["hits"][0]["image"])));
}

#[tokio::test]
async fn every_described_path_is_there_and_needs_a_key_where_keys_are_set() {
    let (_file, set) = api_keys(&[("a", ONE, "")]);
    let worker = Worker::empty(&[&set]).await;
    let (_, description) = worker.get("/v1/openapi.json").await;
    let paths = keys_of(&description["paths"]);
    assert!(paths.contains("/v1/search") && paths.contains("/v1/search/batch"), "{paths:?}");
    for path in paths {
        for method in keys_of(&description["paths"][path]) {
            let method = method.to_uppercase().parse().expect("a method");
            let url = format!("{}{}", worker.url, path.replace(['{', '}'], ""));
            let response = client().request(method, url).send().await.expect("an answer");
            assert_eq!(response.status().as_u16(), 401, "{path}");
        }
    }
    assert_eq!(worker.get("/v1/stats").await.0, 401);
    for path in ["/", "/docs"] {
        let response = client().get(format!("{}{path}", worker.url)).send().await.expect("an answer");
        assert_eq!(response.status().as_u16(), 200, "{path}");
    }
}

#[tokio::test]
async fn a_key_is_known_by_its_hash_in_either_header() {
    let (_file, set) = api_keys(&[("a", ONE, ""), ("b", TWO, "")]);
    let worker = Worker::start(&[&set]).await;
    for (name, value, status) in [
        ("x-other", ONE.to_owned(), 401),
        ("x-api-key", ONE[1..].to_owned(), 401),
        ("x-api-key", keys::hash(ONE).expect("a hash"), 401),
        ("x-api-key", TWO.to_owned(), 200),
        ("authorization", format!("Bearer {ONE}"), 200),
        ("authorization", format!("bearer {ONE}"), 200),
        ("authorization", format!("Basic {ONE}"), 401),
        ("authorization", "Bearer ".to_owned(), 401),
    ] {
        let url = format!("{}/v1/search?q=海", worker.url);
        let response = client().get(&url).header(name, &value).send().await.expect("an answer");
        assert_eq!(response.headers().contains_key("www-authenticate"), status == 401);
        let (found, answer) = read(response).await;
        assert_eq!(found, status, "{name}: {value}: {answer}");
    }
    let count = |name, outcome| worker.service.metrics().api_requests.with_label_values(&[name, outcome]).get();
    assert_eq!((count("a", "accepted"), count("b", "accepted"), count("", "unauthorized")), (2, 1, 5));
}

#[tokio::test]
async fn keys_change_without_a_restart_and_a_broken_file_changes_nothing() {
    let (file, set) = api_keys(&[("a", ONE, "")]);
    let worker = Worker::start(&[&set]).await;
    assert_eq!((with_key(&worker, ONE).await, with_key(&worker, TWO).await), (200, 401));
    write_api_keys(file.path(), &[("a", ONE, ""), ("b", TWO, "")]);
    wait_until("the second key", async || with_key(&worker, TWO).await == 200).await;
    assert_eq!(with_key(&worker, ONE).await, 200);
    let reloads = |outcome| worker.service.metrics().api_keys_reloads.with_label_values(&[outcome]).get();
    std::fs::write(file.path(), "[a]\nhashes = [").expect("written");
    wait_until("a look at the broken file", async || reloads("failed") == 1).await;
    assert_eq!((with_key(&worker, ONE).await, with_key(&worker, TWO).await), (200, 200));
    write_api_keys(file.path(), &[("b", TWO, "")]);
    wait_until("a look at the good file", async || reloads("ok") == 2).await;
    assert_eq!((with_key(&worker, ONE).await, with_key(&worker, TWO).await), (401, 200));
}

#[tokio::test]
async fn a_key_beyond_its_rate_is_told_when_to_come_back() {
    let (_file, set) = api_keys(&[("slow", ONE, "rate = 1\nburst = 40"), ("free", TWO, "")]);
    let worker = Worker::start(&[&set]).await;
    let searches = vec![json!({"topic": "海"}); 30];
    let batch = || {
        let asked = client().post(format!("{}/v1/search/batch", worker.url)).header("x-api-key", ONE);
        asked.body(json!({"searches": searches}).to_string()).send()
    };
    assert_eq!(batch().await.expect("an answer").status().as_u16(), 200);
    let refused = batch().await.expect("an answer");
    let wait: u64 = refused.headers()["retry-after"].to_str().expect("text").parse().expect("seconds");
    assert!((1..=30).contains(&wait), "30 more at 1 a second: {wait}");
    let (status, answer) = read(refused).await;
    assert_eq!((status, answer["error"]["code"].as_str()), (429, Some("rate_limited")), "{answer}");
    assert_eq!(with_key(&worker, TWO).await, 200, "another key has its own rate");
    while with_key(&worker, ONE).await == 200 {}
    let limited = worker.service.metrics().api_requests.with_label_values(&["slow", "rate_limited"]).get();
    assert!(limited >= 1, "{limited}");
}

#[test]
fn the_hash_of_a_key_comes_from_the_command_line() {
    let hashed = |key: &str| {
        let mut child = feedlens(&["config", "hash-key"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("starts");
        child.stdin.take().expect("piped").write_all(key.as_bytes()).expect("writes");
        let output = child.wait_with_output().expect("ends");
        let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
        (output.status.success(), text(output.stdout), text(output.stderr))
    };
    assert_eq!(hashed(&format!("{ONE}\n")).1, keys::hash(ONE).expect("a hash") + "\n");
    let (is_good, stdout, stderr) = hashed("hunter2");
    assert!(!is_good && stdout.is_empty() && stderr.contains("at least 16") && !stderr.contains("hunter2"), "{stderr}");
}

#[tokio::test]
async fn other_pages_may_read_answers_only_where_they_are_named() {
    let origins = "query.cors_origins=[\"https://wall.example.org\"]";
    let (_file, set) = api_keys(&[("a", ONE, "")]);
    let (open, closed) = (Worker::empty(&[origins, &set]).await, Worker::empty(&[]).await);
    let preflight = |worker: &Worker, origin: &str| {
        let asked = client().request("OPTIONS".parse().expect("a method"), format!("{}/v1/search", worker.url));
        let asked = asked.header("origin", origin).header("access-control-request-method", "POST");
        asked.header("access-control-request-headers", "x-api-key,content-type").send()
    };
    let allowed = |response: &reqwest::Response| response.headers().get("access-control-allow-origin").cloned();
    let named = preflight(&open, "https://wall.example.org").await.expect("an answer");
    assert_eq!(named.status().as_u16(), 200, "a preflight shows no key");
    assert_eq!(allowed(&named).expect("allowed"), "https://wall.example.org");
    for (worker, origin) in [(&open, "https://evil.example.org"), (&closed, "https://wall.example.org")] {
        assert_eq!(allowed(&preflight(worker, origin).await.expect("an answer")), None, "{origin}");
    }
    let refused = client().get(format!("{}/v1/search?q=a", open.url)).header("origin", "https://wall.example.org");
    let refused = refused.send().await.expect("an answer");
    assert_eq!((refused.status().as_u16(), allowed(&refused).is_some()), (401, true), "errors can be read too");
}

#[tokio::test]
async fn other_pages_cannot_make_a_browser_send_what_they_may_not() {
    let worker = Worker::start(&["query.cors_origins=[\"https://wall.example.org\"]"]).await;
    for (site, origin, status) in [
        (Some("cross-site"), "https://evil.example.org", 403),
        (Some("same-site"), "http://127.0.0.1:1", 403),
        (Some("cross-site"), "null", 403),
        (Some("cross-site"), "https://wall.example.org", 200),
        (Some("same-origin"), worker.url.as_str(), 200),
        (Some("none"), "null", 200),
        // Browsers leave the header out where the worker is asked without TLS.
        (None, "http://evil.example.org", 403),
        (None, "null", 403),
        (None, "https://wall.example.org", 200),
        (None, worker.url.as_str(), 200),
    ] {
        let mut asked = client().post(format!("{}/v1/search", worker.url)).body("{\"topic\": \"海\"}");
        if let Some(site) = site {
            asked = asked.header("sec-fetch-site", site);
        }
        let response = asked.header("origin", origin).send().await;
        assert_eq!(response.expect("an answer").status().as_u16(), status, "{site:?} {origin}");
    }
}

#[tokio::test]
async fn a_batch_is_answered_in_order_with_errors_in_their_places() {
    let worker = Worker::start(&[]).await;
    let ask = async |body: Value| {
        let response = client().post(format!("{}/v1/search/batch", worker.url)).body(body.to_string()).send().await;
        read(response.expect("an answer")).await
    };
    let mut searches = DRAWINGS[..8]
        .iter()
        .map(|(_, label)| json!({"request_id": format!("find {label}"), "topic": label}))
        .collect::<Vec<_>>();
    searches.insert(3, json!({"request_id": "bad", "tpoic": "海"}));
    searches.push(json!({"image": {"base64": drawing_base64("1f34e")}}));
    searches.push(json!({"image": {"base64": "bm9uZQ=="}, "request_id": "no-picture"}));
    searches.push(json!({"topic": "海", "reply_to": "elsewhere"}));
    let (status, answer) = ask(json!({"searches": searches})).await;
    assert_eq!(status, 200, "{answer}");
    let answers = answer["answers"].as_array().expect("a list");
    assert_eq!(answers.len(), searches.len());
    for (search, answer) in searches.iter().zip(answers) {
        assert_eq!(search.get("request_id"), answer.get("request_id"), "{answer}");
        let (_, mut alone) = worker.ask(search).await;
        if alone.get("error").is_some() {
            assert_eq!(alone["error"], answer["error"], "{answer}");
        } else {
            alone["took_ms"] = answer["took_ms"].clone();
            assert_eq!(&alone, answer, "as it is alone");
        }
    }
    let failed = answers.iter().filter(|answer| answer.get("error").is_some()).count();
    assert_eq!((failed, post_ids(&answers[9])[0].as_str()), (3, "demo:1f34e"));
    assert_eq!((worker.searches("http", "ok"), worker.searches("http", "rejected")), (2 * 9, 2 * 3));
    for (body, says) in [
        (json!({"searches": []}), "no searches"),
        (json!({"searches": vec![json!({"topic": "海"}); 33]}), "query.max_batch"),
        (json!({"searches": {}}), "a list of searches"),
        (json!({"search": []}), "searches"),
        (json!([]), "searches"),
    ] {
        let (status, answer) = ask(body).await;
        assert_eq!((status, answer["error"]["code"].as_str()), (400, Some("bad_request")), "{answer}");
        assert!(answer["error"]["message"].as_str().expect("a message").contains(says), "{says}: {answer}");
    }
}

#[tokio::test]
async fn the_topics_of_a_batch_are_encoded_before_and_not_one_by_one() {
    let worker = Worker::start(&[]).await;
    let searches = DRAWINGS.iter().map(|(_, label)| json!({"topic": label})).collect::<Vec<_>>();
    let body = json!({"searches": searches}).to_string();
    let response = client().post(format!("{}/v1/search/batch", worker.url)).body(body).send().await;
    assert_eq!(response.expect("an answer").status().as_u16(), 200);
    let cache = |result| worker.service.metrics().embedding_cache.with_label_values(&[result]).get();
    assert_eq!((cache("miss"), cache("hit")), (DRAWINGS.len() as u64, DRAWINGS.len() as u64));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_of_the_description_shows_every_address_and_fits_a_phone() {
    let screen = json!({"deviceMetrics": {"width": 360, "height": 740, "pixelRatio": 1.0}});
    let Some(browser) = Browser::with_options("en", json!({"mobileEmulation": screen})).await else { return };
    let worker = Worker::empty(&[]).await;
    let (_, description) = worker.get("/v1/openapi.json").await;
    browser.client.goto(&format!("{}/docs#SearchFilter", worker.url)).await.expect("opens");
    browser.until("document.getElementById('SearchFilter') !== null").await;
    let shown = browser.script("return [...document.querySelectorAll('#main .card')].map(e => e.id);").await;
    let shown = shown.as_array().expect("a list").iter().map(|id| id.as_str().expect("an id")).collect::<BTreeSet<_>>();
    for path in keys_of(&description["paths"]) {
        for method in keys_of(&description["paths"][path]) {
            let id = path.split(|character: char| !character.is_ascii_alphanumeric()).collect::<Vec<_>>().join("-");
            let id = id.replace("--", "-");
            assert!(shown.contains(format!("{method}{id}").as_str()), "{method} {path}: {shown:?}");
        }
    }
    for schema in keys_of(&description["components"]["schemas"]) {
        assert!(shown.contains(schema), "{schema}: {shown:?}");
    }
    let widths = browser.script("return [window.innerWidth, document.documentElement.scrollWidth];").await;
    assert_eq!(widths, json!([360, 360]));
    let loaded = "return performance.getEntriesByType('resource').map(e => e.name)
        .filter(name => !name.startsWith(location.origin));";
    assert_eq!(browser.script(loaded).await, json!([]), "nothing comes from elsewhere");
    browser.close().await;
}
