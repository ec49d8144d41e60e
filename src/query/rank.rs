//! From the store's hits to the answer's order and numbers; pure.
//!
//! `score` is always one cosine, `probability` always a softmax of logit_scale x cosine:
//!
//! - target `image` or `caption`: candidates are the best `query.candidates` posts (at least `top_k`) that pass the
//!   filter; the softmax runs over their cosines.
//! - target `both`: each of the two rankings has its candidates and its softmax. The order is reciprocal rank fusion
//!   (Cormack, Clarke and Buettcher, 2009): a post's worth is the sum over both rankings of 1 / (60 + rank). The
//!   cosines of the two are never compared: pictures and texts lie apart in CLIP's space, so a caption's cosine with a
//!   text is greater than any picture's. `score` is the cosine of the ranking in which the post stands higher (`image`
//!   where they are equal), and `probability` the mean of the post's two softmax values, 0 where it is not a candidate:
//!   it sums to 1 over the union of the candidates.

use std::collections::HashMap;

use serde_json::{Map, Value};
use uuid::Uuid;

use crate::store::{Hit, VectorName};

/// The constant of reciprocal rank fusion; 60 is the value of its authors, in use ever since.
const FUSION_CONSTANT: f64 = 60.0;

/// The best posts, and among how many they were found.
#[derive(Debug, Clone, PartialEq)]
pub struct Ranking {
    /// Number of distinct candidates over which the probabilities sum to 1.
    pub candidates: usize,
    /// Best first.
    pub posts: Vec<Ranked>,
}

/// A post of the answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Ranked {
    /// The point.
    pub id: Uuid,
    /// Cosine similarity between the query and the post's vector `matched`, -1 to 1.
    pub score: f32,
    /// Which of the post's vectors `score` speaks of.
    pub matched: VectorName,
    /// Share of this post among the candidates, 0 to 1; see the module's text.
    pub probability: f64,
    /// The stored payload.
    pub payload: Map<String, Value>,
}

/// Softmax of `logit_scale * score`, in f64, with the greatest logit subtracted first so that nothing overflows.
pub fn softmax(scores: &[f32], logit_scale: f32) -> Vec<f64> {
    let logits: Vec<f64> = scores.iter().map(|score| f64::from(*score) * f64::from(logit_scale)).collect();
    let greatest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let weights: Vec<f64> = logits.iter().map(|logit| (logit - greatest).exp()).collect();
    let total: f64 = weights.iter().sum();
    weights.into_iter().map(|weight| weight / total).collect()
}

/// The best `top_k` of one ranking; `hits` are the candidates, best first.
pub fn single(hits: Vec<Hit>, using: VectorName, logit_scale: f32, top_k: usize) -> Ranking {
    let candidates = hits.len();
    let mut posts = with_probability(hits, using, logit_scale);
    posts.truncate(top_k);
    Ranking { candidates, posts }
}

/// The best `top_k` of two rankings, fused; both are candidates, best first.
pub fn fused(image: Vec<Hit>, caption: Vec<Hit>, logit_scale: f32, top_k: usize) -> Ranking {
    struct Entry {
        worth: f64,
        best_rank: usize,
        post: Ranked,
    }
    let mut entries: HashMap<Uuid, Entry> = HashMap::with_capacity(image.len() + caption.len());
    for (hits, using) in [(image, VectorName::Image), (caption, VectorName::Caption)] {
        for (rank, mut post) in with_probability(hits, using, logit_scale).into_iter().enumerate() {
            post.probability /= 2.0;
            let worth = 1.0 / (FUSION_CONSTANT + (rank + 1) as f64);
            match entries.get_mut(&post.id) {
                Some(entry) => {
                    entry.worth += worth;
                    entry.post.probability += post.probability;
                    if rank < entry.best_rank {
                        entry.best_rank = rank;
                        entry.post.score = post.score;
                        entry.post.matched = post.matched;
                    }
                }
                None => {
                    entries.insert(post.id, Entry { worth, best_rank: rank, post });
                }
            }
        }
    }
    let mut entries: Vec<Entry> = entries.into_values().collect();
    // Ties are common (the second of one ranking against the second of the other): without the further keys the order
    // would change from call to call with the map's seed.
    entries.sort_by(|left, right| {
        right
            .worth
            .total_cmp(&left.worth)
            .then_with(|| right.post.probability.total_cmp(&left.post.probability))
            .then_with(|| left.post.id.cmp(&right.post.id))
    });
    let candidates = entries.len();
    entries.truncate(top_k);
    Ranking { candidates, posts: entries.into_iter().map(|entry| entry.post).collect() }
}

fn with_probability(hits: Vec<Hit>, using: VectorName, logit_scale: f32) -> Vec<Ranked> {
    let scores: Vec<f32> = hits.iter().map(|hit| hit.score).collect();
    let probabilities = softmax(&scores, logit_scale);
    hits.into_iter()
        .zip(probabilities)
        .map(|(hit, probability)| Ranked {
            id: hit.id,
            score: hit.score,
            matched: using,
            probability,
            payload: hit.payload,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn hits(scores: &[(u128, f32)]) -> Vec<Hit> {
        scores.iter().map(|(id, score)| Hit { id: Uuid::from_u128(*id), score: *score, payload: Map::new() }).collect()
    }

    fn ids(ranked: &[Ranked]) -> Vec<u128> {
        ranked.iter().map(|post| post.id.as_u128()).collect()
    }

    /// A ranking as a store gives it: distinct ids, scores falling.
    fn ranking() -> impl Strategy<Value = Vec<Hit>> {
        proptest::collection::btree_map(0u128..40, -1.0f32..1.0, 0..30).prop_map(|posts| {
            let mut posts: Vec<(u128, f32)> = posts.into_iter().collect();
            posts.sort_by(|left, right| right.1.total_cmp(&left.1));
            hits(&posts)
        })
    }

    proptest! {
        #[test]
        fn softmax_is_a_distribution_that_keeps_the_order(
            scores in proptest::collection::vec(-1.0f32..1.0, 1..200), logit_scale in 1.0f32..1000.0,
        ) {
            let probabilities = softmax(&scores, logit_scale);
            prop_assert!((probabilities.iter().sum::<f64>() - 1.0).abs() < 1e-9);
            for (left, right) in scores.iter().zip(&probabilities) {
                prop_assert!(right.is_finite() && *right >= 0.0);
                for (other, probability) in scores.iter().zip(&probabilities) {
                    prop_assert!(left <= other || right >= probability);
                }
            }
        }

        #[test]
        fn fused_probabilities_sum_to_one_over_the_union(image in ranking(), caption in ranking()) {
            let rankings = [&image, &caption].iter().filter(|hits| !hits.is_empty()).count();
            let all = fused(image, caption, 20.0, usize::MAX).posts;
            let total: f64 = all.iter().map(|post| post.probability).sum();
            // An empty ranking has nothing to share: its half is missing.
            prop_assert!((total - rankings as f64 / 2.0).abs() < 1e-9, "{total}");
        }

        #[test]
        fn a_post_ahead_in_both_rankings_is_ahead_in_the_fusion(image in ranking(), caption in ranking()) {
            let rank = |hits: &[Hit], id| hits.iter().position(|hit| hit.id == id).unwrap_or(usize::MAX);
            let all = fused(image.clone(), caption.clone(), 20.0, usize::MAX).posts;
            for (index, first) in all.iter().enumerate() {
                for second in &all[index + 1..] {
                    prop_assert!(
                        !(rank(&image, second.id) < rank(&image, first.id)
                            && rank(&caption, second.id) < rank(&caption, first.id))
                    );
                }
            }
        }

        #[test]
        fn fusion_is_the_same_each_time_and_holds_each_post_once(image in ranking(), caption in ranking()) {
            let once = fused(image.clone(), caption.clone(), 20.0, 10);
            prop_assert_eq!(&once, &fused(image, caption, 20.0, 10));
            let distinct: std::collections::BTreeSet<u128> = ids(&once.posts).into_iter().collect();
            prop_assert_eq!(distinct.len(), once.posts.len());
        }
    }

    #[test]
    fn probability_is_over_all_candidates_and_not_over_the_hits_shown() {
        let ranked = single(hits(&[(1, 0.5), (2, 0.5), (3, 0.5), (4, 0.5)]), VectorName::Image, 100.0, 2).posts;
        assert_eq!(ids(&ranked), [1, 2]);
        assert!(ranked.iter().all(|post| (post.probability - 0.25).abs() < 1e-12), "{ranked:?}");
    }

    #[test]
    fn softmax_follows_its_formula() {
        let probabilities = softmax(&[0.30, 0.28], 100.0);
        let expected = 1.0 / (1.0 + (-2.0f64).exp());
        assert!((probabilities[0] - expected).abs() < 1e-6, "{probabilities:?}");
        assert!(softmax(&[], 100.0).is_empty());
    }

    #[test]
    fn fusion_is_by_rank_and_the_score_names_its_vector() {
        // Post 2 is second in both (2/62); 1 and 3 are first in one only (1/61).
        let ranked = fused(hits(&[(1, 0.3), (2, 0.2)]), hits(&[(3, 0.9), (2, 0.8)]), 1.0, 5).posts;
        assert_eq!(ids(&ranked)[0], 2);
        assert_eq!((ranked[0].matched, ranked[0].score), (VectorName::Image, 0.2));
        let third = ranked.iter().find(|post| post.id == Uuid::from_u128(3)).expect("post 3 is there");
        assert_eq!((third.matched, third.score), (VectorName::Caption, 0.9));
    }
}
