//! Extents over a real environment: reserve, fill in place, map, punch, free, reopen.

use storage::*;

const BLOCK_BYTES: u32 = 5 << 20;

fn specs(prefix: &str, sizes: &[u64]) -> Vec<ExtentSpec> {
    sizes.iter().enumerate().map(|(n, &data_bytes)| ExtentSpec { key: format!("{prefix}:{n}"), data_bytes }).collect()
}

fn pattern(seed: u64, bytes: u64) -> Vec<u8> {
    (0..bytes).map(|i| (i.wrapping_mul(31) ^ (i >> 9) ^ seed) as u8).collect()
}

#[test]
fn extents_filled_in_place_read_back_as_one_slice() {
    let dir = tempfile::tempdir().unwrap();
    let registry = StorageRegistry::new(dir.path());
    let extents = registry.extents(&registry.folder("extents"), "chunks", storage::Alignment::LargePage).unwrap();
    let writer = extents.open_writer().unwrap();
    let sizes = [4 << 20, 4 << 20, 1_234_567];
    let txn = extents.begin_reserve().unwrap();
    let placed = txn.reserve(&writer, 7, BLOCK_BYTES, &specs("a", &sizes)).unwrap();
    txn.commit().unwrap();
    let mut whole = Vec::new();
    for (n, extent) in placed.iter().enumerate() {
        let data = pattern(n as u64, extent.data_bytes);
        writer.write_at(extent, 0, &data).unwrap();
        writer.journal(extent, 0, crc32c_of(&data)).unwrap();
        whole.extend(data);
        let header = extents.reader().read_header(extent).unwrap().unwrap();
        assert_eq!(header, ExtentHeader { owner: 7, index: n as u32, data_bytes: extent.data_bytes, block_bytes: BLOCK_BYTES });
        assert_eq!(extents.locate(&format!("a:{n}")).unwrap(), Some(*extent));
    }
    writer.sync().unwrap();
    extents.sync().unwrap();
    let mapping = Mapping::side_by_side(extents.reader(), &placed).unwrap();
    assert!(*mapping == whole);
    assert_eq!(mapping.as_ptr() as usize % PAGE_BYTES as usize, 0);
    let separate = SeparateMappings::new(extents.reader(), &placed).unwrap();
    assert!(separate.slices().flatten().copied().eq(whole.iter().copied()));
}

fn crc32c_of(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes)
}

#[test]
fn space_of_punched_extents_returns_and_stays_returned_over_a_reopen() {
    let dir = tempfile::tempdir().unwrap();
    let registry = StorageRegistry::new(dir.path());
    let folder = registry.folder("extents");
    let sizes = [100 << 20; 4];
    {
        let extents = registry.extents(&folder, "chunks", storage::Alignment::LargePage).unwrap();
        let writer = extents.open_writer().unwrap();
        let txn = extents.begin_reserve().unwrap();
        let placed = txn.reserve(&writer, 1, BLOCK_BYTES, &specs("a", &sizes)).unwrap();
        txn.commit().unwrap();
        assert!(allocated_bytes(&folder).unwrap() >= 400 << 20);
        for extent in &placed {
            writer.punch(extent).unwrap();
        }
        let txn = extents.begin_free().unwrap();
        for n in 0..4 {
            assert!(txn.delete(&format!("a:{n}")).unwrap());
        }
        txn.commit().unwrap();
        extents.sync().unwrap();
        println!("after punch: {} KiB", allocated_bytes(&folder).unwrap() >> 10);
        assert!(allocated_bytes(&folder).unwrap() < 8 << 20);
    }
    let extents = registry.extents(&folder, "chunks", storage::Alignment::LargePage).unwrap();
    let writer = extents.open_writer().unwrap();
    let txn = extents.begin_reserve().unwrap();
    txn.reserve(&writer, 2, BLOCK_BYTES, &specs("b", &[100 << 20])).unwrap();
    txn.commit().unwrap();
    println!("after reopen and reserve: {} KiB", allocated_bytes(&folder).unwrap() >> 10);
    assert!(allocated_bytes(&folder).unwrap() < 108 << 20);
}

#[test]
fn a_key_that_is_taken_is_never_overwritten() {
    let dir = tempfile::tempdir().unwrap();
    let registry = StorageRegistry::new(dir.path());
    let extents = registry.extents(&registry.folder("extents"), "chunks", storage::Alignment::LargePage).unwrap();
    let writer = extents.open_writer().unwrap();
    let txn = extents.begin_reserve().unwrap();
    let first = txn.reserve(&writer, 1, BLOCK_BYTES, &specs("a", &[1 << 20])).unwrap();
    txn.commit().unwrap();
    let txn = extents.begin_reserve().unwrap();
    assert!(matches!(txn.reserve(&writer, 2, BLOCK_BYTES, &specs("a", &[1 << 20])), Err(Error::BadExtent { .. })));
    drop(txn);
    assert_eq!(extents.locate("a:0").unwrap(), Some(first[0]));
    assert_eq!(extents.reader().read_header(&first[0]).unwrap().unwrap().owner, 1);
}

#[test]
fn large_data_begins_where_large_pages_do_and_a_mapping_of_it_too() {
    const LARGE_PAGE_BYTES: u64 = 2 << 20;
    for alignment in [storage::Alignment::Page, storage::Alignment::LargePage] {
        let dir = tempfile::tempdir().unwrap();
        let registry = StorageRegistry::new(dir.path());
        let extents = registry.extents(&registry.folder("extents"), "chunks", alignment).unwrap();
        let writer = extents.open_writer().unwrap();
        // Small ones between and behind, so that large ones would begin anywhere.
        let sizes = [70_000, 40 << 20, 32 << 20, (33 << 20) + 7, 5 << 20, 1];
        let txn = extents.begin_reserve().unwrap();
        let placed = txn.reserve(&writer, 1, BLOCK_BYTES, &specs("a", &sizes)).unwrap();
        txn.commit().unwrap();
        let mut ends = 0;
        for (extent, bytes) in placed.iter().zip(sizes) {
            assert_eq!(extent.data_bytes, bytes);
            let aligned = extent.data_offset() % LARGE_PAGE_BYTES == 0;
            assert!(aligned || alignment == storage::Alignment::Page || bytes < 32 << 20, "{bytes}");
            assert!(extent.page_offset() >= ends, "extents do not overlap");
            ends = extent.data_offset() + bytes;
            assert_eq!(extents.reader().read_header(extent).unwrap().unwrap().data_bytes, bytes);
        }
        assert!((0..6).all(|n| extents.locate(&format!("a:{n}")).unwrap() == Some(placed[n])));
        // The pages skipped are nobody's and take no space.
        let allocated = allocated_bytes(&registry.folder("extents")).unwrap();
        assert!(allocated < sizes.iter().sum::<u64>() + (2 << 20), "{allocated}");
        let mapping = Mapping::side_by_side(extents.reader(), &placed[1..4]).unwrap();
        let on_boundary = |at: u64| at.is_multiple_of(LARGE_PAGE_BYTES);
        assert!(on_boundary(mapping.as_ptr() as u64) || !on_boundary(placed[1].data_offset()));
        assert_eq!(mapping.len() as u64, sizes[1..4].iter().sum::<u64>());
    }
}

#[test]
fn a_recycled_extent_has_an_empty_journal_whatever_was_journaled_there_before() {
    let dir = tempfile::tempdir().unwrap();
    let registry = StorageRegistry::new(dir.path());
    let extents = registry.extents(&registry.folder("extents"), "chunks", storage::Alignment::LargePage).unwrap();
    let writer = extents.open_writer().unwrap();
    let reserve = |owner: u64| {
        let txn = extents.begin_reserve().unwrap();
        let placed = txn.reserve(&writer, owner, BLOCK_BYTES, &specs(&owner.to_string(), &[3 * u64::from(BLOCK_BYTES)])).unwrap();
        txn.commit().unwrap();
        placed[0]
    };
    let first = reserve(1);
    for block in 0..3 {
        writer.journal(&first, block, 0x1234_5678).unwrap();
    }
    let mut places = vec![first];
    // libmdbx gives the same pages out again once it was synced.
    for owner in 2.. {
        let txn = extents.begin_free().unwrap();
        assert!(txn.delete(&format!("{}:0", owner - 1)).unwrap());
        txn.commit().unwrap();
        extents.sync().unwrap();
        let next = reserve(owner);
        let header = extents.reader().read_header(&next).unwrap().unwrap();
        assert_eq!(header.owner, owner);
        assert_eq!(extents.reader().read_journal(&next, &header).unwrap(), [None; 3]);
        if places.contains(&next) {
            break;
        }
        assert!(places.len() < 20, "no extent was ever given out again: {places:?}");
        places.push(next);
        for block in 0..3 {
            writer.journal(&next, block, 0x1234_5678).unwrap();
        }
    }
}
