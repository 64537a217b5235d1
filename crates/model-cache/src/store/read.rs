//! How content is read: name, row, lease, mapping. No network, no writer's lock, no allocation of the file's size.

use super::Store;
use crate::{
    error::{Attempted, Error, Result},
    key::{self, PinnedRepo},
    name::FilePath,
    record::*,
};
use std::{
    collections::HashSet,
    fs::File,
    ops::Range,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
        mpsc::{self, SyncSender},
    },
    thread,
    time::Duration,
};
use storage::{CopyMethod, DataFile, Extent, Lease, Mapping, ReadTxn, SeparateMappings, fail_point};

/// How long a lease that is held exclusively is asked for again: a sealer lets go microseconds after its commit.
pub(super) const LEASE_PATIENCE: Duration = Duration::from_secs(2);
pub(super) const LEASE_PAUSE: Duration = Duration::from_millis(1);
/// How much is read at once where blocks are checked.
const CHECK_BYTES: u64 = 1 << 20;
/// How much is read at once where a whole file is: what is still in the processor's cache when its CRC32C is computed.
const CRC_BYTES: u64 = 256 << 10;
/// Threads that compute CRC32Cs at once: while one computes, others wait for the disk.
const CRC_THREADS: usize = 4;

/// A sealed file and the lease that keeps it, until dropped.
#[derive(Debug)]
pub(crate) struct StoredFile {
    pub(crate) repo: PinnedRepo,
    pub(crate) path: FilePath,
    pub(crate) size_bytes: u64,
    pub(crate) digest: String,
    pub(crate) content: Content,
}

/// Where a file's bytes are.
#[derive(Debug)]
pub(crate) enum Content {
    /// A copy, in memory that any element type may be read from.
    Inline(rkyv::util::AlignedVec<64>),
    /// The extents themselves.
    View(Arc<View>),
}

/// A sealed blob's extents, mapped, and the shared lease that keeps them.
///
/// The lease goes when the view does; the last reader of a blob without names frees it then.
pub(crate) struct View {
    /// `None` only while `drop` runs: the mapping goes before the lease.
    maps: Option<Maps>,
    lease: Option<Lease>,
    store: Arc<Store>,
    blob_key: String,
    blob: BlobRecord,
    extents: Vec<Extent>,
}

enum Maps {
    SideBySide(Mapping),
    /// The fallback: slices, and a copy once somebody asks for one slice.
    Separate(SeparateMappings, OnceLock<rkyv::util::AlignedVec<64>>),
}

impl Store {
    /// Opens the file `path` of `repo`; `None` if there is no such name here.
    ///
    /// Cost: one short read transaction, or, where the file has extents, two, one lock, and for each chunk one read of its header and
    /// one mapping.
    pub(crate) fn open_file(
        self: &Arc<Self>,
        repo: &PinnedRepo,
        path: &FilePath,
        side_by_side: bool,
    ) -> Result<Option<StoredFile>> {
        let meta_key = key::meta(repo, path);
        let name = || format!("{} {path}", repo.repo);
        let reading = || format!("could not open {} {path}", repo.repo);
        let stored = |metadata: FileMetadata, content| StoredFile {
            repo: repo.clone(),
            path: path.clone(),
            size_bytes: metadata.size_bytes,
            digest: metadata.digest,
            content,
        };
        let mut waited = Duration::ZERO;
        loop {
            let found = match self.look_up(&meta_key, &name)? {
                None => return Ok(None),
                Some(Found::Inline(metadata, bytes)) => {
                    self.touch(&blob_key_of(&metadata), metadata.blob_id);
                    return Ok(Some(stored(metadata, Content::Inline(bytes))));
                }
                Some(Found::Extents(metadata)) => metadata,
            };
            let (blob_key, id) = (blob_key_of(&found), found.blob_id);
            fail_point("read.looked_up");
            let Some(lease) = self.leases.try_shared(id).attempted(reading)? else {
                // A sealer about to let go, or a freer: then the name is gone already.
                if waited >= LEASE_PATIENCE {
                    return Err(Error::Busy { what: name(), reason: "somebody holds it exclusively" });
                }
                thread::sleep(LEASE_PAUSE);
                waited += LEASE_PAUSE;
                continue;
            };
            // Before the lease was ours it may have been freed, and its pages given to another.
            match self.look_up_row(&meta_key, &name)? {
                Some((metadata, blob)) if blob.id == id => {
                    self.touch(&blob_key, id);
                    let view = View::new(Arc::clone(self), blob_key, blob, lease, &name(), side_by_side)?;
                    return Ok(Some(stored(metadata, Content::View(Arc::new(view)))));
                }
                _ => {
                    // Whoever removed it may have found our lease in the way.
                    drop(lease);
                    self.free_if_doomed(&blob_key, id);
                }
            }
        }
    }

    /// What a name leads to, in one snapshot; `None` if there is no such name. Of a file with extents only the promise: its row
    /// is worth reading under its lease alone.
    fn look_up(&self, meta_key: &str, name: &dyn Fn() -> String) -> Result<Option<Found>> {
        let reading = || format!("could not open {}", name());
        let damaged = |reason: String| Error::Damaged { what: name(), reason };
        let txn = self.begin_read()?;
        let Some(metadata) = txn.get(&METADATA, meta_key).attempted(reading)? else { return Ok(None) };
        if metadata.size_bytes > INLINE_BYTES {
            return Ok(Some(Found::Extents(metadata)));
        }
        let blob = sealed_row(&txn, meta_key, &metadata, name)?;
        let bytes = txn.get_bytes(&INLINE, &key::chunk(&blob.home, 0)).attempted(reading)?;
        let bytes = bytes.ok_or_else(|| damaged("its bytes are gone, its name is not".to_owned()))?;
        check_inline(&bytes, &blob).map_err(damaged)?;
        let mut aligned = rkyv::util::AlignedVec::with_capacity(bytes.len());
        aligned.extend_from_slice(&bytes);
        Ok(Some(Found::Inline(metadata, aligned)))
    }

    /// A name's promise and the row it leads to, in one snapshot; `None` if there is no such name.
    fn look_up_row(&self, meta_key: &str, name: &dyn Fn() -> String) -> Result<Option<(FileMetadata, BlobRecord)>> {
        let txn = self.begin_read()?;
        let metadata = txn.get(&METADATA, meta_key).attempted(|| format!("could not open {}", name()))?;
        metadata.map(|metadata| sealed_row(&txn, meta_key, &metadata, name).map(|blob| (metadata, blob))).transpose()
    }
}

/// The extents a sealed blob's row speaks of.
pub(super) fn sealed_extents(blob: &BlobRecord) -> Vec<Extent> {
    let layout = blob.layout();
    let extent = |(index, &page): (usize, &u32)| Extent { page, data_bytes: layout.chunk_bytes(index as u32) };
    blob.pages.iter().enumerate().map(extent).collect()
}

/// Whether the header of chunk `index` says that it is this blob's, or what is wrong with it.
pub(super) fn check_header(
    blob: &BlobRecord,
    index: u32,
    extent: &Extent,
    reader: &DataFile,
) -> storage::Result<std::result::Result<(), String>> {
    let found = match reader.read_header(extent)? {
        Some(header) if header.owner == blob.id && header.index == index && header.data_bytes == extent.data_bytes => {
            return Ok(Ok(()));
        }
        Some(header) => format!("chunk {} of blob {} with {} bytes", header.index, header.owner, header.data_bytes),
        None => "nothing of ours".to_owned(),
    };
    Ok(Err(format!("chunk {index} should be at page {}, where there is {found}: its header is damaged", extent.page)))
}

/// What a name leads to.
enum Found {
    /// A small file: its bytes, checked.
    Inline(FileMetadata, rkyv::util::AlignedVec<64>),
    /// One with extents.
    Extents(FileMetadata),
}

/// Holds a small file's bytes against what was sealed: what is wrong with them, if anything is.
pub(super) fn check_inline(bytes: &[u8], blob: &BlobRecord) -> std::result::Result<(), String> {
    let crcs: Vec<u32> = bytes.chunks(BLOCK_BYTES as usize).map(crc32c::crc32c).collect();
    if bytes.len() as u64 == blob.size_bytes && crcs == blob.block_crcs {
        return Ok(());
    }
    let (size_bytes, sealed) = (blob.size_bytes, &blob.block_crcs);
    Err(format!("{} bytes with CRC32C {crcs:08x?}, expected {size_bytes} with {sealed:08x?}", bytes.len()))
}

/// Whether the bytes of a blob in this state are all there, for whoever has a lease on it.
pub(super) fn is_whole(state: BlobState) -> bool {
    matches!(state, BlobState::Sealed | BlobState::Doomed)
}

fn blob_key_of(metadata: &FileMetadata) -> String {
    format!("blob:{}", metadata.digest)
}

/// The row of the sealed blob that a name leads to.
fn sealed_row(txn: &ReadTxn<'_>, meta_key: &str, metadata: &FileMetadata, name: &dyn Fn() -> String) -> Result<BlobRecord> {
    let damaged = |reason: String| Error::Damaged { what: name(), reason };
    let blob = txn.get(&BLOBS, &blob_key_of(metadata)).attempted(|| format!("could not open {}", name()))?;
    let blob = blob.ok_or_else(|| damaged("its name leads to no blob".to_owned()))?;
    if blob.id != metadata.blob_id || blob.size_bytes != metadata.size_bytes || blob.state != BlobState::Sealed {
        return Err(damaged(format!(
            "its name says blob {} of {} bytes, its row blob {} of {} bytes, {:?}",
            metadata.blob_id, metadata.size_bytes, blob.id, blob.size_bytes, blob.state
        )));
    }
    // A record's CRC32C does not cover its key: this name may be what a flipped bit made of another.
    if !blob.names.iter().any(|name| name == meta_key) {
        return Err(damaged(format!("its content, blob {}, has no such name", blob.id)));
    }
    Ok(blob)
}

impl StoredFile {
    /// Reads the content block by block, from the disk: gives each block's index, its bytes or why they can't be read, and the
    /// CRC32C it was sealed with. Ends early with the first error of `each`.
    pub(crate) fn read_blocks(&self, mut each: impl FnMut(u64, Result<&[u8]>, u32) -> Result<()>) -> Result<()> {
        match &self.content {
            // Checked when it was opened.
            Content::Inline(bytes) if bytes.is_empty() => Ok(()),
            Content::Inline(bytes) => each(0, Ok(bytes), crc32c::crc32c(bytes)),
            Content::View(view) => view.read_blocks(each),
        }
    }

    /// Computes the CRC32C of each block, several at once: gives each block's index, its CRC32C or why it can't be read, and that it was
    /// sealed with, in no order. From the disk, or, where `cached` says so, from memory as far as it is there. Ends early with the first error
    /// of `each`.
    pub(crate) fn block_crcs(&self, cached: bool, mut each: impl FnMut(u64, Result<u32>, u32) -> Result<()>) -> Result<()> {
        match &self.content {
            // Checked when it was opened.
            Content::Inline(bytes) if bytes.is_empty() => Ok(()),
            Content::Inline(bytes) => each(0, Ok(crc32c::crc32c(bytes)), crc32c::crc32c(bytes)),
            Content::View(view) => view.block_crcs(cached, each),
        }
    }
}

impl StoredFile {
    /// Holds every block against the CRC32C it was sealed with, as it is in memory, by several threads.
    ///
    /// # Errors
    /// [`Error::Damaged`], which names the block; those of the disk.
    pub(crate) fn check_all(&self) -> Result<()> {
        self.block_crcs(true, |block, found, sealed| {
            let found = found?;
            if found == sealed {
                return Ok(());
            }
            let reason = format!("block {block} has CRC32C {found:08x}, {sealed:08x} was sealed");
            Err(Error::Damaged { what: format!("{} {}", self.repo.repo, self.path), reason })
        })
    }

    /// The number of its blob; `None` for a small file, which is checked whenever it is opened.
    pub(crate) fn blob_id(&self) -> Option<u64> {
        match &self.content {
            Content::Inline(_) => None,
            Content::View(view) => Some(view.blob.id),
        }
    }
}

impl View {
    /// Takes the shared lease of the blob `id` at `blob_key`, and maps it; `None` if it is not, or no longer, sealed there, or
    /// somebody holds it exclusively.
    pub(super) fn open_blob(store: &Arc<Store>, blob_key: &str, id: u64) -> Result<Option<Self>> {
        Self::open_while(store, blob_key, id, |state| state == BlobState::Sealed)
    }

    /// As [`open_blob`](Self::open_blob), also of one whose last name is gone: whoever has a lease on it reads on.
    pub(super) fn open_whole(store: &Arc<Store>, blob_key: &str, id: u64) -> Result<Option<Self>> {
        Self::open_while(store, blob_key, id, is_whole)
    }

    fn open_while(store: &Arc<Store>, blob_key: &str, id: u64, usable: fn(BlobState) -> bool) -> Result<Option<Self>> {
        let Some(lease) = store.leases.try_shared(id).attempted(|| format!("could not open {blob_key}"))? else {
            return Ok(None);
        };
        // Before the lease was ours it may have been freed, and its pages given to another.
        match store.blob(blob_key)? {
            Some(blob) if blob.id == id && usable(blob.state) => {
                Self::new(Arc::clone(store), blob_key.to_owned(), blob, lease, blob_key, true).map(Some)
            }
            _ => {
                // Whoever removed it may have found our lease in the way.
                drop(lease);
                store.free_if_doomed(blob_key, id);
                Ok(None)
            }
        }
    }

    fn new(store: Arc<Store>, blob_key: String, blob: BlobRecord, lease: Lease, name: &str, side_by_side: bool) -> Result<Self> {
        let damaged = |reason| Error::Damaged { what: name.to_owned(), reason };
        let layout = blob.layout();
        let count = layout.chunks();
        if blob.pages.len() != count as usize || blob.block_crcs.len() as u64 != layout.blocks() {
            return Err(damaged(format!(
                "its row has {} pages and {} CRCs for {count} chunks",
                blob.pages.len(),
                blob.block_crcs.len()
            )));
        }
        let reader = store.extents.reader();
        let extents = sealed_extents(&blob);
        for (index, extent) in extents.iter().enumerate() {
            // Mapped straight from the row: that the extent there says it is ours is the proof.
            let header = check_header(&blob, index as u32, extent, reader).attempted(|| format!("could not open {name}"))?;
            header.map_err(damaged)?;
        }
        let mapping = || format!("could not map {name}");
        let maps = if side_by_side {
            Maps::SideBySide(Mapping::side_by_side(reader, &extents).attempted(mapping)?)
        } else {
            Maps::Separate(SeparateMappings::new(reader, &extents).attempted(mapping)?, OnceLock::new())
        };
        Ok(Self { maps: Some(maps), lease: Some(lease), store, blob_key, blob, extents })
    }

    /// All of it as one slice. Zero-copy, but for the fallback, which copies once.
    pub(crate) fn as_slice(&self) -> &[u8] {
        match self.maps() {
            Maps::SideBySide(mapping) => mapping,
            Maps::Separate(maps, copy) => copy.get_or_init(|| {
                let mut bytes = rkyv::util::AlignedVec::with_capacity(self.blob.size_bytes as usize);
                maps.slices().for_each(|slice| bytes.extend_from_slice(slice));
                bytes
            }),
        }
    }

    /// Chunk `index`, without copying in any case.
    pub(crate) fn chunk(&self, index: usize) -> Option<&[u8]> {
        match self.maps() {
            Maps::SideBySide(mapping) => mapping.chunks(CHUNK_BYTES as usize).nth(index),
            Maps::Separate(maps, _) => maps.slices().nth(index),
        }
    }

    /// Holds the blocks that `range` touches against the CRC32Cs they were sealed with, but for those in `checked`, and enters them
    /// there. As the page cache has them, which is what the mapping shows.
    ///
    /// # Errors
    /// [`Error::Damaged`], which names the block; [`Error::Storage`] for one the disk can't deliver.
    pub(crate) fn check_blocks(&self, name: &str, range: Range<u64>, checked: &mut HashSet<u64>) -> Result<()> {
        let (layout, reader) = (self.blob.layout(), self.store.extents.reader());
        let mut buffer = Vec::new();
        for block in range.start / BLOCK_BYTES..range.end.div_ceil(BLOCK_BYTES) {
            if checked.contains(&block) {
                continue;
            }
            buffer.resize(CHECK_BYTES as usize, 0);
            let Range { start, end } = layout.block_range(block);
            let mut found = 0;
            for at in (start..end).step_by(CHECK_BYTES as usize) {
                let part = &mut buffer[..(end - at).min(CHECK_BYTES) as usize];
                let (chunk, within) = layout.place(at);
                let read = reader.read_at(&self.extents[chunk as usize], within, part);
                read.attempted(|| format!("could not read block {block} of {name}"))?;
                found = crc32c::crc32c_append(found, part);
            }
            let sealed = self.blob.block_crcs[block as usize];
            if found != sealed {
                let reason = format!("block {block} has CRC32C {found:08x}, {sealed:08x} was sealed");
                return Err(Error::Damaged { what: name.to_owned(), reason });
            }
            checked.insert(block);
        }
        Ok(())
    }

    /// Copies `block` to its place in `target`, by the cheapest way the file systems offer, and says which; unchecked.
    pub(crate) fn copy_block_to(&self, block: u64, target: &File) -> storage::Result<CopyMethod> {
        let Range { start, end } = self.blob.layout().block_range(block);
        let (chunk, within) = self.blob.layout().place(start);
        let (reader, extent) = (self.store.extents.reader(), &self.extents[chunk as usize]);
        reader.copy_range_to(extent, within..within + (end - start), target, start)
    }

    /// The CRC32C each block was sealed with.
    pub(crate) fn sealed_crcs(&self) -> &[u32] {
        &self.blob.block_crcs
    }

    /// Copies the content from `offset` on into `bytes`; what lies beyond its end stays as it is.
    pub(crate) fn copy_out(&self, mut offset: u64, mut bytes: &mut [u8]) {
        while !bytes.is_empty() {
            let (chunk, within) = self.blob.layout().place(offset);
            let Some(part) = self.chunk(chunk as usize).and_then(|chunk| chunk.get(within as usize..)) else { return };
            let (now, later) = bytes.split_at_mut(part.len().min(bytes.len()));
            if now.is_empty() {
                return;
            }
            now.copy_from_slice(&part[..now.len()]);
            offset += now.len() as u64;
            bytes = later;
        }
    }

    pub(crate) fn size_bytes(&self) -> u64 {
        self.blob.size_bytes
    }

    pub(super) fn blob_key(&self) -> &str {
        &self.blob_key
    }

    pub(super) fn blob_id(&self) -> u64 {
        self.blob.id
    }

    /// As [`StoredFile::read_blocks`].
    pub(crate) fn read_blocks(&self, mut each: impl FnMut(u64, Result<&[u8]>, u32) -> Result<()>) -> Result<()> {
        let (layout, reader) = (self.blob.layout(), self.store.extents.reader());
        let mut buffer = vec![0; BLOCK_BYTES as usize];
        for (block, &crc) in self.blob.block_crcs.iter().enumerate() {
            let block = block as u64;
            let range = layout.block_range(block);
            let (chunk, within) = layout.place(range.start);
            let extent = &self.extents[chunk as usize];
            let reading = || format!("could not read block {block}");
            if within == 0 {
                reader.forget(extent).attempted(reading)?;
            }
            let bytes = &mut buffer[..(range.end - range.start) as usize];
            let read = reader.read_at(extent, within, bytes).attempted(reading);
            each(block, read.map(|()| &*bytes), crc)?;
        }
        Ok(())
    }

    /// As [`StoredFile::block_crcs`].
    fn block_crcs(&self, cached: bool, mut each: impl FnMut(u64, Result<u32>, u32) -> Result<()>) -> Result<()> {
        if !cached {
            let reader = self.store.extents.reader();
            self.extents.iter().try_for_each(|extent| reader.forget(extent)).attempted(|| "could not read anew".to_owned())?;
        }
        let blocks = self.blob.block_crcs.len() as u64;
        (0..self.extents.len()).filter_map(|index| self.chunk(index)).for_each(storage::read_in_large_pieces);
        let next = AtomicU64::new(0);
        let work = |told: SyncSender<(u64, Result<u32>)>| {
            let mut buffer = vec![0; CRC_BYTES as usize];
            loop {
                let block = next.fetch_add(1, Ordering::Relaxed);
                // Who no longer listens wants no more.
                if block >= blocks || told.send((block, self.block_crc(block, cached, &mut buffer))).is_err() {
                    break;
                }
            }
        };
        thread::scope(|scope| {
            let (told, heard) = mpsc::sync_channel(CRC_THREADS);
            for _ in 0..blocks.min(CRC_THREADS as u64) {
                let (told, work) = (told.clone(), &work);
                scope.spawn(move || work(told));
            }
            drop(told);
            heard.into_iter().try_for_each(|(block, found)| each(block, found, self.blob.block_crcs[block as usize]))
        })
    }

    /// The CRC32C of a block. By `pread`, which tells of what the disk can't deliver.
    fn block_crc(&self, block: u64, cached: bool, buffer: &mut [u8]) -> Result<u32> {
        let layout = self.blob.layout();
        let Range { start, end } = layout.block_range(block);
        let (chunk, within) = layout.place(start);
        if !cached {
            // The kernel reads ahead in larger pieces where a mapping is read, and for each thread by itself. An error shows again below.
            let mapped = self.chunk(chunk as usize).and_then(|bytes| bytes.get(within as usize..(within + end - start) as usize));
            let _ = storage::populate(mapped.unwrap_or_default());
        }
        let mut found = 0;
        for at in (0..end - start).step_by(CRC_BYTES as usize) {
            let part = &mut buffer[..(end - start - at).min(CRC_BYTES) as usize];
            let read = self.store.extents.reader().read_at(&self.extents[chunk as usize], within + at, part);
            read.attempted(|| format!("could not read block {block}"))?;
            found = crc32c::crc32c_append(found, part);
        }
        Ok(found)
    }

    pub(crate) fn extents(&self) -> &[Extent] {
        &self.extents
    }

    /// Lets go of the lease and does nothing else, as the kernel does for a process that is killed.
    #[cfg(test)]
    pub(super) fn let_go_as_if_killed(mut self) {
        drop(self.maps.take());
        drop(self.lease.take());
        std::mem::forget(self);
    }

    pub(crate) fn store(&self) -> &Arc<Store> {
        &self.store
    }

    fn maps(&self) -> &Maps {
        self.maps.as_ref().expect("the mapping is taken out by drop alone")
    }
}

impl Drop for View {
    fn drop(&mut self) {
        drop(self.maps.take());
        drop(self.lease.take());
        self.store.free_if_doomed(&self.blob_key, self.blob.id);
    }
}

impl std::fmt::Debug for View {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("View").field("blob", &self.blob_key).field("size_bytes", &self.blob.size_bytes).finish_non_exhaustive()
    }
}
