//! A file without a name until it is whole: [`UnnamedFile`].

use nix::{
    errno::Errno,
    fcntl::{AT_FDCWD, AtFlags, OFlag},
    unistd::linkat,
};
use std::{
    fs::{self, File},
    io,
    os::{fd::AsRawFd, unix::fs::OpenOptionsExt},
    path::{Path, PathBuf},
};

/// A file being written that nobody can see: when it is dropped, or its process dies, nothing is left of it.
///
/// On file systems that know `O_TMPFILE` (open(2); all of Linux's own). Elsewhere it has a hidden name, which a killed process
/// leaves behind.
#[derive(Debug)]
pub struct UnnamedFile {
    file: File,
    folder: PathBuf,
    /// Where the file system knows no files without a name.
    hidden: Option<PathBuf>,
}

impl UnnamedFile {
    /// A new empty file on the file system of `folder`.
    ///
    /// # Errors
    /// Those of open(2).
    pub fn new_in(folder: &Path) -> io::Result<Self> {
        let unnamed = File::options().write(true).read(true).custom_flags(OFlag::O_TMPFILE.bits()).open(folder);
        let folder = folder.to_owned();
        match unnamed {
            Ok(file) => Ok(Self { file, folder, hidden: None }),
            Err(error) if matches!(error.raw_os_error().map(Errno::from_raw), Some(Errno::EOPNOTSUPP | Errno::EISDIR)) => {
                let hidden = hidden_name(&folder);
                let file = File::options().write(true).read(true).create_new(true).open(&hidden)?;
                Ok(Self { file, folder, hidden: Some(hidden) })
            }
            Err(error) => Err(error),
        }
    }

    /// The file, to write into.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Gives it the name `target`, in the folder it was made in or another of that file system; what has the name is replaced
    /// only if `replace` is set.
    ///
    /// # Errors
    /// `AlreadyExists`, and those of linkat(2) and rename(2).
    pub fn name(mut self, target: &Path, replace: bool) -> io::Result<()> {
        if self.hidden.is_none() {
            match self.link(target) {
                Err(error) if replace && error.kind() == io::ErrorKind::AlreadyExists => {}
                other => return other,
            }
            // A link replaces nothing; a rename does.
            let hidden = hidden_name(&self.folder);
            self.link(&hidden)?;
            self.hidden = Some(hidden);
        }
        let hidden = self.hidden.clone().unwrap_or_default();
        if replace {
            fs::rename(&hidden, target)?;
            self.hidden = None;
            return Ok(());
        }
        // The hidden name is removed by `drop`.
        fs::hard_link(&hidden, target)
    }

    fn link(&self, path: &Path) -> io::Result<()> {
        let own = format!("/proc/self/fd/{}", self.file.as_raw_fd());
        linkat(AT_FDCWD, own.as_str(), AT_FDCWD, path, AtFlags::AT_SYMLINK_FOLLOW).map_err(io::Error::from)
    }
}

impl Drop for UnnamedFile {
    fn drop(&mut self) {
        if let Some(hidden) = &self.hidden {
            let _ = fs::remove_file(hidden);
        }
    }
}

/// A name in `folder` no other process takes.
fn hidden_name(folder: &Path) -> PathBuf {
    use std::sync::atomic::{AtomicU64, Ordering};
    static COUNT: AtomicU64 = AtomicU64::new(0);
    folder.join(format!(".model-cache-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn entries(folder: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_file_appears_whole_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let file = UnnamedFile::new_in(dir.path()).unwrap();
        file.file().write_all(b"half").unwrap();
        assert!(entries(dir.path()).is_empty());
        drop(file);
        assert!(entries(dir.path()).is_empty());
        let file = UnnamedFile::new_in(dir.path()).unwrap();
        file.file().write_all(b"whole").unwrap();
        file.name(&dir.path().join("a"), false).unwrap();
        assert_eq!(fs::read(dir.path().join("a")).unwrap(), b"whole");
        assert_eq!(entries(dir.path()), ["a"]);
    }

    #[test]
    fn a_name_that_is_taken_is_replaced_only_on_request() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("a");
        fs::write(&target, "old").unwrap();
        let file = UnnamedFile::new_in(dir.path()).unwrap();
        assert_eq!(file.name(&target, false).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read(&target).unwrap(), b"old");
        let file = UnnamedFile::new_in(dir.path()).unwrap();
        file.file().write_all(b"new").unwrap();
        file.name(&target, true).unwrap();
        assert_eq!(fs::read(&target).unwrap(), b"new");
        assert_eq!(entries(dir.path()), ["a"]);
    }
}
