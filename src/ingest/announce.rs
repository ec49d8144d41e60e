//! What others are told of a post that is stored: the standing topics that it matches, and that moderation is to look at it.
//!
//! Told before the post is settled: after a crash in between, the post comes again and so does what was told of it, with the
//! same topic, post and version. What is too large for its topic is told in short, and given up where that is too large too.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use chrono::{SubsecRound, Utc};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use serde::Serialize;

use crate::backoff::Backoff;
use crate::config::Config;
use crate::encode::encoder::Encoder;
use crate::error::{Fault, Outage};
use crate::ingest::outage::OutageLog;
use crate::ingest::progress::Progress;
use crate::ingest::write::Pending;
use crate::kafka::{Cleanup, Producer, create_absent};
use crate::labels::{Moderation, Routed, Verdict};
use crate::metrics::{MATCH, MODERATION, Metrics};
use crate::standing::matrix::Matches;
use crate::standing::watch::Candidate;
use crate::standing::{self, Match, Watch};
use crate::store::{Outcome, Point, Write};
use crate::text::escaped;
use crate::traces::Span;

/// Messages that wait for their acknowledgement, for each batch: each holds a copy of its post's caption.
const SENDING: usize = 256;

/// Characters of an id that a line of log repeats: all that it may have.
const SHOWN: usize = 512;

/// Tells others of stored posts.
pub struct Announcer {
    /// `None`: there are no standing topics here.
    watch: Option<Watch>,
    matches: Channel,
    moderation: Channel,
    producer: Producer,
    retry: (Duration, Duration),
    metrics: Arc<Metrics>,
}

/// Where announcements of a kind go.
struct Channel {
    topic: String,
    outage: OutageLog,
}

/// What others are told.
#[derive(Serialize)]
#[serde(untagged)]
enum Told {
    Match(Match),
    Routed(Box<Routed>),
}

impl Told {
    fn kind(&self) -> &'static str {
        match self {
            Told::Match(_) => MATCH,
            Told::Routed(_) => MODERATION,
        }
    }

    /// The message's key.
    fn key(&self) -> &str {
        match self {
            Told::Match(found) => &found.topic_id,
            Told::Routed(routed) => &routed.post_id,
        }
    }

    fn post_id(&self) -> &str {
        match self {
            Told::Match(found) => &found.post_id,
            Told::Routed(routed) => &routed.post_id,
        }
    }

    fn shorten(&mut self) {
        match self {
            Told::Match(found) => found.shorten(),
            Told::Routed(routed) => routed.shorten(),
        }
    }
}

impl Announcer {
    /// Returns when all standing topics that are registered are ready to be compared with: a post that is read after that
    /// matches them.
    ///
    /// # Errors
    /// The standing topics cannot be read.
    pub async fn start(config: &Config, encoder: &Encoder, metrics: Arc<Metrics>, progress: &Progress) -> Result<Self> {
        let kafka = &config.kafka;
        let watch = match kafka.standing_topic.is_empty() {
            true => None,
            false => {
                standing::create_topics(config).await;
                Some(Watch::start(config, encoder, metrics.clone()).await?)
            }
        };
        if config.labels.routes() {
            create_absent(kafka, &[(&kafka.moderation_topic, Cleanup::BrokersDefault)]).await;
        }
        Ok(Self {
            watch,
            matches: Channel { topic: kafka.matches_topic.clone(), outage: progress.matches.clone() },
            moderation: Channel { topic: kafka.moderation_topic.clone(), outage: progress.moderation.clone() },
            producer: Producer::new(kafka)?,
            retry: (config.ingest.retry_first, config.ingest.retry_max),
            metrics,
        })
    }

    /// Tells of the writes that were applied; returns when the brokers have acknowledged all of it, or refused its size. An
    /// outage of the brokers only delays. Posts that moderation hides are shown to nobody, so they match nothing.
    ///
    /// # Errors
    /// [`Fault::Fatal`]: the runtime ends.
    pub async fn announce(&self, written: &[(Pending, Outcome)]) -> Result<(), Fault> {
        let (started, now) = (Instant::now(), Utc::now().trunc_subsecs(3));
        let (mut shown, mut routed) = (Vec::with_capacity(written.len()), Vec::new());
        for (Pending { envelope, prepared, .. }, outcome) in written {
            let (Write::Upsert(point), Outcome::Applied) = (&prepared.write, outcome) else { continue };
            let (verdict, span) = (&prepared.verdict, &envelope.span);
            self.count(verdict);
            if verdict.asks_for(Moderation::Route) {
                routed.push((point, verdict, span));
            }
            if !verdict.asks_for(Moderation::Hide) {
                shown.push((point, span));
            }
        }
        let matches = self.matches(&shown).await?;
        // Messages are made as they are sent: all of them at once would hold many copies of a caption.
        let mut sending = FuturesUnordered::new();
        for (point, verdict, span) in routed {
            while sending.len() >= SENDING {
                sending.next().await;
            }
            let told = Told::Routed(Box::new(Routed::new(point, verdict, now)));
            sending.push(self.tell(&self.moderation, told, span));
        }
        for ((point, span), Matches { found, cut }) in shown.into_iter().zip(matches) {
            self.metrics.standing_matches_cut.inc_by(cut as u64);
            for found in found {
                while sending.len() >= SENDING {
                    sending.next().await;
                }
                sending.push(self.tell(&self.matches, Told::Match(Match::new(&found, point, now)), span));
            }
        }
        if !sending.is_empty() {
            sending.collect::<()>().await;
            self.metrics.stage_seconds.with_label_values(&["announce"]).observe(started.elapsed().as_secs_f64());
        }
        Ok(())
    }

    /// One for each point, or none at all.
    async fn matches(&self, points: &[(&Point, &Span)]) -> Result<Vec<Matches>, Fault> {
        match &self.watch {
            Some(watch) if !points.is_empty() && !watch.is_empty() => {
                let mut candidates = Vec::with_capacity(points.len());
                for (point, _) in points {
                    candidates.push(Candidate { image: point.image.clone(), caption: point.caption.clone() });
                }
                watch.compare(candidates).await
            }
            _ => Ok(Vec::new()),
        }
    }

    fn count(&self, verdict: &Verdict) {
        let mut counted = Vec::new();
        for assigned in &verdict.labels {
            self.metrics.posts_labelled.with_label_values(&[&*assigned.label]).inc();
            if let Some(action) = assigned.moderation
                && !counted.contains(&&assigned.set)
            {
                counted.push(&assigned.set);
                self.metrics.posts_moderated.with_label_values(&[&*assigned.set, action.as_str()]).inc();
            }
        }
    }

    /// Sends until the brokers have acknowledged it: also where a person must act first, for nothing that is told may be
    /// lost. Meanwhile `/readyz` says what with. The one end without that: its short form is too large as well, and waiting
    /// would hold up its partition for what others are only told of.
    async fn tell(&self, channel: &Channel, mut told: Told, span: &Span) {
        let Channel { topic, outage } = channel;
        let (kind, key) = (told.kind(), told.key().to_owned());
        let (started, headers) = (Instant::now(), span.headers());
        let mut value = serialised(&told);
        // The caption waits once.
        told.shorten();
        let mut is_whole = true;
        let mut backoff = Backoff::new(self.retry.0, self.retry.1);
        let is_told = loop {
            match self.producer.send(topic, Some(key.as_bytes()), Some(&value), &headers).await {
                Ok(_) => break true,
                Err(Fault::Reject { .. }) if is_whole => {
                    is_whole = false;
                    value = serialised(&told);
                }
                Err(Fault::Reject { reason, detail }) => {
                    tracing::error!(
                        topic,
                        "others are not told of post {} (key {}), whose announcement is too large even without caption and \
                         author: {detail}",
                        escaped(told.post_id().as_bytes(), SHOWN),
                        escaped(key.as_bytes(), SHOWN)
                    );
                    self.metrics.announcements_given_up.with_label_values(&[kind, reason.as_str()]).inc();
                    break false;
                }
                Err(fault) => {
                    self.metrics.posts_retried.with_label_values(&[Outage::Broker.as_str()]).inc();
                    let detail = fault.to_string();
                    outage.failed(Outage::Broker, &detail);
                    span.retry(Outage::Broker.as_str(), &detail);
                    tokio::time::sleep(backoff.next_delay()).await;
                }
            }
        };
        span.past("announce", started);
        // A size that is refused is an answer too.
        outage.succeeded();
        if is_told && !is_whole {
            self.metrics.announcements_shortened.with_label_values(&[kind]).inc();
            tracing::debug!(topic, post_id = told.post_id(), "told without caption and author, for the topic's limit");
        }
        if is_told && kind == MATCH {
            self.metrics.standing_matches.inc();
        }
    }
}

fn serialised(told: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(told).expect("strings, finite numbers and times have a JSON form. This is a bug.")
}
