//! The one Tokio runtime of this process: [`handle`].

use pyo3::{exceptions::PyRuntimeError, prelude::*};
use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};
use tokio::runtime::{Builder, Handle, Runtime};
use tokio_util::sync::CancellationToken;

/// How long the end of the interpreter waits for what still runs, once it was cancelled.
const SHUTDOWN: Duration = Duration::from_secs(10);

/// A runtime, and who made it.
struct Made {
    process: u32,
    /// `None` once the interpreter ends.
    runtime: Option<Runtime>,
    /// Cancels everything that runs on it.
    root: CancellationToken,
}

impl Made {
    fn new() -> PyResult<Self> {
        let mut builder = Builder::new_multi_thread();
        let runtime = builder.worker_threads(2).thread_name("model-cache").enable_all().build();
        let runtime =
            runtime.map_err(|error| PyRuntimeError::new_err(format!("could not start the threads that pull: {error}")))?;
        Ok(Self { process: std::process::id(), runtime: Some(runtime), root: CancellationToken::new() })
    }
}

/// Locked only while this thread is attached to Python and does not let go of it: a fork, which needs Python too, never finds
/// it locked.
static MADE: Mutex<Option<Made>> = Mutex::new(None);

/// The runtime, made when it is first needed, and made anew in a forked child, where the threads of the inherited one are
/// not; and a token for new work on it.
pub(crate) fn handle(py: Python<'_>) -> PyResult<(Handle, CancellationToken)> {
    let (new, found) = {
        let mut slot = MADE.lock().unwrap_or_else(PoisonError::into_inner);
        let new = slot.as_ref().is_none_or(|made| made.process != std::process::id());
        if new {
            // To drop an inherited one would be to wait for threads that are not here.
            std::mem::forget(slot.replace(Made::new()?));
        }
        let made = slot.as_ref().and_then(|made| Some((made.runtime.as_ref()?, &made.root)));
        (new, made.map(|(runtime, root)| (runtime.handle().clone(), root.child_token())))
    };
    // Not with the lock held: Python may let another thread run here.
    if new {
        let module = py.import("tabagent_model_cache._native")?;
        py.import("atexit")?.call_method1("register", (module.getattr("_shutdown")?,))?;
    }
    found.ok_or_else(|| PyRuntimeError::new_err("the interpreter is shutting down: nothing new is begun"))
}

/// Cancels what still runs and waits until it has ended: the engine must not be taken down while threads work with it.
#[pyfunction]
pub(crate) fn _shutdown(py: Python<'_>) {
    let taken = {
        let mut slot = MADE.lock().unwrap_or_else(PoisonError::into_inner);
        match slot.as_mut() {
            // A forked child that runs its parent's exit handlers.
            Some(made) if made.process != std::process::id() => None,
            Some(made) => {
                made.root.cancel();
                made.runtime.take()
            }
            None => None,
        }
    };
    if let Some(runtime) = taken {
        py.detach(|| runtime.shutdown_timeout(SHUTDOWN));
    }
}
