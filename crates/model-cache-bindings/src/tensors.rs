//! The tensors of a file: their index, made once a file, and each as a numpy array on the mapping.

use crate::{errors, file::ModelFile, values};
use pyo3::{
    prelude::*,
    types::{PyDict, PyMappingProxy},
};
use tabagent_model_cache::{
    Error, Result,
    format::{gguf::GgufIndex, safetensors::SafetensorsIndex},
};

/// The tensors of a file of either format.
enum Index {
    Gguf(GgufIndex),
    Safetensors(SafetensorsIndex),
}

impl Index {
    /// A GGUF says what it is in its first four bytes; a safetensors file has no such mark.
    fn parse(file: &[u8]) -> Result<Self> {
        match file.starts_with(b"GGUF") {
            true => GgufIndex::parse(file).map(Self::Gguf),
            false => SafetensorsIndex::parse(file).map(Self::Safetensors),
        }
    }

    /// Why there is no tensor `name`: with how many there are, and the name most like it.
    fn not_found(&self, file: &[u8], name: &str) -> Option<Error> {
        match self {
            Self::Gguf(index) => index.bytes(file, name).err(),
            Self::Safetensors(index) => index.bytes(file, name).err(),
        }
    }

    /// A `Tensor` of `values.py` for each, by name, in the order of the file.
    fn to_python<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let tensors = PyDict::new(py);
        match self {
            Self::Gguf(index) => {
                for tensor in index.tensors() {
                    let dtype = tensor.ggml_type().name();
                    tensors.set_item(tensor.name(), values::tensor(py, tensor.name(), dtype, tensor.shape(), tensor.range())?)?;
                }
            }
            Self::Safetensors(index) => {
                for tensor in index.tensors() {
                    let dtype = tensor.dtype().name();
                    tensors.set_item(tensor.name(), values::tensor(py, tensor.name(), dtype, tensor.shape(), tensor.range())?)?;
                }
            }
        }
        Ok(tensors)
    }
}

impl ModelFile {
    fn index(&self, py: Python<'_>) -> PyResult<Index> {
        let file = self.opened(py)?;
        py.detach(|| Index::parse(&file)).map_err(|error| errors::raise_about(py, &self.name(), &error))
    }
}

#[pymethods]
impl ModelFile {
    /// The tensors by name, in the order of the file: a read-only dict of Tensor.
    #[getter]
    fn tensors<'py>(&self, py: Python<'py>) -> PyResult<&Bound<'py, PyAny>> {
        let made = self.tensors.get_or_try_init(py, || {
            let tensors = self.index(py)?.to_python(py)?;
            PyResult::Ok(PyMappingProxy::new(py, tensors.as_mapping()).into_any().unbind())
        })?;
        Ok(made.bind(py))
    }

    /// A tensor as a numpy array on the mapping, without a copy.
    #[pyo3(signature = (name, *, raw=false))]
    fn tensor<'py>(slf: &Bound<'py, Self>, name: &str, raw: bool) -> PyResult<Bound<'py, PyAny>> {
        let py = slf.py();
        let (this, tensors) = (slf.get(), slf.get().tensors(py)?);
        if !tensors.contains(name)? {
            let (index, file) = (this.index(py)?, this.opened(py)?);
            if let Some(error) = index.not_found(&file, name) {
                return Err(errors::raise_about(py, &this.name(), &error));
            }
        }
        py.import("tabagent_model_cache.arrays")?.call_method1("array", (slf, tensors.get_item(name)?, raw))
    }
}
