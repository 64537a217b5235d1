//! Errors of the storage crate.
use std::{io, path::PathBuf};

/// The result of every fallible call of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong in the engine, the file system or a record.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// libmdbx refused an operation.
    #[error("could not {action} in {environment:?}")]
    Engine {
        /// The operation.
        action: &'static str,
        /// The environment's folder.
        environment: PathBuf,
        /// libmdbx's own error, its type erased.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The operating system refused.
    #[error("could not {action} {path:?}")]
    Io {
        /// The operation.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The disk is full, or would be.
    #[error("no space to {action} in {path:?}: needs {needed_bytes} B, {free_bytes} B free")]
    NoSpace {
        /// The operation.
        action: &'static str,
        /// The folder.
        path: PathBuf,
        /// What it needs.
        needed_bytes: u64,
        /// What there is.
        free_bytes: u64,
    },
    /// The process may not take the address space an environment needs: 8 TiB for one of extents, 64 GiB for one of records, of which
    /// only what is touched becomes memory.
    #[error("could not {action} {environment:?}: the process may not take that much address space")]
    NoAddressSpace {
        /// The operation.
        action: &'static str,
        /// The environment's folder.
        environment: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// A record is not what it should be.
    #[error("record {key:?} of table {table} is damaged: {reason}")]
    BadRecord {
        /// The table.
        table: &'static str,
        /// The key.
        key: String,
        /// What the check found.
        reason: String,
    },
    /// An environment's data file is not libmdbx's, or damaged.
    #[error("could not {action} {environment:?}: its data file is damaged, or not libmdbx's")]
    BadEnvironment {
        /// The operation.
        action: &'static str,
        /// The environment's folder.
        environment: PathBuf,
        /// libmdbx's own error, its type erased.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// An extent is not what its owner says.
    #[error("extent {key:?} is damaged: {reason}")]
    BadExtent {
        /// Its key.
        key: String,
        /// Expected and found.
        reason: String,
    },
    /// An earlier write-back error: bytes of this fill may be lost although writing them succeeded.
    #[error("an earlier write to {path:?} did not reach the disk")]
    WriteBackFailed {
        /// The data file.
        path: PathBuf,
    },
    /// The store lies on a network file system, which libmdbx cannot share.
    #[error("{path:?} is on a network file system ({kind})")]
    NetworkFileSystem {
        /// The folder.
        path: PathBuf,
        /// The file system's name.
        kind: &'static str,
    },
    /// The store can't be written.
    #[error("{path:?} can't be written")]
    ReadOnly {
        /// The folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file stands where a folder should.
    #[error("{path:?} is not a folder")]
    NotAFolder {
        /// The path.
        path: PathBuf,
    },
    /// The store is being replaced as a whole.
    #[error("{path:?} is being replaced, as by a restore")]
    BeingReplaced {
        /// The store.
        path: PathBuf,
    },
    /// Something stands where a file or folder of the store's own should, and it would lead writes elsewhere.
    #[error("{path:?} is {what}: a store's own files and folders are plain ones")]
    NotOurs {
        /// The path.
        path: PathBuf,
        /// What stands there.
        what: &'static str,
    },
    /// A process of another PID namespace has the store open.
    #[error("{path:?} is open in another container (PID namespace)")]
    OtherPidNamespace {
        /// The store.
        path: PathBuf,
    },
    /// The handle was inherited over fork.
    #[error("this store was opened by process {opened_by}; process {this} is a fork of it")]
    Forked {
        /// The opener.
        opened_by: u32,
        /// The caller.
        this: u32,
    },
}

impl Error {
    /// Whether the disk is full.
    pub fn is_no_space(&self) -> bool {
        match self {
            Self::NoSpace { .. } => true,
            Self::Io { source, .. } => matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded),
            _ => false,
        }
    }

    /// Whether stored bytes are not what they should be.
    pub fn is_corruption(&self) -> bool {
        matches!(self, Self::BadRecord { .. } | Self::BadExtent { .. } | Self::BadEnvironment { .. })
    }

    /// What to do next, where something is known to help.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::NetworkFileSystem { .. } => Some("put the store on a local disk: --store DIR or MODEL_CACHE_HOME"),
            Self::ReadOnly { .. } => Some("choose a store you may write: --store DIR or MODEL_CACHE_HOME"),
            Self::NotAFolder { .. } => Some("name a folder: --store DIR or MODEL_CACHE_HOME"),
            Self::NotOurs { .. } => {
                Some("remove it, if it is none of yours; a store may itself be a link, or below one, but has none in it")
            }
            Self::OtherPidNamespace { .. } => Some("close it there first, or give each container a store of its own"),
            Self::BeingReplaced { .. } => Some("try again when that is done"),
            Self::NoAddressSpace { .. } => Some(
                "a store takes 8 TiB of address space (not of memory): raise ulimit -v, or close other stores of this process",
            ),
            Self::Forked { .. } => Some("open the store after the fork, in the process that uses it"),
            Self::NoSpace { .. } => Some("free some space on the store's disk"),
            _ => None,
        }
    }
}
