//! File formats, as functions of bytes: what is where in a file. No store, no I/O, no copy of tensor data.

pub mod onnx;
