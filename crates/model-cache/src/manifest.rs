//! What a repo offers at a commit, quant by quant, and how much of it is here: [`Manifest`].

use crate::{
    digest::Digest,
    error::{Error, Result},
    hub::{ModelInfo, TreeFile},
    key::{self, PinnedRepo},
    name::{CommitId, FilePath, RepoId},
    quant,
    record::*,
    store::Store,
};
use serde::Serialize;
use std::collections::{BTreeMap, HashMap};

/// What a repo offers at one commit, and what of it the store has.
///
/// What it says of the store is read from the blobs when it is made, so it is true then; it does not follow later changes.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Manifest {
    /// The repo.
    pub repo: RepoId,
    /// The commit.
    pub commit: CommitId,
    /// What the model is for, such as `text-generation`, if its page says so.
    pub task: Option<String>,
    /// The quants, by the names people type: `Q4_K_M`, `q4f16`, `fp16`; `default` where names carry none.
    pub quants: BTreeMap<String, QuantInfo>,
    /// Every file of the commit, sorted by path.
    pub files: Vec<ManifestFile>,
    /// Paths every quant uses: configs, tokenizers.
    pub shared: Vec<String>,
    /// Paths no quant uses; `--file` and `--all` reach them.
    pub extras: Vec<String>,
}

/// One file of a commit.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ManifestFile {
    /// Its path.
    pub path: FilePath,
    /// Its size.
    pub size_bytes: u64,
    /// The Hub's digest of it.
    pub digest: Digest,
}

/// One quant: the files a loader needs for one precision.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct QuantInfo {
    /// How far it is.
    pub status: QuantStatus,
    /// All its files, those shared with other quants included, sorted.
    pub files: Vec<String>,
    /// The files that are its alone.
    pub own_files: Vec<String>,
    /// Bytes of all its files.
    pub total_bytes: u64,
    /// Bytes of them that are here, unfinished files' landed blocks included.
    pub downloaded_bytes: u64,
    /// Files that names of the others promise and the repo lacks: absent shards, sessions.
    pub missing: Vec<String>,
    /// Why the last pull of it failed, if it did.
    pub last_error: Option<String>,
}

/// How far a quant is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum QuantStatus {
    /// Nothing of it is here.
    Available,
    /// Some process is pulling it now.
    Downloading,
    /// Every file of it is here, verified.
    Downloaded,
    /// The last pull of it ended with an error; what had landed is kept.
    Failed,
    /// It was begun, and nobody is at it.
    Partial,
}

impl QuantStatus {
    /// The status as it is written: lower case.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Available => "available",
            Self::Downloading => "downloading",
            Self::Downloaded => "downloaded",
            Self::Failed => "failed",
            Self::Partial => "partial",
        }
    }
}

impl std::fmt::Display for QuantStatus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.as_str())
    }
}

/// What announces that a quant is being pulled.
pub(crate) fn activity(repo: &PinnedRepo, quant: &str) -> String {
    format!("pull {repo} {quant}")
}

/// The record of a listing the Hub gave.
pub(crate) fn entry(info: &ModelInfo, files: &[TreeFile]) -> ManifestEntry {
    let listed: Vec<_> =
        files.iter().map(|file| quant::Listed { path: file.path.as_str(), size_bytes: file.size_bytes }).collect();
    let offer = quant::classify(&listed);
    let mut files: Vec<_> = files
        .iter()
        .map(|file| ListedFile { path: file.path.to_string(), size_bytes: file.size_bytes, digest: file.digest.to_string() })
        .collect();
    files.sort_by(|a, b| a.path.cmp(&b.path));
    let quants = offer
        .quants
        .into_iter()
        .map(|(key, quant)| QuantEntry {
            key,
            own: quant.own,
            shared: quant.companions,
            missing: quant.missing,
            last_error: None,
        })
        .collect();
    ManifestEntry {
        task: info.task.clone(),
        scanned_unix_ms: now_unix_ms(),
        files,
        quants,
        shared: offer.shared,
        extras: offer.extras,
    }
}

impl ManifestEntry {
    /// The listed files, parsed.
    pub(crate) fn tree_files(&self) -> Result<Vec<TreeFile>> {
        self.files
            .iter()
            .map(|file| Ok(TreeFile { path: file.path.parse()?, size_bytes: file.size_bytes, digest: file.digest.parse()? }))
            .collect()
    }

    /// All paths of a quant, sorted: its own, its companions and what every quant uses.
    pub(crate) fn files_of(&self, quant: &QuantEntry) -> Vec<String> {
        let mut files: Vec<_> = [&quant.own, &quant.shared, &self.shared].into_iter().flatten().cloned().collect();
        files.sort_unstable();
        files.dedup();
        files
    }

    /// The quant a person means by `typed`, case ignored.
    pub(crate) fn find_quant(&self, repo: &RepoId, typed: &str) -> Result<&QuantEntry> {
        let keys = || self.quants.iter().map(|quant| quant.key.as_str());
        let found = quant::find(keys(), typed).and_then(|key| self.quants.iter().find(|quant| quant.key == key));
        found.ok_or_else(|| Error::QuantNotFound {
            repo: repo.clone(),
            quant: crate::name::printable(typed),
            offered: keys().map(str::to_owned).collect(),
        })
    }
}

/// The listing `entry` of `repo`, reconciled with what the store has.
pub(crate) fn reconcile(store: &Store, repo: &PinnedRepo, entry: &ManifestEntry) -> Result<Manifest> {
    let commit = repo
        .commit
        .clone()
        .ok_or_else(|| Error::Damaged { what: format!("the manifest of {repo}"), reason: "it has no commit".to_owned() })?;
    let named: HashMap<String, u64> =
        store.files_of(repo)?.into_iter().map(|(path, metadata)| (path.to_string(), metadata.size_bytes)).collect();
    let files = entry.tree_files()?;
    // Bytes of each file here: whole where the name is, else what an unfinished fill of its content has landed.
    let mut here: HashMap<&str, u64> = HashMap::new();
    for file in &files {
        let path = file.path.as_str();
        let bytes = match named.get(path) {
            Some(bytes) => *bytes,
            None if file.size_bytes <= INLINE_BYTES => 0,
            None => {
                let blob_key = key::blob(&file.digest);
                match store.blob(&blob_key)? {
                    Some(blob) if blob.state == BlobState::Filling => store.landed_bytes(&blob_key)?,
                    _ => 0,
                }
            }
        };
        here.insert(path, bytes);
    }
    let sizes: HashMap<&str, u64> = files.iter().map(|file| (file.path.as_str(), file.size_bytes)).collect();
    let mut quants = BTreeMap::new();
    for quant in &entry.quants {
        let all = entry.files_of(quant);
        let complete = all.iter().all(|path| named.contains_key(path));
        let begun = quant.own.iter().any(|path| here.get(path.as_str()).is_some_and(|bytes| *bytes > 0));
        let status = if complete {
            QuantStatus::Downloaded
        } else if store.is_active(&activity(repo, &quant.key))? {
            QuantStatus::Downloading
        } else if quant.last_error.is_some() {
            QuantStatus::Failed
        } else if begun {
            QuantStatus::Partial
        } else {
            QuantStatus::Available
        };
        let sum = |of: &HashMap<&str, u64>| all.iter().filter_map(|path| of.get(path.as_str())).sum();
        let info = QuantInfo {
            status,
            total_bytes: sum(&sizes),
            downloaded_bytes: sum(&here),
            own_files: quant.own.clone(),
            missing: quant.missing.clone(),
            last_error: quant.last_error.clone().filter(|_| status == QuantStatus::Failed),
            files: all,
        };
        quants.insert(quant.key.clone(), info);
    }
    Ok(Manifest {
        repo: repo.repo.clone(),
        commit,
        task: entry.task.clone(),
        quants,
        shared: entry.shared.clone(),
        extras: entry.extras.clone(),
        files: files.into_iter().map(|TreeFile { path, size_bytes, digest }| ManifestFile { path, size_bytes, digest }).collect(),
    })
}
