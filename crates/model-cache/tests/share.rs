//! Several at one store: two pulls of one file, one content under several names, and readers of what is removed.

mod common;
#[path = "share/mix.rs"]
mod mix;

use common::*;
use hub_fixture::{Content, Fault, File, Hub, Repo, Target};
use std::{fs, path::Path, time::Duration};
use tabagent_model_cache::*;

const SIZE: u64 = 130 * MIB;

#[test]
fn child() {
    let orders = orders().unwrap_or_default();
    match &orders.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["mix", store, endpoint, seed, seconds] => {
            say(format_args!(
                "DONE {}",
                mix::run(Path::new(store), endpoint, 2, seed.parse().unwrap(), seconds.parse().unwrap())
            ));
        }
        ["hold writers", store] => hold_writers(Path::new(store)),
        _ => obey(),
    }
}

fn content() -> Content {
    Content::seeded(1, SIZE)
}

/// A Hub that takes about two seconds for the whole file.
fn slow_hub() -> Hub {
    let hub = hub(1, SIZE);
    hub.faults().always(Target::path("model.gguf").cdn(), Fault::SlowBytesPerSecond(16 * MIB));
    hub
}

fn path(dir: &tempfile::TempDir) -> &str {
    dir.path().to_str().unwrap()
}

/// Imports `bytes` as `org/local` `file`.
fn import(cache: &ModelCache, bytes: &[u8]) {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, bytes).unwrap();
    cache.import("org/local", &[file], &ImportOptions::default()).unwrap();
}

fn patterned(seed: u64, size: u64) -> Vec<u8> {
    Content::seeded(seed, size).read(0..size).unwrap().to_vec()
}

#[test]
fn of_two_processes_that_pull_one_file_one_fetches_and_the_other_waits_and_says_so() {
    let hub = slow_hub();
    let dir = tempfile::tempdir().unwrap();
    let mut first = start(&["pull", path(&dir), &hub.endpoint(), REPO]);
    first.hear("PROGRESS");
    let mut second = start(&["pull", path(&dir), &hub.endpoint(), REPO]);
    assert_eq!(second.hear("WAITING"), "model.gguf");
    let fetched: u64 = first.hear("OK").parse::<u64>().unwrap() + second.hear("OK").parse::<u64>().unwrap();
    assert!(first.end().success() && second.end().success());
    assert!(fetched <= SIZE + 4, "{fetched}");
    assert!(hub.bytes_served() <= SIZE + 4, "{}", hub.bytes_served());
    let cache = local(dir.path());
    assert!(holds(&cache, REPO, "model.gguf", &content()));
    assert_sound(&cache);
}

#[tokio::test]
async fn of_two_tasks_of_one_process_one_fetches_and_the_other_waits() {
    let hub = slow_hub();
    let dir = tempfile::tempdir().unwrap();
    let (one, other) = (cache(dir.path(), &hub), cache(dir.path(), &hub));
    let (sink, events) = events();
    let late = async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        other.pull(REPO).path("model.gguf").on_event(Some(sink)).run().await
    };
    let (one_report, other_report) = tokio::join!(one.pull(REPO).all(true).run(), late);
    assert_eq!(one_report.unwrap().fetched_bytes, SIZE + 2);
    assert_eq!(other_report.unwrap().fetched_bytes, 0);
    assert_one_end(&events);
    let waits = events.lock().unwrap().iter().filter(|event| matches!(event, EventKind::Waiting { .. })).count();
    assert_eq!(waits, 1);
    assert!(hub.bytes_served() <= SIZE + 4);
    assert!(holds(&one, REPO, "model.gguf", &content()));
}

#[test]
fn when_the_filler_is_killed_the_waiter_takes_over_and_fetches_only_the_rest() {
    let hub = slow_hub();
    let dir = tempfile::tempdir().unwrap();
    let mut first = start(&["pull", path(&dir), &hub.endpoint(), REPO]);
    first.hear("PROGRESS");
    let mut second = start(&["pull", path(&dir), &hub.endpoint(), REPO]);
    second.hear("WAITING");
    until("a good part was served", || hub.bytes_served() > 50 * MIB);
    first.kill();
    let fetched: u64 = second.hear("OK").parse().unwrap();
    assert!(second.end().success());
    assert!(fetched < SIZE - 20 * MIB, "{fetched}");
    let most = SIZE + CONNECTIONS as u64 * (BLOCK + IN_FLIGHT);
    assert!(hub.bytes_served() <= most, "{} > {most}", hub.bytes_served());
    let cache = local(dir.path());
    assert!(holds(&cache, REPO, "model.gguf", &content()));
    assert_sound(&cache);
}

#[tokio::test]
async fn one_content_under_many_names_is_fetched_once_and_stays_while_one_name_does() {
    let content = Content::seeded(3, 24 * MIB);
    let hub = Hub::start(vec![
        Repo::new("org/one").file("a.gguf", content.clone()).file("copy/b.gguf", content.clone()).file("note.md", "same"),
        Repo::new("org/two").file("c.gguf", content.clone()).file("other.md", "same"),
    ]);
    let dir = tempfile::tempdir().unwrap();
    let cache = cache(dir.path(), &hub);
    let report = cache.pull("org/one").all(true).run().await.unwrap();
    assert_eq!((report.total_bytes, report.fetched_bytes), (48 * MIB + 4, 24 * MIB + 4));
    // A new revision that touched something else, and another repo.
    hub.push("org/one", "main", [File::new("note.md", "new")]);
    assert_eq!(cache.pull("org/one").all(true).run().await.unwrap().fetched_bytes, 3);
    assert_eq!(cache.pull("org/two").all(true).run().await.unwrap().fetched_bytes, 0);
    assert_eq!(hub.bytes_served(), 24 * MIB + 7);
    let stats = cache.stats().unwrap();
    assert_eq!((stats.files, stats.live_bytes), (8, 24 * MIB + 7));
    // The name its chunks are keyed by goes first.
    let removed = cache.delete_file("org/one", "a.gguf").unwrap();
    assert_eq!((removed.files, removed.freed_bytes, removed.shared_bytes), (2, 0, 48 * MIB));
    // Two names of one content that go together leave nothing.
    let twice = tempfile::tempdir().unwrap();
    ["a", "b"].iter().for_each(|name| std::fs::write(twice.path().join(name), vec![7; MIB as usize]).unwrap());
    cache.import("me/twice", &[twice.path().to_owned()], &ImportOptions::default()).unwrap();
    let removed = cache.delete_model("me/twice").unwrap();
    assert_eq!((removed.files, removed.bytes, removed.freed_bytes, removed.shared_bytes), (2, 2 * MIB, MIB, 0));
    assert!(!cache.has_file("org/one", "a.gguf").unwrap());
    assert!(holds(&cache, "org/one", "copy/b.gguf", &content) && holds(&cache, "org/two", "c.gguf", &content));
    cache.delete_model("org/one").unwrap();
    assert!(holds(&cache, "org/two", "c.gguf", &content));
    assert_eq!(&cache.get_file("org/two", "other.md").unwrap().unwrap()[..], b"same");
    assert_sound(&cache);
    let removed = cache.delete_model("org/two").unwrap();
    assert_eq!((removed.freed_bytes, removed.busy_bytes), (24 * MIB + 4, 0));
    assert!(cache.stats().unwrap().disk_bytes < 64 * MIB);
    assert!(matches!(cache.delete_model("org/two"), Err(Error::NotInStore { .. })));
}

#[test]
fn what_is_removed_while_another_process_reads_it_loses_its_name_at_once_and_its_space_when_the_reader_lets_go() {
    let dir = tempfile::tempdir().unwrap();
    let cache = local(dir.path());
    for way in ["drops", "is killed"] {
        let bytes = patterned(5, SIZE);
        import(&cache, &bytes);
        let mut reader = start(&["read", path(&dir), "org/local", "file"]);
        let expected = format!("{:08x}", crc(&bytes));
        assert_eq!(reader.hear("READS"), expected);
        let files = cache.files("org/local").unwrap();
        assert_eq!(files[0].files[0].readers, [reader.id()]);
        let removed = cache.delete_model("org/local").unwrap();
        assert_eq!((removed.files, removed.freed_bytes, removed.busy_bytes), (1, 0, SIZE));
        assert_eq!(removed.busy_processes, [reader.id()]);
        assert!(!cache.has_file("org/local", "file").unwrap());
        assert!(cache.get_file("org/local", "file").unwrap().is_none());
        assert_eq!(cache.stats().unwrap().doomed_bytes, SIZE);
        // Others come and go, and open the store; what is read stays.
        import(&cache, &patterned(6, 30 * MIB));
        let mut opener = start(&["open", path(&dir)]);
        opener.hear("OK");
        assert!(opener.end().success());
        cache.gc().unwrap();
        reader.tell("again");
        assert_eq!(reader.hear("READS"), expected);
        if way == "drops" {
            assert!(reader.end().success());
            assert_eq!(cache.stats().unwrap().doomed_bytes, 0, "the last reader frees it");
        } else {
            reader.kill();
            assert_eq!(cache.stats().unwrap().doomed_bytes, SIZE);
            let mut opener = start(&["open", path(&dir)]);
            opener.hear("OK");
            assert!(opener.end().success());
            assert_eq!(cache.stats().unwrap().doomed_bytes, 0, "the next open frees it");
        }
        cache.delete_model("org/local").unwrap();
        assert!(cache.stats().unwrap().disk_bytes < 64 * MIB, "{way}");
    }
}

#[tokio::test]
async fn a_pull_of_what_was_removed_and_is_still_read_brings_it_back_without_fetching() {
    let hub = hub(1, 30 * MIB);
    let dir = tempfile::tempdir().unwrap();
    let cache = cache(dir.path(), &hub);
    cache.pull(REPO).all(true).run().await.unwrap();
    let mut reader = start(&["read", path(&dir), REPO, "model.gguf"]);
    let before = reader.hear("READS");
    cache.delete_model(REPO).unwrap();
    assert!(cache.list().unwrap().is_empty());
    hub.clear_log();
    cache.download_file(REPO, "model.gguf", None).await.unwrap();
    assert_eq!(hub.bytes_served(), 0);
    reader.tell("again");
    assert_eq!(reader.hear("READS"), before);
    assert!(reader.end().success());
    assert!(holds(&cache, REPO, "model.gguf", &Content::seeded(1, 30 * MIB)));
    assert_sound(&cache);
    assert_eq!(cache.stats().unwrap().live_bytes, 30 * MIB);
}

#[test]
fn changed_content_imported_under_the_name_of_what_is_read_leaves_the_reader_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let cache = local(dir.path());
    for (old, new) in [(20 * MIB, 21 * MIB), (20 * MIB, 20 * MIB), (1000, 2000), (1000, 20 * MIB), (20 * MIB, 1000)] {
        let (old, new) = (patterned(7, old), patterned(8, new));
        import(&cache, &old);
        let mut reader = start(&["read", path(&dir), "org/local", "file"]);
        assert_eq!(reader.hear("READS"), format!("{:08x}", crc(&old)));
        let here = cache.get_file("org/local", "file").unwrap().unwrap();
        // Twice: over the name, and after it was removed.
        import(&cache, &new);
        assert_eq!(cache.get_file("org/local", "file").unwrap().unwrap()[..], new);
        cache.delete_file("org/local", "file").unwrap();
        import(&cache, &new);
        assert_eq!(cache.get_file("org/local", "file").unwrap().unwrap()[..], new);
        assert_eq!(here[..], old);
        reader.tell("again");
        assert_eq!(reader.hear("READS"), format!("{:08x}", crc(&old)));
        assert!(reader.end().success());
        drop(here);
        assert_sound(&cache);
        cache.delete_model("org/local").unwrap();
        let stats = cache.stats().unwrap();
        assert!(stats.live_bytes == 0 && stats.doomed_bytes == 0 && stats.disk_bytes < 64 * MIB, "{stats:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_pullers_and_removers_at_once_never_see_anything_but_whole_files() {
    let size = 12 * MIB;
    let hub = hub(9, size);
    let dir = tempfile::tempdir().unwrap();
    let whole = Content::seeded(9, size).read(0..size).unwrap();
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let readers: Vec<_> = (0..2)
        .map(|_| {
            let (cache, stop, whole) = (cache(dir.path(), &hub), stop.clone(), whole.clone());
            std::thread::spawn(move || {
                let mut seen = 0;
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    if let Some(file) = cache.get_file(REPO, "model.gguf").unwrap() {
                        assert!(file[..] == whole[..]);
                        seen += 1;
                    }
                }
                seen
            })
        })
        .collect();
    let cache = cache(dir.path(), &hub);
    for _ in 0..12 {
        cache.pull(REPO).all(true).run().await.unwrap();
        assert!(cache.has_file(REPO, "model.gguf").unwrap());
        tokio::time::sleep(Duration::from_millis(20)).await;
        cache.delete_model(REPO).unwrap();
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    let seen: u64 = readers.into_iter().map(|reader| reader.join().unwrap()).sum();
    assert!(seen > 0);
    let stats = cache.stats().unwrap();
    assert!(stats.doomed_bytes == 0 && stats.live_bytes == 0 && stats.disk_bytes < 64 * MIB, "{stats:?}");
}

#[tokio::test]
async fn a_removal_and_a_gc_during_a_pull_leave_its_fill_alone_and_it_says_what_was_removed() {
    let hub = slow_hub();
    let dir = tempfile::tempdir().unwrap();
    let cache = cache(dir.path(), &hub);
    let other = local(dir.path());
    let disturbing = async {
        while !other.has_file(REPO, "config.json").unwrap() || other.stats().unwrap().filling_bytes == 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        for _ in 0..5 {
            let garbage = other.gc().unwrap();
            assert_eq!(garbage.freed_bytes, 0);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let removed = other.delete_model(REPO).unwrap();
        assert_eq!((removed.files, removed.busy_processes), (1, vec![std::process::id()]));
        let mut remover = start(&["rm", path(&dir), REPO]);
        assert!(remover.end().success());
    };
    let (result, ()) = tokio::join!(cache.pull(REPO).all(true).run(), disturbing);
    assert!(matches!(result, Err(Error::RemovedMeanwhile { path, .. }) if path.as_str() == "config.json"));
    hub.clear_log();
    cache.pull(REPO).all(true).run().await.unwrap();
    assert_eq!(hub.bytes_served(), 2);
    assert!(holds(&cache, REPO, "model.gguf", &content()));
    assert_sound(&cache);
}

#[test]
fn a_store_open_in_one_pid_namespace_is_refused_in_any_other_until_it_is_closed() {
    let dir = tempfile::tempdir().unwrap();
    let cache = local(dir.path());
    import(&cache, &patterned(1, MIB));
    // libmdbx tells its readers and writers apart by their process ids: two containers would take each other's for dead ones.
    for with_proc in [true, false] {
        let mut other = start_in_pid_namespace(&["open", path(&dir)], with_proc);
        let said = other.hear("ERROR");
        assert!(said.contains("open in another container (PID namespace)"), "{said}");
        other.end();
    }
    // Of the same namespace as many as like.
    let mut same = start(&["open", path(&dir)]);
    same.hear("OK");
    assert!(same.end().success());
    drop(cache);
    // The other way round: one container keeps out the next, and everybody else, for as long as it has it open, and no longer.
    let mut reader = start_in_pid_namespace(&["read", path(&dir), "org/local", "file"], true);
    assert_eq!(reader.hear("READS"), format!("{:08x}", crc(&patterned(1, MIB))));
    let refused = ModelCache::builder(dir.path()).offline(true).open().unwrap_err();
    assert!(refused.hint().is_some_and(|hint| hint.contains("container")), "{refused}: {:?}", refused.hint());
    assert!(start_in_pid_namespace(&["open", path(&dir)], true).hear("ERROR").contains("PID namespace"));
    reader.tell("again");
    reader.hear("READS");
    reader.end();
    assert_sound(&local(dir.path()));
}

// -- processes that stand still between two steps ------------------------------------------------------------------------

#[cfg(feature = "fail-points")]
#[test]
fn a_reader_that_is_late_for_its_lease_reads_what_is_there_by_then_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let cache = local(dir.path());
    for (old, new) in [(6 * MIB, 6 * MIB), (6 * MIB, 5 * MIB)] {
        import(&cache, &patterned(1, old));
        let mut reader = start_stopping_at("read.looked_up", 1, &["read", path(&dir), "org/local", "file"]);
        assert!(reader.has_stopped());
        // It knows a blob's number by now, and has no lease on it: the content goes, and other content comes into its pages.
        assert_eq!(cache.delete_model("org/local").unwrap().freed_bytes, old);
        import(&cache, &patterned(2, new));
        reader.signal("CONT");
        assert_eq!(reader.hear("READS"), format!("{:08x}", crc(&patterned(2, new))));
        assert!(reader.end().success());
        cache.delete_model("org/local").unwrap();
    }
}

#[cfg(feature = "fail-points")]
#[test]
fn content_that_comes_while_gc_is_about_to_look_for_orphans_is_none() {
    let dir = tempfile::tempdir().unwrap();
    let cache = local(dir.path());
    let mut collector = start_stopping_at("gc.orphans_begun", 1, &["gc", path(&dir)]);
    assert!(collector.has_stopped());
    import(&cache, &patterned(1, 6 * MIB));
    collector.signal("CONT");
    collector.hear("OK");
    assert!(collector.end().success());
    assert!(cache.get_file("org/local", "file").unwrap().unwrap()[..] == patterned(1, 6 * MIB));
    assert_sound(&cache);
}

// -- everything at once ------------------------------------------------------------------------------------------------

/// `MODEL_CACHE_MIX_SECONDS=300 cargo test -p model-cache --test share everything` for as long as you like.
#[test]
fn eight_threads_and_four_processes_do_everything_at_once_and_nothing_is_lost_torn_or_stuck() {
    let seconds = std::env::var("MODEL_CACHE_MIX_SECONDS").map_or(6, |seconds| seconds.parse().unwrap());
    let hub = mix::hub();
    let dir = tempfile::tempdir().unwrap();
    let mut others: Vec<_> =
        (1..=4).map(|seed| start(&["mix", path(&dir), &hub.endpoint(), &seed.to_string(), &seconds.to_string()])).collect();
    println!("threads: {}", mix::run(dir.path(), &hub.endpoint(), 8, 0, seconds));
    for other in &mut others {
        println!("process {}: {}", other.id(), other.hear_within("DONE", Duration::from_secs(seconds + 300)));
        assert!(other.end().success());
    }
    let cache = local(dir.path());
    cache.gc().unwrap();
    assert_sound(&cache);
    let stats = cache.stats().unwrap();
    assert_eq!((stats.filling_bytes, stats.doomed_bytes), (0, 0), "{stats:?}");
    for repo in cache.list().unwrap() {
        cache.delete_model(&repo.repo.to_string()).unwrap();
    }
    let stats = cache.stats().unwrap();
    assert!(stats.live_bytes == 0 && stats.disk_bytes < 64 * MIB, "{stats:?}");
}

/// Takes both writers' places, and keeps them until its stdin is closed.
fn hold_writers(store: &Path) {
    let registry = storage::StorageRegistry::new(store);
    let extents = registry.extents(&store.join("model_cache_chunks"), "chunks", storage::Alignment::LargePage).unwrap();
    let records = registry.records(&store.join("model_cache_manifests"), &["store"]).unwrap();
    let reserving = extents.begin_reserve().unwrap();
    let key = [storage::ExtentSpec { key: "file:org/other:x:chunk:0".to_owned(), data_bytes: 3 * MIB }];
    reserving.reserve(&extents.open_writer().unwrap(), 1 << 40, BLOCK as u32, &key).unwrap();
    let writing = records.begin_write().unwrap();
    writing.put_bytes(&storage::Table::new("store"), "doomed:77", b"").unwrap();
    say("HELD");
    let _ = std::io::Read::read(&mut std::io::stdin(), &mut [0]);
}

#[test]
fn readers_do_not_wait_for_a_writer_that_stands_still_in_its_transactions() {
    let dir = tempfile::tempdir().unwrap();
    let (large, small) = (patterned(1, 6 * MIB), patterned(2, 1000));
    let cache = local(dir.path());
    import(&cache, &large);
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("small"), &small).unwrap();
    cache.import("org/small", &[folder.path().join("small")], &ImportOptions::default()).unwrap();
    let mut writer = start(&["hold writers", path(&dir)]);
    writer.hear("HELD");
    writer.signal("STOP");
    assert!(writer.has_stopped());
    // Another process that opens the store and reads; in this one all that reads. None of it would end if any of it
    // waited for either writer's place.
    let mut reader = start(&["read", path(&dir), "org/local", "file"]);
    assert_eq!(reader.hear("READS"), format!("{:08x}", crc(&large)));
    let (store, target) = (dir.path().to_owned(), folder.path().join("export"));
    let reading = std::thread::spawn(move || {
        let anew = local(&store);
        for cache in [&cache, &anew] {
            assert!(cache.get_file("org/local", "file").unwrap().unwrap()[..] == large);
            assert!(cache.get_file("org/small", "small").unwrap().unwrap()[..] == small);
            assert!(cache.has_file("org/local", "file").unwrap());
            assert_eq!((cache.list().unwrap().len(), cache.files("org/local").unwrap().len()), (2, 1));
            assert_eq!(cache.stats().unwrap().live_bytes, 6 * MIB + 1000);
            assert_eq!(cache.readable().unwrap().len(), 2);
            let report = cache.verify(None, &[], &VerifyOptions { digest: true, ..VerifyOptions::default() }).unwrap();
            assert!(report.bad.is_empty(), "{:?}", report.bad);
            cache.export("org/local", &[], &target, &ExportOptions { force: true, ..ExportOptions::default() }).unwrap();
        }
        (cache, anew)
    });
    until("all reads are done beside a writer that stands still", || reading.is_finished());
    assert!(writer.has_stopped());
    let caches = reading.join().unwrap();
    writer.kill();
    // Letting go writes down when files were last used.
    drop(caches);
    assert!(reader.end().success());
    assert_sound(&local(dir.path()));
}
