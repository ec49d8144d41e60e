//! The horizontal pass in AVX2 for pixels of 3 or 4 bytes: four pixels of one row in one vector.
//!
//! A 22-bit weight does not fit the 16-bit multiplication that sums pairs (`pmaddwd`), so it is split: weight =
//! high x 4096 + low. Both halves are summed apart and put together at the end. Sums wrap, so the order is free, and the
//! whole sum fits 32 bits; the result is the same to the bit as Pillow's.

use std::arch::x86_64::{
    __m256i, _mm_cvtsi128_si32, _mm_loadu_si128, _mm_packs_epi32, _mm_packus_epi16, _mm_unpacklo_epi64,
    _mm256_add_epi32, _mm256_broadcastsi128_si256, _mm256_castsi256_si128, _mm256_extracti128_si256, _mm256_hadd_epi32,
    _mm256_madd_epi16, _mm256_set1_epi32, _mm256_set1_epi64x, _mm256_setr_epi8, _mm256_setzero_si256,
    _mm256_shuffle_epi8, _mm256_slli_epi32, _mm256_srai_epi32,
};

use super::samples::{PRECISION, Sample};
use super::windows::Windows;

/// Bits of the low half of a weight.
const LOW_BITS: u32 = 12;

/// Bytes that are loaded for four pixels; with 3 bytes a pixel the last ones belong to the next.
const LOAD: usize = 16;

/// The weights of one output pixel for four source pixels: four 16-bit halves in one word.
struct Quad {
    high: i64,
    low: i64,
}

/// Windows whose weights come in fours.
pub(super) struct Quads<const LANES: usize> {
    /// Per output pixel: the first source byte and the number of quads.
    spans: Vec<(usize, usize)>,
    quads: Vec<Quad>,
}

impl<const LANES: usize> Quads<LANES> {
    pub(super) fn new(windows: &Windows<i32>) -> Self {
        assert!(LANES == 3 || LANES == 4, "a pixel has 3 or 4 bytes here. This is a bug.");
        let mut all = Self { spans: Vec::with_capacity(windows.len()), quads: vec![] };
        for index in 0..windows.len() {
            let weights = windows.weights(index);
            all.spans.push((windows.span(index).start * LANES, weights.len().div_ceil(4)));
            all.quads.extend(weights.chunks(4).map(|four| {
                let half = |of: fn(i32) -> i32| {
                    let halves = four.iter().enumerate();
                    // Weights are below 2^23, so that both halves fit 16 bits.
                    halves.fold(0, |word, (at, weight)| word | u64::from(of(*weight) as u16) << (16 * at)) as i64
                };
                Quad { high: half(|weight| weight >> LOW_BITS), low: half(|weight| weight & ((1 << LOW_BITS) - 1)) }
            }));
        }
        all
    }

    /// Resizes one row; `source` goes on for 32 bytes after its last pixel.
    #[target_feature(enable = "avx2")]
    pub(super) fn across_row(&self, source: &[u8], out: &mut [u8]) {
        // Per lane of 128 bits: four samples each of two channels, widened to 16 bits with zeros (index -1).
        let (red, green, blue, other) = (0, 1, 2, LANES as i8 - 1);
        let at = |pixel: i8, channel: i8| pixel * LANES as i8 + channel;
        #[rustfmt::skip]
        let widen = _mm256_setr_epi8(
            at(0, red), -1, at(1, red), -1, at(2, red), -1, at(3, red), -1,
            at(0, green), -1, at(1, green), -1, at(2, green), -1, at(3, green), -1,
            at(0, blue), -1, at(1, blue), -1, at(2, blue), -1, at(3, blue), -1,
            at(0, other), -1, at(1, other), -1, at(2, other), -1, at(3, other), -1,
        );
        let mut rest = self.quads.as_slice();
        for (out, &(start, count)) in out.as_chunks_mut::<LANES>().0.iter_mut().zip(&self.spans) {
            let (quads, others) = rest.split_at(count);
            rest = others;
            let pixels = &source[start..start + (count - 1) * 4 * LANES + LOAD];
            let mut high = _mm256_setzero_si256();
            let mut low = _mm256_setzero_si256();
            for (at, quad) in quads.iter().enumerate() {
                // SAFETY: the last of `count` loads, 4 pixels apart, ends where the slice ends.
                let four = unsafe { _mm_loadu_si128(pixels.as_ptr().add(at * 4 * LANES).cast()) };
                let samples = _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(four), widen);
                high = _mm256_add_epi32(high, _mm256_madd_epi16(samples, _mm256_set1_epi64x(quad.high)));
                low = _mm256_add_epi32(low, _mm256_madd_epi16(samples, _mm256_set1_epi64x(quad.low)));
            }
            let bytes = finish_pixel(_mm256_add_epi32(_mm256_slli_epi32::<{ LOW_BITS as i32 }>(high), low));
            out.copy_from_slice(&bytes[..LANES]);
        }
    }
}

/// The pixel whose channels' sums lie in two neighbours each.
#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn finish_pixel(sums: __m256i) -> [u8; 4] {
    let sums = _mm256_add_epi32(_mm256_hadd_epi32(sums, sums), _mm256_set1_epi32(u8::START));
    let values = _mm256_srai_epi32::<{ PRECISION as i32 }>(sums);
    // Lower half: red, green, red, green; upper: blue, other, blue, other. Packing clips to 0..=255.
    let pixel = _mm_unpacklo_epi64(_mm256_castsi256_si128(values), _mm256_extracti128_si256::<1>(values));
    let words = _mm_packs_epi32(pixel, pixel);
    _mm_cvtsi128_si32(_mm_packus_epi16(words, words)).to_le_bytes()
}
