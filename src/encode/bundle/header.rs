//! What an ONNX file says about itself: inputs, outputs, and the files that hold its weights. Weights are skipped, so a
//! file of gigabytes is read in milliseconds, and without ONNX Runtime.
//!
//! The format is a protocol buffer, `onnx/onnx.proto3`; the numbers below are its field numbers.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::{Component, Path};

use anyhow::{Context, Result, bail, ensure};

/// ONNX element types, `TensorProto.DataType`.
pub const FLOAT: u64 = 1;
pub const INT32: u64 = 6;
pub const INT64: u64 = 7;
pub const FLOAT16: u64 = 10;

/// Longer names and paths are no names and paths.
const MAX_STRING: u64 = 64 * 1024;
/// How a file begins that Git LFS did not replace by its content.
const LFS_POINTER: &[u8] = b"version https://git-lfs";

/// A file's inputs and outputs.
#[derive(Debug, Default)]
pub struct Header {
    /// In the graph's order.
    pub inputs: Vec<Port>,
    /// In the graph's order.
    pub outputs: Vec<Port>,
    /// Files beside it that hold weights, with the bytes they must at least have.
    external: BTreeMap<String, u64>,
}

/// An input or output.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Port {
    /// Its name.
    pub name: String,
    /// One of the element types above, or another; 0: it is no tensor.
    pub element: u64,
    /// Its dimensions, `None` where any size is allowed.
    pub shape: Vec<Option<usize>>,
}

impl Header {
    /// Reads a file, and looks whether the files that hold its weights are there and long enough.
    ///
    /// # Errors
    /// One sentence that names the file: it is no ONNX file, ends too early, or lacks a file of weights.
    pub fn read(file: &Path) -> Result<Self> {
        let bytes = std::fs::metadata(file).map_or(0, |metadata| metadata.len());
        let header = Self::parse(file).with_context(|| format!("cannot use {} ({bytes} bytes)", file.display()))?;
        for (name, needed) in &header.external {
            let plain = Path::new(name).components().all(|part| matches!(part, Component::Normal(_)));
            ensure!(plain, "{} keeps weights in {name:?}, which is not beside it", file.display());
            let weights = file.with_file_name(name);
            let there = std::fs::metadata(&weights).ok().map(|metadata| metadata.len());
            ensure!(
                there.is_some_and(|bytes| bytes >= *needed),
                "{}, which holds weights of {}, is missing or cut off ({}): copy all files of the export",
                weights.display(),
                file.display(),
                there.map_or_else(|| "it is not there".into(), |bytes| format!("{bytes} of {needed} bytes"))
            );
        }
        Ok(header)
    }

    fn parse(file: &Path) -> Result<Self> {
        let opened = File::open(file)?;
        let end = opened.metadata()?.len();
        let mut reader = BufReader::with_capacity(64 * 1024, opened);
        ensure!(end > 0, "it is empty: it was cut off while it was copied");
        if reader.fill_buf()?.starts_with(LFS_POINTER) {
            bail!("it is Git LFS's pointer to the model, not the model: run `git lfs pull` where it came from");
        }
        let mut wire = Wire { reader, at: 0 };
        let mut header = Self::default();
        let mut graphs = 0;
        while wire.at < end {
            match wire.field(end)? {
                // ModelProto.graph
                (7, Value::Bytes(graph_end)) => {
                    header.graph(&mut wire, graph_end)?;
                    graphs += 1;
                }
                (_, value) => wire.skip(&value)?,
            }
        }
        ensure!(graphs == 1 && !header.outputs.is_empty(), "it is no ONNX file");
        Ok(header)
    }

    fn graph(&mut self, wire: &mut Wire, end: u64) -> Result<()> {
        while wire.at < end {
            match wire.field(end)? {
                // GraphProto.node, .initializer, .input, .output
                (1, Value::Bytes(end)) => self.nested_tensors(wire, end, &[5, 5])?,
                (5, Value::Bytes(end)) => self.tensor(wire, end)?,
                (11, Value::Bytes(end)) => self.inputs.push(Port::read(wire, end)?),
                (12, Value::Bytes(end)) => self.outputs.push(Port::read(wire, end)?),
                (_, value) => wire.skip(&value)?,
            }
        }
        Ok(())
    }

    /// Constants stand in NodeProto.attribute (5) as AttributeProto.t (5).
    fn nested_tensors(&mut self, wire: &mut Wire, end: u64, path: &[u32]) -> Result<()> {
        let Some((wanted, rest)) = path.split_first() else {
            return self.tensor(wire, end);
        };
        while wire.at < end {
            match wire.field(end)? {
                (number, Value::Bytes(end)) if number == *wanted => self.nested_tensors(wire, end, rest)?,
                (_, value) => wire.skip(&value)?,
            }
        }
        Ok(())
    }

    /// Notes where a tensor's weights are, unless they are inside.
    fn tensor(&mut self, wire: &mut Wire, end: u64) -> Result<()> {
        let mut entries = BTreeMap::new();
        while wire.at < end {
            match wire.field(end)? {
                // TensorProto.external_data: pairs of strings
                (13, Value::Bytes(end)) => {
                    let (mut key, mut text) = (String::new(), String::new());
                    while wire.at < end {
                        match wire.field(end)? {
                            (1, Value::Bytes(end)) => key = wire.string(end)?,
                            (2, Value::Bytes(end)) => text = wire.string(end)?,
                            (_, value) => wire.skip(&value)?,
                        }
                    }
                    entries.insert(key, text);
                }
                (_, value) => wire.skip(&value)?,
            }
        }
        if let Some(location) = entries.remove("location") {
            let number = |key| entries.get(key).and_then(|text: &String| text.parse::<u64>().ok()).unwrap_or(0);
            let needed = number("offset").saturating_add(number("length"));
            let known = self.external.entry(location).or_default();
            *known = needed.max(*known);
        }
        Ok(())
    }
}

impl Port {
    fn read(wire: &mut Wire, end: u64) -> Result<Self> {
        let mut port = Self::default();
        while wire.at < end {
            match wire.field(end)? {
                // ValueInfoProto.name, .type
                (1, Value::Bytes(end)) => port.name = wire.string(end)?,
                (2, Value::Bytes(end)) => port.read_type(wire, end)?,
                (_, value) => wire.skip(&value)?,
            }
        }
        Ok(port)
    }

    fn read_type(&mut self, wire: &mut Wire, end: u64) -> Result<()> {
        while wire.at < end {
            match wire.field(end)? {
                // TypeProto.tensor_type, and there .elem_type, .shape
                (1, Value::Bytes(end)) => {
                    while wire.at < end {
                        match wire.field(end)? {
                            (1, Value::Number(element)) => self.element = element,
                            (2, Value::Bytes(end)) => self.read_shape(wire, end)?,
                            (_, value) => wire.skip(&value)?,
                        }
                    }
                }
                (_, value) => wire.skip(&value)?,
            }
        }
        Ok(())
    }

    fn read_shape(&mut self, wire: &mut Wire, end: u64) -> Result<()> {
        while wire.at < end {
            match wire.field(end)? {
                // TensorShapeProto.dim, and there .dim_value; a symbol otherwise
                (1, Value::Bytes(end)) => {
                    let mut size = None;
                    while wire.at < end {
                        match wire.field(end)? {
                            (1, Value::Number(value)) => size = usize::try_from(value as i64).ok(),
                            (_, value) => wire.skip(&value)?,
                        }
                    }
                    self.shape.push(size);
                }
                (_, value) => wire.skip(&value)?,
            }
        }
        Ok(())
    }

    /// Whether it holds floating-point numbers.
    pub fn is_float(&self) -> bool {
        matches!(self.element, FLOAT | FLOAT16)
    }

    /// Whether it holds numbers as token ids are.
    pub fn is_integer(&self) -> bool {
        matches!(self.element, INT32 | INT64)
    }
}

/// A field's value, read or ahead.
enum Value {
    Number(u64),
    /// Ends there.
    Bytes(u64),
    /// So many bytes of no interest.
    Fixed(u64),
}

struct Wire {
    reader: BufReader<File>,
    at: u64,
}

impl Wire {
    /// The next field's number and value, within a message that ends at `end`.
    fn field(&mut self, end: u64) -> Result<(u32, Value)> {
        let tag = self.varint(end)?;
        let value = match tag & 7 {
            0 => Value::Number(self.varint(end)?),
            1 => Value::Fixed(8),
            2 => {
                let length = self.varint(end)?;
                Value::Bytes(self.at.saturating_add(length))
            }
            5 => Value::Fixed(4),
            _ => bail!("it is no ONNX file"),
        };
        let until = match value {
            Value::Number(_) => self.at,
            Value::Bytes(until) => until,
            Value::Fixed(length) => self.at + length,
        };
        ensure!(until <= end, "it is no ONNX file, or was cut off while it was copied");
        let number = u32::try_from(tag >> 3).ok().filter(|number| *number > 0).context("it is no ONNX file")?;
        Ok((number, value))
    }

    fn varint(&mut self, end: u64) -> Result<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            ensure!(self.at < end, "it is no ONNX file, or was cut off while it was copied");
            let mut byte = [0];
            self.reader.read_exact(&mut byte)?;
            self.at += 1;
            value |= u64::from(byte[0] & 0x7f) << shift;
            if byte[0] < 0x80 {
                return Ok(value);
            }
        }
        bail!("it is no ONNX file")
    }

    fn skip(&mut self, value: &Value) -> Result<()> {
        let until = match value {
            Value::Number(_) => self.at,
            Value::Bytes(until) => *until,
            Value::Fixed(length) => self.at + length,
        };
        // Within the buffer this only moves on.
        self.reader.seek_relative(i64::try_from(until - self.at)?)?;
        self.at = until;
        Ok(())
    }

    fn string(&mut self, end: u64) -> Result<String> {
        let length = end - self.at;
        ensure!(length <= MAX_STRING, "it is no ONNX file");
        let mut bytes = vec![0; length as usize];
        self.reader.read_exact(&mut bytes)?;
        self.at = end;
        String::from_utf8(bytes).ok().context("it is no ONNX file")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fixture(name: &str) -> std::path::PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/bundles").join(name)
    }

    fn port(name: &str, element: u64, shape: &[Option<usize>]) -> Port {
        Port { name: name.to_owned(), element, shape: shape.to_vec() }
    }

    #[test]
    fn ports_are_read() {
        let header = Header::read(&fixture("immich/textual/model.onnx")).expect("reads");
        assert_eq!(header.inputs, [port("text", INT32, &[Some(1), Some(77)])]);
        assert_eq!(header.outputs, [port("embedding", FLOAT, &[Some(1), Some(4)])]);
        let header = Header::read(&fixture("hugging_face/model.onnx")).expect("reads");
        let pixels = port("pixel_values", FLOAT, &[None, Some(3), Some(8), Some(8)]);
        let tokens = |name| port(name, INT64, &[None, None]);
        assert_eq!(header.inputs, [tokens("input_ids"), pixels, tokens("attention_mask")]);
    }

    /// A file that ends anywhere before its graph does is refused; nothing panics or reads what is not there.
    #[test]
    fn every_cut_is_noticed() {
        let folder = tempfile::tempdir().expect("a folder");
        let cut = folder.path().join("cut.onnx");
        let whole = std::fs::read(fixture("feedlens/text.onnx")).expect("reads");
        // After the graph only the opset follows: 02 10 11 with its tag and length, 6 bytes at the most.
        for length in 0..whole.len() - 6 {
            std::fs::write(&cut, &whole[..length]).expect("writes");
            assert!(Header::read(&cut).is_err(), "cut at {length} of {}", whole.len());
        }
    }

    /// Whatever bytes a file holds: an answer, and no memory asked for that the file does not have.
    #[test]
    fn damaged_files_do_no_harm() {
        let folder = tempfile::tempdir().expect("a folder");
        let damaged = folder.path().join("damaged.onnx");
        let whole = std::fs::read(fixture("feedlens/external.onnx")).expect("reads");
        for at in 0..whole.len() {
            for byte in [0x00, 0x7f, 0x80, 0xff] {
                let mut bytes = whole.clone();
                bytes[at] = byte;
                std::fs::write(&damaged, &bytes).expect("writes");
                let _ = Header::read(&damaged);
            }
        }
    }

    #[test]
    fn weights_are_only_looked_for_beside_the_file() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("text.onnx");
        let name = b"external.onnx.extra_file";
        let mut bytes = std::fs::read(fixture("feedlens/external.onnx")).expect("reads");
        let found = (0..bytes.len() - name.len()).filter(|at| bytes[*at..].starts_with(name)).collect::<Vec<_>>();
        assert!(!found.is_empty());
        for at in found {
            bytes[at..at + name.len()].copy_from_slice(b"../../../../../../passwd");
        }
        std::fs::write(&file, &bytes).expect("writes");
        let refused = Header::read(&file).expect_err("outside").to_string();
        assert!(refused.contains("which is not beside it"), "{refused}");
    }
}
