#![doc = include_str!("../../../README.md")]
#![forbid(unsafe_code)]

mod backup;
mod builder;
mod cache;
mod check;
mod choice;
mod digest;
mod doctor;
mod download;
mod error;
mod export;
mod file;
pub mod format;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzz;
mod gather;
mod hub;
mod import;
mod key;
mod limit;
mod listing;
mod manifest;
mod name;
mod onnx;
mod placement;
mod prefetch;
mod progress;
mod pull;
mod quant;
mod readable;
mod record;
mod repair;
mod store;
pub mod units;

pub use backup::{BackupCheck, BackupOptions, BackupReport, BadBackupFile, CheckOptions, RestoreOptions, RestoreReport};
pub use builder::{ModelCacheBuilder, default_store};
pub use cache::ModelCache;
pub use check::{BadBlock, VerifyOptions, VerifyReport};
pub use digest::{Digest, Hasher};
pub use doctor::{Area, Examination, Finding, Severity};
pub use error::{Error, ErrorKind, Result};
pub use export::{ExportOptions, ExportReport};
pub use file::{ModelFile, ModelReader};
pub use gather::Gathered;
pub use import::{ImportOptions, ImportReport};
pub use limit::{parse_memory_budget, parse_rate};
pub use listing::{FileInfo, FileState, RepoFiles, RepoSummary, Stats};
pub use manifest::{Manifest, ManifestFile, QuantInfo, QuantStatus};
pub use name::{CommitId, FilePath, RepoId, RepoSpec, Revision, shell_word};
pub use onnx::{CopyReason, Edges, InjectedTensor, OnnxLease, OnnxModel, OnnxOptions, OnnxPlan, OnnxReport, Tally};
pub use placement::Placement;
pub use prefetch::{PrefetchOptions, PrefetchReport};
pub use progress::{Event, EventKind, EventSink, ProgressCallback};
pub use pull::{Pull, PullReport};
pub use readable::{ReadableFile, ReadableRepo};
pub use record::{BLOCK_BYTES, CHUNK_BYTES, INLINE_BYTES};
pub use repair::{DamagedFile, MendedRecord, Repair, RepairOutcome, RepairReport};
pub use storage::CopyMethod;
pub use store::{BadRecord, LeftOut, Removed};
