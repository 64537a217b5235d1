//! Asking for files and opening them: what a call costs before any byte is read.

use super::{KIB, OURS, PLAIN_MMAP, Setting};
use crate::{
    bed::{self, Bed, FILE, Fill, REPO},
    mapped, measure, page_cache,
    pattern::Random,
    report::{Result, Round},
};
use std::{
    fs,
    hint::black_box,
    path::{Path, PathBuf},
};
use tabagent_model_cache::{ImportOptions, ModelCache};

const SMALL_FILES: u64 = 100;

/// 100 small files, each with other bytes, in a folder and in a store.
struct SmallFiles {
    folder: PathBuf,
    store: PathBuf,
}

impl SmallFiles {
    fn new(setting: &Setting) -> Self {
        let folder = setting.dir.join(format!("small-{}", setting.bytes));
        Self { store: folder.join("store"), folder: folder.join("plain") }
    }

    fn name(number: u64) -> String {
        format!("{:03}.json", number % SMALL_FILES)
    }

    fn paths(&self) -> Vec<PathBuf> {
        (0..SMALL_FILES).map(|number| self.folder.join(Self::name(number))).collect()
    }
}

pub(super) fn prepare_small(setting: &Setting, _: &str) -> Result<()> {
    let files = SmallFiles::new(setting);
    fs::create_dir_all(&files.folder)?;
    let mut random = Random::new(setting.seed);
    let mut bytes = vec![0; setting.bytes as usize];
    for path in files.paths().iter().filter(|path| !path.exists()) {
        random.fill(&mut bytes);
        fs::write(path, &bytes)?;
    }
    let cache = bed::open_store(&files.store)?;
    if !cache.has_file(REPO, &SmallFiles::name(SMALL_FILES - 1))? {
        cache.import(REPO, &[files.folder], &ImportOptions::default())?;
    }
    Ok(())
}

pub(super) fn has_file(setting: &Setting, subject: &str) -> Result<Round> {
    let files = SmallFiles::new(setting);
    if subject == OURS {
        let cache = bed::open_store(&files.store)?;
        let names: Vec<String> = (0..SMALL_FILES).map(SmallFiles::name).collect();
        return calls(setting, |number| here(cache.has_file(REPO, &names[(number % SMALL_FILES) as usize])?));
    }
    let paths = files.paths();
    calls(setting, |number| here(paths[(number % SMALL_FILES) as usize].exists()))
}

pub(super) fn open_small(setting: &Setting, subject: &str) -> Result<Round> {
    let files = SmallFiles::new(setting);
    let (cache, paths) = (bed::open_store(&files.store)?, files.paths());
    let names: Vec<String> = (0..SMALL_FILES).map(SmallFiles::name).collect();
    let at = |number: u64| (number % SMALL_FILES) as usize;
    match subject {
        OURS => calls(setting, |number| get(&cache, &names[at(number)])),
        PLAIN_MMAP => calls(setting, |number| map(&paths[at(number)])),
        _ => calls(setting, |number| {
            black_box(fs::read(&paths[at(number)])?);
            Ok(())
        }),
    }
}

pub(super) fn prepare_chunks(setting: &Setting, _: &str) -> Result<()> {
    chunks_bed(setting).prepare()?;
    rehearsal(setting).prepare()
}

fn chunks_bed(setting: &Setting) -> Bed {
    Bed::new(&setting.dir, setting.bytes, Fill::Zeros)
}

/// A store as small as one can be that has an extent: opening it brings our code into memory.
fn rehearsal(setting: &Setting) -> Bed {
    Bed::new(&setting.dir, 128 * KIB, Fill::Zeros)
}

pub(super) fn open_chunks(setting: &Setting, subject: &str) -> Result<Round> {
    let bed = chunks_bed(setting);
    let chunks = setting.bytes.div_ceil(tabagent_model_cache::CHUNK_BYTES);
    let round = if subject == OURS {
        let cache = bed.cache()?;
        calls(setting, |_| get(&cache, FILE))
    } else {
        let plain = bed.plain();
        calls(setting, |_| map(&plain))
    };
    Ok(round?.bytes(setting.bytes).value("chunks", chunks as f64))
}

pub(super) fn open_store_warm(setting: &Setting, _: &str) -> Result<Round> {
    // Once before: what an open reads is in the page cache then.
    drop(chunks_bed(setting).file()?);
    open_store(setting)
}

pub(super) fn open_store_cold(setting: &Setting, _: &str) -> Result<Round> {
    // What is told is what a store costs, not what the program's own pages do: those that are mapped stay.
    drop(rehearsal(setting).file()?);
    page_cache::drop_all()?;
    open_store(setting)
}

/// Opens the store, its file for the first time, then that file again and again. Measured as a whole is the store's opening.
fn open_store(setting: &Setting) -> Result<Round> {
    let bed = chunks_bed(setting);
    // Read once before, so that reading it costs nothing later.
    measure::read_bytes()?;
    let before = measure::read_bytes()?;
    let (cache, measured) = measure::measure(|| bed.cache())?;
    let opened = measure::read_bytes()?;
    let (file, first_get) = measure::measure(|| Ok(cache.open_file(REPO, FILE)?))?;
    let got = measure::read_bytes()?;
    drop(file);
    let mut gets = measure::each_call(setting.count, |_| get(&cache, FILE))?;
    let round = Round::of(measured)
        .value("open_store_us", measured.wall.as_nanos() as f64 / 1e3)
        .value("open_store_read_bytes", (opened - before) as f64)
        .value("first_get_us", first_get.wall.as_nanos() as f64 / 1e3)
        .value("first_get_read_bytes", (got - opened) as f64)
        .latencies("get", &mut gets);
    Ok(round.bytes(setting.bytes))
}

/// A round of many short calls, of which a tenth more come before, to warm up.
fn calls(setting: &Setting, mut call: impl FnMut(u64) -> Result<()>) -> Result<Round> {
    measure::each_call(setting.count / 10, &mut call)?;
    let (mut latencies, measured) = measure::measure(|| measure::each_call(setting.count, &mut call))?;
    Ok(Round::of(measured).latencies("", &mut latencies).value("calls", setting.count as f64))
}

fn here(is_here: bool) -> Result<()> {
    if is_here { Ok(()) } else { Err("a file that was prepared is not here: run with --prepare".into()) }
}

/// Opens a file of the store, touches its first byte where it is small, and lets it go.
fn get(cache: &ModelCache, name: &str) -> Result<()> {
    let file = cache.get_file(REPO, name)?.ok_or("a file that was prepared is not here: run with --prepare")?;
    touch(&file);
    Ok(())
}

fn map(path: &Path) -> Result<()> {
    touch(&mapped::map(path)?);
    Ok(())
}

/// Touches the first byte of a small file. Of a large one only the slice is looked at: its pages are another workload's.
fn touch(bytes: &[u8]) {
    if bytes.len() as u64 <= 64 * KIB {
        black_box(bytes[0]);
    } else {
        black_box(bytes.as_ptr());
    }
}
