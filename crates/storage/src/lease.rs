//! Leases: kernel byte-range locks that say who reads and who fills or frees what.
//!
//! A lease on number `n` is an open-file-description lock (`F_OFD_SETLK`, fcntl(2)) on byte `n` of one empty file: shared for a
//! reader, exclusive for the one who fills or frees. The kernel drops it when its process dies, however it dies: no stale state,
//! no heartbeat. Every lease opens the file anew, so that conflicts show inside one process too.

use crate::error::{Error, Result};
use nix::{
    errno::Errno,
    fcntl::{FcntlArg, fcntl},
    libc,
};
use std::{
    collections::HashSet,
    fs::{self, File},
    io,
    ops::Range,
    os::{
        fd::AsRawFd,
        unix::fs::{MetadataExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
};

/// The largest number a lease may have. Bytes beyond it are the file's own.
pub const MAX_LEASE_ID: u64 = (1 << 61) - 1;
/// Here each process holds the byte of its PID namespace.
const NAMESPACES: Range<i64> = 1 << 61..(1 << 61) + (1 << 33);

/// The file leases are taken in.
#[derive(Debug)]
pub struct LeaseFile {
    path: PathBuf,
    /// Holds the shared lock on this PID namespace's byte while the store is open here.
    namespace: File,
}

/// A lease held. Dropped, it is given back.
#[derive(Debug)]
pub struct Lease {
    file: File,
    id: u64,
    /// The process to unlock it in, if it is exclusive.
    exclusive_of: Option<u32>,
}

impl LeaseFile {
    /// Opens the file at `path`, creating it, and takes this PID namespace's place in it.
    ///
    /// # Errors
    /// [`Error::OtherPidNamespace`] while a process of another PID namespace has it open: libmdbx tells its readers and
    /// writers apart by process id, so two namespaces would crash each other.
    pub fn open(path: PathBuf) -> Result<Self> {
        let namespace = crate::disk::open_file(&path, "open")?;
        let own = own_namespace()?;
        set(&path, &namespace, libc::F_RDLCK, own, 1)?;
        for others in [NAMESPACES.start..own, own + 1..NAMESPACES.end] {
            if conflict(&path, &namespace, libc::F_WRLCK, others.start, others.end - others.start)?.is_some() {
                return Err(Error::OtherPidNamespace { path });
            }
        }
        Ok(Self { path, namespace })
    }

    /// A shared lease on `id`; `None` while somebody holds it exclusively.
    pub fn try_shared(&self, id: u64) -> Result<Option<Lease>> {
        self.try_lock(id, false)
    }

    /// An exclusive lease on `id`; `None` while somebody holds any.
    pub fn try_exclusive(&self, id: u64) -> Result<Option<Lease>> {
        self.try_lock(id, true)
    }

    /// Whether anybody, in any process, holds a lease on `id`.
    pub fn is_held(&self, id: u64) -> Result<bool> {
        Ok(conflict(&self.path, &self.open_anew()?, libc::F_WRLCK, checked(id), 1)?.is_some())
    }

    /// Whether somebody, in any process, holds `id` exclusively.
    pub fn is_held_exclusively(&self, id: u64) -> Result<bool> {
        Ok(conflict(&self.path, &self.open_anew()?, libc::F_RDLCK, checked(id), 1)?.is_some())
    }

    /// The numbers below `end` that anybody, in any process, holds a lease on.
    ///
    /// Cost: a system call or two for each of them, whatever `end` is.
    pub fn held_below(&self, end: u64) -> Result<HashSet<u64>> {
        let file = self.open_anew()?;
        let mut found = HashSet::new();
        let all = 0..checked(end);
        let mut gaps = vec![all];
        while let Some(gap) = gaps.pop() {
            // The kernel names one lock of a range, and not always the first.
            if let Some(lock) = conflict(&self.path, &file, libc::F_WRLCK, gap.start, gap.end - gap.start)? {
                let held = lock.start.max(gap.start)..lock.end.min(gap.end);
                // A lease is one byte; what some other program locked must not be counted one by one.
                found.insert(held.start as u64);
                gaps.extend([gap.start..held.start, held.end..gap.end]);
            }
        }
        Ok(found)
    }

    /// The processes that hold a lease on `id`, as far as this one may look.
    ///
    /// The kernel names no process for such locks, so this walks `/proc/*/fdinfo`: milliseconds, for messages to people only.
    pub fn holders(&self, id: u64) -> Vec<u32> {
        let locks = Self::locks_in(&self.path).into_iter();
        let mut pids: Vec<u32> = locks.filter(|lock| lock.id == Some(id)).map(|lock| lock.process).collect();
        pids.sort_unstable();
        pids.dedup();
        pids
    }

    /// A description of its own of the very file that was opened, also where another took its path since.
    fn open_anew(&self) -> Result<File> {
        let path = format!("/proc/self/fd/{}", self.namespace.as_raw_fd());
        let opened = File::options().read(true).write(true).open(path);
        opened.map_err(|source| Error::Io { action: "open", path: self.path.clone(), source })
    }

    fn try_lock(&self, id: u64, exclusive: bool) -> Result<Option<Lease>> {
        let file = self.open_anew()?;
        let kind = if exclusive { libc::F_WRLCK } else { libc::F_RDLCK };
        let exclusive_of = exclusive.then(std::process::id);
        Ok(set(&self.path, &file, kind, checked(id), 1)?.then_some(Lease { file, id, exclusive_of }))
    }
}

/// A lock of the lease file that some process holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Locked {
    /// The process.
    pub process: u32,
    /// The number of the lease; `None` for what each process holds that has the store open.
    pub id: Option<u64>,
    /// Whether it is exclusive: a fill, or a free.
    pub exclusive: bool,
}

impl LeaseFile {
    /// Every lock that processes this one may look at hold in the lease file at `path`, without opening it.
    ///
    /// The kernel names no process for such locks, so this walks `/proc/*/fdinfo`: milliseconds.
    pub fn locks_in(path: &Path) -> Vec<Locked> {
        let (Ok(target), Ok(processes)) = (fs::canonicalize(path), fs::read_dir("/proc")) else { return Vec::new() };
        let pids = processes.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
        pids.flat_map(|pid| locks_of(pid, &target).unwrap_or_default()).collect()
    }

    /// Whether processes of this PID namespace, and whether some of another, have the store of the lease file at `path` open. Nothing is
    /// written, or locked.
    ///
    /// # Errors
    /// [`Error::Io`], also where there is no such file.
    pub fn namespaces_in(path: &Path) -> Result<(bool, bool)> {
        let io = |source| Error::Io { action: "open", path: path.to_owned(), source };
        let file = File::options().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path).map_err(io)?;
        let own = own_namespace()?;
        let held = |range: Range<i64>| conflict(path, &file, libc::F_WRLCK, range.start, range.end - range.start);
        let others = held(NAMESPACES.start..own)?.is_some() || held(own + 1..NAMESPACES.end)?.is_some();
        Ok((held(own..own + 1)?.is_some(), others))
    }
}

impl Lease {
    /// The number it is on.
    pub fn id(&self) -> u64 {
        self.id
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        // A shared lease goes with its description alone: a forked child that inherited it keeps what it reads protected. An
        // exclusive one must be free now, whoever inherited the description; but a child must not unlock what its parent
        // still fills or frees under.
        if self.exclusive_of == Some(std::process::id()) {
            let _ = fcntl(&self.file, FcntlArg::F_OFD_SETLK(&range(libc::F_UNLCK, self.id as i64, 1)));
        }
    }
}

/// The byte of this PID namespace.
fn own_namespace() -> Result<i64> {
    const PATH: &str = "/proc/self/ns/pid";
    let inode = fs::metadata(PATH);
    let inode = inode.map_err(|source| Error::Io { action: "find the PID namespace at", path: PATH.into(), source })?;
    // Numbers of namespaces are 32 bits wide.
    Ok(NAMESPACES.start + i64::from(inode.ino() as u32))
}

/// The locks process `pid` has on single bytes of the file `target`.
fn locks_of(pid: u32, target: &Path) -> io::Result<Vec<Locked>> {
    let mut found = Vec::new();
    for fd in fs::read_dir(format!("/proc/{pid}/fd"))? {
        let fd = fd?;
        if fs::read_link(fd.path()).is_ok_and(|path| path == target) {
            let name = fd.file_name();
            let info = fs::read_to_string(format!("/proc/{pid}/fdinfo/{}", name.to_string_lossy())).unwrap_or_default();
            found.extend(info.lines().filter_map(|line| parse_lock(pid, line)));
        }
    }
    Ok(found)
}

/// A line of `/proc/<pid>/fdinfo/<fd>`: `lock: 1: OFDLCK  ADVISORY  READ -1 fe:00:131 7 7`.
fn parse_lock(process: u32, line: &str) -> Option<Locked> {
    let words: Vec<&str> = line.strip_prefix("lock:")?.split_whitespace().collect();
    let [.., kind, _, _, start, end] = words[..] else { return None };
    let byte: u64 = start.parse().ok().filter(|_| start == end)?;
    Some(Locked { process, id: (byte <= MAX_LEASE_ID).then_some(byte), exclusive: kind == "WRITE" })
}

fn checked(id: u64) -> i64 {
    assert!(id <= MAX_LEASE_ID, "lease number {id} is beyond {MAX_LEASE_ID}");
    id as i64
}

fn range(kind: i32, start: i64, bytes: i64) -> libc::flock {
    libc::flock { l_type: kind as i16, l_whence: libc::SEEK_SET as i16, l_start: start, l_len: bytes, l_pid: 0 }
}

/// Takes a lock without waiting; false if another description holds one against it.
fn set(path: &Path, file: &File, kind: i32, start: i64, bytes: i64) -> Result<bool> {
    match fcntl(file, FcntlArg::F_OFD_SETLK(&range(kind, start, bytes))) {
        Ok(_) => Ok(true),
        Err(Errno::EAGAIN | Errno::EACCES) => Ok(false),
        Err(code) => Err(Error::Io { action: "take a lease in", path: path.to_owned(), source: code.into() }),
    }
}

/// Bytes another description has locked so that `kind` on this range would have to wait; of several one, as the kernel likes.
fn conflict(path: &Path, file: &File, kind: i32, start: i64, bytes: i64) -> Result<Option<Range<i64>>> {
    if bytes == 0 {
        return Ok(None);
    }
    let mut range = range(kind, start, bytes);
    match fcntl(file, FcntlArg::F_OFD_GETLK(&mut range)) {
        Ok(_) if range.l_type == libc::F_UNLCK as i16 => Ok(None),
        // A length of 0 is to the end of all files.
        Ok(_) if range.l_len == 0 => Ok(Some(range.l_start..i64::MAX)),
        Ok(_) => Ok(Some(range.l_start..range.l_start + range.l_len)),
        Err(code) => Err(Error::Io { action: "look for leases in", path: path.to_owned(), source: code.into() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::{collection::vec, prelude::*};

    fn leases() -> (tempfile::TempDir, LeaseFile) {
        let dir = tempfile::tempdir().unwrap();
        let leases = LeaseFile::open(dir.path().join("leases")).unwrap();
        (dir, leases)
    }

    #[test]
    fn readers_share_and_a_filler_is_alone_also_within_one_process() {
        let (_dir, leases) = leases();
        let first = leases.try_shared(7).unwrap().unwrap();
        let second = leases.try_shared(7).unwrap().unwrap();
        assert!(leases.try_exclusive(7).unwrap().is_none());
        assert!(leases.try_exclusive(8).unwrap().is_some());
        drop(first);
        assert!(leases.is_held(7).unwrap());
        assert!(!leases.is_held_exclusively(7).unwrap());
        drop(second);
        assert!(!leases.is_held(7).unwrap());
        let filler = leases.try_exclusive(7).unwrap().unwrap();
        assert!(leases.is_held_exclusively(7).unwrap());
        assert!(leases.try_shared(7).unwrap().is_none());
        drop(filler);
        assert!(leases.try_shared(7).unwrap().is_some());
    }

    proptest! {
        #[test]
        fn every_lease_that_is_held_is_found_and_no_other(ids in vec(prop_oneof![0..20_u64, 1 << 40..(1_u64 << 40) + 5], 0..12), end in 0..25_u64) {
            let (_dir, leases) = leases();
            let held: Vec<Lease> = ids.iter().map(|&id| leases.try_shared(id).unwrap().unwrap()).collect();
            let below = |end: u64| ids.iter().copied().filter(|&id| id < end).collect::<HashSet<u64>>();
            prop_assert_eq!(leases.held_below(MAX_LEASE_ID).unwrap(), below(MAX_LEASE_ID));
            prop_assert_eq!(leases.held_below(end).unwrap(), below(end));
            drop(held);
            prop_assert!(leases.held_below(MAX_LEASE_ID).unwrap().is_empty());
        }
    }

    #[test]
    fn the_holder_of_a_lease_is_named() {
        let (_dir, leases) = leases();
        let _lease = leases.try_shared(3).unwrap().unwrap();
        assert_eq!(leases.holders(3), [std::process::id()]);
        assert!(leases.holders(4).is_empty());
        let _filler = leases.try_exclusive(5).unwrap().unwrap();
        let mut locks: Vec<_> = LeaseFile::locks_in(&leases.path).into_iter().map(|lock| (lock.id, lock.exclusive)).collect();
        locks.sort_unstable();
        assert_eq!(locks, [(None, false), (Some(3), false), (Some(5), true)]);
        assert_eq!(LeaseFile::namespaces_in(&leases.path).unwrap(), (true, false));
    }

    #[test]
    fn a_second_opener_of_the_same_namespace_is_welcome() {
        let (dir, _leases) = leases();
        assert!(LeaseFile::open(dir.path().join("leases")).is_ok());
    }

    #[test]
    fn another_pid_namespace_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("leases");
        let other = crate::disk::open_file(&path, "open").unwrap();
        let inode = fs::metadata("/proc/self/ns/pid").unwrap().ino() as u32;
        assert!(set(&path, &other, libc::F_RDLCK, NAMESPACES.start + i64::from(inode ^ 1), 1).unwrap());
        assert!(matches!(LeaseFile::open(path), Err(Error::OtherPidNamespace { .. })));
    }
}
