//! `feedlens eval --zero-shot` through the real binary, on drawings in a style that the bundled model was not trained on.

use std::path::Path;

use serde_json::Value;

use crate::binary::{feedlens, refuses, root};

/// Categories of the demo's drawings that do not overlap, with what people call them.
const CLASSES: [(&str, &str); 6] = [
    ("animals", "动物"),
    ("clothes", "衣服"),
    ("food", "食物"),
    ("plants", "植物"),
    ("sport", "运动"),
    ("vehicles", "交通工具"),
];

/// The first drawings of each class.
const DRAWINGS: [[&str; 6]; 6] = [
    ["1f436", "1f431", "1f42d", "1f98a", "1f43b", "1f981"],
    ["1f455", "1f456", "1f457", "1f45a", "1f9e5", "1f459"],
    ["1f354", "1f35f", "1f355", "1f32d", "1f96a", "1f35c"],
    ["1f335", "1f332", "1f333", "1f334", "1f33f", "1f340"],
    ["26bd", "1f3c0", "1f3c8", "26be", "1f3be", "1f3d0"],
    ["1f697", "1f695", "1f68c", "1f3ce", "1f693", "1f691"],
];

fn folders(folder: &Path) {
    for ((class, _), drawings) in CLASSES.iter().zip(DRAWINGS) {
        std::fs::create_dir(folder.join(class)).expect("a folder");
        for code in drawings {
            let file = format!("{code}.png");
            std::fs::copy(root().join("demo/images").join(&file), folder.join(class).join(&file)).expect("copies");
        }
    }
}

fn evaluate(folder: &Path, further: &[&str]) -> Value {
    let images = folder.to_str().expect("UTF-8");
    let arguments = [&["eval", "--zero-shot", "--model", "models/small", "--images", images], further].concat();
    let output = feedlens(&arguments).output().expect("starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice::<Value>(&output.stdout).expect("JSON")["zero_shot"].take()
}

#[test]
fn drawings_of_a_new_style_fall_into_their_classes() {
    let folder = tempfile::tempdir().expect("a folder");
    folders(folder.path());
    let files = tempfile::tempdir().expect("a folder");
    let names = files.path().join("names.txt");
    std::fs::write(&names, CLASSES.map(|(_, name)| name).join("\n")).expect("writes");
    let nearest = files.path().join("nearest.jsonl");
    let further = ["--classes", names.to_str().expect("UTF-8"), "--predictions", nearest.to_str().expect("UTF-8")];
    let zh = evaluate(folder.path(), &further);
    assert_eq!((&zh["images"], &zh["classes"]), (&Value::from(36), &Value::from(6)));
    let share = |told: &Value, name: &str| told[name].as_f64().expect("a number");
    // Chance is 16.7.
    assert!(share(&zh, "top1") >= 70.0 && share(&zh, "top5") >= 95.0, "{zh}");
    // As many pictures in each class: both means are the same.
    assert!((share(&zh, "top1") - share(&zh, "mean_per_class")).abs() < 1e-9, "{zh}");
    assert!(share(&zh["per_class"]["vehicles"], "top1") >= 80.0, "{zh}");

    let lines = std::fs::read_to_string(&nearest).expect("reads");
    let lines = lines.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON")).collect::<Vec<_>>();
    let right = lines.iter().filter(|line| line["nearest"][0]["class"] == line["class"]).count();
    assert!((share(&zh, "top1") - 100.0 * right as f64 / 36.0).abs() < 1e-9, "the file says the same");

    // In English, by the folders' names; and with the names of other classes, which must be worse.
    let en = evaluate(folder.path(), &["--templates", "en"]);
    assert!(share(&en, "top1") >= 60.0, "{en}");
    let mut wrong = CLASSES.map(|(_, name)| name);
    wrong.rotate_left(1);
    std::fs::write(&names, wrong.join("\n")).expect("writes");
    let wrong = evaluate(folder.path(), &further[..2]);
    assert!(share(&wrong, "top1") <= 20.0, "{wrong}");
}

#[test]
fn a_labelled_file_gives_what_folders_give() {
    let folder = tempfile::tempdir().expect("a folder");
    folders(folder.path());
    let labels = folder.path().join("labels.jsonl");
    let lines = CLASSES.iter().zip(DRAWINGS).flat_map(|((class, _), drawings)| {
        drawings.map(|code| serde_json::json!({"image": format!("{class}/{code}.png"), "label": class}).to_string())
    });
    std::fs::write(&labels, lines.collect::<Vec<_>>().join("\n")).expect("writes");
    let labels = labels.to_str().expect("UTF-8");
    let by_file = evaluate(folder.path(), &["--labels", labels, "--templates", "both"]);
    assert_eq!(by_file, evaluate(folder.path(), &["--templates", "both"]));
}

#[test]
fn what_cannot_be_measured_is_said_in_a_sentence() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().to_str().expect("UTF-8");
    refuses(&["eval", "--zero-shot", "--images", path], 1, &["no class folders"]);
    folders(folder.path());
    refuses(&["eval", "--zero-shot", "--images", path, "--templates", "fr"], 1, &["neither zh, en nor both"]);
    let names = folder.path().join("names.txt");
    std::fs::write(&names, "a\nb\n").expect("writes");
    let names = names.to_str().expect("UTF-8");
    refuses(&["eval", "--zero-shot", "--images", path, "--classes", names], 1, &["2 names", "6 classes"]);
}
