//! Exact ranking: all candidates for each query, by dot product, block by block. Pure; memory is a block of scores for
//! each thread and the best hits of each query.

use std::thread;

use ndarray::linalg::general_mat_mul;
use ndarray::{Array2, ArrayView1, ArrayView2, s};

/// Candidates in one matrix product, at most, where the caller cuts the blocks.
pub const CANDIDATE_BLOCK: usize = 4096;

/// Queries in one matrix product: a block of scores is 2 MiB, which a core's cache holds.
const QUERY_BLOCK: usize = 128;

/// A candidate that was found.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Hit {
    /// Its place among all candidates.
    pub index: usize,
    /// The dot product; of L2-normalised vectors the cosine.
    pub score: f32,
}

/// What is known of one query after the candidates seen so far.
#[derive(Debug, Clone, Default)]
pub struct Ranked {
    /// The best candidates, best first; of equal scores, the one that was given first.
    pub hits: Vec<Hit>,
    /// The largest score, and the sum of exp(logit_scale x (score - largest)) over all candidates.
    pub(super) largest: f32,
    pub(super) sum: f64,
}

impl Ranked {
    /// The softmax of logit_scale x score over *all* candidates, for one of the hits. Meaningful only where the ranker
    /// was given a `logit_scale`.
    pub fn probability(&self, hit: &Hit, logit_scale: f32) -> f64 {
        f64::from(logit_scale * (hit.score - self.largest)).exp() / self.sum
    }

    fn see(&mut self, scores: ArrayView1<f32>, first: usize, count: usize) {
        for (offset, &score) in scores.iter().enumerate() {
            // `>`: an equal one that came earlier stays ahead, as Python's stable sort keeps it.
            if self.hits.len() < count || self.hits.last().is_some_and(|worst| score > worst.score) {
                let place = self.hits.partition_point(|hit| hit.score >= score);
                self.hits.truncate(count - 1);
                self.hits.insert(place, Hit { index: first + offset, score });
            }
        }
    }

    fn add_to_softmax(&mut self, scores: ArrayView1<f32>, logit_scale: f32) {
        let largest = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        if self.sum == 0.0 {
            self.largest = largest;
        } else if largest > self.largest {
            self.sum *= f64::from(logit_scale * (self.largest - largest)).exp();
            self.largest = largest;
        }
        self.sum += scores.iter().map(|score| f64::from((logit_scale * (score - self.largest)).exp())).sum::<f64>();
    }
}

/// Ranks candidates for a block of queries.
pub struct Ranker<'a> {
    queries: ArrayView2<'a, f32>,
    count: usize,
    logit_scale: Option<f32>,
    seen: usize,
    threads: usize,
    ranked: Vec<Ranked>,
}

impl<'a> Ranker<'a> {
    /// Keeps the `count` best candidates of each row of `queries` [queries, dimension]; with a `logit_scale`, also what
    /// the softmax over all candidates needs.
    ///
    /// # Panics
    /// Where `count` is zero.
    pub fn new(queries: ArrayView2<'a, f32>, count: usize, logit_scale: Option<f32>) -> Self {
        assert!(count > 0, "at least one hit is kept");
        let threads = thread::available_parallelism().map_or(1, usize::from);
        let ranked = vec![Ranked::default(); queries.nrows()];
        Self { queries, count, logit_scale, seen: 0, threads, ranked }
    }

    /// The next candidates [candidates, dimension], in their order. Blocks until they are ranked, on all cores.
    ///
    /// # Panics
    /// Where the dimension is not that of the queries.
    pub fn add(&mut self, candidates: ArrayView2<f32>) {
        let share = self.ranked.len().div_ceil(self.threads).max(1);
        let (queries, first, count, logit_scale) = (self.queries, self.seen, self.count, self.logit_scale);
        thread::scope(|scope| {
            for (part, ranked) in self.ranked.chunks_mut(share).enumerate() {
                scope.spawn(move || {
                    let mut scores = Array2::zeros((ranked.len().min(QUERY_BLOCK), candidates.nrows()));
                    for (block, ranked) in ranked.chunks_mut(QUERY_BLOCK).enumerate() {
                        let start = part * share + block * QUERY_BLOCK;
                        let queries = queries.slice(s![start..start + ranked.len(), ..]);
                        let mut scores = scores.slice_mut(s![..ranked.len(), ..]);
                        general_mat_mul(1.0, &queries, &candidates.t(), 0.0, &mut scores);
                        for (ranked, scores) in ranked.iter_mut().zip(scores.rows()) {
                            ranked.see(scores, first, count);
                            if let Some(logit_scale) = logit_scale {
                                ranked.add_to_softmax(scores, logit_scale);
                            }
                        }
                    }
                });
            }
        });
        self.seen += candidates.nrows();
    }

    /// One for each query, in order.
    pub fn finish(self) -> Vec<Ranked> {
        self.ranked
    }
}

/// The `count` best rows of `candidates` for each row of `queries`.
pub fn rank(queries: ArrayView2<f32>, candidates: ArrayView2<f32>, count: usize) -> Vec<Ranked> {
    let mut ranker = Ranker::new(queries, count, None);
    let mut start = 0;
    while start < candidates.nrows() {
        let end = candidates.nrows().min(start + CANDIDATE_BLOCK);
        ranker.add(candidates.slice(s![start..end, ..]));
        start = end;
    }
    ranker.finish()
}

#[cfg(test)]
mod tests {
    use ndarray::{Axis, array, concatenate};
    use proptest::prelude::*;

    use super::*;

    fn indexes(ranked: &Ranked) -> Vec<usize> {
        ranked.hits.iter().map(|hit| hit.index).collect()
    }

    #[test]
    fn equal_scores_keep_the_given_order_over_blocks_and_signs_of_zero() {
        let queries = array![[1.0f32, 0.0]];
        let block = array![[0.0f32, 1.0], [-0.0, 1.0], [0.5, 0.0], [0.5, 1.0]];
        let mut ranker = Ranker::new(queries.view(), 7, None);
        ranker.add(block.view());
        ranker.add(block.view());
        assert_eq!(indexes(&ranker.finish()[0]), [2, 3, 6, 7, 0, 1, 4]);
        assert_eq!(indexes(&rank(queries.view(), block.view(), 9)[0]), [2, 3, 0, 1], "fewer candidates than asked for");
    }

    /// Identical candidates must score identically wherever they stand: a product that treats the edges of the matrix
    /// in another order of summation would break ties at random.
    #[test]
    fn identical_candidates_tie_wherever_they_stand() {
        let mut state = 1u32;
        let mut random = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state as f32 / u32::MAX as f32 - 0.5
        };
        for dimension in [3, 128, 513] {
            let row = Array2::from_shape_simple_fn((1, dimension), &mut random);
            let queries = Array2::from_shape_simple_fn((131, dimension), &mut random);
            let candidates = concatenate(Axis(0), &vec![row.view(); 4099]).expect("same width");
            for ranked in rank(queries.view(), candidates.view(), 5000) {
                assert_eq!(indexes(&ranked), (0..4099).collect::<Vec<_>>());
            }
        }
    }

    proptest! {
        #[test]
        fn blocks_give_what_a_full_sort_gives(
            values in prop::collection::vec(-2i8..3, 3 * 40..3 * 41),
            cut in 1usize..39,
            count in 1usize..12,
        ) {
            // Small whole numbers: products are exact and ties are many.
            let all = Array2::from_shape_vec((40, 3), values.iter().take(120).map(|value| f32::from(*value)).collect())
                .expect("120 values");
            let (queries, candidates) = all.view().split_at(Axis(0), 5);
            let cut = cut.min(candidates.nrows());
            let mut ranker = Ranker::new(queries, count, Some(2.0));
            let (head, tail) = candidates.split_at(Axis(0), cut);
            ranker.add(head);
            ranker.add(tail);
            for (query, ranked) in queries.rows().into_iter().zip(ranker.finish()) {
                let scores = candidates.rows().into_iter().map(|row| row.dot(&query)).collect::<Vec<_>>();
                let mut order = (0..scores.len()).collect::<Vec<_>>();
                order.sort_by(|left, right| scores[*right].partial_cmp(&scores[*left]).expect("numbers"));
                order.truncate(count);
                prop_assert_eq!(indexes(&ranked), order);
                let total = scores.iter().map(|score| f64::from(2.0 * score).exp()).sum::<f64>();
                for hit in &ranked.hits {
                    let expected = f64::from(2.0 * hit.score).exp() / total;
                    prop_assert!((ranked.probability(hit, 2.0) - expected).abs() < 1e-6);
                }
            }
        }
    }
}
