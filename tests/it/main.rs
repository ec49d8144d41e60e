//! The integration tests: one binary, a file for each part or failure mode.

#![allow(clippy::unwrap_used)]

mod binary;
mod bundles;
mod captions;
mod dead_letters;
mod demo;
mod docs;
mod encoder_graphs;
mod encoder_providers;
mod evaluation;
mod full_disk;
mod images;
mod ingest_faults;
mod ingest_support;
mod json_lines;
mod kafka_drain;
mod kafka_source;
mod kafka_support;
mod matching;
mod memory;
mod outage_support;
mod outages;
mod page;
mod parity;
mod picture_memory;
mod pipeline;
mod preprocess;
mod query_support;
mod real_kafka;
mod real_kafka_groups;
mod real_kafka_security;
mod real_kafka_start;
mod replayed_topic;
mod running;
mod scripts;
mod search_http;
mod search_kafka;
mod signals;
mod skip;
mod store_behaviour;
mod store_edge;
mod store_limits;
mod store_order;
mod store_server;
mod store_support;
