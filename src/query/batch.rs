//! Many searches in one request: `{"searches": [...]}` in, `{"answers": [...]}` out, in their order.
//!
//! Each search takes a place like any other, of the half that bulk work may have, so that a batch keeps no single search
//! waiting; their texts are encoded together.

use std::sync::Arc;
use std::time::Instant;

use serde::de::{DeserializeSeed, Deserializer, Error as _, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use utoipa::ToSchema;

use crate::query::QueryConfig;
use crate::query::admission::{Kind, Place};
use crate::query::error::SearchError;
use crate::query::request::{SearchRequest, Subject};
use crate::query::service::{SearchResponse, SearchService, Source, tell_outcome, too_slow};
use crate::text::shortened;
use crate::traces::Span;

/// Characters of what a sender wrote that an error repeats.
const SHOWN: usize = 200;

/// The searches of a request, checked one by one.
#[derive(Debug)]
pub struct Batch(Vec<(Option<String>, Result<SearchRequest, SearchError>)>);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Body<'a> {
    #[serde(borrow)]
    searches: &'a RawValue,
}

/// Answers to all searches of a batch, in their order.
#[derive(Debug, Serialize, ToSchema)]
pub struct BatchResponse {
    /// As many as there were searches.
    pub answers: Vec<BatchAnswer>,
}

/// What one search of a batch came to.
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
pub enum BatchAnswer {
    /// The best posts.
    Found(SearchResponse),
    /// The reason why there are none.
    Failed(BatchError),
}

/// Why one search of a batch has no hits.
#[derive(Debug, Serialize, ToSchema)]
pub struct BatchError {
    /// As the search gave it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
    /// The same as in an answer of its own.
    #[schema(value_type = crate::query::error::ErrorBody<'static>)]
    pub error: serde_json::Value,
}

impl Batch {
    /// Reads the JSON form. A search that is no good becomes an error among the answers.
    ///
    /// # Errors
    /// 400 where the whole is not a list of 1 to `query.max_batch` searches.
    pub fn from_json(bytes: &[u8], config: &QueryConfig) -> Result<Self, SearchError> {
        let broken = |error: serde_json::Error| {
            let error = error.to_string();
            SearchError::bad_request(format!("the batch is not {{\"searches\": [...]}}: {}", shortened(&error, SHOWN)))
        };
        let body: Body<'_> = serde_json::from_slice(bytes).map_err(broken)?;
        let mut searches = serde_json::Deserializer::from_str(body.searches.get());
        let searches = Elements { most: config.max_batch }.deserialize(&mut searches).map_err(broken)?;
        if searches.is_empty() {
            return Err(SearchError::bad_request("the batch holds no searches; give at least one"));
        }
        let parse = |search: &RawValue| {
            let parsed = SearchRequest::from_json(search.get().as_bytes(), config);
            (parsed.request_id.clone(), parsed.without_reply_to())
        };
        Ok(Self(searches.into_iter().map(parse).collect()))
    }

    /// How many searches it holds.
    pub fn count(&self) -> usize {
        self.0.len()
    }
}

/// The elements of a list, unparsed, and no more than may be answered: a body of 30 MB may hold millions.
struct Elements {
    most: usize,
}

impl<'de> DeserializeSeed<'de> for Elements {
    type Value = Vec<&'de RawValue>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Elements {
    type Value = Vec<&'de RawValue>;

    fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("a list of searches")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
        let mut elements = Vec::new();
        while let Some(element) = list.next_element()? {
            if elements.len() == self.most {
                return Err(A::Error::custom(format!("more than query.max_batch = {} searches", self.most)));
            }
            elements.push(element);
        }
        Ok(elements)
    }
}

impl SearchService {
    /// Answers all searches of a batch within `query.timeout`, each on its own and as a step of `span`.
    ///
    /// # Errors
    /// 429 where no place came free for the first of them within `query.max_wait`; later ones wait.
    pub async fn search_batch(
        self: &Arc<Self>,
        batch: Batch,
        source: Source,
        span: &Span,
    ) -> Result<BatchResponse, SearchError> {
        let arrived = Instant::now();
        let timeout = self.config().timeout;
        let place = self.place(Kind::Bulk, Some(self.config().max_wait)).await;
        self.observe_in(span, "wait", arrived);
        let mut first = Some(place.inspect_err(|error| batch.0.iter().for_each(|_| self.count(source, Some(error))))?);
        let deadline = tokio::time::Instant::now() + timeout;
        let mut topics = batch.0.iter().filter_map(|(_, request)| topic(request.as_ref().ok()?)).collect::<Vec<_>>();
        topics.sort_unstable();
        topics.dedup();
        // Past the deadline each search says so itself.
        let _ = tokio::time::timeout_at(deadline, self.prepare_topics(&topics)).await;
        let searches = batch.0.into_iter().map(|(request_id, request)| {
            let place = if request.is_ok() { first.take() } else { None };
            let span = span.child("search");
            async move {
                let found = match request {
                    Ok(request) => tokio::time::timeout_at(deadline, self.search_in_batch(request, place, &span))
                        .await
                        .unwrap_or_else(|_| Err(too_slow("the search", timeout))),
                    Err(error) => Err(error),
                };
                self.observe("total", arrived);
                self.count(source, found.as_ref().err());
                tell_outcome(&span, &found);
                match found {
                    Ok(found) => BatchAnswer::Found(found),
                    Err(error) => {
                        let error = error.to_json()["error"].take();
                        BatchAnswer::Failed(BatchError { request_id, error })
                    }
                }
            }
        });
        Ok(BatchResponse { answers: futures::future::join_all(searches).await })
    }

    async fn search_in_batch(
        &self,
        request: SearchRequest,
        place: Option<Place>,
        span: &Span,
    ) -> Result<SearchResponse, SearchError> {
        let arrived = Instant::now();
        let _place = match place {
            Some(place) => place,
            None => self.place(Kind::Bulk, None).await?,
        };
        self.answer(request, arrived, span).await
    }
}

fn topic(request: &SearchRequest) -> Option<&str> {
    match &request.subject {
        Subject::Topic(topic) => Some(topic),
        Subject::Picture(_) | Subject::Post(_) => None,
    }
}
