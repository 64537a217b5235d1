//! What the store costs beside plain files: opening a file as one slice, and bringing one in.
//!
//! Warm page cache, ext4 or whatever the temporary folder is on. `cargo bench -p benches` takes 1 GiB; run as a test
//! (`cargo test --benches`) it takes 8 MiB and proves only that the workloads run.
#![allow(missing_docs, reason = "criterion's macros make public items")]

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use std::{
    fs::{self, File},
    hint::black_box,
    io::Write,
    path::{Path, PathBuf},
};
use tabagent_model_cache::{ImportOptions, ModelCache};

const REPO: &str = "bench/file";

fn bytes() -> u64 {
    if std::env::args().any(|argument| argument == "--bench") { 1 << 30 } else { 8 << 20 }
}

/// A file of `bytes` that no two blocks of are alike.
fn write_source(path: &Path, bytes: u64) {
    let mut file = File::create(path).unwrap();
    let mut state = 1u64;
    for _ in 0..bytes >> 20 {
        let block: Vec<u8> = (0..1 << 17)
            .flat_map(|_| {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                state.to_le_bytes()
            })
            .collect();
        file.write_all(&block).unwrap();
    }
    file.sync_all().unwrap();
}

fn open(c: &mut Criterion) {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("model.bin");
    write_source(&source, bytes());
    let cache = ModelCache::open(dir.path().join("store")).unwrap();
    cache.import(REPO, std::slice::from_ref(&source), &ImportOptions::default()).unwrap();
    let mut group = c.benchmark_group("open one slice");
    group.bench_function("model-cache get_file", |b| {
        b.iter(|| black_box(cache.get_file(REPO, "model.bin").unwrap().unwrap().len()))
    });
    group.bench_function("plain file, std::fs::File and metadata", |b| {
        b.iter(|| black_box(File::open(&source).unwrap().metadata().unwrap().len()));
    });
    group.finish();
    let mut group = c.benchmark_group("read it all");
    group.throughput(Throughput::Bytes(bytes())).sample_size(10);
    let file = cache.get_file(REPO, "model.bin").unwrap().unwrap();
    group.bench_function("model-cache slice", |b| b.iter(|| black_box(sum(&file))));
    group.bench_function("plain file read to a Vec", |b| b.iter(|| black_box(sum(&fs::read(&source).unwrap()))));
    group.finish();
}

fn sum(bytes: &[u8]) -> u64 {
    bytes.chunks_exact(8).map(|word| u64::from_le_bytes(word.try_into().unwrap())).fold(0, u64::wrapping_add)
}

fn bring_in(c: &mut Criterion) {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("model.bin");
    write_source(&source, bytes());
    let cache = ModelCache::open(dir.path().join("store")).unwrap();
    let mut group = c.benchmark_group("bring a file in, durable");
    group.throughput(Throughput::Bytes(bytes())).sample_size(10);
    group.bench_function("model-cache import: SHA-256, CRC32C, synced", |b| {
        b.iter_batched(
            || drop(cache.delete_model(REPO)),
            |()| cache.import(REPO, std::slice::from_ref(&source), &ImportOptions::default()).unwrap(),
            BatchSize::PerIteration,
        );
    });
    let copy: PathBuf = dir.path().join("copy.bin");
    group.bench_function("plain copy: unverified, synced", |b| {
        b.iter_batched(
            || drop(fs::remove_file(&copy)),
            |()| {
                fs::copy(&source, &copy).unwrap();
                File::open(&copy).unwrap().sync_all().unwrap();
            },
            BatchSize::PerIteration,
        );
    });
    group.finish();
}

criterion_group!(benches, open, bring_in);
criterion_main!(benches);
