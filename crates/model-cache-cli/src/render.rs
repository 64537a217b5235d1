//! How things look: tables, sizes, times, words. Functions of values; nothing here writes.

use std::time::Duration;
pub(crate) use tabagent_model_cache::units::iec as size;
use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

/// Colours, or none.
#[derive(Clone, Copy)]
pub(crate) struct Paint(pub(crate) bool);

impl Paint {
    fn with(self, code: &str, text: &str) -> String {
        if self.0 { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    pub(crate) fn bold(self, text: &str) -> String {
        self.with("1", text)
    }

    pub(crate) fn dim(self, text: &str) -> String {
        self.with("2", text)
    }

    pub(crate) fn red(self, text: &str) -> String {
        self.with("1;31", text)
    }

    pub(crate) fn yellow(self, text: &str) -> String {
        self.with("1;33", text)
    }

    pub(crate) fn cyan(self, text: &str) -> String {
        self.with("1;36", text)
    }

    fn style(self, style: Style, text: &str) -> String {
        match style {
            Style::Plain => text.to_owned(),
            Style::Strong => self.bold(text),
            Style::Faint => self.dim(text),
            Style::Good => self.with("32", text),
            Style::Busy => self.with("33", text),
            Style::Bad => self.with("31", text),
        }
    }
}

/// What a cell says beside its words.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Style {
    #[default]
    Plain,
    Strong,
    Faint,
    Good,
    Busy,
    Bad,
}

// -- text ----------------------------------------------------------------------------------------------------------

/// `text` as it may stand on a terminal: control characters and those that turn the direction of writing are spelled out.
pub(crate) fn clean(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if is_unsafe(c) { out.extend(c.escape_default()) } else { out.push(c) }
    }
    out
}

/// Whether a character can do more to a terminal than stand in it.
fn is_unsafe(c: char) -> bool {
    c.is_control() || matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

/// Whether bytes are text a terminal can be given: UTF-8, and no control characters but those of lines.
pub(crate) fn is_terminal_text(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_ok_and(|text| text.chars().all(|c| !c.is_control() || matches!(c, '\n' | '\r' | '\t')))
}

/// JSON with every character a terminal would obey escaped. They can stand in strings only, where JSON allows the escape.
pub(crate) fn escape_json(json: String) -> String {
    if !json.contains(is_unsafe) {
        return json;
    }
    let mut out = String::with_capacity(json.len() + 16);
    for c in json.chars() {
        if is_unsafe(c) { out.push_str(&format!("\\u{:04x}", u32::from(c))) } else { out.push(c) }
    }
    out
}

/// Columns `text` takes.
pub(crate) fn width(text: &str) -> usize {
    text.width()
}

/// `text` in at most `columns`, its middle left out: both ends of a path tell most.
pub(crate) fn shorten_middle(text: &str, columns: usize) -> String {
    if width(text) <= columns {
        return text.to_owned();
    }
    if columns == 0 {
        return String::new();
    }
    let room = columns - 1;
    let tail_room = room / 2;
    let head = take_columns(text.chars(), room - tail_room);
    let tail: String = take_columns(text.chars().rev(), tail_room).chars().rev().collect();
    format!("{head}…{tail}")
}

/// `text` in at most `columns`, its end left out.
pub(crate) fn shorten_end(text: &str, columns: usize) -> String {
    if width(text) <= columns {
        return text.to_owned();
    }
    if columns == 0 {
        return String::new();
    }
    format!("{}…", take_columns(text.chars(), columns - 1).trim_end())
}

/// The spaces `text` lacks to be so many columns wide.
pub(crate) fn pad(columns: usize, text: &str) -> String {
    " ".repeat(columns.saturating_sub(width(text)))
}

/// What a chain of causes, joined by colons, says at its root; what lies between is for the log. Only the way to a server has such
/// chains; other messages are short.
pub(crate) fn root_cause(chain: &str) -> &str {
    if !chain.starts_with("could not ") {
        return chain;
    }
    let Some((before, root)) = chain.rsplit_once(": ") else { return chain };
    // Half a sentence tells nothing.
    match before.rfind("invalid peer certificate") {
        Some(at) => &chain[at..],
        None => root,
    }
}

fn take_columns(chars: impl Iterator<Item = char>, columns: usize) -> String {
    let mut left = columns;
    chars
        .map_while(|c| {
            left = left.checked_sub(c.width().unwrap_or(0))?;
            Some(c)
        })
        .collect()
}

/// `items` joined by commas, in lines of at most `columns`.
pub(crate) fn wrap_list(items: impl Iterator<Item = String>, columns: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for item in items {
        match lines.last_mut() {
            Some(line) if width(line) + 2 + width(&item) < columns => *line += &format!(", {item}"),
            Some(line) => {
                line.push(',');
                lines.push(item);
            }
            None => lines.push(item),
        }
    }
    lines
}

/// `1 file`, `2 files`.
pub(crate) fn count(number: u64, noun: &str) -> String {
    format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
}

pub(crate) use tabagent_model_cache::shell_word as shell;

// -- numbers -------------------------------------------------------------------------------------------------------

/// `1.95/3.19 GiB`, `117/477 MiB`: both in the unit of the whole, which has three digits.
pub(crate) fn part_of(part: u64, whole: u64) -> String {
    const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let power = (whole.max(1).ilog2() / 10).min(5);
    let scale = 1024_f64.powi(power as i32);
    let digits = match whole as f64 / scale {
        _ if power == 0 => 0,
        value if value < 9.995 => 2,
        value if value < 99.95 => 1,
        _ => 0,
    };
    let step = 10_f64.powi(digits);
    // Down, so that a part never shows as the whole.
    let part = if part == whole { part as f64 / scale } else { (part as f64 / scale * step).floor() / step };
    let digits = digits as usize;
    format!("{part:.digits$}/{:.digits$} {}", whole as f64 / scale, UNITS[power as usize])
}

/// Whole percent, 100 only when nothing is missing.
pub(crate) fn percent(part: u64, whole: u64) -> u64 {
    if part >= whole { 100 } else { (u128::from(part) * 100 / u128::from(whole)) as u64 }
}

/// `212 MiB/s`: three digits are all a speed has.
pub(crate) fn speed(bytes_per_second: u64) -> String {
    let mut value = bytes_per_second as f64;
    let mut unit = 0;
    const UNITS: [&str; 5] = ["B/s", "KiB/s", "MiB/s", "GiB/s", "TiB/s"];
    while value >= 999.5 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    let digits = match value {
        _ if unit == 0 => 0,
        value if value < 9.995 => 2,
        value if value < 99.95 => 1,
        _ => 0,
    };
    format!("{value:.digits$} {}", UNITS[unit])
}

/// `0:06`, `12:34`, `1:02:03`; days say so.
pub(crate) fn clock(seconds: u64) -> String {
    let (minutes, hours) = (seconds / 60 % 60, seconds / 3600);
    match hours {
        0 => format!("{minutes}:{:02}", seconds % 60),
        1..48 => format!("{hours}:{minutes:02}:{:02}", seconds % 60),
        _ => count(hours / 24, "day"),
    }
}

/// `0.3 s`, `9.4 s`, `2 min 5 s`: how long something took.
pub(crate) fn took(elapsed: Duration) -> String {
    let seconds = elapsed.as_secs_f64();
    match seconds {
        s if s < 0.1 => format!("{:.0} ms", (s * 1000.0).max(1.0)),
        s if s < 99.95 => format!("{s:.1} s"),
        s => format!("{} min {} s", s.round() as u64 / 60, s.round() as u64 % 60),
    }
}

/// `2 hours ago`.
pub(crate) fn ago(elapsed: Duration) -> String {
    let seconds = elapsed.as_secs();
    match seconds {
        0..60 => "just now".to_owned(),
        60..3600 => format!("{} ago", count(seconds / 60, "minute")),
        3600..86_400 => format!("{} ago", count(seconds / 3600, "hour")),
        86_400..5_184_000 => format!("{} ago", count(seconds / 86_400, "day")),
        _ => format!("{} ago", count(seconds / 2_592_000, "month")),
    }
}

// -- bars ----------------------------------------------------------------------------------------------------------

/// `━━━━━╸─────`, `columns` wide; readable without colour too.
pub(crate) fn bar(part: u64, whole: u64, columns: usize, paint: Paint) -> String {
    let halves = if whole == 0 { columns * 2 } else { (part.min(whole) as u128 * columns as u128 * 2 / whole as u128) as usize };
    let mut full = "━".repeat(halves / 2);
    if halves % 2 == 1 {
        full.push('╸');
    }
    let rest = "─".repeat(columns.saturating_sub(halves.div_ceil(2)));
    format!("{}{}", paint.with("36", &full), paint.dim(&rest))
}

// -- titles --------------------------------------------------------------------------------------------------------

/// What stands above a table: its parts in a row, or on lines of their own where the terminal is too narrow.
pub(crate) fn title(parts: &[String], columns: Option<usize>, paint: Paint) -> String {
    let Some((first, others)) = parts.split_first() else { return String::new() };
    let mut line = width(first);
    let mut text = paint.bold(first);
    for part in others {
        if columns.is_some_and(|columns| line + 3 + width(part) > columns) {
            text += &format!("\n  {part}");
            line = 2 + width(part);
        } else {
            text += &format!("   {part}");
            line += 3 + width(part);
        }
    }
    text + "\n"
}

// -- tables --------------------------------------------------------------------------------------------------------

/// On which side a column's cells stand.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    Left,
    Right,
}

/// What gives way where the terminal is narrow.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fit {
    /// Nothing.
    Keep,
    /// The column, before any other is cut.
    Drop,
    /// The column, where cutting others is not enough.
    DropLast,
    /// The end of its cells, down to so many columns.
    CutEnd(usize),
    /// The middle of its cells, down to so many columns.
    CutMiddle(usize),
}

pub(crate) struct Column {
    pub(crate) title: &'static str,
    pub(crate) side: Side,
    pub(crate) fit: Fit,
}

pub(crate) const fn column(title: &'static str, side: Side, fit: Fit) -> Column {
    Column { title, side, fit }
}

/// One cell, its text cleaned.
#[derive(Clone, Default)]
pub(crate) struct Cell {
    text: String,
    style: Style,
}

impl Cell {
    pub(crate) fn styled(text: impl AsRef<str>, style: Style) -> Self {
        Self { text: clean(text.as_ref()), style }
    }
}

impl<T: AsRef<str>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self::styled(text, Style::Plain)
    }
}

/// Rows under titles, aligned.
pub(crate) struct Table {
    columns: Vec<Column>,
    rows: Vec<Vec<Cell>>,
}

/// Between two columns.
const GAP: usize = 2;

impl Table {
    pub(crate) fn new(columns: impl Into<Vec<Column>>) -> Self {
        Self { columns: columns.into(), rows: Vec::new() }
    }

    pub(crate) fn row(&mut self, cells: impl Into<Vec<Cell>>) {
        let cells = cells.into();
        debug_assert_eq!(cells.len(), self.columns.len());
        self.rows.push(cells);
    }

    /// The table in at most `columns` where it can, as wide as it is where there is no limit.
    pub(crate) fn render(&self, columns: Option<usize>, paint: Paint) -> String {
        let (shown, widths) = self.fit(columns);
        let mut out = String::new();
        let titles = shown.iter().map(|&at| (at, Cell::styled(self.columns[at].title, Style::Faint))).collect();
        let rows = self.rows.iter().map(|row| shown.iter().map(|&at| (at, row[at].clone())).collect());
        for row in std::iter::once(titles).chain(rows) {
            let row: Vec<(usize, Cell)> = row;
            let mut line = String::new();
            for (place, (at, cell)) in row.iter().enumerate() {
                let text = match self.columns[*at].fit {
                    Fit::CutMiddle(_) => shorten_middle(&cell.text, widths[*at]),
                    _ => shorten_end(&cell.text, widths[*at]),
                };
                let pad = pad(widths[*at], &text);
                let text = paint.style(cell.style, &text);
                match self.columns[*at].side {
                    Side::Right => line += &format!("{pad}{text}"),
                    // Nothing trails the last column.
                    Side::Left if place + 1 == row.len() => line += &text,
                    Side::Left => line += &format!("{text}{pad}"),
                }
                if place + 1 < row.len() {
                    line += &" ".repeat(GAP);
                }
            }
            out += line.trim_end();
            out.push('\n');
        }
        out
    }

    /// Which columns are shown, and how wide each column is.
    fn fit(&self, columns: Option<usize>) -> (Vec<usize>, Vec<usize>) {
        let mut shown: Vec<usize> = (0..self.columns.len()).collect();
        let natural = |at: usize| {
            let cells = self.rows.iter().map(|row| width(&row[at].text));
            cells.chain([width(self.columns[at].title)]).max().unwrap_or(0)
        };
        let natural: Vec<usize> = shown.iter().map(|&at| natural(at)).collect();
        let Some(columns) = columns else { return (shown, natural) };
        let over = |shown: &[usize], widths: &[usize]| {
            let total: usize = shown.iter().map(|&at| widths[at] + GAP).sum();
            total.saturating_sub(GAP).saturating_sub(columns)
        };
        let drop_last = |shown: &mut Vec<usize>, fit: Fit| {
            let place = shown.iter().rposition(|&at| self.columns[at].fit == fit);
            place.map(|place| shown.remove(place)).is_some()
        };
        while over(&shown, &natural) > 0 && drop_last(&mut shown, Fit::Drop) {}
        loop {
            let mut widths = natural.clone();
            // The last first: what stands to the left names the row.
            for at in shown.iter().rev().copied() {
                if let Fit::CutEnd(least) | Fit::CutMiddle(least) = self.columns[at].fit {
                    widths[at] = widths[at].saturating_sub(over(&shown, &widths)).max(least.min(widths[at]));
                }
            }
            if over(&shown, &widths) == 0 || !drop_last(&mut shown, Fit::DropLast) {
                return (shown, widths);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        let mut table = Table::new([
            column("REPO", Side::Left, Fit::CutMiddle(8)),
            column("SIZE", Side::Right, Fit::Keep),
            column("DIGEST", Side::Left, Fit::Drop),
        ]);
        table.row(["org/a".into(), "1.88 GiB".into(), "sha256:0123".into()]);
        table.row(["organisation/a-long-name".into(), "3 B".into(), "sha256:4567".into()]);
        table
    }

    #[test]
    fn a_table_aligns_and_nothing_trails() {
        assert_eq!(
            table().render(None, Paint(false)),
            "REPO                          SIZE  DIGEST\n\
             org/a                     1.88 GiB  sha256:0123\n\
             organisation/a-long-name       3 B  sha256:4567\n"
        );
    }

    #[test]
    fn a_narrow_terminal_drops_columns_before_it_cuts_names() {
        assert_eq!(
            table().render(Some(34), Paint(false)),
            "REPO                          SIZE\n\
             org/a                     1.88 GiB\n\
             organisation/a-long-name       3 B\n"
        );
        assert_eq!(
            table().render(Some(24), Paint(false)),
            "REPO                SIZE\n\
             org/a           1.88 GiB\n\
             organis…g-name       3 B\n"
        );
        for line in table().render(Some(1), Paint(false)).lines() {
            assert!(width(line) <= 18, "{line:?}");
        }
    }

    #[test]
    fn what_can_be_spared_goes_when_cutting_is_not_enough() {
        let mut table = Table::new([
            column("REPO", Side::Left, Fit::CutMiddle(8)),
            column("SIZE", Side::Right, Fit::Keep),
            column("LAST USED", Side::Left, Fit::DropLast),
        ]);
        table.row(["organisation/name".into(), "1.88 GiB".into(), "2 hours ago".into()]);
        assert!(table.render(Some(36), Paint(false)).contains("organi…n/name"));
        assert_eq!(table.render(Some(28), Paint(false)), "REPO                   SIZE\norganisation/name  1.88 GiB\n");
    }

    #[test]
    fn wide_characters_count_as_two_columns() {
        assert_eq!(shorten_middle("模型模型模型", 5), "模…型");
        assert_eq!(shorten_end("模型模型", 5), "模型…");
        assert_eq!(shorten_middle("short", 5), "short");
        assert_eq!((shorten_middle("short", 0).as_str(), shorten_end("short", 0).as_str()), ("", ""));
        assert_eq!((shorten_middle("模型", 1).as_str(), shorten_end("模型", 1).as_str()), ("…", "…"));
    }

    #[test]
    fn colour_is_the_only_thing_paint_adds() {
        let painted = table().render(None, Paint(true));
        let plain: String = painted.replace("\x1b[2m", "").replace("\x1b[0m", "");
        assert_eq!(plain, table().render(None, Paint(false)));
    }

    #[test]
    fn control_characters_are_spelled_out_in_text_and_in_json() {
        assert_eq!(clean("a\u{1b}[31m\n\u{202e}b"), "a\\u{1b}[31m\\n\\u{202e}b");
        let json = escape_json(serde_json::to_string("x\u{9b}2J\u{7f}\u{202e}").unwrap());
        assert_eq!(json, r#""x\u009b2J\u007f\u202e""#);
        assert_eq!(serde_json::from_str::<String>(&json).unwrap(), "x\u{9b}2J\u{7f}\u{202e}");
    }

    #[test]
    fn a_part_is_shown_in_the_unit_of_the_whole() {
        assert_eq!(part_of(2_093_796_556, 3_425_219_379), "1.94/3.19 GiB");
        assert_eq!(part_of(3_425_219_379, 3_425_219_379), "3.19/3.19 GiB");
        assert_eq!(part_of(0, 5 << 20), "0.00/5.00 MiB");
        assert_eq!(part_of(122_683_392, 500_170_752), "117/477 MiB");
        assert_eq!(part_of(1 << 20, 50 << 20), "1.0/50.0 MiB");
        assert_eq!(part_of(u64::MAX, u64::MAX), "16384/16384 PiB");
        assert_eq!(part_of(7, 9), "7/9 B");
    }

    #[test]
    fn a_hundred_percent_means_all() {
        assert_eq!(percent(999_999, 1_000_000), 99);
        assert_eq!(percent(5, 5), 100);
        assert_eq!(percent(0, 0), 100);
        assert_eq!(percent(u64::MAX - 1, u64::MAX), 99);
    }

    #[test]
    fn times_read_as_people_say_them() {
        for (seconds, text) in [(6, "0:06"), (754, "12:34"), (3723, "1:02:03"), (200_000, "2 days")] {
            assert_eq!(clock(seconds), text);
        }
        for (ms, text) in [(0, "1 ms"), (42, "42 ms"), (300, "0.3 s"), (9_440, "9.4 s"), (125_000, "2 min 5 s")] {
            assert_eq!(took(Duration::from_millis(ms)), text);
        }
        for (seconds, text) in
            [(3, "just now"), (60, "1 minute ago"), (7200, "2 hours ago"), (90_000, "1 day ago"), (6_000_000, "2 months ago")]
        {
            assert_eq!(ago(Duration::from_secs(seconds)), text);
        }
    }

    #[test]
    fn a_speed_has_three_digits() {
        for (bytes, text) in [
            (0, "0 B/s"),
            (999, "999 B/s"),
            (1000, "0.98 KiB/s"),
            (222_298_112, "212 MiB/s"),
            (10_485_760, "10.0 MiB/s"),
            (1_073_741_824, "1.00 GiB/s"),
        ] {
            assert_eq!(speed(bytes), text);
        }
    }

    #[test]
    fn a_bar_is_as_wide_as_it_was_asked_to_be() {
        for part in 0..=40 {
            assert_eq!(width(&bar(part, 40, 10, Paint(false))), 10);
        }
        assert_eq!(bar(5, 20, 10, Paint(false)), "━━╸───────");
        assert_eq!(bar(0, 0, 4, Paint(false)), "━━━━");
    }

    #[test]
    fn a_chain_of_causes_is_told_by_its_root() {
        let chain = "could not reach http://h/x: error sending request: tcp connect error: Connection refused (os error 111)";
        assert_eq!(root_cause(chain), "Connection refused (os error 111)");
        assert_eq!(root_cause("http://h/x answered 503: busy"), "http://h/x answered 503: busy");
        let chain = "could not reach https://h/x: client error (Connect): invalid peer certificate: UnknownIssuer";
        assert_eq!(root_cause(chain), "invalid peer certificate: UnknownIssuer");
    }

    #[test]
    fn a_list_wraps_between_its_items() {
        let items = ["Q4 1 GiB", "Q6 2 GiB", "Q8 3 GiB"].map(str::to_owned);
        assert_eq!(wrap_list(items.into_iter(), 20), ["Q4 1 GiB, Q6 2 GiB,", "Q8 3 GiB"]);
    }

    #[test]
    fn a_hint_can_be_pasted_whatever_a_file_is_called() {
        assert_eq!(shell("org/name@v1.0"), "org/name@v1.0");
        assert_eq!(shell("it's; rm -rf"), r"'it'\''s; rm -rf'");
        assert_eq!(shell("*.json"), "'*.json'");
    }
}
