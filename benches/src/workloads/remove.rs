//! Removing a large file: how long it takes, and who else waits for it.

use super::{OURS, Setting};
use crate::{
    bed::{self, FILE, REPO},
    measure, page_cache,
    pattern::Random,
    report::{Result, Round},
};
use std::{
    fs::{self, File},
    hint::black_box,
    io::Write,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};
use tabagent_model_cache::{ImportOptions, ModelCache};

const OTHER_REPO: &str = "bench/other";
/// What the reader opens meanwhile; larger than what is kept inline.
const OTHER_BYTES: usize = 1 << 20;
/// What the writer brings in, again and again.
const SMALL_BYTES: usize = 10_000;
/// How long both work before the removal, for comparison, and at least after it.
const BEFORE: Duration = Duration::from_millis(500);
const AFTER: Duration = Duration::from_millis(50);
/// Between two of their operations, so that the removal has a processor.
const PAUSE: Duration = Duration::from_millis(1);

/// Where it all lies.
struct Place {
    folder: PathBuf,
    cache: Option<ModelCache>,
}

impl Place {
    fn open(setting: &Setting, subject: &str) -> Result<Self> {
        let folder = setting.dir.join(format!("remove-{subject}"));
        fs::create_dir_all(&folder)?;
        let cache = if subject == OURS { Some(bed::open_store(&folder.join("store"))?) } else { None };
        Ok(Self { folder, cache })
    }

    /// The large file as a plain one.
    fn plain(&self) -> PathBuf {
        self.folder.join(FILE)
    }

    fn remove(&self) -> Result<()> {
        match &self.cache {
            Some(cache) => drop(cache.delete_model(REPO)?),
            None => fs::remove_file(self.plain())?,
        }
        Ok(())
    }

    fn read_other(&self) -> Result<()> {
        let first = match &self.cache {
            Some(cache) => cache.open_file(OTHER_REPO, "other.bin")?[0],
            None => crate::mapped::map(&self.folder.join("other.bin"))?[0],
        };
        black_box(first);
        Ok(())
    }

    /// Brings in the small file at `source`, durably.
    fn write_small(&self, source: &Path) -> Result<()> {
        match &self.cache {
            Some(cache) => drop(cache.import(OTHER_REPO, &[source.to_owned()], &ImportOptions::default())?),
            None => {
                let copy = self.folder.join("small.bin");
                fs::copy(source, &copy)?;
                File::open(copy)?.sync_all()?;
            }
        }
        Ok(())
    }
}

pub(super) fn prepare(setting: &Setting, subject: &str) -> Result<()> {
    let place = Place::open(setting, subject)?;
    let other = place.folder.join("other.bin");
    if !other.exists() {
        let mut bytes = vec![0; OTHER_BYTES];
        Random::new(setting.seed).fill(&mut bytes);
        fs::write(&other, bytes)?;
    }
    let Some(cache) = &place.cache else {
        return if place.plain().exists() { Ok(()) } else { write_zeros(&place.plain(), setting.bytes) };
    };
    cache.import(OTHER_REPO, &[other], &ImportOptions::default())?;
    if !cache.has_file(REPO, FILE)? {
        // A hole to read from: what is written of it is allocated all the same.
        File::create(place.plain())?.set_len(setting.bytes)?;
        cache.import(REPO, &[place.plain()], &ImportOptions::default())?;
        page_cache::forget(&place.plain())?;
    }
    Ok(())
}

fn write_zeros(path: &Path, bytes: u64) -> Result<()> {
    let mut file = File::create(path)?;
    let zeros = vec![0; 1 << 20];
    let mut left = bytes;
    while left > 0 {
        let part = left.min(zeros.len() as u64) as usize;
        file.write_all(&zeros[..part])?;
        left -= part as u64;
    }
    Ok(file.sync_all()?)
}

pub(super) fn alone(setting: &Setting, subject: &str) -> Result<Round> {
    let place = Place::open(setting, subject)?;
    let before = storage::allocated_bytes(&place.folder)?;
    let ((), measured) = measure::measure(|| place.remove())?;
    let left = storage::allocated_bytes(&place.folder)?;
    let returned = before.saturating_sub(left);
    if returned < setting.bytes / 10 * 9 {
        return Err(format!("of {} bytes removed only {returned} are back", setting.bytes).into());
    }
    Ok(Round::of(measured).bytes(setting.bytes).disk_bytes(left).value("returned_bytes", returned as f64))
}

/// When an operation began, and how long it took.
type Operation = (Instant, Duration);

pub(super) fn beside_others(setting: &Setting, subject: &str) -> Result<Round> {
    let place = Place::open(setting, subject)?;
    let ended = AtomicBool::new(false);
    let read = || repeat(&ended, || Ok(()), || place.read_other());
    let small = place.folder.join("small-source.bin");
    let write = || {
        let mut random = Random::new(setting.seed);
        let make = || {
            let mut bytes = vec![0; SMALL_BYTES];
            random.fill(&mut bytes);
            Ok(fs::write(&small, bytes)?)
        };
        repeat(&ended, make, || place.write_small(&small))
    };
    let (measured, start, end, reads, writes) = thread::scope(|scope| -> Result<_> {
        let reader = scope.spawn(|| read().map_err(|error| error.to_string()));
        let writer = scope.spawn(|| write().map_err(|error| error.to_string()));
        thread::sleep(BEFORE);
        let start = Instant::now();
        let removed = measure::measure(|| place.remove());
        let end = Instant::now();
        thread::sleep(AFTER);
        ended.store(true, Ordering::Release);
        let reads = reader.join().map_err(|_| "the reader panicked")??;
        let writes = writer.join().map_err(|_| "the writer panicked")??;
        Ok((removed?.1, start, end, reads, writes))
    })?;
    let ms = |took: Duration| took.as_secs_f64() * 1e3;
    let mut round = Round::of(measured).bytes(setting.bytes);
    for (who, operations) in [("reader", &reads), ("writer", &writes)] {
        round = round
            .value(format!("{who}_longest_wait_ms"), ms(longest(operations, start, end)))
            .value(format!("{who}_longest_wait_before_ms"), ms(longest(operations, start - BEFORE, start)));
    }
    Ok(round)
}

/// Does `make`, which is not timed, and `work`, which is, in turns until `ended`.
fn repeat(
    ended: &AtomicBool,
    mut make: impl FnMut() -> Result<()>,
    mut work: impl FnMut() -> Result<()>,
) -> Result<Vec<Operation>> {
    let mut operations = Vec::new();
    while !ended.load(Ordering::Acquire) {
        make()?;
        let start = Instant::now();
        work()?;
        operations.push((start, start.elapsed()));
        thread::sleep(PAUSE);
    }
    Ok(operations)
}

/// The longest operation any part of which lay between `start` and `end`.
fn longest(operations: &[Operation], start: Instant, end: Instant) -> Duration {
    let overlapping = operations.iter().filter(|(began, took)| *began < end && *began + *took > start);
    overlapping.map(|(_, took)| *took).max().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_wait_is_of_those_that_overlap() {
        let zero = Instant::now();
        let ms = Duration::from_millis;
        let operations = [(zero, ms(9)), (zero + ms(8), ms(4)), (zero + ms(15), ms(3)), (zero + ms(20), ms(50))];
        assert_eq!(longest(&operations, zero + ms(10), zero + ms(20)), ms(4));
        assert_eq!(longest(&operations, zero + ms(12), zero + ms(15)), Duration::ZERO);
        assert_eq!(longest(&operations, zero, zero + ms(100)), ms(50));
    }
}
