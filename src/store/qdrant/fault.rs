//! Errors of the client and the server, by what the caller does with them.

use std::time::Duration;

use qdrant_client::QdrantError;
use tonic::Code;

use crate::config::Secret;
use crate::config::secret::has_userinfo;
use crate::error::{Fault, Outage, Reason};
use crate::store::QdrantConfig;

/// Turns errors into faults, and keeps the API key out of every text.
#[derive(Debug)]
pub(super) struct Faults {
    server: String,
    api_key: Secret,
}

impl Faults {
    /// # Errors
    /// [`Fault::Fatal`] where the configured address is none.
    pub fn new(config: &QdrantConfig) -> Result<Self, Fault> {
        let wrong = |what: &str| {
            Fault::fatal(format!(
                "store.qdrant.url is not the address of a Qdrant server ({what}); write it as http://host:6334 or \
                 https://host:6334, the gRPC port"
            ))
        };
        let url = url::Url::parse(&config.url).map_err(|error| wrong(&error.to_string()))?;
        if !["http", "https"].contains(&url.scheme()) {
            return Err(wrong("neither http:// nor https://"));
        }
        let host = url.host_str().ok_or_else(|| wrong("no host"))?;
        if has_userinfo(&url) {
            return Err(wrong("a user or password in it is never sent; set store.qdrant.api_key"));
        }
        let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
        Ok(Self { server: format!("{}://{host}{port}", url.scheme()), api_key: config.api_key.clone() })
    }

    /// The server, for people.
    pub fn server(&self) -> &str {
        &self.server
    }

    /// Of an error before anything was served: there is nothing to wait for, a person should see it.
    pub fn at_start(&self, action: &str, error: &QdrantError) -> Fault {
        let detail = self.detail(action, error);
        Fault::fatal(match code(error) {
            _ if is_forbidden(error) => {
                format!("{detail}; set store.qdrant.api_key to a key that may do this")
            }
            Some(Code::InvalidArgument | Code::AlreadyExists | Code::NotFound) => detail,
            _ => format!("{detail}; check store.qdrant.url, and that the server runs"),
        })
    }

    /// Of an error while serving. A full disk, a limit of the collection and revoked credentials only delay, as an outage
    /// does: a person can mend them, and no post is at fault. A collection that is gone is no outage: only a new start
    /// makes it anew.
    pub fn at_run_time(&self, action: &str, error: &QdrantError) -> Fault {
        let detail = self.detail(action, error);
        // Not of a bad request, which may show what a post says.
        if code(error) != Some(Code::InvalidArgument) && no_space(&detail) {
            let way_out = "the disk of the server is full; writes go on by themselves once it has room";
            return Fault::retry(Outage::StoreNoSpace, format!("{detail}; {way_out}"));
        }
        if let QdrantError::ResourceExhaustedError { retry_after_seconds, .. } = error {
            let after = Some(Duration::from_secs(*retry_after_seconds));
            return Fault::Retry { outage: Outage::StoreLimit, detail, after };
        }
        if matches!(error, QdrantError::ConversionError(_) | QdrantError::JsonToPayload(_)) {
            return Fault::reject(Reason::StoreRejected, detail);
        }
        match code(error) {
            Some(Code::ResourceExhausted) => Fault::retry(Outage::StoreLimit, detail),
            Some(Code::InvalidArgument) if limit_reached(&detail) => {
                let way_out = "raise that limit of the collection's strict mode or remove points, and writes go on by \
                               themselves";
                Fault::retry(Outage::StoreLimit, format!("{detail}; {way_out}"))
            }
            Some(Code::InvalidArgument) => Fault::reject(Reason::StoreRejected, detail),
            Some(Code::NotFound) => Fault::fatal(format!(
                "{detail}; the collection is gone: start again to make it anew, and index the posts again"
            )),
            _ if is_forbidden(error) => {
                let way_out = "store.qdrant.api_key is no longer accepted for this: let the server accept it again, or \
                               start this worker again with another key";
                Fault::retry(Outage::StoreUnauthorized, format!("{detail}; {way_out}"))
            }
            _ => Fault::retry(Outage::Store, detail),
        }
    }

    fn detail(&self, action: &str, error: &QdrantError) -> String {
        let text = match error {
            // The client's own text for these lists every header.
            QdrantError::ResponseError { status } | QdrantError::ResourceExhaustedError { status, .. } => {
                format!("{} ({:?})", status.message(), status.code())
            }
            other => other.to_string(),
        };
        let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
        let text = match self.api_key.expose() {
            "" => text,
            key => text.replace(key, "********"),
        };
        format!("cannot {action} qdrant at {}: {text}", self.server)
    }
}

/// In the server's own words (before it would write to a disk that is nearly full), or in the system's.
fn no_space(detail: &str) -> bool {
    ["No space left on device", "Disk quota exceeded"].iter().any(|words| detail.contains(words))
}

/// A limit of strict mode on the whole collection or server (points, bytes, percent of disk and memory) is told as a bad
/// request, as a limit on one request is: only the words differ (Qdrant 1.18, `collection/src/operations/verification`).
fn limit_reached(detail: &str) -> bool {
    (detail.contains("limit of ") && detail.contains(" reached!"))
        || detail.contains("exceeding the configured limit of ")
}

/// Whether the server does not accept the API key, or not for this.
pub(super) fn is_forbidden(error: &QdrantError) -> bool {
    matches!(code(error), Some(Code::Unauthenticated | Code::PermissionDenied))
}

fn code(error: &QdrantError) -> Option<Code> {
    match error {
        QdrantError::ResponseError { status } | QdrantError::ResourceExhaustedError { status, .. } => {
            Some(status.code())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use tonic::Status;
    use tonic::metadata::MetadataValue;

    use super::*;

    fn faults(url: &str) -> Result<Faults, Fault> {
        Faults::new(&QdrantConfig {
            url: url.to_owned(),
            api_key: Secret::new("s3cr3t"),
            timeout: Duration::from_secs(1),
            connect_timeout: Duration::from_secs(1),
            shards: 1,
            replicas: 1,
            vectors_on_disk: false,
            payload_on_disk: true,
        })
    }

    #[test]
    fn outages_are_retried_and_never_blamed_on_a_post() {
        let faults = faults("http://localhost:6334").expect("an address");
        for code in [
            Code::Unavailable,
            Code::Cancelled,
            Code::DeadlineExceeded,
            Code::Aborted,
            Code::Internal,
            Code::Unknown,
            Code::FailedPrecondition,
        ] {
            let fault = faults.at_run_time("write to", &Status::new(code, "no").into());
            assert!(matches!(fault, Fault::Retry { outage: Outage::Store, after: None, .. }), "{code:?}: {fault:?}");
        }
        for (code, says, expected) in [
            (Code::ResourceExhausted, "no", Outage::StoreLimit),
            (Code::InvalidArgument, "Wrong input: Max points count limit of 5 reached!", Outage::StoreLimit),
            (
                Code::InvalidArgument,
                "Disk usage is at 91% of total capacity, exceeding the configured limit of 90%. Help: Reduce",
                Outage::StoreLimit,
            ),
            (Code::Unauthenticated, "no", Outage::StoreUnauthorized),
            (Code::PermissionDenied, "no", Outage::StoreUnauthorized),
            (Code::Internal, "Service internal error: No space left on device: WAL", Outage::StoreNoSpace),
            (Code::Unknown, "Disk quota exceeded (os error 122)", Outage::StoreNoSpace),
        ] {
            let fault = faults.at_run_time("write to", &Status::new(code, says).into());
            let Fault::Retry { outage, detail, after: None } = fault else { panic!("{code:?} {says}: {fault:?}") };
            assert_eq!(outage, expected, "{code:?} {says}");
            assert!(detail.contains(says), "{detail}");
        }
    }

    #[test]
    fn delay_that_the_server_asks_for_is_kept() {
        let mut status = Status::resource_exhausted("slow down");
        status.metadata_mut().insert("retry-after", MetadataValue::from_static("7"));
        let fault = faults("http://localhost:6334").expect("an address").at_run_time("write to", &status.into());
        assert!(matches!(fault, Fault::Retry { after: Some(after), .. } if after.as_secs() == 7), "{fault:?}");
        assert!(matches!(fault, Fault::Retry { outage: Outage::StoreLimit, .. }), "{fault:?}");
    }

    #[test]
    fn invalid_request_is_rejected_and_missing_collection_is_fatal() {
        let faults = faults("http://localhost:6334").expect("an address");
        // The second is a limit on one request: a smaller one passes.
        for says in ["no", "Limit exceeded 128 > 100 for \"upsert limit\". Help: Reduce the \"upsert limit\""] {
            let fault = faults.at_run_time("write to", &Status::invalid_argument(says).into());
            assert!(matches!(fault, Fault::Reject { reason: Reason::StoreRejected, .. }), "{fault:?}");
        }
        let fault = faults.at_run_time("write to", &Status::not_found("no").into());
        assert!(matches!(fault, Fault::Fatal(_)), "{fault:?}");
    }

    #[test]
    fn api_key_is_in_no_text() {
        let faults = faults("http://localhost:6334/?key=s3cr3t").expect("an address");
        let error = QdrantError::from(Status::invalid_argument("Malformed API key or token: s3cr3t"));
        for fault in [faults.at_start("reach", &error), faults.at_run_time("write to", &error)] {
            let text = format!("{fault} {fault:?} {faults:?}");
            assert!(!text.contains("s3cr3t"), "{text}");
        }
    }

    #[test]
    fn wrong_address_names_the_key_of_the_configuration() {
        for url in ["localhost:6334", "", "ftp://localhost:6334", "http://", "http://a:b@localhost:6334"] {
            let error = faults(url).expect_err("no address").to_string();
            assert!(error.contains("store.qdrant.url"), "{url}: {error}");
        }
    }
}
