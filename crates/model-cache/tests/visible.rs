//! From the moment a file is visible it is readable, by any thread; and its last reader ends it, if it was removed.

mod common;

use common::*;
use hub_fixture::Content;
use tabagent_model_cache::*;

const SIZE: u64 = 12 * MIB;

/// Asks for the model until it is here: it must never be there and not readable.
fn first_read(cache: &ModelCache) -> Result<ModelFile> {
    loop {
        if let Some(file) = cache.get_file(REPO, "model.gguf")? {
            return Ok(file);
        }
    }
}

#[tokio::test]
async fn a_file_is_readable_on_the_thread_of_its_own_pull_the_moment_it_is_visible() {
    for seed in 0..4 {
        let hub = hub(seed, SIZE);
        let dir = tempfile::tempdir().unwrap();
        let cache = cache(dir.path(), &hub);
        let reader = async {
            loop {
                match cache.get_file(REPO, "model.gguf").transpose() {
                    Some(read) => return read,
                    None => tokio::task::yield_now().await,
                }
            }
        };
        let (report, read) = tokio::join!(cache.pull(REPO).all(true).run(), reader);
        report.unwrap();
        assert!(read.unwrap()[..] == Content::seeded(seed, SIZE).read(0..SIZE).unwrap()[..]);
    }
}

#[tokio::test]
async fn a_file_is_readable_by_another_thread_while_the_runtime_of_its_pull_stands_still() {
    for seed in 4..8 {
        let hub = hub(seed, SIZE);
        let dir = tempfile::tempdir().unwrap();
        let cache = cache(dir.path(), &hub);
        let other = local(dir.path());
        let reader = std::thread::spawn(move || first_read(&other).map(|file| file.len() as u64));
        // On the runtime's only thread, from the moment the file is visible: nobody polls the pull until the other has read.
        let standstill = async {
            while !cache.has_file(REPO, "model.gguf").unwrap() {
                tokio::task::yield_now().await;
            }
            reader.join().unwrap()
        };
        let (report, read) = tokio::join!(cache.pull(REPO).all(true).run(), standstill);
        assert_eq!(read.unwrap(), SIZE);
        report.unwrap();
    }
}

#[test]
fn the_last_reader_of_a_removed_file_frees_it_when_it_lets_go() {
    let store = tempfile::tempdir().unwrap();
    let source = tempfile::tempdir().unwrap();
    let path = source.path().join("file");
    let bytes = Content::seeded(3, SIZE).read(0..SIZE).unwrap();
    std::fs::write(&path, &bytes).unwrap();
    let cache = local(store.path());
    cache.import("org/local", &[path], &ImportOptions::default()).unwrap();
    let first = cache.get_file("org/local", "file").unwrap().unwrap();
    let clone = first.clone();
    let second = local(store.path()).get_file("org/local", "file").unwrap().unwrap();
    let removed = cache.delete_model("org/local").unwrap();
    assert_eq!((removed.freed_bytes, removed.busy_bytes), (0, SIZE));
    let held = cache.stats().unwrap();
    for reader in [first, clone] {
        drop(reader);
        assert_eq!(cache.stats().unwrap().doomed_bytes, SIZE);
    }
    // Also on another thread, and with a reader made of the file.
    let reader = second.reader();
    drop(second);
    assert_eq!(cache.stats().unwrap().doomed_bytes, SIZE);
    std::thread::spawn(move || drop(reader)).join().unwrap();
    let stats = cache.stats().unwrap();
    assert_eq!((stats.doomed_bytes, stats.live_bytes), (0, 0));
    if storage::can_punch() {
        assert!(stats.disk_bytes + SIZE <= held.disk_bytes + MIB, "{held:?}, then {stats:?}");
    }
    assert_sound(&cache);
}
