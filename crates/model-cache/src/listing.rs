//! What is here: repos, their files, and how much room they take.

use crate::{
    cache::ModelCache,
    error::{Attempted, Error, Result},
    key::{self, PinnedRepo},
    name::{CommitId, FilePath, RepoId, RepoSpec},
    record::*,
    store::Unfinished,
};
use std::{
    collections::{BTreeMap, HashMap, HashSet},
    time::{Duration, SystemTime},
};

/// One repo at one commit, or an import.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct RepoSummary {
    /// The repo.
    pub repo: RepoId,
    /// The commit; none for an import.
    pub commit: Option<CommitId>,
    /// The quants of which every file is here.
    pub quants: Vec<String>,
    /// How many complete files are here.
    pub files: u64,
    /// How many were begun and are not complete.
    pub filling_files: u64,
    /// Bytes of the unfinished ones that have landed.
    pub landed_bytes: u64,
    /// Bytes of the complete ones; content shared with other repos counts in each.
    pub size_bytes: u64,
    /// When a file of it was last opened, as far as that was written down.
    pub last_used: Option<SystemTime>,
    /// Processes that read a file of it now, as far as this one may look.
    pub readers: Vec<u32>,
    /// Names whose record is damaged: they can't be read until they are repaired, and are counted nowhere else.
    pub damaged_files: u64,
}

/// The files of one repo at one commit.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct RepoFiles {
    /// The repo.
    pub repo: RepoId,
    /// The commit; none for an import.
    pub commit: Option<CommitId>,
    /// Its files, sorted by path, unfinished ones included.
    pub files: Vec<FileInfo>,
}

/// One file.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct FileInfo {
    /// Its path.
    pub path: FilePath,
    /// Its size.
    pub size_bytes: u64,
    /// How many chunks it is stored in.
    pub chunks: u32,
    /// `sha256:<hex>` or `git-sha1:<hex>`.
    pub digest: String,
    /// How far it is.
    pub state: FileState,
    /// Bytes of it that are here.
    pub landed_bytes: u64,
    /// Processes that read it now, as far as this one may look.
    pub readers: Vec<u32>,
}

/// How far a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FileState {
    /// Complete, verified, visible to readers.
    Sealed,
    /// Begun; a pull finishes it.
    Filling,
}

impl FileState {
    /// The state as it is written: lower case.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Sealed => "sealed",
            Self::Filling => "filling",
        }
    }
}

/// How much is here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Names of complete files.
    pub files: u64,
    /// Chunks of complete content; content with several names counts once.
    pub chunks: u64,
    /// Bytes of complete content.
    pub live_bytes: u64,
    /// Bytes of values made of content for loaders that need another layout; they go with the content they were made of.
    pub derived_bytes: u64,
    /// Bytes reserved for content that is being fetched, or was begun.
    pub filling_bytes: u64,
    /// Bytes of content without a name that waits for its last reader.
    pub doomed_bytes: u64,
    /// Disk space of the whole store, as `du` counts it.
    pub disk_bytes: u64,
    /// Names and blobs whose record is damaged, which count nowhere else. [`ModelCache::repair`] mends them.
    pub damaged_records: u64,
}

/// What the records say of one repo's files.
#[derive(Default)]
struct Here {
    paths: Vec<FilePath>,
    size_bytes: u64,
    filling_files: u64,
    landed_bytes: u64,
    last_used_unix_ms: Option<i64>,
    damaged_files: u64,
    /// Blobs somebody has a lease on.
    leased: Vec<u64>,
}

impl ModelCache {
    /// Every repo that has a file here, complete or begun, a row for each commit of it, sorted by name.
    ///
    /// Cost: reads every name's and every blob's record once; where files are being read, also `/proc`, to name the readers.
    ///
    /// # Errors
    /// Those of the store.
    pub fn list(&self) -> Result<Vec<RepoSummary>> {
        let store = self.store();
        let (last_used, leased) = (store.last_used_unix_ms()?, store.leased()?);
        let mut repos: BTreeMap<PinnedRepo, Here> = BTreeMap::new();
        let mut reading: Option<(PinnedRepo, Here)> = None;
        let damaged = store.each_name("meta:", |repo, path, metadata| {
            // Names of one repo follow one another.
            if reading.as_ref().is_none_or(|(last, _)| *last != repo) {
                repos.extend(reading.replace((repo, Here::default())));
            }
            if let Some((_, here)) = &mut reading {
                here.size_bytes += metadata.size_bytes;
                here.last_used_unix_ms = here.last_used_unix_ms.max(last_used.get(&metadata.blob_id).copied());
                here.leased.extend(leased.get(&metadata.blob_id));
                here.paths.push(path);
            }
        })?;
        repos.extend(reading);
        for (repo, _) in damaged.iter().filter_map(damaged_name) {
            repos.entry(repo).or_default().damaged_files += 1;
        }
        for Unfinished { repo, landed_bytes, .. } in store.fills()? {
            let here = repos.entry(repo).or_default();
            here.filling_files += 1;
            here.landed_bytes += landed_bytes;
        }
        repos.into_iter().map(|(repo, here)| self.summary(repo, here)).collect()
    }

    fn summary(&self, repo: PinnedRepo, here: Here) -> Result<RepoSummary> {
        let store = self.store();
        let mut quants = Vec::new();
        // A damaged one offers nothing; it keeps nobody from the files.
        let manifest = match store.get_manifest(&repo) {
            Err(error) if error.is_corruption() => {
                tracing::warn!("{}; to mend it: model-cache repair {}", error.chain(), repo.repo);
                None
            }
            manifest => manifest?,
        };
        if let Some(entry) = manifest {
            let paths: HashSet<&str> = here.paths.iter().map(FilePath::as_str).collect();
            let complete = |quant: &&QuantEntry| entry.files_of(quant).iter().all(|path| paths.contains(path.as_str()));
            quants.extend(entry.quants.iter().filter(complete).map(|quant| quant.key.clone()));
        }
        let mut readers: Vec<u32> = here.leased.iter().flat_map(|&id| store.holders(id)).collect();
        readers.sort_unstable();
        readers.dedup();
        Ok(RepoSummary {
            repo: repo.repo,
            commit: repo.commit,
            quants,
            files: here.paths.len() as u64,
            filling_files: here.filling_files,
            landed_bytes: here.landed_bytes,
            size_bytes: here.size_bytes,
            last_used: here.last_used_unix_ms.map(|ms| SystemTime::UNIX_EPOCH + Duration::from_millis(ms.max(0) as u64)),
            readers,
            damaged_files: here.damaged_files,
        })
    }

    /// The files of `repo` that are here or were begun: at the commit given, else at each commit that has any, the one local reads
    /// go to first.
    ///
    /// # Errors
    /// [`Error::NotInStore`] if there are none.
    pub fn files(&self, repo: &str) -> Result<Vec<RepoFiles>> {
        let spec: RepoSpec = repo.parse()?;
        let mut repos = self.store().local_repos(&spec)?;
        for pinned in self.store().all_repos(&spec)? {
            if !repos.contains(&pinned) {
                repos.push(pinned);
            }
        }
        if spec.revision.is_some() {
            repos.truncate(1);
        }
        let mut filling: HashMap<PinnedRepo, Vec<FileInfo>> = HashMap::new();
        for Unfinished { repo: pinned, path, blob_key, size_bytes, landed_bytes } in self.store().fills()? {
            if repos.contains(&pinned) {
                let info = FileInfo {
                    path,
                    size_bytes,
                    chunks: chunks(size_bytes),
                    digest: blob_key.strip_prefix("blob:").unwrap_or_default().to_owned(),
                    state: FileState::Filling,
                    landed_bytes,
                    readers: Vec::new(),
                };
                filling.entry(pinned).or_default().push(info);
            }
        }
        let leased = self.store().leased()?;
        let readers = |id: u64| if leased.contains(&id) { self.store().holders(id) } else { Vec::new() };
        let mut found = Vec::new();
        for pinned in repos {
            let mut files = filling.remove(&pinned).unwrap_or_default();
            for (path, metadata) in self.store().files_of(&pinned)? {
                files.push(FileInfo {
                    path,
                    size_bytes: metadata.size_bytes,
                    chunks: chunks(metadata.size_bytes),
                    digest: metadata.digest,
                    state: FileState::Sealed,
                    landed_bytes: metadata.size_bytes,
                    readers: readers(metadata.blob_id),
                });
            }
            if !files.is_empty() {
                files.sort_by(|a, b| a.path.cmp(&b.path));
                found.push(RepoFiles { repo: pinned.repo, commit: pinned.commit, files });
            }
        }
        if found.is_empty() { Err(Error::NotInStore { repo: spec }) } else { Ok(found) }
    }

    /// How much is here, and how much disk it takes.
    ///
    /// # Errors
    /// Those of the store.
    pub fn stats(&self) -> Result<Stats> {
        let mut stats = Stats::default();
        let damaged_names = self.store().each_name("meta:", |_, _, _| stats.files += 1)?;
        let damaged_blobs = self.store().each_blob("", |_, blob| match blob.state {
            BlobState::Sealed if key::is_derived_home(&blob.home) => stats.derived_bytes += blob.size_bytes,
            BlobState::Sealed => {
                stats.chunks += u64::from(chunks(blob.size_bytes));
                stats.live_bytes += blob.size_bytes;
            }
            BlobState::Filling => stats.filling_bytes += blob.size_bytes,
            BlobState::Doomed | BlobState::Freeing => stats.doomed_bytes += blob.size_bytes,
        })?;
        stats.damaged_records = (damaged_names.len() + damaged_blobs.len()) as u64;
        let folder = self.store().folder();
        stats.disk_bytes = storage::allocated_bytes(folder).attempted(|| format!("could not measure {}", folder.display()))?;
        Ok(stats)
    }
}

/// The name a damaged record belongs to, if it is a name's.
fn damaged_name(error: &storage::Error) -> Option<(PinnedRepo, FilePath)> {
    match error {
        storage::Error::BadRecord { key, .. } => key::parse_meta(key),
        _ => None,
    }
}
