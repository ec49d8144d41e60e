//! Inputs and outputs in a device's pinned memory, bound to a session: transfers need no copy on the host.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use half::f16;
use ort::memory::{Allocator, MemoryInfo};
use ort::session::{IoBinding, Session, SessionOutputs};
use ort::value::{DynTensor, TensorElementType};

use crate::encode::onnx::graph::Plan;
use crate::encode::onnx::tensor::Elements;

/// The tensors of every shape that was run. The set of shapes is fixed ([`crate::encode::buckets::Shapes::GPU`]), so
/// their memory is bounded.
pub struct Bindings {
    allocator: Allocator,
    shapes: HashMap<Vec<usize>, Bound>,
}

/// The tensors of one shape.
pub struct Bound {
    binding: IoBinding,
    inputs: Vec<(String, DynTensor)>,
}

impl Bindings {
    /// In memory of this kind, which the host must be able to read and write.
    ///
    /// # Errors
    /// The session's provider has no such memory.
    pub fn new(session: &Session, memory: MemoryInfo<'_>) -> ort::Result<Self> {
        Ok(Self { allocator: Allocator::new(session, memory)?, shapes: HashMap::new() })
    }

    /// The tensors for inputs of these shapes, made when the shape is first run.
    ///
    /// # Errors
    /// There is no memory left.
    pub fn shape(
        &mut self,
        session: &Session,
        plan: &Plan,
        input: &[usize],
        others: &[Vec<usize>],
        dimension: usize,
    ) -> ort::Result<&mut Bound> {
        match self.shapes.entry(input.to_vec()) {
            Entry::Occupied(bound) => Ok(bound.into_mut()),
            Entry::Vacant(vacant) => {
                let new = |element: Option<TensorElementType>, shape: &[usize]| {
                    DynTensor::new(&self.allocator, element.unwrap_or(TensorElementType::Float32), shape)
                };
                let mut inputs = vec![(plan.input.name.clone(), new(plan.input.element, input)?)];
                for ((port, _), shape) in plan.others.iter().zip(others) {
                    inputs.push((port.name.clone(), new(port.element, shape)?));
                }
                let mut binding = session.create_binding()?;
                let output = new(plan.output.element, &[input[0], dimension])?;
                binding.bind_output(plan.output.name.as_str(), output)?;
                Ok(vacant.insert(Bound { binding, inputs }))
            }
        }
    }
}

impl Bound {
    /// The tower's input, to be written.
    ///
    /// # Errors
    /// Its memory is not the host's.
    pub fn input(&mut self) -> ort::Result<Elements<'_>> {
        elements(&mut self.inputs[0].1)
    }

    /// A further input, to be written.
    ///
    /// # Errors
    /// Its memory is not the host's.
    pub fn other(&mut self, index: usize) -> ort::Result<Elements<'_>> {
        elements(&mut self.inputs[1 + index].1)
    }

    /// Transfers the inputs, runs, and waits for the output.
    ///
    /// # Errors
    /// The run failed.
    pub fn run<'a>(&'a mut self, session: &'a mut Session) -> ort::Result<SessionOutputs<'a>> {
        for (name, tensor) in &self.inputs {
            // Binding is what transfers to the device: what was written since the last time counts from here on.
            self.binding.bind_input(name.as_str(), tensor)?;
        }
        self.binding.synchronize_inputs()?;
        let outputs = session.run_binding(&self.binding)?;
        self.binding.synchronize_outputs()?;
        Ok(outputs)
    }
}

fn elements(tensor: &mut DynTensor) -> ort::Result<Elements<'_>> {
    Ok(match tensor.data_type() {
        TensorElementType::Float16 => Elements::Float16(tensor.try_extract_tensor_mut::<f16>()?.1),
        TensorElementType::Int64 => Elements::Int64(tensor.try_extract_tensor_mut::<i64>()?.1),
        TensorElementType::Int32 => Elements::Int32(tensor.try_extract_tensor_mut::<i32>()?.1),
        _ => Elements::Float32(tensor.try_extract_tensor_mut::<f32>()?.1),
    })
}
