//! The registry: one opening of each environment in a process, however many ask and whenever they let go.

mod common;

use common::*;
use std::{
    fs,
    os::unix::fs::symlink,
    path::Path,
    sync::{Arc, Barrier},
    thread,
    time::Duration,
};
use storage::*;

#[test]
fn two_registries_share_one_environment_however_its_folder_is_spelled() {
    let folder = tempfile::tempdir().unwrap();
    let real = folder.path().join("real");
    let first = open_extents(&real);
    symlink(&real, folder.path().join("link")).unwrap();
    for spelling in ["real", "./real/../real", "link"] {
        let again = open_extents(&folder.path().join(spelling));
        assert!(Arc::ptr_eq(&first, &again), "{spelling}");
    }
    let other = open_extents(&folder.path().join("other"));
    assert!(!Arc::ptr_eq(&first, &other));
}

#[test]
fn eight_threads_that_open_at_once_get_one_environment() {
    for _ in 0..20 {
        let folder = tempfile::tempdir().unwrap();
        let barrier = Barrier::new(8);
        let opened: Vec<_> = thread::scope(|scope| {
            let threads: Vec<_> = (0..8)
                .map(|_| {
                    scope.spawn(|| {
                        barrier.wait();
                        open_extents(folder.path())
                    })
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert!(opened.iter().all(|extents| Arc::ptr_eq(extents, &opened[0])));
    }
}

#[test]
fn an_environment_dropped_on_one_thread_opens_on_another_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_owned();
    within(Duration::from_secs(60), move || {
        for round in 0..200 {
            let barrier = Barrier::new(3);
            let extents = open_extents(&path);
            let records = StorageRegistry::new(&path).records(&path.join("records"), &["t"]).unwrap();
            thread::scope(|scope| {
                scope.spawn(|| {
                    barrier.wait();
                    drop((extents, records));
                });
                for _ in 0..2 {
                    scope.spawn(|| {
                        barrier.wait();
                        let extents = open_extents(&path);
                        assert_eq!(extents.locate("none").unwrap(), None);
                        let records = StorageRegistry::new(&path).records(&path.join("records"), &["t"]).unwrap();
                        let txn = records.begin_write().unwrap();
                        txn.put_bytes(&Table::new("t"), "round", &[round as u8]).unwrap();
                        txn.commit().unwrap();
                    });
                }
            });
        }
    });
}

#[test]
fn an_environment_open_as_one_kind_is_refused_as_another() {
    let folder = tempfile::tempdir().unwrap();
    let registry = StorageRegistry::new(folder.path());
    let extents = open_extents(folder.path());
    assert!(matches!(registry.records(folder.path(), &["t"]), Err(Error::Engine { .. })));
    assert!(matches!(registry.extents(folder.path(), "another table", storage::Alignment::LargePage), Err(Error::Engine { .. })));
    assert!(matches!(registry.extents(folder.path(), TABLE, storage::Alignment::Page), Err(Error::Engine { .. })));
    // The refusals let go of what they found.
    drop(extents);
    // Nor does it open as the other kind when closed: every place in it would be computed wrongly.
    assert!(matches!(registry.records(folder.path(), &["t"]), Err(Error::Engine { .. })));
    open_extents(folder.path()).locate("none").unwrap();
    let records = registry.records(&registry.folder("records"), &["t"]).unwrap();
    drop(records);
    assert!(matches!(
        registry.extents(&registry.folder("records"), TABLE, storage::Alignment::LargePage),
        Err(Error::Engine { .. })
    ));
}

#[test]
fn what_is_not_an_environment_is_a_clear_error_and_left_as_it_is() {
    for (name, bytes) in [
        ("garbage", pattern(3, 300_000)),
        ("short", b"not a database".to_vec()),
        ("zeros", vec![0; 1 << 20]),
        ("ones", vec![0xFF; 1 << 20]),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("mdbx.dat");
        fs::write(&data, &bytes).unwrap();
        let registry = StorageRegistry::new(folder.path());
        for _ in 0..2 {
            let extents = registry.extents(folder.path(), TABLE, storage::Alignment::LargePage);
            assert!(matches!(extents, Err(Error::BadEnvironment { .. } | Error::Io { .. })), "{name}: {:?}", extents.map(drop));
            let records = registry.records(folder.path(), &["t"]);
            assert!(matches!(records, Err(Error::BadEnvironment { .. } | Error::Io { .. })), "{name}: {:?}", records.map(drop));
        }
        assert!(fs::read(&data).unwrap() == bytes, "{name} was changed");
    }
}

#[test]
fn a_data_file_cut_short_is_a_clear_error() {
    let folder = tempfile::tempdir().unwrap();
    let extents = open_extents(folder.path());
    reserve(&extents, 1, "a", &[1 << 20]).unwrap();
    extents.sync().unwrap();
    drop(extents);
    let data = folder.path().join("mdbx.dat");
    for bytes in [3 << 16, 1 << 17, 1 << 16, 5000, 100] {
        fs::File::options().write(true).open(&data).unwrap().set_len(bytes).unwrap();
        let result = StorageRegistry::new(folder.path()).extents(folder.path(), TABLE, storage::Alignment::LargePage);
        assert!(result.is_err(), "cut to {bytes} bytes");
    }
}

#[test]
fn a_file_in_the_folders_place_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file");
    fs::write(&path, "x").unwrap();
    let result = StorageRegistry::new(folder.path()).extents(&path, TABLE, storage::Alignment::LargePage);
    assert!(matches!(result, Err(Error::NotAFolder { .. })));
}

#[test]
fn a_folder_deleted_and_made_anew_is_another_environment() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("extents");
    let old = open_extents(&path);
    reserve(&old, 1, "a", &[1 << 20]).unwrap();
    // The file system may give the new folder the number of the old one.
    fs::remove_dir_all(&path).unwrap();
    let new = open_extents(&path);
    assert_eq!(new.locate("a:0").unwrap(), None);
    reserve(&new, 2, "b", &[1 << 20]).unwrap();
    assert!(old.locate("a:0").unwrap().is_some());
    assert_eq!(old.locate("b:0").unwrap(), None);
}

/// Runs in a mount namespace of its own.
fn check_read_only(folder: &Path) {
    use nix::mount::{MsFlags, mount};
    let populated = folder.join("populated");
    open_extents(&populated.join("extents"));
    StorageRegistry::new(folder).records(&populated.join("records"), &["t"]).unwrap();
    drop(LeaseFile::open(populated.join("leases")).unwrap());
    fs::create_dir(folder.join("empty")).unwrap();
    for name in ["empty", "populated"] {
        let path = folder.join(name);
        mount(Some(&path), &path, None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
        let read_only = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
        mount(None::<&str>, &path, None::<&str>, read_only, None::<&str>).unwrap();
        let registry = StorageRegistry::new(&path);
        let extents = registry.extents(&path.join("extents"), TABLE, storage::Alignment::LargePage);
        assert!(matches!(extents, Err(Error::ReadOnly { .. })), "{name}: {:?}", extents.map(drop));
        let records = registry.records(&path.join("records"), &["t"]);
        assert!(matches!(records, Err(Error::ReadOnly { .. })), "{name}: {:?}", records.map(drop));
        assert!(matches!(LeaseFile::open(path.join("leases")), Err(Error::ReadOnly { .. })));
        assert!(matches!(open_folder(&path.join("new")), Err(Error::ReadOnly { .. })));
    }
}

#[test]
fn a_read_only_folder_is_named_as_such() {
    const NAME: &str = "a_read_only_folder_is_named_as_such";
    if let Some(folder) = child_argument() {
        return check_read_only(&folder);
    }
    let folder = tempfile::tempdir().unwrap();
    run_in_mount_namespace(NAME, folder.path());
}
