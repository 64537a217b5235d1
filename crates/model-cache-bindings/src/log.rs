//! What model-cache logs, to Python's `logging`.
//!
//! It is logged on threads of Rust's, and none of those may wait for Python, which may be waiting for them. So a line is put
//! into a queue, and the next Python thread that is in a call of this module anyway takes it from there.

use pyo3::{exceptions::PyException, prelude::*};
use std::{
    collections::VecDeque,
    fmt::{self, Write},
    sync::{
        Mutex, TryLockError,
        atomic::{AtomicBool, Ordering},
    },
};
use tracing::{
    Event, Level, Metadata, Subscriber,
    field::{Field, Visit},
    span,
    subscriber::Interest,
};

/// The logger of the package.
const LOGGER: &str = "tabagent_model_cache";
/// Most lines that wait to be taken; the oldest go first.
const MOST_LINES: usize = 1000;

/// Python's level, and what is said.
type Line = (u8, String);

static LINES: Mutex<VecDeque<Line>> = Mutex::new(VecDeque::new());
/// Whether Python's logger wants lines of level DEBUG.
static DEBUG: AtomicBool = AtomicBool::new(false);

/// Begins to queue what is logged, unless the process has a subscriber already.
pub(crate) fn begin() {
    let _ = tracing::subscriber::set_global_default(Queue);
}

/// Gives Python what was queued.
///
/// A handler of Python's that raises is told of by `sys.unraisablehook`, and no reason for a call to fail.
///
/// # Errors
/// What is no `Exception`: a Ctrl-C that met a handler.
pub(crate) fn hand_over(py: Python<'_>) -> PyResult<()> {
    let lines = match LINES.try_lock() {
        Ok(mut lines) => std::mem::take(&mut *lines),
        Err(TryLockError::Poisoned(poisoned)) => std::mem::take(&mut *poisoned.into_inner()),
        // By a thread that is about to let go, or, in a forked child, never does: the next call will see.
        Err(TryLockError::WouldBlock) => return Ok(()),
    };
    let tell = || {
        let logger = py.import("logging")?.call_method1("getLogger", (LOGGER,))?;
        DEBUG.store(logger.call_method1("isEnabledFor", (10,))?.is_truthy()?, Ordering::Relaxed);
        for (level, text) in lines {
            logger.call_method1("log", (level, "%s", text))?;
        }
        PyResult::Ok(())
    };
    match tell() {
        Err(error) if error.is_instance_of::<PyException>(py) => error.write_unraisable(py, None),
        result => return result,
    }
    Ok(())
}

/// Queues events; knows no spans, since model-cache makes none.
struct Queue;

impl Subscriber for Queue {
    fn register_callsite(&self, metadata: &'static Metadata<'static>) -> Interest {
        // Asked once a place that logs. Those of the libraries below tell of bytes and connections.
        let ours = matches!(metadata.target().split("::").next(), Some("tabagent_model_cache" | "storage"));
        // Whether Python wants DEBUG may change.
        if ours && metadata.is_event() && *metadata.level() <= Level::DEBUG { Interest::sometimes() } else { Interest::never() }
    }

    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= Level::INFO || DEBUG.load(Ordering::Relaxed)
    }

    fn event(&self, event: &Event<'_>) {
        let mut text = Text::default();
        event.record(&mut text);
        let level = match *event.metadata().level() {
            Level::ERROR => 40,
            Level::WARN => 30,
            Level::INFO => 20,
            _ => 10,
        };
        // Not waited for: see `hand_over`. Two threads that log in the same instant lose a line at worst.
        if let Ok(mut lines) = LINES.try_lock() {
            if lines.len() == MOST_LINES {
                lines.pop_front();
            }
            lines.push_back((level, text.message + &text.fields));
        }
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
    fn enter(&self, _: &span::Id) {}
    fn exit(&self, _: &span::Id) {}
}

/// An event as one line: what it says, then its fields.
#[derive(Default)]
struct Text {
    message: String,
    fields: String,
}

impl Visit for Text {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.add(field, &value);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.add(field, &format_args!("{value:?}"));
    }
}

impl Text {
    fn add(&mut self, field: &Field, value: &dyn fmt::Display) {
        // To write into a String can't fail.
        let _ = match field.name() {
            "message" => write!(self.message, "{value}"),
            name => write!(self.fields, " {name}={value}"),
        };
    }
}
