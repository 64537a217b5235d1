//! `model-cache mount` as its users meet it: it ends when asked, leaves nothing, and says what is in the way.

use serde_json::Value;
use std::{
    fs,
    io::{BufRead, BufReader, Read},
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, Output, Stdio},
    time::{Duration, Instant},
};
use tempfile::TempDir;

const PROGRAM: &str = env!("CARGO_BIN_EXE_model-cache");

/// A store with one repo, `me/model`, and a folder to mount it on.
struct Machine {
    dir: TempDir,
}

impl Machine {
    fn new() -> Self {
        let machine = Self { dir: tempfile::tempdir().unwrap() };
        let source = machine.path("source");
        fs::create_dir(&source).unwrap();
        fs::write(source.join("config.json"), "{}").unwrap();
        fs::write(source.join("model.gguf"), vec![7; 3 << 20]).unwrap();
        let ran = machine.run(&["import", "me/model", source.to_str().unwrap()]);
        assert!(ran.status.success(), "{ran:?}");
        machine
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn folder(&self) -> PathBuf {
        self.path("mnt")
    }

    /// The program, run by `by`.
    fn command(&self, by: &[&str], args: &[&str]) -> Command {
        let mut words = by.iter().copied().chain([PROGRAM]).chain(args.iter().copied());
        let mut command = Command::new(words.next().unwrap());
        command.env_clear().env("HOME", self.dir.path()).env("MODEL_CACHE_HOME", self.path("store"));
        command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").stdin(Stdio::null()).args(words);
        command
    }

    fn run(&self, args: &[&str]) -> Output {
        self.command(&[], args).output().unwrap()
    }

    /// A mount, once it is there; `None` where this machine allows none, and the program says so as it should.
    fn mount(&self, args: &[&str]) -> Option<Mounted> {
        let folder = self.folder();
        let args = [&["mount", folder.to_str().unwrap(), "--json"], args].concat();
        let mut child = self.command(&[], &args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        out.read_line(&mut line).unwrap();
        let document: Value = serde_json::from_str(&line).unwrap();
        if document["error"].is_null() {
            return Some(Mounted { child, out, document });
        }
        let allowed = fs::File::options().read(true).write(true).open("/dev/fuse").is_ok() && is_root();
        assert!(!allowed, "{document}");
        assert_eq!(child.wait().unwrap().code(), Some(1), "{document}");
        assert!(document["error"]["hint"].as_str().unwrap().contains("export"), "{document}");
        println!("NOT RUN HERE, no mounts are allowed: {document}");
        None
    }
}

/// A program that serves a mount. Killed when dropped, and its mount with it.
struct Mounted {
    child: Child,
    out: BufReader<ChildStdout>,
    document: Value,
}

impl Mounted {
    fn signal(&self, name: &str) {
        assert!(Command::new("kill").args(["-s", name, &self.child.id().to_string()]).status().unwrap().success());
    }

    /// Its exit code, and what it said.
    fn end(&mut self) -> (Option<i32>, String) {
        let (mut out, mut err) = (String::new(), String::new());
        self.child.stderr.take().unwrap().read_to_string(&mut err).unwrap();
        self.out.read_to_string(&mut out).unwrap();
        assert_eq!(out, "", "one document, and no more");
        (self.child.wait().unwrap().code(), err)
    }
}

/// Whether whoever started the tests, as nohup does, has them and their children ignore the end of a terminal.
fn hangups_are_ignored() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:")).unwrap();
    u64::from_str_radix(ignored.trim(), 16).unwrap() & 1 != 0
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let folder = self.document["mounted"].as_str().unwrap();
        let _ = Command::new("umount").args(["-l", folder]).stderr(Stdio::null()).status();
    }
}

fn is_root() -> bool {
    Command::new("id").arg("-u").output().unwrap().stdout == b"0\n"
}

fn is_mounted(folder: &Path) -> bool {
    fs::read_to_string("/proc/self/mountinfo").unwrap().contains(folder.to_str().unwrap())
}

#[test]
fn a_mount_says_what_it_shows_and_ends_with_0_when_asked_to() {
    let machine = Machine::new();
    // The last is what the end of a terminal sends.
    let signals = ["INT", "TERM", "HUP"].into_iter().filter(|&name| name != "HUP" || !hangups_are_ignored());
    for name in signals {
        let Some(mut mount) = machine.mount(&["--repo", "me/model"]) else { return };
        let folder = machine.folder();
        assert_eq!(mount.document["mounted"], folder.to_str().unwrap());
        assert_eq!(mount.document["store"], machine.path("store").to_str().unwrap());
        assert_eq!((mount.document["files"].as_u64(), mount.document["size_bytes"].as_u64()), (Some(2), Some((3 << 20) + 2)));
        assert_eq!(fs::read(folder.join("me/model/config.json")).unwrap(), b"{}");
        let started = Instant::now();
        mount.signal(name);
        let (code, err) = mount.end();
        assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
        assert_eq!(code, Some(0), "{err}");
        let said = format!("on {} (read-only): 2 files, 3.00 MiB; Ctrl-C unmounts\nUnmounted ", folder.display());
        assert!(err.contains(&said), "{err}");
        assert!(!is_mounted(&folder) && fs::read_dir(&folder).unwrap().next().is_none());
    }
}

#[test]
fn a_terminal_that_ends_with_two_signals_takes_nothing_from_whoever_reads() {
    if hangups_are_ignored() {
        return println!("this runs under nohup, and so would the mount");
    }
    let machine = Machine::new();
    let Some(mut mount) = machine.mount(&[]) else { return };
    let open = fs::File::open(machine.folder().join("me/model/model.gguf")).unwrap();
    mount.signal("HUP");
    mount.signal("HUP");
    let mut bytes = Vec::new();
    std::io::Read::read_to_end(&mut &open, &mut bytes).unwrap();
    assert_eq!(bytes.len(), 3 << 20);
    drop(open);
    assert_eq!(mount.end().0, Some(0));
    assert!(!is_mounted(&machine.folder()));
}

#[test]
fn who_unmounts_it_ends_the_program_with_0() {
    let machine = Machine::new();
    let Some(mut mount) = machine.mount(&[]) else { return };
    assert!(Command::new("umount").arg(machine.folder()).status().unwrap().success());
    assert_eq!(mount.end().0, Some(0));
}

#[test]
fn a_mount_in_use_names_its_user_and_ends_with_him_or_at_the_second_ctrl_c() {
    let machine = Machine::new();
    for again in [false, true] {
        let Some(mut mount) = machine.mount(&[]) else { return };
        let mut user = Command::new("sleep").arg("600").current_dir(machine.folder().join("me/model")).spawn().unwrap();
        mount.signal("INT");
        let mut err = BufReader::new(mount.child.stderr.take().unwrap()).lines();
        let line = err.find(|line| line.as_ref().unwrap().contains("still in use")).unwrap().unwrap();
        assert!(line.contains(&format!("by process {} (sleep)", user.id())), "{line}");
        assert!(!is_mounted(&machine.folder()) && mount.child.try_wait().unwrap().is_none());
        if again {
            // Nobody types it twice at once; timeout(1) sends it twice, and means one.
            std::thread::sleep(Duration::from_millis(50));
            mount.signal("INT");
        } else {
            user.kill().unwrap();
            user.wait().unwrap();
        }
        assert_eq!(mount.child.wait().unwrap().code(), Some(if again { 130 } else { 0 }));
        let _ = user.kill();
        let _ = user.wait();
    }
}

#[test]
fn a_mount_left_by_a_kill_is_explained_and_cleared_by_the_next() {
    let machine = Machine::new();
    let folder = machine.folder();
    let Some(mut killed) = machine.mount(&[]) else { return };
    killed.signal("KILL");
    killed.child.wait().unwrap();
    let error = fs::read_dir(&folder).unwrap_err();
    assert!(error.to_string().contains("not connected"), "{error}");
    let Some(mut mount) = machine.mount(&[]) else { panic!("the dead mount is in the way") };
    assert_eq!(fs::read(folder.join("me/model/config.json")).unwrap(), b"{}");
    mount.signal("INT");
    let (code, err) = mount.end();
    assert!(code == Some(0) && err.contains("had a mount of a model-cache that was killed; it was taken away"), "{err}");
    assert!(!is_mounted(&folder));
}

#[test]
fn what_is_in_the_way_of_a_mount_is_said_with_what_to_do() {
    let machine = Machine::new();
    fs::create_dir(machine.path("full")).unwrap();
    fs::write(machine.path("full/x"), "x").unwrap();
    let error = |output: Output| {
        let document: Value = serde_json::from_slice(&output.stdout).unwrap();
        (output.status.code().unwrap(), document["error"].clone())
    };
    let full = machine.path("full");
    let (code, told) = error(machine.run(&["mount", full.to_str().unwrap(), "--json"]));
    assert_eq!((code, told["code"].as_str()), (2, Some("usage")), "{told}");
    assert!(told["message"].as_str().unwrap().contains("is not empty"), "{told}");
    let folder = machine.folder();
    let mnt = folder.to_str().unwrap();
    let (code, told) = error(machine.run(&["mount", mnt, "--repo", "me/none", "--json"]));
    assert_eq!((code, told["code"].as_str()), (3, Some("not_found")), "{told}");
    assert_eq!(machine.run(&["mount", mnt, "--repo", "none"]).status.code(), Some(2));
    // Where FUSE is not, or may not be used, as in a container.
    let no_device = ["unshare", "--mount", "sh", "-c", "mount -t tmpfs none /dev && exec \"$@\"", "sh"];
    let no_right = ["setpriv", "--bounding-set", "-sys_admin", "--inh-caps", "-sys_admin"];
    for (by, expected) in [(&no_device[..], "no /dev/fuse"), (&no_right, "can't be mounted on: ")] {
        if !is_root() || !Command::new(by[0]).args(&by[1..]).arg("true").output().is_ok_and(|output| output.status.success()) {
            println!("NOT RUN HERE: {by:?} needs root");
            continue;
        }
        let (code, told) = error(machine.command(by, &["mount", mnt, "--json"]).output().unwrap());
        assert_eq!((code, told["code"].as_str()), (1, Some("other")), "{told}");
        assert!(told["message"].as_str().unwrap().contains(expected), "{told}");
        let hint = told["hint"].as_str().unwrap();
        assert!(hint.contains("--device /dev/fuse") || hint.contains("install fuse3"), "{told}");
        assert!(hint.contains("model-cache export writes real files"), "{told}");
        assert!(!folder.exists(), "a folder made for nothing stays");
    }
}
