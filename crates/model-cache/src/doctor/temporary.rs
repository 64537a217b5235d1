//! A folder for a copy of the records, which outlives no examination for long.

use super::files::user;
use std::{
    fs::{self, File},
    io,
    os::unix::fs::MetadataExt,
    path::Path,
};
use tempfile::TempDir;

const PREFIX: &str = "model-cache-doctor-";

/// A folder of this process, removed with it; locked meanwhile, so that one whose process was killed is known, and removed by the next.
pub(super) struct TemporaryFolder {
    folder: TempDir,
    _lock: File,
}

impl TemporaryFolder {
    /// Makes one in `parent`, and removes there what this user's examinations left.
    pub(super) fn new_in(parent: &Path) -> io::Result<Self> {
        remove_leftovers(parent);
        loop {
            let folder = tempfile::Builder::new().prefix(PREFIX).tempdir_in(parent)?;
            let lock = File::open(folder.path())?;
            // Where there are no locks nobody takes it for a leftover either. Who took it for one before it was locked is waited for.
            let _ = lock.lock();
            if is_at(&lock, folder.path()) {
                return Ok(Self { folder, _lock: lock });
            }
        }
    }

    pub(super) fn path(&self) -> &Path {
        self.folder.path()
    }
}

/// Whether what was opened still lies at `path`.
fn is_at(opened: &File, path: &Path) -> bool {
    let (Ok(opened), Ok(there)) = (opened.metadata(), fs::symlink_metadata(path)) else { return false };
    (opened.dev(), opened.ino()) == (there.dev(), there.ino())
}

/// Removes the folders of this user's examinations that no process holds. What can't be removed stays: it is in nobody's way.
fn remove_leftovers(parent: &Path) {
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let path = entry.path();
        let is_own = |there: fs::Metadata| there.is_dir() && Some(there.uid()) == user();
        if !entry.file_name().to_string_lossy().starts_with(PREFIX) || !fs::symlink_metadata(&path).is_ok_and(is_own) {
            continue;
        }
        let Ok(lock) = File::open(&path) else { continue };
        if lock.try_lock().is_ok() && is_at(&lock, &path) && fs::remove_dir_all(&path).is_ok() {
            tracing::debug!(folder = %path.display(), "what an examination that was killed left was removed");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_killed_examination_left_goes_with_the_next_and_what_another_works_in_stays() {
        let parent = tempfile::tempdir().unwrap();
        let left = parent.path().join(format!("{PREFIX}killed"));
        fs::create_dir(&left).unwrap();
        fs::write(left.join("mdbx.dat"), "x").unwrap();
        let (other, elsewhere) = (parent.path().join("other"), parent.path().join(format!("{PREFIX}link")));
        fs::create_dir(&other).unwrap();
        std::os::unix::fs::symlink(&other, &elsewhere).unwrap();
        let first = TemporaryFolder::new_in(parent.path()).unwrap();
        assert!(!left.exists() && other.exists() && elsewhere.exists());
        let second = TemporaryFolder::new_in(parent.path()).unwrap();
        assert!(first.path().exists() && second.path().exists());
        let gone = first.path().to_owned();
        drop(first);
        assert!(!gone.exists() && second.path().exists());
    }
}
