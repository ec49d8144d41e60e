//! Integration tests: one binary, a file for each area.

mod binary;
mod demo;
