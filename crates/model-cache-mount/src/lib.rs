//! A model cache as a read-only folder, for programs that only take paths: [`Mount`].
//!
//! ```text
//! DIR/org/name/<path>            what local reads of org/name find
//! DIR/org/name@<commit>/<path>   one commit; the one org/name goes to is not listed, but is there too
//! ```
//! Linux only. It speaks to the kernel's FUSE by itself (the crate fuser, without libfuse): as root it mounts directly, else through
//! `fusermount3`. A file holds a lease while it is open, and a listing holds none; reads are answered from the store's own
//! mapping, so that the page cache is the only copy. Files that come and go in the store do so here within a second.

#![forbid(unsafe_code)]

mod error;
mod filesystem;
mod holders;
mod inodes;
mod mount;
mod mountinfo;
mod tree;

pub use error::{Error, Result};
pub use holders::Holder;
pub use mount::{Mount, MountOptions, Unmounted, Unmounter};
