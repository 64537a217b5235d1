//! Real mounts: what programs see is what the store has, while it has it, and nothing is held for longer than it is used.
//!
//! Where this machine does not let us mount, each test says so, and holds the error to what it promises instead.

use hub_fixture::{Content, Hub, Repo};
use model_cache_mount::{Error, Mount, MountOptions, Unmounted};
use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{ErrorKind, Read},
    os::unix::fs::{FileExt, MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    time::{Duration, Instant},
};
use tabagent_model_cache::*;
use tempfile::TempDir;

const MIB: u64 = 1 << 20;
/// Three chunks, the last one odd.
const LARGE: u64 = 210 * MIB + 4_321;

/// A store, and a folder to mount it on.
struct Machine {
    dir: TempDir,
    cache: ModelCache,
}

impl Machine {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let cache = ModelCache::builder(dir.path().join("store")).offline(true).open().unwrap();
        Self { dir, cache }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn import(&self, repo: &str, files: &[(&str, u64, u64)]) {
        let source = self.path("source");
        for (path, seed, size) in files {
            let path = source.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes(*seed, *size)).unwrap();
        }
        self.cache.import(repo, std::slice::from_ref(&source), &ImportOptions::default()).unwrap();
        fs::remove_dir_all(source).unwrap();
    }

    fn mount(&self) -> Option<Mount> {
        self.mount_on("mnt", MountOptions::default())
    }

    fn mount_on(&self, name: &str, options: MountOptions) -> Option<Mount> {
        allowed(Mount::new(self.cache.clone(), &self.path(name), options))
    }

    /// Processes that hold a lease on any file.
    fn readers(&self) -> Vec<u32> {
        self.cache.list().unwrap().into_iter().flat_map(|repo| repo.readers).collect()
    }
}

/// The mount, or `None` where this machine allows none, and the error says so as it should.
fn allowed(mounted: Result<Mount, Error>) -> Option<Mount> {
    let error = match mounted {
        Ok(mount) => return Some(mount),
        Err(error) => error,
    };
    let may = nix::unistd::geteuid().is_root() && File::options().read(true).write(true).open("/dev/fuse").is_ok();
    let told = matches!(error, Error::NoFuse { .. } | Error::NoFusermount { .. } | Error::NotPermitted { .. });
    assert!(!may && told, "{error:?}");
    assert!(error.hint().unwrap().contains("model-cache export"), "{error:?}");
    println!("NOT RUN HERE, no mounts are allowed: {error}");
    None
}

fn bytes(seed: u64, size: u64) -> Vec<u8> {
    Content::seeded(seed, size).read(0..size).unwrap().to_vec()
}

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !done() {
        assert!(begun.elapsed() < Duration::from_secs(30), "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Every file below `folder`, its path and size.
fn files_below(folder: &Path) -> BTreeMap<String, u64> {
    let mut found = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(next).unwrap() {
            let entry = entry.unwrap();
            let metadata = entry.metadata().unwrap();
            assert_eq!(metadata.is_dir(), entry.file_type().unwrap().is_dir());
            if metadata.is_dir() {
                folders.push(entry.path());
            } else {
                found.insert(entry.path().strip_prefix(folder).unwrap().to_str().unwrap().to_owned(), metadata.len());
            }
        }
    }
    found
}

fn shell(command: &str, folder: &Path) -> Output {
    let output = Command::new("sh").args(["-ec", command]).current_dir(folder).output().unwrap();
    assert!(output.status.success(), "{command}: {output:?}");
    output
}

fn is_mounted(folder: &Path) -> bool {
    fs::read_to_string("/proc/self/mountinfo").unwrap().contains(folder.to_str().unwrap())
}

#[test]
fn the_tree_is_that_of_the_store_and_any_program_reads_it() {
    let machine = Machine::new();
    machine.import(
        "me/model",
        &[("config.json", 1, 17), ("empty", 2, 0), ("onnx/model.onnx", 3, 70_001), ("ü ☃/模型.bin", 4, 9 * MIB)],
    );
    machine.import("me/other", &[("a", 1, 17)]);
    machine.import("you/model", &[("deep/er/and/deeper.bin", 5, 100_000)]);
    let Some(mount) = machine.mount() else { return };
    let folder = machine.path("mnt");
    let mut expected = BTreeMap::new();
    for repo in machine.cache.list().unwrap() {
        for file in &machine.cache.files(repo.repo.as_str()).unwrap()[0].files {
            expected.insert(format!("{}/{}", repo.repo, file.path), file.size_bytes);
        }
    }
    assert_eq!(expected.len(), 6);
    assert_eq!(files_below(&folder), expected);
    assert_eq!((mount.files(), mount.size_bytes()), (6, expected.values().sum()));
    // Attributes.
    let file = fs::metadata(folder.join("me/model/onnx/model.onnx")).unwrap();
    assert_eq!((file.permissions().mode(), file.nlink(), file.uid()), (0o100_444, 1, nix::unistd::geteuid().as_raw()));
    assert!(file.modified().unwrap().elapsed().unwrap() < Duration::from_secs(600));
    let above = fs::metadata(folder.join("me/model")).unwrap();
    assert_eq!((above.permissions().mode(), above.nlink()), (0o40_555, 4));
    // The programs people use, and what they find.
    let listed = String::from_utf8(shell("ls -lR .", &folder).stdout).unwrap();
    assert!(listed.contains("模型.bin") && listed.contains("70001"), "{listed}");
    shell("df . && find . -type f | xargs -d '\\n' stat > /dev/null && du -s .", &folder);
    let copy = machine.path("copy");
    shell(&format!("cp -r . {} && diff -r . {0}", copy.display()), &folder);
    let sums = String::from_utf8(shell("sha256sum me/model/* 2>&1 || true", &folder).stdout).unwrap();
    for file in &machine.cache.files("me/model").unwrap()[0].files {
        let name = file.path.as_str();
        let plain = !name.contains('/');
        assert!(!plain || sums.contains(&format!("{}  me/model/{name}", file.digest.strip_prefix("sha256:").unwrap())), "{sums}");
    }
    // The digest comes along for nothing.
    let digest = xattr(&folder.join("me/model/config.json"));
    assert_eq!(digest.as_deref(), Some(machine.cache.get_file("me/model", "config.json").unwrap().unwrap().digest()));
    for missing in ["nobody", "me/none", "me/model/none.bin", "me/model/config.json/x", "me/model@main/config.json"] {
        assert!(fs::metadata(folder.join(missing)).is_err(), "{missing}");
    }
    assert_eq!(mount.unmounter().unmount().unwrap(), Unmounted::Gone);
    mount.wait().unwrap();
    assert!(!is_mounted(&folder) && fs::read_dir(&folder).unwrap().next().is_none());
}

/// The digest a file carries, by Python, which every machine of ours has.
fn xattr(path: &Path) -> Option<String> {
    let script = "import os, sys; print(os.getxattr(sys.argv[1], 'user.model_cache.digest').decode(), os.listxattr(sys.argv[1]))";
    let output = Command::new("python3").args(["-c", script]).arg(path).output().ok()?;
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(said.contains("['user.model_cache.digest']"), "{said}");
    said.split(' ').next().map(str::to_owned)
}

#[test]
fn bytes_are_those_of_the_store_at_any_place_read_or_mapped() {
    let machine = Machine::new();
    machine.import("me/model", &[("large.gguf", 7, LARGE), ("small.json", 8, 1000)]);
    let Some(mount) = machine.mount() else { return };
    let expected = bytes(7, LARGE);
    let file = File::open(machine.path("mnt/me/model/large.gguf")).unwrap();
    let edges = [0, CHUNK_BYTES - 3, CHUNK_BYTES, 2 * CHUNK_BYTES - 70_000, LARGE - 5, LARGE, LARGE + 10];
    let mut places: Vec<_> = edges.iter().flat_map(|start| [(*start, 6_u64), (*start, 200_000)]).collect();
    let mut number = 12345_u64;
    for _ in 0..60 {
        number = number.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        places.push(((number >> 20) % LARGE, (number >> 50) % (3 * MIB)));
    }
    for (start, size) in places {
        let range = start.min(LARGE) as usize..(start + size).min(LARGE) as usize;
        let mut read = Vec::new();
        let mut buffer = vec![0; size as usize];
        while read.len() < range.len() {
            let count = file.read_at(&mut buffer, start + read.len() as u64).unwrap();
            assert!(count > 0, "{start} {size}");
            read.extend_from_slice(&buffer[..count.min(range.len() - read.len())]);
        }
        assert!(read == expected[range], "{start} {size}");
        assert_eq!(file.read_at(&mut buffer, LARGE).unwrap(), 0);
    }
    let mut all = Vec::new();
    File::open(machine.path("mnt/me/model/large.gguf")).unwrap().read_to_end(&mut all).unwrap();
    assert!(all == expected);
    mapped(&machine.path("mnt/me/model/large.gguf"), &expected);
    mapped(&machine.path("mnt/me/model/small.json"), &bytes(8, 1000));
    drop(file);
    assert_eq!(mount.unmounter().unmount().unwrap(), Unmounted::Gone);
}

/// Maps a file in another process, as loaders do: our own must not wait for itself.
fn mapped(path: &Path, expected: &[u8]) {
    let script = "import mmap, sys, hashlib\n\
        with open(sys.argv[1], 'rb') as f: m = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ)\n\
        print(hashlib.sha256(m).hexdigest())";
    let output = Command::new("python3").args(["-c", script]).arg(path).output().unwrap();
    let mut hasher = Hasher::sha256();
    hasher.update(expected);
    let digest = hasher.finish().to_string();
    assert_eq!(String::from_utf8(output.stdout).unwrap().trim(), digest.strip_prefix("sha256:").unwrap(), "{}", path.display());
}

#[test]
fn a_lease_is_held_for_open_files_only() {
    let machine = Machine::new();
    machine.import("me/model", &[("model.gguf", 1, 3 * MIB), ("other.gguf", 2, 3 * MIB)]);
    let Some(mount) = machine.mount() else { return };
    let folder = machine.path("mnt/me/model");
    files_below(&folder);
    assert!(machine.readers().is_empty());
    let first = File::open(folder.join("model.gguf")).unwrap();
    let second = first.try_clone().unwrap();
    assert_eq!(machine.readers(), [std::process::id()]);
    drop(first);
    assert_eq!(machine.readers(), [std::process::id()]);
    drop(second);
    // The kernel tells of a close a little later.
    until("the lease is given back", || machine.readers().is_empty());
    drop(mount);
    assert!(!is_mounted(&machine.path("mnt")));
}

#[test]
fn a_file_removed_while_it_is_open_keeps_its_bytes_and_then_gives_its_space_back() {
    let machine = Machine::new();
    machine.import("me/model", &[("model.gguf", 1, 30 * MIB), ("config.json", 2, 10)]);
    let Some(mount) = machine.mount() else { return };
    let path = machine.path("mnt/me/model/model.gguf");
    let file = File::open(&path).unwrap();
    let removed = machine.cache.delete_file("me/model", "model.gguf").unwrap();
    assert_eq!((removed.freed_bytes, removed.busy_bytes), (0, 30 * MIB));
    until("the name is gone", || !path.exists());
    assert_eq!(File::open(&path).unwrap_err().kind(), ErrorKind::NotFound);
    let expected = bytes(1, 30 * MIB);
    let mut read = vec![0; expected.len()];
    file.read_exact_at(&mut read, 0).unwrap();
    assert!(read == expected && file.metadata().unwrap().len() == 30 * MIB);
    assert_eq!(machine.cache.stats().unwrap().doomed_bytes, 30 * MIB);
    drop(file);
    until("the space is given back", || machine.cache.stats().unwrap().doomed_bytes == 0);
    assert!(machine.cache.stats().unwrap().disk_bytes < 20 * MIB);
    drop(mount);
}

#[test]
fn what_comes_and_changes_while_it_is_mounted_shows_within_a_second_or_so() {
    let machine = Machine::new();
    machine.import("me/model", &[("model.gguf", 1, MIB)]);
    let Some(mount) = machine.mount() else { return };
    let folder = machine.path("mnt");
    assert_eq!(fs::read(folder.join("me/model/model.gguf")).unwrap(), bytes(1, MIB));
    let old = File::open(folder.join("me/model/model.gguf")).unwrap();
    machine.import("me/model", &[("model.gguf", 2, 2 * MIB)]);
    machine.import("new/one", &[("a/b.bin", 3, 100_000)]);
    // Never the old size with the new bytes: another content is another inode.
    until("the new content shows", || {
        let bytes_now = fs::read(folder.join("me/model/model.gguf")).unwrap();
        assert!(bytes_now == bytes(1, MIB) || bytes_now == bytes(2, 2 * MIB));
        bytes_now.len() as u64 == 2 * MIB
    });
    until("the new repo shows", || fs::read(folder.join("new/one/a/b.bin")).is_ok_and(|read| read == bytes(3, 100_000)));
    let mut read = vec![0; MIB as usize];
    old.read_exact_at(&mut read, 0).unwrap();
    assert!(read == bytes(1, MIB));
    drop(old);
    drop(mount);
}

#[test]
fn a_damaged_file_does_not_open_and_others_do() {
    let machine = Machine::new();
    machine.import("me/model", &[("damaged.gguf", 1, MIB), ("whole.gguf", 2, MIB)]);
    let placed = machine.cache.get_file("me/model", "damaged.gguf").unwrap().unwrap().placement().unwrap();
    // The chunk's header, which says whose it is, lies 64 KiB before its data, behind libmdbx's own.
    let header = placed.offset_of(0..1).unwrap() - (64 << 10) + 64;
    let data = File::options().write(true).open(placed.data_file()).unwrap();
    data.write_all_at(&[0; 64], header).unwrap();
    let Some(mount) = machine.mount() else { return };
    let folder = machine.path("mnt/me/model");
    let error = File::open(folder.join("damaged.gguf")).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(nix::errno::Errno::EIO as i32), "{error}");
    assert!(fs::read(folder.join("whole.gguf")).unwrap() == bytes(2, MIB));
    drop(mount);
}

#[test]
fn many_readers_at_once_get_their_own_bytes() {
    let machine = Machine::new();
    let files: Vec<_> = (0..8).map(|n| (format!("{n}.bin"), n, 5 * MIB + n)).collect();
    let named: Vec<_> = files.iter().map(|(name, seed, size)| (name.as_str(), *seed, *size)).collect();
    machine.import("me/model", &named);
    let Some(mount) = machine.mount() else { return };
    let folder = machine.path("mnt/me/model");
    std::thread::scope(|scope| {
        for (name, seed, size) in files.iter().chain(&files) {
            let path = folder.join(name);
            scope.spawn(move || {
                for _ in 0..3 {
                    assert!(fs::read(&path).unwrap() == bytes(*seed, *size));
                    assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 8);
                }
            });
        }
    });
    until("every lease is given back", || machine.readers().is_empty());
    drop(mount);
}

#[test]
fn nothing_can_be_written() {
    let machine = Machine::new();
    machine.import("me/model", &[("model.gguf", 1, MIB)]);
    let Some(mount) = machine.mount() else { return };
    let folder = machine.path("mnt/me/model");
    let file = folder.join("model.gguf");
    let refused = [
        File::create(folder.join("new")).map(drop),
        File::options().write(true).open(&file).map(drop),
        File::options().append(true).open(&file).map(drop),
        fs::remove_file(&file),
        fs::rename(&file, folder.join("renamed")),
        fs::create_dir(folder.join("dir")),
        fs::remove_dir(&folder),
        fs::hard_link(&file, folder.join("link")),
        std::os::unix::fs::symlink(&file, folder.join("link")),
        fs::set_permissions(&file, fs::Permissions::from_mode(0o777)),
    ];
    for (n, result) in refused.into_iter().enumerate() {
        assert_eq!(result.unwrap_err().kind(), ErrorKind::ReadOnlyFilesystem, "{n}");
    }
    assert!(fs::read(&file).unwrap() == bytes(1, MIB));
    drop(mount);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repo_shows_the_commit_local_reads_go_to_and_others_by_their_commit() {
    let hub = Hub::start(vec![Repo::new("org/model").file("config.json", "old").file("model.gguf", Content::seeded(1, MIB))]);
    let dir = tempfile::tempdir().unwrap();
    let cache = ModelCache::builder(dir.path().join("store")).endpoint(hub.endpoint()).offline(false).open().unwrap();
    cache.pull("org/model").all(true).run().await.unwrap();
    let old = hub.commit("org/model", "main").unwrap();
    let folder = dir.path().join("mnt");
    let options = MountOptions { repos: vec!["org/model".parse().unwrap()], allow_other: false };
    let Some(mount) = allowed(Mount::new(cache.clone(), &folder, MountOptions::default())) else { return };
    let Some(only) = allowed(Mount::new(cache.clone(), &dir.path().join("only"), options)) else { return };
    let listed = |folder: &Path| files_below(folder).into_keys().collect::<Vec<_>>();
    assert_eq!(listed(&folder), ["org/model/config.json", "org/model/model.gguf"]);
    // The current commit is not listed a second time, but is there.
    let by_commit = folder.join(format!("org/model@{old}/config.json"));
    assert_eq!(fs::read(&by_commit).unwrap(), b"old");
    hub.push("org/model", "main", [hub_fixture::File::new("config.json", "new!")]);
    cache.pull("org/model").all(true).run().await.unwrap();
    until("the new commit shows", || fs::read(folder.join("org/model/config.json")).unwrap() == b"new!");
    let expected = ["org/model/config.json", "org/model/model.gguf"].map(str::to_owned);
    let others = ["config.json", "model.gguf"].map(|name| format!("org/model@{old}/{name}"));
    until("the old commit is listed", || listed(&folder) == [expected.clone(), others.clone()].concat());
    assert_eq!(fs::read(&by_commit).unwrap(), b"old");
    assert_eq!(listed(&dir.path().join("only")), expected);
    assert!(!dir.path().join(format!("only/org/model@{old}")).exists());
    drop((mount, only));
    // What is not there can't be shown.
    let options = MountOptions { repos: vec!["org/none".parse().unwrap()], allow_other: false };
    let error = Mount::new(cache, &dir.path().join("none"), options).unwrap_err();
    assert_eq!(error.kind(), tabagent_model_cache::ErrorKind::NotFound);
    assert!(!dir.path().join("none").exists());
}

#[test]
fn a_folder_that_cannot_be_mounted_on_is_told_by_what_is_wrong_with_it() {
    let machine = Machine::new();
    machine.import("me/model", &[("a", 1, 10)]);
    let mount = |name: &str| Mount::new(machine.cache.clone(), &machine.path(name), MountOptions::default());
    fs::write(machine.path("file"), "x").unwrap();
    fs::create_dir(machine.path("full")).unwrap();
    fs::write(machine.path("full/x"), "x").unwrap();
    assert!(matches!(mount("file"), Err(Error::NotAFolder { path }) if path == machine.path("file")));
    assert!(matches!(mount("file/below"), Err(Error::NotAFolder { .. })));
    let error = mount("full").unwrap_err();
    assert!(matches!(&error, Error::NotEmpty { path } if *path == machine.path("full")), "{error:?}");
    assert_eq!(error.kind(), tabagent_model_cache::ErrorKind::Usage);
    for within in ["store", "store/model_cache_chunks", "store/new"] {
        assert!(matches!(mount(within), Err(Error::InStore { .. })), "{within}");
    }
    assert!(!machine.path("store/new").exists());
    // Made where missing, and gone again where it came to nothing.
    let Some(first) = allowed(mount("new/mnt")) else { return assert!(!machine.path("new/mnt").exists()) };
    let error = mount("new/mnt").unwrap_err();
    assert!(matches!(&error, Error::AlreadyMounted { source_name, .. } if source_name == "model-cache"), "{error:?}");
    assert!(error.hint().unwrap().contains("umount "), "{error:?}");
    // Two mounts of one store get along.
    let second = mount("second").unwrap();
    for name in ["new/mnt", "second"] {
        assert_eq!(fs::read(machine.path(name).join("me/model/a")).unwrap(), bytes(1, 10));
    }
    drop(first);
    assert_eq!(fs::read(machine.path("second/me/model/a")).unwrap(), bytes(1, 10));
    // Through a link, and with a name mount tables escape.
    let odd = machine.path("o d\\d");
    fs::create_dir(&odd).unwrap();
    std::os::unix::fs::symlink(&odd, machine.path("link")).unwrap();
    let third = mount("link").unwrap();
    assert_eq!(third.folder(), odd);
    assert!(matches!(mount("link"), Err(Error::AlreadyMounted { .. })));
    drop((second, third));
}

#[test]
fn a_mount_in_use_is_taken_out_of_the_tree_and_served_until_it_is_let_go() {
    let machine = Machine::new();
    machine.import("me/model", &[("model.gguf", 1, 20 * MIB)]);
    let Some(mount) = machine.mount() else { return };
    let folder = machine.path("mnt");
    let mut holder = Command::new("sh")
        .args(["-c", "exec 3< mnt/me/model/model.gguf; echo open; read line; cat <&3 | sha256sum"])
        .current_dir(machine.dir.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut out = holder.stdout.take().unwrap();
    out.read_exact(&mut [0; 5]).unwrap();
    let Unmounted::InUse(holders) = mount.unmounter().unmount().unwrap() else { panic!("it was in use") };
    assert_eq!(holders.iter().map(|holder| (holder.process, holder.name.as_str())).collect::<Vec<_>>(), [(holder.id(), "sh")]);
    assert!(!is_mounted(&folder) && fs::read_dir(&folder).unwrap().next().is_none());
    assert_eq!(machine.readers(), [std::process::id()]);
    drop(holder.stdin.take());
    let mut said = String::new();
    out.read_to_string(&mut said).unwrap();
    let mut hasher = Hasher::sha256();
    hasher.update(&bytes(1, 20 * MIB));
    assert!(hasher.finish().to_string().ends_with(said.split(' ').next().unwrap()), "{said}");
    holder.wait().unwrap();
    mount.wait().unwrap();
    assert!(machine.readers().is_empty());
}

#[test]
fn who_unmounts_it_from_outside_ends_it() {
    let machine = Machine::new();
    machine.import("me/model", &[("a", 1, 10)]);
    let Some(mount) = machine.mount() else { return };
    let unmounter = mount.unmounter();
    let folder = mount.folder().to_owned();
    let umount = std::thread::spawn(move || Command::new("umount").arg(folder).status().unwrap().success());
    mount.wait().unwrap();
    assert!(umount.join().unwrap());
    assert_eq!(unmounter.unmount().unwrap(), Unmounted::Gone);
}

#[tokio::test(flavor = "multi_thread")]
async fn names_that_only_look_special_and_revisions_with_slashes_are_paths_like_any_other() {
    let long = "n".repeat(255);
    let longer = "m".repeat(300);
    let names =
        ["...", "a@b", "a b%20:c", "refs/pr/1/x", "Upper", "ä", "a\u{308}", ".hidden/x", &long, &longer, "m/model.gguf@main"];
    let files = |seed: u64| names.iter().map(move |name| hub_fixture::File::new(*name, Content::seeded(seed, 70_000)));
    let hub =
        Hub::start(vec![Repo::new("org/m").branch("main", files(1)).pull_request(1, files(2)).branch("feature/x", files(3))]);
    let mut machine = Machine::new();
    machine.cache = ModelCache::builder(machine.path("hub-store")).endpoint(hub.endpoint()).open().unwrap();
    for repo in ["org/m", "org/m@refs/pr/1", "org/m@feature/x"] {
        machine.cache.pull(repo).all(true).run().await.unwrap();
    }
    let repos = ["org/m", "org/m@refs/pr/1", "org/m@feature/x"].map(|repo| repo.parse().unwrap()).to_vec();
    let Some(_mount) = machine.mount_on("mnt", MountOptions { repos, ..MountOptions::default() }) else { return };
    let folder = machine.path("mnt");
    let mut expected = BTreeMap::new();
    for (seed, repo) in [(1, "org/m"), (2, "org/m@refs/pr/1"), (3, "org/m@feature/x")] {
        for name in names {
            expected.insert(format!("{repo}/{name}"), 70_000);
            let path = folder.join(repo).join(name);
            assert!(fs::read(&path).unwrap() == bytes(seed, 70_000), "{path:?}");
        }
    }
    assert_eq!(files_below(&folder), expected);
    let file = File::open(folder.join("org/m/Upper")).unwrap();
    for (offset, count) in [(69_999, 1), (70_000, 0), (70_001, 0), (i64::MAX as u64 - 10, 0)] {
        assert_eq!(file.read_at(&mut [0; 10], offset).unwrap(), count, "{offset}");
    }
    for name in ["org/m/UPPER", "org/m/a@b/", "org/m@refs", "org/m@refs/pr/2", "org/m@main", "org/m/\u{e4}\u{308}"] {
        let is_there = fs::metadata(folder.join(name)).is_ok();
        assert_eq!(is_there, name == "org/m@refs", "{name}");
    }
}
