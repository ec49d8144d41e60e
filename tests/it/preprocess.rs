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

/// Found by `make fuzz`: 4 GB were allocated for a file of a hundred bytes, which ends a process that has less.
#[cfg(target_os = "linux")]
#[test]
fn chunk_that_claims_more_than_the_file_takes_no_memory() {
    let folder = tempfile::tempdir().expect("a folder");
    let (picture, out) = (folder.path().join("claims.webp"), folder.path().join("tensor.npy"));
    const RIFF_HEADER: usize = 12;
    const HAS_EXIF: u8 = 0x08;
    let mut webp = std::io::Cursor::new(Vec::new());
    image::RgbImage::new(8, 8).write_to(&mut webp, image::ImageFormat::WebP).expect("encodes");
    let pixels = &webp.get_ref()[RIFF_HEADER..];
    let exif = [&b"EXIF"[..], &0xF000_0000_u32.to_le_bytes(), &[0; 8]].concat();
    let extended = [&b"VP8X"[..], &10_u32.to_le_bytes(), &[HAS_EXIF, 0, 0, 0, 7, 0, 0, 7, 0, 0]].concat();
    let chunks = [&extended, pixels, &exif].concat();
    let riff = [&b"RIFF"[..], &(chunks.len() as u32 + 4).to_le_bytes(), b"WEBP"].concat();
    std::fs::write(&picture, [riff, chunks].concat()).expect("written");

    let command = feedlens(&["model", "preprocess", "--model", "models/small", "--set", "images.exif_rotation=true"]);
    let limited = std::process::Command::new("sh")
        .args(["-c", "ulimit -v 2000000; exec \"$0\" \"$@\""])
        .arg(command.get_program())
        .args(command.get_args())
        .arg(&picture)
        .arg("--out")
        .arg(&out)
        .current_dir(root())
        .output()
        .expect("the shell starts");
    assert!(limited.status.success(), "{}", String::from_utf8_lossy(&limited.stderr));
}
