//! What work tells while it runs: [`Mailbox`], filled by threads of Rust's and emptied by Python's.

use serde_json::{Value, json};
use std::{
    collections::VecDeque,
    io::{Read, Write},
    os::{fd::AsRawFd, unix::net::UnixStream},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tabagent_model_cache::{Error, Event, EventKind, EventSink, ProgressCallback};

/// Where work leaves what it has to tell. Nobody who fills it waits for Python.
#[derive(Default)]
pub(crate) struct Mailbox {
    news: Mutex<Inner>,
    changed: Condvar,
}

#[derive(Default)]
struct Inner {
    news: News,
    /// Of a pull: the last event, held back until the error's code and hint are known.
    last: Option<Event>,
    ended: bool,
    bell: Option<Bell>,
}

/// What was told since it was last asked.
#[derive(Default)]
pub(crate) struct News {
    /// The newest (bytes here, bytes in all).
    pub(crate) progress: Option<(u64, u64)>,
    /// Events in order; of progress that nobody has taken yet the newest of each file.
    pub(crate) events: VecDeque<Event>,
    /// The last event of a pull, with all a line of `--progress json` has.
    pub(crate) last: Option<Value>,
    /// Whether the work has ended.
    pub(crate) ended: bool,
}

impl News {
    pub(crate) fn is_none(&self) -> bool {
        self.progress.is_none() && self.events.is_empty() && !self.ended
    }
}

/// A pair of sockets, for who waits for a descriptor to become readable.
struct Bell {
    rope: UnixStream,
    clapper: UnixStream,
}

impl Mailbox {
    /// A callback that leaves progress here.
    pub(crate) fn progress(self: &Arc<Self>) -> ProgressCallback {
        let mailbox = Arc::clone(self);
        Arc::new(move |loaded, total| mailbox.tell(|inner| inner.news.progress = Some((loaded, total))))
    }

    /// A sink that leaves events here.
    pub(crate) fn events(self: &Arc<Self>) -> EventSink {
        let mailbox = Arc::clone(self);
        Arc::new(move |event| mailbox.tell(|inner| inner.hear(event)))
    }

    /// Says that the work has ended, and with which error.
    pub(crate) fn end(&self, error: Option<&Error>) {
        self.tell(|inner| {
            if let Some(last) = inner.last.take() {
                inner.news.last = Some(last_event(&last, error));
            }
            (inner.ended, inner.news.ended) = (true, true);
        });
    }

    /// What was told since, if anything was; waits for it at most so long.
    pub(crate) fn take(&self, patience: Duration) -> News {
        let mut inner = self.lock();
        if !patience.is_zero() && inner.news.is_none() {
            inner = self.changed.wait_timeout(inner, patience).unwrap_or_else(PoisonError::into_inner).0;
        }
        inner.silence();
        let ended = inner.ended;
        News { ended, ..std::mem::take(&mut inner.news) }
    }

    /// A descriptor that is readable whenever there are news.
    pub(crate) fn bell(&self) -> std::io::Result<i32> {
        let mut inner = self.lock();
        if inner.bell.is_none() {
            let (rope, clapper) = UnixStream::pair()?;
            rope.set_nonblocking(true)?;
            clapper.set_nonblocking(true)?;
            inner.bell = Some(Bell { rope, clapper });
            if !inner.news.is_none() {
                inner.ring();
            }
        }
        Ok(inner.bell.as_ref().map_or(-1, |bell| bell.clapper.as_raw_fd()))
    }

    fn tell(&self, change: impl FnOnce(&mut Inner)) {
        let mut inner = self.lock();
        change(&mut inner);
        inner.ring();
        drop(inner);
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Only what is to be shown: a panic leaves nothing half done that matters.
        self.news.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn hear(&mut self, event: &Event) {
        match &event.kind {
            EventKind::Done { .. } | EventKind::Failed { .. } | EventKind::Cancelled { .. } => self.last = Some(event.clone()),
            EventKind::Progress { path, .. } => {
                let same = |other: &&mut Event| matches!(&other.kind, EventKind::Progress { path: told, .. } if told == path);
                match self.news.events.iter_mut().find(same) {
                    Some(older) => *older = event.clone(),
                    None => self.news.events.push_back(event.clone()),
                }
            }
            _ => self.news.events.push_back(event.clone()),
        }
    }

    fn ring(&self) {
        if let Some(bell) = &self.bell {
            // Full means rung.
            let _ = (&bell.rope).write(&[0]);
        }
    }

    fn silence(&self) {
        if let Some(bell) = &self.bell {
            let mut rung = [0; 64];
            while matches!((&bell.clapper).read(&mut rung), Ok(bytes) if bytes > 0) {}
        }
    }
}

/// The last event as `--progress json` has it: with the error's own text, code and hint.
fn last_event(event: &Event, error: Option<&Error>) -> Value {
    let mut event = serde_json::to_value(event).unwrap_or_else(|_| json!({}));
    if let (Value::Object(event), Some(error)) = (&mut event, error) {
        event.insert("code".to_owned(), error.kind().as_str().into());
        event.insert("hint".to_owned(), error.hint().into());
    }
    event
}
