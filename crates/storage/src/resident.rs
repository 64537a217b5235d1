//! Which bytes of a mapping are in memory, and bringing them there: [`resident_bytes`], [`populate`]; and how much memory there is.
#![allow(unsafe_code)]

use nix::{
    errno::Errno,
    libc,
    sys::mman::{MmapAdvise, madvise},
};
use std::{ffi::c_void, io, ptr::NonNull};

/// Asks the kernel about so many bytes at once: an answer is a byte a page.
const WINDOW_BYTES: usize = 64 << 20;

/// How many of `bytes`, which are mapped, are in memory, so that reading them does not wait for the disk.
///
/// Cost: about 12 ms a GiB of what no page table has yet, next to nothing of the rest. True at the moment it was asked: the kernel may drop
/// clean pages of files whenever it needs room. Where the file is not the caller's to write, the kernel says that all of it is.
///
/// # Errors
/// The system's.
pub fn resident_bytes(bytes: &[u8]) -> io::Result<u64> {
    let page_bytes = page_bytes();
    let mut pages = vec![0_u8; WINDOW_BYTES / page_bytes + 1];
    let mut resident = 0;
    for window in bytes.chunks(WINDOW_BYTES) {
        let (start, lead) = page_start(window);
        // SAFETY: `start` is on a page boundary; `window` borrows memory that is mapped, so all of its pages are; `pages` has a byte for each
        // of them: a window of 64 MiB that begins within a page touches one more than fit 64 MiB. Nothing of the memory is read or changed.
        Errno::result(unsafe { libc::mincore(start, lead + window.len(), pages.as_mut_ptr()) })?;
        for (index, page) in pages[..(lead + window.len()).div_ceil(page_bytes)].iter().enumerate() {
            // The other bits are reserved.
            if page & 1 == 1 {
                let (begin, end) = ((index * page_bytes).max(lead), ((index + 1) * page_bytes).min(lead + window.len()));
                resident += (end - begin) as u64;
            }
        }
    }
    Ok(resident)
}

/// Has the kernel read the file `bytes` are mapped from in pieces of 2 MiB from now on, whatever its read-ahead is set to; nothing where
/// it can't.
///
/// It then also keeps them in pages of that size, which take one fault, and one entry of a page table, where address and offset agree.
pub fn read_in_large_pieces(bytes: &[u8]) {
    // A kernel without transparent huge pages refuses: its own read-ahead has to do.
    let _ = advise(bytes, MmapAdvise::MADV_HUGEPAGE);
}

/// Brings `bytes`, which are mapped, into memory, and their pages into this process's page tables: a read of them then neither waits nor
/// faults, as long as they stay there.
///
/// Waits for the disk. Several threads may populate parts of one mapping at once.
///
/// # Errors
/// Those of the disk, where a read would raise SIGBUS. A kernel before 5.14 can't populate: there each page is read, and does.
pub fn populate(bytes: &[u8]) -> io::Result<()> {
    loop {
        return match advise(bytes, MmapAdvise::MADV_POPULATE_READ) {
            Err(Errno::EINTR | Errno::EAGAIN) => continue,
            Err(Errno::EINVAL) => {
                bytes.iter().step_by(page_bytes()).chain(bytes.last()).for_each(|byte| _ = std::hint::black_box(*byte));
                Ok(())
            }
            // What would have been SIGBUS.
            Err(Errno::EFAULT | Errno::EHWPOISON) => Err(Errno::EIO.into()),
            other => Ok(other?),
        };
    }
}

/// Bytes of memory programs can still get without swapping, those of clean pages of files included; `None` where the system does not tell.
///
/// Of the machine: what limits a container is not asked.
pub fn available_memory_bytes() -> Option<u64> {
    available_in(&std::fs::read_to_string("/proc/meminfo").ok()?)
}

fn available_in(meminfo: &str) -> Option<u64> {
    let kib = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:")?.trim().strip_suffix("kB"));
    kib?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

fn advise(bytes: &[u8], advice: MmapAdvise) -> Result<(), Errno> {
    let (start, lead) = page_start(bytes);
    let Some(start) = NonNull::new(start).filter(|_| !bytes.is_empty()) else { return Ok(()) };
    // SAFETY: `start` is on a page boundary and `bytes` borrows memory that is mapped. Both pieces of advice asked for in this file change
    // when pages are brought into memory, and how large, and none of their bytes; that they hold for the whole of the first and last
    // page, which others may share, costs these nothing.
    unsafe { madvise(start, lead + bytes.len(), advice) }
}

/// Where the page that `bytes` begin in begins, and how many bytes before them that is.
fn page_start(bytes: &[u8]) -> (*mut c_void, usize) {
    let lead = bytes.as_ptr() as usize % page_bytes();
    (bytes.as_ptr().wrapping_sub(lead).cast_mut().cast(), lead)
}

fn page_bytes() -> usize {
    // SAFETY: no conditions; it reads a number that never changes.
    let bytes = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    usize::try_from(bytes).expect("a system has a page size")
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
    use std::{fs::File, io::Write};

    fn mapped(bytes: usize) -> (File, memmap2::Mmap) {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&vec![7; bytes]).unwrap();
        file.sync_all().unwrap();
        // SAFETY: the file is this test's own and stays as it is.
        let map = unsafe { memmap2::Mmap::map(&file) }.unwrap();
        (file, map)
    }

    /// Not so on a file system that lives in memory.
    fn drop_pages(file: &File, map: &[u8]) -> bool {
        posix_fadvise(file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).unwrap();
        resident_bytes(map).unwrap() < map.len() as u64
    }

    #[test]
    fn what_is_populated_is_resident_whatever_part_of_a_mapping_it_is() {
        let (file, map) = mapped((9 << 20) + 5);
        for (start, end) in [(0, map.len()), (1, 2), (4095, 4097), (1 << 20, 5 << 20), (8 << 20, map.len()), (7, 7)] {
            drop_pages(&file, &map);
            let part = &map[start..end];
            populate(part).unwrap();
            assert_eq!(resident_bytes(part).unwrap(), part.len() as u64, "{start}..{end}");
        }
    }

    #[test]
    fn dropped_pages_are_not_resident_until_they_are_read() {
        let (file, map) = mapped(3 << 20);
        if drop_pages(&file, &map) {
            assert_eq!(resident_bytes(&map).unwrap(), 0);
        }
        read_in_large_pieces(&map);
        assert_eq!(map[100], 7);
        let resident = resident_bytes(&map).unwrap();
        assert!((4096..=map.len() as u64).contains(&resident), "{resident}");
    }

    #[test]
    fn nothing_is_resident_at_once() {
        assert_eq!(resident_bytes(&[]).unwrap(), 0);
        populate(&[]).unwrap();
    }

    #[test]
    fn available_memory_is_told_in_bytes() {
        let meminfo = "MemTotal:       24684092 kB\nMemFree:        13916748 kB\nMemAvailable:   24090324 kB\n";
        assert_eq!(available_in(meminfo), Some(24_090_324 * 1024));
        assert_eq!(available_in("MemTotal: 1 kB\n"), None);
        assert!(available_memory_bytes().is_none_or(|bytes| bytes > 0));
    }
}
