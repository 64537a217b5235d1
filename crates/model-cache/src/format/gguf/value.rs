//! The values of the metadata. Arrays stay in the file: a vocabulary is long, and few callers ask for it.

use super::{
    bad,
    reader::{HEADER_MAX_BYTES, Reader},
};
use crate::{error::Result, format::outside};
use std::ops::Range;

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
    pub(super) kind: ValueKind,
    pub(super) len: u64,
    pub(super) range: Range<u64>,
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
    /// [`Error::InvalidRange`](crate::Error::InvalidRange) if `file` is another, shorter one.
    pub fn values<'a>(&self, file: &'a [u8]) -> Result<impl Iterator<Item = Result<Value>> + use<'a>> {
        let (kind, mut reader) = (self.kind, self.reader(file)?);
        Ok((0..self.len).map(move |_| reader.value(kind, 1)))
    }

    /// Its strings, borrowed from `file`, the file its index was made of: the words of a vocabulary, say.
    ///
    /// # Errors
    /// [`Error::BadFormat`](crate::Error::BadFormat) if it is not an array of strings, or one of them is not UTF-8 (use
    /// [`values`](Self::values));
    /// [`Error::InvalidRange`](crate::Error::InvalidRange) if `file` is another, shorter one.
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
            return Err(outside(file, "the file given for an array".to_owned(), &self.range));
        };
        Ok(Reader::at(before, self.range.start as usize))
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
            pub(super) const fn from_number(number: u32) -> Option<Self> {
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
    pub(super) const fn bytes(self) -> Result<u64, u64> {
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
