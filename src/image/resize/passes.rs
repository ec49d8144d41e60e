//! The two passes of Pillow's resampling (`libImaging/Resample.c`) as a stream: a source row goes through the first pass,
//! is added at once to every output row that it touches, and those leave when their last row has come.
//!
//! Pillow holds a whole picture between the passes; here it is a few rows. The sums are the same to the bit: those of
//! integers in any order, those of doubles because the rows come in order.

use std::ops::Range;

use super::samples::{Pass, Sample};
use super::windows::Windows;

/// A size or a position: horizontal, vertical.
pub(super) type Pair = (usize, usize);

/// What is wanted of a resized picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame {
    /// Width and height of the whole picture after the resize.
    pub size: Pair,
    /// Left and top of the part that is wanted.
    pub corner: Pair,
    /// Width and height of that part; the rest is never computed.
    pub crop: Pair,
}

impl Frame {
    pub(super) fn columns(&self) -> Range<usize> {
        self.corner.0..self.corner.0 + self.crop.0
    }

    pub(super) fn rows(&self) -> Range<usize> {
        self.corner.1..self.corner.1 + self.crop.1
    }
}

/// Rows are this many samples longer than their pixels, so that whole vectors can be loaded at their ends.
pub(super) const PADDING: usize = 32;

/// Resizes pixels of `LANES` samples; `fill_row(y, row)` writes source row `y`. The rows of the crop, interleaved.
pub(super) fn resample<S: Sample, const LANES: usize>(
    from: Pair,
    frame: &Frame,
    mut fill_row: impl FnMut(usize, &mut [[S; LANES]]),
) -> Vec<S> {
    let across = across::<S, LANES>(from.0, frame);
    let mut source = vec![S::default(); from.0 * LANES + PADDING];
    let mut narrow = vec![S::default(); frame.crop.0 * LANES];
    let mut out = Vec::with_capacity(frame.crop.0 * frame.crop.1 * LANES);
    let is_vertical_first = is_vertical_first(from, frame.size);
    let mut down = Down::new(from.1, frame, if is_vertical_first { from.0 } else { frame.crop.0 } * LANES);
    for row in down.needed() {
        fill_row(row, source[..from.0 * LANES].as_chunks_mut().0);
        if is_vertical_first {
            down.push(row, &source, |finished| {
                across(finished, &mut narrow);
                out.extend_from_slice(&narrow);
            });
        } else {
            across(&source, &mut narrow);
            down.push(row, &narrow, |finished| out.extend_from_slice(&finished[..narrow.len()]));
        }
    }
    out
}

/// Pillow's rule since 13.0: where the height shrinks by more than twice what the width does. Up to 12 it went
/// horizontally first, but for pictures more than 100 times as tall as wide.
fn is_vertical_first(from: Pair, to: Pair) -> bool {
    let shrinks_by = |from: usize, to: usize| from as i64 - to as i64;
    let (horizontal, vertical) = (shrinks_by(from.0, to.0), shrinks_by(from.1, to.1));
    vertical > 0 && vertical > 2 * horizontal
}

/// The horizontal pass of one row (padded) into the columns that are wanted.
fn across<S: Sample, const LANES: usize>(from: usize, frame: &Frame) -> Pass<S> {
    let columns = frame.columns();
    if from == frame.size.0 {
        return Box::new(move |source, out| out.copy_from_slice(&source[columns.start * LANES..columns.end * LANES]));
    }
    S::across::<LANES>(Windows::new(from, frame.size.0, columns, S::weight))
}

/// The vertical pass.
struct Down<S: Sample> {
    /// `None`: the height stays.
    windows: Option<Windows<S::Sum>>,
    /// The source rows that are needed.
    needed: Range<usize>,
    row_length: usize,
    /// Rows of sums; an output row's place is its index modulo their number.
    sums: Vec<S::Sum>,
    places: usize,
    /// The output row that leaves next.
    first_open: usize,
    finished: Vec<S>,
}

impl<S: Sample> Down<S> {
    fn new(from: usize, frame: &Frame, row_length: usize) -> Self {
        let windows = (from != frame.size.1).then(|| Windows::new(from, frame.size.1, frame.rows(), S::weight));
        let places = windows.as_ref().map_or(0, Windows::most_open);
        Self {
            needed: windows.as_ref().map_or(frame.rows(), Windows::needed),
            windows,
            row_length,
            sums: vec![S::START; places * row_length],
            places,
            first_open: 0,
            finished: vec![S::default(); row_length + PADDING],
        }
    }

    fn needed(&self) -> Range<usize> {
        self.needed.clone()
    }

    /// Takes source row `row`, of those needed the next, and hands on (padded) each output row that it completes.
    fn push(&mut self, row: usize, values: &[S], mut finish: impl FnMut(&[S])) {
        let Some(windows) = &self.windows else { return finish(values) };
        let values = &values[..self.row_length];
        for index in self.first_open..windows.len() {
            let span = windows.span(index);
            if span.start > row {
                break;
            }
            let place = index % self.places * self.row_length;
            let sums = &mut self.sums[place..place + self.row_length];
            if span.start == row {
                sums.fill(S::START);
            }
            S::add_row(sums, values, windows.weights(index)[row - span.start]);
            if span.end == row + 1 {
                S::finish_row(sums, &mut self.finished);
                finish(&self.finished);
                self.first_open = index + 1;
            }
        }
    }
}
