//! Rounds: processes are started, killed, and what they leave is checked.

use crate::{
    check::{Also, Report},
    history::{Ends, History, Log},
    numbers::Numbers,
    plan::{self, Mix, Op},
    worker::CONNECTIONS,
    world::World,
};
use hub_fixture::Hub;
use serde::Serialize;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};
use tabagent_model_cache::BLOCK_BYTES;

/// What a process may take for its work before it counts as hanging.
const PATIENCE: Duration = Duration::from_secs(120);
const PAUSE: Duration = Duration::from_micros(500);
/// What a connection that is cut may have fetched in vain: a block, and what the buffers of both ends hold.
const IN_FLIGHT: u64 = BLOCK_BYTES + (1 << 20);

/// How to torture.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where stores are made.
    pub folder: PathBuf,
    /// Rounds with kills before a store is given up for a new one.
    pub rounds_per_store: u64,
    /// The fail points to kill at.
    pub points: Vec<String>,
}

/// What was done and found so far.
#[derive(Debug, Default, Serialize)]
pub struct Summary {
    /// Stores made.
    pub stores: u64,
    /// Rounds, each ended by a check.
    pub checks: u64,
    /// Processes started.
    pub processes: u64,
    /// Processes killed.
    pub kills: u64,
    /// Of these, at a fail point: how often at each.
    pub kills_at: BTreeMap<String, u64>,
    /// Fail points passed by any process.
    pub points_reached: BTreeSet<String>,
    /// Operations by kind.
    pub operations: BTreeMap<String, Ended>,
    /// Bytes of files the Hub sent.
    pub served_bytes: u64,
    /// Bytes whose SHA-256 was computed by checks.
    pub hashed_bytes: u64,
    /// Interrupted pulls that were gone on with and counted.
    pub resumed: u64,
    /// Bytes those had landed.
    pub resumed_landed_bytes: u64,
}

/// How operations ended.
#[derive(Debug, Default, Serialize)]
pub struct Ended {
    /// Well.
    pub done: u64,
    /// With an error that others' work is the right cause of.
    pub refused: u64,
    /// Killed.
    pub cut: u64,
}

impl Summary {
    /// Adds what another run did.
    pub fn add(&mut self, other: Self) {
        self.stores += other.stores;
        self.checks += other.checks;
        self.processes += other.processes;
        self.kills += other.kills;
        for (point, count) in other.kills_at {
            *self.kills_at.entry(point).or_default() += count;
        }
        self.points_reached.extend(other.points_reached);
        for (kind, ended) in other.operations {
            let sum = self.operations.entry(kind).or_default();
            sum.done += ended.done;
            sum.refused += ended.refused;
            sum.cut += ended.cut;
        }
        self.served_bytes += other.served_bytes;
        self.hashed_bytes += other.hashed_bytes;
        self.resumed += other.resumed;
        self.resumed_landed_bytes += other.resumed_landed_bytes;
    }

    fn count(&mut self, ends: &BTreeMap<&'static str, Ends>) {
        for (kind, ends) in ends {
            let sum = self.operations.entry((*kind).to_owned()).or_default();
            sum.done += ends.done;
            sum.refused += ends.refused;
            sum.cut += ends.cut;
        }
    }
}

/// Something that must hold, and did not.
#[derive(Debug)]
pub struct Failure {
    /// What.
    pub what: Vec<String>,
    /// The store's seed.
    pub seed: u64,
    /// The round.
    pub round: u64,
    /// Where the store is kept.
    pub kept: PathBuf,
}

impl From<(io::Error, &Stage)> for Failure {
    fn from((error, stage): (io::Error, &Stage)) -> Self {
        stage.failure(vec![format!("the harness itself: {error}")])
    }
}

/// When a process is killed.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Kill {
    /// So long after its start.
    After(Duration),
    /// When it passes a fail point for the nth time.
    At(String, u64),
    /// When the first of the others is.
    WithOthers,
    /// Not at all.
    Never,
}

/// One store, its Hub, and what is known of it.
pub struct Stage {
    folder: PathBuf,
    seed: u64,
    round: u64,
    world: World,
    hub: Hub,
    names: BTreeMap<String, String>,
    /// Complete bytes and bytes landed of what was begun, at the last check.
    here_bytes: u64,
}

impl Stage {
    /// A new store for `seed`.
    ///
    /// # Errors
    /// Those of making its folder and Hub.
    pub fn new(seed: u64, settings: &Settings) -> io::Result<Self> {
        let folder = settings.folder.join(format!("seed-{seed}"));
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(folder.join("sources"))?;
        let (world, hub) = World::new(seed, &folder.join("sources"))?;
        Ok(Self { folder, seed, round: 0, world, hub, names: BTreeMap::new(), here_bytes: 0 })
    }

    /// The store's folder, and all that belongs to it.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    fn store(&self) -> PathBuf {
        self.folder.join("store")
    }

    fn failure(&self, what: Vec<String>) -> Failure {
        Failure { what, seed: self.seed, round: self.round, kept: self.folder.clone() }
    }

    /// One round of random operations and kills.
    ///
    /// # Errors
    /// What does not hold after it.
    pub fn round(&mut self, settings: &Settings, numbers: &mut Numbers, summary: &mut Summary) -> Result<(), Failure> {
        self.round += 1;
        let mix = if numbers.once_in(4) { Mix::Pulls } else { Mix::All };
        if numbers.once_in(6) {
            self.world.push(&self.hub);
        }
        let processes = [1, 1, 1, 2, 2, 3, 4][numbers.within(0..7) as usize];
        let mut plans = Vec::new();
        let mut kills = Vec::new();
        for number in 0..processes {
            plans.push(plan::draw(&self.world, mix, numbers.within(2..9) as usize, numbers));
            kills.push(draw_kill(settings, number == 0, numbers));
        }
        let also = Also { verify: numbers.once_in(8), gc: numbers.once_in(4), resume: numbers.once_in(3) };
        self.act(&plans, &kills, mix, also, summary)
    }

    /// Runs the plans, kills, and checks.
    fn act(&mut self, plans: &[Vec<Op>], kills: &[Kill], mix: Mix, also: Also, summary: &mut Summary) -> Result<(), Failure> {
        let log = self.folder.join("log");
        let run = || -> io::Result<()> {
            let _ = fs::remove_file(&log);
            Log::open(&log)?;
            Ok(())
        };
        run().map_err(|error| Failure::from((error, &*self)))?;
        self.hub.clear_log();
        let ended = self.run_processes(plans, kills, &log, summary).map_err(|error| Failure::from((error, &*self)))?;
        let lines = Log::read(&log).map_err(|error| Failure::from((error, &*self)))?;
        let history = History::new(&self.world, &self.names, plans, &lines);
        summary.count(&history.ends);
        let mut wrong = history.failures.clone();
        wrong.extend(ended);
        let served_bytes = self.hub.bytes_served();
        self.hub.clear_log();
        // Also where a process found something wrong: what is left is worth knowing.
        let report = self.check(also).map_err(|why| {
            let mut all = wrong.clone();
            all.push(why);
            self.failure(all)
        })?;
        wrong.extend(report.wrong.iter().cloned());
        wrong.extend(history.contradictions(&report.names));
        let landed: u64 = report.fills.iter().map(|begun| begun.landed_bytes).sum();
        if mix == Mix::Pulls {
            // Read before the check resumed anything.
            let here: BTreeSet<&String> = report.names.values().collect();
            let here_bytes = here.iter().map(|digest| self.world.size_bytes(digest)).sum::<u64>() + landed;
            let lost_bytes = served_bytes.saturating_sub(here_bytes.saturating_sub(self.here_bytes));
            let allowed_bytes = plans.len() as u64 * CONNECTIONS as u64 * IN_FLIGHT;
            if lost_bytes > allowed_bytes {
                wrong.push(format!(
                    "{served_bytes} bytes were served, {here_bytes} are here after {}: {lost_bytes} in vain, more than the {allowed_bytes} in flight",
                    self.here_bytes
                ));
            }
        }
        wrong.extend(self.check_resumed(&report, summary));
        summary.served_bytes += served_bytes + self.hub.bytes_served();
        summary.hashed_bytes += report.hashed_bytes;
        summary.checks += 1;
        if !wrong.is_empty() {
            return Err(self.failure(wrong));
        }
        let here: BTreeSet<&String> = report.names_in_the_end.values().collect();
        self.here_bytes = here.iter().map(|digest| self.world.size_bytes(digest)).sum::<u64>();
        if !also.gc && !also.resume {
            self.here_bytes += landed;
        }
        self.names = report.names_in_the_end;
        Ok(())
    }

    /// That interrupted pulls fetched what was missing, and nothing else.
    fn check_resumed(&self, report: &Report, summary: &mut Summary) -> Vec<String> {
        let mut wrong = Vec::new();
        for begun in &report.fills {
            let same = report.fills.iter().filter(|other| other.file == begun.file).count();
            let (Some(fetched), 1) = (begun.fetched_bytes, same) else { continue };
            summary.resumed += 1;
            summary.resumed_landed_bytes += begun.landed_bytes;
            let requests = self.hub.requests();
            let of_file = requests.iter().filter(|request| request.served_file() && request.file.as_deref() == Some(&begun.file));
            let served: u64 = of_file.map(|request| request.body_bytes_sent).sum();
            let missing = begun.size_bytes - begun.landed_bytes;
            if fetched != missing || served != missing {
                wrong.push(format!("{begun:?}: {missing} bytes were missing, {fetched} were fetched, {served} served"));
            }
        }
        wrong
    }

    /// Starts a process for each plan, kills, waits for all. What went wrong in them.
    fn run_processes(&self, plans: &[Vec<Op>], kills: &[Kill], log: &Path, summary: &mut Summary) -> io::Result<Vec<String>> {
        let trace = self.folder.join("trace");
        let mut running = Vec::new();
        for (number, (plan, kill)) in plans.iter().zip(kills).enumerate() {
            let scratch = self.folder.join(format!("scratch-{number}"));
            fs::create_dir_all(&scratch)?;
            let orders = scratch.join("plan.json");
            fs::write(&orders, serde_json::to_vec(plan)?)?;
            let mut command = self.command("worker")?;
            command.arg("--log").arg(log).arg("--number").arg(number.to_string());
            command.arg("--plan").arg(&orders).arg("--scratch").arg(&scratch);
            command.env("MODEL_CACHE_FAIL_TRACE", &trace);
            if let Kill::At(point, nth) = kill {
                command.env("MODEL_CACHE_FAIL_AT", format!("{point}:{nth}"));
            }
            summary.processes += 1;
            running.push(Running { child: command.spawn()?, kill: kill.clone(), started: Instant::now(), number });
        }
        let mut wrong = Vec::new();
        let mut any_killed = false;
        while !running.is_empty() {
            let mut still = Vec::new();
            for mut process in running {
                let due = match process.kill {
                    Kill::After(time) => process.started.elapsed() >= time,
                    Kill::WithOthers => any_killed,
                    Kill::At(..) | Kill::Never => false,
                };
                if due {
                    process.child.kill()?;
                }
                let hangs = process.started.elapsed() > PATIENCE;
                match process.child.try_wait()? {
                    None if hangs => {
                        wrong.push(format!("process {} hangs: nothing came of it for {PATIENCE:?}", process.number));
                        process.child.kill()?;
                        process.child.wait()?;
                    }
                    None => still.push(process),
                    Some(status) => match std::os::unix::process::ExitStatusExt::signal(&status) {
                        Some(9) => {
                            any_killed = true;
                            summary.kills += 1;
                            if let Kill::At(point, _) = process.kill {
                                *summary.kills_at.entry(point).or_default() += 1;
                            }
                        }
                        // It has said what is wrong in its log.
                        _ if status.code() == Some(0) => {}
                        _ => wrong.push(format!("process {} ended with {status}", process.number)),
                    },
                }
            }
            running = still;
            thread::sleep(PAUSE);
        }
        if let Ok(reached) = fs::read_to_string(&trace) {
            summary.points_reached.extend(reached.lines().map(str::to_owned));
            fs::remove_file(&trace)?;
        }
        Ok(wrong)
    }

    fn command(&self, mode: &str) -> io::Result<Command> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg(mode).arg("--store").arg(self.store()).arg("--endpoint").arg(self.hub.endpoint());
        command.stdin(Stdio::null());
        Ok(command)
    }

    fn check(&self, also: Also) -> Result<Report, String> {
        let run = || -> io::Result<std::process::Output> {
            let mut command = self.command("check")?;
            command.arg("--also").arg(serde_json::to_string(&also)?);
            command.stdout(Stdio::piped()).stderr(Stdio::piped()).output()
        };
        let output = run().map_err(|error| format!("the check did not start: {error}"))?;
        let said = String::from_utf8_lossy(&output.stderr);
        if !output.status.success() {
            return Err(format!("the check ended with {}: {said}", output.status));
        }
        serde_json::from_slice(&output.stdout)
            .map_err(|error| format!("the check said nothing that can be read: {error}: {said}"))
    }
}

struct Running {
    child: Child,
    kill: Kill,
    started: Instant,
    number: usize,
}

/// Whoever comes first is killed for certain, at its point or in the end; others may be left to finish.
fn draw_kill(settings: &Settings, first: bool, numbers: &mut Numbers) -> Kill {
    let instant = |numbers: &mut Numbers| {
        let most = [15_000, 50_000, 50_000, 150_000, 400_000][numbers.within(0..5) as usize];
        Kill::After(Duration::from_micros(numbers.within(2000..most)))
    };
    match numbers.within(0..10) {
        0..4 if !settings.points.is_empty() => {
            let nth = if numbers.once_in(2) { 1 } else { numbers.within(1..12) };
            Kill::At(numbers.pick(&settings.points).clone(), nth)
        }
        4..6 if !first => Kill::WithOthers,
        6..7 if !first => Kill::Never,
        _ => instant(numbers),
    }
}

/// All rounds of one store.
///
/// # Errors
/// The first failure; the store is kept then.
pub fn torture(seed: u64, settings: &Settings, go_on: &dyn Fn(&Summary) -> bool) -> (Summary, Option<Failure>) {
    let mut summary = Summary { stores: 1, ..Summary::default() };
    let mut numbers = Numbers::new(seed);
    let mut stage = match Stage::new(seed, settings) {
        Ok(stage) => stage,
        Err(error) => {
            let what = vec![format!("the harness itself: {error}")];
            return (summary, Some(Failure { what, seed, round: 0, kept: settings.folder.clone() }));
        }
    };
    for _ in 0..settings.rounds_per_store {
        if !go_on(&summary) {
            break;
        }
        let mut of_round = numbers.fork();
        if let Err(failure) = stage.round(settings, &mut of_round, &mut summary) {
            return (summary, Some(failure));
        }
    }
    let _ = fs::remove_dir_all(stage.folder());
    (summary, None)
}
