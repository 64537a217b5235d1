//! Disk space: what is freed returns to the file system and stays returned.

mod common;

use common::*;
use nix::sys::signal::{Signal, kill};
use storage::*;

const CHUNK_BYTES: u64 = 100 << 20;

#[test]
fn our_builds_may_punch_and_open_files_beside_the_engine() {
    assert!(can_punch(), "libmdbx was built without -DMDBX_USE_FALLOCATE=0: {}", engine_options());
    assert!(locks_survive_own_descriptions(), "{}", engine_options());
}

#[test]
fn holes_survive_growth_and_an_exclusive_reopen() {
    let folder = tempfile::tempdir().unwrap();
    let extents = open_extents(folder.path());
    let placed = reserve(&extents, 1, "a", &[CHUNK_BYTES; 4]).unwrap();
    extents.sync().unwrap();
    let writer = extents.open_writer().unwrap();
    // The first three; the last keeps the file from shrinking.
    for extent in &placed[..3] {
        writer.punch(extent).unwrap();
    }
    let allocated = || allocated_bytes(folder.path()).unwrap();
    assert!(allocated() < CHUNK_BYTES + (4 << 20), "{} after the punch", allocated());
    // Growth, twice.
    reserve(&extents, 2, "b", &[CHUNK_BYTES; 2]).unwrap();
    assert!(allocated() < 3 * CHUNK_BYTES + (4 << 20), "{} after growth", allocated());
    drop((extents, writer));
    for round in 0..3 {
        let extents = open_extents(folder.path());
        assert!(allocated() < 3 * CHUNK_BYTES + (4 << 20), "{} after reopening {round}", allocated());
        assert!(read(&extents, &placed[1]).iter().all(|byte| *byte == 0), "a hole reads as zeros");
        assert_eq!(extents.locate("a:1").unwrap(), Some(placed[1]));
        // Its header region's first page stays, for libmdbx and for whoever finds the extent.
        assert_eq!(extents.reader().read_header(&placed[1]).unwrap().unwrap().owner, 1);
    }
}

#[test]
fn a_store_that_held_many_extents_ends_small() {
    const EXTENTS: usize = 60;
    let folder = tempfile::tempdir().unwrap();
    let mib = |what: &str| {
        let file = std::fs::metadata(folder.path().join("mdbx.dat")).unwrap().len();
        let allocated = allocated_bytes(folder.path()).unwrap();
        println!("{what}: {:.2} MiB allocated, file of {} MiB", allocated as f64 / (1 << 20) as f64, file >> 20);
        allocated
    };
    let extents = open_extents(folder.path());
    mib("empty");
    for n in 0..EXTENTS as u64 / 20 {
        reserve(&extents, n, &format!("a{n}"), &[CHUNK_BYTES; 20]).unwrap();
    }
    extents.sync().unwrap();
    mib("full");
    for n in 0..EXTENTS / 20 {
        let keys: Vec<_> = (0..20).map(|m| format!("a{n}:{m}")).collect();
        free(&extents, &keys).unwrap();
        mib("freed 20");
    }
    extents.sync().unwrap();
    let allocated = mib("synced");
    assert!(allocated < 16 << 20);
    for key in ["x", "y", "z"] {
        reserve(&extents, 9, key, &[1]).unwrap();
        mib("another commit");
        extents.sync().unwrap();
        mib("and sync");
    }
    drop(extents);
    mib("closed");
    drop(open_extents(folder.path()));
    assert!(mib("reopened") < 16 << 20);
}

#[test]
fn space_taken_by_a_reservation_that_was_killed_is_taken_by_the_next() {
    const NAME: &str = "space_taken_by_a_reservation_that_was_killed_is_taken_by_the_next";
    const SIZES: [u64; 10] = [CHUNK_BYTES; 10];
    if let Some(folder) = child_argument() {
        let extents = open_extents(&folder);
        let writer = extents.open_writer().unwrap();
        let txn = extents.begin_reserve().unwrap();
        txn.reserve(&writer, 1, BLOCK_BYTES, &specs("killed", &SIZES)).unwrap();
        kill(nix::unistd::Pid::this(), Signal::SIGKILL).unwrap();
    }
    let folder = tempfile::tempdir().unwrap();
    reserve(&open_extents(folder.path()), 1, "before", &[CHUNK_BYTES]).unwrap();
    assert!(!child(NAME, folder.path()).output().unwrap().status.success());
    let mib = |what: &str| {
        let mib = allocated_bytes(folder.path()).unwrap() >> 20;
        println!("{what}: {mib} MiB");
        mib
    };
    mib("killed");
    let extents = open_extents(folder.path());
    mib("opened again");
    assert_eq!(extents.locate("killed:0").unwrap(), None);
    reserve(&extents, 2, "next", &SIZES).unwrap();
    assert!(mib("reserved as much again") < 1104);
    let keys: Vec<_> = (0..SIZES.len()).map(|n| format!("next:{n}")).collect();
    free(&extents, &keys).unwrap();
    assert!(mib("and freed it") < 104);
}

#[test]
fn space_of_pages_that_are_nobodys_is_given_back_and_no_extents_own() {
    let folder = tempfile::tempdir().unwrap();
    let extents = open_extents(folder.path());
    let writer = extents.open_writer().unwrap();
    let allocated = || allocated_bytes(folder.path()).unwrap();
    let fill = |placed: &[Extent], seed| {
        placed.iter().for_each(|extent| writer.write_at(extent, 0, &pattern(seed, extent.data_bytes)).unwrap());
    };
    let kept = reserve(&extents, 1, "kept", &[5 << 20, 40 << 20]).unwrap();
    fill(&kept, 1);
    let punch_free = || extents.begin_free().unwrap().punch_free(&writer).unwrap();
    let whole = allocated();
    // Killed before its commit: the pages are nobody's, their space is taken.
    for sizes in [[30 << 20, 20 << 20], [1 << 20, 60 << 20]] {
        let txn = extents.begin_reserve().unwrap();
        txn.reserve(&writer, 2, BLOCK_BYTES, &specs("killed", &sizes)).unwrap();
        drop(txn);
    }
    // Of which the next reservation takes a part.
    let next = reserve(&extents, 3, "next", &[9 << 20]).unwrap();
    fill(&next, 3);
    assert!(allocated() > whole + (50 << 20), "{}", allocated());
    punch_free();
    assert!(allocated() < whole + (12 << 20), "{}", allocated());
    for (placed, seed) in [(&kept, 1), (&next, 3)] {
        placed.iter().for_each(|extent| assert!(read(&extents, extent) == pattern(seed, extent.data_bytes)));
    }
    // What a commit freed may come back with a power loss until that is synced: it stays as it is.
    let txn = extents.begin_free().unwrap();
    assert!(txn.delete("kept:1").unwrap());
    txn.commit().unwrap();
    punch_free();
    assert!(read(&extents, &kept[1]) == pattern(1, kept[1].data_bytes));
    extents.sync().unwrap();
    punch_free();
    assert!(allocated() < (5 << 20) + (9 << 20) + (4 << 20), "{}", allocated());
    extents.check_structure().unwrap();
    reserve(&extents, 4, "again", &[70 << 20]).unwrap();
    extents.check_structure().unwrap();
    assert!(read(&extents, &kept[0]) == pattern(1, kept[0].data_bytes));
}
