//! What a transform of similarities does: to probabilities, and to fused rankings. A transform keeps the order of one ranking,
//! and so its recall. Pure; ranks with the query worker's own code.

use ndarray::{ArrayView2, Axis};
use serde::Serialize;
use serde_json::Map;
use uuid::Uuid;

use crate::eval::rank::{Ranked, rank};
use crate::query::rank::fusion::Fusion;
use crate::query::rank::transform::Transform;
use crate::query::rank::{Options, Ranker, Thresholds};
use crate::store::{Hit, VectorName};

/// Bins of the calibration error.
const BINS: usize = 10;

/// What is searched, and with what.
pub struct Posts<'a> {
    /// [topics, dimension], L2-normalised.
    pub topics: ArrayView2<'a, f32>,
    /// [posts, dimension], L2-normalised: their pictures.
    pub images: ArrayView2<'a, f32>,
    /// [captions, dimension], L2-normalised, and the posts that they belong to.
    pub captions: Option<(ArrayView2<'a, f32>, &'a [usize])>,
    /// For each topic, the posts that it means.
    pub golds: &'a [Vec<usize>],
    /// The factor before the softmax.
    pub logit_scale: f32,
    /// Candidates of a ranking.
    pub candidates: usize,
}

/// What one transform does. Figures in percent.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Effect {
    /// The transform.
    pub transform: Transform,
    /// Recall@1, @5 and @10 of the pictures' ranking.
    pub image: [f64; 3],
    /// Mean probability of the first post.
    pub confidence: f64,
    /// Expected calibration error of that probability (Guo et al., 2017; ten bins of equal width): how far it lies from
    /// the share of topics whose first post is right.
    pub calibration_error: f64,
    /// Recall of both rankings fused by rank; without captions absent.
    pub rrf: Option<[f64; 3]>,
    /// Recall of both rankings fused by the weighted sum.
    pub weighted: Option<[f64; 3]>,
}

/// The effects of some transforms; `image_weight`: of the weighted sum.
pub fn effects(posts: &Posts<'_>, transforms: &[Transform], image_weight: f64) -> Vec<Effect> {
    let images = rank(posts.topics, posts.images, posts.candidates);
    let captions = posts.captions.map(|(vectors, owners)| (rank(posts.topics, vectors, posts.candidates), owners));
    let effect = |transform: &Transform| {
        let ranked = |fusion: Fusion, both: bool| -> Vec<Vec<(usize, f64)>> {
            let of_topic = |topic: usize| {
                let mut lists = vec![(VectorName::Image, hits(&images[topic], |index| index))];
                if let (true, Some((ranked, owners))) = (both, &captions) {
                    lists.push((VectorName::Caption, hits(&ranked[topic], |index| owners[index])));
                }
                order(posts, *transform, fusion, lists)
            };
            (0..posts.topics.len_of(Axis(0))).map(of_topic).collect()
        };
        let by_image = ranked(Fusion::Rrf, false);
        let firsts = by_image.iter().zip(posts.golds).filter_map(|(ranked, gold)| {
            let (post, probability) = ranked.first()?;
            Some((*probability, gold.contains(post)))
        });
        let firsts = firsts.collect::<Vec<_>>();
        let fused = |fusion| captions.is_some().then(|| recall(&ranked(fusion, true), posts.golds));
        Effect {
            transform: *transform,
            image: recall(&by_image, posts.golds),
            confidence: 100.0 * firsts.iter().map(|(probability, _)| probability).sum::<f64>()
                / firsts.len().max(1) as f64,
            calibration_error: 100.0 * calibration_error(&firsts),
            rrf: fused(Fusion::Rrf),
            weighted: fused(Fusion::Weighted { image_weight }),
        }
    };
    transforms.iter().map(effect).collect()
}

fn hits(ranked: &Ranked, post: impl Fn(usize) -> usize) -> Vec<Hit> {
    let hit = |hit: &crate::eval::rank::Hit| Hit {
        id: Uuid::from_u128(post(hit.index) as u128),
        score: hit.score,
        payload: Map::new(),
        image: None,
    };
    ranked.hits.iter().map(hit).collect()
}

/// The ten best posts with their probabilities.
fn order(
    posts: &Posts<'_>,
    transform: Transform,
    fusion: Fusion,
    lists: Vec<(VectorName, Vec<Hit>)>,
) -> Vec<(usize, f64)> {
    let options = Options {
        logit_scale: posts.logit_scale,
        transform,
        fusion,
        freshness: None,
        thresholds: Thresholds::default(),
        fold: None,
        wanted: 10,
    };
    let mut ranker = Ranker::new(options, None);
    ranker.add(lists);
    ranker.finish(0).into_iter().map(|post| (post.id.as_u128() as usize, post.probability)).collect()
}

/// At 1, 5 and 10, in percent.
fn recall(ranked: &[Vec<(usize, f64)>], golds: &[Vec<usize>]) -> [f64; 3] {
    [1, 5, 10].map(|depth| {
        let found = |(ranked, gold): &(&Vec<(usize, f64)>, &Vec<usize>)| {
            ranked.iter().take(depth).any(|(post, _)| gold.contains(post))
        };
        100.0 * ranked.iter().zip(golds).filter(found).count() as f64 / ranked.len().max(1) as f64
    })
}

/// Of (probability, whether it was right); 0 to 1.
fn calibration_error(firsts: &[(f64, bool)]) -> f64 {
    let bin = |probability: f64| ((probability * BINS as f64) as usize).min(BINS - 1);
    let of_bin = |wanted: usize| {
        let (mut confidence, mut right) = (0.0, 0.0);
        for (probability, is_right) in firsts.iter().filter(|(probability, _)| bin(*probability) == wanted) {
            confidence += probability;
            right += f64::from(u8::from(*is_right));
        }
        f64::abs(confidence - right)
    };
    (0..BINS).map(of_bin).sum::<f64>() / firsts.len().max(1) as f64
}

#[cfg(test)]
mod tests {
    use ndarray::array;

    use super::*;

    #[test]
    fn calibration_error_is_the_distance_of_confidence_and_truth() {
        assert!((calibration_error(&[(0.75, true), (0.75, true), (0.75, true), (0.75, false)])).abs() < 1e-12);
        assert!((calibration_error(&[(0.95, false), (0.15, true)]) - (0.95 + 0.85) / 2.0).abs() < 1e-12);
        assert_eq!(calibration_error(&[]), 0.0);
    }

    #[test]
    fn one_ranking_keeps_its_recall_and_the_weighted_sum_joins_both() {
        let topics = array![[1.0f32, 0.0]];
        let (images, captions) = (array![[0.9f32, 0.1], [0.8, 0.2], [0.1, 0.9]], array![[0.2f32, 0.8], [0.9, 0.1]]);
        let posts = Posts {
            topics: topics.view(),
            images: images.view(),
            captions: Some((captions.view(), &[0, 1])),
            golds: &[vec![1]],
            logit_scale: 10.0,
            candidates: 10,
        };
        let all = Transform::NAMES.iter().map(|(_, transform)| *transform).collect::<Vec<_>>();
        for effect in effects(&posts, &all, 0.5) {
            assert_eq!(effect.image, [0.0, 100.0, 100.0]);
            assert_eq!(effect.weighted, Some([100.0; 3]), "{effect:?}");
        }
    }
}
