//! The feed: an endless sequence of messages that the seed decides, each with what must come of it.

use std::collections::VecDeque;
use std::sync::Arc;

use feedlens::error::Reason;
use feedlens::post::VERSION_HEADER;
use rand::rngs::StdRng;
use rand::seq::{IndexedRandom as _, SliceRandom as _};
use rand::{Rng, SeedableRng};
use serde_json::{Map, Value, json};

use crate::material::{DRAWINGS, LARGE, Material};
use crate::poison;

/// Partitions of the posts topic.
pub const PARTITIONS: i32 = 6;
/// The header that tells messages apart, also in the dead letters.
pub const NUMBER_HEADER: &str = "chaos-number";

/// Edits mostly hit posts that are still on their way.
const RECENT: usize = 30;
/// Messages of a post that may come again.
const REMEMBERED: usize = 4;

/// A message of the feed.
#[derive(Debug, Clone)]
pub struct Message {
    pub number: u64,
    pub partition: i32,
    pub key: Option<Vec<u8>>,
    pub payload: Option<Vec<u8>>,
    pub headers: Vec<(String, Option<Vec<u8>>)>,
    pub meaning: Meaning,
}

/// What must come of a message.
#[derive(Debug, Clone)]
pub enum Meaning {
    Write { post_id: String, style: Style, version: Option<u64>, content: Option<Content> },
    Poison { kind: &'static str, reason: Reason },
}

/// How the writes of a post are ordered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    /// Each write has a version, in any order; deletions may lack it.
    Versions,
    /// No write has one.
    Positions,
    /// Some have one, and it grows with the position.
    Mixed,
}

/// What a search must give for a post; `None` in a [`Meaning::Write`]: a deletion.
#[derive(Debug, Clone, PartialEq)]
pub struct Content {
    pub caption: Option<String>,
    /// Number of the picture.
    pub picture: Option<usize>,
    pub author: Option<String>,
    pub tags: Vec<String>,
    pub likes: Option<u64>,
}

struct Known {
    post_id: String,
    style: Style,
    version: u64,
    sent: VecDeque<Message>,
}

/// What kinds of messages there are, with their shares in percent.
#[derive(Debug, Clone, Copy)]
enum Kind {
    New,
    Edit,
    Late,
    Delete,
    Repost,
    Poison,
}

const SHARES: [(Kind, u32); 6] =
    [(Kind::New, 36), (Kind::Edit, 28), (Kind::Late, 8), (Kind::Delete, 10), (Kind::Repost, 8), (Kind::Poison, 10)];

/// The generator.
pub struct Feed {
    random: StdRng,
    material: Arc<Material>,
    /// `http://address` of the pictures' host.
    host: String,
    known: Vec<Known>,
    number: u64,
    /// Every kind of poison before any comes again.
    poison: Vec<usize>,
}

impl Feed {
    pub fn new(seed: u64, material: Arc<Material>, host: String) -> Self {
        let random = StdRng::seed_from_u64(seed);
        Self { random, material, host, known: Vec::new(), number: 0, poison: Vec::new() }
    }

    /// The next message.
    pub fn next(&mut self) -> Message {
        let kind = SHARES.choose_weighted(&mut self.random, |(_, share)| *share).expect("shares are positive").0;
        let mut message = match kind {
            Kind::Poison => self.poison(),
            _ if self.known.len() < 3 => self.new_post(),
            Kind::New => self.new_post(),
            Kind::Edit => self.edit(),
            Kind::Late => self.late(),
            Kind::Delete => self.delete(),
            Kind::Repost => self.repost(),
        };
        message.number = self.number;
        message.headers.push((NUMBER_HEADER.to_owned(), Some(self.number.to_string().into_bytes())));
        if self.random.random_bool(0.1) {
            message.headers.push(("trace".to_owned(), None));
            message.headers.push(("trace".to_owned(), Some(vec![0, 255, 10])));
        }
        self.number += 1;
        message
    }

    fn pick(&mut self) -> usize {
        let count = self.known.len();
        let from = if self.random.random_bool(0.7) { count.saturating_sub(RECENT) } else { 0 };
        self.random.random_range(from..count)
    }

    fn new_post(&mut self) -> Message {
        let styles = [Style::Versions, Style::Versions, Style::Positions, Style::Positions, Style::Mixed];
        let style = *styles.choose(&mut self.random).expect("not empty");
        let post_id = format!("chaos:{}", self.number);
        let version = if self.random.random_bool(0.1) { 1 << 52 } else { self.random.random_range(0..1_000) };
        self.known.push(Known { post_id, style, version, sent: VecDeque::new() });
        self.write_post(self.known.len() - 1, version)
    }

    fn edit(&mut self) -> Message {
        let place = self.pick();
        let known = &mut self.known[place];
        known.version += self.random.random_range(1..4);
        let version = known.version;
        self.write_post(place, version)
    }

    /// An older version comes after the newer one, as a post or as a deletion.
    fn late(&mut self) -> Message {
        let place = self.pick();
        let known = &self.known[place];
        if known.style != Style::Versions {
            return self.edit();
        }
        let version = known.version.saturating_sub(self.random.random_range(1..3));
        if self.random.random_bool(0.2) {
            return self.write(place, Some(version), None);
        }
        self.write_post(place, version)
    }

    fn delete(&mut self) -> Message {
        let place = self.pick();
        let known = &mut self.known[place];
        let with_version = known.style != Style::Positions && self.random.random_bool(0.5);
        if with_version {
            known.version += 1;
        }
        let version = with_version.then_some(known.version);
        self.write(place, version, None)
    }

    /// The same bytes again.
    fn repost(&mut self) -> Message {
        let place = self.pick();
        let known = &self.known[place];
        let sent = &known.sent;
        // Versions of mixed writes must grow: only the last may come again.
        let from = if known.style == Style::Mixed { sent.len() - 1 } else { 0 };
        let mut again = sent[self.random.random_range(from..sent.len())].clone();
        again.headers.retain(|(name, _)| name == VERSION_HEADER);
        again
    }

    fn write_post(&mut self, place: usize, version: u64) -> Message {
        let version = match self.known[place].style {
            Style::Versions => Some(version),
            Style::Positions => None,
            Style::Mixed => self.random.random_bool(0.5).then_some(version),
        };
        let content = self.content();
        self.write(place, version, Some(content))
    }

    fn content(&mut self) -> Content {
        let random = &mut self.random;
        let shape = random.random_range(0..10);
        let caption = (shape != 0).then(|| self.material.captions.choose(random).expect("not empty").clone());
        let picture = (shape < 7).then(|| match random.random_bool(0.01) {
            true => DRAWINGS + random.random_range(0..LARGE),
            false => random.random_range(0..DRAWINGS),
        });
        let author = random.random_bool(0.7).then(|| format!("u{}", random.random_range(0..20)));
        let tags = (0..random.random_range(0..4)).map(|tag| format!("tag {tag}")).collect();
        let likes = random.random_bool(0.5).then(|| random.random_range(0..1_000_000));
        Content { caption, picture, author, tags, likes }
    }

    fn write(&mut self, place: usize, version: Option<u64>, content: Option<Content>) -> Message {
        let (post_id, style) = (self.known[place].post_id.clone(), self.known[place].style);
        let payload = content.as_ref().map(|content| self.json(&post_id, version, content).to_string().into_bytes());
        let mut headers = Vec::new();
        if let (None, Some(version)) = (&payload, version) {
            headers.push((VERSION_HEADER.to_owned(), Some(version.to_string().into_bytes())));
        }
        // Empty and absent are the same to many producers.
        let payload = payload.or_else(|| self.random.random_bool(0.3).then(Vec::new));
        let key = post_id.clone().into_bytes();
        let mut partition = home(&key);
        // Another producer, or a topic that got more partitions: two workers have writes of one post at a time.
        if style != Style::Mixed && self.random.random_bool(0.08) {
            partition = (partition + 1) % PARTITIONS;
        }
        let meaning = Meaning::Write { post_id, style, version, content };
        let message = Message { number: 0, partition, key: Some(key), payload, headers, meaning };
        let sent = &mut self.known[place].sent;
        sent.push_back(message.clone());
        if sent.len() > REMEMBERED {
            sent.pop_front();
        }
        message
    }

    fn json(&mut self, post_id: &str, version: Option<u64>, content: &Content) -> Value {
        let mut post = Map::new();
        let mut put = |name: &str, value: Option<Value>| {
            if let Some(value) = value {
                post.insert(name.to_owned(), value);
            }
        };
        put("post_id", Some(post_id.into()));
        put("author", content.author.clone().map(Value::from));
        put("caption", content.caption.clone().map(Value::from));
        put("lang", Some("zh".into()));
        put("created_at", Some("2026-11-20T08:30:00Z".into()));
        put("tags", (!content.tags.is_empty()).then(|| content.tags.clone().into()));
        put("version", version.map(Value::from));
        put("likes", content.likes.map(Value::from));
        put("image", content.picture.map(|picture| self.image(picture)));
        post.into()
    }

    fn image(&mut self, picture: usize) -> Value {
        let base64 = &self.material.pictures[picture].base64;
        match self.random.random_range(0..10) {
            // A message with a large picture would be poison: too large.
            kind if kind < 4 || picture >= DRAWINGS => json!({"url": format!("{}/picture/{picture}", self.host)}),
            4 => json!({"base64": format!("data:image/png;base64,{base64}")}),
            _ => json!({ "base64": base64 }),
        }
    }

    fn poison(&mut self) -> Message {
        if self.poison.is_empty() {
            self.poison = (0..poison::KINDS.len()).collect();
            self.poison.shuffle(&mut self.random);
        }
        let kind = &poison::KINDS[self.poison.pop().expect("just filled")];
        // Half of the poison would edit a post that is there: it must stay as it is.
        let post_id = match self.known.len() {
            count if count > 0 && self.random.random_bool(0.5) => {
                let place = self.pick();
                self.known[place].post_id.clone()
            }
            _ => format!("poison:{}", self.number),
        };
        let picture = &self.material.pictures[self.random.random_range(0..DRAWINGS)];
        let made = kind.make(&poison::Given { post_id: &post_id, picture: &picture.bytes, host: &self.host });
        let partition = home(made.key.as_deref().unwrap_or_default());
        let meaning = Meaning::Poison { kind: kind.name, reason: kind.reason };
        Message { number: 0, partition, key: made.key, payload: made.payload, headers: made.headers, meaning }
    }
}

fn home(key: &[u8]) -> i32 {
    (crc32fast::hash(key) % PARTITIONS as u32) as i32
}
