//! What goes wrong, where and how often. Only the bookkeeping lives here; each fault is acted out where its answer is made.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;

use crate::chance::Chance;
use crate::log::Server;

/// One way of misbehaving.
///
/// A fault is used up only by an answer it changes: `CutBody` lets redirects, `HEAD`s and errors pass, `IgnoreRange` waits for a
/// ranged request, `CorruptBytes` for an answer that holds the bytes it damages.
#[derive(Clone, Debug, PartialEq)]
pub enum Fault {
    /// Closes the connection after this many bytes of the body (a body no longer than that is left alone).
    CutBody {
        /// Bytes of this body that arrive; not an offset in the file.
        after_bytes: u64,
    },
    /// Sends nothing more after this many bytes of the body, and keeps the connection open.
    Stall {
        /// Bytes of this body that arrive; not an offset in the file.
        after_bytes: u64,
    },
    /// Resets the connection (RST, not an orderly end) after this many bytes of the body.
    Reset {
        /// Bytes of this body that are sent; the reset may overtake some of them.
        after_bytes: u64,
    },
    /// Sends one byte at a time after this many bytes of the body.
    Trickle {
        /// Bytes of this body that arrive at full speed.
        after_bytes: u64,
        /// The time between two bytes.
        every: Duration,
    },
    /// Answers an error without looking at the request any further.
    Status {
        /// HTTP status, such as 429 or 503.
        code: u16,
        /// `Retry-After`, in seconds.
        retry_after: Option<u64>,
        /// The whole `RateLimit` header, such as `"resolvers";r=0;t=2`, in place of the usual one.
        rate_limit: Option<String>,
    },
    /// An error whose `Retry-After` is a date, this long from now.
    RetryAfterDate {
        /// HTTP status, such as 429 or 503.
        code: u16,
        /// Rounded to seconds.
        wait: Duration,
    },
    /// Answers a ranged request with 200 and the whole file.
    IgnoreRange,
    /// Answers a ranged request with 416 and the file's true length.
    NotSatisfiable,
    /// Leaves the `Content-Range` of a 206 out.
    NoContentRange,
    /// Announces this `Content-Length`; a longer body is cut there, a shorter one ends the connection.
    WrongLength {
        /// Bytes announced.
        announced: u64,
    },
    /// Leaves `Content-Length` out: the body comes in chunks.
    NoLength,
    /// Announces and sends so many zeros more than were asked for.
    ExtraBytes {
        /// Bytes after the body's own.
        extra: u64,
    },
    /// Calls the body gzip, whatever the request accepts.
    Gzip,
    /// Sends another content of the same length, under another etag, as after a change on the server.
    OtherContent,
    /// Flips every bit of these bytes of the file.
    CorruptBytes {
        /// First damaged byte, from the start of the file.
        offset: u64,
        /// Number of damaged bytes.
        len: u64,
    },
    /// Makes every signed URL issued so far invalid at the moment the CDN is asked for one; fresh ones work.
    ExpireUrls,
    /// Lies in the `Content-Range` of a 206. With another start, the bytes sent are those of that start if the file has them.
    WrongContentRange {
        /// First byte claimed. `None`: the true one.
        start: Option<u64>,
        /// Length of the file claimed. `None`: the true one.
        total: Option<u64>,
    },
    /// Announces and sends a body shorter than asked for; the answer looks complete.
    ShortLength {
        /// Bytes missing at the end of the body.
        missing: u64,
    },
    /// Sends the body at this speed.
    SlowBytesPerSecond(u64),
    /// Waits before the headers.
    Delay(Duration),
    /// Redirects to the URL that was asked for.
    RedirectLoop,
    /// Redirects elsewhere. A redirect that was due keeps its other headers.
    RedirectTo(String),
    /// Redirects to the same path on the third host, which is neither Hub nor CDN: it answers as they do, and takes any token.
    RedirectAbroad,
    /// Answers this and nothing else.
    RawBody {
        /// HTTP status.
        status: u16,
        /// Header names and values.
        headers: Vec<(String, String)>,
        /// The body.
        body: Bytes,
    },
    /// Gives every page of a tree listing a next one.
    EndlessPaging {
        /// Whether each page lists files never seen before, or the first page over and over. The link differs each time.
        fresh: bool,
    },
    /// Says another digest in `X-Linked-Etag` and `ETag` of a resolve answer than the listing has.
    WrongEtag(String),
    /// Says another size in `X-Linked-Size` of a resolve answer than the listing has.
    WrongLinkedSize(u64),
    /// Closes new connections as they are accepted. There is no URL yet: give [`Target::any`], narrowed to a server at most.
    /// Connections kept alive go on; [`Hub::drop_connections`](crate::Hub::drop_connections) ends those.
    RefuseConnections,
    /// The origin is gone, connections and all, and comes back after this time.
    Outage(Duration),
}

impl Fault {
    /// A bare error status.
    pub fn status(code: u16) -> Fault {
        Fault::Status { code, retry_after: None, rate_limit: None }
    }

    /// A 429 whose window resets in `seconds`, said the Hub's way (`RateLimit`) and the common one (`Retry-After`).
    pub fn rate_limited(seconds: u64) -> Fault {
        let rate_limit = Some(format!("\"resolvers\";r=0;t={seconds}"));
        Fault::Status { code: 429, retry_after: Some(seconds), rate_limit }
    }

    /// Status and JSON text of a hostile listing.
    pub fn json(status: u16, body: impl Into<Bytes>) -> Fault {
        let headers = vec![("content-type".to_owned(), "application/json; charset=utf-8".to_owned())];
        Fault::RawBody { status, headers, body: body.into() }
    }

    /// A page for people, with status 200: what a network's login page or a tired proxy answers in a server's place.
    pub fn html_page() -> Fault {
        let headers = vec![("content-type".to_owned(), "text/html; charset=utf-8".to_owned())];
        let body =
            Bytes::from_static(b"<!DOCTYPE html><html><title>Sign in</title><p>Accept the terms to use this network.</html>");
        Fault::RawBody { status: 200, headers, body }
    }

    /// An error as JSON, with status 200.
    pub fn json_error() -> Fault {
        Fault::json(200, r#"{"error":"Internal error - try again later"}"#)
    }

    /// What it is called in counts.
    pub fn name(&self) -> &'static str {
        match self {
            Fault::CutBody { .. } => "cut",
            Fault::Stall { .. } => "stall",
            Fault::Reset { .. } => "reset",
            Fault::Trickle { .. } => "trickle",
            Fault::Status { code: 429, .. } => "status-429",
            Fault::Status { .. } => "status",
            Fault::RetryAfterDate { .. } => "retry-after-date",
            Fault::IgnoreRange => "ignore-range",
            Fault::NotSatisfiable => "416",
            Fault::NoContentRange => "no-content-range",
            Fault::WrongLength { .. } => "wrong-length",
            Fault::NoLength => "no-length",
            Fault::ExtraBytes { .. } => "extra-bytes",
            Fault::Gzip => "gzip",
            Fault::OtherContent => "other-content",
            Fault::CorruptBytes { .. } => "flipped-bytes",
            Fault::ExpireUrls => "expired",
            Fault::WrongContentRange { .. } => "wrong-content-range",
            Fault::ShortLength { .. } => "short-length",
            Fault::SlowBytesPerSecond(_) => "slow",
            Fault::Delay(_) => "delay",
            Fault::RedirectLoop => "redirect-loop",
            Fault::RedirectTo(_) => "redirect",
            Fault::RedirectAbroad => "redirect-abroad",
            Fault::RawBody { .. } => "page",
            Fault::EndlessPaging { .. } => "endless-paging",
            Fault::WrongEtag(_) => "wrong-etag",
            Fault::WrongLinkedSize(_) => "wrong-size",
            Fault::RefuseConnections => "refused",
            Fault::Outage(_) => "outage",
        }
    }
}

/// Which requests a fault is for. A `&str` is a target too: any request whose URL or repo path contains it.
///
/// The repo path is `org/name/path/in/repo`; it is known on both servers, whereas the CDN's URLs hold only digests.
#[derive(Clone, Debug, Default)]
pub struct Target {
    contains: String,
    server: Option<Server>,
    method: Option<&'static str>,
    skip: u64,
}

impl Target {
    /// Every request.
    pub fn any() -> Target {
        Target::default()
    }

    /// Requests whose raw path and query, or whose file's repo path, contain `part`.
    pub fn path(part: impl Into<String>) -> Target {
        Target { contains: part.into(), ..Target::default() }
    }

    /// Only those to the Hub.
    pub fn hub(mut self) -> Target {
        self.server = Some(Server::Hub);
        self
    }

    /// Only those to the CDN.
    pub fn cdn(mut self) -> Target {
        self.server = Some(Server::Cdn);
        self
    }

    /// Only `GET`.
    pub fn get(mut self) -> Target {
        self.method = Some("GET");
        self
    }

    /// Only `HEAD`.
    pub fn head(mut self) -> Target {
        self.method = Some("HEAD");
        self
    }

    /// Lets the first `count` answers the fault would have changed pass unharmed.
    pub fn skip(mut self, count: u64) -> Target {
        self.skip = count;
        self
    }

    fn matches(&self, site: &Site<'_>) -> bool {
        self.server.is_none_or(|server| server == site.server)
            && self.method.is_none_or(|method| site.method.is_none_or(|asked| asked == method))
            && (site.url.contains(&self.contains) || site.file.is_some_and(|file| file.contains(&self.contains)))
    }
}

impl From<&str> for Target {
    fn from(part: &str) -> Self {
        Target::path(part)
    }
}

impl From<String> for Target {
    fn from(part: String) -> Self {
        Target::path(part)
    }
}

/// What a fault is matched against.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Site<'a> {
    pub(crate) server: Server,
    /// `None` where there is no request yet.
    pub(crate) method: Option<&'a str>,
    pub(crate) url: &'a str,
    pub(crate) file: Option<&'a str>,
    /// The fault that chance has for this request.
    pub(crate) drawn: Option<&'a Fault>,
}

/// Names one added fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FaultId(u64);

#[derive(Debug)]
struct Rule {
    id: FaultId,
    target: Target,
    fault: Fault,
    /// `None`: for ever.
    left: Option<u64>,
    fired: u64,
}

#[derive(Debug, Default)]
struct Rules {
    rules: Vec<Rule>,
    next: u64,
    chance: Option<Chance>,
    struck: BTreeMap<&'static str, u64>,
}

/// The faults in force, changeable while the hub runs. Clones share one set; faults of different kinds combine, of the same kind
/// the first added wins.
#[derive(Clone, Debug, Default)]
pub struct Faults(Arc<Mutex<Rules>>);

impl Faults {
    /// Adds a fault that strikes until removed.
    pub fn always(&self, target: impl Into<Target>, fault: Fault) -> FaultId {
        self.add(target.into(), fault, None)
    }

    /// Adds a fault that strikes once, then heals.
    pub fn once(&self, target: impl Into<Target>, fault: Fault) -> FaultId {
        self.add(target.into(), fault, Some(1))
    }

    /// Adds a fault that strikes `count` times, then heals.
    pub fn times(&self, count: u64, target: impl Into<Target>, fault: Fault) -> FaultId {
        self.add(target.into(), fault, Some(count))
    }

    /// From now on each request meets, with probability `rate`, one fault by itself, which fits what it asks for; faults added
    /// strike besides and before. Ends with [`clear`](Self::clear).
    ///
    /// What a request meets depends on `seed`, on what it asks for and on how often that was asked before, not on the order in which
    /// clients come. `pause` is what a delay, an outage and the time between two bytes of a trickle are made of: delays and outages
    /// last up to four of it. Servers that ask to wait ask for its whole seconds.
    ///
    /// # Panics
    /// If `rate` does not lie in `0.0..=1.0`.
    pub fn at_random(&self, seed: u64, rate: f64, pause: Duration) {
        self.lock().chance = Some(Chance::new(seed, rate, pause));
    }

    /// How often each kind has struck so far, by [`Fault::name`]; removed faults count on.
    pub fn struck(&self) -> BTreeMap<&'static str, u64> {
        self.lock().struck.clone()
    }

    /// How often a fault has struck; 0 once removed.
    pub fn fired(&self, id: FaultId) -> u64 {
        self.lock().rules.iter().find(|rule| rule.id == id).map_or(0, |rule| rule.fired)
    }

    /// Removes one fault.
    pub fn remove(&self, id: FaultId) {
        self.lock().rules.retain(|rule| rule.id != id);
    }

    /// Removes all faults, random ones too. An outage that began goes on to its end.
    pub fn clear(&self) {
        let mut rules = self.lock();
        rules.rules.clear();
        rules.chance = None;
    }

    /// The fault that chance has for a request with this `Range` header, if any.
    pub(crate) fn draw(&self, site: &Site<'_>, range: Option<&str>) -> Option<Fault> {
        self.lock().chance.as_mut()?.draw(site, range)
    }

    fn add(&self, target: Target, fault: Fault, left: Option<u64>) -> FaultId {
        let mut rules = self.lock();
        let id = FaultId(rules.next);
        rules.next += 1;
        rules.rules.push(Rule { id, target, fault, left, fired: 0 });
        id
    }

    /// The first fault in force at `site` that `picks` accepts, counted as one strike.
    pub(crate) fn strike<T>(&self, site: &Site<'_>, picks: impl Fn(&Fault) -> Option<T>) -> Option<T> {
        let mut rules = self.lock();
        for rule in rules.rules.iter_mut().filter(|rule| rule.left != Some(0) && rule.target.matches(site)) {
            let Some(picked) = picks(&rule.fault) else { continue };
            if rule.target.skip > 0 {
                rule.target.skip -= 1;
                continue;
            }
            rule.fired += 1;
            rule.left = rule.left.map(|left| left - 1);
            let name = rule.fault.name();
            *rules.struck.entry(name).or_default() += 1;
            return Some(picked);
        }
        let drawn = site.drawn?;
        let picked = picks(drawn)?;
        *rules.struck.entry(drawn.name()).or_default() += 1;
        Some(picked)
    }

    fn lock(&self) -> MutexGuard<'_, Rules> {
        self.0.lock().unwrap_or_else(|e| e.into_inner())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SITE: Site<'_> =
        Site { server: Server::Cdn, method: Some("GET"), url: "/xet-bridge/ab", file: Some("org/m/a.gguf"), drawn: None };

    fn slow(fault: &Fault) -> Option<u64> {
        if let Fault::SlowBytesPerSecond(n) = fault { Some(*n) } else { None }
    }

    #[test]
    fn a_counted_fault_heals() {
        let faults = Faults::default();
        let id = faults.times(2, "a.gguf", Fault::SlowBytesPerSecond(5));
        assert_eq!([(); 3].map(|()| faults.strike(&SITE, slow)), [Some(5), Some(5), None]);
        assert_eq!(faults.fired(id), 2);
    }

    #[test]
    fn a_skipping_target_lets_the_first_ones_pass() {
        let faults = Faults::default();
        faults.once(Target::any().skip(1), Fault::SlowBytesPerSecond(5));
        assert_eq!([(); 3].map(|()| faults.strike(&SITE, slow)), [None, Some(5), None]);
    }

    #[test]
    fn a_target_matches_url_or_repo_path_on_its_server_and_method() {
        for (target, expected) in [
            (Target::path("xet-bridge"), true),
            (Target::path("org/m"), true),
            (Target::path("b.gguf"), false),
            (Target::any().hub(), false),
            (Target::any().cdn().get(), true),
            (Target::any().head(), false),
        ] {
            assert_eq!(target.matches(&SITE), expected, "{target:?}");
        }
    }
}
