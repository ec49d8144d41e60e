//! Which source pixels an output pixel is made of, and with which weights (Pillow's `precompute_coeffs`).

use std::ops::Range;

/// Reach of the bicubic kernel, in source pixels at scale 1.
const SUPPORT: f64 = 2.0;

/// The source pixels of each output pixel along one axis, and their weights.
pub(super) struct Windows<Weight> {
    spans: Vec<Range<usize>>,
    /// Per output pixel: index of the first weight.
    firsts: Vec<usize>,
    weights: Vec<Weight>,
}

impl<Weight> Windows<Weight> {
    /// For an axis of `from` pixels that becomes `to`, of which only those in `wanted` are computed.
    pub(super) fn new(from: usize, to: usize, wanted: Range<usize>, convert: impl Fn(f64) -> Weight) -> Self {
        Self::of_extent(from as f64, from, to, wanted, convert)
    }

    /// The same for an axis that ends within the last of its `from` pixels, after `extent` of them (Pillow's `box`).
    pub(super) fn of_extent(
        extent: f64,
        from: usize,
        to: usize,
        wanted: Range<usize>,
        convert: impl Fn(f64) -> Weight,
    ) -> Self {
        let scale = extent / to as f64;
        let filter_scale = scale.max(1.0);
        let support = SUPPORT * filter_scale;
        let step = 1.0 / filter_scale;
        let mut windows =
            Self { spans: Vec::with_capacity(wanted.len()), firsts: Vec::with_capacity(wanted.len()), weights: vec![] };
        let mut raw = Vec::new();
        for index in wanted {
            let center = (index as f64 + 0.5) * scale;
            // `as` truncates towards zero as C does, and negative values become 0, as Pillow clips them.
            let start = (center - support + 0.5) as usize;
            let end = ((center + support + 0.5) as usize).min(from);
            raw.clear();
            raw.extend((start..end).map(|at| kernel((at as f64 - center + 0.5) * step)));
            // Summed in order, as there: a different order gives different last bits.
            let total = raw.iter().fold(0.0, |total, weight| total + weight);
            windows.firsts.push(windows.weights.len());
            windows.spans.push(start..end);
            windows
                .weights
                .extend(raw.iter().map(|weight| convert(if total == 0.0 { *weight } else { weight / total })));
        }
        windows
    }

    /// The same windows with other weights.
    pub(super) fn map<Other>(self, convert: impl Fn(Weight) -> Other) -> Windows<Other> {
        let weights = self.weights.into_iter().map(convert).collect();
        Windows { spans: self.spans, firsts: self.firsts, weights }
    }

    /// Number of output pixels.
    pub(super) fn len(&self) -> usize {
        self.spans.len()
    }

    /// The source pixels of the output pixel at `index`. Starts and ends never decrease with the index.
    #[inline(always)]
    pub(super) fn span(&self, index: usize) -> Range<usize> {
        self.spans[index].clone()
    }

    /// The weights of the output pixel at `index`, one for each pixel of its span.
    #[inline(always)]
    pub(super) fn weights(&self, index: usize) -> &[Weight] {
        let first = self.firsts[index];
        &self.weights[first..first + self.spans[index].len()]
    }

    /// The source pixels that any output pixel needs.
    pub(super) fn needed(&self) -> Range<usize> {
        match (self.spans.first(), self.spans.last()) {
            (Some(first), Some(last)) => first.start..last.end,
            _ => 0..0,
        }
    }

    /// The most output pixels that any source pixel belongs to, or that lie between two of those.
    pub(super) fn most_open(&self) -> usize {
        let mut last_open = 0;
        let open_with = |(index, span): (usize, &Range<usize>)| {
            while self.spans.get(last_open + 1).is_some_and(|next| next.start < span.end) {
                last_open += 1;
            }
            last_open + 1 - index.min(last_open)
        };
        self.spans.iter().enumerate().map(open_with).max().unwrap_or(0)
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
