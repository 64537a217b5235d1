//! Times of what must be quick, printed. Run alone, with the optimiser, in a folder of a real disk:
//! `TMPDIR=.. cargo test --release -p model-cache --lib store::timing -- --ignored --nocapture --test-threads=1`

use super::*;
use crate::{
    cache::ModelCache,
    digest::{Digest, Hasher},
};
use std::{
    fs::{self, File},
    os::unix::fs::FileExt,
    process::Command,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

fn timed<T>(work: impl FnOnce() -> T) -> (T, Duration) {
    let begun = Instant::now();
    let result = work();
    (result, begun.elapsed())
}

fn digest_of(bytes: &[u8]) -> Digest {
    let mut hasher = Hasher::sha256();
    hasher.update(bytes);
    hasher.finish()
}

fn median_us(rounds: usize, mut work: impl FnMut()) -> f64 {
    let mut times: Vec<Duration> = (0..rounds)
        .map(|_| {
            let begun = Instant::now();
            work();
            begun.elapsed()
        })
        .collect();
    times.sort_unstable();
    times[times.len() / 2].as_secs_f64() * 1e6
}

fn repo_of(name: &str) -> PinnedRepo {
    PinnedRepo::new(name.parse().unwrap(), COMMIT.parse().unwrap())
}

/// A number's digest: of nothing that is stored.
fn some_digest(number: u64) -> Digest {
    digest_of(&number.to_le_bytes())
}

/// What is on disk of a file that is made up.
#[derive(Clone, Copy, Debug)]
enum Content {
    None,
    Reserved,
    Written,
}

/// Names a file of so many bytes, as a seal would: good for opening, not for reading. Says how long its reservation took.
fn seal_made_up(store: &Arc<Store>, repo: &PinnedRepo, path: &str, size_bytes: u64, number: u64, content: Content) -> Duration {
    let wanted = Wanted { repo: repo.clone(), path: path.parse().unwrap(), size_bytes, digest: some_digest(number) };
    let begun = Instant::now();
    let Acquired::Fill(fill) = store.acquire(&wanted).unwrap() else { panic!("it is here") };
    let took = begun.elapsed();
    let blob_key = key::blob(&wanted.digest);
    let mut blob = store.blob(&blob_key).unwrap().unwrap();
    let writer = store.extents.open_writer().unwrap();
    for n in 0..blob.layout().chunks() {
        let extent = store.extents.locate(&key::chunk(&blob.home, n)).unwrap().unwrap();
        let header = writer.read_header(&extent).unwrap();
        blob.pages.push(extent.page);
        match content {
            // All but 4 KiB, which have the header.
            Content::None => writer.punch(&extent).unwrap(),
            Content::Reserved => {}
            Content::Written => {
                let bytes = vec![n as u8; 4 << 20];
                (0..extent.data_bytes).step_by(bytes.len()).for_each(|at| writer.write_at(&extent, at, &bytes).unwrap());
            }
        }
        assert_eq!(writer.read_header(&extent).unwrap(), header);
    }
    blob.block_crcs = vec![0; blob.layout().blocks() as usize];
    blob.state = BlobState::Sealed;
    let metadata = FileMetadata {
        size_bytes,
        digest: wanted.digest.to_string(),
        content_type: content_type(path).to_owned(),
        blob_id: blob.id,
        created_unix_ms: now_unix_ms(),
    };
    let txn = store.begin_write().unwrap();
    link(&txn, &mut blob, &blob_key, key::meta(repo, &wanted.path), &metadata).unwrap();
    store.commit(txn).unwrap();
    drop(fill);
    took
}

/// What a pull of a repo leaves behind besides its files: a listing, and the ref that leads to it.
fn list(store: &Store, repo: &PinnedRepo, paths: &[String]) {
    let files = paths
        .iter()
        .map(|path| ListedFile { path: path.clone(), size_bytes: 10_000, digest: some_digest(0).to_string() })
        .collect::<Vec<_>>();
    let quant = QuantEntry {
        key: "Q8_0".to_owned(),
        own: paths[..1].to_vec(),
        shared: paths[1..].to_vec(),
        missing: Vec::new(),
        last_error: None,
    };
    let manifest = ManifestEntry {
        task: None,
        scanned_unix_ms: 0,
        files,
        quants: vec![quant],
        shared: paths[1..].to_vec(),
        extras: Vec::new(),
    };
    store.put_listing(repo, &"main".parse().unwrap(), &manifest).unwrap();
    let paths: Vec<FilePath> = paths.iter().map(|path| path.parse().unwrap()).collect();
    store.finish_pull(repo, &"main".parse().unwrap(), &manifest, paths.iter()).unwrap();
}

#[test]
#[ignore = "see the head of the file"]
fn finding_and_opening_files() {
    let folder = tempfile::tempdir().unwrap();
    let cache = ModelCache::open(folder.path()).unwrap();
    let store = cache.store();
    let repo = repo_of("org/model");
    let bytes = vec![7; 10_000];
    let path = "config.json".parse().unwrap();
    let small = Wanted { repo: repo.clone(), path, size_bytes: 10_000, digest: digest_of(&bytes) };
    store.seal_inline(&small, &bytes).unwrap();
    let mut names = vec!["config.json".to_owned()];
    for chunks in [1, 10, 41, 100, 400] {
        let name = format!("model-{chunks}.gguf");
        let took = seal_made_up(store, &repo, &name, chunks * CHUNK_BYTES, chunks, Content::None);
        println!("reserve {chunks} chunks: {took:.2?}");
        names.push(name);
    }
    list(store, &repo, &names);
    println!("has_file, here: {:.2} us", median_us(20_001, || assert!(cache.has_file("org/model", "config.json").unwrap())));
    println!("has_file, not here: {:.2} us", median_us(20_001, || assert!(!cache.has_file("org/model", "other.json").unwrap())));
    let open = |path: &str| cache.get_file("org/model", path).unwrap().unwrap().len();
    println!("open 10 kB: {:.2} us", median_us(20_001, || assert_eq!(open("config.json"), 10_000)));
    for chunks in [1, 10, 41, 100, 400] {
        let path = format!("model-{chunks}.gguf");
        let us = median_us(1001, || assert_eq!(open(&path) as u64, chunks * CHUNK_BYTES));
        println!("open {chunks} chunks: {us:.2} us, bound {} us", 10 + 8 * chunks);
    }
}

/// 1,000 repos, 20,000 files, of which one in a hundred has an extent; into $MANY, for `ls` and `df`.
#[test]
#[ignore = "see the head of the file"]
fn many_files() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = std::env::var_os("MANY").map_or_else(|| temporary.path().to_owned(), PathBuf::from);
    if !Store::is_in(&folder) {
        let cache = ModelCache::open(&folder).unwrap();
        let store = cache.store();
        let mut number = 0_u64;
        for n in 0..1000 {
            let repo = repo_of(&format!("org-{}/model-{n}", n % 50));
            let mut names = Vec::new();
            for m in 0..20 {
                let path = format!("part-{m}.json");
                number += 1;
                if m == 0 && n % 5 == 0 {
                    seal_made_up(store, &repo, &path, 100_000, number, Content::Reserved);
                } else {
                    let bytes: Vec<u8> = number.to_le_bytes().repeat(150);
                    let wanted =
                        Wanted { repo: repo.clone(), path: path.parse().unwrap(), size_bytes: 1200, digest: digest_of(&bytes) };
                    store.seal_inline(&wanted, &bytes).unwrap();
                }
                names.push(path);
            }
            list(store, &repo, &names);
        }
    }
    for _ in 0..3 {
        let begun = Instant::now();
        let cache = ModelCache::open(&folder).unwrap();
        println!("open the store: {:.2?}", begun.elapsed());
        let begun = Instant::now();
        assert_eq!(cache.list().unwrap().len(), 1000);
        println!("list: {:.2?}", begun.elapsed());
        let begun = Instant::now();
        assert_eq!(cache.stats().unwrap().files, 20_000);
        println!("stats: {:.2?}", begun.elapsed());
    }
}

/// How long others wait while gigabytes go: those that open a file, seal a small one, write into another file's extents.
#[test]
#[ignore = "see the head of the file"]
fn removing_gigabytes_while_others_work() {
    for (chunks, content) in [(80, Content::Reserved), (40, Content::Written)] {
        remove_gigabytes(chunks, content);
    }
}

fn remove_gigabytes(chunks: u64, content: Content) {
    let folder = tempfile::tempdir().unwrap();
    let plain = folder.path().join("plain");
    let file = File::create(&plain).unwrap();
    let allocated = Command::new("fallocate").arg("-l").arg((chunks * CHUNK_BYTES).to_string()).arg(&plain).status().unwrap();
    assert!(allocated.success());
    if let Content::Written = content {
        let bytes = vec![1; 4 << 20];
        (0..chunks * CHUNK_BYTES).step_by(bytes.len()).for_each(|at| file.write_all_at(&bytes, at).unwrap());
    }
    file.sync_all().unwrap();
    drop(file);
    let (_, unlinked) = timed(|| fs::remove_file(&plain).unwrap());
    let cache = ModelCache::open(folder.path().join("store")).unwrap();
    let store = cache.store();
    let (repo, other) = (repo_of("org/big"), repo_of("org/other"));
    seal_made_up(store, &repo, "model.gguf", chunks * CHUNK_BYTES, 1, content);
    seal_made_up(store, &other, "other.gguf", CHUNK_BYTES, 2, content);
    let filling =
        Wanted { repo: other.clone(), path: "new.gguf".parse().unwrap(), size_bytes: CHUNK_BYTES, digest: some_digest(3) };
    let Acquired::Fill(fill) = store.acquire(&filling).unwrap() else { panic!("it is here") };
    list(store, &repo, &["model.gguf".to_owned()]);
    list(store, &other, &["other.gguf".to_owned()]);
    File::open(folder.path().join("store/model_cache_chunks/mdbx.dat")).unwrap().sync_all().unwrap();
    store.extents.sync().unwrap();
    let done = AtomicBool::new(false);
    // The longest of many turns, and how many there were.
    let again_and_again = |turn: &mut dyn FnMut(u64)| {
        let (mut longest, mut count) = (Duration::ZERO, 0);
        while !done.load(Ordering::Relaxed) {
            longest = longest.max(timed(|| turn(count)).1);
            count += 1;
            thread::sleep(Duration::from_micros(200));
        }
        (longest, count)
    };
    thread::scope(|scope| {
        let reader =
            scope.spawn(|| again_and_again(&mut |_| assert!(cache.get_file("org/other", "other.gguf").unwrap().is_some())));
        let sealer = scope.spawn(|| {
            again_and_again(&mut |count| {
                let bytes = (count + 1000).to_le_bytes().repeat(100);
                let path = format!("f{count}.json").parse().unwrap();
                let wanted = Wanted { repo: other.clone(), path, size_bytes: 800, digest: digest_of(&bytes) };
                store.seal_inline(&wanted, &bytes).unwrap();
            })
        });
        let filler = scope.spawn(|| {
            let bytes = [3; 4096];
            again_and_again(&mut |count| fill.write(count * 4096 % CHUNK_BYTES, &bytes).unwrap())
        });
        thread::sleep(Duration::from_millis(300));
        let (removed, took) = timed(|| cache.delete_model("org/big").unwrap());
        done.store(true, Ordering::Relaxed);
        assert_eq!(removed.freed_bytes, chunks * CHUNK_BYTES);
        println!(
            "{content:?}: unlink of {chunks} x 100 MiB {unlinked:.2?}, rm {took:.2?}, others waited at most (longest, turns):"
        );
        println!("  opening a file {:.2?}", reader.join().unwrap());
        println!("  sealing a small file {:.2?}", sealer.join().unwrap());
        println!("  writing into another file's extents {:.2?}", filler.join().unwrap());
    });
}

/// Files of 1 MiB to 4 GiB come and go at random until ten times what the store has at most went through it.
#[test]
#[ignore = "see the head of the file"]
fn turning_over() {
    const CAP_BYTES: u64 = 20 << 30;
    let folder = tempfile::tempdir().unwrap();
    let cache = ModelCache::open(folder.path()).unwrap();
    let store = cache.store();
    let mut random = 0x9E37_79B9_7F4A_7C15_u64;
    let mut below = |bound: u64| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random % bound
    };
    let mut live: Vec<(String, u64)> = Vec::new();
    let (mut live_bytes, mut peak_bytes, mut through_bytes, mut number) = (0, 0, 0, 0);
    let (mut reserved, mut removed) = (Vec::new(), Vec::new());
    while through_bytes < 10 * CAP_BYTES {
        let order = 20 + below(12);
        let size_bytes = (1 << order) + below(1 << order);
        while live_bytes + size_bytes > CAP_BYTES {
            let (name, size_bytes) = live.swap_remove(below(live.len() as u64) as usize);
            removed.push(timed(|| cache.delete_model(&name).unwrap()).1);
            live_bytes -= size_bytes;
        }
        number += 1;
        let name = format!("org/model-{number}");
        let took = seal_made_up(store, &repo_of(&name), "model.gguf", size_bytes, number, Content::None);
        reserved.push(took);
        live.push((name, size_bytes));
        live_bytes += size_bytes;
        through_bytes += size_bytes;
        peak_bytes = peak_bytes.max(live_bytes);
    }
    let file_bytes = fs::metadata(folder.path().join("model_cache_chunks/mdbx.dat")).unwrap().len();
    for (what, times) in [("reserve", &mut reserved), ("rm", &mut removed)] {
        times.sort_unstable();
        let at = |percent: usize| times[times.len() * percent / 100];
        println!(
            "{what}: p50 {:.2?}, p90 {:.2?}, p99 {:.2?}, worst {:.2?} of {}",
            at(50),
            at(90),
            at(99),
            times[times.len() - 1],
            times.len()
        );
    }
    println!(
        "file {} MiB, live at most {} MiB: {:.3}",
        file_bytes >> 20,
        peak_bytes >> 20,
        file_bytes as f64 / peak_bytes as f64
    );
}
