//! Who may ask: API keys.

use axum::extract::{Request, State};
use axum::http::HeaderValue;
use axum::http::header::AUTHORIZATION;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use subtle::ConstantTimeEq as _;

use super::App;
use crate::query::error::{ErrorCode, SearchError};

pub(super) async fn check_key(State(app): State<App>, request: Request, next: Next) -> Response {
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
