//! Decoding within limits: PNG, JPEG, WebP, GIF (first frame) and BMP. A [`Picture`] keeps the mode in which Pillow would
//! open the file.

mod bmp;
mod gif;
mod jpeg;
mod orientation;
mod png;

use std::io::Cursor;
use std::panic::AssertUnwindSafe;

use image::codecs::webp::WebPDecoder;
use image::metadata::Orientation;
use image::{ColorType, ImageDecoder, ImageError, ImageFormat, Limits};

use self::orientation::{orientation, turn};
use crate::error::{Fault, Reason};
use crate::image::picture::{Layout, MAX_SIDE, Picture};

/// What a decoder may take beside the picture itself (colour profiles, text chunks, rows), in bytes.
const MAX_SIDE_ALLOCATION: u64 = 64 * 1024 * 1024;

/// How pictures are decoded, and which are not.
#[derive(Debug, Clone, Copy)]
pub struct DecodeOptions {
    /// Largest width x height, checked against the header before memory is taken.
    pub max_pixels: u64,
    /// Whether the orientation in the EXIF data is applied.
    pub exif_rotation: bool,
    /// `None`: every pixel as Pillow has it. Otherwise a JPEG may be decoded to a half, a quarter or an eighth of its size
    /// where no side comes out below this, and stays in its own planes of luma and chroma.
    pub shrink_to: Option<u32>,
}

impl Default for DecodeOptions {
    /// As `[images]` is shipped: 50 million pixels, no rotation, exact.
    fn default() -> Self {
        Self { max_pixels: 50_000_000, exif_rotation: false, shrink_to: None }
    }
}

/// Decodes a picture. Blocking (milliseconds): not for async threads.
///
/// # Errors
/// [`Reason::TooLarge`] where the header exceeds `max_pixels`, [`Reason::BadImage`] where the bytes are not a picture.
pub fn decode(bytes: &[u8], options: &DecodeOptions) -> Result<Picture, Fault> {
    let format = match image::guess_format(bytes) {
        Ok(
            format @ (ImageFormat::Png | ImageFormat::Jpeg | ImageFormat::WebP | ImageFormat::Gif | ImageFormat::Bmp),
        ) => format,
        _ => return Err(bad_image(format!("{}; send png, jpeg, webp, gif or bmp", describe(bytes)))),
    };
    // Decoders are other people's code that reads hostile bytes: a panic in one costs this post, not the process.
    let outcome = std::panic::catch_unwind(AssertUnwindSafe(|| {
        let orientation = if options.exif_rotation { orientation(bytes, format) } else { Orientation::NoTransforms };
        let picture = match format {
            ImageFormat::Png => png::decode(bytes, options),
            ImageFormat::Gif => gif::decode(bytes, options),
            ImageFormat::Bmp => bmp::decode(bytes, options),
            ImageFormat::Jpeg => jpeg::decode(bytes, options, orientation == Orientation::NoTransforms),
            _ => WebPDecoder::new(Cursor::new(bytes)).map_err(fault).and_then(|webp| read(webp, options)),
        }?;
        Ok(turn(picture, orientation))
    }));
    outcome.unwrap_or_else(|_| Err(bad_image(format!("the {} decoder gave up on it", name(format)))))
}

fn bad_image(detail: impl std::fmt::Display) -> Fault {
    Fault::reject(Reason::BadImage, format!("image: {detail}"))
}

fn fault(error: ImageError) -> Fault {
    match error {
        ImageError::Limits(error) => Fault::reject(Reason::TooLarge, format!("image: {error}")),
        error => bad_image(error),
    }
}

fn name(format: ImageFormat) -> &'static str {
    format.extensions_str().first().copied().unwrap_or("picture")
}

/// What bytes that are no known picture look like, for the person who reads the dead letter.
fn describe(bytes: &[u8]) -> String {
    let head = &bytes[..bytes.len().min(512)];
    let text = String::from_utf8_lossy(head).trim_start_matches('\u{feff}').trim_start().to_ascii_lowercase();
    if bytes.is_empty() {
        "there are no bytes".to_owned()
    } else if text.starts_with("<!doctype html") || text.starts_with("<html") {
        "this is a web page (HTML), not a picture".to_owned()
    } else if text.starts_with("<svg") || (text.starts_with("<?xml") && text.contains("<svg")) {
        "this is an SVG drawing, which is not supported".to_owned()
    } else if head.get(4..12).is_some_and(|brand| brand.starts_with(b"ftyp")) {
        "this is an AVIF, HEIC or video file, which is not supported".to_owned()
    } else {
        "the bytes are no picture of a known format".to_owned()
    }
}

fn check_size(width: u32, height: u32, options: &DecodeOptions) -> Result<(), Fault> {
    if width == 0 || height == 0 {
        return Err(bad_image("it has no pixels"));
    }
    if width > MAX_SIDE || height > MAX_SIDE || u64::from(width) * u64::from(height) > options.max_pixels {
        return Err(Fault::reject(
            Reason::TooLarge,
            format!(
                "image: {width} x {height} pixels; at most {} (images.max_pixels) and {MAX_SIDE} a side are allowed",
                options.max_pixels
            ),
        ));
    }
    Ok(())
}

/// Width, height and pixels in the decoder's own colour type.
fn read_bytes(mut decoder: impl ImageDecoder, options: &DecodeOptions) -> Result<(u32, u32, Vec<u8>), Fault> {
    let (width, height) = decoder.dimensions();
    check_size(width, height, options)?;
    let bytes = decoder.total_bytes();
    decoder.set_limits(allocation_limits(bytes)).map_err(fault)?;
    let mut pixels = vec![0; usize::try_from(bytes).map_err(bad_image)?];
    decoder.read_image(&mut pixels).map_err(fault)?;
    Ok((width, height, pixels))
}

fn read(decoder: impl ImageDecoder, options: &DecodeOptions) -> Result<Picture, Fault> {
    let color = decoder.color_type();
    let (width, height, pixels) = read_bytes(decoder, options)?;
    let (layout, pixels) = match color {
        ColorType::L8 => (Layout::Gray, pixels),
        ColorType::La8 => (Layout::GrayAlpha, pixels),
        ColorType::Rgb8 => (Layout::Rgb, pixels),
        ColorType::Rgba8 => (Layout::Rgba, pixels),
        ColorType::L16 => (Layout::Gray16, pixels),
        ColorType::La16 => (Layout::GrayAlpha, high_bytes(&pixels)),
        ColorType::Rgb16 => (Layout::Rgb, high_bytes(&pixels)),
        ColorType::Rgba16 => (Layout::Rgba, high_bytes(&pixels)),
        other => return Err(bad_image(format!("pixels of type {other:?} are not supported"))),
    };
    Ok(Picture::new(width, height, layout, pixels))
}

fn allocation_limits(picture_bytes: u64) -> Limits {
    let mut limits = Limits::no_limits();
    limits.max_image_width = Some(MAX_SIDE);
    limits.max_image_height = Some(MAX_SIDE);
    limits.max_alloc = Some(picture_bytes.saturating_mul(2).saturating_add(MAX_SIDE_ALLOCATION));
    limits
}

/// As Pillow reads 16-bit colour: the low byte is dropped, not rounded in.
fn high_bytes(pixels: &[u8]) -> Vec<u8> {
    pixels.as_chunks::<2>().0.iter().map(|sample| (u16::from_ne_bytes(*sample) >> 8) as u8).collect()
}

fn indexed(picture: Picture) -> Picture {
    match picture.layout() {
        Layout::Gray => picture.map(Layout::Indexed, |[level]| [level; 3]),
        _ => picture.with_layout(Layout::Indexed),
    }
}

fn is_level(index: usize, color: &[u8]) -> bool {
    color.iter().all(|value| usize::from(*value) == index)
}

#[cfg(test)]
mod tests;
