//! The folder a backup lies in: [`Folder`] opens it, locks it, and writes its files so that none is ever seen half.

use super::format::{self, Document};
use crate::{
    digest::Digest,
    error::{Attempted, Error, Result},
    export::io_error,
};
use std::{
    collections::HashMap,
    fs::{self, DirBuilder, File},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};
use storage::{FileLock, fail_point};

const MARKER: &str = "model-cache-backup";
const LOCK: &str = "lock";
const BLOBS: &str = "blobs";
const SNAPSHOTS: &str = "snapshots";
/// What the name of a file ends in that is not whole.
const PART: &str = ".part";
/// What the name of a blob's file ends in that was found damaged, and that the store could not replace.
const DAMAGED: &str = ".damaged";
/// Small files that wait for the disk at once: it takes them together.
const SYNCS_AT_ONCE: usize = 16;
/// A document larger than this is none: 20,000 files take 12 MiB.
const MAX_DOCUMENT_BYTES: u64 = 1 << 30;

/// A backup that is open here.
pub(super) struct Folder {
    path: PathBuf,
    /// Exclusive for who writes. None where it can only be read, as on a disk that is mounted so, and nobody writes.
    _lock: Option<FileLock>,
}

impl Folder {
    /// Opens the backup at `path` to write to it, for one at a time; makes it where there is nothing or an empty folder.
    pub(super) fn open_to_write(path: &Path) -> Result<Self> {
        let refuse = |reason: &str| {
            Err(Error::InvalidOption { name: "DIR", value: path.display().to_string(), reason: reason.to_owned() })
        };
        create_folder(path, true)?;
        if !fs::metadata(path).is_ok_and(|there| there.is_dir()) {
            return refuse("it is not a folder");
        }
        let real = fs::canonicalize(path).map_err(failed("find", path))?;
        let has_marker = match read_marker(&real)? {
            Some(text) => check_marker(&real, &text).map(|()| true)?,
            None => false,
        };
        if !has_marker {
            // What a run that was killed just here leaves is no reason to refuse.
            let begun = [LOCK.to_owned(), part_of(MARKER)];
            if entries(&real)?.iter().any(|(name, _)| !begun.contains(name)) {
                return refuse("it has files and is no backup; name an empty folder, or one to be made");
            }
        }
        let lock_path = real.join(LOCK);
        if fs::symlink_metadata(&lock_path).is_ok_and(|there| !there.is_file()) {
            return refuse("its lock is no plain file");
        }
        let lock = FileLock::try_exclusive(&lock_path).attempted(|| format!("could not lock the backup {}", path.display()))?;
        let Some(lock) = lock else { return Err(busy(path)) };
        let folder = Self { path: real, _lock: Some(lock) };
        if !has_marker {
            folder.write(MARKER, format::marker().as_bytes())?;
        }
        for name in [BLOBS, SNAPSHOTS] {
            create_folder(&folder.path.join(name), false)?;
            folder.check_inner(name)?;
        }
        storage::sync_folder(&folder.path).attempted(writing)?;
        fail_point("backup.folder_made");
        Ok(folder)
    }

    /// Opens the backup at `path` to read it; nobody writes to it meanwhile. Writes nothing.
    pub(super) fn open_to_read(path: &Path) -> Result<Self> {
        let none = |reason: &str| Error::NoBackup { path: path.to_owned(), reason: reason.to_owned() };
        let real = match fs::canonicalize(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(none("there is nothing")),
            real => real.map_err(failed("find", path))?,
        };
        if !real.is_dir() {
            return Err(none("it is not a folder"));
        }
        let Some(text) = read_marker(&real)? else { return Err(none(&format!("it has no file {MARKER}"))) };
        check_marker(&real, &text)?;
        let lock_path = real.join(LOCK);
        // A copy of a backup may have none, and one by somebody else may not be read; then nobody writes here.
        let lock = match fs::symlink_metadata(&lock_path).is_ok_and(|there| there.is_file()) {
            true => match FileLock::try_shared(&lock_path) {
                Ok(None) => return Err(busy(path)),
                Ok(lock) => lock,
                Err(error) => {
                    tracing::debug!(%error, "the backup can't be locked");
                    None
                }
            },
            false => None,
        };
        let folder = Self { path: real, _lock: lock };
        for name in [BLOBS, SNAPSHOTS] {
            folder.check_inner(name)?;
        }
        Ok(folder)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The numbers of the snapshots that were finished, in order.
    pub(super) fn snapshots(&self) -> Result<Vec<u64>> {
        let entries = entries(&self.path.join(SNAPSHOTS))?;
        let mut numbers: Vec<u64> = entries.iter().filter_map(|(name, _)| snapshot_number(name, ".json")).collect();
        numbers.sort_unstable();
        Ok(numbers)
    }

    /// Takes away what is in the folder of snapshots and belongs to none that was finished.
    pub(super) fn drop_unfinished_snapshots(&self) -> Result<()> {
        let finished = self.snapshots()?;
        for (name, _) in entries(&self.path.join(SNAPSHOTS))? {
            let sums = snapshot_number(&name, ".sha256");
            if name.ends_with(PART) || sums.is_some_and(|number| !finished.contains(&number)) {
                self.remove(&format!("{SNAPSHOTS}/{name}"))?;
            }
        }
        Ok(())
    }

    /// Reads snapshot `number`, held against its sums; `Err` within has which of its files is wrong, and how.
    pub(super) fn read_snapshot(&self, number: u64) -> Result<std::result::Result<Document, (String, String)>> {
        let (document, sums) = (format!("{SNAPSHOTS}/{number}.json"), format!("{SNAPSHOTS}/{number}.sha256"));
        let bytes = match self.read(&document) {
            Err(error) => return self.unless_ours(error, document),
            Ok(bytes) => bytes,
        };
        let told = match self.read(&sums) {
            Err(error) => return self.unless_ours(error, sums),
            Ok(told) => told,
        };
        let own = sha256(&bytes);
        let line = format!("{}  {document}\n", own.hex());
        if !told.starts_with(line.as_bytes()) {
            return Ok(Err((document, format!("its SHA-256 is {}, {sums} says another", own.hex()))));
        }
        let parsed = match format::parse(&bytes) {
            Err(reason) => return Ok(Err((document, reason))),
            Ok(parsed) => parsed,
        };
        if told != parsed.sums(number, &own).as_bytes() {
            return Ok(Err((sums, format!("it does not say what {document} does"))));
        }
        Ok(Ok(parsed))
    }

    /// An error of the machine is one; a file that is not there or not plain is damage.
    fn unless_ours<T>(&self, error: io::Error, name: String) -> Result<std::result::Result<T, (String, String)>> {
        match error.kind() {
            io::ErrorKind::NotFound => Ok(Err((name, "it is not there".to_owned()))),
            io::ErrorKind::InvalidData | io::ErrorKind::FileTooLarge => Ok(Err((name, error.to_string()))),
            _ => Err(failed("read", &self.path.join(name))(error)),
        }
    }

    /// The blobs that are here, as far as their names and sizes say.
    pub(super) fn blobs(&self) -> Result<HashMap<Digest, u64>> {
        let entries = entries(&self.path.join(BLOBS))?.into_iter();
        let plain = entries
            .filter_map(|(name, there)| Some((format::parse_blob_name(&name)?, there.filter(|there| there.is_file())?.len())));
        Ok(plain.collect())
    }

    /// Opens the file of a blob, to read it.
    pub(super) fn open_blob(&self, digest: &Digest) -> io::Result<File> {
        open_plain(&self.path.join(blob_file(digest)), File::options().read(true))
    }

    /// Opens what there is of a blob's file before it is whole: nothing, or what an interrupted backup left.
    pub(super) fn open_part(&self, digest: &Digest) -> Result<File> {
        let path = self.path.join(part_of(&blob_file(digest)));
        if fs::symlink_metadata(&path).is_ok_and(|there| !there.is_file()) {
            fs::remove_file(&path).map_err(failed("remove", &path))?;
        }
        File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(failed("create", &path))
    }

    /// Bytes of a blob's file that an interrupted backup left, sound or not.
    pub(super) fn part_bytes(&self, digest: &Digest) -> u64 {
        fs::symlink_metadata(self.path.join(part_of(&blob_file(digest)))).map_or(0, |there| there.len())
    }

    /// Makes the part of a blob's file durable, and the blob's file of it.
    pub(super) fn finish_part(&self, digest: &Digest, part: &File, size_bytes: u64) -> Result<()> {
        let path = self.path.join(blob_file(digest));
        let failed = |source| io_error("write", &path, source, size_bytes);
        part.sync_all().map_err(failed)?;
        fail_point("backup.blob_synced");
        fs::rename(self.path.join(part_of(&blob_file(digest))), &path).map_err(failed)?;
        fail_point("backup.blob_named");
        Ok(())
    }

    /// Takes a damaged file from under the name of its blob, if there is one, so that no backup takes it for good again.
    pub(super) fn set_aside(&self, digest: &Digest) -> Result<()> {
        let path = self.path.join(blob_file(digest));
        match fs::rename(&path, self.path.join(damaged_file(digest))) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("rename", &path)(error)),
            _ => Ok(()),
        }
    }

    /// The file of a blob that was set aside, if one is, as it is called in messages.
    pub(super) fn damaged_blob(&self, digest: &Digest) -> Option<String> {
        Some(damaged_file(digest)).filter(|name| fs::symlink_metadata(self.path.join(name)).is_ok())
    }

    pub(super) fn drop_part(&self, digest: &Digest) -> Result<()> {
        self.remove(&part_of(&blob_file(digest)))
    }

    /// Writes the part of a blob's file that is in memory; nothing of it is durable, nor has its name, before [`finish_parts`](Self::finish_parts).
    pub(super) fn write_part(&self, digest: &Digest, bytes: &[u8]) -> Result<()> {
        let part = self.open_part(digest)?;
        let written = part.set_len(0).and_then(|()| part.write_all_at(bytes, 0));
        written.map_err(|source| io_error("write", &self.path.join(blob_file(digest)), source, bytes.len() as u64))
    }

    /// Makes parts that were written durable, and blobs' files of them: several at once, since each waits for the disk.
    ///
    /// # Errors
    /// The first error of them, or of `go_on`, which is asked before each.
    pub(super) fn finish_parts(&self, digests: &[Digest], go_on: &(dyn Fn() -> Result<()> + Sync)) -> Result<()> {
        let next = AtomicUsize::new(0);
        let work = || {
            while let Some(digest) = digests.get(next.fetch_add(1, Ordering::Relaxed)) {
                go_on()?;
                let part = self.open_part(digest)?;
                self.finish_part(digest, &part, 0)?;
            }
            Ok(())
        };
        thread::scope(|scope| {
            let threads: Vec<_> = (0..SYNCS_AT_ONCE.min(digests.len())).map(|_| scope.spawn(work)).collect();
            threads.into_iter().try_for_each(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
        })
    }

    /// Makes all blobs durable under their names, then `document` snapshot `number`: the one commit point of a backup.
    pub(super) fn finish_snapshot(&self, number: u64, document: &Document) -> Result<()> {
        storage::sync_folder(&self.path.join(BLOBS)).attempted(writing)?;
        let bytes = document.encode();
        self.write(&format!("{SNAPSHOTS}/{number}.sha256"), document.sums(number, &sha256(&bytes)).as_bytes())?;
        fail_point("backup.sums_written");
        // The sums lie on the disk before the document does.
        self.sync_snapshots()?;
        self.write(&format!("{SNAPSHOTS}/{number}.json"), &bytes)?;
        fail_point("backup.snapshot_named");
        self.sync_snapshots()
    }

    /// Takes a snapshot away. Its document goes first: what is left is none.
    pub(super) fn drop_snapshot(&self, number: u64) -> Result<()> {
        self.remove(&format!("{SNAPSHOTS}/{number}.json"))?;
        fail_point("backup.snapshot_dropped");
        self.remove(&format!("{SNAPSHOTS}/{number}.sha256"))
    }

    pub(super) fn sync_snapshots(&self) -> Result<()> {
        storage::sync_folder(&self.path.join(SNAPSHOTS)).attempted(writing)
    }

    /// Takes away every blob, whole or not, that `used` says no to, what is not whole of the others, and what is damaged of those
    /// that are whole; how many whole ones, and their bytes.
    pub(super) fn drop_blobs(&self, used: impl Fn(&Digest) -> bool) -> Result<(u64, u64)> {
        let mut dropped = (0, 0);
        for (name, there) in entries(&self.path.join(BLOBS))? {
            let whole = format::parse_blob_name(&name);
            let unused = match &whole {
                Some(digest) => !used(digest),
                None => match name.strip_suffix(DAMAGED).and_then(format::parse_blob_name) {
                    Some(digest) => !used(&digest) || self.open_blob(&digest).is_ok(),
                    None => name.strip_suffix(PART).is_some_and(|name| format::parse_blob_name(name).is_some()),
                },
            };
            if unused {
                self.remove(&format!("{BLOBS}/{name}"))?;
                fail_point("backup.blob_dropped");
                if whole.is_some() {
                    dropped = (dropped.0 + 1, dropped.1 + there.map_or(0, |there| there.len()));
                }
            }
        }
        Ok(dropped)
    }

    /// Writes a file that appears whole and durable or not at all, but for its name, which is the folder's to sync.
    fn write(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let (path, part) = (self.path.join(name), self.path.join(part_of(name)));
        let failed = |source| io_error("write", &path, source, bytes.len() as u64);
        match fs::remove_file(&part) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
        let mut file = File::options().write(true).create_new(true).mode(0o600).open(&part).map_err(failed)?;
        file.write_all(bytes).and_then(|()| file.sync_all()).map_err(failed)?;
        fail_point("backup.file_written");
        fs::rename(&part, &path).map_err(failed)
    }

    fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        let file = open_plain(&self.path.join(name), File::options().read(true))?;
        if file.metadata()?.len() > MAX_DOCUMENT_BYTES {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        let mut bytes = Vec::new();
        file.take(MAX_DOCUMENT_BYTES).read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    fn remove(&self, name: &str) -> Result<()> {
        let path = self.path.join(name);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", &path)(error)),
            _ => Ok(()),
        }
    }

    /// That one of the folders in it is one, and lies in it: a link would lead out.
    fn check_inner(&self, name: &str) -> Result<()> {
        let path = self.path.join(name);
        match fs::symlink_metadata(&path) {
            Ok(there) if there.is_dir() => Ok(()),
            Ok(_) => Err(Error::NoBackup { path: self.path.clone(), reason: format!("{name} is not a folder of its own") }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(Error::NoBackup { path: self.path.clone(), reason: format!("it has no folder {name}") })
            }
            Err(error) => Err(failed("look at", &path)(error)),
        }
    }
}

pub(super) fn sha256(bytes: &[u8]) -> Digest {
    let mut hasher = crate::digest::Hasher::sha256();
    hasher.update(bytes);
    hasher.finish()
}

fn blob_file(digest: &Digest) -> String {
    format!("{BLOBS}/{}", format::blob_name(digest))
}

fn damaged_file(digest: &Digest) -> String {
    format!("{}{DAMAGED}", blob_file(digest))
}

/// How a blob's file is called in messages.
pub(super) fn shown_blob(digest: &Digest) -> String {
    blob_file(digest)
}

fn part_of(name: &str) -> String {
    format!("{name}{PART}")
}

fn snapshot_number(name: &str, end: &str) -> Option<u64> {
    let digits = name.strip_suffix(end)?;
    let number: u64 = digits.parse().ok()?;
    (number.to_string() == digits).then_some(number)
}

/// Creates a folder for its owner alone where there is none; with those it lies in, if `all`.
pub(super) fn create_folder(path: &Path, all: bool) -> Result<()> {
    match DirBuilder::new().recursive(all).mode(0o700).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(io_error("create", path, error, 0)),
        _ => Ok(()),
    }
}

/// What is in a folder: names, and what lies there, if it still does. Names that are no text are none of ours.
fn entries(folder: &Path) -> Result<Vec<(String, Option<fs::Metadata>)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).map_err(failed("list", folder))? {
        let entry = entry.map_err(failed("list", folder))?;
        // Not through links: those are none of ours either.
        found.push((entry.file_name().to_string_lossy().into_owned(), fs::symlink_metadata(entry.path()).ok()));
    }
    Ok(found)
}

/// Opens a file that is one, not what leads to one.
fn open_plain(path: &Path, options: &fs::OpenOptions) -> io::Result<File> {
    if !fs::symlink_metadata(path)?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "it is not a plain file"));
    }
    options.open(path)
}

/// The marker of the folder, if it has one.
fn read_marker(folder: &Path) -> Result<Option<Vec<u8>>> {
    let path = folder.join(MARKER);
    let mut text = Vec::new();
    match open_plain(&path, File::options().read(true)).and_then(|file| file.take(4096).read_to_end(&mut text)) {
        Ok(_) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed("read", &path)(error)),
    }
}

fn check_marker(folder: &Path, text: &[u8]) -> Result<()> {
    let refuse = |found| Err(Error::BackupFormat { path: folder.to_owned(), found, supported: format::FORMAT });
    match format::parse_marker(text) {
        Ok(format::FORMAT) => Ok(()),
        Ok(found) => refuse(found.to_string()),
        Err(found) => refuse(found),
    }
}

fn busy(path: &Path) -> Error {
    Error::Busy { what: format!("the backup {}", path.display()), reason: "another backup or restore is at it" }
}

fn writing() -> String {
    "could not write the backup".to_owned()
}

pub(super) fn failed(action: &'static str, path: &Path) -> impl Fn(io::Error) -> Error {
    move |source| Error::Io { action, path: path.to_owned(), source }
}
