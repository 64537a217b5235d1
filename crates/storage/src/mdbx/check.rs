//! libmdbx's own check of an environment's structure: trees, free lists, every page accounted for.

use super::{DatabaseKind, Env, Error, Result};

impl<K: DatabaseKind> Env<K> {
    /// Walks all of it with writers kept out. Reads no large value beyond its page header.
    pub(crate) fn check_structure(&self) -> Result<()> {
        self.check_process()?;
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
                mdbx_sys::MDBX_CHK_READWRITE,
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
}
