//! Recall@K and mean recall as Chinese-CLIP's evaluation computes them (`cn_clip/eval/evaluation.py`): a query is a hit
//! at K if any of its gold candidates is among the K best; mean recall is the mean of Recall@1, @5 and @10. Pure.

use serde::Serialize;

use crate::eval::rank::Ranked;

/// Best candidates that a query's figures look at; prediction files have as many.
pub const DEPTH: usize = 10;

/// Figures of one direction, in percent.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Recall {
    /// Recall@1.
    pub r1: f64,
    /// Recall@5.
    pub r5: f64,
    /// Recall@10.
    pub r10: f64,
    /// (r1 + r5 + r10) / 3.
    pub mean_recall: f64,
    /// Share of the five best that are gold, averaged over the queries; of interest where queries have many golds.
    pub precision5: f64,
    /// Number of queries.
    pub queries: usize,
    /// Number of candidates.
    pub candidates: usize,
}

/// Figures of queries with their [`DEPTH`] best of `candidates` candidates. `gold` holds, for each query, the indexes of
/// the candidates that belong to it.
pub fn recall<'a>(queries: impl Iterator<Item = (&'a Ranked, &'a Vec<usize>)>, candidates: usize) -> Recall {
    let mut hits = [0usize; 3];
    let (mut precise, mut count) = (0usize, 0usize);
    for (ranked, gold) in queries {
        let is_gold = |within: usize| ranked.hits.iter().take(within).filter(|hit| gold.contains(&hit.index)).count();
        for (hits, within) in hits.iter_mut().zip([1, 5, DEPTH]) {
            *hits += usize::from(is_gold(within) > 0);
        }
        precise += is_gold(5);
        count += 1;
    }
    // The order of the operations is the reference's, so that the figures are equal to the last bit.
    let share = |hits: usize, of: usize| if of == 0 { 0.0 } else { hits as f64 / of as f64 };
    let [r1, r5, r10] = hits.map(|hits| share(hits, count));
    Recall {
        r1: r1 * 100.0,
        r5: r5 * 100.0,
        r10: r10 * 100.0,
        mean_recall: (r1 + r5 + r10) / 3.0 * 100.0,
        precision5: 100.0 * share(precise, 5 * count),
        queries: count,
        candidates,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::rank::Hit;

    #[test]
    fn any_gold_within_k_is_a_hit_and_figures_are_percentages() {
        let ranked = Ranked { hits: (0..10).map(|index| Hit { index, score: 1.0 }).collect(), ..Ranked::default() };
        let gold = [vec![0], vec![4], vec![19, 9], vec![10]];
        let figures = recall(gold.iter().map(|gold| (&ranked, gold)), 20);
        assert_eq!((figures.r1, figures.r5, figures.r10), (25.0, 50.0, 75.0));
        assert_eq!(figures.mean_recall, 50.0);
        assert_eq!(figures.precision5, 10.0);
        assert_eq!((figures.queries, figures.candidates), (4, 20));
    }
}
