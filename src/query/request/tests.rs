use super::*;
use crate::query::error::ErrorCode;
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
fn every_option_of_a_search_is_read_in_both_forms() {
    let json = parse(&json!({
        "topic": "海", "target": "both", "top_k": 3, "offset": 10, "fusion": "weighted", "image_weight": 0.25,
        "filter": {"author": "a", "not_author": ["b", "c"], "tags_any": ["d"], "tags_all": ["e", "f"],
                   "labels_any": ["风险/广告"], "labels_none": ["g/h"]},
        "min_score": 0.3, "freshness": {"half_life": "36h", "weight": 0.5}, "fold": false, "transform": "sine"
    }))
    .expect("a good request");
    assert_eq!(json.fusion, Fusion::Weighted { image_weight: 0.25 });
    assert_eq!((json.offset, json.fold, json.transform), (10, false, Transform::Sine));
    assert_eq!(json.min_score, MinScore::Number(0.3));
    assert_eq!(json.freshness, Some(Freshness { half_life: Duration::from_hours(36), weight: 0.5 }));
    assert_eq!((json.filter.not_author.len(), json.filter.tags_all.len()), (2, 2));
    assert_eq!((&json.filter.labels_any[0], &json.filter.labels_none[0]), (&"风险/广告".to_owned(), &"g/h".to_owned()));
    let url = parameters(&[
        ("q", "海"),
        ("target", "both"),
        ("top_k", "3"),
        ("offset", "10"),
        ("fusion", "weighted"),
        ("image_weight", "0.25"),
        ("author", "a"),
        ("not_author", "b"),
        ("not_author", "c"),
        ("tag", "d"),
        ("tag_all", "e"),
        ("tag_all", "f"),
        ("label", "风险/广告"),
        ("label_none", "g/h"),
        ("min_score", "0.3"),
        ("freshness", "36h"),
        ("freshness_weight", "0.5"),
        ("fold", "false"),
        ("transform", "sine"),
    ]);
    assert_eq!(url, Ok(json));
    let one = parse(&json!({"topic": "a", "filter": {"not_author": "b"}, "min_score": "none"})).expect("good");
    assert_eq!((one.filter.not_author, one.min_score), (vec!["b".to_owned()], MinScore::None));
    let fresh = parse(&json!({"topic": "a", "freshness": {"half_life": "7d"}})).expect("good");
    assert_eq!(fresh.freshness.map(|freshness| freshness.weight), Some(Freshness::DEFAULT_WEIGHT));
}

#[test]
fn each_bad_parameter_is_named() {
    for (pair, part) in [
        (("offset", "1001"), "offset is 1001; it must be a whole number from 0 to 1000"),
        (("fold", "yes"), "fold is yes; it must be true or false"),
        (("min_score", "high"), "min_score is \"high\"; it must be a number from -1 to 1, \"auto\" or \"none\""),
        (("freshness", "a day"), "freshness is \"a day\"; write how long"),
        (("freshness_weight", "0.5"), "freshness_weight needs freshness"),
        (("transform", "cosine"), "transform is \"cosine\"; it must be \"none\", \"sine\""),
        (("fusion", "rrf"), "fusion is for target \"both\""),
        (("image_weight", "0.5"), "image_weight is for target \"both\""),
        (("notauthor", "a"), "\"not_author\""),
    ] {
        let error = parameters(&[("q", "a"), pair]).expect_err("a bad request");
        assert!(error.code == ErrorCode::BadRequest && error.message.contains(part), "{pair:?}: {}", error.message);
    }
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
        (json!({"topic": "a", "offset": -1}), "offset is -1; it must be a whole number from 0 to 1000"),
        (json!({"topic": "a", "offset": 1.5}), "0 to 1000"),
        (json!({"topic": "a", "target": "both", "fusion": "sum"}), "\"rrf\" or \"weighted\""),
        (json!({"topic": "a", "target": "caption", "fusion": "rrf"}), "for target \"both\""),
        (json!({"topic": "a", "target": "both", "image_weight": 0.5}), "for fusion \"weighted\""),
        (json!({"topic": "a", "target": "both", "fusion": "weighted", "image_weight": 1.5}), "from 0 to 1"),
        (json!({"topic": "a", "filter": {"not_author": 5}}), "filter.not_author must be a string or a list"),
        (json!({"topic": "a", "filter": {"tags_all": [""]}}), "filter.tags_all is empty"),
        (json!({"topic": "a", "filter": {"labels_none": "a"}}), "filter.labels_none must be a list of strings"),
        (json!({"topic": "a", "min_score": [0.5]}), "\"auto\" or \"none\""),
        (json!({"topic": "a", "min_score": 2}), "from -1 to 1"),
        (json!({"topic": "a", "freshness": "24h"}), "freshness must be an object"),
        (json!({"topic": "a", "freshness": {"weight": 0.5}}), "freshness needs its half_life"),
        (json!({"topic": "a", "freshness": {"half_life": "0s"}}), "freshness.half_life is \"0s\""),
        (json!({"topic": "a", "freshness": {"half_life": "1000years"}}), "100 years"),
        (json!({"topic": "a", "freshness": {"half_life": "1h", "weight": 2}}), "freshness.weight is 2"),
        (json!({"topic": "a", "fold": "true"}), "fold is \"true\"; it must be true or false"),
        (json!({"topic": "a", "transform": 1}), "transform must be a string"),
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
