//! A write that did not reach the disk: told once by the kernel, remembered for ever by the description that was told.
//!
//! The disk that fails is ext4 on a sparse file on a tmpfs too small for it: once that is full, every block ext4 writes back
//! is refused, long after `write` said it was written.

mod common;

use common::*;
use nix::sys::{
    resource::{Resource, getrlimit, setrlimit},
    signal::{SigHandler, Signal, signal},
};
use std::{fs, io::Write, path::Path, process::Command, sync::Barrier, thread};
use storage::*;

fn assert_never_syncs_again(writer: &DataFile) {
    for _ in 0..5 {
        assert!(matches!(writer.sync(), Err(Error::WriteBackFailed { .. })));
    }
}

#[test]
fn after_a_failed_write_nothing_syncs_through_the_same_description() {
    const NAME: &str = "after_a_failed_write_nothing_syncs_through_the_same_description";
    let Some(folder) = child_argument() else {
        // The limit below is the whole process's.
        let folder = tempfile::tempdir().unwrap();
        run_child(NAME, folder.path());
        return;
    };
    let extents = open_extents(&folder);
    let placed = reserve(&extents, 1, "a", &[1 << 20, 1 << 20]).unwrap();
    let (writer, other) = (extents.open_writer().unwrap(), extents.open_writer().unwrap());
    writer.write_at(&placed[0], 0, b"before").unwrap();
    writer.sync().unwrap();
    // Without it a write beyond the limit is a signal, not EFBIG.
    ignore_file_size_signal();
    let (soft, hard) = getrlimit(Resource::RLIMIT_FSIZE).unwrap();
    setrlimit(Resource::RLIMIT_FSIZE, placed[1].data_offset(), hard).unwrap();
    writer.write_at(&placed[0], 0, b"within the limit").unwrap();
    assert!(matches!(writer.write_at(&placed[1], 0, b"beyond it"), Err(Error::Io { .. })));
    setrlimit(Resource::RLIMIT_FSIZE, soft, hard).unwrap();
    // The same write might succeed now, but nothing of this fill can be sealed any more: whoever goes on hears so at once.
    assert!(matches!(writer.write_at(&placed[1], 0, b"beyond it"), Err(Error::WriteBackFailed { .. })));
    assert!(matches!(writer.start_writeback(&placed[0], 0, 1 << 20), Err(Error::WriteBackFailed { .. })));
    assert_never_syncs_again(&writer);
    // It is this fill's misfortune alone.
    other.sync().unwrap();
    extents.open_writer().unwrap().sync().unwrap();
}

#[allow(unsafe_code)]
fn ignore_file_size_signal() {
    // SAFETY: SIG_IGN runs no code of ours.
    unsafe { signal(Signal::SIGXFSZ, SigHandler::SigIgn) }.unwrap();
}

/// Mounts the failing disk below `folder`. The disk works until `backing` is filled.
fn mount_failing_disk(folder: &Path) -> bool {
    let run = |program: &str, arguments: &[&str]| {
        Command::new(program).args(arguments).output().is_ok_and(|output| output.status.success())
    };
    let (backing, disk) = (folder.join("backing"), folder.join("disk"));
    fs::create_dir_all(&backing).unwrap();
    fs::create_dir_all(&disk).unwrap();
    let image = backing.join("image");
    let (target, image) = (disk.to_str().unwrap(), image.to_str().unwrap());
    run("mount", &["-t", "tmpfs", "-o", "size=96M", "tmpfs", backing.to_str().unwrap()])
        && run("truncate", &["-s", "256M", image])
        // Without a journal: its failure would make the disk read-only before our data is refused.
        && run("mkfs.ext4", &["-q", "-b", "4096", "-O", "^has_journal", "-E", "lazy_itable_init=0,nodiscard", image])
        && run("mount", &["-o", "loop,nodiscard", image, target])
}

fn fill_backing(folder: &Path) {
    let mut filler = fs::File::create(folder.join("backing/filler")).unwrap();
    while filler.write_all(&[1; 4096]).is_ok() {}
}

#[test]
fn a_lost_write_back_is_told_by_the_description_that_was_open_and_by_it_for_ever() {
    const NAME: &str = "a_lost_write_back_is_told_by_the_description_that_was_open_and_by_it_for_ever";
    let Some(folder) = child_argument() else {
        let folder = tempfile::tempdir().unwrap();
        run_in_mount_namespace(NAME, folder.path());
        return;
    };
    if !mount_failing_disk(&folder) {
        println!("SKIPPED: no loop devices here");
        return;
    }
    let extents = open_extents(&folder.join("disk/extents"));
    let placed = reserve(&extents, 1, "a", &[20 << 20]).unwrap();
    extents.sync().unwrap();
    let (writer, shared) = (extents.open_writer().unwrap(), extents.open_writer().unwrap());
    let early = extents.open_writer().unwrap();
    writer.sync().unwrap();
    shared.sync().unwrap();
    early.sync().unwrap();
    fill_backing(&folder);
    // Success, as ever: the bytes are in the page cache.
    writer.write_at(&placed[0], 0, &pattern(1, 8 << 20)).unwrap();
    // Started early, by whichever description: the sync of each is told all the same.
    early.write_at(&placed[0], 8 << 20, &pattern(2, 8 << 20)).unwrap();
    let started = early.start_writeback(&placed[0], 8 << 20, 8 << 20);
    println!("write-back that was started early says {started:?}");
    assert!(early.sync().is_err());
    assert_never_syncs_again(&early);
    let first = writer.sync();
    assert!(matches!(first, Err(Error::Io { action: "sync", .. })), "{first:?}");
    assert_never_syncs_again(&writer);
    // Eight threads that sync at once through one description: the kernel tells one of them; none may hear that all is well.
    let barrier = Barrier::new(8);
    let said_well = thread::scope(|scope| {
        let threads: Vec<_> = (0..8)
            .map(|_| {
                scope.spawn(|| {
                    barrier.wait();
                    shared.sync().is_ok()
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).filter(|well| *well).count()
    });
    assert_eq!(said_well, 0);
    // Why a fill opens its own before its first write: one opened later never hears of it.
    println!("a description opened later says {:?}", extents.open_writer().unwrap().sync());
    // Not dropped: closing would sync once more, and complain.
    std::mem::forget(extents);
}
