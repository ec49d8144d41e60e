//! When nothing fits: thresholds from topics that a set's pictures match and topics that they do not. Pure.
//!
//! A topic's strength is the largest cosine x length of its features over all candidates ([`crate::encode::calibration`]
//! says why the length). For a threshold t, `answered` is the share of matching topics whose strength is at least t, and
//! `false_answers` that of the others. The threshold is the one with the largest answered - false_answers (Youden's J), but
//! never stricter than false_answers of 5 % asks for.

use ndarray::{ArrayView1, ArrayView2};
use serde::Serialize;

/// False answers that are always good enough: a threshold is not made stricter than this asks for.
const GOOD_ENOUGH: f64 = 0.05;
/// Fewer topics of a kind say too little.
pub const LEAST_TOPICS: usize = 20;

/// A threshold and what it does to the topics that it was measured on.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Measured {
    /// The least strength of a topic that something fits.
    pub threshold: f32,
    /// Share of the matching topics that are answered, in percent.
    pub answered: f64,
    /// Share of the other topics that are answered, in percent.
    pub false_answers: f64,
    /// Number of matching topics.
    pub matching: usize,
    /// Number of other topics.
    pub unmatched: usize,
}

/// The strength of each topic: the largest dot product of its features (rows of `features`, not normalised) with a row of
/// `candidates` (L2-normalised) that is not `left_out` of it.
pub fn strengths(
    features: ArrayView2<f32>,
    candidates: ArrayView2<f32>,
    left_out: impl Fn(usize, usize) -> bool,
) -> Vec<f32> {
    let strength = |(topic, features): (usize, ArrayView1<f32>)| {
        let products = candidates.dot(&features);
        let allowed = products.iter().enumerate().filter(|(candidate, _)| !left_out(topic, *candidate));
        allowed.map(|(_, product)| *product).fold(f32::NEG_INFINITY, f32::max)
    };
    features.rows().into_iter().enumerate().map(strength).collect()
}

/// What a threshold does.
pub fn measure(threshold: f32, matching: &[f32], unmatched: &[f32]) -> Measured {
    let share = |strengths: &[f32]| {
        let passing = strengths.iter().filter(|strength| **strength >= threshold).count();
        100.0 * passing as f64 / strengths.len().max(1) as f64
    };
    Measured {
        threshold,
        answered: share(matching),
        false_answers: share(unmatched),
        matching: matching.len(),
        unmatched: unmatched.len(),
    }
}

/// The threshold of the module's text; `None` with fewer than [`LEAST_TOPICS`] topics of either kind.
pub fn calibrate(matching: &[f32], unmatched: &[f32]) -> Option<Measured> {
    if matching.len().min(unmatched.len()) < LEAST_TOPICS {
        return None;
    }
    let mut matching = matching.to_vec();
    let mut unmatched = unmatched.to_vec();
    matching.sort_by(f32::total_cmp);
    unmatched.sort_by(f32::total_cmp);
    let share = |sorted: &[f32], threshold: f32| {
        (sorted.len() - sorted.partition_point(|strength| *strength < threshold)) as f64 / sorted.len() as f64
    };
    // In rising order: the first that is good enough ends the search, and of equally good ones the mildest is taken.
    let mut thresholds: Vec<f32> = matching.iter().chain(&unmatched).copied().collect();
    thresholds.sort_by(f32::total_cmp);
    let mut best = (f64::NEG_INFINITY, thresholds[0]);
    for threshold in thresholds {
        let false_answers = share(&unmatched, threshold);
        let gain = share(&matching, threshold) - false_answers;
        if gain > best.0 {
            best = (gain, threshold);
        }
        if false_answers <= GOOD_ENOUGH {
            break;
        }
    }
    Some(measure(best.1, &matching, &unmatched))
}

#[cfg(test)]
mod tests {
    use ndarray::array;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn kinds_that_lie_apart_are_told_apart_and_no_stricter_than_needed() {
        let unmatched = (0..100).map(|number| 10.0 + number as f32 / 100.0).collect::<Vec<_>>();
        let matching = (0..100).map(|number| 20.0 + number as f32).collect::<Vec<_>>();
        let found = calibrate(&matching, &unmatched).expect("enough topics");
        assert_eq!((found.answered, found.false_answers), (100.0, 5.0));
        assert_eq!(calibrate(&matching[..19], &unmatched), None);
    }

    #[test]
    fn the_strength_is_the_best_candidate_that_is_not_left_out() {
        let candidates = array![[1.0f32, 0.0], [0.0, 1.0]];
        let features = array![[3.0f32, 4.0], [5.0, -1.0]];
        assert_eq!(strengths(features.view(), candidates.view(), |_, _| false), [4.0, 5.0]);
        assert_eq!(
            strengths(features.view(), candidates.view(), |topic, candidate| topic + candidate == 1),
            [3.0, -1.0]
        );
    }

    proptest! {
        #[test]
        fn no_other_threshold_is_better(
            matching in proptest::collection::vec(0i16..200, 20..60), unmatched in proptest::collection::vec(0i16..200, 20..60),
        ) {
            let [matching, unmatched] = [matching, unmatched].map(|it| it.into_iter().map(f32::from).collect::<Vec<_>>());
            let found = calibrate(&matching, &unmatched).expect("enough topics");
            let gain = |it: &Measured| it.answered - it.false_answers;
            for threshold in 0..200 {
                let other = measure(threshold as f32, &matching, &unmatched);
                // One that answers no more of the others than is good enough need not be beaten.
                prop_assert!(gain(&other) <= gain(&found) + 1e-9 || other.false_answers < 100.0 * GOOD_ENOUGH, "{other:?} {found:?}");
            }
        }
    }
}
