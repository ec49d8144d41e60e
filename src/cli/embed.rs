//! `feedlens embed`.

use std::io::{self, BufReader};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Args;
use futures::{FutureExt, StreamExt};
use serde::{Deserialize, Serialize};
use tokio::sync::{Semaphore, mpsc};
use toml::Value;

use crate::captions::CaptionsConfig;
use crate::cli::lines::{self, Answers};
use crate::cli::start;
use crate::config::Config;
use crate::encode::PreparedImage;
use crate::encode::encoder::Encoder;
use crate::encode::worker::Priority;
use crate::error::{Fault, Outage, Reason};
use crate::image::ImagesConfig;
use crate::image::decode::{DecodeOptions, decode};
use crate::image::fetch::ImageFetcher;
use crate::post::ImageSource;

/// Batches' worth of items in flight: one being encoded, one full, and two being prepared.
const BATCHES_IN_FLIGHT: usize = 4;

/// Turn texts and pictures into vectors
///
/// Reads JSON lines {"text": "..."} or {"image": "FILE"} from stdin and writes {"vector": [...]} for each, in order, of
/// length 1. Names of pictures are relative to the current folder. A line that fails gives {"error": "...", "kind": "..."} in
/// its place, and the rest go on; the exit code is 0 all the same, and stderr says how many failed. Texts are taken as they
/// are, as the model's own code takes them; --set captions.clean=true cleans them first, as ingest does.
#[derive(Args)]
pub struct Arguments {
    /// Model bundle; otherwise model.dir of the configuration
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// Write the features as the model's graph gives them, not normalised to length 1
    #[arg(long)]
    raw: bool,
}

#[derive(Deserialize)]
struct Line {
    text: Option<String>,
    image: Option<PathBuf>,
}

#[derive(Serialize)]
struct Answer {
    vector: Vec<f32>,
}

impl Arguments {
    /// What the options say of the configuration.
    pub fn presets(&self) -> Vec<(String, Value)> {
        start::exact_model_presets(self.model.as_deref())
    }

    /// Answers until the input ends.
    pub async fn run(self, config: Config) -> Result<()> {
        let encoder = start::lazy_encoder(&config).await?;
        let in_flight = BATCHES_IN_FLIGHT * config.encoder.max_batch_images.max(config.encoder.max_batch_texts);
        let embedder = Embedder::new(encoder, &config, self.raw)?;
        answer_all(&embedder, in_flight).await
    }
}

async fn answer_all(embedder: &Embedder, in_flight: usize) -> Result<()> {
    let mut input = read_in_background()?;
    let lines = futures::stream::poll_fn(move |context| input.poll_recv(context));
    let mut embedded = lines.map(|line| embedder.answer(line)).buffered(in_flight);
    let mut answers = Answers::new();
    loop {
        let next = match embedded.next().now_or_never() {
            Some(next) => next,
            None => {
                answers.flush()?;
                embedded.next().await
            }
        };
        match next {
            Some(answer) => answers.write(answer?)?,
            None => return answers.finish(),
        }
    }
}

type Input = io::Result<Result<Vec<u8>, Fault>>;

/// A thread of its own: it may wait for input for ever, which must not hold up the end.
fn read_in_background() -> io::Result<mpsc::Receiver<Input>> {
    let (sender, receiver) = mpsc::channel(1);
    std::thread::Builder::new().name("stdin".to_owned()).spawn(move || {
        let mut input = BufReader::new(io::stdin().lock());
        while let Some(line) = lines::next_line(&mut input).transpose() {
            let failed = line.is_err();
            if sender.blocking_send(line).is_err() || failed {
                break;
            }
        }
    })?;
    Ok(receiver)
}

/// The encoder with what stands before it.
struct Embedder {
    encoder: Encoder,
    fetcher: ImageFetcher,
    options: DecodeOptions,
    captions: CaptionsConfig,
    raw: bool,
    /// More decoding at a time than there are cores only costs memory.
    cores: Semaphore,
}

impl Embedder {
    fn new(encoder: Encoder, config: &Config, raw: bool) -> Result<Self> {
        // The names come from whoever runs the command: any folder will do, within the limits of size.
        let images = ImagesConfig { root: PathBuf::from("/"), ..config.images.clone() };
        let options = images.decode_options(encoder.bundle.resolution);
        Ok(Self {
            encoder,
            fetcher: ImageFetcher::new(&images)?,
            options,
            captions: config.captions,
            raw,
            cores: Semaphore::new(std::thread::available_parallelism().map_or(1, usize::from)),
        })
    }

    /// The outer error: the input cannot be read any further.
    async fn answer(&self, line: Input) -> Result<Result<Answer, Fault>> {
        let line = line.context("cannot read stdin")?;
        Ok(async { Ok(Answer { vector: self.vector(&line?).await? }) }.await)
    }

    async fn vector(&self, line: &[u8]) -> Result<Vec<f32>, Fault> {
        const EXPECTED: &str = "{\"text\": \"...\"} or {\"image\": \"FILE\"}";
        let vector = match lines::parse(line, EXPECTED)? {
            Line { text: Some(text), image: None } => self.text(&text).await?,
            Line { text: None, image: Some(file) } => self.image(file).await?,
            _ => return Err(Fault::reject(Reason::BadField, format!("a line must be {EXPECTED}"))),
        };
        // JSON has no word for them.
        if vector.iter().any(|value| !value.is_finite()) {
            return Err(Fault::reject(Reason::EncodeFailed, "the encoder gave values that are not finite"));
        }
        Ok(vector)
    }

    async fn text(&self, text: &str) -> Result<Vec<f32>, Fault> {
        let text = self.encoder.tokenizer.encode(&self.captions.apply(text))?;
        match self.raw {
            true => self.encoder.handle.text_features(text, Priority::Feed).await,
            false => self.encoder.handle.text(text, Priority::Feed).await,
        }
    }

    async fn image(&self, file: PathBuf) -> Result<Vec<f32>, Fault> {
        let prepared = self.prepare(&file).await.map_err(|fault| match fault {
            Fault::Reject { reason, detail } => Fault::reject(reason, format!("{}: {detail}", file.display())),
            fault => fault,
        })?;
        match self.raw {
            true => self.encoder.handle.image_features(prepared, Priority::Feed).await,
            false => self.encoder.handle.image(prepared, Priority::Feed).await,
        }
    }

    async fn prepare(&self, file: &Path) -> Result<PreparedImage, Fault> {
        let _core = self.cores.acquire().await.map_err(|_| Fault::fatal("the semaphore closed. This is a bug."))?;
        let unavailable = |detail: String| Fault::reject(Reason::ImageUnavailable, detail);
        // Without the "..", which posts may not have in their paths.
        let whole = tokio::fs::canonicalize(file).await.map_err(|error| unavailable(error.to_string()))?;
        let bytes = self.fetcher.bytes(&ImageSource::Path(whole)).await.map_err(|fault| match fault {
            // A disk that cannot be read now: nobody asks again.
            Fault::Retry { outage: Outage::ImageHost, detail, .. } => unavailable(detail),
            fault => fault,
        })?;
        let (preprocessor, options) = (self.encoder.preprocessor, self.options);
        let decoding =
            tokio::task::spawn_blocking(move || decode(&bytes, &options).map(|picture| preprocessor.prepare(&picture)));
        let panicked = |_| Err(Fault::reject(Reason::BadImage, "decoding the picture panicked; please report it"));
        decoding.await.unwrap_or_else(panicked)
    }
}
