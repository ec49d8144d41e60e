//! The integration tests: one binary, a file for each part or failure mode.

#![allow(clippy::unwrap_used)]

mod store_behaviour;
mod store_edge;
