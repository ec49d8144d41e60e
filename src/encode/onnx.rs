//! The towers in ONNX Runtime. The shared library is loaded at run time, with a `Result`.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock};

use anyhow::{Context, Result, anyhow, bail, ensure};
use ort::environment::Environment;
use ort::ep::ExecutionProviderDispatch;
use ort::session::Session;
use ort::session::builder::{GraphOptimizationLevel, PrepackedWeights};
use ort::value::{TensorElementType, TensorRef, ValueType};

use crate::encode::bundle::{Bundle, TowerFile};
use crate::encode::{Encode, EncoderConfig, PreparedImage, PreparedText, preprocess};
use crate::error::Fault;

/// File name of the library, as the `onnxruntime` wheel and its release archives call it (a version may follow).
const LIBRARY_NAME: &str = "libonnxruntime.so";

/// ONNX Runtime allows one environment in a process; it lives as long as the process.
static ENVIRONMENT: OnceLock<Environment> = OnceLock::new();
static STARTING: Mutex<()> = Mutex::new(());

/// Finds and loads the shared library; later calls return the first environment.
fn environment(configured: &Path) -> Result<&'static Environment> {
    let _guard = STARTING.lock().map_err(|_| anyhow!("an earlier start of ONNX Runtime panicked"))?;
    if let Some(environment) = ENVIRONMENT.get() {
        return Ok(environment);
    }
    let library = find_library(configured)?;
    let environment = ort::init_from(&library)
        .map_err(|error| {
            anyhow!(
                "cannot use the ONNX Runtime library {}: {error}; run `make setup`, or set encoder.library to a \
                 libonnxruntime.so of version 1.22 or later",
                library.display()
            )
        })?
        .with_name("feedlens")
        .with_telemetry(false)
        .build()
        .map_err(|error| anyhow!("ONNX Runtime does not start: {error}"))?;
    Ok(ENVIRONMENT.get_or_init(|| environment))
}

fn find_library(configured: &Path) -> Result<PathBuf> {
    let from_environment = std::env::var_os("ORT_DYLIB_PATH").map(PathBuf::from).unwrap_or_default();
    for (named, by) in [(configured, "encoder.library"), (from_environment.as_path(), "ORT_DYLIB_PATH")] {
        if !named.as_os_str().is_empty() {
            ensure!(named.is_file(), "{by} names {}, which is not a file", named.display());
            return std::path::absolute(named).with_context(|| format!("{by} names {}", named.display()));
        }
    }
    let executable = std::env::current_exe().unwrap_or_default();
    let beside = |levels: usize| executable.ancestors().nth(levels).map(Path::to_owned).unwrap_or_default();
    // A checkout's own: from its root, and from anywhere for target/release/feedlens (and its deps/).
    let caches = [PathBuf::new(), beside(3), beside(4)].map(|root| root.join(".cache/onnxruntime"));
    let system = ["/usr/local/lib", "/usr/lib", "/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu"];
    let folders = caches.into_iter().chain([beside(1).join("lib"), beside(2).join("lib")]);
    for folder in folders.chain(system.iter().map(PathBuf::from)) {
        if let Some(library) = newest_library(&folder) {
            return std::path::absolute(&library).with_context(|| format!("found {}", library.display()));
        }
    }
    bail!(
        "the ONNX Runtime library ({LIBRARY_NAME}) is not on this machine: run `make setup`, which takes it from the \
         onnxruntime wheel, or set encoder.library or ORT_DYLIB_PATH to it"
    )
}

fn newest_library(folder: &Path) -> Option<PathBuf> {
    let entries = std::fs::read_dir(folder).ok()?;
    let named = |path: &PathBuf| {
        path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with(LIBRARY_NAME))
    };
    entries.filter_map(|entry| Some(entry.ok()?.path())).filter(named).max()
}

/// What all workers' sessions share.
pub struct OnnxModel {
    environment: &'static Environment,
    bundle: Bundle,
    prepacked: PrepackedWeights,
    threads: usize,
    provider: String,
}

impl OnnxModel {
    /// Loads the library and decides the provider: the first of `encoder.providers` that serves.
    ///
    /// # Errors
    /// One sentence: no library, a tower that does not fit `model.toml`, a required provider that cannot serve.
    pub fn load(bundle: Bundle, config: &EncoderConfig, threads: usize) -> Result<Self> {
        let environment = environment(&config.library)?;
        let mut model =
            Self { environment, bundle, prepacked: PrepackedWeights::new(), threads, provider: String::new() };
        let mut refused = Vec::new();
        for provider in &config.providers {
            model.provider.clone_from(provider);
            match model.session(&model.bundle.text) {
                Ok(_) => {
                    if !refused.is_empty() {
                        tracing::warn!(provider, refused = refused.join("; "), "fell back to another provider");
                    }
                    return Ok(model);
                }
                Err(error) if provider == "cpu" || config.require => {
                    return Err(error.context(format!("provider {provider:?} cannot serve")));
                }
                Err(error) => refused.push(format!("{provider}: {error:#}")),
            }
        }
        bail!("no provider of encoder.providers can serve: {}", refused.join("; "))
    }

    /// The provider that really serves.
    pub fn provider(&self) -> &str {
        &self.provider
    }

    /// The bundle.
    pub fn bundle(&self) -> &Bundle {
        &self.bundle
    }

    /// Sessions for one worker.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn worker(&self) -> Result<OnnxEncoder> {
        Ok(OnnxEncoder {
            image: self.session(&self.bundle.image)?,
            text: self.session(&self.bundle.text)?,
            bundle: self.bundle.clone(),
            pixels: Vec::new(),
            tokens: Vec::new(),
        })
    }

    fn session(&self, tower: &TowerFile) -> Result<Session> {
        let file = self.bundle.path(&tower.file);
        let built = Session::builder(self.environment).map_err(plain).and_then(|builder| {
            builder
                .with_no_environment_execution_providers()
                .map_err(plain)?
                .with_optimization_level(GraphOptimizationLevel::All)
                .map_err(plain)?
                .with_intra_threads(self.threads)
                .map_err(plain)?
                .with_inter_threads(1)
                .map_err(plain)?
                // Spinning threads take the cores that decode pictures.
                .with_intra_op_spinning(false)
                .map_err(plain)?
                // Batch sizes vary: a memory pattern would be planned for each and thrown away.
                .with_memory_pattern(false)
                .map_err(plain)?
                .with_prepacked_weights(&self.prepacked)
                .map_err(plain)?
                .with_execution_providers(providers(&self.provider)?)
                .map_err(plain)
        });
        let session = built?
            .commit_from_file(&file)
            .map_err(|error| anyhow!("ONNX Runtime cannot load {}: {error}", file.display()))?;
        check_tensor(session.inputs(), &tower.input, "input", &file)?;
        let dimensions = check_tensor(session.outputs(), &tower.output, "output", &file)?;
        let dimension = dimensions.last().copied().unwrap_or(-1);
        ensure!(
            dimension < 0 || usize::try_from(dimension).ok() == Some(self.bundle.dimension),
            "{}: output {:?} has {dimension} values a row, model.toml says dimension = {}",
            file.display(),
            tower.output,
            self.bundle.dimension
        );
        Ok(session)
    }
}

fn plain<R>(error: ort::Error<R>) -> anyhow::Error {
    anyhow!("{}", error.message())
}

fn providers(name: &str) -> Result<Vec<ExecutionProviderDispatch>> {
    match name {
        "cpu" => Ok(vec![]),
        // Registration failures are only logged unless made errors: CUDA would silently become CPU.
        #[cfg(feature = "cuda")]
        "cuda" => Ok(vec![ort::ep::CUDA::default().build().error_on_failure()]),
        #[cfg(feature = "cuda")]
        "tensorrt" => Ok(vec![ort::ep::TensorRT::default().build().error_on_failure()]),
        #[cfg(not(feature = "cuda"))]
        "cuda" | "tensorrt" => {
            bail!("this binary was built without it; build with `cargo build --release --features cuda`")
        }
        _ => bail!("unknown provider {name:?} in encoder.providers; known are \"cuda\", \"tensorrt\", \"cpu\""),
    }
}

fn check_tensor(outlets: &[ort::value::Outlet], name: &str, kind: &str, file: &Path) -> Result<Vec<i64>> {
    let outlet = outlets.iter().find(|outlet| outlet.name() == name).ok_or_else(|| {
        let known = outlets.iter().map(|outlet| format!("{:?}", outlet.name())).collect::<Vec<_>>().join(", ");
        anyhow!("{} has no {kind} {name:?}, which model.toml names; it has {known}", file.display())
    })?;
    match outlet.dtype() {
        ValueType::Tensor { ty, shape, .. } => {
            let wanted: &[TensorElementType] = match (kind, shape.len()) {
                ("input", 4) | ("output", 2) => &[TensorElementType::Float32],
                ("input", 2) => &[TensorElementType::Int64],
                _ => bail!("{}: {kind} {name:?} has {} dimensions", file.display(), shape.len()),
            };
            ensure!(wanted.contains(ty), "{}: {kind} {name:?} is of type {ty:?}, wanted is {wanted:?}", file.display());
            Ok(shape.iter().copied().collect())
        }
        other => bail!("{}: {kind} {name:?} is not a tensor but {other:?}", file.display()),
    }
}

/// Both towers, for one worker thread.
pub struct OnnxEncoder {
    image: Session,
    text: Session,
    bundle: Bundle,
    // Input buffers, kept from batch to batch.
    pixels: Vec<f32>,
    tokens: Vec<i64>,
}

impl Encode for OnnxEncoder {
    fn images(&mut self, batch: &[PreparedImage]) -> Result<Vec<Vec<f32>>, Fault> {
        let side = self.bundle.resolution as usize;
        let each = 3 * side * side;
        self.pixels.resize(batch.len() * each, 0.0);
        for (image, pixels) in batch.iter().zip(self.pixels.chunks_exact_mut(each)) {
            preprocess::fill(&image.rgb, self.bundle.mean, self.bundle.std, pixels);
        }
        let input = TensorRef::from_array_view(([batch.len(), 3, side, side], self.pixels.as_slice()))
            .map_err(|error| failed(&error))?;
        run(&mut self.image, &self.bundle.image, input.into(), batch.len(), self.bundle.dimension)
    }

    fn texts(&mut self, batch: &[PreparedText]) -> Result<Vec<Vec<f32>>, Fault> {
        // The graph masks padding (text != 0), so the length of the longest row changes no vector.
        let length = batch.iter().map(|text| text.ids.len()).max().unwrap_or(0);
        self.tokens.clear();
        for text in batch {
            self.tokens.extend_from_slice(&text.ids);
            self.tokens.resize(self.tokens.len() + length - text.ids.len(), 0);
        }
        let input = TensorRef::from_array_view(([batch.len(), length], self.tokens.as_slice()))
            .map_err(|error| failed(&error))?;
        run(&mut self.text, &self.bundle.text, input.into(), batch.len(), self.bundle.dimension)
    }
}

fn run(
    session: &mut Session,
    tower: &TowerFile,
    input: ort::session::SessionInputValue<'_>,
    rows: usize,
    dimension: usize,
) -> Result<Vec<Vec<f32>>, Fault> {
    let outputs = session.run(vec![(tower.input.as_str(), input)]).map_err(|error| failed(&error))?;
    let (shape, values) = outputs[tower.output.as_str()].try_extract_tensor::<f32>().map_err(|error| failed(&error))?;
    if values.len() != rows * dimension {
        return Err(Fault::fatal(format!(
            "{}: output {:?} has shape {shape}, wanted is [{rows}, {dimension}]",
            tower.file, tower.output
        )));
    }
    Ok(values.chunks_exact(dimension).map(<[f32]>::to_vec).collect())
}

fn failed(error: &ort::Error) -> Fault {
    Fault::reject(crate::error::Reason::EncodeFailed, format!("the encoder failed: {error}"))
}
