//! Reads a header field by field: every length is checked against what is left of the file before anything is done with it.

use super::{
    Described, GgmlType, Pair, bad,
    value::{Array, Value, ValueKind},
};
use crate::{
    error::{Error, Result},
    format::{mistaken_for, shown},
    name::printable,
    units::iec,
};

/// Far above the headers there are (a vocabulary of 256 Ki words is about 10 MiB); it bounds what a lying file makes us keep.
pub(super) const HEADER_MAX_BYTES: u64 = 256 << 20;
/// The format's own limit for keys, taken for the names of tensors too: 64 by the format, but longer ones are out there.
const NAME_MAX_BYTES: u64 = 65_535;
/// GGML_MAX_DIMS.
const DIMENSIONS_MAX: u32 = 4;
/// The format sets none; no file has even two.
const NESTING_MAX: u32 = 8;

/// Little-endian fields, one after the other. Invariant: `position <= file.len()`.
pub(super) struct Reader<'a> {
    file: &'a [u8],
    position: usize,
}

impl<'a> Reader<'a> {
    /// Reads `file` from `position`, which lies in it.
    pub(super) fn at(file: &'a [u8], position: usize) -> Self {
        Self { file, position }
    }

    pub(super) fn offset(&self) -> u64 {
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
    pub(super) fn version(&mut self) -> Result<u32> {
        let magic: [u8; 4] = self.array("the magic number")?;
        if &magic != b"GGUF" {
            let what = mistaken_for(self.file).map_or_else(String::new, |what| format!("it is {what}: "));
            return Err(bad(0, format!("{what}it begins with \"{}\", not with GGUF", magic.escape_ascii())));
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
    pub(super) fn count(&mut self, what: &str, least_bytes: u64) -> Result<u64> {
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

    pub(super) fn string(&mut self, max_bytes: u64, what: &str) -> Result<&'a [u8]> {
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

    pub(super) fn pair(&mut self) -> Result<Pair> {
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
    pub(super) fn value(&mut self, kind: ValueKind, depth: u32) -> Result<Value> {
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

    pub(super) fn tensor(&mut self) -> Result<Described> {
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
