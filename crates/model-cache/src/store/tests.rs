//! What the store keeps to in the rare order of things: damage, races between threads, and leftovers of a crash.

use super::*;
use crate::digest::{Digest, Hasher};
use std::{
    fs::File,
    os::unix::fs::FileExt,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

const MIB: u64 = 1 << 20;
const PATH: &str = "model.gguf";

fn open(dir: &Path) -> Arc<Store> {
    Store::open(&StorageRegistry::new(dir), dir).unwrap()
}

fn repo() -> PinnedRepo {
    PinnedRepo::new("org/model".parse().unwrap(), "0123456789abcdef0123456789abcdef01234567".parse().unwrap())
}

fn spec() -> RepoSpec {
    "org/model".parse().unwrap()
}

fn digest_of(bytes: &[u8]) -> Digest {
    let mut hasher = Hasher::sha256();
    hasher.update(bytes);
    hasher.finish()
}

fn wanted(path: &str, size_bytes: u64, digest: Digest) -> Wanted {
    Wanted { repo: repo(), path: path.parse().unwrap(), size_bytes, digest }
}

fn wanted_bytes(path: &str, bytes: &[u8]) -> Wanted {
    wanted(path, bytes.len() as u64, digest_of(bytes))
}

fn acquire(store: &Arc<Store>, wanted: &Wanted) -> Arc<Fill> {
    match store.acquire(wanted).unwrap() {
        Acquired::Fill(fill) => fill,
        Acquired::Here => panic!("{wanted:?} is here already"),
        Acquired::Busy { .. } => panic!("somebody fills {wanted:?}"),
    }
}

/// Writes and journals all of `bytes`.
fn write_all(fill: &Fill, bytes: &[u8]) {
    for (block, part) in bytes.chunks(BLOCK_BYTES as usize).enumerate() {
        fill.write(block as u64 * BLOCK_BYTES, part).unwrap();
        fill.land(block as u64, crc32c::crc32c(part)).unwrap();
    }
}

/// A sealed file of these bytes; its blob's key and row.
fn seal(store: &Arc<Store>, path: &str, bytes: &[u8]) -> (String, BlobRecord) {
    let wanted = wanted_bytes(path, bytes);
    let fill = acquire(store, &wanted);
    write_all(&fill, bytes);
    fill.seal(&wanted).unwrap();
    let blob_key = key::blob(&wanted.digest);
    let blob = store.blob(&blob_key).unwrap().unwrap();
    (blob_key, blob)
}

fn read(store: &Arc<Store>, path: &str) -> Result<Option<StoredFile>> {
    store.open_file(&repo(), &path.parse().unwrap(), true)
}

fn bytes_of(file: &StoredFile) -> &[u8] {
    match &file.content {
        Content::Inline(bytes) => bytes,
        Content::View(view) => view.as_slice(),
    }
}

fn holds(store: &Arc<Store>, path: &str, bytes: &[u8]) -> bool {
    read(store, path).unwrap().is_some_and(|file| bytes_of(&file) == bytes)
}

/// Damages the header of the first chunk, or, called again, mends it.
fn flip_header(store: &Store, blob: &BlobRecord) {
    const OWNER: u64 = 64 + 16;
    let file = File::options().read(true).write(true).open(store.folder().join(CHUNKS_FOLDER).join("mdbx.dat")).unwrap();
    let at = u64::from(blob.pages[0]) * storage::PAGE_BYTES + OWNER;
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 0xff], at).unwrap();
}

fn has_chunk(store: &Store, blob: &BlobRecord) -> bool {
    store.extents.locate(&key::chunk(&blob.home, 0)).unwrap().is_some()
}

fn remove_all(store: &Store) -> Removed {
    store.remove(&spec(), &Selection::All).unwrap()
}

#[test]
fn a_number_leased_by_a_process_that_was_killed_before_it_wrote_it_down_is_passed_over() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let (_, first) = seal(&store, PATH, &[7; 100_000]);
    let killed = store.leases.try_exclusive(first.id + 1).unwrap().unwrap();
    let (_, second) = seal(&store, "second.gguf", &[8; 100_000]);
    assert_eq!(second.id, first.id + 2);
    drop(killed);
    assert!(holds(&store, "second.gguf", &[8; 100_000]));
}

// -- damage ----------------------------------------------------------------------------------------------------------

#[test]
fn gc_leaves_a_sealed_extent_whose_header_is_damaged_alone_with_a_reader_and_without() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let bytes = vec![7; 6 << 20];
    let (_, blob) = seal(&store, PATH, &bytes);
    let reading = read(&store, PATH).unwrap().unwrap();
    assert!(bytes_of(&reading) == bytes);
    flip_header(&store, &blob);
    assert_eq!(store.collect_garbage().unwrap().freed_bytes, 0);
    assert!(bytes_of(&reading) == bytes, "gc took the bytes away under their reader");
    drop(reading);
    assert_eq!(store.collect_garbage().unwrap().freed_bytes, 0);
    assert!(matches!(read(&store, PATH), Err(Error::Damaged { .. })), "the damage is told");
    assert!(has_chunk(&store, &blob));
    flip_header(&store, &blob);
    assert!(holds(&store, PATH, &bytes));
}

#[test]
fn removing_a_file_whose_header_is_damaged_frees_its_chunk() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let (_, blob) = seal(&store, PATH, &vec![7; 6 << 20]);
    flip_header(&store, &blob);
    let before = storage::allocated_bytes(dir.path()).unwrap();
    let removed = remove_all(&store);
    assert_eq!((removed.freed_bytes, removed.busy_bytes), (6 * MIB, 0));
    assert!(!has_chunk(&store, &blob));
    assert!(store.all_blobs().unwrap().is_empty());
    if storage::can_punch() {
        let after = storage::allocated_bytes(dir.path()).unwrap();
        assert!(after + 5 * MIB <= before, "{before} B before, {after} B after");
    }
    assert_eq!(store.collect_garbage().unwrap().freed_bytes, 0);
}

#[test]
fn a_removed_file_whose_header_is_damaged_stays_whole_through_a_gc_until_its_reader_lets_go() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let bytes = vec![7; 6 << 20];
    let (blob_key, blob) = seal(&store, PATH, &bytes);
    let reading = read(&store, PATH).unwrap().unwrap();
    flip_header(&store, &blob);
    assert_eq!(remove_all(&store).busy_bytes, 6 * MIB);
    assert_eq!(store.collect_garbage().unwrap().freed_bytes, 0);
    assert!(bytes_of(&reading) == bytes);
    drop(reading);
    assert!(store.blob(&blob_key).unwrap().is_none());
    assert!(!has_chunk(&store, &blob));
}

// -- a seal and who reads then ----------------------------------------------------------------------------------------

#[test]
fn a_file_is_readable_once_it_is_sealed_also_while_its_fill_is_still_held() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let bytes = vec![7; 6 << 20];
    let wanted = wanted_bytes(PATH, &bytes);
    let fill = acquire(&store, &wanted);
    write_all(&fill, &bytes);
    fill.seal(&wanted).unwrap();
    // A pull whose future nobody polls holds it for as long as that takes.
    assert!(holds(&store, PATH, &bytes));
    drop(fill);
    assert!(holds(&store, PATH, &bytes));
}

#[test]
fn a_file_is_readable_while_its_sealer_waits_to_free_what_it_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let (old_key, _) = seal(&store, PATH, &vec![7; 6 << 20]);
    let bytes = vec![8; 6 << 20];
    let wanted = wanted_bytes(PATH, &bytes);
    let fill = acquire(&store, &wanted);
    write_all(&fill, &bytes);
    let sealing = thread::spawn(move || fill.seal(&wanted));
    while store.blob(&old_key).unwrap().is_some_and(|old| old.state == BlobState::Sealed) {
        thread::yield_now();
    }
    // Another's reservation, which the free of the old content has to wait for.
    let reservation = store.extents.begin_reserve().unwrap();
    assert!(holds(&store, PATH, &bytes));
    drop(reservation);
    sealing.join().unwrap().unwrap();
    assert!(store.blob(&old_key).unwrap().is_none());
    assert!(holds(&store, PATH, &bytes));
}

#[test]
fn small_files_that_are_written_anew_and_removed_never_read_as_damaged() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let done = Arc::new(AtomicBool::new(false));
    let readers: Vec<_> = (0..2)
        .map(|_| {
            let (store, done) = (Arc::clone(&store), Arc::clone(&done));
            thread::spawn(move || {
                while !done.load(Ordering::Relaxed) {
                    if let Some(file) = read(&store, "config.json").unwrap() {
                        let bytes = bytes_of(&file);
                        assert!(bytes.len() >= 1000 && bytes.iter().all(|byte| *byte == bytes[0]));
                    }
                }
            })
        })
        .collect();
    let begun = Instant::now();
    for round in 0..2000usize {
        let bytes = vec![round as u8; 1000 + round % 3];
        store.seal_inline(&wanted_bytes("config.json", &bytes), &bytes).unwrap();
        if round % 2 == 0 {
            remove_all(&store);
        }
        if begun.elapsed() > Duration::from_millis(1500) || readers.iter().any(thread::JoinHandle::is_finished) {
            break;
        }
    }
    done.store(true, Ordering::Relaxed);
    readers.into_iter().for_each(|reader| reader.join().unwrap());
}

// -- a fill that was dropped ------------------------------------------------------------------------------------------

#[test]
fn a_write_in_flight_keeps_the_space_of_a_fill_whose_pull_was_dropped_from_everybody_else() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let bytes = vec![7; 6 << 20];
    let wanted = wanted_bytes(PATH, &bytes);
    let fill = acquire(&store, &wanted);
    // As the thread holds it that writes: the pull's future is dropped, and what it has sent off is still to come.
    let in_flight = Arc::clone(&fill);
    fill.cancel();
    drop(fill);
    assert!(matches!(store.acquire(&wanted).unwrap(), Acquired::Busy { .. }));
    assert_eq!((store.collect_garbage().unwrap().freed_bytes, remove_all(&store).freed_bytes), (0, 0));
    assert!(!store.free_unfinished(&key::blob(&wanted.digest)).unwrap());
    let (_, other) = seal(&store, "other.gguf", &vec![9; 6 << 20]);
    in_flight.write(0, &bytes).unwrap();
    assert!(holds(&store, "other.gguf", &vec![9; 6 << 20]), "a late write went into another's pages");
    drop(in_flight);
    assert_eq!(store.collect_garbage().unwrap().freed_bytes, 6 * MIB);
    assert!(has_chunk(&store, &other));
}

#[test]
fn blocks_that_changed_since_they_were_journaled_are_not_believed() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let bytes = vec![7; 3 * BLOCK_BYTES as usize];
    let wanted = wanted_bytes(PATH, &bytes);
    let fill = acquire(&store, &wanted);
    write_all(&fill, &bytes);
    // As a power loss leaves a block that had not reached the disk, its journal having done so.
    fill.write(BLOCK_BYTES + 12345, &[8]).unwrap();
    drop(fill);
    let fill = acquire(&store, &wanted);
    fill.verify_landed().unwrap();
    assert_eq!(fill.landed(), [true, false, true]);
}

// -- one digest, two sizes --------------------------------------------------------------------------------------------

#[test]
fn a_small_file_is_sealed_where_an_unfinished_fill_of_another_size_has_its_digest() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let lying = acquire(&store, &wanted("a.gguf", 10 * MIB, digest_of(b"{}")));
    let honest = wanted_bytes("config.json", b"{}");
    // Somebody is at it: refused, with no name that leads to what is not whole.
    assert!(!store.link_if_here(&honest).unwrap());
    assert!(matches!(store.seal_inline(&honest, b"{}"), Err(Error::Busy { .. })));
    assert!(read(&store, "config.json").unwrap().is_none());
    drop(lying);
    assert!(!store.link_if_here(&honest).unwrap());
    store.seal_inline(&honest, b"{}").unwrap();
    assert!(holds(&store, "config.json", b"{}"));
    store.collect_garbage().unwrap();
    assert!(holds(&store, "config.json", b"{}"));
    assert_eq!(store.fills().unwrap().len(), 0);
    assert!(store.extents.locate(&key::chunk(&key::home(&repo(), &"a.gguf".parse().unwrap()), 0)).unwrap().is_none());
}

#[test]
fn a_large_file_takes_the_place_of_an_unfinished_fill_of_another_size() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let bytes = vec![7; 6 << 20];
    for lie in [3 * MIB, 10 * MIB] {
        let lying = acquire(&store, &wanted("a.gguf", lie, digest_of(&bytes)));
        assert!(store.acquire(&wanted_bytes(PATH, &bytes)).is_err(), "somebody is at it");
        drop(lying);
        seal(&store, PATH, &bytes);
        assert!(holds(&store, PATH, &bytes));
        assert_eq!(store.all_blobs().unwrap().len(), 1);
        remove_all(&store);
    }
    // Content that is sealed stands, whatever a listing says of its size.
    seal(&store, PATH, &bytes);
    assert!(matches!(store.acquire(&wanted("b.gguf", 7 * MIB, digest_of(&bytes))), Err(Error::BadAnswer { .. })));
    assert!(holds(&store, PATH, &bytes));
}

// -- opens beside others' work ----------------------------------------------------------------------------------------

#[test]
fn imports_succeed_while_others_open_the_store_and_collect_garbage() {
    const IMPORTS: u8 = 40;
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let done = Arc::new(AtomicBool::new(false));
    let others: Vec<_> = (0..3)
        .map(|n| {
            let (folder, done) = (dir.path().to_owned(), Arc::clone(&done));
            thread::spawn(move || {
                while !done.load(Ordering::Relaxed) {
                    let store = open(&folder);
                    if n == 0 {
                        store.collect_garbage().unwrap();
                    }
                }
            })
        })
        .collect();
    let local = PinnedRepo::import("org/local".parse().unwrap());
    for n in 0..IMPORTS {
        let path: FilePath = format!("file{n}").parse().unwrap();
        let bytes = vec![n; 100_000];
        let fill = store.begin_import(&local, &path, bytes.len() as u64).unwrap();
        write_all(&fill, &bytes);
        assert_eq!(store.fills().unwrap().len(), 1, "import {n} was taken for abandoned");
        if n % 2 == 0 {
            let wanted = Wanted { repo: local.clone(), path, size_bytes: bytes.len() as u64, digest: digest_of(&bytes) };
            fill.seal(&wanted).unwrap();
        } else {
            fill.discard().unwrap();
        }
    }
    done.store(true, Ordering::Relaxed);
    others.into_iter().for_each(|other| other.join().unwrap());
    for n in (0..IMPORTS).step_by(2) {
        let file = store.open_file(&local, &format!("file{n}").parse().unwrap(), true).unwrap().unwrap();
        assert!(bytes_of(&file).iter().all(|byte| *byte == n));
    }
    assert_eq!(store.all_blobs().unwrap().len(), usize::from(IMPORTS / 2));
    assert_eq!(store.collect_garbage().unwrap().freed_bytes, 0);
}

/// A store in `dir` in which a crash left: two files to be freed, an import to be freed, and, before and after them, markers
/// of files to be freed that name none.
fn leave_a_marker_that_names_no_blob(dir: &Path) {
    let store = open(dir);
    let import = PinnedRepo::import("org/local".parse().unwrap());
    drop(store.begin_import(&import, &"file".parse().unwrap(), MIB).unwrap());
    let doomed = [seal(&store, "a.gguf", &vec![1; 1 << 20]), seal(&store, "b.gguf", &vec![2; 1 << 20])];
    let small = wanted_bytes("config.json", b"{}");
    store.seal_inline(&small, b"{}").unwrap();
    let txn = store.begin_write().unwrap();
    for (blob_key, mut blob) in doomed {
        for name in std::mem::take(&mut blob.names) {
            txn.delete(&METADATA, &name).unwrap();
        }
        blob.state = BlobState::Doomed;
        txn.put(&BLOBS, &blob_key, &blob).unwrap();
        txn.put_bytes(&STORE, &key::doomed(blob.id), blob_key.as_bytes()).unwrap();
    }
    for (marker, value) in
        [("doomed:0", &b"\xff\xfe"[..]), ("doomed:x", b"blob:x"), ("doomed:99", b"\xff\xfe"), ("doomed:98", b"")]
    {
        txn.put_bytes(&STORE, marker, value).unwrap();
    }
    store.commit(txn).unwrap();
}

#[test]
fn a_marker_that_names_no_blob_does_not_keep_the_store_from_opening() {
    let dir = tempfile::tempdir().unwrap();
    leave_a_marker_that_names_no_blob(dir.path());
    let store = open(dir.path());
    assert!(holds(&store, "config.json", b"{}"));
    let bytes = vec![7; 1 << 20];
    seal(&store, PATH, &bytes);
    assert!(holds(&store, PATH, &bytes));
}

#[test]
fn a_marker_that_names_no_blob_does_not_keep_others_from_being_freed() {
    let dir = tempfile::tempdir().unwrap();
    leave_a_marker_that_names_no_blob(dir.path());
    let store = open(dir.path());
    let blobs = store.all_blobs().unwrap();
    assert!(blobs.iter().all(|(_, blob)| blob.is_inline()), "not freed by the open: {blobs:?}");
    // Nor from a gc, or a removal.
    store.collect_garbage().unwrap();
    seal(&store, PATH, &vec![7; 1 << 20]);
    assert_eq!(remove_all(&store).freed_bytes, MIB + 2);
}

// -- times of last use ------------------------------------------------------------------------------------------------

#[test]
fn the_time_of_a_last_use_survives_writes_that_change_nothing_and_goes_with_the_next_that_does() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let written = |id| store.begin_read().unwrap().get(&ACCESS, &key::access(id)).unwrap().map(|record| record.last_used_unix_ms);
    let (_, blob) = seal(&store, PATH, &vec![7; 1 << 20]);
    drop(read(&store, PATH).unwrap().unwrap());
    let used = store.last_used_unix_ms().unwrap().get(&blob.id).copied();
    assert!(used.is_some());
    assert_eq!(written(blob.id), None, "a read writes nothing");
    // Writes that turn out to have nothing to write: no such listing, content that is not here, a file that is gone.
    store.set_last_error(&repo(), &["Q4_0".to_owned()], Some("it failed")).unwrap();
    assert!(!store.link_if_here(&wanted_bytes("b", b"b")).unwrap());
    drop(store.begin_write().unwrap());
    let manifest = ManifestEntry {
        task: None,
        scanned_unix_ms: 0,
        files: Vec::new(),
        quants: Vec::new(),
        shared: Vec::new(),
        extras: Vec::new(),
    };
    let gone: FilePath = "gone".parse().unwrap();
    let ended = store.finish_pull(&repo(), &"main".parse().unwrap(), &manifest, [&gone].into_iter());
    assert!(matches!(ended, Err(Error::RemovedMeanwhile { .. })));
    assert_eq!(store.last_used_unix_ms().unwrap().get(&blob.id).copied(), used);
    // Of a blob that is gone no record is left behind.
    store.touch("blob:gone", 77);
    store.seal_inline(&wanted_bytes("config.json", b"{}"), b"{}").unwrap();
    assert_eq!(written(blob.id), used);
    assert_eq!(written(77), None);
    drop(store);
    assert_eq!(open(dir.path()).last_used_unix_ms().unwrap().get(&blob.id).copied(), used);
}

// -- derived values ----------------------------------------------------------------------------------------------------

const VALUE_BYTES: u64 = 6 * MIB + 1;

fn view_of(file: &StoredFile) -> &Arc<View> {
    match &file.content {
        Content::View(view) => view,
        Content::Inline(_) => panic!("it is inline"),
    }
}

fn derive(store: &Arc<Store>, source: &View) -> Option<View> {
    store.derive(source, "recipe", VALUE_BYTES, fill_value).unwrap()
}

fn fill_value(offset: u64, bytes: &mut [u8]) -> Result<()> {
    bytes.fill((offset / MIB) as u8 + 1);
    Ok(())
}

fn count_blobs(store: &Store) -> usize {
    store.all_blobs().unwrap().len()
}

#[test]
fn a_derived_value_whose_maker_died_is_freed_by_the_next_open_and_made_anew_by_the_next_who_asks() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    seal(&store, PATH, &vec![7; 6 << 20]);
    let source = read(&store, PATH).unwrap().unwrap();
    let begin = || {
        let blob_key = key::derived(view_of(&source).blob_key(), "recipe");
        let home = key::derived_home(&blob_key);
        let (blob_key, blob, lease) = store.begin_blob(|_| blob_key, home, VALUE_BYTES).unwrap().unwrap();
        store.prepare_fill(blob_key, blob, lease, super::fill::Begun::Now).unwrap()
    };
    // While it is being made, others go without.
    let making = begin();
    assert!(derive(&store, view_of(&source)).is_none());
    drop(making);
    let value = derive(&store, view_of(&source)).unwrap();
    assert_eq!((value.as_slice()[0], value.as_slice()[VALUE_BYTES as usize - 1]), (1, 6));
    drop(value);
    store
        .drop_derived(&key::derived(view_of(&source).blob_key(), "recipe"), {
            let (_, blob) = store.blobs_below(key::DERIVED).unwrap().remove(0);
            blob.id
        })
        .unwrap();
    drop(begin());
    assert_eq!(count_blobs(&store), 2);
    drop(source);
    drop(store);
    assert_eq!(count_blobs(&open(dir.path())), 1);
}

#[test]
fn a_value_derived_of_content_that_was_removed_meanwhile_is_not_kept() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    seal(&store, PATH, &vec![7; 6 << 20]);
    let source = read(&store, PATH).unwrap().unwrap();
    let mut removed = false;
    let made = store.derive(view_of(&source), "recipe", VALUE_BYTES, |_, _| {
        if !removed {
            remove_all(&store);
            removed = true;
        }
        Ok(())
    });
    assert!(made.unwrap().is_none());
    drop(source);
    assert_eq!(count_blobs(&store), 0);
}

/// The one derived value there is.
fn the_derived(store: &Store) -> (String, BlobRecord) {
    store.blobs_below(key::DERIVED).unwrap().remove(0)
}

/// As if whoever dropped a derived value was killed before it was freed.
fn doom_derived(store: &Store) {
    let (blob_key, blob) = the_derived(store);
    let txn = store.begin_write().unwrap();
    super::free::doom(&txn, blob_key, blob).unwrap();
    store.commit(txn).unwrap();
}

#[test]
fn a_derived_value_that_somebody_else_dropped_meanwhile_is_dropped_without_waiting_for_oneself() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    seal(&store, PATH, &vec![7; 6 << 20]);
    let source = read(&store, PATH).unwrap().unwrap();
    drop(derive(&store, view_of(&source)).unwrap());
    let (blob_key, blob) = the_derived(&store);
    doom_derived(&store);
    let (done, waiting) = std::sync::mpsc::channel();
    let dropping = Arc::clone(&store);
    thread::spawn(move || done.send(dropping.drop_derived(&blob_key, blob.id)));
    waiting.recv_timeout(Duration::from_secs(20)).expect("it waits for the transaction it has itself").unwrap();
    assert_eq!(count_blobs(&store), 1);
}

#[test]
fn a_derived_value_that_was_dropped_and_that_nobody_reads_is_made_anew_by_the_next_who_asks() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    seal(&store, PATH, &vec![7; 6 << 20]);
    let source = read(&store, PATH).unwrap().unwrap();
    let old = derive(&store, view_of(&source)).unwrap();
    doom_derived(&store);
    assert!(derive(&store, view_of(&source)).is_none(), "somebody reads it");
    // As a reader does that is killed: its lease goes, and nothing is freed.
    old.let_go_as_if_killed();
    assert_eq!(the_derived(&store).1.state, BlobState::Doomed);
    assert!(derive(&store, view_of(&source)).is_some());
}

#[test]
fn a_derived_value_whose_header_is_damaged_is_made_anew_by_the_next_who_asks() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    seal(&store, PATH, &vec![7; 6 << 20]);
    let source = read(&store, PATH).unwrap().unwrap();
    drop(derive(&store, view_of(&source)).unwrap());
    let (_, blob) = the_derived(&store);
    let header = u64::from(blob.pages[0]) * storage::PAGE_BYTES + 64;
    let data_file = File::options().write(true).open(store.extents().data_file_path()).unwrap();
    data_file.write_all_at(&[0; 8], header).unwrap();
    let value = derive(&store, view_of(&source)).unwrap();
    assert_eq!((value.as_slice()[0], value.as_slice()[VALUE_BYTES as usize - 1]), (1, 6));
    assert_eq!(count_blobs(&store), 2);
}

#[test]
fn gc_frees_a_derived_value_whose_source_is_gone_and_leaves_those_whose_source_is_here() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    seal(&store, PATH, &vec![7; 6 << 20]);
    let source = read(&store, PATH).unwrap().unwrap();
    drop(derive(&store, view_of(&source)).unwrap());
    assert_eq!((store.collect_garbage().unwrap().freed_bytes, count_blobs(&store)), (0, 2));
    // As a program leaves it that knows no derived values, and removes the file.
    let (blob_key, blob) = the_derived(&store);
    let row = blob_key.replace(&digest_of(&vec![7; 6 << 20]).to_string(), &digest_of(b"removed").to_string());
    let txn = store.begin_write().unwrap();
    txn.delete(&BLOBS, &blob_key).unwrap();
    txn.put(&BLOBS, &row, &blob).unwrap();
    store.commit(txn).unwrap();
    assert_eq!((store.collect_garbage().unwrap().freed_bytes, count_blobs(&store)), (VALUE_BYTES, 1));
}

#[test]
fn the_space_of_what_is_removed_returns_while_nobody_is_kept_from_writing() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let (_, blob) = seal(&store, PATH, &vec![7; 40 << 20]);
    if !storage::can_punch() {
        return;
    }
    let disk_bytes = || storage::allocated_bytes(&store.folder().join(CHUNKS_FOLDER)).unwrap();
    assert!(disk_bytes() > 40 * MIB);
    // The one writer's place is ours for as long as this lives.
    let reserving = store.extents.begin_reserve().unwrap();
    let remover = {
        let store = Arc::clone(&store);
        thread::spawn(move || store.remove(&spec(), &Selection::All).unwrap())
    };
    let begun = Instant::now();
    while disk_bytes() > 2 * MIB {
        assert!(begun.elapsed() < Duration::from_secs(60), "holes are punched only by the writer of the extents");
        thread::sleep(Duration::from_millis(1));
    }
    // Now it waits for that place, to delete the keys, and has the other writer's no more than the first.
    store.begin_write().unwrap();
    assert!(!remover.is_finished());
    assert!(reserving.locate(&key::chunk(&blob.home, 0)).unwrap().is_some());
    drop(reserving);
    assert_eq!(remover.join().unwrap().freed_bytes, 40 * MIB);
    assert!(store.all_blobs().unwrap().is_empty());
}

// -- what follows a fill ---------------------------------------------------------------------------------------------

#[test]
fn followers_give_the_digest_of_what_was_written_in_whatever_order_blocks_land() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let bytes: Vec<u8> = (0..12 * BLOCK_BYTES + 77).map(|at| ((at * 31) >> 7) as u8).collect();
    let orders: [fn(u64) -> u64; 3] = [|n| n, |n| 12 - n, |n| n * 5 % 13];
    for (round, order) in orders.into_iter().enumerate() {
        let path = format!("{round}.bin");
        // Another content each time, or it would be here.
        let bytes = [&bytes[..], &[round as u8]].concat();
        let wanted = wanted_bytes(&path, &bytes);
        let fill = acquire(&store, &wanted);
        let followers = Followers::start(&fill, Hasher::sha256()).unwrap();
        for block in (0..13).map(order) {
            let range = block_range(fill.size_bytes(), block);
            let part = &bytes[range.start as usize..range.end as usize];
            fill.write(range.start, part).unwrap();
            fill.land(block, crc32c::crc32c(part)).unwrap();
            assert!(followers.landed(block));
        }
        assert_eq!(followers.finish().unwrap(), wanted.digest);
        fill.seal(&wanted).unwrap();
        assert!(holds(&store, &path, &bytes));
    }
}

#[test]
fn followers_hash_what_the_file_has_and_not_what_was_meant_to_be_in_it() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let bytes = vec![3; 2 * BLOCK_BYTES as usize];
    let wanted = wanted_bytes(PATH, &bytes);
    let fill = acquire(&store, &wanted);
    write_all(&fill, &bytes);
    fill.write(BLOCK_BYTES + 9, b"other").unwrap();
    let found = Followers::start(&fill, Hasher::sha256()).unwrap().finish().unwrap();
    assert_ne!(found, wanted.digest);
    assert!(matches!(fill.check("it", wanted.digest, found), Err(Error::DigestMismatch { .. })));
}

#[test]
fn followers_of_a_fill_that_is_not_finished_end_and_let_go_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let bytes = vec![5; 3 * BLOCK_BYTES as usize];
    let wanted = wanted_bytes(PATH, &bytes);
    let fill = acquire(&store, &wanted);
    fill.write(0, &bytes[..BLOCK_BYTES as usize]).unwrap();
    fill.land(0, crc32c::crc32c(&bytes[..BLOCK_BYTES as usize])).unwrap();
    let followers = Followers::start(&fill, Hasher::sha256()).unwrap();
    assert!(followers.landed(0));
    assert!(matches!(followers.finish(), Err(Error::Cancelled)));
    // With the threads went their hold on it, and with the last hold its lease: somebody else goes on.
    assert_eq!(Arc::strong_count(&fill), 1);
    drop(fill);
    let again = acquire(&store, &wanted);
    again.verify_landed().unwrap();
    assert_eq!(again.landed(), [true, false, false]);
}
