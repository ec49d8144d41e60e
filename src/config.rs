//! The configuration: `config/default.toml` (compiled in), files, environment, `--set`; later wins. The sections are
//! declared beside the code that they configure.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use config::ConfigError;
use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use crate::text::nearest;

pub mod secret;

pub use secret::Secret;

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
    /// Captions: what of them is tokenised.
    pub captions: crate::captions::CaptionsConfig,
    /// Posts: limits.
    pub posts: crate::post::PostsConfig,
    /// Brokers, topics, group.
    pub kafka: crate::kafka::KafkaConfig,
    /// Zero-shot labels and moderation.
    pub labels: crate::labels::LabelsConfig,
    /// The ingest worker.
    pub ingest: crate::ingest::IngestConfig,
    /// The vector store.
    pub store: crate::store::StoreConfig,
    /// The query worker.
    pub query: crate::query::QueryConfig,
    /// The admin endpoints.
    pub admin: crate::service::AdminConfig,
    /// Traces.
    pub traces: crate::traces::TracesConfig,
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
        let defaults = DEFAULTS.parse::<Table>().expect("config/default.toml is TOML. This is a bug.");
        let known = keys_of(&defaults);
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
            add(nested(&key, parse_value(&defaults, &key, value))?, &format!("environment variable {name}"))?;
        }
        for assignment in &overrides.set {
            // Errors name the key alone: the value may be a secret, and the key that makes it one mistyped.
            let (key, value) = assignment.split_once('=').ok_or_else(|| {
                let key = assignment.split(|letter: char| !is_of_key(letter)).next().unwrap_or_default();
                anyhow!("--set {key}: there is no \"=\"; write it as --set section.key=value")
            })?;
            let key = key.trim();
            add(nested(key, parse_value(&defaults, key, value))?, &format!("--set {key}"))?;
        }
        let resolved: Self = builder
            .build()
            .and_then(config::Config::try_deserialize)
            .map_err(|error| anyhow!("configuration: {}", without_secrets(&error, false)))?;
        resolved.check()?;
        Ok(resolved)
    }

    /// Relations between keys that no single type can state.
    fn check(&self) -> Result<()> {
        self.log.check()?;
        self.encoder.check()?;
        self.images.check()?;
        self.kafka.check()?;
        self.labels.check()?;
        self.ingest.check()?;
        self.query.check()?;
        self.store.check()?;
        self.admin.check()?;
        self.traces.check()?;
        self.kafka.check_drain("ingest.drain_timeout", self.ingest.drain_timeout)?;
        if self.query.kafka {
            self.kafka.check_drain("query.timeout", self.query.timeout)?;
        }
        Ok(())
    }

    /// The keys that differ. Secrets are not compared: they are masked wherever a configuration is written.
    ///
    /// # Errors
    /// A number is larger than TOML has them (2^63 - 1); the environment and `--set` can give such.
    pub fn changed_keys(&self, other: &Self) -> Result<Vec<String>> {
        let tables = [Table::try_from(self)?, Table::try_from(other)?];
        let [old, new] = tables.each_ref().map(|table| {
            let mut values = BTreeMap::new();
            collect_values(table, "", &mut values);
            values
        });
        let keys = old.keys().chain(new.keys()).collect::<BTreeSet<_>>();
        Ok(keys.into_iter().filter(|key| old.get(*key) != new.get(*key)).cloned().collect())
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
    text.parse::<Table>().map_err(|error| {
        // Not the error's own text: it quotes the line, and the line may hold a secret.
        let line = error.span().map_or(1, |span| 1 + text[..span.start].matches('\n').count());
        anyhow!("configuration file {} is not TOML: line {line}: {}", file.display(), error.message())
    })
}

/// What is wrong with a value, without the value where it is a secret. `is_secret`: what the caller knows already.
fn without_secrets(error: &ConfigError, is_secret: bool) -> String {
    let hides = |key: &Option<String>| {
        let key = key.as_deref().unwrap_or_default();
        is_secret || secret::is_secret(key) || FREE_TABLES.contains(&key)
    };
    let place = |key: &Option<String>| key.as_ref().map(|key| format!(" for key `{key}`")).unwrap_or_default();
    match error {
        ConfigError::Type { key, unexpected, expected, .. } => match hides(key) {
            true => format!("invalid type: expected {expected}{}", place(key)),
            false => format!("invalid type: {unexpected}, expected {expected}{}", place(key)),
        },
        ConfigError::At { error, key, .. } => format!("{}{}", without_secrets(error, hides(key)), place(key)),
        _ if is_secret => "invalid value".to_owned(),
        other => other.to_string(),
    }
}

fn is_of_key(letter: char) -> bool {
    letter.is_ascii_alphanumeric() || matches!(letter, '.' | '_' | '-')
}

/// A value as TOML would read it; but where a string is wanted, the text as it is, unless it is a string in TOML's quotes:
/// a password of "5#secret" is not the number 5, and `--set kafka.group=a` needs no quotes.
fn parse_value(defaults: &Table, key: &str, text: &str) -> Value {
    // As an item of a list, which must end where the text does: a comment is no part of a value.
    let parsed = format!("value = [{text}]").parse::<Table>().ok().and_then(|mut table| {
        let Some(Value::Array(items)) = table.remove("value") else { return None };
        let [value] = <[Value; 1]>::try_from(items).ok()?;
        Some(value)
    });
    match parsed {
        Some(value) if value.is_str() || !wants_string(defaults, key) => value,
        _ => Value::String(text.to_owned()),
    }
}

fn wants_string(defaults: &Table, key: &str) -> bool {
    if free_part(key).is_some() {
        return true;
    }
    let mut path = key.split('.');
    let first = path.next().and_then(|section| defaults.get(section));
    path.try_fold(first, |value, part| value.map(|value| value.get(part))).flatten().is_some_and(Value::is_str)
}

/// The name of the free table that a key lies in, and its own name there, dots and all.
fn free_part(key: &str) -> Option<(&'static str, &str)> {
    FREE_TABLES.iter().find_map(|free| key.strip_prefix(free)?.strip_prefix('.').map(|rest| (*free, rest)))
}

fn nested(key: &str, value: Value) -> Result<Table> {
    // A free table's own keys contain dots: everything behind its name is one key.
    let (path, last) = match free_part(key) {
        Some(split) => split,
        None => key.rsplit_once('.').ok_or_else(|| anyhow!("{key:?} is not of the form section.key"))?,
    };
    let mut table = Table::from_iter([(last.to_owned(), value)]);
    for part in path.rsplit('.') {
        table = Table::from_iter([(part.to_owned(), Value::Table(table))]);
    }
    Ok(table)
}

fn keys_of(table: &Table) -> Vec<String> {
    let mut values = BTreeMap::new();
    collect_values(table, "", &mut values);
    values.into_keys().collect()
}

/// The values by their whole keys; a free table is one value.
fn collect_values<'a>(table: &'a Table, prefix: &str, values: &mut BTreeMap<String, &'a Value>) {
    for (name, value) in table {
        let path = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
        match value {
            Value::Table(inner) if !FREE_TABLES.contains(&path.as_str()) => collect_values(inner, &path, values),
            _ => {
                values.insert(path, value);
            }
        }
    }
}

fn check_keys(table: &Table, known: &[String]) -> Result<()> {
    for key in keys_of(table) {
        if !known.contains(&key) {
            let nearest = nearest(&key, known.iter().map(String::as_str));
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
    fn changed_keys_are_named_and_what_toml_cannot_hold_is_an_error() {
        let config = |set: &[&str]| load(set).expect("loads");
        let changed = config(&[]).changed_keys(&config(&["log.level=debug", "query.top_k=7"]));
        assert_eq!(changed.expect("compares"), ["log.level", "query.top_k"]);
        assert!(config(&[]).changed_keys(&config(&["ingest.max_inflight_bytes=18446744073709551615"])).is_err());
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
    fn text_that_a_string_is_wanted_of_is_taken_as_it_is() {
        for text in
            ["5#secret", "1_000", "1e5", "0x10", "true", "2026-11-20", "[a]", "a\"b", "'", "a\nb = 1", "\"a\"#b\"", " "]
        {
            let environment = BTreeMap::from([("FEEDLENS__KAFKA__SASL_PASSWORD".to_owned(), text.to_owned())]);
            let set = Overrides {
                files: vec![],
                set: vec![format!("kafka.group={text}"), format!("kafka.properties.ssl.keystore.password={text}")],
            };
            let kafka = Config::load_from(&[], &set, &environment).expect("loads").kafka;
            assert_eq!((kafka.sasl_password.expose(), kafka.group.as_str()), (text, text));
            assert_eq!(kafka.properties["ssl.keystore.password"], text);
        }
        assert_eq!(load(&["kafka.group=\"a b\""]).expect("loads").kafka.group, "a b");
        assert_eq!(load(&["kafka.group='1'"]).expect("loads").kafka.group, "1");
        assert_eq!(load(&["store.edge.optimize_after=1_000"]).expect("loads").store.edge.optimize_after, 1_000);
    }

    #[test]
    fn librdkafka_properties_pass_with_their_dots() {
        let config = load(&["kafka.properties.fetch.max.bytes=1000"]).expect("loads");
        assert_eq!(config.kafka.properties.get("fetch.max.bytes").map(String::as_str), Some("1000"));
    }

    #[test]
    fn secrets_are_masked() {
        let set = [
            "kafka.sasl_password=hunter2",
            "store.qdrant.api_key=hunter2",
            "kafka.oauth.client_secret=hunter2",
            "kafka.ssl_key_password=hunter2",
            "kafka.properties.ssl.keystore.password=hunter2",
            "kafka.properties.ssl.key.pem=hunter2",
            "traces.headers=authorization=Bearer hunter2",
            "kafka.sasl_mechanism=OAUTHBEARER",
            "kafka.security=sasl_plaintext",
            "kafka.oauth.client_id=ada",
            "kafka.oauth.token_url=https://id.example.org/token",
        ];
        let config = load(&set).expect("loads");
        let shown = config.to_toml().expect("serialises") + &format!("{config:?}");
        assert!(!shown.contains("hunter2") && shown.contains("ssl.keystore.password"), "{shown}");
        assert_eq!(config.kafka.properties["ssl.keystore.password"], "hunter2");
    }

    #[test]
    fn errors_name_the_key_and_never_the_value() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).expect("writes");
            Overrides { files: vec![path], set: vec![] }
        };
        let set = |assignment: &str| Overrides { files: vec![], set: vec![assignment.to_owned()] };
        let cases = [
            (set("kafka.sasl_pasword=hunter2"), "kafka.sasl_pasword"),
            (set("kafka.sasl_password:hunter2"), "kafka.sasl_password"),
            (set("kafka.properties=hunter2"), "kafka.properties"),
            (set("store.qdrant.url=http://ada:hunter2@localhost:6334"), "store.qdrant.url"),
            (file("unquoted.toml", "[kafka]\nsasl_password = hunter2\n"), "line 2"),
            (file("list.toml", "[query]\napi_keys = [\"hunter2\"]\n"), "query.api_keys_file"),
            (file("table.toml", "[kafka]\nsasl_password = { value = \"hunter2\" }\n"), "kafka.sasl_password"),
        ];
        for (overrides, named) in cases {
            let error = Config::load_from(&[], &overrides, &BTreeMap::new()).expect_err(named);
            let text = format!("{error:#}");
            assert!(text.contains(named) && !text.contains("hunter2"), "{text}");
        }
    }
}
