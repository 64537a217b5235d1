//! What a piece of work costs: wall time, processor time, private memory, bytes read from the disk.

use crate::report::Result;
use nix::sys::resource::{Usage, UsageWho, getrusage};
use std::{
    fs,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

/// How often private memory is looked at.
const SAMPLE_EVERY: Duration = Duration::from_millis(2);

/// What the measured part of a round cost.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Measured {
    pub(crate) wall: Duration,
    pub(crate) cpu: Duration,
    pub(crate) rss_anon_peak_bytes: Option<u64>,
}

/// Runs `work` and measures it.
pub(crate) fn measure<T>(work: impl FnOnce() -> Result<T>) -> Result<(T, Measured)> {
    let (cpu, start) = (cpu_time()?, Instant::now());
    let done = work()?;
    let measured = Measured { wall: start.elapsed(), cpu: cpu_time()?.saturating_sub(cpu), rss_anon_peak_bytes: None };
    Ok((done, measured))
}

/// As [`measure`], and its most private memory, by a thread that looks every 2 ms (0.5 % of a processor).
pub(crate) fn measure_with_memory<T>(work: impl FnOnce() -> Result<T>) -> Result<(T, Measured)> {
    let memory = MemorySampler::start();
    let measured = measure(work);
    let peak = memory.stop()?;
    measured.map(|(done, measured)| (done, Measured { rss_anon_peak_bytes: Some(peak), ..measured }))
}

/// Calls `call` `count` times with its number, and measures each.
pub(crate) fn each_call(count: u64, mut call: impl FnMut(u64) -> Result<()>) -> Result<Vec<Duration>> {
    let mut latencies = Vec::with_capacity(count as usize);
    for number in 0..count {
        let start = Instant::now();
        call(number)?;
        latencies.push(start.elapsed());
    }
    Ok(latencies)
}

/// Bytes this process made the disk read so far.
pub(crate) fn read_bytes() -> Result<u64> {
    field(&fs::read_to_string("/proc/self/io")?, "read_bytes:")
}

fn rss_anon_bytes() -> Result<u64> {
    Ok(field(&fs::read_to_string("/proc/self/status")?, "RssAnon:")? << 10)
}

/// The number after `name` in one of /proc's texts.
fn field(text: &str, name: &str) -> Result<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let number = line.and_then(|line| line.split_whitespace().next()).ok_or_else(|| format!("/proc tells no {name}"))?;
    Ok(number.parse()?)
}

/// Processor time of this process and of its children that ended.
fn cpu_time() -> Result<Duration> {
    let of = |usage: Usage| {
        [usage.user_time(), usage.system_time()]
            .iter()
            .map(|time| time.tv_sec() as u64 * 1_000_000 + time.tv_usec() as u64)
            .sum::<u64>()
    };
    Ok(Duration::from_micros(of(getrusage(UsageWho::RUSAGE_SELF)?) + of(getrusage(UsageWho::RUSAGE_CHILDREN)?)))
}

struct MemorySampler {
    ended: Arc<AtomicBool>,
    thread: JoinHandle<u64>,
}

impl MemorySampler {
    fn start() -> Self {
        let ended = Arc::new(AtomicBool::new(false));
        let thread = thread::spawn({
            let ended = Arc::clone(&ended);
            move || {
                let mut peak = 0;
                loop {
                    peak = rss_anon_bytes().map_or(peak, |bytes| peak.max(bytes));
                    if ended.load(Ordering::Acquire) {
                        return peak;
                    }
                    thread::sleep(SAMPLE_EVERY);
                }
            }
        });
        Self { ended, thread }
    }

    fn stop(self) -> Result<u64> {
        self.ended.store(true, Ordering::Release);
        self.thread.join().map_err(|_| "the thread that looks at the memory panicked".into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_of_proc_is_the_number_after_its_name() {
        let status = "Name:\tx\nVmRSS:\t  12 kB\nRssAnon:\t     340 kB\n";
        assert_eq!(field(status, "RssAnon:").unwrap(), 340);
        assert!(field(status, "RssFile:").is_err());
    }

    #[test]
    fn memory_that_was_given_back_shows_in_the_peak() {
        const BYTES: usize = 64 << 20;
        let ((), measured) = measure_with_memory(|| {
            let block = vec![1_u8; BYTES];
            std::hint::black_box(&block);
            thread::sleep(SAMPLE_EVERY * 10);
            Ok(())
        })
        .unwrap();
        assert!(measured.rss_anon_peak_bytes.unwrap() >= BYTES as u64);
    }
}
