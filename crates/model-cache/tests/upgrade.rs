//! Stores of earlier versions and of other programs: fixtures made once, by the version they are named after, are opened, read, verified,
//! pulled into and emptied by this one; what is newer or foreign is refused with both versions named.

mod common;

use common::*;
use hub_fixture::{Content, Fault, Hub, Repo, Target};
use std::{
    fs::{self, File},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};
use storage::{StorageRegistry, Table};
use tabagent_model_cache::*;
use tokio_util::sync::CancellationToken;

const TABLES: [&str; 7] = ["chunks", "metadata", "blobs", "manifests", "refs", "access", "store"];
const LATE: &str = "org/late";
const IMPORTED: &str = "me/notes";

/// Bytes that compress to nothing, so that a store of them can be committed.
fn pattern(seed: u8, size: u64) -> Vec<u8> {
    (0..size).map(|at| (at >> 12) as u8 ^ seed).collect()
}

/// The Hub the fixtures were pulled from: a file large enough to be moved to a boundary of 2 MiB where the format does that, and one that
/// was not finished.
fn origin() -> Hub {
    Hub::start(vec![
        Repo::new(REPO).file("config.json", "{\"a\":1}").file("model-Q4_K_M.gguf", pattern(1, 33 * MIB)),
        Repo::new(LATE).file("late.gguf", pattern(2, 12 * MIB)),
    ])
}

fn fixture(format: u32) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/stores/format-{format}.tar.gz"))
}

fn format_of(store: &Path) -> Vec<u8> {
    let records = StorageRegistry::new(store).records(&store.join("model_cache_manifests"), &TABLES).unwrap();
    let table: Table<[u8]> = Table::new("store");
    records.begin_read().unwrap().get_bytes(&table, "format").unwrap().unwrap()
}

fn tar(args: &[&str], folder: &Path) {
    let status = Command::new("tar").args(args).current_dir(folder).status().unwrap();
    assert!(status.success(), "tar {args:?}: {status}");
}

/// Makes the fixture of a format; never run again for one that is committed (tests/stores/README.md).
#[tokio::test]
#[ignore = "makes a fixture: for a new store format, once"]
async fn make_a_fixture() {
    let format: u32 = std::env::var("MODEL_CACHE_FIXTURE_FORMAT").expect("MODEL_CACHE_FIXTURE_FORMAT=<n>").parse().unwrap();
    assert!(!fixture(format).exists(), "{} is there, and is never made again", fixture(format).display());
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("store");
    {
        let records = StorageRegistry::new(&store).records(&store.join("model_cache_manifests"), &TABLES).unwrap();
        let txn = records.begin_write().unwrap();
        txn.put_bytes(&Table::new("store"), "format", &format.to_le_bytes()).unwrap();
        txn.commit().unwrap();
    }
    let hub = origin();
    {
        let cache = builder(&store, &hub.endpoint()).connections(1).open().unwrap();
        let report = cache.pull(REPO).all(true).run().await.unwrap();
        assert_eq!(report.files, 2);
        fs::write(dir.path().join("notes.bin"), pattern(3, 200_000)).unwrap();
        fs::write(dir.path().join("notes.txt"), "notes").unwrap();
        let sources = [dir.path().join("notes.bin"), dir.path().join("notes.txt")];
        cache.import(IMPORTED, &sources, &ImportOptions::default()).unwrap();
        hub.faults().always(Target::path("late.gguf").cdn(), Fault::SlowBytesPerSecond(8 * MIB));
        let cancel = CancellationToken::new();
        let enough = cancel.clone();
        let sink: EventSink = Arc::new(move |event: &Event| {
            if matches!(event.kind, EventKind::Progress { loaded_bytes, .. } if loaded_bytes >= 6 * MIB) {
                enough.cancel();
            }
        });
        let cancelled = cache.pull(LATE).all(true).on_event(Some(sink)).cancel_token(cancel).run().await;
        assert!(matches!(cancelled, Err(Error::Cancelled)), "{cancelled:?}");
    }
    for name in ["ballast", "model_cache_chunks/mdbx.lck", "model_cache_manifests/mdbx.lck"] {
        fs::remove_file(store.join(name)).unwrap();
    }
    fs::create_dir_all(fixture(format).parent().unwrap()).unwrap();
    let archive = fixture(format);
    tar(&["--sparse", "--owner=0", "--group=0", "-czf", archive.to_str().unwrap(), "store"], dir.path());
    println!("{}: {} bytes", archive.display(), fs::metadata(&archive).unwrap().len());
}

#[tokio::test]
async fn a_store_of_each_earlier_format_is_read_verified_pulled_into_and_emptied_and_keeps_its_format() {
    for format in [1, 2] {
        let dir = tempfile::tempdir().unwrap();
        tar(&["--no-same-owner", "-xzf", fixture(format).to_str().unwrap()], dir.path());
        let store = dir.path().join("store");
        assert_eq!(format_of(&store), format.to_le_bytes());

        let found = ModelCache::builder(&store).offline(true).examine().await;
        assert_eq!(found.kind(), None, "{found:#?}");
        assert!(found.findings.iter().any(|finding| finding.what.starts_with(&format!("format {format}"))));
        assert!(found.findings.iter().any(|finding| finding.what.starts_with("1 unfinished downloads")), "{found:#?}");

        let hub = origin();
        let cache = cache(&store, &hub);
        let listed: Vec<_> =
            cache.list().unwrap().into_iter().map(|repo| (repo.repo.to_string(), repo.files, repo.filling_files)).collect();
        assert_eq!(listed, [(IMPORTED.to_owned(), 2, 0), (LATE.to_owned(), 0, 1), (REPO.to_owned(), 2, 0)]);
        assert!(holds(&cache, REPO, "model-Q4_K_M.gguf", &pattern(1, 33 * MIB).into()));
        assert!(holds(&cache, REPO, "config.json", &"{\"a\":1}".into()));
        assert!(holds(&cache, IMPORTED, "notes.bin", &pattern(3, 200_000).into()));
        assert!(holds(&cache, IMPORTED, "notes.txt", &"notes".into()));
        let manifest = cache.local_manifest(REPO).unwrap().unwrap();
        assert_eq!(manifest.quants["Q4_K_M"].status, QuantStatus::Downloaded);
        let placed = cache.open_file(REPO, "model-Q4_K_M.gguf").unwrap().placement().unwrap().offset_of(0..1).unwrap();
        assert_eq!(placed.is_multiple_of(2 << 20), format == 2, "format {format}: {placed}");
        let digests = VerifyOptions { digest: true, ..VerifyOptions::default() };
        assert_eq!(cache.verify(None, &[], &digests).unwrap().bad, []);

        // The unfinished one goes on from the block that had landed.
        let report = cache.pull(LATE).all(true).run().await.unwrap();
        assert!(report.fetched_bytes > 0 && report.fetched_bytes <= 7 * MIB, "{report:?}");
        assert!(holds(&cache, LATE, "late.gguf", &pattern(2, 12 * MIB).into()));
        // New content beside the old.
        let new = Content::seeded(9, 40 * MIB);
        hub.push(REPO, "main", [("model-Q8_0.gguf", new.clone())]);
        cache.pull(REPO).quant("Q8_0").run().await.unwrap();
        assert!(holds(&cache, REPO, "model-Q8_0.gguf", &new));
        assert_eq!(cache.verify(None, &[], &digests).unwrap().bad, []);
        for repo in [REPO, LATE, IMPORTED] {
            cache.delete_model(repo).unwrap();
        }
        cache.gc().unwrap();
        assert!(cache.list().unwrap().is_empty());
        assert_sound(&cache);
        drop(cache);
        assert_eq!(format_of(&store), format.to_le_bytes());
    }
}

// -- newer and foreign -----------------------------------------------------------------------------------------------

/// A small store of one import, closed.
fn store_with(seed: u64, size: u64) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("file");
    fs::write(&source, Content::seeded(seed, size).read(0..size).unwrap()).unwrap();
    local(&dir.path().join("store")).import("org/local", &[source], &ImportOptions::default()).unwrap();
    dir
}

#[test]
fn a_data_file_of_another_engine_or_version_is_refused_with_both_named_and_left_as_it_is() {
    // libmdbx's magic and another version of its format, in each of the first pages; LMDB's magic and version.
    let newer = |path: &Path, page: u64| {
        let file = File::options().write(true).open(path).unwrap();
        (0..3).for_each(|n| file.write_all_at(&[9], n * page + 20).unwrap());
    };
    let lmdb = |path: &Path, _: u64| {
        let mut bytes = vec![0; 1 << 20];
        bytes[16..20].copy_from_slice(&0xBEEF_C0DE_u32.to_le_bytes());
        bytes[20] = 1;
        fs::write(path, bytes).unwrap();
    };
    type Change<'a> = &'a dyn Fn(&Path, u64);
    let changes: [(Change<'_>, [&str; 2]); 2] =
        [(&newer, ["format 9", "format 3"]), (&lmdb, ["LMDB's, of its format 1", "libmdbx's format 3"])];
    for (change, words) in changes {
        for (folder, page) in [("model_cache_manifests", 4 << 10), ("model_cache_chunks", 64 << 10)] {
            let dir = store_with(1, MIB);
            let path = dir.path().join("store").join(folder).join("mdbx.dat");
            change(&path, page);
            let before = crc(&fs::read(&path).unwrap());
            let error = ModelCache::open(dir.path().join("store")).unwrap_err();
            let text = error.chain();
            assert!(words.iter().all(|word| text.contains(word)) && text.contains(folder), "{text}");
            assert_eq!(error.kind(), ErrorKind::Integrity);
            assert!(error.hint().is_some());
            assert_eq!(crc(&fs::read(&path).unwrap()), before, "{folder} was changed");
        }
    }
}

#[test]
fn chunks_without_their_records_are_no_new_store() {
    for gone in [true, false] {
        let dir = store_with(1, MIB);
        let store = dir.path().join("store");
        let records = store.join("model_cache_manifests/mdbx.dat");
        if gone {
            fs::remove_file(&records).unwrap()
        } else {
            drop(File::create(&records).unwrap())
        }
        let error = ModelCache::open(&store).unwrap_err();
        assert!(error.is_corruption() && error.hint().is_some(), "{error:?}");
        assert!(error.to_string().contains(store.to_str().unwrap()), "{error}");
        // A gc of an empty store would free what the other records knew of.
        assert!(fs::metadata(store.join("model_cache_chunks/mdbx.dat")).unwrap().len() > MIB);
    }
}

#[test]
fn another_stores_chunks_are_never_read_as_ours() {
    for other in [9 * MIB, 2 * MIB] {
        let (dir, foreign) = (store_with(1, 9 * MIB - 1), store_with(2, other));
        let chunks = Path::new("store/model_cache_chunks/mdbx.dat");
        fs::copy(foreign.path().join(chunks), dir.path().join(chunks)).unwrap();
        let cache = local(&dir.path().join("store"));
        let error = cache.get_file("org/local", "file").unwrap_err();
        assert!(error.is_corruption(), "{error}");
        assert_eq!(cache.verify(None, &[], &VerifyOptions::default()).unwrap().bad.len(), 1);
    }
}
