//! What the processes of a round do: operations drawn from a world.

use crate::{
    numbers::Numbers,
    world::{MOVING, World},
};
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
    /// The store into a backup of the process's own, which later ones go on with.
    Backup,
    /// The process's own backup into a store of its own, in place of what an earlier one made.
    Restore,
    /// What is damaged, which nothing is.
    Repair,
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
            Self::Backup => "backup",
            Self::Restore => "restore",
            Self::Repair => "repair",
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
        0..27 => pull(numbers),
        27..33 => {
            let repo = (*numbers.pick(&repos)).to_owned();
            Op::PullFile { path: path(&repo, numbers), repo }
        }
        33..50 => {
            let repo = (*numbers.pick(&imports)).to_owned();
            let folder = numbers.pick(&world.import_folders(&repo)).to_path_buf();
            Op::Import { repo, folder }
        }
        50..60 => Op::Remove { repo: (*numbers.pick(&any)).to_owned() },
        60..66 => {
            let repo = (*numbers.pick(&any)).to_owned();
            Op::RemoveFile { path: path(&repo, numbers), repo }
        }
        66..71 => Op::Gc,
        71..74 => Op::Verify,
        74..82 => {
            let repo = (*numbers.pick(&any)).to_owned();
            Op::Read { path: path(&repo, numbers), repo }
        }
        82..85 => Op::LetGo,
        85..89 => Op::Export { repo: (*numbers.pick(&any)).to_owned() },
        89..93 => {
            let repo = (*numbers.pick(&any)).to_owned();
            Op::Gather { path: path(&repo, numbers), repo }
        }
        93..95 => Op::List,
        95..98 => Op::Backup,
        98..99 => Op::Restore,
        _ => Op::Repair,
    }
}

/// Operations that together pass most fail points of a new store.
pub fn tour(world: &World) -> Vec<Op> {
    let folders = |repo: &str| world.import_folders(repo).into_iter().map(|folder| folder.to_path_buf()).collect::<Vec<_>>();
    let import = |repo: &str, variant: usize| Op::Import { repo: repo.to_owned(), folder: folders(repo)[variant].clone() };
    let pull = |repo: &str, revision: &str| Op::Pull { repo: repo.to_owned(), revision: revision.to_owned() };
    let gather = |repo: &str, path: &str| Op::Gather { repo: repo.to_owned(), path: path.to_owned() };
    let remove = |repo: &str| Op::Remove { repo: repo.to_owned() };
    vec![
        pull(MOVING, "main"),
        // Content that is here under another name.
        pull("org/shares", "main"),
        pull("org/exact", "main"),
        gather("org/exact", "blocks.bin"),
        Op::Read { repo: "org/exact".to_owned(), path: "blocks.bin".to_owned() },
        import("me/local", 0),
        // Its old content is read while it is given another: the new chunks can't have its home.
        Op::Read { repo: "me/local".to_owned(), path: "weights.bin".to_owned() },
        import("me/local", 1),
        Op::LetGo,
        // Content that a pull brought.
        import("me/local", 2),
        import("me/folder", 0),
        import("me/folder", 1),
        Op::Export { repo: MOVING.to_owned() },
        pull(MOVING, "next"),
        Op::Verify,
        Op::List,
        Op::Backup,
        Op::Restore,
        Op::Repair,
        remove("org/exact"),
        remove("me/local"),
        Op::RemoveFile { repo: MOVING.to_owned(), path: "config.json".to_owned() },
        remove(MOVING),
        // What is gone from the store goes from the backup with its second snapshot from here.
        Op::Backup,
        Op::Backup,
        remove("org/shares"),
        Op::Gc,
    ]
}
