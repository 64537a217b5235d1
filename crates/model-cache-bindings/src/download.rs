//! What of `ModelCache` asks the Hub: scans and pulls, waited for, awaited, or watched.

use crate::{
    cache::ModelCache,
    errors,
    several::several,
    values,
    wait::{self, Watch},
    work::{Line, Work},
};
use pyo3::prelude::*;
use std::future::Future;
use tabagent_model_cache::{Manifest, Pull, PullReport, RepoSpec, Result};

impl ModelCache {
    fn asking<F>(&self, py: Python<'_>, ask: impl FnOnce(tabagent_model_cache::ModelCache) -> F) -> PyResult<Work>
    where
        F: Future<Output = Result<Manifest>> + Send + 'static,
    {
        Work::asking(py, ask(self.opened(py)?), |py, manifest| Ok(values::manifest(py, &manifest)?.unbind()))
    }

    /// The pull `describe` describes.
    fn pulling(&self, py: Python<'_>, repo: &str, describe: impl FnOnce(Pull) -> Pull) -> PyResult<Work> {
        let cache = self.opened(py)?;
        // Told here, with the caller on the stack, not once the work runs.
        repo.parse::<RepoSpec>().map_err(|error| errors::raise(py, &error))?;
        let pull = describe(cache.pull(repo));
        let task = |line: Line| {
            let (progress, events) = (line.mailbox.progress(), line.mailbox.events());
            pull.on_progress(Some(progress)).on_event(Some(events)).cancel_token(line.cancel).run()
        };
        Work::new(py, task, |py, report: PullReport| Ok(values::pull_report(py, &report)?.unbind()))
    }
}

#[pymethods]
impl ModelCache {
    /// Asks the Hub what a repo offers: a Manifest.
    fn scan_repo(&self, py: Python<'_>, repo: String) -> PyResult<Py<PyAny>> {
        let work = self.asking(py, |cache| async move { cache.scan_repo(&repo).await })?;
        Watch::default().run(py, &work)
    }

    /// What a repo offers and what of it is here: a Manifest; from the store if it was ever scanned.
    fn get_manifest(&self, py: Python<'_>, repo: String) -> PyResult<Py<PyAny>> {
        let work = self.asking(py, |cache| async move { cache.get_manifest(&repo).await })?;
        Watch::default().run(py, &work)
    }

    /// As get_manifest, but None for a repo never scanned; never asks the Hub.
    fn local_manifest<'py>(&self, py: Python<'py>, repo: &str) -> PyResult<Option<Bound<'py, PyAny>>> {
        let manifest = self.with(py, |cache| cache.local_manifest(repo))?;
        manifest.map(|manifest| values::manifest(py, &manifest)).transpose()
    }

    /// Pulls all files of one quant; done when every one is here, verified and durable.
    #[pyo3(signature = (repo, quant, progress=None, cancel=None))]
    fn download_quant<'py>(
        &self,
        py: Python<'py>,
        repo: &str,
        quant: &str,
        progress: Option<Bound<'py, PyAny>>,
        cancel: Option<Bound<'py, PyAny>>,
    ) -> PyResult<Py<PyAny>> {
        let watch = Watch::new(progress, cancel)?;
        watch.run(py, &self.pulling(py, repo, |pull| pull.quant(quant))?)
    }

    /// Pulls one file; done when it is here, verified and durable.
    #[pyo3(signature = (repo, path, progress=None, cancel=None))]
    fn download_file<'py>(
        &self,
        py: Python<'py>,
        repo: &str,
        path: &str,
        progress: Option<Bound<'py, PyAny>>,
        cancel: Option<Bound<'py, PyAny>>,
    ) -> PyResult<Py<PyAny>> {
        let watch = Watch::new(progress, cancel)?;
        watch.run(py, &self.pulling(py, repo, |pull| pull.path(path))?)
    }

    /// Begins a pull to be watched: an iterator of its events.
    #[pyo3(signature = (repo, *, quant=None, files=None, all=false, cancel=None))]
    fn pull<'py>(
        &self,
        py: Python<'py>,
        repo: &str,
        quant: Option<Bound<'py, PyAny>>,
        files: Option<Bound<'py, PyAny>>,
        all: bool,
        cancel: Option<Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        wait::check_cancel(cancel.as_ref())?;
        let (quants, globs): (Vec<String>, Vec<String>) = (several("quant", "str", quant)?, several("files", "str", files)?);
        let work = self.pulling(py, repo, |pull| {
            let pull = quants.into_iter().fold(pull.all(all), Pull::quant);
            globs.into_iter().fold(pull, Pull::file)
        })?;
        py.import("tabagent_model_cache.pull")?.call_method1("Pull", (work, cancel))
    }

    /// As scan_repo, to be awaited.
    fn scan_repo_async<'py>(&self, py: Python<'py>, repo: String) -> PyResult<Bound<'py, PyAny>> {
        finish(py, self.asking(py, |cache| async move { cache.scan_repo(&repo).await })?, None)
    }

    /// As get_manifest, to be awaited.
    fn get_manifest_async<'py>(&self, py: Python<'py>, repo: String) -> PyResult<Bound<'py, PyAny>> {
        finish(py, self.asking(py, |cache| async move { cache.get_manifest(&repo).await })?, None)
    }

    /// As download_quant, to be awaited; cancelling the task cancels the pull.
    #[pyo3(signature = (repo, quant, progress=None))]
    fn download_quant_async<'py>(
        &self,
        py: Python<'py>,
        repo: &str,
        quant: &str,
        progress: Option<Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let watch = Watch::new(progress, None)?;
        finish(py, self.pulling(py, repo, |pull| pull.quant(quant))?, watch.into_progress())
    }

    /// As download_file, to be awaited; cancelling the task cancels the pull.
    #[pyo3(signature = (repo, path, progress=None))]
    fn download_file_async<'py>(
        &self,
        py: Python<'py>,
        repo: &str,
        path: &str,
        progress: Option<Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let watch = Watch::new(progress, None)?;
        finish(py, self.pulling(py, repo, |pull| pull.path(path))?, watch.into_progress())
    }
}

/// A coroutine that does `work`.
fn finish<'py>(py: Python<'py>, work: Work, progress: Option<Bound<'py, PyAny>>) -> PyResult<Bound<'py, PyAny>> {
    py.import("tabagent_model_cache.waiting")?.call_method1("finish", (work, progress))
}
