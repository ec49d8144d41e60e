//! The interface's description in OpenAPI 3.1, made of the handlers and of the types that they answer with.
//!
//! Requests are parsed by hand ([`crate::query::request`]), so their types here only describe; tests tie each field to the
//! parser's.

use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::routing::get;
use axum::{Router, response::IntoResponse as _};
use bytes::Bytes;
use serde_json::{Map, Value, json};
use utoipa::{IntoParams, OpenApi, ToSchema};

use crate::query::QueryConfig;
use crate::query::error::{ErrorCode, ErrorResponse};
use crate::standing::Registration;

/// What stands above the routes.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "feedlens",
        description = "Search a social-media feed by text or picture. Every error is a JSON object whose `code` is one of a \
            fixed set and whose `message` is one sentence that names the thing and the way out. A 429 or 503 says in \
            `Retry-After` when to come back.",
    ),
    components(schemas(ErrorResponse)),
    tags(
        (name = "search", description = "Find posts"),
        (name = "topics", description = "Standing topics, and the posts that match them"),
        (name = "worker", description = "This worker"),
    ),
)]
pub struct Description;

/// A search. Exactly one of `topic` and `image` is needed; null is the same as absent everywhere.
#[derive(ToSchema)]
pub struct Search {
    /// Given back with the answer.
    #[schema(min_length = 1, max_length = 256)]
    pub request_id: Option<String>,
    /// Only over Kafka: the topic to answer in, one of `query.reply_topics`.
    #[schema(min_length = 1, max_length = 256)]
    pub reply_to: Option<String>,
    /// Text in any language that the model knows. At most `query.max_topic_bytes` bytes.
    #[schema(pattern = r"\S", example = "海边的日落")]
    pub topic: Option<String>,
    /// A picture instead of a text.
    pub image: Option<SearchImage>,
    /// Which of the posts' vectors the subject is compared with; `both` fuses the two rankings.
    #[schema(default = "image")]
    pub target: Option<SearchTarget>,
    /// Hits wanted.
    #[schema(minimum = 1, example = 5)]
    pub top_k: Option<u32>,
    /// Hits to pass over.
    #[schema(minimum = 0)]
    pub offset: Option<u32>,
    /// How target `both` makes one ranking of two; only with that target.
    pub fusion: Option<SearchFusion>,
    /// Share of the pictures in fusion `weighted`; only with that fusion.
    #[schema(minimum = 0, maximum = 1)]
    pub image_weight: Option<f64>,
    /// Conditions that every hit meets.
    pub filter: Option<SearchFilter>,
    /// Least cosine of a hit.
    pub min_score: Option<SearchMinScore>,
    /// Prefer newer posts.
    pub freshness: Option<SearchFreshness>,
    /// Posts with nearly the same picture become one hit.
    pub fold: Option<bool>,
    /// Of the similarities, before `probability` and fusion.
    pub transform: Option<SearchTransform>,
}

/// Reciprocal rank fusion, or the weighted sum of normalised similarities.
#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
pub enum SearchFusion {
    /// By ranks.
    Rrf,
    /// By similarities.
    Weighted,
}

/// A cosine, `auto` (the model's calibrated threshold, which the best hit must reach) or `none`.
#[derive(ToSchema, serde::Serialize)]
#[serde(untagged)]
pub enum SearchMinScore {
    /// The cosine that every hit must reach.
    Cosine(f64),
    /// By name.
    Name(SearchMinScoreName),
}

/// A `min_score` by name.
#[derive(ToSchema, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SearchMinScoreName {
    /// The model's calibrated threshold for the topic's language and the target, where it has one.
    Auto,
    /// Every post is a hit.
    None,
}

/// Preference for newer posts.
#[derive(ToSchema)]
pub struct SearchFreshness {
    /// The age at which a post's freshness is a half, such as `24h`.
    #[schema(example = "24h")]
    pub half_life: String,
    /// Share of freshness in the order.
    #[schema(minimum = 0, maximum = 1)]
    pub weight: Option<f64>,
}

/// A transform of similarities.
#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
pub enum SearchTransform {
    /// As they are.
    None,
    /// Half a period of a sine.
    Sine,
    /// A logistic curve about the middle of the candidates' band.
    Sigmoid,
    /// A logistic curve about the candidates' mean.
    CentredSigmoid,
}

/// A picture to search by.
#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
pub enum SearchImage {
    /// The file's bytes, as base64 or a data URI.
    Base64(String),
    /// Where the worker loads it from; private addresses are refused.
    Url(String),
    /// A stored post, by its id; that post itself is left out of the answer.
    PostId(String),
}

/// Which of the posts' vectors the subject is compared with.
#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
pub enum SearchTarget {
    /// The pictures.
    Image,
    /// The captions.
    Caption,
    /// Both.
    Both,
}

/// Conditions on the posts; all of them hold for every hit.
#[derive(ToSchema)]
pub struct SearchFilter {
    /// The post's language.
    #[schema(min_length = 1, max_length = 256, example = "zh")]
    pub lang: Option<String>,
    /// Who wrote it.
    #[schema(min_length = 1, max_length = 256)]
    pub author: Option<String>,
    /// None of these wrote it: a list, or one author.
    pub not_author: Option<SearchAuthors>,
    /// At least one of these tags.
    #[schema(max_items = 64)]
    pub tags_any: Option<Vec<String>>,
    /// All of these tags.
    #[schema(max_items = 64)]
    pub tags_all: Option<Vec<String>>,
    /// At least one of these labels, each as "set/label".
    #[schema(max_items = 64)]
    pub labels_any: Option<Vec<String>>,
    /// None of these labels.
    #[schema(max_items = 64)]
    pub labels_none: Option<Vec<String>>,
    /// Not before: RFC 3339, or a day.
    #[schema(format = DateTime, example = "2026-11-01T00:00:00Z")]
    pub since: Option<String>,
    /// Before: RFC 3339, or a day.
    #[schema(format = DateTime, example = "2026-12-01T00:00:00Z")]
    pub until: Option<String>,
}

/// One author, or several.
#[derive(ToSchema, serde::Serialize)]
#[serde(untagged)]
pub enum SearchAuthors {
    /// One.
    One(String),
    /// Several.
    Several(Vec<String>),
}

/// A search as URL parameters.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
pub struct SearchParameters {
    /// The topic: text in any language that the model knows. Or give `post_id`.
    #[param(example = "海边的日落")]
    pub q: Option<String>,
    /// A stored post, to search by its picture.
    #[param(max_length = 256)]
    pub post_id: Option<String>,
    /// Which of the posts' vectors the subject is compared with.
    pub target: Option<SearchTarget>,
    /// Hits wanted.
    #[param(minimum = 1)]
    pub top_k: Option<u32>,
    /// Hits to pass over.
    #[param(minimum = 0)]
    pub offset: Option<u32>,
    /// The post's language.
    #[param(max_length = 256)]
    pub lang: Option<String>,
    /// Who wrote it.
    #[param(max_length = 256)]
    pub author: Option<String>,
    /// None of these wrote it.
    #[param(max_items = 64)]
    pub not_author: Option<Vec<String>>,
    /// At least one of these tags.
    #[param(max_items = 64)]
    pub tag: Option<Vec<String>>,
    /// All of these tags.
    #[param(max_items = 64)]
    pub tag_all: Option<Vec<String>>,
    /// At least one of these labels, each as "set/label".
    #[param(max_items = 64)]
    pub label: Option<Vec<String>>,
    /// None of these labels.
    #[param(max_items = 64)]
    pub label_none: Option<Vec<String>>,
    /// Not before: RFC 3339, or a day.
    #[param(format = DateTime)]
    pub since: Option<String>,
    /// Before: RFC 3339, or a day.
    #[param(format = DateTime)]
    pub until: Option<String>,
    /// How target `both` makes one ranking of two; only with that target.
    pub fusion: Option<SearchFusion>,
    /// Share of the pictures in fusion `weighted`; only with that fusion.
    #[param(minimum = 0, maximum = 1)]
    pub image_weight: Option<f64>,
    /// Least cosine of a hit.
    pub min_score: Option<SearchMinScore>,
    /// Prefer newer posts: the age at which a post's freshness is a half, such as `24h`.
    #[param(max_length = 256, example = "24h")]
    pub freshness: Option<String>,
    /// Share of freshness in the order; only with `freshness`.
    #[param(minimum = 0, maximum = 1)]
    pub freshness_weight: Option<f64>,
    /// Posts with nearly the same picture become one hit.
    pub fold: Option<bool>,
    /// Of the similarities, before `probability` and fusion.
    pub transform: Option<SearchTransform>,
    /// Given back with the answer.
    #[param(max_length = 256)]
    pub request_id: Option<String>,
}

/// All standing topics.
#[derive(ToSchema)]
pub struct StandingTopics {
    /// By their ids.
    pub topics: Vec<Registration>,
}

/// Searches to be answered in one request.
#[derive(ToSchema)]
pub struct BatchBody {
    /// At most `query.max_batch`.
    #[schema(min_items = 1)]
    pub searches: Vec<Search>,
}

/// The description as this worker serves it: with its limits, the errors that any route may answer, and the ways to show a
/// key.
pub fn served(description: &utoipa::openapi::OpenApi, config: &QueryConfig) -> Value {
    let mut value = serde_json::to_value(description).expect("a description is JSON. This is a bug.");
    value["info"]["version"] = json!(env!("CARGO_PKG_VERSION"));
    let errors = errors(config);
    for operation in operations(&mut value) {
        let parameters = operation.get_mut("parameters").and_then(Value::as_array_mut);
        for parameter in parameters.into_iter().flatten() {
            let (most, default) = match parameter["name"].as_str() {
                Some("top_k") => (config.max_top_k, config.top_k),
                Some("offset") => (config.max_offset, 0),
                _ => continue,
            };
            parameter["schema"]["maximum"] = json!(most);
            parameter["schema"]["default"] = json!(default);
        }
        if let Some(responses) = operation.get_mut("responses").and_then(Value::as_object_mut) {
            for (status, response) in &errors {
                responses.entry(status.clone()).or_insert_with(|| response.clone());
            }
        }
    }
    let schemas = &mut value["components"]["schemas"];
    for (schema, limits) in [
        ("/Search/properties/top_k", json!({"maximum": config.max_top_k, "default": config.top_k})),
        ("/Search/properties/offset", json!({"maximum": config.max_offset, "default": 0})),
        // What stands on a variant's value, utoipa does not take.
        ("/SearchMinScore/oneOf/0", json!({"minimum": -1, "maximum": 1})),
        ("/BatchBody/properties/searches", json!({"maxItems": config.max_batch})),
    ] {
        if let (Some(Value::Object(schema)), Value::Object(limits)) = (schemas.pointer_mut(schema), limits) {
            schema.extend(limits);
        }
    }
    for schema in schemas.as_object_mut().into_iter().flat_map(Map::values_mut) {
        close(schema);
    }
    let (given, absent) = (json!({"not": {"type": "null"}}), json!({"type": "null"}));
    schemas["Search"]["oneOf"] = json!([
        {"required": ["topic"], "properties": {"topic": given, "image": absent}},
        {"required": ["image"], "properties": {"topic": absent, "image": given}},
    ]);
    if let Some(keys) = keys_scheme(config) {
        value["components"]["securitySchemes"] = keys;
        value["security"] = json!([{"bearer": []}, {"header": []}]);
    }
    value
}

fn operations(description: &mut Value) -> impl Iterator<Item = &mut Value> {
    let paths = description["paths"].as_object_mut().into_iter().flat_map(Map::values_mut);
    paths.filter_map(Value::as_object_mut).flat_map(Map::values_mut)
}

/// No schema takes fields that it does not name, and no answer has any.
fn close(schema: &mut Value) {
    match schema {
        Value::Object(schema) => {
            if schema.contains_key("properties") {
                schema.entry("additionalProperties").or_insert(json!(false));
            }
            schema.values_mut().for_each(close);
        }
        Value::Array(schemas) => schemas.iter_mut().for_each(close),
        _ => {}
    }
}

/// What any route may answer in place of a result, by status.
fn errors(config: &QueryConfig) -> Vec<(String, Value)> {
    let mut errors = vec![
        (ErrorCode::BadRequest, "The request is not of the described shape"),
        (ErrorCode::Forbidden, "A page of another origin, which `query.cors_origins` does not name"),
        (ErrorCode::TooLarge, "The body, the topic or the picture exceeds a limit"),
        (ErrorCode::Unprocessable, "The shape is right and yet it can never be answered"),
        (ErrorCode::Overloaded, "Too many requests at a time, or of this key; come back after `Retry-After` seconds"),
        (
            ErrorCode::Unavailable,
            "The store, the encoder or Kafka is out of order or too slow, or the standing topics are still being read",
        ),
    ];
    if keys_scheme(config).is_some() {
        errors.push((ErrorCode::Unauthorized, "No API key, or none that is known"));
    }
    let describe = |(code, description): (ErrorCode, &str)| {
        let schema = json!({"$ref": "#/components/schemas/ErrorResponse"});
        let mut response = json!({"description": description, "content": {"application/json": {"schema": schema}}});
        if matches!(code, ErrorCode::Overloaded | ErrorCode::Unavailable) {
            response["headers"] = json!({"Retry-After": {
                "description": "Whole seconds after which to try again", "required": true,
                "schema": {"type": "integer", "minimum": 1},
            }});
        }
        (code.status().to_string(), response)
    };
    errors.into_iter().map(describe).collect()
}

fn keys_scheme(config: &QueryConfig) -> Option<Value> {
    crate::query::keys::is_set(&config.api_keys_file).then(|| {
        json!({
            "bearer": {"type": "http", "scheme": "bearer", "description": "An API key"},
            "header": {"type": "apiKey", "in": "header", "name": "X-Api-Key", "description": "The same key"},
        })
    })
}

/// `/v1/openapi.json`, which needs no key: it tells nothing of the feed.
pub fn route<S: Clone + Send + Sync + 'static>(description: Value) -> Router<S> {
    let body = Bytes::from(format!("{description:#}"));
    Router::new().route(
        "/v1/openapi.json",
        get(async move || {
            ([(CONTENT_TYPE, "application/json"), (CACHE_CONTROL, "no-cache")], body.clone()).into_response()
        }),
    )
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::config::Config;
    use crate::query::request::{FILTER_FIELDS, FRESHNESS_FIELDS, IMAGE_FIELDS, PARAMETERS, REQUEST_FIELDS};

    fn description(set: &[&str]) -> Value {
        let set = set.iter().map(ToString::to_string).collect();
        let config = Config::load(&[], &crate::config::Overrides { files: vec![], set }).expect("loads");
        let (_, description) = super::super::interface().split_for_parts();
        served(&description, &config.query)
    }

    fn names<'a>(names: impl IntoIterator<Item = &'a str>) -> BTreeSet<&'a str> {
        names.into_iter().collect()
    }

    fn keys(object: &Value) -> BTreeSet<&str> {
        names(object.as_object().expect("an object").keys().map(String::as_str))
    }

    #[test]
    fn what_the_parser_knows_is_described_and_nothing_else() {
        let description = description(&[]);
        let schemas = &description["components"]["schemas"];
        assert_eq!(keys(&schemas["Search"]["properties"]), names(REQUEST_FIELDS.iter().copied()));
        assert_eq!(keys(&schemas["SearchFilter"]["properties"]), names(FILTER_FIELDS.iter().copied()));
        assert_eq!(keys(&schemas["SearchFreshness"]["properties"]), names(FRESHNESS_FIELDS.iter().copied()));
        let images = schemas["SearchImage"]["oneOf"].as_array().expect("a choice").iter();
        let images = images.flat_map(|image| keys(&image["properties"])).collect::<BTreeSet<_>>();
        assert_eq!(images, names(IMAGE_FIELDS.iter().copied()));
        let parameters = description["paths"]["/v1/search"]["get"]["parameters"].as_array().expect("a list").iter();
        let parameters = parameters.map(|parameter| parameter["name"].as_str().expect("a name"));
        assert_eq!(names(parameters), names(PARAMETERS.iter().copied()));
    }

    #[test]
    fn the_bounds_of_numbers_are_the_parsers() {
        let description = description(&[]);
        let cosine = &description["components"]["schemas"]["SearchMinScore"]["oneOf"][0];
        assert_eq!(
            (&cosine["type"], &cosine["minimum"], &cosine["maximum"]),
            (&json!("number"), &json!(-1), &json!(1))
        );
        for (bound, beyond) in [("-1", "-1.01"), ("1", "1.01")] {
            let parses = |text: &str| text.parse::<crate::query::min_score::MinScore>().is_ok();
            assert!(parses(bound) && !parses(beyond), "{bound} {beyond}");
        }
    }

    #[test]
    fn the_limits_and_keys_of_this_worker_are_described() {
        let open = description(&["query.max_top_k=7", "query.max_batch=3"]);
        let schemas = &open["components"]["schemas"];
        assert_eq!(schemas["Search"]["properties"]["top_k"]["maximum"], 7);
        let parameters = open["paths"]["/v1/search"]["get"]["parameters"].as_array().expect("a list");
        let top_k = parameters.iter().find(|parameter| parameter["name"] == "top_k").expect("described");
        assert_eq!(top_k["schema"]["maximum"], 7);
        assert_eq!(schemas["BatchBody"]["properties"]["searches"]["maxItems"], 3);
        let search = &open["paths"]["/v1/search"]["post"]["responses"];
        assert_eq!(keys(search), names(["200", "400", "403", "413", "422", "429", "503"]));
        assert_eq!((&open["openapi"], &open["security"]), (&json!("3.1.0"), &Value::Null));

        let file = tempfile::NamedTempFile::new().expect("a file");
        let hash = crate::query::keys::hash("a-key-of-some-length").expect("a hash");
        std::fs::write(file.path(), format!("[a]\nhashes = [{hash:?}]")).expect("written");
        let closed = description(&[&format!("query.api_keys_file={}", file.path().display())]);
        assert!(keys(&closed["paths"]["/v1/search"]["post"]["responses"]).contains("401"));
        assert_eq!(closed["security"], json!([{"bearer": []}, {"header": []}]));
    }
}
