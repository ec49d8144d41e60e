//! Standing topics for people and programs: the list, registrations, and matches as they come.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use chrono::{SubsecRound, Utc};
use futures::FutureExt as _;
use futures::future::BoxFuture;
use tokio::sync::broadcast::{self, error::RecvError};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::error::Fault;
use crate::kafka::{Begin, Followed, Message, Producer};
use crate::metrics::Metrics;
use crate::query::error::{ErrorCode, SearchError};
use crate::query::recent::{Cursor, KEPT, Recent, Told, Unseen};
use crate::query::service::{OVERLOAD_DELAY, humantime};
use crate::query::streams::{Client, StreamPlace, Streams};
use crate::standing::{self, Directory, Match, Registration};

/// Matches that a slow client may be behind; then its stream is ended.
const BEHIND: usize = 256;
/// A stream tells how far it is after so many matches that are not of its topic.
const TOLD_AFTER: usize = 128;
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
    feed: Arc<Feed>,
    streams: Arc<Streams>,
    /// A request waits so long for the list to be complete, and for its registration to be acknowledged.
    max_wait: Duration,
    timeout: Duration,
    metrics: Arc<Metrics>,
    shutdown: CancellationToken,
}

/// The matches as they come, and the last ones.
struct Feed {
    recent: watch::Sender<Recent>,
    /// Sent to while `recent` is changed, so that who subscribes while it is borrowed misses none and gets none twice.
    matches: broadcast::Sender<Arc<Told>>,
}

/// A client's view of the matches, from now or from where it was; one of a bounded number.
pub struct MatchStream {
    /// What is to be said before the first match.
    first: Option<Next>,
    unseen: VecDeque<Arc<Told>>,
    matches: broadcast::Receiver<Arc<Told>>,
    topic_id: Option<String>,
    cursor: Cursor,
    /// Matches of other topics since the client was last told where it is.
    untold: usize,
    /// The worker stops, the client's key is taken away, or the stream is old.
    over: BoxFuture<'static, ()>,
    metrics: Arc<Metrics>,
    _place: StreamPlace,
}

/// What comes next in a stream.
#[derive(Debug, Clone, PartialEq)]
pub enum Next {
    /// A match.
    Match(Arc<Told>),
    /// The stream is elsewhere than with the last match: at its beginning, or behind matches of other topics.
    Moved,
    /// There may have been matches between what the client knows and the stream's cursor.
    Gap,
    /// The client did not keep up and missed so many; nothing comes after it. It can go on where it was.
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
        // Clients of a worker that stopped come back to this one.
        let told = standing::follow(kafka, &kafka.matches_topic, Begin::Last(KEPT), MAX_MATCH_BYTES).await?;
        let feed = Arc::new(Feed { recent: watch::Sender::default(), matches: broadcast::Sender::new(BEHIND) });
        tokio::spawn(Arc::clone(&feed).pass_on(told, shutdown.clone()));
        let query = &config.query;
        Ok(Some(Arc::new(Self {
            directory,
            producer: Producer::new(kafka)?,
            topic: kafka.standing_topic.clone(),
            max_topics,
            feed,
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

    /// The matches of one topic or of all: those that came behind the cursor as far as they are kept, and those from now on.
    ///
    /// # Errors
    /// 429 where `query.max_streams` are open, or this client has its share; 503 as long as the topics are being read.
    pub async fn stream(
        &self,
        topic_id: Option<String>,
        cursor: Option<Cursor>,
        client: Client,
    ) -> Result<MatchStream, SearchError> {
        let place = self.streams.take(&client)?;
        self.complete().await?;
        let mut recent = self.feed.recent.subscribe();
        let seen = cursor.clone().unwrap_or_default();
        // What cannot be had is a gap, and no reason to withhold the rest.
        let _ = tokio::time::timeout(self.max_wait, recent.wait_for(|recent| recent.has_reached(&seen))).await;
        let (matches, Unseen { told: unseen, gap, cursor }) = {
            let recent = self.feed.recent.borrow();
            let now = || Unseen { told: VecDeque::new(), gap: false, cursor: recent.cursor().clone() };
            (self.feed.matches.subscribe(), cursor.map_or_else(now, |cursor| recent.since(&cursor)))
        };
        Ok(MatchStream {
            first: Some(if gap { Next::Gap } else { Next::Moved }),
            unseen,
            matches,
            topic_id,
            cursor,
            untold: 0,
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

    /// Where the stream is, behind what was given last.
    pub fn cursor(&self) -> &Cursor {
        &self.cursor
    }

    /// Waits for the next match; `None`: it is over.
    pub async fn next(&mut self) -> Option<Next> {
        if let Some(first) = self.first.take() {
            return Some(first);
        }
        loop {
            let was_kept = !self.unseen.is_empty();
            let received = match self.unseen.pop_front() {
                Some(told) => Ok(told),
                None => tokio::select! {
                    () = &mut self.over => return self.last(),
                    received = self.matches.recv() => received,
                },
            };
            match received {
                Ok(told) => {
                    self.cursor.pass(&told);
                    self.untold += 1;
                    if self.topic_id.as_ref().is_none_or(|id| *id == told.found.topic_id) {
                        self.untold = 0;
                        return Some(Next::Match(told));
                    }
                    if self.untold >= TOLD_AFTER || was_kept && self.unseen.is_empty() {
                        self.untold = 0;
                        return Some(Next::Moved);
                    }
                }
                Err(RecvError::Lagged(missed)) => {
                    self.metrics.match_streams_dropped.inc();
                    return Some(Next::Missed(missed));
                }
                Err(RecvError::Closed) => return None,
            }
        }
    }

    /// A stream that is over tells where it was, once.
    fn last(&mut self) -> Option<Next> {
        self.over = futures::future::ready(()).boxed();
        (std::mem::take(&mut self.untold) > 0).then_some(Next::Moved)
    }
}

impl Feed {
    async fn pass_on(self: Arc<Self>, mut told: mpsc::Receiver<Followed>, shutdown: CancellationToken) {
        loop {
            let followed = tokio::select! {
                () = shutdown.cancelled() => return,
                followed = told.recv() => followed,
            };
            match followed {
                None => return,
                Some(Followed::Message(message)) => self.tell(&message),
                Some(Followed::Begins { partition, offset }) => {
                    self.recent.send_modify(|recent| recent.begin(partition, offset));
                }
                Some(Followed::UpToDate) => self.recent.send_modify(Recent::up_to_date),
                Some(Followed::TooLarge { .. }) => {}
            }
        }
    }

    fn tell(&self, message: &Message) {
        let payload = message.payload.as_deref().unwrap_or_default();
        match serde_json::from_slice::<Match>(payload) {
            Ok(found) => {
                let (partition, offset) = (message.position.partition, message.position.offset);
                let told = Arc::new(Told { found, partition, offset, bytes: payload.len() });
                self.recent.send_modify(|recent| {
                    recent.add(Arc::clone(&told));
                    // Nobody may listen.
                    let _ = self.matches.send(told);
                });
            }
            Err(error) => tracing::debug!(%error, position = %message.position, "what lies there is no match"),
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
