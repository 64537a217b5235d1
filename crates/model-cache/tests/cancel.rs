//! A pull cancelled at random moments, by its token or by dropping its future: the store is whole, what landed is kept, and the
//! end is told once.

mod common;

use common::*;
use hub_fixture::{Content, Fault, Hub, Target};
use std::time::Duration;
use tabagent_model_cache::*;
use tokio_util::sync::CancellationToken;

const SIZE: u64 = 160 * MIB;
const MOMENTS: u64 = 24;

#[test]
fn child() {
    obey();
}

/// Cancels pulls at random moments, then lets one finish; holds what was served against what may have been lost.
async fn cancel_again_and_again(seed: u64) {
    let hub = hub(1, SIZE);
    // The whole file takes more than a second.
    let slow = hub.faults().always(Target::path("model.gguf").cdn(), Fault::SlowBytesPerSecond(24 * MIB));
    let dir = tempfile::tempdir().unwrap();
    let cache = cache(dir.path(), &hub);
    let mut numbers = Numbers(seed);
    let mut told_in_vain = 0;
    for moment in 0..MOMENTS {
        let (sink, events) = events();
        let pull = cache.pull(REPO).all(true).on_event(Some(sink));
        let wait = Duration::from_micros(numbers.within(if moment % 3 == 0 { 0..20_000 } else { 0..250_000 }));
        if moment % 2 == 0 {
            let token = CancellationToken::new();
            let (result, ()) = tokio::join!(pull.cancel_token(token.clone()).run(), async {
                tokio::time::sleep(wait).await;
                token.cancel();
            });
            assert!(matches!(result, Err(Error::Cancelled)), "{result:?}");
        } else if tokio::time::timeout(wait, pull.run()).await.is_ok() {
            panic!("a pull that takes a second was done in {wait:?}");
        }
        // A future that was dropped before it was polled has told nothing; every other has told its end.
        if !events.lock().unwrap().is_empty() {
            assert_one_end(&events);
            assert!(matches!(events.lock().unwrap().last(), Some(EventKind::Cancelled { .. })));
        } else {
            told_in_vain += 1;
        }
        assert!(!cache.has_file(REPO, "model.gguf").unwrap());
        // At once, while the last writes of the dropped pull may be under way.
        let second = common::cache(dir.path(), &hub);
        second.stats().unwrap();
        if moment % 8 == 0 {
            let opener = start(&["open", dir.path().to_str().unwrap()]);
            opener.hear("OK");
        }
    }
    assert!(told_in_vain <= 2);
    // However busy the machine is: one is cancelled as soon as a block has landed.
    let token = CancellationToken::new();
    let pull = cache.pull(REPO).all(true).cancel_token(token.clone());
    let landed = || cache.files(REPO).unwrap().iter().flat_map(|commit| &commit.files).any(|file| file.landed_bytes > 0);
    let (result, ()) = tokio::join!(pull.run(), async {
        while !landed() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        token.cancel();
    });
    assert!(matches!(result, Err(Error::Cancelled)), "{result:?}");
    hub.faults().remove(slow);
    let (sink, events) = events();
    let report = cache.pull(REPO).all(true).on_event(Some(sink)).run().await.unwrap();
    assert_one_end(&events);
    assert!(report.fetched_bytes < SIZE, "nothing was kept of {MOMENTS} pulls");
    let most = SIZE + (MOMENTS + 1) * CONNECTIONS as u64 * BLOCK;
    assert!(hub.bytes_served() <= most, "{} > {most}", hub.bytes_served());
    println!("{} of {most} bytes served", hub.bytes_served());
    assert!(holds(&cache, REPO, "model.gguf", &Content::seeded(1, SIZE)));
    assert_sound(&cache);
    let garbage = cache.gc().unwrap();
    assert_eq!((garbage.freed_bytes, garbage.busy_bytes), (0, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_pull_cancelled_at_any_moment_is_continued_on_many_threads() {
    cancel_again_and_again(1).await;
}

#[tokio::test(flavor = "current_thread")]
async fn a_pull_cancelled_at_any_moment_is_continued_on_one_thread() {
    cancel_again_and_again(2).await;
}

#[test]
fn a_runtime_that_is_shut_down_in_the_middle_of_a_pull_leaves_the_store_whole() {
    let hub = hub(1, SIZE);
    hub.faults().always(Target::path("model.gguf").cdn(), Fault::SlowBytesPerSecond(24 * MIB));
    let dir = tempfile::tempdir().unwrap();
    let cache = cache(dir.path(), &hub);
    for shutdown in 0..4 {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let (sink, events) = events();
        let pull = cache.pull(REPO).all(true).on_event(Some(sink));
        runtime.spawn(pull.run());
        std::thread::sleep(Duration::from_millis(150));
        if shutdown % 2 == 0 {
            drop(runtime)
        } else {
            runtime.shutdown_background()
        }
        until("the end is told", || events.lock().unwrap().last().is_some_and(is_final));
        assert_one_end(&events);
    }
    hub.faults().clear();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(cache.pull(REPO).all(true).run()).unwrap();
    assert!(holds(&cache, REPO, "model.gguf", &Content::seeded(1, SIZE)));
    assert_sound(&cache);
}

#[tokio::test]
async fn a_pull_that_was_cancelled_by_its_token_has_nobody_at_work_any_more() {
    let hub = hub(1, SIZE);
    let dir = tempfile::tempdir().unwrap();
    let cache = cache(dir.path(), &hub);
    let mut freed_bytes = 0;
    for round in 0..12 {
        let token = CancellationToken::new();
        let (result, ()) = tokio::join!(cache.pull(REPO).all(true).cancel_token(token.clone()).run(), async {
            tokio::time::sleep(Duration::from_millis(20 + 5 * round)).await;
            token.cancel();
        });
        assert!(matches!(result, Err(Error::Cancelled)), "{result:?}");
        // Not by asking again and again: whoever writes or hashes would keep its space.
        let freed = cache.gc().unwrap();
        assert_eq!((freed.filling_bytes, cache.stats().unwrap().filling_bytes), (0, 0), "round {round}");
        freed_bytes += freed.freed_bytes;
    }
    assert!(freed_bytes > 0, "every pull was cancelled before it began");
}

#[tokio::test]
async fn a_token_cancelled_beforehand_fetches_nothing() {
    let hub: Hub = hub(1, SIZE);
    let dir = tempfile::tempdir().unwrap();
    let cache = cache(dir.path(), &hub);
    let token = CancellationToken::new();
    token.cancel();
    let (sink, events) = events();
    let result = cache.pull(REPO).all(true).on_event(Some(sink)).cancel_token(token).run().await;
    assert!(matches!(result, Err(Error::Cancelled)));
    assert_one_end(&events);
    assert!(hub.requests().is_empty());
}

#[tokio::test]
async fn progress_never_goes_back_and_ends_with_the_total_once() {
    let hub = hub(1, SIZE);
    hub.faults().times(4, Target::path("model.gguf").cdn(), Fault::CutBody { after_bytes: 4 * MIB });
    hub.faults().always(Target::path("model.gguf").cdn(), Fault::SlowBytesPerSecond(48 * MIB));
    let dir = tempfile::tempdir().unwrap();
    let cache = cache(dir.path(), &hub);
    let calls = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let seen = calls.clone();
    cache
        .download_quant(
            REPO,
            "default",
            Some(std::sync::Arc::new(move |loaded, total| seen.lock().unwrap().push((loaded, total)))),
        )
        .await
        .unwrap();
    let calls = calls.lock().unwrap();
    assert!(calls.is_sorted() && calls.iter().all(|(_, total)| *total == SIZE + 2), "{calls:?}");
    assert_eq!(calls.last(), Some(&(SIZE + 2, SIZE + 2)));
    assert_eq!(calls.iter().filter(|(loaded, _)| *loaded == SIZE + 2).count(), 1);
}

#[test]
fn every_future_of_the_cache_can_be_spawned() {
    fn send<T: Send>(_: T) {}
    let dir = tempfile::tempdir().unwrap();
    let cache = local(dir.path());
    send(cache.pull(REPO).run());
    send(cache.scan_repo(REPO));
    send(cache.get_manifest(REPO));
    send(cache.download_quant(REPO, "x", None));
    send(cache.download_file(REPO, "x", None));
}
