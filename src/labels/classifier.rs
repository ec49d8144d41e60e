//! From a vector to labels. Pure.

use std::sync::Arc;

use ndarray::ArrayView1;

use super::config::Moderation;

/// The label sets with their vectors.
#[derive(Debug)]
pub struct Classifier {
    sets: Vec<Set>,
    logit_scale: f32,
}

/// A set with its vectors, each L2-normalised.
#[derive(Debug)]
pub struct Set {
    /// Its name.
    pub name: Arc<str>,
    /// What becomes of posts that carry one of its labels.
    pub moderation: Option<Moderation>,
    /// Whether at most one label is given.
    pub exclusive: bool,
    /// What none of the labels describes.
    pub background: Option<Vec<f32>>,
    /// The labels.
    pub labels: Vec<Label>,
}

/// A label with its vector, L2-normalised.
#[derive(Debug)]
pub struct Label {
    /// "set/label".
    pub name: Arc<str>,
    /// The least probability.
    pub threshold: f32,
    /// The ensemble of its prompts.
    pub vector: Vec<f32>,
}

/// A label that a post carries.
#[derive(Debug, Clone, PartialEq)]
pub struct Assigned {
    /// "set/label".
    pub label: Arc<str>,
    /// Its probability, see the module's head.
    pub score: f32,
    /// The set.
    pub set: Arc<str>,
    /// What the set asks for.
    pub moderation: Option<Moderation>,
}

impl Classifier {
    /// `logit_scale` is the bundle's.
    pub fn new(sets: Vec<Set>, logit_scale: f32) -> Self {
        Self { sets, logit_scale }
    }

    /// The labels of a post with this vector (L2-normalised), in the order of the configuration.
    pub fn classify(&self, vector: &[f32]) -> Vec<Assigned> {
        self.sets.iter().flat_map(|set| self.classify_in(set, vector)).collect()
    }

    fn classify_in(&self, set: &Set, vector: &[f32]) -> Vec<Assigned> {
        let logit = |other: &[f32]| {
            let cosine = ArrayView1::from(vector).dot(&ArrayView1::from(other));
            f64::from(self.logit_scale * cosine)
        };
        let background = set.background.as_deref().map(logit);
        let labels = set.labels.iter().map(|label| (label, logit(&label.vector)));
        let assigned = |label: &Label, score: f64| Assigned {
            label: label.name.clone(),
            score: score as f32,
            set: set.name.clone(),
            moderation: set.moderation,
        };
        if !set.exclusive {
            let background = background.unwrap_or(f64::NEG_INFINITY);
            return labels
                .map(|(label, logit)| (label, 1.0 / (1.0 + (background - logit).exp())))
                .filter(|(label, score)| *score >= f64::from(label.threshold))
                .map(|(label, score)| assigned(label, score))
                .collect();
        }
        let labels = labels.collect::<Vec<_>>();
        let all = || labels.iter().map(|(_, logit)| *logit).chain(background);
        let largest = all().fold(f64::NEG_INFINITY, f64::max);
        let sum = all().map(|logit| (logit - largest).exp()).sum::<f64>();
        // Of equal labels the first; the background wins only where it is more.
        let best = labels.iter().find(|(_, logit)| *logit == largest);
        best.map(|(label, logit)| (label, (logit - largest).exp() / sum))
            .filter(|(label, score)| *score >= f64::from(label.threshold))
            .map(|(label, score)| assigned(label, score))
            .into_iter()
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn set(exclusive: bool, background: Option<[f32; 2]>, threshold: f32, labels: &[(&str, [f32; 2])]) -> Set {
        Set {
            name: "s".into(),
            moderation: None,
            exclusive,
            background: background.map(|vector| vector.to_vec()),
            labels: labels
                .iter()
                .map(|(name, vector)| Label { name: format!("s/{name}").into(), threshold, vector: vector.to_vec() })
                .collect(),
        }
    }

    fn names(assigned: &[Assigned]) -> Vec<&str> {
        assigned.iter().map(|assigned| &*assigned.label).collect()
    }

    #[test]
    fn an_exclusive_set_gives_the_best_label_or_none() {
        let labels = [("east", [1.0, 0.0]), ("north", [0.0, 1.0])];
        let at = |background, threshold, vector: [f32; 2]| {
            Classifier::new(vec![set(true, background, threshold, &labels)], 10.0).classify(&vector)
        };
        assert_eq!(names(&at(None, 0.5, [0.8, 0.6])), ["s/east"]);
        // softmax of 8 and 6.
        assert!((at(None, 0.5, [0.8, 0.6])[0].score - 0.880_797).abs() < 1e-5);
        assert!(at(None, 0.9, [0.8, 0.6]).is_empty(), "below its threshold");
        assert!(at(Some([-1.0, 0.0]), 0.1, [-1.0, 0.0]).is_empty(), "the background wins, whatever the threshold");
        assert_eq!(names(&at(Some([-1.0, 0.0]), 0.1, [0.0, 1.0])), ["s/north"]);
    }

    #[test]
    fn labels_that_do_not_exclude_one_another_are_judged_alone() {
        let labels = [("a", [1.0, 0.0]), ("b", [0.8, 0.6]), ("c", [-1.0, 0.0])];
        let classifier = Classifier::new(vec![set(false, Some([0.0, 0.0]), 0.9, &labels)], 10.0);
        let found = classifier.classify(&[1.0, 0.0]);
        assert_eq!(names(&found), ["s/a", "s/b"]);
        // The logistic function of 10 and 8.
        assert!((found[0].score - 0.999_954_6).abs() < 1e-6 && (found[1].score - 0.999_664_6).abs() < 1e-6);
    }

    proptest! {
        #[test]
        fn scores_are_probabilities_that_reach_the_threshold(
            vectors in prop::collection::vec((-1f32..1., -1f32..1.), 2..8),
            exclusive: bool,
            threshold in 0.01f32..1.0,
            scale in 1f32..500.,
        ) {
            let labels = vectors[1..].iter().map(|(x, y)| ("l", [*x, *y])).collect::<Vec<_>>();
            let classifier = Classifier::new(vec![set(exclusive, Some([0.1, 0.1]), threshold, &labels)], scale);
            let found = classifier.classify(&[vectors[0].0, vectors[0].1]);
            prop_assert!(!exclusive || found.len() <= 1);
            for assigned in found {
                prop_assert!(assigned.score >= threshold && assigned.score <= 1.0 + 1e-6);
            }
        }
    }
}
