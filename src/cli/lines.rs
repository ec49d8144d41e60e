//! JSON lines in, an answer a line out: what `embed` and `model tokenize` have in common.

use std::io::{self, BufRead, BufWriter, Read as _, StdoutLock, Write};

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::cli::output;
use crate::error::{Fault, Reason};

/// Longest line: the longest caption with each character escaped fits well.
const MAX_LINE_BYTES: usize = 1024 * 1024;

/// The next line without its end, `None` at the end of the input. A line that is too long is passed over to its end, and
/// rejected.
pub fn next_line(input: &mut impl BufRead) -> io::Result<Option<Result<Vec<u8>, Fault>>> {
    let mut line = Vec::new();
    if input.by_ref().take(MAX_LINE_BYTES as u64 + 1).read_until(b'\n', &mut line)? == 0 {
        return Ok(None);
    }
    if line.last() == Some(&b'\n') {
        line.pop();
    } else if line.len() > MAX_LINE_BYTES {
        input.skip_until(b'\n')?;
        return Ok(Some(Err(Fault::reject(
            Reason::TooLarge,
            format!("the line has more than {MAX_LINE_BYTES} bytes"),
        ))));
    }
    Ok(Some(Ok(line)))
}

/// A line's JSON object. Members that `T` does not have are passed over.
///
/// # Errors
/// [`Reason::BadJson`] for what is not JSON, [`Reason::BadField`] for JSON of another shape; `expected` says which shape.
pub fn parse<'a, T: Deserialize<'a>>(line: &'a [u8], expected: &str) -> Result<T, Fault> {
    // Serde would take an array's items for the members, in their order.
    if line.trim_ascii_start().starts_with(b"[") {
        return Err(Fault::reject(Reason::BadField, format!("an array; a line must be {expected}")));
    }
    serde_json::from_slice(line).map_err(|error| {
        let reason = if error.is_data() { Reason::BadField } else { Reason::BadJson };
        // It speaks of a document; this is line 1 of it always.
        let text = error.to_string();
        let what = text.split(" at line ").next().unwrap_or_default();
        Fault::reject(reason, format!("{what} at column {}; a line must be {expected}", error.column()))
    })
}

/// What an item that failed has in place of its answer.
#[derive(Serialize)]
struct Failure<'a> {
    error: &'a str,
    kind: &'static str,
}

/// Answers on stdout, in the order of their lines.
pub struct Answers {
    output: BufWriter<StdoutLock<'static>>,
    failed: u64,
    lines: u64,
}

impl Answers {
    /// Takes stdout.
    pub fn new() -> Self {
        Self { output: BufWriter::new(io::stdout().lock()), failed: 0, lines: 0 }
    }

    /// Writes a line's answer, or why it has none.
    ///
    /// # Errors
    /// Faults that are not the item's own stop the command, as does an output that takes no more ([`output::failed`]).
    pub fn write(&mut self, answer: Result<impl Serialize, Fault>) -> Result<()> {
        self.lines += 1;
        match answer {
            Ok(answer) => self.write_json(&answer),
            Err(Fault::Reject { reason, detail }) => {
                self.failed += 1;
                self.write_json(&Failure { error: &detail, kind: reason.as_str() })
            }
            Err(fault) => Err(fault.into()),
        }
    }

    fn write_json(&mut self, answer: &impl Serialize) -> Result<()> {
        let written = serde_json::to_writer(&mut self.output, answer).map_err(io::Error::from);
        written.and_then(|()| self.output.write_all(b"\n")).map_err(output::failed)
    }

    /// Hands out what was written so far: before waiting for input, so that who waits for an answer gets it.
    ///
    /// # Errors
    /// The output takes no more.
    pub fn flush(&mut self) -> Result<()> {
        self.output.flush().map_err(output::failed)
    }

    /// Flushes, and says on stderr how many lines failed.
    ///
    /// # Errors
    /// As [`Self::flush`].
    pub fn finish(mut self) -> Result<()> {
        self.flush()?;
        if self.failed > 0 {
            tracing::warn!(failed = self.failed, lines = self.lines, "some lines failed; their answers say why");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::BufReader;

    use super::*;

    #[test]
    fn lines_are_split_and_bounded() {
        let longest = "x".repeat(MAX_LINE_BYTES);
        let text = format!("a\n\n{longest}\n{longest}y\n{longest}{longest}\nb\r\nlast");
        let mut input = BufReader::with_capacity(7, text.as_bytes());
        let mut lengths = Vec::new();
        while let Some(line) = next_line(&mut input).expect("reads") {
            lengths.push(line.map(|line| line.len()).map_err(|fault| fault.to_string().contains("1048576")));
        }
        assert_eq!(lengths, [Ok(1), Ok(0), Ok(MAX_LINE_BYTES), Err(true), Err(true), Ok(2), Ok(4)]);
    }
}
