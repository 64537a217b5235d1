//! Waiting for work in the calling thread: progress is told here, Ctrl-C and `cancel` are asked for here.

use crate::work::Work;
use pyo3::{exceptions::PyTypeError, prelude::*};
use std::time::Duration;

/// How long Python's signals, and whoever may cancel, are not asked.
pub(crate) const SLICE: Duration = Duration::from_millis(50);

/// What a caller gives to a long call.
#[derive(Default)]
pub(crate) struct Watch<'py> {
    progress: Option<Bound<'py, PyAny>>,
    cancel: Option<Bound<'py, PyAny>>,
}

impl<'py> Watch<'py> {
    /// # Errors
    /// `TypeError` for a `progress` that can't be called, and a `cancel` that can't be asked.
    pub(crate) fn new(progress: Option<Bound<'py, PyAny>>, cancel: Option<Bound<'py, PyAny>>) -> PyResult<Self> {
        if let Some(progress) = &progress
            && !progress.is_callable()
        {
            let kind = progress.get_type().qualname()?;
            return Err(PyTypeError::new_err(format!(
                "progress must be callable as progress(loaded, total), and a {kind} is not"
            )));
        }
        check_cancel(cancel.as_ref())?;
        Ok(Self { progress, cancel })
    }

    /// The callback alone, for who waits elsewhere.
    pub(crate) fn into_progress(self) -> Option<Bound<'py, PyAny>> {
        self.progress
    }

    /// Does `work`, other Python threads running meanwhile.
    ///
    /// `progress` is called in this thread. Whatever it raises, and Ctrl-C, cancel the work and are raised once it has ended;
    /// a second Ctrl-C does not wait for that.
    pub(crate) fn run(&self, py: Python<'py>, work: &Work) -> PyResult<Py<PyAny>> {
        let mut failure: Option<PyErr> = None;
        if wait_is_over(self.cancel.as_ref(), &mut failure) {
            work.cancel(py)?;
        }
        work.start(py)?;
        loop {
            let news = work.news(py, SLICE)?;
            let interrupted = failure.is_some();
            if let (Some(progress), Some(told), None) = (&self.progress, news.progress, &failure) {
                failure = progress.call1(told).err();
            }
            if news.ended {
                break;
            }
            if let Err(interrupt) = py.check_signals() {
                if interrupted {
                    return Err(interrupt);
                }
                failure = Some(interrupt);
            }
            if wait_is_over(self.cancel.as_ref(), &mut failure) {
                work.cancel(py)?;
            }
        }
        match failure {
            Some(failure) => Err(failure),
            None => work.result(py),
        }
    }
}

/// Whether the work is to be cancelled; what `cancel` raises is a reason, too.
fn wait_is_over(cancel: Option<&Bound<'_, PyAny>>, failure: &mut Option<PyErr>) -> bool {
    if failure.is_none() {
        match is_set(cancel) {
            Ok(set) => return set,
            Err(error) => *failure = Some(error),
        }
    }
    true
}

/// # Errors
/// `TypeError` for a `cancel` that can't be asked.
pub(crate) fn check_cancel(cancel: Option<&Bound<'_, PyAny>>) -> PyResult<()> {
    match cancel {
        Some(cancel) if !cancel.hasattr("is_set")? => {
            let kind = cancel.get_type().qualname()?;
            Err(PyTypeError::new_err(format!(
                "cancel must be a CancelToken or have is_set() as a threading.Event has, and a {kind} has not"
            )))
        }
        _ => Ok(()),
    }
}

/// Whether `cancel`, if there is one, says so.
pub(crate) fn is_set(cancel: Option<&Bound<'_, PyAny>>) -> PyResult<bool> {
    cancel.map_or(Ok(false), |cancel| cancel.call_method0("is_set")?.is_truthy())
}
