//! The unsafe code of the benches: mapping a plain file, and opening LMDB, which maps its own.
#![allow(unsafe_code)]

use crate::report::Result;
use heed::{Env, EnvOpenOptions};
use memmap2::Mmap;
use std::{fs::File, path::Path};

/// Maps a plain file read-only, as programs do that load models by path.
pub(crate) fn map(path: &Path) -> Result<Mmap> {
    let file = File::open(path)?;
    // SAFETY: the file lies in the folder of this workload, and no round changes a file that it or another round maps.
    Ok(unsafe { Mmap::map(&file) }?)
}

/// Opens, or creates, LMDB's environment in `folder`, in its default mode.
pub(crate) fn open_lmdb(folder: &Path, map_bytes: usize) -> Result<Env> {
    let mut options = EnvOpenOptions::new();
    options.map_size(map_bytes);
    // SAFETY: the environment lies in the folder of this workload; one process at a time uses that, opens it once, and nobody
    // but LMDB writes into it. No flags are set, so none is that would ask for more.
    Ok(unsafe { options.open(folder) }?)
}
