//! The global options a command was given, for the commands its hints suggest: without them these would go to another store.

use crate::{
    args::{Cli, Global},
    render,
};
use clap::CommandFactory;
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
    insert(hint, GIVEN.get().map_or("", String::as_str))
}

pub(crate) fn insert(hint: &str, options: &str) -> String {
    const PROGRAM: &str = "model-cache";
    /// What a command may stand behind, in our hints.
    const BEFORE: [&str; 6] = ["", "&& ", ", ", "; ", ": ", " or "];
    let commands = Cli::command();
    let is_command = |word: &str| commands.get_subcommands().any(|command| command.get_name() == word);
    let (mut text, mut rest) = (String::new(), hint);
    while let Some(at) = rest.find(PROGRAM) {
        let (before, found) = rest.split_at(at);
        let after = &found[PROGRAM.len()..];
        text += before;
        let begins = BEFORE.iter().any(|head| if head.is_empty() { text.is_empty() } else { text.ends_with(head) });
        let word = after.strip_prefix(' ').and_then(|words| words.split([' ', ',', ';']).next());
        text += PROGRAM;
        if begins && word.is_some_and(is_command) {
            text += options;
        }
        rest = after;
    }
    text + rest
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

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
                "model-cache scan a/b shows it, model-cache ls what is here",
                "model-cache --store /x scan a/b shows it, model-cache --store /x ls what is here",
            ),
            ("for example: model-cache scan a/b", "for example: model-cache --store /x scan a/b"),
            (
                "model-cache cat a/b x | xxd, or model-cache cat a/b x > F",
                "model-cache --store /x cat a/b x | xxd, or model-cache --store /x cat a/b x > F",
            ),
            ("model-cache --help shows it", "model-cache --help shows it"),
            ("model-cache rm me/model-cache rm", "model-cache --store /x rm me/model-cache rm"),
            ("try again", "try again"),
        ] {
            assert_eq!(insert(hint), full);
        }
    }
}
