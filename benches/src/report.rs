//! What a round tells: [`Round`].

use crate::measure::Measured;
use serde::Serialize;
use std::{collections::BTreeMap, path::PathBuf, time::Duration};

/// Errors end the round and are shown; nobody branches on them.
pub(crate) type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// One round, as JSON. `null` where a workload does not measure something.
#[derive(Debug, Serialize)]
pub(crate) struct Round {
    workload: &'static str,
    subject: &'static str,
    /// Wall time of the measured part.
    seconds: f64,
    /// Processor time of the measured part, in user and system, over all threads and children.
    cpu_seconds: f64,
    /// Most private memory (RssAnon) during the measured part.
    rss_anon_peak_bytes: Option<u64>,
    /// What the subject takes of the disk at the end.
    disk_bytes: Option<u64>,
    /// Bytes the measured part worked on.
    bytes: Option<u64>,
    /// All else; names end in their units.
    values: BTreeMap<String, f64>,
    /// A store that is left for others to measure.
    store: Option<PathBuf>,
}

impl Round {
    pub(crate) fn of(measured: Measured) -> Self {
        Self {
            workload: "",
            subject: "",
            seconds: measured.wall.as_secs_f64(),
            cpu_seconds: measured.cpu.as_secs_f64(),
            rss_anon_peak_bytes: measured.rss_anon_peak_bytes,
            disk_bytes: None,
            bytes: None,
            values: BTreeMap::new(),
            store: None,
        }
    }

    pub(crate) fn named(self, workload: &'static str, subject: &'static str) -> Self {
        Self { workload, subject, ..self }
    }

    pub(crate) fn bytes(self, bytes: u64) -> Self {
        Self { bytes: Some(bytes), ..self }
    }

    pub(crate) fn disk_bytes(self, bytes: u64) -> Self {
        Self { disk_bytes: Some(bytes), ..self }
    }

    pub(crate) fn store(self, store: PathBuf) -> Self {
        Self { store: Some(store), ..self }
    }

    pub(crate) fn value(mut self, name: impl Into<String>, value: f64) -> Self {
        self.values.insert(name.into(), value);
        self
    }

    pub(crate) fn seconds_of(self, name: &str, took: Duration) -> Self {
        self.value(format!("{name}_seconds"), took.as_secs_f64())
    }

    /// `<name>_p50_us`, `_p99_us` and `_max_us` of what single calls took; without a name `p50_us` and so on.
    pub(crate) fn latencies(self, name: &str, latencies: &mut [Duration]) -> Self {
        latencies.sort_unstable();
        let called = |what: &str| if name.is_empty() { format!("{what}_us") } else { format!("{name}_{what}_us") };
        let us = |percent| percentile(latencies, percent).as_nanos() as f64 / 1e3;
        self.value(called("p50"), us(50)).value(called("p99"), us(99)).value(called("max"), us(100))
    }
}

/// The smallest of `sorted` that at least `percent` of them do not exceed (nearest rank); zero of none.
pub(crate) fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_is_the_nearest_rank() {
        let ms: Vec<Duration> = (1..=200).map(Duration::from_millis).collect();
        for (percent, expected) in [(0, 1), (1, 2), (50, 100), (99, 198), (100, 200)] {
            assert_eq!(percentile(&ms, percent), Duration::from_millis(expected), "{percent} %");
        }
        let one = [Duration::from_millis(7)];
        assert!([0, 50, 100].iter().all(|percent| percentile(&one, *percent) == one[0]));
        assert_eq!(percentile(&[], 50), Duration::ZERO);
    }

    #[test]
    fn latencies_are_told_in_microseconds_under_their_name() {
        let mut latencies = [Duration::from_micros(3), Duration::from_nanos(1500), Duration::from_micros(2)];
        let measured = Measured { wall: Duration::from_secs(1), cpu: Duration::ZERO, rss_anon_peak_bytes: None };
        let round = Round::of(measured).latencies("open", &mut latencies).latencies("", &mut []);
        assert_eq!(round.values["open_p50_us"], 2.0);
        assert_eq!(round.values["open_max_us"], 3.0);
        assert_eq!(round.values["p99_us"], 0.0);
    }
}
