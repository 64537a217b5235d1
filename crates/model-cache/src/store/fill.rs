//! How content comes in: [`Store::acquire`] finds or begins a blob, [`Fill`] writes into it, and a seal makes it visible.

use super::{
    ACTIVITY_LEASES, ANY_FILL_LEASE, Store,
    free::{Fate, blob_of_name},
    link, writing,
};
use crate::{
    digest::{Digest, Hasher},
    error::{Attempted, Error, Result},
    key::{self, PinnedRepo},
    name::FilePath,
    record::*,
};
use std::{
    ops::Range,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};
use storage::{DataFile, Extent, ExtentSpec, Lease, fail_point};

/// How much is read at once where a file is hashed or checked: what stays in a core's own cache between being read and hashed.
pub(super) const READ_BYTES: usize = 256 << 10;
/// How many new numbers may be leased already; each by a process that is being killed.
const MOST_NUMBERS_TAKEN: usize = 64;

/// A file somebody wants in the store.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    pub(crate) repo: PinnedRepo,
    pub(crate) path: FilePath,
    pub(crate) size_bytes: u64,
    pub(crate) digest: Digest,
}

impl Wanted {
    pub(super) fn metadata(&self, blob_id: u64) -> FileMetadata {
        FileMetadata {
            size_bytes: self.size_bytes,
            digest: self.digest.to_string(),
            content_type: content_type(self.path.as_str()).to_owned(),
            blob_id,
            created_unix_ms: now_unix_ms(),
        }
    }

    pub(super) fn name(&self) -> String {
        format!("{} {}", self.repo.repo, self.path)
    }
}

/// What [`Store::acquire`] found.
pub(crate) enum Acquired {
    /// The content was here; the name now leads to it.
    Here,
    /// Another fill of it is under way, or its last reader's freeing; `landed_bytes` of it so far.
    Busy { landed_bytes: u64 },
    /// The caller fills it.
    Fill(Arc<Fill>),
}

impl Store {
    /// The id of blob rows to come; never given twice.
    fn next_blob_id(&self, txn: &storage::WriteTxn<'_>) -> Result<u64> {
        let damaged = |reason| Error::Damaged { what: "the store's counter of blobs".to_owned(), reason };
        let stored = txn.get_bytes(&STORE, "next_blob_id").attempted(writing)?;
        let id = match stored {
            None => 1,
            Some(bytes) => <[u8; 8]>::try_from(bytes.as_slice())
                .map(u64::from_le_bytes)
                .map_err(|_| damaged(format!("it has {} bytes, not 8", bytes.len())))?,
        };
        // The counter has no checksum, and a number given twice would have one blob's extents freed with another's.
        let mut given = self.given_id.lock().unwrap_or_else(PoisonError::into_inner);
        let least = match *given {
            // A transaction that was dropped gives its number to the next.
            Some(given) => given,
            None => {
                let mut least = 1;
                txn.scan_sound(&BLOBS, "", |_, blob| least = least.max(blob.id + 1)).attempted(writing)?;
                least
            }
        };
        if id < least || id >= ACTIVITY_LEASES {
            return Err(damaged(format!("it says {id}, and numbers below {least} are taken")));
        }
        *given = Some(id);
        txn.put_bytes(&STORE, "next_blob_id", &(id + 1).to_le_bytes()).attempted(writing)?;
        Ok(id)
    }

    /// Finds `wanted` in the store and names it, or begins or resumes its fill. Never waits for another filler.
    ///
    /// Resuming reads what had landed and believes only blocks whose CRC32C holds: cost, one read of it from disk.
    ///
    /// # Errors
    /// [`Error::NoSpace`] before anything was fetched.
    pub(crate) fn acquire(self: &Arc<Self>, wanted: &Wanted) -> Result<Acquired> {
        debug_assert!(wanted.size_bytes > INLINE_BYTES, "small files are sealed in one transaction");
        let blob_key = key::blob(&wanted.digest);
        loop {
            // Looked up in a read first: whoever waits for another's fill asks again and again, and takes no writer's place.
            let (blob, lease, begun) = match self.blob(&blob_key)? {
                Some(blob) if blob.size_bytes != wanted.size_bytes => {
                    // Begun for a listing that gave the same digest with another size: one of the two lied.
                    if self.free_unfinished(&blob_key)? {
                        continue;
                    }
                    return Err(Error::BadAnswer {
                        url: wanted.name(),
                        reason: format!(
                            "{} is listed with {} bytes, and is here with {}",
                            wanted.digest, wanted.size_bytes, blob.size_bytes
                        ),
                    });
                }
                Some(blob) if blob.state == BlobState::Filling => {
                    let lease = self.leases.try_exclusive(blob.id).attempted(|| format!("could not lease {blob_key}"))?;
                    let Some(lease) = lease else {
                        return Ok(Acquired::Busy { landed_bytes: self.landed_bytes(&blob_key)? });
                    };
                    // Between the row and the lease anything may have happened: look again, under the lease.
                    match self.blob(&blob_key)? {
                        Some(again) if again.id == blob.id && again.state == BlobState::Filling => (again, lease, Begun::Before),
                        _ => continue,
                    }
                }
                // Finish it, unless whoever began is still at it; then begin anew.
                Some(blob) if blob.state == BlobState::Freeing => match self.free_blob(&blob_key, blob.id)? {
                    Fate::Busy => return Ok(Acquired::Busy { landed_bytes: 0 }),
                    Fate::Freed | Fate::Gone => continue,
                },
                Some(_) if self.link_content(wanted, &blob_key)? => return Ok(Acquired::Here),
                Some(_) => continue,
                None => {
                    let home = key::home(&wanted.repo, &wanted.path);
                    match self.begin_blob(|_| blob_key.clone(), home, wanted.size_bytes)? {
                        Some((_, blob, lease)) => (blob, lease, Begun::Now),
                        None => continue,
                    }
                }
            };
            return match self.prepare_fill(blob_key, blob, lease, begun) {
                Ok(fill) => Ok(Acquired::Fill(Arc::new(fill))),
                Err(error) => Err(self.say_no_space(error, wanted.name(), wanted.size_bytes)),
            };
        }
    }

    /// Begins a fill whose digest will be known only at its end.
    pub(crate) fn begin_import(self: &Arc<Self>, repo: &PinnedRepo, path: &FilePath, size_bytes: u64) -> Result<Arc<Fill>> {
        let name = || format!("{} {path}", repo.repo);
        let begun = self.begin_blob(key::import, key::home(repo, path), size_bytes)?;
        let (blob_key, blob, lease) = begun.ok_or_else(|| Error::Damaged {
            what: name(),
            reason: "the store's counter of blobs gave a number that is in use".to_owned(),
        })?;
        let fill = self.prepare_fill(blob_key, blob, lease, Begun::Now);
        fill.map(Arc::new).map_err(|error| self.say_no_space(error, name(), size_bytes))
    }

    /// Bytes of a fill that have landed, as its journals say; for showing, not for trusting.
    pub(crate) fn landed_bytes(&self, blob_key: &str) -> Result<u64> {
        let Some(blob) = self.blob(blob_key)? else { return Ok(0) };
        if blob.state != BlobState::Filling {
            return Ok(if blob.state == BlobState::Sealed { blob.size_bytes } else { 0 });
        }
        let reading = || format!("could not read how much of {blob_key} has landed");
        let mut landed = 0;
        let layout = blob.layout();
        for index in 0..layout.chunks() {
            let Some(extent) = self.extents.locate(&key::chunk(&blob.home, index)).attempted(reading)? else { break };
            let reader = self.extents.reader();
            let Some(header) = reader.read_header(&extent).attempted(reading)? else { break };
            if header.owner != blob.id {
                break;
            }
            let journal = reader.read_journal(&extent, &header).attempted(reading)?;
            for (block, _) in journal.iter().enumerate().filter(|(_, entry)| entry.is_some()) {
                let range = layout.block_range(layout.first_block(index) + block as u64);
                landed += range.end - range.start;
            }
        }
        Ok(landed)
    }

    /// Seals a small file: its bytes, row and name in one transaction.
    ///
    /// # Errors
    /// [`Error::DigestMismatch`], with nothing written.
    pub(crate) fn seal_inline(&self, wanted: &Wanted, bytes: &[u8]) -> Result<()> {
        self.seal_inline_together(&[(wanted, bytes)])
    }

    /// Seals small files in one transaction, so that they wait for the disk once: all of them, or on an error none.
    ///
    /// # Errors
    /// [`Error::DigestMismatch`], with nothing written.
    pub(crate) fn seal_inline_together(&self, files: &[(&Wanted, &[u8])]) -> Result<()> {
        for (wanted, bytes) in files {
            check_digest(wanted, bytes)?;
            // Begun for a listing that gave the same digest with a larger size; these bytes prove it wrong.
            self.free_unfinished(&key::blob(&wanted.digest))?;
        }
        let txn = self.begin_write()?;
        for (wanted, bytes) in files {
            self.put_inline(&txn, wanted, bytes)?;
            fail_point("inline.put");
        }
        self.commit(txn)?;
        fail_point("inline.committed");
        self.free_replaced();
        self.tell_ballast();
        Ok(())
    }

    fn put_inline(&self, txn: &storage::WriteTxn<'_>, wanted: &Wanted, bytes: &[u8]) -> Result<()> {
        let blob_key = key::blob(&wanted.digest);
        let meta_key = key::meta(&wanted.repo, &wanted.path);
        let mut blob = match txn.get(&BLOBS, &blob_key).attempted(writing)? {
            Some(blob) if blob.is_inline() && is_content_of(&blob, wanted) => blob,
            // A name leads to sealed content or to none.
            Some(_) => return Err(Error::Busy { what: wanted.name(), reason: "the same content is being fetched or freed" }),
            None => {
                let id = self.next_blob_id(txn)?;
                let mut blob = new_blob(id, key::home(&wanted.repo, &wanted.path), wanted.size_bytes);
                if !txn.insert_bytes(&INLINE, &key::chunk(&blob.home, 0), bytes).attempted(writing)? {
                    // The name's former content is still used by another name.
                    blob.home = key::apart(&blob.home, id);
                    if !txn.insert_bytes(&INLINE, &key::chunk(&blob.home, 0), bytes).attempted(writing)? {
                        return Err(Error::Damaged { what: format!("blob {id}"), reason: "its chunk's key is taken".to_owned() });
                    }
                }
                blob.state = BlobState::Sealed;
                blob.block_crcs = bytes.chunks(BLOCK_BYTES as usize).map(crc32c::crc32c).collect();
                blob
            }
        };
        self.replace_name(txn, &meta_key, &blob_key)?;
        let id = blob.id;
        link(txn, &mut blob, &blob_key, meta_key, &wanted.metadata(id))
    }

    /// Links `wanted` to content that is here, if it is; false if not. Cost where it is linked already, or not here: one read.
    pub(crate) fn link_if_here(&self, wanted: &Wanted) -> Result<bool> {
        let blob_key = key::blob(&wanted.digest);
        let Some(blob) = self.blob(&blob_key)? else { return Ok(false) };
        if !is_content_of(&blob, wanted) {
            return Ok(false);
        }
        if blob.names.contains(&key::meta(&wanted.repo, &wanted.path)) {
            match self.has_name(&wanted.repo, &wanted.path) {
                Ok(true) => return Ok(true),
                // Put anew.
                Ok(false) => {}
                Err(error) if error.is_corruption() => {}
                Err(error) => return Err(error),
            }
        }
        self.link_content(wanted, &blob_key)
    }

    /// Names content that is whole, also such as no name led to any more; false if it is not here after all.
    fn link_content(&self, wanted: &Wanted, blob_key: &str) -> Result<bool> {
        let txn = self.begin_write()?;
        let Some(mut blob) = txn.get(&BLOBS, blob_key).attempted(writing)?.filter(|blob| is_content_of(blob, wanted)) else {
            return Ok(false);
        };
        let meta_key = key::meta(&wanted.repo, &wanted.path);
        self.replace_name(&txn, &meta_key, blob_key)?;
        if blob.state == BlobState::Doomed {
            blob.state = BlobState::Sealed;
            txn.delete(&STORE, &key::doomed(blob.id)).attempted(writing)?;
        }
        let id = blob.id;
        link(&txn, &mut blob, blob_key, meta_key, &wanted.metadata(id))?;
        self.commit(txn)?;
        fail_point("link.committed");
        self.free_replaced();
        Ok(true)
    }

    /// Writes the row of a blob to be filled, before anything is reserved for it; `None` if somebody else was first.
    ///
    /// Its exclusive lease is taken before the row can be seen, so that nobody takes it for abandoned.
    pub(super) fn begin_blob(
        &self,
        blob_key: impl FnOnce(u64) -> String,
        home: String,
        size_bytes: u64,
    ) -> Result<Option<(String, BlobRecord, Lease)>> {
        let txn = self.begin_write()?;
        let mut leased = None;
        // Of a process that is killed here the kernel gives up the writer's place first and the leases a moment later: the number it did
        // not come to write down is left to nobody then.
        for _ in 0..MOST_NUMBERS_TAKEN {
            let id = self.next_blob_id(&txn)?;
            leased = self.leases.try_exclusive(id).attempted(|| format!("could not lease blob {id}"))?.map(|lease| (id, lease));
            if leased.is_some() {
                break;
            }
        }
        let (id, lease) = leased.ok_or_else(|| Error::Damaged {
            what: "the store's counter of blobs".to_owned(),
            reason: format!("somebody holds leases on the {MOST_NUMBERS_TAKEN} numbers that are new"),
        })?;
        let blob_key = blob_key(id);
        if txn.get(&BLOBS, &blob_key).attempted(writing)?.is_some() {
            return Ok(None);
        }
        let blob = new_blob(id, home, size_bytes);
        txn.put(&BLOBS, &blob_key, &blob).attempted(writing)?;
        fail_point("fill.leased");
        self.commit(txn)?;
        fail_point("fill.row_written");
        Ok(Some((blob_key, blob, lease)))
    }

    /// Takes `meta_key` away from the content it leads to now, if that is another than `blob_key`'s.
    pub(super) fn replace_name(&self, txn: &storage::WriteTxn<'_>, meta_key: &str, blob_key: &str) -> Result<()> {
        let leads_elsewhere = match txn.get(&METADATA, meta_key) {
            // Where its record can't be read, the row that counts this name among its own knows.
            Err(storage::Error::BadRecord { .. }) => blob_of_name(txn, meta_key)?.is_none_or(|(other, _)| other != blob_key),
            old => old.attempted(writing)?.is_some_and(|old| format!("blob:{}", old.digest) != blob_key),
        };
        if leads_elsewhere {
            self.unlink(txn, meta_key)?;
        }
        Ok(())
    }

    /// Adopts the extents of a fill that was begun, or reserves them.
    pub(super) fn prepare_fill(
        self: &Arc<Self>,
        blob_key: String,
        mut blob: BlobRecord,
        lease: Lease,
        begun: Begun,
    ) -> Result<Fill> {
        let preparing = || format!("could not reserve space for {blob_key}");
        // Opened before the first write: a write-back error is told to no description opened later.
        let writer = self.extents.open_writer().attempted(preparing)?;
        let extents = match self.reserve(&blob_key, &mut blob, &writer, begun) {
            Ok(extents) => extents,
            Err(error) => {
                // Nothing was reserved, so nothing would be lost with the row; a later pull begins anew.
                if let Err(error) = self.forget_unreserved(&blob_key, &blob) {
                    tracing::warn!(%error, "the row of a blob that got no space was not removed");
                }
                return Err(error);
            }
        };
        self.tell_ballast();
        let any_fill = self.leases.try_shared(ANY_FILL_LEASE).attempted(preparing)?;
        let landed = vec![None; blob.layout().blocks() as usize];
        let fill = Fill {
            store: Arc::clone(self),
            blob_key,
            blob,
            writer,
            extents,
            landed: Mutex::new(landed),
            cancelled: AtomicBool::new(false),
            leases: Mutex::new(Some((lease, any_fill))),
            ending: OnceLock::new(),
        };
        Ok(fill)
    }

    fn reserve(&self, blob_key: &str, blob: &mut BlobRecord, writer: &DataFile, begun: Begun) -> Result<Vec<Extent>> {
        let reserving = || format!("could not reserve space for {blob_key}");
        // Looked at without the writer's place first: a fill that has its space goes on also on a disk that is full by now.
        let found = examine(blob, writer, |key| self.extents.locate(key)).attempted(reserving)?;
        if found.adoptable {
            return Ok(found.extents);
        }
        self.extents_may_be_written()?;
        self.check_room(blob, writer, begun)?;
        let txn = self.extents.begin_reserve().attempted(reserving)?;
        let found = examine(blob, writer, |key| txn.locate(key)).attempted(reserving)?;
        for chunk_key in found.own {
            txn.delete(&chunk_key).attempted(reserving)?;
            fail_point("reserve.stale_chunk_deleted");
        }
        if found.taken {
            // Chunks of another blob live under this name: a re-import of a changed file, or one still read. Never overwritten.
            blob.home = key::apart(&blob.home, blob.id);
            let records = self.begin_write()?;
            records.put(&BLOBS, blob_key, blob).attempted(writing)?;
            self.commit(records)?;
            fail_point("reserve.home_moved");
        }
        let extents = txn.reserve(writer, blob.id, BLOCK_BYTES as u32, &extent_specs(blob)).attempted(reserving)?;
        txn.commit().attempted(reserving)?;
        fail_point("reserve.committed");
        Ok(extents)
    }

    /// The error for a blob the disk has no room for, before any of it is taken.
    fn check_room(&self, blob: &BlobRecord, writer: &DataFile, begun: Begun) -> Result<()> {
        if !storage::can_punch() {
            // Freed pages keep their space here, so what is free on the disk does not tell what a reservation needs.
            return Ok(());
        }
        let needed_bytes = blob.size_bytes + u64::from(blob.layout().chunks()) * storage::HEADER_REGION_BYTES;
        if needed_bytes <= self.free_bytes()? {
            return Ok(());
        }
        // A reservation of the same blob that was killed may hold the very space that is missing.
        if begun == Begun::Before
            && let Err(error) = self.give_back_uncommitted(blob, writer)
        {
            tracing::debug!(%error, "space a killed reservation may have taken was not found");
        }
        let free_bytes = self.free_bytes()?;
        if needed_bytes <= free_bytes {
            return Ok(());
        }
        Err(Error::NoSpace { what: blob.home.clone(), needed_bytes, free_bytes })
    }

    /// Removes the row of a fill that has no chunks. The caller holds its exclusive lease.
    fn forget_unreserved(&self, blob_key: &str, blob: &BlobRecord) -> Result<()> {
        if self.extents.locate(&key::chunk(&blob.home, 0)).attempted(writing)?.is_some() {
            return Ok(());
        }
        let txn = self.begin_write()?;
        if txn.get(&BLOBS, blob_key).attempted(writing)?.is_some_and(|row| row.id == blob.id && row.state == BlobState::Filling) {
            txn.delete(&BLOBS, blob_key).attempted(writing)?;
            self.commit(txn)?;
        }
        Ok(())
    }

    /// Names what there was no space for.
    pub(super) fn say_no_space(&self, error: Error, what: String, size_bytes: u64) -> Error {
        match error {
            Error::Storage { source, .. } if source.is_no_space() => {
                let free_bytes = storage::free_bytes(&self.folder).unwrap_or(0);
                Error::NoSpace { what, needed_bytes: size_bytes, free_bytes }
            }
            Error::NoSpace { needed_bytes, free_bytes, .. } => Error::NoSpace { what, needed_bytes, free_bytes },
            other => other,
        }
    }
}

/// When a fill's row was written.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Begun {
    /// By this very call: nothing was ever reserved for it.
    Now,
    /// By somebody who may have been killed while reserving.
    Before,
}

/// What lies under the chunk keys of a blob's home.
#[derive(Default)]
struct Examined {
    /// The extents that are this blob's, in order.
    extents: Vec<Extent>,
    /// Keys of those, and of others that carry its number.
    own: Vec<String>,
    /// Whether any key leads to another blob's extent.
    taken: bool,
    /// Whether `extents` are all of it, exactly.
    adoptable: bool,
}

fn examine(
    blob: &BlobRecord,
    writer: &DataFile,
    locate: impl Fn(&str) -> storage::Result<Option<Extent>>,
) -> storage::Result<Examined> {
    let layout = blob.layout();
    let count = layout.chunks();
    let mut found = Examined::default();
    // One beyond the last: a chunk there would be of another size of file.
    for index in 0..=count {
        let chunk_key = key::chunk(&blob.home, index);
        let Some(extent) = locate(&chunk_key)? else { continue };
        match writer.read_header(&extent)? {
            Some(header) if header.owner == blob.id => {
                let expected = index < count
                    && header.index == index
                    && header.data_bytes == layout.chunk_bytes(index)
                    && header.data_bytes == extent.data_bytes
                    && u64::from(header.block_bytes) == BLOCK_BYTES;
                if expected {
                    found.extents.push(extent);
                }
                found.own.push(chunk_key);
            }
            _ => found.taken = true,
        }
    }
    found.adoptable = found.extents.len() == count as usize && found.own.len() == found.extents.len() && !found.taken;
    Ok(found)
}

/// Whether the blob is whole, and of the size that goes with `wanted`'s digest.
pub(super) fn is_content_of(blob: &BlobRecord, wanted: &Wanted) -> bool {
    matches!(blob.state, BlobState::Sealed | BlobState::Doomed) && blob.size_bytes == wanted.size_bytes
}

/// The extents a blob's chunks lie in.
pub(super) fn extent_specs(blob: &BlobRecord) -> Vec<ExtentSpec> {
    let layout = blob.layout();
    (0..layout.chunks())
        .map(|index| ExtentSpec { key: key::chunk(&blob.home, index), data_bytes: layout.chunk_bytes(index) })
        .collect()
}

fn new_blob(id: u64, home: String, size_bytes: u64) -> BlobRecord {
    BlobRecord {
        id,
        home,
        size_bytes,
        state: BlobState::Filling,
        names: Vec::new(),
        pages: Vec::new(),
        block_crcs: Vec::new(),
        created_unix_ms: now_unix_ms(),
    }
}

fn check_digest(wanted: &Wanted, bytes: &[u8]) -> Result<()> {
    let mut hasher = wanted.digest.hasher(bytes.len() as u64);
    hasher.update(bytes);
    mismatch(wanted.name(), wanted.digest, hasher.finish(), bytes.len() as u64)
}

fn mismatch(name: String, expected: Digest, found: Digest, size_bytes: u64) -> Result<()> {
    if expected == found { Ok(()) } else { Err(Error::DigestMismatch { name, expected, found, size_bytes }) }
}

/// A blob being filled: its extents, a description of the data file of its own, and the exclusive lease.
///
/// Every write in flight holds an `Arc` of it, so the lease outlives the last of them also when the download's future is
/// dropped: a write into freed pages would destroy the environment.
pub(crate) struct Fill {
    store: Arc<Store>,
    blob_key: String,
    blob: BlobRecord,
    writer: DataFile,
    extents: Vec<Extent>,
    /// CRC32C of each block that has landed.
    landed: Mutex<Vec<Option<u32>>>,
    cancelled: AtomicBool,
    /// Both given back with the last `Arc`, or as soon as the content is sealed: readers want a lease then.
    leases: Mutex<Option<(Lease, Option<Lease>)>>,
    /// Dropped last: whoever waits for it finds the leases given back.
    ending: OnceLock<Working>,
}

/// Held by all that works for a pull, on whatever thread: the other end of the channel, on which nothing is ever sent, ends when none
/// of it does any more.
pub(crate) type Working = tokio::sync::mpsc::Sender<std::convert::Infallible>;

impl Fill {
    /// Lets go of `working` when the last hold on this fill, and its leases, are gone.
    pub(crate) fn works_for(&self, working: Working) {
        // A fill is begun for one pull.
        let _ = self.ending.set(working);
    }

    pub(crate) fn size_bytes(&self) -> u64 {
        self.blob.size_bytes
    }

    /// The store's folder.
    pub(crate) fn folder(&self) -> &std::path::Path {
        self.store.folder()
    }

    /// Which blocks have landed.
    pub(crate) fn landed(&self) -> Vec<bool> {
        self.lock().iter().map(Option::is_some).collect()
    }

    /// Bytes that have landed.
    pub(crate) fn landed_bytes(&self) -> u64 {
        let bytes = |(block, landed): (usize, &Option<u32>)| {
            let range = block_range(self.size_bytes(), block as u64);
            landed.map_or(0, |_| range.end - range.start)
        };
        self.lock().iter().enumerate().map(bytes).sum()
    }

    /// Makes long reads of this fill end early with [`Error::Cancelled`].
    pub(crate) fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }

    /// Reads every block the journals say has landed, and believes those whose CRC32C holds.
    ///
    /// From the disk, not from the page cache: after a write-back error the cache may show what the disk has lost.
    pub(crate) fn verify_landed(&self) -> Result<()> {
        let reading = || format!("could not check what has landed of {}", self.blob_key);
        let mut buffer = vec![0; READ_BYTES];
        for (index, extent) in self.extents.iter().enumerate() {
            let Some(header) = self.writer.read_header(extent).attempted(reading)? else { continue };
            let journal = self.writer.read_journal(extent, &header).attempted(reading)?;
            if journal.iter().any(Option::is_some) {
                self.writer.forget(extent).attempted(reading)?;
            }
            for (block, crc) in journal.into_iter().enumerate() {
                let block = self.blob.layout().first_block(index as u32) + block as u64;
                let Some(crc) = crc else { continue };
                match self.crc_of(block_range(self.size_bytes(), block), &mut buffer) {
                    Ok(found) if found == crc => {
                        self.lock()[block as usize] = Some(crc);
                        fail_point("resume.block_believed");
                    }
                    Err(Error::Cancelled) => return Err(Error::Cancelled),
                    // Other bytes, or none the disk could read: fetched again.
                    Ok(_) | Err(_) => {}
                }
            }
        }
        Ok(())
    }

    /// Writes `bytes` at `offset` of the file, in place. They lie in one chunk.
    pub(crate) fn write(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        let (extent, within) = self.place(offset)?;
        self.writer
            .write_at(extent, within, bytes)
            .attempted(|| format!("could not write {} bytes at {offset} of {}", bytes.len(), self.blob_key))
    }

    /// Journals that `block` has landed with this CRC32C.
    pub(crate) fn land(&self, block: u64, crc: u32) -> Result<()> {
        let (extent, within) = self.place(block * BLOCK_BYTES)?;
        self.writer
            .journal(extent, (within / BLOCK_BYTES) as usize, crc)
            .attempted(|| format!("could not journal block {block} of {}", self.blob_key))?;
        self.lock()[block as usize] = Some(crc);
        Ok(())
    }

    /// Whether `block` has landed.
    pub(super) fn has_landed(&self, block: u64) -> bool {
        self.lock()[block as usize].is_some()
    }

    /// Whether nobody waits for this fill any more.
    pub(crate) fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }

    /// Reads `range` of the file into `hasher`, from where it was written to, through `buffer`.
    pub(super) fn hash(&self, hasher: &mut Hasher, range: Range<u64>, buffer: &mut [u8]) -> Result<()> {
        self.read(range, buffer, |bytes| hasher.update(bytes))
    }

    /// Starts writing `block` out to the disk; may block while that is busy.
    pub(super) fn start_writeback(&self, block: u64) -> Result<()> {
        let range = block_range(self.size_bytes(), block);
        let (extent, within) = self.place(range.start)?;
        self.writer
            .start_writeback(extent, within, range.end - range.start)
            .attempted(|| format!("could not write out block {block} of {}", self.blob_key))
    }

    /// Compares the digest of the bytes read back with the one promised. On a difference the content is dropped.
    pub(crate) fn check(&self, name: &str, expected: Digest, found: Digest) -> Result<()> {
        let result = mismatch(name.to_owned(), expected, found, self.size_bytes());
        if result.is_err()
            && let Err(error) = self.discard()
        {
            tracing::warn!(%error, "content that is not what was promised was not freed yet");
        }
        result
    }

    /// Makes the content durable, then visible under `wanted`'s name: the one commit point.
    ///
    /// True if an import's content turned out to be here: then that was named, and this copy of it is dropped.
    ///
    /// # Errors
    /// [`Error::Storage`] if any write of this fill may have been lost; nothing is sealed then, and the next pull checks what
    /// the disk has. [`Error::Busy`] if somebody fetches an import's content just now.
    pub(crate) fn seal(&self, wanted: &Wanted) -> Result<bool> {
        let sealing = || format!("could not make {} durable", wanted.name());
        let blob_key = key::blob(&wanted.digest);
        let meta_key = key::meta(&wanted.repo, &wanted.path);
        let is_import = blob_key != self.blob_key;
        if is_import {
            // Only now has it a digest: the same content may be here already, or begun by a pull nobody continues.
            self.store.free_unfinished(&blob_key)?;
            if self.store.link_if_here(wanted)? {
                fail_point("seal.import_was_here");
                self.discard()?;
                return Ok(true);
            }
            // Before the sync, which would write out the bytes of whoever is at it.
            if self.store.blob(&blob_key)?.is_some() {
                return Err(Error::Busy { what: wanted.name(), reason: "the same content is being fetched or freed" });
            }
        }
        self.make_durable().attempted(sealing)?;
        fail_point("seal.durable");
        let mut blob = self.sealed_row(&wanted.name())?;
        let txn = self.store.begin_write()?;
        self.check_row(&txn, &wanted.name())?;
        self.store.replace_name(&txn, &meta_key, &blob_key)?;
        if is_import {
            if txn.get(&BLOBS, &blob_key).attempted(writing)?.is_some() {
                return Err(Error::Busy { what: wanted.name(), reason: "the same content is being fetched or freed" });
            }
            txn.delete(&BLOBS, &self.blob_key).attempted(writing)?;
        }
        link(&txn, &mut blob, &blob_key, meta_key, &wanted.metadata(self.blob.id))?;
        fail_point("seal.row_put");
        self.store.commit(txn)?;
        fail_point("seal.committed");
        self.let_go();
        self.store.free_replaced();
        Ok(false)
    }

    /// Makes a derived value durable, then usable; false, with the value dropped, if the blob it was made of is no longer here
    /// under a name.
    pub(super) fn seal_derived(&self, source_key: &str, source_id: u64) -> Result<bool> {
        let name = || self.blob_key.clone();
        self.make_durable().attempted(|| format!("could not make {} durable", self.blob_key))?;
        let blob = self.sealed_row(&name())?;
        let txn = self.store.begin_write()?;
        self.check_row(&txn, &name())?;
        let source = txn.get(&BLOBS, source_key).attempted(writing)?;
        if !source.is_some_and(|source| source.id == source_id && source.state == BlobState::Sealed) {
            drop(txn);
            self.discard()?;
            return Ok(false);
        }
        txn.put(&BLOBS, &self.blob_key, &blob).attempted(writing)?;
        fail_point("derive.row_put");
        self.store.commit(txn)?;
        fail_point("derive.sealed");
        self.let_go();
        Ok(true)
    }

    /// The row as it will be once the content is sealed.
    fn sealed_row(&self, name: &str) -> Result<BlobRecord> {
        let block_crcs = self.lock().iter().copied().collect::<Option<Vec<u32>>>();
        let block_crcs = block_crcs
            .ok_or_else(|| Error::Damaged { what: name.to_owned(), reason: "a block is missing at its seal".to_owned() })?;
        let pages = self.extents.iter().map(|extent| extent.page).collect();
        Ok(BlobRecord { state: BlobState::Sealed, pages, block_crcs, ..self.blob.clone() })
    }

    /// Makes the content durable, for a repair's seal; the row as it will be then.
    pub(super) fn make_sealed_row(&self, name: &str) -> Result<BlobRecord> {
        self.make_durable().attempted(|| format!("could not make {name} durable"))?;
        self.sealed_row(name)
    }

    /// Whether each block has the CRC32C it is known to have.
    pub(super) fn check_crcs(&self, name: &str, expected: &[Option<u32>]) -> Result<()> {
        for (block, (landed, expected)) in self.lock().iter().zip(expected).enumerate() {
            if let (Some(landed), Some(expected)) = (landed, expected)
                && landed != expected
            {
                let reason = format!("block {block} was fetched with CRC32C {landed:08x}, {expected:08x} was sealed");
                return Err(Error::Damaged { what: name.to_owned(), reason });
            }
        }
        Ok(())
    }

    /// The digest of all of it, read back.
    pub(crate) fn digest(&self, mut hasher: Hasher) -> Result<Digest> {
        self.hash(&mut hasher, 0..self.size_bytes(), &mut vec![0; READ_BYTES])?;
        Ok(hasher.finish())
    }

    pub(super) fn blob_key(&self) -> &str {
        &self.blob_key
    }

    /// The error for a row that is not this fill's any more.
    pub(super) fn check_row(&self, txn: &storage::WriteTxn<'_>, name: &str) -> Result<()> {
        match txn.get(&BLOBS, &self.blob_key).attempted(writing)? {
            Some(row) if row.id == self.blob.id && row.state == BlobState::Filling => Ok(()),
            _ => Err(Error::Damaged { what: name.to_owned(), reason: "its row changed under its lease".to_owned() }),
        }
    }

    /// Makes the bytes, then the extents they lie in, durable.
    fn make_durable(&self) -> storage::Result<()> {
        if let Err(error) = self.writer.sync() {
            for extent in &self.extents {
                let _ = self.writer.forget(extent);
            }
            return Err(error);
        }
        self.store.extents.sync()
    }

    /// Gives the leases back after a seal: readers want one now.
    pub(super) fn let_go(&self) {
        // Every write was awaited before the seal, so none is in flight that the lease would have to outlive.
        drop(self.leases.lock().unwrap_or_else(PoisonError::into_inner).take());
    }

    /// Drops the content: its space returns, its row goes.
    pub(crate) fn discard(&self) -> Result<()> {
        self.store.free_leased(&self.blob_key, self.blob.id).map(drop)
    }

    fn crc_of(&self, range: Range<u64>, buffer: &mut [u8]) -> Result<u32> {
        let mut crc = 0;
        self.read(range, buffer, |bytes| crc = crc32c::crc32c_append(crc, bytes))?;
        Ok(crc)
    }

    fn read(&self, range: Range<u64>, buffer: &mut [u8], mut each: impl FnMut(&[u8])) -> Result<()> {
        let mut at = range.start;
        while at < range.end {
            if self.is_cancelled() {
                return Err(Error::Cancelled);
            }
            let (extent, within) = self.place(at)?;
            let bytes = (range.end - at).min(buffer.len() as u64).min(extent.data_bytes - within) as usize;
            let part = &mut buffer[..bytes];
            self.writer.read_at(extent, within, part).attempted(|| format!("could not read {} back", self.blob_key))?;
            each(part);
            at += bytes as u64;
        }
        Ok(())
    }

    fn place(&self, offset: u64) -> Result<(&Extent, u64)> {
        let (chunk, within) = self.blob.layout().place(offset);
        let extent = self.extents.get(chunk as usize).ok_or_else(|| Error::Damaged {
            what: self.blob_key.clone(),
            reason: format!("offset {offset} lies beyond its {} bytes", self.size_bytes()),
        })?;
        Ok((extent, within))
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Option<u32>>> {
        // Each entry is set in one store, so the list is whole even if a holder panicked.
        self.landed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
