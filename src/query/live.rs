//! Standing topics for people and programs: the list, registrations, and matches as they come.

use std::sync::Arc;
use std::time::Duration;

use chrono::{SubsecRound, Utc};
use futures::FutureExt as _;
use futures::future::BoxFuture;
use tokio::sync::broadcast::{self, error::RecvError};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::error::Fault;
use crate::kafka::{Begin, Followed, Producer};
use crate::metrics::Metrics;
use crate::query::error::{ErrorCode, SearchError};
use crate::query::service::{OVERLOAD_DELAY, humantime};
use crate::query::streams::{Client, StreamPlace, Streams};
use crate::standing::{self, Directory, Match, Registration};

/// Matches that a slow client may be behind; then its stream is ended.
const BEHIND: usize = 256;
/// A match with the longest caption, each of its characters escaped.
const MAX_MATCH_BYTES: usize = 1024 * 1024;
/// A registration that was acknowledged is waited for in the list so long.
const IN_LIST: Duration = Duration::from_secs(2);
/// A stream ends after so long at the latest. Whoever still wants it connects again, and is looked at anew.
const LONGEST_STREAM: Duration = Duration::from_secs(10 * 60);

/// What this worker knows of standing topics, and its way to write them.
pub struct Live {
    directory: Arc<Directory>,
    producer: Producer,
    topic: String,
    max_topics: usize,
    matches: broadcast::Sender<Arc<Match>>,
    streams: Arc<Streams>,
    /// A request waits so long for the list to be complete, and for its registration to be acknowledged.
    max_wait: Duration,
    timeout: Duration,
    metrics: Arc<Metrics>,
    shutdown: CancellationToken,
}

/// A client's view of the matches from now on; one of a bounded number.
pub struct MatchStream {
    matches: broadcast::Receiver<Arc<Match>>,
    topic_id: Option<String>,
    /// The worker stops, the client's key is taken away, or the stream is old.
    over: BoxFuture<'static, ()>,
    metrics: Arc<Metrics>,
    _place: StreamPlace,
}

/// What comes next in a stream.
#[derive(Debug, Clone, PartialEq)]
pub enum Next {
    /// A match.
    Match(Arc<Match>),
    /// The client did not keep up and missed so many; nothing comes after it.
    Missed(u64),
}

impl Live {
    /// Begins to read registrations and matches; `None` where `kafka.standing_topic` is empty.
    ///
    /// # Errors
    /// No broker answers, or the topics may not be read.
    pub async fn start(
        config: &Config,
        metrics: Arc<Metrics>,
        shutdown: CancellationToken,
    ) -> Result<Option<Arc<Self>>, Fault> {
        let (kafka, max_topics) = (&config.kafka, config.ingest.max_standing_topics);
        if kafka.standing_topic.is_empty() {
            return Ok(None);
        }
        standing::create_topics(config).await;
        let directory = Directory::start(kafka, max_topics, metrics.clone()).await?;
        let told = standing::follow(kafka, &kafka.matches_topic, Begin::Latest, MAX_MATCH_BYTES).await?;
        let (matches, _) = broadcast::channel(BEHIND);
        tokio::spawn(pass_on(told, matches.clone(), shutdown.clone()));
        let query = &config.query;
        Ok(Some(Arc::new(Self {
            directory,
            producer: Producer::new(kafka)?,
            topic: kafka.standing_topic.clone(),
            max_topics,
            matches,
            streams: Streams::new(query, metrics.match_streams.clone()),
            max_wait: query.max_wait,
            timeout: query.timeout,
            metrics,
            shutdown,
        })))
    }

    /// Before the list is complete nobody may be told what is in it, and no topic may be taken for a new one.
    async fn complete(&self) -> Result<(), SearchError> {
        tokio::time::timeout(self.max_wait, self.directory.is_complete()).await.map_err(|_| {
            let message = "the standing topics are still being read from Kafka; try again in a moment";
            SearchError::for_now(ErrorCode::Unavailable, message, OVERLOAD_DELAY)
        })
    }

    /// All standing topics, by their ids.
    ///
    /// # Errors
    /// 503 as long as they are being read.
    pub async fn topics(&self) -> Result<Arc<[Arc<Registration>]>, SearchError> {
        self.complete().await?;
        Ok(self.directory.topics())
    }

    /// Registers a topic, or changes the one with its id, which keeps the time of its first registration. When it returns,
    /// the brokers have it, and mostly so does the list.
    ///
    /// # Errors
    /// 422 where there are too many topics, 503 where the brokers do not take it now.
    pub async fn register(&self, mut registration: Registration) -> Result<Registration, SearchError> {
        self.complete().await?;
        let known = self.directory.get(&registration.topic_id);
        if known.is_none() && self.directory.is_full() {
            let message = format!(
                "there are {} standing topics already (ingest.max_standing_topics); delete one first",
                self.max_topics
            );
            return Err(SearchError::new(ErrorCode::Unprocessable, message));
        }
        registration.created_at =
            known.and_then(|known| known.created_at).or_else(|| Some(Utc::now().trunc_subsecs(3)));
        self.write(&registration.topic_id, Some(&registration.to_json())).await?;
        Ok(registration)
    }

    /// Removes a topic; there may be none of this id.
    ///
    /// # Errors
    /// 503 where the brokers do not take it now.
    pub async fn remove(&self, topic_id: &str) -> Result<(), SearchError> {
        self.complete().await?;
        self.write(topic_id, None).await
    }

    async fn write(&self, topic_id: &str, value: Option<&[u8]>) -> Result<(), SearchError> {
        let sending = self.producer.send(&self.topic, Some(topic_id.as_bytes()), value, &[]);
        let (partition, offset) = tokio::time::timeout(self.timeout, sending).await.map_err(|_| {
            let (topic, timeout) = (&self.topic, humantime(self.timeout));
            let message =
                format!("topic {topic} took no registration within {timeout}; it may yet come there, send it again");
            SearchError::for_now(ErrorCode::Unavailable, message, OVERLOAD_DELAY)
        })??;
        // Who asks for the list next wants to see it there. That it is registered does not depend on it.
        let _ = tokio::time::timeout(IN_LIST, self.directory.has_read(partition, offset)).await;
        Ok(())
    }

    /// The matches from now on, of one topic or of all.
    ///
    /// # Errors
    /// 429 where `query.max_streams` are open, or this client has its share; 503 as long as the topics are being read.
    pub async fn stream(&self, topic_id: Option<String>, client: Client) -> Result<MatchStream, SearchError> {
        let place = self.streams.take(&client)?;
        self.complete().await?;
        Ok(MatchStream {
            matches: self.matches.subscribe(),
            topic_id,
            over: over(client, self.shutdown.clone()).boxed(),
            metrics: self.metrics.clone(),
            _place: place,
        })
    }
}

/// When a stream ends.
async fn over(client: Client, shutdown: CancellationToken) {
    let removed = async {
        match &client {
            Client::Key(accepted) => accepted.is_removed().await,
            Client::Address(_) => std::future::pending().await,
        }
    };
    tokio::select! {
        () = shutdown.cancelled() => {}
        () = removed => {}
        () = tokio::time::sleep(LONGEST_STREAM) => {}
    }
}

impl MatchStream {
    /// Whether it has missed matches, or will with the next one.
    pub fn is_behind(&self) -> bool {
        self.matches.len() >= BEHIND
    }

    /// Waits for the next match; `None`: it is over.
    pub async fn next(&mut self) -> Option<Next> {
        loop {
            let received = tokio::select! {
                () = &mut self.over => return None,
                received = self.matches.recv() => received,
            };
            match received {
                Ok(found) if self.topic_id.as_ref().is_none_or(|id| *id == found.topic_id) => {
                    return Some(Next::Match(found));
                }
                Ok(_) => {}
                Err(RecvError::Lagged(missed)) => {
                    self.metrics.match_streams_dropped.inc();
                    return Some(Next::Missed(missed));
                }
                Err(RecvError::Closed) => return None,
            }
        }
    }
}

async fn pass_on(
    mut told: mpsc::Receiver<Followed>,
    matches: broadcast::Sender<Arc<Match>>,
    shutdown: CancellationToken,
) {
    loop {
        let followed = tokio::select! {
            () = shutdown.cancelled() => return,
            followed = told.recv() => followed,
        };
        match followed {
            None => return,
            Some(Followed::Message(message)) if matches.receiver_count() > 0 => {
                match serde_json::from_slice::<Match>(message.payload.as_deref().unwrap_or_default()) {
                    // Nobody may listen any more.
                    Ok(found) => drop(matches.send(Arc::new(found))),
                    Err(error) => tracing::debug!(%error, position = %message.position, "what lies there is no match"),
                }
            }
            Some(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_stream_ends_after_some_minutes_or_with_the_worker() {
        let nobody = || Client::Address([127, 0, 0, 1].into());
        let shutdown = CancellationToken::new();
        let stream = over(nobody(), shutdown.clone());
        tokio::pin!(stream);
        let soon = LONGEST_STREAM - Duration::from_secs(1);
        assert!(tokio::time::timeout(soon, &mut stream).await.is_err(), "it is not over early");
        tokio::time::timeout(Duration::from_secs(2), stream).await.expect("it is over");
        let stream = over(nobody(), shutdown.clone());
        shutdown.cancel();
        tokio::time::timeout(Duration::from_secs(1), stream).await.expect("it is over");
    }
}
