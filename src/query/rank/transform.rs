//! Transforms of similarities that amplify large and diminish small values; pure.
//!
//! After the idea of "Image-Text Connection: Exploring the Expansion of the Diversity Within Joint Feature Space Similarity
//! Scores" (IEEE Access 11, 2023: one sine and two sigmoid forms); its formulas were not at hand, these are our own.
//!
//! Cosines of a CLIP model fill a narrow band, so a transform works on their place within it: with the least similarity a,
//! the greatest b and the mean m of the candidates, x = (s - a) / (b - a) lies in [0, 1], and the result is
//! a + (b - a) T(x). Each T is continuous, grows strictly, keeps 0, 1 and its middle c, is above x beyond c and below x
//! before it. So the order and the band stay; what changes is how far apart values stand.
//!
//! | name | T(x) | c |
//! |---|---|---|
//! | `sine` | (1 + sin(pi (x - 1/2))) / 2 | 1/2 |
//! | `sigmoid` | (g(x) - g(0)) / (g(1) - g(0)), g(x) = 1 / (1 + exp(-10 (x - 1/2))) | 1/2 |
//! | `centred_sigmoid` | the same g about c, scaled to keep 0, c and 1 on either side | the candidates' mean |
//!
//! Outside of [0, 1] (posts behind the candidates, on later pages) the similarity stays as it is.

use std::f64::consts::PI;

use serde::{Deserialize, Serialize};

/// Steepness of the logistic curves over the band: at its ends the plain curve is within 0.7 % of 0 and 1, so that little
/// of it is lost, and in the middle differences grow 2.5 times (1.6 times with the sine).
const STEEPNESS: f64 = 10.0;

/// A transform of similarities.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Transform {
    /// Similarities stay as they are.
    #[default]
    None,
    /// Half a period of a sine.
    Sine,
    /// A logistic curve about the middle of the band.
    Sigmoid,
    /// A logistic curve about the candidates' mean.
    CentredSigmoid,
}

/// The band of the candidates' similarities.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Band {
    /// The least similarity.
    pub least: f64,
    /// The greatest.
    pub greatest: f64,
    /// Their mean.
    pub mean: f64,
}

impl Band {
    /// The band of some similarities; that of none is empty.
    pub fn of(similarities: impl Iterator<Item = f64>) -> Self {
        let (mut least, mut greatest, mut sum, mut count) = (f64::INFINITY, f64::NEG_INFINITY, 0.0, 0.0);
        for similarity in similarities {
            (least, greatest) = (similarity.min(least), similarity.max(greatest));
            (sum, count) = (sum + similarity, count + 1.0);
        }
        match count > 0.0 {
            true => Self { least, greatest, mean: (sum / count).clamp(least, greatest) },
            false => Self { least: 0.0, greatest: 0.0, mean: 0.0 },
        }
    }

    fn width(&self) -> f64 {
        self.greatest - self.least
    }

    /// The place within the band, 0 to 1 inside of it; 1 where the band is a point.
    pub fn place(&self, similarity: f64) -> f64 {
        if self.width() > 0.0 { (similarity - self.least) / self.width() } else { 1.0 }
    }
}

impl Transform {
    /// The names in requests and in the configuration.
    pub const NAMES: &[(&'static str, Self)] = &[
        ("none", Self::None),
        ("sine", Self::Sine),
        ("sigmoid", Self::Sigmoid),
        ("centred_sigmoid", Self::CentredSigmoid),
    ];

    /// The transformed similarity.
    pub fn apply(self, similarity: f64, band: &Band) -> f64 {
        let place = band.place(similarity);
        if self == Self::None || band.width() <= 0.0 || !(0.0..=1.0).contains(&place) {
            return similarity;
        }
        band.least + band.width() * self.curve(place, band.place(band.mean))
    }

    /// T of the module's text; `mean` is the candidates' mean, in [0, 1] as `x`.
    fn curve(self, x: f64, mean: f64) -> f64 {
        match self {
            Self::None => x,
            Self::Sine => (1.0 + (PI * (x - 0.5)).sin()) / 2.0,
            Self::Sigmoid => logistic_about(0.5, x),
            Self::CentredSigmoid => logistic_about(mean, x),
        }
    }
}

/// The logistic curve about c, each side scaled so that 0, c and 1 stay; about 1/2 both scales are the same.
fn logistic_about(c: f64, x: f64) -> f64 {
    let g = |x: f64| 1.0 / (1.0 + (-STEEPNESS * (x - c)).exp()) - 0.5;
    if x >= c { if c < 1.0 { c + (1.0 - c) * g(x) / g(1.0) } else { 1.0 } } else { c - c * g(x) / g(0.0) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ALL: [Transform; 3] = [Transform::Sine, Transform::Sigmoid, Transform::CentredSigmoid];

    fn middle(transform: Transform, mean: f64) -> f64 {
        if transform == Transform::CentredSigmoid { mean } else { 0.5 }
    }

    proptest! {
        #[test]
        fn it_grows_stays_within_and_pushes_away_from_the_middle(
            x in 0.0f64..=1.0, y in 0.0f64..=1.0, mean in 0.0f64..=1.0,
        ) {
            for transform in ALL {
                let (left, right) = (transform.curve(x.min(y), mean), transform.curve(x.max(y), mean));
                prop_assert!((-1e-12..=1.0 + 1e-12).contains(&left), "{transform:?}: {left}");
                prop_assert!(left <= right && (left < right || (x - y).abs() < 1e-6), "{transform:?} at {x} and {y}");
                let middle = middle(transform, mean);
                let moved = transform.curve(x, mean) - x;
                prop_assert!(if x >= middle { moved >= -1e-12 } else { moved <= 1e-12 }, "{transform:?}: {x} by {moved}");
                // Not by nothing, where there is room to move.
                let room = (x - middle).abs().min(x).min(1.0 - x);
                prop_assert!(room < 0.05 || moved.abs() > 1e-3, "{transform:?}: {x} by {moved}");
            }
        }

        #[test]
        fn ends_and_middle_stay(mean in 0.0f64..=1.0) {
            for transform in ALL {
                for fixed in [0.0, middle(transform, mean), 1.0] {
                    prop_assert!((transform.curve(fixed, mean) - fixed).abs() < 1e-12, "{transform:?} at {fixed}");
                }
            }
        }

        #[test]
        fn similarities_keep_their_order_and_their_band(
            scores in proptest::collection::vec(-1.0f64..1.0, 1..50), behind in -1.0f64..1.0,
        ) {
            let band = Band::of(scores.iter().copied());
            let behind = behind.min(band.least);
            for transform in ALL {
                prop_assert!((transform.apply(behind, &band) - behind).abs() < 1e-12);
                for left in &scores {
                    let moved = transform.apply(*left, &band);
                    prop_assert!(moved >= band.least - 1e-12 && moved <= band.greatest + 1e-12);
                    for right in &scores {
                        prop_assert!(left > right || moved <= transform.apply(*right, &band));
                    }
                }
            }
            prop_assert_eq!(Transform::None.apply(scores[0], &band), scores[0]);
        }
    }

    #[test]
    fn formulas_are_those_of_the_text() {
        let close = |left: f64, right: f64| assert!((left - right).abs() < 1e-9, "{left} is not {right}");
        close(Transform::Sine.curve(0.75, 0.0), (1.0 + (PI / 4.0).sin()) / 2.0);
        let g = |x: f64| 1.0 / (1.0 + (-10.0 * (x - 0.5f64)).exp());
        close(Transform::Sigmoid.curve(0.6, 0.9), (g(0.6) - g(0.0)) / (g(1.0) - g(0.0)));
        close(Transform::CentredSigmoid.curve(0.6, 0.5), Transform::Sigmoid.curve(0.6, 0.5));
        // A band of one value, and none at all.
        let point = Band::of([0.3].into_iter());
        close(Transform::Sine.apply(0.3, &point), 0.3);
        close(Band::of(std::iter::empty()).place(0.2), 1.0);
    }
}
