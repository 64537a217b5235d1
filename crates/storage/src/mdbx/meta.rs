//! The first pages of a data file, read without libmdbx: what they say of an environment, and what a file is that libmdbx refuses.
//!
//! ```text
//! page n x page size + 20  (meta_t, mdbx-internals.h; three of them, the one of the latest transaction counts)
//!   0  8  magic above 8 bits of version         36  4  first page that was never given out
//!   8  8  transaction                           44  4  page size
//!  28  4  most pages there may be              176  8  transaction again, written last
//! page n x page size (page_t)
//!  10  2  kind of page                          16  4  its number
//! ```

use std::{fs::File, io, os::unix::fs::FileExt, path::Path};

/// Where libmdbx's magic lies: behind the header of its first page.
const MAGIC_OFFSET: usize = super::PAGE_HEADER_BYTES;
/// How many first pages there are (`NUM_METAS`).
const METAS: u64 = 3;
/// What the header of such a page says of its kind (`P_META`), and nothing else.
const META_FLAG: u16 = 0x08;
/// Bytes of a page that are looked at.
const META_BYTES: usize = MAGIC_OFFSET + 184;
/// The page sizes there are here, for a file whose first page is damaged.
const PAGE_BYTES: [u64; 2] = [super::RECORDS_PAGE_BYTES as u64, crate::PAGE_BYTES];
/// `MDBX_MAGIC` and `MDBX_DATA_VERSION` (mdbx-internals.h): 56 bits of magic above 8 of version.
const MAGIC: u64 = 0x59_659D_BDEF_4C11;
const VERSION: u64 = 3;
/// LMDB's, behind a header of 16 bytes on 64-bit systems, of 12 on others (`MDB_MAGIC` of mdb.c); the version follows.
const LMDB_MAGIC: u32 = 0xBEEF_C0DE;
const LMDB_OFFSETS: [usize; 2] = [16, 12];

/// What the latest first page says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Meta {
    pub(crate) page_bytes: u64,
    pub(crate) used_pages: u64,
    pub(crate) limit_pages: u64,
    pub(crate) transaction: u64,
}

/// The latest of the first pages of `file`; what is wrong with it, if none is whole.
pub(crate) fn read(file: &File) -> io::Result<Result<Meta, String>> {
    let read = |offset| {
        let mut bytes = [0; META_BYTES];
        match file.read_exact_at(&mut bytes, offset) {
            Ok(()) => Ok(Some(bytes)),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
            Err(error) => Err(error),
        }
    };
    let first = read(0)?;
    let mut metas: Vec<Meta> = first.iter().filter_map(decode).collect();
    for page_bytes in PAGE_BYTES {
        for number in 1..METAS {
            metas.extend(read(number * page_bytes)?.iter().filter_map(decode).filter(|meta| meta.page_bytes == page_bytes));
        }
    }
    let Some(latest) = metas.into_iter().max_by_key(|meta| meta.transaction) else {
        return Ok(Err(match first.as_ref().map(describe) {
            None => "its data file is shorter than its first page".to_owned(),
            Some(Some(what)) => what,
            Some(None) => "none of its first pages is whole".to_owned(),
        }));
    };
    // libmdbx looks at the header of a first page that is not the latest once it is to be written, and then no open is possible any more.
    for number in 0..METAS {
        let Some(page) = read(number * latest.page_bytes)? else { continue };
        let flags = u16::from_le_bytes(page[10..12].try_into().expect("2 bytes"));
        let at = u32::from_le_bytes(page[16..20].try_into().expect("4 bytes"));
        if (flags, u64::from(at)) != (META_FLAG, number) {
            return Ok(Err(format!("the header of its first page {number} is damaged: flags {flags:#x}, number {at}")));
        }
    }
    Ok(Ok(latest))
}

/// Whether the first pages of `file`, those of them that are there, are as they were made: nothing was ever committed.
pub(super) fn is_as_made(file: &File) -> io::Result<bool> {
    // Made, they are numbered from 1; the first commit writes over the first of them.
    Ok(read(file)?.is_ok_and(|latest| latest.used_pages == METAS && latest.transaction <= METAS))
}

fn decode(bytes: &[u8; META_BYTES]) -> Option<Meta> {
    let field = |at: usize| &bytes[MAGIC_OFFSET + at..];
    let u32_at = |at| u64::from(u32::from_le_bytes(field(at)[..4].try_into().expect("4 bytes")));
    let u64_at = |at| u64::from_le_bytes(field(at)[..8].try_into().expect("8 bytes"));
    let meta = Meta { page_bytes: u32_at(44), used_pages: u32_at(36), limit_pages: u32_at(28), transaction: u64_at(8) };
    let is_whole = u64_at(0) == MAGIC << 8 | VERSION && u64_at(176) == meta.transaction && meta.page_bytes.is_power_of_two();
    is_whole.then_some(meta)
}

/// What stands at `data_file`, where it is certainly no environment this build reads.
pub(super) fn what_is(data_file: &Path) -> Option<String> {
    let mut bytes = [0; META_BYTES];
    File::open(data_file).ok()?.read_exact_at(&mut bytes, 0).ok()?;
    describe(&bytes)
}

fn describe(bytes: &[u8; META_BYTES]) -> Option<String> {
    let u32_at = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("4 bytes"));
    let magic = u64::from_le_bytes(bytes[MAGIC_OFFSET..MAGIC_OFFSET + 8].try_into().expect("8 bytes"));
    if magic >> 8 == MAGIC {
        let version = magic & 0xFF;
        return (version != VERSION)
            .then(|| format!("it is libmdbx's of format {version}; this program reads its format {VERSION}"));
    }
    if let Some(at) = LMDB_OFFSETS.into_iter().find(|at| u32_at(*at) == LMDB_MAGIC) {
        let version = u32_at(at + 4);
        return Some(format!("it is LMDB's, of its format {version}; this program reads libmdbx's format {VERSION}"));
    }
    Some("it does not begin as libmdbx's files do".to_owned())
}

/// Makes the first pages of an extents' data file nobody has open those of another start of the system, as a power loss does. Gives how many of
/// them were not durable. For tests of crashes.
///
/// # Errors
/// Those of reading and writing, and for pages that are laid out in another way.
#[cfg(feature = "fail-points")]
pub fn forget_boot(file: &File, boot: u128) -> io::Result<u64> {
    /// `sign` and `bootid`, and the value of the one that says "not durable" (`DATASIGN_WEAK`).
    const SIGN_OFFSET: usize = 168;
    const SIGN_WEAK: u64 = 1;
    const BOOT_OFFSET: usize = 192;
    let mut weak = 0;
    for number in 0..METAS {
        let at = number * crate::PAGE_BYTES + MAGIC_OFFSET as u64;
        let mut meta = [0; BOOT_OFFSET + 16];
        match file.read_exact_at(&mut meta, at) {
            // Killed before its first pages were written.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(0),
            read => read?,
        }
        let field = |at: usize| u64::from_le_bytes(meta[at..at + 8].try_into().expect("8 bytes"));
        let sign = field(SIGN_OFFSET);
        if field(0) == 0 {
            continue;
        }
        if field(0) >> 8 != MAGIC || ![0, SIGN_WEAK, u64::MAX].contains(&sign) {
            return Err(io::Error::other(format!("first page {number} is laid out in another way: {meta:02x?}")));
        }
        weak += u64::from(sign <= SIGN_WEAK);
        file.write_all_at(&boot.to_le_bytes(), at + BOOT_OFFSET as u64)?;
    }
    Ok(weak)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_engines_and_other_versions_are_named_and_ours_is_not() {
        let file = |at: usize, head: &[u8]| {
            let mut bytes = [0; META_BYTES];
            bytes[at..at + head.len()].copy_from_slice(head);
            describe(&bytes)
        };
        let ours = |version: u64| file(MAGIC_OFFSET, &(MAGIC << 8 | version).to_le_bytes());
        assert_eq!(ours(VERSION), None);
        assert!(ours(7).unwrap().contains("format 7; this program reads its format 3"));
        let lmdb = [LMDB_MAGIC.to_le_bytes(), 999_u32.to_le_bytes()].concat();
        for at in LMDB_OFFSETS {
            assert!(file(at, &lmdb).unwrap().contains("LMDB's, of its format 999"));
        }
        assert!(file(0, b"SQLite format 3").unwrap().contains("does not begin"));
    }
}
