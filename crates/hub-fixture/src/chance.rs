//! Faults by chance: which one, if any, a request meets. A function of the seed and of what was asked, so that a run can be repeated
//! however its connections race.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use crate::content::splitmix64;
use crate::faults::{Fault, Site};
use crate::log::Server;

/// The seed, and how often each request was seen.
#[derive(Debug)]
pub(crate) struct Chance {
    seed: u64,
    rate: f64,
    pause: Duration,
    seen: HashMap<u64, u64>,
}

/// What a request is for, as far as faults differ.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    /// A model info or a page of a listing.
    Json,
    /// Where a file is.
    Resolve,
    /// Its bytes.
    Bytes,
}

impl Chance {
    pub(crate) fn new(seed: u64, rate: f64, pause: Duration) -> Chance {
        assert!((0.0..=1.0).contains(&rate), "a rate of faults lies in 0.0..=1.0, not {rate}");
        Chance { seed, rate, pause, seen: HashMap::new() }
    }

    pub(crate) fn draw(&mut self, site: &Site<'_>, range: Option<&str>) -> Option<Fault> {
        // `new` has fixed keys, so this is the same in every run. Signatures differ between runs, so queries stay out.
        let mut hasher = DefaultHasher::new();
        let path = site.url.split('?').next().unwrap_or_default();
        (site.server, site.method, path, site.file, range).hash(&mut hasher);
        let asked = hasher.finish();
        let count = self.seen.entry(asked).or_default();
        *count += 1;
        let mut dice = Dice(splitmix64(self.seed ^ splitmix64(asked ^ splitmix64(*count))));
        if dice.unit() >= self.rate {
            return None;
        }
        let kind = match site.server {
            Server::Hub if path.starts_with("/api/models/") => Kind::Json,
            Server::Hub if path.contains("/resolve/") => Kind::Resolve,
            _ => Kind::Bytes,
        };
        Some(self.fault(kind, &mut dice))
    }

    fn fault(&self, kind: Kind, dice: &mut Dice) -> Fault {
        // Each power of two is as likely as the next, so that a body of any size is struck at its beginning, middle and end.
        let magnitude = dice.below(23);
        let after_bytes = dice.below(1 << magnitude);
        let seconds = self.pause.as_secs();
        let code = [408, 429, 500, 502, 503, 504][dice.below(6) as usize];
        let any = 15;
        let own = match kind {
            Kind::Json => 4,
            Kind::Resolve => 2,
            Kind::Bytes => 11,
        };
        match (dice.below(any + own), kind) {
            (0, _) => Fault::CutBody { after_bytes },
            (1, _) => Fault::Stall { after_bytes },
            (2, _) => Fault::Reset { after_bytes },
            (3, _) => Fault::Trickle { after_bytes, every: self.pause / 8 },
            (4, _) => Fault::status(code),
            (5, _) => Fault::Status { code, retry_after: Some(seconds), rate_limit: None },
            (6, _) => Fault::Status { code: 429, retry_after: None, rate_limit: Some(format!("\"resolvers\";r=0;t={seconds}")) },
            (7, _) => Fault::RetryAfterDate { code, wait: Duration::from_secs(seconds) },
            (8, _) => Fault::html_page(),
            (9, _) => Fault::json_error(),
            (10, _) => Fault::Gzip,
            (11, _) => Fault::NoLength,
            (12, _) => Fault::Delay(self.pause.mul_f64(4.0 * dice.unit())),
            (13, _) => Fault::RedirectAbroad,
            // The rarer, since every connection meets it.
            (14, _) if dice.below(4) == 0 => Fault::Outage(self.pause.mul_f64(4.0 * dice.unit())),
            (14, _) => Fault::RedirectLoop,
            (15, Kind::Json) => Fault::json(200, "{\"sha\":"),
            (16, Kind::Json) => Fault::json(200, r#"{"sha":[1],"siblings":"x"}"#),
            (17, Kind::Json) => Fault::json(200, r#"[{"type":"file","path":7,"size":"x"}]"#),
            (_, Kind::Json) => Fault::json(200, vec![b' '; (16 << 20) + 1]),
            (15, Kind::Resolve) => Fault::WrongEtag(format!("{:064x}", dice.next())),
            (_, Kind::Resolve) => Fault::WrongLinkedSize(after_bytes),
            (15, _) => Fault::IgnoreRange,
            (16, _) => Fault::NotSatisfiable,
            (17, _) => Fault::NoContentRange,
            (18, _) => Fault::WrongContentRange { start: Some(after_bytes), total: None },
            (19, _) => Fault::WrongContentRange { start: None, total: Some(after_bytes) },
            (20, _) => Fault::WrongLength { announced: after_bytes },
            (21, _) => Fault::ExtraBytes { extra: after_bytes + 1 },
            (22, _) => Fault::ShortLength { missing: after_bytes + 1 },
            (23, _) => Fault::CorruptBytes { offset: after_bytes, len: 1 },
            (24, _) => Fault::OtherContent,
            (_, _) => Fault::ExpireUrls,
        }
    }
}

/// A sequence of numbers.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(1);
        splitmix64(self.0)
    }

    /// Less than `bound`.
    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    /// In `0.0..1.0`.
    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drawn(seed: u64, rate: f64, url: &str, count: usize) -> Vec<Option<Fault>> {
        let mut chance = Chance::new(seed, rate, Duration::from_millis(100));
        let site = Site { server: Server::Cdn, method: Some("GET"), url, file: None, drawn: None };
        (0..count).map(|_| chance.draw(&site, Some("bytes=0-9"))).collect()
    }

    #[test]
    fn what_a_request_meets_is_decided_by_the_seed_and_not_by_its_signature() {
        assert_eq!(drawn(1, 0.5, "/a?sig=1", 50), drawn(1, 0.5, "/a?sig=2", 50));
        assert_ne!(drawn(1, 0.5, "/a", 50), drawn(2, 0.5, "/a", 50));
        assert_ne!(drawn(1, 0.5, "/a", 50), drawn(1, 0.5, "/b", 50));
    }

    #[test]
    fn faults_are_as_frequent_as_asked_for_and_of_every_kind() {
        let all = drawn(3, 0.25, "/a", 4000);
        let faults: Vec<_> = all.iter().flatten().collect();
        assert!((800..1200).contains(&faults.len()), "{}", faults.len());
        let names: std::collections::BTreeSet<_> = faults.iter().map(|fault| fault.name()).collect();
        assert!(names.len() >= 23, "{names:?}");
        assert!(drawn(3, 0.0, "/a", 1000).iter().all(Option::is_none));
    }
}
