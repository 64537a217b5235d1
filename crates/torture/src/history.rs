//! What the processes of a round said they did, and what may therefore be in the store: [`Log`], [`History`].
//!
//! Every operation is told before it begins and after it has ended, by one write each into a file all processes append to. So the order of
//! its lines says what can't have come before what: an operation has its effect between its two lines, and one that was killed anywhere after
//! its first. For a name, what is there afterwards has to come from an operation that no other one surely followed.

use crate::{
    plan::Op,
    world::{World, name},
};
use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Write},
    path::Path,
};

/// Bytes of a line. They divide a page, so that a process killed in the middle of its write leaves a whole line or none: the kernel
/// looks for a fatal signal between pages.
const LINE_BYTES: usize = 512;

/// The file lines are appended to.
#[derive(Debug)]
pub struct Log(File);

/// One line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// The process, by its number in the round.
    pub worker: usize,
    /// The operation, by its place in the process's plan.
    pub op: usize,
    /// What is told.
    pub what: Told,
}

/// What a line tells of an operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Told {
    /// It is about to begin.
    Begun,
    /// It has ended well; of a pull, the commit.
    Done(String),
    /// It has ended with an error that may be.
    Refused(String),
    /// It has ended with an error that may not be, or found something wrong.
    Failed(String),
}

impl Log {
    /// Opens the log at `path`, creating it.
    ///
    /// # Errors
    /// Those of opening it.
    pub fn open(path: &Path) -> io::Result<Self> {
        File::options().create(true).append(true).open(path).map(Self)
    }

    /// Appends a line.
    ///
    /// # Errors
    /// Those of writing.
    pub fn tell(&mut self, line: &Line) -> io::Result<()> {
        let (mark, detail) = match &line.what {
            Told::Begun => ('B', ""),
            Told::Done(detail) => ('D', detail.as_str()),
            Told::Refused(detail) => ('R', detail.as_str()),
            Told::Failed(detail) => ('F', detail.as_str()),
        };
        let mut text = format!("{mark} {} {} {}", line.worker, line.op, detail.replace('\n', " ")).into_bytes();
        text.truncate(LINE_BYTES - 1);
        text.resize(LINE_BYTES - 1, b' ');
        text.push(b'\n');
        self.0.write_all(&text)
    }

    /// The lines so far.
    ///
    /// # Errors
    /// Those of reading, and for a line that is none.
    pub fn read(path: &Path) -> io::Result<Vec<Line>> {
        let bytes = std::fs::read(path)?;
        bytes.chunks(LINE_BYTES).map(|line| parse(line).ok_or_else(|| io::Error::other(format!("{line:?} is no line")))).collect()
    }
}

fn parse(line: &[u8]) -> Option<Line> {
    let text = String::from_utf8_lossy(line);
    let mut words = text.trim_end().splitn(4, ' ');
    let mark = words.next()?;
    let (worker, op) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
    let detail = words.next().unwrap_or_default().to_owned();
    let what = match mark {
        "B" => Told::Begun,
        "D" => Told::Done(detail),
        "R" => Told::Refused(detail),
        "F" => Told::Failed(detail),
        _ => return None,
    };
    Some(Line { worker, op, what })
}

/// What an operation does to one name: it gives it this content, or takes it away.
type Effect = (String, Option<String>);

/// Something that happened to a name, or may have.
#[derive(Clone, Debug)]
struct Event {
    start: usize,
    end: usize,
    content: Option<String>,
    /// Whether it happened for certain.
    certain: bool,
}

/// How operations ended, for the count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ends {
    /// Well.
    pub done: u64,
    /// With an error that may be.
    pub refused: u64,
    /// Not at all: killed.
    pub cut: u64,
}

/// What happened to each name in one round.
#[derive(Debug, Default)]
pub struct History {
    events: BTreeMap<String, Vec<Event>>,
    /// Operations by kind.
    pub ends: BTreeMap<&'static str, Ends>,
    /// What a process found wrong.
    pub failures: Vec<String>,
}

impl History {
    /// Takes in what the processes with these plans said, in a store that had the names `before`.
    pub fn new(world: &World, before: &BTreeMap<String, String>, plans: &[Vec<Op>], lines: &[Line]) -> Self {
        let mut history = Self::default();
        let mut add = |names: Vec<Effect>, start, end, certain| {
            for (name, content) in names {
                history.events.entry(name).or_default().push(Event { start, end, content, certain });
            }
        };
        add(before.iter().map(|(name, content)| (name.clone(), Some(content.clone()))).collect(), 0, 0, true);
        let mut running: BTreeMap<(usize, usize), usize> = BTreeMap::new();
        for (at, line) in lines.iter().enumerate() {
            let at = at + 1;
            let key = (line.worker, line.op);
            let Some(op) = plans.get(line.worker).and_then(|plan| plan.get(line.op)) else { continue };
            if line.what == Told::Begun {
                running.insert(key, at);
                continue;
            }
            let start = running.remove(&key).unwrap_or(0);
            let ends = history.ends.entry(op.kind()).or_default();
            match &line.what {
                Told::Done(detail) => {
                    ends.done += 1;
                    add(effects(world, op, before, Some(detail)), start, at, true);
                    if let Op::Pull { repo, .. } | Op::PullFile { repo, .. } = op {
                        // Names the commit before had may have come along.
                        add(pulled(world, repo, None), start, at, false);
                    }
                }
                Told::Refused(_) => {
                    ends.refused += 1;
                    add(effects(world, op, before, None), start, at, false);
                }
                Told::Failed(why) => history.failures.push(format!("process {} {op:?}: {why}", line.worker)),
                Told::Begun => {}
            }
        }
        for ((worker, number), start) in running {
            let op = &plans[worker][number];
            history.ends.entry(op.kind()).or_default().cut += 1;
            add(effects(world, op, before, None), start, usize::MAX, false);
        }
        history
    }

    /// What is wrong with finding these names, each with its content.
    pub fn contradictions(&self, found: &BTreeMap<String, String>) -> Vec<String> {
        let mut wrong = Vec::new();
        for (name, events) in &self.events {
            let content = found.get(name);
            if !may_be(events, content) {
                let told: Vec<_> = events
                    .iter()
                    .map(|event| {
                        let end = if event.end == usize::MAX { "killed".to_owned() } else { event.end.to_string() };
                        let content = event.content.as_ref().map_or("removed", |digest| &digest[..8]);
                        let may = if event.certain { "" } else { " perhaps" };
                        format!("{}..{end}{may} {content}", event.start)
                    })
                    .collect();
                let is = content.map_or("is missing".to_owned(), |digest| format!("has content {}", &digest[..8]));
                wrong.push(format!("{name} {is}, which contradicts what was done: {}", told.join("; ")));
            }
        }
        for name in found.keys().filter(|name| !self.events.contains_key(*name)) {
            wrong.push(format!("{name} is there, and nothing was done that makes it"));
        }
        wrong
    }
}

/// Whether a name may have `content` in the end: some event gave it that, and none surely came after it.
fn may_be(events: &[Event], content: Option<&String>) -> bool {
    let followed =
        |event: &Event| events.iter().any(|other| other.certain && other.start >= event.end && other.start > event.start);
    let gave = |event: &&Event| event.content.as_ref() == content;
    let never_there = content.is_none() && !events.iter().any(|event| event.certain && event.start == 0);
    let first = Event { start: 0, end: 0, content: None, certain: true };
    events.iter().filter(gave).any(|event| !followed(event)) || (never_there && !followed(&first))
}

fn pulled(world: &World, repo: &str, commit: Option<&str>) -> Vec<Effect> {
    world.names_of_pull(repo, commit).into_iter().map(|(name, content)| (name, Some(content))).collect()
}

/// What `op` does to names; `detail` is what it said of its end, if that was a good one: else all it may have done.
fn effects(world: &World, op: &Op, before: &BTreeMap<String, String>, detail: Option<&str>) -> Vec<Effect> {
    let gone = |repo: &str, path: Option<&str>| -> Vec<Effect> {
        let mut names: Vec<String> = world.names_of_pull(repo, None).into_iter().map(|(name, _)| name).collect();
        names.extend(world.paths(repo).iter().map(|path| name(repo, None, path)));
        names.extend(before.keys().cloned());
        let is_meant = |candidate: &String| {
            let (of, at) = candidate.split_once(':').unwrap_or((candidate, ""));
            of.split('@').next() == Some(repo) && path.is_none_or(|path| path == at)
        };
        names.retain(is_meant);
        names.sort_unstable();
        names.dedup();
        names.into_iter().map(|name| (name, None)).collect()
    };
    match op {
        Op::Pull { repo, .. } => pulled(world, repo, detail),
        Op::PullFile { repo, path } => {
            let mut names = pulled(world, repo, detail);
            if detail.is_some() {
                names.retain(|(name, _)| name.split_once(':').is_some_and(|(_, at)| at == path));
            }
            names
        }
        Op::Import { repo, folder } => {
            let names = world.names_of_import(repo, folder);
            names.into_iter().map(|(name, content)| (name, Some(content))).collect()
        }
        Op::Remove { repo } => gone(repo, None),
        Op::RemoveFile { repo, path } => gone(repo, Some(path)),
        Op::Gc
        | Op::Verify
        | Op::Read { .. }
        | Op::LetGo
        | Op::Export { .. }
        | Op::Gather { .. }
        | Op::List
        | Op::Backup
        | Op::Restore
        | Op::Repair => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(start: usize, end: usize, content: Option<&str>, certain: bool) -> Event {
        Event { start, end, content: content.map(str::to_owned), certain }
    }

    fn may(events: &[Event], content: Option<&str>) -> bool {
        may_be(events, content.map(str::to_owned).as_ref())
    }

    #[test]
    fn what_was_done_last_is_what_is_there() {
        let done = [event(0, 0, Some("a"), true), event(1, 2, Some("b"), true)];
        assert!(may(&done, Some("b")) && !may(&done, Some("a")) && !may(&done, None));
        let removed = [event(1, 2, Some("a"), true), event(3, 4, None, true)];
        assert!(may(&removed, None) && !may(&removed, Some("a")));
    }

    #[test]
    fn what_ran_at_the_same_time_may_have_come_in_either_order() {
        let both = [event(1, 4, Some("a"), true), event(2, 3, None, true)];
        assert!(may(&both, Some("a")) && may(&both, None));
    }

    #[test]
    fn what_was_killed_or_refused_may_have_happened_or_not() {
        let killed = [event(0, 0, Some("a"), true), event(1, usize::MAX, None, false)];
        assert!(may(&killed, Some("a")) && may(&killed, None) && !may(&killed, Some("b")));
        let begun = [event(1, usize::MAX, Some("a"), false)];
        assert!(may(&begun, Some("a")) && may(&begun, None));
        // But not after what surely followed.
        let refused = [event(1, 2, Some("a"), false), event(3, 4, Some("b"), true)];
        assert!(may(&refused, Some("b")) && !may(&refused, Some("a")) && !may(&refused, None));
    }

    #[test]
    fn a_line_is_read_back_as_it_was_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let lines = [
            Line { worker: 0, op: 1, what: Told::Begun },
            Line { worker: 3, op: 12, what: Told::Done("abc".to_owned()) },
            Line { worker: 1, op: 0, what: Told::Failed("a b".repeat(100)) },
        ];
        let mut log = Log::open(&path).unwrap();
        lines.iter().for_each(|line| log.tell(line).unwrap());
        assert_eq!(Log::read(&path).unwrap(), lines);
    }
}
