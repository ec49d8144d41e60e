//! The real binary: how it ends, and what it says.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

/// The repository: the demo's files and the model are relative to it.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The binary, in the repository's root.
pub fn feedlens(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_feedlens"));
    command.args(arguments).current_dir(root()).stdin(Stdio::null());
    command
}

fn run(arguments: &[&str]) -> (Output, Duration) {
    let started = Instant::now();
    let output = feedlens(arguments).output().expect("the binary starts");
    (output, started.elapsed())
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("output is UTF-8")
}

/// One clear sentence, the right exit code, nothing on stdout, within 10 s.
pub fn refuses(arguments: &[&str], code: i32, says: &[&str]) {
    let (output, elapsed) = run(arguments);
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {stderr}");
    assert!(elapsed < Duration::from_secs(10), "{arguments:?} took {elapsed:?}");
    let last = stderr.lines().last().unwrap_or_default();
    assert!(last.starts_with("feedlens: "), "{arguments:?}: {stderr}");
    for part in says {
        assert!(last.contains(part), "{arguments:?}: {part:?} is not in {last:?}");
    }
    assert!(!stderr.contains("panicked"), "{stderr}");
    assert_eq!(text(&output.stdout), "", "{arguments:?}");
}

#[test]
fn wrong_key_names_the_nearest_one() {
    refuses(&["ingest", "--set", "kafka.broker=x"], 2, &["kafka.broker", "kafka.brokers"]);
    refuses(&["config", "check", "--set", "query.top_k=five"], 2, &["query.top_k"]);
    refuses(&["config", "check", "--config", "no-such-file.toml"], 2, &["no-such-file.toml"]);
}

#[test]
fn wrong_use_is_exit_code_2() {
    for arguments in [&["search"][..], &["no-such-command"], &["demo", "--once", "--rate", "3"]] {
        assert_eq!(run(arguments).0.status.code(), Some(2), "{arguments:?}");
    }
}

#[test]
fn wrong_configuration_is_exit_code_2_before_anything_starts() {
    for (assignment, says) in [
        ("log.level=loud", "log.level"),
        ("log.level=info,feedlens=loud", "log.level"),
        ("query.listen=nonsense", "query.listen"),
        ("admin.listen=9090", "admin.listen"),
        ("images.concurrency=0", "images.concurrency"),
        ("images.root=/no/such/folder", "images.root"),
        ("store.qdrant.url=localhost", "store.qdrant.url"),
        (r#"query.cors_origins=["https://a.example/"]"#, "query.cors_origins"),
        ("query.reply_timeout=0s", "query.reply_timeout"),
        (r#"query.reply_topics=["search.requests"]"#, "query.reply_topics"),
        (r#"encoder.providers=["gpu"]"#, "\"cuda\", \"tensorrt\", \"cpu\""),
    ] {
        refuses(&["config", "check", "--set", assignment], 2, &[says]);
        refuses(&["ingest", "--set", assignment], 2, &[says]);
    }
}

/// The file of the keys lies where searches are answered, and perhaps nowhere else.
#[test]
fn a_file_of_keys_that_is_no_good_concerns_only_who_lets_in_by_it() {
    let set = ["--set", "query.api_keys_file=/no/such/file"];
    for command in [&["config", "check"][..], &["query"], &["demo", "--once"]] {
        refuses(&[command, &set].concat(), 2, &["query.api_keys_file", "/no/such/file"]);
    }
    let (output, _) = run(&[&["model", "tokenize"][..], &set].concat());
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let nobody = "kafka.brokers=127.0.0.1:9";
    let further = ["--set", nobody, "--set", "kafka.start_timeout=500ms"];
    refuses(&[&["dlq", "list"][..], &set, &further].concat(), 1, &["127.0.0.1:9"]);
}

#[test]
fn options_that_cannot_be_met_are_exit_code_2() {
    refuses(&["search", "水果", "--top-k", "0"], 2, &["top_k"]);
    refuses(&["search", "水果", "--since", "nonsense"], 2, &["since", "2026-11-20"]);
    for rate in ["0", "-1", "nan", "inf", "1e-300", "fast"] {
        let (output, _) = run(&["demo", &format!("--rate={rate}")]);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{rate}: {said}");
        assert!(said.contains("--rate") && said.contains("posts a second"), "{said}");
    }
}

#[test]
fn a_reader_that_goes_away_ends_the_command_quietly() {
    for arguments in [&["config", "show"][..], &["config", "check"], &["demo", "--once", "--set", "log.level=warn"]] {
        let (reader, writer) = std::io::pipe().expect("a pipe");
        drop(reader);
        let output = feedlens(arguments).stdout(writer).stderr(Stdio::piped()).spawn().expect("starts");
        let output = output.wait_with_output().expect("ends");
        assert_eq!((output.status.code(), text(&output.stderr).as_str()), (Some(0), ""), "{arguments:?}");
    }
}

#[test]
fn output_that_cannot_be_written_is_a_failure() {
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").expect("the device");
    let output = feedlens(&["config", "show"]).stdout(full).output().expect("starts");
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("standard output"), "{said}");
}

#[test]
fn missing_model_is_one_sentence() {
    refuses(&["demo", "--once", "--set", "model.dir=no/such/model"], 1, &["no/such/model", "model.dir"]);
}

#[test]
fn missing_runtime_library_is_one_sentence() {
    refuses(&["demo", "--once", "--set", "encoder.library=no/such.so"], 1, &["no/such.so", "encoder.library"]);
    let not_a_library = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");
    refuses(&["demo", "--once", "--set", &format!("encoder.library={not_a_library}")], 1, &["make setup"]);
}

#[test]
fn unreachable_broker_is_one_sentence() {
    refuses(&["ingest", "--set", "kafka.brokers=127.0.0.1:1"], 1, &["127.0.0.1:1", "kafka.brokers"]);
}

#[test]
fn unreachable_store_is_one_sentence() {
    refuses(&["search", "水果", "--set", "store.qdrant.url=http://127.0.0.1:1"], 1, &["127.0.0.1:1"]);
}

#[test]
fn missing_feed_is_one_sentence() {
    refuses(&["demo", "--once", "--posts", "no/such/feed.jsonl"], 1, &["no/such/feed.jsonl"]);
}

#[test]
fn data_folder_that_cannot_be_used_is_one_sentence() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("file");
    std::fs::write(&file, "not a folder").expect("writes");
    let inside: PathBuf = file.join("data");
    refuses(&["demo", "--once", "--data-dir", inside.to_str().expect("UTF-8")], 1, &[inside.to_str().expect("UTF-8")]);
}

#[test]
fn defaults_are_shown_with_secrets_masked() {
    let secrets =
        ["kafka.sasl_password=hunter2", "kafka.properties.ssl.keystore.password=hunter2", "traces.headers=key=hunter2"];
    let set = secrets.iter().flat_map(|secret| ["--set", secret]).collect::<Vec<_>>();
    let (output, _) = run(&[&["config", "show"][..], &set[..]].concat());
    let shown = text(&output.stdout);
    assert!(output.status.success() && shown.contains("brokers = \"localhost:9092\""), "{shown}");
    assert!(!shown.contains("hunter2") && shown.contains("ssl.keystore.password"), "{shown}");
    for (mistake, way_out) in [
        ("kafka.sasl_pasword=hunter2", "\"kafka.sasl_password\""),
        ("kafka.properties.ssl.key.password=hunter2", "kafka.ssl_key_password"),
    ] {
        let (output, _) = run(&["config", "show", "--set", mistake]);
        let said = text(&output.stderr);
        assert!(said.contains(way_out) && !said.contains("hunter2"), "{said}");
    }
}

#[test]
fn every_command_has_help() {
    let (output, _) = run(&["--help"]);
    let help = text(&output.stdout);
    for command in [
        "ingest",
        "query",
        "ready",
        "demo",
        "produce",
        "search",
        "match",
        "eval",
        "embed",
        "model",
        "dlq",
        "collection",
        "config",
    ] {
        assert!(help.contains(command), "{help}");
        let (output, _) = run(&[command, "--help"]);
        assert!(output.status.success() && text(&output.stdout).contains("Usage:"), "{command}");
    }
}
