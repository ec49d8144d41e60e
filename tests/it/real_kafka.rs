//! Real Apache Kafka.
