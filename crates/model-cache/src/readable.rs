//! What reads find: [`ReadableRepo`], for those who show the store as something else, such as a tree of files.

use crate::{
    cache::ModelCache,
    error::{Error, Result},
    key::PinnedRepo,
    name::{CommitId, FilePath, RepoId, RepoSpec},
    record::FileMetadata,
};
use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime},
};

/// The complete files that reads of one name find, each path once.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ReadableRepo {
    /// The name, as [`ModelCache::get_file`] takes it.
    pub spec: RepoSpec,
    /// The commit most reads of it go to; none for an import.
    pub commit: Option<CommitId>,
    /// Its files, sorted by path.
    pub files: Vec<ReadableFile>,
}

/// A complete file.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ReadableFile {
    /// Its path.
    pub path: FilePath,
    /// Its size.
    pub size_bytes: u64,
    /// `sha256:<hex>` or `git-sha1:<hex>`.
    pub digest: String,
    /// When it was sealed under this name.
    pub created: SystemTime,
}

type Files = BTreeMap<FilePath, FileMetadata>;

impl ModelCache {
    /// Every name under which a complete file can be read: `org/name` where local reads of it find any, and `org/name@commit` for
    /// each commit; sorted.
    ///
    /// Cost: reads every name's record, and two more a repo; nothing of the files themselves, no leases.
    ///
    /// # Errors
    /// Those of the store.
    pub fn readable(&self) -> Result<Vec<ReadableRepo>> {
        let mut repos: BTreeMap<RepoId, BTreeMap<PinnedRepo, Files>> = BTreeMap::new();
        for (pinned, path, metadata) in self.store().all_files()? {
            repos.entry(pinned.repo.clone()).or_default().entry(pinned).or_default().insert(path, metadata);
        }
        let mut found = Vec::new();
        for (repo, pinned) in repos {
            let spec = RepoSpec { repo, revision: None };
            let local = self.store().local_repos(&spec)?;
            found.extend(merge(spec, local.iter().filter_map(|repo| Some((repo, pinned.get(repo)?.clone())))));
            for (repo, files) in pinned {
                let Some(commit) = &repo.commit else { continue };
                let spec = RepoSpec { repo: repo.repo.clone(), revision: Some(commit.as_str().parse()?) };
                found.extend(merge(spec, [(&repo, files)].into_iter()));
            }
        }
        Ok(found)
    }

    /// The complete files that reads of `repo` find.
    ///
    /// # Errors
    /// [`Error::NotInStore`] if there are none.
    pub fn readable_in(&self, repo: &str) -> Result<ReadableRepo> {
        let spec: RepoSpec = repo.parse()?;
        let mut found = Vec::new();
        for pinned in self.store().local_repos(&spec)? {
            let files = self.store().files_of(&pinned)?;
            found.push((pinned, files.into_iter().collect::<Files>()));
        }
        let merged = merge(spec.clone(), found.iter().map(|(repo, files)| (repo, files.clone())));
        merged.ok_or(Error::NotInStore { repo: spec })
    }
}

/// What `spec` finds in the first of `repos` that has it, path by path, as [`ModelCache::get_file`] looks; `None` if that is nothing.
fn merge<'a>(spec: RepoSpec, repos: impl Iterator<Item = (&'a PinnedRepo, Files)>) -> Option<ReadableRepo> {
    let (mut commit, mut merged) = (None, Files::new());
    for (repo, files) in repos {
        if merged.is_empty() && !files.is_empty() {
            commit = repo.commit.clone();
        }
        for (path, metadata) in files {
            merged.entry(path).or_insert(metadata);
        }
    }
    let file = |(path, metadata): (FilePath, FileMetadata)| ReadableFile {
        path,
        size_bytes: metadata.size_bytes,
        digest: metadata.digest,
        created: SystemTime::UNIX_EPOCH + Duration::from_millis(metadata.created_unix_ms.max(0) as u64),
    };
    (!merged.is_empty()).then(|| ReadableRepo { spec, commit, files: merged.into_iter().map(file).collect() })
}
