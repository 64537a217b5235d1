//! The places of a pull's connections: a semaphore whose number the [`Controller`] changes while they are in use.

use super::adapt::{Controller, Seen, TICK};
use crate::limit::RateLimit;
use std::{
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::sync::{Semaphore, SemaphorePermit};

/// How many connections a pull may have at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Connections {
    /// So many, always.
    Fixed(usize),
    /// As many as pay, at most so many.
    Adaptive { most: usize },
}

impl Connections {
    /// The most there will ever be.
    pub(crate) fn most(self) -> usize {
        match self {
            Self::Fixed(most) | Self::Adaptive { most } => most,
        }
    }
}

/// The connections of one pull.
pub(crate) struct Gate {
    permits: Semaphore,
    places: Mutex<Places>,
    /// None where the number is fixed.
    controller: Option<Mutex<Controller>>,
    arrived_bytes: AtomicU64,
    refused: AtomicBool,
    /// The shortest time to the first byte of an answer, in microseconds.
    first_byte_us: AtomicU64,
    /// The shortest time a block took, in microseconds.
    block_us: AtomicU64,
}

struct Places {
    allowed: usize,
    /// Places taken back while they were in use: given up as they are left.
    owed: usize,
}

/// A connection's place, until it is dropped.
pub(crate) struct Place<'a> {
    gate: &'a Gate,
    permit: Option<SemaphorePermit<'a>>,
}

impl Gate {
    pub(crate) fn new(connections: Connections) -> Self {
        let (allowed, controller) = match connections {
            Connections::Fixed(number) => (number, None),
            Connections::Adaptive { most } => {
                let controller = Controller::new(most);
                (controller.connections(), Some(Mutex::new(controller)))
            }
        };
        Self {
            permits: Semaphore::new(allowed),
            places: Mutex::new(Places { allowed, owed: 0 }),
            controller,
            arrived_bytes: AtomicU64::new(0),
            refused: AtomicBool::new(false),
            first_byte_us: AtomicU64::new(u64::MAX),
            block_us: AtomicU64::new(u64::MAX),
        }
    }

    /// Waits for a place.
    pub(crate) async fn enter(&self) -> Place<'_> {
        let permit = self.permits.acquire().await.expect("the semaphore is never closed");
        Place { gate: self, permit: Some(permit) }
    }

    /// How many may be in use.
    pub(crate) fn allowed(&self) -> usize {
        self.places().allowed
    }

    /// Bytes of a file arrived.
    pub(crate) fn arrived(&self, bytes: u64) {
        self.arrived_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// An answer began so long after it was asked for.
    pub(crate) fn answered_after(&self, first_byte: Duration) {
        self.first_byte_us.fetch_min(first_byte.as_micros() as u64, Ordering::Relaxed);
    }

    /// The shortest time to the first byte of an answer: how far the server is, whatever else this machine is doing.
    pub(crate) fn first_byte(&self) -> Duration {
        match self.first_byte_us.load(Ordering::Relaxed) {
            u64::MAX => Duration::ZERO,
            us => Duration::from_micros(us),
        }
    }

    /// A block arrived in so much time.
    pub(crate) fn block_took(&self, time: Duration) {
        self.block_us.fetch_min(time.as_micros() as u64, Ordering::Relaxed);
    }

    /// The shortest time a block took, if one has come.
    pub(crate) fn quickest_block(&self) -> Option<Duration> {
        Some(self.block_us.load(Ordering::Relaxed)).filter(|us| *us != u64::MAX).map(Duration::from_micros)
    }

    /// The server said that it is asked too much.
    pub(crate) fn refused(&self) {
        self.refused.store(true, Ordering::Relaxed);
    }

    /// Adapts the number for as long as it is polled. While `limit` holds bytes back, the number of connections is not what decides
    /// the speed, and is not judged.
    pub(crate) async fn adapt(&self, limit: Option<&RateLimit>) -> std::convert::Infallible {
        let Some(controller) = &self.controller else { return std::future::pending().await };
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let (mut at, mut bytes, mut was_full, mut waits) = (Instant::now(), 0, false, 0);
        loop {
            ticks.tick().await;
            let (now, arrived, full) = (Instant::now(), self.arrived_bytes.load(Ordering::Relaxed), self.is_full());
            let waited = limit.map_or(0, RateLimit::waits);
            let seen = Seen {
                elapsed: now - at,
                bytes: arrived - bytes,
                in_full_use: full && was_full && waited == waits,
                refused: self.refused.swap(false, Ordering::Relaxed),
                first_byte: self.first_byte(),
            };
            (at, bytes, waits) = (now, arrived, waited);
            let next = controller.lock().unwrap_or_else(PoisonError::into_inner).next(seen);
            if next != self.allowed() {
                tracing::debug!(connections = next, seen.bytes, elapsed_ms = seen.elapsed.as_millis() as u64, "adapting");
            }
            self.allow(next);
            was_full = self.is_full();
        }
    }

    /// Whether exactly as many as allowed are in use.
    fn is_full(&self) -> bool {
        self.places().owed == 0 && self.permits.available_permits() == 0
    }

    fn allow(&self, number: usize) {
        let mut places = self.places();
        if number > places.allowed {
            let more = number - places.allowed;
            let forgiven = more.min(places.owed);
            places.owed -= forgiven;
            self.permits.add_permits(more - forgiven);
        } else {
            let fewer = places.allowed - number;
            places.owed += fewer - self.permits.forget_permits(fewer);
        }
        places.allowed = number;
    }

    fn places(&self) -> MutexGuard<'_, Places> {
        // Every change leaves the two numbers whole.
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut places = self.gate.places();
        if places.owed > 0 {
            places.owed -= 1;
            if let Some(permit) = self.permit.take() {
                permit.forget();
            }
        }
        // With the places locked, so that no owed one is handed on.
        drop(self.permit.take());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn no_more_places_are_given_than_are_allowed_and_none_is_lost(
            ops in prop::collection::vec(prop_oneof![(1usize..9).prop_map(Some), Just(None)], 0..60),
            leaves in prop::collection::vec(any::<prop::sample::Index>(), 60),
        ) {
            let gate = Gate::new(Connections::Fixed(4));
            let mut held = Vec::new();
            for (op, leave) in ops.into_iter().zip(leaves) {
                match op {
                    Some(number) => gate.allow(number),
                    None if !held.is_empty() && leave.index(2) == 0 => drop(held.swap_remove(leave.index(held.len()))),
                    None => {
                        let place = gate.enter().now_or_never();
                        prop_assert_eq!(place.is_some(), held.len() < gate.allowed());
                        held.extend(place);
                    }
                }
                prop_assert_eq!(gate.is_full(), held.len() == gate.allowed());
            }
            drop(held);
            let all: Vec<_> = std::iter::from_fn(|| gate.enter().now_or_never()).collect();
            prop_assert_eq!(all.len(), gate.allowed());
        }
    }
}
