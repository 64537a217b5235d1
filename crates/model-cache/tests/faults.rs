//! What servers and networks do wrong, and what a pull makes of it: right content in the end, or a clear error and nothing visible.

mod common;
#[path = "faults/matrix.rs"]
mod matrix;

use common::*;
use hub_fixture::{Content, Fault, File, GOOD_TOKEN, Hub, Repo, Server, Target, Tls, UNLISTED_TOKEN};
use std::time::{Duration, Instant};
use tabagent_model_cache::*;

const SIZE: u64 = 42 * MIB;

fn content() -> Content {
    Content::seeded(1, SIZE)
}

fn model() -> Target {
    Target::path("model.gguf").cdn()
}

/// Pulls all of [`REPO`]; the result and the events.
async fn pull(cache: &ModelCache, repo: &str) -> (Result<PullReport>, Events) {
    let (sink, events) = events();
    let result = cache.pull(repo).all(true).on_event(Some(sink)).run().await;
    assert_one_end(&events);
    (result, events)
}

fn retries(events: &Events) -> Vec<(String, f64)> {
    let events = events.lock().unwrap();
    let retry = |event: &EventKind| match event {
        EventKind::Retry { reason, wait_seconds, .. } => Some((reason.clone(), *wait_seconds)),
        _ => None,
    };
    events.iter().filter_map(retry).collect()
}

/// That the model is not there in any way a reader could see, and what it takes: `filling_bytes` reserved.
fn assert_invisible(cache: &ModelCache, filling_bytes: u64) {
    assert!(!cache.has_file(REPO, "model.gguf").unwrap());
    assert!(cache.get_file(REPO, "model.gguf").unwrap().is_none());
    let stats = cache.stats().unwrap();
    assert_eq!((stats.filling_bytes, stats.doomed_bytes), (filling_bytes, 0), "{stats:?}");
    assert!(stats.disk_bytes < filling_bytes + 64 * MIB, "{stats:?}");
}

/// Pulls with one fault set, which must do no more harm than a retry.
async fn heals(target: Target, times: u64, fault: Fault) -> (Hub, Events) {
    let hub = hub(1, SIZE);
    let dir = tempfile::tempdir().unwrap();
    let cache = builder(dir.path(), &hub.endpoint()).read_timeout(Duration::from_millis(300)).open().unwrap();
    hub.faults().times(times, target, fault);
    let (result, events) = pull(&cache, REPO).await;
    result.unwrap();
    assert!(holds(&cache, REPO, "model.gguf", &content()));
    assert_sound(&cache);
    (hub, events)
}

/// Pulls with one fault set for good; the error, and the cache for a look at what it left.
async fn fails(target: Target, fault: Fault) -> (Error, ModelCache, Hub, tempfile::TempDir) {
    let hub = hub(1, SIZE);
    let dir = tempfile::tempdir().unwrap();
    let cache = cache(dir.path(), &hub);
    hub.faults().always(target, fault);
    let (result, events) = pull(&cache, REPO).await;
    let error = result.unwrap_err();
    assert!(matches!(events.lock().unwrap().last(), Some(EventKind::Failed { .. })));
    assert!(!cache.has_file(REPO, "model.gguf").unwrap());
    (error, cache, hub, dir)
}

#[tokio::test]
async fn a_body_that_is_cut_is_fetched_on_from_the_block_it_was_cut_in() {
    let (hub, events) = heals(model(), 3, Fault::CutBody { after_bytes: 3 * MIB }).await;
    assert_eq!(retries(&events).len(), 3);
    assert!(hub.bytes_served() <= SIZE + 3 * BLOCK + MIB, "{}", hub.bytes_served());
}

#[tokio::test]
async fn a_body_that_stalls_is_given_up_and_asked_for_anew() {
    let (hub, events) = heals(model(), 2, Fault::Stall { after_bytes: 2 * MIB }).await;
    let retries = retries(&events);
    assert!(retries.len() == 2 && retries[0].0.contains("sent nothing"), "{retries:?}");
    assert!(hub.bytes_served() <= SIZE + 2 * BLOCK + MIB, "{}", hub.bytes_served());
}

#[tokio::test]
async fn a_body_that_drips_a_byte_before_each_timeout_is_given_up_all_the_same() {
    let trickle = Fault::Trickle { after_bytes: 2 * MIB, every: Duration::from_millis(20) };
    let (hub, events) = heals(model().skip(1), 1, trickle).await;
    // As slow beside the block that came before, or as too slow for any.
    let retries = retries(&events);
    assert!(retries.iter().all(|(reason, _)| reason.contains("sent no more than")), "{retries:?}");
    // What had come of the block was kept.
    assert!(hub.bytes_served() <= SIZE + MIB, "{}", hub.bytes_served());
    let hub = self::hub(1, SIZE);
    let dir = tempfile::tempdir().unwrap();
    let cache = builder(dir.path(), &hub.endpoint()).read_timeout(Duration::from_millis(200));
    let cache = cache.retry_waits(Duration::from_millis(1), Duration::from_millis(2)).open().unwrap();
    hub.faults().always(model(), Fault::Trickle { after_bytes: 1000, every: Duration::from_millis(20) });
    let (result, _) = pull(&cache, REPO).await;
    assert!(matches!(result, Err(Error::Stalled { bytes: 1..4096, .. })), "{result:?}");
}

#[tokio::test]
async fn connections_that_never_last_for_a_block_still_bring_the_file() {
    let hub = hub(1, SIZE);
    let dir = tempfile::tempdir().unwrap();
    let cache =
        builder(dir.path(), &hub.endpoint()).retry_waits(Duration::from_millis(1), Duration::from_millis(2)).open().unwrap();
    hub.faults().always(model(), Fault::CutBody { after_bytes: MIB + 12_345 });
    let (result, _) = pull(&cache, REPO).await;
    assert_eq!(result.unwrap().fetched_bytes, SIZE + 2, "no byte is fetched twice");
    assert!(holds(&cache, REPO, "model.gguf", &content()));
    assert_sound(&cache);
}

#[tokio::test]
async fn a_connection_much_slower_than_the_others_is_made_anew_and_goes_on_where_it_stood() {
    // The one that is slow would need more than a quarter of an hour.
    let (hub, events) = heals(model().skip(3), 1, Fault::SlowBytesPerSecond(5000)).await;
    assert!(retries(&events).is_empty() || retries(&events)[0].0.contains("sent no more"), "{events:?}");
    assert!(hub.bytes_served() <= SIZE + MIB, "{}", hub.bytes_served());
    let resumed = hub.requests().iter().any(|request| request.range.is_some_and(|(first, _)| first % BLOCK != 0));
    assert!(resumed, "{:#?}", hub.requests());
}

#[tokio::test]
async fn a_hub_that_dies_in_the_middle_and_comes_back_is_pulled_from_to_the_end() {
    let repo = || Repo::new(REPO).file("model.gguf", content());
    let hub = Hub::start(vec![repo()]);
    let port = |endpoint: String| endpoint.rsplit(':').next().unwrap().parse().unwrap();
    let (hub_port, cdn_port) = (port(hub.endpoint()), port(hub.cdn_endpoint()));
    let dir = tempfile::tempdir().unwrap();
    // Its waits make room for half a minute without an origin, many times what one needs to start.
    let waits = Duration::from_secs(8);
    let cache = builder(dir.path(), &hub.endpoint()).retry_waits(waits, waits).open().unwrap();
    hub.faults().always(model().skip(2), Fault::Stall { after_bytes: MIB });
    let (sink, events) = events();
    let pulling = tokio::spawn({
        let cache = cache.clone();
        async move { cache.pull(REPO).all(true).on_event(Some(sink)).run().await }
    });
    tokio::task::spawn_blocking(move || {
        until("every connection stalls", || {
            hub.requests().iter().filter(|request| request.body_bytes_sent == MIB).count() >= CONNECTIONS
        });
        drop(hub);
    })
    .await
    .unwrap();
    while retries(&events).is_empty() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // The new one knows no signature of the old one's.
    let hub = Hub::builder().repo(repo()).port(hub_port).cdn_port(cdn_port).start().unwrap();
    let report = pulling.await.unwrap().unwrap();
    assert_eq!(report.fetched_bytes, SIZE, "no byte is fetched twice");
    assert!(hub.bytes_served() < SIZE, "{}", hub.bytes_served());
    assert!(holds(&cache, REPO, "model.gguf", &content()));
}

#[tokio::test]
async fn a_cdn_without_a_certificate_to_trust_or_that_hangs_up_gets_no_second_look_or_the_usual_ones() {
    for (tls, tries) in [(Tls::SelfSigned, 0), (Tls::Cut, 7)] {
        let hub = Hub::builder().repo(Repo::new(REPO).file("model.gguf", content())).cdn_tls(tls).start().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let builder = builder(dir.path(), &hub.endpoint()).connections(1);
        let cache = builder.retry_waits(Duration::from_millis(1), Duration::from_millis(2)).open().unwrap();
        let (result, events) = pull(&cache, REPO).await;
        let error = result.unwrap_err();
        assert_eq!(matches!(error, Error::Certificate { .. }), tls == Tls::SelfSigned, "{error:?}");
        assert!(error.kind() == ErrorKind::Network && error.hint().is_some(), "{error:?}");
        assert_eq!(retries(&events).len(), tries);
    }
}

#[tokio::test]
async fn a_server_in_trouble_is_asked_again_until_it_heals() {
    for target in [model(), Target::path("model.gguf").hub(), Target::path("/api/models/").hub()] {
        let (_, events) = heals(target, 2, Fault::status(503)).await;
        assert_eq!(retries(&events).len(), 2, "{events:?}");
    }
}

#[tokio::test]
async fn a_rate_limit_is_waited_out_as_long_as_the_server_says() {
    let limits = [
        (Fault::Status { code: 429, retry_after: Some(1), rate_limit: None }, 1.0),
        (Fault::Status { code: 429, retry_after: Some(60), rate_limit: Some(r#""resolvers";r=0;t=1"#.to_owned()) }, 2.0),
    ];
    for (fault, seconds) in limits {
        let begun = Instant::now();
        let (_, events) = heals(Target::path("config.json").hub(), 1, fault).await;
        let retries = retries(&events);
        assert_eq!(retries.iter().map(|(_, wait)| *wait).collect::<Vec<_>>(), [seconds]);
        assert!(retries[0].0.contains("limits the rate"), "{retries:?}");
        assert!(begun.elapsed() >= Duration::from_secs_f64(seconds));
    }
}

#[tokio::test]
async fn addresses_that_expire_in_the_middle_of_a_file_are_asked_for_again() {
    let hub = hub(1, SIZE);
    let dir = tempfile::tempdir().unwrap();
    let cache = cache(dir.path(), &hub);
    hub.faults().once(model().skip(3), Fault::ExpireUrls);
    let (result, events) = pull(&cache, REPO).await;
    result.unwrap();
    assert!(retries(&events).is_empty(), "a fresh address is no failure: {events:?}");
    assert!(holds(&cache, REPO, "model.gguf", &content()));
    assert!(hub.requests().iter().any(|request| request.server == Server::Cdn && request.status == 403));
}

#[tokio::test]
async fn addresses_that_are_always_expired_end_with_an_error() {
    let (error, cache, _hub, _dir) = fails(model(), Fault::ExpireUrls).await;
    assert!(matches!(error, Error::HubStatus { status: 403, .. }), "{error}");
    assert_invisible(&cache, SIZE);
}

#[tokio::test]
async fn a_server_that_ignores_ranges_sends_the_file_once_and_not_once_a_connection() {
    let hub = hub(1, 200 * MIB);
    let dir = tempfile::tempdir().unwrap();
    let cache = cache(dir.path(), &hub);
    hub.faults().always(model(), Fault::IgnoreRange);
    let (result, _) = pull(&cache, REPO).await;
    result.unwrap();
    assert!(holds(&cache, REPO, "model.gguf", &Content::seeded(1, 200 * MIB)));
    // The others learn it from their first bytes; what the fixture had sent until it noticed is all they cost.
    let in_vain = (CONNECTIONS as u64 - 1) * 8 * MIB;
    assert!(hub.bytes_served() <= 200 * MIB + in_vain, "{}", hub.bytes_served());
}

#[tokio::test]
async fn one_answer_that_ignores_its_range_among_good_ones_spoils_nothing() {
    for skipped in 0..3 {
        heals(model().skip(skipped), 1, Fault::IgnoreRange).await;
    }
}

#[tokio::test]
async fn a_stream_without_ranges_that_is_cut_goes_on_where_the_blocks_are_missing() {
    let hub = hub(1, SIZE);
    let dir = tempfile::tempdir().unwrap();
    let cache = cache(dir.path(), &hub);
    hub.faults().always(model(), Fault::IgnoreRange);
    hub.faults().times(2, model(), Fault::CutBody { after_bytes: 17 * MIB });
    let (result, _) = pull(&cache, REPO).await;
    result.unwrap();
    assert!(holds(&cache, REPO, "model.gguf", &content()));
}

#[tokio::test]
async fn bytes_that_are_not_what_was_promised_are_dropped_and_fetched_anew_by_the_next_pull() {
    let hub = hub(1, SIZE);
    let dir = tempfile::tempdir().unwrap();
    let cache = cache(dir.path(), &hub);
    hub.faults().once(model(), Fault::CorruptBytes { offset: 21 * MIB, len: 1 });
    let (result, _) = pull(&cache, REPO).await;
    let error = result.unwrap_err();
    assert!(matches!(&error, Error::DigestMismatch { name, size_bytes: SIZE, .. } if name.contains("model.gguf")), "{error}");
    assert_eq!(error.kind(), ErrorKind::Integrity);
    assert_invisible(&cache, 0);
    hub.clear_log();
    let (result, _) = pull(&cache, REPO).await;
    assert_eq!(result.unwrap().fetched_bytes, SIZE);
    assert!(holds(&cache, REPO, "model.gguf", &content()));
    assert_sound(&cache);
}

#[tokio::test]
async fn a_small_file_that_is_not_what_was_promised_is_not_stored() {
    let hub = hub(1, SIZE);
    let dir = tempfile::tempdir().unwrap();
    let cache = cache(dir.path(), &hub);
    hub.faults().once("config.json", Fault::CorruptBytes { offset: 0, len: 1 });
    let result = cache.download_file(REPO, "config.json", None).await;
    assert!(matches!(result, Err(Error::DigestMismatch { size_bytes: 2, .. })), "{result:?}");
    assert!(!cache.has_file(REPO, "config.json").unwrap());
    cache.download_file(REPO, "config.json", None).await.unwrap();
    assert_eq!(&cache.get_file(REPO, "config.json").unwrap().unwrap()[..], b"{}");
}

#[tokio::test]
async fn a_server_that_speaks_of_another_file_than_the_listing_is_not_believed() {
    let other = "0".repeat(64);
    for (target, fault, what) in [
        (Target::path("model.gguf").hub(), Fault::WrongEtag(other), "digest"),
        (Target::path("model.gguf").hub(), Fault::WrongLinkedSize(SIZE + 1), "size"),
        (model(), Fault::WrongContentRange { start: None, total: Some(SIZE + 1) }, "size"),
    ] {
        let (error, cache, _hub, _dir) = fails(target, fault).await;
        assert!(
            matches!(&error, Error::ContentChanged { what: found, path, .. } if *found == what && path.as_str() == "model.gguf"),
            "{error}"
        );
        assert_eq!(cache.stats().unwrap().live_bytes, if cache.has_file(REPO, "config.json").unwrap() { 2 } else { 0 });
    }
}

#[tokio::test]
async fn bytes_of_another_place_than_was_asked_for_are_not_taken() {
    for fault in [Fault::WrongContentRange { start: Some(1), total: None }, Fault::ShortLength { missing: 1000 }] {
        let (error, _cache, _hub, _dir) = fails(model(), fault).await;
        assert!(matches!(error, Error::BadAnswer { .. }), "{error}");
    }
}

#[tokio::test]
async fn a_server_that_refuses_connections_for_good_ends_the_pull_and_what_landed_is_kept() {
    let hub = hub(1, SIZE);
    let dir = tempfile::tempdir().unwrap();
    let cache = cache(dir.path(), &hub);
    // Two answers come whole, then the CDN is gone.
    let fault = hub.faults().always(model().skip(2), Fault::CutBody { after_bytes: 0 });
    hub.faults().always(Target::any().cdn().skip(CONNECTIONS as u64), Fault::RefuseConnections);
    let begun = Instant::now();
    let (result, _) = pull(&cache, REPO).await;
    let error = result.unwrap_err();
    assert!(matches!(error, Error::Network { .. }), "{error}");
    assert!(begun.elapsed() < Duration::from_secs(25), "{:?}", begun.elapsed());
    assert_invisible(&cache, SIZE);
    hub.faults().remove(fault);
    hub.faults().clear();
    hub.clear_log();
    let (result, _) = pull(&cache, REPO).await;
    result.unwrap();
    assert!(hub.bytes_served() < SIZE, "{}", hub.bytes_served());
    assert!(holds(&cache, REPO, "model.gguf", &content()));
}

#[tokio::test]
async fn a_hub_that_is_gone_in_the_middle_of_a_file_ends_the_pull_after_one_round_of_tries() {
    let hub = hub(1, SIZE);
    let dir = tempfile::tempdir().unwrap();
    let cache = builder(dir.path(), &hub.endpoint()).connections(8).open().unwrap();
    // Begun before, so that its connections ask where the rest is.
    let fault = hub.faults().always(model().skip(2), Fault::status(404));
    pull(&cache, REPO).await.0.unwrap_err();
    hub.faults().remove(fault);
    hub.faults().always(Target::path("/resolve/").hub(), Fault::status(503));
    let begun = Instant::now();
    let (sink, events) = events();
    // This file alone: the small one has no connections that could each try for themselves.
    let error = cache.pull(REPO).path("model.gguf").on_event(Some(sink)).run().await.unwrap_err();
    assert!(matches!(error, Error::HubStatus { status: 503, .. }), "{error}");
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    assert_eq!(retries(&events).len(), 4, "{:?}", retries(&events));
}

#[tokio::test]
async fn bytes_that_arrive_twice_are_written_once_so_that_what_was_hashed_is_what_is_sealed() {
    for connection in 1..4 {
        let hub = hub(1, SIZE);
        let dir = tempfile::tempdir().unwrap();
        let cache = cache(dir.path(), &hub);
        // One connection gets the whole file at once; the others their blocks later, and one of them a wrong byte.
        hub.faults().once(model(), Fault::IgnoreRange);
        hub.faults().times(3, model().skip(1), Fault::Delay(Duration::from_millis(500)));
        hub.faults().once(model().skip(1), Fault::CorruptBytes { offset: connection * BLOCK + 4 * MIB, len: 1 });
        match pull(&cache, REPO).await.0 {
            Ok(_) => assert!(holds(&cache, REPO, "model.gguf", &content())),
            Err(error) => assert!(matches!(error, Error::DigestMismatch { .. }), "{error}"),
        }
    }
}

#[tokio::test]
async fn redirects_without_an_end_are_not_followed_for_ever() {
    let (error, _cache, hub, _dir) = fails(Target::path("model.gguf").hub(), Fault::RedirectLoop).await;
    assert!(matches!(&error, Error::BadAnswer { reason, .. } if reason.contains("redirect")), "{error}");
    assert!(hub.requests().len() < 60, "{}", hub.requests().len());
}

#[tokio::test]
async fn the_token_never_reaches_the_cdn() {
    let hub = Hub::start(vec![Repo::new(REPO).private().gated().file("a.json", "{}").file("model.gguf", content())]);
    let dir = tempfile::tempdir().unwrap();
    let cache = builder(dir.path(), &hub.endpoint()).token(GOOD_TOKEN).open().unwrap();
    pull(&cache, REPO).await.0.unwrap();
    let requests = hub.requests();
    let (hub_requests, cdn_requests): (Vec<_>, Vec<_>) = requests.iter().partition(|request| request.server == Server::Hub);
    assert!(!cdn_requests.is_empty() && cdn_requests.iter().all(|request| request.authorization.is_none()));
    assert!(hub_requests.iter().all(|request| request.authorization.as_deref() == Some("Bearer hf_good")));
}

#[tokio::test]
async fn every_refusal_of_the_hub_is_told_apart() {
    let hub = Hub::start(vec![
        Repo::new(REPO).file("model-Q4_0.gguf", "x").file("model-Q8_0.gguf", "y"),
        Repo::new("org/gated").gated().file("model.gguf", content()),
        Repo::new("org/private").private().file("a.txt", "x"),
        Repo::new("org/off").disabled().file("a.txt", "x"),
        Repo::new("org/new").renamed_from("org/old").file("a.txt", "x"),
    ]);
    let dir = tempfile::tempdir().unwrap();
    let open = |token: Option<&str>| {
        let builder = builder(dir.path(), &hub.endpoint());
        token.map_or(ModelCache::builder(dir.path()).endpoint(hub.endpoint()), |token| builder.token(token)).open().unwrap()
    };
    let anonymous = open(None);
    let error = async |cache: &ModelCache, repo: &str| pull(cache, repo).await.0.unwrap_err();
    assert!(matches!(error(&anonymous, "org/none").await, Error::RepoNotFound { token_source: None, .. }));
    assert!(matches!(error(&anonymous, "org/private").await, Error::RepoNotFound { token_source: None, .. }));
    assert!(matches!(error(&anonymous, "org/off").await, Error::Disabled { .. }));
    assert!(matches!(error(&anonymous, "org/gated").await, Error::Gated { token_source: None, .. }));
    assert!(matches!(error(&open(Some(UNLISTED_TOKEN)), "org/gated").await, Error::Gated { token_source: Some(_), .. }));
    assert!(matches!(error(&open(Some("hf_wrong")), REPO).await, Error::BadToken { .. }));
    assert!(matches!(error(&anonymous, "org/model@v9").await, Error::RevisionNotFound { .. }));
    assert!(matches!(error(&anonymous, &format!("{REPO}@{}", "0".repeat(40))).await, Error::RevisionNotFound { .. }));
    let missing = anonymous.pull(REPO).path("none.gguf").run().await;
    assert!(matches!(missing, Err(Error::FileNotFound { path, .. }) if path == "none.gguf"));
    let missing = anonymous.pull(REPO).file("*.bin").run().await;
    assert!(matches!(missing, Err(Error::FileNotFound { path, .. }) if path == "*.bin"));
    let missing = anonymous.download_quant(REPO, "Q2_K", None).await;
    assert!(matches!(missing, Err(Error::QuantNotFound { offered, .. }) if offered == ["Q4_0", "Q8_0"]));
    let unchosen = anonymous.pull(REPO).run().await;
    assert!(
        matches!(unchosen, Err(Error::QuantNotChosen { offered, .. }) if offered == [("Q4_0".into(), 1), ("Q8_0".into(), 1)])
    );
    assert_eq!(anonymous.stats().unwrap().files, 0);
    // The right token opens everything; a renamed repo is found under its old name.
    let known = open(Some(GOOD_TOKEN));
    pull(&known, "org/gated").await.0.unwrap();
    pull(&known, "org/private").await.0.unwrap();
    pull(&known, "org/old").await.0.unwrap();
    assert_eq!(&known.get_file("org/old", "a.txt").unwrap().unwrap()[..], b"x");
}

#[tokio::test]
async fn what_is_pushed_between_the_listing_and_the_fetch_does_not_get_in() {
    let hub = hub(1, SIZE);
    let dir = tempfile::tempdir().unwrap();
    let cache = cache(dir.path(), &hub);
    let before = hub.commit(REPO, "main").unwrap();
    cache.scan_repo(REPO).await.unwrap();
    // The push happens as the first byte of the file is asked for.
    hub.faults().once(Target::path("model.gguf").hub(), Fault::Delay(Duration::from_millis(400)));
    let pulling = tokio::spawn({
        let cache = cache.clone();
        async move { cache.pull(REPO).all(true).run().await }
    });
    tokio::time::sleep(Duration::from_millis(150)).await;
    hub.push(REPO, "main", [File::new("model.gguf", Content::seeded(2, SIZE)), File::new("config.json", "{\"new\":1}")]);
    let report = pulling.await.unwrap().unwrap();
    assert_eq!(report.commit.as_str(), before);
    assert!(holds(&cache, REPO, "model.gguf", &content()));
    assert_eq!(&cache.get_file(REPO, "config.json").unwrap().unwrap()[..], b"{}");
}

#[tokio::test]
async fn a_new_revision_fetches_what_changed_and_the_old_one_is_read_until_it_is_here() {
    let hub = Hub::start(vec![
        Repo::new(REPO)
            .file("same.gguf", Content::seeded(1, SIZE))
            .file("new.gguf", Content::seeded(2, 12 * MIB))
            .file("readme.md", "one"),
    ]);
    let dir = tempfile::tempdir().unwrap();
    let cache = cache(dir.path(), &hub);
    let old = pull(&cache, REPO).await.0.unwrap().commit;
    hub.push(REPO, "main", [File::new("new.gguf", Content::seeded(3, 13 * MIB))]);
    hub.clear_log();
    // A scan alone moves nothing; nor does a pull that fails half way.
    cache.scan_repo(REPO).await.unwrap();
    assert!(holds(&cache, REPO, "new.gguf", &Content::seeded(2, 12 * MIB)));
    let fault = hub.faults().always(Target::path("new.gguf").cdn().skip(1), Fault::status(404));
    pull(&cache, REPO).await.0.unwrap_err();
    assert!(holds(&cache, REPO, "new.gguf", &Content::seeded(2, 12 * MIB)));
    hub.faults().remove(fault);
    hub.clear_log();
    let report = pull(&cache, REPO).await.0.unwrap();
    assert_ne!(report.commit, old);
    assert!(report.fetched_bytes <= 13 * MIB && hub.bytes_served() <= 13 * MIB, "{report:?}");
    assert!(holds(&cache, REPO, "new.gguf", &Content::seeded(3, 13 * MIB)));
    assert!(holds(&cache, REPO, "same.gguf", &Content::seeded(1, SIZE)));
    // The old commit is here under its own name.
    assert!(holds(&cache, &format!("{REPO}@{old}"), "new.gguf", &Content::seeded(2, 12 * MIB)));
    assert_sound(&cache);
}

#[tokio::test]
async fn pulling_one_file_of_a_new_revision_keeps_the_unchanged_others_readable() {
    let hub = hub(1, SIZE);
    let dir = tempfile::tempdir().unwrap();
    let cache = cache(dir.path(), &hub);
    pull(&cache, REPO).await.0.unwrap();
    hub.push(REPO, "main", [File::new("config.json", "{\"new\":1}")]);
    hub.clear_log();
    cache.download_file(REPO, "config.json", None).await.unwrap();
    assert_eq!(&cache.get_file(REPO, "config.json").unwrap().unwrap()[..], b"{\"new\":1}");
    assert!(holds(&cache, REPO, "model.gguf", &content()));
    assert_eq!(hub.bytes_served(), 9);
}

/// A refusal after which a connection may try again at once.
fn refusal() -> Fault {
    Fault::Status { code: 429, retry_after: Some(0), rate_limit: None }
}

#[tokio::test]
async fn a_pull_goes_on_by_the_connections_that_are_served_while_others_are_refused() {
    const SIZE: u64 = 20 * MIB;
    let hub = hub(1, SIZE);
    // The first request is served slowly; the other connection is refused, at once and again, until it has no try left.
    let refused = hub.faults().times(8, model().skip(1), refusal());
    hub.faults().times(1, model(), Fault::SlowBytesPerSecond(4 * MIB));
    let dir = tempfile::tempdir().unwrap();
    let cache = builder(dir.path(), &hub.endpoint()).connections(2).open().unwrap();
    let (result, events) = pull(&cache, REPO).await;
    let report = result.unwrap();
    assert_eq!(hub.faults().fired(refused), 8, "the connection was refused as often as it tries");
    assert_eq!(retries(&events).len(), 7);
    assert_eq!(report.fetched_bytes, SIZE + 2);
    assert!(holds(&cache, REPO, "model.gguf", &Content::seeded(1, SIZE)));
    assert_sound(&cache);
}

#[tokio::test]
async fn a_pull_whose_every_connection_is_refused_ends_with_an_error_and_keeps_what_landed() {
    const SIZE: u64 = 20 * MIB;
    let hub = hub(1, SIZE);
    hub.faults().always(model().skip(2), refusal());
    let dir = tempfile::tempdir().unwrap();
    let cache = builder(dir.path(), &hub.endpoint()).connections(2).open().unwrap();
    let (result, _) = pull(&cache, REPO).await;
    assert!(matches!(result, Err(Error::RateLimited { .. })), "{result:?}");
    assert_invisible(&cache, SIZE);
    hub.faults().clear();
    hub.clear_log();
    assert_eq!(pull(&cache, REPO).await.0.unwrap().fetched_bytes, SIZE - 2 * BLOCK);
    assert!(holds(&cache, REPO, "model.gguf", &Content::seeded(1, SIZE)));
}
