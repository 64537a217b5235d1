//! The file system itself: what the kernel asks, answered from a [`Tree`] that is read anew when it is old, and from open files.

use crate::{
    inodes::{Inode, Inodes, ROOT},
    tree::{self, FileNode, Folder, Node, Tree},
};
use fuser::{
    Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, InitFlags, KernelConfig, LockOwner,
    OpenFlags, ReplyAttr, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs,
    ReplyXattr, Request,
};
use std::{
    collections::HashMap,
    ffi::OsStr,
    io,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};
use tabagent_model_cache::{ErrorKind, ModelCache, ModelFile, RepoSpec};

/// How long a tree is believed before the store is read again, and how long the kernel believes a name. What comes and goes shows
/// within their sum.
const TREE_AGE: Duration = Duration::from_millis(500);
const NAME_AGE: Duration = Duration::from_millis(400);
/// A number's attributes never change, see [`Inode::File`]; a folder's do.
const FILE_AGE: Duration = Duration::from_secs(3600);
/// Requests the kernel may have waiting, read-ahead mostly.
const MOST_WAITING: u16 = 64;
/// Numbers are never reused.
const GENERATION: Generation = Generation(0);
/// The longest name a part of a path may have here.
const NAME_BYTES: u32 = 512;
const BLOCK_BYTES: u32 = 4096;
/// The extended attribute that has the digest of a file's content.
const DIGEST_ATTRIBUTE: &str = "user.model_cache.digest";

pub(crate) struct ModelCacheFs {
    cache: ModelCache,
    /// What is shown; everything, if none are named.
    repos: Vec<RepoSpec>,
    known: Mutex<Known>,
    inodes: Inodes,
    files: Handles<ModelFile>,
    listings: Handles<Arc<Vec<Listed>>>,
    uid: u32,
    gid: u32,
}

/// The tree as it was last read.
struct Known {
    tree: Arc<Tree>,
    read_at: Instant,
    /// Whether the last try to read it anew failed; that is told once, not twice a second.
    stuck: bool,
}

/// One entry of an open folder.
struct Listed {
    number: u64,
    name: String,
    attr: FileAttr,
    age: Duration,
}

impl ModelCacheFs {
    /// Reads the store for the first time, so that its errors are told before anything is mounted.
    pub(crate) fn new(cache: ModelCache, repos: Vec<RepoSpec>) -> tabagent_model_cache::Result<Self> {
        for repo in &repos {
            cache.readable_in(&repo.to_string())?;
        }
        let tree = read_tree(&cache, &repos)?;
        Ok(Self {
            cache,
            repos,
            known: Mutex::new(Known { tree: Arc::new(tree), read_at: Instant::now(), stuck: false }),
            inodes: Inodes::new(),
            files: Handles::default(),
            listings: Handles::default(),
            uid: nix::unistd::geteuid().as_raw(),
            gid: nix::unistd::getegid().as_raw(),
        })
    }

    /// Files and bytes it lists.
    pub(crate) fn amount(&self) -> (u64, u64) {
        let tree = self.tree();
        (tree.files, tree.bytes)
    }

    fn tree(&self) -> Arc<Tree> {
        let mut known = self.lock();
        if known.read_at.elapsed() >= TREE_AGE {
            match read_tree(&self.cache, &self.repos) {
                Ok(tree) => (known.tree, known.stuck) = (Arc::new(tree), false),
                // What was shown is shown on; what is gone will not open.
                Err(error) => {
                    if !std::mem::replace(&mut known.stuck, true) {
                        tracing::warn!(error = error.chain(), "the store could not be read anew for the mount");
                    }
                }
            }
            known.read_at = Instant::now();
        }
        Arc::clone(&known.tree)
    }

    /// The tree turned out to be wrong: the next look reads the store.
    fn expire(&self) {
        let mut known = self.lock();
        known.read_at = Instant::now().checked_sub(TREE_AGE).unwrap_or(known.read_at);
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        // Whole at every point: its fields are set one by one, and any mix of them is a tree and a time.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn file_attr(&self, number: u64, file: &FileNode) -> FileAttr {
        self.attr(number, FileType::RegularFile, 0o444, file.size_bytes, 1, file.created)
    }

    fn folder_attr(&self, number: u64, folder: &Folder) -> FileAttr {
        self.attr(number, FileType::Directory, 0o555, 0, 2 + folder.folders, folder.modified)
    }

    fn attr(&self, number: u64, kind: FileType, perm: u16, size: u64, nlink: u32, modified: SystemTime) -> FileAttr {
        FileAttr {
            ino: INodeNo(number),
            size,
            blocks: size.div_ceil(512),
            atime: modified,
            mtime: modified,
            ctime: modified,
            crtime: modified,
            kind,
            perm,
            nlink,
            uid: self.uid,
            gid: self.gid,
            rdev: 0,
            blksize: BLOCK_BYTES,
            flags: 0,
        }
    }

    /// The number, attributes and age of what is at `path`.
    fn describe(&self, tree: &Tree, path: &str) -> Option<(u64, FileAttr, Duration)> {
        match tree.get(path)? {
            Node::Folder(folder) => {
                let number = self.inodes.of_folder(path);
                Some((number, self.folder_attr(number, folder), NAME_AGE))
            }
            Node::File(file) => {
                let number = self.inodes.of_file(path, file);
                Some((number, self.file_attr(number, file), FILE_AGE))
            }
        }
    }

    /// What the folder `number` lists now, itself and its parent first.
    fn list(&self, number: u64) -> Result<Vec<Listed>, Errno> {
        let path = match self.inodes.get(number) {
            Some(Inode::Folder(path)) => path,
            Some(Inode::File(_)) => return Err(Errno::ENOTDIR),
            None => return Err(Errno::ENOENT),
        };
        let tree = self.tree();
        let Some(Node::Folder(folder)) = tree.get(&path) else { return Err(Errno::ENOENT) };
        let entry = |name: &str, path: &str| {
            let (number, attr, age) = self.describe(&tree, path)?;
            Some(Listed { number, name: name.to_owned(), attr, age })
        };
        let dots = [entry(".", &path), entry("..", tree::parent(&path))];
        let names = folder.listed().map(|name| entry(name, &tree::join(&path, name)));
        Ok(dots.into_iter().chain(names).flatten().collect())
    }

    /// Opens the file `number`, which takes its lease.
    fn open_file(&self, number: u64) -> Result<ModelFile, Errno> {
        let file = match self.inodes.get(number) {
            Some(Inode::File(file)) => file,
            Some(Inode::Folder(_)) => return Err(Errno::EISDIR),
            None => return Err(Errno::ENOENT),
        };
        match self.cache.get_file(&file.repo, file.path.as_str()) {
            Ok(Some(open)) if open.digest() == file.digest => Ok(open),
            // Removed, or of another content by now. The kernel looks the name up again, and finds what there is.
            Ok(_) => {
                self.expire();
                Err(Errno::ESTALE)
            }
            Err(error) => {
                tracing::warn!(
                    repo = &*file.repo,
                    path = file.path.as_str(),
                    error = error.chain(),
                    "a file could not be opened"
                );
                Err(match error.raw_os_error() {
                    _ if error.kind() == ErrorKind::NotFound => Errno::ESTALE,
                    Some(code) if code == nix::errno::Errno::EMFILE as i32 => Errno::EMFILE,
                    Some(code) if code == nix::errno::Errno::ENFILE as i32 => Errno::ENFILE,
                    _ => Errno::EIO,
                })
            }
        }
    }

    /// The value of the extended attribute `name` of `number`.
    fn attribute(&self, number: u64, name: &OsStr) -> Result<String, Errno> {
        match self.inodes.get(number) {
            Some(Inode::File(file)) if name == DIGEST_ATTRIBUTE => Ok(file.digest.clone()),
            _ => Err(Errno::NO_XATTR),
        }
    }
}

fn read_tree(cache: &ModelCache, repos: &[RepoSpec]) -> tabagent_model_cache::Result<Tree> {
    if repos.is_empty() {
        return cache.readable().map(Tree::new);
    }
    let mut found = Vec::new();
    for repo in repos {
        match cache.readable_in(&repo.to_string()) {
            Ok(repo) => found.push(repo),
            // Removed while it is mounted; it may come back.
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(error),
        }
    }
    Ok(Tree::new(found))
}

/// Answers a request for an extended attribute as getxattr(2) asks: its size first, then its bytes.
fn reply_attribute(value: &[u8], room: u32, reply: ReplyXattr) {
    match room {
        0 => reply.size(value.len() as u32),
        room if (room as usize) < value.len() => reply.error(Errno::ERANGE),
        _ => reply.data(value),
    }
}

impl Filesystem for ModelCacheFs {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // Each where this kernel has it.
        for wish in [InitFlags::FUSE_DO_READDIRPLUS, InitFlags::FUSE_READDIRPLUS_AUTO, InitFlags::FUSE_PARALLEL_DIROPS] {
            let _ = config.add_capabilities(wish);
        }
        let _ = config.set_max_background(MOST_WAITING);
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let Some(Inode::Folder(parent)) = self.inodes.get(parent.0) else { return reply.error(Errno::ENOTDIR) };
        let found = name.to_str().and_then(|name| self.describe(&self.tree(), &tree::join(&parent, name)));
        match found {
            Some((_, attr, age)) => reply.entry_with_ttls(&age, &NAME_AGE, &attr, GENERATION),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _: &Request, number: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.inodes.get(number.0) {
            // Also of a file that is gone: who has it open reads on.
            Some(Inode::File(file)) => reply.attr(&FILE_AGE, &self.file_attr(number.0, &file)),
            Some(Inode::Folder(path)) => match self.describe(&self.tree(), &path) {
                Some((_, attr, age)) => reply.attr(&age, &attr),
                None => reply.error(Errno::ENOENT),
            },
            None => reply.error(Errno::ENOENT),
        }
    }

    fn open(&self, _: &Request, number: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        match self.open_file(number.0) {
            // A number has one content: what the kernel cached of it is right.
            Ok(file) => {
                reply.opened(FileHandle(self.files.add(file)), FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_NOFLUSH);
            }
            Err(code) => reply.error(code),
        }
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let Some(file) = self.files.get(handle.0) else { return reply.error(Errno::EBADF) };
        let start = usize::try_from(offset).unwrap_or(usize::MAX).min(file.len());
        let end = start.saturating_add(size as usize).min(file.len());
        // The kernel copies from the mapping. Where the disk can't deliver a page, that fails for the reader, with EIO; nobody here
        // touches it.
        reply.data(&file[start..end]);
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn release(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        // Gives the lease back; of a file that was removed meanwhile, also its space.
        drop(self.files.remove(handle.0));
        reply.ok();
    }

    fn opendir(&self, _: &Request, number: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        match self.list(number.0) {
            Ok(listed) => reply.opened(FileHandle(self.listings.add(Arc::new(listed))), FopenFlags::empty()),
            Err(code) => reply.error(code),
        }
    }

    fn readdir(&self, _: &Request, _: INodeNo, handle: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let Some(listed) = self.listings.get(handle.0) else { return reply.error(Errno::EBADF) };
        for (index, entry) in listed.iter().enumerate().skip(usize::try_from(offset).unwrap_or(usize::MAX)) {
            if reply.add(INodeNo(entry.number), index as u64 + 1, entry.attr.kind, &entry.name) {
                break;
            }
        }
        reply.ok();
    }

    fn readdirplus(&self, _: &Request, _: INodeNo, handle: FileHandle, offset: u64, mut reply: ReplyDirectoryPlus) {
        let Some(listed) = self.listings.get(handle.0) else { return reply.error(Errno::EBADF) };
        for (index, entry) in listed.iter().enumerate().skip(usize::try_from(offset).unwrap_or(usize::MAX)) {
            let age = entry.age.min(NAME_AGE);
            if reply.add(INodeNo(entry.number), index as u64 + 1, &entry.name, &age, &entry.attr, GENERATION) {
                break;
            }
        }
        reply.ok();
    }

    fn releasedir(&self, _: &Request, _: INodeNo, handle: FileHandle, _: OpenFlags, reply: ReplyEmpty) {
        drop(self.listings.remove(handle.0));
        reply.ok();
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        let tree = self.tree();
        let blocks = tree.bytes.div_ceil(u64::from(BLOCK_BYTES));
        // Nothing is free where nothing can be written.
        reply.statfs(blocks, 0, 0, tree.files, 0, BLOCK_BYTES, NAME_BYTES, BLOCK_BYTES);
    }

    fn getxattr(&self, _: &Request, number: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        match self.attribute(number.0, name) {
            Ok(value) => reply_attribute(value.as_bytes(), size, reply),
            Err(code) => reply.error(code),
        }
    }

    fn listxattr(&self, _: &Request, number: INodeNo, size: u32, reply: ReplyXattr) {
        let names = match self.inodes.get(number.0) {
            Some(Inode::File(_)) => format!("{DIGEST_ATTRIBUTE}\0"),
            _ => String::new(),
        };
        reply_attribute(names.as_bytes(), size, reply);
    }
}

/// Open things, by number.
#[derive(Debug)]
struct Handles<T> {
    open: RwLock<HashMap<u64, T>>,
    next: AtomicU64,
}

impl<T> Default for Handles<T> {
    fn default() -> Self {
        Self { open: RwLock::default(), next: AtomicU64::new(ROOT) }
    }
}

impl<T: Clone> Handles<T> {
    fn add(&self, thing: T) -> u64 {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        self.open.write().unwrap_or_else(PoisonError::into_inner).insert(number, thing);
        number
    }

    fn get(&self, number: u64) -> Option<T> {
        self.open.read().unwrap_or_else(PoisonError::into_inner).get(&number).cloned()
    }

    /// Takes it out; what its end costs, it costs outside the lock.
    fn remove(&self, number: u64) -> Option<T> {
        self.open.write().unwrap_or_else(PoisonError::into_inner).remove(&number)
    }
}
