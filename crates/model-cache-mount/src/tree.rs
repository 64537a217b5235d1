//! The store as a tree of folders and files: [`Tree`], a value made of what reads find.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::SystemTime,
};
use tabagent_model_cache::{FilePath, ReadableRepo};

/// What a mount shows, at one moment. Paths are relative to its root, which is "".
#[derive(Debug)]
pub(crate) struct Tree {
    nodes: HashMap<String, Node>,
    /// Files that are listed, and their bytes.
    pub(crate) files: u64,
    pub(crate) bytes: u64,
}

#[derive(Debug)]
pub(crate) enum Node {
    Folder(Folder),
    File(Arc<FileNode>),
}

#[derive(Debug)]
pub(crate) struct Folder {
    /// Names of what is in it, and whether it is listed.
    entries: BTreeMap<String, bool>,
    pub(crate) folders: u32,
    /// When the newest file below it was sealed.
    pub(crate) modified: SystemTime,
}

/// A file, and how to open it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct FileNode {
    /// What [`get_file`](tabagent_model_cache::ModelCache::get_file) takes as its repo.
    pub(crate) repo: Arc<str>,
    pub(crate) path: FilePath,
    pub(crate) size_bytes: u64,
    pub(crate) digest: String,
    pub(crate) created: SystemTime,
}

impl Folder {
    fn new() -> Self {
        Self { entries: BTreeMap::new(), folders: 0, modified: SystemTime::UNIX_EPOCH }
    }

    /// The names a listing has, sorted.
    pub(crate) fn listed(&self) -> impl Iterator<Item = &str> {
        self.entries.iter().filter(|(_, listed)| **listed).map(|(name, _)| name.as_str())
    }
}

/// The path of `name` in the folder `parent`.
pub(crate) fn join(parent: &str, name: &str) -> String {
    if parent.is_empty() { name.to_owned() } else { format!("{parent}/{name}") }
}

/// The folder a path is in; the root is in itself.
pub(crate) fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(parent, _)| parent)
}

impl Tree {
    /// A tree of `repos`, each a folder of its name. A commit that the plain name goes to is there and not listed: else everything
    /// would be listed twice.
    pub(crate) fn new(repos: Vec<ReadableRepo>) -> Self {
        let root = ("".to_owned(), Node::Folder(Folder::new()));
        let mut tree = Self { nodes: HashMap::from([root]), files: 0, bytes: 0 };
        let plain = repos.iter().filter(|repo| repo.spec.revision.is_none());
        let current: HashMap<_, _> = plain.map(|repo| (repo.spec.repo.clone(), repo.commit.clone())).collect();
        for repo in repos {
            let revision_is_commit = repo.spec.revision.as_ref().is_some_and(|revision| revision.as_commit().is_some());
            let listed = !(revision_is_commit && current.get(&repo.spec.repo) == Some(&repo.commit));
            let name: Arc<str> = repo.spec.to_string().into();
            for file in repo.files {
                let path = join(&name, file.path.as_str());
                let (size_bytes, digest, created) = (file.size_bytes, file.digest, file.created);
                let node = FileNode { repo: Arc::clone(&name), path: file.path, size_bytes, digest, created };
                tree.insert(&path, node, name.len(), listed);
            }
        }
        tree
    }

    /// Puts a file in its place, with the folders on the way. The folder whose path ends at `repo_end`, a repo's, is listed or not.
    fn insert(&mut self, path: &str, file: FileNode, repo_end: usize, listed: bool) {
        let ends: Vec<usize> = path.match_indices('/').map(|(at, _)| at).collect();
        // Two commits that share a name may have a file here where the other has a folder: the file of the first one stays.
        if ends.iter().any(|end| matches!(self.nodes.get(&path[..*end]), Some(Node::File(_)))) || self.nodes.contains_key(path) {
            return;
        }
        let created = file.created;
        for end in ends {
            let folder = &path[..end];
            if !self.nodes.contains_key(folder) {
                self.nodes.insert(folder.to_owned(), Node::Folder(Folder::new()));
                self.enter(folder, listed || end != repo_end, true);
            }
            self.touch(folder, created);
        }
        self.touch("", created);
        self.files += u64::from(listed);
        self.bytes += if listed { file.size_bytes } else { 0 };
        self.nodes.insert(path.to_owned(), Node::File(Arc::new(file)));
        self.enter(path, true, false);
    }

    /// Enters `path` in the folder it is in.
    fn enter(&mut self, path: &str, listed: bool, is_folder: bool) {
        let name = path.rsplit('/').next().unwrap_or(path).to_owned();
        if let Some(Node::Folder(folder)) = self.nodes.get_mut(parent(path)) {
            folder.folders += u32::from(is_folder && listed);
            folder.entries.insert(name, listed);
        }
    }

    fn touch(&mut self, folder: &str, created: SystemTime) {
        if let Some(Node::Folder(folder)) = self.nodes.get_mut(folder) {
            folder.modified = folder.modified.max(created);
        }
    }

    pub(crate) fn get(&self, path: &str) -> Option<&Node> {
        self.nodes.get(path)
    }
}
