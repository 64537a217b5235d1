//! How a pull uses the network: requests for a small file, connections that come and go, and a limited rate.

mod common;

use common::*;
use hub_fixture::{Content, Fault, Hub, Repo, Target};
use std::time::{Duration, Instant};
use tabagent_model_cache::*;

const SMALL: u64 = 20_000;

#[tokio::test]
async fn a_small_file_costs_one_request_to_the_hub_and_one_where_it_sends_them() {
    let mut repo = Repo::new(REPO);
    for n in 0..60 {
        // The fixture, as the Hub, keeps .bin with LFS and .json in git.
        let kind = if n % 2 == 0 { "bin" } else { "json" };
        repo = repo.file(format!("part-{n:02}.{kind}"), Content::seeded(n, SMALL));
    }
    let hub = Hub::start(vec![repo]);
    let dir = tempfile::tempdir().unwrap();
    let cache = ModelCache::builder(dir.path()).endpoint(hub.endpoint()).offline(false).open().unwrap();
    let report = cache.pull(REPO).all(true).run().await.unwrap();
    assert_eq!(report.fetched_bytes, 60 * SMALL);
    let asked: Vec<_> = hub.requests().into_iter().filter(|request| request.file.is_some()).collect();
    assert_eq!(asked.len(), 120, "{asked:#?}");
    assert!(asked.iter().all(|request| request.method == "GET"));
    for n in 0..60 {
        let kind = if n % 2 == 0 { "bin" } else { "json" };
        assert!(holds(&cache, REPO, &format!("part-{n:02}.{kind}"), &Content::seeded(n, SMALL)));
    }
    assert_sound(&cache);
}

#[tokio::test]
async fn one_small_file_that_is_not_what_was_promised_keeps_those_sealed_with_it_from_nothing() {
    let mut repo = Repo::new(REPO);
    for n in 0..20 {
        repo = repo.file(format!("part-{n:02}.bin"), Content::seeded(n, SMALL));
    }
    let hub = Hub::start(vec![repo]);
    hub.faults().always(Target::path("part-07.bin").cdn(), Fault::CorruptBytes { offset: 100, len: 1 });
    // The bad one comes last, when the others are sealed or wait to be.
    hub.faults().always(Target::path("part-07.bin").cdn(), Fault::Delay(Duration::from_millis(500)));
    let dir = tempfile::tempdir().unwrap();
    let cache = ModelCache::builder(dir.path()).endpoint(hub.endpoint()).offline(false).open().unwrap();
    let error = cache.pull(REPO).all(true).run().await.unwrap_err();
    assert!(matches!(error, Error::DigestMismatch { .. }), "{error}");
    for n in 0..20 {
        assert_eq!(cache.has_file(REPO, &format!("part-{n:02}.bin")).unwrap(), n != 7, "{n}");
    }
    assert_sound(&cache);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_serves_few_at_once_is_pulled_from_by_those_it_serves() {
    const SIZE: u64 = 60 * MIB;
    let hub = hub(3, SIZE);
    let refusal = Fault::Status { code: 503, retry_after: None, rate_limit: None };
    let refused = hub.faults().times(5, Target::path("model.gguf").cdn().skip(2), refusal);
    let dir = tempfile::tempdir().unwrap();
    let cache = ModelCache::builder(dir.path()).endpoint(hub.endpoint()).offline(false).open().unwrap();
    cache.pull(REPO).all(true).run().await.unwrap();
    assert_eq!(hub.faults().fired(refused), 5);
    assert!(holds(&cache, REPO, "model.gguf", &Content::seeded(3, SIZE)));
    assert_sound(&cache);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limited_rate_slows_every_file_and_is_taken_for_no_stall() {
    const SIZE: u64 = 600 << 10;
    const RATE: u64 = 400 << 10;
    let mut repo = Repo::new(REPO).file("model.gguf", Content::seeded(4, SIZE));
    for n in 0..10 {
        repo = repo.file(format!("part-{n}.bin"), Content::seeded(n, SMALL));
    }
    let hub = Hub::start(vec![repo]);
    let dir = tempfile::tempdir().unwrap();
    // Shorter than the reader waits for what one read has brought.
    let patience = Duration::from_millis(200);
    let cache = builder(dir.path(), &hub.endpoint()).read_timeout(patience).limit_rate(RATE).open().unwrap();
    let (sink, events) = events();
    let begun = Instant::now();
    let report = cache.pull(REPO).all(true).on_event(Some(sink)).run().await.unwrap();
    // Never faster, however fast the machine is.
    assert!(begun.elapsed().as_secs_f64() >= 0.95 * report.fetched_bytes as f64 / RATE as f64, "{:?}", begun.elapsed());
    assert!(!events.lock().unwrap().iter().any(|event| matches!(event, EventKind::Retry { .. })), "{events:?}");
    assert!(holds(&cache, REPO, "model.gguf", &Content::seeded(4, SIZE)));
}

#[test]
fn a_rate_that_cannot_be_is_refused_before_anything_is_touched() {
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("store");
    for rate in [0, 1023] {
        let error = ModelCache::builder(&store).limit_rate(rate).open().unwrap_err();
        assert!(matches!(error, Error::InvalidOption { name: "limit_rate", .. }), "{error}");
        assert!(!store.exists());
    }
}
