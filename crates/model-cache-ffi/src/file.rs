//! An open file, as C sees it: its bytes, what it is called, and its digest as a C string.

use crate::error::Result;
use std::{
    ffi::{CStr, CString},
    ops::Range,
};
use tabagent_model_cache::{CHUNK_BYTES, Error, FilePath, ModelCache, ModelFile, PrefetchOptions, RepoSpec, format::gguf::Split};

/// `mc_file`. Clones share the mapping and its lease.
#[derive(Clone, Debug)]
pub struct File {
    bytes: ModelFile,
    repo: RepoSpec,
    path: FilePath,
    digest: CString,
}

impl File {
    /// Opens `path` of `repo`.
    ///
    /// # Errors
    /// As [`ModelCache::open_file`].
    pub fn open(cache: &ModelCache, repo: &str, path: &str) -> Result<Self> {
        let bytes = cache.open_file(repo, path)?;
        let digest = CString::new(bytes.digest()).expect("a digest is an algorithm's name, a colon and hex digits");
        Ok(Self { bytes, repo: repo.parse()?, path: path.parse()?, digest })
    }

    /// All its bytes.
    pub fn as_slice(&self) -> &[u8] {
        &self.bytes
    }

    /// How many bytes it has.
    pub fn size_bytes(&self) -> u64 {
        self.bytes.size_bytes()
    }

    /// Reads it into memory.
    ///
    /// # Errors
    /// As [`ModelFile::prefetch`].
    pub fn prefetch(&self) -> Result<()> {
        self.bytes.prefetch(&PrefetchOptions::default())?;
        Ok(())
    }

    /// Its digest, `sha256:<hex>` or `git-sha1:<hex>`.
    pub fn digest(&self) -> &CStr {
        &self.digest
    }

    /// That it is a GGUF and no part of a split one.
    ///
    /// # Errors
    /// [`Error::SplitGguf`], [`Error::BadFormat`].
    pub fn check_gguf(&self) -> Result<()> {
        match Split::of(&self.bytes)? {
            None => Ok(()),
            Some(Split { index, count }) => {
                Err(Error::SplitGguf { repo: self.repo.clone(), path: self.path.clone(), index, count }.into())
            }
        }
    }

    /// The `count` bytes from `offset` on, in order, in the pieces they are stored in. Copies nothing on any system.
    ///
    /// # Errors
    /// [`Error::InvalidRange`] unless all of them lie in the file.
    pub fn pieces(&self, offset: u64, count: u64) -> Result<impl Iterator<Item = &[u8]>> {
        let size_bytes = self.size_bytes();
        let end = offset.saturating_add(count);
        if offset > size_bytes || count > size_bytes - offset {
            let path = format!("{} of {}", self.path, self.repo);
            return Err(Error::InvalidRange { path, start: offset, end, size_bytes }.into());
        }
        let chunks = self.bytes.slices().enumerate().map(|(index, chunk)| (index as u64 * CHUNK_BYTES, chunk));
        Ok(chunks.filter_map(move |(start, chunk)| overlap(offset..end, start, chunk)))
    }
}

/// The part of `chunk` that lies in `range`, `start` being where in the file it begins; `None` if nothing of it does.
fn overlap(range: Range<u64>, start: u64, chunk: &[u8]) -> Option<&[u8]> {
    let from = range.start.max(start);
    let to = range.end.min(start + chunk.len() as u64);
    (from < to).then(|| &chunk[(from - start) as usize..(to - start) as usize])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_overlaps_a_range_is_what_lies_in_both() {
        let chunk = [10, 11, 12, 13];
        let of = |range| overlap(range, 10, &chunk);
        assert_eq!(of(0..100), Some(&chunk[..]));
        assert_eq!(of(11..13), Some(&[11, 12][..]));
        assert_eq!(of(0..11), Some(&[10][..]));
        assert_eq!(of(13..u64::MAX), Some(&[13][..]));
        for range in [0..10, 14..20, 12..12, 0..0] {
            assert_eq!(of(range.clone()), None, "{range:?}");
        }
    }
}
