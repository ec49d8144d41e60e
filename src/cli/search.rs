//! `feedlens search`.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::Args;

use crate::cli::{WrongUse, output, query, start, table};
use crate::config::Config;
use crate::metrics::Metrics;
use crate::post::ImageSource;
use crate::query::request::SearchRequest;
use crate::query::service::Source;

/// Ask one topic, or with one picture, from the terminal
///
/// Opens the store of the configuration itself; no query worker is needed.
#[derive(Args)]
pub struct Arguments {
    /// The topic, in Chinese or English
    #[arg(value_name = "TOPIC", required_unless_present = "image", conflicts_with = "image")]
    topic: Option<String>,
    /// Search with this picture instead
    #[arg(long, value_name = "FILE")]
    image: Option<PathBuf>,
    /// Compare with the posts' pictures, captions, or both
    #[arg(long, value_name = "TARGET", default_value = "image", value_parser = ["image", "caption", "both"])]
    target: String,
    /// Number of posts
    #[arg(long, value_name = "N")]
    top_k: Option<usize>,
    /// Only posts of this author
    #[arg(long)]
    author: Option<String>,
    /// Only posts in this language
    #[arg(long)]
    lang: Option<String>,
    /// Only posts with one of these tags; repeatable
    #[arg(long = "tag", value_name = "TAG")]
    tags: Vec<String>,
    /// Only posts written at or after this time (RFC 3339, or a day)
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// Only posts written before this time (RFC 3339, or a day)
    #[arg(long, value_name = "TIME")]
    until: Option<String>,
    /// Print the answer as one JSON value
    #[arg(long)]
    json: bool,
}

impl Arguments {
    /// Asks and prints.
    pub async fn run(self, config: Config) -> Result<()> {
        let parameters = self.parameters();
        let mut request = SearchRequest::from_parameters(parameters, &config.query).map_err(WrongUse::new)?;
        if let Some(file) = &self.image {
            let bytes =
                tokio::fs::read(file).await.with_context(|| format!("cannot read the picture {}", file.display()))?;
            let picture = ImageSource::Base64(STANDARD.encode(bytes));
            request.subject = SearchRequest::picture(picture, &config.query).subject;
        }
        let metrics = Arc::new(Metrics::new());
        let encoder = start::encoder(&config, &metrics).await?;
        let store = start::open_store(&config, &encoder, &metrics).await?;
        let search = query::search_service(&config, &encoder, &store, &metrics)?;
        let response = search.search(request, Source::Cli).await.map_err(anyhow::Error::from);
        let response = start::close(&store, response).await?;
        match self.json {
            true => output::print(format_args!("{}\n", serde_json::to_string(&response)?)),
            false => output::print(table::render(&response)),
        }
    }

    /// The options as the parameters of `GET /v1/search`, so that both are checked by the same code.
    fn parameters(&self) -> Vec<(String, String)> {
        // With --image the subject is put in later: the parameters know none for a file.
        let topic = self.topic.clone().unwrap_or_else(|| "picture".to_owned());
        let mut parameters = vec![("q", topic), ("target", self.target.clone())];
        parameters.extend(self.top_k.map(|top_k| ("top_k", top_k.to_string())));
        for (name, value) in
            [("author", &self.author), ("lang", &self.lang), ("since", &self.since), ("until", &self.until)]
        {
            parameters.extend(value.clone().map(|value| (name, value)));
        }
        parameters.extend(self.tags.iter().map(|tag| ("tag", tag.clone())));
        parameters.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
    }
}
