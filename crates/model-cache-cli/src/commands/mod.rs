//! The commands: each calls the library, and shows what it answers.

mod backup;
mod bytes;
mod check;
mod doctor;
mod folder;
mod list;
mod mount;
mod offer;
mod pull;
mod remove;
mod repair;
mod warm;

use crate::{
    args::Command,
    context::{Context, Network},
    exit::{Code, Failure},
};

pub(crate) async fn run(cx: &Context, command: Command) -> Result<Code, Failure> {
    match command {
        Command::Scan { repo } => offer::scan(cx, repo).await,
        Command::Show { repo } => offer::show(cx, repo).await,
        Command::Pull { repo, quant, file, all, connections, limit_rate, memory_budget } => {
            let network = Network { connections, limit_rate, memory_budget };
            pull::pull(cx, pull::Wanted { repo, quants: quant, globs: file, all }, network).await
        }
        Command::Ls { repo: None } => list::repos(cx).await,
        Command::Ls { repo: Some(repo) } => list::files(cx, repo).await,
        Command::Df => list::df(cx).await,
        Command::Cat { repo, path, range, check } => bytes::cat(cx, repo, path, range, check).await,
        Command::Export { repo, glob, to, force, check } => folder::export(cx, repo, glob, to, force, check).await,
        Command::Mount { dir, repo, allow_other } => mount::mount(cx, dir, repo, allow_other).await,
        Command::Import { repo, path } => folder::import(cx, repo, path).await,
        Command::Warm { repo, file, quant } => warm::warm(cx, repo, quant, file).await,
        Command::Verify { repo, glob, digest, cached } => check::verify(cx, repo, glob, digest, cached).await,
        Command::Backup { dir, keep, drop_others, recheck } => backup::backup(cx, dir, keep, drop_others, recheck).await,
        Command::Restore { dir, snapshot, check: true, .. } => backup::check(cx, dir, snapshot).await,
        Command::Restore { dir, to, replace, skip_damaged, snapshot, check: false } => {
            backup::restore(cx, dir, to, replace, skip_damaged, snapshot).await
        }
        Command::Repair { repo, dry_run } => repair::repair(cx, repo, dry_run).await,
        Command::Rm { repo, glob, quant, yes } => remove::rm(cx, repo, glob, quant, yes).await,
        Command::Gc => remove::gc(cx).await,
        Command::Doctor => doctor::doctor(cx).await,
    }
}
