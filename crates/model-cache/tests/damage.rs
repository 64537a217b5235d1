//! Bytes on disk that are not what was written: found, named, never believed, never a crash. And stores that can't be opened.

mod common;
#[path = "damage/flips.rs"]
mod flips;
#[path = "damage/repair.rs"]
mod repair;

use common::*;
use hub_fixture::Content;
use std::{
    fs::{self, File},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};
use storage::{StorageRegistry, Table};
use tabagent_model_cache::*;

#[test]
fn child() {
    obey_or(|words| match words {
        ["flips", store, seed, from, to] => {
            flips::flip(Path::new(store), seed.parse().unwrap(), from.parse().unwrap(), to.parse().unwrap())
        }
        ["repair", store, endpoint] => repair::repair(Path::new(store), endpoint),
        _ => panic!("no such order: {words:?}"),
    });
}

const SIZE: u64 = 112 * MIB;
const TABLES: [&str; 7] = ["chunks", "metadata", "blobs", "manifests", "refs", "access", "store"];

fn bytes(seed: u64, size: u64) -> Vec<u8> {
    Content::seeded(seed, size).read(0..size).unwrap().to_vec()
}

/// A store with `org/local` `large` (two chunks) and `small` (inline), closed.
fn store() -> tempfile::TempDir {
    store_of(SIZE)
}

fn store_of(large: u64) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let sources = dir.path().join("sources");
    fs::create_dir(&sources).unwrap();
    fs::write(sources.join("large"), bytes(1, large)).unwrap();
    fs::write(sources.join("small"), bytes(2, 3000)).unwrap();
    local(&dir.path().join("store")).import("org/local", &[sources], &ImportOptions::default()).unwrap();
    dir
}

fn data_file(dir: &tempfile::TempDir) -> PathBuf {
    dir.path().join("store/model_cache_chunks/mdbx.dat")
}

/// Where the bytes of "large" from `offset` on lie in the data file.
fn place(dir: &tempfile::TempDir, offset: u64) -> u64 {
    let pattern = Content::seeded(1, SIZE).read(offset..offset + 64).unwrap();
    let file = File::open(data_file(dir)).unwrap();
    let mut found = Vec::new();
    let mut buffer = [0; 64];
    let within = offset % (64 << 10);
    for page in 0..file.metadata().unwrap().len() / (64 << 10) {
        let at = page * (64 << 10) + within;
        if file.read_exact_at(&mut buffer, at).is_ok() && buffer[..] == pattern[..] {
            found.push(at);
        }
    }
    assert_eq!(found.len(), 1, "the pattern at {offset} is in the data file once");
    found[0]
}

fn flip(path: &Path, at: u64) {
    let file = File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 0x10], at).unwrap();
}

fn bad(cache: &ModelCache) -> Vec<(String, String, u32, u32)> {
    let report = cache.verify(None, &[], &VerifyOptions::default()).unwrap();
    assert_eq!(report.files, 2);
    report.bad.into_iter().map(|bad| (bad.repo, bad.path, bad.chunk, bad.block)).collect()
}

#[test]
fn a_flipped_byte_is_found_in_its_block_of_its_chunk_and_nowhere_else() {
    for (offset, chunk, block) in [(0, 0, 0), (37 * MIB, 0, 7), (SIZE - 64, 1, 2)] {
        let dir = store();
        flip(&data_file(&dir), place(&dir, offset));
        let cache = local(&dir.path().join("store"));
        assert_eq!(bad(&cache), [("org/local".to_owned(), "large".to_owned(), chunk, block)]);
        // Removed and imported again it is well.
        cache.delete_file("org/local", "large").unwrap();
        cache.import("org/local", &[dir.path().join("sources/large")], &ImportOptions::default()).unwrap();
        assert_eq!(bad(&cache), []);
    }
}

#[test]
fn a_byte_flipped_while_the_store_is_open_is_found_on_disk_and_not_hidden_by_the_page_cache() {
    let dir = store();
    let cache = local(&dir.path().join("store"));
    let file = cache.get_file("org/local", "large").unwrap().unwrap();
    let before = crc(&file);
    flip(&data_file(&dir), place(&dir, 50 * MIB + 128));
    assert_eq!(bad(&cache), [("org/local".to_owned(), "large".to_owned(), 0, 10)]);
    assert_ne!(crc(&file), before);
}

#[test]
fn a_flipped_byte_in_a_chunks_header_makes_its_file_damaged_and_no_other() {
    for (field, name, chunk) in [(64, "magic", 0), (80, "owner", 1), (76, "index", 0), (88, "length", 1), (100, "checksum", 0)] {
        {
            let dir = store();
            let page = place(&dir, chunk * 100 * MIB) - (64 << 10);
            flip(&data_file(&dir), page + field);
            let cache = local(&dir.path().join("store"));
            let error = cache.get_file("org/local", "large").unwrap_err();
            assert!(
                matches!(&error, Error::Damaged { what, reason } if what == "org/local large" && reason.contains(&format!("chunk {chunk}"))),
                "{name}: {error}"
            );
            assert!(error.is_corruption());
            assert_eq!(cache.get_file("org/local", "small").unwrap().unwrap()[..], bytes(2, 3000));
            assert_eq!(bad(&cache), [("org/local".to_owned(), "large".to_owned(), chunk as u32, 0)]);
            let to = dir.path().join("out");
            let exported = cache.export("org/local", &["large".to_owned()], &to, &ExportOptions::default());
            assert!(matches!(exported, Err(Error::Damaged { .. })));
            assert!(!to.join("large").exists());
            // What can't be read can still be removed, and its name used again.
            cache.delete_file("org/local", "large").unwrap();
            cache.import("org/local", &[dir.path().join("sources/large")], &ImportOptions::default()).unwrap();
            assert_eq!(bad(&cache), [], "{name} of chunk {chunk}");
            cache.gc().unwrap();
            assert_eq!(bad(&cache), [], "{name} of chunk {chunk}");
            cache.delete_model("org/local").unwrap();
            cache.gc().unwrap();
            assert!(cache.stats().unwrap().disk_bytes < 64 * MIB, "{name} of chunk {chunk}: {:?}", cache.stats());
        }
    }
}

#[test]
fn a_data_file_that_was_cut_short_or_is_gone_is_an_error_and_no_crash() {
    for cut in [true, false] {
        let dir = store();
        if cut {
            let at = place(&dir, 100 * MIB) + MIB;
            File::options().write(true).open(data_file(&dir)).unwrap().set_len(at).unwrap();
        } else {
            fs::remove_dir_all(data_file(&dir).parent().unwrap()).unwrap();
        }
        let cache = match ModelCache::builder(dir.path().join("store")).offline(true).open() {
            Ok(cache) => cache,
            Err(error) => {
                println!("cut: {cut}: {error}");
                continue;
            }
        };
        assert!(cache.get_file("org/local", "large").is_err());
        assert_eq!(cache.get_file("org/local", "small").unwrap().unwrap()[..], bytes(2, 3000));
        let chunks = if cut { 0..1 } else { 0..2 };
        assert_eq!(bad(&cache), chunks.map(|chunk| ("org/local".to_owned(), "large".to_owned(), chunk, 0)).collect::<Vec<_>>());
        cache.delete_model("org/local").unwrap();
    }
}

/// Puts plain bytes at the first key of `table` that begins with `prefix`.
fn overwrite(dir: &tempfile::TempDir, table: &'static str, prefix: &str, bytes: &[u8]) -> String {
    let registry = StorageRegistry::new(dir.path());
    let records = registry.records(&dir.path().join("store/model_cache_manifests"), &TABLES).unwrap();
    let table: Table<[u8]> = Table::new(table);
    let keys = records.begin_read().unwrap().scan_bytes(&table, prefix).unwrap();
    let key = keys.first().map_or_else(|| prefix.to_owned(), |(key, _)| key.clone());
    let txn = records.begin_write().unwrap();
    txn.put_bytes(&table, &key, bytes).unwrap();
    txn.commit().unwrap();
    key
}

#[test]
fn a_damaged_record_is_named_and_never_believed() {
    for (table, prefix) in [("blobs", "blob:"), ("metadata", "meta:org/local:large")] {
        for garbage in [&b""[..], b"x", &[0xFF; 400], &[0; 400]] {
            let dir = store_of(MIB);
            let key = overwrite(&dir, table, prefix, garbage);
            let cache = local(&dir.path().join("store"));
            let opened = [cache.get_file("org/local", "large"), cache.get_file("org/local", "small")];
            let errors: Vec<_> = opened.into_iter().filter_map(Result::err).collect();
            assert_eq!(errors.len(), 1, "{table} {garbage:02x?}");
            assert!(errors[0].is_corruption(), "{}", errors[0]);
            let told = std::error::Error::source(&errors[0]).map_or_else(|| errors[0].to_string(), ToString::to_string);
            assert!(told.contains(&key), "{told}");
        }
    }
}

#[test]
fn a_store_of_a_newer_format_is_refused_and_not_touched() {
    let dir = store_of(MIB);
    overwrite(&dir, "store", "format", &3u32.to_le_bytes());
    let store = dir.path().join("store");
    let content = |name: &str| fs::read(store.join(name).join("mdbx.dat")).unwrap();
    let before = (content("model_cache_manifests"), crc(&content("model_cache_chunks")));
    let error = ModelCache::open(&store).unwrap_err();
    assert!(matches!(&error, Error::StoreFormat { found: 3, supported: 2, store: named } if *named == store), "{error}");
    assert!((content("model_cache_manifests"), crc(&content("model_cache_chunks"))) == before);
    overwrite(&dir, "store", "format", b"???");
    assert!(matches!(ModelCache::open(&store), Err(Error::Damaged { .. })));
    overwrite(&dir, "store", "format", &2u32.to_le_bytes());
    assert_eq!(bad(&local(&store)), []);
}

#[test]
fn a_store_of_the_older_format_is_read_filled_and_emptied_as_it_is() {
    const LARGE_PAGE_BYTES: u64 = 2 << 20;
    for format in [1_u32, 2] {
        let dir = tempfile::tempdir().unwrap();
        let (store, source) = (dir.path().join("store"), dir.path().join("large"));
        fs::write(&source, bytes(1, SIZE)).unwrap();
        {
            let records = StorageRegistry::new(&store).records(&store.join("model_cache_manifests"), &TABLES).unwrap();
            let txn = records.begin_write().unwrap();
            txn.put_bytes(&Table::new("store"), "format", &format.to_le_bytes()).unwrap();
            txn.commit().unwrap();
        }
        local(&store).import("org/local", &[source], &ImportOptions::default()).unwrap();
        let cache = local(&store);
        let file = cache.open_file("org/local", "large").unwrap();
        assert!(file[..] == bytes(1, SIZE), "format {format}");
        let offset = file.placement().unwrap().offset_of(0..1).unwrap();
        assert_eq!(offset.is_multiple_of(LARGE_PAGE_BYTES), format == 2, "format {format}: {offset}");
        assert!(format == 1 || (file.as_ptr() as u64).is_multiple_of(LARGE_PAGE_BYTES));
        drop(file);
        assert_eq!(cache.verify(None, &[], &VerifyOptions::default()).unwrap().bad, []);
        assert_eq!(cache.delete_model("org/local").unwrap().freed_bytes, SIZE);
        let stats = cache.stats().unwrap();
        assert!(stats.disk_bytes < 24 * MIB, "{stats:?}");
    }
}

#[test]
fn what_is_in_memory_is_checked_as_loaders_see_it_where_that_is_asked_for() {
    let dir = store();
    let cache = local(&dir.path().join("store"));
    let cached = |cache: &ModelCache| {
        let options = VerifyOptions { cached: true, ..VerifyOptions::default() };
        let report = cache.verify(None, &[], &options).unwrap();
        assert_eq!((report.files, report.bytes), (2, SIZE + 3000));
        report.bad.into_iter().map(|bad| (bad.path, bad.chunk, bad.block)).collect::<Vec<_>>()
    };
    assert_eq!(cached(&cache), []);
    for (offset, chunk, block) in [(SIZE - 64, 1, 2), (50 * MIB + 128, 0, 10)] {
        flip(&data_file(&dir), place(&dir, offset));
        assert!(cached(&cache).contains(&("large".to_owned(), chunk, block)));
    }
    // In order, though several threads look.
    assert_eq!(cached(&cache), [("large".to_owned(), 0, 10), ("large".to_owned(), 1, 2)]);
}

#[test]
fn a_database_of_garbage_is_an_error_that_names_the_store() {
    for (folder, size) in [("model_cache_manifests", 1 << 20), ("model_cache_chunks", 1 << 20), ("model_cache_manifests", 100)] {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join(folder)).unwrap();
        let garbage = bytes(9, size);
        fs::write(dir.path().join(folder).join("mdbx.dat"), &garbage).unwrap();
        let error = ModelCache::open(dir.path()).unwrap_err();
        let text = format!("{error}: {}", std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default());
        assert!(text.contains(dir.path().to_str().unwrap()), "{text}");
        println!("{text}");
        assert!(fs::read(dir.path().join(folder).join("mdbx.dat")).unwrap() == garbage, "what is no database is not overwritten");
    }
}

#[test]
fn a_path_that_is_a_file_or_lies_below_one_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "mine").unwrap();
    for path in [file.clone(), file.join("below")] {
        let error = ModelCache::open(&path).unwrap_err();
        assert!(matches!(&error, Error::Storage { source: storage::Error::NotAFolder { .. }, .. }), "{error}");
        assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
    }
    assert_eq!(fs::read(file).unwrap(), b"mine");
}

#[test]
fn a_store_that_cannot_be_written_is_refused_by_name() {
    let Some(dir) =
        in_mount_namespace("a_store_that_cannot_be_written_is_refused_by_name", r#"mount -t tmpfs -o size=100M tmpfs "$DIR""#)
    else {
        return;
    };
    let store = dir.join("store");
    drop(local(&store));
    let remounted = std::process::Command::new("mount").args(["-o", "remount,ro"]).arg(&dir).status().unwrap();
    assert!(remounted.success());
    for path in [store, dir.join("new")] {
        let error = ModelCache::open(&path).unwrap_err();
        assert!(matches!(&error, Error::Storage { source: storage::Error::ReadOnly { .. }, .. }), "{error:?}");
        assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
        assert!(error.hint().is_some());
    }
}
