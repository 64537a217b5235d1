//! The process-wide map of open environments by folder, each opened once: [`StorageRegistry`].

use crate::{
    disk,
    error::{Error, Result},
    extent::{Extents, PAGE_BYTES},
    mdbx,
    records::Records,
};
use std::{
    any::Any,
    collections::HashMap,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak},
};

/// Opens environments, each once per process, and shares them among all who ask.
///
/// libmdbx forbids a second open of one environment in a process, so the map behind this is the process's own: two
/// registries see the same environments. A registry is cheap to make and holds nothing open by itself.
#[derive(Debug)]
pub struct StorageRegistry {
    base: PathBuf,
}

/// A folder's identity: the same however it is spelled or linked to.
type FolderId = (u64, u64);

/// Room for libmdbx's lock file, which it maps and writes: on a full disk that would be SIGBUS.
const LOCK_FILE_BYTES: u64 = 64 << 10;

/// The open environments. An entry is removed only after its environment has been closed, so that nobody opens it again
/// while that is under way.
struct Opened {
    environments: Mutex<HashMap<FolderId, Weak<dyn Any + Send + Sync>>>,
    closed: Condvar,
}

static OPENED: std::sync::LazyLock<Opened> =
    std::sync::LazyLock::new(|| Opened { environments: Mutex::new(HashMap::new()), closed: Condvar::new() });

/// An open environment and its place in the registry's map, given back after it was closed.
pub struct Shared<T> {
    /// `None` only while `drop` runs.
    environment: Option<T>,
    id: FolderId,
}

impl<T> std::ops::Deref for Shared<T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.environment.as_ref().expect("an environment is taken out by drop alone")
    }
}

impl<T> Drop for Shared<T> {
    fn drop(&mut self) {
        drop(self.environment.take());
        OPENED.lock().remove(&self.id);
        OPENED.closed.notify_all();
    }
}

impl Opened {
    fn lock(&self) -> MutexGuard<'_, HashMap<FolderId, Weak<dyn Any + Send + Sync>>> {
        // The map is changed by single inserts and removes, so it is whole even if a holder panicked.
        self.environments.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn get_or_open<T: Send + Sync + 'static>(&self, folder: &Path, open: impl FnOnce() -> Result<T>) -> Result<Arc<Shared<T>>> {
        let metadata = disk::open_folder(folder)?;
        disk::preallocate(&folder.join("mdbx.lck"), LOCK_FILE_BYTES)?;
        let id = (metadata.dev(), metadata.ino());
        let mut environments = self.lock();
        loop {
            match environments.get(&id).map(Weak::upgrade) {
                Some(Some(shared)) => {
                    // Dropped outside the lock if it is of another kind: its `drop` takes the lock.
                    drop(environments);
                    return shared.downcast().map_err(|_| Error::Engine {
                        action: "open",
                        environment: folder.to_owned(),
                        source: "it is open in this process as an environment of another kind".into(),
                    });
                }
                Some(None) => environments = self.closed.wait(environments).unwrap_or_else(PoisonError::into_inner),
                None => break,
            }
        }
        let shared = Arc::new(Shared { environment: Some(open()?), id });
        let weak: Weak<Shared<T>> = Arc::downgrade(&shared);
        environments.insert(id, weak);
        Ok(shared)
    }
}

impl StorageRegistry {
    /// A registry whose named environments live below `base`.
    ///
    /// Nothing is created or opened yet.
    pub fn new(base: impl Into<PathBuf>) -> Self {
        Self { base: base.into() }
    }

    /// The folder of the environment called `name`, below this registry's base.
    pub fn folder(&self, name: &str) -> PathBuf {
        self.base.join(name)
    }

    /// Opens, or shares, the environment of records in `folder`, creating it and its `tables` where missing.
    ///
    /// # Errors
    /// [`Error::ReadOnly`], [`Error::NetworkFileSystem`], [`Error::NotAFolder`], or [`Error::Engine`] for a file that is
    /// not libmdbx's.
    pub fn records(&self, folder: &Path, tables: &[&str]) -> Result<Arc<Shared<Records>>> {
        OPENED.get_or_open(folder, || mdbx::open_records(folder, tables).map(Records::new))
    }

    /// Opens, or shares, the environment of extents in `folder`, creating it and its one `table` where missing.
    ///
    /// # Errors
    /// As [`records`](Self::records).
    pub fn extents(&self, folder: &Path, table: &'static str) -> Result<Arc<Shared<Extents>>> {
        OPENED.get_or_open(folder, || Extents::new(mdbx::open_extents(folder, table, PAGE_BYTES as usize)?, table))
    }
}
