//! What a manifest says of a quant, through its whole life, seen from this process and from another.

mod common;

use common::*;
use hub_fixture::{Content, Fault, Hub, Repo, Target};
use std::time::Duration;
use tabagent_model_cache::*;

#[test]
fn child() {
    obey();
}

const SIZE: u64 = 60 * MIB;

fn hub() -> Hub {
    Hub::start(vec![
        Repo::new(REPO)
            .file("model-Q4_K_M.gguf", Content::seeded(1, SIZE))
            .file("model-Q8_0.gguf", Content::seeded(2, 6 * MIB))
            .file("config.json", "{}"),
    ])
}

fn status(cache: &ModelCache, quant: &str) -> QuantStatus {
    cache.local_manifest(REPO).unwrap().unwrap().quants[quant].status
}

/// The status as another process sees it.
fn elsewhere(dir: &tempfile::TempDir, quant: &str) -> String {
    start(&["status", dir.path().to_str().unwrap(), REPO, quant]).hear("OK")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quant_goes_from_available_over_downloading_and_partial_to_downloaded() {
    let hub = hub();
    let dir = tempfile::tempdir().unwrap();
    let cache = cache(dir.path(), &hub);
    assert!(cache.local_manifest(REPO).unwrap().is_none());
    let manifest = cache.scan_repo(REPO).await.unwrap();
    assert_eq!(manifest.quants["Q4_K_M"].status, QuantStatus::Available);
    assert_eq!(manifest.quants["Q4_K_M"].total_bytes, SIZE + 2);
    assert_eq!((status(&cache, "Q4_K_M"), &*elsewhere(&dir, "Q4_K_M")), (QuantStatus::Available, "available"));
    let slow = hub.faults().always(Target::path("Q4_K_M").cdn(), Fault::SlowBytesPerSecond(16 * MIB));
    let pulling = tokio::spawn({
        let cache = cache.clone();
        async move { cache.download_quant(REPO, "q4_k_m", None).await }
    });
    until("blocks have landed", || cache.local_manifest(REPO).unwrap().unwrap().quants["Q4_K_M"].downloaded_bytes >= 2 * BLOCK);
    assert_eq!((status(&cache, "Q4_K_M"), &*elsewhere(&dir, "Q4_K_M")), (QuantStatus::Downloading, "downloading"));
    assert_eq!(elsewhere(&dir, "Q8_0"), "available");
    pulling.abort();
    assert!(pulling.await.unwrap_err().is_cancelled());
    assert_eq!((status(&cache, "Q4_K_M"), &*elsewhere(&dir, "Q4_K_M")), (QuantStatus::Partial, "partial"));
    let files = cache.files(REPO).unwrap();
    let begun = files[0].files.iter().find(|file| file.path.as_str() == "model-Q4_K_M.gguf").unwrap();
    assert_eq!(begun.state, FileState::Filling);
    assert!(begun.landed_bytes >= 2 * BLOCK && begun.landed_bytes < SIZE, "{begun:?}");
    hub.faults().remove(slow);
    cache.download_quant(REPO, "Q4_K_M", None).await.unwrap();
    assert_eq!((status(&cache, "Q4_K_M"), &*elsewhere(&dir, "Q4_K_M")), (QuantStatus::Downloaded, "downloaded"));
    let quant = &cache.get_manifest(REPO).await.unwrap().quants["Q4_K_M"];
    assert_eq!((quant.downloaded_bytes, quant.last_error.clone()), (SIZE + 2, None));
    assert_eq!(status(&cache, "Q8_0"), QuantStatus::Available);
    assert_eq!(cache.list().unwrap()[0].quants, ["Q4_K_M"]);
    cache.delete_files(REPO, &[], &["q4_k_m".to_owned()]).unwrap();
    assert_eq!(status(&cache, "Q4_K_M"), QuantStatus::Available);
    assert!(cache.has_file(REPO, "config.json").unwrap(), "shared files stay for the other quant");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_can_not_be_opened_is_told_with_how_far_it_is_and_what_brings_it() {
    const PATH: &str = "model-Q4_K_M.gguf";
    let hub = hub();
    let dir = tempfile::tempdir().unwrap();
    let cache = cache(dir.path(), &hub);
    let told = |repo: &str, path: &str| {
        let error = cache.open_file(repo, path).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);
        (error.to_string(), error.hint().unwrap())
    };
    let pull = format!("model-cache pull {REPO} --file {PATH}");
    assert_eq!(told(REPO, PATH).0, format!("nothing of {REPO} is in the store"));
    cache.scan_repo(REPO).await.unwrap();
    assert_eq!(told(REPO, PATH), (format!("{PATH} of {REPO} is not in the store"), pull.clone()));
    let slow = hub.faults().always(Target::path("Q4_K_M").cdn(), Fault::SlowBytesPerSecond(16 * MIB));
    let pulling = tokio::spawn({
        let cache = cache.clone();
        async move { cache.download_file(REPO, PATH, None).await }
    });
    until("blocks have landed", || cache.local_manifest(REPO).unwrap().unwrap().quants["Q4_K_M"].downloaded_bytes >= 2 * BLOCK);
    pulling.abort();
    assert!(pulling.await.unwrap_err().is_cancelled());
    // A write under way may land still.
    let percent = || cache.files(REPO).unwrap()[0].files[0].landed_bytes * 100 / SIZE;
    let (before, (text, hint), after) = (percent(), told(REPO, PATH), percent());
    let said = |percent| format!("{PATH} of {REPO} is not complete: {percent} % of it is here");
    assert!(before > 0 && (before..=after).any(|percent| text == said(percent)), "{before} to {after}: {text}");
    assert_eq!(hint, pull);
    hub.faults().remove(slow);
    cache.download_file(REPO, PATH, None).await.unwrap();
    assert_eq!(cache.open_file(REPO, PATH).unwrap().size_bytes(), SIZE);
    let (text, hint) = told(REPO, "it's not/there");
    assert_eq!(text, format!("it's not/there of {REPO} is not in the store"));
    assert_eq!(hint, format!("model-cache ls {REPO}"));
}

#[test]
fn a_quant_whose_puller_was_killed_is_partial_and_no_longer_downloading() {
    let hub = hub();
    hub.faults().always(Target::path("Q4_K_M").cdn(), Fault::SlowBytesPerSecond(16 * MIB));
    let dir = tempfile::tempdir().unwrap();
    let mut puller = start(&["pull", dir.path().to_str().unwrap(), &hub.endpoint(), REPO]);
    puller.hear("PROGRESS");
    let cache = local(dir.path());
    until("blocks have landed", || cache.local_manifest(REPO).unwrap().unwrap().quants["Q4_K_M"].downloaded_bytes >= 2 * BLOCK);
    assert_eq!(status(&cache, "Q4_K_M"), QuantStatus::Downloading);
    puller.kill();
    assert_eq!(status(&cache, "Q4_K_M"), QuantStatus::Partial);
    let removed = cache.gc().unwrap();
    assert!(removed.freed_bytes > 0);
    assert_eq!(status(&cache, "Q4_K_M"), QuantStatus::Available);
}

#[tokio::test]
async fn a_quant_that_failed_says_why_until_a_pull_of_it_succeeds() {
    let hub = hub();
    let dir = tempfile::tempdir().unwrap();
    let cache = cache(dir.path(), &hub);
    let corrupt = hub.faults().always(Target::path("Q8_0").cdn(), Fault::CorruptBytes { offset: 5, len: 1 });
    cache.download_quant(REPO, "Q8_0", None).await.unwrap_err();
    assert_eq!(elsewhere(&dir, "Q8_0"), "failed");
    let quant = cache.local_manifest(REPO).unwrap().unwrap().quants.remove("Q8_0").unwrap();
    assert!(quant.last_error.as_deref().is_some_and(|error| error.contains("not what was promised")), "{quant:?}");
    assert_eq!(status(&cache, "Q4_K_M"), QuantStatus::Available);
    // Cancelling is no failure, and does not forget one.
    let slow = hub.faults().always(Target::path("Q8_0").cdn(), Fault::SlowBytesPerSecond(MIB));
    let pull = tokio::time::timeout(Duration::from_millis(300), cache.download_quant(REPO, "Q8_0", None)).await;
    assert!(pull.is_err());
    hub.faults().remove(slow);
    hub.faults().remove(corrupt);
    cache.download_quant(REPO, "Q8_0", None).await.unwrap();
    let quant = cache.local_manifest(REPO).unwrap().unwrap().quants.remove("Q8_0").unwrap();
    assert_eq!((quant.status, quant.last_error), (QuantStatus::Downloaded, None));
    // Offline, everything that is here is known.
    let offline = local(dir.path());
    assert_eq!(offline.scan_repo(REPO).await.unwrap().quants["Q8_0"].status, QuantStatus::Downloaded);
    offline.download_quant(REPO, "Q8_0", None).await.unwrap();
    let error = offline.download_quant(REPO, "Q4_K_M", None).await.unwrap_err();
    assert!(matches!(error, Error::Offline { .. }), "{error}");
    assert!(matches!(offline.scan_repo("org/unseen").await, Err(Error::Offline { .. })));
}
