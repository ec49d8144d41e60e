//! A message copied out of librdkafka's memory.

use std::ffi::CStr;
use std::sync::Arc;

use bytes::Bytes;
use chrono::DateTime;
use opentelemetry::KeyValue;
use opentelemetry::trace::SpanKind;
use rdkafka::message::{BorrowedMessage, Message as _};
use rdkafka_sys as sys;

use super::envelope::{Claim, Envelope, Position, size_of};
use super::source::Partition;
use crate::traces::{Span, span, w3c};

/// A message that has no claim yet.
#[derive(Debug, Clone)]
pub struct Message {
    /// The key; `None` is none, and not an empty one.
    pub key: Option<Vec<u8>>,
    /// The value; `None` is a tombstone.
    pub payload: Option<Bytes>,
    /// The headers in their order.
    pub headers: Vec<(String, Option<Vec<u8>>)>,
    /// When it was written, as its topic counts time.
    pub timestamp: Option<DateTime<chrono::Utc>>,
    /// Where it lies.
    pub position: Position,
    /// What it counts against the budget.
    pub bytes: u64,
}

impl Message {
    pub(super) fn read(message: &BorrowedMessage<'_>, topics: &mut Vec<Arc<str>>) -> Self {
        let headers = headers_of(message);
        Self {
            bytes: size_of(message.key(), message.payload(), &headers),
            key: message.key().map(<[u8]>::to_vec),
            payload: message.payload().map(Bytes::copy_from_slice),
            headers,
            timestamp: message.timestamp().to_millis().and_then(DateTime::from_timestamp_millis),
            position: Position {
                topic: intern(topics, message.topic()),
                partition: message.partition(),
                offset: message.offset(),
            },
        }
    }

    pub(super) fn partition(&self) -> Partition {
        (self.position.topic.clone(), self.position.partition)
    }

    pub(super) fn into_envelope(self, claim: Claim, group: &str) -> Envelope {
        let Self { key, payload, headers, timestamp, position, bytes: _ } = self;
        let mut envelope = Envelope { key, payload, headers, timestamp, position, span: Span::default(), claim };
        envelope.span = span_of(&envelope, group);
        envelope
    }
}

/// What OpenTelemetry's conventions say of a message of Kafka.
fn span_of(envelope: &Envelope, group: &str) -> Span {
    let Position { topic, partition, offset } = &envelope.position;
    let span = Span::begin(
        SpanKind::Consumer,
        || format!("process {topic}").into(),
        || w3c::parent(|name| envelope.header(name)),
    );
    span.set(|| {
        let mut attributes = span::messaging("process", topic);
        attributes.extend([
            KeyValue::new("messaging.consumer.group.name", group.to_owned()),
            KeyValue::new("messaging.destination.partition.id", partition.to_string()),
            KeyValue::new("messaging.kafka.offset", *offset),
        ]);
        let key = envelope.key.as_deref().map(String::from_utf8_lossy);
        attributes.extend(key.map(|key| span::text("messaging.kafka.message.key", &key)));
        attributes
    });
    span
}

/// One shared name for each topic, instead of a copy for each message.
pub(super) fn intern(topics: &mut Vec<Arc<str>>, topic: &str) -> Arc<str> {
    if let Some(known) = topics.iter().find(|known| known.as_ref() == topic) {
        return known.clone();
    }
    let topic = Arc::<str>::from(topic);
    topics.push(topic.clone());
    topic
}

/// rdkafka's own reader of headers panics on a name that is not UTF-8: one such message would end the poll thread, and
/// again after each restart.
fn headers_of(message: &BorrowedMessage<'_>) -> Vec<(String, Option<Vec<u8>>)> {
    let mut list = std::ptr::null_mut();
    // SAFETY: the message is alive for the whole function, and owns the list that is returned.
    let found = unsafe { sys::rd_kafka_message_headers(message.ptr(), &mut list) };
    if found != sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR || list.is_null() {
        return Vec::new();
    }
    // SAFETY: `list` was just given by the living message.
    let count = unsafe { sys::rd_kafka_header_cnt(list) };
    (0..count)
        .filter_map(|index| {
            let (mut name, mut value, mut size) = (std::ptr::null(), std::ptr::null(), 0);
            // SAFETY: as above; the three places live until the call returns.
            let got = unsafe { sys::rd_kafka_header_get_all(list, index, &mut name, &mut value, &mut size) };
            if got != sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR {
                return None;
            }
            // SAFETY: librdkafka ends names with a zero byte.
            let name = unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned();
            // SAFETY: a value that is not null has `size` bytes, owned by the message.
            let value = (!value.is_null()).then(|| unsafe { std::slice::from_raw_parts(value.cast::<u8>(), size) });
            Some((name, value.map(<[u8]>::to_vec)))
        })
        .collect()
}
