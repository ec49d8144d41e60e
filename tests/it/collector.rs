//! An OTLP collector of a test's own: it takes spans over HTTP and protobuf, or is as out of order as it is told to be.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTracePartialSuccess, ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode as SpanStatus;
use prost::Message as _;

use crate::kafka_support::wait_until;

/// How it answers.
#[derive(Clone, Copy)]
pub enum Mood {
    /// As it should.
    Takes,
    /// 500.
    Fails,
    /// 200, and bytes that are no answer.
    Garbles,
    /// A redirect to itself.
    Redirects,
    /// 200, and every span refused.
    Refuses,
    /// Never.
    Silent,
}

#[derive(Default)]
struct Taken {
    spans: Vec<Told>,
    headers: Vec<HeaderMap>,
}

#[derive(Clone)]
pub struct Collector {
    pub endpoint: String,
    mood: Mood,
    taken: Arc<Mutex<Taken>>,
}

/// A span as it was exported, and by whom.
#[derive(Debug, Clone)]
pub struct Told {
    pub resource: BTreeMap<String, String>,
    pub span: Span,
}

impl Told {
    pub fn trace(&self) -> String {
        hex(&self.span.trace_id)
    }

    pub fn id(&self) -> String {
        hex(&self.span.span_id)
    }

    pub fn parent(&self) -> String {
        hex(&self.span.parent_span_id)
    }

    pub fn attributes(&self) -> BTreeMap<String, String> {
        texts(&self.span.attributes)
    }

    pub fn attribute(&self, name: &str) -> String {
        self.attributes().remove(name).unwrap_or_default()
    }

    pub fn failed(&self) -> bool {
        self.span.status.as_ref().is_some_and(|status| status.code() == SpanStatus::Error)
    }

    pub fn is_within(&self, outer: &Told) -> bool {
        outer.span.start_time_unix_nano <= self.span.start_time_unix_nano
            && self.span.start_time_unix_nano <= self.span.end_time_unix_nano
            && self.span.end_time_unix_nano <= outer.span.end_time_unix_nano
    }
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn texts(attributes: &[KeyValue]) -> BTreeMap<String, String> {
    let text = |attribute: &KeyValue| match attribute.value.as_ref()?.value.as_ref()? {
        Value::StringValue(text) => Some(text.clone()),
        Value::IntValue(number) => Some(number.to_string()),
        Value::DoubleValue(number) => Some(number.to_string()),
        _ => None,
    };
    attributes.iter().map(|attribute| (attribute.key.clone(), text(attribute).unwrap_or_default())).collect()
}

impl Collector {
    pub async fn start() -> Self {
        Self::of(Mood::Takes).await
    }

    pub async fn of(mood: Mood) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let endpoint = format!("http://{}", listener.local_addr().expect("an address"));
        let collector = Self { endpoint, mood, taken: Arc::default() };
        let router = Router::new()
            .route("/v1/traces", post(take))
            .layer(DefaultBodyLimit::disable())
            .with_state(collector.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        collector
    }

    /// The setting that sends traces here.
    pub fn setting(&self) -> String {
        format!("traces.endpoint={}", self.endpoint)
    }

    /// All spans so far.
    pub fn spans(&self) -> Vec<Told> {
        self.taken.lock().expect("no panic").spans.clone()
    }

    pub fn named(&self, name: &str) -> Vec<Told> {
        self.spans().into_iter().filter(|told| told.span.name == name).collect()
    }

    /// Headers of each request so far.
    pub fn headers(&self) -> Vec<HeaderMap> {
        self.taken.lock().expect("no panic").headers.clone()
    }

    /// So many spans of this name, as soon as they are there.
    pub async fn wait_for(&self, name: &str, count: usize) -> Vec<Told> {
        wait_until(&format!("{count} spans {name:?}"), async || self.named(name).len() >= count).await;
        self.named(name)
    }
}

async fn take(State(collector): State<Collector>, headers: HeaderMap, body: Bytes) -> Response {
    let request = ExportTraceServiceRequest::decode(body).expect("OTLP");
    let mut count = 0;
    {
        let mut taken = collector.taken.lock().expect("no panic");
        taken.headers.push(headers);
        for resource_spans in request.resource_spans {
            let resource = texts(&resource_spans.resource.expect("a resource").attributes);
            for span in resource_spans.scope_spans.into_iter().flat_map(|scope| scope.spans) {
                taken.spans.push(Told { resource: resource.clone(), span });
                count += 1;
            }
        }
    }
    let protobuf = [(CONTENT_TYPE, "application/x-protobuf")];
    let answer = |partial_success| ExportTraceServiceResponse { partial_success }.encode_to_vec();
    match collector.mood {
        Mood::Takes => (protobuf, answer(None)).into_response(),
        Mood::Fails => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
        Mood::Garbles => (protobuf, vec![0xff; 100]).into_response(),
        Mood::Redirects => (StatusCode::TEMPORARY_REDIRECT, [("location", "/v1/traces")]).into_response(),
        Mood::Refuses => {
            let error_message = "the quota is used up\u{1b}[2J".to_owned();
            let partial = ExportTracePartialSuccess { rejected_spans: count, error_message };
            (protobuf, answer(Some(partial))).into_response()
        }
        Mood::Silent => std::future::pending().await,
    }
}
