//! A lock on a whole file, that dies with its process: [`FileLock`].

use crate::{
    disk::open_file,
    error::{Error, Result},
    lease::{holders, is_at, range, set},
};
use nix::{
    fcntl::{FcntlArg, OFlag, fcntl},
    libc,
};
use std::{fs::File, io, os::unix::fs::OpenOptionsExt, path::Path};

/// A lock on all of a file, leases in it included: an open-file-description lock, as a [`Lease`](crate::Lease) is one.
///
/// Given back when it is dropped, or when its process dies, however it dies.
#[derive(Debug)]
pub struct FileLock {
    file: File,
    taken_by: u32,
}

impl FileLock {
    /// Locks the file at `path`, created where missing, for those its folder is for, against everybody; `None` while anybody has locked any
    /// of it.
    ///
    /// # Errors
    /// [`Error::NotOurs`] for a link, and whatever else is no plain file; [`Error::Io`], also where the file system knows no locks.
    pub fn try_exclusive(path: &Path) -> Result<Option<Self>> {
        // The file is a store's or not: what can't be written is told as any file.
        let open = || match open_file(path, "open") {
            Err(Error::ReadOnly { source, .. }) => Err(open_error(path, source)),
            opened => opened,
        };
        Self::try_lock(path, &open, libc::F_WRLCK)
    }

    /// Locks the file at `path` against those who want it to themselves; `None` while somebody has it. Needs to read it alone.
    ///
    /// # Errors
    /// [`Error::Io`], also if there is no such file.
    pub fn try_shared(path: &Path) -> Result<Option<Self>> {
        let open = || {
            let opened = File::options().read(true).custom_flags(OFlag::O_NOFOLLOW.bits()).open(path);
            opened.map_err(|source| open_error(path, source))
        };
        Self::try_lock(path, &open, libc::F_RDLCK)
    }

    /// The processes that have locked any of the file at `path`, as far as this one may look. Walks `/proc`: for messages to people.
    pub fn holders(path: &Path) -> Vec<u32> {
        holders(path, &|_| true)
    }

    fn try_lock(path: &Path, open: &dyn Fn() -> Result<File>, kind: i32) -> Result<Option<Self>> {
        loop {
            let file = open()?;
            if !set(path, &file, kind, 0, 0)? {
                return Ok(None);
            }
            // Else whoever had it removed it, or gave its path to another file.
            if is_at(&file, path)? {
                return Ok(Some(Self { file, taken_by: std::process::id() }));
            }
        }
    }
}

fn open_error(path: &Path, source: io::Error) -> Error {
    Error::Io { action: "open", path: path.to_owned(), source }
}

impl Drop for FileLock {
    fn drop(&mut self) {
        // Closing is not enough: a program that another thread is just starting has this description too, until its exec. But a forked
        // child must not unlock what its parent still works under.
        if self.taken_by == std::process::id() {
            let _ = fcntl(&self.file, FcntlArg::F_OFD_SETLK(&range(libc::F_UNLCK, 0, 0)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::LeaseFile;

    #[test]
    fn one_who_has_a_file_to_himself_keeps_everybody_out_until_he_lets_go() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        assert!(FileLock::try_shared(&path).is_err(), "to read alone creates nothing");
        let alone = FileLock::try_exclusive(&path).unwrap().unwrap();
        assert!(FileLock::try_exclusive(&path).unwrap().is_none() && FileLock::try_shared(&path).unwrap().is_none());
        assert_eq!(FileLock::holders(&path), [std::process::id()]);
        drop(alone);
        let readers = [FileLock::try_shared(&path).unwrap().unwrap(), FileLock::try_shared(&path).unwrap().unwrap()];
        assert!(FileLock::try_exclusive(&path).unwrap().is_none());
        drop(readers);
        assert!(FileLock::try_exclusive(&path).unwrap().is_some());
    }

    #[test]
    fn a_lock_is_for_whom_its_folder_is_and_is_never_taken_behind_a_link() {
        use std::{fs, os::unix::fs::PermissionsExt};
        let dir = tempfile::tempdir().unwrap();
        for (folder, file) in [(0o700, 0o600), (0o755, 0o600), (0o2770, 0o660)] {
            fs::set_permissions(dir.path(), fs::Permissions::from_mode(folder)).unwrap();
            let path = dir.path().join(format!("{folder:o}"));
            FileLock::try_exclusive(&path).unwrap().unwrap();
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, file, "in {folder:o}");
        }
        let (link, elsewhere) = (dir.path().join("link"), dir.path().join("700"));
        std::os::unix::fs::symlink(&elsewhere, &link).unwrap();
        assert!(matches!(FileLock::try_exclusive(&link), Err(Error::NotOurs { .. })) && FileLock::try_shared(&link).is_err());
    }

    #[test]
    fn a_store_that_is_open_is_nobodys_alone_and_one_being_replaced_does_not_open() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("leases");
        let store = LeaseFile::open(path.clone()).unwrap();
        assert!(FileLock::try_exclusive(&path).unwrap().is_none());
        drop(store);
        let alone = FileLock::try_exclusive(&path).unwrap().unwrap();
        assert!(matches!(LeaseFile::open(path.clone()), Err(Error::BeingReplaced { .. })));
        drop(alone);
        assert!(LeaseFile::open(path).is_ok());
    }

    #[test]
    fn a_lock_that_was_given_back_is_free_also_while_its_description_lives_on_elsewhere() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let alone = FileLock::try_exclusive(&path).unwrap().unwrap();
        // As a program that is being started has it, between fork and exec.
        let inherited = alone.file.try_clone().unwrap();
        drop(alone);
        assert!(FileLock::try_exclusive(&path).unwrap().is_some());
        drop(inherited);
    }

    #[test]
    fn a_lock_on_a_file_that_lost_its_path_meanwhile_counts_for_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let old = FileLock::try_exclusive(&path).unwrap().unwrap();
        std::fs::remove_file(&path).unwrap();
        let new = FileLock::try_exclusive(&path).unwrap().unwrap();
        assert!(is_at(&new.file, &path).unwrap() && !is_at(&old.file, &path).unwrap());
    }
}
