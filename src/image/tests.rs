//! `images.decode = "fast"` against exact pixels: every kind of JPEG, whole, damaged, cut off and hostile.

use std::path::Path;

use turbojpeg_sys as tj;

use super::decode::{DecodeOptions, decode};
use super::memory;
use super::picture::{Layout, Picture};
use super::resize::{ConvertRgb, Frame, Half, resize_premultiplied, resize_rgb};
use super::*;
use crate::error::{Fault, Reason};

const SUBSAMPLINGS: [(&str, tj::TJSAMP); 6] = [
    ("4:4:4", tj::TJSAMP_TJSAMP_444),
    ("4:2:2", tj::TJSAMP_TJSAMP_422),
    ("4:2:0", tj::TJSAMP_TJSAMP_420),
    ("4:4:0", tj::TJSAMP_TJSAMP_440),
    ("4:1:1", tj::TJSAMP_TJSAMP_411),
    ("4:4:1", tj::TJSAMP_TJSAMP_441),
];

const EXACT: DecodeOptions = DecodeOptions { max_pixels: 1_000_000, exif_rotation: false, shrink_to: None };

fn fast(least: u32) -> DecodeOptions {
    DecodeOptions { shrink_to: Some(least), ..EXACT }
}

/// Soft colours with a hard edge, encoded at a quality of 90.
fn jpeg((width, height): (usize, usize), subsampling: tj::TJSAMP, is_progressive: bool) -> Vec<u8> {
    let wave = |at: usize, of: usize, turns: f64| (at as f64 / of as f64 * turns * std::f64::consts::TAU).sin();
    let mut rgb = Vec::with_capacity(3 * width * height);
    for row in 0..height {
        for column in 0..width {
            let (right, below) = (wave(column, width, 1.5), wave(row, height, 1.0));
            let edge = if 3 * column > 2 * width { 60.0 } else { -40.0 };
            rgb.extend(
                [128.0 + 80.0 * right, 128.0 + 60.0 * below + edge, 120.0 - 70.0 * right * below].map(|v| v as u8),
            );
        }
    }
    let (mut data, mut size) = (std::ptr::null_mut(), 0);
    // SAFETY: the handle is valid until it is destroyed, `rgb` has as many pixels, and the library allocates what it writes.
    unsafe {
        let handle = tj::tj3Init(tj::TJINIT_TJINIT_COMPRESS as i32);
        for (parameter, value) in [
            (tj::TJPARAM_TJPARAM_QUALITY, 90),
            (tj::TJPARAM_TJPARAM_SUBSAMP, subsampling),
            (tj::TJPARAM_TJPARAM_PROGRESSIVE, i32::from(is_progressive)),
        ] {
            assert_eq!(tj::tj3Set(handle, parameter as i32, value), 0, "a setting");
        }
        let (width, height, format) = (width as i32, height as i32, tj::TJPF_TJPF_RGB);
        let status = tj::tj3Compress8(handle, rgb.as_ptr(), width, 0, height, format, &raw mut data, &raw mut size);
        assert_eq!(status, 0, "encodes");
        let bytes = std::slice::from_raw_parts(data, size as usize).to_vec();
        tj::tj3Free(data.cast());
        tj::tj3Destroy(handle);
        bytes
    }
}

fn fixture(name: &str) -> Vec<u8> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/preprocess");
    std::fs::read(folder.join(name)).expect("the fixture")
}

fn squeezed(picture: &Picture, side: usize) -> Vec<u8> {
    resize_rgb(picture, &Frame::whole(side, side), ConvertRgb::After)
}

/// The greatest difference, and the mean one.
fn differences(left: &[u8], right: &[u8]) -> (u8, f64) {
    assert_eq!(left.len(), right.len());
    let each = left.iter().zip(right).map(|(left, right)| left.abs_diff(*right));
    let sum = each.clone().map(u64::from).sum::<u64>();
    (each.max().unwrap_or(0), sum as f64 / left.len() as f64)
}

#[track_caller]
fn assert_close(name: &str, actual: &[u8], expected: &[u8], greatest: u8, mean: f64) {
    let found = differences(actual, expected);
    println!("{name}: greatest difference {}, mean {:.3}", found.0, found.1);
    assert!(found.0 <= greatest && found.1 <= mean, "{name}: {found:?}, allowed {greatest} and {mean}");
}

#[test]
fn fast_is_close_to_exact_for_every_subsampling_and_size() {
    for (name, subsampling) in SUBSAMPLINGS {
        for size in [(1, 1), (1, 33), (33, 1), (2, 3), (45, 43), (98, 61), (127, 200)] {
            for is_progressive in [false, true] {
                let bytes = jpeg(size, subsampling, is_progressive);
                let exact = decode(&bytes, &EXACT).expect("decodes");
                let picture = decode(&bytes, &fast(1_000)).expect("decodes");
                assert!(matches!(picture.layout(), Layout::YCbCr(_)), "{name}: {picture:?}");
                assert_eq!(picture.size(), exact.size(), "{name}");
                let name = format!("{name}, {size:?}, progressive {is_progressive}");
                // Where one sample of chroma makes several pixels of the result, the ways to blow it up show.
                let (greatest, mean) = if size.0.min(size.1) < 48 { (22, 5.0) } else { (6, 0.8) };
                assert_close(&name, &squeezed(&picture, 24), &squeezed(&exact, 24), greatest, mean);
            }
        }
    }
}

#[test]
fn fast_crops_what_exact_crops() {
    let bytes = jpeg((151, 99), tj::TJSAMP_TJSAMP_420, false);
    let crop = |options: &DecodeOptions| {
        let picture = decode(&bytes, options).expect("decodes");
        resize_rgb(&picture, &Frame::middle(picture.size(), 40, Half::Even), ConvertRgb::After)
    };
    assert_close("crop", &crop(&fast(1_000)), &crop(&EXACT), 6, 0.8);
}

/// Those that have no planes of YCbCr are decoded as ever.
#[test]
fn fast_takes_grey_rgb_and_inks() {
    for (name, layout) in [
        ("jpeg-l-52x29.jpeg", Layout::Gray),
        ("jpeg-rgb-31x33.jpeg", Layout::Rgb),
        ("jpeg-cmyk-26x35.jpeg", Layout::Cmyk),
        ("jpeg-ycck-35x26.jpeg", Layout::Cmyk),
    ] {
        let [exact, picture] = [EXACT, fast(1_000)].map(|how| decode(&fixture(name), &how).expect("decodes"));
        assert_eq!(picture.layout(), layout, "{name}");
        assert_eq!(picture.pixels(), exact.pixels(), "{name}");
    }
}

#[test]
fn fast_turns_pictures_where_exact_does() {
    for (name, lying) in [("jpeg-turned-6-30x20.jpeg", (30, 20)), ("jpeg-turned-7-20x30.jpeg", (20, 30))] {
        for exif_rotation in [false, true] {
            let [exact, picture] = [EXACT, fast(1_000)]
                .map(|how| decode(&fixture(name), &DecodeOptions { exif_rotation, ..how }).expect("decodes"));
            let upright = if exif_rotation { (lying.1, lying.0) } else { lying };
            assert_eq!((picture.size(), exact.size()), (upright, upright), "{name}");
            let name = format!("{name}, turned {exif_rotation}");
            assert_close(&name, &squeezed(&picture, 16), &squeezed(&exact, 16), 12, 2.0);
        }
    }
}

#[test]
fn fast_never_decodes_below_twice_the_resolution() {
    let mut images = crate::config::Config::load(&[], &crate::config::Overrides::default()).expect("loads").images;
    images.decode = Fidelity::Fast;
    images.thumbnail_pixels = 0;
    let options = images.decode_options(24);
    for (size, expected) in [
        ((94, 200), (94, 200)),
        ((95, 200), (48, 100)),
        ((200, 97), (100, 49)),
        ((188, 192), (94, 96)),
        ((192, 192), (48, 48)),
        ((376, 384), (94, 96)),
        ((384, 777), (48, 98)),
        ((790, 800), (99, 100)),
    ] {
        for (name, subsampling) in SUBSAMPLINGS {
            let bytes = jpeg(size, subsampling, false);
            let picture = decode(&bytes, &options).expect("decodes");
            assert_eq!(picture.size(), expected, "{name}, {size:?}");
            let exact = squeezed(&decode(&bytes, &EXACT).expect("decodes"), 24);
            // Where one sample of chroma makes a pixel of the result or more, the ways to blow it up show.
            let (greatest, mean) = if name.ends_with('1') { (12, 2.3) } else { (6, 1.0) };
            assert_close(&format!("{name}, {size:?}"), &squeezed(&picture, 24), &exact, greatest, mean);
        }
    }
    // Nor below the thumbnail's size.
    images.thumbnail_pixels = 100;
    let picture = decode(&jpeg((198, 198), tj::TJSAMP_TJSAMP_420, false), &images.decode_options(24));
    assert_eq!(picture.expect("decodes").size(), (198, 198));
}

#[test]
fn thumbnail_of_planes_is_that_of_rgb() {
    let bytes = jpeg((97, 75), tj::TJSAMP_TJSAMP_420, false);
    let [exact, fast] =
        [EXACT, fast(1_000)].map(|how| resize_premultiplied(&decode(&bytes, &how).expect("decodes"), 32, 24));
    assert_eq!(fast.len(), 4 * 32 * 24);
    assert_close("thumbnail", &fast, &exact, 6, 0.8);
    assert!(fast.as_chunks::<4>().0.iter().all(|[.., alpha]| *alpha == 255));
}

/// What an outcome is about: its size, or why it was refused.
fn outcome(bytes: &[u8], how: &DecodeOptions) -> Result<(usize, usize), String> {
    match decode(bytes, how) {
        Ok(picture) => {
            squeezed(&picture, 3);
            Ok(picture.size())
        }
        Err(Fault::Reject { reason: reason @ (Reason::BadImage | Reason::TooLarge), detail }) => {
            Err(format!("{reason}: {detail}"))
        }
        Err(other) => panic!("{other:?}"),
    }
}

#[test]
fn fast_refuses_what_exact_refuses() {
    let mut files = vec![fixture("jpeg-damaged-48x40.jpeg"), fixture("jpeg-cut-off-48x40.jpeg")];
    for (_, subsampling) in SUBSAMPLINGS {
        files.extend([false, true].map(|is_progressive| jpeg((45, 39), subsampling, is_progressive)));
    }
    let (mut taken, mut refused) = (0, 0);
    let mut assert_alike = |bytes: &[u8], what: &dyn std::fmt::Display| {
        let expected = outcome(bytes, &EXACT);
        assert_eq!(outcome(bytes, &fast(1_000)), expected, "{what}");
        *(if expected.is_ok() { &mut taken } else { &mut refused }) += 1;
    };
    for (number, file) in files.iter().enumerate() {
        for end in (0..file.len()).step_by(7) {
            assert_alike(&file[..end], &format_args!("file {number} ends at {end}"));
        }
        for at in (0..file.len()).step_by(5) {
            let mut damaged = file.clone();
            damaged[at] ^= 1 << (at % 8);
            assert_alike(&damaged, &format_args!("file {number}, a bit at {at} flipped"));
        }
    }
    // Damage in the first scan, which alone would be shown, and then tables that end it.
    let (start_of_scan, tables) = ([0xff, 0xda], [0xff, 0xc4]);
    let mut unfinished = jpeg((45, 39), tj::TJSAMP_TJSAMP_420, true);
    let find = |bytes: &[u8], marker: [u8; 2]| bytes.windows(2).position(|pair| pair == marker).expect("the marker");
    let first_scan = find(&unfinished, start_of_scan);
    let after_it = first_scan + find(&unfinished[first_scan..], tables);
    unfinished.splice(after_it..after_it, [0; 40]);
    assert!(outcome(&unfinished, &EXACT).is_ok(), "bytes between the scans");
    assert_alike(&unfinished, &"bytes between the scans");
    let counts = after_it + 40 + 5;
    unfinished[counts..counts + 16].fill(u8::MAX);
    assert!(outcome(&unfinished, &EXACT).is_err(), "never decoded");
    assert_alike(&unfinished, &"never decoded");
    let small = DecodeOptions { max_pixels: 45 * 39 - 1, ..fast(1_000) };
    assert!(outcome(&files[4], &small).is_err_and(|text| text.contains("45 x 39 pixels; at most 1754")));
    assert!(taken > 500 && refused > 500, "{taken} taken, {refused} refused");
}

#[test]
fn fast_bounds_the_scans_of_a_progressive_file() {
    const START_OF_SCAN: [u8; 2] = [0xff, 0xda];
    let file = jpeg((64, 64), tj::TJSAMP_TJSAMP_420, true);
    let last_scan = file.windows(2).rposition(|pair| pair == START_OF_SCAN).expect("a scan");
    let end = file.len() - 2;
    let with_scans = |more: usize| [&file[..end], &file[last_scan..end].repeat(more), &file[end..]].concat();
    for how in [EXACT, fast(1_000), fast(16)] {
        let refusal = outcome(&with_scans(200), &how).expect_err("too many scans");
        assert!(refusal.contains("scan"), "{refusal}");
        assert!(outcome(&with_scans(0), &how).is_ok());
    }
}

#[test]
fn memory_for_planes_is_within_what_is_reckoned() {
    for (name, subsampling) in SUBSAMPLINGS {
        let bytes = jpeg((61, 45), subsampling, false);
        let picture = decode(&bytes, &fast(1_000)).expect("decodes");
        // Damaged files are there twice.
        assert!(2 * picture.pixels().len() as u64 <= memory::needed(&bytes, &fast(1_000)), "{name}");
    }
}
