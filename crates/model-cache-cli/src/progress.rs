//! Progress on stderr: bars on a terminal, a line now and then elsewhere, or one JSON object a line.
//!
//! [`Board`] is what is known, and how it looks, as functions of values; [`Progress`] is fed by the library and draws.

use crate::{
    args::ProgressMode,
    exit::Failure,
    output,
    render::{self, Paint},
    talk,
};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::{Value, json};
use std::{
    collections::{HashSet, VecDeque},
    io::IsTerminal,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        mpsc::{self, RecvTimeoutError, Sender},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};
use tabagent_model_cache::{Event, EventKind, EventSink, ProgressCallback};

/// Between two redraws.
const REDRAW: Duration = Duration::from_millis(100);
/// Between two lines where there is no terminal.
const PLAIN_LINE: Duration = Duration::from_secs(3);
/// A file gets a line only when it is not over at once.
const SHOWN_AFTER: Duration = Duration::from_millis(250);
/// A speed that nothing was added to for so long is none.
const STALE: Duration = Duration::from_secs(3);
/// Most files with a line of their own.
const MOST_LINES: usize = 8;

// -- what is known -------------------------------------------------------------------------------------------------

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Fetching,
    Waiting,
    Verifying,
}

#[derive(Debug)]
struct FileLine {
    path: String,
    state: State,
    loaded_bytes: u64,
    total_bytes: u64,
    bytes_per_second: u64,
    seen: Instant,
    moved: Instant,
}

/// Where a pull, or one long reading, stands.
#[derive(Debug, Default)]
struct Board {
    /// Files in flight, in the order they began.
    lines: Vec<FileLine>,
    files: u64,
    files_done: u64,
    /// Of files that are no longer in flight.
    done_bytes: u64,
    total_bytes: u64,
    /// Whether another process was waited for.
    waited: bool,
    /// Paths this pull touched, for what is kept of an interrupted one.
    paths: HashSet<String>,
}

impl Board {
    fn line(&mut self, path: &str, now: Instant) -> &mut FileLine {
        let at = match self.lines.iter().position(|line| line.path == path) {
            Some(at) => at,
            None => {
                self.paths.insert(path.to_owned());
                self.lines.push(FileLine {
                    path: path.to_owned(),
                    state: State::Fetching,
                    loaded_bytes: 0,
                    total_bytes: 0,
                    bytes_per_second: 0,
                    seen: now,
                    moved: now,
                });
                self.lines.len() - 1
            }
        };
        &mut self.lines[at]
    }

    fn hear(&mut self, event: &EventKind, now: Instant) {
        match event {
            EventKind::Started { files, total_bytes } => (self.files, self.total_bytes) = (*files, *total_bytes),
            EventKind::Progress { path, loaded_bytes, total_bytes, bytes_per_second, .. } => {
                let line = self.line(path, now);
                (line.loaded_bytes, line.total_bytes) = (*loaded_bytes, *total_bytes);
                (line.bytes_per_second, line.moved) = (*bytes_per_second, now);
                // Bytes of its own: whoever held it let go.
                if line.state == State::Waiting && *bytes_per_second > 0 {
                    line.state = State::Fetching;
                }
            }
            EventKind::Waiting { path } => {
                self.waited = true;
                self.line(path, now).state = State::Waiting;
            }
            EventKind::Verifying { path } => {
                let line = self.line(path, now);
                (line.state, line.loaded_bytes) = (State::Verifying, line.total_bytes);
            }
            EventKind::Sealed { path, size_bytes, .. } => {
                self.paths.insert(path.clone());
                self.lines.retain(|line| line.path != *path);
                self.files_done += 1;
                self.done_bytes += size_bytes;
            }
            _ => {}
        }
    }

    fn loaded_bytes(&self) -> u64 {
        self.done_bytes + self.lines.iter().map(|line| line.loaded_bytes).sum::<u64>()
    }

    fn bytes_per_second(&self, now: Instant) -> u64 {
        self.lines.iter().map(|line| line.current_speed(now)).sum()
    }

    /// The lines of the screen: one a file in flight, one below for all of them where there are several.
    fn screen(&self, now: Instant, columns: usize, paint: Paint) -> Vec<String> {
        let shown = self.lines.iter().filter(|line| now - line.seen >= SHOWN_AFTER).take(MOST_LINES);
        let mut readings: Vec<Reading> = shown.map(|line| line.reading(now)).collect();
        if self.files > 1 {
            readings.push(Reading {
                name: format!("{} of {} files", self.files_done, self.files),
                state: None,
                loaded_bytes: self.loaded_bytes(),
                total_bytes: self.total_bytes,
                bytes_per_second: self.bytes_per_second(now),
            });
        }
        let layout = Layout::new(columns, &readings);
        readings.iter().map(|reading| layout.line(reading, paint)).collect()
    }

    /// One line for a log.
    fn plain(&self, now: Instant) -> String {
        let (loaded, speed) = (self.loaded_bytes(), self.bytes_per_second(now));
        let mut parts =
            vec![format!("{:>3} %", render::percent(loaded, self.total_bytes)), render::part_of(loaded, self.total_bytes)];
        if speed > 0 {
            parts.push(render::speed(speed));
        }
        match self.lines.as_slice() {
            [only] if only.state != State::Fetching => parts.push(only.state.words().to_owned()),
            _ => parts.extend(left(loaded, self.total_bytes, speed)),
        }
        if self.files > 1 {
            parts.push(format!("{} of {} files", self.files_done, self.files));
        }
        parts.join("  ")
    }
}

impl FileLine {
    fn current_speed(&self, now: Instant) -> u64 {
        if now - self.moved > STALE || self.state != State::Fetching { 0 } else { self.bytes_per_second }
    }

    fn reading(&self, now: Instant) -> Reading {
        Reading {
            name: render::clean(&self.path),
            state: (self.state != State::Fetching).then_some(self.state),
            loaded_bytes: self.loaded_bytes,
            total_bytes: self.total_bytes,
            bytes_per_second: self.current_speed(now),
        }
    }
}

impl State {
    fn words(self) -> &'static str {
        match self {
            Self::Fetching => "",
            Self::Waiting => "waiting for another",
            Self::Verifying => "verifying",
        }
    }
}

fn left(loaded: u64, total: u64, speed: u64) -> Option<String> {
    if speed == 0 {
        return None;
    }
    // Up: no time is left only when all is here.
    let seconds = total.saturating_sub(loaded).div_ceil(speed);
    Some(format!("{} left", render::clock(seconds)))
}

/// The numbers of one line.
struct Reading {
    name: String,
    state: Option<State>,
    loaded_bytes: u64,
    total_bytes: u64,
    bytes_per_second: u64,
}

impl Reading {
    /// Nothing, as long as the size is not known.
    fn sizes(&self) -> String {
        if self.total_bytes == 0 { String::new() } else { render::part_of(self.loaded_bytes, self.total_bytes) }
    }
}

/// How lines are divided: `  name  bar  61 %  1.95/3.19 GiB  212 MiB/s  0:06 left`. What tells least goes first where the terminal
/// is narrow: the bar, the speed, the time, the sizes.
struct Layout {
    /// Columns that may be filled.
    room: usize,
    /// Nothing but the percent.
    tiny: bool,
    name: usize,
    bar: usize,
    sizes: usize,
}

const GAP: usize = 2;
const SPEED: usize = 10;
const TIME: usize = 10;
const PERCENT: usize = 5;
const BAR: usize = 20;
const LEAST_BAR: usize = 8;
/// A name is cut to no less as long as something else can give way.
const LEAST_NAME: usize = 16;
/// A terminal narrower than this shows the percent alone.
const LEAST_COLUMNS: usize = 30;

impl Layout {
    fn new(columns: usize, readings: &[Reading]) -> Self {
        let longest = |of: &dyn Fn(&Reading) -> usize| readings.iter().map(of).max().unwrap_or(0);
        let longest_name = longest(&|reading| render::width(&reading.name));
        let sizes = longest(&|reading| render::width(&reading.sizes()));
        // One column stays free: a terminal wraps a full line.
        let room = columns.saturating_sub(1);
        if columns < LEAST_COLUMNS {
            return Self { room, tiny: true, name: 0, bar: 0, sizes: 0 };
        }
        let left = room.saturating_sub(2 + GAP + PERCENT);
        let (with_sizes, time) = (GAP + sizes, GAP + TIME);
        let besides = [with_sizes + GAP + SPEED + time, with_sizes + time, with_sizes, 0];
        let least_name = longest_name.min(LEAST_NAME);
        let beside = besides.into_iter().find(|beside| left.saturating_sub(*beside) >= least_name).unwrap_or(0);
        let left = left.saturating_sub(beside);
        let bar = left.saturating_sub(longest_name + GAP).clamp(LEAST_BAR, BAR);
        let bar = if left < bar + GAP + least_name { 0 } else { bar };
        let name = longest_name.min(left.saturating_sub(if bar > 0 { bar + GAP } else { 0 }));
        Self { room, tiny: false, name, bar, sizes: if beside > 0 { sizes } else { 0 } }
    }

    fn line(&self, reading: &Reading, paint: Paint) -> String {
        let percent = format!("{:>3} %", render::percent(reading.loaded_bytes, reading.total_bytes.max(1)));
        if self.tiny {
            return render::shorten_end(&percent, self.room);
        }
        let name = render::shorten_middle(&reading.name, self.name);
        let mut line = format!("  {name}{}  ", render::pad(self.name, &name));
        let mut used = 2 + self.name + GAP + PERCENT;
        if self.bar > 0 {
            line += &render::bar(reading.loaded_bytes, reading.total_bytes.max(1), self.bar, paint);
            line += "  ";
            used += self.bar + GAP;
        }
        line += &percent;
        if self.sizes > 0 {
            line += &format!("  {:>1$}", reading.sizes(), self.sizes);
            used += GAP + self.sizes;
        }
        let room = self.room.saturating_sub(used + GAP);
        match reading.state {
            Some(state) => {
                let words = render::shorten_end(state.words(), room);
                if !words.is_empty() {
                    line += &format!("  {}", paint.dim(&words));
                }
            }
            None if reading.bytes_per_second > 0 => {
                let speed = format!("{:>SPEED$}", render::speed(reading.bytes_per_second));
                let time = left(reading.loaded_bytes, reading.total_bytes, reading.bytes_per_second).unwrap_or_default();
                // The fullest that fits.
                let fits = [format!("{speed}  {time}"), time].into_iter().find(|text| render::width(text) <= room);
                line += &format!("  {}", fits.unwrap_or_default());
            }
            None => {}
        }
        line.truncate(line.trim_end().len());
        line
    }
}

// -- what is drawn -------------------------------------------------------------------------------------------------

/// What is shown while something long runs.
pub(crate) struct Progress {
    shared: Arc<Shared>,
    drawing: Option<(Sender<()>, JoinHandle<()>)>,
}

struct Shared {
    mode: Mode,
    board: Mutex<Board>,
    told: Mutex<Told>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Bars,
    Plain,
    Json,
    None,
}

/// What was said already.
#[derive(Default)]
struct Told {
    notices: HashSet<String>,
    /// The last event of a pull, held back until the error's code and hint are known.
    end: Option<Event>,
    /// What was pulled: its commit and bytes in all, once known.
    started: Option<(String, u64)>,
}

impl Progress {
    /// Begins to show.
    pub(crate) fn begin(mode: ProgressMode) -> Self {
        let bars = std::io::stderr().is_terminal() && !output::dumb();
        let mode = match mode {
            ProgressMode::Auto if bars => Mode::Bars,
            ProgressMode::Auto | ProgressMode::Plain => Mode::Plain,
            ProgressMode::Json => Mode::Json,
            ProgressMode::None => Mode::None,
        };
        let shared = Arc::new(Shared { mode, board: Mutex::default(), told: Mutex::default() });
        let drawing = matches!(mode, Mode::Bars | Mode::Plain).then(|| {
            let (stop, stopped) = mpsc::channel();
            let shared = Arc::clone(&shared);
            (stop, std::thread::spawn(move || shared.draw_until(&stopped)))
        });
        Self { shared, drawing }
    }

    /// What a pull is given.
    pub(crate) fn events(&self) -> EventSink {
        let shared = Arc::clone(&self.shared);
        Arc::new(move |event| shared.hear(event))
    }

    /// What a long reading is given; `name` is what is done.
    pub(crate) fn callback(&self, name: &'static str) -> ProgressCallback {
        let shared = Arc::clone(&self.shared);
        let before = Mutex::new(Window::default());
        Arc::new(move |loaded, total| {
            let now = Instant::now();
            if shared.mode == Mode::Json {
                let event = json!({ "event": "progress", "action": name, "loaded_bytes": loaded, "total_bytes": total });
                return talk::line(&output::to_json(&event));
            }
            let bytes_per_second = lock(&before).speed(loaded, now);
            let mut board = lock(&shared.board);
            (board.files, board.total_bytes) = (1, total);
            // One comes after the other: what was done before is no part of this.
            board.lines.retain(|line| line.path == name);
            let line = board.line(name, now);
            (line.loaded_bytes, line.total_bytes) = (loaded, total);
            (line.bytes_per_second, line.moved) = (bytes_per_second, now);
        })
    }

    /// The paths a pull touched.
    pub(crate) fn paths(&self) -> HashSet<String> {
        lock(&self.shared.board).paths.clone()
    }

    /// Whether another process was waited for.
    pub(crate) fn waited(&self) -> bool {
        lock(&self.shared.board).waited
    }

    /// The commit that is pulled and its bytes in all, once known.
    pub(crate) fn started(&self) -> Option<(String, u64)> {
        lock(&self.shared.told).started.clone()
    }

    /// Takes it off the screen.
    pub(crate) fn end(&mut self) {
        if let Some((stop, thread)) = self.drawing.take() {
            drop(stop);
            let _ = thread.join();
        }
        talk::end_progress();
    }

    /// With `--progress json`: the last object, which has the error's code and hint. Every pull ends with one, also one that
    /// failed before it began. Whether it was told so.
    pub(crate) fn tell_end(&self, repo: &str, failure: Option<&Failure>) -> bool {
        if self.shared.mode != Mode::Json {
            return false;
        }
        let held = lock(&self.shared.told).end.take();
        let event = held.map(|event| serde_json::to_value(event).expect("an event is a flat object"));
        let mut event = match (event, failure) {
            (Some(event), _) => event,
            (None, Some(failure)) => {
                json!({ "event": failure.event(), "repo": repo, "commit": "", "message": failure.message() })
            }
            (None, None) => return false,
        };
        if let (Value::Object(event), Some(failure)) = (&mut event, failure) {
            event.extend(failure.for_event());
            if event.contains_key("message") {
                event.insert("message".to_owned(), failure.message().into());
            }
        }
        talk::line(&output::to_json(&event));
        true
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.end();
    }
}

impl Shared {
    fn hear(&self, event: &Event) {
        let now = Instant::now();
        lock(&self.board).hear(&event.kind, now);
        let ends = matches!(event.kind, EventKind::Done { .. } | EventKind::Failed { .. } | EventKind::Cancelled { .. });
        if let EventKind::Started { total_bytes, .. } = event.kind {
            lock(&self.told).started = Some((event.commit.clone(), total_bytes));
        }
        match self.mode {
            Mode::Json if ends => lock(&self.told).end = Some(event.clone()),
            Mode::Json => talk::line(&output::to_json(event)),
            _ => {
                if let Some((key, notice)) = notice(&event.kind)
                    && lock(&self.told).notices.insert(key)
                {
                    talk::line(&notice);
                }
            }
        }
    }

    fn draw_until(&self, stopped: &mpsc::Receiver<()>) {
        match self.mode {
            Mode::Bars => {
                let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(10));
                bar.set_style(ProgressStyle::with_template("{msg}").expect("the template has one field"));
                talk::begin_progress(bar.clone());
                let paint = Paint(output::stderr_colour());
                while stopped.recv_timeout(REDRAW) == Err(RecvTimeoutError::Timeout) {
                    let lines = lock(&self.board).screen(Instant::now(), output::stderr_width(), paint);
                    if !lines.is_empty() {
                        bar.set_message(lines.join("\n"));
                    }
                }
            }
            _ => {
                let mut last = String::new();
                while stopped.recv_timeout(PLAIN_LINE) == Err(RecvTimeoutError::Timeout) {
                    let board = lock(&self.board);
                    let (line, known) = (board.plain(Instant::now()), board.total_bytes > 0);
                    drop(board);
                    if known && line != last {
                        talk::line(&line);
                        last = line;
                    }
                }
            }
        }
    }
}

/// What people are told beside the numbers, with a key: the same is said once.
fn notice(event: &EventKind) -> Option<(String, String)> {
    match event {
        EventKind::Waiting { path } => {
            let path = render::clean(path);
            Some((format!("waiting {path}"), format!("waiting: another process is fetching {path}")))
        }
        EventKind::Retry { path, reason, wait_seconds, .. } => {
            let what = render::clean(path.as_deref().unwrap_or("the listing"));
            let reason = render::clean(render::root_cause(reason));
            let text = format!("retrying: {what} in {}: {reason}", render::took(Duration::from_secs_f64(*wait_seconds)));
            Some((format!("retry {what} {reason}"), text))
        }
        _ => None,
    }
}

/// The speed of the last seconds, of a number that only grows.
#[derive(Default)]
struct Window {
    samples: VecDeque<(Instant, u64)>,
}

impl Window {
    fn speed(&mut self, loaded: u64, now: Instant) -> u64 {
        self.samples.push_back((now, loaded));
        while self.samples.len() > 2 && now - self.samples[0].0 > STALE {
            self.samples.pop_front();
        }
        let (first, before) = self.samples[0];
        let seconds = (now - first).as_secs_f64();
        if seconds < 0.05 { 0 } else { (loaded.saturating_sub(before) as f64 / seconds) as u64 }
    }
}

/// Only numbers for showing: a panic elsewhere leaves nothing half done that matters.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn progress(path: &str, loaded_bytes: u64, total_bytes: u64, bytes_per_second: u64) -> EventKind {
        EventKind::Progress {
            path: path.to_owned(),
            loaded_bytes,
            total_bytes,
            bytes_per_second,
            eta_seconds: None,
            pull_loaded_bytes: 0,
            pull_total_bytes: 0,
        }
    }

    fn two_files() -> (Board, Instant) {
        let (mut board, start) = (Board::default(), Instant::now());
        board.hear(&EventKind::Started { files: 3, total_bytes: 4 << 30 }, start);
        board.hear(&progress("Llama-3.2-3B-Instruct-Q8_0.gguf", 1 << 30, 3 << 30, 200 << 20), start);
        board.hear(&progress("b.gguf", 512 << 20, 1 << 30, 56 << 20), start);
        (board, start + SHOWN_AFTER)
    }

    #[test]
    fn each_file_has_a_line_and_all_of_them_one_below() {
        let (board, now) = two_files();
        assert_eq!(
            board.screen(now, 100, Paint(false)),
            [
                "  Llama-3.2-3B-Instruct-Q8_0.gguf  ━━━━━━────────────   33 %  1.00/3.00 GiB   200 MiB/s  0:11 left",
                "  b.gguf                           ━━━━━━━━━─────────   50 %  0.50/1.00 GiB  56.0 MiB/s  0:10 left",
                "  0 of 3 files                     ━━━━━━╸───────────   37 %  1.50/4.00 GiB   256 MiB/s  0:10 left",
            ]
        );
    }

    #[test]
    fn no_line_is_wider_than_the_terminal() {
        let (mut board, now) = two_files();
        board.hear(&progress(&"長い名前".repeat(20), 1023 << 20, 1023 << 20, 1_023 << 20), now - SHOWN_AFTER);
        board.hear(&EventKind::Waiting { path: "b.gguf".to_owned() }, now);
        board.hear(&progress("slow.gguf", 1, u64::MAX, 1), now - SHOWN_AFTER);
        for columns in 0..=200 {
            for line in board.screen(now, columns, Paint(false)) {
                assert!(render::width(&line) < columns.max(1), "{columns}: {line:?}");
                assert!(columns < 6 || line.contains('%'), "{columns}: {line:?}");
            }
        }
    }

    #[test]
    fn a_narrow_terminal_drops_the_speed_before_the_name() {
        let (board, now) = two_files();
        let first = |columns| board.screen(now, columns, Paint(false)).remove(0);
        assert_eq!(first(56), "  Llama-3.2…Q8_0.gguf   33 %  1.00/3.00 GiB  0:11 left");
        assert_eq!(first(45), "  Llama-3.2-…Q8_0.gguf   33 %  1.00/3.00 GiB");
        assert_eq!(first(30), "  Llama-3.2-…Q8_0.gguf   33 %");
        assert_eq!(first(29), " 33 %");
        assert_eq!(first(0), "");
    }

    #[test]
    fn a_file_that_is_over_at_once_is_not_shown() {
        let (board, now) = two_files();
        let lines = board.screen(now - Duration::from_millis(1), 100, Paint(false));
        assert_eq!(lines.len(), 1);
        assert!(lines[0].contains("0 of 3 files"));
    }

    #[test]
    fn a_speed_nothing_was_added_to_is_not_shown() {
        let (board, now) = two_files();
        let lines = board.screen(now + STALE, 100, Paint(false));
        assert!(lines.iter().all(|line| !line.contains("left")), "{lines:?}");
    }

    #[test]
    fn a_log_gets_one_line_for_everything() {
        let (mut board, now) = two_files();
        assert_eq!(board.plain(now), " 37 %  1.50/4.00 GiB  256 MiB/s  0:10 left  0 of 3 files");
        board.hear(&EventKind::Sealed { path: "b.gguf".to_owned(), size_bytes: 1 << 30, fetched_bytes: 0 }, now);
        assert_eq!(board.plain(now), " 50 %  2.00/4.00 GiB  200 MiB/s  0:11 left  1 of 3 files");
    }

    #[test]
    fn what_was_read_before_is_not_added_to_what_is_read_now() {
        let shown = Progress::begin(ProgressMode::None);
        shown.callback("checking")(90 << 20, 90 << 20);
        shown.callback("fetching")(20 << 20, 80 << 20);
        assert!(lock(&shown.shared.board).plain(Instant::now()).starts_with(" 25 %  20.0/80.0 MiB"));
    }

    #[test]
    fn the_same_notice_is_given_once() {
        let retry = |attempt| EventKind::Retry {
            path: Some("m\u{1b}.gguf".to_owned()),
            attempt,
            reason: "it broke".to_owned(),
            wait_seconds: f64::from(attempt),
        };
        let (first, text) = notice(&retry(1)).unwrap();
        assert_eq!(text, "retrying: m\\u{1b}.gguf in 1.0 s: it broke");
        assert_eq!(first, notice(&retry(2)).unwrap().0);
    }
}
