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
use tabagent_model_cache::{
    ModelCache,
    format::{gguf::GgufIndex, safetensors::SafetensorsIndex},
};

/// Tensors shown where none is named.
const SHOWN: usize = 4;

struct Tensor<'a> {
    name: String,
    dtype: &'static str,
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
    let tensors = if file.starts_with(b"GGUF") { gguf(&file) } else { safetensors(&file) }?;
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

fn safetensors(file: &[u8]) -> tabagent_model_cache::Result<Vec<Tensor<'_>>> {
    let index = SafetensorsIndex::parse(file)?;
    let tensors = index.tensors().iter().map(|tensor| {
        let (name, dtype, shape) = (tensor.name().to_owned(), tensor.dtype().name(), tensor.shape().to_vec());
        Ok(Tensor { name, dtype, shape, bytes: tensor.bytes(file)? })
    });
    tensors.collect()
}

fn gguf(file: &[u8]) -> tabagent_model_cache::Result<Vec<Tensor<'_>>> {
    let index = GgufIndex::parse(file)?;
    let tensors = index.tensors().iter().map(|tensor| {
        let (name, dtype, shape) = (tensor.name().to_owned(), tensor.ggml_type().name(), tensor.shape().to_vec());
        Ok(Tensor { name, dtype, shape, bytes: tensor.bytes(file)? })
    });
    tensors.collect()
}

/// The first three values, or as many as there are, of the types known here.
fn first_values(tensor: &Tensor<'_>) -> Vec<f32> {
    let bytes = tensor.bytes;
    let half = |at: usize| bytes.get(at..at + 2).map(|two| f16(u16::from_le_bytes([two[0], two[1]])));
    let value = |index: usize| match tensor.dtype {
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
