//! Extents: large values reserved in a transaction, filled in place outside it.
//!
//! ```text
//! page x 64 KiB                     + 64 KiB
//! | 20 B page header | header region | data_bytes of data ...          |
//! '------------ libmdbx page(s) -----^ on a 64 KiB boundary of the file
//! ```
//! Where [`Alignment::LargePage`] says so, the header region lies up to 31 pages further on, so that the data begins on a boundary of
//! 2 MiB. The pages before it are never written, but for the first's page header, and take no disk space.
//!
//! libmdbx keeps the key and gives out contiguous pages; the bytes are written and read through [`DataFile`]s. A value's
//! pages never move while its key stays, so a sealed extent needs no transaction to be read, only a lease.

use crate::{
    data_file::{DataFile, ExtentHeader},
    disk,
    error::{Error, Result},
    fail::fail_point,
    mdbx::{DATA_FILE, ExtentsDb, PAGE_HEADER_BYTES, Placed, Unread, WriteMap, Writing},
    write_log,
};
use std::{
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
};

/// Page size of an extents environment, and the boundary every extent's data begins on.
///
/// 64 KiB is what every system maps at (Windows' granularity, the largest usual page), and libmdbx finds contiguous room in
/// a 20 GiB file under churn in 1.5 ms with such pages, in 124 ms with pages of 4 KiB.
pub const PAGE_BYTES: u64 = 64 << 10;

/// From the start of an extent's header region to its data.
pub const HEADER_REGION_BYTES: u64 = PAGE_BYTES;

/// The size of the large pages a processor can map with one entry of its page tables.
pub(crate) const LARGE_PAGE_BYTES: u64 = 2 << 20;
/// Extents of fewer bytes of data are not moved to a boundary of large pages: they would gain little and lengthen the file most.
pub(crate) const LEAST_ALIGNED_BYTES: u64 = 32 << 20;
/// What an extent takes more for being moved to a boundary.
const SLACK_BYTES: u64 = LARGE_PAGE_BYTES - PAGE_BYTES;

/// How the extents of an environment lie in its data file. Of one environment it never changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Alignment {
    /// Data begins on a boundary of 64 KiB: in the second of its extent's pages.
    Page,
    /// Data of 32 MiB and more begins on a boundary of 2 MiB.
    ///
    /// The kernel keeps a file it reads ahead in pages of that size, and maps one of them with one fault and one entry of a page table, where
    /// offset and address agree modulo 2 MiB. Else it takes a fault for each 64 KiB and an entry for each 4 KiB. Costs up to 2 MiB of the
    /// file's length an extent, and none of the disk.
    LargePage,
}

impl Alignment {
    /// What libmdbx is asked for: page header not counted.
    pub(crate) const fn value_bytes(self, data_bytes: u64) -> u64 {
        HEADER_REGION_BYTES - PAGE_HEADER_BYTES as u64 + data_bytes + self.slack_bytes(data_bytes)
    }

    const fn slack_bytes(self, data_bytes: u64) -> u64 {
        match self {
            Self::LargePage if data_bytes >= LEAST_ALIGNED_BYTES => SLACK_BYTES,
            _ => 0,
        }
    }

    /// The extent that has a value of `value_bytes` from the page `first` on; `None` if there is no such extent: moved to a boundary, data
    /// in a value of a size that no reservation has would reach beyond it, into a neighbour.
    pub(crate) fn extent(self, first: u32, value_bytes: u64) -> Option<Extent> {
        let bytes = value_bytes.checked_sub(HEADER_REGION_BYTES - PAGE_HEADER_BYTES as u64)?;
        let data_bytes = match bytes.checked_sub(SLACK_BYTES) {
            Some(data_bytes) if self.slack_bytes(data_bytes) > 0 => data_bytes,
            _ => bytes,
        };
        let unmoved = Extent { page: first, data_bytes };
        let moved_bytes = match self.slack_bytes(data_bytes) {
            0 => 0,
            _ => unmoved.data_offset().next_multiple_of(LARGE_PAGE_BYTES) - unmoved.data_offset(),
        };
        let page = first.checked_add((moved_bytes / PAGE_BYTES) as u32)?;
        (data_bytes > 0 && self.value_bytes(data_bytes) == value_bytes).then_some(Extent { page, ..unmoved })
    }
}

/// Room that must be free on the disk before a transaction that reserves. Reserving 40 GiB dirties 1.6 MiB of libmdbx's own
/// pages; without room for them its mapping would raise SIGBUS.
const RESERVE_HEADROOM_BYTES: u64 = 16 << 20;
/// The same for each extent reserved: libmdbx writes its page header before its space is taken.
const EXTENT_HEADROOM_BYTES: u64 = 4 << 10;
/// The same before a transaction that frees, which must still work on a full disk (the ballast was given up for it).
const FREE_HEADROOM_BYTES: u64 = 4 << 20;

/// What to reserve: one extent.
#[derive(Clone, Debug)]
pub struct ExtentSpec {
    /// Its key; must be new.
    pub key: String,
    /// Bytes of data; at least 1.
    pub data_bytes: u64,
}

/// Where an extent lies. A value: it says nothing of whether the extent still exists; a lease does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Number of the page its header region is.
    pub page: u32,
    /// Bytes of data.
    pub data_bytes: u64,
}

impl Extent {
    /// Where its header region begins in the data file.
    pub const fn page_offset(&self) -> u64 {
        self.page as u64 * PAGE_BYTES
    }

    /// Where its data begins in the data file: a multiple of 64 KiB.
    pub const fn data_offset(&self) -> u64 {
        self.page_offset() + HEADER_REGION_BYTES
    }

    fn from_placed(alignment: Alignment, key: &str, placed: &Placed) -> Result<Self> {
        alignment.extent(placed.page, placed.value_bytes).ok_or_else(|| Error::BadExtent {
            key: key.to_owned(),
            reason: format!("its value has {} bytes, which no extent's has", placed.value_bytes),
        })
    }
}

/// An open environment of extents. Got from [`StorageRegistry::extents`](crate::StorageRegistry::extents).
pub struct Extents {
    db: ExtentsDb,
    table: &'static str,
    alignment: Alignment,
    /// For reads and for checking where libmdbx put things; fills open their own.
    reader: DataFile,
}

impl Extents {
    pub(crate) fn new(db: ExtentsDb, table: &'static str, alignment: Alignment) -> Result<Self> {
        // After a crash libmdbx takes all of it for not synced.
        write_log::committing();
        write_log::committed();
        let reader = DataFile::new(db.open_data_file(false)?, db.folder().to_owned());
        Ok(Self { db, table, alignment, reader })
    }

    pub(crate) fn table(&self) -> &'static str {
        self.table
    }

    pub(crate) fn alignment(&self) -> Alignment {
        self.alignment
    }

    /// The environment's folder.
    pub fn folder(&self) -> &Path {
        self.db.folder()
    }

    /// Where the data file lies, for programs that are told to read extents from it by themselves: see [`Extent::data_offset`].
    ///
    /// It belongs to libmdbx: nobody but this crate writes into it.
    pub fn data_file_path(&self) -> PathBuf {
        self.folder().join(DATA_FILE)
    }

    /// The data file, for reading and mapping.
    pub fn reader(&self) -> &DataFile {
        &self.reader
    }

    /// A new description of the data file to fill extents through.
    ///
    /// Open it before the fill's first write: a write-back error is told once to each description that was open when it
    /// happened, and to none opened later.
    pub fn open_writer(&self) -> Result<DataFile> {
        Ok(DataFile::new(self.db.open_data_file(true)?, self.folder().to_owned()))
    }

    /// Where the extent at `key` lies, if there is one.
    pub fn locate(&self, key: &str) -> Result<Option<Extent>> {
        let txn = self.db.begin_read()?;
        let table = txn.open_table(self.table)?;
        let placed = self.db.locate(&txn, &table, key, PAGE_BYTES as usize)?;
        placed.map(|placed| Extent::from_placed(self.alignment, key, &placed)).transpose()
    }

    /// Begins a write that may reserve. Waits for the one writer's place.
    ///
    /// # Errors
    /// [`Error::NoSpace`] with less than 16 MiB free on the disk.
    pub fn begin_reserve(&self) -> Result<ExtentsWrite<'_>> {
        self.begin_write("reserve extents", RESERVE_HEADROOM_BYTES)
    }

    /// Begins a write that only deletes. Waits for the one writer's place.
    ///
    /// # Errors
    /// [`Error::NoSpace`] with less than 4 MiB free on the disk: give up the ballast first.
    pub fn begin_free(&self) -> Result<ExtentsWrite<'_>> {
        self.begin_write("free extents", FREE_HEADROOM_BYTES)
    }

    /// libmdbx's own check of the environment: every page accounted for, trees sound. As of one snapshot, beside writers; the caller has no
    /// transaction open.
    ///
    /// # Errors
    /// [`Error::BadEnvironment`] with what was found.
    pub fn check_structure(&self) -> Result<()> {
        self.db.check_structure()
    }

    /// Makes every reservation and deletion committed so far durable.
    ///
    /// Cost: writes back the whole file's dirty data, fills in progress included. It does not make in-place data durable when no
    /// transaction is pending: that is [`DataFile::sync`]'s promise.
    pub fn sync(&self) -> Result<()> {
        write_log::synced(true, || self.db.sync())
    }

    fn begin_write(&self, action: &'static str, headroom_bytes: u64) -> Result<ExtentsWrite<'_>> {
        self.db.leave_earlier_boots()?;
        let txn = self.db.begin_write()?;
        // Asked with the writer's place held, so that no other writer takes the room in between.
        disk::check_room(self.folder(), action, headroom_bytes)?;
        self.db.fill_spare()?;
        fail_point("extents.write_begun");
        Ok(ExtentsWrite { txn, extents: self, failed: AtomicBool::new(false) })
    }
}

#[cfg(feature = "fail-points")]
impl Drop for Extents {
    fn drop(&mut self) {
        // libmdbx syncs when it closes. Told before, and not after: what then is taken to be durable may not be, which finds less, and is never wrong.
        let _ = write_log::synced(true, || Ok::<_, Error>(()));
    }
}

/// A write transaction over [`Extents`]; dropped without [`commit`](Self::commit), it changes nothing.
pub struct ExtentsWrite<'a> {
    txn: Writing<'a, WriteMap>,
    extents: &'a Extents,
    /// Set by a reservation that failed, whose extents have no disk space any more, and by a deletion the disk had no room for.
    failed: AtomicBool,
}

impl ExtentsWrite<'_> {
    /// Reserves one extent for each of `specs`, in order, each with the header of its `owner` and an empty journal, and takes
    /// their disk space.
    ///
    /// The data of a reserved extent is whatever its pages held before. On an error the disk space taken is given back, and
    /// the transaction can't be committed any more.
    ///
    /// # Errors
    /// [`Error::NoSpace`] if the disk has no room for all of them; [`Error::BadExtent`] if a key is taken, an extent would have
    /// no bytes or more blocks than its journal, or libmdbx put a value where the file does not show it.
    pub fn reserve(&self, writer: &DataFile, owner: u64, block_bytes: u32, specs: &[ExtentSpec]) -> Result<Vec<Extent>> {
        let mut extents = Vec::with_capacity(specs.len());
        let result = self.reserve_all(writer, owner, block_bytes, specs, &mut extents);
        if let Err(error) = result {
            self.failed.store(true, Ordering::Relaxed);
            // Still ours while the transaction lasts; afterwards anybody may reuse these pages.
            for extent in &extents {
                if let Err(error) = writer.punch(extent) {
                    tracing::warn!(%error, "the space of a reservation that failed was not given back");
                }
            }
            return Err(error);
        }
        Ok(extents)
    }

    fn reserve_all(
        &self,
        writer: &DataFile,
        owner: u64,
        block_bytes: u32,
        specs: &[ExtentSpec],
        extents: &mut Vec<Extent>,
    ) -> Result<()> {
        let &Extents { ref db, alignment, .. } = self.extents;
        let table = self.txn.open_table(self.extents.table)?;
        let header = |index: usize, data_bytes| ExtentHeader { owner, index: index as u32, data_bytes, block_bytes };
        for (index, ExtentSpec { key, data_bytes }) in specs.iter().enumerate() {
            if let Err(reason) = header(index, *data_bytes).check() {
                return Err(Error::BadExtent { key: key.clone(), reason });
            }
        }
        let headroom_bytes = RESERVE_HEADROOM_BYTES + specs.len() as u64 * EXTENT_HEADROOM_BYTES;
        disk::check_room(self.extents.folder(), "reserve extents", headroom_bytes)?;
        fail_point("reserve.room_checked");
        for ExtentSpec { key, data_bytes } in specs {
            let value_bytes = alignment.value_bytes(*data_bytes);
            let placed = db.reserve(&self.txn, &table, key, value_bytes as usize)?;
            let placed =
                placed.ok_or_else(|| Error::BadExtent { key: key.clone(), reason: "its key is taken by another".to_owned() })?;
            // Another program took the room since it was asked for.
            if db.was_full() {
                return Err(disk::no_space(self.extents.folder(), "reserve extents", headroom_bytes));
            }
            let extent = Extent::from_placed(alignment, key, &placed)?;
            // The page number was read before the value; that the file shows the same header there proves the place.
            if writer.read_page_header(placed.page)? != placed.page_header {
                return Err(Error::BadExtent {
                    key: key.clone(),
                    reason: format!("page {} of the file is not the page libmdbx wrote", placed.page),
                });
            }
            extents.push(extent);
            fail_point("reserve.put");
        }
        for extent in &*extents {
            writer.allocate(extent)?;
            fail_point("reserve.allocated");
        }
        for (index, extent) in extents.iter().enumerate() {
            writer.write_header(extent, &header(index, extent.data_bytes))?;
            fail_point("reserve.header_written");
        }
        Ok(())
    }

    /// Where the extent at `key` lies, if there is one.
    pub fn locate(&self, key: &str) -> Result<Option<Extent>> {
        let db = &self.extents.db;
        let table = self.txn.open_table(self.extents.table)?;
        let placed = db.locate(&self.txn, &table, key, PAGE_BYTES as usize)?;
        placed.map(|placed| Extent::from_placed(self.extents.alignment, key, &placed)).transpose()
    }

    /// Deletes the extent at `key`; false if there is none. Its pages may be reused at once by the next writer.
    pub fn delete(&self, key: &str) -> Result<bool> {
        let db = &self.extents.db;
        #[cfg(feature = "fail-points")]
        if let Ok(Some(extent)) = self.locate(key) {
            write_log::freed(&extent);
        }
        let table = self.txn.open_table(self.extents.table)?;
        let deleted = self.txn.del(&table, key, None).map_err(|source| db.error("delete an extent", source))?;
        fail_point("extents.deleted");
        if db.is_spare_low() {
            self.failed.store(true, Ordering::Relaxed);
            return Err(disk::no_space(self.extents.folder(), "free extents", FREE_HEADROOM_BYTES));
        }
        Ok(deleted)
    }

    /// Gives the disk space of pages that are nobody's back to the file system: what a reservation took that a crash kept from being committed, or a
    /// power loss undid. The transaction has changed nothing yet, and keeps other writers out meanwhile.
    ///
    /// Pages that a commit not yet [synced](Extents::sync) freed stay: a power loss would bring them back. Does nothing unless
    /// [`can_punch`](crate::can_punch).
    pub fn punch_free(&self, writer: &DataFile) -> Result<()> {
        if !crate::can_punch() {
            return Ok(());
        }
        let free = self.extents.db.free_pages(&self.txn, writer.file_bytes()?.div_ceil(PAGE_BYTES))?;
        for key in self.keys()? {
            let Some(extent) = self.locate(&key)? else { continue };
            let used = u64::from(extent.page)..(extent.data_offset() + extent.data_bytes).div_ceil(PAGE_BYTES);
            if let Some(pages) = free.iter().find(|pages| pages.start < used.end && used.start < pages.end) {
                let reason = format!("its pages {used:?} overlap {pages:?}, which libmdbx says are free");
                return Err(Error::BadExtent { key, reason });
            }
        }
        for pages in free {
            writer.punch_range(pages.start * PAGE_BYTES..pages.end * PAGE_BYTES)?;
        }
        Ok(())
    }

    /// Every key there is, in order.
    pub fn keys(&self) -> Result<Vec<String>> {
        let db = &self.extents.db;
        let table = self.txn.open_table(self.extents.table)?;
        let mut cursor = self.txn.cursor(&table).map_err(|source| db.error("open a cursor", source))?;
        cursor
            .iter_start::<std::borrow::Cow<'_, [u8]>, Unread>()
            .map(|entry| {
                let (key, _) = entry.map_err(|source| db.error("read the next key", source))?;
                String::from_utf8(key.into_owned()).map_err(|error| Error::BadExtent {
                    key: String::from_utf8_lossy(error.as_bytes()).into_owned(),
                    reason: "its key is not text".to_owned(),
                })
            })
            .collect()
    }

    /// Makes the changes visible to every process. Durable only after [`Extents::sync`].
    ///
    /// # Errors
    /// [`Error::Engine`] if an operation of the transaction had failed: nothing is changed then.
    pub fn commit(self) -> Result<()> {
        if self.failed.load(Ordering::Relaxed) {
            return Err(Error::Engine {
                action: "commit",
                environment: self.extents.folder().to_owned(),
                source: "an operation of the transaction had failed, so it was rolled back".into(),
            });
        }
        fail_point("extents.ready_to_commit");
        write_log::committing();
        self.txn.commit()?;
        write_log::committed();
        fail_point("extents.committed");
        if self.extents.db.was_full() {
            tracing::warn!(folder = %self.extents.folder().display(), "the disk was full: a commit took the room kept back for that");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_size_of_a_value_tells_the_size_of_its_data_and_both_alignments_keep_within_it() {
        let pages = [0, 1, 5, 30, 31, 32, 1601, u32::MAX - 100_000];
        let sizes = [0, 1, SLACK_BYTES, PAGE_BYTES, 100 << 20, (2 << 30) - (4 << 20)];
        let around = |size: u64| [size, size + 1, size - 1];
        let edges = [LEAST_ALIGNED_BYTES, LEAST_ALIGNED_BYTES - SLACK_BYTES, LEAST_ALIGNED_BYTES + SLACK_BYTES].map(around);
        for alignment in [Alignment::Page, Alignment::LargePage] {
            for data_bytes in sizes.into_iter().chain(edges.into_iter().flatten()) {
                for first in pages {
                    let value_bytes = alignment.value_bytes(data_bytes);
                    let Some(extent) = alignment.extent(first, value_bytes) else {
                        assert_eq!(data_bytes, 0);
                        continue;
                    };
                    assert_eq!(extent.data_bytes, data_bytes, "{alignment:?}");
                    let value_end = u64::from(first) * PAGE_BYTES + PAGE_HEADER_BYTES as u64 + value_bytes;
                    assert!(extent.page >= first && extent.data_offset() + data_bytes <= value_end, "{alignment:?} {data_bytes}");
                    let is_moved = alignment == Alignment::LargePage && data_bytes >= LEAST_ALIGNED_BYTES;
                    assert!(if is_moved { extent.data_offset() % LARGE_PAGE_BYTES == 0 } else { extent.page == first });
                }
            }
        }
    }
}
