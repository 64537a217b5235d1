//! What loading a GGUF into candle costs, measured in a process of its own; `scripts/figures-rust` runs it.
//!
//! ```text
//! gguf_figures import STORE PATH       into the repo org/figures
//! gguf_figures copied PATH             by path, as candle does it
//! gguf_figures in-place STORE FILE     from the store
//! ```
//! The last two print `{"load_us":..,"private_bytes":..,"tensors":..,"f16":{"private_bytes":..,"us":..},"f32":{..}}`: time and RssAnon
//! of the load; then, for a row of either type, RssAnon of a first product with each matrix, which is where candle makes copies in
//! another order, and the time of a second one.

#![forbid(unsafe_code)]

use candle_core::{
    DType, Device, Tensor,
    quantized::{QTensor, gguf_file::Content},
};
use std::{collections::HashMap, error::Error, fs, time::Instant};
use tabagent_model_cache::{ImportOptions, ModelCache};

const REPO: &str = "org/figures";

type Tensors = HashMap<String, QTensor>;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments.as_slice() {
        ["import", store, path] => {
            ModelCache::open(store)?.import(REPO, &[path.into()], &ImportOptions::default())?;
            Ok(())
        }
        ["copied", path] => measure(|| copied(path)),
        ["in-place", store, file] => {
            // Opening the store is not the loader's.
            let cache = ModelCache::open(store)?;
            measure(|| {
                let file = cache.get_file(REPO, file)?.ok_or("not in the store")?;
                Ok(loaders::candle::tensors(&file)?)
            })
        }
        _ => Err("usage: gguf_figures import STORE PATH | copied PATH | in-place STORE FILE".into()),
    }
}

fn copied(path: &str) -> Result<Tensors, Box<dyn Error>> {
    let mut file = std::io::BufReader::new(fs::File::open(path)?);
    let content = Content::read(&mut file)?;
    let names = content.tensor_infos.keys();
    names.map(|name| Ok((name.clone(), content.tensor(&mut file, name, &Device::Cpu)?))).collect()
}

fn measure(load: impl FnOnce() -> Result<Tensors, Box<dyn Error>>) -> Result<(), Box<dyn Error>> {
    let before = private_bytes()?;
    let begun = Instant::now();
    let tensors = load()?;
    let load_us = begun.elapsed().as_micros();
    let load_bytes = private_bytes()?.saturating_sub(before);
    let (f16, f32) = (products(&tensors, DType::F16)?, products(&tensors, DType::F32)?);
    let count = tensors.len();
    println!(r#"{{"load_us":{load_us},"private_bytes":{load_bytes},"tensors":{count},"f16":{f16},"f32":{f32}}}"#);
    Ok(())
}

/// A row of ones times each matrix, twice.
fn products(tensors: &Tensors, dtype: DType) -> Result<String, Box<dyn Error>> {
    let all = || -> candle_core::Result<()> {
        for matrix in tensors.values().filter(|tensor| tensor.rank() == 2) {
            let (_, columns) = matrix.shape().dims2()?;
            Tensor::ones((1, columns), dtype, &Device::Cpu)?.apply_op1_no_bwd(matrix)?;
        }
        Ok(())
    };
    let before = private_bytes()?;
    all()?;
    let private_bytes = private_bytes()?.saturating_sub(before);
    let begun = Instant::now();
    all()?;
    Ok(format!(r#"{{"private_bytes":{private_bytes},"us":{}}}"#, begun.elapsed().as_micros()))
}

/// RssAnon.
fn private_bytes() -> Result<u64, Box<dyn Error>> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).ok_or("no RssAnon")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? << 10)
}
