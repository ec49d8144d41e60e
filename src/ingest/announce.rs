//! What others are told of a post that is stored: the standing topics that it matches, and that moderation is to look at it.
//!
//! Told before the post is settled: after a crash in between, the post comes again and so does what was told of it, with the
//! same topic, post and version.

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
use crate::ingest::prepare::Prepared;
use crate::kafka::{Cleanup, Producer, create_absent};
use crate::labels::{Moderation, Routed, Verdict};
use crate::metrics::Metrics;
use crate::standing::matrix::Matches;
use crate::standing::watch::Candidate;
use crate::standing::{self, Match, Watch};
use crate::store::{Outcome, Point, Write};

/// Messages that wait for their acknowledgement, for each batch: each holds a copy of its post's caption.
const SENDING: usize = 256;

/// Tells others of stored posts.
pub struct Announcer {
    /// `None`: there are no standing topics here.
    watch: Option<Watch>,
    matches_topic: String,
    moderation_topic: String,
    producer: Producer,
    retry: (Duration, Duration),
    metrics: Arc<Metrics>,
    outage: OutageLog,
}

impl Announcer {
    /// Returns when all standing topics that are registered are ready to be compared with: a post that is read after that
    /// matches them.
    ///
    /// # Errors
    /// The standing topics cannot be read.
    pub async fn start(config: &Config, encoder: &Encoder, metrics: Arc<Metrics>, outage: OutageLog) -> Result<Self> {
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
            matches_topic: kafka.matches_topic.clone(),
            moderation_topic: kafka.moderation_topic.clone(),
            producer: Producer::new(kafka)?,
            retry: (config.ingest.retry_first, config.ingest.retry_max),
            metrics,
            outage,
        })
    }

    /// Tells of the writes that were applied; returns when the brokers have acknowledged all of it. An outage of the brokers
    /// only delays. Posts that moderation hides are shown to nobody, so they match nothing.
    ///
    /// # Errors
    /// [`Fault::Fatal`]: the runtime ends.
    pub async fn announce(&self, written: &[(&Prepared, Outcome)]) -> Result<(), Fault> {
        let (started, now) = (Instant::now(), Utc::now().trunc_subsecs(3));
        let (mut shown, mut routed) = (Vec::with_capacity(written.len()), Vec::new());
        for (prepared, outcome) in written {
            let (Write::Upsert(point), Outcome::Applied) = (&prepared.write, outcome) else { continue };
            let verdict = &prepared.verdict;
            self.count(verdict);
            if verdict.asks_for(Moderation::Route) {
                routed.push((point, verdict));
            }
            if !verdict.asks_for(Moderation::Hide) {
                shown.push(point);
            }
        }
        let matches = self.matches(&shown).await?;
        // Messages are made as they are sent: all of them at once would hold many copies of a caption.
        let mut sending = FuturesUnordered::new();
        for (point, verdict) in routed {
            while sending.len() >= SENDING {
                sending.next().await;
            }
            let told = Routed::new(point, verdict, now);
            sending.push(self.send(&self.moderation_topic, told.post_id.clone(), serialised(&told)));
        }
        let mut told_matches = 0;
        for (point, Matches { found, cut }) in shown.into_iter().zip(matches) {
            self.metrics.standing_matches_cut.inc_by(cut as u64);
            told_matches += found.len() as u64;
            for found in found {
                while sending.len() >= SENDING {
                    sending.next().await;
                }
                let told = Match::new(&found, point, now);
                sending.push(self.send(&self.matches_topic, told.topic_id.clone(), serialised(&told)));
            }
        }
        if !sending.is_empty() {
            sending.collect::<()>().await;
            self.metrics.standing_matches.inc_by(told_matches);
            self.metrics.stage_seconds.with_label_values(&["announce"]).observe(started.elapsed().as_secs_f64());
        }
        Ok(())
    }

    /// One for each point, or none at all.
    async fn matches(&self, points: &[&Point]) -> Result<Vec<Matches>, Fault> {
        match &self.watch {
            Some(watch) if !points.is_empty() && !watch.is_empty() => {
                let mut candidates = Vec::with_capacity(points.len());
                for point in points {
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
    /// lost. Meanwhile `/readyz` says what with.
    async fn send(&self, topic: &str, key: String, value: Vec<u8>) {
        let mut backoff = Backoff::new(self.retry.0, self.retry.1);
        while let Err(fault) = self.producer.send(topic, Some(key.as_bytes()), Some(&value), &[]).await {
            self.metrics.posts_retried.with_label_values(&[Outage::Broker.as_str()]).inc();
            self.outage.failed(Outage::Broker, &fault.to_string());
            tokio::time::sleep(backoff.next_delay()).await;
        }
        self.outage.succeeded();
    }
}

fn serialised(told: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(told).expect("strings, finite numbers and times have a JSON form. This is a bug.")
}
