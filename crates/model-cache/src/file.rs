//! A file handed to a loader: [`ModelFile`], one contiguous read-only slice; [`ModelReader`] for those who want `Read + Seek`.

use crate::{
    error::{Error, Result},
    name::{CommitId, FilePath, RepoId},
    placement::Placement,
    record::{BLOCK_BYTES, CHUNK_BYTES},
    store::{Content, StoredFile},
};
use std::{
    collections::HashSet,
    io::{self, Read, Seek, SeekFrom},
    ops::{Deref, Range},
    sync::{Arc, Mutex, PoisonError},
};

/// A file of the store, open: derefs to all its bytes, in one slice.
///
/// Zero-copy over all chunks, whatever the size: the chunks are mapped side by side, read-only. Files of up to 64 KiB are a copy.
/// The slice begins on a 64 KiB boundary (64 B for a copy), so alignments within the file hold in memory. `Send + Sync`; cloning
/// is cheap and shares the mapping.
///
/// It keeps a lease on the content until the last clone is dropped: removing the file meanwhile takes its name away, and its
/// bytes stay until then; dropping the last clone then frees them, which takes a few durable commits. It needs no transaction and does not keep the store from reusing other space.
///
/// Pages come from the page cache as they are touched. If the disk can't deliver one, the process gets SIGBUS, as with every
/// memory-mapped file.
///
/// ```no_run
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let cache = tabagent_model_cache::ModelCache::open("./models")?;
/// if let Some(file) = cache.get_file("org/name", "model.safetensors")? {
///     let header_bytes = u64::from_le_bytes(file[..8].try_into()?);
///     println!("{} bytes, of which {header_bytes} are header", file.len());
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct ModelFile {
    file: Arc<StoredFile>,
    /// Blocks whose CRC32C was found to hold.
    checked: Arc<Mutex<HashSet<u64>>>,
}

impl ModelFile {
    pub(crate) fn new(file: StoredFile) -> Self {
        Self { file: Arc::new(file), checked: Arc::default() }
    }

    /// The repo it was opened from.
    pub fn repo(&self) -> &RepoId {
        &self.file.repo.repo
    }

    /// The commit it was opened at; `None` for an import.
    pub fn commit(&self) -> Option<&CommitId> {
        self.file.repo.commit.as_ref()
    }

    /// Its path within the repo.
    pub fn path(&self) -> &FilePath {
        &self.file.path
    }

    /// The Hub's digest of the content, `sha256:<hex>` or `git-sha1:<hex>`; it was checked before the file became visible.
    pub fn digest(&self) -> &str {
        &self.file.digest
    }

    /// Its size; the slice has as many bytes.
    pub fn size_bytes(&self) -> u64 {
        self.file.size_bytes
    }

    /// The content, in chunks of 100 MiB as they are stored; none for an empty file. Copies nothing on any system.
    pub fn slices(&self) -> impl Iterator<Item = &[u8]> {
        (0..self.file.size_bytes.div_ceil(CHUNK_BYTES) as usize).filter_map(|index| self.chunk(index))
    }

    /// A reader over the content, with a position of its own; it keeps the lease too.
    pub fn reader(&self) -> ModelReader {
        ModelReader { file: self.clone(), position: 0, check: false }
    }

    /// As [`reader`](Self::reader), but each block is held against the CRC32C it was sealed with when it is first read: a damaged one is
    /// an error of kind `InvalidData` that names it, and none of its bytes are given.
    pub fn checked_reader(&self) -> ModelReader {
        ModelReader { check: true, ..self.reader() }
    }

    /// The bytes of `range`, once every block it touches was held against the CRC32C it was sealed with. A block is checked once for all
    /// clones of this file, as it is in memory then.
    ///
    /// Cost: one read of the blocks not checked before, 0.1 CPU-seconds a GiB where they are in memory.
    ///
    /// # Errors
    /// [`Error::Damaged`], which names the block; [`Error::InvalidRange`]; those of the disk, where touching the slice would be SIGBUS.
    pub fn checked(&self, range: Range<u64>) -> Result<&[u8]> {
        let (start, end, size_bytes) = (range.start, range.end, self.file.size_bytes);
        if start > end || end > size_bytes {
            return Err(Error::InvalidRange { path: self.path().to_string(), start, end, size_bytes });
        }
        match &self.file.content {
            // Checked when it was opened.
            Content::Inline(_) => {}
            Content::View(_) if range.is_empty() => {}
            Content::View(view) => {
                // Entries are single inserts, so the set is whole even if a holder panicked.
                let mut checked = self.checked.lock().unwrap_or_else(PoisonError::into_inner);
                view.check_blocks(&format!("{} {}", self.repo(), self.path()), range, &mut checked)?;
            }
        }
        Ok(&self[start as usize..end as usize])
    }

    /// Where the content lies in the store's data file, for programs that map it by themselves; `None` for files of at most
    /// 64 KiB, which are not in it.
    ///
    /// True for as long as a clone of this file lives: whoever reads by these offsets keeps one until it has stopped.
    pub fn placement(&self) -> Option<Placement> {
        match &self.file.content {
            Content::Inline(_) => None,
            Content::View(view) => Some(Placement::of(view)),
        }
    }

    pub(crate) fn stored(&self) -> &StoredFile {
        &self.file
    }

    fn chunk(&self, index: usize) -> Option<&[u8]> {
        match &self.file.content {
            Content::Inline(bytes) => bytes.chunks(CHUNK_BYTES as usize).nth(index),
            Content::View(view) => view.chunk(index),
        }
    }
}

impl Deref for ModelFile {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.file.content {
            Content::Inline(bytes) => bytes,
            Content::View(view) => view.as_slice(),
        }
    }
}

impl AsRef<[u8]> for ModelFile {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

/// Reads a [`ModelFile`] as a stream. Never fails but for a seek before the start, and, where it checks what it reads, for damage.
#[derive(Clone, Debug)]
pub struct ModelReader {
    file: ModelFile,
    position: u64,
    check: bool,
}

impl Read for ModelReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.position >= self.file.file.size_bytes {
            return Ok(0);
        }
        let index = (self.position / CHUNK_BYTES) as usize;
        let within = (self.position % CHUNK_BYTES) as usize;
        let Some(chunk) = self.file.chunk(index) else { return Ok(0) };
        let part = &chunk[within..];
        let mut bytes = part.len().min(buffer.len());
        if self.check && bytes > 0 {
            // Within one block, so that a damaged one keeps nobody from those before it.
            bytes = bytes.min((BLOCK_BYTES - self.position % BLOCK_BYTES) as usize);
            let checked = self.file.checked(self.position..self.position + bytes as u64);
            checked.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        }
        buffer[..bytes].copy_from_slice(&part[..bytes]);
        self.position += bytes as u64;
        Ok(bytes)
    }
}

impl Seek for ModelReader {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let position = match to {
            SeekFrom::Start(position) => Some(position),
            SeekFrom::End(offset) => self.file.file.size_bytes.checked_add_signed(offset),
            SeekFrom::Current(offset) => self.position.checked_add_signed(offset),
        };
        self.position =
            position.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "a seek to before the start of the file"))?;
        Ok(self.position)
    }
}
