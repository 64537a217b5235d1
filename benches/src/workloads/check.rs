//! What checking costs: verify, CRC32C and SHA-256, each beside what the machine can do.

use super::{OURS, Setting, slice};
use crate::{
    mapped,
    measure::{self, Measured},
    page_cache,
    pattern::sum_lines,
    report::{Result, Round},
};
use std::{hint::black_box, process::Command};
use tabagent_model_cache::{BLOCK_BYTES, Hasher, VerifyOptions};

const MEMORY_READ: &str = "memory-read";

#[cfg(not(feature = "candidates"))]
pub(super) const CRC_SUBJECTS: &[&str] = &["crc32c", MEMORY_READ];
#[cfg(feature = "candidates")]
pub(super) const CRC_SUBJECTS: &[&str] = &["crc32c", MEMORY_READ, "crc-fast", "crc32fast"];

#[cfg(not(feature = "candidates"))]
pub(super) const DIGEST_SUBJECTS: &[&str] = &["sha2", "openssl"];
#[cfg(feature = "candidates")]
pub(super) const DIGEST_SUBJECTS: &[&str] = &["sha2", "openssl", "ring", "aws-lc-rs"];

pub(super) fn verify(setting: &Setting, subject: &str) -> Result<Round> {
    if subject == MEMORY_READ {
        let slice = slice::warm_slice(setting, OURS)?;
        // Once before: faults are not memory's bandwidth.
        black_box(sum_lines(&slice));
        let ((), measured) = measure::measure(|| {
            black_box(sum_lines(&slice));
            Ok(())
        })?;
        return Ok(rate(setting, measured));
    }
    let cache = slice::bed(setting).cache()?;
    page_cache::reread_stored(slice::bed(setting).file()?)?;
    // By default it reads from the disk again.
    let in_memory = VerifyOptions { cached: true, ..VerifyOptions::default() };
    let (report, measured) = measure::measure_with_memory(|| Ok(cache.verify(None, &[], &in_memory)?))?;
    if report.bytes != setting.bytes || !report.bad.is_empty() {
        return Err(format!("verify read {} bytes and found {} bad blocks", report.bytes, report.bad.len()).into());
    }
    Ok(rate(setting, measured))
}

pub(super) fn crc32c(setting: &Setting, subject: &str) -> Result<Round> {
    over_blocks(
        setting,
        match subject {
            "crc32c" => |block| u64::from(crc32c::crc32c(block)),
            #[cfg(feature = "candidates")]
            "crc-fast" => |block| crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, block),
            #[cfg(feature = "candidates")]
            "crc32fast" => |block| u64::from(crc32fast::hash(block)),
            _ => sum_lines,
        },
    )
}

/// Runs `check` over each block of a plain file that is mapped and in memory.
fn over_blocks(setting: &Setting, check: fn(&[u8]) -> u64) -> Result<Round> {
    let plain = slice::bed(setting).plain();
    let map = mapped::map(&plain)?;
    black_box(sum_lines(&map));
    let (sum, measured) =
        measure::measure(|| Ok(map.chunks(BLOCK_BYTES as usize).fold(0, |sum: u64, block| sum.wrapping_add(check(block)))))?;
    black_box(sum);
    Ok(rate(setting, measured))
}

pub(super) fn digest(setting: &Setting, subject: &str) -> Result<Round> {
    let plain = slice::bed(setting).plain();
    let map = mapped::map(&plain)?;
    black_box(sum_lines(&map));
    let sha2 = || {
        let mut hasher = Hasher::sha256();
        map.chunks(BLOCK_BYTES as usize).for_each(|block| hasher.update(block));
        hasher.finish().hex()
    };
    let (found, measured) = measure::measure(|| {
        Ok(match subject {
            "openssl" => openssl(&plain)?,
            #[cfg(feature = "candidates")]
            "ring" => hex(ring::digest::digest(&ring::digest::SHA256, &map).as_ref()),
            #[cfg(feature = "candidates")]
            "aws-lc-rs" => hex(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &map).as_ref()),
            _ => sha2(),
        })
    })?;
    if found != sha2() {
        return Err(format!("{subject} found the digest {found}, and sha2 another").into());
    }
    Ok(rate(setting, measured))
}

/// What `openssl dgst` says of a file.
fn openssl(path: &std::path::Path) -> Result<String> {
    let output = Command::new("openssl").args(["dgst", "-sha256", "-r"]).arg(path).output()?;
    if !output.status.success() {
        return Err(format!("openssl dgst failed: {}", String::from_utf8_lossy(&output.stderr).trim()).into());
    }
    let said = String::from_utf8(output.stdout)?;
    Ok(said.split_whitespace().next().unwrap_or_default().to_owned())
}

#[cfg(feature = "candidates")]
fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn rate(setting: &Setting, measured: Measured) -> Round {
    let bytes = setting.bytes as f64;
    Round::of(measured)
        .bytes(setting.bytes)
        .value("bytes_per_second", bytes / measured.wall.as_secs_f64())
        .value("bytes_per_cpu_second", bytes / measured.cpu.as_secs_f64())
}
