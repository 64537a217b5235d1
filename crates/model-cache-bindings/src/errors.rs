//! The one place where an error of model-cache becomes a Python exception.

use pyo3::{exceptions::PyOSError, prelude::*, types::PyDict};
use std::io;
use tabagent_model_cache::{Error, ErrorKind};

/// `error` as an exception of `exceptions.py`: its text with every cause on one line, its `code` and `hint`; where the operating
/// system refused, its `__cause__` is the `OSError` with that number.
pub(crate) fn raise(py: Python<'_>, error: &Error) -> PyErr {
    raise_with(py, &error.chain(), error)
}

/// As [`raise`], for an error that does not say of which file it is.
pub(crate) fn raise_about(py: Python<'_>, what: &str, error: &Error) -> PyErr {
    raise_with(py, &format!("{what}: {}", error.chain()), error)
}

fn raise_with(py: Python<'_>, text: &str, error: &Error) -> PyErr {
    let raised = exception(py, class_of(error), text, error.kind().as_str(), error.hint().as_deref());
    if let Some(number) = error.raw_os_error() {
        let words = io::Error::from_raw_os_error(number).to_string();
        raised.set_cause(py, Some(PyOSError::new_err((number, words))));
    }
    raised
}

/// The exception of arguments that can't be.
pub(crate) fn invalid(py: Python<'_>, message: &str) -> PyErr {
    exception(py, "InvalidInput", message, "usage", None)
}

/// The exception of a cache or file that was closed.
pub(crate) fn closed(py: Python<'_>, what: &str) -> PyErr {
    exception(py, "ClosedError", &format!("{what} is closed"), "usage", None)
}

/// The exception of a handle that came through a fork.
pub(crate) fn forked(py: Python<'_>, what: &str, opened_by: u32) -> PyErr {
    let message =
        format!("{what} was opened by process {opened_by}; process {} is a fork of it and can't use it", std::process::id());
    exception(py, "ForkedError", &message, "usage", Some("open it after the fork, in the process that uses it"))
}

/// An exception of the class called `class` in `exceptions.py`.
fn exception(py: Python<'_>, class: &str, message: &str, code: &str, hint: Option<&str>) -> PyErr {
    let made = || {
        let options = PyDict::new(py);
        options.set_item("code", code)?;
        options.set_item("hint", hint)?;
        py.import("tabagent_model_cache.exceptions")?.getattr(class)?.call((message,), Some(&options))
    };
    made().map_or_else(|error| error, PyErr::from_value)
}

fn class_of(error: &Error) -> &'static str {
    match error {
        _ if error.is_forked() => "ForkedError",
        Error::QuantNotChosen { .. } => "QuantNotChosen",
        Error::RepoNotFound { .. } => "RepoNotFound",
        Error::RevisionNotFound { .. } => "RevisionNotFound",
        Error::FileNotFound { .. } | Error::NotHere { .. } => "FileNotInRepo",
        Error::QuantNotFound { .. } => "QuantNotFound",
        Error::NotInStore { .. } => "NotInStore",
        Error::Gated { .. } => "Gated",
        Error::Offline { .. } => "Offline",
        Error::RateLimited { .. } => "RateLimited",
        Error::Busy { .. } => "Busy",
        Error::TargetExists { .. } => "AlreadyExists",
        Error::BadFormat { .. } => "FormatError",
        Error::TensorNotFound { .. } => "TensorNotFound",
        // What the caller named and the operating system has not.
        Error::Io { source, .. } if source.kind() == io::ErrorKind::NotFound => "NotFound",
        Error::Io { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => "AccessDenied",
        _ => class_of_kind(error.kind()),
    }
}

fn class_of_kind(kind: ErrorKind) -> &'static str {
    match kind {
        ErrorKind::Usage => "InvalidInput",
        ErrorKind::NotFound => "NotFound",
        ErrorKind::Network => "NetworkError",
        ErrorKind::Integrity => "IntegrityError",
        ErrorKind::NoSpace => "NoSpace",
        ErrorKind::NotAllowed => "AccessDenied",
        ErrorKind::Interrupted => "Cancelled",
        ErrorKind::Other => "StoreError",
    }
}
