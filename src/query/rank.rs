//! From the store's hits to the answer's order and numbers; pure. `docs/search.md` tells it with its measured effects.
//!
//! ```text
//! candidates, block by block -> transform -> probability -> worth (one ranking, or two fused) -> freshness -> sort
//!                            -> threshold -> fold near-duplicates -> page
//! ```
//!
//! A block is what a search of the store for a number of candidates gives beyond the blocks before it. Each has its own
//! order, and a later one never changes an earlier one: pages of any size and offset are cuts of one list.
//!
//! - `score` is always one cosine. `probability` is always a softmax of logit_scale x (transformed) cosine over the first
//!   block's candidates; a post behind them has its share relative to theirs.
//! - One ranking: the order is that of the cosines.
//! - Two rankings: see [`fusion`]. `score` is the cosine of the ranking in which the post stands higher (`image` where
//!   they are equal), of those whose threshold it passes; `probability` the mean of the post's two softmax values, 0 where
//!   it is not a candidate: it sums to 1 over the union of the candidates.
//! - A threshold for each hit: a post below that of every ranking in which it stands is no hit. A threshold for the best hit:
//!   where the first of a ranking is below it, nothing fits there, and the ranking counts for nothing.

pub mod fold;
pub mod freshness;
pub mod fusion;
pub mod transform;

use std::collections::{HashMap, HashSet};

use chrono::{DateTime, Utc};
use uuid::Uuid;

use self::fold::Folder;
use self::freshness::Freshness;
use self::fusion::Fusion;
use self::transform::{Band, Transform};
use crate::store::{Hit, VectorName};

/// How an answer is ranked.
#[derive(Debug, Clone)]
pub struct Options {
    /// The factor before the softmax.
    pub logit_scale: f32,
    /// Of the similarities.
    pub transform: Transform,
    /// How two rankings become one.
    pub fusion: Fusion,
    /// Preference for newer posts, and the present time.
    pub freshness: Option<(Freshness, DateTime<Utc>)>,
    /// Least cosines.
    pub thresholds: Thresholds,
    /// Pictures with at least this cosine are one hit.
    pub fold: Option<f32>,
    /// Hits wanted, those before the page included.
    pub wanted: usize,
}

/// A least cosine.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Threshold {
    /// Of every hit.
    Each(f32),
    /// Of the best one: whether anything fits at all.
    Best(f32),
}

impl Threshold {
    /// The number.
    pub fn cosine(self) -> f32 {
        match self {
            Self::Each(cosine) | Self::Best(cosine) => cosine,
        }
    }
}

/// The thresholds of both rankings.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Thresholds {
    /// Of cosines with pictures.
    pub image: Option<Threshold>,
    /// Of cosines with captions.
    pub caption: Option<Threshold>,
}

impl Thresholds {
    /// That of one ranking.
    pub fn of(&self, using: VectorName) -> Option<Threshold> {
        match using {
            VectorName::Image => self.image,
            VectorName::Caption => self.caption,
        }
    }

    /// Whether no post behind these hits, best first, can be one.
    pub fn end(&self, using: VectorName, hits: &[Hit]) -> bool {
        match self.of(using) {
            None => false,
            Some(Threshold::Each(least)) => hits.last().is_some_and(|hit| hit.score < least),
            Some(Threshold::Best(least)) => hits.first().is_some_and(|hit| hit.score < least),
        }
    }

    fn passes(&self, using: VectorName, score: f32) -> bool {
        match self.of(using) {
            Some(Threshold::Each(least)) => score >= least,
            Some(Threshold::Best(_)) | None => true,
        }
    }
}

/// A post of the answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Ranked {
    /// The point.
    pub id: Uuid,
    /// Cosine similarity between the query and the post's vector `matched`, -1 to 1.
    pub score: f32,
    /// Which of the post's vectors `score` speaks of.
    pub matched: VectorName,
    /// Share of this post among the candidates, 0 to 1; see the module's text.
    pub probability: f64,
    /// Further posts with the same picture.
    pub folded: usize,
    /// The best of them, at most [`fold::NAMED`].
    pub folded_ids: Vec<Uuid>,
}

/// Softmax of `logit_scale * similarity` in f64, with the greatest logit subtracted first so that nothing overflows.
#[derive(Debug)]
pub struct Softmax {
    logit_scale: f64,
    greatest: f64,
    total: f64,
}

impl Softmax {
    /// Over these similarities.
    pub fn over(similarities: impl Iterator<Item = f64> + Clone, logit_scale: f32) -> Self {
        let logit_scale = f64::from(logit_scale);
        let greatest = similarities.clone().fold(f64::NEG_INFINITY, f64::max);
        let total = similarities.map(|similarity| (logit_scale * (similarity - greatest)).exp()).sum();
        Self { logit_scale, greatest, total }
    }

    /// The share of one of them.
    pub fn share(&self, similarity: f64) -> f64 {
        (self.logit_scale * (similarity - self.greatest)).exp() / self.total
    }
}

/// What the first block says of a ranking.
#[derive(Debug)]
struct List {
    band: Band,
    softmax: Softmax,
    fits: bool,
}

/// Takes blocks of candidates, gives the hits in their order.
pub struct Ranker {
    options: Options,
    lists: HashMap<VectorName, List>,
    newest: Option<DateTime<Utc>>,
    seen: HashSet<Uuid>,
    candidates: Option<usize>,
    folder: Folder<Ranked>,
}

struct Entry {
    post: Ranked,
    worth: f64,
    best_rank: usize,
    passes: bool,
    created_at: Option<DateTime<Utc>>,
    image: Option<Vec<f32>>,
}

impl Ranker {
    /// `without`: the post that is searched by, no hit of its own search.
    pub fn new(options: Options, without: Option<Uuid>) -> Self {
        let folder = Folder::new(options.fold, options.wanted);
        let seen = without.into_iter().collect();
        Self { options, lists: HashMap::new(), newest: None, seen, candidates: None, folder }
    }

    /// The hits of one or two rankings, each the best of its ranking; those of earlier blocks are passed over.
    pub fn add(&mut self, lists: Vec<(VectorName, Vec<Hit>)>) {
        let mut entries: HashMap<Uuid, Entry> = HashMap::new();
        let fused = lists.len() > 1;
        for (using, mut hits) in lists {
            hits.retain(|hit| !self.seen.contains(&hit.id));
            // Among equals, the stores' own orders differ.
            hits.sort_by(|left, right| right.score.total_cmp(&left.score).then_with(|| left.id.cmp(&right.id)));
            self.add_list(&mut entries, using, hits, fused);
        }
        self.candidates.get_or_insert(entries.len());
        let mut entries: Vec<Entry> = entries.into_values().collect();
        self.prefer_new(&mut entries);
        entries.retain(|entry| entry.passes);
        // The others may yet come in the other ranking, and pass there.
        self.seen.extend(entries.iter().map(|entry| entry.post.id));
        // Ties are common in fused rankings (the second of one against the second of the other): without the further keys
        // the order would change from call to call with the map's seed.
        entries.sort_by(|left, right| {
            let (first, second) = (&left.post, &right.post);
            right
                .worth
                .total_cmp(&left.worth)
                .then_with(|| second.probability.total_cmp(&first.probability))
                .then_with(|| first.id.cmp(&second.id))
        });
        for entry in entries {
            self.folder.add(entry.post.id, entry.post, entry.image);
        }
    }

    fn add_list(&mut self, entries: &mut HashMap<Uuid, Entry>, using: VectorName, hits: Vec<Hit>, fused: bool) {
        let Options { logit_scale, transform, fusion, thresholds, .. } = self.options;
        let list = self.lists.entry(using).or_insert_with(|| {
            let band = Band::of(hits.iter().map(|hit| f64::from(hit.score)));
            let similarities = hits.iter().map(|hit| transform.apply(f64::from(hit.score), &band));
            let fits = match thresholds.of(using) {
                Some(Threshold::Best(least)) => hits.first().is_some_and(|hit| hit.score >= least),
                Some(Threshold::Each(_)) | None => true,
            };
            List { band, softmax: Softmax::over(similarities, logit_scale), fits }
        });
        let fits = list.fits;
        let similarities: Vec<f64> = hits.iter().map(|hit| transform.apply(f64::from(hit.score), &list.band)).collect();
        for (rank, (hit, similarity)) in hits.into_iter().zip(similarities).enumerate() {
            let share = list.softmax.share(similarity);
            let probability = share * if fused { 0.5 } else { 1.0 };
            let worth = match fused {
                true if !fits => 0.0,
                true => fusion.worth(using == VectorName::Image, rank, share),
                false => similarity,
            };
            let passes = fits && thresholds.passes(using, hit.score);
            match entries.get_mut(&hit.id) {
                Some(entry) => {
                    entry.worth += worth;
                    entry.post.probability += probability;
                    if (passes, entry.best_rank) > (entry.passes, rank) {
                        (entry.best_rank, entry.passes) = (rank, passes);
                        (entry.post.score, entry.post.matched) = (hit.score, using);
                    }
                }
                None => {
                    let created_at = hit.payload.get("created_at").and_then(|time| time.as_str());
                    let entry = Entry {
                        worth,
                        best_rank: rank,
                        passes,
                        created_at: created_at.and_then(|time| crate::text::parse_time(time).ok()),
                        image: hit.image,
                        post: Ranked {
                            id: hit.id,
                            score: hit.score,
                            matched: using,
                            probability,
                            folded: 0,
                            folded_ids: Vec::new(),
                        },
                    };
                    entries.insert(hit.id, entry);
                }
            }
        }
    }

    fn prefer_new(&mut self, entries: &mut [Entry]) {
        let Some((freshness, now)) = self.options.freshness else { return };
        let times = || entries.iter().filter_map(|entry| Some(entry.created_at?.min(now)));
        let newest = *self.newest.get_or_insert_with(|| times().max().unwrap_or(now));
        let relevance = Band::of(entries.iter().map(|entry| entry.worth));
        for entry in entries {
            let fresh = freshness.of(entry.created_at, Some(newest));
            entry.worth = freshness.blend(relevance.place(entry.worth), fresh);
        }
    }

    /// Whether there are as many hits as are wanted.
    pub fn is_full(&self) -> bool {
        self.folder.is_full()
    }

    /// Number of distinct candidates over which the probabilities sum to 1.
    pub fn candidates(&self) -> usize {
        self.candidates.unwrap_or(0)
    }

    /// The hits from `offset` on, best first.
    pub fn finish(self, offset: usize) -> Vec<Ranked> {
        let groups = self.folder.finish().into_iter().skip(offset);
        groups.map(|group| Ranked { folded: group.folded, folded_ids: group.folded_ids, ..group.first }).collect()
    }
}

#[cfg(test)]
mod tests;
