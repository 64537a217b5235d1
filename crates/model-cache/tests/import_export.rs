//! Local files in and out: what comes out is what went in, and nothing is overwritten or half written.

mod common;

use common::*;
use hub_fixture::Content;
use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};
use tabagent_model_cache::*;
use tokio_util::sync::CancellationToken;

fn write(path: &Path, seed: u64, size: u64) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, Content::seeded(seed, size).read(0..size).unwrap()).unwrap();
}

fn all_paths(cache: &ModelCache) -> Vec<String> {
    cache.files("org/local").unwrap()[0].files.iter().map(|file| file.path.to_string()).collect()
}

#[test]
fn a_folder_comes_out_as_it_went_in_and_its_digests_are_those_of_sha256sum() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("in");
    let files = [
        ("config.json", 17),
        ("empty", 0),
        ("onnx/model.onnx", 9 * MIB),
        ("onnx/model.onnx_data", 120 * MIB + 3),
        ("ünïcödé/模型 ☃.bin", 70_000),
        ("aa:b%3A c#?.txt", 100),
        ("limit", 64 << 10),
    ];
    for (seed, (path, size)) in files.iter().enumerate() {
        write(&folder.join(path), seed as u64, *size);
    }
    write(&dir.path().join("elsewhere.bin"), 50, 80_000);
    symlink(dir.path().join("elsewhere.bin"), folder.join("linked.bin")).unwrap();
    symlink(dir.path(), folder.join("linked-folder")).unwrap();
    write(&folder.join(".git/config"), 60, 10);
    write(&folder.join("sub/.cache/x"), 61, 10);
    let cache = local(&dir.path().join("store"));
    let calls = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&calls);
    let progress: ProgressCallback = Arc::new(move |done, total| seen.lock().unwrap().push((done, total)));
    let options = ImportOptions { progress: Some(progress), ..ImportOptions::default() };
    let report = cache.import("org/local", std::slice::from_ref(&folder), &options).unwrap();
    let total = files.iter().map(|(_, size)| size).sum::<u64>() + 80_000;
    assert_eq!((report.files, report.bytes, report.here_bytes), (8, total, 0));
    let calls = calls.lock().unwrap();
    assert!(calls.is_sorted() && calls.last() == Some(&(total, total)), "{calls:?}");
    let mut expected: Vec<_> = files.iter().map(|(path, _)| (*path).to_owned()).chain(["linked.bin".to_owned()]).collect();
    expected.sort();
    assert_eq!(all_paths(&cache), expected);
    assert!(cache.is_imported("org/local").unwrap());
    for file in &cache.files("org/local").unwrap()[0].files {
        assert_eq!(file.digest, sha256sum(&folder.join(file.path.as_str())), "{}", file.path);
        let open = cache.get_file("org/local", file.path.as_str()).unwrap().unwrap();
        assert_eq!(open.digest(), file.digest);
    }
    let to = dir.path().join("out");
    let calls = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&calls);
    let progress: ProgressCallback = Arc::new(move |done, total| seen.lock().unwrap().push((done, total)));
    let options = ExportOptions { progress: Some(progress), ..ExportOptions::default() };
    let exported = cache.export("org/local", &[], &to, &options).unwrap();
    assert_eq!((exported.files, exported.bytes, exported.paths.len()), (8, total, 8));
    let calls = calls.lock().unwrap();
    assert!(calls.is_sorted() && calls.len() > 8 && calls.last() == Some(&(total, total)), "{calls:?}");
    for path in &expected {
        assert!(fs::read(to.join(path)).unwrap() == fs::read(folder.join(path)).unwrap(), "{path}");
    }
    // By glob, and a second time by content that is here.
    let exported =
        cache.export("org/local", &["onnx/*".to_owned()], &dir.path().join("some"), &ExportOptions::default()).unwrap();
    assert_eq!(exported.files, 2);
    let report = cache.import("org/again", &[to], &ImportOptions::default()).unwrap();
    assert_eq!((report.files, report.here_bytes), (8, total));
    assert_eq!(cache.stats().unwrap().live_bytes, total);
    assert_sound(&cache);
}

#[test]
fn an_export_replaces_nothing_unless_told_to_and_writes_nothing_then() {
    let dir = tempfile::tempdir().unwrap();
    for (seed, name) in ["a.bin", "b.bin", "c/d.bin"].iter().enumerate() {
        write(&dir.path().join("in").join(name), seed as u64, 100_000);
    }
    let cache = local(&dir.path().join("store"));
    cache.import("org/local", &[dir.path().join("in")], &ImportOptions::default()).unwrap();
    let to = dir.path().join("out");
    write(&to.join("b.bin"), 9, 5);
    let error = cache.export("org/local", &[], &to, &ExportOptions::default()).unwrap_err();
    assert!(matches!(&error, Error::TargetExists { path } if *path == to.join("b.bin")), "{error}");
    assert_eq!(fs::read_dir(&to).unwrap().count(), 1);
    // Not through a link either.
    fs::remove_file(to.join("b.bin")).unwrap();
    symlink(dir.path().join("victim"), to.join("b.bin")).unwrap();
    assert!(matches!(cache.export("org/local", &[], &to, &ExportOptions::default()), Err(Error::TargetExists { .. })));
    let force = ExportOptions { force: true, ..ExportOptions::default() };
    assert_eq!(cache.export("org/local", &[], &to, &force).unwrap().files, 3);
    assert!(!dir.path().join("victim").exists());
    for name in ["a.bin", "b.bin", "c/d.bin"] {
        assert!(fs::read(to.join(name)).unwrap() == fs::read(dir.path().join("in").join(name)).unwrap());
        assert!(!fs::symlink_metadata(to.join(name)).unwrap().is_symlink());
    }
    assert!(matches!(cache.export("org/local", &["*.gguf".to_owned()], &to, &force), Err(Error::FileNotFound { .. })));
    assert!(matches!(cache.export("org/none", &[], &to, &force), Err(Error::NotInStore { .. })));
    let token = CancellationToken::new();
    token.cancel();
    let cancelled = ExportOptions { force: true, cancel: Some(token), ..ExportOptions::default() };
    let elsewhere = dir.path().join("elsewhere");
    assert!(matches!(cache.export("org/local", &[], &elsewhere, &cancelled), Err(Error::Cancelled)));
    assert!(!elsewhere.exists());
    // Where a file stands in the place of a folder.
    let blocked = dir.path().join("blocked");
    write(&blocked.join("c"), 1, 10);
    let error = cache.export("org/local", &[], &blocked, &ExportOptions::default()).unwrap_err();
    assert!(error.to_string().contains("blocked/c") && matches!(error.kind(), ErrorKind::Other), "{error:?}");
}

#[test]
fn nothing_is_exported_into_the_store_itself_whatever_the_files_are_called() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("in");
    for name in ["model_cache_chunks/mdbx.dat", "leases"] {
        write(&source.join(name), 1, 100_000);
    }
    let store = dir.path().join("store");
    let cache = local(&store);
    cache.import("org/local", &[source], &ImportOptions::default()).unwrap();
    let force = ExportOptions { force: true, ..ExportOptions::default() };
    let (link, out) = (dir.path().join("link"), dir.path().join("out"));
    symlink(&store, &link).unwrap();
    fs::create_dir(&out).unwrap();
    symlink(store.join("model_cache_chunks"), out.join("model_cache_chunks")).unwrap();
    let around = dir.path().join("not/there/../../store/new");
    for to in [store.clone(), store.join("new/folder"), link.clone(), store.join("../store"), out.clone(), around] {
        let error = cache.export("org/local", &[], &to, &force).unwrap_err();
        assert!(matches!(&error, Error::InvalidOption { name: "to", .. }), "{}: {error}", to.display());
    }
    assert!(!store.join("new").exists() && fs::read_dir(&out).unwrap().count() == 1);
    assert_sound(&cache);
    assert_eq!(cache.export("org/local", &["leases".to_owned()], &out, &force).unwrap().files, 1);
}

#[test]
fn what_cannot_be_imported_is_refused_by_name_and_nothing_is_stored() {
    let dir = tempfile::tempdir().unwrap();
    let cache = local(&dir.path().join("store"));
    let good = dir.path().join("good.bin");
    write(&good, 1, 100_000);
    let import = |repo: &str, paths: &[PathBuf]| cache.import(repo, paths, &ImportOptions::default()).unwrap_err();
    let missing = dir.path().join("missing.bin");
    assert!(matches!(import("org/local", &[good.clone(), missing.clone()]), Error::Io { path, .. } if path == missing));
    let dangling = dir.path().join("folder/dangling");
    fs::create_dir(dangling.parent().unwrap()).unwrap();
    symlink("nowhere", &dangling).unwrap();
    let error = import("org/local", &[good.clone(), dir.path().join("folder")]);
    assert!(matches!(&error, Error::Io { action: "follow the link", path, .. } if *path == dangling), "{error:?}");
    let device = PathBuf::from("/dev/null");
    let error = import("org/local", &[device]);
    assert!(error.to_string().contains("/dev/null"), "{error}");
    let backslash = dir.path().join("a\\b");
    write(&backslash, 1, 10);
    assert!(matches!(import("org/local", &[backslash]), Error::InvalidPath { .. }));
    let not_text = dir.path().join(<std::ffi::OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(b"a\xff"));
    write(&not_text, 1, 10);
    assert!(matches!(import("org/local", &[not_text]), Error::InvalidPath { .. }));
    let twin = dir.path().join("twin/good.bin");
    write(&twin, 2, 10);
    assert!(matches!(import("org/local", &[good.clone(), twin]), Error::InvalidPath { path, .. } if path == "good.bin"));
    assert!(matches!(import("org/local@main", std::slice::from_ref(&good)), Error::InvalidRepo { .. }));
    assert!(matches!(import("local", std::slice::from_ref(&good)), Error::InvalidRepo { .. }));
    fs::create_dir(dir.path().join("empty")).unwrap();
    assert!(matches!(import("org/local", &[dir.path().join("empty")]), Error::InvalidOption { .. }));
    let stats = cache.stats().unwrap();
    assert_eq!((stats.files, stats.live_bytes, stats.filling_bytes), (0, 0, 0));
}

#[test]
fn a_file_that_changes_while_it_is_read_is_not_imported() {
    let dir = tempfile::tempdir().unwrap();
    let cache = local(&dir.path().join("store"));
    let source = dir.path().join("model.bin");
    for grows in [true, false] {
        write(&source, 1, 30 * MIB);
        let changed = source.clone();
        let progress: ProgressCallback = Arc::new(move |done, _| {
            if done == 10 * MIB {
                let file = fs::File::options().write(true).open(&changed).unwrap();
                file.set_len(if grows { 31 * MIB } else { 20 * MIB }).unwrap();
            }
        });
        let options = ImportOptions { progress: Some(progress), ..ImportOptions::default() };
        let error = cache.import("org/local", std::slice::from_ref(&source), &options).unwrap_err();
        assert!(error.to_string().contains("model.bin"), "{error}");
        assert!(matches!(error, Error::SourceChanged { .. } | Error::Io { .. }), "{error:?}");
        assert!(!cache.has_file("org/local", "model.bin").unwrap());
        let stats = cache.stats().unwrap();
        assert!(stats.filling_bytes == 0 && stats.disk_bytes < 64 * MIB, "{stats:?}");
    }
    // Cancelled half way it leaves nothing either.
    write(&source, 1, 30 * MIB);
    let token = CancellationToken::new();
    let cancel = token.clone();
    let progress: ProgressCallback = Arc::new(move |done, _| {
        if done >= 15 * MIB {
            cancel.cancel();
        }
    });
    let options = ImportOptions { progress: Some(progress), cancel: Some(token) };
    assert!(matches!(cache.import("org/local", &[source], &options), Err(Error::Cancelled)));
    assert_eq!(cache.stats().unwrap().filling_bytes, 0);
    assert!(cache.list().unwrap().is_empty());
}

#[tokio::test]
async fn a_pulled_repo_is_exported_at_the_commit_it_was_pulled_at() {
    let hub = hub(1, 12 * MIB);
    let dir = tempfile::tempdir().unwrap();
    let cache = cache(&dir.path().join("store"), &hub);
    cache.pull(REPO).all(true).run().await.unwrap();
    hub.push(REPO, "main", [hub_fixture::File::new("config.json", "{\"new\":1}")]);
    cache.scan_repo(REPO).await.unwrap();
    let to = dir.path().join("out");
    assert_eq!(cache.export(REPO, &[], &to, &ExportOptions::default()).unwrap().files, 2);
    assert_eq!(fs::read(to.join("config.json")).unwrap(), b"{}");
    assert_eq!(sha256sum(&to.join("model.gguf")), format!("sha256:{}", Content::seeded(1, 12 * MIB).sha256().unwrap()));
}

#[tokio::test]
async fn what_was_pulled_in_part_can_be_imported_whole() {
    let content = Content::seeded(1, 30 * MIB);
    let hub = hub(1, 30 * MIB);
    hub.faults().always(hub_fixture::Target::path("model.gguf").cdn().skip(2), hub_fixture::Fault::status(404));
    let dir = tempfile::tempdir().unwrap();
    let cache = cache(&dir.path().join("store"), &hub);
    cache.pull(REPO).all(true).run().await.unwrap_err();
    assert_eq!(cache.stats().unwrap().filling_bytes, 30 * MIB);
    write(&dir.path().join("model.gguf"), 1, 30 * MIB);
    cache.import("org/local", &[dir.path().join("model.gguf")], &ImportOptions::default()).unwrap();
    assert!(holds(&cache, "org/local", "model.gguf", &content));
    assert_eq!(cache.stats().unwrap().filling_bytes, 0);
    // And the pull has nothing to fetch any more.
    hub.clear_log();
    cache.pull(REPO).all(true).run().await.unwrap();
    assert!(hub.bytes_served() <= 2);
    assert!(holds(&cache, REPO, "model.gguf", &content));
    assert_sound(&cache);
}

#[test]
fn imports_of_the_same_content_at_once_all_end_with_a_name_for_it() {
    let dir = tempfile::tempdir().unwrap();
    let cache = local(&dir.path().join("store"));
    let source = dir.path().join("model.bin");
    write(&source, 7, 24 * MIB);
    std::thread::scope(|scope| {
        for name in ["org/a", "org/b", "org/c", "org/d"] {
            let (cache, source) = (&cache, &source);
            scope.spawn(move || cache.import(name, std::slice::from_ref(source), &ImportOptions::default()).unwrap());
        }
    });
    for name in ["org/a", "org/b", "org/c", "org/d"] {
        assert!(holds(&cache, name, "model.bin", &Content::seeded(7, 24 * MIB)), "{name}");
    }
    assert_eq!(cache.stats().unwrap().live_bytes, 24 * MIB);
    assert_sound(&cache);
}

#[test]
fn an_import_of_a_folder_that_holds_the_store_leaves_the_store_out_also_behind_a_link() {
    let dir = tempfile::tempdir().unwrap();
    let real = dir.path().join("real");
    write(&real.join("config.json"), 1, 10);
    symlink(&real, dir.path().join("link")).unwrap();
    let cache = local(&dir.path().join("link/store"));
    let chunks = real.join("store/model_cache_chunks");
    let import = |path: &Path| cache.import("org/local", &[path.to_owned()], &ImportOptions::default());
    let report = import(&real).unwrap();
    assert_eq!((report.files, report.skipped), (1, vec![real.join("store")]));
    assert!(matches!(import(&chunks), Err(Error::InvalidOption { .. })), "there is no file to import");
}
