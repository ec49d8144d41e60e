use std::path::Path;

use super::samples::{Sample, across_row};
use super::windows::Windows;
use super::*;
use crate::image::decode::{DecodeOptions, decode};

/// How far the pictures of a folder are from what the reference made of them.
#[derive(Debug, Default, PartialEq)]
struct Comparison {
    equal: usize,
    different: usize,
    /// Refused by Pillow and here.
    refused: usize,
}

/// Compares every `NAME.SIDE.RULE.rgb` of a folder, as `tools/make_preprocess_fixtures.py` wrote it, with what `NAME` gives
/// here.
fn compare_with_pillow(folder: &Path) -> Comparison {
    let mut comparison = Comparison::default();
    for entry in std::fs::read_dir(folder).expect("the folder is there") {
        let expected_path = entry.expect("an entry").path();
        let name = expected_path.file_name().and_then(|name| name.to_str()).expect("a name in UTF-8");
        let Some(stem) = name.strip_suffix(".rgb") else { continue };
        let (stem, rule) = stem.rsplit_once('.').expect("a rule");
        let (source, side) = stem.rsplit_once('.').expect("a side");
        let side = side.parse().expect("the side is a number");
        let expected = std::fs::read(&expected_path).expect("the expected pixels");
        let options = DecodeOptions { exif_rotation: rule == "upright", ..DecodeOptions::default() };
        let picture = match decode(&std::fs::read(folder.join(source)).expect("the source"), &options) {
            Ok(picture) => picture,
            Err(fault) => {
                assert!(expected.is_empty(), "{name}: Pillow takes it, here: {fault}");
                comparison.refused += 1;
                continue;
            }
        };
        let (frame, convert) = match rule {
            "squeeze" | "upright" => (Frame::whole(side, side), ConvertRgb::After),
            "crop" => (Frame::middle(picture.size(), side, Half::Even), ConvertRgb::After),
            "before" => (Frame::middle(picture.size(), side, Half::Down), ConvertRgb::Before),
            other => panic!("{name}: no rule {other}"),
        };
        let actual = resize_rgb(&picture, &frame, convert);
        assert_eq!(actual.len(), expected.len(), "{name}");
        if actual == expected {
            comparison.equal += 1;
        } else {
            let largest = actual.iter().zip(&expected).map(|(left, right)| left.abs_diff(*right)).max();
            eprintln!("{name} ({picture:?}): differs by up to {largest:?}");
            comparison.different += 1;
        }
    }
    comparison
}

/// JPEG too: the decoder is the one that Pillow has.
#[test]
fn every_format_and_mode_equals_pillow_to_the_bit() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/preprocess");
    assert_eq!(compare_with_pillow(&folder), Comparison { equal: 211, different: 0, refused: 3 });
}

/// `tools/make_preprocess_fixtures.py --random 1500 FOLDER`, then FEEDLENS_TEST_PICTURES=FOLDER.
#[test]
#[ignore = "needs a folder that tools/make_preprocess_fixtures.py --random has filled"]
fn random_pictures_equal_pillow_to_the_bit() {
    let folder = std::env::var("FEEDLENS_TEST_PICTURES").expect("FEEDLENS_TEST_PICTURES names the folder");
    let comparison = compare_with_pillow(Path::new(&folder));
    eprintln!("{comparison:?}");
    assert!(comparison.equal > 0 && comparison.different == 0);
}

#[test]
fn portable_code_equals_the_vectorised() {
    let sample = |at: usize| (at * 37 + at * at / 7) as u8;
    for (from, to) in [(61, 24), (7, 24), (400, 3)] {
        let windows = || Windows::new(from, to, 0..to, u8::weight);
        let source: Vec<u8> = (0..from * 4 + passes::PADDING).map(sample).collect();
        let row = |lanes: usize, across: &dyn Fn(&[u8], &mut [u8])| {
            let mut out = vec![0; to * lanes];
            across(&source, &mut out);
            out
        };
        assert_eq!(
            row(3, &*u8::across::<3>(windows())),
            row(3, &|source, out| across_row::<u8, 3>(&windows(), source, out))
        );
        assert_eq!(
            row(4, &*u8::across::<4>(windows())),
            row(4, &|source, out| across_row::<u8, 4>(&windows(), source, out))
        );
    }
}

#[test]
fn long_thin_picture_takes_little_memory() {
    // Pillow's own order would hold 224 x 65,535 pixels between the passes.
    let picture = Picture::new(1, 65_535, Layout::Rgb, vec![200; 65_535 * 3]);
    assert_eq!(resize_rgb(&picture, &Frame::whole(224, 224), ConvertRgb::After), vec![200; 224 * 224 * 3]);
}
