//! Several extents as one read-only slice: [`Mapping`]; and one by one, where side by side is impossible: [`SeparateMappings`].
#![allow(unsafe_code)]

use crate::{
    data_file::DataFile,
    error::{Error, Result},
    extent::{Extent, LARGE_PAGE_BYTES, LEAST_ALIGNED_BYTES, PAGE_BYTES},
    resident::read_in_large_pieces,
};
use nix::{
    errno::Errno,
    sys::mman::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap},
};
use std::{ffi::c_void, num::NonZeroUsize, ops::Deref, ptr::NonNull};

/// The data of several extents, mapped side by side: one contiguous read-only slice.
///
/// The base lies on a 64 KiB boundary, so any smaller alignment within the data holds; on one of 2 MiB where the first extent's data
/// does, so that the kernel may map large pages. 32 MiB and more are read from the disk in pieces of 2 MiB, whatever the kernel's
/// read-ahead. Needs neither a transaction nor the environment; what keeps the bytes from being freed and reused is the lease its
/// owner holds. Cost: three system calls and one more an extent, and no memory of the process; pages come from the page cache as they
/// are touched. Reading a page the disk can't deliver raises SIGBUS, as with every mapping.
#[derive(Debug)]
pub struct Mapping {
    base: NonNull<c_void>,
    /// Bytes of address space taken, a multiple of 64 KiB.
    reserved_bytes: NonZeroUsize,
    /// What was taken beyond the aligned start.
    lead_bytes: usize,
    data_bytes: usize,
}

// SAFETY: the mapped memory is only read, and belongs to no thread.
unsafe impl Send for Mapping {}
// SAFETY: as above; shared reads of memory nobody writes through this mapping.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `extents` side by side, in order. All but the last must have a multiple of 64 KiB of data.
    ///
    /// The caller holds the lease on their owner for as long as the mapping lives.
    ///
    /// # Errors
    /// [`Error::Io`] where the system refuses (`vm.max_map_count`: one map an extent), or if there are no extents, one is empty
    /// or lies beyond the end of the file, or one before the last has no whole number of pages.
    pub fn side_by_side(file: &DataFile, extents: &[Extent]) -> Result<Self> {
        let failed = |action, code: Errno| Error::Io { action, path: file.folder().to_owned(), source: code.into() };
        let (_, all_but_last) = extents.split_last().ok_or_else(|| failed("map no extents of", Errno::EINVAL))?;
        if all_but_last.iter().any(|extent| extent.data_bytes % PAGE_BYTES != 0) {
            return Err(failed("map side by side extents with part of a page in", Errno::EINVAL));
        }
        check_in_file(file, extents)?;
        // `check_in_file` bounds each of them by the file; only a hostile number of extents could still overflow the sum.
        let data_bytes = extents.iter().try_fold(0_u64, |sum, extent| sum.checked_add(extent.data_bytes));
        let data_bytes = data_bytes.ok_or_else(|| failed("find address space for", Errno::ENOMEM))?;
        let boundary = if extents[0].data_offset().is_multiple_of(LARGE_PAGE_BYTES) { LARGE_PAGE_BYTES } else { PAGE_BYTES };
        // The kernel aligns to its own pages, which may be smaller than ours: one more lets the start be on a boundary.
        let reserved_bytes = data_bytes
            .checked_next_multiple_of(PAGE_BYTES)
            .and_then(|bytes| bytes.checked_add(boundary))
            .and_then(|bytes| NonZeroUsize::new(usize::try_from(bytes).ok()?))
            .ok_or_else(|| failed("find address space for", Errno::ENOMEM))?;
        let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_NORESERVE;
        // SAFETY: a new anonymous mapping without MAP_FIXED: it takes no address that is in use.
        let base = unsafe { mmap_anonymous(None, reserved_bytes, ProtFlags::PROT_NONE, flags) }
            .map_err(|code| failed("find address space for", code))?;
        let lead_bytes = base.as_ptr() as usize;
        let lead_bytes = lead_bytes.next_multiple_of(boundary as usize) - lead_bytes;
        // From here on `Drop` unmaps what was taken.
        let mapping = Self { base, reserved_bytes, lead_bytes, data_bytes: data_bytes as usize };
        let mut address = mapping.start() as usize;
        for extent in extents {
            let bytes =
                NonZeroUsize::new(extent.data_bytes as usize).ok_or_else(|| failed("map an empty extent of", Errno::EINVAL))?;
            // SAFETY: `address .. address + bytes`, rounded up to pages, lies in the address space reserved above, which is
            // ours alone and holds nothing yet: the sum of the rounded lengths is at most `data_bytes`, rounded up. The file offset is
            // a multiple of 64 KiB. The pages are mapped read-only and shared.
            unsafe {
                mmap(
                    NonZeroUsize::new(address),
                    bytes,
                    ProtFlags::PROT_READ,
                    MapFlags::MAP_SHARED | MapFlags::MAP_FIXED,
                    file.file(),
                    extent.data_offset() as i64,
                )
            }
            .map_err(|code| failed("map", code))?;
            address += extent.data_bytes as usize;
        }
        if data_bytes >= LEAST_ALIGNED_BYTES {
            // Large values are read whole: cold, front to back, 1.8 times as fast where the kernel reads ahead by its default of 128 KiB.
            // The price is a single page read cold, which brings in up to 4 MiB (docs/performance.md).
            read_in_large_pieces(&mapping);
        }
        Ok(mapping)
    }

    fn start(&self) -> *const u8 {
        self.base.as_ptr().cast::<u8>().wrapping_add(self.lead_bytes).cast_const()
    }
}

impl Deref for Mapping {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: `side_by_side` mapped `data_bytes` readable bytes from `start` on, in one piece, and they stay mapped until
        // `Drop`. That they do not change rests on the store's protocol: sealed extents are written by nobody, and the lease
        // the caller holds keeps them from being freed. A program that writes into the data file behind the store's back breaks this,
        // as it would any memory-mapped file.
        unsafe { std::slice::from_raw_parts(self.start(), self.data_bytes) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: `base` and `reserved_bytes` are those of the one reservation; no reference into it outlives `self`.
        if let Err(code) = unsafe { munmap(self.base, self.reserved_bytes.get()) } {
            tracing::error!(%code, "a mapping could not be unmapped");
        }
    }
}

/// Refuses extents that are empty or reach beyond the end of the file, where a read of the mapping would be SIGBUS.
fn check_in_file(file: &DataFile, extents: &[Extent]) -> Result<()> {
    let failed = |action, source| Error::Io { action, path: file.folder().to_owned(), source };
    let file_bytes = file.file().metadata().map_err(|source| failed("find the size of", source))?.len();
    for extent in extents {
        if extent.data_bytes == 0 {
            return Err(failed("map an empty extent of", Errno::EINVAL.into()));
        }
        if extent.data_offset().checked_add(extent.data_bytes).is_none_or(|end| end > file_bytes) {
            return Err(failed("map an extent beyond the end of", Errno::EINVAL.into()));
        }
    }
    Ok(())
}

/// The data of several extents, each mapped where the system likes: the way for systems that can't map side by side.
#[derive(Debug)]
pub struct SeparateMappings {
    maps: Vec<memmap2::Mmap>,
}

impl SeparateMappings {
    /// Maps each of `extents` on its own. Cost and conditions as for [`Mapping::side_by_side`], but any length goes.
    pub fn new(file: &DataFile, extents: &[Extent]) -> Result<Self> {
        check_in_file(file, extents)?;
        let map = |extent: &Extent| {
            let mut options = memmap2::MmapOptions::new();
            options.offset(extent.data_offset()).len(extent.data_bytes as usize);
            // SAFETY: the file is not changed under the map, for the reasons given at `Mapping::deref`.
            unsafe { options.map(file.file()) }.map_err(|source| Error::Io {
                action: "map",
                path: file.folder().to_owned(),
                source,
            })
        };
        Ok(Self { maps: extents.iter().map(map).collect::<Result<_>>()? })
    }

    /// Each extent's data, in order.
    pub fn slices(&self) -> impl ExactSizeIterator<Item = &[u8]> {
        self.maps.iter().map(|map| &map[..])
    }
}
