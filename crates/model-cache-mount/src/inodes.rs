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
