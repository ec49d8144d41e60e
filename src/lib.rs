//! feedlens makes a social-media feed searchable while it arrives.
//!
//! | module | role |
//! |---|---|
//! | [`ingest`], [`query`] | the two workers; they do not know one another |
//! | [`kafka`], [`image`], [`encode`], [`store`] | adapters; only `encode` uses another, `image`, to decode and resize |
//! | [`standing`], [`labels`] | standing topics, which both workers read from Kafka; zero-shot labels and moderation |
//! | [`post`], [`captions`], [`feed`] | the post, what of its caption is tokenised, files of posts |
//! | [`reindex`] | another model's collection beside the live one: filled, compared |
//! | [`eval`] | evaluation and batch retrieval |
//! | [`backoff`], [`config`], [`error`], [`metrics`], [`service`], [`text`], [`traces`] | what all share |
//! | [`cli`] | one thin file a command; nothing imports it |
//!
//! ```text
//! posts    Kafka -> source -> prepare (decode, fetch; N in flight) -> batch -> encode -> write -> durable
//!                    ^          | Reject -> dead letter, acknowledged            |
//!                    |          v                                                v
//!                 commit <--- offsets: per partition, the highest        announce: matches of standing topics, moderation,
//!                             offset below which all is settled <------------ acknowledged
//! topics   registrations (Kafka, compacted) -> encoder -> one matrix, which each batch of posts is compared with
//! queries  request -> permit -> encoder (queries first) -> search -> rank -> respond
//! ```

pub mod backoff;
pub mod captions;
pub mod cli;
pub mod config;
pub mod encode;
pub mod error;
pub mod eval;
pub mod feed;
pub mod image;
pub mod ingest;
pub mod kafka;
pub mod labels;
pub mod metrics;
pub mod post;
pub mod query;
pub mod reindex;
pub mod service;
pub mod standing;
pub mod store;
pub mod text;
pub mod traces;
