//! Input tensors in buffers that are kept from batch to batch, in the element type that the graph wants.

use half::f16;
use half::slice::HalfFloatSliceExt;
use ort::session::SessionInputValue;
use ort::value::{TensorElementType, TensorRef};

/// A tensor's elements.
pub enum Buffer {
    /// float
    Float32(Vec<f32>),
    /// float16
    Float16(Vec<f16>),
    /// int64
    Int64(Vec<i64>),
    /// int32
    Int32(Vec<i32>),
}

/// A tensor's elements, somewhere: in a [`Buffer`], or in a device's pinned memory.
pub enum Elements<'a> {
    /// float
    Float32(&'a mut [f32]),
    /// float16
    Float16(&'a mut [f16]),
    /// int64
    Int64(&'a mut [i64]),
    /// int32
    Int32(&'a mut [i32]),
}

impl Buffer {
    /// An empty one; elements that [`super::graph`] does not let pass are taken for floats.
    pub fn new(element: Option<TensorElementType>) -> Self {
        match element {
            Some(TensorElementType::Float16) => Buffer::Float16(vec![]),
            Some(TensorElementType::Int64) => Buffer::Int64(vec![]),
            Some(TensorElementType::Int32) => Buffer::Int32(vec![]),
            _ => Buffer::Float32(vec![]),
        }
    }

    /// Room for `count` elements; their values are those of an earlier run, or zeros.
    pub fn elements(&mut self, count: usize) -> Elements<'_> {
        match self {
            Buffer::Float32(values) => {
                values.resize(count, 0.0);
                Elements::Float32(values)
            }
            Buffer::Float16(values) => {
                values.resize(count, f16::ZERO);
                Elements::Float16(values)
            }
            Buffer::Int64(values) => {
                values.resize(count, 0);
                Elements::Int64(values)
            }
            Buffer::Int32(values) => {
                values.resize(count, 0);
                Elements::Int32(values)
            }
        }
    }

    /// The tensor, without a copy.
    ///
    /// # Errors
    /// The shape's size differs from the number of elements.
    pub fn tensor(&self, shape: &[usize]) -> ort::Result<SessionInputValue<'_>> {
        Ok(match self {
            Buffer::Float32(values) => TensorRef::from_array_view((shape.to_vec(), values.as_slice()))?.into(),
            Buffer::Float16(values) => TensorRef::from_array_view((shape.to_vec(), values.as_slice()))?.into(),
            Buffer::Int64(values) => TensorRef::from_array_view((shape.to_vec(), values.as_slice()))?.into(),
            Buffer::Int32(values) => TensorRef::from_array_view((shape.to_vec(), values.as_slice()))?.into(),
        })
    }
}

impl Elements<'_> {
    /// Writes one picture's floats as element block `row` of `floats.len()` elements.
    ///
    /// # Panics
    /// Out of range, or of an integer type.
    pub fn set_floats(&mut self, row: usize, scratch: &mut Vec<f32>, each: usize, fill: impl FnOnce(&mut [f32])) {
        let range = row * each..(row + 1) * each;
        match self {
            Elements::Float32(values) => fill(&mut values[range]),
            Elements::Float16(values) => {
                scratch.resize(each, 0.0);
                fill(scratch);
                values[range].convert_from_f32_slice(scratch);
            }
            Elements::Int64(_) | Elements::Int32(_) => unreachable!("pictures are floats. This is a bug."),
        }
    }

    /// Writes integers as element block `row` of `each` elements, and `rest` behind them.
    ///
    /// # Panics
    /// Out of range, or of a float type.
    pub fn set_integers(&mut self, row: usize, each: usize, integers: impl Iterator<Item = i64>, rest: i64) {
        let range = row * each..(row + 1) * each;
        let integers = integers.chain(std::iter::repeat(rest));
        match self {
            Elements::Int64(values) => values[range].iter_mut().zip(integers).for_each(|(out, id)| *out = id),
            Elements::Int32(values) => {
                // Vocabularies are far below 2^31.
                values[range].iter_mut().zip(integers).for_each(|(out, id)| *out = id as i32);
            }
            Elements::Float32(_) | Elements::Float16(_) => unreachable!("tokens are integers. This is a bug."),
        }
    }

    /// Copies element block `from` of `each` elements to block `to`.
    pub fn repeat(&mut self, from: usize, to: usize, each: usize) {
        let (source, target) = (from * each..(from + 1) * each, to * each);
        match self {
            Elements::Float32(values) => values.copy_within(source, target),
            Elements::Float16(values) => values.copy_within(source, target),
            Elements::Int64(values) => values.copy_within(source, target),
            Elements::Int32(values) => values.copy_within(source, target),
        }
    }

    /// Sets every element to zero.
    pub fn clear(&mut self) {
        match self {
            Elements::Float32(values) => values.fill(0.0),
            Elements::Float16(values) => values.fill(f16::ZERO),
            Elements::Int64(values) => values.fill(0),
            Elements::Int32(values) => values.fill(0),
        }
    }
}
