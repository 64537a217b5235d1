//! An environment of small typed records: durable transactions over named tables.

use crate::{
    codec::Record,
    error::{Error, Result},
    fail::fail_point,
    mdbx::{Cursor, EngineError, NoWriteMap, Reading, RecordsDb, WriteFlags, Writing},
};
use std::{borrow::Cow, marker::PhantomData, path::Path};

/// A named table of records of type `R`, keys being text.
///
/// A constant of the program; nothing is opened by making one. The environment must have been opened with its name.
///
/// `Table<[u8]>` holds plain bytes.
pub struct Table<R: ?Sized> {
    name: &'static str,
    record: PhantomData<fn(&R)>,
}

impl<R: ?Sized> Table<R> {
    /// The table called `name`.
    pub const fn new(name: &'static str) -> Self {
        Self { name, record: PhantomData }
    }

    /// Its name on disk.
    pub const fn name(&self) -> &'static str {
        self.name
    }
}

/// An open environment of records. Got from [`StorageRegistry::records`](crate::StorageRegistry::records).
pub struct Records {
    db: RecordsDb,
}

impl Records {
    pub(crate) fn new(db: RecordsDb) -> Self {
        Self { db }
    }

    pub(crate) fn create_tables(&self, tables: &[&str]) -> Result<()> {
        self.db.create_tables(tables)
    }

    /// libmdbx's own check of the environment: every page accounted for, trees sound. As of one snapshot, beside writers; the caller has no
    /// transaction open.
    ///
    /// Cost: a look at every page; of those that are not in memory, one read of the data file from front to back.
    ///
    /// # Errors
    /// [`Error::BadEnvironment`] with what was found.
    pub fn check_structure(&self) -> Result<()> {
        self.db.read_ahead();
        self.db.check_structure()
    }

    /// The environment's folder.
    pub fn folder(&self) -> &Path {
        self.db.folder()
    }

    /// Begins a read: a snapshot that stays as it is until dropped.
    ///
    /// Cost: a reader slot, no lock. Keep it short: pages freed since are not recycled while it lives.
    pub fn begin_read(&self) -> Result<ReadTxn<'_>> {
        Ok(ReadTxn { txn: self.db.begin_read()?, db: &self.db })
    }

    /// Begins a write; dropped without [`WriteTxn::commit`], it changes nothing.
    ///
    /// Waits for the one writer's place, which another thread or process may hold.
    pub fn begin_write(&self) -> Result<WriteTxn<'_>> {
        Ok(WriteTxn { txn: self.db.begin_write()?, db: &self.db })
    }
}

/// A read transaction over [`Records`].
pub struct ReadTxn<'a> {
    txn: Reading<'a, NoWriteMap>,
    db: &'a RecordsDb,
}

/// A write transaction over [`Records`]. It sees its own writes.
pub struct WriteTxn<'a> {
    txn: Writing<'a, NoWriteMap>,
    db: &'a RecordsDb,
}

macro_rules! reading {
    ($txn:ty) => {
        impl $txn {
            /// The record at `key`, if there is one.
            ///
            /// # Errors
            /// [`Error::BadRecord`] if the stored bytes are damaged or of another type.
            pub fn get<R: Record>(&self, table: &Table<R>, key: &str) -> Result<Option<R>> {
                match self.get_bytes_of(table.name, key)? {
                    None => Ok(None),
                    Some(bytes) => decode(table, key, &bytes).map(Some),
                }
            }

            /// The bytes at `key` of a table of plain bytes, if there are any.
            pub fn get_bytes(&self, table: &Table<[u8]>, key: &str) -> Result<Option<Vec<u8>>> {
                Ok(self.get_bytes_of(table.name, key)?.map(Cow::into_owned))
            }

            /// Calls `each` with every record whose key begins with `prefix`, in key order.
            ///
            /// # Errors
            /// The first error of `each`, or [`Error::BadRecord`] of a record that can't be read.
            pub fn scan<R: Record, E: From<Error>>(
                &self,
                table: &Table<R>,
                prefix: &str,
                mut each: impl FnMut(&str, R) -> Result<(), E>,
            ) -> Result<(), E> {
                self.scan_all(table, prefix, |key, record| each(key, record?))
            }

            /// As [`scan`](Self::scan), but a record that can't be read is handed to `each` as what is wrong with it.
            ///
            /// # Errors
            /// The first error of `each`.
            pub fn scan_all<R: Record, E: From<Error>>(
                &self,
                table: &Table<R>,
                prefix: &str,
                mut each: impl FnMut(&str, Result<R>) -> Result<(), E>,
            ) -> Result<(), E> {
                let handle = self.txn.open_table(table.name)?;
                let mut cursor: Cursor<'_, _> =
                    self.txn.cursor(&handle).map_err(|source| self.db.error("open a cursor", source))?;
                for entry in cursor.iter_from::<Cow<'_, [u8]>, Cow<'_, [u8]>>(prefix.as_bytes()) {
                    let (key, value) = entry.map_err(|source| self.db.error("read the next record", source))?;
                    if !key.starts_with(prefix.as_bytes()) {
                        break;
                    }
                    let key = String::from_utf8_lossy(&key);
                    each(&key, decode(table, &key, &value))?;
                }
                Ok(())
            }

            /// As [`scan`](Self::scan), but passes over records that can't be read, and gives what is wrong with each.
            pub fn scan_sound<R: Record>(
                &self,
                table: &Table<R>,
                prefix: &str,
                mut each: impl FnMut(&str, R),
            ) -> Result<Vec<Error>> {
                let mut damaged = Vec::new();
                self.scan_all(table, prefix, |key, record| {
                    match record {
                        Ok(record) => each(key, record),
                        Err(error) => damaged.push(error),
                    }
                    Ok::<_, Error>(())
                })?;
                Ok(damaged)
            }

            /// Every key that begins with `prefix`, with its plain bytes, in key order.
            pub fn scan_bytes(&self, table: &Table<[u8]>, prefix: &str) -> Result<Vec<(String, Vec<u8>)>> {
                let mut found = Vec::new();
                self.each_of(table.name, prefix, |key, value| found.push((key.into_owned(), value.into_owned())))?;
                Ok(found)
            }

            /// Every key that begins with `prefix`, in key order, and how many bytes its value has; values are not read.
            pub fn scan_sizes(&self, table: &Table<[u8]>, prefix: &str) -> Result<Vec<(String, usize)>> {
                let mut found = Vec::new();
                self.each_of(table.name, prefix, |key, value| found.push((key.into_owned(), value.len())))?;
                Ok(found)
            }

            fn each_of(
                &self,
                table: &'static str,
                prefix: &str,
                mut each: impl FnMut(Cow<'_, str>, Cow<'_, [u8]>),
            ) -> Result<()> {
                let handle = self.txn.open_table(table)?;
                let mut cursor = self.txn.cursor(&handle).map_err(|source| self.db.error("open a cursor", source))?;
                for entry in cursor.iter_from::<Cow<'_, [u8]>, Cow<'_, [u8]>>(prefix.as_bytes()) {
                    let (key, value) = entry.map_err(|source| self.db.error("read the next record", source))?;
                    if !key.starts_with(prefix.as_bytes()) {
                        break;
                    }
                    each(String::from_utf8_lossy(&key), value);
                }
                Ok(())
            }

            fn get_bytes_of(&self, table: &'static str, key: &str) -> Result<Option<Cow<'_, [u8]>>> {
                let handle = self.txn.open_table(table)?;
                self.txn.get(&handle, key).map_err(|source| self.db.error("read a record", source))
            }
        }
    };
}

reading!(ReadTxn<'_>);
reading!(WriteTxn<'_>);

impl WriteTxn<'_> {
    /// Puts `record` at `key`, replacing what is there.
    pub fn put<R: Record>(&self, table: &Table<R>, key: &str, record: &R) -> Result<()> {
        let bytes = record.encode().map_err(|reason| Error::BadRecord { table: table.name, key: key.to_owned(), reason })?;
        self.put_bytes_of(table.name, key, &bytes, WriteFlags::UPSERT).map(drop)
    }

    /// Puts `bytes` at `key` of a table of plain bytes, replacing what is there.
    pub fn put_bytes(&self, table: &Table<[u8]>, key: &str, bytes: &[u8]) -> Result<()> {
        self.put_bytes_of(table.name, key, bytes, WriteFlags::UPSERT).map(drop)
    }

    /// Puts `bytes` at `key` of a table of plain bytes; false, and nothing changed, if the key is taken.
    pub fn insert_bytes(&self, table: &Table<[u8]>, key: &str, bytes: &[u8]) -> Result<bool> {
        self.put_bytes_of(table.name, key, bytes, WriteFlags::NO_OVERWRITE)
    }

    /// Deletes what is at `key`; false if there was nothing.
    pub fn delete<R: ?Sized>(&self, table: &Table<R>, key: &str) -> Result<bool> {
        let handle = self.txn.open_table(table.name)?;
        self.txn.del(&handle, key, None).map_err(|source| self.db.error("delete a record", source))
    }

    /// Makes all of it visible at once, and durable before this returns.
    pub fn commit(self) -> Result<()> {
        fail_point("records.ready_to_commit");
        self.txn.commit()?;
        fail_point("records.committed");
        Ok(())
    }

    fn put_bytes_of(&self, table: &'static str, key: &str, bytes: &[u8], flags: WriteFlags) -> Result<bool> {
        let handle = self.txn.open_table(table)?;
        match self.txn.put(&handle, key, bytes, flags) {
            Ok(()) => Ok(true),
            Err(EngineError::KeyExist) => Ok(false),
            Err(source) => Err(self.db.error("write a record", source)),
        }
    }
}

fn decode<R: Record>(table: &Table<R>, key: &str, bytes: &[u8]) -> Result<R> {
    R::decode(bytes).map_err(|reason| Error::BadRecord { table: table.name, key: key.to_owned(), reason })
}
