//! A search as it is asked for (design 1.5): JSON or URL parameters, parsed and checked against the limits.

use std::borrow::Cow;
use std::collections::HashMap;

use chrono::{DateTime, Utc};
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

use crate::post::ImageSource;
use crate::query::QueryConfig;
use crate::query::error::{ErrorCode, SearchError};
use crate::store::Filter;
use crate::text::{self, nearest, shortened};

pub(super) const REQUEST_FIELDS: &[&str] = &["request_id", "reply_to", "topic", "image", "target", "top_k", "filter"];
pub(super) const IMAGE_FIELDS: &[&str] = &["base64", "url", "post_id"];
pub(super) const FILTER_FIELDS: &[&str] = &["lang", "author", "tags_any", "since", "until"];
pub(super) const PARAMETERS: &[&str] =
    &["q", "post_id", "target", "top_k", "lang", "author", "tag", "since", "until", "request_id"];
/// Longest id, author, language or tag, in bytes: as long as the longest that a post may carry, and echoed in answers.
const MAX_NAME_BYTES: usize = 256;
/// Most tags in one filter: each is one more look-up for the store.
const MAX_TAGS: usize = 64;
/// Characters of what a sender wrote that an error repeats.
const SHOWN: usize = 60;

/// What is searched for.
#[derive(Debug, Clone, PartialEq)]
pub enum Subject {
    /// A text in any language that the model knows.
    Topic(String),
    /// A picture that comes with the request.
    Picture(ImageSource),
    /// The picture of a stored post, by its post id; that post itself is left out of the answer.
    Post(String),
}

/// Which of the posts' vectors the subject is compared with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Target {
    /// The pictures.
    #[default]
    Image,
    /// The captions.
    Caption,
    /// Both rankings, fused.
    Both,
}

impl Target {
    const NAMES: [(&'static str, Target); 3] =
        [("image", Target::Image), ("caption", Target::Caption), ("both", Target::Both)];
}

/// A search, checked.
#[derive(Debug, Clone, PartialEq)]
pub struct SearchRequest {
    /// Given back with the answer.
    pub request_id: Option<String>,
    /// What is searched for.
    pub subject: Subject,
    /// What it is compared with.
    pub target: Target,
    /// Hits wanted, 1 to `query.max_top_k`.
    pub top_k: usize,
    /// Conditions on the posts.
    pub filter: Filter,
}

/// A request, and the id and place under which even a bad one is answered.
#[derive(Debug, Clone, PartialEq)]
pub struct Parsed {
    /// The `request_id`, where it could be read.
    pub request_id: Option<String>,
    /// Over Kafka: the results topic that it asks for, where that could be read.
    pub reply_to: Option<String>,
    /// The request, or what is wrong with it.
    pub request: Result<SearchRequest, SearchError>,
}

impl Parsed {
    /// The request, where its sender waits for the answer and so needs no place for it.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn without_reply_to(self) -> Result<SearchRequest, SearchError> {
        match self.reply_to {
            Some(_) => {
                Err(SearchError::bad_request("reply_to is for requests over Kafka; here the answer comes back itself"))
            }
            None => self.request,
        }
    }
}

impl SearchRequest {
    /// A search for a text with the defaults of the configuration.
    pub fn topic(topic: impl Into<String>, config: &QueryConfig) -> Self {
        Self::with_defaults(Subject::Topic(topic.into()), config)
    }

    /// A search for a picture with the defaults of the configuration.
    pub fn picture(picture: ImageSource, config: &QueryConfig) -> Self {
        Self::with_defaults(Subject::Picture(picture), config)
    }

    fn with_defaults(subject: Subject, config: &QueryConfig) -> Self {
        Self { request_id: None, subject, target: Target::default(), top_k: config.top_k, filter: Filter::default() }
    }

    /// Reads the JSON form.
    pub fn from_json(bytes: &[u8], config: &QueryConfig) -> Parsed {
        let mut deserializer = serde_json::Deserializer::from_slice(bytes);
        let fields = FieldsOf { known: REQUEST_FIELDS, place: "the request" }
            .deserialize(&mut deserializer)
            .and_then(|fields| deserializer.end().map(|()| fields));
        let fields = match fields {
            Ok(fields) => fields,
            Err(error) => {
                let error = SearchError::bad_request(format!("the request is not a JSON object: {error}"));
                return Parsed { request_id: None, reply_to: None, request: Err(error) };
            }
        };
        let (request_id, reply_to) = (fields.name("request_id"), fields.name("reply_to"));
        Parsed {
            request_id: request_id.clone().unwrap_or_default(),
            reply_to: reply_to.clone().unwrap_or_default(),
            request: reply_to.and(request_id).and_then(|request_id| Self::from_fields(request_id, &fields, config)),
        }
    }

    fn from_fields(request_id: Option<String>, fields: &Fields<'_>, config: &QueryConfig) -> Result<Self, SearchError> {
        fields.check()?;
        let subject = match (fields.string("topic")?, fields.raw("image")) {
            (Some(topic), None) => check_topic(topic, config)?,
            (None, Some(image)) => image_subject(image)?,
            (Some(_), Some(_)) => return Err(SearchError::bad_request("give topic or image, not both")),
            (None, None) => {
                return Err(SearchError::bad_request("give a topic (text) or an image ({\"base64\"} or {\"url\"})"));
            }
        };
        let top_k = match fields.raw("top_k") {
            None => config.top_k,
            Some(raw) => serde_json::from_str(raw.get())
                .map_err(|_| SearchError::bad_request(format!("top_k must be {}", top_k_range(config))))
                .and_then(|top_k| check_top_k(top_k, config))?,
        };
        let target = fields.string("target")?.map_or(Ok(Target::default()), |name| parse_target(&name))?;
        let filter = fields.raw("filter").map_or(Ok(Filter::default()), parse_filter)?;
        Ok(Self { request_id, subject, target, top_k, filter })
    }

    /// Reads the URL form: `q` (or `post_id`), `target`, `top_k`, `lang`, `author`, `tag` (repeatable), `since`,
    /// `until`, `request_id`. Empty values count as absent, as HTML forms send them.
    ///
    /// # Errors
    /// Names the parameter at fault; for an unknown one, the nearest known.
    pub fn from_parameters(pairs: Vec<(String, String)>, config: &QueryConfig) -> Result<Self, SearchError> {
        let mut single: HashMap<&'static str, String> = HashMap::new();
        let mut tags_any = Vec::new();
        for (name, value) in pairs {
            let Some(known) = PARAMETERS.iter().find(|known| **known == name) else {
                return Err(SearchError::bad_request(unknown("parameter", &name, PARAMETERS)));
            };
            if value.is_empty() {
                continue;
            }
            if *known == "tag" {
                tags_any.push(check_name("tag", value)?);
            } else if single.insert(known, value).is_some() {
                return Err(SearchError::bad_request(format!("{known} is given twice")));
            }
        }
        let mut name = |key: &'static str| single.remove(key).map(|value| check_name(key, value)).transpose();
        let request_id = name("request_id")?;
        let (lang, author, post_id, target) = (name("lang")?, name("author")?, name("post_id")?, name("target")?);
        let (top_k, since, until) = (name("top_k")?, name("since")?, name("until")?);
        let subject = match (single.remove("q"), post_id) {
            (Some(topic), None) => check_topic(topic, config)?,
            (None, Some(post_id)) => Subject::Post(post_id),
            (Some(_), Some(_)) => return Err(SearchError::bad_request("give q or post_id, not both")),
            (None, None) => return Err(SearchError::bad_request("give a topic: /v1/search?q=...")),
        };
        let top_k = match top_k {
            None => config.top_k,
            Some(text) => text
                .parse()
                .map_err(|_| SearchError::bad_request(format!("top_k must be {}", top_k_range(config))))
                .and_then(|top_k| check_top_k(top_k, config))?,
        };
        let filter = Filter {
            lang,
            author,
            tags_any: check_tags(tags_any)?,
            since: since.map(|text| parse_time("since", &text)).transpose()?,
            until: until.map(|text| parse_time("until", &text)).transpose()?,
        };
        check_range(&filter)?;
        let target = target.map_or(Ok(Target::default()), |name| parse_target(&name))?;
        Ok(Self { request_id, subject, target, top_k, filter })
    }
}

fn check_topic(topic: String, config: &QueryConfig) -> Result<Subject, SearchError> {
    if topic.trim().is_empty() {
        return Err(SearchError::bad_request("the topic is empty"));
    }
    if topic.len() as u64 > config.max_topic_bytes {
        return Err(SearchError::new(
            ErrorCode::TooLarge,
            format!("the topic has {} bytes; at most {} are read", topic.len(), config.max_topic_bytes),
        ));
    }
    Ok(Subject::Topic(topic))
}

fn image_subject(raw: &RawValue) -> Result<Subject, SearchError> {
    let fields = nested(raw, "image", IMAGE_FIELDS)?;
    match (fields.string("base64")?, fields.string("url")?, fields.name("post_id")?) {
        (Some(base64), None, None) => Ok(Subject::Picture(ImageSource::Base64(base64))),
        (None, Some(url), None) => Ok(Subject::Picture(ImageSource::Url(url))),
        (None, None, Some(post_id)) => Ok(Subject::Post(post_id)),
        _ => Err(SearchError::bad_request("image takes exactly one of \"base64\", \"url\" and \"post_id\"")),
    }
}

fn parse_filter(raw: &RawValue) -> Result<Filter, SearchError> {
    let fields = nested(raw, "filter", FILTER_FIELDS)?;
    let tags_any: Vec<String> = match fields.raw("tags_any") {
        None => Vec::new(),
        Some(raw) => serde_json::from_str(raw.get())
            .map_err(|_| SearchError::bad_request("filter.tags_any must be a list of strings"))?,
    };
    let filter = Filter {
        lang: fields.name("lang")?,
        author: fields.name("author")?,
        tags_any: check_tags(tags_any)?,
        since: fields.string("since")?.map(|text| parse_time("filter.since", &text)).transpose()?,
        until: fields.string("until")?.map(|text| parse_time("filter.until", &text)).transpose()?,
    };
    check_range(&filter)?;
    Ok(filter)
}

fn check_tags(tags: Vec<String>) -> Result<Vec<String>, SearchError> {
    if tags.len() > MAX_TAGS {
        return Err(SearchError::bad_request(format!("{} tags are given; at most {MAX_TAGS} are taken", tags.len())));
    }
    tags.into_iter().map(|tag| check_name("tag", tag)).collect()
}

fn check_range(filter: &Filter) -> Result<(), SearchError> {
    match (filter.since, filter.until) {
        (Some(since), Some(until)) if since >= until => Err(SearchError::bad_request(format!(
            "since ({}) must be before until ({}); no post lies between them",
            since.to_rfc3339(),
            until.to_rfc3339()
        ))),
        _ => Ok(()),
    }
}

fn check_top_k(top_k: usize, config: &QueryConfig) -> Result<usize, SearchError> {
    if (1..=config.max_top_k).contains(&top_k) {
        Ok(top_k)
    } else {
        Err(SearchError::bad_request(format!("top_k is {top_k}; it must be {}", top_k_range(config))))
    }
}

fn top_k_range(config: &QueryConfig) -> String {
    format!("a whole number from 1 to {}", config.max_top_k)
}

fn check_name(field: &str, text: String) -> Result<String, SearchError> {
    if text.is_empty() {
        return Err(SearchError::bad_request(format!("{field} is empty; leave it out instead")));
    }
    if text.len() > MAX_NAME_BYTES {
        return Err(SearchError::bad_request(format!(
            "{field} has {} bytes; at most {MAX_NAME_BYTES} are taken",
            text.len()
        )));
    }
    Ok(text)
}

fn parse_target(name: &str) -> Result<Target, SearchError> {
    Target::NAMES.iter().find(|(known, _)| *known == name).map(|(_, target)| *target).ok_or_else(|| {
        let name = shortened(name, SHOWN);
        SearchError::bad_request(format!("target is {name:?}; it must be \"image\", \"caption\" or \"both\""))
    })
}

fn parse_time(field: &str, text: &str) -> Result<DateTime<Utc>, SearchError> {
    text::parse_time(text).map_err(|way_out| {
        let text = shortened(text, SHOWN);
        SearchError::bad_request(format!("{field} is {text:?}; {way_out}"))
    })
}

fn unknown(kind: &str, name: &str, known: &[&str]) -> String {
    let nearest = nearest(name, known.iter().copied());
    format!("unknown {kind} {:?}; the nearest known one is {nearest:?}", shortened(name, SHOWN))
}

fn nested<'a>(
    raw: &'a RawValue,
    place: &'static str,
    known: &'static [&'static str],
) -> Result<Fields<'a>, SearchError> {
    let fields = FieldsOf { known, place }
        .deserialize(&mut serde_json::Deserializer::from_str(raw.get()))
        .map_err(|_| SearchError::bad_request(format!("{place} must be an object")))?;
    fields.check()?;
    Ok(fields)
}

/// The known fields of a JSON object, unparsed. Nothing is built from what the sender wrote before its name is known: a
/// body of 30 MB of small values would otherwise take a gigabyte as a tree.
struct Fields<'a> {
    place: &'static str,
    values: HashMap<&'static str, &'a RawValue>,
    problem: Option<String>,
}

impl<'a> Fields<'a> {
    fn check(&self) -> Result<(), SearchError> {
        self.problem.as_ref().map_or(Ok(()), |problem| Err(SearchError::bad_request(problem.clone())))
    }

    /// A field that is there and not null.
    fn raw(&self, name: &str) -> Option<&'a RawValue> {
        self.values.get(name).copied().filter(|raw| raw.get() != "null")
    }

    fn string(&self, name: &str) -> Result<Option<String>, SearchError> {
        self.raw(name)
            .map(|raw| {
                serde_json::from_str(raw.get()).map_err(|_| {
                    let prefix = if self.place == "the request" { String::new() } else { format!("{}.", self.place) };
                    SearchError::bad_request(format!("{prefix}{name} must be a string"))
                })
            })
            .transpose()
    }

    fn name(&self, name: &str) -> Result<Option<String>, SearchError> {
        self.string(name)?.map(|text| check_name(name, text)).transpose()
    }
}

struct FieldsOf {
    known: &'static [&'static str],
    place: &'static str,
}

impl<'de> DeserializeSeed<'de> for FieldsOf {
    type Value = Fields<'de>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for FieldsOf {
    type Value = Fields<'de>;

    fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("an object")
    }

    // Goes on behind a problem: a request_id that stands after it is still wanted for the answer.
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut fields = Fields { place: self.place, values: HashMap::new(), problem: None };
        while let Some(key) = map.next_key::<Cow<'de, str>>()? {
            match self.known.iter().find(|known| **known == key) {
                Some(known) => {
                    if fields.values.insert(known, map.next_value()?).is_some() {
                        fields.problem.get_or_insert_with(|| format!("{known} occurs twice in {}", self.place));
                    }
                }
                None => {
                    map.next_value::<IgnoredAny>()?;
                    fields
                        .problem
                        .get_or_insert_with(|| format!("{} in {}", unknown("field", &key, self.known), self.place));
                }
            }
        }
        Ok(fields)
    }
}

#[cfg(test)]
mod tests;
