#![doc = include_str!("../../../README.md")]
#![forbid(unsafe_code)]

mod builder;
mod cache;
mod choice;
mod digest;
mod download;
mod error;
mod file;
mod hub;
mod key;
mod manifest;
mod name;
mod progress;
mod pull;
mod quant;
mod record;
mod store;
pub mod units;

pub use builder::{ModelCacheBuilder, default_store};
pub use cache::ModelCache;
pub use digest::{Digest, Hasher};
pub use error::{Error, ErrorKind, Result};
pub use file::{ModelFile, ModelReader};
pub use manifest::{Manifest, ManifestFile, QuantInfo, QuantStatus};
pub use name::{CommitId, FilePath, RepoId, RepoSpec, Revision};
pub use progress::{Event, EventKind, EventSink, ProgressCallback};
pub use pull::{Pull, PullReport};
pub use record::{BLOCK_BYTES, CHUNK_BYTES, INLINE_BYTES};
pub use store::Removed;
