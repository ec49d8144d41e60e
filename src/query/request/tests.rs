use super::*;
use proptest::prelude::*;
use serde_json::json;

fn config() -> QueryConfig {
    crate::config::Config::load(&[], &crate::config::Overrides::default()).expect("the defaults load").query
}

fn parse(json: &serde_json::Value) -> Result<SearchRequest, SearchError> {
    SearchRequest::from_json(json.to_string().as_bytes(), &config()).request
}

fn message(json: &serde_json::Value) -> String {
    parse(json).expect_err("a bad request").message
}

fn parameters(pairs: &[(&str, &str)]) -> Result<SearchRequest, SearchError> {
    let pairs = pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    SearchRequest::from_parameters(pairs, &config())
}

#[test]
fn the_contracts_example_is_read_whole() {
    let request = parse(&json!({
        "request_id": "r1", "topic": "海边的日落", "top_k": 7, "target": "both",
        "filter": {"lang": "zh", "author": "u42", "tags_any": ["旅行"],
                   "since": "2026-11-20T08:30:00+08:00", "until": "2026-11-21"}
    }))
    .expect("a good request");
    assert_eq!(request.request_id.as_deref(), Some("r1"));
    assert_eq!(request.subject, Subject::Topic("海边的日落".to_owned()));
    assert_eq!((request.target, request.top_k), (Target::Both, 7));
    assert_eq!(request.filter.tags_any, ["旅行"]);
    assert_eq!(request.filter.since.map(|time| time.to_rfc3339()).as_deref(), Some("2026-11-20T00:30:00+00:00"));
    assert_eq!(request.filter.until.map(|time| time.to_rfc3339()).as_deref(), Some("2026-11-21T00:00:00+00:00"));
}

#[test]
fn what_is_left_out_or_null_has_its_default() {
    for json in [json!({"topic": "海"}), json!({"topic": "海", "image": null, "top_k": null, "filter": null})] {
        let request = parse(&json).expect("a good request");
        assert_eq!(request, SearchRequest::topic("海", &config()));
    }
}

#[test]
fn a_picture_comes_in_exactly_one_way() {
    let url = parse(&json!({"image": {"url": "https://a.example/b.png"}})).expect("a good request");
    assert_eq!(url.subject, Subject::Picture(ImageSource::Url("https://a.example/b.png".to_owned())));
    let post = parse(&json!({"image": {"post_id": "weibo:1"}})).expect("a good request");
    assert_eq!(post.subject, Subject::Post("weibo:1".to_owned()));
    for image in [json!({}), json!({"url": "https://a.example", "base64": "AAAA"})] {
        assert!(message(&json!({ "image": image })).contains("exactly one"));
    }
    assert_eq!(message(&json!({"image": {"path": "/etc/passwd"}})).split(';').next(), Some("unknown field \"path\""));
    assert_eq!(message(&json!({"image": "AAAA"})), "image must be an object");
}

#[test]
fn an_unknown_field_names_the_nearest_known_one() {
    assert!(message(&json!({"tpoic": "海"})).contains("\"topic\""));
    assert!(message(&json!({"topic": "海", "filter": {"tags": ["a"]}})).contains("\"tags_any\""));
    assert!(parameters(&[("q", "海"), ("topk", "5")]).expect_err("unknown").message.contains("\"top_k\""));
}

#[test]
fn each_bad_value_is_named() {
    for (json, part) in [
        (json!({}), "give a topic"),
        (json!({"topic": "a", "image": {"url": "b"}}), "not both"),
        (json!({"topic": 5}), "topic must be a string"),
        (json!({"topic": " \t"}), "the topic is empty"),
        (json!({"topic": "a", "top_k": 0}), "1 to 100"),
        (json!({"topic": "a", "top_k": 101}), "1 to 100"),
        (json!({"topic": "a", "top_k": -1}), "1 to 100"),
        (json!({"topic": "a", "top_k": "5"}), "1 to 100"),
        (json!({"topic": "a", "target": "text"}), "\"caption\""),
        (json!({"topic": "a", "filter": []}), "filter must be an object"),
        (json!({"topic": "a", "filter": {"lang": ""}}), "lang is empty"),
        (json!({"topic": "a", "filter": {"tags_any": "a"}}), "list of strings"),
        (json!({"topic": "a", "filter": {"tags_any": vec!["a"; 65]}}), "at most 64"),
        (json!({"topic": "a", "filter": {"author": "x".repeat(257)}}), "at most 256"),
        (json!({"topic": "a", "filter": {"since": "yesterday"}}), "2026-11-20T08:30:00Z"),
        (json!({"topic": "a", "filter": {"since": "2026-11-21", "until": "2026-11-20"}}), "before until"),
        (json!(["topic"]), "not a JSON object"),
    ] {
        let error = parse(&json).expect_err("a bad request");
        assert_eq!(error.code, ErrorCode::BadRequest, "{json}");
        assert!(error.message.contains(part), "{json}: {}", error.message);
    }
}

#[test]
fn a_topic_over_the_limit_is_too_large() {
    let error = parse(&json!({"topic": "海".repeat(1366)})).expect_err("4,098 bytes");
    assert_eq!(error.code, ErrorCode::TooLarge);
    assert!(error.message.contains("4098 bytes") && error.message.contains("4096"), "{}", error.message);
    let longest = "海".repeat(1365);
    let request = parse(&json!({ "topic": longest })).expect("4,095 bytes");
    assert_eq!(request.subject, Subject::Topic(longest));
}

#[test]
fn a_bad_request_keeps_its_id_for_the_answer() {
    let parsed = SearchRequest::from_json(br#"{"tpoic": "a", "request_id": "r9"}"#, &config());
    assert_eq!(parsed.request_id.as_deref(), Some("r9"));
    let error = parsed.request.expect_err("a bad request");
    assert_eq!(error.code, ErrorCode::BadRequest);
    assert!(error.message.contains("\"tpoic\"") && error.message.contains("\"topic\""), "{}", error.message);
}

#[test]
fn a_repeated_field_is_an_error_and_not_a_choice() {
    let parsed = SearchRequest::from_json(br#"{"topic": "a", "topic": "b"}"#, &config());
    assert!(parsed.request.expect_err("twice").message.contains("topic occurs twice"));
    assert!(parameters(&[("q", "a"), ("q", "b")]).expect_err("twice").message.contains("q is given twice"));
}

#[test]
fn messages_do_not_grow_with_what_was_sent() {
    let error = message(&json!({"x".repeat(100_000): 1}));
    assert!(error.starts_with("unknown field \"xxx") && error.len() < 300, "{error}");
}

#[test]
fn url_parameters_say_the_same_as_json() {
    let from_url = parameters(&[
        ("q", "海"),
        ("top_k", "3"),
        ("target", "caption"),
        ("lang", ""),
        ("author", "u1"),
        ("tag", "a"),
        ("tag", "b"),
        ("since", "2026-11-20"),
    ])
    .expect("a good request");
    let from_json = parse(&json!({"topic": "海", "top_k": 3, "target": "caption",
        "filter": {"author": "u1", "tags_any": ["a", "b"], "since": "2026-11-20T00:00:00Z"}}));
    assert_eq!(Ok(from_url), from_json);
}

proptest! {
    #[test]
    fn no_bytes_make_the_parser_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = SearchRequest::from_json(&bytes, &config());
    }

    #[test]
    fn any_topic_within_the_limit_arrives_unchanged(topic in "\\PC{1,200}") {
        prop_assume!(!topic.trim().is_empty());
        let request = parse(&json!({ "topic": topic })).expect("a good request");
        prop_assert_eq!(request.subject, Subject::Topic(topic));
    }
}
