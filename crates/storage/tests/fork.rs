//! A forked child, as Python's multiprocessing makes them: it harms nothing of its parent's, and is told what it can't do.
//!
//! What happened before: the child's `drop` of an inherited exclusive lease unlocked the parent's; a child that opened the
//! store for itself got the one it had inherited, which refuses it; a transaction dropped in the child waited for ever for
//! the parent's writer thread. And what libmdbx must go on doing: were its descriptors to stay open in the child, the parent's
//! close would leave the lock file locked, and every later open on the machine would wait for the child to end.
#![allow(unsafe_code)]

mod common;

use common::*;
use nix::{
    libc,
    sys::{
        signal::{Signal, kill},
        wait::{WaitStatus, waitpid},
    },
    unistd::{ForkResult, Pid, fork},
};
use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
    path::Path,
    process::Stdio,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use storage::*;

/// One test at a time: a lock that another test's thread holds at the fork would stay held in the child for ever.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A forked child at work.
struct Forked {
    pid: Pid,
    /// What it says, and how it is told to go on.
    line: UnixStream,
}

impl Forked {
    /// Forks; the child runs `work` and ends with its result as its code, 99 for a panic.
    fn new(work: impl FnOnce(&mut UnixStream) -> u8) -> Self {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        // SAFETY: the child runs on with one thread. glibc makes malloc usable there; of the standard library it uses only
        // what takes no lock another thread may hold, and it leaves by `_exit`, so that nothing of the test harness runs.
        match unsafe { fork() }.unwrap() {
            ForkResult::Parent { child } => Self { pid: child, line: ours },
            ForkResult::Child => {
                drop(ours);
                // A child that hangs must not outlive the test.
                // SAFETY: alarm(2) only sets a timer.
                unsafe { libc::alarm(30) };
                std::panic::set_hook(Box::new(|_| {}));
                let code = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| work(&mut theirs))).unwrap_or(99);
                // SAFETY: ends the process, nothing more.
                unsafe { libc::_exit(code.into()) }
            }
        }
    }

    fn hear(&mut self) -> u8 {
        let mut byte = [0];
        self.line.read_exact(&mut byte).unwrap();
        byte[0]
    }

    fn tell(&mut self) {
        self.line.write_all(&[1]).unwrap();
    }

    fn end(self) -> i32 {
        match waitpid(self.pid, None).unwrap() {
            WaitStatus::Exited(_, code) => code,
            other => panic!("{other:?}"),
        }
    }
}

fn wait_for_word(line: &mut UnixStream) {
    let mut byte = [0];
    let _ = line.read(&mut byte);
}

fn open_records(folder: &Path) -> Arc<Shared<Records>> {
    StorageRegistry::new(folder).records(folder, &["t"]).unwrap()
}

const BYTES: Table<[u8]> = Table::new("t");

#[test]
fn a_child_that_touches_the_inherited_environment_gets_an_error() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let extents = open_extents(&folder.path().join("extents"));
    let records = open_records(&folder.path().join("records"));
    reserve(&extents, 1, "a", &[1 << 20]).unwrap();
    let reading = records.begin_read().unwrap();
    let writing = records.begin_write().unwrap();
    let deleting = extents.begin_free().unwrap();
    let parent = std::process::id();
    let child = Forked::new(|_| {
        let forked = |result: Result<()>| matches!(result, Err(Error::Forked { opened_by, .. }) if opened_by == parent);
        let refused = [
            forked(extents.locate("a:0").map(drop)),
            forked(extents.begin_reserve().map(drop)),
            forked(extents.begin_free().map(drop)),
            forked(extents.open_writer().map(drop)),
            forked(extents.sync()),
            forked(records.begin_read().map(drop)),
            forked(records.begin_write().map(drop)),
            // Transactions begun before the fork.
            forked(reading.get_bytes(&BYTES, "k").map(drop)),
            forked(writing.put_bytes(&BYTES, "k", b"v")),
            forked(writing.commit()),
            forked(deleting.delete("a:0").map(drop)),
            forked(deleting.commit()),
        ];
        drop(reading);
        refused.iter().position(|refused| !refused).map_or(0, |at| at as u8 + 1)
    });
    assert_eq!(child.end(), 0, "the number of the call that was not refused");
}

#[test]
fn a_child_that_drops_everything_it_inherited_harms_nothing() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let extents = open_extents(&folder.path().join("extents"));
    let records = open_records(&folder.path().join("records"));
    let placed = reserve(&extents, 1, "a", &[1 << 20]).unwrap();
    let writer = extents.open_writer().unwrap();
    let data = pattern(1, 1 << 20);
    writer.write_at(&placed[0], 0, &data).unwrap();
    let mapping = Mapping::side_by_side(extents.reader(), &placed).unwrap();
    let leases = LeaseFile::open(folder.path().join("leases")).unwrap();
    let exclusive = leases.try_exclusive(1).unwrap().unwrap();
    let shared = leases.try_shared(2).unwrap().unwrap();
    let reading = records.begin_read().unwrap();
    let writing = records.begin_write().unwrap();
    writing.put_bytes(&BYTES, "k", b"v").unwrap();
    let mut inherited = Some((extents, records.clone(), writer, mapping, exclusive, shared));
    let child = Forked::new(|_| {
        drop(inherited.take());
        0
    });
    assert_eq!(child.end(), 0);
    let (extents, _, writer, mapping, exclusive, shared) = inherited.unwrap();
    // The child's `drop` must not have unlocked what the parent fills under: another would free it meanwhile.
    assert!(leases.is_held_exclusively(1).unwrap());
    assert!(leases.is_held(2).unwrap());
    drop(exclusive);
    assert!(!leases.is_held(1).unwrap());
    drop(shared);
    assert!(!leases.is_held(2).unwrap());
    assert!(*mapping == data);
    drop(reading);
    writing.commit().unwrap();
    assert!(records.begin_read().unwrap().get_bytes(&BYTES, "k").unwrap().is_some());
    writer.write_at(&placed[0], 0, &data).unwrap();
    writer.sync().unwrap();
    reserve(&extents, 2, "b", &[1 << 20]).unwrap();
    extents.sync().unwrap();
}

#[test]
fn a_mapping_the_child_inherited_reads_and_its_lease_protects_while_the_child_lives() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let extents = open_extents(&folder.path().join("extents"));
    let placed = reserve(&extents, 1, "a", &[1 << 20]).unwrap();
    let data = pattern(9, 1 << 20);
    extents.open_writer().unwrap().write_at(&placed[0], 0, &data).unwrap();
    let leases = LeaseFile::open(folder.path().join("leases")).unwrap();
    let lease = leases.try_shared(1).unwrap().unwrap();
    let mapping = Mapping::side_by_side(extents.reader(), &placed).unwrap();
    let mut child = Forked::new(|line| {
        line.write_all(&[1]).unwrap();
        wait_for_word(line);
        // The parent has let go of everything by now.
        u8::from(*mapping != data)
    });
    child.hear();
    drop(mapping);
    drop(lease);
    drop(extents);
    assert!(leases.is_held(1).unwrap(), "the child still reads");
    assert!(leases.try_exclusive(1).unwrap().is_none());
    child.tell();
    assert_eq!(child.end(), 0, "the child should read what was there");
    assert!(leases.try_exclusive(1).unwrap().is_some());
}

#[test]
fn an_environment_closed_while_a_child_lives_opens_again_at_once() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_owned();
    let extents = open_extents(&path.join("extents"));
    let records = open_records(&path.join("records"));
    reserve(&extents, 1, "a", &[1 << 20]).unwrap();
    let mut child = Forked::new(|line| {
        line.write_all(&[1]).unwrap();
        wait_for_word(line);
        0
    });
    child.hear();
    drop(extents);
    drop(records);
    within(Duration::from_secs(10), move || {
        for _ in 0..3 {
            assert!(open_extents(&path.join("extents")).locate("a:0").unwrap().is_some());
            open_records(&path.join("records"));
        }
    });
    child.tell();
    assert_eq!(child.end(), 0);
}

#[test]
fn an_environment_of_a_killed_parent_opens_while_its_child_lives() {
    let _alone = alone();
    const NAME: &str = "an_environment_of_a_killed_parent_opens_while_its_child_lives";
    if let Some(folder) = child_argument() {
        let extents = open_extents(&folder);
        // The child inherits it: one made by libmdbx's own description would keep libmdbx's locks.
        let placed = reserve(&extents, 7, "mapped", &[1 << 20]).unwrap();
        let _mapping = Mapping::side_by_side(extents.reader(), &placed).unwrap();
        let _writing = extents.begin_free().unwrap();
        let mut child = Forked::new(|line| {
            line.write_all(&[1]).unwrap();
            std::thread::sleep(Duration::from_secs(20));
            0
        });
        child.hear();
        std::fs::write(folder.join("orphan"), child.pid.to_string()).unwrap();
        kill(Pid::this(), Signal::SIGKILL).unwrap();
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_owned();
    drop(open_extents(&path));
    // Not `output`: it would wait for the orphan, which inherits the pipes.
    child(NAME, &path).stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap();
    let orphan: i32 = std::fs::read_to_string(path.join("orphan")).unwrap().parse().unwrap();
    assert!(Path::new(&format!("/proc/{orphan}")).exists());
    within(Duration::from_secs(10), move || reserve(&open_extents(&path), 1, "a", &[1 << 20]).unwrap());
    kill(Pid::from_raw(orphan), Signal::SIGKILL).unwrap();
}

#[test]
fn a_child_opens_the_store_anew_for_itself() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let extents = open_extents(&folder.path().join("extents"));
    let records = open_records(&folder.path().join("records"));
    reserve(&extents, 1, "a", &[1 << 20]).unwrap();
    let child = Forked::new(|_| {
        let own = open_extents(&folder.path().join("extents"));
        assert!(own.locate("a:0").unwrap().is_some());
        reserve(&own, 2, "b", &[1 << 20]).unwrap();
        assert!(Arc::ptr_eq(&own, &open_extents(&folder.path().join("extents"))));
        let own_records = open_records(&folder.path().join("records"));
        let txn = own_records.begin_write().unwrap();
        txn.put_bytes(&BYTES, "from the child", b"v").unwrap();
        txn.commit().unwrap();
        // What it inherited stays shut.
        assert!(matches!(extents.locate("a:0"), Err(Error::Forked { .. })));
        // A grandchild too.
        let grandchild = Forked::new(|_| {
            assert!(matches!(own.locate("a:0"), Err(Error::Forked { .. })));
            u8::from(open_extents(&folder.path().join("extents")).locate("b:0").unwrap().is_none())
        });
        grandchild.end() as u8
    });
    assert_eq!(child.end(), 0);
    assert!(extents.locate("b:0").unwrap().is_some());
    assert!(records.begin_read().unwrap().get_bytes(&BYTES, "from the child").unwrap().is_some());
    reserve(&extents, 3, "c", &[1 << 20]).unwrap();
}
