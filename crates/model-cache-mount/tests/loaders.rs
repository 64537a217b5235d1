//! Programs that only take paths load from a mount what they load from plain files.

use model_cache_mount::{Mount, MountOptions};
use std::{
    path::Path,
    process::Command,
    time::{Duration, Instant},
};
use tabagent_model_cache::{ImportOptions, ModelCache};

fn python(what: &str, folder: &Path) -> String {
    let python = std::env::var_os("MODEL_CACHE_PYTHON").expect("scripts/with names a Python with onnxruntime and gguf");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/python/models.py");
    let output = Command::new(python).arg(script).arg(what).arg(folder).output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{what}: {out}{err}");
    out.into_owned()
}

#[test]
fn onnx_runtime_with_external_data_and_a_gguf_reader_load_from_a_mount() {
    let dir = tempfile::tempdir().unwrap();
    let models = dir.path().join("models");
    std::fs::create_dir(&models).unwrap();
    python("make", &models);
    let by_path = python("load", &models);
    assert_eq!(by_path.lines().count(), 5, "{by_path}");
    let cache = ModelCache::builder(dir.path().join("store")).offline(true).open().unwrap();
    cache.import("me/models", std::slice::from_ref(&models), &ImportOptions::default()).unwrap();
    let mount = match Mount::new(cache.clone(), &dir.path().join("mnt"), MountOptions::default()) {
        Ok(mount) => mount,
        // The other tests hold this error to its promise.
        Err(error) => {
            let may = nix::unistd::geteuid().is_root() && std::fs::File::open("/dev/fuse").is_ok();
            assert!(!may && error.hint().is_some_and(|hint| hint.contains("model-cache export")), "{error}");
            return println!("NOT RUN HERE, no mounts are allowed: {error}");
        }
    };
    assert_eq!(python("load", &dir.path().join("mnt/me/models")), by_path);
    // Whoever loaded is gone, and so are the leases, as soon as the kernel says so.
    let begun = Instant::now();
    while !cache.list().unwrap()[0].readers.is_empty() {
        assert!(begun.elapsed() < Duration::from_secs(30), "a lease is held for nobody");
        std::thread::sleep(Duration::from_millis(20));
    }
    drop(mount);
}
