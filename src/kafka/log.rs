//! What becomes of librdkafka's log lines.

use rdkafka::config::RDKafkaLogLevel;

/// The one warning of librdkafka's that no error event repeats. A group without commits starts without it.
pub(super) fn is_offset_reset(level: RDKafkaLogLevel, facility: &str) -> bool {
    facility == "OFFSET" && matches!(level, RDKafkaLogLevel::Warning)
}

/// librdkafka repeats itself for as long as a broker is away; what matters arrives as an error event too, and is
/// logged once by [`super::SourceStatus::failed`].
pub(super) fn line(level: RDKafkaLogLevel, facility: &str, message: &str) {
    match level {
        RDKafkaLogLevel::Emerg | RDKafkaLogLevel::Alert | RDKafkaLogLevel::Critical => {
            tracing::error!(target: "librdkafka", facility, "{message}");
        }
        _ if is_offset_reset(level, facility) => tracing::warn!(
            target: "librdkafka",
            "messages were gone before they were read and will not be indexed: {message}; look at the topic's retention"
        ),
        _ => tracing::debug!(target: "librdkafka", facility, "{message}"),
    }
}
