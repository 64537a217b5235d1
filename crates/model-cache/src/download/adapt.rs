//! How many connections a pull is to have, from what the last ones brought: values and arithmetic, no I/O.
//!
//! A server that limits each connection gives twice as much to twice as many; where something that all share is the limit, more
//! bring nothing. Which of the two it is can only be tried. So the number is doubled while that pays, and from then on tried upwards
//! and downwards now and then, at ever longer intervals as long as trying shows nothing new.

use std::time::Duration;

/// How often the controller is asked.
pub(crate) const TICK: Duration = Duration::from_millis(50);
/// Connections a pull begins with: as many as a near server without limits needs (docs/performance.md, "Connections").
const FIRST: usize = 4;
/// The shortest time judged, and the fewest bytes: less is noise.
const SHORTEST: Duration = Duration::from_millis(100);
const FEWEST_BYTES: u64 = 1 << 20;
/// Bytes a second of a connection at which no more are tried: each of them brings what a network of a gigabit carries, so the server
/// does not hold them back, and how they come is this machine's own business, which a trial would only take for a gain.
const FAST: f64 = 100e6;
/// Judged after so long however little came.
const LONGEST: Duration = Duration::from_secs(2);
/// The share of its equals' speed that a connection more has to bring, or it is not kept.
const WORTH: f64 = 0.25;
/// The share of the speed that may be missing with fewer connections, and they are enough.
const SPARED: f64 = 0.05;
/// How often a trial that shows no gain is judged again, where an answer takes no time: connections have to be made first.
const PATIENCE: u32 = 2;
/// Round trips in which a connection is made and reaches its speed.
const ROUND_TRIPS: u32 = 16;
const MOST_ROUND_TRIPS: Duration = Duration::from_secs(4);
/// The wait before the first trial after the climb has ended; doubled by each that shows nothing.
const FIRST_WAIT: Duration = Duration::from_secs(4);
const LONGEST_WAIT: Duration = Duration::from_secs(64);
/// The shortest time judged while nothing is tried.
const HOLDING: Duration = Duration::from_secs(1);
/// A speed that changes by more than this factor by itself, for two looks, makes a trial due.
const UNLIKE: f64 = 1.5;
/// How long a number at which the server refused is not gone back to, and how long its refusals count once.
const REFUSED_FOR: Duration = Duration::from_secs(60);
const REFUSED_ONCE: Duration = Duration::from_secs(1);

/// What was seen since the last look.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Seen {
    pub(crate) elapsed: Duration,
    /// Bytes of files that arrived.
    pub(crate) bytes: u64,
    /// Whether as many connections as allowed were in use, no fewer and no more, and not held back by a limit of the rate: else their
    /// number was not what decided.
    pub(crate) in_full_use: bool,
    /// Whether the server said it is asked too much: 429 or 503.
    pub(crate) refused: bool,
    /// The shortest time to the first byte of an answer so far.
    pub(crate) first_byte: Duration,
}

/// Decides the number of connections, look by look.
#[derive(Clone, Debug)]
pub(crate) struct Controller {
    most: usize,
    now: usize,
    phase: Phase,
    /// Collected until there is enough to be judged.
    window: Seen,
    /// How long connections take to be made and to reach their speed.
    round_trips: Duration,
    up: Trials,
    down: Trials,
    /// The number at which the server refused, and for how long it is kept away from.
    refused: Option<(usize, Duration)>,
    /// Whether it ever refused: then connections are added one by one.
    cautious: bool,
}

/// When to try in one direction.
#[derive(Clone, Copy, Debug)]
struct Trials {
    /// Until the next one.
    due_in: Duration,
    /// From one that shows nothing to the next.
    wait: Duration,
}

impl Trials {
    const NEW: Self = Self { due_in: FIRST_WAIT, wait: FIRST_WAIT };

    /// One showed that things are as they were.
    fn in_vain(&mut self) {
        self.wait = (self.wait * 2).min(LONGEST_WAIT);
        self.due_in = self.wait;
    }

    fn pass(&mut self, elapsed: Duration) {
        self.due_in = self.due_in.saturating_sub(elapsed);
    }
}

/// What is being found out. Speeds are in bytes a second.
#[derive(Clone, Copy, Debug)]
enum Phase {
    /// Nothing has come yet.
    Waiting,
    /// The speed of the first number.
    First,
    /// Whether `now` is better than `from` connections were.
    Trying { from: usize, speed: f64, judged: u32 },
    /// Nothing, for a while: for how long a change of the speed is still the trial's, and whether the last look was unlike those
    /// before it.
    Holding { speed: Option<f64>, settling: Duration, unlike: bool },
}

impl Controller {
    /// At most `most` connections, which is at least 1.
    pub(crate) fn new(most: usize) -> Self {
        Self {
            most,
            now: FIRST.min(most),
            phase: Phase::Waiting,
            window: Seen::default(),
            round_trips: Duration::ZERO,
            up: Trials::NEW,
            down: Trials::NEW,
            refused: None,
            cautious: false,
        }
    }

    /// The number of connections to have now: 1 to `most`.
    pub(crate) fn connections(&self) -> usize {
        self.now
    }

    /// Takes in what was seen with [`Self::connections`], and gives the number to have next.
    pub(crate) fn next(&mut self, seen: Seen) -> usize {
        self.pass(seen.elapsed);
        self.round_trips = seen.first_byte.saturating_mul(ROUND_TRIPS).min(MOST_ROUND_TRIPS);
        if seen.refused {
            self.step_back();
        } else if !seen.in_full_use {
            // What was collected was with another number in use.
            self.window = Seen::default();
        } else if matches!(self.phase, Phase::Waiting) {
            // The first bytes come while connections are still being made: they tell that it begins, not how fast it is.
            if seen.bytes > 0 {
                self.phase = Phase::First;
            }
        } else {
            self.window.elapsed += seen.elapsed;
            self.window.bytes += seen.bytes;
            let shortest = if matches!(self.phase, Phase::Holding { .. }) { HOLDING } else { SHORTEST };
            let enough = self.window.elapsed >= shortest && self.window.bytes >= FEWEST_BYTES;
            if enough || self.window.elapsed >= LONGEST {
                let speed = self.window.bytes as f64 / self.window.elapsed.as_secs_f64();
                self.window = Seen::default();
                self.judge(speed);
            }
        }
        self.now
    }

    /// Lets time pass, whatever was seen.
    fn pass(&mut self, elapsed: Duration) {
        self.up.pass(elapsed);
        self.down.pass(elapsed);
        if let Phase::Holding { settling, .. } = &mut self.phase {
            *settling = settling.saturating_sub(elapsed);
        }
        self.refused = self.refused.and_then(|(at, left)| (left > elapsed).then(|| (at, left - elapsed)));
    }

    /// The server refuses: as many as before where more were tried, else half as many; and not as many as now again for a while.
    fn step_back(&mut self) {
        // Answers to requests that were under way tell of the same.
        if self.refused.is_some_and(|(_, left)| left > REFUSED_FOR - REFUSED_ONCE) {
            return;
        }
        self.refused = Some((self.now, REFUSED_FOR));
        self.cautious = true;
        match self.phase {
            Phase::Trying { from, speed, .. } if from < self.now => self.hold(from, Some(speed)),
            _ => self.hold((self.now / 2).max(1), None),
        }
    }

    fn judge(&mut self, speed: f64) {
        match self.phase {
            Phase::Waiting => {}
            Phase::First => self.climb(speed),
            Phase::Trying { from, speed: before, judged } if self.now > from => {
                let added = self.now as f64 / from as f64 - 1.0;
                let patience = PATIENCE + (self.round_trips.as_secs_f64() / SHORTEST.as_secs_f64()) as u32;
                if speed >= before * (1.0 + WORTH * added) {
                    (self.up, self.down) = (Trials::NEW, Trials::NEW);
                    self.climb(speed);
                } else if judged < patience {
                    self.phase = Phase::Trying { from, speed: before, judged: judged + 1 };
                } else {
                    self.up.in_vain();
                    self.hold(from, Some(before));
                }
            }
            Phase::Trying { from, speed: before, judged } => {
                if speed < before * (1.0 - SPARED) {
                    self.down.in_vain();
                    self.hold(from, Some(before));
                } else if judged < PATIENCE {
                    // Giving connections up is judged by the worst of several looks: what they left behind still comes in.
                    self.phase = Phase::Trying { from, speed: before, judged: judged + 1 };
                } else {
                    self.down = Trials::NEW;
                    self.hold(self.now, Some(speed));
                }
            }
            Phase::Holding { settling, .. } if !settling.is_zero() => {
                self.phase = Phase::Holding { speed: Some(speed), settling, unlike: false };
            }
            Phase::Holding { speed: held, settling, unlike: before } => {
                let unlike = held.is_some_and(|held| speed > held * UNLIKE || speed * UNLIKE < held);
                let changed = unlike && before;
                let held = held.map_or(speed, |held| if changed { speed } else { (held * 3.0 + speed) / 4.0 });
                self.phase = Phase::Holding { speed: Some(held), settling, unlike };
                if changed {
                    (self.up, self.down) = (Trials::NEW, Trials::NEW);
                }
                if (changed || self.up.due_in.is_zero()) && self.may_climb(held) {
                    self.climb(held);
                } else if (changed || self.down.due_in.is_zero()) && self.now > 1 {
                    self.turn_to(self.now - (self.now / 4).max(1), held);
                }
            }
        }
    }

    /// Tries twice as many, or one more where the server has refused, if more are allowed and may pay.
    fn climb(&mut self, speed: f64) {
        if self.may_climb(speed) {
            let next = if self.cautious { self.now + 1 } else { self.now * 2 };
            self.turn_to(next.min(self.ceiling()), speed);
        } else {
            self.hold(self.now, Some(speed));
        }
    }

    fn may_climb(&self, speed: f64) -> bool {
        self.now < self.ceiling() && speed < FAST * self.now as f64
    }

    fn turn_to(&mut self, next: usize, speed: f64) {
        self.phase = Phase::Trying { from: self.now, speed, judged: 0 };
        self.now = next;
    }

    fn hold(&mut self, at: usize, speed: Option<f64>) {
        self.now = at;
        self.window = Seen::default();
        self.phase = Phase::Holding { speed, settling: self.round_trips + HOLDING, unlike: false };
    }

    fn ceiling(&self) -> usize {
        self.refused.map_or(self.most, |(at, _)| (at - 1).clamp(1, self.most))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A network of a server, far or near, that gives each connection so much, and all of them together so much.
    #[derive(Clone, Copy, Debug)]
    struct Network {
        per_connection: f64,
        shared: f64,
        /// Round trip: a connection brings nothing for two, then doubles its speed with each.
        round_trip: Duration,
        /// Connections beyond these are refused.
        refused_above: usize,
    }

    const MB: f64 = 1e6;

    impl Network {
        fn limited(per_connection: f64) -> Self {
            Self { per_connection, shared: f64::INFINITY, round_trip: Duration::ZERO, refused_above: usize::MAX }
        }

        fn shared(shared: f64) -> Self {
            Self { shared, ..Self::limited(f64::INFINITY) }
        }

        /// Bytes a second of a connection of this age, were it alone.
        fn speed_of(&self, age: Duration) -> f64 {
            let trips = if self.round_trip.is_zero() { f64::INFINITY } else { age.as_secs_f64() / self.round_trip.as_secs_f64() };
            if trips < 2.0 {
                0.0
            } else {
                self.per_connection
                    .min(self.shared)
                    .min(1e9)
                    .min(30e3 * 2f64.powf(trips - 2.0) / self.round_trip.as_secs_f64().max(1e-9))
            }
        }
    }

    /// What a controller did on networks that follow each other.
    struct Ran {
        /// The number at each tick.
        numbers: Vec<usize>,
        bytes: f64,
    }

    impl Ran {
        /// The numbers in turn, and for how many ticks each.
        fn runs(&self) -> Vec<(usize, usize)> {
            self.numbers.chunk_by(|a, b| a == b).map(|run| (run[0], run.len())).collect()
        }

        fn changes(&self) -> usize {
            self.numbers.windows(2).filter(|pair| pair[0] != pair[1]).count()
        }

        /// The share of ticks, from `from` on, at which the number lies in `range`.
        fn share_in(&self, from: usize, range: std::ops::RangeInclusive<usize>) -> f64 {
            let seen = &self.numbers[from..];
            seen.iter().filter(|n| range.contains(n)).count() as f64 / seen.len() as f64
        }
    }

    fn ticks(seconds: u32) -> u32 {
        seconds * (Duration::from_secs(1).as_millis() / TICK.as_millis()) as u32
    }

    /// `noise` in 0..1 shakes the speed of each tick by up to so much either way.
    fn run(most: usize, phases: &[(Network, u32)], noise: f64, mut random: u64) -> Ran {
        let mut controller = Controller::new(most);
        let mut ages: Vec<Duration> = Vec::new();
        let mut ran = Ran { numbers: Vec::new(), bytes: 0.0 };
        for (network, ticks) in phases {
            for _ in 0..*ticks {
                let wanted = controller.connections();
                assert!((1..=most).contains(&wanted));
                let refused = wanted > network.refused_above;
                let alive = wanted.min(network.refused_above);
                ages.resize(alive, Duration::ZERO);
                let sum: f64 = ages.iter().map(|age| network.speed_of(*age)).sum();
                random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let shaken = 1.0 + noise * ((random >> 33) as f64 / f64::from(1u32 << 30) - 1.0);
                let bytes = sum.min(network.shared) * TICK.as_secs_f64() * shaken;
                ages.iter_mut().for_each(|age| *age += TICK);
                ran.bytes += bytes;
                ran.numbers.push(wanted);
                controller.next(Seen {
                    elapsed: TICK,
                    bytes: bytes as u64,
                    in_full_use: alive == wanted,
                    refused,
                    first_byte: network.round_trip,
                });
            }
        }
        ran
    }

    #[test]
    fn a_limit_of_each_connection_is_answered_with_all_within_half_a_second() {
        let ran = run(16, &[(Network::limited(20.0 * MB), ticks(15))], 0.0, 1);
        assert_eq!(ran.numbers[ticks(1) as usize / 2], 16, "{:?}", ran.runs());
        // 15 s: 4.8 GB were the most.
        assert!(ran.bytes >= 0.95 * 16.0 * 20.0 * MB * 15.0, "{} {:?}", ran.bytes, ran.runs());
    }

    #[test]
    fn a_shared_limit_is_met_with_few() {
        // As fast as no more are tried at, and so slow that they are.
        for shared in [1000.0, 200.0] {
            let ran = run(16, &[(Network::shared(shared * MB), ticks(300))], 0.02, 7);
            assert!(ran.share_in(ticks(10) as usize, 1..=4) > 0.9, "{shared} {:?}", ran.runs());
        }
    }

    #[test]
    fn a_server_that_holds_nobody_back_is_asked_by_no_more_however_unevenly_its_bytes_come() {
        // A machine busy with other things in the first second, then the same with none.
        for begun in [Network::shared(500.0 * MB), Network::limited(250.0 * MB)] {
            let ran = run(16, &[(begun, ticks(1)), (Network::limited(250.0 * MB), ticks(20))], 0.4, 5);
            assert!(ran.numbers.iter().all(|n| *n <= FIRST), "{:?}", ran.runs());
        }
    }

    #[test]
    fn what_is_shared_later_lets_connections_go_and_what_is_limited_later_brings_them_back() {
        let (wide, narrow) = (Network::limited(20.0 * MB), Network { shared: 50.0 * MB, ..Network::limited(20.0 * MB) });
        let ran = run(16, &[(wide, ticks(10)), (narrow, ticks(150)), (wide, ticks(80))], 0.02, 3);
        assert_eq!(ran.numbers[ticks(10) as usize - 1], 16);
        assert!(ran.numbers[ticks(160) as usize - 1] <= 8, "{:?}", ran.runs());
        assert!(ran.numbers[ticks(160) as usize..].contains(&16), "{:?}", ran.runs());
    }

    #[test]
    fn refusals_bring_the_number_below_what_was_refused_and_keep_it_there() {
        let strict = Network { refused_above: 5, ..Network::limited(20.0 * MB) };
        let ran = run(16, &[(strict, ticks(120))], 0.0, 1);
        let above = ran.numbers.iter().filter(|n| **n > 5).count();
        // In the climb, one by one from there, and one more after each minute.
        assert!(above <= 5 && ran.share_in(ticks(20) as usize, 5..=5) > 0.9, "{above} {:?}", ran.runs());
    }

    #[test]
    fn numbers_that_were_not_in_full_use_are_not_judged() {
        let mut controller = Controller::new(16);
        for _ in 0..1000 {
            let seen = Seen { elapsed: TICK, bytes: 8 << 20, in_full_use: false, ..Seen::default() };
            assert_eq!(controller.next(seen), FIRST);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn any_steady_network_is_used_to_nine_tenths_and_without_flapping(
            most in 1usize..=16,
            per_connection in 0.2f64..500.0,
            shared in 1.0f64..2000.0,
            round_trip_ms in 0u64..150,
            noise in 0.0f64..0.02,
            random: u64,
        ) {
            let network = Network {
                per_connection: per_connection * MB,
                shared: shared * MB,
                round_trip: Duration::from_millis(round_trip_ms),
                refused_above: usize::MAX,
            };
            let minutes = 5;
            let ran = run(most, &[(network, ticks(minutes * 60))], noise, random);
            // As many as are tried at such speeds.
            let connections = if per_connection * MB > 0.95 * FAST { most.min(FIRST) } else { most };
            let best = (per_connection * connections as f64).min(shared) * MB * 60.0 * f64::from(minutes);
            // What more connections bring is taken as long as each brings a quarter of its equals.
            prop_assert!(ran.bytes >= 0.75 * best, "{} of {best}: {:?}", ran.bytes, ran.runs());
            if per_connection * connections as f64 <= shared {
                prop_assert!(ran.bytes >= 0.9 * best, "{} of {best}: {:?}", ran.bytes, ran.runs());
            }
            // The climb, then trials at doubling intervals.
            prop_assert!(ran.changes() <= 60, "{} {:?}", ran.changes(), ran.runs());
        }

        #[test]
        fn whatever_is_seen_the_number_stays_within_bounds(
            most in 1usize..=64,
            seen in prop::collection::vec((0u64..5000, 0u64..1 << 40, any::<bool>(), prop::bool::weighted(0.1), 0u64..10_000), 0..300),
        ) {
            let mut controller = Controller::new(most);
            for (elapsed, bytes, in_full_use, refused, first_byte) in seen {
                let before = controller.connections();
                let (elapsed, first_byte) = (Duration::from_millis(elapsed), Duration::from_millis(first_byte));
                let next = controller.next(Seen { elapsed, bytes, in_full_use, refused, first_byte });
                prop_assert!((1..=most).contains(&next));
                prop_assert!(next <= before * 2 && (!refused || next <= before));
            }
        }
    }
}
