//! Every fuzz target by its name, and what must hold of the command line and of what is shown. For `fuzz/`, and for the test that runs
//! the targets.

use crate::{
    args::{self, ByteRange, Refused},
    options, output,
    render::{self, Paint},
};
use std::{ffi::OsString, time::Duration};
use tabagent_model_cache::fuzz as library;

/// A target: what must hold of an input, and how much memory finding out may take.
pub struct Target {
    /// Its name, that of its corpus too.
    pub name: &'static str,
    /// Panics where something does not hold.
    pub body: fn(&[u8]),
    /// Most bytes of memory at once, for an input of so many.
    pub peak_bytes: fn(usize) -> usize,
}

/// All of them. An index has some 100 bytes for what takes 20 in a file, and what checks it writes it again; clap and regex-automata
/// take their share however short the input is.
pub const TARGETS: &[Target] = &[
    Target { name: "names", body: library::names, peak_bytes: |len| (64 << 10) + 64 * len },
    Target { name: "options", body: library::options, peak_bytes: |len| (24 << 20) + 64 * len },
    Target { name: "records", body: library::records, peak_bytes: |len| (64 << 10) + 64 * len },
    Target { name: "extent", body: library::extent, peak_bytes: |len| (16 << 10) + 4 * len },
    Target { name: "json", body: library::json, peak_bytes: |len| (16 << 10) + 16 * len },
    Target { name: "headers", body: library::headers, peak_bytes: |len| (64 << 10) + 64 * len },
    Target { name: "listing", body: library::listing, peak_bytes: |len| (64 << 10) + 256 * len },
    Target { name: "gguf", body: library::gguf, peak_bytes: |len| (16 << 10) + 32 * len },
    Target { name: "safetensors", body: library::safetensors, peak_bytes: |len| (64 << 10) + 64 * len },
    Target { name: "onnx", body: library::onnx, peak_bytes: |len| (64 << 10) + 64 * len },
    Target { name: "terminal", body: terminal, peak_bytes: |len| (2 << 20) + 64 * len },
];

pub use library::record_samples;

/// What is typed and what is shown, by the first byte.
pub fn terminal(input: &[u8]) {
    let Some((&selector, rest)) = input.split_first() else { return };
    let text = String::from_utf8_lossy(rest);
    match selector % 4 {
        0 => command_line(rest),
        1 => range(rest),
        2 => shown(&text),
        _ => numbers(rest),
    }
}

/// Arguments with zeros between them: understood, or refused in words that a terminal can be given.
fn command_line(input: &[u8]) {
    use std::os::unix::ffi::OsStringExt;
    let given = input.split(|byte| *byte == 0).map(|arg| OsString::from_vec(arg.to_vec()));
    let raw: Vec<OsString> = std::iter::once("model-cache".into()).chain(given).collect();
    match args::parse(&raw) {
        Ok(cli) => assert!(render::clean(&options::given(&cli.global)) == options::given(&cli.global)),
        Err(Refused::Error(failure, json)) => {
            let text = failure.text(true, Paint(false));
            assert!(text.ends_with('\n') && text.lines().all(|line| render::clean(line) == line), "{text:?}");
            assert!(!json || raw.iter().any(|arg| arg == "--json"));
            check_json(failure.message());
        }
        Err(Refused::Help(_) | Refused::NoCommand(_)) => {}
    }
}

/// `size u64 | range`: what is understood lies in the file, and means the same when it is written out.
fn range(input: &[u8]) {
    let Some((size, text)) = input.split_first_chunk() else { return };
    let size_bytes = u64::from_le_bytes(*size);
    let Ok(text) = std::str::from_utf8(text) else { return };
    match text.parse::<ByteRange>() {
        Ok(range) => {
            let (found, bytes) = match range.within(size_bytes) {
                Ok(found) => {
                    assert!(found.start <= found.end && found.end <= size_bytes, "{text}");
                    (true, found)
                }
                Err(other) => (false, other),
            };
            assert!(bytes.start <= bytes.end && found == (bytes.end <= size_bytes), "{text} of {size_bytes}");
            let written: ByteRange = format!("{}..{}", bytes.start, bytes.end).parse().expect("two numbers, in order");
            assert_eq!(written.within(size_bytes).is_ok(), found);
        }
        Err(reason) => assert_eq!(render::clean(&reason), reason),
    }
}

/// Words from elsewhere, on a terminal, in a table's cell, in JSON.
fn shown(text: &str) {
    let clean = render::clean(text);
    assert_eq!(render::clean(&clean), clean);
    assert!(render::is_terminal_text(clean.as_bytes()) || clean.is_empty());
    check_json(text);
    for columns in [0, 1, 2, 7, 80] {
        for short in [render::shorten_middle(&clean, columns), render::shorten_end(&clean, columns)] {
            assert!(render::width(&short) <= columns, "{short:?} is wider than {columns}");
        }
        let items = || clean.split(' ').map(str::to_owned);
        let lines = render::wrap_list(items(), columns);
        assert_eq!(lines.join(" "), items().collect::<Vec<_>>().join(", "));
    }
    assert!(clean.ends_with(render::root_cause(&clean)));
    // A hint is what it was, with the options behind each command.
    let hint = options::insert(&clean, " --store X");
    assert_eq!(hint.replace(" --store X", ""), clean.replace(" --store X", ""));
}

/// JSON with nothing in it that a terminal obeys, and that reads back as what was meant.
fn check_json(text: &str) {
    let json = output::to_json(&text);
    assert_eq!(render::clean(&json), json);
    assert_eq!(serde_json::from_str::<String>(&json).ok().as_deref(), Some(text));
}

/// Numbers, however large: nothing overflows, and a part is never shown as more than the whole.
fn numbers(input: &[u8]) {
    let Some((one, rest)) = input.split_first_chunk() else { return };
    let Some((other, _)) = rest.split_first_chunk() else { return };
    let (one, other) = (u64::from_le_bytes(*one), u64::from_le_bytes(*other));
    let (part, whole) = (one.min(other), one.max(other));
    let percent = render::percent(part, whole);
    assert!(percent <= 100 && (percent < 100 || part == whole));
    let elapsed = Duration::from_nanos(one);
    let texts = [
        render::size(one),
        render::part_of(part, whole),
        render::speed(one),
        render::clock(one),
        render::took(elapsed),
        render::took(Duration::from_secs(one)),
        render::ago(Duration::from_secs(one)),
    ];
    for text in texts {
        assert!((3..=32).contains(&text.len()), "{text}");
    }
    for columns in [0, 1, 40] {
        assert_eq!(render::width(&render::bar(part, whole, columns, Paint(false))), columns);
    }
}
