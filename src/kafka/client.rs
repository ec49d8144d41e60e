//! What all Kafka clients share: the configuration that librdkafka gets, and what its errors mean.

use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};

use super::KafkaConfig;
use super::callbacks::Callbacks;
use super::poll::COMMIT_GRACE;
use super::status::SourceStatus;
use crate::error::Fault;

/// librdkafka settings that feedlens must own, and what to use instead.
const REFUSED: [(&str, &str); 23] = [
    ("bootstrap.servers", "set kafka.brokers"),
    ("metadata.broker.list", "set kafka.brokers"),
    ("group.id", "set kafka.group or query.group"),
    ("auto.offset.reset", "set kafka.start"),
    ("security.protocol", "set kafka.security"),
    ("sasl.mechanism", "set kafka.sasl_mechanism"),
    ("sasl.mechanisms", "set kafka.sasl_mechanism"),
    ("sasl.username", "set kafka.sasl_username"),
    ("sasl.password", "set kafka.sasl_password, which is masked wherever it is shown"),
    ("sasl.oauthbearer.method", "set kafka.oauth"),
    ("ssl.ca.location", "set kafka.ssl_ca"),
    ("ssl.certificate.location", "set kafka.ssl_certificate"),
    ("ssl.key.location", "set kafka.ssl_key"),
    ("ssl.key.password", "set kafka.ssl_key_password, which is masked wherever it is shown"),
    ("enable.auto.commit", COMMITS),
    ("enable.auto.offset.store", COMMITS),
    ("auto.commit.interval.ms", "set kafka.commit_interval"),
    ("enable.idempotence", ACKNOWLEDGED),
    ("acks", ACKNOWLEDGED),
    ("request.required.acks", ACKNOWLEDGED),
    ("transactional.id", "feedlens writes without transactions"),
    ("enable.partition.eof", "feedlens has no use for it"),
    ("log.queue", "feedlens reads the log queue itself"),
];
const COMMITS: &str = "feedlens commits what is durable, and nothing else may";
const ACKNOWLEDGED: &str = "feedlens counts a message as sent when all in-sync replicas have it";

/// The largest that librdkafka takes. The brokers' own limit is the one that counts: what they accepted in one topic
/// must be able to go to another.
const MAX_MESSAGE_BYTES: &str = "1000000000";

/// How long the start goes on after the first refusal of a broker.
const REFUSED_GRACE: Duration = Duration::from_secs(2);

/// How long a sent message may wait for its acknowledgement before the caller hears of it.
pub(super) const SEND_TIMEOUT: Duration = Duration::from_secs(30);

impl KafkaConfig {
    /// Relations between keys, and the keys that librdkafka knows.
    ///
    /// # Errors
    /// Names the key and the way out.
    pub(crate) fn check(&self) -> anyhow::Result<()> {
        ensure!(
            !self.brokers.trim().is_empty(),
            "kafka.brokers is empty; set it to host:port, several separated by commas"
        );
        self.parse_start()?;
        for topic in self.posts_topics() {
            ensure!(
                !topic.trim().is_empty(),
                "a topic of posts has no name; look at kafka.posts_topic and kafka.further_posts_topics"
            );
        }
        self.check_written_topics()?;
        self.check_security()?;
        for (key, way_out) in REFUSED {
            if self.properties.contains_key(key) {
                bail!("kafka.properties: {key:?} cannot be set here; {way_out}");
            }
        }
        ensure!(!self.commit_interval.is_zero(), "kafka.commit_interval must be longer than 0");
        let max_poll_interval = self.consumer_interval("max.poll.interval.ms")?;
        ensure!(
            self.pause_after.saturating_mul(2) <= max_poll_interval,
            "kafka.pause_after ({:?}) must be at most half of max.poll.interval.ms ({max_poll_interval:?}), or the group \
             evicts a worker that waits for room",
            self.pause_after
        );
        Ok(())
    }

    /// Whether a drain that `key` allows ends, with its commit, before the group may have gone on without us: from then
    /// on no commit is accepted, and all that was drained is done again by others.
    ///
    /// # Errors
    /// Names both keys and the way out.
    pub(crate) fn check_drain(&self, key: &str, drain: Duration) -> anyhow::Result<()> {
        // In the newer protocol the session timeout is the brokers' own, and the client is not told.
        let limited_by = if self.is_newer_protocol() { "max.poll.interval.ms" } else { "session.timeout.ms" };
        let limit = self.consumer_interval(limited_by)?;
        ensure!(
            drain.saturating_add(COMMIT_GRACE) <= limit,
            "{key} ({drain:?}) and the {COMMIT_GRACE:?} of the commit after it do not fit into Kafka's {limited_by} \
             ({limit:?}), after which the group goes on without this worker; lower {key}, or raise {limited_by} in \
             kafka.properties"
        );
        Ok(())
    }

    fn check_written_topics(&self) -> anyhow::Result<()> {
        let mut written = vec![
            ("kafka.dead_letter_topic", &self.dead_letter_topic),
            ("kafka.moderation_topic", &self.moderation_topic),
        ];
        if !self.standing_topic.is_empty() {
            written.push(("kafka.standing_topic", &self.standing_topic));
            written.push(("kafka.matches_topic", &self.matches_topic));
        }
        for (index, (key, topic)) in written.iter().enumerate() {
            ensure!(!topic.trim().is_empty(), "{key} is empty; name a topic");
            ensure!(
                !self.posts_topics().contains(topic),
                "{key} is a topic of posts ({topic:?}), and would be read as such; name another"
            );
            if let Some((other, _)) = written[..index].iter().find(|(_, earlier)| earlier == topic) {
                bail!("{other} and {key} are both {topic:?}; give each its own");
            }
        }
        Ok(())
    }

    /// What librdkafka takes for a setting in milliseconds, its own default included.
    fn consumer_interval(&self, key: &str) -> anyhow::Result<Duration> {
        let native = match self.consumer_config("check").create_native_config() {
            Ok(native) => native,
            Err(KafkaError::ClientConfig(_, reason, key, _)) => {
                bail!("kafka.properties: {key:?} is refused by librdkafka: {}", reason.trim())
            }
            Err(error) => return Err(error).context("kafka.properties"),
        };
        let milliseconds = native.get(key).ok().and_then(|milliseconds| milliseconds.parse().ok());
        milliseconds.map(Duration::from_millis).with_context(|| format!("kafka.properties: {key} is not a number"))
    }

    fn is_newer_protocol(&self) -> bool {
        self.properties.get("group.protocol").is_some_and(|protocol| protocol.eq_ignore_ascii_case("consumer"))
    }

    /// What every client gets: brokers, security, and `properties` last, so that they win.
    pub fn client_config(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config
            .set_log_level(RDKafkaLogLevel::Info)
            .set("bootstrap.servers", &self.brokers)
            .set("client.id", "feedlens")
            // A worker that starts before its topic exists, or a topic that grows, is noticed within this.
            .set("topic.metadata.refresh.interval.ms", "30000");
        self.set_security(&mut config);
        self.with_properties(config)
    }

    pub(super) fn consumer_config(&self, group: &str) -> ClientConfig {
        let mut config = self.client_config();
        config
            .set("group.id", group)
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            // `kafka.start` is for partitions without a commit, and `start` sees to it. A reset is for posts that are gone:
            // at the end, it would lose those that are left.
            .set("auto.offset.reset", "earliest")
            // librdkafka's read-ahead is memory too, and its default of 64 MiB is half of what is in flight.
            .set("queued.max.messages.kbytes", "16384")
            .set("fetch.max.bytes", "16777216")
            // What was fetched of one partition is handed out before that of the next: with a backlog and a slow model, the
            // default of 1 MiB makes the others wait for minutes. A larger message still comes whole.
            .set("max.partition.fetch.bytes", "65536")
            // With a small read-ahead, the default of 1 s of silence after each full queue would starve the encoder.
            .set("fetch.queue.backoff.ms", "50");
        if !self.is_newer_protocol() {
            // In the newer group protocol the broker chooses the assignor, and the client refuses this setting.
            config.set("partition.assignment.strategy", "cooperative-sticky");
        }
        self.with_properties(config)
    }

    pub(super) fn producer_config(&self) -> ClientConfig {
        let mut config = self.client_config();
        config
            .set("enable.idempotence", "true")
            .set("acks", "all")
            // As Java producers do: the edits of a post land in one partition whoever sends them.
            .set("partitioner", "murmur2_random")
            .set("message.max.bytes", MAX_MESSAGE_BYTES)
            .set("message.timeout.ms", SEND_TIMEOUT.as_millis().to_string());
        self.with_properties(config)
    }

    fn with_properties(&self, mut config: ClientConfig) -> ClientConfig {
        for (key, value) in self.properties.iter() {
            config.set(key, value);
        }
        config
    }
}

/// Asks the brokers for their metadata.
///
/// # Errors
/// [`Fault::Fatal`] that names the brokers and `kafka.brokers` if none answers within `kafka.start_timeout`, or says why
/// they refuse this client.
pub async fn check_reachable(config: &KafkaConfig) -> Result<(), Fault> {
    let config = config.clone();
    tokio::task::spawn_blocking(move || {
        let status = SourceStatus::new(&config.brokers, None);
        let consumer = config
            .client_config()
            .create_with_context::<_, BaseConsumer<_>>(Callbacks::new(status.clone(), &config))
            .map_err(|error| fault_of_creation(&error))?;
        wait_until_reachable(&consumer, &status, &config)
    })
    .await
    .map_err(|error| Fault::fatal(format!("the check of kafka.brokers failed: {error}")))?
}

/// Blocks until a broker answers, at most `kafka.start_timeout`.
pub(super) fn wait_until_reachable(
    consumer: &BaseConsumer<Callbacks>,
    status: &SourceStatus,
    config: &KafkaConfig,
) -> Result<(), Fault> {
    let mut deadline = Instant::now() + config.start_timeout;
    let mut is_refused = false;
    loop {
        // Errors with their reasons arrive as events, which only polling serves; so do requests for tokens.
        while consumer.poll(Duration::from_millis(20)).is_some() {}
        if !is_refused && status.refusal().is_some() {
            // Waiting is in vain; but of several brokers another one may take us.
            is_refused = true;
            deadline = deadline.min(Instant::now() + REFUSED_GRACE);
        }
        let remaining = deadline.saturating_duration_since(Instant::now());
        match consumer.fetch_metadata(None, remaining.min(Duration::from_millis(500))) {
            Ok(_) => {
                status.recovered();
                return Ok(());
            }
            Err(error) if Instant::now() >= deadline => {
                if let Some(refusal) = status.refusal() {
                    return Err(Fault::fatal(format!(
                        "the Kafka brokers {} refuse this client: {refusal}",
                        config.brokers
                    )));
                }
                let reason = status.last_error().unwrap_or_else(|| error.to_string());
                return Err(Fault::fatal(format!(
                    "no Kafka broker of {} answered within {:?} ({reason}); start the brokers, or look at kafka.brokers and \
                     kafka.security",
                    config.brokers, config.start_timeout
                )));
            }
            Err(error) => {
                // Some failures return at once: without a pause this loop would spin until the deadline.
                tracing::debug!(%error, "no metadata yet");
                std::thread::sleep(remaining.min(Duration::from_millis(50)));
            }
        }
    }
}

/// A client that cannot be made: always the configuration.
pub(super) fn fault_of_creation(error: &KafkaError) -> Fault {
    Fault::fatal(format!("the Kafka client cannot be made: {error}; look at the section [kafka] of the configuration"))
}

/// Whether going on without a person's help is hopeless.
pub(super) fn needs_a_person(code: RDKafkaErrorCode) -> bool {
    matches!(
        code,
        RDKafkaErrorCode::Authentication
            | RDKafkaErrorCode::SaslAuthenticationFailed
            | RDKafkaErrorCode::TopicAuthorizationFailed
            | RDKafkaErrorCode::GroupAuthorizationFailed
            | RDKafkaErrorCode::ClusterAuthorizationFailed
            | RDKafkaErrorCode::UnknownTopic
            | RDKafkaErrorCode::UnknownTopicOrPartition
            | RDKafkaErrorCode::InvalidTopic
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, Overrides};

    fn config_with(set: &[&str]) -> anyhow::Result<Config> {
        let set = set.iter().map(|assignment| (*assignment).to_owned()).collect();
        Config::load(&[], &Overrides { files: Vec::new(), set })
    }

    fn with_property(key: &str, value: &str) -> KafkaConfig {
        let mut kafka = config_with(&[]).expect("the defaults are right").kafka;
        kafka.properties.insert(key.to_owned(), value.to_owned());
        kafka
    }

    #[test]
    fn wrong_values_are_named_with_the_way_out() {
        for (assignment, parts) in [
            ("kafka.start=newest", ["kafka.start", "earliest"]),
            ("kafka.further_posts_topics=[\"\"]", ["no name", "kafka.further_posts_topics"]),
            ("kafka.brokers=\"\"", ["kafka.brokers", "host:port"]),
            ("kafka.matches_topic=\"\"", ["kafka.matches_topic is empty", "name a topic"]),
            ("kafka.matches_topic=posts", ["kafka.matches_topic is a topic of posts", "name another"]),
            ("kafka.moderation_topic=topics.standing", ["kafka.moderation_topic and kafka.standing_topic", "its own"]),
            ("kafka.pause_after=4m", ["kafka.pause_after", "max.poll.interval.ms"]),
            ("ingest.drain_timeout=41s", ["ingest.drain_timeout (41s)", "session.timeout.ms (45s)"]),
            ("query.timeout=41s", ["query.timeout (41s)", "session.timeout.ms (45s)"]),
        ] {
            let error = format!("{:#}", config_with(&[assignment]).expect_err(assignment));
            assert!(parts.iter().all(|part| error.contains(part)), "{assignment}: {error}");
        }
    }

    #[test]
    fn a_drain_ends_before_the_group_goes_on() {
        let longest = config_with(&["ingest.drain_timeout=40s", "query.timeout=40s"]);
        longest.expect("40 s and the commit's 5 s are the default session");
        for (property, value, drain, limited_by) in [
            ("session.timeout.ms", "24000", "20s", "session.timeout.ms (24s)"),
            ("group.protocol", "Consumer", "296s", "max.poll.interval.ms (300s)"),
        ] {
            let set = [format!("kafka.properties.{property}={value}"), format!("ingest.drain_timeout={drain}")];
            let error = config_with(&[&set[0], &set[1]]).expect_err("too long").to_string();
            assert!(error.contains("lower ingest.drain_timeout") && error.contains(limited_by), "{error}");
        }
        let raised = ["kafka.properties.session.timeout.ms=60000", "ingest.drain_timeout=55s"];
        config_with(&raised).expect("a longer session has room for a longer drain");
        config_with(&["kafka.properties.group.protocol=consumer", "ingest.drain_timeout=295s"]).expect("no session");
        config_with(&["query.kafka=false", "query.timeout=41s"]).expect("nothing is drained without Kafka");
    }

    #[test]
    fn properties_reach_librdkafka_and_win() {
        let kafka = with_property("queued.max.messages.kbytes", "1024");
        kafka.check().expect("a known property");
        assert_eq!(kafka.consumer_config("g").get("queued.max.messages.kbytes"), Some("1024"));
    }

    #[test]
    fn properties_that_would_lose_posts_are_refused() {
        for (key, _) in REFUSED {
            let error = with_property(key, "true").check().expect_err(key).to_string();
            assert!(error.contains(key) && error.contains("kafka.properties"), "{error}");
        }
    }

    #[test]
    fn unknown_properties_are_named() {
        let error = with_property("fetch.max.bites", "1").check().expect_err("no such property").to_string();
        assert!(error.contains("fetch.max.bites"), "{error}");
    }

    #[test]
    fn the_newer_group_protocol_makes_a_consumer() {
        let kafka = with_property("group.protocol", "consumer");
        kafka.check().expect("a known property");
        kafka.consumer_config("g").create::<BaseConsumer>().expect("no setting that this protocol refuses");
    }

    #[test]
    fn static_membership_makes_a_consumer() {
        let kafka = with_property("group.instance.id", "worker-1");
        kafka.consumer_config("g").create::<BaseConsumer>().expect("a consumer");
    }
}
