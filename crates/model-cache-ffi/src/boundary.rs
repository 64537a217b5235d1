//! The functions C calls, and all that is unsafe of this crate: pointers become references, texts and values here, and nowhere else.
//!
//! `include/model_cache.h` has their contract in full; what is said here is what each needs to be sound. Two rules hold for all:
//! a panic ends in `run` and never unwinds into C, and a pointer that may be NULL is asked whether it is before it is followed.
#![allow(unsafe_code)]

use crate::{
    error::{Code, Error, Result},
    file::File,
};
use std::{
    any::Any,
    ffi::{CStr, CString, c_char},
    panic::{AssertUnwindSafe, catch_unwind},
    path::PathBuf,
    ptr,
};
use tabagent_model_cache::{ModelCache, default_store};

/// `mc_store`.
#[derive(Debug)]
pub struct Store {
    cache: ModelCache,
}

/// `mc_error`.
#[derive(Debug)]
pub struct Failure {
    code: Code,
    text: CString,
}

// The header promises that handles are used by several threads at once.
const _: () = {
    const fn is_shared<T: Send + Sync>() {}
    is_shared::<Store>();
    is_shared::<File>();
    is_shared::<Failure>();
};

// -- what all functions share ------------------------------------------------------------------------------------------------

/// Does `work` for C: its panics become errors, its error goes to `error`, where NULL is written if there is none.
///
/// # Safety
/// - `error` is NULL or may be written.
unsafe fn run(function: &'static str, error: *mut *mut Failure, work: impl FnOnce() -> Result<()>) -> i32 {
    // What a panic left half done is seen by nobody: `work` changes nothing but what it gives to C as its last step.
    let done = catch_unwind(AssertUnwindSafe(work));
    let failed = match done {
        Ok(Ok(())) => None,
        Ok(Err(error)) => Some(error),
        Err(panic) => Some(Error::Panicked { function, panic: said(&*panic) }),
    };
    let code = failed.as_ref().map_or(Code::Ok, Error::code);
    if !error.is_null() {
        let failure = failed.map(|error| Failure { code, text: c_text(error.text()) });
        // SAFETY: not NULL, and by the contract it may be written then.
        unsafe { error.write(failure.map_or(ptr::null_mut(), given)) };
    }
    code as i32
}

/// Does what can't fail but by a panic; gives `instead` after one.
fn run_plain<T>(instead: T, work: impl FnOnce() -> T) -> T {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or(instead)
}

/// What a panic said.
fn said(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "a panic without words".to_owned())
}

/// `text` for C, which would end it at its first NUL.
fn c_text(text: String) -> CString {
    CString::new(text.replace('\0', "\\0")).expect("it has no NUL any more")
}

/// `value` for C to keep, until it gives it back to [`taken`].
fn given<T>(value: T) -> *mut T {
    Box::into_raw(Box::new(value))
}

/// Drops what was [`given`]; NULL is nothing.
///
/// # Safety
/// - `handle` is NULL or came from [`given`] and was not dropped before.
/// - Nobody uses it now or later.
unsafe fn taken<T>(handle: *mut T) {
    if !handle.is_null() {
        // SAFETY: not NULL, so it is the box that `given` let go, dropped by nobody else.
        run_plain((), || drop(unsafe { Box::from_raw(handle) }));
    }
}

/// What `handle` leads to.
///
/// # Safety
/// - `handle` is NULL or came from [`given`], and is not dropped while the reference lives.
unsafe fn open<'a, T>(handle: *const T, function: &'static str, argument: &'static str) -> Result<&'a T> {
    // SAFETY: what `given` gave is aligned and initialised, and only ever read through shared references until it is dropped.
    unsafe { handle.as_ref() }.ok_or(Error::Null { function, argument })
}

/// The place a result goes to, NULL written into it, so that closing it after a failure does nothing.
///
/// # Safety
/// - `place` is NULL or may be written while the reference lives.
unsafe fn place<'a, T>(place: *mut *mut T, function: &'static str, argument: &'static str) -> Result<&'a mut *mut T> {
    if place.is_null() {
        return Err(Error::Null { function, argument });
    }
    // SAFETY: not NULL, so it may be written; written before a reference is made, since C may not have initialised it.
    unsafe {
        place.write(ptr::null_mut());
        Ok(&mut *place)
    }
}

/// The text a pointer leads to.
///
/// # Safety
/// - `text` is NULL or leads to bytes that end in a NUL and do not change while the reference lives.
unsafe fn text<'a>(text: *const c_char, function: &'static str, argument: &'static str) -> Result<&'a str> {
    if text.is_null() {
        return Err(Error::Null { function, argument });
    }
    // SAFETY: not NULL, so it ends in a NUL and does not change.
    let text = unsafe { CStr::from_ptr(text) };
    let not_utf8 = |error: std::str::Utf8Error| {
        let shown = text.to_string_lossy().escape_debug().to_string();
        Error::NotUtf8 { function, argument, at: error.valid_up_to(), shown }
    };
    text.to_str().map_err(not_utf8)
}

/// The folder a text names: its bytes as they are, where the system's own paths are bytes.
///
/// # Safety
/// - As [`text`].
unsafe fn folder(path: *const c_char, function: &'static str, argument: &'static str) -> Result<PathBuf> {
    #[cfg(unix)]
    {
        use std::{ffi::OsStr, os::unix::ffi::OsStrExt};
        if path.is_null() {
            return Err(Error::Null { function, argument });
        }
        // SAFETY: not NULL, so it ends in a NUL and does not change.
        let path = unsafe { CStr::from_ptr(path) };
        Ok(OsStr::from_bytes(path.to_bytes()).into())
    }
    #[cfg(not(unix))]
    // SAFETY: as this function's own.
    Ok(unsafe { text(path, function, argument) }?.into())
}

// -- about the library -------------------------------------------------------------------------------------------------------

/// `mc_version`.
#[unsafe(no_mangle)]
pub extern "C" fn mc_version() -> *const c_char {
    const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), "\0");
    VERSION.as_ptr().cast()
}

/// `mc_code_name`.
#[unsafe(no_mangle)]
pub extern "C" fn mc_code_name(code: i32) -> *const c_char {
    let known = Code::ALL.iter().find(|known| **known as i32 == code);
    known.map_or(c"unknown", |known| known.name()).as_ptr()
}

// -- errors ------------------------------------------------------------------------------------------------------------------

/// `mc_error_code`.
///
/// # Safety
/// - `error` is NULL, or an error that is not freed meanwhile.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_error_code(error: *const Failure) -> i32 {
    // SAFETY: by the contract it is NULL or ours and not freed.
    unsafe { error.as_ref() }.map_or(Code::Ok, |error| error.code) as i32
}

/// `mc_error_text`.
///
/// # Safety
/// - `error` is NULL, or an error that is not freed while the text is read.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_error_text(error: *const Failure) -> *const c_char {
    // SAFETY: by the contract it is NULL or ours and not freed.
    unsafe { error.as_ref() }.map_or(c"", |error| &error.text).as_ptr()
}

/// `mc_error_free`.
///
/// # Safety
/// - `error` is NULL, or an error nobody uses now or later.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_error_free(error: *mut Failure) {
    // SAFETY: the contract is the same.
    unsafe { taken(error) };
}

// -- stores ------------------------------------------------------------------------------------------------------------------

/// `mc_store_open`.
///
/// # Safety
/// - `path` is NULL, or ends in a NUL and does not change meanwhile.
/// - `store` and `error` are each NULL or may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_store_open(path: *const c_char, store: *mut *mut Store, error: *mut *mut Failure) -> i32 {
    const FUNCTION: &str = "mc_store_open";
    let work = || {
        // SAFETY: `store` is NULL or may be written.
        let place = unsafe { place(store, FUNCTION, "store") }?;
        let path = match path.is_null() {
            true => default_store()?,
            // SAFETY: not NULL, so it ends in a NUL and does not change.
            false => unsafe { folder(path, FUNCTION, "path") }?,
        };
        let cache = ModelCache::builder(path).create(false).offline(true).open()?;
        *place = given(Store { cache });
        Ok(())
    };
    // SAFETY: `error` is NULL or may be written.
    unsafe { run(FUNCTION, error, work) }
}

/// `mc_store_has_file`.
///
/// # Safety
/// - `store` is NULL, or a store that is not closed meanwhile.
/// - `repo` and `path` are each NULL, or end in a NUL and do not change meanwhile.
/// - `found` and `error` are each NULL or may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_store_has_file(
    store: *const Store,
    repo: *const c_char,
    path: *const c_char,
    found: *mut bool,
    error: *mut *mut Failure,
) -> i32 {
    const FUNCTION: &str = "mc_store_has_file";
    let work = || {
        if found.is_null() {
            return Err(Error::Null { function: FUNCTION, argument: "found" });
        }
        // SAFETY: not NULL, so it may be written.
        unsafe { found.write(false) };
        // SAFETY: NULL, or ours and not closed; NULL, or texts that end and do not change.
        let (store, repo, path) =
            unsafe { (open(store, FUNCTION, "store")?, text(repo, FUNCTION, "repo")?, text(path, FUNCTION, "path")?) };
        let has = store.cache.has_file(repo, path)?;
        // SAFETY: as above.
        unsafe { found.write(has) };
        Ok(())
    };
    // SAFETY: `error` is NULL or may be written.
    unsafe { run(FUNCTION, error, work) }
}

/// `mc_store_close`.
///
/// # Safety
/// - `store` is NULL, or a store nobody uses now or later.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_store_close(store: *mut Store) {
    // SAFETY: the contract is the same.
    unsafe { taken(store) };
}

// -- files -------------------------------------------------------------------------------------------------------------------

/// `mc_file_open`.
///
/// # Safety
/// - `store` is NULL, or a store that is not closed meanwhile.
/// - `repo` and `path` are each NULL, or end in a NUL and do not change meanwhile.
/// - `file` and `error` are each NULL or may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_file_open(
    store: *const Store,
    repo: *const c_char,
    path: *const c_char,
    file: *mut *mut File,
    error: *mut *mut Failure,
) -> i32 {
    const FUNCTION: &str = "mc_file_open";
    let work = || {
        // SAFETY: `file` is NULL or may be written.
        let place = unsafe { place(file, FUNCTION, "file") }?;
        // SAFETY: NULL, or ours and not closed; NULL, or texts that end and do not change.
        let (store, repo, path) =
            unsafe { (open(store, FUNCTION, "store")?, text(repo, FUNCTION, "repo")?, text(path, FUNCTION, "path")?) };
        *place = given(File::open(&store.cache, repo, path)?);
        Ok(())
    };
    // SAFETY: `error` is NULL or may be written.
    unsafe { run(FUNCTION, error, work) }
}

/// `mc_file_clone`.
///
/// # Safety
/// - `file` is NULL, or a file that is not closed meanwhile.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_file_clone(file: *const File) -> *mut File {
    // SAFETY: by the contract it is NULL or ours and not closed.
    let file = unsafe { file.as_ref() };
    run_plain(ptr::null_mut(), || file.map_or(ptr::null_mut(), |file| given(file.clone())))
}

/// `mc_file_data`.
///
/// # Safety
/// - `file` is NULL, or a file that is not closed while its bytes are read.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_file_data(file: *const File) -> *const u8 {
    // SAFETY: by the contract it is NULL or ours and not closed.
    let file = unsafe { file.as_ref() };
    run_plain(ptr::null(), || file.map_or(ptr::null(), |file| file.as_slice().as_ptr()))
}

/// `mc_file_size_bytes`.
///
/// # Safety
/// - `file` is NULL, or a file that is not closed meanwhile.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_file_size_bytes(file: *const File) -> u64 {
    // SAFETY: by the contract it is NULL or ours and not closed.
    unsafe { file.as_ref() }.map_or(0, File::size_bytes)
}

/// `mc_file_digest`.
///
/// # Safety
/// - `file` is NULL, or a file that is not closed while the text is read.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_file_digest(file: *const File) -> *const c_char {
    // SAFETY: by the contract it is NULL or ours and not closed.
    unsafe { file.as_ref() }.map_or(c"", File::digest).as_ptr()
}

/// `mc_file_read_at`.
///
/// # Safety
/// - `file` is NULL, or a file that is not closed meanwhile.
/// - `buffer` is NULL, or `buffer_bytes` bytes from it on may be written, and nobody else reads or writes them meanwhile.
/// - `error` is NULL or may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_file_read_at(
    file: *const File,
    offset_bytes: u64,
    buffer: *mut u8,
    buffer_bytes: usize,
    error: *mut *mut Failure,
) -> i32 {
    const FUNCTION: &str = "mc_file_read_at";
    let work = || {
        // SAFETY: NULL, or ours and not closed.
        let file = unsafe { open(file, FUNCTION, "file") }?;
        if buffer.is_null() && buffer_bytes > 0 {
            return Err(Error::Null { function: FUNCTION, argument: "buffer" });
        }
        let mut written = 0;
        for piece in file.pieces(offset_bytes, buffer_bytes as u64)? {
            // SAFETY: the pieces are `buffer_bytes` bytes together, so this one ends within the buffer, which is not NULL since
            // no piece is empty. It may be written, and does not overlap a piece: those are in memory nobody can write.
            unsafe { ptr::copy_nonoverlapping(piece.as_ptr(), buffer.add(written), piece.len()) };
            written += piece.len();
        }
        Ok(())
    };
    // SAFETY: `error` is NULL or may be written.
    unsafe { run(FUNCTION, error, work) }
}

/// `mc_file_prefetch`.
///
/// # Safety
/// - `file` is NULL, or a file that is not closed meanwhile.
/// - `error` is NULL or may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_file_prefetch(file: *const File, error: *mut *mut Failure) -> i32 {
    const FUNCTION: &str = "mc_file_prefetch";
    let work = || {
        // SAFETY: NULL, or ours and not closed.
        let file = unsafe { open(file, FUNCTION, "file") }?;
        file.prefetch()
    };
    // SAFETY: `error` is NULL or may be written.
    unsafe { run(FUNCTION, error, work) }
}

/// `mc_file_check_gguf`.
///
/// # Safety
/// - `file` is NULL, or a file that is not closed meanwhile.
/// - `error` is NULL or may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_file_check_gguf(file: *const File, error: *mut *mut Failure) -> i32 {
    const FUNCTION: &str = "mc_file_check_gguf";
    let work = || {
        // SAFETY: NULL, or ours and not closed.
        let file = unsafe { open(file, FUNCTION, "file") }?;
        file.check_gguf()
    };
    // SAFETY: `error` is NULL or may be written.
    unsafe { run(FUNCTION, error, work) }
}

/// `mc_file_close`.
///
/// # Safety
/// - `file` is NULL, or a file nobody uses now or later, nor what its functions gave.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_file_close(file: *mut File) {
    // SAFETY: the contract is the same.
    unsafe { taken(file) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_ends_at_the_boundary_as_an_error_that_says_it_is_a_bug() {
        let mut error = ptr::null_mut();
        // SAFETY: `error` may be written.
        let code = unsafe { run("mc_test", &mut error, || panic!("{} is odd", 7)) };
        // SAFETY: `error` is an error, freed at the end.
        let text = unsafe { CStr::from_ptr(mc_error_text(error)) }.to_str().unwrap().to_owned();
        // SAFETY: and not used again.
        unsafe { mc_error_free(error) };
        assert_eq!((code, text.as_str()), (Code::Other as i32, "mc_test failed inside: 7 is odd; this is a bug"));
        assert_eq!(run_plain(5, || panic!("again")), 5);
    }

    #[test]
    fn a_nul_within_a_text_does_not_end_it() {
        assert_eq!(c_text("a\0b".to_owned()).as_c_str(), c"a\\0b");
    }
}
