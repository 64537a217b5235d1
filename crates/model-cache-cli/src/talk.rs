//! Stderr: everything said to people, one line at a time, above the progress where there is some. Never fails: who closed stderr
//! does not want to hear.

use crate::render;
use indicatif::ProgressBar;
use std::{
    io::{self, Write},
    sync::{Mutex, PoisonError},
};

/// The progress on the screen. One for the process, as stderr is.
static BAR: Mutex<Option<ProgressBar>> = Mutex::new(None);

/// Says one line; escapes already in it are ours, the rest was cleaned by who made it.
pub(crate) fn line(line: &str) {
    raw(format!("{line}\n").as_bytes());
}

/// Writes whole lines as they are.
pub(crate) fn raw(bytes: &[u8]) {
    let write = || {
        let mut err = io::stderr().lock();
        let _ = err.write_all(bytes).and_then(|()| err.flush());
    };
    let bar = BAR.lock().unwrap_or_else(PoisonError::into_inner).clone();
    match bar {
        Some(bar) => bar.suspend(write),
        None => write(),
    }
}

/// From here on, lines go above `bar`.
pub(crate) fn begin_progress(bar: ProgressBar) {
    *BAR.lock().unwrap_or_else(PoisonError::into_inner) = Some(bar);
}

/// Takes the progress off the screen.
pub(crate) fn end_progress() {
    let bar = BAR.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(bar) = bar {
        bar.finish_and_clear();
    }
}

/// A panic is told in one line; nobody but us can read a backtrace.
pub(crate) fn hide_backtraces() {
    if std::env::var_os("RUST_BACKTRACE").is_some() {
        return;
    }
    std::panic::set_hook(Box::new(|panic| {
        let payload = panic.payload();
        let text = payload.downcast_ref::<String>().map(String::as_str).or(payload.downcast_ref::<&str>().copied());
        let place = panic.location().map(|place| format!(" ({place})")).unwrap_or_default();
        line(&format!("bug: {}{place}", render::clean(text.unwrap_or("a panic"))));
    }));
}
