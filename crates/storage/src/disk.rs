//! The disk under a store: who may use what is made on it, its free space, what kind of file system it is, and the [`Ballast`] kept
//! back on it.

use crate::{
    error::{Error, Result},
    unnamed::UnnamedFile,
};
use nix::fcntl::{FallocateFlags, OFlag, fallocate};
use std::{
    fs::{self, DirBuilder, File, Metadata, Permissions},
    io,
    os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

/// Creates `folder` and its parents where missing, for their owner alone, and says what it is.
///
/// # Errors
/// [`Error::NotAFolder`] if a file stands there, [`Error::ReadOnly`] if it may not be created, and
/// [`Error::NetworkFileSystem`] where libmdbx could not share it.
pub fn open_folder(folder: &Path) -> Result<Metadata> {
    let refused = |source| folder_error(folder, source);
    DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(refused)?;
    let metadata = fs::metadata(folder).map_err(refused)?;
    match network_file_system_of(folder).map_err(refused)? {
        Some(kind) => Err(Error::NetworkFileSystem { path: folder.to_owned(), kind }),
        None => Ok(metadata),
    }
}

/// Creates `folder` where missing, for those the folder it lies in is for ([`is_shared`]).
///
/// # Errors
/// As [`open_folder`].
pub(crate) fn open_inner_folder(folder: &Path) -> Result<()> {
    let refused = |source| folder_error(folder, source);
    let shared = is_shared(&open_folder(parent(folder))?);
    match DirBuilder::new().mode(0o700).create(folder) {
        Ok(()) if shared => {
            // Past the umask; the group's inheritance (setgid), which the new folder has of its parent, stays.
            let inherited = fs::symlink_metadata(folder).map_err(refused)?.mode() & 0o2000;
            fs::set_permissions(folder, Permissions::from_mode(0o770 | inherited)).map_err(refused)?;
        }
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            if !fs::metadata(folder).map_err(refused)?.is_dir() {
                return Err(Error::NotAFolder { path: folder.to_owned() });
            }
        }
        Err(source) => return Err(refused(source)),
    }
    Ok(())
}

/// Refuses a link at `path`: who may write into a folder must not lead its other users' writes elsewhere.
///
/// # Errors
/// [`Error::NotOurs`].
pub fn refuse_link(path: &Path) -> Result<()> {
    match fs::symlink_metadata(path) {
        Ok(there) if there.is_symlink() => Err(not_ours(path, &there)),
        _ => Ok(()),
    }
}

/// Whether what is made in this folder is for its group too.
///
/// Files and folders are for their owner alone, unless the folder they are made in can be written by its group, and not by everybody: that
/// is how people say that a folder is shared by a team (`chmod g+ws`).
pub fn is_shared(folder: &Metadata) -> bool {
    folder.mode() & 0o022 == 0o020
}

/// Creates the file at `path`, for those its folder is for; `None` if there is one.
fn create_file(path: &Path) -> io::Result<Option<File>> {
    let shared = is_shared(&fs::metadata(parent(path))?);
    // Neither the end of a link nor a file another process made is opened by this.
    match File::options().read(true).write(true).create_new(true).mode(0o600).open(path) {
        Ok(file) => {
            // Past the umask, which would take from the group what it was promised. FAT has modes of the mount's, which can't be changed.
            if shared && file.metadata()?.mode() & 0o660 != 0o660 {
                file.set_permissions(Permissions::from_mode(0o660))?;
            }
            Ok(Some(file))
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(None),
        Err(error) => Err(error),
    }
}

/// Opens the file at `path` to read and write, creating it where missing.
///
/// # Errors
/// [`Error::NotOurs`] for a link, and whatever else is no plain file; [`Error::ReadOnly`]; [`Error::Io`] with `action`.
pub(crate) fn open_file(path: &Path, action: &'static str) -> Result<File> {
    let failed = |source| file_error(path, action, source);
    loop {
        if let Some(file) = create_file(path).map_err(failed)? {
            return Ok(file);
        }
        check_file(path)?;
        match File::options().read(true).write(true).custom_flags(OFlag::O_NOFOLLOW.bits()).open(path) {
            // Given up, as the ballast is, between the two.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            opened => return opened.map_err(failed),
        }
    }
}

/// Creates an empty file at `path` where there is none. One that is there is not opened: other programs' locks of it may hang on this
/// process, and would go with the first description that is closed.
pub(crate) fn make_file(path: &Path) -> Result<()> {
    match create_file(path).map_err(|source| file_error(path, "create", source))? {
        Some(_) => Ok(()),
        None => check_file(path),
    }
}

/// # Errors
/// [`Error::NotOurs`] if something stands at `path` that is no plain file.
fn check_file(path: &Path) -> Result<()> {
    match fs::symlink_metadata(path) {
        Ok(there) if !there.is_file() => Err(not_ours(path, &there)),
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(file_error(path, "look at", error)),
        _ => Ok(()),
    }
}

fn not_ours(path: &Path, there: &Metadata) -> Error {
    let kind = there.file_type();
    let what = match () {
        () if kind.is_symlink() => "a symbolic link",
        () if kind.is_dir() => "a folder",
        () if kind.is_fifo() || kind.is_socket() => "a pipe or socket",
        () => "a device",
    };
    Error::NotOurs { path: path.to_owned(), what }
}

fn folder_error(folder: &Path, source: io::Error) -> Error {
    let path = folder.to_owned();
    match source.kind() {
        io::ErrorKind::AlreadyExists | io::ErrorKind::NotADirectory => Error::NotAFolder { path },
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => Error::ReadOnly { path, source },
        _ => Error::Io { action: "create the folder", path, source },
    }
}

fn file_error(path: &Path, action: &'static str, source: io::Error) -> Error {
    match source.kind() {
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            Error::ReadOnly { path: parent(path).to_owned(), source }
        }
        _ => Error::Io { action, path: path.to_owned(), source },
    }
}

/// The folder of `path`, also where it is one word.
fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
        Some(parent) => parent,
        None => path,
    }
}

/// The network file system `path` lies on, if it is one libmdbx can't share.
fn network_file_system_of(path: &Path) -> io::Result<Option<&'static str>> {
    Ok(network_file_system(nix::sys::statfs::statfs(path)?.filesystem_type().0 as i64))
}

/// The disk a path lies on.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct FileSystem {
    /// What kind it is, as people call it; its number where that is not known here.
    pub kind: String,
    /// Whether it is one over a network, which libmdbx can't share.
    pub is_network: bool,
    /// Whether it is mounted so that nobody can write.
    pub is_read_only: bool,
    /// Bytes it has in all.
    pub total_bytes: u64,
    /// Bytes an ordinary user may still write.
    pub free_bytes: u64,
    /// Files it can have in all, and how many more; `None` where it has no such limit.
    pub files: Option<(u64, u64)>,
}

/// What the file system of `path` is, and has left.
///
/// # Errors
/// The system's.
pub fn file_system(path: &Path) -> io::Result<FileSystem> {
    let magic = nix::sys::statfs::statfs(path)?.filesystem_type().0 as i64;
    let stat = nix::sys::statvfs::statvfs(path)?;
    let network = network_file_system(magic);
    let local = match magic as u32 {
        0xEF53 => "ext4",
        0x5846_5342 => "XFS",
        0x9123_683E => "btrfs",
        0xF2F5_2010 => "F2FS",
        0x2FC1_2FC1 => "ZFS",
        0x0102_1994 => "tmpfs",
        0x794C_7630 => "overlayfs",
        0x6573_5546 => "FUSE",
        _ => "",
    };
    let kind = match network.unwrap_or(local) {
        "" => format!("{:#x}", magic as u32),
        known => known.to_owned(),
    };
    let block_bytes = stat.fragment_size() as u64;
    let files = (stat.files() > 0).then_some((stat.files() as u64, stat.files_available() as u64));
    Ok(FileSystem {
        kind,
        is_network: network.is_some(),
        is_read_only: stat.flags().contains(nix::sys::statvfs::FsFlags::ST_RDONLY),
        total_bytes: stat.blocks() as u64 * block_bytes,
        free_bytes: stat.blocks_available() as u64 * block_bytes,
        files,
    })
}

/// Whether this process may write at `path`.
pub fn may_write(path: &Path) -> bool {
    nix::unistd::access(path, nix::unistd::AccessFlags::W_OK).is_ok()
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
    const ACTION: &str = "make room for";
    let failed = |source: io::Error| match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Error::NoSpace {
            action: ACTION,
            path: path.to_owned(),
            needed_bytes: bytes,
            free_bytes: free_bytes(path).unwrap_or(0),
        },
        _ => file_error(path, ACTION, source),
    };
    let file = open_file(path, ACTION).map_err(|error| match error {
        Error::Io { source, .. } => failed(source),
        other => other,
    })?;
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

    /// Bytes of disk it has now: fewer than it is to have where the disk was full when it was last taken.
    pub fn taken_bytes(&self) -> u64 {
        fs::symlink_metadata(&self.path).map_or(0, |metadata| metadata.blocks() * 512)
    }

    /// Takes its room, unless it has it or the disk has less than twice as much free.
    pub fn take(&self) -> Result<()> {
        if self.taken_bytes() >= self.bytes || free_bytes(self.folder())? < 2 * self.bytes {
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
        if free_bytes(self.folder())? >= self.bytes {
            return Ok(GivenUp { ballast: self, given_up: false });
        }
        let given_up = self.give_up()?;
        tracing::debug!(path = %self.path.display(), "the disk is full: ballast given up");
        Ok(given_up)
    }

    /// Gives its room up until the guard is dropped.
    pub fn give_up(&self) -> Result<GivenUp<'_>> {
        match fs::remove_file(&self.path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(Error::Io { action: "give up", path: self.path.clone(), source })
            }
            _ => Ok(GivenUp { ballast: self, given_up: true }),
        }
    }

    fn folder(&self) -> &Path {
        self.path.parent().unwrap_or(&self.path)
    }
}

impl Drop for GivenUp<'_> {
    fn drop(&mut self) {
        let taken = if self.given_up { self.ballast.take_back() } else { self.ballast.take() };
        if let Err(error) = taken {
            tracing::debug!(path = %self.ballast.path.display(), %error, "the ballast could not be taken back");
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
