//! What of a file is in the page cache: brought in, or dropped, before a round; and that memory for it is at hand.

use crate::{pattern::sum_lines, report::Result};
use memmap2::{Advice, MmapMut};
use nix::{
    fcntl::{PosixFadviseAdvice, posix_fadvise},
    sys::stat::{major, minor},
};
use std::{
    fs::{self, File},
    hint::black_box,
    io::Read,
    os::unix::fs::MetadataExt,
    path::Path,
    thread,
    time::Duration,
};
use tabagent_model_cache::{CHUNK_BYTES, ModelFile, PrefetchOptions};

/// How long until free memory has been given back: 2 s of waiting, and the giving.
const GIVEN_BACK_AFTER: Duration = Duration::from_millis(2300);
/// Rounds of less are no measurements.
const LEAST_HELD_BYTES: u64 = 256 << 20;

/// Drops every clean page of the machine, and what the kernel knows of folders and inodes. Takes root.
///
/// Dirty pages stay: what a round reads was synced as it was prepared.
pub(crate) fn drop_all() -> Result<()> {
    fs::write("/proc/sys/vm/drop_caches", "3")
        .map_err(|error| format!("a cold round drops the page cache, which takes root: /proc/sys/vm/drop_caches: {error}").into())
}

/// Drops a plain file, which is on the disk, from the page cache, and reads it front to back by `pread`, as `cat` does.
///
/// It is in the page cache afterwards, in the pieces read-ahead brings it in and not in those it once was written in, which decide how
/// fast it is mapped; and mapped by nobody for that.
pub(crate) fn reread_file(path: &Path) -> Result<()> {
    let mut file = File::open(path)?;
    drop_range(&file, 0, 0)?;
    let mut buffer = vec![0; 1 << 20];
    while file.read(&mut buffer)? > 0 {}
    Ok(())
}

/// Reads a file of a store anew from the disk, by its own way of warming: see [`reread_file`]. Nothing of it stays mapped.
pub(crate) fn reread_stored(file: ModelFile) -> Result<()> {
    let Some(placement) = file.placement() else { return Ok(()) };
    let data_file = File::open(placement.data_file())?;
    for start in (0..file.size_bytes()).step_by(CHUNK_BYTES as usize) {
        let bytes = CHUNK_BYTES.min(file.size_bytes() - start);
        if let Some(offset) = placement.offset_of(start..start + bytes) {
            drop_range(&data_file, offset, bytes)?;
        }
    }
    file.prefetch(&PrefetchOptions::default())?;
    // The disk wrote it into memory, and this processor has not looked at it yet: in a virtual machine each page's first look costs an
    // exit to the host (measured: 0.2 to 3 s for 4 GiB), which `pread` of the plain file has paid by copying.
    file.slices().for_each(|slice| _ = black_box(sum_lines(slice)));
    Ok(())
}

fn drop_range(file: &File, offset: u64, bytes: u64) -> Result<()> {
    Ok(posix_fadvise(file, offset as i64, bytes as i64, PosixFadviseAdvice::POSIX_FADV_DONTNEED)?)
}

/// Drops a plain file that is on the disk from the page cache.
pub(crate) fn forget(path: &Path) -> Result<()> {
    drop_range(&File::open(path)?, 0, 0)
}

/// How far the kernel reads ahead on the disk of `path`, where it says so.
pub(crate) fn read_ahead_kib(path: &Path) -> Option<f64> {
    let device = fs::metadata(path).ok()?.dev();
    let place = format!("/sys/class/bdi/{}:{}/read_ahead_kb", major(device), minor(device));
    fs::read_to_string(place).ok()?.trim().parse().ok()
}

/// Touches `bytes` of memory and gives them back, before a round that fills as much of the page cache.
///
/// A virtual machine with free page reporting gives free memory back to its host, which backs it again page by page when it is
/// touched: measured, 1.8 s per GiB, charged to whoever happens to fill the page cache. This takes it out of the round.
///
/// What dropping the page cache freed is given back 2 s later, which would be in the middle of the round (measured: up to 1.1 GiB of
/// it). So the memory is held until that is over; the round then has 2 s.
pub(crate) fn back_memory(bytes: u64) -> Result<()> {
    let mut memory = MmapMut::map_anon(bytes.max(1) as usize)?;
    // Only a wish: kernels without huge pages touch small ones.
    let _ = memory.advise(Advice::HugePage);
    memory.iter_mut().step_by(4096).for_each(|byte| *byte = 1);
    if bytes >= LEAST_HELD_BYTES {
        thread::sleep(GIVEN_BACK_AFTER);
    }
    Ok(())
}
