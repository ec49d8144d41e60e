//! A state as the writes that lead to it, for a collection that is filled from another.

use super::{Kind, Order, Origin, State};

impl State {
    /// The fewest writes that lead from nothing to this state, oldest first. On top of any part of the history that they
    /// stand for they lead to this state too, and on top of newer writes they change nothing that those decide.
    pub(in crate::store) fn history(&self) -> Vec<(Order, Kind)> {
        let Self { version, source, kind, deleted_before } = self;
        let this = (Order { version: *version, source: source.clone() }, *kind);
        let Some(deletion) = deleted_before else { return vec![this] };
        let bare = |source: &Origin| (Order { version: None, source: source.clone() }, Kind::Deletion);
        if deletion != source || *kind != Kind::Deletion {
            return vec![bare(deletion), this];
        }
        match version {
            None => vec![bare(deletion)],
            // The version is that of an earlier write, whose place is no longer known. Any place before the deletion is as good,
            // for the deletion hides all of them; this one is no message's.
            Some(_) => {
                let before = Origin { offset: -1, ..source.clone() };
                vec![(Order { version: *version, source: before }, Kind::Deletion), bare(deletion)]
            }
        }
    }

    /// Whether the post is deleted.
    pub(in crate::store) fn is_deleted(&self) -> bool {
        self.kind == Kind::Deletion
    }

    /// Whether the post is there without its picture, which could not be had.
    pub(in crate::store) fn is_image_pending(&self) -> bool {
        self.kind == Kind::ImagePending
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::Merged;
    use super::*;

    /// Writes of one partition, all with a version or none (deletions never need one), in the order of their arrival.
    fn histories() -> impl Strategy<Value = Vec<(Order, Kind)>> {
        let write = (0_u64..4, 0_u8..4);
        (prop::collection::vec(write, 1..9), any::<bool>()).prop_flat_map(|(writes, versioned)| {
            let writes = writes.into_iter().enumerate().map(|(offset, (version, what))| {
                let source = Origin { topic: "posts".to_owned(), partition: 0, offset: offset as i64, timestamp: 0 };
                let (kind, bare) = match what {
                    0 => (Kind::Deletion, true),
                    1 => (Kind::Deletion, false),
                    2 => (Kind::ImagePending, false),
                    _ => (Kind::Whole, false),
                };
                (Order { version: (versioned && !bare).then_some(version), source }, kind)
            });
            Just(writes.collect::<Vec<_>>()).prop_shuffle()
        })
    }

    fn after<'a>(begin: Option<State>, writes: impl IntoIterator<Item = &'a (Order, Kind)>) -> Option<State> {
        writes.into_iter().fold(begin, |state, (order, kind)| match State::merge(state.as_ref(), order, *kind) {
            Merged::Write(next) | Merged::Hidden(next) | Merged::Keep(next) => Some(next),
            Merged::Same | Merged::Older => state,
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]

        /// A collection that is filled from another ends in the same states, whatever of the topic it has read before, and
        /// whatever of it comes after.
        #[test]
        fn history_leads_to_its_state(writes in histories(), mask in any::<u16>()) {
            let whole = after(None, &writes).expect("there are writes");
            let history = whole.history();
            prop_assert_eq!(after(None, &history), Some(whole.clone()));
            let some = writes.iter().enumerate().filter(|(place, _)| mask >> place & 1 == 1).map(|(_, write)| write);
            let filled = after(after(None, some), &history).expect("there are writes");
            prop_assert_eq!(&filled, &whole);
            prop_assert_eq!(after(Some(filled), &writes), Some(whole));
        }

        /// What is newer than the state stays, and stays deleted.
        #[test]
        fn history_never_undoes_a_newer_write(writes in histories(), split in any::<prop::sample::Index>()) {
            let older = after(None, &writes[..split.index(writes.len())]);
            let whole = after(None, &writes);
            if let Some(older) = older {
                prop_assert_eq!(after(whole.clone(), &older.history()), whole);
            }
        }
    }
}
