//! Mounting and unmounting: [`Mount`].

use crate::{
    error::{Error, Result},
    filesystem::ModelCacheFs,
    holders::{Holder, holders},
    mountinfo::{self, MountPoint},
};
use fuser::{Config, MountOption, Session, SessionACL};
use nix::{
    errno::Errno,
    mount::{MntFlags, umount2},
    sys::{
        resource::{Resource, getrlimit, setrlimit},
        statfs::statfs,
    },
};
use std::{
    fs, io,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
};
use tabagent_model_cache::{ModelCache, RepoSpec};

/// What our mounts are called in mount tables.
const SOURCE_NAME: &str = "model-cache";
/// Threads that answer the kernel: one may be waiting for the disk while others go on.
const THREADS: usize = 4;
/// What the kernel reads ahead of a reader, where it may be said: an answer has at most 1 MiB.
const READ_AHEAD_KIB: u64 = 1024;

/// How to mount.
#[derive(Clone, Debug, Default)]
pub struct MountOptions {
    /// The repos to show, each as a folder of its name as given, `org/name` or `org/name@revision`. Default: all.
    pub repos: Vec<RepoSpec>,
    /// Whether other users may read it too. Default: only who mounts. Who is not root needs `user_allow_other` in `/etc/fuse.conf`.
    pub allow_other: bool,
}

/// A mounted model cache. Dropped, it is unmounted.
///
/// The files of the store, read-only, below a folder. Programs that have one open keep its content as a
/// [`ModelFile`](tabagent_model_cache::ModelFile) does: removed meanwhile, it is freed when the last one closes it.
///
/// ```no_run
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let cache = tabagent_model_cache::ModelCache::open("./models")?;
/// let mount = model_cache_mount::Mount::new(cache, "./mnt".as_ref(), model_cache_mount::MountOptions::default())?;
/// println!("{}", std::fs::read_to_string("./mnt/org/name/config.json")?);
/// mount.unmounter().unmount()?;
/// mount.wait()?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Mount {
    folder: PathBuf,
    files: u64,
    bytes: u64,
    cleared: bool,
    session: Option<JoinHandle<io::Result<()>>>,
    ended: Arc<AtomicBool>,
}

/// Takes a [`Mount`] away, from any thread.
#[derive(Clone, Debug)]
pub struct Unmounter {
    folder: PathBuf,
    ended: Arc<AtomicBool>,
}

/// How an unmount went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unmounted {
    /// It is gone.
    Gone,
    /// It is out of the tree, and is served until these let go of it: [`Mount::wait`] ends then.
    InUse(Vec<Holder>),
}

impl Mount {
    /// Mounts `cache` on `folder`: an empty one, or one to be made.
    ///
    /// A mount that a killed program left there is taken away first, if it was of a model cache. Each file that is open through it
    /// takes a descriptor of this process, whose soft limit of open files is raised to its hard one.
    ///
    /// # Errors
    /// [`Error::NotAFolder`], [`Error::NotEmpty`], [`Error::InStore`], [`Error::AlreadyMounted`], [`Error::Dead`]; [`Error::NoFuse`],
    /// [`Error::NoFusermount`], [`Error::NotPermitted`] where this machine does not let us; [`Error::Store`] for the repos named.
    pub fn new(cache: ModelCache, folder: &Path, options: MountOptions) -> Result<Self> {
        // Not of a dead mount, which nothing can be asked of; it is no folder of the store's.
        if !matches!(statfs(folder), Err(Errno::ENOTCONN | Errno::ECONNABORTED)) && cache.is_own_folder(folder)? {
            return Err(Error::InStore { path: folder.to_owned() });
        }
        raise_open_files();
        let filesystem = ModelCacheFs::new(cache, options.repos)?;
        let (files, bytes) = filesystem.amount();
        let Ready { folder, made, cleared } = make_ready(folder)?;
        let mounted = begin(filesystem, &folder, options.allow_other);
        if mounted.is_err() && made {
            // As it was.
            let _ = fs::remove_dir(&folder);
        }
        let (session, ended) = mounted?;
        raise_read_ahead(&folder);
        Ok(Self { folder, files, bytes, cleared, session: Some(session), ended })
    }

    /// Where it is, as an absolute path.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Files it listed when it was mounted.
    pub fn files(&self) -> u64 {
        self.files
    }

    /// Bytes of them.
    pub fn size_bytes(&self) -> u64 {
        self.bytes
    }

    /// Whether a dead mount was taken away to make room for it.
    pub fn has_cleared_a_dead_mount(&self) -> bool {
        self.cleared
    }

    /// What takes it away.
    pub fn unmounter(&self) -> Unmounter {
        Unmounter { folder: self.folder.clone(), ended: Arc::clone(&self.ended) }
    }

    /// Waits until it is unmounted, by whomever, and nobody uses it any more.
    ///
    /// # Errors
    /// [`Error::Io`] if it ended for another reason.
    pub fn wait(mut self) -> Result<()> {
        self.join()
    }

    fn join(&mut self) -> Result<()> {
        let Some(session) = self.session.take() else { return Ok(()) };
        let ended = session.join().unwrap_or_else(|_| Err(io::Error::other("a thread that served it panicked")));
        ended.map_err(|source| Error::Io { action: "go on serving", path: self.folder.clone(), source })
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if self.session.is_none() {
            return;
        }
        match self.unmounter().unmount() {
            Ok(Unmounted::Gone) => {
                if let Err(error) = self.join() {
                    tracing::warn!(%error, "a mount did not end well");
                }
            }
            // Its threads go on for those who use it.
            Ok(Unmounted::InUse(_)) => {}
            Err(error) => tracing::warn!(%error, "a mount stays"),
        }
    }
}

impl Unmounter {
    /// Takes the mount away. Where files of it are in use, it is taken out of the tree at once, and served until they are closed.
    ///
    /// # Errors
    /// [`Error::NotUnmounted`].
    pub fn unmount(&self) -> Result<Unmounted> {
        // What is mounted there by now may be somebody else's.
        if self.ended.load(Ordering::Acquire) {
            return Ok(Unmounted::Gone);
        }
        match unmount(&self.folder, false) {
            Ok(()) => return Ok(Unmounted::Gone),
            Err(Refusal::Busy) => {}
            Err(Refusal::Other(reason)) => return Err(Error::NotUnmounted { path: self.folder.clone(), reason }),
        }
        // Once detached, paths no longer tell who they are.
        let holders = holders(&self.folder);
        match unmount(&self.folder, true) {
            Ok(()) => Ok(Unmounted::InUse(holders)),
            Err(Refusal::Busy) => Err(Error::NotUnmounted { path: self.folder.clone(), reason: "it is busy".to_owned() }),
            Err(Refusal::Other(reason)) => Err(Error::NotUnmounted { path: self.folder.clone(), reason }),
        }
    }
}

/// Lets this process have as many files open as it may: the users of a mount together may want many.
fn raise_open_files() {
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && soft < hard
        && let Err(error) = setrlimit(Resource::RLIMIT_NOFILE, hard, hard)
    {
        tracing::debug!(%error, "the limit of open files stays as it is");
    }
}

/// Why an unmount was refused.
enum Refusal {
    Busy,
    Other(String),
}

/// Unmounts what is on `folder`; a lazy unmount also while it is in use.
fn unmount(folder: &Path, lazy: bool) -> Result<(), Refusal> {
    let flags = if lazy { MntFlags::MNT_DETACH } else { MntFlags::UMOUNT_NOFOLLOW };
    match umount2(folder, flags) {
        // Not mounted: somebody was faster.
        Ok(()) | Err(Errno::EINVAL) => Ok(()),
        Err(Errno::EBUSY) => Err(Refusal::Busy),
        Err(Errno::EPERM) => fusermount(folder, lazy),
        Err(code) => Err(Refusal::Other(code.desc().to_owned())),
    }
}

/// The same for who is not root.
fn fusermount(folder: &Path, lazy: bool) -> Result<(), Refusal> {
    let mut refused = Refusal::Other("only root may, or fusermount3, which is not installed".to_owned());
    for program in ["fusermount3", "fusermount"] {
        let mut command = Command::new(program);
        command.arg("-u").args(lazy.then_some("-z")).arg("--").arg(folder);
        let Ok(output) = command.env("LC_ALL", "C").output() else { continue };
        if output.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        refused = if said.to_lowercase().contains("busy") { Refusal::Busy } else { Refusal::Other(said) };
        break;
    }
    Err(refused)
}

/// A folder that can be mounted on.
struct Ready {
    /// Absolute, without links.
    folder: PathBuf,
    made: bool,
    cleared: bool,
}

/// Makes `folder` one that can be mounted on, or says why it can't be.
fn make_ready(folder: &Path) -> Result<Ready> {
    let failed = |action| move |source| Error::Io { action, path: folder.to_owned(), source };
    let mut cleared = false;
    // A mount whose program is gone. Not by stat(2), which the kernel may know the answer of.
    if let Err(Errno::ENOTCONN | Errno::ECONNABORTED) = statfs(folder) {
        let real = real_path_of_dead(folder).map_err(failed("find"))?;
        clear(&real)?;
        cleared = true;
    }
    let made = match fs::metadata(folder) {
        Ok(metadata) if metadata.is_dir() => false,
        Ok(_) => return Err(Error::NotAFolder { path: folder.to_owned() }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            fs::create_dir_all(folder).map_err(failed("create the folder"))?;
            true
        }
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => return Err(Error::NotAFolder { path: folder.to_owned() }),
        Err(error) => return Err(failed("look at")(error)),
    };
    let real = fs::canonicalize(folder).map_err(failed("find"))?;
    if let Some(MountPoint { kind, source, .. }) = mountinfo::at(&real).map_err(failed("look up the mounts on"))? {
        return Err(Error::AlreadyMounted { path: real, source_name: source, kind });
    }
    if fs::read_dir(&real).map_err(failed("list"))?.next().is_some() {
        return Err(Error::NotEmpty { path: real });
    }
    Ok(Ready { folder: real, made, cleared })
}

/// The path of a dead mount as mount tables have it: nothing of the mount itself may be asked.
fn real_path_of_dead(folder: &Path) -> io::Result<PathBuf> {
    let folder = std::path::absolute(folder)?;
    match (folder.parent(), folder.file_name()) {
        (Some(parent), Some(name)) => Ok(fs::canonicalize(parent)?.join(name)),
        _ => Ok(folder),
    }
}

/// Takes a dead mount away, if it was ours.
fn clear(folder: &Path) -> Result<()> {
    let dead =
        mountinfo::at(folder).map_err(|source| Error::Io { action: "look up the mounts on", path: folder.to_owned(), source })?;
    let (source_name, kind) = dead.map_or(("something".to_owned(), "fuse".to_owned()), |mount| (mount.source, mount.kind));
    let ours = source_name == SOURCE_NAME && kind.starts_with("fuse");
    if ours && unmount(folder, true).is_ok() {
        return Ok(());
    }
    Err(Error::Dead { path: folder.to_owned(), source_name, kind })
}

/// Mounts, and begins to serve.
fn begin(filesystem: ModelCacheFs, folder: &Path, allow_other: bool) -> Result<(JoinHandle<io::Result<()>>, Arc<AtomicBool>)> {
    let mut config = Config::default();
    config.mount_options = vec![
        MountOption::FSName(SOURCE_NAME.to_owned()),
        MountOption::RO,
        MountOption::NoExec,
        MountOption::NoAtime,
        MountOption::DefaultPermissions,
    ];
    config.acl = if allow_other { SessionACL::All } else { SessionACL::Owner };
    config.n_threads = Some(THREADS);
    let session = Session::new(filesystem, folder, &config).map_err(|error| refused(folder, error))?;
    let ended = Arc::new(AtomicBool::new(false));
    let ending = Arc::clone(&ended);
    let thread = std::thread::Builder::new().name("mount".to_owned()).spawn(move || {
        let result = session.run();
        ending.store(true, Ordering::Release);
        result
    });
    let thread = thread.map_err(|source| Error::Io { action: "begin to serve", path: folder.to_owned(), source })?;
    Ok((thread, ended))
}

/// What it means that a mount was refused. The folder is there; so what is not found is one of FUSE's own parts.
fn refused(folder: &Path, error: io::Error) -> Error {
    let path = folder.to_owned();
    if !Path::new("/dev/fuse").exists() {
        return Error::NoFuse { path };
    }
    match error.kind() {
        io::ErrorKind::NotFound => Error::NoFusermount { path },
        // The system's own error; else it is fusermount3 who says why.
        io::ErrorKind::PermissionDenied if error.raw_os_error().is_some() => {
            Error::NotPermitted { path, reason: format!("/dev/fuse may not be used: {error}") }
        }
        // ENODEV and ENXIO: the device file is there, the kernel's part is not.
        _ if matches!(error.raw_os_error().map(Errno::from_raw), Some(Errno::ENODEV | Errno::ENXIO)) => Error::NoFuse { path },
        _ => Error::NotPermitted { path, reason: error.to_string().trim().to_owned() },
    }
}

/// Lets the kernel read more ahead than its 128 KiB, where we may say so: as root. Sequential reads, and maps as they are touched,
/// then need an eighth of the questions.
fn raise_read_ahead(folder: &Path) {
    let raised = mountinfo::at(folder).and_then(|mount| match mount {
        Some(mount) => fs::write(format!("/sys/class/bdi/{}/read_ahead_kb", mount.device), READ_AHEAD_KIB.to_string()),
        None => Ok(()),
    });
    if let Err(error) = raised {
        tracing::debug!(%error, "the kernel's read-ahead stays as it is");
    }
}
