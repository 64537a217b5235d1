//! How an export gets its bytes, on file systems made for the purpose: blocks are shared where they can be, and it says so.
//!
//! Mounting needs root and the file system's mkfs; `scripts/setup` installs both where it may. Where one is missing, what can't
//! be run is said loudly, and the rest still is.

mod common;

use common::*;
use hub_fixture::Content;
use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
};
use tabagent_model_cache::*;

const DISK_BYTES: u64 = 1 << 30;
const DISK: &str = "MODEL_CACHE_TEST_DISK";
const FILES: [(&str, u64); 4] =
    [("config.json", 17), ("edge.bin", 100 * MIB), ("model.gguf", 101 * MIB + 4097), ("odd.bin", 70_001)];

fn total_bytes() -> u64 {
    FILES.iter().map(|(_, size)| size).sum()
}

/// A store in `folder` with [`FILES`] imported as `org/local`.
fn store(folder: &Path) -> ModelCache {
    let cache = local(&folder.join("store"));
    let source = folder.join("source");
    fs::create_dir_all(&source).unwrap();
    for (seed, (path, size)) in FILES.iter().enumerate() {
        fs::write(source.join(path), Content::seeded(seed as u64, *size).read(0..*size).unwrap()).unwrap();
    }
    cache.import("org/local", std::slice::from_ref(&source), &ImportOptions::default()).unwrap();
    fs::remove_dir_all(source).unwrap();
    cache
}

fn assert_holds_all(folder: &Path) {
    for (seed, (path, size)) in FILES.iter().enumerate() {
        let found = fs::read(folder.join(path)).unwrap();
        assert!(found.len() as u64 == *size && found == *Content::seeded(seed as u64, *size).read(0..*size).unwrap(), "{path}");
    }
}

#[test]
fn an_export_says_how_it_was_made() {
    let dir = tempfile::tempdir().unwrap();
    let cache = store(dir.path());
    let report = cache.export("org/local", &[], &dir.path().join("out"), &ExportOptions::default()).unwrap();
    let shares = report.method == Some(CopyMethod::Reflink);
    assert_eq!(report.shared_bytes, if shares { total_bytes() - 17 } else { 0 }, "{report:?}");
    assert!(report.method.is_some());
    assert_holds_all(&dir.path().join("out"));
    // Only small files: they are written.
    let small = cache.export("org/local", &["*.json".to_owned()], &dir.path().join("small"), &ExportOptions::default()).unwrap();
    assert_eq!((small.method, small.shared_bytes), (Some(CopyMethod::Copy), 0));
}

#[test]
fn xfs_shares_blocks_with_an_export() {
    on_a_disk_of("xfs", "xfs_shares_blocks_with_an_export", sharing);
}

#[test]
fn btrfs_shares_blocks_with_an_export() {
    on_a_disk_of("btrfs", "btrfs_shares_blocks_with_an_export", sharing);
}

#[test]
fn ext4_has_the_kernel_copy_an_export() {
    on_a_disk_of("ext4", "ext4_has_the_kernel_copy_an_export", |disk| {
        let cache = store(disk);
        let report = cache.export("org/local", &[], &disk.join("out"), &ExportOptions::default()).unwrap();
        assert_eq!((report.method, report.shared_bytes), (Some(CopyMethod::CopyFileRange), 0));
        assert_holds_all(&disk.join("out"));
    });
}

fn sharing(disk: &Path) {
    let cache = store(disk);
    let free_bytes = || {
        nix_sync(disk);
        storage::free_bytes(disk).unwrap()
    };
    let before = free_bytes();
    let report = cache.export("org/local", &[], &disk.join("out"), &ExportOptions::default()).unwrap();
    assert_eq!((report.method, report.shared_bytes), (Some(CopyMethod::Reflink), total_bytes() - 17), "{report:?}");
    assert_holds_all(&disk.join("out"));
    let taken = before.saturating_sub(free_bytes());
    assert!(taken < 16 * MIB, "an export of {} took {taken} B", total_bytes());
    // Nothing the store does afterwards reaches into it: not a removal, nor new content in the same pages.
    cache.delete_model("org/local").unwrap();
    fs::write(disk.join("other.bin"), Content::seeded(99, 150 * MIB).read(0..150 * MIB).unwrap()).unwrap();
    cache.import("org/other", &[disk.join("other.bin")], &ImportOptions::default()).unwrap();
    assert_holds_all(&disk.join("out"));
    assert!(holds(&cache, "org/other", "other.bin", &Content::seeded(99, 150 * MIB)));
    assert_sound(&cache);
    // And an export is a file like any other: writing into it leaves the store alone.
    cache.export("org/other", &[], &disk.join("changed"), &ExportOptions::default()).unwrap();
    let changed = File::options().write(true).open(disk.join("changed/other.bin")).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&changed, &[0xAB; 100_000], 5).unwrap();
    changed.sync_all().unwrap();
    assert_sound(&cache);
    // To another file system nothing can be shared, and nothing is said to be.
    let elsewhere = tempfile::tempdir().unwrap();
    let report = cache.export("org/other", &[], &elsewhere.path().join("out"), &ExportOptions::default()).unwrap();
    assert!(report.method > Some(CopyMethod::Reflink) && report.shared_bytes == 0, "{report:?}");
}

fn nix_sync(disk: &Path) {
    assert!(Command::new("sync").arg("--file-system").arg(disk).status().unwrap().success());
}

/// Runs `work` on a new file system of this kind, in a child with mounts of its own: whatever ends it, they go with it.
fn on_a_disk_of(kind: &str, test: &str, work: impl FnOnce(&Path)) {
    if let Some(disk) = std::env::var_os(DISK) {
        return work(&mount(Path::new(&disk), kind));
    }
    let not_here = |why: &str| println!("NOT RUN HERE: {test}: {why}");
    let Some(mkfs) = find_program(&format!("mkfs.{kind}")) else {
        return not_here(&format!("there is no mkfs.{kind}; as root: apt-get install xfsprogs btrfs-progs e2fsprogs"));
    };
    let unshare = || {
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private"]);
        command
    };
    if !unshare().arg("true").output().is_ok_and(|output| output.status.success()) {
        return not_here("mounting needs root");
    }
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("image");
    File::create(&image).unwrap().set_len(DISK_BYTES).unwrap();
    let made = Command::new(mkfs).arg("-q").arg(&image).output().unwrap();
    assert!(made.status.success(), "{made:?}");
    let mut command = unshare();
    command.arg(std::env::current_exe().unwrap()).args(["--exact", test, "--nocapture", "--test-threads=1"]);
    let output = command.env(DISK, folder.path()).output().unwrap();
    let (said, complained) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    if complained.contains("may not be mounted") {
        return not_here(&complained);
    }
    assert!(output.status.success() && said.contains("1 passed"), "{said}\n{complained}");
}

/// Mounts the image in `folder`.
fn mount(folder: &Path, kind: &str) -> PathBuf {
    let disk = folder.join("disk");
    fs::create_dir(&disk).unwrap();
    let mounted = Command::new("mount").args(["-t", kind, "-o", "loop"]).arg(folder.join("image")).arg(&disk).output().unwrap();
    assert!(mounted.status.success(), "{kind} may not be mounted: {}", String::from_utf8_lossy(&mounted.stderr));
    disk
}

/// A program, also where an ordinary user's PATH does not lead.
fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(["/usr/sbin", "/sbin", "/usr/local/sbin"].map(PathBuf::from));
    folders.map(|folder| folder.join(name)).find(|program| program.is_file())
}
