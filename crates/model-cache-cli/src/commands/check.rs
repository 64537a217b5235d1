//! `verify`: whether the bytes are what they were.

use crate::{
    context::Context,
    exit::{Code, Failure},
    output,
    progress::Progress,
    render::{self, Cell, Fit, Side, Style, Table, column},
};
use serde_json::json;
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Instant,
};
use tabagent_model_cache::{VerifyOptions, VerifyReport};

pub(super) async fn verify(
    cx: &Context,
    repo: Option<String>,
    globs: Vec<String>,
    digest: bool,
    cached: bool,
) -> Result<Code, Failure> {
    let cache = match repo {
        Some(_) => Some(cx.open_there().await?),
        None => cx.open_if_there().await?,
    };
    let there = cache.is_some();
    let mut progress = Progress::begin(cx.global.progress);
    let (told, cancel) = (Some(progress.callback("verifying")), Some(cx.interrupt.token()));
    let options = VerifyOptions { digest, cached, progress: told, cancel };
    let started = Instant::now();
    let result = match cache {
        Some(cache) => cx.blocking(move || cache.verify(repo.as_deref(), &globs, &options)).await,
        None => Ok(VerifyReport::default()),
    };
    progress.end();
    let report = result?;
    if cx.global.json {
        let bad: Vec<_> = report
            .bad
            .iter()
            .map(
                |bad| json!({ "repo": bad.repo, "path": bad.path, "chunk": bad.chunk, "block": bad.block, "reason": bad.reason }),
            )
            .collect();
        let elapsed_ms = started.elapsed().as_millis() as u64;
        output::json(&json!({
            "files": report.files,
            "blocks": report.blocks,
            "size_bytes": report.bytes,
            "elapsed_ms": elapsed_ms,
            "bad": bad,
        }))?;
    } else if there {
        tell(cx, &report, started, digest)?;
    }
    Ok(if report.bad.is_empty() { Code::Done } else { Code::Integrity })
}

fn tell(cx: &Context, report: &VerifyReport, started: Instant, digest: bool) -> Result<(), Failure> {
    let amount = format!(
        "{}, {}, {} in {}",
        render::count(report.files, "file"),
        render::count(report.blocks, "block"),
        render::size(report.bytes),
        render::took(started.elapsed())
    );
    if report.bad.is_empty() {
        let checked = if digest { "every block and digest is as it was sealed" } else { "every block is as it was sealed" };
        cx.say(&format!("Verified {amount}: {checked}"));
        return Ok(());
    }
    let mut table = Table::new([
        column("REPO", Side::Left, Fit::CutMiddle(16)),
        column("FILE", Side::Left, Fit::CutMiddle(16)),
        column("CHUNK", Side::Right, Fit::Keep),
        column("BLOCK", Side::Right, Fit::Keep),
        column("DAMAGE", Side::Left, Fit::CutEnd(16)),
    ]);
    for bad in &report.bad {
        table.row([
            bad.repo.as_str().into(),
            bad.path.as_str().into(),
            bad.chunk.to_string().into(),
            bad.block.to_string().into(),
            Cell::styled(&bad.reason, Style::Bad),
        ]);
    }
    output::text(&table.render(output::stdout_width(), cx.paint()))?;
    cx.say(&format!("Verified {amount}: {} damaged", render::count(report.bad.len() as u64, "block")));
    mending(&report.bad.iter().map(|bad| (bad.repo.as_str(), bad.path.as_str())).collect())
        .iter()
        .for_each(|hint| cx.suggest(hint));
    Ok(())
}

/// How to replace damaged files. Content goes when its last name does: every name first, then all of them anew.
fn mending(names: &BTreeSet<(&str, &str)>) -> Vec<String> {
    let mut hints = Vec::new();
    let mut pulls: BTreeMap<&str, String> = BTreeMap::new();
    let mut imports: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for (repo, path) in names {
        let word = render::shell(&render::clean(path));
        // Only what was imported has no commit.
        if repo.contains('@') {
            hints.push(format!("model-cache rm {repo} {word}"));
            let pull = pulls.entry(repo).or_insert_with(|| format!("model-cache pull {repo}"));
            *pull += &format!(" --file {word}");
        } else {
            hints.push(format!("model-cache rm {repo} {word} --yes"));
            imports.entry(repo).or_default().push(word);
        }
    }
    hints.extend(pulls.into_values());
    hints.extend(imports.into_iter().map(|(repo, paths)| {
        let it = if paths.len() == 1 { "it" } else { "them" };
        format!("{} of {repo} can't be pulled: import {it} again", paths.join(", "))
    }));
    // A pair is best pasted at once.
    match &hints[..] {
        [rm, pull] if pull.starts_with("model-cache ") => vec![format!("{rm} && {pull}")],
        _ => hints,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_damaged_file_is_replaced_by_one_line() {
        let hints = mending(&BTreeSet::from([("a/b@c0ffee", "it's.gguf")]));
        assert_eq!(hints, [r"model-cache rm a/b@c0ffee 'it'\''s.gguf' && model-cache pull a/b@c0ffee --file 'it'\''s.gguf'"]);
    }

    #[test]
    fn all_names_go_before_any_is_pulled_and_an_import_is_not_pulled() {
        let names = [("a/b@1", "x"), ("a/b@1", "y"), ("a/c@2", "x"), ("me/m", "x"), ("me/m", "z")];
        assert_eq!(
            mending(&BTreeSet::from(names)),
            [
                "model-cache rm a/b@1 x",
                "model-cache rm a/b@1 y",
                "model-cache rm a/c@2 x",
                "model-cache rm me/m x --yes",
                "model-cache rm me/m z --yes",
                "model-cache pull a/b@1 --file x --file y",
                "model-cache pull a/c@2 --file x",
                "x, z of me/m can't be pulled: import them again",
            ]
        );
    }
}
