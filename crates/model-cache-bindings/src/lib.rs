//! The Python module `tabagent_model_cache`: glue between Python and [`tabagent_model_cache`], and nothing else.
//!
//! The documentation Python programmers read is in `python/tabagent_model_cache/_native.pyi`.
#![deny(unsafe_code)]

mod buffer;
mod cache;
mod download;
mod errors;
mod file;
mod keep;
mod log;
mod onnx;
mod progress;
mod runtime;
mod several;
mod tensors;
mod values;
mod wait;
mod work;

use pyo3::prelude::*;

/// What of the package is written in Rust.
#[pymodule(gil_used = true)]
fn _native(module: &Bound<'_, PyModule>) -> PyResult<()> {
    log::begin();
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    module.add_class::<cache::ModelCache>()?;
    module.add_class::<file::ModelFile>()?;
    module.add_class::<onnx::OnnxModel>()?;
    module.add_class::<onnx::OnnxPlan>()?;
    module.add_class::<onnx::OnnxLease>()?;
    module.add_class::<work::Work>()?;
    module.add_function(wrap_pyfunction!(runtime::_shutdown, module)?)?;
    Ok(())
}
