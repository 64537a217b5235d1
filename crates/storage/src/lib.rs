//! Storage.
#![deny(unsafe_code)]
mod error;
pub use error::{Error, Result};
