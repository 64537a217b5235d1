//! Ctrl-C and SIGTERM: the first asks the work to stop, the second ends the program at once.

use crate::{
    exit::{Code, Failure},
    talk,
};
use std::{
    future::Future,
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio_util::sync::CancellationToken;

/// How long work gets to stop by itself: with what follows, the program ends within half a second.
const GRACE: Duration = Duration::from_millis(350);

/// Whether the user asked to stop, and how.
#[derive(Clone)]
pub(crate) struct Interrupt {
    token: CancellationToken,
    terminated: Arc<AtomicBool>,
}

impl Interrupt {
    /// Begins to listen. Needs a runtime.
    pub(crate) fn listen() -> io::Result<Self> {
        let this = Self { token: CancellationToken::new(), terminated: Arc::default() };
        let mut signals = Signals::new()?;
        let heard = this.clone();
        tokio::spawn(async move {
            let code = signals.next().await;
            heard.terminated.store(code == Code::Terminated, Ordering::Release);
            heard.token.cancel();
            signals.next().await;
            talk::end_progress();
            std::process::exit(if heard.code() == Code::Terminated { 143 } else { 130 });
        });
        Ok(this)
    }

    /// The token that is cancelled by the first signal.
    pub(crate) fn token(&self) -> CancellationToken {
        self.token.clone()
    }

    /// The exit code for what happened.
    pub(crate) fn code(&self) -> Code {
        if self.terminated.load(Ordering::Acquire) { Code::Terminated } else { Code::Interrupted }
    }

    /// What to show when there is no more to say.
    pub(crate) fn failure(&self) -> Failure {
        Failure::new(self.code(), "interrupted")
    }

    /// Runs `work` to its end, or to a little after the first signal; `None` if it did not end by then.
    pub(crate) async fn during<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        tokio::pin!(work);
        tokio::select! {
            biased;
            result = &mut work => return Some(result),
            () = self.token.cancelled() => {}
        }
        tokio::time::timeout(GRACE, work).await.ok()
    }
}

#[cfg(unix)]
struct Signals {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
}

#[cfg(unix)]
impl Signals {
    fn new() -> io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? })
    }

    async fn next(&mut self) -> Code {
        tokio::select! {
            _ = self.interrupt.recv() => Code::Interrupted,
            _ = self.terminate.recv() => Code::Terminated,
        }
    }
}

#[cfg(not(unix))]
struct Signals;

#[cfg(not(unix))]
impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self)
    }

    async fn next(&mut self) -> Code {
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
        Code::Interrupted
    }
}
