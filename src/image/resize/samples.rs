//! How Pillow computes with a channel's values: 8 bits in fixed point, 16 bits in double precision.
//!
//! The 8-bit loops are compiled twice, for the baseline of the processor family and, on x86-64, for AVX2, whose
//! integer multiplication the baseline lacks. The result is the same to the bit.

#[cfg(target_arch = "x86_64")]
use super::octets::Octets;
#[cfg(target_arch = "x86_64")]
use super::quads::Quads;
use super::windows::Windows;

/// Fixed-point bits of an 8-bit sample's weight: 32, less 8 for the sample, less 2 for what overshoots.
pub(super) const PRECISION: u32 = 22;

/// One pass over a row: source samples in, resampled ones out.
pub(super) type Pass<S> = Box<dyn Fn(&[S], &mut [S])>;

/// A channel's value in one pixel.
pub(super) trait Sample: Copy + Default + 'static {
    /// A weight, and a sum of weighted samples.
    type Sum: Copy;
    /// What a sum starts with.
    const START: Self::Sum;

    /// A weight as it is computed with.
    fn weight(exact: f64) -> Self::Sum;
    /// Adds a weighted sample.
    fn add(sum: &mut Self::Sum, sample: Self, weight: Self::Sum);
    /// The value that a whole sum stands for.
    fn finish(sum: Self::Sum) -> Self;

    /// The horizontal pass of one padded row of `LANES` samples a pixel.
    fn across<const LANES: usize>(windows: Windows<Self::Sum>) -> Pass<Self> {
        Box::new(move |source, out| across_row::<Self, LANES>(&windows, source, out))
    }

    /// The vertical pass of one source row into one output row.
    fn add_row(sums: &mut [Self::Sum], samples: &[Self], weight: Self::Sum) {
        add_row(sums, samples, weight);
    }

    /// The values of an output row.
    fn finish_row(sums: &[Self::Sum], out: &mut [Self]) {
        finish_row(sums, out);
    }
}

impl Sample for u8 {
    type Sum = i32;
    const START: i32 = 1 << (PRECISION - 1);

    fn weight(exact: f64) -> i32 {
        let scaled = exact * f64::from(1 << PRECISION);
        (if exact < 0.0 { scaled - 0.5 } else { scaled + 0.5 }) as i32
    }

    #[inline(always)]
    fn add(sum: &mut i32, sample: u8, weight: i32) {
        *sum += i32::from(sample) * weight;
    }

    #[inline(always)]
    fn finish(sum: i32) -> u8 {
        (sum >> PRECISION).clamp(0, 255) as u8
    }

    fn across<const LANES: usize>(windows: Windows<i32>) -> Pass<u8> {
        #[cfg(target_arch = "x86_64")]
        if has_avx2() {
            if LANES >= 3 && has_byte_vectors() {
                let octets = Octets::<LANES>::new(&windows);
                // SAFETY: the processor has these parts of AVX-512.
                return Box::new(move |source, out| unsafe { octets.across_row(source, out) });
            }
            if LANES >= 3 {
                let quads = Quads::<LANES>::new(&windows);
                // SAFETY: the processor has AVX2.
                return Box::new(move |source, out| unsafe { quads.across_row(source, out) });
            }
            // SAFETY: the processor has AVX2.
            return Box::new(move |source, out| unsafe { avx2::across_row::<LANES>(&windows, source, out) });
        }
        Box::new(move |source, out| across_row::<u8, LANES>(&windows, source, out))
    }

    fn add_row(sums: &mut [i32], samples: &[u8], weight: i32) {
        #[cfg(target_arch = "x86_64")]
        if has_avx2() {
            // SAFETY: the processor has AVX2.
            return unsafe { avx2::add_row(sums, samples, weight) };
        }
        add_row(sums, samples, weight);
    }

    fn finish_row(sums: &[i32], out: &mut [u8]) {
        #[cfg(target_arch = "x86_64")]
        if has_avx2() {
            // SAFETY: the processor has AVX2.
            return unsafe { avx2::finish_row(sums, out) };
        }
        finish_row(sums, out);
    }
}

/// Pillow's mode I;16.
impl Sample for u16 {
    type Sum = f64;
    const START: f64 = 0.0;

    fn weight(exact: f64) -> f64 {
        exact
    }

    #[inline(always)]
    fn add(sum: &mut f64, sample: u16, weight: f64) {
        *sum += f64::from(sample) * weight;
    }

    #[inline(always)]
    fn finish(sum: f64) -> u16 {
        (if sum >= 0.0 { sum + 0.5 } else { 0.0 }) as u16
    }
}

#[cfg(target_arch = "x86_64")]
fn has_avx2() -> bool {
    std::arch::is_x86_feature_detected!("avx2")
}

/// Bytes in any order, and sums of their products.
#[cfg(target_arch = "x86_64")]
fn has_byte_vectors() -> bool {
    has_avx2()
        && std::arch::is_x86_feature_detected!("avx512vl")
        && std::arch::is_x86_feature_detected!("avx512vbmi")
        && std::arch::is_x86_feature_detected!("avx512vnni")
}

#[inline(always)]
pub(super) fn across_row<S: Sample, const LANES: usize>(windows: &Windows<S::Sum>, source: &[S], out: &mut [S]) {
    let (source, out) = (source.as_chunks::<LANES>().0, out.as_chunks_mut::<LANES>().0);
    for (index, out) in out.iter_mut().enumerate() {
        let mut sums = [S::START; LANES];
        for (pixel, weight) in source[windows.span(index)].iter().zip(windows.weights(index)) {
            for lane in 0..LANES {
                S::add(&mut sums[lane], pixel[lane], *weight);
            }
        }
        *out = sums.map(S::finish);
    }
}

#[inline(always)]
fn add_row<S: Sample>(sums: &mut [S::Sum], samples: &[S], weight: S::Sum) {
    for (sum, sample) in sums.iter_mut().zip(samples) {
        S::add(sum, *sample, weight);
    }
}

#[inline(always)]
fn finish_row<S: Sample>(sums: &[S::Sum], out: &mut [S]) {
    for (out, sum) in out.iter_mut().zip(sums) {
        *out = S::finish(*sum);
    }
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use super::Windows;

    #[target_feature(enable = "avx2")]
    pub fn across_row<const LANES: usize>(windows: &Windows<i32>, source: &[u8], out: &mut [u8]) {
        super::across_row::<u8, LANES>(windows, source, out);
    }

    #[target_feature(enable = "avx2")]
    pub fn add_row(sums: &mut [i32], samples: &[u8], weight: i32) {
        super::add_row(sums, samples, weight);
    }

    #[target_feature(enable = "avx2")]
    pub fn finish_row(sums: &[i32], out: &mut [u8]) {
        super::finish_row(sums, out);
    }
}
