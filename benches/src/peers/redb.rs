//! redb.

use super::ValueStore;
use crate::report::Result;
use redb::{Database, ReadableDatabase, TableDefinition};
use std::path::Path;

const VALUES: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("values");

pub(super) struct Redb {
    db: Database,
}

impl Redb {
    pub(super) fn open(folder: &Path) -> Result<Self> {
        Ok(Self { db: Database::create(folder.join("values.redb"))? })
    }
}

impl ValueStore for Redb {
    fn put(&self, key: u64, value: &[u8]) -> Result<()> {
        let txn = self.db.begin_write()?;
        txn.open_table(VALUES)?.insert(key, value)?;
        Ok(txn.commit()?)
    }

    fn read(&self, keys: &[u64], each: &mut dyn FnMut(&[u8])) -> Result<()> {
        let table = self.db.begin_read()?.open_table(VALUES)?;
        for key in keys {
            each(table.get(key)?.ok_or("a value is missing")?.value());
        }
        Ok(())
    }

    fn delete(&self, key: u64) -> Result<()> {
        let txn = self.db.begin_write()?;
        txn.open_table(VALUES)?.remove(key)?;
        Ok(txn.commit()?)
    }
}
