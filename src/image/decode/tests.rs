use std::io::Cursor;

use image::{DynamicImage, ImageBuffer, ImageFormat, Luma, Rgb, RgbImage, RgbaImage};
use proptest::prelude::*;

use super::*;

const LIMITS: DecodeOptions = at_most(1_000_000);

const fn at_most(max_pixels: u64) -> DecodeOptions {
    DecodeOptions { max_pixels, exif_rotation: false, shrink_to: None }
}

fn encoded(image: impl Into<DynamicImage>, format: ImageFormat) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    image.into().write_to(&mut bytes, format).expect("encodes");
    bytes.into_inner()
}

fn gradient() -> RgbImage {
    RgbImage::from_fn(20, 10, |x, y| Rgb([x as u8 * 12, y as u8 * 25, 90]))
}

#[track_caller]
fn assert_rejected(bytes: &[u8], options: &DecodeOptions, expected: Reason, mentions: &str) {
    crate::error::tests::assert_rejected(decode(bytes, options), expected, mentions);
}

#[test]
fn lossless_formats_give_the_pixels_back() {
    for format in [ImageFormat::Png, ImageFormat::Bmp, ImageFormat::WebP] {
        let picture = decode(&encoded(gradient(), format), &LIMITS).expect("decodes");
        assert_eq!(picture, Picture::new(20, 10, Layout::Rgb, gradient().into_raw()), "{format:?}");
    }
}

#[test]
fn jpeg_keeps_its_mode() {
    let picture = decode(&encoded(gradient(), ImageFormat::Jpeg), &LIMITS).expect("decodes");
    assert_eq!((picture.width(), picture.height(), picture.layout()), (20, 10, Layout::Rgb));
    let gray = DynamicImage::from(gradient()).to_luma8();
    let picture = decode(&encoded(gray, ImageFormat::Jpeg), &LIMITS).expect("decodes");
    assert_eq!(picture.layout(), Layout::Gray);
}

#[test]
fn sixteen_bit_colour_keeps_its_high_byte() {
    let image = ImageBuffer::from_pixel(1, 1, Rgb([0x12ff_u16, 0xff00, 0x00ff]));
    let picture = decode(&encoded(image, ImageFormat::Png), &LIMITS).expect("decodes");
    assert_eq!(picture, Picture::new(1, 1, Layout::Rgb, vec![0x12, 0xff, 0x00]));
    let image = ImageBuffer::from_pixel(1, 1, Luma([0x0102_u16]));
    let picture = decode(&encoded(image, ImageFormat::Png), &LIMITS).expect("decodes");
    assert_eq!(picture, Picture::new(1, 1, Layout::Gray16, 0x0102_u16.to_ne_bytes().to_vec()));
}

#[test]
fn exif_rotation_is_not_applied() {
    const ROTATE_BY_90: &[u8] =
        b"\xff\xe1\x00\x22Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0";
    let mut jpeg = encoded(gradient(), ImageFormat::Jpeg);
    jpeg.splice(2..2, ROTATE_BY_90.iter().copied());
    let picture = decode(&jpeg, &LIMITS).expect("decodes");
    assert_eq!((picture.width(), picture.height()), (20, 10));
}

/// Two frames, the first of 2 x 1 pixels at (1, 1) on a canvas of 4 x 3; index 1 is transparent.
fn animation() -> Vec<u8> {
    let mut bytes = Vec::new();
    let palette = [255, 0, 0, 0, 255, 0, 0, 0, 255, 9, 9, 9];
    let mut encoder = ::gif::Encoder::new(&mut bytes, 4, 3, &palette).expect("encodes");
    for index in [2, 3] {
        let frame = ::gif::Frame {
            left: 1,
            top: 1,
            width: 2,
            height: 1,
            transparent: Some(1),
            buffer: vec![index, 1].into(),
            ..::gif::Frame::default()
        };
        encoder.write_frame(&frame).expect("encodes");
    }
    drop(encoder);
    bytes
}

#[test]
fn first_frame_of_a_gif_lies_on_the_transparent_colour() {
    let picture = decode(&animation(), &LIMITS).expect("decodes");
    let mut expected = [[0, 255, 0]; 12];
    expected[5] = [0, 0, 255];
    assert_eq!(picture, Picture::new(4, 3, Layout::Indexed, expected.concat()));
}

#[test]
fn header_is_judged_before_memory_is_taken() {
    let small = at_most(199);
    for format in [ImageFormat::Png, ImageFormat::Jpeg, ImageFormat::WebP, ImageFormat::Bmp, ImageFormat::Gif] {
        assert_rejected(&encoded(gradient(), format), &small, Reason::TooLarge, "20 x 10 pixels; at most 199");
    }
    let mut png = encoded(gradient(), ImageFormat::Png);
    png[16..24].copy_from_slice(&[0x7f, 0xff, 0xff, 0xff, 0x7f, 0xff, 0xff, 0xff]);
    assert_rejected(&png, &at_most(u64::MAX), Reason::TooLarge, "65535 a side");
}

/// Where each format keeps width and height, patched to the most that it can say.
#[test]
fn giant_dimensions_are_refused_in_every_format() {
    let find = |bytes: &[u8], pattern: &[u8]| {
        let place = bytes.windows(pattern.len()).position(|window| window == pattern);
        place.expect("the format's mark") + pattern.len()
    };
    let jpeg = |bytes: &[u8]| find(bytes, &[0xff, 0xc0, 0x00, 0x11, 0x08]);
    let extended = {
        let mut file = b"RIFF\0\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0".to_vec();
        file.extend([0; 6]);
        file.extend(&encoded(gradient(), ImageFormat::WebP)[12..]);
        let length = (file.len() - 8) as u32;
        file[4..8].copy_from_slice(&length.to_le_bytes());
        file
    };
    let (png, gif, bmp, lossless) = ([ImageFormat::Png, ImageFormat::Gif, ImageFormat::Bmp, ImageFormat::WebP])
        .map(|format| encoded(gradient(), format))
        .into();
    let photograph = encoded(gradient(), ImageFormat::Jpeg);
    for (name, file, place, giant, least_pixels) in [
        ("PNG", &png, 16, &[0, 0, 0xff, 0xff, 0, 0, 0xff, 0xff][..], 65_535u64 * 65_535),
        ("GIF", &gif, 6, &[0xff; 4], 65_535 * 65_535),
        ("BMP", &bmp, 18, &[0xff, 0xff, 0, 0, 0xff, 0xff, 0, 0], 65_535 * 65_535),
        // libjpeg itself takes no more than 65,500.
        ("JPEG", &photograph, jpeg(&photograph), &[0xff, 0xdc, 0xff, 0xdc], 65_500 * 65_500),
        ("WebP, lossless", &lossless, find(&lossless, b"VP8L") + 5, &[0xfe, 0xbf, 0xff, 0xf], 16_383 * 16_383),
        ("WebP, extended", &extended, 24, &[0xfe, 0xff, 0, 0xfe, 0xff, 0], 65_535 * 65_535),
    ] {
        let mut giant_file = file.clone();
        giant_file[place..place + giant.len()].copy_from_slice(giant);
        let limit = at_most(least_pixels - 1);
        let error = decode(&giant_file, &limit).expect_err(name);
        assert!(matches!(error, Fault::Reject { reason: Reason::TooLarge, .. }), "{name}: {error}");
    }
}

#[test]
fn what_is_no_picture_is_named() {
    for (bytes, mentions) in [
        (&b""[..], "no bytes"),
        (b"\n <!DOCTYPE html><title>404</title>", "web page"),
        (b"<?xml version=\"1.0\"?><svg/>", "SVG"),
        (b"\0\0\0\x20ftypavif", "AVIF"),
        (b"hello", "known format"),
        (b"\x89PNG\r\n\x1a\n", "header"),
        (b"II*\0\x08\0\0\0", "known format"),
    ] {
        assert_rejected(bytes, &LIMITS, Reason::BadImage, mentions);
    }
}

#[test]
fn truncated_png_is_a_bad_image() {
    let png = encoded(gradient(), ImageFormat::Png);
    assert_rejected(&png[..png.len() / 2], &LIMITS, Reason::BadImage, "image");
}

fn any_file() -> impl Strategy<Value = Vec<u8>> {
    let alpha = RgbaImage::from_fn(9, 9, |x, y| image::Rgba([x as u8, y as u8, 9, (x * y) as u8]));
    let files = vec![
        encoded(gradient(), ImageFormat::Png),
        encoded(gradient(), ImageFormat::Jpeg),
        include_bytes!("../../../tests/fixtures/preprocess/jpeg-420-45x43.jpeg").to_vec(),
        encoded(gradient(), ImageFormat::WebP),
        encoded(gradient(), ImageFormat::Bmp),
        encoded(alpha.clone(), ImageFormat::Png),
        encoded(alpha, ImageFormat::WebP),
        animation(),
    ];
    let damage = proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8);
    (prop::sample::select(files), damage, any::<prop::sample::Index>(), any::<bool>()).prop_map(
        |(mut file, damage, end, cut)| {
            for (at, byte) in damage {
                let at = at.index(file.len());
                file[at] = byte;
            }
            if cut {
                file.truncate(end.index(file.len()));
            }
            file
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn damaged_files_are_decoded_or_rejected(file in any_file()) {
        for options in [LIMITS, DecodeOptions { shrink_to: Some(8), exif_rotation: true, ..LIMITS }] {
            match decode(&file, &options) {
                Ok(picture) => {
                    let size = picture.layout().size(picture.width(), picture.height());
                    prop_assert_eq!(picture.pixels().len(), size);
                }
                Err(Fault::Reject { reason: Reason::BadImage | Reason::TooLarge, .. }) => {}
                Err(other) => prop_assert!(false, "{other:?}"),
            }
        }
    }
}
