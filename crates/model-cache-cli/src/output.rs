//! Stdout: data and nothing else. A reader that goes away ends the program quietly.

use crate::{
    exit::{Code, Failure},
    render,
};
use serde::Serialize;
use std::{
    io::{self, IsTerminal, Write},
    os::fd::AsFd,
};

/// Whether stdout may be coloured.
pub(crate) fn stdout_colour() -> bool {
    io::stdout().is_terminal() && colour_wanted()
}

/// Whether stderr may be coloured.
pub(crate) fn stderr_colour() -> bool {
    io::stderr().is_terminal() && colour_wanted()
}

/// <https://no-color.org>: set and not empty means none.
fn colour_wanted() -> bool {
    std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()) && !dumb()
}

/// Whether the terminal understands nothing but text.
pub(crate) fn dumb() -> bool {
    std::env::var_os("TERM").is_some_and(|term| term == "dumb")
}

/// Columns of the terminal stdout is; `None` where it is none: lines are then as long as they are.
pub(crate) fn stdout_width() -> Option<usize> {
    columns(io::stdout())
}

/// Columns of the terminal stderr is.
pub(crate) fn stderr_width() -> usize {
    columns(io::stderr()).unwrap_or(80)
}

/// Columns of a terminal, whether or not it knows its rows too; of one that knows neither, what the environment says.
fn columns(terminal: impl AsFd) -> Option<usize> {
    let size = rustix::termios::tcgetwinsize(terminal).ok()?;
    let told = || std::env::var("COLUMNS").ok()?.parse().ok();
    Some(usize::from(size.ws_col)).filter(|&columns| columns > 0).or_else(told)
}

/// Writes text that is data.
pub(crate) fn text(text: &str) -> Result<(), Failure> {
    written(write_all(text.as_bytes()))
}

/// Writes the one JSON document.
pub(crate) fn json(document: &impl Serialize) -> Result<(), Failure> {
    written(write_all(format!("{}\n", to_json(document)).as_bytes()))
}

/// `value` on one line, with no control character in it: serde_json leaves DEL and the C1 range as they are.
pub(crate) fn to_json(value: &impl Serialize) -> String {
    let text = serde_json::to_string(value).expect("documents have string keys and numbers JSON knows");
    render::escape_json(text)
}

fn write_all(bytes: &[u8]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(bytes)?;
    out.flush()
}

/// The result of writing to stdout: a reader that went away had enough.
pub(crate) fn written(result: io::Result<()>) -> Result<(), Failure> {
    match result {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            let code = if error.kind() == io::ErrorKind::StorageFull { Code::NoSpace } else { Code::Other };
            Err(Failure::new(code, format!("could not write to stdout: {error}")))
        }
        _ => Ok(()),
    }
}
