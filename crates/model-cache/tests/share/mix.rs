//! Threads and processes that do everything to one store, all at once, and a watchdog that says who waits for what if nobody gets on.

use super::*;
use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::Instant,
};

/// Repos at the Hub that are pulled and removed, and names that are imported over and over.
const REPOS: u64 = 3;
const IMPORTS: u64 = 2;
const VARIANTS: u64 = 3;
/// Files a worker keeps open while others remove them.
const KEPT: usize = 3;
/// So long nobody of a process may get on. Generous: the machine may have other work.
const PATIENCE: Duration = Duration::from_secs(120);

const KINDS: [&str; 9] = ["pull", "read", "read again", "rm", "gc", "verify", "import", "export", "ls"];

fn repo(n: u64) -> String {
    format!("org/repo{n}")
}

fn pulled(n: u64) -> Content {
    Content::seeded(100 + n, 5 * MIB + n * MIB + n)
}

fn imported(n: u64, variant: u64) -> Content {
    // One of each fits the records, the others take an extent.
    Content::seeded(200 + 10 * n + variant, if variant == 0 { 3000 } else { 2 * MIB + variant })
}

fn crc_of(content: &Content) -> u32 {
    crc(&content.read(0..content.size_bytes().unwrap()).unwrap())
}

pub(super) fn hub() -> Hub {
    let repos = (0..REPOS).map(|n| Repo::new(repo(n)).file("config.json", "{}").file("model.gguf", pulled(n)));
    Hub::start(repos.collect())
}

/// What the workers of one process have in common.
struct Shared {
    store: PathBuf,
    endpoint: String,
    stop: AtomicBool,
    /// What each worker is doing, and since when.
    doing: Vec<Mutex<(String, Instant)>>,
    /// How often each kind of work was done, and how often it had something to do.
    done: [(AtomicU64, AtomicU64); KINDS.len()],
    /// The CRC32Cs each name may lead to.
    crcs: BTreeMap<String, Vec<u32>>,
}

struct Worker<'a> {
    shared: &'a Shared,
    index: usize,
    cache: ModelCache,
    numbers: Numbers,
    runtime: tokio::runtime::Runtime,
    kept: Vec<(String, ModelFile, u32)>,
    folder: tempfile::TempDir,
}

impl Worker<'_> {
    fn work(&mut self) {
        while !self.shared.stop.load(Ordering::Relaxed) {
            let kind = self.numbers.within(0..KINDS.len() as u64) as usize;
            *self.shared.doing[self.index].lock().unwrap() = (KINDS[kind].to_owned(), Instant::now());
            let had_work = self.do_one(KINDS[kind]);
            let (done, had) = &self.shared.done[kind];
            done.fetch_add(1, Ordering::Relaxed);
            had.fetch_add(u64::from(had_work), Ordering::Relaxed);
            if self.numbers.within(0..20) == 0 {
                self.cache = open(&self.shared.store, &self.shared.endpoint);
            }
        }
        *self.shared.doing[self.index].lock().unwrap() = ("letting go".to_owned(), Instant::now());
        // What was removed long ago is whole to the end.
        while self.read_again() {}
    }

    /// Does one thing; whether there was anything to do.
    fn do_one(&mut self, kind: &str) -> bool {
        let remote = repo(self.numbers.within(0..REPOS));
        let (n, variant) = (self.numbers.within(0..IMPORTS), self.numbers.within(0..VARIANTS));
        let local = format!("me/local{n}");
        let (any, path) = if variant == 0 { (&local, "file") } else { (&remote, "model.gguf") };
        match kind {
            "pull" => {
                let report = self.runtime.block_on(self.cache.pull(&remote).all(true).run());
                // Another removed one of its files, or freed its fill between two of its steps.
                allowed(kind, report, |error| matches!(error, Error::RemovedMeanwhile { .. } | Error::Busy { .. }))
            }
            "read" => match self.cache.get_file(any, path) {
                Ok(Some(file)) => {
                    let found = crc(&file);
                    assert!(self.shared.crcs[any].contains(&found), "{any} {path} has CRC32C {found:08x}");
                    self.kept.push((format!("{any} {path}"), file, found));
                    if self.kept.len() > KEPT {
                        self.read_again();
                    }
                    true
                }
                Ok(None) => false,
                Err(error) => panic!("read {any} {path}: {}", error.chain()),
            },
            "read again" => self.read_again(),
            "rm" => allowed(kind, self.cache.delete_model(any), |error| matches!(error, Error::NotInStore { .. })),
            "gc" => allowed(kind, self.cache.gc(), |_| false),
            "verify" => {
                let report = self.cache.verify(None, &[], &VerifyOptions::default()).unwrap();
                assert!(report.bad.is_empty(), "{:?}", report.bad);
                report.blocks > 0
            }
            "import" => {
                let (path, content) = (self.folder.path().join("file"), imported(n, variant));
                fs::write(&path, content.read(0..content.size_bytes().unwrap()).unwrap()).unwrap();
                // The same content is just being imported, or freed, by another.
                allowed(kind, self.cache.import(&local, &[path], &ImportOptions::default()), |error| {
                    matches!(error, Error::Busy { .. })
                })
            }
            "export" => {
                let to = self.folder.path().join("export");
                let exported = self.cache.export(&local, &[], &to, &ExportOptions { force: true, ..ExportOptions::default() });
                let found =
                    exported.as_ref().ok().and_then(|report| report.paths.first()).map(|path| crc(&fs::read(path).unwrap()));
                assert!(found.is_none_or(|found| self.shared.crcs[&local].contains(&found)), "{local}: {found:08x?}");
                allowed(kind, exported, |error| error.kind() == ErrorKind::NotFound)
            }
            "ls" => {
                self.cache.stats().unwrap();
                for repo in self.cache.list().unwrap() {
                    allowed(kind, self.cache.files(&repo.repo.to_string()), |error| matches!(error, Error::NotInStore { .. }));
                }
                true
            }
            other => unreachable!("{other}"),
        }
    }

    /// Reads a file that was opened earlier, and may be removed since, once more, and lets go of it.
    fn read_again(&mut self) -> bool {
        if self.kept.is_empty() {
            return false;
        }
        let (name, file, expected) = self.kept.swap_remove(self.numbers.within(0..self.kept.len() as u64) as usize);
        let found = crc(&file);
        assert_eq!(found, expected, "{name} changed under its reader: {found:08x}, {expected:08x} before");
        true
    }
}

fn allowed<T>(kind: &str, result: Result<T>, may_be: impl Fn(&Error) -> bool) -> bool {
    match result {
        Ok(_) => true,
        Err(error) if may_be(&error) => false,
        Err(error) => panic!("{kind}: {}", error.chain()),
    }
}

fn open(store: &Path, endpoint: &str) -> ModelCache {
    builder(store, endpoint).open().unwrap()
}

/// Lets `threads` workers loose on `store` for `seconds`; what they did, in words.
pub(super) fn run(store: &Path, endpoint: &str, threads: usize, seed: u64, seconds: u64) -> String {
    let crcs = (0..REPOS).map(|n| (repo(n), vec![crc_of(&pulled(n))])).chain(
        (0..IMPORTS).map(|n| (format!("me/local{n}"), (0..VARIANTS).map(|variant| crc_of(&imported(n, variant))).collect())),
    );
    let shared = Shared {
        store: store.to_owned(),
        endpoint: endpoint.to_owned(),
        stop: AtomicBool::new(false),
        doing: (0..threads).map(|_| Mutex::new(("opening".to_owned(), Instant::now()))).collect(),
        done: Default::default(),
        crcs: crcs.collect(),
    };
    let ended = AtomicBool::new(false);
    thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|index| {
                let shared = &shared;
                scope.spawn(move || {
                    Worker {
                        shared,
                        index,
                        cache: open(&shared.store, &shared.endpoint),
                        numbers: Numbers(seed * 1000 + index as u64),
                        runtime: tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap(),
                        kept: Vec::new(),
                        folder: tempfile::tempdir().unwrap(),
                    }
                    .work();
                })
            })
            .collect();
        scope.spawn(|| watch(&shared, &ended));
        let until = Instant::now() + Duration::from_secs(seconds);
        while Instant::now() < until && !workers.iter().any(|worker| worker.is_finished()) {
            thread::sleep(Duration::from_millis(50));
        }
        shared.stop.store(true, Ordering::Relaxed);
        let results: Vec<_> = workers.into_iter().map(|worker| worker.join()).collect();
        ended.store(true, Ordering::Relaxed);
        for result in results {
            result.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        }
    });
    let kinds = KINDS.iter().zip(&shared.done);
    kinds
        .map(|(kind, (done, had))| format!("{kind} {}/{}", had.load(Ordering::Relaxed), done.load(Ordering::Relaxed)))
        .collect::<Vec<_>>()
        .join(", ")
}

/// Ends the process, and says who waits for what, if any worker is at one thing for too long.
fn watch(shared: &Shared, ended: &AtomicBool) {
    while !ended.load(Ordering::Relaxed) {
        thread::sleep(Duration::from_millis(100));
        let doing: Vec<_> = shared.doing.iter().map(|doing| doing.lock().unwrap().clone()).collect();
        if doing.iter().all(|(_, since)| since.elapsed() < PATIENCE) {
            continue;
        }
        eprintln!("process {}: nobody gets on", std::process::id());
        for (index, (what, since)) in doing.iter().enumerate() {
            eprintln!("  worker {index}: {what} for {:.0?}", since.elapsed());
        }
        let tasks = fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
        for task in tasks {
            let read = |name: &str| fs::read_to_string(task.path().join(name)).unwrap_or_default().trim().to_owned();
            eprintln!("  thread {}: waits in {}, {}\n{}", read("comm"), read("wchan"), read("syscall"), read("stack"));
        }
        eprintln!(
            "locks (byte ranges of `leases` and libmdbx's own):\n{}",
            fs::read_to_string("/proc/locks").unwrap_or_default()
        );
        std::process::abort();
    }
}
