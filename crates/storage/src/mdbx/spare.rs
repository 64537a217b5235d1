//! What keeps a disk that fills up in the middle of a libmdbx write from killing the process: [`Spare`].
//!
//! libmdbx writes an environment of extents through its mapping. A page of it for which the file system has no block left is
//! SIGBUS there, not an error code, whatever was free when the transaction began: another program may have taken it since. So
//! each environment that is written keeps 4 MiB of the disk in a file without a name. A handler of SIGBUS gives them back, 16 KiB
//! at a time, and returns, upon which the processor does the same store again. Faults elsewhere go to whoever handled them before.
//!
//! The handler is installed once for the process, by the first environment of extents that it writes, and stays: what takes handlers away again takes
//! those of others with it that were installed meanwhile. It touches atomics, and makes system calls that signal-safety(7) allows, or
//! that are of their kind (fstatvfs); it takes no lock and no memory.
#![allow(unsafe_code)]

use crate::{
    disk,
    error::{Error, Result},
    unnamed::UnnamedFile,
};
use nix::{
    errno::Errno,
    fcntl::{FallocateFlags, fallocate},
    libc,
};
use std::{
    fs, io,
    mem::{self, MaybeUninit},
    ops::Range,
    os::fd::AsRawFd,
    path::{Path, PathBuf},
    ptr,
    sync::{
        Once, OnceLock,
        atomic::{AtomicBool, AtomicI32, AtomicU32, AtomicUsize, Ordering},
    },
};

/// What a process that writes extents keeps back of the disk. To delete extents of 40 GiB libmdbx dirties 2.7 MiB, to reserve them 1.6.
pub const SPARE_BYTES: u64 = 4 << 20;
/// How much is given back at a fault: little more than the page that is missing, since what is left of it another program may take.
const STEP_BYTES: u64 = 16 << 10;
/// Once nothing is left, how often a fault waits for somebody else to make room, and how long each time: half a minute in all.
const WAITS: u32 = 3000;
const WAIT: libc::timespec = libc::timespec { tv_sec: 0, tv_nsec: 10_000_000 };
/// The same where the disk is not full, so that the fault has another cause.
const WAITS_WITH_ROOM: u32 = 10;
/// A disk with less free than this counts as full.
const FULL_BYTES: u64 = 1 << 20;
/// Environments that can be watched at once. A process has address space for 15.
const PLACES: usize = 64;

/// The room kept back for one environment that is written through its mapping.
///
/// Taken, and the mapping watched, when the first transaction begins that writes: who only reads has nothing to do with it.
pub(crate) struct Spare {
    folder: PathBuf,
    data_file: i32,
    /// None inside where the mapping was not found, or nobody more can be watched.
    kept: OnceLock<Option<Kept>>,
}

struct Kept {
    place: &'static Place,
    file: UnnamedFile,
}

/// What the handler knows of an environment.
struct Place {
    taken: AtomicBool,
    /// The process that opened it: a forked child has another mapping at these addresses, or none.
    process: AtomicU32,
    start: AtomicUsize,
    /// 0 while nothing is watched.
    end: AtomicUsize,
    /// The data file, and the file that holds the spare room.
    data_file: AtomicI32,
    spare_file: AtomicI32,
    /// Whether any was given back since it was last filled, or it never was.
    used: AtomicBool,
    waits: AtomicU32,
}

static WATCHED: [Place; PLACES] = [const { Place::new() }; PLACES];
/// What handled SIGBUS before.
static BEFORE: OnceLock<libc::sigaction> = OnceLock::new();

impl Spare {
    /// Of the environment in `folder`, whose data file libmdbx has open as `data_file` for as long as this lives.
    pub(crate) fn new(folder: &Path, data_file: i32) -> Self {
        Self { folder: folder.to_owned(), data_file, kept: OnceLock::new() }
    }

    /// Takes all its room, unless it has it. The caller holds the writer's place.
    ///
    /// # Errors
    /// [`Error::NoSpace`] if the disk has less.
    pub(crate) fn fill(&self) -> Result<()> {
        let kept = match self.kept.get() {
            Some(kept) => kept,
            None => {
                let kept = self.watch()?;
                self.kept.get_or_init(|| kept)
            }
        };
        let Some(Kept { place, file }) = kept else { return Ok(()) };
        if !place.used.load(Ordering::Acquire) {
            return Ok(());
        }
        match fallocate(file.file(), FallocateFlags::empty(), 0, SPARE_BYTES as i64) {
            // Where room can't be kept back, there is none to give.
            Ok(()) | Err(Errno::EOPNOTSUPP) => {}
            Err(Errno::ENOSPC | Errno::EDQUOT) => {
                file.file().set_len(0).map_err(|source| self.failed(source))?;
                return Err(disk::no_space(&self.folder, "keep room back", SPARE_BYTES));
            }
            Err(code) => return Err(self.failed(code.into())),
        }
        place.waits.store(0, Ordering::Relaxed);
        place.used.store(false, Ordering::Release);
        Ok(())
    }

    /// Whether the disk was full at any write since [`fill`](Self::fill): a transaction that can be given up should be.
    pub(crate) fn is_used(&self) -> bool {
        self.kept().is_some_and(|kept| kept.place.used.load(Ordering::Acquire))
    }

    /// Whether so much was given back that a transaction should be given up which is worth going on with.
    pub(crate) fn is_low(&self) -> bool {
        self.is_used() && self.kept().is_some_and(|kept| file_bytes(kept.file.file().as_raw_fd()) < SPARE_BYTES / 2)
    }

    fn kept(&self) -> Option<&Kept> {
        self.kept.get()?.as_ref()
    }

    fn watch(&self) -> Result<Option<Kept>> {
        let mapping = mapping_of(self.data_file).and_then(|mapping| install().map(|()| mapping));
        let mapping = match mapping {
            Ok(Some(mapping)) => mapping,
            other => {
                tracing::warn!(folder = %self.folder.display(), found = ?other, "libmdbx's mapping is not guarded against a disk that fills up");
                return Ok(None);
            }
        };
        let file = UnnamedFile::new_in(&self.folder).map_err(|source| self.failed(source))?;
        let place = Place::take(&mapping, self.data_file, file.file().as_raw_fd());
        Ok(place.map(|place| Kept { place, file }))
    }

    fn failed(&self, source: io::Error) -> Error {
        Error::Io { action: "keep room back in", path: self.folder.clone(), source }
    }
}

impl Drop for Spare {
    fn drop(&mut self) {
        if let Some(kept) = self.kept() {
            kept.place.give_up();
        }
    }
}

impl Place {
    const fn new() -> Self {
        Self {
            taken: AtomicBool::new(false),
            process: AtomicU32::new(0),
            start: AtomicUsize::new(0),
            end: AtomicUsize::new(0),
            data_file: AtomicI32::new(-1),
            spare_file: AtomicI32::new(-1),
            used: AtomicBool::new(false),
            waits: AtomicU32::new(0),
        }
    }

    /// A place for the mapping; `None` if all are taken.
    fn take(mapping: &Range<usize>, data_file: i32, spare_file: i32) -> Option<&'static Self> {
        let place = WATCHED.iter().find(|place| !place.taken.swap(true, Ordering::AcqRel))?;
        place.process.store(std::process::id(), Ordering::Relaxed);
        place.data_file.store(data_file, Ordering::Relaxed);
        place.start.store(mapping.start, Ordering::Relaxed);
        place.spare_file.store(spare_file, Ordering::Relaxed);
        // Nothing is in it yet.
        place.used.store(true, Ordering::Relaxed);
        // Last: from here on the handler sees it.
        place.end.store(mapping.end, Ordering::Release);
        Some(place)
    }

    fn give_up(&self) {
        self.end.store(0, Ordering::Release);
        self.taken.store(false, Ordering::Release);
    }

    fn holds(&self, address: usize) -> bool {
        address < self.end.load(Ordering::Acquire)
            && address >= self.start.load(Ordering::Relaxed)
            && self.process.load(Ordering::Relaxed) == std::process::id()
    }

    /// Makes room for a store to `address` that found none; false if that is not what it lacks, or nothing more can be done.
    ///
    /// Called by the handler.
    fn make_room(&self, address: usize) -> bool {
        let offset = (address - self.start.load(Ordering::Relaxed)) as u64;
        if offset >= file_bytes(self.data_file.load(Ordering::Relaxed)) {
            // Past the end of the file, where no room would help.
            return false;
        }
        self.used.store(true, Ordering::Release);
        let spare_file = self.spare_file.load(Ordering::Acquire);
        let left_bytes = file_bytes(spare_file);
        if left_bytes > 0 {
            // SAFETY: takes two numbers; the descriptor is open for as long as the environment is.
            return unsafe { libc::ftruncate(spare_file, left_bytes.saturating_sub(STEP_BYTES) as i64) } == 0;
        }
        let waits = if is_full(self.data_file.load(Ordering::Relaxed)) { WAITS } else { WAITS_WITH_ROOM };
        if self.waits.fetch_add(1, Ordering::Relaxed) >= waits {
            return false;
        }
        // SAFETY: reads the one value and writes none.
        unsafe { libc::nanosleep(&WAIT, ptr::null_mut()) };
        true
    }
}

/// Installs the handler, the first time.
fn install() -> io::Result<()> {
    static INSTALLED: Once = Once::new();
    let mut failed = None;
    INSTALLED.call_once(|| {
        // SAFETY: both calls are given a value of their type. The handler is a function for good and does only what a handler may;
        // what handled the signal before is kept, and called for what is none of ours. On the alternative stack where the
        // thread has one, since what was there before may handle stacks that overflow.
        let code = unsafe {
            let mut before = MaybeUninit::zeroed();
            let code = libc::sigaction(libc::SIGBUS, ptr::null(), before.as_mut_ptr());
            let _ = BEFORE.set(before.assume_init());
            let mut ours: libc::sigaction = mem::zeroed();
            ours.sa_sigaction = on_sigbus as *const () as usize;
            ours.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
            code | libc::sigaction(libc::SIGBUS, &ours, ptr::null_mut())
        };
        if code != 0 {
            failed = Some(io::Error::last_os_error());
        }
    });
    failed.map_or(Ok(()), Err)
}

extern "C" fn on_sigbus(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: with SA_SIGINFO the kernel gives a valid `info`; its address is a number to us, of a signal somebody sent an arbitrary one.
    let (code, address) = unsafe { ((*info).si_code, (*info).si_addr() as usize) };
    let errno = Errno::last_raw();
    let ours = WATCHED.iter().find(|place| code == libc::BUS_ADRERR && place.holds(address));
    if !ours.is_some_and(|place| place.make_room(address)) {
        // SAFETY: these are what the kernel gave this handler.
        unsafe { hand_on(signal, info, context) };
    }
    Errno::set_raw(errno);
}

/// Does what would have been done with the signal before.
///
/// # Safety
/// - Called by a handler of `signal`, with what the kernel gave it.
unsafe fn hand_on(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: as the caller promises. What was there before is a handler that takes what its flags say, and `raise` is safe in one.
    unsafe {
        let sent = (*info).si_code <= 0;
        match BEFORE.get() {
            Some(before) if before.sa_sigaction == libc::SIG_IGN && sent => {}
            Some(before) if before.sa_sigaction != libc::SIG_DFL && before.sa_sigaction != libc::SIG_IGN => {
                if before.sa_flags & libc::SA_SIGINFO != 0 {
                    type Handler = extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void);
                    mem::transmute::<usize, Handler>(before.sa_sigaction)(signal, info, context);
                } else {
                    mem::transmute::<usize, extern "C" fn(libc::c_int)>(before.sa_sigaction)(signal);
                }
            }
            _ => {
                let default: libc::sigaction = mem::zeroed();
                libc::sigaction(signal, &default, ptr::null_mut());
                // A fault comes again by itself once this returns.
                if sent {
                    libc::raise(signal);
                }
            }
        }
    }
}

/// The size of an open file; 0 if there is none. For the handler.
fn file_bytes(fd: i32) -> u64 {
    let mut stat = MaybeUninit::<libc::stat>::zeroed();
    // SAFETY: given a place for the value; zeros are one, and stay where the call fails.
    unsafe {
        libc::fstat(fd, stat.as_mut_ptr());
        stat.assume_init().st_size as u64
    }
}

/// Whether the disk of an open file is full. For the handler.
fn is_full(fd: i32) -> bool {
    let mut stat = MaybeUninit::<libc::statvfs>::zeroed();
    // SAFETY: given a place for the value; zeros are one, and stay where the call fails.
    let stat = unsafe {
        libc::fstatvfs(fd, stat.as_mut_ptr());
        stat.assume_init()
    };
    stat.f_bavail as u64 * (stat.f_frsize as u64) < FULL_BYTES
}

/// The addresses libmdbx has mapped its data file at, to write through.
fn mapping_of(data_file: i32) -> io::Result<Option<Range<usize>>> {
    let path = fs::read_link(format!("/proc/self/fd/{data_file}"))?;
    // As the kernel writes it in a list whose lines end where they should.
    let path = path.to_string_lossy().replace('\n', "\\012");
    Ok(find_mapping(&fs::read_to_string("/proc/self/maps")?, &path))
}

/// The addresses of the writable mapping of `path`'s beginning in the text of `/proc/self/maps`, pieces that follow one another taken together.
fn find_mapping(maps: &str, path: &str) -> Option<Range<usize>> {
    let mut found: Option<Range<usize>> = None;
    for line in maps.lines() {
        // 7f00-7f01 rw-s 00000000 fe:00 131      /path
        let mut fields = line.splitn(6, ' ');
        let (Some(addresses), Some(access), Some(offset)) = (fields.next(), fields.next(), fields.next()) else { continue };
        let is_ours =
            access.starts_with("rw") && access.ends_with('s') && fields.last().is_some_and(|rest| rest.trim_start() == path);
        let Some((start, end)) = addresses.split_once('-') else { continue };
        let (Ok(start), Ok(end)) = (usize::from_str_radix(start, 16), usize::from_str_radix(end, 16)) else { continue };
        match &mut found {
            Some(range) if is_ours && range.end == start => range.end = end,
            None if is_ours && offset.bytes().all(|digit| digit == b'0') => found = Some(start..end),
            _ => {}
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mapping_is_found_among_others_of_the_same_file() {
        let maps = "\
7f0000000000-7f0000002000 r--s 00010000 fe:00 131  /store/my chunks/mdbx.dat
7f1000000000-7f1000010000 rw-s 00000000 fe:00 131                        /store/my chunks/mdbx.dat
7f1000010000-7f1000020000 rw-s 00010000 fe:00 131                        /store/my chunks/mdbx.dat
7f1000020000-7f1000030000 r--s 00020000 fe:00 131                        /store/my chunks/mdbx.dat
7f2000000000-7f2000010000 rw-s 00000000 fe:00 132                        /store/my chunks/mdbx.dat2
7f3000000000-7f3000010000 rw-p 00000000 00:00 0
";
        assert_eq!(find_mapping(maps, "/store/my chunks/mdbx.dat"), Some(0x7f10_0000_0000..0x7f10_0002_0000));
        assert_eq!(find_mapping(maps, "/store/mdbx.dat"), None);
    }

    #[test]
    fn an_environment_of_extents_is_watched_over_all_its_address_space() {
        let dir = tempfile::tempdir().unwrap();
        let env = super::super::open_extents(dir.path(), "t", 64 << 10).unwrap();
        let place = env.spare.as_ref().unwrap().kept().expect("making its table was a write").place;
        let bytes = place.end.load(Ordering::Relaxed) - place.start.load(Ordering::Relaxed);
        assert!(bytes as isize >= super::super::MAX_EXTENTS_BYTES, "{bytes:x}");
        assert!(place.holds(place.start.load(Ordering::Relaxed)));
        let start = place.start.load(Ordering::Relaxed);
        drop(env);
        assert!(!place.holds(start));
    }
}
