//! Reading a message: its JSON, checked field by field, so that a dead letter names what is wrong.

use std::borrow::Cow;
use std::collections::HashSet;
use std::path::PathBuf;

use chrono::{DateTime, Utc};
use serde::de::{DeserializeSeed, Error as _, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use super::{ImageSource, Post, PostsConfig, VERSION_END, VERSION_HEADER};
use crate::error::{Fault, Reason};

/// Longest post id, in bytes of UTF-8.
const MAX_POST_ID_BYTES: usize = 512;
/// Longest author, in bytes of UTF-8.
const MAX_AUTHOR_BYTES: usize = 512;
/// Longest language tag, in bytes.
const MAX_LANG_BYTES: usize = 64;
/// Longest URL or path of a picture, in bytes of UTF-8.
const MAX_LOCATION_BYTES: usize = 8_192;
/// Deepest nesting of an unknown field: stores send payloads as nested messages, which their readers limit too.
const MAX_EXTRA_DEPTH: usize = 16;

const TIME_EXPECTED: &str = "a time of RFC 3339 such as \"2026-11-20T08:30:00Z\"";
const VERSION_EXPECTED: &str = "a whole number from 0 and below 2^53";

impl Post {
    /// Parses and checks a message. `key`: the message's key; where there is one, it must be the post id.
    ///
    /// `null` stands for an absent field. Control characters in a caption are kept: the payload is what the feed said, and
    /// the tokenizer drops them.
    ///
    /// # Errors
    /// [`Fault::Reject`], always; the detail names the field.
    pub fn parse(payload: &[u8], key: Option<&[u8]>, limits: &PostsConfig) -> Result<Self, Fault> {
        if payload.len() as u64 > limits.max_bytes {
            return Err(Fault::reject(
                Reason::TooLarge,
                format!("message: {} bytes, above posts.max_bytes = {}", payload.len(), limits.max_bytes),
            ));
        }
        let text = std::str::from_utf8(payload).map_err(|error| {
            Fault::reject(Reason::BadJson, format!("message: not UTF-8 at byte {}", error.valid_up_to()))
        })?;
        let (mut extra_bytes, mut fault) = (0, None);
        let seed = FieldsSeed { known: &POST_FIELDS, limits, extra_bytes: &mut extra_bytes, fault: &mut fault };
        let fields = read_with(seed, text).map_err(|error| fault.unwrap_or_else(|| bad_json("message", &error)))?;
        let mut post = Post {
            post_id: String::new(),
            author: None,
            caption: None,
            lang: None,
            created_at: None,
            tags: Vec::new(),
            image: None,
            version: None,
            extra: Map::new(),
        };
        for (name, raw) in fields {
            match &*name {
                "post_id" => post.post_id = field(&name, raw, "a string", Reason::BadId)?.unwrap_or_default(),
                "author" => post.author = short_string(&name, raw, MAX_AUTHOR_BYTES)?,
                "lang" => post.lang = short_string(&name, raw, MAX_LANG_BYTES)?,
                "caption" => post.caption = caption(&name, raw, limits)?,
                "created_at" => post.created_at = time(&name, raw)?,
                "tags" => post.tags = tags(&name, raw, limits)?,
                "version" => post.version = version(&name, raw)?,
                "image" => {
                    let (source, rest) = image(&name, raw, &mut extra_bytes, limits)?;
                    post.image = source;
                    if !rest.is_empty() {
                        post.extra.insert(name.into_owned(), rest.into());
                    }
                }
                _ => keep_extra(&mut post.extra, &name, raw)?,
            }
        }
        check_post_id(&post.post_id)?;
        if let Some(key) = key
            && key != post.post_id.as_bytes()
        {
            let (key, post_id) = (shortened(&String::from_utf8_lossy(key)), shortened(&post.post_id));
            return Err(bad_id(format!("message key {key:?} differs from post_id {post_id:?}")));
        }
        if post.caption.is_none() && post.image.is_none() {
            return Err(Fault::reject(Reason::Empty, "neither a caption nor an image: a post needs one of them"));
        }
        Ok(post)
    }
}

/// The post id that a tombstone's key names.
///
/// # Errors
/// [`Reason::BadId`] where there is no key, or it cannot be a post id.
pub fn post_id_from_key(key: Option<&[u8]>) -> Result<String, Fault> {
    let key = key.ok_or_else(|| bad_id("the tombstone has no key, which names the post to delete"))?;
    let post_id = std::str::from_utf8(key).map_err(|_| bad_id("the tombstone's key is not UTF-8"))?;
    check_post_id(post_id)?;
    Ok(post_id.to_owned())
}

/// The version in a tombstone's [`VERSION_HEADER`], where it has that header; the last one counts.
///
/// # Errors
/// [`Reason::BadField`] where it is not a whole number below 2^53 in decimal digits.
pub fn tombstone_version(headers: &[(String, Option<Vec<u8>>)]) -> Result<Option<u64>, Fault> {
    let Some((_, Some(value))) = headers.iter().rfind(|(name, _)| name == VERSION_HEADER) else { return Ok(None) };
    let digits = std::str::from_utf8(value).ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
    let version = digits.and_then(|digits| digits.parse().ok()).filter(|version| *version < VERSION_END);
    version.map(Some).ok_or_else(|| {
        let shown = shortened(&String::from_utf8_lossy(value));
        bad_field(VERSION_HEADER, format!("the header must be {VERSION_EXPECTED} in digits, not {shown:?}"))
    })
}

/// The members of a JSON object in order, values not yet parsed.
type Fields<'a> = Vec<(Cow<'a, str>, &'a RawValue)>;

const POST_FIELDS: [&str; 8] = ["post_id", "author", "lang", "caption", "created_at", "tags", "version", "image"];
const IMAGE_FIELDS: [&str; 3] = ["url", "path", "base64"];

/// Reads [`Fields`]. A name that occurs twice is an error: which of the two holds would depend on the reader. What is
/// above the limit of unknown fields ends the reading: the list of them would take many times the message's memory.
struct FieldsSeed<'s> {
    known: &'s [&'s str],
    limits: &'s PostsConfig,
    extra_bytes: &'s mut u64,
    /// Why the reading ended, where it is not the JSON.
    fault: &'s mut Option<Fault>,
}

impl<'de> DeserializeSeed<'de> for FieldsSeed<'_> {
    type Value = Fields<'de>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for FieldsSeed<'_> {
    type Value = Fields<'de>;

    fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut seen = HashSet::new();
        let mut fields = Vec::new();
        while let Some(FieldName(name)) = map.next_key()? {
            if !seen.insert(name.clone()) {
                return Err(A::Error::custom(format_args!("field {:?} is there twice", shortened(&name))));
            }
            let raw: &RawValue = map.next_value()?;
            if !self.known.contains(&&*name) {
                *self.extra_bytes += (name.len() + raw.get().len()) as u64;
                if *self.extra_bytes > self.limits.max_extra_bytes {
                    *self.fault = Some(bad_field(
                        &shortened(&name),
                        format!(
                            "unknown fields take more than posts.max_extra_bytes = {}",
                            self.limits.max_extra_bytes
                        ),
                    ));
                    return Err(A::Error::custom(LIMIT));
                }
            }
            fields.push((name, raw));
        }
        Ok(fields)
    }
}

/// Never shown: the fault that was kept is.
const LIMIT: &str = "above a limit";

/// The tags, as far as the limits let them pass.
struct TagsSeed<'s> {
    limits: &'s PostsConfig,
    fault: &'s mut Option<Fault>,
}

impl<'de> DeserializeSeed<'de> for TagsSeed<'_> {
    type Value = Vec<String>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for TagsSeed<'_> {
    type Value = Vec<String>;

    fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("an array of strings")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Self::Value, A::Error> {
        let mut tags: Vec<String> = Vec::new();
        while let Some(tag) = items.next_element::<String>()? {
            let fits = match tags.len() < self.limits.max_tags {
                true => check_length("tags: a tag", tag.len(), self.limits.max_tag_bytes),
                false => Err(bad_field("tags", format!("more than posts.max_tags = {} of them", self.limits.max_tags))),
            };
            if let Err(fault) = fits {
                *self.fault = Some(fault);
                return Err(A::Error::custom(LIMIT));
            }
            tags.push(tag);
        }
        Ok(tags)
    }
}

fn read_with<'a, S: DeserializeSeed<'a>>(seed: S, text: &'a str) -> serde_json::Result<S::Value> {
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let value = seed.deserialize(&mut deserializer)?;
    deserializer.end()?;
    Ok(value)
}

#[derive(Deserialize)]
struct FieldName<'a>(#[serde(borrow)] Cow<'a, str>);

fn bad_json(what: &str, error: &serde_json::Error) -> Fault {
    Fault::reject(Reason::BadJson, format!("{what}: {error}"))
}

fn bad_id(detail: impl std::fmt::Display) -> Fault {
    Fault::reject(Reason::BadId, format!("post_id: {detail}"))
}

fn bad_field(name: &str, detail: impl std::fmt::Display) -> Fault {
    Fault::reject(Reason::BadField, format!("{name}: {detail}"))
}

/// For messages.
fn shortened(text: &str) -> String {
    crate::text::shortened(text, 80).into_owned()
}

/// The value of a field; `None` for null. `reason`: what a value of another type is.
fn field<'a, T: Deserialize<'a>>(
    name: &str,
    raw: &'a RawValue,
    expected: &str,
    reason: Reason,
) -> Result<Option<T>, Fault> {
    serde_json::from_str(raw.get()).map_err(|error| field_fault(name, raw, expected, reason, &error))
}

fn field_fault(name: &str, raw: &RawValue, expected: &str, reason: Reason, error: &serde_json::Error) -> Fault {
    if error.is_data() {
        Fault::reject(reason, format!("{name}: must be {expected}, not {}", kind(raw)))
    } else {
        bad_json(name, error)
    }
}

fn kind(raw: &RawValue) -> String {
    match raw.get().as_bytes().first() {
        Some(b'"') => "a string".to_owned(),
        Some(b'{') => "an object".to_owned(),
        Some(b'[') => "an array of other things".to_owned(),
        _ => shortened(raw.get()),
    }
}

fn check_length(name: &str, length: usize, most: u64) -> Result<(), Fault> {
    if length as u64 > most {
        return Err(bad_field(name, format!("{length} bytes, of at most {most}")));
    }
    Ok(())
}

fn check_post_id(post_id: &str) -> Result<(), Fault> {
    if post_id.trim().is_empty() {
        return Err(bad_id("it is missing or empty"));
    }
    if post_id.len() > MAX_POST_ID_BYTES {
        return Err(bad_id(format!("{} bytes, of at most {MAX_POST_ID_BYTES}", post_id.len())));
    }
    if post_id.chars().any(char::is_control) {
        return Err(bad_id(format!("{:?} has a control character", shortened(post_id))));
    }
    Ok(())
}

/// An empty string says as little as no string.
fn short_string(name: &str, raw: &RawValue, most: usize) -> Result<Option<String>, Fault> {
    let text: Option<String> = field(name, raw, "a string", Reason::BadField)?;
    let text = text.filter(|text| !text.is_empty());
    check_length(name, text.as_ref().map_or(0, String::len), most as u64)?;
    Ok(text)
}

fn caption(name: &str, raw: &RawValue, limits: &PostsConfig) -> Result<Option<String>, Fault> {
    let caption: Option<String> = field(name, raw, "a string", Reason::BadField)?;
    check_length(name, caption.as_ref().map_or(0, String::len), limits.max_caption_bytes)?;
    Ok(caption.filter(|caption| !caption.trim().is_empty()))
}

fn time(name: &str, raw: &RawValue) -> Result<Option<DateTime<Utc>>, Fault> {
    let text: Option<String> = field(name, raw, TIME_EXPECTED, Reason::BadField)?;
    let Some(text) = text else { return Ok(None) };
    match DateTime::parse_from_rfc3339(&text) {
        Ok(time) => Ok(Some(time.to_utc())),
        Err(_) => Err(bad_field(name, format!("must be {TIME_EXPECTED}, not {:?}", shortened(&text)))),
    }
}

fn tags(name: &str, raw: &RawValue, limits: &PostsConfig) -> Result<Vec<String>, Fault> {
    if is_null(raw) {
        return Ok(Vec::new());
    }
    let mut fault = None;
    let read = read_with(TagsSeed { limits, fault: &mut fault }, raw.get());
    read.map_err(|error| {
        fault.unwrap_or_else(|| field_fault(name, raw, "an array of strings", Reason::BadField, &error))
    })
}

fn is_null(raw: &RawValue) -> bool {
    raw.get() == "null"
}

fn version(name: &str, raw: &RawValue) -> Result<Option<u64>, Fault> {
    let version: Option<u64> = field(name, raw, VERSION_EXPECTED, Reason::BadField)?;
    if version.is_some_and(|version| version >= VERSION_END) {
        return Err(bad_field(name, format!("must be {VERSION_EXPECTED}, not {}", raw.get())));
    }
    Ok(version)
}

/// The source, and what else the object says.
fn image(
    name: &str,
    raw: &RawValue,
    extra_bytes: &mut u64,
    limits: &PostsConfig,
) -> Result<(Option<ImageSource>, Map<String, Value>), Fault> {
    let mut rest = Map::new();
    if is_null(raw) {
        return Ok((None, rest));
    }
    let mut fault = None;
    let seed = FieldsSeed { known: &IMAGE_FIELDS, limits, extra_bytes, fault: &mut fault };
    let fields = read_with(seed, raw.get()).map_err(|error| match fault {
        Some(fault) => fault,
        // Duplicate names arrive as a data error, but the object is one.
        None if raw.get().starts_with('{') => bad_json(name, &error),
        None => field_fault(name, raw, "an object with one of url, base64, path", Reason::BadField, &error),
    })?;
    let mut sources = Vec::new();
    for (inner, raw) in fields {
        let name = format!("{name}.{inner}");
        let source = match &*inner {
            "url" => location(&name, raw)?.map(ImageSource::Url),
            "path" => location(&name, raw)?.map(|path| ImageSource::Path(PathBuf::from(path))),
            "base64" => field(&name, raw, "a string", Reason::BadField)?.map(ImageSource::Base64),
            _ => {
                keep_extra(&mut rest, &inner, raw)?;
                None
            }
        };
        sources.extend(source);
    }
    match (sources.pop(), sources.is_empty()) {
        (Some(source), true) => Ok((Some(source), rest)),
        (None, _) => Err(bad_field(name, "has none of url, base64, path")),
        (Some(_), false) => Err(bad_field(name, "has more than one of url, base64, path")),
    }
}

fn location(name: &str, raw: &RawValue) -> Result<Option<String>, Fault> {
    let text: Option<String> = field(name, raw, "a string", Reason::BadField)?;
    if text.as_ref().is_some_and(String::is_empty) {
        return Err(bad_field(name, "is empty"));
    }
    check_length(name, text.as_ref().map_or(0, String::len), MAX_LOCATION_BYTES as u64)?;
    Ok(text)
}

fn keep_extra(extra: &mut Map<String, Value>, name: &str, raw: &RawValue) -> Result<(), Fault> {
    let value: Value = serde_json::from_str(raw.get()).map_err(|error| bad_json(&shortened(name), &error))?;
    if depth(&value) > MAX_EXTRA_DEPTH {
        return Err(bad_field(&shortened(name), format!("nested deeper than {MAX_EXTRA_DEPTH} levels")));
    }
    if !value.is_null() {
        extra.insert(name.to_owned(), value);
    }
    Ok(())
}

/// At most 128: the parser stops there.
fn depth(value: &Value) -> usize {
    match value {
        Value::Array(items) => 1 + items.iter().map(depth).max().unwrap_or(0),
        Value::Object(members) => 1 + members.values().map(depth).max().unwrap_or(0),
        _ => 0,
    }
}
