//! The store's folder: whether it is there, whether its files are plain ones, and for whom.

use super::Findings;
use crate::{
    backup,
    error::{Error, ErrorKind, FROM_BACKUP},
    name::shell_word,
    store::{CHUNKS_FOLDER, MANIFESTS_FOLDER, OWN},
    units::iec,
};
use std::{
    fs::{self, Metadata},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

/// The user this process is.
pub(super) fn user() -> Option<u32> {
    fs::metadata("/proc/self").ok().map(|own| own.uid())
}

/// Whether there is a store to be looked at.
pub(super) fn examine(folder: &Path, findings: &mut Findings<'_>) -> bool {
    let shown = folder.display();
    let metadata = match fs::metadata(folder) {
        Ok(metadata) if metadata.is_dir() => metadata,
        Ok(_) => return not_a_folder(folder, findings),
        Err(error) if error.kind() == std::io::ErrorKind::NotADirectory => return not_a_folder(folder, findings),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            look_for_a_place(folder, findings);
            return false;
        }
        Err(source) => {
            findings.error(&Error::Io { action: "look at", path: folder.to_owned(), source });
            return false;
        }
    };
    // Whoever may not look into it knows nothing of what is there.
    if let Err(source) = fs::read_dir(folder) {
        findings.error(&Error::Io { action: "list", path: folder.to_owned(), source });
        return false;
    }
    match storage::file_system(folder) {
        Ok(disk) if disk.is_network => {
            let source = storage::Error::NetworkFileSystem { path: folder.to_owned(), kind: "a network file system" };
            findings.error(&Error::Storage { action: format!("a store can't work at {shown} ({})", disk.kind), source });
        }
        Ok(disk) if disk.is_read_only => read_only(folder, findings),
        _ if !storage::may_write(folder) => {
            let source = std::io::ErrorKind::PermissionDenied.into();
            findings.error(&Error::Io { action: "write to", path: folder.to_owned(), source });
        }
        _ => {}
    }
    let there = |name: &str| fs::symlink_metadata(folder.join(name)).is_ok();
    match (there(CHUNKS_FOLDER), there(MANIFESTS_FOLDER)) {
        (false, false) => {
            let others = fs::read_dir(folder).map_or(0, Iterator::count);
            match others {
                0 => {
                    findings.note(format!("there is no store at {shown} yet, which is empty: the first pull or import makes it"))
                }
                _ => findings.add(
                    super::Severity::Warning,
                    format!(
                        "there is no store at {shown}, but {others} other files and folders: a pull would put one beside them"
                    ),
                    Some("name another folder: --store DIR or MODEL_CACHE_HOME".to_owned()),
                    None,
                ),
            }
            return false;
        }
        (true, true) => findings.fine(format!("the store is {shown}")),
        (chunks, _) => {
            let (here, gone) = if chunks { (CHUNKS_FOLDER, MANIFESTS_FOLDER) } else { (MANIFESTS_FOLDER, CHUNKS_FOLDER) };
            let hint = format!(
                "restore a backup, or begin anew:\n{FROM_BACKUP}\nmv {0} {0}.damaged",
                shell_word(&folder.to_string_lossy())
            );
            findings.problem(ErrorKind::Integrity, format!("of the store {shown}, {here} is here and {gone} is not"), hint);
        }
    }
    look_at_modes(folder, &metadata, findings);
    true
}

/// What a restore of this store needs for a while, or left beside it when it was killed.
pub(super) fn look_beside(store: &Path, findings: &mut Findings<'_>) {
    let Some((folder, is_at_work)) = backup::leftover(store) else { return };
    let size = storage::allocated_bytes(&folder).map_or_else(|_| "of unknown size".to_owned(), iec);
    let shown = folder.display();
    if is_at_work {
        findings.note(format!("a restore is building a store at {shown} ({size})"));
    } else {
        findings.warn(
            format!("{shown} ({size}) is what a restore that did not end left; nothing needs it"),
            format!("the next restore to this place takes it away; or:\nrm -r {}", shell_word(&folder.to_string_lossy())),
        );
    }
}

fn not_a_folder(folder: &Path, findings: &mut Findings<'_>) -> bool {
    let source = storage::Error::NotAFolder { path: folder.to_owned() };
    findings.error(&Error::Storage { action: format!("there can be no store at {}", folder.display()), source });
    false
}

fn read_only(folder: &Path, findings: &mut Findings<'_>) {
    let source = std::io::ErrorKind::ReadOnlyFilesystem.into();
    let source = storage::Error::ReadOnly { path: folder.to_owned(), source };
    findings.error(&Error::Storage { action: format!("the store {} can't be opened", folder.display()), source });
}

/// Whether a store could be made where there is no folder yet.
fn look_for_a_place(folder: &Path, findings: &mut Findings<'_>) {
    let absolute = std::path::absolute(folder).unwrap_or_else(|_| folder.to_owned());
    let above = absolute.ancestors().skip(1).find(|above| above.exists());
    match above {
        Some(above) if above.is_dir() && storage::may_write(above) => {
            findings.note(format!("there is no store at {} yet: the first pull or import makes it", folder.display()));
        }
        above => {
            let above = above.unwrap_or(Path::new("/")).display();
            findings.problem(
                ErrorKind::Other,
                format!("there is no store at {}, and none can be made: {above} can't be written", folder.display()),
                "choose a folder you may write: --store DIR or MODEL_CACHE_HOME",
            );
        }
    }
}

fn look_at_modes(folder: &Path, root: &Metadata, findings: &mut Findings<'_>) {
    let shared = storage::is_shared(root);
    let mut there: Vec<(PathBuf, Metadata)> = vec![(folder.to_owned(), root.clone())];
    there.extend(OWN.iter().filter_map(|name| {
        let path = folder.join(name);
        fs::symlink_metadata(&path).ok().map(|metadata| (path, metadata))
    }));
    let links: Vec<_> = there.iter().filter(|(_, metadata)| !metadata.is_file() && !metadata.is_dir()).collect();
    for (path, _) in &links {
        let source = storage::Error::NotOurs { path: path.clone(), what: "no plain file or folder" };
        findings.error(&Error::Storage { action: format!("the store {} can't be opened", folder.display()), source });
    }
    let store = shell_word(&folder.to_string_lossy());
    let named = |paths: &[&PathBuf]| {
        let first = paths[0].display();
        if paths.len() == 1 { first.to_string() } else { format!("{first} and {} more", paths.len() - 1) }
    };
    let which = |wrong: &dyn Fn(&Metadata) -> bool| -> Vec<&PathBuf> {
        there.iter().filter(|(_, metadata)| wrong(metadata)).map(|(path, _)| path).collect()
    };
    // Bits nobody asked for: those of others always, those of the group unless the store is shared by it.
    let (wide, command) = if shared { (0o007, "o=") } else { (0o077, "go=") };
    let open = which(&|metadata| metadata.mode() & wide != 0);
    if !open.is_empty() {
        let whom = if shared { "everybody" } else { "others" };
        let what = format!("{} can be used by {whom} (the store's folder has mode {:03o})", named(&open), root.mode() & 0o777);
        findings.warn(what, format!("chmod -R {command} {store}"));
    }
    let narrow = which(&|metadata| shared && metadata.mode() & 0o060 != 0o060);
    if !narrow.is_empty() {
        let what = format!("the store is shared by its group, which can't use {}", named(&narrow));
        findings.warn(what, format!("chmod -R g+rwX {store}"));
    }
    let unwritable =
        which(&|metadata| metadata.is_file()).into_iter().filter(|path| !storage::may_write(path)).collect::<Vec<_>>();
    if !unwritable.is_empty() {
        let hint = format!(
            "make them yours, or share them by a group:\nsudo chown -R \"$(id -u)\" {store}\nsudo chmod -R g+rwX {store}"
        );
        findings.problem(ErrorKind::Other, format!("{} can't be written by this user", named(&unwritable)), hint);
    }
    // Root's files in a user's store are the usual end of a sudo.
    let strange = which(&|metadata| !shared && metadata.uid() != root.uid());
    if !strange.is_empty() {
        let what = format!("{} belongs to another user than the store's folder", named(&strange));
        findings.warn(what, format!("sudo chown -R {} {store}", root.uid()));
    }
    if open.is_empty() && narrow.is_empty() && unwritable.is_empty() && strange.is_empty() && links.is_empty() {
        let whom = if shared { "its owner and its group" } else { "its owner alone" };
        findings.fine(format!("the store's files are for {whom}"));
    }
}
