use std::path::Path;

use base64::Engine as _;

use super::*;
use crate::image::decode::{DecodeLimits, decode};

const LIMITS: DecodeLimits = DecodeLimits { max_pixels: 10_000_000 };

/// Compares every `NAME.<side>.rgb` of a folder, which Pillow wrote, with what `NAME` gives here. Returns the number of
/// pictures and the largest difference of a value.
fn compare_with_pillow(folder: &Path) -> (usize, u8) {
    let (mut pictures, mut largest) = (0, 0);
    for entry in std::fs::read_dir(folder).expect("the folder is there") {
        let expected_path = entry.expect("an entry").path();
        let name = expected_path.file_name().and_then(|name| name.to_str()).expect("a name in UTF-8");
        let Some((source, side)) = name.strip_suffix(".rgb").and_then(|name| name.rsplit_once('.')) else { continue };
        let side = side.parse().expect("the side is a number");
        let picture = decode(&std::fs::read(folder.join(source)).expect("the source"), &LIMITS).expect("decodes");
        let expected = std::fs::read(&expected_path).expect("the expected pixels");
        let actual = resize_rgb(&picture, side, side);
        assert_eq!(actual.len(), expected.len(), "{name}");
        let difference = actual.iter().zip(&expected).map(|(left, right)| left.abs_diff(*right)).max().unwrap_or(0);
        if difference > 0 {
            eprintln!("{name} ({picture:?}): differs by {difference}");
        }
        largest = largest.max(difference);
        pictures += 1;
    }
    (pictures, largest)
}

#[test]
fn every_mode_equals_pillow_to_the_bit() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/resize");
    assert_eq!(compare_with_pillow(&folder), (27, 0));
}

/// `tools/make_resize_fixtures.py --random 600 FOLDER`, then FEEDLENS_TEST_RESIZE=FOLDER.
#[test]
#[ignore = "needs a folder that tools/make_resize_fixtures.py --random has filled"]
fn random_pictures_equal_pillow_to_the_bit() {
    let folder = std::env::var("FEEDLENS_TEST_RESIZE").expect("FEEDLENS_TEST_RESIZE names the folder");
    let (pictures, largest) = compare_with_pillow(Path::new(&folder));
    eprintln!("{pictures} pictures, largest difference {largest}");
    assert!(pictures > 0 && largest == 0);
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
