//! The configuration: `config/default.toml` (compiled in), files, environment, `--set`; later wins. The sections are
//! declared beside the code that they configure.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use serde::{Deserialize, Serialize};
use toml::{Table, Value};

/// The defaults, each key with its comment.
pub const DEFAULTS: &str = include_str!("../config/default.toml");

/// Prefix of environment variables: `FEEDLENS__KAFKA__BROKERS`.
const ENVIRONMENT_PREFIX: &str = "FEEDLENS__";

/// Free-form tables: their keys are another program's, so they are not checked against the defaults.
const FREE_TABLES: [&str; 1] = ["kafka.properties"];

/// The resolved configuration.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Logs.
    pub log: crate::service::LogConfig,
    /// Which model bundle.
    pub model: crate::encode::bundle::ModelConfig,
    /// How the encoder runs.
    pub encoder: crate::encode::EncoderConfig,
    /// Pictures: sources and limits.
    pub images: crate::image::ImagesConfig,
    /// Posts: limits.
    pub posts: crate::post::PostsConfig,
    /// Brokers, topics, group.
    pub kafka: crate::kafka::KafkaConfig,
    /// The ingest worker.
    pub ingest: crate::ingest::IngestConfig,
    /// The vector store.
    pub store: crate::store::StoreConfig,
    /// The query worker.
    pub query: crate::query::QueryConfig,
    /// The admin endpoints.
    pub admin: crate::service::AdminConfig,
}

/// A text that is never printed: `Debug` and serialising show asterisks.
#[derive(Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// A secret.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text itself; name this call sparingly.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Whether it is unset.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn masked(&self) -> &'static str {
        if self.0.is_empty() { "" } else { "********" }
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{:?}", self.masked())
    }
}

impl Serialize for Secret {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.masked())
    }
}

/// What the command line and the environment say of the configuration.
#[derive(Debug, Clone, Default)]
pub struct Overrides {
    /// `--config FILE`, in order.
    pub files: Vec<PathBuf>,
    /// `--set a.b=value`, in order.
    pub set: Vec<String>,
}

impl Config {
    /// Reads all sources; later wins: defaults, `presets` (a command's own, such as the demo's), files, environment,
    /// `--set`.
    ///
    /// # Errors
    /// Names the file or key at fault; for an unknown key, the nearest known one.
    pub fn load(presets: &[(&str, Value)], overrides: &Overrides) -> Result<Self> {
        let environment = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .filter(|(name, _)| name.starts_with(ENVIRONMENT_PREFIX))
            .collect::<BTreeMap<_, _>>();
        Self::load_from(presets, overrides, &environment)
    }

    fn load_from(
        presets: &[(&str, Value)],
        overrides: &Overrides,
        environment: &BTreeMap<String, String>,
    ) -> Result<Self> {
        let known = known_keys();
        let mut builder =
            config::Config::builder().add_source(config::File::from_str(DEFAULTS, config::FileFormat::Toml));
        let mut add = |table: Table, origin: &str| -> Result<()> {
            check_keys(&table, &known).with_context(|| format!("in {origin}"))?;
            let text = toml::to_string(&table).with_context(|| format!("in {origin}"))?;
            let source = config::File::from_str(&text, config::FileFormat::Toml);
            builder = std::mem::take(&mut builder).add_source(source);
            Ok(())
        };
        for (key, value) in presets {
            add(nested(key, value.clone())?, "this command's own settings")?;
        }
        for file in &overrides.files {
            add(read_file(file)?, &format!("configuration file {}", file.display()))?;
        }
        for (name, value) in environment {
            let key = name[ENVIRONMENT_PREFIX.len()..].to_lowercase().replace("__", ".");
            add(nested(&key, parse_value(value))?, &format!("environment variable {name}"))?;
        }
        for assignment in &overrides.set {
            let (key, value) = assignment
                .split_once('=')
                .ok_or_else(|| anyhow!("--set {assignment:?}: write it as --set section.key=value"))?;
            add(nested(key.trim(), parse_value(value))?, &format!("--set {assignment}"))?;
        }
        let resolved: Self = builder
            .build()
            .and_then(config::Config::try_deserialize)
            .map_err(|error| anyhow!("configuration: {error}"))?;
        resolved.check()?;
        Ok(resolved)
    }

    /// Relations between keys that no single type can state.
    fn check(&self) -> Result<()> {
        self.encoder.check()?;
        self.kafka.check()?;
        self.ingest.check()?;
        self.query.check()?;
        self.store.check()?;
        self.kafka.check_drain("ingest.drain_timeout", self.ingest.drain_timeout)?;
        if self.query.kafka {
            self.kafka.check_drain("query.timeout", self.query.timeout)?;
        }
        Ok(())
    }

    /// The resolved configuration as TOML, secrets masked.
    ///
    /// # Errors
    /// Never for a configuration that was loaded.
    pub fn to_toml(&self) -> Result<String> {
        Ok(toml::to_string(self)?)
    }
}

fn read_file(file: &Path) -> Result<Table> {
    let text =
        std::fs::read_to_string(file).with_context(|| format!("cannot read configuration file {}", file.display()))?;
    text.parse::<Table>().with_context(|| format!("configuration file {} is not TOML", file.display()))
}

/// A value as TOML would read it; what TOML cannot read is a string, so that `--set kafka.group=a` needs no quotes.
fn parse_value(text: &str) -> Value {
    format!("value = {text}")
        .parse::<Table>()
        .ok()
        .and_then(|mut table| table.remove("value"))
        .unwrap_or_else(|| Value::String(text.to_owned()))
}

fn nested(key: &str, value: Value) -> Result<Table> {
    // A free table's own keys contain dots: everything behind its name is one key.
    let free = FREE_TABLES.iter().find_map(|free| key.strip_prefix(free)?.strip_prefix('.').map(|rest| (*free, rest)));
    let (path, last) = match free {
        Some(split) => split,
        None => key.rsplit_once('.').ok_or_else(|| anyhow!("{key:?} is not of the form section.key"))?,
    };
    let mut table = Table::from_iter([(last.to_owned(), value)]);
    for part in path.rsplit('.') {
        table = Table::from_iter([(part.to_owned(), Value::Table(table))]);
    }
    Ok(table)
}

fn known_keys() -> Vec<String> {
    let defaults = DEFAULTS.parse::<Table>().expect("config/default.toml is TOML. This is a bug.");
    let mut keys = Vec::new();
    collect_keys(&defaults, "", &mut keys);
    keys
}

fn collect_keys(table: &Table, prefix: &str, keys: &mut Vec<String>) {
    for (name, value) in table {
        let path = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
        match value {
            Value::Table(inner) if !FREE_TABLES.contains(&path.as_str()) => collect_keys(inner, &path, keys),
            _ => keys.push(path),
        }
    }
}

fn check_keys(table: &Table, known: &[String]) -> Result<()> {
    let mut keys = Vec::new();
    collect_keys(table, "", &mut keys);
    for key in keys {
        if !known.contains(&key) {
            let nearest = known
                .iter()
                .max_by(|left, right| strsim::jaro_winkler(&key, left).total_cmp(&strsim::jaro_winkler(&key, right)))
                .expect("the defaults have keys. This is a bug.");
            bail!("unknown key {key:?}; the nearest known key is {nearest:?}");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(set: &[&str]) -> Result<Config> {
        let overrides = Overrides { files: vec![], set: set.iter().map(ToString::to_string).collect() };
        Config::load_from(&[], &overrides, &BTreeMap::new())
    }

    #[test]
    fn shipped_file_is_a_whole_valid_configuration() {
        let config = load(&[]).expect("the defaults load");
        assert_eq!(config.query.top_k, 5);
    }

    #[test]
    fn unknown_key_names_the_nearest_one() {
        let error = format!("{:#}", load(&["kafka.broker=x"]).expect_err("unknown key"));
        assert!(error.contains("\"kafka.brokers\""), "{error}");
    }

    #[test]
    fn later_sources_win_and_values_keep_their_types() {
        let environment = BTreeMap::from([("FEEDLENS__QUERY__TOP_K".to_owned(), "7".to_owned())]);
        let overrides = Overrides::default();
        let config = Config::load_from(&[("query.top_k", Value::Integer(6))], &overrides, &environment);
        assert_eq!(config.expect("loads").query.top_k, 7);
        assert_eq!(load(&["query.top_k=9", "query.top_k=8"]).expect("loads").query.top_k, 8);
    }

    #[test]
    fn librdkafka_properties_pass_with_their_dots() {
        let config = load(&["kafka.properties.fetch.max.bytes=1000"]).expect("loads");
        assert_eq!(config.kafka.properties.get("fetch.max.bytes").map(String::as_str), Some("1000"));
    }

    #[test]
    fn secrets_are_masked() {
        let config = load(&["kafka.sasl_password=hunter2", "store.qdrant.api_key=k3y"]).expect("loads");
        let shown = config.to_toml().expect("serialises") + &format!("{config:?}");
        assert!(!shown.contains("hunter2") && !shown.contains("k3y"), "{shown}");
    }
}
