//! Standing topics: a person or a program registers a topic once, and each new post is compared with all of them.
//!
//! ```text
//! kafka.standing_topic (compacted) --read whole, and on--> Registry --new, changed--> encoder --> Watch (matrices)
//! ingest: a batch that the store has applied --> Watch: [posts, dimension] x [dimension, topics] --> kafka.matches_topic
//! query:  Directory (the same Registry, for GET /v1/topics); kafka.matches_topic --> GET /v1/matches
//! ```
//! [`registration`], [`registry`] and [`matrix`] are pure; [`directory`] and [`watch`] read the topic.

pub mod directory;
pub mod matched;
pub mod matrix;
pub mod registration;
pub mod registry;
pub mod watch;

pub use self::directory::Directory;
pub use self::matched::Match;
pub use self::registration::{Registration, Target};
pub use self::watch::Watch;

use tokio::sync::mpsc::Receiver;

use crate::config::Config;
use crate::error::Fault;
use crate::kafka::{Begin, Cleanup, Followed, KafkaConfig, create_absent};
use crate::metrics::Metrics;
use crate::standing::registry::{Applied, Change, Registry};

/// Makes the topics of registrations and of matches, where they lack and the brokers let us.
pub async fn create_topics(config: &Config) {
    let kafka = &config.kafka;
    if !kafka.standing_topic.is_empty() {
        let topics = [(&*kafka.standing_topic, Cleanup::Compact), (&*kafka.matches_topic, Cleanup::BrokersDefault)];
        create_absent(kafka, &topics).await;
    }
}

/// Reads a topic of registrations or matches.
///
/// # Errors
/// As [`crate::kafka::follow`], with the way to do without.
pub(crate) async fn follow(
    config: &KafkaConfig,
    topic: &str,
    begin: Begin,
    max_bytes: usize,
) -> Result<Receiver<Followed>, Fault> {
    crate::kafka::follow(config, topic, begin, max_bytes).await.map_err(|fault| match fault {
        Fault::Fatal(reason) => Fault::Fatal(format!("{reason}; with kafka.standing_topic = \"\" it is not needed")),
        other => other,
    })
}

/// Tells how many topics there are.
fn tell(registry: &Registry, metrics: &Metrics) {
    metrics.standing_topics.set(registry.len() as i64);
    metrics.standing_topics_over_limit.set(registry.over_limit() as i64);
}

/// Applies what was read to the registry, counts it and logs what is wrong with it. `None`: nothing was read.
fn apply(registry: &mut Registry, followed: &Followed, metrics: &Metrics) -> Option<Applied> {
    let applied = match followed {
        Followed::Message(message) => registry.apply(message.key.as_deref(), message.payload.as_deref()),
        Followed::TooLarge { key, bytes } => registry.reject(
            key.as_deref(),
            format!("the record has {bytes} bytes, more than the {} of the largest", registration::MAX_RECORD_BYTES),
        ),
        Followed::Begins { .. } | Followed::UpToDate => return None,
    };
    let shown = |id: &str| crate::text::escaped(id.as_bytes(), 60);
    match (&applied.change, &applied.leaves) {
        (Change::Rejected { id, reason }, _) => tracing::warn!(
            topic_id = shown(id),
            "a registration of a standing topic is no good and counts as removed: {reason}"
        ),
        (Change::OverLimit { id }, _) | (Change::Registered, Some(id)) => tracing::warn!(
            topic_id = shown(id),
            "a standing topic is ignored: ingest.max_standing_topics were registered before it"
        ),
        (Change::Registered | Change::Removed, _) => {}
    }
    metrics.standing_registrations.with_label_values(&[applied.change.outcome()]).inc();
    Some(applied)
}
