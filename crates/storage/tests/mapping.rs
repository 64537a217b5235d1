//! Mappings: one slice of several extents, that needs nothing but the file to stay.

mod common;

use common::*;
use storage::*;

fn filled(folder: &std::path::Path, sizes: &[u64]) -> (std::sync::Arc<Shared<Extents>>, Vec<Extent>, Vec<u8>) {
    let extents = open_extents(folder);
    let placed = reserve(&extents, 1, "a", sizes).unwrap();
    let writer = extents.open_writer().unwrap();
    let mut whole = Vec::new();
    for (n, extent) in placed.iter().enumerate() {
        let bytes = pattern(n as u64, extent.data_bytes);
        writer.write_at(extent, 0, &bytes).unwrap();
        whole.extend(bytes);
    }
    (extents, placed, whole)
}

#[test]
fn a_mapping_goes_to_and_is_read_by_any_thread() {
    fn is_send_and_sync<T: Send + Sync + 'static>() {}
    is_send_and_sync::<Mapping>();
    is_send_and_sync::<SeparateMappings>();
    is_send_and_sync::<DataFile>();
    is_send_and_sync::<Lease>();
    is_send_and_sync::<LeaseFile>();
    is_send_and_sync::<Shared<Extents>>();
    is_send_and_sync::<Shared<Records>>();
}

#[test]
fn a_mapping_outlives_the_environment_and_everything_opened_with_it() {
    let folder = tempfile::tempdir().unwrap();
    let (extents, placed, whole) = filled(folder.path(), &[3 << 16, 1 << 16, 100_001]);
    let mapping = Mapping::side_by_side(extents.reader(), &placed).unwrap();
    let separate = SeparateMappings::new(extents.reader(), &placed).unwrap();
    drop(extents);
    assert!(*mapping == whole);
    assert!(separate.slices().flatten().eq(&whole));
    // Another opening, its growth and its frees leave it alone.
    let extents = open_extents(folder.path());
    let others = reserve(&extents, 2, "b", &[200 << 20]).unwrap();
    extents.open_writer().unwrap().write_at(&others[0], 0, &[7; 100_000]).unwrap();
    free(&extents, &["b:0".to_owned()]).unwrap();
    extents.sync().unwrap();
    drop(extents);
    assert!(std::thread::spawn(move || *mapping == whole).join().unwrap());
}

#[test]
fn a_mapping_shows_what_is_written_through_any_description() {
    let folder = tempfile::tempdir().unwrap();
    let (extents, placed, _) = filled(folder.path(), &[1 << 16]);
    let mapping = Mapping::side_by_side(extents.reader(), &placed).unwrap();
    extents.open_writer().unwrap().write_at(&placed[0], 5, b"hello").unwrap();
    assert_eq!(&mapping[5..10], b"hello");
}

#[test]
fn extents_lie_side_by_side_in_the_order_given_on_a_boundary() {
    let folder = tempfile::tempdir().unwrap();
    let (extents, placed, _) = filled(folder.path(), &[1 << 16, 5 << 16, 2 << 16]);
    for order in [[0, 1, 2], [2, 0, 1], [1, 1, 1]] {
        let chosen = order.map(|n| placed[n]);
        let expected: Vec<u8> = chosen.iter().flat_map(|extent| read(&extents, extent)).collect();
        let mapping = Mapping::side_by_side(extents.reader(), &chosen).unwrap();
        assert!(*mapping == expected);
        assert_eq!(mapping.as_ptr() as u64 % PAGE_BYTES, 0);
        let separate = SeparateMappings::new(extents.reader(), &chosen).unwrap();
        assert_eq!(separate.slices().len(), 3);
        assert!(separate.slices().flatten().eq(&expected));
    }
}

#[test]
fn many_small_and_odd_last_extents_map_whole() {
    let folder = tempfile::tempdir().unwrap();
    for (n, last) in [1, 19, 4095, 4096, 4097, 65_535, 65_536, 65_537].into_iter().enumerate() {
        let sub = folder.path().join(n.to_string());
        let (extents, placed, whole) = filled(&sub, &[1 << 16, last]);
        assert!(*Mapping::side_by_side(extents.reader(), &placed).unwrap() == whole, "last of {last} bytes");
    }
}

#[test]
fn what_can_not_be_mapped_is_a_clear_error() {
    let folder = tempfile::tempdir().unwrap();
    let (extents, placed, _) = filled(folder.path(), &[65_537, 1 << 16]);
    let refusal = |extents_: &[Extent]| match Mapping::side_by_side(extents.reader(), extents_) {
        Err(error @ Error::Io { .. }) => error.to_string(),
        other => panic!("{other:?}"),
    };
    assert!(refusal(&[]).contains("map no extents"));
    assert!(refusal(&placed).contains("part of a page"));
    let empty = Extent { page: placed[0].page, data_bytes: 0 };
    assert!(refusal(&[empty]).contains("empty extent"));
    // Places a damaged row might name: reading there would be SIGBUS, adding them up an overflow.
    for far in [
        Extent { page: u32::MAX, data_bytes: 1 },
        Extent { page: 1, data_bytes: u64::MAX },
        Extent { page: 1, data_bytes: u64::MAX - (1 << 17) },
        Extent { page: 1, data_bytes: 1 << 46 },
    ] {
        assert!(refusal(&[far]).contains("beyond the end"), "{far:?}");
        assert!(SeparateMappings::new(extents.reader(), &[far]).is_err());
    }
    assert!(SeparateMappings::new(extents.reader(), &[empty]).is_err());
    // No limit to how few.
    assert_eq!(SeparateMappings::new(extents.reader(), &[]).unwrap().slices().len(), 0);
    // A part of a page at the end is fine.
    Mapping::side_by_side(extents.reader(), &[placed[1], placed[0]]).unwrap();
}

#[test]
fn a_dropped_mapping_gives_its_address_space_back() {
    const NAME: &str = "a_dropped_mapping_gives_its_address_space_back";
    let Some(folder) = child_argument() else {
        // Alone, since the environments other tests open take terabytes of address space.
        let folder = tempfile::tempdir().unwrap();
        run_child(NAME, folder.path());
        return;
    };
    let (extents, placed, _) = filled(&folder, &[1 << 16, 1 << 16]);
    let virtual_pages = || -> u64 {
        let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
        statm.split(' ').next().unwrap().parse().unwrap()
    };
    let before = virtual_pages();
    for _ in 0..2000 {
        drop(Mapping::side_by_side(extents.reader(), &placed).unwrap());
    }
    // 2000 mappings of 192 KiB would be 96,000 pages.
    assert!(virtual_pages() - before < 1000);
}
