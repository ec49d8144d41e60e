//! `feedlens match`.

use std::ffi::OsString;
use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use sha2::{Digest as _, Sha256};
use toml::Value;

use crate::cli::progress::Progress;
use crate::cli::start;
use crate::config::Config;
use crate::encode::encoder::Encoder;
use crate::eval::dataset::{Source, picture_by_id, pictures_in};
use crate::eval::embed::Embedder;
use crate::eval::retrieve::{self, Content, Encoded, Item, Output, Side};
use crate::eval::table::{self, Row};
use crate::eval::vector_file::{Key, VectorFile};
use crate::metrics::Metrics;

const EXAMPLES: &str = "\
Texts search pictures:
  feedlens match --texts word_test.csv --images DIR --out result.csv
Pictures search texts:
  feedlens match --queries image_test.csv --images DIR --texts word_data.csv --out result.csv";

/// Batch retrieval: a CSV of texts or pictures in, a CSV of the best matches out
///
/// A CSV of texts has columns text_id and text; one of pictures has image_id, which is a file's name in the folder with or
/// without its extension, or a further column image with the file. Of equally similar candidates, the one named first
/// ranks first.
///
/// Vectors are kept in a work file beside the result, FILE.work, until it is written: a run that was cut off goes on where
/// it was when it is started again. A picture that is missing or broken is named on stderr and left out; the result is
/// written all the same, and the exit code is 1.
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub struct Arguments {
    /// Texts: the queries, or with --queries the candidates (CSV: text_id, text)
    #[arg(long, value_name = "FILE")]
    texts: PathBuf,
    /// Pictures to search with (CSV: image_id)
    #[arg(long, value_name = "FILE", conflicts_with = "candidates")]
    queries: Option<PathBuf>,
    /// Pictures to search among (CSV: image_id); otherwise all of the folder, by file name
    #[arg(long, value_name = "FILE", requires = "images")]
    candidates: Option<PathBuf>,
    /// Folder of the pictures; with --queries, its own folder unless told
    #[arg(long, value_name = "DIR", required_unless_present = "queries")]
    images: Option<PathBuf>,
    /// The result: text_id,similarity_ranking,result_image_id or image_id,similarity_ranking,result_text_id
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Matches for each query
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=1000))]
    top_k: u16,
    /// Two further columns: similarity (the cosine) and probability (softmax of logit_scale x cosine over all candidates)
    #[arg(long)]
    scores: bool,
    /// Keep the work file, FILE.work, for further runs with the same texts or pictures
    #[arg(long)]
    keep_work: bool,
    /// Model bundle; otherwise model.dir of the configuration
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
}

impl Arguments {
    /// What the options say of the configuration.
    pub fn presets(&self) -> Vec<(String, Value)> {
        start::model_preset(self.model.as_deref())
    }

    /// Encodes, ranks, writes.
    pub async fn run(self, config: Config) -> Result<()> {
        let work_name = beside(&self.out, ".work");
        let (arguments, sides) = tokio::task::spawn_blocking(move || self.sides().map(|sides| (self, sides)))
            .await
            .context("reading the tables panicked")??;
        let (queries, candidates) = sides;
        let encoder = start::encoder(&config, &Arc::new(Metrics::new())).await?;
        let (stamped, settings, path) = (encoder.clone(), config.clone(), work_name.clone());
        let mut work = tokio::task::spawn_blocking(move || {
            VectorFile::open(&path, &stamp(&stamped, &settings)?, stamped.bundle.dimension)
        })
        .await
        .context("opening the work file panicked")??;
        if !work.is_empty() {
            tracing::info!(vectors = work.len(), file = %work_name.display(), "going on with the vectors of the work file");
        }
        let output = Output {
            top_k: usize::from(arguments.top_k),
            logit_scale: arguments.scores.then_some(encoder.bundle.logit_scale),
        };
        let embedder = Embedder::new(encoder, &config.encoder, &config.images);
        let found_queries = encode(&queries, &embedder, &mut work).await?;
        let found_candidates = encode(&candidates, &embedder, &mut work).await?;
        let failed = found_queries.failed + found_candidates.failed;
        tokio::task::spawn_blocking(move || {
            let progress = Progress::new("ranking", queries.items.len());
            let (queries, candidates) = ((&queries, &found_queries), (&candidates, &found_candidates));
            retrieve::write_result(&arguments.out, queries, candidates, &work, output, &progress)?;
            progress.finish();
            tracing::info!(
                queries = queries.0.items.len(),
                candidates = candidates.0.items.len(),
                "{} is written",
                arguments.out.display()
            );
            ensure!(
                failed == 0,
                "{failed} items could not be used and are left out of {} (named above); mend them and start again: \
                 what is encoded is kept in {}",
                arguments.out.display(),
                work_name.display()
            );
            if arguments.keep_work { Ok(()) } else { work.remove() }
        })
        .await
        .context("ranking panicked")?
    }

    /// Queries and candidates.
    fn sides(&self) -> Result<(Side, Side)> {
        // Told now, not after hours.
        ensure!(!self.out.is_dir(), "--out {} is a folder; name a file", self.out.display());
        if let Some(folder) = &self.images {
            ensure!(folder.is_dir(), "--images {} is not a folder", folder.display());
        }
        let texts = texts(&self.texts)?;
        match (&self.queries, &self.images) {
            (Some(queries), folder) => {
                let own = queries.parent().unwrap_or(Path::new(""));
                Ok((images(table::read_images(queries)?, folder.as_deref().unwrap_or(own)), texts))
            }
            (None, Some(folder)) => {
                let candidates = match &self.candidates {
                    Some(file) => images(table::read_images(file)?, folder),
                    None => images_of(folder)?,
                };
                Ok((texts, candidates))
            }
            (None, None) => bail!("give --images DIR, or --queries FILE"),
        }
    }
}

fn texts(file: &Path) -> Result<Side> {
    let item = |row: Row| Item { id: row.id, content: Content::Text(row.value.unwrap_or_default()) };
    Ok(Side { items: table::read_texts(file)?.into_iter().map(item).collect(), kind: "text" })
}

fn images(rows: Vec<Row>, folder: &Path) -> Side {
    let item = |row: Row| {
        let file = match row.value {
            Some(file) => folder.join(file),
            // A file that is not there is told when its turn comes.
            None => picture_by_id(folder, &row.id).unwrap_or_else(|| folder.join(&row.id)),
        };
        Item { id: row.id, content: Content::Image(Source::File(file)) }
    };
    Side { items: rows.into_iter().map(item).collect(), kind: "image" }
}

fn images_of(folder: &Path) -> Result<Side> {
    let item = |file: PathBuf| {
        let id = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Item { id, content: Content::Image(Source::File(file)) }
    };
    let items = pictures_in(folder)?.into_iter().map(item).collect::<Vec<_>>();
    ensure!(!items.is_empty(), "there are no pictures (png, jpg, jpeg, webp, gif, bmp) in {}", folder.display());
    Ok(Side { items, kind: "image" })
}

async fn encode(side: &Side, embedder: &Embedder, work: &mut VectorFile) -> Result<Encoded> {
    let step = if side.kind == "text" { "encoding texts" } else { "encoding pictures" };
    let progress = Progress::new(step, side.items.len());
    let encoded = retrieve::encode(side, embedder, work, &progress).await;
    progress.finish();
    encoded
}

fn beside(out: &Path, ending: &str) -> PathBuf {
    let mut name = OsString::from(out);
    name.push(ending);
    name.into()
}

/// What computes the vectors: the bundle's files, the settings that change what enters the encoder and where it runs,
/// and this program's version.
fn stamp(encoder: &Encoder, config: &Config) -> Result<Key> {
    let mut hash = Sha256::new();
    hash.update(concat!(env!("CARGO_PKG_VERSION"), "\0"));
    hash.update(toml::to_string(&config.images)?);
    hash.update(format!("\0{:?}\0{:?}\0", encoder.preprocessor, config.encoder.providers));
    hash_folder(&encoder.bundle.dir, &mut hash)
        .with_context(|| format!("cannot read the bundle {}", encoder.bundle.dir.display()))?;
    Ok(hash.finalize().into())
}

/// Names and contents of a folder's files, in a fixed order.
fn hash_folder(folder: &Path, hash: &mut Sha256) -> std::io::Result<()> {
    let mut entries = std::fs::read_dir(folder)?.collect::<std::io::Result<Vec<_>>>()?;
    entries.sort_by_key(std::fs::DirEntry::file_name);
    for entry in entries {
        let path = entry.path();
        if entry.file_type()?.is_dir() {
            hash_folder(&path, hash)?;
        } else if path.is_file() {
            let mut reader = BufReader::with_capacity(1 << 20, File::open(&path)?);
            hash.update(entry.file_name().as_encoded_bytes());
            hash.update(reader.get_ref().metadata()?.len().to_le_bytes());
            while !reader.fill_buf()?.is_empty() {
                hash.update(reader.buffer());
                reader.consume(reader.buffer().len());
            }
        }
    }
    Ok(())
}
