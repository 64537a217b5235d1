//! Kill -9 at random moments of everything that writes: afterwards the store opens, lies about nothing, leaks nothing, and the
//! work goes on from where it was.

mod common;

use common::*;
use hub_fixture::{Content, Fault, Hub, Repo, Target};
use std::{fs, os::unix::fs::FileExt, path::Path, time::Duration};
use tabagent_model_cache::*;

#[test]
fn child() {
    obey();
}

fn sleep(range_us: std::ops::Range<u64>, numbers: &mut Numbers) {
    std::thread::sleep(Duration::from_micros(numbers.within(range_us)));
}

/// That nothing is left over that `gc` would have to find, and the disk holds no more than the files.
fn assert_nothing_leaked(cache: &ModelCache, after: &str) {
    let garbage = cache.gc().unwrap();
    assert_eq!(garbage.busy_bytes, 0, "{after}: {garbage:?}");
    let again = cache.gc().unwrap();
    assert_eq!(again.freed_bytes, 0, "{after}: {again:?}");
    let stats = cache.stats().unwrap();
    assert_eq!((stats.filling_bytes, stats.doomed_bytes), (0, 0), "{after}: {stats:?}");
    assert!(stats.disk_bytes < stats.live_bytes + stats.derived_bytes + 64 * MIB, "{after}: {stats:?}");
    let report = cache.verify(None, &[], &VerifyOptions::default()).unwrap();
    assert!(report.bad.is_empty(), "{after}: {:?}", report.bad);
}

#[test]
fn a_pull_killed_again_and_again_completes_and_fetches_no_more_than_what_was_in_flight_anew() {
    const SIZE: u64 = 300 * MIB;
    const KILLS: u64 = 12;
    let hub = hub(1, SIZE);
    let slow = hub.faults().always(Target::path("model.gguf").cdn(), Fault::SlowBytesPerSecond(24 * MIB));
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().to_str().unwrap();
    let mut numbers = Numbers(1);
    for kill in 0..KILLS {
        let mut child = start(&["pull", store, &hub.endpoint(), REPO]);
        child.hear("BEGUN");
        // Some before the first byte, most in the middle.
        sleep(if kill % 4 == 0 { 0..30_000 } else { 30_000..350_000 }, &mut numbers);
        child.kill();
    }
    // However busy the machine is: one is killed as soon as a block has landed.
    let mut child = start(&["pull", store, &hub.endpoint(), REPO]);
    let cache = local(dir.path());
    until("a block has landed", || {
        let commits = cache.files(REPO).unwrap_or_default();
        commits.iter().flat_map(|commit| &commit.files).any(|file| file.landed_bytes > 0)
    });
    child.kill();
    drop(cache);
    hub.faults().remove(slow);
    let mut child = start(&["pull", store, &hub.endpoint(), REPO]);
    let fetched: u64 = child.hear("OK").parse().unwrap();
    assert!(child.end().success());
    assert!(fetched < SIZE, "the kills came before anything had landed");
    let most = SIZE + (KILLS + 1) * CONNECTIONS as u64 * BLOCK;
    assert!(hub.bytes_served() <= most, "{} > {most}", hub.bytes_served());
    println!("{} bytes served for {SIZE}", hub.bytes_served());
    let cache = local(dir.path());
    assert!(holds(&cache, REPO, "model.gguf", &Content::seeded(1, SIZE)));
    assert_sound(&cache);
    assert_nothing_leaked(&cache, "the pull");
}

#[test]
fn a_pull_of_many_files_killed_while_it_seals_them_loses_none_that_was_said_to_be_sealed() {
    let sizes = |n: u64| if n.is_multiple_of(3) { 70_000 + n * 40_000 } else { 100 + n };
    let files = |repo: Repo| (0..60).fold(repo, |repo, n| repo.file(format!("{n}.gguf"), Content::seeded(n, sizes(n))));
    let hub = Hub::start(vec![files(Repo::new(REPO))]);
    let mut numbers = Numbers(2);
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().to_str().unwrap();
    for kill in 0..10 {
        let mut child = start(&["pull", store, &hub.endpoint(), REPO]);
        child.hear("BEGUN");
        let mut sealed = Vec::new();
        let most = numbers.within(0..16);
        while (sealed.len() as u64) < most {
            sealed.push(child.hear("SEALED"));
            if sealed.len() == 60 {
                break;
            }
        }
        sleep(0..15_000, &mut numbers);
        child.kill();
        let cache = local(dir.path());
        for path in &sealed {
            let n: u64 = path.strip_suffix(".gguf").unwrap().parse().unwrap();
            assert!(holds(&cache, &format!("{REPO}@{}", hub.commit(REPO, "main").unwrap()), path, &Content::seeded(n, sizes(n))));
        }
        assert_nothing_leaked(&cache, &format!("kill {kill}"));
        if kill % 3 == 2 {
            cache.delete_model(REPO).unwrap();
            assert_nothing_leaked(&cache, &format!("removal after kill {kill}"));
        }
    }
    start(&["pull", store, &hub.endpoint(), REPO]).hear("OK");
    let cache = local(dir.path());
    assert!((0..60).all(|n| holds(&cache, REPO, &format!("{n}.gguf"), &Content::seeded(n, sizes(n)))));
}

fn source(folder: &Path, size: u64) -> String {
    let path = folder.join("model.bin");
    fs::write(&path, Content::seeded(5, size).read(0..size).unwrap()).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn an_import_killed_at_any_moment_leaves_the_name_out_and_nothing_behind() {
    const SIZE: u64 = 120 * MIB;
    let dir = tempfile::tempdir().unwrap();
    let source = source(dir.path(), SIZE);
    let store = dir.path().join("store");
    let mut numbers = Numbers(3);
    let (mut done, mut not_done) = (0, 0);
    for kill in 0..10 {
        let mut child = start(&["import", store.to_str().unwrap(), "org/local", &source]);
        child.hear("BEGUN");
        sleep(0..[20_000, 150_000, 1_200_000][kill % 3], &mut numbers);
        child.kill();
        let cache = local(&store);
        let here = cache.get_file("org/local", "model.bin").unwrap().is_some();
        if here {
            done += 1;
            assert!(holds(&cache, "org/local", "model.bin", &Content::seeded(5, SIZE)));
            cache.delete_model("org/local").unwrap();
        } else {
            not_done += 1;
        }
        let stats = cache.stats().unwrap();
        assert_eq!((stats.filling_bytes, stats.live_bytes), (0, 0), "kill {kill}: the open gives back what was begun: {stats:?}");
        assert!(stats.disk_bytes < 64 * MIB, "kill {kill}: {stats:?}");
        assert_nothing_leaked(&cache, &format!("kill {kill}"));
    }
    println!("{done} imports were done before the kill, {not_done} were not");
    assert!(not_done > 0);
}

#[test]
fn a_removal_killed_at_any_moment_is_finished_by_the_next_open() {
    const SIZE: u64 = 130 * MIB;
    let dir = tempfile::tempdir().unwrap();
    let source = source(dir.path(), SIZE);
    let store = dir.path().join("store");
    let mut numbers = Numbers(4);
    let mut gone = 0;
    local(&store).import("org/local", &[source.clone().into()], &ImportOptions::default()).unwrap();
    for kill in 0..14 {
        let mut child = start(&["rm", store.to_str().unwrap(), "org/local"]);
        child.hear("BEGUN");
        sleep(0..[300, 3_000, 30_000][kill % 3], &mut numbers);
        child.kill();
        let cache = local(&store);
        let stats = cache.stats().unwrap();
        assert_eq!(stats.doomed_bytes, 0, "kill {kill}: {stats:?}");
        if cache.has_file("org/local", "model.bin").unwrap() {
            assert_eq!(stats.live_bytes, SIZE);
        } else {
            assert_eq!(stats.live_bytes, 0);
            assert!(stats.disk_bytes < 64 * MIB, "kill {kill}: {stats:?}");
            gone += 1;
            cache.import("org/local", &[source.clone().into()], &ImportOptions::default()).unwrap();
        }
        assert!(holds(&cache, "org/local", "model.bin", &Content::seeded(5, SIZE)), "kill {kill}");
    }
    println!("{gone} of 14 removals had taken the name away before the kill");
    assert_nothing_leaked(&local(&store), "the kills");
}

#[test]
fn a_gather_killed_at_any_moment_keeps_nobody_from_the_range_and_leaves_nothing_behind() {
    const SIZE: u64 = 50 * MIB;
    let dir = tempfile::tempdir().unwrap();
    let source = source(dir.path(), SIZE);
    let store = dir.path().join("store");
    let store_path = store.to_str().unwrap();
    let cache = local(&store);
    cache.import("org/local", &[source.into()], &ImportOptions::default()).unwrap();
    let file = cache.get_file("org/local", "model.bin").unwrap().unwrap();
    let mut numbers = Numbers(6);
    let (mut sealed, mut begun) = (0, 0);
    for kill in 0..15_u64 {
        // Another range each time, so that each has to be made.
        let range = kill..40 * MIB;
        let (from, to) = (range.start.to_string(), range.end.to_string());
        let mut child = start(&["gather", store_path, "org/local", "model.bin", &from, &to]);
        // Two of the same at once, both of which may be killed.
        let mut second = start(&["gather", store_path, "org/local", "model.bin", &from, &to]);
        child.hear("BEGUN");
        sleep(0..[3_000, 40_000, 250_000][kill as usize % 3], &mut numbers);
        child.kill();
        second.kill();
        let left = cache.stats().unwrap();
        begun += u64::from(left.filling_bytes > 0);
        sealed += u64::from(left.derived_bytes > 0);
        // This process had the store open all along, and frees what was begun by the asking alone.
        let gathered = cache.gather(&file, std::slice::from_ref(&range)).unwrap().unwrap();
        let data_file = fs::File::open(gathered.data_file().unwrap()).unwrap();
        let mut bytes = vec![0; (range.end - range.start) as usize];
        data_file.read_exact_at(&mut bytes, gathered.offsets()[0].unwrap()).unwrap();
        assert!(bytes == file[range.start as usize..range.end as usize], "kill {kill}");
        assert_nothing_leaked(&cache, &format!("kill {kill}"));
        // Gone with its file's name, which comes back.
        let stats = cache.stats().unwrap();
        assert_eq!((stats.live_bytes, stats.derived_bytes, stats.filling_bytes), (SIZE, gathered.size_bytes(), 0), "kill {kill}");
        cache.delete_model("org/local").unwrap();
        drop(gathered);
        cache.import("org/local", &[dir.path().join("model.bin")], &ImportOptions::default()).unwrap();
        assert_eq!(cache.stats().unwrap().derived_bytes, 0);
    }
    println!("{begun} were begun, {sealed} sealed when they were killed");
}

#[test]
fn a_pull_killed_while_it_reserves_leaves_no_space_nobody_can_get_back() {
    const SIZE: u64 = 900 * MIB;
    let hub = hub(7, SIZE);
    hub.faults().always(Target::path("model.gguf").cdn(), Fault::Stall { after_bytes: 0 });
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().to_str().unwrap();
    let mut numbers = Numbers(5);
    // Something in the file, and a hole before it.
    {
        let cache = cache(dir.path(), &hub);
        for (repo, size) in [("org/gone", 30 * MIB), ("org/stays", 20 * MIB)] {
            cache.import(repo, &[source(dir.path(), size).into()], &ImportOptions::default()).unwrap();
        }
        cache.delete_model("org/gone").unwrap();
    }
    let mut uncommitted = 0;
    for kill in 0..40 {
        let child = start(&["pull", store, &hub.endpoint(), REPO]);
        child.hear("STARTED");
        sleep(0..10_000, &mut numbers);
        drop(child);
        let cache = local(dir.path());
        let stats = cache.stats().unwrap();
        if stats.filling_bytes > 0 && stats.disk_bytes < SIZE {
            // The moment between taking the space and the commit is short: this child dies in it for certain.
            drop(cache);
            assert!(!start(&["reserve", store, "9"]).end().success());
            let cache = local(dir.path());
            // The open cuts off what of it lies behind the file's last page in use, if libmdbx finds that worth it.
            println!("it left {} MiB", cache.stats().unwrap().disk_bytes / MIB);
            assert_nothing_leaked(&cache, "a reservation that was never committed");
            uncommitted += 1;
        } else {
            assert_nothing_leaked(&cache, &format!("kill {kill}"));
        }
        if uncommitted > 1 && kill >= 8 {
            return;
        }
    }
    panic!("no kill came between a row and its reservation");
}
