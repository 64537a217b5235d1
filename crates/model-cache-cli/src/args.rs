//! The command line: what may be typed, and its help.

use crate::{
    exit::{Code, Failure},
    output, render, talk,
};
use clap::{
    Args, CommandFactory, Parser, Subcommand, ValueEnum,
    builder::styling::{AnsiColor, Styles},
    error::ErrorKind,
};
use std::{ffi::OsString, ops::Range, path::PathBuf, process::ExitCode, str::FromStr};
use tabagent_model_cache::BackupOptions;

const STYLES: Styles = Styles::styled()
    .header(AnsiColor::Green.on_default().bold())
    .usage(AnsiColor::Green.on_default().bold())
    .literal(AnsiColor::Cyan.on_default().bold())
    .placeholder(AnsiColor::Cyan.on_default());

/// Keeps AI models from the Hugging Face Hub in a store on this machine: pulled once, verified, read without a copy.
#[derive(Debug, Parser)]
#[command(
    name = "model-cache",
    version,
    styles = STYLES,
    after_help = "\
Examples:
  model-cache scan bartowski/Llama-3.2-3B-Instruct-GGUF
  model-cache pull bartowski/Llama-3.2-3B-Instruct-GGUF --quant Q4_K_M
  model-cache ls

REPO is org/name, or org/name@REVISION: a branch, a tag, a commit or refs/pr/N.",
    after_long_help = "\
Examples:
  model-cache scan bartowski/Llama-3.2-3B-Instruct-GGUF
  model-cache pull bartowski/Llama-3.2-3B-Instruct-GGUF --quant Q4_K_M
  model-cache ls

REPO is org/name, or org/name@REVISION: a branch, a tag, a commit or refs/pr/N.

Exit codes:
  0  done                       5    integrity: bytes are not what was promised
  1  anything else              6    no space
  2  usage                      7    not allowed: token refused, gated
  3  not found                  130  interrupted by Ctrl-C (143 by SIGTERM)
  4  the network or the Hub

Environment:
  MODEL_CACHE_HOME              the store, where --store is not given
  MODEL_CACHE_LIMIT_RATE        most bytes a second of a pull, where --limit-rate is not given
  MODEL_CACHE_MEMORY_BUDGET     most private memory of a pull, where --memory-budget is not given
  MODEL_CACHE_LOG               what to log on stderr, as warn or tabagent_model_cache=debug
  HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE, HTTPS_PROXY   as for the Hub's own tools
  NO_COLOR                      no colour"
)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What every command takes.
#[derive(Args, Debug)]
#[command(next_help_heading = "Global options")]
pub(crate) struct Global {
    /// The store's folder [default: $MODEL_CACHE_HOME, else $XDG_CACHE_HOME/tabagent/model-cache, else ~/.cache/tabagent/model-cache]
    #[arg(long, value_name = "DIR", global = true)]
    pub(crate) store: Option<PathBuf>,
    /// The Hub's address [default: $HF_ENDPOINT, else <https://huggingface.co>]
    #[arg(
        long,
        help = "The Hub's address [default: $HF_ENDPOINT, else https://huggingface.co]",
        value_name = "URL",
        global = true
    )]
    pub(crate) endpoint: Option<String>,
    /// Never use the network
    #[arg(long, global = true)]
    pub(crate) offline: bool,
    /// One JSON document on stdout, errors too
    #[arg(long, global = true)]
    pub(crate) json: bool,
    #[arg(
        long,
        value_name = "HOW",
        global = true,
        default_value = "auto",
        hide_possible_values = true,
        hide_default_value = true
    )]
    #[arg(help = "Progress on stderr: auto, plain, json or none")]
    pub(crate) progress: ProgressMode,
    /// Show causes under errors, and what is done; -vv all of it
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub(crate) verbose: u8,
}

/// How progress is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ProgressMode {
    /// Bars on a terminal, else plain.
    Auto,
    /// A line every few seconds.
    Plain,
    /// One JSON object a line.
    Json,
    /// Nothing.
    None,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Ask the Hub what a repo offers: quants, sizes, what is here
    #[command(after_help = "Example:\n  model-cache scan bartowski/Llama-3.2-3B-Instruct-GGUF")]
    Scan {
        /// org/name or org/name@REVISION
        repo: String,
    },
    /// Download quants or files; goes on where an earlier pull stopped
    #[command(after_help = "\
Examples:
  model-cache pull bartowski/Llama-3.2-3B-Instruct-GGUF --quant Q4_K_M
  model-cache pull org/name --file '*.json' --file model.safetensors
  model-cache pull org/name@v1.0 --all --limit-rate 10M")]
    Pull {
        /// org/name or org/name@REVISION
        repo: String,
        /// A quant to pull, as scan names it; may be given several times [default: the only one]
        #[arg(long, short = 'q', value_name = "Q")]
        quant: Vec<String>,
        /// Files to pull, by path or glob ('*' matches '/' too); may be given several times
        #[arg(long, value_name = "GLOB")]
        file: Vec<String>,
        /// Every file of the repo
        #[arg(long)]
        all: bool,
        /// Connections at once, 1 to 64, and no more than the memory budget is enough for [default: as many as pay, up to 16]
        #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = number::<usize>)]
        connections: Option<usize>,
        /// Most bytes a second over all connections: 10M, 1.5GiB (of 1024), 10MB (of 1000) [default: $MODEL_CACHE_LIMIT_RATE, else no limit]
        #[arg(long, value_name = "RATE")]
        limit_rate: Option<String>,
        /// Most private memory for its data, 8 MiB or more: 24MiB [default: $MODEL_CACHE_MEMORY_BUDGET, else 40MiB]
        #[arg(long, value_name = "SIZE")]
        memory_budget: Option<String>,
    },
    /// List the repos in the store, or one repo's files
    #[command(alias = "list", after_help = "Examples:\n  model-cache ls\n  model-cache ls bartowski/Llama-3.2-3B-Instruct-GGUF")]
    Ls {
        /// org/name or org/name@REVISION
        repo: Option<String>,
    },
    /// Show what is known of a repo, file by file, without the network
    #[command(after_help = "Example:\n  model-cache show bartowski/Llama-3.2-3B-Instruct-GGUF")]
    Show {
        /// org/name or org/name@REVISION
        repo: String,
    },
    /// Show what the store holds and takes of the disk
    #[command(after_help = "Example:\n  model-cache df")]
    Df,
    /// Write a file's bytes to stdout
    #[command(after_help = "\
Examples:
  model-cache cat org/name config.json
  model-cache cat org/name model.gguf --range 0..4 | xxd
  model-cache cat org/name model.gguf --check > model.gguf")]
    Cat {
        /// org/name or org/name@REVISION
        repo: String,
        /// The file's path in the repo
        path: String,
        /// Bytes A up to, not including, B; A.. and ..B leave an end open
        #[arg(long, value_name = "A..B", allow_hyphen_values = true)]
        range: Option<ByteRange>,
        /// Compare each block's checksum before its bytes are written
        #[arg(long)]
        check: bool,
    },
    /// Write files of the store to a folder
    #[command(after_help = "\
Examples:
  model-cache export org/name --to ./model
  model-cache export org/name '*.json' tokenizer.model --to ./model --force")]
    Export {
        /// org/name or org/name@REVISION
        repo: String,
        /// Which files, by path or glob [default: all that are here]
        glob: Vec<String>,
        /// The folder to write to; made where missing
        #[arg(long, value_name = "DIR")]
        to: PathBuf,
        /// Replace files that exist
        #[arg(long)]
        force: bool,
        /// Compare checksums first; damaged files are left out and told, all others written
        #[arg(long)]
        check: bool,
    },
    /// Show the store as a read-only folder, for programs that only take paths; until Ctrl-C
    #[command(after_help = "\
Examples:
  model-cache mount ./mnt
  model-cache mount ./mnt --repo org/name --repo org/other@v1.0

Files are at DIR/org/name/PATH, those of a certain commit at DIR/org/name@COMMIT/PATH. \
They come and go with the store's, within a second. \
Needs root, or fuse3 (fusermount3); where neither is, model-cache export writes real files.")]
    Mount {
        /// The folder to mount on: an empty one, or one to be made
        dir: PathBuf,
        /// Show this repo only, as DIR/REPO: org/name or org/name@REVISION; may be given several times [default: all]
        #[arg(long, value_name = "REPO")]
        repo: Vec<String>,
        /// Let other users read it too
        #[arg(long)]
        allow_other: bool,
    },
    /// Take local files or folders into the store, under a name
    #[command(after_help = "\
Examples:
  model-cache import me/my-model ./model-Q4_K_M.gguf
  model-cache import me/my-model ./checkpoint/")]
    Import {
        /// The name to give them: org/name
        repo: String,
        /// Files and folders
        #[arg(required = true)]
        path: Vec<PathBuf>,
    },
    /// Read files into memory, so that loading them does not wait for the disk
    #[command(after_help = "\
Examples:
  model-cache warm bartowski/Llama-3.2-3B-Instruct-GGUF --quant Q4_K_M
  model-cache warm org/name '*.safetensors'

They stay in the page cache, which every process shares, until something else needs the memory. \
Of what is larger than the memory available, the end is left on the disk.")]
    Warm {
        /// org/name or org/name@REVISION
        repo: String,
        /// Which files, by path or glob [default: all that are here]
        file: Vec<String>,
        /// A quant, with what it needs besides; may be given several times
        #[arg(long, short = 'q', value_name = "Q")]
        quant: Vec<String>,
    },
    /// Read stored bytes again and compare their checksums
    #[command(after_help = "\
Examples:
  model-cache verify
  model-cache verify org/name '*.gguf' --digest")]
    Verify {
        /// org/name or org/name@REVISION [default: the whole store]
        repo: Option<String>,
        /// Which files, by path or glob [default: all]
        glob: Vec<String>,
        /// Compute each file's digest too, as the Hub gave it
        #[arg(long)]
        digest: bool,
        /// Check what is in memory as it is there, without reading it from the disk again
        #[arg(long, conflicts_with = "digest")]
        cached: bool,
    },
    /// Mend what verify finds: fetch damaged blocks again, and only those
    #[command(after_help = "\
Examples:
  model-cache repair
  model-cache repair org/name --dry-run

Who reads a damaged file goes on reading what he has; the file is replaced when all of it is right by its digest.")]
    Repair {
        /// org/name or org/name@REVISION [default: the whole store]
        repo: Option<String>,
        /// Say what would be done, and do nothing
        #[arg(long)]
        dry_run: bool,
    },
    /// Copy the whole store into a folder, while it is in use; the next time only what is new
    #[command(after_help = "\
Examples:
  model-cache backup /mnt/disk/models
  model-cache backup /mnt/disk/models --keep 7

DIR has plain files, each under the digest of its content, and a list of what was in the store for each backup \
that is kept; the file model-cache-backup in it says how to check them without this program. \
Unfinished downloads are left out. An interrupted backup does not count, and the next one goes on with it.")]
    Backup {
        /// The folder of the backup: an empty one, one to be made, or that of the last time; not on a FAT disk if a file has 4 GiB or more
        dir: PathBuf,
        /// How many snapshots of this store to keep, this one included; older ones go once this one is whole
        #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = number::<u64>, default_value_t = BackupOptions::default().keep)]
        keep: u64,
        /// Let snapshots of other stores go too, as --keep says
        #[arg(long)]
        drop_others: bool,
        /// Read what is in DIR already too, and copy anew what is damaged
        #[arg(long)]
        recheck: bool,
    },
    /// Make a store of a backup, after all of it was checked
    #[command(after_help = "\
Examples:
  model-cache restore /mnt/disk/models --check
  model-cache restore /mnt/disk/models --to ./store
  model-cache restore /mnt/disk/models --replace

A store that is replaced must not be open anywhere. It stays as it is until the restored one is whole, \
so there has to be room for both.")]
    Restore {
        /// The folder of the backup
        dir: PathBuf,
        /// The folder of the store to make [default: that of --store]
        #[arg(long, value_name = "STORE")]
        to: Option<PathBuf>,
        /// Replace the store that is there
        #[arg(long)]
        replace: bool,
        /// Leave out files that are damaged in the backup, and restore all others
        #[arg(long)]
        skip_damaged: bool,
        /// The snapshot to restore, by its number [default: the newest]
        #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = number::<u64>)]
        snapshot: Option<u64>,
        /// Only say whether the backup is whole; writes nothing
        #[arg(long, conflicts_with_all = ["to", "replace", "skip_damaged"])]
        check: bool,
    },
    /// Remove a repo, or some of its files, and free their space
    #[command(after_help = "\
Examples:
  model-cache rm org/name
  model-cache rm org/name --quant Q8_0
  model-cache rm org/name '*.md'")]
    Rm {
        /// org/name or org/name@REVISION
        repo: String,
        /// Which files, by path or glob [default: all]
        glob: Vec<String>,
        /// The files that are this quant's alone; may be given several times
        #[arg(long, short = 'q', value_name = "Q")]
        quant: Vec<String>,
        /// Also remove imported files, which can't be fetched again, without asking
        #[arg(long, short = 'y')]
        yes: bool,
    },
    /// Free what nothing uses, unfinished downloads too
    #[command(after_help = "Example:\n  model-cache gc")]
    Gc,
    /// Look for what is wrong: settings, machine, store, disk, Hub and token; and say what to do
    #[command(after_help = "\
Examples:
  model-cache doctor
  model-cache doctor --offline

Changes nothing, and needs no store that can be opened. The exit code is 0 unless there is a problem; warnings are none.")]
    Doctor,
}

/// Bytes `start` up to, not including, `end`; an end left out is the file's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ByteRange {
    start: Option<u64>,
    end: Option<u64>,
}

impl FromStr for ByteRange {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let Some((start, end)) = text.split_once("..") else {
            return Err("a range is written A..B, A.. or ..B".to_owned());
        };
        let number = |digits: &str| match digits {
            "" => Ok(None),
            digits if digits.bytes().all(|b| b.is_ascii_digit()) => {
                digits.parse().map(Some).map_err(|_| format!("{digits} is more than any file has"))
            }
            other => Err(format!("{:?} is not a number of bytes", render::clean(other))),
        };
        let range = Self { start: number(start)?, end: number(end)? };
        match (range.start, range.end) {
            (None, None) => Err("a range has at least one end: A..B, A.. or ..B".to_owned()),
            (Some(start), Some(end)) if start > end => Err(format!("it ends at {end}, before it begins at {start}")),
            _ => Ok(range),
        }
    }
}

impl ByteRange {
    /// The bytes meant in a file of `size_bytes`; `Err` has the range as understood, which does not lie in it.
    pub(crate) fn within(self, size_bytes: u64) -> Result<Range<u64>, Range<u64>> {
        let range = self.start.unwrap_or(0)..self.end.unwrap_or(size_bytes.max(self.start.unwrap_or(0)));
        if range.end <= size_bytes && range.start <= size_bytes { Ok(range) } else { Err(range) }
    }
}

/// Which numbers make sense is the library's to say.
fn number<T: FromStr>(text: &str) -> Result<T, &'static str> {
    text.parse().map_err(|_| "it must be a whole number, without a sign")
}

/// A command line that was not understood, or asked for help.
pub(crate) enum Refused {
    /// Help or version: not an error.
    Help(clap::Error),
    /// Nothing was asked for: the help is the answer.
    NoCommand(clap::Error),
    /// An error, and whether it is told as JSON.
    Error(Failure, bool),
}

/// Parses `raw`, the program's name first.
pub(crate) fn parse(raw: &[OsString]) -> Result<Cli, Refused> {
    // Not known yet to be an option; but who writes it anywhere reads JSON.
    let json = raw.iter().skip(1).take_while(|arg| *arg != "--").any(|arg| arg == "--json");
    Cli::try_parse_from(raw).map_err(|error| match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => Refused::Help(error),
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand if !json => Refused::NoCommand(error),
        ErrorKind::InvalidUtf8 => {
            let bad = raw.iter().skip(1).find(|arg| arg.to_str().is_none());
            let shown = bad.map(|arg| render::clean(&arg.to_string_lossy())).unwrap_or_default();
            Refused::Error(Failure::new(Code::Usage, format!("the argument \"{shown}\" is not valid UTF-8")), json)
        }
        _ => Refused::Error(failure(&error, raw), json),
    })
}

/// What clap says, in our layout: the usage under it, and its tip or the command for help as the hint.
fn failure(error: &clap::Error, raw: &[OsString]) -> Failure {
    let text = error.render().to_string();
    let parts: Vec<_> = text.split("\n\n").map(|part| part.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    let after = |head: &str| parts.iter().find_map(|part| part.strip_prefix(head));
    let message = after("error: ").unwrap_or("a command is needed");
    let cli = Cli::command();
    let commands: Vec<_> = cli.get_subcommands().map(clap::Command::get_name).collect();
    let command = raw.iter().skip(1).find_map(|arg| commands.iter().find(|name| arg == **name)).map(|name| format!("{name} "));
    let help = format!("model-cache {}--help", command.unwrap_or_default());
    let failure = Failure::new(Code::Usage, message).hint(after("tip: ").map_or(help, str::to_owned));
    match after("Usage: ") {
        Some(usage) => failure.detail(format!("usage: {usage}")),
        None => failure,
    }
}

impl Refused {
    /// Shows it, and gives the exit code.
    pub(crate) fn tell(self) -> ExitCode {
        match self {
            Self::Help(help) => {
                // A reader that went away has seen enough.
                let _ = help.print();
                Code::Done.into()
            }
            Self::NoCommand(help) => {
                let help = help.render();
                let text = if output::stderr_colour() { help.ansi().to_string() } else { help.to_string() };
                talk::raw(text.as_bytes());
                Code::Usage.into()
            }
            Self::Error(failure, json) => failure.tell(json, false).into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_one_clap_accepts() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_shows_an_example() {
        for command in Cli::command().get_subcommands() {
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(help.contains(&format!("model-cache {}", command.get_name())), "{}", command.get_name());
        }
    }

    #[test]
    fn a_range_has_one_or_two_ends() {
        let parse = |text: &str| text.parse::<ByteRange>();
        assert_eq!(parse("1..5").unwrap().within(5), Ok(1..5));
        assert_eq!(parse("1..").unwrap().within(5), Ok(1..5));
        assert_eq!(parse("..5").unwrap().within(9), Ok(0..5));
        assert_eq!(parse("5..5").unwrap().within(5), Ok(5..5));
        assert_eq!(parse("5..").unwrap().within(5), Ok(5..5));
        assert_eq!(parse("6..").unwrap().within(5), Err(6..6));
        assert_eq!(parse("1..6").unwrap().within(5), Err(1..6));
        for bad in ["", "..", "5", "5..3", "a..b", "-1..2", "+1..2", "1...3", "1..=3", "1 ..3", "99999999999999999999.."] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn global_options_stand_before_or_after_the_command() {
        for line in [["model-cache", "--json", "gc"], ["model-cache", "gc", "--json"]] {
            assert!(Cli::try_parse_from(line).unwrap().global.json);
        }
    }
}
