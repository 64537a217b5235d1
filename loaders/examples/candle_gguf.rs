//! candle on a GGUF of the store: every tensor in place, nothing copied.
//!
//! ```text
//! cargo run -p loaders --example candle_gguf -- STORE REPO PATH MATRIX
//! ```
//! Multiplies a row of ones by a matrix of the file, `blk.0.ffn_up.weight` for one, and shows the first results.

#![forbid(unsafe_code)]

use candle_core::{
    DType, Device, Module, Tensor,
    quantized::{QMatMul, QTensor},
};
use std::{collections::HashMap, error::Error, sync::Arc};
use tabagent_model_cache::ModelCache;

/// Every tensor of a GGUF. They keep the file, so that it may be dropped, and even removed, before them.
pub(crate) fn open(cache: &ModelCache, repo: &str, path: &str) -> Result<HashMap<String, QTensor>, Box<dyn Error>> {
    let file = cache.get_file(repo, path)?.ok_or_else(|| format!("{repo} {path} is not in the store"))?;
    Ok(loaders::candle::tensors(&file)?)
}

/// A layer of this matrix. `QMatMul::from_qtensor` would copy F16, BF16 and F32; this way they stay in the file.
pub(crate) fn layer(matrix: QTensor) -> QMatMul {
    QMatMul::QTensor(Arc::new(matrix))
}

#[allow(dead_code, reason = "a test uses the functions above")]
fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [store, repo, path, name] = arguments.as_slice() else {
        return Err("usage: candle_gguf STORE REPO PATH MATRIX".into());
    };
    let mut tensors = open(&ModelCache::open(store)?, repo, path)?;
    println!("{} tensors", tensors.len());

    let matrix = tensors.remove(name).ok_or_else(|| format!("no tensor {name}"))?;
    let (rows, columns) = matrix.shape().dims2()?;
    println!("{name}: {:?}, {rows} x {columns}", matrix.dtype());
    let ones = Tensor::ones((1, columns), DType::F32, &Device::Cpu)?;
    let product = layer(matrix).forward(&ones)?;
    println!("{:?}", product.squeeze(0)?.narrow(0, 0, rows.min(8))?.to_vec1::<f32>()?);
    Ok(())
}
