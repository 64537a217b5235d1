//! Ranges that chunks end within, kept once more in one piece each: what lies there, how long, and what else happens to it.

mod common;

use common::*;
use hub_fixture::Content;
use std::{
    fs::{self, File},
    ops::Range,
    os::unix::fs::FileExt,
    path::Path,
};
use tabagent_model_cache::*;

const SIZE: u64 = 2 * CHUNK_BYTES + 3 * MIB;
const REPO: &str = "org/local";
const PATH: &str = "weights.bin";

/// A store with one file of more than two chunks.
fn store(dir: &Path) -> (ModelCache, ModelFile) {
    let source = dir.join(PATH);
    let file = File::create(&source).unwrap();
    file.set_len(SIZE).unwrap();
    // Only what is gathered needs bytes of its own.
    for edge in [CHUNK_BYTES, 2 * CHUNK_BYTES] {
        let part = Content::seeded(edge, 16 * MIB).read(0..(SIZE - edge).min(8 * MIB) + 8 * MIB).unwrap();
        file.write_all_at(&part, edge - 8 * MIB).unwrap();
    }
    let cache = local(&dir.join("store"));
    cache.import(REPO, &[source], &ImportOptions::default()).unwrap();
    let file = cache.get_file(REPO, PATH).unwrap().unwrap();
    (cache, file)
}

/// Across both edges, one of them more than a block, and one within a chunk.
fn ranges() -> Vec<Range<u64>> {
    vec![CHUNK_BYTES - 7 * MIB..CHUNK_BYTES + 7 * MIB + 3, 2 * CHUNK_BYTES - 5..2 * CHUNK_BYTES + 1, 1..2]
}

/// That the data file shows, at each offset, the bytes of its range.
fn assert_gathered(file: &ModelFile, gathered: &Gathered) {
    let data_file = File::open(gathered.data_file().unwrap()).unwrap();
    for (range, offset) in ranges().into_iter().zip(gathered.offsets()) {
        let mut bytes = vec![0; (range.end - range.start) as usize];
        data_file.read_exact_at(&mut bytes, offset.unwrap()).unwrap();
        assert!(bytes == file[range.start as usize..range.end as usize], "{range:?}");
    }
}

#[test]
fn gathered_ranges_lie_in_one_piece_each_and_are_made_once() {
    let dir = tempfile::tempdir().unwrap();
    let (cache, file) = store(dir.path());
    assert!(file.placement().unwrap().offset_of(ranges()[0].clone()).is_none(), "a chunk ends within it");
    let gathered = cache.gather(&file, &ranges()).unwrap().unwrap();
    assert_gathered(&file, &gathered);
    let stats = cache.stats().unwrap();
    assert_eq!((stats.live_bytes, stats.derived_bytes), (SIZE, gathered.size_bytes()));
    let offsets = gathered.offsets().to_vec();
    drop((gathered, file, cache));
    let cache = local(&dir.path().join("store"));
    let file = cache.get_file(REPO, PATH).unwrap().unwrap();
    let again = cache.gather(&file, &ranges()).unwrap().unwrap();
    assert_eq!(again.offsets(), offsets, "it was made again");
    assert_gathered(&file, &again);
    assert_eq!(cache.stats().unwrap().derived_bytes, stats.derived_bytes);
    assert_sound(&cache);
    // Others see nothing of it.
    assert_eq!(cache.files(REPO).unwrap()[0].files.len(), 1);
    assert_eq!(cache.list().unwrap().len(), 1);
    assert_eq!(cache.gc().unwrap().freed_bytes, 0);
    assert_gathered(&file, &again);
}

#[test]
fn a_store_that_maps_no_chunks_side_by_side_gathers_the_same() {
    let dir = tempfile::tempdir().unwrap();
    drop(store(dir.path()));
    let cache = ModelCache::builder(dir.path().join("store")).offline(true).side_by_side(false).open().unwrap();
    let file = cache.get_file(REPO, PATH).unwrap().unwrap();
    assert_gathered(&file, &cache.gather(&file, &ranges()).unwrap().unwrap());
}

#[test]
fn gathered_ranges_go_with_their_file_and_not_before_their_reader_lets_go() {
    let dir = tempfile::tempdir().unwrap();
    let (cache, file) = store(dir.path());
    let gathered = cache.gather(&file, &ranges()).unwrap().unwrap();
    let expected: Vec<Vec<u8>> = ranges().iter().map(|range| file[range.start as usize..range.end as usize].to_vec()).collect();
    drop(file);
    let removed = cache.delete_model(REPO).unwrap();
    assert_eq!((removed.bytes, removed.freed_bytes, removed.busy_bytes), (SIZE, SIZE, gathered.size_bytes()));
    let data_file = File::open(gathered.data_file().unwrap()).unwrap();
    for (bytes, offset) in expected.iter().zip(gathered.offsets()) {
        let mut found = vec![0; bytes.len()];
        data_file.read_exact_at(&mut found, offset.unwrap()).unwrap();
        assert!(found == *bytes, "freed under its reader");
    }
    drop(gathered);
    let stats = cache.stats().unwrap();
    assert_eq!((stats.derived_bytes, stats.doomed_bytes), (0, 0));
    assert!(stats.disk_bytes < 24 * MIB, "{} bytes stayed", stats.disk_bytes);
}

#[test]
fn a_file_whose_last_name_is_gone_is_not_gathered_any_more() {
    let dir = tempfile::tempdir().unwrap();
    let (cache, file) = store(dir.path());
    cache.delete_model(REPO).unwrap();
    assert!(cache.gather(&file, &ranges()).unwrap().is_none());
    drop(file);
    let stats = cache.stats().unwrap();
    assert_eq!((stats.derived_bytes, stats.filling_bytes, stats.doomed_bytes), (0, 0, 0));
}

#[test]
fn verify_finds_damage_to_gathered_ranges_and_drops_them() {
    let dir = tempfile::tempdir().unwrap();
    let (cache, file) = store(dir.path());
    let gathered = cache.gather(&file, &ranges()).unwrap().unwrap();
    let at = gathered.offsets()[0].unwrap() + 6 * MIB;
    let data_file = fs::File::options().write(true).open(gathered.data_file().unwrap()).unwrap();
    let right = file[ranges()[0].start as usize + 6 * MIB as usize];
    data_file.write_all_at(&[right ^ 1], at).unwrap();
    drop(gathered);
    let bad = cache.verify(None, &[], &VerifyOptions::default()).unwrap().bad;
    assert!(matches!(&bad[..], [one] if one.path == PATH && one.reason.contains("derived")), "{bad:?}");
    assert_sound(&cache);
    assert_eq!(cache.stats().unwrap().derived_bytes, 0);
    assert_gathered(&file, &cache.gather(&file, &ranges()).unwrap().unwrap());
}

#[test]
fn ranges_that_do_not_lie_in_the_file_are_refused_before_anything_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let (cache, file) = store(dir.path());
    for range in [Range { start: 5, end: 5 }, Range { start: 6, end: 5 }, 0..SIZE + 1, u64::MAX - 1..u64::MAX] {
        let refused = cache.gather(&file, &[0..1, range.clone()]);
        assert!(matches!(refused, Err(Error::InvalidRange { size_bytes: SIZE, .. })), "{range:?}");
    }
    assert_eq!(cache.stats().unwrap().derived_bytes, 0);
    let source = dir.path().join("small");
    fs::write(&source, [1; 100]).unwrap();
    cache.import(REPO, &[source], &ImportOptions::default()).unwrap();
    let small = cache.get_file(REPO, "small").unwrap().unwrap();
    assert!(cache.gather(&small, std::slice::from_ref(&(0..1))).unwrap().is_none(), "it has no place in the data file");
}

#[test]
fn damage_on_the_disk_is_told_and_not_copied_into_a_value_that_would_pass_for_sound() {
    let dir = tempfile::tempdir().unwrap();
    let (cache, file) = store(dir.path());
    let placement = file.placement().unwrap();
    let at = placement.offset_of(CHUNK_BYTES..CHUNK_BYTES + 1).unwrap();
    let data_file = fs::File::options().write(true).open(placement.data_file()).unwrap();
    data_file.write_all_at(&[file[CHUNK_BYTES as usize] ^ 1], at).unwrap();
    let error = cache.gather(&file, &ranges()).unwrap_err();
    assert!(matches!(&error, Error::Damaged { what, .. } if what == "org/local weights.bin"), "{error}");
    assert!(error.to_string().contains("block 20"), "{error}");
    let stats = cache.stats().unwrap();
    assert_eq!((stats.derived_bytes, stats.filling_bytes, stats.doomed_bytes), (0, 0, 0));
    // Blocks no range touches do not matter.
    assert!(cache.gather(&file, &ranges()[1..]).unwrap().is_some());
}

#[test]
fn a_range_asked_for_twice_is_kept_once_and_ranges_that_overlap_take_no_more_than_their_file() {
    let dir = tempfile::tempdir().unwrap();
    let (cache, file) = store(dir.path());
    let once = cache.gather(&file, &ranges()).unwrap().unwrap();
    let twice = [ranges(), ranges()].concat();
    let gathered = cache.gather(&file, &twice).unwrap().unwrap();
    assert_eq!(gathered.offsets(), [once.offsets(), once.offsets()].concat());
    assert_eq!(cache.stats().unwrap().derived_bytes, once.size_bytes(), "it was made again");
    // What a hostile file may name: tensors over tensors, each nearly all of it.
    let many: Vec<_> = (0..1000).map(|start| start..SIZE).collect();
    assert!(cache.gather(&file, &many).unwrap().is_none());
    assert_eq!(cache.stats().unwrap().derived_bytes, once.size_bytes());
}
