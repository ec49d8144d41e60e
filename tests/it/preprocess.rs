//! `feedlens model preprocess` through the real binary.

use crate::binary::{feedlens, refuses, root};

const PICTURE: &str = "tests/fixtures/preprocess/jpeg-420-45x43.jpeg";

/// `tools/make_preprocess_fixtures.py` wrote the expected file with cn_clip's transform: torchvision on Pillow.
#[test]
fn tensor_equals_the_references_to_the_bit() {
    let folder = tempfile::tempdir().expect("a folder");
    let out = folder.path().join("tensor.npy");
    let output = feedlens(&["model", "preprocess", "--model", "models/small", PICTURE, "--out"])
        .arg(&out)
        .output()
        .expect("the binary starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.stdout.is_empty(), "nothing on stdout");
    let expected = std::fs::read(root().join(PICTURE).with_extension("npy")).expect("the fixture");
    assert!(std::fs::read(&out).expect("written") == expected, "the tensors differ");
}

#[test]
fn what_is_no_picture_or_cannot_be_written_is_named() {
    let command = |image, out| ["model", "preprocess", "--model", "models/small", image, "--out", out];
    refuses(&command("no-such.png", "x.npy"), 1, &["no-such.png"]);
    refuses(&command("Cargo.toml", "x.npy"), 1, &["Cargo.toml", "no picture"]);
    refuses(&command(PICTURE, "no-such-folder/x.npy"), 1, &["cannot write no-such-folder/x.npy"]);
    let large = ["--set", "images.max_bytes=100"];
    refuses(&[&command(PICTURE, "x.npy")[..], &large].concat(), 1, &[PICTURE, "images.max_bytes = 100"]);
}
