//! Requests that come over Kafka: each is answered under its request id, whatever becomes of it, in the topic that its
//! `reply_to` names, or else in the results topic.
//!
//! A request is settled when its answer was acknowledged, so none is lost; after a crash the last few are answered again. What
//! the topic of a requester does not take goes to the results topic, as an error that says why.

mod replies;

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use futures::FutureExt as _;
use serde_json::json;
use tokio::sync::mpsc;
use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use self::replies::Replies;
use crate::backoff::Backoff;
use crate::error::{Fault, Reason};
use crate::kafka::{Envelope, InflightLimits, KafkaConfig, Producer, Source, StatusSlot, Subscription};
use crate::query::error::{ErrorCode, SearchError};
use crate::query::request::{Parsed, SearchRequest};
use crate::query::service::{self, SearchResponse, SearchService};
use crate::traces::Span;

/// Between attempts to send an answer while the brokers are out of order; doubles up to `RETRY_MAX`.
const RETRY_FIRST: Duration = Duration::from_millis(200);
const RETRY_MAX: Duration = Duration::from_secs(10);

/// Answers requests until `shutdown`, then finishes those under way within `query.timeout`.
///
/// # Errors
/// The brokers do not answer at the start, or the results topic cannot be written.
pub async fn run(
    config: &KafkaConfig,
    service: Arc<SearchService>,
    consumer: StatusSlot,
    shutdown: CancellationToken,
) -> Result<()> {
    let query = service.config();
    let (producer, replies) = (Producer::new(config)?, Replies::new(config, query.reply_timeout)?);
    let subscription = Subscription { topics: vec![query.requests_topic.clone()], group: query.group.clone() };
    // As many as are answered at a time, and as many more that wait for their permit while others finish.
    let limits = InflightLimits { posts: 2 * query.max_concurrent, bytes: 4 * query.max_body_bytes };
    let drain = query.timeout;
    let metrics = Arc::clone(service.metrics());
    let (source, requests) = Source::start(config, subscription, limits, drain, metrics).await?;
    consumer.fill(source.status());
    tracing::info!(requests = query.requests_topic, results = query.results_topic, "answering requests over Kafka");
    let worker = Arc::new(Worker { service, producer, replies });
    let mut answering = AbortOnDropHandle::new(tokio::spawn(answer_all(worker, requests)));
    let ended = tokio::select! {
        ended = &mut answering => Some(ended),
        () = shutdown.cancelled() => None,
    };
    // The source waits for all that it handed out, so answering goes on meanwhile.
    let stopped = source.stop(if ended.is_none() { drain } else { Duration::ZERO }).await;
    let is_done = stopped.as_ref().is_ok_and(|report| report.abandoned == 0);
    let ended = match ended {
        None if is_done => Some(answering.await),
        None => answering.now_or_never(),
        ended => ended,
    };
    if let Some(ended) = ended {
        ended.context("answering requests panicked")??;
    }
    let report = stopped?;
    tracing::info!(settled = report.settled, abandoned = report.abandoned, "no more requests are answered over Kafka");
    Ok(())
}

/// Answers until the stream ends and the last answer is sent; at the first failure it gives up.
async fn answer_all(worker: Arc<Worker>, mut requests: mpsc::Receiver<Envelope>) -> Result<()> {
    let mut answering = JoinSet::new();
    loop {
        tokio::select! {
            Some(answered) = answering.join_next() => flatten(answered)?,
            request = requests.recv() => match request {
                Some(request) => { answering.spawn(Arc::clone(&worker).settle(request)); }
                None => break,
            },
        }
    }
    while let Some(answered) = answering.join_next().await {
        flatten(answered)?;
    }
    Ok(())
}

fn flatten(answered: Result<Result<()>, JoinError>) -> Result<()> {
    answered.context("answering a request failed")?
}

struct Worker {
    service: Arc<SearchService>,
    producer: Producer,
    replies: Replies,
}

/// Who asked: what tells the answer apart from those of others.
#[derive(Default)]
struct Asker {
    request_id: Option<String>,
    /// Of the request's message.
    key: Option<Vec<u8>>,
    /// Continue the request's trace.
    headers: Vec<(String, Option<Vec<u8>>)>,
}

impl Asker {
    /// The request id, or else the request's own key.
    fn key(&self) -> Option<&[u8]> {
        self.request_id.as_deref().map(str::as_bytes).or(self.key.as_deref())
    }

    /// The answer's JSON: the hits, or the error in their place.
    fn answer(&self, result: &Result<SearchResponse, SearchError>) -> Vec<u8> {
        let json = match result {
            Ok(response) => serde_json::to_vec(response),
            Err(error) => {
                let mut value = error.to_json();
                value["request_id"] = json!(self.request_id);
                serde_json::to_vec(&value)
            }
        };
        json.expect("answers have string keys and finite numbers. This is a bug.")
    }
}

fn too_large(detail: &str) -> SearchError {
    let message = format!("the answer is too large to be sent, ask for a smaller top_k: {detail}");
    SearchError::new(ErrorCode::TooLarge, message)
}

impl Worker {
    async fn settle(self: Arc<Self>, mut envelope: Envelope) -> Result<()> {
        let parsed = self.parse(&envelope).await;
        let asker = Asker { request_id: parsed.request_id, key: envelope.key.take(), headers: envelope.span.headers() };
        let query = self.service.config();
        let (reply_to, request) = match parsed.reply_to {
            None => (None, parsed.request),
            // Whoever may write requests must not choose where this worker writes.
            Some(named) => match query.reply_topics.iter().find(|known| **known == named) {
                Some(known) => (Some(known).filter(|known| **known != query.results_topic), parsed.request),
                None => {
                    let message = format!("reply_to is {named:?}, which is none of query.reply_topics of this worker");
                    (None, Err(SearchError::bad_request(message)))
                }
            },
        };
        let result = match request {
            Ok(request) => self.search(request, &envelope.span).await,
            Err(error) => {
                self.service.count_rejected(service::Source::Kafka, &error);
                Err(error)
            }
        };
        service::tell_outcome(&envelope.span, &result);
        let result = match reply_to {
            None => result,
            Some(topic) => match self.reply(topic, &asker, &result).await {
                Ok(()) => {
                    envelope.settle();
                    return Ok(());
                }
                Err(error) => Err(error),
            },
        };
        self.answer(&asker, &result).await?;
        envelope.settle();
        Ok(())
    }

    /// Answers in the topic of the requester.
    ///
    /// # Errors
    /// What its requester is to be told in the results topic, for this topic did not take the answer.
    async fn reply(
        &self,
        topic: &str,
        asker: &Asker,
        result: &Result<SearchResponse, SearchError>,
    ) -> Result<(), SearchError> {
        let send = async |result| self.replies.send(topic, asker.key(), &asker.answer(result), &asker.headers).await;
        let sent = match send(result).await {
            Err(Fault::Reject { reason: Reason::TooLarge, detail }) => send(&Err(too_large(&detail))).await,
            sent => sent,
        };
        let Err(fault) = sent else { return Ok(()) };
        let (reason, code) = match fault {
            Fault::Reject { .. } => ("too_large", ErrorCode::TooLarge),
            Fault::Fatal(_) => ("refused", ErrorCode::Unprocessable),
            Fault::Retry { .. } => ("unavailable", ErrorCode::Unavailable),
        };
        self.service.metrics().replies_redirected.with_label_values(&[reason]).inc();
        tracing::warn!(
            topic,
            reason,
            "an answer goes to query.results_topic, for its requester's topic fails: {fault}"
        );
        Err(SearchError::new(code, format!("the answer could not be sent to {topic:?}, named in reply_to: {fault}")))
    }

    /// Answers in the results topic, as often as it takes. What is too large for it even as an error (the request's key is)
    /// goes without what tells it apart.
    async fn answer(&self, asker: &Asker, result: &Result<SearchResponse, SearchError>) -> Result<()> {
        let mut sent = self.send(asker, result).await;
        for asker in [asker, &Asker::default()] {
            let Err(Fault::Reject { reason: Reason::TooLarge, detail }) = &sent else { break };
            tracing::warn!(detail, "an answer is too large for query.results_topic; an error goes in its place");
            sent = self.send(asker, &Err(too_large(detail))).await;
        }
        Ok(sent?)
    }

    /// A panic is a defect, but its sender gets an answer all the same; without one, the request would come again and
    /// again.
    async fn search(&self, request: SearchRequest, span: &Span) -> Result<SearchResponse, SearchError> {
        let (service, span) = (Arc::clone(&self.service), span.clone());
        let searching = tokio::spawn(async move { service.search(request, service::Source::Kafka, &span).await });
        AbortOnDropHandle::new(searching).await.unwrap_or_else(|error| {
            tracing::error!(%error, "a request made the program panic");
            Err(SearchError::new(ErrorCode::Internal, "this request met a defect of feedlens"))
        })
    }

    async fn parse(&self, envelope: &Envelope) -> Parsed {
        let Some(payload) = envelope.payload.clone() else {
            let error = SearchError::bad_request("the message has no value; a request is a JSON object");
            return Parsed { request_id: id_from_key(envelope), reply_to: None, request: Err(error) };
        };
        let service = Arc::clone(&self.service);
        let parsing = tokio::task::spawn_blocking(move || SearchRequest::from_json(&payload, service.config()));
        let mut parsed = parsing.await.expect("parsing does not panic. This is a bug.");
        if parsed.request_id.is_none() {
            parsed.request_id = id_from_key(envelope);
            if let Ok(request) = &mut parsed.request {
                request.request_id.clone_from(&parsed.request_id);
            }
        }
        parsed
    }

    /// An outage of the brokers only delays.
    async fn send(&self, asker: &Asker, result: &Result<SearchResponse, SearchError>) -> Result<(), Fault> {
        let (topic, answer) = (&self.service.config().results_topic, asker.answer(result));
        let mut backoff = Backoff::new(RETRY_FIRST, RETRY_MAX);
        loop {
            match self.producer.send(topic, asker.key(), Some(&answer), &asker.headers).await {
                Ok(_) => return Ok(()),
                Err(Fault::Retry { detail, .. }) => {
                    tracing::warn!(detail, "an answer could not be sent yet");
                    tokio::time::sleep(backoff.next_delay()).await;
                }
                Err(fault) => return Err(fault),
            }
        }
    }
}

fn id_from_key(envelope: &Envelope) -> Option<String> {
    envelope.key.as_deref().and_then(|key| std::str::from_utf8(key).ok()).map(str::to_owned)
}
