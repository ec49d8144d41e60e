//! The HTTP interface: `/v1/search`, `/v1/stats`, `/v1/thumbnail`, and the page at `/`.
//!
//! Every answer below `/v1`, and every error anywhere, is JSON; errors are `{"error": {"code", "message"}}`.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Query, Request, State};
use axum::http::header::{
    AUTHORIZATION, CACHE_CONTROL, CONTENT_SECURITY_POLICY, REFERRER_POLICY, RETRY_AFTER, WWW_AUTHENTICATE,
    X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS,
};
use axum::http::{HeaderValue, StatusCode, Uri};
use axum::middleware::{Next, from_fn, from_fn_with_state, map_response};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use futures::StreamExt as _;
use serde_json::json;
use subtle::ConstantTimeEq as _;
use tokio::net::TcpListener;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::query::assets;
use crate::query::error::{ErrorCode, SearchError};
use crate::query::request::{Parsed, SearchRequest};
use crate::query::service::{SearchService, Source, humantime};
use crate::query::stats::Stats;
use crate::service::serve;

/// Nothing is loaded from elsewhere, pictures included: a host that a post names must not learn who watches the feed.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; \
    connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
/// Unit in which bodies are counted against the memory for them: one permit.
const BODY_UNIT: u64 = 1024;
/// So many bodies of the largest size may be in memory at a time; smaller ones, as many as fit.
const LARGE_BODIES: u64 = 4;
/// A body larger than this is parsed off the async threads: it takes more than some 100 microseconds.
const INLINE_PARSE_BYTES: usize = 128 * 1024;

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
    let units = LARGE_BODIES * service.config().max_body_bytes.div_ceil(BODY_UNIT);
    let bodies = Arc::new(Semaphore::new((units as usize).min(Semaphore::MAX_PERMITS)));
    let app = App { stats: Arc::new(Stats::new(Arc::clone(&service))), service, bodies };
    let interface = Router::new()
        .route("/v1/search", get(search_by_parameters).post(search_by_json))
        .route("/v1/stats", get(stats))
        .route("/v1/thumbnail", get(thumbnail))
        .route_layer(from_fn_with_state(app.clone(), check_key));
    assets::routes()
        .merge(interface)
        .fallback(async |uri: Uri| SearchError::new(ErrorCode::NotFound, format!("there is nothing at {}", uri.path())))
        .method_not_allowed_fallback(async || {
            SearchError::new(ErrorCode::MethodNotAllowed, "this address takes other methods; see the Allow header")
        })
        .layer(map_response(add_headers))
        .layer(from_fn(answer_panics))
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

    /// Takes room for what has arrived of a body, and not for what was announced: whoever announces much and sends little
    /// must not keep others out.
    async fn make_room(&self, memory: &mut Option<OwnedSemaphorePermit>, bytes: u64) -> Result<(), SearchError> {
        let held = memory.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        let units = (bytes.div_ceil(BODY_UNIT) as usize).saturating_sub(held);
        let room = Arc::clone(&self.bodies).acquire_many_owned(units.try_into().unwrap_or(u32::MAX));
        match tokio::time::timeout(self.service.config().max_wait, room).await {
            Ok(room) => {
                let room = room.expect("the semaphore is never closed. This is a bug.");
                match memory {
                    Some(memory) => memory.merge(room),
                    None => *memory = Some(room),
                }
                Ok(())
            }
            Err(_) => Err(SearchError::for_now(
                ErrorCode::Overloaded,
                "too many large requests are arriving; try again in a moment",
                Duration::from_secs(1),
            )),
        }
    }

    async fn read_body(&self, body: Body, memory: &mut Option<OwnedSemaphorePermit>) -> Result<Vec<u8>, SearchError> {
        let config = self.service.config();
        let reading = async {
            let mut chunks = body.into_data_stream();
            let (mut bytes, mut seen) = (Vec::new(), 0u64);
            while let Some(chunk) = chunks.next().await {
                let chunk = chunk.map_err(|_| SearchError::bad_request("the request's body broke off"))?;
                seen += chunk.len() as u64;
                if seen <= config.max_body_bytes {
                    self.make_room(memory, seen).await?;
                    bytes.extend_from_slice(&chunk);
                } else if seen > 2 * config.max_body_bytes {
                    break;
                } else {
                    // Read on, for a while: a sender who is cut off while sending never sees the answer.
                    (bytes, *memory) = (Vec::new(), None);
                }
            }
            if seen > config.max_body_bytes {
                let message = format!("the request's body is larger than {} bytes", config.max_body_bytes);
                return Err(SearchError::new(ErrorCode::TooLarge, message));
            }
            Ok(bytes)
        };
        tokio::time::timeout(config.timeout, reading).await.unwrap_or_else(|_| {
            let message = format!("the request's body did not arrive within {}", humantime(config.timeout));
            Err(SearchError::bad_request(message))
        })
    }

    async fn parse(&self, bytes: Vec<u8>) -> Parsed {
        if bytes.len() <= INLINE_PARSE_BYTES {
            return SearchRequest::from_json(&bytes, self.service.config());
        }
        let service = Arc::clone(&self.service);
        tokio::task::spawn_blocking(move || SearchRequest::from_json(&bytes, service.config()))
            .await
            .expect("parsing does not panic. This is a bug.")
    }
}

async fn check_key(State(app): State<App>, request: Request, next: Next) -> Response {
    let keys = &app.service.config().api_keys;
    if keys.is_empty() {
        return next.run(request).await;
    }
    let headers = request.headers();
    let bearer = headers.get(AUTHORIZATION).map(HeaderValue::as_bytes).and_then(|value| {
        let (scheme, key) = value.split_at_checked("Bearer ".len())?;
        scheme.eq_ignore_ascii_case(b"Bearer ").then_some(key)
    });
    let given = bearer.or_else(|| headers.get("x-api-key").map(HeaderValue::as_bytes));
    let message = match given {
        None => "an API key is needed: send it as \"Authorization: Bearer KEY\" or \"X-Api-Key: KEY\"",
        // All keys are compared whole, so that the time taken tells nothing of any of them.
        Some(given)
            if keys.iter().fold(0, |known, key| known | key.expose().as_bytes().ct_eq(given).unwrap_u8()) == 1 =>
        {
            return next.run(request).await;
        }
        Some(_) => "this API key is not known; query.api_keys lists those that are",
    };
    SearchError::new(ErrorCode::Unauthorized, message).into_response()
}

/// A panic is a defect, but its sender gets an answer all the same.
async fn answer_panics(request: Request, next: Next) -> Response {
    let answered = AbortOnDropHandle::new(tokio::spawn(next.run(request))).await;
    answered.unwrap_or_else(|error| {
        tracing::error!(%error, "a request made the program panic");
        let mut response =
            SearchError::new(ErrorCode::Internal, "this request met a defect of feedlens").into_response();
        response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        response
    })
}

async fn add_headers(mut response: Response) -> Response {
    let headers = response.headers_mut();
    headers.insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(X_FRAME_OPTIONS, HeaderValue::from_static("DENY"));
    headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    headers.entry(CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    response
}

impl IntoResponse for SearchError {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.code.status()).expect("the codes' statuses are HTTP's. This is a bug.");
        let mut response = (status, Json(self.to_json())).into_response();
        if let Some(delay) = self.retry_after {
            let seconds = delay.as_secs() + u64::from(delay.subsec_nanos() > 0);
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.code == ErrorCode::Unauthorized {
            response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}
