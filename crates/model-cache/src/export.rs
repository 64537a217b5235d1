//! Files out of the store, as real files.

use crate::{
    cache::ModelCache,
    choice::Globs,
    error::{Attempted, Error, Result},
    name::RepoSpec,
    record::CHUNK_BYTES,
    store::Content,
};
use std::{
    fs, io,
    os::unix::fs::{FileExt, PermissionsExt},
    path::{Path, PathBuf},
};
use tokio_util::sync::CancellationToken;

/// How to export.
#[derive(Clone, Debug, Default)]
pub struct ExportOptions {
    /// Whether files that exist are replaced. Default: no; an export that would replace one writes nothing.
    pub force: bool,
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
    /// Their paths.
    pub paths: Vec<PathBuf>,
    /// Files of the repo that were begun and are not complete, so not exported.
    pub unfinished: Vec<String>,
}

impl ModelCache {
    /// Writes the files of `repo` that match any of `globs` (all, if there are none) below the folder `to`, under their own paths.
    ///
    /// By the cheapest way the file system offers: on XFS and btrfs, where `to` lies on the store's volume, blocks are shared and
    /// nothing is copied. Each file appears under its name only when it is whole.
    ///
    /// # Errors
    /// [`Error::NotInStore`]; [`Error::FileNotFound`] for a glob that matches nothing; [`Error::TargetExists`], with nothing written,
    /// unless `force` is set; [`Error::Io`]; [`Error::TargetFull`].
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
        if !options.force {
            for (path, _) in &files {
                let target = to.join(path.as_str());
                if fs::symlink_metadata(&target).is_ok() {
                    return Err(Error::TargetExists { path: target });
                }
            }
        }
        let unfinished = self.store().fills()?.into_iter().filter(|fill| fill.repo == pinned).map(|fill| fill.path.to_string());
        let mut report = ExportReport { unfinished: unfinished.collect(), ..ExportReport::default() };
        for (path, _) in &files {
            if options.cancel.as_ref().is_some_and(CancellationToken::is_cancelled) {
                return Err(Error::Cancelled);
            }
            let Some(file) = self.store().open_file(&pinned, path, false)? else {
                let (repo, commit) = (spec.repo.clone(), pinned.commit.clone());
                return Err(Error::FileNotFound { repo, commit, path: path.to_string() });
            };
            let target = to.join(path.as_str());
            write_out(&file.content, file.size_bytes, &target, options)?;
            report.files += 1;
            report.bytes += file.size_bytes;
            report.paths.push(target);
        }
        Ok(report)
    }
}

fn write_out(content: &Content, size_bytes: u64, target: &Path, options: &ExportOptions) -> Result<()> {
    let failed = |action| move |source: io::Error| io_error(action, target, source, size_bytes);
    let folder = target.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder).map_err(failed("create the folder of"))?;
    // Without a name until it is whole: whatever ends this leaves nothing behind.
    let partial = storage::UnnamedFile::new_in(folder).map_err(failed("create"))?;
    let file = partial.file();
    match content {
        Content::Inline(bytes) => file.write_all_at(bytes, 0).map_err(failed("write"))?,
        Content::View(view) => {
            file.set_len(size_bytes).map_err(failed("write"))?;
            for (index, extent) in view.extents().iter().enumerate() {
                if options.cancel.as_ref().is_some_and(CancellationToken::is_cancelled) {
                    return Err(Error::Cancelled);
                }
                let copied = view.store().extents().reader().copy_to(extent, file, index as u64 * CHUNK_BYTES);
                if let Err(source) = &copied
                    && source.is_no_space()
                {
                    return Err(target_full(target, size_bytes));
                }
                copied.attempted(|| format!("could not export {}", target.display()))?;
            }
        }
    }
    // What a plain `cp` would give.
    file.set_permissions(fs::Permissions::from_mode(0o644)).map_err(failed("write"))?;
    partial.name(target, options.force).map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => Error::TargetExists { path: target.to_owned() },
        _ => io_error("write", target, error, size_bytes),
    })
}

fn io_error(action: &'static str, path: &Path, source: io::Error, needed_bytes: u64) -> Error {
    match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => target_full(path, needed_bytes),
        _ => Error::Io { action, path: path.to_owned(), source },
    }
}

fn target_full(target: &Path, needed_bytes: u64) -> Error {
    let folder = target.ancestors().find(|folder| folder.is_dir()).unwrap_or(Path::new("."));
    let free_bytes = storage::free_bytes(folder).unwrap_or(0);
    Error::TargetFull { path: target.to_owned(), needed_bytes, free_bytes }
}
