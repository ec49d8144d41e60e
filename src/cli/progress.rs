//! Progress on stderr: a bar on a terminal, a line of log now and then elsewhere.

use std::io::IsTerminal as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::eval::retrieve;

/// Time between two lines of log, where stderr is no terminal.
const INTERVAL: Duration = Duration::from_secs(30);

/// Counts items of one step.
pub struct Progress {
    bar: ProgressBar,
    step: &'static str,
    started: Instant,
    /// Seconds after `started` at which the last line was written; unused on a terminal.
    said: AtomicU64,
    on_terminal: bool,
}

impl Progress {
    /// Shows `step`, of `total` items.
    pub fn new(step: &'static str, total: usize) -> Self {
        let on_terminal = std::io::stderr().is_terminal();
        let target = if on_terminal { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(Some(total as u64), target).with_message(step);
        let style = "{msg:<18} {wide_bar} {human_pos} of {human_len}, {per_sec}, {eta} left";
        bar.set_style(ProgressStyle::with_template(style).expect("the template is fixed. This is a bug."));
        Self { bar, step, started: Instant::now(), said: AtomicU64::new(0), on_terminal }
    }

    /// Ends the bar.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

impl retrieve::Progress for Progress {
    fn done(&self, items: usize) {
        self.bar.inc(items as u64);
        let elapsed = self.started.elapsed().as_secs();
        if !self.on_terminal && elapsed >= self.said.load(Ordering::Relaxed) + INTERVAL.as_secs() {
            self.said.store(elapsed, Ordering::Relaxed);
            tracing::info!(done = self.bar.position(), total = self.bar.length(), "{}", self.step);
        }
    }

    fn problem(&self, sentence: &str) {
        self.bar.suspend(|| tracing::warn!("left out: {sentence}"));
    }
}
