//! What follows a fill block by block, so that little is left to do after its last byte: [`Followers`].

use super::fill::{Fill, READ_BYTES};
use crate::{
    digest::{Digest, Hasher},
    error::{Error, Result},
    record::*,
};
use std::{
    path::Path,
    sync::{
        Arc,
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread::{self, JoinHandle},
};

/// Blocks that may wait for each follower. Whoever fills faster than the digest is computed, or than the disk takes it, waits for
/// them at once instead of at the end.
const BLOCKS_BEHIND: usize = 8;

/// Two threads that follow a fill: one hashes its bytes, read back from the file, from the front as far as all has landed; the
/// other starts writing landed blocks out to the disk, which blocks while that is busy.
///
/// Dropped early, both end by themselves, within what one of them does at a time. Each holds the fill, hence its lease.
pub(crate) struct Followers {
    hash: SyncSender<()>,
    writeback: SyncSender<u64>,
    hasher: JoinHandle<Result<Digest>>,
    writer_back: JoinHandle<()>,
}

impl Followers {
    /// Follows `fill` from its start; what has landed by now is hashed at once.
    ///
    /// # Errors
    /// [`Error::Io`] if the system gives no threads.
    pub(crate) fn start(fill: &Arc<Fill>, hasher: Hasher) -> Result<Self> {
        let (hash, landed) = sync_channel(BLOCKS_BEHIND);
        let followed = Arc::clone(fill);
        let hasher = spawn("model-cache-hash", fill.folder(), move || hash_landed(&followed, hasher, &landed))?;
        let (writeback, landed) = sync_channel(BLOCKS_BEHIND);
        let followed = Arc::clone(fill);
        let writer_back = spawn("model-cache-out", fill.folder(), move || write_back_landed(&followed, &landed))?;
        Ok(Self { hash, writeback, hasher, writer_back })
    }

    /// Tells that `block` has landed. Waits while a follower is too far behind; false if hashing has ended, which
    /// [`finish`](Self::finish) then says why.
    pub(crate) fn landed(&self, block: u64) -> bool {
        // One that has ended met an error that the fill's description keeps: its sync will tell.
        let _ = self.writeback.send(block);
        self.hash.send(()).is_ok()
    }

    /// The digest of the bytes read back, once all blocks have landed and are on their way to the disk.
    ///
    /// # Errors
    /// Those of reading back. [`Error::Cancelled`] if the fill was, or blocks are missing.
    pub(crate) fn finish(self) -> Result<Digest> {
        drop((self.hash, self.writeback));
        let digest = join(self.hasher);
        join(self.writer_back);
        digest
    }
}

fn hash_landed(fill: &Fill, mut hasher: Hasher, landed: &Receiver<()>) -> Result<Digest> {
    let mut buffer = vec![0; READ_BYTES];
    let mut next = 0;
    loop {
        while next < blocks(fill.size_bytes()) && fill.has_landed(next) {
            fill.hash(&mut hasher, block_range(fill.size_bytes(), next), &mut buffer)?;
            next += 1;
        }
        if next == blocks(fill.size_bytes()) {
            return Ok(hasher.finish());
        }
        landed.recv().map_err(|_| Error::Cancelled)?;
    }
}

fn write_back_landed(fill: &Fill, landed: &Receiver<u64>) {
    for block in landed {
        if fill.is_cancelled() {
            return;
        }
        if let Err(error) = fill.start_writeback(block) {
            tracing::warn!(%error, "a block was not written out; nothing of this fill will be sealed");
            return;
        }
    }
}

/// A thread of its own, not of a pool: a pool with fewer threads than there is work that waits for each other would stand still.
pub(crate) fn spawn<T: Send + 'static>(
    name: &str,
    folder: &Path,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<JoinHandle<T>> {
    let spawned = thread::Builder::new().name(name.to_owned()).spawn(work);
    spawned.map_err(|source| Error::Io { action: "start a thread to fill", path: folder.to_owned(), source })
}

/// What a thread gave; a panic in it goes on here.
fn join<T>(thread: JoinHandle<T>) -> T {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}
