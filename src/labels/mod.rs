//! Labels (zero-shot): which of the configured labels a post carries, by the vectors that it has anyway.
//!
//! A label is the mean of its prompts' vectors (in Chinese, English or both), each normalised before and the mean after, as
//! CLIP's own zero-shot code does ([`ensemble`]). A post is compared by its picture, or by its caption where it has none.
//! With logits = logit_scale x cosine:
//!
//! - an exclusive set gives at most one label: the one with the highest softmax over all labels of the set and its
//!   background, if it is not the background and reaches its threshold;
//! - in another set each label stands alone: its softmax against the background must reach its threshold.
//!
//! [`config`] and [`classifier`] are pure; [`labeller`] encodes the prompts once at the start.

pub mod classifier;
pub mod config;
pub mod labeller;

pub use self::classifier::{Assigned, Classifier};
pub use self::config::{LabelsConfig, Moderation};
pub use self::labeller::{Labeller, Routed, Verdict};

use crate::encode::normalise;

/// The prompt ensemble: the mean of normalised vectors, normalised. `None`: there are none, or they cancel out.
pub fn ensemble<'a>(vectors: impl IntoIterator<Item = &'a [f32]>) -> Option<Vec<f32>> {
    let mut sum: Vec<f64> = Vec::new();
    for vector in vectors {
        let vector = normalise(vector.to_vec())?;
        sum.resize(vector.len(), 0.0);
        sum.iter_mut().zip(vector).for_each(|(sum, value)| *sum += f64::from(value));
    }
    // The mean has the direction of the sum.
    normalise(sum.into_iter().map(|value| value as f32).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ensemble_weighs_each_prompt_alike_and_has_length_1() {
        // A long vector counts no more than a short one.
        let ensemble = ensemble([&[10.0, 0.0][..], &[0.0, 0.1]]).expect("a direction");
        let half = 0.5f32.sqrt();
        assert!(ensemble.iter().all(|value| (value - half).abs() < 1e-6), "{ensemble:?}");
        assert_eq!(super::ensemble([&[1.0, 0.0][..], &[-1.0, 0.0]]), None, "they cancel out");
        assert_eq!(super::ensemble([]), None);
    }
}
