//! libmdbx's own check of an environment's structure: trees, free lists, every page accounted for.

use super::{DATA_FILE, DatabaseKind, Env, Error, Result, meta};
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};

/// What the kernel is asked to read at once: it may pass over what is more.
const READ_AHEAD_BYTES: i64 = 1 << 20;

impl<K: DatabaseKind> Env<K> {
    /// Has the kernel read all of the data file, which a walk of its trees then need not wait for page by page: 23,000 of them took 4 to 6 s
    /// that way, and 0.5 s this way. Where memory is short, or the kernel won't, the walk reads for itself.
    pub(crate) fn read_ahead(&self) {
        let Ok(file) = self.open_data_file(false) else { return };
        let bytes = file.metadata().map_or(0, |metadata| metadata.len());
        if crate::available_memory_bytes().is_none_or(|available| bytes > available / 4) {
            return;
        }
        for offset in (0..bytes as i64).step_by(READ_AHEAD_BYTES as usize) {
            if posix_fadvise(&file, offset, READ_AHEAD_BYTES, PosixFadviseAdvice::POSIX_FADV_WILLNEED).is_err() {
                return;
            }
        }
    }

    /// Walks all of it, as of one snapshot: writers are neither kept out nor waited for. Reads no large value beyond its page header.
    pub(crate) fn check_structure(&self) -> Result<()> {
        self.check_process()?;
        self.check_first_pages()?;
        self.check_free_lists()?;
        // SAFETY: a table of nullable function pointers, of which libmdbx says that each may be null.
        let callbacks: mdbx_sys::MDBX_chk_callbacks_t = unsafe { std::mem::zeroed() };
        // SAFETY: numbers and pointers, which libmdbx fills in; it asks for a context whose `internal` is null.
        let mut context: mdbx_sys::MDBX_chk_context_t = unsafe { std::mem::zeroed() };
        // SAFETY: the environment is open for as long as `self.db` lives; both structures outlive the call, which is all libmdbx uses
        // them for; this thread has no transaction of this environment open while it holds `&self` alone: reads and writes of ours are values
        // that begin and end within one call of this crate or are held by a caller, who is told to hold none.
        let code = unsafe {
            mdbx_sys::mdbx_env_chk(
                self.db.ptr().0,
                &callbacks,
                &mut context,
                mdbx_sys::MDBX_CHK_DEFAULTS,
                mdbx_sys::MDBX_chk_error,
                0,
            )
        };
        let found = &context.result;
        if code == mdbx_sys::MDBX_SUCCESS && found.total_problems == 0 {
            return Ok(());
        }
        let source = format!(
            "libmdbx's check found {} problems ({} in meta pages, {} in trees, {} in the tree of free pages, {} in free lists, {} in records) \
             and ended with {}",
            found.total_problems,
            found.problems_meta,
            found.tree_problems,
            found.gc_tree_problems,
            found.problems_gc,
            found.problems_kv + found.kv_tree_problems,
            libmdbx::Error::from_err_code(code),
        );
        Err(Error::BadEnvironment { action: "check", environment: self.folder.clone(), source: source.into() })
    }

    /// Whether all of the first pages are such: libmdbx's check looks into the latest alone.
    fn check_first_pages(&self) -> Result<()> {
        let found = meta::read(&self.open_data_file(false)?);
        let found = found.map_err(|source| Error::Io { action: "read", path: self.folder.join(DATA_FILE), source })?;
        found.map(drop).map_err(|what| Error::BadEnvironment {
            action: "check",
            environment: self.folder.clone(),
            source: what.into(),
        })
    }

    /// Whether each list of free pages ends within its value. libmdbx's check reads on to where a list says that it ends.
    fn check_free_lists(&self) -> Result<()> {
        /// The table of free pages, which has this number in every environment.
        const FREE_PAGES: mdbx_sys::MDBX_dbi = 0;
        const ENTRY_BYTES: usize = size_of::<u32>();
        let txn = self.begin_read()?;
        let mut cursor = std::ptr::null_mut();
        // SAFETY: the transaction is live and used by this thread alone; `cursor` is a place for a pointer.
        let code = unsafe { mdbx_sys::mdbx_cursor_open(txn.txn().0, FREE_PAGES, &mut cursor) };
        self.check(code, "check the free pages of")?;
        let empty = || mdbx_sys::MDBX_val { iov_base: std::ptr::null_mut(), iov_len: 0 };
        let (mut key, mut value, mut next) = (empty(), empty(), mdbx_sys::MDBX_FIRST);
        let found = loop {
            // SAFETY: the cursor is open, and its transaction is; both values are places for what libmdbx finds.
            let code = unsafe { mdbx_sys::mdbx_cursor_get(cursor, &mut key, &mut value, next) };
            next = mdbx_sys::MDBX_NEXT;
            if code == mdbx_sys::MDBX_NOTFOUND {
                break Ok(());
            }
            if let Err(error) = self.check(code, "check the free pages of") {
                break Err(error);
            }
            let entries = match value.iov_len {
                // SAFETY: the value has at least so many bytes, in the map that the transaction keeps; no alignment is asked for.
                bytes if bytes >= ENTRY_BYTES => unsafe { value.iov_base.cast::<u32>().read_unaligned() as usize },
                _ => usize::MAX - 1,
            };
            if entries.saturating_add(1).saturating_mul(ENTRY_BYTES) > value.iov_len {
                let source = format!("a list of free pages has {} bytes and says that it has {entries} entries", value.iov_len);
                break Err(Error::BadEnvironment { action: "check", environment: self.folder.clone(), source: source.into() });
            }
        };
        // SAFETY: opened above, closed once, before its transaction ends.
        unsafe { mdbx_sys::mdbx_cursor_close(cursor) };
        found
    }
}
