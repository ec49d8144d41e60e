//! What a run finds wrong.

use std::sync::{Mutex, PoisonError};
use std::time::Instant;

/// Promises that did not hold; empty at the end of a run that passes.
pub struct Findings {
    began: Instant,
    found: Mutex<Vec<String>>,
}

impl Findings {
    pub fn new() -> Self {
        Self { began: Instant::now(), found: Mutex::default() }
    }

    pub fn add(&self, what: String) {
        let line = format!("at {:.1} s: {what}", self.began.elapsed().as_secs_f64());
        println!("chaos: WRONG {line}");
        self.found.lock().unwrap_or_else(PoisonError::into_inner).push(line);
    }

    /// Many of one kind are one finding.
    pub fn add_all(&self, what: &str, items: Vec<String>) {
        const SHOWN: usize = 12;
        if items.is_empty() {
            return;
        }
        let count = items.len();
        let shown = items.into_iter().take(SHOWN).collect::<Vec<_>>().join("\n    ");
        let more = if count > SHOWN { format!("\n    ... and {} more", count - SHOWN) } else { String::new() };
        self.add(format!("{what}: {count}\n    {shown}{more}"));
    }

    pub fn all(&self) -> Vec<String> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
