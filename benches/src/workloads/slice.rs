//! Reading a file through its mapping, warm: ours, of chunks side by side, and a plain file's.

use super::{OURS, Setting};
use crate::{
    bed::{Bed, Fill},
    mapped, measure, page_cache,
    pattern::{random_offsets, sum_lines},
    report::{Result, Round},
};
use std::{hint::black_box, ops::Deref};

pub(super) fn bed(setting: &Setting) -> Bed {
    Bed::new(&setting.dir, setting.bytes, Fill::Random)
}

pub(super) fn prepare(setting: &Setting, _: &str) -> Result<()> {
    bed(setting).prepare()
}

pub(super) fn prepare_plain(setting: &Setting, _: &str) -> Result<()> {
    bed(setting).prepare_plain()
}

pub(super) fn sequential(setting: &Setting, subject: &str) -> Result<Round> {
    Ok(read(setting, subject, sum_lines)?.bytes(setting.bytes))
}

pub(super) fn random_4k(setting: &Setting, subject: &str) -> Result<Round> {
    random(setting, subject, 4 << 10)
}

pub(super) fn random_1m(setting: &Setting, subject: &str) -> Result<Round> {
    random(setting, subject, 1 << 20)
}

fn random(setting: &Setting, subject: &str, read_bytes: usize) -> Result<Round> {
    let touch = |bytes: &[u8]| {
        random_offsets(setting.seed, setting.bytes, read_bytes as u64, setting.count).fold(0_u64, |sum, offset| {
            let read = &bytes[offset as usize..][..read_bytes.min(bytes.len() - offset as usize)];
            sum.wrapping_add(sum_lines(read))
        })
    };
    Ok(read(setting, subject, touch)?.bytes(setting.count * read_bytes as u64))
}

/// The subject's file as one slice that nobody has touched, its bytes in the page cache.
pub(super) fn warm_slice(setting: &Setting, subject: &str) -> Result<Box<dyn Deref<Target = [u8]>>> {
    let bed = bed(setting);
    if subject == OURS {
        page_cache::reread_stored(bed.file()?)?;
        return Ok(Box::new(bed.file()?));
    }
    page_cache::reread_file(&bed.plain())?;
    Ok(Box::new(mapped::map(&bed.plain())?))
}

/// Measures the first `touch` of a fresh mapping, page faults and all; a second one, without them, is told beside it.
fn read(setting: &Setting, subject: &str, touch: impl Fn(&[u8]) -> u64) -> Result<Round> {
    let slice = warm_slice(setting, subject)?;
    let slice = &**slice;
    let (sum, first) = measure::measure(|| Ok(black_box(touch(slice))))?;
    let (again, second) = measure::measure(|| Ok(black_box(touch(slice))))?;
    if sum != again {
        return Err("two reads of the same bytes gave two sums".into());
    }
    // The same for every subject, or they did not read the same.
    let low_bits = sum & u64::from(u32::MAX);
    Ok(Round::of(first).seconds_of("again", second.wall).value("sum_low_32_bits", low_bits as f64))
}
