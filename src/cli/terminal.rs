//! The terminal that standard output is: how large it is, which pictures it can show, and texts that cannot steer it.

use std::env;
use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal as _, Read as _, Write as _};
use std::os::fd::{AsRawFd as _, RawFd};
use std::time::{Duration, Instant};

use unicode_general_category::{GeneralCategory, get_general_category};
use unicode_width::{UnicodeWidthChar as _, UnicodeWidthStr as _};

/// How a terminal shows pictures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Graphics {
    /// Kitty's graphics protocol: kitty, Ghostty, WezTerm, Konsole.
    Kitty,
    /// DEC's sixels: foot, xterm -ti vt340, mlterm, Windows Terminal, iTerm2 and others.
    Sixel,
    /// Upper half blocks in 24-bit colours, two pixels a cell.
    Blocks,
    /// The same in the 256 colours of xterm.
    Blocks256,
}

/// Size of a terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// Columns of cells.
    pub columns: usize,
    /// Pixels of a cell, width and height.
    pub cell: (u32, u32),
}

/// What a terminal that tells no size has.
pub const DEFAULT_SIZE: Size = Size { columns: 80, cell: (8, 16) };
/// May kitty's protocol be used, with a picture of one pixel; then the primary device attributes. What a terminal without
/// such escapes shows of them is wiped away.
const QUESTION: &[u8] = b"\x1b_Gi=31,s=1,v=1,a=q,t=d,f=24;AAAA\x1b\\\x1b[c\r\x1b[K";
/// How long a terminal may take to say what it can; it may be at the other end of a slow line.
const ANSWER_TIMEOUT: Duration = Duration::from_millis(400);
/// A terminal's answer is some dozen bytes.
const MAX_ANSWER: usize = 4096;
/// Marks on one letter that are shown; no language has more.
const MAX_MARKS: usize = 4;

/// The size of the terminal that standard output is; `None` where it is none, or does not tell.
pub fn size() -> Option<Size> {
    // SAFETY: TIOCGWINSZ fills the struct that it is given; all its fields are plain numbers.
    let mut told: libc::winsize = unsafe { std::mem::zeroed() };
    let known = unsafe { libc::ioctl(libc::STDOUT_FILENO, libc::TIOCGWINSZ, &mut told) } == 0;
    if !known || told.ws_col == 0 || told.ws_row == 0 {
        return None;
    }
    let (columns, rows) = (u32::from(told.ws_col), u32::from(told.ws_row));
    let cell = (u32::from(told.ws_xpixel) / columns, u32::from(told.ws_ypixel) / rows);
    // Many terminals leave the pixels zero.
    let cell = if cell.0 == 0 || cell.1 == 0 { DEFAULT_SIZE.cell } else { cell };
    Some(Size { columns: columns as usize, cell })
}

/// What standard output can show: `None` where it is no terminal, a dumb one, or one whose user wants no colours.
pub fn graphics() -> Option<Graphics> {
    if !io::stdout().is_terminal() {
        return None;
    }
    let variable = |name: &str| env::var(name).unwrap_or_default();
    let term = variable("TERM");
    if term.is_empty() || term == "dumb" || !variable("NO_COLOR").is_empty() {
        return None;
    }
    let answer = ask().unwrap_or_default();
    Some(from_answer(&answer).unwrap_or_else(blocks))
}

/// Half blocks, in the colours that the environment promises.
pub fn blocks() -> Graphics {
    match env::var("COLORTERM").as_deref() {
        Ok("truecolor" | "24bit") => Graphics::Blocks,
        _ => Graphics::Blocks256,
    }
}

/// Reads the answers to a query of kitty's protocol and to "primary device attributes", which every terminal answers: who
/// answers only that, does not know the protocol (kitty's documentation, "Querying support"). Attribute 4 is sixel.
fn from_answer(answer: &[u8]) -> Option<Graphics> {
    let text = String::from_utf8_lossy(answer);
    if text.contains("\x1b_Gi=31;OK") {
        return Some(Graphics::Kitty);
    }
    let attributes = text.split_once("\x1b[?")?.1.split_once('c')?.0;
    attributes.split(';').skip(1).any(|attribute| attribute == "4").then_some(Graphics::Sixel)
}

/// Asks the controlling terminal; the answer ends with that to the device attributes. `None` where it does not answer in
/// time, or this program is not in its foreground and may not read from it.
fn ask() -> Option<Vec<u8>> {
    let mut terminal = OpenOptions::new().read(true).write(true).open("/dev/tty").ok()?;
    let descriptor = terminal.as_raw_fd();
    // SAFETY: both only read process ids.
    if unsafe { libc::tcgetpgrp(descriptor) != libc::getpgrp() } {
        return None;
    }
    let _raw = RawMode::enter(descriptor)?;
    terminal.write_all(QUESTION).ok()?;
    let deadline = Instant::now() + ANSWER_TIMEOUT;
    let mut answer = Vec::new();
    while !ends_attributes(&answer) {
        let left = deadline.checked_duration_since(Instant::now())?;
        if !readable(descriptor, left) || answer.len() > MAX_ANSWER {
            return None;
        }
        read_some(&mut terminal, &mut answer)?;
    }
    Some(answer)
}

fn ends_attributes(answer: &[u8]) -> bool {
    let start = answer.windows(3).position(|window| window == b"\x1b[?");
    start.is_some_and(|start| answer[start..].contains(&b'c'))
}

fn readable(descriptor: RawFd, timeout: Duration) -> bool {
    let mut poll = libc::pollfd { fd: descriptor, events: libc::POLLIN, revents: 0 };
    // SAFETY: one pollfd is passed, and it outlives the call.
    unsafe { libc::poll(&mut poll, 1, timeout.as_millis() as i32) == 1 }
}

fn read_some(terminal: &mut File, answer: &mut Vec<u8>) -> Option<()> {
    let mut buffer = [0; 256];
    match terminal.read(&mut buffer) {
        Ok(0) | Err(_) => None,
        Ok(read) => {
            answer.extend_from_slice(&buffer[..read]);
            Some(())
        }
    }
}

/// Input byte by byte and without echo, until dropped.
struct RawMode {
    descriptor: RawFd,
    before: libc::termios,
}

impl RawMode {
    fn enter(descriptor: RawFd) -> Option<Self> {
        // SAFETY: tcgetattr fills the struct that it is given; all its fields are plain numbers.
        let mut before: libc::termios = unsafe { std::mem::zeroed() };
        if unsafe { libc::tcgetattr(descriptor, &mut before) } != 0 {
            return None;
        }
        let mut raw = before;
        raw.c_lflag &= !(libc::ICANON | libc::ECHO);
        // SAFETY: a struct that tcgetattr filled.
        (unsafe { libc::tcsetattr(descriptor, libc::TCSANOW, &raw) } == 0).then_some(Self { descriptor, before })
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        // SAFETY: the struct that tcgetattr filled.
        unsafe { libc::tcsetattr(self.descriptor, libc::TCSANOW, &self.before) };
    }
}

/// A text of the feed for a terminal, at most `columns` wide: what would steer the terminal, or turn the direction of what
/// stands around it, is written as its escape (`\u{1b}`); line ends and tabs become spaces; marks beyond a few on one letter
/// are left out.
pub fn plain(text: &str, columns: usize) -> String {
    let mut shown = String::new();
    let mut width = 0;
    let mut marks = 0;
    for character in text.chars() {
        let piece = match character {
            '\n' | '\r' | '\t' => " ".to_owned(),
            character if steers(character) => character.escape_unicode().to_string(),
            character => character.to_string(),
        };
        let piece_width = piece.width();
        marks = if piece_width == 0 { marks + 1 } else { 0 };
        if marks > MAX_MARKS {
            continue;
        }
        if width + piece_width > columns {
            cut(&mut shown, columns);
            break;
        }
        shown.push_str(&piece);
        width += piece_width;
    }
    shown
}

/// Takes characters off the end until an ellipsis fits.
fn cut(shown: &mut String, columns: usize) {
    while shown.width() + 1 > columns {
        if shown.pop().is_none() {
            return;
        }
    }
    // A combination that was taken apart.
    while shown.chars().next_back().is_some_and(|character| character.width() == Some(0)) {
        shown.pop();
    }
    shown.push('…');
}

/// Control and format characters, but the joiners that make up emoji and scripts; and what breaks lines.
fn steers(character: char) -> bool {
    use GeneralCategory::{Control, Format, LineSeparator, ParagraphSeparator};
    let joins = matches!(character, '\u{200c}' | '\u{200d}');
    !joins && matches!(get_general_category(character), Control | Format | LineSeparator | ParagraphSeparator)
}

/// `text` and spaces behind it, up to `columns`.
pub fn padded(text: &str, columns: usize) -> String {
    format!("{text}{}", " ".repeat(columns.saturating_sub(text.width())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_text_cannot_steer_the_terminal() {
        assert_eq!(plain("a\u{1b}[2Jb\u{202e}c\nd\u{9b}0m\u{7f}", 80), r"a\u{1b}[2Jb\u{202e}c d\u{9b}0m\u{7f}");
        assert_eq!(
            plain("\u{2066}\u{200f}\u{feff}\u{2028}\u{e0041}", 80),
            r"\u{2066}\u{200f}\u{feff}\u{2028}\u{e0041}"
        );
    }

    #[test]
    fn texts_are_cut_to_their_columns() {
        assert_eq!(plain("日落时分", 8), "日落时分");
        assert_eq!(plain("日落时分", 7), "日落时…");
        assert_eq!(plain("日落时分", 6), "日落…");
        assert_eq!(plain(&"W".repeat(100_000), 10), format!("{}…", "W".repeat(9)));
        assert_eq!(plain("ab", 0), "");
        let marks = format!("a{}b", "\u{301}".repeat(100_000));
        assert_eq!(plain(&marks, 10), format!("a{}b", "\u{301}".repeat(MAX_MARKS)));
        for columns in 0..40 {
            let text = plain("红苹果 👩‍🔬 e\u{301}\u{1b}[31m مرحبا 👍🏽 end", columns);
            assert!(text.width() <= columns, "{columns}: {text}");
        }
        assert_eq!(padded("日", 4), "日  ");
    }

    #[test]
    fn terminals_say_what_they_can() {
        assert_eq!(from_answer(b"\x1b_Gi=31;OK\x1b\\\x1b[?62;c"), Some(Graphics::Kitty));
        assert_eq!(from_answer(b"\x1b[?62;4;22c"), Some(Graphics::Sixel));
        assert_eq!(from_answer(b"\x1b_Gi=31;EINVAL:no\x1b\\\x1b[?62;4c"), Some(Graphics::Sixel));
        // The first number is the level, not an attribute.
        assert_eq!(from_answer(b"\x1b[?4;6c"), None);
        assert_eq!(from_answer(b"\x1b[?1;2c"), None);
        assert_eq!(from_answer(b""), None);
        assert!(ends_attributes(b"\x1b_Gi=31;OK\x1b\\\x1b[?1;2c") && !ends_attributes(b"\x1b_Gi=31;OKc\x1b\\\x1b[?1"));
    }
}
