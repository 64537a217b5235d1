//! The index of a GGUF file.
//!
//! The file is magic, version and two counts; key-value pairs; names, shapes, types and offsets of the tensors; padding; and the
//! tensors' data, each at a multiple of the alignment (<https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>). Read by hand:
//! every length is checked against what is left of the file before anything is done with it. Versions 2 and 3, little-endian.

use super::{ByName, Element, Named, bytes_of, shown, slice_of};
use crate::{
    error::{Error, Result},
    name::printable,
    units::iec,
};
use std::{fmt, ops::Range};

const FORMAT: &str = "GGUF";
/// Far above the headers there are (a vocabulary of 256 Ki words is about 10 MiB); it bounds what a lying file makes us keep.
const HEADER_MAX_BYTES: u64 = 256 << 20;
/// The format's own limit for keys, taken for the names of tensors too: 64 by the format, but longer ones are out there.
const NAME_MAX_BYTES: u64 = 65_535;
/// GGML_MAX_DIMS.
const DIMENSIONS_MAX: u32 = 4;
/// The format sets none; no file has even two.
const NESTING_MAX: u32 = 8;
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
        let mut reader = Reader { file, position: 0 };
        let version = reader.version()?;
        // Each needs that many bytes at least: a lying count ends here.
        let tensor_count = reader.count("tensors", 8 + 4 + 4 + 8)?;
        let pair_count = reader.count("key-value pairs", 8 + 4 + 1)?;

        let pairs_start = reader.offset();
        let mut pairs = Vec::new();
        for _ in 0..pair_count {
            pairs.push(reader.pair()?);
        }
        let twice = |what, list| move |name| bad(list, format!("two {what} are named \"{name}\""));
        let metadata = ByName::new(pairs).map_err(twice("key-value pairs", pairs_start))?;
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
        let data_start = (reader.position as u64).next_multiple_of(alignment.into());
        let mut tensors = Vec::with_capacity(described.len());
        for tensor in described {
            tensors.push(tensor.placed(data_start, alignment.into(), file.len() as u64)?);
        }
        check_no_overlap(&tensors)?;
        Ok(Self { version, alignment, tensors: ByName::new(tensors).map_err(twice("tensors", tensors_start))?, metadata })
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
        let number = |key| self.value(key)?.as_u64();
        let (index, count) = (number("split.no")?, number("split.count")?);
        (count > 1).then_some(Split { index, count })
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
    /// [`Error::TensorNotFound`]; [`Error::BadFormat`] if `file` is another, shorter one.
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
    /// [`Error::BadFormat`] if `file` is another, shorter one.
    pub fn bytes<'a>(&self, file: &'a [u8]) -> Result<&'a [u8]> {
        bytes_of(FORMAT, file, &self.name, &self.range)
    }

    /// Its elements in `file`, the file its index was made of: row-major, in place.
    ///
    /// `F16` and `BF16` are read as `u16`. Quantised types have no elements that could be pointed at.
    ///
    /// # Errors
    /// [`Error::NotASlice`] if its type is not `T`'s, or its bytes do not begin on a multiple of `T`'s alignment, which takes a
    /// file of a small `general.alignment`; [`Error::BadFormat`] if `file` is another, shorter one.
    pub fn slice<'a, T: Element>(&self, file: &'a [u8]) -> Result<&'a [T]> {
        slice_of(self.bytes(file)?, &self.name, self.ggml_type.name(), self.range.start)
    }
}

impl Named for GgufTensor {
    fn name(&self) -> &str {
        &self.name
    }
}

macro_rules! ggml_types {
    ($($ggml_type:ident $number:literal: $elements:literal in $bytes:literal;)+) => {
        /// A type of ggml: a number by itself, or a block of quantised ones.
        ///
        /// Those of llama.cpp in November 2026 (`ggml.h`, `ggml-common.h`), but for the ones that were removed.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[allow(non_camel_case_types, missing_docs, reason = "the names of ggml")]
        #[non_exhaustive]
        pub enum GgmlType {
            $($ggml_type = $number,)+
        }

        impl GgmlType {
            /// Every type this program knows.
            pub const ALL: &'static [Self] = &[$(Self::$ggml_type),+];

            /// The type of this number in `ggml.h`.
            pub const fn from_number(number: u32) -> Option<Self> {
                match number { $($number => Some(Self::$ggml_type),)+ _ => None }
            }

            /// As it is written: "F32", "Q4_K".
            pub const fn name(self) -> &'static str {
                match self { $(Self::$ggml_type => stringify!($ggml_type),)+ }
            }

            /// Elements of a block; 1 for types that are not quantised.
            pub const fn block_elements(self) -> u64 {
                match self { $(Self::$ggml_type => $elements,)+ }
            }

            /// Bytes of a block.
            pub const fn block_bytes(self) -> u64 {
                match self { $(Self::$ggml_type => $bytes,)+ }
            }
        }
    };
}

ggml_types! {
    F32 0: 1 in 4;
    F16 1: 1 in 2;
    Q4_0 2: 32 in 18;
    Q4_1 3: 32 in 20;
    Q5_0 6: 32 in 22;
    Q5_1 7: 32 in 24;
    Q8_0 8: 32 in 34;
    Q8_1 9: 32 in 36;
    Q2_K 10: 256 in 84;
    Q3_K 11: 256 in 110;
    Q4_K 12: 256 in 144;
    Q5_K 13: 256 in 176;
    Q6_K 14: 256 in 210;
    Q8_K 15: 256 in 292;
    IQ2_XXS 16: 256 in 66;
    IQ2_XS 17: 256 in 74;
    IQ3_XXS 18: 256 in 98;
    IQ1_S 19: 256 in 50;
    IQ4_NL 20: 32 in 18;
    IQ3_S 21: 256 in 110;
    IQ2_S 22: 256 in 82;
    IQ4_XS 23: 256 in 136;
    I8 24: 1 in 1;
    I16 25: 1 in 2;
    I32 26: 1 in 4;
    I64 27: 1 in 8;
    F64 28: 1 in 8;
    IQ1_M 29: 256 in 56;
    BF16 30: 1 in 2;
    TQ1_0 34: 256 in 54;
    TQ2_0 35: 256 in 66;
    MXFP4 39: 32 in 17;
    NVFP4 40: 64 in 36;
    Q1_0 41: 128 in 18;
    Q2_0 42: 64 in 18;
}

impl GgmlType {
    /// Its number in `ggml.h`, which files carry.
    pub const fn number(self) -> u32 {
        self as u32
    }
}

impl fmt::Display for GgmlType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A value of the metadata.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Value {
    /// Unsigned, 8 bits.
    U8(u8),
    /// Signed, 8 bits.
    I8(i8),
    /// Unsigned, 16 bits.
    U16(u16),
    /// Signed, 16 bits.
    I16(i16),
    /// Unsigned, 32 bits.
    U32(u32),
    /// Signed, 32 bits.
    I32(i32),
    /// Unsigned, 64 bits.
    U64(u64),
    /// Signed, 64 bits.
    I64(i64),
    /// Single precision.
    F32(f32),
    /// Double precision.
    F64(f64),
    /// A truth value.
    Bool(bool),
    /// Text.
    String(String),
    /// A string that is not UTF-8, against the format: some files have a text that was cut within a character.
    Bytes(Vec<u8>),
    /// Values of one type, left in the file.
    Array(Array),
}

impl Value {
    /// Its type.
    pub fn kind(&self) -> ValueKind {
        match self {
            Self::U8(_) => ValueKind::U8,
            Self::I8(_) => ValueKind::I8,
            Self::U16(_) => ValueKind::U16,
            Self::I16(_) => ValueKind::I16,
            Self::U32(_) => ValueKind::U32,
            Self::I32(_) => ValueKind::I32,
            Self::U64(_) => ValueKind::U64,
            Self::I64(_) => ValueKind::I64,
            Self::F32(_) => ValueKind::F32,
            Self::F64(_) => ValueKind::F64,
            Self::Bool(_) => ValueKind::Bool,
            Self::String(_) | Self::Bytes(_) => ValueKind::String,
            Self::Array(_) => ValueKind::Array,
        }
    }

    /// The number, if it is an integer that is not negative.
    pub fn as_u64(&self) -> Option<u64> {
        match *self {
            Self::U8(value) => Some(value.into()),
            Self::U16(value) => Some(value.into()),
            Self::U32(value) => Some(value.into()),
            Self::U64(value) => Some(value),
            _ => self.as_i64()?.try_into().ok(),
        }
    }

    /// The number, if it is an integer of at most 63 bits.
    pub fn as_i64(&self) -> Option<i64> {
        match *self {
            Self::U8(value) => Some(value.into()),
            Self::I8(value) => Some(value.into()),
            Self::U16(value) => Some(value.into()),
            Self::I16(value) => Some(value.into()),
            Self::U32(value) => Some(value.into()),
            Self::I32(value) => Some(value.into()),
            Self::U64(value) => value.try_into().ok(),
            Self::I64(value) => Some(value),
            _ => None,
        }
    }

    /// The number, if it is a float.
    pub fn as_f64(&self) -> Option<f64> {
        match *self {
            Self::F32(value) => Some(value.into()),
            Self::F64(value) => Some(value),
            _ => None,
        }
    }

    /// The truth value, if it is one.
    pub fn as_bool(&self) -> Option<bool> {
        if let Self::Bool(value) = self { Some(*value) } else { None }
    }

    /// The text, if it is one.
    pub fn as_str(&self) -> Option<&str> {
        if let Self::String(value) = self { Some(value) } else { None }
    }

    /// The array, if it is one.
    pub fn as_array(&self) -> Option<&Array> {
        if let Self::Array(value) = self { Some(value) } else { None }
    }
}

/// An array of the metadata: where its values lie in the file, which decodes them when asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Array {
    kind: ValueKind,
    len: u64,
    range: Range<u64>,
}

impl Array {
    /// The type of its values.
    pub fn kind(&self) -> ValueKind {
        self.kind
    }

    /// How many values it has.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Its values' place in the file, without the type and the count before them.
    pub fn range(&self) -> Range<u64> {
        self.range.clone()
    }

    /// Its values, decoded one by one from `file`, the file its index was made of. Each is an error if it is a truth value that is
    /// neither 0 nor 1, or `file` is another one.
    ///
    /// # Errors
    /// [`Error::BadFormat`] if `file` is another, shorter one.
    pub fn values<'a>(&self, file: &'a [u8]) -> Result<impl Iterator<Item = Result<Value>> + use<'a>> {
        let (kind, mut reader) = (self.kind, self.reader(file)?);
        Ok((0..self.len).map(move |_| reader.value(kind, 1)))
    }

    /// Its strings, borrowed from `file`, the file its index was made of: the words of a vocabulary, say.
    ///
    /// # Errors
    /// [`Error::BadFormat`] if it is not an array of strings, one of them is not UTF-8 (use [`values`](Self::values)), or `file`
    /// is another one.
    pub fn strings<'a>(&self, file: &'a [u8]) -> Result<Vec<&'a str>> {
        if self.kind != ValueKind::String {
            return Err(bad(self.range.start, format!("an array of {:?}, not of strings", self.kind)));
        }
        let mut reader = self.reader(file)?;
        (0..self.len)
            .map(|index| {
                let at = reader.offset();
                let text = reader.string(HEADER_MAX_BYTES, "string")?;
                std::str::from_utf8(text).map_err(|_| bad(at, format!("string {index} of an array is not UTF-8")))
            })
            .collect()
    }

    /// Reads what lies in `range`, and nothing behind it.
    fn reader<'a>(&self, file: &'a [u8]) -> Result<Reader<'a>> {
        let Some(before) = usize::try_from(self.range.end).ok().and_then(|end| file.get(..end)) else {
            let Range { start, end } = self.range;
            let reason =
                format!("an array lies at {start}..{end} and the file has {} bytes; the index is of another file", file.len());
            return Err(bad(start, reason));
        };
        Ok(Reader { file: before, position: self.range.start as usize })
    }
}

macro_rules! value_kinds {
    ($($(#[$doc:meta])+ $kind:ident $number:literal;)+) => {
        /// The type of a value.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum ValueKind {
            $($(#[$doc])+ $kind = $number,)+
        }

        impl ValueKind {
            const fn from_number(number: u32) -> Option<Self> {
                match number { $($number => Some(Self::$kind),)+ _ => None }
            }
        }
    };
}

value_kinds! {
    /// [`Value::U8`].
    U8 0;
    /// [`Value::I8`].
    I8 1;
    /// [`Value::U16`].
    U16 2;
    /// [`Value::I16`].
    I16 3;
    /// [`Value::U32`].
    U32 4;
    /// [`Value::I32`].
    I32 5;
    /// [`Value::F32`].
    F32 6;
    /// [`Value::Bool`].
    Bool 7;
    /// [`Value::String`], or [`Value::Bytes`].
    String 8;
    /// [`Value::Array`].
    Array 9;
    /// [`Value::U64`].
    U64 10;
    /// [`Value::I64`].
    I64 11;
    /// [`Value::F64`].
    F64 12;
}

impl ValueKind {
    /// What a value takes, if that is the same for all of the kind; else the least that one takes.
    const fn bytes(self) -> Result<u64, u64> {
        match self {
            Self::U8 | Self::I8 | Self::Bool => Ok(1),
            Self::U16 | Self::I16 => Ok(2),
            Self::U32 | Self::I32 | Self::F32 => Ok(4),
            Self::U64 | Self::I64 | Self::F64 => Ok(8),
            Self::String => Err(8),
            Self::Array => Err(4 + 8),
        }
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

fn bad(offset: u64, reason: String) -> Error {
    Error::BadFormat { format: FORMAT, offset, reason }
}

/// Little-endian fields, one after the other. Invariant: `position <= file.len()`.
struct Reader<'a> {
    file: &'a [u8],
    position: usize,
}

impl<'a> Reader<'a> {
    fn offset(&self) -> u64 {
        self.position as u64
    }

    /// Bytes that may still be read.
    fn left(&self) -> u64 {
        (self.file.len() as u64).min(HEADER_MAX_BYTES).saturating_sub(self.offset())
    }

    /// Why `what`, of `bytes` bytes, can't be read here.
    fn too_short(&self, what: &str, bytes: u64) -> Error {
        let file_bytes = self.file.len() as u64;
        bad(
            self.offset(),
            match file_bytes > HEADER_MAX_BYTES {
                true => format!("{what} of {bytes} bytes goes beyond the {} a header may have", iec(HEADER_MAX_BYTES)),
                false => format!("{what} of {bytes} bytes goes beyond the end, at {file_bytes}"),
            },
        )
    }

    fn take(&mut self, what: &str, bytes: u64) -> Result<&'a [u8]> {
        if bytes > self.left() {
            return Err(self.too_short(what, bytes));
        }
        let taken = &self.file[self.position..][..bytes as usize];
        self.position += bytes as usize;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N]> {
        let taken = self.take(what, N as u64)?;
        Ok(*taken.first_chunk().expect("as many as were taken"))
    }

    fn u32(&mut self, what: &str) -> Result<u32> {
        self.array(what).map(u32::from_le_bytes)
    }

    fn u64(&mut self, what: &str) -> Result<u64> {
        self.array(what).map(u64::from_le_bytes)
    }

    /// Magic and version.
    fn version(&mut self) -> Result<u32> {
        let magic: [u8; 4] = self.array("the magic number")?;
        if &magic != b"GGUF" {
            return Err(bad(0, format!("it begins with \"{}\", not with GGUF", magic.escape_ascii())));
        }
        match self.u32("the version")? {
            version @ (2 | 3) => Ok(version),
            1 => Err(bad(4, "it is of version 1, which no current loader reads; convert the model anew".to_owned())),
            // A version of any byte order has few digits: zeros below mean that the order is the other one.
            version if version != 0 && version & 0xffff == 0 => {
                Err(bad(4, format!("it is big-endian (version {}); little-endian files can be read", version.swap_bytes())))
            }
            version => Err(bad(4, format!("it is of version {version}; 2 and 3 can be read"))),
        }
    }

    /// How many `what` follow, each of which takes `least_bytes` or more.
    fn count(&mut self, what: &str, least_bytes: u64) -> Result<u64> {
        let at = self.offset();
        let count = self.u64("a count")?;
        let left = self.left();
        if count > left / least_bytes {
            return Err(bad(
                at,
                format!("{count} {what} of {least_bytes} bytes or more, in a header of {left} more bytes at most"),
            ));
        }
        Ok(count)
    }

    fn string(&mut self, max_bytes: u64, what: &str) -> Result<&'a [u8]> {
        let at = self.offset();
        let bytes = self.u64(what)?;
        if bytes > max_bytes {
            return Err(bad(at, format!("{what} of {bytes} bytes; {max_bytes} are allowed")));
        }
        self.take(what, bytes)
    }

    fn name(&mut self, what: &str) -> Result<String> {
        let at = self.offset();
        let name = self.string(NAME_MAX_BYTES, what)?;
        match std::str::from_utf8(name) {
            Ok(name) => Ok(name.to_owned()),
            Err(_) => Err(bad(at, format!("{what} is not UTF-8: \"{}\"", printable(&String::from_utf8_lossy(name))))),
        }
    }

    fn kind(&mut self, what: &str) -> Result<ValueKind> {
        let at = self.offset();
        let number = self.u32(what)?;
        ValueKind::from_number(number).ok_or_else(|| bad(at, format!("{what} is {number}, which is none (0 to 12)")))
    }

    fn pair(&mut self) -> Result<Pair> {
        let key = self.name("a key")?;
        let value = self.kind("a value's type").and_then(|kind| self.value(kind, 0));
        match value {
            Ok(value) => Ok(Pair { key, value }),
            Err(Error::BadFormat { format, offset, reason }) => {
                Err(Error::BadFormat { format, offset, reason: format!("key \"{}\": {reason}", printable(&key)) })
            }
            Err(other) => Err(other),
        }
    }

    /// A value within `depth` arrays.
    fn value(&mut self, kind: ValueKind, depth: u32) -> Result<Value> {
        const WHAT: &str = "a value";
        Ok(match kind {
            ValueKind::U8 => Value::U8(u8::from_le_bytes(self.array(WHAT)?)),
            ValueKind::I8 => Value::I8(i8::from_le_bytes(self.array(WHAT)?)),
            ValueKind::U16 => Value::U16(u16::from_le_bytes(self.array(WHAT)?)),
            ValueKind::I16 => Value::I16(i16::from_le_bytes(self.array(WHAT)?)),
            ValueKind::U32 => Value::U32(u32::from_le_bytes(self.array(WHAT)?)),
            ValueKind::I32 => Value::I32(i32::from_le_bytes(self.array(WHAT)?)),
            ValueKind::U64 => Value::U64(u64::from_le_bytes(self.array(WHAT)?)),
            ValueKind::I64 => Value::I64(i64::from_le_bytes(self.array(WHAT)?)),
            ValueKind::F32 => Value::F32(f32::from_le_bytes(self.array(WHAT)?)),
            ValueKind::F64 => Value::F64(f64::from_le_bytes(self.array(WHAT)?)),
            ValueKind::Bool => match self.array(WHAT)? {
                [0] => Value::Bool(false),
                [1] => Value::Bool(true),
                [other] => return Err(bad(self.offset() - 1, format!("a truth value of {other}, neither 0 nor 1"))),
            },
            ValueKind::String => {
                let bytes = self.string(HEADER_MAX_BYTES, "a string")?.to_vec();
                String::from_utf8(bytes).map_or_else(|error| Value::Bytes(error.into_bytes()), Value::String)
            }
            ValueKind::Array => Value::Array(self.skip_array(depth + 1)?),
        })
    }

    /// Passes over an array, the `depth`th of those around it. One step for numbers; one for each string or array within.
    fn skip_array(&mut self, depth: u32) -> Result<Array> {
        if depth > NESTING_MAX {
            return Err(bad(self.offset(), format!("arrays nested more than {NESTING_MAX} deep")));
        }
        let kind = self.kind("the type of an array's values")?;
        let least_bytes = kind.bytes().unwrap_or_else(|least| least);
        let len = self.count("values of an array", least_bytes)?;
        let start = self.offset();
        match kind {
            ValueKind::String => {
                for _ in 0..len {
                    self.string(HEADER_MAX_BYTES, "a string")?;
                }
            }
            ValueKind::Array => {
                for _ in 0..len {
                    self.skip_array(depth + 1)?;
                }
            }
            // `count` has made sure of the product.
            _ => drop(self.take("an array", len * least_bytes)?),
        }
        Ok(Array { kind, len, range: start..self.offset() })
    }

    fn tensor(&mut self) -> Result<Described> {
        let at = self.offset();
        let name = self.name("a tensor's name")?;
        let bad = |reason: String| bad(at, format!("tensor \"{}\" {reason}", printable(&name)));
        let dimensions = self.u32("a tensor's number of dimensions")?;
        if dimensions > DIMENSIONS_MAX {
            return Err(bad(format!("has {dimensions} dimensions; {DIMENSIONS_MAX} are allowed")));
        }
        let mut shape = (0..dimensions).map(|_| self.u64("a tensor's dimension")).collect::<Result<Vec<_>>>()?;
        shape.reverse();
        let number = self.u32("a tensor's type")?;
        let Some(ggml_type) = GgmlType::from_number(number) else {
            return Err(bad(format!("is of ggml type {number}, which is unknown here or was removed from ggml")));
        };
        let offset = self.u64("a tensor's offset")?;

        let row = shape.last().copied().unwrap_or(1);
        let block = ggml_type.block_elements();
        if !row.is_multiple_of(block) {
            return Err(bad(format!("has rows of {row} elements, not a multiple of {ggml_type}'s blocks of {block}")));
        }
        let elements = shape.iter().try_fold(1_u64, |product, &side| product.checked_mul(side));
        let size_bytes = elements.and_then(|elements| (elements / block).checked_mul(ggml_type.block_bytes()));
        let Some(size_bytes) = size_bytes else {
            return Err(bad(format!("is of a size beyond 64 bits: {ggml_type} {}", shown(&shape))));
        };
        Ok(Described { name, ggml_type, shape, size_bytes, offset, at })
    }
}
