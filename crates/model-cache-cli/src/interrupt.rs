//! Ctrl-C, SIGTERM and the end of the terminal: the first asks the work to stop, the second ends the program at once.

use crate::{
    exit::{Code, Failure},
    talk,
};
use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGTERM},
    flag,
};
use std::{
    future::Future,
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc,
    },
    time::{Duration, Instant},
};
use tokio_util::sync::CancellationToken;

/// How long work gets to stop by itself: with what follows, the program ends within half a second.
const GRACE: Duration = Duration::from_millis(350);

/// Within how long a second signal is the first one over again: who signals a process and its group, as timeout(1) does, says it twice at once.
const AT_ONCE: Duration = Duration::from_millis(10);

/// Whether the user asked to stop, and how.
#[derive(Clone)]
pub(crate) struct Interrupt {
    token: CancellationToken,
    terminated: Arc<AtomicBool>,
}

impl Interrupt {
    /// Begins to listen, on a thread of its own: a signal is heard before there is a runtime, and however busy it is.
    pub(crate) fn listen() -> io::Result<Self> {
        let this = Self { token: CancellationToken::new(), terminated: Arc::default() };
        let mut signals = Signals::new()?;
        let heard = this.clone();
        std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
            let first = signals.next();
            heard.terminated.store(first != SIGINT, Ordering::Release);
            heard.token.cancel();
            let begun = Instant::now();
            // A terminal that ends may say so twice, by its shell and by the kernel: that asks for no more haste.
            while signals.next() == SIGHUP || begun.elapsed() < AT_ONCE {}
            // Who does not read stderr must not keep the program alive.
            let (cleared, clearing) = mpsc::channel();
            std::thread::spawn(move || {
                talk::end_progress();
                let _ = cleared.send(());
            });
            let _ = clearing.recv_timeout(Duration::from_millis(100));
            heard.code().leave()
        })?;
        Ok(this)
    }

    /// Whether a signal came.
    pub(crate) fn is_heard(&self) -> bool {
        self.token.is_cancelled()
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

/// The last signal that came: set before the listener is woken.
struct Signals {
    last: Arc<AtomicUsize>,
    #[cfg(unix)]
    woken: std::os::unix::net::UnixStream,
}

impl Signals {
    fn new() -> io::Result<Self> {
        let last = Arc::new(AtomicUsize::new(0));
        #[cfg(unix)]
        let (woken, wake) = std::os::unix::net::UnixStream::pair()?;
        // Under nohup the end of the terminal is nothing to us.
        for signal in [SIGINT, SIGTERM].into_iter().chain((!is_ignored(SIGHUP)).then_some(SIGHUP)) {
            flag::register_usize(signal, Arc::clone(&last), signal as usize)?;
            #[cfg(unix)]
            signal_hook::low_level::pipe::register(signal, wake.try_clone()?)?;
        }
        Ok(Self {
            last,
            #[cfg(unix)]
            woken,
        })
    }

    /// Waits for a signal.
    fn next(&mut self) -> i32 {
        self.wait();
        self.last.load(Ordering::Acquire) as i32
    }

    #[cfg(unix)]
    fn wait(&mut self) {
        // One byte a signal.
        while let Err(error) = io::Read::read_exact(&mut self.woken, &mut [0]) {
            if error.kind() != io::ErrorKind::Interrupted {
                std::thread::park();
            }
        }
    }

    #[cfg(not(unix))]
    fn wait(&mut self) {
        self.last.store(0, Ordering::Release);
        while self.last.load(Ordering::Acquire) == 0 {
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

/// Whether whoever started this process has it ignore `signal`; no, where that can't be told.
fn is_ignored(signal: i32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| u64::from_str_radix(line.strip_prefix("SigIgn:")?.trim(), 16).ok());
    mask.is_some_and(|mask| mask & (1 << (signal - 1)) != 0)
}
