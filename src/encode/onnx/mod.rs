//! The towers in ONNX Runtime: [`OnnxModel`] is what all workers share, [`OnnxEncoder`] is one worker's.

pub mod graph;
pub mod provider;

mod binding;
mod library;
mod tensor;
mod tower;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result, anyhow, bail};
use ort::ErrorCode;
use ort::environment::Environment;
use ort::memory::{AllocationDevice, AllocatorType, MemoryInfo, MemoryType};
use ort::session::Session;
use ort::session::builder::{GraphOptimizationLevel, SessionBuilder};

use crate::encode::bundle::{Bundle, Family};
use crate::encode::onnx::binding::Bindings;
use crate::encode::onnx::graph::{Plan, Signature, plan};
use crate::encode::onnx::provider::{Engines, Provider, brief};
use crate::encode::onnx::tower::TowerRun;
use crate::encode::{Encode, EncoderConfig, PreparedImage, PreparedText, Tower};
use crate::error::Fault;

/// Workers on CPU unless told otherwise.
const CPU_WORKERS: usize = 2;

/// What all workers' sessions share.
pub struct OnnxModel {
    environment: &'static Environment,
    bundle: Arc<Bundle>,
    provider: Provider,
    /// Providers that were preferred and cannot serve, each with the reason.
    refused: Vec<(Provider, String)>,
    workers: usize,
    threads: usize,
    max_batch_images: usize,
    max_batch_texts: usize,
    tensorrt_cache: PathBuf,
    /// The first worker's towers, loaded while the provider was chosen.
    first: Mutex<Option<Towers>>,
}

type Towers = (TowerRun, TowerRun);

/// When the towers are loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loading {
    /// Both at the start: a service must not find a broken file with the first post.
    AtStart,
    /// Each when it is first used: a command that reads texts alone need not load the picture tower.
    OnFirstUse,
}

impl OnnxModel {
    /// Loads the library and chooses the provider: the first of `encoder.providers` that serves.
    ///
    /// # Errors
    /// One sentence: no library, a tower that does not fit `model.toml`, a required provider that cannot serve.
    pub fn load(bundle: Bundle, config: &EncoderConfig, loading: Loading) -> Result<Arc<Self>> {
        let environment = library::environment(&config.library)?;
        let bundle = Arc::new(bundle);
        let mut refused = Vec::new();
        for name in &config.providers {
            let provider = Provider::parse(name)?;
            let (workers, threads) = parallelism(config, provider);
            let mut model = Self {
                environment,
                bundle: bundle.clone(),
                provider,
                refused: refused.clone(),
                workers,
                threads,
                max_batch_images: config.max_batch_images,
                max_batch_texts: config.max_batch_texts,
                tensorrt_cache: config.tensorrt_cache.clone(),
                first: Mutex::new(None),
            };
            match model.start(loading) {
                Ok(()) => {
                    model.report_fallback();
                    return Ok(Arc::new(model));
                }
                Err(error) if config.require => return Err(error.context("encoder.require forbids another provider")),
                // Where nothing is left to fall back to, or the model itself is broken, this is the reason.
                Err(error) if provider == Provider::Cpu => return Err(error),
                Err(error) => refused.push((provider, format!("{error:#}"))),
            }
        }
        let reasons = refused.into_iter().map(|(_, reason)| reason).collect::<Vec<_>>();
        bail!("no provider of encoder.providers can serve: {}", reasons.join("; "))
    }

    fn start(&mut self, loading: Loading) -> Result<()> {
        self.provider.probe(self.environment)?;
        if loading == Loading::AtStart {
            let towers = self.towers()?;
            self.report_shapes(&towers);
            self.first = Mutex::new(Some(towers));
        }
        Ok(())
    }

    fn report_fallback(&self) {
        for (provider, reason) in &self.refused {
            let (preferred, serves) = (provider.as_str(), self.provider.as_str());
            tracing::warn!(preferred, serves, "fell back to another execution provider: {reason}");
        }
    }

    fn report_shapes(&self, (image, text): &Towers) {
        for tower in [image.plan(), text.plan()] {
            let file = self.file(tower.tower);
            if let Some(batch) = tower.batch {
                let way_out = match self.bundle.family {
                    Family::ChineseClip => "export the checkpoint with tools/export_chinese_clip.py",
                    Family::Clip => "export it with a dynamic batch",
                };
                tracing::warn!(
                    batch,
                    "{} has a fixed batch: its items are encoded {batch} at a time. For batches, {way_out}",
                    file.display()
                );
            }
            if let Some(length) = tower.length {
                tracing::info!(length, "{} has a fixed text length: every text is padded to it", file.display());
            }
        }
        if self.bundle.image.file == self.bundle.text.file {
            let file = self.file(Tower::Image);
            tracing::warn!("{} holds both towers: each batch runs both. Two files would be faster", file.display());
        }
    }

    /// The provider that really serves.
    pub fn provider(&self) -> Provider {
        self.provider
    }

    /// Providers that were preferred and cannot serve, each with the reason.
    pub fn refused(&self) -> &[(Provider, String)] {
        &self.refused
    }

    /// The bundle.
    pub fn bundle(&self) -> &Arc<Bundle> {
        &self.bundle
    }

    /// How many workers there are to be, and ONNX Runtime's threads for each.
    pub fn parallelism(&self) -> (usize, usize) {
        (self.workers, self.threads)
    }

    /// A tower's file.
    pub fn file(&self, tower: Tower) -> PathBuf {
        self.bundle.path(match tower {
            Tower::Image => &self.bundle.image.file,
            Tower::Text => &self.bundle.text.file,
        })
    }

    /// One worker's sessions; it loads at once what the model was loaded with.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn worker(self: &Arc<Self>, loading: Loading) -> Result<OnnxEncoder> {
        let first = self.first.lock().map_err(|_| anyhow!("loading the towers panicked"))?.take();
        let towers = match (first, loading) {
            (Some(towers), _) => Some(towers),
            (None, Loading::AtStart) => Some(self.towers()?),
            (None, Loading::OnFirstUse) => None,
        };
        let (image, text) = towers.unzip();
        Ok(OnnxEncoder { model: self.clone(), image, text })
    }

    fn towers(&self) -> Result<Towers> {
        let image = self.tower(Tower::Image, None)?;
        let shared = (self.bundle.image.file == self.bundle.text.file).then(|| image.shared_session());
        let text = self.tower(Tower::Text, shared)?;
        Ok((image, text))
    }

    fn tower(&self, tower: Tower, shared: Option<Arc<Mutex<Session>>>) -> Result<TowerRun> {
        let file = self.file(tower);
        let max_batch = match tower {
            Tower::Image => self.max_batch_images,
            Tower::Text => self.max_batch_texts,
        };
        let session = match shared {
            Some(session) => session,
            None => Arc::new(Mutex::new(self.session(tower, max_batch)?)),
        };
        let signature = Signature::of(&*session.lock().map_err(|_| anyhow!("loading the towers panicked"))?);
        let plan = self.plan(&signature, tower)?;
        let shapes = self.provider.shapes();
        let mut run = TowerRun::new(session, plan, shapes, max_batch, self.bundle.clone())
            .map_err(|error| anyhow!("{}: {}", file.display(), brief(error.message())))?;
        if self.provider != Provider::Cpu {
            let bindings = pinned_memory().and_then(|memory| Bindings::new(&run.session(), memory));
            run.bind(bindings.map_err(|error| anyhow!("no pinned memory: {}", brief(error.message())))?);
        }
        Ok(run)
    }

    fn plan(&self, signature: &Signature, tower: Tower) -> Result<Plan> {
        plan(signature, tower, &self.bundle).with_context(|| {
            format!("{} does not fit {}", self.file(tower).display(), self.bundle.layout.described_in())
        })
    }

    fn session(&self, tower: Tower, max_batch: usize) -> Result<Session> {
        let file = self.file(tower);
        // TensorRT wants the shapes before it loads the graph.
        let plan = match self.provider {
            Provider::TensorRt => {
                let reader = self.builder(GraphOptimizationLevel::Disable)?;
                Some(self.plan(&Signature::of(&commit(reader, &file)?), tower)?)
            }
            _ => None,
        };
        let engines = Engines {
            cache: &self.tensorrt_cache,
            half: self.bundle.precision == "fp16",
            plan: plan.as_ref(),
            max_batch,
            limits: (self.bundle.context_length, self.bundle.resolution as usize),
        };
        let builder = self.builder(GraphOptimizationLevel::All)?;
        commit(self.provider.register(builder, &engines)?, &file)
    }

    fn builder(&self, level: GraphOptimizationLevel) -> Result<SessionBuilder> {
        Session::builder(self.environment)
            .and_then(|builder| Ok(builder.with_optimization_level(level)?))
            .and_then(|builder| Ok(builder.with_intra_threads(self.threads)?))
            .and_then(|builder| Ok(builder.with_inter_threads(1)?))
            // Spinning threads take the cores that decode pictures.
            .and_then(|builder| Ok(builder.with_intra_op_spinning(false)?))
            // Batch sizes vary: a memory pattern would be planned for each and thrown away.
            .and_then(|builder| Ok(builder.with_memory_pattern(false)?))
            .map_err(|error| anyhow!("ONNX Runtime refuses a setting: {}", brief(error.message())))
    }
}

/// Workers and threads of each. On CPU, two workers keep the cores busy while one fills its input; each holds the weights
/// once more (ONNX Runtime shares packed weights only of initialisers that are handed to it one by one).
fn parallelism(config: &EncoderConfig, provider: Provider) -> (usize, usize) {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let workers = match (config.workers, provider) {
        (0, Provider::Cpu) => cores.min(CPU_WORKERS),
        (0, _) => 1,
        (workers, _) => workers,
    };
    let threads = if config.threads == 0 { (cores / workers).max(1) } else { config.threads };
    (workers, threads)
}

fn pinned_memory() -> ort::Result<MemoryInfo<'static>> {
    MemoryInfo::new(AllocationDevice::CUDA_PINNED, 0, AllocatorType::Device, MemoryType::CPUInput)
}

fn commit(mut builder: SessionBuilder, file: &Path) -> Result<Session> {
    builder.commit_from_file(file).map_err(|error| {
        let (name, message) = (file.display(), brief(error.message()));
        let bytes = file.metadata().map_or(0, |metadata| metadata.len());
        if error.code() == ErrorCode::InvalidProtobuf || message.contains("No graph was found") {
            anyhow!("{name} ({bytes} bytes) is no whole ONNX file: it was cut off or damaged; copy or export it again")
        } else if message.contains("External data path") || message.contains("xternal initializer") {
            anyhow!("the weights beside {name} are missing or cut off; copy all files of its export: {message}")
        } else {
            anyhow!("ONNX Runtime cannot load {name}: {message}")
        }
    })
}

/// Both towers, for one worker thread.
pub struct OnnxEncoder {
    model: Arc<OnnxModel>,
    image: Option<TowerRun>,
    text: Option<TowerRun>,
}

impl OnnxEncoder {
    /// The picture tower, loaded if need be.
    ///
    /// # Errors
    /// As [`OnnxModel::load`].
    pub fn image(&mut self) -> Result<&mut TowerRun> {
        self.load(Tower::Image)
    }

    /// The text tower, loaded if need be.
    ///
    /// # Errors
    /// As [`OnnxModel::load`].
    pub fn text(&mut self) -> Result<&mut TowerRun> {
        self.load(Tower::Text)
    }

    fn load(&mut self, tower: Tower) -> Result<&mut TowerRun> {
        let single = self.model.bundle.image.file == self.model.bundle.text.file;
        let (own, other) = match tower {
            Tower::Image => (&mut self.image, &self.text),
            Tower::Text => (&mut self.text, &self.image),
        };
        match own {
            Some(run) => Ok(run),
            None => {
                let shared = other.as_ref().filter(|_| single).map(TowerRun::shared_session);
                Ok(own.insert(self.model.tower(tower, shared)?))
            }
        }
    }
}

impl Encode for OnnxEncoder {
    fn images(&mut self, batch: &[PreparedImage]) -> Result<Vec<Vec<f32>>, Fault> {
        self.image().map_err(|error| Fault::fatal(format!("{error:#}")))?.images(batch)
    }

    fn texts(&mut self, batch: &[PreparedText]) -> Result<Vec<Vec<f32>>, Fault> {
        self.text().map_err(|error| Fault::fatal(format!("{error:#}")))?.texts(batch)
    }
}
