//! What features tell, in nats: the entropy of each tower's features, and the mutual information between the towers'.
//!
//! Density estimators (nearest neighbours, Kraskov's) do not serve here: with 2,000 points in 128 dimensions
//! Kozachenko-Leonenko misses the known entropy of a von Mises-Fisher distribution by a third, and more in 512. These
//! two need no density:
//!
//! - Entropy: the matrix-based Rényi entropy of order 2 with the linear kernel (Sánchez Giraldo, Rao and Príncipe,
//!   "Measures of Entropy From Data Using Infinitely Divisible Kernels", IEEE Trans. Inf. Theory 61(1), 2015):
//!   -ln tr(rho^2), where rho is the features' second-moment matrix with trace 1. tr(rho^2) is estimated without bias by
//!   the mean squared cosine of two *different* samples, so that it holds for fewer samples than dimensions. It is 0
//!   where all features point one way, and ln(dimension) where they fill all directions evenly; exp of it is the number
//!   of dimensions in use.
//! - Mutual information: the InfoNCE lower bound (van den Oord, Li and Vinyals, "Representation Learning with
//!   Contrastive Predictive Coding", 2018; Poole et al., "On Variational Bounds of Mutual Information", 2019), the mean
//!   of both directions, with the critic scale x cosine, at the scale that makes the bound tightest. It cannot exceed
//!   ln(number of pairs).

use ndarray::{Array2, ArrayView2, Axis};
use serde::Serialize;

/// Pairs that the bound looks at, at most: two matrices of their scores take 128 MiB.
const MAX_PAIRS: usize = 4096;

/// The scales among which the tightest is sought.
const SCALES: (f64, f64) = (0.1, 1000.0);

/// Halvings of the range of ln(scale): the scale is found to a quarter of a percent.
const STEPS: usize = 12;

/// A lower bound of the mutual information.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct MutualInformation {
    /// The bound, in nats; never below 0.
    pub nats: f64,
    /// What it cannot exceed: ln(pairs).
    pub ceiling: f64,
    /// Pairs that it was estimated from.
    pub pairs: usize,
    /// The factor on cosines that makes the bound tightest; 0 where none helps.
    pub scale: f64,
}

/// Matrix-based Rényi entropy of order 2 of features [samples, dimension], in nats, from 0 to ln(dimension). `None` for
/// fewer than two samples, or where all are zero.
pub fn entropy(features: ArrayView2<f32>) -> Option<f64> {
    let moments = features.t().dot(&features);
    let square = |value: &f32| f64::from(*value) * f64::from(*value);
    let norms = features.rows().into_iter().map(|row| row.iter().map(square).sum::<f64>()).collect::<Vec<_>>();
    let (total, alone) = (norms.iter().sum::<f64>(), norms.iter().map(|norm| norm * norm).sum::<f64>());
    // Sums over pairs of different samples: of squared products, and of products of squared norms.
    let products = moments.iter().map(square).sum::<f64>() - alone;
    let weights = total * total - alone;
    if features.nrows() < 2 || weights <= 0.0 {
        return None;
    }
    let highest = (features.ncols() as f64).ln();
    Some(-(products / weights).clamp((-highest).exp(), 1.0).ln())
}

/// The InfoNCE bound for `pairs` of (row of `left`, row of `right`), all L2-normalised. `None` for fewer than two pairs.
pub fn mutual_information(
    left: ArrayView2<f32>,
    right: ArrayView2<f32>,
    pairs: &[(usize, usize)],
) -> Option<MutualInformation> {
    if pairs.len() < 2 {
        return None;
    }
    let count = pairs.len().min(MAX_PAIRS);
    // Evenly spaced, so that a sorted file loses no part.
    let chosen = (0..count).map(|place| pairs[place * pairs.len() / count]).collect::<Vec<_>>();
    let pick = |features: ArrayView2<f32>, rows: Vec<usize>| features.select(Axis(0), &rows);
    let left = pick(left, chosen.iter().map(|pair| pair.0).collect());
    let right = pick(right, chosen.iter().map(|pair| pair.1).collect());
    let directions = [left.dot(&right.t()), right.dot(&left.t())];
    let at = |scale: f64| {
        let [one, other] = directions.each_ref().map(|scores| info_nce(scores, scale));
        ((one.0 + other.0) / 2.0, (one.1 + other.1) / 2.0)
    };
    // The bound is concave in the scale: its slope changes sign once.
    let (mut low, mut high) = (SCALES.0.ln(), SCALES.1.ln());
    for _ in 0..STEPS {
        let middle = (low + high) / 2.0;
        if at(middle.exp()).1 > 0.0 { low = middle } else { high = middle }
    }
    let scale = ((low + high) / 2.0).exp();
    let nats = at(scale).0;
    let helps = nats > 0.0;
    Some(MutualInformation {
        nats: if helps { nats } else { 0.0 },
        ceiling: (count as f64).ln(),
        pairs: count,
        scale: if helps { scale } else { 0.0 },
    })
}

/// The bound of one direction, and its slope over the scale. `scores[i][j]` is the cosine of sample i and partner j; i
/// belongs to i.
fn info_nce(scores: &Array2<f32>, scale: f64) -> (f64, f64) {
    let count = scores.nrows() as f64;
    let (mut bound, mut slope) = (0.0, 0.0);
    for (place, row) in scores.rows().into_iter().enumerate() {
        let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let (mut sum, mut weighted) = (0.0, 0.0);
        for score in row {
            let weight = f64::from((scale as f32 * (score - largest)).exp());
            sum += weight;
            weighted += weight * f64::from(*score);
        }
        let own = f64::from(row[place]);
        bound += scale * (own - f64::from(largest)) - (sum / count).ln();
        slope += own - weighted / sum;
    }
    (bound / count, slope / count)
}

#[cfg(test)]
mod tests {
    use std::f64::consts::TAU;

    use rand::rngs::StdRng;
    use rand::{Rng as _, SeedableRng as _};

    use super::*;

    /// Standard normal values, by Box and Muller.
    fn normal(random: &mut StdRng) -> f64 {
        (-2.0 * (1.0 - random.random::<f64>()).ln()).sqrt() * (TAU * random.random::<f64>()).cos()
    }

    /// Rows of independent normal values with these standard deviations, L2-normalised if asked.
    fn sample(rows: usize, deviations: &[f64], normalise: bool, random: &mut StdRng) -> Array2<f32> {
        let mut values = Array2::zeros((rows, deviations.len()));
        for mut row in values.rows_mut() {
            let drawn = deviations.iter().map(|deviation| deviation * normal(random)).collect::<Vec<_>>();
            let norm = if normalise { drawn.iter().map(|value| value * value).sum::<f64>().sqrt() } else { 1.0 };
            row.iter_mut().zip(drawn).for_each(|(value, drawn)| *value = (drawn / norm) as f32);
        }
        values
    }

    fn close(value: f64, expected: f64, tolerance: f64) {
        assert!((value - expected).abs() <= tolerance, "{value} is not {expected} within {tolerance}");
    }

    #[test]
    fn entropy_of_known_distributions() {
        let mut random = StdRng::seed_from_u64(1);
        // Uniform on the sphere: ln(dimension), even with fewer samples than dimensions.
        for (rows, dimension) in [(2000, 128), (2000, 512), (600, 1024)] {
            let uniform = sample(rows, &vec![1.0; dimension], true, &mut random);
            close(entropy(uniform.view()).expect("many"), (dimension as f64).ln(), 0.02);
        }
        // Normal with a known spectrum: -ln(sum of squares of the spectrum with sum 1), where each sample counts by its
        // squared norm.
        let deviations = (1..=128).map(|rank| f64::from(rank).powf(-0.5)).collect::<Vec<_>>();
        let spectrum = deviations.iter().map(|deviation| deviation * deviation).collect::<Vec<_>>();
        let total = spectrum.iter().sum::<f64>();
        let expected = -spectrum.iter().map(|value| (value / total).powi(2)).sum::<f64>().ln();
        close(entropy(sample(4000, &deviations, false, &mut random).view()).expect("many"), expected, 0.05);
        // All point one way; and four directions, equally often.
        close(entropy(Array2::ones((50, 8)).view()).expect("many"), 0.0, 1e-6);
        let axes = Array2::from_shape_fn((4000, 8), |(row, column)| f32::from(row % 4 == column));
        close(entropy(axes.view()).expect("many"), 4f64.ln(), 1e-3);
        assert_eq!(entropy(Array2::ones((1, 8)).view()), None);
        assert_eq!(entropy(Array2::zeros((9, 8)).view()), None);
    }

    /// A direction of the sphere in 3 dimensions drawn from von Mises-Fisher around `mean`, whose third coordinate has
    /// the density kappa exp(kappa t) / (2 sinh kappa).
    fn von_mises_fisher(mean: [f64; 3], kappa: f64, random: &mut StdRng) -> [f64; 3] {
        let uniform = random.random::<f64>();
        let along = 1.0 + (uniform + (1.0 - uniform) * (-2.0 * kappa).exp()).ln() / kappa;
        let drawn = [0; 3].map(|_| normal(random));
        let overlap: f64 = drawn.iter().zip(mean).map(|(value, mean)| value * mean).sum();
        let across: [f64; 3] = std::array::from_fn(|axis| drawn[axis] - overlap * mean[axis]);
        let norm = across.iter().map(|value| value * value).sum::<f64>().sqrt();
        let width = (1.0 - along * along).max(0.0).sqrt();
        std::array::from_fn(|axis| along * mean[axis] + width * across[axis] / norm)
    }

    /// Left uniform on the sphere, right von Mises-Fisher around it: the mutual information is
    /// ln(kappa / sinh kappa) + kappa coth kappa - 1, and kappa x cosine is the best critic there is.
    #[test]
    fn mutual_information_of_von_mises_fisher_pairs() {
        for kappa in [2.0f64, 10.0, 40.0] {
            let mut random = StdRng::seed_from_u64(2);
            let left = sample(3000, &[1.0; 3], true, &mut random);
            let mut right = Array2::zeros((3000, 3));
            for (left, mut right) in left.rows().into_iter().zip(right.rows_mut()) {
                let drawn = von_mises_fisher([0, 1, 2].map(|axis| f64::from(left[axis])), kappa, &mut random);
                right.iter_mut().zip(drawn).for_each(|(value, drawn)| *value = drawn as f32);
            }
            let pairs = (0..3000).map(|row| (row, row)).collect::<Vec<_>>();
            let found = mutual_information(left.view(), right.view(), &pairs).expect("many");
            let expected = (kappa / kappa.sinh()).ln() + kappa / kappa.tanh() - 1.0;
            close(found.nats, expected, 0.06);
            close(found.scale / kappa, 1.0, 0.1);
        }
    }

    #[test]
    fn mutual_information_of_labels_and_of_nothing() {
        // Both sides say which of 16 things it is, nothing else: ln(16).
        let label = Array2::from_shape_fn((960, 16), |(row, column)| f32::from(row % 16 == column));
        let pairs = (0..960).map(|row| (row, row)).collect::<Vec<_>>();
        let found = mutual_information(label.view(), label.view(), &pairs).expect("many");
        close(found.nats, 16f64.ln(), 1e-3);
        assert_eq!((found.pairs, found.ceiling), (960, 960f64.ln()));
        // Every sample differs from the others: no more than the number of pairs can show.
        let mut random = StdRng::seed_from_u64(3);
        let distinct = sample(960, &[1.0; 64], true, &mut random);
        close(mutual_information(distinct.view(), distinct.view(), &pairs).expect("many").nats, found.ceiling, 1e-3);
        // Independent.
        let other = sample(960, &[1.0; 64], true, &mut random);
        close(mutual_information(distinct.view(), other.view(), &pairs).expect("many").nats, 0.0, 0.02);
        assert_eq!(mutual_information(distinct.view(), other.view(), &pairs[..1]), None);
    }
}
