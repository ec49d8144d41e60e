//! Two rankings made one; pure.
//!
//! The cosines of the two are never compared as they are: pictures and texts lie apart in CLIP's space, so a caption's
//! cosine with a text is greater than any picture's.
//!
//! - `rrf`: reciprocal rank fusion (Cormack, Clarke and Buettcher, 2009). A post's worth is the sum over both rankings of
//!   1 / (60 + rank).
//! - `weighted`: image_weight x p(picture) + (1 - image_weight) x p(caption), where p is the post's softmax value in that
//!   ranking, 0 where it is not among its candidates. The softmax brings both to one scale by the model's own measure; it
//!   found more than min-max and z-score normalisation (`docs/search.md`).

use serde::{Deserialize, Serialize};

/// The constant of reciprocal rank fusion; 60 is the value of its authors, in use ever since.
const RANK_CONSTANT: f64 = 60.0;

/// The way two rankings become one, by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FusionKind {
    /// Reciprocal rank fusion.
    Rrf,
    /// The weighted sum of normalised similarities.
    Weighted,
}

impl FusionKind {
    /// The names in requests and in the configuration.
    pub const NAMES: &[(&'static str, Self)] = &[("rrf", Self::Rrf), ("weighted", Self::Weighted)];
}

/// The way two rankings become one.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Fusion {
    /// Reciprocal rank fusion.
    Rrf,
    /// The weighted sum of normalised similarities.
    Weighted {
        /// Share of the pictures' ranking, 0 to 1.
        image_weight: f64,
    },
}

impl Fusion {
    /// A way with its weight, where it has one.
    pub fn new(kind: FusionKind, image_weight: f64) -> Self {
        match kind {
            FusionKind::Rrf => Self::Rrf,
            FusionKind::Weighted => Self::Weighted { image_weight },
        }
    }

    /// What one ranking gives a post. `rank` from 0; `share`: its softmax value there.
    pub fn worth(self, of_pictures: bool, rank: usize, share: f64) -> f64 {
        match self {
            Self::Rrf => 1.0 / (RANK_CONSTANT + (rank + 1) as f64),
            Self::Weighted { image_weight } if of_pictures => image_weight * share,
            Self::Weighted { image_weight } => (1.0 - image_weight) * share,
        }
    }
}
