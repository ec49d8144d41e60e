//! The vectors of all standing topics, and the product of a batch of posts with them. Pure.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::sync::Arc;

use ndarray::linalg::general_mat_mul;
use ndarray::{Array2, ArrayView2, s};

use crate::standing::registration::{Registration, Target};

/// Topics in one product: with 128 posts a block of scores is 512 KiB, which a core's cache holds.
const BLOCK: usize = 1024;

/// A post's vectors; L2-normalised.
#[derive(Debug, Clone, Copy, Default)]
pub struct Vectors<'a> {
    /// The picture's.
    pub image: Option<&'a [f32]>,
    /// The caption's.
    pub caption: Option<&'a [f32]>,
}

/// The least cosines of a match.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Thresholds {
    /// With a picture.
    pub image: f32,
    /// With a caption: texts are nearer to texts than pictures are.
    pub caption: f32,
}

/// A topic that a post matches.
#[derive(Debug, Clone, PartialEq)]
pub struct Found {
    /// The topic.
    pub topic: Arc<Registration>,
    /// The cosine.
    pub score: f32,
    /// The post's vector that it speaks of.
    pub matched: Matched,
}

/// One of a post's vectors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Matched {
    /// The picture.
    Image,
    /// The caption.
    Caption,
}

impl Matched {
    /// The name in matches and in answers.
    pub fn as_str(self) -> &'static str {
        match self {
            Matched::Image => "image",
            Matched::Caption => "caption",
        }
    }
}

/// What a post matches, best first, and how many more there were.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Matches {
    /// At most as many as were asked for.
    pub found: Vec<Found>,
    /// Matches beyond them.
    pub cut: usize,
}

/// The standing topics, ready to be compared with.
#[derive(Debug)]
pub struct Topics {
    image: Rows,
    caption: Rows,
}

impl Topics {
    /// None yet, for vectors of so many values.
    pub fn new(dimension: usize) -> Self {
        Self { image: Rows::new(dimension), caption: Rows::new(dimension) }
    }

    /// Puts a topic in, or in the place of the one with its id. `vector` has as many values as the others; `defaults` are for
    /// a topic without a least score of its own.
    pub fn insert(&mut self, topic: &Arc<Registration>, vector: &[f32], defaults: Thresholds) {
        self.remove(&topic.topic_id);
        if topic.target != Target::Caption {
            self.image.push(topic.clone(), vector, topic.min_score.unwrap_or(defaults.image));
        }
        if topic.target != Target::Image {
            self.caption.push(topic.clone(), vector, topic.min_score.unwrap_or(defaults.caption));
        }
    }

    /// Takes a topic out, where it is in.
    pub fn remove(&mut self, topic_id: &str) {
        self.image.remove(topic_id);
        self.caption.remove(topic_id);
    }

    /// Whether nothing can match.
    pub fn is_empty(&self) -> bool {
        self.image.topics.is_empty() && self.caption.topics.is_empty()
    }

    /// What each post matches: one product a kind of vector. A topic that both of a post's vectors match counts once, with
    /// the better one.
    pub fn compare(&self, posts: &[Vectors<'_>], most: usize) -> Vec<Matches> {
        let mut found = posts.iter().map(|_| Vec::new()).collect::<Vec<Vec<Found>>>();
        let of = |pick: fn(&Vectors<'_>) -> bool| (0..posts.len()).filter(|post| pick(&posts[*post])).collect();
        let with_image: Vec<usize> = of(|post| post.image.is_some());
        let with_caption: Vec<usize> = of(|post| post.caption.is_some());
        let vectors = with_image.iter().filter_map(|post| posts[*post].image);
        self.image.compare(vectors, |row, topic, score| {
            found[with_image[row]].push(Found { topic: topic.clone(), score, matched: Matched::Image });
        });
        let vectors = with_caption.iter().filter_map(|post| posts[*post].caption);
        self.caption.compare(vectors, |row, topic, score| {
            found[with_caption[row]].push(Found { topic: topic.clone(), score, matched: Matched::Caption });
        });
        found.into_iter().map(|found| best(found, most)).collect()
    }
}

fn best(mut found: Vec<Found>, most: usize) -> Matches {
    let by_id = |left: &Found, right: &Found| left.topic.topic_id.cmp(&right.topic.topic_id);
    let by_score = |left: &Found, right: &Found| right.score.total_cmp(&left.score);
    found.sort_unstable_by(|left, right| by_id(left, right).then_with(|| by_score(left, right)));
    found.dedup_by(|left, right| by_id(left, right) == Ordering::Equal);
    found.sort_by(by_score);
    let cut = found.len().saturating_sub(most);
    found.truncate(most);
    Matches { found, cut }
}

/// Topics that are compared with one kind of vector; a row each, in no order.
#[derive(Debug)]
struct Rows {
    dimension: usize,
    values: Vec<f32>,
    thresholds: Vec<f32>,
    topics: Vec<Arc<Registration>>,
    places: HashMap<String, usize>,
}

impl Rows {
    fn new(dimension: usize) -> Self {
        let (values, thresholds, topics) = (Vec::new(), Vec::new(), Vec::new());
        Self { dimension, values, thresholds, topics, places: HashMap::new() }
    }

    fn push(&mut self, topic: Arc<Registration>, vector: &[f32], threshold: f32) {
        assert_eq!(vector.len(), self.dimension, "one model gives vectors of one dimension. This is a bug.");
        self.places.insert(topic.topic_id.clone(), self.topics.len());
        self.values.extend_from_slice(vector);
        self.thresholds.push(threshold);
        self.topics.push(topic);
    }

    /// The last row takes the place of the one that goes.
    fn remove(&mut self, topic_id: &str) {
        let Some(place) = self.places.remove(topic_id) else { return };
        let last = self.topics.len() - 1;
        self.topics.swap_remove(place);
        self.thresholds.swap_remove(place);
        if place < last {
            self.values.copy_within(last * self.dimension.., place * self.dimension);
            self.places.insert(self.topics[place].topic_id.clone(), place);
        }
        self.values.truncate(last * self.dimension);
    }

    fn compare<'a>(
        &self,
        posts: impl Iterator<Item = &'a [f32]>,
        mut found: impl FnMut(usize, &Arc<Registration>, f32),
    ) {
        if self.topics.is_empty() {
            return;
        }
        let values = posts.flatten().copied().collect::<Vec<_>>();
        let rows = values.len() / self.dimension;
        if rows == 0 {
            return;
        }
        const WHOLE: &str = "rows are whole. This is a bug.";
        let posts = ArrayView2::from_shape((rows, self.dimension), &values).expect(WHOLE);
        let topics = ArrayView2::from_shape((self.topics.len(), self.dimension), &self.values).expect(WHOLE);
        let mut scores = Array2::zeros((rows, self.topics.len().min(BLOCK)));
        for first in (0..self.topics.len()).step_by(BLOCK) {
            let end = self.topics.len().min(first + BLOCK);
            let mut scores = scores.slice_mut(s![.., ..end - first]);
            general_mat_mul(1.0, &posts, &topics.slice(s![first..end, ..]).t(), 0.0, &mut scores);
            let thresholds = &self.thresholds[first..end];
            for (row, scores) in scores.rows().into_iter().enumerate() {
                for (column, (score, threshold)) in scores.iter().zip(thresholds).enumerate() {
                    if score >= threshold {
                        found(row, &self.topics[first + column], *score);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HALF: Thresholds = Thresholds { image: 0.5, caption: 0.5 };

    fn topic(id: &str, target: Target, min_score: Option<f32>) -> Arc<Registration> {
        let (topic_id, topic) = (id.to_owned(), id.to_owned());
        Arc::new(Registration { topic_id, topic, target, min_score, created_at: None })
    }

    fn ids(matches: &Matches) -> Vec<(&str, f32, &str)> {
        let found = matches.found.iter();
        found.map(|found| (found.topic.topic_id.as_str(), found.score, found.matched.as_str())).collect()
    }

    #[test]
    fn each_target_is_compared_with_its_own_vector_and_both_with_the_better_one() {
        let mut topics = Topics::new(2);
        for (id, target) in [("i", Target::Image), ("c", Target::Caption), ("b", Target::Both)] {
            topics.insert(&topic(id, target, None), &[1.0, 0.0], HALF);
        }
        let both = Vectors { image: Some(&[0.6, 0.8]), caption: Some(&[0.8, 0.6]) };
        let picture = Vectors { image: Some(&[1.0, 0.0]), caption: None };
        let neither = Vectors { image: Some(&[0.0, 1.0]), caption: None };
        let found = topics.compare(&[both, neither, picture, Vectors::default()], 9);
        assert_eq!(ids(&found[0]), [("b", 0.8, "caption"), ("c", 0.8, "caption"), ("i", 0.6, "image")]);
        assert_eq!(ids(&found[2]), [("b", 1.0, "image"), ("i", 1.0, "image")]);
        assert!(found[1].found.is_empty() && found[3].found.is_empty());
    }

    #[test]
    fn a_least_score_of_its_own_counts_instead_of_either_default() {
        let mut topics = Topics::new(1);
        let defaults = Thresholds { image: 0.3, caption: 0.8 };
        for (id, min_score) in [("default", None), ("strict", Some(0.9)), ("loose", Some(0.1))] {
            topics.insert(&topic(id, Target::Both, min_score), &[1.0], defaults);
        }
        let found = |image: f32, caption: f32| {
            let (image, caption) = ([image], [caption]);
            let found = topics.compare(&[Vectors { image: Some(&image), caption: Some(&caption) }], 9);
            let mut ids = ids(&found[0]).iter().map(|(id, ..)| (*id).to_owned()).collect::<Vec<_>>();
            ids.sort();
            ids
        };
        assert_eq!(found(0.2, 0.7), ["loose"]);
        assert_eq!(found(0.3, 0.7), ["default", "loose"]);
        assert_eq!(found(0.2, 0.8), ["default", "loose"]);
        assert_eq!(found(0.9, 0.0), ["default", "loose", "strict"]);
    }

    #[test]
    fn the_best_stay_and_the_others_are_counted() {
        let mut topics = Topics::new(2);
        for number in 0..5 {
            let score = 0.5 + 0.1 * number as f32;
            topics.insert(&topic(&number.to_string(), Target::Image, None), &[score, 0.0], HALF);
        }
        let found = topics.compare(&[Vectors { image: Some(&[1.0, 0.0]), caption: None }], 2);
        assert_eq!((ids(&found[0])[0].0, ids(&found[0])[1].0, found[0].cut), ("4", "3", 3));
    }

    proptest! {
        /// Whatever came and went before: exactly the topics that are in and reach their threshold.
        #[test]
        fn any_history_gives_what_comparing_one_by_one_gives(
            history in prop::collection::vec((0u8..12, prop::option::of((0u8..3, -2i8..3, -2i8..3, -4i8..5))), 0..60),
            posts in prop::collection::vec((prop::option::of((-2i8..3, -2i8..3)), prop::option::of((-2i8..3, -2i8..3))), 0..6),
        ) {
            let mut topics = Topics::new(2);
            let mut plain = std::collections::BTreeMap::new();
            for (id, change) in history {
                let id = id.to_string();
                match change {
                    None => {
                        topics.remove(&id);
                        plain.remove(&id);
                    }
                    Some((target, x, y, threshold)) => {
                        let target = [Target::Image, Target::Caption, Target::Both][target as usize];
                        let (vector, threshold) = ([f32::from(x), f32::from(y)], f32::from(threshold));
                        topics.insert(&topic(&id, target, Some(threshold)), &vector, HALF);
                        plain.insert(id, (target, vector, threshold));
                    }
                }
            }
            let pair = |pair: Option<(i8, i8)>| pair.map(|(x, y)| [f32::from(x), f32::from(y)]);
            let posts = posts.into_iter().map(|(image, caption)| (pair(image), pair(caption))).collect::<Vec<_>>();
            let vectors = |(image, caption): &'_ (Option<[f32; 2]>, Option<[f32; 2]>)| {
                (image.map(|image| image.to_vec()), caption.map(|caption| caption.to_vec()))
            };
            let owned = posts.iter().map(vectors).collect::<Vec<_>>();
            let views = owned.iter().map(|(image, caption)| Vectors { image: image.as_deref(), caption: caption.as_deref() });
            let found = topics.compare(&views.collect::<Vec<_>>(), usize::MAX);
            for ((image, caption), found) in posts.iter().zip(found) {
                let mut expected = Vec::new();
                for (id, (target, vector, threshold)) in &plain {
                    let score = |post: &Option<[f32; 2]>, wanted: Target| {
                        let score = post.map(|post| post[0] * vector[0] + post[1] * vector[1]);
                        score.filter(|score| score >= threshold && (*target == wanted || *target == Target::Both))
                    };
                    let (image, caption) = (score(image, Target::Image), score(caption, Target::Caption));
                    if let Some(score) = image.into_iter().chain(caption).reduce(f32::max) {
                        expected.push((id.clone(), score));
                    }
                }
                let mut found = found.found.iter().map(|found| (found.topic.topic_id.clone(), found.score)).collect::<Vec<_>>();
                found.sort_by(|left, right| left.0.cmp(&right.0));
                prop_assert_eq!(found, expected);
            }
        }
    }
}
