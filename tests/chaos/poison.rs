//! Messages that can never be indexed, with the reason that their dead letters must give.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use feedlens::error::Reason;
use feedlens::post::VERSION_HEADER;
use serde_json::{Value, json};

/// The run's `posts.max_bytes`.
pub const MAX_BYTES: usize = 262_144;

/// What poison is made from.
pub struct Given<'a> {
    pub post_id: &'a str,
    /// A good picture, PNG.
    pub picture: &'a [u8],
    /// `http://address` of the pictures' host.
    pub host: &'a str,
}

/// A message without its place.
pub struct Made {
    pub key: Option<Vec<u8>>,
    pub payload: Option<Vec<u8>>,
    pub headers: Vec<(String, Option<Vec<u8>>)>,
}

/// A way to be wrong.
pub struct Kind {
    pub name: &'static str,
    pub reason: Reason,
    how: How,
}

enum How {
    /// These bytes.
    Bytes(fn(&Given) -> Vec<u8>),
    /// These fields beside, or instead of, those of a good post.
    Fields(fn(&Given) -> Value),
    /// This picture in a good post.
    Image(fn(&Given) -> Value),
    /// A deletion with this key and version header.
    Tombstone(fn(&Given) -> Option<Vec<u8>>, Option<&'static str>),
}

use How::{Bytes, Fields, Image, Tombstone};

macro_rules! kinds {
    ($($name:literal => $reason:ident, $how:expr;)*) => {
        &[$(Kind { name: $name, reason: Reason::$reason, how: $how }),*]
    };
}

pub const KINDS: &[Kind] = kinds! {
    "cut off JSON" => BadJson, Bytes(|given| { let mut text = good(given); text.truncate(text.len() / 2); text });
    "no JSON" => BadJson, Bytes(|_| b"hello".to_vec());
    "an array" => BadJson, Bytes(|given| json!([given.post_id]).to_string().into_bytes());
    "invalid UTF-8" => BadJson, Bytes(|given| [&b"{\"caption\": \"\xff\", "[..], &good(given)[1..]].concat());
    "a field twice" => BadJson, Bytes(|given| [&b"{\"caption\": \"a\", "[..], &good(given)[1..]].concat());
    "no id" => BadId, Fields(|_| json!({"post_id": null}));
    "an empty id" => BadId, Fields(|_| json!({"post_id": " "}));
    "an id that is no string" => BadId, Fields(|_| json!({"post_id": 7}));
    "key and id differ" => BadId, Fields(|given| json!({"post_id": format!("{}?", given.post_id)}));
    "caption of a wrong type" => BadField, Fields(|_| json!({"caption": {"zh": "a"}}));
    "caption too long" => BadField, Fields(|_| json!({"caption": "雨".repeat(22_000)}));
    "version too large" => BadField, Fields(|_| json!({"version": 1_u64 << 53}));
    "version below 0" => BadField, Fields(|_| json!({"version": -1}));
    "version with a fraction" => BadField, Fields(|_| json!({"version": 1.5}));
    "no time" => BadField, Fields(|_| json!({"created_at": "yesterday"}));
    "too many tags" => BadField, Fields(|_| json!({"tags": vec!["a"; 65]}));
    "unknown fields too large" => BadField, Fields(|_| json!({"more": "x".repeat(17_000)}));
    "nested too deeply" => BadField, Fields(|_| json!({"more": deep(40)}));
    "two pictures" => BadField, Image(|given| json!({"url": format!("{}/picture/1", given.host), "path": "a.png"}));
    "neither caption nor picture" => Empty, Fields(|_| json!({"caption": " \u{3000}"}));
    "message too large" => TooLarge, Fields(|_| json!({"more": "x".repeat(MAX_BYTES)}));
    "no picture" => BadImage, Image(|_| base64(b"these bytes are no picture"));
    "a cut off picture" => BadImage, Image(|given| base64(&given.picture[..given.picture.len() / 2]));
    "bad base64" => BadImage, Image(|_| json!({"base64": "!!!!"}));
    "a data URI of a text" => BadImage, Image(|_| json!({"base64": "data:text/plain;base64,aGVsbG8="}));
    "a decompression bomb" => TooLarge, Image(|given| base64(&bomb(given.picture)));
    "a private address" => ForbiddenSource, Image(|_| json!({"url": "http://10.1.2.3/a.png"}));
    "the cloud's metadata" => ForbiddenSource, Image(|_| json!({"url": "http://169.254.169.254/latest/meta-data"}));
    "a file" => ForbiddenSource, Image(|_| json!({"url": "file:///etc/passwd"}));
    "a redirect to a private address" => ForbiddenSource, Image(|given| json!({"url": format!("{}/inside", given.host)}));
    "a path without a root" => ForbiddenSource, Image(|_| json!({"path": "a.png"}));
    "a missing picture" => ImageUnavailable, Image(|given| json!({"url": format!("{}/missing", given.host)}));
    "a web page" => BadImage, Image(|given| json!({"url": format!("{}/page", given.host)}));
    "a URL that is none" => BadField, Image(|_| json!({"url": "not a URL"}));
    "a deletion of nothing" => BadId, Tombstone(|_| None, None);
    "a deletion of a key with a control character" => BadId, Tombstone(|_| Some(b"a\nb".to_vec()), None);
    "a deletion with a bad version" => BadField, Tombstone(|given| Some(key(given)), Some("1e3"));
};

impl Kind {
    pub fn make(&self, given: &Given) -> Made {
        let with_key = |payload: Vec<u8>| Made { key: Some(key(given)), payload: Some(payload), headers: Vec::new() };
        match self.how {
            Bytes(make) => with_key(make(given)),
            Fields(make) => with_key(changed(given, make(given))),
            Image(make) => with_key(changed(given, json!({ "image": make(given) }))),
            Tombstone(make, version) => {
                let version = version.map(|version| (VERSION_HEADER.to_owned(), Some(version.as_bytes().to_vec())));
                Made { key: make(given), payload: None, headers: version.into_iter().collect() }
            }
        }
    }
}

fn key(given: &Given) -> Vec<u8> {
    given.post_id.as_bytes().to_vec()
}

fn changed(given: &Given, fields: Value) -> Vec<u8> {
    let mut post = json!({"post_id": given.post_id, "caption": "毒", "author": "poison"});
    if let (Value::Object(post), Value::Object(fields)) = (&mut post, fields) {
        post.extend(fields);
    }
    post.to_string().into_bytes()
}

fn good(given: &Given) -> Vec<u8> {
    changed(given, json!({}))
}

fn base64(bytes: &[u8]) -> Value {
    json!({ "base64": STANDARD.encode(bytes) })
}

fn deep(levels: usize) -> Value {
    (0..levels).fold(json!(1), |inner, _| json!([inner]))
}

/// A good picture whose header says 60,000 x 60,000 pixels.
fn bomb(picture: &[u8]) -> Vec<u8> {
    let mut bomb = picture.to_vec();
    // Signature (8), length (4), then the chunk: IHDR, width, height.
    bomb[16..24].copy_from_slice(&[0, 0, 0xea, 0x60, 0, 0, 0xea, 0x60]);
    let checksum = crc32fast::hash(&bomb[12..29]);
    bomb[29..33].copy_from_slice(&checksum.to_be_bytes());
    bomb
}
