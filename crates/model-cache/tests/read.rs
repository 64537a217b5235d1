//! What a loader gets: one slice, right alignments, readers and slices that agree with it, on the fallback path too.

mod common;

use common::*;
use hub_fixture::Content;
use proptest::prelude::*;
use std::{
    fs,
    io::{Cursor, Read, Seek, SeekFrom},
    sync::{Arc, Mutex, OnceLock, PoisonError, Weak},
};
use tabagent_model_cache::*;

/// 2.3 chunks.
const LARGE: u64 = 230 * MIB + 12_345;

const SIZES: [(&str, u64); 8] = [
    ("empty", 0),
    ("one", 1),
    ("inline", INLINE_BYTES),
    ("extent", INLINE_BYTES + 1),
    ("block", BLOCK_BYTES),
    ("chunk", CHUNK_BYTES),
    ("chunk-and-one", CHUNK_BYTES + 1),
    ("large", LARGE),
];

struct Imported {
    dir: tempfile::TempDir,
    side_by_side: ModelCache,
    fallback: ModelCache,
}

/// Files of every telling size, imported once for all tests that run side by side.
fn imported() -> Arc<Imported> {
    static SHARED: Mutex<Weak<Imported>> = Mutex::new(Weak::new());
    let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(imported) = shared.upgrade() {
        return imported;
    }
    let dir = tempfile::tempdir().unwrap();
    let sources = dir.path().join("sources");
    fs::create_dir(&sources).unwrap();
    for (seed, (name, size)) in SIZES.iter().enumerate() {
        fs::write(sources.join(name), content(seed, *size)).unwrap();
    }
    let store = dir.path().join("store");
    let open = |side_by_side| ModelCache::builder(&store).offline(true).side_by_side(side_by_side).open().unwrap();
    let (side_by_side, fallback) = (open(true), open(false));
    let report = side_by_side.import("org/local", std::slice::from_ref(&sources), &ImportOptions::default()).unwrap();
    assert_eq!(report.files, SIZES.len() as u64);
    fs::remove_dir_all(sources).unwrap();
    let imported = Arc::new(Imported { dir, side_by_side, fallback });
    *shared = Arc::downgrade(&imported);
    imported
}

fn content(seed: usize, size: u64) -> Vec<u8> {
    Content::seeded(seed as u64, size).read(0..size).unwrap().to_vec()
}

fn open(cache: &ModelCache, name: &str) -> ModelFile {
    cache.get_file("org/local", name).unwrap().unwrap()
}

/// The content of "large", for holding reads against.
fn large() -> &'static [u8] {
    static LARGE_BYTES: OnceLock<Vec<u8>> = OnceLock::new();
    LARGE_BYTES.get_or_init(|| content(SIZES.len() - 1, LARGE))
}

#[test]
fn files_may_go_to_any_thread() {
    fn shared<T: Send + Sync + Clone + 'static>() {}
    shared::<ModelFile>();
    shared::<ModelReader>();
    shared::<ModelCache>();
}

#[test]
fn a_file_of_any_size_is_one_slice_of_what_was_imported_both_ways() {
    let imported = imported();
    let Imported { side_by_side, fallback, .. } = &*imported;
    for (seed, (name, size)) in SIZES.iter().enumerate() {
        let expected = content(seed, *size);
        for (way, cache) in [("side by side", side_by_side), ("fallback", fallback)] {
            let file = open(cache, name);
            assert!(file[..] == expected[..], "{name} {way}");
            assert_eq!(file.as_ref().len() as u64, *size);
            let slices: Vec<&[u8]> = file.slices().collect();
            assert_eq!(slices.len() as u64, size.div_ceil(CHUNK_BYTES), "{name} {way}");
            assert!(slices.iter().rev().skip(1).all(|slice| slice.len() as u64 == CHUNK_BYTES));
            assert!(slices.concat() == expected, "{name} {way}");
            let mut read = Vec::new();
            file.reader().read_to_end(&mut read).unwrap();
            assert!(read == expected, "{name} {way}");
        }
    }
    assert!(fallback.verify(None, &[], &VerifyOptions { digest: true, ..VerifyOptions::default() }).unwrap().bad.is_empty());
}

#[test]
fn the_slice_begins_where_every_alignment_holds() {
    let imported = imported();
    for (name, size) in SIZES.iter().filter(|(_, size)| *size > 0) {
        let file = open(&imported.side_by_side, name);
        let boundary = if *size > INLINE_BYTES { 64 << 10 } else { 64 };
        assert_eq!(file.as_ptr() as usize % boundary, 0, "{name}");
        assert_eq!(open(&imported.fallback, name).as_ptr() as usize % 64, 0, "{name}");
    }
}

#[test]
fn a_file_outlives_the_cache_it_came_from_and_its_clones_share_it() {
    let imported = imported();
    let cache = ModelCache::builder(imported.dir.path().join("store")).offline(true).open().unwrap();
    let file = open(&cache, "large");
    let (clone, mut reader) = (file.clone(), file.reader());
    assert_eq!(file.as_ptr(), clone.as_ptr());
    drop((cache, file));
    let bytes = std::thread::spawn(move || clone[..] == *large()).join().unwrap();
    assert!(bytes);
    let mut end = Vec::new();
    reader.seek(SeekFrom::End(-10)).unwrap();
    reader.read_to_end(&mut end).unwrap();
    assert_eq!(end, large()[LARGE as usize - 10..]);
}

#[test]
fn many_threads_read_one_file_at_once() {
    let imported = imported();
    let file = Arc::new(open(&imported.side_by_side, "large"));
    let threads: Vec<_> = (0..4)
        .map(|n| {
            let file = Arc::clone(&file);
            std::thread::spawn(move || crc(&file[n * 1000..]) == crc(&large()[n * 1000..]))
        })
        .collect();
    assert!(threads.into_iter().all(|thread| thread.join().unwrap()));
}

#[test]
fn what_is_not_here_is_none_and_what_is_no_name_an_error() {
    let imported = imported();
    let cache = &imported.side_by_side;
    assert!(cache.get_file("org/local", "nothing").unwrap().is_none());
    assert!(cache.get_file("org/nobody", "large").unwrap().is_none());
    assert!(matches!(cache.get_file("local", "large"), Err(Error::InvalidRepo { .. })));
    assert!(matches!(cache.get_file("org/local", "../large"), Err(Error::InvalidPath { .. })));
    assert!(matches!(cache.get_file("org/local@a b", "large"), Err(Error::InvalidRevision { .. })));
    assert!(!cache.has_file("org/local", "nothing").unwrap() && cache.has_file("org/local", "empty").unwrap());
}

#[derive(Clone, Debug)]
enum Op {
    Start(u64),
    End(i64),
    Current(i64),
    Read(usize),
}

/// Mostly about the borders of chunks and of the file.
fn ops() -> impl Strategy<Value = Vec<Op>> {
    let near = |at: u64| (at.saturating_sub(5_000)..at + 5_000).boxed();
    let somewhere = prop_oneof![near(0), near(CHUNK_BYTES), near(2 * CHUNK_BYTES), near(LARGE), 0..LARGE];
    let op = prop_oneof![
        somewhere.prop_map(Op::Start),
        (-(LARGE as i64) - 5..20i64).prop_map(Op::End),
        (-10_000i64..10_000).prop_map(Op::Current),
        (0usize..20_000).prop_map(Op::Read),
        (0usize..20_000).prop_map(Op::Read),
    ];
    prop::collection::vec(op, 1..30)
}

#[test]
fn a_reader_does_what_a_cursor_over_the_bytes_does() {
    let imported = imported();
    proptest!(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() }, |(ops in ops())| {
        for cache in [&imported.side_by_side, &imported.fallback] {
            let mut reader = open(cache, "large").reader();
            let mut model = Cursor::new(large());
            for op in &ops {
                let seek = match op {
                    Op::Start(at) => SeekFrom::Start(*at),
                    Op::End(offset) => SeekFrom::End(*offset),
                    Op::Current(offset) => SeekFrom::Current(*offset),
                    Op::Read(bytes) => {
                        let (mut found, mut expected) = (vec![0; *bytes], vec![0; *bytes]);
                        // One read may give less, at a chunk's end; all of them give the same.
                        let found_bytes = read_fully(&mut reader, &mut found);
                        let expected_bytes = read_fully(&mut model, &mut expected);
                        prop_assert_eq!(found_bytes, expected_bytes);
                        prop_assert!(found == expected);
                        continue;
                    }
                };
                let (found, expected) = (reader.seek(seek), model.seek(seek));
                prop_assert_eq!(found.as_ref().ok(), expected.as_ref().ok(), "{:?}", seek);
                prop_assert_eq!(reader.stream_position().unwrap(), model.position());
            }
        }
    });
}

fn read_fully(reader: &mut impl Read, buffer: &mut [u8]) -> usize {
    let mut done = 0;
    while done < buffer.len() {
        match reader.read(&mut buffer[done..]).unwrap() {
            0 => break,
            bytes => done += bytes,
        }
    }
    done
}
