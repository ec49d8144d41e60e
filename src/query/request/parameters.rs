//! The URL form of a request.

use std::collections::HashMap;

use super::checks::{self, check_name, check_names, check_range, check_topic, unknown};
use super::{Options, SearchRequest, Subject, freshness};
use crate::query::QueryConfig;
use crate::query::error::SearchError;
use crate::store::Filter;

pub(in crate::query) const PARAMETERS: &[&str] = &[
    "q",
    "post_id",
    "target",
    "top_k",
    "offset",
    "lang",
    "author",
    "not_author",
    "tag",
    "tag_all",
    "label",
    "label_none",
    "since",
    "until",
    "fusion",
    "image_weight",
    "min_score",
    "freshness",
    "freshness_weight",
    "fold",
    "transform",
    "request_id",
];
const REPEATABLE: [&str; 5] = ["not_author", "tag", "tag_all", "label", "label_none"];

impl SearchRequest {
    /// Reads the URL form: `q` (or `post_id`), `target`, `top_k`, `offset`, `lang`, `author`, `not_author`*, `tag`* (any),
    /// `tag_all`*, `label`* (any), `label_none`*, `since`, `until`, `fusion`, `image_weight`, `min_score`, `freshness` (its
    /// half-life), `freshness_weight`, `fold`, `transform`, `request_id`; those with * are repeatable. Empty values count
    /// as absent, as HTML forms send them.
    ///
    /// # Errors
    /// Names the parameter at fault; for an unknown one, the nearest known.
    pub fn from_parameters(pairs: Vec<(String, String)>, config: &QueryConfig) -> Result<Self, SearchError> {
        let mut single: HashMap<&'static str, String> = HashMap::new();
        let mut lists: HashMap<&'static str, Vec<String>> = HashMap::new();
        for (name, value) in pairs {
            let Some(known) = PARAMETERS.iter().find(|known| **known == name) else {
                return Err(SearchError::bad_request(unknown("parameter", &name, PARAMETERS)));
            };
            if value.is_empty() {
                continue;
            }
            if REPEATABLE.contains(known) {
                lists.entry(known).or_default().push(value);
            } else if single.insert(known, value).is_some() {
                return Err(SearchError::bad_request(format!("{known} is given twice")));
            }
        }
        let topic = single.remove("q");
        let mut name = |key: &'static str| single.remove(key).map(|value| check_name(key, value)).transpose();
        let mut list = |key: &'static str| check_names(key, lists.remove(key).unwrap_or_default());
        let subject = match (topic, name("post_id")?) {
            (Some(topic), None) => Subject::Topic(check_topic(topic, config)?),
            (None, Some(post_id)) => Subject::Post(post_id),
            (Some(_), Some(_)) => return Err(SearchError::bad_request("give q or post_id, not both")),
            (None, None) => return Err(SearchError::bad_request("give a topic: /v1/search?q=...")),
        };
        let filter = Filter {
            lang: name("lang")?,
            author: name("author")?,
            not_author: list("not_author")?,
            tags_any: list("tag")?,
            tags_all: list("tag_all")?,
            labels_any: list("label")?,
            labels_none: list("label_none")?,
            since: name("since")?.map(|text| checks::time("since", &text)).transpose()?,
            until: name("until")?.map(|text| checks::time("until", &text)).transpose()?,
        };
        check_range(&filter)?;
        let freshness = match (name("freshness")?, name("freshness_weight")?) {
            (None, None) => None,
            (Some(half_life), weight) => Some(freshness(("freshness", half_life), ("freshness_weight", weight))?),
            (None, Some(_)) => {
                return Err(SearchError::bad_request("freshness_weight needs freshness, the half-life, such as 24h"));
            }
        };
        let request_id = name("request_id")?;
        let options = Options {
            target: name("target")?,
            top_k: name("top_k")?,
            offset: name("offset")?,
            fusion: name("fusion")?,
            image_weight: name("image_weight")?,
            min_score: name("min_score")?,
            fold: name("fold")?,
            transform: name("transform")?,
        };
        Ok(Self { request_id, filter, freshness, ..options.check(subject, config)? })
    }
}
