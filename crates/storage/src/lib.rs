//! Transactional tables, extents filled in place, side-by-side mappings and leases, over libmdbx.
//!
//! This crate knows bytes, keys, tables and transactions; what they mean is its caller's business. It is synchronous: one
//! writer at a time per environment, over all processes; a call that may wait for the disk says so.
//!
//! | noun | what it is |
//! |---|---|
//! | [`StorageRegistry`] | opens each environment once per process and shares it |
//! | [`Records`], [`Table`] | an environment of small typed records; every commit is durable |
//! | [`Extents`], [`Extent`] | an environment of large values: reserved in a transaction, filled in place outside it |
//! | [`DataFile`] | a description of our own of the extents' file: write, journal, sync, punch, read |
//! | [`Mapping`] | several extents as one read-only slice |
//! | [`LeaseFile`], [`Lease`] | kernel locks that say who reads or fills what, and that die with their process |
//! | [`FileLock`] | a lock on a whole file: one backup at a time, one who replaces a store |
//! | [`Ballast`] | room kept back so that a full disk can still be freed |
//!
//! All unsafe code of the project's engine lives here, in `mdbx`, `mapping`, `resident` and `writeback`.

#![deny(unsafe_code)]

mod codec;
mod copy;
mod data_file;
mod disk;
mod error;
mod extent;
mod fail;
mod file_lock;
mod folder;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzz;
mod lease;
mod look;
mod mapping;
mod mdbx;
mod records;
mod registry;
mod replace;
mod resident;
mod unnamed;
mod write_log;
mod writeback;

pub use codec::Record;
pub use copy::CopyMethod;
pub use data_file::{DataFile, ExtentHeader, Journal};
pub use disk::{
    Ballast, FileSystem, GivenUp, allocated_bytes, file_system, free_bytes, has_room, is_shared, may_write, open_folder,
    refuse_link,
};
pub use error::{Error, Result};
pub use extent::{Alignment, Extent, ExtentSpec, Extents, ExtentsWrite, HEADER_REGION_BYTES, PAGE_BYTES};
pub use fail::fail_point;
pub use file_lock::FileLock;
pub use folder::Folder;
pub use lease::{Lease, LeaseFile, Locked, MAX_LEASE_ID, SharedLeases};
pub use look::{EnvironmentInfo, copy_environment, environment_info, reader_slots};
pub use mapping::{Mapping, SeparateMappings};
pub use mdbx::SPARE_BYTES;
#[cfg(feature = "fail-points")]
pub use mdbx::meta::forget_boot;
pub use records::{ReadTxn, Records, Table, WriteTxn};
pub use registry::{Shared, StorageRegistry};
pub use replace::{exchange, sync_folder};
pub use resident::{available_memory_bytes, populate, read_in_large_pieces, resident_bytes};
pub use unnamed::UnnamedFile;
#[cfg(feature = "fail-points")]
pub use write_log::{WriteEvent, read_write_log};

/// What libmdbx was built with that decides what this crate may do.
pub fn engine_options() -> &'static str {
    mdbx::build_options()
}

/// Whether space can be given back to the file system while an environment lives.
///
/// True only if libmdbx was built with `MDBX_USE_FALLOCATE=0`: otherwise every growth and every exclusive open fills the
/// holes again, and on a nearly full disk the open itself would fail.
pub fn can_punch() -> bool {
    cfg!(target_os = "linux") && mdbx::build_options().split_whitespace().any(|option| option == "FALLOCATE=0")
}

/// Whether the data file may be opened, and closed again, beside libmdbx's own descriptions of it.
///
/// True only if libmdbx was built with open-file-description locks. POSIX's older ones would be dropped, all of them, by the
/// first `close` of any descriptor of the file; environments of extents are refused then. Kernels before 3.16 have none, and
/// [`LeaseFile`] says so there.
pub fn locks_survive_own_descriptions() -> bool {
    mdbx::build_options().split_whitespace().any(|option| matches!(option, "OFDLOCKS=1" | "OFDLOCKS=AUTO=1"))
}
