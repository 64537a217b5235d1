//! The one place that names the binding: opening environments, and what the safe wrapper does not offer.
//!
//! No libmdbx type leaves the crate; most do not leave this folder.
#![allow(unsafe_code)]

mod check;
mod free_pages;
pub(crate) mod meta;
mod spare;

use crate::{
    disk,
    error::{Error, Result},
    fail::fail_point,
    file_lock::FileLock,
};
use libmdbx::{
    Database, DatabaseKind, DatabaseOptions, Decodable, Mode, PageSize, RO, RW, ReadWriteOptions, SyncMode, TableFlags,
    Transaction, TransactionKind,
};
use std::{
    ffi::{CStr, c_int, c_void},
    fs::{self, File},
    io,
    mem::{self, ManuallyDrop},
    ops::Deref,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

pub use spare::SPARE_BYTES;
use spare::Spare;

pub(crate) use libmdbx::{Cursor, Error as EngineError, NoWriteMap, Table, WriteFlags, WriteMap};

/// Bytes of libmdbx's page header, which a large value follows immediately (`PAGEHDRSZ`, mdbx-internals.h).
pub(crate) const PAGE_HEADER_BYTES: usize = 20;
/// libmdbx's name for the data file of an environment that is a folder.
pub(crate) const DATA_FILE: &str = "mdbx.dat";
/// Upper bound of an environment's size. One constant, since the first opener's bound binds all processes.
const MAX_EXTENTS_BYTES: isize = 8 << 40;
const MAX_RECORDS_BYTES: isize = 64 << 30;
const MAX_READERS: u32 = 512;

pub(crate) type ExtentsDb = Env<WriteMap>;
pub(crate) type RecordsDb = Env<NoWriteMap>;
pub(crate) type Reading<'a, K> = Txn<'a, RO, K>;
pub(crate) type Writing<'a, K> = Txn<'a, RW, K>;

/// Room that must be free on the disk before an environment is made: libmdbx may write its first pages through a mapping.
const CREATE_HEADROOM_BYTES: u64 = 16 << 20;
/// The same before tables are made in one that is there.
const TABLES_HEADROOM_BYTES: u64 = 4 << 20;
/// With less than this free, a commit that failed did so for lack of space.
const COMMIT_ROOM_BYTES: u64 = 4 << 20;
/// Mode of what libmdbx would make; [`disk::make_file`] was there before it.
const OWNER_ALONE: u32 = 0o600;
/// Pages of an environment of records.
const RECORDS_PAGE_BYTES: usize = 4 << 10;

/// An open environment, its folder, and the process that opened it.
pub(crate) struct Env<K: DatabaseKind> {
    /// Dropped by `Drop`, in the process that opened it alone.
    db: ManuallyDrop<Database<K>>,
    folder: PathBuf,
    opened_by: u32,
    /// Where libmdbx writes through its mapping: room for a disk that fills up meanwhile.
    spare: Option<Spare>,
    /// Set once libmdbx holds each page it reads against the rules of its kind.
    checks_pages: AtomicBool,
    /// Set once every meta page was found, or made, one of this boot of the system.
    is_of_this_boot: AtomicBool,
}

/// A transaction, which a forked child can neither use nor end: its reader slot, or the writer's place, is the parent's.
pub(crate) struct Txn<'a, M: TransactionKind, K: DatabaseKind> {
    /// Taken by `commit` or dropped by `Drop`, in the process that began it alone.
    txn: ManuallyDrop<Transaction<'a, M, K>>,
    env: &'a Env<K>,
}

impl<'a, M: TransactionKind, K: DatabaseKind> Txn<'a, M, K> {
    /// The handle of the table called `name`. Every use of a transaction begins here.
    pub(crate) fn open_table(&self, name: &str) -> Result<Table<'_>> {
        self.env.check_process()?;
        self.txn.open_table(Some(name)).map_err(|source| self.env.error("open a table", source))
    }

    /// Commits, which ends a reading transaction.
    pub(crate) fn commit(mut self) -> Result<()> {
        self.env.check_process()?;
        let env = self.env;
        // SAFETY: `txn` is not used again: `self` is forgotten, so that `Drop` does not drop it.
        let txn = unsafe { ManuallyDrop::take(&mut self.txn) };
        mem::forget(self);
        match txn.commit_and_rebind_open_dbs() {
            Ok((false, _)) => Ok(()),
            // Not what it says for other calls: "aborted since it should be aborted due to previous errors" (mdbx.h). A
            // commit without changes is false in our builds.
            Ok((true, _)) => Err(Error::Engine {
                action: "commit",
                environment: env.folder.clone(),
                source: "an operation of the transaction had failed, so it was rolled back".into(),
            }),
            // What libmdbx says of a write the disk had no room for all of.
            Err(libmdbx::Error::Io) if !disk::has_room(&env.folder, COMMIT_ROOM_BYTES)? => {
                Err(disk::no_space(&env.folder, "commit", COMMIT_ROOM_BYTES))
            }
            Err(source) => Err(env.error("commit", source)),
        }
    }
}

impl<'a, M: TransactionKind, K: DatabaseKind> Deref for Txn<'a, M, K> {
    type Target = Transaction<'a, M, K>;

    fn deref(&self) -> &Self::Target {
        &self.txn
    }
}

impl<M: TransactionKind, K: DatabaseKind> Drop for Txn<'_, M, K> {
    fn drop(&mut self) {
        // A child would write to a slot that is unmapped there, or wait for a thread that is not there: it leaks it.
        if self.env.check_process().is_ok() {
            // SAFETY: dropped here alone, and nothing uses it afterwards.
            unsafe { ManuallyDrop::drop(&mut self.txn) };
        }
    }
}

/// Where libmdbx put a large value.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Placed {
    pub(crate) page: u32,
    pub(crate) value_bytes: u64,
    /// The header of the value's first page, as libmdbx's own mapping shows it.
    pub(crate) page_header: [u8; PAGE_HEADER_BYTES],
}

/// The span of a value in libmdbx's mapping, taken without copying the value.
struct Span {
    address: usize,
    bytes: usize,
}

impl Decodable<'_> for Span {
    fn decode(value: &[u8]) -> Result<Self, libmdbx::Error> {
        Ok(Self { address: value.as_ptr() as usize, bytes: value.len() })
    }
}

/// A value nobody looks at, so that a cursor need not copy it.
pub(crate) struct Unread;

impl Decodable<'_> for Unread {
    fn decode(_: &[u8]) -> Result<Self, libmdbx::Error> {
        Ok(Self)
    }
}

/// The engine's build options, as it reports them itself.
pub(crate) fn build_options() -> &'static str {
    // SAFETY: mdbx_build is a constant of the library; its strings are NUL-terminated literals that live as long as it does.
    let options = unsafe { CStr::from_ptr(mdbx_sys::mdbx_build.options) };
    options.to_str().unwrap_or("")
}

pub(crate) fn open_records(folder: &Path, tables: &[&str]) -> Result<RecordsDb> {
    let options = DatabaseOptions {
        permissions: Some(OWNER_ALONE),
        max_tables: Some(16),
        max_readers: Some(MAX_READERS),
        no_rdahead: true,
        mode: Mode::ReadWrite(ReadWriteOptions {
            sync_mode: SyncMode::Durable,
            min_size: Some(256 << 10),
            max_size: Some(MAX_RECORDS_BYTES),
            growth_step: Some(1 << 20),
            shrink_threshold: Some(4 << 20),
        }),
        page_size: Some(PageSize::Set(RECORDS_PAGE_BYTES)),
        ..Default::default()
    };
    let env = Env::open(folder, options, RECORDS_PAGE_BYTES)?;
    env.create_tables(tables)?;
    Ok(env)
}

pub(crate) fn open_extents(folder: &Path, table: &str, page_bytes: usize) -> Result<ExtentsDb> {
    if !crate::locks_survive_own_descriptions() {
        return Err(Error::Engine {
            action: "open",
            environment: folder.to_owned(),
            source: "libmdbx was built without OFD locks: closing a file of ours would drop its locks".into(),
        });
    }
    let options = DatabaseOptions {
        permissions: Some(OWNER_ALONE),
        max_tables: Some(4),
        max_readers: Some(MAX_READERS),
        // A cold open would otherwise read ahead through gigabytes of data nobody asked for.
        no_rdahead: true,
        mode: Mode::ReadWrite(ReadWriteOptions {
            // What was reserved need not be durable until something sealed depends on it; `sync` is called before that.
            sync_mode: SyncMode::SafeNoSync,
            min_size: Some(4 << 20),
            max_size: Some(MAX_EXTENTS_BYTES),
            growth_step: Some(64 << 20),
            // A commit that shrinks the file makes it durable first, all dirty in-place data with it: half a second for
            // 2 GiB, with the writer's place held. Where holes give the space back, the file's length costs nothing.
            shrink_threshold: Some(if crate::can_punch() { 0 } else { 128 << 20 }),
        }),
        page_size: Some(PageSize::Set(page_bytes)),
        ..Default::default()
    };
    let mut env = Env::<WriteMap>::open(folder, options, page_bytes)?;
    env.spare = Some(Spare::new(folder, env.data_fd()?));
    env.create_tables(&[table])?;
    // Prefaulting may write a whole reservation once for nothing; an automatic sync in a commit would flush gigabytes of
    // in-place data while holding the writer.
    env.set_option(mdbx_sys::MDBX_opt_prefault_write_enable, 0)?;
    env.set_option(mdbx_sys::MDBX_opt_sync_bytes, u64::from(u32::MAX) << 16)?;
    Ok(env)
}

impl<K: DatabaseKind> Env<K> {
    fn open(folder: &Path, options: DatabaseOptions, page_bytes: usize) -> Result<Self> {
        let opening = |source| open_error("open", folder, source);
        if is_new(folder, page_bytes)? {
            disk::check_room(folder, "create", CREATE_HEADROOM_BYTES)?;
        }
        let db = Database::<K>::open_with_options(folder, options).map_err(opening)?;
        fail_point("environment.opened");
        let env = Self {
            db: ManuallyDrop::new(db),
            folder: folder.to_owned(),
            opened_by: std::process::id(),
            spare: None,
            checks_pages: AtomicBool::new(false),
            is_of_this_boot: AtomicBool::new(false),
        };
        env.check_every_page()?;
        // What the file says prevails over what was asked for; every place in it would be computed wrongly.
        let found = env.db.stat().map_err(opening)?.page_size() as usize;
        if found != page_bytes {
            let source = format!("its pages have {found} bytes, not {page_bytes}: it is an environment of another kind").into();
            return Err(Error::Engine { action: "open", environment: folder.to_owned(), source });
        }
        Ok(env)
    }

    /// Creates the tables that are missing and keeps every handle open, so that later transactions only look it up.
    pub(crate) fn create_tables(&self, tables: &[&str]) -> Result<()> {
        let txn = self.begin_read()?;
        let mut missing = false;
        for table in tables {
            match txn.txn.open_table(Some(table)) {
                Ok(handle) => txn.prime_for_permaopen(handle),
                Err(libmdbx::Error::NotFound) => missing = true,
                Err(source) => return Err(self.error("open a table", source)),
            }
        }
        txn.commit()?;
        if missing {
            let txn = self.begin_write()?;
            disk::check_room(&self.folder, "create tables in", TABLES_HEADROOM_BYTES)?;
            self.fill_spare()?;
            fail_point("open.tables_begun");
            for table in tables {
                let handle =
                    txn.create_table(Some(table), TableFlags::empty()).map_err(|source| self.error("create a table", source))?;
                txn.prime_for_permaopen(handle);
            }
            fail_point("environment.tables_put");
            txn.commit()?;
            fail_point("environment.tables_made");
        }
        Ok(())
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    pub(crate) fn begin_read(&self) -> Result<Reading<'_, K>> {
        self.check_process()?;
        self.check_every_page()?;
        let txn = self.db.begin_ro_txn().map_err(|source| self.error("begin a read", source))?;
        Ok(Txn { txn: ManuallyDrop::new(txn), env: self })
    }

    /// Waits for the writer's place, which another process may hold.
    pub(crate) fn begin_write(&self) -> Result<Writing<'_, K>> {
        self.check_process()?;
        self.check_every_page()?;
        let txn = self.db.begin_rw_txn().map_err(|source| self.error("begin a write", source))?;
        Ok(Txn { txn: ManuallyDrop::new(txn), env: self })
    }

    /// Makes sure that room is kept back for the transaction that was just begun, where libmdbx writes through its mapping.
    ///
    /// # Errors
    /// [`Error::NoSpace`] if the disk has none.
    pub(crate) fn fill_spare(&self) -> Result<()> {
        self.spare.as_ref().map_or(Ok(()), Spare::fill)
    }

    /// Whether the disk was full at any write of the transaction so far: libmdbx went on in the room kept back.
    pub(crate) fn was_full(&self) -> bool {
        self.spare.as_ref().is_some_and(Spare::is_used)
    }

    /// Whether so little of the room kept back is left that even a transaction that frees should be given up.
    pub(crate) fn is_spare_low(&self) -> bool {
        self.spare.as_ref().is_some_and(Spare::is_low)
    }

    /// Makes every committed transaction durable.
    pub(crate) fn sync(&self) -> Result<()> {
        self.check_process()?;
        self.db.sync(true).map(drop).map_err(|source| self.error("sync", source))?;
        fail_point("environment.synced");
        Ok(())
    }

    /// Opens a description of our own of the data file.
    ///
    /// libmdbx's locks hang on its description; a mapping made through it and inherited by a forked child would keep them.
    pub(crate) fn open_data_file(&self, write: bool) -> Result<File> {
        self.check_process()?;
        let path = PathBuf::from(format!("/proc/self/fd/{}", self.data_fd()?));
        File::options().read(true).write(write).open(&path).map_err(|source| Error::Io {
            action: "open the data file of",
            path: self.folder.clone(),
            source,
        })
    }

    /// libmdbx's own descriptor of the data file.
    fn data_fd(&self) -> Result<i32> {
        let mut fd = -1;
        // SAFETY: the environment is open for as long as `self.db` lives; `fd` is a valid place for an int.
        let code = unsafe { mdbx_sys::mdbx_env_get_fd(self.db.ptr().0, &mut fd) };
        self.check(code, "find the data file of")?;
        Ok(fd)
    }

    pub(crate) fn error(&self, action: &'static str, source: libmdbx::Error) -> Error {
        open_error(action, &self.folder, source)
    }

    fn set_option(&self, option: mdbx_sys::MDBX_option_t, value: u64) -> Result<()> {
        // SAFETY: the environment is open for as long as `self.db` lives; both options may be set at any time (mdbx.h).
        let code = unsafe { mdbx_sys::mdbx_env_set_option(self.db.ptr().0, option, value) };
        self.check(code, "set an option of")
    }

    /// Has libmdbx hold each page it reads against the rules of its kind, so that a damaged one is an error: it has no checksums, and
    /// would follow what the page says out of its mapping.
    ///
    /// libmdbx takes the writer's place for that, and waits for it. A reader must not: where it is taken, the next transaction tries again.
    fn check_every_page(&self) -> Result<()> {
        const ACTION: &str = "have the pages checked of";
        if self.checks_pages.load(Ordering::Relaxed) {
            return Ok(());
        }
        let env = self.db.ptr().0;
        // SAFETY: the environment is open for as long as `self.db` lives; this does not wait.
        let code = unsafe { mdbx_sys::mdbx_txn_lock(env, true) };
        if code == mdbx_sys::MDBX_BUSY {
            return Ok(());
        }
        self.check(code, ACTION)?;
        // SAFETY: as above; this flag may be set at any time (mdbx.h), by the holder of the writer's place without waiting.
        let code = unsafe { mdbx_sys::mdbx_env_set_flags(env, mdbx_sys::MDBX_VALIDATION, true) };
        // SAFETY: this thread has just taken the writer's place, and began no transaction.
        let unlocked = unsafe { mdbx_sys::mdbx_txn_unlock(env) };
        self.check(code, ACTION)?;
        self.check(unlocked, ACTION)?;
        self.checks_pages.store(true, Ordering::Relaxed);
        Ok(())
    }

    fn check(&self, code: i32, action: &'static str) -> Result<()> {
        if code == mdbx_sys::MDBX_SUCCESS { Ok(()) } else { Err(self.error(action, libmdbx::Error::from_err_code(code))) }
    }

    /// A forked child must not touch the inherited environment: its lock owner and its writer thread are not here.
    fn check_process(&self) -> Result<()> {
        let this = std::process::id();
        if this == self.opened_by { Ok(()) } else { Err(Error::Forked { opened_by: self.opened_by, this }) }
    }
}

impl<K: DatabaseKind> Drop for Env<K> {
    fn drop(&mut self) {
        // Before its mapping goes, and another may come to lie at the same addresses.
        self.spare = None;
        // In a forked child libmdbx has closed and unmapped its copy already (pthread_atfork): there the rest is leaked.
        if self.check_process().is_ok() {
            // SAFETY: `db` is dropped here alone, and nothing uses it afterwards.
            unsafe { ManuallyDrop::drop(&mut self.db) };
        }
    }
}

impl ExtentsDb {
    /// Makes every meta page one of this boot of the system, by durable commits that change nothing else. To be called before a write.
    ///
    /// Else a write that is killed before its sync costs what was sealed: where the newest commit is of this boot and not synced, libmdbx
    /// takes the end of the pages in use from a synced meta page of an earlier boot, if it reads one after it, and punches all that lies
    /// behind (`dxb_read_header`, `dxb_setup`: MADV_REMOVE). Cost: one call, and three commits after a restart of the system.
    pub(crate) fn leave_earlier_boots(&self) -> Result<()> {
        const ACTION: &str = "renew the first pages of";
        /// As many as there are meta pages; a commit takes the place of the oldest.
        const COMMITS: usize = 3;
        if self.is_of_this_boot.load(Ordering::Relaxed) {
            return Ok(());
        }
        self.check_process()?;
        if self.has_meta_of_another_boot()? {
            let env = self.db.ptr().0;
            // SAFETY: the environment is open for as long as `self.db` lives; this flag may be changed at any time (mdbx.h).
            self.check(unsafe { mdbx_sys::mdbx_env_set_flags(env, mdbx_sys::MDBX_SAFE_NOSYNC, false) }, ACTION)?;
            let renewed = (0..COMMITS).try_for_each(|_| {
                let txn = self.begin_write()?;
                // SAFETY: the transaction is live and used by this thread alone; a null canary leaves the numbers as they are.
                self.check(unsafe { mdbx_sys::mdbx_canary_put(txn.txn().0, std::ptr::null()) }, ACTION)?;
                txn.commit()
            });
            // SAFETY: as above.
            self.check(unsafe { mdbx_sys::mdbx_env_set_flags(env, mdbx_sys::MDBX_SAFE_NOSYNC, true) }, ACTION)?;
            renewed?;
        }
        self.is_of_this_boot.store(true, Ordering::Relaxed);
        Ok(())
    }

    fn has_meta_of_another_boot(&self) -> Result<bool> {
        // SAFETY: numbers, which libmdbx fills in.
        let mut info: mdbx_sys::MDBX_envinfo = unsafe { mem::zeroed() };
        // SAFETY: the environment is open for as long as `self.db` lives; no transaction is asked for; `info` has the size that is given.
        let code = unsafe { mdbx_sys::mdbx_env_info_ex(self.db.ptr().0, std::ptr::null(), &mut info, size_of_val(&info)) };
        self.check(code, "look at the first pages of")?;
        let current = (info.mi_bootid.current.x, info.mi_bootid.current.y);
        // A system that does not tell its boots: there libmdbx goes by what was synced alone.
        Ok(current != (0, 0) && info.mi_bootid.meta.iter().any(|meta| (meta.x, meta.y) != current))
    }

    /// Reserves a new value of `value_bytes` without writing it; `None` if the key is taken.
    ///
    /// The safe wrapper's `put_with` would zero-fill what it reserves, hence the raw call.
    pub(crate) fn reserve(
        &self,
        txn: &Writing<'_, WriteMap>,
        table: &Table<'_>,
        key: &str,
        value_bytes: usize,
    ) -> Result<Option<Placed>> {
        let key_val = mdbx_sys::MDBX_val { iov_base: key.as_ptr().cast_mut().cast(), iov_len: key.len() };
        let mut value = mdbx_sys::MDBX_val { iov_base: std::ptr::null_mut(), iov_len: value_bytes };
        let flags = mdbx_sys::MDBX_RESERVE | mdbx_sys::MDBX_NOOVERWRITE;
        // SAFETY: the transaction is live and used by this thread alone while we borrow it; the key outlives the call; with
        // MDBX_RESERVE libmdbx only fills in where the value lies and reads nothing of it.
        let code = unsafe { mdbx_sys::mdbx_put(txn.txn().0, table.dbi(), &key_val, &mut value, flags) };
        if code == mdbx_sys::MDBX_KEYEXIST {
            return Ok(None);
        }
        // Any other code, positive ones included, means that nothing was reserved.
        self.check(code, "reserve an extent in")?;
        // SAFETY: the put succeeded, so the value is `value_bytes` long, lies in this transaction's map, and, being larger
        // than a page, follows its page's header immediately.
        Ok(Some(unsafe { placed(value.iov_base as usize, value.iov_len) }))
    }

    /// Where the value of `key` lies, if there is one.
    pub(crate) fn locate<M: TransactionKind>(
        &self,
        txn: &Txn<'_, M, WriteMap>,
        table: &Table<'_>,
        key: &str,
        page_bytes: usize,
    ) -> Result<Option<Placed>> {
        let span = txn.get::<Span>(table, key).map_err(|source| self.error("find an extent in", source))?;
        match span {
            None => Ok(None),
            Some(span) if span.bytes <= page_bytes - PAGE_HEADER_BYTES => Err(Error::BadExtent {
                key: key.to_owned(),
                reason: format!("its value has {} bytes, no more than fit a page", span.bytes),
            }),
            // SAFETY: a value that does not fit a page beside its header is a large one, so it follows its first page's
            // header immediately; the transaction that keeps it in the map is live.
            Some(span) => Ok(Some(unsafe { placed(span.address, span.bytes) })),
        }
    }
}

/// Whether libmdbx would create the environment in `folder`.
///
/// It also would where the data file is shorter than its three meta pages, silently. Such a file was cut short, or is none of
/// libmdbx's: an empty environment in its place would hide the loss, and be taken for permission to free what it knew of. But where the
/// meta pages that are there are as they were made, a process was killed as it wrote them, and nothing is lost.
fn is_new(folder: &Path, page_bytes: usize) -> Result<bool> {
    let path = folder.join(DATA_FILE);
    let whole_bytes = 3 * page_bytes as u64;
    let mut tries = 0;
    loop {
        let bytes = match fs::metadata(&path) {
            Ok(metadata) => metadata.len(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
            Err(source) => return Err(Error::Io { action: "find the size of", path, source }),
        };
        if bytes == 0 || bytes >= whole_bytes {
            return Ok(bytes == 0);
        }
        if tries == 5 {
            if clear_unmade(folder, whole_bytes)? {
                return Ok(true);
            }
            let source = format!("its data file has {bytes} bytes, fewer than its first pages: cut short, or not libmdbx's");
            return Err(Error::BadEnvironment { action: "open", environment: folder.to_owned(), source: source.into() });
        }
        // Another process may be writing them just now.
        tries += 1;
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Empties a data file whose maker was killed before all of its first pages were written: libmdbx takes one for corrupted. Whether it was one.
fn clear_unmade(folder: &Path, whole_bytes: u64) -> Result<bool> {
    // Every process that has the environment open, or makes it, has locked some of this.
    let Some(_nobody_is_at_it) = FileLock::try_exclusive(&folder.join("mdbx.lck"))? else { return Ok(false) };
    let path = folder.join(DATA_FILE);
    let clear = || -> io::Result<bool> {
        let file = File::options().read(true).write(true).open(&path)?;
        let is_unmade = file.metadata()?.len() < whole_bytes && meta::is_as_made(&file)?;
        if is_unmade {
            file.set_len(0)?;
        }
        Ok(is_unmade)
    };
    clear().map_err(|source| Error::Io { action: "clear", path: path.clone(), source })
}

/// The reader slots of the environment of records in `folder`, which another process has open: process and transactions since.
///
/// Opens it to read, which is a place in its lock file and nothing in its data. An environment that is open in this process is refused.
pub(crate) fn reader_slots(folder: &Path) -> Result<Vec<(u32, u64)>> {
    type Slots = Vec<(u32, u64)>;
    /// # Safety
    /// - `slots` leads to a [`Slots`] nobody else uses during the call.
    unsafe extern "C" fn take(
        slots: *mut c_void,
        _number: c_int,
        _slot: c_int,
        process: mdbx_sys::mdbx_pid_t,
        _thread: mdbx_sys::mdbx_tid_t,
        _transaction: u64,
        lag: u64,
        _used: usize,
        _retained: usize,
    ) -> c_int {
        // SAFETY: `reader_slots` gave this place, its own, to the call of libmdbx that calls this.
        unsafe { (*slots.cast::<Slots>()).push((process as u32, lag)) };
        0
    }
    let options = DatabaseOptions { mode: Mode::ReadOnly, accede: true, no_rdahead: true, ..Default::default() };
    let failed = |source| open_error("look at the readers of", folder, source);
    let db = Database::<NoWriteMap>::open_with_options(folder, options).map_err(failed)?;
    let mut slots = Slots::new();
    // SAFETY: the environment is open for as long as `db` lives; `take` is given `slots`, which outlives the call and is not used meanwhile.
    let code = unsafe { mdbx_sys::mdbx_reader_list(db.ptr().0, Some(take), (&raw mut slots).cast()) };
    // Positive where there are none.
    if code < 0 || (code > 0 && code != mdbx_sys::MDBX_RESULT_TRUE) {
        return Err(failed(libmdbx::Error::from_err_code(code)));
    }
    Ok(slots)
}

/// Reads the page number of a large value from the header before it.
///
/// # Safety
/// - `address` is the start of a large value of libmdbx (one with pages of its own), mapped for the length of the call.
unsafe fn placed(address: usize, bytes: usize) -> Placed {
    // SAFETY: the 20 bytes before a large value are its page header, in the same mapping; no alignment is asked of u8.
    let header = unsafe { std::ptr::read((address - PAGE_HEADER_BYTES) as *const [u8; PAGE_HEADER_BYTES]) };
    let page = u32::from_ne_bytes([header[16], header[17], header[18], header[19]]);
    Placed { page, value_bytes: bytes as u64, page_header: header }
}

/// Tells apart what a caller can act on; the rest keeps libmdbx's own words.
fn open_error(action: &'static str, folder: &Path, source: libmdbx::Error) -> Error {
    let path = folder.to_owned();
    match source {
        libmdbx::Error::Other(code) => {
            let source = io::Error::from_raw_os_error(code);
            match source.kind() {
                io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied => Error::ReadOnly { path, source },
                _ => Error::Io { action, path, source },
            }
        }
        libmdbx::Error::Access | libmdbx::Error::PermissionDenied => {
            Error::ReadOnly { path, source: io::Error::from(io::ErrorKind::PermissionDenied) }
        }
        libmdbx::Error::ReadOnlyFilesystem => {
            Error::ReadOnly { path, source: io::Error::from(io::ErrorKind::ReadOnlyFilesystem) }
        }
        libmdbx::Error::OutOfMemory => {
            let source = io::Error::from(nix::errno::Errno::ENOMEM);
            Error::NoAddressSpace { action, environment: path, source }
        }
        libmdbx::Error::RemoteFilesystem => Error::NetworkFileSystem { path, kind: "as libmdbx says" },
        source @ (libmdbx::Error::Corrupted
        | libmdbx::Error::PageNotFound
        | libmdbx::Error::CursorFull
        | libmdbx::Error::Invalid
        | libmdbx::Error::VersionMismatch) => {
            let source = match meta::what_is(&folder.join(DATA_FILE)) {
                Some(what) => what.into(),
                None => source.into(),
            };
            Error::BadEnvironment { action, environment: path, source }
        }
        source => Error::Engine { action, environment: path, source: Box::new(source) },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    #[test]
    fn a_transaction_that_failed_is_not_committed_in_silence() {
        let dir = tempfile::tempdir().unwrap();
        let db = open_extents(dir.path(), "t", 64 << 10).unwrap();
        let txn = db.begin_write().unwrap();
        let table = txn.open_table("t").unwrap();
        // Nothing but first pages is written: the environment is full long before the disk.
        let reserve = |n: &u32| db.reserve(&txn, &table, &n.to_string(), (2 << 30) - (1 << 20)).is_ok();
        let whole = (0..).take_while(reserve).count();
        assert!(whole > 1000, "{whole}");
        assert!(matches!(txn.commit(), Err(Error::Engine { action: "commit", .. })));
        let txn = db.begin_read().unwrap();
        let table = txn.open_table("t").unwrap();
        assert!(db.locate(&txn, &table, "0", 64 << 10).unwrap().is_none());
    }

    #[test]
    fn a_commit_without_changes_is_fine() {
        let dir = tempfile::tempdir().unwrap();
        let db = open_records(dir.path(), &["t"]).unwrap();
        db.begin_write().unwrap().commit().unwrap();
        db.begin_read().unwrap().commit().unwrap();
    }

    #[test]
    fn a_file_whose_maker_was_killed_as_it_wrote_the_first_pages_is_made_anew_and_one_that_was_in_use_is_refused() {
        type Open = fn(&Path) -> Result<()>;
        let kinds: [(usize, Open); 2] = [
            (RECORDS_PAGE_BYTES, |folder| open_records(folder, &["t"]).map(drop)),
            (64 << 10, |folder| open_extents(folder, "t", 64 << 10).map(drop)),
        ];
        for (page_bytes, open) in kinds {
            let first_pages = |folder: &Path| {
                let mut bytes = fs::read(folder.join(DATA_FILE)).unwrap();
                bytes.truncate(3 * page_bytes);
                bytes
            };
            let dir = tempfile::tempdir().unwrap();
            let options = DatabaseOptions { page_size: Some(PageSize::Set(page_bytes)), ..Default::default() };
            Env::<NoWriteMap>::open(dir.path(), options, page_bytes).map(drop).unwrap();
            let made = first_pages(dir.path());
            open(dir.path()).unwrap();
            let used = first_pages(dir.path());
            // A kill ends a write between two pages of memory.
            for bytes in (4096..3 * page_bytes).step_by(4096) {
                let dir = tempfile::tempdir().unwrap();
                fs::write(dir.path().join(DATA_FILE), &made[..bytes]).unwrap();
                open(dir.path()).unwrap();
                fs::write(dir.path().join(DATA_FILE), &used[..bytes]).unwrap();
                assert!(matches!(open(dir.path()), Err(Error::BadEnvironment { .. })), "{bytes} of {page_bytes}");
                assert_eq!(fs::read(dir.path().join(DATA_FILE)).unwrap(), used[..bytes]);
            }
        }
    }

    #[test]
    fn a_damaged_header_of_any_first_page_is_found_before_anything_is_written() {
        let dir = tempfile::tempdir().unwrap();
        open_records(dir.path(), &["t"]).unwrap().check_structure().unwrap();
        let file = File::options().read(true).write(true).open(dir.path().join(DATA_FILE)).unwrap();
        for (page, byte, bit) in (0..3).flat_map(|page| [10, 11, 16, 17, 18, 19].map(|byte| (page, byte, byte % 8))) {
            let at = page * RECORDS_PAGE_BYTES as u64 + byte;
            let flip = || {
                let mut bytes = [0];
                file.read_exact_at(&mut bytes, at).unwrap();
                file.write_all_at(&[bytes[0] ^ 1 << bit], at).unwrap();
            };
            flip();
            let found = open_records(dir.path(), &["t"]).and_then(|db| db.check_structure());
            assert!(matches!(found, Err(Error::BadEnvironment { .. })), "page {page}, byte {byte}: {found:?}");
            flip();
            open_records(dir.path(), &["t"]).unwrap().check_structure().unwrap();
        }
    }
}
