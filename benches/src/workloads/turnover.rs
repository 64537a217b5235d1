//! A store that is full and lives: files come and go, and room is found for each.

use super::{OURS, Setting};
use crate::{
    measure,
    pattern::Random,
    peers::{self, ValueStore},
    report::{Result, Round, percentile},
};
use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};
use storage::{Alignment, ExtentSpec, Extents, Shared, StorageRegistry};
use tabagent_model_cache::{BLOCK_BYTES, CHUNK_BYTES};

pub(super) const SUBJECTS: &[&str] = &[OURS, "lmdb", "redb", "libmdbx"];

fn folder(setting: &Setting, subject: &str) -> PathBuf {
    setting.dir.join(format!("turnover-{subject}"))
}

/// Throws away what a round before left.
pub(super) fn prepare(setting: &Setting, subject: &str) -> Result<()> {
    let folder = folder(setting, subject);
    if folder.exists() {
        fs::remove_dir_all(folder)?;
    }
    Ok(())
}

/// Somewhere files have their room.
trait Room {
    /// Takes room for a file, chunk by chunk; says how long that took.
    fn take(&mut self, file: u64, chunk_bytes: &[u64]) -> Result<Duration>;

    /// Gives it back, so that the next file may have it.
    fn give_back(&mut self, file: u64) -> Result<()>;
}

pub(super) fn turnover(setting: &Setting, subject: &str) -> Result<Round> {
    prepare(setting, subject)?;
    let folder = folder(setting, subject);
    let mut room = open(&folder, subject)?;
    let mut random = Random::new(setting.seed);
    let (mut live, mut live_bytes, mut taken_bytes) = (Vec::<(u64, u64)>::new(), 0, 0);
    let (mut peak_live_bytes, mut file_bytes) = (0, 0);
    let mut latencies = Vec::new();
    let ((), measured) = measure::measure_with_memory(|| {
        for file in 0.. {
            if taken_bytes >= setting.count * setting.bytes {
                break;
            }
            let bytes = file_size(&mut random, setting.bytes);
            while live_bytes + bytes > setting.bytes {
                let (file, bytes) = live.swap_remove(random.below(live.len() as u64) as usize);
                room.give_back(file)?;
                live_bytes -= bytes;
            }
            latencies.push(room.take(file, &chunks(bytes))?);
            live.push((file, bytes));
            live_bytes += bytes;
            taken_bytes += bytes;
            peak_live_bytes = peak_live_bytes.max(live_bytes);
            file_bytes = file_bytes.max(apparent_bytes(&folder)?);
        }
        Ok(())
    })?;
    drop(room);
    let disk_bytes = storage::allocated_bytes(&folder)?;
    fs::remove_dir_all(folder)?;
    Ok(Round::of(measured)
        .bytes(taken_bytes)
        .disk_bytes(disk_bytes)
        .value("files", latencies.len() as f64)
        .value("file_bytes", file_bytes as f64)
        .value("peak_live_bytes", peak_live_bytes as f64)
        .value("file_ratio", file_bytes as f64 / peak_live_bytes as f64)
        .latencies("reserve", &mut latencies))
}

pub(super) fn fill(setting: &Setting, subject: &str) -> Result<Round> {
    const LEVELS: u64 = 20;
    const FILES_A_LEVEL: u64 = 10;
    prepare(setting, subject)?;
    let folder = folder(setting, subject);
    let mut room = open(&folder, subject)?;
    let bytes = setting.bytes / (LEVELS * FILES_A_LEVEL);
    let mut levels = Vec::new();
    let ((), measured) = measure::measure(|| {
        for level in 0..LEVELS {
            let files = level * FILES_A_LEVEL..(level + 1) * FILES_A_LEVEL;
            levels.push(files.map(|file| room.take(file, &chunks(bytes))).collect::<Result<Vec<_>>>()?);
        }
        Ok(())
    })?;
    drop(room);
    fs::remove_dir_all(folder)?;
    let mut round = Round::of(measured).bytes(setting.bytes);
    for (level, latencies) in levels.iter_mut().enumerate() {
        latencies.sort_unstable();
        let us = percentile(latencies, 50).as_nanos() as f64 / 1e3;
        round = round.value(format!("p50_at_{:03}_percent_us", (level + 1) * 100 / LEVELS as usize), us);
    }
    Ok(round.latencies("", &mut levels.concat()))
}

/// The size of the next file, from 1/20,480 to 1/5 of the store (of 20 GiB: 1 MiB to 4 GiB), each doubling as likely.
fn file_size(random: &mut Random, store_bytes: u64) -> u64 {
    const SMALLEST: f64 = 1.0 / 20_480.0;
    const LARGEST: f64 = 1.0 / 5.0;
    let fraction = random.next() as f64 / u64::MAX as f64;
    let share = SMALLEST * (LARGEST / SMALLEST).powf(fraction);
    ((store_bytes as f64 * share) as u64).max(1)
}

/// The chunks of a file of `bytes`.
fn chunks(bytes: u64) -> Vec<u64> {
    (0..bytes).step_by(CHUNK_BYTES as usize).map(|start| CHUNK_BYTES.min(bytes - start)).collect()
}

/// Lengths of the files in `folder`, holes counted.
fn apparent_bytes(folder: &Path) -> Result<u64> {
    fs::read_dir(folder)?.try_fold(0, |sum, entry| Ok(sum + entry?.metadata()?.len()))
}

fn open(folder: &Path, subject: &str) -> Result<Box<dyn Room>> {
    fs::create_dir_all(folder)?;
    if subject != OURS {
        let store = peers::open(subject, folder)?;
        return Ok(Box::new(Values { store, chunks: HashMap::new(), zeros: vec![0; CHUNK_BYTES as usize] }));
    }
    let extents = StorageRegistry::new(folder).extents(folder, "chunks", Alignment::LargePage)?;
    Ok(Box::new(Reservations { extents, keys: HashMap::new() }))
}

/// Extents as a store reserves and frees them; nothing is written into them.
struct Reservations {
    extents: Arc<Shared<Extents>>,
    keys: HashMap<u64, Vec<String>>,
}

impl Room for Reservations {
    fn take(&mut self, file: u64, chunk_bytes: &[u64]) -> Result<Duration> {
        let key = |chunk| format!("file:bench/turnover:{file}:chunk:{chunk}");
        let spec = |(chunk, data_bytes): (usize, &u64)| ExtentSpec { key: key(chunk), data_bytes: *data_bytes };
        let specs: Vec<_> = chunk_bytes.iter().enumerate().map(spec).collect();
        let start = Instant::now();
        let writer = self.extents.open_writer()?;
        let txn = self.extents.begin_reserve()?;
        let placed = txn.reserve(&writer, file, BLOCK_BYTES as u32, &specs)?;
        txn.commit()?;
        let took = start.elapsed();
        // The disk may be smaller than the store is made out to be: what nobody fills needs no blocks.
        for extent in &placed {
            writer.punch(extent)?;
        }
        self.keys.insert(file, specs.into_iter().map(|spec| spec.key).collect());
        Ok(took)
    }

    fn give_back(&mut self, file: u64) -> Result<()> {
        // The steps of a store: punch while the pages are the file's own, delete, sync, after which they are used again.
        let keys = self.keys.remove(&file).ok_or("it was never taken")?;
        let writer = self.extents.open_writer()?;
        for key in &keys {
            writer.punch(&self.extents.locate(key)?.ok_or("an extent is gone")?)?;
        }
        let txn = self.extents.begin_free()?;
        for key in &keys {
            txn.delete(key)?;
        }
        txn.commit()?;
        Ok(self.extents.sync()?)
    }
}

/// A peer's values of zeros, one a chunk.
struct Values {
    store: Box<dyn ValueStore>,
    chunks: HashMap<u64, Vec<u64>>,
    zeros: Vec<u8>,
}

impl Room for Values {
    fn take(&mut self, file: u64, chunk_bytes: &[u64]) -> Result<Duration> {
        let start = Instant::now();
        let key = |chunk| (file << 32) + chunk as u64;
        for (chunk, bytes) in chunk_bytes.iter().enumerate() {
            self.store.put(key(chunk), &self.zeros[..*bytes as usize])?;
        }
        self.chunks.insert(file, (0..chunk_bytes.len()).map(key).collect());
        Ok(start.elapsed())
    }

    fn give_back(&mut self, file: u64) -> Result<()> {
        self.chunks.remove(&file).ok_or("it was never taken")?.into_iter().try_for_each(|key| self.store.delete(key))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_files_chunks_are_100_mib_but_for_the_last() {
        assert_eq!(chunks(2 * CHUNK_BYTES + 5), [CHUNK_BYTES, CHUNK_BYTES, 5]);
        assert_eq!(chunks(CHUNK_BYTES), [CHUNK_BYTES]);
        assert_eq!(chunks(1), [1]);
    }

    #[test]
    fn any_file_fits_into_the_store() {
        let mut random = Random::new(1);
        let sizes: Vec<u64> = (0..1000).map(|_| file_size(&mut random, 20 << 30)).collect();
        assert!(sizes.iter().all(|bytes| (1 << 20..=4 << 30).contains(bytes)));
        assert!(sizes.iter().any(|bytes| *bytes < 2 << 20) && sizes.iter().any(|bytes| *bytes > 3 << 30));
    }
}
