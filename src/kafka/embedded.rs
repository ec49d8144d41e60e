//! A Kafka broker inside the process: librdkafka's own mock cluster, for the demo and for tests.
//!
//! It speaks the protocol over loopback sockets: producers, groups, commits. It keeps at most 5 MiB for each partition
//! and drops the oldest messages beyond that, so a producer must be paced by its consumer; it keeps nothing on disk and
//! has no admin API. A second member that joins a group waits for the session timeout less 1 s.

use rdkafka::client::{Client, DefaultClientContext};
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::types::RDKafkaType;
use rdkafka_sys as sys;

use crate::error::Fault;

/// How long the first member of a group waits for others, in milliseconds. The default of 3 s is for clusters.
const INITIAL_REBALANCE_DELAY: i32 = 10;

/// A running broker on a loopback port; it ends when dropped.
pub struct EmbeddedBroker {
    client: Client<DefaultClientContext>,
}

impl EmbeddedBroker {
    /// Starts a broker with these topics, each with its number of partitions. Other topics come to be, with 4
    /// partitions, when a producer writes to them.
    ///
    /// # Errors
    /// [`Fault::Fatal`] if no loopback port can be opened, or a topic has no valid name.
    pub fn start(topics: &[(&str, i32)]) -> Result<Self, Fault> {
        let broken = |error: rdkafka::error::KafkaError| Fault::fatal(format!("the embedded broker: {error}"));
        let mut config = ClientConfig::new();
        // A client that is asked for a mock cluster owns it, which `MockCluster::new` would hide from the call below.
        config.set("test.mock.num.brokers", "1").set_log_level(RDKafkaLogLevel::Critical);
        let native = config.create_native_config().map_err(broken)?;
        let client =
            Client::new(&config, native, RDKafkaType::RD_KAFKA_PRODUCER, DefaultClientContext).map_err(broken)?;
        let broker = Self { client };
        // SAFETY: the client is alive and was made with a mock cluster, which it owns.
        unsafe {
            let cluster = sys::rd_kafka_handle_mock_cluster(broker.client.native_ptr());
            sys::rd_kafka_mock_group_initial_rebalance_delay_ms(cluster, INITIAL_REBALANCE_DELAY);
        }
        for (topic, partitions) in topics {
            broker.cluster().create_topic(topic, *partitions, 1).map_err(broken)?;
        }
        Ok(broker)
    }

    /// What goes into `kafka.brokers`.
    pub fn bootstrap(&self) -> String {
        self.cluster().bootstrap_servers()
    }

    /// librdkafka's handle, to inject failures in tests.
    pub fn cluster(&self) -> rdkafka::mocking::MockCluster<'_, DefaultClientContext> {
        self.client.mock_cluster().expect("the client was made with a mock cluster. This is a bug.")
    }
}
