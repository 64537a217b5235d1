//! Kills and power losses by the thousand against one store, and what must hold after each: docs/reliability.md, "Crashes and power loss".
//!
//! The parent draws a schedule from a seed. In each round one to four processes, which are this program again, work on one store and are
//! killed: at random instants, or at a named fail point (`storage::fail_point`). Then a process of its own looks at what is left, and
//! the parent holds that against what the processes said they had done.
//!
//! | module | what it is |
//! |---|---|
//! | [`world`] | what there is to pull and to import |
//! | [`plan`] | operations, drawn |
//! | [`worker`] | the process that performs them |
//! | [`history`] | what was said to be done, and what may therefore be there |
//! | [`check`] | the process that looks at a store nobody works on |
//! | [`run`] | rounds: start, kill, check |
//! | [`points`] | the fail points there are |

#![forbid(unsafe_code)]

pub mod check;
pub mod history;
pub mod numbers;
pub mod plan;
pub mod points;
pub mod run;
pub mod worker;
pub mod world;
