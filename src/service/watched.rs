//! Files that change while the process runs: keys and certificates that are renewed.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio_util::task::AbortOnDropHandle;

/// Files are looked at this often.
const INTERVAL: Duration = Duration::from_secs(1);
/// None of these files is larger.
const MAX_BYTES: u64 = 1024 * 1024;

/// A text file whole.
///
/// # Errors
/// It cannot be read, is not UTF-8, or is far too large. The error does not name it.
pub fn read_text(path: &Path) -> Result<String> {
    use std::io::Read as _;
    let file = std::fs::File::open(path).context("it cannot be opened")?;
    let mut text = String::new();
    file.take(MAX_BYTES + 1).read_to_string(&mut text).context("it cannot be read")?;
    ensure!(text.len() as u64 <= MAX_BYTES, "it is larger than {MAX_BYTES} bytes");
    Ok(text)
}

/// Calls `changed` whenever `read` gives something new, as long as the answer is kept. What the first look gives is taken as
/// known. Needs a running tokio runtime.
pub fn watch<T: Clone + PartialEq + Send + 'static>(
    read: impl Fn() -> Result<T> + Clone + Send + 'static,
    mut changed: impl FnMut(Result<T>) + Send + 'static,
) -> AbortOnDropHandle<()> {
    AbortOnDropHandle::new(tokio::spawn(async move {
        let mut watched = Watched::default();
        let mut ticks = tokio::time::interval(INTERVAL);
        loop {
            ticks.tick().await;
            let content = tokio::task::spawn_blocking(read.clone()).await;
            let content = content.expect("reading does not panic. This is a bug.");
            if let Some(content) = watched.changed(content) {
                changed(content);
            }
        }
    }))
}

/// What the files held, look after look. A file that is being written may be a good one that lacks its end: a change counts
/// once two looks in a row see the same.
#[derive(Debug)]
struct Watched<T> {
    taken: Option<Result<T, String>>,
    last: Option<Result<T, String>>,
}

impl<T> Default for Watched<T> {
    fn default() -> Self {
        Self { taken: None, last: None }
    }
}

impl<T: Clone + PartialEq> Watched<T> {
    fn changed(&mut self, content: Result<T>) -> Option<Result<T>> {
        let content = Some(content.map_err(|error| format!("{error:#}")));
        let steady = self.last == content;
        let first = self.last.is_none();
        self.last = content;
        if first {
            // The first look after the start, which has just read it.
            self.taken.clone_from(&self.last);
        }
        if !steady || self.taken == self.last {
            return None;
        }
        self.taken.clone_from(&self.last);
        self.taken.clone().map(|content| content.map_err(anyhow::Error::msg))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_counts_once_and_when_it_is_whole() {
        let mut watched = Watched::default();
        let mut look = |text: Result<&str, &str>| {
            let text = text.map(str::to_owned).map_err(|error| anyhow::Error::msg(error.to_owned()));
            watched.changed(text).map(|text| text.map_err(|error| error.to_string()))
        };
        assert_eq!(look(Ok("old")), None, "read at the start");
        assert_eq!(look(Ok("old")), None);
        assert_eq!(look(Ok("ne")), None, "perhaps half of it");
        assert_eq!(look(Ok("new")), None);
        assert_eq!(look(Ok("new")), Some(Ok("new".to_owned())));
        assert_eq!(look(Ok("new")), None);
        assert_eq!(look(Err("gone")), None, "between two files");
        assert_eq!(look(Ok("new")), None);
        assert_eq!(look(Ok("new")), None, "the same again");
        assert_eq!(look(Err("gone")), None);
        assert_eq!(look(Err("gone")), Some(Err("gone".to_owned())));
        assert_eq!(look(Err("gone")), None, "told once");
    }
}
