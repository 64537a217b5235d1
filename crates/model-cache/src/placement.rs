//! Where a file's bytes lie in the store's data file: [`Placement`], for loaders that map files by path and offset themselves.

use crate::{record::CHUNK_BYTES, store::View};
use std::{
    ops::Range,
    path::{Path, PathBuf},
};

/// Where a file's chunks lie in the data file of its store.
///
/// Got from [`ModelFile::placement`](crate::ModelFile::placement), and true while that file, or a clone of it, is held: its
/// lease keeps the bytes where they are. Afterwards the same offsets may show another file's bytes, silently.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    data_file: PathBuf,
    /// Offset in the data file of each chunk, in order.
    chunk_offsets: Vec<u64>,
    size_bytes: u64,
}

impl Placement {
    pub(crate) fn of(view: &View) -> Self {
        Self {
            data_file: view.store().extents().data_file_path(),
            chunk_offsets: view.extents().iter().map(storage::Extent::data_offset).collect(),
            size_bytes: view.size_bytes(),
        }
    }

    /// The data file: an absolute path. It is the store's own and never to be written into.
    pub fn data_file(&self) -> &Path {
        &self.data_file
    }

    /// The offset in the data file of `range` of the file, if it lies there in one piece: if no chunk ends within it.
    ///
    /// `None` also for a range that does not lie in the file, and for an empty one.
    pub fn offset_of(&self, range: Range<u64>) -> Option<u64> {
        if range.start >= range.end || range.end > self.size_bytes {
            return None;
        }
        let (first, last) = (range.start / CHUNK_BYTES, (range.end - 1) / CHUNK_BYTES);
        let chunk = self.chunk_offsets.get(first as usize)?;
        (first == last).then(|| chunk + range.start % CHUNK_BYTES)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn placed() -> Placement {
        let chunk_offsets = vec![7 * CHUNK_BYTES, 3 * CHUNK_BYTES, 9 * CHUNK_BYTES];
        Placement { data_file: PathBuf::from("/store/mdbx.dat"), chunk_offsets, size_bytes: 2 * CHUNK_BYTES + 5 }
    }

    #[test]
    fn what_does_not_lie_in_one_chunk_of_the_file_has_no_offset() {
        let placed = placed();
        assert_eq!(placed.offset_of(CHUNK_BYTES - 1..CHUNK_BYTES), Some(8 * CHUNK_BYTES - 1));
        assert_eq!(placed.offset_of(CHUNK_BYTES..CHUNK_BYTES + 1), Some(3 * CHUNK_BYTES));
        for range in [CHUNK_BYTES - 1..CHUNK_BYTES + 1, 5..5, 2 * CHUNK_BYTES..2 * CHUNK_BYTES + 6, u64::MAX - 1..u64::MAX] {
            assert_eq!(placed.offset_of(range.clone()), None, "{range:?}");
        }
    }

    proptest! {
        #[test]
        fn every_byte_of_a_range_lies_as_far_from_its_start_as_in_the_file(start in 0..2 * CHUNK_BYTES + 5, bytes in 1..64u64) {
            let placed = placed();
            let end = (start + bytes).min(2 * CHUNK_BYTES + 5);
            let each: Vec<_> = (start..end).map(|at| placed.offset_of(at..at + 1).unwrap()).collect();
            let run = each.windows(2).all(|pair| pair[0] + 1 == pair[1]);
            prop_assert_eq!(placed.offset_of(start..end), run.then_some(each[0]));
        }
    }
}
