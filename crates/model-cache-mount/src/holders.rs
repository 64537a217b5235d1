//! Who keeps a mount busy, as far as this process may look.

use std::{fs, path::Path};

/// A process that uses something below a mount point.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Its number.
    pub process: u32,
    /// Its name, as `ps` shows it.
    pub name: String,
}

/// The processes that have a file of `folder` open or mapped, or are in it. By reading links, which asks nothing of the mount.
pub(crate) fn holders(folder: &Path) -> Vec<Holder> {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let mut found: Vec<_> = processes
        .filter_map(|entry| {
            let process = entry.file_name().to_str()?.parse().ok()?;
            let home = entry.path();
            (uses(&home, folder)).then(|| Holder {
                process,
                name: fs::read_to_string(home.join("comm")).unwrap_or_default().trim_end().to_owned(),
            })
        })
        .collect();
    found.sort_by_key(|holder| holder.process);
    found
}

/// Whether the process of this folder of `/proc` uses something below `folder`.
fn uses(process: &Path, folder: &Path) -> bool {
    let leads_there = |link: &Path| fs::read_link(link).is_ok_and(|target| target.starts_with(folder));
    ["cwd", "root", "exe"].iter().any(|name| leads_there(&process.join(name)))
        || ["fd", "map_files"].iter().any(|name| {
            let links = fs::read_dir(process.join(name)).into_iter().flatten().flatten();
            links.into_iter().any(|link| leads_there(&link.path()))
        })
}
