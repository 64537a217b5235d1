//! The C interface of Model Cache, declared in `include/model_cache.h`, which is its documentation.
//!
//! A program in C, or in any language that calls C, opens a store, opens a file in it, and reads that: through a pointer to all
//! of it, or piece by piece. Nothing here fetches anything. All work is done by `tabagent_model_cache`; this crate turns pointers
//! into values and errors into codes and text.
//!
//! [`boundary`] has the functions, and all that is unsafe; [`error`] what can go wrong and its code; [`file`](mod@file) an open file.
#![deny(unsafe_code)]

pub mod boundary;
pub mod error;
pub mod file;
