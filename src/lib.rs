//! feedlens makes a social-media feed searchable while it arrives.
//!
//! ```text
//! posts    Kafka -> source -> prepare (decode, fetch; N in flight) -> batch -> encode -> write -> durable
//!                    ^          | Reject -> dead letter, acknowledged            |
//!                    |          v                                                v
//!                 commit <--- offsets: per partition, the highest offset below which all is settled
//! queries  request -> permit -> encoder (queries first) -> search -> rank -> respond
//! ```

pub mod cli;
pub mod config;
pub mod encode;
pub mod error;
pub mod eval;
pub mod feed;
pub mod image;
pub mod ingest;
pub mod kafka;
pub mod metrics;
pub mod post;
pub mod query;
pub mod service;
pub mod store;
