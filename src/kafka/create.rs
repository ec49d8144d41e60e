//! Makes the topics that feedlens cannot do without a person making them, where nobody has made them yet.

use std::sync::Arc;
use std::time::Duration;

use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};

use super::KafkaConfig;
use super::callbacks::ProducerCallbacks;

/// The brokers have so long to make a topic.
const TIMEOUT: Duration = Duration::from_secs(5);

/// What happens to old messages of a topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cleanup {
    /// The last message of each key stays.
    Compact,
    /// As the brokers' own default says.
    BrokersDefault,
}

/// Makes the topics that lack, with the brokers' default of partitions and replicas. What keeps it from that is logged with
/// the way out, and is no error: who needs the topic says so when it is missed.
pub async fn create_absent(config: &KafkaConfig, topics: &[(&str, Cleanup)]) {
    let admin = match client(config).await {
        Ok(admin) => admin,
        Err(reason) => return tracing::warn!("topics that lack cannot be made: {reason}"),
    };
    for (topic, cleanup) in topics {
        let Err(reason) = create(&admin, topic, *cleanup).await else { continue };
        let setting = match cleanup {
            Cleanup::Compact => " --config cleanup.policy=compact",
            Cleanup::BrokersDefault => "",
        };
        tracing::warn!(
            "topic {topic} is not there and could not be made: {reason}; make it with: kafka-topics.sh --create --topic \
             {topic}{setting}"
        );
    }
}

async fn client(config: &KafkaConfig) -> Result<Arc<AdminClient<ProducerCallbacks>>, String> {
    let config = config.clone();
    let made = tokio::task::spawn_blocking(move || {
        let callbacks = ProducerCallbacks::new(&config);
        let made: Result<AdminClient<_>, KafkaError> = config.client_config().create_with_context(callbacks.clone());
        let admin = made.map_err(|error| error.to_string())?;
        if config.uses_oauth() {
            callbacks.authenticate(admin.inner())?;
        }
        Ok(Arc::new(admin))
    });
    made.await.unwrap_or_else(|error| Err(error.to_string()))
}

async fn create(admin: &Arc<AdminClient<ProducerCallbacks>>, topic: &str, cleanup: Cleanup) -> Result<(), String> {
    // Asked first: who may not make topics may still use those that are there.
    let (asked, name) = (admin.clone(), topic.to_owned());
    let is_there = move || {
        // Of all topics: brokers make a topic that is asked for by its name, without the settings that it needs.
        let found = asked.inner().fetch_metadata(None, TIMEOUT)?;
        Ok::<_, KafkaError>(found.topics().iter().any(|topic| topic.name() == name && topic.error().is_none()))
    };
    let is_there = tokio::task::spawn_blocking(is_there).await.map_err(|error| error.to_string())?;
    if is_there.map_err(|error| error.to_string())? {
        return Ok(());
    }
    // -1: the brokers' default.
    let mut new = NewTopic::new(topic, -1, TopicReplication::Fixed(-1));
    if cleanup == Cleanup::Compact {
        new = new.set("cleanup.policy", "compact");
    }
    let options = AdminOptions::new().request_timeout(Some(TIMEOUT)).operation_timeout(Some(TIMEOUT));
    match admin.create_topics([&new], &options).await {
        Ok(results) => match results.into_iter().next() {
            Some(Err((_, RDKafkaErrorCode::TopicAlreadyExists))) | None => Ok(()),
            Some(Err((_, code))) => Err(code.to_string()),
            Some(Ok(_)) => {
                tracing::info!(topic, "made the topic");
                Ok(())
            }
        },
        // librdkafka's own mock cluster, where topics come to be with their first message.
        Err(error) if error.rdkafka_error_code() == Some(RDKafkaErrorCode::UnsupportedFeature) => Ok(()),
        Err(error) => Err(error.to_string()),
    }
}
