//! Resizing exactly as Pillow does (`libImaging/Resample.c`): bicubic with antialiasing, horizontal pass first, rounded to
//! 8 bits between the passes, coefficients in 22-bit fixed point. A vector of Chinese-CLIP's own pipeline is only met with
//! the very same pixels.
//!
//! Unlike there, rows stream through both passes: a source row is resized horizontally and added at once to every output
//! row that it touches. Integer sums do not depend on the order, so the result is the same to the bit, and memory depends
//! on the size asked for alone.

use base64::Engine as _;
use image::ExtendedColorType;
use image::codecs::jpeg::JpegEncoder;

use crate::image::decode::{Layout, Picture};

/// Fixed-point bits of a coefficient: 32, less 8 for the sample, less 2 for what overshoots.
const PRECISION: u32 = 22;
const ROUNDING: i32 = 1 << (PRECISION - 1);

/// Reach of the bicubic kernel, in source pixels at scale 1.
const SUPPORT: f64 = 2.0;

/// The largest thumbnail, in bytes: it is stored with every post that has one.
const MAX_THUMBNAIL_BYTES: usize = 12 * 1024;

/// Resizes to `width` x `height` (no crop), then converts to RGB: 8 bits, row-major, interleaved. Blocking.
///
/// The order is Chinese-CLIP's and has consequences: palettes are resized by nearest neighbour, alpha is premultiplied and
/// then dropped, 16-bit grey saturates at 255.
///
/// # Panics
/// Where `width` or `height` is zero.
pub fn resize_rgb(picture: &Picture, width: u32, height: u32) -> Vec<u8> {
    assert!(width > 0 && height > 0, "a size asked for is at least 1 x 1");
    let size = (width as usize, height as usize);
    let same_size = (picture.width(), picture.height()) == (width, height);
    match picture.layout() {
        Layout::Rgb | Layout::Indexed if same_size => picture.pixels().to_vec(),
        Layout::Indexed => nearest(picture, size),
        Layout::Gray16 => gray16(source_size(picture), size, row_pixels(picture))
            .into_iter()
            .flat_map(|level| [level.min(255) as u8; 3])
            .collect(),
        Layout::Gray if same_size => picture.pixels().iter().flat_map(|level| [*level; 3]).collect(),
        Layout::Gray => {
            let rows = |row: usize, out: &mut [[u8; 1]]| out.copy_from_slice(row_of::<1>(picture, row));
            bicubic(source_size(picture), size, rows).into_iter().flat_map(|[level]| [level; 3]).collect()
        }
        // Pillow copies here, and the way through premultiplied colour is not free of loss.
        Layout::GrayAlpha if same_size => row_pixels::<2>(picture).iter().flat_map(|[level, _]| [*level; 3]).collect(),
        Layout::GrayAlpha => {
            let rows = |row: usize, out: &mut [[u8; 2]]| premultiply(row_of::<2>(picture, row), out);
            let pixels = bicubic(source_size(picture), size, rows);
            pixels.into_iter().flat_map(|[level, alpha]| [unmultiply(level, alpha); 3]).collect()
        }
        Layout::Rgb => {
            let rows = |row: usize, out: &mut [[u8; 4]]| pad(row_of::<3>(picture, row), out);
            bicubic(source_size(picture), size, rows)
                .into_iter()
                .flat_map(|[red, green, blue, _]| [red, green, blue])
                .collect()
        }
        Layout::Rgba if same_size => {
            row_pixels::<4>(picture).iter().flat_map(|[red, green, blue, _]| [*red, *green, *blue]).collect()
        }
        Layout::Rgba => {
            let rows = |row: usize, out: &mut [[u8; 4]]| premultiply(row_of::<4>(picture, row), out);
            let pixels = bicubic(source_size(picture), size, rows);
            pixels
                .into_iter()
                .flat_map(|[red, green, blue, alpha]| [red, green, blue].map(|value| unmultiply(value, alpha)))
                .collect()
        }
    }
}

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
    let rows = |row: usize, out: &mut [[u8; 4]]| match picture.layout() {
        Layout::Gray => spread(row_of::<1>(picture, row), out, |[level]| [level, level, level, 255]),
        Layout::Gray16 => spread(row_of::<2>(picture, row), out, |sample| {
            let level = (u16::from_ne_bytes(sample) >> 8) as u8;
            [level, level, level, 255]
        }),
        Layout::GrayAlpha => spread(row_of::<2>(picture, row), out, |[level, alpha]| {
            let level = multiply(level, alpha);
            [level, level, level, alpha]
        }),
        Layout::Rgb | Layout::Indexed => {
            spread(row_of::<3>(picture, row), out, |[red, green, blue]| [red, green, blue, 255]);
        }
        Layout::Rgba => premultiply(row_of::<4>(picture, row), out),
    };
    let pixels = bicubic(source_size(picture), (width as usize, height as usize), rows);
    let on_white: Vec<u8> = pixels
        .into_iter()
        .flat_map(|[red, green, blue, alpha]| [red, green, blue].map(|value| value.saturating_add(255 - alpha)))
        .collect();
    let mut jpeg = Vec::new();
    JpegEncoder::new_with_quality(&mut jpeg, quality)
        .encode(&on_white, width, height, ExtendedColorType::Rgb8)
        .expect("a picture of at most 65,535 pixels a side is written to memory. This is a bug.");
    jpeg
}

fn source_size(picture: &Picture) -> (usize, usize) {
    (picture.width() as usize, picture.height() as usize)
}

fn row_pixels<const BYTES: usize>(picture: &Picture) -> &[[u8; BYTES]] {
    picture.pixels().as_chunks::<BYTES>().0
}

fn row_of<const BYTES: usize>(picture: &Picture, row: usize) -> &[[u8; BYTES]] {
    let width = picture.width() as usize;
    &row_pixels::<BYTES>(picture)[row * width..(row + 1) * width]
}

#[inline(always)]
fn spread<const FROM: usize, const TO: usize>(
    row: &[[u8; FROM]],
    out: &mut [[u8; TO]],
    map: impl Fn([u8; FROM]) -> [u8; TO],
) {
    for (out, pixel) in out.iter_mut().zip(row) {
        *out = map(*pixel);
    }
}

/// Four lanes multiply in one instruction; three do not.
#[inline(always)]
fn pad(row: &[[u8; 3]], out: &mut [[u8; 4]]) {
    spread(row, out, |[red, green, blue]| [red, green, blue, 0]);
}

#[inline(always)]
fn premultiply<const LANES: usize>(row: &[[u8; LANES]], out: &mut [[u8; LANES]]) {
    spread(row, out, |pixel| {
        let alpha = pixel[LANES - 1];
        let mut product = pixel.map(|value| multiply(value, alpha));
        product[LANES - 1] = alpha;
        product
    });
}

/// Pillow's `MULDIV255`: value * alpha / 255, rounded.
#[inline(always)]
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

/// The source pixels of each output pixel along one axis, and their weights.
struct Windows<Weight> {
    /// Per output pixel: first source pixel, number of source pixels, index of the first weight.
    spans: Vec<(usize, usize, usize)>,
    weights: Vec<Weight>,
}

impl<Weight> Windows<Weight> {
    fn new(from: usize, to: usize, convert: impl Fn(f64) -> Weight) -> Self {
        let scale = from as f64 / to as f64;
        let filter_scale = scale.max(1.0);
        let support = SUPPORT * filter_scale;
        let step = 1.0 / filter_scale;
        let mut spans = Vec::with_capacity(to);
        let mut weights = Vec::new();
        let mut raw = Vec::new();
        for index in 0..to {
            let center = (index as f64 + 0.5) * scale;
            // `as` truncates towards zero as C does, and negative values become 0, as Pillow clips them.
            let start = (center - support + 0.5) as usize;
            let end = ((center + support + 0.5) as usize).min(from);
            raw.clear();
            raw.extend((start..end).map(|at| kernel((at as f64 - center + 0.5) * step)));
            // Summed in order, as there: a different order gives different last bits.
            let total = raw.iter().fold(0.0, |total, weight| total + weight);
            spans.push((start, end - start, weights.len()));
            weights.extend(raw.iter().map(|weight| convert(if total == 0.0 { *weight } else { weight / total })));
        }
        Self { spans, weights }
    }

    /// The first output pixel, from `index` on, whose window does not end before `source`.
    #[inline(always)]
    fn first_open(&self, mut index: usize, source: usize) -> usize {
        while self.spans.get(index).is_some_and(|(start, length, _)| start + length <= source) {
            index += 1;
        }
        index
    }

    /// For a source pixel and the output pixel at `index`: the weight. `None` outside the window.
    #[inline(always)]
    fn weight(&self, index: usize, source: usize) -> Option<&Weight> {
        let (start, length, first) = self.spans[index];
        let offset = source.checked_sub(start)?;
        if offset < length { self.weights.get(first + offset) } else { None }
    }
}

/// Pillow's `bicubic_filter`, a = -0.5.
fn kernel(x: f64) -> f64 {
    const A: f64 = -0.5;
    let x = x.abs();
    if x < 1.0 {
        ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        (((x - 5.0) * x + 8.0) * x - 4.0) * A
    } else {
        0.0
    }
}

fn fixed_point(weight: f64) -> i32 {
    let scaled = weight * f64::from(1 << PRECISION);
    (if weight < 0.0 { scaled - 0.5 } else { scaled + 0.5 }) as i32
}

#[inline(always)]
fn clip(sum: i32) -> u8 {
    (sum >> PRECISION).clamp(0, 255) as u8
}

/// Pillow shrinks a very tall picture vertically first, in two calls.
fn is_very_tall((from_width, from_height): (usize, usize), height: usize) -> bool {
    from_height > from_width * 100 && height < from_height
}

/// Resizes pixels of `LANES` bytes; `fill_row(y, row)` writes source row `y`.
fn bicubic<const LANES: usize>(
    from: (usize, usize),
    to: (usize, usize),
    fill_row: impl FnMut(usize, &mut [[u8; LANES]]),
) -> Vec<[u8; LANES]> {
    if is_very_tall(from, to.1) {
        let short = (from.0, to.1);
        let pixels = two_passes(from, short, fill_row);
        return two_passes(short, to, |row, out| out.copy_from_slice(&pixels[row * from.0..(row + 1) * from.0]));
    }
    two_passes(from, to, fill_row)
}

fn two_passes<const LANES: usize>(
    from: (usize, usize),
    to: (usize, usize),
    fill_row: impl FnMut(usize, &mut [[u8; LANES]]),
) -> Vec<[u8; LANES]> {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has just been asked for AVX2.
        return unsafe { two_passes_avx2(from, to, fill_row) };
    }
    two_passes_portable(from, to, fill_row)
}

/// The same code, compiled for 8-lane integer multiplication, which the baseline of x86-64 lacks.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn two_passes_avx2<const LANES: usize>(
    from: (usize, usize),
    to: (usize, usize),
    fill_row: impl FnMut(usize, &mut [[u8; LANES]]),
) -> Vec<[u8; LANES]> {
    two_passes_portable(from, to, fill_row)
}

#[inline(always)]
fn two_passes_portable<const LANES: usize>(
    (from_width, from_height): (usize, usize),
    (width, height): (usize, usize),
    mut fill_row: impl FnMut(usize, &mut [[u8; LANES]]),
) -> Vec<[u8; LANES]> {
    let across = Windows::new(from_width, width, fixed_point);
    let down = Windows::new(from_height, height, fixed_point);
    let mut source = vec![[0u8; LANES]; from_width];
    let mut narrow = vec![[0u8; LANES]; width];
    let mut sums = vec![[ROUNDING; LANES]; width * height];
    let mut first_open = 0;
    for row in 0..from_height {
        fill_row(row, &mut source);
        if from_width == width {
            narrow.copy_from_slice(&source);
        } else {
            resize_row(&source, &across, &mut narrow);
        }
        first_open = down.first_open(first_open, row);
        for index in first_open..height {
            let Some(weight) = down.weight(index, row) else { break };
            let sums = sums[index * width..(index + 1) * width].as_flattened_mut();
            for (sum, value) in sums.iter_mut().zip(narrow.as_flattened()) {
                *sum += i32::from(*value) * weight;
            }
        }
    }
    sums.into_iter().map(|sums| sums.map(clip)).collect()
}

#[inline(always)]
fn resize_row<const LANES: usize>(source: &[[u8; LANES]], across: &Windows<i32>, out: &mut [[u8; LANES]]) {
    for (out, &(start, length, first)) in out.iter_mut().zip(&across.spans) {
        let mut sums = [ROUNDING; LANES];
        for (pixel, weight) in source[start..start + length].iter().zip(&across.weights[first..first + length]) {
            for lane in 0..LANES {
                sums[lane] += i32::from(pixel[lane]) * weight;
            }
        }
        *out = sums.map(clip);
    }
}

/// Pillow's resize of mode I;16: in double precision, rounded to 16 bits between the passes.
fn gray16(from: (usize, usize), to: (usize, usize), samples: &[[u8; 2]]) -> Vec<u16> {
    if from.0 != to.0 && is_very_tall(from, to.1) {
        let short = (from.0, to.1);
        let samples: Vec<[u8; 2]> = gray16(from, short, samples).into_iter().map(u16::to_ne_bytes).collect();
        return gray16(short, to, &samples);
    }
    let ((from_width, from_height), (width, height)) = (from, to);
    let across = Windows::new(from_width, width, |weight| weight);
    let down = Windows::new(from_height, height, |weight| weight);
    let round = |sum: f64| (if sum >= 0.0 { sum + 0.5 } else { 0.0 }) as u16;
    let mut sums = vec![0.0; width * height];
    let mut first_open = 0;
    for (row, source) in samples.chunks_exact(from_width).enumerate() {
        let narrow: Vec<u16> = across
            .spans
            .iter()
            .map(|&(start, length, first)| {
                let samples = source[start..start + length].iter().zip(&across.weights[first..first + length]);
                round(samples.fold(0.0, |sum, (sample, weight)| sum + f64::from(u16::from_ne_bytes(*sample)) * weight))
            })
            .collect();
        first_open = down.first_open(first_open, row);
        for index in first_open..height {
            let Some(weight) = down.weight(index, row) else { break };
            for (sum, value) in sums[index * width..(index + 1) * width].iter_mut().zip(&narrow) {
                *sum += f64::from(*value) * weight;
            }
        }
    }
    sums.into_iter().map(round).collect()
}

/// Pillow's nearest neighbour (`ImagingScaleAffine`): the position is advanced by adding, with the rounding that brings.
fn nearest(picture: &Picture, (width, height): (usize, usize)) -> Vec<u8> {
    let positions = |from: usize, to: usize| {
        let step = from as f64 / to as f64;
        let mut position = step * 0.5;
        (0..to).map(move |_| {
            let at = (position as usize).min(from - 1);
            position += step;
            at
        })
    };
    let (from_width, from_height) = source_size(picture);
    let columns: Vec<usize> = positions(from_width, width).collect();
    let mut out = Vec::with_capacity(width * height * 3);
    for row in positions(from_height, height) {
        let source = row_of::<3>(picture, row);
        for &column in &columns {
            out.extend_from_slice(&source[column]);
        }
    }
    out
}

#[cfg(test)]
mod tests;
