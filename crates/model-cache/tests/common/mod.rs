//! What the tests of this crate share: stores in temporary folders, events as lists, and child processes.
#![allow(dead_code, reason = "each test binary uses its part")]

use hub_fixture::{Content, Hub, Repo};
use std::{
    io::{BufRead, BufReader, Read, Write},
    path::Path,
    process::{Child, ChildStdin, Command, ExitStatus, Stdio},
    sync::{
        Arc, Mutex,
        mpsc::{Receiver, RecvTimeoutError, channel},
    },
    time::Duration,
};
use tabagent_model_cache::*;

pub(crate) const REPO: &str = "org/model";
pub(crate) const MIB: u64 = 1 << 20;
/// The most a stopped connection may have fetched in vain.
pub(crate) const BLOCK: u64 = BLOCK_BYTES;
/// Connections of a cache opened by [`cache`].
pub(crate) const CONNECTIONS: usize = 4;
/// What the fixture counts as sent and a client that goes away never read, for each connection: buffers of both ends.
pub(crate) const IN_FLIGHT: u64 = MIB;

/// A Hub with [`REPO`]: a config and one file `model.gguf` of pseudo-random bytes.
pub(crate) fn hub(seed: u64, size_bytes: u64) -> Hub {
    Hub::start(vec![Repo::new(REPO).file("config.json", "{}").file("model.gguf", Content::seeded(seed, size_bytes))])
}

pub(crate) fn builder(store: &Path, endpoint: &str) -> ModelCacheBuilder {
    ModelCache::builder(store).endpoint(endpoint).offline(false).connections(CONNECTIONS)
}

pub(crate) fn cache(store: &Path, hub: &Hub) -> ModelCache {
    builder(store, &hub.endpoint()).open().unwrap()
}

/// A cache that never asks anybody.
pub(crate) fn local(store: &Path) -> ModelCache {
    ModelCache::builder(store).offline(true).open().unwrap()
}

pub(crate) type Events = Arc<Mutex<Vec<EventKind>>>;

/// A sink, and the list it fills.
pub(crate) fn events() -> (EventSink, Events) {
    let list: Events = Arc::default();
    let seen = Arc::clone(&list);
    (Arc::new(move |event: &Event| seen.lock().unwrap().push(event.kind.clone())), list)
}

pub(crate) fn is_final(event: &EventKind) -> bool {
    matches!(event, EventKind::Done { .. } | EventKind::Failed { .. } | EventKind::Cancelled { .. })
}

/// That exactly one event is final, and that it is the last.
pub(crate) fn assert_one_end(events: &Events) {
    let events = events.lock().unwrap();
    let ends = events.iter().filter(|event| is_final(event)).count();
    assert!(ends == 1 && events.last().is_some_and(is_final), "{ends} final events in {events:?}");
}

/// Whether the store's file has the content; compared in place.
pub(crate) fn holds(cache: &ModelCache, repo: &str, path: &str, content: &Content) -> bool {
    let Some(file) = cache.get_file(repo, path).unwrap() else { return false };
    let size = content.size_bytes().unwrap();
    file.len() as u64 == size
        && (0..size.div_ceil(8 * MIB)).all(|part| {
            let range = part * 8 * MIB..((part + 1) * 8 * MIB).min(size);
            file[range.start as usize..range.end as usize] == content.read(range).unwrap()[..]
        })
}

/// That the store says of itself that all is well, and takes no more disk than what is in it.
pub(crate) fn assert_sound(cache: &ModelCache) {
    let report = cache.verify(None, &[], &VerifyOptions { digest: true, ..VerifyOptions::default() }).unwrap();
    assert!(report.bad.is_empty(), "{:?}", report.bad);
    let stats = cache.stats().unwrap();
    assert_eq!(stats.doomed_bytes, 0, "{stats:?}");
    assert!(stats.disk_bytes < stats.live_bytes + stats.derived_bytes + stats.filling_bytes + 64 * MIB, "{stats:?}");
}

pub(crate) fn sha256sum(path: &Path) -> String {
    let output = Command::new("sha256sum").arg(path).output().unwrap();
    assert!(output.status.success());
    format!("sha256:{}", std::str::from_utf8(&output.stdout[..64]).unwrap())
}

/// Waits until `done` says so, for half a minute.
pub(crate) fn until(what: &str, mut done: impl FnMut() -> bool) {
    let begun = std::time::Instant::now();
    while !done() {
        assert!(begun.elapsed() < Duration::from_secs(30), "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A fixed sequence of numbers, so that a failure can be run again.
pub(crate) struct Numbers(pub(crate) u64);

impl Numbers {
    pub(crate) fn next(&mut self) -> u64 {
        // SplitMix64.
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub(crate) fn within(&mut self, range: std::ops::Range<u64>) -> u64 {
        range.start + self.next() % (range.end - range.start)
    }
}

// -- child processes -----------------------------------------------------------------------------------------------

const ORDERS: &str = "MODEL_CACHE_TEST_CHILD";

/// A child process of this test binary. Killed when dropped.
pub(crate) struct Process {
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Receiver<String>,
}

/// Starts this binary again to obey these words; every test binary that does declares
/// `#[test] fn child() { common::obey() }`.
pub(crate) fn start(orders: &[&str]) -> Process {
    start_by(Command::new(std::env::current_exe().unwrap()), orders)
}

/// The same with variables in its environment.
pub(crate) fn start_with(orders: &[&str], variables: &[(&str, &str)]) -> Process {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.envs(variables.iter().copied());
    start_by(command, orders)
}

/// The same, stopped by SIGSTOP at the `nth` passing of the fail point `point`.
#[cfg(feature = "fail-points")]
pub(crate) fn start_stopping_at(point: &str, nth: u64, orders: &[&str]) -> Process {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.env("MODEL_CACHE_FAIL_AT", format!("{point}:{nth}=stop"));
    start_by(command, orders)
}

/// The same, each fail point it passes written to the file `trace`.
#[cfg(feature = "fail-points")]
pub(crate) fn start_tracing(trace: &Path, orders: &[&str]) -> Process {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.env("MODEL_CACHE_FAIL_TRACE", trace);
    start_by(command, orders)
}

/// The same in a PID namespace of its own, as in a container; `with_proc`: also with a /proc that shows this namespace.
pub(crate) fn start_in_pid_namespace(orders: &[&str], with_proc: bool) -> Process {
    let mut command = Command::new("unshare");
    if !is_root() {
        command.args(["--user", "--map-root-user"]);
    }
    command.args(["--pid", "--fork", "--kill-child"]);
    if with_proc {
        command.arg("--mount-proc");
    }
    command.arg(std::env::current_exe().unwrap());
    start_by(command, orders)
}

fn start_by(mut command: Command, orders: &[&str]) -> Process {
    command.args(["--exact", "child", "--nocapture", "--test-threads=1"]).env(ORDERS, orders.join("\n"));
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let stdin = child.stdin.take();
    let stdout = BufReader::new(child.stdout.take().unwrap());
    let (sender, lines) = channel();
    std::thread::spawn(move || {
        for line in stdout.lines().map_while(Result::ok) {
            if let Some(at) = line.find("child: ") {
                let _ = sender.send(line[at + 7..].to_owned());
            }
        }
    });
    Process { child, stdin, lines }
}

impl Process {
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// The next thing it says that begins with `word`; what follows it.
    pub(crate) fn hear(&self, word: &str) -> String {
        self.hear_within(word, Duration::from_secs(60))
    }

    /// The same, of one that may be silent for `patience`.
    pub(crate) fn hear_within(&self, word: &str, patience: Duration) -> String {
        loop {
            match self.lines.recv_timeout(patience) {
                Ok(line) => {
                    if let Some(rest) = line.strip_prefix(word) {
                        return rest.trim().to_owned();
                    }
                }
                Err(error) => panic!("the child never said {word:?}: {error}"),
            }
        }
    }

    /// The next thing it says; `None` once it has ended.
    pub(crate) fn next_line(&self) -> Option<String> {
        self.lines.recv().ok()
    }

    /// Whether it says something beginning with `word` within `time`.
    pub(crate) fn says_within(&self, word: &str, time: Duration) -> bool {
        let end = std::time::Instant::now() + time;
        loop {
            match self.lines.recv_timeout(end.saturating_duration_since(std::time::Instant::now())) {
                Ok(line) if line.starts_with(word) => return true,
                Ok(_) => {}
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => return false,
            }
        }
    }

    pub(crate) fn tell(&mut self, line: &str) {
        writeln!(self.stdin.as_mut().unwrap(), "{line}").unwrap();
    }

    /// Closes its stdin and waits for its end.
    pub(crate) fn end(&mut self) -> ExitStatus {
        drop(self.stdin.take());
        self.child.wait().unwrap()
    }

    /// Whether it stands still, by SIGSTOP; waits until it does or has ended.
    pub(crate) fn has_stopped(&mut self) -> bool {
        loop {
            let status = std::fs::read_to_string(format!("/proc/{}/stat", self.id())).unwrap_or_default();
            match status.rsplit_once(") ").map(|(_, fields)| fields.as_bytes()[0]) {
                Some(b'T') => return true,
                Some(b'Z') | None => return false,
                _ => std::thread::sleep(Duration::from_millis(2)),
            }
        }
    }

    /// Sends it a signal by name.
    pub(crate) fn signal(&self, name: &str) {
        assert!(Command::new("kill").args(["-s", name, &self.id().to_string()]).status().unwrap().success());
    }

    /// SIGKILL.
    pub(crate) fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

pub(crate) fn say(line: impl std::fmt::Display) {
    // Past the test harness, in one write, so that no other line comes between.
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(format!("child: {line}\n").as_bytes());
    let _ = out.flush();
}

/// What a child process was told to do; nothing where this is the parent.
pub(crate) fn orders() -> Option<Vec<String>> {
    Some(std::env::var(ORDERS).ok()?.split('\n').map(str::to_owned).collect())
}

/// What a child process does; nothing where this is the parent.
pub(crate) fn obey() {
    obey_or(|words| panic!("no such order: {words:?}"));
}

/// As [`obey`]; `other` does what it does not know.
pub(crate) fn obey_or(other: impl FnOnce(&[&str]) -> Result<String>) {
    let Some(orders) = orders() else { return };
    let words: Vec<&str> = orders.iter().map(String::as_str).collect();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let result = match words[..] {
        ["pull", store, endpoint, repo] => runtime.block_on(pull(store, endpoint, repo)),
        ["import", store, repo, path] => {
            say("BEGUN");
            let imported = open(store).and_then(|cache| cache.import(repo, &[path.into()], &ImportOptions::default()));
            imported.map(|report| report.bytes.to_string())
        }
        ["rm", store, repo] => open(store).and_then(|cache| {
            say("BEGUN");
            cache.delete_model(repo).map(|removed| format!("{removed:?}"))
        }),
        ["gc", store] => open(store).and_then(|cache| cache.gc()).map(|removed| format!("{removed:?}")),
        ["read", store, repo, path] => read(store, repo, path),
        ["gather", store, repo, path, start, end] => {
            let cache = local(Path::new(store));
            let file = cache.get_file(repo, path).unwrap().expect("the file is here");
            say("BEGUN");
            let gathered = cache.gather(&file, std::slice::from_ref(&(start.parse().unwrap()..end.parse().unwrap())));
            gathered.map(|gathered| format!("{:?}", gathered.map(|gathered| gathered.offsets().to_vec())))
        }
        ["backup", store, to, keep] => {
            let options = BackupOptions { keep: keep.parse().unwrap(), ..BackupOptions::default() };
            local(Path::new(store)).backup(Path::new(to), &options).map(|report| report.snapshot.to_string())
        }
        ["restore", from, store] => {
            let options = RestoreOptions { replace: true, ..RestoreOptions::default() };
            ModelCache::restore(Path::new(from), Path::new(store), &options).map(|report| report.snapshot.to_string())
        }
        ["open", store] => open(store).map(|_| String::new()),
        ["status", store, repo, quant] => {
            let cache = local(Path::new(store));
            cache.local_manifest(repo).map(|manifest| manifest.unwrap().quants[quant].status.to_string())
        }
        ["reserve", store, chunks] => reserve_and_die(Path::new(store), chunks.parse().unwrap()),
        _ => other(&words),
    };
    match result {
        Ok(said) => say(format_args!("OK {said}")),
        Err(error) => say(format_args!("ERROR {:?} {}", error.kind(), error.chain())),
    }
}

fn open(store: &str) -> Result<ModelCache> {
    ModelCache::builder(store).offline(true).open()
}

async fn pull(store: &str, endpoint: &str, repo: &str) -> Result<String> {
    let cache = builder(Path::new(store), endpoint).open()?;
    say("BEGUN");
    let sink: EventSink = Arc::new(|event: &Event| match &event.kind {
        EventKind::Started { .. } => say("STARTED"),
        EventKind::Waiting { path } => say(format_args!("WAITING {path}")),
        EventKind::Progress { loaded_bytes, .. } => say(format_args!("PROGRESS {loaded_bytes}")),
        EventKind::Sealed { path, .. } => say(format_args!("SEALED {path}")),
        _ => {}
    });
    let report = cache.pull(repo).all(true).on_event(Some(sink)).run().await?;
    Ok(report.fetched_bytes.to_string())
}

/// Opens a file, says its CRC32C, says it again for each line it is told, until there are no more.
fn read(store: &str, repo: &str, path: &str) -> Result<String> {
    let cache = local(Path::new(store));
    let file = cache.get_file(repo, path)?.expect("the file is here");
    say(format_args!("READS {:08x}", crc(&file)));
    let mut line = [0];
    while std::io::stdin().read(&mut line).unwrap() > 0 {
        if line[0] == b'\n' {
            say(format_args!("READS {:08x}", crc(&file)));
        }
    }
    drop(file);
    Ok(String::new())
}

/// Takes the disk space of so many chunks, and dies before the commit that would make them somebody's.
fn reserve_and_die(store: &Path, chunks: u64) -> ! {
    let registry = storage::StorageRegistry::new(store);
    let extents = registry.extents(&store.join("model_cache_chunks"), "chunks", storage::Alignment::LargePage).unwrap();
    let spec = |n| storage::ExtentSpec { key: format!("file:org/model:x:chunk:{n}"), data_bytes: CHUNK_BYTES };
    let specs: Vec<_> = (0..chunks).map(spec).collect();
    let txn = extents.begin_reserve().unwrap();
    txn.reserve(&extents.open_writer().unwrap(), 77, BLOCK_BYTES as u32, &specs).unwrap();
    std::process::abort();
}

pub(crate) fn crc(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes)
}

// -- private disks -------------------------------------------------------------------------------------------------

/// Runs the test called `name` again in a mount namespace of its own, after the shell commands `mounts` with `$DIR` set to a
/// fresh folder; returns that folder in the child, and `None` in the parent once the child has ended well.
pub(crate) fn in_mount_namespace(name: &str, mounts: &str) -> Option<std::path::PathBuf> {
    const FOLDER: &str = "MODEL_CACHE_TEST_MOUNTED";
    if let Some(folder) = std::env::var_os(FOLDER) {
        return Some(folder.into());
    }
    let dir = tempfile::tempdir().unwrap();
    let user: &[&str] = if is_root() { &[] } else { &["--user", "--map-root-user"] };
    let output = Command::new("unshare")
        .args(user)
        .args(["--mount", "--propagation", "private", "sh", "-ec"])
        .arg(format!("{mounts}\nexec \"$EXE\" --exact {name} --nocapture --test-threads=1"))
        .env("DIR", dir.path())
        .env("EXE", std::env::current_exe().unwrap())
        .env(FOLDER, dir.path())
        .output()
        .unwrap();
    let (said, complained) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{name} on a disk of its own: {}\n{said}\n{complained}", output.status);
    None
}

pub(crate) fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata("/proc/self").is_ok_and(|metadata| metadata.uid() == 0)
}
