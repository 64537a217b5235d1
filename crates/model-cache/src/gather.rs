//! Ranges of a file that chunks end within, kept once more in one piece each: [`Gathered`].

use crate::{
    cache::ModelCache,
    error::{Error, Result},
    file::ModelFile,
    record::BLOCK_BYTES,
    store::{Content, View},
};
use sha2::{Digest, Sha256};
use std::{
    collections::{HashMap, HashSet},
    ops::Range,
    path::PathBuf,
    sync::Arc,
};

/// Most bytes of one derived value: libmdbx's limit is 2 GiB less a few pages, and up to 2 MiB go to bring it to a boundary.
const MOST_BYTES: u64 = (2 << 30) - (4 << 20);
/// No value is smaller: what is not larger than 64 KiB would be kept inline, without an extent.
const LEAST_BYTES: u64 = 128 << 10;
/// Where a range begins in its value: right for elements of any type.
const ALIGN_BYTES: u64 = 64;

/// Ranges of a file, each in one piece in the store's data file.
///
/// Holds a lease of its own, as a [`ModelFile`] does: the offsets are true until the last clone is dropped.
#[derive(Clone, Debug)]
pub struct Gathered {
    values: Vec<Arc<View>>,
    offsets: Vec<Option<u64>>,
}

impl Gathered {
    /// For each range asked for, in order, its offset in the data file ([`Placement::data_file`](crate::Placement::data_file)); `None`
    /// for one too large for a derived value, of about 2 GiB.
    pub fn offsets(&self) -> &[Option<u64>] {
        &self.offsets
    }

    /// Bytes kept for them on disk.
    pub fn size_bytes(&self) -> u64 {
        self.values.iter().map(|value| value.size_bytes()).sum()
    }

    /// The data file they lie in; `None` if none does.
    pub fn data_file(&self) -> Option<PathBuf> {
        self.values.first().map(|value| value.store().extents().data_file_path())
    }
}

impl ModelCache {
    /// Keeps each of `ranges` of `file` in one piece, for loaders that map a tensor by one offset though a chunk ends within it.
    ///
    /// The ranges are copied on the first call, into a derived value that is found again by file content and ranges and goes
    /// when the file's content goes. One that is asked for twice is kept once. `None` where that can't be now, and the caller has to copy
    /// instead: another process is making it, the disk is full, the file was removed, it is one of up to 64 KiB, or the ranges overlap
    /// so much that they would take more than the file itself.
    ///
    /// Cost where it is here: well under a millisecond. Else each block a range touches is read and held against its CRC32C, and the
    /// ranges are written once and synced; 6 MiB of memory.
    ///
    /// # Errors
    /// [`Error::InvalidRange`] for a range that is empty or does not lie in the file; [`Error::Damaged`] for a block that is not what
    /// was sealed, with nothing kept: a copy with a sound CRC32C of its own would hide that; those of the store.
    pub fn gather(&self, file: &ModelFile, ranges: &[Range<u64>]) -> Result<Option<Gathered>> {
        let size_bytes = file.len() as u64;
        for range in ranges {
            if range.start >= range.end || range.end > size_bytes {
                let path = file.path().to_string();
                return Err(Error::InvalidRange { path, start: range.start, end: range.end, size_bytes });
            }
        }
        let Content::View(source) = &file.stored().content else { return Ok(None) };
        let mut places = HashMap::new();
        let mut distinct: Vec<Range<u64>> = Vec::new();
        let place_of = |range: &Range<u64>| {
            *places.entry((range.start, range.end)).or_insert_with(|| {
                distinct.push(range.clone());
                distinct.len() - 1
            })
        };
        let places: Vec<usize> = ranges.iter().map(place_of).collect();
        // Else a small file could name its bytes so often that its copies fill the disk.
        if distinct.iter().map(|range| u128::from(range.end - range.start)).sum::<u128>() > u128::from(size_bytes) {
            return Ok(None);
        }
        let name = format!("{} {}", file.repo(), file.path());
        let mut offsets = vec![None; distinct.len()];
        let mut gathered = Gathered { values: Vec::new(), offsets: Vec::new() };
        let mut checked = HashSet::new();
        for value in plan(&distinct) {
            let recipe = value.recipe(&distinct);
            let copy = |offset: u64, bytes: &mut [u8]| value.copy(&distinct, source, &name, &mut checked, offset, bytes);
            let Some(view) = source.store().derive(source, &recipe, value.size_bytes, copy)? else { return Ok(None) };
            let start = view.extents()[0].data_offset();
            for &(index, at) in &value.parts {
                offsets[index] = Some(start + at);
            }
            gathered.values.push(Arc::new(view));
        }
        gathered.offsets = places.into_iter().map(|place| offsets[place]).collect();
        Ok(Some(gathered))
    }
}

/// One derived value: which ranges lie in it, and where each begins.
#[derive(Debug, PartialEq, Eq)]
struct Value {
    parts: Vec<(usize, u64)>,
    size_bytes: u64,
}

/// Puts the ranges into values in order, none across two; those too large for any are left out.
fn plan(ranges: &[Range<u64>]) -> Vec<Value> {
    let mut values: Vec<Value> = Vec::new();
    for (index, range) in ranges.iter().enumerate() {
        let bytes = range.end - range.start;
        if bytes > MOST_BYTES {
            continue;
        }
        let at = values.last().map(|value| value.size_bytes.next_multiple_of(ALIGN_BYTES));
        match values.last_mut().zip(at) {
            Some((value, at)) if at + bytes <= MOST_BYTES => {
                value.parts.push((index, at));
                value.size_bytes = at + bytes;
            }
            _ => values.push(Value { parts: vec![(index, 0)], size_bytes: bytes }),
        }
    }
    for value in &mut values {
        value.size_bytes = value.size_bytes.max(LEAST_BYTES);
    }
    values
}

impl Value {
    /// What tells this value from others made of the same file: the ranges, and how they are laid out.
    fn recipe(&self, ranges: &[Range<u64>]) -> String {
        let mut hasher = Sha256::new();
        hasher.update(b"gather 1");
        for &(index, at) in &self.parts {
            for number in [ranges[index].start, ranges[index].end, at] {
                hasher.update(number.to_le_bytes());
            }
        }
        hasher.finalize()[..16].iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Writes what of the value lies at `offset..offset + bytes.len()` into `bytes`, which is all zeros. Blocks of the source that
    /// are not among the `checked` are held against their CRC32Cs first.
    fn copy(
        &self,
        ranges: &[Range<u64>],
        source: &View,
        name: &str,
        checked: &mut HashSet<u64>,
        offset: u64,
        bytes: &mut [u8],
    ) -> Result<()> {
        debug_assert!(bytes.len() as u64 <= BLOCK_BYTES);
        let end = offset + bytes.len() as u64;
        for &(index, at) in &self.parts {
            let range = &ranges[index];
            let (from, to) = (at.max(offset), (at + (range.end - range.start)).min(end));
            if from < to {
                let start = range.start + (from - at);
                source.check_blocks(name, start..start + (to - from), checked)?;
                source.copy_out(start, &mut bytes[(from - offset) as usize..(to - offset) as usize]);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_range_that_fits_lies_in_one_value_apart_from_all_others(lengths in prop::collection::vec(1..MOST_BYTES + 9, 0..20)) {
            let mut start = 0;
            let ranges: Vec<_> = lengths.iter().map(|bytes| { let range = start..start + bytes; start += bytes; range }).collect();
            let mut seen = 0;
            for value in plan(&ranges) {
                prop_assert!((LEAST_BYTES..=MOST_BYTES).contains(&value.size_bytes));
                let mut end = 0;
                for &(index, at) in &value.parts {
                    prop_assert!(at >= end && at % ALIGN_BYTES == 0);
                    end = at + (ranges[index].end - ranges[index].start);
                    seen += 1;
                }
                prop_assert!(end <= value.size_bytes);
            }
            prop_assert_eq!(seen, lengths.iter().filter(|bytes| **bytes <= MOST_BYTES).count());
        }
    }

    #[test]
    fn other_ranges_are_another_recipe() {
        let recipe = |ranges: &[Range<u64>]| plan(ranges)[0].recipe(ranges);
        assert_eq!(recipe(&[0..100, 200..300]), recipe(&[0..100, 200..300]));
        assert_ne!(recipe(&[0..100, 200..300]), recipe(&[0..100, 200..301]));
        assert_ne!(recipe(&[0..100, 200..300]), recipe(&[200..300, 0..100]));
    }
}
