//! A store of many small files.

use super::Setting;
use crate::{
    bed, measure,
    pattern::Random,
    report::{Result, Round},
};
use std::{fs, path::PathBuf};
use tabagent_model_cache::ImportOptions;

const FILES_A_REPO: u64 = 20;
const FILE_BYTES: usize = 1_000;

fn store(setting: &Setting) -> PathBuf {
    setting.dir.join(format!("many-{}", setting.count)).join("store")
}

/// Imports file by file, each durable: about a millisecond for each.
pub(super) fn prepare(setting: &Setting, _: &str) -> Result<()> {
    let cache = bed::open_store(&store(setting))?;
    let mut random = Random::new(setting.seed);
    for repo in 0..setting.count.div_ceil(FILES_A_REPO) {
        let name = format!("bench/repo-{repo:04}");
        let files = FILES_A_REPO.min(setting.count - repo * FILES_A_REPO);
        let file_name = |file: u64| format!("file-{file:02}.json");
        if cache.has_file(&name, &file_name(files - 1))? {
            continue;
        }
        let folder = tempfile::tempdir_in(&setting.dir)?;
        for file in 0..files {
            let mut bytes = [0; FILE_BYTES];
            random.fill(&mut bytes);
            fs::write(folder.path().join(file_name(file)), bytes)?;
        }
        cache.import(&name, &[folder.path().to_owned()], &ImportOptions::default())?;
    }
    Ok(())
}

pub(super) fn open(setting: &Setting, _: &str) -> Result<Round> {
    let store = store(setting);
    // Once before: warm.
    drop(bed::open_store(&store)?);
    let (cache, measured) = measure::measure(|| bed::open_store(&store))?;
    let (repos, listing) = measure::measure(|| Ok(cache.list()?))?;
    let files: u64 = repos.iter().map(|repo| repo.files).sum();
    if files != setting.count {
        return Err(format!("the store has {files} files, not {}: run with --prepare", setting.count).into());
    }
    Ok(Round::of(measured)
        .disk_bytes(storage::allocated_bytes(&store)?)
        .value("open_store_us", measured.wall.as_nanos() as f64 / 1e3)
        .seconds_of("list", listing.wall)
        .store(store))
}
