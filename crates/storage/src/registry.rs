//! The process-wide map of open environments by folder, each opened once: [`StorageRegistry`].

use crate::{
    disk,
    error::{Error, Result},
    extent::{Alignment, Extents, PAGE_BYTES},
    fail::fail_point,
    mdbx,
    records::Records,
};
use std::{
    any::Any,
    collections::HashMap,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Arc, Condvar, LazyLock, Mutex, MutexGuard, OnceLock, PoisonError, Weak},
};

/// Opens environments, each once per process, and shares them among all who ask.
///
/// libmdbx forbids a second open of one environment in a process, so the map behind this is the process's own: two
/// registries see the same environments. A registry is cheap to make and holds nothing open by itself.
#[derive(Debug)]
pub struct StorageRegistry {
    base: PathBuf,
}

/// An environment's identity, the same however its folder is spelled or linked to: its lock file's, which stays unique while
/// the environment is open, as the number of a folder that was deleted does not.
type EnvironmentId = (u64, u64);

/// Room for libmdbx's lock file, which it maps and writes: on a full disk that would be SIGBUS.
const LOCK_FILE_BYTES: u64 = 64 << 10;

/// The open environments of one process. An entry is removed only after its environment has been closed, so that nobody opens
/// it again while that is under way.
struct Opened {
    process: u32,
    environments: Mutex<HashMap<EnvironmentId, Weak<dyn Any + Send + Sync>>>,
    closed: Condvar,
    /// The map of a forked child, which must not wait for a lock that a thread of its parent held as it was born, nor share
    /// what its parent opened. Only ever set in the child.
    child: OnceLock<Box<Opened>>,
}

static OPENED: LazyLock<Opened> = LazyLock::new(Opened::new);

/// An open environment and its place in the registry's map, given back after it was closed.
pub struct Shared<T> {
    /// `None` only while `drop` runs.
    environment: Option<T>,
    id: EnvironmentId,
    opened: &'static Opened,
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
        // In a forked child the map is its parent's, and so may be the thread that holds its lock.
        if self.opened.process == std::process::id() {
            self.opened.lock().remove(&self.id);
            self.opened.closed.notify_all();
        }
    }
}

impl Opened {
    fn new() -> Self {
        Self {
            process: std::process::id(),
            environments: Mutex::new(HashMap::new()),
            closed: Condvar::new(),
            child: OnceLock::new(),
        }
    }

    /// The map of this process.
    fn here() -> &'static Self {
        let mut opened = &*OPENED;
        while opened.process != std::process::id() {
            opened = opened.child.get_or_init(|| Box::new(Self::new()));
        }
        opened
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<EnvironmentId, Weak<dyn Any + Send + Sync>>> {
        // The map is changed by single inserts and removes, so it is whole even if a holder panicked.
        self.environments.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn get_or_open<T: Send + Sync + 'static>(
        &'static self,
        folder: &Path,
        open: impl FnOnce() -> Result<T>,
    ) -> Result<Arc<Shared<T>>> {
        disk::open_inner_folder(folder)?;
        let lock_file = disk::preallocate(&folder.join("mdbx.lck"), LOCK_FILE_BYTES)?;
        fail_point("open.lock_file_made");
        // Made here, for whom it should be; libmdbx takes an empty one for a new one.
        disk::make_file(&folder.join(mdbx::DATA_FILE))?;
        let id = (lock_file.dev(), lock_file.ino());
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
        let shared = Arc::new(Shared { environment: Some(open()?), id, opened: self });
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
    /// [`Error::ReadOnly`], [`Error::NetworkFileSystem`], [`Error::NotAFolder`], [`Error::NotOurs`] for a link, [`Error::NoSpace`] if it
    /// would have to be created with less than 16 MiB free, [`Error::BadEnvironment`] for a file that is damaged or not libmdbx's, or
    /// [`Error::Engine`] for one of another kind.
    pub fn records(&self, folder: &Path, tables: &[&str]) -> Result<Arc<Shared<Records>>> {
        let records = Opened::here().get_or_open(folder, || mdbx::open_records(folder, tables).map(Records::new))?;
        // Whoever opened it may have known fewer tables.
        records.create_tables(tables)?;
        Ok(records)
    }

    /// Opens, or shares, the environment of extents in `folder`, creating it and its one `table` where missing.
    ///
    /// `alignment` is that it was created with: its owner knows it, the environment does not.
    ///
    /// # Errors
    /// As [`records`](Self::records).
    pub fn extents(&self, folder: &Path, table: &'static str, alignment: Alignment) -> Result<Arc<Shared<Extents>>> {
        let open = || Extents::new(mdbx::open_extents(folder, table, PAGE_BYTES as usize)?, table, alignment);
        let extents = Opened::here().get_or_open(folder, open)?;
        let found = (extents.table(), extents.alignment());
        if found != (table, alignment) {
            let source = format!("it is open in this process with table and alignment {found:?}, not {:?}", (table, alignment));
            return Err(Error::Engine { action: "open", environment: folder.to_owned(), source: source.into() });
        }
        Ok(extents)
    }
}
