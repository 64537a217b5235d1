//! The commands: each calls the library, and shows what it answers.

mod bytes;
mod check;
mod doctor;
mod folder;
mod list;
mod mount;
mod offer;
mod pull;
mod remove;
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
        Command::Cat { repo, path, range } => bytes::cat(cx, repo, path, range).await,
        Command::Export { repo, glob, to, force } => folder::export(cx, repo, glob, to, force).await,
        Command::Mount { dir, repo, allow_other } => mount::mount(cx, dir, repo, allow_other).await,
        Command::Import { repo, path } => folder::import(cx, repo, path).await,
        Command::Warm { repo, file, quant } => warm::warm(cx, repo, quant, file).await,
        Command::Verify { repo, glob, digest, cached } => check::verify(cx, repo, glob, digest, cached).await,
        Command::Rm { repo, glob, quant, yes } => remove::rm(cx, repo, glob, quant, yes).await,
        Command::Gc => remove::gc(cx).await,
        Command::Doctor => doctor::doctor(cx).await,
    }
}
