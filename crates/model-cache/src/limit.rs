//! The bandwidth cap of a cache: [`RateLimit`], which every file's bytes pay to, and how a rate is written.

use crate::{
    error::{Error, Result},
    name::printable,
};
use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::time::Instant;

/// The slowest limit accepted.
const SLOWEST: u64 = 1 << 10;
/// The least memory budget: one connection's.
pub(crate) const LEAST_BUDGET_BYTES: u64 = 8 << 20;
/// A memory budget above this is a slip of the keyboard.
const MOST_BUDGET_BYTES: u64 = 16 << 40;
/// Time not used that is made up for: a wait for the disk, and what timers oversleep.
const MADE_UP: Duration = Duration::from_millis(200);
/// Nothing for so long is a pause, not a wait; none of it is made up for.
const PAUSE: Duration = Duration::from_secs(1);
/// Waits shorter than this are left owing: timers count in milliseconds.
const NOT_WORTH_WAITING: Duration = Duration::from_millis(5);

/// A rate as people write it: bytes a second, or with `K`, `M`, `G`, `T` (of 1024, as `Ki`, `KiB`..) or `KB`, `MB`.. (of 1000).
/// Fractions and a final `/s` are allowed, letter case does not matter.
///
/// # Errors
/// [`Error::InvalidOption`] named `name` for anything else, and for less than 1 KiB a second.
///
/// ```
/// assert_eq!(tabagent_model_cache::parse_rate("limit_rate", "1.5 MiB/s").unwrap(), 3 << 19);
/// assert!(tabagent_model_cache::parse_rate("limit_rate", "fast").is_err());
/// ```
pub fn parse_rate(name: &'static str, text: &str) -> Result<u64> {
    let lower = text.trim().to_ascii_lowercase();
    RATE.read(name, lower.strip_suffix("/s").unwrap_or(&lower).trim_end(), text)
}

/// The memory budget of a pull as people write it: bytes, or with units as [`parse_rate`] knows them.
///
/// # Errors
/// [`Error::InvalidOption`] named `name` for anything else, and for less than 8 MiB or more than 16 TiB.
///
/// ```
/// assert_eq!(tabagent_model_cache::parse_memory_budget("memory_budget", "24MiB").unwrap(), 24 << 20);
/// assert!(tabagent_model_cache::parse_memory_budget("memory_budget", "little").is_err());
/// ```
pub fn parse_memory_budget(name: &'static str, text: &str) -> Result<u64> {
    BUDGET.read(name, &text.trim().to_ascii_lowercase(), text)
}

/// What a number of bytes is for: the least and the most that is accepted, and the words for what is not.
struct Amount {
    least: u64,
    most: u64,
    too_little: &'static str,
    too_much: &'static str,
    no_number: &'static str,
}

const RATE: Amount = Amount {
    least: SLOWEST,
    most: u64::MAX,
    too_little: "it must be at least 1 KiB a second; leave it out to have no limit",
    too_much: "no network is as fast; leave it out to have no limit",
    no_number: "it must be a number of bytes a second, with K, M, G or MiB, MB and so on: 10M, 1.5G",
};

const BUDGET: Amount = Amount {
    least: LEAST_BUDGET_BYTES,
    most: MOST_BUDGET_BYTES,
    too_little: "it must be at least 8 MiB",
    too_much: "no machine has as much memory; leave it out to have 40 MiB",
    no_number: "it must be a number of bytes, with K, M, G or MiB, MB and so on: 24M, 1.5G",
};

impl Amount {
    /// The bytes that `lower` says, which is `text` without what only decorates it.
    fn read(&self, name: &'static str, lower: &str, text: &str) -> Result<u64> {
        match bytes_of(lower) {
            None => refuse(name, text, self.no_number),
            Some(bytes) if bytes >= u64::MAX as f64 => refuse(name, text, self.too_much),
            Some(bytes) => self.check(name, bytes as u64, text),
        }
    }

    /// `bytes`, given as `text`.
    fn check(&self, name: &'static str, bytes: u64, text: &str) -> Result<u64> {
        match bytes {
            bytes if bytes < self.least => refuse(name, text, self.too_little),
            bytes if bytes > self.most => refuse(name, text, self.too_much),
            bytes => Ok(bytes),
        }
    }
}

fn refuse(name: &'static str, text: &str, reason: &str) -> Result<u64> {
    Err(Error::InvalidOption { name, value: printable(text), reason: reason.to_owned() })
}

/// The bytes that a number with a unit means, in lower case.
fn bytes_of(text: &str) -> Option<f64> {
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = (&text[..digits], text[digits..].trim_start());
    let factor: u64 = match unit {
        "" | "b" => 1,
        "k" | "ki" | "kib" => 1 << 10,
        "m" | "mi" | "mib" => 1 << 20,
        "g" | "gi" | "gib" => 1 << 30,
        "t" | "ti" | "tib" => 1 << 40,
        "kb" => 1_000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        "tb" => 1_000_000_000_000,
        _ => return None,
    };
    number.parse::<f64>().ok().filter(|number| number.is_finite()).map(|number| number * factor as f64)
}

/// `bytes_per_second`, given as `text`.
///
/// # Errors
/// [`Error::InvalidOption`] for less than 1 KiB a second.
pub(crate) fn check_rate(name: &'static str, bytes_per_second: u64, text: &str) -> Result<u64> {
    RATE.check(name, bytes_per_second, text)
}

/// `bytes`, given as `text`.
///
/// # Errors
/// [`Error::InvalidOption`] for less than 8 MiB or more than 16 TiB.
pub(crate) fn check_memory_budget(name: &'static str, bytes: u64, text: &str) -> Result<u64> {
    BUDGET.check(name, bytes, text)
}

/// Lets bytes through at a rate, whoever brings them.
///
/// Bytes are paid for after they arrived, since nobody knows before how many will: the reader waits, its socket's buffers fill,
/// and TCP slows the server down. So no more than one read of each connection is ahead of the rate. From the first byte on the
/// bytes are at most the rate's and these; from any later moment on, also those of [`MADE_UP`].
pub(crate) struct RateLimit {
    bytes_per_second: u64,
    begun: Instant,
    bucket: Mutex<Bucket>,
    waits: AtomicU64,
}

impl RateLimit {
    /// Needs a Tokio runtime only once waited for.
    pub(crate) fn new(bytes_per_second: u64) -> Self {
        Self { bytes_per_second, begun: Instant::now(), bucket: Mutex::default(), waits: AtomicU64::new(0) }
    }

    /// Waits until bytes that have just arrived are paid for.
    pub(crate) async fn pay(&self, bytes: u64) {
        let now = self.begun.elapsed();
        let wait = self.bucket.lock().unwrap_or_else(PoisonError::into_inner).take(now, bytes, self.bytes_per_second);
        if wait >= NOT_WORTH_WAITING {
            self.waits.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(wait).await;
        }
    }

    /// How often bytes had to wait so far: while this grows, the limit decides the speed.
    pub(crate) fn waits(&self) -> u64 {
        self.waits.load(Ordering::Relaxed)
    }
}

/// The time up to which the bytes so far are paid, since the beginning; none before the first.
#[derive(Debug, Default)]
struct Bucket {
    paid_until: Option<Duration>,
}

impl Bucket {
    /// Takes so many bytes, and says how long to wait until they are paid.
    fn take(&mut self, now: Duration, bytes: u64, bytes_per_second: u64) -> Duration {
        let from = match self.paid_until {
            Some(paid_until) if now.saturating_sub(paid_until) < PAUSE => paid_until.max(now.saturating_sub(MADE_UP)),
            _ => now,
        };
        // In nanoseconds: a rate of many GiB a second and a piece of a few bytes must not come to nothing.
        let cost = u128::from(bytes) * 1_000_000_000 / u128::from(bytes_per_second);
        let paid_until = from + Duration::from_nanos(cost.min(u128::from(u64::MAX)) as u64);
        self.paid_until = Some(paid_until);
        paid_until.saturating_sub(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_rate_is_read_as_people_write_it() {
        for (text, bytes) in [
            ("1024", 1024),
            ("10K", 10 << 10),
            ("10k", 10 << 10),
            ("10M", 10 << 20),
            ("10MiB", 10 << 20),
            ("10Mi", 10 << 20),
            (" 10 MiB/s ", 10 << 20),
            ("1.5G", 3 << 29),
            ("10MB", 10_000_000),
            ("2t", 2 << 40),
            ("0.5m", 1 << 19),
        ] {
            assert_eq!(parse_rate("limit_rate", text).unwrap(), bytes, "{text}");
        }
    }

    #[test]
    fn what_is_no_rate_is_refused_with_its_name() {
        for bad in [
            "",
            "0",
            "1023",
            "0.5K",
            "M",
            "-1M",
            "+1M",
            "1e6",
            "10 M B",
            "10Mbit",
            "inf",
            "NaN",
            "1..5M",
            "99999999999999T",
            "10M/h",
        ] {
            let error = parse_rate("MODEL_CACHE_LIMIT_RATE", bad).unwrap_err();
            assert!(matches!(error, Error::InvalidOption { name: "MODEL_CACHE_LIMIT_RATE", .. }), "{bad:?}: {error}");
        }
    }

    #[test]
    fn a_budget_that_can_t_be_is_refused_as_it_was_typed() {
        assert_eq!(parse_memory_budget("--memory-budget", "8Mi").unwrap(), LEAST_BUDGET_BYTES);
        for (bad, reason) in [("1K", "at least 8 MiB"), ("99999999T", "no machine has as much"), ("little", "a number of bytes")]
        {
            let text = parse_memory_budget("--memory-budget", bad).unwrap_err().to_string();
            assert!(text.starts_with(&format!("--memory-budget=\"{bad}\" can't be used")) && text.contains(reason), "{text}");
        }
        assert!(parse_rate("--limit-rate", "0.5K").unwrap_err().to_string().starts_with("--limit-rate=\"0.5K\" "));
    }

    /// Connections that each read pieces as fast as they are let, on virtual time; gives the bytes and the time they took.
    async fn pull(rate: u64, connections: usize, piece: u64, total: u64) -> (u64, Duration) {
        let limit = RateLimit::new(rate);
        let begun = Instant::now();
        let left = Mutex::new(total);
        futures::future::join_all((0..connections).map(|_| async {
            loop {
                let piece = {
                    let mut left = left.lock().unwrap();
                    let piece = piece.min(*left);
                    *left -= piece;
                    piece
                };
                if piece == 0 {
                    return;
                }
                limit.pay(piece).await;
            }
        }))
        .await;
        (total, begun.elapsed())
    }

    #[tokio::test(start_paused = true)]
    async fn the_rate_holds_from_a_kibibyte_to_gibibytes_a_second_over_any_number_of_connections() {
        for rate in [1 << 10, 100 << 10, 10 << 20, 1 << 30] {
            for connections in [1, 4, 16] {
                for piece in [1000, 16 << 10, 400 << 10] {
                    // Ten seconds of it, and more than a piece for each.
                    let total = (10 * rate).max(4 * piece * connections as u64);
                    // So many steps of virtual time are enough to know.
                    if total / piece > 2_000_000 {
                        continue;
                    }
                    let (bytes, took) = pull(rate, connections, piece, total).await;
                    let found = bytes as f64 / took.as_secs_f64() / rate as f64;
                    assert!((0.95..1.05).contains(&found), "{rate} {connections} {piece}: {found}");
                }
            }
        }
    }

    /// Pieces of 64 KiB at 100 MiB a second for about ten seconds, with a wait of `stall` after each 32 MiB; gives the share of the rate.
    async fn pull_with_stalls(stall: Duration) -> f64 {
        const PIECE: u64 = 64 << 10;
        let rate = 100 << 20;
        let limit = RateLimit::new(rate);
        let begun = Instant::now();
        let pieces = 10 * rate / PIECE;
        for piece in 1..=pieces {
            limit.pay(PIECE).await;
            if piece % 512 == 0 {
                tokio::time::sleep(stall).await;
            }
        }
        (pieces * PIECE) as f64 / begun.elapsed().as_secs_f64() / rate as f64
    }

    #[tokio::test(start_paused = true)]
    async fn short_waits_for_the_disk_are_made_up_for_and_a_pause_is_not() {
        for stall_ms in [0, 20, 100, 190] {
            let share = pull_with_stalls(Duration::from_millis(stall_ms)).await;
            assert!((0.95..1.001).contains(&share), "{stall_ms} ms: {share}");
        }
        // 31 pauses of 2 s in 10 s of bytes.
        let share = pull_with_stalls(Duration::from_secs(2)).await;
        assert!((0.13..0.15).contains(&share), "{share}");
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_held_back_is_counted() {
        let limit = RateLimit::new(1 << 20);
        limit.pay(1 << 10).await;
        assert_eq!(limit.waits(), 0);
        limit.pay(1 << 20).await;
        assert_eq!(limit.waits(), 1);
    }

    proptest! {
        #[test]
        fn from_the_first_byte_on_no_more_is_paid_for_than_the_rate_allows(
            rate in 1u64 << 10..1 << 34,
            steps in prop::collection::vec((0u64..2_000_000_000, 1u64..1 << 20), 1..200),
        ) {
            let mut bucket = Bucket::default();
            let (mut now, mut first, mut sum) = (Duration::ZERO, None, 0u128);
            for (pause, bytes) in steps {
                now += Duration::from_nanos(pause);
                let first = *first.get_or_insert(now);
                sum += u128::from(bytes);
                let paid_until = now + bucket.take(now, bytes, rate);
                // Each price is rounded down to a nanosecond.
                let nanos = (paid_until - first).as_nanos() + 200;
                prop_assert!(sum * 1_000_000_000 <= nanos * u128::from(rate), "{sum} bytes in {nanos} ns");
            }
        }

        #[test]
        fn over_any_time_no_more_is_paid_for_than_the_rate_allows(
            rate in 1u64 << 10..1 << 34,
            steps in prop::collection::vec((0u64..200_000_000, 1u64..1 << 20), 1..200),
        ) {
            let mut bucket = Bucket::default();
            let mut now = Duration::ZERO;
            let mut paid: Vec<(Duration, u64)> = Vec::new();
            for (pause, bytes) in steps {
                now += Duration::from_nanos(pause);
                let wait = bucket.take(now, bytes, rate);
                paid.push((now + wait, bytes));
            }
            // Between any two moments: the rate's bytes, what may be made up for, and the first piece.
            for first in 0..paid.len() {
                let mut sum = 0u128;
                for (at, bytes) in &paid[first + 1..] {
                    sum += u128::from(*bytes);
                    let allowed = (*at - paid[first].0 + MADE_UP).as_nanos() * u128::from(rate) / 1_000_000_000;
                    prop_assert!(sum <= allowed + paid.len() as u128 * u128::from(rate / 1_000_000_000 + 1), "{sum} > {allowed}");
                }
            }
        }

        #[test]
        fn a_written_rate_reads_back(rate in SLOWEST..1 << 50) {
            prop_assert_eq!(parse_rate("limit_rate", &rate.to_string()).unwrap(), rate);
        }

        #[test]
        fn no_text_makes_the_parser_panic(text in "\\PC{0,20}") {
            let _ = parse_rate("limit_rate", &text);
        }
    }
}
