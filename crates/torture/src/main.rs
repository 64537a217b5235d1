//! The program `torture`: see the library's words.
#![forbid(unsafe_code)]

use clap::{Args, Parser, Subcommand};
use std::{
    fs,
    path::PathBuf,
    process::ExitCode,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};
use torture::{
    check, points,
    run::{self, Failure, Settings, Summary},
    worker::{self, Orders},
};

/// Kills and power losses by the thousand against a store, and what must hold after each.
#[derive(Debug, Parser)]
#[command(args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(flatten)]
    run: RunArgs,
    #[command(subcommand)]
    mode: Option<Mode>,
}

#[derive(Debug, Args)]
struct RunArgs {
    /// The first store's seed; the next ones follow. Default: of the clock
    #[arg(long)]
    seed: Option<u64>,
    /// End after so many kills
    #[arg(long)]
    kills: Option<u64>,
    /// With every kill the power goes too: what was not synced is replaced by old, zero, torn or random bytes
    #[arg(long)]
    power_loss: bool,
    /// As --power-loss; end after so many losses
    #[arg(long)]
    until_losses: Option<u64>,
    /// End after so many stores
    #[arg(long)]
    stores: Option<u64>,
    /// End after so many seconds. Default: 10, where no other end is given
    #[arg(long)]
    seconds: Option<u64>,
    /// Rounds before a store is given up for a new one
    #[arg(long, default_value_t = 40)]
    rounds: u64,
    /// Stores tortured at the same time
    #[arg(long, default_value_t = 2)]
    jobs: u64,
    /// Where stores are made. Default: /dev/shm, where there is one, else the system's temporary folder
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Kill at this fail point alone, besides random instants; may be repeated
    #[arg(long)]
    point: Vec<String>,
    /// One store, and a Hub that fails now and then, too
    #[arg(long)]
    soak: bool,
    /// Append a line of JSON to this file every five seconds
    #[arg(long)]
    series: Option<PathBuf>,
    /// Kill a process at each fail point in turn, and nothing else
    #[arg(long, conflicts_with_all = ["kills", "stores", "seconds"])]
    every_fail_point: bool,
    /// Print the summary as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum Mode {
    /// A process that works on a store
    #[command(hide = true)]
    Worker {
        #[arg(long)]
        store: PathBuf,
        #[arg(long)]
        endpoint: String,
        #[arg(long)]
        log: PathBuf,
        #[arg(long)]
        number: usize,
        #[arg(long)]
        plan: PathBuf,
        #[arg(long)]
        scratch: PathBuf,
        #[arg(long)]
        faults: bool,
        #[arg(long)]
        spoilt: bool,
    },
    /// A process that checks a store
    #[command(hide = true)]
    Check {
        #[arg(long)]
        store: PathBuf,
        #[arg(long)]
        endpoint: String,
        #[arg(long)]
        also: String,
    },
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = match cli.mode {
        Some(Mode::Worker { store, endpoint, log, number, plan, scratch, faults, spoilt }) => {
            let plan = fs::read(plan).map_err(Into::into).and_then(|plan| Ok(serde_json::from_slice(&plan)?));
            plan.and_then(|plan| worker::work(&Orders { store, endpoint, log, number, plan, scratch, faults, spoilt }))
        }
        Some(Mode::Check { store, endpoint, also }) => check_one(&store, &endpoint, &also).map(|()| true),
        None => return torture(&cli.run),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(3),
        Err(error) => {
            eprintln!("{error}");
            let mut cause = error.source();
            while let Some(source) = cause {
                eprintln!("  {source}");
                cause = source.source();
            }
            ExitCode::FAILURE
        }
    }
}

fn check_one(store: &std::path::Path, endpoint: &str, also: &str) -> Result<(), Box<dyn std::error::Error>> {
    let report = check::check(store, endpoint, &serde_json::from_str(also)?)?;
    println!("{}", serde_json::to_string(&report)?);
    Ok(())
}

fn torture(args: &RunArgs) -> ExitCode {
    let shared_memory = PathBuf::from("/dev/shm");
    let base = args.dir.clone().unwrap_or_else(|| if shared_memory.is_dir() { shared_memory } else { std::env::temp_dir() });
    let made = points::all().and_then(|points| {
        let folder = tempfile::Builder::new().prefix("model-cache-torture.").tempdir_in(&base)?;
        Ok((points, folder))
    });
    let (known, folder) = match made {
        Ok(made) => made,
        Err(error) => {
            eprintln!("torture: can't begin in {}: {error}", base.display());
            return ExitCode::FAILURE;
        }
    };
    let chosen = if args.point.is_empty() { known.iter().cloned().collect() } else { args.point.clone() };
    let power_loss = args.power_loss || args.until_losses.is_some();
    let settings = Settings {
        folder: folder.path().to_owned(),
        rounds_per_store: if args.soak { u64::MAX } else { args.rounds },
        points: chosen,
        power_loss,
        faults: args.soak,
        series: args.series.clone(),
    };
    let first = args.seed.unwrap_or_else(|| std::time::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_secs()));
    let seconds = match (args.seconds, args.kills.or(args.until_losses), args.stores) {
        (None, None, None) => Some(10),
        (seconds, ..) => seconds,
    };
    let jobs = if args.soak { 1 } else { args.jobs.max(1) };
    let begun = Instant::now();
    let (next, killed, lost, stop) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0), AtomicBool::new(false));
    let total = Mutex::new(Summary::default());
    let failures: Mutex<Vec<Failure>> = Mutex::default();
    eprintln!("torture: seed {first}, in {}", folder.path().display());
    let take = |summary: Summary, failure: Option<Failure>| {
        killed.fetch_add(summary.kills, Ordering::Relaxed);
        lost.fetch_add(summary.losses, Ordering::Relaxed);
        total.lock().unwrap_or_else(PoisonError::into_inner).add(summary);
        if let Some(failure) = failure {
            stop.store(true, Ordering::Relaxed);
            failures.lock().unwrap_or_else(PoisonError::into_inner).push(failure);
        }
    };
    let work = || {
        if args.every_fail_point {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let every = settings.points.iter().skip(number as usize).step_by(jobs as usize);
            let (summary, failure) =
                run::walk(first + number, &Settings { points: every.cloned().collect(), ..settings.clone() });
            return take(summary, failure);
        }
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let enough = |done: &Summary| {
                stop.load(Ordering::Relaxed)
                    || seconds.is_some_and(|seconds| begun.elapsed() >= Duration::from_secs(seconds))
                    || args.kills.is_some_and(|kills| killed.load(Ordering::Relaxed) + done.kills >= kills)
                    || args.until_losses.is_some_and(|losses| lost.load(Ordering::Relaxed) + done.losses >= losses)
            };
            if args.stores.is_some_and(|stores| number >= stores) || enough(&Summary::default()) {
                return;
            }
            let (summary, failure) = run::torture(first + number, &settings, &|done| !enough(done));
            take(summary, failure);
        }
    };
    thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(work);
        }
    });
    let total = total.into_inner().unwrap_or_else(PoisonError::into_inner);
    let failures = failures.into_inner().unwrap_or_else(PoisonError::into_inner);
    tell(&total, &known, begun.elapsed(), args.json);
    if failures.is_empty() {
        return ExitCode::SUCCESS;
    }
    let kept = folder.keep();
    for failure in &failures {
        eprintln!("FAILED in round {} of seed {}, its store kept in {}:", failure.round, failure.seed, failure.kept.display());
        failure.what.iter().for_each(|what| eprintln!("  {what}"));
        eprintln!(
            "  again: make torture ARGS=\"--seed {} --stores 1 --jobs 1 {}{}\"",
            failure.seed,
            // A soak has one store, for as long as it takes.
            if args.soak { "--seconds 600".to_owned() } else { format!("--rounds {}", args.rounds) },
            [(args.every_fail_point, " --every-fail-point"), (power_loss, " --power-loss"), (args.soak, " --soak")]
                .iter()
                .filter_map(|(given, option)| given.then_some(*option))
                .collect::<String>()
        );
    }
    eprintln!("all is kept in {}", kept.display());
    ExitCode::FAILURE
}

fn tell(total: &Summary, known: &std::collections::BTreeSet<String>, elapsed: Duration, json: bool) {
    if json {
        let mut document = serde_json::to_value(total).unwrap_or_default();
        if let Some(fields) = document.as_object_mut() {
            let not_reached: Vec<_> = known.difference(&total.points_reached).collect();
            fields.insert("points_not_reached".to_owned(), serde_json::json!(not_reached));
            fields.insert("elapsed_seconds".to_owned(), serde_json::json!(elapsed.as_secs_f64()));
        }
        println!("{document}");
        return;
    }
    println!(
        "{} kills of {} processes ({} at fail points), {} checks of {} stores, {:.0} s: {:.1} kills a second",
        total.kills,
        total.processes,
        total.kills_at.values().sum::<u64>(),
        total.checks,
        total.stores,
        elapsed.as_secs_f64(),
        total.kills as f64 / elapsed.as_secs_f64(),
    );
    for (kind, ended) in &total.operations {
        println!("  {kind}: {} done, {} refused, {} killed", ended.done, ended.refused, ended.cut);
    }
    println!(
        "  {} MiB served, {} MiB hashed; {} interrupted pulls went on from {} MiB",
        total.served_bytes >> 20,
        total.hashed_bytes >> 20,
        total.resumed,
        total.resumed_landed_bytes >> 20
    );
    if total.losses > 0 {
        let lost = &total.lost;
        println!(
            "  {} power losses: of {} unsynced writes {} old, {} zero, {} torn, {} random, {} MiB; {} metas not durable; {} MiB that were journaled and lost were fetched again",
            total.losses,
            lost.unsynced,
            lost.old,
            lost.zero,
            lost.torn,
            lost.random,
            lost.bytes >> 20,
            lost.weak_metas,
            total.distrusted_bytes >> 20
        );
    }
    if total.faults > 0 {
        println!("  {} faults of the Hub, {} of them in rounds after which all held", total.faults, total.faults_survived);
    }
    let never: Vec<_> = known.iter().filter(|point| !total.kills_at.contains_key(*point)).cloned().collect();
    println!("  killed at {} of {} fail points; not at {}", known.len() - never.len(), known.len(), never.join(" "));
}
