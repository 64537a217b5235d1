//! What must hold of an extent's bytes, whatever they are: for `fuzz/`, and for the test that runs its targets.

use crate::{
    Alignment, ExtentHeader, HEADER_REGION_BYTES, PAGE_BYTES,
    data_file::{HEADER_BYTES, decode_journal, hole, landed},
    mdbx::PAGE_HEADER_BYTES,
};

/// The header region of an extent, and where libmdbx is said to have put it.
///
/// ```text
/// page u32 | bytes of the value u64 | header, 64 bytes | journal, 8 bytes a block
/// ```
pub fn extent(input: &[u8]) {
    place(input);
    let Some((header, journal)) = input.get(12..).and_then(|region| region.split_first_chunk::<HEADER_BYTES>()) else { return };
    check_header(header);
    // Few inputs have the CRC32C right: the same header once more, with it.
    let mut header = *header;
    let crc = crc32c::crc32c(&header[..36]).to_le_bytes();
    header[36..40].copy_from_slice(&crc);
    check_header(&header);
    let entries = decode_journal(journal);
    assert_eq!(entries.len(), journal.len() / 8);
    for (entry, bytes) in entries.iter().zip(journal.chunks_exact(8)) {
        assert!(entry.is_none_or(|crc| landed(crc) == bytes), "{entry:?} of {bytes:x?}");
    }
}

/// A header that is believed is one this program could have written, and every flipped bit of it is noticed.
fn check_header(bytes: &[u8; HEADER_BYTES]) {
    let Some(header) = ExtentHeader::decode(bytes) else { return };
    assert_eq!(header.encode()[..40], bytes[..40]);
    assert!(header.data_bytes > 0 && header.blocks() > 0);
    // The journal lies in the header region, and the last block in the data.
    assert!(128 + 8 * header.blocks() as u64 <= HEADER_REGION_BYTES);
    assert!((header.blocks() as u64 - 1) * u64::from(header.block_bytes) < header.data_bytes);
    let mut flipped = *bytes;
    for bit in 0..8 * 40 {
        flipped[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(ExtentHeader::decode(&flipped), None, "bit {bit} of {bytes:x?}");
        flipped[bit / 8] ^= 1 << (bit % 8);
    }
}

/// Where an extent lies agrees with what libmdbx gave for it, and a hole in it leaves its neighbours alone.
fn place(input: &[u8]) {
    let Some((page, rest)) = input.split_first_chunk() else { return };
    let Some((bytes, _)) = rest.split_first_chunk() else { return };
    let (page, bytes) = (u32::from_le_bytes(*page), u64::from_le_bytes(*bytes));
    // No file of libmdbx has more.
    let value_bytes = bytes % (1 << 47);
    for alignment in [Alignment::Page, Alignment::LargePage] {
        let Some(extent) = alignment.extent(page, value_bytes) else { continue };
        assert!(extent.data_bytes > 0 && extent.page >= page);
        let value_end = u64::from(page) * PAGE_BYTES + PAGE_HEADER_BYTES as u64 + value_bytes;
        assert!(extent.data_offset() + extent.data_bytes <= value_end, "{extent:?} of {value_bytes} bytes at page {page}");
        let hole = hole(&extent);
        assert!(hole.start > extent.page_offset() && hole.end <= value_end.next_multiple_of(PAGE_BYTES));
        assert_eq!(alignment.value_bytes(extent.data_bytes), value_bytes);
    }
}
