//! What the metadata environment holds: the records, their tables, and the store's format number.

use crate::key;
use rkyv::{Archive, Deserialize, Serialize};
use std::ops::Range;
use storage::Table;

/// The format of the stores this build makes. A store of a higher one is refused; one of a lower one is read and written as it is.
///
/// | format | extents |
/// |---|---|
/// | 1 | data on boundaries of 64 KiB |
/// | 2 | large data on boundaries of 2 MiB |
pub(crate) const FORMAT: u32 = 2;

/// Bytes of a chunk, the unit of storage. A multiple of 64 KiB, so that chunks can be mapped side by side.
pub const CHUNK_BYTES: u64 = 100 << 20;
/// Bytes of a block, the unit of CRC32C, progress, resume and verification; 20 to a chunk.
pub const BLOCK_BYTES: u64 = 5 << 20;
/// A file of at most this many bytes is kept inline: one value beside its metadata, without extent or lease.
pub const INLINE_BYTES: u64 = 64 << 10;

pub(crate) const BLOCKS_PER_CHUNK: u64 = CHUNK_BYTES / BLOCK_BYTES;

/// Files of at most [`INLINE_BYTES`], under their chunk key.
pub(crate) const INLINE: Table<[u8]> = Table::new("chunks");
pub(crate) const METADATA: Table<FileMetadata> = Table::new("metadata");
pub(crate) const BLOBS: Table<BlobRecord> = Table::new("blobs");
pub(crate) const MANIFESTS: Table<ManifestEntry> = Table::new("manifests");
pub(crate) const REFS: Table<RefRecord> = Table::new("refs");
pub(crate) const ACCESS: Table<AccessRecord> = Table::new("access");
/// `format` (u32), `next_blob_id` (u64), `doomed:<id>` (a blob's key) and, of a store that was backed up, `id` (32 hex digits), as plain
/// little-endian bytes, so that any later version can read what any earlier one wrote.
pub(crate) const STORE: Table<[u8]> = Table::new("store");

pub(crate) const TABLES: [&str; 7] =
    [INLINE.name(), METADATA.name(), BLOBS.name(), MANIFESTS.name(), REFS.name(), ACCESS.name(), STORE.name()];

/// A file's name and what it promises. It exists only once the file is sealed.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub(crate) struct FileMetadata {
    pub(crate) size_bytes: u64,
    /// `sha256:<hex>` or `git-sha1:<hex>`.
    pub(crate) digest: String,
    pub(crate) content_type: String,
    pub(crate) blob_id: u64,
    pub(crate) created_unix_ms: i64,
}

/// Where a blob is in its life. design.md, section 3.
#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BlobState {
    /// Its extents are reserved, or about to be; the holder of the exclusive lease writes into them.
    Filling,
    /// Complete, verified, durable: readers may map it.
    Sealed,
    /// No name leads to it; whoever reads it may go on.
    Doomed,
    /// Its space is being given back; nothing brings it back.
    Freeing,
}

/// A file's content, found by its digest.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub(crate) struct BlobRecord {
    /// Never reused; the number of its lease, and the owner in its extents' headers.
    pub(crate) id: u64,
    /// `<repo>:<path>` its chunks are keyed by.
    pub(crate) home: String,
    pub(crate) size_bytes: u64,
    pub(crate) state: BlobState,
    /// Metadata keys of the names that use it.
    pub(crate) names: Vec<String>,
    /// First page of each chunk's extent, so that a ruined tree can be rebuilt; empty until sealed.
    pub(crate) pages: Vec<u32>,
    /// CRC32C of each block; empty until sealed.
    pub(crate) block_crcs: Vec<u32>,
    pub(crate) created_unix_ms: i64,
}

impl BlobRecord {
    pub(crate) fn is_inline(&self) -> bool {
        self.size_bytes <= INLINE_BYTES
    }

    /// How its content is cut.
    pub(crate) fn layout(&self) -> Layout {
        if key::is_derived_home(&self.home) { Layout::in_one(self.size_bytes) } else { Layout::of_file(self.size_bytes) }
    }
}

/// How a blob's content is cut into chunks, each an extent, and blocks. No block lies in two chunks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    size_bytes: u64,
    /// A multiple of [`BLOCK_BYTES`].
    chunk_bytes: u64,
}

impl Layout {
    /// A file's: chunks of [`CHUNK_BYTES`].
    pub(crate) const fn of_file(size_bytes: u64) -> Self {
        Self { size_bytes, chunk_bytes: CHUNK_BYTES }
    }

    /// A derived value's: one chunk, however large; of an empty one, which only a damaged row tells of, too.
    pub(crate) const fn in_one(size_bytes: u64) -> Self {
        let chunk_bytes = match size_bytes.checked_next_multiple_of(BLOCK_BYTES) {
            Some(0) => BLOCK_BYTES,
            Some(bytes) => bytes,
            None => u64::MAX / BLOCK_BYTES * BLOCK_BYTES,
        };
        Self { size_bytes, chunk_bytes }
    }

    /// How many chunks there are; an inline file counts as one.
    pub(crate) fn chunks(&self) -> u32 {
        self.size_bytes.div_ceil(self.chunk_bytes).clamp(1, u32::MAX.into()) as u32
    }

    /// Bytes of chunk `index`.
    pub(crate) fn chunk_bytes(&self, index: u32) -> u64 {
        (self.size_bytes - u64::from(index) * self.chunk_bytes).min(self.chunk_bytes)
    }

    /// How many blocks there are.
    pub(crate) fn blocks(&self) -> u64 {
        self.size_bytes.div_ceil(BLOCK_BYTES)
    }

    /// The byte range of block `index`.
    pub(crate) fn block_range(&self, index: u64) -> Range<u64> {
        let start = index * BLOCK_BYTES;
        start..start.saturating_add(BLOCK_BYTES).min(self.size_bytes)
    }

    /// The first block of chunk `index`.
    pub(crate) fn first_block(&self, index: u32) -> u64 {
        u64::from(index) * (self.chunk_bytes / BLOCK_BYTES)
    }

    /// The chunk that byte `offset` lies in, and where in it.
    pub(crate) fn place(&self, offset: u64) -> (u32, u64) {
        ((offset / self.chunk_bytes) as u32, offset % self.chunk_bytes)
    }
}

/// What one commit of a repo offers, as the Hub listed it.
#[derive(Archive, Serialize, Deserialize, serde::Serialize, serde::Deserialize, Clone, Debug, PartialEq, Eq)]
pub(crate) struct ManifestEntry {
    pub(crate) task: Option<String>,
    pub(crate) scanned_unix_ms: i64,
    pub(crate) files: Vec<ListedFile>,
    pub(crate) quants: Vec<QuantEntry>,
    pub(crate) shared: Vec<String>,
    pub(crate) extras: Vec<String>,
}

/// One file of a listing.
#[derive(Archive, Serialize, Deserialize, serde::Serialize, serde::Deserialize, Clone, Debug, PartialEq, Eq)]
pub(crate) struct ListedFile {
    pub(crate) path: String,
    pub(crate) size_bytes: u64,
    pub(crate) digest: String,
}

/// One quant of a listing.
#[derive(Archive, Serialize, Deserialize, serde::Serialize, serde::Deserialize, Clone, Debug, PartialEq, Eq)]
pub(crate) struct QuantEntry {
    pub(crate) key: String,
    pub(crate) own: Vec<String>,
    pub(crate) shared: Vec<String>,
    pub(crate) missing: Vec<String>,
    /// Why the last pull of it failed, if it did.
    pub(crate) last_error: Option<String>,
}

/// Which commit a revision is.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub(crate) struct RefRecord {
    /// What the Hub said last.
    pub(crate) latest: String,
    pub(crate) checked_unix_ms: i64,
    /// The commit local reads go to: that of the last pull that finished. It stays until another one did.
    pub(crate) current: Option<String>,
}

/// When a blob was last opened.
#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct AccessRecord {
    pub(crate) last_used_unix_ms: i64,
}

/// How many chunks a file of `size_bytes` has; an inline one counts as one.
pub(crate) fn chunks(size_bytes: u64) -> u32 {
    Layout::of_file(size_bytes).chunks()
}

/// How many blocks a file of `size_bytes` has.
pub(crate) fn blocks(size_bytes: u64) -> u64 {
    Layout::of_file(size_bytes).blocks()
}

/// The byte range of block `index` of a file of `size_bytes`.
pub(crate) fn block_range(size_bytes: u64, index: u64) -> Range<u64> {
    Layout::of_file(size_bytes).block_range(index)
}

/// The time as records keep it.
pub(crate) fn now_unix_ms() -> i64 {
    chrono::Utc::now().timestamp_millis()
}

/// What a file's name says of its content, for whoever serves it on.
pub(crate) fn content_type(path: &str) -> &'static str {
    match path.rsplit_once('.').map(|(_, extension)| extension) {
        Some("json") => "application/json",
        Some("md") => "text/markdown; charset=utf-8",
        Some("txt" | "jinja" | "py") => "text/plain; charset=utf-8",
        _ => "application/octet-stream",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn no_size_a_damaged_row_may_tell_overflows(size in prop_oneof![any::<u64>(), Just(0), Just(u64::MAX)], in_one: bool) {
            let layout = if in_one { Layout::in_one(size) } else { Layout::of_file(size) };
            prop_assert!(layout.chunks() > 0 && layout.chunk_bytes(layout.chunks() - 1) <= size);
            if let Some(last) = layout.blocks().checked_sub(1) {
                prop_assert_eq!(layout.block_range(last).end, size);
            }
        }

        #[test]
        fn chunks_and_blocks_cover_a_file_without_gap_or_overlap(size in 1u64..3 * CHUNK_BYTES, in_one: bool) {
            let layout = if in_one { Layout::in_one(size) } else { Layout::of_file(size) };
            prop_assert!(!in_one || layout.chunks() == 1);
            prop_assert_eq!((0..layout.chunks()).map(|n| layout.chunk_bytes(n)).sum::<u64>(), size);
            let mut end = 0;
            for block in 0..layout.blocks() {
                let range = layout.block_range(block);
                prop_assert_eq!(range.start, end);
                prop_assert!(range.start < range.end);
                let (chunk, within) = layout.place(range.start);
                prop_assert_eq!(chunk, layout.place(range.end - 1).0, "a block lies in two chunks");
                prop_assert_eq!(layout.first_block(chunk) + within / BLOCK_BYTES, block);
                end = range.end;
            }
            prop_assert_eq!(end, size);
        }
    }
}
