//! The store on disk: [`Store`] opens it, and keeps blobs and names in step.
//!
//! ```text
//! <store>/model_cache_chunks/      extents: chunks of files over 64 KiB
//! <store>/model_cache_manifests/   records: names, blobs, manifests, refs, and files of up to 64 KiB
//! <store>/leases                   locks: who reads, who fills
//! <store>/ballast                  16 MiB for the day the disk is full
//! ```
//! The records are the truth. A file becomes visible only by the transaction that seals it. Lock order everywhere: the extents'
//! write transaction, then the records'. All of this is synchronous; [`crate::download`] calls it from blocking threads.

mod audit;
mod derive;
mod fill;
mod follow;
mod free;
#[cfg(test)]
mod protocol;
mod read;
mod repair;
mod snapshot;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod timing;

pub use audit::BadRecord;
pub(crate) use fill::{Acquired, Fill, Wanted, Working};
pub(crate) use follow::{Followers, spawn};
pub use free::Removed;
pub(crate) use free::Selection;
pub(crate) use read::{Content, StoredFile, View};
pub(crate) use repair::{MendedRecords, Suspect, discard};
pub use snapshot::LeftOut;
pub(crate) use snapshot::{Restored, Snapshot};

use crate::{
    error::{Attempted, Error, Result},
    key::{self, PinnedRepo},
    name::{FilePath, RepoSpec, Revision},
    record::*,
    units::iec,
};
use std::{
    collections::{HashMap, HashSet},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};
use storage::{
    Alignment, Ballast, Extents, GivenUp, LeaseFile, MAX_LEASE_ID, ReadTxn, Records, Shared, StorageRegistry, WriteTxn,
    fail_point,
};

pub(crate) const CHUNKS_FOLDER: &str = "model_cache_chunks";
pub(crate) const MANIFESTS_FOLDER: &str = "model_cache_manifests";
const CHUNKS_TABLE: &str = "chunks";
pub(crate) const BALLAST_BYTES: u64 = 16 << 20;
/// With less than this free, a commit of the records that failed did so for lack of space.
const RECORDS_ROOM_BYTES: u64 = 1 << 20;

/// Held shared by everybody who fills, so that a free can tell whether a sync would write somebody's gigabytes.
const ANY_FILL_LEASE: u64 = MAX_LEASE_ID;
/// Leases on activities begin here; blob ids lie below.
pub(crate) const ACTIVITY_LEASES: u64 = 1 << 60;

/// The files of a store. Others in its folder are none of its.
pub(crate) const OWN: [&str; 8] = [
    CHUNKS_FOLDER,
    "model_cache_chunks/mdbx.dat",
    "model_cache_chunks/mdbx.lck",
    MANIFESTS_FOLDER,
    "model_cache_manifests/mdbx.dat",
    "model_cache_manifests/mdbx.lck",
    "leases",
    "ballast",
];

/// An open store. Shared by everything that works on it.
pub(crate) struct Store {
    folder: PathBuf,
    records: Arc<Shared<Records>>,
    extents: Arc<Shared<Extents>>,
    leases: LeaseFile,
    ballast: Ballast,
    /// Blobs opened since the last time this was written down. Reading must not cost a durable transaction.
    touched: Mutex<HashMap<String, (u64, i64)>>,
    /// Damaged records that were logged: each once.
    told: Mutex<HashSet<String>>,
    /// Set once it was logged that the ballast is not whole, or found that it is.
    ballast_told: OnceLock<()>,
    /// While it is not there because this process wants its room, which says nothing of the disk.
    ballast_is_spared: AtomicBool,
    /// The number last given to a blob, once one was.
    given_id: Mutex<Option<u64>>,
    /// Set once the structures of each environment were found sound.
    records_are_sound: OnceLock<()>,
    extents_are_sound: OnceLock<()>,
}

/// A fill that was begun and is not sealed.
pub(crate) struct Unfinished {
    pub(crate) repo: PinnedRepo,
    pub(crate) path: FilePath,
    pub(crate) blob_key: String,
    pub(crate) size_bytes: u64,
    pub(crate) landed_bytes: u64,
}

impl Store {
    /// Opens the store in `folder`, creating it where missing, and finishes what a crash left half freed.
    pub(crate) fn open(registry: &StorageRegistry, folder: &Path) -> Result<Arc<Self>> {
        let opening = || format!("could not open the store {}", folder.display());
        storage::open_folder(folder).attempted(opening)?;
        let folder =
            std::path::absolute(folder).map_err(|source| Error::Io { action: "find", path: folder.to_owned(), source })?;
        for inner in [MANIFESTS_FOLDER, CHUNKS_FOLDER] {
            storage::refuse_link(&folder.join(inner)).attempted(opening)?;
        }
        let leases = LeaseFile::open(folder.join("leases")).attempted(opening)?;
        fail_point("open.leases_opened");
        let ballast = Ballast::new(folder.join("ballast"), BALLAST_BYTES);
        let room = ballast.give_up_if_needed().attempted(opening)?;
        // libmdbx writes through its mapping while it opens; a full disk would be SIGBUS there.
        if !storage::has_room(&folder, BALLAST_BYTES / 2).attempted(opening)? {
            let free_bytes = storage::free_bytes(&folder).attempted(opening)?;
            // Not the error that tells to remove something from the store: that needs to open it, too.
            return Err(Error::TargetFull { path: folder, needed_bytes: BALLAST_BYTES / 2, free_bytes });
        }
        refuse_lost_records(&folder)?;
        let records = registry.records(&folder.join(MANIFESTS_FOLDER), &TABLES).attempted(opening)?;
        fail_point("open.records_opened");
        let alignment = match check_format(&folder, &records)? {
            1 => Alignment::Page,
            _ => Alignment::LargePage,
        };
        fail_point("open.format_checked");
        let extents = registry.extents(&folder.join(CHUNKS_FOLDER), CHUNKS_TABLE, alignment).attempted(opening)?;
        fail_point("open.extents_opened");
        ballast.take().attempted(opening)?;
        drop(room);
        fail_point("open.ballast_taken");
        let store = Arc::new(Self {
            folder,
            records,
            extents,
            leases,
            ballast,
            touched: Mutex::default(),
            told: Mutex::default(),
            ballast_told: OnceLock::new(),
            ballast_is_spared: AtomicBool::new(false),
            given_id: Mutex::default(),
            records_are_sound: OnceLock::new(),
            extents_are_sound: OnceLock::new(),
        });
        // What can't be freed now must not keep anybody from what is here.
        for freed in [store.free_doomed(), store.free_abandoned()] {
            if let Err(error) = freed {
                tracing::warn!(%error, "what a crash left to be freed was not freed yet");
            }
        }
        Ok(store)
    }

    /// Says, once, that the disk is too full for the ballast: to who adds to the store. Who only reads, or makes room, can do nothing
    /// else about it.
    fn tell_ballast(&self) {
        if self.ballast_is_spared.load(Ordering::Relaxed) {
            return;
        }
        self.ballast_told.get_or_init(|| {
            let taken_bytes = self.ballast.taken_bytes();
            if taken_bytes < BALLAST_BYTES {
                tracing::warn!(
                    "the disk is nearly full: {} of the {} that are kept back for removals on a full disk are there",
                    iec(taken_bytes),
                    iec(BALLAST_BYTES)
                );
            }
        });
    }

    /// Whether there is a store in `folder`, whole or not, or what opening it tells of: no folder, or one that may not be looked into.
    pub(crate) fn is_in(folder: &Path) -> bool {
        let is_missing = |inner: &Path| inner.symlink_metadata().is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound);
        [MANIFESTS_FOLDER, CHUNKS_FOLDER].iter().any(|inner| !is_missing(&folder.join(inner)))
    }

    /// What lies in the folder of a store and is none of its files, sorted; folders end in "/".
    pub(crate) fn others_in(folder: &Path) -> Result<Vec<String>> {
        let mut others = Vec::new();
        for inner in ["", CHUNKS_FOLDER, MANIFESTS_FOLDER] {
            let listed = folder.join(inner);
            let failed = |source| Error::Io { action: "list", path: listed.clone(), source };
            let entries = match std::fs::read_dir(&listed) {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                entries => entries.map_err(failed)?,
            };
            for entry in entries {
                let entry = entry.map_err(failed)?;
                let name = Path::new(inner).join(entry.file_name());
                if !OWN.iter().any(|own| name == Path::new(own)) {
                    let end = if entry.file_type().is_ok_and(|there| there.is_dir()) { "/" } else { "" };
                    others.push(format!("{}{end}", name.display()));
                }
            }
        }
        others.sort();
        Ok(others)
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    pub(crate) fn extents(&self) -> &Extents {
        &self.extents
    }

    fn begin_read(&self) -> Result<ReadTxn<'_>> {
        self.records.begin_read().attempted(|| "could not read the store's records".to_owned())
    }

    /// Begins a write of the records. Before this process's first, libmdbx's structures are checked: written on, a damaged page destroys more.
    ///
    /// Cost: once, a read of every page of the records.
    fn begin_write(&self) -> Result<WriteTxn<'_>> {
        check_once(&self.records_are_sound, || self.records.check_structure(), &self.folder)?;
        self.records.begin_write().attempted(writing)
    }

    /// Looks, before this process's first write of the extents' keys, whether libmdbx's structures of them are sound: what it moves within a
    /// damaged page may come to lie on the extents beside it. To be asked with no transaction open.
    ///
    /// Cost: once, a read of every page of keys and of each extent's first.
    fn extents_may_be_written(&self) -> Result<()> {
        check_once(&self.extents_are_sound, || self.extents.check_structure(), &self.folder)
    }

    /// Commits a write of the records; what was opened since the last one is written down with it.
    ///
    /// On a full disk libmdbx says no more than that the write failed: why is found out here.
    fn commit(&self, txn: WriteTxn<'_>) -> Result<()> {
        let touched = std::mem::take(&mut *self.lock_touched());
        let written = touched.iter().try_for_each(|(blob_key, &(id, last_used_unix_ms))| {
            // Freed since by another process, it must not leave a record behind; and a damaged row must keep nobody from writing.
            match txn.get(&BLOBS, blob_key) {
                Ok(Some(blob)) if blob.id == id => txn.put(&ACCESS, &key::access(id), &AccessRecord { last_used_unix_ms }),
                Ok(_) | Err(storage::Error::BadRecord { .. }) => Ok(()),
                Err(error) => Err(error),
            }
        });
        fail_point("commit.uses_put");
        let committed = written.and_then(|()| txn.commit()).attempted(writing);
        if committed.is_err() {
            let mut now = self.lock_touched();
            for (blob_key, used) in touched {
                now.entry(blob_key).or_insert(used);
            }
        }
        committed.map_err(|error| match storage::free_bytes(&self.folder) {
            Ok(free_bytes) if free_bytes < RECORDS_ROOM_BYTES => {
                Error::NoSpace { what: "the store's records".to_owned(), needed_bytes: RECORDS_ROOM_BYTES, free_bytes }
            }
            _ => error,
        })
    }

    fn touch(&self, blob_key: &str, id: u64) {
        self.lock_touched().insert(blob_key.to_owned(), (id, now_unix_ms()));
    }

    fn lock_touched(&self) -> MutexGuard<'_, HashMap<String, (u64, i64)>> {
        // Single inserts and a take leave it whole even if a holder panicked.
        self.touched.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes the disk has for new content: what is free, less the room libmdbx needs.
    pub(crate) fn free_bytes(&self) -> Result<u64> {
        let free_bytes =
            storage::free_bytes(&self.folder).attempted(|| format!("could not measure {}", self.folder.display()))?;
        Ok(free_bytes.saturating_sub(BALLAST_BYTES))
    }

    /// Bytes a disk must have free for a store of blobs of these sizes to be made, while its ballast is [spared](Self::spare_ballast): their
    /// chunks' headers and records, and what libmdbx must find free beside the last of them.
    pub(crate) fn needed_bytes(sizes: impl Iterator<Item = u64>) -> u64 {
        // Before each environment is made; beside small files alone, as the next open asks for; beside what is filled, with the spare.
        const TO_OPEN_BYTES: u64 = BALLAST_BYTES + RECORDS_ROOM_BYTES;
        const TO_WRITE_BYTES: u64 = BALLAST_BYTES / 2 + RECORDS_ROOM_BYTES;
        const TO_FILL_BYTES: u64 = BALLAST_BYTES + storage::SPARE_BYTES + RECORDS_ROOM_BYTES;
        const ROW_BYTES: u64 = 1 << 10;
        let (mut needed_bytes, mut beside_bytes) = (0u64, TO_WRITE_BYTES);
        for size_bytes in sizes {
            let content_bytes = if size_bytes <= INLINE_BYTES {
                size_bytes.next_multiple_of(4 << 10)
            } else {
                beside_bytes = TO_FILL_BYTES;
                size_bytes.saturating_add(u64::from(chunks(size_bytes)) * storage::HEADER_REGION_BYTES)
            };
            needed_bytes = needed_bytes.saturating_add(content_bytes).saturating_add(ROW_BYTES);
        }
        needed_bytes.saturating_add(beside_bytes).max(TO_OPEN_BYTES)
    }

    /// Gives the ballast's room up until it is [taken back](Self::take_ballast_back): to a store that is being made it is no use yet.
    pub(crate) fn spare_ballast(&self) -> Result<GivenUp<'_>> {
        let spared = self.ballast.give_up().attempted(writing)?;
        self.ballast_is_spared.store(true, Ordering::Relaxed);
        Ok(spared)
    }

    /// Takes the ballast's room back, and says where the disk is too full for it.
    pub(crate) fn take_ballast_back(&self, spared: GivenUp<'_>) {
        drop(spared);
        self.ballast_is_spared.store(false, Ordering::Relaxed);
        self.tell_ballast();
    }

    // -- activities ----------------------------------------------------------------------------------------------

    /// Says, for as long as the lease is held, that `activity` is under way; processes that look see it.
    pub(crate) fn begin_activity(&self, activity: &str) -> Result<Option<storage::Lease>> {
        self.leases.try_shared(activity_lease(activity)).attempted(|| format!("could not announce {activity}"))
    }

    /// Whether any process has `activity` under way.
    pub(crate) fn is_active(&self, activity: &str) -> Result<bool> {
        self.leases.is_held(activity_lease(activity)).attempted(|| format!("could not look for {activity}"))
    }

    // -- refs and manifests --------------------------------------------------------------------------------------

    /// Writes down which commit the Hub says `revision` is, and what that commit offers. Local reads stay where they are.
    pub(crate) fn put_listing(&self, repo: &PinnedRepo, revision: &Revision, manifest: &ManifestEntry) -> Result<()> {
        let Some(commit) = &repo.commit else { return Ok(()) };
        let txn = self.begin_write()?;
        let key = key::reference(&repo.repo, revision);
        let old = txn.get(&REFS, &key).attempted(writing)?;
        let record = RefRecord {
            latest: commit.to_string(),
            checked_unix_ms: now_unix_ms(),
            current: old.and_then(|record| record.current),
        };
        txn.put(&REFS, &key, &record).attempted(writing)?;
        // A commit's never changes. It may have been removed since it was looked for, and a ref leads to one that is here.
        let manifest_key = key::manifest(repo);
        if txn.get(&MANIFESTS, &manifest_key).attempted(writing)?.is_none() {
            txn.put(&MANIFESTS, &manifest_key, manifest).attempted(writing)?;
        }
        fail_point("listing.put");
        self.commit(txn)?;
        fail_point("listing.committed");
        Ok(())
    }

    pub(crate) fn get_manifest(&self, repo: &PinnedRepo) -> Result<Option<ManifestEntry>> {
        self.begin_read()?.get(&MANIFESTS, &key::manifest(repo)).attempted(|| format!("could not read the manifest of {repo}"))
    }

    /// Writes down, or clears, why the last pull of `quants` failed.
    pub(crate) fn set_last_error(&self, repo: &PinnedRepo, quants: &[String], error: Option<&str>) -> Result<()> {
        let differs = |manifest: &ManifestEntry| {
            let mut chosen = manifest.quants.iter().filter(|quant| quants.contains(&quant.key));
            chosen.any(|quant| quant.last_error.as_deref() != error)
        };
        if !self.get_manifest(repo)?.as_ref().is_some_and(differs) {
            return Ok(());
        }
        let txn = self.begin_write()?;
        let key = key::manifest(repo);
        let Some(mut manifest) = txn.get(&MANIFESTS, &key).attempted(writing)? else { return Ok(()) };
        for quant in manifest.quants.iter_mut().filter(|quant| quants.contains(&quant.key)) {
            quant.last_error = error.map(str::to_owned);
        }
        txn.put(&MANIFESTS, &key, &manifest).attempted(writing)?;
        self.commit(txn)
    }

    /// Ends a pull of `files`: makes `repo`'s commit the one local reads of `revision` go to, and takes along the files whose content
    /// it shares with the commit before, so that a new revision shadows nothing that did not change.
    ///
    /// # Errors
    /// [`Error::RemovedMeanwhile`], with nothing changed, if a name of `files` is gone by now.
    pub(crate) fn finish_pull<'a>(
        &self,
        repo: &PinnedRepo,
        revision: &Revision,
        manifest: &ManifestEntry,
        files: impl Iterator<Item = &'a FilePath>,
    ) -> Result<()> {
        let Some(commit) = &repo.commit else { return Ok(()) };
        let txn = self.begin_write()?;
        let mut gone = Vec::new();
        for path in files {
            if txn.get(&METADATA, &key::meta(repo, path)).attempted(writing)?.is_none() {
                gone.push(path);
            }
        }
        if let Some(path) = gone.first() {
            return Err(Error::RemovedMeanwhile { repo: repo.repo.clone(), count: gone.len(), path: (*path).clone() });
        }
        // Both are there, unless somebody removed the repo before its first file was sealed.
        let manifest_key = key::manifest(repo);
        if txn.get(&MANIFESTS, &manifest_key).attempted(writing)?.is_none() {
            txn.put(&MANIFESTS, &manifest_key, manifest).attempted(writing)?;
        }
        let ref_key = key::reference(&repo.repo, revision);
        let known = txn.get(&REFS, &ref_key).attempted(writing)?;
        let mut record =
            known.unwrap_or_else(|| RefRecord { latest: commit.to_string(), checked_unix_ms: now_unix_ms(), current: None });
        let before = record.current.replace(commit.to_string());
        txn.put(&REFS, &ref_key, &record).attempted(writing)?;
        if let Some(before) = before.filter(|before| before != commit.as_str()) {
            carry_over(&txn, &PinnedRepo::new(repo.repo.clone(), before.parse()?), repo, manifest)?;
        }
        fail_point("pull.ref_moved");
        self.commit(txn)?;
        fail_point("pull.finished");
        Ok(())
    }

    /// The pinned repos local reads of `spec` go to, best first.
    ///
    /// A commit means itself. Else: the commit of the last pull of that revision that finished; the one the Hub named last; and,
    /// where no revision was asked for, an import of that name.
    pub(crate) fn local_repos(&self, spec: &RepoSpec) -> Result<Vec<PinnedRepo>> {
        local_repos(&self.begin_read()?, spec)
    }

    /// Whether local reads of `spec` find a file `path`: complete and verified, since it has a name.
    ///
    /// Cost: one read transaction; nothing of the file itself.
    pub(crate) fn has_file(&self, spec: &RepoSpec, path: &FilePath) -> Result<bool> {
        let txn = self.begin_read()?;
        for repo in local_repos(&txn, spec)? {
            let metadata = txn.get(&METADATA, &key::meta(&repo, path));
            if metadata.attempted(|| format!("could not look for {repo} {path}"))?.is_some() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Every pinned form of `spec` that has a file here, complete or begun, or a listing: the given revision's alone, or all commits and the import.
    pub(crate) fn all_repos(&self, spec: &RepoSpec) -> Result<Vec<PinnedRepo>> {
        if spec.revision.is_some() {
            let mut repos = self.local_repos(spec)?;
            repos.truncate(1);
            return Ok(repos);
        }
        let mut found: Vec<PinnedRepo> = Vec::new();
        let txn = self.begin_read()?;
        // By their keys alone: what is damaged has to be found too, to be removed or repaired.
        for prefix in [format!("meta:{}@", spec.repo), format!("meta:{}:", spec.repo)] {
            txn.scan_all(&METADATA, &prefix, |key, _| {
                if let Some((repo, _)) = key::parse_meta(key)
                    && found.last() != Some(&repo)
                {
                    found.push(repo);
                }
                Ok::<_, storage::Error>(())
            })
            .attempted(|| format!("could not list the files of {}", spec.repo))?;
        }
        for Unfinished { repo, .. } in self.fills()? {
            if repo.repo == spec.repo && !found.contains(&repo) {
                found.push(repo);
            }
        }
        // Commits of which only a listing is here.
        txn.scan_all(&MANIFESTS, &key::manifest_prefix(&spec.repo), |key, _| {
            let commit = key.rsplit_once('@').and_then(|(_, commit)| commit.parse().ok());
            if let Some(commit) = commit {
                let repo = PinnedRepo::new(spec.repo.clone(), commit);
                if !found.contains(&repo) {
                    found.push(repo);
                }
            }
            Ok::<_, storage::Error>(())
        })
        .attempted(|| format!("could not list the manifests of {}", spec.repo))?;
        Ok(found)
    }

    /// Whether `repo` has a file `path`.
    pub(crate) fn has_name(&self, repo: &PinnedRepo, path: &FilePath) -> Result<bool> {
        let metadata = self.begin_read()?.get(&METADATA, &key::meta(repo, path));
        Ok(metadata.attempted(|| format!("could not look for {} {path}", repo.repo))?.is_some())
    }

    // -- listings ------------------------------------------------------------------------------------------------

    /// Every name of `repo`, with what it promises.
    pub(crate) fn files_of(&self, repo: &PinnedRepo) -> Result<Vec<(FilePath, FileMetadata)>> {
        Ok(self.names_below(&key::meta_prefix(repo))?.into_iter().map(|(_, path, metadata)| (path, metadata)).collect())
    }

    /// Every name in the store, in key order.
    pub(crate) fn all_files(&self) -> Result<Vec<(PinnedRepo, FilePath, FileMetadata)>> {
        self.names_below("meta:")
    }

    fn names_below(&self, prefix: &str) -> Result<Vec<(PinnedRepo, FilePath, FileMetadata)>> {
        let mut found = Vec::new();
        self.each_name(prefix, |repo, path, metadata| found.push((repo, path, metadata)))?;
        Ok(found)
    }

    /// Calls `each` with every name whose key begins with `prefix`, in key order: those of one repo follow one another. Gives what is
    /// wrong with those whose record is damaged.
    pub(crate) fn each_name(
        &self,
        prefix: &str,
        mut each: impl FnMut(PinnedRepo, FilePath, FileMetadata),
    ) -> Result<Vec<storage::Error>> {
        let damaged = self.begin_read()?.scan_sound(&METADATA, prefix, |key, metadata| {
            if let Some((repo, path)) = key::parse_meta(key) {
                each(repo, path, metadata);
            }
        });
        Ok(self.told(damaged.attempted(|| "could not list the files of the store".to_owned())?))
    }

    /// Logs each damaged record once. One must not keep anybody from the others, nor go unnoticed.
    fn told(&self, damaged: Vec<storage::Error>) -> Vec<storage::Error> {
        for error in &damaged {
            if self.told.lock().unwrap_or_else(PoisonError::into_inner).insert(error.to_string()) {
                tracing::warn!("{error}; it was passed over; to mend it: model-cache repair");
            }
        }
        damaged
    }

    /// Every blob's key and row.
    pub(crate) fn all_blobs(&self) -> Result<Vec<(String, BlobRecord)>> {
        self.blobs_below("")
    }

    /// Every blob whose key begins with `prefix`.
    pub(crate) fn blobs_below(&self, prefix: &str) -> Result<Vec<(String, BlobRecord)>> {
        let mut found = Vec::new();
        self.each_blob(prefix, |key, blob| found.push((key.to_owned(), blob)))?;
        Ok(found)
    }

    /// Calls `each` with the key and row of every blob whose key begins with `prefix`. Gives what is wrong with those whose row is
    /// damaged.
    pub(crate) fn each_blob(&self, prefix: &str, each: impl FnMut(&str, BlobRecord)) -> Result<Vec<storage::Error>> {
        let damaged = self.begin_read()?.scan_sound(&BLOBS, prefix, each);
        Ok(self.told(damaged.attempted(|| "could not list the blobs of the store".to_owned())?))
    }

    /// Every unfinished fill.
    pub(crate) fn fills(&self) -> Result<Vec<Unfinished>> {
        let mut filling = Vec::new();
        self.each_blob("", |blob_key, blob| {
            if blob.state == BlobState::Filling {
                filling.push((blob_key.to_owned(), blob));
            }
        })?;
        let mut found = Vec::new();
        for (blob_key, blob) in filling {
            if let Some((repo, path)) = key::parse_home(&blob.home) {
                let landed_bytes = self.landed_bytes(&blob_key)?;
                found.push(Unfinished { repo, path, blob_key, size_bytes: blob.size_bytes, landed_bytes });
            }
        }
        Ok(found)
    }

    /// When each blob was last opened, by its id, as far as that was written down, or is known in this process.
    pub(crate) fn last_used_unix_ms(&self) -> Result<HashMap<u64, i64>> {
        let mut found = HashMap::new();
        let damaged = self.begin_read()?.scan_sound(&ACCESS, "", |key, record| {
            found.extend(key::parse_access(key).map(|id| (id, record.last_used_unix_ms)));
        });
        self.told(damaged.attempted(|| "could not read when files were last used".to_owned())?);
        found.extend(self.lock_touched().values().copied());
        Ok(found)
    }

    /// The ids of the blobs that are read or filled now.
    pub(crate) fn leased(&self) -> Result<HashSet<u64>> {
        self.leases.held_below(ACTIVITY_LEASES).attempted(|| "could not look for readers".to_owned())
    }

    /// The processes that hold a lease on blob `id`, as far as this one may look. Walks `/proc`: for those of [`leased`](Self::leased).
    pub(crate) fn holders(&self, id: u64) -> Vec<u32> {
        self.leases.holders(id)
    }

    /// The row of the blob with `key`.
    pub(crate) fn blob(&self, key: &str) -> Result<Option<BlobRecord>> {
        self.begin_read()?.get(&BLOBS, key).attempted(|| format!("could not read {key}"))
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        if !self.touched.get_mut().unwrap_or_else(PoisonError::into_inner).is_empty() {
            let written = self.begin_write().and_then(|txn| self.commit(txn));
            if let Err(error) = written {
                tracing::debug!(%error, "times of last use were not written down");
            }
        }
    }
}

/// As [`Store::local_repos`], in one snapshot with what else is read.
fn local_repos(txn: &ReadTxn<'_>, spec: &RepoSpec) -> Result<Vec<PinnedRepo>> {
    if let Some(commit) = spec.revision.as_ref().and_then(Revision::as_commit) {
        return Ok(vec![PinnedRepo::new(spec.repo.clone(), commit)]);
    }
    let mut found = Vec::new();
    let record = txn.get(&REFS, &key::reference(&spec.repo, &spec.revision_or_main()));
    if let Some(record) = record.attempted(|| format!("could not read the refs of {}", spec.repo))? {
        for commit in record.current.iter().chain([&record.latest]) {
            let repo = PinnedRepo::new(spec.repo.clone(), commit.parse()?);
            if !found.contains(&repo) {
                found.push(repo);
            }
        }
    }
    if spec.revision.is_none() {
        found.push(PinnedRepo::import(spec.repo.clone()));
    }
    Ok(found)
}

/// Names at `repo` the files it shares with `before`, path and content both, where they have no name yet.
fn carry_over(txn: &WriteTxn<'_>, before: &PinnedRepo, repo: &PinnedRepo, manifest: &ManifestEntry) -> Result<()> {
    for file in &manifest.files {
        let path: FilePath = file.path.parse()?;
        let Some(old) = txn.get(&METADATA, &key::meta(before, &path)).attempted(writing)? else { continue };
        let new_key = key::meta(repo, &path);
        if old.digest != file.digest || txn.get(&METADATA, &new_key).attempted(writing)?.is_some() {
            continue;
        }
        let blob_key = format!("blob:{}", old.digest);
        let Some(mut blob) = txn.get(&BLOBS, &blob_key).attempted(writing)? else { continue };
        if blob.state == BlobState::Sealed && blob.id == old.blob_id {
            link(txn, &mut blob, &blob_key, new_key, &old)?;
            fail_point("pull.name_carried_over");
        }
    }
    Ok(())
}

/// Adds a name to a blob, in `txn`.
fn link(txn: &WriteTxn<'_>, blob: &mut BlobRecord, blob_key: &str, meta_key: String, metadata: &FileMetadata) -> Result<()> {
    txn.put(&METADATA, &meta_key, metadata).attempted(writing)?;
    if !blob.names.contains(&meta_key) {
        blob.names.push(meta_key);
    }
    txn.put(&BLOBS, blob_key, blob).attempted(writing)
}

/// Refuses chunks whose records are gone. Empty ones in their place would hide the loss, and the next `gc` would free every chunk.
fn refuse_lost_records(folder: &Path) -> Result<()> {
    let file = |name: &str| std::fs::symlink_metadata(folder.join(name).join("mdbx.dat")).ok();
    // What is no plain file is refused as such.
    let bytes = |name: &str| file(name).filter(|metadata| metadata.is_file()).map_or(0, |metadata| metadata.len());
    // In this order: a process that makes the store just now makes its records first.
    if bytes(CHUNKS_FOLDER) > 0 && bytes(MANIFESTS_FOLDER) == 0 {
        return Err(storage::Error::BadEnvironment {
            action: "open",
            environment: folder.join(MANIFESTS_FOLDER),
            source: format!("{MANIFESTS_FOLDER}/mdbx.dat is empty or gone, and the chunks it has the records of are here").into(),
        })
        .attempted(|| format!("could not open the store {}", folder.display()));
    }
    Ok(())
}

/// The store's format. Refuses a newer one before anything of it is read or written; marks a new store.
fn check_format(folder: &Path, records: &Records) -> Result<u32> {
    let reading = || format!("could not read the format of the store {}", folder.display());
    let found = records.begin_read().attempted(reading)?.get_bytes(&STORE, "format").attempted(reading)?;
    match found {
        Some(bytes) => match format_of(&bytes) {
            Ok(found @ 1..=FORMAT) => Ok(found),
            Ok(found) => Err(Error::StoreFormat { store: folder.to_owned(), found, supported: FORMAT }),
            Err(reason) => Err(Error::Damaged { what: format!("the store {}", folder.display()), reason }),
        },
        None => {
            let txn = records.begin_write().attempted(writing)?;
            // A store whose format is gone is not a new one: taken for it, chunks of another alignment would be looked for elsewhere.
            let mut in_use = false;
            txn.scan_all(&BLOBS, "", |_, _| {
                in_use = true;
                Ok::<_, storage::Error>(())
            })
            .attempted(writing)?;
            if in_use && txn.get_bytes(&STORE, "format").attempted(writing)?.is_none() {
                let what = format!("the store {}", folder.display());
                return Err(Error::Damaged { what, reason: "its format number is gone".to_owned() });
            }
            let is_new = txn.insert_bytes(&STORE, "format", &FORMAT.to_le_bytes()).attempted(writing)?;
            txn.commit().attempted(writing)?;
            fail_point("open.format_written");
            // Else another process, perhaps of another build, was first.
            if is_new { Ok(FORMAT) } else { check_format(folder, records) }
        }
    }
}

/// The number in the record `format`, or what is wrong with it.
pub(crate) fn format_of(bytes: &[u8]) -> std::result::Result<u32, String> {
    let number = bytes.try_into().map(u32::from_le_bytes);
    number.map_err(|_| format!("its format number has {} bytes, not 4", bytes.len()))
}

fn check_once(is_sound: &OnceLock<()>, check: impl FnOnce() -> storage::Result<()>, folder: &Path) -> Result<()> {
    if is_sound.get().is_none() {
        check().attempted(|| format!("the store {} is not written to", folder.display()))?;
        // Who was first found the same.
        let _ = is_sound.set(());
    }
    Ok(())
}

fn activity_lease(activity: &str) -> u64 {
    use sha2::Digest;
    let hash = sha2::Sha256::digest(activity.as_bytes());
    let number = u64::from_le_bytes(hash[..8].try_into().expect("a digest has 32 bytes"));
    // The last number is taken by ANY_FILL_LEASE.
    ACTIVITY_LEASES + number % (MAX_LEASE_ID - ACTIVITY_LEASES)
}

fn writing() -> String {
    "could not write the store's records".to_owned()
}
