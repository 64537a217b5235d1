//! The crate `safetensors` on a file of the store: views into the mapping, and candle's tensors made of them.
//!
//! ```text
//! cargo run -p loaders --example safetensors -- STORE REPO PATH
//! ```

#![forbid(unsafe_code)]

use candle_core::{Device, Tensor, safetensors::SliceSafetensors};
use safetensors::SafeTensors;
use std::error::Error;
use tabagent_model_cache::{ModelCache, ModelFile};

/// All tensors, borrowed from the file: costs the parse of the header.
pub(crate) fn views(file: &ModelFile) -> Result<SafeTensors<'_>, Box<dyn Error>> {
    Ok(SafeTensors::deserialize(file)?)
}

/// One tensor as candle's. candle keeps plain tensors in memory of its own: one copy for each tensor that is asked for, of none
/// else. `VarBuilder::from_slice_safetensors(&file, ..)` of candle-nn does the same for a whole model.
pub(crate) fn candle_tensor(file: &ModelFile, name: &str) -> Result<Tensor, Box<dyn Error>> {
    Ok(SliceSafetensors::new(file)?.load(name, &Device::Cpu)?)
}

#[allow(dead_code, reason = "a test uses the functions above")]
fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [store, repo, path] = arguments.as_slice() else {
        return Err("usage: safetensors STORE REPO PATH".into());
    };
    let cache = ModelCache::open(store)?;
    let file = cache.get_file(repo, path)?.ok_or_else(|| format!("{repo} {path} is not in the store"))?;
    for (name, view) in views(&file)?.iter() {
        println!("{name}  {:?} {:?}, mean {}", view.dtype(), view.shape(), mean(&candle_tensor(&file, name)?)?);
    }
    Ok(())
}

#[allow(dead_code)]
fn mean(tensor: &Tensor) -> Result<f32, Box<dyn Error>> {
    Ok(tensor.to_dtype(candle_core::DType::F32)?.mean_all()?.to_scalar()?)
}
