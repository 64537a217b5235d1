//! Files brought into memory before they are used: what was there and what was not is told, and the bytes stay what they are.

mod common;

use common::*;
use hub_fixture::{Content, Fault, Hub, Repo, Target};
use std::{
    fs::{self, File},
    path::Path,
    process::Command,
    sync::{Arc, Mutex},
};
use tabagent_model_cache::*;
use tokio_util::sync::CancellationToken;

const LARGE: u64 = 112 * MIB;

/// A store with `org/local` `large` (two chunks), `twin` (the same content) and `small` (inline).
fn store() -> (tempfile::TempDir, ModelCache) {
    let dir = tempfile::tempdir().unwrap();
    let sources = dir.path().join("sources");
    fs::create_dir(&sources).unwrap();
    let large = Content::seeded(1, LARGE).read(0..LARGE).unwrap();
    for name in ["large", "twin"] {
        fs::write(sources.join(name), &large).unwrap();
    }
    fs::write(sources.join("small"), "small").unwrap();
    let cache = local(&dir.path().join("store"));
    cache.import("org/local", &[sources], &ImportOptions::default()).unwrap();
    (dir, cache)
}

/// Drops the pages of the data file that nobody has mapped from memory. False where the file system lives in memory.
fn drop_pages(dir: &Path, cache: &ModelCache) -> bool {
    let path = dir.join("store/model_cache_chunks/mdbx.dat");
    File::open(&path).unwrap().sync_all().unwrap();
    let dropped = Command::new("dd").arg(format!("if={}", path.display())).args(["iflag=nocache", "count=0"]).output().unwrap();
    assert!(dropped.status.success(), "{dropped:?}");
    cache.open_file("org/local", "large").unwrap().resident_bytes().unwrap() < LARGE / 2
}

#[test]
fn what_is_prefetched_is_resident_and_what_was_already_is_told() {
    let (dir, cache) = store();
    let on_disk = drop_pages(dir.path(), &cache);
    let calls = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&calls);
    let progress: ProgressCallback = Arc::new(move |done, total| seen.lock().unwrap().push((done, total)));
    let options = PrefetchOptions { progress: Some(progress), ..PrefetchOptions::default() };
    let file = cache.open_file("org/local", "large").unwrap();
    let before = file.resident_bytes().unwrap();
    let report = file.prefetch(&options).unwrap();
    assert_eq!((report.files, report.bytes, report.resident_bytes, report.left_bytes), (1, LARGE, before, 0));
    assert_eq!(report.read_bytes() > 0, on_disk);
    assert_eq!(file.resident_bytes().unwrap(), LARGE);
    assert_eq!(crc(&file), crc(&Content::seeded(1, LARGE).read(0..LARGE).unwrap()));
    let calls = calls.lock().unwrap();
    assert!(calls.is_sorted() && calls.iter().filter(|call| **call == (LARGE, LARGE)).count() == 1, "{calls:?}");
    assert_eq!(calls.last(), Some(&(LARGE, LARGE)));
    assert_eq!(file.prefetch(&PrefetchOptions::default()).unwrap().resident_bytes, LARGE);
}

#[test]
fn a_repo_is_prefetched_each_content_once_and_nothing_stays_open() {
    let (dir, cache) = store();
    drop_pages(dir.path(), &cache);
    let report = cache.prefetch("org/local", &[], &[], &PrefetchOptions::default()).unwrap();
    assert_eq!((report.files, report.bytes, report.left_bytes), (3, LARGE + 5, 0));
    assert!(report.resident_bytes >= 5 && report.resident_bytes + report.read_bytes() == report.bytes, "{report:?}");
    let again = cache.prefetch("org/local", &[], &["tw*".to_owned()], &PrefetchOptions::default()).unwrap();
    assert_eq!((again.files, again.bytes, again.resident_bytes, again.read_bytes()), (1, LARGE, LARGE, 0));
    // A lease that stayed would keep it from being freed.
    assert_eq!(cache.delete_model("org/local").unwrap().busy_bytes, 0);
}

#[test]
fn a_small_file_is_in_memory_once_it_is_open() {
    let (_dir, cache) = store();
    let small = cache.open_file("org/local", "small").unwrap();
    assert_eq!(small.resident_bytes().unwrap(), 5);
    let report = small.prefetch(&PrefetchOptions::default()).unwrap();
    assert_eq!((report.bytes, report.resident_bytes, report.read_bytes()), (5, 5, 0));
}

#[test]
fn a_cancelled_prefetch_says_so_whether_before_or_in_between() {
    let (_dir, cache) = store();
    let file = cache.open_file("org/local", "large").unwrap();
    for calls_before in [0, 1] {
        let token = CancellationToken::new();
        if calls_before == 0 {
            token.cancel();
        }
        let cancelling = token.clone();
        let progress: ProgressCallback = Arc::new(move |_, _| cancelling.cancel());
        let options = PrefetchOptions { progress: Some(progress), cancel: Some(token) };
        assert!(matches!(file.prefetch(&options), Err(Error::Cancelled)));
        assert!(matches!(cache.prefetch("org/local", &[], &[], &options), Err(Error::Cancelled)));
    }
    assert_eq!(file.prefetch(&PrefetchOptions::default()).unwrap().bytes, LARGE);
}

#[test]
fn what_is_not_here_is_a_clear_error() {
    let (_dir, cache) = store();
    let prefetch = |repo: &str, quants: &[&str], globs: &[&str]| {
        let owned = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        cache.prefetch(repo, &owned(quants), &owned(globs), &PrefetchOptions::default())
    };
    assert!(matches!(prefetch("org/absent", &[], &[]), Err(Error::NotInStore { .. })));
    assert!(matches!(prefetch("org/local", &[], &["*.gguf"]), Err(Error::FileNotFound { .. })));
    assert!(matches!(prefetch("org/local", &["Q4_K_M"], &[]), Err(Error::QuantNotFound { .. })));
    assert!(matches!(prefetch("no repo", &[], &[]), Err(Error::InvalidRepo { .. })));
}

#[tokio::test]
async fn a_quant_is_prefetched_with_what_it_needs_and_not_without_its_own_files() {
    let gguf = |seed| Content::seeded(seed, 6 * MIB);
    let repo = Repo::new(REPO).file("config.json", "{}").file("m-Q4_K_M.gguf", gguf(1)).file("m-Q8_0.gguf", gguf(2));
    let hub = Hub::start(vec![repo]);
    let dir = tempfile::tempdir().unwrap();
    let cache = cache(dir.path(), &hub);
    cache.download_quant(REPO, "Q4_K_M", None).await.unwrap();
    let prefetch = |quant: &str| cache.prefetch(REPO, &[quant.to_owned()], &[], &PrefetchOptions::default());
    let report = prefetch("q4_k_m").unwrap();
    assert_eq!((report.files, report.bytes), (2, 6 * MIB + 2));
    assert!(matches!(prefetch("Q8_0"), Err(Error::NotHere { .. })));
    assert!(matches!(prefetch("Q5_0"), Err(Error::QuantNotFound { .. })));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_file_that_is_not_here_it_is_told_whether_it_is_being_pulled_offered_or_unknown() {
    let gguf = |seed| Content::seeded(seed, 6 * MIB);
    let repo = Repo::new(REPO).file("config.json", "{}").file("m-Q4_K_M.gguf", gguf(1)).file("m-Q8_0.gguf", gguf(2));
    let hub = Hub::start(vec![repo]);
    hub.faults().always(Target::path("m-Q8_0.gguf").cdn(), Fault::SlowBytesPerSecond(256 << 10));
    let dir = tempfile::tempdir().unwrap();
    let cache = cache(dir.path(), &hub);
    let prefetch = |globs: &[&str]| {
        let globs: Vec<_> = globs.iter().map(|glob| (*glob).to_owned()).collect();
        cache.prefetch(REPO, &[], &globs, &PrefetchOptions::default())
    };
    assert!(matches!(prefetch(&[]), Err(Error::NotInStore { .. })));
    cache.scan_repo(REPO).await.unwrap();
    assert!(matches!(prefetch(&[]), Err(Error::NotInStore { .. })));
    // Before anything else of the repo is here, and after.
    for _ in 0..2 {
        let token = CancellationToken::new();
        let pull = tokio::spawn(cache.pull(REPO).quant("Q8_0").cancel_token(token.clone()).run());
        let begun = || cache.files(REPO).is_ok_and(|all| all[0].files.iter().any(|file| file.state == FileState::Filling));
        let announced = || {
            let manifest = cache.local_manifest(REPO).unwrap().unwrap();
            manifest.quants["Q8_0"].status == QuantStatus::Downloading
        };
        // The second time the file is begun already.
        until("the file is being pulled", || begun() && announced());
        for glob in ["m-Q8_0.gguf", "*Q8*"] {
            let error = prefetch(&[glob]).unwrap_err();
            assert!(matches!(&error, Error::NotHere { is_pulled: true, landed_percent: Some(_), .. }), "{error}");
            assert!(error.to_string().starts_with("m-Q8_0.gguf of org/model is being pulled: "), "{error}");
        }
        let error = prefetch(&["m-Q4_K_M.gguf"]).unwrap_err();
        assert!(matches!(&error, Error::NotHere { landed_percent: None, is_at_hub: true, .. }), "{error}");
        assert!(error.hint().unwrap().contains("model-cache pull"), "{error}");
        let error = prefetch(&["none*"]).unwrap_err();
        assert!(matches!(&error, Error::FileNotFound { .. }), "{error}");
        token.cancel();
        assert!(matches!(pull.await.unwrap(), Err(Error::Cancelled)));
        let report = cache.download_file(REPO, "config.json", None).await.unwrap();
        assert_eq!(report.files, 1);
        assert_eq!(prefetch(&[]).unwrap().files, 1);
    }
}
