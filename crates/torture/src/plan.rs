//! What the processes of a round do: operations drawn from a world.

use crate::{numbers::Numbers, world::World};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// One thing a process does to the store. To add one: here, in [`draw`], in `worker::perform`, and, if it makes or takes names, in
/// `history::effects`.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub enum Op {
    /// All files of a revision.
    Pull {
        /// The repo.
        repo: String,
        /// A branch.
        revision: String,
    },
    /// One file of `main`.
    PullFile {
        /// The repo.
        repo: String,
        /// The file.
        path: String,
    },
    /// The files of a folder.
    Import {
        /// The repo.
        repo: String,
        /// The folder.
        folder: PathBuf,
    },
    /// A repo at every commit.
    Remove {
        /// The repo.
        repo: String,
    },
    /// A file at every commit.
    RemoveFile {
        /// The repo.
        repo: String,
        /// The file.
        path: String,
    },
    /// What nothing uses.
    Gc,
    /// Every block of the store against its CRC32C.
    Verify,
    /// A file, read whole and kept open until the process ends or lets go.
    Read {
        /// The repo.
        repo: String,
        /// The file.
        path: String,
    },
    /// Reads what is open once more, and closes it.
    LetGo,
    /// A repo into a folder of the process's own.
    Export {
        /// The repo.
        repo: String,
    },
    /// A range of a file into a derived value.
    Gather {
        /// The repo.
        repo: String,
        /// The file.
        path: String,
    },
    /// All listings.
    List,
}

impl Op {
    /// Its kind, as counted.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Pull { .. } => "pull",
            Self::PullFile { .. } => "pull_file",
            Self::Import { .. } => "import",
            Self::Remove { .. } => "remove",
            Self::RemoveFile { .. } => "remove_file",
            Self::Gc => "gc",
            Self::Verify => "verify",
            Self::Read { .. } => "read",
            Self::LetGo => "let_go",
            Self::Export { .. } => "export",
            Self::Gather { .. } => "gather",
            Self::List => "list",
        }
    }
}

/// What a round is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mix {
    /// Everything.
    All,
    /// Pulls alone, so that what an interrupted one has to fetch again can be counted.
    Pulls,
}

/// Draws `count` operations.
pub fn draw(world: &World, mix: Mix, count: usize, numbers: &mut Numbers) -> Vec<Op> {
    (0..count).map(|_| draw_one(world, mix, numbers)).collect()
}

fn draw_one(world: &World, mix: Mix, numbers: &mut Numbers) -> Op {
    let (repos, imports) = (world.repos(), world.import_repos());
    let any: Vec<&str> = repos.iter().chain(&imports).copied().collect();
    let path = |repo: &str, numbers: &mut Numbers| (*numbers.pick(&world.paths(repo))).to_owned();
    let pull = |numbers: &mut Numbers| {
        let repo = (*numbers.pick(&repos)).to_owned();
        let revision = numbers.pick(world.revisions(&repo)).clone();
        Op::Pull { repo, revision }
    };
    if mix == Mix::Pulls {
        return pull(numbers);
    }
    match numbers.within(0..100) {
        0..30 => pull(numbers),
        30..36 => {
            let repo = (*numbers.pick(&repos)).to_owned();
            Op::PullFile { path: path(&repo, numbers), repo }
        }
        36..54 => {
            let repo = (*numbers.pick(&imports)).to_owned();
            let folder = numbers.pick(&world.import_folders(&repo)).to_path_buf();
            Op::Import { repo, folder }
        }
        54..64 => Op::Remove { repo: (*numbers.pick(&any)).to_owned() },
        64..70 => {
            let repo = (*numbers.pick(&any)).to_owned();
            Op::RemoveFile { path: path(&repo, numbers), repo }
        }
        70..75 => Op::Gc,
        75..78 => Op::Verify,
        78..87 => {
            let repo = (*numbers.pick(&any)).to_owned();
            Op::Read { path: path(&repo, numbers), repo }
        }
        87..90 => Op::LetGo,
        90..94 => Op::Export { repo: (*numbers.pick(&any)).to_owned() },
        94..98 => {
            let repo = (*numbers.pick(&any)).to_owned();
            Op::Gather { path: path(&repo, numbers), repo }
        }
        _ => Op::List,
    }
}
