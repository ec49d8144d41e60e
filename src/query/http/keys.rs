//! Who may ask, and from which pages: API keys with their rates, and CORS.

use std::num::NonZeroU32;

use axum::extract::{Request, State};
use axum::http::header::{AUTHORIZATION, CONTENT_TYPE, HOST, HeaderName, ORIGIN, RETRY_AFTER};
use axum::http::{HeaderMap, HeaderValue, Method};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use tower_http::cors::CorsLayer;

use super::App;
use super::topics::LAST_EVENT_ID;
use crate::query::QueryConfig;
use crate::query::error::{ErrorCode, SearchError};
use crate::traces::w3c;

const API_KEY: HeaderName = HeaderName::from_static("x-api-key");
/// Pages that trace what they do send these along, also to a worker that does not.
const TRACEPARENT: HeaderName = HeaderName::from_static(w3c::TRACEPARENT);
const TRACESTATE: HeaderName = HeaderName::from_static(w3c::TRACESTATE);

/// Lets a request with a known key through, one request of its rate; what let it in goes along as an extension.
pub(super) async fn check_key(State(app): State<App>, mut request: Request, next: Next) -> Response {
    let Some(keys) = &app.keys else { return next.run(request).await };
    let count = |name: &str, outcome| app.service.metrics().api_requests.with_label_values(&[name, outcome]).inc();
    let message = match given(request.headers()) {
        None => "an API key is needed: send it as \"Authorization: Bearer KEY\" or \"X-Api-Key: KEY\"",
        Some(given) => match keys.accept(given) {
            None => "this API key is not known; the file query.api_keys_file has the hashes of those that are",
            Some(accepted) => {
                let key = accepted.key();
                if let Err(error) = key.take(NonZeroU32::MIN) {
                    count(key.name(), "rate_limited");
                    return error.into_response();
                }
                count(key.name(), "accepted");
                request.extensions_mut().insert(accepted);
                return next.run(request).await;
            }
        },
    };
    count("", "unauthorized");
    SearchError::new(ErrorCode::Unauthorized, message).into_response()
}

fn given(headers: &HeaderMap) -> Option<&[u8]> {
    let bearer = headers.get(AUTHORIZATION).map(HeaderValue::as_bytes).and_then(|value| {
        let (scheme, key) = value.split_at_checked("Bearer ".len())?;
        scheme.eq_ignore_ascii_case(b"Bearer ").then_some(key)
    });
    bearer.or_else(|| headers.get(API_KEY).map(HeaderValue::as_bytes))
}

/// Browsers send a plain POST for any page, and only keep the answer from it: where no key is asked for, that would be enough to
/// change things and to keep the worker busy. They tell where it comes from in `Sec-Fetch-Site`, and where the worker is asked
/// without TLS only in `Origin`. Programs send neither.
pub(super) async fn refuse_other_pages(State(app): State<App>, request: Request, next: Next) -> Response {
    let headers = request.headers();
    let is_other = match headers.get("sec-fetch-site") {
        Some(site) => site != "same-origin" && site != "none",
        None => headers.get(ORIGIN).is_some_and(|origin| {
            let host = origin.to_str().ok().and_then(|origin| origin.split_once("://"));
            host.map(|(_, host)| host.as_bytes()) != headers.get(HOST).map(HeaderValue::as_bytes)
        }),
    };
    let is_named = || {
        let origin = headers.get(ORIGIN).map(HeaderValue::as_bytes);
        app.service.config().cors_origins.iter().any(|named| Some(named.as_bytes()) == origin)
    };
    if request.method().is_safe() || !is_other || is_named() {
        return next.run(request).await;
    }
    let message = "pages of other origins may not ask this; query.cors_origins names those that may";
    SearchError::new(ErrorCode::Forbidden, message).into_response()
}

/// Answers of the API to pages of `query.cors_origins`; `None`: to the page of this worker alone.
pub(super) fn cors(config: &QueryConfig) -> Option<CorsLayer> {
    let origins =
        config.cors_origins.iter().map(|origin| origin.parse().expect("checked at the start. This is a bug."));
    let layer = CorsLayer::new()
        .allow_origin(origins.collect::<Vec<HeaderValue>>())
        .allow_methods([Method::GET, Method::POST, Method::PUT, Method::DELETE])
        .allow_headers([AUTHORIZATION, CONTENT_TYPE, API_KEY, LAST_EVENT_ID, TRACEPARENT, TRACESTATE])
        .expose_headers([RETRY_AFTER]);
    (!config.cors_origins.is_empty()).then_some(layer)
}
