//! What the kernel and this build can do.

use super::Findings;
use std::path::Path;

pub(super) fn examine(findings: &mut Findings<'_>) {
    let told = |option: &&str| option.starts_with("FALLOCATE=") || option.starts_with("OFDLOCKS=");
    let options: Vec<_> = storage::engine_options().split_whitespace().filter(told).collect();
    findings.fine(format!("model-cache {}, libmdbx built with {}", env!("CARGO_PKG_VERSION"), options.join(" ")));
    if !storage::can_punch() {
        findings.warn(
            "libmdbx was built without MDBX_USE_FALLOCATE=0: space that is freed is used again, and not given back to the disk",
            "build with CFLAGS=-DMDBX_USE_FALLOCATE=0, as .cargo/config.toml of the sources has it",
        );
    }
    if !storage::locks_survive_own_descriptions() {
        findings.problem(
            crate::ErrorKind::Other,
            "libmdbx was built without locks of open file descriptions: stores can't be opened",
            "build for Linux 3.16 or newer, with the options of .cargo/config.toml of the sources alone",
        );
    }
    if let Ok(release) = std::fs::read_to_string("/proc/sys/kernel/osrelease") {
        let release = release.trim();
        let version = |text: &str| -> Option<(u32, u32)> {
            let mut numbers = text.split(|c: char| !c.is_ascii_digit()).map(str::parse);
            Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
        };
        match version(release) {
            Some(found) if found < (5, 14) => {
                findings
                    .note(format!("Linux {release}: files are read into memory page by page before 5.14 (MADV_POPULATE_READ)"));
            }
            _ => findings.fine(format!("Linux {release}")),
        }
    }
    let mounter = || {
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path).any(|folder| folder.join("fusermount3").is_file())
    };
    match (Path::new("/dev/fuse").exists(), is_root() || mounter()) {
        (true, true) => findings.fine("FUSE is here: model-cache mount works"),
        (false, _) => findings.advise(
            "no /dev/fuse: model-cache mount can't work; model-cache export writes real files",
            "in a container: --device /dev/fuse --cap-add SYS_ADMIN; else: modprobe fuse",
        ),
        (true, false) => {
            findings.advise("no fusermount3: model-cache mount needs it where it does not run as root", "apt-get install fuse3");
        }
    }
}

fn is_root() -> bool {
    super::files::user() == Some(0)
}
