//! Copies of a store that can be read without it, and stores made of them again: `backup` here, `check_backup` and `restore` beside it.
//!
//! ```text
//! DIR/model-cache-backup       says what this is, and how to check it by hand; its first line names the format
//!     lock                     empty; only ever locked
//!     blobs/sha256-<hex>       a file as it is, under the digest of its content; git-sha1-<hex> for those the Hub names so
//!     blobs/<name>.damaged     a file that was found damaged and that the store could not replace; nothing reads it
//!     snapshots/<n>.json       what was in the store at one moment: which file is which blob, refs, manifests, times
//!     snapshots/<n>.sha256     SHA-256 of that document and of every blob it speaks of, for `sha256sum --check`
//! ```
//! Nothing but plain files and renames, so that any file system will do. Every file is written beside its name (`.part`), synced, then
//! renamed; a snapshot counts once its document has its name, which comes last.

mod folder;
mod format;
mod restore;

pub(crate) use restore::leftover;
pub use restore::{BackupCheck, BadBackupFile, CheckOptions, RestoreOptions, RestoreReport};

use crate::{
    cache::ModelCache,
    digest::{Digest, Hasher},
    error::{Attempted, Error, Result},
    export::{io_error, real_folder, target_full},
    progress::{Paced, ProgressCallback},
    record::*,
    store::{LeftOut, Snapshot, Store, View},
};
use folder::{Folder, failed, shown_blob};
use std::{
    collections::{BTreeMap, HashMap, HashSet, btree_map::Entry},
    fs::{self, File},
    io,
    os::unix::fs::FileExt,
    path::Path,
    sync::Arc,
};
use storage::{CopyMethod, fail_point};
use tokio_util::sync::CancellationToken;

/// How much is read at once where a file is checked: what is still in the processor's cache when its CRC32C is computed.
const CHECK_BYTES: usize = 256 << 10;

/// How to back up.
#[derive(Clone)]
pub struct BackupOptions {
    /// How many snapshots of this store the backup has afterwards, this one included; older ones go, once this one is whole, and what only
    /// they need. Default: 2, so that what was removed from the store by mistake outlives the next backup.
    pub keep: u64,
    /// Whether snapshots of other stores count, and go, as this one's do. Default: no; they stay, so that a wrong store that is backed up
    /// takes nothing away, however often.
    pub drop_others: bool,
    /// Whether what is in the backup already is read and checked again, also what only older snapshots need, and copied anew where it is
    /// damaged; what the store can't replace loses its name, so that no later backup takes it for good: see [`BackupReport::bad`].
    /// Default: no; it is taken for what its name says, if its size agrees.
    pub recheck: bool,
    /// Called with bytes copied and bytes to copy. Default: nobody is.
    pub progress: Option<ProgressCallback>,
    /// Ends the backup early with [`Error::Cancelled`]; what was copied by then is not copied again by the next. Default: none.
    pub cancel: Option<CancellationToken>,
}

impl Default for BackupOptions {
    fn default() -> Self {
        Self { keep: 2, drop_others: false, recheck: false, progress: None, cancel: None }
    }
}

/// What a backup did.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct BackupReport {
    /// The number of the new snapshot.
    pub snapshot: u64,
    /// Files in it.
    pub files: u64,
    /// Bytes of their content; content with several names counts once.
    pub bytes: u64,
    /// Bytes that were copied now; the others were in the backup, or in what an interrupted one left.
    pub copied_bytes: u64,
    /// Of the copied ones, bytes that share their disk blocks with the store and take no space of their own.
    pub shared_bytes: u64,
    /// What is not in it, because it is damaged in the store, and the backup had no sound copy.
    pub left_out: Vec<LeftOut>,
    /// What older snapshots need and [`recheck`](BackupOptions::recheck) found damaged, where the store can't replace it.
    pub bad: Vec<BadBackupFile>,
    /// Files that were begun in the store and are not complete, so not in it.
    pub unfinished: Vec<String>,
    /// Whether the newest snapshot before is of another store, or nothing of it is in this one.
    pub another_store: bool,
    /// Whether older snapshots were kept because nothing of this store's newest one is in this one; the next backup drops them. Not
    /// with [`BackupOptions::drop_others`].
    pub kept_as_all_is_new: bool,
    /// Numbers of the older snapshots that are of other stores. They stay, and what they need, unless [`BackupOptions::drop_others`] is set.
    pub other_snapshots: Vec<u64>,
    /// Numbers of the snapshots that are gone now. None while anything is left out.
    pub dropped_snapshots: Vec<u64>,
    /// Bytes of content that went with them.
    pub dropped_bytes: u64,
    /// Numbers of older snapshots whose own files are damaged. What they need is not known, so no content was dropped.
    pub damaged_snapshots: Vec<u64>,
}

impl ModelCache {
    /// Copies the store into the backup at `to`, making it where there is none: every complete file, as it is at one moment, while
    /// reads, pulls and removals go on.
    ///
    /// Content that is in the backup is not copied again. Each block is checked against its CRC32C as it arrives: what is damaged is left
    /// out of the snapshot and told, and never takes the place of a sound copy. What is removed from the store meanwhile is
    /// copied still, and its space returns after that.
    ///
    /// # Errors
    /// [`Error::InvalidOption`] for a folder in the store or around it, or one that is in other use; [`Error::EmptyStore`] if the store has
    /// nothing and the newest snapshot has files; [`Error::Busy`] while another backup or
    /// restore is at it; [`Error::BackupFormat`]; [`Error::TargetFull`], [`Error::Io`] and [`Error::Cancelled`], after which the
    /// snapshots that were whole are as they were, and the next backup goes on where this one stopped. Damage is no error: see [`BackupReport::left_out`].
    ///
    /// # Durability
    /// Everything the snapshot needs has reached the disk before it counts.
    pub fn backup(&self, to: &Path, options: &BackupOptions) -> Result<BackupReport> {
        if options.keep == 0 {
            let reason = "a backup keeps its newest snapshot at least".to_owned();
            return Err(Error::InvalidOption { name: "keep", value: "0".to_owned(), reason });
        }
        self.refuse_entangled(to)?;
        let folder = Folder::open_to_write(to)?;
        let numbers = folder.snapshots()?;
        let Some(snapshot) = numbers.last().map_or(Some(1), |newest| newest.checked_add(1)) else {
            let reason = format!("no number comes after that of snapshots/{}.json in it; move that file elsewhere", u64::MAX);
            return Err(Error::InvalidOption { name: "DIR", value: to.display().to_string(), reason });
        };
        folder.drop_unfinished_snapshots()?;
        let mut old = Vec::new();
        for number in numbers {
            old.push((number, folder.read_snapshot(number)?));
        }
        let mut run = Run {
            store: self.store(),
            folder: &folder,
            options,
            there: folder.blobs()?,
            sha256s: HashMap::new(),
            damaged: HashMap::new(),
            report: BackupReport { snapshot, ..BackupReport::default() },
        };
        for document in old.iter().filter_map(|(_, read)| read.as_ref().ok()) {
            run.sha256s.extend(document.blobs.iter().filter_map(|blob| Some((blob.digest, blob.sha256()?))));
        }
        let document = run.copy()?;
        let newest = old.iter().rev().find_map(|(number, read)| Some((*number, read.as_ref().ok()?)));
        if let Some((snapshot, newest)) = newest.filter(|(_, newest)| !newest.files.is_empty()) {
            if document.files.is_empty() && document.left_out.is_empty() {
                let (store, path, files) = (self.store().folder().to_owned(), to.to_owned(), newest.files.len() as u64);
                return Err(Error::EmptyStore { store, path, snapshot, files });
            }
            run.report.another_store = !document.is_of_store_of(newest) || !document.shares_with(newest);
        }
        let plan = run.plan(&document, &old);
        run.recheck_older(&document, &plan)?;
        folder.finish_snapshot(run.report.snapshot, &document)?;
        run.drop_old(&document, plan)?;
        Ok(run.report)
    }

    /// That the store and a backup do not lie in one another.
    fn refuse_entangled(&self, to: &Path) -> Result<()> {
        let refuse = |reason: String| Err(Error::InvalidOption { name: "DIR", value: to.display().to_string(), reason });
        if self.is_own_folder(to)? {
            return refuse("it lies in the store itself, whose files are its own".to_owned());
        }
        let own = self.store().folder();
        let (real, own) = (real_folder(to).map_err(failed("find", to))?, fs::canonicalize(own).map_err(failed("find", own))?);
        if fs::canonicalize(to).is_ok() && own.starts_with(real) {
            return refuse(format!("the store {} lies in it", own.display()));
        }
        Ok(())
    }
}

/// A backup under way.
struct Run<'a> {
    store: &'a Arc<Store>,
    folder: &'a Folder,
    options: &'a BackupOptions,
    /// Content that was in the backup when this began, and its size.
    there: HashMap<Digest, u64>,
    /// SHA-256 of content that is named otherwise.
    sha256s: HashMap<Digest, Digest>,
    /// Content of the store that can't be copied, and why.
    damaged: HashMap<Digest, String>,
    report: BackupReport,
}

impl Run<'_> {
    fn is_there(&self, digest: &Digest, size_bytes: u64) -> bool {
        self.there.get(digest) == Some(&size_bytes)
    }

    /// Brings everything into the backup, and says what the snapshot is.
    fn copy(&mut self) -> Result<format::Document> {
        let recheck = self.options.recheck;
        let (folder, cancel) = (self.folder, self.options.cancel.as_ref());
        let (mut copied_bytes, mut small, mut damaged, mut sha256s) = (0, Vec::new(), HashMap::new(), HashMap::new());
        let snapshot = self.store.snapshot(
            |digest, blob| recheck || !self.is_there(digest, blob.size_bytes),
            |digest, blob, bytes| {
                crate::progress::go_on(cancel)?;
                match bytes {
                    _ if self.is_there(digest, blob.size_bytes) && is_sound(folder, digest, &blob.block_crcs)? => {}
                    Ok(bytes) => {
                        folder.write_part(digest, bytes)?;
                        fail_point("backup.small_written");
                        copied_bytes += bytes.len() as u64;
                        small.push(*digest);
                        sha256s.insert(*digest, folder::sha256(bytes));
                    }
                    Err(reason) => {
                        folder.set_aside(digest)?;
                        damaged.insert(*digest, reason);
                    }
                }
                Ok(())
            },
        )?;
        fail_point("backup.held");
        folder.finish_parts(&small, &|| crate::progress::go_on(cancel))?;
        self.report.copied_bytes += copied_bytes;
        self.damaged = damaged;
        self.sha256s.extend(sha256s);
        self.copy_extents(&snapshot)?;
        let document = self.document(&snapshot)?;
        drop(snapshot);
        Ok(document)
    }

    /// Copies what is wanted of the content that has extents, and lets go of each as soon as it is copied.
    fn copy_extents(&mut self, snapshot: &Snapshot) -> Result<()> {
        let wanted: Vec<_> = snapshot
            .blobs
            .iter()
            .filter(|(digest, blob)| !blob.is_inline() && (self.options.recheck || !self.is_there(digest, blob.size_bytes)))
            .collect();
        let total_bytes = wanted.iter().map(|(_, blob)| blob.size_bytes).sum();
        self.check_room(&wanted)?;
        let mut paced = Paced::new(self.options.progress.as_ref(), self.options.cancel.as_ref(), total_bytes);
        let mut done_bytes = 0;
        paced.tell(0)?;
        for (digest, blob) in wanted {
            let sound_here = self.is_there(digest, blob.size_bytes) && is_sound(self.folder, digest, &blob.block_crcs)?;
            if !sound_here {
                let mut tell = |bytes| paced.tell(done_bytes + bytes);
                match snapshot
                    .open(digest, blob)
                    .and_then(|view| self.copy_view(&view, digest, total_bytes - done_bytes, &mut tell))
                {
                    Ok(()) => {}
                    Err(error @ Error::Damaged { .. }) => {
                        tracing::debug!(%digest, error = %error.chain(), "not backed up");
                        self.folder.set_aside(digest)?;
                        self.damaged.insert(*digest, error.chain());
                    }
                    Err(error) => return Err(error),
                }
            }
            snapshot.release(digest, blob.id)?;
            done_bytes += blob.size_bytes;
            paced.tell(done_bytes)?;
        }
        Ok(())
    }

    /// The error for a backup that the disk has no room for, before any of it is taken.
    fn check_room(&self, wanted: &[(&Digest, &BlobRecord)]) -> Result<()> {
        let Some((first, _)) = wanted.first() else { return Ok(()) };
        let mut needed_bytes = 0;
        for (digest, blob) in wanted.iter().filter(|(digest, blob)| !self.is_there(digest, blob.size_bytes)) {
            needed_bytes += blob.size_bytes.saturating_sub(self.folder.part_bytes(digest));
        }
        let path = self.folder.path();
        let free_bytes = storage::free_bytes(path).attempted(|| format!("could not measure {}", path.display()))?;
        if needed_bytes <= free_bytes {
            return Ok(());
        }
        // Where blocks are shared a copy takes no room. What the trial leaves is overwritten, since no CRC32C will hold.
        let part = self.folder.open_part(first)?;
        if part.metadata().is_ok_and(|part| part.len() == 0) {
            if self.store.extents().reader().shares_blocks_with(&part) {
                return Ok(());
            }
            self.folder.drop_part(first)?;
        }
        Err(Error::TargetFull { path: path.to_owned(), needed_bytes, free_bytes })
    }

    /// Copies one blob, but for the blocks an interrupted backup left that are sound.
    ///
    /// # Errors
    /// [`Error::Damaged`] if a block is not what was sealed; then nothing is kept.
    fn copy_view(
        &mut self,
        view: &View,
        digest: &Digest,
        left_bytes: u64,
        tell: &mut dyn FnMut(u64) -> Result<()>,
    ) -> Result<()> {
        let size_bytes = view.size_bytes();
        let part = self.folder.open_part(digest)?;
        let begun_bytes = part.metadata().map_err(failed("look at", self.folder.path()))?.len();
        let (mut copied_bytes, mut shared_bytes) = (0, 0);
        let mut buffer = vec![0; CHECK_BYTES];
        for (block, &sealed) in view.sealed_crcs().iter().enumerate() {
            let range = block_range(size_bytes, block as u64);
            let arrived = |buffer: &mut [u8]| {
                crc_of(&part, range.clone(), buffer)
                    .map_err(|source| io_error("read back", self.folder.path(), source, left_bytes))
            };
            if range.end > begun_bytes || arrived(&mut buffer)? != sealed {
                let method = match view.copy_block_to(block as u64, &part) {
                    Ok(method) => method,
                    Err(error) if error.is_no_space() => return Err(target_full(self.folder.path(), left_bytes)),
                    // Either file may be what failed: the store's, if this can't read it.
                    Err(error) => {
                        self.check_source(view, digest, block as u64)?;
                        return Err(error).attempted(|| format!("could not back up {digest}"));
                    }
                };
                let found = arrived(&mut buffer)?;
                if found != sealed {
                    self.check_source(view, digest, block as u64)?;
                    let action = format!("block {block} of {digest} arrived with CRC32C {found:08x}, {sealed:08x} was read");
                    return Err(Error::Io {
                        action: "write",
                        path: self.folder.path().to_owned(),
                        source: io::Error::other(action),
                    });
                }
                copied_bytes += range.end - range.start;
                if method == CopyMethod::Reflink {
                    shared_bytes += range.end - range.start;
                }
                fail_point("backup.block_copied");
            }
            tell(range.end)?;
        }
        // Blocks of a disk are shared whole, so the last one may reach beyond the end.
        part.set_len(size_bytes).map_err(|source| io_error("write", self.folder.path(), source, left_bytes))?;
        if let Digest::GitSha1(_) = digest {
            self.sha256s.insert(*digest, sha256_of(&part).map_err(failed("read back", self.folder.path()))?);
        }
        self.folder.finish_part(digest, &part, size_bytes)?;
        // Not before: of what turns out to be damaged nothing is kept.
        self.report.copied_bytes += copied_bytes;
        self.report.shared_bytes += shared_bytes;
        Ok(())
    }

    /// # Errors
    /// [`Error::Damaged`] if the store itself can't deliver this block as it was sealed; what has been copied is dropped then.
    fn check_source(&self, view: &View, digest: &Digest, block: u64) -> Result<()> {
        let checked = view.check_blocks(&digest.to_string(), block_range(view.size_bytes(), block), &mut HashSet::new());
        let Err(error) = checked else { return Ok(()) };
        self.folder.drop_part(digest)?;
        let reason = error.chain();
        Err(match error {
            Error::Damaged { .. } => error,
            _ => Error::Damaged { what: digest.to_string(), reason },
        })
    }

    /// What the snapshot is: all of it that the backup has.
    fn document(&mut self, snapshot: &Snapshot) -> Result<format::Document> {
        let mut document = format::Document {
            format: format::FORMAT,
            program: format!("model-cache {}", env!("CARGO_PKG_VERSION")),
            created_unix_ms: now_unix_ms(),
            store: self.store_id(),
            blobs: Vec::new(),
            files: Vec::new(),
            refs: Vec::new(),
            manifests: Vec::new(),
            left_out: snapshot.left_out.clone(),
        };
        for (repo, path, metadata) in &snapshot.names {
            let digest: Digest = metadata.digest.parse()?;
            match self.damaged.get(&digest) {
                Some(reason) => document.left_out.push(LeftOut::file(repo, path, reason.clone())),
                None => {
                    let (repo, path, created_unix_ms) = (repo.clone(), path.clone(), metadata.created_unix_ms);
                    document.files.push(format::File { repo, path, digest, created_unix_ms });
                }
            }
        }
        for (digest, blob) in snapshot.blobs.iter().filter(|(digest, _)| !self.damaged.contains_key(digest)) {
            document.blobs.push(format::Blob {
                digest: *digest,
                size_bytes: blob.size_bytes,
                sha256: self.sha256(digest)?,
                block_crc32c: blob.block_crcs.clone(),
                created_unix_ms: blob.created_unix_ms,
                last_used_unix_ms: snapshot.last_used_unix_ms.get(&blob.id).copied(),
            });
        }
        for (repo, revision, record) in &snapshot.refs {
            let RefRecord { latest, checked_unix_ms, current } = record.clone();
            document.refs.push(format::Reference {
                repo: repo.clone(),
                revision: revision.clone(),
                latest,
                checked_unix_ms,
                current,
            });
        }
        let manifests = snapshot.manifests.iter();
        document.manifests.extend(manifests.map(|(repo, entry)| format::Manifest { repo: repo.clone(), entry: entry.clone() }));
        self.report.files = document.files.len() as u64;
        self.report.bytes = document.size_bytes();
        self.report.left_out.clone_from(&document.left_out);
        let fills = self.store.fills()?;
        self.report.unfinished = fills.into_iter().map(|fill| format!("{} {}", fill.repo, fill.path)).collect();
        Ok(document)
    }

    /// What snapshots of this store are told by. A store that can't be written to, or whose id is damaged, is backed up all the same.
    fn store_id(&self) -> Option<String> {
        let id =
            self.store.id().inspect_err(|error| tracing::warn!(error = %error.chain(), "the store gets no id for its backups"));
        id.ok().filter(|id| format::is_store_id(id))
    }

    /// The SHA-256 of content that is in the backup, where it is named otherwise.
    fn sha256(&self, digest: &Digest) -> Result<Option<Digest>> {
        let Digest::GitSha1(_) = digest else { return Ok(None) };
        if let Some(known) = self.sha256s.get(digest) {
            return Ok(Some(*known));
        }
        let hashed = self.folder.open_blob(digest).and_then(|file| sha256_of(&file));
        hashed.map(Some).map_err(failed("read back", self.folder.path()))
    }

    /// Which of the older snapshots go once the new one is whole.
    fn plan<'o>(&mut self, new: &format::Document, old: &'o [(u64, Old)]) -> Plan<'o> {
        let damaged = old.iter().filter(|(_, read)| read.is_err());
        self.report.damaged_snapshots = damaged.map(|(number, _)| *number).collect();
        let whole = old.iter().filter_map(|(number, read)| Some((*number, read.as_ref().ok()?)));
        let (own, others): (Vec<_>, Vec<_>) = whole.partition(|(_, older)| self.options.drop_others || new.is_of_store_of(older));
        self.report.other_snapshots = others.iter().map(|(number, _)| *number).collect();
        let all_is_new = own.last().is_some_and(|(_, newest)| !newest.files.is_empty() && !new.shares_with(newest));
        self.report.kept_as_all_is_new = all_is_new && !self.options.drop_others;
        if !self.report.left_out.is_empty() || self.report.kept_as_all_is_new {
            // An older snapshot may have what is missing here.
            return Plan { gone: None, stay: own.into_iter().chain(others).collect() };
        }
        let kept = own.len().min(usize::try_from(self.options.keep - 1).unwrap_or(usize::MAX));
        let (gone, kept) = own.split_at(own.len() - kept);
        let stay = kept.iter().chain(&others).copied().collect();
        Plan { gone: Some(gone.iter().map(|(number, _)| *number).collect()), stay }
    }

    /// Where it is to check again: looks at what only the older snapshots that stay need, and takes what is damaged of it from under its name.
    fn recheck_older(&mut self, new: &format::Document, plan: &Plan<'_>) -> Result<()> {
        if !self.options.recheck {
            return Ok(());
        }
        let copied: HashSet<_> = new.blobs.iter().map(|blob| blob.digest).collect();
        let mut checked: BTreeMap<Digest, Option<BadBackupFile>> = BTreeMap::new();
        for (number, document) in &plan.stay {
            let mut names = document.names();
            for blob in document.blobs.iter().filter(|blob| !copied.contains(&blob.digest)) {
                let found = match checked.entry(blob.digest) {
                    Entry::Occupied(found) => found.into_mut(),
                    Entry::Vacant(unread) => {
                        let go_on = &mut |_| crate::progress::go_on(self.options.cancel.as_ref());
                        let reason = restore::check_blob(self.folder, blob, go_on)?;
                        if reason.is_some() {
                            self.folder.set_aside(&blob.digest)?;
                        }
                        let bad = |reason| BadBackupFile::new(shown_blob(&blob.digest), reason, Vec::new());
                        unread.insert(reason.map(bad))
                    }
                };
                if let Some(bad) = found {
                    bad.snapshots.push(*number);
                    bad.names.extend(names.remove(&blob.digest).unwrap_or_default());
                }
            }
        }
        self.report.bad = checked.into_values().flatten().collect();
        for bad in &mut self.report.bad {
            bad.snapshots.sort_unstable();
            bad.names.sort_unstable();
            bad.names.dedup();
        }
        Ok(())
    }

    /// Takes away the snapshots that are to go, and the content no snapshot needs.
    fn drop_old(&mut self, new: &format::Document, plan: Plan<'_>) -> Result<()> {
        let Some(gone) = plan.gone else { return Ok(()) };
        for number in gone {
            self.folder.drop_snapshot(number)?;
            self.report.dropped_snapshots.push(number);
        }
        // Before content goes, or a power loss could bring back a document that speaks of it.
        self.folder.sync_snapshots()?;
        fail_point("backup.snapshots_synced");
        if !self.report.damaged_snapshots.is_empty() {
            return Ok(());
        }
        let documents = plan.stay.iter().map(|(_, document)| *document).chain([new]);
        let used: HashSet<Digest> = documents.flat_map(|document| document.blobs.iter().map(|blob| blob.digest)).collect();
        self.report.dropped_bytes = self.folder.drop_blobs(|digest| used.contains(digest))?.1;
        Ok(())
    }
}

/// A snapshot that was there, or which of its files is wrong, and how.
type Old = std::result::Result<format::Document, (String, String)>;

/// What is to become of the older snapshots.
struct Plan<'a> {
    /// Numbers of those that go; `None` where nothing goes, content that no snapshot needs neither.
    gone: Option<Vec<u64>>,
    /// The others, as far as they are whole.
    stay: Vec<(u64, &'a format::Document)>,
}

/// Whether a blob's file has these CRC32Cs.
fn is_sound(folder: &Folder, digest: &Digest, sealed: &[u32]) -> Result<bool> {
    let check = || -> io::Result<bool> {
        let file = folder.open_blob(digest)?;
        let size_bytes = file.metadata()?.len();
        let mut buffer = vec![0; CHECK_BYTES];
        for (block, &sealed) in sealed.iter().enumerate() {
            let range = block_range(size_bytes, block as u64);
            if range.is_empty() || crc_of(&file, range, &mut buffer)? != sealed {
                return Ok(false);
            }
        }
        Ok(blocks(size_bytes) == sealed.len() as u64)
    };
    // What can't be read is copied anew; where the disk is at its end, that will tell.
    Ok(check().unwrap_or(false))
}

/// The CRC32C of `range` of a file.
fn crc_of(file: &File, range: std::ops::Range<u64>, buffer: &mut [u8]) -> io::Result<u32> {
    let mut crc = 0;
    for at in range.clone().step_by(buffer.len()) {
        let part = &mut buffer[..(range.end - at).min(CHECK_BYTES as u64) as usize];
        file.read_exact_at(part, at)?;
        crc = crc32c::crc32c_append(crc, part);
    }
    Ok(crc)
}

/// The SHA-256 of all of a file.
fn sha256_of(file: &File) -> io::Result<Digest> {
    let mut hasher = Hasher::sha256();
    let mut buffer = vec![0; CHECK_BYTES];
    let mut at = 0;
    loop {
        match file.read_at(&mut buffer, at)? {
            0 => return Ok(hasher.finish()),
            read => {
                hasher.update(&buffer[..read]);
                at += read as u64;
            }
        }
    }
}
