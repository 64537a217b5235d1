//! What of `ModelCache` is about what is here: to list, verify, import, export and remove.

use crate::{
    cache::ModelCache,
    errors,
    several::several,
    values,
    wait::Watch,
    work::{Line, Work},
};
use pyo3::prelude::*;
use std::path::PathBuf;
use tabagent_model_cache::{ExportOptions, ImportOptions, PrefetchOptions, VerifyOptions};

#[pymethods]
impl ModelCache {
    /// Every repo that has a file here, complete or begun: a list of RepoSummary.
    fn list<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        values::repos(py, &self.with(py, |cache| cache.list())?)
    }

    /// The files of a repo that are here or were begun: a list of RepoFiles, one for each commit.
    fn files<'py>(&self, py: Python<'py>, repo: &str) -> PyResult<Bound<'py, PyAny>> {
        values::files(py, &self.with(py, |cache| cache.files(repo))?)
    }

    /// How much is here, and how much disk it takes: Stats.
    fn get_stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        values::stats(py, &self.with(py, |cache| cache.stats())?)
    }

    /// Whether any file of a repo was imported, so that the Hub can't give it again.
    fn is_imported(&self, py: Python<'_>, repo: &str) -> PyResult<bool> {
        self.with(py, |cache| cache.is_imported(repo))
    }

    /// Removes one file: Removed.
    fn delete_file<'py>(&self, py: Python<'py>, repo: &str, path: &str) -> PyResult<Bound<'py, PyAny>> {
        values::removed(py, &self.with(py, |cache| cache.delete_file(repo, path))?)
    }

    /// Removes files by globs and quants: Removed.
    #[pyo3(signature = (repo, files=None, *, quant=None))]
    fn delete_files<'py>(
        &self,
        py: Python<'py>,
        repo: &str,
        files: Option<Bound<'py, PyAny>>,
        quant: Option<Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let (globs, quants): (Vec<String>, Vec<String>) = (several("files", "str", files)?, several("quant", "str", quant)?);
        if globs.is_empty() && quants.is_empty() {
            return Err(errors::invalid(py, "delete_files needs files or quant; delete_model removes all of a repo"));
        }
        values::removed(py, &self.with(py, |cache| cache.delete_files(repo, &globs, &quants))?)
    }

    /// Removes every file of a repo, and what is known of it: Removed.
    fn delete_model<'py>(&self, py: Python<'py>, repo: &str) -> PyResult<Bound<'py, PyAny>> {
        values::removed(py, &self.with(py, |cache| cache.delete_model(repo))?)
    }

    /// Frees what nothing uses: Removed.
    fn gc<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        values::removed(py, &self.with(py, |cache| cache.gc())?)
    }

    /// Reads what is stored and holds it against what was sealed: a VerifyReport.
    #[allow(clippy::too_many_arguments, reason = "Python gives them by name")]
    #[pyo3(signature = (repo=None, files=None, *, digest=false, cached=false, progress=None, cancel=None))]
    fn verify<'py>(
        &self,
        py: Python<'py>,
        repo: Option<String>,
        files: Option<Bound<'py, PyAny>>,
        digest: bool,
        cached: bool,
        progress: Option<Bound<'py, PyAny>>,
        cancel: Option<Bound<'py, PyAny>>,
    ) -> PyResult<Py<PyAny>> {
        let (watch, globs, cache) = (Watch::new(progress, cancel)?, several("files", "str", files)?, self.opened(py)?);
        let verify = move |line: Line| {
            let options = VerifyOptions { digest, cached, progress: Some(line.mailbox.progress()), cancel: Some(line.cancel) };
            cache.verify(repo.as_deref(), &globs, &options)
        };
        let work = Work::blocking(py, verify, |py, report| Ok(values::verify_report(py, &report)?.unbind()))?;
        watch.run(py, &work)
    }

    /// Reads files into memory, so that loading them does not wait for the disk: a PrefetchReport.
    #[pyo3(signature = (repo, *, quant=None, files=None, progress=None, cancel=None))]
    fn prefetch<'py>(
        &self,
        py: Python<'py>,
        repo: String,
        quant: Option<Bound<'py, PyAny>>,
        files: Option<Bound<'py, PyAny>>,
        progress: Option<Bound<'py, PyAny>>,
        cancel: Option<Bound<'py, PyAny>>,
    ) -> PyResult<Py<PyAny>> {
        let (watch, cache) = (Watch::new(progress, cancel)?, self.opened(py)?);
        let (quants, globs) = (several("quant", "str", quant)?, several("files", "str", files)?);
        let prefetch = move |line: Line| {
            let options = PrefetchOptions { progress: Some(line.mailbox.progress()), cancel: Some(line.cancel) };
            cache.prefetch(&repo, &quants, &globs, &options)
        };
        let work = Work::blocking(py, prefetch, |py, report| Ok(values::prefetch_report(py, &report)?.unbind()))?;
        watch.run(py, &work)
    }

    /// Copies local files into the store under a name of their own: an ImportReport.
    #[pyo3(signature = (repo, paths, progress=None, cancel=None))]
    fn import_files<'py>(
        &self,
        py: Python<'py>,
        repo: String,
        paths: Bound<'py, PyAny>,
        progress: Option<Bound<'py, PyAny>>,
        cancel: Option<Bound<'py, PyAny>>,
    ) -> PyResult<Py<PyAny>> {
        let (watch, paths, cache) = (Watch::new(progress, cancel)?, several("paths", "path", Some(paths))?, self.opened(py)?);
        let import = move |line: Line| {
            let options = ImportOptions { progress: Some(line.mailbox.progress()), cancel: Some(line.cancel) };
            cache.import(&repo, &paths, &options)
        };
        let work = Work::blocking(py, import, |py, report| Ok(values::import_report(py, &report)?.unbind()))?;
        watch.run(py, &work)
    }

    /// Writes files of a repo below a folder, as real files: an ExportReport.
    #[allow(clippy::too_many_arguments, reason = "Python gives them by name")]
    #[pyo3(signature = (repo, to, files=None, force=false, progress=None, cancel=None))]
    fn export<'py>(
        &self,
        py: Python<'py>,
        repo: String,
        to: PathBuf,
        files: Option<Bound<'py, PyAny>>,
        force: bool,
        progress: Option<Bound<'py, PyAny>>,
        cancel: Option<Bound<'py, PyAny>>,
    ) -> PyResult<Py<PyAny>> {
        let (watch, globs, cache) = (Watch::new(progress, cancel)?, several("files", "str", files)?, self.opened(py)?);
        let export = move |line: Line| {
            let options =
                ExportOptions { force, check: false, progress: Some(line.mailbox.progress()), cancel: Some(line.cancel) };
            cache.export(&repo, &globs, &to, &options)
        };
        let work = Work::blocking(py, export, |py, report| Ok(values::export_report(py, &report)?.unbind()))?;
        watch.run(py, &work)
    }
}
