//! Every fault of an origin, and random ones, over every kind of file. Whatever happens: a pull ends with the right bytes or with an
//! error of the right kind that has a hint; it ends; the token stays at the Hub; and the next pull of a healthy origin has the file
//! whole, fetching only what is not here.

use super::common::*;
use hub_fixture::{Content, Fault, GOOD_TOKEN, Hub, Repo, Server, Target};
use std::{path::Path, time::Duration};
use tabagent_model_cache::*;

/// So long a request may be silent where silence is what is tried; what goes by it is awaited, not measured.
const TIMEOUT: Duration = Duration::from_millis(250);
/// A pull that takes longer hangs: many times what its timeouts and tries add up to.
const HANG: Duration = Duration::from_secs(120);

/// A file, of a kind of its own to the pull engine.
#[derive(Clone, Copy, Debug)]
struct Kind {
    path: &'static str,
    size_bytes: u64,
    /// Whether its bytes come from the CDN, or from git's part of the Hub.
    cdn: bool,
    /// Answers that pass before a fault that stays begins, so that something has landed.
    healthy: u64,
    /// Cases tried at once.
    at_once: usize,
}

const GIT: Kind = Kind { path: "config.json", size_bytes: 300, cdn: false, healthy: 0, at_once: 4 };
const SMALL: Kind = Kind { path: "small.bin", size_bytes: 20_000, cdn: true, healthy: 0, at_once: 4 };
const BLOCK_FILE: Kind = Kind { path: "block.gguf", size_bytes: 3 * MIB, cdn: true, healthy: 0, at_once: 4 };
const CHUNKS: Kind = Kind { path: "chunks.gguf", size_bytes: CHUNK_BYTES + 7 * MIB, cdn: true, healthy: 2, at_once: 2 };

impl Kind {
    fn content(self) -> Content {
        Content::seeded(self.size_bytes, self.size_bytes)
    }

    fn repo(self) -> Repo {
        Repo::new(REPO).file(self.path, self.content())
    }

    /// Answers that pass before a fault that stays. Bytes that are flipped come with one answer; who has a connection needs no other.
    fn healthy(self, fault: &Fault) -> u64 {
        if matches!(fault, Fault::CorruptBytes { .. } | Fault::RefuseConnections) { 0 } else { self.healthy }
    }

    /// The requests for its bytes; where there is none yet, those to their server.
    fn bytes(self, fault: &Fault) -> Target {
        match (fault, self.cdn) {
            (Fault::RefuseConnections, true) => Target::any().cdn(),
            (Fault::RefuseConnections, false) => Target::any().hub(),
            (_, true) => Target::path("/xet-bridge/").cdn(),
            (_, false) => Target::path("/api/resolve-cache/").hub(),
        }
    }
}

/// How a pull is to end.
#[derive(Clone, Copy, Debug, PartialEq)]
enum End {
    Right,
    Wrong(ErrorKind),
}

const NETWORK: End = End::Wrong(ErrorKind::Network);
const INTEGRITY: End = End::Wrong(ErrorKind::Integrity);

/// What goes wrong with a file's bytes; how a pull is to end that meets it once, and one that meets it always.
fn faults(size_bytes: u64) -> Vec<(Fault, End, End)> {
    use End::Right;
    let slow = 10 * TIMEOUT;
    let half = (size_bytes / 2).min(MIB);
    // Of the healthy beginning of an answer; too little for an answer to be progress.
    let after_bytes = half.min(5000);
    let mut faults = vec![
        (Fault::CutBody { after_bytes: 0 }, Right, NETWORK),
        (Fault::CutBody { after_bytes }, Right, NETWORK),
        (Fault::Reset { after_bytes }, Right, NETWORK),
        (Fault::Stall { after_bytes }, Right, NETWORK),
        (Fault::Trickle { after_bytes, every: TIMEOUT / 5 }, Right, NETWORK),
        (Fault::Delay(slow), Right, NETWORK),
        (Fault::rate_limited(0), Right, NETWORK),
        (Fault::RetryAfterDate { code: 429, wait: Duration::ZERO }, Right, NETWORK),
        (Fault::RetryAfterDate { code: 503, wait: Duration::ZERO }, Right, NETWORK),
        (Fault::Status { code: 503, retry_after: Some(0), rate_limit: None }, Right, NETWORK),
        (Fault::IgnoreRange, Right, Right),
        (Fault::NoLength, Right, Right),
        (Fault::RedirectAbroad, Right, Right),
        (Fault::NotSatisfiable, Right, NETWORK),
        (Fault::NoContentRange, Right, NETWORK),
        (Fault::WrongContentRange { start: Some(1), total: None }, Right, NETWORK),
        (Fault::WrongContentRange { start: None, total: Some(size_bytes + 1) }, INTEGRITY, INTEGRITY),
        (Fault::WrongLength { announced: half }, Right, NETWORK),
        (Fault::WrongLength { announced: 2 * size_bytes }, Right, NETWORK),
        (Fault::ExtraBytes { extra: 1 }, Right, NETWORK),
        (Fault::ShortLength { missing: 1 }, Right, NETWORK),
        (Fault::Gzip, Right, NETWORK),
        (Fault::html_page(), Right, NETWORK),
        (Fault::json_error(), Right, NETWORK),
        (Fault::OtherContent, INTEGRITY, INTEGRITY),
        (Fault::CorruptBytes { offset: half, len: 1 }, INTEGRITY, INTEGRITY),
        (Fault::ExpireUrls, Right, NETWORK),
        (Fault::RedirectLoop, Right, NETWORK),
        (Fault::RedirectTo("ftp://127.0.0.1/x".to_owned()), Right, NETWORK),
        (Fault::RedirectTo("http://127.0.0.1:1/x".to_owned()), Right, NETWORK),
        (Fault::RefuseConnections, Right, NETWORK),
        (Fault::Outage(TIMEOUT / 25), Right, NETWORK),
    ];
    faults.extend([408, 500, 502, 504].map(|code| (Fault::status(code), Right, NETWORK)));
    faults
}

/// Short where a fault is waited out. Elsewhere a busy machine must not use up, unseen, the one answer that has the fault.
fn timeout(fault: &Fault) -> Duration {
    let waited_out = matches!(fault, Fault::Stall { .. } | Fault::Trickle { .. } | Fault::Delay(_));
    if waited_out { TIMEOUT } else { 40 * TIMEOUT }
}

fn patient(store: &Path, hub: &Hub, timeout: Duration) -> ModelCache {
    let builder = builder(store, &hub.endpoint()).token(GOOD_TOKEN).connections(2);
    let builder = builder.read_timeout(timeout).metadata_timeout(timeout);
    builder.retry_waits(TIMEOUT / 5, TIMEOUT / 2).open().unwrap()
}

/// Pulls all of [`REPO`]. However it ends, it ends, once, and an error has a hint.
async fn pull(cache: &ModelCache, what: &str) -> Result<PullReport> {
    pull_within(cache, what, HANG).await
}

async fn pull_within(cache: &ModelCache, what: &str, hang: Duration) -> Result<PullReport> {
    let (sink, events) = events();
    let pulling = cache.pull(REPO).all(true).on_event(Some(sink)).run();
    let Ok(result) = tokio::time::timeout(hang, pulling).await else { panic!("{what}: the pull hangs") };
    assert_one_end(&events);
    if let Err(error) = &result {
        assert!(error.hint().is_some(), "{what}: no hint for {error}");
        assert!(!error.chain().contains(GOOD_TOKEN) && error.chain().len() < 1000, "{what}: {}", error.chain());
    }
    result
}

/// That the token went to the Hub, and nowhere else.
fn assert_token_at_home(hub: &Hub, what: &str) {
    for request in hub.requests() {
        let shown = request.authorization.is_some();
        assert_eq!(shown, request.server == Server::Hub, "{what}: {request:?}");
    }
}

/// Bytes that are here, and need not be fetched again.
fn landed_bytes(cache: &ModelCache) -> u64 {
    let unfinished: u64 = cache.list().unwrap().iter().map(|repo| repo.landed_bytes).sum();
    cache.stats().unwrap().live_bytes + unfinished
}

fn assert_ends(what: &str, result: &Result<PullReport>, end: End) {
    let found = match result {
        Ok(_) => End::Right,
        Err(error) => End::Wrong(error.kind()),
    };
    assert_eq!(found, end, "{what}: {result:?}");
}

/// One fault at a file's bytes: always, then no more, then once.
async fn meet(kind: Kind, fault: Fault, once: End, always: End) {
    let what = format!("{} {fault:?}", kind.path);
    let hub = Hub::start(vec![kind.repo()]);
    let dir = tempfile::tempdir().unwrap();
    let cache = patient(dir.path(), &hub, timeout(&fault));
    let rule = hub.faults().always(kind.bytes(&fault).skip(kind.healthy(&fault)), fault.clone());
    let result = pull(&cache, &what).await;
    assert!(hub.faults().fired(rule) > 0, "{what}: it never struck");
    assert_ends(&what, &result, always);
    assert_eq!(cache.has_file(REPO, kind.path).unwrap(), always == End::Right, "{what}");
    hub.faults().remove(rule);
    // Where the error was one of integrity, or the file is whole, the fault is met once from the beginning: nothing is here.
    let landed = if always == End::Right {
        assert!(holds(&cache, REPO, kind.path, &kind.content()), "{what}");
        cache.delete_model(REPO).unwrap();
        0
    } else {
        landed_bytes(&cache)
    };
    let rule = hub.faults().once(kind.bytes(&fault), fault);
    let mut result = pull(&cache, &what).await;
    assert_ends(&what, &result, once);
    let landed_then = if once == End::Right { landed } else { landed_bytes(&cache) };
    if once != End::Right {
        assert!(!cache.has_file(REPO, kind.path).unwrap(), "{what}");
        hub.faults().remove(rule);
        result = pull(&cache, &what).await;
    }
    let report = result.unwrap_or_else(|error| panic!("{what}: {}", error.chain()));
    // A whole file that comes to a request for a part brings what is here already too.
    let in_vain = if what.contains("IgnoreRange") { kind.size_bytes } else { BLOCK };
    let missing = kind.size_bytes - landed_then;
    assert!(report.fetched_bytes <= missing + in_vain, "{what}: {missing} bytes were missing, {report:?}");
    assert!(holds(&cache, REPO, kind.path, &kind.content()), "{what}");
    assert_token_at_home(&hub, &what);
    assert_sound(&cache);
}

/// Runs the cases, so many at once, to the end of all of them.
async fn run_all(cases: impl Iterator<Item = impl Future<Output = ()> + Send + 'static>, at_once: usize) {
    use futures::StreamExt;
    let running = futures::stream::iter(cases.map(tokio::spawn)).buffer_unordered(at_once);
    let failed = running.filter(|ended| std::future::ready(ended.is_err())).count().await;
    assert_eq!(failed, 0, "cases failed, each with a message of its own");
}

async fn meet_all(kind: Kind) {
    let cases = faults(kind.size_bytes).into_iter().filter(|(fault, ..)| kind.cdn || *fault != Fault::ExpireUrls);
    let cases = cases.map(|(fault, once, always)| match fault {
        // Of a file that is JSON, JSON of another length is another content.
        _ if fault == Fault::json_error() && kind.path.ends_with(".json") => meet(kind, fault, INTEGRITY, INTEGRITY),
        _ => meet(kind, fault, once, always),
    });
    run_all(cases, kind.at_once).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_fault_spoils_a_file_of_git_or_keeps_the_next_pull_from_it() {
    meet_all(GIT).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_fault_spoils_a_small_file_or_keeps_the_next_pull_from_it() {
    meet_all(SMALL).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_fault_spoils_a_file_of_one_block_or_keeps_the_next_pull_from_it() {
    meet_all(BLOCK_FILE).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_fault_spoils_a_file_of_several_chunks_or_keeps_the_next_pull_from_what_is_missing() {
    meet_all(CHUNKS).await;
}

/// What goes wrong with a description; how a scan or a pull is to end that meets it once, and one that meets it always.
fn lies() -> Vec<(Fault, End, End)> {
    use End::Right;
    let json = |body: &str| Fault::json(200, body.to_owned());
    let mut lies = vec![
        (Fault::CutBody { after_bytes: 10 }, Right, NETWORK),
        (Fault::Reset { after_bytes: 10 }, Right, NETWORK),
        (Fault::Stall { after_bytes: 10 }, Right, NETWORK),
        (Fault::Trickle { after_bytes: 10, every: TIMEOUT / 5 }, Right, NETWORK),
        (Fault::Delay(10 * TIMEOUT), Right, NETWORK),
        (Fault::rate_limited(0), Right, NETWORK),
        (Fault::RetryAfterDate { code: 503, wait: Duration::ZERO }, Right, NETWORK),
        (Fault::NoLength, Right, Right),
        (Fault::Outage(TIMEOUT / 25), Right, NETWORK),
        (Fault::WrongLength { announced: 1 << 20 }, Right, NETWORK),
        // What is told wrong without a sign that it came to harm is refused at once: nothing has landed that would be lost.
        (Fault::WrongLength { announced: 10 }, NETWORK, NETWORK),
        (Fault::ShortLength { missing: 1 }, NETWORK, NETWORK),
        (Fault::ExtraBytes { extra: 1 }, NETWORK, NETWORK),
        (Fault::Gzip, NETWORK, NETWORK),
        (Fault::html_page(), NETWORK, NETWORK),
        (Fault::json_error(), NETWORK, NETWORK),
        (json(""), NETWORK, NETWORK),
        (json("nul"), NETWORK, NETWORK),
        (json(r#"{"sha":7}"#), NETWORK, NETWORK),
        (json(r#"[{"type":"file","path":{},"size":"x","oid":[]}]"#), NETWORK, NETWORK),
        (json(&"[".repeat(100_000)), NETWORK, NETWORK),
        (json(&format!("[{}]", "0,".repeat(9 << 20))), NETWORK, NETWORK),
        // One that leads back to where it is no more is no loop.
        (Fault::RedirectLoop, Right, NETWORK),
        (Fault::RedirectTo("ftp://127.0.0.1/x".to_owned()), NETWORK, NETWORK),
    ];
    lies.extend([408, 500, 502, 504].map(|code| (Fault::status(code), Right, NETWORK)));
    lies
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_lie_about_a_repo_is_believed_and_none_keeps_the_next_scan_from_it() {
    let cases = lies().into_iter().flat_map(|case| ["/revision/", "/tree/"].map(|part| (part, case.clone())));
    let cases = cases.map(|(part, (fault, once, always))| async move {
        let what = format!("{part} {}", fault.name());
        let hub = Hub::start(vec![SMALL.repo()]);
        let dir = tempfile::tempdir().unwrap();
        let cache = patient(dir.path(), &hub, timeout(&fault));
        let target = || Target::path(part).hub();
        let rule = hub.faults().always(target(), fault.clone());
        let scanned =
            tokio::time::timeout(HANG, cache.scan_repo(REPO)).await.unwrap_or_else(|_| panic!("{what}: the scan hangs"));
        match (&scanned, always) {
            (Ok(_), End::Right) => {}
            (Err(error), End::Wrong(kind)) => assert!(error.kind() == kind && error.hint().is_some(), "{what}: {error}"),
            _ => panic!("{what}: {scanned:?}"),
        }
        assert!(hub.faults().fired(rule) > 0, "{what}: it never struck");
        hub.faults().remove(rule);
        let rule = hub.faults().once(target(), fault);
        let result = pull(&cache, &what).await;
        assert_ends(&what, &result, once);
        hub.faults().remove(rule);
        pull(&cache, &what).await.unwrap();
        assert!(holds(&cache, REPO, SMALL.path, &SMALL.content()), "{what}");
        assert_token_at_home(&hub, &what);
    });
    run_all(cases, 4).await;
}

/// What came of pulls under random faults.
#[derive(Debug, Default)]
struct Figures {
    pulls: u64,
    right: u64,
    wrong: std::collections::BTreeMap<String, u64>,
    healthy: u64,
    bytes: u64,
    requests: u64,
    struck: std::collections::BTreeMap<&'static str, u64>,
}

impl Figures {
    fn add(&mut self, other: Self) {
        self.pulls += other.pulls;
        self.right += other.right;
        self.healthy += other.healthy;
        self.bytes += other.bytes;
        self.requests += other.requests;
        other.wrong.into_iter().for_each(|(name, count)| *self.wrong.entry(name).or_default() += count);
        other.struck.into_iter().for_each(|(name, count)| *self.struck.entry(name).or_default() += count);
    }
}

/// Stores, each pulled into up to three times while each request meets a fault with probability `rate`, then from a healthy origin.
async fn random_run(seed: u64, stores: u64, rate: f64, timeout: Duration) -> Figures {
    let pause = timeout / 5;
    let hang = HANG.mul_f64(timeout.as_secs_f64() / TIMEOUT.as_secs_f64());
    let mut figures = Figures::default();
    let mut numbers = Numbers(seed);
    for round in 0..stores {
        let mut kinds = vec![GIT, SMALL, BLOCK_FILE, Kind { path: "model.gguf", size_bytes: 12 * MIB, ..CHUNKS }];
        if round % 25 == 24 {
            kinds.push(CHUNKS);
        }
        let what = format!("seed {seed}, store {round}, rate {rate}");
        let hub = Hub::start(vec![kinds.iter().fold(Repo::new(REPO), |repo, kind| repo.file(kind.path, kind.content()))]);
        let dir = tempfile::tempdir().unwrap();
        let cache = patient(dir.path(), &hub, timeout);
        let assert_right = || {
            for kind in &kinds {
                let here = cache.has_file(REPO, kind.path).unwrap();
                assert!(!here || holds(&cache, REPO, kind.path, &kind.content()), "{what}: {} is wrong", kind.path);
            }
        };
        hub.faults().at_random(numbers.next(), rate, pause);
        for _ in 0..numbers.within(1..4) {
            let result = pull_within(&cache, &what, hang).await;
            figures.pulls += 1;
            match result {
                Ok(_) => figures.right += 1,
                Err(error) => {
                    let expected = matches!(error.kind(), ErrorKind::Network | ErrorKind::Integrity);
                    assert!(expected, "{what}: {}", error.chain());
                    let text = format!("{error:?}");
                    let name = text.split([' ', '{', '(']).next().unwrap_or_default();
                    *figures.wrong.entry(name.to_owned()).or_default() += 1;
                }
            }
            assert_right();
        }
        hub.faults().clear();
        // An outage that began goes on to its end.
        tokio::time::sleep(4 * pause).await;
        let mut landed = landed_bytes(&cache);
        let mut pulled = pull_within(&cache, &what, hang).await;
        // Wrong bytes may have landed in a pull that something else ended: its file's digest tells now, they are dropped, and fetched anew.
        let is_spoilt = hub.faults().struck().keys().any(|fault| matches!(*fault, "flipped-bytes" | "other-content"));
        let mut spoilt = if is_spoilt { kinds.len() } else { 0 };
        while spoilt > 0 && matches!(pulled, Err(Error::DigestMismatch { .. })) {
            (spoilt, landed) = (spoilt - 1, landed_bytes(&cache));
            pulled = pull_within(&cache, &what, hang).await;
        }
        let report = pulled.unwrap_or_else(|error| panic!("{what}: {}", error.chain()));
        let size: u64 = kinds.iter().map(|kind| kind.size_bytes).sum();
        assert!(report.fetched_bytes <= size - landed + BLOCK, "{what}: {landed} bytes were here, {report:?}");
        assert!(kinds.iter().all(|kind| holds(&cache, REPO, kind.path, &kind.content())), "{what}");
        assert_token_at_home(&hub, &what);
        assert_sound(&cache);
        figures.healthy += 1;
        figures.bytes += hub.bytes_served();
        figures.requests += hub.requests().len() as u64;
        for (name, count) in hub.faults().struck() {
            *figures.struck.entry(name).or_default() += count;
        }
    }
    figures
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_faults_in_any_order_end_in_the_right_bytes_or_an_error() {
    let seed = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    println!("MODEL_CACHE_TEST_SEED={seed}");
    let figures = random_run(seed, 8, 0.15, TIMEOUT).await;
    println!("{figures:?}");
}

/// As long as you like: `MODEL_CACHE_TEST_SEED=1 MODEL_CACHE_TEST_STORES=1000 cargo test -p model-cache --test faults -- --ignored
/// --nocapture a_long_random_run`; four runs at once, which mostly wait. On a machine with much else to do,
/// `MODEL_CACHE_TEST_TIMEOUT_MS` gives them time. docs/reliability.md has the figures of one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes as long as it is told to"]
async fn a_long_random_run() {
    use futures::StreamExt;
    let number = |name: &str, default: u64| std::env::var(name).map_or(default, |text| text.parse().unwrap());
    let (seed, stores) = (number("MODEL_CACHE_TEST_SEED", 1), number("MODEL_CACHE_TEST_STORES", 50));
    let timeout = Duration::from_millis(number("MODEL_CACHE_TEST_TIMEOUT_MS", TIMEOUT.as_millis() as u64));
    let begun = std::time::Instant::now();
    let mut total = Figures::default();
    let rates = [0.03, 0.1, 0.2, 0.4].into_iter().cycle();
    let parts = (seed..).zip(rates).take(stores.div_ceil(25) as usize);
    let parts = parts.map(|(seed, rate)| tokio::spawn(random_run(seed, 25, rate, timeout)));
    let mut parts = futures::stream::iter(parts).buffer_unordered(4);
    while let Some(part) = parts.next().await {
        total.add(part.unwrap());
        println!("{:?} {} pulls {total:?}", begun.elapsed(), total.pulls + total.healthy);
    }
}
