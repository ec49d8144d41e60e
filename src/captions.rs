//! What of a caption says nothing of the picture, and would eat the few tokens that a model reads (52 in Chinese-CLIP):
//! links, @names, the signs of #topics#, [stickers], repeated punctuation, zero-width characters. Pure.
//!
//! | in the caption | what becomes of it |
//! |---|---|
//! | `https://...`, `www...`, `t.cn/...` and other short links; their end is where ASCII's URL characters end | a space |
//! | `@name`, `＠name`, `//@name:`, `@name@host` | a space; longer than a name can be, or in an e-mail address: kept |
//! | `#topic#`, `#topic` | the sign goes, the word stays; `C#` keeps its sign |
//! | `[doge]`, `[笑cry]`: up to 10 letters, digits and underscores, a letter among them | a space |
//! | `！！！`, `......`, `~~~` | one of them; of `/` two |
//! | zero-width spaces, marks of direction, soft hyphens | nothing |
//! | joiners (U+200C, U+200D) | kept in emoji sequences and in scripts that use them, not beside ASCII, CJK or spaces |
//! | white space | one space, none at the ends |
//!
//! 【】, （） and quotes stay: in feeds they hold words of the caption. What has nothing but punctuation left is kept as it
//! came. Cleaning what is clean changes nothing.

use std::borrow::Cow;
use std::sync::LazyLock;

use regex::{Captures, Regex};
use serde::{Deserialize, Serialize};
use unicode_general_category::{GeneralCategory, get_general_category};

/// Section `[captions]` of the configuration; the comments of `config/default.toml` are the reference.
#[derive(Debug, Clone, Copy, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct CaptionsConfig {
    /// Remove what says nothing of the picture before tokenising.
    pub clean: bool,
}

impl CaptionsConfig {
    /// The text that is to be tokenised.
    pub fn apply<'a>(&self, text: &'a str) -> Cow<'a, str> {
        if self.clean { clean(text) } else { Cow::Borrowed(text) }
    }
}

/// A longer run of letters behind an "@" is no name: Weibo's have at most 30 characters, of which CJK count twice.
const MAX_NAME_WIDTH: usize = 30;

/// Finite automata: linear in the caption, whatever it holds. What is behind a match was looked at once more at most, for
/// what a match could not be extended over (the punctuation behind a link) holds no other match.
static REDUNDANT: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(
        r"(?x)
        # Without brackets, which begin a sticker, and without the sentence's punctuation at the end.
        (?<link> (?i-u:
            (?: https?:// | ftp:// | \bwww\. | \b(?:[a-z0-9-]+\.)+ (?:be|cn|co|com|gl|io|jp|ly|me|net|org|to|tv) / )
            [a-z0-9._~:/?\#@!$&'()*+,;=%-]* [a-z0-9/_~=&%+-]
        ) )
        | (?<address> [A-Za-z0-9_] [@＠] [A-Za-z0-9.@-]+ )
        # In Japanese, text follows a name of ASCII without a space.
        | (?: (?-u:\b)RT\s+ | /+\s* )? [@＠]
          (?<name> [A-Za-z0-9_] [[\w&&[^\p{Hiragana}\p{Katakana}]]-]* | \w[\w-]* ) (?: @[A-Za-z0-9.-]+ )? [:：]?
        | (?<sticker> \[\w{1,10}\] )
        | (?<sign> [\#＃] )
        ",
    )
    .expect("the pattern is a regular expression. This is a bug.")
});

/// The caption without its redundant parts: never longer, never empty where it was not.
pub fn clean(caption: &str) -> Cow<'_, str> {
    let visible = once(&without_zero_width(caption));
    let mut open_topic = false;
    let without = REDUNDANT.replace_all(&visible, |found: &Captures<'_>| {
        let whole = found.get_match();
        let before = visible[..whole.start()].chars().next_back();
        let after = visible[whole.end()..].chars().next();
        let redundant = if let Some(name) = found.name("name") {
            width(name.as_str()) <= MAX_NAME_WIDTH
        } else if found.name("sticker").is_some() {
            whole.as_str().chars().any(char::is_alphabetic)
        } else if found.name("sign").is_some() {
            let closes = open_topic && before.is_some_and(|character| !character.is_whitespace());
            let opens = !closes && after.is_some_and(is_word);
            open_topic = opens;
            closes || opens
        } else {
            found.name("link").is_some()
        };
        if redundant { " " } else { whole.as_str() }.to_owned()
    });
    let cleaned = without.split_whitespace().collect::<Vec<_>>().join(" ");
    if cleaned == caption || !cleaned.chars().any(says_something) {
        Cow::Borrowed(caption)
    } else {
        Cow::Owned(cleaned)
    }
}

/// Without characters that show nothing. Joiners stay where they make one emoji of several, or shape letters.
fn without_zero_width(text: &str) -> String {
    let mut shown = text.chars().filter(|character| !is_invisible(*character)).peekable();
    let mut kept = String::with_capacity(text.len());
    let mut before = None;
    while let Some(character) = shown.next() {
        let between = |after| before.is_some_and(takes_joiners) && after;
        if is_joiner(character) && !between(shown.peek().copied().is_some_and(takes_joiners)) {
            continue;
        }
        kept.push(character);
        before = Some(character);
    }
    kept
}

/// Zero-width spaces, soft hyphens, marks of direction, invisible operators.
fn is_invisible(character: char) -> bool {
    matches!(character,
        '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}'
        | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

fn is_joiner(character: char) -> bool {
    matches!(character, '\u{200c}' | '\u{200d}')
}

fn takes_joiners(character: char) -> bool {
    !(character.is_ascii() || character.is_whitespace() || is_joiner(character) || is_east_asian(character))
}

/// Chinese, Japanese and Korean letters, their punctuation and full-width forms.
fn is_east_asian(character: char) -> bool {
    matches!(u32::from(character),
        0x1100..=0x11FF | 0x2E80..=0x9FFF | 0xA960..=0xA97F | 0xAC00..=0xD7FF | 0xF900..=0xFAFF | 0xFE30..=0xFE4F
        | 0xFF00..=0xFFEF | 0x20000..=0x3FFFF)
}

/// Each run of one punctuation character as one of them; of slashes two, which links need.
fn once(text: &str) -> String {
    let mut kept = String::with_capacity(text.len());
    let (mut before, mut run) = (None, 0);
    for character in text.chars() {
        run = if before == Some(character) { run + 1 } else { 1 };
        before = Some(character);
        let most = if character == '/' { 2 } else { 1 };
        if run <= most || !is_repeatable(character) {
            kept.push(character);
        }
    }
    kept
}

/// Punctuation, but not the "+" of "C++".
fn is_repeatable(character: char) -> bool {
    character != '+' && is_punctuation(character)
}

fn is_punctuation(character: char) -> bool {
    use GeneralCategory as Category;
    character.is_ascii_punctuation()
        || character == '～'
        || matches!(
            get_general_category(character),
            Category::ConnectorPunctuation
                | Category::DashPunctuation
                | Category::OpenPunctuation
                | Category::ClosePunctuation
                | Category::InitialPunctuation
                | Category::FinalPunctuation
                | Category::OtherPunctuation
        )
}

/// In columns, as Weibo counts.
fn width(name: &str) -> usize {
    name.chars().map(|character| if is_east_asian(character) { 2 } else { 1 }).sum()
}

fn is_word(character: char) -> bool {
    character.is_alphanumeric() || character == '_'
}

/// Letters, numbers, emoji and other symbols.
fn says_something(character: char) -> bool {
    use GeneralCategory as Category;
    character.is_alphanumeric()
        || (!is_punctuation(character)
            && matches!(
                get_general_category(character),
                Category::OtherSymbol | Category::MathSymbol | Category::CurrencySymbol | Category::ModifierSymbol
            ))
}

#[cfg(test)]
mod tests;
