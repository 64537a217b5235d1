//! Local files into the store, under a name of their own.

use crate::{
    cache::ModelCache,
    digest::{Digest, Hasher},
    error::{Error, Result},
    key::PinnedRepo,
    name::{FilePath, RepoId, RepoSpec},
    progress::{self, ProgressCallback},
    record::*,
    store::{Fill, Followers, Store, Wanted},
};
use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};
use tokio_util::sync::CancellationToken;

/// How to import.
#[derive(Clone, Default)]
pub struct ImportOptions {
    /// Called with bytes read and bytes in all. Default: nobody is.
    pub progress: Option<ProgressCallback>,
    /// Ends the import early with [`Error::Cancelled`]; files imported by then stay. Default: none.
    pub cancel: Option<CancellationToken>,
}

/// What an import did.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ImportReport {
    /// The repo imported into.
    pub repo: RepoId,
    /// Files imported.
    pub files: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// Bytes of them whose content was here already.
    pub here_bytes: u64,
    /// Files whose content was here and damaged: theirs took its place, under all its names.
    pub mended_files: u64,
    /// What was found and left out: links to folders, pipes, devices, and the store itself.
    pub skipped: Vec<PathBuf>,
}

/// How long an import waits for others that import or pull the same content, or free it.
const BUSY_PATIENCE: Duration = Duration::from_secs(60);
const BUSY_PAUSE: Duration = Duration::from_millis(20);

/// Bytes read, checksummed and written at a time: what stays in a core's own cache between the three.
const COPY_BYTES: u64 = 256 << 10;

/// What was here of an imported file's content.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Was {
    New,
    Here,
    Damaged,
}

/// Folders that are a tool's own, never a model's.
const SKIPPED_FOLDERS: [&str; 3] = [".git", ".cache", "__pycache__"];

impl ModelCache {
    /// Copies local files into the store under the name `repo`, their SHA-256 computed on the way.
    ///
    /// A file keeps its name; of a folder come all files, under their paths within it, but for `.git`, `.cache` and
    /// `__pycache__`. A name that is taken is given the new content; who reads the old one goes on reading it. Symbolic links are followed to
    /// files, not to folders.
    ///
    /// Content that is here already is checked, block by block, before it is given another name; where it is damaged the file's takes its place, under
    /// all its names, as in a [`repair`](Self::repair).
    ///
    /// # Errors
    /// Before anything is stored: [`Error::InvalidRepo`] (a revision can't be given: an import has no commits), [`Error::Io`] for
    /// what can't be read, [`Error::InvalidPath`] for names the store refuses. [`Error::SourceChanged`] for a file that
    /// changes while it is read; [`Error::Busy`] where somebody else was bringing the same content for a minute; [`Error::Cancelled`].
    /// Files imported by then stay.
    pub fn import(&self, repo: &str, paths: &[PathBuf], options: &ImportOptions) -> Result<ImportReport> {
        let spec: RepoSpec = repo.parse()?;
        if spec.revision.is_some() {
            return Err(Error::InvalidRepo { name: spec.to_string(), reason: "an import has no revisions; write org/name" });
        }
        let repo = PinnedRepo::import(spec.repo);
        let mut sources = BTreeMap::new();
        let mut skipped = Vec::new();
        let store = self.store().folder();
        let store = fs::canonicalize(store).map_err(|source| Error::Io { action: "find", path: store.to_owned(), source })?;
        for path in paths {
            collect(path, &store, &mut sources, &mut skipped)?;
        }
        if sources.is_empty() {
            let value = paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(" ");
            return Err(Error::InvalidOption { name: "PATH", value, reason: "there is no file to import".to_owned() });
        }
        let total_bytes = sources.values().map(|(_, size_bytes)| size_bytes).sum();
        let mut report = ImportReport { repo: repo.repo.clone(), files: 0, bytes: 0, here_bytes: 0, mended_files: 0, skipped };
        for (path, (source, size_bytes)) in sources {
            let before = report.bytes;
            let tell =
                |bytes: u64| progress::tell(options.progress.as_ref(), options.cancel.as_ref(), before + bytes, total_bytes);
            match self.import_one(&repo, path, &source, size_bytes, &tell, options.cancel.as_ref())? {
                Was::New => {}
                Was::Here => report.here_bytes += size_bytes,
                Was::Damaged => report.mended_files += 1,
            }
            report.files += 1;
            report.bytes += size_bytes;
        }
        Ok(report)
    }

    /// Imports one file; says what its content was.
    fn import_one(
        &self,
        repo: &PinnedRepo,
        path: FilePath,
        source: &Path,
        size_bytes: u64,
        tell: &dyn Fn(u64) -> Result<()>,
        cancel: Option<&CancellationToken>,
    ) -> Result<Was> {
        let mut file =
            File::open(source).map_err(|error| Error::Io { action: "read", path: source.to_owned(), source: error })?;
        tell(0)?;
        let wanted = |digest| Wanted { repo: repo.clone(), path: path.clone(), size_bytes, digest };
        if size_bytes <= INLINE_BYTES {
            let mut bytes = vec![0; size_bytes as usize];
            read_exactly(&mut file, source, &mut bytes)?;
            at_end(&mut file, source)?;
            let mut hasher = Hasher::sha256();
            hasher.update(&bytes);
            let wanted = wanted(hasher.finish());
            let mended = self.store().mend_inline(&wanted, &bytes)?;
            let here = self.store().link_if_here(&wanted)?;
            if !here {
                self.store().seal_inline(&wanted, &bytes)?;
            }
            tell(size_bytes)?;
            if mended {
                say_damaged(&wanted);
            }
            return Ok(match (mended, here) {
                (true, _) => Was::Damaged,
                (false, true) => Was::Here,
                (false, false) => Was::New,
            });
        }
        let fill = self.store().begin_import(repo, &path, size_bytes)?;
        storage::fail_point("import.begun");
        let filled = fill_from(&fill, Hasher::sha256(), &mut file, source, tell).and_then(|digest| {
            at_end(&mut file, source)?;
            // All of it is read by now; this only asks whether to go on.
            tell(size_bytes)?;
            let wanted = wanted(digest);
            storage::fail_point("import.filled");
            // Somebody brings the same content just now: once that is here, this is a name for it.
            let begun = Instant::now();
            loop {
                match seal(self.store(), &fill, &wanted, &|| progress::go_on(cancel)) {
                    Err(Error::Busy { .. }) if begun.elapsed() < BUSY_PATIENCE => {
                        tell(size_bytes)?;
                        std::thread::sleep(BUSY_PAUSE);
                    }
                    sealed => return sealed,
                }
            }
        });
        // What is not sealed by now never will be: an import can't be resumed, since its source may change.
        if filled.is_err()
            && let Err(error) = fill.discard()
        {
            tracing::warn!(%error, "an import that was not finished was not freed yet");
        }
        filled
    }
}

/// Gives what was imported its name, or the content that is here, if that is sound; else has it take that one's place.
fn seal(store: &Arc<Store>, fill: &Fill, wanted: &Wanted, go_on: &dyn Fn() -> Result<()>) -> Result<Was> {
    let Some(damaged) = store.find_damaged(wanted, go_on)? else {
        return Ok(if fill.seal(wanted)? { Was::Here } else { Was::New });
    };
    store.end_repair(&damaged, fill, Some(wanted))?;
    // Its lease goes first: the damaged blob is freed at once, unless others read it.
    drop(damaged);
    store.free_replaced();
    say_damaged(wanted);
    Ok(Was::Damaged)
}

fn say_damaged(wanted: &Wanted) {
    let Wanted { repo, path, .. } = wanted;
    tracing::warn!(%repo, %path, "this content was here and damaged: what was imported took its place");
}

/// Reads `file` into `fill`, block by block, each checksummed as it was read, hashed as it is read back, and sent on its way to
/// the disk. The digest of the bytes read back.
pub(crate) fn fill_from(
    fill: &Arc<Fill>,
    hasher: Hasher,
    file: &mut File,
    source: &Path,
    tell: &dyn Fn(u64) -> Result<()>,
) -> Result<Digest> {
    let followers = Followers::start(fill, hasher)?;
    let copied = copy_blocks(fill, &followers, file, source, tell);
    if copied.is_err() {
        fill.cancel();
    }
    // Waited for also after an error: the space they work on is about to be freed.
    let digest = followers.finish();
    copied.and(digest)
}

fn copy_blocks(
    fill: &Fill,
    followers: &Followers,
    file: &mut File,
    source: &Path,
    tell: &dyn Fn(u64) -> Result<()>,
) -> Result<()> {
    let mut buffer = vec![0; COPY_BYTES as usize];
    for block in 0..blocks(fill.size_bytes()) {
        let range = block_range(fill.size_bytes(), block);
        let mut crc = 0;
        for start in range.clone().step_by(COPY_BYTES as usize) {
            let bytes = &mut buffer[..(range.end - start).min(COPY_BYTES) as usize];
            read_exactly(file, source, bytes)?;
            crc = crc32c::crc32c_append(crc, bytes);
            fill.write(start, bytes)?;
        }
        fill.land(block, crc)?;
        if !followers.landed(block) {
            // Reading back failed; `finish` says how.
            return Ok(());
        }
        tell(range.end)?;
    }
    Ok(())
}

fn read_exactly(file: &mut File, source: &Path, bytes: &mut [u8]) -> Result<()> {
    file.read_exact(bytes).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => Error::SourceChanged { path: source.to_owned() },
        _ => Error::Io { action: "read", path: source.to_owned(), source: error },
    })
}

/// The error for a file that has grown since its size was taken.
fn at_end(file: &mut File, source: &Path) -> Result<()> {
    let more = file.read(&mut [0]).map_err(|error| Error::Io { action: "read", path: source.to_owned(), source: error })?;
    if more == 0 { Ok(()) } else { Err(Error::SourceChanged { path: source.to_owned() }) }
}

/// Adds the files at or below `path`, each with its size, under the paths they get in the store. Each is opened once, so that
/// what can't be read is told before anything is stored.
fn collect(
    path: &Path,
    store: &Path,
    sources: &mut BTreeMap<FilePath, (PathBuf, u64)>,
    skipped: &mut Vec<PathBuf>,
) -> Result<()> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| Error::Io { action: "read", path, source }
    };
    let metadata = fs::metadata(path).map_err(failed(path))?;
    if metadata.is_file() {
        let name = path.file_name().unwrap_or_default();
        File::open(path).map_err(failed(path))?;
        return add(Path::new(name), path, metadata.len(), sources);
    }
    if !metadata.is_dir() {
        let value = path.display().to_string();
        return Err(Error::InvalidOption { name: "PATH", value, reason: "it is neither a file nor a folder".to_owned() });
    }
    let mut folders = vec![path.to_owned()];
    while let Some(folder) = folders.pop() {
        if fs::canonicalize(&folder).is_ok_and(|folder| folder.starts_with(store)) {
            skipped.push(folder);
            continue;
        }
        for entry in fs::read_dir(&folder).map_err(failed(&folder))? {
            let entry = entry.map_err(failed(&folder))?;
            let here = entry.path();
            let kind = entry.file_type().map_err(failed(&here))?;
            if kind.is_dir() {
                if !SKIPPED_FOLDERS.iter().any(|skipped| entry.file_name() == *skipped) {
                    folders.push(here);
                }
                continue;
            }
            // A link to nothing may stand for a file of the model: it is not left out in silence.
            let action = if kind.is_symlink() { "follow the link" } else { "read" };
            let metadata = fs::metadata(&here).map_err(|source| Error::Io { action, path: here.clone(), source })?;
            if metadata.is_file() {
                File::open(&here).map_err(failed(&here))?;
                let within = here.strip_prefix(path).unwrap_or(&here).to_owned();
                add(&within, &here, metadata.len(), sources)?;
            } else {
                skipped.push(here);
            }
        }
    }
    Ok(())
}

fn add(name: &Path, source: &Path, size_bytes: u64, sources: &mut BTreeMap<FilePath, (PathBuf, u64)>) -> Result<()> {
    let Some(text) = name.to_str() else {
        return Err(Error::InvalidPath { path: name.to_string_lossy().into_owned(), reason: "it is not UTF-8" });
    };
    let path: FilePath = text.parse()?;
    if let Some((other, _)) = sources.insert(path, (source.to_owned(), size_bytes))
        && other != source
    {
        return Err(Error::InvalidPath { path: text.to_owned(), reason: "two of the files to import would have this name" });
    }
    Ok(())
}
