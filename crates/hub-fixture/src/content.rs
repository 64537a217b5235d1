//! Where the bytes of a file come from, and how they are read and hashed. Knows nothing of repos or HTTP.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, Mutex};

use bytes::Bytes;
use sha1::Sha1;
use sha2::{Digest, Sha256};

/// Bytes taken per read while hashing.
const HASH_STEP: u64 = 1 << 20;

/// The bytes of one file: in memory, computed, or on disk.
#[derive(Clone, Debug)]
pub enum Content {
    /// Bytes held in memory; served without copying.
    Bytes(Bytes),
    /// Pseudo-random bytes computed from their offset: a file of any size costs no memory.
    Seeded {
        /// Chooses the stream; two seeds share no run of bytes worth speaking of.
        seed: u64,
        /// Length in bytes.
        size: u64,
    },
    /// A file on disk. It is hashed once, when registered, and must not change afterwards.
    Path(PathBuf),
}

impl Content {
    /// `size` pseudo-random bytes, the same for the same `seed` in every build.
    pub fn seeded(seed: u64, size: u64) -> Content {
        Content::Seeded { seed, size }
    }

    /// Length in bytes.
    ///
    /// # Errors
    /// A [`Content::Path`] whose file cannot be looked at.
    pub fn size_bytes(&self) -> io::Result<u64> {
        match self {
            Content::Bytes(bytes) => Ok(bytes.len() as u64),
            Content::Seeded { size, .. } => Ok(*size),
            Content::Path(path) => Ok(path.metadata()?.len()),
        }
    }

    /// The bytes of `range` (half-open, from the start of the file): what a right download holds there.
    ///
    /// # Errors
    /// A range past the end of a file on disk, or a failing read.
    ///
    /// # Panics
    /// If the range runs past the end of content in memory.
    pub fn read(&self, range: Range<u64>) -> io::Result<Bytes> {
        self.open()?.read(range)
    }

    /// SHA-256 of the whole, as 64 hex digits.
    ///
    /// # Errors
    /// A file on disk that cannot be read.
    pub fn sha256(&self) -> io::Result<String> {
        // Tests register the same seeded files again and again; hashing gigabytes each time would be most of their run.
        static SEEN: LazyLock<Mutex<HashMap<(u64, u64), String>>> = LazyLock::new(Mutex::default);
        let key = match self {
            Content::Seeded { seed, size } => Some((*seed, *size)),
            _ => None,
        };
        if let Some(known) = key.and_then(|key| SEEN.lock().unwrap_or_else(|e| e.into_inner()).get(&key).cloned()) {
            return Ok(known);
        }
        let mut hasher = Sha256::new();
        self.for_each_piece(|piece| hasher.update(piece))?;
        let digest = hex(&hasher.finalize());
        if let Some(key) = key {
            SEEN.lock().unwrap_or_else(|e| e.into_inner()).insert(key, digest.clone());
        }
        Ok(digest)
    }

    /// The id git gives these bytes: `sha1("blob {len}\0" + data)`, 40 hex digits.
    ///
    /// # Errors
    /// A file on disk that cannot be read.
    pub fn git_blob_id(&self) -> io::Result<String> {
        let mut hasher = Sha1::new();
        hasher.update(format!("blob {}\0", self.size_bytes()?));
        self.for_each_piece(|piece| hasher.update(piece))?;
        Ok(hex(&hasher.finalize()))
    }

    fn for_each_piece(&self, mut see: impl FnMut(&[u8])) -> io::Result<()> {
        let source = self.open()?;
        let size = self.size_bytes()?;
        let mut at = 0;
        while at < size {
            let end = size.min(at + HASH_STEP);
            see(&source.read(at..end)?);
            at = end;
        }
        Ok(())
    }

    pub(crate) fn open(&self) -> io::Result<Source> {
        Ok(match self {
            Content::Bytes(bytes) => Source::Bytes(bytes.clone()),
            Content::Seeded { seed, .. } => Source::Seeded(*seed),
            Content::Path(path) => Source::File(Arc::new(File::open(path)?)),
        })
    }
}

impl From<Bytes> for Content {
    fn from(bytes: Bytes) -> Self {
        Content::Bytes(bytes)
    }
}

impl From<Vec<u8>> for Content {
    fn from(bytes: Vec<u8>) -> Self {
        Content::Bytes(bytes.into())
    }
}

impl From<&[u8]> for Content {
    fn from(bytes: &[u8]) -> Self {
        Content::Bytes(Bytes::copy_from_slice(bytes))
    }
}

impl<const N: usize> From<&[u8; N]> for Content {
    fn from(bytes: &[u8; N]) -> Self {
        Content::Bytes(Bytes::copy_from_slice(bytes))
    }
}

impl From<String> for Content {
    fn from(text: String) -> Self {
        Content::Bytes(text.into())
    }
}

impl From<&str> for Content {
    fn from(text: &str) -> Self {
        Content::Bytes(Bytes::copy_from_slice(text.as_bytes()))
    }
}

impl From<PathBuf> for Content {
    fn from(path: PathBuf) -> Self {
        Content::Path(path)
    }
}

impl From<&Path> for Content {
    fn from(path: &Path) -> Self {
        Content::Path(path.to_owned())
    }
}

/// Content made ready for reading: a file is open, so that renaming or removing it does not end a running answer.
#[derive(Clone, Debug)]
pub(crate) enum Source {
    Bytes(Bytes),
    Seeded(u64),
    File(Arc<File>),
}

impl Source {
    pub(crate) fn read(&self, range: Range<u64>) -> io::Result<Bytes> {
        let len = (range.end - range.start) as usize;
        match self {
            Source::Bytes(bytes) => Ok(bytes.slice(range.start as usize..range.end as usize)),
            Source::Seeded(seed) => {
                let mut buffer = vec![0; len];
                fill_seeded(*seed, range.start, &mut buffer);
                Ok(buffer.into())
            }
            Source::File(file) => {
                let mut buffer = vec![0; len];
                file.read_exact_at(&mut buffer, range.start)?;
                Ok(buffer.into())
            }
        }
    }
}

/// SplitMix64's step (Steele, Lea, Flood 2014, <https://doi.org/10.1145/2714064.2660195>).
pub(crate) fn splitmix64(state: u64) -> u64 {
    let mut z = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Word `index` of a stream. The seed is mixed first: without that, seed 2 would be seed 1 moved by eight bytes.
#[inline]
fn word(mixed_seed: u64, index: u64) -> [u8; 8] {
    splitmix64(mixed_seed.wrapping_add(index)).to_le_bytes()
}

fn fill_seeded(seed: u64, offset: u64, buffer: &mut [u8]) {
    let seed = splitmix64(seed);
    let mut index = offset / 8;
    let skip = (offset % 8) as usize;
    let head = if skip == 0 { 0 } else { (8 - skip).min(buffer.len()) };
    let (first, rest) = buffer.split_at_mut(head);
    if head > 0 {
        first.copy_from_slice(&word(seed, index)[skip..skip + head]);
        index += 1;
    }
    let mut words = rest.chunks_exact_mut(8);
    for slot in &mut words {
        slot.copy_from_slice(&word(seed, index));
        index += 1;
    }
    let tail = words.into_remainder();
    let len = tail.len();
    tail.copy_from_slice(&word(seed, index)[..len]);
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    bytes.iter().flat_map(|b| [DIGITS[(b >> 4) as usize] as char, DIGITS[(b & 15) as usize] as char]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeded_bytes_do_not_depend_on_how_they_are_cut() {
        let content = Content::seeded(7, 4099);
        let whole = content.read(0..4099).unwrap();
        for start in [0, 1, 7, 8, 9, 100, 4090, 4098] {
            for len in [0, 1, 2, 7, 8, 9, 17] {
                let end = (start + len).min(4099);
                assert_eq!(content.read(start..end).unwrap(), whole[start as usize..end as usize], "{start}..{end}");
            }
        }
    }

    #[test]
    fn neighbouring_seeds_are_not_shifted_copies() {
        let one = Content::seeded(1, 64).read(0..64).unwrap();
        let two = Content::seeded(2, 64).read(0..64).unwrap();
        assert_ne!(one[8..16], two[0..8]);
        assert_ne!(one, two);
    }

    #[test]
    fn digests_are_those_of_sha256sum_and_git_hash_object() {
        let content = Content::from("hello\n");
        assert_eq!(content.git_blob_id().unwrap(), "ce013625030ba8dba906f756967f9e9ca394464a");
        assert_eq!(content.sha256().unwrap(), "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03");
        assert_eq!(Content::from("").git_blob_id().unwrap(), "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391");
    }
}
