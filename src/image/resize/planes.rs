//! Resizing the planes of a JPEG, each by itself, before they become RGB: for `images.decode = "fast"`. Chroma that is
//! there at half the size is never blown up, and colours are converted for the pixels that are left.
//!
//! The kernel and the windows are Pillow's; weights have 15 bits, and the vertical pass always goes first. The horizontal
//! pass is the vertical one of the turned picture, since weighted sums of whole rows need no sums within a vector.

use super::passes::Frame;
use super::windows::Windows;
use crate::image::picture::{Picture, Plane};

/// Output rows that are turned together: a vector of bytes. With these, a wide strip stays in the cache.
const STRIP: usize = 32;

/// Bytes along a side of the blocks that are turned.
const BLOCK: usize = 16;

/// Resizes a picture of planes, crops, and converts to RGB, interleaved.
///
/// # Panics
/// Where the picture's pixels lie interleaved.
pub(super) fn resize_planes(picture: &Picture, frame: &Frame) -> Vec<u8> {
    let planes = picture.planes().expect("the caller has looked at the layout. This is a bug.");
    let [luma, blue, red] = planes;
    let luma = resize_plane(&luma, &Axes::new(&luma, frame));
    let chroma = Axes::new(&blue, frame);
    let [blue, red] = [blue, red].map(|plane| resize_plane(&plane, &chroma));
    let mut rgb = vec![0; 3 * luma.len()];
    to_rgb(&luma, &blue, &red, &mut rgb);
    rgb
}

/// Windows with weights in 16-bit fixed point.
struct Axis {
    windows: Windows<i16>,
    /// Fixed-point bits: as many as the largest weight leaves room for.
    precision: u32,
}

impl Axis {
    fn new(extent: f64, from: usize, to: usize, wanted: std::ops::Range<usize>) -> Self {
        // A weight is at most 1; sums of weighted bytes, with what the kernel overshoots, fit 32 bits up to 21.
        let exact = Windows::of_extent(extent, from, to, wanted, |weight| weight);
        let largest =
            (0..exact.len()).flat_map(|index| exact.weights(index)).fold(0.0_f64, |most, weight| most.max(*weight));
        let fits = |precision: &u32| largest * f64::from(1_u32 << precision) < f64::from(i16::MAX);
        let precision = (1..=21).rev().find(fits).unwrap_or(1);
        let scale = f64::from(1_u32 << precision);
        Self { windows: exact.map(|weight| (weight * scale).round() as i16), precision }
    }
}

/// Both axes of a plane.
struct Axes {
    across: Axis,
    down: Axis,
}

impl Axes {
    fn new(plane: &Plane, frame: &Frame) -> Self {
        Self {
            across: Axis::new(plane.extent.0, plane.size.0, frame.size.0, frame.columns()),
            down: Axis::new(plane.extent.1, plane.size.1, frame.size.1, frame.rows()),
        }
    }
}

/// The samples of the crop, row-major.
fn resize_plane(plane: &Plane, axes: &Axes) -> Vec<u8> {
    let (width, out_width) = (plane.size.0, axes.across.windows.len());
    let (wide, out_wide) = (width.next_multiple_of(BLOCK), out_width.next_multiple_of(BLOCK));
    let mut rows = vec![0; STRIP * wide.max(out_wide)];
    let mut columns = vec![0; wide * STRIP];
    let mut out_columns = vec![0; out_wide * STRIP];
    let mut out = Vec::with_capacity(out_width * axes.down.windows.len());
    for top in (0..axes.down.windows.len()).step_by(STRIP) {
        let count = STRIP.min(axes.down.windows.len() - top);
        for (at, row) in rows.chunks_exact_mut(wide).take(count).enumerate() {
            axes.down.weigh(top + at, plane.samples, plane.stride, &mut row[..width]);
        }
        turn(&rows, wide, &mut columns, STRIP);
        for (at, column) in out_columns.as_chunks_mut::<STRIP>().0.iter_mut().take(out_width).enumerate() {
            axes.across.weigh(at, &columns, STRIP, column);
        }
        turn(&out_columns, STRIP, &mut rows, out_wide);
        for row in rows.chunks_exact(out_wide).take(count) {
            out.extend_from_slice(&row[..out_width]);
        }
    }
    out
}

impl Axis {
    /// The weighted sum of the rows of `source`, `stride` samples apart, that make up output row `index`.
    fn weigh(&self, index: usize, source: &[u8], stride: usize, out: &mut [u8]) {
        let rows = &source[self.windows.span(index).start * stride..];
        let weights = self.windows.weights(index);
        #[cfg(target_arch = "x86_64")]
        if out.len() >= avx2::VECTOR && std::arch::is_x86_feature_detected!("avx2") {
            // SAFETY: the processor has AVX2.
            return unsafe { avx2::weigh_rows(rows, stride, weights, self.precision, out) };
        }
        weigh_rows(rows, stride, weights, self.precision, out);
    }
}

fn weigh_rows(rows: &[u8], stride: usize, weights: &[i16], precision: u32, out: &mut [u8]) {
    for (at, out) in out.chunks_mut(STRIP).enumerate() {
        let mut sums = [1 << (precision - 1); STRIP];
        for (row, weight) in weights.iter().enumerate() {
            let samples = &rows[row * stride + at * STRIP..][..out.len()];
            for (sum, sample) in sums.iter_mut().zip(samples) {
                *sum += i32::from(*sample) * i32::from(*weight);
            }
        }
        for (out, sum) in out.iter_mut().zip(sums) {
            *out = (sum >> precision).clamp(0, 255) as u8;
        }
    }
}

/// Makes the columns of `from` the rows of `to`; both have a whole number of blocks along each side.
fn turn(from: &[u8], from_stride: usize, to: &mut [u8], to_stride: usize) {
    for row in (0..to_stride).step_by(BLOCK) {
        for column in (0..from_stride).step_by(BLOCK) {
            let mut block: [[u8; BLOCK]; BLOCK] = std::array::from_fn(|at| {
                *from[(row + at) * from_stride + column..].first_chunk().expect("a whole block. This is a bug.")
            });
            // Four times the perfect shuffle, one instruction for each vector, are the transposition.
            for _ in 0..4 {
                let rows = block;
                for (pair, both) in block.as_chunks_mut::<2>().0.iter_mut().enumerate() {
                    for at in 0..BLOCK {
                        both[at / 8][at % 8 * 2] = rows[pair][at];
                        both[at / 8][at % 8 * 2 + 1] = rows[pair + BLOCK / 2][at];
                    }
                }
            }
            for (at, values) in block.iter().enumerate() {
                to[(column + at) * to_stride + row..][..BLOCK].copy_from_slice(values);
            }
        }
    }
}

/// JFIF's colours (ITU-T T.871, 7) in 16-bit fixed point.
fn to_rgb(luma: &[u8], blue: &[u8], red: &[u8], out: &mut [u8]) {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has AVX2.
        return unsafe { avx2::to_rgb(luma, blue, red, out) };
    }
    convert(luma, blue, red, out);
}

#[inline(always)]
fn convert(luma: &[u8], blue: &[u8], red: &[u8], out: &mut [u8]) {
    for (((out, luma), blue), red) in out.as_chunks_mut().0.iter_mut().zip(luma).zip(blue).zip(red) {
        let luma = (i32::from(*luma) << 16) + (1 << 15);
        let (blue, red) = (i32::from(*blue) - 128, i32::from(*red) - 128);
        let sums: [i32; 3] = [luma + 91_881 * red, luma - 22_554 * blue - 46_802 * red, luma + 116_130 * blue];
        *out = sums.map(|sum| (sum >> 16).clamp(0, 255) as u8);
    }
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use std::arch::x86_64::{
        _mm_cvtsi32_si128, _mm256_add_epi32, _mm256_loadu_si256, _mm256_madd_epi16, _mm256_packs_epi32,
        _mm256_packus_epi16, _mm256_set1_epi32, _mm256_setzero_si256, _mm256_sra_epi32, _mm256_storeu_si256,
        _mm256_unpackhi_epi8, _mm256_unpacklo_epi8,
    };

    pub const VECTOR: usize = 32;

    /// As [`super::weigh_rows`], two rows at a time, for at least 32 columns.
    #[target_feature(enable = "avx2")]
    pub fn weigh_rows(rows: &[u8], stride: usize, weights: &[i16], precision: u32, out: &mut [u8]) {
        let width = out.len();
        assert!(
            width >= VECTOR && rows.len() >= (weights.len() - 1) * stride + width,
            "each row has as many samples as are asked for. This is a bug."
        );
        let zero = _mm256_setzero_si256();
        let shift = _mm_cvtsi32_si128(precision as i32);
        for column in (0..width).step_by(VECTOR) {
            // The last vector overlaps the one before it.
            let column = column.min(width - VECTOR);
            // SAFETY: `row` is one of as many as there are weights, and the vector ends with the row.
            let load = |row: usize| unsafe { _mm256_loadu_si256(rows.as_ptr().add(row * stride + column).cast()) };
            let mut sums = [_mm256_set1_epi32(1 << (precision - 1)); 4];
            for (pair, weights) in weights.chunks(2).enumerate() {
                let (weight, next) = (weights[0], weights.get(1).copied().unwrap_or(0));
                let both = _mm256_set1_epi32(i32::from(weight as u16) | i32::from(next) << 16);
                let (upper, lower) = (load(2 * pair), load(2 * pair + weights.len() - 1));
                let halves = [_mm256_unpacklo_epi8(upper, lower), _mm256_unpackhi_epi8(upper, lower)];
                for (sums, half) in sums.as_chunks_mut::<2>().0.iter_mut().zip(halves) {
                    let (low, high) = (_mm256_unpacklo_epi8(half, zero), _mm256_unpackhi_epi8(half, zero));
                    sums[0] = _mm256_add_epi32(sums[0], _mm256_madd_epi16(low, both));
                    sums[1] = _mm256_add_epi32(sums[1], _mm256_madd_epi16(high, both));
                }
            }
            let values = sums.map(|sum| _mm256_sra_epi32(sum, shift));
            let (low, high) = (_mm256_packs_epi32(values[0], values[1]), _mm256_packs_epi32(values[2], values[3]));
            let bytes = _mm256_packus_epi16(low, high);
            // SAFETY: the vector ends with the row.
            unsafe { _mm256_storeu_si256(out.as_mut_ptr().add(column).cast(), bytes) };
        }
    }

    #[target_feature(enable = "avx2")]
    pub fn to_rgb(luma: &[u8], blue: &[u8], red: &[u8], out: &mut [u8]) {
        super::convert(luma, blue, red, out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(count: usize) -> Vec<u8> {
        (0..count).map(|at| (at * 37 + at * at / 7) as u8).collect()
    }

    #[test]
    fn vectors_give_what_the_portable_sums_give() {
        for (width, count) in [(32, 1), (33, 2), (95, 7), (224, 40)] {
            let axis = Axis::new(count as f64, count, 1, 0..1);
            let (samples, mut expected, mut actual) = (noise(width * count), vec![0; width], vec![0; width]);
            axis.weigh(0, &samples, width, &mut actual);
            weigh_rows(&samples, width, axis.windows.weights(0), axis.precision, &mut expected);
            assert_eq!(actual, expected, "{width} x {count}");
        }
    }

    #[test]
    fn columns_become_rows() {
        let (from, mut to) = (noise(32 * 48), vec![0; 48 * 32]);
        turn(&from, 48, &mut to, 32);
        for row in 0..32 {
            for column in 0..48 {
                assert_eq!(to[column * 32 + row], from[row * 48 + column], "{row}, {column}");
            }
        }
    }

    #[test]
    fn colours_are_those_of_jfif() {
        let mut rgb = [0; 12];
        to_rgb(&[76, 150, 29, 255], &[85, 44, 255, 128], &[255, 21, 107, 128], &mut rgb);
        assert_eq!(rgb, [254, 0, 0, 0, 255, 1, 0, 0, 254, 255, 255, 255]);
    }
}
