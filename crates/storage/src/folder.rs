//! A folder that is written into and never left: [`Folder`].

use nix::{
    errno::Errno,
    fcntl::{OFlag, openat},
    sys::stat::{Mode, mkdirat},
};
use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
    path::{Path, PathBuf},
};

/// A folder held open, so that what is made below it lands in it, whatever becomes of its path meanwhile, and whoever puts links in its way.
#[derive(Debug)]
pub struct Folder {
    fd: OwnedFd,
}

impl Folder {
    /// The folder at `path`, links followed: the path is its caller's.
    ///
    /// # Errors
    /// Those of open(2).
    pub fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        Ok(Self { fd: nix::fcntl::open(path, flags, Mode::empty())? })
    }

    /// The folder called `name` in this one, made where missing. `name` is one part of a path, and neither "." nor "..".
    ///
    /// # Errors
    /// `NotADirectory` for whatever else stands there, links to folders among it; those of mkdir(2) and open(2).
    pub fn enter(&self, name: &str) -> io::Result<Self> {
        debug_assert!(!name.is_empty() && name != "." && name != ".." && !name.contains('/'), "{name}");
        match mkdirat(&self.fd, name, Mode::from_bits_truncate(0o777)) {
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(code) => return Err(code.into()),
        }
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let opened = openat(&self.fd, name, flags, Mode::empty());
        Ok(Self { fd: opened.map_err(|code| if code == Errno::ELOOP { Errno::ENOTDIR } else { code })? })
    }

    /// A path that leads to this very folder for as long as it is held open.
    pub fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.fd.as_raw_fd()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs, os::unix::fs::symlink};

    #[test]
    fn a_link_is_not_entered_and_a_folder_that_moves_is_still_the_one() {
        let dir = tempfile::tempdir().unwrap();
        let (inside, outside) = (dir.path().join("inside"), dir.path().join("outside"));
        fs::create_dir(&inside).unwrap();
        fs::create_dir(&outside).unwrap();
        symlink(&outside, inside.join("link")).unwrap();
        fs::write(inside.join("file"), "").unwrap();
        let folder = Folder::open(&inside).unwrap();
        for name in ["link", "file"] {
            assert_eq!(folder.enter(name).unwrap_err().kind(), io::ErrorKind::NotADirectory, "{name}");
        }
        let entered = folder.enter("made").unwrap();
        // Replaced by a link after it was entered.
        fs::rename(inside.join("made"), inside.join("moved")).unwrap();
        symlink(&outside, inside.join("made")).unwrap();
        fs::write(entered.path().join("x"), "x").unwrap();
        assert!(inside.join("moved/x").is_file() && !outside.join("x").exists());
    }
}
