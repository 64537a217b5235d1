//! Names of files and folders, changed in one step and made to last: [`exchange`], [`sync_folder`].

use crate::error::{Error, Result};
use nix::{
    errno::Errno,
    fcntl::{AT_FDCWD, RenameFlags, renameat2},
};
use std::{fs::File, path::Path};

/// Lets `first` and `second`, files or folders of one file system, change places, in one step: whoever looks, whenever, finds both.
///
/// False, and nothing changed, where the file system or the kernel can't (renameat2(2), `RENAME_EXCHANGE`).
///
/// # Errors
/// [`Error::Io`] for all else.
pub fn exchange(first: &Path, second: &Path) -> Result<bool> {
    match renameat2(AT_FDCWD, first, AT_FDCWD, second, RenameFlags::RENAME_EXCHANGE) {
        Ok(()) => Ok(true),
        Err(Errno::EINVAL | Errno::ENOSYS | Errno::EOPNOTSUPP) => Ok(false),
        Err(code) => Err(Error::Io { action: "exchange", path: first.to_owned(), source: code.into() }),
    }
}

/// Makes the names in `folder` durable: what was created, renamed or removed there.
///
/// # Errors
/// [`Error::Io`]. File systems that know no sync of a folder (FAT by some drivers, some network shares) are taken at their word.
pub fn sync_folder(folder: &Path) -> Result<()> {
    match File::open(folder).and_then(|opened| opened.sync_all()) {
        Err(source) if !matches!(source.raw_os_error().map(Errno::from_raw), Some(Errno::EINVAL | Errno::EOPNOTSUPP)) => {
            Err(Error::Io { action: "sync the folder", path: folder.to_owned(), source })
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn two_folders_change_places_and_one_that_is_not_there_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        for folder in [&a, &b] {
            fs::create_dir(folder).unwrap();
        }
        fs::write(a.join("x"), "of a").unwrap();
        assert!(exchange(&a, &b).unwrap());
        assert_eq!(fs::read(b.join("x")).unwrap(), b"of a");
        assert!(exchange(&a, &dir.path().join("c")).is_err());
        sync_folder(dir.path()).unwrap();
    }
}
