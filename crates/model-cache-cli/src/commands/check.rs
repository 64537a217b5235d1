//! `verify`: whether the bytes are what they were.

use crate::{
    context::Context,
    exit::{Code, Failure},
    output,
    progress::Progress,
    render::{self, Cell, Fit, Side, Style, Table, column},
};
use serde_json::json;
use std::time::Instant;
use tabagent_model_cache::{VerifyOptions, VerifyReport};

pub(super) async fn verify(cx: &Context, repo: Option<String>, globs: Vec<String>, digest: bool) -> Result<Code, Failure> {
    let cache = cx.open().await?;
    let mut progress = Progress::begin(cx.global.progress);
    let options = VerifyOptions { digest, progress: Some(progress.callback("verifying")), cancel: Some(cx.interrupt.token()) };
    let started = Instant::now();
    let result = cx.blocking(move || cache.verify(repo.as_deref(), &globs, &options)).await;
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
    } else {
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
    let first = &report.bad[0];
    let (repo, path) = (render::shell(&first.repo), render::shell(&render::clean(&first.path)));
    cx.suggest(&format!("model-cache rm {repo} {path} && model-cache pull {repo} --file {path}"));
    Ok(())
}
