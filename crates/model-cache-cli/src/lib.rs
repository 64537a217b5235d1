//! The program `model-cache`: it turns words into calls of the library and answers into text or JSON. It decides nothing else.
#![forbid(unsafe_code)]

mod args;
mod commands;
mod context;
mod exit;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzz;
mod interrupt;
mod log;
mod options;
mod output;
mod progress;
mod render;
mod talk;

use context::Context;
use exit::{Code, Failure};
use std::process::ExitCode;

/// Runs the program on the command line of this process.
pub fn main() -> ExitCode {
    // First of all: an interrupt is answered however early it comes.
    let interrupt = interrupt::Interrupt::listen();
    talk::hide_backtraces();
    let raw: Vec<_> = std::env::args_os().collect();
    let args = match args::parse(&raw) {
        Ok(args) => args,
        Err(refused) => return refused.tell(),
    };
    options::remember(&args.global);
    log::start(args.global.verbose, args.global.progress);
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            let failure = Failure::new(Code::Other, format!("no threads to work with: {error}"));
            return failure.tell(args.global.json, false).into();
        }
    };
    let (json, verbose) = (args.global.json, args.global.verbose > 0);
    let events = args.global.progress == args::ProgressMode::Json;
    let result = runtime.block_on(async {
        let interrupt = interrupt.map_err(|error| Failure::new(Code::Other, format!("can't listen for signals: {error}")))?;
        let cx = Context::new(args.global, interrupt)?;
        commands::run(&cx, args.command).await
    });
    talk::end_progress();
    let code = match result {
        Ok(code) => code,
        Err(failure) if events && !json => failure.tell_event(),
        Err(failure) => failure.tell(json, verbose),
    };
    // Work on other threads that an interrupt left behind must not keep the program alive; the store stands a kill at any point.
    runtime.shutdown_background();
    code.leave()
}
