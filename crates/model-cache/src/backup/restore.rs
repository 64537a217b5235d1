//! A backup read back: whether it is whole ([`ModelCache::check_backup`]), and a store made of it ([`ModelCache::restore`]).
//!
//! Everything is checked before anything is made. The store is built in `<store>.restoring`, by the ways any file comes in, and
//! takes its place in one step; a store that is replaced changes places with it, and goes last.

use super::{
    CHECK_BYTES,
    folder::{Folder, create_folder, failed, shown_blob},
    format::{Blob, Document},
};
use crate::{
    cache::ModelCache,
    digest::Digest,
    doctor::store_id,
    error::{Attempted, Error, ErrorKind, Result},
    export::{folder_without_dots, real_folder, target_full},
    import::fill_from,
    key::PinnedRepo,
    name::FilePath,
    progress::{Paced, ProgressCallback},
    record::*,
    store::{Acquired, LeftOut, Restored, Store, Wanted},
};
use std::{
    cell::RefCell,
    collections::{HashMap, HashSet, hash_map::Entry},
    ffi::OsString,
    fs,
    io::{self, Read},
    os::unix::fs::{MetadataExt, PermissionsExt, lchown},
    path::{Path, PathBuf},
    sync::Arc,
};
use storage::{FileLock, StorageRegistry, fail_point};
use tokio_util::sync::CancellationToken;

/// How to check a backup.
#[derive(Clone, Default)]
pub struct CheckOptions {
    /// The number of the snapshot. Default: the newest.
    pub snapshot: Option<u64>,
    /// Called with bytes read and bytes in all. Default: nobody is.
    pub progress: Option<ProgressCallback>,
    /// Ends the check early with [`Error::Cancelled`]. Default: none.
    pub cancel: Option<CancellationToken>,
}

/// What a check of a backup found.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct BackupCheck {
    /// The snapshot checked.
    pub snapshot: u64,
    /// Every snapshot the backup has, in order.
    pub snapshots: Vec<u64>,
    /// When it was made, in milliseconds since 1970; none where its own files are damaged.
    pub created_unix_ms: Option<i64>,
    /// Files in it.
    pub files: u64,
    /// Bytes of their content; content with several names counts once.
    pub bytes: u64,
    /// Files of the backup that are not what they were.
    pub bad: Vec<BadBackupFile>,
    /// Where anything is bad: the newest other snapshot of the same store that is whole, all of it read as well. None where none is.
    pub whole_snapshot: Option<u64>,
    /// What was damaged in the store when the snapshot was made, so that it is not in it.
    pub left_out: Vec<LeftOut>,
}

/// A file of a backup that is not what it was.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct BadBackupFile {
    /// Its path in the backup.
    pub file: String,
    /// What was expected and found.
    pub reason: String,
    /// The names whose content it is, `repo path`.
    pub names: Vec<String>,
    /// The snapshots that need it, of those that were looked at.
    pub snapshots: Vec<u64>,
}

impl BadBackupFile {
    pub(super) fn new(file: String, reason: String, names: Vec<String>) -> Self {
        Self { file, reason, names, snapshots: Vec::new() }
    }
}

/// How to restore.
#[derive(Clone, Default)]
pub struct RestoreOptions {
    /// The number of the snapshot. Default: the newest.
    pub snapshot: Option<u64>,
    /// Whether a store that is there is replaced; by a snapshot of another store, only one that [`snapshot`](Self::snapshot) names. Default: no.
    pub replace: bool,
    /// Whether files whose content is damaged in the backup are left out, and all others restored. Default: no; nothing is restored then.
    pub skip_damaged: bool,
    /// Called with bytes done and bytes in all, each byte being checked first and then restored. Default: nobody is.
    pub progress: Option<ProgressCallback>,
    /// Ends the restore early with [`Error::Cancelled`], nothing changed. Default: none.
    pub cancel: Option<CancellationToken>,
}

/// What a restore did.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct RestoreReport {
    /// The snapshot restored.
    pub snapshot: u64,
    /// The store's folder.
    pub store: PathBuf,
    /// Files in it.
    pub files: u64,
    /// Bytes of their content; content with several names counts once.
    pub bytes: u64,
    /// Whether it took the place of another store, which is gone.
    pub replaced: bool,
    /// What was damaged when the snapshot was made, so that it could not be restored.
    pub left_out: Vec<LeftOut>,
    /// What is damaged in the backup now, and was left out as [`RestoreOptions::skip_damaged`] asks.
    pub skipped: Vec<LeftOut>,
}

impl ModelCache {
    /// Reads all of a snapshot of the backup at `from`, and says whether it is whole: its layout, its document, every block and every digest.
    ///
    /// Writes nothing. Cost: one read of all of it, and its digests; where anything is bad, also of other snapshots, until one is whole.
    ///
    /// # Errors
    /// [`Error::NoBackup`], [`Error::NoSnapshot`], [`Error::BackupFormat`], [`Error::Busy`] while a backup is written, [`Error::Io`] and
    /// [`Error::Cancelled`]. Damage is no error but a finding: see [`BackupCheck::bad`].
    pub fn check_backup(from: &Path, options: &CheckOptions) -> Result<BackupCheck> {
        let folder = Folder::open_to_read(from)?;
        let (number, document) = choose(&folder, options.snapshot)?;
        let total_bytes = document.as_ref().map_or(0, Document::size_bytes);
        let mut paced = Paced::new(options.progress.as_ref(), options.cancel.as_ref(), total_bytes);
        let mut checked = check(&folder, number, document.as_ref(), &mut paced)?;
        if !checked.bad.is_empty() {
            checked.whole_snapshot =
                find_whole(&folder, &checked, document.ok().as_ref(), None, &mut || paced.tell(total_bytes))?;
        }
        Ok(checked)
    }

    /// Makes a store at `store` of a snapshot of the backup at `from`: names, content, refs, manifests and times as they were.
    ///
    /// Everything is checked first, as by [`check_backup`](Self::check_backup); with any of it damaged nothing is made, unless it is to be
    /// [skipped](RestoreOptions::skip_damaged). Whatever ends this, there is
    /// at `store` what was there before, or all of the restored one; what else is left, in `<store>.restoring`, the next restore
    /// takes away. Needs the room of the whole store beside one that is replaced.
    ///
    /// # Errors
    /// Before anything is made: [`Error::StoreExists`] unless `replace` is set, [`Error::AnotherStore`] where the newest snapshot is of
    /// another store than the one that is there and `snapshot` names none, [`Error::StoreInUse`] if any process has the store open,
    /// [`Error::OthersInStore`] if other files lie in its folder, [`Error::InvalidOption`] for a folder that can't be a store or lies in
    /// one, [`Error::BackupDamaged`], [`Error::TargetFull`], and those of
    /// [`check_backup`](Self::check_backup). [`Error::Io`], [`Error::Storage`], [`Error::Cancelled`].
    pub fn restore(from: &Path, store: &Path, options: &RestoreOptions) -> Result<RestoreReport> {
        let folder = Folder::open_to_read(from)?;
        let target = Target::look_at(store, &folder, options.replace)?;
        let (number, document) = choose(&folder, options.snapshot)?;
        if let (There::Store(_), None, Ok(newest)) = (&target.there, options.snapshot, &document) {
            refuse_another_store(&folder, &target.store, number, newest)?;
        }
        let total_bytes = document.as_ref().map_or(0, |document| document.size_bytes().saturating_mul(2));
        let mut paced = Paced::new(options.progress.as_ref(), options.cancel.as_ref(), total_bytes);
        let mut checked = check(&folder, number, document.as_ref(), &mut paced)?;
        let bad: HashMap<_, _> = checked.bad.iter().map(|bad| (&bad.file, &bad.reason)).collect();
        let is_sound = |blob: &Blob| !bad.contains_key(&shown_blob(&blob.digest));
        let is_partly_sound = document.as_ref().is_ok_and(|document| document.blobs.iter().any(is_sound));
        let mut document = match document {
            Ok(document) if bad.is_empty() || options.skip_damaged && is_partly_sound => document,
            document => {
                // Where something is sound it is not looked for: others may be long to read.
                let whole_snapshot = match is_partly_sound {
                    true => None,
                    false => {
                        let id = if let There::Store(_) = target.there { store_id(&target.store) } else { None };
                        find_whole(&folder, &checked, document.ok().as_ref(), id, &mut || paced.tell(total_bytes / 2))?
                    }
                };
                let (path, count) = (folder.path().to_owned(), checked.bad.len());
                let BadBackupFile { file, reason, .. } = checked.bad.swap_remove(0);
                return Err(Error::BackupDamaged {
                    path,
                    count,
                    file,
                    reason,
                    snapshot: number,
                    is_partly_sound,
                    whole_snapshot,
                });
            }
        };
        let skipped = document.leave_out(|digest| bad.get(&shown_blob(digest)).map(|reason| (*reason).clone()));
        fail_point("restore.checked");
        let needed_bytes = Store::needed_bytes(document.blobs.iter().map(|blob| blob.size_bytes));
        let building = Building::begin(&target, needed_bytes)?;
        let replaced = matches!(target.there, There::Store(_));
        // As if what was skipped were restored already.
        let done_bytes = total_bytes - document.size_bytes();
        building.fill(&folder, &document, target.folder.as_ref(), done_bytes, &mut paced).map_err(|error| match error {
            Error::NoSpace { needed_bytes, free_bytes, .. }
            | Error::Storage { source: storage::Error::NoSpace { needed_bytes, free_bytes, .. }, .. } => {
                Error::TargetFull { path: target.store.clone(), needed_bytes, free_bytes }
            }
            error if error.kind() == ErrorKind::NoSpace => target_full(&target.store, needed_bytes),
            error => error,
        })?;
        building.take_place(&target)?;
        let (files, bytes) = (document.files.len() as u64, document.size_bytes());
        Ok(RestoreReport { snapshot: number, store: target.store, files, bytes, replaced, left_out: document.left_out, skipped })
    }
}

/// The snapshot asked for, or the newest.
fn choose(folder: &Folder, number: Option<u64>) -> Result<(u64, super::Old)> {
    let none = |reason| Error::NoBackup { path: folder.path().to_owned(), reason };
    let snapshots = folder.snapshots()?;
    let newest = *snapshots.last().ok_or_else(|| none("it has no snapshot: its first backup did not end".to_owned()))?;
    let number = number.unwrap_or(newest);
    if !snapshots.contains(&number) {
        return Err(Error::NoSnapshot { path: folder.path().to_owned(), snapshot: number, there: snapshots });
    }
    Ok((number, folder.read_snapshot(number)?))
}

/// Refuses to put the newest snapshot, which nobody chose, in the place of a store that it is not of, as far as their ids say: one that can't
/// be read may be what somebody wants to mend.
fn refuse_another_store(folder: &Folder, store: &Path, snapshot: u64, newest: &Document) -> Result<()> {
    let Some(other) = &newest.store else { return Ok(()) };
    let Some(id) = store_id(store).filter(|id| id != other) else { return Ok(()) };
    let mut own = None;
    for number in folder.snapshots()?.into_iter().rev() {
        if folder.read_snapshot(number)?.is_ok_and(|document| document.store.as_deref() == Some(&id)) {
            own = Some(number);
            break;
        }
    }
    Err(Error::AnotherStore { store: store.to_owned(), path: folder.path().to_owned(), snapshot, own })
}

fn check(
    folder: &Folder,
    number: u64,
    document: std::result::Result<&Document, &(String, String)>,
    paced: &mut Paced<'_>,
) -> Result<BackupCheck> {
    let snapshots = folder.snapshots()?;
    let mut checked = BackupCheck {
        snapshot: number,
        snapshots,
        created_unix_ms: None,
        files: 0,
        bytes: 0,
        bad: Vec::new(),
        whole_snapshot: None,
        left_out: Vec::new(),
    };
    let document = match document {
        Ok(document) => document,
        Err((file, reason)) => {
            checked
                .bad
                .push(BadBackupFile { snapshots: vec![number], ..BadBackupFile::new(file.clone(), reason.clone(), Vec::new()) });
            return Ok(checked);
        }
    };
    checked.created_unix_ms = Some(document.created_unix_ms);
    (checked.files, checked.bytes) = (document.files.len() as u64, document.size_bytes());
    checked.left_out.clone_from(&document.left_out);
    let mut names = document.names();
    let mut done_bytes = 0;
    paced.tell(0)?;
    for blob in &document.blobs {
        if let Some(reason) = check_blob(folder, blob, &mut |bytes| paced.tell(done_bytes + bytes))? {
            let names = names.remove(&blob.digest).unwrap_or_default();
            checked
                .bad
                .push(BadBackupFile { snapshots: vec![number], ..BadBackupFile::new(shown_blob(&blob.digest), reason, names) });
        }
        done_bytes += blob.size_bytes;
        paced.tell(done_bytes)?;
    }
    Ok(checked)
}

/// The newest snapshot that is whole, other than the one that was `checked`, whose content is not read again; of the store with this `id`,
/// or else of that one's, where it is known: who takes it names it, and is not asked again.
fn find_whole(
    folder: &Folder,
    checked: &BackupCheck,
    document: Option<&Document>,
    id: Option<String>,
    go_on: &mut dyn FnMut() -> Result<()>,
) -> Result<Option<u64>> {
    let bad: HashSet<&str> = checked.bad.iter().map(|bad| bad.file.as_str()).collect();
    let blobs = document.into_iter().flat_map(|document| &document.blobs);
    let mut sound: HashMap<Digest, bool> =
        blobs.map(|blob| (blob.digest, !bad.contains(shown_blob(&blob.digest).as_str()))).collect();
    let id = id.or_else(|| document?.store.clone());
    'snapshots: for &number in checked.snapshots.iter().rev().filter(|number| **number != checked.snapshot) {
        let Ok(document) = folder.read_snapshot(number)? else { continue };
        if id.is_some() && document.store.is_some() && id != document.store {
            continue;
        }
        if document.blobs.iter().any(|blob| sound.get(&blob.digest) == Some(&false)) {
            continue;
        }
        for blob in &document.blobs {
            if let Entry::Vacant(unread) = sound.entry(blob.digest) {
                let is_sound = check_blob(folder, blob, &mut |_| go_on())?.is_none();
                unread.insert(is_sound);
                if !is_sound {
                    continue 'snapshots;
                }
            }
        }
        return Ok(Some(number));
    }
    Ok(None)
}

/// What is wrong with a blob's file, if anything is.
pub(super) fn check_blob(folder: &Folder, blob: &Blob, tell: &mut dyn FnMut(u64) -> Result<()>) -> Result<Option<String>> {
    let mut file = match folder.open_blob(&blob.digest) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Ok(Some(match folder.damaged_blob(&blob.digest) {
                Some(aside) => format!("it was found damaged, and is {aside} now"),
                None => "it is not there".to_owned(),
            }));
        }
        Err(error) => return Ok(Some(error.to_string())),
    };
    let length = file.metadata().map_err(failed("look at", folder.path()))?.len();
    if length != blob.size_bytes {
        return Ok(Some(format!("it has {length} bytes, not {}", blob.size_bytes)));
    }
    let mut hasher = blob.digest.hasher(blob.size_bytes);
    // The digest says it already, unless it is git's.
    let mut sha256 = blob.sha256.map(|expected| (expected, crate::digest::Hasher::sha256()));
    let mut buffer = vec![0; CHECK_BYTES];
    for (block, &expected) in blob.block_crc32c.iter().enumerate() {
        let range = block_range(blob.size_bytes, block as u64);
        let mut crc = 0;
        for at in range.clone().step_by(CHECK_BYTES) {
            let part = &mut buffer[..(range.end - at).min(CHECK_BYTES as u64) as usize];
            if let Err(error) = file.read_exact(part) {
                return Ok(Some(format!("block {block} can't be read: {error}")));
            }
            crc = crc32c::crc32c_append(crc, part);
            hasher.update(part);
            if let Some((_, sha256)) = &mut sha256 {
                sha256.update(part);
            }
        }
        if crc != expected {
            return Ok(Some(format!("block {block} has CRC32C {crc:08x}, {expected:08x} was backed up")));
        }
        tell(range.end)?;
    }
    for (expected, found) in
        [(blob.digest, hasher.finish())].into_iter().chain(sha256.map(|(expected, hasher)| (expected, hasher.finish())))
    {
        if expected != found {
            return Ok(Some(format!("its digest is {found}, not {expected}, though every CRC32C holds")));
        }
    }
    Ok(None)
}

/// Where a store is to be made.
struct Target {
    /// Links followed, as far as it is there.
    store: PathBuf,
    there: There,
    /// Of the folder that is there: whose it is, and whom it is for.
    folder: Option<fs::Metadata>,
}

/// What is there now.
enum There {
    /// Nothing, or an empty folder.
    Nothing,
    /// A store that nobody has open, nor can open while this is held.
    Store(#[expect(dead_code, reason = "held, not looked at")] FileLock),
}

impl Target {
    fn look_at(store: &Path, backup: &Folder, replace: bool) -> Result<Self> {
        let refuse = |reason: String| Err(Error::InvalidOption { name: "to", value: store.display().to_string(), reason });
        let real = match fs::canonicalize(store) {
            Ok(real) => real,
            Err(error) if error.kind() == io::ErrorKind::NotFound && fs::symlink_metadata(store).is_err() => {
                let real = real_folder(store).map_err(failed("find", store))?;
                for place in [Some(real), folder_without_dots(store)].into_iter().flatten() {
                    if place.starts_with(backup.path()) {
                        return refuse("it lies in the backup".to_owned());
                    }
                    if let Some(around) = place.ancestors().find(|around| around.is_dir() && Store::is_in(around)) {
                        return refuse(format!("it lies in the store {}, whose files are its own", around.display()));
                    }
                }
                let store = std::path::absolute(store).map_err(failed("find", store))?;
                return Ok(Self { store, there: There::Nothing, folder: None });
            }
            Err(error) => return Err(failed("find", store)(error)),
        };
        let there = fs::metadata(&real).map_err(failed("look at", &real))?;
        if !there.is_dir() {
            return refuse("it is not a folder".to_owned());
        }
        if real.starts_with(backup.path()) || backup.path().starts_with(&real) {
            return refuse("it and the backup lie in one another".to_owned());
        }
        if let Some(around) = real.ancestors().skip(1).find(|around| Store::is_in(around)) {
            return refuse(format!("it lies in the store {}, whose files are its own", around.display()));
        }
        let parent = real.parent().map(fs::metadata).transpose().map_err(failed("look at", &real))?;
        if parent.is_none_or(|parent| parent.dev() != there.dev()) {
            return refuse("a file system is mounted on it, so no other folder can take its place; name one in it".to_owned());
        }
        if fs::read_dir(&real).map_err(failed("list", &real))?.next().is_none() {
            return Ok(Self { store: real, there: There::Nothing, folder: Some(there) });
        }
        if !Store::is_in(&real) {
            return refuse("it has files and is no store".to_owned());
        }
        if !replace {
            return Err(Error::StoreExists { path: real });
        }
        refuse_others(&real)?;
        let leases = real.join("leases");
        match FileLock::try_exclusive(&leases).attempted(|| format!("could not take the store {} out of use", real.display()))? {
            Some(alone) => Ok(Self { store: real, there: There::Store(alone), folder: Some(there) }),
            None => Err(Error::StoreInUse { processes: FileLock::holders(&leases), path: real }),
        }
    }
}

/// Refuses to replace a store in whose folder something else lies: all of the folder goes.
fn refuse_others(store: &Path) -> Result<()> {
    let others = Store::others_in(store)?;
    if others.is_empty() { Ok(()) } else { Err(Error::OthersInStore { path: store.to_owned(), others }) }
}

/// The folder beside a store in which another is built. With its lock it can't be two restores'; whatever is in it besides is garbage
/// once nobody holds that, a replaced store too.
struct Building {
    folder: PathBuf,
    lock: Option<FileLock>,
}

const LOCK: &str = "lock";
const STORE: &str = "store";
const PROBES: [&str; 2] = ["probe-a", "probe-b"];

impl Building {
    fn begin(target: &Target, needed_bytes: u64) -> Result<Self> {
        let folder = beside(&target.store);
        create_folder(folder.parent().unwrap_or(Path::new("/")), true)?;
        create_folder(&folder, false)?;
        let refuse = |reason: String| Err(Error::InvalidOption { name: "to", value: target.store.display().to_string(), reason });
        if !folder.is_dir() {
            return refuse(format!("{} is in the way: it is not a folder; move it elsewhere", folder.display()));
        }
        for entry in fs::read_dir(&folder).map_err(failed("list", &folder))? {
            let name = entry.map_err(failed("list", &folder))?.file_name();
            if ![LOCK, STORE].iter().chain(&PROBES).any(|own| name == **own) {
                return refuse(format!("{} is in the way: it has files no restore makes", folder.display()));
            }
        }
        let lock = FileLock::try_exclusive(&folder.join(LOCK)).attempted(|| format!("could not lock {}", folder.display()))?;
        let Some(lock) = lock else {
            return Err(Error::Busy { what: target.store.display().to_string(), reason: "another restore is at it" });
        };
        let building = Self { folder, lock: Some(lock) };
        if building.clear()? {
            tracing::warn!(folder = %building.folder.display(), "what an earlier restore left was removed");
        }
        fail_point("restore.cleared");
        if matches!(target.there, There::Store(_)) && !building.can_exchange()? {
            return refuse(
                "its file system can't exchange two folders in one step: restore to another folder, then move that".to_owned(),
            );
        }
        let free_bytes =
            storage::free_bytes(&building.folder).attempted(|| format!("could not measure {}", building.folder.display()))?;
        if needed_bytes > free_bytes {
            return Err(Error::TargetFull { path: target.store.clone(), needed_bytes, free_bytes });
        }
        Ok(building)
    }

    /// Takes away all but the lock; whether there was anything.
    fn clear(&self) -> Result<bool> {
        let mut found = false;
        for name in [STORE].iter().chain(&PROBES) {
            let path = self.folder.join(name);
            match fs::remove_dir_all(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed("remove", &path)(error)),
                removed => found |= removed.is_ok(),
            }
        }
        Ok(found)
    }

    fn can_exchange(&self) -> Result<bool> {
        let [a, b] = PROBES.map(|name| self.folder.join(name));
        create_folder(&a, false)?;
        create_folder(&b, false)?;
        let can = storage::exchange(&a, &b).attempted(|| "could not try to exchange folders".to_owned())?;
        for probe in [a, b] {
            fs::remove_dir(&probe).map_err(failed("remove", &probe))?;
        }
        Ok(can)
    }

    /// Makes the store, for whom the folder `like` is, and lets go of it. `done_bytes` were told by then.
    fn fill(
        &self,
        folder: &Folder,
        document: &Document,
        like: Option<&fs::Metadata>,
        mut done_bytes: u64,
        paced: &mut Paced<'_>,
    ) -> Result<()> {
        let path = self.folder.join(STORE);
        create_folder(&path, false)?;
        if let Some(like) = like {
            share_as(&path, like)?;
        }
        let store = Store::open(&StorageRegistry::new(&path), &path)?;
        fail_point("restore.opened");
        let spared = store.spare_ballast()?;
        let mut names: HashMap<Digest, Vec<(&PinnedRepo, &FilePath)>> = HashMap::new();
        for file in &document.files {
            names.entry(file.digest).or_default().push((&file.repo, &file.path));
        }
        let paced = RefCell::new(paced);
        let mut small = Small { store: &store, files: Vec::new(), bytes: 0 };
        for blob in &document.blobs {
            let tell = |bytes| paced.borrow_mut().tell(done_bytes + bytes);
            let wanted = names.get(&blob.digest).into_iter().flatten().map(|(repo, path)| Wanted {
                repo: (*repo).clone(),
                path: (*path).clone(),
                size_bytes: blob.size_bytes,
                digest: blob.digest,
            });
            if blob.size_bytes <= INLINE_BYTES {
                small.bring(folder, blob, wanted)?;
            } else {
                for wanted in wanted {
                    if !store.link_if_here(&wanted)? {
                        bring(&store, folder, blob, &wanted, &tell)?;
                        fail_point("restore.sealed");
                    }
                }
            }
            done_bytes += blob.size_bytes;
            paced.borrow_mut().tell(done_bytes)?;
        }
        small.seal()?;
        store.put_restored(&Restored {
            store: document.store.clone(),
            names: document.files.iter().map(|file| (file.repo.clone(), file.path.clone(), file.created_unix_ms)).collect(),
            blobs: document.blobs.iter().map(|blob| (blob.digest, blob.created_unix_ms, blob.last_used_unix_ms)).collect(),
            refs: document.refs.iter().map(super::format::Reference::record).collect(),
            manifests: document.manifests.iter().map(|manifest| (manifest.repo.clone(), manifest.entry.clone())).collect(),
        })?;
        fail_point("restore.recorded");
        store.take_ballast_back(spared);
        drop(store);
        sync_store(&path, like)?;
        fail_point("restore.synced");
        Ok(())
    }

    /// Puts the store that was built in its place, in one step, and takes away what was there.
    fn take_place(mut self, target: &Target) -> Result<()> {
        let (built, store) = (self.folder.join(STORE), &target.store);
        match target.there {
            // Takes the place of an empty folder, and of nothing else.
            There::Nothing => fs::rename(&built, store).map_err(failed("make", store))?,
            There::Store(_) => {
                // Somebody may have put something there since this began.
                refuse_others(store)?;
                let exchanged =
                    storage::exchange(&built, store).attempted(|| format!("could not replace {}", store.display()))?;
                if !exchanged {
                    let source = io::Error::from(io::ErrorKind::Unsupported);
                    return Err(failed("replace", store)(source));
                }
            }
        }
        fail_point("restore.placed");
        let parent = store.parent().unwrap_or(Path::new("/"));
        storage::sync_folder(parent).attempted(|| format!("could not make {} durable", store.display()))?;
        fail_point("restore.place_synced");
        self.remove();
        Ok(())
    }

    /// Takes away all of it; what can't be removed is left to the next restore.
    fn remove(&mut self) {
        let Some(lock) = self.lock.take() else { return };
        let removed = self.clear().and_then(|_| {
            fail_point("restore.emptied");
            // While it is locked: whoever waits for it sees that it is gone, and makes another.
            fs::remove_file(self.folder.join(LOCK))
                .and_then(|()| fs::remove_dir(&self.folder))
                .map_err(failed("remove", &self.folder))
        });
        if let Err(error) = removed {
            tracing::warn!(error = %error.chain(), folder = %self.folder.display(), "what a restore needed for a while was not removed");
        }
        drop(lock);
    }
}

impl Drop for Building {
    fn drop(&mut self) {
        self.remove();
    }
}

/// Gives a new folder the owner, group and mode of another, as far as this process may: who is not root may not give away what is its own.
fn share_as(folder: &Path, like: &fs::Metadata) -> Result<()> {
    give_to(folder, like);
    let there = fs::metadata(folder).map_err(failed("look at", folder))?;
    // What was for a group that can't be had is for no other; and who makes the store works in it.
    let not_had = if there.gid() == like.gid() { 0 } else { 0o2070 };
    let mode = like.mode() & 0o7777 & !not_had | 0o700;
    if there.mode() & 0o7777 != mode {
        fs::set_permissions(folder, fs::Permissions::from_mode(mode)).map_err(failed("set the mode of", folder))?;
    }
    Ok(())
}

/// Gives a file or folder the owner and group of another, as far as this process may; whether anything was changed.
fn give_to(path: &Path, like: &fs::Metadata) -> bool {
    let Ok(there) = fs::symlink_metadata(path) else { return false };
    let (owner, group) = (like.uid(), like.gid());
    let wanted = (there.uid(), there.gid()) != (owner, group);
    wanted && (lchown(path, Some(owner), Some(group)).is_ok() || lchown(path, None, Some(group)).is_ok())
}

/// Makes the names of a store's files durable, whose content is, and gives them to whom its folder is like.
fn sync_store(store: &Path, like: Option<&fs::Metadata>) -> Result<()> {
    for entry in fs::read_dir(store).map_err(failed("list", store))? {
        let path = entry.map_err(failed("list", store))?.path();
        let given = like.is_some_and(|like| give_to(&path, like));
        if path.is_dir() {
            sync_store(&path, like)?;
        } else if given {
            fs::File::open(&path).and_then(|file| file.sync_all()).map_err(failed("sync", &path))?;
        }
    }
    storage::sync_folder(store).attempted(|| format!("could not make {} durable", store.display()))
}

/// The folder beside `store` that another is built in.
fn beside(store: &Path) -> PathBuf {
    let mut name: OsString = store.file_name().unwrap_or_default().to_owned();
    name.push(".restoring");
    store.with_file_name(name)
}

/// What a restore to `store` is building, or left behind when it was killed, and whether one is at it now. The next restore takes it away.
pub(crate) fn leftover(store: &Path) -> Option<(PathBuf, bool)> {
    let folder = beside(&fs::canonicalize(store).or_else(|_| std::path::absolute(store)).ok()?);
    let mut entries = fs::read_dir(&folder).ok()?;
    let is_own = |name: OsString| [LOCK, STORE].iter().chain(&PROBES).any(|own| name == **own);
    let is_ours = entries.all(|entry| entry.is_ok_and(|entry| is_own(entry.file_name())));
    // Asked of the kernel: who is at it may be in another PID namespace.
    let is_at_work = || matches!(FileLock::try_shared(&folder.join(LOCK)), Ok(None));
    is_ours.then(|| (folder.clone(), is_at_work()))
}

/// Small files on their way into a store: sealed many at a time, since each transaction waits for the disk.
struct Small<'a> {
    store: &'a Store,
    files: Vec<(Wanted, Arc<[u8]>)>,
    bytes: usize,
}

/// How many bytes of small files are sealed together, or how many of them.
const TOGETHER_BYTES: usize = 4 << 20;
const TOGETHER_FILES: usize = 1000;

impl Small<'_> {
    fn bring(&mut self, folder: &Folder, blob: &Blob, wanted: impl Iterator<Item = Wanted>) -> Result<()> {
        let path = folder.path().join(shown_blob(&blob.digest));
        let mut bytes = Vec::new();
        let read = folder.open_blob(&blob.digest).and_then(|file| file.take(INLINE_BYTES + 1).read_to_end(&mut bytes));
        read.map_err(failed("read", &path))?;
        self.bytes += bytes.len();
        let bytes: Arc<[u8]> = bytes.into();
        self.files.extend(wanted.map(|wanted| (wanted, Arc::clone(&bytes))));
        if self.bytes >= TOGETHER_BYTES || self.files.len() >= TOGETHER_FILES { self.seal() } else { Ok(()) }
    }

    fn seal(&mut self) -> Result<()> {
        let files: Vec<_> = self.files.iter().map(|(wanted, bytes)| (wanted, &**bytes)).collect();
        self.store.seal_inline_together(&files)?;
        fail_point("restore.small_sealed");
        (self.files, self.bytes) = (Vec::new(), 0);
        Ok(())
    }
}

/// Brings a blob's content into the store under its first name: checked once more, as everything that comes in is.
fn bring(store: &Arc<Store>, folder: &Folder, blob: &Blob, wanted: &Wanted, tell: &dyn Fn(u64) -> Result<()>) -> Result<()> {
    let path = folder.path().join(shown_blob(&blob.digest));
    let mut file = folder.open_blob(&blob.digest).map_err(failed("read", &path))?;
    let fill = match store.acquire(wanted)? {
        Acquired::Fill(fill) => fill,
        Acquired::Here | Acquired::Busy { .. } => {
            return Err(Error::Busy {
                what: blob.digest.to_string(),
                reason: "somebody else fills the store that is being restored",
            });
        }
    };
    let found = fill_from(&fill, blob.digest.hasher(blob.size_bytes), &mut file, &path, tell)?;
    fill.check(&path.display().to_string(), blob.digest, found)?;
    fill.seal(wanted).map(drop)
}
