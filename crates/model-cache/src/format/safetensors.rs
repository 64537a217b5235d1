//! The index of a safetensors file.
//!
//! The file is a u64 `n`, a JSON object of `n` bytes, and the tensors' data, back to back
//! (<https://github.com/huggingface/safetensors#format>). The JSON is read here and not by the crate `safetensors`, whose errors
//! don't say which tensor or which numbers are wrong, and which takes the last of two tensors with one name; the tests hold this
//! index against that crate.

#[cfg(test)]
mod tests;

use super::{ByName, Element, Named, bytes_of, mistaken_for, shown, slice_of};
use crate::{
    error::{Error, Result},
    name::printable,
};
use serde::{
    Deserialize, Deserializer,
    de::{Error as _, MapAccess, Visitor},
};
use std::{borrow::Cow, fmt, ops::Range};

const FORMAT: &str = "safetensors";
/// The u64 before the header.
const LENGTH_BYTES: u64 = 8;
/// What the reference implementation reads at most.
const HEADER_MAX_BYTES: u64 = 100_000_000;

/// The tensors of a safetensors file, and its `__metadata__`.
#[derive(Clone, Debug)]
pub struct SafetensorsIndex {
    tensors: ByName<SafetensorsTensor>,
    metadata: ByName<Entry>,
}

impl SafetensorsIndex {
    /// Reads the header of a file; `file` is all of it, a [`ModelFile`](crate::ModelFile) for one.
    ///
    /// Touches the header only: 104 tensors take 0.1 ms or so, whatever their size.
    ///
    /// # Errors
    /// [`Error::BadFormat`] if it is none, was cut short, or its header lies: lengths, types, shapes, ranges with holes or
    /// overlaps, a name twice. It says which tensor, and with which numbers.
    pub fn parse(file: &[u8]) -> Result<Self> {
        let file_bytes = file.len() as u64;
        let Some((length, rest)) = file.split_first_chunk() else {
            return Err(bad(0, format!("it has {file_bytes} bytes, fewer than the 8 of the header's length")));
        };
        let header_bytes = u64::from_le_bytes(*length);
        if header_bytes > HEADER_MAX_BYTES {
            let what = mistaken_for(file).map_or_else(|| "it".to_owned(), |what| format!("it is {what}: as safetensors, it"));
            return Err(bad(0, format!("{what} has a header of {header_bytes} bytes; {HEADER_MAX_BYTES} are allowed")));
        }
        let Some(header) = rest.get(..header_bytes as usize) else {
            return Err(bad(0, format!("it has a header of {header_bytes} bytes in a file of {file_bytes}")));
        };
        if header.first() != Some(&b'{') {
            return Err(bad(LENGTH_BYTES, "the header is not a JSON object: it does not begin with {".to_owned()));
        }
        let header = std::str::from_utf8(header)
            .map_err(|error| bad(LENGTH_BYTES + error.valid_up_to() as u64, "the header is not UTF-8".to_owned()))?;
        let header: Header<'_> = serde_json::from_str(header).map_err(|error| {
            // Columns count bytes, and a header is one line unless somebody wrote it by hand.
            let column = if error.line() == 1 { error.column() as u64 } else { 0 };
            bad(LENGTH_BYTES + column, format!("the header can't be read: {}", printable(&error.to_string())))
        })?;

        let data = LENGTH_BYTES + header_bytes..file_bytes;
        let mut tensors = Vec::with_capacity(header.tensors.len());
        for (name, described) in header.tensors {
            tensors.push(tensor(name.into_owned(), described, &data)?);
        }
        // A file may list its tensors in any order. Those without elements share their place with the one after them.
        tensors.sort_by_key(|tensor| (tensor.range.start, tensor.range.end));
        check_no_gaps(&tensors, &data)?;
        let twice = |what| move |name| bad(LENGTH_BYTES, format!("two {what} are named \"{name}\""));
        Ok(Self {
            tensors: ByName::new(tensors).map_err(twice("tensors"))?,
            metadata: ByName::new(header.metadata).map_err(twice("entries of __metadata__"))?,
        })
    }

    /// The tensors in the order of their bytes.
    pub fn tensors(&self) -> &[SafetensorsTensor] {
        &self.tensors.items
    }

    /// The tensor of this name.
    pub fn tensor(&self, name: &str) -> Option<&SafetensorsTensor> {
        self.tensors.get(name)
    }

    /// The entries of `__metadata__`, key and value, in the order of the header; none where it has none.
    pub fn metadata(&self) -> impl ExactSizeIterator<Item = (&str, &str)> {
        self.metadata.items.iter().map(|entry| (entry.key.as_str(), entry.value.as_str()))
    }

    /// The value of `__metadata__` under `key`.
    pub fn value(&self, key: &str) -> Option<&str> {
        self.metadata.get(key).map(|entry| entry.value.as_str())
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
    /// As [`bytes`](Self::bytes), and [`Error::NotASlice`] as [`SafetensorsTensor::slice`].
    pub fn slice<'a, T: Element>(&self, file: &'a [u8], name: &str) -> Result<&'a [T]> {
        self.tensors.require(name)?.slice(file)
    }
}

/// A tensor of a safetensors file: its name, type, shape and place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SafetensorsTensor {
    name: String,
    dtype: Dtype,
    shape: Vec<u64>,
    range: Range<u64>,
}

impl SafetensorsTensor {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The type of its elements.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// Elements per dimension, the outermost first (row-major); empty for a single number.
    pub fn shape(&self) -> &[u64] {
        &self.shape
    }

    /// Its bytes' place in the file, counted from the file's start.
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
    /// `BOOL` and the 8-bit floats are read as `u8`, `F16` and `BF16` as `u16`.
    ///
    /// # Errors
    /// [`Error::NotASlice`] if its type is not `T`'s, or its bytes do not begin on a multiple of `T`'s alignment, as in files that
    /// older writers made; [`Error::InvalidRange`] if `file` is another, shorter one.
    pub fn slice<'a, T: Element>(&self, file: &'a [u8]) -> Result<&'a [T]> {
        slice_of(self.bytes(file)?, &self.name, self.dtype.name(), self.range.start)
    }
}

impl Named for SafetensorsTensor {
    fn name(&self) -> &str {
        &self.name
    }
}

macro_rules! dtypes {
    ($($(#[$doc:meta])+ $dtype:ident $name:literal $bits:literal;)+) => {
        /// The type of a tensor's elements.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum Dtype {
            $($(#[$doc])+ $dtype,)+
        }

        impl Dtype {
            /// Every type this program knows.
            pub const ALL: &'static [Self] = &[$(Self::$dtype),+];

            /// As the format writes it: "F32", "BF16".
            pub const fn name(self) -> &'static str {
                match self { $(Self::$dtype => $name,)+ }
            }

            /// Bits of an element: 4 and 6 are packed without padding.
            pub const fn bits(self) -> u64 {
                match self { $(Self::$dtype => $bits,)+ }
            }
        }
    };
}

dtypes! {
    /// A truth value, 0 or 1.
    Bool "BOOL" 8;
    /// 4-bit float, two to a byte.
    F4 "F4" 4;
    /// 6-bit float: 2 bits of exponent, 3 of mantissa.
    F6E2M3 "F6_E2M3" 6;
    /// 6-bit float: 3 bits of exponent, 2 of mantissa.
    F6E3M2 "F6_E3M2" 6;
    /// Unsigned, 8 bits.
    U8 "U8" 8;
    /// Signed, 8 bits.
    I8 "I8" 8;
    /// 8-bit float: 5 bits of exponent, 2 of mantissa.
    F8E5M2 "F8_E5M2" 8;
    /// 8-bit float: 4 bits of exponent, 3 of mantissa.
    F8E4M3 "F8_E4M3" 8;
    /// A power of two: 8 bits of exponent.
    F8E8M0 "F8_E8M0" 8;
    /// As `F8_E4M3`, finite, without a negative zero.
    F8E4M3Fnuz "F8_E4M3FNUZ" 8;
    /// As `F8_E5M2`, finite, without a negative zero.
    F8E5M2Fnuz "F8_E5M2FNUZ" 8;
    /// Signed, 16 bits.
    I16 "I16" 16;
    /// Unsigned, 16 bits.
    U16 "U16" 16;
    /// IEEE half precision.
    F16 "F16" 16;
    /// The upper half of an `F32`.
    Bf16 "BF16" 16;
    /// Signed, 32 bits.
    I32 "I32" 32;
    /// Unsigned, 32 bits.
    U32 "U32" 32;
    /// IEEE single precision.
    F32 "F32" 32;
    /// A complex number: two `F32`.
    C64 "C64" 64;
    /// IEEE double precision.
    F64 "F64" 64;
    /// Signed, 64 bits.
    I64 "I64" 64;
    /// Unsigned, 64 bits.
    U64 "U64" 64;
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

fn bad(offset: u64, reason: String) -> Error {
    Error::BadFormat { format: FORMAT, offset, reason }
}

/// A tensor of the header, if what is said of it agrees with itself and with the file; `data` is where the file's data lies.
fn tensor(name: String, described: Described<'_>, data: &Range<u64>) -> Result<SafetensorsTensor> {
    let Described { dtype, shape, data_offsets: (start, end) } = described;
    let bad = |reason: String| bad(LENGTH_BYTES, format!("tensor \"{}\" {reason}", printable(&name)));
    let dtype = *Dtype::ALL
        .iter()
        .find(|known| known.name() == dtype)
        .ok_or_else(|| bad(format!("is of an unknown type, \"{}\"", printable(&dtype))))?;
    let data_bytes = data.end - data.start;
    if start > end || end > data_bytes {
        return Err(bad(format!("lies at {start}..{end} of {data_bytes} bytes of data")));
    }
    let elements = shape.iter().try_fold(1_u64, |product, &side| product.checked_mul(side));
    let Some(bits) = elements.and_then(|elements| elements.checked_mul(dtype.bits())) else {
        return Err(bad(format!("is of a size beyond 64 bits: {dtype} {}", shown(&shape))));
    };
    if bits % 8 != 0 {
        return Err(bad(format!("ends within a byte: {dtype} {} is {bits} bits", shown(&shape))));
    }
    if end - start != bits / 8 {
        return Err(bad(format!(
            "lies at {start}..{end}, which is {} bytes; {dtype} {} is {}",
            end - start,
            shown(&shape),
            bits / 8
        )));
    }
    // Both are at most the file's size.
    Ok(SafetensorsTensor { name, dtype, shape, range: data.start + start..data.start + end })
}

/// That every byte of the data belongs to one tensor. `tensors` are in the order of their ranges.
fn check_no_gaps(tensors: &[SafetensorsTensor], data: &Range<u64>) -> Result<()> {
    let mut position = data.start;
    for SafetensorsTensor { name, range, .. } in tensors {
        if range.start != position {
            let what = if range.start < position { "overlaps the one before it" } else { "leaves a gap before it" };
            let reason = format!(
                "tensor \"{}\" {what}: it begins at byte {} of the file, not at {position}",
                printable(name),
                range.start
            );
            return Err(bad(range.start, reason));
        }
        position = range.end;
    }
    if position != data.end {
        return Err(bad(position, format!("the tensors end at byte {position}, and the file has {}", data.end)));
    }
    Ok(())
}

/// An entry of `__metadata__`.
#[derive(Clone, Debug)]
struct Entry {
    key: String,
    value: String,
}

impl Named for Entry {
    fn name(&self) -> &str {
        &self.key
    }
}

/// The header as it is written, nothing checked.
struct Header<'a> {
    tensors: Vec<(Cow<'a, str>, Described<'a>)>,
    metadata: Vec<Entry>,
}

/// What the header says of a tensor. Fields of later versions are passed over.
#[derive(Deserialize)]
struct Described<'a> {
    #[serde(borrow)]
    dtype: Cow<'a, str>,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

/// A key, which borrows from the header unless it holds escapes.
#[derive(Deserialize)]
struct Key<'a>(#[serde(borrow)] Cow<'a, str>);

impl<'de> Deserialize<'de> for Header<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields;
        impl<'de> Visitor<'de> for Fields {
            type Value = Header<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header<'de>, A::Error> {
                let mut header = Header { tensors: Vec::new(), metadata: Vec::new() };
                let mut metadata_seen = false;
                while let Some(Key(name)) = map.next_key()? {
                    let within = |error| A::Error::custom(format!("\"{}\": {error}", printable(&name)));
                    if name != "__metadata__" {
                        let described = map.next_value().map_err(within)?;
                        header.tensors.push((name, described));
                    } else if std::mem::replace(&mut metadata_seen, true) {
                        return Err(A::Error::custom("__metadata__ twice"));
                    } else {
                        header.metadata = map.next_value::<Entries>().map_err(within)?.0;
                    }
                }
                Ok(header)
            }
        }
        deserializer.deserialize_map(Fields)
    }
}

/// `__metadata__`: strings under strings.
struct Entries(Vec<Entry>);

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields;
        impl<'de> Visitor<'de> for Fields {
            type Value = Entries;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of strings")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entries, A::Error> {
                let mut entries = Vec::new();
                while let Some((key, value)) = map.next_entry()? {
                    entries.push(Entry { key, value });
                }
                Ok(Entries(entries))
            }
        }
        deserializer.deserialize_map(Fields)
    }
}
