//! The Python module `tabagent_model_cache`: glue between Python and [`tabagent_model_cache`], and nothing else.
//!
//! The documentation Python programmers read is in `python/tabagent_model_cache/_native.pyi`.
#![deny(unsafe_code)]

mod buffer;
mod cache;
mod errors;
mod file;

use pyo3::prelude::*;

/// What of the package is written in Rust.
#[pymodule(gil_used = true)]
fn _native(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    module.add_class::<cache::ModelCache>()?;
    module.add_class::<file::ModelFile>()?;
    Ok(())
}
