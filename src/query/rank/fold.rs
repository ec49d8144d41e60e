//! Near-duplicate pictures become one hit; pure.
//!
//! In the order of the ranking, a post whose picture is near that of an earlier hit is folded into the first such hit. So
//! whether a post is a hit depends on those before it alone, and further pages never change earlier ones.

use ndarray::ArrayView1;
use uuid::Uuid;

/// Ids of folded posts that a hit names; beyond them they are only counted.
pub const NAMED: usize = 10;

/// A hit with the posts that were folded into it.
#[derive(Debug)]
pub struct Group<T> {
    /// The best of them.
    pub first: T,
    /// Its picture's vector, L2-normalised.
    image: Option<Vec<f32>>,
    /// Number of the others.
    pub folded: usize,
    /// The best of the others, at most [`NAMED`].
    pub folded_ids: Vec<Uuid>,
}

/// Distinct hits, up to as many as are wanted.
#[derive(Debug)]
pub struct Folder<T> {
    similarity: Option<f32>,
    wanted: usize,
    groups: Vec<Group<T>>,
}

impl<T> Folder<T> {
    /// Pictures with at least this cosine are the same; `None`: every post is a hit of its own.
    pub fn new(similarity: Option<f32>, wanted: usize) -> Self {
        Self { similarity, wanted, groups: Vec::new() }
    }

    /// The next post of the ranking, with its picture's L2-normalised vector. A post without a picture is a hit of its own.
    pub fn add(&mut self, id: Uuid, post: T, image: Option<Vec<f32>>) {
        let near = |group: &&mut Group<T>| match (self.similarity, &image, &group.image) {
            (Some(similarity), Some(left), Some(right)) => dot(left, right) >= similarity,
            _ => false,
        };
        if let Some(group) = self.groups.iter_mut().find(near) {
            group.folded += 1;
            if group.folded_ids.len() < NAMED {
                group.folded_ids.push(id);
            }
        } else if self.groups.len() < self.wanted {
            self.groups.push(Group { first: post, image, folded: 0, folded_ids: Vec::new() });
        }
    }

    /// Whether there are as many hits as are wanted.
    pub fn is_full(&self) -> bool {
        self.groups.len() >= self.wanted
    }

    /// The hits, best first.
    pub fn finish(self) -> Vec<Group<T>> {
        self.groups
    }
}

fn dot(left: &[f32], right: &[f32]) -> f32 {
    // Its sums run in parallel lanes, which a plain `sum` of floats may not.
    ArrayView1::from(left).dot(&ArrayView1::from(right))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn fold(angles: &[Option<f32>], similarity: Option<f32>, wanted: usize) -> Vec<Group<usize>> {
        let mut folder = Folder::new(similarity, wanted);
        for (index, angle) in angles.iter().enumerate() {
            let image = angle.map(|angle| vec![angle.cos(), angle.sin()]);
            folder.add(Uuid::from_u128(index as u128), index, image);
        }
        folder.finish()
    }

    fn firsts(groups: &[Group<usize>]) -> Vec<usize> {
        groups.iter().map(|group| group.first).collect()
    }

    #[test]
    fn the_first_of_a_kind_stays_and_counts_the_others() {
        let angles = [Some(0.0), None, Some(1.0), Some(0.01), None, Some(1.01), Some(0.02)];
        let groups = fold(&angles, Some(0.999), 10);
        assert_eq!(firsts(&groups), [0, 1, 2, 4]);
        assert_eq!(groups.iter().map(|group| group.folded).collect::<Vec<_>>(), [2, 0, 1, 0]);
        assert_eq!(groups[0].folded_ids, [3, 6].map(Uuid::from_u128));
        assert_eq!(firsts(&fold(&angles, None, 10)), [0, 1, 2, 3, 4, 5, 6]);
        let many = fold(&[Some(0.0); 30], Some(0.999), 10);
        assert_eq!((many.len(), many[0].folded, many[0].folded_ids.len()), (1, 29, NAMED));
    }

    proptest! {
        #[test]
        fn more_wanted_hits_and_more_posts_only_add_at_the_end(
            angles in proptest::collection::vec(proptest::option::of(0.0f32..3.0), 0..60),
            cut in 0usize..60, wanted in 1usize..20, more in 0usize..20, similarity in 0.9f32..1.0,
        ) {
            let all = firsts(&fold(&angles, Some(similarity), wanted + more));
            let some = firsts(&fold(&angles[..cut.min(angles.len())], Some(similarity), wanted));
            prop_assert!(all.starts_with(&some) || some.len() > all.len(), "{some:?} {all:?}");
            for (index, left) in all.iter().enumerate() {
                for right in &all[..index] {
                    if let (Some(left), Some(right)) = (angles[*left], angles[*right]) {
                        prop_assert!((left - right).cos() < similarity + 1e-5, "two hits with one picture");
                    }
                }
            }
        }

        #[test]
        fn every_post_is_a_hit_or_counted(
            angles in proptest::collection::vec(proptest::option::of(0.0f32..3.0), 0..60), similarity in 0.9f32..1.0,
        ) {
            let groups = fold(&angles, Some(similarity), 100);
            prop_assert_eq!(groups.iter().map(|group| 1 + group.folded).sum::<usize>(), angles.len());
        }
    }
}
