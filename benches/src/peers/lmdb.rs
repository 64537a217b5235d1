//! LMDB, by heed.

use super::{MAX_BYTES, ValueStore};
use crate::{mapped, report::Result};
use heed::{
    CommitOrAbort, Database, Env,
    byteorder::BigEndian,
    types::{Bytes, U64},
};
use std::path::Path;

pub(super) struct Lmdb {
    env: Env,
    values: Database<'static, U64<BigEndian>, Bytes>,
}

impl Lmdb {
    pub(super) fn open(folder: &Path) -> Result<Self> {
        let env = mapped::open_lmdb(folder, MAX_BYTES)?;
        let txn = env.write_txn()?;
        let values = env.create_databases_and_commit(txn, |opener, txn| {
            opener.create_database(txn, None).map(CommitOrAbort::<_, ()>::Commit)
        })?;
        Ok(Self { values: values.unwrap_commit(), env })
    }
}

impl ValueStore for Lmdb {
    fn put(&self, key: u64, value: &[u8]) -> Result<()> {
        let mut txn = self.env.write_txn()?;
        self.values.put(&mut txn, &key, value)?;
        Ok(txn.commit()?)
    }

    fn read(&self, keys: &[u64], each: &mut dyn FnMut(&[u8])) -> Result<()> {
        let txn = self.env.read_txn()?;
        for key in keys {
            each(self.values.get(&txn, key)?.ok_or("a value is missing")?);
        }
        Ok(())
    }

    fn delete(&self, key: u64) -> Result<()> {
        let mut txn = self.env.write_txn()?;
        self.values.delete(&mut txn, &key)?;
        Ok(txn.commit()?)
    }
}
