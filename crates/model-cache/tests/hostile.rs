//! Listings no honest Hub gives: each is refused with an error that names the thing, and nothing is written for it.

mod common;

use common::*;
use hub_fixture::{Content, Fault, Hub, Repo, Target};
use std::path::Path;
use tabagent_model_cache::*;

const GIT: &str = "3b18e512dba79e4c8300dd08aeb37f8e728b8dad";
const SHA: &str = "a948904f2f0f479b8f8197694b30184b0d2ed1c1cd2a1ec0fb85d299a192a447";

fn file(path: &str) -> String {
    format!(r#"{{"type":"file","path":{},"size":1,"oid":"{GIT}"}}"#, serde_json::to_string(path).unwrap())
}

fn listing(paths: &[&str]) -> String {
    format!("[{}]", paths.iter().map(|path| file(path)).collect::<Vec<_>>().join(","))
}

fn tree() -> Target {
    Target::path("/tree/").hub()
}

/// Every file below a folder, sorted.
fn files_below(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            found.extend(files_below(&entry.path()));
        } else {
            found.push(entry.path().display().to_string());
        }
    }
    found.sort();
    found
}

/// Pulls and scans with one fault set: both fail, and nothing but the empty store is there. Gives the pull's error.
async fn refused(target: Target, fault: Fault) -> Error {
    let hub = hub(1, 1000);
    let dir = tempfile::tempdir().unwrap();
    let cache = cache(&dir.path().join("store"), &hub);
    let before = files_below(dir.path());
    hub.faults().always(target, fault);
    assert!(cache.scan_repo(REPO).await.is_err());
    let (sink, events) = events();
    let error = cache.pull(REPO).all(true).on_event(Some(sink)).run().await.unwrap_err();
    assert_one_end(&events);
    assert!(cache.local_manifest(REPO).unwrap().is_none());
    assert!(cache.list().unwrap().is_empty());
    let stats = cache.stats().unwrap();
    assert_eq!((stats.files, stats.live_bytes, stats.filling_bytes, stats.doomed_bytes), (0, 0, 0, 0));
    assert_eq!(files_below(dir.path()), before, "nothing appears beside the store's own files");
    assert_eq!(hub.bytes_served(), 0);
    let text = error.to_string();
    assert!(!text.chars().any(char::is_control), "{text:?}");
    assert!(text.len() < 1000, "{text}");
    error
}

async fn refused_listing(body: String) -> String {
    match refused(tree(), Fault::json(200, body)).await {
        Error::BadAnswer { url, reason } => {
            assert!(url.contains("/api/models/org/model/tree/"), "{url}");
            reason
        }
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn paths_that_lead_out_of_a_folder_or_to_a_terminal_are_refused_by_name() {
    for path in [
        "../x",
        "a/../../x",
        "..",
        "/etc/passwd",
        "C:\\x",
        "c:x",
        "a\\..\\b",
        "a//b",
        "a/",
        "./a",
        "",
        "a\u{0}b",
        "a\nb",
        "\u{1b}[31mred",
        &"x".repeat(513),
        &format!("{}/x", "y".repeat(600)),
    ] {
        let reason = refused_listing(listing(&["config.json", path])).await;
        let named: String = path.chars().flat_map(char::escape_default).take(60).collect();
        let reason_plain: String = reason.chars().flat_map(char::escape_default).collect();
        let unescaped = |text: &str| text.replace('\\', "");
        assert!(unescaped(&reason_plain).contains(&unescaped(&named)), "{path:?}: {reason}");
    }
}

#[tokio::test]
async fn names_that_cannot_stand_side_by_side_are_refused_by_name() {
    for (paths, said) in [
        (["a.txt", "a.txt"], "twice"),
        (["Model.gguf", "model.GGUF"], "letter case"),
        (["a/B", "A/b"], "letter case"),
        (["a", "a/b"], "inside"),
    ] {
        let reason = refused_listing(listing(&paths)).await;
        assert!(reason.contains(said) && reason.contains(paths[1]), "{reason}");
    }
}

#[tokio::test]
async fn sizes_and_ids_that_cannot_be_are_refused_by_name() {
    let entry = |rest: &str| format!(r#"[{{"type":"file","path":"m.gguf",{rest}}}]"#);
    let lfs = |size: &str, lfs_size: &str| {
        entry(&format!(r#""size":{size},"oid":"{GIT}","lfs":{{"oid":"{SHA}","size":{lfs_size},"pointerSize":130}}"#))
    };
    for body in [
        entry(&format!(r#""size":-1,"oid":"{GIT}""#)),
        entry(&format!(r#""size":1.5,"oid":"{GIT}""#)),
        entry(&format!(r#""size":"1","oid":"{GIT}""#)),
        entry(&format!(r#""size":1152921504606846976,"oid":"{GIT}""#)),
        entry(&format!(r#""size":99999999999999999999999,"oid":"{GIT}""#)),
        entry(&format!(r#""size":1e400,"oid":"{GIT}""#)),
        entry(&format!(r#""oid":"{GIT}""#)),
        entry(r#""size":1,"oid":"xyz""#),
        entry(r#""size":1"#),
        lfs("100", "101"),
        lfs("100", "-100"),
        lfs("1152921504606846976", "1152921504606846976"),
        entry(&format!(r#""size":1,"oid":"{GIT}","lfs":{{"oid":"short","size":1}}"#)),
    ] {
        let reason = refused_listing(body.clone()).await;
        assert!(reason.contains("m.gguf") || reason.contains("JSON"), "{body}: {reason}");
    }
}

#[tokio::test]
async fn json_that_is_none_or_of_another_shape_is_refused() {
    let deep = "[".repeat(100_000);
    for body in ["", "{", "null", "{}", "7", "[[]]", "[null]", "<html>", "\u{fffd}", r#"[{"path":"a"}]"#, &deep] {
        let reason = refused_listing(body.to_owned()).await;
        assert!(reason.contains("JSON"), "{reason}");
    }
    for body in ["", "{", "[]", "{}", r#"{"sha":7}"#, r#"{"sha":"../../x"}"#, "<html>"] {
        let error = refused(Target::path("/api/models/org/model/revision").hub(), Fault::json(200, body.to_owned())).await;
        assert!(matches!(&error, Error::BadAnswer { .. }), "{body}: {error}");
    }
}

#[tokio::test]
async fn paging_without_an_end_is_cut_off() {
    for fresh in [true, false] {
        let begun = std::time::Instant::now();
        let error = refused(tree(), Fault::EndlessPaging { fresh }).await;
        assert!(matches!(&error, Error::BadAnswer { .. }), "fresh: {fresh}: {error}");
        println!("fresh: {fresh}: {error} after {:?}", begun.elapsed());
    }
}

#[tokio::test]
async fn a_file_larger_than_the_disk_is_refused_before_anything_is_reserved() {
    let hub = hub(1, 1000);
    let dir = tempfile::tempdir().unwrap();
    let cache = cache(dir.path(), &hub);
    let entry = |n: u64| {
        format!(
            r#"{{"type":"file","path":"{n}.gguf","size":{},"oid":"{GIT}","lfs":{{"oid":"{n:064x}","size":{}}}}}"#,
            1u64 << 43,
            1u64 << 43
        )
    };
    let body = format!("[{}]", (0..1000).map(entry).collect::<Vec<_>>().join(","));
    hub.faults().always(tree(), Fault::json(200, body));
    let error = cache.pull(REPO).all(true).run().await.unwrap_err();
    assert!(matches!(&error, Error::NoSpace { needed_bytes, .. } if *needed_bytes == 1000 << 43), "{error}");
    assert_eq!(cache.stats().unwrap().filling_bytes, 0);
    assert_eq!(hub.bytes_served(), 0);
}

#[tokio::test]
async fn one_digest_listed_with_two_sizes_gives_no_file_of_a_wrong_size() {
    let content = Content::seeded(1, 100_000);
    let (sha, git) = (content.sha256().unwrap(), content.git_blob_id().unwrap());
    let hub = Hub::start(vec![Repo::new(REPO).file("a.gguf", content.clone()).file("b.gguf", content.clone())]);
    for (one, other) in [(100_000, 100_001), (100_000, 1_000), (100_000, 10_000_000)] {
        let dir = tempfile::tempdir().unwrap();
        let cache = cache(dir.path(), &hub);
        let entry = |path: &str, size: u64| {
            format!(r#"{{"type":"file","path":"{path}","size":{size},"oid":"{git}","lfs":{{"oid":"{sha}","size":{size}}}}}"#)
        };
        hub.faults().clear();
        hub.faults().always(tree(), Fault::json(200, format!("[{},{}]", entry("a.gguf", one), entry("b.gguf", other))));
        let error = cache.pull(REPO).all(true).run().await.unwrap_err();
        assert!(matches!(error, Error::BadAnswer { .. } | Error::ContentChanged { .. }), "{error}");
        if cache.has_file(REPO, "a.gguf").unwrap() {
            assert!(holds(&cache, REPO, "a.gguf", &content));
        }
        assert!(!cache.has_file(REPO, "b.gguf").unwrap());
        assert_sound(&cache);
    }
}

#[tokio::test]
async fn the_longest_names_there_can_be_are_stored_and_read_like_any() {
    let repo = format!("{}/{}", "o".repeat(96), "n".repeat(96));
    // Each ':' takes three bytes in a key, and ü two in UTF-8.
    let (colons, wide) = (":".repeat(512), "ü".repeat(256));
    let (small, large) = (Content::seeded(1, 1000), Content::seeded(2, 12 * MIB));
    let long_branch = "b".repeat(255);
    let hub = Hub::start(vec![
        Repo::new(&repo)
            .file(&*colons, large.clone())
            .file(&*wide, small.clone())
            .branch(&long_branch, [(colons.as_str(), small.clone())]),
    ]);
    let dir = tempfile::tempdir().unwrap();
    let cache = cache(dir.path(), &hub);
    cache.pull(&repo).all(true).run().await.unwrap();
    let branch = format!("{repo}@{long_branch}");
    cache.pull(&branch).all(true).run().await.unwrap();
    assert!(holds(&cache, &repo, &colons, &large) && holds(&cache, &repo, &wide, &small));
    assert!(holds(&cache, &branch, &colons, &small));
    assert_sound(&cache);
    // Apart: what is read while its name gets other content has a longer home yet.
    let reading = cache.get_file(&repo, &colons).unwrap().unwrap();
    cache.delete_model(&repo).unwrap();
    cache.pull(&repo).all(true).run().await.unwrap();
    assert!(holds(&cache, &repo, &colons, &large) && reading.len() as u64 == 12 * MIB);
    drop(reading);
    cache.delete_model(&repo).unwrap();
    assert!(cache.list().unwrap().is_empty());
    assert!(cache.stats().unwrap().disk_bytes < 64 * MIB);
}
