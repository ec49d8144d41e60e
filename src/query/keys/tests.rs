use super::*;
use crate::config::{Config, Overrides};

const ONE: &str = "one-key-of-some-length";
const TWO: &str = "two-key-of-some-length";

fn config(set: &[&str]) -> QueryConfig {
    let set = set.iter().map(ToString::to_string).collect();
    Config::load(&[], &Overrides { files: vec![], set }).expect("loads").query
}

fn entry(name: &str, keys: &[&str], more: &str) -> String {
    let hashes = keys.iter().map(|key| hash(key).expect("a good key")).collect::<Vec<_>>();
    format!("[{name}]\nhashes = {hashes:?}\n{more}\n")
}

fn keys(text: &str) -> Arc<ApiKeys> {
    Arc::new(KeySet::parse(text, &config(&[])).expect("parses").into())
}

fn name(keys: &Arc<ApiKeys>, given: &str) -> Option<String> {
    keys.accept(given.as_bytes()).map(|accepted| accepted.key().name().to_owned())
}

#[test]
fn keys_are_told_apart_by_name_and_one_name_may_have_two() {
    let keys = keys(&(entry("a", &[ONE], "") + &entry("b", &[TWO, "the-next-key-of-b"], "")));
    assert_eq!(name(&keys, ONE).as_deref(), Some("a"));
    assert_eq!(name(&keys, TWO).as_deref(), Some("b"));
    assert_eq!(name(&keys, "the-next-key-of-b").as_deref(), Some("b"));
    for unknown in ["", "one-key-of-some-lengt", &hash(ONE).expect("a hash")] {
        assert_eq!(name(&keys, unknown), None, "{unknown}");
    }
}

#[test]
fn the_hash_is_sha_256_in_hexadecimal() {
    // FIPS 180-2, appendix B.2.
    assert_eq!(
        hash("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq").expect("a hash"),
        "sha256:248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1"
    );
    assert!(hash("short").expect_err("short").to_string().contains("openssl rand"));
    assert!(hash("with spaces in the key").is_err());
}

#[test]
fn a_file_that_is_no_good_is_one_sentence_without_secrets() {
    let good = entry("a", &[ONE], "");
    for (text, says) in [
        (String::new(), "no keys"),
        ("a = 1".to_owned(), "line 1"),
        (format!("[a]\nhashes = [\"{ONE}\"]"), "[a]: a hash is"),
        (format!("[a]\nhashes = {ONE}"), "line 2"),
        (format!("[a]\nhashes = \"{ONE}\""), "line 2"),
        (format!("a = \"{ONE}\""), "line 1"),
        ("[a]\nhashes = []".to_owned(), "hashes is empty"),
        (good.replace("sha256:", "sha256:+"), "a hash is"),
        (good.replace("hashes", "hash"), "hash"),
        (format!("{good}{}", entry("b", &[ONE], "")), "twice"),
        (entry("\"a b\"", &[ONE], ""), "a name has"),
        (entry("a", &[ONE], "rate = 5\nburst = 3"), "query.max_batch"),
    ] {
        let error = format!("{:#}", KeySet::parse(&text, &config(&[])).expect_err(says));
        assert!(error.contains(says) && !error.contains(ONE), "{says}: {error}");
    }
}

#[test]
fn a_key_is_refused_beyond_its_rate_with_the_time_to_wait() {
    let keys = keys(&entry("a", &[ONE], "rate = 2\nburst = 40"));
    let accepted = keys.accept(ONE.as_bytes()).expect("known");
    let key = accepted.key();
    let count = |count| NonZeroU32::new(count).expect("above 0");
    key.take(count(30)).expect("within the burst");
    let error = key.take(count(30)).expect_err("all or none");
    assert_eq!((error.code, error.code.status()), (ErrorCode::RateLimited, 429));
    let wait = error.retry_after.expect("a time").as_secs_f64();
    assert!((9.0..=10.0).contains(&wait), "20 are missing at 2 a second: {wait}");
    key.take(count(10)).expect("what is left");
    let without = super::tests::keys(&entry("a", &[ONE], "")).accept(ONE.as_bytes()).expect("known");
    without.key().take(count(u32::MAX)).expect("no limit is set");
}

#[test]
fn a_key_that_stays_the_same_keeps_what_it_has_used() {
    let limited = "rate = 1\nburst = 40";
    let keys = keys(&entry("a", &[ONE], limited));
    let full = NonZeroU32::new(40).expect("above 0");
    let old = keys.accept(ONE.as_bytes()).expect("known");
    old.key().take(full).expect("the burst");
    let config = config(&[]);
    keys.replace(KeySet::parse(&(entry("a", &[ONE], limited) + &entry("b", &[TWO], "")), &config).expect("parses"));
    assert!(keys.accept(ONE.as_bytes()).expect("known").key().take(full).is_err());
    assert_eq!(name(&keys, TWO).as_deref(), Some("b"));
    keys.replace(KeySet::parse(&entry("b", &[TWO], ""), &config).expect("parses"));
    assert_eq!(name(&keys, ONE), None, "taken away");
}
