//! `feedlens collection alias`.

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::Args;
use toml::Value;

use super::compare::{self, Compared, Options};
use crate::cli::{WrongUse, output, start};
use crate::config::Config;
use crate::encode::bundle::Bundle;
use crate::store::{Collections, ModelStamp};

/// Make the configured model's collection the live one, if it stands the comparison
///
/// Moves the alias in one step. Workers that run go on with the collection of their own model until they are started again,
/// so nothing fails in between; new ones start with the new model alone. Prints how to go back.
#[derive(Args)]
pub struct Alias {
    /// Another collection than that of the configured model; only with --force
    #[arg(long, value_name = "COLLECTION")]
    to: Option<String>,
    /// The least mean overlap with the live answers, 0 to 1
    #[arg(long, value_name = "SHARE", value_parser = compare::share)]
    min_overlap: Option<f64>,
    /// The least Recall@10 of the new collection in percent; the queries must be labelled
    #[arg(long, value_name = "PERCENT")]
    min_recall: Option<f64>,
    /// So many posts may lack, or lack their picture
    #[arg(long, value_name = "N", default_value_t = 0)]
    max_missing: u64,
    /// Compare nothing: the way back, or a deliberate step
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    options: Options,
    /// The new model's bundle, in place of model.dir
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
}

impl Alias {
    /// What the options say of the configuration.
    pub fn presets(&self) -> Vec<(String, Value)> {
        start::model_preset(self.model.as_deref())
    }

    /// Compares, moves and tells.
    pub async fn run(self, config: Config) -> Result<()> {
        if !self.force && self.to.is_some() {
            return Err(WrongUse::new(
                "--to goes with --force alone: a comparison needs the model of that collection (set model.dir to it, and \
                 leave --to out)",
            )
            .into());
        }
        if !self.force && self.min_overlap.is_none() && self.min_recall.is_none() {
            return Err(WrongUse::new(
                "say when the new collection is good enough: --min-overlap SHARE or --min-recall PERCENT (or --force, which \
                 compares nothing)",
            )
            .into());
        }
        let collections = Collections::connect(&config.store).await?;
        let alias = collections.alias();
        let target = match &self.to {
            Some(target) => target.clone(),
            None => {
                let dir = config.model.dir.clone();
                let bundle = tokio::task::spawn_blocking(move || Bundle::load(&dir)).await??;
                collections.name_of(&ModelStamp { model: bundle.id, dimension: bundle.dimension })
            }
        };
        match collections.posts(&target).await? {
            None => bail!(
                "there is no collection {target}, so the alias {alias} stays; `feedlens collection reindex` makes and fills \
                 the collection of a model"
            ),
            Some(0) => bail!("the collection {target} is empty, so the alias {alias} stays; fill it first"),
            Some(_) => {}
        }
        let live = collections.live().await?;
        if live.as_ref() == Some(&target) {
            return output::print(format!("the alias {alias} points to {target} already\n"));
        }
        if !self.force {
            let compared = self.options.compare(&config, &collections).await?;
            output::print(compare::text(&compared))?;
            if let Some(reason) = self.reason_to_stay(&compared) {
                bail!("the alias {alias} stays: {reason}");
            }
        }
        collections.point_alias_to(&target).await?;
        let back = match live {
            Some(live) => format!("\nback: feedlens collection alias --to {live} --force"),
            None => String::new(),
        };
        output::print(format!(
            "the alias {alias} points to {target} now; start the workers again with its model, and keep `collection reindex` \
             running until the last of the old ones has ended{back}\n"
        ))
    }

    fn reason_to_stay(&self, Compared { posts, answers, .. }: &Compared) -> Option<String> {
        let lacking = posts.missing + posts.without_picture;
        if lacking > self.max_missing {
            return Some(format!(
                "posts missing in the new collection: {}; without their picture there: {}; more than --max-missing {}",
                posts.missing, posts.without_picture, self.max_missing
            ));
        }
        if let Some(least) = self.min_overlap.filter(|least| answers.overlap < *least) {
            return Some(format!("the mean overlap is {:.3}, below --min-overlap {least}", answers.overlap));
        }
        let least = self.min_recall?;
        match &answers.recall {
            None => Some("--min-recall needs labelled queries (JSON lines with an image or a post_id)".to_owned()),
            Some(recall) if recall.new.r10 < least => {
                Some(format!("Recall@10 is {:.1} %, below --min-recall {least}", recall.new.r10))
            }
            Some(_) => None,
        }
    }
}
