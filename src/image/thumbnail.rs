//! Small copies of pictures that are stored with their posts.

use base64::Engine as _;
use image::ExtendedColorType;
use image::codecs::jpeg::JpegEncoder;

use crate::image::picture::Picture;
use crate::image::resize::resize_premultiplied;

/// The largest thumbnail, in bytes: it is stored with every post that has one.
const MAX_THUMBNAIL_BYTES: usize = 12 * 1024;

/// A small copy as a data URI (JPEG, at most some 12 kB), its longer side at most `max_side` pixels, transparent parts on
/// white. `None` where `max_side` is zero. Blocking.
pub fn thumbnail(picture: &Picture, max_side: u32) -> Option<String> {
    if max_side == 0 {
        return None;
    }
    let mut side = max_side;
    let mut quality = 82;
    loop {
        let jpeg = thumbnail_jpeg(picture, side, quality);
        if jpeg.len() <= MAX_THUMBNAIL_BYTES || side <= 16 {
            return Some(format!("data:image/jpeg;base64,{}", base64::engine::general_purpose::STANDARD.encode(jpeg)));
        }
        if quality > 45 {
            quality -= 18;
        } else {
            side = side * 3 / 4;
        }
    }
}

fn thumbnail_jpeg(picture: &Picture, max_side: u32, quality: u8) -> Vec<u8> {
    let (width, height) = (picture.width(), picture.height());
    let longer = width.max(height);
    let side = |side: u32| {
        let scaled = u64::from(side) * u64::from(max_side.min(longer)) / u64::from(longer);
        scaled.max(1) as u32
    };
    let (width, height) = (side(width), side(height));
    let pixels = resize_premultiplied(picture, width as usize, height as usize);
    let on_white: Vec<u8> = pixels
        .as_chunks()
        .0
        .iter()
        .flat_map(|[red, green, blue, alpha]| [red, green, blue].map(|value| value.saturating_add(255 - alpha)))
        .collect();
    let mut jpeg = Vec::new();
    JpegEncoder::new_with_quality(&mut jpeg, quality)
        .encode(&on_white, width, height, ExtendedColorType::Rgb8)
        .expect("a picture of at most 65,535 pixels a side is written to memory. This is a bug.");
    jpeg
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::decode::{DecodeOptions, decode};
    use crate::image::picture::Layout;

    fn decode_thumbnail(uri: &str) -> Picture {
        let data = uri.strip_prefix("data:image/jpeg;base64,").expect("a data URI of a JPEG");
        let bytes = base64::engine::general_purpose::STANDARD.decode(data).expect("base64");
        assert!(bytes.len() <= MAX_THUMBNAIL_BYTES, "{} bytes", bytes.len());
        decode(&bytes, &DecodeOptions::default()).expect("a JPEG")
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
}
