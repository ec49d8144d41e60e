//! Evaluation and batch retrieval: labelled sets, exact ranking, recall, what the features tell, and `match`.

pub mod calibrate;
pub mod chinese_clip;
pub mod dataset;
pub mod embed;
pub mod features;
pub mod information;
pub mod pairs;
pub mod predictions;
pub mod rank;
pub mod recall;
pub mod retrieve;
pub mod table;
pub mod transforms;
pub mod vector_file;
pub mod zero_shot;
