//! What the tests of this crate share: environments in temporary folders, and child processes.
#![allow(dead_code, reason = "each test binary uses its part")]

use std::{
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::Arc,
    time::Duration,
};
use storage::*;

pub(crate) const BLOCK_BYTES: u32 = 1 << 20;
pub(crate) const TABLE: &str = "chunks";
const CHILD: &str = "STORAGE_TEST_CHILD";

pub(crate) fn open_extents(folder: &Path) -> Arc<Shared<Extents>> {
    StorageRegistry::new(folder).extents(folder, TABLE, storage::Alignment::LargePage).unwrap()
}

pub(crate) fn specs(prefix: &str, sizes: &[u64]) -> Vec<ExtentSpec> {
    sizes.iter().enumerate().map(|(n, &data_bytes)| ExtentSpec { key: format!("{prefix}:{n}"), data_bytes }).collect()
}

/// Bytes that differ from page to page and from seed to seed.
pub(crate) fn pattern(seed: u64, bytes: u64) -> Vec<u8> {
    (0..bytes).map(|i| (i.wrapping_mul(31) ^ (i >> 9) ^ seed.wrapping_mul(0x9E37_79B9)) as u8).collect()
}

pub(crate) fn reserve(extents: &Extents, owner: u64, prefix: &str, sizes: &[u64]) -> Result<Vec<Extent>> {
    let writer = extents.open_writer()?;
    let txn = extents.begin_reserve()?;
    let placed = txn.reserve(&writer, owner, BLOCK_BYTES, &specs(prefix, sizes))?;
    txn.commit()?;
    Ok(placed)
}

/// Frees as a store does: punch while the pages are still the extents' own, then delete.
pub(crate) fn free(extents: &Extents, keys: &[String]) -> Result<()> {
    let writer = extents.open_writer()?;
    for key in keys {
        writer.punch(&extents.locate(key)?.unwrap())?;
    }
    let txn = extents.begin_free()?;
    for key in keys {
        assert!(txn.delete(key)?);
    }
    txn.commit()
}

pub(crate) fn read(extents: &Extents, extent: &Extent) -> Vec<u8> {
    let mut bytes = vec![0; extent.data_bytes as usize];
    extents.reader().read_at(extent, 0, &mut bytes).unwrap();
    bytes
}

/// The argument a test was given when it runs again as a child process of itself.
pub(crate) fn child_argument() -> Option<PathBuf> {
    std::env::var_os(CHILD).map(PathBuf::from)
}

/// This test binary, to run the test called `name` again as a child with `argument`.
pub(crate) fn child(name: &str, argument: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", name, "--include-ignored", "--nocapture", "--test-threads=1"])
        .env(CHILD, argument)
        .stdin(Stdio::null());
    command
}

/// Runs the child to its end; a signal or a failed assertion in it fails the caller with what it said.
pub(crate) fn run_child(name: &str, argument: &Path) -> Output {
    let output = child(name, argument).output().unwrap();
    let (said, complained) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    print!("{said}");
    assert!(output.status.success(), "child {name}: {}\n{said}\n{complained}", output.status);
    assert!(said.contains("1 passed"), "no test is called {name}");
    output
}

/// Runs `work` on a thread of its own and fails if it takes longer than `limit`: for what must not hang.
pub(crate) fn within<T: Send + 'static>(limit: Duration, work: impl FnOnce() -> T + Send + 'static) -> T {
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || sender.send(work()));
    receiver.recv_timeout(limit).expect("it should be done in time, and not have panicked")
}

/// A fixed sequence of numbers, so that a failure can be run again.
pub(crate) struct Numbers(pub(crate) u64);

impl Numbers {
    pub(crate) fn next(&mut self) -> u64 {
        // SplitMix64.
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }
}

/// Runs the test called `name` again as a child that may mount what it likes; its mounts go with it. False, said aloud, where
/// the system lets nobody do that.
pub(crate) fn run_in_mount_namespace(name: &str, argument: &Path) -> bool {
    let unshare = |arguments: &[&str]| {
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private"]).args(arguments);
        command
    };
    let user: &[&str] = if nix::unistd::geteuid().is_root() { &[] } else { &["--user", "--map-root-user"] };
    if !unshare(user).arg("true").status().is_ok_and(|status| status.success()) {
        println!("SKIPPED {name}: no mount namespaces here");
        return false;
    }
    let child = child(name, argument);
    let mut command = unshare(user);
    command.arg(child.get_program()).args(child.get_args());
    command.envs(child.get_envs().filter_map(|(key, value)| Some((key, value?)))).stdin(Stdio::null());
    let output = command.output().unwrap();
    let (said, complained) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    print!("{said}");
    assert!(output.status.success(), "child {name}: {}\n{said}\n{complained}", output.status);
    assert!(said.contains("1 passed"), "no test is called {name}");
    true
}
