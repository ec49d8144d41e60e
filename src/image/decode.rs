//! Decoding within limits: PNG, JPEG, WebP, GIF (first frame) and BMP.
//!
//! A [`Picture`] keeps the mode in which Pillow would open the file, because Chinese-CLIP's pipeline resizes *before* it
//! converts to RGB: a palette is resized by nearest neighbour, alpha is premultiplied, 16-bit grey saturates.

use std::io::Cursor;
use std::num::NonZeroU64;
use std::panic::AssertUnwindSafe;

use image::codecs::{bmp::BmpDecoder, jpeg::JpegDecoder, png::PngDecoder, webp::WebPDecoder};
use image::{ColorType, ImageDecoder, ImageError, ImageFormat, Limits};

use crate::error::{Fault, Reason};

/// The longest side, in pixels. Resampling tables grow with it; JPEG and GIF cannot say more, WebP not even that much.
const MAX_SIDE: u32 = 65_535;

/// What a decoder may take beside the picture itself (colour profiles, text chunks, rows), in bytes.
const MAX_SIDE_ALLOCATION: u64 = 64 * 1024 * 1024;

/// Limits of decoding.
#[derive(Debug, Clone, Copy)]
pub struct DecodeLimits {
    /// Largest width x height, checked against the header before memory is taken.
    pub max_pixels: u64,
}

impl Default for DecodeLimits {
    /// 50 million pixels, as `images.max_pixels` is shipped.
    fn default() -> Self {
        Self { max_pixels: 50_000_000 }
    }
}

/// How a [`Picture`]'s pixels are to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// 1 byte a pixel (Pillow: L).
    Gray,
    /// 2 bytes a pixel, a native-endian `u16` (Pillow: I;16).
    Gray16,
    /// 2 bytes a pixel, alpha not premultiplied (Pillow: LA).
    GrayAlpha,
    /// 3 bytes a pixel (Pillow: RGB).
    Rgb,
    /// 4 bytes a pixel, alpha not premultiplied (Pillow: RGBA).
    Rgba,
    /// 3 bytes a pixel, looked up in a palette of which the file has indices (Pillow: P, and 1): never blended.
    Indexed,
}

impl Layout {
    /// Bytes a pixel.
    pub fn bytes(self) -> usize {
        match self {
            Layout::Gray => 1,
            Layout::Gray16 | Layout::GrayAlpha => 2,
            Layout::Rgb | Layout::Indexed => 3,
            Layout::Rgba => 4,
        }
    }
}

/// A decoded picture. EXIF rotation is not applied (Chinese-CLIP does not).
#[derive(Clone, PartialEq)]
pub struct Picture {
    width: u32,
    height: u32,
    layout: Layout,
    pixels: Vec<u8>,
}

impl std::fmt::Debug for Picture {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "Picture({} x {}, {:?})", self.width, self.height, self.layout)
    }
}

impl Picture {
    /// A picture from its pixels: row-major, interleaved.
    ///
    /// # Panics
    /// Where a side is zero or above 65,535, or `pixels` has not `width * height * layout.bytes()` bytes.
    pub fn new(width: u32, height: u32, layout: Layout, pixels: Vec<u8>) -> Self {
        assert!((1..=MAX_SIDE).contains(&width) && (1..=MAX_SIDE).contains(&height), "a side is 1 to 65,535 pixels");
        assert_eq!(pixels.len(), width as usize * height as usize * layout.bytes(), "pixels fill the picture");
        Self { width, height, layout, pixels }
    }

    /// Pixels from left to right; at least 1.
    pub fn width(&self) -> u32 {
        self.width
    }

    /// Pixels from top to bottom; at least 1.
    pub fn height(&self) -> u32 {
        self.height
    }

    /// How [`Self::pixels`] is to be read.
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// Row-major, interleaved, [`Layout::bytes`] a pixel.
    pub fn pixels(&self) -> &[u8] {
        &self.pixels
    }
}

/// Decodes a picture. Blocking (milliseconds): not for async threads.
///
/// # Errors
/// [`Reason::TooLarge`] where the header exceeds `limits`, [`Reason::BadImage`] where the bytes are not a picture.
pub fn decode(bytes: &[u8], limits: &DecodeLimits) -> Result<Picture, Fault> {
    let format = match image::guess_format(bytes) {
        Ok(
            format @ (ImageFormat::Png | ImageFormat::Jpeg | ImageFormat::WebP | ImageFormat::Gif | ImageFormat::Bmp),
        ) => format,
        _ => return Err(bad_image(format!("{}; send png, jpeg, webp, gif or bmp", describe(bytes)))),
    };
    // Decoders are other people's code that reads hostile bytes: a panic in one costs this post, not the process.
    let outcome = std::panic::catch_unwind(AssertUnwindSafe(|| match format {
        ImageFormat::Png => decode_png(bytes, limits),
        ImageFormat::Gif => decode_gif(bytes, limits),
        ImageFormat::Bmp => decode_bmp(bytes, limits),
        ImageFormat::Jpeg => JpegDecoder::new(Cursor::new(bytes)).map_err(fault).and_then(|jpeg| read(jpeg, limits)),
        _ => WebPDecoder::new(Cursor::new(bytes)).map_err(fault).and_then(|webp| read(webp, limits)),
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

fn check_size(width: u32, height: u32, limits: &DecodeLimits) -> Result<(), Fault> {
    if width == 0 || height == 0 {
        return Err(bad_image("it has no pixels"));
    }
    if width > MAX_SIDE || height > MAX_SIDE || u64::from(width) * u64::from(height) > limits.max_pixels {
        return Err(Fault::reject(
            Reason::TooLarge,
            format!(
                "image: {width} x {height} pixels; at most {} (images.max_pixels) and {MAX_SIDE} a side are allowed",
                limits.max_pixels
            ),
        ));
    }
    Ok(())
}

fn read(mut decoder: impl ImageDecoder, limits: &DecodeLimits) -> Result<Picture, Fault> {
    let (width, height) = decoder.dimensions();
    check_size(width, height, limits)?;
    let color = decoder.color_type();
    let bytes = decoder.total_bytes();
    decoder.set_limits(allocation_limits(bytes)).map_err(fault)?;
    let mut pixels = vec![0; usize::try_from(bytes).map_err(bad_image)?];
    decoder.read_image(&mut pixels).map_err(fault)?;
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

fn decode_png(bytes: &[u8], limits: &DecodeLimits) -> Result<Picture, Fault> {
    const BIT_DEPTH_AT: usize = 24;
    const COLOR_TYPE_AT: usize = 25;
    let (Some(&bit_depth), Some(&color_type)) = (bytes.get(BIT_DEPTH_AT), bytes.get(COLOR_TYPE_AT)) else {
        return Err(bad_image("the file ends in its header"));
    };
    // The size is checked on the header alone: the decoder reads on to the pixels, and takes memory for a row of them.
    let side = |at: usize| bytes[at..at + 4].iter().fold(0, |side, byte| side << 8 | u32::from(*byte));
    check_size(side(16), side(20), limits)?;
    let decoder = PngDecoder::with_limits(Cursor::new(bytes), allocation_limits(0)).map_err(fault)?;
    let picture = read(decoder, limits)?;
    Ok(match (color_type, bit_depth) {
        (0, 1) => indexed(drop_alpha(picture)),
        // Transparency beside a grey, RGB or palette PNG is a note in Pillow, not a channel.
        (0 | 2, _) => drop_alpha(picture),
        (3, _) => indexed(drop_alpha(picture)),
        _ => picture,
    })
}

fn drop_alpha(picture: Picture) -> Picture {
    let Picture { width, height, layout, pixels } = picture;
    let (layout, pixels) = match layout {
        Layout::GrayAlpha => (Layout::Gray, pixels.as_chunks::<2>().0.iter().map(|pixel| pixel[0]).collect()),
        Layout::Rgba => {
            let opaque = pixels.as_chunks::<4>().0.iter().flat_map(|[red, green, blue, _]| [*red, *green, *blue]);
            (Layout::Rgb, opaque.collect())
        }
        layout => (layout, pixels),
    };
    Picture { width, height, layout, pixels }
}

fn indexed(picture: Picture) -> Picture {
    let Picture { width, height, layout, pixels } = picture;
    let pixels = match layout {
        Layout::Gray => pixels.iter().flat_map(|level| [*level; 3]).collect(),
        _ => pixels,
    };
    Picture::new(width, height, Layout::Indexed, pixels)
}

fn decode_bmp(bytes: &[u8], limits: &DecodeLimits) -> Result<Picture, Fault> {
    const CORE_HEADER: u32 = 12;
    let number = |at: usize, length: usize| {
        let field = bytes.get(at..at + length)?;
        Some(field.iter().rev().fold(0, |number, byte| number << 8 | u32::from(*byte)))
    };
    let picture = read(BmpDecoder::new(Cursor::new(bytes)).map_err(fault)?, limits)?;
    let header = number(14, 4).unwrap_or(0);
    let (bits, colors, entry) = if header == CORE_HEADER {
        (number(24, 2).unwrap_or(0), 0, 3)
    } else {
        (number(28, 2).unwrap_or(0), number(46, 4).unwrap_or(0), 4)
    };
    if bits > 8 || picture.layout != Layout::Rgb {
        return Ok(picture);
    }
    let colors = if colors == 0 { 1 << bits } else { colors };
    let palette = bytes.get(14 + header as usize..).unwrap_or_default();
    let is_gray_ramp = bits == 8
        && palette.chunks_exact(entry).take(colors as usize).enumerate().all(|(at, color)| is_level(at, &color[..3]));
    if !is_gray_ramp {
        return Ok(Picture { layout: Layout::Indexed, ..picture });
    }
    let levels = picture.pixels.as_chunks::<3>().0.iter().map(|pixel| pixel[0]).collect();
    Ok(Picture::new(picture.width, picture.height, Layout::Gray, levels))
}

fn is_level(index: usize, color: &[u8]) -> bool {
    color.iter().all(|value| usize::from(*value) == index)
}

/// The first frame as Pillow shows it: what it does not cover has the transparent colour (or the first one), and
/// transparent pixels keep the colour that the palette has for them.
fn decode_gif(bytes: &[u8], limits: &DecodeLimits) -> Result<Picture, Fault> {
    let mut options = gif::DecodeOptions::new();
    options.set_color_output(gif::ColorOutput::Indexed);
    let allowed = NonZeroU64::new(limits.max_pixels).unwrap_or(NonZeroU64::MIN);
    options.set_memory_limit(gif::MemoryLimit::Bytes(allowed));
    let mut decoder = options.read_info(bytes).map_err(bad_image)?;
    let (canvas_width, canvas_height) = (decoder.width(), decoder.height());
    let frame = decoder.next_frame_info().map_err(bad_image)?.ok_or_else(|| bad_image("it has no frame"))?;
    let (frame_width, frame_height) = (usize::from(frame.width), usize::from(frame.height));
    let (left, top) = (usize::from(frame.left), usize::from(frame.top));
    let background = frame.transparent.unwrap_or(0);
    let palette = frame.palette.clone();
    let width = usize::from(canvas_width).max(left + frame_width);
    let height = usize::from(canvas_height).max(top + frame_height);
    let (width_pixels, height_pixels) =
        (u32::try_from(width).unwrap_or(u32::MAX), u32::try_from(height).unwrap_or(u32::MAX));
    check_size(width_pixels, height_pixels, limits)?;

    let mut frame_indices = vec![0; frame_width * frame_height];
    decoder.read_into_buffer(&mut frame_indices).map_err(bad_image)?;
    let palette = palette.as_deref().or(decoder.global_palette()).unwrap_or_default();
    let mut indices = vec![background; width * height];
    if frame_width > 0 {
        for (row, source) in frame_indices.chunks_exact(frame_width).enumerate() {
            let start = (top + row) * width + left;
            indices[start..start + frame_width].copy_from_slice(source);
        }
    }
    if palette.as_chunks::<3>().0.iter().enumerate().all(|(index, color)| is_level(index, color)) {
        return Ok(Picture::new(width_pixels, height_pixels, Layout::Gray, indices));
    }
    let mut colors: [[u8; 3]; 256] = std::array::from_fn(|level| [level as u8; 3]);
    for (color, entry) in colors.iter_mut().zip(palette.as_chunks::<3>().0) {
        *color = *entry;
    }
    let pixels = indices.iter().flat_map(|index| colors[usize::from(*index)]).collect();
    Ok(Picture::new(width_pixels, height_pixels, Layout::Indexed, pixels))
}

#[cfg(test)]
mod tests;
