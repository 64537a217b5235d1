//! The same bytes as a plain file and as a file of a store: what most workloads lie in.

use crate::{pattern::Random, report::Result};
use std::{
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
};
use storage::{Alignment, StorageRegistry};
use tabagent_model_cache::{ImportOptions, ModelCache, ModelFile};

pub(crate) const REPO: &str = "bench/file";
pub(crate) const FILE: &str = "model.bin";
const SEED: u64 = 0x6D6F_6465;

/// What the bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fill {
    /// No two blocks are alike, and nothing can be compressed.
    Random,
    /// A hole: the plain file takes no space, and the store's copy gives its space back once it is sealed.
    Zeros,
}

/// A plain file and a store with the same bytes.
#[derive(Debug)]
pub(crate) struct Bed {
    folder: PathBuf,
    bytes: u64,
    fill: Fill,
}

impl Bed {
    /// The bed of this size in `dir`; workloads of one folder share it.
    pub(crate) fn new(dir: &Path, bytes: u64, fill: Fill) -> Self {
        let kind = if fill == Fill::Zeros { "zeros" } else { "random" };
        Self { folder: dir.join(format!("{kind}-{bytes}")), bytes, fill }
    }

    /// The plain file.
    pub(crate) fn plain(&self) -> PathBuf {
        self.folder.join(FILE)
    }

    /// The store's folder.
    pub(crate) fn store(&self) -> PathBuf {
        self.folder.join("store")
    }

    /// Opens the store.
    pub(crate) fn cache(&self) -> Result<ModelCache> {
        open_store(&self.store())
    }

    /// Opens the store, and the file in it.
    pub(crate) fn file(&self) -> Result<ModelFile> {
        Ok(self.cache()?.open_file(REPO, FILE)?)
    }

    /// Makes the plain file where it is missing; durable.
    pub(crate) fn prepare_plain(&self) -> Result<()> {
        fs::create_dir_all(&self.folder)?;
        if fs::metadata(self.plain()).is_ok_and(|metadata| metadata.len() == self.bytes) {
            return Ok(());
        }
        write_file(&self.plain(), self.bytes, self.fill)
    }

    /// Punches the stored zeros: they read as before, and take no space.
    fn give_back_zeros(&self) -> Result<()> {
        let extents = StorageRegistry::new(self.store()).extents(
            &self.store().join("model_cache_chunks"),
            "chunks",
            Alignment::LargePage,
        )?;
        let writer = extents.open_writer()?;
        for key in extents.begin_free()?.keys()? {
            if let Some(extent) = extents.locate(&key)? {
                writer.punch(&extent)?;
            }
        }
        Ok(())
    }

    /// Makes both where they are missing; durable.
    pub(crate) fn prepare(&self) -> Result<()> {
        self.prepare_plain()?;
        let cache = self.cache()?;
        if !cache.has_file(REPO, FILE)? {
            cache.import(REPO, &[self.plain()], &ImportOptions::default())?;
            if self.fill == Fill::Zeros {
                self.give_back_zeros()?;
            }
        }
        Ok(())
    }
}

/// Opens a store, creating it where missing; the network is not asked.
pub(crate) fn open_store(folder: &Path) -> Result<ModelCache> {
    Ok(ModelCache::builder(folder).offline(true).open()?)
}

/// Writes `bytes` to `path`, durably; whole or not at all.
pub(crate) fn write_file(path: &Path, bytes: u64, fill: Fill) -> Result<()> {
    let partial = path.with_extension("partial");
    let mut file = File::create(&partial)?;
    match fill {
        Fill::Zeros => file.set_len(bytes)?,
        Fill::Random => {
            let mut random = Random::new(SEED);
            let mut block = vec![0; 1 << 20];
            let mut left = bytes;
            while left > 0 {
                let part = &mut block[..left.min(1 << 20) as usize];
                random.fill(part);
                file.write_all(part)?;
                left -= part.len() as u64;
            }
        }
    }
    file.sync_all()?;
    Ok(fs::rename(partial, path)?)
}
