//! `feedlens eval` through the real binary, against what Chinese-CLIP's own evaluation gave.
//!
//! `tests/fixtures/eval` is written by `tools/check_recall.py --write-fixtures`: cn_clip's scripts made the predictions
//! and the figures, and read the pictures back.

use std::path::{Path, PathBuf};
use std::process::Output;

use serde_json::{Value, json};

use crate::binary::{feedlens, root};

fn fixture(name: &str) -> PathBuf {
    root().join("tests/fixtures/eval").join(name)
}

fn eval(arguments: &[&str]) -> Output {
    let arguments = [&["eval", "--set", "log.level=warn"], arguments].concat();
    feedlens(&arguments).output().expect("the binary starts")
}

fn report(arguments: &[&str]) -> Value {
    let output = eval(arguments);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("one JSON value on stdout")
}

fn refuses(arguments: &[&str], says: &[&str]) {
    let output = eval(arguments);
    let stderr = String::from_utf8_lossy(&output.stderr);
    let last = stderr.lines().last().unwrap_or_default();
    assert_eq!(output.status.code(), Some(1), "{arguments:?}: {stderr}");
    assert!(last.starts_with("feedlens: ") && output.stdout.is_empty(), "{stderr}");
    for part in says {
        assert!(last.contains(part), "{arguments:?}: {part:?} is not in {last:?}");
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).expect("reads")
}

#[test]
fn ties_and_duplicates_rank_as_in_the_reference_and_no_model_is_needed() {
    let folder = fixture("ties");
    let out = tempfile::tempdir().expect("a folder");
    let [pairs, texts, images] =
        ["test_texts.jsonl", "text_features.jsonl", "image_features.jsonl"].map(|name| folder.join(name));
    let written = ["p.jsonl", "p_tr.jsonl"].map(|name| out.path().join(name));
    let report = report(
        &[
            &["--model", "no/such/model", "--pairs", text(&pairs)][..],
            &["--text-features", text(&texts), "--image-features", text(&images)],
            &["--predictions", text(&written[0]), "--predictions-tr", text(&written[1])],
        ]
        .concat(),
    );
    let expected: Value = serde_json::from_str(&read(&folder.join("expected.json"))).expect("JSON");
    for direction in ["text_to_image", "image_to_text"] {
        for figure in ["r1", "r5", "r10", "mean_recall"] {
            assert_eq!(report[direction][figure], expected[direction][figure], "{direction} {figure}");
        }
    }
    assert_eq!(read(&written[0]), read(&folder.join("predictions.jsonl")));
    // The reference predicts for every picture, also for those that no text names.
    let reference = read(&folder.join("predictions_tr.jsonl"));
    let lines = read(&written[1]);
    assert_eq!(report["image_to_text"]["queries"], json!(lines.lines().count()));
    assert!(lines.lines().count() > 30);
    for line in lines.lines() {
        assert!(reference.lines().any(|other| other == line), "{line}");
    }
}

/// The values of a key in a file of JSON lines.
fn column(path: &Path, key: &str) -> Vec<Value> {
    let value = |line: &str| serde_json::from_str::<Value>(line).expect("JSON")[key].clone();
    read(path).lines().map(value).collect()
}

#[test]
fn chinese_clips_own_files_are_read_as_it_reads_them() {
    let folder = fixture("drawings");
    let expected: Value = serde_json::from_str(&read(&folder.join("expected.json"))).expect("JSON");
    let [first, second] = [0, 1].map(|_| tempfile::tempdir().expect("a folder"));
    let predictions = first.path().join("p.jsonl");
    let pairs = folder.join("test_texts.jsonl");
    let report = report(
        &[
            &["--pairs", text(&pairs), "--save-features", text(first.path())][..],
            &["--predictions", text(&predictions)],
        ]
        .concat(),
    );
    assert_eq!(report["text_to_image"]["candidates"], 16);
    // The order of its LMDB, and of equally good pictures.
    let image_features = first.path().join("image_features.jsonl");
    let ids = column(&image_features, "image_id");
    assert_eq!(json!(ids), expected["image_ids"]);
    let place = |id: &Value| ids.iter().position(|other| other == id).expect("an id");
    for same in expected["same"].as_array().expect("lists") {
        let mut same = same.as_array().expect("ids").clone();
        same.sort_by_key(place);
        for ranked in column(&predictions, "image_ids") {
            let ranked = ranked.as_array().expect("ids").clone();
            let found = ranked.iter().filter(|id| same.contains(id)).cloned().collect::<Vec<_>>();
            assert_eq!(found, same[..found.len()], "{ranked:?}");
        }
    }
    // Its texts, prepared: the same set with texts that leave nothing to prepare.
    let prepared = expected["texts"].as_array().expect("texts").iter().zip(column(&pairs, "text_id"));
    let lines = prepared.map(|(text, id)| format!("{}\n", json!({"text_id": id, "text": text, "image_ids": [9]})));
    let texts = second.path().join("test_texts.jsonl");
    std::fs::write(&texts, lines.collect::<String>()).expect("writes");
    let images = folder.join("test_imgs.tsv");
    eval(&["--pairs", text(&texts), "--images", text(&images), "--save-features", text(second.path())]);
    let [ours, theirs] = [&first, &second].map(|folder| read(&folder.path().join("text_features.jsonl")));
    assert_eq!(ours, theirs);
    assert_eq!(read(&image_features), read(&second.path().join("image_features.jsonl")));
}

#[test]
fn pictures_file_may_be_named() {
    let folder = fixture("drawings");
    let set = tempfile::tempdir().expect("a folder");
    let (texts, images) = (set.path().join("queries.jsonl"), set.path().join("pictures.tsv"));
    std::fs::copy(folder.join("test_texts.jsonl"), &texts).expect("copies");
    std::fs::copy(folder.join("test_imgs.tsv"), &images).expect("copies");
    refuses(&["--pairs", text(&texts)], &["queries.jsonl", "--images"]);
    assert_eq!(report(&["--pairs", text(&texts), "--images", text(&images)])["text_to_image"]["candidates"], 16);
}

#[test]
fn pairs_give_the_report_of_the_contract() {
    let folder = tempfile::tempdir().expect("a folder");
    let labels = std::fs::read_to_string(root().join("demo/labels_zh.jsonl")).expect("reads");
    let mut lines = labels.lines().take(60).collect::<Vec<_>>();
    let twice = r#"{"text": "嘿嘿", "image": "images/1f603.png"}"#;
    lines.push(twice);
    let pairs = folder.path().join("pairs.jsonl");
    std::fs::write(&pairs, lines.join("\n")).expect("writes");
    let report = report(&["--model", "models/small", "--pairs", text(&pairs), "--images", "demo"]);
    for direction in ["text_to_image", "image_to_text"] {
        let figures = &report[direction];
        let [r1, r5, r10, mean] = ["r1", "r5", "r10", "mean_recall"].map(|key| figures[key].as_f64().expect(key));
        assert!(50.0 < r1 && r1 <= r5 && r5 <= r10 && r10 <= 100.0, "{figures}");
        assert!((mean - (r1 + r5 + r10) / 3.0).abs() < 1e-9);
        assert_eq!((&figures["queries"], &figures["candidates"]), (&json!(60), &json!(60)));
    }
    let entropy = &report["feature_entropy"];
    let [image, text, maximum] = ["image", "text", "maximum"].map(|key| entropy[key].as_f64().expect(key));
    assert!(0.0 < image && image < maximum && 0.0 < text && text < maximum && entropy["unit"] == "nats", "{entropy}");
    let information = &report["mutual_information"];
    let [nats, ceiling] = ["nats", "ceiling"].map(|key| information[key].as_f64().expect(key));
    assert!(1.0 < nats && nats < ceiling && information["pairs"] == 61, "{information}");
}

#[test]
fn blind_split_has_predictions_and_no_recall() {
    let folder = fixture("drawings");
    let set = tempfile::tempdir().expect("a folder");
    let [texts, predictions, labelled] =
        ["test_texts.jsonl", "p.jsonl", "labelled.jsonl"].map(|name| set.path().join(name));
    std::fs::copy(folder.join("test_imgs.tsv"), set.path().join("test_imgs.tsv")).expect("copies");
    let without_labels = read(&folder.join("test_texts.jsonl")).lines().fold(String::new(), |blind, line| {
        let mut line: Value = serde_json::from_str(line).expect("JSON");
        line.as_object_mut().expect("an object").remove("image_ids");
        format!("{blind}{line}\n")
    });
    std::fs::write(&texts, without_labels).expect("writes");
    refuses(&["--pairs", text(&texts)], &["blind", "--predictions"]);
    let blind = report(&["--pairs", text(&texts), "--predictions", text(&predictions)]);
    assert_eq!((&blind["text_to_image"], &blind["mutual_information"]), (&Value::Null, &Value::Null));
    report(&["--pairs", text(&folder.join("test_texts.jsonl")), "--predictions", text(&labelled)]);
    assert_eq!(read(&predictions), read(&labelled));
}

#[test]
fn what_is_wrong_is_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = |name: &str, content: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, content).expect("writes");
        text(&path).to_owned()
    };
    let pairs = file("pairs.jsonl", r#"{"text": "a", "image": "gone.png"}"#);
    refuses(&["--pairs", &pairs], &["gone.png"]);
    refuses(&["--pairs", text(folder.path())], &["is a folder", "test_texts.jsonl"]);
    refuses(&["--pairs", &pairs, "--image-features", &pairs], &["pairs.jsonl line 1"]);
    refuses(&["--pairs", &pairs, "--predictions", "no/such/folder/p.jsonl"], &["no/such/folder"]);
    let texts = file("test_texts.jsonl", r#"{"text_id": 1, "text": "a", "image_ids": [2]}"#);
    refuses(&["--pairs", &texts], &["test_imgs.tsv"]);
    file("test_imgs.tsv", "2\tbm8gcGljdHVyZQ==\n");
    refuses(&["--pairs", &texts], &["test_imgs.tsv", "image"]);
    let features = file("f.jsonl", r#"{"text_id": 7, "feature": [1, 0]}"#);
    refuses(&["--pairs", &texts, "--text-features", &features], &["features", "order"]);
}

/// A copy of the bundled model whose folder may be written to.
fn model_copy() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    for entry in std::fs::read_dir(root().join("models/small")).expect("reads") {
        let path = entry.expect("an entry").path();
        if path.is_file() && !path.ends_with("calibration.json") {
            std::fs::copy(&path, folder.path().join(path.file_name().expect("a name"))).expect("copies");
        }
    }
    std::os::unix::fs::symlink(root().join("models/small/golden"), folder.path().join("golden")).expect("links");
    folder
}

#[test]
fn thresholds_are_written_into_the_models_folder_and_those_of_other_languages_stay() {
    let model = model_copy();
    let pairs = model.path().join("pairs.jsonl");
    let labels = read(&root().join("demo/labels_zh.jsonl"));
    std::fs::write(&pairs, labels.lines().take(200).collect::<Vec<_>>().join("\n")).expect("writes");
    let file = model.path().join("calibration.json");
    std::fs::write(&file, r#"{"image": {"en": 1.5}, "caption": {"zh": 2.5}}"#).expect("writes");
    let (unmatched, posts) = (root().join("demo/unmatched_zh.jsonl"), root().join("demo/feed.jsonl"));
    let calibrate = ["--calibrate", "--model", text(model.path()), "--pairs", text(&pairs), "--images", "demo"];
    let found = report(&[&calibrate[..], &["--unmatched", text(&unmatched), "--captions", text(&posts)]].concat());
    let written: Value = serde_json::from_str(&read(&file)).expect("JSON");
    for target in ["image", "caption"] {
        let measured = &found["thresholds"][target]["zh"];
        assert_eq!(written[target]["zh"], measured["set_on"]["threshold"], "{written}");
        for half in ["set_on", "held_out"] {
            let [answered, wrong] = ["answered", "false_answers"].map(|key| measured[half][key].as_f64().expect(key));
            assert!(answered > 60.0 && wrong < 40.0 && measured[half]["matching"].as_u64() > Some(90), "{found}");
        }
    }
    assert_eq!(written["image"]["en"], json!(1.5), "{written}");
    // Without topics that nothing matches: each text without its own pictures, which is harder.
    let stricter = report(&calibrate);
    let [stricter, before] =
        [&stricter, &found].map(|it| it["thresholds"]["image"]["zh"]["set_on"]["threshold"].as_f64());
    assert!(stricter.is_some() && before.is_some() && stricter != before);
    std::fs::write(&pairs, labels.lines().take(10).collect::<Vec<_>>().join("\n")).expect("writes");
    refuses(&calibrate, &["too few"]);
}

#[test]
fn transforms_keep_recall_and_tell_what_they_change() {
    let folder = tempfile::tempdir().expect("a folder");
    let pairs = folder.path().join("pairs.jsonl");
    let labels = read(&root().join("demo/labels_zh.jsonl"));
    std::fs::write(&pairs, labels.lines().take(150).collect::<Vec<_>>().join("\n")).expect("writes");
    let posts = root().join("demo/feed.jsonl");
    let all = report(&["--transform", "all", "--pairs", text(&pairs), "--images", "demo", "--posts", text(&posts)]);
    let effects = all["transforms"].as_array().expect("a list");
    let names = effects.iter().map(|effect| effect["transform"].as_str().expect("a name")).collect::<Vec<_>>();
    assert_eq!(names, ["none", "sine", "sigmoid", "centred_sigmoid"]);
    for effect in &effects[1..] {
        assert_eq!(effect["image"], effects[0]["image"], "recall of one ranking stays");
        assert_ne!(effect["calibration_error"], effects[0]["calibration_error"]);
        assert!(effect["rrf"].is_array() && effect["weighted"].is_array(), "{effect}");
    }
}
