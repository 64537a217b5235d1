//! Bytes of one file into another by the cheapest way their file systems offer: [`CopyMethod`].

use nix::{errno::Errno, fcntl::copy_file_range};
use reflink_copy::ReflinkBlockBuilder;
use std::{fs::File, io, num::NonZeroU64, os::unix::fs::FileExt};

/// How much is read and written at once where the kernel can't copy by itself.
const COPY_BYTES: usize = 1 << 20;

/// How bytes came into a file. Ordered by cost: what each costs, the ones before it do not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CopyMethod {
    /// Both files share the blocks: nothing was copied, and no disk space taken. XFS and btrfs, on one volume.
    Reflink,
    /// The kernel copied them by copy_file_range(2), without a detour through the process.
    CopyFileRange,
    /// They were read and written.
    Copy,
}

impl CopyMethod {
    /// Its name, as scripts read it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Reflink => "reflink",
            Self::CopyFileRange => "copy_file_range",
            Self::Copy => "copy",
        }
    }
}

/// What can be done with a pair of files.
trait Ways {
    /// Shares all of `bytes`, or says why not.
    fn reflink(&self, from: u64, to: u64, bytes: u64) -> io::Result<()>;
    /// Copies up to `bytes` within the kernel, and says how many; 0 at the end of the source.
    fn copy_file_range(&self, from: u64, to: u64, bytes: u64) -> io::Result<u64>;
    /// Copies all of `bytes`.
    fn copy(&self, from: u64, to: u64, bytes: u64) -> io::Result<()>;
}

/// Copies `bytes` from offset `from` of `source` to offset `to` of `target`.
///
/// `shared_bytes` of them may be shared: as many as `bytes`, or more, up to the end of a block that nobody else uses. `target`
/// may be longer afterwards than what was asked for, by what lies in that block.
pub(crate) fn copy(source: &File, from: u64, target: &File, to: u64, bytes: u64, shared_bytes: u64) -> io::Result<CopyMethod> {
    in_order(&Files { source, target }, from, to, bytes, shared_bytes)
}

/// Whether the first `bytes` of `source`, which has them, can be shared with `target`; they are, if so.
pub(crate) fn can_share(source: &File, target: &File, bytes: u64) -> bool {
    Files { source, target }.reflink(0, 0, bytes).is_ok()
}

/// Reflink, copy_file_range, read and write: the first that can, each from where the one before stopped.
fn in_order(ways: &impl Ways, from: u64, to: u64, bytes: u64, shared_bytes: u64) -> io::Result<CopyMethod> {
    // Whatever is in the way: where it matters (a full disk, a broken one), the next way meets it too.
    if ways.reflink(from, to, shared_bytes).is_ok() {
        return Ok(CopyMethod::Reflink);
    }
    let mut done = 0;
    while done < bytes {
        match ways.copy_file_range(from + done, to + done, bytes - done) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(copied) => done += copied,
            Err(error) => match error.raw_os_error().map(Errno::from_raw) {
                Some(Errno::EINTR) => {}
                // Two file systems, or one that can't, or a sandbox that does not know the call.
                Some(Errno::EXDEV | Errno::EINVAL | Errno::ENOSYS | Errno::EOPNOTSUPP | Errno::EPERM) => {
                    ways.copy(from + done, to + done, bytes - done)?;
                    return Ok(CopyMethod::Copy);
                }
                _ => return Err(error),
            },
        }
    }
    Ok(CopyMethod::CopyFileRange)
}

/// Two real files.
struct Files<'a> {
    source: &'a File,
    target: &'a File,
}

impl Ways for Files<'_> {
    fn reflink(&self, from: u64, to: u64, bytes: u64) -> io::Result<()> {
        // ioctl_ficlonerange(2) takes 0 for "up to the end of the source".
        let bytes = NonZeroU64::new(bytes).ok_or(io::ErrorKind::InvalidInput)?;
        ReflinkBlockBuilder::new(self.source, self.target, bytes).from_offset(from).to_offset(to).reflink_block()
    }

    fn copy_file_range(&self, from: u64, to: u64, bytes: u64) -> io::Result<u64> {
        let (mut from, mut to) = (from as i64, to as i64);
        Ok(copy_file_range(self.source, Some(&mut from), self.target, Some(&mut to), bytes as usize)? as u64)
    }

    fn copy(&self, from: u64, to: u64, bytes: u64) -> io::Result<()> {
        let mut buffer = vec![0; COPY_BYTES.min(bytes as usize)];
        let mut done = 0;
        while done < bytes {
            let part = &mut buffer[..(bytes - done).min(COPY_BYTES as u64) as usize];
            self.source.read_exact_at(part, from + done)?;
            self.target.write_all_at(part, to + done)?;
            done += part.len() as u64;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;

    /// File systems that can do so much: whether they share blocks, and what each copy_file_range answers.
    struct Fake {
        shares: bool,
        answers: RefCell<Vec<Result<u64, Errno>>>,
        calls: RefCell<Vec<(&'static str, u64, u64, u64)>>,
    }

    impl Fake {
        fn new(shares: bool, answers: &[Result<u64, Errno>]) -> Self {
            Self { shares, answers: RefCell::new(answers.to_vec()), calls: RefCell::default() }
        }

        fn call(&self, name: &'static str, from: u64, to: u64, bytes: u64) {
            self.calls.borrow_mut().push((name, from, to, bytes));
        }
    }

    impl Ways for Fake {
        fn reflink(&self, from: u64, to: u64, bytes: u64) -> io::Result<()> {
            self.call("reflink", from, to, bytes);
            if self.shares { Ok(()) } else { Err(Errno::EOPNOTSUPP.into()) }
        }

        fn copy_file_range(&self, from: u64, to: u64, bytes: u64) -> io::Result<u64> {
            self.call("copy_file_range", from, to, bytes);
            self.answers.borrow_mut().remove(0).map_err(io::Error::from)
        }

        fn copy(&self, from: u64, to: u64, bytes: u64) -> io::Result<()> {
            self.call("copy", from, to, bytes);
            Ok(())
        }
    }

    #[test]
    fn blocks_are_shared_where_they_can_be_and_nothing_else_is_tried() {
        let fake = Fake::new(true, &[]);
        assert_eq!(in_order(&fake, 64, 0, 100, 128).unwrap(), CopyMethod::Reflink);
        assert_eq!(*fake.calls.borrow(), [("reflink", 64, 0, 128)]);
    }

    #[test]
    fn the_kernel_copies_where_blocks_are_not_shared_in_as_many_steps_as_it_likes() {
        let fake = Fake::new(false, &[Ok(30), Err(Errno::EINTR), Ok(70)]);
        assert_eq!(in_order(&fake, 64, 0, 100, 128).unwrap(), CopyMethod::CopyFileRange);
        let asked = [("copy_file_range", 64, 0, 100), ("copy_file_range", 94, 30, 70), ("copy_file_range", 94, 30, 70)];
        assert_eq!(fake.calls.borrow()[1..], asked);
    }

    #[test]
    fn what_the_kernel_cannot_copy_is_read_and_written_from_where_it_stopped() {
        for refusal in [Errno::EXDEV, Errno::EINVAL, Errno::ENOSYS, Errno::EOPNOTSUPP, Errno::EPERM] {
            let fake = Fake::new(false, &[Ok(30), Err(refusal)]);
            assert_eq!(in_order(&fake, 64, 0, 100, 128).unwrap(), CopyMethod::Copy);
            assert_eq!(fake.calls.borrow().last(), Some(&("copy", 94, 30, 70)));
        }
    }

    #[test]
    fn a_full_or_broken_disk_and_a_source_that_ends_are_errors() {
        for refusal in [Errno::ENOSPC, Errno::EIO] {
            let error = in_order(&Fake::new(false, &[Err(refusal)]), 64, 0, 100, 128).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(refusal as i32));
        }
        let error = in_order(&Fake::new(false, &[Ok(30), Ok(0)]), 64, 0, 100, 128).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn every_way_a_real_file_system_has_gives_the_same_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let bytes: Vec<u8> = (0..3_000_017_u32).map(|n| (n * 31 / 7) as u8).collect();
        std::fs::write(dir.path().join("source"), &bytes).unwrap();
        let source = File::open(dir.path().join("source")).unwrap();
        let create =
            |name| File::options().read(true).write(true).create(true).truncate(true).open(dir.path().join(name)).unwrap();
        let range = 65_536..2_900_001_u64;
        let (from, length) = (range.start, range.end - range.start);
        let (chosen, by_hand) = (create("chosen"), create("by hand"));
        copy(&source, from, &chosen, 4096, length, length).unwrap();
        Files { source: &source, target: &by_hand }.copy(from, 4096, length).unwrap();
        for name in ["chosen", "by hand"] {
            let copied = std::fs::read(dir.path().join(name)).unwrap();
            assert!(copied[..4096].iter().all(|byte| *byte == 0));
            assert!(copied[4096..] == bytes[range.start as usize..range.end as usize], "{name}");
        }
    }
}
