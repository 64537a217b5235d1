//! The index of a GGUF file.
//!
//! The file is magic, version and two counts; key-value pairs; names, shapes, types and offsets of the tensors; padding; and the
//! tensors' data, each at a multiple of the alignment (<https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>). Read by hand,
//! with checked arithmetic. Versions 2 and 3, little-endian.

mod ggml_type;
mod reader;
#[cfg(test)]
mod tests;
mod value;

pub use ggml_type::GgmlType;
pub use value::{Array, Value, ValueKind};

use super::{ByName, Element, Named, bytes_of, shown, slice_of};
use crate::{
    error::{Error, Result},
    name::printable,
};
use reader::Reader;
use std::ops::Range;

const FORMAT: &str = "GGUF";
const ALIGNMENT_KEY: &str = "general.alignment";
const ALIGNMENT_DEFAULT: u32 = 32;

/// The tensors of a GGUF file, and its metadata.
#[derive(Clone, Debug)]
pub struct GgufIndex {
    version: u32,
    alignment: u32,
    tensors: ByName<GgufTensor>,
    metadata: ByName<Pair>,
}

impl GgufIndex {
    /// Reads the header of a file; `file` is all of it, a [`ModelFile`](crate::ModelFile) for one.
    ///
    /// Touches the header only. Arrays are passed over and kept as [`Array`], so that a vocabulary costs one step a word and no
    /// memory.
    ///
    /// # Errors
    /// [`Error::BadFormat`] if it is none, of version 1 or big-endian, was cut short, or its header lies: lengths, counts, types,
    /// shapes, offsets that are not aligned, beyond the end or over another tensor's, a name twice. It says which, with its
    /// numbers.
    pub fn parse(file: &[u8]) -> Result<Self> {
        let mut reader = Reader::at(file, 0);
        let Head { version, tensor_count, pairs_start, metadata } = Head::read(&mut reader)?;
        let alignment = match metadata.get(ALIGNMENT_KEY).map(|pair| &pair.value) {
            None => ALIGNMENT_DEFAULT,
            Some(Value::U32(alignment)) if alignment.is_power_of_two() => *alignment,
            Some(Value::U32(other)) => return Err(bad(pairs_start, format!("{ALIGNMENT_KEY} is {other}, not a power of two"))),
            Some(other) => return Err(bad(pairs_start, format!("{ALIGNMENT_KEY} is of type {:?}, not U32", other.kind()))),
        };

        let tensors_start = reader.offset();
        let mut described = Vec::new();
        for _ in 0..tensor_count {
            described.push(reader.tensor()?);
        }
        let data_start = reader.offset().next_multiple_of(alignment.into());
        let mut tensors = Vec::with_capacity(described.len());
        for tensor in described {
            tensors.push(tensor.placed(data_start, alignment.into(), file.len() as u64)?);
        }
        check_no_overlap(&tensors)?;
        let twice = |name| two("tensors", name, tensors_start);
        Ok(Self { version, alignment, tensors: ByName::new(tensors).map_err(twice)?, metadata })
    }

    /// The version of the format: 2 or 3.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// What every tensor's place in the file is a multiple of, in bytes: `general.alignment`, 32 where it is not given.
    pub fn alignment(&self) -> u32 {
        self.alignment
    }

    /// Which part of a split model this file is; `None` for a whole one.
    pub fn split(&self) -> Option<Split> {
        Split::in_metadata(&self.metadata)
    }

    /// The tensors in the order the file lists them.
    pub fn tensors(&self) -> &[GgufTensor] {
        &self.tensors.items
    }

    /// The tensor of this name.
    pub fn tensor(&self, name: &str) -> Option<&GgufTensor> {
        self.tensors.get(name)
    }

    /// The key-value pairs in the order of the file.
    pub fn metadata(&self) -> impl ExactSizeIterator<Item = (&str, &Value)> {
        self.metadata.items.iter().map(|pair| (pair.key.as_str(), &pair.value))
    }

    /// The value under `key`.
    pub fn value(&self, key: &str) -> Option<&Value> {
        self.metadata.get(key).map(|pair| &pair.value)
    }

    /// The bytes of a tensor in `file`, the file this index was made of.
    ///
    /// # Errors
    /// [`Error::TensorNotFound`]; [`Error::InvalidRange`] if `file` is another, shorter one.
    pub fn bytes<'a>(&self, file: &'a [u8], name: &str) -> Result<&'a [u8]> {
        self.tensors.require(name)?.bytes(file)
    }

    /// The elements of a tensor in `file`, the file this index was made of: row-major, in place.
    ///
    /// # Errors
    /// As [`bytes`](Self::bytes), and [`Error::NotASlice`] as [`GgufTensor::slice`].
    pub fn slice<'a, T: Element>(&self, file: &'a [u8], name: &str) -> Result<&'a [T]> {
        self.tensors.require(name)?.slice(file)
    }
}

/// Which part of a split model a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Split {
    /// `split.no`: 0 for the first part. File names count from 1.
    pub index: u64,
    /// `split.count`: of how many, at least 2.
    pub count: u64,
}

impl Split {
    /// Which part of a split model `file` is; `None` for a whole one. What [`GgufIndex::split`] tells, but of the metadata alone:
    /// tensors may be of types that are not known here.
    ///
    /// # Errors
    /// [`Error::BadFormat`] if it is no GGUF, or its metadata lies, as for [`GgufIndex::parse`].
    pub fn of(file: &[u8]) -> Result<Option<Self>> {
        Ok(Self::in_metadata(&Head::read(&mut Reader::at(file, 0))?.metadata))
    }

    fn in_metadata(metadata: &ByName<Pair>) -> Option<Self> {
        let number = |key| metadata.get(key)?.value.as_u64();
        let (index, count) = (number("split.no")?, number("split.count")?);
        (count > 1).then_some(Self { index, count })
    }
}

/// What a file begins with; the tensors follow.
struct Head {
    version: u32,
    tensor_count: u64,
    /// Where the metadata begins.
    pairs_start: u64,
    metadata: ByName<Pair>,
}

impl Head {
    fn read(reader: &mut Reader<'_>) -> Result<Self> {
        let version = reader.version()?;
        // Each needs that many bytes at least: a lying count ends here.
        let tensor_count = reader.count("tensors", 8 + 4 + 4 + 8)?;
        let pair_count = reader.count("key-value pairs", 8 + 4 + 1)?;
        let pairs_start = reader.offset();
        let mut pairs = Vec::new();
        for _ in 0..pair_count {
            pairs.push(reader.pair()?);
        }
        let metadata = ByName::new(pairs).map_err(|name| two("key-value pairs", name, pairs_start))?;
        Ok(Self { version, tensor_count, pairs_start, metadata })
    }
}

/// A tensor of a GGUF file: its name, type, shape and place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GgufTensor {
    name: String,
    ggml_type: GgmlType,
    shape: Vec<u64>,
    range: Range<u64>,
}

impl GgufTensor {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The type of its elements, or of the blocks that hold them.
    pub fn ggml_type(&self) -> GgmlType {
        self.ggml_type
    }

    /// Elements per dimension, the outermost first (row-major, as NumPy and PyTorch have it); empty for a single number.
    ///
    /// The file has them the other way round: see [`ne`](Self::ne). Blocks run along the last dimension.
    pub fn shape(&self) -> &[u64] {
        &self.shape
    }

    /// Elements per dimension as ggml has them: the innermost first, `ne[0]` elements being a row.
    pub fn ne(&self) -> impl DoubleEndedIterator<Item = u64> + ExactSizeIterator {
        self.shape.iter().rev().copied()
    }

    /// Its bytes' place in the file, counted from the file's start. Padding is not part of it.
    pub fn range(&self) -> Range<u64> {
        self.range.clone()
    }

    /// Its bytes in `file`, the file its index was made of.
    ///
    /// # Errors
    /// [`Error::InvalidRange`] if `file` is another, shorter one.
    pub fn bytes<'a>(&self, file: &'a [u8]) -> Result<&'a [u8]> {
        bytes_of(file, &self.name, &self.range)
    }

    /// Its elements in `file`, the file its index was made of: row-major, in place.
    ///
    /// `F16` and `BF16` are read as `u16`. Quantised types have no elements that could be pointed at.
    ///
    /// # Errors
    /// [`Error::NotASlice`] if its type is not `T`'s, or its bytes do not begin on a multiple of `T`'s alignment, which takes a
    /// file of a small `general.alignment`; [`Error::InvalidRange`] if `file` is another, shorter one.
    pub fn slice<'a, T: Element>(&self, file: &'a [u8]) -> Result<&'a [T]> {
        slice_of(self.bytes(file)?, &self.name, self.ggml_type.name(), self.range.start)
    }
}

impl Named for GgufTensor {
    fn name(&self) -> &str {
        &self.name
    }
}

/// A key and its value.
#[derive(Clone, Debug)]
struct Pair {
    key: String,
    value: Value,
}

impl Named for Pair {
    fn name(&self) -> &str {
        &self.key
    }
}

/// A tensor as the header describes it; its place is known once the header has been read.
struct Described {
    name: String,
    ggml_type: GgmlType,
    /// As in [`GgufTensor::shape`].
    shape: Vec<u64>,
    size_bytes: u64,
    /// From the start of the data.
    offset: u64,
    /// Where the header says so.
    at: u64,
}

impl Described {
    fn placed(self, data_start: u64, alignment: u64, file_bytes: u64) -> Result<GgufTensor> {
        let Self { name, ggml_type, shape, size_bytes, offset, at } = self;
        if !offset.is_multiple_of(alignment) {
            let reason = format!("tensor \"{}\" lies at {offset} of the data, not a multiple of {alignment}", printable(&name));
            return Err(bad(at, reason));
        }
        let start = data_start.checked_add(offset);
        let range = start.and_then(|start| Some(start..start.checked_add(size_bytes)?)).filter(|range| range.end <= file_bytes);
        let Some(range) = range else {
            let of = format!("{ggml_type} {}", shown(&shape));
            let reason = format!(
                "tensor \"{}\" of {size_bytes} bytes ({of}) lies at {data_start} + {offset}, and the file has {file_bytes} bytes",
                printable(&name)
            );
            return Err(bad(at, reason));
        };
        Ok(GgufTensor { name, ggml_type, shape, range })
    }
}

fn check_no_overlap(tensors: &[GgufTensor]) -> Result<()> {
    let mut placed: Vec<&GgufTensor> = tensors.iter().filter(|tensor| !tensor.range.is_empty()).collect();
    placed.sort_by_key(|tensor| tensor.range.start);
    for pair in placed.windows(2) {
        if pair[1].range.start < pair[0].range.end {
            let tensor = |at: usize| format!("\"{}\" at {:?}", printable(&pair[at].name), pair[at].range);
            return Err(bad(pair[1].range.start, format!("two tensors overlap: {} and {}", tensor(0), tensor(1))));
        }
    }
    Ok(())
}

/// That two things of a list, which begins at `offset`, have one name.
fn two(what: &str, name: String, offset: u64) -> Error {
    bad(offset, format!("two {what} are named \"{name}\""))
}

fn bad(offset: u64, reason: String) -> Error {
    Error::BadFormat { format: FORMAT, offset, reason }
}
