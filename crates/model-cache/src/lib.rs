#![doc = include_str!("../../../README.md")]
#![forbid(unsafe_code)]

mod digest;
mod error;
mod name;
pub mod units;

pub use digest::{Digest, Hasher};
pub use error::{Error, ErrorKind, Result};
pub use name::{CommitId, FilePath, RepoId, RepoSpec, Revision};
