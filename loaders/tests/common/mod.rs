//! What the tests of this package share: models of `models.py`, stores they are imported into, and what this process takes of
//! memory.
#![allow(dead_code, reason = "each test binary uses its part")]

use std::{
    path::{Path, PathBuf},
    process::Command,
};
use tabagent_model_cache::{ImportOptions, ModelCache, ModelFile};
use tempfile::TempDir;

pub(crate) const REPO: &str = "org/model";
pub(crate) const MIB: u64 = 1 << 20;

/// A store in a temporary folder, with [`REPO`] in it.
pub(crate) struct Store {
    pub(crate) cache: ModelCache,
    // After the cache: it goes first.
    _folder: TempDir,
}

impl Store {
    /// With these files, under their names.
    pub(crate) fn of(paths: &[PathBuf]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let cache = ModelCache::builder(folder.path()).offline(true).open().unwrap();
        cache.import(REPO, paths, &ImportOptions::default()).unwrap();
        Self { cache, _folder: folder }
    }

    /// With `model.gguf`, which `models.py` makes as its `gguf` or `gguf-across`.
    pub(crate) fn of_gguf(kind: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.gguf");
        make(&[kind.as_ref(), &path]);
        Self::of(&[path])
    }

    /// With what `models.py` makes: `model.onnx` and `model.ort`.
    pub(crate) fn of_onnx() -> Self {
        let folder = tempfile::tempdir().unwrap();
        make(&["onnx".as_ref(), folder.path()]);
        Self::of(&[folder.path().join("model.onnx"), folder.path().join("model.ort")])
    }

    /// With these files of the real model all-MiniLM-L6-v2.
    pub(crate) fn of_minilm(names: &[&str]) -> Self {
        let folder = PathBuf::from(variable("MODEL_CACHE_MINILM"));
        Self::of(&names.iter().map(|name| folder.join(name)).collect::<Vec<_>>())
    }

    pub(crate) fn file(&self, path: &str) -> ModelFile {
        self.cache.get_file(REPO, path).unwrap().expect("imported")
    }
}

fn make(arguments: &[&Path]) {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/models.py");
    let done = Command::new(variable("MODEL_CACHE_PYTHON")).arg(script).args(arguments).status().unwrap();
    assert!(done.success(), "{script} {arguments:?}");
}

fn variable(name: &str) -> std::ffi::OsString {
    std::env::var_os(name)
        .unwrap_or_else(|| panic!("{name} is not set; `make test` sets it, or `scripts/with cargo test -p loaders`"))
}

/// Private memory of this process that is backed by no file, in bytes.
pub(crate) fn private_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap() << 10
}

/// By how much private memory is larger once `make` is done, while what it made lives.
pub(crate) fn private_growth<T>(make: impl FnOnce() -> T) -> (u64, T) {
    let before = private_bytes();
    let made = make();
    (private_bytes().saturating_sub(before), made)
}

/// Whether `part` lies in `whole`, by address.
pub(crate) fn lies_in(part: &[u8], whole: &[u8]) -> bool {
    let (part, whole) = (part.as_ptr_range(), whole.as_ptr_range());
    whole.start <= part.start && part.end <= whole.end
}
