//! How a consumer is: for `/readyz`, for the log, and for the start.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use prometheus::IntCounterVec;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};

use super::security::Refusal;
use crate::error::{Fault, Outage};

/// A poll thread that has not polled for so long hangs: it polls several times a second, and waits for nothing longer than
/// a request to a broker.
const HUNG_AFTER: Duration = Duration::from_secs(30);

/// Where a worker tells how its consumer is, for `/readyz`; empty until the consumer has started.
#[derive(Debug, Clone, Default)]
pub struct StatusSlot(Arc<OnceLock<Arc<SourceStatus>>>);

impl StatusSlot {
    /// Tells; only the first telling counts.
    pub fn fill(&self, status: Arc<SourceStatus>) {
        let _ = self.0.set(status);
    }

    /// Whether the consumer can do its work.
    ///
    /// # Errors
    /// [`Fault::Retry`] that says why it cannot.
    pub fn ready(&self) -> Result<(), Fault> {
        match self.0.get() {
            None => Err(not_ready("the consumer has not started yet")),
            Some(status) => status.snapshot().ready(),
        }
    }

    /// Whether only a new process helps: the poll thread hangs.
    ///
    /// # Errors
    /// [`Fault::Retry`] that says for how long.
    pub fn alive(&self) -> Result<(), Fault> {
        self.0.get().map_or(Ok(()), |status| status.snapshot().alive())
    }
}

fn not_ready(detail: impl Into<String>) -> Fault {
    Fault::retry(Outage::Broker, detail)
}

/// How a consumer is, kept by its poll thread.
#[derive(Debug)]
pub struct SourceStatus {
    brokers: String,
    /// Errors by kind; `None` before there are metrics.
    errors: Option<IntCounterVec>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    connected: bool,
    /// Whether a broker ever answered. Before that, who starts the client tells what is wrong.
    started: bool,
    assigned: usize,
    paused: usize,
    last_error: Option<String>,
    refusal: Option<(Refusal, String)>,
    last_poll: Option<Instant>,
    reported: BTreeSet<String>,
}

/// [`SourceStatus`] at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StatusSnapshot {
    /// Whether some broker answered and not all of them have been away since.
    pub connected: bool,
    /// Partitions assigned to this consumer; 0 while the group settles, and in a group with more members than partitions.
    pub assigned: usize,
    /// Partitions paused for lack of room downstream.
    pub paused: usize,
    /// The last error of the brokers, the network or the group; cleared when the brokers answer again and when partitions
    /// are assigned.
    pub last_error: Option<String>,
    /// What the brokers refuse and what to do about it, while they do.
    pub refusal: Option<String>,
    /// Time since the last poll; more than seconds means that the poll thread hangs.
    pub since_poll: Option<Duration>,
}

impl StatusSnapshot {
    /// Whether the consumer can do its work. One without partitions can: the group settles, or has more members than there
    /// are partitions.
    ///
    /// # Errors
    /// [`Fault::Retry`]: the brokers refuse this worker, none answers, or the poll thread hangs.
    pub fn ready(&self) -> Result<(), Fault> {
        if let Some(refusal) = &self.refusal {
            return Err(not_ready(format!("the brokers refuse this worker: {refusal}")));
        }
        if !self.connected {
            let reason = self.last_error.as_deref().unwrap_or("none has answered yet");
            return Err(not_ready(format!("no broker answers: {reason}")));
        }
        self.alive()
    }

    fn alive(&self) -> Result<(), Fault> {
        match self.since_poll {
            Some(since) if since > HUNG_AFTER => {
                Err(not_ready(format!("the poll thread hangs since {} s; start this worker again", since.as_secs())))
            }
            _ => Ok(()),
        }
    }
}

impl SourceStatus {
    pub(super) fn new(brokers: &str, errors: Option<IntCounterVec>) -> Arc<Self> {
        Arc::new(Self { brokers: brokers.to_owned(), errors, state: Mutex::default() })
    }

    /// The present state.
    pub fn snapshot(&self) -> StatusSnapshot {
        let state = self.lock();
        StatusSnapshot {
            connected: state.connected,
            assigned: state.assigned,
            paused: state.paused,
            last_error: state.last_error.clone(),
            refusal: state.refusal.as_ref().map(|(kind, reason)| format!("{reason}; {}", kind.way_out())),
            since_poll: state.last_poll.map(|polled| polled.elapsed()),
        }
    }

    pub(super) fn last_error(&self) -> Option<String> {
        self.lock().last_error.clone()
    }

    pub(super) fn refusal(&self) -> Option<String> {
        self.snapshot().refusal
    }

    pub(super) fn polled(&self) {
        self.lock().last_poll = Some(Instant::now());
    }

    pub(super) fn set_partitions(&self, assigned: usize, paused: usize) {
        let mut state = self.lock();
        state.assigned = assigned;
        state.paused = paused;
    }

    /// A broker answered a question about our topics.
    pub(super) fn recovered(&self) {
        let mut state = self.lock();
        // Nobody asked about the group; what it refused stands until it takes us.
        let is_refused = matches!(state.refusal, Some((Refusal::Group, _)));
        if state.connected && (is_refused || state.refusal.is_none()) {
            return;
        }
        state.connected = true;
        state.started = true;
        if !is_refused {
            state.refusal = None;
        }
        state.last_error = None;
        state.reported.clear();
        drop(state);
        tracing::info!(brokers = self.brokers, "kafka brokers answer");
    }

    /// The group works: what came before is history, and would be news again.
    pub(super) fn forget_errors(&self) {
        let mut state = self.lock();
        state.refusal = None;
        state.last_error = None;
        state.reported.clear();
    }

    /// A broker, the network or the group gave an error. The same kind is logged once until the brokers recover:
    /// librdkafka repeats it for as long as it lasts.
    pub(super) fn failed(&self, error: &KafkaError, reason: &str) {
        let code = error.rdkafka_error_code();
        let refusal = code.and_then(|code| Refusal::of(code, reason));
        self.count(match (refusal, code) {
            (Some(refusal), _) => refusal.as_str(),
            (None, Some(code)) if is_of_connection(code) => "connection",
            _ => "other",
        });
        let mut state = self.lock();
        if let Some(kind) = refusal {
            state.refusal = Some((kind, reason.to_owned()));
        }
        match code {
            Some(RDKafkaErrorCode::AllBrokersDown) => {
                state.connected = false;
                let reason = state.last_error.get_or_insert_with(|| reason.to_owned()).clone();
                // Brokers that refuse us look alike, and that was told; at the start, who starts the client tells it.
                if state.started && state.refusal.is_none() && state.reported.insert("all brokers down".to_owned()) {
                    tracing::warn!(brokers = self.brokers, reason, "no kafka broker answers; trying on");
                }
            }
            // One of several brokers, or an idle connection that was closed: only all of them together are news.
            Some(code) if refusal.is_none() && is_of_connection(code) => {
                tracing::debug!(reason, "kafka connection");
                state.last_error = Some(reason.to_owned());
            }
            _ => {
                state.last_error = Some(reason.to_owned());
                if state.reported.insert(error.to_string()) {
                    match refusal {
                        Some(_) if !state.started => tracing::debug!(reason, "refused at the start"),
                        Some(kind) => {
                            tracing::error!(reason, "the kafka brokers refuse this client: {}", kind.way_out())
                        }
                        None => tracing::warn!(reason, "kafka consumer"),
                    }
                }
            }
        }
    }

    fn count(&self, kind: &str) {
        if let Some(errors) = &self.errors {
            errors.with_label_values(&[kind]).inc();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_of_connection(code: RDKafkaErrorCode) -> bool {
    matches!(
        code,
        RDKafkaErrorCode::BrokerTransportFailure
            | RDKafkaErrorCode::OperationTimedOut
            | RDKafkaErrorCode::AllBrokersDown
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_consumer_without_brokers_or_with_a_hung_thread_is_not_ready() {
        let reason = |status: &StatusSlot| status.ready().expect_err("not ready").to_string();
        let slot = StatusSlot::default();
        assert!(reason(&slot).contains("not started"));
        let status = SourceStatus::new("localhost:9092", None);
        slot.fill(status.clone());
        assert!(reason(&slot).contains("no broker"));
        status.recovered();
        status.polled();
        slot.ready().expect("brokers answer and the thread polls");

        status.failed(&KafkaError::Global(RDKafkaErrorCode::AllBrokersDown), "1/1 brokers are down");
        assert!(reason(&slot).contains("1/1 brokers are down"));
        slot.alive().expect("an outage of the brokers is no reason to start again");
        status.recovered();
        status.lock().last_poll = Some(Instant::now() - HUNG_AFTER - Duration::from_secs(1));
        assert!(reason(&slot).contains("hangs since 31 s"), "{}", reason(&slot));
        assert!(slot.alive().is_err(), "a hung thread is one");
    }

    #[test]
    fn a_refusal_stands_until_what_refused_answers() {
        let status = SourceStatus::new("localhost:9092", None);
        status.recovered();
        let refuse = |code| status.failed(&KafkaError::Global(code), "revoked");
        for (code, way_out) in [
            (RDKafkaErrorCode::SSL, "kafka.ssl_ca"),
            (RDKafkaErrorCode::Authentication, "kafka.sasl_password"),
            (RDKafkaErrorCode::TopicAuthorizationFailed, "DESCRIBE and READ"),
        ] {
            refuse(code);
            let said = status.snapshot().ready().expect_err("refused").to_string();
            assert!(said.contains("revoked") && said.contains(way_out), "{said}");
            status.recovered();
            status.snapshot().ready().expect("answered");
        }
        refuse(RDKafkaErrorCode::GroupAuthorizationFailed);
        status.recovered();
        let said = status.snapshot().ready().expect_err("the topic answered, not the group").to_string();
        assert!(said.contains("consumer group"), "{said}");
        status.forget_errors();
        status.snapshot().ready().expect("assigned");
    }
}
