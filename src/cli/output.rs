//! Standard output. Its reader may go away (`feedlens ... | head`): then the command ends, and quietly.
//!
//! The signal that other programs die of in that case stays ignored: on a connection that a broker closed, it would end a
//! worker too.

use std::fmt::Display;
use std::io::{self, ErrorKind, Write as _};

use anyhow::Result;

/// Nobody reads the output any more. No failure: whoever closed it has what it wanted.
#[derive(Debug, thiserror::Error)]
#[error("nobody reads the output any more")]
pub struct ReaderGone;

/// Prints, at once.
///
/// # Errors
/// [`ReaderGone`], with which the command is to end; or why standard output cannot be written, such as a full disk.
pub fn print(text: impl Display) -> Result<()> {
    let mut stdout = io::stdout().lock();
    write!(stdout, "{text}").and_then(|()| stdout.flush()).map_err(failed)
}

/// What a failure to write to standard output is to the command: [`ReaderGone`], or an error that names the output.
pub fn failed(error: io::Error) -> anyhow::Error {
    match error.kind() {
        ErrorKind::BrokenPipe => ReaderGone.into(),
        _ => anyhow::Error::from(error).context("cannot write to standard output"),
    }
}
