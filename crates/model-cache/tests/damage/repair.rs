//! What is damaged is mended: from what is sound of it, and from the Hub only the rest; and whatever ends that leaves things no worse.

use super::{TABLES, bytes, common::*, flip, flips::everything};
use hub_fixture::{Content, Fault, Hub, Repo, Target};
use std::{
    fs,
    path::{Path, PathBuf},
};
use storage::{StorageRegistry, Table};
use tabagent_model_cache::*;

const LARGE: u64 = CHUNK_BYTES + 7 * MIB;

/// A Hub's repo, pulled: two chunks of `large.bin`, `middle.bin`, `small.json`; and an import of the same sizes.
struct Shop {
    hub: Hub,
    dir: tempfile::TempDir,
    runtime: tokio::runtime::Runtime,
}

impl Shop {
    fn new() -> Self {
        let repo = Repo::new(REPO).file("large.bin", Content::seeded(1, LARGE)).file("middle.bin", Content::seeded(2, 6 * MIB));
        let hub = Hub::start(vec![repo.file("small.json", Content::seeded(3, 2_000))]);
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let shop = Self { hub, dir: tempfile::tempdir().unwrap(), runtime };
        let cache = shop.cache();
        shop.runtime.block_on(cache.pull(REPO).all(true).run()).unwrap();
        let sources = shop.dir.path().join("sources");
        fs::create_dir(&sources).unwrap();
        fs::write(sources.join("mine.bin"), bytes(4, 6 * MIB)).unwrap();
        fs::write(sources.join("mine.json"), bytes(5, 2_000)).unwrap();
        cache.import("org/local", &[sources], &ImportOptions::default()).unwrap();
        shop
    }

    fn store(&self) -> PathBuf {
        self.dir.path().join("store")
    }

    fn cache(&self) -> ModelCache {
        cache(&self.store(), &self.hub)
    }

    fn repair(&self, cache: &ModelCache) -> RepairReport {
        self.runtime.block_on(cache.repair(None).run()).unwrap()
    }

    /// Flips a bit of a file's block, or, 40 bytes into it, of the header of its chunk.
    fn damage(&self, repo: &str, path: &str, at: u64) {
        let file = self.cache().open_file(repo, path).unwrap();
        let place = file.placement().unwrap().offset_of(at..at + 1).unwrap();
        flip(&self.store().join("model_cache_chunks/mdbx.dat"), place);
    }

    fn damage_header(&self, repo: &str, path: &str, chunk: u64) {
        let file = self.cache().open_file(repo, path).unwrap();
        let at = chunk * CHUNK_BYTES;
        let place = file.placement().unwrap().offset_of(at..at + 1).unwrap();
        flip(&self.store().join("model_cache_chunks/mdbx.dat"), place - (64 << 10) + 80);
    }

    /// Puts garbage in the place of a record: the only one of `table` whose key begins with `prefix`.
    fn garble(&self, table: &'static str, prefix: &str) {
        let records =
            StorageRegistry::new(self.dir.path()).records(&self.store().join("model_cache_manifests"), &TABLES).unwrap();
        let table: Table<[u8]> = Table::new(table);
        let found = records.begin_read().unwrap().scan_bytes(&table, prefix).unwrap();
        assert_eq!(found.len(), 1, "{prefix}");
        let (key, mut value) = found.into_iter().next().unwrap();
        let middle = value.len() / 2;
        value[middle] ^= 4;
        let txn = records.begin_write().unwrap();
        txn.put_bytes(&table, &key, &value).unwrap();
        txn.commit().unwrap();
    }

    /// Gives the bytes of a small file another key, as a flipped bit in it does.
    fn misname(&self, key: &str, to: &str) {
        let records =
            StorageRegistry::new(self.dir.path()).records(&self.store().join("model_cache_manifests"), &TABLES).unwrap();
        let table: Table<[u8]> = Table::new("chunks");
        let txn = records.begin_write().unwrap();
        let value = txn.get_bytes(&table, key).unwrap().unwrap();
        txn.delete(&table, key).unwrap();
        txn.put_bytes(&table, to, &value).unwrap();
        txn.commit().unwrap();
    }

    fn blob_key(&self, repo: &str, path: &str) -> String {
        format!("blob:{}", self.cache().open_file(repo, path).unwrap().digest())
    }

    /// That everything is here, right, and takes no more room than it should.
    fn assert_whole(&self, cache: &ModelCache) {
        assert!(holds(cache, REPO, "large.bin", &Content::seeded(1, LARGE)));
        assert!(holds(cache, REPO, "middle.bin", &Content::seeded(2, 6 * MIB)));
        assert!(holds(cache, REPO, "small.json", &Content::seeded(3, 2_000)));
        assert!(holds(cache, "org/local", "mine.bin", &Content::seeded(4, 6 * MIB)));
        assert!(holds(cache, "org/local", "mine.json", &Content::seeded(5, 2_000)));
        let report = cache.verify(None, &[], &VerifyOptions { digest: true, ..VerifyOptions::default() }).unwrap();
        assert!(report.is_sound(), "{report:?}");
        cache.gc().unwrap();
        assert_sound(cache);
        let stats = cache.stats().unwrap();
        assert_eq!((stats.files, stats.live_bytes), (5, LARGE + 12 * MIB + 4_000), "{stats:?}");
    }
}

fn outcomes(report: &RepairReport) -> Vec<(&str, &RepairOutcome)> {
    report.damaged.iter().map(|file| (file.path.as_str(), &file.outcome)).collect()
}

#[test]
fn only_damaged_blocks_are_fetched_again_and_a_reader_keeps_what_it_has() {
    let shop = Shop::new();
    for at in [3, 7 * MIB, 7 * MIB + 1, CHUNK_BYTES + 2] {
        shop.damage(REPO, "large.bin", at);
    }
    let cache = shop.cache();
    let reader = cache.open_file(REPO, "large.bin").unwrap();
    let before = crc(&reader);
    let served = shop.hub.bytes_served();
    let report = shop.repair(&cache);
    assert_eq!(outcomes(&report), [("large.bin", &RepairOutcome::Repaired)], "{report:?}");
    // Two flips are in one block.
    assert_eq!((report.damaged[0].blocks, report.damaged[0].fetch_bytes), (3, 3 * BLOCK));
    let fetched = shop.hub.bytes_served() - served;
    assert!((3 * BLOCK..3 * BLOCK + MIB).contains(&fetched), "{fetched} bytes served for three blocks");
    assert!(holds(&cache, REPO, "large.bin", &Content::seeded(1, LARGE)));
    assert_eq!(crc(&reader), before, "what a reader has mapped does not change under it");
    assert!(cache.stats().unwrap().doomed_bytes > 0);
    drop(reader);
    assert_eq!(cache.stats().unwrap().doomed_bytes, 0, "the last reader frees the damaged content");
    shop.assert_whole(&cache);
    assert_eq!(outcomes(&shop.repair(&cache)), []);
}

#[test]
fn what_the_store_can_tell_itself_is_mended_without_the_network() {
    let shop = Shop::new();
    for (repo, path, chunk) in [(REPO, "large.bin", 1), ("org/local", "mine.bin", 0)] {
        shop.damage_header(repo, path, chunk);
        let cache = local(&shop.store());
        let bad = cache.verify(None, &[], &VerifyOptions::default()).unwrap().bad;
        assert!(bad.len() == 1 && u64::from(bad[0].chunk) == chunk && bad[0].reason.contains("header"), "{bad:?}");
        let report = shop.repair(&cache);
        assert_eq!(outcomes(&report), [(path, &RepairOutcome::Repaired)], "{report:?}");
        assert_eq!((report.fetched_bytes, report.damaged[0].blocks), (0, 0));
        shop.assert_whole(&cache);
    }
    let commit = shop.hub.commit(REPO, "main").unwrap();
    let rows = [(REPO, "large.bin"), (REPO, "small.json"), ("org/local", "mine.bin"), ("org/local", "mine.json")];
    let rows = rows.map(|(repo, path)| ("blobs", shop.blob_key(repo, path)));
    let names = ["large.bin", "small.json"].map(|path| ("metadata", format!("meta:{REPO}@{commit}:{path}")));
    let others = [("metadata", "meta:org/local:mine.bin".to_owned()), ("refs", "ref:org/model:main".to_owned())];
    for (table, key) in rows.into_iter().chain(names).chain(others) {
        shop.garble(table, &key);
        let cache = local(&shop.store());
        let report = cache.verify(None, &[], &VerifyOptions::default()).unwrap();
        assert!(report.bad_records.iter().any(|bad| bad.what == key), "{key}: {report:?}");
        let report = shop.repair(&cache);
        assert!(report.damaged.iter().all(|file| file.outcome == RepairOutcome::Repaired), "{key}: {report:?}");
        assert!(!report.damaged.is_empty() || report.records.iter().any(|record| record.what == key), "{key}: {report:?}");
        shop.assert_whole(&cache);
    }
}

#[test]
fn records_nothing_else_tells_of_come_from_the_hub() {
    let shop = Shop::new();
    let commit = shop.hub.commit(REPO, "main").unwrap();
    let cache = shop.cache();
    for path in ["middle.bin", "small.json"] {
        let row = shop.blob_key(REPO, path);
        shop.garble("metadata", &format!("meta:{REPO}@{commit}:{path}"));
        shop.garble("blobs", &row);
        let report = shop.repair(&cache);
        assert_eq!(outcomes(&report), [(path, &RepairOutcome::Repaired)], "{report:?}");
        shop.assert_whole(&cache);
    }
    shop.garble("manifests", "manifest:");
    assert!(cache.local_manifest(REPO).is_err());
    let report = shop.repair(&cache);
    assert!(report.records[0].how.contains("asked for at the Hub"), "{report:?}");
    assert_eq!(cache.local_manifest(REPO).unwrap().unwrap().files.len(), 3);
    shop.assert_whole(&cache);
    // The bytes of a small file.
    shop.garble("chunks", "file:org/model");
    assert!(cache.get_file(REPO, "small.json").is_err());
    let report = shop.repair(&cache);
    assert_eq!(outcomes(&report), [("small.json", &RepairOutcome::Repaired)], "{report:?}");
    assert_eq!(report.fetched_bytes, 2_000);
    shop.assert_whole(&cache);
}

/// What a child does.
pub(crate) fn repair(store: &Path, endpoint: &str) -> Result<String> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let report = runtime.block_on(builder(store, endpoint).open()?.repair(None).run())?;
    Ok(report.fetched_bytes.to_string())
}

#[test]
fn a_repair_that_cannot_be_done_says_why_and_changes_nothing() {
    let shop = Shop::new();
    shop.damage(REPO, "large.bin", 6 * MIB);
    shop.damage("org/local", "mine.bin", 6 * MIB - 1);
    let import = local(&shop.store()).open_file("org/local", "mine.bin").unwrap().digest().to_owned();
    let before = everything(&shop.store());
    let dry = shop.runtime.block_on(shop.cache().repair(None).dry_run(true).run()).unwrap();
    for file in &dry.damaged {
        // Of an import nobody can give it back but its owner.
        let is_imported = file.path == "mine.bin";
        let expected = match &file.outcome {
            RepairOutcome::WouldRepair => !is_imported,
            RepairOutcome::Failed { message, .. } => is_imported && message.contains(&import),
            _ => false,
        };
        assert!(expected && file.blocks == 1, "{dry:?}");
    }
    assert_eq!(dry.damaged.iter().map(|file| file.fetch_bytes).sum::<u64>(), 5 * MIB + MIB);
    assert!(everything(&shop.store()) == before, "a dry run changes nothing");

    let failed = |cache: &ModelCache, path: &str| {
        let report = shop.repair(cache);
        let file = report.damaged.into_iter().find(|file| file.path == path).unwrap();
        match file.outcome {
            RepairOutcome::Failed { kind, message } => (kind, message),
            other => panic!("{path}: {other:?}"),
        }
    };
    let (kind, message) = failed(&local(&shop.store()), "large.bin");
    assert_eq!(kind, ErrorKind::Network, "{message}");
    let (kind, message) = failed(&shop.cache(), "mine.bin");
    assert!(kind == ErrorKind::Integrity && message.contains(&import) && message.contains("import"), "{message}");
    // The Hub's large.bin was mended by that; damaged again, the Hub has other bytes now, or none.
    shop.damage(REPO, "large.bin", 6 * MIB);
    let wrong = shop.hub.faults().always(Target::path("large.bin").cdn(), Fault::CorruptBytes { offset: 6 * MIB + 9, len: 1 });
    let (kind, message) = failed(&shop.cache(), "large.bin");
    assert!(kind == ErrorKind::Integrity && shop.hub.faults().fired(wrong) > 0, "{message}");
    shop.hub.faults().remove(wrong);
    assert!(shop.hub.remove(REPO));
    let (kind, message) = failed(&shop.cache(), "large.bin");
    assert_eq!(kind, ErrorKind::NotFound, "{message}");
    let cache = shop.cache();
    let bad = cache.verify(None, &[], &VerifyOptions::default()).unwrap();
    assert_eq!((bad.bad.len(), bad.bad_records.len()), (2, 0), "{bad:?}");
    cache.gc().unwrap();
    let stats = cache.stats().unwrap();
    assert_eq!((stats.doomed_bytes, stats.filling_bytes, stats.live_bytes), (0, 0, LARGE + 12 * MIB + 4_000), "{stats:?}");
}

#[test]
fn an_import_of_the_original_mends_damaged_content_under_all_its_names() {
    let shop = Shop::new();
    let originals = ["mine.bin", "mine.json", "large.bin"].map(|name| shop.dir.path().join("sources").join(name));
    fs::write(&originals[2], bytes(1, LARGE)).unwrap();
    let import = |cache: &ModelCache, repo: &str, files: &[PathBuf]| {
        let report = cache.import(repo, files, &ImportOptions::default()).unwrap();
        (report.mended_files, report.here_bytes)
    };
    shop.damage("org/local", "mine.bin", 6 * MIB - 1);
    shop.damage(REPO, "large.bin", CHUNK_BYTES + 2);
    shop.garble("chunks", "file:org/local:mine.json");
    let cache = local(&shop.store());
    let report = shop.repair(&cache);
    assert!(report.damaged.len() == 3 && report.damaged.iter().all(|file| file.outcome != RepairOutcome::Repaired), "{report:?}");
    let reader = cache.open_file("org/local", "mine.bin").unwrap();
    let before = crc(&reader);
    assert_eq!(import(&cache, "org/twin", &originals), (3, 0));
    assert_eq!(crc(&reader), before, "what a reader has mapped does not change under it");
    drop(reader);
    assert_eq!(import(&cache, "org/twin", &originals), (0, LARGE + 6 * MIB + 2_000));
    assert!(holds(&cache, "org/twin", "mine.bin", &Content::seeded(4, 6 * MIB)));
    cache.delete_model("org/twin").unwrap();
    assert_eq!(cache.stats().unwrap().doomed_bytes, 0);
    shop.assert_whole(&cache);
    // Rows, headers and names too; and content no name leads to any more, as long as somebody reads it.
    for path in ["mine.bin", "mine.json"] {
        let original = [shop.dir.path().join("sources").join(path)];
        shop.garble("blobs", &shop.blob_key("org/local", path));
        assert_eq!(import(&cache, "org/local", &original).0, 1, "{path}");
        shop.assert_whole(&cache);
        shop.garble("metadata", &format!("meta:org/local:{path}"));
        assert_eq!(import(&cache, "org/local", &original).0, 0, "{path}");
        shop.assert_whole(&cache);
    }
    shop.damage_header("org/local", "mine.bin", 0);
    assert_eq!(import(&cache, "org/local", &originals[..1]), (1, 0));
    shop.assert_whole(&cache);
    let reader = cache.open_file("org/local", "mine.bin").unwrap();
    shop.damage("org/local", "mine.bin", 3);
    cache.delete_file("org/local", "mine.bin").unwrap();
    assert_eq!(import(&cache, "org/local", &originals[..1]), (1, 0));
    drop(reader);
    shop.assert_whole(&cache);
}

#[test]
fn bytes_of_a_small_file_under_a_wrong_key_mend_it_and_go() {
    let shop = Shop::new();
    let (key, wrong) = ("file:org/local:mine.json:chunk:0", "file:org/local:mind.json:chunk:0");
    shop.misname(key, wrong);
    let cache = local(&shop.store());
    cache.gc().unwrap();
    let report = shop.repair(&cache);
    assert_eq!(outcomes(&report), [("mine.json", &RepairOutcome::Repaired)], "gc took what may be a file's: {report:?}");
    assert!(report.fetched_bytes == 0 && report.records.iter().any(|record| record.what == wrong), "{report:?}");
    shop.assert_whole(&cache);
    // Nobody's.
    for by_gc in [true, false] {
        let small = shop.dir.path().join("small");
        fs::write(&small, bytes(9, 900)).unwrap();
        cache.import("org/other", std::slice::from_ref(&small), &ImportOptions::default()).unwrap();
        shop.misname("file:org/other:small:chunk:0", wrong);
        cache.delete_model("org/other").unwrap();
        let report = cache.verify(None, &[], &VerifyOptions::default()).unwrap();
        assert!(report.bad_records.len() == 1 && report.bad_records[0].what == wrong, "{report:?}");
        if by_gc {
            assert_eq!(cache.gc().unwrap().freed_bytes, 900);
        } else {
            let report = shop.repair(&cache);
            assert!(report.damaged.is_empty() && report.records.len() == 1, "{report:?}");
        }
        shop.assert_whole(&cache);
    }
}

#[test]
fn a_read_that_checks_stops_at_the_damaged_block_and_gives_those_before_it() {
    use std::io::Read;
    let shop = Shop::new();
    shop.damage(REPO, "large.bin", 12 * MIB);
    let cache = shop.cache();
    let file = cache.open_file(REPO, "large.bin").unwrap();
    assert!(*file.checked(0..10 * MIB).unwrap() == file[..10 << 20]);
    let error = file.checked(9 * MIB..11 * MIB).unwrap_err();
    assert!(matches!(&error, Error::Damaged { reason, .. } if reason.contains("block 2")), "{error}");
    assert!(matches!(file.checked(3..LARGE + 1), Err(Error::InvalidRange { .. })));
    let mut read = Vec::new();
    let error = file.checked_reader().read_to_end(&mut read).unwrap_err();
    assert!(error.kind() == std::io::ErrorKind::InvalidData && read.len() as u64 == 10 * MIB, "{error}");
    assert_eq!(file.reader().read_to_end(&mut Vec::new()).unwrap() as u64, LARGE);
    drop(file);
    let checking = builder(&shop.store(), &shop.hub.endpoint()).check_reads(true).open().unwrap();
    assert!(matches!(checking.get_file(REPO, "large.bin"), Err(Error::Damaged { .. })));
    assert!(checking.get_file(REPO, "middle.bin").unwrap().is_some() && checking.get_file(REPO, "small.json").unwrap().is_some());
    let to = shop.dir.path().join("out");
    let check = ExportOptions { check: true, ..ExportOptions::default() };
    cache.export(REPO, &["middle.bin".to_owned()], &to.with_file_name("sound"), &check).unwrap();
    shop.damage(REPO, "middle.bin", 0);
    let report = cache.export(REPO, &[], &to, &check).unwrap();
    let left_out: Vec<_> =
        report.left_out.iter().map(|left| (left.path.as_deref().unwrap(), left.reason.contains("block "))).collect();
    assert_eq!(left_out, [("large.bin", true), ("middle.bin", true)], "every one of them is told");
    assert!(to.join("small.json").exists() && !to.join("large.bin").exists() && !to.join("middle.bin").exists());
    assert_eq!(report.paths.len() as u64, report.files);
    cache.export(REPO, &["large.bin".to_owned()], &to, &ExportOptions::default()).unwrap();
}

#[test]
fn one_damaged_record_keeps_nobody_from_the_others_and_loses_nothing() {
    for (table, path) in [("blobs", "large.bin"), ("metadata", "large.bin"), ("blobs", "small.json"), ("metadata", "small.json")]
    {
        let shop = Shop::new();
        let commit = shop.hub.commit(REPO, "main").unwrap();
        let key = if table == "blobs" { shop.blob_key(REPO, path) } else { format!("meta:{REPO}@{commit}:{path}") };
        shop.garble(table, &key);
        let cache = local(&shop.store());
        let repos = cache.list().unwrap();
        assert_eq!(repos.len(), 2);
        let here = repos.iter().find(|repo| repo.repo.as_str() == REPO).unwrap();
        assert_eq!((here.files, here.damaged_files), if table == "metadata" { (2, 1) } else { (3, 0) });
        assert_eq!(cache.stats().unwrap().damaged_records, 1);
        assert!(cache.files(REPO).is_ok() && cache.readable().is_ok());
        cache.gc().unwrap();
        assert!(cache.delete_file("org/local", "mine.bin").unwrap().freed_bytes > 0, "{key}");
        cache.import("org/local", &[shop.dir.path().join("sources")], &ImportOptions::default()).unwrap();
        // Nothing of it was taken for nobody's.
        let report = shop.repair(&cache);
        assert!(report.damaged.iter().all(|file| file.outcome == RepairOutcome::Repaired), "{key}: {report:?}");
        shop.assert_whole(&cache);
        shop.garble(table, &if table == "blobs" { shop.blob_key(REPO, path) } else { key });
        // And what can't be read can be removed.
        cache.delete_model(REPO).unwrap();
        cache.gc().unwrap();
        let stats = cache.stats().unwrap();
        assert_eq!((stats.damaged_records, stats.live_bytes), (0, 6 * MIB + 2_000), "{table} {path}: {stats:?}");
        assert!(stats.disk_bytes < stats.live_bytes + 64 * MIB, "{table} {path}: {stats:?}");
        let report = cache.verify(None, &[], &VerifyOptions::default()).unwrap();
        assert!(report.is_sound(), "{table} {path}: {report:?}");
    }
}

/// Kills a repair at each fail point it passes: what was whole stays so, and the next repair does the rest.
#[cfg(feature = "fail-points")]
#[test]
fn a_repair_killed_at_any_of_its_steps_leaves_things_no_worse_and_the_next_one_finishes() {
    let shop = Shop::new();
    shop.damage(REPO, "large.bin", 6 * MIB);
    shop.damage_header("org/local", "mine.bin", 0);
    shop.garble("blobs", &shop.blob_key(REPO, "small.json"));
    let damaged = shop.dir.path().join("damaged");
    fs::rename(shop.store(), &damaged).unwrap();
    let store = shop.store();
    let trace = shop.dir.path().join("trace");
    let start_on_a_copy = |name: &str, value: &str| {
        let _ = fs::remove_dir_all(&store);
        let copied = std::process::Command::new("cp").args(["-r", "--sparse=always"]).args([&damaged, &store]).status().unwrap();
        assert!(copied.success());
        start_with(&["repair", store.to_str().unwrap(), &shop.hub.endpoint()], &[(name, value)])
    };
    let mut child = start_on_a_copy("MODEL_CACHE_FAIL_TRACE", trace.to_str().unwrap());
    child.hear("OK");
    assert!(child.end().success());
    let points: Vec<String> = fs::read_to_string(&trace).unwrap().lines().map(str::to_owned).collect();
    let own = points.iter().filter(|point| point.starts_with("repair.")).count();
    assert!(own >= 7, "{points:?}");
    for point in &points {
        let status = start_on_a_copy("MODEL_CACHE_FAIL_AT", point).end();
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(9), "{point}");
        let cache = shop.cache();
        assert!(holds(&cache, REPO, "middle.bin", &Content::seeded(2, 6 * MIB)), "{point}");
        let report = shop.repair(&cache);
        assert!(report.damaged.iter().all(|file| file.outcome == RepairOutcome::Repaired), "{point}: {report:?}");
        shop.assert_whole(&cache);
    }
    println!("killed at {} points, {own} of them repair's own", points.len());
}
