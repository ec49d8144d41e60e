//! A search as it is asked for (design 1.5): JSON or URL parameters, parsed and checked against the limits.

mod checks;
mod fields;
mod parameters;

use std::time::Duration;

use serde::de::DeserializeSeed as _;
use serde_json::value::RawValue;

use self::checks::{SHOWN, check_range, check_topic, choice, number, truth, whole};
use self::fields::{Fields, FieldsOf, REQUEST, nested};
#[cfg(test)]
pub(super) use self::parameters::PARAMETERS;
use crate::post::ImageSource;
use crate::query::QueryConfig;
use crate::query::error::SearchError;
use crate::query::min_score::MinScore;
use crate::query::rank::freshness::Freshness;
use crate::query::rank::fusion::{Fusion, FusionKind};
use crate::query::rank::transform::Transform;
use crate::store::Filter;
use crate::text::shortened;

pub(super) const REQUEST_FIELDS: &[&str] = &[
    "request_id",
    "reply_to",
    "topic",
    "image",
    "target",
    "top_k",
    "offset",
    "fusion",
    "image_weight",
    "filter",
    "min_score",
    "freshness",
    "fold",
    "transform",
];
pub(super) const IMAGE_FIELDS: &[&str] = &["base64", "url", "post_id"];
pub(super) const FILTER_FIELDS: &[&str] =
    &["lang", "author", "not_author", "tags_all", "tags_any", "labels_any", "labels_none", "since", "until"];
pub(super) const FRESHNESS_FIELDS: &[&str] = &["half_life", "weight"];
/// Longest half-life: longer ones make no difference within a feed.
const MAX_HALF_LIFE: Duration = Duration::from_hours(24 * 36_525);

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
    const NAMES: &[(&'static str, Target)] =
        &[("image", Target::Image), ("caption", Target::Caption), ("both", Target::Both)];
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
    /// Hits before the first one wanted, 0 to `query.max_offset`.
    pub offset: usize,
    /// How two rankings become one; of no effect on one.
    pub fusion: Fusion,
    /// Conditions on the posts.
    pub filter: Filter,
    /// The similarity below which a post is no hit.
    pub min_score: MinScore,
    /// How much newer posts are preferred.
    pub freshness: Option<Freshness>,
    /// Whether near-duplicate pictures become one hit.
    pub fold: bool,
    /// Of the similarities, before probability and fusion.
    pub transform: Transform,
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

/// What a form of a request says beside subject and filter, as texts. Numbers and truth values are as they are written.
#[derive(Default)]
struct Options {
    target: Option<String>,
    top_k: Option<String>,
    offset: Option<String>,
    fusion: Option<String>,
    image_weight: Option<String>,
    min_score: Option<String>,
    fold: Option<String>,
    transform: Option<String>,
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
        Self {
            request_id: None,
            subject,
            target: Target::default(),
            top_k: config.top_k,
            offset: 0,
            fusion: Fusion::new(config.fusion, config.image_weight),
            filter: Filter::default(),
            min_score: config.min_score,
            freshness: None,
            fold: config.fold,
            transform: config.transform,
        }
    }

    /// Reads the JSON form.
    pub fn from_json(bytes: &[u8], config: &QueryConfig) -> Parsed {
        let mut deserializer = serde_json::Deserializer::from_slice(bytes);
        let fields = FieldsOf { known: REQUEST_FIELDS, place: REQUEST }
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
            (Some(topic), None) => Subject::Topic(check_topic(topic, config)?),
            (None, Some(image)) => image_subject(image)?,
            (Some(_), Some(_)) => return Err(SearchError::bad_request("give topic or image, not both")),
            (None, None) => {
                return Err(SearchError::bad_request("give a topic (text) or an image ({\"base64\"} or {\"url\"})"));
            }
        };
        let options = Options {
            target: fields.string("target")?,
            top_k: fields.scalar("top_k"),
            offset: fields.scalar("offset"),
            fusion: fields.string("fusion")?,
            image_weight: fields.scalar("image_weight"),
            min_score: fields.word("min_score"),
            fold: fields.scalar("fold"),
            transform: fields.string("transform")?,
        };
        let filter = fields.raw("filter").map_or(Ok(Filter::default()), filter_of)?;
        let freshness = fields.raw("freshness").map(freshness_of).transpose()?;
        Ok(Self { request_id, filter, freshness, ..options.check(subject, config)? })
    }
}

impl Options {
    /// A request of these options with the defaults of the configuration.
    fn check(self, subject: Subject, config: &QueryConfig) -> Result<SearchRequest, SearchError> {
        let mut request = SearchRequest::with_defaults(subject, config);
        if let Some(name) = self.target {
            request.target = choice("target", &name, Target::NAMES)?;
        }
        if let Some(text) = self.top_k {
            request.top_k = whole("top_k", &text, 1..=config.max_top_k)?;
        }
        if let Some(text) = self.offset {
            request.offset = whole("offset", &text, 0..=config.max_offset)?;
        }
        request.fusion = fusion(self.fusion.as_deref(), self.image_weight.as_deref(), request.target, config)?;
        if let Some(text) = self.min_score {
            request.min_score = text.parse().map_err(|way_out| {
                SearchError::bad_request(format!("min_score is {:?}; {way_out}", shortened(&text, SHOWN)))
            })?;
        }
        if let Some(text) = self.fold {
            request.fold = truth("fold", &text)?;
        }
        if let Some(name) = self.transform {
            request.transform = choice("transform", &name, Transform::NAMES)?;
        }
        Ok(request)
    }
}

fn fusion(
    kind: Option<&str>,
    image_weight: Option<&str>,
    target: Target,
    config: &QueryConfig,
) -> Result<Fusion, SearchError> {
    if target != Target::Both
        && let Some(field) = kind.map(|_| "fusion").or(image_weight.map(|_| "image_weight"))
    {
        let message = format!("{field} is for target \"both\", which fuses two rankings; leave it out, or set target");
        return Err(SearchError::bad_request(message));
    }
    let kind = kind.map_or(Ok(config.fusion), |name| choice("fusion", name, FusionKind::NAMES))?;
    if kind == FusionKind::Rrf && image_weight.is_some() {
        return Err(SearchError::bad_request("image_weight is for fusion \"weighted\"; leave it out, or set fusion"));
    }
    let image_weight = image_weight.map(|text| number("image_weight", text, 0.0..=1.0)).transpose()?;
    Ok(Fusion::new(kind, image_weight.unwrap_or(config.image_weight)))
}

/// Each with the name that its form has for it.
fn freshness(half_life: (&str, String), weight: (&str, Option<String>)) -> Result<Freshness, SearchError> {
    let (field, text) = half_life;
    let half_life = humantime_serde::re::humantime::parse_duration(&text)
        .ok()
        .filter(|half_life| !half_life.is_zero() && *half_life <= MAX_HALF_LIFE)
        .ok_or_else(|| {
            let text = shortened(&text, SHOWN);
            SearchError::bad_request(format!(
                "{field} is {text:?}; write how long it takes to halve, such as \"6h\", \"24h\" or \"7d\" (at most 100 \
                 years)"
            ))
        })?;
    let (field, weight) = weight;
    let weight = weight.map(|text| number(field, &text, 0.0..=1.0)).transpose()?;
    Ok(Freshness { half_life, weight: weight.unwrap_or(Freshness::DEFAULT_WEIGHT) })
}

fn freshness_of(raw: &RawValue) -> Result<Freshness, SearchError> {
    let fields = nested(raw, "freshness", FRESHNESS_FIELDS)?;
    let half_life = fields
        .string("half_life")?
        .ok_or_else(|| SearchError::bad_request("freshness needs its half_life, such as {\"half_life\": \"24h\"}"))?;
    freshness(("freshness.half_life", half_life), ("freshness.weight", fields.scalar("weight")))
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

fn filter_of(raw: &RawValue) -> Result<Filter, SearchError> {
    let fields = nested(raw, "filter", FILTER_FIELDS)?;
    let filter = Filter {
        lang: fields.name("lang")?,
        author: fields.name("author")?,
        not_author: fields.names("not_author", true)?,
        tags_any: fields.names("tags_any", false)?,
        tags_all: fields.names("tags_all", false)?,
        labels_any: fields.names("labels_any", false)?,
        labels_none: fields.names("labels_none", false)?,
        since: fields.string("since")?.map(|text| checks::time("filter.since", &text)).transpose()?,
        until: fields.string("until")?.map(|text| checks::time("filter.until", &text)).transpose()?,
    };
    check_range(&filter)?;
    Ok(filter)
}

#[cfg(test)]
mod tests;
