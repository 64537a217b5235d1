//! What `examine` finds, that it changes nothing, for whom a store's files are, and that links lead nobody's writes out of a folder.

mod common;

use common::*;
use hub_fixture::{Content, GOOD_TOKEN, UNLISTED_TOKEN};
use std::{
    collections::BTreeMap,
    fs::{self, File, Permissions},
    io::{Read, Write},
    os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink},
    path::{Path, PathBuf},
};
use storage::{StorageRegistry, Table};
use tabagent_model_cache::*;

const TABLES: [&str; 7] = ["chunks", "metadata", "blobs", "manifests", "refs", "access", "store"];

#[test]
fn child() {
    obey();
}

fn bytes(seed: u64, size: u64) -> Vec<u8> {
    Content::seeded(seed, size).read(0..size).unwrap().to_vec()
}

/// A store at `store` of the folder given, with `org/local` `large` and `small`.
fn store_with(seed: u64, large: u64) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let sources = dir.path().join("sources");
    fs::create_dir(&sources).unwrap();
    fs::write(sources.join("large"), bytes(seed, large)).unwrap();
    fs::write(sources.join("small"), bytes(seed + 1, 3000)).unwrap();
    local(&dir.path().join("store")).import("org/local", &[sources], &ImportOptions::default()).unwrap();
    dir
}

fn examine(builder: ModelCacheBuilder) -> Vec<Finding> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    runtime.block_on(builder.examine()).findings
}

fn examine_offline(store: &Path) -> Vec<Finding> {
    examine(ModelCache::builder(store).offline(true))
}

fn problems(findings: &[Finding]) -> Vec<&Finding> {
    findings.iter().filter(|finding| finding.severity == Severity::Problem).collect()
}

/// The one finding that has `words` in it.
fn finding<'a>(findings: &'a [Finding], words: &str) -> &'a Finding {
    let mut found = findings.iter().filter(|finding| finding.what.contains(words));
    let first = found.next().unwrap_or_else(|| panic!("nothing of {words:?} in {findings:#?}"));
    assert_eq!(found.next(), None, "{words:?} was found twice");
    first
}

/// Everything below a folder: mode, length, blocks, time of the last change, content. Of lock files only that they are there: who looks at
/// the readers of a store in use takes a place among them.
fn snapshot(folder: &Path) -> BTreeMap<PathBuf, (u32, u64, u64, i64, u32)> {
    let mut found = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten() {
            let path = entry.unwrap().path();
            let metadata = fs::symlink_metadata(&path).unwrap();
            let crc = if metadata.is_file() { crc(&fs::read(&path).unwrap()) } else { 0 };
            let state = (metadata.mode(), metadata.len(), metadata.blocks(), metadata.mtime_nsec(), crc);
            let state = if path.ends_with("mdbx.lck") { (0, 0, 0, 0, 0) } else { state };
            if metadata.is_dir() {
                folders.push(path.clone());
            }
            found.insert(path, state);
        }
    }
    found
}

fn overwrite(store: &Path, table: &'static str, key: &str, bytes: &[u8]) {
    let records = StorageRegistry::new(store).records(&store.join("model_cache_manifests"), &TABLES).unwrap();
    let table: Table<[u8]> = Table::new(table);
    let keys = records.begin_read().unwrap().scan_bytes(&table, key).unwrap();
    let key = keys.first().map_or(key, |(key, _)| key);
    let txn = records.begin_write().unwrap();
    txn.put_bytes(&table, key, bytes).unwrap();
    txn.commit().unwrap();
}

#[test]
fn a_sound_store_has_no_problem_and_no_warning_but_of_where_it_lies() {
    let dir = store_with(1, 40 * MIB);
    let findings = examine_offline(&dir.path().join("store"));
    assert_eq!(problems(&findings), Vec::<&Finding>::new());
    let warnings = findings.iter().filter(|finding| finding.severity == Severity::Warning);
    assert_eq!(warnings.filter(|finding| finding.area != Area::Space).collect::<Vec<_>>(), Vec::<&Finding>::new());
    for words in [
        "format 2",
        "2 files of 2 contents",
        "each of 1 chunks",
        "nobody else uses",
        "for its owner alone",
        "ballast of 16.00 MiB",
    ] {
        finding(&findings, words);
    }
    let not_read = finding(&findings, "blocks of data were not read");
    assert_eq!((not_read.severity, &not_read.hint), (Severity::Fine, &None));
}

/// A way to harm a store, what is found then, and the kind of the problem.
type Harm = (&'static str, fn(&Path), &'static str, ErrorKind);

#[test]
fn every_harm_is_found_with_what_to_do_and_nothing_is_changed() {
    let harms: [Harm; 13] = [
        (
            "a newer format",
            |s| overwrite(s, "store", "format", &9u32.to_le_bytes()),
            "format 9; this program reads format 2",
            ErrorKind::Other,
        ),
        (
            "a format that is no number",
            |s| overwrite(s, "store", "format", b"???"),
            "format number has 3 bytes",
            ErrorKind::Integrity,
        ),
        ("a damaged blob", |s| overwrite(s, "blobs", "blob:", &[0xFF; 400]), "record \"blob:", ErrorKind::Integrity),
        (
            "a damaged name",
            |s| overwrite(s, "metadata", "meta:org/local:large", b"x"),
            "record \"meta:org/local:large",
            ErrorKind::Integrity,
        ),
        ("a damaged ref", |s| overwrite(s, "refs", "ref:org/x:main", b"x"), "record \"ref:org/x:main", ErrorKind::Integrity),
        (
            "no records",
            |s| fs::remove_dir_all(s.join("model_cache_manifests")).unwrap(),
            "model_cache_manifests is not",
            ErrorKind::Integrity,
        ),
        (
            "no chunks",
            |s| fs::remove_dir_all(s.join("model_cache_chunks")).unwrap(),
            "model_cache_chunks is not",
            ErrorKind::Integrity,
        ),
        (
            "empty records",
            |s| drop(File::create(s.join("model_cache_manifests/mdbx.dat")).unwrap()),
            "manifests has no data file",
            ErrorKind::Integrity,
        ),
        (
            "garbage",
            |s| fs::write(s.join("model_cache_chunks/mdbx.dat"), bytes(9, MIB)).unwrap(),
            "not libmdbx's",
            ErrorKind::Integrity,
        ),
        (
            "cut short",
            |s| File::options().write(true).open(s.join("model_cache_manifests/mdbx.dat")).unwrap().set_len(100).unwrap(),
            "shorter than its first page",
            ErrorKind::Integrity,
        ),
        (
            "a link",
            |s| {
                fs::remove_file(s.join("leases")).unwrap();
                symlink("/etc/hostname", s.join("leases")).unwrap();
            },
            "a store's own files and folders are plain ones",
            ErrorKind::Other,
        ),
        (
            "another store's chunks",
            |s| {
                let other = store_with(7, 9 * MIB);
                fs::copy(other.path().join("store/model_cache_chunks/mdbx.dat"), s.join("model_cache_chunks/mdbx.dat")).unwrap();
            },
            "are of different stores",
            ErrorKind::Integrity,
        ),
        (
            "a damaged header",
            |s| {
                // Of the one chunk: its magic.
                let file = File::options().read(true).write(true).open(s.join("model_cache_chunks/mdbx.dat")).unwrap();
                let pages = file.metadata().unwrap().len() / (64 << 10);
                let magic = |page: &u64| {
                    let mut bytes = [0; 8];
                    file.read_exact_at(&mut bytes, page * (64 << 10) + 64).unwrap();
                    bytes == *b"MDXEXTNT"
                };
                let page = (0..pages).find(magic).unwrap();
                file.write_all_at(b"x", page * (64 << 10) + 64).unwrap();
            },
            "lies where its record says",
            ErrorKind::Integrity,
        ),
    ];
    for (name, harm, words, kind) in harms {
        let dir = store_with(1, 8 * MIB);
        let store = dir.path().join("store");
        harm(&store);
        let before = snapshot(dir.path());
        let findings = examine_offline(&store);
        assert!(snapshot(dir.path()) == before, "{name}: the examination changed the store");
        let problems = problems(&findings);
        let told = problems.iter().find(|problem| problem.what.contains(words));
        let told = told.unwrap_or_else(|| panic!("{name}: nothing of {words:?} in {problems:#?}"));
        assert_eq!(told.kind, Some(kind), "{name}");
        let is_more = |finding: &Finding| finding.hint.as_deref() == Some("model-cache verify");
        // Of records that can't be read at all the whole store is told.
        let is_read = findings.iter().any(|finding| finding.what.contains(" files of "));
        assert_eq!(findings.iter().any(is_more), kind == ErrorKind::Integrity && is_read, "{name}: {findings:#?}");
        assert!(problems.iter().all(|problem| problem.hint.is_some()), "{name}: {problems:#?}");
    }
}

#[test]
fn where_there_is_no_store_that_is_said_and_none_is_made() {
    let dir = tempfile::tempdir().unwrap();
    let (file, full, empty) = (dir.path().join("file"), dir.path().join("full"), dir.path().join("empty"));
    fs::write(&file, "mine").unwrap();
    fs::create_dir(&full).unwrap();
    fs::create_dir(&empty).unwrap();
    fs::write(full.join("thesis"), "mine").unwrap();
    let before = snapshot(dir.path());
    for (path, words, severity) in [
        (dir.path().join("new/store"), "there is no store at", Severity::Note),
        (empty, "which is empty", Severity::Note),
        (full, "but 1 other files and folders", Severity::Warning),
        (file.join("below"), "is not a folder", Severity::Problem),
        (file, "is not a folder", Severity::Problem),
    ] {
        let findings = examine_offline(&path);
        assert_eq!(finding(&findings, words).severity, severity, "{findings:#?}");
        assert_eq!(problems(&findings).len(), usize::from(severity == Severity::Problem));
    }
    assert!(snapshot(dir.path()) == before);
}

#[test]
fn what_a_killed_restore_left_beside_a_store_is_told_with_its_size_and_what_others_put_there_is_not() {
    let dir = store_with(1, 8 * MIB);
    let (store, beside) = (dir.path().join("store"), dir.path().join("store.restoring"));
    let told = || examine_offline(&store).into_iter().find(|finding| finding.what.contains("store.restoring"));
    assert_eq!(told(), None);
    fs::create_dir_all(beside.join("store")).unwrap();
    fs::write(beside.join("store/data"), bytes(1, 3 * MIB)).unwrap();
    fs::write(beside.join("lock"), "").unwrap();
    let left = told().unwrap();
    assert!(left.severity == Severity::Warning && left.what.contains("(3.0"), "{left:?}");
    assert!(left.hint.unwrap().ends_with(&format!("\nrm -r {}", beside.display())));
    let at_it = storage::FileLock::try_exclusive(&beside.join("lock")).unwrap();
    let under_way = told().unwrap();
    assert!(under_way.severity == Severity::Note && under_way.hint.is_none(), "{under_way:?}");
    drop(at_it);
    fs::rename(&store, dir.path().join("elsewhere")).unwrap();
    assert!(told().is_some(), "also where the store is not there yet");
    fs::write(beside.join("thesis"), "mine").unwrap();
    assert_eq!(told(), None);
}

#[test]
fn a_disk_that_cannot_be_written_is_told_for_a_store_and_for_none() {
    const NAME: &str = "a_disk_that_cannot_be_written_is_told_for_a_store_and_for_none";
    let Some(dir) = in_mount_namespace(NAME, r#"mount -t tmpfs -o size=100M tmpfs "$DIR""#) else { return };
    let store = dir.join("store");
    drop(local(&store));
    let findings = examine_offline(&store);
    assert_eq!(finding(&findings, "lies in memory (tmpfs)").severity, Severity::Warning);
    assert_eq!(problems(&findings), Vec::<&Finding>::new());
    let remounted = std::process::Command::new("mount").args(["-o", "remount,ro"]).arg(&dir).status().unwrap();
    assert!(remounted.success());
    for (path, words) in [(store, "can't be opened"), (dir.join("new"), "none can be made")] {
        let findings = examine_offline(&path);
        let told = problems(&findings).into_iter().find(|problem| problem.what.contains(words));
        assert!(told.is_some_and(|problem| problem.hint.is_some()), "{words}: {findings:#?}");
    }
}

#[test]
fn who_uses_the_store_and_keeps_removed_content_is_named_beside_unfinished_downloads() {
    let dir = store_with(1, 8 * MIB);
    let store = dir.path().join("store");
    let reader = start(&["read", store.to_str().unwrap(), "org/local", "large"]);
    reader.hear("READS");
    local(&store).delete_model("org/local").unwrap();
    let findings = examine_offline(&store);
    assert_eq!(problems(&findings), Vec::<&Finding>::new());
    let told = finding(&findings, &format!("process {} (", reader.id()));
    assert!(told.what.contains("reads 1, fills 0; 8.00 MiB that were removed return"), "{told:?}");
    drop(reader);
    // Killed, it leaves content for the next open to free.
    let findings = examine_offline(&store);
    let told = finding(&findings, "1 removed contents that nobody reads");
    assert_eq!(told.hint.as_deref(), Some("model-cache gc"));
    finding(&findings, "nobody else uses the store");
}

#[tokio::test]
async fn the_hub_tells_whose_the_token_is_and_no_finding_shows_it() {
    let hub = hub(1, 1000);
    let dir = tempfile::tempdir().unwrap();
    let examine = |token: Option<&str>, endpoint: &str| {
        let builder = builder(&dir.path().join("none"), endpoint);
        match token {
            Some(token) => builder.token(token),
            None => builder,
        }
        .examine()
    };
    for (token, owner) in [(GOOD_TOKEN, "tester's, to read"), (UNLISTED_TOKEN, "stranger's, to read")] {
        let found = examine(Some(token), &hub.endpoint()).await;
        finding(&found.findings, owner);
        finding(&found.findings, "clock agrees");
        assert_eq!(found.kind(), None);
        assert!(!format!("{found:?}").contains(token));
    }
    let found = examine(Some("hf_wrong"), &hub.endpoint()).await;
    assert_eq!(found.kind(), Some(ErrorKind::NotAllowed));
    assert!(finding(&found.findings, "does not accept the token from the token option").hint.is_some());
    assert!(!format!("{found:?}").contains("hf_wrong"));
    let found = examine(None, &hub.endpoint()).await;
    assert_eq!(found.kind(), None);
    finding(&found.findings, "no token");
    let closed = hub.endpoint();
    drop(hub);
    let found = examine(None, &closed).await;
    assert_eq!(found.kind(), Some(ErrorKind::Network));
}

#[tokio::test]
async fn a_clock_that_is_off_is_told() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming().take(1) {
            let answer = "HTTP/1.1 404 Not Found\r\nDate: Tue, 15 Nov 1994 08:12:31 GMT\r\nContent-Length: 0\r\n\r\n";
            let mut stream = stream.unwrap();
            // The request has no body; its head comes at once.
            let _ = stream.read(&mut [0; 4096]).unwrap();
            stream.write_all(answer.as_bytes()).unwrap();
        }
    });
    let dir = tempfile::tempdir().unwrap();
    let found = builder(&dir.path().join("none"), &endpoint).token("hf_some").examine().await;
    let told = finding(&found.findings, "clock is");
    assert!(told.what.contains("s ahead of the Hub's") && told.severity == Severity::Warning, "{told:?}");
    finding(&found.findings, "can't be told");
}

#[tokio::test]
async fn no_type_that_has_a_token_shows_it() {
    let dir = tempfile::tempdir().unwrap();
    let hub = hub(1, 1000);
    let builder = builder(&dir.path().join("store"), &hub.endpoint()).token("hf_markedtoken");
    assert!(!format!("{builder:?}").contains("marked"));
    let cache = builder.open().unwrap();
    let error = cache.scan_repo(REPO).await.unwrap_err();
    for shown in [format!("{cache:?}"), format!("{error:?} {error} {:?}", error.hint()), format!("{error:#?}")] {
        assert!(!shown.contains("marked"), "{shown}");
    }
    let error = ModelCache::builder(dir.path()).token("hf_marked token").open().unwrap_err();
    assert!(!format!("{error:?} {error} {:?}", error.hint()).contains("marked"));
}

// -- for whom the files are ------------------------------------------------------------------------------------------

fn modes(store: &Path) -> BTreeMap<String, u32> {
    let mut found = BTreeMap::from([(String::new(), fs::metadata(store).unwrap().mode() & 0o7777)]);
    for (path, (mode, ..)) in snapshot(store) {
        let mode = if path.ends_with("mdbx.lck") { fs::metadata(&path).unwrap().mode() } else { mode };
        found.insert(path.strip_prefix(store).unwrap().display().to_string(), mode & 0o7777);
    }
    found
}

#[test]
fn what_is_made_is_for_its_owner_alone_unless_the_folder_is_shared_by_its_group() {
    let dir = store_with(1, MIB);
    let store = dir.path().join("store");
    let private = modes(&store);
    assert_eq!(private.len(), 9, "{private:?}");
    for (name, mode) in &private {
        assert_eq!(
            *mode,
            if name.is_empty() || !name.contains('/') && name.starts_with("model") { 0o700 } else { 0o600 },
            "{name}"
        );
    }
    for (mode, folders, files) in [(0o2770, 0o2770, 0o660), (0o770, 0o770, 0o660), (0o750, 0o700, 0o600), (0o777, 0o700, 0o600)] {
        let dir = tempfile::tempdir().unwrap();
        let store = dir.path().join("store");
        fs::create_dir(&store).unwrap();
        fs::set_permissions(&store, Permissions::from_mode(mode)).unwrap();
        drop(local(&store));
        for (name, found) in modes(&store) {
            let expected = match name.as_str() {
                "" => mode,
                "model_cache_chunks" | "model_cache_manifests" => folders,
                _ => files,
            };
            assert_eq!(found, expected, "{name:?} of a store of mode {mode:o}");
        }
        let warnings = examine_offline(&store);
        let is_open = warnings.iter().any(|finding| finding.what.contains("can be used by"));
        assert_eq!(is_open, matches!(mode, 0o750 | 0o777), "{warnings:#?}");
    }
}

#[test]
fn a_store_that_is_open_to_others_is_used_as_it_is_and_told() {
    let dir = store_with(1, MIB);
    let store = dir.path().join("store");
    for (name, mode) in modes(&store) {
        fs::set_permissions(store.join(name), Permissions::from_mode(mode | (mode >> 3 & 0o055) | 0o044)).unwrap();
    }
    let before = modes(&store);
    assert!(local(&store).has_file("org/local", "large").unwrap());
    assert_eq!(modes(&store), before);
    let findings = examine_offline(&store);
    let told = finding(&findings, "can be used by others");
    assert_eq!(told.hint, Some(format!("chmod -R go= {}", store.display())));
    assert_eq!(problems(&findings), Vec::<&Finding>::new());
}

// -- links -------------------------------------------------------------------------------------------------------------

#[test]
fn a_link_within_a_store_is_refused_and_what_it_leads_to_is_not_touched() {
    for name in [
        "leases",
        "ballast",
        "model_cache_chunks",
        "model_cache_manifests",
        "model_cache_chunks/mdbx.dat",
        "model_cache_manifests/mdbx.dat",
        "model_cache_chunks/mdbx.lck",
        "model_cache_manifests/mdbx.lck",
    ] {
        let dir = tempfile::tempdir().unwrap();
        let (store, target) = (dir.path().join("store"), dir.path().join("target"));
        let path = store.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        // Both what is there and what would be made.
        for there in [true, false] {
            if there {
                if name.contains("mdbx") || !name.starts_with("model") {
                    fs::write(&target, "mine").unwrap()
                } else {
                    fs::create_dir(&target).unwrap()
                }
            }
            symlink(&target, &path).unwrap();
            let before = snapshot(&target);
            let error = ModelCache::open(&store).unwrap_err();
            let Error::Storage { source: storage::Error::NotOurs { path: named, .. }, .. } = &error else {
                panic!("{name}: {error:?}")
            };
            assert!(*named == path && error.hint().is_some(), "{name}: {error:?}");
            if there {
                assert!(snapshot(&target) == before && (target.is_dir() || fs::read(&target).unwrap() == b"mine"));
                let _ = fs::remove_file(&target);
                let _ = fs::remove_dir(&target);
            } else {
                assert!(!target.exists(), "{name}");
            }
            fs::remove_file(&path).unwrap();
        }
    }
    // The store itself is its user's to name.
    let dir = store_with(1, MIB);
    let link = dir.path().join("link");
    symlink(dir.path().join("store"), &link).unwrap();
    assert!(local(&link).has_file("org/local", "large").unwrap());
}

#[test]
fn an_export_follows_no_link_out_of_its_folder_however_often_one_is_put_there_meanwhile() {
    let dir = tempfile::tempdir().unwrap();
    let (out, outside, sources) = (dir.path().join("out"), dir.path().join("outside"), dir.path().join("sources"));
    for folder in [&out, &outside, &sources.join("onnx/deep")] {
        fs::create_dir_all(folder).unwrap();
    }
    for name in ["onnx/deep/a", "onnx/b", "c"] {
        fs::write(sources.join(name), bytes(3, 70_000)).unwrap();
    }
    let cache = local(&dir.path().join("store"));
    cache.import("org/local", std::slice::from_ref(&sources), &ImportOptions::default()).unwrap();
    let force = ExportOptions { force: true, ..ExportOptions::default() };
    fs::write(outside.join("c"), "mine").unwrap();
    let untouched = || fs::read_dir(&outside).unwrap().count() == 1 && fs::read(outside.join("c")).unwrap() == b"mine";
    // In the place of a folder, above a folder, and of a file.
    for (link, refused) in [("onnx", true), ("onnx/deep", true), ("c", false)] {
        let path = out.join(link);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        symlink(if refused { outside.clone() } else { outside.join("c") }, &path).unwrap();
        let exported = cache.export("org/local", &[], &out, &force);
        assert!(untouched(), "{link}");
        match exported {
            Err(Error::InvalidOption { name: "to", reason, .. }) if refused => {
                assert!(reason.contains(path.to_str().unwrap()), "{reason}")
            }
            other => assert!(!refused && other.is_ok() && !path.is_symlink(), "{link}: {other:?}"),
        }
        fs::remove_dir_all(&out).unwrap();
        fs::create_dir(&out).unwrap();
    }
    // Somebody who swaps a folder for a link all the time: the export fails or writes where it should, never outside.
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let attacker = scope.spawn(|| {
            let (onnx, aside) = (out.join("onnx"), out.join("aside"));
            let mut swaps = 0_u64;
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                let _ = fs::rename(&onnx, &aside);
                let _ = symlink(&outside, &onnx);
                std::thread::yield_now();
                let _ = fs::remove_file(&onnx);
                let _ = fs::rename(&aside, &onnx);
                swaps += 1;
            }
            swaps
        });
        let mut written = 0;
        for _ in 0..300 {
            written += u32::from(cache.export("org/local", &[], &out, &force).is_ok());
            assert!(untouched());
        }
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        println!("{written} of 300 exports went through beside {} swaps", attacker.join().unwrap());
    });
}
