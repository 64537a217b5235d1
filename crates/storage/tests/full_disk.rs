//! A full disk: always an error with a name, never SIGBUS, and always a way to free something.
//!
//! Each test runs as a child process on a small disk of its own, so that a SIGBUS shows as its death.

mod common;

use common::*;
use std::{
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
    process::Command,
};
use storage::*;

const DISK_BYTES: u64 = 256 << 20;
const BALLAST_BYTES: u64 = 16 << 20;
const BYTES: Table<[u8]> = Table::new("t");

/// Mounts ext4 on a file where we may use loop devices, and says so; tmpfs else.
fn mount_small_disk(folder: &Path, ext4: bool, bytes: u64) -> Option<PathBuf> {
    let disk = folder.join("disk");
    fs::create_dir_all(&disk).unwrap();
    let run = |program: &str, arguments: &[&str]| {
        Command::new(program).args(arguments).output().is_ok_and(|output| output.status.success())
    };
    let target = disk.to_str().unwrap();
    let mounted = if ext4 {
        let image = folder.join("image");
        File::create(&image).unwrap().set_len(bytes).unwrap();
        let image = image.to_str().unwrap();
        // Blocks as on a large disk, and none kept for root, which we may be.
        run("mkfs.ext4", &["-q", "-b", "4096", "-m", "0", image]) && run("mount", &["-o", "loop", image, target])
    } else {
        run("mount", &["-t", "tmpfs", "-o", &format!("size={bytes}"), "tmpfs", target])
    };
    if !mounted {
        println!("SKIPPED: no {} may be mounted here", if ext4 { "ext4" } else { "tmpfs" });
    }
    mounted.then_some(disk)
}

/// Runs `work` on a small disk of either kind, in a child.
fn on_small_disks(name: &str, work: impl Fn(&Path)) {
    on_disks_of(DISK_BYTES, name, work);
}

fn on_disks_of(bytes: u64, name: &str, work: impl Fn(&Path)) {
    if let Some(folder) = child_argument() {
        if let Some(disk) = mount_small_disk(&folder, folder.ends_with("ext4"), bytes) {
            work(&disk);
        }
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    for kind in ["ext4", "tmpfs"] {
        let folder = folder.path().join(kind);
        fs::create_dir(&folder).unwrap();
        run_in_mount_namespace(name, &folder);
    }
}

/// Writes a file until the disk has `left_bytes` free, to the last block for 0.
fn fill_disk(disk: &Path, left_bytes: u64) {
    let mut filler = File::options().create(true).append(true).open(disk.join("filler")).unwrap();
    let mut piece = vec![0xAB; 1 << 20];
    loop {
        let room = free_bytes(disk).unwrap().saturating_sub(left_bytes);
        if room == 0 && left_bytes > 0 {
            break;
        }
        if room < piece.len() as u64 {
            piece.truncate((room.max(4096) as usize).next_multiple_of(4096).min(piece.len()));
        }
        match filler.write(&piece) {
            Ok(_) => {}
            Err(_) if piece.len() > 4096 => piece.truncate(4096),
            Err(_) => break,
        }
    }
    // Delayed allocation counts only once it is done.
    filler.sync_all().unwrap_or_default();
}

fn empty_filler(disk: &Path) {
    let _ = fs::remove_file(disk.join("filler"));
    // The blocks of a removed file come back a little later on ext4.
    nix::unistd::sync();
}

fn open_records(folder: &Path) -> std::sync::Arc<Shared<Records>> {
    StorageRegistry::new(folder).records(folder, &["t"]).unwrap()
}

fn put(records: &Records, key: &str, bytes: usize) -> Result<()> {
    let txn = records.begin_write()?;
    txn.put_bytes(&BYTES, key, &vec![7; bytes])?;
    txn.commit()
}

fn assert_no_space<T>(result: Result<T>, what: &str) {
    match result {
        Err(error) => assert!(error.is_no_space(), "{what}: {error:?}"),
        Ok(_) => panic!("{what} should find no space"),
    }
}

#[test]
fn a_reservation_larger_than_the_disk_takes_nothing() {
    on_small_disks("a_reservation_larger_than_the_disk_takes_nothing", |disk| {
        let extents = open_extents(&disk.join("extents"));
        let kept = reserve(&extents, 1, "kept", &[20 << 20]).unwrap();
        let data = pattern(1, 20 << 20);
        extents.open_writer().unwrap().write_at(&kept[0], 0, &data).unwrap();
        extents.sync().unwrap();
        let before = (free_bytes(disk).unwrap(), allocated_bytes(disk).unwrap());
        for round in 0..3 {
            assert_no_space(reserve(&extents, 2, "huge", &[100 << 20; 4]), "400 MiB on 256");
            assert_eq!(extents.locate("huge:0").unwrap(), None);
            let after = (free_bytes(disk).unwrap(), allocated_bytes(disk).unwrap());
            assert!(after.0 + (1 << 20) >= before.0, "round {round}: {before:?} became {after:?}");
            assert!(after.1 <= before.1 + (1 << 20), "round {round}: {before:?} became {after:?}");
        }
        // The environment goes on, in this process and in a new opening.
        reserve(&extents, 3, "fits", &[50 << 20]).unwrap();
        assert!(read(&extents, &kept[0]) == data);
        drop(extents);
        let extents = open_extents(&disk.join("extents"));
        assert!(extents.locate("fits:0").unwrap().is_some());
        assert!(read(&extents, &kept[0]) == data);
    });
}

#[test]
fn with_little_room_left_nothing_is_begun() {
    on_small_disks("with_little_room_left_nothing_is_begun", |disk| {
        let extents = open_extents(&disk.join("extents"));
        reserve(&extents, 1, "a", &[1 << 20]).unwrap();
        fill_disk(disk, 15 << 20);
        assert_no_space(extents.begin_reserve().map(drop), "a reservation");
        extents.begin_free().unwrap();
        let registry = StorageRegistry::new(disk);
        assert_no_space(
            registry.extents(&registry.folder("new"), TABLE, storage::Alignment::LargePage).map(drop),
            "a new environment of extents",
        );
        assert_no_space(registry.records(&registry.folder("new records"), &["t"]).map(drop), "one of records");
        fill_disk(disk, 3 << 20);
        assert_no_space(extents.begin_free().map(drop), "a free");
        empty_filler(disk);
        // Each small extent dirties a block of its own before its space is taken.
        fill_disk(disk, 17 << 20);
        assert_no_space(reserve(&extents, 1, "many", &[1; 6000]), "6000 small extents");
        empty_filler(disk);
        reserve(&extents, 2, "b", &[1 << 20]).unwrap();
    });
}

#[test]
fn at_no_level_of_free_space_does_a_step_kill_the_process() {
    on_small_disks("at_no_level_of_free_space_does_a_step_kill_the_process", |disk| {
        let folder = disk.join("extents");
        let mut extents = open_extents(&folder);
        let records = open_records(&disk.join("records"));
        // Something to reuse, and a list of free pages.
        for n in 0..8 {
            reserve(&extents, n, &format!("old{n}"), &[4 << 20]).unwrap();
        }
        for n in (0..8).step_by(2) {
            free(&extents, &[format!("old{n}:0")]).unwrap();
        }
        extents.sync().unwrap();
        let levels = [40 << 20, 33 << 20, 24 << 20, 18 << 20, (16 << 20) + 8192, 9 << 20, (4 << 20) + 8192, 1 << 20, 4096, 0];
        for (n, left) in levels.into_iter().enumerate() {
            fill_disk(disk, left);
            // Of another size each time: first pages that an earlier try left behind have their blocks already.
            let size = (5 << 20) + n as u64 * (192 << 10);
            let reserved = reserve(&extents, n as u64, &format!("new{n}"), &[size; 5]);
            let written = put(&records, &format!("key{n}"), 300_000);
            let freed = free(
                &extents,
                &[format!("old{}:0", 2 * (n % 4) + 1)]
                    .map(|key| match extents.locate(&key) {
                        Ok(Some(_)) => key,
                        _ => "old".to_owned(),
                    })
                    .into_iter()
                    .filter(|key| key != "old")
                    .collect::<Vec<_>>(),
            );
            let synced = extents.sync();
            for (what, result) in [("reserve", reserved.map(drop)), ("put", written), ("free", freed), ("sync", synced)] {
                if let Err(error) = result {
                    assert!(error.is_no_space(), "{what} with {left} free: {error:?}");
                }
            }
            drop(extents);
            let ballast = Ballast::new(disk.join("ballast"), BALLAST_BYTES);
            let _room = ballast.give_up_if_needed().unwrap();
            match StorageRegistry::new(disk).extents(&folder, TABLE, storage::Alignment::LargePage) {
                Ok(reopened) => extents = reopened,
                Err(error) => {
                    assert!(error.is_no_space(), "open with {left} free: {error:?}");
                    empty_filler(disk);
                    extents = open_extents(&folder);
                }
            }
        }
        empty_filler(disk);
        reserve(&extents, 1, "after", &[20 << 20]).unwrap();
        put(&records, "after", 300_000).unwrap();
    });
}

#[cfg(feature = "fail-points")]
#[path = "full_disk/steps.rs"]
mod steps;

/// A store as it may stand when the disk fills up.
fn full_store(disk: &Path) -> Vec<u8> {
    let extents = open_extents(&disk.join("extents"));
    let records = open_records(&disk.join("records"));
    Ballast::new(disk.join("ballast"), BALLAST_BYTES).take().unwrap();
    let placed = reserve(&extents, 1, "a", &[40 << 20, 40 << 20]).unwrap();
    let data = pattern(1, 40 << 20);
    let writer = extents.open_writer().unwrap();
    writer.write_at(&placed[0], 0, &data).unwrap();
    writer.sync().unwrap();
    extents.sync().unwrap();
    put(&records, "row", 1000).unwrap();
    data
}

#[test]
fn a_store_on_a_full_disk_opens_and_reads_in_the_room_of_its_ballast() {
    on_small_disks("a_store_on_a_full_disk_opens_and_reads_in_the_room_of_its_ballast", |disk| {
        let data = full_store(disk);
        fill_disk(disk, 0);
        assert_eq!(free_bytes(disk).unwrap(), 0);
        let registry = StorageRegistry::new(disk);
        // Its lock file was emptied at the last close and has no block to be mapped from.
        assert_no_space(
            registry.extents(&disk.join("extents"), TABLE, storage::Alignment::LargePage).map(drop),
            "an opening without room",
        );
        assert_no_space(registry.records(&disk.join("records"), &["t"]).map(drop), "an opening without room");
        let ballast = Ballast::new(disk.join("ballast"), BALLAST_BYTES);
        for _ in 0..3 {
            let room = ballast.give_up_if_needed().unwrap();
            let extents = open_extents(&disk.join("extents"));
            let records = open_records(&disk.join("records"));
            drop(room);
            fill_disk(disk, 0);
            let extent = extents.locate("a:0").unwrap().unwrap();
            assert!(*Mapping::side_by_side(extents.reader(), &[extent]).unwrap() == data);
            assert!(records.begin_read().unwrap().get_bytes(&BYTES, "row").unwrap().is_some());
            assert_no_space(extents.begin_reserve().map(drop), "a reservation");
            assert_no_space(extents.begin_free().map(drop), "a free");
        }
    });
}

#[test]
fn the_ballast_lets_a_full_disk_be_freed() {
    on_small_disks("the_ballast_lets_a_full_disk_be_freed", |disk| {
        full_store(disk);
        let extents = open_extents(&disk.join("extents"));
        let records = open_records(&disk.join("records"));
        fill_disk(disk, 0);
        let ballast = Ballast::new(disk.join("ballast"), BALLAST_BYTES);
        // Looking in without freeing anything must leave a ballast for the next time, also if the disk fills up again.
        for _ in 0..2 {
            drop(ballast.give_up_if_needed().unwrap());
            assert!(allocated_bytes(disk).unwrap() > 0 && disk.join("ballast").exists());
            fill_disk(disk, 0);
        }
        {
            let _room = ballast.give_up_if_needed().unwrap();
            put(&records, "doomed", 1000).unwrap();
            free(&extents, &["a:0".to_owned(), "a:1".to_owned()]).unwrap();
            extents.sync().unwrap();
        }
        let free_now = free_bytes(disk).unwrap();
        assert!(free_now > 60 << 20, "{free_now} B free after 80 MiB were freed");
        reserve(&extents, 2, "b", &[30 << 20]).unwrap();
        put(&records, "after", 100_000).unwrap();
        ballast.take().unwrap();
        assert!(fs::metadata(disk.join("ballast")).is_ok());
    });
}

#[test]
fn records_on_a_full_disk_refuse_and_go_on_once_there_is_room() {
    on_small_disks("records_on_a_full_disk_refuse_and_go_on_once_there_is_room", |disk| {
        let records = open_records(&disk.join("records"));
        put(&records, "before", 1000).unwrap();
        fill_disk(disk, 0);
        let mut refused = 0;
        for n in 0..6 {
            // Larger than any block that might be left over.
            match put(&records, &format!("full{n}"), 3 << 20) {
                Ok(()) => {}
                Err(error) => {
                    assert!(error.is_no_space(), "put {n}: {error:?}");
                    refused += 1;
                }
            }
        }
        assert!(refused > 0, "18 MiB on a full disk");
        assert!(records.begin_read().unwrap().get_bytes(&BYTES, "before").unwrap().is_some());
        empty_filler(disk);
        put(&records, "after", 3 << 20).unwrap();
        drop(records);
        let records = open_records(&disk.join("records"));
        let txn = records.begin_read().unwrap();
        assert_eq!(txn.get_bytes(&BYTES, "after").unwrap().map(|bytes| bytes.len()), Some(3 << 20));
        assert!(txn.get_bytes(&BYTES, "before").unwrap().is_some());
    });
}
