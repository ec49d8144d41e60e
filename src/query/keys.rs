//! API keys: known by their hashes, told apart by their names, and changed without a restart.
//!
//! `query.api_keys_file` is TOML, a table for each key:
//!
//! ```toml
//! [dashboard]
//! hashes = ["sha256:2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae"]
//! rate = 50     # optional: requests a second, in place of query.key_rate
//! burst = 100   # optional: in place of query.key_burst
//! ```

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use governor::clock::{Clock as _, DefaultClock};
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

use crate::metrics::Metrics;
use crate::query::QueryConfig;
use crate::query::error::{ErrorCode, SearchError};
use crate::service::watched::{read_text, watch};

/// The names are labels of a metric.
const MAX_KEYS: usize = 1_000;
const MAX_NAME_CHARACTERS: usize = 64;
/// Hashes without salt only guard keys that nobody can guess.
const MIN_KEY_BYTES: usize = 16;
const PREFIX: &str = "sha256:";

type Hash = [u8; 32];

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    hashes: Vec<String>,
    rate: Option<u32>,
    burst: Option<u32>,
}

/// Requests a second and at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Rate {
    per_second: NonZeroU32,
    burst: NonZeroU32,
}

/// A key: who asks, and how often it may.
#[derive(Debug)]
pub struct ApiKey {
    name: String,
    hashes: Vec<Hash>,
    limit: Option<(Rate, DefaultDirectRateLimiter)>,
}

/// All keys, as the file had them when it was last good.
#[derive(Debug)]
struct KeySet(Vec<Arc<ApiKey>>);

/// The keys in force.
#[derive(Debug)]
pub struct ApiKeys {
    set: RwLock<KeySet>,
    changed: watch::Sender<()>,
}

/// A key that let a request in, and whether it still would.
#[derive(Debug, Clone)]
pub struct Accepted {
    keys: Arc<ApiKeys>,
    hash: Hash,
    key: Arc<ApiKey>,
}

impl Accepted {
    /// The key, as it was then.
    pub fn key(&self) -> &ApiKey {
        &self.key
    }

    /// Waits until the file of the keys has it no more.
    pub async fn is_removed(&self) {
        let mut changed = self.keys.changed.subscribe();
        while self.keys.find_hash(&self.hash).is_some() {
            // It fails only without a sender, which `self` holds.
            let _ = changed.changed().await;
        }
    }
}

impl ApiKey {
    /// The name that logs and metrics call it by.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Takes `count` requests out of this second's; they go all or none.
    ///
    /// # Errors
    /// 429 with the time after which they would be let in.
    pub fn take(&self, count: NonZeroU32) -> Result<(), SearchError> {
        let Some((rate, limiter)) = &self.limit else { return Ok(()) };
        let refused = |wait| {
            let message = format!(
                "the key {:?} may send {} requests a second, and {} at once; a batch counts as many as it has searches",
                self.name, rate.per_second, rate.burst
            );
            Err(SearchError::for_now(ErrorCode::RateLimited, message, wait))
        };
        match limiter.check_n(count) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(early)) => refused(early.wait_time_from(DefaultClock::default().now())),
            // More than ever fit at once; the checks of the configuration keep batches below that.
            Err(_) => refused(Duration::from_secs(1)),
        }
    }
}

impl ApiKeys {
    /// Reads the file of `query.api_keys_file`.
    ///
    /// # Errors
    /// One sentence that names the file, the key and the way out. Hashes and keys are not shown.
    pub fn open(config: &QueryConfig) -> Result<Arc<Self>> {
        let set = read_text(&config.api_keys_file).and_then(|text| KeySet::parse(&text, config));
        let set = set.with_context(|| format!("query.api_keys_file = {:?}", config.api_keys_file))?;
        Ok(Arc::new(Self::from(set)))
    }

    /// The key that was given, if it is known.
    pub fn accept(self: &Arc<Self>, given: &[u8]) -> Option<Accepted> {
        let hash = Sha256::digest(given).into();
        self.find_hash(&hash).map(|key| Accepted { keys: Arc::clone(self), hash, key })
    }

    /// All hashes are compared whole, so that the time taken tells nothing of them.
    fn find_hash(&self, hash: &Hash) -> Option<Arc<ApiKey>> {
        let set = self.set.read().unwrap_or_else(PoisonError::into_inner);
        let mut found = None;
        for key in &set.0 {
            if key.hashes.iter().fold(0, |known, one| known | one.ct_eq(hash).unwrap_u8()) == 1 {
                found = Some(key);
            }
        }
        found.cloned()
    }

    /// Reads the file again whenever it has changed, as long as the answer is kept. A file that is no good, or not there,
    /// changes nothing, and the log says so.
    pub fn watch(self: &Arc<Self>, config: &QueryConfig, metrics: &Arc<Metrics>) -> AbortOnDropHandle<()> {
        let (keys, config, metrics) = (Arc::clone(self), config.clone(), Arc::clone(metrics));
        let path = config.api_keys_file.clone();
        watch(
            move || read_text(&path),
            move |text| {
                let file = config.api_keys_file.display();
                let outcome = match text.and_then(|text| KeySet::parse(&text, &config)) {
                    Ok(set) => {
                        tracing::info!(%file, keys = set.0.len(), "the API keys are read anew");
                        keys.replace(set);
                        "ok"
                    }
                    Err(error) => {
                        tracing::error!(%file, "the API keys stay as they were, the file is no good: {error:#}");
                        "failed"
                    }
                };
                metrics.api_keys_reloads.with_label_values(&[outcome]).inc();
            },
        )
    }

    /// A key that stays the same keeps what it has used of its rate.
    fn replace(&self, mut new: KeySet) {
        let mut set = self.set.write().unwrap_or_else(PoisonError::into_inner);
        for key in &mut new.0 {
            let same = |old: &&Arc<ApiKey>| {
                old.name == key.name
                    && old.hashes == key.hashes
                    && old.limit.as_ref().map(|(rate, _)| rate) == key.limit.as_ref().map(|(rate, _)| rate)
            };
            if let Some(old) = set.0.iter().find(same) {
                *key = Arc::clone(old);
            }
        }
        *set = new;
        drop(set);
        self.changed.send_replace(());
    }
}

impl From<KeySet> for ApiKeys {
    fn from(set: KeySet) -> Self {
        Self { set: RwLock::new(set), changed: watch::Sender::default() }
    }
}

impl KeySet {
    fn parse(text: &str, config: &QueryConfig) -> Result<Self> {
        let entries: BTreeMap<String, Entry> = toml::from_str(text).map_err(|error| {
            // The error's own text shows what stands there, and with it perhaps a key that was written there by mistake.
            let line = error.span().map_or(0, |span| text[..span.start].lines().count().max(1));
            let form = "each key is a table: [name], hashes = [\"sha256:...\"], and optionally rate and burst";
            anyhow::anyhow!("line {line} is not of the form of this file; {form}")
        })?;
        ensure!(!entries.is_empty(), "it holds no keys; leave query.api_keys_file empty to ask for none");
        ensure!(entries.len() <= MAX_KEYS, "it holds {} keys; at most {MAX_KEYS} are taken", entries.len());
        let mut keys = Vec::with_capacity(entries.len());
        for (name, entry) in entries {
            keys.push(Arc::new(ApiKey::new(&name, &entry, config).with_context(|| format!("[{name}]"))?));
        }
        let mut hashes = keys.iter().flat_map(|key| &key.hashes).collect::<Vec<_>>();
        hashes.sort_unstable();
        ensure!(hashes.windows(2).all(|pair| pair[0] != pair[1]), "one hash stands there twice");
        Ok(Self(keys))
    }
}

impl ApiKey {
    fn new(name: &str, entry: &Entry, config: &QueryConfig) -> Result<Self> {
        let is_plain = |character: char| character.is_ascii_alphanumeric() || "._-".contains(character);
        ensure!(
            !name.is_empty() && name.chars().all(is_plain) && name.len() <= MAX_NAME_CHARACTERS,
            "a name has 1 to {MAX_NAME_CHARACTERS} of the characters A-Z a-z 0-9 . _ -"
        );
        ensure!(!entry.hashes.is_empty(), "hashes is empty; remove the whole table to take the key away");
        let hashes = entry.hashes.iter().map(|hash| parse_hash(hash)).collect::<Result<Vec<_>>>()?;
        let rate = entry.rate.unwrap_or(config.key_rate);
        let burst = entry.burst.unwrap_or(config.key_burst);
        let limit = match NonZeroU32::new(rate) {
            None => None,
            Some(per_second) => {
                let burst = check_burst("burst", burst, config)?;
                let limiter = RateLimiter::direct(Quota::per_second(per_second).allow_burst(burst));
                Some((Rate { per_second, burst }, limiter))
            }
        };
        Ok(Self { name: name.to_owned(), hashes, limit })
    }
}

/// A burst that a batch of the largest size fits into.
///
/// # Errors
/// It is smaller.
pub(super) fn check_burst(field: &str, burst: u32, config: &QueryConfig) -> Result<NonZeroU32> {
    match NonZeroU32::new(burst) {
        Some(burst) if burst.get() as usize >= config.max_batch => Ok(burst),
        _ => bail!(
            "{field} ({burst}) is below query.max_batch ({}); a full batch would never be let in",
            config.max_batch
        ),
    }
}

fn parse_hash(text: &str) -> Result<Hash> {
    const FORM: &str = "a hash is \"sha256:\" and 64 hexadecimal digits, as `feedlens config hash-key` prints it";
    let digits = text.strip_prefix(PREFIX).context(FORM)?.as_bytes();
    ensure!(digits.len() == 64, FORM);
    let mut hash = [0; 32];
    for (octet, pair) in hash.iter_mut().zip(digits.chunks_exact(2)) {
        let pair = std::str::from_utf8(pair).ok().filter(|pair| !pair.starts_with('+')).context(FORM)?;
        *octet = u8::from_str_radix(pair, 16).ok().context(FORM)?;
    }
    Ok(hash)
}

/// The hash of a key as the file wants it: `sha256:` and the hexadecimal SHA-256 of its bytes.
///
/// # Errors
/// The key is short or could not be sent in a header.
pub fn hash(key: &str) -> Result<String> {
    ensure!(
        key.len() >= MIN_KEY_BYTES,
        "the key has {} bytes; take at least {MIN_KEY_BYTES} random ones, as from: openssl rand -hex 32",
        key.len()
    );
    ensure!(key.bytes().all(|octet| octet.is_ascii_graphic()), "a key has visible ASCII characters only, no spaces");
    let digits = Sha256::digest(key.as_bytes()).iter().map(|octet| format!("{octet:02x}")).collect::<String>();
    Ok(format!("{PREFIX}{digits}"))
}

/// Whether keys are asked for.
pub(super) fn is_set(path: &Path) -> bool {
    !path.as_os_str().is_empty()
}

#[cfg(test)]
mod tests;
