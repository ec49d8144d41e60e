use std::path::Path;

use base64::Engine as _;

use super::*;
use crate::image::decode::{DecodeLimits, decode};

const LIMITS: DecodeLimits = DecodeLimits { max_pixels: 10_000_000 };

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
            "crop" => (Frame::middle(picture.size(), side), ConvertRgb::After),
            "before" => (Frame::middle(picture.size(), side), ConvertRgb::Before),
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
    let (from, to) = ((61, 47), (24, 24));
    let value = |row: usize, column: usize| (row * 37 + column * 101 + row * column) as u8;
    let fill = |row: usize, out: &mut [[u8; 4]]| {
        for (column, pixel) in out.iter_mut().enumerate() {
            *pixel = [value(row, column), value(column, row), value(row, row), 255];
        }
    };
    assert_eq!(two_passes(from, to, fill), two_passes_portable(from, to, fill));
}

#[test]
fn long_thin_picture_takes_little_memory() {
    // Pillow's own order would hold 224 x 65,535 pixels between the passes.
    let picture = Picture::new(1, 65_535, Layout::Rgb, vec![200; 65_535 * 3]);
    assert_eq!(resize_rgb(&picture, 224, 224), vec![200; 224 * 224 * 3]);
}

fn decode_thumbnail(uri: &str) -> Picture {
    let data = uri.strip_prefix("data:image/jpeg;base64,").expect("a data URI of a JPEG");
    let bytes = base64::engine::general_purpose::STANDARD.decode(data).expect("base64");
    assert!(bytes.len() <= MAX_THUMBNAIL_BYTES, "{} bytes", bytes.len());
    decode(&bytes, &LIMITS).expect("a JPEG")
}

#[test]
fn thumbnail_keeps_the_shape_and_never_grows() {
    let picture = Picture::new(640, 320, Layout::Rgb, vec![90; 640 * 320 * 3]);
    let small = decode_thumbnail(&thumbnail(&picture, 160).expect("a thumbnail"));
    assert_eq!((small.width(), small.height()), (160, 80));
    let picture = Picture::new(3, 2, Layout::Gray, vec![90; 6]);
    let small = decode_thumbnail(&thumbnail(&picture, 160).expect("a thumbnail"));
    assert_eq!((small.width(), small.height()), (3, 2));
    let picture = Picture::new(1, 5_000, Layout::Gray, vec![90; 5_000]);
    let small = decode_thumbnail(&thumbnail(&picture, 160).expect("a thumbnail"));
    assert_eq!((small.width(), small.height()), (1, 160));
    assert_eq!(thumbnail(&picture, 0), None);
}

#[test]
fn thumbnail_of_noise_stays_small() {
    let mut state = 1u32;
    let noise = std::iter::repeat_with(|| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    });
    let picture = Picture::new(400, 400, Layout::Rgb, noise.take(400 * 400 * 3).collect());
    decode_thumbnail(&thumbnail(&picture, 320).expect("a thumbnail"));
}

#[test]
fn thumbnail_shows_transparent_parts_white() {
    let picture = Picture::new(32, 32, Layout::Rgba, vec![0; 32 * 32 * 4]);
    let small = decode_thumbnail(&thumbnail(&picture, 16).expect("a thumbnail"));
    assert!(small.pixels().iter().all(|value| *value >= 254), "{:?}", &small.pixels()[..3]);
}
