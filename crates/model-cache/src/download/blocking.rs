//! The one bridge from async code to the synchronous store.

use crate::error::Result;
use tokio::task::{JoinError, JoinHandle};

/// Runs `work` on a blocking thread. Dropping the future does not stop it: `work` owns all it needs.
pub(crate) async fn run<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let handle: JoinHandle<Result<T>> = tokio::task::spawn_blocking(work);
    unwrap(handle.await)
}

/// The result of a blocking task; a panic in it goes on here.
///
/// A task that was cancelled never ran: the runtime is shutting down, and so is whoever waits.
pub(crate) fn unwrap<T>(joined: Result<Result<T>, JoinError>) -> Result<T> {
    match joined {
        Ok(result) => result,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => Err(crate::error::Error::Cancelled),
        },
    }
}
