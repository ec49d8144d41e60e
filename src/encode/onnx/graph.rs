//! What a graph's signature says, checked against the bundle. Pure: no session, no file.

use std::fmt;

use anyhow::{Result, anyhow, bail, ensure};
use ort::session::Session;
use ort::value::{Outlet, TensorElementType, ValueType};

use crate::encode::Tower;
use crate::encode::bundle::{Bundle, TowerFile};

/// A graph's inputs and outputs.
#[derive(Debug, Clone, PartialEq)]
pub struct Signature {
    /// Inputs, in the graph's order; initialisers are not among them.
    pub inputs: Vec<Port>,
    /// Outputs, in the graph's order.
    pub outputs: Vec<Port>,
}

/// An input or output of a graph.
#[derive(Debug, Clone, PartialEq)]
pub struct Port {
    /// Its name.
    pub name: String,
    /// Its elements; `None`: it is no tensor.
    pub element: Option<TensorElementType>,
    /// Its shape.
    pub dimensions: Vec<Dimension>,
}

/// One dimension of a shape.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Dimension {
    /// The graph works for this size alone.
    Fixed(usize),
    /// Any size; dimensions of one non-empty symbol are equal in a run.
    Dynamic(String),
}

impl Dimension {
    /// The size, where it is fixed.
    pub fn fixed(&self) -> Option<usize> {
        match self {
            Dimension::Fixed(size) => Some(*size),
            Dimension::Dynamic(_) => None,
        }
    }

    fn allows(&self, size: usize) -> bool {
        self.fixed().is_none_or(|fixed| fixed == size)
    }
}

impl fmt::Display for Dimension {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Dimension::Fixed(size) => write!(formatter, "{size}"),
            Dimension::Dynamic(symbol) if symbol.is_empty() => formatter.write_str("?"),
            Dimension::Dynamic(symbol) => formatter.write_str(symbol),
        }
    }
}

impl Port {
    fn of(outlet: &Outlet) -> Self {
        let (element, dimensions) = match outlet.dtype() {
            ValueType::Tensor { ty, shape, dimension_symbols } => {
                let symbol = |index| dimension_symbols.get(index).cloned().unwrap_or_default();
                let dimension = |(index, size): (usize, &i64)| {
                    usize::try_from(*size).map_or_else(|_| Dimension::Dynamic(symbol(index)), Dimension::Fixed)
                };
                (Some(*ty), shape.iter().enumerate().map(dimension).collect())
            }
            _ => (None, vec![]),
        };
        Self { name: outlet.name().to_owned(), element, dimensions }
    }

    /// The element's name as ONNX has it, in lower case: `float`, `float16`, `int64`.
    pub fn element_name(&self) -> String {
        match self.element {
            None => "no tensor".to_owned(),
            Some(TensorElementType::Float32) => "float".to_owned(),
            Some(element) => format!("{element:?}").to_lowercase(),
        }
    }

    /// The shape for people: `[batch, 3, 224, 224]`.
    pub fn shape(&self) -> String {
        let dimensions = self.dimensions.iter().map(ToString::to_string).collect::<Vec<_>>();
        format!("[{}]", dimensions.join(", "))
    }
}

impl Signature {
    /// Reads a session's signature.
    pub fn of(session: &Session) -> Self {
        Self {
            inputs: session.inputs().iter().map(Port::of).collect(),
            outputs: session.outputs().iter().map(Port::of).collect(),
        }
    }

    fn looks_like(&self, tower: Tower) -> bool {
        let has = |rank: usize, floats: bool| {
            self.inputs.iter().any(|port| port.dimensions.len() == rank && is_float(port.element) == floats)
        };
        match tower {
            Tower::Image => has(4, true),
            Tower::Text => has(2, false),
        }
    }
}

fn is_float(element: Option<TensorElementType>) -> bool {
    matches!(element, Some(TensorElementType::Float32 | TensorElementType::Float16))
}

fn is_token(element: Option<TensorElementType>) -> bool {
    matches!(element, Some(TensorElementType::Int64 | TensorElementType::Int32))
}

/// How one tower is fed and read.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// The tower.
    pub tower: Tower,
    /// Pictures [N, 3, R, R] (float or float16), or token ids [N, L] (int64 or int32).
    pub input: Port,
    /// Every further input, with what it is fed.
    pub others: Vec<(Port, Feed)>,
    /// Features [N, D] (float or float16).
    pub output: Port,
    /// The batch size, where the graph has a fixed one.
    pub batch: Option<usize>,
    /// The text length, where the graph has a fixed one.
    pub length: Option<usize>,
}

/// What a further input is fed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Feed {
    /// 1 at tokens, 0 at padding.
    Mask,
    /// Zeros, of the shape of the token ids.
    Zeros,
    /// The smallest input of the tower that is not wanted: the graph holds both.
    Dummy(Tower),
}

/// Checks a tower's graph against the bundle and says how to feed it.
///
/// # Errors
/// One sentence that names the tensor; the caller names the file.
pub fn plan(signature: &Signature, tower: Tower, bundle: &Bundle) -> Result<Plan> {
    let (file, other_file) = match tower {
        Tower::Image => (&bundle.image, &bundle.text),
        Tower::Text => (&bundle.text, &bundle.image),
    };
    let other_tower = if tower == Tower::Image { Tower::Text } else { Tower::Image };
    if !signature.looks_like(tower) && signature.looks_like(other_tower) {
        bail!(
            "it is {}, not {}: the files of [image] and [text] in model.toml are swapped",
            describe(other_tower),
            describe(tower)
        );
    }
    let input = find(&signature.inputs, &file.input, "input")?;
    check_input(input, tower, bundle)?;
    let output = find(&signature.outputs, &file.output, "output")?;
    check_output(output, bundle)?;
    let mut others = Vec::new();
    for port in signature.inputs.iter().filter(|port| port.name != file.input) {
        let feed = feed(port, tower, file, other_file, bundle)?;
        others.push((port.clone(), feed));
    }
    let batch = input.dimensions[0].fixed();
    ensure!(batch != Some(0), "input {:?} has a batch of 0", input.name);
    let length = if tower == Tower::Text { input.dimensions[1].fixed() } else { None };
    Ok(Plan { tower, input: input.clone(), others, output: output.clone(), batch, length })
}

fn describe(tower: Tower) -> &'static str {
    match tower {
        Tower::Image => "a picture tower",
        Tower::Text => "a text tower",
    }
}

fn find<'a>(ports: &'a [Port], name: &str, kind: &str) -> Result<&'a Port> {
    ports.iter().find(|port| port.name == name).ok_or_else(|| {
        let known = ports.iter().map(|port| format!("{:?}", port.name)).collect::<Vec<_>>().join(", ");
        anyhow!("it has no {kind} {name:?}, which model.toml names; it has {known}")
    })
}

fn check_input(port: &Port, tower: Tower, bundle: &Bundle) -> Result<()> {
    let (name, element, shape) = (&port.name, port.element_name(), port.shape());
    match tower {
        Tower::Image => {
            let side = bundle.resolution as usize;
            ensure!(
                is_float(port.element) && port.dimensions.len() == 4,
                "input {name:?} is {element} {shape}; pictures are float or float16 [batch, 3, {side}, {side}]"
            );
            ensure!(
                port.dimensions[1].allows(3),
                "input {name:?} is {shape}: its pictures are not in planar RGB order, [batch, 3, {side}, {side}]"
            );
            ensure!(
                port.dimensions[2].allows(side) && port.dimensions[3].allows(side),
                "input {name:?} takes pictures of {} x {} pixels, {} says resolution = {side}",
                port.dimensions[2],
                port.dimensions[3],
                bundle.layout.described_in()
            );
        }
        Tower::Text => {
            ensure!(
                is_token(port.element) && port.dimensions.len() == 2,
                "input {name:?} is {element} {shape}; token ids are int64 or int32 [batch, length]"
            );
            let length = port.dimensions[1].fixed().unwrap_or(bundle.context_length);
            ensure!(
                length >= bundle.context_length,
                "input {name:?} takes {length} tokens, {} says context_length = {}",
                bundle.layout.described_in(),
                bundle.context_length
            );
        }
    }
    Ok(())
}

fn check_output(port: &Port, bundle: &Bundle) -> Result<()> {
    let (name, element, shape) = (&port.name, port.element_name(), port.shape());
    ensure!(
        is_float(port.element) && port.dimensions.len() == 2,
        "output {name:?} is {element} {shape}; features are float or float16 [batch, {}]",
        bundle.dimension
    );
    ensure!(
        port.dimensions[1].allows(bundle.dimension),
        "output {name:?} has {} values a row, {} says dimension = {}",
        port.dimensions[1],
        bundle.layout.described_in(),
        bundle.dimension
    );
    Ok(())
}

fn feed(port: &Port, tower: Tower, file: &TowerFile, other: &TowerFile, bundle: &Bundle) -> Result<Feed> {
    let text = if tower == Tower::Text { file } else { other };
    let single = file.file == other.file;
    let is_mask = text.mask.as_ref().map_or(port.name == "attention_mask", |mask| *mask == port.name);
    let feed = if single && port.name == other.input {
        check_input(port, if tower == Tower::Image { Tower::Text } else { Tower::Image }, bundle)?;
        return Ok(Feed::Dummy(if tower == Tower::Image { Tower::Text } else { Tower::Image }));
    } else if is_mask && (tower == Tower::Text || single) {
        Feed::Mask
    } else if port.name == "token_type_ids" && (tower == Tower::Text || single) {
        Feed::Zeros
    } else {
        bail!(
            "it has an input {:?} ({} {}) that model.toml does not name",
            port.name,
            port.element_name(),
            port.shape()
        )
    };
    ensure!(
        is_token(port.element) && port.dimensions.len() == 2,
        "input {:?} is {} {}; beside the token ids it must be int64 or int32 [batch, length]",
        port.name,
        port.element_name(),
        port.shape()
    );
    Ok(feed)
}
