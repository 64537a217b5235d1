//! Copies of a store: whole or not there, of one moment whatever goes on, good to the last byte, and made a store again.

mod common;

use common::*;
use hub_fixture::{Content, Hub, Repo};
use proptest::prelude::*;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    os::unix::fs::{FileExt, MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, Mutex},
};
use tabagent_model_cache::*;
use tokio_util::sync::CancellationToken;

#[test]
fn child() {
    obey();
}

// -- what a store has, as anybody sees it --------------------------------------------------------------------------

/// Names, and the content each leads to.
type Files = BTreeMap<(String, String), Vec<u8>>;

fn files(cache: &ModelCache) -> Files {
    let mut found = Files::new();
    for summary in cache.list().unwrap() {
        let repo = pinned(&summary.repo, summary.commit.as_ref());
        for file in
            cache.files(&repo).unwrap().into_iter().filter(|files| files.commit == summary.commit).flat_map(|files| files.files)
        {
            let bytes = cache.open_file(&repo, file.path.as_str()).unwrap().to_vec();
            found.insert((repo.clone(), file.path.to_string()), bytes);
        }
    }
    found
}

fn pinned(repo: &RepoId, commit: Option<&CommitId>) -> String {
    commit.map_or(repo.to_string(), |commit| format!("{repo}@{commit}"))
}

/// What `ls` shows.
fn listed(cache: &ModelCache) -> Vec<String> {
    let shown = |row: RepoSummary| {
        format!("{} {:?} {:?} {} {} {:?}", row.repo, row.commit, row.quants, row.files, row.size_bytes, row.last_used)
    };
    cache.list().unwrap().into_iter().map(shown).collect()
}

fn import(cache: &ModelCache, repo: &str, path: &str, bytes: &[u8]) {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join(path);
    fs::write(&source, bytes).unwrap();
    cache.import(repo, &[source], &ImportOptions::default()).unwrap();
}

fn bytes(seed: u64, size: u64) -> Vec<u8> {
    Content::seeded(seed, size).read(0..size).unwrap().to_vec()
}

fn back_up(cache: &ModelCache, to: &Path, keep: u64) -> BackupReport {
    cache.backup(to, &BackupOptions { keep, ..BackupOptions::default() }).unwrap()
}

fn check(from: &Path, snapshot: Option<u64>) -> Result<BackupCheck> {
    ModelCache::check_backup(from, &CheckOptions { snapshot, ..CheckOptions::default() })
}

fn restore(from: &Path, to: &Path, snapshot: Option<u64>) -> Result<RestoreReport> {
    ModelCache::restore(from, to, &RestoreOptions { snapshot, ..RestoreOptions::default() })
}

/// What a snapshot is once it is restored; that it is sound.
fn restored(from: &Path, snapshot: Option<u64>) -> Files {
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("restored");
    restore(from, &store, snapshot).unwrap();
    assert_eq!(names(dir.path()), ["restored"], "nothing else is left");
    let cache = local(&store);
    assert_sound(&cache);
    files(&cache)
}

/// Names in a folder, sorted.
fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn blob_path(backup: &Path, bytes: &[u8]) -> PathBuf {
    let mut hasher = Hasher::sha256();
    hasher.update(bytes);
    backup.join("blobs").join(hasher.finish().to_string().replace(':', "-"))
}

fn flip(path: &Path, at: u64) {
    let file = File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 0x40], at).unwrap();
}

/// Flips a byte of stored content where it lies in the data file.
fn flip_in_store(store: &Path, content: &[u8], at: usize) {
    let path = store.join("model_cache_chunks/mdbx.dat");
    let pattern = &content[at..at + 64];
    let data = fs::read(&path).unwrap();
    let within = at % (64 << 10);
    let found: Vec<_> =
        (within..data.len() - 64).step_by(64 << 10).filter(|&place| &data[place..place + 64] == pattern).collect();
    assert_eq!(found.len(), 1, "the pattern is in the data file once");
    flip(&path, found[0] as u64);
}

// -- whatever the store holds --------------------------------------------------------------------------------------

#[derive(Clone, Debug)]
enum Step {
    Import { repo: u8, path: u8, content: u8 },
    Remove { repo: u8, path: u8 },
    Backup { keep: u64, recheck: bool },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..2u8, 0..3u8, 0..7u8).prop_map(|(repo, path, content)| Step::Import { repo, path, content }),
        2 => (0..2u8, 0..3u8).prop_map(|(repo, path)| Step::Remove { repo, path }),
        3 => (1..4u64, any::<bool>()).prop_map(|(keep, recheck)| Step::Backup { keep, recheck }),
    ]
}

/// Of no bytes, inline, at the edge of that, of one block, of several.
fn content(n: u8) -> Vec<u8> {
    bytes(u64::from(n), [0, 1, 5000, 64 << 10, (64 << 10) + 1, 700_001, (5 << 20) + 3][usize::from(n)])
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]
    #[test]
    fn every_kept_snapshot_is_what_the_store_was_and_only_new_content_is_copied(steps in prop::collection::vec(step(), 4..16)) {
        let dir = tempfile::tempdir().unwrap();
        let backup = dir.path().join("backup");
        let cache = local(&dir.path().join("store"));
        let mut model = Files::new();
        let mut kept: Vec<(u64, Files)> = Vec::new();
        let steps = steps.into_iter().chain([Step::Backup { keep: 2, recheck: false }]);
        for step in steps {
            match step {
                Step::Import { repo, path, content: n } => {
                    import(&cache, &format!("org/{repo}"), &path.to_string(), &content(n));
                    model.insert((format!("org/{repo}"), path.to_string()), content(n));
                }
                Step::Remove { repo, path } => {
                    let was_there = model.remove(&(format!("org/{repo}"), path.to_string())).is_some();
                    prop_assert_eq!(cache.delete_file(&format!("org/{repo}"), &path.to_string()).is_ok(), was_there);
                }
                Step::Backup { keep, recheck } => {
                    let before: BTreeSet<Vec<u8>> = kept.iter().flat_map(|(_, files)| files.values().cloned()).collect();
                    let now: BTreeSet<Vec<u8>> = model.values().cloned().collect();
                    let newest: BTreeSet<Vec<u8>> = kept.last().into_iter().flat_map(|(_, files)| files.values().cloned()).collect();
                    let made = cache.backup(&backup, &BackupOptions { keep, recheck, ..BackupOptions::default() });
                    if now.is_empty() && !newest.is_empty() {
                        prop_assert!(matches!(made, Err(Error::EmptyStore { .. })), "{:?}", made);
                        continue;
                    }
                    let report = made.unwrap();
                    prop_assert_eq!(report.another_store, !newest.is_empty() && newest.is_disjoint(&now));
                    prop_assert_eq!(report.copied_bytes, now.difference(&before).map(|bytes| bytes.len() as u64).sum::<u64>());
                    prop_assert_eq!((report.files, report.bytes), (model.len() as u64, now.iter().map(|bytes| bytes.len() as u64).sum()));
                    kept.push((report.snapshot, model.clone()));
                    let gone = if report.another_store { 0 } else { kept.len().saturating_sub(keep as usize) };
                    let gone: Vec<u64> = kept.drain(..gone).map(|(number, _)| number).collect();
                    prop_assert_eq!(report.dropped_snapshots, gone);
                    if report.another_store {
                        continue;
                    }
                    let needed: BTreeSet<Vec<u8>> = kept.iter().flat_map(|(_, files)| files.values().cloned()).collect();
                    let needed: BTreeSet<_> = needed.iter().map(|bytes| blob_path(&backup, bytes).file_name().unwrap().to_owned().into_string().unwrap()).collect();
                    prop_assert_eq!(names(&backup.join("blobs")).into_iter().collect::<BTreeSet<_>>(), needed);
                }
            }
        }
        for (number, files) in &kept {
            prop_assert_eq!(&check(&backup, Some(*number)).unwrap().bad, &[]);
            prop_assert!(restored(&backup, Some(*number)) == *files, "snapshot {}", number);
        }
    }
}

/// A Hub whose repo has two quants and files git keeps itself; a store that pulled one of them, at two commits.
async fn pulled(store: &Path) -> (Hub, ModelCache) {
    let config = |seed: u64| ("config.json", Content::from(format!("{{\"seed\":{seed}}}").as_str()));
    let (path, content) = config(2);
    let repo = Repo::new(REPO)
        .pipeline_tag("text-generation")
        .file(path, content)
        .file("tokenizer.json", Content::seeded(9, 90_000))
        .file("model-Q4_K_M.gguf", Content::seeded(1, 6 * MIB))
        .file("model-Q8_0.gguf", Content::seeded(2, MIB));
    let hub = Hub::start(vec![repo]);
    let cache = cache(store, &hub);
    cache.download_quant(REPO, "Q4_K_M", None).await.unwrap();
    hub.push(REPO, "main", [config(3), ("model-Q8_0.gguf", Content::seeded(3, MIB))]);
    cache.download_quant(REPO, "Q8_0", None).await.unwrap();
    hub.push(REPO, "main", [config(4)]);
    cache.scan_repo(REPO).await.unwrap();
    (hub, cache)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restored_store_has_names_refs_manifests_and_times_as_they_were() {
    let dir = tempfile::tempdir().unwrap();
    let (store, backup, copy) = (dir.path().join("store"), dir.path().join("backup"), dir.path().join("copy"));
    let (_hub, cache) = pulled(&store).await;
    import(&cache, "me/tuned", "lora.gguf", &bytes(7, 300_000));
    cache.open_file("me/tuned", "lora.gguf").unwrap();
    drop(cache);
    let cache = local(&store);
    assert_eq!(back_up(&cache, &backup, 2).left_out, []);
    let restored = restore(&backup, &copy, None).unwrap();
    let there = local(&copy);
    assert_eq!((restored.files, restored.replaced), (there.stats().unwrap().files, false));
    assert_eq!(listed(&there), listed(&cache));
    assert!(files(&there) == files(&cache));
    for repo in [REPO.to_owned(), format!("{REPO}@main"), "me/tuned".to_owned()] {
        let manifests = [&there, &cache].map(|cache| cache.local_manifest(&repo).unwrap());
        assert_eq!(format!("{:?}", manifests[0]), format!("{:?}", manifests[1]));
    }
    let quants = there.local_manifest(REPO).unwrap().unwrap().quants;
    assert_eq!(quants["Q8_0"].status, QuantStatus::Downloaded);
    assert_sound(&there);
}

#[test]
fn a_backup_is_checked_by_sha256sum_alone() {
    let dir = tempfile::tempdir().unwrap();
    let (store, backup) = (dir.path().join("store"), dir.path().join("backup"));
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (_hub, cache) = runtime.block_on(pulled(&store));
    back_up(&cache, &backup, 2);
    // The second one knows the sums of what is there from the first.
    let report = back_up(&cache, &backup, 2);
    assert_eq!((report.snapshot, report.copied_bytes), (2, 0));
    let sums = |number: u64| {
        let mut command = Command::new("sha256sum");
        command.args(["--check", "--strict", "--quiet"]).arg(format!("snapshots/{number}.sha256"));
        command.current_dir(&backup).status().unwrap().success()
    };
    assert!(sums(1) && sums(2));
    let lines = fs::read_to_string(backup.join("snapshots/2.sha256")).unwrap();
    assert_eq!(lines.lines().count(), 1 + names(&backup.join("blobs")).len(), "the document and every blob");
    let small = names(&backup.join("blobs")).into_iter().find(|name| name.starts_with("git-sha1-")).unwrap();
    flip(&backup.join("blobs").join(small), 0);
    assert!(!sums(2));
}

// -- while the store is at work ------------------------------------------------------------------------------------

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_is_of_one_moment_while_a_pull_ends_and_files_are_removed() {
    let dir = tempfile::tempdir().unwrap();
    let (store, backup) = (dir.path().join("store"), dir.path().join("backup"));
    let hub = hub(3, 7 * MIB);
    let cache = cache(&store, &hub);
    import(&cache, "me/a", "large", &bytes(1, 11 * MIB));
    import(&cache, "me/b", "large", &bytes(2, 6 * MIB));
    import(&cache, "me/b", "small", &bytes(4, 900));
    let before = files(&cache);
    let (worker, endpoint, store_of_pull) = (cache.clone(), hub.endpoint(), store.clone());
    let at_work = Mutex::new(Some(move || {
        // Both repos go and another comes, in another process too, while the first block is on its way.
        let removed = worker.delete_model("me/b").unwrap();
        assert_eq!((removed.freed_bytes, removed.busy_bytes, removed.busy_processes), (900, 6 * MIB, vec![std::process::id()]));
        worker.delete_model("me/a").unwrap();
        start(&["pull", store_of_pull.to_str().unwrap(), &endpoint, REPO]).hear("OK");
    }));
    let progress: ProgressCallback = Arc::new(move |_, _| {
        if let Some(work) = at_work.lock().unwrap().take() {
            work();
        }
    });
    let backing_up = (cache.clone(), backup.clone());
    let options = BackupOptions { progress: Some(progress), ..BackupOptions::default() };
    let report = tokio::task::spawn_blocking(move || backing_up.0.backup(&backing_up.1, &options)).await.unwrap().unwrap();
    assert_eq!(report.left_out, []);
    assert!(restored(&backup, None) == before, "what was removed meanwhile is in it, what came is not");
    assert!(holds(&cache, REPO, "model.gguf", &Content::seeded(3, 7 * MIB)));
    assert_eq!(cache.stats().unwrap().doomed_bytes, 0, "what the backup held back is freed");
    assert_sound(&cache);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_being_pulled_is_not_in_it_and_the_pull_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let (store, backup) = (dir.path().join("store"), dir.path().join("backup"));
    let hub = hub(3, 40 * MIB);
    let slow =
        hub.faults().always(hub_fixture::Target::path("model.gguf").cdn(), hub_fixture::Fault::SlowBytesPerSecond(8 * MIB));
    let mut child = start(&["pull", store.to_str().unwrap(), &hub.endpoint(), REPO]);
    child.hear("STARTED");
    let cache = local(&store);
    until("one file is here and the other is begun", || {
        cache.has_file(REPO, "config.json").unwrap() && cache.stats().unwrap().filling_bytes > 0
    });
    let report = back_up(&cache, &backup, 2);
    assert_eq!(report.unfinished.len(), 1, "{:?}", report.unfinished);
    assert!(report.unfinished[0].ends_with(" model.gguf"));
    hub.faults().remove(slow);
    child.hear("OK");
    assert!(child.end().success());
    let copied = restored(&backup, None);
    assert_eq!(copied.keys().map(|(_, path)| path.as_str()).collect::<Vec<_>>(), ["config.json"]);
}

// -- damage --------------------------------------------------------------------------------------------------------

#[test]
fn what_is_damaged_in_the_store_is_told_and_left_out_and_nothing_older_goes_for_it() {
    let dir = tempfile::tempdir().unwrap();
    let (store, backup) = (dir.path().join("store"), dir.path().join("backup"));
    let (one, two, three) = (bytes(1, 6 * MIB), bytes(2, 11 * MIB), bytes(3, 3 * MIB));
    let cache = local(&store);
    import(&cache, "me/a", "one", &one);
    back_up(&cache, &backup, 1);
    import(&cache, "me/a", "two", &two);
    import(&cache, "me/b", "two-again", &two);
    import(&cache, "me/b", "three", &three);
    drop(cache);
    flip_in_store(&store, &one, 5 << 20);
    flip_in_store(&store, &two, 10 << 20);
    let cache = local(&store);
    let report = back_up(&cache, &backup, 1);
    let left_out: Vec<_> = report.left_out.iter().map(|left| (left.repo.as_str(), left.path.as_deref().unwrap())).collect();
    assert_eq!(left_out, [("me/a", "two"), ("me/b", "two-again")], "the sound copy of one is in the backup");
    assert!(report.left_out[0].reason.contains("block 2"), "{report:?}");
    assert_eq!(report.copied_bytes, 3 * MIB, "what was copied of two before its damage was met is not there");
    assert_eq!((report.dropped_snapshots, check(&backup, None).unwrap().snapshots), (vec![], vec![1, 2]));
    assert!(!blob_path(&backup, &two).exists() && names(&backup.join("blobs")).iter().all(|name| !name.ends_with(".part")));
    let expected: Files = [(("me/a", "one"), &one), (("me/b", "three"), &three)]
        .map(|((repo, path), bytes)| ((repo.to_owned(), path.to_owned()), bytes.clone()))
        .into();
    assert!(restored(&backup, None) == expected);
    // Looked at anew, the sound copy stays, though its source is damaged.
    let options = BackupOptions { keep: 1, recheck: true, ..BackupOptions::default() };
    assert_eq!(cache.backup(&backup, &options).unwrap().left_out.len(), 2);
    assert!(restored(&backup, None) == expected);
}

#[test]
fn a_copy_that_rotted_in_the_backup_is_replaced_where_it_is_looked_at_anew() {
    let dir = tempfile::tempdir().unwrap();
    let (store, backup) = (dir.path().join("store"), dir.path().join("backup"));
    let (large, small) = (bytes(1, 6 * MIB), bytes(2, 2000));
    let cache = local(&store);
    import(&cache, "me/a", "large", &large);
    import(&cache, "me/a", "small", &small);
    back_up(&cache, &backup, 2);
    flip(&blob_path(&backup, &large), 5 << 20);
    flip(&blob_path(&backup, &small), 1999);
    assert_eq!(check(&backup, None).unwrap().bad.len(), 2);
    assert_eq!(back_up(&cache, &backup, 2).copied_bytes, 0);
    assert_eq!(check(&backup, None).unwrap().bad.len(), 2);
    let options = BackupOptions { recheck: true, ..BackupOptions::default() };
    assert_eq!(cache.backup(&backup, &options).unwrap().copied_bytes, 6 * MIB + 2000);
    assert_eq!(check(&backup, None).unwrap().bad, []);
    assert!(restored(&backup, None) == files(&cache));
    // Of another size it is seen without being asked for.
    File::options().write(true).open(blob_path(&backup, &large)).unwrap().set_len(100).unwrap();
    assert_eq!(back_up(&cache, &backup, 2).copied_bytes, 6 * MIB);
}

#[test]
fn a_copy_that_was_found_damaged_is_never_taken_for_good_again() {
    let dir = tempfile::tempdir().unwrap();
    let (store, backup) = (dir.path().join("store"), dir.path().join("backup"));
    let (large, other) = (bytes(1, 6 * MIB), bytes(2, 2000));
    let cache = local(&store);
    import(&cache, "me/a", "large", &large);
    import(&cache, "me/a", "other", &other);
    back_up(&cache, &backup, 1);
    drop(cache);
    flip(&blob_path(&backup, &large), 5 << 20);
    flip_in_store(&store, &large, 5 << 20);
    let cache = local(&store);
    let aside = blob_path(&backup, &large).with_extension("damaged");
    for recheck in [true, false] {
        let report = cache.backup(&backup, &BackupOptions { keep: 1, recheck, ..BackupOptions::default() }).unwrap();
        assert_eq!((report.left_out.len(), report.dropped_snapshots), (1, vec![]), "looked at anew: {recheck}");
        assert!(aside.exists() && !blob_path(&backup, &large).exists());
        assert_eq!(check(&backup, None).unwrap().bad, []);
    }
    let old = check(&backup, Some(1)).unwrap();
    assert!(old.bad.len() == 1 && old.bad[0].reason.contains(".damaged now"), "{old:?}");
    // The store has it again: it is copied, and what was set aside goes.
    cache.delete_file("me/a", "large").unwrap();
    import(&cache, "me/a", "large", &large);
    let report = back_up(&cache, &backup, 1);
    assert_eq!((report.left_out, report.copied_bytes, report.dropped_snapshots), (vec![], 6 * MIB, vec![1, 2, 3]));
    assert!(restored(&backup, None) == files(&cache));
    assert_eq!(names(&backup.join("blobs")).len(), 2);
}

#[test]
fn a_copy_that_only_older_snapshots_need_is_looked_at_anew_and_told_with_those_it_takes_along() {
    let dir = tempfile::tempdir().unwrap();
    let (store, backup) = (dir.path().join("store"), dir.path().join("backup"));
    let (large, small, lost, stays) = (bytes(1, 6 * MIB), bytes(2, 2000), bytes(3, 100_000), bytes(4, 6 * MIB));
    let cache = local(&store);
    for (path, content) in [("large", &large), ("small", &small), ("stays", &stays)] {
        import(&cache, "me/a", path, content);
    }
    back_up(&cache, &backup, 9);
    import(&cache, "me/b", "lost", &lost);
    import(&cache, "me/b", "large-again", &large);
    cache.delete_file("me/a", "small").unwrap();
    back_up(&cache, &backup, 9);
    for (repo, path) in [("me/a", "large"), ("me/b", "large-again"), ("me/b", "lost")] {
        cache.delete_file(repo, path).unwrap();
    }
    drop(cache);
    flip(&blob_path(&backup, &large), 5 << 20);
    flip(&blob_path(&backup, &small), 7);
    fs::remove_file(blob_path(&backup, &lost)).unwrap();
    flip(&blob_path(&backup, &stays), 0);
    flip_in_store(&store, &stays, 0);
    let cache = local(&store);
    let recheck = |keep| cache.backup(&backup, &BackupOptions { keep, recheck: true, ..BackupOptions::default() }).unwrap();
    import(&cache, "me/c", "new", &bytes(5, 100_000));
    assert_eq!(back_up(&cache, &backup, 9).bad, [], "nobody looked");
    for n in 0..2 {
        let report = recheck(9);
        let told: BTreeMap<_, _> = report.bad.iter().map(|bad| (backup.join(&bad.file), bad)).collect();
        let snapshots = |content| told[&blob_path(&backup, content)].snapshots.clone();
        assert_eq!(told.len(), 4, "{report:?}");
        assert_eq!((snapshots(&large), snapshots(&small), snapshots(&lost)), (vec![1, 2], vec![1], vec![2]));
        assert_eq!(snapshots(&stays), [1, 2, 3], "damaged in the store too");
        assert_eq!(told[&blob_path(&backup, &large)].names, ["me/a large", "me/b large-again"]);
        assert!(n == 1 || told[&blob_path(&backup, &large)].reason.contains("block 1 has CRC32C"), "{report:?}");
        for content in [&large, &small, &stays] {
            let path = blob_path(&backup, content);
            assert!(!path.exists() && path.with_extension("damaged").exists());
        }
        assert_eq!(report.left_out.len(), 1);
    }
    // What is about to go is not looked at.
    cache.delete_file("me/a", "stays").unwrap();
    let report = recheck(1);
    assert_eq!((report.bad, report.left_out, report.dropped_snapshots.len()), (vec![], vec![], 5));
    assert_eq!(names(&backup.join("blobs")).len(), 1);
}

#[test]
fn what_is_damaged_in_a_backup_is_left_out_of_a_restore_on_request_alone_and_told() {
    let dir = tempfile::tempdir().unwrap();
    let backup = dir.path().join("backup");
    let (large, small) = (bytes(1, 6 * MIB), bytes(2, 2000));
    let cache = local(&dir.path().join("store"));
    import(&cache, "me/a", "large", &large);
    import(&cache, "me/a", "small", &small);
    import(&cache, "me/b", "large-again", &large);
    import(&cache, "me/b", "whole", &bytes(3, 11 * MIB));
    back_up(&cache, &backup, 2);
    let mut expected = files(&cache);
    let told = Arc::new(Mutex::new(Vec::new()));
    let heard = Arc::clone(&told);
    let progress: ProgressCallback = Arc::new(move |done, total| heard.lock().unwrap().push((done, total)));
    let options = RestoreOptions { skip_damaged: true, progress: Some(progress), ..RestoreOptions::default() };
    let skipping = |to: &str| ModelCache::restore(&backup, &dir.path().join(to), &options);
    assert_eq!(skipping("whole").unwrap().skipped, [], "nothing is damaged");
    flip(&blob_path(&backup, &large), 5 << 20);
    assert!(matches!(restore(&backup, &dir.path().join("part"), None), Err(Error::BackupDamaged { count: 1, .. })));
    told.lock().unwrap().clear();
    let report = skipping("part").unwrap();
    let skipped: Vec<_> = report.skipped.iter().map(|left| (left.repo.as_str(), left.path.as_deref().unwrap())).collect();
    assert_eq!(skipped, [("me/a", "large"), ("me/b", "large-again")]);
    assert!(report.skipped[0].reason.contains("block 1 has CRC32C"), "{report:?}");
    assert_eq!((report.files, report.bytes), (2, 11 * MIB + 2000));
    let total = 2 * (17 * MIB + 2000);
    let told = told.lock().unwrap();
    assert!(told.is_sorted() && told.last() == Some(&(total, total)), "{told:?}");
    drop(told);
    expected.retain(|_, bytes| *bytes != large);
    let part = local(&dir.path().join("part"));
    assert!(files(&part) == expected);
    assert_sound(&part);
    // Where nothing is sound, or it is not known what there was, there is nothing to restore.
    flip(&blob_path(&backup, &small), 0);
    flip(&blob_path(&backup, &bytes(3, 11 * MIB)), 0);
    assert!(matches!(skipping("none"), Err(Error::BackupDamaged { count: 3, .. })));
    flip(&backup.join("snapshots/1.json"), 40);
    assert!(matches!(skipping("none"), Err(Error::BackupDamaged { count: 1, .. })));
    assert!(!dir.path().join("none").exists());
}

#[test]
fn only_a_snapshot_that_is_whole_is_offered_in_place_of_a_damaged_one() {
    let dir = tempfile::tempdir().unwrap();
    let backup = dir.path().join("backup");
    let cache = local(&dir.path().join("store"));
    import(&cache, "me/a", "first", &bytes(1, 100_000));
    back_up(&cache, &backup, 9);
    import(&cache, "me/a", "second", &bytes(2, 100_000));
    back_up(&cache, &backup, 9);
    import(&cache, "me/a", "third", &bytes(3, 100_000));
    back_up(&cache, &backup, 9);
    let whole = |snapshot| check(&backup, Some(snapshot)).unwrap().whole_snapshot;
    assert_eq!(whole(3), None, "nothing is bad");
    flip(&blob_path(&backup, &bytes(3, 100_000)), 0);
    assert_eq!(whole(3), Some(2));
    flip(&backup.join("snapshots/3.sha256"), 0);
    assert_eq!(whole(3), Some(2));
    flip(&blob_path(&backup, &bytes(2, 100_000)), 0);
    assert_eq!((whole(3), whole(2)), (Some(1), Some(1)));
    // A restore offers it only where nothing else can be had; never another store's.
    let offered = |snapshot, skip_damaged| {
        let options = RestoreOptions { snapshot: Some(snapshot), skip_damaged, ..RestoreOptions::default() };
        match ModelCache::restore(&backup, &dir.path().join("new"), &options) {
            Err(Error::BackupDamaged { snapshot: named, is_partly_sound, whole_snapshot, .. }) if named == snapshot => {
                (is_partly_sound, whole_snapshot)
            }
            other => panic!("{other:?}"),
        }
    };
    assert_eq!((offered(2, false), offered(3, false), offered(3, true)), ((true, None), (false, Some(1)), (false, Some(1))));
    let other = local(&dir.path().join("other"));
    import(&other, "me/b", "y", &bytes(4, 100_000));
    back_up(&other, &backup, 9);
    assert_eq!((whole(2), whole(4)), (Some(1), None));
    flip(&blob_path(&backup, &bytes(1, 100_000)), 0);
    assert_eq!((whole(2), whole(1), offered(1, true)), (None, None, (false, None)));
    assert_eq!(whole(3), Some(4), "whose the damaged one was is not known");
    let replaces = |name: &str| {
        let options = RestoreOptions { snapshot: Some(3), replace: true, ..RestoreOptions::default() };
        ModelCache::restore(&backup, &dir.path().join(name), &options).unwrap_err()
    };
    drop((cache, other));
    assert!(matches!(replaces("store"), Error::BackupDamaged { whole_snapshot: None, .. }));
    assert!(matches!(replaces("other"), Error::BackupDamaged { whole_snapshot: Some(4), .. }));
}

#[test]
fn an_empty_store_and_another_one_take_nothing_from_a_backup() {
    let dir = tempfile::tempdir().unwrap();
    let backup = dir.path().join("backup");
    let (right, wrong, empty) = ["right", "wrong", "empty"].map(|name| local(&dir.path().join(name))).into();
    import(&right, "me/a", "x", &bytes(1, 100_000));
    import(&wrong, "me/b", "y", &bytes(2, 100_000));
    let good = files(&right);
    assert_eq!((back_up(&empty, &backup, 1).snapshot, back_up(&right, &backup, 1).dropped_snapshots), (1, vec![1]));
    let error = empty.backup(&backup, &BackupOptions { keep: 1, ..BackupOptions::default() }).unwrap_err();
    assert!(matches!(error, Error::EmptyStore { snapshot: 2, files: 1, .. }), "{error:?}");
    assert_eq!(names(&backup.join("snapshots")), ["2.json", "2.sha256"]);
    // Nor by being backed up again and again, by each build, whatever else the two have in common.
    import(&wrong, "me/a", "x", &bytes(1, 100_000));
    for n in 3..6 {
        let report = back_up(&wrong, &backup, 1);
        let dropped = if n == 3 { vec![] } else { vec![n - 1] };
        assert_eq!((report.another_store, report.other_snapshots, report.dropped_snapshots), (n == 3, vec![2], dropped));
        assert!(restored(&backup, Some(2)) == good);
    }
    // The right one again drops its own alone.
    let report = back_up(&right, &backup, 1);
    assert_eq!((report.another_store, report.other_snapshots, report.dropped_snapshots), (true, vec![5], vec![2]));
    assert_eq!(check(&backup, Some(5)).unwrap().bad, []);
    // Told so, it drops the others', and what only they need.
    let options = BackupOptions { keep: 1, drop_others: true, ..BackupOptions::default() };
    let report = right.backup(&backup, &options).unwrap();
    assert_eq!((report.other_snapshots, report.dropped_snapshots, report.dropped_bytes), (vec![], vec![5, 6], 100_000));
    assert!(restored(&backup, None) == good);
}

#[test]
fn a_store_that_was_restored_goes_on_with_the_snapshots_of_the_one_it_was_made_of() {
    let dir = tempfile::tempdir().unwrap();
    let (store, backup, copy) = (dir.path().join("store"), dir.path().join("backup"), dir.path().join("copy"));
    let cache = local(&store);
    import(&cache, "me/a", "x", &bytes(1, 100_000));
    back_up(&cache, &backup, 1);
    restore(&backup, &copy, None).unwrap();
    let cache = local(&copy);
    // All of it new: kept once more, as of any store, and no other store's.
    cache.delete_model("me/a").unwrap();
    import(&cache, "me/b", "y", &bytes(2, 100_000));
    for (dropped, all_is_new) in [(vec![], true), (vec![1, 2], false)] {
        let report = back_up(&cache, &backup, 1);
        assert_eq!((report.other_snapshots, report.dropped_snapshots, report.another_store), (vec![], dropped, all_is_new));
    }
}

#[test]
fn a_store_is_replaced_by_another_ones_snapshot_only_where_that_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let (backup, one) = (dir.path().join("backup"), dir.path().join("one"));
    let [here, other, strange] = ["one", "other", "strange"].map(|name| local(&dir.path().join(name)));
    import(&here, "me/a", "x", &bytes(1, 100_000));
    import(&other, "me/b", "y", &bytes(2, 100_000));
    import(&strange, "me/c", "z", &bytes(3, 100_000));
    back_up(&here, &backup, 9);
    back_up(&here, &backup, 9);
    back_up(&other, &backup, 9);
    back_up(&strange, &dir.path().join("elsewhere"), 9);
    let (own, others) = (files(&here), files(&other));
    drop((here, other, strange));
    let replace = |name: &str, snapshot| {
        let options = RestoreOptions { replace: true, snapshot, ..RestoreOptions::default() };
        ModelCache::restore(&backup, &dir.path().join(name), &options)
    };
    let error = replace("one", None).unwrap_err();
    assert!(matches!(error, Error::AnotherStore { snapshot: 3, own: Some(2), .. }), "{error:?}");
    assert_eq!(error.kind(), ErrorKind::Usage);
    let error = replace("strange", None).unwrap_err();
    assert!(matches!(error, Error::AnotherStore { snapshot: 3, own: None, .. }), "{error:?}");
    assert_eq!(names(dir.path()), ["backup", "elsewhere", "one", "other", "strange"], "nothing else is left");
    assert!(files(&local(&one)) == own);
    assert_eq!(replace("other", None).unwrap().snapshot, 3);
    assert_eq!(replace("one", Some(3)).unwrap().snapshot, 3);
    assert!(files(&local(&one)) == others);
    // It is the other now. One that was never backed up has no id, one whose records can't be read has none that is known.
    assert_eq!(replace("one", None).unwrap().snapshot, 3);
    import(&local(&dir.path().join("new")), "me/d", "w", &bytes(4, 10));
    assert_eq!(replace("new", None).unwrap().snapshot, 3);
    fs::write(dir.path().join("strange/model_cache_manifests/mdbx.dat"), vec![7; 100_000]).unwrap();
    assert_eq!(replace("strange", None).unwrap().snapshot, 3);
    assert!(files(&local(&dir.path().join("strange"))) == others);
}

/// Writes a snapshot's document as builds that knew no ids of stores did.
fn without_store_id(backup: &Path, number: u64) {
    let (document, sums) = (backup.join(format!("snapshots/{number}.json")), backup.join(format!("snapshots/{number}.sha256")));
    let text = fs::read_to_string(&document).unwrap();
    let lines: Vec<_> = text.lines().filter(|line| !line.starts_with("  \"store\": ")).collect();
    assert_eq!(lines.len() + 1, text.lines().count());
    fs::write(&document, lines.join("\n") + "\n").unwrap();
    let rest = fs::read_to_string(&sums).unwrap().split_once('\n').unwrap().1.to_owned();
    let own = sha256sum(&document).replace("sha256:", "");
    fs::write(&sums, format!("{own}  snapshots/{number}.json\n{rest}")).unwrap();
}

#[test]
fn a_backup_of_a_build_that_knew_no_ids_of_stores_is_read_and_its_snapshots_go_where_they_share_content() {
    let dir = tempfile::tempdir().unwrap();
    let backup = dir.path().join("backup");
    let [right, wrong] = ["right", "wrong"].map(|name| local(&dir.path().join(name)));
    import(&right, "me/a", "x", &bytes(1, 100_000));
    import(&wrong, "me/b", "y", &bytes(2, 100_000));
    let good = files(&right);
    back_up(&right, &backup, 1);
    without_store_id(&backup, 1);
    assert_eq!(check(&backup, None).unwrap().bad, []);
    for _ in 0..2 {
        assert_eq!(back_up(&wrong, &backup, 1).other_snapshots, [1]);
        assert!(restored(&backup, Some(1)) == good);
    }
    import(&right, "me/a", "more", &bytes(3, 100_000));
    let report = back_up(&right, &backup, 1);
    assert_eq!((report.other_snapshots, report.dropped_snapshots), (vec![3], vec![1]));
}

#[test]
fn damage_anywhere_in_a_backup_is_found_before_a_store_is_touched() {
    let dir = tempfile::tempdir().unwrap();
    let (store, backup, old) = (dir.path().join("store"), dir.path().join("backup"), dir.path().join("old"));
    let (large, small) = (bytes(1, 6 * MIB), bytes(2, 2000));
    let cache = local(&store);
    import(&cache, "me/a", "large", &large);
    import(&cache, "me/a", "small", &small);
    back_up(&cache, &backup, 2);
    import(&local(&old), "me/old", "here", b"as it was");
    let (blob, little) = (blob_path(&backup, &large), blob_path(&backup, &small));
    let (document, sums) = (backup.join("snapshots/1.json"), backup.join("snapshots/1.sha256"));
    fs::write(dir.path().join("elsewhere"), &large).unwrap();
    let link = |from: &Path| {
        fs::remove_file(from).unwrap();
        std::os::unix::fs::symlink(dir.path().join("elsewhere"), from).unwrap();
    };
    let damages: [(&str, &dyn Fn()); 9] = [
        ("blobs/sha256", &|| flip(&blob, 0)),
        ("blobs/sha256", &|| flip(&blob, 6 * MIB - 1)),
        ("blobs/sha256", &|| flip(&little, 1000)),
        ("blobs/sha256", &|| File::options().write(true).open(&blob).unwrap().set_len(6 * MIB - 1).unwrap()),
        ("blobs/sha256", &|| fs::remove_file(&little).unwrap()),
        // It has the right bytes, and is not in the backup.
        ("blobs/sha256", &|| link(&blob)),
        ("snapshots/1.json", &|| flip(&document, fs::metadata(&document).unwrap().len() / 2)),
        ("snapshots/1.json", &|| flip(&sums, 3)),
        ("snapshots/1.sha256", &|| flip(&sums, fs::metadata(&sums).unwrap().len() - 80)),
    ];
    for (n, (told, damage)) in damages.into_iter().enumerate() {
        let whole = dir.path().join("whole");
        assert!(Command::new("cp").arg("-r").args([&backup, &whole]).status().unwrap().success());
        damage();
        let bad = check(&backup, None).unwrap().bad;
        assert!(bad.len() == 1 && bad[0].file.starts_with(told), "damage {n}: {bad:?}");
        assert_eq!(bad[0].names.is_empty(), told.starts_with("snapshots"), "damage {n}: {bad:?}");
        let options = RestoreOptions { replace: true, ..RestoreOptions::default() };
        for target in [&old, &dir.path().join("new")] {
            let error = ModelCache::restore(&backup, target, &options).unwrap_err();
            assert!(
                matches!(error, Error::BackupDamaged { count: 1, .. }) && error.kind() == ErrorKind::Integrity,
                "damage {n}: {error:?}"
            );
        }
        assert!(!dir.path().join("new").exists() && !dir.path().join("old.restoring").exists());
        fs::remove_dir_all(&backup).unwrap();
        fs::rename(&whole, &backup).unwrap();
    }
    let here = local(&old);
    assert_eq!(files(&here).values().next().unwrap(), b"as it was");
    assert!(restored(&backup, None) == files(&cache));
}

#[test]
fn a_snapshot_whose_own_files_are_damaged_keeps_its_content_and_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let backup = dir.path().join("backup");
    let cache = local(&dir.path().join("store"));
    import(&cache, "me/a", "gone", &bytes(1, 100_000));
    back_up(&cache, &backup, 1);
    cache.delete_model("me/a").unwrap();
    import(&cache, "me/a", "new", &bytes(2, 100_000));
    flip(&backup.join("snapshots/1.json"), 40);
    let report = back_up(&cache, &backup, 1);
    assert_eq!((report.damaged_snapshots, report.dropped_snapshots, report.dropped_bytes), (vec![1], vec![], 0));
    assert!(blob_path(&backup, &bytes(1, 100_000)).exists());
    assert!(restored(&backup, None) == files(&cache));
    // Taken away by hand, it is in the way of nothing.
    fs::remove_file(backup.join("snapshots/1.json")).unwrap();
    assert_eq!(back_up(&cache, &backup, 1).dropped_bytes, 100_000);
}

#[test]
fn a_snapshot_with_the_last_of_all_numbers_is_told_and_nothing_is_changed() {
    let dir = tempfile::tempdir().unwrap();
    let backup = dir.path().join("backup");
    let cache = local(&dir.path().join("store"));
    import(&cache, "me/a", "x", &bytes(1, 100_000));
    back_up(&cache, &backup, 1);
    import(&cache, "me/a", "y", &bytes(2, 100_000));
    let last = backup.join("snapshots/18446744073709551615.json");
    fs::write(&last, "{}").unwrap();
    fs::write(backup.join("snapshots/9.sha256"), "of none").unwrap();
    let before = [names(&backup.join("snapshots")), names(&backup.join("blobs"))];
    let refused = refusal(cache.backup(&backup, &BackupOptions::default()));
    assert!(refused.starts_with("Usage") && refused.contains("snapshots/18446744073709551615.json"), "{refused}");
    assert_eq!([names(&backup.join("snapshots")), names(&backup.join("blobs"))], before);
    fs::remove_file(last).unwrap();
    assert_eq!(back_up(&cache, &backup, 1).snapshot, 2);
}

// -- ends that come early ------------------------------------------------------------------------------------------

#[test]
fn a_backup_that_was_cancelled_is_none_and_the_next_one_copies_only_the_rest() {
    const SIZE: u64 = 25 * MIB;
    let dir = tempfile::tempdir().unwrap();
    let backup = dir.path().join("backup");
    let cache = local(&dir.path().join("store"));
    import(&cache, "me/a", "large", &bytes(1, SIZE));
    let cancel = CancellationToken::new();
    let stop = cancel.clone();
    let progress: ProgressCallback = Arc::new(move |_, total| {
        assert_eq!(total, SIZE);
        stop.cancel();
    });
    let options = BackupOptions { progress: Some(progress), cancel: Some(cancel), ..BackupOptions::default() };
    assert!(matches!(cache.backup(&backup, &options), Err(Error::Cancelled)));
    assert!(matches!(check(&backup, None), Err(Error::NoBackup { .. })));
    // With more of it done.
    let orders = ["backup", dir.path().join("store").to_str().unwrap(), backup.to_str().unwrap(), "2"].map(str::to_owned);
    let mut child = start_with(&orders.each_ref().map(String::as_str), &[("MODEL_CACHE_FAIL_AT", "backup.block_copied:2")]);
    assert!(!child.end().success());
    assert!(matches!(check(&backup, None), Err(Error::NoBackup { .. })));
    let part = blob_path(&backup, &bytes(1, SIZE)).with_extension("part");
    let kept = fs::metadata(&part).unwrap().len();
    assert!(kept > 0 && kept < SIZE, "{kept} bytes were kept");
    // A block that did not reach the disk is found out.
    flip(&part, 0);
    let report = back_up(&cache, &backup, 2);
    assert_eq!((report.snapshot, report.copied_bytes), (1, SIZE - kept + 5 * MIB));
    assert!(restored(&backup, None) == files(&cache));
}

/// The fail points that a run of `orders` passes, in order.
fn points(orders: &[&str], prefix: &str) -> Vec<String> {
    let trace = tempfile::NamedTempFile::new().unwrap();
    let mut child = start_with(orders, &[("MODEL_CACHE_FAIL_TRACE", trace.path().to_str().unwrap())]);
    child.hear("OK");
    assert!(child.end().success());
    let points = fs::read_to_string(trace.path()).unwrap();
    points.lines().filter(|point| point.starts_with(prefix)).map(str::to_owned).collect()
}

fn copy(from: &Path, to: &Path) {
    let _ = fs::remove_dir_all(to);
    assert!(Command::new("cp").args(["-r", "--sparse=always"]).args([from, to]).status().unwrap().success());
}

/// A store at two moments, and a backup of the first.
struct TwoMoments {
    dir: tempfile::TempDir,
    first: Files,
    second: Files,
}

impl TwoMoments {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let cache = local(&dir.path().join("store"));
        for (path, seed, size) in [("gone", 1, 100_000), ("stays", 2, 6 * MIB), ("small-gone", 3, 10), ("small-stays", 4, 20)] {
            import(&cache, "me/a", path, &bytes(seed, size));
        }
        let first = files(&cache);
        back_up(&cache, &dir.path().join("first"), 1);
        for path in ["gone", "small-gone"] {
            cache.delete_file("me/a", path).unwrap();
        }
        import(&cache, "me/b", "new", &bytes(5, 11 * MIB));
        import(&cache, "me/b", "small-new", &bytes(6, 30));
        let second = files(&cache);
        Self { dir, first, second }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}

#[test]
fn a_backup_killed_at_any_step_leaves_a_whole_snapshot_and_the_next_one_ends_well() {
    let moments = TwoMoments::new();
    let (store, backup) = (moments.path("store"), moments.path("backup"));
    let orders = ["backup", store.to_str().unwrap(), backup.to_str().unwrap(), "1"];
    let begin = || copy(&moments.path("first"), &backup);
    begin();
    let points = points(&orders, "backup.");
    assert!(points.len() >= 12, "{points:?}");
    let (mut olds, mut news) = (0, 0);
    for point in &points {
        begin();
        let mut child = start_with(&orders, &[("MODEL_CACHE_FAIL_AT", point)]);
        assert!(!child.end().success(), "{point} was not reached");
        let checked = check(&backup, None).unwrap();
        assert_eq!(checked.bad, [], "{point}");
        let now = restored(&backup, None);
        olds += u32::from(now == moments.first);
        news += u32::from(now == moments.second);
        assert!(now == moments.first || now == moments.second, "{point}: neither the old nor the new");
        let cache = local(&store);
        let report = back_up(&cache, &backup, 1);
        assert_eq!(cache.stats().unwrap().doomed_bytes, 0);
        drop(cache);
        assert!(restored(&backup, None) == moments.second, "{point}");
        let left = [names(&backup), names(&backup.join("snapshots"))].concat();
        let snapshot = report.snapshot;
        let expected =
            ["blobs", "lock", "model-cache-backup", "snapshots", &format!("{snapshot}.json"), &format!("{snapshot}.sha256")];
        assert_eq!(left, expected, "{point}");
        assert_eq!(names(&backup.join("blobs")).len(), moments.second.len(), "{point}");
    }
    assert!(olds > 0 && news > 0, "{olds} old, {news} new");
    // The very first backup: there is none, or it is whole.
    for point in points.iter().filter(|point| !point.contains("drop")) {
        let _ = fs::remove_dir_all(&backup);
        assert!(!start_with(&orders, &[("MODEL_CACHE_FAIL_AT", point)]).end().success(), "{point}");
        match check(&backup, None) {
            Err(Error::NoBackup { .. }) => assert!(restore(&backup, &moments.path("none"), None).is_err()),
            checked => assert_eq!(checked.unwrap().bad, [], "{point}"),
        }
        back_up(&local(&store), &backup, 1);
        assert_eq!(check(&backup, None).unwrap().bad, [], "{point}");
    }
}

#[test]
fn a_restore_killed_at_any_step_leaves_the_old_store_or_the_new_one_and_the_next_one_ends_well() {
    let moments = TwoMoments::new();
    let (backup, target) = (moments.path("first"), moments.path("target"));
    let orders = ["restore", backup.to_str().unwrap(), target.to_str().unwrap()];
    let begin = || copy(&moments.path("store"), &target);
    begin();
    let points = points(&orders, "restore.");
    assert!(points.len() >= 9, "{points:?}");
    let (mut olds, mut news) = (0, 0);
    for point in &points {
        for replacing in [true, false] {
            let _ = fs::remove_dir_all(&target);
            if replacing {
                begin();
            }
            assert!(!start_with(&orders, &[("MODEL_CACHE_FAIL_AT", point)]).end().success(), "{point} was not reached");
            if target.exists() {
                let cache = local(&target);
                let now = files(&cache);
                assert_sound(&cache);
                olds += u32::from(now == moments.second);
                news += u32::from(now == moments.first);
                assert!(now == moments.first || replacing && now == moments.second, "{point}: neither the old nor the new");
            } else {
                assert!(!replacing, "{point}: the old store is gone");
            }
            let mut child = start(&orders);
            child.hear("OK");
            assert!(child.end().success());
            let cache = local(&target);
            assert!(files(&cache) == moments.first, "{point}");
            assert_sound(&cache);
            assert_eq!(names(moments.dir.path()), ["first", "store", "target"], "{point}");
        }
    }
    assert!(olds > 0 && news > 0, "{olds} old, {news} new");
}

#[test]
fn a_restore_that_was_cancelled_leaves_nothing_behind() {
    let moments = TwoMoments::new();
    let cancel = CancellationToken::new();
    let stop = cancel.clone();
    let total = 2 * moments.first.values().map(|bytes| bytes.len() as u64).sum::<u64>();
    // In the second half: after all was checked.
    let progress: ProgressCallback = Arc::new(move |bytes, all| {
        assert_eq!(all, total);
        if bytes >= all / 2 {
            stop.cancel();
        }
    });
    let options = RestoreOptions { replace: true, progress: Some(progress), cancel: Some(cancel), ..RestoreOptions::default() };
    let ended = ModelCache::restore(&moments.path("first"), &moments.path("store"), &options);
    // Progress is told ten times a second at most: it may have been done by then.
    let expected = match ended {
        Err(Error::Cancelled) => &moments.second,
        other => {
            other.unwrap();
            &moments.first
        }
    };
    assert!(files(&local(&moments.path("store"))) == *expected);
    assert_eq!(names(moments.dir.path()), ["first", "store"]);
}

// -- refusals ------------------------------------------------------------------------------------------------------

fn refusal<T: std::fmt::Debug>(result: Result<T>) -> String {
    let error = result.unwrap_err();
    format!("{:?}: {error}", error.kind())
}

#[test]
fn a_backup_is_not_made_where_it_would_be_in_the_way() {
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("outer/store");
    let cache = local(&store);
    import(&cache, "me/a", "x", b"x");
    let to = |path: &Path| refusal(cache.backup(path, &BackupOptions::default()));
    assert!(to(&store.join("backup")).contains("lies in the store itself"));
    assert!(to(&store).contains("lies in the store itself"));
    assert!(to(&dir.path().join("outer")).contains("the store") && to(&dir.path().join("outer")).contains("lies in it"));
    fs::write(dir.path().join("file"), "mine").unwrap();
    assert!(to(&dir.path().join("file")).starts_with("Usage"));
    let diary = dir.path().join("diary");
    fs::create_dir(&diary).unwrap();
    fs::write(diary.join("monday"), "rain").unwrap();
    assert!(to(&diary).contains("has files and is no backup"));
    assert_eq!(names(&diary), ["monday"], "nothing was written there");
    let backup = dir.path().join("backup");
    back_up(&cache, &backup, 2);
    fs::write(backup.join("model-cache-backup"), "model-cache backup, format 9\n").unwrap();
    for refused in [to(&backup), refusal(check(&backup, None)), refusal(restore(&backup, &dir.path().join("new"), None))] {
        assert!(refused.contains("has format 9; this program reads format 1"), "{refused}");
    }
    fs::write(backup.join("model-cache-backup"), "dear diary\n").unwrap();
    assert!(to(&backup).contains("dear diary"));
    fs::remove_dir_all(&backup).unwrap();
    back_up(&cache, &backup, 2);
    fs::rename(backup.join("blobs"), dir.path().join("blobs")).unwrap();
    std::os::unix::fs::symlink(dir.path().join("blobs"), backup.join("blobs")).unwrap();
    for refused in [to(&backup), refusal(check(&backup, None)), refusal(restore(&backup, &dir.path().join("new"), None))] {
        assert!(refused.contains("blobs is not a folder of its own"), "{refused}");
    }
    let none = BackupOptions { keep: 0, ..BackupOptions::default() };
    assert!(refusal(cache.backup(&dir.path().join("zero"), &none)).starts_with("Usage"));
}

#[test]
fn a_restore_takes_nothing_from_who_has_a_store_or_other_files_there() {
    let moments = TwoMoments::new();
    let (backup, store) = (moments.path("first"), moments.path("store"));
    assert!(refusal(restore(&backup, &store, None)).contains("there is a store"));
    let replace = RestoreOptions { replace: true, ..RestoreOptions::default() };
    let replaced = |store: &Path| ModelCache::restore(&backup, store, &replace);
    {
        let _open = local(&store);
        let error = replaced(&store).unwrap_err();
        assert!(matches!(&error, Error::StoreInUse { processes, .. } if *processes == [std::process::id()]), "{error}");
    }
    {
        let mut reader = start(&["read", store.to_str().unwrap(), "me/b", "new"]);
        reader.hear("READS");
        let error = replaced(&store).unwrap_err();
        assert!(matches!(&error, Error::StoreInUse { processes, .. } if *processes == [reader.id()]), "{error}");
        reader.end();
    }
    assert!(files(&local(&store)) == moments.second);
    fs::create_dir(moments.path("diary")).unwrap();
    fs::write(moments.path("diary/monday"), "rain").unwrap();
    assert!(refusal(replaced(&moments.path("diary"))).contains("has files and is no store"));
    assert!(refusal(replaced(&moments.path("diary/monday"))).contains("not a folder"));
    assert!(refusal(replaced(&backup.join("new"))).contains("lies in the backup"));
    let error = restore(&backup, &moments.path("new"), Some(7)).unwrap_err();
    assert!(matches!(&error, Error::NoSnapshot { snapshot: 7, there, .. } if *there == [1]) && error.is_not_found(), "{error:?}");
    assert!(error.to_string().ends_with("has no snapshot 7, but 1"), "{error}");
    // No store lies in another.
    fs::create_dir(store.join("empty")).unwrap();
    for inner in ["empty", "new", "new/deep", "model_cache_chunks/new", "no/../new"] {
        assert!(refusal(restore(&backup, &store.join(inner), None)).contains("it lies in the store"), "{inner}");
    }
    fs::remove_dir(store.join("empty")).unwrap();
    assert!(refusal(restore(&moments.path("nothing"), &moments.path("new"), None)).starts_with("NotFound"));
    assert!(refusal(restore(&store, &moments.path("new"), None)).starts_with("NotFound"));
    // What lies in a store's folder and is not its own would go with it.
    fs::write(store.join("notes.txt"), "mine").unwrap();
    drop(local(&store.join("inner")));
    fs::write(store.join("model_cache_chunks/list"), "mine").unwrap();
    let error = replaced(&store).unwrap_err();
    assert!(
        matches!(&error, Error::OthersInStore { others, .. } if *others == ["inner/", "model_cache_chunks/list", "notes.txt"]),
        "{error:?}"
    );
    assert!(error.to_string().ends_with("go with it: inner/, model_cache_chunks/list, notes.txt"), "{error}");
    assert!(files(&local(&store)) == moments.second && store.join("inner/leases").exists());
    fs::remove_dir_all(store.join("inner")).unwrap();
    fs::remove_file(store.join("model_cache_chunks/list")).unwrap();
    fs::remove_file(store.join("notes.txt")).unwrap();
    // Somebody's folder that happens to have the name of ours.
    fs::create_dir(moments.path("store.restoring")).unwrap();
    fs::write(moments.path("store.restoring/monday"), "rain").unwrap();
    assert!(refusal(replaced(&store)).contains("is in the way"));
    fs::remove_dir_all(moments.path("store.restoring")).unwrap();
    fs::write(moments.path("store.restoring"), "mine").unwrap();
    let refused = refusal(replaced(&store));
    assert!(refused.starts_with("Usage") && refused.contains("store.restoring is in the way: it is not a folder"), "{refused}");
    assert_eq!(fs::read(moments.path("store.restoring")).unwrap(), b"mine");
    fs::remove_file(moments.path("store.restoring")).unwrap();
    assert_eq!(names(moments.dir.path()), ["diary", "first", "store"]);
    // An empty folder is as good as none; a link to a store is followed.
    fs::create_dir(moments.path("empty")).unwrap();
    restore(&backup, &moments.path("empty"), None).unwrap();
    assert!(files(&local(&moments.path("empty"))) == moments.first);
    std::os::unix::fs::symlink(&store, moments.path("link")).unwrap();
    assert!(replaced(&moments.path("link")).unwrap().replaced);
    assert!(fs::symlink_metadata(moments.path("link")).unwrap().is_symlink());
    assert!(files(&local(&store)) == moments.first);
}

/// Mode, owner and group of each file and folder of a store.
fn whose(store: &Path) -> BTreeMap<String, (u32, u32, u32)> {
    let folders = ["", "model_cache_chunks", "model_cache_manifests"];
    let listed =
        folders.iter().flat_map(|folder| names(&store.join(folder)).into_iter().map(move |name| format!("{folder}/{name}")));
    let all = listed.chain([String::new()]);
    all.map(|name| {
        let there = fs::symlink_metadata(store.join(name.trim_start_matches('/'))).unwrap();
        (name, (there.mode() & 0o7777, there.uid(), there.gid()))
    })
    .collect()
}

#[test]
fn a_restored_store_is_for_whom_the_folder_was_that_it_takes_the_place_of() {
    let moments = TwoMoments::new();
    let (backup, store, empty, fresh) =
        (moments.path("first"), moments.path("store"), moments.path("empty"), moments.path("fresh"));
    let (own, group) = (fs::metadata(&store).unwrap().uid(), fs::metadata(&store).unwrap().gid());
    // Who is not root can't give files away.
    let someone = if is_root() { (4321, 1234) } else { (own, group) };
    let replace = RestoreOptions { replace: true, ..RestoreOptions::default() };
    restore(&backup, &fresh, None).unwrap();
    assert_eq!(whose(&fresh)[""], (0o700, own, group));
    for mode in [0o2770, 0o770, 0o700, 0o750] {
        let begin = |folder: &Path| {
            std::os::unix::fs::chown(folder, Some(someone.0), Some(someone.1)).unwrap();
            fs::set_permissions(folder, fs::Permissions::from_mode(mode)).unwrap();
        };
        let _ = fs::remove_dir_all(&empty);
        fs::create_dir(&empty).unwrap();
        begin(&empty);
        begin(&store);
        restore(&backup, &empty, None).unwrap();
        ModelCache::restore(&backup, &store, &replace).unwrap();
        for restored in [&empty, &store] {
            let inner = if mode & 0o020 == 0 { 0o700 } else { mode };
            for (name, (found, uid, gid)) in whose(restored) {
                assert_eq!((uid, gid), someone, "{mode:o} {name}");
                let expected = match name.as_str() {
                    "" => mode,
                    "/model_cache_chunks" | "/model_cache_manifests" => inner,
                    _ => inner & 0o660,
                };
                assert_eq!(found, expected, "{mode:o} {name}: {found:o}");
            }
            assert_eq!(whose(restored).len(), 9, "{:?}", whose(restored));
            assert!(files(&local(restored)) == moments.first);
        }
    }
}

#[test]
fn one_backup_at_a_time_and_none_is_read_while_it_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let backup = dir.path().join("backup");
    let cache = local(&dir.path().join("store"));
    import(&cache, "me/a", "x", &bytes(1, 100_000));
    let (again, path) = (cache.clone(), backup.clone());
    let asked = Arc::new(Mutex::new(Vec::new()));
    let heard = Arc::clone(&asked);
    let progress: ProgressCallback = Arc::new(move |_, _| {
        let second = refusal(again.backup(&path, &BackupOptions::default()));
        heard.lock().unwrap().extend([
            second,
            refusal(check(&path, None)),
            refusal(restore(&path, &path.with_file_name("new"), None)),
        ]);
    });
    cache.backup(&backup, &BackupOptions { progress: Some(progress), ..BackupOptions::default() }).unwrap();
    let asked = asked.lock().unwrap();
    assert!(asked.len() >= 3 && asked.iter().all(|refused| refused.contains("another backup or restore is at it")), "{asked:?}");
    back_up(&cache, &backup, 2);
}

#[test]
fn a_backup_that_can_only_be_read_is_read() {
    let mounts = "mount -t tmpfs -o size=200m none \"$DIR\"";
    let Some(dir) = in_mount_namespace("a_backup_that_can_only_be_read_is_read", mounts) else { return };
    let (backup, store) = (dir.join("backup"), tempfile::tempdir().unwrap());
    let cache = local(&store.path().join("store"));
    import(&cache, "me/a", "x", &bytes(1, 100_000));
    back_up(&cache, &backup, 2);
    assert!(Command::new("mount").args(["-o", "remount,ro"]).arg(&dir).status().unwrap().success());
    assert_eq!(check(&backup, None).unwrap().bad, []);
    assert!(restored(&backup, None) == files(&cache));
    assert_eq!(cache.backup(&backup, &BackupOptions::default()).unwrap_err().kind(), ErrorKind::Other);
}

#[test]
fn a_full_disk_is_told_with_numbers_and_takes_nothing_from_the_snapshot_before() {
    const NAME: &str = "a_full_disk_is_told_with_numbers_and_takes_nothing_from_the_snapshot_before";
    let Some(dir) = in_mount_namespace(NAME, "mount -t tmpfs -o size=40m none \"$DIR\"") else { return };
    let (backup, store) = (dir.join("backup"), tempfile::tempdir().unwrap());
    let cache = local(&store.path().join("store"));
    import(&cache, "me/a", "x", &bytes(1, 6 * MIB));
    back_up(&cache, &backup, 2);
    let before = files(&cache);
    let full = |error: Error, needed: u64| match error {
        Error::TargetFull { needed_bytes, free_bytes, .. } => {
            assert!(needed_bytes >= needed && free_bytes < needed_bytes, "{needed_bytes} needed, {free_bytes} free");
        }
        other => panic!("{other:?}"),
    };
    import(&cache, "me/a", "more", &bytes(2, 35 * MIB));
    full(cache.backup(&backup, &BackupOptions::default()).unwrap_err(), 35 * MIB);
    assert_eq!(names(&backup.join("blobs")).len(), 1, "told before anything was copied");
    // Another program takes the room while it is copied.
    cache.delete_file("me/a", "more").unwrap();
    import(&cache, "me/a", "more", &bytes(3, 26 * MIB));
    let thief = dir.join("thief");
    let steals = thief.clone();
    let progress: ProgressCallback = Arc::new(move |_, _| {
        if !steals.exists() {
            fs::write(&steals, vec![1; 20 << 20]).unwrap();
        }
    });
    let options = BackupOptions { progress: Some(progress), ..BackupOptions::default() };
    let error = cache.backup(&backup, &options).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoSpace);
    full(error, 5 * MIB);
    let checked = check(&backup, None).unwrap();
    assert_eq!((checked.snapshot, checked.bad), (1, vec![]));
    assert!(restored(&backup, None) == before);
    // Room made, it goes on from what it has.
    fs::remove_file(thief).unwrap();
    let report = back_up(&cache, &backup, 2);
    assert!(report.copied_bytes < 26 * MIB, "{report:?}");
    assert!(restored(&backup, None) == files(&cache));
    // And a restore without the room for it makes nothing.
    let error = restore(&backup, &dir.join("restored"), None).unwrap_err();
    assert!(
        matches!(error, Error::TargetFull { needed_bytes, free_bytes, .. } if needed_bytes > 32 * MIB && free_bytes < 32 * MIB),
        "{error:?}"
    );
    assert!(error.hint().unwrap().contains(dir.join("restored").to_str().unwrap()), "the disk that is full");
    assert_eq!(names(&dir), ["backup"]);
}
