//! How often and when to try again: a policy of plain functions, and [`retry`], which waits by it.

use crate::error::{Error, Result};
use std::{
    future::Future,
    hash::{BuildHasher, RandomState},
    time::Duration,
};

/// The longest a server's own wish to wait is obeyed: one 300 s window of the Hub's rate limits and some air.
pub(super) const MAX_SERVER_WAIT: Duration = Duration::from_secs(310);

/// When a failed call is tried again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RetryPolicy {
    /// Calls in all, the first included. Default: 5.
    pub(crate) max_tries: u32,
    /// The longest wait after the first failure; it doubles with each further one. Default: 0.5 s.
    pub(crate) first_wait: Duration,
    /// Where the doubling ends. Default: 8 s.
    pub(crate) max_wait: Duration,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self { max_tries: 5, first_wait: Duration::from_millis(500), max_wait: Duration::from_secs(8) }
    }
}

impl RetryPolicy {
    /// How long to wait after the `failed`th failure in a row (1 is the first); none if `error` is final.
    ///
    /// A wait the server named is taken whole, up to 310 s, by one in trouble at least; else `jitter`, which lies in `0.0..1.0`, picks
    /// from zero to the doubled bound ("full jitter": <https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/>).
    pub(crate) fn wait_after(&self, failed: u32, error: &Error, jitter: f64) -> Option<Duration> {
        if !error.is_transient() { None } else { self.wait_by_count(failed, error, jitter) }
    }

    /// As [`wait_after`](Self::wait_after), for an error the caller thinks worth another try.
    pub(crate) fn wait_by_count(&self, failed: u32, error: &Error, jitter: f64) -> Option<Duration> {
        if failed >= self.max_tries {
            return None;
        }
        let asked = match error {
            Error::RateLimited { retry_after: Some(wait), .. } => return Some((*wait).min(MAX_SERVER_WAIT)),
            Error::HubStatus { retry_after: Some(wait), .. } => (*wait).min(MAX_SERVER_WAIT),
            _ => Duration::ZERO,
        };
        let doubled = 2u32.checked_pow(failed.saturating_sub(1)).and_then(|factor| self.first_wait.checked_mul(factor));
        let bound = doubled.map_or(self.max_wait, |wait| wait.min(self.max_wait));
        Some(bound.mul_f64(jitter.clamp(0.0, 1.0)).max(asked))
    }
}

/// Told to the observer before each wait.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RetryNotice<'a> {
    /// How many calls have failed so far.
    pub(crate) attempt: u32,
    /// Why the last one did.
    pub(crate) reason: &'a Error,
    /// How long until the next.
    pub(crate) wait: Duration,
}

/// Who hears of retries. It is called from the task that waits, so it must not block.
pub(crate) type Observer<'a> = &'a (dyn Fn(RetryNotice<'_>) + Sync);

/// Calls `op` until it succeeds, fails for good, or has failed `policy.max_tries` times. Dropping the future ends the wait.
///
/// # Errors
/// The last error of `op`.
pub(crate) async fn retry<T, F>(policy: &RetryPolicy, observer: Observer<'_>, mut op: impl FnMut() -> F) -> Result<T>
where
    F: Future<Output = Result<T>>,
{
    let mut attempt = 0;
    loop {
        let error = match op().await {
            Ok(value) => return Ok(value),
            Err(error) => error,
        };
        attempt += 1;
        let Some(wait) = policy.wait_after(attempt, &error, random_unit()) else { return Err(error) };
        tracing::debug!(attempt, wait_ms = wait.as_millis() as u64, reason = %error, "trying again");
        observer(RetryNotice { attempt, reason: &error, wait });
        tokio::time::sleep(wait).await;
    }
}

/// A number in `0.0..1.0`, another one at each call: each new `RandomState` has other keys, and SipHash spreads them.
/// Good enough to keep clients from calling in step; of no other use.
pub(crate) fn random_unit() -> f64 {
    (RandomState::new().hash_one(0u8) >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{
        Mutex,
        atomic::{AtomicU32, Ordering},
    };

    fn broken() -> Error {
        Error::HubStatus { url: "http://h/".into(), status: 503, message: String::new(), request_id: None, retry_after: None }
    }

    fn limited(seconds: u64) -> Error {
        Error::RateLimited { endpoint: "http://h".into(), retry_after: Some(Duration::from_secs(seconds)) }
    }

    #[test]
    fn waits_double_to_the_cap_and_end_with_the_tries() {
        let policy = RetryPolicy { max_tries: 9, ..RetryPolicy::default() };
        let bounds: Vec<_> = (1..=9).map(|n| policy.wait_after(n, &broken(), 1.0).map(|w| w.as_millis())).collect();
        assert_eq!(
            bounds,
            [500, 1000, 2000, 4000, 8000, 8000, 8000, 8000].map(Some).into_iter().chain([None]).collect::<Vec<_>>()
        );
        assert_eq!(policy.wait_after(3, &broken(), 0.0), Some(Duration::ZERO));
        assert_eq!(policy.wait_after(2, &broken(), 0.5), Some(Duration::from_millis(500)));
        let endless = RetryPolicy { max_tries: u32::MAX, ..policy };
        assert_eq!(endless.wait_after(1_000_000, &broken(), 1.0), Some(Duration::from_secs(8)));
    }

    #[test]
    fn a_final_error_is_not_tried_again_and_a_servers_wish_is_obeyed_within_reason() {
        let policy = RetryPolicy::default();
        assert_eq!(policy.wait_after(1, &Error::Cancelled, 1.0), None);
        assert_eq!(policy.wait_after(1, &limited(56), 0.0), Some(Duration::from_secs(56)));
        assert_eq!(policy.wait_after(1, &limited(86_400), 0.0), Some(MAX_SERVER_WAIT));
        let busy = |seconds| Error::HubStatus {
            url: "http://h/".into(),
            status: 503,
            message: String::new(),
            request_id: None,
            retry_after: Some(Duration::from_secs(seconds)),
        };
        assert_eq!(policy.wait_after(1, &busy(56), 1.0), Some(Duration::from_secs(56)));
        assert_eq!(policy.wait_after(1, &busy(86_400), 1.0), Some(MAX_SERVER_WAIT));
        assert_eq!(policy.wait_after(2, &busy(0), 1.0), Some(Duration::from_secs(1)), "a server in trouble is not hammered");
        let silent = Error::RateLimited { endpoint: "http://h".into(), retry_after: None };
        assert_eq!(policy.wait_after(1, &silent, 1.0), Some(Duration::from_millis(500)));
    }

    #[tokio::test]
    async fn the_observer_hears_of_every_failure_but_the_last() {
        let policy = RetryPolicy { first_wait: Duration::from_micros(1), ..RetryPolicy::default() };
        let (calls, heard) = (AtomicU32::new(0), Mutex::new(Vec::new()));
        let observer = |notice: RetryNotice<'_>| heard.lock().unwrap().push((notice.attempt, notice.reason.to_string()));
        let result: Result<()> = retry(&policy, &observer, || async {
            calls.fetch_add(1, Ordering::Relaxed);
            Err(broken())
        })
        .await;
        assert!(matches!(result, Err(Error::HubStatus { status: 503, .. })));
        assert_eq!(calls.into_inner(), 5);
        assert_eq!(heard.into_inner().unwrap().iter().map(|(n, _)| *n).collect::<Vec<_>>(), [1, 2, 3, 4]);
    }

    #[tokio::test]
    async fn dropping_the_future_ends_a_long_wait() {
        let policy = RetryPolicy::default();
        let waiting = retry(&policy, &|_| {}, || async { Err::<(), _>(limited(300)) });
        assert!(tokio::time::timeout(Duration::from_millis(20), waiting).await.is_err());
    }

    #[test]
    fn random_numbers_lie_in_the_unit_interval_and_differ() {
        let numbers: Vec<f64> = (0..1000).map(|_| random_unit()).collect();
        assert!(numbers.iter().all(|n| (0.0..1.0).contains(n)));
        let mean = numbers.iter().sum::<f64>() / 1000.0;
        assert!((0.4..0.6).contains(&mean), "{mean}");
    }
}
