//! Files out of the store, as real files.

use crate::{
    cache::ModelCache,
    choice::Globs,
    error::{Attempted, Error, ErrorKind, Result},
    key::PinnedRepo,
    name::{FilePath, RepoSpec},
    progress::{self, ProgressCallback},
    record::{CHUNK_BYTES, FileMetadata},
    store::{Content, LeftOut, StoredFile},
};
use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::fs::{FileExt, MetadataExt},
    path::{Path, PathBuf},
};
use storage::{CopyMethod, Folder};
use tokio_util::sync::CancellationToken;

/// Disks give room by blocks of this many bytes.
const FILE_BLOCK_BYTES: u64 = 4 << 10;

/// How to export.
#[derive(Clone, Default)]
pub struct ExportOptions {
    /// Called with bytes written and bytes in all: after each chunk. Default: nobody is.
    pub progress: Option<ProgressCallback>,
    /// Whether files that exist are replaced. Default: no; an export that would replace one writes nothing.
    pub force: bool,
    /// Whether each block is held against the CRC32C it was sealed with before its file is written; files that are damaged are left out
    /// ([`ExportReport::left_out`]), and all others written. Default: no, a copy of damaged bytes is as damaged. Costs 0.1 CPU-seconds a
    /// GiB, and where blocks are shared, which copies nothing, one read of them all.
    pub check: bool,
    /// Ends the export early with [`Error::Cancelled`]. Default: none.
    pub cancel: Option<CancellationToken>,
}

/// What an export wrote.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct ExportReport {
    /// Files written.
    pub files: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// How their content came there: the costliest way that was needed. Files of at most 64 KiB, which are always written, count
    /// only where there are no others. `None` if nothing was exported.
    pub method: Option<CopyMethod>,
    /// Bytes that share their disk blocks with the store and take no space of their own.
    pub shared_bytes: u64,
    /// Their paths.
    pub paths: Vec<PathBuf>,
    /// Files that are damaged, so not exported, where they were to be [checked](ExportOptions::check).
    pub left_out: Vec<LeftOut>,
    /// Files of the repo that were begun and are not complete, so not exported.
    pub unfinished: Vec<String>,
}

impl ModelCache {
    /// Writes the files of `repo` that match any of `globs` (all, if there are none) below the folder `to`, under their own paths.
    ///
    /// By the cheapest way the file system offers, which the report tells: on XFS and btrfs, where `to` lies on the store's volume,
    /// blocks are shared and nothing is copied; else the kernel copies by itself, where it can. Each file appears under its name
    /// only when it is whole. Nothing is written outside `to`: links in it are not followed, nor is one that is put there meanwhile. The modes of
    /// files and folders are those of the process's umask.
    ///
    /// # Errors
    /// [`Error::NotInStore`]; [`Error::FileNotFound`] for a glob that matches nothing; [`Error::InvalidOption`] for a folder in the store
    /// itself, and for a link in `to` where a folder of the repo's should be; [`Error::TargetExists`] unless `force` is set, and
    /// [`Error::TargetFull`] where the disk has no room for all of it, each with nothing written; [`Error::Io`]; [`Error::TargetFull`] also
    /// where somebody else takes that room meanwhile.
    pub fn export(&self, repo: &str, globs: &[String], to: &Path, options: &ExportOptions) -> Result<ExportReport> {
        let spec: RepoSpec = repo.parse()?;
        let globs = Globs::new(globs)?;
        let mut chosen = None;
        for pinned in self.store().local_repos(&spec)? {
            let files = self.store().files_of(&pinned)?;
            if !files.is_empty() {
                chosen = Some((pinned, files));
                break;
            }
        }
        let Some((pinned, mut files)) = chosen else { return Err(Error::NotInStore { repo: spec }) };
        globs.each_matches(&spec.repo, pinned.commit.as_ref(), files.iter().map(|(path, _)| path.as_str()))?;
        files.retain(|(path, _)| globs.is_empty() || globs.matches(path.as_str()));
        // A file may be called as one of the store's own.
        let mut folders: Vec<PathBuf> =
            files.iter().filter_map(|(path, _)| Some(to.join(path.as_str()).parent()?.to_owned())).collect();
        folders.dedup();
        for folder in folders {
            if self.is_own_folder(&folder)? {
                let reason = format!("{} lies in the store itself, whose files are its own", folder.display());
                return Err(Error::InvalidOption { name: "to", value: to.display().to_string(), reason });
            }
        }
        if !options.force {
            for (path, _) in &files {
                let target = to.join(path.as_str());
                if fs::symlink_metadata(&target).is_ok() {
                    return Err(Error::TargetExists { path: target });
                }
            }
        }
        self.check_room(&files, to)?;
        let unfinished = self.store().fills()?.into_iter().filter(|fill| fill.repo == pinned).map(|fill| fill.path.to_string());
        let mut report = ExportReport { unfinished: unfinished.collect(), ..ExportReport::default() };
        let total_bytes = files.iter().map(|(_, metadata)| metadata.size_bytes).sum();
        let mut opened = None;
        let (mut inline_files, mut method, mut done_bytes) = (0, None, 0);
        for (path, metadata) in &files {
            let before = done_bytes;
            done_bytes += metadata.size_bytes;
            let tell =
                |bytes: u64| progress::tell(options.progress.as_ref(), options.cancel.as_ref(), before + bytes, total_bytes);
            tell(0)?;
            let file = match self.open_to_export(&pinned, path, options.check) {
                Err(error) if options.check && error.kind() == ErrorKind::Integrity => {
                    report.left_out.push(LeftOut::file(&pinned, path, error.chain()));
                    tell(metadata.size_bytes)?;
                    continue;
                }
                file => file?,
            };
            let Some(file) = file else {
                let (repo, commit) = (spec.repo.clone(), pinned.commit.clone());
                return Err(Error::FileNotFound { repo, commit, path: path.to_string() });
            };
            let target = to.join(path.as_str());
            // Not before there is something to write: an export that was cancelled leaves no folder.
            let root = match opened.take() {
                Some(root) => root,
                None => open_root(to).map_err(|source| io_error("create the folder", to, source, 0))?,
            };
            let root = opened.insert(root);
            let ways = write_out(&file, root, to, path, options, &tell).map_err(|error| match error {
                // Measured once what was written of this one is gone again.
                Error::TargetFull { .. } => target_full(&target, total_bytes - before),
                error => error,
            })?;
            tell(file.size_bytes)?;
            match ways {
                Some(written) => {
                    method = method.max(Some(written.costliest));
                    report.shared_bytes += written.shared_bytes;
                }
                None => inline_files += 1,
            }
            report.files += 1;
            report.bytes += file.size_bytes;
            report.paths.push(target);
        }
        report.method = method.or((inline_files > 0).then_some(CopyMethod::Copy));
        Ok(report)
    }

    fn open_to_export(&self, repo: &PinnedRepo, path: &FilePath, check: bool) -> Result<Option<StoredFile>> {
        let file = self.store().open_file(repo, path, false)?;
        if let Some(file) = file.as_ref().filter(|_| check) {
            file.check_all()?;
        }
        Ok(file)
    }

    /// The error for an export below `to` that the disk has no room for, before any of it is taken.
    fn check_room(&self, files: &[(FilePath, FileMetadata)], to: &Path) -> Result<()> {
        for Disk { folder, needed_bytes, .. } in disks(files, to) {
            let free_bytes = storage::free_bytes(&folder).attempted(|| format!("could not measure {}", folder.display()))?;
            if needed_bytes <= free_bytes {
                continue;
            }
            let full = Err(Error::TargetFull { path: to.to_owned(), needed_bytes, free_bytes });
            let shares_blocks = match storage::UnnamedFile::new_in(&folder) {
                Ok(trial) => self.store().extents().reader().shares_blocks_with(trial.file()),
                Err(error) if matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) => return full,
                // What is in the way is told when it is met.
                Err(_) => continue,
            };
            // Where blocks are shared a copy takes no room.
            if !shares_blocks {
                return full;
            }
        }
        Ok(())
    }
}

/// A disk an export goes to.
struct Disk {
    /// A folder on it.
    folder: PathBuf,
    /// What is taken of it by now, less what was replaced.
    taken_bytes: i128,
    /// The most that is taken at once.
    needed_bytes: u64,
}

/// The disks that `files` go to below `to`, mostly one. They are written one after another: what one replaces is free for the next.
fn disks(files: &[(FilePath, FileMetadata)], to: &Path) -> Vec<Disk> {
    let mut disks: BTreeMap<u64, Disk> = BTreeMap::new();
    for (path, metadata) in files {
        let target = to.join(path.as_str());
        let folder = target.ancestors().skip(1).find(|folder| folder.is_dir()).unwrap_or(Path::new("."));
        let device = fs::metadata(folder).map_or(0, |there| there.dev());
        let disk = disks.entry(device).or_insert_with(|| Disk { folder: folder.to_owned(), taken_bytes: 0, needed_bytes: 0 });
        disk.taken_bytes += i128::from(metadata.size_bytes.div_ceil(FILE_BLOCK_BYTES)) * i128::from(FILE_BLOCK_BYTES);
        disk.needed_bytes = disk.needed_bytes.max(disk.taken_bytes.try_into().unwrap_or(0));
        // One that has another name stays.
        if let Ok(replaced) = fs::symlink_metadata(&target)
            && replaced.is_file()
            && replaced.nlink() == 1
        {
            disk.taken_bytes -= i128::from(replaced.blocks()) * 512;
        }
    }
    disks.into_values().collect()
}

/// Where `folder` is, or would be made: that of what is there of its path, links followed.
pub(crate) fn real_folder(folder: &Path) -> io::Result<PathBuf> {
    let folder = std::path::absolute(folder)?;
    for there in folder.ancestors() {
        match fs::canonicalize(there) {
            // What is in the way of the rest is told when it is made.
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {}
            real => return real,
        }
    }
    Ok(folder)
}

impl ModelCache {
    /// Whether `folder`, there or yet to be made, is the store's or lies in it, also where a link leads there.
    ///
    /// # Errors
    /// [`Error::Io`] if the file system can't tell.
    pub fn is_own_folder(&self, folder: &Path) -> Result<bool> {
        let own = self.store().folder();
        let own = fs::canonicalize(own).map_err(|source| io_error("find", own, source, 0))?;
        let real = real_folder(folder).map_err(|source| io_error("find", folder, source, 0))?;
        // What lies behind a folder that is not there yet can't be told where ".." leaves it again.
        let leaves = folder.components().any(|part| part == std::path::Component::ParentDir) && fs::canonicalize(folder).is_err();
        Ok(real.starts_with(&own) || (leaves && folder_without_dots(folder).is_some_and(|folder| folder.starts_with(own))))
    }
}

/// `folder`, absolute, its ".." taken as words.
pub(crate) fn folder_without_dots(folder: &Path) -> Option<PathBuf> {
    let mut plain = PathBuf::new();
    for part in std::path::absolute(folder).ok()?.components() {
        match part {
            std::path::Component::ParentDir => _ = plain.pop(),
            part => plain.push(part),
        }
    }
    real_folder(&plain).ok()
}

/// How the extents of one file were written.
struct Written {
    costliest: CopyMethod,
    shared_bytes: u64,
}

/// The folder an export goes to, made where missing.
fn open_root(to: &Path) -> io::Result<Folder> {
    fs::create_dir_all(to)?;
    Folder::open(to)
}

/// The folder of `path` below `root`, which is at `to`.
fn enter(root: &Folder, to: &Path, path: &FilePath) -> Result<Option<Folder>> {
    let Some((folders, _)) = path.as_str().rsplit_once('/') else { return Ok(None) };
    let mut entered: Option<Folder> = None;
    let mut at = to.to_owned();
    for name in folders.split('/') {
        at.push(name);
        let next = entered.as_ref().unwrap_or(root).enter(name);
        entered = Some(next.map_err(|source| match fs::symlink_metadata(&at) {
            Ok(there) if there.is_symlink() => {
                let reason = format!("{} is a link, which may lead out of it", at.display());
                Error::InvalidOption { name: "to", value: to.display().to_string(), reason }
            }
            _ => io_error("create the folder", &at, source, 0),
        })?);
    }
    Ok(entered)
}

/// Writes one file below `root`, which is at `to`; `None` for one without extents.
fn write_out(
    stored: &StoredFile,
    root: &Folder,
    to: &Path,
    path: &FilePath,
    options: &ExportOptions,
    tell: &dyn Fn(u64) -> Result<()>,
) -> Result<Option<Written>> {
    let size_bytes = stored.size_bytes;
    let target = &*to.join(path.as_str());
    let failed = |action| move |source: io::Error| io_error(action, target, source, size_bytes);
    let entered = enter(root, to, path)?;
    // By what is held open: the path may lead elsewhere by now.
    let folder = entered.as_ref().unwrap_or(root).path();
    // Without a name until it is whole: whatever ends this leaves nothing behind.
    let partial = storage::UnnamedFile::new_in(&folder).map_err(failed("create"))?;
    let file = partial.file();
    storage::fail_point("export.begun");
    let mut written = None;
    match &stored.content {
        Content::Inline(bytes) => file.write_all_at(bytes, 0).map_err(failed("write"))?,
        Content::View(view) => {
            let (mut costliest, mut shared_bytes) = (CopyMethod::Reflink, 0);
            for (index, extent) in view.extents().iter().enumerate() {
                let start = index as u64 * CHUNK_BYTES;
                tell(start)?;
                let copied = view.store().extents().reader().copy_to(extent, file, start);
                if let Err(source) = &copied
                    && source.is_no_space()
                {
                    return Err(target_full(target, size_bytes));
                }
                let method = copied.attempted(|| format!("could not export {}", target.display()))?;
                costliest = costliest.max(method);
                if method == CopyMethod::Reflink {
                    shared_bytes += extent.data_bytes;
                }
                storage::fail_point("export.chunk_copied");
            }
            // Blocks are shared whole, so the last one may reach beyond the end.
            file.set_len(size_bytes).map_err(failed("write"))?;
            written = Some(Written { costliest, shared_bytes });
        }
    }
    partial.name(&folder.join(path.file_name()), options.force).map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => Error::TargetExists { path: target.to_owned() },
        _ => io_error("write", target, error, size_bytes),
    })?;
    storage::fail_point("export.named");
    Ok(written)
}

pub(crate) fn io_error(action: &'static str, path: &Path, source: io::Error, needed_bytes: u64) -> Error {
    match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => target_full(path, needed_bytes),
        _ => Error::Io { action, path: path.to_owned(), source },
    }
}

pub(crate) fn target_full(target: &Path, needed_bytes: u64) -> Error {
    let folder = target.ancestors().find(|folder| folder.is_dir()).unwrap_or(Path::new("."));
    let free_bytes = storage::free_bytes(folder).unwrap_or(0);
    Error::TargetFull { path: target.to_owned(), needed_bytes, free_bytes }
}
