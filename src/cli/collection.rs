//! `feedlens collection`.

mod alias;
mod compare;
mod reindex;

use std::path::PathBuf;

use anyhow::Result;
use clap::{Args, Subcommand};
use serde::Serialize;
use toml::Value;

use crate::cli::{output, start};
use crate::config::Config;
use crate::encode::bundle::Bundle;
use crate::metrics::Metrics;
use crate::store::collection::{CollectionState, describe};
use crate::store::{self, ModelStamp};

/// The collection of a model: make it, tell how it is, fill another beside it, and change over
#[derive(Subcommand)]
pub enum Command {
    Create(Create),
    Info(Info),
    Reindex(reindex::Reindex),
    Compare(compare::Compare),
    Alias(alias::Alias),
}

/// Make the model's collection, its payload indexes and the alias, where they lack
///
/// Workers do the same at their start; this does it before them, and needs no broker and no ONNX Runtime. What is there stays
/// as it is: it can be run again at any time. An alias that points to another model's collection is an error.
#[derive(Args)]
pub struct Create {
    #[command(flatten)]
    shared: Shared,
}

/// Tell what the alias points to, and how many posts the model's collection has; changes nothing
#[derive(Args)]
pub struct Info {
    #[command(flatten)]
    shared: Shared,
}

#[derive(Args)]
struct Shared {
    /// The model bundle, in place of model.dir
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// One JSON object on standard output
    #[arg(long)]
    json: bool,
}

/// What `create` did.
#[derive(Serialize)]
struct Created {
    /// Whether the collection was not there before.
    created: bool,
    #[serde(flatten)]
    state: CollectionState,
}

impl Command {
    /// What the options say of the configuration.
    pub fn presets(&self) -> Vec<(String, Value)> {
        match self {
            Command::Create(Create { shared }) | Command::Info(Info { shared }) => {
                start::model_preset(shared.model.as_deref())
            }
            Command::Reindex(arguments) => arguments.presets(),
            Command::Compare(arguments) => arguments.presets(),
            Command::Alias(arguments) => arguments.presets(),
        }
    }

    /// Runs.
    pub async fn run(self, config: Config) -> Result<()> {
        match self {
            Command::Create(Create { shared }) => create(&shared, &config).await,
            Command::Info(Info { shared }) => info(&shared, &config).await,
            Command::Reindex(arguments) => arguments.run(config).await,
            Command::Compare(arguments) => arguments.run(config).await,
            Command::Alias(arguments) => arguments.run(config).await,
        }
    }
}

async fn create(shared: &Shared, config: &Config) -> Result<()> {
    let stamp = stamp(config).await?;
    let before = describe(&config.store, &stamp).await?;
    store::open(&config.store, &stamp, &Metrics::new()).await?.close().await?;
    let state = describe(&config.store, &stamp).await?;
    let created = Created { created: before.posts.is_none(), state };
    if shared.json {
        return output::print(serde_json::to_string(&created)? + "\n");
    }
    let did = if created.created { "made" } else { "there already" };
    output::print(format!("{did}: {}", text(&created.state)))
}

async fn info(shared: &Shared, config: &Config) -> Result<()> {
    let state = describe(&config.store, &stamp(config).await?).await?;
    match shared.json {
        true => output::print(serde_json::to_string(&state)? + "\n"),
        false => output::print(text(&state)),
    }
}

/// Of the configured model. The description alone: no weights are loaded.
async fn stamp(config: &Config) -> Result<ModelStamp> {
    let dir = config.model.dir.clone();
    let bundle = tokio::task::spawn_blocking(move || Bundle::load(&dir)).await??;
    Ok(ModelStamp { model: bundle.id, dimension: bundle.dimension })
}

/// For people.
fn text(state: &CollectionState) -> String {
    let CollectionState { alias, collection, model, dimension, alias_of, posts } = state;
    let posts = match posts {
        Some(posts) => format!("{posts} posts"),
        None => "not there yet; feedlens collection create makes it".to_owned(),
    };
    let pointed = match alias_of {
        Some(target) if target == collection => "it".to_owned(),
        Some(target) => format!("{target}, another model's"),
        None => "nothing yet".to_owned(),
    };
    format!(
        "collection {collection}: {posts}\nmodel {model}, {dimension} dimensions\nalias {alias}: points to {pointed}\n"
    )
}
