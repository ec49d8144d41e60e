//! `feedlens search`.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::{Args, ValueEnum};
use futures::future::join_all;
use serde_json::Value;

use crate::cli::terminal::{self, Graphics, Size};
use crate::cli::{WrongUse, output, pictures, query, start, table};
use crate::config::Config;
use crate::metrics::Metrics;
use crate::post::ImageSource;
use crate::query::request::SearchRequest;
use crate::query::service::{SearchHit, SearchResponse, SearchService, Source};
use crate::traces::Span;

/// Ask one topic, or with one picture, from the terminal
///
/// Opens the store of the configuration itself; no query worker is needed. In a terminal that can show pictures, each post
/// stands beside its own.
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
    /// How to show the posts' pictures; auto asks the terminal, and shows none where the output is no terminal
    #[arg(long, value_name = "HOW", default_value = "auto", conflicts_with = "json")]
    pictures: Pictures,
    /// Print the answer as one JSON value
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    page: Page,
    #[command(flatten)]
    filter: Filter,
    #[command(flatten)]
    ranking: Ranking,
}

#[derive(Args)]
struct Page {
    /// Number of posts
    #[arg(long, value_name = "N")]
    top_k: Option<usize>,
    /// Leave out the best N, as a page after the first does
    #[arg(long, value_name = "N")]
    offset: Option<usize>,
}

#[derive(Args)]
#[command(next_help_heading = "Filters")]
struct Filter {
    /// Only posts of this author
    #[arg(long)]
    author: Option<String>,
    /// No posts of this author; repeatable
    #[arg(long = "not-author", value_name = "AUTHOR")]
    not_authors: Vec<String>,
    /// Only posts in this language
    #[arg(long)]
    lang: Option<String>,
    /// Only posts with one of these tags; repeatable
    #[arg(long = "tag", value_name = "TAG")]
    tags: Vec<String>,
    /// Only posts with all of these tags; repeatable
    #[arg(long = "tag-all", value_name = "TAG")]
    tags_all: Vec<String>,
    /// Only posts with one of these labels (SET/LABEL); repeatable
    #[arg(long = "label", value_name = "LABEL")]
    labels: Vec<String>,
    /// No posts with one of these labels; repeatable
    #[arg(long = "label-none", value_name = "LABEL")]
    labels_none: Vec<String>,
    /// Only posts written at or after this time (RFC 3339, or a day)
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// Only posts written before this time (RFC 3339, or a day)
    #[arg(long, value_name = "TIME")]
    until: Option<String>,
}

// Values are checked where those of the API are, so that both say the same of a wrong one.
#[derive(Args)]
#[command(next_help_heading = "Ranking")]
struct Ranking {
    /// Least similarity of a hit: a number, "auto" (the model's calibrated threshold) or "none"
    #[arg(long, value_name = "SCORE", allow_hyphen_values = true)]
    min_score: Option<String>,
    /// Newer posts first: the age at which half of the bonus is left, such as 24h
    #[arg(long, value_name = "HALF_LIFE")]
    freshness: Option<String>,
    /// Weight of the bonus, 0 to 1
    #[arg(long, value_name = "WEIGHT")]
    freshness_weight: Option<String>,
    /// Whether posts with nearly the same picture become one hit: true or false
    #[arg(long, value_name = "BOOL")]
    fold: Option<String>,
    /// For --target both, how the rankings of pictures and captions become one: rrf or weighted
    #[arg(long, value_name = "FUSION")]
    fusion: Option<String>,
    /// For --fusion weighted, the weight of the pictures, 0 to 1
    #[arg(long, value_name = "WEIGHT")]
    image_weight: Option<String>,
    /// Of the similarities: none, sine, sigmoid or centred_sigmoid
    #[arg(long, value_name = "TRANSFORM")]
    transform: Option<String>,
}

/// `--pictures`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Pictures {
    /// As the terminal can
    Auto,
    /// Kitty's graphics protocol
    Kitty,
    /// DEC's sixels
    Sixel,
    /// Half blocks of Unicode
    Blocks,
    /// No pictures, a line a post
    None,
}

impl Pictures {
    /// May ask the terminal. Blocking.
    fn graphics(self) -> Option<Graphics> {
        match self {
            Pictures::Auto => terminal::graphics(),
            Pictures::Kitty => Some(Graphics::Kitty),
            Pictures::Sixel => Some(Graphics::Sixel),
            Pictures::Blocks => Some(terminal::blocks()),
            Pictures::None => None,
        }
    }
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
        let found = async {
            let response = search.search(request, Source::Cli, &Span::default()).await?;
            let shown = match self.json {
                true => format!("{}\n", serde_json::to_string(&response)?),
                false => show(&response, &search, self.pictures).await?,
            };
            Ok(shown)
        };
        let found = found.await;
        output::print(start::close(&store, found).await?)
    }

    /// The options as the parameters of `GET /v1/search`, so that both are checked by the same code.
    fn parameters(&self) -> Vec<(String, String)> {
        // With --image the subject is put in later: the parameters know none for a file.
        let topic = self.topic.clone().unwrap_or_else(|| "picture".to_owned());
        let mut parameters = vec![("q", topic), ("target", self.target.clone())];
        let (page, filter, ranking) = (&self.page, &self.filter, &self.ranking);
        for (name, number) in [("top_k", page.top_k), ("offset", page.offset)] {
            parameters.extend(number.map(|number| (name, number.to_string())));
        }
        for (name, value) in [
            ("author", &filter.author),
            ("lang", &filter.lang),
            ("since", &filter.since),
            ("until", &filter.until),
            ("min_score", &ranking.min_score),
            ("freshness", &ranking.freshness),
            ("freshness_weight", &ranking.freshness_weight),
            ("fold", &ranking.fold),
            ("fusion", &ranking.fusion),
            ("image_weight", &ranking.image_weight),
            ("transform", &ranking.transform),
        ] {
            parameters.extend(value.clone().map(|value| (name, value)));
        }
        for (name, values) in [
            ("not_author", &filter.not_authors),
            ("tag", &filter.tags),
            ("tag_all", &filter.tags_all),
            ("label", &filter.labels),
            ("label_none", &filter.labels_none),
        ] {
            parameters.extend(values.iter().map(|value| (name, value.clone())));
        }
        parameters.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
    }
}

/// The answer for a person.
async fn show(response: &SearchResponse, search: &SearchService, pictures: Pictures) -> Result<String> {
    let (graphics, size) = tokio::task::spawn_blocking(move || (pictures.graphics(), terminal::size())).await?;
    let Some(graphics) = graphics else {
        return Ok(table::render(response, size.map(|size| size.columns)));
    };
    let size = size.unwrap_or(terminal::DEFAULT_SIZE);
    let drawn = join_all(response.hits.iter().map(|hit| draw(hit, search, graphics, size))).await;
    Ok(table::render_with_pictures(response, &drawn, size.columns))
}

/// A hit's picture: the one kept with it, or made from its source. A post whose picture cannot be had is shown without.
async fn draw(hit: &SearchHit, search: &SearchService, graphics: Graphics, size: Size) -> Option<String> {
    let uri = match hit.image.get("thumbnail").and_then(Value::as_str) {
        Some(thumbnail) => thumbnail.to_owned(),
        None if hit.image.is_null() || hit.image_pending => return None,
        None => search.thumbnail(hit.post_id.as_str()?).await.ok()?.to_string(),
    };
    tokio::task::spawn_blocking(move || pictures::draw(&uri, graphics, size)).await.ok()?
}
