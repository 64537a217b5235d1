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
