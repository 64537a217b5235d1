//! What a pull tells while it runs: [`Event`]s, the plain [`ProgressCallback`], and the [`Reporter`] that feeds both.

use crate::error::{Error, Result};
use serde::Serialize;
use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};
use tokio_util::sync::CancellationToken;

/// Called with (bytes here, bytes in all) of a pull: at most ten times a second, never backwards, and last with
/// (total, total) once everything is sealed.
///
/// Called from the task that pulls: it must not block.
pub type ProgressCallback = Arc<dyn Fn(u64, u64) + Send + Sync>;

/// Called with every [`Event`] of a pull. Called from the task that pulls: it must not block.
pub type EventSink = Arc<dyn Fn(&Event) + Send + Sync>;

/// Tells how far long work is, and whether it is to end early.
///
/// # Errors
/// [`Error::Cancelled`].
pub(crate) fn tell(
    progress: Option<&ProgressCallback>,
    cancel: Option<&CancellationToken>,
    done_bytes: u64,
    total_bytes: u64,
) -> Result<()> {
    if let Some(progress) = progress {
        progress(done_bytes, total_bytes);
    }
    go_on(cancel)
}

/// Whether long work may go on.
///
/// # Errors
/// [`Error::Cancelled`].
pub(crate) fn go_on(cancel: Option<&CancellationToken>) -> Result<()> {
    if cancel.is_some_and(CancellationToken::is_cancelled) { Err(Error::Cancelled) } else { Ok(()) }
}

/// Tells how far long work is at a bearable rate: at once, then ten times a second at most, never backwards, and last, once, that all is
/// done.
pub(crate) struct Paced<'a> {
    progress: Option<&'a ProgressCallback>,
    cancel: Option<&'a CancellationToken>,
    total_bytes: u64,
    told: Option<(Instant, u64)>,
}

impl<'a> Paced<'a> {
    pub(crate) fn new(progress: Option<&'a ProgressCallback>, cancel: Option<&'a CancellationToken>, total_bytes: u64) -> Self {
        Self { progress, cancel, total_bytes, told: None }
    }

    /// So much is done.
    ///
    /// # Errors
    /// [`Error::Cancelled`].
    pub(crate) fn tell(&mut self, done_bytes: u64) -> Result<()> {
        let now = Instant::now();
        let due =
            self.told.is_none_or(|(at, bytes)| done_bytes > bytes && (now - at >= INTERVAL || done_bytes >= self.total_bytes));
        if let Some(progress) = self.progress
            && due
        {
            self.told = Some((now, done_bytes));
            progress(done_bytes, self.total_bytes);
        }
        go_on(self.cancel)
    }
}

/// How often progress of one file, or of the whole, is told.
pub(crate) const INTERVAL: Duration = Duration::from_millis(100);
/// The speed told is that of the last seconds.
const SPEED_WINDOW: Duration = Duration::from_secs(5);

/// One thing that happened in a pull. Serialised, it is the line `--progress json` prints.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Event {
    /// The repo, `org/name`.
    pub repo: String,
    /// The commit pulled.
    pub commit: String,
    /// What happened.
    #[serde(flatten)]
    pub kind: EventKind,
}

/// What happened. Every pull ends with exactly one of `Done`, `Failed`, `Cancelled`.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
#[non_exhaustive]
pub enum EventKind {
    /// What is to be pulled is known.
    Started {
        /// How many files.
        files: u64,
        /// Bytes of all of them.
        total_bytes: u64,
    },
    /// Bytes of a file landed.
    Progress {
        /// The file.
        path: String,
        /// Bytes of it that are here.
        loaded_bytes: u64,
        /// Its size.
        total_bytes: u64,
        /// Speed over the last seconds.
        bytes_per_second: u64,
        /// Time left at that speed, if there is one.
        eta_seconds: Option<u64>,
        /// Bytes of the whole pull that are here.
        pull_loaded_bytes: u64,
        /// Bytes of the whole pull.
        pull_total_bytes: u64,
    },
    /// Something failed that is tried again.
    Retry {
        /// The file, unless it was the listing.
        path: Option<String>,
        /// How many times it failed in a row.
        attempt: u32,
        /// Why.
        reason: String,
        /// How long until the next try.
        wait_seconds: f64,
    },
    /// Another process, or another pull of this one, is fetching this file: this pull waits for it.
    Waiting {
        /// The file.
        path: String,
    },
    /// Every byte is here; the digest of what was written is being computed.
    Verifying {
        /// The file.
        path: String,
    },
    /// The file is complete, verified, durable and visible.
    Sealed {
        /// The file.
        path: String,
        /// Its size.
        size_bytes: u64,
        /// Bytes of it this pull fetched; 0 if its content was here.
        fetched_bytes: u64,
    },
    /// Everything is here.
    Done {
        /// How many files.
        files: u64,
        /// Bytes of all of them.
        total_bytes: u64,
        /// Bytes this pull fetched.
        fetched_bytes: u64,
        /// How long it took.
        elapsed_ms: u64,
    },
    /// The pull ended with an error. What landed is kept.
    Failed {
        /// The error.
        message: String,
    },
    /// The pull was cancelled, by its token or by dropping its future. What landed is kept.
    Cancelled {
        /// Bytes that are here.
        loaded_bytes: u64,
        /// Bytes in all.
        total_bytes: u64,
    },
}

/// Turns what the engine does into events and callbacks, at a bearable rate.
pub(crate) struct Reporter {
    repo: String,
    commit: String,
    sink: Option<EventSink>,
    callback: Option<ProgressCallback>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    files: HashMap<String, FileState>,
    loaded_bytes: u64,
    total_bytes: u64,
    /// The highest number the callback has seen: a block fetched again must not make it go back.
    told_bytes: u64,
    told_at: Option<Instant>,
    ended: bool,
}

struct FileState {
    loaded_bytes: u64,
    total_bytes: u64,
    told_at: Option<Instant>,
    speed: Speed,
}

impl Reporter {
    pub(crate) fn new(repo: String, commit: String, sink: Option<EventSink>, callback: Option<ProgressCallback>) -> Self {
        Self { repo, commit, sink, callback, state: Mutex::default() }
    }

    /// Names the files to come and their sizes.
    pub(crate) fn started<'a>(&self, files: impl Iterator<Item = (&'a str, u64)>) {
        let mut state = self.lock();
        for (path, total_bytes) in files {
            state.total_bytes += total_bytes;
            let file = FileState { loaded_bytes: 0, total_bytes, told_at: None, speed: Speed::default() };
            state.files.insert(path.to_owned(), file);
        }
        let (files, total_bytes) = (state.files.len() as u64, state.total_bytes);
        drop(state);
        self.tell(EventKind::Started { files, total_bytes });
    }

    /// Bytes arrived from the network.
    pub(crate) fn arrived(&self, path: &str, bytes: u64) {
        self.change(path, |file, now| {
            file.loaded_bytes = (file.loaded_bytes + bytes).min(file.total_bytes);
            file.speed.add(bytes, now);
        });
    }

    /// Bytes that had arrived were lost: their block will be fetched again.
    pub(crate) fn lost(&self, path: &str, bytes: u64) {
        self.change(path, |file, _| file.loaded_bytes = file.loaded_bytes.saturating_sub(bytes));
    }

    /// So many bytes of a file are here, however they came.
    pub(crate) fn is_here(&self, path: &str, loaded_bytes: u64) {
        self.change(path, |file, _| file.loaded_bytes = loaded_bytes.min(file.total_bytes));
    }

    pub(crate) fn retry(&self, path: Option<&str>, attempt: u32, reason: &Error, wait: Duration) {
        let path = path.map(str::to_owned);
        self.tell(EventKind::Retry { path, attempt, reason: reason.chain(), wait_seconds: wait.as_secs_f64() });
    }

    pub(crate) fn waiting(&self, path: &str) {
        self.tell(EventKind::Waiting { path: path.to_owned() });
    }

    pub(crate) fn verifying(&self, path: &str) {
        self.tell(EventKind::Verifying { path: path.to_owned() });
    }

    pub(crate) fn sealed(&self, path: &str, size_bytes: u64, fetched_bytes: u64) {
        self.is_here(path, size_bytes);
        self.tell(EventKind::Sealed { path: path.to_owned(), size_bytes, fetched_bytes });
    }

    pub(crate) fn done(&self, fetched_bytes: u64, elapsed: Duration) {
        let state = self.lock();
        let (files, total_bytes) = (state.files.len() as u64, state.total_bytes);
        drop(state);
        if let Some(callback) = &self.callback {
            callback(total_bytes, total_bytes);
        }
        self.end(EventKind::Done { files, total_bytes, fetched_bytes, elapsed_ms: elapsed.as_millis() as u64 });
    }

    pub(crate) fn failed(&self, error: &Error) {
        self.end(EventKind::Failed { message: error.chain() });
    }

    pub(crate) fn cancelled(&self) {
        let state = self.lock();
        let (loaded_bytes, total_bytes) = (state.loaded_bytes, state.total_bytes);
        drop(state);
        self.end(EventKind::Cancelled { loaded_bytes, total_bytes });
    }

    /// Ends this reporter without a word: another one goes on.
    pub(crate) fn hand_over(&self) {
        self.lock().ended = true;
    }

    fn change(&self, path: &str, change: impl FnOnce(&mut FileState, Instant)) {
        let now = Instant::now();
        let mut state = self.lock();
        let state = &mut *state;
        let Some(file) = state.files.get_mut(path) else { return };
        let before = file.loaded_bytes;
        change(file, now);
        state.loaded_bytes = state.loaded_bytes - before + file.loaded_bytes;
        let due = |told_at: Option<Instant>| told_at.is_none_or(|at| now - at >= INTERVAL);
        if self.sink.is_some() && due(file.told_at) && file.loaded_bytes != before {
            file.told_at = Some(now);
            let bytes_per_second = file.speed.bytes_per_second(now);
            let left = file.total_bytes - file.loaded_bytes;
            self.tell(EventKind::Progress {
                path: path.to_owned(),
                loaded_bytes: file.loaded_bytes,
                total_bytes: file.total_bytes,
                bytes_per_second,
                eta_seconds: left.checked_div(bytes_per_second),
                pull_loaded_bytes: state.loaded_bytes,
                pull_total_bytes: state.total_bytes,
            });
        }
        // The very last call, (total, total), is `done`'s.
        let loaded_bytes = state.loaded_bytes.max(state.told_bytes);
        if let Some(callback) = &self.callback
            && due(state.told_at)
            && loaded_bytes < state.total_bytes
        {
            state.told_at = Some(now);
            state.told_bytes = loaded_bytes;
            callback(loaded_bytes, state.total_bytes);
        }
    }

    /// Tells the last event, once.
    fn end(&self, kind: EventKind) {
        if !std::mem::replace(&mut self.lock().ended, true) {
            self.tell(kind);
        }
    }

    fn tell(&self, kind: EventKind) {
        if let Some(sink) = &self.sink {
            sink(&Event { repo: self.repo.clone(), commit: self.commit.clone(), kind });
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Only numbers for showing: a sink that panicked leaves nothing half done that matters.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Reporter {
    /// A future dropped half way is a pull cancelled.
    fn drop(&mut self) {
        // While a panic unwinds, perhaps the sink's own, a second one in it would end the process.
        if !std::thread::panicking() {
            self.cancelled();
        }
    }
}

/// Bytes a second over the last [`SPEED_WINDOW`], from arrivals as they come.
#[derive(Default)]
struct Speed {
    /// Bytes of each tenth of a second.
    arrivals: VecDeque<(Instant, u64)>,
}

impl Speed {
    fn add(&mut self, bytes: u64, now: Instant) {
        match self.arrivals.back_mut() {
            Some((at, sum)) if now - *at < INTERVAL => *sum += bytes,
            _ => self.arrivals.push_back((now, bytes)),
        }
        while self.arrivals.front().is_some_and(|(at, _)| now - *at > SPEED_WINDOW) {
            self.arrivals.pop_front();
        }
    }

    fn bytes_per_second(&self, now: Instant) -> u64 {
        let Some((first, _)) = self.arrivals.front() else { return 0 };
        let seconds = (now - *first).max(INTERVAL).as_secs_f64();
        (self.arrivals.iter().map(|(_, bytes)| bytes).sum::<u64>() as f64 / seconds) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Seen<T> = Arc<Mutex<Vec<T>>>;

    fn reporter(total: u64) -> (Reporter, Seen<(u64, u64)>, Seen<EventKind>) {
        let calls = Arc::new(Mutex::new(Vec::new()));
        let events = Arc::new(Mutex::new(Vec::new()));
        let (seen, heard) = (Arc::clone(&calls), Arc::clone(&events));
        let reporter = Reporter::new(
            "a/b".into(),
            "0".into(),
            Some(Arc::new(move |event: &Event| heard.lock().unwrap().push(event.kind.clone()))),
            Some(Arc::new(move |loaded, total| seen.lock().unwrap().push((loaded, total)))),
        );
        reporter.started([("f", total)].into_iter());
        (reporter, calls, events)
    }

    #[test]
    fn the_callback_never_goes_back_and_ends_with_the_total_once() {
        let (reporter, calls, _) = reporter(1000);
        reporter.arrived("f", 600);
        reporter.lost("f", 500);
        std::thread::sleep(INTERVAL);
        reporter.arrived("f", 10);
        reporter.arrived("f", 890);
        reporter.done(1000, Duration::ZERO);
        let calls = calls.lock().unwrap();
        assert!(calls.is_sorted());
        assert_eq!(calls.iter().filter(|call| **call == (1000, 1000)).count(), 1);
        assert_eq!(calls.last(), Some(&(1000, 1000)));
    }

    #[test]
    fn paced_progress_begins_at_once_never_goes_back_and_ends_with_the_total_once() {
        let seen: Seen<(u64, u64)> = Seen::default();
        let heard = Arc::clone(&seen);
        let callback: ProgressCallback = Arc::new(move |done, total| heard.lock().unwrap().push((done, total)));
        let mut paced = Paced::new(Some(&callback), None, 10_000);
        for done in (0..10_000).chain([9_000, 10_000, 10_000]) {
            paced.tell(done).unwrap();
        }
        let seen = seen.lock().unwrap();
        assert!(seen.is_sorted() && seen.len() < 100, "{seen:?}");
        assert_eq!((seen.first(), seen.last()), (Some(&(0, 10_000)), Some(&(10_000, 10_000))));
        assert_eq!(seen.iter().filter(|(done, total)| done == total).count(), 1);
        let token = CancellationToken::new();
        token.cancel();
        assert!(matches!(Paced::new(None, Some(&token), 1).tell(0), Err(Error::Cancelled)));
    }

    #[test]
    fn calls_are_rate_limited() {
        let (reporter, calls, events) = reporter(1 << 20);
        for _ in 0..10_000 {
            reporter.arrived("f", 1);
        }
        assert!(calls.lock().unwrap().len() < 100);
        assert!(events.lock().unwrap().len() < 100);
    }

    #[test]
    fn a_pull_ends_with_exactly_one_event_also_when_dropped() {
        let (reporter, _, events) = reporter(10);
        drop(reporter);
        assert!(matches!(events.lock().unwrap().last(), Some(EventKind::Cancelled { total_bytes: 10, .. })));
        let (reporter, _, events) = self::reporter(10);
        reporter.failed(&Error::Cancelled);
        reporter.done(0, Duration::ZERO);
        drop(reporter);
        let ends = events.lock().unwrap().iter().filter(|kind| !matches!(kind, EventKind::Started { .. })).count();
        assert_eq!(ends, 1);
    }

    #[test]
    fn an_event_is_one_flat_json_object() {
        let event = Event { repo: "a/b".into(), commit: "c".into(), kind: EventKind::Waiting { path: "p".into() } };
        assert_eq!(serde_json::to_string(&event).unwrap(), r#"{"repo":"a/b","commit":"c","event":"waiting","path":"p"}"#);
    }
}
