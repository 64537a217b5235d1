//! Pulls from a Hub of our own: what arrives is what was served, whatever goes wrong on the way.

use hub_fixture::{Content, Fault, Hub, Repo, Target};
use std::sync::{Arc, Mutex};
use tabagent_model_cache::{BLOCK_BYTES, EventKind, ModelCache, QuantStatus};

const REPO: &str = "org/model";

fn hub(gguf_bytes: u64) -> Hub {
    Hub::start(vec![
        Repo::new(REPO)
            .file("config.json", "{}")
            .file("README.md", "# hello")
            .file("empty.txt", "")
            .file("model-Q4_K_M.gguf", Content::seeded(1, gguf_bytes))
            .file("model-Q8_0.gguf", Content::seeded(2, 1 << 20)),
    ])
}

fn cache(dir: &tempfile::TempDir, hub: &Hub) -> ModelCache {
    ModelCache::builder(dir.path()).endpoint(hub.endpoint()).open().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pulled_quant_reads_back_as_the_slice_that_was_served() {
    let size = 230 << 20;
    let hub = hub(size);
    let dir = tempfile::tempdir().unwrap();
    let cache = cache(&dir, &hub);
    let manifest = cache.scan_repo(REPO).await.unwrap();
    assert_eq!(manifest.quants.keys().collect::<Vec<_>>(), ["Q4_K_M", "Q8_0"]);
    assert_eq!(manifest.quants["Q4_K_M"].status, QuantStatus::Available);
    let calls = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&calls);
    let report = cache
        .download_quant(REPO, "q4_k_m", Some(Arc::new(move |loaded, total| seen.lock().unwrap().push((loaded, total)))))
        .await
        .unwrap();
    assert_eq!(report.fetched_bytes, report.total_bytes);
    assert_eq!(*calls.lock().unwrap().last().unwrap(), (report.total_bytes, report.total_bytes));
    let file = cache.get_file(REPO, "model-Q4_K_M.gguf").unwrap().unwrap();
    assert_eq!(file.len() as u64, size);
    assert!(*file == *Content::seeded(1, size).read(0..size).unwrap());
    let manifest = cache.get_manifest(REPO).await.unwrap();
    assert_eq!(manifest.quants["Q4_K_M"].status, QuantStatus::Downloaded);
    assert_eq!(manifest.quants["Q8_0"].status, QuantStatus::Available);
    // A second pull fetches nothing.
    hub.clear_log();
    let report = cache.download_quant(REPO, "Q4_K_M", None).await.unwrap();
    assert_eq!((report.fetched_bytes, hub.bytes_served()), (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_breaks_off_is_fetched_on_from_the_block_it_broke_in() {
    let size = 60 << 20;
    let hub = hub(size);
    hub.faults().times(3, Target::path("Q4_K_M").cdn(), Fault::CutBody { after_bytes: 3 << 20 });
    let dir = tempfile::tempdir().unwrap();
    let cache = cache(&dir, &hub);
    let events = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&events);
    let sink: tabagent_model_cache::EventSink = Arc::new(move |event| seen.lock().unwrap().push(event.kind.clone()));
    cache.pull(REPO).quant("Q4_K_M").on_event(Some(sink)).run().await.unwrap();
    let events = events.lock().unwrap();
    assert!(events.iter().any(|event| matches!(event, EventKind::Retry { .. })), "{events:?}");
    assert!(matches!(events.last(), Some(EventKind::Done { .. })));
    assert!(*cache.get_file(REPO, "model-Q4_K_M.gguf").unwrap().unwrap() == *Content::seeded(1, size).read(0..size).unwrap());
    assert!(hub.bytes_served() < size + 4 * BLOCK_BYTES, "{}", hub.bytes_served());
}
