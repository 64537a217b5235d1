//! How long it takes to open a store, and a file in it as one slice; `make figures` runs this with caches dropped and warm.
//!
//! ```text
//! cargo run --release --example open_bench -- STORE REPO PATH
//! ```
//! Prints one JSON object: microseconds, and bytes read from the disk (`read_bytes` of /proc/self/io, Linux).

#![forbid(unsafe_code)]

use std::{error::Error, hint::black_box, time::Instant};
use tabagent_model_cache::ModelCache;

/// Opens of one file whose median is shown.
const ROUNDS: usize = 1000;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [store, repo, path] = arguments.as_slice() else {
        return Err("usage: open_bench STORE REPO PATH".into());
    };
    let missing = || format!("{repo} {path} is not in the store");

    // Once before, so that reading it costs nothing later.
    read_bytes()?;
    let before = read_bytes()?;
    let start = Instant::now();
    let cache = ModelCache::open(store)?;
    let open_store_us = start.elapsed().as_micros();
    let opened = read_bytes()?;

    let start = Instant::now();
    let file = cache.get_file(repo, path)?.ok_or_else(missing)?;
    let bytes = file.len();
    black_box(file.as_ptr());
    let first_get_us = start.elapsed().as_micros();
    let got = read_bytes()?;
    drop(file);

    let mut rounds = Vec::with_capacity(ROUNDS);
    for _ in 0..ROUNDS {
        let start = Instant::now();
        let file = cache.get_file(repo, path)?.ok_or_else(missing)?;
        black_box(file.as_ptr());
        rounds.push(start.elapsed());
    }
    rounds.sort();

    println!(
        "{}",
        serde_json::json!({
            "file_bytes": bytes,
            "open_store_us": open_store_us,
            "open_store_read_bytes": opened - before,
            "first_get_us": first_get_us,
            "first_get_read_bytes": got - opened,
            "get_p50_us": rounds[ROUNDS / 2].as_micros(),
            "get_p99_us": rounds[ROUNDS * 99 / 100].as_micros(),
            "get_max_us": rounds[ROUNDS - 1].as_micros(),
        })
    );
    Ok(())
}

/// What this process made the disk read so far.
fn read_bytes() -> Result<u64, Box<dyn Error>> {
    let counters = std::fs::read_to_string("/proc/self/io")?;
    let line = counters.lines().find_map(|line| line.strip_prefix("read_bytes: "));
    Ok(line.ok_or("no read_bytes in /proc/self/io")?.trim().parse()?)
}
