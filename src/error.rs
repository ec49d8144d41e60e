//! Errors by what the caller does with them: reject the item, retry it later, or stop.

use std::time::Duration;

/// Why a post, or a request, can never succeed. Used as the `reason` of a dead letter and as a metric label, so the
/// set is closed and small.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Reason {
    /// The bytes are not a JSON object of the post's (or request's) shape.
    BadJson,
    /// There is no usable `post_id`, or it differs from the message key.
    BadId,
    /// A field has the wrong type, an impossible value, or is too long.
    BadField,
    /// Neither a caption nor an image.
    Empty,
    /// The message, the picture's bytes or its pixels exceed a limit.
    TooLarge,
    /// The picture's bytes are not a picture that can be decoded.
    BadImage,
    /// The picture lies where it may not be fetched from.
    ForbiddenSource,
    /// The picture's source says that it does not exist, or kept failing for longer than the limit.
    ImageUnavailable,
    /// The encoder gives no finite vector for this very item.
    EncodeFailed,
    /// The store says that this very point can never be stored.
    StoreRejected,
}

impl Reason {
    /// Every reason, for metrics that start at zero.
    pub const ALL: [Reason; 10] = [
        Reason::BadJson,
        Reason::BadId,
        Reason::BadField,
        Reason::Empty,
        Reason::TooLarge,
        Reason::BadImage,
        Reason::ForbiddenSource,
        Reason::ImageUnavailable,
        Reason::EncodeFailed,
        Reason::StoreRejected,
    ];

    /// The name in headers, metrics and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Reason::BadJson => "bad_json",
            Reason::BadId => "bad_id",
            Reason::BadField => "bad_field",
            Reason::Empty => "empty",
            Reason::TooLarge => "too_large",
            Reason::BadImage => "bad_image",
            Reason::ForbiddenSource => "forbidden_source",
            Reason::ImageUnavailable => "image_unavailable",
            Reason::EncodeFailed => "encode_failed",
            Reason::StoreRejected => "store_rejected",
        }
    }

    /// The reason of this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| reason.as_str() == name)
    }
}

impl std::fmt::Display for Reason {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(self.as_str())
    }
}

/// What is out of order for now. A metric label (`posts_retried_total{reason}`), so the set is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Outage {
    /// The picture's host does not answer, or answers 429 / 5xx; `images.root` cannot be read.
    ImageHost,
    /// The vector store does not answer, or says that it cannot serve now.
    Store,
    /// The vector store's disk is full, or a disk quota is used up.
    StoreNoSpace,
    /// A limit that the vector store's operator set is reached: points, bytes, memory, requests a minute.
    StoreLimit,
    /// The vector store no longer accepts this worker's credentials.
    StoreUnauthorized,
    /// The Kafka brokers.
    Broker,
    /// The encoder thread.
    Encoder,
}

impl Outage {
    /// Every outage, for metrics that start at zero.
    pub const ALL: [Outage; 7] = [
        Outage::ImageHost,
        Outage::Store,
        Outage::StoreNoSpace,
        Outage::StoreLimit,
        Outage::StoreUnauthorized,
        Outage::Broker,
        Outage::Encoder,
    ];

    /// The name in metrics and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Outage::ImageHost => "image_host",
            Outage::Store => "store",
            Outage::StoreNoSpace => "store_no_space",
            Outage::StoreLimit => "store_limit",
            Outage::StoreUnauthorized => "store_unauthorized",
            Outage::Broker => "broker",
            Outage::Encoder => "encoder",
        }
    }
}

/// An error, by what the caller does.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Fault {
    /// This item can never succeed: dead-letter it (ingest) or answer with a client error (query).
    #[error("{detail}")]
    Reject {
        /// The closed-set reason.
        reason: Reason,
        /// One sentence for a person; names the thing and the way out.
        detail: String,
    },
    /// It cannot be done now: try again, after `after` where the other side named a delay.
    #[error("{detail}")]
    Retry {
        /// What is out of order.
        outage: Outage,
        /// One sentence for a person.
        detail: String,
        /// The delay that the other side asked for.
        after: Option<Duration>,
    },
    /// Going on is wrong (configuration, credentials, a broken invariant): stop and say why.
    #[error("{0}")]
    Fatal(String),
}

impl Fault {
    /// A [`Fault::Reject`].
    pub fn reject(reason: Reason, detail: impl Into<String>) -> Self {
        Fault::Reject { reason, detail: detail.into() }
    }

    /// A [`Fault::Retry`] without a delay of the other side's.
    pub fn retry(outage: Outage, detail: impl Into<String>) -> Self {
        Fault::Retry { outage, detail: detail.into(), after: None }
    }

    /// A [`Fault::Fatal`].
    pub fn fatal(detail: impl Into<String>) -> Self {
        Fault::Fatal(detail.into())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// The outcome is a rejection for this reason, and its detail mentions this.
    #[track_caller]
    pub(crate) fn assert_rejected<T: std::fmt::Debug>(outcome: Result<T, Fault>, expected: Reason, mentions: &str) {
        match outcome {
            Err(Fault::Reject { reason, detail }) => {
                assert_eq!(reason, expected, "{detail}");
                assert!(detail.contains(mentions), "{detail:?} does not mention {mentions:?}");
            }
            other => panic!("expected {expected}, got {other:?}"),
        }
    }
}
