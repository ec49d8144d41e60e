//! What a model is and how fast it runs here: the figures of `feedlens model check`.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use serde::Serialize;

use crate::encode::onnx::graph::{Port, Signature};
use crate::encode::onnx::{Loading, OnnxEncoder, OnnxModel};
use crate::encode::{Encode, PreparedImage, PreparedText, Tower};

/// Batch sizes that are measured.
const BATCHES: [usize; 8] = [1, 2, 4, 8, 16, 32, 64, 128];
/// Each size is measured for this long, and for at least two runs.
const MEASURE: Duration = Duration::from_millis(600);
/// A size whose run takes longer ends the measurement: larger ones only take longer still.
const SLOW_RUN: Duration = Duration::from_secs(4);
/// Tokens of a measured text: a caption of a dozen characters.
pub const TEXT_TOKENS: usize = 16;
/// The recommended batch is the smallest that comes so near to the best.
const NEARLY_BEST: f64 = 0.95;

/// A tower, for people and as JSON.
#[derive(Debug, Clone, Serialize)]
pub struct TowerReport {
    /// File name inside the bundle.
    pub file: String,
    /// Its size; weights beside it do not count.
    pub bytes: u64,
    /// Resident memory that loading it and one run took, in the first worker.
    pub memory_bytes: u64,
    /// Inputs of its graph.
    pub inputs: Vec<PortReport>,
    /// Outputs of its graph.
    pub outputs: Vec<PortReport>,
    /// The batch size, where the graph has a fixed one.
    pub fixed_batch: Option<usize>,
    /// The text length, where the graph has a fixed one.
    pub fixed_length: Option<usize>,
    /// Items a second by batch size, all workers together.
    pub speed: Vec<Speed>,
    /// The smallest batch that is nearly as fast as the fastest.
    pub recommended_batch: usize,
}

/// An input or output.
#[derive(Debug, Clone, Serialize)]
pub struct PortReport {
    /// Its name.
    pub name: String,
    /// Its elements: `float`, `float16`, `int64`...
    pub element: String,
    /// Its shape; names are dynamic dimensions.
    pub shape: Vec<String>,
}

/// How fast batches of one size are.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Speed {
    /// Items in a batch.
    pub batch: usize,
    /// Items a second, all workers together.
    pub items_per_second: f64,
}

impl From<&Port> for PortReport {
    fn from(port: &Port) -> Self {
        let shape = port.dimensions.iter().map(ToString::to_string).collect();
        Self { name: port.name.clone(), element: port.element_name(), shape }
    }
}

/// Loads every worker's sessions and measures both towers. Blocks for some twenty seconds.
///
/// # Errors
/// A tower cannot be loaded or run.
pub fn measure(model: &std::sync::Arc<OnnxModel>) -> Result<[TowerReport; 2]> {
    let mut first = model.worker(Loading::OnFirstUse)?;
    let mut reports = [report(model, &mut first, Tower::Image)?, report(model, &mut first, Tower::Text)?];
    let mut workers = vec![first];
    for _ in 1..model.parallelism().0 {
        workers.push(model.worker(Loading::AtStart)?);
    }
    for (report, tower) in reports.iter_mut().zip([Tower::Image, Tower::Text]) {
        report.speed = speeds(&mut workers, model, tower)?;
        report.recommended_batch = recommended(&report.speed);
    }
    Ok(reports)
}

fn report(model: &OnnxModel, worker: &mut OnnxEncoder, tower: Tower) -> Result<TowerReport> {
    let file = model.file(tower);
    let before = resident_bytes();
    let run = match tower {
        Tower::Image => worker.image()?,
        Tower::Text => worker.text()?,
    };
    let signature = Signature::of(&run.session());
    let (fixed_batch, fixed_length) = (run.plan().batch, run.plan().length);
    Sample::new(model, tower, 1).encode(worker)?;
    Ok(TowerReport {
        bytes: file.metadata().with_context(|| format!("cannot read {}", file.display()))?.len(),
        file: file.strip_prefix(&model.bundle().dir).unwrap_or(&file).display().to_string(),
        memory_bytes: resident_bytes().saturating_sub(before),
        inputs: signature.inputs.iter().map(PortReport::from).collect(),
        outputs: signature.outputs.iter().map(PortReport::from).collect(),
        fixed_batch,
        fixed_length,
        speed: vec![],
        recommended_batch: 1,
    })
}

fn speeds(workers: &mut [OnnxEncoder], model: &OnnxModel, tower: Tower) -> Result<Vec<Speed>> {
    let mut speeds = Vec::new();
    for batch in BATCHES {
        let sample = Sample::new(model, tower, batch);
        let started = Instant::now();
        sample.encode(&mut workers[0])?;
        let slow = started.elapsed() > SLOW_RUN;
        let each: Result<Vec<f64>> = std::thread::scope(|scope| {
            let threads = workers.iter_mut().map(|worker| scope.spawn(|| sample.repeat(worker)));
            let threads = threads.collect::<Vec<_>>();
            threads.into_iter().map(|thread| thread.join().map_err(|_| anyhow!("the encoder panicked"))?).collect()
        });
        speeds.push(Speed { batch, items_per_second: each?.iter().sum() });
        if slow {
            break;
        }
    }
    Ok(speeds)
}

/// A batch to measure with.
enum Sample {
    Images(Vec<PreparedImage>),
    Texts(Vec<PreparedText>),
}

impl Sample {
    fn new(model: &OnnxModel, tower: Tower, batch: usize) -> Self {
        let side = model.bundle().resolution as usize;
        let tokens = TEXT_TOKENS.min(model.bundle().context_length);
        match tower {
            Tower::Image => Sample::Images(vec![PreparedImage { rgb: vec![127; 3 * side * side] }; batch]),
            Tower::Text => Sample::Texts(vec![PreparedText { ids: vec![1; tokens] }; batch]),
        }
    }

    fn len(&self) -> usize {
        match self {
            Sample::Images(images) => images.len(),
            Sample::Texts(texts) => texts.len(),
        }
    }

    fn encode(&self, worker: &mut OnnxEncoder) -> Result<()> {
        let encoded = match self {
            Sample::Images(images) => worker.images(images),
            Sample::Texts(texts) => worker.texts(texts),
        };
        encoded.map(|_| ()).map_err(|fault| anyhow!("{fault}"))
    }

    /// Items a second of one worker.
    fn repeat(&self, worker: &mut OnnxEncoder) -> Result<f64> {
        let (started, mut items) = (Instant::now(), 0);
        while started.elapsed() < MEASURE || items < 2 * self.len() {
            self.encode(worker)?;
            items += self.len();
        }
        Ok(items as f64 / started.elapsed().as_secs_f64())
    }
}

fn recommended(speeds: &[Speed]) -> usize {
    let best = speeds.iter().map(|speed| speed.items_per_second).fold(0.0, f64::max);
    speeds.iter().find(|speed| speed.items_per_second >= NEARLY_BEST * best).map_or(1, |speed| speed.batch)
}

/// Memory of this process; 0 where the system does not tell.
fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.split_whitespace().next());
    resident.and_then(|kibibytes| kibibytes.parse::<u64>().ok()).unwrap_or(0) * 1024
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn smallest_batch_that_is_nearly_best_is_recommended() {
        let speeds = [(1, 10.0), (2, 18.0), (4, 19.2), (8, 20.0), (16, 15.0)];
        let speeds = speeds.map(|(batch, items_per_second)| Speed { batch, items_per_second });
        assert_eq!(recommended(&speeds), 4);
        assert_eq!(recommended(&speeds[..1]), 1);
    }
}
