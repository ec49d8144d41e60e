use proptest::prelude::*;

use super::*;
use crate::error::tests::assert_rejected;
use crate::error::{Fault, Reason};

const LIMITS: PostsConfig =
    PostsConfig { max_bytes: 100_000, max_caption_bytes: 1_000, max_extra_bytes: 200, max_tags: 3, max_tag_bytes: 10 };

fn parse(json: &str) -> Result<Post, Fault> {
    Post::parse(json.as_bytes(), None, &LIMITS)
}

#[test]
fn whole_post_is_read() {
    let post = parse(
        r#"{"post_id": "weibo:5012345", "author": "u42", "caption": "雨后的彩虹", "lang": "zh",
            "created_at": "2026-11-20T08:30:00+08:00", "tags": ["天气"], "version": 7,
            "image": {"url": "https:\/\/example.org/1.jpg", "width": 640}, "likes": 12, "note": null}"#,
    )
    .expect("parses");
    assert_eq!(post.post_id, "weibo:5012345");
    assert_eq!(post.author.as_deref(), Some("u42"));
    assert_eq!(post.caption.as_deref(), Some("雨后的彩虹"));
    assert_eq!(post.lang.as_deref(), Some("zh"));
    assert_eq!(post.created_at.map(timestamp).as_deref(), Some("2026-11-20T00:30:00Z"));
    assert_eq!(post.tags, ["天气"]);
    assert_eq!(post.version, Some(7));
    assert_eq!(post.image, Some(ImageSource::Url("https://example.org/1.jpg".to_owned())));
    assert_eq!(Value::from(post.extra), json!({"likes": 12, "image": {"width": 640}}));
}

#[test]
fn null_is_absent() {
    let post = parse(
        r#"{"post_id": "a", "caption": "x", "author": null, "lang": null, "created_at": null, "tags": null,
            "version": null, "image": null}"#,
    );
    assert_eq!(post.expect("parses"), parse(r#"{"post_id": "a", "caption": "x"}"#).expect("parses"));
    let post = parse(r#"{"post_id": "a", "image": {"url": null, "path": "b.png"}}"#).expect("parses");
    assert_eq!(post.image, Some(ImageSource::Path("b.png".into())));
    assert_rejected(parse(r#"{"post_id": null, "caption": "x"}"#), Reason::BadId, "missing");
}

#[test]
fn wrong_type_names_the_field() {
    for (field, value) in [
        ("caption", "5"),
        ("author", "{}"),
        ("lang", "[]"),
        ("tags", "\"a\""),
        ("tags", "[1]"),
        ("created_at", "17"),
        ("created_at", "\"yesterday\""),
        ("created_at", "\"2026-11-20 08:30\""),
        ("version", "\"7\""),
        ("version", "-1"),
        ("version", "1.5"),
        ("version", "9007199254740992"),
        ("version", "1e400"),
        ("image", "\"https://example.org/1.jpg\""),
        ("image", "{}"),
        ("image", r#"{"url": "a", "path": "b"}"#),
        ("image", r#"{"url": 7}"#),
        ("image", r#"{"url": ""}"#),
        ("image", r#"{"base64": ["a"]}"#),
    ] {
        let caption = if field == "caption" { "" } else { r#""caption": "x", "# };
        let json = format!(r#"{{"post_id": "a", {caption}"{field}": {value}}}"#);
        let reason = if value == "1e400" { Reason::BadJson } else { Reason::BadField };
        assert_rejected(parse(&json), reason, field);
    }
}

#[test]
fn largest_version_is_the_last_exact_double() {
    let post = parse(r#"{"post_id": "a", "caption": "x", "version": 9007199254740991}"#).expect("parses");
    assert_eq!(post.version, Some(VERSION_END - 1));
}

#[test]
fn what_is_not_a_json_object_is_bad_json() {
    for (text, mentions) in [
        ("", "EOF"),
        ("null", "invalid type: null"),
        ("[]", "invalid type: sequence"),
        ("7", "invalid type: integer `7`"),
        ("\"a\"", "invalid type: string \"a\""),
        ("{", "EOF"),
        ("{}x", "trailing characters at line 1 column 3"),
        (r#"{"post_id": "a" "caption": "x"}"#, "expected `,` or `}` at line 1 column 17"),
        (r#"{"caption": "\ud800"}"#, "caption: unexpected end of hex escape"),
    ] {
        assert_rejected(parse(text), Reason::BadJson, mentions);
    }
    assert_rejected(Post::parse(b"{\"post_id\": \"\xff\"}", None, &LIMITS), Reason::BadJson, "UTF-8 at byte 13");
}

#[test]
fn field_that_is_there_twice_is_bad_json() {
    assert_rejected(parse(r#"{"post_id": "a", "caption": "x", "post_id": "b"}"#), Reason::BadJson, "\"post_id\"");
    assert_rejected(parse(r#"{"post_id": "a", "caption": "x", "u": 1, "\u0075": 2}"#), Reason::BadJson, "twice");
    assert_rejected(parse(r#"{"post_id": "a", "image": {"url": "a", "url": "b"}}"#), Reason::BadJson, "image");
}

#[test]
fn deep_nesting_is_rejected_without_recursion() {
    let limits = PostsConfig { max_bytes: 10_000_000, max_extra_bytes: 10_000_000, ..LIMITS };
    for (levels, reason) in [(20, Reason::BadField), (1_000_000, Reason::BadJson)] {
        let json =
            format!(r#"{{"post_id": "a", "caption": "x", "deep": {}{}}}"#, "[".repeat(levels), "]".repeat(levels));
        assert_rejected(Post::parse(json.as_bytes(), None, &limits), reason, "deep");
        let json = format!(r#"{{"post_id": "a", "caption": {}{}}}"#, "[".repeat(levels), "]".repeat(levels));
        assert_rejected(Post::parse(json.as_bytes(), None, &limits), Reason::BadField, "caption");
    }
}

#[test]
fn sizes_are_bounded() {
    let long = "a".repeat(1_001);
    assert_rejected(parse(&format!(r#"{{"post_id": "a", "caption": "{long}"}}"#)), Reason::BadField, "caption");
    assert_rejected(parse(&format!(r#"{{"post_id": "{long}", "caption": "x"}}"#)), Reason::BadId, "1001 bytes");
    assert_rejected(
        parse(&format!(r#"{{"post_id": "a", "caption": "x", "u": "{long}"}}"#)),
        Reason::BadField,
        "max_extra",
    );
    assert_rejected(
        parse(r#"{"post_id": "a", "caption": "x", "tags": ["1", "2", "3", "4"]}"#),
        Reason::BadField,
        "tags",
    );
    assert_rejected(parse(r#"{"post_id": "a", "caption": "x", "tags": ["12345678901"]}"#), Reason::BadField, "tags");
    let huge = format!(r#"{{"post_id": "a", "caption": "x"}}{}"#, " ".repeat(100_000));
    assert_rejected(parse(&huge), Reason::TooLarge, "posts.max_bytes = 100000");
}

#[test]
fn post_id_must_be_one() {
    assert_rejected(parse(r#"{"caption": "x"}"#), Reason::BadId, "missing");
    assert_rejected(parse(r#"{"post_id": " ", "caption": "x"}"#), Reason::BadId, "empty");
    assert_rejected(parse(r#"{"post_id": 5, "caption": "x"}"#), Reason::BadId, "must be a string, not 5");
    assert_rejected(parse(r#"{"post_id": "a\u0000", "caption": "x"}"#), Reason::BadId, "control");
}

#[test]
fn message_key_must_be_the_post_id() {
    let json = br#"{"post_id": "a", "caption": "x"}"#;
    assert_eq!(Post::parse(json, Some(b"a"), &LIMITS).expect("the key is the id").post_id, "a");
    assert_rejected(Post::parse(json, Some(b"b"), &LIMITS), Reason::BadId, "message key \"b\" differs");
    assert_rejected(Post::parse(json, Some(b""), &LIMITS), Reason::BadId, "message key");
}

#[test]
fn post_needs_a_caption_or_an_image() {
    assert_rejected(parse(r#"{"post_id": "a"}"#), Reason::Empty, "caption");
    assert_rejected(parse(r#"{"post_id": "a", "caption": " \u3000\n"}"#), Reason::Empty, "image");
    let post = parse(r#"{"post_id": "a", "image": {"base64": "AAAA"}}"#).expect("an image is enough");
    assert_eq!((post.caption, post.image), (None, Some(ImageSource::Base64("AAAA".to_owned()))));
    let post = parse(r#"{"post_id": "a", "caption": "x"}"#).expect("a caption is enough");
    assert_eq!((post.caption.as_deref(), post.image), (Some("x"), None));
}

/// Lists of what is beyond the limits would take many times the message's memory: what comes behind is not read.
#[test]
fn reading_ends_at_the_limits() {
    let many = |count: usize| (0..count).map(|number| format!("\"u{number}\": 1")).collect::<Vec<_>>().join(", ");
    let broken = format!(r#"{{"post_id": "a", "caption": "x", {}, !"#, many(5_000));
    assert_rejected(parse(&broken), Reason::BadField, "posts.max_extra_bytes");
    let broken = format!(r#"{{"post_id": "a", "image": {{"url": "u", {}, "url": 1}}}}"#, many(5_000));
    assert_rejected(parse(&broken), Reason::BadField, "posts.max_extra_bytes");
    let broken = format!(r#"{{"post_id": "a", "caption": "x", "tags": [{} 7]}}"#, "\"t\",".repeat(5_000));
    assert_rejected(parse(&broken), Reason::BadField, "posts.max_tags");
}

#[test]
fn payload_tells_post_and_provenance() {
    let indexed_at = DateTime::from_timestamp(1_700_000_000, 5_000_000).expect("a time");
    let post = parse(r#"{"post_id": "a", "image": {"base64": "AAAA"}, "tags": ["t"], "u": 1}"#).expect("parses");
    assert_eq!(
        Value::from(post.payload("small", indexed_at, Some("data:image/jpeg;base64,AA".to_owned()))),
        json!({
            "post_id": "a", "image": {"inline": true}, "tags": ["t"], "extra": {"u": 1},
            "thumbnail": "data:image/jpeg;base64,AA", "model": "small",
            "indexed_at": "2023-11-14T22:13:20.005Z",
        })
    );
    let post = parse(r#"{"post_id": "a", "caption": "x", "image": {"path": "b.png"}}"#).expect("parses");
    let payload = post.payload("small", indexed_at, None);
    assert_eq!(payload["image"], json!({"path": "b.png"}));
    assert!(!payload.contains_key("thumbnail") && !payload.contains_key("extra") && !payload.contains_key("tags"));
}

#[test]
fn tombstone_names_its_post_and_version() {
    assert_eq!(post_id_from_key(Some("帖:1".as_bytes())).expect("an id"), "帖:1");
    for key in [None, Some(&b""[..]), Some(b"\xff"), Some(b"a\nb")] {
        assert_rejected(post_id_from_key(key), Reason::BadId, "post_id");
    }
    let header = |value: &[u8]| (VERSION_HEADER.to_owned(), Some(value.to_vec()));
    let other = ("trace".to_owned(), Some(b"x".to_vec()));
    assert_eq!(tombstone_version(std::slice::from_ref(&other)).expect("none"), None);
    assert_eq!(tombstone_version(&[header(b"7"), header(b"42"), other]).expect("a version"), Some(42));
    for value in [&b""[..], b"-1", b"+1", b"1.0", b"9007199254740992", b"99999999999999999999", b"\xff"] {
        assert_rejected(tombstone_version(&[header(value)]), Reason::BadField, "version");
    }
}

fn any_post() -> impl Strategy<Value = Value> {
    let text = || proptest::option::of("\\PC{1,20}");
    let image = proptest::option::of(prop_oneof![
        "\\PC{1,20}".prop_map(|url| json!({ "url": url })),
        "[A-Za-z0-9+/]{0,40}".prop_map(|data| json!({ "base64": data })),
        "\\PC{1,20}".prop_map(|path| json!({ "path": path })),
    ]);
    let version = proptest::option::of(0..VERSION_END);
    ("[a-z0-9:]{1,20}", "x\\PC{0,40}", text(), text(), proptest::collection::vec("\\PC{0,2}", 0..3), image, version)
        .prop_map(|(post_id, caption, author, lang, tags, image, version)| {
            json!({
                "post_id": post_id, "caption": caption, "author": author, "lang": lang, "tags": tags, "image": image,
                "version": version, "unknown": {"kept": true},
            })
        })
}

proptest! {
    #[test]
    fn parsing_never_panics(payload in proptest::collection::vec(any::<u8>(), 0..200), key in proptest::option::of("a|b")) {
        let _ = Post::parse(&payload, key.as_deref().map(str::as_bytes), &LIMITS);
    }

    #[test]
    fn parsing_json_like_text_never_panics(
        text in r#"\{("(post_id|caption|image|tags|version|created_at|u)": ?("a|\\u00|"é"|-?[0-9]{1,30}|null|[\[\]{}:,]|1e9){0,3},?){0,4}\}?"#,
    ) {
        let _ = parse(&text);
    }

    #[test]
    fn fields_come_back_as_they_were(json in any_post()) {
        let post = parse(&json.to_string()).expect("a post of the contract's form is accepted");
        prop_assert_eq!(post.post_id.as_str(), json["post_id"].as_str().unwrap_or_default());
        prop_assert_eq!(post.caption.as_deref(), json["caption"].as_str());
        prop_assert_eq!(post.author.as_deref(), json["author"].as_str());
        prop_assert_eq!(post.lang.as_deref(), json["lang"].as_str());
        prop_assert_eq!(post.version, json["version"].as_u64());
        prop_assert_eq!(json!(post.tags), json["tags"].clone());
        prop_assert_eq!(&post.extra["unknown"], &json["unknown"]);
        let image = match post.image {
            None => Value::Null,
            Some(ImageSource::Url(url)) => json!({ "url": url }),
            Some(ImageSource::Base64(data)) => json!({ "base64": data }),
            Some(ImageSource::Path(path)) => json!({ "path": path }),
        };
        prop_assert_eq!(&image, &json["image"]);
    }
}
