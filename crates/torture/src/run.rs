//! Rounds: processes are started, killed, and what they leave is checked.

use crate::{
    check::{Also, Report},
    faults::Faults,
    history::{Ends, History, Log},
    loss::{self, Lost},
    numbers::Numbers,
    plan::{self, Mix, Op},
    worker::{self, CONNECTIONS},
    world::{MOVING, World},
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
/// How long a process is left to pull from a Hub that fails.
const MOST_WITH_FAULTS: Duration = Duration::from_secs(3);
const PAUSE: Duration = Duration::from_micros(500);
/// How often the memory of a process is looked at, and a line of the series written.
const WATCHED_EVERY: Duration = Duration::from_millis(20);
const LINE_EVERY: Duration = Duration::from_secs(5);
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
    /// Whether the power goes with the processes.
    pub power_loss: bool,
    /// Whether the Hub fails now and then, which is a soak.
    pub faults: bool,
    /// Where a line is written every few seconds.
    pub series: Option<PathBuf>,
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
    /// Bytes whose landing was journaled and that a power loss took: found out, and fetched again.
    pub distrusted_bytes: u64,
    /// Power losses.
    pub losses: u64,
    /// What they took away.
    pub lost: Lost,
    /// Times the Hub did something wrong.
    pub faults: u64,
    /// Of these, those in rounds after which all held.
    pub faults_survived: u64,
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
        self.distrusted_bytes += other.distrusted_bytes;
        self.losses += other.losses;
        self.lost.add(&other.lost);
        self.faults += other.faults;
        self.faults_survived += other.faults_survived;
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
    /// So long after any process began its first operation.
    AfterBegun(Duration),
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
    /// Repo and commit of what was begun, with blocks that landed, at the last check.
    begun: BTreeSet<(String, String)>,
    /// Whether processes tell what they write.
    logs_writes: bool,
    /// What decides how the power goes in this round, if it does.
    power_loss: Option<Numbers>,
    /// Whether a power loss may have left extents without a row, which `gc` has not freed yet.
    orphans: bool,
    /// What the Hub does wrong in this round.
    faults: Option<Faults>,
    /// Whether it did something wrong in an earlier one.
    spoilt: bool,
    /// Of the store at the last check: complete bytes, length and allocated bytes of the data file.
    sizes: [u64; 3],
    /// The most private memory a process was seen to have since the last line of the series.
    most_private_bytes: std::cell::Cell<u64>,
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
        let names = BTreeMap::new();
        let logs_writes = settings.power_loss;
        let (here_bytes, sizes, most_private_bytes) = (0, [0; 3], std::cell::Cell::new(0));
        let (power_loss, faults) = (None, None);
        Ok(Self {
            folder,
            seed,
            round: 0,
            world,
            hub,
            names,
            here_bytes,
            begun: BTreeSet::new(),
            logs_writes,
            power_loss,
            orphans: false,
            faults,
            spoilt: false,
            sizes,
            most_private_bytes,
        })
    }

    /// The store's folder, and all that belongs to it.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    fn store(&self) -> PathBuf {
        self.folder.join("store")
    }

    fn write_log(&self) -> PathBuf {
        self.folder.join("writes")
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
        if settings.power_loss && !settings.faults && !self.begun.is_empty() && !numbers.once_in(4) {
            return self.go_on_without_power(numbers, summary);
        }
        let mix = if numbers.once_in(if settings.power_loss { 2 } else { 4 }) { Mix::Pulls } else { Mix::All };
        if numbers.once_in(6) {
            self.world.push(&self.hub);
        }
        let processes = [1, 1, 1, 2, 2, 3, 4][numbers.within(0..7) as usize];
        let mut plans = Vec::new();
        let mut kills = Vec::new();
        for number in 0..processes {
            let kill = match number {
                // The power goes for all at once.
                1.. if settings.power_loss && !settings.faults => Kill::WithOthers,
                // With some blocks journaled and not synced there is most to lose.
                0 if settings.power_loss && mix == Mix::Pulls && numbers.once_in(2) => {
                    Kill::At("fill.block_journaled".to_owned(), numbers.within(1..8))
                }
                number => draw_kill(settings, number == 0, numbers),
            };
            plans.push(match kill {
                // Else it would often not be passed.
                Kill::At(..) if mix == Mix::All => plan::tour(&self.world),
                _ => plan::draw(&self.world, mix, numbers.within(2..9) as usize, numbers),
            });
            kills.push(kill);
        }
        let mut also = Also { verify: numbers.once_in(8), gc: numbers.once_in(4), resume: numbers.once_in(3), ..Also::default() };
        let repos = self.world.repos().into_iter().chain(self.world.import_repos());
        // Nothing, some, or all.
        let removes = numbers.within(0..3);
        also.remove.extend(repos.filter(|_| removes == 2 || (removes == 1 && numbers.once_in(2))).map(str::to_owned));
        // In a soak now and then. Else mostly: a kill leaves what was begun, and what the next round lands of it is lost in part.
        let power_goes = settings.power_loss && if settings.faults { numbers.once_in(4) } else { !numbers.once_in(3) };
        self.power_loss = power_goes.then(|| numbers.fork());
        also.orphans = power_goes || self.orphans;
        also.spoilt = settings.faults;
        also.gc |= power_goes && numbers.once_in(2);
        if settings.power_loss && !settings.faults && !power_goes && mix == Mix::Pulls {
            // Left as it is, for the next round: `go_on_without_power`.
            also = Also { gc: false, resume: false, remove: Vec::new(), ..also };
        }
        self.faults = (settings.faults && !numbers.once_in(3)).then(|| Faults::switch_on(&self.hub, numbers));
        self.act(&plans, &kills, mix, &also, summary)
    }

    /// Goes on with a pull that an earlier round interrupted, and takes the power while it does.
    ///
    /// Of a pull that was begun since the last sync a loss leaves nothing: its reservation goes too, and its journal with that. Here the check
    /// has closed the store since, and so made the reservation durable; what lands now is journaled and not on the disk, and only the CRC32C
    /// of each block tells the next pull so.
    fn go_on_without_power(&mut self, numbers: &mut Numbers, summary: &mut Summary) -> Result<(), Failure> {
        let begun: Vec<_> = self.begun.iter().cloned().collect();
        let (repo, revision) = numbers.pick(&begun).clone();
        let kill = if numbers.once_in(4) {
            Kill::AfterBegun(Duration::from_micros(numbers.within(2000..100_000)))
        } else {
            Kill::At("fill.block_journaled".to_owned(), numbers.within(1..4))
        };
        self.power_loss = Some(numbers.fork());
        // Gone on with by the check, or by a later round.
        let also = Also { resume: !numbers.once_in(4), gc: numbers.once_in(8), orphans: true, ..Also::default() };
        self.act(&[vec![Op::Pull { repo, revision }]], &[kill], Mix::Pulls, &also, summary)
    }

    /// A new, empty store for the same world.
    fn begin_anew(&mut self) -> io::Result<()> {
        (self.names, self.here_bytes, self.orphans) = (BTreeMap::new(), 0, false);
        self.begun.clear();
        let remove = |folder: PathBuf| match fs::remove_dir_all(folder) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        };
        // The backup of the one before, and what it was restored to, are another store's; one process at a time walks.
        remove(self.scratch(0))?;
        remove(self.store())
    }

    /// Kills a process at `point` in a store of its own, and sees that the store goes on. False if the point was not passed.
    ///
    /// # Errors
    /// What does not hold afterwards.
    fn walk(&mut self, point: &str, summary: &mut Summary) -> Result<bool, Failure> {
        let all = Also { verify: true, gc: true, resume: true, ..Also::default() };
        let looks = Also { gc: false, resume: false, ..all.clone() };
        let tour = plan::tour(&self.world);
        // Points that only who finds an interrupted one passes: what interrupts it.
        let preparations =
            ["", "fill.block_journaled:2", "reserve.allocated:1", "remove.doomed:1", "derive.block_landed:1", "import.filled:1"];
        for (before, gc_first) in preparations.iter().flat_map(|before| [(before, false), (before, true)]) {
            self.begin_anew().map_err(|error| Failure::from((error, &*self)))?;
            self.round += 1;
            if let Some((before, nth)) = before.split_once(':') {
                let kill = Kill::At(before.to_owned(), nth.parse().unwrap_or(1));
                self.act(std::slice::from_ref(&tour), &[kill], Mix::All, &looks, summary)?;
            }
            if gc_first {
                // Something a branch that moves takes along, too.
                let pull = Op::Pull { repo: MOVING.to_owned(), revision: "main".to_owned() };
                self.act(&[vec![Op::Gc, pull]], &[Kill::At(point.to_owned(), 1)], Mix::All, &looks, summary)?;
                self.world.push(&self.hub);
            }
            self.act(std::slice::from_ref(&tour), &[Kill::At(point.to_owned(), 1)], Mix::All, &all, summary)?;
            if summary.kills_at.contains_key(point) {
                self.act(std::slice::from_ref(&tour), &[Kill::Never], Mix::All, &all, summary)?;
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Runs the plans, kills, and checks.
    fn act(&mut self, plans: &[Vec<Op>], kills: &[Kill], mix: Mix, also: &Also, summary: &mut Summary) -> Result<(), Failure> {
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
        for number in 0..plans.len() {
            // Whoever was killed as he backed up: the newest snapshot is still one that was finished.
            match worker::backup_is_whole(&self.scratch(number)) {
                Ok(Ok(_)) => {}
                Ok(Err(what)) => wrong.push(what),
                Err(error) => wrong.push(format!("a backup can't be read: {}", error.chain())),
            }
        }
        let served_bytes = self.hub.bytes_served();
        self.hub.drop_connections();
        self.hub.clear_log();
        let faults = self.faults.take();
        let with_faults = faults.is_some();
        let strikes = faults.map_or(0, |faults| faults.switch_off(&self.hub));
        summary.faults += strikes;
        let with_power_loss = self.power_loss.is_some();
        if let Some(mut numbers) = self.power_loss.take() {
            let data_file = self.store().join("model_cache_chunks/mdbx.dat");
            let lost = loss::lose(&data_file, &self.write_log(), &mut numbers);
            summary.lost.add(&lost.map_err(|error| Failure::from((error, &*self)))?);
            summary.losses += 1;
        }
        // Also where a process found something wrong: what is left is worth knowing.
        let report = self.check(also).map_err(|why| {
            let mut all = wrong.clone();
            all.push(why);
            self.failure(all)
        })?;
        wrong.extend(report.wrong.iter().cloned());
        wrong.extend(history.contradictions(&report.names));
        let landed: u64 = report.fills.iter().map(|begun| begun.landed_bytes).sum();
        if mix == Mix::Pulls && !with_power_loss && !with_faults {
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
        wrong.extend(self.check_resumed(&report, with_power_loss, summary));
        summary.served_bytes += served_bytes + self.hub.bytes_served();
        summary.hashed_bytes += report.hashed_bytes;
        summary.checks += 1;
        if !wrong.is_empty() {
            return Err(self.failure(wrong));
        }
        summary.faults_survived += strikes;
        self.spoilt |= strikes > 0;
        self.orphans = also.orphans && !also.gc;
        self.sizes = [report.live_bytes, report.data_file_bytes, report.data_file_allocated_bytes];
        let here: BTreeSet<&String> = report.names_in_the_end.values().collect();
        let complete_bytes = here.iter().map(|digest| self.world.size_bytes(digest)).sum::<u64>();
        self.here_bytes = complete_bytes + report.landed_in_the_end_bytes;
        self.names = report.names_in_the_end;
        self.begun = report.begun_in_the_end;
        Ok(())
    }

    /// That interrupted pulls fetched what was missing, and nothing else.
    ///
    /// After a power loss the journals promise more than is there, or less.
    fn check_resumed(&self, report: &Report, with_power_loss: bool, summary: &mut Summary) -> Vec<String> {
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
            let is_right = if with_power_loss { (missing..=begun.size_bytes).contains(&fetched) } else { fetched == missing };
            summary.distrusted_bytes += fetched.saturating_sub(missing);
            // A process that was killed may have asked for it, and the Hub come to that only now.
            if !is_right || !(fetched..=fetched + IN_FLIGHT).contains(&served) {
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
            let scratch = self.scratch(number);
            fs::create_dir_all(&scratch)?;
            let orders = scratch.join("plan.json");
            fs::write(&orders, serde_json::to_vec(plan)?)?;
            let mut command = self.command("worker")?;
            command.arg("--log").arg(log).arg("--number").arg(number.to_string());
            command.arg("--plan").arg(&orders).arg("--scratch").arg(&scratch);
            command.env("MODEL_CACHE_FAIL_TRACE", &trace);
            if self.faults.is_some() {
                command.arg("--faults");
            }
            if self.spoilt {
                command.arg("--spoilt");
            }
            if let Kill::At(point, nth) = kill {
                command.env("MODEL_CACHE_FAIL_AT", format!("{point}:{nth}"));
            }
            summary.processes += 1;
            let started = Instant::now();
            running.push(Running {
                child: command.spawn()?,
                kill: kill.clone(),
                started,
                number,
                watched: started,
                is_due: false,
            });
        }
        let mut wrong = Vec::new();
        let mut any_killed = false;
        let mut begun = None;
        while !running.is_empty() {
            if begun.is_none() && fs::metadata(log).is_ok_and(|log| log.len() > 0) {
                begun = Some(Instant::now());
            }
            let mut still = Vec::new();
            for mut process in running {
                self.watch(&mut process);
                let due = match process.kill {
                    Kill::After(time) => process.started.elapsed() >= time,
                    Kill::AfterBegun(time) => begun.is_some_and(|begun: Instant| begun.elapsed() >= time),
                    Kill::WithOthers => any_killed,
                    Kill::At(..) | Kill::Never => false,
                };
                // A Hub that goes on failing is asked again for a long time.
                let due = due || (self.faults.is_some() && process.started.elapsed() > MOST_WITH_FAULTS);
                if due {
                    process.is_due = true;
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
                            if let Kill::At(point, _) = process.kill
                                && !process.is_due
                            {
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

    /// Appends what was done and seen so far to the series.
    fn write_line(&self, series: &Path, elapsed: Duration, summary: &Summary) -> io::Result<()> {
        let [live, length, allocated] = self.sizes;
        let done: u64 = summary.operations.values().map(|ended| ended.done).sum();
        let line = serde_json::json!({
            "seconds": elapsed.as_secs_f64(),
            "operations": done,
            "kills": summary.kills,
            "checks": summary.checks,
            "losses": summary.losses,
            "served_bytes": summary.served_bytes,
            "faults": summary.faults,
            "faults_survived": summary.faults_survived,
            "private_bytes": self.most_private_bytes.replace(0),
            "live_bytes": live,
            "data_file_bytes": length,
            "data_file_allocated_bytes": allocated,
        });
        use io::Write;
        writeln!(fs::File::options().create(true).append(true).open(series)?, "{line}")
    }

    fn watch(&self, process: &mut Running) {
        if process.watched.elapsed() < WATCHED_EVERY {
            return;
        }
        process.watched = Instant::now();
        let status = fs::read_to_string(format!("/proc/{}/status", process.child.id())).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
        let kib: u64 = line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok()).unwrap_or(0);
        self.most_private_bytes.set(self.most_private_bytes.get().max(kib << 10));
    }

    /// The folder of its own that process `number` of each round has.
    fn scratch(&self, number: usize) -> PathBuf {
        self.folder.join(format!("scratch-{number}"))
    }

    fn command(&self, mode: &str) -> io::Result<Command> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg(mode).arg("--store").arg(self.store()).arg("--endpoint").arg(self.hub.endpoint());
        command.stdin(Stdio::null());
        if self.logs_writes {
            command.env("MODEL_CACHE_WRITE_LOG", self.write_log());
        }
        Ok(command)
    }

    fn check(&self, also: &Also) -> Result<Report, String> {
        let run = || -> io::Result<std::process::Output> {
            let mut command = self.command("check")?;
            command.arg("--also").arg(serde_json::to_string(also)?);
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
    /// When its memory was last looked at.
    watched: Instant,
    /// Whether it was killed from here.
    is_due: bool,
}

/// Whoever comes first is killed for certain, at its point or in the end; others may be left to finish.
fn draw_kill(settings: &Settings, first: bool, numbers: &mut Numbers) -> Kill {
    let instant = |numbers: &mut Numbers| {
        let most = [15_000, 50_000, 50_000, 150_000, 400_000][numbers.within(0..5) as usize];
        let time = Duration::from_micros(numbers.within(2000..most));
        if numbers.once_in(3) { Kill::After(time) } else { Kill::AfterBegun(time) }
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
    let begun = Instant::now();
    let mut lines = 0;
    for _ in 0..settings.rounds_per_store {
        if !go_on(&summary) {
            break;
        }
        let mut of_round = numbers.fork();
        if let Err(failure) = stage.round(settings, &mut of_round, &mut summary) {
            return (summary, Some(failure));
        }
        if let Some(series) = &settings.series
            && begun.elapsed() >= LINE_EVERY * lines
        {
            lines += 1;
            if let Err(error) = stage.write_line(series, begun.elapsed(), &summary) {
                return (summary, Some(Failure::from((error, &stage))));
            }
        }
    }
    let _ = fs::remove_dir_all(stage.folder());
    (summary, None)
}

/// Kills a process at each of the points, in stores of their own.
pub fn walk(seed: u64, settings: &Settings) -> (Summary, Option<Failure>) {
    let mut summary = Summary { stores: 1, ..Summary::default() };
    let mut stage = match Stage::new(seed, settings) {
        Ok(stage) => stage,
        Err(error) => {
            let what = vec![format!("the harness itself: {error}")];
            return (summary, Some(Failure { what, seed, round: 0, kept: settings.folder.clone() }));
        }
    };
    for point in &settings.points {
        if let Err(mut failure) = stage.walk(point, &mut summary) {
            failure.what.insert(0, format!("killed at {point}"));
            return (summary, Some(failure));
        }
    }
    let _ = fs::remove_dir_all(stage.folder());
    (summary, None)
}
