//! Compares what Kafka holds with the store, the searches and the dead letters.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use anyhow::Result;
use feedlens::kafka::dead_letter::{
    HEADER_DETAIL, HEADER_REASON, HEADER_SOURCE_OFFSET, HEADER_SOURCE_PARTITION, HEADER_SOURCE_TOPIC, HEADER_TIME,
};
use feedlens::post::point_id;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::expect::{Expected, Write, standing};
use crate::findings::Findings;
use crate::kafka::{POSTS, Record};
use crate::posts::{Content, Style};
use crate::search::{MOST_HITS, Searcher};
use crate::stored::Stored;
use crate::vectors::{Vectors, cosine};

/// A vector that was encoded in another batch differs by rounding only.
const SAME: f64 = 0.9999;
/// What a delete marker may say.
const MARKER_FIELDS: [&str; 8] =
    ["post_id", "deleted", "deleted_at", "deleted_before", "version", "ordered_by", "source", "revision"];
/// Topics that are searched for beside the two that everything is compared with.
const SEARCHES: usize = 20;

/// What was compared.
#[derive(Debug, Default)]
pub struct Counts {
    pub live: usize,
    pub deleted: usize,
    pub vectors: usize,
    pub poison: usize,
    pub dead_letters: usize,
    pub searches: usize,
    /// The farthest that a vector was from what it must be, as 1 - cosine.
    pub farthest: f64,
}

/// Each post once, in its latest version, with the vectors that its picture and caption give; each deletion a marker
/// without content; nothing else.
pub fn check_store(
    expected: &Expected,
    mut stored: HashMap<Uuid, Stored>,
    vectors: &Vectors,
    findings: &Findings,
    counts: &mut Counts,
) {
    let mut wrong: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for (post_id, history) in &expected.posts {
        let Some(write) = standing(history, |_| true) else { continue };
        let Some(point) = stored.remove(&point_id(post_id)) else {
            wrong.entry("posts or deletions that are lost").or_default().push(describe(post_id, write));
            continue;
        };
        let found = match &write.content {
            Some(content) => {
                counts.live += 1;
                compare_post(post_id, history.style, write, content, &point, vectors, counts)
            }
            None => {
                counts.deleted += 1;
                compare_marker(post_id, write, &point)
            }
        };
        if let Err(difference) = found {
            let line = format!("{}: {difference}; writes: {:?}", describe(post_id, write), history.writes);
            wrong.entry("posts that are not as their latest version").or_default().push(line);
        }
    }
    let unknown = stored.iter().map(|(id, point)| format!("{id} {:?}", point.payload.get("post_id")));
    wrong.entry("points that nobody wrote").or_default().extend(unknown);
    for (what, items) in wrong {
        findings.add_all(what, items);
    }
}

fn describe(post_id: &str, write: &Write) -> String {
    let what = if write.content.is_some() { "post" } else { "deletion" };
    let Write { partition, offset, version, .. } = write;
    format!("{post_id}: {what} at {partition}/{offset}, version {version:?}")
}

fn same(what: &str, found: Option<&Value>, expected: Option<Value>) -> Result<(), String> {
    if found == expected.as_ref() { Ok(()) } else { Err(format!("{what} is {found:?}, not {expected:?}")) }
}

fn compare_source(write: &Write, point: &Stored) -> Result<(), String> {
    let source = json!({
        "topic": POSTS, "partition": write.partition, "offset": write.offset, "timestamp": write.timestamp,
    });
    same("source", point.payload.get("source"), Some(source))
}

fn compare_post(
    post_id: &str,
    style: Style,
    write: &Write,
    content: &Content,
    point: &Stored,
    vectors: &Vectors,
    counts: &mut Counts,
) -> Result<(), String> {
    let payload = &point.payload;
    same("deleted", payload.get("deleted"), None)?;
    compare_source(write, point)?;
    same("post_id", payload.get("post_id"), Some(post_id.into()))?;
    same("caption", payload.get("caption"), content.caption.clone().map(Value::from))?;
    same("author", payload.get("author"), content.author.clone().map(Value::from))?;
    same("tags", payload.get("tags"), (!content.tags.is_empty()).then(|| content.tags.clone().into()))?;
    same("extra", payload.get("extra"), content.likes.map(|likes| json!({ "likes": likes })))?;
    let version = match style {
        Style::Positions => Value::from(write.offset),
        _ => write.version.map_or(Value::from(write.offset), Value::from),
    };
    same("version", payload.get("version"), Some(version))?;
    let picture = content.picture.map(|picture| &vectors.pictures[&picture]);
    let caption = content.caption.as_ref().map(|caption| &vectors.captions[caption]);
    for (name, expected) in [("image", picture), ("caption", caption)] {
        match (point.vectors.get(name), expected) {
            (None, None) => {}
            (Some(_), None) => return Err(format!("it has a vector {name} of nothing")),
            (None, Some(_)) => return Err(format!("it has no vector {name}")),
            (Some(found), Some(expected)) => {
                let cosine = cosine(found, expected);
                counts.vectors += 1;
                counts.farthest = counts.farthest.max(1.0 - cosine);
                if cosine.is_nan() || cosine < SAME {
                    return Err(format!("its vector {name} is of something else: cosine {cosine}"));
                }
            }
        }
    }
    Ok(())
}

fn compare_marker(post_id: &str, write: &Write, point: &Stored) -> Result<(), String> {
    same("deleted", point.payload.get("deleted"), Some(true.into()))?;
    compare_source(write, point)?;
    same("post_id", point.payload.get("post_id"), Some(post_id.into()))?;
    if let Some(more) = point.payload.keys().find(|name| !MARKER_FIELDS.contains(&name.as_str())) {
        return Err(format!("the marker still has {more}"));
    }
    if point.vectors.is_empty() { Ok(()) } else { Err("the marker still has vectors".to_owned()) }
}

/// Vectors must be able to tell one picture, or one caption, from another.
pub fn check_vectors_differ(vectors: &Vectors, findings: &Findings) {
    let mut pictures = vectors.pictures.values().collect::<Vec<_>>();
    pictures.truncate(100);
    let pairs = pictures.iter().enumerate().flat_map(|(place, one)| pictures[..place].iter().map(move |it| (one, it)));
    let (mut alike, mut all) = (0, 0);
    for (one, other) in pairs {
        all += 1;
        alike += usize::from(cosine(one, other) >= SAME);
    }
    if alike * 1_000 > all {
        findings.add(format!("{alike} of {all} pairs of pictures have the same vector: the oracle is blind"));
    }
}

/// The partition and offset that a dead letter says it came from.
pub fn source_place(letter: &Record) -> Option<(i32, i64)> {
    let number = |name: &str| std::str::from_utf8(letter.header(name)?).ok()?.parse::<i64>().ok();
    Some((i32::try_from(number(HEADER_SOURCE_PARTITION)?).ok()?, number(HEADER_SOURCE_OFFSET)?))
}

/// Every message that can never be indexed lies there, byte for byte, with its reason; nothing else does.
pub fn check_dead_letters(expected: &Expected, letters: &[Record], findings: &Findings, counts: &mut Counts) {
    counts.poison = expected.poison.len();
    counts.dead_letters = letters.len();
    let (mut seen, mut wrong) = (BTreeSet::new(), Vec::new());
    for letter in letters {
        let place = source_place(letter).unwrap_or((-1, -1));
        let Some(poison) = expected.poison.get(&place) else {
            let said = letter.header(HEADER_DETAIL).map(String::from_utf8_lossy);
            wrong.push(format!("{place:?} is dead-lettered, and is no poison: {said:?}"));
            continue;
        };
        seen.insert(place);
        let kind = poison.kind;
        let original = &poison.message;
        if (&letter.key, &letter.payload) != (&original.key, &original.payload) {
            wrong.push(format!("{place:?} ({kind}) is not byte for byte as it came"));
        }
        let came_with = letter.headers.get(..original.headers.len());
        if came_with != Some(&original.headers[..]) {
            wrong.push(format!("{place:?} ({kind}) has not the headers that it came with: {:?}", letter.headers));
        }
        let reason = letter.header(HEADER_REASON).map(String::from_utf8_lossy);
        if reason.as_deref() != Some(poison.reason.as_str()) {
            let detail = letter.header(HEADER_DETAIL).map(String::from_utf8_lossy);
            wrong.push(format!("{place:?} ({kind}): reason {reason:?}, not {}; {detail:?}", poison.reason));
        }
        if letter.header(HEADER_SOURCE_TOPIC) != Some(POSTS.as_bytes()) || letter.header(HEADER_TIME).is_none() {
            wrong.push(format!("{place:?} ({kind}): its headers do not say where it came from, and when"));
        }
    }
    findings.add_all("dead letters that are wrong", wrong);
    let lost = expected.poison.iter().filter(|(place, _)| !seen.contains(place));
    let lost = lost.map(|(place, poison)| format!("{place:?} ({})", poison.kind)).collect();
    findings.add_all("poison that is not in the dead letters", lost);
}

/// Searches find every live post, in its latest version, and no deleted one.
pub async fn check_searches(
    expected: &Expected,
    searcher: &Searcher,
    findings: &Findings,
    counts: &mut Counts,
) -> Result<()> {
    let mut live: BTreeMap<String, &Content> = BTreeMap::new();
    for (post_id, history) in &expected.posts {
        live.extend(standing(history, |_| true).and_then(|write| Some((post_id.clone(), write.content.as_ref()?))));
    }
    let all = (expected.posts.len() + 100).min(MOST_HITS);
    for target in ["image", "caption"] {
        let has_vector = |content: &Content| match target {
            "image" => content.picture.is_some(),
            _ => content.caption.is_some(),
        };
        let wanted = live.iter().filter(|(_, content)| has_vector(content));
        let wanted = wanted.map(|(post_id, content)| (post_id.clone(), content.caption.clone()));
        let wanted = wanted.collect::<BTreeMap<_, _>>();
        let found = searcher.find("海边的日落", target, all).await?;
        counts.searches += 1;
        let differ = |from: &BTreeMap<String, Option<String>>, other: &BTreeMap<String, Option<String>>| {
            let missing = from.iter().filter(|(post_id, caption)| other.get(*post_id) != Some(caption));
            missing.map(|(post_id, caption)| format!("{target}: {post_id} {caption:?}")).collect::<Vec<_>>()
        };
        // Of more posts than a search gives, it must give that many.
        if wanted.len() <= all || found.len() < all {
            findings.add_all("posts that a search does not find", differ(&wanted, &found));
        }
        findings.add_all("posts that a search must not find", differ(&found, &wanted));
    }
    let deleted = expected.posts.iter().filter(|(post_id, _)| !live.contains_key(*post_id));
    let topics = deleted.filter_map(|(post_id, history)| {
        let caption = history.writes.iter().rev().find_map(|write| write.content.as_ref()?.caption.clone());
        Some((post_id, caption?))
    });
    for (post_id, caption) in topics.take(SEARCHES) {
        counts.searches += 1;
        let found = searcher.find(&caption, "both", 100).await?;
        if found.contains_key(post_id) {
            findings.add(format!("{post_id} is deleted, and a search for its caption finds it"));
        }
    }
    Ok(())
}
