//! An open store: the class `ModelCache`.

use crate::{errors, file::ModelFile, log};
use pyo3::{
    exceptions::{PyOverflowError, PyTypeError},
    prelude::*,
    types::{PyBool, PyTuple},
};
use std::{
    path::PathBuf,
    sync::{Mutex, MutexGuard, PoisonError},
};
use tabagent_model_cache::{Error, Result, default_store};

/// An open store of AI model files.
#[pyclass(frozen, weakref, module = "tabagent_model_cache")]
pub(crate) struct ModelCache {
    store: PathBuf,
    /// The process that opened it: what a fork inherits is of no use to the child.
    opened_by: u32,
    /// `None` once closed.
    cache: Mutex<Option<tabagent_model_cache::ModelCache>>,
}

impl ModelCache {
    /// The open cache.
    ///
    /// # Errors
    /// `ForkedError`, `ClosedError`.
    pub(crate) fn opened(&self, py: Python<'_>) -> PyResult<tabagent_model_cache::ModelCache> {
        if self.opened_by != std::process::id() {
            return Err(errors::forked(py, &self.name(), self.opened_by));
        }
        log::hand_over(py)?;
        // Not with the lock held: to make an exception may let another Python thread run.
        let cache = self.lock().clone();
        cache.ok_or_else(|| errors::closed(py, &self.name()))
    }

    /// Does `work` with the open cache, other Python threads running meanwhile.
    pub(crate) fn with<T: Send>(
        &self,
        py: Python<'_>,
        work: impl FnOnce(&tabagent_model_cache::ModelCache) -> Result<T> + Send,
    ) -> PyResult<T> {
        let cache = self.opened(py)?;
        // The clone may be the last, if the cache is closed meanwhile: it is dropped before Python goes on.
        let result = py.detach(move || work(&cache));
        log::hand_over(py)?;
        result.map_err(|error| errors::raise(py, &error))
    }

    fn name(&self) -> String {
        format!("the store {}", self.store.display())
    }

    fn lock(&self) -> MutexGuard<'_, Option<tabagent_model_cache::ModelCache>> {
        // Taken out or cloned as a whole: nothing can be half done.
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The number that was given for the keyword `name`.
///
/// # Errors
/// `InvalidInput` for one below 0 or not below 2**64, `TypeError` for what is no number, as `True`; both name the keyword.
fn whole(name: &'static str, value: &Bound<'_, PyAny>) -> PyResult<u64> {
    let py = value.py();
    if value.is_instance_of::<PyBool>() {
        return Err(PyTypeError::new_err(format!("argument '{name}': a bool is no number of them")));
    }
    value.extract::<u64>().map_err(|error| {
        if error.is_instance_of::<PyOverflowError>(py) {
            let reason = "it must be above 0 and below 2**64".to_owned();
            errors::raise(py, &Error::InvalidOption { name, value: value.to_string(), reason })
        } else {
            PyTypeError::new_err(format!("argument '{name}': {}", error.value(py)))
        }
    })
}

#[pymethods]
impl ModelCache {
    #[new]
    #[expect(clippy::too_many_arguments, reason = "keywords of Python's")]
    #[pyo3(signature = (path=None, *, endpoint=None, token=None, offline=None, connections=None, limit_rate=None, memory_budget_bytes=None))]
    fn open(
        py: Python<'_>,
        path: Option<PathBuf>,
        endpoint: Option<String>,
        token: Option<String>,
        offline: Option<bool>,
        connections: Option<&Bound<'_, PyAny>>,
        limit_rate: Option<&Bound<'_, PyAny>>,
        memory_budget_bytes: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Self> {
        let whole = |name, value: Option<&Bound<'_, PyAny>>| value.map(|value| whole(name, value)).transpose();
        // Larger than any number of connections that is allowed.
        let connections = whole("connections", connections)?.map(|number| usize::try_from(number).unwrap_or(usize::MAX));
        let limit_rate = whole("limit_rate", limit_rate)?;
        let memory_budget_bytes = whole("memory_budget_bytes", memory_budget_bytes)?;
        let open = || -> Result<_, Error> {
            let store = path.map_or_else(default_store, Ok)?;
            let mut builder = tabagent_model_cache::ModelCache::builder(&store);
            if let Some(endpoint) = endpoint {
                builder = builder.endpoint(endpoint);
            }
            if let Some(token) = token {
                builder = builder.token(token);
            }
            if let Some(offline) = offline {
                builder = builder.offline(offline);
            }
            if let Some(connections) = connections {
                builder = builder.connections(connections);
            }
            if let Some(rate) = limit_rate {
                builder = builder.limit_rate(rate);
            }
            if let Some(bytes) = memory_budget_bytes {
                builder = builder.memory_budget_bytes(bytes);
            }
            Ok((store, builder.open()?))
        };
        log::hand_over(py)?;
        let (store, cache) = py.detach(open).map_err(|error| errors::raise(py, &error))?;
        Ok(Self { store, opened_by: std::process::id(), cache: Mutex::new(Some(cache)) })
    }

    /// The store's folder.
    #[getter]
    fn path(&self) -> PathBuf {
        self.store.clone()
    }

    /// Whether it was closed.
    #[getter]
    fn closed(&self) -> bool {
        self.lock().is_none()
    }

    /// Opens a file that is here: one read-only buffer without a copy. None if it is not here.
    fn get_file(&self, py: Python<'_>, repo: &str, path: &str) -> PyResult<Option<ModelFile>> {
        let file = self.with(py, |cache| cache.get_file(repo, path))?;
        Ok(file.map(|file| ModelFile::new(repo, path, file)))
    }

    /// Whether a file is here, complete and verified.
    fn has_file(&self, py: Python<'_>, repo: &str, path: &str) -> PyResult<bool> {
        self.with(py, |cache| cache.has_file(repo, path))
    }

    /// Closes the store. Files opened from it stay valid.
    fn close(&self, py: Python<'_>) {
        let cache = self.lock().take();
        if self.opened_by == std::process::id() {
            py.detach(|| drop(cache));
        } else {
            // In a forked child its connections' locks may be held by a thread that is not here.
            std::mem::forget(cache);
        }
    }

    fn __enter__(slf: Bound<'_, Self>) -> PyResult<Bound<'_, Self>> {
        slf.get().opened(slf.py())?;
        Ok(slf)
    }

    #[pyo3(signature = (*_exception))]
    fn __exit__(&self, py: Python<'_>, _exception: &Bound<'_, PyTuple>) {
        self.close(py);
    }

    fn __repr__(&self) -> String {
        let closed = if self.closed() { ", closed" } else { "" };
        format!("<ModelCache {}{closed}>", self.store.display())
    }
}

impl Drop for ModelCache {
    fn drop(&mut self) {
        Python::try_attach(|py| self.close(py));
    }
}
