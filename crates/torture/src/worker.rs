//! A process that works on a store until it is done or killed.

use crate::{
    history::{Line, Log, Told},
    plan::Op,
    world::sha256,
};
use std::{
    path::{Path, PathBuf},
    time::Duration,
};
use tabagent_model_cache::{
    BackupOptions, CheckOptions, Error, ErrorKind, ExportOptions, ImportOptions, ModelCache, ModelFile, RestoreOptions,
    VerifyOptions,
};
use tokio::runtime::Runtime;

/// Connections of a pull.
pub const CONNECTIONS: usize = 3;
/// The longest wait for a byte: stalls are faults here, and nothing else takes long.
const READ_TIMEOUT: Duration = Duration::from_millis(1500);

/// What a worker is told.
#[derive(Clone, Debug)]
pub struct Orders {
    /// The store.
    pub store: PathBuf,
    /// The Hub.
    pub endpoint: String,
    /// Where it tells what it does.
    pub log: PathBuf,
    /// Its number in the round.
    pub number: usize,
    /// What it does.
    pub plan: Vec<Op>,
    /// A folder of its own.
    pub scratch: PathBuf,
    /// Whether the Hub may fail it.
    pub faults: bool,
    /// Whether the Hub may have sent wrong bytes before: `again_if_spoilt`.
    pub spoilt: bool,
}

/// How many files of one pull may turn out to have wrong bytes that landed in an earlier round, one after the other.
const SPOILT_FILES: usize = 8;

/// Pulls, and again where wrong bytes come to light that landed while the Hub flipped some: their file's digest tells, they are dropped,
/// and the next pull fetches them anew.
///
/// # Errors
/// Those of the last pull.
pub(crate) fn again_if_spoilt<T>(
    spoilt: bool,
    mut pull: impl FnMut() -> tabagent_model_cache::Result<T>,
) -> tabagent_model_cache::Result<T> {
    for _ in 0..if spoilt { SPOILT_FILES } else { 0 } {
        match pull() {
            Err(Error::DigestMismatch { .. }) => {}
            ended => return ended,
        }
    }
    pull()
}

/// A cache as all processes of the harness open it.
pub fn open(store: &Path, endpoint: &str) -> tabagent_model_cache::Result<ModelCache> {
    ModelCache::builder(store).endpoint(endpoint).offline(false).connections(CONNECTIONS).read_timeout(READ_TIMEOUT).open()
}

/// A runtime as small as pulls need.
///
/// # Errors
/// Those of starting threads.
pub fn runtime() -> std::io::Result<Runtime> {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()
}

/// Works. False if something was wrong that no crash of another excuses.
///
/// # Errors
/// For a store that does not open, and a log that can't be written.
pub fn work(orders: &Orders) -> Result<bool, Box<dyn std::error::Error>> {
    let mut log = Log::open(&orders.log)?;
    let runtime = runtime()?;
    let cache = open(&orders.store, &orders.endpoint)?;
    let mut worker = Worker { cache, runtime, held: Vec::new(), orders };
    let mut well = true;
    for (number, op) in orders.plan.iter().enumerate() {
        let mut tell = |what| log.tell(&Line { worker: orders.number, op: number, what });
        tell(Told::Begun)?;
        tell(match worker.perform(op) {
            Ok(Ok(detail)) => Told::Done(detail),
            Ok(Err(wrong)) => {
                well = false;
                Told::Failed(wrong)
            }
            Err(error) if may_be(op, &error, orders.faults) => Told::Refused(error.chain()),
            Err(error) => {
                well = false;
                Told::Failed(error.chain())
            }
        })?;
        if !well {
            break;
        }
    }
    Ok(well)
}

/// Errors that others' work, or an origin that fails, is the right cause of.
fn may_be(op: &Op, error: &Error, faults: bool) -> bool {
    let of_others = match error {
        Error::RemovedMeanwhile { .. } | Error::Busy { .. } => true,
        other => other.kind() == ErrorKind::NotFound,
    };
    let of_the_origin = faults
        && matches!(op, Op::Pull { .. } | Op::PullFile { .. })
        && matches!(error.kind(), ErrorKind::Network | ErrorKind::Integrity);
    of_others || of_the_origin
}

struct Worker<'a> {
    cache: ModelCache,
    runtime: Runtime,
    /// Files that are kept open.
    held: Vec<ModelFile>,
    orders: &'a Orders,
}

/// What an operation said of its end, or what it found wrong.
type Found = Result<String, String>;

impl Worker<'_> {
    fn perform(&mut self, op: &Op) -> tabagent_model_cache::Result<Found> {
        let cache = &self.cache;
        let done = Ok(String::new());
        Ok(match op {
            Op::Pull { repo, revision } => {
                let pull = || self.runtime.block_on(cache.pull(&format!("{repo}@{revision}")).all(true).run());
                Ok(again_if_spoilt(self.orders.spoilt, pull)?.commit.to_string())
            }
            Op::PullFile { repo, path } => {
                let pull = || self.runtime.block_on(cache.pull(repo).path(path).run());
                Ok(again_if_spoilt(self.orders.spoilt, pull)?.commit.to_string())
            }
            Op::Import { repo, folder } => {
                cache.import(repo, std::slice::from_ref(folder), &ImportOptions::default())?;
                done
            }
            Op::Remove { repo } => {
                cache.delete_model(repo)?;
                done
            }
            Op::RemoveFile { repo, path } => {
                cache.delete_file(repo, path)?;
                done
            }
            Op::Gc => {
                cache.gc()?;
                done
            }
            Op::Verify => verifies(cache)?,
            Op::Read { repo, path } => {
                let Some(file) = cache.get_file(repo, path)? else { return Ok(done) };
                let found = reads_well(&file);
                self.held.push(file);
                found
            }
            Op::LetGo => self.held.drain(..).map(|file| reads_well(&file)).collect::<Result<Vec<_>, _>>().map(|_| String::new()),
            Op::Export { repo } => self.export(repo)?,
            Op::Gather { repo, path } => {
                let Some(file) = cache.get_file(repo, path)? else { return Ok(done) };
                let size = file.size_bytes();
                let range = size / 3..size / 3 + (size / 2).clamp(1, 3 << 20).min(size - size / 3);
                if !range.is_empty() {
                    cache.gather(&file, std::slice::from_ref(&range))?;
                }
                done
            }
            Op::List => {
                for summary in cache.list()? {
                    if let Err(error) = cache.files(&summary.repo.to_string())
                        && error.kind() != ErrorKind::NotFound
                    {
                        return Err(error);
                    }
                }
                cache.stats()?;
                done
            }
            Op::Backup => match cache.backup(&backup_in(&self.orders.scratch), &BackupOptions::default()) {
                // All was removed: the snapshots before are kept for that.
                Err(Error::EmptyStore { .. }) => done,
                report => match report?.left_out.first() {
                    None => backup_is_whole(&self.orders.scratch)?,
                    Some(left) => Err(format!("{left:?} was not backed up")),
                },
            },
            // A power loss is played on the writes of one store, and the log has not whose they are.
            Op::Restore if std::env::var_os("MODEL_CACHE_WRITE_LOG").is_some() => backup_is_whole(&self.orders.scratch)?,
            Op::Restore => {
                let to = self.orders.scratch.join("restored");
                let options = RestoreOptions { replace: true, ..RestoreOptions::default() };
                let report = ModelCache::restore(&backup_in(&self.orders.scratch), &to, &options)?;
                let restored = open(&to, &self.orders.endpoint)?;
                let files = restored.stats()?.files;
                match files == report.files {
                    true => verifies(&restored)?,
                    false => Err(format!("{files} files are in a store {} were restored to", report.files)),
                }
            }
            Op::Repair => {
                let report = self.runtime.block_on(cache.repair(None).run())?;
                match (report.damaged.first(), report.records.first()) {
                    (None, None) => done,
                    found => Err(format!("found damaged: {found:?}")),
                }
            }
        })
    }

    fn export(&self, repo: &str) -> tabagent_model_cache::Result<Found> {
        let to = self.orders.scratch.join("export");
        let report = self.cache.export(repo, &[], &to, &ExportOptions { force: true, ..ExportOptions::default() })?;
        for path in &report.paths {
            // Compared with what the store has, unless that changed meanwhile.
            let within = path.strip_prefix(&to).unwrap_or(path).to_string_lossy().into_owned();
            let bytes = std::fs::read(path).map_err(|source| Error::Io { action: "read", path: path.clone(), source })?;
            if let Some(file) = self.cache.get_file(repo, &within)?
                && file.size_bytes() == bytes.len() as u64
                && sha256(&file) != sha256(&bytes)
            {
                // No two contents of the world have one size, but small ones, which may have been changed in between.
                return Ok(Err(format!("{within} was exported with other bytes than it has")));
            }
        }
        let _ = std::fs::remove_dir_all(&to);
        Ok(Ok(String::new()))
    }
}

/// Where a process with this folder has its backup.
fn backup_in(scratch: &Path) -> PathBuf {
    scratch.join("backup")
}

/// Whether the newest snapshot of the backup in `scratch`, if it has one, is all it should be.
///
/// # Errors
/// Those of reading it.
pub(crate) fn backup_is_whole(scratch: &Path) -> tabagent_model_cache::Result<Found> {
    match ModelCache::check_backup(&backup_in(scratch), &CheckOptions::default()) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Ok(String::new())),
        checked => Ok(match checked?.bad.first() {
            None => Ok(String::new()),
            Some(bad) => Err(format!("a backup is not whole: {bad:?}")),
        }),
    }
}

/// Whether every block of a store is sound.
fn verifies(cache: &ModelCache) -> tabagent_model_cache::Result<Found> {
    let report = cache.verify(None, &[], &VerifyOptions::default())?;
    Ok(match report.bad.first() {
        None => Ok(String::new()),
        Some(bad) => Err(format!("{} bad blocks, the first {bad:?}", report.bad.len())),
    })
}

/// Whether a file's bytes have the digest it is known by.
fn reads_well(file: &ModelFile) -> Found {
    match file.digest().strip_prefix("sha256:") {
        Some(expected) if sha256(file) != expected => {
            Err(format!("{} {} reads as {}, and is {expected}", file.repo(), file.path(), sha256(file)))
        }
        _ => Ok(String::new()),
    }
}
