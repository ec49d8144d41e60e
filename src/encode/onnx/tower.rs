//! One tower of one worker: its session, its input buffers, and how a batch becomes runs.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use half::f16;
use half::slice::HalfFloatSliceExt;
use ort::session::{HasSelectedOutputs, OutputSelector, RunOptions, Session};
use ort::value::{DynValue, TensorElementType};

use crate::encode::buckets::Shapes;
use crate::encode::bundle::Bundle;
use crate::encode::onnx::binding::Bindings;
use crate::encode::onnx::graph::{Dimension, Feed, Plan, Port};
use crate::encode::onnx::tensor::{Buffer, Elements};
use crate::encode::{PreparedImage, PreparedText, Tower, preprocess};
use crate::error::{Fault, Reason};

/// Tokens of the text that the other tower of a graph with both is fed: `[CLS]` and `[SEP]`.
const DUMMY_LENGTH: usize = 2;

/// A tower, ready to run.
pub struct TowerRun {
    /// Shared with the other tower where one graph holds both.
    session: Arc<Mutex<Session>>,
    plan: Plan,
    shapes: Shapes,
    max_batch: usize,
    bundle: Arc<Bundle>,
    options: RunOptions<HasSelectedOutputs>,
    input: Buffer,
    others: Vec<Buffer>,
    /// One picture in float, on its way to float16.
    scratch: Vec<f32>,
    /// On a device: tensors in memory that it reads directly, bound once for each shape.
    bindings: Option<Bindings>,
}

/// The shapes of one run.
struct RunShape {
    input: Vec<usize>,
    others: Vec<Vec<usize>>,
}

impl TowerRun {
    /// A tower on a session whose graph was checked. `max_batch` is the largest batch it is given.
    ///
    /// # Errors
    /// ONNX Runtime gives no memory.
    pub fn new(
        session: Arc<Mutex<Session>>,
        plan: Plan,
        shapes: Shapes,
        max_batch: usize,
        bundle: Arc<Bundle>,
    ) -> ort::Result<Self> {
        let options = RunOptions::new()?.with_outputs(OutputSelector::no_default().with(plan.output.name.as_str()));
        Ok(Self {
            input: Buffer::new(plan.input.element),
            others: plan.others.iter().map(|(port, _)| Buffer::new(port.element)).collect(),
            session,
            plan,
            shapes,
            max_batch,
            bundle,
            options,
            scratch: vec![],
            bindings: None,
        })
    }

    /// Runs in tensors of a device's pinned memory from now on.
    pub fn bind(&mut self, bindings: Bindings) {
        self.bindings = Some(bindings);
    }

    /// How it is fed and read.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// The session, for the other tower of its graph.
    pub fn shared_session(&self) -> Arc<Mutex<Session>> {
        self.session.clone()
    }

    /// The session, for as long as the guard lives.
    pub fn session(&self) -> MutexGuard<'_, Session> {
        lock(&self.session)
    }

    /// Raw features of pictures, in order.
    ///
    /// # Errors
    /// The run failed, for one item or for all.
    pub fn images(&mut self, batch: &[PreparedImage]) -> Result<Vec<Vec<f32>>, Fault> {
        let side = self.bundle.resolution as usize;
        let (mean, std) = (self.bundle.mean, self.bundle.std);
        let mut features = Vec::with_capacity(batch.len());
        for chunk in batch.chunks(self.plan.batch.unwrap_or(batch.len()).max(1)) {
            let each = 3 * side * side;
            let rows = self.rows(chunk.len());
            let fill = |elements: &mut Elements<'_>, scratch: &mut Vec<f32>| {
                for (row, image) in chunk.iter().enumerate() {
                    elements.set_floats(row, scratch, each, |out| preprocess::fill(&image.rgb, mean, std, out));
                }
                pad_rows(elements, chunk.len(), rows, each);
            };
            self.run(vec![rows, 3, side, side], fill, &[], chunk.len(), |_, values| features.push(values))?;
        }
        Ok(features)
    }

    /// Raw features of texts, in order. Texts of similar length run together, padded to the longest of them: the graph
    /// masks padding, so that the length of a neighbour changes no vector.
    ///
    /// # Errors
    /// As [`Self::images`].
    pub fn texts(&mut self, batch: &[PreparedText]) -> Result<Vec<Vec<f32>>, Fault> {
        let mut order = (0..batch.len()).collect::<Vec<_>>();
        order.sort_by_key(|index| std::cmp::Reverse(batch[*index].ids.len()));
        let lengths = order.iter().map(|index| batch[*index].ids.len()).collect::<Vec<_>>();
        let groups = match self.plan.length {
            // Every row costs the same: only whole batches count.
            Some(_) => std::iter::once(0..batch.len()).collect(),
            None => self.shapes.groups(&lengths),
        };
        let pad = self.bundle.text.pad;
        let mut features = vec![Vec::new(); batch.len()];
        for group in groups {
            let longest =
                self.shapes.length(lengths.get(group.start).copied().unwrap_or(0), self.bundle.context_length);
            let length = self.plan.length.unwrap_or(longest);
            let whole = self.plan.batch.unwrap_or(group.len()).max(1);
            for chunk in order[group].chunks(whole) {
                let rows = self.rows(chunk.len());
                let fill = |elements: &mut Elements<'_>, _: &mut Vec<f32>| {
                    for (row, index) in chunk.iter().enumerate() {
                        elements.set_integers(row, length, batch[*index].ids.iter().copied(), pad);
                    }
                    pad_rows(elements, chunk.len(), rows, length);
                };
                let tokens = chunk.iter().map(|index| batch[*index].ids.len()).collect::<Vec<_>>();
                self.run(vec![rows, length], fill, &tokens, chunk.len(), |row, values| features[chunk[row]] = values)?;
            }
        }
        Ok(features)
    }

    fn rows(&self, items: usize) -> usize {
        self.plan.batch.unwrap_or_else(|| self.shapes.batch(items, self.max_batch))
    }

    /// One run of the session: `items` rows of the output go to `take`, the others are padding.
    fn run(
        &mut self,
        input: Vec<usize>,
        fill: impl FnOnce(&mut Elements<'_>, &mut Vec<f32>),
        tokens: &[usize],
        items: usize,
        mut take: impl FnMut(usize, Vec<f32>),
    ) -> Result<(), Fault> {
        let others = self.plan.others.iter().map(|(port, feed)| self.other_shape(port, *feed, &input)).collect();
        let shape = RunShape { input, others };
        let session = self.session.clone();
        let mut session = lock(&session);
        let rows = shape.input[0];
        if let Some(bindings) = &mut self.bindings {
            let bound = bindings.shape(&session, &self.plan, &shape.input, &shape.others, self.bundle.dimension);
            let bound = bound.map_err(|error| failed(&error))?;
            fill(&mut bound.input().map_err(|error| failed(&error))?, &mut self.scratch);
            for (index, (_, feed)) in self.plan.others.iter().enumerate() {
                let mut elements = bound.other(index).map_err(|error| failed(&error))?;
                fill_other(&mut elements, *feed, &shape.others[index], tokens);
            }
            let outputs = bound.run(&mut session).map_err(|error| failed(&error))?;
            return read(
                &self.plan,
                &outputs[self.plan.output.name.as_str()],
                [rows, self.bundle.dimension],
                items,
                &mut take,
            );
        }
        fill(&mut self.input.elements(shape.input.iter().product()), &mut self.scratch);
        for ((_, feed), (buffer, shape)) in self.plan.others.iter().zip(self.others.iter_mut().zip(&shape.others)) {
            fill_other(&mut buffer.elements(shape.iter().product()), *feed, shape, tokens);
        }
        let mut inputs = Vec::with_capacity(1 + self.others.len());
        let tensor = self.input.tensor(&shape.input).map_err(|error| failed(&error))?;
        inputs.push((self.plan.input.name.as_str(), tensor));
        for ((port, _), (buffer, shape)) in self.plan.others.iter().zip(self.others.iter().zip(&shape.others)) {
            inputs.push((port.name.as_str(), buffer.tensor(shape).map_err(|error| failed(&error))?));
        }
        let outputs = session.run_with_options(inputs, &self.options).map_err(|error| failed(&error))?;
        read(&self.plan, &outputs[self.plan.output.name.as_str()], [rows, self.bundle.dimension], items, &mut take)
    }

    fn other_shape(&self, port: &Port, feed: Feed, input: &[usize]) -> Vec<usize> {
        // Both of a graph's towers may share the symbol of their batch.
        let batch = match (&port.dimensions[0], &self.plan.input.dimensions[0]) {
            (Dimension::Fixed(size), _) => *size,
            (Dimension::Dynamic(own), Dimension::Dynamic(inputs)) if !own.is_empty() && own == inputs => input[0],
            _ => 1,
        };
        let dummy_length = || port.dimensions[1].fixed().unwrap_or(DUMMY_LENGTH);
        let side = self.bundle.resolution as usize;
        match (self.plan.tower, feed) {
            (_, Feed::Dummy(Tower::Image)) => vec![batch, 3, side, side],
            (_, Feed::Dummy(Tower::Text)) | (Tower::Image, _) => vec![batch, dummy_length()],
            (Tower::Text, _) => input.to_vec(),
        }
    }
}

fn lock(session: &Mutex<Session>) -> MutexGuard<'_, Session> {
    // A panic during a run leaves nothing half-written in a session.
    session.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The first `items` rows of an output [rows, dimension].
fn read(
    plan: &Plan,
    output: &DynValue,
    [rows, dimension]: [usize; 2],
    items: usize,
    take: &mut impl FnMut(usize, Vec<f32>),
) -> Result<(), Fault> {
    let wrong = |found: &dyn std::fmt::Display| {
        Fault::fatal(format!(
            "the {} tower's output {:?} has shape {found}, wanted is [{rows}, {dimension}]",
            plan.tower.as_str(),
            plan.output.name
        ))
    };
    if plan.output.element == Some(TensorElementType::Float16) {
        let (shape, values) = output.try_extract_tensor::<f16>().map_err(|error| failed(&error))?;
        if values.len() != rows * dimension {
            return Err(wrong(shape));
        }
        for (row, values) in values.chunks_exact(dimension).take(items).enumerate() {
            take(row, values.to_f32_vec());
        }
    } else {
        let (shape, values) = output.try_extract_tensor::<f32>().map_err(|error| failed(&error))?;
        if values.len() != rows * dimension {
            return Err(wrong(shape));
        }
        for (row, values) in values.chunks_exact(dimension).take(items).enumerate() {
            take(row, values.to_vec());
        }
    }
    Ok(())
}

/// Rows that only fill up the batch repeat the last item: zeros could give values that no item gives, and a model with
/// dynamic quantisation scales by the extremes of the whole batch.
fn pad_rows(elements: &mut Elements<'_>, items: usize, rows: usize, each: usize) {
    for row in items..rows {
        elements.repeat(items - 1, row, each);
    }
}

fn fill_other(elements: &mut Elements<'_>, feed: Feed, shape: &[usize], tokens: &[usize]) {
    match feed {
        Feed::Zeros | Feed::Dummy(_) => elements.clear(),
        Feed::Mask => {
            for row in 0..shape[0] {
                // Rows beyond the items repeat the last one; a dummy text is all tokens.
                let count = tokens.get(row).or(tokens.last()).copied().unwrap_or(shape[1]);
                elements.set_integers(row, shape[1], std::iter::repeat_n(1, count), 0);
            }
        }
    }
}

fn failed(error: &ort::Error) -> Fault {
    Fault::reject(Reason::EncodeFailed, format!("the encoder failed: {}", super::provider::brief(error.message())))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use ort::memory::{AllocationDevice, AllocatorType, MemoryInfo, MemoryType};

    use super::*;
    use crate::config::Config;
    use crate::encode::onnx::{Loading, OnnxModel};

    /// What runs on a device, in the host's memory: bound tensors, fixed shapes, rows and tokens of padding.
    #[test]
    fn bound_and_padded_runs_give_the_vectors_of_plain_ones() {
        let config = Config::load(&[], &Default::default()).expect("the defaults load").encoder;
        let bundle = Bundle::load(Path::new("models/small")).expect("the small model");
        let side = bundle.resolution as usize;
        let model = OnnxModel::load(bundle, &config, Loading::OnFirstUse).expect("loads");
        let mut plain = model.worker(Loading::AtStart).expect("loads");
        let mut bound = model.worker(Loading::AtStart).expect("loads");
        for tower in [Tower::Image, Tower::Text] {
            let tower = bound.load(tower).expect("loaded");
            let memory = MemoryInfo::new(AllocationDevice::CPU, 0, AllocatorType::Device, MemoryType::Default);
            let bindings = Bindings::new(&tower.session(), memory.expect("memory")).expect("an allocator");
            tower.shapes = Shapes::GPU;
            tower.bind(bindings);
        }
        let images = (0..7).map(|image| PreparedImage { rgb: vec![30 * image; 3 * side * side] }).collect::<Vec<_>>();
        let texts = (0..7).map(|text| PreparedText { ids: (101..104 + 5 * text).collect() }).collect::<Vec<_>>();
        // Twice with other inputs: what was bound must not be what runs.
        for reverse in [false, true] {
            let (mut images, mut texts) = (images.clone(), texts.clone());
            if reverse {
                images.reverse();
                texts.reverse();
            }
            let expected = plain.image().expect("loaded").images(&images).expect("encodes");
            assert_near(&bound.image().expect("loaded").images(&images).expect("encodes"), &expected);
            let expected = plain.text().expect("loaded").texts(&texts).expect("encodes");
            assert_near(&bound.text().expect("loaded").texts(&texts).expect("encodes"), &expected);
        }
    }

    fn assert_near(left: &[Vec<f32>], right: &[Vec<f32>]) {
        assert_eq!(left.len(), right.len());
        for (left, right) in left.iter().zip(right) {
            let difference = left.iter().zip(right).map(|(left, right)| (left - right).abs()).fold(0.0, f32::max);
            assert!(left.len() == right.len() && difference <= 1e-5, "{difference}");
        }
    }
}
