//! `feedlens collection compare`, and what `alias` asks of the same.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use clap::Args;
use serde::Serialize;
use toml::Value;

use crate::cli::{WrongUse, output, query, start};
use crate::config::Config;
use crate::encode::encoder::Encoder;
use crate::metrics::Metrics;
use crate::query::service::SearchService;
use crate::reindex::compare::{self, Answers, Asked, Posts, Recall};
use crate::reindex::stamp_of;
use crate::store::Collections;

/// Compare the configured model's collection with the live one: posts that lack, and how far the answers agree
///
/// Changes nothing. Each side is asked under its own model, so both bundles are needed.
#[derive(Args)]
pub struct Compare {
    #[command(flatten)]
    options: Options,
    /// The new model's bundle, in place of model.dir
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// One JSON object on standard output
    #[arg(long)]
    json: bool,
}

/// What is compared.
#[derive(Args)]
#[command(next_help_heading = "Comparison")]
pub struct Options {
    /// The bundle of the model that is live
    #[arg(long, value_name = "DIR")]
    live_model: Option<PathBuf>,
    /// Topics, one a line; or JSON lines {"text", "image" (path or url) or "post_id"}, which give Recall@1/5/10 too
    #[arg(long, value_name = "FILE")]
    queries: Option<PathBuf>,
    /// Compare with the posts' pictures, captions, or both
    #[arg(long, value_name = "TARGET", default_value = "image", value_parser = ["image", "caption", "both"])]
    target: String,
    /// Posts of each answer that are compared
    #[arg(long, value_name = "K", default_value_t = 10, value_parser = clap::value_parser!(u16).range(1..=100))]
    top_k: u16,
    /// Tell the share of the queries whose own overlap is below this
    #[arg(long, value_name = "SHARE", default_value_t = 0.3, value_parser = share)]
    bound: f64,
}

/// A number from 0 to 1.
pub fn share(text: &str) -> Result<f64, String> {
    let number = text.parse::<f64>().ok().filter(|number| (0.0..=1.0).contains(number));
    number.ok_or_else(|| "a number from 0 to 1".to_owned())
}

/// What a comparison found.
#[derive(Debug, Serialize)]
pub struct Compared {
    /// The live collection.
    pub live: Side,
    /// The configured model's.
    pub new: Side,
    /// Their posts.
    pub posts: Posts,
    /// Their answers.
    pub answers: Answers,
}

/// A collection and its model.
#[derive(Debug, Serialize)]
pub struct Side {
    /// The collection.
    pub collection: String,
    /// The model's id.
    pub model: String,
}

impl Compare {
    /// What the options say of the configuration.
    pub fn presets(&self) -> Vec<(String, Value)> {
        start::model_preset(self.model.as_deref())
    }

    /// Compares and prints.
    pub async fn run(self, config: Config) -> Result<()> {
        let collections = Collections::connect(&config.store).await?;
        let compared = self.options.compare(&config, &collections).await?;
        match self.json {
            true => output::print(serde_json::to_string(&compared)? + "\n"),
            false => output::print(text(&compared)),
        }
    }
}

impl Options {
    /// Compares the configured model's collection with the one that the alias points to.
    ///
    /// # Errors
    /// An option lacks; one of the collections is not there; `--live-model` is not the live one's.
    pub async fn compare(&self, config: &Config, collections: &Collections) -> Result<Compared> {
        let (Some(live_model), Some(queries)) = (&self.live_model, &self.queries) else {
            return Err(WrongUse::new(
                "a comparison needs --live-model DIR (the bundle of the model that is live) and --queries FILE",
            )
            .into());
        };
        let content =
            tokio::fs::read_to_string(queries).await.with_context(|| format!("cannot read {}", queries.display()))?;
        let queries = compare::parse(&content).with_context(|| format!("queries in {}", queries.display()))?;
        let mut live_config = config.clone();
        live_config.model.dir.clone_from(live_model);
        let Some(live) = collections.live().await? else {
            bail!("the alias {} points to nothing, so there is nothing to compare with", collections.alias());
        };
        let metrics = Arc::new(Metrics::new());
        let encoder = start::encoder(config, &metrics).await?;
        let new = collections.name_of(&stamp_of(&encoder));
        if new == live {
            bail!("the alias {} points to {new} already, so there is nothing to compare", collections.alias());
        }
        match collections.posts(&new).await? {
            None => bail!("there is no collection {new}; `feedlens collection reindex` makes and fills it"),
            Some(0) => bail!("the collection {new} is empty; `feedlens collection reindex` fills it"),
            Some(_) => {}
        }
        let live_encoder = start::encoder(&live_config, &metrics).await?;
        let of_live_model = collections.name_of(&stamp_of(&live_encoder));
        if of_live_model != live {
            bail!(
                "--live-model is {}, whose collection is {of_live_model}, but {live} is live; name the bundle of the model \
                 that the running workers have",
                live_encoder.bundle.id
            );
        }
        let asked = Asked { target: self.target.clone(), top_k: self.top_k.into(), bound: self.bound };
        let live_search = search(&live_config, &live_encoder, collections, &metrics).await?;
        let new_search = search(config, &encoder, collections, &metrics).await?;
        // After one another: the searches do not wait behind the scrolls.
        let answers = compare::answers(&live_search, &new_search, &queries, &asked).await?;
        let posts = compare::posts(collections, &live, &new).await?;
        Ok(Compared {
            live: Side { collection: live, model: live_encoder.bundle.id.clone() },
            new: Side { collection: new, model: encoder.bundle.id.clone() },
            posts,
            answers,
        })
    }
}

async fn search(
    config: &Config,
    encoder: &Encoder,
    collections: &Collections,
    metrics: &Arc<Metrics>,
) -> Result<Arc<SearchService>> {
    let store = collections.open(&stamp_of(encoder)).await?;
    query::search_service(config, encoder, &store, metrics)
}

/// For people.
pub fn text(compared: &Compared) -> String {
    let Compared { live, new, posts, answers } = compared;
    let mut text = format!(
        "live: {} (model {}), {} posts\nnew:  {} (model {}), {} posts\n",
        live.collection, live.model, posts.live, new.collection, new.model, posts.new
    );
    for (count, what, ids) in [
        (posts.missing, "only in the live collection", &posts.missing_ids),
        (posts.surplus, "only in the new collection", &posts.surplus_ids),
        (posts.without_picture, "without their picture in the new collection", &posts.without_picture_ids),
    ] {
        let _ = writeln!(text, "{what}: {count}{}", shown(ids, count));
    }
    let _ = writeln!(
        text,
        "overlap of the first {}: {:.3} on average over {} queries; below {} for {:.1} % of them",
        answers.top_k,
        answers.overlap,
        answers.queries,
        answers.bound,
        100.0 * answers.below
    );
    for query in answers.worst.iter().filter(|query| query.overlap < 1.0) {
        let _ = writeln!(text, "  {:.2}  {}", query.overlap, query.topic);
    }
    if let Some(recall) = &answers.recall {
        let line = |Recall { r1, r5, r10 }: Recall| format!("R@1 {r1:.1}  R@5 {r5:.1}  R@10 {r10:.1}");
        let _ = writeln!(text, "labelled queries: {}", recall.queries);
        let _ = writeln!(text, "  live: {}\n  new:  {}", line(recall.live), line(recall.new));
    }
    text
}

fn shown(ids: &[String], count: u64) -> String {
    match ids {
        [] => String::new(),
        ids => format!(" ({}{})", ids.join(", "), if (ids.len() as u64) < count { ", ..." } else { "" }),
    }
}
