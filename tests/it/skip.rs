//! Tests that need what a machine may lack.

use std::io::Write as _;

/// Says loudly that the running test is skipped on a machine that cannot be set up for it.
pub fn unable(why: &str) {
    let name = std::thread::current().name().unwrap_or_default().to_owned();
    // Not through eprintln, which the harness keeps from the terminal.
    let _ = writeln!(std::io::stderr(), "SKIPPED {name}: {why}");
}

/// Says loudly that the running test is skipped for want of something. Where the machine was set up for all tests (`make
/// test` says so in `FEEDLENS_ALL_TESTS`), the want is a failure.
pub fn without(what: &str) {
    let name = std::thread::current().name().unwrap_or_default().to_owned();
    assert!(std::env::var_os("FEEDLENS_ALL_TESTS").is_none(), "{name} must run here: {what}");
    unable(what);
}
