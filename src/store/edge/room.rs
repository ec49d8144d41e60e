//! Room on the disk of the embedded store. The engine's files are sparse and mapped into memory: where the disk has no
//! block left for a page of them, the write is no error but a signal (SIGBUS) that ends the process. So writing stops
//! while there still is room; and where that was not enough (a quota, another program that fills the disk at once), the
//! process ends with a sentence.

use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use crate::error::{Fault, Outage};

/// The disk under a folder, and the bytes that must be free on it for a write.
#[derive(Debug)]
pub(super) struct Room {
    path: PathBuf,
    least: u64,
}

impl Room {
    /// `least` is `store.edge.min_free_bytes`.
    pub fn new(path: &Path, least: u64) -> Self {
        Self { path: path.to_owned(), least }
    }

    /// Whether there is room to open the store, which writes to it.
    ///
    /// # Errors
    /// [`Fault::Fatal`]: there is nothing to pause yet.
    pub fn check_at_start(&self) -> Result<(), Fault> {
        let Some(lack) = self.lack() else { return Ok(()) };
        Err(Fault::fatal(format!("{}; make room and start again", self.none(&lack))))
    }

    /// Whether there is room for the next writes.
    ///
    /// # Errors
    /// [`Fault::Retry`] with [`Outage::StoreNoSpace`].
    pub fn check(&self) -> Result<(), Fault> {
        self.lack().map_or(Ok(()), |lack| Err(self.outage(&lack)))
    }

    /// Of a write to a file of ours that failed.
    pub fn fault(&self, file: &Path, error: &io::Error) -> Fault {
        let detail = format!("cannot write to {}: {error}", file.display());
        match error.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => self.outage(&detail),
            _ => Fault::retry(Outage::Store, detail),
        }
    }

    fn lack(&self) -> Option<String> {
        // Where the system does not tell, the write itself will.
        let free = fs4::available_space(&self.path).ok()?;
        (free < self.least)
            .then(|| format!("{} MiB free, store.edge.min_free_bytes keeps {} MiB", free >> 20, self.least >> 20))
    }

    fn outage(&self, what: &str) -> Fault {
        Fault::retry(Outage::StoreNoSpace, format!("{}; make room, and writes go on by themselves", self.none(what)))
    }

    fn none(&self, what: &str) -> String {
        format!("no space left on the device of store.edge.dir, {} ({what})", self.path.display())
    }
}

static LAST_WORDS: OnceLock<String> = OnceLock::new();

/// From here on a page of a mapped file that has no place on its disk ends the process with a sentence and exit code 1.
/// It is as a kill: the next start reads the journal.
pub(super) fn tell_of_the_end(path: &Path) {
    let words = format!(
        "feedlens: the system has no page for a file mapped into memory (SIGBUS): no space left on the device of \
         store.edge.dir, {}, or it fails; make room and start again, everything acknowledged is in the store's journal\n",
        path.display()
    );
    if LAST_WORDS.set(words).is_ok() {
        // SAFETY: all zeros is a valid sigaction, and the handler only calls what is safe in a signal handler.
        unsafe {
            let mut action = std::mem::zeroed::<libc::sigaction>();
            action.sa_sigaction = end as *const () as usize;
            libc::sigaction(libc::SIGBUS, &raw const action, std::ptr::null_mut());
        }
    }
}

extern "C" fn end(_signal: libc::c_int) {
    let words = LAST_WORDS.get().map_or("", String::as_str);
    // SAFETY: the bytes live for ever; write and _exit may be called in a signal handler.
    unsafe {
        libc::write(libc::STDERR_FILENO, words.as_ptr().cast(), words.len());
        libc::_exit(1);
    }
}
