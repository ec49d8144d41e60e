//! Recall@K and mean recall as Chinese-CLIP's evaluation computes them (`cn_clip/eval/evaluation.py`): a query is a hit
//! at K if any of its gold candidates is among the K best; mean recall is the mean of Recall@1, @5 and @10. Pure.

use serde::Serialize;

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

/// Ranks all candidates for each query by the dot product of L2-normalised vectors. `gold[q]` holds the indexes of the
/// candidates that belong to query `q`. Of equal scores, the candidate that was given first ranks first.
pub fn recall(queries: &[Vec<f32>], candidates: &[Vec<f32>], gold: &[Vec<usize>]) -> Recall {
    let mut hits = [0usize; 3];
    let mut precise = 0usize;
    for (query, gold) in queries.iter().zip(gold) {
        let best = top(query, candidates, 10);
        for (hits, within) in hits.iter_mut().zip([1, 5, 10]) {
            *hits += usize::from(best.iter().take(within).any(|candidate| gold.contains(candidate)));
        }
        precise += best.iter().take(5).filter(|candidate| gold.contains(candidate)).count();
    }
    let percent = |count: usize, of: usize| if of == 0 { 0.0 } else { 100.0 * count as f64 / of as f64 };
    let [r1, r5, r10] = hits.map(|count| percent(count, queries.len()));
    Recall {
        r1,
        r5,
        r10,
        mean_recall: (r1 + r5 + r10) / 3.0,
        precision5: percent(precise, 5 * queries.len()),
        queries: queries.len(),
        candidates: candidates.len(),
    }
}

/// Indexes of the `count` candidates with the highest dot product, best first.
fn top(query: &[f32], candidates: &[Vec<f32>], count: usize) -> Vec<usize> {
    let mut scored: Vec<(f32, usize)> = candidates
        .iter()
        .enumerate()
        .map(|(index, candidate)| (query.iter().zip(candidate).map(|(left, right)| left * right).sum(), index))
        .collect();
    let better = |left: &(f32, usize), right: &(f32, usize)| right.0.total_cmp(&left.0).then(left.1.cmp(&right.1));
    if scored.len() > count {
        scored.select_nth_unstable_by(count, better);
        scored.truncate(count);
    }
    scored.sort_unstable_by(better);
    scored.into_iter().map(|(_, index)| index).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unit(angle: f32) -> Vec<f32> {
        vec![angle.cos(), angle.sin()]
    }

    #[test]
    fn any_gold_within_k_is_a_hit_and_figures_are_percentages() {
        // Candidates at growing angles: the rank of candidate i for the query at angle 0 is i + 1.
        let candidates = (0..20).map(|index| unit(index as f32 * 0.1)).collect::<Vec<_>>();
        let queries = vec![unit(0.0); 4];
        let gold = vec![vec![0], vec![4], vec![19, 9], vec![10]];
        let figures = recall(&queries, &candidates, &gold);
        assert_eq!((figures.r1, figures.r5, figures.r10), (25.0, 50.0, 75.0));
        assert_eq!(figures.mean_recall, 50.0);
        assert_eq!(figures.precision5, 10.0);
        assert_eq!((figures.queries, figures.candidates), (4, 20));
    }

    #[test]
    fn equal_scores_keep_the_given_order() {
        let same = vec![unit(0.0); 3];
        assert_eq!(top(&unit(0.0), &same, 2), [0, 1]);
    }
}
