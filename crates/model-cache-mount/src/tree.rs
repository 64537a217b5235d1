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

#[cfg(test)]
mod tests {
    use super::*;
    use std::{collections::BTreeSet, time::Duration};

    fn empty() -> Tree {
        Tree { nodes: HashMap::from([("".to_owned(), Node::Folder(Folder::new()))]), files: 0, bytes: 0 }
    }

    fn file(path: &str, size_bytes: u64) -> FileNode {
        let created = SystemTime::UNIX_EPOCH + Duration::from_secs(size_bytes);
        FileNode { repo: "o/n".into(), path: path.parse().unwrap(), size_bytes, digest: path.to_owned(), created }
    }

    fn listed(tree: &Tree, path: &str) -> Vec<String> {
        let Some(Node::Folder(folder)) = tree.get(path) else { panic!("{path:?} is no folder") };
        folder.listed().map(str::to_owned).collect()
    }

    #[test]
    fn every_file_is_in_every_folder_above_it_whatever_the_order() {
        // All paths of one to three parts of three names: many are folders of others, and then the first to come stays.
        let names = ["a", "b", "a.b"];
        let mut paths: Vec<String> = names.map(str::to_owned).to_vec();
        for _ in 0..2 {
            let longer: Vec<_> = paths.iter().flat_map(|path| names.map(|name| format!("{path}/{name}"))).collect();
            paths.extend(longer);
        }
        paths.sort();
        paths.dedup();
        for round in 0..200_usize {
            let mut order = paths.clone();
            // Some of them, in an order of its own each round.
            order.sort_by_key(|path| (path.len() * 31 + path.bytes().map(usize::from).sum::<usize>() * (round + 7)) % 101);
            order.truncate(1 + round % paths.len());
            let (mut tree, mut model) = (empty(), BTreeSet::<String>::new());
            for (n, path) in order.iter().enumerate() {
                tree.insert(&format!("o/n/{path}"), file(path, n as u64 + 1), 3, true);
                let clash = model.iter().any(|other| {
                    other == path || other.starts_with(&format!("{path}/")) || path.starts_with(&format!("{other}/"))
                });
                if !clash {
                    model.insert(path.clone());
                }
            }
            assert_eq!(tree.files, model.len() as u64);
            let mut folders: HashMap<String, BTreeSet<String>> = HashMap::new();
            for path in &model {
                let full = format!("o/n/{path}");
                assert!(matches!(tree.get(&full), Some(Node::File(file)) if file.path.as_str() == path), "{path}");
                let mut below = full.as_str();
                while !below.is_empty() {
                    let name = below.rsplit('/').next().unwrap().to_owned();
                    below = parent(below);
                    folders.entry(below.to_owned()).or_default().insert(name);
                }
            }
            assert_eq!(tree.nodes.len(), model.len() + folders.len());
            for (folder, names) in folders {
                assert_eq!(listed(&tree, &folder), names.into_iter().collect::<Vec<_>>(), "{folder:?}");
            }
        }
    }

    #[test]
    fn what_is_not_listed_is_there_and_counts_for_nothing() {
        let mut tree = empty();
        tree.insert("o/n/x/y", file("x/y", 10), 3, true);
        tree.insert("o/n@c/x/y", file("x/y", 10), 5, false);
        assert_eq!((listed(&tree, "o"), tree.files, tree.bytes), (vec!["n".to_owned()], 1, 10));
        assert!(matches!(tree.get("o/n@c/x/y"), Some(Node::File(_))));
        assert_eq!(listed(&tree, "o/n@c"), ["x"]);
        let Some(Node::Folder(folder)) = tree.get("o") else { panic!() };
        assert_eq!((folder.folders, folder.modified), (1, SystemTime::UNIX_EPOCH + Duration::from_secs(10)));
    }
}
