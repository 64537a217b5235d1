//! Tensors in place: indexes of the files loaders read, made from the header alone, so that a tensor is a range of the bytes
//! the store hands over.
//!
//! [`safetensors`] and [`gguf`]. Both are functions of `&[u8]`, which a [`ModelFile`](crate::ModelFile) derefs to; both keep
//! names, types, shapes and ranges, never the file. A header is believed nothing: an index that was made has every tensor within
//! the file it was made of, none over another, and none under a name that two have.
//!
//! [`onnx`] is for a loader that maps tensors by itself: a graph, and the same with its tensors' data told to be elsewhere.
//!
//! ```no_run
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use tabagent_model_cache::{ModelCache, format::safetensors::SafetensorsIndex};
//!
//! let cache = ModelCache::open("./models")?;
//! let file = cache.get_file("org/name", "model.safetensors")?.ok_or("not in the store")?;
//! let index = SafetensorsIndex::parse(&file)?;
//! for tensor in index.tensors() {
//!     println!("{} {} {:?} at {:?}", tensor.name(), tensor.dtype(), tensor.shape(), tensor.range());
//! }
//! let bias: &[f32] = index.slice(&file, "encoder.layer.0.output.dense.bias")?; // no copy
//! # let _ = bias;
//! # Ok(())
//! # }
//! ```

pub mod gguf;
pub mod onnx;
pub mod safetensors;

use crate::{
    error::{Error, Result},
    name::printable,
};
use std::ops::Range;

/// A number a tensor's bytes can be read as in place. Implemented for the integers of 8 to 64 bits, `f32` and `f64`.
///
/// Half precision has no type in the language: its bits are read as `u16`, which the crate `half` turns into `&[f16]` or
/// `&[bf16]` without a copy (`HalfBitsSliceExt::reinterpret_cast`).
pub trait Element: sealed::Element {}

mod sealed {
    /// What keeps [`Element`](super::Element) to numbers whose every bit pattern is a value.
    pub trait Element: bytemuck::AnyBitPattern {
        /// As Rust calls it.
        const NAME: &'static str;
        /// The types of both formats it reads; their names agree where their meanings do.
        const READS: &'static [&'static str];
    }
}

macro_rules! elements {
    ($($element:ident reads $($dtype:literal)+;)+) => {$(
        impl Element for $element {}
        impl sealed::Element for $element {
            const NAME: &'static str = stringify!($element);
            const READS: &'static [&'static str] = &[$($dtype),+];
        }
    )+};
}

elements! {
    u8 reads "U8" "BOOL" "F8_E5M2" "F8_E4M3" "F8_E8M0" "F8_E4M3FNUZ" "F8_E5M2FNUZ";
    i8 reads "I8";
    u16 reads "U16" "F16" "BF16";
    i16 reads "I16";
    u32 reads "U32";
    i32 reads "I32";
    u64 reads "U64";
    i64 reads "I64";
    f32 reads "F32";
    f64 reads "F64";
}

/// What two kinds of tensor, and metadata, have in common.
trait Named {
    fn name(&self) -> &str;
}

/// Things in the order of the file, found by name too. No two have one name.
#[derive(Clone, Debug)]
struct ByName<T> {
    items: Vec<T>,
    /// Positions in `items`, in the order of the names: a lookup table that keeps no name twice.
    order: Vec<usize>,
}

impl<T: Named> ByName<T> {
    /// # Errors
    /// A name that two have, ready to be shown.
    fn new(items: Vec<T>) -> Result<Self, String> {
        let mut order: Vec<usize> = (0..items.len()).collect();
        order.sort_by_key(|&at| (items[at].name(), at));
        match order.windows(2).find(|pair| items[pair[0]].name() == items[pair[1]].name()) {
            Some(pair) => Err(printable(items[pair[0]].name())),
            None => Ok(Self { items, order }),
        }
    }

    fn get(&self, name: &str) -> Option<&T> {
        let found = self.order.binary_search_by_key(&name, |&at| self.items[at].name());
        found.ok().map(|place| &self.items[self.order[place]])
    }

    /// For a lookup of a tensor that has to be there.
    fn require(&self, name: &str) -> Result<&T> {
        self.get(name).ok_or_else(|| Error::TensorNotFound {
            name: name.to_owned(),
            count: self.items.len(),
            nearest: self.nearest(name),
        })
    }

    /// The name that shares most of its beginning and end with `name`: a prefix too many or too few is what differs in practice.
    fn nearest(&self, name: &str) -> Option<String> {
        let alike = |other: &str| {
            let shorter = name.len().min(other.len());
            let start = name.bytes().zip(other.bytes()).take_while(|(a, b)| a == b).count();
            let end = name.bytes().rev().zip(other.bytes().rev()).take_while(|(a, b)| a == b).count();
            (start + end).min(shorter)
        };
        let best = self.items.iter().map(Named::name).max_by_key(|other| alike(other))?;
        (alike(best) * 2 > name.len()).then(|| best.to_owned())
    }
}

/// The bytes of a tensor in `file`, which should be the file its index was made of.
fn bytes_of<'a>(file: &'a [u8], name: &str, range: &Range<u64>) -> Result<&'a [u8]> {
    within(file, range).ok_or_else(|| outside(file, format!("the file given for tensor \"{}\"", printable(name)), range))
}

fn within<'a>(file: &'a [u8], range: &Range<u64>) -> Option<&'a [u8]> {
    file.get(usize::try_from(range.start).ok()?..usize::try_from(range.end).ok()?)
}

/// For a range of an index that the file given with it does not have: it is not the one the index was made of.
fn outside(file: &[u8], what: String, range: &Range<u64>) -> Error {
    Error::InvalidRange { path: what, start: range.start, end: range.end, size_bytes: file.len() as u64 }
}

/// What people take for a model, by its first bytes.
fn mistaken_for(file: &[u8]) -> Option<&'static str> {
    const BEGINNINGS: [(&[u8], &str); 3] = [
        (b"version https://git-lfs.github.com/spec/", "a Git LFS pointer, not the file it stands for"),
        (b"PK\x03\x04", "a zip archive, as PyTorch writes them"),
        (b"GGUF", "a GGUF file"),
    ];
    BEGINNINGS.into_iter().find(|(beginning, _)| file.starts_with(beginning)).map(|(_, what)| what)
}

/// `bytes`, which are those of a tensor of type `dtype` at `offset` in its file, as numbers of type `T`.
fn slice_of<'a, T: Element>(bytes: &'a [u8], name: &str, dtype: &str, offset: u64) -> Result<&'a [T]> {
    let refused = |reason| Error::NotASlice { tensor: printable(name), element: T::NAME, reason };
    if !T::READS.contains(&dtype) {
        return Err(refused(format!("it is {dtype}, and {} reads {}", T::NAME, T::READS.join(", "))));
    }
    if cfg!(target_endian = "big") && size_of::<T>() > 1 {
        return Err(refused(format!("the file's {dtype} is little-endian and this machine is not")));
    }
    if bytes.is_empty() {
        return Ok(&[]);
    }
    let align = align_of::<T>();
    bytemuck::try_cast_slice(bytes).map_err(|_| {
        refused(match offset % align as u64 {
            0 => format!("the memory the file lies in does not begin at a multiple of {align}"),
            _ => format!("its bytes begin at {offset} of the file, which is not a multiple of {align}"),
        })
    })
}

/// A shape for a message: a hostile one may have millions of dimensions.
fn shown(shape: &[u64]) -> String {
    const DIMENSIONS: usize = 8;
    match shape.get(..DIMENSIONS) {
        Some(first) if shape.len() > DIMENSIONS => format!("{first:?} and {} dimensions more", shape.len() - DIMENSIONS),
        _ => format!("{shape:?}"),
    }
}
