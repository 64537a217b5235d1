//! ONNX Runtime, by the crate `ort`, on a model of the store that is one file: `.ort` in place, `.onnx` copied.
//!
//! ```text
//! ORT_DYLIB_PATH=.../onnxruntime/capi/libonnxruntime.so.1.31.1 cargo run -p loaders --example onnx -- STORE REPO PATH
//! ```
//! Any ONNX Runtime of version 1.17 or newer will do; the wheel of PyPI has one. Models with external data want the Python module, or a path
//! (`model-cache mount`, `model-cache export`).

#![forbid(unsafe_code)]

use ort::{
    environment::Environment,
    session::{InMemorySession, Session},
};
use std::error::Error;
use tabagent_model_cache::{ModelCache, ModelFile};

/// A session over a model in ONNX Runtime's own format, `.ort`: its weights stay in the file, which the session borrows.
///
/// Prepacking is off, since it copies every weight it packs. Without it models in 4 or 8 bits compute many times slower, and
/// others in large batches: then take [`copied`], which packs.
pub(crate) fn in_place<'file>(environment: &Environment, file: &'file ModelFile) -> ort::Result<InMemorySession<'file>> {
    Session::builder(environment)?.with_prepacking(false)?.commit_from_memory_directly(file)
}

/// A session over a model in either format; ONNX Runtime keeps the weights in memory of its own, and the file can go.
pub(crate) fn copied(environment: &Environment, file: &ModelFile) -> ort::Result<Session> {
    Session::builder(environment)?.commit_from_memory(file)
}

#[allow(dead_code, reason = "a test uses the functions above")]
fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [store, repo, path] = arguments.as_slice() else {
        return Err("usage: onnx STORE REPO PATH".into());
    };
    let cache = ModelCache::open(store)?;
    let file = cache.get_file(repo, path)?.ok_or_else(|| format!("{repo} {path} is not in the store"))?;
    let environment = ort::init().build()?;
    if path.ends_with(".ort") {
        let session = in_place(&environment, &file)?;
        show(&session);
    } else {
        let session = copied(&environment, &file)?;
        show(&session);
    }
    Ok(())
}

#[allow(dead_code)]
fn show(session: &Session) {
    for (what, ends) in [("input", session.inputs()), ("output", session.outputs())] {
        for end in ends {
            println!("{what} {}: {}", end.name(), end.dtype());
        }
    }
}
