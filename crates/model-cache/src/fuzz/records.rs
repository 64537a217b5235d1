//! Records: those that are read are written back as they are, and what is computed from them can't overflow.

use super::check_error;
use crate::record::*;
use std::fmt::Debug;
use storage::Record;

/// First inputs of [`records`]: one of each type, and each of the lengths that are kept in place and apart from the archive's root.
pub fn record_samples() -> Vec<Vec<u8>> {
    let text = |text: &str| text.to_owned();
    let digest = text("sha256:a948904f2f0f479b8f8197694b30184b0d2ed1c1cd2a1ec0fb85d299a192a447");
    let file = FileMetadata {
        size_bytes: 12,
        digest: digest.clone(),
        content_type: text("application/json"),
        blob_id: 7,
        created_unix_ms: 1_700_000_000_000,
    };
    let blob = |home: &str, size_bytes, state, pages: &[u32]| BlobRecord {
        id: 7,
        home: text(home),
        size_bytes,
        state,
        names: vec![text("meta:o/n:a.gguf"), text("m")],
        pages: pages.to_vec(),
        block_crcs: vec![1, 2, 3],
        created_unix_ms: -1,
    };
    let quant = |key: &str, last_error: Option<&str>| QuantEntry {
        key: text(key),
        own: vec![text("a.gguf")],
        shared: vec![text("mmproj-F16.gguf")],
        missing: vec![text("b-00002-of-00002.gguf")],
        last_error: last_error.map(text),
    };
    let manifest = ManifestEntry {
        task: Some(text("text-generation")),
        scanned_unix_ms: 0,
        files: vec![ListedFile { path: text("a.gguf"), size_bytes: 1 << 30, digest: digest.clone() }],
        quants: vec![quant("Q4_K_M", None), quant("F16", Some("it broke off"))],
        shared: vec![text("config.json")],
        extras: vec![text("x.png")],
    };
    let reference = RefRecord { latest: text("1234567890123456789012345678901234567890"), checked_unix_ms: 1, current: None };
    vec![
        input_of(0, &file),
        input_of(1, &blob("o/n:a.gguf", 15 << 20, BlobState::Sealed, &[9])),
        input_of(1, &blob("~derived:sha256:00ff:1", 0, BlobState::Filling, &[])),
        input_of(1, &blob("o/n:a", u64::MAX, BlobState::Freeing, &[1, u32::MAX])),
        input_of(2, &manifest),
        input_of(2, &ManifestEntry { task: None, files: vec![], quants: vec![], shared: vec![], extras: vec![], ..manifest }),
        input_of(3, &reference),
        input_of(3, &RefRecord { current: Some(reference.latest.clone()), ..reference }),
        input_of(4, &AccessRecord { last_used_unix_ms: i64::MAX }),
    ]
}

fn input_of<R: Record>(selector: u8, record: &R) -> Vec<u8> {
    let stored = record.encode().expect("records can be written");
    // Without its trailer, which is made anew for each input.
    let archive = &stored[..stored.len() - 8];
    [&[selector], archive].concat()
}

/// A record as it is stored, of the type that the first byte names; with 0x80 in it the trailer is the input's own, else a right one is
/// put behind it, so that the archive is looked at.
pub fn records(input: &[u8]) {
    let Some((&selector, stored)) = input.split_first() else { return };
    let own_trailer = selector & 0x80 != 0;
    match selector % 5 {
        0 => drop(check::<FileMetadata>(stored, own_trailer).map(|file| drop(file.digest.parse::<crate::Digest>()))),
        1 => drop(check::<BlobRecord>(stored, own_trailer).map(|blob| check_layout(&blob))),
        2 => drop(check::<ManifestEntry>(stored, own_trailer).map(|manifest| check_manifest(&manifest))),
        3 => drop(check::<RefRecord>(stored, own_trailer)),
        _ => drop(check::<AccessRecord>(stored, own_trailer)),
    }
}

fn check<R: Record + rkyv::Archive + PartialEq + Debug>(stored: &[u8], own_trailer: bool) -> Option<R> {
    let mut bytes = stored.to_vec();
    if !own_trailer {
        bytes.extend((size_of::<R::Archived>() as u32).to_le_bytes());
        bytes.extend(crc32c::crc32c(&bytes).to_le_bytes());
    }
    let record = R::decode(&bytes).ok()?;
    check_round_trip(&record);
    Some(record)
}

/// What is written is what is read, and a value may lie at any place in a page.
pub(super) fn check_round_trip<R: Record + PartialEq + Debug>(record: &R) {
    let encoded = record.encode().expect("what was read can be written");
    assert_eq!(R::decode(&encoded).as_ref(), Ok(record));
    let shifted = [&[0], encoded.as_slice()].concat();
    assert_eq!(R::decode(&shifted[1..]).as_ref(), Ok(record));
}

/// How a row's content is cut, whatever size it says.
fn check_layout(blob: &BlobRecord) {
    let layout = blob.layout();
    let (chunks, blocks) = (layout.chunks(), layout.blocks());
    assert!(chunks > 0);
    // No file is larger, and numbers of chunks end somewhere.
    if blob.size_bytes > 1 << 50 {
        return;
    }
    let last_chunk = layout.chunk_bytes(chunks - 1);
    assert!(last_chunk > 0 || blob.size_bytes == 0);
    for offset in [0, blob.size_bytes / 2, blob.size_bytes.saturating_sub(1)] {
        let (chunk, within) = layout.place(offset);
        if offset < blob.size_bytes {
            assert!(chunk < chunks && within < layout.chunk_bytes(chunk));
            assert!(layout.first_block(chunk) < blocks);
        }
    }
    if let Some(last) = blocks.checked_sub(1) {
        let range = layout.block_range(last);
        assert!(range.start < range.end && range.end == blob.size_bytes);
    }
}

fn check_manifest(manifest: &ManifestEntry) {
    match manifest.tree_files() {
        Ok(files) => assert_eq!(files.len(), manifest.files.len()),
        Err(error) => check_error(&error),
    }
    let repo = "o/n".parse().expect("a repo's name");
    for quant in &manifest.quants {
        let files = manifest.files_of(quant);
        assert!(files.is_sorted() && quant.own.iter().all(|path| files.binary_search(path).is_ok()));
        // None is found of a name that two have, nor of one that can't be typed.
        if let Ok(found) = manifest.find_quant(&repo, &quant.key) {
            assert_eq!(found.key, quant.key);
        }
    }
}
