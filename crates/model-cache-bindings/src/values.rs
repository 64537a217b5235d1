//! Reports as the classes of `values.py`. Each is written here once, field by field.

use pyo3::{
    prelude::*,
    types::{PyDict, PyList, PyTuple},
};
use std::path::Path;
use tabagent_model_cache::*;

/// A value of the class called `$class`, its fields given by name.
macro_rules! record {
    ($py:expr, $class:literal, { $($field:ident: $value:expr),+ $(,)? }) => {{
        let fields = PyDict::new($py);
        $(fields.set_item(stringify!($field), $value)?;)+
        new($py, $class, &fields)
    }};
}

fn new<'py>(py: Python<'py>, class: &str, fields: &Bound<'py, PyDict>) -> PyResult<Bound<'py, PyAny>> {
    py.import("tabagent_model_cache.values")?.getattr(class)?.call((), Some(fields))
}

/// The values `each` makes, as a list.
fn list<'py, T>(
    py: Python<'py>,
    items: &[T],
    each: impl Fn(Python<'py>, &T) -> PyResult<Bound<'py, PyAny>>,
) -> PyResult<Bound<'py, PyList>> {
    PyList::new(py, items.iter().map(|item| each(py, item)).collect::<PyResult<Vec<_>>>()?)
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

pub(crate) fn manifest<'py>(py: Python<'py>, manifest: &Manifest) -> PyResult<Bound<'py, PyAny>> {
    let quants = PyDict::new(py);
    for (name, quant) in &manifest.quants {
        quants.set_item(name, self::quant(py, quant)?)?;
    }
    let file = |py, file: &ManifestFile| {
        record!(py, "ManifestFile", {
            path: file.path.as_str(),
            size_bytes: file.size_bytes,
            digest: file.digest.to_string(),
        })
    };
    record!(py, "Manifest", {
        repo: manifest.repo.as_str(),
        commit: manifest.commit.as_str(),
        task: manifest.task.as_deref(),
        quants: quants,
        files: list(py, &manifest.files, file)?,
        shared: &manifest.shared,
        extras: &manifest.extras,
    })
}

fn quant<'py>(py: Python<'py>, quant: &QuantInfo) -> PyResult<Bound<'py, PyAny>> {
    record!(py, "Quant", {
        status: quant.status.as_str(),
        files: &quant.files,
        own_files: &quant.own_files,
        total_size: quant.total_bytes,
        downloaded_size: quant.downloaded_bytes,
        missing: &quant.missing,
        last_error: quant.last_error.as_deref(),
    })
}

pub(crate) fn pull_report<'py>(py: Python<'py>, report: &PullReport) -> PyResult<Bound<'py, PyAny>> {
    record!(py, "PullReport", {
        repo: report.repo.as_str(),
        commit: report.commit.as_str(),
        quants: &report.quants,
        files: report.files,
        total_bytes: report.total_bytes,
        fetched_bytes: report.fetched_bytes,
        here_bytes: report.here_bytes,
        elapsed_ms: report.elapsed.as_millis(),
        missing: &report.missing,
    })
}

pub(crate) fn repos<'py>(py: Python<'py>, repos: &[RepoSummary]) -> PyResult<Bound<'py, PyAny>> {
    let repo = |py, repo: &RepoSummary| {
        let last_used = repo.last_used.and_then(|at| at.duration_since(std::time::UNIX_EPOCH).ok());
        record!(py, "RepoSummary", {
            repo: repo.repo.as_str(),
            commit: repo.commit.as_ref().map(CommitId::as_str),
            quants: &repo.quants,
            files: repo.files,
            size_bytes: repo.size_bytes,
            filling_files: repo.filling_files,
            landed_bytes: repo.landed_bytes,
            last_used_unix_seconds: last_used.map(|since| since.as_secs()),
            readers: &repo.readers,
        })
    };
    Ok(list(py, repos, repo)?.into_any())
}

pub(crate) fn files<'py>(py: Python<'py>, commits: &[RepoFiles]) -> PyResult<Bound<'py, PyAny>> {
    let file = |py, file: &FileInfo| {
        record!(py, "FileInfo", {
            path: file.path.as_str(),
            size_bytes: file.size_bytes,
            chunks: file.chunks,
            digest: &file.digest,
            state: file.state.as_str(),
            landed_bytes: file.landed_bytes,
            readers: &file.readers,
        })
    };
    let commit = |py, commit: &RepoFiles| {
        record!(py, "RepoFiles", {
            repo: commit.repo.as_str(),
            commit: commit.commit.as_ref().map(CommitId::as_str),
            files: list(py, &commit.files, file)?,
        })
    };
    Ok(list(py, commits, commit)?.into_any())
}

pub(crate) fn removed<'py>(py: Python<'py>, removed: &Removed) -> PyResult<Bound<'py, PyAny>> {
    record!(py, "Removed", {
        files: removed.files,
        size_bytes: removed.bytes,
        freed_bytes: removed.freed_bytes,
        busy_bytes: removed.busy_bytes,
        filling_bytes: removed.filling_bytes,
        busy_processes: &removed.busy_processes,
        shared_bytes: removed.shared_bytes,
    })
}

pub(crate) fn verify_report<'py>(py: Python<'py>, report: &VerifyReport) -> PyResult<Bound<'py, PyAny>> {
    let bad = |py, bad: &BadBlock| {
        record!(py, "BadBlock", {
            repo: &bad.repo,
            path: &bad.path,
            chunk: bad.chunk,
            block: bad.block,
            reason: &bad.reason,
        })
    };
    record!(py, "VerifyReport", {
        files: report.files,
        blocks: report.blocks,
        size_bytes: report.bytes,
        bad: list(py, &report.bad, bad)?,
        bad_records: report.bad_records.iter().map(|bad| format!("{}: {}", bad.what, bad.reason)).collect::<Vec<_>>(),
    })
}

pub(crate) fn prefetch_report<'py>(py: Python<'py>, report: &PrefetchReport) -> PyResult<Bound<'py, PyAny>> {
    record!(py, "PrefetchReport", {
        files: report.files,
        size_bytes: report.bytes,
        resident_bytes: report.resident_bytes,
        read_bytes: report.read_bytes(),
        left_bytes: report.left_bytes,
        available_bytes: report.available_bytes,
        seconds: report.elapsed.as_secs_f64(),
    })
}

pub(crate) fn stats<'py>(py: Python<'py>, stats: &Stats) -> PyResult<Bound<'py, PyAny>> {
    record!(py, "Stats", {
        files: stats.files,
        chunks: stats.chunks,
        live_bytes: stats.live_bytes,
        derived_bytes: stats.derived_bytes,
        filling_bytes: stats.filling_bytes,
        doomed_bytes: stats.doomed_bytes,
        disk_bytes: stats.disk_bytes,
    })
}

pub(crate) fn import_report<'py>(py: Python<'py>, report: &ImportReport) -> PyResult<Bound<'py, PyAny>> {
    record!(py, "ImportReport", {
        repo: report.repo.as_str(),
        files: report.files,
        size_bytes: report.bytes,
        here_bytes: report.here_bytes,
        skipped: report.skipped.iter().map(|path| text(path)).collect::<Vec<_>>(),
    })
}

pub(crate) fn export_report<'py>(py: Python<'py>, report: &ExportReport) -> PyResult<Bound<'py, PyAny>> {
    record!(py, "ExportReport", {
        files: report.files,
        size_bytes: report.bytes,
        method: report.method.map(|method| method.as_str()),
        shared_bytes: report.shared_bytes,
        paths: report.paths.iter().map(|path| text(path)).collect::<Vec<_>>(),
        unfinished: &report.unfinished,
    })
}

pub(crate) fn tensor<'py>(
    py: Python<'py>,
    name: &str,
    dtype: &str,
    shape: &[u64],
    range: std::ops::Range<u64>,
) -> PyResult<Bound<'py, PyAny>> {
    record!(py, "Tensor", {
        name: name,
        dtype: dtype,
        shape: PyTuple::new(py, shape)?,
        start: range.start,
        end: range.end,
    })
}
