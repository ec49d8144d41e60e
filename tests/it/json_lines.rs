//! `feedlens model tokenize` and `feedlens embed`: JSON lines through the real binary.

use std::fmt::Write as _;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::process::{Child, ChildStdin, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use feedlens::encode::normalise;
use serde_json::{Value, json};

use crate::binary::{feedlens, root};

const TOKENIZE: [&str; 4] = ["model", "tokenize", "--model", "models/small"];
const EMBED: [&str; 3] = ["embed", "--model", "models/small"];

/// A running command whose answers are read line by line.
struct Running {
    process: Child,
    input: Option<ChildStdin>,
    answers: mpsc::Receiver<String>,
}

impl Running {
    fn start(arguments: &[&str]) -> Self {
        let mut command = feedlens(arguments);
        let mut process = command
            .args(["--set", "log.level=warn", "--set", "log.format=text"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary starts");
        let output = BufReader::new(process.stdout.take().expect("piped"));
        let (sender, answers) = mpsc::channel();
        std::thread::spawn(move || {
            for line in output.lines() {
                if sender.send(line.expect("UTF-8")).is_err() {
                    break;
                }
            }
        });
        let input = process.stdin.take();
        Self { process, input, answers }
    }

    fn write(&mut self, text: &str) {
        self.input.as_mut().expect("open").write_all(text.as_bytes()).expect("writes");
    }

    /// The next answer, for which the command may take a while; it must not wait for more input.
    fn answer(&self) -> Value {
        let line = self.answers.recv_timeout(Duration::from_secs(60)).expect("an answer");
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"))
    }

    /// Ends the input: the answers that were left, and what stderr says.
    fn end(mut self) -> (Vec<Value>, String) {
        drop(self.input.take());
        let answers = self.answers.iter().map(|line| serde_json::from_str(&line).expect("JSON")).collect();
        let mut stderr = String::new();
        self.process.stderr.take().expect("piped").read_to_string(&mut stderr).expect("UTF-8");
        let status = self.process.wait().expect("ends");
        assert_eq!(status.code(), Some(0), "{stderr}");
        (answers, stderr)
    }
}

/// The answers to some lines, all written before any is read back.
fn ask(arguments: &[&str], lines: &str) -> (Vec<Value>, String) {
    let mut running = Running::start(arguments);
    let mut input = running.input.take().expect("piped");
    let lines = lines.to_owned();
    let writing = std::thread::spawn(move || input.write_all(lines.as_bytes()).expect("writes"));
    let answered = running.end();
    writing.join().expect("written");
    answered
}

fn kinds(answers: &[Value]) -> Vec<&str> {
    answers.iter().map(|answer| answer["kind"].as_str().unwrap_or("")).collect()
}

fn vector(answer: &Value) -> Vec<f32> {
    serde_json::from_value(answer["vector"].clone()).unwrap_or_else(|error| panic!("{error}: {answer}"))
}

fn assert_near(left: &[f32], right: &[f32]) {
    let difference = left.iter().zip(right).map(|(left, right)| (left - right).abs()).fold(0.0, f32::max);
    assert!(left.len() == right.len() && difference < 1e-5, "{difference}");
}

#[test]
fn ids_are_cn_clips() {
    let fixture = std::fs::read_to_string(root().join("tests/fixtures/tokenizer.jsonl")).expect("the fixture");
    let cases: Vec<Value> = fixture.lines().map(|line| serde_json::from_str(line).expect("a case")).collect();
    let lines = cases.iter().fold(String::new(), |mut lines, case| {
        let _ = writeln!(lines, "{}", json!({"text": case["text"]}));
        lines
    });
    let (answers, stderr) = ask(&TOKENIZE, &lines);
    let expected: Vec<Value> = cases.iter().map(|case| json!({"ids": case["ids"]})).collect();
    assert!(answers == expected && stderr.is_empty(), "{stderr}");
}

#[test]
fn a_bad_line_is_answered_in_its_place() {
    let long = format!("{{\"text\": \"{}\"}}", "长".repeat(400_000));
    let lines = format!(
        "{}\n",
        [
            r#"{"text": "雨", "id": 7}"#,
            "text",
            "",
            r#"{"text": 5}"#,
            r#"{"id": 7}"#,
            r#"["雨"]"#,
            // Half of a pair of surrogates is no text, as in a post.
            r#"{"text": "\ud83c"}"#,
            r#"{"text": "\ud83c\udf26 \u0000"}"#,
            &long,
            r#"{"text": "雨"}"#,
        ]
        .join("\n")
    );
    let (mut answers, stderr) = ask(&TOKENIZE, lines.trim_end());
    assert_eq!(
        kinds(&answers),
        ["", "bad_json", "bad_json", "bad_field", "bad_field", "bad_field", "bad_json", "", "too_large", ""]
    );
    assert!(answers[3]["error"].as_str().expect("why").contains("{\"text\": \"...\"}"), "{}", answers[3]);
    assert!(stderr.contains("some lines failed") && stderr.contains("failed=7"), "{stderr}");
    assert_eq!(answers.pop(), Some(json!({"ids": [101, 7433, 102]})));
    assert_eq!(answers[0], json!({"ids": [101, 7433, 102]}));
    assert_eq!(answers[7], json!({"ids": [101, 100, 102]}));
}

#[test]
fn texts_are_cleaned_only_when_it_is_asked_for() {
    let line = "{\"text\": \"雨！！！[doge] http://t.cn/A6x\"}\n";
    let clean = [&TOKENIZE[..], &["--set", "captions.clean=true"]].concat();
    let (exact, cleaned) = (ask(&TOKENIZE, line).0, ask(&clean, line).0);
    assert!(exact[0]["ids"].as_array().expect("ids").len() > 12, "{exact:?}");
    assert_eq!(cleaned, [json!({"ids": [101, 7433, 8013, 102]})]);
    let line = "{\"text\": \"雨！！！[doge] http://t.cn/A6x\"}\n{\"text\": \"雨！\"}\n";
    let clean = [&EMBED[..], &["--set", "captions.clean=true"]].concat();
    let cleaned = ask(&clean, line).0;
    assert_near(&vector(&cleaned[0]), &vector(&cleaned[1]));
    let exact = ask(&EMBED, line).0;
    assert!(exact[0] != exact[1]);
}

#[test]
fn answers_come_while_the_input_stays_open() {
    for (arguments, member) in [(&TOKENIZE[..], "ids"), (&EMBED[..], "vector")] {
        let mut running = Running::start(arguments);
        for _ in 0..3 {
            running.write("{\"text\": \"雨后的彩虹\"}\n");
            assert!(running.answer()[member].is_array());
        }
        running.write("{\"text\": \"雨\"}");
        assert_eq!(running.end().0.len(), 1, "the last line needs no end");
    }
}

#[test]
fn a_reader_that_has_enough_is_no_failure() {
    for arguments in [&TOKENIZE[..], &EMBED[..]] {
        let mut command = feedlens(arguments);
        command.args(["--set", "log.level=warn"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut process = command.spawn().expect("the binary starts");
        let mut input = process.stdin.take().expect("piped");
        // Until the command has ended, and nobody reads any more.
        let writing = std::thread::spawn(move || while input.write_all("{\"text\": \"雨\"}\n".as_bytes()).is_ok() {});
        let mut first = String::new();
        BufReader::new(process.stdout.take().expect("piped")).read_line(&mut first).expect("an answer");
        assert!(first.starts_with('{'), "{first}");
        let output = process.wait_with_output().expect("ends");
        writing.join().expect("no panic");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && stderr.is_empty(), "{arguments:?}: {:?} {stderr}", output.status);
    }
}

#[test]
fn a_missing_model_is_one_sentence() {
    for command in [&["model", "tokenize"][..], &["embed"]] {
        let output = feedlens(command).args(["--model", "no/such/model"]).output().expect("the binary starts");
        let stderr = String::from_utf8_lossy(&output.stderr);
        let last = stderr.lines().last().unwrap_or_default();
        assert!(last.starts_with("feedlens: ") && last.contains("no/such/model"), "{stderr}");
        assert!(output.status.code() == Some(1) && output.stdout.is_empty());
    }
}

/// The shipped bundle with an edited vocabulary.
#[test]
fn a_vocabulary_of_the_wrong_size_is_one_sentence() {
    let shipped = root().join("models/small");
    let vocabulary = std::fs::read_to_string(shipped.join("vocab.txt")).expect("reads");
    let cut = vocabulary.lines().take(20_000).collect::<Vec<_>>().join("\n");
    for (edited, size) in [(cut, "20000"), (format!("{vocabulary}one more\n"), "21129")] {
        let folder = tempfile::tempdir().expect("a folder");
        for name in ["model.toml", "image.onnx", "text.onnx", "golden.json"] {
            std::fs::copy(shipped.join(name), folder.path().join(name)).expect("copies");
        }
        std::fs::write(folder.path().join("vocab.txt"), edited).expect("writes");
        for command in [&["model", "tokenize"][..], &["embed"]] {
            let output = feedlens(command).arg("--model").arg(folder.path()).output().expect("the binary starts");
            let stderr = String::from_utf8_lossy(&output.stderr);
            let last = stderr.lines().last().unwrap_or_default();
            for part in ["feedlens: ", "vocab.txt", size, "21128"] {
                assert!(last.contains(part), "{part:?} is not in {last:?}");
            }
            assert!(output.status.code() == Some(1) && output.stdout.is_empty());
        }
    }
}

#[test]
fn texts_and_pictures_are_embedded_in_order_and_failures_stand_in_their_places() {
    let lines = [
        (json!({"text": "苹果"}), ""),
        (json!({"image": "demo/images/1f34e.png"}), ""),
        (json!({"image": root().join("demo/images/1f34e.png")}), ""),
        (json!({"image": "src/../demo/images/1f34c.png"}), ""),
        (json!({"image": "demo/images/none.png"}), "image_unavailable"),
        (json!({"image": "Cargo.toml"}), "bad_image"),
        (json!({"image": "demo"}), "forbidden_source"),
        (json!({"image": "/dev/zero"}), "forbidden_source"),
        (json!({"text": "苹果", "image": "demo/images/1f34e.png"}), "bad_field"),
        (json!({"text": null}), "bad_field"),
        (json!("苹果"), "bad_field"),
        (json!({"text": "banana"}), ""),
    ];
    // Many times over, so that batches mix, and pictures, which take longer, are overtaken.
    let rounds = 30;
    let input: String = (0..rounds).flat_map(|_| &lines).map(|(line, _)| format!("{line}\n")).collect();
    let (answers, stderr) = ask(&EMBED, &input);
    let expected: Vec<&str> = (0..rounds).flat_map(|_| &lines).map(|(_, kind)| *kind).collect();
    assert_eq!(kinds(&answers), expected);
    assert!(stderr.contains("failed=210"), "{stderr}");
    let round = |number: usize| &answers[number * lines.len()..][..lines.len()];
    let (apple, banana) = (vector(&round(0)[1]), vector(&round(0)[3]));
    for number in 0..rounds {
        let vectors = [0, 1, 2, 3, 11].map(|index| vector(&round(number)[index]));
        for values in &vectors {
            let norm = values.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>();
            assert!((norm - 1.0).abs() < 1e-5, "{norm}");
        }
        assert_near(&vectors[1], &apple);
        assert_near(&vectors[2], &apple);
        assert_near(&vectors[3], &banana);
        let cosine = |left: &[f32], right: &[f32]| left.iter().zip(right).map(|(a, b)| a * b).sum::<f32>();
        assert!(cosine(&vectors[0], &apple) > cosine(&vectors[0], &banana), "苹果 is an apple");
        assert!(cosine(&vectors[4], &banana) > cosine(&vectors[4], &apple), "a banana is one");
    }
    assert!(answers[5]["error"].as_str().expect("why").contains("Cargo.toml"), "{}", answers[5]);
}

#[test]
fn raw_vectors_are_the_graphs_own() {
    let lines = "{\"text\": \"苹果\"}\n{\"image\": \"demo/images/1f34e.png\"}\n";
    let raw = ask(&[&EMBED[..], &["--raw"]].concat(), lines).0;
    for (raw, unit) in raw.iter().zip(ask(&EMBED, lines).0) {
        let raw = vector(raw);
        let norm = raw.iter().map(|value| value * value).sum::<f32>().sqrt();
        assert!((norm - 1.0).abs() > 0.1, "the small model's graphs do not normalise: {norm}");
        assert_near(&normalise(raw).expect("finite"), &vector(&unit));
    }
}

#[test]
fn limits_of_pictures_are_those_of_the_configuration() {
    let line = "{\"image\": \"demo/images/1f34e.png\"}\n";
    for limit in ["images.max_bytes=100", "images.max_pixels=100"] {
        let (answers, _) = ask(&[&EMBED[..], &["--set", limit]].concat(), line);
        assert_eq!(kinds(&answers), ["too_large"], "{limit}");
    }
}

/// 400 MB of lines, of which the encoder has 128 at a time.
#[test]
fn long_input_is_not_held_in_memory() {
    let line = format!("{{\"text\": \"雨\", \"other\": \"{}\"}}\n", "x".repeat(400_000));
    let mut running = Running::start(&EMBED);
    running.write(&line);
    running.answer();
    let before = peak_memory(running.process.id());
    let mut input = running.input.take().expect("open");
    let writing = std::thread::spawn(move || {
        for _ in 0..1_000 {
            input.write_all(line.as_bytes()).expect("writes");
        }
        input
    });
    for _ in 0..1_000 {
        running.answer();
    }
    let grown = peak_memory(running.process.id()) - before;
    assert!(grown < 200 << 20, "{grown} bytes more than after the first line");
    running.input = Some(writing.join().expect("written"));
    running.end();
}

/// Bytes that a running process had resident at most.
fn peak_memory(process: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a peak");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") << 10
}
