//! A description of our own of the extents' data file: [`DataFile`]. Writes, journals, syncs, punches and reads extents in place.

use crate::{
    copy::CopyMethod,
    error::{Error, Result},
    extent::{Extent, HEADER_REGION_BYTES, PAGE_BYTES},
    fail::fail_point,
    mdbx::PAGE_HEADER_BYTES,
    write_log,
};
use nix::fcntl::{FallocateFlags, PosixFadviseAdvice, fallocate, posix_fadvise};
use std::{
    fs::File,
    io,
    ops::Range,
    os::unix::fs::FileExt,
    path::PathBuf,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

/// Where the header lies in an extent's first page: behind libmdbx's 20 bytes, on a cache line of its own.
const HEADER_OFFSET: u64 = 64;
pub(crate) const HEADER_BYTES: usize = 64;
const JOURNAL_OFFSET: u64 = HEADER_OFFSET + HEADER_BYTES as u64;
const JOURNAL_ENTRY_BYTES: u64 = 8;
const MAX_BLOCKS: usize = ((HEADER_REGION_BYTES - JOURNAL_OFFSET) / JOURNAL_ENTRY_BYTES) as usize;
/// libmdbx's own limit of a value is 2 GiB less a few pages.
const MAX_DATA_BYTES: u64 = (2 << 30) - (1 << 20);
/// The first bytes of the header region are kept when an extent is punched: the page header libmdbx reads may lie there.
const KEPT_BYTES: u64 = 4096;
/// How much is punched at once, at first and at least. With its pages in memory, 100 MiB take the kernel 20 to 27 ms.
const PUNCH_STEP_BYTES: u64 = 8 << 20;
/// A step that took less is followed by one of twice the size, one that took twice as long by one of half the size.
const PUNCH_STEP: Duration = Duration::from_millis(3);
const MAGIC: [u8; 8] = *b"MDXEXTNT";
const FORMAT: u32 = 1;
/// Set in a journal entry whose block has landed. A bit pattern of its own, since any CRC may be zero.
const LANDED: u32 = 0x4C41_4E44;

/// Who owns an extent, as written in its header region before the reservation was committed.
///
/// ```text
/// offset in page   field
///  64  8           magic "MDXEXTNT"
///  72  4           format, u32 little endian: 1
///  76  4           index
///  80  8           owner
///  88  8           data_bytes
///  96  4           block_bytes
/// 100  4           CRC32C of the 36 bytes before
/// 128  8 x blocks  journal: CRC32C of the block, then "LAND" if it has landed
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExtentHeader {
    /// Number of the owner, as its creator gave it.
    pub owner: u64,
    /// Which of the owner's extents this is, from 0.
    pub index: u32,
    /// Bytes of data.
    pub data_bytes: u64,
    /// Bytes of each block but the last.
    pub block_bytes: u32,
}

/// What an extent's journal says: for each block, its CRC32C if it has landed.
pub type Journal = Vec<Option<u32>>;

impl ExtentHeader {
    /// How many blocks the extent has.
    ///
    /// # Panics
    /// If `block_bytes` is 0, which no header read from an extent has.
    pub fn blocks(&self) -> usize {
        self.data_bytes.div_ceil(u64::from(self.block_bytes)) as usize
    }

    /// Whether such an extent can be, or why not.
    pub(crate) fn check(&self) -> Result<(), String> {
        if self.data_bytes == 0 {
            return Err("it would have no bytes".to_owned());
        }
        if self.data_bytes > MAX_DATA_BYTES {
            return Err(format!("it would have {} bytes, more than {MAX_DATA_BYTES}", self.data_bytes));
        }
        if self.block_bytes == 0 || self.blocks() > MAX_BLOCKS {
            return Err(format!("{} bytes in blocks of {} are not 1 to {MAX_BLOCKS} blocks", self.data_bytes, self.block_bytes));
        }
        Ok(())
    }

    pub(crate) fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[0..8].copy_from_slice(&MAGIC);
        bytes[8..12].copy_from_slice(&FORMAT.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.index.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.owner.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.data_bytes.to_le_bytes());
        bytes[32..36].copy_from_slice(&self.block_bytes.to_le_bytes());
        let crc = crc32c::crc32c(&bytes[..36]);
        bytes[36..40].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    pub(crate) fn decode(bytes: &[u8; HEADER_BYTES]) -> Option<Self> {
        let u32_at = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("4 bytes"));
        let u64_at = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"));
        let sound = bytes[0..8] == MAGIC && u32_at(8) == FORMAT && u32_at(36) == crc32c::crc32c(&bytes[..36]);
        let header = Self { owner: u64_at(16), index: u32_at(12), data_bytes: u64_at(24), block_bytes: u32_at(32) };
        (sound && header.check().is_ok()).then_some(header)
    }
}

/// The journal's entry of a block that has landed.
pub(crate) fn landed(crc: u32) -> [u8; JOURNAL_ENTRY_BYTES as usize] {
    let mut entry = [0; JOURNAL_ENTRY_BYTES as usize];
    entry[..4].copy_from_slice(&crc.to_le_bytes());
    entry[4..].copy_from_slice(&LANDED.to_le_bytes());
    entry
}

/// What the entries of a journal say.
pub(crate) fn decode_journal(bytes: &[u8]) -> Journal {
    let entry = |bytes: &[u8]| {
        let (crc, landed) = bytes.split_at(4);
        (landed == LANDED.to_le_bytes()).then(|| u32::from_le_bytes(crc.try_into().expect("4 bytes")))
    };
    bytes.chunks_exact(JOURNAL_ENTRY_BYTES as usize).map(entry).collect()
}

/// An open description of the extents' data file.
///
/// All methods take `&self` and may be called from several threads. Writing into an extent is allowed only to the holder of
/// its exclusive lease: a stray write into freed pages destroys the environment.
pub struct DataFile {
    file: File,
    folder: PathBuf,
    /// Set by the first write or sync that failed; never cleared.
    failed: AtomicBool,
    /// How much the next step of a punch takes away.
    punch_step_bytes: AtomicU64,
    /// One sync at a time: of two, the kernel would tell a lost write to one alone, and the other would not yet know.
    syncing: Mutex<()>,
}

impl DataFile {
    pub(crate) fn new(file: File, folder: PathBuf) -> Self {
        let punch_step_bytes = AtomicU64::new(PUNCH_STEP_BYTES);
        Self { file, folder, failed: AtomicBool::new(false), punch_step_bytes, syncing: Mutex::new(()) }
    }

    /// The data file of the environment in `folder`, which need not be open, nor sound: to read what lies at places that are known. `None`
    /// where there is none.
    pub fn open_to_read(folder: &std::path::Path) -> Result<Option<Self>> {
        Ok(crate::look::open_data_file(folder)?.map(|file| Self::new(file, folder.to_owned())))
    }

    pub(crate) fn folder(&self) -> &std::path::Path {
        &self.folder
    }

    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// Reads `buffer.len()` bytes from `offset` of the extent's data.
    ///
    /// # Errors
    /// [`Error::Io`], also if the range does not lie in the extent.
    pub fn read_at(&self, extent: &Extent, offset: u64, buffer: &mut [u8]) -> Result<()> {
        self.check_range(extent, offset, buffer.len() as u64, "read")?;
        self.file.read_exact_at(buffer, extent.data_offset() + offset).map_err(|source| self.io("read", source))
    }

    /// Writes `bytes` at `offset` of the extent's data, in place. Not durable until [`sync`](Self::sync).
    ///
    /// # Errors
    /// [`Error::Io`], also if the range does not lie in the extent; sticky, see [`sync`](Self::sync). [`Error::WriteBackFailed`]
    /// after any that failed.
    pub fn write_at(&self, extent: &Extent, offset: u64, bytes: &[u8]) -> Result<()> {
        self.check_range(extent, offset, bytes.len() as u64, "write")?;
        self.write(extent, extent.data_offset() + offset, bytes)?;
        fail_point("fill.piece_written");
        Ok(())
    }

    /// Journals that `block` of the extent has landed, with the CRC32C of its bytes.
    ///
    /// No order of writes is relied on: whoever resumes computes the CRC again and believes it only if it matches.
    pub fn journal(&self, extent: &Extent, block: usize, crc: u32) -> Result<()> {
        if block >= MAX_BLOCKS {
            return Err(self.io("journal a block past the header region of", io::ErrorKind::InvalidInput.into()));
        }
        let at = JOURNAL_OFFSET + block as u64 * JOURNAL_ENTRY_BYTES;
        self.write(extent, extent.page_offset() + at, &landed(crc))?;
        fail_point("fill.block_journaled");
        Ok(())
    }

    /// Starts writing `bytes` at `offset` of the extent's data out to the disk, so that [`sync`](Self::sync) finds less to wait for.
    ///
    /// Nothing is durable by it. May block for as long as the disk is busy: not for a thread that has other work. Does not take
    /// from `sync` the error of a write that was lost.
    ///
    /// # Errors
    /// [`Error::Io`], also if the range does not lie in the extent; sticky, see [`sync`](Self::sync).
    pub fn start_writeback(&self, extent: &Extent, offset: u64, bytes: u64) -> Result<()> {
        self.check_range(extent, offset, bytes, "write out")?;
        self.refuse_after_failure()?;
        crate::writeback::start(&self.file, extent.data_offset() + offset, bytes).map_err(|source| {
            self.failed.store(true, Ordering::Release);
            self.io("write out", source)
        })
    }

    /// The extent's header, or `None` if there is no sound one.
    pub fn read_header(&self, extent: &Extent) -> Result<Option<ExtentHeader>> {
        let mut bytes = [0; HEADER_BYTES];
        match self.file.read_exact_at(&mut bytes, extent.page_offset() + HEADER_OFFSET) {
            Ok(()) => Ok(ExtentHeader::decode(&bytes)),
            // Past the end of the file: a page number that was never real.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
            Err(source) => Err(self.io("read a header of", source)),
        }
    }

    /// The journal of an extent that has `header`.
    pub fn read_journal(&self, extent: &Extent, header: &ExtentHeader) -> Result<Journal> {
        let mut bytes = vec![0; header.blocks().min(MAX_BLOCKS) * JOURNAL_ENTRY_BYTES as usize];
        self.file
            .read_exact_at(&mut bytes, extent.page_offset() + JOURNAL_OFFSET)
            .map_err(|source| self.io("read a journal of", source))?;
        Ok(decode_journal(&bytes))
    }

    /// Copies the extent's data into `target` at `offset_bytes`, by the cheapest way the file systems offer, and says which.
    ///
    /// As [`copy_range_to`](Self::copy_range_to) of all of it.
    pub fn copy_to(&self, extent: &Extent, target: &File, offset_bytes: u64) -> Result<CopyMethod> {
        self.copy_range_to(extent, 0..extent.data_bytes, target, offset_bytes)
    }

    /// Copies `range` of the extent's data into `target` at `offset_bytes`, by the cheapest way the file systems offer, and says which.
    ///
    /// A reflink where they share blocks (XFS, btrfs on one volume), else a copy within the kernel, else read and write. Shared
    /// are whole blocks only, so a `range` is shared only if it begins on one, and `target` may end up to 64 KiB later than the data does:
    /// it has to be cut by its owner.
    ///
    /// # Errors
    /// [`Error::Io`] of either file, also if the range does not lie in the extent.
    pub fn copy_range_to(&self, extent: &Extent, range: Range<u64>, target: &File, offset_bytes: u64) -> Result<CopyMethod> {
        let bytes = range.end.saturating_sub(range.start);
        self.check_range(extent, range.start, bytes, "copy out of")?;
        // The rest of the last page is the extent's too, so that any file system's blocks are whole.
        let shared_bytes = if range.end == extent.data_bytes { bytes.next_multiple_of(PAGE_BYTES) } else { bytes };
        crate::copy::copy(&self.file, extent.data_offset() + range.start, target, offset_bytes, bytes, shared_bytes)
            .map_err(|source| self.io("copy out of", source))
    }

    /// Whether copies into `target` would share blocks with this file, and take no space. Leaves a page in `target`.
    pub fn shares_blocks_with(&self, target: &File) -> bool {
        crate::copy::can_share(&self.file, target, PAGE_BYTES)
    }

    /// Makes every write through this description durable.
    ///
    /// # Errors
    /// [`Error::Io`] from the sync that is told of a lost write. [`Error::WriteBackFailed`] after any failed write or sync, for
    /// ever: the kernel tells a lost write once, so nothing may be sealed through this description any more. Drop the pages from the cache
    /// ([`forget`](Self::forget)), open a new description and check every block again.
    pub fn sync(&self) -> Result<()> {
        let _syncing = self.syncing.lock().unwrap_or_else(PoisonError::into_inner);
        self.refuse_after_failure()?;
        write_log::synced(false, || self.file.sync_data()).map_err(|source| {
            self.failed.store(true, Ordering::Release);
            self.io("sync", source)
        })?;
        fail_point("fill.data_synced");
        Ok(())
    }

    /// Drops the extent's clean pages from the page cache, so that the next read shows what the disk has.
    pub fn forget(&self, extent: &Extent) -> Result<()> {
        let (offset, bytes) = (extent.page_offset() as i64, (HEADER_REGION_BYTES + extent.data_bytes) as i64);
        posix_fadvise(&self.file, offset, bytes, PosixFadviseAdvice::POSIX_FADV_DONTNEED)
            .map_err(|code| self.io("drop from the page cache", code.into()))
    }

    /// Gives the extent's disk space back to the file system while its pages are still its own; its data reads as zeros.
    ///
    /// The first 4 KiB stay: libmdbx reads the page header there. In steps of a few milliseconds, between which those who write into
    /// other extents of the file have their turn: the kernel keeps them out while it takes pages away. Does nothing unless
    /// [`can_punch`](crate::can_punch).
    pub fn punch(&self, extent: &Extent) -> Result<()> {
        if !crate::can_punch() {
            return Ok(());
        }
        write_log::freed(extent);
        self.punch_range(hole(extent))
    }

    pub(crate) fn file_bytes(&self) -> Result<u64> {
        Ok(self.file.metadata().map_err(|source| self.io("find the size of", source))?.len())
    }

    /// Takes the disk space of a range of bytes away; they read as zeros.
    pub(crate) fn punch_range(&self, mut rest: Range<u64>) -> Result<()> {
        let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        while !rest.is_empty() {
            let step_bytes = self.punch_step_bytes.load(Ordering::Relaxed);
            let bytes = step_bytes.min(rest.end - rest.start);
            let begun = Instant::now();
            match fallocate(&self.file, flags, rest.start as i64, bytes as i64) {
                Ok(()) => {}
                // A file system without holes keeps the space for libmdbx to reuse.
                Err(nix::errno::Errno::EOPNOTSUPP) => break,
                Err(code) => return Err(self.io("give back space of", code.into())),
            }
            rest.start += bytes;
            self.punch_step_bytes.store(next_step_bytes(step_bytes, bytes, begun.elapsed()), Ordering::Relaxed);
            fail_point("punch.step_taken");
        }
        Ok(())
    }

    /// Takes the disk space of the whole extent, header region included.
    pub(crate) fn allocate(&self, extent: &Extent) -> Result<()> {
        let bytes = HEADER_REGION_BYTES + extent.data_bytes;
        match fallocate(&self.file, FallocateFlags::FALLOC_FL_KEEP_SIZE, extent.page_offset() as i64, bytes as i64) {
            Ok(()) | Err(nix::errno::Errno::EOPNOTSUPP) => Ok(()),
            Err(nix::errno::Errno::ENOSPC | nix::errno::Errno::EDQUOT) => Err(Error::NoSpace {
                action: "reserve extents",
                path: self.folder.clone(),
                needed_bytes: bytes,
                free_bytes: crate::disk::free_bytes(&self.folder)?,
            }),
            Err(code) => Err(self.io("take space for", code.into())),
        }
    }

    /// Writes the extent's header, which has been checked, and an empty journal.
    pub(crate) fn write_header(&self, extent: &Extent, header: &ExtentHeader) -> Result<()> {
        let journal_bytes = header.blocks() * JOURNAL_ENTRY_BYTES as usize;
        let mut bytes = header.encode().to_vec();
        bytes.resize(HEADER_BYTES + journal_bytes, 0);
        self.write(extent, extent.page_offset() + HEADER_OFFSET, &bytes)
    }

    pub(crate) fn read_page_header(&self, page: u32) -> Result<[u8; PAGE_HEADER_BYTES]> {
        let mut bytes = [0; PAGE_HEADER_BYTES];
        let read = self.file.read_exact_at(&mut bytes, u64::from(page) * PAGE_BYTES);
        read.map_err(|source| self.io("read a page header of", source))?;
        Ok(bytes)
    }

    fn write(&self, extent: &Extent, offset: u64, bytes: &[u8]) -> Result<()> {
        // What is written after a failure can't be sealed: whoever fetches it should hear so now, not at the end.
        self.refuse_after_failure()?;
        write_log::writing(&self.file, extent, offset, bytes.len());
        self.file.write_all_at(bytes, offset).map_err(|source| {
            self.failed.store(true, Ordering::Release);
            self.io("write", source)
        })
    }

    fn refuse_after_failure(&self) -> Result<()> {
        if self.failed.load(Ordering::Acquire) { Err(Error::WriteBackFailed { path: self.folder.clone() }) } else { Ok(()) }
    }

    fn check_range(&self, extent: &Extent, offset: u64, bytes: u64, action: &'static str) -> Result<()> {
        match offset.checked_add(bytes) {
            Some(end) if end <= extent.data_bytes => Ok(()),
            _ => Err(self.io(action, io::Error::new(io::ErrorKind::InvalidInput, "the range does not lie in the extent"))),
        }
    }

    fn io(&self, action: &'static str, source: io::Error) -> Error {
        Error::Io { action, path: self.folder.clone(), source }
    }
}

/// What [`DataFile::punch`] takes away: whole pages of the extent, but for its page header.
pub(crate) fn hole(extent: &Extent) -> Range<u64> {
    extent.page_offset() + KEPT_BYTES..extent.data_offset() + extent.data_bytes.next_multiple_of(PAGE_BYTES)
}

/// How much to punch at once after `bytes`, which were to be `step_bytes` or the rest of an extent, took so long.
///
/// A multiple of [`PUNCH_STEP_BYTES`], so that no block is split.
fn next_step_bytes(step_bytes: u64, bytes: u64, took: Duration) -> u64 {
    if took < PUNCH_STEP {
        (2 * step_bytes).min(MAX_DATA_BYTES.next_multiple_of(PUNCH_STEP_BYTES))
    } else if took > 2 * PUNCH_STEP {
        (bytes / 2).max(1).next_multiple_of(PUNCH_STEP_BYTES)
    } else {
        step_bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::{collection::vec, prelude::*};

    proptest! {
        #[test]
        fn a_step_of_a_punch_is_never_empty_nor_splits_a_block_and_grows_while_it_is_quick(steps in vec((0..20_u64, any::<u64>()), 0..20)) {
            let mut step_bytes = PUNCH_STEP_BYTES;
            for (ms, rest) in steps {
                let next = next_step_bytes(step_bytes, step_bytes.min(rest), Duration::from_millis(ms));
                prop_assert!(next >= PUNCH_STEP_BYTES && next.is_multiple_of(PUNCH_STEP_BYTES));
                let goes_the_right_way = if ms < 3 { next >= step_bytes } else { next <= step_bytes };
                prop_assert!(goes_the_right_way, "{step_bytes} to {next} after {ms} ms");
                step_bytes = next;
            }
            // As long as nothing takes its time, extents of the greatest size are soon one step.
            for _ in 0..9 {
                step_bytes = next_step_bytes(step_bytes, step_bytes, Duration::ZERO);
            }
            prop_assert!(step_bytes >= MAX_DATA_BYTES);
            // One long step is enough to make the next ones of such extents shorter.
            prop_assert!(next_step_bytes(step_bytes, 100 << 20, Duration::from_millis(25)) <= 56 << 20);
        }
    }
}
