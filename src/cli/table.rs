//! Hits for people: a line each, or some lines beside a small picture.

use std::fmt::Write as _;

use chrono::DateTime;
use serde_json::Value;
use unicode_width::UnicodeWidthStr as _;

use crate::cli::pictures::{COLUMNS, ROWS};
use crate::cli::terminal::{padded, plain};
use crate::query::service::{SearchHit, SearchResponse};

/// Columns of a caption where no terminal says how wide it is.
pub const CAPTION_COLUMNS: usize = 60;
/// Columns of an id, an author or a tag.
const NAME_COLUMNS: usize = 40;
/// Cells of the bar of a score.
const BAR: usize = 24;
/// Columns left of the text beside a picture.
const INDENT: usize = COLUMNS + 4;

/// A line a hit: rank, score, probability, post id, caption. `width`: columns of the terminal, where it is one.
pub fn render(response: &SearchResponse, width: Option<usize>) -> String {
    let mut text = none_fits(response);
    let ids = response.hits.iter().map(|hit| plain(string(&hit.post_id), NAME_COLUMNS)).collect::<Vec<_>>();
    let id_columns = ids.iter().map(|id| id.width()).max().unwrap_or_default();
    for (hit, id) in response.hits.iter().zip(&ids) {
        let line = format!("  {:>2}  {:.3}  {:>5.1}%  {}  ", hit.rank, hit.score, percent(hit), padded(id, id_columns));
        let left = width.map_or(CAPTION_COLUMNS, |width| width.saturating_sub(line.width()).max(20));
        let _ = writeln!(text, "{line}{}", plain(string(&hit.caption), left));
    }
    text
}

/// The hits beside their pictures (the escapes of [`crate::cli::pictures::draw`]), for a terminal of `width` columns.
pub fn render_with_pictures(response: &SearchResponse, pictures: &[Option<String>], width: usize) -> String {
    let mut text = none_fits(response);
    for (hit, picture) in response.hits.iter().zip(pictures) {
        // Room first, so that a terminal scrolls before the picture is drawn and not through it.
        let _ = write!(text, "{}\x1b[{ROWS}A", "\n".repeat(ROWS));
        if let Some(picture) = picture {
            let _ = write!(text, "\x1b7\x1b[2C{picture}\x1b8");
        }
        for line in lines(hit, width.saturating_sub(INDENT + 1).max(20)) {
            let _ = writeln!(text, "\r\x1b[{INDENT}C{line}");
        }
        text.push('\n');
    }
    text
}

/// What stands beside a picture.
fn lines(hit: &SearchHit, columns: usize) -> [String; ROWS] {
    let caption = plain(string(&hit.caption), columns.saturating_sub(4));
    let filled = (f64::from(hit.score).clamp(0.0, 1.0) * BAR as f64).round() as usize;
    let bar = format!("\x1b[34m{}\x1b[0;2m{}\x1b[0m", "━".repeat(filled), "─".repeat(BAR - filled));
    [
        format!("\x1b[1m{:>2}  {caption}\x1b[0m", hit.rank),
        format!("    {bar}  {:.3}  {:.1}%", hit.score, percent(hit)),
        format!("    {}", plain(&about(hit), columns.saturating_sub(4))),
        format!("    \x1b[2m{}\x1b[0m", plain(&remarks(hit), columns.saturating_sub(4))),
    ]
}

/// Author, time, language and tags.
fn about(hit: &SearchHit) -> String {
    let time = DateTime::parse_from_rfc3339(string(&hit.created_at))
        .map(|time| time.to_utc().format("%Y-%m-%d %H:%M UTC").to_string());
    let mut parts = vec![short(&hit.author), time.unwrap_or_default(), short(&hit.lang)];
    let tags = hit.tags.as_array().into_iter().flatten().take(6).map(|tag| format!("#{}", short(tag)));
    parts.push(tags.collect::<Vec<_>>().join(" "));
    parts.retain(|part| !part.is_empty());
    parts.join(" · ")
}

/// The post's id, and what is special about it.
fn remarks(hit: &SearchHit) -> String {
    let mut parts = vec![plain(string(&hit.post_id), NAME_COLUMNS)];
    if hit.image_pending {
        parts.push("its picture is pending".to_owned());
    }
    if hit.folded > 0 {
        parts.push(format!("+{} more like this", hit.folded));
    }
    parts.extend(hit.labels.iter().take(6).map(short));
    parts.join(" · ")
}

fn none_fits(response: &SearchResponse) -> String {
    match (response.hits.is_empty(), response.min_score) {
        (false, _) => String::new(),
        (true, Some(least)) => format!(
            "  nothing in the feed fits (a score of {least:.3} is the least); --min-score none shows the nearest\n"
        ),
        (true, None) => "  no posts found\n".to_owned(),
    }
}

fn percent(hit: &SearchHit) -> f64 {
    100.0 * hit.probability
}

fn string(value: &Value) -> &str {
    value.as_str().unwrap_or("")
}

fn short(value: &Value) -> String {
    plain(string(value), NAME_COLUMNS)
}
