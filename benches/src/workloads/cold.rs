//! Loading a file whose bytes are on the disk alone.

use super::{OURS, PLAIN_MMAP, Setting, slice};
use crate::{
    mapped, measure, page_cache,
    pattern::sum_lines,
    report::{Result, Round},
};
use std::{
    fs::File,
    hint::black_box,
    os::unix::fs::FileExt,
    path::Path,
    sync::atomic::{AtomicU64, Ordering},
    thread,
};
use tabagent_model_cache::PrefetchOptions;

/// Ourselves, asked to bring the file in before it is read.
const PREFETCHED: &str = "model-cache-prefetch";

pub(super) const SUBJECTS: &[&str] = &[PREFETCHED, OURS, PLAIN_MMAP, "plain-pread"];

pub(super) fn load(setting: &Setting, subject: &str) -> Result<Round> {
    let bed = slice::bed(setting);
    page_cache::drop_all()?;
    page_cache::back_memory(setting.bytes)?;
    let (sum, measured) = measure::measure_with_memory(|| {
        Ok(black_box(match subject {
            OURS => sum_lines(&bed.file()?),
            PREFETCHED => {
                let file = bed.file()?;
                file.prefetch(&PrefetchOptions::default())?;
                sum_lines(&file)
            }
            PLAIN_MMAP => sum_lines(&mapped::map(&bed.plain())?),
            _ => read_in_parallel(&bed.plain(), setting)?,
        }))
    })?;
    let low_bits = sum & u64::from(u32::MAX);
    let bytes_per_second = setting.bytes as f64 / measured.wall.as_secs_f64();
    let round = Round::of(measured)
        .bytes(setting.bytes)
        .value("sum_low_32_bits", low_bits as f64)
        .value("bytes_per_second", bytes_per_second);
    // Plain mmap is as fast as the kernel reads ahead: 128 KiB by default.
    let read_ahead_kib = page_cache::read_ahead_kib(&setting.dir);
    Ok(read_ahead_kib.into_iter().fold(round, |round, kib| round.value("read_ahead_kib", kib)))
}

/// Reads a plain file by `pread` from several threads, each the next part nobody has, and sums it as it comes.
fn read_in_parallel(path: &Path, setting: &Setting) -> Result<u64> {
    let file = File::open(path)?;
    let bytes = file.metadata()?.len();
    let (next, io_bytes) = (AtomicU64::new(0), setting.io_bytes as u64);
    let read = || -> std::io::Result<u64> {
        let mut buffer = vec![0; setting.io_bytes];
        let mut sum = 0_u64;
        loop {
            let at = next.fetch_add(io_bytes, Ordering::Relaxed);
            if at >= bytes {
                return Ok(sum);
            }
            let part = &mut buffer[..io_bytes.min(bytes - at) as usize];
            file.read_exact_at(part, at)?;
            sum = sum.wrapping_add(sum_lines(part));
        }
    };
    thread::scope(|scope| {
        let threads: Vec<_> = (0..setting.threads).map(|_| scope.spawn(read)).collect();
        threads.into_iter().try_fold(0_u64, |sum, thread| {
            let read = thread.join().map_err(|_| "a reading thread panicked")?;
            Ok(sum.wrapping_add(read?))
        })
    })
}
