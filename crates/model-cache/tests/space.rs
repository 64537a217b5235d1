//! A disk that is full, or fills up: told before the first byte where it can be, never a SIGBUS, and removing always works.
//!
//! Each test runs as a child of itself on a small disk of its own, so that a signal shows as its death.

mod common;

use common::*;
use hub_fixture::{Content, Fault, File, Target};
use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
};
use tabagent_model_cache::*;

#[test]
fn child() {
    obey();
}

/// The folder of a disk of 200 MiB in the child, `None` in the parent.
fn small_disk(name: &str) -> Option<PathBuf> {
    in_mount_namespace(name, r#"mount -t tmpfs -o size=200M tmpfs "$DIR""#)
}

/// Writes a file until the disk has no byte left.
fn fill(disk: &Path) -> PathBuf {
    let path = disk.join("filler");
    let mut file = fs::File::create(&path).unwrap();
    for bytes in [1 << 20, 4096] {
        let zeros = vec![1; bytes];
        while file.write_all(&zeros).is_ok() {}
    }
    assert_eq!(storage::free_bytes(disk).unwrap(), 0);
    path
}

fn import(cache: &ModelCache, repo: &str, seed: u64, size: u64) -> Result<ImportReport> {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let path = dir.path().join("file");
    fs::write(&path, Content::seeded(seed, size).read(0..size).unwrap()).unwrap();
    cache.import(repo, &[path], &ImportOptions::default())
}

#[tokio::test]
async fn a_repair_without_room_for_a_second_copy_says_of_which_file() {
    use std::os::unix::fs::FileExt;
    let Some(disk) = small_disk("a_repair_without_room_for_a_second_copy_says_of_which_file") else { return };
    let hub = hub(1, 120 * MIB);
    let cache = cache(&disk.join("store"), &hub);
    cache.pull(REPO).all(true).run().await.unwrap();
    let file = cache.open_file(REPO, "model.gguf").unwrap();
    let at = file.placement().unwrap().offset_of(7..8).unwrap();
    let data = fs::File::options().write(true).open(disk.join("store/model_cache_chunks/mdbx.dat")).unwrap();
    data.write_all_at(&[!file[7]], at).unwrap();
    drop(file);
    let report = cache.repair(None).run().await.unwrap();
    let RepairOutcome::Failed { kind, message } = &report.damaged[0].outcome else { panic!("{report:?}") };
    assert_eq!(*kind, ErrorKind::NoSpace, "{message}");
    assert!(message.contains(&format!("{REPO} model.gguf")) && !message.contains('@'), "{message}");
}

#[tokio::test]
async fn a_pull_that_does_not_fit_is_refused_before_its_first_byte() {
    let Some(disk) = small_disk("a_pull_that_does_not_fit_is_refused_before_its_first_byte") else { return };
    let hub = hub(1, 300 * MIB);
    let cache = cache(&disk.join("store"), &hub);
    let (sink, events) = events();
    let error = cache.pull(REPO).all(true).on_event(Some(sink)).run().await.unwrap_err();
    assert!(
        matches!(&error, Error::NoSpace { what, needed_bytes, .. } if what.contains(REPO) && *needed_bytes == 300 * MIB + 2),
        "{error}"
    );
    assert_eq!(error.kind(), ErrorKind::NoSpace);
    assert_one_end(&events);
    assert_eq!(hub.bytes_served(), 0);
    assert_eq!(cache.stats().unwrap().filling_bytes, 0);
    // What fits is pulled as ever.
    hub.push(REPO, "main", [File::new("model.gguf", Content::seeded(2, 90 * MIB))]);
    cache.pull(REPO).all(true).run().await.unwrap();
    assert!(holds(&cache, REPO, "model.gguf", &Content::seeded(2, 90 * MIB)));
    assert_sound(&cache);
    let error = import(&cache, "org/local", 5, 150 * MIB).unwrap_err();
    assert!(matches!(&error, Error::NoSpace { what, .. } if what.contains("org/local")), "{error}");
    assert_eq!(cache.stats().unwrap().filling_bytes, 0);
    assert_sound(&cache);
}

#[tokio::test]
async fn a_disk_that_fills_up_during_a_pull_costs_nothing_that_was_reserved() {
    let Some(disk) = small_disk("a_disk_that_fills_up_during_a_pull_costs_nothing_that_was_reserved") else { return };
    let hub = hub(1, 60 * MIB);
    hub.faults().always(Target::path("model.gguf").cdn(), Fault::SlowBytesPerSecond(24 * MIB));
    let cache = cache(&disk.join("store"), &hub);
    let (sink, events) = events();
    let filling = async {
        // Once its bytes arrive, its space is its own; the small file's come before that.
        let arrives = |event: &EventKind| matches!(event, EventKind::Progress { path, .. } if path == "model.gguf");
        while !events.lock().unwrap().iter().any(arrives) {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        fill(&disk)
    };
    let (result, filler) = tokio::join!(cache.pull(REPO).all(true).on_event(Some(sink)).run(), filling);
    match result {
        Ok(_) => println!("it was sealed on a full disk"),
        Err(error) => {
            println!("it ended with: {error}: {:?}", std::error::Error::source(&error).map(ToString::to_string));
            assert_eq!(error.kind(), ErrorKind::NoSpace, "{error:?}");
        }
    }
    fs::remove_file(filler).unwrap();
    hub.clear_log();
    cache.pull(REPO).all(true).run().await.unwrap();
    assert!(hub.bytes_served() <= 5 * BLOCK, "{}", hub.bytes_served());
    assert!(holds(&cache, REPO, "model.gguf", &Content::seeded(1, 60 * MIB)));
    assert_sound(&cache);
}

#[test]
fn a_removal_on_a_full_disk_works_and_gives_space_back() {
    let Some(disk) = small_disk("a_removal_on_a_full_disk_works_and_gives_space_back") else { return };
    let store = disk.join("store");
    let cache = local(&store);
    for n in 0..3 {
        import(&cache, &format!("org/n{n}"), n, 30 * MIB).unwrap();
    }
    fill(&disk);
    // Reading works as ever; what would write says why it can't.
    assert!(holds(&cache, "org/n0", "file", &Content::seeded(0, 30 * MIB)));
    for size in [1000, 10 * MIB] {
        let error = import(&cache, "org/more", 9, size).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NoSpace, "{size}: {error:?}");
    }
    let removed = cache.delete_model("org/n0").unwrap();
    assert_eq!(removed.freed_bytes, 30 * MIB);
    assert!(storage::free_bytes(&disk).unwrap() >= 10 * MIB, "{}", storage::free_bytes(&disk).unwrap());
    // Full again, and again, by a store opened anew.
    drop(cache);
    fs::rename(disk.join("filler"), disk.join("filler0")).unwrap();
    fill(&disk);
    let cache = local(&store);
    assert_eq!(cache.delete_model("org/n1").unwrap().freed_bytes, 30 * MIB);
    assert!(holds(&cache, "org/n2", "file", &Content::seeded(2, 30 * MIB)));
    fs::remove_file(disk.join("filler")).unwrap();
    fs::remove_file(disk.join("filler0")).unwrap();
    import(&cache, "org/more", 9, 30 * MIB).unwrap();
    assert_sound(&cache);
}

#[test]
fn a_new_store_on_a_full_disk_is_refused_for_lack_of_space() {
    let Some(disk) = small_disk("a_new_store_on_a_full_disk_is_refused_for_lack_of_space") else { return };
    let filler = fill(&disk);
    for left in [0, 64 << 10, MIB, 5 * MIB, 9 * MIB, 12 * MIB, 20 * MIB, 40 * MIB, 60 * MIB] {
        let file = fs::File::options().write(true).open(&filler).unwrap();
        file.set_len(file.metadata().unwrap().len().min(200 * MIB - left)).unwrap();
        let store = disk.join(format!("store{left}"));
        match ModelCache::open(&store) {
            Ok(cache) => {
                println!("{left}: opened");
                assert_eq!(cache.stats().unwrap().files, 0);
                let _ = import(&cache, "org/a", 1, 1000);
                let _ = import(&cache, "org/a", 2, 3 * MIB);
            }
            Err(error) => {
                println!("{left}: {error}");
                assert_eq!(error.kind(), ErrorKind::NoSpace, "{left}: {error:?}");
            }
        }
        let _ = fs::remove_dir_all(store);
    }
}

#[test]
fn an_existing_store_on_a_full_disk_opens_or_says_why_not() {
    let Some(disk) = small_disk("an_existing_store_on_a_full_disk_opens_or_says_why_not") else { return };
    let store = disk.join("store");
    import(&local(&store), "org/a", 1, 20 * MIB).unwrap();
    for ballast in [true, false] {
        if !ballast {
            fs::remove_file(store.join("ballast")).unwrap();
        }
        fill(&disk);
        match ModelCache::builder(&store).offline(true).open() {
            Ok(cache) => assert!(holds(&cache, "org/a", "file", &Content::seeded(1, 20 * MIB))),
            Err(error) => {
                assert!(!ballast, "with its ballast it opens: {error}");
                assert_eq!(error.kind(), ErrorKind::NoSpace, "{error:?}");
            }
        }
        fs::remove_file(disk.join("filler")).unwrap();
        let cache = local(&store);
        assert_sound(&cache);
    }
}

#[test]
fn an_import_that_does_not_fit_is_refused_before_any_space_is_taken() {
    let Some(disk) = small_disk("an_import_that_does_not_fit_is_refused_before_any_space_is_taken") else { return };
    let store = disk.join("store");
    let cache = local(&store);
    import(&cache, "org/here", 1, 10 * MIB).unwrap();
    let before = storage::allocated_bytes(&store).unwrap();
    for size in [190 * MIB, 1 << 40, 7 << 40, 10 << 40, 1 << 40] {
        let path = disk.join("sparse");
        fs::File::create(&path).unwrap().set_len(size).unwrap();
        let error = cache.import("org/local", &[path], &ImportOptions::default()).unwrap_err();
        assert!(
            matches!(&error, Error::NoSpace { what, needed_bytes, .. } if what.contains("sparse") && *needed_bytes >= size),
            "{size}: {error:?}"
        );
        let stats = cache.stats().unwrap();
        assert_eq!((stats.filling_bytes, stats.doomed_bytes), (0, 0), "{size}");
        // The row that came and went may cost the records a page.
        let after = storage::allocated_bytes(&store).unwrap();
        assert!(after <= before + (256 << 10), "{size}: the store took {before} B before, {after} B after");
    }
    // What fits is imported as ever.
    import(&cache, "org/local", 2, 90 * MIB).unwrap();
    assert_sound(&cache);
}

#[tokio::test]
async fn a_pull_that_has_its_space_goes_on_with_less_free_than_a_reservation_needs() {
    let Some(disk) = small_disk("a_pull_that_has_its_space_goes_on_with_less_free_than_a_reservation_needs") else { return };
    let store = disk.join("store");
    let hub = hub(1, 60 * MIB);
    let slow = hub.faults().always(Target::path("model.gguf").cdn(), Fault::SlowBytesPerSecond(24 * MIB));
    {
        let cache = cache(&store, &hub);
        let landed = async {
            while hub.bytes_served() < 30 * MIB {
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
        };
        tokio::select! {
            result = cache.pull(REPO).all(true).run() => panic!("it ended: {result:?}"),
            () = landed => {}
        }
    }
    hub.faults().remove(slow);
    let filler = fill(&disk);
    let file = fs::File::options().write(true).open(&filler).unwrap();
    file.set_len(file.metadata().unwrap().len() - 10 * MIB).unwrap();
    let free_bytes = storage::free_bytes(&disk).unwrap();
    assert!((9 * MIB..16 * MIB).contains(&free_bytes), "{free_bytes}");
    hub.clear_log();
    let cache = cache(&store, &hub);
    cache.pull(REPO).all(true).run().await.unwrap();
    assert!(hub.bytes_served() < 50 * MIB, "{}", hub.bytes_served());
    assert!(holds(&cache, REPO, "model.gguf", &Content::seeded(1, 60 * MIB)));
    assert_sound(&cache);
}

#[test]
fn ranges_the_disk_has_no_room_for_are_not_gathered_and_leave_nothing_behind() {
    let Some(disk) = small_disk("ranges_the_disk_has_no_room_for_are_not_gathered_and_leave_nothing_behind") else { return };
    let store = disk.join("store");
    let cache = local(&store);
    import(&cache, "org/a", 1, 60 * MIB).unwrap();
    let file = cache.get_file("org/a", "file").unwrap().unwrap();
    let range = 1..50 * MIB;
    let gather = || cache.gather(&file, std::slice::from_ref(&range)).unwrap();
    let filler = fill(&disk);
    assert!(gather().is_none());
    // Room for the records, and for part of it.
    for free in [MIB, 30 * MIB] {
        let size = fs::metadata(&filler).unwrap().len();
        fs::File::options().write(true).open(&filler).unwrap().set_len(size - free).unwrap();
        assert!(gather().is_none());
        let stats = cache.stats().unwrap();
        assert_eq!((stats.derived_bytes, stats.filling_bytes, stats.doomed_bytes), (0, 0, 0), "with {free} bytes free");
    }
    fs::remove_file(&filler).unwrap();
    let gathered = gather().unwrap();
    assert_eq!(gathered.size_bytes(), range.end - range.start);
    assert_sound(&cache);
}

/// The least a file takes of a disk.
const PAGE: u64 = 4 << 10;

/// Names in a folder, sorted.
fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Leaves `bytes` of the disk free, rounded down to pages.
fn leave(disk: &Path, bytes: u64) {
    let _ = fs::remove_file(disk.join("filler"));
    let filler = fill(disk);
    let file = fs::File::options().write(true).open(filler).unwrap();
    file.set_len(file.metadata().unwrap().len() - bytes).unwrap();
}

/// Files by the sizes of `sizes`, imported as `repo` into a store beside the disk.
fn store_beside(dir: &Path, sizes: &[u64]) -> ModelCache {
    let source = dir.join("source");
    fs::create_dir_all(&source).unwrap();
    for (n, &size) in sizes.iter().enumerate() {
        fs::write(source.join(n.to_string()), Content::seeded(n as u64, size).read(0..size).unwrap()).unwrap();
    }
    let cache = local(&dir.join("store"));
    cache.import("org/a", &[source], &ImportOptions::default()).unwrap();
    cache
}

/// That `error` is of a disk with less room than is needed.
fn assert_full(error: &Error, left: u64) {
    assert_eq!(error.kind(), ErrorKind::NoSpace, "{left}: {error:?}");
    assert!(
        matches!(error, Error::TargetFull { needed_bytes, free_bytes, .. } if free_bytes < needed_bytes),
        "{left}: {error:?}"
    );
    assert!(error.hint().is_some_and(|hint| hint.contains("make room")));
}

#[test]
fn a_restore_asks_for_the_room_it_takes_and_makes_nothing_without_it() {
    let Some(disk) = small_disk("a_restore_asks_for_the_room_it_takes_and_makes_nothing_without_it") else { return };
    for sizes in [&[40 * MIB, 3 * MIB, 70_000, 900][..], &[900, 60_000, 0], &[60_000; 500], &[120 * MIB]] {
        let beside = tempfile::tempdir().unwrap();
        let (backup, target) = (beside.path().join("backup"), disk.join("restored"));
        store_beside(beside.path(), sizes).backup(&backup, &BackupOptions::default()).unwrap();
        let restore = || ModelCache::restore(&backup, &target, &RestoreOptions::default());
        leave(&disk, 0);
        let error = restore().unwrap_err();
        let Error::TargetFull { needed_bytes, .. } = error else { panic!("{error:?}") };
        // Records, 4 MiB of spare, and 16 MiB that must be free; beside small files alone the 8 MiB an open asks for.
        let content_bytes = sizes.iter().sum::<u64>();
        let most_bytes = if sizes[0] > MIB { content_bytes + 22 * MIB } else { (content_bytes + 11 * MIB).max(17 * MIB) };
        assert!(needed_bytes <= most_bytes, "{needed_bytes} B needed for {content_bytes} B");
        leave(&disk, needed_bytes - PAGE);
        assert_full(&restore().unwrap_err(), needed_bytes - PAGE);
        assert_eq!(names(&disk), ["filler"], "nothing was made");
        leave(&disk, needed_bytes + PAGE);
        restore().unwrap();
        assert_eq!(names(&disk), ["filler", "restored"]);
        let cache = local(&target);
        assert_sound(&cache);
        for (n, &size) in sizes.iter().enumerate() {
            assert!(holds(&cache, "org/a", &n.to_string(), &Content::seeded(n as u64, size)));
        }
        drop(cache);
        fs::remove_dir_all(&target).unwrap();
    }
}

/// What an export or a backup is of.
const SIZES: [u64; 5] = [3 * MIB, 7 * MIB + 1, 100_000, 200, 2 * MIB];

/// Levels of room, from none to more than all of [`SIZES`] takes.
fn levels() -> impl Iterator<Item = u64> {
    (0..28).map(|n| n * MIB / 2).chain([PAGE, 2 * PAGE, 3 * MIB + PAGE, 12 * MIB + 40 * PAGE])
}

/// That each file in `folder` is the one the store has, and how many there are.
fn assert_whole(folder: &Path) -> usize {
    let there = names(folder);
    for name in &there {
        let n: usize = name.parse().unwrap_or_else(|_| panic!("{name} is left"));
        let expected = Content::seeded(n as u64, SIZES[n]).read(0..SIZES[n]).unwrap();
        assert!(fs::read(folder.join(name)).unwrap() == *expected, "{name} is half");
    }
    there.len()
}

#[test]
fn an_export_with_any_room_is_whole_or_refused_before_it_writes() {
    let Some(disk) = small_disk("an_export_with_any_room_is_whole_or_refused_before_it_writes") else { return };
    let beside = tempfile::tempdir().unwrap();
    let cache = store_beside(beside.path(), &SIZES);
    let to = disk.join("out");
    let export = |options: &ExportOptions| cache.export("org/a", &[], &to, options);
    let (mut done, mut refused) = (0, 0);
    for left in levels() {
        leave(&disk, left);
        match export(&ExportOptions::default()) {
            Ok(_) => done += 1,
            Err(error) => {
                assert_full(&error, left);
                assert!(
                    matches!(&error, Error::TargetFull { path, needed_bytes, .. }
                    if *path == to && (SIZES.iter().sum::<u64>()..13 * MIB).contains(needed_bytes)),
                    "{error:?}"
                );
                assert!(!to.exists(), "{left}: {:?}", names(&to));
                refused += 1;
                fs::remove_file(disk.join("filler")).unwrap();
                export(&ExportOptions::default()).unwrap();
            }
        }
        assert_eq!(assert_whole(&to), SIZES.len());
        fs::remove_dir_all(&to).unwrap();
    }
    assert!(done > 2 && refused > 20, "{done} done, {refused} refused");
    // What is replaced gives its room to the next: that of the largest is enough.
    let force = ExportOptions { force: true, ..ExportOptions::default() };
    leave(&disk, 20 * MIB);
    export(&force).unwrap();
    leave(&disk, 7 * MIB - PAGE);
    assert_full(&export(&force).unwrap_err(), 7 * MIB);
    assert_eq!(assert_whole(&to), SIZES.len());
    leave(&disk, 7 * MIB + 4 * PAGE);
    assert_eq!(export(&force).unwrap().files, SIZES.len() as u64);
    // Not where it has another name, which keeps it.
    fs::hard_link(to.join("0"), disk.join("kept")).unwrap();
    fs::hard_link(to.join("1"), disk.join("kept too")).unwrap();
    leave(&disk, 7 * MIB + 4 * PAGE);
    assert_full(&export(&force).unwrap_err(), 7 * MIB);
    assert_eq!(assert_whole(&to), SIZES.len());
}

#[test]
fn a_disk_that_another_program_fills_leaves_whole_files_of_an_export_and_the_next_one_ends_it() {
    const NAME: &str = "a_disk_that_another_program_fills_leaves_whole_files_of_an_export_and_the_next_one_ends_it";
    let Some(disk) = small_disk(NAME) else { return };
    let beside = tempfile::tempdir().unwrap();
    let cache = store_beside(beside.path(), &SIZES);
    let to = disk.join("out");
    for call in 0..8 {
        let (count, folder) = (std::sync::atomic::AtomicU32::new(0), disk.clone());
        let progress: ProgressCallback = std::sync::Arc::new(move |_, _| {
            if count.fetch_add(1, std::sync::atomic::Ordering::Relaxed) == call {
                fill(&folder);
            }
        });
        let error = cache.export("org/a", &[], &to, &ExportOptions { progress: Some(progress), ..ExportOptions::default() });
        assert_full(&error.unwrap_err(), call.into());
        assert!(!to.exists() || assert_whole(&to) < SIZES.len());
        fs::remove_file(disk.join("filler")).unwrap();
        cache.export("org/a", &[], &to, &ExportOptions { force: true, ..ExportOptions::default() }).unwrap();
        assert_eq!(assert_whole(&to), SIZES.len());
        fs::remove_dir_all(&to).unwrap();
    }
}

#[test]
fn a_backup_with_any_room_is_whole_or_leaves_the_snapshot_before_and_the_next_one_ends_well() {
    const NAME: &str = "a_backup_with_any_room_is_whole_or_leaves_the_snapshot_before_and_the_next_one_ends_well";
    let Some(disk) = small_disk(NAME) else { return };
    let beside = tempfile::tempdir().unwrap();
    let cache = local(&beside.path().join("store"));
    import(&cache, "org/before", 9, MIB).unwrap();
    let (backup, before) = (disk.join("backup"), beside.path().join("before"));
    cache.backup(&before, &BackupOptions::default()).unwrap();
    drop(cache);
    let cache = store_beside(beside.path(), &SIZES);
    let check = || ModelCache::check_backup(&backup, &CheckOptions::default()).unwrap();
    let (mut done, mut refused) = (0, 0);
    // Full before, and filled at one of the first calls of its progress.
    for (left, call) in levels().map(|left| (left, None)).chain((0..3).map(|call| (60 * MIB, Some(call)))) {
        let _ = fs::remove_file(disk.join("filler"));
        let _ = fs::remove_dir_all(&backup);
        assert!(std::process::Command::new("cp").arg("-r").args([&before, &backup]).status().unwrap().success());
        leave(&disk, left);
        let (count, folder) = (std::sync::atomic::AtomicU32::new(0), disk.clone());
        let progress: ProgressCallback = std::sync::Arc::new(move |_, _| {
            if Some(count.fetch_add(1, std::sync::atomic::Ordering::Relaxed)) == call {
                fs::remove_file(folder.join("filler")).unwrap();
                fill(&folder);
            }
        });
        let options = BackupOptions { progress: Some(progress), ..BackupOptions::default() };
        match cache.backup(&backup, &options) {
            Ok(_) => done += 1,
            Err(error) => {
                assert_full(&error, left);
                let checked = check();
                assert_eq!((checked.snapshots, checked.files, checked.bad), (vec![1], 1, vec![]), "{left}");
                refused += 1;
                fs::remove_file(disk.join("filler")).unwrap();
                cache.backup(&backup, &BackupOptions::default()).unwrap();
            }
        }
        let checked = check();
        assert_eq!((checked.snapshots, checked.files, checked.bad), (vec![1, 2], 1 + SIZES.len() as u64, vec![]), "{left}");
        assert!(names(&backup.join("blobs")).iter().all(|name| !name.ends_with(".part")));
    }
    assert!(done > 2 && refused > 20, "{done} done, {refused} refused");
}

#[test]
fn root_opens_reads_and_removes_where_it_has_filled_what_the_disk_keeps_for_it() {
    const NAME: &str = "root_opens_reads_and_removes_where_it_has_filled_what_the_disk_keeps_for_it";
    if !is_root() {
        return println!("SKIPPED {NAME}: only root has a reserve, and loop devices");
    }
    // A fifth of it is for root alone.
    let mounts = r#"mkdir "$DIR/disk"; truncate -s 300M "$DIR/image"; mkfs.ext4 -q -b 4096 -m 20 "$DIR/image"; mount -o loop "$DIR/image" "$DIR/disk""#;
    let Some(dir) = in_mount_namespace(NAME, mounts) else { return };
    let disk = dir.join("disk");
    let store = disk.join("store");
    import(&local(&store), "org/a", 1, 20 * MIB).unwrap();
    // Beyond the last byte anybody else could have, and beyond what a ballast that is given up would bring back.
    let mut filler = fs::File::create(disk.join("filler")).unwrap();
    let left_bytes = || {
        let stat = std::process::Command::new("stat").args(["-f", "-c", "%f %S"]).arg(&disk).output().unwrap();
        let numbers = String::from_utf8(stat.stdout).unwrap();
        numbers.split_whitespace().map(|number| number.parse::<u64>().unwrap()).product::<u64>()
    };
    while left_bytes() > 36 * MIB {
        filler.write_all(&[1; 1 << 20]).unwrap();
        filler.sync_all().unwrap();
    }
    assert_eq!(storage::free_bytes(&disk).unwrap(), 0);
    let cache = local(&store);
    assert!(holds(&cache, "org/a", "file", &Content::seeded(1, 20 * MIB)));
    // What is kept for root is not what a store fills.
    assert_eq!(import(&cache, "org/more", 9, 10 * MIB).unwrap_err().kind(), ErrorKind::NoSpace);
    assert_eq!(cache.delete_model("org/a").unwrap().freed_bytes, 20 * MIB);
    assert_eq!(cache.stats().unwrap().doomed_bytes, 0);
}

/// A process is stopped at each step of a pull, an import and a removal, the disk filled to the last byte, and the process let go on.
#[cfg(feature = "fail-points")]
#[tokio::test]
async fn a_disk_filled_between_any_two_steps_is_told_and_all_goes_on_once_there_is_room() {
    const NAME: &str = "a_disk_filled_between_any_two_steps_is_told_and_all_goes_on_once_there_is_room";
    const SIZE: u64 = 6 * MIB;
    let Some(disk) = in_mount_namespace(NAME, r#"mount -t tmpfs -o size=80M tmpfs "$DIR""#) else { return };
    let hub = hub(1, SIZE);
    let store = disk.join("store");
    let (path, source) = (store.to_str().unwrap(), disk.join("source"));
    fs::write(&source, Content::seeded(2, SIZE).read(0..SIZE).unwrap()).unwrap();
    let endpoint = hub.endpoint();
    let works: [&[&str]; 3] =
        [&["pull", path, &endpoint, REPO], &["import", path, "org/local", source.to_str().unwrap()], &["rm", path, "org/before"]];
    let make_store = || {
        let _ = fs::remove_dir_all(&store);
        import(&local(&store), "org/before", 3, SIZE).unwrap();
    };
    let end = |process: &Process| loop {
        let line = process.hear("");
        if line.starts_with("OK") || line.starts_with("ERROR") {
            return line;
        }
    };
    let (mut told, mut done) = (0, 0);
    let mut tried = std::collections::HashSet::new();
    for orders in works {
        make_store();
        let trace = disk.join("trace");
        let mut traced = start_tracing(&trace, orders);
        assert!(end(&traced).starts_with("OK"));
        assert!(traced.end().success());
        let points = fs::read_to_string(&trace).unwrap();
        fs::remove_file(&trace).unwrap();
        // What an open does is the same for all.
        for point in points.lines().filter(|point| tried.insert((*point).to_owned())) {
            make_store();
            hub.clear_log();
            let mut process = start_stopping_at(point, 1, orders);
            if !process.has_stopped() {
                // What several threads do is not the same each time.
                assert!(process.end().success());
                continue;
            }
            let filler = fill(&disk);
            process.signal("CONT");
            let said = end(&process);
            assert!(process.end().success(), "{} at {point}", orders[0]);
            match said.starts_with("OK") {
                true => done += 1,
                // What is needed, and what there is.
                false => {
                    assert!(said.starts_with("ERROR NoSpace"), "{} at {point}: {said}", orders[0]);
                    told += 1;
                }
            }
            fs::remove_file(filler).unwrap();
            let cache = cache(&store, &hub);
            match orders[0] {
                "pull" => {
                    let before = hub.bytes_served();
                    cache.pull(REPO).all(true).run().await.unwrap();
                    let again = hub.bytes_served() - before;
                    let had_landed = point.starts_with("seal.") || point == "fill.data_synced";
                    assert!(!had_landed || again <= 2, "{again} bytes fetched again after {point}");
                    assert!(holds(&cache, REPO, "model.gguf", &Content::seeded(1, SIZE)));
                }
                "import" => {
                    cache.import("org/local", std::slice::from_ref(&source), &ImportOptions::default()).unwrap();
                    assert!(holds(&cache, "org/local", "source", &Content::seeded(2, SIZE)));
                }
                _ => {
                    let removed = cache.delete_model("org/before");
                    assert!(matches!(removed, Ok(_) | Err(Error::NotInStore { .. })), "{removed:?}");
                }
            }
            if orders[0] != "rm" {
                assert!(holds(&cache, "org/before", "file", &Content::seeded(3, SIZE)));
            }
            cache.gc().unwrap();
            assert_sound(&cache);
        }
    }
    println!("{told} ended for lack of space, {done} were done all the same");
    assert!(told > 10 && done > 10, "{told} {done}");
}
