//! What the origin holds: repos, their commits and refs, and LFS contents by digest. Every id is computed here, on entry.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::sync::Arc;

use serde_json::{Map, Value, json};

use crate::content::Content;
use crate::git;
use crate::repo::{File, RefTo, Repo};

/// The one date of all commits and repos, as in mkhf.py.
pub(crate) const DATE: &str = "2026-01-02T03:04:05.000Z";

/// One file of a commit, hashed.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) path: String,
    pub(crate) size: u64,
    pub(crate) content: Content,
    /// Git's blob id; of an LFS file, that of its pointer.
    pub(crate) oid: String,
    /// Set if LFS stores the file.
    pub(crate) sha256: Option<String>,
}

impl Entry {
    fn new(file: File) -> io::Result<Entry> {
        let size = file.content.size_bytes()?;
        let sha256 = if file.is_lfs(size) { Some(file.content.sha256()?) } else { None };
        let oid = match &sha256 {
            Some(sha256) => git::object_id("blob", git::lfs_pointer(sha256, size).as_bytes()),
            None => file.content.git_blob_id()?,
        };
        Ok(Entry { path: file.path, size, content: file.content, oid, sha256 })
    }

    /// The Hub's identity of the bytes: SHA-256 for LFS, git blob id otherwise.
    pub(crate) fn etag(&self) -> &str {
        self.sha256.as_deref().unwrap_or(&self.oid)
    }

    fn lfs(&self, digest_key: &str) -> Option<Value> {
        let sha256 = self.sha256.as_ref()?;
        Some(json!({digest_key: sha256, "size": self.size, "pointerSize": git::lfs_pointer(sha256, self.size).len()}))
    }

    pub(crate) fn tree_row(&self) -> Value {
        let mut row = json!({"type": "file", "oid": self.oid, "size": self.size, "path": self.path});
        // The tree says lfs.oid where the siblings say lfs.sha256; the value is the same.
        if let Some(lfs) = self.lfs("oid") {
            row["lfs"] = lfs;
        }
        row
    }

    pub(crate) fn sibling(&self, blobs: bool) -> Value {
        if !blobs {
            return json!({"rfilename": self.path});
        }
        let mut row = json!({"rfilename": self.path, "size": self.size, "blobId": self.oid});
        if let Some(lfs) = self.lfs("sha256") {
            row["lfs"] = lfs;
        }
        row
    }
}

/// A set of files under one id.
#[derive(Debug)]
pub(crate) struct Commit {
    pub(crate) id: String,
    pub(crate) files: BTreeMap<String, Arc<Entry>>,
    /// Directory path to git tree id; the root is the empty string.
    pub(crate) directories: BTreeMap<String, String>,
}

impl Commit {
    fn new(files: BTreeMap<String, Arc<Entry>>, parent: Option<&str>) -> Commit {
        let directories = git::tree_ids(files.values().map(|entry| (entry.path.as_str(), entry.oid.as_str())));
        Commit { id: git::commit_id(&directories[""], parent), files, directories }
    }

    /// Tree rows below `directory` (empty: the root): directories first, then files, each by path.
    pub(crate) fn rows(&self, directory: &str, recursive: bool) -> Vec<Value> {
        let prefix = if directory.is_empty() { String::new() } else { format!("{directory}/") };
        let listed = |path: &str| path.strip_prefix(&prefix).is_some_and(|rest| recursive || !rest.contains('/'));
        let directories = self.directories.iter().filter(|(path, _)| !path.is_empty() && listed(path));
        let rows = directories.map(|(path, oid)| json!({"type": "directory", "oid": oid, "size": 0, "path": path}));
        rows.chain(self.files.values().filter(|entry| listed(&entry.path)).map(|entry| entry.tree_row())).collect()
    }
}

/// A repo as served.
#[derive(Debug)]
pub(crate) struct Served {
    pub(crate) id: String,
    pub(crate) private: bool,
    pub(crate) gated: Option<String>,
    pub(crate) disabled: bool,
    pub(crate) meta: Map<String, Value>,
    /// Full ref name to commit.
    pub(crate) refs: BTreeMap<String, Arc<Commit>>,
    commits: HashMap<String, Arc<Commit>>,
    old_ids: Vec<String>,
}

impl Served {
    /// Hashes every file, so it may take seconds for gigabytes.
    pub(crate) fn new(repo: Repo) -> io::Result<Served> {
        let mut served = Served {
            id: repo.id,
            private: repo.private,
            gated: repo.gated,
            disabled: repo.disabled,
            meta: repo.meta,
            refs: BTreeMap::new(),
            commits: HashMap::new(),
            old_ids: repo.old_ids,
        };
        served.point("refs/heads/main", Commit::new(hashed(repo.main)?, None));
        let mut later = Vec::new();
        for (name, target) in repo.refs {
            match target {
                RefTo::Files(files) => served.point(&name, Commit::new(hashed(files)?, None)),
                RefTo::Revision(revision) => later.push((name, revision)),
            }
        }
        for (name, revision) in later {
            let missing = || io::Error::new(io::ErrorKind::NotFound, format!("{name} points at {revision}, which is not there"));
            let commit = served.commit(&revision).ok_or_else(missing)?;
            served.refs.insert(name, commit);
        }
        Ok(served)
    }

    fn point(&mut self, full_name: &str, commit: Commit) {
        let commit = Arc::new(commit);
        self.commits.insert(commit.id.clone(), commit.clone());
        self.refs.insert(full_name.to_owned(), commit);
    }

    /// The commit a revision names: full ref, branch, tag, or 40-digit id.
    pub(crate) fn commit(&self, revision: &str) -> Option<Arc<Commit>> {
        let short = |kind: &str| self.refs.get(&format!("refs/{kind}/{revision}"));
        let named = self.refs.get(revision).or_else(|| short("heads")).or_else(|| short("tags"));
        named.or_else(|| self.commits.get(revision)).cloned()
    }

    fn change(&mut self, revision: &str, change: impl FnOnce(&mut BTreeMap<String, Arc<Entry>>)) -> Arc<Commit> {
        let full = if revision.starts_with("refs/") { revision.to_owned() } else { format!("refs/heads/{revision}") };
        let before = self.refs.get(&full).cloned();
        let mut files = before.as_ref().map(|commit| commit.files.clone()).unwrap_or_default();
        change(&mut files);
        self.point(&full, Commit::new(files, before.as_ref().map(|commit| commit.id.as_str())));
        self.refs[&full].clone()
    }
}

fn hashed(files: Vec<File>) -> io::Result<BTreeMap<String, Arc<Entry>>> {
    files.into_iter().map(|file| Ok((file.path.clone(), Arc::new(Entry::new(file)?)))).collect()
}

/// An LFS content, and the first file seen to hold it.
#[derive(Clone, Debug)]
pub(crate) struct Blob {
    pub(crate) entry: Arc<Entry>,
    pub(crate) repo: String,
}

/// A repo id looked up.
pub(crate) enum Lookup<'a> {
    Found(&'a Served),
    /// An old id, or other letter case: the canonical id.
    Moved(&'a str),
    Unknown,
}

/// All repos and LFS contents of one origin.
#[derive(Debug, Default)]
pub(crate) struct Store {
    /// By lower-case id.
    repos: HashMap<String, Served>,
    /// Lower-case old id to canonical id.
    moved: HashMap<String, String>,
    blobs: HashMap<String, Blob>,
}

impl Store {
    pub(crate) fn insert(&mut self, repo: Served) {
        for commit in repo.commits.values() {
            register_blobs(&mut self.blobs, &repo.id, commit);
        }
        for old in &repo.old_ids {
            self.moved.insert(old.to_lowercase(), repo.id.clone());
        }
        self.repos.insert(repo.id.to_lowercase(), repo);
    }

    pub(crate) fn remove(&mut self, id: &str) -> bool {
        self.repos.remove(&id.to_lowercase()).is_some()
    }

    pub(crate) fn lookup(&self, id: &str) -> Lookup<'_> {
        let lower = id.to_lowercase();
        match (self.repos.get(&lower), self.moved.get(&lower)) {
            (Some(repo), _) if repo.id == id => Lookup::Found(repo),
            (Some(repo), _) => Lookup::Moved(&repo.id),
            (None, Some(canonical)) => Lookup::Moved(canonical),
            (None, None) => Lookup::Unknown,
        }
    }

    pub(crate) fn repo(&self, id: &str) -> Option<&Served> {
        self.repos.get(&id.to_lowercase())
    }

    pub(crate) fn blob(&self, sha256: &str) -> Option<&Blob> {
        self.blobs.get(sha256)
    }

    /// Adds a commit to `revision` of `repo`: `files` put over those it had, `removed` taken away. `None` if there is no such repo.
    pub(crate) fn push(&mut self, repo: &str, revision: &str, files: Vec<Arc<Entry>>, removed: &[&str]) -> Option<String> {
        let served = self.repos.get_mut(&repo.to_lowercase())?;
        let commit = served.change(revision, |all| {
            all.extend(files.into_iter().map(|entry| (entry.path.clone(), entry)));
            all.retain(|path, _| !removed.contains(&path.as_str()));
        });
        register_blobs(&mut self.blobs, &served.id, &commit);
        Some(commit.id.clone())
    }
}

/// Hashes files outside any lock, for [`Store::push`].
pub(crate) fn hash_all(files: Vec<File>) -> io::Result<Vec<Arc<Entry>>> {
    Ok(hashed(files)?.into_values().collect())
}

fn register_blobs(blobs: &mut HashMap<String, Blob>, repo: &str, commit: &Commit) {
    for entry in commit.files.values() {
        if let Some(sha256) = &entry.sha256 {
            blobs.entry(sha256.clone()).or_insert_with(|| Blob { entry: entry.clone(), repo: repo.to_owned() });
        }
    }
}
