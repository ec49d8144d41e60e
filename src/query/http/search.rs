//! The handlers of searches, pictures and live numbers.

use std::num::NonZeroU32;

use axum::extract::{Query, Request, State};
use axum::http::Uri;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use serde::Serialize;
use utoipa::ToSchema;

use super::openapi::{BatchBody, Search, SearchParameters};
use super::{App, traced};
use crate::query::batch::{Batch, BatchResponse};
use crate::query::error::SearchError;
use crate::query::keys::Accepted;
use crate::query::request::SearchRequest;
use crate::query::service::{SearchResponse, Source};
use crate::query::stats::Snapshot;
use crate::traces::Span;

type Parameters = Query<Vec<(String, String)>>;

/// A small copy of a post's picture.
#[derive(Serialize, ToSchema)]
pub(super) struct Thumbnail {
    /// As asked for.
    post_id: String,
    /// A data URI, its longer side at most 320 pixels.
    thumbnail: String,
}

/// Search by text, by a picture or by a post's picture
///
/// The same JSON goes over Kafka, in the topic of requests.
#[utoipa::path(
    post, path = "/v1/search", tag = "search", request_body = Search,
    responses((status = 200, description = "The best posts", body = SearchResponse)),
)]
pub(super) async fn by_json(
    State(app): State<App>,
    span: Option<Extension<Span>>,
    request: Request,
) -> Result<Response, SearchError> {
    // Held to the answer: the picture in the body lives on until it is decoded.
    let mut memory = None;
    let parsed = async {
        let bytes = app.read_body(request.into_body(), app.service.config().max_body_bytes, &mut memory).await?;
        app.parse(bytes, SearchRequest::from_json).await.without_reply_to()
    };
    app.search(parsed.await, span).await
}

/// Search by text or by a post's picture
///
/// A parameter without a value counts as absent.
#[utoipa::path(
    get, path = "/v1/search", tag = "search", params(SearchParameters),
    responses((status = 200, description = "The best posts", body = SearchResponse)),
)]
pub(super) async fn by_parameters(
    State(app): State<App>,
    span: Option<Extension<Span>>,
    uri: Uri,
) -> Result<Response, SearchError> {
    let pairs = Parameters::try_from_uri(&uri)
        .map_err(|error| SearchError::bad_request(format!("the parameters cannot be read: {error}")));
    let parsed = pairs.and_then(|Query(pairs)| SearchRequest::from_parameters(pairs, app.service.config()));
    app.search(parsed, span).await
}

/// Many searches in one request
///
/// The answers come in the order of the searches; one that failed has an error in place of hits. Their texts are encoded
/// together. A batch counts against the rate of a key as many requests as it has searches.
#[utoipa::path(
    post, path = "/v1/search/batch", tag = "search", request_body = BatchBody,
    responses((status = 200, description = "An answer for each search", body = BatchResponse)),
)]
pub(super) async fn batch(
    State(app): State<App>,
    accepted: Option<Extension<Accepted>>,
    span: Option<Extension<Span>>,
    request: Request,
) -> Result<Response, SearchError> {
    let mut memory = None;
    let bytes = app.read_body(request.into_body(), app.service.config().max_body_bytes, &mut memory).await?;
    let batch = app.parse(bytes, Batch::from_json).await?;
    // One was taken when the key was checked.
    if let (Some(Extension(accepted)), Some(more)) = (accepted, NonZeroU32::new((batch.count() - 1) as u32)) {
        accepted.key().take(more)?;
    }
    Ok(Json(app.service.search_batch(batch, Source::Http, &traced::of(span)).await?).into_response())
}

/// Live numbers of this worker
#[utoipa::path(
    get, path = "/v1/stats", tag = "worker",
    responses((status = 200, description = "The numbers, at most a second old", body = Snapshot)),
)]
pub(super) async fn stats(State(app): State<App>) -> Response {
    Json(app.stats.snapshot().await).into_response()
}

/// A small copy of a post's picture
///
/// Made by the worker, so that viewers need not load anything from hosts that a post names.
#[utoipa::path(
    get, path = "/v1/thumbnail", tag = "search",
    params(("post_id" = String, Query, description = "The post's id", min_length = 1)),
    responses((status = 200, description = "The picture", body = Thumbnail)),
)]
pub(super) async fn thumbnail(State(app): State<App>, uri: Uri) -> Result<Response, SearchError> {
    let post_id = Parameters::try_from_uri(&uri)
        .ok()
        .and_then(|Query(pairs)| pairs.into_iter().find(|(name, _)| name == "post_id"))
        .map(|(_, post_id)| post_id)
        .ok_or_else(|| SearchError::bad_request("name the post: /v1/thumbnail?post_id=..."))?;
    let thumbnail = app.service.thumbnail(&post_id).await?;
    Ok(Json(Thumbnail { post_id, thumbnail: thumbnail.to_string() }).into_response())
}

impl App {
    async fn search(
        &self,
        request: Result<SearchRequest, SearchError>,
        span: Option<Extension<Span>>,
    ) -> Result<Response, SearchError> {
        let request = request.inspect_err(|error| self.service.count_rejected(Source::Http, error))?;
        Ok(Json(self.service.search(request, Source::Http, &traced::of(span)).await?).into_response())
    }
}
