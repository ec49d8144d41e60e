//! Every metric: name, help, labels, buckets (design 1.7). Base units, few labels, never ids.

use prometheus::{
    Encoder as _, Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge,
    IntGaugeVec, Opts, Registry, TextEncoder,
};

use sysinfo::System;

use crate::error::{Outage, Reason};

/// Seconds from 100 microseconds to 30 s.
const SECONDS: [f64; 17] =
    [0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];
/// End to end also covers hours of backlog.
const END_TO_END_SECONDS: [f64; 14] =
    [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0, 300.0, 3600.0, 21600.0];
/// Labels of `searches_total`.
const SEARCH_SOURCES: [&str; 3] = ["http", "kafka", "cli"];
/// Labels of `searches_total`.
const SEARCH_OUTCOMES: [&str; 4] = ["ok", "rejected", "overloaded", "unavailable"];
/// Labels of `standing_registrations_total`.
const REGISTRATION_OUTCOMES: [&str; 4] = ["registered", "removed", "rejected", "over_limit"];
/// A kind of announcement: a match of a standing topic.
pub const MATCH: &str = "match";
/// A kind of announcement: a post that moderation is told of.
pub const MODERATION: &str = "moderation";
/// Labels of `kafka_errors_total`.
const KAFKA_ERRORS: [&str; 5] = ["connection", "tls", "authentication", "authorization", "other"];
/// Labels of `stage_seconds`; the last two are of the embedded store.
const STAGES: [&str; 12] = [
    "parse",
    "fetch",
    "decode",
    "resize",
    "tokenize",
    "encode",
    "write",
    "match",
    "announce",
    "dead_letter",
    "optimize",
    "checkpoint",
];
/// Labels of `batch_size`, `batch_wait_seconds` and `encode_seconds`.
const TOWERS: [&str; 2] = ["image", "text"];
/// Labels of `queue_depth`.
const QUEUES: [&str; 3] = ["encode_image", "encode_text", "write"];
/// Labels of `embedding_cache_total`.
const CACHE_RESULTS: [&str; 2] = ["hit", "miss"];
/// Labels of `search_seconds`.
const SEARCH_PHASES: [&str; 4] = ["wait", "encode", "store", "total"];
/// Labels of `tls_reloads_total`.
const TLS_PORTS: [&str; 2] = ["query.tls", "admin.tls"];
/// Labels of `trace_spans_total`.
const TRACE_OUTCOMES: [&str; 3] = ["exported", "failed", "dropped"];
/// Labels of `api_keys_reloads_total` and `tls_reloads_total`.
const RELOAD_OUTCOMES: [&str; 2] = ["ok", "failed"];
/// Labels of `replies_redirected_total`.
const REDIRECTIONS: [&str; 3] = ["too_large", "refused", "unavailable"];
const BATCH_SIZES: [f64; 10] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0];

/// All metrics of a process, in a registry of their own.
#[derive(Debug, Clone)]
pub struct Metrics {
    registry: Registry,
    /// Messages taken from the posts topic.
    pub posts_consumed: IntCounter,
    /// Posts whose point is durable in the store.
    pub posts_indexed: IntCounter,
    /// Deletions that are durable in the store.
    pub posts_deleted: IntCounter,
    /// Posts and deletions that changed nothing, because a newer write of the post is stored.
    pub posts_ignored: IntCounter,
    /// Posts indexed without their pictures; among `posts_indexed`, and among `posts_dead_lettered` as soon as they are.
    pub posts_image_pending: IntCounter,
    /// Posts in the dead-letter topic, by reason.
    pub posts_dead_lettered: IntCounterVec,
    /// Posts that a reindex cannot index, by reason; the live workers dead-letter them.
    pub posts_passed_over: IntCounterVec,
    /// Dead letters that the broker refuses as too large.
    pub dead_letters_stuck: IntGauge,
    /// Delete markers that were old enough to go.
    pub delete_markers_purged: IntCounter,
    /// Attempts that failed for now, by reason.
    pub posts_retried: IntCounterVec,
    /// Seconds in a stage: `parse`, `fetch`, `decode`, `resize`, `tokenize`, `encode`, `write`, `match`, `announce`,
    /// `dead_letter`; of the embedded store also `optimize`, `checkpoint`.
    pub stage_seconds: HistogramVec,
    /// Kafka timestamp to durable.
    pub end_to_end_seconds: Histogram,
    /// Items in an encoder batch.
    pub batch_size: HistogramVec,
    /// Seconds that the oldest item of a batch waited.
    pub batch_wait_seconds: HistogramVec,
    /// Seconds of one encoder run.
    pub encode_seconds: HistogramVec,
    /// Share of the last interval that the encoder workers were busy, 0 to 1.
    pub encoder_busy_ratio: Gauge,
    /// Posts between the source and the store.
    pub inflight_posts: IntGauge,
    /// Bytes of the messages between the source and the store.
    pub inflight_bytes: IntGauge,
    /// Items waiting in a queue: `encode_image`, `encode_text`, `write`.
    pub queue_depth: IntGaugeVec,
    /// Topic embeddings: `hit` or `miss`.
    pub embedding_cache: IntCounterVec,
    /// Messages behind the end of the partition.
    pub consumer_lag: IntGaugeVec,
    /// Partitions paused for lack of room downstream.
    pub paused_partitions: IntGauge,
    /// Times that the consumer had to go on elsewhere than where it was.
    pub offset_resets: IntCounter,
    /// Errors of the brokers, by kind: `connection`, `tls`, `authentication`, `authorization`, `other`.
    pub kafka_errors: IntCounterVec,
    /// Offset commits that failed for now.
    pub commits_failed: IntCounter,
    /// Standing topics in force in this process.
    pub standing_topics: IntGauge,
    /// Standing topics that are ignored: `ingest.max_standing_topics` were registered before them.
    pub standing_topics_over_limit: IntGauge,
    /// Records of standing topics read, by what they did: `registered`, `removed`, `rejected`, `over_limit`.
    pub standing_registrations: IntCounterVec,
    /// Matches of standing topics, acknowledged by the broker.
    pub standing_matches: IntCounter,
    /// Matches beyond `ingest.max_matches_per_post`, which nobody is told of.
    pub standing_matches_cut: IntCounter,
    /// Announcements (`match`, `moderation`) that their topics take only without caption and author; acknowledged.
    pub announcements_shortened: IntCounterVec,
    /// Announcements that nobody was told of, by kind (`match`, `moderation`) and reason (`too_large`: even without caption
    /// and author, for the topic).
    pub announcements_given_up: IntCounterVec,
    /// Labels that stored posts carry, by label ("set/label"): as many as the configuration has.
    pub posts_labelled: IntCounterVec,
    /// Stored posts that carry a label of a moderation set, by set and action (`flag`, `hide`, `route`).
    pub posts_moderated: IntCounterVec,
    /// Streams of matches that are open.
    pub match_streams: IntGauge,
    /// Streams of matches that were ended because their client did not keep up.
    pub match_streams_dropped: IntCounter,
    /// Searches, by source (`http`, `kafka`, `cli`) and outcome (`ok`, `rejected`, `overloaded`, `unavailable`).
    pub searches: IntCounterVec,
    /// Answers over Kafka that the topic of their requester did not take, by reason: `too_large`, `refused` (not there, no
    /// rights), `unavailable`.
    pub replies_redirected: IntCounterVec,
    /// HTTP requests where API keys are asked for, by the key's name and outcome (`accepted`, `rate_limited`; without a known
    /// key, and so without a name, `unauthorized`).
    pub api_requests: IntCounterVec,
    /// Changes of the file of API keys, by outcome (`ok`, `failed`: the keys stayed as they were).
    pub api_keys_reloads: IntCounterVec,
    /// By outcome (`ok`, `failed`).
    pub config_reloads: IntCounterVec,
    /// By port (`query.tls`, `admin.tls`) and outcome (`ok`, `failed`).
    pub tls_reloads: IntCounterVec,
    /// Spans of traces, by what became of them: `exported`, `failed` (the collector did not take them), `dropped` (too many).
    pub trace_spans: IntCounterVec,
    /// Seconds in a phase of a search: `wait`, `encode`, `store`, `total`.
    pub search_seconds: HistogramVec,
    /// 1 while the worker is ready, as `/readyz` says it, looked at every few seconds.
    pub ready: IntGauge,
    /// Bytes of memory that this process may have: the least of its control group's limit and the machine's memory.
    pub memory_limit_bytes: IntGauge,
    /// Always 1; the labels tell the version and the command (`ingest`, `query`, `demo`).
    pub build_info: GaugeVec,
    /// Always 1; the labels tell the model and the provider that really serves.
    pub model_info: GaugeVec,
}

impl Metrics {
    /// Registers every metric.
    ///
    /// # Panics
    /// Never: names are constants, each used once, in a fresh registry.
    pub fn new() -> Self {
        let registry = Registry::new_custom(Some("feedlens".to_owned()), None)
            .expect("the prefix is a valid metric name. This is a bug.");
        #[cfg(target_os = "linux")]
        // Names of process metrics are a convention of Prometheus: they take no prefix, so they live beside ours.
        let _ = prometheus::register(Box::new(prometheus::process_collector::ProcessCollector::for_self()));
        let make = Maker { registry: &registry };
        let metrics = Self {
            posts_consumed: make.counter("posts_consumed_total", "Messages taken from the posts topic."),
            posts_indexed: make.counter("posts_indexed_total", "Posts whose point is durable in the store."),
            posts_deleted: make.counter("posts_deleted_total", "Deletions that are durable in the store."),
            posts_ignored: make.counter(
                "posts_ignored_total",
                "Posts and deletions that changed nothing: a newer write of the post is stored.",
            ),
            posts_image_pending: make.counter(
                "posts_image_pending_total",
                "Posts indexed by their captions alone; they count as indexed and, as image_unavailable, as dead-lettered.",
            ),
            dead_letters_stuck: make.int_gauge(
                "dead_letters_stuck",
                "Dead letters larger than their topic takes; until it takes more, their partitions commit nothing past them.",
            ),
            delete_markers_purged: make.counter(
                "delete_markers_purged_total",
                "Delete markers older than store.delete_marker_ttl that were removed.",
            ),
            posts_dead_lettered: make.counters(
                "posts_dead_lettered_total",
                "Posts in the dead-letter topic, acknowledged by the broker.",
                &["reason"],
            ),
            posts_passed_over: make.counters(
                "posts_passed_over_total",
                "Posts that a reindex cannot index, by reason; the live workers dead-letter them.",
                &["reason"],
            ),
            posts_retried: make.counters("posts_retried_total", "Attempts that failed for now.", &["reason"]),
            stage_seconds: make.histograms("stage_seconds", "Seconds in a stage of ingest.", &["stage"], &SECONDS),
            end_to_end_seconds: make.histogram(
                "end_to_end_seconds",
                "Seconds from the Kafka timestamp of a post to its point being durable.",
                &END_TO_END_SECONDS,
            ),
            batch_size: make.histograms("batch_size", "Items in an encoder batch.", &["tower"], &BATCH_SIZES),
            batch_wait_seconds: make.histograms(
                "batch_wait_seconds",
                "Seconds that the oldest item of an encoder batch waited.",
                &["tower"],
                &SECONDS,
            ),
            encode_seconds: make.histograms(
                "encode_seconds",
                "Seconds of one encoder run.",
                &["tower", "provider"],
                &SECONDS,
            ),
            encoder_busy_ratio: make.gauge("encoder_busy_ratio", "Share of time that the encoder workers are busy."),
            inflight_posts: make.int_gauge("inflight_posts", "Posts between the source and the store."),
            inflight_bytes: make.int_gauge("inflight_bytes", "Bytes of the messages between the source and the store."),
            queue_depth: make.int_gauges("queue_depth", "Items waiting in a queue.", &["queue"]),
            embedding_cache: make.counters("embedding_cache_total", "Look-ups of topic embeddings.", &["result"]),
            consumer_lag: make.int_gauges(
                "consumer_lag",
                "Messages between the committed offset and the end of the partition.",
                &["topic", "partition"],
            ),
            paused_partitions: make.int_gauge("paused_partitions", "Partitions paused for lack of room downstream."),
            offset_resets: make.counter(
                "offset_resets_total",
                "Times that messages were gone before they were read, and the consumer went on at the earliest left.",
            ),
            kafka_errors: make.counters("kafka_errors_total", "Errors that consumers got from the brokers.", &["kind"]),
            commits_failed: make.counter("commits_failed_total", "Offset commits that failed for now; tried again."),
            standing_topics: make.int_gauge("standing_topics", "Standing topics in force in this process."),
            standing_topics_over_limit: make.int_gauge(
                "standing_topics_over_limit",
                "Standing topics that are ignored: ingest.max_standing_topics were registered before them.",
            ),
            standing_registrations: make.counters(
                "standing_registrations_total",
                "Records of standing topics that were read, by what they did.",
                &["outcome"],
            ),
            standing_matches: make.counter(
                "standing_matches_total",
                "Matches of standing topics, acknowledged by the broker.",
            ),
            standing_matches_cut: make.counter(
                "standing_matches_cut_total",
                "Matches beyond ingest.max_matches_per_post, which nobody is told of.",
            ),
            announcements_shortened: make.counters(
                "announcements_shortened_total",
                "Announcements of posts that their topics take only without caption and author.",
                &["kind"],
            ),
            announcements_given_up: make.counters(
                "announcements_given_up_total",
                "Announcements of posts that nobody was told of.",
                &["kind", "reason"],
            ),
            posts_labelled: make.counters("posts_labelled_total", "Labels of posts that were stored.", &["label"]),
            posts_moderated: make.counters(
                "posts_moderated_total",
                "Posts stored with a label of a moderation set, by what becomes of them.",
                &["set", "action"],
            ),
            match_streams: make.int_gauge("match_streams", "Streams of matches that are open."),
            match_streams_dropped: make.counter(
                "match_streams_dropped_total",
                "Streams of matches that were ended because their client did not keep up.",
            ),
            searches: make.counters("searches_total", "Searches.", &["source", "outcome"]),
            replies_redirected: make.counters(
                "replies_redirected_total",
                "Answers sent to query.results_topic because the topic of their requester did not take them.",
                &["reason"],
            ),
            api_requests: make.counters("api_requests_total", "HTTP requests by API key.", &["key", "outcome"]),
            api_keys_reloads: make.counters(
                "api_keys_reloads_total",
                "Changes of the file of API keys.",
                &["outcome"],
            ),
            config_reloads: make.counters(
                "config_reloads_total",
                "Times that SIGHUP had the configuration read again.",
                &["outcome"],
            ),
            tls_reloads: make.counters(
                "tls_reloads_total",
                "Changes of the certificate of a port.",
                &["port", "outcome"],
            ),
            trace_spans: make.counters("trace_spans_total", "Spans of traces, by what became of them.", &["outcome"]),
            search_seconds: make.histograms("search_seconds", "Seconds in a phase of a search.", &["phase"], &SECONDS),
            ready: make.int_gauge("ready", "1 while the worker is ready, as /readyz says it."),
            memory_limit_bytes: make.int_gauge(
                "memory_limit_bytes",
                "Memory that this process may have: the least of its control group's limit and the machine's memory.",
            ),
            build_info: make.gauges(
                "build_info",
                "The running version and command; always 1.",
                &["version", "command"],
            ),
            model_info: make.gauges(
                "model_info",
                "The model, the execution provider that really serves, and those it had to stand in for; always 1.",
                &["model", "dimension", "provider", "fallback_from"],
            ),
            registry: registry.clone(),
        };
        metrics.start_at_zero();
        metrics
    }

    /// Where the values of labels are known beforehand. A rate() over a counter that first appears with its first failure
    /// misses that failure, and a dashboard without a curve looks like one that is broken.
    fn start_at_zero(&self) {
        for reason in Reason::ALL {
            self.posts_dead_lettered.with_label_values(&[reason.as_str()]);
            self.posts_passed_over.with_label_values(&[reason.as_str()]);
        }
        for outage in Outage::ALL {
            self.posts_retried.with_label_values(&[outage.as_str()]);
        }
        for stage in STAGES {
            self.stage_seconds.with_label_values(&[stage]);
        }
        for tower in TOWERS {
            self.batch_size.with_label_values(&[tower]);
            self.batch_wait_seconds.with_label_values(&[tower]);
        }
        for queue in QUEUES {
            self.queue_depth.with_label_values(&[queue]);
        }
        for result in CACHE_RESULTS {
            self.embedding_cache.with_label_values(&[result]);
        }
        for kind in KAFKA_ERRORS {
            self.kafka_errors.with_label_values(&[kind]);
        }
        for outcome in REGISTRATION_OUTCOMES {
            self.standing_registrations.with_label_values(&[outcome]);
        }
        for reason in REDIRECTIONS {
            self.replies_redirected.with_label_values(&[reason]);
        }
        for kind in [MATCH, MODERATION] {
            self.announcements_shortened.with_label_values(&[kind]);
            self.announcements_given_up.with_label_values(&[kind, Reason::TooLarge.as_str()]);
        }
        for source in SEARCH_SOURCES {
            for outcome in SEARCH_OUTCOMES {
                self.searches.with_label_values(&[source, outcome]);
            }
        }
        for phase in SEARCH_PHASES {
            self.search_seconds.with_label_values(&[phase]);
        }
        for outcome in TRACE_OUTCOMES {
            self.trace_spans.with_label_values(&[outcome]);
        }
        for outcome in RELOAD_OUTCOMES {
            self.api_keys_reloads.with_label_values(&[outcome]);
            for port in TLS_PORTS {
                self.tls_reloads.with_label_values(&[port, outcome]);
            }
        }
    }

    /// Tells which command this process runs, and how much memory it may have.
    pub fn tell_process(&self, command: &str) {
        self.build_info.with_label_values(&[env!("CARGO_PKG_VERSION"), command]).set(1.0);
        let mut system = System::new();
        system.refresh_memory();
        // Of a process outside of any control group the machine's memory is told.
        let limit = system.cgroup_limits().map_or(system.total_memory(), |limits| limits.total_memory);
        self.memory_limit_bytes.set(i64::try_from(limit).unwrap_or(i64::MAX));
    }

    /// Tells which model encodes here, and by which provider: `fallback_from` names those that it stands in for.
    pub fn tell_model(&self, model: &str, dimension: usize, provider: &str, fallback_from: &str) {
        self.model_info.with_label_values(&[model, &dimension.to_string(), provider, fallback_from]).set(1.0);
        for tower in TOWERS {
            self.encode_seconds.with_label_values(&[tower, provider]);
        }
    }

    /// The text exposition format, version 0.0.4.
    pub fn render(&self) -> String {
        let mut families = self.registry.gather();
        families.extend(prometheus::gather());
        let mut text = Vec::new();
        TextEncoder::new()
            .encode(&families, &mut text)
            .expect("writing to memory succeeds and every family has a metric. This is a bug.");
        String::from_utf8(text).expect("the exposition format is UTF-8. This is a bug.")
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

const REGISTERED_ONCE: &str = "metric names are valid and registered once. This is a bug.";

struct Maker<'a> {
    registry: &'a Registry,
}

impl Maker<'_> {
    fn register<C: prometheus::core::Collector + Clone + 'static>(&self, metric: prometheus::Result<C>) -> C {
        let metric = metric.expect(REGISTERED_ONCE);
        self.registry.register(Box::new(metric.clone())).expect(REGISTERED_ONCE);
        metric
    }

    fn counter(&self, name: &str, help: &str) -> IntCounter {
        self.register(IntCounter::new(name, help))
    }

    fn counters(&self, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
        self.register(IntCounterVec::new(Opts::new(name, help), labels))
    }

    fn gauge(&self, name: &str, help: &str) -> Gauge {
        self.register(Gauge::new(name, help))
    }

    fn gauges(&self, name: &str, help: &str, labels: &[&str]) -> GaugeVec {
        self.register(GaugeVec::new(Opts::new(name, help), labels))
    }

    fn int_gauge(&self, name: &str, help: &str) -> IntGauge {
        self.register(IntGauge::new(name, help))
    }

    fn int_gauges(&self, name: &str, help: &str, labels: &[&str]) -> IntGaugeVec {
        self.register(IntGaugeVec::new(Opts::new(name, help), labels))
    }

    fn histogram(&self, name: &str, help: &str, buckets: &[f64]) -> Histogram {
        self.register(Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets.to_vec())))
    }

    fn histograms(&self, name: &str, help: &str, labels: &[&str], buckets: &[f64]) -> HistogramVec {
        self.register(HistogramVec::new(HistogramOpts::new(name, help).buckets(buckets.to_vec()), labels))
    }
}
