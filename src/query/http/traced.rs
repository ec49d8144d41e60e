//! Searches over HTTP in their senders' traces.

use axum::Extension;
use axum::extract::Request;
use axum::http::HeaderValue;
use axum::middleware::Next;
use axum::response::Response;
use opentelemetry::KeyValue;
use opentelemetry::trace::SpanKind;

use crate::traces::{Span, w3c};

/// The span of a request, which handlers find among its extensions. Name and attributes are those of OpenTelemetry's conventions
/// for HTTP servers (<https://opentelemetry.io/docs/specs/semconv/http/http-spans/>); the path is the route, for none of those that
/// are traced has parameters in it.
pub(super) async fn trace(mut request: Request, next: Next) -> Response {
    let span = span_of(&request);
    request.extensions_mut().insert(span.clone());
    let response = next.run(request).await;
    let status = response.status();
    span.set(|| vec![KeyValue::new("http.response.status_code", i64::from(status.as_u16()))]);
    if status.is_server_error() {
        span.fail("unavailable", status.canonical_reason().unwrap_or_default());
    }
    span.end();
    response
}

fn span_of(request: &Request) -> Span {
    let (method, path) = (request.method().as_str(), request.uri().path());
    let header = |name: &str| request.headers().get(name).map(HeaderValue::as_bytes);
    let span = Span::begin(SpanKind::Server, || format!("{method} {path}").into(), || w3c::parent(header));
    span.set(|| {
        vec![
            KeyValue::new("http.request.method", method.to_owned()),
            KeyValue::new("http.route", path.to_owned()),
            KeyValue::new("url.path", path.to_owned()),
        ]
    });
    span
}

/// The span that [`trace`] made, if it is there.
pub(super) fn of(span: Option<Extension<Span>>) -> Span {
    span.map(|Extension(span)| span).unwrap_or_default()
}
