//! Makes the topics that feedlens cannot do without a person making them, where nobody has made them yet, and says of those
//! that are there when they lose what they are to keep.

use std::sync::Arc;
use std::time::Duration;

use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};

use super::KafkaConfig;
use super::callbacks::ProducerCallbacks;

/// The brokers have so long to make a topic.
const TIMEOUT: Duration = Duration::from_secs(5);

/// How long brokers are waited for that may not know how to describe a topic.
const POLICY_TIMEOUT: Duration = Duration::from_secs(3);

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
        let reason = match create(&admin, topic, *cleanup).await {
            Ok(Made::Now) => continue,
            Ok(Made::Before) => {
                if *cleanup == Cleanup::Compact {
                    // Nobody waits for it: what it finds is told, and holds up nothing.
                    tokio::spawn(check_compacted(admin.clone(), (*topic).to_owned()));
                }
                continue;
            }
            Err(reason) => reason,
        };
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

/// Brokers that do not tell are taken at their word that it is: not every client may ask, and the embedded one cannot answer.
async fn check_compacted(admin: Arc<AdminClient<ProducerCallbacks>>, topic: String) {
    match cleanup_policy(&admin, &topic).await {
        Ok(policy) => match lost_by_retention(&topic, &policy) {
            Some(warning) => tracing::warn!("{warning}"),
            None => tracing::debug!(topic, "the topic is compacted"),
        },
        Err(error) => tracing::debug!(%error, topic, "the brokers do not tell whether the topic is compacted"),
    }
}

/// What to say of a topic that is to keep the last message of each key.
fn lost_by_retention(topic: &str, policy: &str) -> Option<String> {
    let mut policies = policy.split(',').map(str::trim);
    (!policies.clone().any(|policy| policy == "compact") || policies.any(|policy| policy == "delete")).then(|| {
        format!(
            "topic {topic} has cleanup.policy={policy}: retention deletes what is registered there when it is old; mend it \
             with: kafka-configs.sh --alter --entity-type topics --entity-name {topic} --add-config cleanup.policy=compact"
        )
    })
}

/// The topic's `cleanup.policy`: "delete", "compact", or both with a comma between.
pub(super) async fn cleanup_policy(admin: &AdminClient<ProducerCallbacks>, topic: &str) -> Result<String, KafkaError> {
    let options = AdminOptions::new().request_timeout(Some(POLICY_TIMEOUT));
    let answers = admin.describe_configs(&[ResourceSpecifier::Topic(topic)], &options).await?;
    let described = answers.into_iter().next().ok_or(KafkaError::Canceled)?.map_err(KafkaError::AdminOp)?;
    Ok(described.get("cleanup.policy").and_then(|entry| entry.value.clone()).unwrap_or_default())
}

/// Whether a topic was there.
enum Made {
    Before,
    Now,
}

async fn create(admin: &Arc<AdminClient<ProducerCallbacks>>, topic: &str, cleanup: Cleanup) -> Result<Made, String> {
    // Asked first: who may not make topics may still use those that are there.
    let (asked, name) = (admin.clone(), topic.to_owned());
    let is_there = move || {
        // Of all topics: brokers make a topic that is asked for by its name, without the settings that it needs.
        let found = asked.inner().fetch_metadata(None, TIMEOUT)?;
        Ok::<_, KafkaError>(found.topics().iter().any(|topic| topic.name() == name && topic.error().is_none()))
    };
    let is_there = tokio::task::spawn_blocking(is_there).await.map_err(|error| error.to_string())?;
    if is_there.map_err(|error| error.to_string())? {
        return Ok(Made::Before);
    }
    // -1: the brokers' default.
    let mut new = NewTopic::new(topic, -1, TopicReplication::Fixed(-1));
    if cleanup == Cleanup::Compact {
        new = new.set("cleanup.policy", "compact");
    }
    let options = AdminOptions::new().request_timeout(Some(TIMEOUT)).operation_timeout(Some(TIMEOUT));
    match admin.create_topics([&new], &options).await {
        Ok(results) => match results.into_iter().next() {
            Some(Err((_, RDKafkaErrorCode::TopicAlreadyExists))) | None => Ok(Made::Before),
            Some(Err((_, code))) => Err(code.to_string()),
            Some(Ok(_)) => {
                tracing::info!(topic, "made the topic");
                Ok(Made::Now)
            }
        },
        // librdkafka's own mock cluster, where topics come to be with their first message.
        Err(error) if error.rdkafka_error_code() == Some(RDKafkaErrorCode::UnsupportedFeature) => Ok(Made::Before),
        Err(error) => Err(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_topic_that_retention_empties_is_told_with_the_command_that_mends_it() {
        for policy in ["delete", "compact,delete", "delete, compact", ""] {
            let warning = lost_by_retention("topics.standing", policy).expect(policy);
            let command = "--entity-name topics.standing --add-config cleanup.policy=compact";
            assert!(warning.contains(&format!("cleanup.policy={policy}:")) && warning.ends_with(command), "{warning}");
        }
        assert_eq!(lost_by_retention("topics.standing", "compact"), None);
    }
}
