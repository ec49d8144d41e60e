//! `feedlens match` through the real binary: the ranking, what it refuses, and a run that is killed.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use sha2::{Digest as _, Sha256};

use crate::binary::{feedlens, root};

/// A folder with pictures of the demo, a CSV of their labels and a CSV of their names.
struct Study {
    folder: tempfile::TempDir,
    names: Vec<String>,
}

impl Study {
    fn new(pictures: usize) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::create_dir(folder.path().join("images")).expect("creates");
        let labels = std::fs::read_to_string(root().join("demo/labels_zh.jsonl")).expect("reads");
        let (mut names, mut texts, mut images) = (Vec::new(), "text_id,caption\n".to_owned(), "image_id\n".to_owned());
        for (place, line) in labels.lines().take(pictures).enumerate() {
            let line: Value = serde_json::from_str(line).expect("JSON");
            let name = line["image"].as_str().expect("a name").strip_prefix("images/").expect("a name").to_owned();
            std::fs::copy(root().join("demo/images").join(&name), folder.path().join("images").join(&name))
                .expect("copies");
            texts += &format!("Word-{place},\"{}\"\n", line["text"].as_str().expect("a text"));
            images += &format!("{name}\n");
            names.push(name);
        }
        let study = Self { folder, names };
        std::fs::write(study.path("word_test.csv"), texts).expect("writes");
        std::fs::write(study.path("image_test.csv"), images).expect("writes");
        study
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Arguments of a search with texts among pictures, into `result.csv`.
    fn texts_among_pictures(&self) -> Vec<String> {
        self.arguments(&[("--texts", "word_test.csv"), ("--images", "images"), ("--out", "result.csv")])
    }

    fn arguments(&self, files: &[(&str, &str)]) -> Vec<String> {
        let files = files.iter().flat_map(|(option, name)| [option.to_string(), self.path(name).display().to_string()]);
        std::iter::once("match".to_owned()).chain(files).collect()
    }

    fn result(&self) -> String {
        std::fs::read_to_string(self.path("result.csv")).expect("there is a result")
    }
}

fn run(arguments: &[String], more: &[&str]) -> Output {
    let arguments = arguments.iter().map(String::as_str).chain(more.iter().copied()).collect::<Vec<_>>();
    feedlens(&arguments).output().expect("the binary starts")
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn succeeds(arguments: &[String], more: &[&str]) -> String {
    let output = run(arguments, more);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(output.stdout.is_empty());
    stderr(&output)
}

fn fails(arguments: &[String], more: &[&str], says: &[&str]) -> String {
    let output = run(arguments, more);
    let stderr = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    let last = stderr.lines().last().unwrap_or_default();
    assert!(last.starts_with("feedlens: "), "{stderr}");
    for part in says {
        assert!(last.contains(part), "{part:?} is not in {last:?}");
    }
    stderr
}

/// Vectors of the study's texts and pictures, from `feedlens eval`, by id.
fn vectors(study: &Study) -> [HashMap<String, Vec<f64>>; 2] {
    let pairs = study.path("pairs.jsonl");
    let texts = std::fs::read_to_string(study.path("word_test.csv")).expect("reads");
    let lines = texts.lines().skip(1).zip(&study.names).map(|(row, name)| {
        let text = row.split_once(',').expect("two fields").1.trim_matches('"');
        serde_json::json!({"text": text, "image": name}).to_string() + "\n"
    });
    std::fs::write(&pairs, lines.collect::<String>()).expect("writes");
    let arguments = study.arguments(&[("--pairs", "pairs.jsonl"), ("--images", "images"), ("--save-features", "")]);
    let output = run(&[&["eval".to_owned()], &arguments[1..]].concat(), &[]);
    assert!(output.status.success(), "{}", stderr(&output));
    let id = |place: usize| [format!("Word-{place}"), study.names[place].clone()];
    [("text", 0), ("image", 1)].map(|(tower, side)| {
        let lines = std::fs::read_to_string(study.path(&format!("{tower}_features.jsonl"))).expect("reads");
        let vector = |(place, line): (usize, &str)| {
            let line: Value = serde_json::from_str(line).expect("JSON");
            let values = line["feature"].as_array().expect("numbers").iter().map(|value| value.as_f64().expect("one"));
            (id(place)[side].clone(), values.collect())
        };
        lines.lines().enumerate().map(vector).collect()
    })
}

/// Checks ranking, similarity and probability of every row against a plain computation in f64.
fn is_ranked(result: &str, queries: &HashMap<String, Vec<f64>>, candidates: &HashMap<String, Vec<f64>>, top_k: usize) {
    let bundle: toml::Table =
        std::fs::read_to_string(root().join("models/small/model.toml")).expect("reads").parse().expect("TOML");
    let scale = bundle["logit_scale"].as_float().expect("a number");
    let rows = result.lines().skip(1).map(|line| line.split(',').collect::<Vec<_>>()).collect::<Vec<_>>();
    assert_eq!(rows.len(), queries.len() * top_k);
    for rows in rows.chunks(top_k) {
        let query = &queries[rows[0][0]];
        let cosine = |id: &str| candidates[id].iter().zip(query).map(|(left, right)| left * right).sum::<f64>();
        let total = candidates.keys().map(|id| (scale * cosine(id)).exp()).sum::<f64>();
        let mut best = candidates.keys().map(|id| cosine(id)).collect::<Vec<_>>();
        best.sort_by(|left, right| right.total_cmp(left));
        for (place, row) in rows.iter().enumerate() {
            assert_eq!((row[0], row[1]), (rows[0][0], (place + 1).to_string().as_str()));
            let [similarity, probability] = [row[3], row[4]].map(|field| field.parse::<f64>().expect("a number"));
            assert!((cosine(row[2]) - best[place]).abs() < 1e-6, "{row:?}");
            assert!((similarity - best[place]).abs() < 2e-6, "{row:?}");
            assert!((probability - (scale * best[place]).exp() / total).abs() < 2e-6, "{row:?}");
        }
        let ids = rows.iter().map(|row| row[2]).collect::<std::collections::HashSet<_>>();
        assert_eq!(ids.len(), top_k, "no candidate twice");
    }
}

#[test]
fn both_directions_rank_as_a_plain_computation_does() {
    let study = Study::new(60);
    let [texts, images] = vectors(&study);
    let forth = study.texts_among_pictures();
    let log = succeeds(&forth, &["--scores", "--top-k", "7"]);
    assert!(!log.contains("going on with"), "{log}");
    let result = study.result();
    assert!(
        result.starts_with("text_id,similarity_ranking,result_image_id,similarity,probability\nWord-0,1,"),
        "{result}"
    );
    is_ranked(&result, &texts, &images, 7);
    // The pictures are named in a CSV, without their extension, in another folder.
    let bare = study.names.iter().map(|name| format!("{}\r\n", name.strip_suffix(".png").expect("a png")));
    std::fs::write(study.path("bare.csv"), "\u{feff}image_id\r\n".to_owned() + &bare.collect::<String>())
        .expect("writes");
    let back =
        [("--queries", "bare.csv"), ("--images", "images"), ("--texts", "word_test.csv"), ("--out", "result.csv")];
    succeeds(&study.arguments(&back), &["--scores"]);
    let result = study.result();
    assert!(result.starts_with("image_id,similarity_ranking,result_text_id,similarity,probability\n"), "{result}");
    let bare = images.iter().map(|(name, vector)| (name.trim_end_matches(".png").to_owned(), vector.clone())).collect();
    is_ranked(&result, &bare, &texts, 5);
    let left = std::fs::read_dir(study.folder.path()).expect("lists").map(|entry| entry.unwrap().file_name());
    assert!(!left.into_iter().any(|name| name.to_string_lossy().contains(".work")), "no work file is left");
}

#[test]
fn rows_are_those_of_the_contract() {
    let study = Study::new(20);
    succeeds(&study.texts_among_pictures(), &[]);
    let result = study.result();
    let mut lines = result.lines();
    assert_eq!(lines.next(), Some("text_id,similarity_ranking,result_image_id"));
    for (place, row) in lines.enumerate() {
        let fields = row.split(',').collect::<Vec<_>>();
        assert_eq!(fields[..2], [format!("Word-{}", place / 5), (place % 5 + 1).to_string()]);
        assert!(study.names.iter().any(|name| name == fields[2]), "{row}");
    }
    assert_eq!(result.lines().count(), 1 + 20 * 5);
    // Only those named in a list, and pictures beside the list where no folder is given.
    std::fs::write(study.path("list.csv"), format!("image_id\n{}\n{}\n", study.names[3], study.names[1])).unwrap();
    let mut listed = study.texts_among_pictures();
    listed.extend(["--candidates".to_owned(), study.path("list.csv").display().to_string()]);
    succeeds(&listed, &[]);
    assert_eq!(study.result().lines().count(), 1 + 20 * 2, "fewer candidates than five");
    std::fs::rename(study.path("list.csv"), study.path("images/list.csv")).expect("moves");
    let back = [("--queries", "images/list.csv"), ("--texts", "word_test.csv"), ("--out", "result.csv")];
    succeeds(&study.arguments(&back), &[]);
    assert!(study.result().starts_with(&format!("image_id,similarity_ranking,result_text_id\n{},1,", study.names[3])));
}

#[test]
fn killed_run_goes_on_where_it_was_and_gives_the_same_result() {
    let study = Study::new(1200);
    let arguments = study.texts_among_pictures();
    let work = study.path("result.csv.work");
    let length = || std::fs::metadata(&work).map_or(0, |metadata| metadata.len());
    let row = 32 + 4 * 128 + 4;
    let strings = arguments.iter().map(String::as_str).collect::<Vec<_>>();
    // Twice: among the texts, and among the pictures.
    for wanted in [100, 1300] {
        let mut child = feedlens(&strings).stderr(Stdio::null()).spawn().expect("starts");
        let started = Instant::now();
        while length() < wanted * row {
            assert!(child.try_wait().expect("a child").is_none(), "it ended before it was killed");
            assert!(started.elapsed() < Duration::from_secs(300), "{} bytes", length());
            std::thread::sleep(Duration::from_millis(1));
        }
        child.kill().expect("SIGKILL");
        child.wait().expect("ends");
        assert!(!study.path("result.csv").exists(), "half a result is none");
    }
    // As a kill in the middle of a write leaves it.
    let torn = std::fs::OpenOptions::new().write(true).open(&work).expect("opens");
    torn.set_len(length() - 100).expect("cuts");
    drop(torn);
    let log = succeeds(&arguments, &["--scores"]);
    assert!(log.contains("going on with the vectors of the work file"), "{log}");
    assert!(!work.exists());
    let resumed = study.result();
    std::fs::remove_file(study.path("result.csv")).expect("removes");
    succeeds(&arguments, &["--scores"]);
    assert_same_answers(&resumed, &study.result());
}

/// ONNX Runtime multiplies a batch of one with other kernels than a larger one, so a text's vector depends in its last bits on
/// the texts that it shared a batch with, and so on where a run was killed: similarities agree to 5e-6, and a place changes
/// hands only between candidates that are nearer than that.
fn assert_same_answers(one: &str, other: &str) {
    let rows = |result: &str| result.lines().skip(1).map(str::to_owned).collect::<Vec<_>>();
    let (one, other) = (rows(one), rows(other));
    assert_eq!(one.len(), other.len());
    let similarity = |row: &str| row.split(',').nth(3).and_then(|value| value.parse::<f64>().ok()).expect("a number");
    for (one, other) in one.iter().zip(&other) {
        assert!((similarity(one) - similarity(other)).abs() < 5e-6, "{one} {other}");
    }
    let places =
        |rows: &[String]| rows.iter().map(|row| row.split(',').take(3).collect::<Vec<_>>().join(",")).collect();
    let (one, other): (Vec<String>, Vec<String>) = (places(&one), places(&other));
    let moved = one.iter().zip(&other).filter(|(one, other)| one != other).count();
    assert!(moved * 1000 <= one.len(), "{moved} of {} places changed hands", one.len());
}

/// The number in the log line that tells of vectors found in the work file.
fn resumed(log: &str) -> Option<u64> {
    let line = log.lines().find(|line| line.contains("going on with"))?;
    serde_json::from_str::<Value>(line).expect("a line of JSON")["vectors"].as_u64()
}

/// What the work file has is not encoded again: with a vector for it there, even bytes that are no picture pass.
#[test]
fn vectors_of_the_work_file_are_used() {
    let study = Study::new(40);
    let arguments = study.texts_among_pictures();
    succeeds(&arguments, &["--keep-work"]);
    let before = study.result();
    let work = study.path("result.csv.work");
    let mut bytes = std::fs::read(&work).expect("reads");
    // Forty texts, then the pictures by name, each with key, vector and checksum.
    let row_bytes = 32 + 4 * 128 + 4;
    let start = bytes.len() - 40 * row_bytes;
    let (content, checksum) = bytes[start..start + row_bytes].split_at_mut(row_bytes - 4);
    content[..32].copy_from_slice(&Sha256::digest("image\0no picture"));
    checksum.copy_from_slice(&crc32fast::hash(content).to_le_bytes());
    std::fs::write(&work, bytes).expect("writes");
    let first = study.names.iter().min().expect("there are pictures");
    std::fs::write(study.path("images").join(first), "no picture").expect("writes");
    succeeds(&arguments, &[]);
    assert_eq!(study.result(), before);
}

#[test]
fn changed_inputs_and_models_are_encoded_anew() {
    let study = Study::new(40);
    let arguments = study.texts_among_pictures();
    succeeds(&arguments, &["--keep-work"]);
    let first = study.result();
    assert_eq!(resumed(&succeeds(&arguments, &["--keep-work"])), Some(80));
    assert_eq!(study.result(), first);
    // The same name with another picture, of the same length and age or not; and another text with the same id.
    std::fs::copy(root().join("demo/images/1f34e.png"), study.path("images").join(&study.names[0])).expect("copies");
    let texts = std::fs::read_to_string(study.path("word_test.csv")).expect("reads");
    std::fs::write(study.path("word_test.csv"), texts.replacen("\"嘿嘿\"", "\"红苹果\"", 1)).expect("writes");
    assert_eq!(resumed(&succeeds(&arguments, &["--keep-work"])), Some(80));
    let changed = study.result();
    assert!(changed.contains(&format!("Word-0,1,{}\n", study.names[0])), "the apple is found: {changed}");
    std::fs::remove_file(study.path("result.csv.work")).expect("removes");
    succeeds(&arguments, &["--keep-work"]);
    assert_eq!(study.result(), changed);
    // Another model, by one byte of its description.
    let bundle = study.path("bundle");
    copy_folder(&root().join("models/small"), &bundle);
    let toml = std::fs::read_to_string(bundle.join("model.toml")).expect("reads");
    std::fs::write(bundle.join("model.toml"), toml + "\n# retrained\n").expect("writes");
    let log = succeeds(&arguments, &["--model", bundle.to_str().unwrap()]);
    assert!(log.contains("starting over") && resumed(&log).is_none(), "{log}");
    assert_eq!(study.result(), changed);
}

fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir(to).expect("creates");
    for entry in std::fs::read_dir(from).expect("lists").map(|entry| entry.expect("an entry").path()) {
        let target = to.join(entry.file_name().expect("a name"));
        match entry.is_dir() {
            true => copy_folder(&entry, &target),
            false => assert!(std::fs::copy(&entry, &target).expect("copies") > 0),
        }
    }
}

#[test]
fn unusable_pictures_are_named_and_left_out_and_mended_later() {
    let study = Study::new(30);
    let [missing, broken] = [5, 9].map(|place| study.path("images").join(&study.names[place]));
    std::fs::remove_file(&missing).expect("removes");
    std::fs::write(&broken, "no picture").expect("writes");
    let back = [
        ("--queries", "image_test.csv"),
        ("--images", "images"),
        ("--texts", "word_test.csv"),
        ("--out", "result.csv"),
    ];
    let log = fails(&study.arguments(&back), &[], &["2 items could not be used", "result.csv"]);
    for (place, file) in [(5, &missing), (9, &broken)] {
        let named = log.lines().filter(|line| line.contains(&format!("image_id {}", study.names[place])));
        assert_eq!(named.filter(|line| line.contains(file.to_str().unwrap())).count(), 1, "{log}");
    }
    let result = study.result();
    assert_eq!(result.lines().count(), 1 + 28 * 5);
    assert!(!result.contains(&study.names[5]) && !result.contains(&study.names[9]));
    for (place, file) in [(5, missing), (9, broken)] {
        std::fs::copy(root().join("demo/images").join(&study.names[place]), file).expect("copies");
    }
    assert_eq!(resumed(&succeeds(&study.arguments(&back), &[])), Some(58));
    assert_eq!(study.result().lines().count(), 1 + 30 * 5);
}

#[test]
fn what_is_wrong_is_one_sentence() {
    let study = Study::new(3);
    let good = study.texts_among_pictures();
    let with = |name: &str, content: &[u8]| {
        std::fs::write(study.path(name), content).expect("writes");
        study.arguments(&[("--texts", name), ("--images", "images"), ("--out", "result.csv")])
    };
    fails(&with("twice.csv", b"text_id,text\n1,a\n1,b\n"), &[], &["twice.csv", "\"1\" occurs twice", "lines 2 and 3"]);
    fails(&with("gbk.csv", b"text_id,text\n1,\xba\xec\xc6\xbb\xb9\xfb\n"), &[], &["gbk.csv line 2", "GBK", "iconv"]);
    fails(&with("bare.csv", b"1,apple\n"), &[], &["bare.csv", "text_id"]);
    let gone = study.arguments(&[("--texts", "gone.csv"), ("--images", "images"), ("--out", "result.csv")]);
    fails(&gone, &[], &["gone.csv"]);
    let out = |out: &str| study.arguments(&[("--texts", "word_test.csv"), ("--images", "images"), ("--out", out)]);
    fails(&out("images"), &[], &["images", "is a folder"]);
    fails(&out("no/such/folder/r.csv"), &[], &["no/such/folder/r.csv.work"]);
    fails(
        &study.arguments(&[("--texts", "word_test.csv"), ("--images", "none"), ("--out", "r")]),
        &[],
        &["none", "folder"],
    );
    std::fs::create_dir(study.path("empty")).expect("creates");
    let empty = study.arguments(&[("--texts", "word_test.csv"), ("--images", "empty"), ("--out", "r")]);
    fails(&empty, &[], &["no pictures", "empty"]);
    std::fs::write(study.path("result.csv.work"), "somebody's own file").expect("writes");
    fails(&good, &[], &["result.csv.work", "something else"]);
    assert_eq!(std::fs::read_to_string(study.path("result.csv.work")).unwrap(), "somebody's own file");
    assert!(!study.path("result.csv").exists());
    for wrong in [&["match", "--out", "r"][..], &["match", "--texts", "a", "--out", "r"], &["match", "--top-k", "0"]] {
        assert_eq!(feedlens(wrong).output().expect("starts").status.code(), Some(2), "{wrong:?}");
    }
}
