//! The HTTP interface: `/v1/search`, `/v1/stats`, `/v1/thumbnail`, and the page at `/`.
//!
//! Every answer below `/v1`, and every error anywhere, is JSON; errors are `{"error": {"code", "message"}}`.

mod body;
mod keys;
mod respond;

use std::sync::Arc;

use axum::extract::{Query, Request, State};
use axum::http::Uri;
use axum::middleware::{from_fn, from_fn_with_state, map_response};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::query::assets;
use crate::query::error::{ErrorCode, SearchError};
use crate::query::request::SearchRequest;
use crate::query::service::{SearchService, Source, humantime};
use crate::query::stats::Stats;
use crate::service::serve;

#[derive(Clone)]
struct App {
    service: Arc<SearchService>,
    stats: Arc<Stats>,
    bodies: Arc<Semaphore>,
}

/// Serves until `shutdown`, then finishes what is under way within `query.timeout`.
pub async fn run(listener: TcpListener, service: Arc<SearchService>, shutdown: CancellationToken) {
    let timeout = service.config().timeout;
    tokio::select! {
        () = serve(listener, router(service), timeout, shutdown.clone()) => {}
        () = async { shutdown.cancelled().await; tokio::time::sleep(timeout).await } => {
            tracing::warn!("connections that were still open after {} are cut", humantime(timeout));
        }
    }
}

/// The routes, for a server of one's own.
pub fn router(service: Arc<SearchService>) -> Router {
    let bodies = body::memory(service.config());
    let app = App { stats: Arc::new(Stats::new(Arc::clone(&service))), service, bodies };
    let interface = Router::new()
        .route("/v1/search", get(search_by_parameters).post(search_by_json))
        .route("/v1/stats", get(stats))
        .route("/v1/thumbnail", get(thumbnail))
        .route_layer(from_fn_with_state(app.clone(), keys::check_key));
    assets::routes()
        .merge(interface)
        .fallback(async |uri: Uri| SearchError::new(ErrorCode::NotFound, format!("there is nothing at {}", uri.path())))
        .method_not_allowed_fallback(async || {
            SearchError::new(ErrorCode::MethodNotAllowed, "this address takes other methods; see the Allow header")
        })
        .layer(map_response(respond::add_headers))
        .layer(from_fn(respond::answer_panics))
        .with_state(app)
}

async fn search_by_json(State(app): State<App>, request: Request) -> Result<Response, SearchError> {
    // Held to the answer: the picture in the body lives on until it is decoded.
    let mut memory = None;
    let parsed = async {
        let bytes = app.read_body(request.into_body(), &mut memory).await?;
        app.parse(bytes).await.request
    };
    app.search(parsed.await).await
}

async fn search_by_parameters(State(app): State<App>, uri: Uri) -> Result<Response, SearchError> {
    let pairs = Query::<Vec<(String, String)>>::try_from_uri(&uri)
        .map_err(|error| SearchError::bad_request(format!("the parameters cannot be read: {error}")));
    app.search(pairs.and_then(|Query(pairs)| SearchRequest::from_parameters(pairs, app.service.config()))).await
}

async fn stats(State(app): State<App>) -> Response {
    Json(app.stats.snapshot().await).into_response()
}

async fn thumbnail(State(app): State<App>, uri: Uri) -> Result<Response, SearchError> {
    let post_id = Query::<Vec<(String, String)>>::try_from_uri(&uri)
        .ok()
        .and_then(|Query(pairs)| pairs.into_iter().find(|(name, _)| name == "post_id"))
        .map(|(_, post_id)| post_id)
        .ok_or_else(|| SearchError::bad_request("name the post: /v1/thumbnail?post_id=..."))?;
    let thumbnail = app.service.thumbnail(&post_id).await?;
    Ok(Json(json!({"post_id": post_id, "thumbnail": &*thumbnail})).into_response())
}

impl App {
    async fn search(&self, request: Result<SearchRequest, SearchError>) -> Result<Response, SearchError> {
        let request = request.inspect_err(|error| self.service.count_rejected(Source::Http, error))?;
        Ok(Json(self.service.search(request, Source::Http).await?).into_response())
    }
}
