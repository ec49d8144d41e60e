//! Execution providers: which one serves, and how its sessions are set up.

use std::path::Path;

#[cfg(feature = "cuda")]
use anyhow::Context;
use anyhow::{Result, anyhow, bail};
use ort::editor::{Graph, Model, Node, ONNX_DOMAIN, Opset};
use ort::environment::Environment;
use ort::ep::ExecutionProviderDispatch;
use ort::session::Session;
use ort::session::builder::SessionBuilder;
use ort::value::{Outlet, Shape, SymbolicDimensions, TensorElementType, TensorRef, ValueType};

use crate::encode::buckets::Shapes;
use crate::encode::onnx::graph::{Dimension, Plan};

/// What computes the graphs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Provider {
    /// ONNX Runtime's own kernels.
    Cpu,
    /// NVIDIA CUDA and cuDNN.
    Cuda,
    /// NVIDIA TensorRT; what it does not take runs on CUDA.
    TensorRt,
}

impl Provider {
    /// By its name in `encoder.providers`.
    ///
    /// # Errors
    /// Names the known ones.
    pub fn parse(name: &str) -> Result<Self> {
        match name {
            "cpu" => Ok(Provider::Cpu),
            "cuda" => Ok(Provider::Cuda),
            "tensorrt" => Ok(Provider::TensorRt),
            _ => bail!("unknown provider {name:?} in encoder.providers; known are \"cuda\", \"tensorrt\", \"cpu\""),
        }
    }

    /// The name in the configuration, logs and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Provider::Cpu => "cpu",
            Provider::Cuda => "cuda",
            Provider::TensorRt => "tensorrt",
        }
    }

    /// The batches that it likes.
    pub fn shapes(self) -> Shapes {
        match self {
            Provider::Cpu => Shapes::CPU,
            Provider::Cuda | Provider::TensorRt => Shapes::GPU,
        }
    }

    /// Computes one small graph, so that a missing library, driver or device shows before a model is loaded.
    ///
    /// # Errors
    /// One sentence: why it cannot serve.
    pub fn probe(self, environment: &Environment) -> Result<()> {
        let builder = Session::builder(environment).map_err(|error| anyhow!("{}", error.message()))?;
        let builder = self.register(builder, &Engines::none())?;
        let run = || -> ort::Result<bool> {
            let mut session = doubling()?.into_session(&builder)?;
            let input = TensorRef::from_array_view(([1_usize], [21.0_f32].as_slice()))?;
            let outputs = session.run(ort::inputs![input])?;
            Ok(outputs[0].try_extract_tensor::<f32>()?.1 == [42.0])
        };
        match run() {
            Ok(true) => Ok(()),
            Ok(false) => bail!("provider {:?} computes 21 + 21 wrongly", self.as_str()),
            Err(error) => bail!("provider {:?} cannot serve: {}", self.as_str(), brief(error.message())),
        }
    }

    /// Adds the provider to a session that is being built.
    ///
    /// # Errors
    /// The provider's library is missing or does not load.
    pub fn register(self, builder: SessionBuilder, engines: &Engines<'_>) -> Result<SessionBuilder> {
        let dispatch = self.dispatch(engines)?;
        let refused = |message: &str| anyhow!("provider {:?} cannot serve: {}", self.as_str(), brief(message));
        let builder = builder.with_no_environment_execution_providers().map_err(|error| refused(error.message()))?;
        builder.with_execution_providers(dispatch).map_err(|error| refused(error.message()))
    }

    // Registration failures are only logged unless made errors: CUDA would silently become CPU.
    #[cfg(feature = "cuda")]
    fn dispatch(self, engines: &Engines<'_>) -> Result<Vec<ExecutionProviderDispatch>> {
        let cuda = ort::ep::CUDA::default()
            // The batches come in a fixed set of shapes: memory grows to what they need and not to twice that.
            .with_arena_extend_strategy(ort::ep::ArenaExtendStrategy::SameAsRequested)
            // An exhaustive search would run for every new shape, with a person waiting.
            .with_conv_algorithm_search(ort::ep::cuda::ConvAlgorithmSearch::Heuristic)
            // TensorFloat-32 has 10 bits of mantissa: vectors would differ from the reference in the third digit.
            .with_tf32(false)
            .build()
            .error_on_failure();
        Ok(match self {
            Provider::Cpu => vec![cpu()],
            Provider::Cuda => vec![cuda],
            Provider::TensorRt => vec![engines.tensorrt()?.build().error_on_failure(), cuda],
        })
    }

    #[cfg(not(feature = "cuda"))]
    fn dispatch(self, _engines: &Engines<'_>) -> Result<Vec<ExecutionProviderDispatch>> {
        match self {
            Provider::Cpu => Ok(vec![cpu()]),
            _ => bail!(
                "provider {:?} cannot serve: this binary was built without the cargo feature \"cuda\"",
                self.as_str()
            ),
        }
    }
}

fn cpu() -> ExecutionProviderDispatch {
    ort::ep::CPU::default().with_arena_allocator(true).build().error_on_failure()
}

/// What TensorRT is told of a tower; other providers need none of it.
pub struct Engines<'a> {
    /// Where built engines are kept: building takes minutes.
    pub cache: &'a Path,
    /// The weights are half precision, so the engine may compute in it.
    pub half: bool,
    /// The tower's inputs; `None` for the probe, whose shapes are fixed.
    pub plan: Option<&'a Plan>,
    /// The largest batch.
    pub max_batch: usize,
    /// The longest text, and the side of a picture.
    pub limits: (usize, usize),
}

impl Engines<'_> {
    /// For the probe.
    fn none() -> Self {
        Self { cache: Path::new(""), half: false, plan: None, max_batch: 1, limits: (1, 1) }
    }

    #[cfg(feature = "cuda")]
    fn tensorrt(&self) -> Result<ort::ep::TensorRT> {
        let engine = ort::ep::TensorRT::default();
        let Some(plan) = self.plan else { return Ok(engine) };
        std::fs::create_dir_all(self.cache)
            .with_context(|| format!("cannot make encoder.tensorrt_cache, {}", self.cache.display()))?;
        let cache = self.cache.display();
        let [smallest, usual, largest] = self.profiles(plan);
        Ok(engine
            .with_fp16(self.half)
            .with_engine_cache(true)
            .with_engine_cache_path(&cache)
            .with_timing_cache(true)
            .with_timing_cache_path(&cache)
            // Without a profile, an engine is built anew for every new shape.
            .with_profile_min_shapes(smallest)
            .with_profile_opt_shapes(usual)
            .with_profile_max_shapes(largest))
    }

    /// The smallest, the usual and the largest shape of each input with a dynamic dimension, as TensorRT's options have
    /// them: `text:1x8,attention_mask:1x8`. The usual batch is the largest: that is where speed counts.
    #[cfg_attr(not(any(feature = "cuda", test)), expect(dead_code))]
    fn profiles(&self, plan: &Plan) -> [String; 3] {
        let (length, side) = self.limits;
        let shapes = Shapes::GPU;
        let ports = || std::iter::once(&plan.input).chain(plan.others.iter().map(|(port, _)| port));
        [(1, shapes.length(1, length)), (self.max_batch, shapes.length(length / 2, length)), (self.max_batch, length)]
            .map(|(batch, tokens)| {
                let wanted = |rank: usize| if rank == 4 { vec![batch, 3, side, side] } else { vec![batch, tokens] };
                let shape = |dimensions: &[Dimension]| {
                    let sizes = dimensions.iter().zip(wanted(dimensions.len()));
                    sizes.map(|(own, wanted)| own.fixed().unwrap_or(wanted).to_string()).collect::<Vec<_>>().join("x")
                };
                ports()
                    .filter(|port| port.dimensions.iter().any(|dimension| dimension.fixed().is_none()))
                    .map(|port| format!("{}:{}", port.name, shape(&port.dimensions)))
                    .collect::<Vec<_>>()
                    .join(",")
            })
    }
}

/// A graph that adds its input to itself.
fn doubling() -> ort::Result<Model> {
    let port = |name: &str| {
        let dtype = ValueType::Tensor {
            ty: TensorElementType::Float32,
            shape: Shape::new([1]),
            dimension_symbols: SymbolicDimensions::empty(1),
        };
        Outlet::new(name, dtype)
    };
    let mut graph = Graph::new()?;
    graph.set_inputs([port("one")])?;
    graph.set_outputs([port("two")])?;
    graph.add_node(Node::new("Add", ONNX_DOMAIN, "add", ["one", "one"], ["two"], [])?)?;
    let mut model = Model::new([Opset::new(ONNX_DOMAIN, 14)?])?;
    model.set_graph(graph)?;
    Ok(model)
}

/// What ONNX Runtime says, without the place in its source that it says it at.
pub fn brief(message: &str) -> &str {
    let told = message.rsplit_once("[ONNXRuntimeError] : ").map_or(message, |(_, rest)| rest);
    // "1 : FAIL : what happened"
    let mut parts = told.splitn(3, " : ");
    match (parts.next(), parts.next(), parts.next()) {
        (Some(number), Some(_), Some(rest)) if number.parse::<u32>().is_ok() => rest.trim(),
        _ => told.trim(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::encode::Tower;
    use crate::encode::onnx::graph::{Feed, Port};

    #[test]
    fn reason_is_told_without_source_places() {
        let message = "/onnxruntime_src/provider_bridge_ort.cc:2043 onnxruntime::Provider& Get() [ONNXRuntimeError] : \
                       1 : FAIL : Failed to load library libonnxruntime_providers_cuda.so with error: no : such file";
        assert_eq!(
            brief(message),
            "Failed to load library libonnxruntime_providers_cuda.so with error: no : such file"
        );
        assert_eq!(brief("plain"), "plain");
    }

    #[test]
    fn profiles_name_dynamic_inputs_alone() {
        let port = |name: &str, dimensions: Vec<Dimension>| Port {
            name: name.to_owned(),
            element: Some(TensorElementType::Int64),
            dimensions,
        };
        let dynamic = || Dimension::Dynamic(String::new());
        let mut plan = Plan {
            tower: Tower::Text,
            input: port("text", vec![dynamic(), dynamic()]),
            others: vec![(port("mask", vec![dynamic(), Dimension::Fixed(52)]), Feed::Mask)],
            output: port("features", vec![dynamic(), Dimension::Fixed(512)]),
            batch: None,
            length: None,
        };
        let engines = Engines { max_batch: 32, limits: (52, 224), ..Engines::none() };
        assert_eq!(engines.profiles(&plan), ["text:1x8,mask:1x52", "text:32x32,mask:32x52", "text:32x52,mask:32x52"]);
        plan.input = port("image", vec![dynamic(), Dimension::Fixed(3), dynamic(), dynamic()]);
        plan.others = vec![(port("ids", vec![Dimension::Fixed(1), Dimension::Fixed(2)]), Feed::Zeros)];
        assert_eq!(engines.profiles(&plan), ["image:1x3x224x224", "image:32x3x224x224", "image:32x3x224x224"]);
    }
}
