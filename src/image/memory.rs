//! How much memory decoding a picture takes, by its header alone.

use std::io::Cursor;

use image::{ImageFormat, ImageReader};

use super::decode::DecodeOptions;

/// Bytes at the peak of decoding, beside the file itself: pixels as the file has them and as they are kept. 0 where the
/// header names no size within the limit: decoding then ends before it takes memory.
///
/// May panic as decoders may: call it where a panic costs one post.
pub fn needed(bytes: &[u8], options: &DecodeOptions) -> u64 {
    let Ok(format) = image::guess_format(bytes) else { return 0 };
    let size = match format {
        // Not with the decoder, which reads on to the pixels and takes memory for a row.
        ImageFormat::Png => png_size(bytes),
        _ => ImageReader::with_format(Cursor::new(bytes), format).into_dimensions().ok(),
    };
    let pixels = size.map_or(0, |(width, height)| u64::from(width) * u64::from(height));
    if pixels > options.max_pixels {
        return 0;
    }
    // A picture that is turned is there twice.
    let turned = if options.exif_rotation { 4 } else { 0 };
    pixels * (bytes_a_pixel(format, bytes) + turned)
}

fn png_size(bytes: &[u8]) -> Option<(u32, u32)> {
    let side = |at: usize| Some(u32::from_be_bytes(*bytes.get(at..)?.first_chunk()?));
    Some((side(16)?, side(20)?))
}

fn bytes_a_pixel(format: ImageFormat, bytes: &[u8]) -> u64 {
    match format {
        ImageFormat::Png => {
            let samples = match bytes.get(25) {
                Some(0) => 1,
                Some(4) => 2,
                // With transparency beside it, and the copy without: 4 + 3.
                Some(2 | 3) => 7,
                _ => 4,
            };
            // Two bytes a sample, and the copy with one.
            if bytes.get(24) == Some(&16) { 3 * samples } else { samples.max(4) }
        }
        // RGB or CMYK, and damaged ones twice; progressive ones keep all coefficients, two bytes each.
        ImageFormat::Jpeg if is_progressive(bytes) => 16,
        ImageFormat::Jpeg => 8,
        // Indices of the frame and of the canvas, then RGB.
        ImageFormat::Gif => 5,
        // RGBA, and the planes that it is made of.
        ImageFormat::WebP => 8,
        _ => 4,
    }
}

/// Walks the segments up to the frame header (ITU-T T.81, B.1.1.4): SOF2 is the progressive one.
fn is_progressive(bytes: &[u8]) -> bool {
    const SOF2: u8 = 0xC2;
    let mut at = 2;
    while let Some([0xFF, marker, high, low]) = bytes.get(at..).and_then(|rest| rest.first_chunk::<4>()) {
        match marker {
            0xC0..=0xCF if ![0xC4, 0xC8, 0xCC].contains(marker) => return *marker == SOF2,
            // A fill byte.
            0xFF => at += 1,
            _ => at += 2 + usize::from(u16::from_be_bytes([*high, *low])),
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use image::{DynamicImage, ImageBuffer, ImageFormat};

    use super::*;

    fn encoded(picture: &DynamicImage, format: ImageFormat) -> Vec<u8> {
        let mut bytes = Cursor::new(Vec::new());
        picture.write_to(&mut bytes, format).expect("encodes");
        bytes.into_inner()
    }

    fn up_to(max_pixels: u64) -> DecodeOptions {
        DecodeOptions { max_pixels, ..DecodeOptions::default() }
    }

    #[test]
    fn memory_grows_with_pixels_and_samples_and_hostile_headers_need_none() {
        let rgba16 = DynamicImage::ImageRgba16(ImageBuffer::new(30, 20));
        assert_eq!(needed(&encoded(&rgba16, ImageFormat::Png), &up_to(600)), 600 * 12);
        let rgb = DynamicImage::ImageRgb8(ImageBuffer::new(30, 20));
        for format in [ImageFormat::Jpeg, ImageFormat::Bmp, ImageFormat::Gif, ImageFormat::WebP, ImageFormat::Png] {
            let bytes = encoded(&rgb, format);
            assert!((600 * 3..600 * 12).contains(&needed(&bytes, &up_to(600))), "{format:?}");
            assert_eq!(needed(&bytes, &up_to(599)), 0, "{format:?}: decoding refuses it");
        }
        assert_eq!(needed(b"<html>", &up_to(600)), 0);
        assert_eq!(needed(&[0xFF, 0xD8, 0xFF, 0xE0], &up_to(600)), 0);
    }

    #[test]
    fn progressive_is_read_from_the_frame_header() {
        let jpeg = |frame: u8| [&[0xFF, 0xD8, 0xFF, 0xE0, 0, 4, 0, 0, 0xFF, frame, 0, 11][..], &[0; 9]].concat();
        assert!(is_progressive(&jpeg(0xC2)));
        assert!(!is_progressive(&jpeg(0xC0)));
        assert!(!is_progressive(&[0xFF, 0xD8]));
    }
}
