//! libmdbx, as its README shows it: not as the storage crate uses it.

use super::{MAX_BYTES, ValueStore};
use crate::report::Result;
use libmdbx::{Database, DatabaseOptions, Mode, NoWriteMap, ReadWriteOptions, WriteFlags};
use std::{borrow::Cow, path::Path};

pub(super) struct Libmdbx {
    db: Database<NoWriteMap>,
}

impl Libmdbx {
    pub(super) fn open(folder: &Path) -> Result<Self> {
        // The one option nobody gets by without.
        let geometry = ReadWriteOptions { max_size: Some(MAX_BYTES as isize), ..Default::default() };
        let options = DatabaseOptions { mode: Mode::ReadWrite(geometry), ..Default::default() };
        Ok(Self { db: Database::open_with_options(folder, options)? })
    }
}

impl ValueStore for Libmdbx {
    fn put(&self, key: u64, value: &[u8]) -> Result<()> {
        let txn = self.db.begin_rw_txn()?;
        let table = txn.create_table(None, Default::default())?;
        txn.put(&table, key.to_be_bytes(), value, WriteFlags::UPSERT)?;
        txn.commit()?;
        Ok(())
    }

    fn read(&self, keys: &[u64], each: &mut dyn FnMut(&[u8])) -> Result<()> {
        let txn = self.db.begin_ro_txn()?;
        let table = txn.open_table(None)?;
        for key in keys {
            let value: Cow<'_, [u8]> = txn.get(&table, key.to_be_bytes())?.ok_or("a value is missing")?;
            each(&value);
        }
        Ok(())
    }

    fn delete(&self, key: u64) -> Result<()> {
        let txn = self.db.begin_rw_txn()?;
        let table = txn.open_table(None)?;
        txn.del(&table, key.to_be_bytes(), None)?;
        txn.commit()?;
        Ok(())
    }
}
