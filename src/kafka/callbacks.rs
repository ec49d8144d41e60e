//! What librdkafka tells its clients: rebalances and outcomes of commits as events, errors, logs.

use std::collections::{BTreeSet, VecDeque};
use std::error::Error;
use std::ffi::{CStr, CString};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rdkafka::client::{Client, ClientContext, OAuthToken};
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use rdkafka::types::RDKafkaRespErr;
use rdkafka_sys as sys;

use super::KafkaConfig;
use super::log;
use super::oauth::OauthConfig;
use super::status::SourceStatus;

/// What the callbacks of a consumer saw; the poll thread acts on it after each poll.
#[derive(Debug)]
pub(super) enum Event {
    /// These are given to us: librdkafka waits until [`Callbacks::take`] is called.
    Assigned(TopicPartitionList),
    /// These are to be given back: librdkafka waits until [`Callbacks::give_back`] is called.
    Revoked(TopicPartitionList),
    /// Messages were gone before they were read (the topic's retention, or a topic made anew): the consumer went on
    /// elsewhere.
    OffsetReset,
    /// A commit came back, as a whole and for each partition.
    Committed { error: Option<KafkaError>, outcomes: Vec<CommitOutcome> },
}

/// The outcome of a commit for one partition.
#[derive(Debug)]
pub(super) struct CommitOutcome {
    pub topic: String,
    pub partition: i32,
    pub result: Result<i64, KafkaError>,
}

/// Callbacks of every client; those of rebalances and commits become [`Event`]s.
pub(super) struct Callbacks {
    status: Arc<SourceStatus>,
    oauth: OauthConfig,
    events: Mutex<VecDeque<Event>>,
    closing: std::sync::atomic::AtomicBool,
}

impl Callbacks {
    pub(super) fn new(status: Arc<SourceStatus>, config: &KafkaConfig) -> Self {
        Self { status, oauth: config.oauth.clone(), events: Mutex::default(), closing: false.into() }
    }

    pub(super) fn next_event(&self) -> Option<Event> {
        self.events().pop_front()
    }

    /// From here on partitions are given back at once: nobody drains any more.
    pub(super) fn close(&self) {
        self.closing.store(true, std::sync::atomic::Ordering::Relaxed);
    }

    /// Tells librdkafka that we read the assigned partitions, from the offsets in the list where it has some. Whether it
    /// agrees.
    pub(super) fn take(consumer: &BaseConsumer<Self>, partitions: &TopicPartitionList) -> bool {
        let result = if is_cooperative(consumer) {
            consumer.incremental_assign(partitions)
        } else {
            consumer.assign(partitions)
        };
        if let Err(error) = &result {
            tracing::error!(%error, "could not take partitions");
        }
        result.is_ok()
    }

    /// Tells librdkafka that the revoked partitions are let go, so that the rebalance goes on.
    pub(super) fn give_back(consumer: &BaseConsumer<Self>, partitions: &TopicPartitionList) {
        let result =
            if is_cooperative(consumer) { consumer.incremental_unassign(partitions) } else { consumer.unassign() };
        if let Err(error) = result {
            tracing::warn!(%error, "could not give partitions back");
        }
    }

    /// Asks for a commit; its outcome comes as [`Event::Committed`].
    ///
    /// rdkafka's own asynchronous commit tells nobody how it went: librdkafka sends the outcome to the queue that the
    /// caller names, and rdkafka names none.
    pub(super) fn commit(consumer: &BaseConsumer<Self>, offsets: &TopicPartitionList) -> KafkaResult<()> {
        let client = consumer.client().native_ptr();
        // SAFETY: the client and the list are alive; the queue is the one that `poll` reads, its reference is given back
        // at once, and librdkafka holds its own for the answer. Without a callback the answer is an event.
        let code = unsafe {
            let queue = sys::rd_kafka_queue_get_consumer(client);
            let code = sys::rd_kafka_commit_queue(client, offsets.ptr(), queue, None, std::ptr::null_mut());
            sys::rd_kafka_queue_destroy(queue);
            code
        };
        match code {
            RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR => Ok(()),
            code => Err(KafkaError::ConsumerCommit(code.into())),
        }
    }

    fn events(&self) -> MutexGuard<'_, VecDeque<Event>> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_cooperative(consumer: &BaseConsumer<Callbacks>) -> bool {
    matches!(consumer.rebalance_protocol(), rdkafka::consumer::RebalanceProtocol::Cooperative)
}

impl ClientContext for Callbacks {
    const ENABLE_REFRESH_OAUTH_TOKEN: bool = true;

    fn generate_oauth_token(&self, _: Option<&str>) -> Result<OAuthToken, Box<dyn Error>> {
        self.oauth.token()
    }

    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        if log::is_offset_reset(level, facility) {
            self.events().push_back(Event::OffsetReset);
        }
        log::line(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        // `follow` asks for the ends of partitions, which come by this way too.
        if error.rdkafka_error_code() != Some(RDKafkaErrorCode::PartitionEOF) {
            self.status.failed(&error, reason);
        }
    }
}

impl ConsumerContext for Callbacks {
    fn rebalance(&self, consumer: &BaseConsumer<Self>, kind: RDKafkaRespErr, partitions: &mut TopicPartitionList) {
        let closing = self.closing.load(std::sync::atomic::Ordering::Relaxed);
        if kind == RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS {
            if closing {
                Self::take(consumer, partitions);
            } else {
                self.events().push_back(Event::Assigned(partitions.clone()));
            }
        } else if closing {
            Self::give_back(consumer, partitions);
        } else {
            self.events().push_back(Event::Revoked(partitions.clone()));
        }
    }

    fn commit_callback(&self, result: KafkaResult<()>, offsets: &TopicPartitionList) {
        let outcomes = offsets
            .elements()
            .iter()
            .filter_map(|element| {
                let Offset::Offset(offset) = element.offset() else { return None };
                // rdkafka names every error of a list after fetching; these come from a commit.
                let own = element.error().map_err(|error| match error {
                    KafkaError::OffsetFetch(code) => KafkaError::ConsumerCommit(code),
                    other => other,
                });
                let result = result.clone().and(own).map(|()| offset);
                Some(CommitOutcome { topic: element.topic().to_owned(), partition: element.partition(), result })
            })
            .collect();
        self.events().push_back(Event::Committed { error: result.err(), outcomes });
    }
}

/// Callbacks of a producer: its errors reach the sender of each message, so here they are only logged, each once until
/// something is delivered again.
#[derive(Clone)]
pub(super) struct ProducerCallbacks {
    oauth: OauthConfig,
    reported: Arc<Mutex<BTreeSet<String>>>,
}

impl ProducerCallbacks {
    pub(super) fn new(config: &KafkaConfig) -> Self {
        Self { oauth: config.oauth.clone(), reported: Arc::default() }
    }

    /// Gives an admin client its token: nobody polls the queue on which librdkafka would ask for it. Blocks.
    ///
    /// # Errors
    /// The endpoint gives none, or librdkafka does not take it.
    pub(super) fn authenticate(&self, client: &Client<Self>) -> Result<(), String> {
        let token = self.oauth.token().map_err(|error| error.to_string())?;
        let text = |text: String| CString::new(text).map_err(|error| error.to_string());
        let (lifetime, principal, token) = (token.lifetime_ms, text(token.principal_name)?, text(token.token)?);
        let mut reason = [0; 256];
        // SAFETY: the client and the texts are alive; librdkafka copies the texts, and writes at most so many bytes of the
        // reason, with a NUL at its end.
        let code = unsafe {
            sys::rd_kafka_oauthbearer_set_token(
                client.native_ptr(),
                token.as_ptr(),
                lifetime,
                principal.as_ptr(),
                std::ptr::null_mut(),
                0,
                reason.as_mut_ptr(),
                reason.len(),
            )
        };
        match code {
            RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR => Ok(()),
            // SAFETY: written above, or still all NULs.
            _ => Err(unsafe { CStr::from_ptr(reason.as_ptr()) }.to_string_lossy().into_owned()),
        }
    }

    /// A message was acknowledged: the next error is news again.
    pub(super) fn delivered(&self) {
        self.reported.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

impl ClientContext for ProducerCallbacks {
    const ENABLE_REFRESH_OAUTH_TOKEN: bool = true;

    fn generate_oauth_token(&self, _: Option<&str>) -> Result<OAuthToken, Box<dyn Error>> {
        self.oauth.token()
    }

    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        log::line(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        let kind = error.to_string();
        if self.reported.lock().unwrap_or_else(PoisonError::into_inner).insert(kind) {
            tracing::warn!(%error, reason, "kafka producer");
        }
    }
}
