//! Fail points: named places between the steps of a change, at which a test kills or stops the process.
//!
//! Without the feature `fail-points` they are nothing. With it they are what the environment says, once, when the first is reached:
//!
//! | variable | value |
//! |---|---|
//! | `MODEL_CACHE_FAIL_AT` | `<name>[:<nth>][=kill\|stop]`: what to do when the point is reached for the nth time, from 1; default `1`, `kill` |
//! | `MODEL_CACHE_FAIL_TRACE` | a file: the name of each point that is reached, a line each, the first time |
//!
//! `kill` is SIGKILL, after which nothing of the process runs; `stop` is SIGSTOP, after which whoever started it may change the world
//! (fill the disk, take a lease) before it sends SIGCONT.

/// Marks a place a process may die at. `name` is `<what is done>.<what was just done>`, such as `free.punched`; unique in the tree.
#[inline(always)]
pub fn fail_point(name: &'static str) {
    #[cfg(feature = "fail-points")]
    told::reach(name);
    #[cfg(not(feature = "fail-points"))]
    let _ = name;
}

/// What `MODEL_CACHE_FAIL_AT` says. A value of its own so that it can be tested without dying.
#[cfg(any(test, feature = "fail-points"))]
#[derive(Debug, PartialEq, Eq)]
struct Plan {
    name: String,
    nth: u64,
    action: Action,
}

#[cfg(any(test, feature = "fail-points"))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    Kill,
    Stop,
}

#[cfg(any(test, feature = "fail-points"))]
impl std::str::FromStr for Plan {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("MODEL_CACHE_FAIL_AT is {text:?}, not <name>[:<nth>][=kill|stop]");
        let (place, action) = match text.split_once('=') {
            None | Some((_, "kill")) => (text.split('=').next().unwrap_or(text), Action::Kill),
            Some((place, "stop")) => (place, Action::Stop),
            Some(_) => return Err(wrong()),
        };
        let (name, nth) = match place.split_once(':') {
            None => (place, 1),
            Some((name, nth)) => (name, nth.parse().map_err(|_| wrong())?),
        };
        if name.is_empty() || nth == 0 {
            return Err(wrong());
        }
        Ok(Self { name: name.to_owned(), nth, action })
    }
}

#[cfg(feature = "fail-points")]
mod told {
    use super::{Action, Plan};
    use nix::sys::signal::{Signal, raise};
    use std::{
        collections::HashSet,
        io::Write,
        sync::{Mutex, OnceLock, PoisonError},
    };

    struct State {
        plan: Option<Plan>,
        trace: Option<std::fs::File>,
        seen: HashSet<&'static str>,
        /// How often the plan's point was reached.
        reached: u64,
    }

    static STATE: OnceLock<Option<Mutex<State>>> = OnceLock::new();

    fn read_environment() -> Option<Mutex<State>> {
        // A test whose fail point is misspelt must not pass because nothing happened.
        let plan = std::env::var("MODEL_CACHE_FAIL_AT").ok().map(|text| text.parse().unwrap_or_else(|error| panic!("{error}")));
        let trace = std::env::var_os("MODEL_CACHE_FAIL_TRACE").map(|path| {
            let opened = std::fs::File::options().create(true).append(true).open(&path);
            opened.unwrap_or_else(|error| panic!("MODEL_CACHE_FAIL_TRACE: {}: {error}", path.display()))
        });
        (plan.is_some() || trace.is_some()).then(|| Mutex::new(State { plan, trace, seen: HashSet::new(), reached: 0 }))
    }

    pub(super) fn reach(name: &'static str) {
        let Some(state) = STATE.get_or_init(read_environment) else { return };
        let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.seen.insert(name)
            && let Some(trace) = &mut state.trace
        {
            // One write a line: several processes append to one file.
            let _ = trace.write_all(format!("{name}\n").as_bytes());
        }
        let Some(plan) = &state.plan else { return };
        if plan.name != name {
            return;
        }
        let (nth, action) = (plan.nth, plan.action);
        state.reached += 1;
        if state.reached != nth {
            return;
        }
        drop(state);
        let signal = match action {
            Action::Kill => Signal::SIGKILL,
            Action::Stop => Signal::SIGSTOP,
        };
        raise(signal).expect("a process may signal itself");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_names_a_point_how_often_it_is_passed_and_what_happens_then() {
        let plan = |name: &str, nth, action| Ok(Plan { name: name.to_owned(), nth, action });
        assert_eq!("free.punched".parse(), plan("free.punched", 1, Action::Kill));
        assert_eq!("free.punched:3".parse(), plan("free.punched", 3, Action::Kill));
        assert_eq!("free.punched=stop".parse(), plan("free.punched", 1, Action::Stop));
        assert_eq!("free.punched:2=kill".parse(), plan("free.punched", 2, Action::Kill));
        for wrong in ["", ":1", "a:0", "a:x", "a=die", "a:1=", "=kill"] {
            assert!(wrong.parse::<Plan>().is_err(), "{wrong}");
        }
    }
}
