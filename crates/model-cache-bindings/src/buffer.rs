//! The buffer protocol of [`ModelFile`]: views Python may keep as long as it likes. The one file of this crate with unsafe code.
#![allow(unsafe_code)]

use crate::file::ModelFile;
use pyo3::{exceptions::PyBufferError, ffi, prelude::*};
use std::{
    ffi::{c_int, c_void},
    ptr,
};

type Held = tabagent_model_cache::ModelFile;

#[pymethods]
impl ModelFile {
    /// Fills in `view`: all bytes of the file, read-only, in place. The view holds the file, and so its lease, until
    /// `__releasebuffer__` is called for it, which Python does when the last memoryview or array over it is gone; closing the
    /// file meanwhile changes nothing for it.
    ///
    /// # Safety
    /// To be called by Python alone, as `bf_getbuffer`: `view` is null or points to a `Py_buffer` that may be written.
    unsafe fn __getbuffer__(slf: Bound<'_, Self>, view: *mut ffi::Py_buffer, flags: c_int) -> PyResult<()> {
        let py = slf.py();
        if view.is_null() {
            return Err(PyBufferError::new_err("a view must be given to be filled in"));
        }
        // For every return before it is filled in: by the protocol a view that was not made has no owner.
        // SAFETY: `view` may be written (condition of this function).
        unsafe { (*view).obj = ptr::null_mut() };
        let held: Held = slf.get().opened(py)?;
        let Ok(size_bytes) = ffi::Py_ssize_t::try_from(held.len()) else {
            return Err(PyBufferError::new_err(format!("{} bytes are more than a buffer can have", held.len())));
        };
        let start = held.as_ptr().cast::<c_void>().cast_mut();
        // SAFETY: `view` may be written. `slf` is alive, and FillInfo takes a reference of its own to it. `start` and
        // `size_bytes` are those of one live slice (of an empty one nothing is read), which neither moves nor is written
        // while a clone of the file lives, and the view keeps one, below. The 1 says read-only: Python lets nobody write
        // through it, and who asks for a writable view gets a BufferError here. What would break it: a program that writes
        // into the store's data file behind the store's back, which would show in the bytes, as with every memory-mapped
        // file.
        let filled = unsafe { ffi::PyBuffer_FillInfo(view, slf.as_ptr(), start, size_bytes, 1, flags) };
        if filled != 0 {
            return Err(PyErr::fetch(py));
        }
        // SAFETY: `view` was filled in. `internal` is the exporter's own by the protocol: nobody else reads or writes it.
        unsafe { (*view).internal = Box::into_raw(Box::new(held)).cast() };
        Ok(())
    }

    /// Lets go of what `__getbuffer__` put into `view`.
    ///
    /// # Safety
    /// To be called by Python alone, as `bf_releasebuffer`: once for each view `__getbuffer__` filled in.
    unsafe fn __releasebuffer__(&self, py: Python<'_>, view: *mut ffi::Py_buffer) {
        // SAFETY: `view` was filled in by `__getbuffer__`, so `internal` came from `Box::into_raw`, and this is the one call
        // that takes it back (condition of this function).
        let held = unsafe { Box::from_raw((*view).internal.cast::<Held>()) };
        // The last holder of a file that was removed meanwhile frees it: a few durable commits, not while Python waits.
        py.detach(|| drop(held));
    }
}
