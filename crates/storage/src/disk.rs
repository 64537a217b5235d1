//! The disk under a store: its free space, what kind of file system it is, and the [`Ballast`] kept back on it.

use crate::{
    error::{Error, Result},
    unnamed::UnnamedFile,
};
use nix::fcntl::{FallocateFlags, fallocate};
use std::{
    fs::{self, File, Metadata},
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

/// Creates `folder` and its parents where missing, and says what it is.
///
/// # Errors
/// [`Error::NotAFolder`] if a file stands there, [`Error::ReadOnly`] if it may not be created, and
/// [`Error::NetworkFileSystem`] where libmdbx could not share it.
pub fn open_folder(folder: &Path) -> Result<Metadata> {
    let refused = |source: io::Error| {
        let path = folder.to_owned();
        match source.kind() {
            io::ErrorKind::AlreadyExists | io::ErrorKind::NotADirectory => Error::NotAFolder { path },
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => Error::ReadOnly { path, source },
            _ => Error::Io { action: "create the folder", path, source },
        }
    };
    fs::create_dir_all(folder).map_err(refused)?;
    let metadata = fs::metadata(folder).map_err(refused)?;
    let kind = nix::sys::statfs::statfs(folder).map_err(|code| refused(code.into()))?.filesystem_type();
    match network_file_system(kind.0 as i64) {
        Some(kind) => Err(Error::NetworkFileSystem { path: folder.to_owned(), kind }),
        None => Ok(metadata),
    }
}

/// The network file system a `statfs` type number belongs to (linux/magic.h and the file systems' own sources).
fn network_file_system(magic: i64) -> Option<&'static str> {
    // The field's width differs between architectures; the numbers are 32 bits.
    match magic as u32 {
        0x6969 => Some("NFS"),
        0x517B | 0xFE53_4D42 | 0xFF53_4D42 => Some("SMB"),
        0x5346_414F | 0x6B41_4653 => Some("AFS"),
        0x00C3_6400 => Some("Ceph"),
        0x0BD0_0BD0 => Some("Lustre"),
        0x4750_4653 => Some("GPFS"),
        0x0102_1997 => Some("9P"),
        0x7375_7245 => Some("Coda"),
        0x564C => Some("NCP"),
        0xAAD7_AAEA => Some("PanFS"),
        0x1983_0326 => Some("BeeGFS"),
        _ => None,
    }
}

/// Bytes an ordinary user may still write on the file system of `path`.
pub fn free_bytes(path: &Path) -> Result<u64> {
    let stat = nix::sys::statvfs::statvfs(path).map_err(|code| Error::Io {
        action: "ask for the free space of",
        path: path.to_owned(),
        source: code.into(),
    })?;
    Ok(stat.blocks_available() as u64 * stat.fragment_size() as u64)
}

/// Whether this process may write `bytes` more on the file system of `folder`.
///
/// What is free for everybody, or, where that is too little, what the file system gives when asked: root may have filled the part that
/// is kept for root, and then has room that nobody else has.
///
/// # Errors
/// [`Error::Io`] if the file system can't be asked.
pub fn has_room(folder: &Path, bytes: u64) -> Result<bool> {
    if free_bytes(folder)? >= bytes {
        return Ok(true);
    }
    // Given back as it is closed. No file can be made on a disk without room for one.
    let Ok(probe) = UnnamedFile::new_in(folder) else { return Ok(false) };
    Ok(fallocate(probe.file(), FallocateFlags::FALLOC_FL_KEEP_SIZE, 0, bytes as i64).is_ok())
}

/// Refuses to `action` in `folder` with less than `needed_bytes` free on its disk.
pub(crate) fn check_room(folder: &Path, action: &'static str, needed_bytes: u64) -> Result<()> {
    if has_room(folder, needed_bytes)? { Ok(()) } else { Err(no_space(folder, action, needed_bytes)) }
}

/// The error for an `action` in `folder` that needs more than the disk has.
pub(crate) fn no_space(folder: &Path, action: &'static str, needed_bytes: u64) -> Error {
    match free_bytes(folder) {
        Ok(free_bytes) => Error::NoSpace { action, path: folder.to_owned(), needed_bytes, free_bytes },
        Err(error) => error,
    }
}

/// Bytes of disk the files below `folder` take up, holes not counted: what `du` says.
pub fn allocated_bytes(folder: &Path) -> Result<u64> {
    let failed = |source| Error::Io { action: "measure", path: folder.to_owned(), source };
    let mut total = 0;
    for entry in fs::read_dir(folder).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let metadata = match entry.metadata() {
            // Files such as the ballast come and go.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            other => other.map_err(failed)?,
        };
        total += if metadata.is_dir() { allocated_bytes(&entry.path())? } else { metadata.blocks() * 512 };
    }
    Ok(total)
}

/// Takes disk blocks for the first `bytes` of `path`, creating it, without changing its size; says what it is.
pub(crate) fn preallocate(path: &Path, bytes: u64) -> Result<Metadata> {
    let failed = |source: io::Error| match source.kind() {
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            Error::ReadOnly { path: path.parent().unwrap_or(path).to_owned(), source }
        }
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Error::NoSpace {
            action: "make room for",
            path: path.to_owned(),
            needed_bytes: bytes,
            free_bytes: free_bytes(path).unwrap_or(0),
        },
        _ => Error::Io { action: "make room for", path: path.to_owned(), source },
    };
    let file = File::options().read(true).write(true).create(true).truncate(false).open(path).map_err(failed)?;
    match fallocate(&file, FallocateFlags::FALLOC_FL_KEEP_SIZE, 0, bytes as i64) {
        // A file system without fallocate takes the blocks when they are written, as any program's.
        Ok(()) | Err(nix::errno::Errno::EOPNOTSUPP) => file.metadata().map_err(failed),
        Err(code) => Err(failed(code.into())),
    }
}

/// A preallocated file given up when the disk is full, so that what frees space has room to work.
///
/// libmdbx writes an extents environment through its mapping, where a full disk is SIGBUS and not an error code; so a few
/// MiB must be there before any of its transactions.
#[derive(Debug)]
pub struct Ballast {
    path: PathBuf,
    bytes: u64,
}

/// While it lives the ballast is given up; dropped, it takes its room back, as much of it as the disk has.
#[derive(Debug)]
pub struct GivenUp<'a> {
    ballast: &'a Ballast,
    /// Whether there was need to.
    given_up: bool,
}

/// What a ballast that takes its room back leaves free: another process may have seen that room and begun a transaction.
const LEFT_FREE_BYTES: u64 = 4 << 20;

impl Ballast {
    /// The ballast at `path`, of `bytes`. Nothing is written yet.
    pub fn new(path: PathBuf, bytes: u64) -> Self {
        Self { path, bytes }
    }

    /// Takes its room, unless it has it or the disk has less than twice as much free.
    pub fn take(&self) -> Result<()> {
        let allocated = fs::metadata(&self.path).map(|metadata| metadata.blocks() * 512).unwrap_or(0);
        if allocated >= self.bytes || free_bytes(self.folder())? < 2 * self.bytes {
            return Ok(());
        }
        preallocate(&self.path, self.bytes).map(drop)
    }

    /// Takes back what was given up, on a disk that is still full. Were it left to others, the next time to free something
    /// would find no ballast.
    fn take_back(&self) -> Result<()> {
        let bytes = free_bytes(self.folder())?.saturating_sub(LEFT_FREE_BYTES).min(self.bytes);
        if bytes == 0 { Ok(()) } else { preallocate(&self.path, bytes).map(drop) }
    }

    /// Gives its room up until the guard is dropped, if the disk has less than that free; else does nothing.
    pub fn give_up_if_needed(&self) -> Result<GivenUp<'_>> {
        let given_up = free_bytes(self.folder())? < self.bytes;
        if given_up {
            match fs::remove_file(&self.path) {
                Err(source) if source.kind() != io::ErrorKind::NotFound => {
                    return Err(Error::Io { action: "give up", path: self.path.clone(), source });
                }
                _ => tracing::warn!(path = %self.path.display(), "the disk is full: ballast given up"),
            }
        }
        Ok(GivenUp { ballast: self, given_up })
    }

    fn folder(&self) -> &Path {
        self.path.parent().unwrap_or(&self.path)
    }
}

impl Drop for GivenUp<'_> {
    fn drop(&mut self) {
        let taken = if self.given_up { self.ballast.take_back() } else { self.ballast.take() };
        if let Err(error) = taken {
            tracing::warn!(path = %self.ballast.path.display(), %error, "the ballast could not be taken back");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn network_file_systems_are_told_by_their_number_and_local_ones_pass() {
        assert_eq!(network_file_system(0x6969), Some("NFS"));
        // CIFS has its highest bit set: a sign-extended number must still match.
        assert_eq!(network_file_system(0xFF53_4D42_u32 as i32 as i64), Some("SMB"));
        for local in [0xEF53, 0x5846_5342, 0x9123_683E, 0x0102_1994] {
            assert_eq!(network_file_system(local), None);
        }
    }

    #[test]
    fn a_file_where_the_folder_should_be_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "x").unwrap();
        assert!(matches!(open_folder(&file), Err(Error::NotAFolder { path }) if path == file));
        assert!(matches!(open_folder(&file.join("below")), Err(Error::NotAFolder { .. })));
    }

    #[test]
    fn the_ballast_takes_blocks_and_counts_as_allocated() {
        let dir = tempfile::tempdir().unwrap();
        Ballast::new(dir.path().join("ballast"), 1 << 20).take().unwrap();
        assert!(allocated_bytes(dir.path()).unwrap() >= 1 << 20);
    }
}
