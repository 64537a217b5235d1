//! From network pieces to landed blocks: [`BlockWriter`] gathers bytes, and blocking threads write, checksum and journal them.

use super::blocking;
use crate::{error::Result, progress::Reporter, record::*, store::Fill};
use std::sync::Arc;
use tokio::task::JoinHandle;

/// Bytes gathered before they are written; two of these a connection are all the memory a download takes.
pub(crate) const BUFFER_BYTES: usize = 512 << 10;

/// Writes one connection's bytes, in order, into a fill.
///
/// One buffer is written by a blocking thread while the next is gathered. Each write holds the fill, hence its lease, so a
/// future dropped half way leaves no write into space that is no longer ours.
pub(crate) struct BlockWriter<'a> {
    fill: Arc<Fill>,
    reporter: &'a Reporter,
    path: &'a str,
    /// Where the next byte goes.
    at: u64,
    buffer: Vec<u8>,
    spare: Option<Vec<u8>>,
    /// CRC32C of what was written of the current block.
    crc: u32,
    /// Bytes told to the reporter whose block has not landed.
    unlanded_bytes: u64,
    flying: Option<JoinHandle<Result<Written>>>,
}

struct Written {
    buffer: Vec<u8>,
    crc: u32,
    /// The block that landed with this write.
    landed: Option<u64>,
}

impl<'a> BlockWriter<'a> {
    /// A writer whose first byte goes to `at`, the start of a block.
    pub(crate) fn new(fill: Arc<Fill>, reporter: &'a Reporter, path: &'a str, at: u64) -> Self {
        debug_assert_eq!(at % BLOCK_BYTES, 0);
        let buffer = Vec::with_capacity(BUFFER_BYTES);
        Self { fill, reporter, path, at, buffer, spare: None, crc: 0, unlanded_bytes: 0, flying: None }
    }

    /// Where the next byte goes.
    pub(crate) fn at(&self) -> u64 {
        self.at
    }

    /// Goes on at `at`, the start of a block, having written whole blocks so far.
    pub(crate) fn skip_to(&mut self, at: u64) {
        debug_assert!(self.buffer.is_empty() && at.is_multiple_of(BLOCK_BYTES));
        self.at = at;
    }

    /// Takes the next bytes, which lie in one block. Calls `landed` for each block that has landed since the last call.
    pub(crate) async fn push(&mut self, mut bytes: &[u8], landed: &mut impl FnMut(u64)) -> Result<()> {
        self.reporter.arrived(self.path, bytes.len() as u64);
        self.unlanded_bytes += bytes.len() as u64;
        let block_end = block_range(self.fill.size_bytes(), self.at / BLOCK_BYTES).end;
        while !bytes.is_empty() {
            let room = BUFFER_BYTES - self.buffer.len();
            let (part, rest) = bytes.split_at(bytes.len().min(room));
            self.buffer.extend_from_slice(part);
            self.at += part.len() as u64;
            bytes = rest;
            if self.buffer.len() == BUFFER_BYTES || self.at == block_end {
                self.flush(self.at == block_end, landed).await?;
            }
        }
        Ok(())
    }

    /// Waits for the last write.
    pub(crate) async fn finish(&mut self, landed: &mut impl FnMut(u64)) -> Result<()> {
        self.settle(landed).await
    }

    async fn flush(&mut self, ends_block: bool, landed: &mut impl FnMut(u64)) -> Result<()> {
        self.settle(landed).await?;
        let next = self.spare.take().unwrap_or_else(|| Vec::with_capacity(BUFFER_BYTES));
        let mut buffer = std::mem::replace(&mut self.buffer, next);
        let fill = Arc::clone(&self.fill);
        let (offset, crc) = (self.at - buffer.len() as u64, self.crc);
        let block = ends_block.then_some(offset / BLOCK_BYTES);
        self.crc = 0;
        self.flying = Some(tokio::task::spawn_blocking(move || {
            fill.write(offset, &buffer)?;
            let crc = crc32c::crc32c_append(crc, &buffer);
            if let Some(block) = block {
                fill.land(block, crc)?;
            }
            buffer.clear();
            Ok(Written { buffer, crc: if block.is_some() { 0 } else { crc }, landed: block })
        }));
        Ok(())
    }

    async fn settle(&mut self, landed: &mut impl FnMut(u64)) -> Result<()> {
        let Some(flying) = &mut self.flying else { return Ok(()) };
        // Kept in `self` while awaited: dropped here, it would be forgotten that a write is under way.
        let result = flying.await;
        self.flying = None;
        let written = blocking::unwrap(result)?;
        self.spare = Some(written.buffer);
        self.crc = written.crc;
        if let Some(block) = written.landed {
            let range = block_range(self.fill.size_bytes(), block);
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
