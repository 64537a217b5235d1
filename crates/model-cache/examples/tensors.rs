//! Reads tensors out of a cached safetensors or GGUF file, straight from the slice the store hands over: nothing is copied but
//! the few numbers shown.
//!
//! ```text
//! cargo run --release --example tensors -- STORE REPO PATH [TENSOR]...
//! ```
//! A line for each tensor: name, type, shape, first values, SHA-256 of its bytes.

#![forbid(unsafe_code)]

use sha2::{Digest, Sha256};
use std::{error::Error, fmt::Write};
use tabagent_model_cache::ModelCache;

/// Tensors shown where none is named.
const SHOWN: usize = 4;

struct Tensor<'a> {
    name: String,
    dtype: String,
    /// Outermost dimension first.
    shape: Vec<u64>,
    bytes: &'a [u8],
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [store, repo, path, names @ ..] = arguments.as_slice() else {
        return Err("usage: tensors STORE REPO PATH [TENSOR]...".into());
    };
    let cache = ModelCache::open(store)?;
    let file = cache.get_file(repo, path)?.ok_or_else(|| format!("{repo} {path} is not in the store"))?;
    let tensors = if file.starts_with(b"GGUF") { gguf(&file) } else { safetensors(&file) };
    let tensors = tensors.ok_or_else(|| format!("{path} is neither safetensors nor GGUF, or damaged"))?;
    println!("{path}: one slice of {} bytes, {} tensors", file.len(), tensors.len());

    let shown = if names.is_empty() { SHOWN } else { names.len() };
    let wanted = |tensor: &&Tensor<'_>| names.is_empty() || names.contains(&tensor.name);
    let width = tensors.iter().filter(wanted).take(shown).map(|tensor| tensor.name.len()).max();
    let width = width.ok_or_else(|| format!("no tensor {}", names.join(", ")))?;
    for tensor in tensors.iter().filter(wanted).take(shown) {
        let mut values = String::new();
        for value in first_values(tensor) {
            write!(values, "{value:9.5} ")?;
        }
        let mut digest = String::new();
        for byte in Sha256::digest(tensor.bytes) {
            write!(digest, "{byte:02x}")?;
        }
        println!("{:width$}  {:4} {:14} {values} sha256:{digest}", tensor.name, tensor.dtype, format!("{:?}", tensor.shape));
    }
    Ok(())
}

/// The tensors of a safetensors file: header length (u64), header (JSON), data.
fn safetensors(file: &[u8]) -> Option<Vec<Tensor<'_>>> {
    let mut fields = Fields { file, position: 0 };
    let header_bytes = fields.u64()?;
    let header: serde_json::Map<_, _> = serde_json::from_slice(fields.take(header_bytes)?).ok()?;
    let data = &file[fields.position..];
    let tensors = header.into_iter().filter(|(name, _)| name != "__metadata__").map(|(name, tensor)| {
        let offset = |index: usize| usize::try_from(tensor["data_offsets"][index].as_u64()?).ok();
        Some(Tensor {
            name,
            dtype: tensor["dtype"].as_str()?.to_owned(),
            shape: tensor["shape"].as_array()?.iter().map(serde_json::Value::as_u64).collect::<Option<_>>()?,
            bytes: data.get(offset(0)?..offset(1)?)?,
        })
    });
    tensors.collect()
}

/// The tensors of a GGUF file: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>.
fn gguf(file: &[u8]) -> Option<Vec<Tensor<'_>>> {
    let mut fields = Fields { file, position: 4 };
    let _version = fields.u32()?;
    let (tensors, pairs) = (fields.u64()?, fields.u64()?);
    let mut alignment = 32;
    for _ in 0..pairs {
        let key = fields.string()?;
        let kind = fields.u32()?;
        let at = fields.position;
        fields.skip_value(kind)?;
        if key == "general.alignment" {
            alignment = u32::from_le_bytes(file.get(at..at + 4)?.try_into().ok()?) as usize;
        }
    }
    let mut found = Vec::new();
    for _ in 0..tensors {
        let name = fields.string()?;
        let dimensions = fields.u32()?;
        let mut shape = (0..dimensions).map(|_| fields.u64()).collect::<Option<Vec<_>>>()?;
        shape.reverse();
        // Bytes for how many values, by type.
        let (dtype, block_bytes, block_values) = match fields.u32()? {
            0 => ("F32", 4, 1),
            1 => ("F16", 2, 1),
            2 => ("Q4_0", 18, 32),
            8 => ("Q8_0", 34, 32),
            _ => return None,
        };
        let bytes = shape.iter().try_fold(1_u64, |product, side| product.checked_mul(*side))? / block_values * block_bytes;
        found.push((name, dtype, shape, usize::try_from(fields.u64()?).ok()?, usize::try_from(bytes).ok()?));
    }
    let data = file.get(fields.position.checked_next_multiple_of(alignment)?..)?;
    let tensors = found.into_iter().map(|(name, dtype, shape, offset, bytes)| {
        Some(Tensor { name, dtype: dtype.to_owned(), shape, bytes: data.get(offset..offset.checked_add(bytes)?)? })
    });
    tensors.collect()
}

/// Little-endian fields, one after the other; `None` past the end.
struct Fields<'a> {
    file: &'a [u8],
    position: usize,
}

impl<'a> Fields<'a> {
    fn take(&mut self, bytes: u64) -> Option<&'a [u8]> {
        let end = self.position.checked_add(usize::try_from(bytes).ok()?)?;
        let taken = self.file.get(self.position..end)?;
        self.position = end;
        Some(taken)
    }

    fn u32(&mut self) -> Option<u32> {
        Some(u32::from_le_bytes(self.take(4)?.try_into().ok()?))
    }

    fn u64(&mut self) -> Option<u64> {
        Some(u64::from_le_bytes(self.take(8)?.try_into().ok()?))
    }

    fn string(&mut self) -> Option<String> {
        let bytes = self.u64()?;
        String::from_utf8(self.take(bytes)?.to_vec()).ok()
    }

    /// Passes over a value of a metadata pair.
    fn skip_value(&mut self, kind: u32) -> Option<()> {
        const STRING: u32 = 8;
        const ARRAY: u32 = 9;
        let bytes = match kind {
            0 | 1 | 7 => 1,
            2 | 3 => 2,
            4..=6 => 4,
            10..=12 => 8,
            STRING => self.u64()?,
            ARRAY => {
                let (of, len) = (self.u32()?, self.u64()?);
                // The format allows arrays of arrays, to any depth; no file has them.
                return (of != ARRAY).then(|| (0..len).try_for_each(|_| self.skip_value(of)))?;
            }
            _ => return None,
        };
        self.take(bytes).map(drop)
    }
}

/// The first three values, or as many as there are, of the types known here.
fn first_values(tensor: &Tensor<'_>) -> Vec<f32> {
    let bytes = tensor.bytes;
    let half = |at: usize| bytes.get(at..at + 2).map(|two| f16(u16::from_le_bytes([two[0], two[1]])));
    let value = |index: usize| match tensor.dtype.as_str() {
        "F32" => bytes.chunks_exact(4).nth(index).map(|four| f32::from_le_bytes([four[0], four[1], four[2], four[3]])),
        "F16" => half(index * 2),
        // A block: a scale, then 32 values; in Q4_0 the low half bytes are the first 16.
        "Q8_0" => Some(half(0)? * f32::from(i8::from_le_bytes([*bytes.get(2 + index)?]))),
        "Q4_0" => Some(half(0)? * (f32::from(bytes.get(2 + index)? & 15) - 8.0)),
        _ => None,
    };
    (0..3).map_while(value).collect()
}

fn f16(bits: u16) -> f32 {
    let sign = if bits >> 15 == 1 { -1.0 } else { 1.0 };
    let fraction = f32::from(bits & 0x3ff) / 1024.0;
    match bits >> 10 & 31 {
        0 => sign * fraction * 2_f32.powi(-14),
        31 if fraction == 0.0 => sign * f32::INFINITY,
        31 => f32::NAN,
        exponent => sign * (1.0 + fraction) * 2_f32.powi(i32::from(exponent) - 15),
    }
}
