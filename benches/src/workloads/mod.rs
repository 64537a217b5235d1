//! The workloads, as a table: [`WORKLOADS`].

mod check;
mod cold;
mod many;
mod open;
mod remove;
mod slice;
mod turnover;
mod values;

use crate::report::{Result, Round};
use serde::Serialize;
use std::path::PathBuf;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// Ourselves, as a subject.
const OURS: &str = "model-cache";
const PLAIN_MMAP: &str = "plain-mmap";

/// How large a round is, and where its data lies.
#[derive(Clone, Debug)]
pub(crate) struct Setting {
    pub(crate) dir: PathBuf,
    pub(crate) bytes: u64,
    pub(crate) count: u64,
    pub(crate) threads: usize,
    pub(crate) io_bytes: usize,
    pub(crate) seed: u64,
}

/// Sizes of a workload. `count` is 0 where there is nothing to count.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Size {
    pub(crate) bytes: u64,
    pub(crate) count: u64,
}

/// When a workload's data has to be prepared.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Prepare {
    /// Before the first round; later ones use it again.
    Once,
    /// Before every round, which uses it up.
    EachRound,
}

/// One line of the table.
#[derive(Debug, Serialize)]
pub(crate) struct Workload {
    pub(crate) name: &'static str,
    /// What the measured part is.
    pub(crate) about: &'static str,
    pub(crate) subjects: &'static [&'static str],
    /// Whether a round drops the page cache, which only root may.
    pub(crate) needs_root: bool,
    pub(crate) prepared: Prepare,
    pub(crate) size: Size,
    pub(crate) tiny: Size,
    #[serde(skip)]
    pub(crate) prepare: fn(&Setting, &'static str) -> Result<()>,
    #[serde(skip)]
    pub(crate) run: fn(&Setting, &'static str) -> Result<Round>,
}

const fn size(bytes: u64, count: u64) -> Size {
    Size { bytes, count }
}

pub(crate) const WORKLOADS: &[Workload] = &[
    Workload {
        name: "has-file",
        about: "asking whether a file of 10 kB is here, of 100 such files in turns; warm",
        subjects: &[OURS, "plain-stat"],
        needs_root: false,
        prepared: Prepare::Once,
        size: size(10_000, 100_000),
        tiny: size(10_000, 100),
        prepare: open::prepare_small,
        run: open::has_file,
    },
    Workload {
        name: "open-small",
        about: "opening a file of 10 kB and touching its first byte, of 100 such files in turns; warm",
        subjects: &[OURS, PLAIN_MMAP, "plain-read"],
        needs_root: false,
        prepared: Prepare::Once,
        size: size(10_000, 50_000),
        tiny: size(10_000, 100),
        prepare: open::prepare_small,
        run: open::open_small,
    },
    Workload {
        name: "open-chunks",
        about: "opening a file of many chunks as one slice, and letting it go; warm; --chunks says how many",
        subjects: &[OURS, PLAIN_MMAP],
        needs_root: false,
        prepared: Prepare::Once,
        size: size(4 * GIB, 5_000),
        tiny: size(101 * MIB, 20),
        prepare: open::prepare_chunks,
        run: open::open_chunks,
    },
    Workload {
        name: "open-store",
        about: "opening a store, then its one file, with the bytes that made the disk read; page cache warm",
        subjects: &[OURS],
        needs_root: false,
        prepared: Prepare::Once,
        size: size(4 * GIB, 1_000),
        tiny: size(101 * MIB, 20),
        prepare: open::prepare_chunks,
        run: open::open_store_warm,
    },
    Workload {
        name: "open-store-cold",
        about: "as open-store, page cache dropped",
        subjects: &[OURS],
        needs_root: true,
        prepared: Prepare::Once,
        size: size(4 * GIB, 1_000),
        tiny: size(101 * MIB, 20),
        prepare: open::prepare_chunks,
        run: open::open_store_cold,
    },
    Workload {
        name: "slice-seq",
        about: "reading every cache line of a file in order, by one thread, through a mapping nobody has touched; page cache warm",
        subjects: &[OURS, PLAIN_MMAP],
        needs_root: false,
        prepared: Prepare::Once,
        size: size(4 * GIB, 0),
        tiny: size(8 * MIB, 0),
        prepare: slice::prepare,
        run: slice::sequential,
    },
    Workload {
        name: "slice-rand-4k",
        about: "as slice-seq, in reads of 4 KiB at random places; as many as --count says",
        subjects: &[OURS, PLAIN_MMAP],
        needs_root: false,
        prepared: Prepare::Once,
        size: size(4 * GIB, 1 << 19),
        tiny: size(8 * MIB, 1 << 10),
        prepare: slice::prepare,
        run: slice::random_4k,
    },
    Workload {
        name: "slice-rand-1m",
        about: "as slice-seq, in reads of 1 MiB at random places; as many as --count says",
        subjects: &[OURS, PLAIN_MMAP],
        needs_root: false,
        prepared: Prepare::Once,
        size: size(4 * GIB, 1 << 13),
        tiny: size(8 * MIB, 8),
        prepare: slice::prepare,
        run: slice::random_1m,
    },
    Workload {
        name: "cold-load",
        about: "from opening a file to its last cache line read, in order; page cache dropped; plain-pread with --threads and --io-bytes",
        subjects: cold::SUBJECTS,
        needs_root: true,
        prepared: Prepare::Once,
        size: size(4 * GIB, 0),
        tiny: size(8 * MIB, 0),
        prepare: slice::prepare,
        run: cold::load,
    },
    Workload {
        name: "verify",
        about: "holding a file against its CRC32C, block by block; memory-read only reads the same bytes, the bound of any check; warm",
        subjects: &[OURS, "memory-read"],
        needs_root: false,
        prepared: Prepare::Once,
        size: size(4 * GIB, 0),
        tiny: size(8 * MIB, 0),
        prepare: slice::prepare,
        run: check::verify,
    },
    Workload {
        name: "crc32c",
        about: "CRC32C of a mapped file in blocks of 5 MiB, one thread, warm and mapped; crc32fast is another polynomial, memory-read none",
        subjects: check::CRC_SUBJECTS,
        needs_root: false,
        prepared: Prepare::Once,
        size: size(GIB, 0),
        tiny: size(8 * MIB, 0),
        prepare: slice::prepare_plain,
        run: check::crc32c,
    },
    Workload {
        name: "digest",
        about: "SHA-256 of a file, one thread, warm; openssl is its program, reading the file",
        subjects: check::DIGEST_SUBJECTS,
        needs_root: false,
        prepared: Prepare::Once,
        size: size(GIB, 0),
        tiny: size(8 * MIB, 0),
        prepare: slice::prepare_plain,
        run: check::digest,
    },
    Workload {
        name: "put-chunks",
        about: "bringing in a warm plain file in chunks of 100 MiB, durably; ours computes SHA-256 and CRC32C besides, the others nothing",
        subjects: values::PUT_SUBJECTS,
        needs_root: false,
        prepared: Prepare::Once,
        size: size(1000 * MIB, 0),
        tiny: size(101 * MIB, 0),
        prepare: values::prepare_put,
        run: values::put,
    },
    Workload {
        name: "read-chunks",
        about: "from opening the store to every cache line read, of what put-chunks put; -one-slice first copies the values into one; warm",
        subjects: values::READ_SUBJECTS,
        needs_root: false,
        prepared: Prepare::Once,
        size: size(1000 * MIB, 0),
        tiny: size(101 * MIB, 0),
        prepare: values::prepare_read,
        run: values::read,
    },
    Workload {
        name: "remove",
        about: "removing a file of zeros, all of it allocated and in the page cache; its disk space is back at the end",
        subjects: &[OURS, "plain-file"],
        needs_root: false,
        prepared: Prepare::EachRound,
        size: size(10 * GIB, 0),
        tiny: size(8 * MIB, 0),
        prepare: remove::prepare,
        run: remove::alone,
    },
    Workload {
        name: "remove-beside",
        about: "as remove, while one thread opens other files and another brings in small ones, durably; the longest waits of both",
        subjects: &[OURS, "plain-file"],
        needs_root: false,
        prepared: Prepare::EachRound,
        size: size(10 * GIB, 0),
        tiny: size(8 * MIB, 0),
        prepare: remove::prepare,
        run: remove::beside_others,
    },
    Workload {
        name: "turnover",
        about: "room for files of up to a fifth of --bytes taken and given back, until --count times --bytes were; ours only reserves, the others put zeros",
        subjects: turnover::SUBJECTS,
        needs_root: false,
        prepared: Prepare::EachRound,
        size: size(20 * GIB, 10),
        tiny: size(16 * MIB, 2),
        prepare: turnover::prepare,
        run: turnover::turnover,
    },
    Workload {
        name: "reserve-fill",
        about: "reserving extents of 1/200 of --bytes one by one until --bytes are full; medians at each 5 %",
        subjects: &[OURS],
        needs_root: false,
        prepared: Prepare::EachRound,
        size: size(20 * GIB, 0),
        tiny: size(16 * MIB, 0),
        prepare: turnover::prepare,
        run: turnover::fill,
    },
    Workload {
        name: "many-files",
        about: "opening a store of --count files of 1 kB, 20 to a repo; the store is left for other programs to list",
        subjects: &[OURS],
        needs_root: false,
        prepared: Prepare::Once,
        size: size(0, 20_000),
        tiny: size(0, 40),
        prepare: many::prepare,
        run: many::open,
    },
];
