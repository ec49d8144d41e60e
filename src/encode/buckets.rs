//! Which items are run together, pure: batch sizes, and texts of similar length.

use std::ops::Range;

/// How a provider likes its batches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shapes {
    /// Round batches up to a power of two and text lengths to a multiple of eight, so that a device's memory arena sees
    /// a fixed set of shapes and stops growing.
    pub padded: bool,
    /// What one more run costs, in tokens that could have been encoded instead.
    pub run_tokens: usize,
}

impl Shapes {
    /// The CPU: what is padded is paid for, and a run costs little.
    pub const CPU: Self = Self { padded: false, run_tokens: 16 };
    /// A GPU: small batches leave it idle.
    pub const GPU: Self = Self { padded: true, run_tokens: 2048 };

    /// Rows to run for `rows` items, at least as many; `max` is the largest batch.
    pub fn batch(&self, rows: usize, max: usize) -> usize {
        if self.padded { rows.next_power_of_two().min(max.max(rows)) } else { rows }
    }

    /// Tokens a row for a longest text of `length`, at least as many; `context` is the longest that the model takes.
    pub fn length(&self, length: usize, context: usize) -> usize {
        if self.padded { length.next_multiple_of(8).min(context.max(length)) } else { length }
    }

    /// Splits texts, sorted by their lengths (longest first), into the ranges to run together: each text is padded to
    /// the first of its range. The sum of `run_tokens + texts x longest` is the smallest possible.
    pub fn groups(&self, lengths: &[usize]) -> Vec<Range<usize>> {
        // cheapest[end]: cost of the first `end` texts, and where their last range starts.
        let mut cheapest = vec![(0, 0)];
        for end in 1..=lengths.len() {
            let cost = |start: usize| cheapest[start].0 + self.run_tokens + (end - start) * lengths[start];
            let best = (0..end).map(|start| (cost(start), start)).min();
            cheapest.push(best.expect("there is a first start. This is a bug."));
        }
        let mut groups = Vec::new();
        let mut end = lengths.len();
        while end > 0 {
            let start = cheapest[end].1;
            groups.push(start..end);
            end = start;
        }
        groups.reverse();
        groups
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn device_sees_a_fixed_set_of_shapes() {
        let batches = (1..=48).map(|rows| Shapes::GPU.batch(rows, 48)).collect::<std::collections::BTreeSet<_>>();
        assert_eq!(Vec::from_iter(batches), [1, 2, 4, 8, 16, 32, 48]);
        let lengths = (2..=52).map(|length| Shapes::GPU.length(length, 52)).collect::<std::collections::BTreeSet<_>>();
        assert_eq!(Vec::from_iter(lengths), [8, 16, 24, 32, 40, 48, 52]);
        assert_eq!((Shapes::CPU.batch(5, 32), Shapes::CPU.length(5, 52)), (5, 5));
    }

    #[test]
    fn one_long_text_does_not_make_thirty_short_ones_long() {
        let mut lengths = vec![52];
        lengths.extend([6; 30]);
        assert_eq!(Shapes::CPU.groups(&lengths), [0..1, 1..31]);
        assert_eq!(Shapes::GPU.groups(&lengths).len(), 1, "a GPU would be idle in two runs");
        assert_eq!(Shapes::CPU.groups(&[9, 9, 8]).len(), 1);
        assert!(Shapes::CPU.groups(&[]).is_empty());
    }

    proptest! {
        #[test]
        fn groups_are_the_cheapest_partition(mut lengths in prop::collection::vec(2_usize..53, 1..10)) {
            lengths.sort_unstable_by(|left, right| right.cmp(left));
            let shapes = Shapes::CPU;
            let cost = |groups: &[Range<usize>]| -> usize {
                groups.iter().map(|group| shapes.run_tokens + group.len() * lengths[group.start]).sum()
            };
            let groups = shapes.groups(&lengths);
            let covered = groups.iter().flat_map(Clone::clone).collect::<Vec<_>>();
            prop_assert_eq!(covered, (0..lengths.len()).collect::<Vec<_>>());
            // Every other way to cut: a bit for each gap between neighbours.
            for cuts in 0..1_u32 << (lengths.len() - 1) {
                let mut other = vec![];
                let mut start = 0;
                for end in 1..=lengths.len() {
                    if end == lengths.len() || cuts & (1 << (end - 1)) != 0 {
                        other.push(start..end);
                        start = end;
                    }
                }
                prop_assert!(cost(&groups) <= cost(&other));
            }
        }
    }
}
