//! From network pieces to landed blocks: a [`BlockWriter`] a connection gathers bytes, and one [`FileWriter`] a file writes,
//! checksums and journals them.

use super::plan::Begun;
use crate::{
    digest::{Digest, Hasher},
    error::{Error, Result},
    progress::Reporter,
    record::*,
    store::{Fill, Followers, spawn},
};
use std::{
    future,
    sync::{Arc, Mutex, PoisonError, mpsc},
    thread,
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

/// Bytes gathered before they are written.
pub(crate) const BUFFER_BYTES: usize = 256 << 10;

/// The buffers of one pull: as many as its memory budget allows, used again and again. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Buffers {
    permits: Arc<Semaphore>,
    free: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl Buffers {
    /// At most `most` buffers of [`BUFFER_BYTES`]; each is allocated when it is first needed.
    pub(crate) fn new(most: usize) -> Self {
        Self { permits: Arc::new(Semaphore::new(most)), free: Arc::default() }
    }

    /// An empty buffer, waited for if all are in use.
    ///
    /// That never lasts: who waits here holds none that is partly filled, and a full one needs nothing more to be written.
    async fn take(&self) -> Buffer {
        let permit = Arc::clone(&self.permits).acquire_owned().await.expect("the semaphore is never closed");
        let bytes = self.free().pop().unwrap_or_else(|| Vec::with_capacity(BUFFER_BYTES));
        Buffer { bytes, home: self.clone(), _permit: permit }
    }

    fn free(&self) -> std::sync::MutexGuard<'_, Vec<Vec<u8>>> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One of [`Buffers`], and a place among them; both go back when it is dropped.
struct Buffer {
    bytes: Vec<u8>,
    home: Buffers,
    _permit: OwnedSemaphorePermit,
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let mut bytes = std::mem::take(&mut self.bytes);
        bytes.clear();
        self.home.free().push(bytes);
    }
}

/// The thread that writes one file, with the threads that follow it.
///
/// One thread, not one for each connection: the file system lets one write at a time into a file, and the others would spin on
/// its lock. It holds the fill, hence its lease, so a future dropped half way leaves no write into space that is no longer ours.
pub(crate) struct FileWriter {
    pieces: mpsc::Sender<Piece>,
    ended: oneshot::Receiver<thread::Result<Result<Digest>>>,
}

/// The end of a [`FileWriter`] that connections send to.
pub(crate) type Pieces = mpsc::Sender<Piece>;

/// Consecutive bytes of one block, to be written.
pub(crate) struct Piece {
    offset: u64,
    buffer: Buffer,
    /// CRC32C of the block's bytes before.
    crc: u32,
    ends_block: bool,
    written: oneshot::Sender<Result<Written>>,
}

struct Written {
    /// CRC32C of the block up to here.
    crc: u32,
    /// The block that landed with this write.
    landed: Option<u64>,
}

impl FileWriter {
    /// # Errors
    /// [`Error::Io`] if the system gives no threads.
    pub(crate) fn start(fill: &Arc<Fill>, hasher: Hasher) -> Result<Self> {
        let followers = Followers::start(fill, hasher)?;
        let (pieces, to_write) = mpsc::channel();
        let (end, ended) = oneshot::channel();
        let fill = Arc::clone(fill);
        let folder = fill.folder().to_owned();
        spawn("model-cache-fill", &folder, move || {
            let work = std::panic::AssertUnwindSafe(move || write_pieces(&fill, followers, &to_write));
            // Nobody waits where the pull was dropped.
            let _ = end.send(std::panic::catch_unwind(work));
        })?;
        Ok(Self { pieces, ended })
    }

    /// Where connections send, and the future of the digest of all bytes, read back. That is done once every block has landed
    /// and all senders are gone, or with the first error of reading back; a panic in the thread goes on in it.
    pub(crate) fn split(self) -> (Pieces, impl Future<Output = Result<Digest>>) {
        let Self { pieces, ended } = self;
        let digest = async move {
            match ended.await {
                Ok(Ok(digest)) => digest,
                Ok(Err(panic)) => std::panic::resume_unwind(panic),
                Err(_) => Err(Error::Cancelled),
            }
        };
        (pieces, digest)
    }
}

fn write_pieces(fill: &Fill, followers: Followers, pieces: &mpsc::Receiver<Piece>) -> Result<Digest> {
    for piece in pieces {
        if fill.is_cancelled() {
            return Err(Error::Cancelled);
        }
        let Piece { offset, buffer, crc, ends_block, written } = piece;
        let result = write_piece(fill, offset, &buffer.bytes, crc, ends_block);
        drop(buffer);
        let landed = result.as_ref().ok().and_then(|written| written.landed);
        let _ = written.send(result);
        if landed.is_some_and(|block| !followers.landed(block)) {
            break;
        }
    }
    followers.finish()
}

fn write_piece(fill: &Fill, offset: u64, bytes: &[u8], crc: u32, ends_block: bool) -> Result<Written> {
    fill.write(offset, bytes)?;
    // After the write, which brought the bytes into this core's cache.
    let crc = crc32c::crc32c_append(crc, bytes);
    if !ends_block {
        return Ok(Written { crc, landed: None });
    }
    let block = offset / BLOCK_BYTES;
    fill.land(block, crc)?;
    Ok(Written { crc: 0, landed: Some(block) })
}

/// Gathers one connection's bytes, in order, for a file's writer: one buffer is written while the next is gathered.
pub(crate) struct BlockWriter<'a> {
    pieces: &'a Pieces,
    buffers: &'a Buffers,
    size_bytes: u64,
    reporter: &'a Reporter,
    path: &'a str,
    /// Where the next byte goes.
    at: u64,
    buffer: Option<Buffer>,
    /// CRC32C of what was written of the current block.
    crc: u32,
    /// Bytes told to the reporter whose block has not landed.
    unlanded_bytes: u64,
    flying: Option<oneshot::Receiver<Result<Written>>>,
}

impl<'a> BlockWriter<'a> {
    /// A writer whose first byte goes to `at`, the start of a block; or elsewhere in one, and then [`go_on`](Self::go_on) comes first.
    pub(crate) fn new(
        pieces: &'a Pieces,
        buffers: &'a Buffers,
        size_bytes: u64,
        reporter: &'a Reporter,
        path: &'a str,
        at: u64,
    ) -> Self {
        Self { pieces, buffers, size_bytes, reporter, path, at, buffer: None, crc: 0, unlanded_bytes: 0, flying: None }
    }

    /// Where the next byte goes.
    pub(crate) fn at(&self) -> u64 {
        self.at
    }

    /// Goes on at `at`, the end of a block, having written whole blocks so far.
    pub(crate) fn skip_to(&mut self, at: u64) {
        debug_assert!(self.buffer.is_none() && (at.is_multiple_of(BLOCK_BYTES) || at == self.size_bytes));
        self.at = at;
    }

    /// Goes on in a block where it was left.
    pub(crate) fn go_on(&mut self, begun: Begun) {
        debug_assert_eq!(self.at % BLOCK_BYTES, begun.bytes);
        self.crc = begun.crc;
        self.unlanded_bytes = begun.bytes;
    }

    /// Writes what was gathered, and leaves the block it belongs to for another writer to go on with.
    pub(crate) async fn leave(&mut self, landed: &mut impl FnMut(u64)) -> Result<Begun> {
        if let Some(buffer) = self.buffer.take() {
            self.flush(buffer, false, landed).await?;
        }
        self.settle(landed).await?;
        let begun = Begun { bytes: self.at % BLOCK_BYTES, crc: self.crc };
        self.unlanded_bytes = 0;
        Ok(begun)
    }

    /// Takes the next bytes, which lie in one block. Calls `landed` for each block that has landed since the last call.
    pub(crate) async fn push(&mut self, mut bytes: &[u8], landed: &mut impl FnMut(u64)) -> Result<()> {
        self.reporter.arrived(self.path, bytes.len() as u64);
        self.unlanded_bytes += bytes.len() as u64;
        let block_end = block_range(self.size_bytes, self.at / BLOCK_BYTES).end;
        while !bytes.is_empty() {
            let mut buffer = match self.buffer.take() {
                Some(buffer) => buffer,
                None => self.buffers.take().await,
            };
            let room = BUFFER_BYTES - buffer.bytes.len();
            let (part, rest) = bytes.split_at(bytes.len().min(room));
            buffer.bytes.extend_from_slice(part);
            self.at += part.len() as u64;
            bytes = rest;
            if buffer.bytes.len() == BUFFER_BYTES || self.at == block_end {
                self.flush(buffer, self.at == block_end, landed).await?;
            } else {
                self.buffer = Some(buffer);
            }
        }
        Ok(())
    }

    async fn flush(&mut self, buffer: Buffer, ends_block: bool, landed: &mut impl FnMut(u64)) -> Result<()> {
        self.settle(landed).await?;
        let (written, flying) = oneshot::channel();
        let offset = self.at - buffer.bytes.len() as u64;
        // A piece that can't be sent is dropped, and its receiver then knows.
        let _ = self.pieces.send(Piece { offset, buffer, crc: self.crc, ends_block, written });
        self.flying = Some(flying);
        Ok(())
    }

    async fn settle(&mut self, landed: &mut impl FnMut(u64)) -> Result<()> {
        let Some(flying) = &mut self.flying else { return Ok(()) };
        // Kept in `self` while awaited: dropped here, it would be forgotten that a write is under way.
        let result = flying.await;
        self.flying = None;
        // The writer has ended before its time; why, the future of its digest says, and that ends this one.
        let Ok(result) = result else { return future::pending().await };
        let written = result?;
        self.crc = written.crc;
        if let Some(block) = written.landed {
            let range = block_range(self.size_bytes, block);
            self.unlanded_bytes = self.unlanded_bytes.saturating_sub(range.end - range.start);
            landed(block);
        }
        Ok(())
    }
}

impl Drop for BlockWriter<'_> {
    fn drop(&mut self) {
        if self.unlanded_bytes > 0 {
            self.reporter.lost(self.path, self.unlanded_bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        key::PinnedRepo,
        store::{Acquired, Store, Wanted},
    };
    use futures::{FutureExt, future::try_join_all};
    use storage::StorageRegistry;

    #[tokio::test]
    async fn no_more_buffers_are_in_use_than_there_are_and_each_comes_back() {
        let buffers = Buffers::new(2);
        let (first, _second) = (buffers.take().await, buffers.take().await);
        assert!(buffers.take().now_or_never().is_none());
        drop(first);
        let third = buffers.take().now_or_never().expect("one came back");
        assert!(third.bytes.is_empty() && third.bytes.capacity() >= BUFFER_BYTES);
    }

    /// Blocks of a file, each connection its own, in pieces of odd sizes, through as few buffers as go.
    #[tokio::test]
    async fn connections_that_share_fewer_buffers_than_they_could_use_write_the_file_whole() {
        const CONNECTIONS: u64 = 4;
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&StorageRegistry::new(dir.path()), dir.path()).unwrap();
        let bytes: Vec<u8> = (0..10 * BLOCK_BYTES + 4321).map(|at| ((at * 131) >> 9) as u8).collect();
        let mut hasher = Hasher::sha256();
        hasher.update(&bytes);
        let digest = hasher.finish();
        let commit = "0123456789abcdef0123456789abcdef01234567".parse().unwrap();
        let repo = PinnedRepo::new("org/model".parse().unwrap(), commit);
        let wanted = Wanted { repo, path: "model.gguf".parse().unwrap(), size_bytes: bytes.len() as u64, digest };
        for buffers in [1, 3, 8] {
            let Acquired::Fill(fill) = store.acquire(&wanted).unwrap() else { panic!("it is here already") };
            let buffers = Buffers::new(buffers);
            let reporter = Reporter::new("org/model".to_owned(), String::new(), None, None);
            let (pieces, found) = FileWriter::start(&fill, Hasher::sha256()).unwrap().split();
            let connection = |first: u64| {
                let (pieces, buffers, bytes, reporter) = (&pieces, &buffers, &bytes, &reporter);
                async move {
                    let size_bytes = bytes.len() as u64;
                    let mut landed_blocks = Vec::new();
                    let mut landed = |block| landed_blocks.push(block);
                    for block in (first..blocks(size_bytes)).step_by(CONNECTIONS as usize) {
                        let range = block_range(size_bytes, block);
                        let mut writer = BlockWriter::new(pieces, buffers, size_bytes, reporter, "model.gguf", range.start);
                        for part in bytes[range.start as usize..range.end as usize].chunks(100_003 + block as usize) {
                            writer.push(part, &mut landed).await?;
                            tokio::task::yield_now().await;
                        }
                        writer.leave(&mut landed).await?;
                    }
                    Ok::<_, Error>(landed_blocks)
                }
            };
            let landed = try_join_all((0..CONNECTIONS).map(connection)).await.unwrap();
            let mut landed = landed.concat();
            landed.sort_unstable();
            assert!(landed.into_iter().eq(0..blocks(bytes.len() as u64)));
            drop(pieces);
            assert_eq!(found.await.unwrap(), digest);
            fill.discard().unwrap();
        }
    }
}
