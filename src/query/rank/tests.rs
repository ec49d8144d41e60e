use std::time::Duration;

use chrono::TimeDelta;
use proptest::prelude::*;
use serde_json::{Map, Value};

use super::*;

fn hit(id: u128, score: f32) -> Hit {
    Hit { id: Uuid::from_u128(id), score, payload: Map::new(), image: None }
}

fn hits(scores: &[(u128, f32)]) -> Vec<Hit> {
    scores.iter().map(|(id, score)| hit(*id, *score)).collect()
}

fn options(wanted: usize) -> Options {
    Options {
        logit_scale: 20.0,
        transform: Transform::None,
        fusion: Fusion::Rrf,
        freshness: None,
        thresholds: Thresholds::default(),
        fold: None,
        wanted,
    }
}

fn single(scores: &[(u128, f32)], options: Options) -> Vec<Ranked> {
    let mut ranker = Ranker::new(options, None);
    ranker.add(vec![(VectorName::Image, hits(scores))]);
    ranker.finish(0)
}

fn fused_with(image: Vec<Hit>, caption: Vec<Hit>, options: Options) -> Vec<Ranked> {
    let mut ranker = Ranker::new(options, None);
    ranker.add(vec![(VectorName::Image, image), (VectorName::Caption, caption)]);
    ranker.finish(0)
}

fn fused(image: Vec<Hit>, caption: Vec<Hit>, wanted: usize) -> Vec<Ranked> {
    fused_with(image, caption, options(wanted))
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

/// Every way of ranking, with a threshold, pictures on a circle and times.
fn any_options() -> impl Strategy<Value = Options> {
    let transform = proptest::sample::select(Transform::NAMES.iter().map(|(_, it)| *it).collect::<Vec<_>>());
    let fusion =
        prop_oneof![Just(Fusion::Rrf), (0.0f64..=1.0).prop_map(|image_weight| Fusion::Weighted { image_weight })];
    let freshness = proptest::option::of((1u64..1_000_000, 0.0f64..=1.0));
    let threshold = || {
        proptest::option::of(
            (-0.5f32..0.5, any::<bool>())
                .prop_map(|(least, each)| if each { Threshold::Each(least) } else { Threshold::Best(least) }),
        )
    };
    let fold = proptest::option::of(0.9f32..1.0);
    (transform, fusion, freshness, (threshold(), threshold()), fold).prop_map(
        |(transform, fusion, freshness, (image, caption), fold)| Options {
            transform,
            fusion,
            freshness: freshness.map(|(half_life, weight)| {
                (Freshness { half_life: Duration::from_secs(half_life), weight }, DateTime::UNIX_EPOCH)
            }),
            thresholds: Thresholds { image, caption },
            fold,
            ..options(usize::MAX)
        },
    )
}

/// Posts as they are stored, each with a cosine to a query for both targets, some without a picture or a time.
type Stored = Vec<(f32, f32, Option<f32>, Option<i64>)>;

fn stored() -> impl Strategy<Value = Stored> {
    let post =
        (-1.0f32..1.0, -1.0f32..1.0, proptest::option::of(0.0f32..3.0), proptest::option::of(-500_000i64..1_000));
    proptest::collection::vec(post, 0..60)
}

/// What a store gives: the best `limit` of one target.
fn search(stored: &Stored, using: VectorName, limit: usize) -> Vec<Hit> {
    let mut found: Vec<Hit> = stored
        .iter()
        .enumerate()
        .filter(|(_, post)| using == VectorName::Caption || post.2.is_some())
        .map(|(index, (image, caption, angle, time))| Hit {
            id: Uuid::from_u128(index as u128),
            score: if using == VectorName::Image { *image } else { *caption },
            payload: time
                .map(|time| {
                    let time = DateTime::UNIX_EPOCH + TimeDelta::seconds(time);
                    ("created_at".to_owned(), Value::from(time.to_rfc3339()))
                })
                .into_iter()
                .collect(),
            image: angle.map(|angle| vec![angle.cos(), angle.sin()]),
        })
        .collect();
    found.sort_by(|left, right| right.score.total_cmp(&left.score));
    found.truncate(limit);
    found
}

/// A page as the service makes it, from blocks of 4, 16, 64 candidates.
fn page(stored: &Stored, targets: &[VectorName], options: &Options, offset: usize, top_k: usize) -> Vec<Ranked> {
    let mut ranker = Ranker::new(Options { wanted: offset + top_k, ..options.clone() }, None);
    for limit in [4, 16, 64] {
        ranker.add(targets.iter().map(|using| (*using, search(stored, *using, limit))).collect());
        if ranker.is_full() {
            break;
        }
    }
    ranker.finish(offset)
}

proptest! {
    #[test]
    fn softmax_is_a_distribution_that_keeps_the_order(
        scores in proptest::collection::vec(-1.0f64..1.0, 1..200), logit_scale in 1.0f32..1000.0,
    ) {
        let softmax = Softmax::over(scores.iter().copied(), logit_scale);
        let probabilities: Vec<f64> = scores.iter().map(|score| softmax.share(*score)).collect();
        prop_assert!((probabilities.iter().sum::<f64>() - 1.0).abs() < 1e-9);
        for (left, right) in scores.iter().zip(&probabilities) {
            prop_assert!(right.is_finite() && *right >= 0.0);
            for (other, probability) in scores.iter().zip(&probabilities) {
                prop_assert!(left <= other || right >= probability);
            }
        }
    }

    #[test]
    fn fused_probabilities_sum_to_one_over_the_union(
        image in ranking(), caption in ranking(), mut options in any_options(),
    ) {
        (options.fold, options.thresholds) = (None, Thresholds::default());
        let rankings = [&image, &caption].iter().filter(|hits| !hits.is_empty()).count();
        let all = fused_with(image, caption, options);
        let total: f64 = all.iter().map(|post| post.probability).sum();
        // An empty ranking has nothing to share: its half is missing.
        prop_assert!((total - rankings as f64 / 2.0).abs() < 1e-9, "{total}");
    }

    #[test]
    fn a_post_ahead_in_both_rankings_is_ahead_in_the_fusion(
        image in ranking(), caption in ranking(), image_weight in 0.01f64..0.99,
    ) {
        let rank = |hits: &[Hit], id| hits.iter().position(|hit| hit.id == id).unwrap_or(usize::MAX);
        for fusion in [Fusion::Rrf, Fusion::Weighted { image_weight }] {
            let all = fused_with(image.clone(), caption.clone(), Options { fusion, ..options(usize::MAX) });
            for (index, first) in all.iter().enumerate() {
                for second in &all[index + 1..] {
                    prop_assert!(
                        !(rank(&image, second.id) < rank(&image, first.id)
                            && rank(&caption, second.id) < rank(&caption, first.id))
                    );
                }
            }
        }
    }

    #[test]
    fn fusion_is_the_same_each_time_and_holds_each_post_once(
        image in ranking(), caption in ranking(), options in any_options(),
    ) {
        let once = fused_with(image.clone(), caption.clone(), options.clone());
        prop_assert_eq!(&once, &fused_with(image, caption, options));
        let distinct: std::collections::BTreeSet<u128> = ids(&once).into_iter().collect();
        prop_assert_eq!(distinct.len(), once.len());
    }

    #[test]
    fn pages_are_cuts_of_one_list(
        stored in stored(), options in any_options(), both in any::<bool>(), sizes in proptest::collection::vec(1usize..9, 1..9),
    ) {
        let targets = if both { &[VectorName::Image, VectorName::Caption][..] } else { &[VectorName::Caption][..] };
        let whole = page(&stored, targets, &options, 0, 100);
        let (mut turned, mut offset) = (Vec::new(), 0);
        for size in sizes {
            turned.extend(page(&stored, targets, &options, offset, size));
            offset += size;
        }
        prop_assert_eq!(ids(&turned), &ids(&whole)[..offset.min(whole.len())]);
        for (turned, whole) in turned.iter().zip(&whole) {
            prop_assert!((turned.probability - whole.probability).abs() < 1e-12 && turned.score == whole.score);
        }
        // No post is told twice, and none is passed over.
        let told = whole.iter().flat_map(|post| std::iter::once(post.id).chain(post.folded_ids.iter().copied()));
        let told = told.collect::<Vec<_>>();
        prop_assert_eq!(told.iter().collect::<std::collections::BTreeSet<_>>().len(), told.len());
        if options.thresholds == Thresholds::default() {
            prop_assert_eq!(whole.iter().map(|post| 1 + post.folded).sum::<usize>(), stored.len());
        }
    }

    #[test]
    fn hits_are_the_posts_that_pass_a_threshold(
        stored in stored(), options in any_options(), least in (-0.5f32..0.5, -0.5f32..0.5), both in any::<bool>(),
    ) {
        let thresholds = Thresholds { image: Some(Threshold::Each(least.0)), caption: Some(Threshold::Each(least.1)) };
        let options = Options { fold: None, thresholds, ..options };
        let targets = if both { &[VectorName::Image, VectorName::Caption][..] } else { &[VectorName::Caption][..] };
        let found = page(&stored, targets, &options, 0, 100);
        let expected = stored.iter().enumerate().filter(|(_, post)| {
            (both && post.2.is_some() && post.0 >= least.0) || post.1 >= least.1
        });
        let expected = expected.map(|(index, _)| index as u128).collect::<std::collections::BTreeSet<_>>();
        prop_assert_eq!(ids(&found).into_iter().collect::<std::collections::BTreeSet<_>>(), expected);
        for post in found {
            let threshold = options.thresholds.of(post.matched).expect("one is set");
            prop_assert!(post.score >= threshold.cosine());
        }
    }

    #[test]
    fn where_the_best_does_not_fit_nothing_does(stored in stored(), options in any_options(), least in -0.5f32..0.5) {
        let thresholds = Thresholds { image: Some(Threshold::Best(least)), caption: Some(Threshold::Best(0.9)) };
        let options = Options { fold: None, thresholds, ..options };
        let best = |using| search(&stored, using, 1).first().map(|hit| hit.score);
        let fits = best(VectorName::Image) >= Some(least);
        let found = page(&stored, &[VectorName::Image], &options, 0, 100);
        let pictures = stored.iter().filter(|post| post.2.is_some()).count();
        prop_assert_eq!(found.len(), if fits { pictures } else { 0 });
        // A ranking in which nothing fits adds nothing to the other.
        let both = page(&stored, &[VectorName::Image, VectorName::Caption], &options, 0, 100);
        let captions_fit = best(VectorName::Caption) >= Some(0.9);
        prop_assert!(captions_fit || options.freshness.is_some() || ids(&both) == ids(&found));
    }
}

#[test]
fn probability_is_over_all_candidates_and_not_over_the_hits_shown() {
    let ranked = single(&[(1, 0.5), (2, 0.5), (3, 0.5), (4, 0.5)], options(2));
    assert_eq!(ids(&ranked), [1, 2]);
    assert!(ranked.iter().all(|post| (post.probability - 0.25).abs() < 1e-12), "{ranked:?}");
    let thresholds = Thresholds { image: Some(Threshold::Each(0.4)), caption: None };
    let few = single(&[(1, 0.5), (2, 0.3)], Options { thresholds, ..options(5) });
    assert!(few.len() == 1 && few[0].probability < 0.99, "a threshold changes no probability: {few:?}");
}

#[test]
fn softmax_follows_its_formula() {
    let softmax = Softmax::over([0.30, 0.28].into_iter(), 100.0);
    let expected = 1.0 / (1.0 + (-2.0f64).exp());
    assert!((softmax.share(0.30) - expected).abs() < 1e-6, "{softmax:?}");
}

#[test]
fn fusion_is_by_rank_and_the_score_names_its_vector() {
    // Post 2 is second in both (2/62); 1 and 3 are first in one only (1/61).
    let ranked = fused(hits(&[(1, 0.3), (2, 0.2)]), hits(&[(3, 0.9), (2, 0.8)]), 5);
    assert_eq!(ids(&ranked)[0], 2);
    assert_eq!((ranked[0].matched, ranked[0].score), (VectorName::Image, 0.2));
    let third = ranked.iter().find(|post| post.id == Uuid::from_u128(3)).expect("post 3 is there");
    assert_eq!((third.matched, third.score), (VectorName::Caption, 0.9));
}

#[test]
fn the_weighted_sum_follows_its_formula() {
    let (image, caption) = ([(1, 0.30), (2, 0.25), (3, 0.20)], [(3, 0.90), (2, 0.60), (1, 0.50)]);
    let order = |image_weight| {
        let options = Options { fusion: Fusion::Weighted { image_weight }, ..options(5) };
        ids(&fused_with(hits(&image), hits(&caption), options))
    };
    // Shares: of pictures 0.665, 0.245, 0.090 (posts 1, 2, 3), of captions 0.0003, 0.0025, 0.9972.
    assert_eq!(order(1.0), [1, 2, 3]);
    assert_eq!(order(0.0), [3, 2, 1]);
    // 0.333, 0.124, 0.544; then 0.599, 0.221, 0.181.
    assert_eq!(order(0.5), [3, 1, 2]);
    assert_eq!(order(0.9), [1, 2, 3]);
}

#[test]
fn newer_posts_pass_older_ones_by_the_weight_of_freshness() {
    let now = DateTime::UNIX_EPOCH + TimeDelta::days(100);
    let post = |id, score, days_old: Option<i64>| {
        let mut hit = hit(id, score);
        let time = days_old.map(|days| Value::from((now - TimeDelta::days(days)).to_rfc3339()));
        hit.payload.extend(time.map(|time| ("created_at".to_owned(), time)));
        hit
    };
    // Relevance 1, 0.9, 0.5, 0.5, 0; the last one comes from the future.
    let posts = [
        post(1, 0.40, Some(9)),
        post(2, 0.39, Some(1)),
        post(3, 0.35, Some(2)),
        post(4, 0.35, None),
        post(5, 0.30, Some(-50)),
    ];
    let order = |weight| {
        let freshness = Freshness { half_life: Duration::from_hours(24), weight };
        let mut ranker = Ranker::new(Options { freshness: Some((freshness, now)), ..options(5) }, None);
        ranker.add(vec![(VectorName::Image, posts.to_vec())]);
        ids(&ranker.finish(0))
    };
    assert_eq!(order(0.0), [1, 2, 3, 4, 5]);
    // 2: 0.8 x 0.9 + 0.2 x 0.5 = 0.82 passes 1: 0.8 + 0.2 / 512; 3: 0.4 + 0.2 x 0.25 stays before 4: 0.4.
    assert_eq!(order(0.2), [2, 1, 3, 4, 5]);
    // By time alone; the future counts as now, and no time is the oldest.
    assert_eq!(order(1.0), [5, 2, 3, 1, 4]);
}

#[test]
fn a_post_searched_by_is_no_hit_of_its_own() {
    let mut ranker = Ranker::new(options(5), Some(Uuid::from_u128(2)));
    ranker.add(vec![(VectorName::Image, hits(&[(2, 1.0), (1, 0.5)]))]);
    assert_eq!((ranker.candidates(), ids(&ranker.finish(0))), (1, vec![1]));
}
