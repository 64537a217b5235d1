//! Something long that runs on threads of its own while Python waits, polls, or does something else: the class `Work`.

use crate::{
    errors, log,
    progress::{Mailbox, News},
    runtime, wait,
};
use pyo3::{exceptions::PyRuntimeError, prelude::*, types::PyTuple};
use serde_json::Value;
use std::{
    future::Future,
    mem,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tabagent_model_cache::{Error, Result};
use tokio_util::sync::CancellationToken;

/// Turns the result of work into Python's.
type Wrap = Box<dyn FnOnce(Python<'_>) -> PyResult<Py<PyAny>> + Send>;
type Task = Pin<Box<dyn Future<Output = Result<Wrap>> + Send>>;

/// Why work gave nothing.
enum Failure {
    Error(Error),
    /// It panicked, with these words.
    Panic(String),
}

/// Work that was described, runs, or has ended. Not for users: `ModelCache` and `Pull` are made with it.
#[pyclass(frozen, module = "tabagent_model_cache._native")]
pub(crate) struct Work {
    /// The process that described it: its threads are in no other.
    process: u32,
    /// `None` only while `drop` runs.
    inner: Option<Inner>,
}

struct Inner {
    /// Taken by `start`.
    task: Mutex<Option<Task>>,
    /// There once it has ended; taken by `result`.
    outcome: Arc<Mutex<Option<Result<Wrap, Failure>>>>,
    line: Line,
}

/// The line between work and who waits for it.
#[derive(Clone)]
pub(crate) struct Line {
    /// What it tells.
    pub(crate) mailbox: Arc<Mailbox>,
    /// What it is told.
    pub(crate) cancel: CancellationToken,
}

impl Work {
    /// What `task` makes a future of; `wrap` turns its result into Python's. Nothing runs before [`start`](Self::start).
    pub(crate) fn new<T, F>(
        py: Python<'_>,
        task: impl FnOnce(Line) -> F,
        wrap: impl FnOnce(Python<'_>, T) -> PyResult<Py<PyAny>> + Send + 'static,
    ) -> PyResult<Self>
    where
        T: Send + 'static,
        F: Future<Output = Result<T>> + Send + 'static,
    {
        let (_, cancel) = runtime::handle(py)?;
        let line = Line { mailbox: Arc::default(), cancel };
        let task = task(line.clone());
        let task: Task = Box::pin(async move {
            let value = task.await?;
            Ok(Box::new(move |py: Python<'_>| wrap(py, value)) as Wrap)
        });
        let inner = Inner { task: Mutex::new(Some(task)), outcome: Arc::default(), line };
        Ok(Self { process: std::process::id(), inner: Some(inner) })
    }

    /// A question to the Hub: ends as soon as it is cancelled.
    pub(crate) fn asking<T, F>(
        py: Python<'_>,
        task: F,
        wrap: impl FnOnce(Python<'_>, T) -> PyResult<Py<PyAny>> + Send + 'static,
    ) -> PyResult<Self>
    where
        T: Send + 'static,
        F: Future<Output = Result<T>> + Send + 'static,
    {
        let task = |line: Line| async move {
            tokio::select! {
                biased;
                () = line.cancel.cancelled() => Err(Error::Cancelled),
                result = task => result,
            }
        };
        Self::new(py, task, wrap)
    }

    /// Something that reads or writes whole files: ends by itself when it is cancelled.
    pub(crate) fn blocking<T: Send + 'static>(
        py: Python<'_>,
        work: impl FnOnce(Line) -> Result<T> + Send + 'static,
        wrap: impl FnOnce(Python<'_>, T) -> PyResult<Py<PyAny>> + Send + 'static,
    ) -> PyResult<Self> {
        let task = |line: Line| async move {
            match tokio::task::spawn_blocking(move || work(line)).await {
                Ok(result) => result,
                Err(error) => match error.try_into_panic() {
                    Ok(panic) => std::panic::resume_unwind(panic),
                    // It never ran: the interpreter is shutting down.
                    Err(_) => Err(Error::Cancelled),
                },
            }
        };
        Self::new(py, task, wrap)
    }

    /// What was told since, waiting for it at most so long.
    ///
    /// # Errors
    /// `ForkedError`.
    pub(crate) fn news(&self, py: Python<'_>, patience: Duration) -> PyResult<News> {
        let mailbox = &self.here(py)?.line.mailbox;
        let news = py.detach(|| mailbox.take(patience));
        log::hand_over(py)?;
        Ok(news)
    }

    /// What is in it, in the process that described it: a lock in it may be held by a thread that is in no other.
    fn here(&self, py: Python<'_>) -> PyResult<&Inner> {
        match &self.inner {
            Some(inner) if self.process == std::process::id() => Ok(inner),
            _ => Err(errors::forked(py, "this pull", self.process)),
        }
    }
}

#[pymethods]
impl Work {
    /// Begins it; nothing if it was begun.
    pub(crate) fn start(&self, py: Python<'_>) -> PyResult<()> {
        let inner = self.here(py)?;
        let Some(task) = lock(&inner.task).take() else { return Ok(()) };
        let (runtime, _) = runtime::handle(py)?;
        let (outcome, mailbox) = (Arc::clone(&inner.outcome), Arc::clone(&inner.line.mailbox));
        let task = runtime.spawn(task);
        runtime.spawn(async move {
            let result = match task.await {
                Ok(result) => result.map_err(Failure::Error),
                Err(error) => Err(Failure::Panic(error.to_string())),
            };
            // Until the outcome is there, who is told of the end waits for this lock.
            let mut slot = lock(&outcome);
            mailbox.end(match &result {
                Err(Failure::Error(error)) => Some(error),
                _ => None,
            });
            *slot = Some(result);
        });
        Ok(())
    }

    /// Asks it to end; what has landed by then is kept.
    pub(crate) fn cancel(&self, py: Python<'_>) -> PyResult<()> {
        self.here(py)?.line.cancel.cancel();
        Ok(())
    }

    /// A descriptor that is readable whenever there are news.
    fn fileno(&self, py: Python<'_>) -> PyResult<i32> {
        Ok(self.here(py)?.line.mailbox.bell()?)
    }

    /// The news there are: progress, events, whether it has ended.
    fn poll<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        to_python(py, self.news(py, Duration::ZERO)?)
    }

    /// The next news; waits for them, asks `cancel` meanwhile, and is interrupted by Ctrl-C.
    fn wait<'py>(&self, py: Python<'py>, cancel: Option<&Bound<'py, PyAny>>) -> PyResult<Bound<'py, PyTuple>> {
        loop {
            let news = self.news(py, wait::SLICE)?;
            if !news.is_none() {
                return to_python(py, news);
            }
            py.check_signals()?;
            if wait::is_set(cancel)? {
                self.cancel(py)?;
            }
        }
    }

    /// What it gave, once, after it has ended; its exception, if it failed.
    pub(crate) fn result(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        let outcome = &self.here(py)?.outcome;
        match py.detach(|| lock(outcome).take()) {
            Some(Ok(wrap)) => wrap(py),
            Some(Err(Failure::Error(error))) => Err(errors::raise(py, &error)),
            Some(Err(Failure::Panic(words))) => {
                Err(PyRuntimeError::new_err(format!("this is a bug of the model cache: {words}")))
            }
            None => Err(PyRuntimeError::new_err("there is no result yet, or it was taken")),
        }
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        let Some(inner) = self.inner.take() else { return };
        if self.process == std::process::id() {
            inner.line.cancel.cancel();
        } else {
            mem::forget(inner);
        }
    }
}

/// News as `waiting.py` has them. Events go through JSON: they are what `--progress json` prints.
fn to_python(py: Python<'_>, news: News) -> PyResult<Bound<'_, PyTuple>> {
    let events = news.events.into_iter().map(serde_json::to_value).collect::<Result<Vec<Value>, _>>();
    let mut events = events.map_err(|error| PyRuntimeError::new_err(error.to_string()))?;
    events.extend(news.last);
    let events = py.import("json")?.call_method1("loads", (Value::Array(events).to_string(),))?;
    (news.progress, events, news.ended).into_pyobject(py)
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // Each holds one value that is put in or taken out whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
