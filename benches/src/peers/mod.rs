//! Embedded databases used the obvious way: one `put` of a whole value, one durable transaction each, default options.

mod libmdbx;
mod lmdb;
mod redb;

use crate::report::Result;
use std::{fs, path::Path};

/// Most bytes a peer's file may have, where it has to be told; address space, no memory.
const MAX_BYTES: usize = 64 << 30;

/// A database of large values.
pub(crate) trait ValueStore {
    /// Puts `value` at `key`, durably.
    fn put(&self, key: u64, value: &[u8]) -> Result<()>;

    /// Shows `each` the values at `keys`, in order, in one read transaction, without a copy of ours.
    fn read(&self, keys: &[u64], each: &mut dyn FnMut(&[u8])) -> Result<()>;

    /// Deletes what is at `key`, durably.
    fn delete(&self, key: u64) -> Result<()>;
}

/// The peers' names.
pub(crate) const NAMES: [&str; 3] = ["lmdb", "redb", "libmdbx"];

/// Opens the peer called `name` in `folder`, creating it where missing.
pub(crate) fn open(name: &str, folder: &Path) -> Result<Box<dyn ValueStore>> {
    fs::create_dir_all(folder)?;
    Ok(match name {
        "lmdb" => Box::new(lmdb::Lmdb::open(folder)?),
        "redb" => Box::new(redb::Redb::open(folder)?),
        "libmdbx" => Box::new(libmdbx::Libmdbx::open(folder)?),
        _ => return Err(format!("there is no peer {name}: {}", NAMES.join(", ")).into()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_peer_gives_back_what_was_put_also_when_opened_again() {
        for name in NAMES {
            let folder = tempfile::tempdir().unwrap();
            let values: Vec<Vec<u8>> = (0..3_u8).map(|n| vec![n; 70_000 + usize::from(n)]).collect();
            let store = open(name, folder.path()).unwrap();
            for (key, value) in values.iter().enumerate() {
                store.put(key as u64, value).unwrap();
            }
            store.delete(1).unwrap();
            drop(store);
            let store = open(name, folder.path()).unwrap();
            let mut found = Vec::new();
            store.read(&[2, 0], &mut |value| found.push(value.to_vec())).unwrap();
            assert_eq!(found, [&values[2][..], &values[0]], "{name}");
            assert!(store.read(&[1], &mut |_| ()).is_err(), "{name}: it was deleted");
        }
        assert!(open("nobody", tempfile::tempdir().unwrap().path()).is_err());
    }
}
