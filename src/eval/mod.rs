//! Evaluation: how well a model finds what belongs together.

pub mod pairs;
pub mod recall;
