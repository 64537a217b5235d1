//! What was asked and how much was answered: the record tests assert on, and the demo's access log.

use std::fs::File;
use std::io::{self, Write};
use std::ops::Deref;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};

/// Which of the origins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Server {
    /// The API and `/resolve/`.
    Hub,
    /// The content host LFS files redirect to.
    Cdn,
    /// A host that is neither, where [`Fault::RedirectAbroad`](crate::Fault::RedirectAbroad) leads: no token belongs there.
    Abroad,
}

/// One request as it was answered, or as far as its answer has got.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Who was asked.
    pub server: Server,
    /// `GET`, `HEAD`, `POST`, …
    pub method: String,
    /// As sent, undecoded.
    pub path_and_query: String,
    /// HTTP status; 0 while no answer has begun.
    pub status: u16,
    /// First and last byte (inclusive) of a single `Range: bytes=a-b`; no last byte for `a-`. `None` for suffix ranges.
    pub range: Option<(u64, Option<u64>)>,
    /// The `Authorization` header, whole.
    pub authorization: Option<String>,
    /// Bytes of the body handed to the connection; at most 128 KiB of them may still be in hyper, and as much again in the kernel's
    /// send buffer.
    pub body_bytes_sent: u64,
    /// Whether the answer is over: its body ended, was cut, or the client went away.
    pub finished: bool,
    /// The file asked for, as `org/name/path/in/repo`.
    pub file: Option<String>,
    /// The `User-Agent` header.
    pub user_agent: Option<String>,
}

impl Request {
    /// Whether the answer carried bytes of a file (200 or 206, not the text of a redirect or error).
    pub fn served_file(&self) -> bool {
        self.file.is_some() && matches!(self.status, 200 | 206)
    }
}

/// A request being answered; its counters move until the body is dropped.
#[derive(Debug)]
pub(crate) struct Line {
    pub(crate) request: Request,
    status: AtomicU16,
    sent: AtomicU64,
    finished: AtomicBool,
    raw_range: Option<String>,
    file_log: Arc<OnceLock<Mutex<File>>>,
}

impl Line {
    pub(crate) fn answered(&self, status: u16) {
        self.status.store(status, Relaxed);
    }

    pub(crate) fn sent(&self, bytes: u64) {
        self.sent.fetch_add(bytes, Relaxed);
    }

    fn finish(&self) {
        self.finished.store(true, Relaxed);
        if let Some(file) = self.file_log.get() {
            let r = self.snapshot();
            let server = match r.server {
                Server::Hub => "hub",
                Server::Cdn => "cdn",
                Server::Abroad => "abroad",
            };
            let line = format!(
                "{server} {} {} {} bytes={} range={} auth={} file={} ua=\"{}\"\n",
                r.method,
                r.path_and_query,
                r.status,
                r.body_bytes_sent,
                self.raw_range.as_deref().unwrap_or("-"),
                if r.authorization.is_some() { "yes" } else { "-" },
                r.file.as_deref().unwrap_or("-"),
                r.user_agent.as_deref().unwrap_or("-"),
            );
            // A full disk must not change what a client sees.
            let _ = file.lock().unwrap_or_else(|e| e.into_inner()).write_all(line.as_bytes());
        }
    }

    fn snapshot(&self) -> Request {
        let mut request = self.request.clone();
        request.status = self.status.load(Relaxed);
        request.body_bytes_sent = self.sent.load(Relaxed);
        request.finished = self.finished.load(Relaxed);
        request
    }
}

/// A line whose answer is not over; dropping it says that it is, whether the body ended or the client left before the headers.
#[derive(Debug)]
pub(crate) struct OpenLine(Arc<Line>);

impl Deref for OpenLine {
    type Target = Line;

    fn deref(&self) -> &Line {
        &self.0
    }
}

impl Drop for OpenLine {
    fn drop(&mut self) {
        self.0.finish();
    }
}

/// All requests since the start or the last clearing, in order of arrival.
#[derive(Debug, Default)]
pub(crate) struct Log {
    lines: Mutex<Vec<Arc<Line>>>,
    file: Arc<OnceLock<Mutex<File>>>,
}

impl Log {
    pub(crate) fn write_to(&self, path: &Path) -> io::Result<()> {
        let file = File::options().create(true).append(true).open(path)?;
        let _ = self.file.set(Mutex::new(file));
        Ok(())
    }

    pub(crate) fn begin(&self, request: Request, raw_range: Option<String>) -> OpenLine {
        let line = Arc::new(Line {
            request,
            status: AtomicU16::new(0),
            sent: AtomicU64::new(0),
            finished: AtomicBool::new(false),
            raw_range,
            file_log: self.file.clone(),
        });
        self.lock().push(line.clone());
        OpenLine(line)
    }

    pub(crate) fn requests(&self) -> Vec<Request> {
        self.lock().iter().map(|line| line.snapshot()).collect()
    }

    pub(crate) fn clear(&self) {
        self.lock().clear();
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Arc<Line>>> {
        self.lines.lock().unwrap_or_else(|e| e.into_inner())
    }
}
