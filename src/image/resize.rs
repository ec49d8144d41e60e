//! Resizing exactly as Pillow does (`Image.resize` with BICUBIC, `libImaging/Resample.c`): with antialiasing, one axis
//! after the other, rounded to 8 bits between the passes, coefficients in 22-bit fixed point. A vector of Chinese-CLIP's
//! own pipeline is only met with the very same pixels.

#[cfg(target_arch = "x86_64")]
mod octets;
mod passes;
mod planes;
#[cfg(target_arch = "x86_64")]
mod quads;
mod samples;
mod windows;

use serde::Deserialize;

pub use self::passes::Frame;
use self::passes::resample;
use self::planes::resize_planes;
use crate::image::picture::{Layout, Picture};

/// When a picture becomes RGB. The order shows where a picture is not RGB from the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ConvertRgb {
    /// After the resize, as Chinese-CLIP, OpenAI's CLIP and open_clip do it: palettes are resized by nearest neighbour,
    /// alpha is premultiplied and then dropped, 16-bit grey saturates at 255, inks are blended as inks.
    #[default]
    After,
    /// Before the resize, as Hugging Face's processors do it.
    Before,
}

/// Where the middle of a picture begins when half a pixel is left over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Half {
    /// At the even position, as torchvision's `CenterCrop`.
    Even,
    /// Rounded down, as transformers' `center_crop` (`image_transforms.py`) and Immich's `crop_pil`.
    Down,
}

impl Frame {
    /// The whole picture, resized to `width` x `height`.
    ///
    /// # Panics
    /// Where `width` or `height` is zero.
    pub fn whole(width: usize, height: usize) -> Self {
        assert!(width > 0 && height > 0, "a size asked for is at least 1 x 1");
        Self { size: (width, height), corner: (0, 0), crop: (width, height) }
    }

    /// The shorter side becomes `side`, the longer one is rounded down, and of the middle `side` x `side` is cut; where it
    /// does not come out even, half a pixel goes as `half` says.
    ///
    /// # Panics
    /// Where `side` is zero.
    pub fn middle((width, height): (usize, usize), side: usize, half: Half) -> Self {
        assert!(side > 0, "a size asked for is at least 1 x 1");
        let (shorter, longer) = (width.min(height), width.max(height));
        // Python divides these whole numbers as doubles; beyond 2^53 none of these sizes goes.
        let long = ((side * longer) as f64 / shorter as f64) as usize;
        let size = if width <= height { (side, long) } else { (long, side) };
        let middle = |length: usize| match half {
            Half::Even => ((length - side) as f64 / 2.0).round_ties_even() as usize,
            Half::Down => (length - side) / 2,
        };
        Self { size, corner: (middle(size.0), middle(size.1)), crop: (side, side) }
    }
}

/// Resizes and crops to `frame` and converts to RGB: 8 bits, row-major, interleaved. Blocking.
pub fn resize_rgb(picture: &Picture, frame: &Frame, convert: ConvertRgb) -> Vec<u8> {
    // Pillow copies where the size stays, and the way through premultiplied colour is not free of loss.
    let drops_alpha = convert == ConvertRgb::Before || picture.size() == frame.size;
    let gray = |levels: Vec<u8>| levels.into_iter().flat_map(|level| [level; 3]).collect();
    let one = |map: fn([u8; 2]) -> u8| gray(blend::<1, 2>(picture, frame, move |pixel| [map(pixel)]));
    match (picture.layout(), convert) {
        (Layout::Rgb, _) | (Layout::Indexed, ConvertRgb::Before) => as_it_is::<3>(picture, frame),
        (Layout::Indexed, ConvertRgb::After) => nearest(picture, frame),
        (Layout::Gray, _) => gray(as_it_is::<1>(picture, frame)),
        (Layout::GrayAlpha, _) if drops_alpha => one(|[level, _]| level),
        (Layout::GrayAlpha, _) => {
            let pixels = blend::<2, 2>(picture, frame, premultiply);
            gray(pixels.as_chunks().0.iter().map(|[level, alpha]| unmultiply(*level, *alpha)).collect())
        }
        (Layout::Rgba, _) if drops_alpha => blend::<3, 4>(picture, frame, |[red, green, blue, _]| [red, green, blue]),
        (Layout::Rgba, _) => {
            let straight =
                |[red, green, blue, alpha]: [u8; 4]| [red, green, blue].map(|value| unmultiply(value, alpha));
            to_rgb(&blend::<4, 4>(picture, frame, premultiply), straight)
        }
        (Layout::Cmyk, ConvertRgb::Before) => blend::<3, 4>(picture, frame, inks_to_rgb),
        (Layout::Cmyk, ConvertRgb::After) => to_rgb(&as_it_is::<4>(picture, frame), inks_to_rgb),
        (Layout::Gray16, ConvertRgb::Before) => one(|sample| saturate(u16::from_ne_bytes(sample))),
        (Layout::Gray16, ConvertRgb::After) => {
            let samples = resample::<u16, 1>(picture.size(), frame, |row, out| {
                map_row(picture.row::<2>(row), out, |sample| [u16::from_ne_bytes(sample)]);
            });
            gray(samples.into_iter().map(saturate).collect())
        }
        (Layout::YCbCr(_), _) => resize_planes(picture, frame),
    }
}

/// Resizes the pixels that are there.
fn as_it_is<const LANES: usize>(picture: &Picture, frame: &Frame) -> Vec<u8> {
    resample::<u8, LANES>(picture.size(), frame, |row, out| out.copy_from_slice(picture.row::<LANES>(row)))
}

/// Resizes what `map` makes of each pixel.
fn blend<const LANES: usize, const BYTES: usize>(
    picture: &Picture,
    frame: &Frame,
    map: impl Fn([u8; BYTES]) -> [u8; LANES],
) -> Vec<u8> {
    resample::<u8, LANES>(picture.size(), frame, |row, out| map_row(picture.row::<BYTES>(row), out, &map))
}

fn map_row<From: Copy, To>(row: &[From], out: &mut [To], map: impl Fn(From) -> To) {
    for (out, pixel) in out.iter_mut().zip(row) {
        *out = map(*pixel);
    }
}

fn to_rgb(pixels: &[u8], map: impl Fn([u8; 4]) -> [u8; 3]) -> Vec<u8> {
    pixels.as_chunks().0.iter().flat_map(|pixel| map(*pixel)).collect()
}

/// Resizes a picture as premultiplied RGBA, as it lies on any background.
pub(super) fn resize_premultiplied(picture: &Picture, width: usize, height: usize) -> Vec<u8> {
    let frame = Frame::whole(width, height);
    let opaque = |level: u8| [level, level, level, 255];
    match picture.layout() {
        Layout::Gray => blend::<4, 1>(picture, &frame, |[level]| opaque(level)),
        Layout::Gray16 => blend::<4, 2>(picture, &frame, |sample| opaque((u16::from_ne_bytes(sample) >> 8) as u8)),
        Layout::GrayAlpha => blend::<4, 2>(picture, &frame, |[level, alpha]| premultiply([level, level, level, alpha])),
        Layout::Rgb | Layout::Indexed => blend::<4, 3>(picture, &frame, |[red, green, blue]| [red, green, blue, 255]),
        Layout::Rgba => blend::<4, 4>(picture, &frame, premultiply),
        Layout::Cmyk => blend::<4, 4>(picture, &frame, |inks| {
            let [red, green, blue] = inks_to_rgb(inks);
            [red, green, blue, 255]
        }),
        Layout::YCbCr(_) => {
            let rgb = resize_planes(picture, &frame);
            rgb.as_chunks().0.iter().flat_map(|[red, green, blue]| [*red, *green, *blue, 255]).collect()
        }
    }
}

fn premultiply<const LANES: usize>(pixel: [u8; LANES]) -> [u8; LANES] {
    let alpha = pixel[LANES - 1];
    let mut product = pixel.map(|value| multiply(value, alpha));
    product[LANES - 1] = alpha;
    product
}

/// Pillow's `MULDIV255`: value * alpha / 255, rounded.
fn multiply(value: u8, alpha: u8) -> u8 {
    let product = u32::from(value) * u32::from(alpha) + 128;
    (((product >> 8) + product) >> 8) as u8
}

/// The way back, as Pillow's `rgbA2rgba`.
fn unmultiply(value: u8, alpha: u8) -> u8 {
    if alpha == 0 || alpha == 255 {
        return value;
    }
    (255 * u32::from(value) / u32::from(alpha)).min(255) as u8
}

/// Pillow's `cmyk2rgb`.
fn inks_to_rgb([cyan, magenta, yellow, black]: [u8; 4]) -> [u8; 3] {
    let white = 255 - black;
    [cyan, magenta, yellow].map(|ink| white - multiply(ink, white))
}

/// Pillow's way from I;16 to 8 bits.
fn saturate(sample: u16) -> u8 {
    sample.min(255) as u8
}

/// Pillow's nearest neighbour (`ImagingScaleAffine`): the position is advanced by adding, with the rounding that brings.
fn nearest(picture: &Picture, frame: &Frame) -> Vec<u8> {
    let positions = |from: usize, to: usize, wanted: std::ops::Range<usize>| {
        let step = from as f64 / to as f64;
        let mut position = step * 0.5;
        let all = (0..to).map(move |_| {
            let at = (position as usize).min(from - 1);
            position += step;
            at
        });
        all.skip(wanted.start).take(wanted.len())
    };
    let (from_width, from_height) = picture.size();
    let columns: Vec<usize> = positions(from_width, frame.size.0, frame.columns()).collect();
    let mut out = Vec::with_capacity(frame.crop.0 * frame.crop.1 * 3);
    for row in positions(from_height, frame.size.1, frame.rows()) {
        let source = picture.row::<3>(row);
        for &column in &columns {
            out.extend_from_slice(&source[column]);
        }
    }
    out
}

#[cfg(test)]
mod tests;
