//! Finished spans on their way to the collector: a bounded queue, batches over HTTP (OTLP, protobuf), and what is told where that
//! fails. Nobody ever waits for it: what has no room is dropped and counted.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use opentelemetry::Context;
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use opentelemetry_proto::transform::common::tonic::ResourceAttributesWithSchema;
use opentelemetry_proto::transform::trace::tonic::group_spans_by_resource_and_scope;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::{OTelSdkError, OTelSdkResult};
use opentelemetry_sdk::trace::{BatchConfigBuilder, BatchSpanProcessor, Span, SpanData, SpanExporter, SpanProcessor};
use prometheus::IntCounter;
use prost::Message as _;
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderValue};
use reqwest::redirect::Policy;
use reqwest::{Client, RequestBuilder};
use tokio::runtime::Handle;
use url::Url;

use crate::metrics::Metrics;
use crate::text::escaped;

/// Spans that wait or are being sent: at 1 to 3 kB each, some MB.
const MAX_WAITING: usize = 4_096;
/// Spans in one request, or as many as come in `DELAY`.
const BATCH: usize = 512;
const DELAY: Duration = Duration::from_secs(1);
/// For one request, from the connection to the answer.
const TIMEOUT: Duration = Duration::from_secs(10);
/// A collector says nothing, or how many spans it refused and why.
const MAX_ANSWER: usize = 65_536;
/// An outage is over when nothing went wrong for so long: one that comes and goes is one.
const CALM: Duration = Duration::from_secs(10);
/// Characters of the collector's own words that the log repeats.
const SHOWN: usize = 200;

/// How many spans wait, and what became of the others; cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Queue(Arc<Counts>);

#[derive(Debug)]
struct Counts {
    waiting: AtomicUsize,
    /// Of `dropped`, what the log has not heard of.
    unheard: AtomicU64,
    exported: IntCounter,
    failed: IntCounter,
    dropped: IntCounter,
}

impl Queue {
    pub(super) fn new(metrics: &Metrics) -> Self {
        let counter = |outcome| metrics.trace_spans.with_label_values(&[outcome]);
        Self(Arc::new(Counts {
            waiting: AtomicUsize::new(0),
            unheard: AtomicU64::new(0),
            exported: counter("exported"),
            failed: counter("failed"),
            dropped: counter("dropped"),
        }))
    }

    /// Starts the thread that exports.
    pub(super) fn processor(&self, exporter: Exporter) -> Bounded {
        let config = BatchConfigBuilder::default()
            .with_max_queue_size(MAX_WAITING)
            .with_max_export_batch_size(BATCH)
            .with_scheduled_delay(DELAY)
            .build();
        Bounded { batches: BatchSpanProcessor::new(exporter, config), queue: self.clone() }
    }

    /// Spans that have ended and are neither sent nor given up.
    pub(super) fn waiting(&self) -> usize {
        self.0.waiting.load(Ordering::Relaxed)
    }

    fn admits_one(&self) -> bool {
        if self.0.waiting.fetch_add(1, Ordering::Relaxed) < MAX_WAITING {
            return true;
        }
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
        self.0.unheard.fetch_add(1, Ordering::Relaxed);
        self.0.dropped.inc();
        false
    }
}

/// The SDK's batches behind a count of our own: the SDK tells nobody how many spans it drops.
#[derive(Debug)]
pub(super) struct Bounded {
    batches: BatchSpanProcessor,
    queue: Queue,
}

impl SpanProcessor for Bounded {
    fn on_start(&self, _span: &mut Span, _context: &Context) {}

    fn on_end(&self, span: SpanData) {
        if self.queue.admits_one() {
            self.batches.on_end(span);
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.batches.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.batches.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.batches.set_resource(resource);
    }
}

/// Sends batches to the collector, one at a time.
#[derive(Debug)]
pub(super) struct Exporter {
    client: Client,
    url: Url,
    runtime: Handle,
    resource: ResourceAttributesWithSchema,
    queue: Queue,
    trouble: Mutex<Option<Trouble>>,
}

#[derive(Debug, Clone, Copy)]
struct Trouble {
    since: Instant,
    latest: Instant,
}

impl Exporter {
    pub(super) fn new(url: Url, mut headers: HeaderMap, runtime: Handle, queue: Queue) -> Result<Self> {
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-protobuf"));
        let client = Client::builder()
            .default_headers(headers)
            .timeout(TIMEOUT)
            // A redirect would take the headers, and their secrets, elsewhere.
            .redirect(Policy::none())
            .no_proxy()
            .build()
            .context("the HTTP client for traces cannot be made")?;
        let resource = ResourceAttributesWithSchema::default();
        Ok(Self { client, url, runtime, resource, queue, trouble: Mutex::default() })
    }

    /// Tells the begin of an outage, and its end, once each.
    fn tell(&self, trouble: Option<String>) {
        let mut known = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        match (trouble, &mut *known) {
            (Some(detail), None) => {
                tracing::warn!("traces are lost, all else goes on: {}: {detail}", self.url);
                *known = Some(Trouble { since: now, latest: now });
            }
            (Some(_), Some(trouble)) => trouble.latest = now,
            (None, Some(trouble)) if trouble.latest + CALM <= now => {
                tracing::info!(seconds = trouble.since.elapsed().as_secs(), "traces are sent again");
                *known = None;
            }
            (None, _) => {}
        }
    }
}

impl SpanExporter for Exporter {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let count = batch.len() as u64;
        let resource_spans = group_spans_by_resource_and_scope(batch, &self.resource);
        let body = ExportTraceServiceRequest { resource_spans }.encode_to_vec();
        // The thread that exports belongs to no runtime.
        let sending = self.runtime.spawn(send(self.client.post(self.url.clone()).body(body)));
        let sent = sending.await.unwrap_or_else(|_| Err("the process ends".to_owned()));
        let counts = &self.queue.0;
        let failed = match &sent {
            Ok(None) => 0,
            Ok(Some(Refused { spans, .. })) => (*spans).min(count),
            Err(_) => count,
        };
        counts.failed.inc_by(failed);
        counts.exported.inc_by(count - failed);
        counts.waiting.fetch_sub(count as usize, Ordering::Relaxed);
        let dropped = counts.unheard.swap(0, Ordering::Relaxed);
        self.tell(match sent {
            Err(detail) => Some(detail),
            Ok(Some(Refused { spans, why })) => Some(format!("{spans} spans of {count} are refused: {why}")),
            Ok(None) if dropped > 0 => Some(format!("it is slower than spans come, {dropped} of them had no room")),
            Ok(None) => None,
        });
        if failed == 0 { Ok(()) } else { Err(OTelSdkError::InternalFailure("told by `tell`".to_owned())) }
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.resource = resource.into();
    }
}

/// Spans that the collector took none of (`partial_success` of OTLP).
struct Refused {
    spans: u64,
    why: String,
}

async fn send(request: RequestBuilder) -> Result<Option<Refused>, String> {
    let told = |error: reqwest::Error| format!("{:#}", anyhow::Error::from(error.without_url()));
    let mut response = request.send().await.map_err(told)?;
    if !response.status().is_success() {
        return Err(format!("the collector answered {}", response.status()));
    }
    let is_protobuf = response.headers().get(CONTENT_TYPE).is_some_and(|kind| kind == "application/x-protobuf");
    let mut answer = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(told)? {
        if answer.len() + chunk.len() > MAX_ANSWER {
            return Err("the collector answers without end".to_owned());
        }
        answer.extend_from_slice(&chunk);
    }
    // Some answer JSON, or nothing, where they took everything.
    if !is_protobuf {
        return Ok(None);
    }
    let answer = ExportTraceServiceResponse::decode(&*answer)
        .map_err(|_| "what answers there speaks no OTLP; look at traces.endpoint".to_owned())?;
    Ok(answer.partial_success.filter(|partial| partial.rejected_spans > 0).map(|partial| Refused {
        spans: partial.rejected_spans.unsigned_abs(),
        why: escaped(partial.error_message.as_bytes(), SHOWN),
    }))
}
