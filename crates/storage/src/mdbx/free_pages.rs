//! Which pages of an environment of extents are nobody's.

use super::{Env, Result, WriteMap, Writing};
use std::{ffi::c_int, ops::Range};

/// What [`note`] fills in.
#[derive(Default)]
struct Spans(Vec<Range<u64>>);

impl Env<WriteMap> {
    /// Ranges of pages that no reader of any process, no commit, and no commit a power loss would bring back leads to, the end of the file, which has
    /// `file_pages`, included. True for as long as `txn`, which has changed nothing, keeps other writers out.
    pub(crate) fn free_pages(&self, txn: &Writing<'_, WriteMap>, file_pages: u64) -> Result<Vec<Range<u64>>> {
        let mut spans = Spans::default();
        // SAFETY: numbers, which libmdbx fills in.
        let mut info: mdbx_sys::MDBX_gc_info_t = unsafe { std::mem::zeroed() };
        // SAFETY: the transaction is live and used by this thread alone while we borrow it; `info` and `spans` outlive the call, and
        // `note` is given the latter's address.
        let code = unsafe {
            let context = (&raw mut spans).cast();
            mdbx_sys::mdbx_gc_info(txn.txn().0, &mut info, size_of_val(&info), Some(note), context)
        };
        if code != mdbx_sys::MDBX_NOTFOUND {
            self.check(code, "list the free pages of")?;
        }
        let mut free = spans.0;
        // The file may be longer than libmdbx wrote down: a transaction that grew it was not committed.
        free.push(info.pages_allocated as u64..file_pages.max(info.pages_allocated as u64));
        Ok(free)
    }
}

/// Called by libmdbx with each run of free pages; those that are not reclaimable some snapshot still leads to.
unsafe extern "C" fn note(
    context: *mut std::ffi::c_void,
    _: *const mdbx_sys::MDBX_txn,
    _: u64,
    page: usize,
    pages: usize,
    is_reclaimable: bool,
) -> c_int {
    // SAFETY: `free_pages` passes the address of its `Spans`, which nothing else uses during the call.
    let spans = unsafe { &mut *context.cast::<Spans>() };
    // A list of free pages descends (`MDBX_PNL_ASCENDING` is 0, mdbx.c), so the page named is the last of its run, whatever mdbx.h says.
    if is_reclaimable && pages <= page {
        spans.0.push((page + 1 - pages) as u64..(page + 1) as u64);
    }
    mdbx_sys::MDBX_SUCCESS
}
