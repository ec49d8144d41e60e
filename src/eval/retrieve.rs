//! `match`: the best candidates of every query, at the size of a study (5,000 x 50,000), resumable.
//!
//! ```text
//! items -> known? -> read, decode, encode -> work file (vectors on disk) -> blocks -> rank -> result
//! ```
//!
//! Memory does not grow with vectors: they lie in the work file, and blocks of [`QUERY_BLOCK`] queries and
//! [`CANDIDATE_BLOCK`] candidates are read from it, 20 MiB at 1,024 dimensions; beside them ids, paths and texts, and
//! the pictures in flight.

use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use futures::StreamExt;

use crate::error::Fault;
use crate::eval::dataset::Source;
use crate::eval::embed::Embedder;
use crate::eval::predictions::write_whole;
use crate::eval::rank::{CANDIDATE_BLOCK, Hit, Ranked, Ranker};
use crate::eval::vector_file::{Key, VectorFile, key};

/// Queries that are ranked at a time.
const QUERY_BLOCK: usize = 1024;

/// A text or a picture with its id.
#[derive(Debug, Clone)]
pub struct Item {
    /// As it stands in the result.
    pub id: String,
    /// What is encoded.
    pub content: Content,
}

/// What is encoded.
#[derive(Debug, Clone)]
pub enum Content {
    /// A text.
    Text(String),
    /// A picture.
    Image(Source),
}

/// One side of the search: texts or pictures.
#[derive(Debug, Clone)]
pub struct Side {
    /// In the order of the CSV file, or of the folder's names.
    pub items: Vec<Item>,
    /// "text" or "image".
    pub kind: &'static str,
}

/// An item with the row of its vector in the work file.
#[derive(Debug, Clone, Copy)]
struct Found {
    item: usize,
    row: u32,
}

/// What to write.
#[derive(Debug, Clone, Copy)]
pub struct Output {
    /// Candidates for each query.
    pub top_k: usize,
    /// Factor on cosines before the softmax; with it, the result has columns `similarity` and `probability`.
    pub logit_scale: Option<f32>,
}

/// Called with the number of items done since the last call.
pub trait Progress {
    /// Items were finished.
    fn done(&self, items: usize);
    /// An item cannot be used: one sentence for a person.
    fn problem(&self, sentence: &str);
}

/// Items that have a vector, and how many have none.
pub struct Encoded {
    found: Vec<Found>,
    /// Items that cannot be used.
    pub failed: usize,
}

/// Encodes what the work file does not have yet. An item that cannot be encoded (a missing or broken picture) is told to
/// `progress` and left out.
///
/// # Errors
/// The work file cannot be written, or the encoder has stopped.
pub async fn encode(
    side: &Side,
    embedder: &Embedder,
    file: &mut VectorFile,
    progress: &impl Progress,
) -> Result<Encoded> {
    let known = file.rows();
    let known = &known;
    let mut vectors = futures::stream::iter(side.items.iter().enumerate())
        .map(|(place, item)| async move { (place, vector(item, embedder, |key| known.contains_key(key)).await) })
        .buffered(embedder.in_flight());
    let mut encoded = Encoded { found: Vec::with_capacity(side.items.len()), failed: 0 };
    while let Some((place, outcome)) = vectors.next().await {
        progress.done(1);
        match outcome {
            Ok((key, None)) => encoded.found.push(Found { item: place, row: known[&key] }),
            Ok((key, Some(vector))) => {
                let row = tokio::task::block_in_place(|| file.append(key, &vector))?;
                encoded.found.push(Found { item: place, row });
            }
            Err(error) if concerns_all(&error) => return Err(error),
            Err(error) => {
                encoded.failed += 1;
                progress.problem(&format!("{}_id {}: {error:#}", side.kind, side.items[place].id));
            }
        }
    }
    Ok(encoded)
}

/// Whether the next item would fail in the same way.
fn concerns_all(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref::<Fault>(), Some(Fault::Retry { .. } | Fault::Fatal(_)))
}

async fn vector(item: &Item, embedder: &Embedder, known: impl Fn(&Key) -> bool) -> Result<(Key, Option<Vec<f32>>)> {
    match &item.content {
        Content::Text(text) => {
            let key = key("text", text.as_bytes());
            let vector = if known(&key) { None } else { Some(embedder.text(text).await?) };
            Ok((key, vector))
        }
        Content::Image(source) => {
            let with_key = |bytes: Vec<u8>| (key("image", &bytes), bytes);
            let (key, bytes) = embedder.read(source, with_key).await.with_context(|| source.to_string())?;
            let vector = match known(&key) {
                true => None,
                false => Some(embedder.image(bytes).await.with_context(|| source.to_string())?),
            };
            Ok((key, vector))
        }
    }
}

/// Ranks and writes the result: a row for each query and rank, queries in their order. Blocking. The file appears when
/// it is whole.
///
/// # Errors
/// There is nothing to search with or among, or the work file or the result cannot be read or written.
pub fn write_result(
    out: &Path,
    queries: (&Side, &Encoded),
    candidates: (&Side, &Encoded),
    file: &VectorFile,
    output: Output,
    progress: &impl Progress,
) -> Result<()> {
    for (side, encoded) in [queries, candidates] {
        ensure!(!encoded.found.is_empty(), "not one {} could be encoded", side.kind);
    }
    write_whole(out, |out| {
        let mut rows = csv::Writer::from_writer(out);
        let (query, candidate) = (queries.0.kind, candidates.0.kind);
        let mut header = vec![format!("{query}_id"), "similarity_ranking".to_owned(), format!("result_{candidate}_id")];
        if output.logit_scale.is_some() {
            header.extend(["similarity", "probability"].map(str::to_owned));
        }
        rows.write_record(&header)?;
        for block in queries.1.found.chunks(QUERY_BLOCK) {
            for (query, ranked) in block.iter().zip(rank(block, &candidates.1.found, file, output)?) {
                for (place, hit) in ranked.hits.iter().enumerate() {
                    let candidate = candidates.1.found[hit.index].item;
                    let ids = [&queries.0.items[query.item].id, &candidates.0.items[candidate].id];
                    write_row(&mut rows, ids, place + 1, &ranked, hit, output.logit_scale)?;
                }
            }
            progress.done(block.len());
        }
        rows.flush()?;
        Ok(())
    })
}

fn rank(queries: &[Found], candidates: &[Found], file: &VectorFile, output: Output) -> Result<Vec<Ranked>> {
    let vectors = file.read(queries.iter().map(|found| found.row))?;
    let mut ranker = Ranker::new(vectors.view(), output.top_k, output.logit_scale);
    for block in candidates.chunks(CANDIDATE_BLOCK) {
        ranker.add(file.read(block.iter().map(|found| found.row))?.view());
    }
    Ok(ranker.finish())
}

fn write_row(
    rows: &mut csv::Writer<impl Write>,
    [query, candidate]: [&String; 2],
    rank: usize,
    ranked: &Ranked,
    hit: &Hit,
    logit_scale: Option<f32>,
) -> Result<()> {
    rows.write_field(query)?;
    rows.write_field(rank.to_string())?;
    rows.write_field(candidate)?;
    if let Some(logit_scale) = logit_scale {
        rows.write_field(format!("{:.6}", hit.score))?;
        rows.write_field(format!("{:.6}", ranked.probability(hit, logit_scale)))?;
    }
    rows.write_record(None::<&[u8]>)?;
    Ok(())
}
