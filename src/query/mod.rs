//! The query worker: a request in, the best posts out.
//!
//! ```text
//! http   POST and GET /v1/search, batches, the page ------+
//!                                                         +--> service: place -> embed -> store -> rank -> answer
//! kafka  requests topic -> ... -> results or reply topic --+
//! live   /v1/topics -> standing topics in Kafka; matches in Kafka -> recent -> /v1/matches (server-sent events)
//! ```

mod admission;
mod assets;
mod batch;
pub mod cache;
pub mod embed;
pub mod error;
pub mod http;
pub mod kafka;
pub mod keys;
pub mod live;
pub mod min_score;
pub mod rank;
pub mod recent;
pub mod request;
pub mod response;
pub mod service;
pub mod stats;
pub mod streams;

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use self::min_score::MinScore;
use self::rank::fusion::FusionKind;
use self::rank::transform::Transform;
use crate::service::tls::TlsConfig;

/// Section `[query]` of the configuration; the comments of `config/default.toml` are the reference.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct QueryConfig {
    /// Address of the page and the API.
    pub listen: String,
    /// Its certificate, if it has one.
    pub tls: TlsConfig,
    /// Connections at a time; a further one is answered 429.
    pub max_connections: usize,
    /// Largest request body, in bytes.
    pub max_body_bytes: u64,
    /// Longest topic, in bytes of UTF-8.
    pub max_topic_bytes: u64,
    /// Largest top_k, and its default.
    pub max_top_k: usize,
    /// Largest top_k, and its default.
    pub top_k: usize,
    /// Largest offset.
    pub max_offset: usize,
    /// The best candidates over which `probability` is a softmax, and within which fusion and freshness order posts.
    pub candidates: usize,
    /// How target "both" makes one ranking of two.
    pub fusion: FusionKind,
    /// Share of the pictures in fusion "weighted".
    pub image_weight: f64,
    /// Least cosine of a hit.
    pub min_score: MinScore,
    /// Whether posts with nearly the same picture become one hit.
    pub fold: bool,
    /// Pictures are nearly the same when the cosine of their vectors is at least this.
    pub fold_similarity: f32,
    /// Of the similarities, before `probability` and fusion.
    pub transform: Transform,
    /// Searches at a time; a further one waits up to `max_wait`, then gets 429.
    pub max_concurrent: usize,
    /// Searches at a time; a further one waits up to `max_wait`, then gets 429.
    #[serde(with = "humantime_serde")]
    pub max_wait: Duration,
    /// Searches in one request.
    pub max_batch: usize,
    /// A search that is not answered by then gets 503.
    #[serde(with = "humantime_serde")]
    pub timeout: Duration,
    /// The API keys' names and hashes ([`keys`]); empty: no key is asked for.
    pub api_keys_file: PathBuf,
    /// Requests a second for each API key (0: no limit), and how many may come at once.
    pub key_rate: u32,
    /// Requests a second for each API key (0: no limit), and how many may come at once.
    pub key_burst: u32,
    /// Origins whose pages may read answers (CORS).
    pub cors_origins: Vec<String>,
    /// Topic embeddings kept.
    pub cache_entries: usize,
    /// Streams of matches (`/v1/matches`) at a time.
    pub max_streams: usize,
    /// Streams of matches at a time of one API key, or of one address where no key is asked for.
    pub max_streams_per_client: usize,
    /// Answer requests that come over Kafka.
    pub kafka: bool,
    /// Answer requests that come over Kafka.
    pub requests_topic: String,
    /// Answer requests that come over Kafka.
    pub results_topic: String,
    /// Further topics that a request may ask to be answered in (`reply_to`).
    pub reply_topics: Vec<String>,
    /// A topic of `reply_topics` has so long to take an answer.
    #[serde(with = "humantime_serde")]
    pub reply_timeout: Duration,
    /// Answer requests that come over Kafka.
    pub group: String,
}

impl QueryConfig {
    /// Whether the file of API keys is good: of no concern but to what lets in by it.
    ///
    /// # Errors
    /// One sentence that names the file.
    pub(crate) fn check_keys(&self) -> anyhow::Result<()> {
        if keys::is_set(&self.api_keys_file) {
            keys::ApiKeys::open(self)?;
        }
        Ok(())
    }

    pub(crate) fn check(&self) -> anyhow::Result<()> {
        crate::service::address("query.listen", &self.listen)?;
        self.tls.check("query.tls")?;
        anyhow::ensure!(
            self.top_k >= 1 && self.top_k <= self.max_top_k,
            "query.top_k ({}) must be between 1 and query.max_top_k ({})",
            self.top_k,
            self.max_top_k
        );
        anyhow::ensure!(
            (1..=service::MAX_CANDIDATES).contains(&self.candidates),
            "query.candidates ({}) must be between 1 and {}",
            self.candidates,
            service::MAX_CANDIDATES
        );
        anyhow::ensure!(
            self.max_offset + self.max_top_k <= service::MAX_CANDIDATES,
            "query.max_offset ({}) and query.max_top_k ({}) together must be at most {}, the most candidates of a search",
            self.max_offset,
            self.max_top_k,
            service::MAX_CANDIDATES
        );
        for (key, value) in [("image_weight", self.image_weight), ("fold_similarity", f64::from(self.fold_similarity))]
        {
            anyhow::ensure!((0.0..=1.0).contains(&value), "query.{key} ({value}) must be from 0 to 1");
        }
        anyhow::ensure!(self.max_concurrent >= 1, "query.max_concurrent must be at least 1");
        anyhow::ensure!(self.max_connections >= 1, "query.max_connections must be at least 1");
        anyhow::ensure!(self.max_streams_per_client >= 1, "query.max_streams_per_client must be at least 1");
        anyhow::ensure!(self.max_batch >= 1, "query.max_batch must be at least 1");
        anyhow::ensure!(
            self.reply_timeout >= Duration::from_millis(100),
            "query.reply_timeout ({:?}) must be at least 100ms",
            self.reply_timeout
        );
        if self.key_rate > 0 {
            keys::check_burst("query.key_burst", self.key_burst, self)?;
        }
        for origin in &self.cors_origins {
            check_origin(origin)?;
        }
        anyhow::ensure!(
            self.requests_topic != self.results_topic,
            "query.requests_topic and query.results_topic are both {:?}; answers would be read as requests",
            self.requests_topic
        );
        anyhow::ensure!(
            !self.reply_topics.contains(&self.requests_topic),
            "query.reply_topics holds {:?}, the topic of requests; answers would be read as requests",
            self.requests_topic
        );
        Ok(())
    }
}

/// An origin as browsers send it: scheme, host, and the port where it is not the scheme's own.
fn check_origin(origin: &str) -> anyhow::Result<()> {
    let same = url::Url::parse(origin).is_ok_and(|url| url.has_host() && url.origin().ascii_serialization() == origin);
    anyhow::ensure!(
        same,
        "query.cors_origins holds {origin:?}; an origin is of the form https://host or https://host:port, without a path"
    );
    Ok(())
}
