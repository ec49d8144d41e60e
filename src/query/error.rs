//! Why a search has no answer, as its sender is told.

use std::time::Duration;

use serde::Serialize;
use serde_json::{Value, json};
use utoipa::ToSchema;

use crate::error::{Fault, Outage, Reason};

/// The closed set of codes; each has one HTTP status.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// The request is not of the contract's shape.
    BadRequest,
    /// No API key, or none that is known.
    Unauthorized,
    /// A page of another origin asks for what only its own pages may.
    Forbidden,
    /// There is nothing at this address.
    NotFound,
    /// There is something at this address, for another method.
    MethodNotAllowed,
    /// The body, the topic or the picture exceeds a limit.
    TooLarge,
    /// The shape is right and yet it can never be answered: a picture that is none, a forbidden address.
    Unprocessable,
    /// Too many searches at a time.
    Overloaded,
    /// More requests than this API key may send.
    RateLimited,
    /// The store or the encoder is out of order, or took too long.
    Unavailable,
    /// A defect of this program.
    Internal,
}

impl ErrorCode {
    /// The name in answers.
    pub fn as_str(self) -> &'static str {
        match self {
            ErrorCode::BadRequest => "bad_request",
            ErrorCode::Unauthorized => "unauthorized",
            ErrorCode::Forbidden => "forbidden",
            ErrorCode::NotFound => "not_found",
            ErrorCode::MethodNotAllowed => "method_not_allowed",
            ErrorCode::TooLarge => "too_large",
            ErrorCode::Unprocessable => "unprocessable",
            ErrorCode::Overloaded => "overloaded",
            ErrorCode::RateLimited => "rate_limited",
            ErrorCode::Unavailable => "unavailable",
            ErrorCode::Internal => "internal",
        }
    }

    /// The HTTP status.
    pub fn status(self) -> u16 {
        match self {
            ErrorCode::BadRequest => 400,
            ErrorCode::Unauthorized => 401,
            ErrorCode::Forbidden => 403,
            ErrorCode::NotFound => 404,
            ErrorCode::MethodNotAllowed => 405,
            ErrorCode::TooLarge => 413,
            ErrorCode::Unprocessable => 422,
            ErrorCode::Overloaded | ErrorCode::RateLimited => 429,
            ErrorCode::Unavailable => 503,
            ErrorCode::Internal => 500,
        }
    }

    /// The `outcome` label of `searches_total`.
    pub fn outcome(self) -> &'static str {
        match self {
            ErrorCode::Overloaded => "overloaded",
            ErrorCode::Unavailable | ErrorCode::Internal => "unavailable",
            _ => "rejected",
        }
    }
}

/// An error as it is answered.
#[derive(Debug, Serialize, ToSchema)]
pub struct ErrorResponse<'a> {
    /// What is wrong.
    pub error: ErrorBody<'a>,
}

/// What is wrong.
#[derive(Debug, Serialize, ToSchema)]
pub struct ErrorBody<'a> {
    /// What kind.
    pub code: ErrorCode,
    /// One sentence for a person; names the thing and the way out.
    pub message: &'a str,
}

/// A search without an answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct SearchError {
    /// What kind.
    pub code: ErrorCode,
    /// One sentence for a person; names the thing and the way out.
    pub message: String,
    /// When trying again makes sense.
    pub retry_after: Option<Duration>,
}

impl SearchError {
    /// An error without a delay.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), retry_after: None }
    }

    /// [`ErrorCode::BadRequest`].
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::BadRequest, message)
    }

    /// An error that passes: 429 or 503, with a `Retry-After`.
    pub fn for_now(code: ErrorCode, message: impl Into<String>, retry_after: Duration) -> Self {
        Self { code, message: message.into(), retry_after: Some(retry_after) }
    }

    /// `{"error": {"code": "...", "message": "..."}}`
    pub fn to_json(&self) -> Value {
        json!(ErrorResponse { error: ErrorBody { code: self.code, message: &self.message } })
    }
}

impl From<Fault> for SearchError {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Reject { reason, detail } => Self::new(
                match reason {
                    Reason::TooLarge => ErrorCode::TooLarge,
                    Reason::BadJson | Reason::BadId | Reason::BadField | Reason::Empty => ErrorCode::BadRequest,
                    Reason::BadImage | Reason::ForbiddenSource | Reason::ImageUnavailable | Reason::EncodeFailed => {
                        ErrorCode::Unprocessable
                    }
                    // What the store is asked is made here, of a request that was found good.
                    Reason::StoreRejected => ErrorCode::Internal,
                },
                detail,
            ),
            // A picture's host belongs to whoever named it. As 503 it would let one bad link count as our outage, and a
            // load balancer would take a healthy worker out.
            Fault::Retry { outage: Outage::ImageHost, detail, after } => {
                Self { code: ErrorCode::Unprocessable, message: detail, retry_after: after }
            }
            Fault::Retry { detail, after, .. } => Self {
                code: ErrorCode::Unavailable,
                message: detail,
                retry_after: Some(after.unwrap_or(Duration::from_secs(1))),
            },
            Fault::Fatal(detail) => {
                Self { code: ErrorCode::Unavailable, message: detail, retry_after: Some(Duration::from_secs(5)) }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dead_picture_host_is_the_senders_fault_and_a_dead_store_is_ours() {
        let host = SearchError::from(Fault::retry(Outage::ImageHost, "pictures.example answers 502"));
        assert_eq!((host.code.status(), host.retry_after), (422, None));
        let store = SearchError::from(Fault::retry(Outage::Store, "the store does not answer"));
        assert_eq!((store.code.status(), store.retry_after), (503, Some(Duration::from_secs(1))));
    }

    #[test]
    fn a_search_that_the_store_refuses_is_not_the_senders_fault() {
        let refused = SearchError::from(Fault::reject(Reason::StoreRejected, "wrong vector dimension"));
        assert_eq!((refused.code.status(), refused.code.outcome()), (500, "unavailable"));
    }

    #[test]
    fn the_json_form_is_the_contracts() {
        let error = SearchError::bad_request("topic is empty");
        assert_eq!(error.to_json(), json!({"error": {"code": "bad_request", "message": "topic is empty"}}));
    }
}
