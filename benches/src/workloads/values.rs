//! A file's chunks as large values of embedded databases: put, and read back.

use super::{OURS, Setting};
use crate::{
    bed::{self, Bed, FILE, Fill, REPO},
    measure, page_cache,
    pattern::sum_lines,
    peers,
    report::{Result, Round},
};
use std::{
    fs::{self, File},
    hint::black_box,
    io::Read,
    path::PathBuf,
};
use tabagent_model_cache::{CHUNK_BYTES, ImportOptions};

/// Copies the file, and syncs the copy.
const PLAIN_COPY: &str = "plain-copy";
const ONE_SLICE: &str = "-one-slice";

pub(super) const PUT_SUBJECTS: &[&str] = &[OURS, PLAIN_COPY, "lmdb", "redb", "libmdbx"];
pub(super) const READ_SUBJECTS: &[&str] =
    &[OURS, "lmdb", "lmdb-one-slice", "redb", "redb-one-slice", "libmdbx", "libmdbx-one-slice"];

fn source(setting: &Setting) -> Bed {
    Bed::new(&setting.dir, setting.bytes, Fill::Random)
}

/// Where a subject keeps what it was given. A subject's two ways to read share it.
fn kept(setting: &Setting, subject: &str) -> PathBuf {
    let owner = subject.strip_suffix(ONE_SLICE).unwrap_or(subject);
    setting.dir.join(format!("values-{}", setting.bytes)).join(owner)
}

pub(super) fn prepare_put(setting: &Setting, _: &str) -> Result<()> {
    source(setting).prepare_plain()
}

/// Measures the first byte read to the last one durable; what the subject had is thrown away before.
pub(super) fn put(setting: &Setting, subject: &str) -> Result<Round> {
    let (source, kept) = (source(setting), kept(setting, subject));
    page_cache::reread_file(&source.plain())?;
    if kept.exists() {
        fs::remove_dir_all(&kept)?;
    }
    fs::create_dir_all(&kept)?;
    // For the page cache of the copy, and for who builds it in private memory first.
    page_cache::back_memory(2 * setting.bytes)?;
    let ((), measured) = measure::measure_with_memory(|| bring_in(&source, subject, &kept))?;
    Ok(Round::of(measured).bytes(setting.bytes).disk_bytes(storage::allocated_bytes(&kept)?))
}

fn bring_in(source: &Bed, subject: &str, kept: &std::path::Path) -> Result<()> {
    match subject {
        OURS => {
            bed::open_store(kept)?.import(REPO, &[source.plain()], &ImportOptions::default())?;
        }
        PLAIN_COPY => {
            let copy = kept.join(FILE);
            fs::copy(source.plain(), &copy)?;
            File::open(copy)?.sync_all()?;
        }
        peer => {
            let store = peers::open(peer, kept)?;
            let mut file = File::open(source.plain())?;
            let mut chunk = Vec::new();
            for key in 0.. {
                chunk.clear();
                if (&mut file).take(CHUNK_BYTES).read_to_end(&mut chunk)? == 0 {
                    break;
                }
                store.put(key, &chunk)?;
            }
        }
    }
    Ok(())
}

pub(super) fn prepare_read(setting: &Setting, subject: &str) -> Result<()> {
    prepare_put(setting, subject)?;
    let kept = kept(setting, subject);
    // Only `put` makes the folder, and a put that failed is not to be read.
    if kept.exists() {
        return Ok(());
    }
    let owner = subject.strip_suffix(ONE_SLICE).unwrap_or(subject);
    put(setting, owner).map(drop).inspect_err(|_| drop(fs::remove_dir_all(&kept)))
}

pub(super) fn read(setting: &Setting, subject: &str) -> Result<Round> {
    // Once before, by a process that is this one: the page cache is warm then.
    read_all(setting, subject)?;
    let (sum, measured) = measure::measure_with_memory(|| read_all(setting, subject))?;
    let low_bits = sum & u64::from(u32::MAX);
    Ok(Round::of(measured).bytes(setting.bytes).value("sum_low_32_bits", low_bits as f64))
}

fn read_all(setting: &Setting, subject: &str) -> Result<u64> {
    let kept = kept(setting, subject);
    if subject == OURS {
        return Ok(black_box(sum_lines(&bed::open_store(&kept)?.open_file(REPO, FILE)?)));
    }
    let keys: Vec<u64> = (0..setting.bytes.div_ceil(CHUNK_BYTES)).collect();
    let mut sum = 0_u64;
    match subject.strip_suffix(ONE_SLICE) {
        None => peers::open(subject, &kept)?.read(&keys, &mut |value| sum = sum.wrapping_add(sum_lines(value)))?,
        Some(owner) => {
            let mut one = Vec::with_capacity(setting.bytes as usize);
            peers::open(owner, &kept)?.read(&keys, &mut |value| one.extend_from_slice(value))?;
            sum = sum_lines(&one);
        }
    }
    Ok(black_box(sum))
}
