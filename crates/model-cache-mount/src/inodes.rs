//! Numbers for the kernel: [`Inodes`]. A number stands for a path, and for a file also for its content, as long as the mount lives.

use crate::tree::FileNode;
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// The root's number, as FUSE has it.
pub(crate) const ROOT: u64 = 1;

/// What a number stands for.
#[derive(Clone, Debug)]
pub(crate) enum Inode {
    /// A folder, by its path.
    Folder(Arc<str>),
    /// A file of one content. Another content under the same path has another number, so what the kernel cached of this one, size
    /// and pages, stays true for ever.
    File(Arc<FileNode>),
}

/// The numbers given so far. They are never taken back or reused: some 200 bytes a name the mount has shown.
#[derive(Debug)]
pub(crate) struct Inodes {
    given: Mutex<Given>,
}

#[derive(Debug)]
struct Given {
    /// Path, and for a file the digest of its content.
    numbers: HashMap<(Arc<str>, Option<String>), u64>,
    /// By number, from [`ROOT`].
    inodes: Vec<Inode>,
}

impl Inodes {
    pub(crate) fn new() -> Self {
        let root: Arc<str> = "".into();
        let numbers = HashMap::from([((Arc::clone(&root), None), ROOT)]);
        Self { given: Mutex::new(Given { numbers, inodes: vec![Inode::Folder(root)] }) }
    }

    pub(crate) fn get(&self, number: u64) -> Option<Inode> {
        let index = number.checked_sub(ROOT)?;
        self.lock().inodes.get(usize::try_from(index).ok()?).cloned()
    }

    pub(crate) fn of_folder(&self, path: &str) -> u64 {
        self.number(path, None, Inode::Folder)
    }

    pub(crate) fn of_file(&self, path: &str, file: &Arc<FileNode>) -> u64 {
        self.number(path, Some(file.digest.clone()), |_| Inode::File(Arc::clone(file)))
    }

    fn number(&self, path: &str, digest: Option<String>, inode: impl FnOnce(Arc<str>) -> Inode) -> u64 {
        let path: Arc<str> = path.into();
        let mut given = self.lock();
        let next = given.inodes.len() as u64 + ROOT;
        let key = (Arc::clone(&path), digest);
        if let Some(number) = given.numbers.get(&key) {
            return *number;
        }
        given.numbers.insert(key, next);
        given.inodes.push(inode(path));
        next
    }

    fn lock(&self) -> MutexGuard<'_, Given> {
        // Nothing in here panics between its two changes.
        self.given.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::SystemTime;

    fn file(digest: &str) -> Arc<FileNode> {
        let (repo, path) = ("o/n".into(), "x".parse().unwrap());
        Arc::new(FileNode { repo, path, size_bytes: 1, digest: digest.to_owned(), created: SystemTime::UNIX_EPOCH })
    }

    #[test]
    fn a_number_stands_for_one_content_at_one_path_for_ever() {
        let inodes = Inodes::new();
        assert_eq!(inodes.of_folder(""), ROOT);
        let (old, new) = (inodes.of_file("o/n/x", &file("old")), inodes.of_file("o/n/x", &file("new")));
        let elsewhere = inodes.of_file("o/m/x", &file("old"));
        let folder = inodes.of_folder("o/n/x");
        assert_eq!([ROOT, old, new, elsewhere, folder], [1, 2, 3, 4, 5]);
        assert_eq!(inodes.of_file("o/n/x", &file("old")), old);
        assert!(matches!(inodes.get(old), Some(Inode::File(file)) if file.digest == "old"));
        assert!(matches!(inodes.get(folder), Some(Inode::Folder(path)) if &*path == "o/n/x"));
        assert!(inodes.get(0).is_none() && inodes.get(6).is_none() && inodes.get(u64::MAX).is_none());
    }
}
