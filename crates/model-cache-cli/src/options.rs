//! The global options a command was given, for the commands its hints suggest: without them these would go to another store.

use crate::{
    args::{Cli, Global},
    render,
};
use clap::{CommandFactory, Parser, error::ErrorKind};
use std::sync::OnceLock;

/// ` --store DIR --endpoint URL`, as far as given. One for the process, as the command line is.
static GIVEN: OnceLock<String> = OnceLock::new();

/// Takes down what was given.
pub(crate) fn remember(global: &Global) {
    let _ = GIVEN.set(given(global));
}

pub(crate) fn given(global: &Global) -> String {
    let store = global.store.as_ref().map(|store| store.to_string_lossy().into_owned());
    let options = [("--store", store), ("--endpoint", global.endpoint.clone())];
    let words =
        options.into_iter().filter_map(|(name, value)| Some(format!(" {name} {}", render::shell(&render::clean(&value?)))));
    words.collect()
}

/// `hint`, its commands with the options this one was given.
pub(crate) fn into_hint(hint: &str) -> String {
    debug_assert!(is_pastable(hint), "a command does not stand alone on its line: {hint}");
    insert(hint, GIVEN.get().map_or("", String::as_str))
}

const PROGRAM: &str = "model-cache ";
/// What a command may stand behind, on its line.
const AND: &str = " && ";

pub(crate) fn insert(hint: &str, options: &str) -> String {
    let commands = Cli::command();
    let (mut text, mut rest) = (String::new(), hint);
    while let Some(at) = rest.find(PROGRAM) {
        let (before, after) = (&rest[..at], &rest[at + PROGRAM.len()..]);
        text += before;
        let begins = text.is_empty() || text.ends_with('\n') || text.ends_with(AND);
        text += PROGRAM;
        if begins && is_command(&commands, after) {
            text += options.trim_start();
            text += if options.is_empty() { "" } else { " " };
        }
        rest = after;
    }
    text + rest
}

/// Whether `words` begin with the name of a command.
fn is_command(commands: &clap::Command, words: &str) -> bool {
    let word = words.split_whitespace().next().unwrap_or_default();
    commands.get_subcommands().any(|command| command.get_name() == word)
}

/// Whether each line that begins with a command is nothing but commands this program takes, and no sentence runs into one.
pub(crate) fn is_pastable(hint: &str) -> bool {
    let commands = Cli::command();
    hint.lines().all(|line| match line.starts_with(PROGRAM) {
        true => words(line).is_some_and(|words| words.split(|word| word.is("&&")).all(is_accepted)),
        false => !line.match_indices(": model-cache ").any(|(at, found)| is_command(&commands, &line[at + found.len()..])),
    })
}

/// Whether a command is another program's, or one this program takes; what stands behind a pipe is not looked at.
fn is_accepted(command: &[Word]) -> bool {
    let own: Vec<_> = command.iter().take_while(|word| !word.is("|") && !word.is(">")).collect();
    if own.first().is_none_or(|program| program.text != PROGRAM.trim_end()) {
        return true;
    }
    // Commands that take any number of words would take a sentence too.
    if own.iter().any(|word| !word.is_quoted && word.text.ends_with([',', ';', ':'])) {
        return false;
    }
    match Cli::try_parse_from(own.iter().map(|word| &word.text)) {
        Ok(_) => true,
        Err(error) => matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion),
    }
}

/// A word as a shell reads it.
#[derive(Default)]
struct Word {
    text: String,
    is_quoted: bool,
}

impl Word {
    /// Whether it is this sign of the shell's.
    fn is(&self, sign: &str) -> bool {
        !self.is_quoted && self.text == sign
    }
}

/// The words of a line; `None` where a quote is left open.
fn words(line: &str) -> Option<Vec<Word>> {
    let (mut words, mut word, mut quoted) = (Vec::new(), None::<Word>, false);
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        if c == ' ' && !quoted {
            words.extend(word.take());
            continue;
        }
        let word = word.get_or_insert_default();
        match c {
            '\'' => (quoted, word.is_quoted) = (!quoted, true),
            '\\' if !quoted => word.text.push(chars.next()?),
            c => word.text.push(c),
        }
    }
    words.extend(word);
    (!quoted).then_some(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hint_goes_to_the_same_store_and_hub() {
        let cli = Cli::parse_from(["model-cache", "--store", "/my store", "ls", "--endpoint", "http://h:1"]);
        let options = given(&cli.global);
        assert_eq!(options, " --store '/my store' --endpoint http://h:1");
        let insert = |hint| insert(hint, " --store /x");
        for (hint, full) in [
            ("model-cache pull a/b --all", "model-cache --store /x pull a/b --all"),
            (
                "model-cache rm a/b x && model-cache pull a/b",
                "model-cache --store /x rm a/b x && model-cache --store /x pull a/b",
            ),
            (
                "what is here:\nmodel-cache scan a/b\nmodel-cache ls",
                "what is here:\nmodel-cache --store /x scan a/b\nmodel-cache --store /x ls",
            ),
            (
                "model-cache cat a/b x | xxd\nmodel-cache cat a/b x > F",
                "model-cache --store /x cat a/b x | xxd\nmodel-cache --store /x cat a/b x > F",
            ),
            ("see that model-cache ls is run", "see that model-cache ls is run"),
            ("model-cache --help", "model-cache --help"),
            ("model-cache rm me/model-cache rm", "model-cache --store /x rm me/model-cache rm"),
            ("try again", "try again"),
        ] {
            assert_eq!(insert(hint), full);
        }
    }

    #[test]
    fn a_command_stands_alone_on_its_line() {
        for good in [
            "",
            "try again",
            "model-cache ls",
            "model-cache --help",
            "model-cache pull --help",
            "what is here:\nmodel-cache ls a/b\nmodel-cache rm a/b 'x y' --yes",
            "model-cache rm a/b x && model-cache pull a/b --file x",
            r"model-cache cat a/b 'it'\''s | x > y' | xxd | head",
            "model-cache cat a/b x > FILE",
            "mv a b && model-cache gc",
        ] {
            assert!(is_pastable(good), "{good}");
        }
        for bad in [
            "model-cache export writes real files instead, where it may",
            "model-cache ls shows what is here",
            "model-cache ls\nfor example: model-cache scan a/b",
            "model-cache rm a/b, then model-cache gc",
            "model-cache gc && model-cache frees it",
            "model-cache pull a/b --quant 'Q4",
            "model-cache pull [OPTIONS] <REPO>",
        ] {
            assert!(!is_pastable(bad), "{bad}");
        }
    }
}
