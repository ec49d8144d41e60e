//! The horizontal pass in AVX-512 (VBMI and VNNI) for pixels of 3 or 4 bytes: eight pixels of one row in one vector. It
//! takes half the time of [`super::quads`].
//!
//! `vpdpbusd` multiplies bytes and sums four products, so a weight is split into three signed digits to the base 256,
//! whose sums are put together at the end. Sums wrap, so the order is free, and the whole sum fits 32 bits; the result is
//! the same to the bit as Pillow's.

use std::arch::x86_64::{
    _mm256_add_epi32, _mm256_dpbusd_epi32, _mm256_loadu_si256, _mm256_permutexvar_epi8, _mm256_set1_epi64x,
    _mm256_setzero_si256, _mm256_slli_epi32,
};

use super::quads::finish_pixel;
use super::windows::Windows;

/// Bytes that are loaded for eight pixels; with 3 bytes a pixel the last ones belong to the next.
const LOAD: usize = 32;

/// The weights of one output pixel for eight source pixels: the lowest, the middle and the highest digit of each.
type Octet = [i64; 3];

/// Windows whose weights come in eights.
pub(super) struct Octets<const LANES: usize> {
    /// Per output pixel: the first source byte and the number of octets.
    spans: Vec<(usize, usize)>,
    octets: Vec<Octet>,
}

/// Three signed digits to the base 256; a weight is below 2^23.
fn digits(weight: i32) -> [i8; 3] {
    let low = weight as i8;
    let rest = (weight - i32::from(low)) >> 8;
    let middle = rest as i8;
    [low, middle, ((rest - i32::from(middle)) >> 8) as i8]
}

impl<const LANES: usize> Octets<LANES> {
    pub(super) fn new(windows: &Windows<i32>) -> Self {
        assert!(LANES == 3 || LANES == 4, "a pixel has 3 or 4 bytes here. This is a bug.");
        let mut all = Self { spans: Vec::with_capacity(windows.len()), octets: vec![] };
        for index in 0..windows.len() {
            let weights = windows.weights(index);
            all.spans.push((windows.span(index).start * LANES, weights.len().div_ceil(8)));
            all.octets.extend(weights.chunks(8).map(|eight| {
                let mut bytes = [[0; 8]; 3];
                for (at, weight) in eight.iter().enumerate() {
                    for (bytes, digit) in bytes.iter_mut().zip(digits(*weight)) {
                        bytes[at] = digit as u8;
                    }
                }
                bytes.map(i64::from_le_bytes)
            }));
        }
        all
    }

    /// Resizes one row; `source` goes on for 32 bytes after its last pixel.
    #[target_feature(enable = "avx2,avx512vl,avx512vbmi,avx512vnni")]
    pub(super) fn across_row(&self, source: &[u8], out: &mut [u8]) {
        // Eight samples of red, of green, of blue, and of the last channel.
        let channels = [0, 1, 2, LANES - 1];
        let order: [u8; 32] = std::array::from_fn(|at| (at % 8 * LANES + channels[at / 8]) as u8);
        // SAFETY: the array has the 32 bytes that are loaded.
        let order = unsafe { _mm256_loadu_si256(order.as_ptr().cast()) };
        let mut rest = self.octets.as_slice();
        for (out, &(start, count)) in out.as_chunks_mut::<LANES>().0.iter_mut().zip(&self.spans) {
            let (octets, others) = rest.split_at(count);
            rest = others;
            let pixels = &source[start..start + (count - 1) * 8 * LANES + LOAD];
            let (mut low, mut middle, mut high) =
                (_mm256_setzero_si256(), _mm256_setzero_si256(), _mm256_setzero_si256());
            for (at, octet) in octets.iter().enumerate() {
                // SAFETY: the last of `count` loads, 8 pixels apart, ends where the slice ends.
                let eight = unsafe { _mm256_loadu_si256(pixels.as_ptr().add(at * 8 * LANES).cast()) };
                let samples = _mm256_permutexvar_epi8(order, eight);
                low = _mm256_dpbusd_epi32(low, samples, _mm256_set1_epi64x(octet[0]));
                middle = _mm256_dpbusd_epi32(middle, samples, _mm256_set1_epi64x(octet[1]));
                high = _mm256_dpbusd_epi32(high, samples, _mm256_set1_epi64x(octet[2]));
            }
            let upper = _mm256_add_epi32(_mm256_slli_epi32::<8>(middle), _mm256_slli_epi32::<16>(high));
            let bytes = finish_pixel(_mm256_add_epi32(low, upper));
            out.copy_from_slice(&bytes[..LANES]);
        }
    }
}
