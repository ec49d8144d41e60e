//! The encoder's threads, and the handle through which everyone else uses them.

use crate::encode::{PreparedImage, PreparedText};
use crate::error::Fault;

/// Who waits for an item: a person (never waits for a batch to fill) or the feed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Priority {
    /// A post of the feed.
    Feed,
    /// A search; goes ahead of the feed.
    Query,
}

/// The encoder, for everyone who does not run it: cheap to clone.
#[derive(Clone)]
pub struct EncoderHandle {}

impl EncoderHandle {
    /// The L2-normalised vector of a picture. Waits for room in the queue.
    ///
    /// # Errors
    /// [`Fault::Reject`] where this very item has no finite vector, [`Fault::Retry`] where the encoder is gone.
    pub async fn image(&self, image: PreparedImage, priority: Priority) -> Result<Vec<f32>, Fault> {
        let _ = (image, priority);
        Err(Fault::fatal("skeleton"))
    }

    /// The L2-normalised vector of a text. Waits for room in the queue.
    ///
    /// # Errors
    /// As [`Self::image`].
    pub async fn text(&self, text: PreparedText, priority: Priority) -> Result<Vec<f32>, Fault> {
        let _ = (text, priority);
        Err(Fault::fatal("skeleton"))
    }
}
