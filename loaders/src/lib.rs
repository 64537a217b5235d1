//! Loaders of other crates, fed from the store: what `docs/loaders.md` tells of Rust, in code that is tested.
//!
//! Most loaders take a slice, and a [`ModelFile`](tabagent_model_cache::ModelFile) is one: `safetensors`, `tokenizers` and `ort`
//! need no more than the examples of this package show. [`candle`] would copy quantised tensors; here it is given them in place.
//!
//! A package of its own, for the libraries it brings along: nothing else depends on it. It is there to be copied from.

// `blocks` casts bytes to the blocks of candle, which has no safe way to do that. Nothing else does.
#![deny(unsafe_code)]

mod blocks;
pub mod candle;
mod error;

pub use error::{Error, Result};
