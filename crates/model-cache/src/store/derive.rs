//! Values made of a blob for loaders that need its bytes laid out otherwise: kept beside it, and gone with it.
//!
//! A derived value is a blob of one extent, keyed `derived:<digest>:<recipe>`, so whatever holds of a blob's reservation, lease,
//! seal and freeing holds of it. No name leads to it: it is doomed by the transaction that dooms the blob it was made of. It can be made again at
//! any time, so what stands in the way of making or opening one is never an error that ends a caller's work.

use super::{Store, View, fill::Begun, free::Fate};
use crate::{
    error::{Error, Result},
    key,
    record::*,
};
use std::sync::Arc;

impl Store {
    /// Opens what `recipe` makes of `source`, making it first where it is not here yet.
    ///
    /// `fill` writes the value: it is given an offset and a zeroed buffer of at most [`BLOCK_BYTES`], block after block; its error
    /// ends the making, and nothing is kept. `None` if somebody else is making it, the disk has no room, or the last name of `source`
    /// was just removed.
    ///
    /// Cost where it is here: one read, one lock, one mapping. Else it is written once and synced.
    pub(crate) fn derive(
        self: &Arc<Self>,
        source: &View,
        recipe: &str,
        size_bytes: u64,
        fill: impl FnMut(u64, &mut [u8]) -> Result<()>,
    ) -> Result<Option<View>> {
        debug_assert!(size_bytes > INLINE_BYTES, "an inline blob has no extent");
        let blob_key = key::derived(source.blob_key(), recipe);
        if let Some(blob) = self.blob(&blob_key)? {
            // One that somebody makes, or reads while it goes, is left alone; any other that can't be used is made anew.
            let is_gone = match blob.state {
                BlobState::Sealed => match View::open_blob(self, &blob_key, blob.id) {
                    Err(error @ Error::Damaged { .. }) => {
                        tracing::warn!(%error, "a derived value is damaged; it is made anew");
                        self.drop_derived(&blob_key, blob.id)? != Fate::Busy
                    }
                    opened => return opened,
                },
                BlobState::Doomed => self.free_blob(&blob_key, blob.id)? != Fate::Busy,
                BlobState::Filling | BlobState::Freeing => self.free_unfinished(&blob_key)?,
            };
            if !is_gone {
                return Ok(None);
            }
        }
        match self.make(source, &blob_key, size_bytes, fill) {
            Ok(Some(id)) => View::open_blob(self, &blob_key, id),
            Ok(None) => Ok(None),
            Err(error) if error.kind() == crate::ErrorKind::NoSpace => {
                tracing::info!(%error, "no room for a value derived of content that is here");
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Makes the derived value at `blob_key`; its blob's id.
    fn make(
        self: &Arc<Self>,
        source: &View,
        blob_key: &str,
        size_bytes: u64,
        mut fill: impl FnMut(u64, &mut [u8]) -> Result<()>,
    ) -> Result<Option<u64>> {
        let begun = self.begin_blob(|_| blob_key.to_owned(), key::derived_home(blob_key), size_bytes)?;
        let Some((blob_key, blob, lease)) = begun else { return Ok(None) };
        let (id, layout) = (blob.id, blob.layout());
        let value = self.prepare_fill(blob_key, blob, lease, Begun::Now)?;
        let written = (|| {
            let mut buffer = vec![0; BLOCK_BYTES.min(size_bytes) as usize];
            for block in 0..layout.blocks() {
                let range = layout.block_range(block);
                let bytes = &mut buffer[..(range.end - range.start) as usize];
                bytes.fill(0);
                fill(range.start, bytes)?;
                value.write(range.start, bytes)?;
                value.land(block, crc32c::crc32c(bytes))?;
                storage::fail_point("derive.block_landed");
            }
            value.seal_derived(source.blob_key(), source.blob_id())
        })();
        match written {
            Ok(sealed) => Ok(sealed.then_some(id)),
            Err(error) => {
                if let Err(error) = value.discard() {
                    tracing::warn!(%error, "a derived value that was not finished was not freed yet");
                }
                Err(error)
            }
        }
    }

    /// Checks every value derived of the content with `digest` against its CRC32Cs, and drops those that differ: they are made anew
    /// when somebody wants them. What was wrong with each dropped one. Ends early with the first error of `go_on`, asked at each block.
    pub(crate) fn verify_derived(self: &Arc<Self>, digest: &str, go_on: &dyn Fn() -> Result<()>) -> Result<Vec<String>> {
        let mut findings = Vec::new();
        for (blob_key, blob) in self.blobs_below(&key::derived_prefix(&format!("blob:{digest}")))? {
            if blob.state != BlobState::Sealed {
                continue;
            }
            let mut finding = None;
            match View::open_blob(self, &blob_key, blob.id) {
                Ok(None) => continue,
                Ok(Some(view)) => view.read_blocks(|block, bytes, crc| {
                    let found = bytes.map(crc32c::crc32c);
                    go_on()?;
                    match found {
                        Ok(found) if found == crc => {}
                        Ok(found) => finding = Some(format!("block {block} has CRC32C {found:08x}, {crc:08x} was sealed")),
                        Err(error) => finding = Some(error.chain()),
                    }
                    Ok(())
                })?,
                Err(error @ Error::Damaged { .. }) => finding = Some(error.chain()),
                Err(error) => return Err(error),
            }
            if let Some(finding) = finding {
                self.drop_derived(&blob_key, blob.id)?;
                findings
                    .push(format!("a value derived of it is damaged ({finding}); it was dropped, and is made anew when needed"));
            }
        }
        Ok(findings)
    }
}
