//! An environment looked at without being opened: what its first pages say, and a copy that can be opened in its place.
//!
//! Nothing of it is written, locked or repaired, so it may be damaged, in use by other processes, or on a full disk. For who has to say
//! what is wrong with it.

use crate::{
    disk,
    error::{Error, Result},
    mdbx,
};
use nix::{
    errno::Errno,
    fcntl::OFlag,
    unistd::{Whence, lseek64},
};
use std::{
    fs::File,
    io,
    os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::Duration,
};

/// What the first pages of an environment say of it, and the file system of its data file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct EnvironmentInfo {
    /// Bytes of a page.
    pub page_bytes: u64,
    /// Bytes up to the end of the last page that was ever given out.
    pub used_bytes: u64,
    /// The most its data file may have.
    pub limit_bytes: u64,
    /// The last transaction that was committed.
    pub last_transaction: u64,
    /// Length of the data file, holes counted.
    pub file_bytes: u64,
    /// Disk space of the data file.
    pub disk_bytes: u64,
}

/// How often a copy is begun anew because a transaction was committed meanwhile; and the wait between two.
const COPIES: u32 = 40;
const BETWEEN_COPIES: Duration = Duration::from_millis(10);
/// The pages that say which transaction was the last one: three, of 64 KiB at most.
const META_BYTES: usize = 3 * (64 << 10);

/// What the environment in `folder` is; `None` where there is no data file, or an empty one, of which libmdbx would make a new one.
///
/// # Errors
/// [`Error::BadEnvironment`] for a file that is not libmdbx's, damaged, or of another version of it, which is then named; [`Error::Io`].
pub fn environment_info(folder: &Path) -> Result<Option<EnvironmentInfo>> {
    let Some(file) = open_data_file(folder)? else { return Ok(None) };
    let metadata = file.metadata().map_err(|source| failed("look at", folder, source))?;
    if metadata.len() == 0 {
        return Ok(None);
    }
    let meta = mdbx::meta::read(&file).map_err(|source| failed("read", folder, source))?;
    let meta =
        meta.map_err(|what| Error::BadEnvironment { action: "open", environment: folder.to_owned(), source: what.into() })?;
    Ok(Some(EnvironmentInfo {
        page_bytes: meta.page_bytes,
        used_bytes: meta.used_pages * meta.page_bytes,
        limit_bytes: meta.limit_pages * meta.page_bytes,
        last_transaction: meta.transaction,
        file_bytes: metadata.len(),
        disk_bytes: metadata.blocks() * 512,
    }))
}

/// Copies the data file of the environment in `folder` into the folder `target`, where it can be opened as the environment it was.
///
/// The copy is as of one transaction, whoever commits meanwhile: pages of a snapshot are not written while it is the last one, and a copy during
/// which another became the last one is made anew. False if that never stopped: the copy may then be of two transactions.
///
/// Cost: reads all that is no hole.
///
/// # Errors
/// [`Error::NoSpace`] if `target` has no room for it; [`Error::Io`], also where there is no data file.
pub fn copy_environment(folder: &Path, target: &Path) -> Result<bool> {
    let missing = || failed("copy", folder, io::ErrorKind::NotFound.into());
    let source = open_data_file(folder)?.ok_or_else(missing)?;
    let path = target.join(mdbx::DATA_FILE);
    for _ in 0..COPIES {
        let before = meta_pages(&source).map_err(|source| failed("read", folder, source))?;
        let needed_bytes = source.metadata().map_err(|source| failed("look at", folder, source))?.blocks() * 512;
        disk::check_room(target, "copy records", needed_bytes)?;
        let copy = File::create(&path).map_err(|source| failed("create", &path, source))?;
        copy_data(&source, &copy).map_err(|source| failed("copy", folder, source))?;
        if meta_pages(&source).map_err(|source| failed("read", folder, source))? == before {
            return Ok(true);
        }
        std::thread::sleep(BETWEEN_COPIES);
    }
    Ok(false)
}

/// The processes that have a reader's place in the environment of records in `folder`, and how many transactions were committed since each
/// began to read: pages freed since can't be used again. A process that died keeps its place until the next write clears it.
///
/// Only for an environment some other process has open: it is opened beside that, to read.
///
/// # Errors
/// [`Error::Engine`], as for one that is open in this process.
pub fn reader_slots(folder: &Path) -> Result<Vec<(u32, u64)>> {
    mdbx::reader_slots(folder)
}

/// A description of the data file in `folder` that can only read; `None` where there is none.
pub(crate) fn open_data_file(folder: &Path) -> Result<Option<File>> {
    let path = folder.join(mdbx::DATA_FILE);
    // A pipe in its place must not keep us.
    let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
    match File::options().read(true).custom_flags(flags.bits()).open(&path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
        Err(error) if error.raw_os_error() == Some(Errno::ELOOP as i32) => Err(Error::NotOurs { path, what: "a symbolic link" }),
        Err(source) => Err(failed("open", &path, source)),
    }
}

fn meta_pages(file: &File) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; META_BYTES];
    let mut read = 0;
    while read < bytes.len() {
        match file.read_at(&mut bytes[read..], read as u64)? {
            0 => break,
            more => read += more,
        }
    }
    bytes.truncate(read);
    Ok(bytes)
}

/// Copies what is no hole.
fn copy_data(source: &File, target: &File) -> io::Result<()> {
    let end = source.metadata()?.len();
    target.set_len(end)?;
    let mut buffer = vec![0; 1 << 20];
    let mut at = 0;
    while at < end {
        at = match lseek64(source, at as i64, Whence::SeekData) {
            Ok(data) => data as u64,
            // No data from here on.
            Err(Errno::ENXIO) => break,
            // A file system without holes.
            Err(Errno::EINVAL) => at,
            Err(code) => return Err(code.into()),
        };
        let hole = lseek64(source, at as i64, Whence::SeekHole).map_or(end, |hole| (hole as u64).min(end));
        while at < hole {
            let wanted = (hole - at).min(buffer.len() as u64) as usize;
            match source.read_at(&mut buffer[..wanted], at)? {
                // Cut short meanwhile.
                0 => return Ok(()),
                read => {
                    target.write_all_at(&buffer[..read], at)?;
                    at += read as u64;
                }
            }
        }
    }
    Ok(())
}

fn failed(action: &'static str, path: &Path, source: io::Error) -> Error {
    let path: PathBuf = path.to_owned();
    match source.kind() {
        io::ErrorKind::PermissionDenied => Error::ReadOnly { path, source },
        _ => Error::Io { action, path, source },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{StorageRegistry, Table};
    use std::{
        fs,
        sync::atomic::{AtomicBool, Ordering},
    };

    const TABLE: Table<[u8]> = Table::new("t");

    #[test]
    fn a_copy_taken_beside_a_writer_is_of_one_transaction() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("records");
        let registry = StorageRegistry::new(dir.path());
        let records = registry.records(&folder, &["t"]).unwrap();
        // Each transaction writes its number at every key.
        let write = |number: u64| {
            let txn = records.begin_write().unwrap();
            for key in 0..200 {
                txn.put_bytes(&TABLE, &format!("{key}"), &number.to_le_bytes().repeat(50)).unwrap();
            }
            txn.commit().unwrap();
        };
        write(0);
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| {
                let mut number = 1;
                while !done.load(Ordering::Relaxed) {
                    write(number);
                    number += 1;
                    std::thread::sleep(Duration::from_millis(3));
                }
            });
            let mut whole = 0;
            for copy in 0..20 {
                let target = dir.path().join(format!("copy-{copy}"));
                fs::create_dir(&target).unwrap();
                if !copy_environment(&folder, &target).unwrap() {
                    continue;
                }
                whole += 1;
                let copied = registry.records(&target, &["t"]).unwrap();
                let found = copied.begin_read().unwrap().scan_bytes(&TABLE, "").unwrap();
                assert_eq!(found.len(), 200);
                assert!(found.iter().all(|(_, value)| value == &found[0].1), "copy {copy} is of several transactions");
            }
            done.store(true, Ordering::Relaxed);
            writer.join().unwrap();
            assert!(whole > 0);
        });
    }

    #[test]
    fn what_the_first_pages_say_is_told_without_writing_or_locking() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("extents");
        assert!(environment_info(&folder).unwrap().is_none());
        let registry = StorageRegistry::new(dir.path());
        let open = registry.extents(&folder, "t", crate::Alignment::LargePage).unwrap();
        let beside = environment_info(&folder).unwrap().unwrap();
        assert_eq!((beside.page_bytes, beside.limit_bytes), (crate::PAGE_BYTES, 8 << 40));
        drop(open);
        let before = fs::read(folder.join("mdbx.dat")).unwrap();
        let info = environment_info(&folder).unwrap().unwrap();
        assert!(info.used_bytes > 0 && info.used_bytes <= info.file_bytes && info.disk_bytes > 0, "{info:?}");
        assert!(fs::read(folder.join("mdbx.dat")).unwrap() == before);
    }
}
