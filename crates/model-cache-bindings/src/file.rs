//! A file of the store, open: the class `ModelFile`.

use crate::{
    errors, values,
    wait::Watch,
    work::{Line, Work},
};
use pyo3::{
    exceptions::{PyIndexError, PyOverflowError, PyTypeError},
    prelude::*,
    sync::PyOnceLock,
    types::{PyBytes, PyMemoryView, PySlice, PyTuple},
};
use std::sync::{Mutex, MutexGuard, PoisonError};
use tabagent_model_cache::PrefetchOptions;

/// A file of the store, open: all its bytes as one read-only buffer, without a copy.
#[pyclass(frozen, weakref, module = "tabagent_model_cache")]
pub(crate) struct ModelFile {
    repo: String,
    path: String,
    digest: String,
    size_bytes: usize,
    /// What `tensors` gives, made once.
    pub(crate) tensors: PyOnceLock<Py<PyAny>>,
    /// `None` once closed.
    file: Mutex<Option<tabagent_model_cache::ModelFile>>,
}

impl ModelFile {
    pub(crate) fn new(repo: &str, path: &str, file: tabagent_model_cache::ModelFile) -> Self {
        Self {
            repo: repo.to_owned(),
            path: path.to_owned(),
            digest: file.digest().to_owned(),
            size_bytes: file.len(),
            tensors: PyOnceLock::new(),
            file: Mutex::new(Some(file)),
        }
    }

    /// The open file: a clone shares its mapping and its lease.
    ///
    /// # Errors
    /// `ClosedError`.
    pub(crate) fn opened(&self, py: Python<'_>) -> PyResult<tabagent_model_cache::ModelFile> {
        // Not with the lock held: to make an exception may let another Python thread run.
        let file = self.lock().clone();
        file.ok_or_else(|| errors::closed(py, &self.name()))
    }

    /// The file, as a message names it.
    pub(crate) fn name(&self) -> String {
        format!("{} {}", self.repo, self.path)
    }

    fn lock(&self) -> MutexGuard<'_, Option<tabagent_model_cache::ModelFile>> {
        // Taken out or cloned as a whole: nothing can be half done.
        self.file.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[pymethods]
impl ModelFile {
    /// The repo, as it was asked for.
    #[getter]
    pub(crate) fn repo(&self) -> &str {
        &self.repo
    }

    /// The path within the repo.
    #[getter]
    pub(crate) fn path(&self) -> &str {
        &self.path
    }

    /// The Hub's digest: `sha256:<hex>` or `git-sha1:<hex>`.
    #[getter]
    fn digest(&self) -> &str {
        &self.digest
    }

    /// Whether it was closed.
    #[getter]
    fn closed(&self) -> bool {
        self.lock().is_none()
    }

    fn __len__(&self) -> usize {
        self.size_bytes
    }

    /// An empty file is a file: `if file:` asks whether there is one.
    fn __bool__(&self) -> bool {
        true
    }

    /// One byte as an int, or a slice as a memoryview on the mapping.
    fn __getitem__<'py>(slf: &Bound<'py, Self>, index: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        let py = slf.py();
        if index.is_instance_of::<PySlice>() {
            return PyMemoryView::from(slf.as_any())?.get_item(index);
        }
        let this = slf.get();
        let file = this.opened(py)?;
        let outside = || PyIndexError::new_err(format!("byte {index} of {}, which has {}", this.name(), file.len()));
        let at = match index.extract::<isize>() {
            Ok(at) => at,
            Err(error) if error.is_instance_of::<PyOverflowError>(py) => return Err(outside()),
            Err(_) => {
                let kind = index.get_type().qualname()?;
                return Err(PyTypeError::new_err(format!("a ModelFile is indexed by an int or a slice, not by {kind}")));
            }
        };
        let from_start = if at < 0 { at.checked_add_unsigned(file.len()) } else { Some(at) };
        let byte = from_start.and_then(|at| usize::try_from(at).ok()).and_then(|at| file.get(at));
        Ok(byte.ok_or_else(outside)?.into_pyobject(py)?.into_any())
    }

    /// A stream over the file, with a position of its own: a ModelReader, which is an io.RawIOBase.
    fn open<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        slf.get().opened(slf.py())?;
        slf.py().import("tabagent_model_cache.reader")?.call_method1("ModelReader", (slf,))
    }

    /// The same file once more, to be closed by itself.
    fn _clone(&self, py: Python<'_>) -> PyResult<Self> {
        Ok(Self::new(&self.repo, &self.path, self.opened(py)?))
    }

    /// How many of its bytes are in memory, so that reading them does not wait for the disk.
    #[getter]
    fn resident_bytes(&self, py: Python<'_>) -> PyResult<u64> {
        let file = self.opened(py)?;
        py.detach(move || file.resident_bytes()).map_err(|error| errors::raise(py, &error))
    }

    /// Reads all of it into memory and into this process's page tables: a PrefetchReport.
    #[pyo3(signature = (progress=None, cancel=None))]
    fn prefetch<'py>(
        &self,
        py: Python<'py>,
        progress: Option<Bound<'py, PyAny>>,
        cancel: Option<Bound<'py, PyAny>>,
    ) -> PyResult<Py<PyAny>> {
        let (watch, file) = (Watch::new(progress, cancel)?, self.opened(py)?);
        let prefetch = move |line: Line| {
            file.prefetch(&PrefetchOptions { progress: Some(line.mailbox.progress()), cancel: Some(line.cancel) })
        };
        let work = Work::blocking(py, prefetch, |py, report| Ok(values::prefetch_report(py, &report)?.unbind()))?;
        watch.run(py, &work)
    }

    /// Waits until the bytes `start..end` are in memory, other Python threads running meanwhile: a copy of them then does not keep
    /// those waiting for the disk. What does not lie in the file is passed over.
    fn _wait_for(&self, py: Python<'_>, start: usize, end: usize) -> PyResult<()> {
        let file = self.opened(py)?;
        py.detach(move || wait_for(file.get(start..end.min(file.len())).unwrap_or_default()));
        Ok(())
    }

    /// All bytes, copied.
    fn __bytes__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        let file = self.opened(py)?;
        py.detach(|| wait_for(&file));
        Ok(PyBytes::new(py, &file))
    }

    /// Lets go of the file. Views and readers made of it stay valid, and keep it from being freed, until they are gone
    /// themselves.
    fn close(&self, py: Python<'_>) {
        let file = self.lock().take();
        py.detach(|| drop(file));
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
        format!("<ModelFile {} {} ({} bytes{closed})>", self.repo, self.path, self.size_bytes)
    }
}

/// Reads a byte of each page, so that all are in memory.
fn wait_for(bytes: &[u8]) {
    const PAGE_BYTES: usize = 4096;
    bytes.iter().step_by(PAGE_BYTES).chain(bytes.last()).for_each(|byte| _ = std::hint::black_box(*byte));
}

impl Drop for ModelFile {
    /// Of a file that was removed meanwhile the last holder frees the content: not while Python waits.
    fn drop(&mut self) {
        let file = self.lock().take();
        if file.is_some() {
            Python::try_attach(|py| py.detach(|| drop(file)));
        }
    }
}
