//! ONNX models for ONNX Runtime: what `onnx.py` makes sessions of.

use crate::{cache::ModelCache, errors, file::ModelFile};
use pyo3::{
    prelude::*,
    types::{PyBytes, PyDict},
};
use std::{
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};
use tabagent_model_cache::{Edges, InjectedTensor, OnnxOptions, OnnxReport, Tally};

/// An ONNX model of the store: its graph, and the files its tensors are in.
#[pyclass(frozen, module = "tabagent_model_cache._native")]
pub(crate) struct OnnxModel {
    repo: String,
    model: Held<tabagent_model_cache::OnnxModel>,
}

/// How ONNX Runtime is to be given a model.
#[pyclass(frozen, module = "tabagent_model_cache._native")]
pub(crate) struct OnnxPlan {
    repo: String,
    plan: Held<tabagent_model_cache::OnnxPlan>,
}

/// What a session maps: its bytes stay where they are until this is released.
#[pyclass(frozen, weakref, module = "tabagent_model_cache._native")]
pub(crate) struct OnnxLease(Held<tabagent_model_cache::OnnxLease>);

/// A holder of leases. The last one of a file that was removed meanwhile frees it, which takes a few durable commits: not while Python
/// waits.
struct Held<T: Send + Sync>(Mutex<Option<Arc<T>>>);

impl<T: Send + Sync> Held<T> {
    fn new(held: T) -> Self {
        Self(Mutex::new(Some(Arc::new(held))))
    }

    /// What is held; `None` once it was let go. A clone, since Python may run other threads while it is used: the lock is not held then.
    fn get(&self) -> Option<Arc<T>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn opened(&self) -> Arc<T> {
        self.get().expect("only its drop lets go of it")
    }

    fn let_go(&self) {
        let held = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        if held.is_some() {
            Python::try_attach(|py| py.detach(|| drop(held)));
        }
    }
}

impl<T: Send + Sync> Drop for Held<T> {
    fn drop(&mut self) {
        self.let_go();
    }
}

#[pymethods]
impl ModelCache {
    /// Opens an ONNX model that is here: reads its graph and finds the files its tensors are in.
    fn _onnx(&self, py: Python<'_>, repo: String, path: &str) -> PyResult<OnnxModel> {
        let model = self.with(py, |cache| cache.onnx(&repo, path))?;
        Ok(OnnxModel { repo, model: Held::new(model) })
    }
}

#[pymethods]
impl OnnxModel {
    /// The digests of the graph and of each file it names.
    #[getter]
    fn digests(&self) -> Vec<String> {
        self.model.opened().digests().map(str::to_owned).collect()
    }

    /// Bytes of these files.
    #[getter]
    fn size_bytes(&self) -> u64 {
        self.model.opened().size_bytes()
    }

    /// Decides how ONNX Runtime gets each tensor, and writes the graph that says so.
    #[pyo3(signature = (*, align=None, edges=None))]
    fn plan(&self, py: Python<'_>, align: Option<bool>, edges: Option<&str>) -> PyResult<OnnxPlan> {
        let edges = edges.map_or(Ok(Edges::Auto), str::parse).map_err(|error| errors::raise(py, &error))?;
        let model = self.model.opened();
        let plan = py.detach(move || model.plan(&OnnxOptions { align, edges })).map_err(|error| errors::raise(py, &error))?;
        Ok(OnnxPlan { repo: self.repo.clone(), plan: Held::new(plan) })
    }
}

#[pymethods]
impl OnnxPlan {
    /// The graph: a copy.
    fn graph<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, self.plan.opened().graph())
    }

    /// The file ONNX Runtime maps weights from; None if it maps none.
    #[getter]
    fn data_file(&self) -> Option<PathBuf> {
        self.plan.opened().data_file().map(Into::into)
    }

    /// Whether prepacking should be left on.
    #[getter]
    fn prepack(&self) -> bool {
        self.plan.opened().prepack()
    }

    /// The tensors to be given by name: name, number of the element type, shape, file, first byte, one past the last.
    #[getter]
    fn injected(&self) -> Vec<(String, i32, Vec<u64>, ModelFile, u64, u64)> {
        let told = |tensor: &InjectedTensor| {
            let (path, range) = (tensor.file().path().to_string(), tensor.range());
            let file = ModelFile::new(&self.repo, &path, tensor.file().clone());
            (tensor.name.clone(), tensor.data_type.0, tensor.dims.clone(), file, range.start, range.end)
        };
        self.plan.opened().injected().iter().map(told).collect()
    }

    /// What was decided, in numbers: each way and reason with how many tensors and bytes.
    #[getter]
    fn report<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        report(py, self.plan.opened().report())
    }

    /// The same, as a line to be logged.
    #[getter]
    fn report_text(&self) -> String {
        self.plan.opened().report().to_string()
    }

    /// What has to be held while the session lives. Each one made has to be released.
    fn lease(&self) -> OnnxLease {
        OnnxLease(Held::new(self.plan.opened().lease().clone()))
    }
}

fn report<'py>(py: Python<'py>, report: &OnnxReport) -> PyResult<Bound<'py, PyDict>> {
    let tally = |tally: &Tally| -> PyResult<Bound<'py, PyDict>> {
        let told = PyDict::new(py);
        told.set_item("tensors", tally.tensors)?;
        told.set_item("size_bytes", tally.bytes)?;
        Ok(told)
    };
    let told = PyDict::new(py);
    told.set_item("pointed", tally(&report.pointed)?)?;
    told.set_item("derived", tally(&report.derived)?)?;
    told.set_item("injected", tally(&report.injected)?)?;
    told.set_item("inlined", tally(&report.inlined)?)?;
    told.set_item("kept", tally(&report.kept)?)?;
    let copied = PyDict::new(py);
    for (reason, bytes) in &report.copied {
        copied.set_item(reason.as_str(), tally(bytes)?)?;
    }
    told.set_item("copied", copied)?;
    Ok(told)
}

#[pymethods]
impl OnnxLease {
    /// Lets go. To be called once nothing maps the model any more; again it does nothing.
    fn release(&self) {
        self.0.let_go();
    }

    /// Whether it was let go.
    #[getter]
    fn released(&self) -> bool {
        self.0.get().is_none()
    }
}
