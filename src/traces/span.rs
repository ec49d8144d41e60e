//! A span, or nothing.

use std::borrow::Cow;
use std::time::{Instant, SystemTime};

use opentelemetry::trace::{
    Link, SamplingDecision, SamplingResult, SpanBuilder, SpanContext, SpanKind, Status, TraceContextExt as _,
    TraceState, Tracer as _,
};
use opentelemetry::{Context, KeyValue};

use super::{TRACES, w3c};
use crate::text::shortened;

/// Characters of what others wrote that a span repeats.
const SHOWN: usize = 256;

/// How a post or a request ended.
pub const OUTCOME: &str = "feedlens.outcome";
/// A post's id.
pub const POST_ID: &str = "feedlens.post_id";
/// How many items a batch had.
pub const BATCH_SIZE: &str = "feedlens.batch.size";

/// A step of a post's or a request's way, from its making to [`Self::end`] or its last clone's drop; cheap to clone. Empty
/// where traces are off. One that is not sampled still tells others of its trace, and records nothing.
#[derive(Debug, Clone, Default)]
pub struct Span(Option<Context>);

/// Text of others as an attribute: not longer than it is worth.
pub fn text(name: &'static str, value: &str) -> KeyValue {
    KeyValue::new(name, shortened(value, SHOWN).into_owned())
}

/// What is said of a message by OpenTelemetry's conventions for messaging and Kafka
/// (<https://opentelemetry.io/docs/specs/semconv/messaging/kafka/>); the span's name is operation and topic.
pub fn messaging(operation: &'static str, topic: &str) -> Vec<KeyValue> {
    vec![
        KeyValue::new("messaging.system", "kafka"),
        KeyValue::new("messaging.operation.name", operation),
        KeyValue::new("messaging.operation.type", operation),
        KeyValue::new("messaging.destination.name", topic.to_owned()),
    ]
}

impl Span {
    /// Continues the trace of `parent`, or begins one, which is sampled by `traces.sample_ratio`. Neither is called where
    /// traces are off.
    pub fn begin(
        kind: SpanKind,
        name: impl FnOnce() -> Cow<'static, str>,
        parent: impl FnOnce() -> Option<SpanContext>,
    ) -> Self {
        let Some(traces) = TRACES.get() else { return Self(None) };
        let context = Context::new();
        let context = match parent() {
            Some(parent) => context.with_remote_span_context(parent),
            None => context,
        };
        let span = traces.tracer.build_with_context(SpanBuilder::from_name(name()).with_kind(kind), &context);
        Self(Some(context.with_span(span)))
    }

    /// Work done at once for many: a trace of its own, with links to theirs. Recorded where one of theirs is.
    pub fn over<'a>(name: &'static str, members: impl Iterator<Item = &'a Self>) -> Self {
        let Some(traces) = TRACES.get() else { return Self(None) };
        let links = members.filter_map(Self::link).collect::<Vec<_>>();
        if links.is_empty() {
            return Self(None);
        }
        let sampled = SamplingResult {
            decision: SamplingDecision::RecordAndSample,
            attributes: Vec::new(),
            trace_state: TraceState::NONE,
        };
        let builder = SpanBuilder::from_name(name).with_links(links).with_sampling_result(sampled);
        let context = Context::new();
        let span = traces.tracer.build_with_context(builder, &context);
        Self(Some(context.with_span(span)))
    }

    /// A step within this one that begins now.
    pub fn child(&self, name: &'static str) -> Self {
        let (Some(traces), Some(context)) = (TRACES.get(), self.recorded()) else { return self.clone() };
        let span = traces.tracer.build_with_context(SpanBuilder::from_name(name), context);
        Self(Some(context.with_span(span)))
    }

    /// A step within this one that began then and ends now.
    pub fn past(&self, name: &'static str, since: Instant) {
        self.past_with(name, since, |builder| builder);
    }

    /// The same, with more to tell of it.
    pub fn past_with(&self, name: &'static str, since: Instant, more: impl FnOnce(SpanBuilder) -> SpanBuilder) {
        let (Some(traces), Some(context)) = (TRACES.get(), self.recorded()) else { return };
        let builder = SpanBuilder::from_name(name).with_start_time(SystemTime::now() - since.elapsed());
        drop(traces.tracer.build_with_context(more(builder), context));
    }

    /// A link to it, where it is recorded.
    pub fn link(&self) -> Option<Link> {
        let context = self.recorded()?.span().span_context().clone();
        Some(Link::with_context(context))
    }

    /// Attributes; called only where they are recorded.
    pub fn set(&self, attributes: impl FnOnce() -> Vec<KeyValue>) {
        if let Some(context) = self.recorded() {
            context.span().set_attributes(attributes());
        }
    }

    /// How it ended.
    pub fn outcome(&self, outcome: &'static str) {
        self.set(|| vec![KeyValue::new(OUTCOME, outcome)]);
    }

    /// An attempt failed for now, and is made again.
    pub fn retry(&self, reason: &'static str, detail: &str) {
        if let Some(context) = self.recorded() {
            let attributes = vec![KeyValue::new("error.type", reason), text("feedlens.detail", detail)];
            context.span().add_event("retry", attributes);
        }
    }

    /// It failed: the reason as in the metrics, and a sentence for a person.
    pub fn fail(&self, reason: &'static str, detail: &str) {
        if let Some(context) = self.recorded() {
            let span = context.span();
            span.set_attribute(KeyValue::new("error.type", reason));
            span.set_status(Status::error(shortened(detail, SHOWN).into_owned()));
        }
    }

    /// Headers for a message that is sent because of it; none where traces are off.
    pub fn headers(&self) -> Vec<(String, Option<Vec<u8>>)> {
        let Some(context) = &self.0 else { return Vec::new() };
        let span = context.span();
        let headers = w3c::headers(span.span_context());
        headers.map(|(name, value)| (name.to_owned(), Some(value.into_bytes()))).collect()
    }

    /// Ends it now, however many clones there are.
    pub fn end(&self) {
        if let Some(context) = self.recorded() {
            context.span().end();
        }
    }

    fn recorded(&self) -> Option<&Context> {
        self.0.as_ref().filter(|context| context.span().span_context().is_sampled())
    }
}
