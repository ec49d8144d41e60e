//! Topics and pictures of requests to vectors, as the posts' own were made.

use crate::encode::worker::EncoderHandle;
use crate::error::Fault;
use crate::post::ImageSource;

/// Everything between a request's subject and its vector.
pub struct QueryEncoder {
    /// The encoder.
    pub handle: EncoderHandle,
}

impl QueryEncoder {
    /// The L2-normalised vector of a text.
    ///
    /// # Errors
    /// As [`EncoderHandle::text`].
    pub async fn embed_topic(&self, topic: &str) -> Result<Vec<f32>, Fault> {
        let _ = (topic, &self.handle);
        Err(Fault::fatal("skeleton"))
    }

    /// The L2-normalised vector of a picture.
    ///
    /// # Errors
    /// [`Fault::Reject`] for what is no picture or may not be fetched, and as [`EncoderHandle::image`].
    pub async fn embed_picture(&self, picture: ImageSource) -> Result<Vec<f32>, Fault> {
        let _ = picture;
        Err(Fault::fatal("skeleton"))
    }
}
