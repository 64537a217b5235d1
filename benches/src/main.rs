//! One round of one workload on one subject, in a process of its own, told as one JSON object.
//!
//! ```text
//! model-cache-bench list                                      what there is, as JSON
//! model-cache-bench slice-seq --dir D --prepare               makes what the rounds need, for every subject
//! model-cache-bench slice-seq --dir D --subject plain-mmap    one round
//! ```
//! The runner of `make bench` calls this round by round, subjects in turns. It knows the bounds; this program knows none.

#![deny(unsafe_code)]

mod bed;
mod mapped;
mod measure;
mod page_cache;
mod pattern;
mod peers;
mod report;
mod workloads;

use clap::{Parser, builder::PossibleValuesParser};
use report::Result;
use std::{fs, path::PathBuf, process::ExitCode};
use tabagent_model_cache::CHUNK_BYTES;
use workloads::{Setting, WORKLOADS, Workload};

const LIST: &str = "list";

/// Runs one round of a workload on one subject, and prints what was measured as one JSON object.
#[derive(Parser)]
struct Options {
    /// `list`, or a workload it names.
    #[arg(value_parser = PossibleValuesParser::new(words()), hide_possible_values = true)]
    workload: String,
    /// Who does the work: one of the workload's subjects.
    #[arg(long)]
    subject: Option<String>,
    /// The folder of the workload's data.
    #[arg(long, default_value = "bench-data")]
    dir: PathBuf,
    /// Only makes the data where it is missing: the subject's, or all subjects'.
    #[arg(long)]
    prepare: bool,
    /// Sizes with which any workload is done in a moment, for tests.
    #[arg(long)]
    tiny: bool,
    /// Bytes of data. Default: the workload's.
    #[arg(long, conflicts_with = "chunks")]
    bytes: Option<u64>,
    /// Bytes of data, told in chunks of 100 MiB.
    #[arg(long)]
    chunks: Option<u64>,
    /// How often what is short is done, or how many files there are. Default: the workload's.
    #[arg(long)]
    count: Option<u64>,
    /// Threads of who reads in parallel.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=256))]
    threads: u16,
    /// Bytes each thread asks for at once; what stays in a processor's cache is fastest.
    #[arg(long, default_value_t = 256 << 10, value_parser = clap::value_parser!(u32).range(4096..=1 << 30))]
    io_bytes: u32,
    /// Seed of all that is random.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

fn words() -> impl Iterator<Item = &'static str> {
    std::iter::once(LIST).chain(WORKLOADS.iter().map(|workload| workload.name))
}

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(told) => {
            println!("{told}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {error}");
            let mut cause = error.source();
            while let Some(error) = cause {
                eprintln!("  because: {error}");
                cause = error.source();
            }
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<serde_json::Value> {
    let Some(workload) = WORKLOADS.iter().find(|workload| workload.name == options.workload) else {
        return Ok(serde_json::to_value(WORKLOADS)?);
    };
    let subjects = chosen(workload, options.subject.as_deref())?;
    let setting = setting(workload, options);
    fs::create_dir_all(&setting.dir)?;
    if options.prepare {
        for subject in subjects {
            (workload.prepare)(&setting, subject)?;
        }
        return Ok(serde_json::json!({ "workload": workload.name, "prepared": subjects }));
    }
    let [subject] = subjects else {
        return Err(format!("a round is one subject's: give --subject, one of {}", subjects.join(", ")).into());
    };
    let round = (workload.run)(&setting, subject)?;
    Ok(serde_json::to_value(round.named(workload.name, subject))?)
}

/// The subjects asked for: one, or all.
fn chosen<'a>(workload: &'a Workload, subject: Option<&str>) -> Result<&'a [&'static str]> {
    let Some(subject) = subject else { return Ok(workload.subjects) };
    let at = workload.subjects.iter().position(|known| *known == subject);
    let at = at.ok_or_else(|| format!("{} has no subject {subject}: it has {}", workload.name, workload.subjects.join(", ")))?;
    Ok(&workload.subjects[at..=at])
}

fn setting(workload: &Workload, options: &Options) -> Setting {
    let size = if options.tiny { workload.tiny } else { workload.size };
    Setting {
        dir: options.dir.clone(),
        bytes: options.bytes.or(options.chunks.map(|chunks| chunks * CHUNK_BYTES)).unwrap_or(size.bytes),
        count: options.count.unwrap_or(size.count),
        threads: options.threads.into(),
        io_bytes: options.io_bytes as usize,
        seed: options.seed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_options_hold_together() {
        Options::command().debug_assert();
    }

    #[test]
    fn a_subject_is_one_of_its_workload_or_all_of_them() {
        let workload = &WORKLOADS[0];
        assert_eq!(chosen(workload, None).unwrap(), workload.subjects);
        assert_eq!(chosen(workload, Some(workload.subjects[1])).unwrap(), &workload.subjects[1..2]);
        assert!(chosen(workload, Some("nobody")).is_err());
    }

    #[test]
    fn names_are_unique_and_every_workload_is_measured_on_ourselves() {
        for (at, workload) in WORKLOADS.iter().enumerate() {
            assert!(WORKLOADS[at + 1..].iter().all(|other| other.name != workload.name), "{}", workload.name);
            assert!(!workload.subjects.is_empty(), "{}", workload.name);
        }
    }
}
