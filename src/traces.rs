//! OpenTelemetry traces of posts and requests, sent to an OTLP collector. Off unless `traces.endpoint` is set: then a [`Span`]
//! holds nothing, and whatever is done with it ends at one comparison.
//!
//! The OpenTelemetry API by itself, without `tracing`, which stays with the logs: a span goes from task to task and thread to
//! thread here, and one batch belongs to many posts.

mod config;
mod export;
pub mod span;
pub mod w3c;

use std::sync::OnceLock;
use std::time::Duration;

use anyhow::Result;
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::resource::TelemetryResourceDetector;
use opentelemetry_sdk::trace::{Sampler, SdkTracer, SdkTracerProvider, SpanLimits};
use sysinfo::System;
use tokio::runtime::Handle;

pub use self::config::TracesConfig;
use self::export::{Exporter, Queue};
pub use self::span::Span;
use crate::metrics::Metrics;

/// The last spans have so long to go out at the end of the process.
const LAST_EXPORT: Duration = Duration::from_secs(3);
/// Events of a span; an outage may bring one with each attempt.
const MAX_EVENTS: u32 = 16;

/// Once in a process, as the log: what is traced is passed on, what traces it is not.
static TRACES: OnceLock<Traces> = OnceLock::new();

struct Traces {
    tracer: SdkTracer,
    provider: SdkTracerProvider,
    queue: Queue,
}

/// Starts to send traces of this process, `service` (`service.name`), where an endpoint is set. Call inside the runtime, once.
///
/// # Errors
/// One sentence that names the key at fault, or the HTTP client cannot be made.
pub fn start(config: &TracesConfig, service: &'static str, metrics: &Metrics) -> Result<()> {
    let Some(url) = config.url()? else { return Ok(()) };
    let queue = Queue::new(metrics);
    let exporter = Exporter::new(url, config.header_map()?, Handle::current(), queue.clone())?;
    let resource = Resource::builder_empty()
        .with_detector(Box::new(TelemetryResourceDetector))
        .with_service_name(service)
        .with_attributes(config::host_attributes(System::host_name()))
        // Last: what the operator says wins.
        .with_attributes(config.attributes()?);
    let sampler = Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(config.sample_ratio)));
    let provider = SdkTracerProvider::builder()
        .with_sampler(sampler)
        .with_span_limits(SpanLimits { max_events_per_span: MAX_EVENTS, ..SpanLimits::default() })
        .with_resource(resource.build())
        .with_span_processor(queue.processor(exporter))
        .build();
    let traces = Traces { tracer: provider.tracer("feedlens"), provider, queue };
    anyhow::ensure!(TRACES.set(traces).is_ok(), "traces are started twice in this process. This is a bug.");
    tracing::info!(endpoint = config.endpoint, sample_ratio = config.sample_ratio, "sending traces");
    Ok(())
}

/// Whether spans are made in this process.
pub fn are_on() -> bool {
    TRACES.get().is_some()
}

/// Sends what is left, for 3 s at most; spans that end later are lost. The process ends without destructors, so that nobody
/// else would.
pub async fn end() {
    let Some(traces) = TRACES.get() else { return };
    let _ = tokio::task::spawn_blocking(|| traces.provider.shutdown_with_timeout(LAST_EXPORT)).await;
    let lost = traces.queue.waiting();
    if lost > 0 {
        tracing::warn!(spans = lost, "the last spans could not be sent before the end");
    }
}
